"""Whether the kubelet is there and counts our devices, and how our own agent is."""

import pytest

from hailo_agent.core.diagnosis.facts import AgentFacts, Part
from hailo_agent.core.diagnosis.finding import Verdict
from tests.doctor.support import PLUGINS, Told, told_of
from tests.strategies import BOARDS, RESOURCE, found, seen

LOOK = seen(found(BOARDS[0]))
SOCKET = f"{PLUGINS}/kubelet.sock"
RUNNING = AgentFacts(socket="/run/hailo-agent/agent.sock", version="0.1.0")
STOPPED = AgentFacts(socket="/run/hailo-agent/agent.sock", error="the socket does not exist")


def kubelet(**changes: object) -> Told:
    return told_of(LOOK, kubelet=changes)


def test_a_kubelet_that_answers_and_counts_our_devices_is_well() -> None:
    told = told_of(LOOK)
    assert told.the("kubelet.socket").found == "answers"
    assert told.the("kubelet.resource").found == "counted by the kubelet"


@pytest.mark.parametrize(
    ("changes", "verdict", "looked_at", "found"),
    [
        ({"plugin_dir_exists": False}, Verdict.BROKEN, PLUGINS, "does not exist"),
        ({"socket_exists": False}, Verdict.BROKEN, SOCKET, "does not exist"),
        (
            {"socket_error": "nobody listens there: the kubelet does not run"},
            Verdict.BROKEN,
            SOCKET,
            "nobody listens there: the kubelet does not run",
        ),
        (
            {"socket_exists": None, "socket_unseen": "Permission denied"},
            Verdict.UNSEEN,
            SOCKET,
            "cannot be looked at: Permission denied",
        ),
        (
            {"plugin_dir_exists": None},
            Verdict.UNSEEN,
            SOCKET,
            "cannot be looked at: no reason given",
        ),
    ],
)
def test_a_kubelet_that_cannot_be_registered_with_is_told(
    changes: dict[str, object], verdict: Verdict, looked_at: str, found: str
) -> None:
    finding = kubelet(**changes).the("kubelet.socket")
    assert (finding.verdict, finding.looked_at, finding.found) == (verdict, looked_at, found)


def test_the_unit_to_look_at_is_named_for_every_distribution() -> None:
    step = kubelet(socket_exists=False).the("kubelet.socket").next_step
    for unit in (
        "kubelet",
        "k3s-agent",
        "rke2-server",
        "snap.microk8s.daemon-kubelite",
        "k0sworker",
    ):
        assert unit in step


def test_where_there_is_no_kubelet_none_is_missed() -> None:
    told = told_of(LOOK, in_kubernetes=False, kubelet={"plugin_dir_exists": False})
    assert told.the("kubelet.socket").verdict is Verdict.OK
    assert told.all("kubelet.resource") == []


def test_a_kubelet_that_keeps_its_things_elsewhere_is_pointed_to() -> None:
    finding = kubelet(root_elsewhere="/var/lib/k0s/kubelet").the("kubelet.root")
    assert finding.verdict is Verdict.DEGRADED
    assert finding.next_step.startswith("set kubelet.root to /var/lib/k0s/kubelet")


@pytest.mark.parametrize(
    ("registered", "offered", "verdict", "found"),
    [
        (True, True, Verdict.OK, "counted by the kubelet"),
        (True, False, Verdict.OK, "counted by the kubelet"),
        (False, False, Verdict.OK, "not counted by the kubelet, as no usable device"),
        (False, True, Verdict.BROKEN, "not counted by the kubelet, though there are usable"),
        (None, True, Verdict.UNSEEN, "the kubelet could not be asked: why"),
    ],
)
def test_a_resource_is_to_be_counted_if_there_is_something_to_count(
    *, registered: bool | None, offered: bool, verdict: Verdict, found: str
) -> None:
    told = told_of(
        LOOK,
        kubelet={"registered": {RESOURCE: registered}, "unasked": "why"},
        offered=frozenset({RESOURCE} if offered else ()),
    )
    finding = told.the("kubelet.resource")
    assert (finding.verdict, finding.looked_at) == (verdict, RESOURCE)
    assert finding.found.startswith(found)


# --- the agent -----------------------------------------------------------------------------------


def test_an_agent_that_answers_is_named_with_its_version() -> None:
    assert told_of(LOOK).the("agent.running").found == "version 0.1.0 answers"


def test_an_agent_that_does_not_run_leaves_a_node_degraded_and_a_workstation_as_it_was() -> None:
    node = told_of(LOOK, agent=STOPPED).the("agent.running")
    assert node.verdict is Verdict.DEGRADED
    assert node.found == "no agent answers: the socket does not exist"
    alone = told_of(LOOK, agent=STOPPED, in_kubernetes=False).the("agent.running")
    assert alone.verdict is Verdict.OK
    assert "`systemctl enable --now hailo-agent-cdi`" in alone.next_step


def test_a_node_whose_devices_nobody_offers_is_broken_and_the_agent_comes_first() -> None:
    told = told_of(LOOK, agent=STOPPED, kubelet={"registered": {RESOURCE: False}})
    assert told.ills[:2] == ["agent.running", "kubelet.resource"]
    assert told.the("agent.running").verdict is Verdict.BROKEN
    # Who has nothing to offer is not missed.
    told = told_of(agent=STOPPED, observation=seen(), kubelet={"registered": {RESOURCE: False}})
    assert told.the("agent.running").verdict is Verdict.DEGRADED


@pytest.mark.parametrize(
    ("agent", "step"),
    [
        (STOPPED, "start the agent"),
        (RUNNING, "look again in a moment, for an agent runs; if it stays, its log says why"),
        (AgentFacts(unseen="Permission denied"), "start the agent; if it runs, its log says why"),
    ],
)
def test_what_to_do_about_a_resource_that_is_not_counted_depends_on_the_agent(
    agent: AgentFacts, step: str
) -> None:
    told = told_of(LOOK, agent=agent, kubelet={"registered": {RESOURCE: False}})
    assert told.the("kubelet.resource").next_step.startswith(step)


def test_a_kubelet_that_is_down_is_not_said_to_keep_silent_as_well() -> None:
    told = kubelet(socket_exists=False, registered={RESOURCE: None}, unasked="why")
    assert told.all("kubelet.resource") == []
    assert told.the("kubelet.socket").verdict is Verdict.BROKEN


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, "so the spec is as somebody left it"),
        ({"nodes": None, "problems": ("no YAML",)}, "so the spec is as somebody left it"),
        ({"nodes": None}, "so nobody keeps a spec"),
    ],
)
def test_what_goes_without_an_agent_is_told_on_a_workstation(
    changes: dict[str, object], found: str
) -> None:
    told = told_of(LOOK, agent=STOPPED, in_kubernetes=False, spec=changes)
    assert told.the("agent.running").found == f"no agent runs, {found}"


def test_without_device_and_agent_nobody_notices_one_that_comes() -> None:
    told = told_of(observation=seen(), agent=STOPPED, in_kubernetes=False)
    assert told.the("agent.running").found.endswith("a device that comes will not be noticed")


def test_an_agent_that_cannot_be_asked_is_not_judged() -> None:
    told = told_of(LOOK, agent=AgentFacts(unseen="Permission denied"))
    assert told.the("agent.running").verdict is Verdict.UNSEEN
    assert told.verdict is Verdict.OK


def test_an_agent_that_is_not_ready_yet_is_given_a_moment() -> None:
    finding = told_of(LOOK, agent={"is_ready": False}).the("agent.running")
    assert finding.verdict is Verdict.DEGRADED
    assert finding.found == "version 0.1.0 answers, and is not ready"


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("plugin hailo.ai/npu", Verdict.BROKEN),
        ("reconciler", Verdict.BROKEN),
        ("uevents", Verdict.DEGRADED),
        ("subscribers", Verdict.DEGRADED),
    ],
)
def test_the_last_error_of_each_part_is_told(name: str, verdict: Verdict) -> None:
    part = Part(name=name, state="waiting", reason="the kubelet refused: unsupported version")
    told = told_of(LOOK, agent={"is_ready": False, "parts": (part,)})
    finding = told.the("agent.part")
    assert finding.verdict is verdict
    assert finding.looked_at == f"part {name} of the agent"
    assert finding.found == "waiting: the kubelet refused: unsupported version"
    # The part tells it; that the whole is not ready is not told as a second fault.
    assert told.the("agent.running").verdict is Verdict.OK
