"""`hailo-agent doctor`: why this node does or does not work, on one screen.

The worst first. One line for each check where all is well; where not, below it why that matters and
what to do.
Exit code 0 healthy, 1 degraded, 2 broken; what could not be looked at does not count.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hailo_agent import __version__
from hailo_agent import doctor as examination
from hailo_agent.core.diagnosis.finding import Finding, Verdict, worst
from hailo_agent.settings import Settings

_PIPE_WIDTH = 100
_CODES = {Verdict.OK: 0, Verdict.DEGRADED: 1, Verdict.BROKEN: 2}
_STYLES = {
    Verdict.OK: "green",
    Verdict.UNSEEN: "cyan",
    Verdict.DEGRADED: "yellow",
    Verdict.BROKEN: "bold red",
}
_MARK_WIDTH = len("degraded  ")
_LABEL_WIDTH = len("why  ")
_NO_DEVICE = "pci.none"
_SUMS = {
    Verdict.OK: "This node is healthy.",
    Verdict.DEGRADED: "This node works, but not as it could. Start at the top.",
    Verdict.BROKEN: "Something on this node is broken. Start at the top.",
}


def doctor(settings: Settings, *, root: Path, kernel_log: Path, as_json: bool) -> int:
    """Examine this node and print the findings; 0 healthy, 1 degraded, 2 broken."""
    findings = asyncio.run(examination.examine(settings, root=root, kernel_log=kernel_log))
    verdict = worst(findings)
    if as_json:
        document = {
            "version": __version__,
            "verdict": verdict.value,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        print(json.dumps(document, indent=2))
    else:
        show(findings)
    return _CODES[verdict]


def show(findings: Sequence[Finding]) -> None:
    """Print findings as a person reads them, and what they amount to."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
    # The console only colours: it would pad what it wraps, and break paths at their slashes.
    console = Console(width=10 * width, highlight=False, soft_wrap=True)
    for finding in findings:
        mark = Text(finding.verdict.value.ljust(_MARK_WIDTH), style=_STYLES[finding.verdict])
        first, *rest = _lines(finding, width - _MARK_WIDTH)
        console.print(mark.append(first, style="default"))
        for line in rest:
            console.print(Text(" " * _MARK_WIDTH + line))
    console.print()
    unseen = sum(finding.verdict is Verdict.UNSEEN for finding in findings)
    blind = f" {unseen} of {len(findings)} checks could not look." if unseen else ""
    sum_ = Text(_sum(findings, is_blind=unseen > 0), style=_STYLES[worst(findings)])
    console.print(sum_.append(blind, style="default"))


def _sum(findings: Sequence[Finding], *, is_blind: bool) -> str:
    verdict = worst(findings)
    if verdict is not Verdict.OK:
        return _SUMS[verdict]
    if any(finding.check == _NO_DEVICE for finding in findings):
        return "This node has no accelerator; nothing else is wrong with it."
    return "As far as could be seen, this node is healthy." if is_blind else _SUMS[verdict]


def _lines(finding: Finding, width: int) -> Iterator[str]:
    """Lay one finding out; the lines of a file to write are left as they are."""
    head, *more = _printable(f"{finding.looked_at}: {finding.found}").split("\n")
    yield from _wrapped(head, width, "")
    yield from more
    for label, text in (("why", finding.why), ("do", finding.next_step)):
        for number, line in enumerate(_printable(text).split("\n") if text else ()):
            prefix = (label if number == 0 else "").ljust(_LABEL_WIDTH)
            if number == 0 or line.startswith("then "):
                yield from _wrapped(line, width, prefix)
            else:
                yield prefix + line


def _wrapped(text: str, width: int, prefix: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        max(width, 2 * _MARK_WIDTH),
        initial_indent=prefix,
        subsequent_indent=" " * (len(prefix) or 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _printable(text: str) -> str:
    """Leave nothing in that a terminal would obey: the kernel log quotes whoever writes to it."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
