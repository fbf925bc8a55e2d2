"""How devices reach containers: the spec and the truth, conflicts, runtimes, modes and links."""

from typing import Any

import pytest

from hailo_agent.core.diagnosis.facts import AgentFacts, RuntimeConfig
from hailo_agent.core.diagnosis.finding import Verdict
from hailo_agent.core.grant import Delivery
from tests.doctor.support import SPEC, Told, facts_of, told_of
from tests.strategies import BOARDS, RENAMED, found, seen

EIGHT, SECOND, TEN, _ = BOARDS
ONE, TWO = "pci-0000-01-00-0", "pci-0000-02-00-0"
LOOK = seen(found(EIGHT), found(SECOND))
FALLBACK = frozenset({Delivery.CRI, Delivery.DEVICESPEC})
CONFIG = "/etc/containerd/config.toml"


def spec(**changes: object) -> Told:
    return told_of(LOOK, spec=changes)


def runtime(delivery: frozenset[Delivery] = frozenset({Delivery.CRI}), **changes: object) -> Told:
    fields: dict[str, Any] = {"runtime": "containerd", "path": CONFIG, "to_switch_on": "write this"}
    config = RuntimeConfig(**{**fields, **changes})
    return told_of(LOOK, spec={"configs": (config,)}, delivery=delivery)


# --- the spec ------------------------------------------------------------------------------------


def test_a_spec_that_says_what_is_here_is_true() -> None:
    told = told_of(LOOK)
    assert told.the("cdi.spec").found == "valid, and true: 2 devices"
    assert told_of(seen(found(EIGHT))).the("cdi.spec").found == "valid, and true: 1 device"


def test_without_a_device_there_is_to_be_no_spec() -> None:
    told = told_of(seen())
    assert told.the("cdi.spec").found == "no spec, as there is no device"
    assert told.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("changes", "verdict", "found"),
    [
        ({"nodes": None}, Verdict.BROKEN, "no spec"),
        (
            {"nodes": None, "directory_exists": False},
            Verdict.BROKEN,
            "no spec, nor its directory",
        ),
        ({"nodes": {}}, Verdict.BROKEN, f"lacks all, {ONE}, {TWO}"),
        (
            {"nodes": {"all": ("/dev/hailo0", "/dev/hailo1"), ONE: ("/dev/hailo0",)}},
            Verdict.BROKEN,
            f"lacks {TWO}",
        ),
        ({"unseen": "Permission denied"}, Verdict.UNSEEN, "cannot be read: Permission denied"),
        ({"problems": ("a", "b")}, Verdict.BROKEN, "a; b"),
        ({"problems": tuple("abcde")}, Verdict.BROKEN, "a; b; c; and 2 more"),
    ],
)
def test_a_spec_that_is_not_there_or_not_right_is_told(
    changes: dict[str, object], verdict: Verdict, found: str
) -> None:
    finding = spec(**changes).the("cdi.spec")
    assert (finding.verdict, finding.found) == (verdict, found)
    assert finding.looked_at == SPEC


def test_a_name_that_leads_to_another_device_is_the_worst() -> None:
    good = facts_of(LOOK).expected
    swapped = {**good, ONE: good[TWO], TWO: good[ONE]}
    finding = spec(nodes=swapped).the("cdi.spec")
    assert finding.verdict is Verdict.BROKEN
    assert finding.found == f"says that {ONE} is /dev/hailo1, and it is /dev/hailo0"
    assert "another device than it was granted" in finding.why


def test_a_name_that_leads_nowhere_is_told() -> None:
    good = facts_of(LOOK).expected
    finding = spec(nodes={**good, ONE: ()}).the("cdi.spec")
    assert finding.found == f"says that {ONE} is no device node, and it is /dev/hailo0"


def test_a_name_of_a_device_that_is_gone_is_less_bad() -> None:
    nodes = {**facts_of(LOOK).expected, "pci-0000-09-00-0": ("/dev/hailo2",)}
    finding = spec(nodes=nodes).the("cdi.spec")
    assert finding.verdict is Verdict.DEGRADED
    assert finding.found == "still names pci-0000-09-00-0, which the machine does not have"


def test_that_all_are_too_many_is_told_by_the_one_that_is_gone() -> None:
    good = facts_of(LOOK).expected
    gone = {"pci-0000-09-00-0": ("/dev/hailo2",)}
    nodes = {**good, **gone, "all": (*good["all"], "/dev/hailo2")}
    assert "still names pci-0000-09-00-0" in spec(nodes=nodes).the("cdi.spec").found
    finding = spec(nodes={**good, "all": good["all"][:1]}).the("cdi.spec")
    assert finding.verdict is Verdict.BROKEN
    assert finding.found == "says that all is /dev/hailo0, and it is /dev/hailo0, /dev/hailo1"


def test_the_order_of_nodes_means_nothing() -> None:
    good = facts_of(LOOK).expected
    assert spec(nodes={**good, "all": good["all"][::-1]}).the("cdi.spec").verdict is Verdict.OK


def test_who_mends_the_spec_depends_on_who_runs() -> None:
    stopped = AgentFacts(socket="/run/hailo-agent/agent.sock", error="the socket does not exist")
    running = told_of(LOOK, spec={"nodes": None}).the("cdi.spec")
    assert "an agent runs and mends it" in running.next_step
    node = told_of(LOOK, spec={"nodes": None}, agent=stopped).the("cdi.spec")
    assert node.next_step == "start the agent, which keeps it right"
    alone = told_of(LOOK, spec={"nodes": None}, agent=stopped, in_kubernetes=False)
    assert alone.the("cdi.spec").next_step.startswith("`hailo-agent cdi generate`")


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"is_writable": False}, "cannot be written"), ({"is_symlink": True}, "is itself a symlink")],
)
def test_a_directory_that_will_not_do_is_told(changes: dict[str, object], found: str) -> None:
    finding = spec(**changes).the("cdi.directory")
    assert (finding.verdict, finding.looked_at) == (Verdict.BROKEN, "/var/run/cdi")
    assert finding.found == found


def test_who_cannot_tell_whether_it_can_be_written_does_not() -> None:
    assert spec(is_writable=None).all("cdi.directory") == []


def test_where_nothing_is_delivered_by_cdi_the_spec_and_the_runtime_do_not_matter() -> None:
    told = told_of(
        LOOK,
        delivery=frozenset({Delivery.DEVICESPEC}),
        spec={"nodes": None, "configs": (), "is_writable": False},
    )
    assert not {f.check for f in told.findings} & {"cdi.spec", "cdi.directory", "runtime.cdi"}


# --- other files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "verdict", "why"),
    [
        ("/run/cdi/other.yaml", Verdict.BROKEN, "readers drop the name from both"),
        ("/etc/cdi/other.json", Verdict.DEGRADED, "ours overrules it"),
        ("/var/lib/cdi/other.json", Verdict.BROKEN, "its directory overrules ours"),
        ("/somewhere/else.json", Verdict.BROKEN, "readers drop the name from both"),
    ],
)
def test_another_file_that_defines_our_names_wins_or_ruins_both_or_loses(
    path: str, verdict: Verdict, why: str
) -> None:
    search = ("/etc/cdi", "/var/run/cdi", "/var/lib/cdi")
    told = spec(search=search, foreign=((path, ONE), (path, TWO), (path, "none-of-ours")))
    finding = told.the("cdi.conflict")
    assert (finding.verdict, finding.looked_at) == (verdict, path)
    assert finding.found == f"defines {ONE}, {TWO}, as {SPEC} does"
    assert why in finding.why


def test_another_file_of_our_kind_with_other_names_is_no_conflict() -> None:
    assert spec(foreign=(("/etc/cdi/x.json", "gpu0"),)).all("cdi.conflict") == []


def test_what_a_killed_agent_left_behind_is_named_file_by_file() -> None:
    told = spec(leftovers=("/etc/cdi/hailo.ai-npu.json", "/etc/cdi/.hailo.ai-npu.json.1"))
    assert [f.looked_at for f in told.all("cdi.leftover")] == [
        "/etc/cdi/hailo.ai-npu.json",
        "/etc/cdi/.hailo.ai-npu.json.1",
    ]
    assert told.verdict is Verdict.DEGRADED


# --- runtimes ------------------------------------------------------------------------------------


def test_a_runtime_that_resolves_names_is_well() -> None:
    assert runtime(cdi=True).the("runtime.cdi").found == "containerd: CDI is on"


@pytest.mark.parametrize(
    ("delivery", "verdict", "why"),
    [
        (frozenset({Delivery.CRI}), Verdict.BROKEN, "containers start without a device"),
        (FALLBACK, Verdict.DEGRADED, "see every device of the node in sysfs"),
    ],
)
def test_a_runtime_with_cdi_off_costs_the_device_or_only_the_mask(
    delivery: frozenset[Delivery], verdict: Verdict, why: str
) -> None:
    finding = runtime(delivery, cdi=False).the("runtime.cdi")
    assert (finding.verdict, finding.found) == (verdict, "containerd: CDI is off")
    assert why in finding.why
    assert finding.next_step == "write this"


def test_a_runtime_of_which_its_version_decides_is_not_judged() -> None:
    finding = runtime(cdi=None, depends="2 has it on").the("runtime.cdi")
    assert finding.verdict is Verdict.UNSEEN
    assert finding.found == "containerd: it does not say; 2 has it on"


def test_a_configuration_that_cannot_be_read_is_not_judged() -> None:
    finding = runtime(cdi=True, unseen="is not TOML: at line 3").the("runtime.cdi")
    assert finding.verdict is Verdict.UNSEEN
    assert finding.found == "containerd: is not TOML: at line 3"


@pytest.mark.parametrize(
    ("version", "cdi", "verdicts"),
    [
        ("containerd://2.1.3", None, [Verdict.OK]),
        ("containerd://1.7.13", None, [Verdict.BROKEN]),
        ("containerd://1.7.13", True, [Verdict.OK]),
        ("containerd://1.6.9", False, [Verdict.BROKEN]),
        ("containerd://1.6.9", True, [Verdict.BROKEN, Verdict.OK]),
        ("cri-o://1.30.1", True, [Verdict.OK]),
        ("cri-o://1.27.0", True, [Verdict.BROKEN, Verdict.OK]),
        ("", None, [Verdict.UNSEEN]),
    ],
)
def test_the_version_that_the_deployer_gives_fills_in_what_the_file_leaves_out(
    version: str, *, cdi: bool | None, verdicts: list[Verdict]
) -> None:
    config = RuntimeConfig(runtime="x", path=CONFIG, cdi=cdi, depends="?", to_switch_on="edit")
    told = told_of(LOOK, spec={"configs": (config,)}, runtime_version=version)
    checks = ("runtime.cdi", "runtime.version")
    assert [f.verdict for f in told.findings if f.check in checks] == verdicts


def runtime_of(version: str, *, readable: bool = True) -> Told:
    reason = "" if readable else "cannot be read: Permission denied"
    config = RuntimeConfig(
        runtime="x", path=CONFIG, depends="?", to_switch_on="edit it", unseen=reason
    )
    return told_of(LOOK, spec={"configs": (config,)}, runtime_version=version)


def test_cdi_that_is_off_is_told_once_with_the_lines_that_switch_it_on() -> None:
    told = runtime_of("containerd://1.7.13")
    assert told.the("runtime.cdi").next_step == "edit it"
    assert told.all("runtime.version") == []


def test_of_a_configuration_that_cannot_be_read_the_version_tells_enough() -> None:
    told = runtime_of("containerd://1.7.13", readable=False)
    assert told.the("runtime.cdi").verdict is Verdict.UNSEEN
    assert told.the("runtime.version").next_step == (
        "update the runtime, or switch CDI on in its configuration, or add devicespec to"
        " runtime.delivery"
    )


def test_a_runtime_without_a_switch_is_not_sent_to_one() -> None:
    told = runtime_of("containerd://1.6.9")
    assert told.all("runtime.cdi") == []
    finding = told.the("runtime.version")
    assert finding.found == "containerd before 1.7 ignores CDI"
    assert finding.next_step == "update the runtime, or add devicespec to runtime.delivery"
    assert "annotation" in runtime_of("cri-o://1.27.0").the("runtime.version").next_step


@pytest.mark.parametrize(
    ("dirs", "is_found"),
    [
        ((), True),
        (("/etc/cdi", "/run/cdi"), True),
        (("/var/run/cdi/",), True),
        (("/etc/cdi",), False),
    ],
)
def test_a_runtime_has_to_look_where_our_spec_is(dirs: tuple[str, ...], *, is_found: bool) -> None:
    told = runtime(cdi=True, spec_dirs=dirs)
    assert bool(told.all("runtime.cdi")) is is_found
    for finding in told.all("runtime.cdi-dirs"):
        assert finding.verdict is Verdict.BROKEN
        assert "specs are looked for in /etc/cdi only" in finding.found
        assert finding.next_step.startswith("set runtime.cdi_dir to /etc/cdi, or")


def test_podman_and_docker_matter_where_there_is_no_kubelet_and_nowhere_else() -> None:
    configs = (
        RuntimeConfig(runtime="podman", path="/usr/bin/podman", cdi=True, for_kubelet=False),
        RuntimeConfig(runtime="containerd", path=CONFIG, cdi=False, to_switch_on="edit"),
    )
    alone = told_of(LOOK, spec={"configs": configs}, in_kubernetes=False)
    assert alone.the("runtime.cdi").found == "podman: CDI is on"
    node = told_of(LOOK, spec={"configs": configs})
    assert node.the("runtime.cdi").found == "containerd: CDI is off"


@pytest.mark.parametrize(("cdi", "verdict"), [(False, Verdict.BROKEN), (None, Verdict.UNSEEN)])
def test_docker_without_cdi_does_not_keep_silent(verdict: Verdict, *, cdi: bool | None) -> None:
    docker = RuntimeConfig(
        runtime="docker",
        path="/etc/docker/daemon.json",
        for_kubelet=False,
        cdi=cdi,
        depends="?",
        to_switch_on="write this",
    )
    finding = told_of(LOOK, spec={"configs": (docker,)}, in_kubernetes=False).the("runtime.cdi")
    assert finding.verdict is verdict
    assert 'could not select device driver "cdi"' in finding.why


@pytest.mark.parametrize(("in_kubernetes", "why"), [(True, "containerd 1.7"), (False, "podman")])
def test_a_host_without_any_runtime_is_not_judged(why: str, *, in_kubernetes: bool) -> None:
    told = told_of(LOOK, spec={"configs": ()}, in_kubernetes=in_kubernetes)
    finding = told.the("runtime.cdi")
    assert finding.verdict is Verdict.UNSEEN
    assert why in finding.why
    assert "`--root DIR`" in finding.next_step


@pytest.mark.parametrize(
    ("version", "count"),
    [("cri-o://1.24.2", 1), ("cri-o://1.25.9", 1), ("cri-o://1.26.0", 0), ("", 0)],
)
def test_an_old_crio_stops_at_a_missing_directory(version: str, count: int) -> None:
    told = told_of(LOOK, spec={"missing": ("/etc/cdi",)}, runtime_version=version)
    assert [f.next_step for f in told.all("runtime.cdi-dirs")] == ["`mkdir -p /etc/cdi`"] * count


# --- links and modes -----------------------------------------------------------------------------


def test_a_lasting_link_that_is_missing_matters_where_device_specs_are_delivered() -> None:
    told = told_of(LOOK, spec={"links": frozenset({ONE})}, delivery=FALLBACK)
    finding = told.the("runtime.links")
    assert (finding.verdict, finding.looked_at) == (Verdict.DEGRADED, "/run/hailo-agent/devices")
    assert finding.found == f"no link, or a wrong one, for {TWO}"
    assert told_of(LOOK, spec={"links": frozenset()}).all("runtime.links") == []
    alone = told_of(LOOK, spec={"links": frozenset()}, delivery=FALLBACK, in_kubernetes=False)
    assert alone.all("runtime.links") == []


@pytest.mark.parametrize("mode", [0o666, 0o777])
def test_a_node_that_everybody_may_open_is_not_worth_a_word(mode: int) -> None:
    assert told_of(LOOK, host={"modes": {"hailo0": mode}}).all("devnode.mode") == []


def test_a_node_of_roots_is_well_with_cdi() -> None:
    node = {"modes": {"hailo0": 0o600}}
    finding = told_of(LOOK, host=node).the("devnode.mode")
    assert finding.verdict is Verdict.OK
    assert finding.found == "mode 0600; with CDI, a container's own node belongs to its user"
    both = {"modes": {"hailo0": 0o600, "hailo1": 0o600}}
    alone = told_of(LOOK, host=both, in_kubernetes=False).the("devnode.mode")
    assert alone.looked_at == "/dev/hailo0, /dev/hailo1"
    assert alone.verdict is Verdict.OK
    assert "without root, podman can only lend this one" in alone.found
    assert 'SUBSYSTEM=="hailo_chardev", MODE="0666"' in alone.next_step


def test_a_node_of_roots_is_of_no_use_to_others_without_cdi() -> None:
    look = seen(found(TEN, family=RENAMED, index=0))
    bare = frozenset({Delivery.DEVICESPEC})
    finding = told_of(look, host={"modes": {"h1x-0": 0o600}}, delivery=bare).the("devnode.mode")
    assert finding.verdict is Verdict.DEGRADED
    assert 'SUBSYSTEM=="hailo1x", MODE="0666"' in finding.next_step
    assert "--subsystem-match=hailo1x" in finding.next_step


def test_a_char_link_that_leads_nowhere_costs_the_device_at_the_next_daemon_reload() -> None:
    told = told_of(LOOK, host={"char_links": {"507:0": True, "507:1": False}})
    finding = told.the("devnode.char-link")
    assert (finding.verdict, finding.looked_at) == (Verdict.DEGRADED, "/dev/char/507:1")
    assert finding.found == "does not lead to /dev/hailo1"
    assert finding.next_step.startswith("`ln -sf ../hailo1 /dev/char/507:1`")
