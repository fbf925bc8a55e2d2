"""The settings in effect, printed: for a person, for a program, for the reference page.

Called by `cli` (`config show`) and by the test that keeps docs/reference/settings.md true. What
`show` prints is itself a configuration file, and gives the same settings again.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from hailo_agent.settings.leaves import Leaf, leaves, sections
from hailo_agent.settings.load import Loaded
from hailo_agent.settings.text import one_line

# Bare words that every YAML reader takes for text.
_BARE = re.compile(r"(?!(?:true|false|yes|no|on|off|null|y|n)$)[a-z/][a-z0-9/._-]*", re.IGNORECASE)
_COMMENT_COLUMN = 48


def show(loaded: Loaded) -> str:
    """Return the settings as YAML, each with its origin behind it."""
    lines: list[str] = []
    for section in sections():
        lines.append(f"{section}:")
        for leaf in leaves():
            if leaf.section == section:
                entry = f"  {leaf.name}: {written(_value(loaded, leaf))}"
                lines.append(f"{entry:<{_COMMENT_COLUMN}}  # {one_line(loaded.origins[leaf.key])}")
    return "\n".join(lines) + "\n"


def show_json(loaded: Loaded) -> str:
    """Return the settings as JSON: for each key its value and origin."""
    entries = {
        leaf.key: {"value": _plain(_value(loaded, leaf)), "origin": loaded.origins[leaf.key]}
        for leaf in leaves()
    }
    return json.dumps(entries, indent=2) + "\n"


def written(value: object) -> str:
    """Return a value as YAML on one line, which is also how a flag or variable takes it."""
    match _plain(value):
        case bool() as flag:
            return "true" if flag else "false"
        case str() as text:
            return text if _BARE.fullmatch(text) else _quoted(text)
        case dict() as entries:
            return "{" + ", ".join(f"{written(k)}: {written(v)}" for k, v in entries.items()) + "}"
        case list() as items:
            return "[" + ", ".join(map(written, items)) + "]"
        case number:
            return repr(number)


def reference_table() -> str:
    """Return every setting as rows of a Markdown table, under a heading for each section."""
    blocks: list[str] = []
    for section, model in sections().items():
        rows = [
            f"| `{leaf.key}` | {_kind(leaf)} | `{written(leaf.default)}` | {_cell(leaf)} |"
            for leaf in leaves()
            if leaf.section == section
        ]
        head = ["| key | takes | default | meaning |", "|---|---|---|---|"]
        blocks.append("\n".join([f"## {section}", "", model.__doc__, "", *head, *rows]))
    return "\n\n".join(blocks) + "\n"


def _kind(leaf: Leaf) -> str:
    return leaf.type.replace("|", ", ")


def _cell(leaf: Leaf) -> str:
    return f"{leaf.description}<br>`{leaf.flag}`<br>`{leaf.env}`"


def _value(loaded: Loaded, leaf: Leaf) -> object:
    return getattr(getattr(loaded.settings, leaf.section), leaf.name)


def _plain(value: object) -> object:
    """Return a value of the tree as JSON knows it."""
    match value:
        case None:
            return ""  # the socket that is off
        case Path():
            return str(value)
        case BaseModel():
            return {name: _plain(entry) for name, entry in value}
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case tuple() | list():
            return [_plain(entry) for entry in value]
        case _:
            return value


def _quoted(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in {'"', "\\"}:
        return f"\\{character}"
    if character.isprintable():
        return character
    return f"\\U{ord(character):08x}"
