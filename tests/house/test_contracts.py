"""The dependency rule holds, and would be noticed if it did not."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.repository import ROOT, environment, pyproject

CONTRACTS = {
    contract["id"]: contract for contract in pyproject()["tool"]["importlinter"]["contracts"]
}
GATES = [name for name in CONTRACTS if name.startswith("gate-")]


def lint_imports(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-logo", "--no-cache", *arguments],
        cwd=directory,
        env=environment(PYTHONPATH=str(directory), NO_COLOR="1", COLUMNS="200"),
        capture_output=True,
        text=True,
        check=False,
    )


def rooms() -> set[str]:
    """Tell every room and module that has a floor, but those that may come later."""
    floors = CONTRACTS["layers"]["layers"]
    return {room for floor in floors for room in floor.split(" | ") if not room.startswith("(")}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lend a copy of the package, for tests that plant something and take it away again."""
    directory = tmp_path_factory.mktemp("house")
    shutil.copytree(
        ROOT / "hailo_agent",
        directory / "hailo_agent",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(ROOT / "pyproject.toml", directory)
    return directory


def test_every_import_keeps_the_contracts() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("contract", "where", "line"),
    [
        ("layers", "kubelet", "import hailo_agent.host"),
        ("layers", "host", "import hailo_agent.runtime"),
        ("layers", "subscribers", "import hailo_agent.kubelet"),
        ("layers", "core", "import hailo_agent.settings"),
        ("layers", "core", "import hailo_agent.aio"),
        ("layers", "rpc", "import hailo_agent.wire"),
        ("layers", "host", "import hailo_agent.settings"),
        ("layers", "host", "import hailo_agent.sim"),
        ("core", "core", "import time"),
        ("core", "core", "from os import path"),
        ("core", "core", "import asyncio"),
        ("core", "core", "import logging"),
        ("log", "kubelet", "import hailo_agent.log"),
        ("gate-grpclib", "kubelet", "from grpclib.client import Channel"),
        ("gate-grpclib", "host", "import h2.events"),
        ("gate-betterproto2", "kubelet", "import betterproto2"),
        ("gate-watchfiles", "kubelet", "from watchfiles import awatch"),
        ("gate-yaml", "kubelet", "import yaml"),
        ("gate-pydantic-settings", "host", "import pydantic_settings"),
        ("gate-rich", "host", "from rich.table import Table"),
    ],
)
def test_a_planted_import_breaks_its_contract(
    copy: Path, contract: str, where: str, line: str
) -> None:
    planted = copy / "hailo_agent" / where / "planted.py"
    planted.write_text(f"{line}\n")
    try:
        result = lint_imports(copy, "--contract", contract)
    finally:
        planted.unlink()
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{CONTRACTS[contract]['name']} BROKEN" in result.stdout
    assert f"hailo_agent.{where}.planted" in result.stdout


def test_a_room_without_a_floor_is_noticed(copy: Path) -> None:
    room = copy / "hailo_agent" / "helpers"
    room.mkdir()
    (room / "__init__.py").touch()
    try:
        result = lint_imports(copy, "--contract", "layers")
    finally:
        shutil.rmtree(room)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "helpers" in result.stdout


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_closed_to_all_but_those_in_its_name(gate: str) -> None:
    contract = CONTRACTS[gate]
    admitted = set(re.split(r", | and ", contract["name"].partition(": only ")[2]))
    assert admitted <= rooms()
    closed = {module.removeprefix("hailo_agent.") for module in contract["source_modules"]}
    assert closed == rooms() - admitted


def test_every_library_of_one_room_has_a_gate() -> None:
    gated = {library for gate in GATES for library in CONTRACTS[gate]["forbidden_modules"]}
    shared = {"anyio", "orjson", "pydantic", "structlog"}  # any edge may use them; see the purity
    names = {re.split(r"[\[<>=]", line)[0] for line in pyproject()["project"]["dependencies"]}
    modules = {{"PyYAML": "yaml"}.get(name, name.replace("-", "_")) for name in names}
    assert modules - shared <= gated
