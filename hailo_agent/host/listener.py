"""A process of its own that waits for what one device's firmware has to say.

`notifications.py` runs this file as a script in an interpreter without site-packages, and imports
it only for the layout of what comes through the pipe. READ_NOTIFICATION does not return before
there is something, and belongs to whoever opened the device, so each device takes a process.

    python -I -S listener.py PATH NUMBER

One RECORD without bytes says that the device is open. One for each notification has those that the
kernel driver handed out. One with an errno says why there are no more, and is the last.

It imports next to nothing, not even `typing`: what it holds, it holds for each device.

Unlike a firmware control this wait may be interrupted: any signal ends it, and so does the end of
standard input, which is the end of whoever started us.
"""

import fcntl
import os
import stat
import struct
import sys

RECORD = struct.Struct("<iI")
"""An errno or 0 or NOT_A_DEVICE, and the bytes that follow."""

NOT_A_DEVICE = -1
"""What open() comes to where the path is no character device."""

# See worker.py: no terminal of our own by mistake, and no waiting for what is no device.
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def listen(path: str, number: int, sink: int) -> None:
    """Hand on notifications until there are no more to be had."""
    try:
        device = os.open(path, _FLAGS)
        if not stat.S_ISCHR(os.fstat(device).st_mode):
            _tell(sink, NOT_A_DEVICE)
            return
        _tell(sink, 0)
        while True:
            argument = bytearray(number >> 16 & 0x3FFF)
            try:
                fcntl.ioctl(device, number, argument)
            except InterruptedError:  # somebody stopped us, and let us go on
                continue
            _tell(sink, 0, argument)
    except BrokenPipeError:
        return
    except OSError as error:
        _tell(sink, error.errno or NOT_A_DEVICE)


def die_with(source: int) -> None:
    """Have the kernel end this process, wherever it waits, when `source` ends.

    SIGIO does that, which nobody handles here.
    """
    fcntl.fcntl(source, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(source, fcntl.F_GETFL)
    fcntl.fcntl(source, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    try:
        os.read(source, 1)
    except BlockingIOError:
        return
    sys.exit(0)  # it ended before we asked to be told


def _tell(sink: int, error: int, data: bytes | bytearray = b"") -> None:
    record = RECORD.pack(error, len(data)) + data
    while record:
        record = record[os.write(sink, record) :]


if __name__ == "__main__":
    die_with(0)
    listen(sys.argv[1], int(sys.argv[2]), 1)
