"""What the doctor wants to know of CDI on this node: directories, specs, runtimes' settings.

Whether a runtime resolves CDI names stands in its configuration and nowhere else; each
distribution keeps that file in another place. Reads only.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hailo_agent.core.cdi import FILE_NAME
from hailo_agent.core.diagnosis import RuntimeConfig, SpecFacts
from hailo_agent.errors import EdgeError
from hailo_agent.runtime.reader import SpecInvalid, read
from hailo_agent.runtime.specs import SpecStore

_MAX_CONFIG_BYTES: Final = 1024 * 1024
_LATEST_CONTAINERD_1_FORMAT: Final = 2
_PLUGIN_OF_FORMAT: Final = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
_SWITCH = re.compile(r"^\s*enable_cdi\s*=\s*(true|false)\b", re.MULTILINE)
_FORMAT = re.compile(r"^\s*version\s*=\s*([0-9]+)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Containerd:
    """Where one distribution keeps containerd's configuration, and where people write into it."""

    name: str
    reads: str
    """The file in effect, below the host's root."""
    writes: tuple[str, ...]
    """Where to write for format 2 and format 3; empty means the file in effect itself."""
    restart: str
    extends: bool = False
    """Whether the file to write is a template that must include the distribution's own."""


_RANCHER: Final = "var/lib/rancher/{0}/agent/etc/containerd"
_CONTAINERDS: Final = (
    _Containerd("containerd", "etc/containerd/config.toml", (), "systemctl restart containerd"),
    *(
        _Containerd(
            name,
            f"{_RANCHER.format(name)}/config.toml",
            (
                f"{_RANCHER.format(name)}/config.toml.tmpl",
                f"{_RANCHER.format(name)}/config-v3.toml.tmpl",
            ),
            restart,
            extends=True,
        )
        for name, restart in (
            ("k3s", "systemctl restart k3s (agents: k3s-agent)"),
            ("rke2", "systemctl restart rke2-server (agents: rke2-agent)"),
        )
    ),
    _Containerd(
        "microk8s",
        "var/snap/microk8s/current/args/containerd.toml",
        ("var/snap/microk8s/current/args/containerd-template.toml",) * 2,
        "snap restart microk8s.daemon-containerd",
    ),
    _Containerd(
        "k0s",
        "run/k0s/containerd-cri.toml",
        ("etc/k0s/containerd.d/cdi.toml",) * 2,
        "k0s stop && k0s start",
    ),
)
_CRIO: Final = ("etc/crio/crio.conf", "etc/crio/crio.conf.d")


async def examine(store: SpecStore, *, root: Path) -> SpecFacts:
    """Gather everything; `root` is where the host's root directory is mounted."""
    directory = store.directory
    names, problems = _spec(store.path)
    foreign: Sequence[tuple[str, str]] = ()
    leftovers: Sequence[Path] = ()
    with suppress(EdgeError):
        foreign = await store.foreign_names()
        leftovers = await store.leftovers()
    return SpecFacts(
        path=str(store.path),
        directory_exists=directory.is_dir(),
        is_writable=os.access(directory, os.W_OK | os.X_OK) if directory.is_dir() else None,
        is_symlink=directory.is_symlink(),
        names=names,
        problems=problems,
        conflicts=tuple((path, name) for path, name in foreign if name in (names or ())),
        leftovers=tuple(str(path) for path in leftovers),
        configs=tuple(runtime_configs(root)),
    )


def _spec(path: Path) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    try:
        document = read(path.read_bytes(), name=FILE_NAME)
    except FileNotFoundError:
        return None, ()
    except OSError as error:
        return (), (f"cannot be read: {os.strerror(error.errno or 0)}",)
    except SpecInvalid as invalid:
        return (), tuple(str(problem) for problem in invalid.problems)
    return tuple(document.devices), ()


def runtime_configs(root: Path) -> Iterator[RuntimeConfig]:
    """Find the configurations of the runtimes on this host, and whether they resolve CDI names."""
    for kind in _CONTAINERDS:
        text = _read(root / kind.reads)
        if text is not None:
            yield _containerd(kind, text)
    if any((root / path).exists() for path in _CRIO):
        yield RuntimeConfig(
            runtime="CRI-O",
            path=f"/{_CRIO[0]}",
            cdi=True,
            lines="",
            restart="systemctl restart crio",
        )


def _containerd(kind: _Containerd, text: str) -> RuntimeConfig:
    format_ = _format(text)
    writes = (
        kind.writes[1 if format_ > _LATEST_CONTAINERD_1_FORMAT else 0]
        if kind.writes
        else kind.reads
    )
    plugin = _PLUGIN_OF_FORMAT[3 if format_ > _LATEST_CONTAINERD_1_FORMAT else 2]
    lines = [
        *(['{{ template "base" . }}', ""] if kind.extends else []),
        f'[plugins."{plugin}"]',
        "  enable_cdi = true",
        '  cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]',
    ]
    return RuntimeConfig(
        runtime=kind.name if kind.name == "containerd" else f"containerd of {kind.name}",
        path=f"/{writes}",
        cdi=_is_on(text, format_),
        lines="\n".join(lines),
        restart=kind.restart,
    )


def _is_on(text: str, format_: int) -> bool | None:
    """Tell whether CDI is on.

    Said in the file, that holds. Unsaid, containerd 2 has it on and 1.7 off; only format 3 tells
    them apart, for containerd 2 still reads format 2.
    """
    said = _said(text)
    if said is not None:
        return said
    return True if format_ > _LATEST_CONTAINERD_1_FORMAT else None


def _said(text: str) -> bool | None:
    """Find `enable_cdi` where containerd would; in a template, which is no TOML yet, anywhere."""
    with suppress(tomllib.TOMLDecodeError):
        plugins = tomllib.loads(text).get("plugins", {})
        for plugin in _PLUGIN_OF_FORMAT.values():
            said = _at(plugins, plugin, "enable_cdi")
            if isinstance(said, bool):
                return said
        return None
    match = _SWITCH.search(text)
    return None if match is None else match[1] == "true"


def _at(table: Any, *keys: str) -> Any:  # noqa: ANN401 - TOML of strangers
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _format(text: str) -> int:
    match = _FORMAT.search(text)
    return 1 if match is None else int(match[1])


def _read(path: Path) -> str | None:
    with suppress(OSError), path.open("rb") as file:
        return file.read(_MAX_CONFIG_BYTES).decode("utf-8", "replace")
    return None
