"""`runtime.specs` on real directories, read back by the reader that shares no code with it."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from hailo_agent.core.cdi import (
    FILE_NAME,
    ContainerEdits,
    DeviceNode,
    Outcome,
    Spec,
    SpecDevice,
)
from hailo_agent.core.device import DeviceNumber
from hailo_agent.errors import SpecStoreError
from hailo_agent.runtime import reader, specs
from hailo_agent.runtime.specs import SpecStore
from hailo_agent.sim.runtime import Runtime
from hailo_agent.sim.wedge import CannotWedge, wedged

ONE, TWO = "pci-0000-01-00-0", "pci-0000-02-00-0"


def spec_of(*names: str) -> Spec:
    def edits(devices: Iterable[str]) -> ContainerEdits:
        return ContainerEdits(device_nodes=tuple(DeviceNode(path=f"/dev/{d}") for d in devices))

    return Spec(
        cdi_version="0.3.0",
        kind="hailo.ai/npu",
        devices=(
            SpecDevice(name="all", container_edits=edits(names)),
            *(SpecDevice(name=name, container_edits=edits([name])) for name in names),
        ),
    )


def numbers_of(*names: str, major: int = 507) -> Mapping[str, DeviceNumber]:
    return {name: DeviceNumber(major, minor) for minor, name in enumerate(names)}


def devices_in(path: Path) -> list[str]:
    return list(reader.load(path).devices)


def inode(path: Path) -> int:
    return path.lstat().st_ino


def open_files(directory: Path) -> set[str]:
    """Name what is open there; elsewhere pytest and its plugins open files as they like."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith(str(directory))}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "cdi"
    path.mkdir()
    return path


@pytest.fixture
def store(directory: Path) -> SpecStore:
    return SpecStore(directory=directory, search=(directory,))


# --- writing ------------------------------------------------------------------------------------


async def test_a_spec_is_written_whole_readable_by_all_and_leaves_nothing_beside_it(
    store: SpecStore, directory: Path
) -> None:
    before = os.umask(0o077)
    try:
        outcome = await store.replace(spec_of(ONE, TWO), numbers_of(ONE, TWO))
    finally:
        os.umask(before)
    assert outcome is Outcome.REPLACED
    assert names_in(directory) == ["hailo.ai-npu.json"]
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o644
    assert devices_in(store.path) == ["all", ONE, TWO]


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_an_equal_spec_is_not_written_again(store: SpecStore) -> None:
    await store.replace(spec_of(ONE), numbers_of(ONE))
    before = inode(store.path)
    assert await store.replace(spec_of(ONE), numbers_of(ONE)) is Outcome.UNCHANGED
    assert inode(store.path) == before


async def test_new_device_numbers_publish_an_equal_text_anew(store: SpecStore) -> None:
    """Readers remember the numbers they found until they see the file replaced."""
    await store.replace(spec_of(ONE), numbers_of(ONE))
    before, text = inode(store.path), contents(store.path)
    outcome = await store.replace(spec_of(ONE), numbers_of(ONE, major=506))
    assert outcome is Outcome.REPLACED
    assert contents(store.path) == text
    assert inode(store.path) != before


def contents(path: Path) -> bytes:
    return path.read_bytes()


async def test_after_a_restart_an_equal_spec_is_published_once_and_then_left_alone(
    store: SpecStore, directory: Path
) -> None:
    """What numbers readers remember is not known to a new process."""
    await store.replace(spec_of(ONE), numbers_of(ONE))
    again = SpecStore(directory=directory, search=(directory,))
    assert await again.replace(spec_of(ONE), numbers_of(ONE)) is Outcome.REPLACED
    assert await again.replace(spec_of(ONE), numbers_of(ONE)) is Outcome.UNCHANGED


async def test_no_spec_is_no_file(store: SpecStore, directory: Path) -> None:
    await store.replace(spec_of(ONE), numbers_of(ONE))
    assert await store.replace(None, {}) is Outcome.REMOVED
    assert names_in(directory) == []
    assert await store.replace(None, {}) is Outcome.UNCHANGED
    assert store.is_intact()


async def test_a_runtime_that_watches_the_directory_sees_every_publication(
    store: SpecStore, directory: Path
) -> None:
    with Runtime([directory]) as runtime:
        for names in ([ONE], [ONE, TWO], [TWO]):
            await store.replace(spec_of(*names), numbers_of(*names))
            assert sorted(runtime.devices) == sorted(
                f"hailo.ai/npu={name}" for name in ["all", *names]
            )
            assert runtime.errors == {}
        refreshed = runtime.refreshes
        await store.replace(spec_of(TWO), numbers_of(TWO, major=400))
        assert runtime.devices
        assert runtime.refreshes > refreshed
        await store.replace(None, {})
        assert runtime.devices == ()


async def test_whoever_reads_while_it_is_written_finds_a_whole_spec(
    store: SpecStore, directory: Path
) -> None:
    await store.replace(spec_of(ONE), numbers_of(ONE))
    over, seen, failures = threading.Event(), set[int](), list[BaseException]()

    def read() -> None:
        while not over.is_set():
            try:
                seen.add(len(reader.load(store.path).devices))
                for name in names_in(directory):
                    assert name == FILE_NAME or not name.endswith((".json", ".yaml"))
            except BaseException as error:  # noqa: BLE001 - told to the test below
                failures.append(error)
                return

    reading = threading.Thread(target=read)
    reading.start()
    try:
        for number in range(150):
            names = [f"pci-0000-{n:02x}-00-0" for n in range(1, 2 + number % 40)]
            await store.replace(spec_of(*names), numbers_of(*names))
    finally:
        over.set()
        reading.join()
    assert failures == []
    assert len(seen) > 3


# --- what others do to it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["deleted", "edited", "emptied", "replaced", "rewritten", "moved-away"]
)
async def test_what_somebody_did_to_the_spec_is_noticed_and_undone(
    store: SpecStore, tmp_path: Path, how: str
) -> None:
    await store.replace(spec_of(ONE), numbers_of(ONE))
    text = contents(store.path)
    assert store.is_intact()
    disturb(store.path, how, tmp_path)
    assert not store.is_intact()
    assert await store.replace(spec_of(ONE), numbers_of(ONE)) is Outcome.RESTORED
    assert contents(store.path) == text
    assert store.is_intact()
    assert await store.replace(spec_of(ONE), numbers_of(ONE)) is Outcome.UNCHANGED


def disturb(path: Path, how: str, elsewhere: Path) -> None:
    text = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "edited":
        path.write_bytes(text.replace(b'"rw"', b'"r"'))
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "replaced":
        path.unlink()
        path.write_bytes(b'{"cdiVersion": "0.3.0"}')
    elif how == "rewritten":
        path.unlink()
        path.write_bytes(text)
    else:
        path.rename(elsewhere / "away")


async def test_a_change_of_ours_after_a_change_of_others_is_a_change(store: SpecStore) -> None:
    await store.replace(spec_of(ONE), numbers_of(ONE))
    disturb(store.path, "deleted", store.directory)
    assert await store.replace(spec_of(ONE, TWO), numbers_of(ONE, TWO)) is Outcome.REPLACED


async def test_a_file_in_the_place_of_no_spec_is_removed(store: SpecStore) -> None:
    await store.replace(None, {})
    put(store.path, b"{}")
    assert not store.is_intact()
    assert await store.replace(None, {}) is Outcome.REMOVED


def put(path: Path, text: bytes) -> None:
    path.write_bytes(text)


@pytest.mark.parametrize("what", ["symlink", "dangling", "loop", "fifo", "socket", "huge"])
async def test_whatever_stands_in_its_place_is_replaced_and_not_followed(
    store: SpecStore, tmp_path: Path, what: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    with socket.socket(socket.AF_UNIX) as standing:
        stand_in(store.path, what, victim, standing)
        await store.replace(spec_of(ONE), numbers_of(ONE))
    assert stat.S_ISREG(store.path.lstat().st_mode)
    assert devices_in(store.path) == ["all", ONE]
    assert contents(victim) == b"precious"


def stand_in(path: Path, what: str, victim: Path, standing: socket.socket) -> None:
    if what == "symlink":
        path.symlink_to(victim)
    elif what == "dangling":
        path.symlink_to("nowhere")
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        before = Path.cwd()
        os.chdir(path.parent)  # the path may be longer than a socket's address
        try:
            standing.bind(path.name)
        finally:
            os.chdir(before)
    else:
        path.write_bytes(b"0" * 10_000_000)


async def test_a_directory_in_its_place_is_told_to_be_removed_and_costs_no_descriptor(
    store: SpecStore,
) -> None:
    make(store.path)
    for _ in range(3):
        with pytest.raises(SpecStoreError, match="a directory stands in its place; remove it"):
            await store.replace(spec_of(ONE), numbers_of(ONE))
    for _ in range(5):
        with pytest.raises(SpecStoreError):
            await store.replace(spec_of(ONE), numbers_of(ONE))
        assert await store.covered(spec_of(ONE), numbers_of(ONE)) == frozenset()
    assert open_files(store.directory) == set()


def make(directory: Path) -> None:
    directory.mkdir()


# --- where it cannot be written -----------------------------------------------------------------


async def test_a_missing_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    store = SpecStore(directory=tmp_path / "run" / "cdi", search=())
    await store.replace(spec_of(ONE), numbers_of(ONE))
    assert devices_in(store.path) == ["all", ONE]
    assert stat.S_IMODE(store.directory.stat().st_mode) & 0o755 == 0o755


async def test_a_directory_that_vanishes_is_made_again(store: SpecStore) -> None:
    await store.replace(spec_of(ONE), numbers_of(ONE))
    store.path.unlink()
    store.directory.rmdir()
    assert not store.is_intact()
    assert await store.replace(spec_of(ONE), numbers_of(ONE)) is Outcome.RESTORED
    assert devices_in(store.path) == ["all", ONE]


async def test_a_missing_directory_stays_missing_while_there_is_nothing_to_write(
    tmp_path: Path,
) -> None:
    store = SpecStore(directory=tmp_path / "cdi", search=(tmp_path / "cdi",))
    assert await store.replace(None, {}) is Outcome.UNCHANGED
    assert await store.foreign_names() == ()
    assert await store.remove_leftovers() == ()
    assert names_in(tmp_path) == []


async def test_a_file_where_the_directory_should_be_is_said_in_words(tmp_path: Path) -> None:
    put(tmp_path / "cdi", b"")
    store = SpecStore(directory=tmp_path / "cdi", search=())
    with pytest.raises(SpecStoreError, match="not a directory") as raised:
        await store.replace(spec_of(ONE), numbers_of(ONE))
    assert "runtime.cdi_dir" in str(raised.value)
    assert "\n" not in str(raised.value)


WRITE_IN_POVERTY = """
import asyncio, ctypes, os, subprocess, sys
from pathlib import Path
from hailo_agent.core.cdi import ContainerEdits, DeviceNode, Spec, SpecDevice
from hailo_agent.core.device import DeviceNumber
from hailo_agent.errors import SpecStoreError
from hailo_agent.runtime.specs import SpecStore

def spec(name):
    edits = ContainerEdits(device_nodes=(DeviceNode(path=f"/dev/{name}"),))
    return Spec(cdi_version="0.3.0", kind="hailo.ai/npu",
                devices=(SpecDevice(name=name, container_edits=edits),))

directory, how = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(directory)], check=True)
store = SpecStore(directory=directory, search=())
asyncio.run(store.replace(spec("a"), {"a": DeviceNumber(1, 1)}))
if how == "read-only":
    subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
elif how == "full":
    try:
        (directory / "ballast").write_bytes(b"0" * 100_000)
    except OSError:
        pass
else:
    directory.chmod(0o500)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0

async def main():
    both = spec("b")
    try:
        await store.replace(both, {"b": DeviceNumber(1, 2)})
    except SpecStoreError as error:
        print(error)
    print(sorted(await store.covered(spec("a"), {"a": DeviceNumber(1, 1)})))
    print(sorted(p.name for p in directory.iterdir() if p.name != "ballast"))
    if how == "full":
        (directory / "ballast").unlink()
    elif how == "read-only":
        subprocess.run(["mount", "-o", "remount,rw", str(directory)], check=True)
    else:
        directory.chmod(0o700)
    print(await store.replace(both, {"b": DeviceNumber(1, 2)}))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("read-only", "mounted read-only; mount it writable or set runtime.cdi_dir"),
        ("full", "no space left on that filesystem; free some"),
        ("denied", "no permission; run as root or set runtime.cdi_dir"),
    ],
)
def test_what_cannot_be_written_is_told_with_its_remedy_and_leaves_the_old_spec_whole(
    directory: Path, how: str, reason: str
) -> None:
    """On a filesystem of its own, in namespaces of its own."""
    command = ["unshare", "-U", "-r", "-m"]
    if subprocess.run([*command, "true"], check=False, timeout=10).returncode:
        pytest.skip("user namespaces are not permitted here")
    done = subprocess.run(
        [*command, sys.executable, "-c", WRITE_IN_POVERTY, str(directory), how],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    said, covered, left, outcome = done.stdout.splitlines()
    assert said.startswith(f"cannot write {directory}/hailo.ai-npu.json: ")
    assert reason in said
    assert covered == "['a']"
    assert left == "['hailo.ai-npu.json']"
    assert outcome == Outcome.REPLACED.value


async def test_a_directory_that_hangs_costs_a_deadline_and_not_the_agent(
    store: SpecStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specs, "_DEADLINE_SECONDS", 0.3)
    await store.replace(spec_of(ONE), numbers_of(ONE))
    try:
        hanging = wedged(store.path)
        hanging.__enter__()
    except CannotWedge as error:
        pytest.skip(str(error))
    try:
        started_at = time.monotonic()
        with pytest.raises(SpecStoreError, match=r"does not answer within 0\.3 s"):
            await store.replace(spec_of(TWO), numbers_of(TWO))
        assert time.monotonic() - started_at < 3.0
    finally:
        hanging.__exit__(None, None, None)
    await store.replace(spec_of(TWO), numbers_of(TWO))
    assert devices_in(store.path) == ["all", TWO]


# --- what the disk covers -----------------------------------------------------------------------


async def test_only_what_the_file_says_of_the_same_numbers_is_covered(store: SpecStore) -> None:
    await store.replace(spec_of(ONE, TWO), numbers_of(ONE, TWO))
    everything = numbers_of(ONE, TWO, "pci-0000-03-00-0")
    assert await store.covered(spec_of(*everything), everything) == {ONE, TWO}
    moved = {**everything, TWO: DeviceNumber(400, 1)}
    assert await store.covered(spec_of(*everything), moved) == {ONE}
    assert await store.covered(None, {}) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"devices": 1}',
        b'{"devices": [1]}',
        b'{"devices": [{}]}',
        b'{"devices": [{"name": ["a"]}]}',
        b"[" * 5000,
    ],
)
async def test_a_file_that_is_no_spec_covers_nothing(store: SpecStore, text: bytes) -> None:
    put(store.path, text)
    assert await store.covered(spec_of(ONE), numbers_of(ONE)) == frozenset()
    assert await store.replace(spec_of(ONE), numbers_of(ONE)) is Outcome.REPLACED


# --- leftovers ----------------------------------------------------------------------------------


async def test_what_we_left_elsewhere_is_cleaned_up_and_nothing_else(tmp_path: Path) -> None:
    here, old, link = tmp_path / "here", tmp_path / "old", tmp_path / "link"
    make(here)
    make(old)
    link.symlink_to(here)
    await SpecStore(directory=old, search=()).replace(spec_of(ONE), numbers_of(ONE))
    foreign = other_spec("hailo.ai/npu", "card0")
    put(old / "vendor.json", foreign)
    store = SpecStore(directory=here, search=(old, link, tmp_path / "absent"))
    await store.replace(spec_of(ONE), numbers_of(ONE))
    put(here / ".hailo.ai-npu.json.0123abcd.tmp", b"half a spe")
    put(here / ".hailo.ai-npu.json.swp", b"an editor's")

    removed = await store.remove_leftovers()

    assert {path.relative_to(tmp_path) for path in removed} == {
        Path("here/.hailo.ai-npu.json.0123abcd.tmp"),
        Path("old/hailo.ai-npu.json"),
    }
    assert names_in(here) == [".hailo.ai-npu.json.swp", "hailo.ai-npu.json"]
    assert names_in(old) == ["vendor.json"]
    assert await store.remove_leftovers() == ()


def other_spec(kind: str, *names: str) -> bytes:
    devices = [{"name": name, "containerEdits": {"env": ["A=B"]}} for name in names]
    return json.dumps({"cdiVersion": "0.3.0", "kind": kind, "devices": devices}).encode()


@pytest.mark.parametrize(
    "text", [b"", b"not json", other_spec("hailo.ai/npu", "card0"), other_spec("x.com/y", ONE)]
)
async def test_a_file_of_our_name_that_we_did_not_write_is_not_ours_to_remove(
    tmp_path: Path, text: bytes
) -> None:
    old = tmp_path / "old"
    make(old)
    put(old / FILE_NAME, text)
    store = SpecStore(directory=tmp_path / "cdi", search=(old,))
    assert await store.remove_leftovers() == ()
    assert contents(old / FILE_NAME) == text


# --- the specs of others ------------------------------------------------------------------------


async def test_devices_of_our_kind_in_files_of_others_are_listed_with_their_paths(
    store: SpecStore, directory: Path, tmp_path: Path
) -> None:
    other = tmp_path / "etc"
    make(other)
    store.search = (other, directory, tmp_path / "absent")
    await store.replace(spec_of(ONE), numbers_of(ONE))
    put(directory / "vendor.json", other_spec("hailo.ai/npu", ONE, "card0"))
    put(directory / "nvidia.json", other_spec("nvidia.com/gpu", ONE))
    put(
        other / "b.yaml",
        b"cdiVersion: 0.3.0\nkind: hailo.ai/npu\ndevices:\n- name: all\n"
        b"  containerEdits: {env: [A=B]}\n",
    )
    assert await store.foreign_names() == (
        (str(directory / "vendor.json"), "card0"),
        (str(directory / "vendor.json"), ONE),
        (str(other / "b.yaml"), "all"),
    )
    put(directory / "vendor.json", other_spec("hailo.ai/npu", TWO))
    assert (str(directory / "vendor.json"), TWO) in await store.foreign_names()
    (directory / "vendor.json").unlink()
    assert [path for path, _ in await store.foreign_names()] == [str(other / "b.yaml")]


async def test_rubbish_among_the_specs_of_others_neither_hangs_nor_fails(
    store: SpecStore, directory: Path
) -> None:
    rubbish(directory)
    put(directory / "vendor.json", other_spec("hailo.ai/npu", "card0"))
    for _ in range(3):
        assert await store.foreign_names() == ((str(directory / "vendor.json"), "card0"),)
    assert open_files(directory) == set()


def rubbish(directory: Path) -> None:
    os.mkfifo(directory / "fifo.json")
    (directory / "loop.json").symlink_to("loop.json")
    (directory / "dangling.yaml").symlink_to("nowhere")
    (directory / "directory.json").mkdir()
    (directory / "huge.json").write_bytes(b"[" * 6_000_000)
    (directory / "bomb.yaml").write_bytes(b"a: &a [x]\nb: [*a, *a]\n")
    (directory / "deep.yaml").write_bytes(b"[" * 20_000)
    (directory / "latin.json").write_bytes(b'{"kind": "\xff"}')
    (directory / "empty.json").write_bytes(b"")
    (directory / "notes.txt").write_bytes(other_spec("hailo.ai/npu", "card1"))
    with suppress(OSError):  # not every filesystem takes the name
        Path(os.fsdecode(os.fsencode(directory) + b"/\xff.json")).write_bytes(b"{}")


async def test_the_specs_of_others_are_never_touched(store: SpecStore, directory: Path) -> None:
    put(directory / "vendor.json", other_spec("hailo.ai/npu", ONE))
    put(directory / "broken.json", b"{")
    before = {name: contents(directory / name) for name in names_in(directory)}
    await store.remove_leftovers()
    await store.replace(spec_of(ONE), numbers_of(ONE))
    await store.replace(None, {})
    assert {name: contents(directory / name) for name in names_in(directory)} == before


async def test_many_specs_of_others_are_parsed_once(store: SpecStore, directory: Path) -> None:
    for number in range(300):
        put(directory / f"vendor{number}.json", other_spec("x.com/y", f"d{number}"))
    await store.foreign_names()
    started_at = time.process_time()
    for _ in range(10):
        await store.foreign_names()
    assert (time.process_time() - started_at) / 10 < 0.1
