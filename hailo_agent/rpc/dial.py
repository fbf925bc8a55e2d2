"""A gRPC client on a unix socket: channels, and what their failures mean to us.

Used by every edge that calls others. It knows nothing of what is called.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from grpclib.client import Channel
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from hailo_agent.errors import EdgeError

__all__ = ["Channel", "PeerRefused", "dialing", "translating"]


class PeerRefused(EdgeError):
    """Raised when the peer understood a call and answered with a status that is not OK."""

    def __init__(self, message: str, *, edge: str, status: str) -> None:
        """Carry the gRPC status by name, and the peer's own words as the message."""
        super().__init__(message, edge=edge)
        self.status = status


@asynccontextmanager
async def dialing(path: Path) -> AsyncIterator[Channel]:
    """Hold a channel to the socket at `path`; it connects with the first call."""
    channel = Channel(path=str(path))
    try:
        yield channel
    finally:
        channel.close()


@contextmanager
def translating(edge: str, what: str) -> Iterator[None]:
    """Let failures of calls rise as edge errors that say what was tried.

    Raises:
        PeerRefused: the peer answered with a status.
        EdgeError: there was no answer.
    """
    try:
        yield
    except GRPCError as error:
        message = f"{what}: {error.message or error.status.name}"
        raise PeerRefused(message, edge=edge, status=error.status.name) from error
    except TimeoutError as error:
        raise EdgeError(f"{what}: no answer in time", edge=edge) from error
    except FileNotFoundError as error:
        raise EdgeError(f"{what}: the socket does not exist", edge=edge) from error
    except ConnectionRefusedError as error:
        raise EdgeError(f"{what}: nobody listens on the socket", edge=edge) from error
    except AttributeError as error:
        if "_transport" not in str(error):
            raise
        # What grpclib makes of a connection that was lost before it was used.
        raise EdgeError(f"{what}: the peer hung up", edge=edge) from error
    except AssertionError as error:
        # What grpclib makes of a message that the end of the connection cut short.
        raise EdgeError(f"{what}: the peer hung up in the middle", edge=edge) from error
    except (OSError, StreamTerminatedError, ProtocolError) as error:
        raise EdgeError(f"{what}: {str(error) or type(error).__name__}", edge=edge) from error
