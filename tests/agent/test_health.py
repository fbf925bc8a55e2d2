"""What ails one of four devices reaches the kubelet's list, the log and the operator; and its end.

The agent is a process of its own that asks chips by real ioctls, and the chips are simulated. Most
tests share one agent that looks often and forgives soon, and ail its devices one after the other;
what ails one must not show in any other.
"""

import asyncio
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from hailo_agent.sim.chips import Chips, serial_of
from hailo_agent.sim.firmware import ChipFirmware, SimulatedChip
from hailo_agent.sim.generations import HAILO_8, HAILO_10H
from hailo_agent.sim.hailortcli import Board, HailortCli
from hailo_agent.sim.hands import device_id
from hailo_agent.sim.ioctls import IoctlSupervisor
from hailo_agent.sim.machine import Ailment, Machine, slot_address
from hailo_agent.sim.node import RESOURCE, AgentProcess, Line, Node, temporary_root
from hailo_agent.subscribers import client

FIRST, SECOND, THIRD, FOURTH = ADDRESSES = tuple(slot_address(number) for number in range(4))
SOON_SECONDS: Final = 20.0

# Not the weight of faults is tried here but their way, so none takes long to be forgotten.
_SOON_FORGOTTEN: Final = (
    *("pci.dead", "pci.disabled", "link.degraded"),
    *("aer.correctable", "aer.nonfatal", "aer.fatal"),
    *("temperature.high", "chip.throttled"),
)
_RULES: Final[Mapping[str, Mapping[str, float]]] = {
    "query.slow": {"strikes": 2},
    **{code: {"recovery_seconds": 0.1} for code in _SOON_FORGOTTEN},
}
QUICK: Final = (
    "--health.vitals-seconds=0.2",
    "--health.query-seconds=0.3",
    "--health.query-timeout-seconds=1",
    "--health.awake-share=1",
    "--health.slow-seconds=0.2",
    "--health.flap-window-seconds=0.01",
    "--health.hailortcli=",
    "--web.listen=",
    "--kubelet.pod-resources-seconds=0.2",
    f"--health.faults={json.dumps(_RULES)}",
)
SLOW_SECONDS: Final = 0.25

_NEWS: Final = ("device.faulted", "device.recovered", "device.moved", "device.removed")

# One loop for all: on it lives what answers the shared agent, which must not be kept waiting.
pytestmark = [pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]


@dataclass(slots=True, kw_only=True)
class Stand:
    """A node with four devices, and an agent that asks them often."""

    node: Node
    chips: Chips
    agent: AgentProcess
    began_at: float = field(default_factory=time.monotonic)

    @property
    def machine(self) -> Machine:
        return self.node.machine

    @property
    def ioctls(self) -> IoctlSupervisor:
        assert self.node.ioctls is not None
        return self.node.ioctls

    def listed(self) -> Mapping[str, str]:
        """Tell what the kubelet holds of each device's health."""
        return self.node.kubelet.resource(RESOURCE).health

    async def lists(self, address: str, health: str) -> None:
        """Wait until the kubelet has heard this of one device."""
        name = device_id(address)
        await self.node.kubelet.wait_for(
            lambda: self.listed().get(name) == health, within=SOON_SECONDS
        )

    async def faulted(self, address: str, code: str, health: str) -> Mapping[str, Any]:
        """Wait for the log line that says this of a device, in this test; returns the fault."""

        def says(fields: Mapping[str, Any]) -> bool:
            device = fields["device"]
            is_it = (device["id"], device["health"]) == (device_id(address), health)
            return is_it and code in codes(device)

        line = await self.wait_for("device.faulted", says)
        return next(f for f in line.fields["device"]["faults"] if f["code"] == code)

    async def recovered(self, address: str) -> None:
        """Wait for the log line that says that nothing is wrong with it any more."""

        def says(fields: Mapping[str, Any]) -> bool:
            device = fields["device"]
            is_well = device["health"] == "Healthy" and not device["faults"]
            return bool(device["id"] == device_id(address) and is_well)

        await self.wait_for("device.recovered", says)

    async def wait_for(self, event: str, says: Callable[[Mapping[str, Any]], object]) -> Line:
        return await self.agent.wait_for(event, says, since=self.began_at, within=SOON_SECONDS)

    async def shown(self) -> Mapping[str, Any]:
        """Ask for each device by id, as `devices --json` does."""
        inventory = await client.get_inventory(self.node.agent_socket)
        return {device["id"]: device for device in inventory.to_dict()["devices"]}

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(SOON_SECONDS):
            while not condition():  # noqa: ASYNC110 - a chip that is asked rings no bell
                await asyncio.sleep(0.01)

    async def others_were_left_alone(self, address: str) -> None:
        """Look whether, since this test began, anybody has been told anything of another device."""
        others = {device_id(other) for other in ADDRESSES} - {device_id(address)}
        lists = [m.health for m in self.node.kubelet.messages if m.at >= self.began_at]
        told = {health[name] for health in lists for name in others}
        assert told <= {"Healthy"}
        for line in self.agent.lines:
            if line.at >= self.began_at and line.event in _NEWS:
                assert line.fields["device"]["id"] == device_id(address)
        shown = await self.shown()
        assert {verdict(shown[name]) for name in others} == {"Healthy"}
        assert {code for name in others for code in codes(shown[name])} == set()
        assert self.agent.garbage == []


def codes(device: Mapping[str, Any]) -> set[str]:
    """Name what is wrong with a device, as the log or JSON has it."""
    return {fault["code"] for fault in device.get("faults", ())}


def verdict(device: Mapping[str, Any]) -> str:
    """Tell the health of a device in JSON in the log's word."""
    return str(device["health"]).removeprefix("HEALTH_").capitalize()


@asynccontextmanager
async def standing(
    *flags: str,
    env: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
    furnish: Callable[[Machine], object] = bool,
    asks: bool = True,
) -> AsyncIterator[Stand]:
    """Run an agent on a node with four devices; the block begins when all are listed and asked."""
    behind: list[Chips] = []

    def put_chips(machine: Machine) -> Chips:
        behind.append(Chips(machine))
        return behind[0]

    async with temporary_root() as root, Node.build(root, fsync=False, chips=put_chips) as node:
        node.machine.load("4.23")
        node.machine.load("5.3")
        for address in (FIRST, SECOND, THIRD):
            node.machine.plug(address)
        node.machine.plug(FOURTH, pci_id=HAILO_10H)
        furnish(node.machine)
        prefix = (*node.prefix, *wrapper)
        agent = await AgentProcess.start(*node.flags(), *flags, env=env, prefix=prefix)
        try:
            stand = Stand(node=node, chips=behind[0], agent=agent)
            await node.kubelet.wait_for(lambda: len(stand.listed()) == len(ADDRESSES), within=20.0)
            if asks:
                await stand.until(lambda: all(stand.chips[a].asked for a in ADDRESSES))
            yield stand
        finally:
            assert await agent.stop() == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at_leisure() -> AsyncIterator[asyncio.Task[tuple[float, float]]]:
    """Begin what is mostly waiting, beside the other tests."""
    task = asyncio.create_task(dead_link_at_default_settings())
    yield task
    task.cancel()
    await asyncio.wait([task])


async def dead_link_at_default_settings() -> tuple[float, float]:
    """Let a link die and come back; returns the seconds until the kubelet heard of each."""
    async with standing(asks=False) as stand:
        died_at = time.monotonic()
        stand.machine.ail(THIRD, Ailment.DEAD_LINK)
        await stand.node.kubelet.wait_for(
            lambda: stand.listed()[device_id(THIRD)] == "Unhealthy", within=15.0
        )
        unhealthy_after = time.monotonic() - died_at
        cured_at = time.monotonic()
        stand.machine.cure(THIRD)
        await stand.node.kubelet.wait_for(
            lambda: stand.listed()[device_id(THIRD)] == "Healthy", within=45.0
        )
        await stand.others_were_left_alone(THIRD)
        return unhealthy_after, time.monotonic() - cured_at


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quick(at_leisure: object) -> AsyncIterator[Stand]:
    async with standing(*QUICK) as stand:
        for address in ADDRESSES:
            chip(stand, address).firmware.slow_seconds = SLOW_SECONDS
        await until_all_were_read(stand)
        yield stand


@pytest_asyncio.fixture(loop_scope="module")
async def stand(quick: Stand) -> AsyncIterator[Stand]:
    """Give each test the shared agent with all well, and leave it so."""
    quick.began_at = time.monotonic()
    yield quick
    for address in ADDRESSES:
        quick.machine.mend(address)
    await quick.node.listed(4, capacity=4, within=SOON_SECONDS)
    await until_all_are_well(quick)


async def until_all_were_read(stand: Stand) -> None:
    """Wait for a first reading of each: errors count from then on."""
    async with asyncio.timeout(SOON_SECONDS):
        while not all(d.get("vitals") for d in (await stand.shown()).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_all_are_well(stand: Stand) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while any(codes(device) for device in (await stand.shown()).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def chip(stand: Stand, address: str) -> SimulatedChip:
    return stand.chips[address]


# --- each ailment -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What is said of a device that something ails."""

    code: str
    health: str
    severity: str
    message: str
    remedy: str
    """A part of it."""
    passes: bool = False
    """Whether it ends by itself, because it is an event and no state."""


def fatal(code: str, message: str, remedy: str) -> Expected:
    return Expected(code=code, health="Unhealthy", severity="fatal", message=message, remedy=remedy)


def degraded(code: str, message: str, remedy: str, *, passes: bool = False) -> Expected:
    return Expected(
        code=code,
        health="Degraded",
        severity="degraded",
        message=message,
        remedy=remedy,
        passes=passes,
    )


# In an order that has not often to wait for the agent, which sends at most one list a second.
SAID: Final[Mapping[Ailment, Expected]] = {
    Ailment.DEAD_LINK: fatal("pci.dead", "it does not answer", "power-cycle the machine"),
    Ailment.SLOW_LINK: degraded("link.degraded", "runs below what the device can do", "reseat"),
    Ailment.AER_CORRECTABLE: Expected(
        code="aer.correctable",
        health="Healthy",
        severity="info",
        message="errors, which were corrected (AER)",
        remedy="none if they are few",
        passes=True,
    ),
    Ailment.DISABLED: fatal("pci.disabled", "its PCI function is disabled", "wait if it is being"),
    Ailment.AER_NONFATAL: degraded(
        "aer.nonfatal", "errors that lost data", "read the kernel log for `AER`", passes=True
    ),
    Ailment.AER_FATAL: degraded(
        "aer.fatal", "make it unreliable", "replace adapter, cable or module", passes=True
    ),
    Ailment.FIRMWARE_LOST: fatal(
        "firmware.not-loaded", "the chip runs no firmware", "unbind the device"
    ),
    Ailment.HOT: degraded("temperature.high", "the chip is hot", "cooling"),
    Ailment.THROTTLING: degraded("chip.throttled", "runs slower because it is hot", "cooling"),
    Ailment.HUNG_CONTROL: fatal(
        "query.hung", "a call into the kernel driver does not return", "read the kernel log"
    ),
    Ailment.SLOW_CONTROL: degraded("query.slow", "answers take longer than 0.2 s", "none while"),
    Ailment.GARBAGE: fatal(
        "firmware.garbage", "the firmware's answers make no sense", "power-cycle the machine"
    ),
    Ailment.REFUSING: degraded(
        "firmware.refused", "refuses to say what it is", "end what uses the device"
    ),
}


async def test_nothing_that_may_ail_a_device_is_left_out() -> None:
    assert set(SAID) == set(Ailment)


@pytest.mark.parametrize("ailment", SAID, ids=str)
async def test_what_ails_one_device_is_told_of_that_one_alone_until_it_is_cured(
    stand: Stand, ailment: Ailment
) -> None:
    said = SAID[ailment]
    address = ADDRESSES[list(Ailment).index(ailment) % 3]  # the fourth has no firmware control
    kubelet_says = "Unhealthy" if said.health == "Unhealthy" else "Healthy"
    sent = stand.node.kubelet.message_count

    stand.machine.ail(address, ailment)
    fault = await stand.faulted(address, said.code, said.health)
    await stand.lists(address, kubelet_says)
    shown = (await stand.shown())[device_id(address)]
    stand.machine.cure(address)
    await stand.recovered(address)
    await stand.lists(address, "Healthy")

    assert (fault["subject"], fault["severity"]) == (device_id(address), said.severity)
    assert said.message in fault["message"]
    assert said.remedy in fault["remedy"]
    assert verdict(shown) == said.health or said.passes
    assert said.code in codes(shown) or said.passes
    if kubelet_says == "Healthy":
        assert stand.node.kubelet.message_count == sent
    await stand.others_were_left_alone(address)


async def test_the_command_prints_what_is_wrong_and_what_to_do(stand: Stand) -> None:
    stand.machine.ail(SECOND, Ailment.FIRMWARE_LOST)
    fault = await stand.faulted(SECOND, "firmware.not-loaded", "Unhealthy")
    as_json, table = await asyncio.gather(
        typed(stand, "devices", "--json"), typed(stand, "devices")
    )

    shown = {device["id"]: device for device in json.loads(as_json)["devices"]}
    assert list(map(verdict, shown.values())) == ["Healthy", "Unhealthy", "Healthy", "Healthy"]
    (printed,) = shown[device_id(SECOND)]["faults"]
    assert {key: printed[key] for key in ("code", "message", "remedy")} == {
        key: fault[key] for key in ("code", "message", "remedy")
    }
    (row,) = (line for line in table.splitlines() if line.startswith(device_id(SECOND)))
    assert "Unhealthy: the chip runs no firmware" in row
    assert "48 °C" in table


async def typed(stand: Stand, *words: str) -> str:
    """Type a command on this node; returns what it prints."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "hailo_agent", *words, *stand.node.flags()],
        capture_output=True,
        text=True,
        timeout=SOON_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- what is no ailment but as bad --------------------------------------------------------------


async def test_firmware_of_another_version_than_its_kernel_driver_degrades_it(stand: Stand) -> None:
    chip(stand, THIRD).firmware.version = "4.21.0"
    fault = await stand.faulted(THIRD, "firmware.mismatch", "Degraded")
    chip(stand, THIRD).firmware.version = "4.23.0"
    await stand.recovered(THIRD)

    assert fault["message"] == "firmware 4.21.0 runs under kernel driver 4.23.0"
    assert "install the firmware that came with kernel driver 4.23.0" in fault["remedy"]
    await stand.others_were_left_alone(THIRD)


async def test_a_device_that_another_kernel_driver_took_is_gone_until_it_is_given_back(
    stand: Stand,
) -> None:
    stand.machine.usurp(FIRST, "vfio-pci")
    fault = await stand.faulted(FIRST, "device.vanished", "Unhealthy")
    await stand.lists(FIRST, "Unhealthy")
    found = await stand.wait_for("fault.found", lambda fields: fields["fault"]["subject"] == FIRST)
    stand.machine.bind(FIRST)
    await stand.recovered(FIRST)
    await stand.lists(FIRST, "Healthy")

    assert fault["remedy"]
    assert found.fields["fault"]["code"] == "pci.unserved"
    await stand.others_were_left_alone(FIRST)


async def test_a_device_that_vanishes_under_load_stays_its_pods_and_comes_back_to_it() -> None:
    async with standing(*QUICK) as stand:
        container = await stand.node.kubelet.admit("default/camera", {RESOURCE: 1})
        (name,) = container.device_ids[RESOURCE]
        address = next(address for address in ADDRESSES if device_id(address) == name)
        with stand.machine.hold(address):
            await stand.wait_for("device.held", lambda fields: fields["device"]["holders"])
            stand.machine.pull(address)
            await stand.faulted(address, "device.vanished", "Unhealthy")
            await stand.lists(address, "Unhealthy")
            assert verdict((await stand.shown())[name]) == "Unhealthy"
        assert stand.node.kubelet.holders(RESOURCE) == {name: "default/camera"}
        stand.machine.plug(address, pci_id=HAILO_10H if address == FOURTH else HAILO_8)
        await stand.recovered(address)
        await stand.lists(address, "Healthy")
        assert stand.agent.events("device.freed") == []
        await stand.others_were_left_alone(address)


async def test_what_was_found_out_about_a_card_is_not_held_against_the_next_one_in_its_slot(
    stand: Stand,
) -> None:
    stand.machine.ail(SECOND, Ailment.FIRMWARE_LOST)
    await stand.faulted(SECOND, "firmware.not-loaded", "Unhealthy")
    stand.machine.pull(SECOND)
    gone = await stand.wait_for(
        "device.faulted", lambda fields: "device.vanished" in codes(fields["device"])
    )
    stand.machine.plug(SECOND)
    await stand.recovered(SECOND)
    await stand.lists(SECOND, "Healthy")

    assert codes(gone.fields["device"]) == {"device.vanished"}
    assert codes((await stand.shown())[device_id(SECOND)]) == set()
    await stand.others_were_left_alone(SECOND)


async def test_a_device_that_is_set_aside_says_why(stand: Stand) -> None:
    await typed(stand, "cordon", device_id(THIRD), "--reason=fan is loud")
    fault = await stand.faulted(THIRD, "device.cordoned", "Unhealthy")
    await stand.lists(THIRD, "Unhealthy")
    await typed(stand, "uncordon", device_id(THIRD))
    await stand.recovered(THIRD)
    await stand.lists(THIRD, "Healthy")

    assert "fan is loud" in fault["message"]
    assert "uncordon" in fault["remedy"]
    await stand.others_were_left_alone(THIRD)


# --- what the firmware is asked for, and when it is not -----------------------------------------


async def test_the_model_is_what_the_firmware_says(stand: Stand) -> None:
    sent = stand.node.kubelet.message_count
    shown = await stand.shown()
    assert shown[device_id(FIRST)]["model"] == "hailo-8"
    assert shown[device_id(FOURTH)]["model"] == "hailo-10h"  # which no host can ask

    chip(stand, FIRST).firmware.architecture = "hailo-8l"
    await stand.wait_for("device.updated", lambda fields: fields["device"]["model"] == "hailo-8l")
    assert (await stand.shown())[device_id(FIRST)]["model"] == "hailo-8l"
    chip(stand, FIRST).firmware.architecture = "hailo-8"
    await stand.wait_for("device.updated", lambda fields: fields["device"]["model"] == "hailo-8")

    assert stand.node.kubelet.message_count == sent
    await stand.others_were_left_alone(FIRST)


async def test_a_device_in_use_is_neither_asked_nor_condemned(stand: Stand) -> None:
    def asked() -> list[int]:
        return [len(chip(stand, address).asked) for address in ADDRESSES]

    with stand.machine.hold(SECOND):
        await is_seen_in_use(stand, SECOND)
        before = asked()
        stand.machine.ail(SECOND, Ailment.HUNG_CONTROL)
        # Others are asked three times over, with five questions each.
        await stand.until(lambda: asked()[0] >= before[0] + 15 and asked()[2] >= before[2] + 15)
        assert asked()[1] == before[1]
        assert verdict((await stand.shown())[device_id(SECOND)]) == "Healthy"
        stand.machine.cure(SECOND)
    await stand.until(lambda: asked()[1] > before[1])
    assert set(stand.listed().values()) == {"Healthy"}
    await stand.others_were_left_alone(SECOND)


async def is_seen_in_use(stand: Stand, address: str) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while True:
            shown = (await stand.shown())[device_id(address)]
            if shown.get("vitals", {}).get("inUse"):
                return
            await asyncio.sleep(0.02)


async def test_our_own_call_that_hangs_is_no_use_of_the_device(stand: Stand) -> None:
    stand.machine.ail(FIRST, Ailment.HUNG_CONTROL)
    await stand.faulted(FIRST, "query.hung", "Unhealthy")
    # So does the worker that hangs, which the simulated machine does not know.
    with stand.machine.hold(FIRST):
        await asyncio.sleep(0.6)  # until its power state has been read
        shown = (await stand.shown())[device_id(FIRST)]
        assert verdict(shown) == "Unhealthy"
    stand.machine.cure(FIRST)
    await stand.recovered(FIRST)
    await stand.others_were_left_alone(FIRST)


async def test_a_device_in_use_that_is_asked_nevertheless_is_not_taken_away_for_its_silence() -> (
    None
):
    async with standing(*QUICK, "--health.query-in-use=true") as stand:
        with stand.machine.hold(SECOND):
            await is_seen_in_use(stand, SECOND)
            stand.machine.ail(SECOND, Ailment.HUNG_CONTROL)
            fault = await stand.faulted(SECOND, "query.hung", "Degraded")
            assert fault["severity"] == "degraded"
            stand.machine.cure(SECOND)
            await stand.recovered(SECOND)
        assert all(set(m.health.values()) == {"Healthy"} for m in stand.node.kubelet.messages)


# --- at default settings ------------------------------------------------------------------------


async def test_at_default_settings_a_dead_link_is_told_in_time_and_so_is_its_end(
    at_leisure: "asyncio.Task[tuple[float, float]]",
) -> None:
    unhealthy_after, healthy_after = await at_leisure
    print(f"Unhealthy after {unhealthy_after:.2f} s, Healthy after {healthy_after:.2f} s")  # noqa: T201 - for pytest -s


# --- sensors that cannot work ---------------------------------------------------------------------


def without_interpreter(path: Path) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Have the agent take `path` for its interpreter: wrapper and environment to start it with."""
    # What a worker is started with is then not there, or not before somebody puts it there.
    wrapper = ("bash", "-c", 'real=$1; shift; exec -a "$0" "$real" "$@"', str(path))
    return wrapper, {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


async def test_where_nobody_can_ask_though_it_was_ordered_devices_are_unknown(
    tmp_path: Path,
) -> None:
    interpreter = tmp_path / "python"
    there = Path(sys.executable).resolve()  # noqa: ASYNC240 - of a name, before anything runs
    wrapper, env = without_interpreter(interpreter)
    flags = (*QUICK, "--health.queries=on")
    async with standing(*flags, wrapper=wrapper, env=env, asks=False) as stand:
        faults = [await stand.faulted(a, "sensor.failed", "Unknown") for a in ADDRESSES]
        await asyncio.sleep(0.7)  # two more tries
        assert {fault["severity"] for fault in faults} == {"unknown"}
        assert "set health.queries to auto or off" in faults[0]["remedy"]
        assert str(interpreter) in faults[0]["evidence"]
        assert said_of_queries(stand.agent, "part.limping") == 1
        assert len(stand.agent.events("device.faulted")) == len(ADDRESSES)
        assert set(stand.listed().values()) == {"Healthy"}  # offered, unless that is unwanted
        assert set(map(verdict, (await stand.shown()).values())) == {"Unknown"}

        interpreter.symlink_to(there)
        for address in ADDRESSES:
            await stand.recovered(address)
        assert said_of_queries(stand.agent, "part.recovered") == 1
        assert stand.agent.garbage == []


async def test_where_nobody_can_ask_and_nobody_ordered_it_the_agent_goes_by_what_it_sees(
    tmp_path: Path,
) -> None:
    wrapper, env = without_interpreter(tmp_path / "python")
    async with standing(*QUICK, wrapper=wrapper, env=env, asks=False) as stand:
        absent = await stand.agent.wait_for("sensor.absent")
        stand.machine.ail(FIRST, Ailment.HUNG_CONTROL)
        stand.machine.ail(SECOND, Ailment.DEAD_LINK)
        await stand.faulted(SECOND, "pci.dead", "Unhealthy")
        await stand.lists(SECOND, "Unhealthy")
        stand.machine.cure(SECOND)
        await stand.recovered(SECOND)
        assert (absent.fields["sensor"], absent.fields["log.level"]) == ("query", "info")
        assert len(stand.agent.events("sensor.absent")) == 1
        assert said_of_queries(stand.agent, "part.limping") == 0
        assert stand.ioctls.asked == []
        await stand.others_were_left_alone(SECOND)


async def test_one_devnode_that_may_not_be_opened_is_one_warning_and_one_unknown_device() -> None:
    flags = (*QUICK, "--health.queries=on", "--health.unknown=withheld")
    async with standing(*flags) as stand:
        stand.machine.break_node(SECOND, "mode")
        fault = await stand.faulted(SECOND, "sensor.failed", "Unknown")
        await stand.lists(SECOND, "Unhealthy")  # withheld
        asked = len(chip(stand, FIRST).asked)
        await stand.until(lambda: len(chip(stand, FIRST).asked) >= asked + 20)  # four times over
        limped = said_of_queries(stand.agent, "part.limping")
        walked = said_of_queries(stand.agent, "part.recovered")
        stand.machine.mend(SECOND)
        await stand.recovered(SECOND)
        await stand.lists(SECOND, "Healthy")

        assert "Permission denied" in fault["evidence"]
        assert (limped, walked) == (1, 0)
        await stand.others_were_left_alone(SECOND)


def said_of_queries(agent: AgentProcess, event: str) -> int:
    return sum(line.fields["part"] == "queries" for line in agent.events(event))


async def test_a_kernel_driver_that_nobody_has_read_is_asked_nothing() -> None:
    def upgrade(machine: Machine) -> None:
        for module in ("hailo_pci", "hailo1x_pci"):
            version = machine.sys / "module" / module / "version"
            replaced = version.with_name(".version")
            replaced.write_text("4.99.0\n")
            replaced.rename(version)

    flags = (*QUICK, "--health.queries=on", "--health.notifications=true")
    async with standing(*flags, furnish=upgrade, asks=False) as stand:
        unknown = await stand.agent.wait_for("driver.unknown")
        stand.machine.ail(FIRST, Ailment.HUNG_CONTROL)  # it would show
        stand.machine.ail(SECOND, Ailment.DEAD_LINK)
        await stand.faulted(SECOND, "pci.dead", "Unhealthy")
        await stand.lists(SECOND, "Unhealthy")
        stand.machine.cure(SECOND)
        await stand.recovered(SECOND)
        assert unknown.fields["driver"] == {"version": "4.99.0"}
        assert len(stand.agent.events("driver.unknown")) == 1
        assert stand.ioctls.asked == []
        assert [path for path in stand.ioctls.opened if path.parent == stand.machine.dev] == []
        assert {d["driverVersion"] for d in (await stand.shown()).values()} == {"4.99.0"}
        await stand.others_were_left_alone(SECOND)


# --- sensors that are ordered or installed ------------------------------------------------------


def alarm(zone: int) -> bytes:
    """Say what firmware says of its temperature: 0 is green, 1 orange."""
    payload = struct.pack("<IIff", zone, 0, 106.5, 105.0)
    return struct.pack("<7I", 1, 1, 1, 5, 2, 1, len(payload)) + payload


async def test_what_the_firmware_says_by_itself_is_heard_and_so_is_the_all_clear() -> None:
    async with standing(*QUICK, "--health.notifications=true") as stand:
        chip(stand, SECOND).notify(alarm(1))
        fault = await stand.faulted(SECOND, "notification.temperature", "Degraded")
        shown = await stand.shown()
        chip(stand, SECOND).notify(alarm(0))
        await stand.recovered(SECOND)

        assert "cool" in fault["remedy"]
        assert codes(shown[device_id(SECOND)]) == {"notification.temperature"}
        assert set(stand.listed().values()) == {"Healthy"}
        await stand.others_were_left_alone(SECOND)


async def test_a_hailortcli_in_path_that_disagrees_is_told_of_and_condemns_nobody(
    tmp_path: Path,
) -> None:
    like = ChipFirmware()
    boards = [
        Board(
            address=address,
            name=like.board_name,
            serial=serial_of(address),
            part_number=like.part_number,
            product_name=like.product_name,
        )
        for address in (FIRST, SECOND, slot_address(8))
    ]
    command = HailortCli(tmp_path, boards=boards)
    command.install()
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    at_once = '--health.faults={"hailortcli.disagrees": {"strikes": 1}}'
    async with standing(at_once, env=env, asks=False) as stand:
        fault = await stand.faulted(THIRD, "hailortcli.disagrees", "Healthy")
        stranger = await stand.agent.wait_for("fault.found", within=SOON_SECONDS)

        assert "hailortcli scan" in fault["remedy"]
        assert stranger.fields["fault"]["subject"] == slot_address(8)
        asked = {call.arguments for call in command.calls}
        assert {"--version", "scan", f"fw-control identify --bdf {FIRST}"} <= asked
        assert codes((await stand.shown())[device_id(FOURTH)]) == set()  # another driver's
        assert set(stand.listed().values()) == {"Healthy"}
        await stand.others_were_left_alone(THIRD)


# --- the node to play with ------------------------------------------------------------------------


async def test_what_is_typed_to_ail_a_chip_takes_effect_and_so_does_its_cure() -> None:
    async with simulation() as process:
        assert process.stdin is not None
        await reads(process, "Chips are asked how they are every 1 s.")
        process.stdin.write(b"ail hailo0 firmware-lost\n")
        await reads(process, "pci-0000-01-00-0 is unhealthy: the chip runs no firmware")
        process.stdin.write(b"cure hailo0\n")
        await reads(process, "pci-0000-01-00-0 is healthy")
        process.stdin.write_eof()
        assert await process.wait() == 0


async def test_where_chips_cannot_be_simulated_that_is_said_and_all_else_goes_on(
    tmp_path: Path,
) -> None:
    # Whoever is supervised cannot supervise; a sandbox that forbids it looks the same.
    async with (
        Node.build(tmp_path, kubelet=False, chips={}) as node,
        simulation(*node.prefix) as process,
    ):
        said, complained = await process.communicate(b"devices\nlog 200\n")
    assert process.returncode == 0
    (line,) = (line for line in complained.decode().splitlines() if "chips" in line)
    assert "seccomp" in line
    assert said.decode().count(" Healthy ") >= 6  # of three devices, on both sides
    assert '"queries"' not in said.decode()


@asynccontextmanager
async def simulation(*prefix: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-m", "hailo_agent", "simulate"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


async def reads(process: asyncio.subprocess.Process, words: str) -> None:
    """Read what a process prints until it has printed this."""
    assert process.stdout is not None
    async with asyncio.timeout(SOON_SECONDS):
        while words not in (line := (await process.stdout.readline()).decode()):
            assert line, f"it ended without {words!r}"
