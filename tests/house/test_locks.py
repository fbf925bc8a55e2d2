"""What is locked fits what is declared: an install today and in a year give the same tree."""

import re
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.house.repository import ROOT, pyproject

PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ]+)(?: ; (?P<marker>[^\\]+))? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?P<more> \\)?$")
PROJECT: dict[str, Any] = pyproject()
LOCKS = ["run", "dev"]


def pins(lock: str) -> dict[str, str]:
    """Read a lock file, in which nothing but pins and their hashes may stand."""
    found: dict[str, str] = {}
    hashed = True
    for line in (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines():
        if pin := PIN.match(line):
            assert hashed, f"the pin before {line!r} has no hash"
            assert pin["name"] not in found, f"{pin['name']} is pinned twice"
            found[pin["name"]] = pin["version"]
            hashed = False
        else:
            assert HASH.match(line), f"neither a pin nor a hash: {line!r}"
            hashed = True
    assert hashed
    return found


@pytest.mark.parametrize(
    ("lock", "declared"),
    [
        ("run", PROJECT["project"]["dependencies"]),
        ("dev", PROJECT["project"]["dependencies"]),
        ("dev", PROJECT["dependency-groups"]["dev"]),
        ("dev", PROJECT["build-system"]["requires"]),
    ],
)
def test_each_declared_dependency_is_pinned_in_its_range(lock: str, declared: list[str]) -> None:
    pinned = pins(lock)
    for line in declared:
        requirement = Requirement(line)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line}: pinned to {version}"


def test_tests_run_with_the_versions_that_are_deployed() -> None:
    run, dev = pins("run"), pins("dev")
    assert run == {name: dev[name] for name in run}


def test_tools_of_development_are_not_deployed() -> None:
    assert not pins("run").keys() & {"pytest", "ruff", "mypy", "grpcio", "protobuf", "hatchling"}


def test_compiler_and_runtime_of_the_wire_are_of_one_minor_version() -> None:
    dev = pins("dev")
    minor = dev["betterproto2"].rpartition(".")[0]
    assert SpecifierSet(f"=={minor}.*").contains(dev["betterproto2-compiler"])
