"""Kernel uevents as a doorbell: the kernel's own word that a device came or went.

A netlink socket on the one loop, group 1, for which no privilege is needed. A pod of an ordinary
network hears it; a process in its own user namespace hears nothing, without any error. So this is a
faster hint beside inotify, never the truth.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import anyio

from hailo_agent.errors import HostError

_KOBJECT_UEVENT: Final = 15  # NETLINK_KOBJECT_UEVENT, which Python's socket module does not name
_KERNEL_GROUP: Final = 1  # group 2 is udevd's re-broadcast, heard only where udevd runs
_KERNEL_PORT: Final = 0
_MAX_BYTES: Final = 8192
_RECEIVE_BUFFER_BYTES: Final = 1024 * 1024
_DRIVER: Final = re.compile(r"/(?:module|bus/pci/drivers)/hailo")
_WHOLE_ID_RANGE: Final = ["0", "0", "4294967295"]


async def listen(
    ring: Callable[[str], None], class_names: Collection[str], report: Callable[[str], None]
) -> None:
    """Ring for every uevent of a Hailo class or PCI function, until cancelled.

    Raises:
        HostError: there is no such socket to be had, or its events would not reach us.
    """
    if not in_initial_user_namespace():
        raise HostError(
            "uevents do not reach a user namespace (hostUsers: false);"
            " changes are seen by inotify or the resync",
            edge="host",
        )
    try:
        listener = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            _KOBJECT_UEVENT,
        )
    except OSError as error:
        raise HostError(f"no netlink socket for uevents: {error}", edge="host") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        try:
            listener.bind((0, _KERNEL_GROUP))
        except OSError as error:
            raise HostError(f"cannot listen for uevents: {error}", edge="host") from error
        report("")
        while True:
            await anyio.wait_readable(listener)
            if _drain(listener, class_names):
                ring("uevent")


def _drain(listener: socket.socket, class_names: Collection[str]) -> bool:
    """Read all that is there; tell whether anything of it concerns us."""
    concerned = False
    while True:
        try:
            message, sender = listener.recvfrom(_MAX_BYTES)
        except BlockingIOError:
            return concerned
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise HostError(f"uevents are lost: {error}", edge="host") from error
            concerned = True  # the kernel dropped some: one of them may have been ours
            continue
        # Only the kernel sends from port 0; whatever else sends here is nobody we listen to.
        concerned |= sender[0] == _KERNEL_PORT and concerns(message, class_names)


def concerns(message: bytes, class_names: Collection[str]) -> bool:
    """Tell whether a uevent, NUL-separated KEY=value fields, is about a Hailo device."""
    fields = dict(
        field.decode("utf-8", "replace").partition("=")[::2] for field in message.split(b"\0")[1:]
    )
    if _DRIVER.match(fields.get("DEVPATH", "")):
        return True  # a driver that leaves takes its class along, without a word of that
    subsystem = fields.get("SUBSYSTEM", "")
    if subsystem == "pci":
        return fields.get("PCI_ID", "").upper().startswith("1E60:")
    return subsystem in class_names


def in_initial_user_namespace(uid_map: Path = Path("/proc/self/uid_map")) -> bool:
    """Tell whether this process lives in the namespace that the kernel's uevents are sent to."""
    try:
        return uid_map.read_text().split() == _WHOLE_ID_RANGE
    except OSError:
        return os.geteuid() == 0
