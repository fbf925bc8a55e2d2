"""How devices fare that are there: vitals, cordons, and what a running agent says of them."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.cordon import Cordons
from hailo_agent.core.device import PciAddress
from hailo_agent.core.diagnosis import diagnose
from hailo_agent.core.diagnosis.facts import AgentFacts, Charge, CordonFacts, Facts, Word
from hailo_agent.core.diagnosis.finding import Verdict
from hailo_agent.core.diagnosis.health import weighed
from hailo_agent.core.health import Fault, FaultCode, Health, Severity
from hailo_agent.core.observation import Observation
from hailo_agent.host.cordons import CordonFile
from hailo_agent.sim.generations import HAILO_8
from hailo_agent.sim.machine import Ailment
from hailo_agent.sim.reports import Scene
from hailo_agent.subscribers import client
from hailo_agent.wire import agentapi
from tests.doctor.support import (
    Told,
    a_kubelet,
    an_agent,
    assert_complete,
    cordon_file,
    examine,
    examined_by_nobody,
    facts_of,
    scene,
    takes_root,
    write_spec,
)
from tests.strategies import BOARDS, How, Pulse, found, seen, set_aside, vitals

EIGHT, *_ = BOARDS
AT = PciAddress(domain=0, bus=1, slot=0, function=0)
PLACE = "PCI 0000:01:00.0 (1e60:2864, hailo-8)"
ONE, TWO = AT.device_id, replace(AT, bus=2).device_id
LOOK = seen(found(EIGHT))
SOCKET = "/run/hailo-agent/agent.sock"


def told_of(
    look: Observation = LOOK,
    *,
    pulse: Pulse | None = None,
    cordons: Cordons | None = None,
    severities: Mapping[FaultCode, Severity] | None = None,
    **changes: object,
) -> Told:
    """Diagnose a node of which this was read as well."""
    facts: Facts = facts_of(look, **changes)
    inventory = weighed(
        facts.inventory,
        vitals={} if pulse is None else {AT: vitals(EIGHT, pulse, at=0.0)},
        cordons=cordons or Cordons(),
        severities=severities or {},
    )
    kept = CordonFacts(path="/cordons.json", cordons=cordons or Cordons())
    findings = diagnose(replace(facts, inventory=inventory, cordons=kept))
    assert_complete(findings)
    return Told(findings)


# --- vitals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pulse", "check", "step"),
    [
        (Pulse.DEAD, "pci.dead", "read the kernel log, then power-cycle"),
        (Pulse.LOOSE, "pci.unbound", "read the kernel log"),
        (Pulse.RESET, "pci.disabled", "run the doctor again in a moment; if it stays, read"),
        (Pulse.STUCK, "device.unresponsive", "run the doctor again in a moment; if it stays, read"),
    ],
)
def test_one_reading_is_enough_to_call_no_dead_device_ready(
    pulse: Pulse, check: str, step: str
) -> None:
    told = told_of(pulse=pulse)
    assert told.all("pci.function") == []
    finding = told.the(check)
    assert (finding.verdict, finding.looked_at) == (Verdict.BROKEN, PLACE)
    assert finding.next_step.startswith(step)


@pytest.mark.parametrize("pulse", [Pulse.WELL, Pulse.USED, Pulse.NOISY])
def test_what_a_device_counted_since_boot_is_held_against_nobody(pulse: Pulse) -> None:
    told = told_of(pulse=pulse)
    assert told.verdict is Verdict.OK
    assert told.the("pci.function").found.startswith("ready as ")


def test_a_slow_link_is_told_once_and_its_device_is_usable_not_ready() -> None:
    told = told_of(pulse=Pulse.NARROW)
    assert told.ills == ["device.link"]
    assert told.the("device.link").found.startswith("8 GT/s x1, card and slot could do")
    assert told.the("pci.function").found == f"usable as {ONE}, /dev/hailo0"


def test_what_a_dead_card_tells_of_its_link_is_made_up() -> None:
    slow = replace(EIGHT, link=replace(EIGHT.link, width=1) if EIGHT.link else None)
    assert told_of(seen(found(slow, index=0)), pulse=Pulse.DEAD).ills == ["pci.dead"]


def test_what_the_operator_takes_for_trivial_is_so_for_the_doctor_too() -> None:
    told = told_of(pulse=Pulse.NARROW, severities={FaultCode.LINK_DEGRADED: Severity.INFO})
    assert told.the("device.link").verdict is Verdict.OK
    assert told.the("pci.function").found.startswith("ready as ")
    grave = told_of(pulse=Pulse.NARROW, severities={FaultCode.LINK_DEGRADED: Severity.FATAL})
    assert grave.ills == ["device.link"]
    assert (grave.verdict, grave.all("pci.function")) == (Verdict.BROKEN, [])


def test_vitals_that_cannot_be_read_are_unseen_and_no_fault() -> None:
    told = told_of(pulse=Pulse.BLIND)
    finding = told.the("device.vitals")
    assert (finding.verdict, finding.found) == (Verdict.UNSEEN, "not readable: config, driver")
    assert told.verdict is Verdict.OK
    late = told_of(vitals_unseen="no answer within 10 s")
    assert late.the("device.vitals").verdict is Verdict.UNSEEN


# --- cordons -------------------------------------------------------------------------------------


def test_a_cordoned_device_is_not_ready_and_says_why_since_when_and_how_to_lift_it() -> None:
    told = told_of(cordons=set_aside(ONE))
    finding = told.the("device.cordoned")
    assert (finding.verdict, finding.looked_at) == (Verdict.DEGRADED, PLACE)
    assert finding.found == "cordoned since 2026-11-22T18:30:00Z: it squeaks (by cli)"
    assert f"`hailo-agent uncordon {ONE}`" in finding.next_step
    assert told.all("pci.function") == []


@pytest.mark.parametrize("how", [How.UNSERVED, How.NO_NODE])
def test_a_cordoned_card_that_is_no_device_now_is_cordoned_all_the_same(how: How) -> None:
    told = told_of(seen(found(EIGHT, how, index=0)), cordons=set_aside(ONE))
    assert told.the("device.cordoned").looked_at == PLACE
    assert told.verdict is Verdict.BROKEN  # by what else is wrong with it


def test_a_cordon_for_a_card_that_is_not_here_is_no_fault_of_this_node() -> None:
    told = told_of(cordons=set_aside(TWO))
    finding = told.the("device.cordoned")
    assert (finding.verdict, finding.looked_at) == (Verdict.OK, "/cordons.json")
    assert TWO in finding.found
    assert told.the("pci.function").found.startswith("ready as ")


TROUBLE = Fault(
    code=FaultCode.CORDONS_UNREADABLE,
    subject="/cordons.json",
    message="line 1 is not JSON",
    remedy="repair the file",
)


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_broken_file_leaves_devices_in_doubt_unless_an_agent_knows_better(
    *, is_complete: bool
) -> None:
    told = told_of(cordons=Cordons(trouble=TROUBLE, is_complete=is_complete))
    places = {finding.looked_at for finding in told.all("cordons.unreadable")}
    assert places == ({"/cordons.json"} if is_complete else {"/cordons.json", PLACE})
    assert told.verdict is Verdict.DEGRADED
    assert bool(told.all("pci.function")) is is_complete


def test_the_same_cordon_and_reading_weighed_again_change_nothing() -> None:
    readings = {AT: vitals(EIGHT, Pulse.DEAD, at=0.0)}
    inventory = facts_of(LOOK).inventory
    for _ in range(2):
        before = inventory
        inventory = weighed(before, vitals=readings, cordons=set_aside(ONE), severities={})
    assert inventory == before
    assert [fault.code for device in before.devices for fault in device.faults] == [
        FaultCode.PCI_DEAD,
        FaultCode.CORDONED,
    ]


# --- what the agent says -------------------------------------------------------------------------


def agent(health: Health, *words: Word, is_offered: bool = True) -> AgentFacts:
    charge = Charge(health=health, is_offered=is_offered, words=words)
    return AgentFacts(socket=SOCKET, version="0.1.0", charges={ONE: charge})


def word(code: FaultCode | str, severity: str, **changes: str) -> Word:
    words = {"message": "it is so", "remedy": "do this", **changes}
    return Word(code=str(code), severity=severity, **words)


HUNG = word(
    FaultCode.FIRMWARE_HUNG, "fatal", message="its firmware does not answer", evidence="5 s"
)


def test_a_device_that_the_agent_holds_for_unhealthy_is_not_ready_for_the_reason_it_gives() -> None:
    told = told_of(agent=agent(Health.UNHEALTHY, HUNG, is_offered=False))
    finding = told.the("firmware.hung")
    assert (finding.verdict, finding.looked_at) == (Verdict.BROKEN, PLACE)
    assert finding.found == "the agent says: its firmware does not answer (5 s)"
    assert finding.next_step == "do this"
    assert told.all("pci.function") == []


@pytest.mark.parametrize(
    ("health", "code", "severity"),
    [
        (Health.DEGRADED, FaultCode.TEMPERATURE_HIGH, "degraded"),
        (Health.DEGRADED, FaultCode.THROTTLED, "degraded"),
        (Health.UNKNOWN, FaultCode.SENSOR_FAILED, "unknown"),
    ],
)
def test_a_device_that_is_handed_out_with_a_fault_is_usable_and_degraded(
    health: Health, code: FaultCode, severity: str
) -> None:
    told = told_of(agent=agent(health, word(code, severity)))
    assert told.ills == [code.value]
    assert told.the(code.value).verdict is Verdict.DEGRADED
    assert told.the("pci.function").found.startswith("usable as ")


def test_a_device_of_which_nobody_knows_is_not_usable_where_such_are_withheld() -> None:
    unknown = word(FaultCode.QUERY_FAILED, "unknown")
    told = told_of(agent=agent(Health.UNKNOWN, unknown, is_offered=False))
    assert told.ills == ["query.failed"]
    assert told.the("query.failed").why == "it is not handed out like this"
    assert told.all("pci.function") == []


def test_a_recovering_device_is_waited_for() -> None:
    remedy = "none: trusted again once it has been well for 5 s"
    recovering = word(FaultCode.RECOVERING, "fatal", remedy=remedy)
    told = told_of(agent=agent(Health.UNHEALTHY, recovering, is_offered=False))
    finding = told.the("device.recovering")
    assert finding.verdict is Verdict.DEGRADED
    assert finding.next_step == "trusted again once it has been well for 5 s"


def test_what_only_informs_leaves_a_device_ready() -> None:
    few = word(FaultCode.AER_CORRECTABLE, "info", remedy="none if they are few")
    told = told_of(agent=agent(Health.HEALTHY, few))
    assert told.verdict is Verdict.OK
    assert told.the("aer.correctable").next_step == "nothing if they are few"
    assert told.the("pci.function").found.startswith("ready as ")


@pytest.mark.parametrize(
    ("pulse", "cordons", "code", "check"),
    [
        (Pulse.DEAD, None, FaultCode.PCI_DEAD, "pci.dead"),
        (Pulse.NARROW, None, FaultCode.LINK_DEGRADED, "device.link"),
        (None, set_aside(ONE), FaultCode.CORDONED, "device.cordoned"),
    ],
)
def test_what_both_have_found_is_told_once(
    pulse: Pulse | None, cordons: Cordons | None, code: FaultCode, check: str
) -> None:
    said = agent(Health.UNHEALTHY, word(code, "fatal"), is_offered=False)
    told = told_of(pulse=pulse, cordons=cordons, agent=said)
    assert told.ills == [check]
    assert not told.the(check).found.startswith("the agent says")


@pytest.mark.parametrize(
    ("line", "check", "code"),
    [
        (
            "Mismatch Driver version pcie driver 5:3:0 pci_ep driver 5:1:1",
            "driver.endpoint",
            FaultCode.FIRMWARE_MISMATCH,
        ),
        ("Probing: Added board 1e60-2864, /dev/hailo0", None, FaultCode.FIRMWARE_MISMATCH),
    ],
)
def test_what_the_kernel_log_tells_is_not_said_again_as_what_the_chip_answered(
    line: str, check: str | None, code: FaultCode
) -> None:
    said = agent(Health.DEGRADED, word(code, "degraded"))
    told = told_of(agent=said, host={"kernel_log": (f"hailo {AT}: {line}",)})
    assert told.ills == [check or code.value]


def test_an_agent_that_gives_no_reason_is_not_overruled() -> None:
    told = told_of(agent=agent(Health.UNHEALTHY, is_offered=False))
    finding = told.the("agent.device")
    assert (finding.verdict, finding.looked_at) == (Verdict.BROKEN, PLACE)
    assert told.all("pci.function") == []


def test_a_device_that_only_the_agent_remembers_is_told_in_its_words() -> None:
    gone = Charge(
        health=Health.UNHEALTHY, is_offered=False, words=(word(FaultCode.VANISHED, "fatal"),)
    )
    facts = AgentFacts(socket=SOCKET, version="0.1.0", charges={TWO: gone})
    finding = told_of(agent=facts).the("device.vanished")
    assert (finding.verdict, finding.looked_at) == (Verdict.BROKEN, f"device {TWO}")


def test_of_the_node_an_agent_tells_what_the_doctor_does_not_look_at() -> None:
    words = (
        word(FaultCode.HOST_CMA, "info"),
        word(FaultCode.PCI_UNSERVED, "fatal"),  # the doctor looks itself, and knows more
        word(FaultCode.CORDONS_UNREADABLE, "fatal"),  # the agent's file may be another one
    )
    told = told_of(agent=AgentFacts(socket=SOCKET, version="0.1.0", words=words))
    assert told.the("host.cma-exhausted").verdict is Verdict.OK
    assert told.all("pci.unserved") == []
    assert told.the("cordons.unreadable").found.startswith("the agent says: ")


@given(
    health=st.sampled_from(Health),
    is_offered=st.booleans(),
    words=st.lists(
        st.builds(
            Word,
            code=st.sampled_from([*map(str, FaultCode), "", "news.of-tomorrow"]),
            message=st.sampled_from(["", "it is so"]),
            remedy=st.sampled_from(["", "none", "none: wait", "none if few; else mend", "mend"]),
            severity=st.sampled_from([*map(str, Severity), "", "dire"]),
        ),
        max_size=3,
    ),
)
def test_whatever_an_agent_of_any_release_says_none_but_a_healthy_device_is_called_ready(
    *, health: Health, is_offered: bool, words: list[Word]
) -> None:
    told = told_of(agent=agent(health, *words, is_offered=is_offered))
    is_ready = any(f.found.startswith("ready as ") for f in told.all("pci.function"))
    assert is_ready == (health is Health.HEALTHY and is_offered)
    assert any(finding.looked_at == PLACE for finding in told.findings)


# --- on a machine --------------------------------------------------------------------------------


@pytest.fixture
def here() -> Iterator[Scene]:
    """Two Hailo-8 in good order, their spec not written yet."""
    with scene() as built:
        built.firmware()
        built.machine.load("4.23")
        for address in ("0000:01:00.0", "0000:02:00.0"):
            built.machine.plug(address, pci_id=HAILO_8)
        yield built


def cordon(at: Scene, reason: str = "fan is loud") -> str:
    changed = CordonFile(cordon_file(at)).change(ONE, reason)
    assert changed.after is not None
    assert datetime.fromisoformat(changed.after.since).tzinfo == UTC
    return changed.after.since


@pytest.mark.parametrize(
    ("ailment", "check", "verdict"),
    [
        (Ailment.DEAD_LINK, "pci.dead", Verdict.BROKEN),
        (Ailment.DISABLED, "pci.disabled", Verdict.BROKEN),
        (Ailment.SLOW_LINK, "device.link", Verdict.DEGRADED),
    ],
)
async def test_what_ails_one_of_two_devices_is_found_without_an_agent(
    here: Scene, ailment: Ailment, check: str, verdict: Verdict
) -> None:
    await write_spec(here)
    here.machine.ail("0000:01:00.0", ailment)
    told = await examine(here)
    assert told.ills == [check]
    assert told.the(check).verdict is verdict
    ready = [f.looked_at for f in told.all("pci.function") if f.found.startswith("ready as ")]
    assert ready == ["PCI 0000:02:00.0 (1e60:2864, hailo-8)"]
    here.machine.cure("0000:01:00.0")
    assert (await examine(here)).ills == []


async def test_a_cordon_is_read_from_its_file_without_an_agent(here: Scene) -> None:
    since = cordon(here)
    told = await examine(here)
    finding = told.the("device.cordoned")
    assert finding.found == f"cordoned since {since}: fan is loud (by cli)"
    assert [f.found for f in told.all("pci.function")] == [f"ready as {TWO}, /dev/hailo1"]


async def test_a_broken_cordon_file_is_named_and_nothing_is_called_ready(here: Scene) -> None:
    cordon_file(here).write_text("{")
    told = await examine(here)
    places = [finding.looked_at for finding in told.all("cordons.unreadable")]
    assert str(cordon_file(here)) in places
    assert told.all("pci.function") == []


@takes_root
async def test_a_cordon_file_that_one_may_not_read_is_unseen_and_not_broken(here: Scene) -> None:
    await write_spec(here)
    cordon(here)
    cordon_file(here).chmod(0o600)
    told = Told(await asyncio.to_thread(examined_by_nobody, here))
    finding = told.the("cordons.file")
    assert (finding.verdict, finding.found) == (Verdict.UNSEEN, "not readable: Permission denied")
    assert told.all("cordons.unreadable") == []


async def test_a_running_agent_and_the_doctor_tell_each_fault_once(here: Scene) -> None:
    here.options["health.vitals-seconds"] = "0.1"
    here.machine.ail("0000:02:00.0", Ailment.DEAD_LINK)
    cordon(here)
    async with a_kubelet(here), an_agent(here) as running, asyncio.timeout(20):
        async for inventory in running.inventory.follow():
            if {d.id for d in inventory.devices if d.health is Health.UNHEALTHY} == {ONE, TWO}:
                break
        told = await examine(here)
    assert told.ills.count("device.cordoned") == told.ills.count("pci.dead") == 1
    assert told.all("pci.function") == []
    assert told.the("kubelet.resource").verdict is Verdict.OK  # no usable device to be missed


async def test_what_the_agent_measured_is_asked_for_on_its_socket(
    here: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = agentapi.Fault(
        code="temperature.high",
        message="it is hot",
        remedy="cool it",
        evidence="101 °C",
        severity="degraded",
    )
    device = agentapi.Device(id=ONE, health=agentapi.Health.DEGRADED, fit=True, faults=[fault])

    async def answer(socket: Path) -> agentapi.Inventory:
        assert socket.name == "agent.sock"
        readiness = agentapi.Readiness(ready=True)
        return agentapi.Inventory(agent_version="0.1.0", devices=[device], readiness=readiness)

    monkeypatch.setattr(client, "get_inventory", answer)
    told = await examine(here)
    finding = told.the("temperature.high")
    assert (finding.verdict, finding.found, finding.next_step) == (
        Verdict.DEGRADED,
        "the agent says: it is hot (101 °C)",
        "cool it",
    )
    assert [f.found.split()[0] for f in told.all("pci.function")] == ["usable", "ready"]
