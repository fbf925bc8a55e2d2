"""A release says what changed, and everything in it states one version."""

import shutil
import subprocess
from pathlib import Path

import pytest

import hailo_agent
from tests.house.repository import ROOT, environment

CHANGELOG = """\
# Changelog

## [Unreleased]

### Added

- Something new.

## [0.2.0] - 2026-02-01

### Fixed

- `$(rm)` and "quotes" are only text.

## [0.2.0-rc.1] - 2026-01-20

- A candidate.

## 0.1.0

- First.

## [0.0.1]

[0.2.0]: https://example.com/compare
"""


def notes(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return subprocess.run(
        [str(ROOT / "hack" / "release-notes"), *arguments],
        env=environment(CHANGELOG=str(tmp_path / "CHANGELOG.md")),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("version", "section"),
    [
        ("Unreleased", "### Added\n\n- Something new.\n"),
        ("0.2.0", '### Fixed\n\n- `$(rm)` and "quotes" are only text.\n'),
        ("v0.2.0", '### Fixed\n\n- `$(rm)` and "quotes" are only text.\n'),
        ("0.2.0-rc.1", "- A candidate.\n"),
        ("0.1.0", "- First.\n"),
    ],
)
def test_the_notes_of_a_release_are_its_section_and_nothing_else(
    tmp_path: Path, version: str, section: str
) -> None:
    told = notes(tmp_path, version)
    assert (told.returncode, told.stdout, told.stderr) == (0, section, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["0.3.0"], "no section for 0.3.0; it has: Unreleased, 0.2.0, 0.2.0-rc.1, 0.1.0, 0.0.1"),
        (["0.2"], "no section for 0.2;"),
        (["0x2.0"], "no section for 0x2.0;"),  # a dot is a dot
        (["0.0.1"], "says nothing of 0.0.1: its section is empty"),
        ([], "which version?"),
    ],
)
def test_a_release_without_notes_is_refused(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    told = notes(tmp_path, *arguments)
    assert (told.returncode, told.stdout) == (1, "")
    assert said in told.stderr


def test_our_own_changelog_has_what_a_release_needs() -> None:
    command = [str(ROOT / "hack" / "release-notes")]
    told = [
        subprocess.run([*command, version], capture_output=True, text=True, check=False)
        for version in ("Unreleased", hailo_agent.__version__)
    ]
    assert any(each.returncode == 0 and "### " in each.stdout for each in told)


VERSIONED = [
    "hailo_agent/__init__.py",
    "container/Dockerfile",
    "manifests/hailo-agent.yaml",
    "manifests/uninstall.yaml",
    "manifests/helm/hailo-agent/Chart.yaml",
]


def verified(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(root / "hack" / "verify-version"), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy what states the version, all of it there and in agreement."""
    for name in [*VERSIONED, "hack/verify-version"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_everything_states_the_version_of_the_package() -> None:
    done = verified(ROOT, f"v{hailo_agent.__version__}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"verify-version: everything is {hailo_agent.__version__}\n"


@pytest.mark.parametrize("name", VERSIONED)
def test_one_that_states_another_version_is_named(copy: Path, name: str) -> None:
    file = copy / name
    assert hailo_agent.__version__ in file.read_text()
    file.write_text(file.read_text().replace(hailo_agent.__version__, "9.8.7"))
    done = verified(copy)
    assert done.returncode == 1
    assert "9.8.7" in done.stderr
    if name != VERSIONED[0]:  # where that one differs, all others do
        assert name in done.stderr


@pytest.mark.parametrize("name", VERSIONED[1:])
def test_one_that_is_missing_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    done = verified(copy)
    assert done.returncode == 1
    assert f"{name}" in done.stderr
    assert "states no version" in done.stderr


def test_a_tag_of_another_version_is_refused(copy: Path) -> None:
    done = verified(copy, "v0.0.0")
    assert done.returncode == 1
    said = f"the tag says 0.0.0; hailo_agent.__version__ is {hailo_agent.__version__}"
    assert said in done.stderr
