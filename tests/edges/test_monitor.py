"""`host.monitor` on real directories: workloads that write as HailoRT does, and hostile ones."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from hailo_agent.core.device import ALL, Device, DeviceId, Holder, PciAddress
from hailo_agent.core.usage import MAX_BYTES, DeviceUsage, Direction, UsageInvalid
from hailo_agent.errors import HostError
from hailo_agent.host import monitor as room
from hailo_agent.host.monitor import MonitorReader, has_own_filesystem
from hailo_agent.sim.monitor import NO_OUTPUTS, MonitorWriter, Network
from hailo_agent.wire import monitor

SECONDS = 30.0
NOBODY = 65534
VERSIONS = [(4, 17), (4, 22), (5, 2)]
takes_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else takes root")


def holder(name: str) -> Holder:
    return Holder(namespace="default", pod=name, container="main")


def device(bus: int, *holders: str, held: bool | None = None) -> Device:
    address = PciAddress(domain=0, bus=bus, slot=0, function=0)
    return Device(
        id=address.device_id,
        address=address,
        held=bool(holders) if held is None else held,
        holders=tuple(map(holder, holders)),
    )


ONE, TWO, THREE = device(1, "a"), device(2, "b"), device(3, "c")
FREE = device(1)


@pytest.fixture
def root() -> Iterator[Path]:
    """Lend a place on a tmpfs, as `/run` is one."""
    with tempfile.TemporaryDirectory(prefix="he-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def directory(root: Path) -> Path:
    return root / "run" / "monitor"


@pytest.fixture
def reader(directory: Path) -> MonitorReader:
    return MonitorReader(directory=directory, timeout_seconds=SECONDS)


@pytest.fixture
async def ready(reader: MonitorReader) -> MonitorReader:
    await reader.prepare([ALL, *(d.id for d in (ONE, TWO, THREE))])
    return reader


async def read(
    reader: MonitorReader, *devices: Device, later: float = 0.0
) -> Mapping[DeviceId, DeviceUsage]:
    return await reader.read(devices, now=time.time() + later)


def writer(
    directory: Path, of: Device, *names: str, version: tuple[int, int] = (4, 22)
) -> MonitorWriter:
    """Start a workload that has this device, and have it write once."""
    workload = MonitorWriter(
        directory=directory / of.id,
        version=version,
        networks=[Network(name=name) for name in names],
        devices=[str(of.address)],
    )
    workload.write()
    return workload


def networks(usage: Mapping[DeviceId, DeviceUsage]) -> dict[str, list[str]]:
    return {name: [n.network for n in one.networks] for name, one in usage.items()}


def names_in(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def content(directory: int) -> list[str]:
    return os.listdir(directory)


def open_files(directory: Path) -> set[str]:
    """Name what is open there; elsewhere pytest and its plugins open files as they like."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith(str(directory))}


def age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be too young to be cleared away: a change time cannot be set back."""
    monkeypatch.setattr(room, "_LEFT_SECONDS", -60.0)


# --- workloads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_a_workload_says_is_told_of_its_device(
    ready: MonitorReader, directory: Path, version: tuple[int, int]
) -> None:
    workload = MonitorWriter(
        directory=directory / ONE.id,
        version=version,
        networks=[
            Network(name="yolo", frames_per_second=29.5, utilisation_percent=40.0, pending=3),
            Network(name="sink", frames_per_second=NO_OUTPUTS, utilisation_percent=20.0),
        ],
        devices=[str(ONE.address)],
    )
    workload.write()
    usage = await read(ready, ONE, TWO)
    assert set(usage) == {ONE.id}
    sink, yolo = usage[ONE.id].networks
    assert (yolo.network, yolo.frames_per_second, yolo.utilisation) == ("yolo", 29.5, 0.4)
    assert (yolo.pending(Direction.INPUT), yolo.capacity(Direction.INPUT)) == (3, 4)
    assert (sink.network, sink.frames_per_second, sink.utilisation) == ("sink", None, 0.2)
    assert usage[ONE.id].utilisation == pytest.approx(0.6)
    assert usage[ONE.id].written_at == pytest.approx(time.time(), abs=SECONDS)
    assert ready.refusals == {}


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_newest_figures_are_told(
    ready: MonitorReader, directory: Path, version: tuple[int, int]
) -> None:
    workload = writer(directory, ONE, "yolo", version=version)
    for fps in (10.0, 20.0, 5.0):
        workload.networks = [Network(name="yolo", frames_per_second=fps)]
        workload.write()
        [network] = (await read(ready, ONE))[ONE.id].networks
        assert network.frames_per_second == fps


@pytest.mark.parametrize("version", VERSIONS)
async def test_who_was_killed_says_nothing_after_a_while_and_who_exits_leaves_no_file(
    ready: MonitorReader, directory: Path, version: tuple[int, int]
) -> None:
    workload = writer(directory, ONE, "yolo", version=version)
    assert networks(await read(ready, ONE, later=2.0)) == {ONE.id: ["yolo"]}
    assert await read(ready, ONE, later=4.0) == {}
    workload.exit()
    assert names_in(directory / ONE.id) == set()
    assert await read(MonitorReader(directory=directory, timeout_seconds=SECONDS), ONE) == {}


@pytest.mark.parametrize("version", VERSIONS)
async def test_while_a_file_is_half_written_the_figures_before_it_hold(
    ready: MonitorReader, directory: Path, version: tuple[int, int]
) -> None:
    workload = writer(directory, ONE, "yolo", version=version)
    whole = await read(ready, ONE)
    workload.begin()
    assert (await read(ready, ONE))[ONE.id].networks == whole[ONE.id].networks
    workload.write()
    assert networks(await read(ready, ONE)) == {ONE.id: ["yolo"]}
    assert ready.refusals == {}


async def test_a_file_that_is_not_finished_is_not_read(
    ready: MonitorReader, directory: Path
) -> None:
    MonitorWriter(directory=directory / ONE.id).begin()
    assert await read(ready, ONE) == {}


async def test_a_time_that_the_workload_sets_makes_nothing_younger(
    ready: MonitorReader, directory: Path
) -> None:
    workload = writer(directory, ONE, "yolo")
    future = time.time() + 1e6
    os.utime(workload.path, (future, future))
    assert await read(ready, ONE, later=4.0) == {}
    assert await read(ready, ONE, later=1e6) == {}


async def test_several_processes_of_a_container_are_told_together(
    ready: MonitorReader, directory: Path
) -> None:
    writer(directory, ONE, "yolo", "same")
    writer(directory, ONE, "same", version=(4, 17))
    usage = (await read(ready, ONE))[ONE.id]
    assert [(n.network, n.frames_per_second) for n in usage.networks] == [
        ("same", 60.0),
        ("yolo", 30.0),
    ]


# --- whose it is --------------------------------------------------------------------------------


async def test_a_container_with_two_devices_tells_its_networks_once_and_the_load_of_each(
    ready: MonitorReader, directory: Path
) -> None:
    one, two = device(1, "a"), device(2, "a")
    workload = MonitorWriter(
        directory=directory / two.id, devices=[str(one.address), str(two.address)]
    )
    workload.write()
    usage = await read(ready, one, two, THREE)
    assert networks(usage) == {one.id: [], two.id: ["yolov8m"]}
    assert {name: said.utilisation for name, said in usage.items()} == {one.id: 0.25, two.id: 0.25}


async def test_what_a_workload_says_of_a_device_of_others_is_not_believed(
    ready: MonitorReader, directory: Path
) -> None:
    liar = MonitorWriter(
        directory=directory / ONE.id, devices=[str(TWO.address), str(THREE.address)]
    )
    liar.write()
    usage = await read(ready, ONE, TWO, FREE)
    assert TWO.id not in usage
    assert usage[ONE.id].utilisation is None


async def test_free_devices_are_not_one_holder(ready: MonitorReader, directory: Path) -> None:
    one, two = device(1), device(2)
    MonitorWriter(
        directory=directory / one.id, devices=[str(one.address), str(two.address)]
    ).write()
    assert set(await read(ready, one, two)) == {one.id}


async def test_all_has_a_directory_of_its_own(ready: MonitorReader, directory: Path) -> None:
    MonitorWriter(directory=directory / ALL).write()
    assert networks(await read(ready, device(1))) == {ALL: ["yolov8m"]}


async def test_the_next_holder_inherits_nothing(ready: MonitorReader, directory: Path) -> None:
    before = writer(directory, ONE, "before")
    assert networks(await read(ready, ONE)) == {ONE.id: ["before"]}
    mounted = os.open(directory / ONE.id, os.O_RDONLY)
    try:
        await ready.renew([ONE.id])
        before.path.with_name("late").touch()
        after = device(1, "z")
        assert names_in(directory / ONE.id) == {"late"}
        assert await read(ready, after) == {}
        writer(directory, after, "after")
        assert networks(await read(ready, after)) == {ONE.id: ["after"]}
        assert content(mounted) == []  # what the holder before still has, emptied
    finally:
        os.close(mounted)
    assert names_in(directory) == {ALL, ONE.id, TWO.id, THREE.id}


async def test_without_renewal_another_holder_still_begins_anew(
    ready: MonitorReader, directory: Path
) -> None:
    workload = writer(directory, ONE, "yolo")
    assert await read(ready, ONE)
    workload.path.unlink()
    assert await read(ready, device(1, "z")) == {}


# --- directories --------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_directories_are_made_as_tmp_is_and_nobody_else_can_add_one(
    ready: MonitorReader, directory: Path
) -> None:
    assert mode(directory) == 0o755
    assert mode(directory / ONE.id) == 0o1777
    (directory / ONE.id).rmdir()
    await read(ready, ONE)
    assert (directory / ONE.id).is_dir()


@takes_root
async def test_a_process_that_is_not_root_can_write_and_be_read(
    ready: MonitorReader, directory: Path
) -> None:
    script = (
        "import os, sys; os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534); os.umask(0o77);"
        "open('1abcdef', 'wb').write(sys.stdin.buffer.read())"
    )
    path = directory / ONE.id / "1abcdef"
    command = [sys.executable, "-c", script, str(path.parent)]
    report = MonitorWriter(directory=directory / TWO.id).report()
    run = partial(subprocess.run, command, input=report, check=True)
    await asyncio.to_thread(run)
    assert mode(path) == 0o600
    assert networks(await read(ready, ONE)) == {ONE.id: ["yolov8m"]}


async def test_the_directory_of_a_free_device_is_emptied_and_made_good(
    ready: MonitorReader, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer(directory, ONE, "left")
    await read(ready, FREE)
    assert len(names_in(directory / ONE.id)) == 1  # it may be of one who has only just started
    (directory / ONE.id).chmod(0o700)
    if os.geteuid() == 0:
        os.chown(directory / ONE.id, NOBODY, NOBODY)
    age(monkeypatch)
    await read(ready, ONE)
    await read(ready, replace(ONE, held=None))
    assert len(names_in(directory / ONE.id)) == 1
    assert mode(directory / ONE.id) == 0o700
    await read(ready, FREE)
    assert names_in(directory / ONE.id) == set()
    status = (directory / ONE.id).stat()
    assert stat.S_IMODE(status.st_mode) == 0o1777
    assert status.st_uid == os.geteuid()


async def test_what_killed_processes_left_is_cleared_away_under_the_one_that_lives(
    ready: MonitorReader, directory: Path
) -> None:
    killed = writer(directory, ONE, "killed")
    await read(ready, ONE, later=599.0)
    assert killed.path.exists()
    await read(ready, ONE, later=602.0)
    assert not killed.path.exists()


@pytest.mark.parametrize("what", ["file", "link"])
async def test_a_directory_that_is_none_is_said_by_name(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "monitor"
    if what == "file":
        directory.touch()
    else:
        (tmp_path / "elsewhere").mkdir()
        directory.symlink_to(tmp_path / "elsewhere")
    reader = MonitorReader(directory=directory, timeout_seconds=SECONDS)
    for call in (reader.prepare, reader.renew):
        with pytest.raises(HostError, match=str(directory)):
            await call([ONE.id])
    assert await read(reader, ONE) == {}
    assert str(directory) in reader.refusals[ONE.id]
    assert names_in(tmp_path) <= {"monitor", "elsewhere"}
    assert what == "file" or names_in(tmp_path / "elsewhere") == set()


def test_whether_it_could_fill_up_something_else_is_known(tmp_path: Path) -> None:
    assert not has_own_filesystem(tmp_path)
    assert not has_own_filesystem(tmp_path / "missing")
    assert has_own_filesystem(Path("/proc"))


async def test_a_reading_that_hangs_costs_one_thread_and_is_said(
    ready: MonitorReader, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer(directory, ONE, "yolo")
    release, calls = threading.Event(), []

    def hang(*_: object) -> None:
        calls.append(1)
        release.wait(SECONDS)

    with monkeypatch.context() as patched:
        patched.setattr(room, "_visit", hang)
        ready.timeout_seconds = 0.05
        assert await read(ready, ONE) == {}
        assert "no answer" in ready.refusals[ONE.id]
        assert await read(ready, ONE) == {}
        assert "has not returned" in ready.refusals[ONE.id]
        assert calls == [1]
    release.set()
    ready.timeout_seconds = SECONDS
    async with asyncio.timeout(SECONDS):
        while not await read(ready, ONE):  # noqa: ASYNC110 - a thread does not tell
            await asyncio.sleep(0.01)
    assert ready.refusals == {}


# --- hostile workloads --------------------------------------------------------------------------


def many_files(top: Path) -> None:
    report = MonitorWriter(directory=top).report()
    for number in range(10_000):
        (top / f"{number:06}abcdef").write_bytes(report[: number % len(report)])


def links(top: Path) -> None:
    (top / "1aaaaaa").symlink_to("/etc/shadow")
    (top / "1bbbbbb").symlink_to(top.parent / TWO.id)
    (top / "1cccccc").symlink_to("/dev/zero")
    (top / "1dddddd").symlink_to("1dddddd")
    with suppress(OSError):
        (top / "1eeeeee").hardlink_to(top.parent.parent.parent / "outside")


def sparse(top: Path) -> None:
    with (top / "1aaaaaa").open("wb") as file:
        file.truncate(1 << 30)


def pipes_and_sockets(top: Path) -> None:
    os.mkfifo(top / "1aaaaaa")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{os.open(top, os.O_RDONLY)}/1bbbbbb")


def device_nodes(top: Path) -> None:
    for number, name in ((os.makedev(1, 5), "1zero"), (os.makedev(10, 130), "1watchdog")):
        with suppress(PermissionError):
            os.mknod(top / name, stat.S_IFCHR | 0o666, number)


def rubbish(top: Path) -> None:
    (top / "1aaaaaa").write_bytes(os.urandom(4096))
    (top / "1bbbbbb").write_bytes(b"\x12\x00" * (MAX_BYTES // 2))
    (top / "1cccccc").write_bytes(b"")
    (top / "1dddddd").write_bytes(b"\n\x01" + b"\xff" * 100)
    (top / "1eeeeee").write_bytes(bytes(monitor.Report(pid="1"))[:-1])


def names(top: Path) -> None:
    for name in (b"\xff\xfe", b"a\nb", b"\x1b[31m", b"-rf", "…".encode(), b"x" * 255, b".tmp"):
        (top / os.fsdecode(name)).write_bytes(os.urandom(100))


def deep(top: Path) -> None:
    at = os.open(top, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d", dir_fd=at)
        within = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = within
    os.close(at)


def closed(top: Path) -> None:
    (top / "1aaaaaa").touch()
    (top / "1aaaaaa").chmod(0)
    top.chmod(0)


HOSTILE = [
    many_files,
    links,
    sparse,
    pipes_and_sockets,
    device_nodes,
    rubbish,
    names,
    deep,
    closed,
]


@pytest.mark.parametrize("attack", HOSTILE, ids=lambda attack: attack.__name__)
async def test_a_hostile_workload_harms_neither_others_nor_the_host(
    ready: MonitorReader,
    directory: Path,
    root: Path,
    attack: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outside = root / "outside"
    outside.write_bytes(MonitorWriter(directory=directory / TWO.id).report())
    (directory / TWO.id / names_in(directory / TWO.id).pop()).unlink()
    other = writer(directory, TWO, "honest", version=(4, 17))
    attack(directory / ONE.id)
    before = outside.stat(), open_files(directory)
    for _ in range(3):
        other.write()
        usage = await read(ready, ONE, TWO)
        assert networks(usage).pop(TWO.id) == ["honest"]
        assert TWO.id not in ready.refusals
        assert ONE.id not in usage or not usage[ONE.id].networks or attack is many_files

    # And when its device is free, nothing of it stays.
    age(monkeypatch)
    for _ in range(40):
        other.write()
        assert networks(await read(ready, FREE, TWO))[TWO.id] == ["honest"]
        if not names_in(directory / ONE.id):
            break
    assert names_in(directory / ONE.id) == set()
    assert mode(directory / ONE.id) == 0o1777
    after = outside.stat()
    assert (after.st_mtime, after.st_size) == (before[0].st_mtime, before[0].st_size)
    assert outside.exists()
    assert open_files(directory) == before[1]


@contextmanager
def child(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python in a process of its own until the block ends, from when it says `ready`."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


async def test_endless_renaming_and_making_of_files_keeps_nobody(
    ready: MonitorReader, directory: Path
) -> None:
    other = writer(directory, TWO, "honest")
    script = """
        import itertools, os, sys
        os.chdir(sys.argv[1])
        os.mkfifo("fifo")
        os.symlink("/etc/shadow", "link")
        open("file", "wb").write(b"\\x0a\\x011")
        print("ready", flush=True)
        for n in itertools.count():
            for kind in ("fifo", "link", "file"):
                os.rename(kind, "1abcdef"), os.rename("1abcdef", kind)
            open(f"x{n % 3000}", "wb").close()
    """
    with child(script, str(directory / ONE.id)):
        for _ in range(30):
            other.write()
            assert networks(await read(ready, ONE, TWO))[TWO.id] == ["honest"]
            assert TWO.id not in ready.refusals


async def test_a_lease_on_a_file_keeps_nobody_waiting(
    ready: MonitorReader, directory: Path
) -> None:
    leased = writer(directory, ONE, "leased")
    script = """
        import fcntl, os, signal, sys, time
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        file = os.open(sys.argv[1], os.O_RDWR)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        print("ready", flush=True)
        time.sleep(600)
    """
    with child(script, str(leased.path)):
        writer(directory, TWO, "honest")
        assert networks(await read(ready, ONE, TWO)) == {TWO.id: ["honest"]}
        assert "temporarily unavailable" in ready.refusals[ONE.id]


async def test_nothing_but_a_file_is_opened_whatever_the_name_meant_before(
    directory: Path, ready: MonitorReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = os.open

    def watched(path: str, flags: int, *rest: int, dir_fd: int | None = None) -> int:
        descriptor = real(path, flags, *rest, dir_fd=dir_fd)
        if not flags & (os.O_PATH | os.O_DIRECTORY):
            opened.append(stat.filemode(os.fstat(descriptor).st_mode)[0])
        return descriptor

    for make in (pipes_and_sockets, device_nodes, links):
        make(directory / ONE.id)
        top = os.open(directory / ONE.id, os.O_RDONLY)
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", watched)
            for name in content(top):
                with pytest.raises((UsageInvalid, OSError)):
                    room._report(top, name)
        for name in content(top):
            os.unlink(name, dir_fd=top)
        os.close(top)
    assert opened == []
    honest = writer(directory, ONE, "yolo")
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", watched)
        assert networks(await read(ready, ONE)) == {ONE.id: ["yolo"]}
    assert opened == ["-"]
    honest.exit()


async def test_new_names_without_end_are_not_series_without_end(
    ready: MonitorReader, directory: Path
) -> None:
    workload = writer(directory, ONE, "n0")
    seen: set[str] = set()
    for number in range(100):
        workload.networks = [Network(name="n0"), Network(name=f"n{number}")]
        workload.write()
        usage = (await read(ready, ONE))[ONE.id]
        seen |= {network.network for network in usage.networks}
    assert len(seen) == 64
    assert "n0" in seen
    assert "names of networks" in ready.refusals[ONE.id]
    assert networks(await read(ready, device(1, "z"))) == {ONE.id: ["n0", "n99"]}


async def test_who_costs_much_is_read_last(
    ready: MonitorReader, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited: list[str] = []
    visit = room._visit

    def slow(base: int, place: room._Place, *rest: object) -> object:
        visited.append(place.name)
        time.sleep(0.02 if place.name == ONE.id else 0)
        return visit(base, place, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "_visit", slow)
    await read(ready, ONE, TWO, THREE)
    visited.clear()
    await read(ready, ONE, TWO, THREE)
    assert visited[-1] == ONE.id


MEMORY = """
    import asyncio, sys, time
    from pathlib import Path
    from hailo_agent.core.device import Device, DeviceId, Holder
    from hailo_agent.host.monitor import MonitorReader

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    async def main():
        reader = MonitorReader(directory=Path(sys.argv[1]), timeout_seconds=30.0)
        who = (Holder(namespace="n", pod="p", container="c"),)
        ids = [f"pci-0000-0{n}-00-0" for n in (1, 2)]
        devices = [Device(id=DeviceId(i), held=True, holders=who) for i in ids]
        now = time.time()
        for _ in range(3):
            await reader.read(devices, now=now)
        before = resident()
        for _ in range(20):
            await reader.read(devices, now=now)
        print(resident() - before)

    asyncio.run(main())
"""


async def test_memory_stays_flat_whatever_is_in_the_directory(
    ready: MonitorReader, directory: Path
) -> None:
    top = directory / ONE.id
    for attack in (sparse, rubbish, names):
        attack(top)
    for number in range(1100):
        (directory / TWO.id / f"1y{number}").write_bytes(b"\x0a\x011")
    for number in range(4):
        (top / f"1x{number}").write_bytes(b"\x0a\x011" + b"\x12\x03\x0a\x01a" * 1000)
    script = textwrap.dedent(MEMORY)
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(directory)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) < 2 * 1024 * 1024, ran.stdout
