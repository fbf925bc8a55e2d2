"""Server-sent events: each change as it happens, for pages and scripts.

A reader is never waited for. What it is sent next is asked for only once it has taken what it was
sent before, so that whoever folds the changes always folds up to the newest state. Here the little
that may be under way is bounded: in bytes, in time and in readers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from hailo_agent.web.answers import HEADERS, encode, spell, text
from hailo_agent.wire import agentapi

MAX_READERS: Final = 16
HEARTBEAT_SECONDS: Final = 15.0
"""So that proxies keep a quiet stream open, and a reader that is gone is noticed."""
STALLED_SECONDS: Final = 20.0
"""A reader that takes nothing for this long is dropped."""
LIFETIME_SECONDS: Final = 3600.0
"""Then a reader has to come again, or one that sleeps would keep its place for ever."""

_SEND_BUFFER_BYTES: Final = 64 * 1024
_RETRY: Final = b"retry: 2000\n\n"
_HEARTBEAT: Final = b": alive\n\n"

Watch = Callable[[], AsyncIterator[agentapi.WatchResponse]]
"""The whole inventory first, then changes; ends when the agent stops."""


class Events:
    """The streams that are open now."""

    def __init__(self, watch: Watch) -> None:
        """Take where the messages come from."""
        self._watch = watch
        self._streams: dict[asyncio.Task[Any], web.BaseRequest] = {}
        self._spelling: tuple[agentapi.WatchResponse, asyncio.Task[bytes]] | None = None

    def __len__(self) -> int:
        """Tell how many read."""
        return len(self._streams)

    def is_streaming(self, connection: web.RequestHandler) -> bool:
        """Tell whether a connection is a reader's."""
        return any(request.protocol is connection for request in self._streams.values())

    def cancel(self) -> None:
        """End every stream at once."""
        for task in tuple(self._streams):
            task.cancel()
        if self._spelling is not None:
            self._spelling[1].cancel()

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Stream until the reader leaves, stalls or has been here for long, or the agent stops."""
        task = asyncio.current_task()
        if task is None or len(self._streams) >= MAX_READERS:
            answer = text(
                f"{MAX_READERS} readers follow already; come again, or ask /status",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
            )
            answer.headers[hdrs.RETRY_AFTER] = "10"
            return answer
        self._streams[task] = request
        try:
            return await self._stream(request)
        finally:
            del self._streams[task]

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers={**HEADERS, **headers})
        _keep_little_under_way(request)
        writer = await response.prepare(request)
        if writer is None or request.method == hdrs.METH_HEAD:
            return response
        try:
            await _send(writer, _RETRY)
            with suppress(TimeoutError):
                async with asyncio.timeout(LIFETIME_SECONDS):
                    await self._tell(writer)
            await _within_patience(response.write_eof())
        except _StalledError:
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _tell(self, writer: AbstractStreamWriter) -> None:
        messages = self._watch()
        coming = _next(messages)
        try:
            while True:
                # Not `timeout`: the heartbeat must not disturb the one who folds.
                await asyncio.wait({coming}, timeout=HEARTBEAT_SECONDS)
                if not coming.done():
                    await _send(writer, _HEARTBEAT)
                    continue
                message = coming.result()
                if message is None:
                    return
                await _send(writer, await self._spelled(message))
                coming = _next(messages)
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError):
                await coming
            if isinstance(messages, AsyncGenerator):
                await messages.aclose()

    async def _spelled(self, message: agentapi.WatchResponse) -> bytes:
        """Spell a message once for all readers that are given the same one."""
        if self._spelling is None or self._spelling[0] is not message:
            self._spelling = message, asyncio.create_task(_event(message))
        return await asyncio.shield(self._spelling[1])


class _StalledError(Exception):
    """Raised when a reader takes nothing any more."""


def _next(
    messages: AsyncIterator[agentapi.WatchResponse],
) -> asyncio.Task[agentapi.WatchResponse | None]:
    async def wait() -> agentapi.WatchResponse | None:
        return await anext(messages, None)

    return asyncio.create_task(wait())


async def _event(message: agentapi.WatchResponse) -> bytes:
    about = message.inventory or message.changes
    revision = 0 if about is None else about.revision
    return b"id: %d\ndata: %b\n\n" % (revision, encode(await spell(message)))


async def _send(writer: AbstractStreamWriter, data: bytes) -> None:
    """Send, and wait until the kernel has taken it all: only then is the reader ready for more."""
    await _within_patience(writer.write(data))
    await _within_patience(writer.drain())


async def _within_patience(sending: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(STALLED_SECONDS):
            await sending
    except TimeoutError as error:
        raise _StalledError from error


def _keep_little_under_way(request: web.BaseRequest) -> None:
    """Keep old news out of long buffers, where no folding reaches it."""
    if request.transport is None:
        return
    if isinstance(request.transport, asyncio.WriteTransport):
        request.transport.set_write_buffer_limits(high=0)
    under = request.transport.get_extra_info("socket")
    under.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    if under.family in {socket.AF_INET, socket.AF_INET6}:
        # A peer whose machine is gone takes nothing and says nothing; the kernel would wait 15 min.
        patience = int(1000 * 3 * HEARTBEAT_SECONDS)
        under.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
