"""Every verb of `hailo-agent` as a person types it: what it prints, and what it exits with."""

import asyncio
import io
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from hailo_agent import __version__, cli
from hailo_agent.runtime import reader
from hailo_agent.sim.machine import Link, Machine
from hailo_agent.sim.node import RESOURCE, Node, temporary_root

FIRST, SECOND, THIRD = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"
ONE, TWO = "pci-0000-01-00-0", "pci-0000-02-00-0"
COMMAND = (sys.executable, "-m", "hailo_agent")
SECONDS = 30
USAGE, FAILED, CONFIG = 2, 1, 78


@pytest.fixture
def root() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="cli-", dir=memory, ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def machine(root: Path) -> Machine:
    """Two devices, and something that is none."""
    machine = Machine(root / "machine")
    machine.load("4.23")
    machine.plug(FIRST, numa_node=1)
    machine.plug(SECOND, link=Link(speed="5.0 GT/s PCIe", width=1))
    machine.plug(THIRD, pci_id="1e60:45c4")
    return machine


def environment(**extra: str) -> dict[str, str]:
    """Pass on our environment without settings, wide enough for a table."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("HAILO_AGENT_")}
    known.pop("NODE_NAME", None)
    return {**known, "COLUMNS": "200", **extra}


def hailo_agent(
    *arguments: object, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment(**(env or {})),
    )


def here(
    *arguments: object, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command in this process, which takes a tenth of the time."""
    words, out, err = [*map(str, arguments)], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(os, "environ", environment(**(env or {})))
        code = cli._run(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def places(machine: Machine, root: Path) -> list[str]:
    return [
        f"--host.dev={machine.dev}",
        f"--host.sys={machine.sys}",
        f"--host.cordon-file={root / 'state' / 'cordons.json'}",
        f"--runtime.cdi-dir={root / 'cdi'}",
        f"--runtime.cdi-search-dirs={root / 'cdi'}",
        f"--runtime.links-dir={root / 'links'}",
        f"--subscribers.socket={root / 'agent.sock'}",
        f"--kubelet.plugin-dir={root / 'dp'}",
        f"--kubelet.root={root / 'kubelet'}",
    ]


# --- the command itself -------------------------------------------------------------------------


def test_the_version_is_told_in_one_line() -> None:
    done = hailo_agent("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"hailo-agent {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["devices", "--help"], ["cdi", "--help"]]
)
def test_help_is_there_for_the_asking(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        cli._run(arguments)
    assert exited.value.code == 0
    assert capsys.readouterr().out.startswith("usage: hailo-agent")


def test_every_verb_is_in_the_help() -> None:
    said = hailo_agent("--help").stdout
    for verb in (
        "run",
        "devices",
        "cordon",
        "uncordon",
        "cdi",
        "doctor",
        "simulate",
        "config",
    ):
        assert f"\n    {verb} " in said


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["cdi"], ["cdi", "dance"], ["cdi", "validate"], ["uncordon"]]
)
def test_what_is_no_verb_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        cli._run(arguments)
    assert exited.value.code == USAGE
    said = capsys.readouterr()
    assert "usage: hailo-agent" in said.err
    assert said.out == ""


# --- bad configuration --------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["run"], ["cdi", "show"]])
def test_an_unknown_flag_is_refused_with_the_nearest_known_one(verb: list[str]) -> None:
    done = hailo_agent(*verb, "--kubelet.plugin-dri=/x")
    assert done.returncode == CONFIG
    assert done.stderr == (
        "hailo-agent: --kubelet.plugin-dri (command line) is not a flag;"
        " did you mean --kubelet.plugin-dir?\n"
    )
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--resource.name=npu", ["resource.name = 'npu'", "hailo.ai/npu"]),
        ("--resource.name=kubernetes.io/npu", ["resource.name", "domain of your own"]),
        ("--log.level=loud", ["log.level = 'loud'", "debug"]),
        ("--host.resync-seconds=soon", ["host.resync_seconds = 'soon'", "number of seconds"]),
        ("--host.resync-seconds=-1", ["host.resync_seconds = '-1'", "or more"]),
        ("--host.dev=dev", ["host.dev = 'dev'", "absolute path"]),
        ("--runtime.delivery=magic", ["runtime.delivery", "cri"]),
        ("--runtime.delivery=", ["runtime.delivery", "at least one"]),
        ("--host.uevents=maybe", ["host.uevents = 'maybe'", "true or false"]),
        (f"--kubelet.plugin-dir=/{'x' * 100}", ["kubelet.plugin_dir", "bytes"]),
        ("--resource.names=hailo-9=a.b/c", ["resource.names", "hailo-8"]),
    ],
)
def test_a_bad_value_is_refused_with_key_value_place_and_remedy_in_one_line(
    capsys: pytest.CaptureFixture[str], flag: str, says: list[str]
) -> None:
    """In this process, for there are many."""
    assert cli._run(["run", flag]) == CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hailo-agent: ")
    assert "flag --" in line
    assert ";" in line  # what is wrong; what to do
    for part in says:
        assert part in line


def test_all_that_is_wrong_is_told_at_once_with_file_and_line(root: Path) -> None:
    config = root / "config.yaml"
    config.write_text("log:\n  level: loud\nkubelt:\n  root: /x\nhost:\n  resinc_seconds: 3\n")
    done = here("run", f"--config={config}", "--nod.name=x", env={"HAILO_AGENT_LOG__LEVL": "info"})
    assert done.returncode == CONFIG
    lines = done.stderr.splitlines()
    assert len(lines) == 5
    for part in (
        f"log.level = 'loud' (file {config}:2)",
        f"kubelt (file {config}:3) is not a section; did you mean kubelet?",
        f"host.resinc_seconds (file {config}:6) is not a setting",
        "did you mean host.resync_seconds?",
        "--nod.name (command line) is not a flag; did you mean --node.name?",
        "HAILO_AGENT_LOG__LEVL (environment)",
    ):
        assert any(part in line for line in lines), (part, lines)


def test_a_configuration_file_that_is_not_there_is_said_so() -> None:
    done = here("run", "--config=/nowhere/config.yaml")
    assert done.returncode == CONFIG
    assert done.stderr.startswith("hailo-agent: /nowhere/config.yaml cannot be read: No such file")
    assert len(done.stderr.splitlines()) == 1


# --- devices ------------------------------------------------------------------------------------


def test_devices_without_an_agent_shows_what_the_machine_shows(
    machine: Machine, root: Path
) -> None:
    done = hailo_agent("devices", *places(machine, root))
    assert done.returncode == 0
    assert done.stderr == "No agent answers on this node; this is what the machine shows.\n"
    heading, one, two, *rest = done.stdout.splitlines()
    assert " ".join(heading.split()) == "ID MODEL NODE NUMA LINK DRIVER RESOURCE HELD BY HEALTH"
    assert one.split()[:4] == [ONE, "hailo-8", "/dev/hailo0", "1"]
    assert "8 GT/s x4 " in one
    assert "hailo 4.23.0" in one
    assert one.endswith("Healthy")
    assert two.split()[:4] == [TWO, "hailo-8", "/dev/hailo1", "-"]
    assert "5 GT/s x1 (of 8 x4)" in two
    unusable = "\n".join(rest)
    assert "Seen, but not usable" in unusable
    assert THIRD in unusable
    assert "hailo-10h" in unusable
    assert all(len(line) <= 200 for line in done.stdout.splitlines())


def test_devices_as_json_is_for_programs(machine: Machine, root: Path) -> None:
    done = hailo_agent("devices", "--json", *places(machine, root))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [device["id"] for device in found["devices"]] == [ONE, TWO]
    assert [fault["subject"] for fault in found["faults"]] == [THIRD]


def test_devices_of_a_machine_without_any_says_so(root: Path) -> None:
    machine = Machine(root / "machine")
    done = here("devices", *places(machine, root))
    assert done.returncode == 0
    assert done.stdout == "No Hailo device is usable on this node.\n"


def test_devices_with_nothing_at_all_to_look_at_does_not_fall_over(root: Path) -> None:
    missing = [f"--host.sys={root}/absent", f"--host.dev={root}/absent", "--subscribers.socket="]
    done = here("devices", *missing)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_to_watch_without_an_agent_fails_in_one_line(machine: Machine, root: Path) -> None:
    done = here("devices", "--watch", *places(machine, root))
    assert done.returncode == FAILED
    assert done.stderr == (
        f"hailo-agent: following the agent at {root}/agent.sock: the socket does not exist\n"
    )


def test_to_watch_with_the_socket_off_fails_in_one_line() -> None:
    done = here("devices", "--watch", "--subscribers.socket=")
    assert done.returncode == FAILED
    assert done.stderr.startswith("hailo-agent: subscribers.socket is off")


def test_a_table_on_a_narrow_terminal_loses_no_device(machine: Machine, root: Path) -> None:
    """Through a real terminal of eighty columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "devices", *places(machine, root)],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=environment(COLUMNS="80", TERM="xterm"),
    )
    os.close(theirs)
    said = read_all(ours)
    os.close(ours)
    assert process.wait(SECONDS) == 0
    assert ONE in said
    assert TWO in said
    assert said.count("Healthy") == 2


def read_all(descriptor: int) -> str:
    """Read what a terminal shows until the other side hangs up."""
    data = b""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if not select.select([descriptor], [], [], 1.0)[0]:
            continue
        try:
            piece = os.read(descriptor, 4096)
        except OSError:  # EIO: nobody holds the other side any more
            break
        if not piece:
            break
        data += piece
    return data.decode()


# --- devices, with an agent ---------------------------------------------------------------------


@asynccontextmanager
async def node_with_agent() -> AsyncIterator[Node]:
    async with temporary_root() as path, Node.build(path, fsync=False) as node:
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        node.machine.plug(SECOND)
        async with node.agent("--kubelet.pod-resources-seconds=0.2", "--node.name=node-7") as agent:
            await node.listed(2)
            await node.kubelet.admit("shop/till", {RESOURCE: 1})
            await agent.wait_for("device.held", lambda f: f["device"]["holders"])
            yield node


async def in_another_process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(hailo_agent, *arguments)


async def test_devices_with_an_agent_tells_who_holds_what() -> None:
    async with node_with_agent() as node:
        (held,) = node.kubelet.holders(RESOURCE)
        asked = await in_another_process("devices", f"--subscribers.socket={node.agent_socket}")
        assert (asked.returncode, asked.stderr) == (0, "")
        by_id = {line.split()[0]: line for line in asked.stdout.splitlines()[1:3]}
        assert set(by_id) == {ONE, TWO}
        assert "shop/till" in by_id[held]
        assert sum("shop/till" in line for line in by_id.values()) == 1
        told = await in_another_process(
            "devices", "--json", f"--subscribers.socket={node.agent_socket}"
        )
        found = json.loads(told.stdout)
        assert found["node"] == "node-7"
        assert found["readiness"]["ready"] is True
        assert {d["id"] for d in found["devices"] if d.get("held")} == {held}


async def test_watching_goes_on_with_each_change_and_ends_when_the_agent_stops() -> None:
    async with node_with_agent() as node:
        watching = await asyncio.create_subprocess_exec(
            *COMMAND,
            "devices",
            "--watch",
            f"--subscribers.socket={node.agent_socket}",
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert watching.stdout is not None
        async with asyncio.timeout(SECONDS):
            said = ""
            while TWO not in said:
                said = (await watching.stdout.readline()).decode()
            node.machine.plug(THIRD)
            while "pci-0000-03-00-0 added at" not in said:
                said = (await watching.stdout.readline()).decode()
            node.machine.pull(THIRD)
            while "pci-0000-03-00-0 is unhealthy: the machine does not have it" not in said:
                said = (await watching.stdout.readline()).decode()
    async with asyncio.timeout(SECONDS):
        assert await watching.wait() == 0


async def test_watching_ends_quietly_with_an_interrupt() -> None:
    async with node_with_agent() as node:
        watching = await asyncio.create_subprocess_exec(
            *COMMAND,
            "devices",
            "--watch",
            "--json",
            f"--subscribers.socket={node.agent_socket}",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert watching.stdout is not None
        async with asyncio.timeout(SECONDS):
            first = json.loads(await watching.stdout.readline())
            assert [d["id"] for d in first["inventory"]["devices"]] == [ONE, TWO]
            watching.send_signal(signal.SIGINT)
            _, errors = await watching.communicate()
        assert watching.returncode == 130
        assert errors == b""


# --- cordon -------------------------------------------------------------------------------------


def test_a_device_is_cordoned_and_listed_and_offered_again(machine: Machine, root: Path) -> None:
    at = places(machine, root)
    done = here("cordon", FIRST, "--reason", "fan is loud", *at)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{ONE} is cordoned: fan is loud\n"
        "No new pod gets it. A pod that has it keeps it, also if its containers restart.\n"
    )
    heading, row = here("cordon", *at).stdout.splitlines()
    assert heading.split() == ["ID", "SINCE", "REASON"]
    device_id, since, reason = row.split(maxsplit=2)
    assert (device_id, reason) == (ONE, "fan is loud")
    assert since.endswith("Z")
    lifted = here("uncordon", ONE, *at)
    assert (lifted.returncode, lifted.stderr) == (0, "")
    assert lifted.stdout == (
        f"{ONE} is no longer cordoned. It was since {since}: fan is loud\n"
        "Pods can get it again, unless something else is wrong with it.\n"
    )
    assert here("cordon", *at).stdout == "No device is cordoned.\n"


def test_cordoning_as_a_process_of_its_own_needs_no_agent(machine: Machine, root: Path) -> None:
    at = places(machine, root)
    done = hailo_agent("cordon", TWO, "--reason=link is narrow", *at)
    assert (done.returncode, done.stderr) == (0, "")
    listed = hailo_agent("cordon", "--json", *at)
    assert (listed.returncode, listed.stderr) == (0, "")
    found = json.loads(listed.stdout)
    assert found == json.loads((root / "state" / "cordons.json").read_text())
    (entry,) = found["cordons"]
    assert set(entry) == {"device", "reason", "since", "by"}
    assert (entry["device"], entry["reason"], entry["by"]) == (TWO, "link is narrow", "cli")


def test_doing_it_twice_is_no_failure_and_says_so(machine: Machine, root: Path) -> None:
    at = places(machine, root)
    here("cordon", ONE, "--reason=hot", *at)
    again = here("cordon", ONE, "--reason=hot", *at)
    assert again.returncode == 0
    assert again.stdout.startswith(f"{ONE} was cordoned already, since 20")
    assert again.stdout.splitlines()[0].endswith("Z: hot")
    other = here("cordon", ONE, "--reason=burnt", *at)
    assert other.stdout.splitlines()[0].endswith("Z; the reason is now: burnt")
    here("uncordon", ONE, *at)
    done = here("uncordon", ONE, *at)
    assert (done.returncode, done.stdout) == (0, f"{ONE} was not cordoned.\n")


@pytest.mark.parametrize("verb", [["cordon", "--reason=hot"], ["uncordon"]])
def test_a_device_that_is_not_here_is_taken_with_a_note(
    machine: Machine, root: Path, verb: list[str]
) -> None:
    at = places(machine, root)
    here("cordon", "0000:09:00.0", "--reason=to be pulled", *at)
    done = here(*verb, "0000:09:00.0", *at)
    assert done.returncode == 0
    assert done.stdout.startswith("pci-0000-09-00-0 ")
    assert done.stderr == (
        "This machine has no pci-0000-09-00-0 now; `hailo-agent devices` lists what it has.\n"
    )


def test_a_board_without_a_driver_is_here_too(machine: Machine, root: Path) -> None:
    done = here("cordon", THIRD, "--reason=waits for its driver", *places(machine, root))
    assert (done.returncode, done.stderr) == (0, "")


def test_where_the_machine_cannot_be_looked_at_it_is_cordoned_all_the_same(root: Path) -> None:
    machine = Machine(root / "machine")
    at = [*places(machine, root), f"--host.sys={root}/nowhere"]
    done = here("cordon", ONE, "--reason=hot", *at)
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1
    assert ONE in here("cordon", *at).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cordon", "hailo0", "--reason=hot"], ["'hailo0'", "0000:01:00.0", "hailo-agent devices"]),
        (["uncordon", "0000:01:20.0"], ["'0000:01:20.0'", "pci-0000-01-00-0"]),
        (["cordon", ONE], ["--reason is missing", "cordon ID --reason TEXT"]),
        (["cordon", ONE, "--reason="], ["reason ''", "is empty"]),
        (["cordon", ONE, "--reason=a\nb"], [r"'a\nb'", "printed"]),
        (["cordon", ONE, f"--reason={'x' * 201}"], ["201 characters", "at most 200"]),
        (["cordon", "--reason=hot"], ["without a device", "cordon ID"]),
        (["cordon", ONE, "--reason=hot", "--json"], ["--json is for the list"]),
    ],
)
def test_what_cannot_be_cordoned_is_refused_in_one_line_and_changes_nothing(
    machine: Machine, root: Path, arguments: list[str], says: list[str]
) -> None:
    done = here(*arguments, *places(machine, root))
    assert done.returncode == USAGE
    (line,) = done.stderr.splitlines()
    assert line.startswith("hailo-agent: ")
    for part in says:
        assert part in line
    assert done.stdout == ""
    assert not (root / "state").exists()


def test_a_word_too_many_is_refused(machine: Machine, root: Path) -> None:
    done = here("cordon", ONE, TWO, "--reason=hot", *places(machine, root))
    assert done.returncode == CONFIG
    assert TWO in done.stderr
    assert not (root / "state").exists()


def test_a_broken_cordon_file_is_neither_changed_nor_taken_for_an_empty_one(
    machine: Machine, root: Path
) -> None:
    at, path = places(machine, root), root / "state" / "cordons.json"
    path.parent.mkdir()
    path.write_text(f'{{"version": 1, "cordons": [{{"device": "{ONE}",')
    for arguments in (["cordon", TWO, "--reason=hot"], ["uncordon", ONE], ["cordon"]):
        done = here(*arguments, *at)
        assert done.returncode == FAILED
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"hailo-agent: {path}: line 1 is not JSON")
        assert "repair the file" in line
    assert here("cordon", *at).stdout.splitlines()[1].split() == [ONE, "-", "-"]
    assert path.read_text().endswith(",")


def test_where_nobody_may_write_that_is_said_in_one_line(machine: Machine, root: Path) -> None:
    (root / "file").touch()
    at = [*places(machine, root), f"--host.cordon-file={root}/file/cordons.json"]
    done = here("cordon", ONE, "--reason=hot", *at)
    assert (done.returncode, done.stdout) == (FAILED, "")
    (line,) = done.stderr.splitlines()
    assert f"{root}/file/cordons.json" in line
    assert "host.cordon_file" in line


def test_a_terminal_that_cannot_show_a_reason_shows_it_escaped(
    machine: Machine, root: Path
) -> None:
    at, plain = places(machine, root), {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = hailo_agent("cordon", ONE, "--reason=zu heiß", *at, env=plain)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{ONE} is cordoned: zu hei\\xdf\n")
    assert "zu heiß" in here("cordon", *at).stdout


def test_the_how_to_shows_what_the_commands_print(machine: Machine, root: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "cordon-a-device.md"
    pairs = re.findall(
        r"^```\nhailo-agent (.+)\n```\n\n```text\n((?s:.+?))^```$", page.read_text(), re.MULTILINE
    )
    assert [shlex.split(typed)[0] for typed, _ in pairs] == ["cordon", "cordon", "uncordon"]
    for typed, shown in pairs:
        done = here(*shlex.split(typed), *places(machine, root))
        assert (done.returncode, done.stderr) == (0, "")
        assert re.sub(r"20\d\d-\S+Z", "2026-11-22T18:30:00Z", done.stdout) == shown


# --- cdi ----------------------------------------------------------------------------------------


def test_cdi_show_prints_the_spec_and_writes_nothing(machine: Machine, root: Path) -> None:
    done = here("cdi", "show", *places(machine, root))
    assert (done.returncode, done.stderr) == (0, "")
    document = reader.read(done.stdout.encode(), name="shown")
    assert document.kind == RESOURCE
    assert list(document.devices) == ["all", ONE, TWO]
    assert not (root / "cdi").exists()


def test_cdi_show_of_no_device_says_so_and_fails(root: Path) -> None:
    done = here("cdi", "show", *places(Machine(root / "machine"), root))
    assert done.returncode == FAILED
    assert done.stdout == ""
    assert done.stderr == "No device is here, so there would be no spec.\n"


def test_cdi_generate_writes_what_show_shows_and_removes_it_when_nothing_is_left(
    machine: Machine, root: Path
) -> None:
    shown = hailo_agent("cdi", "show", *places(machine, root)).stdout
    done = hailo_agent("cdi", "generate", *places(machine, root))
    path = root / "cdi" / "hailo.ai-npu.json"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: 2 devices\n", "")
    assert path.read_text() == shown
    for address in (FIRST, SECOND):
        machine.pull(address)
    again = hailo_agent("cdi", "generate", *places(machine, root))
    assert again.returncode == 0
    assert again.stdout.startswith(f"{path}: not there, as no device is here")
    assert not path.exists()


def test_cdi_generate_goes_where_it_is_told(machine: Machine, root: Path) -> None:
    done = here("cdi", "generate", f"--output={root}/other", *places(machine, root))
    assert done.returncode == 0
    assert reader.load(root / "other" / "hailo.ai-npu.json").kind == RESOURCE
    assert not (root / "cdi").exists()


def test_cdi_generate_into_what_is_no_directory_fails_in_one_line(
    machine: Machine, root: Path
) -> None:
    (root / "file").touch()
    done = here("cdi", "generate", f"--output={root}/file", *places(machine, root))
    assert done.returncode == FAILED
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"hailo-agent: cannot write {root}/file/hailo.ai-npu.json: ")


def test_cdi_validate_accepts_what_generate_writes(machine: Machine, root: Path) -> None:
    here("cdi", "generate", *places(machine, root))
    path = root / "cdi" / "hailo.ai-npu.json"
    done = here("cdi", "validate", path)
    assert done.returncode == 0
    assert done.stdout == f"{path}: valid, CDI 0.4.0, hailo.ai/npu: all, {ONE}, {TWO}\n"


def test_cdi_validate_names_every_line_and_field_that_is_wrong(root: Path) -> None:
    path = root / "bad.json"
    path.write_text(
        '{\n "cdiVersion": "0.3.0",\n "kind": "hailo.ai/npu",\n "extra": 1,\n'
        ' "devices": [\n  {"name": "-a", "containerEdits": {"env": ["A=B"]}}\n ]\n}\n'
    )
    done = here("cdi", "validate", path)
    assert done.returncode == FAILED
    assert all(line.startswith(f"{path}:") for line in done.stdout.splitlines())
    assert f"{path}:4:" in done.stdout
    assert f"{path}:6:" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("what", ["absent", "directory"])
def test_cdi_validate_of_what_cannot_be_read_fails_in_one_line(root: Path, what: str) -> None:
    path = root / what
    if what == "directory":
        path.mkdir()
    done = here("cdi", "validate", path)
    assert done.returncode == FAILED
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"hailo-agent: cannot read {path}: ")


def test_cdi_list_prints_the_names_that_podman_takes(machine: Machine, root: Path) -> None:
    early = here("cdi", "list", *places(machine, root))
    assert early.returncode == FAILED
    assert "`hailo-agent cdi generate` writes one" in early.stderr
    here("cdi", "generate", *places(machine, root))
    done = here("cdi", "list", *places(machine, root))
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("all", ONE, TWO):
        assert f"{RESOURCE}={name}" in done.stdout.split()


# --- config -------------------------------------------------------------------------------------


def test_config_show_is_itself_a_configuration_and_names_every_origin(root: Path) -> None:
    config = root / "config.yaml"
    config.write_text("log:\n  level: debug\nhost:\n  resync_seconds: 7\n")
    env = {"HAILO_AGENT_NODE__NAME": "node-7", "HAILO_AGENT_CONFIG": str(config)}
    done = here("config", "show", "--log.level=error", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    shown = yaml.safe_load(done.stdout)
    assert shown["log"]["level"] == "error"
    assert shown["host"]["resync_seconds"] == 7.0
    assert shown["node"]["name"] == "node-7"
    by_name = {line.split(":")[0].strip(): line for line in done.stdout.splitlines()}
    assert by_name["level"].endswith("# flag --log.level")
    assert by_name["resync_seconds"].endswith(f"# file {config}:4")
    assert by_name["format"].endswith("# default")
    again = root / "again.yaml"
    again.write_text(done.stdout)
    assert yaml.safe_load(here("config", "show", f"--config={again}").stdout) == shown


def test_config_show_as_json_has_value_and_origin_of_every_key() -> None:
    done = here("config", "show", "--json")
    found = json.loads(done.stdout)
    assert found["resource.name"] == {"value": RESOURCE, "origin": "default"}
    assert all(set(entry) == {"value", "origin"} for entry in found.values())


# --- readers that go away -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["config", "show"], ["devices"], ["cdi", "show"], ["--help"]],
)
def test_a_reader_that_has_seen_enough_gets_no_traceback(
    machine: Machine, root: Path, arguments: list[str]
) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, *arguments, *(places(machine, root) if arguments != ["--help"] else [])],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    os.close(writing)
    os.close(reading)
    _, errors = process.communicate(timeout=SECONDS)
    assert "Traceback" not in errors
    assert "Exception" not in errors
    assert process.returncode in {0, 1}


def test_a_full_disk_for_output_is_an_error_and_no_success(machine: Machine, root: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "devices", "--json", *places(machine, root)],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            env=environment(),
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
