"""One archive with everything that is needed to help somebody, and no secret in it.

What is known to hold secrets is never opened for it: of the runtimes' configurations it has the
doctor's findings, of the environment the names. All the rest goes through `masking` as well. What
does not answer in time is missing, and the manifest says so.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import platform
import re
import secrets
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from hailo_agent import __version__, doctor
from hailo_agent.core.diagnosis import diagnose
from hailo_agent.core.diagnosis.facts import Facts
from hailo_agent.core.diagnosis.finding import worst
from hailo_agent.errors import EdgeError
from hailo_agent.host.collect import read_sysfs
from hailo_agent.runtime.collect import cdi_files
from hailo_agent.settings import Loaded, Settings, show_json
from hailo_agent.support import sight as sights
from hailo_agent.support.holds import document as holds_document
from hailo_agent.support.masking import masked, masked_document, secrets_of
from hailo_agent.support.sight import Sight

FOLDER: Final = "hailo-agent-support"
MANIFEST: Final = "manifest.json"
MAX_FILE_BYTES: Final = 1024 * 1024
MAX_BYTES: Final = 16 * MAX_FILE_BYTES
"""Of all files together, before they are compressed."""

_MODE: Final = 0o600
_SECONDS: Final = 10.0
_NO_ANSWER: Final = f"no answer within {_SECONDS:g} s"
_MAX_OS_RELEASE_BYTES: Final = 16 * 1024
_KERNEL_COMMAND_LINE: Final = re.compile(r"command line:", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of the archive."""

    name: str
    what: str
    data: bytes
    is_cut: bool = False


@dataclass(slots=True, kw_only=True)
class Bundle:
    """What has been collected so far, and what could not be."""

    at: float
    """When, in seconds since 1970."""
    secrets: Sequence[str] = ()
    """Texts that must not leave the node, wherever they stand."""
    files: list[File] = field(default_factory=list)
    missing: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, what it would have been, and why it is not there."""

    def add(self, name: str, what: str, document: object) -> None:
        """Add a document of JSON."""
        text = json.dumps(masked_document(document, self.secrets), indent=1)
        is_cut = len(text) >= MAX_FILE_BYTES
        if is_cut:
            text = json.dumps({"cut": True, "begins": text[: MAX_FILE_BYTES // 3]})
        self.files.append(File(name=name, what=what, data=f"{text}\n".encode(), is_cut=is_cut))

    def add_lines(self, name: str, what: str, lines: Sequence[str]) -> None:
        """Add a text, of which the end matters most: whole lines, as many as there is room for."""
        kept: list[bytes] = []
        room = MAX_FILE_BYTES
        for line in reversed(lines):
            text = masked(line[:MAX_FILE_BYTES], self.secrets)
            data = f"{text}\n".encode("utf-8", "backslashreplace")
            room -= len(data)
            if room < 0:
                break
            kept.append(data)
        self.files.append(
            File(name=name, what=what, data=b"".join(reversed(kept)), is_cut=room < 0)
        )

    def miss(self, name: str, what: str, why: str) -> None:
        """Say that something is not there."""
        self.missing.append((name, what, masked(why, self.secrets)))

    def manifest(self) -> bytes:
        """List what is in the archive, and what is not."""
        document = {
            "tool": "hailo-agent support-bundle",
            "version": __version__,
            "createdAt": datetime.fromtimestamp(self.at, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "bounds": {"fileBytes": MAX_FILE_BYTES, "bytes": MAX_BYTES},
            "files": [
                {"name": f.name, "what": f.what, "bytes": len(f.data), "cut": f.is_cut}
                for f in sorted(self.files, key=lambda f: f.name)
            ],
            "missing": [
                {"name": name, "what": what, "why": why} for name, what, why in sorted(self.missing)
            ],
        }
        return f"{json.dumps(document, indent=1)}\n".encode()

    def archive(self) -> bytes:
        """Pack everything: the manifest first, then by name; the same content gives the same."""
        packed = io.BytesIO()
        with (
            gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=self.at) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            files = sorted(self.files, key=lambda f: f.name)
            contents = [(MANIFEST, self.manifest()), *((f.name, f.data) for f in files)]
            for name, data in contents:
                member = tarfile.TarInfo(f"{FOLDER}/{name}")
                member.size, member.mtime, member.mode = len(data), int(self.at), _MODE
                tar.addfile(member, io.BytesIO(data))
        return packed.getvalue()


async def collect(
    loaded: Loaded, *, root: Path, kernel_log: Path, environ: Mapping[str, str], at: float
) -> Bundle:
    """Collect everything; `root` is where the host's root directory is mounted."""
    settings = loaded.settings
    bundle = Bundle(at=at, secrets=secrets_of(environ))
    sight = await _look(bundle, loaded)
    bundle.add("versions.json", "versions of what runs here", _versions(root, sight))
    bundle.add("settings.json", "settings in effect, and their origins", _settings(loaded))
    bundle.add("environment.json", "names of our variables", {"names": _names(environ)})
    facts = await doctor.gather(settings, root=root, kernel_log=kernel_log)
    bundle.add("doctor.json", "hailo-agent doctor --json", _doctor(facts))
    _add_kernel_log(bundle, facts)
    await _add_sysfs(bundle, settings)
    await _add_cdi(
        bundle, {settings.runtime.cdi_dir: None, **dict.fromkeys(settings.runtime.cdi_search_dirs)}
    )
    return bundle


def write(path: Path, archive: bytes) -> None:
    """Write the archive for its owner alone; it is there as a whole, or not at all.

    Raises:
        EdgeError: it cannot be written; says why.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, _MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(archive)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise EdgeError(f"cannot write {path}: {reason}", edge="support") from error


# --- what is collected ---------------------------------------------------------------------------


_OF_SIGHT: Final = (
    ("inventory.json", "the devices, their health and holders"),
    ("parts.json", "what the agent's parts do"),
    ("recent.json", "what happened lately"),
    ("holders.json", "hailo-agent holders --json"),
)


async def _look(bundle: Bundle, loaded: Loaded) -> Sight | None:
    try:
        sight = await sights.look(loaded.settings)
    except EdgeError as error:
        for name, what in _OF_SIGHT:
            bundle.miss(name, what, str(error))
        return None
    whence = f", as the machine shows them: {sight.silence}" if sight.silence else ""
    inventory = sight.inventory
    bundle.add("inventory.json", f"{_OF_SIGHT[0][1]}{whence}", inventory.to_dict())
    bundle.add("holders.json", _OF_SIGHT[3][1], holds_document(sight))
    if sight.silence:
        bundle.miss(*_OF_SIGHT[1], sight.silence)
    else:
        readiness = inventory.readiness
        parts = [] if readiness is None else readiness.to_dict(include_default_values=True)
        bundle.add(*_OF_SIGHT[1], parts)
    if sight.unrecorded:
        bundle.miss(*_OF_SIGHT[2], sight.unrecorded)
    else:
        changes = [change.to_dict() for change in sight.recent]
        bundle.add(*_OF_SIGHT[2], {"changes": changes, "forgotten": sight.forgotten})
    return sight


def _versions(root: Path, sight: Sight | None) -> dict[str, Any]:
    asked = sight is not None and not sight.silence
    return {
        "hailo-agent": __version__,
        "running agent": sight.inventory.agent_version if sight is not None and asked else None,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "os": _os_release(root),
        "packages": dict(_packages()),
    }


def _os_release(root: Path) -> str:
    """Name the host's distribution (os-release(5))."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        with suppress(OSError, ValueError), (root / name).open("rb") as file:
            text = file.read(_MAX_OS_RELEASE_BYTES).decode("utf-8", "replace")
            found = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.MULTILINE)
            return "" if found is None else found[1]
    return ""


def _packages() -> Iterable[tuple[str, str]]:
    """Name the versions of the libraries that we stand on."""
    with suppress(metadata.PackageNotFoundError):
        for line in sorted(metadata.requires("hailo-agent") or ()):
            name = re.split(r"[^A-Za-z0-9._-]", line)[0]
            with suppress(metadata.PackageNotFoundError):
                yield name, metadata.version(name)


def _settings(loaded: Loaded) -> object:
    """Say them as `config show --json` does; what is called like a secret is masked by `add`."""
    document: object = json.loads(show_json(loaded))
    return document


def _names(environ: Mapping[str, str]) -> list[str]:
    return sorted(
        name for name in environ if name.startswith("HAILO_AGENT_") or name == "NODE_NAME"
    )


def _doctor(facts: Facts) -> dict[str, Any]:
    findings = diagnose(facts)
    return {
        "version": __version__,
        "verdict": worst(findings).value,
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _add_kernel_log(bundle: Bundle, facts: Facts) -> None:
    name, what = "kernel.log", "what the kernel log says of Hailo"
    lines = facts.host.kernel_log
    if lines is None:
        bundle.miss(name, what, f"{facts.host.kernel_log_path}: {facts.host.kernel_log_unseen}")
        return
    # The command line of the kernel is not ours to publish, whatever it says of us.
    bundle.add_lines(name, what, [x for x in lines if not _KERNEL_COMMAND_LINE.search(x)])


async def _add_sysfs(bundle: Bundle, settings: Settings) -> None:
    name, what = "sysfs.json", "attributes of Hailo's functions, classes and modules"
    found: dict[str, str] = {}
    classes = [family.class_name for family in settings.host.families]
    work = partial(read_sysfs, settings.host.sys, found, more_classes=classes)
    is_whole = await _in_time(work)
    bundle.add(name, what, dict(found))
    if not is_whole:
        bundle.miss(name, "the rest of it", _NO_ANSWER)


async def _add_cdi(bundle: Bundle, directories: Iterable[Path]) -> None:
    name, what = "cdi.json", "CDI files of our kind, and the names of the others"
    found: list[Any] = []

    def work() -> None:
        found.extend(dataclasses.asdict(file) for file in cdi_files(tuple(directories)))

    if await _in_time(work):
        bundle.add(name, what, found)
    else:
        bundle.miss(name, what, _NO_ANSWER)


async def _in_time(work: Callable[[], None]) -> bool:
    """Do in a thread what may hang; tells whether it came to its end."""
    with anyio.move_on_after(_SECONDS):
        await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        return True
    return False
