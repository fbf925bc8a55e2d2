"""`hailo-agent cordon`: set a device aside, offer it again, list those set aside.

The file is changed directly, with an agent or without; a running agent hears of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable

from hailo_agent import agent
from hailo_agent.core.cordon import (
    Cordon,
    CordonInvalid,
    checked_reason,
    device_id_of,
    document,
)
from hailo_agent.core.device import DeviceId, PciAddress
from hailo_agent.errors import EdgeError
from hailo_agent.host.cordons import CordonFile
from hailo_agent.settings import Settings

_EX_FAILED = 1
_EX_USAGE = 2
_UNKNOWN = "-"


def cordon(settings: Settings, name: str | None, *, reason: str | None, as_json: bool) -> int:
    """Set the device of this name aside for a reason; without a name list what is set aside."""
    if name is None:
        if reason is not None:
            return _misused("--reason is given without a device; write cordon ID --reason TEXT")
        return _show(settings, as_json=as_json)
    if as_json:
        return _misused("--json is for the list; leave it out, or the ID")
    if reason is None:
        return _misused("--reason is missing; write cordon ID --reason TEXT")
    try:
        device_id = device_id_of(name)
        reason = checked_reason(reason)
    except CordonInvalid as invalid:
        return _misused(str(invalid))
    changed = CordonFile(settings.host.cordon_file).change(device_id, reason)
    _say(_cordoned(device_id, changed.before, changed.after))
    _say("No new pod gets it. A pod that has it keeps it, also if its containers restart.")
    _note(settings, device_id)
    return 0


def uncordon(settings: Settings, name: str) -> int:
    """Lift the cordon of the device of this name."""
    try:
        device_id = device_id_of(name)
    except CordonInvalid as invalid:
        return _misused(str(invalid))
    before = CordonFile(settings.host.cordon_file).change(device_id, None).before
    if before is None:
        _say(f"{device_id} was not cordoned.")
    else:
        _say(f"{device_id} is no longer cordoned. It was since {before.since}: {before.reason}")
        _say("Pods can get it again, unless something else is wrong with it.")
    _note(settings, device_id)
    return 0


def _cordoned(device_id: DeviceId, before: Cordon | None, after: Cordon | None) -> str:
    reason, since = ("", "") if after is None else (after.reason, after.since)
    if before is None:
        return f"{device_id} is cordoned: {reason}"
    if before == after:
        return f"{device_id} was cordoned already, since {since}: {reason}"
    return f"{device_id} was cordoned already, since {since}; the reason is now: {reason}"


def _show(settings: Settings, *, as_json: bool) -> int:
    cordons = CordonFile(settings.host.cordon_file).read()
    if as_json:
        _say(json.dumps(document(cordons.entries), indent=2))
    elif cordons.entries:
        for line in _table(cordons.entries):
            _say(line)
    elif cordons.trouble is None:
        _say("No device is cordoned.")
    if cordons.trouble is None:
        return 0
    print(f"hailo-agent: {cordons.error}", file=sys.stderr)
    return _EX_FAILED


def _table(cordons: Iterable[Cordon]) -> Iterable[str]:
    rows = [("ID", "SINCE", "REASON")]
    rows += [(c.device_id, c.since or _UNKNOWN, c.reason or _UNKNOWN) for c in cordons]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, since, reason in rows:
        yield f"{name:<{widths[0]}}  {since:<{widths[1]}}  {reason}"


def _note(settings: Settings, device_id: DeviceId) -> None:
    """Say if nothing of that name is here: it may come back, or the name may be a slip."""
    try:
        inventory = asyncio.run(agent.look(settings))
    except EdgeError as error:
        print(f"Whether it is here cannot be told: {error}", file=sys.stderr)
        return
    names = {device.id for device in inventory.devices}
    for fault in inventory.faults:
        address = PciAddress.parse(fault.subject)
        names.add(fault.subject if address is None else address.device_id)
    if device_id not in names:
        print(
            f"This machine has no {device_id} now; `hailo-agent devices` lists what it has.",
            file=sys.stderr,
        )


def _misused(what: str) -> int:
    print(f"hailo-agent: {what}", file=sys.stderr)
    return _EX_USAGE


def _say(line: str) -> None:
    """Print a line, whatever the terminal can show of it: what it tells of is already done."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))
