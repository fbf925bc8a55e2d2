"""Virtual terminals: devices that this very kernel makes and removes when it is told to.

Opening `/dev/tty20` allocates console 20. The kernel then registers the class device `vc/vcs20`
(and vcsa20, vcsu20), devtmpfs gets `/dev/vcs20`, and a uevent tells of each. `VT_DISALLOCATE`
undoes all of it (drivers/tty/vt/vc_screen.c, vcs_make_sysfs() and vcs_remove_sysfs()). So this is
hot-plug like that of a Hailo driver in everything but the name: a class of virtual devices, as
drivers up to 4.22 make them.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NUMBERS: Final = range(20, 40)
"""Nobody logs in there: getty and logind keep to the first few."""

FAMILY: Final = {"class_name": "vc", "devnode": "vcs(2[0-9]|3[0-9])", "identity": "sysfs"}
"""The same numbers as a row of `host.families`: the consoles in use are none of ours."""

CLASS: Final = Path("/sys/class/vc")

_VT_DISALLOCATE: Final = 0x5608
_BUSY_SECONDS: Final = 5.0


class NoConsoles(Exception):
    """Raised where there are no virtual terminals to be had; says why."""


def entry(number: int) -> str:
    """Name the class entry of a console, and with it its devnode."""
    return f"vcs{number}"


def device_id(number: int) -> str:
    """Tell the id that a device without PCI address gets from its place in sysfs."""
    return f"soc-virtual-vc-{entry(number)}"


class Consoles:
    """The consoles of NUMBERS, all ours for as long as the lock on `/dev/tty0` is held."""

    def __init__(self, tty0: int) -> None:
        self._tty0 = tty0

    def add(self, number: int) -> float:
        """Let the kernel make a console; tells when it began. All of it is there on return."""
        began = time.monotonic()
        tty = os.open(f"/dev/tty{number}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.close(tty)
        return began

    def remove(self, number: int) -> float:
        """Let the kernel remove a console, if it is there; tells when it began.

        The kernel takes its time over the last close of a tty, and calls it busy until then. It
        also calls a console busy that was never allocated: vc_is_sel() compares two null pointers.
        """
        began = time.monotonic()
        deadline = began + _BUSY_SECONDS
        while self.exists(number):
            began = time.monotonic()
            try:
                fcntl.ioctl(self._tty0, _VT_DISALLOCATE, number)
            except OSError as error:
                if error.errno != errno.EBUSY or began > deadline:
                    raise
                time.sleep(0.0005)
        return began

    def flip(self, number: int) -> float:
        """Make it if it is not there, else remove it; tells when the kernel began."""
        return self.remove(number) if self.exists(number) else self.add(number)

    def exists(self, number: int) -> bool:
        """Tell whether it is there: sysfs and devtmpfs both have it."""
        return os.path.lexists(CLASS / entry(number)) and Path("/dev", entry(number)).exists()

    def present(self) -> frozenset[int]:
        """Tell which are there."""
        return frozenset(filter(self.exists, NUMBERS))

    def mode(self, number: int) -> int:
        """Tell the permissions of a console's devnode."""
        return stat.S_IMODE(Path("/dev", entry(number)).stat().st_mode)

    def device_ids(self) -> frozenset[str]:
        """Tell the device ids of those that are there."""
        return frozenset(map(device_id, self.present()))

    def clear(self) -> None:
        """Remove them all."""
        for number in self.present():
            self.remove(number)


@contextmanager
def borrowed() -> Iterator[Consoles]:
    """Have the consoles to oneself: one test at a time on the whole machine, and none left after.

    Raises:
        NoConsoles: this machine has none, or they may not be used.
    """
    # A lock on the device itself needs no file, and the kernel drops it with the process.
    tty0 = _open_tty0()
    try:
        fcntl.flock(tty0, fcntl.LOCK_EX)
        consoles = Consoles(tty0)
        try:
            _try_out(consoles)
            consoles.clear()  # whatever a run that was killed left behind
            yield consoles
        finally:
            consoles.clear()
    finally:
        os.close(tty0)


def _open_tty0() -> int:
    try:
        return os.open("/dev/tty0", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise NoConsoles(f"no virtual terminals here: /dev/tty0: {error.strerror}") from error


def _try_out(consoles: Consoles) -> None:
    number = NUMBERS[0]
    try:
        consoles.add(number)
    except OSError as error:
        raise NoConsoles(
            f"no virtual terminals here: /dev/tty{number}: {error.strerror}"
        ) from error
    if not consoles.exists(number):
        raise NoConsoles(
            f"/dev/tty{number} was opened, but there is no {CLASS / entry(number)} with a node in"
            " /dev: these must be the kernel's own sysfs and devtmpfs, not a container's"
        )
