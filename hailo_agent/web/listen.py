"""Where the web room listens: how an address is written, and the socket that answers there.

`settings` calls `parse_listen` to validate, `server` holds the socket. It knows no HTTP, so that
reading the settings loads no HTTP stack.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hailo_agent.errors import EdgeError
from hailo_agent.rpc.endpoint import identity_of

EDGE: Final = "web"
BACKLOG: Final = 64
SOCKET_MODE: Final = 0o660
MAX_SOCKET_PATH_BYTES: Final = 107
"""`sun_path` of unix(7), less its final NUL."""

_TEMPORARY_BYTES: Final = 4
_TEMPORARY_NAME_BYTES: Final = len(".") + 2 * _TEMPORARY_BYTES
_MAX_PORT: Final = 65535
_UNIX: Final = "unix:"
_REMEDY: Final = "write host:port, [::1]:port, :port for all addresses, or unix:/path"


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpAddress:
    """A TCP port of one address of the machine, or of all."""

    host: str
    """Numeric; empty for all addresses, of IPv6 too where the machine has it."""
    port: int

    def __str__(self) -> str:
        """Spell it as the settings do."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixAddress:
    """A socket's file."""

    path: Path

    def __str__(self) -> str:
        """Spell it as the settings do."""
        return f"{_UNIX}{self.path}"


Address = TcpAddress | UnixAddress


def parse_listen(text: str) -> Address:
    """Read an address as written in the settings; touches neither network nor disk.

    Raises:
        ValueError: it is none; says why, and what to write instead.
    """
    if text.startswith(_UNIX):
        return UnixAddress(path=_parse_path(text.removeprefix(_UNIX)))
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r} has no port; {_REMEDY}")
    return TcpAddress(host=_parse_host(host), port=_parse_port(port))


def _parse_path(text: str) -> Path:
    if "\0" in text:
        raise ValueError("a path cannot contain a NUL character; leave it out")
    path = Path(text)
    if not path.is_absolute() or not path.name or text.endswith("/") or ".." in path.parts:
        raise ValueError(
            f"{text!r} is not the whole path of a socket; begin with '/', end with its name"
        )
    # It is bound under a hidden name in the same directory, and renamed.
    longest = max(
        len(os.fsencode(path)), len(os.fsencode(path.parent / "")) + _TEMPORARY_NAME_BYTES
    )
    if longest > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"the path takes {longest} bytes, a socket's may take {MAX_SOCKET_PATH_BYTES};"
            " choose a shorter one"
        )
    return path


def _parse_host(text: str) -> str:
    if not text:
        return ""
    if text == "localhost":
        return "127.0.0.1"
    bare = re.fullmatch(r"\[(.*)\]", text)
    inner = text if bare is None else bare[1]
    try:
        address = ipaddress.ip_address(inner)
    except ValueError:
        raise ValueError(
            f"{inner!r} is not an IP address; names are not looked up: {_REMEDY}"
        ) from None
    if (address.version == 6) is (bare is None):  # noqa: PLR2004 - of IP
        raise ValueError(f"{text!r}: an IPv6 address, and only that, is written in brackets")
    return inner


def _parse_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > _MAX_PORT:
        raise ValueError(f"{text!r} is not a port; give a number from 1 to {_MAX_PORT}")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """A socket that listens, and whether others can still find it."""

    socket: socket.socket
    address: Address
    """Where it really is: port 0 means any, and this tells which."""
    is_published: Callable[[], bool]


@contextmanager
def listening(address: Address) -> Iterator[Listening]:
    """Hold a listening socket. The file of a unix socket is removed on leaving, if it is ours.

    Raises:
        EdgeError: nothing can listen there; says why and what to do.
    """
    if isinstance(address, UnixAddress):
        with _listening_unix(address) as found:
            yield found
    else:
        with _bound(address) as bound:
            port = bound.getsockname()[1]
            yield Listening(
                socket=bound,
                address=TcpAddress(host=address.host, port=port),
                is_published=lambda: True,
            )


def _bound(address: TcpAddress) -> socket.socket:
    try:
        if address.host:
            # Numeric, so nobody is asked; this is how a scope (`fe80::1%eth0`) becomes a number.
            [(family, _, _, _, name), *_] = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
            return socket.create_server(name, family=family, backlog=BACKLOG)
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", address.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
            )
        return socket.create_server(("", address.port), backlog=BACKLOG)
    except OSError as error:
        raise EdgeError(_cannot_listen(address, error), edge=EDGE) from error


@contextmanager
def _listening_unix(address: UnixAddress) -> Iterator[Listening]:
    path = address.path
    temporary = path.with_name(f".{secrets.token_hex(_TEMPORARY_BYTES)}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        try:
            _see_that_nobody_answers(path)
            try:
                bound.bind(str(temporary))
                temporary.chmod(SOCKET_MODE)
                bound.listen(BACKLOG)
                identity = identity_of(temporary)
                temporary.rename(path)  # whoever sees it can connect to it
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise EdgeError(_cannot_listen(address, error), edge=EDGE) from error

        def is_published() -> bool:
            return identity is not None and identity_of(path) == identity

        try:
            yield Listening(socket=bound, address=address, is_published=is_published)
        finally:
            with suppress(OSError):
                if is_published():
                    path.unlink()


def _see_that_nobody_answers(path: Path) -> None:
    """Let a socket that was left behind be replaced, but nothing else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "something else than a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(0)
        try:
            caller.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
    raise OSError(errno.EADDRINUSE, "somebody answers there")


def _cannot_listen(address: Address, error: OSError) -> str:
    where = address.path.parent if isinstance(address, UnixAddress) else "ports below 1024"
    reasons = {
        errno.EADDRINUSE: "another process listens there; stop it, or choose another web.listen",
        errno.EADDRNOTAVAIL: "this machine does not have that address; choose another web.listen",
        errno.EAFNOSUPPORT: "this machine does not speak that IP version; choose another address",
        errno.EACCES: f"not permitted; {where} cannot be used by this user",
        errno.EPERM: f"not permitted; {where} cannot be used by this user",
        errno.EEXIST: "something else than a socket is there; remove it, or choose another path",
        errno.ENOENT: f"directory {where} does not exist; create or mount it",
        errno.ENOTDIR: f"{where} is not a directory",
        errno.EROFS: f"{where} is mounted read-only",
        errno.ENOSPC: f"no space left in {where}",
    }
    return f"cannot listen at {address}: {reasons.get(error.errno or 0, str(error))}"
