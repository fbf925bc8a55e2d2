"""Read a CDI file the way a container runtime does, and say everything that is wrong with it.

`cli` validates files with it, `runtime.specs` finds conflicting ones, and the simulated runtime
(`sim.runtime`) injects from what it returns. It shares nothing with `core.cdi`, which writes: a
mistake there has to show here. The rules are those of the CDI library that runtimes vendor
(`pkg/cdi`, `pkg/parser`, `specs-go`), not those of its JSON schema, which is laxer in parts.

Like that library it takes JSON and YAML in a file of either name. It is stricter where the library
guesses: a number is no text, a key is spelled exactly, and YAML aliases are not followed.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

from hailo_agent.errors import HailoAgentError

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 32

VERSIONS: Final = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
"""Versions that can be written; 0.1.0 and 0.2.0 are known too, but no file gets by with them."""

NEWEST: Final = VERSIONS[-1]

MAX_ANNOTATIONS_BYTES: Final = 256 * 1024

_ANCIENT: Final = ("0.1.0", "0.2.0")
_INT64: Final = (1 << 63) - 1
_UINT32: Final = (1 << 32) - 1
_HOOKS: Final = frozenset(
    {
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    }
)
_KIND_PART: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
_DEVICE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(
    r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*"
)

_Path = tuple[str | int, ...]


# --- what a file says ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A device node to make in the container."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount to make in the container."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A program for the runtime to run at some point of the container's life."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetDevice:
    """A network interface to move into the container."""

    host_interface_name: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelRdt:
    """Cache and memory bandwidth classes of Intel's Resource Director Technology."""

    clos_id: str = ""
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    schemata: tuple[str, ...] = ()
    enable_monitoring: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What is to be changed about a container."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    net_devices: tuple[NetDevice, ...] = ()
    hooks: tuple[Hook, ...] = ()
    mounts: tuple[Mount, ...] = ()
    intel_rdt: IntelRdt | None = None
    additional_gids: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing would be changed; for a device that is not allowed."""
        return self == Edits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A CDI file without a mistake in it."""

    name: str
    version: str
    kind: str
    devices: Mapping[str, Edits]
    edits: Edits = field(default_factory=Edits)
    annotations: Mapping[str, str] = field(default_factory=dict)
    needed_version: str = VERSIONS[0]
    """The lowest `cdiVersion` that would have done for this content."""

    @property
    def vendor(self) -> str:
        """The part of the kind before the slash."""
        return self.kind.partition("/")[0]

    @property
    def qualified_names(self) -> tuple[str, ...]:
        """The names by which containers ask for these devices."""
        return tuple(f"{self.kind}={name}" for name in self.devices)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """One thing that is wrong: in which line (0: nowhere in particular), with which field, what."""

    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class SpecInvalid(HailoAgentError):
    """Raised when a CDI file would be refused by a runtime; carries everything wrong with it."""

    def __init__(self, name: str, problems: Iterable[Problem]) -> None:
        """Take the file's name and its problems, at least one."""
        self.name = name
        self.problems = tuple(sorted(problems))
        super().__init__(
            "\n".join(
                f"{name}:{problem.line}: {problem}" if problem.line else f"{name}: {problem}"
                for problem in self.problems
            )
        )


# --- reading -------------------------------------------------------------------------------------


def load(path: Path, *, newest: str = NEWEST) -> Document:
    """Read a CDI file from disk; what is not a regular file is refused rather than waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SpecInvalid(str(path), [Problem(line=0, field="", message="not a regular file")])
        with open(descriptor, "rb", closefd=False) as file:
            text = file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    return read(text, name=str(path), newest=newest)


def read(text: bytes, *, name: str, newest: str = NEWEST) -> Document:
    """Read the text of a CDI file, as a library would that knows versions up to `newest`."""
    if len(text) > MAX_BYTES:
        raise SpecInvalid(
            name, [Problem(line=0, field="", message=f"longer than {MAX_BYTES} bytes")]
        )
    try:
        value = _plain_json(text)
    except (ValueError, RecursionError):
        located = _located(text, flow=text.lstrip()[:1] in (b"{", b"["))
        value = located.value
    else:
        checker = _Checker(newest=newest)
        document = checker.document(value, name)
        if not checker.problems:
            return document
        located = _located(text, flow=True)  # for the lines only
        if located.broken:
            located = _Located()
    if not located.broken:
        checker = _Checker(newest=newest)
        document = checker.document(value, name)
        for path, message in checker.problems:
            located.fail(path, message)
    if located.problems:
        raise SpecInvalid(name, located.problems)
    return document


def split_name(qualified: str) -> tuple[str, str, str] | None:
    """Take `vendor/class=device` apart; None if it is not such a name."""
    kind, equals, device = qualified.partition("=")
    vendor, slash, class_ = kind.partition("/")
    if not (equals and slash and _DEVICE.fullmatch(device)):
        return None
    if not (_KIND_PART.fullmatch(vendor) and _KIND_PART.fullmatch(class_)):
        return None
    return vendor, class_, device


# --- text to values ------------------------------------------------------------------------------


def _plain_json(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Parse JSON in which nothing is unusual; the fast way, taken by nearly every file."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            message = "duplicate key"
            raise ValueError(message)
        return mapping

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    value = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse)
    if value is None:
        message = "empty"
        raise ValueError(message)
    return value


@dataclass(slots=True)
class _Located:
    """A parsed file that still knows its lines, and what was wrong with its syntax."""

    value: Any = None
    lines: dict[_Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: bool = False

    def fail(self, path: _Path, message: str) -> None:
        """Note a problem, on the line of its field or of the nearest one around it."""
        at = path
        while at not in self.lines and at:
            at = at[:-1]
        self.problems.append(
            Problem(line=self.lines.get(at, 0), field=_dotted(path), message=message)
        )

    def breaks(self, line: int, message: str) -> "_Located":
        """Note a problem after which there is nothing left to look at."""
        self.broken = True
        self.problems.append(Problem(line=line, field="", message=message))
        return self


def _dotted(path: _Path) -> str:
    """Write a path as a person would: devices[0].containerEdits."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _located(text: bytes, *, flow: bool) -> _Located:
    """Parse YAML, of which JSON is nearly a part, keeping the line of every field."""
    located = _Located()
    try:
        source = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        return located.breaks(line, f"not UTF-8 (byte {error.start})")
    if flow:
        source = source.replace("\t", " ")  # a blank to JSON, and of the same width
    try:
        node = _composed(source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or error.context or "no YAML"
        return located.breaks(mark.line + 1 if mark is not None else 0, message)
    except _Unbounded as error:
        return located.breaks(error.line, str(error))
    except yaml.YAMLError as error:
        return located.breaks(0, " ".join(str(error).split()))
    if node is None or node.tag.endswith(":null"):
        return located.breaks(0, "an empty document")
    located.value = _value(node, (), located)
    return located


class _Unbounded(yaml.YAMLError):
    """YAML that could grow without bounds, and in which line."""

    def __init__(self, event: yaml.Event, message: str) -> None:
        super().__init__(message)
        self.line = _line(event)


def _composed(source: str) -> yaml.Node | None:
    """Parse YAML to nodes, unless it could grow without bounds: in depth, or through aliases."""
    depth = 0
    for event in yaml.parse(source, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise _Unbounded(event, "YAML aliases are not followed")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _Unbounded(event, f"nested deeper than {MAX_DEPTH}")
    return yaml.compose(source, Loader=_Loader)


def _line(of: yaml.Event | yaml.Node) -> int:
    return of.start_mark.line + 1 if of.start_mark is not None else 0


def _value(node: yaml.Node, path: _Path, located: _Located) -> Any:  # noqa: ANN401 - any value
    located.lines.setdefault(path, _line(node))
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, i), located) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            below = (*path, key)
            if key in mapping:
                message = "the key is there already"
                located.problems.append(
                    Problem(line=_line(key_node), field=_dotted(below), message=message)
                )
                continue
            located.lines[below] = _line(key_node)
            mapping[key] = _value(value_node, below, located)
        return mapping
    return _scalar(node, path, located)


def _scalar(node: yaml.Node, path: _Path, located: _Located) -> Any:  # noqa: ANN401 - any scalar
    kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
    if kind not in {"str", "int", "float", "bool", "null", "timestamp", "value", "merge"}:
        located.fail(path, f"the tag {node.tag} means nothing here")
        return None
    if kind in {"str", "timestamp", "value", "merge"}:
        text = str(node.value)
        try:  # JSON writes characters beyond U+FFFF as two escapes; YAML would leave both halves
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            located.fail(path, "half a character (a lone surrogate)")
            return ""
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except ValueError:
        located.fail(path, f"not a number: {str(node.value)[:40]}")
        return 0


# --- values to a document ------------------------------------------------------------------------


class _Checker:
    """Builds a document from plain values and notes, by path, everything that must not be so."""

    def __init__(self, *, newest: str) -> None:
        self.problems: list[tuple[_Path, str]] = []
        self._newest = newest
        self._needs: list[tuple[str, _Path, str]] = []

    def fail(self, path: _Path, message: str) -> None:
        self.problems.append((path, message))

    def _need(self, version: str, path: _Path, what: str) -> None:
        self._needs.append((version, path, what))

    # --- plain types; null counts as absent, as it does in Go ---

    def _mapping(self, value: object, path: _Path, known: Iterable[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(path, f"must be an object, not {_named(value)}")
            return {}
        known = frozenset(known)
        for key in value:
            if key not in known:
                near = next((k for k in known if k.lower() == key.lower()), None)
                hint = f", should it be {near}?" if near else ""
                self.fail((*path, key), f"unknown key{hint}")
        return {k: v for k, v in value.items() if v is not None}

    def _text(self, of: dict[str, Any], key: str, path: _Path) -> str:
        value = of.get(key, "")
        if isinstance(value, str):
            return value
        self.fail((*path, key), f"must be a string, not {_named(value)}")
        return ""

    def _required(self, of: dict[str, Any], key: str, path: _Path) -> str:
        text = self._text(of, key, path)
        if not text and isinstance(of.get(key, ""), str):
            self.fail((*path, key), "must not be empty" if key in of else "is missing")
        return text

    def _number(
        self, of: dict[str, Any], key: str, path: _Path, *, low: int = 0, high: int = _UINT32
    ) -> int | None:
        value = of.get(key)
        return None if value is None else self._integer(value, (*path, key), low=low, high=high)

    def _integer(self, value: object, path: _Path, *, low: int = 0, high: int = _UINT32) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(path, f"must be an integer, not {_named(value)}")
            return low
        if not low <= value <= high:
            self.fail(path, f"{value} is not between {low} and {high}")
        return value

    def _flag(self, of: dict[str, Any], key: str, path: _Path) -> bool:
        value = of.get(key, False)
        if isinstance(value, bool):
            return value
        self.fail((*path, key), f"must be true or false, not {_named(value)}")
        return False

    def _items(self, of: dict[str, Any], key: str, path: _Path) -> list[tuple[_Path, Any]]:
        value = of.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail((*path, key), f"must be a list, not {_named(value)}")
            return []
        return [((*path, key, i), item) for i, item in enumerate(value)]

    def _texts(self, of: dict[str, Any], key: str, path: _Path) -> tuple[str, ...]:
        texts = []
        for below, item in self._items(of, key, path):
            if isinstance(item, str):
                texts.append(item)
            else:
                self.fail(below, f"must be a string, not {_named(item)}")
        return tuple(texts)

    # --- the document ---

    def document(self, value: object, name: str) -> Document:
        top = self._mapping(
            value, (), ("cdiVersion", "kind", "annotations", "devices", "containerEdits")
        )
        version = self._required(top, "cdiVersion", ())
        kind = self._kind(self._required(top, "kind", ()))
        annotations = self._annotations(top, ())
        edits = self._edits(top.get("containerEdits"), ("containerEdits",))
        devices: dict[str, Edits] = {}
        listed = self._items(top, "devices", ())
        if not listed and not any(path[:1] == ("devices",) for path, _ in self.problems):
            self.fail(("devices",), "at least one device is needed")
        for path, item in listed:
            device = self._mapping(item, path, ("name", "annotations", "containerEdits"))
            device_name = self._device_name(self._required(device, "name", path), path)
            self._annotations(device, path)
            below = (*path, "containerEdits")
            problems = len(self.problems)
            changes = self._edits(device.get("containerEdits"), below)
            if changes.empty and len(self.problems) == problems:
                self.fail(below, "must change something, an empty edit is not allowed in a device")
            if device_name and device_name in devices:
                self.fail((*path, "name"), f"a second device of the name {device_name}")
            devices[device_name] = changes
        return Document(
            name=name,
            version=version.removeprefix("v"),
            kind=kind,
            devices=MappingProxyType(devices),
            edits=edits,
            annotations=MappingProxyType(annotations),
            needed_version=self._version(version),
        )

    def _version(self, written: str) -> str:
        """Check the version against what the content needs, and tell how much that is."""
        needed = max((need for need, _, _ in self._needs), key=_order, default=VERSIONS[0])
        version = written.removeprefix("v")
        if not version:
            return needed
        if version not in (*_ANCIENT, *VERSIONS) or _order(version) > _order(self._newest):
            self.fail(("cdiVersion",), f"{written} is unknown (up to {self._newest} is known)")
            return needed
        if version in _ANCIENT:
            self.fail(("cdiVersion",), f"must be at least {VERSIONS[0]}, and is {version}")
        for need, path, what in self._needs:
            if _order(need) > _order(version):
                self.fail(path, f"{what} needs cdiVersion {need}, and the file says {version}")
        return needed

    def _kind(self, kind: str) -> str:
        vendor, slash, class_ = kind.partition("/")
        if not kind:
            return kind
        if not slash:
            self.fail(("kind",), f'must be "<vendor>/<class>", and is "{kind}"')
            return kind
        for part, text in (("vendor", vendor), ("class", class_)):
            if not _KIND_PART.fullmatch(text):
                self.fail(
                    ("kind",),
                    f'the {part} "{text}" must begin with a letter, end with a letter or digit '
                    "and hold only letters, digits, '_', '-' and '.'",
                )
        if "." in class_:
            self._need("0.6.0", ("kind",), "a dot in the class")
        return kind

    def _device_name(self, name: str, path: _Path) -> str:
        if name and not _DEVICE.fullmatch(name):
            self.fail(
                (*path, "name"),
                f'"{name}" must begin and end with a letter or digit '
                "and hold only letters, digits, '_', '-', '.' and ':'",
            )
        elif name and not name[0].isalpha():
            self._need("0.5.0", (*path, "name"), "a name that begins with a digit")
        return name

    def _annotations(self, of: dict[str, Any], path: _Path) -> dict[str, str]:
        value = of.get("annotations")
        at = (*path, "annotations")
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fail(at, f"must be an object, not {_named(value)}")
            return {}
        said: dict[str, str] = {}
        for key, text in value.items():
            prefix, slash, label = key.lower().rpartition("/")
            if not _LABEL.fullmatch(label) or (
                slash and not (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix))  # noqa: PLR2004 - DNS
            ):
                self.fail((*at, key), f'the key "{key}" is not a qualified name')
            if isinstance(text, str):
                said[key] = text
            else:
                self.fail((*at, key), f"must be a string, not {_named(text)}")
        if sum(len(k.encode()) + len(v.encode()) for k, v in said.items()) > MAX_ANNOTATIONS_BYTES:
            self.fail(at, f"longer than {MAX_ANNOTATIONS_BYTES} bytes in all")
        if value:
            self._need("0.6.0", at, "an annotation")
        return said

    # --- container edits ---

    def _edits(self, value: object, path: _Path) -> Edits:
        if value is None:
            return Edits()
        of = self._mapping(
            value,
            path,
            (
                "env",
                "deviceNodes",
                "netDevices",
                "hooks",
                "mounts",
                "intelRdt",
                "additionalGids",
            ),
        )
        return Edits(
            env=self._env(of, path),
            device_nodes=tuple(
                self._device_node(item, below)
                for below, item in self._items(of, "deviceNodes", path)
            ),
            net_devices=self._net_devices(of, path),
            hooks=tuple(self._hook(item, below) for below, item in self._items(of, "hooks", path)),
            mounts=tuple(
                self._mount(item, below) for below, item in self._items(of, "mounts", path)
            ),
            intel_rdt=self._intel_rdt(of, path),
            additional_gids=self._gids(of, path),
        )

    def _env(self, of: dict[str, Any], path: _Path) -> tuple[str, ...]:
        texts = self._texts(of, "env", path)
        for i, text in enumerate(texts):
            if text.find("=") <= 0:
                self.fail((*path, "env", i), f'must be NAME=value, and is "{text}"')
        return texts

    def _device_node(self, value: object, path: _Path) -> DeviceNode:
        of = self._mapping(
            value,
            path,
            (
                "path",
                "hostPath",
                "type",
                "major",
                "minor",
                "fileMode",
                "permissions",
                "uid",
                "gid",
            ),
        )
        node = DeviceNode(
            path=self._required(of, "path", path),
            host_path=self._text(of, "hostPath", path),
            type=self._text(of, "type", path),
            major=self._number(of, "major", path, high=_INT64) or 0,
            minor=self._number(of, "minor", path, high=_INT64) or 0,
            file_mode=self._number(of, "fileMode", path),
            permissions=self._text(of, "permissions", path),
            uid=self._number(of, "uid", path),
            gid=self._number(of, "gid", path),
        )
        if node.type not in {"", "b", "c", "u", "p"}:
            self.fail((*path, "type"), f'must be b, c, u or p, and is "{node.type}"')
        if set(node.permissions) - set("rwm"):
            self.fail((*path, "permissions"), f'only r, w and m, not "{node.permissions}"')
        if node.host_path:
            self._need("0.5.0", (*path, "hostPath"), "hostPath")
        return node

    def _net_devices(self, of: dict[str, Any], path: _Path) -> tuple[NetDevice, ...]:
        devices = []
        seen: set[tuple[str, str]] = set()
        for below, item in self._items(of, "netDevices", path):
            entry = self._mapping(item, below, ("hostInterfaceName", "name"))
            for key in ("hostInterfaceName", "name"):
                text = self._required(entry, key, below)
                if text and (key, text) in seen:
                    self.fail((*below, key), f'"{text}" is there already')
                seen.add((key, text))
            devices.append(
                NetDevice(
                    host_interface_name=str(entry.get("hostInterfaceName", "")),
                    name=str(entry.get("name", "")),
                )
            )
        if devices:
            self._need("1.1.0", (*path, "netDevices"), "netDevices")
        return tuple(devices)

    def _hook(self, value: object, path: _Path) -> Hook:
        of = self._mapping(value, path, ("hookName", "path", "args", "env", "timeout"))
        hook = Hook(
            hook_name=self._required(of, "hookName", path),
            path=self._required(of, "path", path),
            args=self._texts(of, "args", path),
            env=self._env(of, path),
            timeout=self._number(of, "timeout", path, low=-_INT64 - 1, high=_INT64),
        )
        if hook.hook_name and hook.hook_name not in _HOOKS:
            self.fail((*path, "hookName"), f'"{hook.hook_name}" is none of {sorted(_HOOKS)}')
        return hook

    def _mount(self, value: object, path: _Path) -> Mount:
        of = self._mapping(value, path, ("hostPath", "containerPath", "options", "type"))
        mount = Mount(
            host_path=self._required(of, "hostPath", path),
            container_path=self._required(of, "containerPath", path),
            options=self._texts(of, "options", path),
            type=self._text(of, "type", path),
        )
        if mount.type:
            self._need("0.4.0", (*path, "type"), "the type of a mount")
        return mount

    def _intel_rdt(self, of: dict[str, Any], path: _Path) -> IntelRdt | None:
        value = of.get("intelRdt")
        if value is None:
            return None
        at = (*path, "intelRdt")
        dropped = ("enableCMT", "enableMBM")
        known = ("closID", "l3CacheSchema", "memBwSchema", "schemata", "enableMonitoring")
        rdt = self._mapping(value, at, (*known, *dropped))
        for key in dropped:
            if key in rdt and _order(self._newest) >= _order("1.1.0"):
                self.fail((*at, key), "was dropped in 1.1.0, whose readers refuse the whole file")
        self._need("0.7.0", at, "intelRdt")
        for key in ("schemata", "enableMonitoring"):
            if rdt.get(key):
                self._need("1.1.0", (*at, key), key)
        clos_id = self._text(rdt, "closID", at)
        if clos_id != "/" and (
            clos_id in {".", ".."} or {"/", "\n"} & set(clos_id) or len(clos_id.encode()) >= 4096  # noqa: PLR2004 - PATH_MAX
        ):
            self.fail((*at, "closID"), "must be a plain file name, or /")
        return IntelRdt(
            clos_id=clos_id,
            l3_cache_schema=self._text(rdt, "l3CacheSchema", at),
            mem_bw_schema=self._text(rdt, "memBwSchema", at),
            schemata=self._texts(rdt, "schemata", at),
            enable_monitoring=self._flag(rdt, "enableMonitoring", at),
        )

    def _gids(self, of: dict[str, Any], path: _Path) -> tuple[int, ...]:
        items = self._items(of, "additionalGids", path)
        gids = tuple(self._integer(item, below) for below, item in items)
        if gids:
            self._need("0.7.0", (*path, "additionalGids"), "additionalGids")
        return gids


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _named(value: object) -> str:
    """Name a value's type as the file's author would."""
    if value is None:
        return "null"
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return kinds.get(type(value), "a number")
