"""The settings one by one: the key, flag and variable of each, derived from the tree alone.

`load` reads by them, `cli` declares its flags with them and `show` prints them, so that a setting
added to the tree is known everywhere at once. It must not know any single setting.
"""

import difflib
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from hailo_agent.settings.tree import Settings

ENV_PREFIX: Final = Settings.model_config["env_prefix"]
ENV_DELIMITER: Final = Settings.model_config["env_nested_delimiter"] or ""
CONFIG_VARIABLE: Final = f"{ENV_PREFIX}CONFIG"
"""The variable that names the YAML file, where no flag does."""


_UNITS: Final = ("seconds", "celsius", "share")
"""What a number counts, where its key says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One setting."""

    key: str
    type: str
    """What it takes, in a word or as its choices: `seconds`, `path`, `list`, `auto|json`."""
    default: object
    description: str

    @property
    def section(self) -> str:
        """Return `kubelet` of `kubelet.plugin_dir`."""
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        """Return `plugin_dir` of `kubelet.plugin_dir`."""
        return self.key.partition(".")[2]

    @property
    def flag(self) -> str:
        """Return `--kubelet.plugin-dir`."""
        return "--" + self.key.replace("_", "-")

    @property
    def env(self) -> str:
        """Return `HAILO_AGENT_KUBELET__PLUGIN_DIR`."""
        return ENV_PREFIX + self.key.replace(".", ENV_DELIMITER).upper()

    @property
    def is_collection(self) -> bool:
        """Tell whether one text holds several values."""
        return self.type in {"list", "mapping"}


@cache
def leaves() -> tuple[Leaf, ...]:
    """Return every setting, in the order of the tree."""
    return tuple(
        _leaf(f"{section}.{name}", field)
        for section, model in sections().items()
        for name, field in model.model_fields.items()
    )


@cache
def leaf_by_key() -> dict[str, Leaf]:
    """Return the settings by their dotted key."""
    return {leaf.key: leaf for leaf in leaves()}


@cache
def sections() -> dict[str, Any]:
    """Return the model of each section by its name."""
    return {name: field.annotation for name, field in Settings.model_fields.items()}


def _leaf(key: str, field: FieldInfo) -> Leaf:
    kind = _kind(field.annotation)
    return Leaf(
        key=key,
        type=next((unit for unit in _UNITS if key.endswith(f"_{unit}")), kind),
        default=field.default,
        description=field.description or "",
    )


def _kind(annotation: Any) -> str:  # noqa: ANN401 - a type expression
    origin = get_origin(annotation)
    if origin in {Annotated, Union, UnionType}:
        return _kind(get_args(annotation)[0])
    if origin is Literal:
        return "|".join(get_args(annotation))
    if origin is not None:
        return "list" if origin is tuple else "mapping"
    return {str: "text", bool: "true|false", Path: "path"}.get(annotation, "number")


# --- Flags -----------------------------------------------------------------------------------


def add_flags(parser: ArgumentParser) -> None:
    """Declare a flag for every setting, spelled with dashes or underscores.

    The parser must be made with `allow_abbrev=False`, or `--log.lev` would pass for a setting.
    """
    for section, model in sections().items():
        group = parser.add_argument_group(f"settings: {section}", model.__doc__)
        for leaf in leaves():
            if leaf.section == section:
                _add_flag(group, leaf)


def _add_flag(group: Any, leaf: Leaf) -> None:  # noqa: ANN401 - argparse keeps its type private
    metavar = leaf.type if "|" in leaf.type else leaf.type.upper()
    known: dict[str, Any] = {"dest": leaf.key, "action": "append", "default": SUPPRESS}
    text = leaf.description.replace("%", "%%")
    group.add_argument(leaf.flag, metavar=metavar, help=text, **known)
    if "_" in leaf.key:
        group.add_argument(f"--{leaf.key}", metavar=metavar, help=SUPPRESS, **known)


def flags_from(namespace: Namespace, rest: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the flags given, for `load`.

    `rest` is what `parse_known_args` made nothing of: `load` refuses it and names what is nearest.
    """
    given = vars(namespace)
    pairs = [(leaf.flag, text) for leaf in leaves() for text in given.get(leaf.key, ())]
    previous_was_flag = False
    for word in rest:
        is_flag = word.startswith("-")
        name, equals, text = word.partition("=") if is_flag else (word, "", "")
        if is_flag or not previous_was_flag:
            pairs.append((name, text))
        previous_was_flag = is_flag and not equals
    return pairs


# --- Names -----------------------------------------------------------------------------------


def nearest_key(name: str) -> str | None:
    """Return the setting that somebody who wrote this key meant."""
    by_name = {leaf.name: leaf.key for leaf in reversed(leaves())}
    return (
        nearest(name, leaf_by_key(), likeness=0.85)
        or by_name.get(name.rpartition(".")[2])
        or nearest(name, leaf_by_key(), likeness=0.75)
    )


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return the known name that looks most like this one, if any looks so much like it."""
    plain = {_plain(word): word for word in known}
    found = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=likeness)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
