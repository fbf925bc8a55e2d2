"""`hailo-agent holders`: who holds which device of this node, since when, and what is orphaned."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

from hailo_agent.errors import EdgeError
from hailo_agent.settings import Settings
from hailo_agent.support import sight as support
from hailo_agent.support.holds import Hold, Orphan, can_tell, document, holds
from hailo_agent.support.sight import Sight
from hailo_agent.wire import agentapi

_UNKNOWN = "-"
_ORPHANS = {
    Orphan.GONE: "the machine does not have the device",
    Orphan.UNKNOWN: "nobody but the kubelet knows the device",
    Orphan.UNSERVED: "it is held as a resource that is not served here",
}


def holders(settings: Settings, *, as_json: bool) -> int:
    """Show every hold; fails if there is nobody who could tell."""
    sight = asyncio.run(support.look(settings))
    if not can_tell(sight):
        raise EdgeError(
            f"nobody can tell who holds what: {sight.unasked}; {sight.silence}", edge="cli"
        )
    found = holds(sight)
    if as_json:
        print(json.dumps(document(sight), indent=2))
        return 0
    note(sight)
    if not found:
        say("No pod holds a Hailo device of this node.")
        return 0
    for line in table(found):
        say(line)
    orphans = [hold for hold in found if hold.orphan]
    if orphans:
        say("")
    for hold in orphans:
        say(f"Orphaned: {hold.device_id}, held by {hold.holder}: {_orphaned(hold)}.")
        say(f"  do: {hold.next_step}")
    return 0


def table(found: Iterable[Hold]) -> Iterable[str]:
    """Lay holds out, the columns as wide as they must be: a cut name is of no use."""
    rows = [("POD", "CONTAINER", "DEVICE", "RESOURCE", "SINCE", "HEALTH")]
    rows += [
        (
            hold.holder if hold.pod else "(not named yet)",
            hold.container or _UNKNOWN,
            hold.device_id,
            hold.resource,
            since(hold),
            _health(hold),
        )
        for hold in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip()


def since(hold: Hold) -> str:
    """Say since when, as far as that is known."""
    if hold.since_unix_seconds is None:
        return _UNKNOWN
    moment = stamp(hold.since_unix_seconds)
    return moment if hold.since_is_exact else f"before {moment}"


def stamp(unix_seconds: float) -> str:
    """Say a time as logs do."""
    return datetime.fromtimestamp(unix_seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def note(sight: Sight) -> None:
    """Say on standard error who did not answer."""
    if sight.silence:
        print(f"No agent answers on this node: {sight.silence}", file=sys.stderr)
    if sight.pods is None:
        print(f"The kubelet cannot be asked for pods: {sight.unasked}", file=sys.stderr)


def say(line: str) -> None:
    """Print a line, with nothing in it that a terminal would obey or cannot show."""
    clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    encoding = sys.stdout.encoding or "utf-8"
    print(clean.encode(encoding, "backslashreplace").decode(encoding))


def _orphaned(hold: Hold) -> str:
    return "" if hold.orphan is None else _ORPHANS[hold.orphan]


def _health(hold: Hold) -> str:
    if hold.device is None:
        return "(unknown device)"
    return health_word(hold.device)


def health_word(device: agentapi.Device) -> str:
    """Say how a device is, in one word."""
    return str(device.health.name or "unknown").capitalize()
