"""What the operator wrote in flags, environment and file, put together.

Called by `cli` once, before anything else lives. It must not know any single setting but
`node.name`, which the downward API fills. Nothing is raised at the first mistake: everything that
is wrong is said together, one line each.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from hailo_agent.errors import ConfigError
from hailo_agent.settings import text
from hailo_agent.settings.leaves import (
    CONFIG_VARIABLE,
    ENV_DELIMITER,
    ENV_PREFIX,
    Leaf,
    leaf_by_key,
    leaves,
    nearest,
    nearest_key,
    sections,
)
from hailo_agent.settings.problems import Given, Problem, misspelt, refused, unknown
from hailo_agent.settings.tree import Settings

NODE_NAME: Final = "NODE_NAME"
"""The variable in which manifests customarily put `spec.nodeName` through the downward API."""

# The kubelet sets these in every pod of a namespace that has a Service named hailo-agent or
# hailo-agent-<anything> (enableServiceLinks, on by default); they are not meant for us.
_SERVICE_LINK = re.compile(
    rf"{ENV_PREFIX}([A-Z0-9_]+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The settings in effect, and where each of them comes from."""

    settings: Settings
    origins: Mapping[str, str]
    """By dotted key: `flag --log.level`, `environment HAILO_AGENT_…`, `file F:LINE`, `default`."""


def load(
    *,
    flags: Mapping[str, str] | Sequence[tuple[str, str]],
    environ: Mapping[str, str],
    config: Path | None,
) -> Loaded:
    """Return the settings in effect, or raise one ConfigError that says all that is wrong.

    `config` is what `--config` named; without it, the file is the one HAILO_AGENT_CONFIG names.
    """
    problems: list[Problem] = []
    given = {
        **_from_file(config or _config_in(environ), problems),
        **_from_environ(environ, problems),
        **_from_flags(flags.items() if isinstance(flags, Mapping) else flags, problems),
    }
    if "node.name" not in given and environ.get(NODE_NAME):
        given["node.name"] = Given(value=environ[NODE_NAME], origin=f"environment {NODE_NAME}")
    settings = _build(given, problems)
    if settings is None or problems:
        first = problems[0]
        raise ConfigError(
            "\n".join(map(str, problems)), key=first.key, value=first.value, remedy=first.remedy
        )
    by_default = Given(value=None, origin="default")
    origins = {leaf.key: given.get(leaf.key, by_default).origin for leaf in leaves()}
    return Loaded(settings=settings, origins=origins)


def _config_in(environ: Mapping[str, str]) -> Path | None:
    named = environ.get(CONFIG_VARIABLE)
    return Path(named) if named else None


def _from_flags(flags: Iterable[tuple[str, str]], problems: list[Problem]) -> dict[str, Given]:
    found: dict[str, Given] = {}
    for name, written in flags:
        key = name.removeprefix("--").replace("-", "_")
        leaf = leaf_by_key().get(key)
        if leaf is None:
            meant = leaf_by_key().get(nearest_key(key) or "")
            known = meant.flag if meant else None
            problems.append(unknown(name, origin="command line", what="a flag", known=known))
            continue
        given = Given(value=written, origin=f"flag {leaf.flag}")
        if leaf.is_collection and leaf.key in found:
            problems.append(
                misspelt(leaf, given, "is given a second time, the first would be lost")
            )
        found[leaf.key] = given
    return found


def _from_environ(environ: Mapping[str, str], problems: list[Problem]) -> dict[str, Given]:
    by_variable = {leaf.env: leaf for leaf in leaves()}
    found: dict[str, Given] = {}
    for name, written in environ.items():
        if leaf := by_variable.get(name):
            found[leaf.key] = Given(value=written, origin=f"environment {name}")
        elif name.upper().startswith(ENV_PREFIX) and not _is_known_otherwise(name):
            what, known = "a variable of hailo-agent", _nearest_variable(name)
            problems.append(unknown(name, origin="environment", what=what, known=known))
    return found


def _nearest_variable(name: str) -> str | None:
    bare = name[len(ENV_PREFIX) :].lower()
    key = nearest_key(bare.replace(ENV_DELIMITER, "."))
    return leaf_by_key()[key].env if key else nearest(name, [CONFIG_VARIABLE], likeness=0.9)


def _is_known_otherwise(name: str) -> bool:
    if name == CONFIG_VARIABLE:
        return True
    return ENV_DELIMITER not in name and _SERVICE_LINK.fullmatch(name) is not None


def _from_file(path: Path | None, problems: list[Problem]) -> dict[str, Given]:
    if path is None:
        return {}
    try:
        top = text.entries(text.parse(text.read(path)))
    except text.MisreadError as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        remedy = "correct it, or name another file with --config"
        problems.append(Problem(key=place, what=str(error), remedy=remedy))
        return {}
    found: dict[str, Given] = {}
    for section, (line, node) in top.items():
        if section in sections():
            found |= _from_section(path, section, node, problems)
        else:
            known = nearest(section, sections()) or nearest_key(section)
            origin = f"file {path}:{line}"
            problems.append(unknown(section, origin=origin, what="a section", known=known))
    return found


def _from_section(
    path: Path, section: str, node: text.Node, problems: list[Problem]
) -> dict[str, Given]:
    found: dict[str, Given] = {}
    try:
        below = text.entries(node)
    except text.MisreadError as error:
        origin = f"file {path}:{error.line}"
        remedy = f"write its settings below it, one to a line, for instance {_example(section)}"
        problems.append(Problem(key=section, origin=origin, what=str(error), remedy=remedy))
        return found
    for name, (line, child) in below.items():
        key, origin = f"{section}.{name}", f"file {path}:{line}"
        if key not in leaf_by_key():
            known = nearest_key(key)
            problems.append(unknown(key, origin=origin, what="a setting", known=known))
            continue
        try:
            written = text.value(child)
        except text.MisreadError as error:
            origin = f"file {path}:{error.line}"
            remedy = "write every key once, and as text"
            problems.append(Problem(key=key, origin=origin, what=str(error), remedy=remedy))
            continue
        if written is not None:
            found[key] = Given(value=written, origin=origin)
    return found


def _example(section: str) -> str:
    return next(f"{leaf.name}: …" for leaf in leaves() if leaf.section == section)


def _build(given: Mapping[str, Given], problems: list[Problem]) -> Settings | None:
    tree: dict[str, dict[str, object]] = {}
    for key, written in given.items():
        leaf = leaf_by_key()[key]
        try:
            tree.setdefault(leaf.section, {})[leaf.name] = _expanded(leaf, written.value)
        except text.MisreadError as error:
            problems.append(misspelt(leaf, written, str(error)))
    try:
        return Settings.model_validate(tree)
    except ValidationError as invalid:
        problems.extend(refused(error, given) for error in invalid.errors(include_url=False))
        return None


def _expanded(leaf: Leaf, written: object) -> object:
    """Turn text into a list or mapping of text where that is what a setting takes."""
    if not isinstance(written, str):
        return written
    match leaf.type:
        case "list":
            return text.listed(written)
        case "mapping":
            return text.mapped(written)
        case _:
            return written
