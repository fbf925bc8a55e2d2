"""`host.notifications` with real processes and real ioctl calls, answered by a simulated chip."""

import asyncio
import errno
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hailo_agent.core.device import DeviceId
from hailo_agent.core.health import FaultCode, Sensor
from hailo_agent.core.ioctls import KNOWN, Ioctls
from hailo_agent.core.notifications import CODES, Kind
from hailo_agent.host import listener, notifications
from hailo_agent.host.notifications import Listeners, Target
from hailo_agent.sim.firmware import FOR_EVER, ChipFirmware, Outcome, SimulatedChip
from hailo_agent.sim.ioctls import IoctlSupervisor

SOON_SECONDS = 20.0
SILENCE_SECONDS = 3600.0
FIRST, SECOND = DeviceId("pci-0000-01-00-0"), DeviceId("pci-0000-02-00-0")
DRIVERS = ("4.17.0", "4.20.0", "4.23.0", "5.0.1", "5.2.0", "5.3.0")


def message(event: int, payload: bytes = b"") -> bytes:
    return struct.pack("<7I", 1, 1, 1, 5, event, 1, len(payload)) + payload


def temperature(zone: int) -> bytes:
    return message(2, struct.pack("<IIff", zone, 0, 121.0, 119.5))


ECC = message(6, b"\1\0")


class Device:
    """What stands behind one devnode: a chip, and what is wrong with the way to it."""

    def __init__(self, driver: str = "4.23.0", board: str = "hailo-8") -> None:
        self.chip = SimulatedChip(driver, ChipFirmware(), board=board)
        self.opening = Outcome()
        self.instead: Outcome | None = None
        """What every ioctl comes to."""

    def ioctl(self, number: int, argument: bytes) -> Outcome:
        if self.instead is not None:
            self.chip.asked.append(number)
            return self.instead
        return self.chip.ioctl(number, argument)


@dataclass
class Chips:
    """What stands behind all devnodes."""

    devices: dict[Path, Device] = field(default_factory=dict)

    def open(self, path: Path) -> Outcome | None:
        device = self.devices.get(path)
        return None if device is None else device.opening

    def ioctl(self, path: Path, number: int, argument: bytes) -> Outcome | None:
        device = self.devices.get(path)
        return None if device is None else device.ioctl(number, argument)


class Stand:
    """Listeners at work, and all that is around them."""

    def __init__(self, supervisor: IoctlSupervisor, chips: Chips) -> None:
        self.supervisor = supervisor
        self.chips = chips
        self.targets: dict[DeviceId, Target] = {}
        self.rings = 0
        self.reason = "not started"
        self.listeners = Listeners(
            targets=lambda: tuple(self.targets.values()),
            ring=self._ring,
            silence_seconds=SILENCE_SECONDS,
        )

    def plug(
        self, device_id: DeviceId, device: Device | None = None, driver: str = "4.23.0"
    ) -> Device:
        path = Path(f"/dev/simulated-{device_id}")
        device = device or Device()
        self.chips.devices[path] = device
        self.targets[device_id] = Target(
            id=device_id, path=str(path), driver_version=driver, present_since=0.0
        )
        return device

    def say(self, device: Device, text: bytes) -> None:
        device.chip.notify(text)
        self.supervisor.ask_again()

    def faults(self, device_id: DeviceId) -> dict[FaultCode, str]:
        found = self._evidence(device_id)
        return {fault.code: fault.message for fault in found.faults}

    def listens(self, device_id: DeviceId) -> bool:
        return not self._evidence(device_id).unread

    def _evidence(self, device_id: DeviceId):  # type: ignore[no-untyped-def]  # noqa: ANN202
        found = self.listeners.evidence(device_id, asyncio.get_running_loop().time())
        assert found.sensor is Sensor.NOTIFICATION
        assert found.unread in {frozenset(), CODES}
        return found

    def _ring(self, reason: str) -> None:
        assert reason == "notification"
        self.rings += 1

    def report(self, reason: str) -> None:
        self.reason = reason


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not condition():  # noqa: ASYNC110 - processes do not tell
            await asyncio.sleep(0.01)


def running() -> Mapping[int, str]:
    """Find the listeners that this test has started: their ids, and what they listen to."""
    found = {}
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            parent = (process / "stat").read_bytes().rpartition(b")")[2].split()[1]
            if int(parent) != os.getpid():
                continue  # another test's
            if len(words) > 4 and words[3] == os.fsencode(listener.__file__):
                found[int(process.name)] = words[4].decode()
    return found


@pytest.fixture
def interpreter(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put every interpreter that is started under supervision; returns the supervisor's socket."""
    directory = tmp_path_factory.mktemp("s")
    door, wrapper = directory / "door", directory / "python"
    python = sys.executable
    wrapper.write_text(
        f'#!/bin/sh\nexec {python} -m hailo_agent.sim.ioctls --socket {door} -- {python} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    return door


@asynccontextmanager
async def stand(door: Path) -> AsyncIterator[Stand]:
    """Serve simulated devnodes, and listen to those that are plugged in."""
    chips = Chips()
    supervisor = IoctlSupervisor(devices=chips)
    with supervisor.serving(door):
        one = Stand(supervisor, chips)
        task = asyncio.create_task(one.listeners.listen(one.report))
        try:
            yield one
            assert not task.done()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await until(lambda: not set(running().values()) & set(map(str, chips.devices)))


@pytest.mark.parametrize("driver", DRIVERS)
async def test_what_the_firmware_says_is_heard(interpreter: Path, driver: str) -> None:
    async with stand(interpreter) as here:
        board = "hailo-8" if driver < "5.0.1" else "hailo-15"
        device = here.plug(FIRST, Device(driver, board), driver)
        await until(lambda: here.listens(FIRST))
        assert here.faults(FIRST) == {}
        assert here.listeners.keeps_awake(FIRST)
        here.say(device, temperature(2))
        await until(lambda: here.rings == 1)
        assert here.faults(FIRST).keys() == {FaultCode.NOTIFIED_TEMPERATURE}
        here.say(device, temperature(0))
        await until(lambda: here.rings == 2)
        assert here.faults(FIRST) == {}
        ioctls = next(row for row in KNOWN if str(row.version) == driver)
        assert set(device.chip.asked) == {ioctls.notification}
        await until(lambda: here.reason == "")


async def test_the_bell_is_rung_for_news_only(interpreter: Path) -> None:
    async with stand(interpreter) as here:
        device = here.plug(FIRST)
        await until(lambda: here.listens(FIRST))
        for times in range(1, 4):
            here.say(device, ECC)
            await until(lambda: sum(one.times for one in here.listeners.heard(FIRST)) == times)  # noqa: B023
        here.say(device, message(11, bytes(4)))
        await until(lambda: len(here.listeners.heard(FIRST)) == 2)
        assert here.rings == 1
        assert here.faults(FIRST).keys() == {FaultCode.NOTIFIED_ECC_FATAL}


async def test_silence_rings_the_bell_too(interpreter: Path) -> None:
    async with stand(interpreter) as here:
        here.listeners.silence_seconds = 1.5
        device = here.plug(FIRST)
        await until(lambda: here.listens(FIRST))
        here.say(device, ECC)
        await until(lambda: here.rings == 1)
        assert here.faults(FIRST)
        await until(lambda: here.rings == 2)
        assert here.faults(FIRST) == {}


async def test_a_driver_that_nobody_has_read_is_not_asked(interpreter: Path) -> None:
    async with stand(interpreter) as here:
        device = here.plug(FIRST, driver="4.99.0")
        await until(
            lambda: here.reason == f"{FIRST}: driver 4.99.0 is unknown: it is not listened to"
        )
        assert not here.listens(FIRST)
        assert not here.listeners.keeps_awake(FIRST)
        assert not running()
        assert device.chip.asked == []
        assert here.supervisor.opened == []


async def test_a_device_without_notifications_is_given_up(interpreter: Path) -> None:
    async with stand(interpreter) as here:
        device = here.plug(FIRST, Device("5.2.0", "hailo-10h"), "5.2.0")
        reason = "the kernel driver has no notifications for it"
        await until(lambda: here.reason == f"{FIRST}: {reason}" and len(device.chip.asked) == 3)
        await until(lambda: not running())
        await until(lambda: not here.listeners.keeps_awake(FIRST))
        await asyncio.sleep(0.1)
        assert not running()
        assert here.rings == 0
        del here.targets[FIRST]
        await until(lambda: here.reason == "")
        here.plug(FIRST, device, "5.2.0")
        await until(lambda: len(device.chip.asked) > 3)


async def test_one_that_cannot_be_opened_is_tried_again(interpreter: Path) -> None:
    async with stand(interpreter) as here:
        device = Device()
        device.opening = Outcome(error=errno.EACCES)
        here.plug(FIRST, device)
        path = here.targets[FIRST].path
        await until(lambda: here.reason == f"{FIRST}: {path} cannot be opened: Permission denied")
        assert not here.listens(FIRST)
        device.opening = Outcome()
        await until(lambda: here.listens(FIRST))
        await until(lambda: here.reason == "")


async def test_one_that_does_not_open_keeps_no_other_from_being_heard(
    interpreter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "_OPEN_SECONDS", 4.0)
    async with stand(interpreter) as here:
        wedged = Device()
        wedged.opening = Outcome(seconds=FOR_EVER)
        here.plug(FIRST, wedged)
        sound = here.plug(SECOND)
        await until(lambda: here.listens(SECOND))
        here.say(sound, ECC)
        await until(lambda: here.faults(SECOND) != {})
        path = here.targets[FIRST].path
        await until(lambda: here.reason == f"{FIRST}: {path} does not open")
        assert not here.listens(FIRST)


async def test_a_device_that_fails_is_listened_to_again_and_nothing_is_forgotten(
    interpreter: Path,
) -> None:
    async with stand(interpreter) as here:
        device = here.plug(FIRST)
        await until(lambda: here.listens(FIRST))
        here.say(device, ECC)
        await until(lambda: here.faults(FIRST) != {})
        device.instead = Outcome(error=errno.ENXIO)
        here.supervisor.ask_again()
        await until(lambda: not here.listens(FIRST))
        await until(lambda: here.reason == f"{FIRST}: listening ended: No such device or address")
        device.instead = None
        await until(lambda: here.listens(FIRST))
        assert here.faults(FIRST).keys() == {FaultCode.NOTIFIED_ECC_FATAL}
        assert here.rings == 1


async def test_what_is_not_understood_is_told_of_and_does_no_harm(interpreter: Path) -> None:
    async with stand(interpreter) as here:
        device = here.plug(FIRST)
        await until(lambda: here.listens(FIRST))
        here.say(device, b"\xff" * 100)
        told = f"{FIRST}: it is not understood: the notification has priority 4294967295"
        await until(lambda: here.reason == told)
        assert here.listens(FIRST)
        here.say(device, ECC)
        await until(lambda: here.faults(FIRST) != {})
        await until(lambda: here.reason == "")


async def test_what_comes_back_is_another_device(interpreter: Path) -> None:
    async with stand(interpreter) as here:
        device = here.plug(FIRST)
        await until(lambda: here.listens(FIRST))
        (before,) = running()
        here.say(device, ECC)
        await until(lambda: here.faults(FIRST) != {})
        target = here.targets.pop(FIRST)
        await until(lambda: not running())
        assert not here.listens(FIRST)
        here.targets[FIRST] = Target(
            id=FIRST, path=target.path, driver_version="4.23.0", present_since=9.0
        )
        await until(lambda: here.listens(FIRST))
        assert here.faults(FIRST) == {}
        assert before not in running()


async def test_a_listener_that_is_killed_is_replaced(interpreter: Path) -> None:
    async with stand(interpreter) as here:
        here.plug(FIRST)
        await until(lambda: here.listens(FIRST))
        (pid,) = running()
        os.kill(pid, signal.SIGKILL)
        told = f"{FIRST}: the process that listened has ended"
        await until(lambda: here.reason == told and here.listens(FIRST))
        assert pid not in running()
        await until(lambda: here.reason == "")


async def test_a_driver_that_never_blocks_does_not_keep_us_busy(interpreter: Path) -> None:
    async with stand(interpreter) as here:
        device = Device()
        device.instead = Outcome(data=struct.pack("<Q", len(ECC)) + ECC)
        here.plug(FIRST, device)
        await until(lambda: here.listens(FIRST))
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        await until(lambda: any(one.times >= 20 for one in here.listeners.heard(FIRST)))
        (heard,) = here.listeners.heard(FIRST)
        assert heard.notification.kind is Kind.ECC_UNCORRECTABLE
        assert heard.times <= (loop.time() - started_at) / 0.02 + 5
        assert here.rings == 1


# --- without a simulation: what the kernel itself says -------------------------------------------


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/no-such-device", "/dev/no-such-device cannot be opened: No such file or directory"),
        ("/dev/null", "the kernel driver has no notifications for it"),
        (__file__, f"{__file__} is no character device"),
        ("/proc", "/proc cannot be opened: Is a directory"),
    ],
)
async def test_what_is_no_accelerator_is_told_of(path: str, reason: str) -> None:
    reasons: list[str] = []
    target = Target(id=FIRST, path=path, driver_version="4.23.0", present_since=0.0)
    listeners = Listeners(targets=lambda: (target,), ring=reasons.append, silence_seconds=1.0)
    task = asyncio.create_task(listeners.listen(reasons.append))
    await until(lambda: f"{FIRST}: {reason}" in reasons)
    assert "notification" not in reasons
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_without_an_interpreter_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    reasons: list[str] = []
    target = Target(id=FIRST, path="/dev/null", driver_version="4.23.0", present_since=0.0)
    listeners = Listeners(targets=lambda: (target,), ring=reasons.append, silence_seconds=1.0)
    task = asyncio.create_task(listeners.listen(reasons.append))
    await until(lambda: f"{FIRST}: no process can listen: No such file or directory" in reasons)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


# --- the process itself --------------------------------------------------------------------------

IOCTLS: Ioctls = KNOWN[-1]


def start(interpreter: str, path: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [interpreter, "-I", "-S", listener.__file__, path, str(IOCTLS.notification)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


async def test_the_process_ends_with_whoever_started_it(interpreter: Path) -> None:
    chips = Chips({Path("/dev/simulated"): Device("5.3.0", "hailo-15")})
    supervisor = IoctlSupervisor(devices=chips)
    with supervisor.serving(interpreter):
        process = await asyncio.to_thread(start, sys.executable, "/dev/simulated")
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            await until(lambda: len(supervisor.held_up) == 1)
            assert process.poll() is None
            process.stdin.close()
            await until(lambda: process.poll() is not None)
        assert process.returncode == -signal.SIGIO


def test_a_process_that_comes_too_late_ends_at_once() -> None:
    process = subprocess.run(
        [sys.executable, "-I", "-S", listener.__file__, "/dev/null", str(IOCTLS.notification)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, b"", b"")


async def test_the_process_needs_next_to_nothing(interpreter: Path) -> None:
    async with stand(interpreter) as here:
        here.plug(FIRST)
        await until(lambda: here.listens(FIRST))
        (pid,) = running()
        figures = status_of(pid)
        assert int(figures["RssAnon"].split()[0]) < 6 * 1024
        assert figures["Threads"] == "1"


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
