"""Whatever the facts, the doctor says something of use, and says it in order."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hailo_agent.core.diagnosis import diagnose
from hailo_agent.core.diagnosis.facts import (
    AgentFacts,
    Facts,
    HostFacts,
    Inotify,
    KubeletFacts,
    Module,
    Part,
    Port,
    RuntimeConfig,
    SpecFacts,
)
from hailo_agent.core.diagnosis.finding import Finding, Verdict, worst, worst_first
from hailo_agent.core.grant import Delivery
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.observation import Observation
from tests.doctor.support import SPEC, assert_complete, facts_of
from tests.strategies import (
    BOARDS,
    IDS,
    RESOURCE,
    How,
    after,
    finds,
    found,
    histories,
    inventories,
    seen,
)

HEALTHY = facts_of(seen(found(BOARDS[0])))


# --- worst ---------------------------------------------------------------------------------------


def of(*verdicts: Verdict) -> list[Finding]:
    return [Finding(check="x", looked_at="x", found="x", verdict=verdict) for verdict in verdicts]


@pytest.mark.parametrize(
    ("verdicts", "amount"),
    [
        ((), Verdict.OK),
        ((Verdict.OK,), Verdict.OK),
        ((Verdict.UNSEEN,), Verdict.OK),
        ((Verdict.UNSEEN, Verdict.DEGRADED, Verdict.OK), Verdict.DEGRADED),
        ((Verdict.DEGRADED, Verdict.BROKEN, Verdict.UNSEEN), Verdict.BROKEN),
    ],
)
def test_findings_amount_to_the_worst_of_them_and_unseen_is_not_ill(
    verdicts: Sequence[Verdict], amount: Verdict
) -> None:
    assert worst(of(*verdicts)) is amount


@given(st.lists(st.sampled_from(Verdict)), st.lists(st.sampled_from(Verdict)))
def test_more_findings_never_make_it_better(some: list[Verdict], more: list[Verdict]) -> None:
    order = list(Verdict)
    assert order.index(worst(of(*some, *more))) >= order.index(worst(of(*some)))
    assert worst(of(*some)) is worst(of(*some[::-1]))


def test_the_worst_comes_first_and_what_is_equally_bad_keeps_its_order() -> None:
    told = [
        replace(finding, found=str(number))
        for number, finding in enumerate(
            of(Verdict.OK, Verdict.UNSEEN, Verdict.BROKEN, Verdict.OK, Verdict.DEGRADED)
        )
    ]
    assert [finding.found for finding in worst_first(told)] == ["2", "4", "1", "0", "3"]


# --- the whole -----------------------------------------------------------------------------------


def test_a_healthy_node_has_no_ills_and_nothing_unseen() -> None:
    findings = diagnose(HEALTHY)
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    assert [finding.check for finding in findings] == [
        "pci.function",
        "driver.version",
        "kubelet.socket",
        "agent.running",
        "kubelet.resource",
        "cdi.spec",
        "runtime.cdi",
        "system.inotify",
    ]


def test_the_same_facts_lead_to_the_same_findings() -> None:
    assert diagnose(HEALTHY) == diagnose(HEALTHY)


def test_of_nothing_at_all_something_is_said() -> None:
    empty = Facts(
        observation=None, spec=SpecFacts(path=SPEC), kubelet=KubeletFacts(plugin_dir="/nowhere")
    )
    findings = diagnose(empty)
    assert_complete(findings)
    assert worst(findings) is Verdict.BROKEN


@pytest.mark.parametrize("is_known", [True, False])
def test_unseen_facts_alone_never_make_a_node_ill(*, is_known: bool) -> None:
    blind = replace(
        HEALTHY,
        host=HostFacts(modules=HEALTHY.host.modules, kernel_log_unseen="Permission denied"),
        spec=replace(
            HEALTHY.spec,
            unseen="Permission denied",
            is_writable=None,
            configs=(RuntimeConfig(runtime="x", path="/x", unseen="Permission denied"),),
        ),
        kubelet=KubeletFacts(
            plugin_dir="/x",
            plugin_dir_exists=True if is_known else None,
            socket_unseen="Permission denied",
            registered={RESOURCE: None},
            unasked="Permission denied",
        ),
        agent=AgentFacts(unseen="Permission denied"),
    )
    findings = diagnose(blind)
    assert worst(findings) is Verdict.OK
    assert [f.check for f in findings if f.verdict is Verdict.UNSEEN] == [
        "kernel.log",
        "kubelet.socket",
        "agent.running",
        "kubelet.resource",
        "cdi.spec",
        "runtime.cdi",
    ]


# --- whatever the facts --------------------------------------------------------------------------

_WORDS = st.sampled_from(["/etc/cdi/x.json", "Permission denied", "a: b", "/run/cdi", "uevents"])
_MAYBE = st.sampled_from([None, True, False])
_VERSIONS = st.sampled_from(
    [None, "", "4.6.0", "4.18.0", "4.22.0", "4.23.0", "5.0.0", "5.2.0", "5.3.0", "9.9.9", "mine"]
)
_PARAMETERS = st.dictionaries(
    st.sampled_from(["force_desc_page_size", "no_power_mode"]),
    st.sampled_from(["0", "N", "Y", "4096", "16384", "x", "99999999999"]),
)
_ADDRESSES = [board.address for board in BOARDS if board.address is not None]
_FILES = ["hailo/hailo8_fw.bin", "hailo/hailo10h/scu_fw.bin", "hailo/hailo15l_fw.bin"]
_SAID = [
    "Probing on: 1e60:2864...",
    "Probing: Added board 1e60-2864, /dev/hailo0",
    "Firmware file not found (/lib/firmware/hailo/hailo8_fw.bin), please upload",
    "Failed to enable MSI -28",
    "probe with driver hailo failed with error -22",
    "Failed activating board -110",
    "Reset preparation for PCI device",
    "Remove: Releasing board",
    "Setting max_desc_page_size to 16384",
    "Mismatch Driver version pcie driver 5:3:0 pci_ep driver 5:1:1",
    "Timeout waiting for vDMA",
    "device may be disconnected",
]
_PR_ERR = [
    "Failed with error -2 to write file hailo/hailo8_fw.bin",
    "Failed to write file hailo/hailo8_board_cfg.bin",
    "sysfs: cannot create duplicate filename '/class/hailo_chardev'",
    'audit: avc:  denied  { open } path="/dev/hailo0"',
]
_LINES = st.sampled_from(
    [f"hailo {address}: {words}" for address, words in product(_ADDRESSES, _SAID)] + _PR_ERR
)


def hosts() -> st.SearchStrategy[HostFacts]:
    modules = st.lists(
        st.builds(
            Module,
            name=st.sampled_from(["hailo_pci", "hailo1x_pci", "hailo_integrated_nnc"]),
            version=_VERSIONS,
            parameters=_PARAMETERS,
        ),
        max_size=3,
        unique_by=lambda module: module.name,
    )
    return st.builds(
        HostFacts,
        modules=modules.map(tuple),
        kernel_release=st.sampled_from(["", "6.12.0"]),
        installed=st.none() | st.frozensets(st.sampled_from(["hailo_pci", "hailo1x_pci"])),
        firmware=st.dictionaries(st.sampled_from(_FILES), _MAYBE),
        libraries=st.dictionaries(_WORDS, _VERSIONS.map(str), max_size=2),
        kernel_log=st.none() | st.lists(_LINES, max_size=8).map(tuple),
        kernel_log_unseen=st.just("") | _WORDS,
        page_bytes=st.sampled_from([4096, 16384]),
        ports=st.dictionaries(
            st.sampled_from(_ADDRESSES),
            st.builds(Port, max_speed_gts=st.just(8.0), max_width=st.sampled_from([1, 4])),
        ),
        power_states=st.dictionaries(
            st.sampled_from(_ADDRESSES), st.sampled_from(["D0", "D3hot", "unknown"])
        ),
        modes=st.dictionaries(
            st.sampled_from(["hailo0", "hailo1", "h1x-0"]), st.integers(0, 0o7777)
        ),
        char_links=st.none() | st.dictionaries(st.sampled_from(["507:0"]), st.booleans()),
        inotify=st.builds(
            Inotify, max_instances=st.none() | st.integers(0, 9999), is_exhausted=_MAYBE
        ),
        in_user_namespace=st.booleans(),
        selinux=st.booleans(),
        apparmor=st.booleans(),
    )


_NAMES = st.sampled_from([*map(str, IDS), "all", "npu0"])
_NODES = st.dictionaries(_NAMES, st.lists(_WORDS, max_size=2).map(tuple), max_size=3)


def specs() -> st.SearchStrategy[SpecFacts]:
    configs = st.builds(
        RuntimeConfig,
        runtime=_WORDS,
        path=_WORDS,
        for_kubelet=st.booleans(),
        cdi=_MAYBE,
        depends=_WORDS,
        spec_dirs=st.lists(_WORDS, max_size=2).map(tuple),
        to_switch_on=_WORDS,
        unseen=st.just("") | _WORDS,
    )
    return st.builds(
        SpecFacts,
        path=st.just(SPEC),
        search=st.lists(st.sampled_from(["/etc/cdi", "/run/cdi"])).map(tuple),
        missing=st.sampled_from([(), ("/etc/cdi",)]),
        directory_exists=_MAYBE,
        is_writable=_MAYBE,
        is_symlink=st.booleans(),
        nodes=st.none() | _NODES,
        problems=st.lists(_WORDS, max_size=5).map(tuple),
        unseen=st.just("") | _WORDS,
        foreign=st.lists(st.tuples(_WORDS, _NAMES), max_size=2).map(tuple),
        leftovers=st.lists(_WORDS, max_size=1).map(tuple),
        links=st.frozensets(_NAMES, max_size=2),
        links_dir=st.just("/run/hailo-agent/devices"),
        configs=st.lists(configs, max_size=2).map(tuple),
    )


def kubelets() -> st.SearchStrategy[KubeletFacts]:
    return st.builds(
        KubeletFacts,
        plugin_dir=st.just("/var/lib/kubelet/device-plugins"),
        plugin_dir_exists=_MAYBE,
        socket_exists=_MAYBE,
        socket_error=st.just("") | _WORDS,
        socket_unseen=st.just("") | _WORDS,
        registered=st.dictionaries(st.just(RESOURCE), _MAYBE),
        unasked=st.just("") | _WORDS,
        root=st.just("/var/lib/kubelet"),
        root_elsewhere=st.just("") | _WORDS,
    )


def agents() -> st.SearchStrategy[AgentFacts]:
    words = st.just("") | _WORDS
    parts = st.builds(Part, name=_WORDS, state=_WORDS, reason=words)
    return st.builds(
        AgentFacts,
        socket=words,
        version=words,
        error=words,
        unseen=words,
        is_ready=st.booleans(),
        parts=st.lists(parts, max_size=2).map(tuple),
    )


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    """Any facts: those that belong together, and those that contradict each other."""
    look = seen(*draw(finds(tuple(How))))
    is_blind, is_related = draw(
        st.sampled_from([(False, True)] * 5 + [(True, True), (False, False)])
    )
    inventory = after(look) if is_related else draw(inventories())
    return Facts(
        observation=None if is_blind else look,
        unobserved=draw(st.just("") | _WORDS),
        inventory=draw(st.just(inventory) | st.just(Inventory())),
        expected=draw(_NODES),
        host=draw(hosts()),
        spec=draw(specs()),
        kubelet=draw(kubelets()),
        agent=draw(agents()),
        delivery=draw(st.frozensets(st.sampled_from(Delivery), min_size=1)),
        offered=draw(st.frozensets(st.just(RESOURCE))),
        runtime_version=draw(
            st.sampled_from(["", "containerd://1.7.1", "containerd://2.0.0", "cri-o://1.25.0", "?"])
        ),
        in_kubernetes=draw(st.booleans()),
    )


@settings(max_examples=150)
@given(facts())
def test_whatever_the_facts_every_finding_is_of_use(seen_so_far: Facts) -> None:
    findings = diagnose(seen_so_far)
    assert findings
    assert_complete(findings)
    assert findings == worst_first(findings)


@given(histories(), hosts())
def test_every_accelerator_is_spoken_of(looks: list[Observation], host: HostFacts) -> None:
    told = [finding.looked_at for finding in diagnose(replace(facts_of(*looks), host=host))]
    for function in looks[-1].functions if looks else ():
        assert any(where.startswith(f"PCI {function.address} ") for where in told)
    for sighting in looks[-1].sightings if looks else ():
        if sighting.function is None:
            assert f"class entry {sighting.family.class_name}/{sighting.entry}" in told
