"""gRPC over unix sockets with the manners of the Go programs that the simulated node stands in for.

`sim.kubelet` and `sim.podresources` serve and dial through this. Every difference from plain
grpclib is one that a plugin can notice: what a client says its authority is, when a dial counts as
done, how long a message may be, what remains of a server that was killed, and how an error reads.
"""

import asyncio
import socket
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from grpclib.client import Channel, Handler
from grpclib.const import Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.protocol import H2Protocol
from grpclib.server import Server

RECEIVE_LIMIT: Final = 4 * 1024 * 1024
"""Bytes; grpc-go's default, which the kubelet leaves as it is on both of its sides."""

RPC_FAILURES: Final = (
    GRPCError,
    ProtocolError,
    StreamTerminatedError,
    OSError,
    AssertionError,  # grpclib, of a message that the end of the connection cut short
    ValueError,  # text on the wire that is not UTF-8
)


class BoundedCodec(ProtoCodec):
    """Receives no message above grpc-go's limit."""

    def decode(self, data: bytes, message_type: type[Any]) -> Any:  # noqa: ANN401 - grpclib's own
        """Refuse what is too long, and decode the rest."""
        if len(data) > RECEIVE_LIMIT:
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED,
                f"grpc: received message larger than max ({len(data)} vs. {RECEIVE_LIMIT})",
            )
        return super().decode(data, message_type)


class _Protocol(H2Protocol):
    """A connection that notes when the peer has spoken; its first word has to be SETTINGS."""

    spoken: asyncio.Event

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.spoken.set()


class PatientChannel(Channel):
    """The kubelet's connection to a plugin: authority `localhost`, and a dial that blocks."""

    def __init__(self, path: Path) -> None:
        super().__init__(path=str(path), codec=BoundedCodec())
        self._authority = "localhost"
        self._spoken = asyncio.Event()
        self._shut = False

    def close(self) -> None:
        """Close for good; grpclib's own channel would dial again at the next call."""
        self._shut = True
        super().close()

    def is_shut(self) -> bool:
        """Tell whether it was closed, as it may be while it connects."""
        return self._shut

    async def __connect__(self) -> H2Protocol:
        if self.is_shut():
            raise ConnectionError("the client connection is closing")
        protocol = await super().__connect__()
        if self.is_shut():
            super().close()
            raise ConnectionError("the client connection is closing")
        return protocol

    def _protocol_factory(self) -> H2Protocol:
        protocol = _Protocol(Handler(), self._config, self._h2_config)
        protocol.spoken = self._spoken = asyncio.Event()
        return protocol

    async def dial(self) -> None:
        """Connect, and wait for the peer's SETTINGS: a listening socket alone is not enough.

        A socket that cannot be connected to is tried again, with grpc-go's backoff, until the
        caller's patience ends.
        """
        pause = 1.0
        while True:
            try:
                await self.__connect__()
            except OSError:
                if self.is_shut():
                    raise
                await asyncio.sleep(pause)
                pause *= 1.6
            else:
                await self._spoken.wait()
                return


class MortalServer(Server):
    """A server that can be killed: its connections end with it, which grpclib leaves to peers."""

    def __init__(self, handlers: Iterable[Any]) -> None:
        super().__init__(list(handlers), codec=BoundedCodec())
        self._connections: weakref.WeakSet[H2Protocol] = weakref.WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._connections.add(protocol)
        return protocol

    async def die(self) -> None:
        """Stop listening and cut every connection. The socket file stays, as after a SIGKILL."""
        self.close()
        for protocol in list(self._connections):
            if hasattr(protocol, "processor") and not protocol.connection.is_closing():
                protocol.processor.close()
        try:
            await asyncio.wait_for(self.wait_closed(), 1.0)
        except TimeoutError:  # pragma: no cover - a handler that will not be cancelled
            return


def listening(path: Path) -> socket.socket:
    """Bind a socket whose file nobody unlinks but who means to (asyncio would, from 3.13 on)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        sock.listen(100)
        sock.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    except OSError:
        sock.close()
        raise
    return sock


def go_text(error: BaseException) -> str:
    """Say a failed call the way Go prints a gRPC status."""
    if isinstance(error, GRPCError):
        code, text = error.status.name, error.message or ""
    elif isinstance(error, OSError):
        code, text = "UNAVAILABLE", f'connection error: desc = "transport: {error}"'
    else:
        code, text = "UNAVAILABLE", f"error reading from server: {str(error) or 'EOF'}"
    name = "Canceled" if code == "CANCELLED" else code.title().replace("_", "")
    return f"rpc error: code = {name} desc = {text}"
