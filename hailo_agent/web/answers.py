"""What every answer has in common: its headers, its spelling, its compression."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from hailo_agent.wire import agentapi

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"

HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "hailo-agent",
    "X-Content-Type-Options": "nosniff",
}
"""Sent with every answer: nothing is kept, guessed, framed or embedded elsewhere."""


def answer(
    body: bytes, *, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str]
) -> web.Response:
    """Make an answer; `headers` name its type, and win over those that all have."""
    return web.Response(body=body, status=status, headers={**HEADERS, **headers})


def text(lines: str, *, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    """Make an answer for people."""
    return answer(f"{lines}\n".encode(), status=status, headers={hdrs.CONTENT_TYPE: TEXT})


def encode(value: object) -> bytes:
    """Spell a value as JSON; what JSON has no word for is spelled as text."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)


async def spell(message: agentapi.WatchResponse) -> dict[str, Any]:
    """Spell a message as its `to_dict` does, but let others have the loop in between.

    At once it would keep them waiting: about a millisecond for each device.
    """
    inventory, found = message.inventory, message.changes
    if inventory is not None:
        rest = replace(inventory, devices=[]).to_dict()
        return {"inventory": rest | await _in_pieces("devices", inventory.devices)}
    if found is not None:
        rest = replace(found, changes=[]).to_dict()
        return {"changes": rest | await _in_pieces("changes", found.changes)}
    return {}


async def _in_pieces(
    field: str, entries: Sequence[agentapi.Device | agentapi.Change]
) -> dict[str, Any]:
    pieces = []
    for entry in entries:
        pieces.append(entry.to_dict())
        await asyncio.sleep(0)
    return {field: pieces} if pieces else {}


def packed(body: bytes) -> bytes:
    """Compress an answer; the quickest way, for it is the loop that waits."""
    return gzip.compress(body, compresslevel=1, mtime=0)


def accepts_gzip(request: web.BaseRequest) -> bool:
    """Tell whether the client wants its answer compressed."""
    for choice in request.headers.get("Accept-Encoding", "").split(","):
        coding, _, weight = choice.partition(";")
        if coding.strip().lower() in {"gzip", "*"}:
            return weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def accepts_json(request: web.BaseRequest) -> bool:
    """Tell whether the client is a program that says so."""
    return JSON in request.headers.get("Accept", "").lower()
