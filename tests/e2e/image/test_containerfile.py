"""What can be said of the Dockerfile without building it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from hailo_agent import __version__
from tests.e2e.ability import lacking

SOURCE: Final = Path(__file__).parents[3]
DOCKERFILE: Final = SOURCE / "container/Dockerfile"
IGNORED: Final = SOURCE / ".dockerignore"


@pytest.fixture(scope="module")
def hadolint() -> str:
    # Beside the interpreter, where pip puts what a package brings.
    found = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if found is None:
        lacking("no hadolint for this machine")
    return found


def test_hadolint_has_nothing_to_say(hadolint: str) -> None:
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_would_have_something_to_say(hadolint: str, tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text() + "ADD . /\nUSER root\n")
    assert subprocess.run([hadolint, wrong], capture_output=True, check=False).returncode == 1


def test_the_version_is_the_agents_wherever_it_is_written() -> None:
    found = re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found == [__version__, __version__]


def test_the_base_is_pinned_by_its_digest() -> None:
    [base] = re.findall(r"^ARG BASE=(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert re.fullmatch(r"debian:trixie-slim@sha256:[0-9a-f]{64}", base)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)) == {
        "scratch",
        "${BASE}",
    }


def test_what_is_copied_is_all_that_the_context_has() -> None:
    lines = re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    copied = {source for line in lines for source in line.split()[:-1]}
    allowed = {
        line.removeprefix("!").rstrip("/")
        for line in IGNORED.read_text().splitlines()
        if line.startswith("!")
    }
    assert "*" in IGNORED.read_text().splitlines()
    assert {path if path in allowed else path.partition("/")[0] for path in copied} == allowed
    assert all((SOURCE / path).exists() for path in copied)


def test_the_backends_part_of_the_lock_is_found() -> None:
    printed = subprocess.check_output(
        [SOURCE / "container/install", "--backend", SOURCE / "requirements/dev.txt"], text=True
    )
    names = re.findall(r"^([a-z-]+)==", printed, re.MULTILINE)
    assert "hatchling" in names
    assert "pytest" not in names
    assert all(line.startswith("    --hash=") or "==" in line for line in printed.splitlines())
