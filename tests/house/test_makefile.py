"""Every promised target exists, and says precisely what it lacks when it cannot do its work."""

import re
import stat
import sys
from pathlib import Path

import pytest

from tests.house.repository import ROOT, make

PROMISED = [
    "bench",
    "build",
    "check-nodes",
    "clean",
    "demo",
    "deploy",
    "deploy-local",
    "docker-build",
    "docker-build-multiarch",
    "e2e-long",
    "help",
    "lint",
    "lock",
    "proto",
    "proto-check",
    "status",
    "test",
    "undeploy",
    "verify",
]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z0-9-]+):(?!=)", MAKEFILE, re.MULTILINE)
PYTHON = Path(sys.executable).resolve()


@pytest.mark.parametrize("target", PROMISED)
def test_a_promised_target_exists_and_is_explained(target: str) -> None:
    assert target in TARGETS
    assert re.search(rf"^  {target} +[A-Z].+", make("help").stdout, re.MULTILINE)


def test_help_is_what_bare_make_gives() -> None:
    assert make().stdout == make("help").stdout


def test_no_target_is_mistaken_for_a_file() -> None:
    assert set(TARGETS) == set(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize(
    ("target", "variable"),
    [
        ("docker-build", "CONTAINERFILE"),
        ("docker-build-multiarch", "CONTAINERFILE"),
        ("deploy", "MANIFEST"),
        ("deploy-local", "MANIFEST"),
        ("undeploy", "MANIFEST"),
    ],
)
def test_what_is_not_shipped_yet_is_named(target: str, variable: str) -> None:
    result = make(target, **{variable: "no/such-file"})
    assert result.returncode != 0
    assert f"{target}: no/such-file is not part of this release yet" in result.stderr


@pytest.mark.parametrize(
    ("target", "variable"),
    [
        ("docker-build", "DOCKER"),
        ("docker-build-multiarch", "DOCKER"),
        ("deploy", "KUBECTL"),
        ("deploy-local", "KUBECTL"),
        ("undeploy", "KUBECTL"),
        ("status", "KUBECTL"),
        ("check-nodes", "KUBECTL"),
    ],
)
def test_a_missing_tool_is_named(target: str, variable: str) -> None:
    shipped = {"CONTAINERFILE": "Makefile", "MANIFEST": "Makefile"}
    result = make(target, **shipped, **{variable: "no-such-tool"})
    assert result.returncode != 0
    assert f"{target}: needs no-such-tool, which is not installed" in result.stderr


def test_status_asks_for_the_agents_pods() -> None:
    asked = make("--silent", "status", KUBECTL="echo").stdout.split()
    assert asked[:2] == ["get", "pods"]
    assert "kube-system" in asked


def test_check_nodes_asks_for_the_resource_of_each_node() -> None:
    asked = make("--silent", "check-nodes", KUBECTL="echo", RESOURCE="hailo.ai/hailo-8").stdout
    assert asked.startswith("get nodes ")
    assert r"ALLOCATABLE:.status.allocatable.hailo\.ai/hailo-8" in asked


@pytest.mark.parametrize(
    ("lacking", "said"),
    [("ensurepip", "apt-get install python3-venv"), ("version_info", "Python 3.11 or later")],
)
def test_an_unsuitable_python_is_told_how_to_be_mended(
    tmp_path: Path, lacking: str, said: str
) -> None:
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{lacking}*) exit 1 ;; esac\nexec {PYTHON} "$@"\n')
    python.chmod(0o755)
    result = make("venv", PYTHON=str(python), VENV=str(tmp_path / "venv"))
    assert result.returncode != 0
    assert said in result.stderr
    assert not (tmp_path / "venv").exists()


def test_no_python_at_all_is_told_too(tmp_path: Path) -> None:
    result = make("venv", PYTHON="/no/such/python3", VENV=str(tmp_path / "venv"))
    assert result.returncode != 0
    assert "'/no/such/python3' does not run" in result.stderr


def test_scripts_can_be_run_and_say_what_they_are_for() -> None:
    hack = [p for p in (ROOT / "hack").iterdir() if p.is_file() and not p.suffix]
    scripts = [ROOT / ".ci" / "run", *hack]
    assert {"build", "unit-test", "verify-lint", "verify-proto"} <= {s.name for s in scripts}
    for script in scripts:
        shebang, comment, *_ = script.read_text().splitlines()
        assert script.stat().st_mode & stat.S_IXUSR, script
        assert shebang.startswith("#!"), script
        assert comment.startswith("# "), script


def test_ci_runs_what_people_run() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
