"""Devices that an operator set aside: what a cordon is, the document that keeps it, its evidence.

Pure. `host.cordons` keeps the document on disk and `cli.cordon` has it changed; what a cordon does
to a device is decided by `health.judge`, as with every other evidence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hailo_agent.core.device import DeviceId, PciAddress, is_device_id
from hailo_agent.core.health import Evidence, Fault, FaultCode, Sensor
from hailo_agent.errors import HailoAgentError

VERSION: Final = 1
"""Of the document. A reader refuses any other, for it cannot know what that means."""

MAX_REASON_LENGTH: Final = 200
MAX_CORDONS: Final = 1024
MAX_BYTES: Final = 256 * 1024

_MAX_BY_LENGTH: Final = 63
_SHOWN_LENGTH: Final = 80
_REPAIR: Final = "repair the file, or remove it and cordon again"

_SINCE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)
_ID: Final = re.compile(
    r"(?<![a-z0-9-])(?:pci(?:-[0-9a-f]{1,8}){4}|soc-[a-z0-9-]{1,59})(?![a-z0-9-])", re.ASCII
)


class CordonInvalid(HailoAgentError, ValueError):
    """Raised when something is no device, no reason or no document of cordons.

    It is a `ValueError` for pydantic, which tells the place of no other.
    """

    def __init__(self, what: str, *, remedy: str) -> None:
        """Say what is wrong with which value, and what to do."""
        super().__init__(f"{what}; {remedy}")
        self.what = what
        self.remedy = remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Cordon:
    """One device that is set aside: why, since when, and by which way."""

    device_id: DeviceId
    reason: str
    """At most `MAX_REASON_LENGTH` printable characters; empty where a broken file hides it."""
    since: str
    """ISO 8601 in UTC, `2026-11-22T18:30:00Z`; empty where a broken file hides it."""
    by: str = "cli"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Nobody can tell whether a device is cordoned: the file was never readable."""

    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cordons:
    """Every cordon known, sorted by device id, and what is wrong with the file that says so."""

    entries: tuple[Cordon, ...] = ()
    trouble: Fault | None = None
    """Why the file cannot be read; the entries are then those known before."""
    is_complete: bool = True
    """Whether no other device can be cordoned. Not so if the file could not be read even once."""

    def get(self, device_id: DeviceId) -> Cordon | Doubt | None:
        """Look up one device, for `evidence`."""
        found = find(self.entries, device_id)
        if found is not None or self.is_complete:
            return found
        return Doubt(remedy=self.trouble.remedy if self.trouble else _REPAIR)

    @property
    def error(self) -> str:
        """The trouble in one text: file, what is wrong, what to do. Empty if there is none."""
        fault = self.trouble
        return "" if fault is None else f"{fault.subject}: {fault.message}; {fault.remedy}"


def evidence(subject: DeviceId, cordon: Cordon | Doubt | None, at: float) -> Evidence:
    """Say what the operator wants of one device; no cordon shows that an earlier one is lifted."""
    faults: tuple[Fault, ...] = ()
    if isinstance(cordon, Doubt):
        faults = (_doubted(subject, cordon),)
    elif cordon is not None:
        faults = (_cordoned(subject, cordon),)
    return Evidence(sensor=Sensor.OPERATOR, at=at, faults=faults)


def trouble(path: str, invalid: CordonInvalid) -> Fault:
    """Make a fault of a file that cannot be read; it is the node's, not a device's."""
    return Fault(
        code=FaultCode.CORDONS_UNREADABLE,
        subject=path,
        message=f"{invalid.what}: what was cordoned before stays cordoned",
        remedy=invalid.remedy,
    )


def _cordoned(subject: DeviceId, cordon: Cordon) -> Fault:
    if not cordon.since:
        return Fault(
            code=FaultCode.CORDONED,
            subject=subject,
            message="cordoned: why cannot be read, for the file is broken",
            remedy=_REPAIR,
        )
    return Fault(
        code=FaultCode.CORDONED,
        subject=subject,
        message=f"cordoned since {cordon.since}: {cordon.reason}",
        remedy=f"`hailo-agent uncordon {subject}` when it may be offered again",
    )


def _doubted(subject: DeviceId, doubt: Doubt) -> Fault:
    return Fault(
        code=FaultCode.CORDONS_UNREADABLE,
        subject=subject,
        message="nobody can tell whether it is cordoned: the file that says so is not readable",
        remedy=doubt.remedy,
    )


# --- changing ------------------------------------------------------------------------------------


def find(cordons: Iterable[Cordon], device_id: DeviceId) -> Cordon | None:
    """Look up one device among cordons that are all there are."""
    return next((cordon for cordon in cordons if cordon.device_id == device_id), None)


def cordoned(before: Cordon | None, device_id: DeviceId, reason: str, now: datetime) -> Cordon:
    """Set a device aside; one that is already keeps its date and takes the new reason.

    Raises:
        CordonInvalid: the reason is none.
    """
    return Cordon(
        device_id=device_id,
        reason=checked_reason(reason),
        since=before.since if before is not None else stamp(now),
    )


def replaced(
    cordons: Iterable[Cordon], device_id: DeviceId, cordon: Cordon | None
) -> tuple[Cordon, ...]:
    """Put this cordon in the place of the device's old one; None lifts it."""
    others = [other for other in cordons if other.device_id != device_id]
    return _sorted([*others, cordon] if cordon is not None else others)


def stamp(now: datetime) -> str:
    """Write a time as `Cordon.since` has it."""
    return now.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def device_id_of(text: str) -> DeviceId:
    """Read a device id (`pci-0000-01-00-0`) or a PCI address (`0000:01:00.0`).

    Raises:
        CordonInvalid: it is neither.
    """
    plain = text.strip().lower()
    address = PciAddress.parse(plain) or _address_in(plain)
    if address is not None:
        return address.device_id
    if is_device_id(plain) and not plain.startswith("pci-"):
        return DeviceId(plain)
    raise CordonInvalid(
        f"{_shown(text)} is neither a device id nor a PCI address",
        remedy="write it as pci-0000-01-00-0 or 0000:01:00.0; `hailo-agent devices` lists them",
    )


def _address_in(device_id: str) -> PciAddress | None:
    kind, *parts = device_id.split("-")
    if kind != "pci" or len(parts) != 4:  # noqa: PLR2004 - domain, bus, slot and function
        return None
    return PciAddress.parse("{}:{}:{}.{}".format(*parts))


def checked_reason(text: str) -> str:
    """Return a reason without blanks around it.

    Raises:
        CordonInvalid: nothing is left, it is too long, or it cannot be printed.
    """
    reason = text.strip()
    if not reason:
        raise CordonInvalid(f"the reason {_shown(text)} is empty", remedy="say why, in a few words")
    if len(reason) > MAX_REASON_LENGTH:
        raise CordonInvalid(
            f"the reason {_shown(reason)} has {len(reason)} characters",
            remedy=f"use at most {MAX_REASON_LENGTH}",
        )
    if not reason.isprintable():
        raise CordonInvalid(
            f"the reason {_shown(reason)} has characters that cannot be printed",
            remedy="remove them; it is one line",
        )
    return reason


# --- the document --------------------------------------------------------------------------------


def _is_device(text: str) -> str:
    if device_id_of(text) != text:
        raise CordonInvalid(
            f"{_shown(text)} is not spelled as a device id",
            remedy=f"write {device_id_of(text)}",
        )
    return text


def _is_reason(text: str) -> str:
    if checked_reason(text) != text:
        raise CordonInvalid(f"the reason {_shown(text)} has blanks around it", remedy="remove them")
    return text


def _is_time(text: str) -> str:
    try:
        matches = _SINCE.fullmatch(text) is not None
        datetime.fromisoformat(text if matches else "")
    except ValueError:
        raise CordonInvalid(
            f"{_shown(text)} is no time in UTC", remedy="write it as 2026-11-22T18:30:00Z"
        ) from None
    return text


def _is_version(number: int) -> int:
    if number != VERSION:
        raise CordonInvalid(
            f"version {_shown(number)} is not known to this release",
            remedy=f"use the release that wrote it, or rewrite it as version {VERSION}",
        )
    return number


def _is_printable(text: str) -> str:
    if not text.isprintable():
        raise CordonInvalid(f"{_shown(text)} cannot be printed", remedy="remove what cannot")
    return text


class _Part(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class _Entry(_Part):
    device: Annotated[str, AfterValidator(_is_device)]
    reason: Annotated[str, AfterValidator(_is_reason)]
    since: Annotated[str, AfterValidator(_is_time)]
    by: Annotated[
        str, Field(min_length=1, max_length=_MAX_BY_LENGTH), AfterValidator(_is_printable)
    ] = "cli"


class _Document(_Part):
    version: Annotated[int, Field(strict=True), AfterValidator(_is_version)]
    cordons: Annotated[tuple[_Entry, ...], Field(max_length=MAX_CORDONS)]


def parse(text: bytes) -> tuple[Cordon, ...]:
    """Read a document, sorted by device id.

    Raises:
        CordonInvalid: it is none; names the first value that is wrong.
    """
    if len(text) > MAX_BYTES:
        raise CordonInvalid(f"it is longer than {MAX_BYTES} bytes", remedy=_REPAIR)
    try:
        document = _Document.model_validate(_json(text))
    except ValidationError as error:
        raise _in_words(error) from None
    cordons = [
        Cordon(device_id=DeviceId(e.device), reason=e.reason, since=e.since, by=e.by)
        for e in document.cordons
    ]
    seen: set[DeviceId] = set()
    for cordon in cordons:
        if cordon.device_id in seen:
            raise CordonInvalid(f"it has {cordon.device_id} twice", remedy="remove one of them")
        seen.add(cordon.device_id)
    return _sorted(cordons)


def serialise(cordons: Iterable[Cordon]) -> bytes:
    """Write a document.

    Raises:
        CordonInvalid: it would be longer than `parse` allows, in entries or bytes.
    """
    entries = document(cordons)
    lines = ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in entries["cordons"])
    listed = f"[\n  {lines}\n ]" if lines else "[]"
    text = f'{{\n "version": {VERSION},\n "cordons": {listed}\n}}\n'.encode()
    if len(entries["cordons"]) > MAX_CORDONS or len(text) > MAX_BYTES:
        raise CordonInvalid(
            f"{len(entries['cordons'])} cordons in {len(text)} bytes are more than"
            f" the file may have ({MAX_CORDONS}, {MAX_BYTES})",
            remedy="lift those of devices that are gone for good",
        )
    return text


def document(cordons: Iterable[Cordon]) -> dict[str, Any]:
    """Say cordons as they stand in the file."""
    return {
        "version": VERSION,
        "cordons": [
            {"device": c.device_id, "reason": c.reason, "since": c.since, "by": c.by}
            for c in _sorted(cordons)
        ],
    }


def mentioned(text: bytes) -> tuple[Cordon, ...]:
    """Find every device that a broken document names, as cordons without reason and date.

    For an agent that starts with a file broken by hand: better a device too many set aside than one
    that somebody is about to pull out.
    """
    found: set[DeviceId] = set()
    for match in _ID.finditer(text[:MAX_BYTES].decode("utf-8", "replace")):
        try:
            found.add(device_id_of(match[0]))
        except CordonInvalid:
            continue
    return tuple(Cordon(device_id=i, reason="", since="") for i in sorted(found)[:MAX_CORDONS])


def _json(text: bytes) -> object:
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_each_once)
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise CordonInvalid(f"line {line} is not UTF-8 text", remedy=_REPAIR) from None
    except json.JSONDecodeError as error:
        raise CordonInvalid(
            f"line {error.lineno} is not JSON ({error.msg})", remedy=_REPAIR
        ) from None
    except CordonInvalid:
        raise
    except (ValueError, RecursionError):  # a number of thousands of digits; a tower of brackets
        raise CordonInvalid("it is not JSON that can be read", remedy=_REPAIR) from None


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a key given twice, where JSON itself would forget the first: it may hold cordons."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise CordonInvalid(f"it has the key {_shown(key)} twice", remedy="remove one of them")
        found[key] = value
    return found


# What the library finds, by its name for it: what to say, and what to do.
_WORDS: Final = {
    "missing": ("is missing", "add it"),
    "extra_forbidden": ("is not known", "remove it"),
    "string_type": ("is not text", "write text in quotes"),
    "string_unicode": ("cannot be printed", "remove what cannot"),
    "string_too_short": ("is empty", "write something"),
    "string_too_long": ("is too long", "shorten it"),
    "tuple_type": ("is not a list", "write [ ]"),
    "too_long": ("has too many entries", f"keep at most {MAX_CORDONS}"),
    "int_type": ("is not a whole number", f"write {VERSION}"),
    "model_type": ("is not an object", "write { }"),
}


def _in_words(error: ValidationError) -> CordonInvalid:
    """Say the first finding in our own words, with the place and the value."""
    first = error.errors(include_url=False)[0]
    place = _place(first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, CordonInvalid):
        return CordonInvalid(f"{place}: {cause.what}", remedy=cause.remedy)
    what, remedy = _WORDS.get(first["type"], ("is refused", _REPAIR))
    value = "" if first["type"] in {"missing", "too_long"} else f" = {_shown(first['input'])}"
    return CordonInvalid(f"{place}{value} {what}", remedy=remedy)


def _place(location: tuple[int | str, ...]) -> str:
    words = ""
    for part in location:
        words += f"[{part}]" if isinstance(part, int) else f".{_plain(part)}"
    return words.removeprefix(".") or "the document"


def _plain(key: str) -> str:
    return key if key.isidentifier() and len(key) <= _SHOWN_LENGTH else _shown(key)


def _shown(value: object) -> str:
    """Show a value as it can stand in a message: on one line, encodable, not endless."""
    if isinstance(value, list | dict):
        return "[…]" if isinstance(value, list) else "{…}"
    shown = repr(value[: _SHOWN_LENGTH + 1]) if isinstance(value, str) else json.dumps(value)
    return shown if len(shown) <= _SHOWN_LENGTH else f"{shown[:_SHOWN_LENGTH]}…"


def _sorted(cordons: Iterable[Cordon]) -> tuple[Cordon, ...]:
    return tuple(sorted(cordons, key=_by_device))


def _by_device(cordon: Cordon) -> DeviceId:
    return cordon.device_id
