"""A process of its own for calls that may never return: it opens a device and issues ioctls.

`probe.py` runs this file as a script in an interpreter without site-packages, and imports it for
the layout of what goes over the socket. It knows nothing of what it asks, and imports next to
nothing, because all that it holds is held for as long as the agent lives.

A request is HEAD and a body: OPEN and a path, IOCTL and an argument, or CLOSE. Each is answered by
a RECORD when the call has returned. One record more, at the start, says that it is there.

No signal ends it in the middle of a call: whoever starts it blocks them all. It ends when nobody is
there any more to send requests, but not before the running call has returned.
"""

import fcntl
import os
import stat
import struct
import time

HEAD = struct.Struct("<BII")
"""What is to be done, the ioctl's number, and the bytes of the body that follow."""

OPEN = 1
IOCTL = 2
CLOSE = 3

RECORD = struct.Struct("<idI")
"""An errno or 0 or NOT_A_DEVICE, the seconds it took, and the bytes of the argument that follow."""

NOT_A_DEVICE = -1
"""What OPEN comes to where the path is no character device."""

# The worker leads its session: without O_NOCTTY a terminal opened by mistake would become its own.
# O_NONBLOCK is for what else a path may turn out to be; the vendor's open() does not heed it.
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def serve(source: int, sink: int) -> None:
    """Do what is asked until nobody asks any more."""
    _tell(sink, 0, 0.0)
    device = -1
    while head := _read(source, HEAD.size):
        what, number, size = HEAD.unpack(head)
        body = bytearray(_read(source, size))
        error = 0
        started_at = time.monotonic()
        try:
            if what == OPEN:
                device = _open(bytes(body))
                error = NOT_A_DEVICE if device < 0 else 0
            elif what == IOCTL:
                fcntl.ioctl(device, number, body)
            else:
                os.close(device)
        except OSError as failed:
            error = failed.errno or NOT_A_DEVICE
        seconds = time.monotonic() - started_at
        _tell(sink, error, seconds, body if what == IOCTL and not error else b"")


def _open(path: bytes) -> int:
    """Open a character device; -1 if it is something else."""
    # Asked beforehand, as to open a socket fails with ENXIO, like a lost device.
    if not stat.S_ISCHR(os.stat(path).st_mode):  # noqa: PTH116 - pathlib costs a megabyte
        return -1
    device = os.open(path, _FLAGS)
    if stat.S_ISCHR(os.fstat(device).st_mode):
        return device
    os.close(device)
    return -1


def _tell(sink: int, error: int, seconds: float, data: bytes | bytearray = b"") -> None:
    record = RECORD.pack(error, seconds, len(data)) + data
    while record:
        record = record[os.write(sink, record) :]


def _read(source: int, size: int) -> bytes:
    """Read exactly so much, or nothing if it ends before."""
    body = b""
    while len(body) < size:
        part = os.read(source, size - len(body))
        if not part:
            return b""
        body += part
    return body


if __name__ == "__main__":
    # Should it never return, whoever waits for the end of a pipe must not wait for it.
    os.closerange(3, 4096)
    serve(0, 1)
