"""A gRPC server on a unix socket: its socket file, its connections, its one interceptor.

Used by every edge that others call. It knows nothing of what is served.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import structlog
from grpclib.const import Status
from grpclib.events import RecvRequest, listen
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from hailo_agent.errors import EdgeError, Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from grpclib import const
    from grpclib.server import Stream

Timed = Callable[[str, str, float], None]
"""Told of each call that has ended: its method, its status and how many seconds it took."""

_BACKLOG = 4096
"""As many as may connect at once; the kernel cuts it to net.core.somaxconn."""

_log = structlog.get_logger()


class Service(Protocol):
    """What grpclib serves; every generated service base is one."""

    def __mapping__(self) -> Mapping[str, const.Handler]:
        """Map full method names to handlers."""


@dataclass(slots=True)
class Connections:
    """The peers that are connected now, and a way to wait until all of them have hung up."""

    _open: dict[H2Protocol, None] = field(default_factory=dict)
    _none_left: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._none_left.set()

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, protocol: H2Protocol) -> None:
        """Count a connection."""
        self._open[protocol] = None
        self._none_left.clear()

    def lost(self, protocol: H2Protocol) -> None:
        """Discount a connection."""
        self._open.pop(protocol, None)
        if not self._open:
            self._none_left.set()

    async def all_closed(self, within_seconds: float) -> bool:
        """Wait until every peer has closed its connection; tell whether they all did in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._none_left.wait()
        return not self._open

    def hang_up(self) -> None:
        """Close what peers keep open."""
        for protocol in tuple(self._open):
            protocol.connection.close()


@dataclass(slots=True)
class Calls:
    """How many calls of each method run now, and how many ever began."""

    running: Counter[str] = field(default_factory=Counter)
    begun: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A socket that answers, known by its file: another file at the path is not ours."""

    path: Path
    identity: tuple[int, int]
    connections: Connections
    calls: Calls

    def is_published(self) -> bool:
        """Whether our socket still stands at its path."""
        return identity_of(self.path) == self.identity


def identity_of(path: Path) -> tuple[int, int] | None:
    """Tell device and inode of a file, which name it better than its path; None if there is none.

    Raises:
        OSError: the directory cannot be searched.
    """
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


@asynccontextmanager
async def serving(
    path: Path,
    services: Collection[Service],
    *,
    edge: str,
    mode: int = 0o600,
    grace_seconds: float = 1.0,
    timed: Timed | None = None,
) -> AsyncIterator[Endpoint]:
    """Serve at `path` inside the block; what is visible there answers.

    A socket left behind by a killed process is replaced. On leaving, running calls are cancelled
    and connections closed.

    Raises:
        EdgeError: the socket cannot be made; says why and what to do.
    """
    connections = Connections()
    server = _Server(services, connections)
    calls = Calls()
    listen(server, RecvRequest, partial(_intercept, calls, timed))
    with _bound(path, mode, edge) as (bound, identity):
        # Cancelled in the middle, asyncio would leave a closed socket among those it listens to.
        with anyio.CancelScope(shield=True):
            await server.start(sock=bound, backlog=_BACKLOG)
        try:
            yield Endpoint(path=path, identity=identity, connections=connections, calls=calls)
        finally:
            _unpublish(path, identity)  # first: what is visible must answer
            server.close()
            connections.hang_up()
            # Unbounded since Python 3.12 while a peer stays connected.
            with anyio.move_on_after(grace_seconds, shield=True):
                await server.wait_closed()


@contextmanager
def _bound(path: Path, mode: int, edge: str) -> Iterator[tuple[socket.socket, tuple[int, int]]]:
    """Hold a listening socket, published at `path`.

    The socket is bound under a hidden name, listens, and is then renamed: whoever sees it can
    connect to it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        try:
            try:
                bound.bind(str(temporary))
                temporary.chmod(mode)
                bound.listen()
                identity = identity_of(temporary)
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise EdgeError(_cannot_serve(path, error), edge=edge) from error
        if identity is None:
            raise EdgeError(f"socket {temporary} was removed while being made", edge=edge)
        yield bound, identity


def _unpublish(path: Path, identity: tuple[int, int]) -> None:
    with suppress(OSError):
        if identity_of(path) == identity:
            path.unlink()


def _cannot_serve(path: Path, error: OSError) -> str:
    reasons = {
        errno.ENOENT: f"directory {path.parent} does not exist",
        errno.ENOTDIR: f"{path.parent} is not a directory",
        errno.EACCES: f"no permission to write to {path.parent}",
        errno.EPERM: f"no permission to write to {path.parent}",
        errno.EROFS: f"{path.parent} is mounted read-only",
        errno.ENOSPC: f"no space left in {path.parent}",
    }
    reason = reasons.get(error.errno or 0, str(error))
    return f"cannot serve at {path}: {reason}"


class _Server(Server):
    """grpclib's server, which also tells which peers are connected."""

    def __init__(self, services: Collection[Service], connections: Connections) -> None:
        super().__init__(services)
        self._connections = connections

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        return _Counted(protocol, self._connections)


class _Counted(H2Protocol):
    """One connection, counted from its making to its loss."""

    def __init__(self, made: H2Protocol, connections: Connections) -> None:
        super().__init__(made.handler, made.config, made.h2_config)
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.lost(self)
        super().connection_lost(exc)


async def _intercept(calls: Calls, timed: Timed | None, event: RecvRequest) -> None:
    """Turn refusals into gRPC statuses, and write the one line of each call."""
    call, method = event.method_func, event.method_name

    async def answer(stream: Stream[Any, Any]) -> None:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        status = Status.OK.name
        calls.begun[method] += 1
        calls.running[method] += 1
        try:
            await call(stream)
        except Refusal as refusal:
            status = refusal.status
            raise GRPCError(Status[refusal.status], str(refusal)) from refusal
        except GRPCError as error:
            status = error.status.name
            raise
        except asyncio.CancelledError:
            status = Status.CANCELLED.name
            raise
        except BaseException:
            status = Status.UNKNOWN.name
            raise
        finally:
            calls.running[method] -= 1
            took = loop.time() - started_at
            if timed is not None:
                timed(method, status, took)
            _log.debug(
                "rpc.answered",
                rpc={"method": method, "status": status},
                duration_ms=round(1000 * took, 3),
            )

    event.method_func = answer
