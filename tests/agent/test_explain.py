"""Who holds what, and why a pod has no device: what a person is told on a simulated node."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from typing import Any

import pytest
import structlog.testing

from hailo_agent import cli
from hailo_agent.agent import Agent
from hailo_agent.aio.supervise import State, Status
from hailo_agent.kubelet.pods import Held, Pod
from hailo_agent.sim.kubelet import AdmissionFailed
from hailo_agent.sim.node import RESOURCE, Node, temporary_root
from hailo_agent.subscribers.client import list_recent
from hailo_agent.support.explain import Cause, NotOnThisNode, explain
from hailo_agent.support.holds import holds
from hailo_agent.support.sight import Sight
from hailo_agent.wire import agentapi
from tests.support.inside import agent_inside

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
ONE, TWO = "pci-0000-01-00-0", "pci-0000-02-00-0"
QUICKLY = ("--kubelet.pod-resources-seconds=0.1", "--host.resync-seconds=1", "--web.listen=")
SOON_SECONDS = 15.0
FAILED = 1
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(90),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep the log of the agent in this process from what the command prints in it."""
    with structlog.testing.capture_logs():
        yield


@asynccontextmanager
async def node_with(*addresses: str) -> AsyncIterator[Node]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        for address in addresses:
            node.machine.plug(address)
        yield node


@asynccontextmanager
async def served(*addresses: str) -> AsyncIterator[tuple[Node, Agent]]:
    async with node_with(*addresses) as node, agent_inside(node, *QUICKLY) as agent:
        await node.listed(len(addresses))
        yield node, agent


def _typed(words: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli._run(words)
    return code, out.getvalue(), err.getvalue()


async def typed(node: Node, *words: str) -> tuple[int, str, str]:
    """Type a command on this node: its exit code, and what it says on both streams."""
    return await asyncio.to_thread(_typed, [*words, *node.flags()])


async def told(node: Node, *words: str) -> Any:  # noqa: ANN401 - any JSON value
    """Ask with an agent and a kubelet that answer."""
    code, out, err = await typed(node, *words, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert (document["agentError"], document["kubeletError"]) == ("", "")
    return document


async def held(agent: Agent, device_id: str, pod: str) -> None:
    """Wait until the agent has heard from the kubelet who holds a device."""
    async with asyncio.timeout(SOON_SECONDS):
        async for inventory in agent.inventory.follow():
            device = inventory.by_id().get(device_id)  # type: ignore[call-overload]
            if device is not None and pod in {holder.pod for holder in device.holders}:
                return


async def part(agent: Agent, condition: Callable[[Status], bool]) -> None:
    """Wait until the part that serves the resource is as it should be."""
    async with asyncio.timeout(SOON_SECONDS):
        async for statuses in agent.roster.statuses.follow():
            if any(condition(s) for s in statuses if s.name == f"plugin {RESOURCE}"):
                return


async def recorded(node: Node, kind: agentapi.ChangeKind) -> agentapi.ListRecentResponse:
    """Wait until a change of this kind is among the recent ones."""
    async with asyncio.timeout(SOON_SECONDS):
        while True:
            answer = await list_recent(node.agent_socket, "")
            if kind in {change.kind for change in answer.changes}:
                return answer
            await asyncio.sleep(0.02)


# --- who holds what ------------------------------------------------------------------------------


async def test_holders_names_pod_container_device_health_and_since_when() -> None:
    async with served(FIRST, SECOND) as (node, agent):
        _, out, _ = await typed(node, "holders")
        assert out == "No pod holds a Hailo device of this node.\n"
        before = time.time()
        container = await node.kubelet.admit("cameras/front", {RESOURCE: 1}, "detector")
        (device_id,) = container.device_ids[RESOURCE]
        await held(agent, device_id, "front")
        code, out, err = await typed(node, "holders")
        assert (code, err) == (0, "")
        heading, row = out.splitlines()
        assert heading.split() == ["POD", "CONTAINER", "DEVICE", "RESOURCE", "SINCE", "HEALTH"]
        pod, name, device, resource, _, health = row.split()
        assert (pod, name, device, resource) == ("cameras/front", "detector", device_id, RESOURCE)
        assert health == "Healthy"
        (hold,) = (await told(node, "holders"))["holds"]
        assert hold["sinceIsExact"] is True
        assert before - 2 <= hold["sinceUnixSeconds"] <= time.time() + 2
        assert hold["orphan"] is None


async def test_a_hold_that_is_older_than_the_agent_is_told_as_older() -> None:
    async with node_with(FIRST) as node:
        async with agent_inside(node, *QUICKLY):
            await node.listed(1)
            await node.kubelet.admit("default/a", {RESOURCE: 1})
        async with agent_inside(node, *QUICKLY) as agent:
            await node.listed(1)
            await held(agent, ONE, "a")
            (hold,) = (await told(node, "holders"))["holds"]
            assert hold["sinceIsExact"] is False
            _, out, _ = await typed(node, "holders")
            assert "  before 20" in out


async def test_a_device_that_went_away_under_its_pod_is_an_orphaned_hold() -> None:
    async with served(FIRST) as (node, agent):
        await node.kubelet.admit("default/a", {RESOURCE: 1})
        await held(agent, ONE, "a")
        node.machine.pull(FIRST)
        await node.listed(0, capacity=1)
        code, out, err = await typed(node, "holders")
        assert (code, err) == (0, "")
        assert f"Orphaned: {ONE}, held by default/a: the machine does not have the device." in out
        assert f"do: put {ONE} back, or delete the pod default/a" in out
        document = await told(node, "explain", FIRST)
        assert (document["cause"], document["subject"]) == ("gone", ONE)
        assert document["nextStep"] == f"put {ONE} back, or delete the pod default/a"
        of_pod = await told(node, "explain", "default/a")
        assert of_pod["cause"] == "has-lost-device"
        assert of_pod["devices"][0]["faults"][0]["code"] == "device.vanished"


async def test_a_device_held_as_a_resource_that_is_not_served_is_an_orphaned_hold() -> None:
    async with node_with(FIRST) as node:
        async with agent_inside(node, *QUICKLY, "--resource.name=hailo.ai/old"):
            await node.listed(1, resource="hailo.ai/old")
            await node.kubelet.admit("default/a", {"hailo.ai/old": 1})
        async with agent_inside(node, *QUICKLY):
            await node.listed(0, capacity=1)
            (hold,) = (await told(node, "holders"))["holds"]
            assert (hold["resource"], hold["orphan"]) == ("hailo.ai/old", "resource-not-served")
            assert "delete the pod default/a" in hold["nextStep"]
            assert (await told(node, "explain", "a"))["cause"] == "has-unserved-device"
            assert (await told(node, "explain", ONE))["cause"] == "orphaned"


# --- pods ----------------------------------------------------------------------------------------


async def test_a_pod_that_came_too_late_is_told_that_all_are_held_and_by_whom() -> None:
    async with served(FIRST, SECOND) as (node, agent):
        await node.kubelet.admit("default/a", {RESOURCE: 1})
        await node.kubelet.admit("cameras/b", {RESOURCE: 1})
        await held(agent, ONE, "a")
        await held(agent, TWO, "b")
        with pytest.raises(AdmissionFailed):
            await node.kubelet.admit("default/late", {RESOURCE: 1})
        code, out, err = await typed(node, "explain", "default/late")
        assert (code, err) == (0, "")
        answer = " ".join(out.partition("\n\n")[0].split())
        assert answer == (
            "default/late has no device of this node: all 2 usable devices are held, by cameras/b,"
            " default/a."
        )
        assert out.count("Next step: ") == 1
        document = await told(node, "explain", "late")
        assert document["cause"] == "all-held"
        assert {hold["pod"] for hold in document["holds"]} == {"a", "b"}
        assert {change["kind"] for change in document["recent"]} >= {"KIND_ADDED", "KIND_HELD"}


async def test_a_pod_is_told_what_is_wrong_with_the_device_it_has() -> None:
    async with served(FIRST) as (node, agent):
        await node.kubelet.admit("default/a", {RESOURCE: 1})
        await held(agent, ONE, "a")
        assert (await told(node, "explain", "default/a"))["cause"] == "has-device"
        node.machine.break_node(FIRST, "missing")
        await node.listed(0, capacity=1)
        document = await told(node, "explain", "default/a")
        assert document["cause"] == "has-ill-device"
        assert "/dev/hailo0 does not exist" in document["answer"]
        assert document["nextStep"].startswith("check devtmpfs and udev")
        code, out, _ = await typed(node, "explain", "/dev/hailo0")
        assert code == 0
        assert "devnode.missing, fatal" in out
        assert "  unhealthy: /dev/hailo0 does not exist" not in out.partition("lately")[0]
        assert "unhealthy: /dev/hailo0 does not exist" in out.partition("lately")[2]
        ended = await told(node, "explain", "nobody")
        assert ended["cause"] == "none-healthy"


async def test_a_pod_that_has_ended_is_told_what_it_had() -> None:
    async with served(FIRST) as (node, agent):
        await node.kubelet.admit("default/a", {RESOURCE: 1})
        await held(agent, ONE, "a")
        await node.kubelet.remove("default/a")
        document = await told(node, "explain", "default/a")
        assert document["cause"] == "device-free"
        assert f"It had {ONE} before." in document["facts"]
        assert any("does not name default/a" in fact for fact in document["facts"])


async def test_two_pods_of_one_name_have_to_be_told_apart() -> None:
    async with served(FIRST, SECOND) as (node, agent):
        await node.kubelet.admit("default/a", {RESOURCE: 1})
        await node.kubelet.admit("cameras/a", {RESOURCE: 1})
        await held(agent, TWO, "a")
        code, out, err = await typed(node, "explain", "a")
        assert (code, out) == (FAILED, "")
        assert "cameras/a, default/a; name one of them" in err


async def test_without_an_agent_it_is_said_first_that_nothing_is_offered() -> None:
    async with node_with(FIRST) as node:
        code, out, err = await typed(node, "explain", "default/b")
        assert code == 0
        assert "no agent answers on this node, so nothing is offered" in " ".join(out.split())
        assert "No agent answers on this node" in err
        assert "Traceback" not in out + err
        assert "start the agent" in out.partition("Next step: ")[2]


async def test_without_an_agent_the_kubelet_still_tells_who_holds_what() -> None:
    async with node_with(FIRST) as node:
        async with agent_inside(node, *QUICKLY):
            await node.listed(1)
            await node.kubelet.admit("default/a", {RESOURCE: 1})
        code, out, err = await typed(node, "holders")
        assert code == 0
        assert "default/a" in out
        assert "No agent answers" in err
        await node.kubelet.stop()
        code, out, err = await typed(node, "holders")
        assert (code, out) == (FAILED, "")
        assert "nobody can tell who holds what" in err


async def test_where_the_kubelet_does_not_answer_the_word_of_the_agent_counts() -> None:
    async with served(FIRST) as (node, agent):
        await node.kubelet.admit("default/a", {RESOURCE: 1})
        await held(agent, ONE, "a")
        assert node.kubelet.pod_resources is not None
        node.kubelet.pod_resources.fault = "error"
        node.kubelet.pod_resources.refusal = "rejected by rate limit"
        code, out, err = await typed(node, "holders")
        assert code == 0
        assert "default/a" in out
        assert "rejected by rate limit" in err
        document = await typed(node, "explain", "b", "--json")
        assert json.loads(document[1])["cause"] == "all-held"
        assert "rejected by rate limit" in json.loads(document[1])["facts"][0]


async def test_an_empty_node_says_what_was_seen_but_is_not_usable() -> None:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.plug(FIRST)  # no driver is loaded
        async with agent_inside(node, *QUICKLY) as agent:
            await part(agent, lambda status: status.state is State.RUNNING)
            document = await told(node, "explain", "default/a")
            assert document["cause"] == "no-device"
            assert FIRST in document["answer"]
            of_device = await told(node, "explain", FIRST)
            assert of_device["cause"] == "unusable"
            assert "no kernel driver is bound" in of_device["answer"]
            code, _, err = await typed(node, "explain", SECOND)
            assert code == FAILED
            assert f"there is no {SECOND} on this node" in err


async def test_where_the_kubelet_is_not_told_the_part_and_its_reason_are_named() -> None:
    async with served(FIRST) as (node, agent):
        node.kubelet.faults.refuse_register = "no room"
        await node.kubelet.restart()
        await part(agent, lambda status: status.reason != "")
        document = await told(node, "explain", "default/a")
        assert document["cause"] == "not-registered"
        assert RESOURCE in document["answer"]


# --- what happened lately ------------------------------------------------------------------------


async def test_what_happened_lately_can_be_asked_for_and_for_one_device_alone() -> None:
    async with served(FIRST, SECOND) as (node, agent):
        await node.kubelet.admit("default/a", {RESOURCE: 1})
        await held(agent, ONE, "a")
        everything = await recorded(node, agentapi.ChangeKind.HELD)
        assert {change.subject for change in everything.changes} == {ONE, TWO}
        assert [c.at_unix_seconds for c in everything.changes] == sorted(
            c.at_unix_seconds for c in everything.changes
        )
        assert all(abs(c.at_unix_seconds - time.time()) < 60 for c in everything.changes)
        alone = await list_recent(node.agent_socket, ONE)
        assert {change.subject for change in alone.changes} == {ONE}
        assert alone.changes[0].words == "found as hailo0, healthy"
        last = alone.changes[-1]
        assert (last.kind, last.held) == (agentapi.ChangeKind.HELD, True)
        assert last.words == "held by default/a (main)"


# --- without a node: what is rare --------------------------------------------------------------


def device(device_id: str, **more: Any) -> agentapi.Device:  # noqa: ANN401 - its fields
    known = {"resource": RESOURCE, "model": "hailo-8", "path": "/dev/hailo0", "fit": True}
    health = agentapi.Health.HEALTHY
    return agentapi.Device(**{"id": device_id, "health": health, **known, **more})


def ill(device_id: str, code: str, message: str) -> agentapi.Device:
    fault = agentapi.Fault(code=code, subject=device_id, message=message, remedy="mend it")
    unhealthy = agentapi.Health.UNHEALTHY
    return device(device_id, fit=False, health=unhealthy, faults=[fault])


def sight(
    *devices: agentapi.Device,
    resources: tuple[str, ...] = (RESOURCE,),
    **more: Any,  # noqa: ANN401 - fields of Sight
) -> Sight:
    parts = [agentapi.Part(name=f"plugin {r}", state="running") for r in resources]
    inventory = agentapi.Inventory(
        devices=list(devices), readiness=agentapi.Readiness(ready=True, parts=parts)
    )
    return Sight(inventory=inventory, resources=resources, **{"pods": (), **more})


def test_a_spec_that_cannot_be_written_is_the_cause_if_it_is_so_of_every_device() -> None:
    unwritten = ill(ONE, "spec.unwritten", "cannot write /var/run/cdi: read-only")
    told_ = explain(sight(unwritten), "a")
    assert told_.cause is Cause.SPEC_UNWRITTEN
    assert "read-only" in told_.answer
    both = explain(sight(unwritten, ill(TWO, "devnode.missing", "is missing")), "a")
    assert both.cause is Cause.NONE_HEALTHY
    assert ONE in both.answer
    assert TWO in both.answer


def test_a_pod_that_the_kubelet_names_without_a_device_was_given_none() -> None:
    told_ = explain(sight(device(ONE), pods=(Pod(namespace="default", name="a"),)), "a")
    assert (told_.cause, told_.subject) == (Cause.HOLDS_NONE, "default/a")
    assert f"has {RESOURCE} in its resources.limits" in told_.next_step
    assert any("1 device of 1 could be given" in fact for fact in told_.facts)


def test_with_several_resources_the_answer_depends_and_each_has_its_line() -> None:
    two = (RESOURCE, "hailo.ai/hailo-10h")
    told_ = explain(sight(device(ONE), resources=two), "a")
    assert told_.cause is Cause.DEPENDS
    lines = {fact.partition(":")[0]: fact for fact in told_.facts}
    assert "could be given" in lines[RESOURCE]
    assert "no device here is offered as hailo.ai/hailo-10h" in lines["hailo.ai/hailo-10h"]


def test_a_resource_that_no_device_has_is_told_with_those_that_there_are() -> None:
    told_ = explain(sight(device(ONE, resource="hailo.ai/hailo-8")), "a")
    assert told_.cause is Cause.NO_DEVICE
    assert "those here are hailo.ai/hailo-8" in told_.answer


def test_a_device_that_only_the_kubelet_knows_is_an_orphan() -> None:
    hearsay = Held(container="main", resource=RESOURCE, device_id=ONE)
    pods = (Pod(namespace="default", name="a", held=(hearsay,)),)
    told_ = explain(sight(pods=pods), ONE)
    assert (told_.cause, told_.next_step) == (
        Cause.ORPHANED,
        f"put {ONE} back, or delete the pod default/a",
    )
    assert explain(sight(pods=pods), "a").cause is Cause.HAS_LOST_DEVICE


def test_what_the_kubelet_cannot_be_asked_is_taken_from_the_agent() -> None:
    holder = agentapi.Holder(namespace="default", pod="a", container="main")
    known = device(ONE, held=True, holders=[holder])
    told_ = explain(sight(known, pods=None, unasked="no such socket"), "b")
    assert told_.cause is Cause.ALL_HELD
    assert any("no such socket" in fact for fact in told_.facts)
    assert explain(sight(known, pods=None, unasked="no such socket"), "a").cause is Cause.HAS_DEVICE


def test_since_when_goes_back_to_the_grant_and_not_beyond_another_holder() -> None:
    def change(at: float, *pods: str, held: bool = True) -> agentapi.RecentChange:
        return agentapi.RecentChange(
            at_unix_seconds=at,
            kind=agentapi.ChangeKind.HELD if held else agentapi.ChangeKind.FREED,
            subject=ONE,
            held=held,
            holders=[agentapi.Holder(namespace="n", pod=p, container="c") for p in pods],
        )

    hand = (
        Pod(namespace="n", name="b", held=(Held(container="c", resource=RESOURCE, device_id=ONE),)),
    )
    record = (change(1, "a"), change(2, held=False), change(3), change(4, "b"))
    (hold,) = holds(sight(device(ONE), pods=hand, recent=record))
    assert (hold.since_unix_seconds, hold.since_is_exact) == (3.0, True)
    (hold,) = holds(sight(device(ONE), pods=hand, recent=record[2:], forgotten=2))
    assert (hold.since_unix_seconds, hold.since_is_exact) == (3.0, False)
    (hold,) = holds(sight(device(ONE), pods=hand))
    assert hold.since_unix_seconds is None


@pytest.mark.parametrize("name", ["", " ", "a\x1b[2J", "a\nb"])
def test_a_name_that_cannot_be_one_is_refused_in_a_line_that_a_terminal_does_not_obey(
    name: str,
) -> None:
    with pytest.raises(NotOnThisNode) as refused:
        explain(sight(device(ONE)), name)
    assert str(refused.value).isprintable()


def test_explain_takes_one_name() -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parser().parse_args(["explain"])
    assert ended.value.code == 2
