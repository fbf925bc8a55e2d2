"""The CDI files of this node, for a report: those of our kind as they stand, the others by name.

What others wrote may hold anything, so it is not copied. Of our kind, values of environment
variables are left out: we write none, so they are somebody else's.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hailo_agent.core.cdi import KIND
from hailo_agent.runtime.reader import SpecInvalid, read

_MAX_FILES: Final = 128
_MAX_BYTES: Final = 256 * 1024
_SUFFIXES: Final = (".json", ".yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiFile:
    """One file of a CDI directory."""

    path: str
    bytes: int = 0
    kind: str = ""
    """Empty if it could not be read as a spec."""
    document: Any = None
    """What is in it; None for files of other kinds, or what is not JSON."""
    trouble: str = ""
    """Why it could not be read, or what a runtime would refuse it for."""


def cdi_files(directories: Sequence[Path]) -> tuple[CdiFile, ...]:
    """Read every directory that runtimes read; each file once, in order."""
    found: dict[str, CdiFile] = {}
    for directory in directories:
        for path in _listed(directory):
            found.setdefault(os.path.realpath(path), _file(path))
            if len(found) >= _MAX_FILES:
                return tuple(found.values())
    return tuple(found.values())


def _listed(directory: Path) -> Iterable[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.name.endswith(_SUFFIXES))
    except OSError:
        return ()


def _file(path: Path) -> CdiFile:
    try:
        text = _read(path)
    except OSError as error:
        return CdiFile(path=_shown(path), trouble=os.strerror(error.errno or 0))
    if text is None:
        return CdiFile(path=_shown(path), trouble=f"no regular file of up to {_MAX_BYTES} bytes")
    try:
        document = read(text, name=path.name)
    except SpecInvalid as invalid:
        # Where, but not what: the words of a problem may quote what stands there.
        places = ", ".join(f"line {p.line}: {p.field or 'syntax'}" for p in invalid.problems[:4])
        return CdiFile(
            path=_shown(path), bytes=len(text), trouble=f"runtimes refuse it, see {places}"
        )
    return CdiFile(
        path=_shown(path),
        bytes=len(text),
        kind=document.kind,
        document=_without_values(_parsed(text)) if document.kind == KIND else None,
    )


def _read(path: Path) -> bytes | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            text = file.read(_MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    return None if len(text) > _MAX_BYTES else text


def _parsed(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None  # YAML: its names and kind will do


def _without_values(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Leave names of variables, and take their values and all annotations out."""
    if isinstance(value, list):
        return [_without_values(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {key: _entry(key, entry) for key, entry in value.items()}


def _entry(key: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if key == "env" and isinstance(value, list):
        return [f"{str(entry).partition('=')[0]}=(left out)" for entry in value]
    if key == "annotations" and isinstance(value, dict):
        return dict.fromkeys(value, "(left out)")
    if key == "args" and isinstance(value, list):
        return ["(left out)"] * len(value)
    return _without_values(value)


def _shown(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
