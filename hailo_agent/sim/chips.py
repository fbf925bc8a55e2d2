"""The chips of a simulated machine: one behind each devnode, as ill as the machine says it is.

A mapping that `ioctls` looks into whenever a devnode is opened or asked, so that chips come and go
with what is plugged in, and ailments act at once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from hailo_agent.sim.firmware import ChipFault, ChipFirmware, SimulatedChip
from hailo_agent.sim.generations import HAILO_8, HAILO_10H, HAILO_12L, HAILO_15L
from hailo_agent.sim.machine import Ailment, Machine

_BOARDS: Final[Mapping[str, str]] = {
    HAILO_8: "hailo-8",
    HAILO_10H: "hailo-10h",
    HAILO_12L: "hailo-12l",
    HAILO_15L: "hailo-15l",
}

_FAULTS: Final[Mapping[Ailment, ChipFault]] = {
    Ailment.DEAD_LINK: ChipFault.LOST,
    Ailment.FIRMWARE_LOST: ChipFault.NOT_LOADED,
    Ailment.HUNG_CONTROL: ChipFault.HUNG,
    Ailment.SLOW_CONTROL: ChipFault.SLOW,
    Ailment.GARBAGE: ChipFault.NOISE,
    Ailment.HOT: ChipFault.HOT,
    Ailment.THROTTLING: ChipFault.THROTTLING,
    Ailment.REFUSING: ChipFault.REFUSING,
}


class Chips(Mapping[str, SimulatedChip]):
    """A chip for each function that a kernel driver serves, by address."""

    def __init__(self, machine: Machine) -> None:
        """Make chips as they are looked for."""
        self._machine = machine
        self._made: dict[str, tuple[str, SimulatedChip]] = {}
        self._ill: dict[str, frozenset[ChipFault]] = {}

    def __getitem__(self, address: str) -> SimulatedChip:
        generation = self._machine.generation(address)
        if generation is None:
            raise KeyError(address)
        pci_id = self._pci_id(address)
        kind = f"{generation.version} {pci_id} {self._machine.entry(address)}"
        made, chip = self._made.get(address, ("", None))
        if chip is None or made != kind:
            firmware = ChipFirmware(version=generation.version, serial=serial_of(address))
            chip = SimulatedChip(
                generation.version, firmware, board=_BOARDS.get(pci_id, _BOARDS[HAILO_8])
            )
            self._made[address] = kind, chip
        self._fall_ill(chip, address)
        return chip

    def __iter__(self) -> Iterator[str]:
        return iter(self._machine.entries)

    def __len__(self) -> int:
        return len(self._machine.entries)

    def _fall_ill(self, chip: SimulatedChip, address: str) -> None:
        """Let the chip have the faults of the machine's ailments; what was planted in it stays."""
        ailments = self._machine.ailments(address)
        ill = frozenset(fault for ailment, fault in _FAULTS.items() if ailment in ailments)
        for fault in self._ill.get(address, frozenset()) - ill:
            chip.firmware.heal(fault)
        for fault in ill:
            chip.firmware.plant(fault)
        self._ill[address] = ill

    def _pci_id(self, address: str) -> str:
        directory = self._machine.function_directory(address)
        vendor, device = (
            (directory / name).read_text().strip().removeprefix("0x")
            for name in ("vendor", "device")
        )
        return f"{vendor}:{device}"


_TRIAL: Final = "import hailo_agent.sim.ioctls as i; i.install_filter()"


async def why_no_chips() -> str:
    """Try whether a process can be answered for chips here; tells why not, or nothing if it can.

    A sandbox may not permit it, and neither may who supervises us already.
    """
    trial = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _TRIAL),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, complaint = await trial.communicate()
    if trial.returncode == 0:
        return ""
    lines = complaint.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].rpartition("] ")[2] if lines else f"the trial ended with {trial.returncode}"


def serial_of(address: str) -> str:
    """Tell the serial number of the chip in a slot."""
    return f"SIM{address.replace(':', '').replace('.', '')}"[:15]
