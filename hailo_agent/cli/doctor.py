"""`hailo-agent doctor`: why this node does or does not work, on one screen."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from hailo_agent import doctor as examination
from hailo_agent.core.diagnosis import Finding, Verdict, worst
from hailo_agent.settings import Settings

_PIPE_WIDTH = 120
_CODES = {Verdict.OK: 0, Verdict.DEGRADED: 1, Verdict.BROKEN: 2}
_MARKS = {
    Verdict.OK: ("ok", "green"),
    Verdict.UNSEEN: ("unseen", "cyan"),
    Verdict.DEGRADED: ("degraded", "yellow"),
    Verdict.BROKEN: ("broken", "bold red"),
}
_MARK_WIDTH = 10


def doctor(settings: Settings, *, root: Path, kernel_log: Path, as_json: bool) -> int:
    """Examine this node and print the findings; 0 healthy, 1 degraded, 2 broken."""
    findings = asyncio.run(examination.examine(settings, root=root, kernel_log=kernel_log))
    verdict = worst(findings)
    if as_json:
        document = {
            "verdict": verdict.value,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        print(json.dumps(document, indent=2))
    else:
        _show(findings, verdict)
    return _CODES[verdict]


def _show(findings: Sequence[Finding], verdict: Verdict) -> None:
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    for finding in findings:
        mark, style = _MARKS[finding.verdict]
        line = Text(mark.ljust(_MARK_WIDTH), style=style)
        line.append(f"{finding.looked_at}: ", style="bold")
        line.append(finding.found, style="default")
        console.print(line)
        for label, text in (("why", finding.why), ("do", finding.next_step)):
            if text:
                console.print(Padding(Text(f"{label}: {text}"), (0, 0, 0, _MARK_WIDTH)))
    mark, style = _MARKS[verdict]
    console.print()
    console.print(
        Text(f"This node is {'healthy' if verdict is Verdict.OK else mark}.", style=style)
    )
