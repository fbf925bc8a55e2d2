"""`hailo-agent simulate` as a person meets it: at a terminal, in a pipe, and when it is ended."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hailo_agent.sim.view import duration

SIMULATE = [sys.executable, "-m", "hailo_agent", "simulate"]
PATIENCE_SECONDS = 30.0


def play(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SIMULATE, *flags],
        input=script,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def answers(output: str) -> dict[str, str]:
    """Tell what was said after each command, which from a pipe is shown first."""
    parts = re.split(r"^> (.*)\n", output, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class Terminal:
    """A terminal of 80 by 24 with a simulation in it."""

    def __init__(self, *flags: str, **environment: str) -> None:
        self.shown = ""
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        # Whoever leads a session and opens a terminal is its master: Ctrl-C is for him.
        self.process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <>"$TTY" >&0 2>&0', "sh", *SIMULATE, *flags],
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "TTY": os.ttyname(slave), **environment},
        )
        self._slave = slave  # kept open: without any, reading fails before the first word

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.shown:
            assert self._read_until(deadline), f"no {text!r} in:\n{self.shown}"

    def finish(self) -> int:
        """Go on reading, so that the process never waits for us, and return its exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end:\n{self.shown}"
            self._read_until(min(deadline, time.monotonic() + 0.05))
        while self._read_until(time.monotonic()):
            pass
        return self.process.returncode

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _read_until(self, deadline: float) -> bool:
        patience = max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([self._master], [], [], patience)
        if readable:
            self.shown += os.read(self._master, 65536).decode("utf-8", "replace")
        return bool(readable)


@contextmanager
def terminal(*flags: str, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(*flags, **environment)
    try:
        yield opened
    finally:
        opened.close()


def agent_of(process: int) -> tuple[int, Path]:
    """Find the agent that a simulation has started, and the directory they live in."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            found = re.search(r"--host\.dev=(\S+)/machine/dev", command_line(int(child)))
            if found:
                return int(child), Path(found[1])
    raise AssertionError("no agent was started")


def command_line(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def test_the_node_does_what_is_typed_and_says_what_came_of_it() -> None:
    done = play(
        "pod camera\n"
        "plug 0b:00.0 10h\n"
        "pull hailo0\n"
        "restart-pod camera\n"
        "break 0000:02:00.0 fifo\n"
        "devices\n"
        "mend pci-0000-02-00-0\n"
        "delete-pod camera\n"
    )
    said = answers(done.stdout)
    assert "default/camera holds pci-0000-01-00-0" in said["pod camera"]
    assert "sees /dev/hailo0, /sys/class/hailo_chardev/hailo0" in said["pod camera"]
    assert "pci-0000-0b-00-0 is here: hailo-10h at /dev/h1x-1" in said["plug 0b:00.0 10h"]
    assert "hailo.ai/npu: 4 of 4 healthy" in said["plug 0b:00.0 10h"]
    assert "pci-0000-01-00-0 is unhealthy" in said["pull hailo0"]
    assert "cannot: its container does not start" in said["restart-pod camera"]
    assert "is not a character device" in said["break 0000:02:00.0 fifo"]
    assert re.search(
        r"pci-0000-01-00-0 .* - +Unhealthy +Unhealthy +default/camera", said["devices"]
    )
    assert re.search(r"pci-0000-0b-00-0 +hailo-10h +h1x-1 +Healthy +Healthy", said["devices"])
    assert "pci-0000-02-00-0 is healthy" in said["mend pci-0000-02-00-0"]
    assert "cannot" not in said["delete-pod camera"]
    assert done.returncode == 1  # one command could not be done
    assert "Traceback" not in done.stderr


def test_kubelet_and_agent_come_back_when_they_are_ended() -> None:
    done = play("swap hailo0 hailo1\nrestart-kubelet\nkill-agent\nlog 500\nquit\npull hailo0\n")
    said = answers(done.stdout)
    assert "pci-0000-01-00-0 is at /dev/hailo1 now" in said["swap hailo0 hailo1"]
    assert "the kubelet is down" in said["restart-kubelet"]
    assert "hailo.ai/npu: 3 of 3 healthy" in said["restart-kubelet"]
    assert "the agent ended with -9; started again in 1 s" in said["kill-agent"]
    assert "the agent answers: " in said["kill-agent"]
    assert "hailo.ai/npu: 3 of 3 healthy" in said["kill-agent"]
    assert said["log 500"].count("agent.started") == 2
    assert "pull hailo0" not in said  # nothing is obeyed after quit
    assert (done.returncode, done.stderr) == (0, "") if os.geteuid() == 0 else (0, done.stderr)


@pytest.fixture(scope="module")
def refusals() -> dict[str, str]:
    lines = [
        "plgu",
        "frobnicate",
        "pull",
        "pull hailo77",
        "pull 01:00",
        "plug 01:00.0",
        "plug somewhere",
        "plug 8 10h",
        "plug 05:00.0 06:00.0",
        "break hailo0 hammer",
        "swap hailo0 hailo0",
        "swap hailo0 h1x-0",
        "pod Not_A_Name",
        "pod a none",
        "pod a 99",
        "pod a 1 example.com/gpu",
        "restart-pod nobody",
        "log many",
    ]
    done = play("\n".join([*lines, "# a remark", "", "devices", ""]))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = answers(done.stdout)
    assert said["devices"].count(" Healthy ") >= 6  # three devices, unharmed, on both sides
    return said


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("plgu", "there is no command 'plgu'; did you mean plug?"),
        ("frobnicate", "there is no command 'frobnicate'; help names all there are"),
        ("pull", "usage: pull DEVICE"),
        ("pull hailo77", "there is no hailo77, only 0000:01:00.0 (hailo0), "),
        ("pull 01:00", "there is no 01:00, only"),
        ("plug 01:00.0", "there is already something in slot 0000:01:00.0"),
        ("plug somewhere", "somewhere is neither a slot like 0000:05:00.0 nor one of 8, 10h"),
        ("plug 8 10h", "one slot and one module at a time"),
        ("plug 05:00.0 06:00.0", "one slot and one module at a time"),
        ("break hailo0 hammer", "'hammer' is no way to break it, only missing, wrong-number"),
        ("swap hailo0 hailo0", "it takes two to swap"),
        ("swap hailo0 h1x-0", "are served by different kernel drivers"),
        ("pod Not_A_Name", "'Not_A_Name' is no name for a pod"),
        ("pod a none", "'none' does not say how many devices"),
        ("pod a 99", "Requested: 99, Available: 3"),
        ("pod a 1 example.com/gpu", "cannot allocate unregistered device example.com/gpu"),
        ("restart-pod nobody", "there is no pod default/nobody, only none at all"),
        ("log many", "'many' does not say how many lines"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(
    refusals: dict[str, str], command: str, reason: str
) -> None:
    assert reason in refusals[command]
    assert refusals[command].startswith("  cannot: ")


def test_the_agent_to_play_with_has_the_settings_that_were_given() -> None:
    done = play(
        "pod a 1 hailo.ai/ten\nlog 500\n",
        "--runtime.delivery=annotation",
        '--resource.names={"hailo-10h": "hailo.ai/ten"}',
        "--subscribers.socket=",
        "--host.dev=/nowhere",
    )
    said = answers(done.stdout)
    assert "default/a holds pci-0000-03-00-0" in said["pod a 1 hailo.ai/ten"]
    assert '"delivery": ["annotation"]' in said["log 500"]
    assert done.returncode == 0


def test_from_no_input_at_all_it_ends_at_once() -> None:
    with Path(os.devnull).open() as nothing:
        done = subprocess.run(SIMULATE, stdin=nothing, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "To look on from another terminal:" in done.stdout


def test_a_reader_that_hangs_up_ends_it_without_a_traceback() -> None:
    with subprocess.Popen(
        [*SIMULATE, "--story"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"1. A node starts")
        _, root = agent_of(process.pid)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 1
    assert not root.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_nothing_is_left_behind(number: signal.Signals) -> None:
    # Whoever runs the tests may ignore signals (nohup does), and children inherit that.
    command = ["env", "--default-signal", *SIMULATE, "--story"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        agent, root = agent_of(process.pid)
        assert root.is_dir()
        process.send_signal(number)
        process.send_signal(number)  # an impatient second one changes nothing
        assert process.wait(PATIENCE_SECONDS) == 128 + number
    assert not root.exists()
    assert not command_line(agent)


def test_on_a_terminal_the_story_is_a_screen_of_its_own_until_ctrl_c() -> None:
    with terminal("--story", NO_COLOR="1") as screen:
        agent, root = agent_of(screen.process.pid)
        screen.wait_for("2. Pods take devices")
        screen.wait_for("LAST HEARD FROM THE AGENT")
        screen.type("\x03")
        assert screen.finish() == 130
        drawn = screen.shown
    assert drawn.count("\x1b[?1049h") == drawn.count("\x1b[?1049l") == 1  # and back again
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")  # the cursor, too
    assert not re.search(r"\x1b\[[0-9;]*3[1-7]m", drawn)
    frames = drawn.split("\x1b[H")
    assert max(frame.count("\n") for frame in frames) < 24
    assert not root.exists()
    assert not command_line(agent)


def test_a_terminal_that_cannot_draw_gets_plain_lines() -> None:
    with terminal("--story", TERM="dumb") as lines:
        lines.wait_for("it registers with the kubelet: 1 Register")
        lines.type("\x03")
        assert lines.finish() == 130
        assert "\x1b[?1049h" not in lines.shown


def test_at_a_prompt_news_does_not_get_lost_and_ctrl_c_leaves() -> None:
    with terminal() as prompt:
        _, root = agent_of(prompt.process.pid)
        prompt.wait_for("\n> ")
        prompt.type("plug\n")
        prompt.wait_for("pci-0000-04-00-0 is here: hailo-8 at /dev/hailo2")
        prompt.wait_for("hailo.ai/npu: 4 of 4 healthy")
        prompt.type("\x03")
        assert prompt.finish() == 130
    assert not root.exists()


def test_ctrl_d_at_the_prompt_ends_it_well() -> None:
    with terminal() as prompt:
        prompt.wait_for("\n> ")
        prompt.type("\x04")
        assert prompt.finish() == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "at once"),
        (0.00061, "0.6 ms"),
        (0.0217, "22 ms"),
        (0.5, "500 ms"),
        (1.0, "1 s"),
        (1.504, "1.50 s"),
        (5, "5 s"),
    ],
)
def test_a_time_is_said_as_short_as_it_is_clear(seconds: float, text: str) -> None:
    assert duration(seconds) == text
