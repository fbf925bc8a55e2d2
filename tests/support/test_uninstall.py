"""`support.uninstall` on real files: what is ours goes, whatever else is there stays as it was."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from hailo_agent.core.cdi import FILE_NAME
from hailo_agent.sim.node import temporary_root
from hailo_agent.support import uninstall
from hailo_agent.support.uninstall import Outcome, Places, Step, sweep

ONE, TWO = "pci-0000-01-00-0", "pci-0000-02-00-0"
OURS = (
    '{"cdiVersion":"0.4.0","kind":"hailo.ai/npu","devices":['
    '{"name":"all","containerEdits":{"deviceNodes":[{"path":"/dev/hailo0"}]}},'
    f'{{"name":"{ONE}","containerEdits":{{"deviceNodes":[{{"path":"/dev/hailo0"}}]}}}}]}}'
)
THEIRS = OURS.replace(ONE, "hailo0")
CORDONS = '{"version": 1, "cordons": []}'
takes_mounts = pytest.mark.skipif(
    os.geteuid() != 0
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0,
    reason="a read-only mount takes root and unshare",
)


@pytest.fixture
async def root() -> Iterator[Path]:  # type: ignore[misc]
    async with temporary_root() as path:
        yield path


@pytest.fixture
def places(root: Path) -> Places:
    """Give a node's directories as they are before an agent ever ran."""
    for directory in ("run", "run/cdi", "etc/cdi", "var/lib", "plugins"):
        (root / directory).mkdir(parents=True)
    home = root / "run" / "hailo-agent"
    return Places(
        cdi_dirs=(root / "run/cdi", root / "etc/cdi"),
        plugin_dir=root / "plugins",
        endpoints=frozenset({"hailo.ai_npu.sock", "example.com_chip.sock"}),
        links_dir=home / "devices",
        monitor_dir=home / "monitor",
        cordon_file=root / "var/lib/hailo-agent/cordons.json",
        agent_socket=home / "agent.sock",
        web_socket=home / "web.sock",
    )


def listing(root: Path) -> dict[str, str]:
    """Tell everything below a directory: kinds, modes, contents, targets."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        what = stat.filemode(mode)
        if stat.S_ISREG(mode):
            what += f" {path.read_bytes()!r}"
        elif stat.S_ISLNK(mode):
            what += f" {path.readlink()}"
        found[str(path.relative_to(root))] = what
    return found


def dead_socket(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@contextmanager
def live_socket(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, kind) as alive:
        alive.bind(str(path))
        if kind == socket.SOCK_STREAM:
            alive.listen()
        yield


def write(path: Path, text: str = "something of somebody's") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def link(path: Path, target: str | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def leave_everything(places: Places) -> None:
    """Leave what an agent leaves that is killed at the worst moments."""
    run, etc = places.cdi_dirs
    write(run / FILE_NAME, OURS)
    write(run / f".{FILE_NAME}.0123abcd.tmp", OURS[:40])
    write(etc / FILE_NAME, OURS)
    write(etc / f".{FILE_NAME}.89abcdef.tmp", "")
    for name in ("hailo.ai_npu.sock", ".hailo.ai_npu.sock.0123abcd", "example.com_chip.sock"):
        dead_socket(places.plugin_dir / name)
    dead_socket(places.plugin_dir / "hailo.ai_h10.sock")  # of settings that are forgotten
    link(places.links_dir / ONE, "/dev/hailo0")
    link(places.links_dir / f".{TWO}.0123abcd", "/dev/hailo1")
    for name in (ONE, "all", ".old-0123456789abcdef", ".new-0123456789abcdef"):
        directory = places.monitor_dir / name
        directory.mkdir(parents=True)
        write(directory / "1234")
    write(places.cordon_file, CORDONS)
    write(places.cordon_file.with_name(".cordons.json.lock"), "")
    write(places.cordon_file.with_name(".cordons.json.0123abcd.tmp"), CORDONS[:9])
    for path in places.sockets:
        dead_socket(path)
    dead_socket(places.sockets[0].with_name(".agent.sock.0123abcd"))
    dead_socket(places.sockets[1].with_name(".0123abcd"))


def swept(places: Places, *, dry_run: bool = False) -> list[Step]:
    return list(sweep(places, dry_run=dry_run))


def told(steps: Iterable[Step], outcome: Outcome) -> dict[Path, str]:
    return {step.path: step.why for step in steps if step.outcome is outcome}


# --- all of it ------------------------------------------------------------------------------------


def test_all_that_an_agent_left_is_removed_and_each_thing_is_told_once(
    root: Path, places: Places
) -> None:
    before = listing(root)
    leave_everything(places)
    left = {root / name for name in listing(root).keys() - before.keys()}
    steps = swept(places)
    assert listing(root) == before
    assert {step.outcome for step in steps} == {Outcome.REMOVED}
    inside_monitor = {path for path in left if path.name == "1234"}
    assert [step.path for step in steps] == list(dict.fromkeys(step.path for step in steps))
    assert {step.path for step in steps} == left - inside_monitor


def test_the_second_time_there_is_nothing_to_do(places: Places) -> None:
    leave_everything(places)
    swept(places)
    assert swept(places) == []


def test_on_a_node_that_never_had_an_agent_nothing_is_found_nor_made(
    root: Path, places: Places
) -> None:
    before = listing(root)
    assert swept(places) == []
    shutil.rmtree(root / "plugins")
    assert swept(places) == []
    assert listing(root) == {name: what for name, what in before.items() if name != "plugins"}


def test_a_dry_run_tells_the_same_steps_and_touches_nothing(root: Path, places: Places) -> None:
    leave_everything(places)
    before = listing(root)
    announced = swept(places, dry_run=True)
    assert listing(root) == before
    assert announced == swept(places)


def unless_called(
    refused: set[str], do: Callable[..., None], name: str, *to: str, **where: int
) -> None:
    if name[:5] in refused:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    do(name, *to, **where)


def test_a_machine_that_could_not_be_removed_is_known_again(
    root: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(root)
    machine = places.links_dir.parent / "machine"
    for name in (".hailo-agent-machine", "dev/null", "sys/class/x/dev"):
        write(machine / name)

    # First it cannot be taken to pieces, then the pieces cannot be removed.
    for call, refused in (("rename", {"dev", "sys"}), ("rmdir", {".old-"})):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, partial(unless_called, refused, getattr(os, call)))
            assert machine in told(swept(places), Outcome.STUCK)
    assert not told(swept(places), Outcome.KEPT)
    assert listing(root) == before


# --- what is not ours -----------------------------------------------------------------------------


def a_spec_of_others(places: Places) -> Path:
    path = places.cdi_dirs[0] / FILE_NAME
    write(path, THEIRS)
    return path


def a_broken_spec(places: Places) -> Path:
    path = places.cdi_dirs[0] / FILE_NAME
    write(path, OURS[:-1])
    return path


def a_spec_of_another_kind(places: Places) -> Path:
    path = places.cdi_dirs[1] / FILE_NAME
    write(path, OURS.replace("hailo.ai/npu", "hailo.ai/vpu"))
    return path


def a_link_in_the_place_of_the_spec(places: Places) -> Path:
    write(places.cdi_dirs[0] / "elsewhere", OURS)
    path = places.cdi_dirs[0] / FILE_NAME
    link(path, "elsewhere")
    return path


def a_directory_in_the_place_of_the_spec(places: Places) -> Path:
    path = places.cdi_dirs[0] / FILE_NAME
    write(path / "kept")
    return path


def a_pipe_in_the_place_of_the_spec(places: Places) -> Path:
    path = places.cdi_dirs[0] / FILE_NAME
    os.mkfifo(path)
    return path


def a_link_called_like_a_temporary_spec(places: Places) -> Path:
    path = places.cdi_dirs[0] / f".{FILE_NAME}.0123abcd.tmp"
    link(path, "/etc/passwd")
    return path


def a_file_called_like_an_endpoint(places: Places) -> Path:
    path = places.plugin_dir / "hailo.ai_npu.sock"
    write(path)
    return path


def a_link_called_like_an_endpoint(places: Places) -> Path:
    dead_socket(places.plugin_dir / "other.sock")
    path = places.plugin_dir / "hailo.ai_npu.sock"
    link(path, "other.sock")
    return path


def a_file_called_like_a_device(places: Places) -> Path:
    path = places.links_dir / ONE
    write(path)
    return path


def a_file_called_like_a_monitor(places: Places) -> Path:
    path = places.monitor_dir / ONE
    write(path)
    return path


def a_link_called_like_a_monitor(places: Places) -> Path:
    write(places.cordon_file.parent.parent / "valuable" / "file")
    path = places.monitor_dir / "all"
    link(path, places.cordon_file.parent.parent / "valuable")
    return path


def a_link_in_the_place_of_the_cordons(places: Places) -> Path:
    write(places.cordon_file.with_name("kept"), CORDONS)
    link(places.cordon_file, "kept")
    return places.cordon_file


def a_directory_in_the_place_of_the_cordons(places: Places) -> Path:
    places.cordon_file.mkdir(parents=True)
    return places.cordon_file


def a_file_in_the_place_of_the_agents_socket(places: Places) -> Path:
    write(places.sockets[0])
    return places.sockets[0]


def a_file_in_the_place_of_the_links(places: Places) -> Path:
    write(places.links_dir)
    return places.links_dir


@pytest.mark.parametrize(
    "plant",
    [
        a_spec_of_others,
        a_broken_spec,
        a_spec_of_another_kind,
        a_link_in_the_place_of_the_spec,
        a_directory_in_the_place_of_the_spec,
        a_pipe_in_the_place_of_the_spec,
        a_link_called_like_a_temporary_spec,
        a_file_called_like_an_endpoint,
        a_link_called_like_an_endpoint,
        a_file_called_like_a_device,
        a_file_called_like_a_monitor,
        a_link_called_like_a_monitor,
        a_link_in_the_place_of_the_cordons,
        a_directory_in_the_place_of_the_cordons,
        a_file_in_the_place_of_the_agents_socket,
        a_file_in_the_place_of_the_links,
    ],
)
def test_what_only_has_a_name_of_ours_is_left_alone_and_told(
    root: Path, places: Places, plant: Callable[[Places], Path]
) -> None:
    planted = plant(places)
    before = listing(root)
    steps = swept(places)
    assert listing(root) == before
    assert told(steps, Outcome.KEPT)[planted]
    assert not told(steps, Outcome.STUCK)
    assert not told(steps, Outcome.REMOVED)


STRANGE = (
    "run/cdi/nvidia.yaml",
    "run/cdi/hailo.ai-npu.yaml",
    "run/cdi/hailo.ai-npu.json.bak",
    "run/cdi/.hailo.ai-npu.json.0123abcd.tmp2",
    "run/cdi/.hailo.ai-npu.json.0123ABCD.tmp",
    "etc/cdi/hailo.json",
    "plugins/kubelet_internal_checkpoint",
    "plugins/DEPRECATION",
    "run/hailo-agent/notes",
    "run/hailo-agent/devices/README",
    "run/hailo-agent/devices/pci-0000-01-00-0.txt",
    "run/hailo-agent/monitor/allowed",
    "run/hailo-agent/monitor/.old-0123",
    "var/lib/hailo-agent/cordons.json.bak",
    "var/lib/hailo-agent/.cordons.json.swp",
)


def test_strangers_beside_ours_stay_and_so_does_the_directory_they_are_in(
    root: Path, places: Places
) -> None:
    for name in STRANGE:
        write(root / name)
    for name in ("other.sock", "example.com_other.sock", "hailo.sock", "hailo-h10.sock"):
        dead_socket(root / "plugins" / name)
    dead_socket(places.sockets[0].with_name("other.sock"))
    link(places.links_dir / "hailo0", "/dev/hailo0")
    before = listing(root)
    leave_everything(places)
    steps = swept(places)
    assert listing(root) == before
    assert not told(steps, Outcome.STUCK)
    kept = told(steps, Outcome.KEPT)
    assert set(kept) == set(places.own_dirs)
    assert "README" in kept[places.links_dir]


def test_no_directory_is_removed_that_is_called_otherwise_and_might_be_anybodys(
    root: Path, places: Places
) -> None:
    elsewhere = Places(
        cdi_dirs=(),
        plugin_dir=root / "plugins",
        endpoints=frozenset(),
        links_dir=root / "dev" / "hailo-by-id",
        monitor_dir=root / "var" / "monitor",
        cordon_file=root / "etc" / "operators" / "cordons.json",
        agent_socket=root / "sockets" / "agent.sock",
        web_socket=None,
    )
    for directory in ("dev", "etc/operators", "sockets"):
        (root / directory).mkdir()
    before = listing(root)
    link(elsewhere.links_dir / ONE, "/dev/hailo0")
    (elsewhere.monitor_dir / ONE).mkdir(parents=True)
    write(elsewhere.cordon_file, CORDONS)
    dead_socket(elsewhere.sockets[0])
    assert {step.outcome for step in swept(elsewhere)} == {Outcome.REMOVED}
    assert listing(root) == before


# --- symlinks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run/hailo-agent", "var/lib/hailo-agent"])
def test_a_home_that_is_a_symlink_is_not_entered_and_that_is_said_once(
    root: Path, places: Places, name: str
) -> None:
    leave_everything(places)
    target = root / "target"
    (root / name).rename(target)
    (root / name).symlink_to(target)
    before = listing(target)
    steps = swept(places)
    assert listing(target) == before
    assert list(told(steps, Outcome.STUCK)) == [root / name]
    assert "symlink" in told(steps, Outcome.STUCK)[root / name]
    assert (root / name).is_symlink()


@pytest.mark.parametrize("name", ["devices", "monitor"])
def test_a_directory_of_ours_that_is_a_symlink_is_not_entered(
    root: Path, places: Places, name: str
) -> None:
    target = root / "target"
    (target / ONE).mkdir(parents=True)
    link(target / TWO, "/dev/hailo1")
    link(root / "run" / "hailo-agent" / name, target)
    before = listing(root)
    steps = swept(places)
    assert listing(root) == before
    assert set(told(steps, Outcome.STUCK)) == {root / "run" / "hailo-agent" / name}


def test_a_shared_directory_is_found_behind_the_symlink_that_the_distribution_made(
    root: Path, places: Places
) -> None:
    (root / "var" / "run").symlink_to("../run")
    leave_everything(places)
    both = Places(
        cdi_dirs=(root / "var" / "run" / "cdi", root / "run" / "cdi"),
        plugin_dir=places.plugin_dir,
        endpoints=frozenset(),
        links_dir=places.links_dir,
        monitor_dir=places.monitor_dir,
        cordon_file=places.cordon_file,
        agent_socket=None,
        web_socket=None,
    )
    for dry_run in (True, False):
        removed = told(swept(both, dry_run=dry_run), Outcome.REMOVED)
        assert [path for path in removed if path.name == FILE_NAME] == [
            root / "var" / "run" / "cdi" / FILE_NAME
        ]


# --- what containers leave ------------------------------------------------------------------------


def test_whatever_a_container_made_in_its_directory_goes_and_nothing_it_points_to(
    root: Path, places: Places
) -> None:
    write(root / "valuable")
    before = listing(root)
    own = places.monitor_dir / ONE
    own.mkdir(parents=True)
    link(own / "out", root)
    link(own / "dangling", "/nowhere")
    os.link(root / "valuable", own / "hard")
    os.mkfifo(own / "pipe")
    dead_socket(own / "socket")
    write(own / "new\nline\x1b[31m")
    write(Path(os.fsdecode(os.fsencode(own) + b"/\xff\xfe")))
    (own / "closed").mkdir(mode=0)
    deep = own
    for _ in range(400):
        deep = deep / "d"
    deep.mkdir(parents=True)
    assert {step.outcome for step in swept(places)} == {Outcome.REMOVED}
    assert listing(root) == before


def test_a_tree_deeper_than_any_path_or_stack_goes_as_well(root: Path, places: Places) -> None:
    before = listing(root)
    top = places.monitor_dir / ONE
    top.mkdir(parents=True)
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(5_000):
        os.mkdir("deep", dir_fd=descriptor)
        inner = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    assert not told(swept(places), Outcome.STUCK)
    assert listing(root) == before


def test_a_container_that_never_stops_writing_is_told_and_keeps_nothing_else(
    root: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_everything(places)
    unlink = os.unlink

    def and_write_again(name: str, *, dir_fd: int | None = None) -> None:
        unlink(name, dir_fd=dir_fd)
        if name == "1234" and Path(f"/proc/self/fd/{dir_fd}").readlink().name == ONE:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=dir_fd))

    monkeypatch.setattr(os, "unlink", and_write_again)
    steps = swept(places)
    assert set(told(steps, Outcome.STUCK)) == {places.monitor_dir / ONE}
    left = {name for name in listing(root) if "hailo-agent" in name}
    assert left == {
        *("run/hailo-agent", "run/hailo-agent/monitor"),
        *(f"run/hailo-agent/monitor/{ONE}", f"run/hailo-agent/monitor/{ONE}/1234"),
    }


# --- what fails -----------------------------------------------------------------------------------


def test_what_somebody_else_removes_meanwhile_is_no_error(
    root: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(root)
    leave_everything(places)
    answers, unlink, rmdir = uninstall._answers, os.unlink, os.rmdir

    def first(name: str, *, dir_fd: int | None = None) -> None:
        unlink(name, dir_fd=dir_fd)
        unlink(name, dir_fd=dir_fd)

    def first_directory(name: str, *, dir_fd: int | None = None) -> None:
        rmdir(name, dir_fd=dir_fd)
        rmdir(name, dir_fd=dir_fd)

    def first_socket(top: int, name: str) -> bool:
        unlink(name, dir_fd=top)
        return answers(top, name)

    monkeypatch.setattr(os, "unlink", first)
    monkeypatch.setattr(os, "rmdir", first_directory)
    monkeypatch.setattr(uninstall, "_answers", first_socket)
    assert not told(swept(places), Outcome.STUCK)
    assert listing(root) == before


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO])
def test_what_cannot_be_removed_is_told_with_a_remedy_and_keeps_nothing_else(
    root: Path, places: Places, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    before = listing(root)
    leave_everything(places)
    unlink = os.unlink

    def refuse(name: str, *, dir_fd: int | None = None) -> None:
        if name == FILE_NAME:
            raise OSError(code, os.strerror(code))
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    stuck = told(swept(places), Outcome.STUCK)
    assert set(stuck) == {directory / FILE_NAME for directory in places.cdi_dirs}
    assert all("; " in why for why in stuck.values())
    after = listing(root)
    assert after.keys() - before.keys() == {f"run/cdi/{FILE_NAME}", f"etc/cdi/{FILE_NAME}"}


def test_a_directory_in_a_containers_directory_that_cannot_be_emptied_keeps_nothing_beside_it(
    root: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_everything(places)
    own = places.monitor_dir / ONE
    for name in ("a", "b", "c"):
        write(own / name / "file", name)
    unlink = os.unlink

    def refuse(name: str, *, dir_fd: int | None = None) -> None:
        if name == "file" and Path(f"/proc/self/fd/{dir_fd}/file").read_text() == "b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    stuck = told(swept(places), Outcome.STUCK)
    assert list(stuck) == [own]
    assert "DAC_OVERRIDE" in stuck[own]
    left = [path for path in places.monitor_dir.rglob("*") if path.is_file()]
    assert [path.read_text() for path in left] == ["b"]
    monkeypatch.undo()
    assert not told(swept(places), Outcome.STUCK)  # it is known under its new name
    assert not (root / "run" / "hailo-agent").exists()


@takes_mounts
def test_a_directory_that_is_mounted_read_only_is_named_and_the_rest_goes(
    root: Path, places: Places
) -> None:
    before = listing(root)
    leave_everything(places)
    program = f"""
import sys
from pathlib import Path
from hailo_agent.support.uninstall import Places, sweep
root = Path({str(root)!r})
places = {places!r}
for step in sweep(places, dry_run=False):
    if step.outcome != "removed":
        print(step.outcome, step.path, step.why)
""".replace("PosixPath", "Path")
    commands = f"""
set -e
mount --bind {root}/etc/cdi {root}/etc/cdi
mount -o remount,bind,ro {root}/etc/cdi
mount --bind {root}/var/lib/hailo-agent {root}/var/lib/hailo-agent
mount -t tmpfs none {root}/run/hailo-agent/monitor/all
echo precious > {root}/run/hailo-agent/monitor/all/file
mkdir {root}/elsewhere
echo of the same filesystem > {root}/elsewhere/file
mount --bind {root}/elsewhere {root}/run/hailo-agent/monitor/{ONE}
{sys.executable} -c "$PROGRAM"
cat {root}/run/hailo-agent/monitor/all/file {root}/elsewhere/file >&2
"""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", commands],
        env={**os.environ, "PROGRAM": program},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "precious\nof the same filesystem\n"
    said = dict(line.split(" ", 2)[1:] for line in done.stdout.splitlines())
    assert set(said) == {
        f"{root}/etc/cdi/{FILE_NAME}",
        f"{root}/etc/cdi/.{FILE_NAME}.89abcdef.tmp",
        f"{root}/var/lib/hailo-agent",
        f"{root}/run/hailo-agent/monitor/all",
        f"{root}/run/hailo-agent/monitor/{ONE}",
    }
    assert "something is mounted there" in said[f"{root}/run/hailo-agent/monitor/all"]
    assert "read-only; mount it writable" in said[f"{root}/etc/cdi/{FILE_NAME}"]
    assert "mount the directory above" in said[f"{root}/var/lib/hailo-agent"]
    assert listing(root / "var") == {**listing_of(before, "var"), "lib/hailo-agent": "drwxr-xr-x"}


def listing_of(whole: dict[str, str], name: str) -> dict[str, str]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): what for key, what in whole.items() if key.startswith(prefix)}


def test_a_socket_at_which_somebody_answers_is_not_removed(places: Places) -> None:
    leave_everything(places)
    alive = (
        places.sockets[0],
        places.plugin_dir / "hailo.ai_npu.sock",
        places.plugin_dir / "hailo.ai_h10.sock",
    )
    for path in alive:
        path.unlink()
    with (
        live_socket(alive[0]),
        live_socket(alive[1]),
        live_socket(alive[2], socket.SOCK_DGRAM),
    ):
        stuck = told(swept(places), Outcome.STUCK)
        assert set(stuck) == set(alive)
        assert all(path.is_socket() for path in alive)
    assert not told(swept(places), Outcome.STUCK)


def test_a_backlog_that_is_full_is_an_answer(places: Places) -> None:
    path = places.plugin_dir / "hailo.ai_npu.sock"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen(0)
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
            for caller in (one, two):
                caller.settimeout(0)
                with suppress(BlockingIOError):
                    caller.connect(str(path))
            assert told(swept(places), Outcome.STUCK) == {
                path: "somebody answers there; stop who does"
            }
    assert path.is_socket()
