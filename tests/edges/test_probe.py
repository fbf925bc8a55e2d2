"""`host.probe` with its real worker and real ioctls, answered by a simulated chip.

The worker is started under `sim.ioctls`, which answers its open() and ioctl() calls. What needs no
chip, as a devnode that may not be opened, is left to the kernel.
"""

import asyncio
import errno
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import anyio
import pytest

from hailo_agent.core.chip import (
    Architecture,
    BoardType,
    Chip,
    Firmware,
    Properties,
    Temperatures,
    Trouble,
    Zone,
)
from hailo_agent.core.device import DeviceId
from hailo_agent.errors import HostError
from hailo_agent.host import probe
from hailo_agent.host.probe import COMMAND, Call, Denied, Hung, Prober, Unanswered
from hailo_agent.sim import ioctls
from hailo_agent.sim.chips import Chips
from hailo_agent.sim.firmware import FOR_EVER, ChipFault, ChipFirmware, Outcome, SimulatedChip
from hailo_agent.sim.ioctls import IoctlSupervisor, under_supervision
from hailo_agent.sim.machine import Ailment
from hailo_agent.sim.node import Node, temporary_root

FIRST, SECOND, THIRD = (DeviceId(f"pci-0000-0{n}-00-0") for n in (1, 2, 3))
VERSION = "4.23.0"
DRIVER_INFO = 0x400C6702  # of that version, as are these
PROPERTIES = 0x40176701
CONTROL = 0xC5F86E00
SOON_SECONDS = 20.0
IMPATIENT = 1.0
"""A deadline short enough to wait for, long enough for a machine that is busy."""


# --- a bench: devnodes with something behind them -------------------------------------------------


@dataclass
class Bench:
    """Devnodes `hailo0` and so on below a directory, and a supervisor who answers for them."""

    directory: Path
    chips: dict[str, SimulatedChip] = field(default_factory=dict)
    says: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    """What is said of a path or a number before the chip is asked: `hailo0`, `hailo0 open`."""
    supervisor: IoctlSupervisor = field(init=False)

    def __post_init__(self) -> None:
        self.supervisor = IoctlSupervisor(self)

    def plug(self, name: str = "hailo0", chip: SimulatedChip | None = None) -> SimulatedChip:
        os.mknod(self.directory / name, stat.S_IFCHR | 0o600, os.makedev(0, 0))
        self.chips[name] = chip or SimulatedChip(VERSION, ChipFirmware())
        return self.chips[name]

    def path(self, name: str = "hailo0") -> str:
        return str(self.directory / name)

    def open(self, path: Path, /) -> Outcome | None:
        if path.parent != self.directory or path.name not in self.chips:
            return None
        said = self.says[f"{path.name} open"]
        return said.pop(0) if said else self.chips[path.name].open()

    def ioctl(self, path: Path, number: int, argument: bytes, /) -> Outcome | None:
        if path.parent != self.directory:
            return None
        said = self.says[path.name]
        return said.pop(0) if said else self.chips[path.name].ioctl(number, argument)

    @property
    def socket(self) -> Path:
        return self.directory / "ioctls.sock"

    @property
    def opened(self) -> list[str]:
        return [path.name for path in self.supervisor.opened if path.parent == self.directory]

    @property
    def asked(self) -> list[tuple[str, int]]:
        return [(path.name, number) for path, number in self.supervisor.asked]

    def prober(self, **options: Any) -> Prober:  # noqa: ANN401 - those of Prober
        return Prober(command=(*under_supervision(self.socket), *COMMAND), **options)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    with bench.supervisor.serving(bench.socket):
        yield bench


async def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(SOON_SECONDS):
        while not condition():  # noqa: ASYNC110 - processes do not tell
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def resident_kilobytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split(maxsplit=1)[0])


def opened_by(pid: int) -> set[Path]:
    return {descriptor.readlink() for descriptor in Path(f"/proc/{pid}/fd").iterdir()}


async def query(prober: Prober, bench: Bench, name: str = "hailo0", **options: Any) -> Chip:  # noqa: ANN401
    """Ask one device, with an id made of its name."""
    return await prober.query(DeviceId(name), bench.path(name), VERSION, 7.0, **options)


# --- what arrives ---------------------------------------------------------------------------------

NUMBERS: Mapping[str, tuple[int, int, int]] = {
    # version: driver info, properties, control
    "4.17.0": (0x400C6705, 0x40176704, 0xC5F86701),
    "4.20.0": (0x400C6702, 0x40176701, 0xC5F86E00),
    "4.23.0": (0x400C6702, 0x40176701, 0xC5F86E00),
    "5.0.1": (0x400C6702, 0x40136701, 0xC5F86E00),
    "5.2.0": (0x400C6701, 0x40136700, 0xC5F86E00),
    "5.3.0": (0x400C6701, 0x40136700, 0xC5F86E00),
}


@pytest.mark.parametrize("version", NUMBERS)
async def test_every_field_arrives_through_real_ioctls(bench: Bench, version: str) -> None:
    name = "hailo-8l" if version < "5" else "hailo-15l"
    board = "hailo-8" if version < "5" else "hailo-15l"
    firmware = ChipFirmware(
        version=version,
        architecture=name,
        board_name="Hailo",
        serial="HLLWM2B21",
        part_number="<N/A>",
        product_name="HAILO KEY M",
        celsius=(51.5, 49.25),
    )
    bench.plug(chip=SimulatedChip(version, firmware, board=board))

    async with bench.prober() as prober:
        chip = await prober.query(FIRST, bench.path(), version, 7.0, identify=True)

    assert (chip.trouble, chip.detail) == (None, "")
    assert chip.at == 7.0
    assert chip.driver == version
    assert chip.properties == Properties(board_type=BoardType(board), firmware_loaded=True)
    assert chip.firmware == Firmware(
        version=version,
        architecture=Architecture(name),
        board_name="Hailo",
        serial="HLLWM2B21",
        part_number="",
        product_name="HAILO KEY M",
    )
    assert chip.temperatures == Temperatures(ts0_celsius=51.5, ts1_celsius=49.25)
    assert chip.state is not None
    assert chip.state.temperature_zone is Zone.GREEN
    assert (chip.state.orange_celsius, chip.state.red_celsius) == (104, 120)
    assert chip.seconds > 0
    info, properties, control = NUMBERS[version]
    assert bench.opened == ["hailo0"]
    numbers = [info, properties, control, control, control]
    assert bench.asked == [("hailo0", number) for number in numbers]


async def test_the_identity_is_asked_for_only_when_told_to(bench: Bench) -> None:
    bench.plug()
    async with bench.prober() as prober:
        chip = await query(prober, bench)
    assert chip.firmware is None
    assert chip.temperatures is not None
    assert chip.state is not None
    assert [number for _, number in bench.asked] == [DRIVER_INFO, PROPERTIES, CONTROL, CONTROL]


@pytest.mark.parametrize("board", ["hailo-10h", "hailo-12l"])
async def test_a_chip_with_a_linux_of_its_own_is_sent_no_control(bench: Bench, board: str) -> None:
    bench.plug(chip=SimulatedChip("5.2.0", ChipFirmware(), board=board))
    async with bench.prober() as prober:
        chip = await prober.query(FIRST, bench.path(), "5.2.0", 0.0, identify=True)
    assert chip.trouble is None
    assert chip.properties is not None
    assert chip.properties.board_type.value == board
    assert chip.firmware is None
    assert [number for _, number in bench.asked] == [0x400C6701, 0x40136700]


async def test_firmware_that_is_not_loaded_is_asked_nothing(bench: Bench) -> None:
    bench.plug().firmware.plant(ChipFault.NOT_LOADED)
    async with bench.prober() as prober:
        chip = await query(prober, bench, identify=True)
    assert chip.trouble is None
    assert chip.properties == Properties(board_type=BoardType.HAILO_8, firmware_loaded=False)
    assert [number for _, number in bench.asked] == [DRIVER_INFO, PROPERTIES]


@pytest.mark.parametrize("version", ["4.24.0", "5.4.0", "4.9.0", "4.23", "", "next"])
async def test_of_an_unknown_kernel_driver_nothing_is_opened_and_nothing_asked(
    bench: Bench, version: str
) -> None:
    bench.plug()
    async with bench.prober() as prober:
        chip = await prober.query(FIRST, bench.path(), version, 3.0, identify=True)
        assert chip == Chip(at=3.0)
        assert prober.pid is None
        # The same prober would have been heard.
        await query(prober, bench)
        assert bench.opened == ["hailo0"]
    assert bench.asked[0] == ("hailo0", DRIVER_INFO)


async def test_a_kernel_driver_that_is_another_than_its_module_is_asked_no_further(
    bench: Bench,
) -> None:
    bench.plug(chip=SimulatedChip("4.22.0", ChipFirmware()))
    async with bench.prober() as prober:
        chip = await query(prober, bench, identify=True)
    assert chip.trouble is Trouble.FAILED
    assert "4.22.0" in chip.detail
    assert bench.asked == [("hailo0", DRIVER_INFO)]


async def test_devices_are_asked_one_after_the_other(bench: Bench) -> None:
    names = [f"hailo{n}" for n in range(8)]
    for name in names:
        bench.plug(name)
    async with bench.prober() as prober:
        chips = await asyncio.gather(*(query(prober, bench, name) for name in names))
        assert prober.pid is not None
    assert [chip.trouble for chip in chips] == [None] * 8
    assert bench.opened == names
    assert [name for name, _ in groupby(name for name, _ in bench.asked)] == names


async def test_a_device_is_open_no_longer_than_it_is_asked(bench: Bench) -> None:
    """Else it would never sleep, and its kernel driver could not be unloaded."""
    bench.plug()
    async with bench.prober() as prober:
        for says in ([], [Outcome(error=errno.EIO)], [Outcome(data=b"garbage")]):
            bench.says["hailo0"] = says
            await query(prober, bench)
            assert Path("/dev/full") not in opened_by(prober.pid or 0)  # what stands in for it


async def test_calls_of_ones_own_stop_at_the_first_that_fails(bench: Bench) -> None:
    bench.plug()
    async with bench.prober() as prober:
        calls = [Call(number=n, argument=bytes(12)) for n in (DRIVER_INFO, 0x400C6777, DRIVER_INFO)]
        told, refused = await prober.ask(FIRST, bench.path(), calls)
    assert struct.unpack("<III", told.data) == (4, 23, 0)
    assert (told.error, refused.error, refused.data) == (0, errno.ENOTTY, b"")
    assert len(bench.asked) == 2


@pytest.mark.parametrize("number", [0x4001760C, 0x6707, 0x6E04, 0x7302, 0xC0147300, 0x6E02])
async def test_what_does_more_than_read_is_never_issued(bench: Bench, number: int) -> None:
    bench.plug()
    async with bench.prober() as prober:
        with pytest.raises(ValueError, match="more than read"):
            await prober.ask(FIRST, bench.path(), [Call(number=number, argument=bytes(64))])
        assert bench.asked == []
        assert (await query(prober, bench)).trouble is None


# --- what goes wrong with a device ----------------------------------------------------------------


async def test_a_hung_device_keeps_no_other_from_being_asked(bench: Bench) -> None:
    chip = bench.plug("hailo0")
    bench.plug("hailo1")
    chip.firmware.plant(ChipFault.HUNG)
    async with bench.prober(deadline_seconds=IMPATIENT) as prober:
        hung = await query(prober, bench, "hailo0", identify=True)
        assert hung.trouble is Trouble.HUNG
        assert hung.properties is not None  # what came before is not lost
        assert hung.firmware is None
        assert prober.hung == {"hailo0"}

        for _ in range(3):
            assert (await query(prober, bench, "hailo1")).trouble is None
            assert (await query(prober, bench, "hailo0")).trouble is Trouble.HUNG
        assert bench.opened == ["hailo0", "hailo1", "hailo1", "hailo1"]
        assert len(bench.supervisor.held_up) == 1

        chip.firmware.heal()
        bench.supervisor.ask_again()
        await until(lambda: not prober.hung)
        well = await query(prober, bench, "hailo0", identify=True)
    assert well.trouble is None
    assert well.firmware is not None
    assert bench.opened[4:] == ["hailo0"]


async def test_a_hung_worker_is_left_alone_until_its_call_returns(bench: Bench) -> None:
    bench.plug().firmware.plant(ChipFault.HUNG)
    async with bench.prober(deadline_seconds=IMPATIENT) as prober:
        asking = asyncio.create_task(query(prober, bench))
        await until(lambda: bench.supervisor.held_up)
        pid = prober.pid
        assert pid is not None
        assert (await asking).trouble is Trouble.HUNG
        assert prober.pid is None
        assert is_running(pid)
        bench.chips["hailo0"].firmware.heal()
        bench.supervisor.ask_again()
        await until(lambda: not is_running(pid))


async def test_an_open_that_hangs_is_a_hung_device(bench: Bench) -> None:
    bench.plug()
    bench.says["hailo0 open"] = [Outcome(seconds=FOR_EVER)]
    async with bench.prober(deadline_seconds=IMPATIENT) as prober:
        assert (await query(prober, bench)).trouble is Trouble.HUNG
        with pytest.raises(Hung):
            await prober.ask(DeviceId("hailo0"), bench.path(), [])
        bench.supervisor.ask_again()
        await until(lambda: not prober.hung)
        assert (await query(prober, bench)).trouble is None


async def test_workers_that_hang_are_counted(bench: Bench) -> None:
    for name in ("hailo0", "hailo1", "hailo2"):
        bench.plug(name).firmware.plant(ChipFault.HUNG)
    async with bench.prober(deadline_seconds=IMPATIENT, most_hung=2) as prober:
        assert (await query(prober, bench, "hailo0")).trouble is Trouble.HUNG
        assert (await query(prober, bench, "hailo1")).trouble is Trouble.HUNG
        with pytest.raises(HostError, match="2 processes hang"):
            await query(prober, bench, "hailo2")
        assert (await query(prober, bench, "hailo1")).trouble is Trouble.HUNG  # that is known
        for chip in bench.chips.values():
            chip.firmware.heal()
        bench.supervisor.ask_again()
        await until(lambda: not prober.hung)
        assert (await query(prober, bench, "hailo2")).trouble is None


async def test_whoever_loses_patience_first_leaves_a_device_that_is_not_asked(
    bench: Bench,
) -> None:
    bench.plug("hailo0").firmware.plant(ChipFault.HUNG)
    bench.plug("hailo1")
    async with bench.prober() as prober:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(IMPATIENT):
                await query(prober, bench, "hailo0")
        assert prober.hung == {"hailo0"}
        assert (await query(prober, bench, "hailo1")).trouble is None
        bench.chips["hailo0"].firmware.heal()
        bench.supervisor.ask_again()
        await until(lambda: not prober.hung)
        assert (await query(prober, bench, "hailo0")).trouble is None


async def test_a_slow_answer_is_an_answer_and_says_how_slow(bench: Bench) -> None:
    chip = bench.plug()
    chip.firmware.slow_seconds = 0.2
    chip.firmware.plant(ChipFault.SLOW)
    async with bench.prober() as prober:
        answer = await query(prober, bench)
    assert answer.trouble is None
    assert answer.temperatures is not None
    assert answer.seconds >= 0.2


async def test_firmware_that_the_kernel_driver_gives_up_has_timed_out(bench: Bench) -> None:
    bench.plug().firmware.plant(ChipFault.SILENT)
    async with bench.prober() as prober:
        chip = await query(prober, bench, identify=True)
    assert chip.trouble is Trouble.TIMED_OUT
    assert chip.detail == f"identify: {os.strerror(errno.ETIMEDOUT)}"
    assert chip.seconds >= 1.0
    assert [number for _, number in bench.asked].count(CONTROL) == 1


@pytest.mark.parametrize(
    "fault",
    [ChipFault.NOISE, ChipFault.WRONG_MD5, ChipFault.SHORT, ChipFault.WRONG_OPCODE],
)
async def test_garbage_is_named_and_gone_with_its_cause(bench: Bench, fault: ChipFault) -> None:
    chip = bench.plug()
    chip.firmware.plant(fault)
    async with bench.prober() as prober:
        answer = await query(prober, bench, identify=True)
        assert answer.trouble is Trouble.GARBAGE
        assert answer.detail.startswith("identify: ")
        chip.firmware.heal()
        assert (await query(prober, bench, identify=True)).trouble is None


@pytest.mark.parametrize("number", [DRIVER_INFO, PROPERTIES, CONTROL])
async def test_an_argument_of_noise_raises_nothing(bench: Bench, number: int) -> None:
    noise = Outcome(data=bytes(range(255, -1, -1)) * 6)
    bench.plug()
    async with bench.prober() as prober:
        before = [DRIVER_INFO, PROPERTIES, CONTROL].index(number)
        chip = bench.chips["hailo0"]
        answers = [chip.ioctl(DRIVER_INFO, bytes(12)), chip.ioctl(PROPERTIES, bytes(23))]
        bench.says["hailo0"] = [*answers[:before], noise]
        answer = await query(prober, bench, identify=True)
        if number == PROPERTIES:  # a board type that nobody knows is what it may well be
            assert answer.properties is not None
            assert answer.properties.board_type is BoardType.UNKNOWN
        else:
            assert answer.trouble is Trouble.GARBAGE


async def test_firmware_that_will_not_say_what_it_is_refuses(bench: Bench) -> None:
    bench.plug().firmware.plant(ChipFault.REFUSING)
    async with bench.prober() as prober:
        chip = await query(prober, bench, identify=True)
    assert chip.trouble is Trouble.REFUSED
    assert "identify was refused" in chip.detail


async def test_a_sensor_that_a_board_does_not_have_is_no_trouble(bench: Bench) -> None:
    bench.plug(chip=SimulatedChip(VERSION, ChipFirmware(unsupported=frozenset({46}))))
    async with bench.prober() as prober:
        chip = await query(prober, bench, identify=True)
    assert chip.trouble is None
    assert chip.temperatures is None
    assert chip.state is not None


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (errno.ENODEV, Trouble.LOST),
        (errno.ENXIO, Trouble.LOST),
        (errno.ETIMEDOUT, Trouble.TIMED_OUT),
        (errno.ENOTTY, Trouble.FAILED),
        (errno.EINVAL, Trouble.FAILED),
        (errno.EIO, Trouble.FAILED),
        (errno.EPERM, Trouble.FAILED),  # only an open() can be denied
        (errno.EACCES, Trouble.FAILED),
    ],
)
async def test_each_errno_of_an_ioctl_has_its_meaning(
    bench: Bench, error: int, trouble: Trouble
) -> None:
    bench.plug()
    bench.says["hailo0"] = [Outcome(error=error)]
    async with bench.prober() as prober:
        chip = await query(prober, bench)
        assert (chip.trouble, chip.detail) == (trouble, f"driver info: {os.strerror(error)}")
        assert (await query(prober, bench)).trouble is None
    assert bench.opened == ["hailo0", "hailo0"]


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (errno.ENODEV, Trouble.LOST),
        (errno.ENXIO, Trouble.LOST),
        (errno.ENOENT, Trouble.LOST),
        (errno.EPERM, Trouble.DENIED),
        (errno.EACCES, Trouble.DENIED),
        (errno.EBUSY, Trouble.FAILED),
        (errno.EMFILE, Trouble.FAILED),
    ],
)
async def test_each_errno_of_an_open_has_its_meaning(
    bench: Bench, error: int, trouble: Trouble
) -> None:
    bench.plug()
    bench.says["hailo0 open"] = [Outcome(error=error)] * 2
    async with bench.prober() as prober:
        assert (await query(prober, bench)).trouble is trouble
        with pytest.raises(Denied if trouble is Trouble.DENIED else Unanswered) as raised:
            await prober.ask(DeviceId("hailo0"), bench.path(), [])
        assert raised.value.trouble is trouble
        assert bench.asked == []
        assert (await query(prober, bench)).trouble is None


@pytest.mark.parametrize("error", [errno.EINTR, 512], ids=["EINTR", "ERESTARTSYS"])
async def test_an_interrupted_call_is_repeated_once(bench: Bench, error: int) -> None:
    bench.plug()
    async with bench.prober() as prober:
        bench.says["hailo0"] = [Outcome(error=error)]
        assert (await query(prober, bench)).trouble is None
        bench.says["hailo0"] = [Outcome(error=error)] * 2
        assert (await query(prober, bench)).trouble is Trouble.FAILED
    assert bench.opened == ["hailo0", "hailo0"]


async def test_an_interrupted_open_is_repeated_once(bench: Bench) -> None:
    bench.plug()
    bench.says["hailo0 open"] = [Outcome(error=512)]
    async with bench.prober() as prober:
        assert (await query(prober, bench)).trouble is None


# --- what goes wrong with a devnode: the kernel's own answers -------------------------------------


async def test_a_devnode_that_vanished_is_a_lost_device(tmp_path: Path) -> None:
    async with Prober() as prober:
        chip = await prober.query(FIRST, str(tmp_path / "hailo0"), VERSION, 0.0)
    assert chip.trouble is Trouble.LOST
    assert str(tmp_path / "hailo0") in chip.detail


def a_block_device() -> Path:
    """Find one, as only root can make one."""
    return next(entry for entry in Path("/dev").iterdir() if entry.is_block_device())


@pytest.mark.parametrize("what", ["file", "directory", "fifo", "socket", "block"])
async def test_what_is_no_character_device_is_not_asked(tmp_path: Path, what: str) -> None:
    path = tmp_path / "hailo0"
    if what == "file":
        path.touch()
    elif what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif os.geteuid() == 0:
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 0))
    else:
        path = a_block_device()
    async with Prober() as prober:
        chip = await prober.query(FIRST, str(path), VERSION, 0.0)
    assert chip.trouble is Trouble.FAILED
    assert chip.detail == f"{path} is not a character device"


async def test_a_character_device_of_somebody_else_fails() -> None:
    async with Prober() as prober:
        chip = await prober.query(FIRST, "/dev/null", VERSION, 0.0)
    assert chip.trouble is Trouble.FAILED
    assert chip.detail == f"driver info: {os.strerror(errno.ENOTTY)}"


async def test_a_devnode_that_may_not_be_opened_is_denied(tmp_path: Path) -> None:
    """In a child that may no longer pass by a mode, as root in a container cannot."""
    os.mknod(tmp_path / "hailo0", stat.S_IFCHR, os.makedev(0, 0))
    code = """
import asyncio, ctypes, sys
from hailo_agent.host.probe import Denied, Prober
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; not ours to drop if not root
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
async def main():
    async with Prober() as prober:
        print((await prober.query("pci-0000-01-00-0", sys.argv[1], "4.23.0", 0.0)).trouble)
        try:
            await prober.ask("pci-0000-01-00-0", sys.argv[1], [])
        except Denied as denied:
            print(denied)
asyncio.run(main())
"""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path / "hailo0"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(child.communicate(), SOON_SECONDS)
    assert output.decode().splitlines() == ["denied", f"open: {os.strerror(errno.EACCES)}"]


# --- the worker -----------------------------------------------------------------------------------


async def test_a_worker_that_was_killed_while_idle_is_replaced(bench: Bench) -> None:
    bench.plug()
    async with bench.prober() as prober:
        assert (await query(prober, bench)).trouble is None
        for _ in range(3):
            pid = prober.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert (await query(prober, bench)).trouble is None
            assert prober.pid not in {None, pid}


async def test_a_worker_that_is_killed_in_a_call_fails_that_call_alone(bench: Bench) -> None:
    bench.plug("hailo0").firmware.plant(ChipFault.HUNG)
    bench.plug("hailo1")
    async with bench.prober() as prober:
        asking = asyncio.create_task(query(prober, bench, "hailo0"))
        await until(lambda: bench.supervisor.held_up)
        assert prober.pid is not None
        os.kill(prober.pid, signal.SIGKILL)
        chip = await asking
        assert chip.trouble is Trouble.FAILED
        assert chip.detail == "the process that asked was killed by SIGKILL"
        assert not prober.hung
        assert (await query(prober, bench, "hailo1")).trouble is None
        bench.chips["hailo0"].firmware.heal()
        bench.supervisor.ask_again()  # who waited is gone, and that is no trouble
        assert (await query(prober, bench, "hailo0")).trouble is None


async def test_a_hung_worker_that_is_killed_frees_its_device(bench: Bench) -> None:
    bench.plug().firmware.plant(ChipFault.HUNG)
    async with bench.prober(deadline_seconds=IMPATIENT) as prober:
        asking = asyncio.create_task(query(prober, bench))
        await until(lambda: bench.supervisor.held_up)
        pid = prober.pid
        assert pid is not None
        await asking
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not prober.hung)
        bench.chips["hailo0"].firmware.heal()
        assert (await query(prober, bench)).trouble is None


async def test_no_signal_interrupts_a_call(bench: Bench) -> None:
    bench.plug().firmware.plant(ChipFault.HUNG)
    async with bench.prober() as prober:
        asking = asyncio.create_task(query(prober, bench))
        await until(lambda: bench.supervisor.held_up)
        pid = prober.pid
        assert pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            os.kill(pid, number)
        bench.chips["hailo0"].firmware.heal()
        bench.supervisor.ask_again()
        assert (await asking).trouble is None
        assert prober.pid == pid
        assert os.getsid(pid) == pid  # nor is it reached by what ends our process group
    assert [number for _, number in bench.asked].count(CONTROL) == 2


async def test_the_worker_ends_with_whoever_started_it(bench: Bench) -> None:
    """A child that asks is killed in the middle of it; its worker ends when its call returns."""
    bench.plug().firmware.plant(ChipFault.HUNG)
    code = """
import asyncio, sys
from hailo_agent.host.probe import Prober
async def main():
    prober = Prober(command=sys.argv[2:])
    asking = asyncio.create_task(prober.query("pci-0000-01-00-0", sys.argv[1], "4.23.0", 0.0))
    while prober.pid is None:
        await asyncio.sleep(0.01)
    print(prober.pid, flush=True)
    await asking
asyncio.run(main())
"""
    command = [*under_supervision(bench.socket), *COMMAND]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, bench.path(), *command, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    pid = int(await asyncio.wait_for(child.stdout.readline(), SOON_SECONDS))
    await until(lambda: bench.supervisor.held_up)
    child.kill()
    await child.wait()
    assert is_running(pid)
    bench.chips["hailo0"].firmware.heal()
    bench.supervisor.ask_again()
    await until(lambda: not is_running(pid))


async def test_nothing_runs_until_it_is_needed_or_after_a_while(bench: Bench) -> None:
    bench.plug()
    async with bench.prober(idle_seconds=0.05) as prober:
        pids = [prober.pid]
        await query(prober, bench)
        pids.append(prober.pid)
        await until(lambda: prober.pid is None)
        await until(lambda: not is_running(pids[1] or 0))
        assert (await query(prober, bench)).trouble is None
        pids.append(prober.pid)
    assert pids[0] is None
    assert None not in pids[1:]
    assert pids[1] != pids[2]


async def test_closing_ends_the_worker(bench: Bench) -> None:
    bench.plug()
    prober = bench.prober()
    await query(prober, bench)
    pid = prober.pid
    assert pid is not None
    await prober.close()
    assert not is_running(pid)
    await prober.close()


async def test_who_asks_after_closing_has_another_worker_started(bench: Bench) -> None:
    """As a part does that failed, closed what it had, and is run again."""
    bench.plug("hailo0").firmware.plant(ChipFault.HUNG)
    bench.plug("hailo1")
    prober = bench.prober(deadline_seconds=IMPATIENT)
    await query(prober, bench, "hailo0")
    await prober.close()
    assert (await query(prober, bench, "hailo1")).trouble is None
    assert (await query(prober, bench, "hailo0")).trouble is Trouble.HUNG
    assert len(bench.supervisor.held_up) == 1
    bench.chips["hailo0"].firmware.heal()
    bench.supervisor.ask_again()
    await until(lambda: not prober.hung)
    assert (await query(prober, bench, "hailo0")).trouble is None
    await prober.close()


async def test_closing_does_not_wait_for_what_hangs(bench: Bench) -> None:
    for name in ("hailo0", "hailo1"):
        bench.plug(name).firmware.plant(ChipFault.HUNG)
    prober = bench.prober(deadline_seconds=IMPATIENT)
    await query(prober, bench, "hailo0")
    asking = asyncio.create_task(query(prober, bench, "hailo1"))
    await until(lambda: len(bench.supervisor.held_up) == 2)
    await prober.close()
    assert len(bench.supervisor.held_up) == 2
    assert (await asking).trouble in {Trouble.FAILED, Trouble.HUNG}


async def test_closing_while_everything_is_cancelled_still_ends_the_worker(bench: Bench) -> None:
    bench.plug()
    prober = bench.prober()
    await query(prober, bench)
    pid = prober.pid
    assert pid is not None
    with anyio.CancelScope() as scope:
        scope.cancel()
        await prober.close()
    assert prober.pid is None
    await until(lambda: not is_running(pid))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("/nonexistent/python", "worker.py"), "cannot start /nonexistent/python: No such file"),
        (("/bin/false",), "/bin/false ended with exit code 1 as soon as it was started"),
        ((sys.executable, "-c", "import os; os.abort()"), "was killed by SIGABRT as soon as"),
    ],
)
async def test_a_worker_that_cannot_be_started_is_the_machines_fault(
    command: tuple[str, ...], message: str
) -> None:
    async with Prober(command=command) as prober:
        for _ in range(2):
            with pytest.raises(HostError, match=message) as raised:
                await prober.query(FIRST, "/dev/null", VERSION, 0.0)
            assert not isinstance(raised.value, Unanswered)


async def test_a_worker_that_never_says_it_is_there_is_the_machines_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "_START_SECONDS", 0.1)
    async with Prober(command=("/bin/cat",)) as prober:
        with pytest.raises(HostError, match="did not start within"):
            await prober.query(FIRST, "/dev/null", VERSION, 0.0)
        assert not prober.hung


# --- what it costs --------------------------------------------------------------------------------


def test_the_worker_imports_next_to_nothing() -> None:
    code = "import sys; before = set(sys.modules)\n"
    code += f"exec(compile(open({COMMAND[-1]!r}).read(), 'worker', 'exec'), {{'__name__': 'w'}})\n"
    code += "print(*sorted(set(sys.modules) - before))"
    run = subprocess.run(
        [*COMMAND[:-1], "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    imported = set(run.stdout.split())
    assert imported <= {
        *("_collections_abc", "_stat", "_struct", "abc", "fcntl", "genericpath", "os", "os.path"),
        *("posixpath", "stat", "struct"),
    }


async def test_the_worker_is_small() -> None:
    async with Prober() as prober:
        await prober.query(FIRST, "/dev/null", VERSION, 0.0)
        kilobytes = resident_kilobytes(prober.pid or 0)
    print(f"\nthe worker has {kilobytes} kB in memory")  # noqa: T201 - for pytest -s
    assert kilobytes < 12 * 1024


async def test_what_asking_eight_devices_costs_is_printed(bench: Bench) -> None:
    """In a child, as ours is busy being the chips."""
    names = [f"hailo{n}" for n in range(8)]
    for name in names:
        bench.plug(name)
    code = """
import asyncio, json, os, sys, time
from pathlib import Path
from hailo_agent.host.probe import Prober
rounds, period, *paths = json.loads(sys.argv[1])
def cpu(pid):
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9
async def main():
    troubles = 0
    async with Prober(command=sys.argv[2:]) as prober:
        async def once():
            chips = [await prober.query(p, p, "4.23.0", 0.0, identify=True) for p in paths]
            return sum(chip.trouble is not None for chip in chips)
        await once()
        before = cpu(os.getpid()), cpu(prober.pid)
        for _ in range(rounds):
            await asyncio.sleep(period)
            troubles += await once()
        after = cpu(os.getpid()), cpu(prober.pid)
    print(json.dumps([troubles, *(b - a for a, b in zip(before, after))]))
asyncio.run(main())
"""
    rounds, period = int(os.environ.get("ROUNDS", "10")), float(os.environ.get("PERIOD", "0"))
    work = json.dumps([rounds, period, *map(bench.path, names)])
    command = [*under_supervision(bench.socket), *COMMAND]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, work, *command, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await child.communicate()
    troubles, agent_seconds, worker_seconds = json.loads(output)
    shares = [f"{100 * s / rounds / 5:.3f} %" for s in (agent_seconds, worker_seconds)]
    print("\n8 devices every 5 s, of a core:", *shares)  # noqa: T201 - for pytest -s
    assert troubles == 0
    assert len(bench.opened) == 8 * (rounds + 1)


# --- the supervisor, and the node that has one ----------------------------------------------------

X86, ARM = "x86_64", "aarch64"
RDWR, CREATING = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK, os.O_RDWR | os.O_CREAT
PLAIN_IOCTL = (3, 0x5401, 0)  # TCGETS


@pytest.mark.parametrize(
    ("machine", "number", "arguments", "is_caught"),
    [
        *((X86, 16, (3, number, 0), True) for number in (DRIVER_INFO, CONTROL, 0x4001760C, 0x7302)),
        *((ARM, 29, (3, number, 0), True) for number in (DRIVER_INFO, CONTROL, 0x4001760C, 0x7302)),
        (X86, 16, (3, 0xFFFF_FFFF_0000_0000 | CONTROL, 0), True),  # a sign that was extended
        (X86, 16, PLAIN_IOCTL, False),
        (ARM, 29, PLAIN_IOCTL, False),
        (X86, 257, (-100, 0, RDWR), True),
        (ARM, 56, (-100, 0, RDWR), True),
        (X86, 2, (0, RDWR, 0), True),
        (X86, 257, (-100, 0, os.O_RDONLY | os.O_NONBLOCK), False),
        (ARM, 56, (-100, 0, os.O_WRONLY), False),
        (X86, 257, (-100, 0, CREATING), False),
        (ARM, 2, (0, RDWR, 0), False),  # io_submit() there
        (ARM, 16, (3, CONTROL, 0), False),
        (X86, 1, (3, CONTROL, RDWR), False),
    ],
)
def test_the_filter_catches_what_could_be_meant_for_a_chip(
    machine: str, number: int, arguments: tuple[int, int, int], *, is_caught: bool
) -> None:
    architecture = ioctls._ARCHITECTURES[machine]
    words = (argument & (1 << 64) - 1 for argument in arguments)
    call = struct.pack("<iIQ6Q", number, architecture.audit, 0, *words, 0, 0, 0)
    assert judged(tuple(ioctls._filter(architecture)), call) == (
        ioctls._RET_USER_NOTIF if is_caught else ioctls._RET_ALLOW
    )
    foreign = struct.pack("<iIQ6Q", number, 0x40000003, 0, 0, 0, 0, 0, 0, 0)
    assert judged(tuple(ioctls._filter(architecture)), foreign) == ioctls._RET_ALLOW


def judged(program: Sequence[tuple[int, int, int, int]], call: bytes) -> int:
    """Run a filter as the kernel would."""
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == ioctls._LOAD:
            (accumulator,) = struct.unpack_from("<I", call, operand)
        elif code == ioctls._AND:
            accumulator &= operand
        elif code == ioctls._SHIFT:
            accumulator >>= operand
        elif code == ioctls._EQUAL:
            at += if_true if accumulator == operand else if_false
        else:
            assert code == ioctls._RETURN
            return operand


def test_a_command_that_cannot_be_supervised_says_so(tmp_path: Path) -> None:
    run = subprocess.run(
        [*under_supervision(tmp_path / "nobody.sock"), "/bin/true"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("hailo-agent: /bin/true cannot be supervised: ")
    run = subprocess.run(
        [sys.executable, "-m", "hailo_agent.sim.ioctls", "/bin/true"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (run.returncode, run.stderr[:6]) == (os.EX_USAGE, "usage:")


async def test_who_is_left_when_the_supervisor_goes_gets_an_error(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.plug().firmware.plant(ChipFault.HUNG)
    async with bench.prober() as prober:
        with bench.supervisor.serving(bench.socket):
            asking = asyncio.create_task(query(prober, bench))
            await until(lambda: bench.supervisor.held_up)
        chip = await asking
    assert chip.trouble is Trouble.FAILED
    assert chip.detail.endswith(os.strerror(errno.ENOSYS))
    assert bench.supervisor.held_up == ()


async def test_a_call_that_hangs_on_a_node_returns_once_the_machine_is_well() -> None:
    address = "0000:01:00.0"
    async with (
        temporary_root() as root,
        Node.build(root, kubelet=False, chips=Chips) as node,
    ):
        node.machine.load("4.23")
        node.machine.plug(address)
        path = str(node.machine.devnode(address))
        async with Prober(deadline_seconds=IMPATIENT, command=(*node.prefix, *COMMAND)) as prober:
            node.machine.ail(address, Ailment.HUNG_CONTROL)
            assert (await prober.query(FIRST, path, VERSION, 0.0)).trouble is Trouble.HUNG
            node.machine.mend(address)
            await until(lambda: not prober.hung)
            assert (await prober.query(FIRST, path, VERSION, 0.0)).trouble is None
            node.machine.ail(address, Ailment.DEAD_LINK)
            assert (await prober.query(FIRST, path, VERSION, 0.0)).trouble is Trouble.LOST


async def test_a_process_on_a_node_with_chips_is_answered() -> None:
    address = "0000:01:00.0"
    async with temporary_root() as root:
        chip = SimulatedChip(VERSION, ChipFirmware())
        async with Node.build(root, kubelet=False, chips={address: chip}) as node:
            node.machine.load("4.23")
            node.machine.plug(address)
            node.machine.plug("0000:02:00.0")
            paths = [str(node.machine.dev / name) for name in ("hailo0", "hailo1")]
            async with Prober(command=(*node.prefix, *COMMAND)) as prober:
                first = await prober.query(FIRST, paths[0], VERSION, 0.0, identify=True)
                second = await prober.query(SECOND, paths[1], VERSION, 0.0)
                assert first.firmware is not None
                assert second.trouble in {Trouble.LOST, Trouble.DENIED}  # /dev/shm may be nodev
                node.machine.break_node(address, "mode")
                assert (await prober.query(FIRST, paths[0], VERSION, 0.0)).trouble is Trouble.DENIED
                node.machine.mend(address)
                node.machine.break_node(address, "regular-file")
                assert (await prober.query(FIRST, paths[0], VERSION, 0.0)).trouble is Trouble.FAILED
                node.machine.mend(address)
                assert (await prober.query(FIRST, paths[0], VERSION, 0.0)).trouble is None
                node.machine.pull(address)
                assert (await prober.query(FIRST, paths[0], VERSION, 0.0)).trouble is Trouble.LOST
            assert node.ioctls is not None
            assert set(node.ioctls.asked) == {
                (Path(paths[0]), number) for number in (DRIVER_INFO, PROPERTIES, CONTROL)
            }
