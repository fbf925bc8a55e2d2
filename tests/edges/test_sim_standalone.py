"""The machine that `simulate --machine` keeps: a process, a directory, commands from outside."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hailo_agent import cli
from hailo_agent.sim import standalone
from hailo_agent.sim.hands import HANDS
from hailo_agent.sim.standalone import MARKER, NULL, SOCKET, Order

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes with numbers take root")

PATIENCE_SECONDS = 30.0
FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
SIMULATE = (sys.executable, "-m", "hailo_agent", "simulate")


@pytest.fixture
def place() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hm-", dir=memory, ignore_cleanup_errors=True) as path:
        yield Path(path)


class Kept:
    """A process that keeps a machine, and the lines it has written."""

    def __init__(self, root: Path, *flags: str, prefix: tuple[str, ...] = ()) -> None:
        self.root = root
        # Whoever runs the tests may ignore signals (nohup does), and children inherit that.
        command = [*prefix, "env", "--default-signal", *SIMULATE, f"--machine={root}", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []

    def say(self, pattern: str) -> str:
        """Wait for a line in which this is found."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no {pattern} in {self.lines}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for what comes of it."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.lines += self.process.stdout
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def kept(root: Path, *flags: str, prefix: tuple[str, ...] = ()) -> Iterator[Kept]:
    machine = Kept(root, *flags, prefix=prefix)
    try:
        machine.say("the machine is ")
        yield machine
    finally:
        machine.process.kill()
        machine.process.wait()
        assert machine.process.stdout is not None
        machine.process.stdout.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """Keep one machine for all tests that leave it as they found it."""
    with tempfile.TemporaryDirectory(prefix="hm-") as path, kept(Path(path, "m")) as machine:
        yield machine.root


@pytest.fixture
def do(shared: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str]]:
    """Have commands done; tells the exit code, and what was said where it belongs."""

    def done(line: str) -> tuple[int, str]:
        code = standalone.standalone(shared, line.split(), Order())
        said = capfd.readouterr()
        assert not (said.out and said.err)
        return code, said.err if code else said.out

    return done


def entries(root: Path) -> set[str]:
    return {path.name for path in (root / "sys/class/hailo_chardev").iterdir()}


def nodes(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in (root / "dev").iterdir():
        status = path.lstat()
        assert stat.S_ISCHR(status.st_mode), path
        found[path.name] = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return found


# --- its life -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_has_what_was_ordered_and_takes_all_of_it_along_when_it_ends(
    place: Path, number: int
) -> None:
    root = place / "a" / "machine"
    with kept(root, "--devices=3") as machine:
        assert entries(root) == {"hailo0", "hailo1", "hailo2"}
        assert nodes(root) == dict.fromkeys(entries(root), NULL)
        for entry in entries(root):
            assert (root / "sys/class/hailo_chardev" / entry / "dev").read_text() == "1:3\n"
        assert os.stat("/dev/null").st_rdev == os.makedev(*NULL)  # noqa: PTH116 - as it is said
        assert machine.end(number) == 0, machine.lines
    assert not root.exists()
    assert root.parent.exists()


def test_a_directory_that_was_there_before_stays_and_is_empty_again(place: Path) -> None:
    with kept(place, "--devices=0") as machine:
        assert entries_of(place) == {"dev", "sys", ".staging", MARKER, SOCKET}
        assert machine.end() == 0
    assert entries_of(place) == set()


def entries_of(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_what_others_put_there_stays(place: Path) -> None:
    root = place / "machine"
    with kept(root) as machine:
        (root / "notes").write_text("mine")
        (root / "dev" / "hailo0").unlink()  # and what they took away is not missed
        assert machine.end() == 0, machine.lines
    assert entries_of(root) == {"notes"}


def test_a_generation_is_served_what_its_kernel_driver_knows(place: Path) -> None:
    with kept(place, "--generation=5.3", "--devices=1"):
        assert set(nodes(place)) == {"h1x-0"}
        assert standalone.standalone(place, ["plug"], Order()) == 0
        assert set(nodes(place)) == {"h1x-0", "h1x-1"}


def test_whoever_is_killed_is_succeeded_and_nothing_of_him_remains(place: Path) -> None:
    root = place / "machine"
    with kept(root, "--devices=3") as machine:
        machine.process.kill()
        machine.process.wait()
        assert len(nodes(root)) == 3
    (root / "sys/class/hailo_chardev/hailo0").unlink()  # as if he had been at work
    with kept(root, "--devices=1") as machine:
        assert any("taken over" in line for line in machine.lines)
        assert set(nodes(root)) == entries(root) == {"hailo0"}
        assert machine.end() == 0
    assert not root.exists()


def test_whoever_was_killed_before_he_began_is_succeeded_as_well(place: Path) -> None:
    (place / MARKER).write_text("")
    with kept(place) as machine:
        assert not any("taken over" in line for line in machine.lines)
        assert machine.end() == 0
    assert place.is_dir()


def test_of_two_for_one_directory_the_second_is_refused(
    shared: Path, do: Callable[[str], tuple[int, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    before = entries_of(shared)
    assert standalone.standalone(shared, [], Order()) == 1
    assert f"{shared}: another machine is kept there" in capfd.readouterr().err
    assert entries_of(shared) == before
    assert do("devices")[0] == 0


def test_a_path_may_be_longer_than_that_of_a_socket(place: Path) -> None:
    root = place / ("d" * 100) / "machine"
    with kept(root):
        assert standalone.standalone(root, ["pull", "hailo1"], Order()) == 0
        assert set(nodes(root)) == {"hailo0"}


# --- what is refused ------------------------------------------------------------------------------


def refused(root: Path, *prefix: str) -> str:
    """Have a start fail, and tell why; what is there must not have changed."""
    before = sorted(root.rglob("*")) if root.exists() else None
    done = subprocess.run(
        [*prefix, *SIMULATE, f"--machine={root}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    after = sorted(root.rglob("*")) if root.exists() else None
    assert after == before
    return done.stderr


def test_a_directory_that_is_somebody_elses_is_left_alone(place: Path) -> None:
    # As the agent's own mounts look: it must not occur to anybody to clear them.
    for name in ("dev", "sys"):
        (place / name).mkdir()
        (place / name / "precious").touch()
    assert "is not empty, and holds no machine of ours" in refused(place)


def test_what_is_no_part_of_a_machine_has_to_be_moved_away(place: Path) -> None:
    for name in (MARKER, "notes", "dev"):
        (place / name).touch()
    assert "holds notes, which is no part of a machine" in refused(place)


def test_a_file_is_no_directory(place: Path) -> None:
    (place / "file").touch()
    assert "Not a directory" in refused(place / "file")


@pytest.mark.parametrize("name", ["dev", "sys"])
def test_what_is_mounted_in_there_is_never_cleared(place: Path, name: str) -> None:
    (place / MARKER).touch()
    (place / name).mkdir()
    script = f'mount -t tmpfs tmpfs "{place}/{name}" && touch "{place}/{name}/x" && exec "$@"'
    error = refused(place, "unshare", "--mount", "sh", "-c", script, "sh")
    assert f"{place}/{name} is a mount point" in error


def test_where_nothing_can_be_written_it_says_so(place: Path) -> None:
    script = f'mount -t tmpfs -o ro tmpfs "{place}" && exec "$@"'
    error = refused(place, "unshare", "--mount", "sh", "-c", script, "sh")
    assert "Read-only file system" in error
    assert str(place) in error


def test_where_mknod_is_not_permitted_it_says_what_it_needs_and_leaves_nothing(place: Path) -> None:
    drop = ("setpriv", "--inh-caps=-all", "--bounding-set=-mknod")
    error = refused(place / "machine", *drop)
    assert "run as root with CAP_MKNOD" in error
    assert refused(place, *drop) == error.replace(f"{place}/machine", str(place))


def test_the_right_to_mknod_is_all_it_needs(place: Path) -> None:
    only = ("setpriv", "--inh-caps=-all", "--bounding-set=-all,+mknod")
    with kept(place / "machine", prefix=only) as machine:
        assert set(nodes(machine.root)) == {"hailo0", "hailo1"}
        for line in ("break hailo0 fifo", "mend hailo0", "pull hailo0", "swap hailo1 hailo1"):
            standalone.standalone(machine.root, line.split(), Order())
        assert machine.end() == 0, machine.lines
    assert not machine.root.exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["pull", "hailo0"], "name its directory: --machine DIR"),
        (["--devices=1"], "name its directory: --machine DIR"),
        (["--machine=/nowhere", "--devices=256"], "--devices 256 is not between 0 and 255"),
        (["--machine=/nowhere", "--devices=-1"], "--devices -1 is not between 0 and 255"),
        (["--machine=/nowhere", "--generation=6"], "--generation 6 is none of 4.17, 4.20"),
        (["--machine=/nowhere", "--generation=integrated-5.3"], "is none of 4.17, 4.20"),
        (["--machine=/nowhere", "--rehearse=0"], "--rehearse 0 is no time to wait"),
        (["--machine=/nowhere", "--rehearse=nan"], "--rehearse nan is no time to wait"),
        (["--machine=/nowhere", "--devices=1", "pull", "hailo0"], "is said when it is started"),
        (["--machine=/nowhere", "--story"], "not allowed with argument"),
    ],
)
def test_what_makes_no_sense_is_a_mistake_of_usage(
    flags: list[str], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = cli._run(["simulate", *flags])
    except SystemExit as ended:  # argparse has found it itself
        code = ended.code
    assert code == 2
    assert reason in capfd.readouterr().err
    assert not Path("/nowhere").exists()


# --- commands -------------------------------------------------------------------------------------


def test_each_command_does_to_the_machine_what_it_says(
    shared: Path, do: Callable[[str], tuple[int, str]]
) -> None:
    both = {"hailo0", "hailo1"}
    assert do("devices") == (0, f"{FIRST}  hailo0  well\n{SECOND}  hailo1  well\n")
    assert do("pull hailo0") == (0, f"{FIRST} (hailo0)\n")
    assert set(nodes(shared)) == entries(shared) == {"hailo1"}
    assert do("plug") == (0, f"{FIRST} (hailo0)\n")
    assert set(nodes(shared)) == entries(shared) == both
    assert do("ail 02:00.0 dead-link") == (0, f"{SECOND} (hailo1)\n")
    config = shared / "sys/bus/pci/devices" / SECOND / "config"
    assert set(config.read_bytes()) == {0xFF}
    assert do("devices")[1].splitlines()[1] == f"{SECOND}  hailo1  dead-link"
    assert do("cure pci-0000-02-00-0")[0] == 0
    assert set(config.read_bytes()) != {0xFF}
    assert do("break hailo1 missing")[0] == 0
    assert set(nodes(shared)) == {"hailo0"}
    assert do("mend hailo1")[0] == 0
    assert set(nodes(shared)) == both
    where = (shared / "sys/class/hailo_chardev/hailo0").resolve()
    assert do("swap hailo0 hailo1") == (0, f"{FIRST} (hailo1), {SECOND} (hailo0)\n")
    assert (shared / "sys/class/hailo_chardev/hailo0").resolve() != where
    assert do("swap hailo0 hailo1")[0] == 0
    assert do("plug 05:00.0 10h") == (0, "0000:05:00.0 (no kernel driver)\n")
    assert do("pull 05:00.0")[0] == 0
    assert do("devices") == (0, f"{FIRST}  hailo0  well\n{SECOND}  hailo1  well\n")


def test_help_names_every_command(do: Callable[[str], tuple[int, str]]) -> None:
    code, said = do("help")
    assert code == 0
    assert {line.split()[0] for line in said.splitlines()} == {*HANDS, "devices"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("pull", "usage: pull DEVICE"),
        ("pull hailo7", "there is no hailo7, only 0000:01:00.0 (hailo0), 0000:02:00.0 (hailo1)"),
        ("plug 01:00.0", "there is already something in slot 0000:01:00.0"),
        ("plgu", "there is no command 'plgu'; did you mean plug?"),
        ("pod camera", "there is no command 'pod'"),
        ("ail hailo0 sneezing", "'sneezing' is nothing that ails a device"),
        ("break hailo0 hammer", "'hammer' is no way to break it"),
        ("swap hailo0 hailo0", "it takes two to swap"),
        ("pull " + "x" * 2000, "that is no command"),
        ("pull \x07", "that is no command"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason_and_changes_nothing(
    shared: Path, do: Callable[[str], tuple[int, str]], line: str, reason: str
) -> None:
    before = do("devices")
    code, said = do(line)
    assert code == 1
    assert said.startswith("hailo-agent: ")
    assert reason in said
    assert do("devices") == before


def test_where_no_machine_is_kept_a_command_says_so(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = place / "gone"
    assert standalone.standalone(gone, ["devices"], Order()) == 1
    assert capfd.readouterr().err == f"hailo-agent: {gone}: no machine is kept there\n"
    assert standalone.standalone(place, ["devices"], Order()) == 1
    assert capfd.readouterr().err == f"hailo-agent: {place}: no machine is kept there\n"
    with socket.socket(socket.AF_UNIX) as dead:  # what one who was killed leaves behind
        dead.bind(str(place / SOCKET))
    assert standalone.standalone(place, ["devices"], Order()) == 1
    assert capfd.readouterr().err == f"hailo-agent: {place}: no machine is kept there\n"


def test_whoever_does_not_answer_is_not_waited_for_for_ever(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standalone, "_PATIENCE_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(place / SOCKET))
        silent.listen()
        assert standalone.standalone(place, ["devices"], Order()) == 1
    assert "whoever keeps the machine does not answer" in capfd.readouterr().err


@pytest.mark.parametrize("nonsense", [b"", b"\n", b"\xff\xfe\n", b"x" * 5000, b"y" * 5000 + b"\n"])
def test_nonsense_on_the_socket_harms_nobody(
    shared: Path, do: Callable[[str], tuple[int, str]], nonsense: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(PATIENCE_SECONDS)
        peer.connect(str(shared / SOCKET))
        with suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(nonsense)
            peer.shutdown(socket.SHUT_WR)
            answer = peer.recv(4096)
            assert b'"could": false' in answer
    assert do("devices")[0] == 0


def test_only_root_may_give_commands(shared: Path) -> None:
    assert stat.S_IMODE((shared / SOCKET).stat().st_mode) == 0o600


# --- the rehearsal --------------------------------------------------------------------------------


def test_a_rehearsal_pulls_plugs_sickens_and_cures_one_device_after_the_other(place: Path) -> None:
    with kept(place, "--rehearse=0.05") as machine:
        machine.say(f"rehearsal: cure {re.escape(SECOND)}")
        machine.end()
    told = [line.partition("rehearsal: ")[2].strip() for line in machine.lines]
    acts = [act for act in told if act]
    turns = [
        f"{what.format(f'{address} ({entry})')}"
        for address, entry in ((FIRST, "hailo0"), (SECOND, "hailo1"))
        for what in ("pull {}", "plug {}", "ail {} dead-link", "cure {}")
    ]
    assert acts[: len(turns)] == turns


def test_a_rehearsal_goes_on_when_somebody_gets_in_its_way(place: Path) -> None:
    with kept(place, "--rehearse=0.3", "--devices=1") as machine:
        machine.say(rf"rehearsal: pull {re.escape(FIRST)}")
        assert standalone.standalone(place, ["plug", FIRST], Order()) == 0
        machine.say(rf"rehearsal cannot plug {re.escape(FIRST)}: there is already something")
        assert standalone.standalone(place, ["pull", FIRST], Order()) == 0
        machine.say(f"rehearsal cannot ail {re.escape(FIRST)}")
        assert standalone.standalone(place, ["plug"], Order()) == 0
        machine.say(f"rehearsal: pull {re.escape(FIRST)}")
        assert machine.end() == 0


def test_without_a_rehearsal_the_machine_is_still(place: Path) -> None:
    with kept(place) as machine:
        before = {path: path.lstat().st_ctime_ns for path in place.rglob("*")}
        time.sleep(0.3)
        assert {path: path.lstat().st_ctime_ns for path in place.rglob("*")} == before
        machine.end()
    assert [line for line in machine.lines if "the machine is" not in line] == []
