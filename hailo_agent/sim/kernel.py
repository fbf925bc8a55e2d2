"""What the kernel does to `/sys` and `/dev` when functions and kernel drivers come and go.

`machine.py` is the only caller: it has the verbs of a person at the machine, this module those of
drivers/base/core.c (`device_add`, `device_del`), dd.c (`really_probe`, `__device_release_driver`),
drivers/pci, and of the vendor's kernel driver in between. Whatever takes more than one step is an
iterator that names each step when it is done; what is half-done can be seen, as on a real machine.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from hailo_agent.sim.generations import Generation
from hailo_agent.sim.pci import (
    DEAD_CONFIG,
    DEAD_LINK,
    GEN1,
    ErrorKind,
    Link,
    aer_files,
    bridge_files,
    bridge_files_alike,
    config_bytes,
    endpoint_files,
    endpoint_files_alike,
    uevent_bytes,
)
from hailo_agent.sim.sysfs import Sysfs
from hailo_agent.sim.uevents import Uevents

Stage = Literal[
    "function",  # the PCI function: its directory, then the link in bus/pci/devices
    "driver",  # links between it and its kernel driver: before probe(), and before remove()
    "class",  # the class directory, if this board is the first and the generation is lazy
    "directory",  # the class device's directory, with nothing in it
    "link",  # the link in the class directory: from here on the entry can be seen
    "attributes",  # the kernel driver's own: board_location and its like
    "power",
    "dev",
    "node",  # /dev, by devtmpfs
    "emptied",  # the PCI function has no attributes any more, but is still linked to
]

SOC: Final = "soc"  # the address of the integrated board, which has none

_SOC_PATH: Final = "devices/platform/hailort"  # the name is the device tree's
_SOC_MODALIAS: Final = b"of:NhailortT(null)Chailo,hailort\n"
_FIRST_MAJOR: Final = 507  # dynamic majors are handed out from the top of 384-511
_LAST_MAJOR: Final = 384
_DEVTMPFS_MODE: Final = 0o600
_MODULE_FILES: Final = {
    "coresize": b"180224\n",
    "initstate": b"live\n",
    "uevent": b"",
}
_POWER_FILES: Final = {
    "autosuspend_delay_ms": b"",
    "control": b"auto\n",
    "runtime_active_time": b"0\n",
    "runtime_status": b"unsupported\n",
    "runtime_suspended_time": b"0\n",
}


_CONTROLS: Final = dict.fromkeys(("bind", "new_id", "remove_id", "uevent", "unbind"), b"")


class Ailment(StrEnum):
    """What may ail a device, by the name that a user types."""

    DEAD_LINK = "dead-link"  # it fell off the bus: registers read as ones
    SLOW_LINK = "slow-link"
    AER_CORRECTABLE = "aer-correctable"
    AER_NONFATAL = "aer-nonfatal"
    AER_FATAL = "aer-fatal"
    DISABLED = "disabled"  # a reset is under way, or got stuck
    FIRMWARE_LOST = "firmware-lost"  # a reset is over, and nobody loaded it again
    # The rest is nothing that sysfs shows.
    HUNG_CONTROL = "hung-control"
    SLOW_CONTROL = "slow-control"
    GARBAGE = "garbage"
    HOT = "hot"
    THROTTLING = "throttling"
    REFUSING = "refusing"


ERRORS: Final[Mapping[Ailment, ErrorKind]] = {
    Ailment.AER_CORRECTABLE: "correctable",
    Ailment.AER_NONFATAL: "nonfatal",
    Ailment.AER_FATAL: "fatal",
}
ON_THE_BUS: Final = {*ERRORS, Ailment.DEAD_LINK, Ailment.SLOW_LINK, Ailment.DISABLED}
"""What only a PCI function can have."""


class MachineError(Exception):
    """The machine was asked for what a real one would refuse, or this host cannot simulate."""


@dataclass(slots=True, kw_only=True)
class Module:
    """A loaded kernel driver."""

    generation: Generation
    major: int
    no_power_mode: bool
    owns_class: bool = False
    stuck: bool = False  # class_create() failed, and the board list's mutex stays locked for ever
    boards: dict[int, "Board"] = field(default_factory=dict)
    orphans: int = 0  # file descriptors that outlived their board

    @property
    def bus(self) -> str:
        """Name the bus it registers on."""
        return "platform" if self.generation.integrated else "pci"

    @property
    def path(self) -> str:
        """Name the module's own directory."""
        return f"module/{self.generation.module}"

    @property
    def driver_path(self) -> str:
        """Name the directory of the driver that the module registers."""
        return f"bus/{self.bus}/drivers/{self.generation.kernel_driver}"

    @property
    def class_path(self) -> str:
        """Name the class directory."""
        return f"class/{self.generation.class_name}"

    @property
    def holders(self) -> int:
        """Count the open file descriptors: each takes a reference on the module."""
        return self.orphans + sum(board.holders for board in self.boards.values())

    def binds(self, function: "Function") -> bool:
        """Tell whether the function is in the driver's id table."""
        if self.generation.integrated:
            return function.address == SOC
        return function.pci_id in self.generation.pci_ids


@dataclass(slots=True, kw_only=True)
class Function:
    """A PCI function in its slot, or the SoC's own."""

    address: str
    pci_id: str = ""
    path: str
    accelerator: int = 0
    firmware_ok: bool = True
    link: Link = field(default_factory=Link)
    slowed_to: tuple[str, int] = (GEN1, 1)  # speed and width, while the link is slow
    errors: dict[ErrorKind, int] = field(default_factory=dict)
    ailments: frozenset[Ailment] = frozenset()
    board: "Board | None" = None
    usurper: str | None = None  # a driver that is not Hailo's
    amends: dict[str, Callable[[], None]] = field(default_factory=dict)  # how to undo each fault

    @property
    def has_firmware(self) -> bool:
        """Whether the chip runs its firmware: the kernel driver loads it when it probes."""
        return bool(self.board and self.firmware_ok) and Ailment.FIRMWARE_LOST not in self.ailments


@dataclass(slots=True, kw_only=True)
class Board:
    """What a kernel driver keeps for a function that it drives."""

    module: Module
    function: Function
    index: int
    number: tuple[int, int]
    holders: int = 0

    @property
    def entry(self) -> str:
        """Name the class device, and the devnode."""
        return self.module.generation.entry_name(self.index)

    @property
    def path(self) -> str:
        """Name the class device's directory."""
        row = self.module.generation
        parent = self.function.path if row.parent == "function" else "devices/virtual"
        return f"{parent}/{row.class_name}/{self.entry}"

    @property
    def link_path(self) -> str:
        """Name the link in the class directory."""
        return f"{self.module.class_path}/{self.entry}"

    @property
    def uevent(self) -> bytes:
        """Render the class device's `uevent`."""
        major, minor = self.number
        return f"MAJOR={major}\nMINOR={minor}\nDEVNAME={self.entry}\n".encode()


class Kernel:
    """The kernel of one machine: who is plugged, what is loaded, and the trees that show it."""

    def __init__(
        self,
        root: Path,
        *,
        udev: bool,
        uevents: bool,
        number: tuple[int, int] | None,
    ) -> None:
        self.dev = root / "dev"
        self.staging = root / ".staging"
        for directory in (self.dev, root / "sys", self.staging):
            directory.mkdir()
        self.sysfs = Sysfs(root / "sys", self.staging)
        for path in (
            "class",
            "bus/pci/devices",
            "bus/pci/drivers",
            "module",
            "devices",
            "dev/char",
        ):
            self.sysfs.directory(path)
        self.modules: dict[str, Module] = {}
        self.functions: dict[str, Function] = {}
        permitted = self._ask_what_mknod_permits(number)
        self.numbered = permitted is None
        self._one_number = permitted or (0, 0)
        self._udev = udev
        self._uevents = Uevents() if uevents else None
        self._next_major = _FIRST_MAJOR

    # --- modules ----------------------------------------------------------------------------------

    def init_module(
        self,
        row: Generation,
        *,
        order: Sequence[str] | None,
        major: int | None,
        no_power_mode: bool,
    ) -> None:
        """Load a module, and probe what it binds and nobody drives yet."""
        module = Module(
            generation=row, major=major or self._take_major(), no_power_mode=no_power_mode
        )
        if row.class_made == "at-init" and self.sysfs.exists(module.class_path):
            raise MachineError(
                f"modprobe: sysfs: cannot create duplicate filename '/{module.class_path}'"
            )
        self._add_module(module)
        self.modules[row.name] = module
        if row.integrated and SOC not in self.functions:
            self._add_soc()
        for address in self.functions if order is None else order:
            function = self.functions[address]
            if not (function.board or function.usurper) and module.binds(function):
                exhaust(self.probe(function, module))

    def delete_module(self, module: Module) -> None:
        """Unload a module; the functions it drove stay in their slots."""
        for board in reversed(list(module.boards.values())):  # driver_detach() starts from the end
            exhaust(self.release(board))
        self.sysfs.raze(module.driver_path)
        if module.owns_class:
            self.sysfs.raze(module.class_path)
        self.sysfs.raze(module.path)
        del self.modules[module.generation.name]
        self._announce("remove", module.path, "module")

    def _add_module(self, module: Module) -> None:
        row = module.generation
        values = {"o_dbg": b"5\n", "no_power_mode": b"Y\n" if module.no_power_mode else b"N\n"}
        self.sysfs.build(
            module.path,
            {
                "version": f"{row.version}\n".encode(),
                "refcnt": b"0\n",
                **{f"parameters/{name}": values.get(name, b"0\n") for name in row.parameters},
            },
            alike=_MODULE_FILES,
        )
        self._announce("add", module.path, "module")
        if row.class_made == "at-init":
            self.sysfs.directory(module.class_path)
            module.owns_class = True
        self.sysfs.build(module.driver_path, {}, alike=_CONTROLS, links={"module": module.path})
        self.sysfs.directory(f"{module.path}/drivers")
        driver_link = f"{module.path}/drivers/{module.bus}:{row.kernel_driver}"
        self.sysfs.link(driver_link, module.driver_path)
        self._announce("add", module.driver_path, "drivers")

    def _take_major(self) -> int:
        major = self._next_major
        self._next_major = major - 1 if major > _LAST_MAJOR else _FIRST_MAJOR
        return major

    # --- functions --------------------------------------------------------------------------------

    def add_function(
        self, function: Function, bridges: Sequence[str], *, numa_node: int
    ) -> Iterator[Stage]:
        """Find a new function on the bus, and have it probed."""
        for depth in range(2, len(bridges) + 1):
            self._add_bridge("/".join(("devices", *bridges[:depth])), numa_node)
        self.functions[function.address] = function
        # device_add() of a bus device: the attributes first, then bus_add_device() makes the link
        self.sysfs.build(
            function.path,
            endpoint_files(function.address, function.pci_id),
            alike=endpoint_files_alike(function.pci_id, numa_node, function.link),
            links={"subsystem": "bus/pci"},
        )
        self.sysfs.link(f"bus/pci/devices/{function.address}", function.path)
        self._announce_function("add", function)
        yield "function"
        yield from self.attach(function)

    def remove_function(self, function: Function) -> Iterator[Stage]:
        """Lose a function: pci_stop_dev(), then pci_destroy_dev()."""
        if function.board:
            yield from self.release(function.board)
        self.relinquish(function)
        for module in self.modules.values():  # in case a probe was left half-way
            self._unlink_driver(function, module)
        self.sysfs.clear(function.path)
        yield "emptied"
        self.sysfs.drop(f"bus/pci/devices/{function.address}")
        self.sysfs.raze(function.path)
        del self.functions[function.address]
        self._announce_function("remove", function)
        yield "function"

    def attach(self, function: Function) -> Iterator[Stage]:
        """Look for a driver, asking them in the order of their registration."""
        self.relinquish(function)
        for module in tuple(self.modules.values()):
            if module.binds(function):
                yield from self.probe(function, module)
                return

    def probe(
        self, function: Function, module: Module, *, index: int | None = None
    ) -> Iterator[Stage]:
        """Do really_probe(), with the vendor's hailo_pcie_probe() or driver_probe() within it."""
        row = module.generation
        self.sysfs.link(f"{module.driver_path}/{_bus_name(function)}", function.path)
        self.sysfs.link(f"{function.path}/driver", module.driver_path)
        yield "driver"
        is_dead = Ailment.DEAD_LINK in function.ailments
        if is_dead or (not function.firmware_ok and row.firmware == "mandatory"):
            self._unlink_driver(function, module)
            return
        if not module.owns_class:
            if module.stuck or self.sysfs.exists(module.class_path):
                # "cannot create duplicate filename": the first probe fails, all later ones hang
                module.stuck = True
                self._unlink_driver(function, module)
                return
            self.sysfs.directory(module.class_path)
            module.owns_class = True
            yield "class"
        if index is None:  # hailo_pcie_insert_board(): the lowest that is free
            index = next(i for i in range(len(module.boards) + 1) if i not in module.boards)
        board = Board(
            module=module,
            function=function,
            index=index,
            number=(module.major, index) if self.numbered else self._one_number,
        )
        module.boards[index] = function.board = board
        function.ailments -= {Ailment.DISABLED, Ailment.FIRMWARE_LOST}
        if not row.integrated:
            self.sysfs.put(f"{function.path}/enable", b"1\n")
            self._set_power_state(board)
        yield from self._device_add(board)
        if not row.integrated:
            bound = uevent_bytes(function.address, function.pci_id, row.kernel_driver)
            self.sysfs.put(f"{function.path}/uevent", bound)
        self._announce_function("bind", function, row.kernel_driver)

    def release(self, board: Board) -> Iterator[Stage]:
        """Do __device_release_driver(), with the vendor's remove() within it."""
        function, module = board.function, board.module
        while function.amends:
            function.amends.popitem()[1]()
        self._unlink_driver(function, module)
        yield "driver"
        del module.boards[board.index]  # the index is free before the entry is gone
        function.board = None
        module.orphans += board.holders
        yield from self._device_del(board)
        if module.generation.integrated:
            self.sysfs.raze(module.class_path)
            module.owns_class = False
        else:
            unbound = uevent_bytes(function.address, function.pci_id, None)
            self.sysfs.put(f"{function.path}/enable", b"0\n")
            self.sysfs.put(f"{function.path}/power_state", b"D0\n")
            self.sysfs.put(f"{function.path}/uevent", unbound)
        self._announce_function("unbind", function)

    def count_holders(self, board: Board, change: int) -> None:
        """Take note of an open() or close(): D0 from the first to the last, and D3hot otherwise.

        A descriptor that outlived its board is good for nothing, but the module stays in use.
        """
        module = board.module
        if board.function.board is board:
            board.holders += change
            if not module.generation.integrated:
                self._set_power_state(board)
        else:
            module.orphans += change
        if self.modules.get(module.generation.name) is module:
            self.sysfs.put(f"{module.path}/refcnt", b"%d\n" % module.holders)

    def usurp(self, function: Function, kernel_driver: str) -> None:
        """Give a function to another driver, as `driver_override` and a new probe would."""
        if function.board:
            exhaust(self.release(function.board))
        self.relinquish(function)
        path = f"bus/pci/drivers/{kernel_driver}"
        if not self.sysfs.exists(path):
            self.sysfs.build(path, {}, alike=_CONTROLS)
        function.usurper = kernel_driver
        self.sysfs.link(f"{path}/{function.address}", function.path)
        self.sysfs.link(f"{function.path}/driver", path)
        self._name_driver(function, kernel_driver)
        self._announce_function("bind", function, kernel_driver)

    def relinquish(self, function: Function) -> None:
        """Have the other driver let go of a function, if one has it."""
        if function.usurper is None:
            return
        self.sysfs.drop(f"bus/pci/drivers/{function.usurper}/{function.address}")
        self.sysfs.drop(f"{function.path}/driver")
        function.usurper = None
        self._name_driver(function, None)
        self._announce_function("unbind", function)

    def _name_driver(self, function: Function, kernel_driver: str | None) -> None:
        uevent = uevent_bytes(function.address, function.pci_id, kernel_driver)
        self.sysfs.put(f"{function.path}/uevent", uevent)
        override = f"{kernel_driver or '(null)'}\n".encode()
        self.sysfs.put(f"{function.path}/driver_override", override)

    def show(self, function: Function) -> None:
        """Let sysfs show what ails a PCI function; what is right already is left alone."""
        if function.address == SOC:
            return
        ailments = function.ailments
        is_dead = Ailment.DEAD_LINK in ailments
        is_enabled = function.board and Ailment.DISABLED not in ailments
        speed, width = function.slowed_to
        slow = replace(function.link, speed=speed, width=width)
        link = slow if Ailment.SLOW_LINK in ailments else function.link
        files = {
            "config": DEAD_CONFIG if is_dead else config_bytes(function.pci_id),
            "enable": b"1\n" if is_enabled else b"0\n",
            **(DEAD_LINK if is_dead else link).attributes(),
            **aer_files(function.errors),
        }
        for name, content in files.items():
            path = f"{function.path}/{name}"
            if not self.sysfs.exists(path) or self.sysfs.read(path) != content:
                self.sysfs.put(path, content)

    def _add_bridge(self, path: str, numa_node: int) -> None:
        if self.sysfs.exists(path):
            return
        address = path.rpartition("/")[2]
        alike = bridge_files_alike(numa_node)
        links = {"subsystem": "bus/pci"}
        self.sysfs.build(path, bridge_files(address), alike=alike, links=links)
        self.sysfs.link(f"bus/pci/devices/{address}", path)

    def _add_soc(self) -> None:
        names = b"OF_NAME=hailort\nOF_FULLNAME=/hailort\nOF_COMPATIBLE_0=hailo,hailort\n"
        self.sysfs.build(
            _SOC_PATH,
            {
                "uevent": names + b"OF_COMPATIBLE_N=1\nMODALIAS=" + _SOC_MODALIAS,
                "modalias": _SOC_MODALIAS,
                "driver_override": b"(null)\n",
            },
            links={"subsystem": "bus/platform"},
        )
        self.sysfs.directory("bus/platform/devices")
        self.sysfs.link("bus/platform/devices/hailort", _SOC_PATH)
        self.functions[SOC] = Function(address=SOC, path=_SOC_PATH)

    def _unlink_driver(self, function: Function, module: Module) -> None:
        self.sysfs.drop(f"{module.driver_path}/{_bus_name(function)}")
        self.sysfs.drop(f"{function.path}/driver")

    def _set_power_state(self, board: Board) -> None:
        awake = board.holders or board.module.no_power_mode
        self.sysfs.put(f"{board.function.path}/power_state", b"D0\n" if awake else b"D3hot\n")

    # --- class devices ----------------------------------------------------------------------------

    def _device_add(self, board: Board) -> Iterator[Stage]:
        row, path, function = board.module.generation, board.path, board.function
        number = "{}:{}".format(*board.number)
        self.sysfs.directory(path)
        yield "directory"
        self.sysfs.put(f"{path}/uevent", board.uevent)
        self.sysfs.link(f"{path}/subsystem", board.module.class_path)
        if row.parent == "function":
            self.sysfs.link(f"{path}/device", function.path)
        self.sysfs.link(board.link_path, path)
        yield "link"
        attributes = row.attribute_bytes(
            address=function.address, pci_id=function.pci_id, accelerator=function.accelerator
        )
        for name, content in attributes.items():
            self.sysfs.put(f"{path}/{name}", content)
        yield "attributes"
        self.sysfs.build(f"{path}/power", {}, alike=_POWER_FILES)
        yield "power"
        self.sysfs.put(f"{path}/dev", f"{number}\n".encode())
        if self.numbered:
            self.sysfs.link(f"dev/char/{number}", path)
        yield "dev"
        self.make_node(self.dev / board.entry, board)
        self._announce("add", path, row.class_name, board.uevent)
        yield "node"

    def _device_del(self, board: Board) -> Iterator[Stage]:
        path = board.path
        self.sysfs.raze(f"{path}/power")
        yield "power"
        (self.dev / board.entry).unlink(missing_ok=True)
        yield "node"
        if self.numbered:
            self.sysfs.drop("dev/char/{}:{}".format(*board.number))
        self.sysfs.drop(f"{path}/dev")
        yield "dev"
        self.sysfs.drop(f"{path}/device")
        self.sysfs.drop(f"{path}/subsystem")
        self.sysfs.drop(board.link_path)
        yield "link"
        self.sysfs.clear(path)
        self._announce("remove", path, board.module.generation.class_name, board.uevent)
        yield "attributes"
        self.sysfs.raze(path)
        self.sysfs.raze_if_empty(path.rpartition("/")[0])
        yield "directory"

    # --- nodes and uevents ------------------------------------------------------------------------

    def make_node(self, path: Path, board: Board) -> None:
        """Make a board's node: devtmpfs for root alone, then udev for whom its rules say."""
        os.mknod(path, stat.S_IFCHR | _DEVTMPFS_MODE, os.makedev(*board.number))
        mode = board.module.generation.devnode_mode
        if self._udev and mode != _DEVTMPFS_MODE:
            path.chmod(mode)

    def close(self) -> None:
        """Let go of the uevent socket."""
        if self._uevents:
            self._uevents.close()

    def _announce(self, action: str, path: str, subsystem: str, properties: bytes = b"") -> None:
        if self._uevents:
            self._uevents.send(action, f"/{path}", subsystem, properties)

    def _announce_function(
        self, action: str, function: Function, kernel_driver: str | None = None
    ) -> None:
        if self._uevents and function.address != SOC:
            properties = uevent_bytes(function.address, function.pci_id, kernel_driver)
            self._uevents.send(action, f"/{function.path}", "pci", properties)

    def _ask_what_mknod_permits(self, wanted: tuple[int, int] | None) -> tuple[int, int] | None:
        """Tell which number all nodes must have, or None if each can have its own.

        The one that is wanted for all is all there is to try; where not even 0:0 is permitted, give
        up.
        """
        trial = self.staging / "mknod"
        # 0:0 is overlayfs' whiteout: since Linux 5.8 mknod() wants no CAP_MKNOD for it
        for number in (wanted,) if wanted else (None, (0, 0)):
            with suppress(PermissionError):
                device = os.makedev(*(number or (_FIRST_MAJOR, 0)))
                os.mknod(trial, stat.S_IFCHR | _DEVTMPFS_MODE, device)
                trial.unlink()
                return number
        where = trial.parent.parent
        if wanted:
            raise MachineError(
                f"character devices cannot be made in {where}: run as root with CAP_MKNOD, and not"
                " in a user namespace"
            )
        raise MachineError(
            f"character devices cannot be made in {where}, not even 0:0, which Linux"
            " permits to anybody since 5.8: run as root, or put the machine on another filesystem"
        )


def exhaust(steps: Iterable[Stage]) -> None:
    """Do all the steps."""
    for _stage in steps:
        pass


def _bus_name(function: Function) -> str:
    return function.path.rpartition("/")[2]
