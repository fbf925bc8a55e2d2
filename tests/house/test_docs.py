"""What the reference promises is what the code has, in both directions."""

import argparse
import re
from collections.abc import Iterator

import pytest

from hailo_agent.cli import parser
from hailo_agent.core.cdi import Outcome
from hailo_agent.core.change import Kind
from hailo_agent.core.health import FaultCode
from tests.house.repository import ROOT

REFERENCE = ROOT / "docs" / "reference"
SOURCES = [
    path
    for path in (ROOT / "hailo_agent").rglob("*.py")
    if "generated" not in path.parts and "sim" not in path.parts
]
_NAME = r"[a-z]+(?:-[a-z]+)*\.[a-z]+(?:-[a-z]+)*"
_WRITTEN = re.compile(rf'(?:(?:_log|structlog\.get_logger\(\))\s*\.\w+|\bwrite)\(\s*"({_NAME})"')
_CHOSEN = re.compile(rf'_refuse\("({_NAME})"|"(plugin\.rejected)" if rejected else "({_NAME})"')


def rows(page: str) -> set[str]:
    """List what stands in the first column of a page's tables."""
    text = (REFERENCE / page).read_text()
    return {
        name for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for name in ticked(row)
    }


def ticked(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def written_events() -> set[str]:
    events = {kind.value for kind in Kind}
    events |= {outcome.value for outcome in Outcome if outcome is not Outcome.UNCHANGED}
    for path in SOURCES:
        text = path.read_text()
        events |= set(_WRITTEN.findall(text))
        events |= {name for found in _CHOSEN.findall(text) for name in found if name}
    return events


def test_every_event_that_is_written_is_documented_and_the_other_way_round() -> None:
    documented = {name for name in rows("events.md") if re.fullmatch(_NAME, name)}
    assert len(documented) > 20
    assert written_events() == documented


def test_every_fault_code_is_documented_and_the_other_way_round() -> None:
    text = (REFERENCE / "api.md").read_text()
    faults = text[text.index("## Faults") :] if "## Faults" in text else text
    documented = set(re.findall(rf"^\| `({_NAME})` \|", faults, re.MULTILINE))
    assert documented == {code.value for code in FaultCode}


def verbs(of: argparse.ArgumentParser, prefix: str = "") -> Iterator[str]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                nested = list(verbs(below, f"{prefix}{name} "))
                yield from nested or [f"{prefix}{name}"]


def test_every_verb_is_documented() -> None:
    documented = rows("verbs.md")
    for verb in verbs(parser()):
        assert any(name == verb or name.startswith(f"{verb} ") for name in documented), verb


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")))
def test_every_decision_is_in_the_index(page: object) -> None:
    assert str(page).rpartition("/")[2] in (ROOT / "docs" / "adr" / "README.md").read_text()
