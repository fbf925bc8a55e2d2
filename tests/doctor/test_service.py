"""The systemd unit for machines without Kubernetes: what it starts, and that systemd takes it."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hailo_agent.cli import parser
from hailo_agent.errors import EX_CONFIG
from hailo_agent.settings import flags_from, load
from tests.house.repository import ROOT

UNIT = ROOT / "manifests" / "systemd" / "hailo-agent-cdi.service"


def values(key: str) -> list[str]:
    lines = UNIT.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def test_it_starts_a_verb_that_exists_with_settings_that_exist() -> None:
    (command,) = values("ExecStart")
    program, *arguments = shlex.split(command)
    assert program == "/opt/hailo-agent/bin/hailo-agent"  # where the how-to installs it
    known, rest = parser().parse_known_args(arguments)
    load(flags=flags_from(known, rest), environ={}, config=None)
    assert arguments[:2] == ["cdi", "watch"]


def test_it_may_write_where_the_agent_writes_and_nowhere_else() -> None:
    settings = load(flags=[], environ={}, config=None).settings
    (directories,) = values("RuntimeDirectory")
    written = [Path("/run") / name for name in directories.split()]
    assert settings.runtime.cdi_dir in {Path("/var/run/cdi"), Path("/run/cdi")}
    assert Path("/run/cdi") in written
    assert settings.subscribers.socket is not None
    assert settings.subscribers.socket.parent in written
    assert values("ProtectSystem") == ["strict"]
    assert values("ReadWritePaths") == []


def test_settings_that_cannot_be_used_are_not_tried_again() -> None:
    assert values("RestartPreventExitStatus") == [str(EX_CONFIG)]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_has_nothing_to_say_against_it(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    program = "/opt/hailo-agent/bin/hailo-agent"  # systemd wants it to be there
    unit.write_text(UNIT.read_text().replace(program, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line or str(unit) in line]
    assert (done.returncode, ours) == (0, [])
