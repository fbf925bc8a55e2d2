"""`hailo-agent cdi`: the specification without an agent, for podman, docker and the curious."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from hailo_agent import agent
from hailo_agent.core.cdi import FILE_NAME, qualified
from hailo_agent.errors import HostError
from hailo_agent.runtime.reader import Document, SpecInvalid, read
from hailo_agent.runtime.specs import SpecStore
from hailo_agent.settings import Settings

_EX_FAILED = 1


def generate(settings: Settings, directory: Path) -> int:
    """Write the spec of what is here now; without a device, remove ours."""

    async def write() -> str:
        spec, numbers = await agent.look_for_spec(settings)
        store = SpecStore(directory=directory, search=())
        await store.replace(spec, numbers)
        if spec is None:
            return f"{store.path}: not there, as no device is here; `hailo-agent doctor` says why"
        count = len(spec.devices) - 1
        return f"{store.path}: {count} device{'' if count == 1 else 's'}"

    print(asyncio.run(write()))
    return 0


def show(settings: Settings) -> int:
    """Print what `generate` would write."""
    spec, _ = asyncio.run(agent.look_for_spec(settings))
    if spec is None:
        print("No device is here, so there would be no spec.", file=sys.stderr)
        return _EX_FAILED
    print(spec.to_json().decode(), end="")
    return 0


def list_names(settings: Settings) -> int:
    """Print the qualified names of the spec on disk, one a line."""
    path = settings.runtime.cdi_dir / FILE_NAME
    if not path.exists():
        remedy = "`hailo-agent cdi generate` writes one if there is a device"
        print(f"hailo-agent: there is no spec at {path}; {remedy}", file=sys.stderr)
        return _EX_FAILED
    for name in _read(path).devices:
        print(qualified(name))
    return 0


def validate(file: Path) -> int:
    """Check a file as a strict reader would, and name every line and field that is wrong."""
    try:
        document = _read(file)
    except SpecInvalid as invalid:
        for problem in invalid.problems:
            print(f"{file}:{problem.line}: {problem}" if problem.line else f"{file}: {problem}")
        return _EX_FAILED
    print(f"{file}: valid, CDI {document.version}, {document.kind}: {', '.join(document.devices)}")
    return 0


def _read(file: Path) -> Document:
    """Read a spec.

    Raises:
        HostError: the file cannot be read.
        SpecInvalid: no CDI reader would accept it.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise HostError(f"cannot read {file}: {error.strerror}", edge="cli") from error
    return read(text, name=file.name)
