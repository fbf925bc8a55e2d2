"""What is wrong with a value, in words that an operator can act on.

Called by `load`, which collects problems and raises them together. It must not know where values
are read from, only the place that each came with.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import ErrorDetails

from hailo_agent.settings.leaves import Leaf, leaf_by_key, nearest
from hailo_agent.settings.text import one_line, shown
from hailo_agent.settings.tree import Family, Wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A value as somebody wrote it: text, or lists and mappings of text."""

    value: object
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    key: str
    what: str
    remedy: str
    value: str = ""
    origin: str = ""

    def __str__(self) -> str:
        """Return `log.level = 'loud' (flag --log.level) is not one of …; did you mean …?`."""
        subject = f"{self.key} = {self.value}" if self.value else self.key
        place = f" ({self.origin})" if self.origin else ""
        return one_line(f"{subject}{place} {self.what}; {self.remedy}")


def unknown(name: str, *, origin: str, what: str, known: str | None) -> Problem:
    """Describe a name that is not one of ours."""
    everything = "`hailo-agent config show` lists all there are"
    remedy = f"did you mean {known}?" if known else everything
    return Problem(key=name, origin=origin, what=f"is not {what}", remedy=remedy)


def misspelt(leaf: Leaf, given: Given, what: str) -> Problem:
    """Describe a value that cannot be read at all."""
    return Problem(
        key=leaf.key,
        value=shown(given.value),
        origin=given.origin,
        what=what,
        remedy=_spelling(leaf),
    )


def refused(error: ErrorDetails, given: Mapping[str, Given]) -> Problem:
    """Describe a value that the tree refuses, in other words than the library's."""
    cause = error.get("ctx", {}).get("error")
    section, name, *inside = [str(part) for part in error["loc"] if part != "[key]"] or [""] * 2
    if isinstance(cause, Wrong) and cause.key:
        section, _, name = cause.key.partition(".")
    key = f"{section}.{name}"
    written = given.get(key, Given(value=leaf_by_key()[key].default, origin="default"))
    what, remedy = _reason(error, leaf_by_key()[key])
    return Problem(
        key=key + "".join(f"[{part}]" for part in inside),
        value=""
        if error["type"] == "missing"
        else shown(error["input"] if inside else written.value),
        origin=written.origin,
        what=what,
        remedy=remedy,
    )


# What the library finds, by its name for it: what to say, and what to do. Braces are filled from
# the finding's own figures.
_REASONS: Final[Mapping[str, tuple[str, str]]] = {
    "float_parsing": ("is not a number", "{spelling}"),
    "float_type": ("is not a number", "{spelling}"),
    "finite_number": ("is not a finite number", "{spelling}"),
    "greater_than_equal": ("is too small", "use {ge:g} or more"),
    "less_than_equal": ("is too large", "use {le:g} or less"),
    "bool_parsing": ("is neither true nor false", "{spelling}"),
    "bool_type": ("is neither true nor false", "{spelling}"),
    "literal_error": ("is not known", "{meant}"),
    "extra_forbidden": ("is not known", "{meant}"),
    "string_too_short": ("is empty", "write something or leave it out"),
    "string_too_long": ("is too long", "use at most {max_length} characters"),
    "tuple_type": ("is not a list", "{spelling}"),
    "dict_type": ("is not a mapping", "{spelling}"),
    "mapping_type": ("is not a mapping", "{spelling}"),
    "model_type": ("is not a mapping", "write keys and values"),
    "model_attributes_type": ("is not a mapping", "write keys and values"),
    "missing": ("is missing", "add it"),
    "string_type": ("is not text", "write text"),
    "string_unicode": ("is not UTF-8 text", "write text"),
    "path_type": ("is not a path", "write a path"),
}

# How a value is written, by the type of its setting.
_SPELLINGS: Final[Mapping[str, str]] = {
    "list": "write a list as a,b or as JSON",
    "mapping": "write a mapping as key=value,key=value or as JSON",
    "seconds": "write a number of seconds, for instance 2.5",
    "true|false": "write true or false (yes and no will do)",
    "path": "write a path",
    "text": "write text",
}


def _reason(error: ErrorDetails, leaf: Leaf) -> tuple[str, str]:
    context: Mapping[str, Any] = error.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, Wrong):
        return str(cause), cause.remedy
    what, remedy = _REASONS.get(error["type"], ("is refused: {message}", "{spelling}"))
    figures = {
        **context,
        "message": error["msg"],
        "spelling": _spelling(leaf),
        "meant": _meant(error),
    }
    return what.format_map(figures), remedy.format_map(figures)


def _meant(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return _choice(str(error["loc"][-1]), Family.model_fields)
    expected = str(error.get("ctx", {}).get("expected", ""))
    return _choice(str(error["input"]), re.findall(r"'([^']*)'", expected))


def _choice(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known)
    return f"did you mean {found}?" if found else "use one of " + ", ".join(known)


def _spelling(leaf: Leaf) -> str:
    return _SPELLINGS.get(leaf.type, "use one of " + leaf.type.replace("|", ", "))
