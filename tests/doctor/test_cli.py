"""`hailo-agent doctor` as a person types it, and as a program reads it: words, JSON, exit codes."""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hailo_agent import __version__, doctor
from hailo_agent.cli import doctor as cli
from hailo_agent.core.diagnosis.facts import Facts
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.settings import Settings
from hailo_agent.sim.generations import HAILO_8
from hailo_agent.sim.reports import REPORTS, Scene
from tests.doctor.support import (
    SECONDS,
    Told,
    command,
    examined_by,
    examined_by_nobody,
    scene,
    settings_of,
    takes_root,
    write_spec,
)

HEALTHY, DEGRADED, BROKEN = 0, 1, 2


@pytest.fixture
def here() -> Iterator[Scene]:
    with scene() as built:
        yield built


def run(at: Scene, *more: str, **how: Any) -> "subprocess.CompletedProcess[str]":  # noqa: ANN401
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HAILO_AGENT_")}
    done = subprocess.run(
        command(at, *more),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**environment, **how.pop("env", {})},
        **how,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


async def a_card(at: Scene) -> None:
    at.firmware()
    at.machine.load("4.23")
    at.machine.plug("0000:01:00.0", pci_id=HAILO_8)
    await write_spec(at)


# --- exit codes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "code", "sum_"),
    [
        ("viseron_1490_library_in_the_image_older_than_the_driver", HEALTHY, "is healthy"),
        ("geerlingguy_164_a_link_of_generation_2", DEGRADED, "works, but not as it could"),
        ("hailo_apps_111_driver_5_for_a_hailo_8", BROKEN, "is broken"),
    ],
)
def test_the_exit_code_is_the_worst_there_is(
    here: Scene, capsys: pytest.CaptureFixture[str], report: str, code: int, sum_: str
) -> None:
    REPORTS[report].build(here)
    asyncio.run(write_spec(here))
    found = cli.doctor(settings_of(here), root=here.host, kernel_log=here.kernel_log, as_json=False)
    assert found == code
    assert sum_ in capsys.readouterr().out.splitlines()[-1]


async def test_json_says_the_same_and_more(here: Scene) -> None:
    REPORTS["geerlingguy_164_a_link_of_generation_2"].build(here)
    await write_spec(here)
    done = run(here, "--json")
    assert done.returncode == DEGRADED
    document = json.loads(done.stdout)
    assert document.keys() == {"version", "verdict", "findings"}
    assert (document["version"], document["verdict"]) == (__version__, "degraded")
    for finding in document["findings"]:
        assert list(finding) == ["check", "looked_at", "found", "verdict", "why", "next_step"]
        assert all(isinstance(value, str) for value in finding.values())
        assert finding["verdict"] in set(Verdict)
    checks = [finding["check"] for finding in document["findings"]]
    assert checks[0] == "device.link"  # the worst
    assert checks.index("pci.function") < checks.index("cdi.spec")


def test_a_setting_that_is_none_is_told_before_anything_is_examined(here: Scene) -> None:
    done = run(here, "--runtime.delivery=pigeon")
    assert done.returncode == 78
    assert done.stdout == ""
    assert "runtime.delivery" in done.stderr


# --- words ---------------------------------------------------------------------------------------


def shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *findings: Finding
) -> list[str]:
    async def examine(settings: Settings, *, root: Path, kernel_log: Path) -> Sequence[Finding]:
        assert isinstance(settings, Settings)
        assert root.is_absolute()
        assert kernel_log.is_absolute()
        return findings

    monkeypatch.setattr(doctor, "examine", examine)
    with scene() as at:
        cli.doctor(settings_of(at), root=Path("/"), kernel_log=Path("/x"), as_json=False)
    return capsys.readouterr().out.splitlines()


def test_a_finding_in_a_pipe_is_wrapped_at_100_and_not_padded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding(
        check="x",
        looked_at="/a/b-c.json",
        found="found " * 30,
        verdict=Verdict.BROKEN,
        why="because " * 20,
        next_step="`do this` " * 20,
    )
    lines = shown(capsys, monkeypatch, finding)
    assert lines[0].startswith("broken    /a/b-c.json: found found")
    assert all(len(line) <= 100 and line == line.rstrip() for line in lines)
    labels = [line.split()[0] for line in lines if line[:10].strip() or line[10:15].strip()]
    assert [label for label in labels if label != "found"] == ["broken", "why", "do", "Something"]


def test_lines_to_write_are_left_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = 'cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"] # ' + "x" * 100
    step = f"at the end of F, write:\n{long}\nthen `restart`"
    finding = Finding(
        check="x", looked_at="F", found="off", verdict=Verdict.DEGRADED, why="y", next_step=step
    )
    lines = shown(capsys, monkeypatch, finding)
    assert f"{'':15}{long}" in lines
    assert f"{'':15}then `restart`" in lines


def test_what_a_terminal_would_obey_is_shown_and_not_sent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = Finding(check="x", looked_at="log", found="\x1b[2J\x07[red]hailo[/red]\u202e")
    lines = shown(capsys, monkeypatch, hostile)
    assert lines[0] == r"ok        log: \x1b[2J\x07[red]hailo[/red]\u202e"


def test_how_many_checks_were_blind_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = Finding(
        check="x", looked_at="x", found="x", verdict=Verdict.UNSEEN, why="y", next_step="z"
    )
    fine = Finding(check="x", looked_at="x", found="x")
    assert shown(capsys, monkeypatch, blind, fine)[-1] == (
        "As far as could be seen, this node is healthy. 1 of 2 checks could not look."
    )
    assert shown(capsys, monkeypatch, fine)[-1] == "This node is healthy."


def test_a_node_without_an_accelerator_is_not_called_healthy(
    here: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.doctor(settings_of(here), root=here.host, kernel_log=here.kernel_log, as_json=False)
    assert code == HEALTHY
    assert capsys.readouterr().out.splitlines()[-1] == (
        "This node has no accelerator; nothing else is wrong with it."
    )


# --- who cannot see everything -------------------------------------------------------------------


@takes_root
async def test_nobody_gets_a_diagnosis_of_what_everybody_may_see(here: Scene) -> None:
    await a_card(here)
    here.kernel_log.chmod(0o600)
    (here.kubelet / "device-plugins").mkdir(parents=True)
    here.kubelet.chmod(0o750)
    here.write("/etc/containerd/config.toml", "version = 2")
    (here.host / "etc/containerd/config.toml").chmod(0o600)
    told = Told(examined_by_nobody(here))
    assert told.verdict is Verdict.DEGRADED  # for there is a kubelet, and no agent
    assert told.the("pci.function").found.startswith("ready as ")
    assert told.the("cdi.spec").found == "valid, and true: 1 device"
    unseen = {finding.check for finding in told.findings if finding.verdict is Verdict.UNSEEN}
    assert unseen == {"kernel.log", "runtime.cdi", "kubelet.socket", "kubelet.resource"}
    for check in unseen:
        assert "ermission denied" in told.the(check).found, check


@takes_root
async def test_intel_2075_all_inotify_instances_of_a_user_are_in_use(here: Scene) -> None:
    # Of a user of whom there is no other process, for the limit is each user's.
    await a_card(here)
    lonely = 1_900_000_000 + os.getpid()
    finding = Told(examined_by(lonely, here, exhaust=True)).the("system.inotify")
    assert finding.verdict is Verdict.DEGRADED
    assert finding.found.endswith(", and all are in use")


async def test_an_edge_that_does_not_answer_costs_its_own_findings_and_no_others(
    here: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_card(here)
    plugins = here.kubelet / "device-plugins"
    plugins.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(plugins / "kubelet.sock"))
    monkeypatch.setattr(doctor, "_EDGE_SECONDS", -1.0)
    facts: Facts = await doctor.gather(
        settings_of(here), root=here.host, kernel_log=here.kernel_log
    )
    assert facts.host.kernel_log_unseen.startswith("no answer within")
    assert facts.spec.unseen.startswith("no answer within")
    assert facts.kubelet.socket_unseen.startswith("no answer within")
    assert len(facts.inventory.devices) == 1
