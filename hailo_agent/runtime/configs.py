"""Whether the container runtimes of this host resolve CDI names, by their configurations.

It stands there and nowhere else, and each distribution keeps it in another place and has another
way of changing it. Nothing that is read here is believed to be of sensible size, or to be TOML.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hailo_agent.core.diagnosis.facts import RuntimeConfig

_MAX_BYTES: Final = 256 * 1024
_MAX_FILES: Final = 64
"""Drop-ins of one runtime; whoever has more has other worries."""

_NEWEST_FORMAT_OF_1: Final = 2
"""containerd 1.7 reads formats 1 and 2; containerd 2 writes 3, and reads 2 as well."""

_TABLES: Final = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
"""The CRI plugin's table below `plugins`, by format (containerd docs/cri/config.md)."""

_DIRS_LINE: Final = 'cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]'
_DEPENDS: Final = "containerd 2 has it on, 1.7 off, and 1.6 does not know it"
_TEMPLATE_SAYS = re.compile(r"^\s*enable_cdi\s*=\s*(true|false)\b", re.MULTILINE)


def runtime_configs(root: Path) -> Iterator[RuntimeConfig]:
    """Find the runtimes of the host whose root directory is mounted at `root`."""
    host = _Host(root)
    for find in (_containerd, _k3s, _rke2, _microk8s, _k0s, _crio, _docker, _podman):
        config = find(host)
        if config is not None:
            yield config


# --- containerd, as packaged ---------------------------------------------------------------------


def _containerd(host: _Host) -> RuntimeConfig | None:
    path = "/etc/containerd/config.toml"
    main = host.toml(path)
    if not main.exists and not host.has_program("containerd"):
        return None
    # Since 2.2 the drop-ins in conf.d are imported by default (containerd PR 12323).
    files = [main, *host.imported(main, "/etc/containerd/conf.d/*.toml")]
    if main.table is not None and _is_cri_off(main.table):
        return None  # docker's package switches CRI off: no kubelet goes by this one
    said = _what_they_say(files)
    config = RuntimeConfig(
        runtime="containerd",
        path=path,
        unseen=main.unseen,
        cdi=said.cdi,
        spec_dirs=said.spec_dirs,
        depends=f"{_DEPENDS} (`containerd --version`)",
        to_switch_on=_edit(said, path, "systemctl restart containerd"),
    )
    return config if main.exists else replace(config, to_switch_on=_write_anew(path))


def _write_anew(path: str) -> str:
    return (
        f"if it is 1.7, write {path}:\n"
        f'version = 2\n[plugins."{_TABLES[2]}"]\n  enable_cdi = true\n  {_DIRS_LINE}\n'
        "then `systemctl restart containerd`"
    )


def _edit(said: _Said, path: str, restart: str) -> str:
    """Say exactly what to write into a file that people may edit."""
    if said.cdi is False:
        return f"in {said.by}, make it `enable_cdi = true`; then `{restart}`"
    table = f'[plugins."{_TABLES[said.format]}"]' if said.format > 1 else "[plugins.cri]"
    condition = "if it is 1.7, " if said.cdi is None else ""
    if said.has_table:
        where = f"in {path}, right below the line {table} that is there already, write:\n"
        return f"{condition}{where}  enable_cdi = true\n  {_DIRS_LINE}\nthen `{restart}`"
    where = f"at the end of {path}, write:\n{table}\n"
    return f"{condition}{where}  enable_cdi = true\n  {_DIRS_LINE}\nthen `{restart}`"


# --- K3s and RKE2 --------------------------------------------------------------------------------


def _k3s(host: _Host) -> RuntimeConfig | None:
    return _rancher(host, "K3s", "k3s", "systemctl restart k3s", "k3s-agent")


def _rke2(host: _Host) -> RuntimeConfig | None:
    return _rancher(host, "RKE2", "rke2", "systemctl restart rke2-server", "rke2-agent")


def _rancher(
    host: _Host, name: str, directory: str, restart: str, agent: str
) -> RuntimeConfig | None:
    """Look at the file that is rendered at each start, and at the template it is rendered from.

    From v1.31.6+k3s1 and v1.32.2+k3s1 on they have containerd 2 and render format 3, unless there
    is a `config.toml.tmpl` and no `config-v3.toml.tmpl` (k3s PR 11626, docs.k3s.io/advanced). The
    base template opens the CRI table, and TOML knows each table once: to include the base and add
    the table again is what everybody tries, and containerd does not start (k3s issue 13678).
    """
    home = f"/var/lib/rancher/{directory}/agent/etc/containerd"
    path, old, new = (f"{home}/{n}" for n in ("config.toml", *_RANCHER_TEMPLATES))
    main = host.toml(path)
    if not main.exists:
        return None
    said = _what_they_say([main, *host.imported(main)])
    templates = {p: file for p in (new, old) if (file := host.text(p)).exists}
    template = next(iter(templates), "")
    cdi = said.cdi
    if cdi is None and said.format <= _NEWEST_FORMAT_OF_1 and not templates and not main.unseen:
        cdi = False  # its own format 2: a release that still has containerd 1.7
    restart = f"`{restart}` (on agents {agent})"
    if said.cdi is False and template:
        step = f"take `enable_cdi = false` out of {template}, then {restart}"
    elif template:
        step = (
            f"if it is 1.7: in {template}, add `enable_cdi = true` to the table"
            f' [plugins."{_TABLES[2]}"]; if it includes "base", that table is in there, and cannot'
            f" be opened again: replace the template by a whole one; then {restart}"
        )
    else:
        step = (
            f"update {name} to a release with containerd 2 (K3s: v1.31.6+k3s1, v1.32.2+k3s1); or\n"
            f"cd {home}\n"
            f"sed '{_OPEN_TABLE}' config.toml > config.toml.tmpl\n"
            f"then {restart}; make the template anew after each update of {name}"
        )
    return RuntimeConfig(
        runtime=f"containerd of {name}",
        path=path,
        unseen=main.unseen,
        cdi=cdi,
        spec_dirs=said.spec_dirs,
        depends=f"{_DEPENDS} (`{directory} crictl version`)",
        to_switch_on=step,
    )


_RANCHER_TEMPLATES: Final = ("config.toml.tmpl", "config-v3.toml.tmpl")
_OPEN_TABLE: Final = r"""s/^\[plugins\."io\.containerd\.grpc\.v1\.cri"\]$/&\n  enable_cdi = true/"""


# --- MicroK8s and k0s ----------------------------------------------------------------------------


def _microk8s(host: _Host) -> RuntimeConfig | None:
    """Look at what is rendered from the template at each start (wrappers/run-containerd-with-args).

    It stays with format 2 even where it ships containerd 2 (microk8s PR 5321).
    """
    home = "/var/snap/microk8s/current/args"
    path, template = f"{home}/containerd.toml", f"{home}/containerd-template.toml"
    main = host.toml(path)
    if not main.exists:
        return None
    said = replace(_what_they_say([main]), by=template)
    return RuntimeConfig(
        runtime="containerd of MicroK8s",
        path=path,
        unseen=main.unseen,
        cdi=said.cdi,
        spec_dirs=said.spec_dirs,
        depends=f"{_DEPENDS} (`microk8s ctr version`)",
        to_switch_on=_edit(said, template, "snap restart microk8s.daemon-containerd"),
    )


def _k0s(host: _Host) -> RuntimeConfig | None:
    """Look at k0s, which merges drop-ins into the CRI table as long as it manages the file itself.

    docs.k0sproject.io/stable/runtime: the first line `# k0s_managed=true` says so, and what comes
    out is in /run/k0s/containerd-cri.toml.
    """
    path, drop_in = "/etc/k0s/containerd.toml", "/etc/k0s/containerd.d/cdi.toml"
    restart = "k0s stop && k0s start"
    main = host.toml(path)
    if not main.exists:
        return None
    merged = host.toml("/run/k0s/containerd-cri.toml")
    said = _what_they_say([main, *host.imported(main), *([merged] if merged.exists else [])])
    format_ = max(said.format, _NEWEST_FORMAT_OF_1)
    managed = "k0s_managed=true" in main.text.partition("\n")[0]
    step = _edit(said, path, restart)
    if managed and said.cdi is not False:
        step = (
            f"write {drop_in}:\nversion = {format_}\n"
            f'[plugins."{_TABLES[format_]}"]\n  enable_cdi = true\n  {_DIRS_LINE}\n'
            f"then `{restart}`"
        )
    is_1 = managed and said.format <= _NEWEST_FORMAT_OF_1 and not main.unseen
    return RuntimeConfig(
        runtime="containerd of k0s",
        path=path,
        unseen=main.unseen,
        cdi=False if said.cdi is None and is_1 else said.cdi,
        spec_dirs=said.spec_dirs,
        depends=f"{_DEPENDS} (`k0s ctr version`)",
        to_switch_on=step,
    )


# --- CRI-O, docker, podman -----------------------------------------------------------------------


def _crio(host: _Host) -> RuntimeConfig | None:
    """Look at CRI-O, where there is no switch: it resolves names since 1.24.

    Drop-ins are read after the main file, in lexical order, and the last one wins (crio.conf.d(5)).
    """
    path = "/etc/crio/crio.conf"
    files = [host.toml(path), *(host.toml(p) for p in host.glob("/etc/crio/crio.conf.d/*"))]
    if not any(file.exists for file in files) and not host.has_program("crio"):
        return None
    dirs: tuple[str, ...] = ()
    for file in files:
        dirs = _strings(_at(file.table, "crio", "runtime", "cdi_spec_dirs")) or dirs
    illegible = next((file for file in files if file.unseen), files[0])
    return RuntimeConfig(
        runtime="CRI-O", path=illegible.path, unseen=illegible.unseen, cdi=True, spec_dirs=dirs
    )


def _docker(host: _Host) -> RuntimeConfig | None:
    """Look at docker: CDI came with 25 as an opt-in, and is on since 28.2 (moby PR 49963)."""
    path = "/etc/docker/daemon.json"
    main = host.json(path)
    if not main.exists and not host.has_program("dockerd"):
        return None
    cdi = _at(main.table, "features", "cdi")
    return RuntimeConfig(
        runtime="docker",
        path=path,
        for_kubelet=False,
        unseen=main.unseen,
        cdi=cdi if isinstance(cdi, bool) else None,
        spec_dirs=_strings(_at(main.table, "cdi-spec-dirs")),
        depends="28.2 and later have it on, 25 to 28.1 off, older ones do not know it"
        " (`docker version`)",
        to_switch_on=f'in {path}, write:\n{{"features": {{"cdi": true}}}}\n'
        "(beside what is there), then `systemctl restart docker`",
    )


def _podman(host: _Host) -> RuntimeConfig | None:
    if not host.has_program("podman"):
        return None
    return RuntimeConfig(
        runtime="podman (4.1 and later)", path="/usr/bin/podman", for_kubelet=False, cdi=True
    )


# --- what containerd's files say -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What a configuration and its drop-ins say together."""

    format: int = 1
    cdi: bool | None = None
    by: str = ""
    """The file that says it."""
    spec_dirs: tuple[str, ...] = ()
    has_table: bool = False
    """Whether the main file opens the CRI table."""


def _what_they_say(files: Sequence[_File]) -> _Said:
    """Add up: later files overrule earlier ones, key by key.

    containerd 1.7 overrules table by table instead (containerd issue 5837). That a drop-in has a
    CRI table without this key, and so undoes what the main file says, is left aside.
    """
    said = _Said(format=_format(files[0]))
    for number, file in enumerate(files):
        for name in _TABLES.values():
            table = _at(file.table, "plugins", name)
            if not isinstance(table, dict):
                continue
            cdi = table.get("enable_cdi")
            said = replace(
                said,
                cdi=cdi if isinstance(cdi, bool) else said.cdi,
                by=file.path if isinstance(cdi, bool) else said.by,
                spec_dirs=_strings(table.get("cdi_spec_dirs")) or said.spec_dirs,
                has_table=said.has_table or number == 0,
            )
    if said.cdi is None and said.format > _NEWEST_FORMAT_OF_1:
        return replace(said, cdi=True)
    return said


def _format(file: _File) -> int:
    version = _at(file.table, "version")
    known = isinstance(version, int) and not isinstance(version, bool)
    return min(max(version, 1), max(_TABLES)) if known else 1


def _is_cri_off(table: dict[str, Any]) -> bool:
    return bool(set(_TABLES.values()) & set(_strings(table.get("disabled_plugins"))))


# --- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One file as it was found, if it was."""

    path: str
    exists: bool = False
    text: str = ""
    table: dict[str, Any] | None = None
    unseen: str = ""


@dataclass(frozen=True, slots=True)
class _Host:
    """The host's files, by the paths that the host itself knows them by."""

    root: Path

    def text(self, path: str) -> _File:
        """Read a file, never waiting for it."""
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._here(path), flags)
        except (FileNotFoundError, NotADirectoryError):
            return _File(path=path)
        except OSError as error:
            # Where a directory may not be searched, nobody can tell whether there is such a file.
            return _File(path=path, exists=True, unseen=_reason(error))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return _File(path=path, exists=True, unseen="is not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            return _File(path=path, exists=True, unseen=_reason(error))
        finally:
            os.close(descriptor)
        if len(data) > _MAX_BYTES:
            return _File(path=path, exists=True, unseen=f"is larger than {_MAX_BYTES} bytes")
        return _File(path=path, exists=True, text=data.decode("utf-8", "replace"))

    def toml(self, path: str) -> _File:
        """Read a file of TOML."""
        return _parsed(self.text(path), tomllib.loads, "TOML")

    def json(self, path: str) -> _File:
        """Read a file of JSON."""
        return _parsed(self.text(path), json.loads, "JSON")

    def imported(self, main: _File, *more: str) -> list[_File]:
        """Read what a configuration of containerd imports, in its order."""
        patterns = _strings(_at(main.table, "imports")) or more
        absolute = (p if p.startswith("/") else f"{Path(main.path).parent}/{p}" for p in patterns)
        paths = [path for pattern in absolute for path in self.glob(pattern)]
        return [self.toml(path) for path in paths[:_MAX_FILES]]

    def glob(self, pattern: str) -> list[str]:
        """List files by a pattern, in lexical order; to Go `**` is no more than `*`."""
        try:
            found = sorted(self.root.glob(re.sub(r"\*+", "*", pattern.lstrip("/"))))
        except (OSError, ValueError, IndexError):
            return []
        return [f"/{path.relative_to(self.root)}" for path in found[:_MAX_FILES]]

    def has_program(self, name: str) -> bool:
        """Tell whether a program is installed where packages put it."""
        directories = ("usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin")
        return any(self._is_there(f"/{directory}/{name}") for directory in directories)

    def _here(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _is_there(self, path: str) -> bool:
        try:
            self._here(path).lstat()
        except OSError:
            return False
        return True


def _parsed(file: _File, parse: Callable[[str], Any], language: str) -> _File:
    if not file.exists or file.unseen:
        return file
    try:
        table = parse(file.text)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        return replace(file, unseen=f"is not {language}: {reason}")
    return replace(file, table=table if isinstance(table, dict) else {})


def _at(table: Any, *keys: str) -> Any:  # noqa: ANN401 - whatever strangers wrote
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _strings(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - whatever strangers wrote
    if not isinstance(value, list):
        return ()
    return tuple(text for text in value if isinstance(text, str))


def _reason(error: OSError) -> str:
    return f"cannot be read: {os.strerror(error.errno or 0)}"
