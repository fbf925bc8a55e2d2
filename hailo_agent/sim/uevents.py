"""Kernel uevents of a machine that is not there, announced by the kernel that is.

Linux re-broadcasts a uevent that a privileged process sends it (uevent_net_rcv_skb() in
lib/kobject_uevent.c, since 4.18): all listeners in this network namespace, udevd included, get it
from port 0 and with a number, like any other. `Machine(uevents=True)` is the only caller.
"""

import socket
import struct
from typing import Final

_NETLINK_KOBJECT_UEVENT: Final = 15
_NLM_F_REQUEST: Final = 1
_NLMSG_MIN_TYPE: Final = 0x10
_NLMSG_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")


class Uevents:
    """A socket to the kernel, through which uevents are put into circulation."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT
        )

    def send(self, action: str, devpath: str, subsystem: str, properties: bytes) -> None:
        """Have the kernel say what happened; `properties` are as in the `uevent` file."""
        head = f"{action}@{devpath}\0ACTION={action}\0DEVPATH={devpath}\0SUBSYSTEM={subsystem}\0"
        message = head.encode() + properties.replace(b"\n", b"\0")
        length = _HEADER.size + len(message)
        header = _HEADER.pack(length, _NLMSG_MIN_TYPE, _NLM_F_REQUEST, 0, 0)
        self._socket.sendto(header + message, (0, 0))
        self._raise_what_the_kernel_answered()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _raise_what_the_kernel_answered(self) -> None:
        try:  # an answer comes only if the kernel refused, and it is there when sendto() returns
            answer = self._socket.recv(4096)
        except BlockingIOError:
            return
        kind = _HEADER.unpack_from(answer)[1]
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if kind == _NLMSG_ERROR and number:
            raise PermissionError(number, "uevents can only be announced with CAP_SYS_ADMIN")
