"""`host.hailortcli` with a real process on the other side: the simulated command, well or not."""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hailo_agent.core.device import PciAddress
from hailo_agent.core.drivers import Version
from hailo_agent.core.hailortcli import Reading
from hailo_agent.host.hailortcli import HailortCli
from hailo_agent.sim.hailortcli import Board, Manner, Verb
from hailo_agent.sim.hailortcli import HailortCli as SimulatedCli

FIRST, SECOND = PciAddress(0, 1, 0, 0), PciAddress(0, 2, 0, 0)
BOARDS = (Board(address=str(FIRST)), Board(address=str(SECOND), serial="", architecture="HAILO8L"))
DEADLINE_SECONDS = 20.0
SOON_SECONDS = 15.0


@pytest.fixture
def there(tmp_path: Path) -> Iterator[SimulatedCli]:
    """The command as installed on a node with two boards; nothing of it survives the test."""
    cli = SimulatedCli(tmp_path, boards=BOARDS)
    cli.install()
    yield cli
    cli.release()
    for call in cli.calls:
        wait_until(lambda pid=call.pid: not is_running(pid))  # type: ignore[misc]


@pytest.fixture
def ours(there: SimulatedCli) -> HailortCli:
    return HailortCli(command=str(there.path), deadline_seconds=DEADLINE_SECONDS)


async def look(cli: HailortCli, *identify: PciAddress, driver: str = "4.23.0") -> Reading:
    return await cli.look(drivers={driver}, identify=identify, at=3.0)


def is_running(pid: int) -> bool:
    """Whether it lives; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not condition():  # noqa: ASYNC110 - files and processes do not tell
            await asyncio.sleep(0.01)


def read_so_far() -> int:
    """How many bytes this process has read in its life, from anywhere."""
    return int(Path("/proc/self/io").read_text().split()[1])


def arguments(there: SimulatedCli) -> list[str]:
    return [call.arguments for call in there.calls]


async def test_a_look_scans_and_identifies_only_what_it_was_told_to(
    there: SimulatedCli, ours: HailortCli
) -> None:
    reading = await look(ours, SECOND)
    assert reading.reason == ""
    assert reading.at == 3.0
    assert reading.version == Version(4, 23, 0)
    assert reading.devices == (FIRST, SECOND)
    assert [(one.address, one.architecture) for one in reading.identified] == [(SECOND, "HAILO8L")]
    assert arguments(there) == ["--version", "scan", f"fw-control identify --bdf {SECOND}"]


async def test_it_runs_in_a_clean_place(
    there: SimulatedCli, ours: HailortCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAILO_MONITOR", "1")
    monkeypatch.setenv("KUBERNETES_TOKEN", "secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/host/usr/lib")
    await look(ours, FIRST)
    for call in there.calls:
        assert call.directory == "/"
        assert call.environment["HAILORT_LOGGER_PATH"] == "NONE"
        assert call.environment["LD_LIBRARY_PATH"] == "/host/usr/lib"
        assert not {"HAILO_MONITOR", "KUBERNETES_TOKEN"} & call.environment.keys()


async def test_what_was_identified_is_remembered_while_it_is_listed(
    there: SimulatedCli, ours: HailortCli
) -> None:
    await look(ours, FIRST)
    assert [one.address for one in (await look(ours)).identified] == [FIRST]
    there.boards = BOARDS[1:]
    there.install()
    assert (await look(ours)).identified == ()
    there.boards = BOARDS
    there.install()
    assert (await look(ours)).identified == (), "another card may stand there now"


async def test_a_device_that_is_not_listed_is_not_identified(
    there: SimulatedCli, ours: HailortCli
) -> None:
    reading = await look(ours, PciAddress(0, 9, 0, 0))
    assert reading.reason == ""
    assert arguments(there) == ["--version", "scan"]


async def test_the_version_is_asked_once_for_each_file(
    there: SimulatedCli, ours: HailortCli
) -> None:
    await look(ours)
    await look(ours)
    assert arguments(there).count("--version") == 1
    there.version = "5.2.0"
    there.install()
    reading = await look(ours, driver="5.2.0")
    assert (reading.version, reading.reason) == (Version(5, 2, 0), "")
    assert arguments(there).count("--version") == 2


async def test_another_version_than_the_kernel_drivers_is_not_used(
    there: SimulatedCli, ours: HailortCli
) -> None:
    reading = await look(ours, FIRST, driver="4.20.0")
    assert reading.reason == "hailortcli is 4.23.0, the kernel driver is 4.20.0: it is not used"
    assert (reading.devices, reading.identified) == (None, ())
    assert arguments(there) == ["--version"]
    without = await ours.look(drivers=(), identify=(FIRST,), at=4.0)
    assert without.reason == "hailortcli is 4.23.0, the kernel driver is not loaded: it is not used"


async def test_beside_two_kernel_drivers_it_serves_its_own(
    there: SimulatedCli, ours: HailortCli
) -> None:
    reading = await ours.look(drivers={"4.23.0", "5.2.0"}, identify=(), at=0.0)
    assert reading.devices == (FIRST, SECOND)


async def test_5x_is_understood_too(there: SimulatedCli, ours: HailortCli) -> None:
    there.version = "5.2.0"
    there.boards = (
        Board(
            address=str(FIRST),
            firmware="5.2.0",
            build="release,app",
            architecture="HAILO10H",
            name="",
            serial="",
            part_number="",
            product_name="",
        ),
    )
    there.install()
    reading = await look(ours, FIRST, driver="5.2.0")
    assert reading.reason == ""
    (found,) = reading.identified
    assert (found.firmware, found.architecture, found.serial) == (
        Version(5, 2, 0),
        "HAILO10H",
        "",
    )


async def test_no_device_is_no_failure(there: SimulatedCli, ours: HailortCli) -> None:
    there.boards = ()
    there.install()
    reading = await look(ours, FIRST)
    assert (reading.devices, reading.reason) == ((), "")


async def test_warnings_in_between_are_passed_over(there: SimulatedCli, ours: HailortCli) -> None:
    there.manners = dict.fromkeys(Verb, Manner.NOISY)
    there.install()
    reading = await look(ours, FIRST, SECOND)
    assert reading.reason == ""
    assert reading.devices == (FIRST, SECOND)
    assert len(reading.identified) == 2


async def test_it_is_found_in_path(there: SimulatedCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"/nowhere:{there.directory}")
    cli = HailortCli(command="hailortcli", deadline_seconds=DEADLINE_SECONDS)
    assert (await look(cli)).devices == (FIRST, SECOND)


# --- whatever goes wrong is one clear reason, and nothing is raised ------------------------------


async def test_without_the_command_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reading = await look(HailortCli(command="hailortcli", deadline_seconds=DEADLINE_SECONDS))
    assert reading == Reading(at=3.0, reason="there is no hailortcli in PATH")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Permission denied"),
        (lambda path: path.write_text("#!/bin/sh\n"), "Permission denied"),
        (lambda path: (path.write_bytes(b"\x7fELF\0"), path.chmod(0o755)), "Exec format error"),
        (
            lambda path: (path.write_text("#!/no/such/shell\n"), path.chmod(0o755)),
            "No such file or directory",
        ),
    ],
    ids=["missing", "a directory", "not executable", "for another machine", "no interpreter"],
)
async def test_what_cannot_be_run_is_told_of(
    tmp_path: Path, prepare: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "hailortcli"
    prepare(path)
    reading = await look(HailortCli(command=str(path), deadline_seconds=DEADLINE_SECONDS))
    assert reading == Reading(at=3.0, reason=f"{path} cannot be run: {reason}")


@pytest.mark.parametrize(
    ("verb", "manner", "reason"),
    [
        (Verb.VERSION, Manner.GARBAGE, "`hailortcli --version` tells no version"),
        (Verb.VERSION, Manner.SILENT, "`hailortcli --version` tells no version"),
        (Verb.VERSION, Manner.CRASHING, "`hailortcli --version` crashed: Segmentation fault"),
        (Verb.SCAN, Manner.GARBAGE, "`hailortcli scan` is not understood: it neither lists"),
        (Verb.SCAN, Manner.SILENT, "it is empty"),
        (Verb.SCAN, Manner.CRASHING, "`hailortcli scan` crashed: Segmentation fault"),
        (Verb.SCAN, Manner.FAILING, "`hailortcli scan` failed with status 76: [HailoRT] [error]"),
        (Verb.IDENTIFY, Manner.GARBAGE, f"--bdf {FIRST}` is not understood: it tells of no"),
        (Verb.IDENTIFY, Manner.CRASHING, f"--bdf {FIRST}` crashed: Segmentation fault"),
        (Verb.IDENTIFY, Manner.FAILING, "Driver version (4.20.0) is different from library"),
    ],
)
async def test_what_goes_wrong_is_the_readings_reason(
    there: SimulatedCli, ours: HailortCli, verb: Verb, manner: Manner, reason: str
) -> None:
    there.manners = {verb: manner}
    there.install()
    reading = await look(ours, FIRST, SECOND)
    assert reason in reading.reason
    assert reading.reason.isprintable()
    assert len(reading.reason) < 400
    assert (reading.devices is None) == (verb is not Verb.IDENTIFY)
    assert reading.identified == ()
    there.manners = {}
    there.install()
    reading = await look(ours, FIRST)
    assert (reading.reason, len(reading.identified)) == ("", 1), "it is tried again each time"


async def test_one_device_that_fails_does_not_keep_the_other_from_being_identified(
    there: SimulatedCli, ours: HailortCli
) -> None:
    there.boards = (Board(address=str(FIRST), firmware="broken"), BOARDS[1])
    there.install()
    reading = await look(ours, FIRST, SECOND)
    assert "is not understood" in reading.reason
    assert [one.address for one in reading.identified] == [SECOND]


async def test_what_it_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "hailortcli"
    path.write_text(
        f"#!/bin/sh\n(while [ ! -e {tmp_path}/released ]; do sleep 0.02; done; echo late) &\n"
        f"echo $! >> {tmp_path}/left\n"
        'case "$1" in --version) echo HailoRT-CLI version 4.23.0;; *) echo'
        " Hailo devices not found;; esac\n"
    )
    path.chmod(0o755)
    reading = await look(HailortCli(command=str(path), deadline_seconds=DEADLINE_SECONDS))
    assert (reading.devices, reading.reason) == ((), "")
    left = [int(pid) for pid in (tmp_path / "left").read_text().split()]
    assert all(is_running(pid) for pid in left)
    (tmp_path / "released").touch()
    await until(lambda: not any(is_running(pid) for pid in left))


# --- what does not end is left to itself ---------------------------------------------------------


async def test_what_outlives_its_deadline_is_left_to_itself_and_nothing_else_is_started(
    there: SimulatedCli,
) -> None:
    there.manners = {Verb.IDENTIFY: Manner.HANGING}
    there.install()
    cli = HailortCli(command=str(there.path), deadline_seconds=0.5)
    asked = f"`hailortcli fw-control identify --bdf {FIRST}`"
    reading = await look(cli, FIRST, SECOND)
    assert reading.reason == f"{asked} did not end within 0.5 s"
    assert reading.devices == (FIRST, SECOND), "what the scan told is told"
    assert len(there.calls) == 3

    for _ in range(3):
        assert (await look(cli, FIRST)).reason == f"{asked} has not ended yet"
    assert len(there.calls) == 3
    assert is_running(there.calls[-1].pid)
    assert not await cli.rest(0.05)
    assert there.ended == 2

    there.release()
    assert await cli.rest(SOON_SECONDS)
    assert there.ended == 3, "it came to its own end"
    reading = await look(cli, FIRST)
    assert (reading.reason, len(reading.identified)) == ("", 1)
    assert not there.overlapped


async def test_two_looks_at_once_do_not_run_it_twice(there: SimulatedCli, ours: HailortCli) -> None:
    there.manners = {Verb.VERSION: Manner.HANGING}
    there.install()
    first = asyncio.create_task(look(ours))
    await until(lambda: len(there.calls) == 1)
    assert (await look(ours)).reason == "`hailortcli --version` has not ended yet"
    there.release()
    assert (await first).reason == ""
    assert not there.overlapped


async def test_whoever_waits_may_go_without_taking_it_along(
    there: SimulatedCli, ours: HailortCli
) -> None:
    there.manners = {Verb.IDENTIFY: Manner.HANGING}
    there.install()
    waiting = asyncio.create_task(look(ours, FIRST))
    await until(lambda: len(there.calls) == 3)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert is_running(there.calls[-1].pid)
    there.release()
    assert await ours.rest(SOON_SECONDS)
    assert there.ended == 3


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_not_even_the_end_of_our_loop_kills_it(there: SimulatedCli) -> None:
    there.manners = {Verb.IDENTIFY: Manner.HANGING}
    there.install()

    async def live() -> None:
        cli = HailortCli(command=str(there.path), deadline_seconds=0.2)
        assert "did not end" in (await look(cli, FIRST)).reason

    asyncio.run(live())
    gc.collect()  # what Python says of a process that nobody waited for, it says now
    pid = there.calls[-1].pid
    assert is_running(pid)
    assert os.getsid(pid) == pid, "nor does a signal to our group"
    there.release()
    wait_until(lambda: not is_running(pid))
    assert there.ended == 3


@pytest.mark.parametrize("verb", [Verb.VERSION, Verb.SCAN])
async def test_endless_output_costs_neither_memory_nor_the_loop(
    there: SimulatedCli, verb: Verb
) -> None:
    there.manners = {verb: Manner.ENDLESS}
    there.install()
    cli = HailortCli(command=str(there.path), deadline_seconds=0.3)
    assert "did not end" in (await look(cli)).reason
    loop, before = asyncio.get_running_loop(), read_so_far()
    started_at = loop.time()
    await asyncio.sleep(0.5)
    turns = (loop.time() - started_at) / 0.1 + 5
    assert read_so_far() - before < turns * 2 * 64 * 1024
    there.release()
    assert await cli.rest(SOON_SECONDS)


async def test_more_than_64_kib_is_more_than_is_read(there: SimulatedCli, ours: HailortCli) -> None:
    there.boards = [Board(address=f"0000:{bus:02x}:00.0") for bus in range(250)] * 12
    there.install()
    assert (await look(ours)).reason == "`hailortcli scan` prints more than 64 KiB"


async def test_it_can_be_killed_from_outside(there: SimulatedCli, ours: HailortCli) -> None:
    there.manners = {Verb.SCAN: Manner.HANGING}
    there.install()
    looking = asyncio.create_task(look(ours))
    await until(lambda: len(there.calls) == 2)
    os.kill(there.calls[-1].pid, signal.SIGKILL)
    assert (await looking).reason == "`hailortcli scan` crashed: Killed"
