"""A workload that tells what it does, in files as HailoRT 4.17, 4.22 or 5.2 leaves them.

Tests and the demo let one write into a directory that a container would have at `/tmp/hmon_files`.
What differs between versions is how a file is written: until 4.21 in place, under a lock; from 4.22
on and in all of 5.x as `<name>.tmp`, which is then renamed. A clean exit removes the file, a kill
leaves it. On a Hailo-10H nothing is ever written: there, the work is done on the device's own
Linux.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hailo_agent.wire import monitor

RENAMES_SINCE: Final = (4, 22)
"""The first version that renames."""

NOT_AVAILABLE: Final = -1.0
NO_OUTPUTS: Final = sys.float_info.max
"""The frame rate of a network without outputs."""

_MODE: Final = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network at work, in HailoRT's own units."""

    name: str
    frames_per_second: float = 30.0
    utilisation_percent: float = 25.0
    pending: int = 1
    capacity: int = 4


@dataclass(slots=True, kw_only=True)
class MonitorWriter:
    """One process with HAILO_MONITOR=1. `write` is what it does once a second."""

    directory: Path
    version: tuple[int, int] = (4, 22)
    networks: Sequence[Network] = (Network(name="yolov8m"),)
    devices: Sequence[str] = ("0000:01:00.0",)
    """PCI addresses of the devices that it drives."""
    pid: int = 1
    """As its own pid namespace has it: in most containers 1."""
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        """Make the file, empty, as mkstemp does."""
        self.directory.mkdir(exist_ok=True)
        alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
        suffix = "".join(secrets.choice(alphabet) for _ in range(6))
        self.path = self.directory / f"{self.pid}{suffix}"
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE))

    @property
    def renames(self) -> bool:
        """Whether this version puts a new file into the place of the old one."""
        return self.version >= RENAMES_SINCE

    def write(self) -> None:
        """Tell what it does now."""
        if self.renames:
            self.begin().rename(self.path)
            return
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate()
            file.write(self.report())

    def begin(self) -> Path:
        """Write as far as a kill may let it come: half in place, or whole beside it."""
        if not self.renames:
            whole = self.report()
            self.path.write_bytes(whole[: len(whole) // 2])
            return self.path
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, _MODE), "wb") as file:
            file.write(self.report())
        return temporary

    def exit(self) -> None:
        """End in order; to be killed is to do nothing any more."""
        self.path.unlink()

    def report(self) -> bytes:
        """Say what the file says."""
        share = min(sum(max(n.utilisation_percent, 0.0) for n in self.networks), 100.0)
        return bytes(
            monitor.Report(
                pid=str(self.pid),
                networks=[
                    monitor.NetworkLoad(
                        network=n.name,
                        frames_per_second=n.frames_per_second,
                        utilisation_percent=n.utilisation_percent,
                    )
                    for n in self.networks
                ],
                frames=[
                    monitor.NetworkFrames(network=n.name, streams=_streams(n))
                    for n in self.networks
                ],
                devices=[
                    monitor.DeviceLoad(
                        device=address, utilisation_percent=share, architecture="HAILO8"
                    )
                    for address in self.devices
                ],
            )
        )


def _streams(network: Network) -> list[monitor.StreamFrames]:
    """Tell of one input, and of one output whose statistics are not available."""
    return [
        monitor.StreamFrames(
            stream=f"{network.name}/input_layer1",
            direction=monitor.Direction.HOST_TO_DEVICE,
            capacity=network.capacity,
            pending=network.pending,
            pending_min=0,
            pending_max=network.capacity,
            pending_mean=network.pending,
        ),
        monitor.StreamFrames(
            stream=f"{network.name}/conv1",
            direction=monitor.Direction.DEVICE_TO_HOST,
            capacity=network.capacity,
            pending=0,
            pending_min=-1,
            pending_max=-1,
            pending_mean=NOT_AVAILABLE,
        ),
    ]
