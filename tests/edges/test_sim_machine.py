"""The simulated machine against the facts: each generation's tree, byte by byte, and the order.

What is expected is written out here, and not taken from `GENERATIONS`.
"""

import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import typing
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hailo_agent.sim.machine import (
    GENERATIONS,
    SOC,
    Ailment,
    Breakage,
    CannotWedge,
    ErrorKind,
    Link,
    LitterKind,
    Machine,
    MachineError,
    Stage,
    Wedge,
    slot_address,
)

HAILO_8, HAILO_10H, HAILO_15L, HAILO_12L = "1e60:2864", "1e60:45c4", "1e60:43a2", "1e60:26a2"
FIRST, SECOND, THIRD = "0000:01:00.0", "0000:02:00.0", "0001:03:00.0"
DEADLINE_SECONDS = 10.0
WAY_IN: list[Stage] = [
    "function",
    "driver",
    "directory",
    "link",
    "attributes",
    "power",
    "dev",
    "node",
]
WAY_OUT: list[Stage] = [
    "driver",
    "power",
    "node",
    "dev",
    "link",
    "attributes",
    "directory",
    "emptied",
    "function",
]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may announce uevents")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One column of the table of generations."""

    binds: set[str]
    module: str
    version: bytes
    kernel_driver: str
    class_name: str
    lazy: bool
    entry: str
    attributes: dict[str, bytes]
    parented: bool
    mode: int = 0o666


OLD = {"board_location": b"0000:01:00.0", "device_id": b"1e60:2864"}
NEW = {"board_location": b"0000:01:00.0", "device_id": b"1e60:45c4", "accelerator_type": b"1"}


def hailo_pci(
    version: bytes, binds: set[str], attributes: dict[str, bytes], *, lazy: bool
) -> Expected:
    return Expected(
        binds=binds,
        module="hailo_pci",
        version=version,
        kernel_driver="hailo",
        class_name="hailo_chardev",
        lazy=lazy,
        entry="hailo0",
        attributes=attributes,
        parented=lazy,
    )


def hailo1x_pci(version: bytes) -> Expected:
    return Expected(
        binds={HAILO_10H, HAILO_15L, HAILO_12L},
        module="hailo1x_pci",
        version=version,
        kernel_driver="hailo1x",
        class_name="hailo_chardev",
        lazy=True,
        entry="hailo0",
        attributes=NEW,
        parented=True,
    )


FOUR_18 = {**OLD, "accelerator_type": b"0"}
TABLE = {
    "4.17": hailo_pci(b"4.17.0\n", {HAILO_8, HAILO_10H, HAILO_15L}, OLD, lazy=False),
    "4.20": hailo_pci(b"4.20.0\n", {HAILO_8, HAILO_10H, HAILO_15L}, FOUR_18, lazy=False),
    "4.22": hailo_pci(b"4.22.0\n", {HAILO_8, HAILO_10H, HAILO_15L, HAILO_12L}, FOUR_18, lazy=False),
    "4.23": hailo_pci(b"4.23.0\n", {HAILO_8}, FOUR_18, lazy=True),
    "5.0.0": hailo_pci(b"5.0.0\n", {HAILO_8, HAILO_10H, HAILO_15L, HAILO_12L}, FOUR_18, lazy=False),
    "5.0.1": hailo_pci(b"5.0.1\n", {HAILO_10H, HAILO_15L, HAILO_12L}, NEW, lazy=True),
    "5.1": hailo1x_pci(b"5.1.0\n"),
    "5.2": hailo1x_pci(b"5.2.0\n"),
    "5.3": Expected(
        binds={HAILO_10H, HAILO_15L, HAILO_12L},
        module="hailo1x_pci",
        version=b"5.3.0\n",
        kernel_driver="hailo1x",
        class_name="hailo1x",
        lazy=True,
        entry="h1x-0",
        attributes={"device_id": b"0000:01:00.0"},
        parented=True,
        mode=0o600,
    ),
}
INTEGRATED: dict[str, tuple[str, str, dict[str, bytes], bool]] = {
    "integrated-4.17": (
        "hailo_chardev",
        "hailo_integrated_nnc",
        {"board_location": b"[integrated_nnc]"},
        False,
    ),
    "integrated-5.2": (
        "hailo_chardev",
        "hailo_integrated_nnc",
        {
            "board_location": b"[integrated]",
            "accelerator_type": b"0",
            "cma_in_use": b"0\n",
            "desc_cma_in_use": b"0\n",
        },
        True,
    ),
    "integrated-5.3": (
        "hailo1x_integrated",
        "h1x",
        {
            "device_id": b"[integrated]",
            "cma_in_use": b"0\n",
            "desc_cma_in_use": b"0\n",
            "vdma_monitor": b"INUSE\tTOTAL\n0\t0\n",
        },
        True,
    ),
}


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine in memory if possible, like sysfs and devtmpfs: disks are slow at making inodes."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Machine(Path(directory) / "machine")


def bound_by(generation: str) -> str:
    return HAILO_8 if HAILO_8 in TABLE[generation].binds else HAILO_10H


def files(directory: Path) -> dict[str, bytes]:
    """All regular files directly in a directory."""
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
    }


def snapshot(root: Path) -> dict[str, object]:
    """Everything below a directory that a reader could notice."""
    seen: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status, name = path.lstat(), str(path.relative_to(root))
        if path.is_symlink():
            seen[name] = path.readlink()
        elif path.is_file() and os.access(path, os.R_OK):  # `bind` and its like are write-only
            seen[name] = (status.st_mode, path.read_bytes())
        else:
            seen[name] = (status.st_mode, status.st_rdev)
    return seen


def visible(machine: Machine) -> dict[str, object]:
    return {**snapshot(machine.dev), **snapshot(machine.sys)}


@contextmanager
def wedged(machine: Machine, address: str) -> Iterator[Wedge]:
    try:
        wedge = machine.wedge(address)
        entered = wedge.__enter__()
    except CannotWedge as error:
        pytest.skip(str(error))
    try:
        yield entered
    finally:
        wedge.__exit__(None, None, None)


def opening(path: Path) -> "subprocess.Popen[bytes]":
    """Start another process that opens a file as the agent does, and says so when it is through."""
    code = (
        "import os, sys\n"
        "descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)\n"
        "sys.stdout.buffer.write(os.read(descriptor, 100))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)


# --- trees ----------------------------------------------------------------------------------------


def test_the_table_names_every_generation() -> None:
    assert set(GENERATIONS) == set(TABLE) | set(INTEGRATED)


@pytest.mark.parametrize("generation", TABLE)
def test_a_class_entry_is_exactly_what_the_kernel_driver_makes(
    machine: Machine, generation: str
) -> None:
    expected = TABLE[generation]
    machine.load(generation)
    assert machine.plug(FIRST, pci_id=bound_by(generation)) == expected.entry

    entry = machine.sys / "class" / expected.class_name / expected.entry
    number = b"507:0" if machine.numbered else b"0:0"
    major, minor = number.split(b":")
    assert files(entry) == {
        **expected.attributes,
        "dev": number + b"\n",
        "uevent": b"MAJOR=%s\nMINOR=%s\nDEVNAME=%s\n" % (major, minor, expected.entry.encode()),
    }
    assert not any(content.endswith(b"\n") for content in expected.attributes.values())
    assert {path.name for path in entry.iterdir() if path.is_dir()} == {
        "power",
        "subsystem",
        *({"device"} if expected.parented else ()),
    }
    assert (entry / "power/control").read_bytes() == b"auto\n"


@pytest.mark.parametrize("generation", TABLE)
def test_the_links_of_an_entry_read_as_the_kernel_writes_them(
    machine: Machine, generation: str
) -> None:
    expected = TABLE[generation]
    machine.load(generation)
    machine.plug(FIRST, pci_id=bound_by(generation))

    name, function = expected.class_name, "pci0000:00/0000:00:01.0/0000:01:00.0"
    entry = machine.sys / "class" / name / expected.entry
    parent = f"devices/{function}" if expected.parented else "devices/virtual"
    assert entry.readlink() == Path(f"../../{parent}/{name}/{expected.entry}")
    assert entry.resolve() == machine.entry_directory(FIRST)
    assert (entry / "subsystem").resolve() == machine.sys / "class" / name
    assert (entry / "device").is_symlink() == expected.parented
    if expected.parented:
        assert (entry / "device").readlink() == Path("../../../0000:01:00.0")
        assert (entry / "device").resolve() == machine.sys / "devices" / function
    if machine.numbered:
        assert (machine.sys / "dev/char/507:0").resolve() == entry.resolve()


@pytest.mark.parametrize("generation", TABLE)
def test_the_devnode_is_a_character_device_with_the_number_of_sysfs(
    machine: Machine, generation: str
) -> None:
    machine.load(generation)
    machine.plug(FIRST, pci_id=bound_by(generation))

    node = machine.dev / TABLE[generation].entry
    assert machine.devnode(FIRST) == node
    status = node.lstat()
    assert stat.S_ISCHR(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == TABLE[generation].mode
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == machine.number(FIRST)
    assert [path.name for path in machine.dev.iterdir()] == [TABLE[generation].entry]


@pytest.mark.parametrize("generation", TABLE)
def test_module_and_driver_directories_are_those_of_the_generation(
    machine: Machine, generation: str
) -> None:
    expected = TABLE[generation]
    machine.load(generation)
    machine.plug(FIRST, pci_id=bound_by(generation))

    module = machine.sys / "module" / expected.module
    driver = machine.sys / "bus/pci/drivers" / expected.kernel_driver
    function = machine.function_directory(FIRST)
    assert (module / "version").read_bytes() == expected.version
    assert (module / "parameters/no_power_mode").read_bytes() == b"N\n"
    assert (module / "drivers" / f"pci:{expected.kernel_driver}").resolve() == driver
    assert (driver / "module").resolve() == module
    assert (driver / "module").readlink() == Path(f"../../../../module/{expected.module}")
    assert (driver / FIRST).resolve() == function
    assert (function / "driver").resolve() == driver


@pytest.mark.parametrize("generation", TABLE)
@pytest.mark.parametrize("pci_id", [HAILO_8, HAILO_10H, HAILO_15L, HAILO_12L, "1e60:ffff"])
def test_a_generation_binds_the_pci_ids_of_its_table_and_no_other(
    machine: Machine, generation: str, pci_id: str
) -> None:
    machine.load(generation)
    entry = machine.plug(FIRST, pci_id=pci_id)
    bound = pci_id in TABLE[generation].binds
    assert entry == (TABLE[generation].entry if bound else None)
    assert (machine.function_directory(FIRST) / "driver").exists() == bound


@pytest.mark.parametrize("generation", TABLE)
def test_the_class_is_there_at_once_or_with_the_first_board_and_stays_until_the_module_goes(
    machine: Machine, generation: str
) -> None:
    directory = machine.class_directory(generation)
    machine.load(generation)
    assert directory.is_dir() == (not TABLE[generation].lazy)
    machine.plug(FIRST, pci_id=bound_by(generation))
    assert directory.is_dir()
    machine.pull(FIRST)
    assert list(directory.iterdir()) == []
    machine.unload(generation)
    assert not directory.exists()
    assert list((machine.sys / "module").iterdir()) == []
    assert list((machine.sys / "bus/pci/drivers").iterdir()) == []


@pytest.mark.parametrize("generation", INTEGRATED)
def test_an_soc_has_one_board_that_is_not_on_the_pci_bus(machine: Machine, generation: str) -> None:
    class_name, entry_name, attributes, parented = INTEGRATED[generation]
    machine.load(generation)

    assert machine.entries == {SOC: entry_name}
    entry = machine.sys / "class" / class_name / entry_name
    assert {k: v for k, v in files(entry).items() if k not in {"dev", "uevent"}} == attributes
    assert (entry / "device").exists() == parented
    assert stat.S_ISCHR((machine.dev / entry_name).lstat().st_mode)
    assert (machine.sys / "module/hailo_integrated_nnc/version").exists()
    assert list((machine.sys / "bus/pci/devices").iterdir()) == []

    machine.unload(generation)
    assert not entry.parent.exists()
    assert list(machine.dev.iterdir()) == []


def test_a_pci_function_shows_what_pci_sysfs_shows(machine: Machine) -> None:
    machine.load("4.23")
    link = Link(speed="5.0 GT/s PCIe", width=1)
    machine.plug(FIRST, numa_node=1, link=link)

    by_bus = machine.sys / "bus/pci/devices" / FIRST
    assert by_bus.readlink() == Path(f"../../../devices/pci0000:00/0000:00:01.0/{FIRST}")
    shown = files(by_bus)
    assert (
        shown.items()
        >= {
            "vendor": b"0x1e60\n",
            "device": b"0x2864\n",
            "subsystem_vendor": b"0x1e60\n",
            "subsystem_device": b"0x2864\n",
            "class": b"0x0b4000\n",
            "revision": b"0x01\n",
            "numa_node": b"1\n",
            "current_link_speed": b"5.0 GT/s PCIe\n",
            "current_link_width": b"1\n",
            "max_link_speed": b"8.0 GT/s PCIe\n",
            "max_link_width": b"4\n",
            "power_state": b"D3hot\n",
            "enable": b"1\n",
            "driver_override": b"(null)\n",
            "uevent": b"DRIVER=hailo\nPCI_CLASS=B4000\nPCI_ID=1E60:2864\nPCI_SUBSYS_ID=1E60:2864\n"
            b"PCI_SLOT_NAME=0000:01:00.0\n"
            b"MODALIAS=pci:v00001E60d00002864sv00001E60sd00002864bc0Bsc40i00\n",
        }.items()
    )
    assert shown["config"][:4] == b"\x60\x1e\x64\x28"
    assert shown["config"][9:12] == b"\x00\x40\x0b"
    assert len(shown["resource"].splitlines()) == 13
    for severity, last in (("correctable", "COR"), ("fatal", "FATAL"), ("nonfatal", "NONFATAL")):
        lines = shown[f"aer_dev_{severity}"].decode().splitlines()
        assert lines[-1] == f"TOTAL_ERR_{last} 0"
    assert (by_bus / "subsystem").resolve() == machine.sys / "bus/pci"


def test_functions_behind_a_switch_share_their_upstream_ports(machine: Machine) -> None:
    machine.load("4.23")
    switch = "0000:00:01.0/0000:02:00.0"
    machine.plug("0000:04:00.0", root_port=f"{switch}/0000:03:01.0")
    machine.plug("0000:05:00.0", root_port=f"{switch}/0000:03:02.0")

    directories = [machine.function_directory(address) for address in machine.addresses]
    assert os.path.commonpath(directories) == str(machine.sys / "devices/pci0000:00" / switch)
    ports = {path.name for path in (machine.sys / "bus/pci/devices").iterdir()}
    assert ports >= {"0000:00:01.0", "0000:02:00.0", "0000:03:01.0", "0000:03:02.0"}
    assert (machine.sys / "bus/pci/devices/0000:02:00.0/class").read_bytes() == b"0x060400\n"


def test_no_link_dangles(machine: Machine) -> None:
    machine.load("4.23")
    machine.load("5.3")
    machine.plug(FIRST)
    machine.plug(SECOND, pci_id=HAILO_10H)
    assert [p for p in machine.sys.rglob("*") if p.is_symlink() and not p.exists()] == []


def test_the_accelerator_type_of_a_10h_in_15h_mode_is_nnc(machine: Machine) -> None:
    machine.load("5.2")
    machine.plug(FIRST, pci_id=HAILO_10H, accelerator=0)
    entry = machine.entry_directory(FIRST)
    assert entry
    assert (entry / "accelerator_type").read_bytes() == b"0"


# --- coming and going -----------------------------------------------------------------------------


def test_the_lowest_free_index_is_reused(machine: Machine) -> None:
    machine.load("4.23")
    for address in (FIRST, SECOND, THIRD):
        machine.plug(address)
    assert machine.entries == {FIRST: "hailo0", SECOND: "hailo1", THIRD: "hailo2"}
    machine.pull(SECOND)
    machine.pull(FIRST)
    assert machine.plug("0000:09:00.0") == "hailo0"
    assert machine.plug(FIRST) == "hailo1"
    assert {path.name for path in machine.dev.iterdir()} == {"hailo0", "hailo1", "hailo2"}


def test_pulling_one_board_touches_no_other(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    before = visible(machine)
    machine.plug(FIRST.replace("01:00.0", "01:00.1"))
    machine.pull(FIRST.replace("01:00.0", "01:00.1"))
    assert visible(machine) == before


def test_the_kernel_adds_the_node_last_and_removes_it_before_the_entry(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(SECOND)
    assert list(machine.plugging(FIRST)) == WAY_IN
    assert list(machine.pulling(FIRST)) == WAY_OUT


def test_the_first_board_of_a_lazy_generation_brings_the_class(machine: Machine) -> None:
    machine.load("5.3")
    steps = machine.plugging(FIRST, pci_id=HAILO_10H)
    assert list(steps) == [*WAY_IN[:2], "class", *WAY_IN[2:]]


def test_sysfs_is_complete_when_the_node_appears_and_nearly_so_when_it_goes(
    machine: Machine,
) -> None:
    machine.load("4.23")
    for stage in machine.plugging(FIRST):
        node, entry = machine.dev / "hailo0", machine.sys / "class/hailo_chardev/hailo0"
        assert node.exists() == (stage == "node")
        if stage == "link":
            assert set(files(entry)) == {"uevent"}
        if stage == "power":
            assert not (entry / "dev").exists()
    complete = set(files(entry))
    for stage in machine.pulling(FIRST):
        assert node.exists() == (stage in WAY_OUT[: WAY_OUT.index("node")])
        if stage == "node":
            assert set(files(entry)) == complete


@pytest.mark.parametrize("stage", WAY_IN)
def test_an_entry_left_half_built_can_be_pulled_without_a_trace(
    machine: Machine, stage: Stage
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.pull(FIRST)
    before = visible(machine)
    steps = machine.plugging(FIRST)
    while next(steps) != stage:
        pass
    machine.pull(FIRST)
    assert visible(machine) == before


def test_without_a_kernel_driver_there_is_a_function_and_nothing_else(machine: Machine) -> None:
    assert machine.plug(FIRST) is None
    assert (machine.sys / "bus/pci/devices" / FIRST / "vendor").read_bytes() == b"0x1e60\n"
    assert list((machine.sys / "class").iterdir()) == []
    machine.load("4.23")
    assert machine.entry(FIRST) == "hailo0"


def test_unbinding_leaves_the_function_and_binding_brings_the_entry_back(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    before = visible(machine)
    machine.unbind(FIRST)
    assert machine.entry(FIRST) is None
    assert list(machine.dev.iterdir()) == []
    assert b"DRIVER" not in (machine.function_directory(FIRST) / "uevent").read_bytes()
    assert machine.bind(FIRST) == "hailo0"
    assert visible(machine) == before


@pytest.mark.parametrize(("generation", "entry"), [("4.17", "hailo0"), ("4.20", None)])
def test_missing_firmware_costs_the_node_since_4_19(
    machine: Machine, generation: str, entry: str | None
) -> None:
    machine.load(generation)
    assert machine.plug(FIRST, firmware_ok=False) == entry
    assert (machine.function_directory(FIRST) / "driver").exists() == (entry is not None)


def test_two_boards_swap_their_minors_and_keep_their_slots(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.plug(SECOND)
    machine.swap_minors(FIRST, SECOND)
    assert machine.entries == {FIRST: "hailo1", SECOND: "hailo0"}
    link = machine.sys / "class/hailo_chardev/hailo0"
    assert (link / "board_location").read_bytes() == SECOND.encode()
    if machine.numbered:
        assert (link / "dev").read_bytes() == b"507:0\n"


def test_a_reload_probes_in_the_order_given_and_takes_another_major(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.plug(SECOND)
    machine.reload("4.23", order=[SECOND, FIRST])
    assert machine.entries == {FIRST: "hailo1", SECOND: "hailo0"}
    if machine.numbered:
        assert machine.number(SECOND) == (506, 0)
        assert os.major((machine.dev / "hailo0").lstat().st_rdev) == 506
        machine.reload("4.23", major=240)
        assert machine.number(FIRST) == (240, 0)


def test_4_23_and_5_3_live_side_by_side(machine: Machine) -> None:
    machine.load("4.23")
    machine.load("5.3")
    assert machine.plug(FIRST) == "hailo0"
    assert machine.plug(SECOND, pci_id=HAILO_10H) == "h1x-0"
    assert machine.plug(THIRD) == "hailo1"
    assert machine.loaded == ("4.23", "5.3")
    assert {path.name for path in (machine.sys / "class").iterdir()} == {"hailo_chardev", "hailo1x"}
    assert {path.name for path in machine.dev.iterdir()} == {"hailo0", "hailo1", "h1x-0"}
    if machine.numbered:
        assert machine.number(FIRST) == (507, 0)
        assert machine.number(SECOND) == (506, 0)
    machine.unload("4.23")
    assert machine.entries == {SECOND: "h1x-0"}


def test_two_lazy_drivers_that_want_one_class_leave_the_later_boards_without_an_entry(
    machine: Machine,
) -> None:
    machine.load("4.23")
    machine.load("5.2")
    assert machine.plug(FIRST) == "hailo0"
    assert machine.plug(SECOND, pci_id=HAILO_10H) is None
    machine.unload("4.23")
    assert machine.bind(SECOND) is None  # the mutex is still locked: only a reload helps
    machine.reload("5.2")
    assert machine.entry(SECOND) == "hailo0"


def test_an_eager_driver_does_not_load_where_its_class_is_taken(machine: Machine) -> None:
    machine.load("integrated-5.2")
    with pytest.raises(MachineError, match="duplicate filename '/class/hailo_chardev'"):
        machine.load("4.22")
    assert machine.loaded == ("integrated-5.2",)


def test_a_held_board_is_awake_and_keeps_its_module(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    power_state = machine.function_directory(FIRST) / "power_state"
    refcnt = machine.sys / "module/hailo_pci/refcnt"
    with machine.hold(FIRST):
        assert power_state.read_bytes() == b"D0\n"
        assert refcnt.read_bytes() == b"1\n"
        with pytest.raises(MachineError, match="in use"):
            machine.unload("4.23")
    assert power_state.read_bytes() == b"D3hot\n"
    assert refcnt.read_bytes() == b"0\n"
    machine.unload("4.23")


def test_a_board_may_be_pulled_while_it_is_held_and_its_index_is_free_at_once(
    machine: Machine,
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    with machine.hold(FIRST):
        machine.pull(FIRST)
        assert machine.plug(SECOND) == "hailo0"
    state = machine.function_directory(SECOND) / "power_state"
    assert state.read_bytes() == b"D3hot\n"


def test_without_power_mode_a_chip_never_sleeps(machine: Machine) -> None:
    machine.load("4.23", no_power_mode=True)
    machine.plug(FIRST)
    assert (machine.function_directory(FIRST) / "power_state").read_bytes() == b"D0\n"
    assert (machine.sys / "module/hailo_pci/parameters/no_power_mode").read_bytes() == b"Y\n"


@pytest.mark.parametrize(
    "mistake",
    [
        lambda m: m.plug(FIRST),
        lambda m: m.plug("1:0.0"),
        lambda m: m.pull(SECOND),
        lambda m: m.load("4.23"),
        lambda m: m.load("4.22"),  # hailo_pci, too
        lambda m: m.load("3.11"),
        lambda m: m.unload("5.3"),
        lambda m: m.break_node(SECOND, "missing"),
        lambda m: m.swap_minors(FIRST, SECOND),
        lambda m: m.ail(SECOND, Ailment.HOT),
        lambda m: m.cure(SECOND),
        lambda m: m.ailments(SECOND),
        lambda m: m.firmware_loaded(SECOND),
        lambda m: m.count_errors(SECOND, "fatal"),
        lambda m: m.usurp(SECOND),
        lambda m: m.reset(SECOND),
        lambda m: Machine(m.root),
    ],
)
def test_what_no_machine_can_do_is_refused_and_changes_nothing(
    machine: Machine, mistake: typing.Callable[[Machine], object]
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    before = visible(machine)
    with pytest.raises(MachineError):
        mistake(machine)
    assert visible(machine) == before


def test_a_big_machine_has_slots_for_all(machine: Machine) -> None:
    assert slot_address(0) == FIRST
    assert len({slot_address(number) for number in range(1024)}) == 1024
    machine.load("4.23")
    assert machine.plug(slot_address(1023)) == "hailo0"


def test_files_are_never_seen_half_written(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    path = machine.function_directory(FIRST) / "power_state"
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _turn in range(200):
        with machine.hold(FIRST):
            pass
    done.set()
    reader.join(DEADLINE_SECONDS)
    assert seen <= {b"D0\n", b"D3hot\n"}


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", typing.get_args(Breakage))
def test_a_broken_node_is_none_that_may_be_offered_until_it_is_mended(
    machine: Machine, how: Breakage
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    before = visible(machine)
    machine.break_node(FIRST, how)

    node = machine.dev / "hailo0"
    if how == "missing":
        assert not node.exists()
    else:
        status = node.lstat()
        dev = (machine.sys / "class/hailo_chardev/hailo0/dev").read_bytes()
        right_number = dev == b"%d:%d\n" % (os.major(status.st_rdev), os.minor(status.st_rdev))
        usable = status.st_mode & 0o666
        assert not (stat.S_ISCHR(status.st_mode) and right_number and usable)
    if how == "symlink":
        assert stat.S_ISCHR(node.stat().st_mode)

    machine.mend(FIRST)
    assert visible(machine) == before


def test_attributes_change_and_are_mended(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.plug(SECOND)
    before = visible(machine)
    entry, function = machine.entry_directory(FIRST), machine.function_directory(FIRST)
    assert entry

    machine.set_attribute(FIRST, "board_location", b"0000:07:00.0\n")
    machine.set_attribute(FIRST, "accelerator_type", None)
    machine.set_attribute(FIRST, "vendor", b"0xffff\n", of="function")
    machine.degrade_link(FIRST, speed="2.5 GT/s PCIe", width=1)
    assert (entry / "board_location").read_bytes() == b"0000:07:00.0\n"
    assert not (entry / "accelerator_type").exists()
    assert (function / "current_link_speed").read_bytes() == b"2.5 GT/s PCIe\n"
    assert (function / "max_link_width").read_bytes() == b"4\n"
    other = machine.function_directory(SECOND)  # its `vendor` is a hard link to the same file
    assert (other / "vendor").read_bytes() == b"0x1e60\n"

    machine.lose_link(FIRST)
    assert (function / "current_link_speed").read_bytes() == b"Unknown\n"
    assert (function / "config").read_bytes()[:2] == b"\xff\xff"

    machine.mend(FIRST)
    assert visible(machine) == before


def test_what_is_set_while_a_device_ails_is_mended_with_it(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    before = visible(machine)
    machine.lose_link(FIRST)
    machine.set_attribute(FIRST, "config", None, of="function")
    machine.set_attribute(FIRST, "current_link_speed", b"8.0 GT/s PCIe\n", of="function")
    machine.degrade_link(FIRST)
    machine.mend(FIRST)
    assert visible(machine) == before


@pytest.mark.parametrize("kind", typing.get_args(LitterKind))
@pytest.mark.parametrize("generation", ["4.23", "5.3"])
def test_litter_lies_among_the_entries_until_it_is_swept(
    machine: Machine, kind: LitterKind, generation: str
) -> None:
    machine.load(generation)
    machine.plug(FIRST, pci_id=bound_by(generation))
    before = visible(machine)
    litter = machine.litter(kind)
    assert litter.parent == machine.class_directory(generation)
    assert litter in set(litter.parent.iterdir())
    machine.sweep()
    assert visible(machine) == before


def test_litter_is_as_bad_as_its_name(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    at = {kind: machine.litter(kind) for kind in typing.get_args(LitterKind)}

    assert at["fifo"].is_fifo()
    with pytest.raises(OSError, match="Too many levels"):
        os.stat(at["symlink-loop"])  # noqa: PTH116 - Path.exists() would swallow it
    assert at["dangling-link"].is_symlink()
    assert not at["dangling-link"].exists()
    assert list(at["empty-entry"].iterdir()) == []
    assert not (at["half-built"] / "dev").exists()
    assert stat.S_IMODE(at["forbidden"].stat().st_mode) == 0
    with pytest.raises(UnicodeDecodeError):
        os.fsencode(at["bad-name"].name).decode()
    with pytest.raises(UnicodeDecodeError):
        (at["bad-attribute"] / "board_location").read_text(encoding="utf-8")
    assert (at["huge-attribute"] / "board_location").stat().st_size > 10_000_000
    assert (at["fifo-attribute"] / "board_location").is_fifo()
    assert (at["directory-attribute"] / "board_location").is_dir()


def test_an_open_of_a_wedged_attribute_hangs_in_another_process_until_released(
    machine: Machine,
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    path = machine.sys / "class/hailo_chardev/hailo0/board_location"
    with wedged(machine, FIRST) as wedge:
        child = opening(path)
        wedge.wait()
        assert child.poll() is None
        assert (path.parent / "dev").read_bytes()  # only the one attribute is wedged
        assert path.read_bytes() == FIRST.encode()  # and whoever wedged it would never get out
        assert wedge.seen == 1
    out, _err = child.communicate(timeout=DEADLINE_SECONDS)
    assert out == FIRST.encode()


def test_an_open_of_a_wedged_attribute_hangs_in_another_thread_until_released(
    machine: Machine,
) -> None:
    machine.load("5.3")
    machine.plug(FIRST, pci_id=HAILO_10H)
    path = machine.sys / "class/hailo1x/h1x-0/device_id"
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()), daemon=True)
    with wedged(machine, FIRST) as wedge:
        reader.start()
        wedge.wait()
        assert not read
    reader.join(DEADLINE_SECONDS)
    assert read == [FIRST.encode()]


def test_a_process_killed_at_a_wedged_attribute_dies_and_others_are_released(
    machine: Machine,
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    path = machine.sys / "class/hailo_chardev/hailo0/board_location"
    with wedged(machine, FIRST) as wedge:
        victim, survivor = opening(path), opening(path)
        wedge.wait(2)
        victim.kill()
        out, _err = victim.communicate(timeout=DEADLINE_SECONDS)
        assert out == b""
    out, _err = survivor.communicate(timeout=DEADLINE_SECONDS)
    assert out == FIRST.encode()
    with wedged(machine, FIRST):
        pass


def test_a_wedged_attribute_of_a_function_hangs_for_that_function_alone(machine: Machine) -> None:
    machine.load("4.17")
    machine.plug(FIRST)
    machine.plug(SECOND)
    before = visible(machine)
    try:
        wedge = machine.wedge(FIRST, of="function")
        entered = wedge.__enter__()
    except CannotWedge as error:
        pytest.skip(str(error))
    try:
        victim = opening(machine.function_directory(FIRST) / "config")
        other = opening(machine.function_directory(SECOND) / "config")
        entered.wait()
        out, _err = other.communicate(timeout=DEADLINE_SECONDS)
        assert out[:2] == b"\x60\x1e"
        assert victim.poll() is None
    finally:
        wedge.__exit__(None, None, None)
    victim.communicate(timeout=DEADLINE_SECONDS)
    assert visible(machine) == before


def test_a_board_may_be_pulled_while_it_is_wedged(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    with wedged(machine, FIRST) as wedge:
        child = opening(machine.sys / "class/hailo_chardev/hailo0/board_location")
        wedge.wait()
        machine.pull(FIRST)
        assert child.poll() is None
    child.communicate(timeout=DEADLINE_SECONDS)


# --- what ails a device --------------------------------------------------------------------------

LINK_IN_ORDER = {
    "current_link_speed": b"8.0 GT/s PCIe\n",
    "current_link_width": b"4\n",
    "max_link_speed": b"8.0 GT/s PCIe\n",
    "max_link_width": b"4\n",
}
ONES = {
    "current_link_speed": b"Unknown\n",
    "current_link_width": b"63\n",
    "max_link_speed": b"64.0 GT/s PCIe\n",
    "max_link_width": b"63\n",
    "config": b"\xff" * 64,
}
# What changes in the function's directory; what is not listed is for the simulated chip to show.
SHOWN: dict[Ailment, dict[str, bytes]] = {
    Ailment.DEAD_LINK: ONES,
    Ailment.SLOW_LINK: {"current_link_speed": b"2.5 GT/s PCIe\n", "current_link_width": b"1\n"},
    Ailment.DISABLED: {"enable": b"0\n"},
}
COUNTED: dict[Ailment, tuple[ErrorKind, bytes, bytes]] = {
    Ailment.AER_CORRECTABLE: ("correctable", b"BadTLP", b"TOTAL_ERR_COR"),
    Ailment.AER_NONFATAL: ("nonfatal", b"CmpltTO", b"TOTAL_ERR_NONFATAL"),
    Ailment.AER_FATAL: ("fatal", b"MalfTLP", b"TOTAL_ERR_FATAL"),
}


def lines(machine: Machine, kind: ErrorKind, address: str = FIRST) -> dict[bytes, bytes]:
    text = (machine.function_directory(address) / f"aer_dev_{kind}").read_bytes()
    assert text.endswith(b"\n")
    return dict(line.split(b" ") for line in text.splitlines())


def changed(before: dict[str, object], after: dict[str, object]) -> dict[str, object]:
    assert before.keys() == after.keys()
    return {name: after[name] for name in before if before[name] != after[name]}


def test_an_ailment_has_the_name_that_a_user_types() -> None:
    assert [ailment.value for ailment in Ailment] == [
        "dead-link",
        "slow-link",
        "aer-correctable",
        "aer-nonfatal",
        "aer-fatal",
        "disabled",
        "firmware-lost",
        "hung-control",
        "slow-control",
        "garbage",
        "hot",
        "throttling",
        "refusing",
    ]


@pytest.mark.parametrize("generation", ["4.17", "4.23", "5.3"])
@pytest.mark.parametrize("ailment", [each for each in Ailment if each not in COUNTED])
def test_an_ailment_shows_as_far_as_the_kernel_would_know_until_it_is_cured(
    machine: Machine, ailment: Ailment, generation: str
) -> None:
    machine.load(generation)
    for address in (FIRST, SECOND):
        machine.plug(address, pci_id=bound_by(generation))
    before, base = visible(machine), f"{machine.function_directory(FIRST)}/"
    assert machine.ailments(FIRST) == frozenset()

    machine.ail(FIRST, ailment)
    assert machine.ailments(FIRST) == {ailment}
    assert machine.ailments(SECOND) == frozenset()
    prefix = base.removeprefix(f"{machine.sys}/")
    expected = {f"{prefix}{name}": content for name, content in SHOWN.get(ailment, {}).items()}
    now = changed(before, visible(machine))
    assert {name: file[1] for name, file in now.items()} == expected  # type: ignore[index]

    machine.cure(FIRST)
    assert machine.ailments(FIRST) == frozenset()
    assert visible(machine) == before


@pytest.mark.parametrize("ailment", COUNTED)
def test_errors_are_counted_by_kind_and_stay_counted(machine: Machine, ailment: Ailment) -> None:
    kind, error, total = COUNTED[ailment]
    machine.load("4.23")
    machine.plug(FIRST)
    machine.plug(SECOND)
    clean = {each: lines(machine, each) for each in typing.get_args(ErrorKind)}
    assert {count for counts in clean.values() for count in counts.values()} == {b"0"}

    machine.ail(FIRST, ailment)
    machine.ail(FIRST, ailment)
    machine.count_errors(FIRST, kind, 40)
    machine.cure(FIRST)

    assert lines(machine, kind) == {**clean[kind], error: b"42", total: b"42"}
    assert list(lines(machine, kind))[-1] == total
    for other in clean.keys() - {kind}:
        assert lines(machine, other) == clean[other]
    assert lines(machine, kind, SECOND) == clean[kind]
    machine.pull(FIRST)
    machine.plug(FIRST)
    assert lines(machine, kind) == clean[kind]  # another pci_dev, other counters


def test_a_link_that_is_slow_and_dead_is_dead_first_and_whole_when_cured(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    function = machine.function_directory(FIRST)
    machine.ail(FIRST, Ailment.DEAD_LINK)
    machine.degrade_link(FIRST, speed="5.0 GT/s PCIe", width=2)
    assert files(function).items() >= ONES.items()
    machine.cure(FIRST)
    assert files(function).items() >= LINK_IN_ORDER.items()
    machine.ail(FIRST, Ailment.SLOW_LINK)  # how slow it once was is forgotten
    assert (function / "current_link_speed").read_bytes() == b"2.5 GT/s PCIe\n"
    machine.mend(FIRST)
    assert machine.ailments(FIRST) == frozenset()


@pytest.mark.parametrize("generation", ["4.17", "4.23", "5.3"])
def test_no_kernel_driver_takes_a_function_that_is_dead(machine: Machine, generation: str) -> None:
    machine.load(generation)
    entry = machine.plug(FIRST, pci_id=bound_by(generation))
    machine.ail(FIRST, Ailment.DEAD_LINK)
    assert machine.entry(FIRST) == entry  # nobody has noticed yet
    machine.reload(generation)
    function = machine.function_directory(FIRST)
    assert machine.entry(FIRST) is None
    assert machine.bind(FIRST) is None
    assert not (function / "driver").is_symlink()
    assert files(function).items() >= ONES.items()  # a reload does not revive it
    machine.cure(FIRST)
    assert machine.bind(FIRST) == entry
    assert files(function).items() >= LINK_IN_ORDER.items()


def test_what_ails_a_device_goes_with_it(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    clean = visible(machine)
    for ailment in Ailment:
        if ailment not in COUNTED:
            machine.ail(FIRST, ailment)
    machine.pull(FIRST)
    machine.plug(FIRST)
    assert machine.ailments(FIRST) == frozenset()
    assert visible(machine) == clean


def test_a_new_probe_enables_a_function_and_loads_its_firmware(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    for ailment in (Ailment.DISABLED, Ailment.FIRMWARE_LOST, Ailment.HOT):
        machine.ail(FIRST, ailment)
    enable = machine.function_directory(FIRST) / "enable"
    assert enable.read_bytes() == b"0\n"
    machine.reload("4.23")
    assert enable.read_bytes() == b"1\n"
    assert machine.firmware_loaded(FIRST)
    assert machine.ailments(FIRST) == {Ailment.HOT}


@pytest.mark.parametrize("generation", TABLE)
def test_a_reset_costs_the_firmware_unless_the_kernel_driver_loads_it_again(
    machine: Machine, generation: str
) -> None:
    machine.load(generation)
    entry = machine.plug(FIRST, pci_id=bound_by(generation))
    before = visible(machine)
    assert machine.firmware_loaded(FIRST)
    machine.reset(FIRST)
    assert machine.firmware_loaded(FIRST) == (generation in {"5.0.1", "5.1", "5.2", "5.3"})
    assert machine.entry(FIRST) == entry
    assert visible(machine) == before  # the node stands, and nothing tells
    machine.cure(FIRST)
    assert machine.firmware_loaded(FIRST)


def test_firmware_is_loaded_by_a_kernel_driver_that_finds_it(machine: Machine) -> None:
    machine.load("4.17")
    machine.plug(FIRST, firmware_ok=False)
    machine.plug(SECOND)
    assert machine.entry(FIRST)
    assert not machine.firmware_loaded(FIRST)
    assert machine.firmware_loaded(SECOND)
    machine.unbind(SECOND)
    assert not machine.firmware_loaded(SECOND)


@pytest.mark.parametrize("generation", ["4.17", "4.23", "5.3"])
def test_another_driver_may_take_a_function_and_give_it_back(
    machine: Machine, generation: str
) -> None:
    machine.load(generation)
    machine.plug(FIRST, pci_id=bound_by(generation))
    before, entry = visible(machine), machine.entry(FIRST)
    machine.usurp(FIRST)

    function = machine.function_directory(FIRST)
    other = machine.sys / "bus/pci/drivers/vfio-pci"
    assert machine.entry(FIRST) is None
    assert (function / "driver").resolve() == other
    assert (other / FIRST).resolve() == function
    assert (function / "uevent").read_bytes().startswith(b"DRIVER=vfio-pci\n")
    assert (function / "driver_override").read_bytes() == b"vfio-pci\n"
    assert [path.name for path in machine.dev.iterdir()] == []
    machine.reload(generation)  # who is taken is not probed
    assert machine.entry(FIRST) is None
    machine.usurp(FIRST, "pci-stub")
    assert not (other / FIRST).is_symlink()

    machine.unload(generation)
    machine.load(generation, major=507)
    assert machine.bind(FIRST) == entry
    after = {name: file for name, file in visible(machine).items() if "pci/drivers" not in name}
    assert after == {name: file for name, file in before.items() if "pci/drivers" not in name}


def test_a_function_that_another_driver_has_can_be_pulled(machine: Machine) -> None:
    machine.plug(FIRST)
    machine.usurp(FIRST)
    machine.pull(FIRST)
    assert machine.addresses == ()
    assert [
        path for path in machine.sys.rglob("*") if path.is_symlink() and not path.exists()
    ] == []


def test_a_module_stays_in_use_by_who_holds_a_board_that_was_pulled(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.plug(SECOND)
    refcnt = machine.sys / "module/hailo_pci/refcnt"
    with machine.hold(FIRST):
        with machine.hold(FIRST), machine.hold(SECOND):
            machine.pull(FIRST)
            assert refcnt.read_bytes() == b"3\n"
        assert refcnt.read_bytes() == b"1\n"
        with pytest.raises(MachineError, match="in use by 1"):
            machine.unload("4.23")
    assert refcnt.read_bytes() == b"0\n"
    machine.unload("4.23")


def test_the_socs_own_accelerator_has_no_link_but_may_run_hot(machine: Machine) -> None:
    machine.load("integrated-5.2")
    before = visible(machine)
    machine.ail(SOC, Ailment.HOT)
    assert machine.ailments(SOC) == {Ailment.HOT}
    for ailment in (*SHOWN, *COUNTED):
        with pytest.raises(MachineError, match="not on the PCI bus"):
            machine.ail(SOC, ailment)
    with pytest.raises(MachineError, match="not on the PCI bus"):
        machine.reset(SOC)
    assert machine.ailments(SOC) == {Ailment.HOT}
    machine.cure(SOC)
    assert visible(machine) == before
    assert machine.firmware_loaded(SOC)


# --- what the host permits ------------------------------------------------------------------------


def test_without_root_all_nodes_are_0_0_and_sysfs_says_so() -> None:
    """In a child of ours that becomes nobody: the machine is all there, but for the numbers."""
    code = """
import os, sys
from pathlib import Path
from hailo_agent.sim.machine import CannotWedge, Machine
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
machine = Machine(Path(sys.argv[1]) / "machine")
assert not machine.numbered
machine.load("4.23"); machine.load("5.3")
machine.plug("0000:01:00.0"); machine.plug("0000:02:00.0"); machine.litter("forbidden")
entry = machine.sys / "class/hailo_chardev/hailo1"
assert (entry / "dev").read_bytes() == b"0:0\\n"
assert (entry / "uevent").read_bytes() == b"MAJOR=0\\nMINOR=0\\nDEVNAME=hailo1\\n"
node = machine.dev / "hailo1"
assert node.is_char_device() and node.stat().st_rdev == 0
machine.break_node("0000:02:00.0", "wrong-number")
assert (entry / "dev").read_bytes() == b"507:1\\n"
machine.mend("0000:02:00.0")
assert (entry / "dev").read_bytes() == b"0:0\\n"
try:
    with machine.wedge("0000:01:00.0"):
        raise SystemExit("wedged without CAP_SYS_ADMIN")
except CannotWedge as error:
    assert "run as root" in str(error), error
machine.sweep(); machine.unload("4.23")
assert not list(machine.dev.iterdir())
print("done")
"""
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to everybody else
        Path(directory).chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", code, directory],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.stdout, done.stderr) == ("done\n", "")


@needs_root
def test_uevents_come_from_the_kernel_in_its_order(tmp_path: Path) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15) as listener:
        listener.bind((0, 1))
        with closing(Machine(tmp_path / "machine", uevents=True)) as machine:
            try:
                machine.load("4.23")
            except PermissionError as error:
                pytest.skip(str(error))
            machine.plug(FIRST)
            machine.pull(FIRST)
        events: list[tuple[str, dict[str, str]]] = []
        while not events or events[-1][0] != "remove@/devices/pci0000:00/0000:00:01.0/0000:01:00.0":
            assert select.select([listener], [], [], DEADLINE_SECONDS)[0]
            message, (port, _group) = listener.recvfrom(8192)
            head, *lines = message.decode().rstrip("\0").split("\0")
            properties = dict(line.split("=", 1) for line in lines)
            if (
                properties.get("SUBSYSTEM") in {"pci", "hailo_chardev"}
                and "hailo" in message.decode()
            ):
                assert port == 0
            events.append((head, properties))
    function = "/devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    entry = f"{function}/hailo_chardev/hailo0"
    heads = [head for head, _properties in events if function in head]
    assert heads == [
        f"add@{function}",
        f"add@{entry}",
        f"bind@{function}",
        f"remove@{entry}",
        f"unbind@{function}",
        f"remove@{function}",
    ]
    added = dict(events)[f"add@{entry}"]
    assert added["SUBSYSTEM"] == "hailo_chardev"
    assert (added["MAJOR"], added["MINOR"], added["DEVNAME"]) == ("507", "0", "hailo0")
    assert dict(events)[f"bind@{function}"]["PCI_SLOT_NAME"] == FIRST
