"""YAML, JSON and comma-separated text, read into lists and mappings of text.

Called by `load` for the file as a whole and for the text of a single flag or variable. Every value
stays the text that somebody wrote, and only the type of a setting decides what it means: `yes` is
a word for `node.name` and true for `host.uevents`, and the PCI address 0000:01:00.0 is not the
number 60 that YAML takes it for. It must not know what a setting is.
"""

from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

Node: TypeAlias = yaml.Node
"""A piece of a document that still knows its line."""

FILE_BYTES: Final = 1 << 20
"""The longest configuration file that is read: as much as a ConfigMap can hold."""

_NULL: Final = "tag:yaml.org,2002:null"
_SHOWN_LENGTH: Final = 120


class MisreadError(Exception):
    """Raised when text is not the YAML, the list or the mapping that it should be."""

    def __init__(self, what: str, line: int | None = None) -> None:
        """Complete the sentence "the file …", with the line where it is known."""
        super().__init__(what)
        self.line = line


def read(path: Path) -> str:
    """Return a configuration file's text."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise MisreadError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL character in the path
        raise MisreadError(f"cannot be read: {error}") from error
    if len(data) > FILE_BYTES:
        raise MisreadError(f"is longer than {FILE_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MisreadError("is not UTF-8 text", data.count(b"\n", 0, error.start) + 1) from error


class _Reader(yaml.SafeLoader):
    """YAML in which every value but null is text."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012 - so named by the library
        first: [(tag, pattern) for tag, pattern in resolvers if tag == _NULL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Refuse aliases, with which a short text can stand for an endless tree."""
        if self.check_event(yaml.AliasEvent):
            raise MisreadError("has an alias, which is not supported here", self.line + 1)
        return super().compose_node(parent, index)


def parse(text: str) -> Node | None:
    """Return the one document in a text, nothing if there is none."""
    try:
        reader = _Reader(text)
        try:
            return reader.get_single_node()
        finally:
            reader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise MisreadError(f"is not YAML: {error.problem}", line) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise MisreadError("is not YAML: it has a character that must be escaped", line) from error
    except (RecursionError, ValueError, OverflowError) as error:  # e.g. %YAML with a huge version
        raise MisreadError("is not YAML that can be read: it is nested too deeply") from error


def entries(node: Node | None) -> dict[str, tuple[int, Node]]:
    """Return what stands below a mapping, each with its line; nothing below null."""
    if node is None or is_null(node):
        return {}
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise MisreadError(f"is {kind} where a mapping is expected", line_of(node))
    found: dict[str, tuple[int, Node]] = {}
    for key, below in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise MisreadError("has a list or a mapping for a key", line_of(key))
        if key.value in found:
            raise MisreadError(
                f"has {shown(key.value)} twice, first in line {found[key.value][0]}", line_of(key)
            )
        found[key.value] = (line_of(key), below)
    return found


def value(node: Node) -> object:
    """Return a node as text, or as lists and mappings of text, or nothing for null."""
    if isinstance(node, yaml.ScalarNode):
        return None if is_null(node) else node.value
    if isinstance(node, yaml.SequenceNode):
        return [value(item) for item in node.value]
    return {key: value(below) for key, (_, below) in entries(node).items()}


def is_null(node: Node) -> bool:
    """Tell whether nothing, `~` or `null` is written."""
    return bool(node.tag == _NULL)


def line_of(node: Node) -> int:
    """Return the line that a node begins in."""
    return int(node.start_mark.line) + 1


def listed(text: str) -> object:
    """Return what `a,b` stands for, or its YAML or JSON."""
    if _is_flow(text):
        return _flow(text)
    return [item.strip() for item in text.split(",")] if text.strip() else []


def mapped(text: str) -> object:
    """Return what `a=1,b=2` stands for, or its YAML or JSON."""
    if _is_flow(text):
        return _flow(text)
    found: dict[str, str] = {}
    for item in text.split(",") if text.strip() else ():
        key, equals, below = (part.strip() for part in item.partition("="))
        if not equals:
            raise MisreadError(f"has {shown(key)} without a '='")
        if key in found:
            raise MisreadError(f"has {shown(key)} twice")
        found[key] = below
    return found


def _is_flow(text: str) -> bool:
    return text.lstrip().startswith(("[", "{"))


def _flow(text: str) -> object:
    node = parse(text)  # YAML's flow style includes JSON
    return None if node is None else value(node)


def shown(value: object) -> str:
    """Return a value as it can stand in a message: quoted, and not endless."""
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}…"


def one_line(text: str) -> str:
    """Return text without what would break its line or could not be encoded."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )
