"""`host.cordons` on real files, changed by real processes, broken in real ways."""

import fcntl
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hailo_agent.core.cordon import (
    MAX_BYTES,
    MAX_CORDONS,
    Cordon,
    CordonInvalid,
    Cordons,
    Doubt,
    parse,
)
from hailo_agent.core.device import DeviceId
from hailo_agent.core.health import FaultCode
from hailo_agent.errors import HostError
from hailo_agent.host import cordons
from hailo_agent.host.cordons import CordonFile

ONE, TWO = DeviceId("pci-0000-01-00-0"), DeviceId("pci-0000-02-00-0")
SECONDS = 60
NOBODY = 65534
takes_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else takes root")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "hailo-agent" / "cordons.json"


@pytest.fixture
def file(path: Path) -> CordonFile:
    return CordonFile(path)


def reasons(known: Cordons) -> dict[str, str]:
    return {cordon.device_id: cordon.reason for cordon in known.entries}


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def open_files(directory: Path) -> set[str]:
    """Name what is open there; elsewhere pytest and its plugins open files as they like."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith(str(directory))}


# --- changing -----------------------------------------------------------------------------------


def test_without_a_file_nothing_is_cordoned_and_nothing_is_made(
    file: CordonFile, path: Path
) -> None:
    assert file.read() == Cordons()
    changed = file.change(ONE, None)
    assert (changed.before, changed.after) == (None, None)
    assert not path.parent.parent.exists()


def test_a_cordon_is_kept_with_reason_and_date_until_it_is_lifted(
    file: CordonFile, path: Path
) -> None:
    changed = file.change(ONE, "hot")
    assert changed.before is None
    assert changed.after is not None
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", changed.after.since)
    assert CordonFile(path).read() == Cordons(entries=(changed.after,))
    file.change(TWO, "cold")
    assert reasons(file.read()) == {ONE: "hot", TWO: "cold"}
    lifted = file.change(ONE, None)
    assert (lifted.before, lifted.after) == (changed.after, None)
    assert reasons(file.read()) == {TWO: "cold"}
    file.change(TWO, None)
    assert file.read() == Cordons()
    assert path.exists()  # empty, which is not the same as lost


def test_a_device_cordoned_again_keeps_its_date_and_takes_the_new_reason(
    file: CordonFile, path: Path
) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(
        '{"version": 1, "cordons": [{"device": "pci-0000-01-00-0", "reason": "hot",'
        ' "since": "2001-01-01T00:00:00Z"}]}'
    )
    changed = file.change(ONE, "burnt")
    assert changed.before is not None
    assert changed.after is not None
    assert (changed.before.reason, changed.after.reason) == ("hot", "burnt")
    assert changed.after.since == "2001-01-01T00:00:00Z"
    assert reasons(file.read()) == {ONE: "burnt"}


@pytest.mark.parametrize(("device_id", "reason"), [(ONE, "hot"), (TWO, None)])
def test_what_changes_nothing_writes_nothing(
    file: CordonFile, path: Path, device_id: DeviceId, reason: str | None
) -> None:
    file.change(ONE, "hot")
    before = path.stat()
    changed = file.change(device_id, reason)
    assert changed.before == changed.after
    assert path.stat() == before


def test_file_and_directories_are_for_everybody_to_read_whatever_the_umask(
    file: CordonFile, path: Path
) -> None:
    before = os.umask(0o077)
    try:
        file.change(ONE, "hot")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    for directory in (path.parent, path.parent.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert stat.S_IMODE(lock_of(path).stat().st_mode) == 0o600
    assert names_in(path.parent) == {path.name, lock_of(path).name}


def lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def test_what_is_written_is_on_the_disk_before_it_has_its_name_and_the_name_is_too(
    file: CordonFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        order.append(f"sync {kind}")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> Path:
        order.append("rename")
        return rename(source, target)

    path.parent.mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    file.change(ONE, "hot")
    assert order == ["sync file", "rename", "sync directory"]


def test_a_reason_that_is_none_changes_nothing(file: CordonFile, path: Path) -> None:
    file.change(ONE, "hot")
    before = path.read_bytes()
    with pytest.raises(CordonInvalid, match="printed"):
        file.change(TWO, "two\nlines")
    assert path.read_bytes() == before


def test_a_full_file_takes_no_more_and_loses_nothing(file: CordonFile, path: Path) -> None:
    path.parent.mkdir(parents=True)
    entries = ",".join(
        f'{{"device": "soc-{n}", "reason": "x", "since": "2026-11-22T18:30:00Z"}}'
        for n in range(MAX_CORDONS)
    )
    path.write_text(f'{{"version": 1, "cordons": [{entries}]}}')
    before = path.read_bytes()
    with pytest.raises(CordonInvalid, match="more than the file may have"):
        file.change(ONE, "hot")
    assert path.read_bytes() == before
    file.change(DeviceId("soc-7"), None)
    file.change(ONE, "hot")
    assert len(file.read().entries) == MAX_CORDONS


def test_the_leftover_of_one_who_was_killed_is_swept(file: CordonFile, path: Path) -> None:
    file.change(ONE, "hot")
    leftover = path.with_name(f".{path.name}.0123abcd.tmp")
    leftover.write_text("{")
    file.change(TWO, "cold")
    assert names_in(path.parent) == {path.name, lock_of(path).name}


def test_neither_reading_nor_changing_leaves_a_descriptor_open(
    file: CordonFile, path: Path
) -> None:
    for reason in ("hot", "cold", None):
        file.change(ONE, reason)
        file.read()
    path.unlink()
    path.mkdir()
    assert file.read().trouble is not None
    with pytest.raises(HostError):
        file.change(ONE, "hot")
    assert open_files(path.parent) == set()


# --- many at once -------------------------------------------------------------------------------

CORDONING = """
import sys
from pathlib import Path
from hailo_agent.host.cordons import CordonFile
file, first, last = CordonFile(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, last):
    file.change(f"soc-{number}", f"by {first}")
    if number % 2:
        file.change(f"soc-{number}", None)
"""


def cordoning(path: Path, first: int, last: int) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", CORDONING, str(path), str(first), str(last)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_change_it_at_once_lose_nothing_and_no_reader_sees_a_part(
    file: CordonFile, path: Path
) -> None:
    each = 25
    processes = [cordoning(path, n * each, (n + 1) * each) for n in range(4)]
    reader = CordonFile(path)
    try:
        for process in processes:
            go(process)
        looks = 0
        while any(process.poll() is None for process in processes):
            seen = reader.read()
            assert seen.trouble is None, seen.error
            looks += 1
        assert looks
        assert [process.wait(SECONDS) for process in processes] == [0] * 4
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    expected = {f"soc-{n}": f"by {n - n % each}" for n in range(4 * each) if n % 2 == 0}
    assert reasons(file.read()) == expected
    assert names_in(path.parent) == {path.name, lock_of(path).name}


def test_one_that_is_killed_while_it_changes_leaves_a_whole_file_and_no_lock(
    file: CordonFile, path: Path
) -> None:
    file.change(ONE, "hot")
    for times in (1, 2, 7):
        process = cordoning(path, 0, 10_000)
        go(process)
        try:
            wait_for_changes(path, times)  # and then it is somewhere in the middle of the next
        finally:
            process.kill()
            process.communicate()
        parse(path.read_bytes())
        file.change(TWO, f"after {times}")
        assert reasons(file.read())[TWO] == f"after {times}"
        assert reasons(file.read())[ONE] == "hot"


def wait_for_changes(path: Path, times: int) -> None:
    seen: set[tuple[int, int]] = set()
    until = time.monotonic() + SECONDS
    while len(seen) <= times:
        assert time.monotonic() < until
        found = path.stat()
        seen.add((found.st_ino, found.st_mtime_ns))


def test_who_finds_it_locked_waits_for_the_other(file: CordonFile, path: Path) -> None:
    file.change(ONE, "hot")
    descriptor = os.open(lock_of(path), os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    changing = threading.Thread(target=file.change, args=(TWO, "cold"))
    changing.start()
    changing.join(0.2)
    assert changing.is_alive()
    assert reasons(CordonFile(path).read()) == {ONE: "hot"}  # readers wait for nobody
    os.close(descriptor)
    changing.join(SECONDS)
    assert reasons(CordonFile(path).read()) == {ONE: "hot", TWO: "cold"}


def test_who_finds_it_locked_for_long_gives_up_and_says_so(
    file: CordonFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cordons, "_LOCK_SECONDS", 0.1)
    file.change(ONE, "hot")
    descriptor = os.open(lock_of(path), os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="locked by another process"):
            file.change(TWO, "cold")
    finally:
        os.close(descriptor)
    assert reasons(file.read()) == {ONE: "hot"}


# --- broken files -------------------------------------------------------------------------------


def absent_symlink(path: Path) -> None:
    path.symlink_to("elsewhere.json")


def symlink_to_a_good_file(path: Path) -> None:
    CordonFile(path.with_name("other.json")).change(TWO, "cold")
    path.symlink_to("other.json")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero


def junk(path: Path) -> None:
    path.write_text("{")


def too_big(path: Path) -> None:
    path.write_bytes(b" " * (MAX_BYTES + 1))


def future(path: Path) -> None:
    path.write_text('{"version": 2, "cordons": []}')


def unknown_key(path: Path) -> None:
    path.write_text('{"version": 1, "cordons": [], "drain": true}')


BREAKS: list[tuple[Callable[[Path], None], str, str]] = [
    (junk, "line 1 is not JSON", "repair the file"),
    (Path.touch, "line 1 is not JSON", "repair the file"),
    (too_big, f"longer than {MAX_BYTES} bytes", "repair the file"),
    (future, "version 2 is not known", "use the release that wrote it"),
    (unknown_key, "drain = true is not known", "remove it"),
    (absent_symlink, "it is a symlink", "host.cordon_file"),
    (symlink_to_a_good_file, "it is a symlink", "host.cordon_file"),
    (os.mkfifo, "it is a FIFO", "remove it"),
    (unix_socket, "it is a socket", "remove it"),
    (Path.mkdir, "it is a directory", "remove it"),
    pytest.param(device, "it is a device", "remove it", marks=takes_root),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("break_it", "says", "remedy"), BREAKS)
def test_a_broken_file_takes_no_cordon_back_and_is_named_with_a_remedy(
    file: CordonFile, path: Path, break_it: Callable[[Path], None], says: str, remedy: str
) -> None:
    file.change(ONE, "hot")
    before = file.read()
    path.unlink()
    break_it(path)
    broken = file.read()
    assert broken.entries == before.entries
    assert broken.is_complete
    assert broken.get(TWO) is None  # it was known not to be cordoned
    assert broken.trouble is not None
    assert broken.trouble.code is FaultCode.CORDONS_UNREADABLE
    assert broken.error.startswith(f"{path}: ")
    assert says in broken.error
    assert remedy in broken.error
    assert broken.error.isprintable()
    assert file.read() == broken  # a changed message would be a changed fault


@pytest.mark.parametrize(("break_it", "says", "remedy"), BREAKS)
def test_a_broken_file_is_not_changed_for_something_in_it_would_be_lost(
    file: CordonFile, path: Path, break_it: Callable[[Path], None], says: str, remedy: str
) -> None:
    path.parent.mkdir(parents=True)
    break_it(path)
    before = path.lstat()
    for reason in ("hot", None):
        with pytest.raises(HostError) as refused:
            file.change(ONE, reason)
        assert str(refused.value).startswith(f"{path}: ")
        assert says in str(refused.value)
        assert remedy in str(refused.value)
    assert path.lstat().st_ino == before.st_ino
    assert path.lstat().st_mtime_ns == before.st_mtime_ns


def test_a_repaired_file_is_believed_again(file: CordonFile, path: Path) -> None:
    file.change(ONE, "hot")
    file.read()
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    assert file.read().trouble is not None
    path.write_bytes(good.replace(b"hot", b"tepid"))
    assert reasons(file.read()) == {ONE: "tepid"}
    assert file.read().trouble is None
    path.unlink()
    assert file.read() == Cordons()


def test_an_agent_that_starts_with_a_broken_file_sets_aside_what_it_names_and_doubts_the_rest(
    file: CordonFile, path: Path
) -> None:
    file.change(ONE, "hot")
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    started = CordonFile(path)
    broken = started.read()
    assert reasons(broken) == {ONE: ""}
    assert isinstance(broken.get(TWO), Doubt)
    path.write_text(f"{TWO}?")  # broken in another way: still nothing is taken back
    assert reasons(started.read()) == {ONE: "", TWO: ""}
    path.write_bytes(good)
    assert reasons(started.read()) == {ONE: "hot"}
    assert started.read().get(TWO) is None


def test_an_agent_that_starts_with_a_file_it_cannot_read_doubts_every_device(
    path: Path,
) -> None:
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    broken = CordonFile(path).read()
    assert broken.entries == ()
    assert isinstance(broken.get(ONE), Doubt)
    assert broken.trouble is not None


def test_the_same_text_is_not_weighed_twice(
    file: CordonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.change(ONE, "hot")
    texts: list[bytes] = []

    def counting(text: bytes) -> tuple[Cordon, ...]:
        texts.append(text)
        return parse(text)

    monkeypatch.setattr(cordons, "parse", counting)
    assert file.read() is file.read()
    assert len(texts) == 1
    file.change(TWO, "cold")
    assert reasons(file.read()) == {ONE: "hot", TWO: "cold"}


# --- places that cannot be written ----------------------------------------------------------------


def test_a_file_in_the_place_of_its_directory_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "cordons.json", tmp_path / "file" / "deep" / "cordons.json"):
        with pytest.raises(HostError, match=r"Not a directory.*host\.cordon_file"):
            CordonFile(path).change(ONE, "hot")
        assert "Not a directory" in CordonFile(path).read().error


def test_a_symlink_in_the_place_of_the_lock_is_not_followed(
    file: CordonFile, path: Path, tmp_path: Path
) -> None:
    path.parent.mkdir(parents=True)
    lock_of(path).symlink_to(tmp_path / "made")
    with pytest.raises(HostError, match=r"symlink stands in the place of .*\.lock; remove it"):
        file.change(ONE, "hot")
    assert not (tmp_path / "made").exists()


def test_the_root_directory_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="it is a directory"):
        CordonFile(Path("/")).change(ONE, "hot")


def test_a_full_disk_is_said_so_and_leaves_the_file_as_it_was(
    file: CordonFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.change(ONE, "hot")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match="no space left on that filesystem; free some"):
        file.change(TWO, "cold")
    assert path.read_bytes() == before
    assert names_in(path.parent) == {path.name, lock_of(path).name}


AS_NOBODY = """
import os, sys
from pathlib import Path
from hailo_agent.errors import HostError
from hailo_agent.host.cordons import CordonFile
from hailo_agent.core.cordon import parse
parse(b'{"version": 1, "cordons": []}')  # loads what another user may not be able to load
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
file = CordonFile(Path(sys.argv[1]))
print([cordon.reason for cordon in file.read().entries], file.read().error, sep="|")
for device_id, reason in (("pci-0000-02-00-0", None), ("pci-0000-01-00-0", None), ("soc-x", "x")):
    try:
        print(file.change(device_id, reason))
    except HostError as error:
        print(error)
"""


def as_nobody(path: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(path)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture
def public() -> Iterator[Path]:
    """Lend a directory that everybody may enter; pytest's own are for their user alone."""
    with tempfile.TemporaryDirectory(prefix="cordons-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@takes_root
def test_everybody_may_read_it_and_only_who_may_write_there_can_change_it(public: Path) -> None:
    path = public / "state" / "cordons.json"
    CordonFile(path).change(ONE, "hot")
    before = path.read_bytes()
    read, absent, lift, put = as_nobody(path)
    assert read == "['hot']|"
    assert absent == "Changed(before=None, after=None)"
    refused = f"cannot write {path}: no permission; run as root, as the agent does"
    assert (lift, put) == (refused, refused)
    assert path.read_bytes() == before
    assert as_nobody(public / "none" / "cordons.json")[-1].startswith("cannot write ")


@takes_root
def test_who_may_not_read_it_keeps_what_was_known_and_is_told(public: Path) -> None:
    path = public / "state" / "cordons.json"
    CordonFile(path).change(ONE, "hot")
    path.chmod(0o600)
    read, *changes = as_nobody(path)
    assert read.startswith(f"[]|{path}: it cannot be read: Permission denied")
    assert all("cannot be read: Permission denied; let the agent read it" in c for c in changes)
