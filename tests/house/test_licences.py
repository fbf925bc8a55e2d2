"""Only what is allowed is deployed, and what is deployed is told."""

import re
import subprocess
import sys
from email.message import Message
from importlib.machinery import SourceFileLoader
from importlib.metadata import PackageNotFoundError
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from tests.house.repository import ROOT, environment

SCRIPT = ROOT / "hack" / "licences"


def loaded() -> ModuleType:
    loader = SourceFileLoader("licences", str(SCRIPT))
    spec = spec_from_loader("licences", loader)
    assert spec is not None
    module = module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # else hack/licencesc
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


licences = loaded()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def installed(monkeypatch: pytest.MonkeyPatch, **packages: dict[str, str | list[str]]) -> str:
    """Pretend that these are installed, and write the lock file that pins them."""

    def metadata(name: str) -> Message:
        if name not in packages:
            raise PackageNotFoundError(name)
        said = Message()
        for key, value in ({"Version": "1.0"} | packages[name]).items():
            for line in [value] if isinstance(value, str) else value:
                said[key] = line
        return said

    monkeypatch.setattr(licences.metadata, "metadata", metadata)
    return "".join(f"{name}==1.0 \\\n    --hash=sha256:{'0' * 64}\n" for name in packages)


def test_what_is_locked_is_allowed_and_the_page_tells_all_of_it() -> None:
    checked = run("--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    page = (ROOT / "docs" / "reference" / "licences.md").read_text()
    for name, version in licences.locked((ROOT / "requirements" / "run.txt").read_text()):
        assert f"\n| {name} | {version} | " in page


def test_a_page_that_is_out_of_date_fails_and_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "licences.md"
    page.write_text("# Licences\n")
    checked = run("--check", f"--page={page}")
    assert checked.returncode == 1
    assert checked.stderr == "licences: licences.md is out of date: run 'make licences'\n"
    assert page.read_text() == "# Licences\n"


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("LGPL-2.1-or-later", False),
        ("MIT OR GPL-2.0-only", True),
        ("GPL-2.0-only OR MIT", True),
        ("MIT AND GPL-2.0-only", False),
        ("GPL-2.0-only AND MIT", False),
        ("MIT AND (GPL-2.0-only OR Apache-2.0)", True),
        ("(MIT OR Apache-2.0) AND GPL-2.0-only", False),
        ("MIT OR Apache-2.0 AND GPL-2.0-only", True),
        ("Apache-2.0 WITH LLVM-exception", False),
        ("MPL-2.0", False),
        ("MIT)", False),
        ("(MIT", False),
        ("", False),
    ],
)
def test_an_expression_is_allowed_if_it_can_be_met(expression: str, *, allowed: bool) -> None:
    assert licences.is_allowed("any", expression) is allowed


def test_an_exception_is_for_one_package_and_no_other() -> None:
    assert licences.is_allowed("orjson", "MPL-2.0 AND (Apache-2.0 OR MIT)")
    assert not licences.is_allowed("other", "MPL-2.0 AND (Apache-2.0 OR MIT)")


@pytest.mark.parametrize(
    ("said", "licence"),
    [
        ({"License-Expression": "MIT", "License": "GPL"}, "MIT"),
        ({"License": "Apache 2.0"}, "Apache-2.0"),
        ({"Classifier": ["Topic :: X", "License :: OSI Approved :: MIT License"]}, "MIT"),
        (
            {"License": "long text\nmore", "Classifier": "License :: OSI Approved :: MIT License"},
            "MIT",
        ),
    ],
)
def test_a_licence_is_read_wherever_it_is_said(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str | list[str]], licence: str
) -> None:
    lock = installed(monkeypatch, package=said)
    assert licences.examined(lock) == [("package", "1.0", licence)]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({}, "package 1.0 says nothing of its licence"),
        ({"License": "GPLv3"}, "package 1.0 is under 'GPLv3', which is not on the list"),
        (
            {"Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"},
            "package 1.0 is under 'GNU General Public License v3 (GPLv3)'",
        ),
        ({"Version": "2.0", "License": "MIT"}, "package is 2.0 here and locked as 1.0: make venv"),
    ],
)
def test_what_nobody_knows_or_allowed_is_refused(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str | list[str]], told: str
) -> None:
    lock = installed(monkeypatch, good={"License": "MIT"}, package=said)
    with pytest.raises(licences.Refusal, match=re.escape(told)):
        licences.examined(lock)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "run.txt"
    lock.write_text("no-such-package==1.0 \\\nno-other-package==2.0 \\\nanyio==0.1 \\\n")
    refused = run(f"--lock={lock}", f"--page={tmp_path / 'page.md'}")
    assert refused.returncode == 1
    assert "no-such-package is locked and not installed: make venv\n" in refused.stderr
    assert "no-other-package is locked" in refused.stderr
    assert "here and locked as 0.1" in refused.stderr
    assert not (tmp_path / "page.md").exists()


def test_an_empty_lock_file_proves_nothing() -> None:
    with pytest.raises(licences.Refusal, match="pins nothing"):
        licences.examined("")
