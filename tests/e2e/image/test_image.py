"""What is in the image, and what is not."""

import re
import shutil
import stat
from pathlib import Path
from typing import Final

import pytest

from hailo_agent import __version__
from tests.e2e.figures import Figures
from tests.e2e.image.build import EPOCH, ORIGIN, REVISION, Image, built, md5

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

MEGABYTE: Final = 1e6
LIMIT: Final = 60 * MEGABYTE
ENVIRONMENT: Final = "opt/hailo-agent"
SITE_PACKAGES: Final = f"{ENVIRONMENT}/lib/python3.13/site-packages"
UNCHECKED: Final = (1).to_bytes(4, "little")
"""The flags of bytecode that is never compared to its source (PEP 552)."""


def test_it_is_small(image: Image, figures: Figures) -> None:
    sizes = [layer.stat().st_size / MEGABYTE for layer in image.layers]
    figures.note(
        f"image: {image.compressed_bytes / MEGABYTE:.1f} MB compressed"
        f" ({' + '.join(f'{size:.1f}' for size in sizes)}),"
        f" {image.unpacked_bytes / MEGABYTE:.1f} MB unpacked;"
        f" built in {image.seconds:.0f} s{' from a cache' * ('Using cache' in image.log)}"
    )
    assert image.compressed_bytes <= LIMIT


def test_a_new_release_of_the_agent_is_a_small_part_of_it(image: Image) -> None:
    *lower, last = image.layers
    assert len(lower) == 2
    assert last.stat().st_size < 0.1 * image.compressed_bytes
    assert all(
        entry.layer == 2
        for entry in image.entries
        if entry.name.startswith(f"{SITE_PACKAGES}/hailo")
    )


def test_it_runs_as_nobody_and_says_what_it_is(image: Image) -> None:
    config = image.inspected
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["hailo-agent"]
    assert config["Cmd"] == ["run"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "hailo-agent-healthcheck"]
    prefix = "org.opencontainers.image."
    labels = {
        name.removeprefix(prefix): text
        for name, text in config["Labels"].items()
        if name.startswith(prefix)
    }
    assert labels == {
        "title": "hailo-agent",
        "description": "Kubernetes node agent for Hailo accelerators",
        "licenses": "Apache-2.0",
        "version": __version__,
        "revision": REVISION,
        "source": ORIGIN,
    }


def test_the_only_programs_are_the_interpreter_and_the_agent(image: Image) -> None:
    programs = {
        entry.name
        for entry in image.entries
        if not entry.member.isdir()
        and (Path(entry.name).parent.name in {"bin", "sbin"} or entry.member.mode & 0o111)
        and not (entry.member.issym() and "/bin/" not in entry.name)
        and not re.search(r"\.so(\.|$)", entry.name)
    }
    assert programs == {
        "usr/bin/python3",
        "usr/bin/python3.13",
        f"{ENVIRONMENT}/bin/hailo-agent",
        f"{ENVIRONMENT}/bin/hailo-agent-healthcheck",
        f"{ENVIRONMENT}/bin/python",
        f"{ENVIRONMENT}/bin/python3",
        f"{ENVIRONMENT}/bin/python3.13",
    }


def test_nothing_in_it_installs_anything(image: Image) -> None:
    modules = {Path(entry.name).name for entry in image.entries}
    assert not modules & {"pip", "setuptools", "ensurepip", "venv", "wheel", "hatchling"}


def test_nobody_gains_rights_by_it_or_writes_to_it(image: Image) -> None:
    for entry in image.entries:
        member = entry.member
        assert (member.uid, member.gid) == (0, 0), entry.name
        assert not member.ischr(), entry.name
        assert not member.isblk(), entry.name
        if member.issym():
            continue
        if entry.name in {"tmp", "var/tmp"}:
            assert member.mode & 0o7777 == 0o1777
        else:
            assert not member.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH), entry.name
        assert "SCHILY.xattr.security.capability" not in member.pax_headers


def test_every_module_comes_with_bytecode_that_is_not_compared_to_it(image: Image) -> None:
    modules = [
        Path(name)
        for name in image.files
        if name.endswith(".py") and name.startswith(("usr/lib/python3.13", SITE_PACKAGES))
    ]
    assert len(modules) > 1000
    for path in modules:
        compiled = image.files[str(path.parent / "__pycache__" / f"{path.stem}.cpython-313.pyc")]
        assert compiled.content[4:8] == UNCHECKED, path


def test_everything_is_as_old_as_it_was_told_to_be(image: Image) -> None:
    assert {entry.member.mtime for entry in image.entries} == {EPOCH}


def test_scanners_find_the_package_of_every_library_and_its_licence(image: Image) -> None:
    status = "var/lib/dpkg/status.d/"
    packages = {
        name.removeprefix(status)
        for name in image.files
        if name.startswith(status) and not name.endswith(".md5sums")
    }
    assert {"libc6", "libpython3.13-stdlib", "python3.13-minimal", "libssl3t64"} <= packages
    owned = {}
    for package in packages:
        stanza = image.files[status + package].content.decode()
        assert f"Package: {package}\n" in stanza
        assert re.search(r"^Status: install ok installed$", stanza, re.MULTILINE)
        assert re.search(r"^Version: \S+$", stanza, re.MULTILINE)
        assert image.files[f"usr/share/doc/{package}/copyright"].content
        for line in image.files[f"{status}{package}.md5sums"].content.decode().splitlines():
            digest, _, path = line.partition("  ")
            owned[path] = digest
    libraries = {
        name for name in image.files if name.startswith("usr/lib") and ".so" in Path(name).name
    }
    assert libraries
    assert libraries <= owned.keys()
    # The lists say of no file that it is here unless it is, byte by byte.
    assert {path: md5(image.files[path].content) for path in owned} == owned


def test_the_lock_file_is_what_is_installed_no_more_no_less(image: Image) -> None:
    lock = (Path(__file__).parents[3] / "requirements/run.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9.-]+)==(\S+)", lock, re.MULTILINE))
    found = set()
    for name in image.files:
        if match := re.fullmatch(rf"{SITE_PACKAGES}/([^/]+)-([^/-]+)\.dist-info/METADATA", name):
            found.add((re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]))
    assert found == locked | {("hailo-agent", __version__)}


def test_it_is_the_same_when_the_same_is_built_again(image: Image, tmp_path: Path) -> None:
    # All but what apt installed, for a change in how pip is called that changes nothing.
    source = tmp_path / "source"
    shutil.copytree(image.source, source, copy_function=shutil.copy)
    install = source / "container/install"
    install.write_text(install.read_text() + "\n")
    again = built(source, tmp_path / "oci")
    assert re.search(r"RUN python3 /build/assemble\.py.*\n(?!--> Using cache)", again.log)
    assert [layer.name for layer in again.layers] == [layer.name for layer in image.layers]
