"""What holds for every file of the repository, and for what is built from them."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hailo_agent
from tests.house.repository import ROOT, environment, text_files

FILES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in text_files()}
# Put together from pieces, so that this file does not name them either.
REGISTRIES = [".".join(name) for name in (("pypi", "org"), ("files", "pythonhosted", "org"))]


@pytest.mark.parametrize(
    "unwanted",
    [
        pytest.param(re.compile(r"\r"), id="carriage returns"),
        pytest.param(re.compile(r"[ \t]+$", re.MULTILINE), id="blanks at the end of a line"),
        pytest.param(re.compile(r"[^\n]\Z|\n\n\Z"), id="an end other than one newline"),
        pytest.param(re.compile(r"^(<{7}|>{7}) ", re.MULTILINE), id="leftovers of a merge"),
    ],
)
def test_no_file_has(unwanted: re.Pattern[str]) -> None:
    assert not [name for name, text in FILES.items() if unwanted.search(text)]


def test_no_file_names_a_package_registry() -> None:
    # Which registry, or which mirror, is the business of whoever installs.
    assert not [name for name, text in FILES.items() for host in REGISTRIES if host in text]


def test_the_changelog_speaks_of_this_version() -> None:
    version = re.escape(hailo_agent.__version__)
    heading = rf"^## \[?(Unreleased|{version})\b"
    assert re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def build(into: Path) -> dict[str, bytes]:
    program = Path(sys.executable).with_name("hatchling")
    command = [str(program), "build", "-d", str(into)]
    subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=True)
    return {path.name: path.read_bytes() for path in into.iterdir()}


def test_the_same_source_builds_the_same_bytes(tmp_path: Path) -> None:
    first, second = build(tmp_path / "first"), build(tmp_path / "second")
    assert first == second
    stem = f"hailo_agent-{hailo_agent.__version__}"
    assert set(first) == {f"{stem}-py3-none-any.whl", f"{stem}.tar.gz"}

    with zipfile.ZipFile(tmp_path / "first" / f"{stem}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
    assert "hailo_agent/py.typed" in names
    assert "hailo_agent/wire/generated/deviceplugin/v1beta1/__init__.py" in names
    assert f"{stem}.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if not name.startswith(("hailo_agent/", stem))]
