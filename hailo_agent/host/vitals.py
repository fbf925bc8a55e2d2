"""Vitals of PCI functions, read from sysfs without opening anything else.

`VitalsReader.read` works in threads, because a read may hang: while a function is being reset,
nobody gets at its configuration space (`pci_wait_cfg`). What hangs costs its thread and its own
reading; another thread goes on with the rest, and the next reading goes around it. As everywhere in
this room, nothing that stands there is believed: not its type, not its size, not its encoding.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from hailo_agent.core.device import PciAddress
from hailo_agent.core.vitals import Aer, HostMemory, Vitals
from hailo_agent.host.scan import attempt, printable, read_attribute, read_link

_MAX_HUNG_DEVICES: Final = 256
"""Each costs a thread. With so many, the rest is not read at all until one comes back."""

_STALL_SECONDS: Final = 0.1
"""How long a device may take before another thread goes on with the rest."""

_POWER_STATE = re.compile(r"[A-Za-z0-9]{1,16}", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,20}", re.ASCII)
"""No number that the kernel prints is longer (u64)."""

_TRUTH: Final = {"Y": True, "1": True, "N": False, "0": False}
"""How a module parameter reads (param_get_bool)."""

_CMA = re.compile(r"^Cma(Total|Free): +([0-9]{1,15}) kB$", re.MULTILINE | re.ASCII)


@dataclass(slots=True)
class _Hand:
    """One thread at work: it takes device after device until there are none, or it is relieved."""

    address: PciAddress | None = None
    since: float = field(default_factory=time.monotonic)
    relieved_at: float | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def take(self, left: deque[PciAddress]) -> Iterator[PciAddress]:
        """Take what nobody has taken yet; a deque may be shared between threads."""
        with suppress(IndexError):
            while self.relieved_at is None:
                self.since = time.monotonic()
                self.address = left.popleft()
                yield self.address


@dataclass(slots=True)
class _Round:
    """One reading under way: filled by its threads, watched by the loop."""

    at: float
    left: deque[PciAddress]
    found: dict[PciAddress, Vitals] = field(default_factory=dict)
    hands: list[_Hand] = field(default_factory=list)
    moved: anyio.Event = field(default_factory=anyio.Event)
    """Set when a hand is done, and then replaced."""
    power_managed: dict[str, bool | None] = field(default_factory=dict)
    """By driver, asked once per reading."""

    @property
    def busy(self) -> list[_Hand]:
        """The hands that are at work."""
        return [hand for hand in self.hands if not hand.over.is_set()]


@dataclass(slots=True)
class VitalsReader:
    """Reads the vitals of one machine. `read` may be called again only after it has returned."""

    sys: Path
    timeout_seconds: float
    """How long the reading of one device may take."""
    _hung: dict[PciAddress, threading.Event] = field(default_factory=dict)
    _threads: anyio.CapacityLimiter = field(
        default_factory=lambda: anyio.CapacityLimiter(_MAX_HUNG_DEVICES)
    )

    async def read(self, addresses: Sequence[PciAddress], at: float) -> Mapping[PciAddress, Vitals]:
        """Read each of them once, `at` being the time on the observation's clock.

        Never fails: of what cannot be read nothing is known, of what hangs only that it does.
        """
        self._hung = {address: over for address, over in self._hung.items() if not over.is_set()}
        work = _Round(at=at, left=deque(a for a in addresses if a not in self._hung))
        try:
            await self._share_out(work)
        finally:  # also when nobody waits for it any more: a thread cannot be called back
            work.left.clear()
            for hand in work.busy:
                if hand.address is not None and hand.address not in work.found:
                    self._hung[hand.address] = hand.over
        return {
            address: work.found.get(address) or Vitals(at=at, hung=address in self._hung)
            for address in addresses
        }

    async def _share_out(self, work: _Round) -> None:
        """Have the work done by one hand, or by more while those before it are held up."""
        async with anyio.create_task_group() as group:
            while True:
                busy = work.busy
                room = len(self._hung) + len(busy) < _MAX_HUNG_DEVICES
                if work.left and room and all(hand.relieved_at for hand in busy):
                    work.hands.append(_Hand())
                    group.start_soon(self._lend, work.hands[-1], work)
                elif all(map(self._is_hung, busy)):
                    break
                else:
                    await self._watch(work)
            group.cancel_scope.cancel()

    async def _lend(self, hand: _Hand, work: _Round) -> None:
        """Give a thread to a hand, and say when it is done."""
        await anyio.to_thread.run_sync(
            self._work, hand, work, abandon_on_cancel=True, limiter=self._threads
        )
        work.moved.set()

    async def _watch(self, work: _Round) -> None:
        """Wait until a hand is done, or has been busy for long; then relieve it."""
        work.moved = anyio.Event()
        stall = min(_STALL_SECONDS, self.timeout_seconds / 2)
        with anyio.move_on_after(stall):
            await work.moved.wait()
        now = time.monotonic()
        for hand in work.busy:
            if hand.relieved_at is None and now - hand.since >= stall:
                hand.relieved_at = now

    def _is_hung(self, hand: _Hand) -> bool:
        """Whether a hand is given up: measured by when we saw it last, for we may have slept."""
        stall = min(_STALL_SECONDS, self.timeout_seconds / 2)
        left = self.timeout_seconds - stall
        return hand.relieved_at is not None and time.monotonic() - hand.relieved_at >= left

    # Everything below runs in a thread.

    def _work(self, hand: _Hand, work: _Round) -> None:
        try:
            for address in hand.take(work.left):
                work.found[address] = self._vitals(address, work)
        finally:
            hand.over.set()

    def _vitals(self, address: PciAddress, work: _Round) -> Vitals:
        path = f"{self.sys}/bus/pci/devices/{address}"
        driver, driver_known = _driver(path)
        return Vitals(
            at=work.at,
            config_vendor=_first_word(f"{path}/config"),
            driver=driver,
            driver_known=driver_known,
            enabled=_is_positive(attempt(read_attribute, f"{path}/enable")),
            link=read_link(path),
            power_state=_power_state(attempt(read_attribute, f"{path}/power_state")),
            power_managed=None if driver is None else _power_managed(path, driver, work),
            aer=_aer(path),
        )


def host_memory(proc: Path) -> HostMemory | None:
    """Read how much contiguous memory there is; None where the kernel does not say."""
    text = attempt(read_attribute, f"{proc}/meminfo")
    sizes = {name: int(size) * 1024 for name, size in _CMA.findall(text or "")}
    if sizes.keys() != {"Total", "Free"}:
        return None
    return HostMemory(cma_total_bytes=sizes["Total"], cma_free_bytes=sizes["Free"])


# --- one attribute -------------------------------------------------------------------------------


def _driver(path: str) -> tuple[str | None, bool]:
    """Find who drives a function, and whether that can be known."""
    try:
        link = os.readlink(f"{path}/driver")  # noqa: PTH115 - strings: this runs for a thousand
    except FileNotFoundError:
        return None, os.path.isdir(path)  # noqa: PTH112 - as above
    except OSError:
        return None, False
    return printable(link.rpartition("/")[2]), True


def _first_word(path: str) -> int | None:
    """Read the vendor id: one access to configuration space, as anybody may make it."""
    with suppress(OSError):
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                word = os.read(descriptor, 2)
                return int.from_bytes(word, "little") if len(word) == 2 else None  # noqa: PLR2004
        finally:
            os.close(descriptor)
    return None


def _is_positive(text: str | None) -> bool | None:
    """Read `enable`, which counts how often the function was enabled."""
    return None if text is None or not _COUNT.fullmatch(text) else int(text) > 0


def _power_state(text: str | None) -> str | None:
    return text if text is not None and _POWER_STATE.fullmatch(text) else None


def _power_managed(path: str, driver: str, work: _Round) -> bool | None:
    if driver not in work.power_managed:
        name = f"{path}/driver/module/parameters/no_power_mode"
        never_sleeps = _TRUTH.get(attempt(read_attribute, name) or "")
        work.power_managed[driver] = None if never_sleeps is None else not never_sleeps
    return work.power_managed[driver]


def _aer(path: str) -> Aer | None:
    """Read the error counters; None unless the function has any."""
    counted = Aer(
        correctable=_total(f"{path}/aer_dev_correctable", "TOTAL_ERR_COR"),
        nonfatal=_total(f"{path}/aer_dev_nonfatal", "TOTAL_ERR_NONFATAL"),
        fatal=_total(f"{path}/aer_dev_fatal", "TOTAL_ERR_FATAL"),
    )
    return None if counted == Aer() else counted


def _total(path: str, name: str) -> int | None:
    """Read the total, which is in the last line (aer_dev_correctable_show() and its like)."""
    text = attempt(read_attribute, path)
    label, _, count = (text or "").rpartition("\n")[2].partition(" ")
    return int(count) if label == name and _COUNT.fullmatch(count) else None
