"""HTTP on the one loop: what the agent shows to people, probes and Prometheus.

Nothing can be changed through it, and nobody who connects can hold it up: requests have no body,
whoever is slow is hung up on, and when all places are taken, the one idle for longest yields. It
knows neither settings nor other rooms; the composition root hands in plain callables (`Site`).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import Final

import anyio
import structlog
from aiohttp import hdrs, web

from hailo_agent.aio.supervise import Report, Status, describe
from hailo_agent.errors import EdgeError
from hailo_agent.web.answers import JSON, accepts_gzip, answer, encode, packed, spell, text
from hailo_agent.web.events import Events
from hailo_agent.web.exposition import prefers_openmetrics
from hailo_agent.web.listen import BACKLOG, EDGE, Address, Listening, listening, parse_listen
from hailo_agent.web.probes import Check, Liveness, Readiness
from hailo_agent.web.shared import Shared
from hailo_agent.wire import agentapi

MAX_CONNECTIONS: Final = 64
IDLE_SECONDS: Final = 15.0
"""How long a connection may go without a whole request; that is also how long one may take."""
SEND_SECONDS: Final = 10.0
"""How long a client may take to take its answer."""
MAX_LINE_BYTES: Final = 2048
MAX_HEADERS: Final = 64

_METHODS: Final = (hdrs.METH_GET, hdrs.METH_HEAD)
_FORMATS: Final = ("text/plain", "application/openmetrics-text; version=1.0.0")
"""The formats of metrics, in words of an Accept header: plain, and what Prometheus prefers."""
_GRACE_SECONDS: Final = 0.25
_LOOK_SECONDS: Final = 5.0
"""How often we look whether the file of a unix socket is still there."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the agent hands to the web room."""

    inventory: Callable[[], agentapi.Inventory]
    """Everything that is held to be true now."""
    watch: Callable[[], AsyncIterator[agentapi.WatchResponse]]
    """The whole inventory, then each change; folded for whoever is slow."""
    statuses: Callable[[], Sequence[Status]]
    checks: Mapping[str, Check]
    """By name: calls one of our own services over its socket, and raises if that fails."""
    metrics: Callable[[str], tuple[bytes, str]]
    """Body and media type of the metrics, in the format that an Accept header prefers."""
    extra: Callable[[], Mapping[str, object]]
    """What /status tells besides the inventory."""


async def serve(listen: str, site: Site, *, page: bool, report: Report) -> None:
    """Serve at an address as written in the settings, until cancelled.

    Raises:
        EdgeError: the address is malformed, in use or not permitted, or its file was removed.
    """
    pages = _Pages(site, page=page)
    with listening(_parsed(listen)) as held:
        runner = web.ServerRunner(pages.server, shutdown_timeout=_GRACE_SECONDS)
        await runner.setup()
        try:
            # Cancelled in the middle, asyncio would leave a closed socket among those it watches.
            with anyio.CancelScope(shield=True):
                await web.SockSite(runner, held.socket, backlog=BACKLOG).start()
            _log.info("web.started", address=str(held.address), page=page)
            report("")
            await _until_removed(held)
        finally:
            with anyio.CancelScope(shield=True):
                await pages.end(runner)


def _parsed(listen: str) -> Address:
    try:
        return parse_listen(listen)
    except ValueError as error:
        raise EdgeError(f"cannot listen at {listen!r}: {error}", edge=EDGE) from error


async def _until_removed(held: Listening) -> None:
    while held.is_published():  # noqa: ASYNC110 - a file tells nobody that it was removed
        await anyio.sleep(_LOOK_SECONDS)
    raise EdgeError(f"the socket at {held.address} was removed or replaced", edge=EDGE)


Respond = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Pages:
    """Which path is answered by what."""

    def __init__(self, site: Site, *, page: bool) -> None:
        self._site = site
        self._liveness = Liveness(site.checks)
        self._events = Events(site.watch)
        self._metrics = {accept: Shared(partial(self._make_metrics, accept)) for accept in _FORMATS}
        self._packed_metrics = {
            accept: Shared(partial(self._pack_metrics, accept)) for accept in _FORMATS
        }
        self._status = Shared(self._make_status)
        self._failing: set[str] = set()
        self._paths: dict[str, Respond] = {
            "/livez": self._liveness.respond,
            "/readyz": Readiness(site.statuses).respond,
            "/metrics": self._respond_metrics,
            "/status": self._respond_status,
            "/events": self._events.respond,
        }
        if page:
            self._paths["/"] = _load_page().respond
        self.server = _Server(self._handle, self._events.is_streaming)

    async def end(self, runner: web.ServerRunner) -> None:
        """End streams and answers under way, then every connection, within moments."""
        self._events.cancel()
        self._liveness.cancel()
        self._status.cancel()
        for shared in (*self._metrics.values(), *self._packed_metrics.values()):
            shared.cancel()
        transports = self.server.transports
        await runner.cleanup()
        for transport in transports:
            transport.abort()  # closing would wait for what the client never takes

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.server.touch(request)
        respond = self._paths.get(request.path)
        if request.method not in _METHODS:
            response: web.StreamResponse = text(
                "nothing can be changed here; only GET and HEAD are answered",
                status=HTTPStatus.METHOD_NOT_ALLOWED,
            )
            response.headers[hdrs.ALLOW] = ", ".join(_METHODS)
        elif respond is None:
            known = "\n".join(sorted(self._paths))
            response = text(f"not found; there is\n{known}", status=HTTPStatus.NOT_FOUND)
        else:
            response = await self._respond(request, respond)
        return await _deliver(request, response)

    async def _respond(self, request: web.BaseRequest, respond: Respond) -> web.StreamResponse:
        """Have the answer made; whatever fails costs one answer, and one line until it is over."""
        try:
            response = await respond(request)
        except ConnectionError:
            raise  # the client's own doing
        except Exception as error:
            if request.path not in self._failing:
                self._failing.add(request.path)
                _log.exception("web.failed", path=request.path)
            if request.writer.output_size > 0:
                raise ConnectionAbortedError(describe(error)) from error
            return text("a bug; the log tells more", status=HTTPStatus.INTERNAL_SERVER_ERROR)
        self._failing.discard(request.path)
        return response

    async def _respond_metrics(self, request: web.BaseRequest) -> web.Response:
        wanted = _FORMATS[prefers_openmetrics(request.headers.get(hdrs.ACCEPT, ""))]
        headers: dict[str, str] = {hdrs.VARY: f"{hdrs.ACCEPT}, {hdrs.ACCEPT_ENCODING}"}
        if accepts_gzip(request):
            headers[hdrs.CONTENT_ENCODING] = "gzip"
            body, media_type = await self._packed_metrics[wanted].get()
        else:
            body, media_type = await self._metrics[wanted].get()
        return answer(body, headers={**headers, hdrs.CONTENT_TYPE: media_type})

    async def _make_metrics(self, accept: str) -> tuple[bytes, str]:
        return self._site.metrics(accept)

    async def _pack_metrics(self, accept: str) -> tuple[bytes, str]:
        body, media_type = await self._metrics[accept].get()
        return packed(body), media_type

    async def _respond_status(self, request: web.BaseRequest) -> web.Response:  # noqa: ARG002
        return answer(await self._status.get(), headers={hdrs.CONTENT_TYPE: JSON})

    async def _make_status(self) -> bytes:
        whole = await spell(agentapi.WatchResponse(inventory=self._site.inventory()))
        return encode({**self._site.extra(), **whole})


async def _deliver(request: web.BaseRequest, response: web.StreamResponse) -> web.StreamResponse:
    """Send an answer while somebody watches the clock; aiohttp itself would wait for ever."""
    if response.prepared:
        return response
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    return response


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """The one page there is; its policy admits its own script and style, and nothing else."""

    body: bytes
    packed: bytes
    policy: str

    async def respond(self, request: web.BaseRequest) -> web.Response:
        headers: dict[str, str] = {
            hdrs.CONTENT_TYPE: "text/html; charset=utf-8",
            hdrs.VARY: hdrs.ACCEPT_ENCODING,
            "Content-Security-Policy": self.policy,
        }
        if not accepts_gzip(request):
            return answer(self.body, headers=headers)
        return answer(self.packed, headers={**headers, hdrs.CONTENT_ENCODING: "gzip"})


def _load_page() -> _Page:
    body = files("hailo_agent.web").joinpath("page", "index.html").read_bytes()
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:;"
        f" script-src {_hashes(body, b'script')}; style-src {_hashes(body, b'style')};"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return _Page(body=body, packed=packed(body), policy=policy)


def _hashes(body: bytes, element: bytes) -> str:
    found = re.findall(rb"<%b>(.*?)</%b>" % (element, element), body, flags=re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(inside).digest()).decode() for inside in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


class _Server(web.Server):
    """aiohttp's server, with no more connections than there are places."""

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        is_streaming: Callable[[web.RequestHandler], bool],
    ) -> None:
        super().__init__(
            handle,
            handler_cancellation=True,  # who hangs up wants no answer
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=0,  # a request has no body; what comes of one is not read
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
        )
        self._is_streaming = is_streaming

    def __call__(self) -> web.RequestHandler:
        """Make a connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)

    @property
    def transports(self) -> Sequence[asyncio.Transport]:
        """Every connection's."""
        return tuple(self._connections.values())

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Take one in; the one that has been idle for longest yields its place."""
        super().connection_made(handler, transport)
        while len(self._connections) > MAX_CONNECTIONS:
            idle = next(known for known in self._connections if not self._is_streaming(known))
            self._connections.pop(idle).abort()

    def touch(self, request: web.BaseRequest) -> None:
        """Note that a connection has asked for something just now."""
        transport = self._connections.pop(request.protocol, None)
        if transport is not None:
            self._connections[request.protocol] = transport


class _Connection(web.RequestHandler):
    """One client."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - repeats what the client sent
    ) -> web.StreamResponse:
        """Answer what is no HTTP, without a word in the log: anybody could fill it."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already") from exc
        response = text(HTTPStatus(status).phrase.lower(), status=HTTPStatus(status))
        response.force_close()
        return response
