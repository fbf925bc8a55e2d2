"""`hailo-agent explain`: why a pod has its device or none, why a device is as it is."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from hailo_agent import __version__
from hailo_agent.cli.holders import health_word, note, say, since, stamp
from hailo_agent.settings import Settings
from hailo_agent.support import sight as support
from hailo_agent.support.explain import Explanation, explain
from hailo_agent.support.holds import of_hold
from hailo_agent.support.sight import Sight

_PIPE_WIDTH = 100
_INDENT = "  "


def explained(settings: Settings, name: str, *, as_json: bool) -> int:
    """Explain one pod or device; fails where the name means nothing here."""
    sight = asyncio.run(support.look(settings))
    explanation = explain(sight, name)
    if as_json:
        print(json.dumps(_document(sight, explanation), indent=2))
        return 0
    note(sight)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
    for line in _lines(sight, explanation):
        for part in _wrapped(line, max(width, 2 * len(_INDENT) + 20)):
            say(part)
    return 0


def _document(sight: Sight, explanation: Explanation) -> dict[str, Any]:
    return {
        "version": __version__,
        "agentError": sight.silence,
        "kubeletError": sight.unasked,
        "subject": explanation.subject,
        "cause": explanation.cause.value,
        "answer": explanation.answer,
        "facts": list(explanation.facts),
        "nextStep": explanation.next_step,
        "devices": [device.to_dict() for device in explanation.devices],
        "holds": [of_hold(hold) for hold in explanation.holds],
        "recent": [change.to_dict() for change in explanation.recent],
    }


def _lines(sight: Sight, explanation: Explanation) -> Iterator[str]:
    yield explanation.answer
    sections = (
        ("", explanation.facts),
        ("What is wrong:", tuple(_wrong(explanation))),
        ("Who holds what:", tuple(_held(explanation))),
        ("What happened lately:", tuple(_lately(sight, explanation))),
    )
    for title, lines in sections:
        if lines:
            yield ""
            yield from (title,) if title else ()
            yield from lines
    yield ""
    yield f"Next step: {explanation.next_step or 'none, all is as it should be'}."


def _wrong(explanation: Explanation) -> Iterator[str]:
    for device in explanation.devices:
        for fault in device.faults:
            measured = f" ({fault.evidence})" if fault.evidence else ""
            yield f"{_INDENT}{device.id}: {fault.code}, {fault.severity}: {fault.message}{measured}"
            remedy = f"; to do: {fault.remedy}" if fault.remedy else ""
            yield f"{_INDENT * 2}since {stamp(fault.since_unix_seconds)}{remedy}"


def _held(explanation: Explanation) -> Iterator[str]:
    for hold in explanation.holds:
        health = "unknown" if hold.device is None else health_word(hold.device).lower()
        when = "" if hold.since_unix_seconds is None else f", since {since(hold)}"
        yield f"{_INDENT}{hold.device_id}, {health}: {hold.holder}, as {hold.resource}{when}"


def _lately(sight: Sight, explanation: Explanation) -> Iterator[str]:
    if sight.unrecorded:
        yield f"{_INDENT}nobody can tell: {sight.unrecorded}"
    for change in explanation.recent:
        yield f"{_INDENT}{stamp(change.at_unix_seconds)}  {change.subject}: {change.words}"


def _wrapped(line: str, width: int) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=indent + _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    ) or [""]
