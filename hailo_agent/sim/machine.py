"""A machine with Hailo accelerators, simulated: `/dev` and `/sys` below a directory.

Tests, the demo, `hailo-agent simulate` and the benchmark plug and pull here what nobody has on the
desk; the agent is pointed at `machine.dev` and `machine.sys` and cannot tell the difference. This
module has the verbs of a person at the machine and the faults of hardware; what follows from them
is `kernel.py`'s. It must not know the agent: nothing of it is imported, so that a misunderstanding
of the kernel is not made twice.

The order of things is the kernel's. `plugging()` and `pulling()` give it step by step, so that a
test can look between any two of them; `plug()` and `pull()` are the same without the looking:

    function  driver  (class)  directory  link  attributes  power  dev  node           on the way in
    driver  power  node  dev  link  attributes  directory  emptied  function          on the way out
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hailo_agent.sim.generations import GENERATIONS, HAILO_8, Generation, accelerator_type
from hailo_agent.sim.kernel import (
    ERRORS,
    ON_THE_BUS,
    SOC,
    Ailment,
    Board,
    Function,
    Kernel,
    MachineError,
    Module,
    Stage,
    exhaust,
)
from hailo_agent.sim.litter import Litter, LitterKind
from hailo_agent.sim.pci import GEN1, ErrorKind, Link, bridges_above, slot_address
from hailo_agent.sim.wedge import CannotWedge, Wedge, wedged

__all__ = [
    "GENERATIONS",
    "SOC",
    "Ailment",
    "Breakage",
    "CannotWedge",
    "ErrorKind",
    "Generation",
    "Link",
    "LitterKind",
    "Machine",
    "MachineError",
    "Stage",
    "Wedge",
    "slot_address",
]

Breakage = Literal["missing", "wrong-number", "symlink", "regular-file", "fifo", "mode"]

_FULL_SPEED = Link()


class Machine:
    """A machine in a directory that is empty or not there yet. One thread changes it, all may read.

    Dot-files in the directory are whoever's it is, and left alone.
    `udev`: the rules of the kernel driver's source tree open the devnode to everybody.
    `uevents`: this host's kernel announces every change to every listener; needs CAP_SYS_ADMIN.
    `number`: every devnode has this one, for where a number of its own could be a real device's.

    Files must not be written in place: many are hard links to one. `set_attribute()` knows how.
    """

    def __init__(
        self,
        root: Path,
        *,
        udev: bool = True,
        uevents: bool = False,
        number: tuple[int, int] | None = None,
    ) -> None:
        self.root = root.absolute()
        self.dev = self.root / "dev"
        self.sys = self.root / "sys"
        self.root.mkdir(parents=True, exist_ok=True)
        if any(not path.name.startswith(".") for path in self.root.iterdir()):
            raise MachineError(f"{self.root} is not empty: a machine is built from nothing")
        self._kernel = Kernel(self.root, udev=udev, uevents=uevents, number=number)
        self._litter: list[Litter] = []

    # --- what is there ----------------------------------------------------------------------------

    @property
    def numbered(self) -> bool:
        """Whether devnodes have numbers of their own: if not, all have one (not root: 0:0)."""
        return self._kernel.numbered

    @property
    def addresses(self) -> tuple[str, ...]:
        """All that is plugged in, driven or not, in the order it came; `soc` is the SoC's own."""
        return tuple(self._kernel.functions)

    @property
    def entries(self) -> Mapping[str, str]:
        """The class entry of each function that has one, by address."""
        functions = self._kernel.functions.items()
        return {address: function.board.entry for address, function in functions if function.board}

    @property
    def loaded(self) -> tuple[str, ...]:
        """The generations that are loaded, in the order they were."""
        return tuple(self._kernel.modules)

    def entry(self, address: str) -> str | None:
        """Name the class entry of a function, or None while no kernel driver serves it."""
        board = self._function(address).board
        return board.entry if board else None

    def generation(self, address: str) -> Generation | None:
        """Tell which generation drives a function."""
        board = self._function(address).board
        return board.module.generation if board else None

    def number(self, address: str) -> tuple[int, int] | None:
        """Tell major and minor, as `dev` gives them."""
        board = self._function(address).board
        return board.number if board else None

    def devnode(self, address: str) -> Path | None:
        """Tell where the devnode of a function is, or should be."""
        entry = self.entry(address)
        return self.dev / entry if entry else None

    def class_directory(self, generation: str) -> Path:
        """Tell where a generation's class directory is, or will be."""
        return self.sys / "class" / _row(generation).class_name

    def entry_directory(self, address: str) -> Path | None:
        """Tell where below `devices` the class device of a function is."""
        board = self._function(address).board
        return self.sys / board.path if board else None

    def function_directory(self, address: str) -> Path:
        """Tell where below `devices` a function is."""
        return self.sys / self._function(address).path

    # --- kernel drivers ---------------------------------------------------------------------------

    def load(
        self,
        generation: str,
        *,
        order: Sequence[str] | None = None,
        major: int | None = None,
        no_power_mode: bool = False,
    ) -> None:
        """Modprobe. What it binds is probed in the order it was plugged, or in the one given."""
        row = _row(generation)
        for other in self._kernel.modules.values():
            if row.module == other.generation.module:
                raise MachineError(f"{row.module} is loaded already, as {other.generation.name}")
        for address in order or ():
            self._function(address)
        self._kernel.init_module(row, order=order, major=major, no_power_mode=no_power_mode)

    def unload(self, generation: str) -> None:
        """Rmmod. Refused while a devnode is held open: the module owns the file operations."""
        module = self._module(generation)
        if module.holders:
            raise MachineError(f"rmmod: {module.generation.module} is in use by {module.holders}")
        self._kernel.delete_module(module)

    def reload(
        self, generation: str, *, order: Sequence[str] | None = None, major: int | None = None
    ) -> None:
        """Rmmod and modprobe: another major, and indices in the order of probing."""
        no_power_mode = self._module(generation).no_power_mode
        self.unload(generation)
        self.load(generation, order=order, major=major, no_power_mode=no_power_mode)

    # --- functions --------------------------------------------------------------------------------

    def plug(
        self,
        address: str,
        *,
        pci_id: str = HAILO_8,
        numa_node: int = -1,
        root_port: str | None = None,
        link: Link = _FULL_SPEED,
        firmware_ok: bool = True,
        accelerator: int | None = None,
    ) -> str | None:
        """Put a PCI function into a slot. Names its entry; None if no kernel driver serves it."""
        steps = self.plugging(
            address,
            pci_id=pci_id,
            numa_node=numa_node,
            root_port=root_port,
            link=link,
            firmware_ok=firmware_ok,
            accelerator=accelerator,
        )
        exhaust(steps)
        return self.entry(address)

    def plugging(
        self,
        address: str,
        *,
        pci_id: str = HAILO_8,
        numa_node: int = -1,
        root_port: str | None = None,
        link: Link = _FULL_SPEED,
        firmware_ok: bool = True,
        accelerator: int | None = None,
    ) -> Iterator[Stage]:
        """Do what `plug` does, naming each step when done; left half-way, it stays half-built.

        `root_port` is the way down to the function, switches included, for example
        `0000:00:01.0/0000:02:00.0/0000:03:01.0`; by default each bus has a root port of its own.
        `accelerator` is what `accelerator_type` says, if not what is usual for the PCI id.
        """
        if address in self._kernel.functions:
            raise MachineError(f"there is already something in slot {address}")
        try:
            bridges = bridges_above(address, root_port)
        except ValueError as error:
            raise MachineError(str(error)) from None
        function = Function(
            address=address,
            pci_id=pci_id,
            path="/".join(("devices", *bridges, address)),
            accelerator=accelerator_type(pci_id) if accelerator is None else accelerator,
            firmware_ok=firmware_ok,
            link=link,
        )
        return self._kernel.add_function(function, bridges, numa_node=numa_node)

    def pull(self, address: str) -> None:
        """Take a PCI function out of its slot, asking nobody. From now on its index is free."""
        exhaust(self.pulling(address))

    def pulling(self, address: str) -> Iterator[Stage]:
        """Do what `pull` does, naming each step when it is done."""
        if address == SOC:
            raise MachineError("what is part of the SoC cannot be pulled")
        return self._kernel.remove_function(self._function(address))

    def unbind(self, address: str) -> None:
        """Write to the kernel driver's `unbind`: the function stays, its entry and node go."""
        exhaust(self._kernel.release(self._board(address)))

    def bind(self, address: str) -> str | None:
        """Write to the kernel driver's `bind`. Names the entry; None if none took the function."""
        function = self._function(address)
        if function.board is None:
            exhaust(self._kernel.attach(function))
        return self.entry(address)

    def swap_minors(self, first: str, second: str) -> None:
        """Let two functions change indices, as a reload with another order of probing would."""
        boards = self._board(first), self._board(second)
        if boards[0].module is not boards[1].module:
            raise MachineError(f"{first} and {second} are served by different kernel drivers")
        for board in boards:
            exhaust(self._kernel.release(board))
        for board, other in zip(boards, reversed(boards), strict=True):
            exhaust(self._kernel.probe(board.function, board.module, index=other.index))

    def usurp(self, address: str, kernel_driver: str = "vfio-pci") -> None:
        """Let a driver that is not Hailo's have a function; `bind` gives it back."""
        self._kernel.usurp(self._on_the_bus(address), kernel_driver)

    def reset(self, address: str) -> None:
        """Write to the function's `reset`: the chip forgets its firmware.

        Kernel drivers load it again since 5.0.1, 5.0.0 and all before do not.
        """
        function = self._on_the_bus(address)
        board = function.board
        if board is None or _version(board.module.generation) < (5, 0, 1):
            function.ailments |= {Ailment.FIRMWARE_LOST}
        else:
            function.ailments -= {Ailment.FIRMWARE_LOST}

    @contextmanager
    def hold(self, address: str) -> Iterator[None]:
        """Be a process that has the devnode open: the chip is awake (D0), the module in use.

        A board that is pulled meanwhile is gone, but the module stays in use until the block ends.
        """
        board = self._board(address)
        self._kernel.count_holders(board, +1)
        try:
            yield
        finally:
            self._kernel.count_holders(board, -1)

    # --- what ails a device -----------------------------------------------------------------------

    def ail(self, address: str, ailment: Ailment) -> None:
        """Let something ail a device until it is cured, or pulled.

        Sysfs shows what the kernel would know of it; the rest is for who simulates the chip. Errors
        happen once for each call, because a counter is all that is left of them.
        """
        if ailment in ERRORS:
            self.count_errors(address, ERRORS[ailment])
        function = self._on_the_bus(address) if ailment in ON_THE_BUS else self._function(address)
        function.ailments |= {ailment}
        self._kernel.show(function)

    def cure(self, address: str) -> None:
        """Let nothing ail a device any more. What errors there were stays counted."""
        function = self._function(address)
        function.ailments = frozenset()
        function.slowed_to = (GEN1, 1)
        self._kernel.show(function)

    def ailments(self, address: str) -> frozenset[Ailment]:
        """Tell what ails a device."""
        return self._function(address).ailments

    def firmware_loaded(self, address: str) -> bool:
        """Tell whether the chip runs its firmware."""
        return self._function(address).has_firmware

    def count_errors(self, address: str, kind: ErrorKind, count: int = 1) -> None:
        """Let errors happen on the PCIe link, for the kernel to count."""
        function = self._on_the_bus(address)
        function.errors[kind] = function.errors.get(kind, 0) + count
        self._kernel.show(function)

    def degrade_link(self, address: str, *, speed: str = GEN1, width: int = 1) -> None:
        """Let the PCIe link come up slower than it could."""
        self._on_the_bus(address).slowed_to = (speed, width)
        self.ail(address, Ailment.SLOW_LINK)

    def lose_link(self, address: str) -> None:
        """Let the chip fall off the bus with nobody to notice: all stays, nothing answers."""
        self.ail(address, Ailment.DEAD_LINK)

    # --- faults -----------------------------------------------------------------------------------

    def break_node(self, address: str, how: Breakage) -> None:
        """Spoil the devnode. What takes its place does so at once, without a gap."""
        board = self._board(address)
        node = self.dev / board.entry
        board.function.amends["node"] = lambda: self._restore_node(board)
        if how == "missing":
            node.unlink(missing_ok=True)
        elif how == "mode":
            node.chmod(0)
        elif how == "wrong-number" and not self.numbered:
            # mknod() gives us nothing but 0:0, so let it be sysfs that disagrees
            wrong = b"%d:%d\n" % (board.module.major, board.index)
            self._kernel.sysfs.put(f"{board.path}/dev", wrong)
        else:
            self._spoil(board, how).rename(node)

    def set_attribute(
        self,
        address: str,
        name: str,
        content: bytes | None,
        *,
        of: Literal["entry", "function"] = "entry",
    ) -> None:
        """Change an attribute of the class entry, or of the PCI function; None takes it away."""
        function, sysfs = self._function(address), self._kernel.sysfs
        path = f"{function.path if of == 'function' else self._board(address).path}/{name}"
        if path not in function.amends:
            before = sysfs.read(path) if sysfs.exists(path) else None
            function.amends[path] = lambda: self._put_or_drop(path, before)
        self._put_or_drop(path, content)

    def mend(self, address: str) -> None:
        """Undo all that was broken or set at this address, and cure what ails it."""
        function = self._function(address)
        while function.amends:
            function.amends.popitem()[1]()
        self.cure(address)

    @contextmanager
    def wedge(
        self,
        address: str,
        attribute: str | None = None,
        *,
        of: Literal["entry", "function"] = "entry",
    ) -> Iterator[Wedge]:
        """Let open() of an attribute hang until the block is left, for all but the calling thread.

        That is how a hung kernel driver looks, or a function that is being reset. The attribute is
        the one with the address, or `config` of the PCI function, unless another is named. It takes
        CAP_SYS_ADMIN, and CannotWedge says so where it cannot be had.
        """
        if of == "function":
            path = f"{self._on_the_bus(address).path}/{attribute or 'config'}"
            sysfs = self._kernel.sysfs
            sysfs.put(path, sysfs.read(path))  # other functions have a link to the same file
        else:
            board = self._board(address)
            path = f"{board.path}/{attribute or board.module.generation.attributes[0][0]}"
        with wedged(self.sys / path) as wedge:
            yield wedge

    def litter(self, kind: LitterKind, generation: str | None = None) -> Path:
        """Leave rubbish in a class directory (of the first generation that has one); say where."""
        rows = [_row(generation)] if generation else [_row(name) for name in self.loaded]
        for row in rows:
            directory = self.sys / "class" / row.class_name
            if directory.is_dir():
                litter = Litter(kind, directory, row)
                self._litter.append(litter)
                return litter.path
        raise MachineError(
            "no class directory to litter: load an eager generation, or plug a board"
        )

    def sweep(self) -> None:
        """Take all litter away."""
        while self._litter:
            self._litter.pop().sweep()

    def close(self) -> None:
        """Let go of the uevent socket, if there is one; the trees stay."""
        self._kernel.close()

    # --- small things -----------------------------------------------------------------------------

    def _function(self, address: str) -> Function:
        try:
            return self._kernel.functions[address]
        except KeyError:
            raise MachineError(f"there is nothing in slot {address}") from None

    def _on_the_bus(self, address: str) -> Function:
        if address == SOC:
            raise MachineError("what is part of the SoC is not on the PCI bus")
        return self._function(address)

    def _board(self, address: str) -> Board:
        board = self._function(address).board
        if board is None:
            raise MachineError(f"no kernel driver serves {address}")
        return board

    def _module(self, generation: str) -> Module:
        try:
            return self._kernel.modules[generation]
        except KeyError:
            raise MachineError(f"generation {generation} is not loaded") from None

    def _spoil(self, board: Board, how: Breakage) -> Path:
        spoiled = self._kernel.staging / board.entry
        if how == "symlink":  # to the real thing: who follows it finds the right number
            real = self._real(board)
            if not real.exists():
                self._kernel.make_node(real, board)
            spoiled.symlink_to(real.name)
        elif how == "regular-file":
            spoiled.touch()
        elif how == "fifo":
            os.mkfifo(spoiled)
        else:
            major, minor = board.number
            os.mknod(spoiled, stat.S_IFCHR | 0o666, os.makedev(major, minor + 1000))
        return spoiled

    def _restore_node(self, board: Board) -> None:
        mended = self._kernel.staging / board.entry
        self._kernel.make_node(mended, board)
        mended.rename(self.dev / board.entry)
        self._real(board).unlink(missing_ok=True)
        self._kernel.sysfs.put(f"{board.path}/dev", b"%d:%d\n" % board.number)

    def _real(self, board: Board) -> Path:
        return self.dev / f"{board.entry}.real"

    def _put_or_drop(self, path: str, content: bytes | None) -> None:
        if content is None:
            self._kernel.sysfs.drop(path)
        else:
            self._kernel.sysfs.put(path, content)


def _version(row: Generation) -> tuple[int, ...]:
    return tuple(int(part) for part in row.version.split("."))


def _row(generation: str) -> Generation:
    try:
        return GENERATIONS[generation]
    except KeyError:
        known = ", ".join(GENERATIONS)
        raise MachineError(f"there is no generation {generation!r}, only {known}") from None
