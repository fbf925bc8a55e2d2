"""The agent's image, built as `docker build` would, and laid out so that a test can look into it.

Buildah builds container/Dockerfile from a Debian that `hack/image-base` makes, so that no registry
is needed. What it keeps between runs is in `build/image`, or where IMAGE_CACHE says.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import orjson

SOURCE: Final = Path(__file__).parents[3]
CACHE: Final = Path(os.environ.get("IMAGE_CACHE") or SOURCE / "build/image").absolute()
BASE: Final = "localhost/hailo-agent-base:trixie"
EPOCH: Final = 1_600_000_000
"""Another one than the Dockerfile's own, to see that it is heeded."""
TAG: Final = "localhost/hailo-agent:test"
REVISION: Final = "0123456789abcdef0123456789abcdef01234567"
ORIGIN: Final = "https://example.com/hailo-agent"
_INGREDIENTS: Final = (
    *("container", "hailo_agent", "requirements", ".dockerignore"),
    *("LICENSE", "README.md", "pyproject.toml"),
)
_SECONDS: Final = 800.0
_TOOLS: Final = ("buildah", "debootstrap")


class NoImage(Exception):
    """Raised where no image can be built; says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or link of the image, by the layer it is in."""

    layer: int
    member: tarfile.TarInfo
    content: bytes

    @property
    def name(self) -> str:
        """Its path, without a leading slash."""
        return self.member.name


@dataclass(frozen=True)
class Image:
    """The image, as a directory of OCI's layout."""

    source: Path
    directory: Path
    inspected: Mapping[str, Any]
    """What buildah says of it, the parts that OCI has no place for included."""
    log: str
    """What buildah said while it built."""
    seconds: float
    """How long it took to build, the base not counted."""

    @cached_property
    def layers(self) -> tuple[Path, ...]:
        """The layers' files, compressed, the lowest first."""
        index = orjson.loads((self.directory / "index.json").read_bytes())
        manifest = orjson.loads(self._blob(index["manifests"][0]["digest"]).read_bytes())
        return tuple(self._blob(layer["digest"]) for layer in manifest["layers"])

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """All that is in it."""
        found = []
        for number, layer in enumerate(self.layers):
            with gzip.open(layer) as stream, tarfile.open(fileobj=stream) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    content = file.read() if file else b""
                    member.name = member.name.removeprefix("./").rstrip("/")
                    found.append(Entry(layer=number, member=member, content=content))
        return tuple(found)

    @cached_property
    def files(self) -> Mapping[str, Entry]:
        """Its regular files, by path; a hard link counts as what it links to."""
        files = {entry.name: entry for entry in self.entries if entry.member.isfile()}
        links = {e.name: files[e.member.linkname] for e in self.entries if e.member.islnk()}
        return {**files, **links}

    @property
    def compressed_bytes(self) -> int:
        """What a node has to fetch."""
        return sum(layer.stat().st_size for layer in self.layers)

    @property
    def unpacked_bytes(self) -> int:
        """What it takes on a node's disk."""
        return sum(entry.member.size for entry in self.entries)

    def _blob(self, digest: str) -> Path:
        return self.directory / "blobs" / digest.replace(":", "/")


def snapshot(directory: Path) -> Path:
    """Copy what the image is built from, as old as now, so that it stays what it is meanwhile."""
    leave = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in _INGREDIENTS:
        source, target = SOURCE / name, directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, copy_function=shutil.copy, ignore=leave)
        else:
            shutil.copy(source, target)
    return directory


def built(source: Path, directory: Path) -> Image:
    """Build the image from such a copy, and lay it out in a directory that is not there yet.

    Raises:
        NoImage: a tool or a network is missing, in the words of who misses it.
    """
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise NoImage(f"no image here: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise NoImage("no image here: only root can make a Debian to build it from")
    buildah = ("buildah", f"--root={CACHE / 'store'}", f"--runroot={CACHE / 'runroot'}")
    prepared = _run(SOURCE / "hack/image-base", CACHE, BUILDAH=" ".join(buildah))
    if prepared.returncode:
        raise NoImage(f"no image here: {prepared.stdout.strip()}")
    began = time.monotonic()
    build = _run(
        *(*buildah, "bud", "--isolation=chroot", "--network=host", "--format=docker"),
        "--layers",  # as docker does: one for each instruction
        f"--build-arg=BASE={BASE}",
        f"--build-arg=SOURCE_DATE_EPOCH={EPOCH}",
        f"--build-arg=REVISION={REVISION}",
        f"--build-arg=SOURCE={ORIGIN}",
        f"--build-context=wheels={CACHE / 'wheels'}",
        f"--timestamp={EPOCH}",
        *("--tag", TAG, "--file", source / "container/Dockerfile", source),
    )
    # All is there that it needs: that it does not build is nobody's fault but ours.
    assert build.returncode == 0, build.stdout[-3000:]
    seconds = time.monotonic() - began
    push = _run(*buildah, "push", "--quiet", TAG, f"oci:{directory}:test")
    assert push.returncode == 0, push.stdout
    inspected = subprocess.check_output([*buildah, "inspect", "--type=image", TAG])
    return Image(
        source=source,
        directory=directory,
        inspected=orjson.loads(inspected)["Docker"]["config"],
        log=build.stdout,
        seconds=seconds,
    )


def md5(content: bytes) -> str:
    """Sum as Debian's lists of files do."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **env},
        timeout=_SECONDS,
        check=False,
    )
