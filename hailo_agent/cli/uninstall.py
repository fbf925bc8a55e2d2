"""`hailo-agent uninstall`: take from this node all that the agent left there, and nothing else.

What is gone is said on standard output, one line each; what is not, on standard error with the
reason. Exit code 0 when nothing of ours is left, which is also how `--dry-run` tells.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Final, TextIO

from hailo_agent.settings import Settings
from hailo_agent.support.uninstall import Outcome, Places, Step, objections, sweep

_EX_FAILED = 1
_EX_USAGE = 2
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})


def uninstall(settings: Settings, *, dry_run: bool, hold: bool, force: bool) -> int:
    """Remove what is ours, or say what would be; with `hold` stay afterwards until told to stop."""
    if dry_run and hold:
        _complain("--hold is for what was done, and --dry-run does nothing; leave one of them out")
        return _EX_USAGE
    if hold:
        # A container's first process ignores what it has not asked for, SIGTERM included.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    if _is_refused(settings, force=force) and not dry_run:
        _complain("nothing was removed")
        return _EX_FAILED
    code = _swept(settings, dry_run=dry_run)
    if hold and code == 0:
        print("Staying until told to stop.", flush=True)
        signal.sigwait(_ENDING)
    return code


def _is_refused(settings: Settings, *, force: bool) -> bool:
    """Say what speaks against it, if anything does."""
    against = asyncio.run(objections(settings))
    if against.untold and not against.found:
        print(f"Whether pods hold devices cannot be told: {against.untold}", file=sys.stderr)
    for objection in against.found:
        remedy = "" if force else f"; {objection.remedy} first, or say --force"
        _complain(f"{objection.what}{remedy}")
    return bool(against.found) and not force


def _swept(settings: Settings, *, dry_run: bool) -> int:
    count = dict.fromkeys(Outcome, 0)
    for step in sweep(Places.of(settings), dry_run=dry_run):
        count[step.outcome] += 1
        _tell(step, dry_run=dry_run)
    if count[Outcome.STUCK]:
        _complain(f"{_things(count[Outcome.STUCK])} could not be removed")
        return _EX_FAILED
    if dry_run and count[Outcome.REMOVED]:
        _say(f"{_things(count[Outcome.REMOVED])} would be removed.", sys.stdout)
        return _EX_FAILED
    _say(
        f"Nothing of hailo-agent is {'left ' if count[Outcome.REMOVED] else ''}on this node.",
        sys.stdout,
    )
    return 0


def _tell(step: Step, *, dry_run: bool) -> None:
    match step.outcome:
        case Outcome.REMOVED:
            _say(f"{'would remove' if dry_run else 'removed'} {step.path}", sys.stdout)
        case Outcome.KEPT:
            _complain(f"left alone: {step.path}: {step.why}")
        case Outcome.STUCK:
            _complain(f"cannot remove {step.path}: {step.why}")


def _things(count: int) -> str:
    return f"{count} thing{'' if count == 1 else 's'}"


def _complain(line: str) -> None:
    _say(f"hailo-agent: {line}", sys.stderr)


def _say(line: str, stream: TextIO) -> None:
    """Print a line at once, with nothing in it that a terminal would obey."""
    clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    encoding = stream.encoding or "utf-8"
    print(clean.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
