"""`host.scan` with `core.decide` on simulated machines: each driver generation, and each disorder.

What is expected is written out here, and not taken from the tables of the agent or the simulator.
"""

import asyncio
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pytest

from hailo_agent.core.device import FAMILIES, Device, DeviceNumber, Family, Identity, PciAddress
from hailo_agent.core.health import FaultCode, Health, Patience, Standards
from hailo_agent.core.inventory import Inventory, Policy, decide
from hailo_agent.core.observation import Observation
from hailo_agent.errors import HostError
from hailo_agent.host.scan import MAX_FAULTS_PER_CLASS, Scanner
from hailo_agent.sim.machine import SOC, Breakage, CannotWedge, Link, LitterKind, Machine

HAILO_8, HAILO_10H, HAILO_15L, HAILO_12L = "1e60:2864", "1e60:45c4", "1e60:43a2", "1e60:26a2"
FIRST, SECOND, THIRD = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"
FAR, SWITCH = "0001:04:00.0", "0001:00:00.0/0001:01:00.0/0001:02:03.0"
POLICY = Policy(
    standards=Standards(patience=Patience(recovery_seconds=5.0, flap_window_seconds=60.0)),
    tombstone_seconds=86_400.0,
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="hung attributes need CAP_SYS_ADMIN")


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine in memory, readable for everybody."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        yield Machine(Path(directory) / "machine")


def scanner_of(
    machine: Machine, families: Sequence[Family] = FAMILIES, timeout_seconds: float = 2.0
) -> Scanner:
    return Scanner(
        dev=machine.dev, sys=machine.sys, families=families, timeout_seconds=timeout_seconds
    )


async def look(scanner: Scanner, *, thorough: bool = True) -> Observation:
    return await scanner.look(asyncio.get_running_loop().time(), thorough=thorough)


async def seen(
    machine: Machine, before: Inventory | None = None, families: Sequence[Family] = FAMILIES
) -> Inventory:
    observation = await look(scanner_of(machine, families))
    return decide(before or Inventory(), observation, POLICY)


def codes(inventory: Inventory) -> list[tuple[FaultCode, str]]:
    return [(fault.code, fault.subject) for fault in inventory.faults]


def health(inventory: Inventory) -> dict[str, str]:
    return {device.id: device.health.value for device in inventory.devices}


def nodes(inventory: Inventory) -> dict[str, str]:
    return {d.id: d.devnode.name for d in inventory.devices if d.devnode is not None}


@asynccontextmanager
async def loop_stays_awake(within: float = 0.5) -> AsyncIterator[None]:
    """Fail if the event loop is blocked for longer at any moment of the block."""
    gaps = [0.0]

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - before)

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
    assert max(gaps) < within


# --- each generation ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a person would say of one device."""

    id: str
    model: str
    node: str
    class_name: str
    pci: str | None = None
    pci_id: str | None = None
    numa: int | None = None
    root: str | None = None
    bridges: int = 0
    link: tuple[float, int, float, int] | None = None
    driver: str | None = None
    version: str | None = None
    health: str = "Healthy"


def told(device: Device) -> Expected:
    assert device.devnode is not None
    link = device.link
    return Expected(
        id=device.id,
        model=device.model.value,
        node=device.devnode.name,
        class_name=device.devnode.class_name,
        pci=None if device.address is None else str(device.address),
        pci_id=None if device.pci_id is None else str(device.pci_id),
        numa=device.topology.numa_node,
        root=device.topology.pcie_root,
        bridges=len(device.topology.bridges),
        link=None
        if link is None
        else (link.speed_gts, link.width, link.max_speed_gts, link.max_width),
        driver=device.driver,
        version=device.driver_version,
        health=device.health.value,
    )


def near(
    node: str, class_name: str, driver: str, version: str, *, pci_id: str, model: str
) -> Expected:
    """A device in the first slot, on NUMA node 0, with a link at full speed."""
    return Expected(
        id="pci-0000-01-00-0",
        model=model,
        node=node,
        class_name=class_name,
        pci=FIRST,
        pci_id=pci_id,
        numa=0,
        root="pci0000:00",
        bridges=2,
        link=(8.0, 4, 8.0, 4),
        driver=driver,
        version=version,
    )


def far(
    node: str, class_name: str, driver: str, version: str, *, pci_id: str, model: str
) -> Expected:
    """A device in another domain, behind a switch, without NUMA, with a link at its slowest."""
    return Expected(
        id="pci-0001-04-00-0",
        model=model,
        node=node,
        class_name=class_name,
        pci=FAR,
        pci_id=pci_id,
        root="pci0001:00",
        bridges=4,
        link=(5.0, 1, 8.0, 4),
        driver=driver,
        version=version,
    )


OLD, NEW = "hailo_chardev", "hailo1x"
# Generation: class, node names by index, kernel driver, module version; what the PCI id of the
# first and of the second device is, and what each is called.
PCIE = {
    "4.17": (OLD, "hailo", "hailo", "4.17.0", (HAILO_8, "hailo-8"), (HAILO_15L, "hailo-15l")),
    "4.20": (OLD, "hailo", "hailo", "4.20.0", (HAILO_8, "hailo-8"), (HAILO_10H, "hailo-10h")),
    "4.22": (OLD, "hailo", "hailo", "4.22.0", (HAILO_8, "hailo-8"), (HAILO_12L, "hailo-12l")),
    "4.23": (OLD, "hailo", "hailo", "4.23.0", (HAILO_8, "hailo-8"), (HAILO_8, "hailo-8")),
    "5.0.0": (OLD, "hailo", "hailo", "5.0.0", (HAILO_8, "hailo-8"), (HAILO_10H, "hailo-10h")),
    "5.0.1": (OLD, "hailo", "hailo", "5.0.1", (HAILO_10H, "hailo-10h"), (HAILO_15L, "hailo-15l")),
    "5.1": (OLD, "hailo", "hailo1x", "5.1.0", (HAILO_10H, "hailo-10h"), (HAILO_12L, "hailo-12l")),
    "5.2": (OLD, "hailo", "hailo1x", "5.2.0", (HAILO_10H, "hailo-10h"), (HAILO_12L, "hailo-12l")),
    "5.3": (NEW, "h1x-", "hailo1x", "5.3.0", (HAILO_10H, "hailo-10h"), (HAILO_15L, "hailo-15l")),
}


def plug_both(machine: Machine, first: str, second: str) -> None:
    machine.plug(FIRST, pci_id=first, numa_node=0)
    slow = Link(speed="5.0 GT/s PCIe", width=1)
    machine.plug(FAR, pci_id=second, numa_node=-1, root_port=SWITCH, link=slow)


@pytest.mark.parametrize("generation", PCIE)
async def test_a_generation_shows_exactly_its_devices(machine: Machine, generation: str) -> None:
    class_name, stem, driver, version, (one, one_model), (two, two_model) = PCIE[generation]
    machine.load(generation)
    plug_both(machine, one, two)

    inventory = await seen(machine)

    assert [told(device) for device in inventory.devices] == [
        near(f"{stem}0", class_name, driver, version, pci_id=one, model=one_model),
        far(f"{stem}1", class_name, driver, version, pci_id=two, model=two_model),
    ]
    assert inventory.faults == ()
    assert inventory.class_names == (class_name,)
    for device, address in zip(inventory.devices, (FIRST, FAR), strict=True):
        assert device.devnode is not None
        assert device.devnode.number == DeviceNumber(*machine.number(address) or (-1, -1))


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (
            "integrated-4.17",
            Expected(
                id="soc-virtual-hailo-chardev-hailo-integrated-nnc",
                model="unknown",
                node="hailo_integrated_nnc",
                class_name="hailo_chardev",
            ),
        ),
        (
            "integrated-5.2",
            Expected(
                id="soc-platform-hailort-hailo-chardev-hailo-integrated-nnc",
                model="unknown",
                node="hailo_integrated_nnc",
                class_name="hailo_chardev",
            ),
        ),
        (
            "integrated-5.3",
            Expected(
                id="soc-platform-hailort-hailo1x-integrated-h1x",
                model="unknown",
                node="h1x",
                class_name="hailo1x_integrated",
            ),
        ),
    ],
)
async def test_the_socs_own_accelerator_is_known_by_its_place_in_sysfs(
    machine: Machine, generation: str, expected: Expected
) -> None:
    machine.load(generation)
    inventory = await seen(machine)
    assert [told(device) for device in inventory.devices] == [expected]
    assert inventory.faults == ()


async def test_drivers_4_23_and_5_3_serve_their_own_devices_side_by_side(machine: Machine) -> None:
    machine.load("4.23")
    machine.load("5.3")
    plug_both(machine, HAILO_8, HAILO_10H)

    inventory = await seen(machine)

    assert [told(device) for device in inventory.devices] == [
        near("hailo0", OLD, "hailo", "4.23.0", pci_id=HAILO_8, model="hailo-8"),
        far("h1x-0", NEW, "hailo1x", "5.3.0", pci_id=HAILO_10H, model="hailo-10h"),
    ]
    assert inventory.faults == ()
    assert inventory.class_names == (NEW, OLD)


@pytest.mark.parametrize("generation", [None, *PCIE, "integrated-4.17"])
async def test_a_machine_without_a_board_has_no_device_and_no_fault(
    machine: Machine, generation: str | None
) -> None:
    if generation == "integrated-4.17":
        machine.load(generation)
        machine.unload(generation)
    elif generation is not None:
        machine.load(generation)
        machine.plug(FIRST, pci_id=HAILO_8 if HAILO_8 in PCIE[generation][4] else HAILO_10H)
        machine.pull(FIRST)
    inventory = await seen(machine)
    assert inventory.devices == ()
    assert inventory.faults == ()


@pytest.mark.parametrize(
    ("generation", "pci_id", "driver"),
    [("4.23", HAILO_10H, None), ("5.3", HAILO_8, None), ("5.3", "1e60:ffff", None)],
)
async def test_a_pci_function_that_no_driver_serves_is_reported_with_its_model(
    machine: Machine, generation: str, pci_id: str, driver: str | None
) -> None:
    machine.load(generation)
    machine.plug(SECOND, pci_id=pci_id)
    inventory = await seen(machine)
    assert inventory.devices == ()
    assert codes(inventory) == [(FaultCode.PCI_UNSERVED, SECOND)]
    assert pci_id in inventory.faults[0].message
    assert "no kernel driver is bound" in inventory.faults[0].message


async def test_a_missing_firmware_leaves_a_function_that_is_reported(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.plug(SECOND, firmware_ok=False)
    inventory = await seen(machine)
    assert health(inventory) == {"pci-0000-01-00-0": "Healthy"}
    assert codes(inventory) == [(FaultCode.PCI_UNSERVED, SECOND)]
    assert "firmware" in inventory.faults[0].remedy


async def test_a_chip_in_accelerator_mode_is_the_hailo_15h_that_it_is(machine: Machine) -> None:
    machine.load("5.2")
    machine.plug(FIRST, pci_id=HAILO_10H, accelerator=0)
    machine.plug(SECOND, pci_id=HAILO_10H, accelerator=1)
    inventory = await seen(machine)
    assert [device.model.value for device in inventory.devices] == ["hailo-15h", "hailo-10h"]


async def test_the_pci_id_is_that_of_the_pci_function_whatever_the_class_says(
    machine: Machine,
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.set_attribute(FIRST, "device_id", b"1e60:45c4")
    (device,) = (await seen(machine)).devices
    assert (str(device.pci_id), device.model.value) == (HAILO_8, "hailo-8")


@pytest.mark.parametrize("content", [b"0000:01:00.0\n", b" 0000:01:00.0", b"01:00.0"])
async def test_an_address_may_be_spelled_with_a_newline_or_without_its_domain(
    machine: Machine, content: bytes
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.set_attribute(FIRST, "board_location", content)
    assert health(await seen(machine)) == {"pci-0000-01-00-0": "Healthy"}


async def test_without_its_address_attribute_a_device_is_known_by_its_device_link(
    machine: Machine,
) -> None:
    machine.load("4.23")  # the parent is the PCI function since 4.23
    machine.plug(FIRST)
    machine.set_attribute(FIRST, "board_location", None)
    assert health(await seen(machine)) == {"pci-0000-01-00-0": "Healthy"}


# --- identity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["4.20", "4.23", "5.3"])
async def test_swapped_minors_move_devices_and_change_no_id(
    machine: Machine, generation: str
) -> None:
    machine.load(generation)
    pci_id = HAILO_10H if generation == "5.3" else HAILO_8
    machine.plug(FIRST, pci_id=pci_id)
    machine.plug(SECOND, pci_id=pci_id)
    before = await seen(machine)

    machine.swap_minors(FIRST, SECOND)
    after = await seen(machine, before)

    assert list(nodes(before)) == list(nodes(after)) == ["pci-0000-01-00-0", "pci-0000-02-00-0"]
    assert list(nodes(after).values()) == list(reversed(nodes(before).values()))
    assert set(health(after).values()) == {"Healthy"}


async def test_a_reload_in_another_order_and_under_another_major_changes_no_id(
    machine: Machine,
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.plug(SECOND)
    before = await seen(machine)

    machine.reload("4.23", order=[SECOND, FIRST], major=400)
    after = await seen(machine, before)

    assert nodes(before) == {"pci-0000-01-00-0": "hailo0", "pci-0000-02-00-0": "hailo1"}
    assert nodes(after) == {"pci-0000-01-00-0": "hailo1", "pci-0000-02-00-0": "hailo0"}
    if machine.numbered:
        majors = {d.devnode.number.major for d in after.devices if d.devnode is not None}
        assert majors == {400}


async def test_the_rename_of_driver_5_3_keeps_every_id(machine: Machine) -> None:
    machine.load("5.2")
    machine.plug(FIRST, pci_id=HAILO_10H)
    before = await seen(machine)
    machine.unload("5.2")
    machine.load("5.3")
    after = await seen(machine, before)
    assert nodes(before) == {"pci-0000-01-00-0": "hailo0"}
    assert nodes(after) == {"pci-0000-01-00-0": "h1x-0"}
    assert health(after) == {"pci-0000-01-00-0": "Healthy"}


async def test_a_replugged_device_that_got_another_index_is_the_same_device(
    machine: Machine,
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.plug(SECOND)
    before = await seen(machine)
    machine.pull(FIRST)
    machine.plug(THIRD)  # takes the index that became free
    machine.plug(FIRST)
    after = await seen(machine, before)
    assert nodes(after) == {
        "pci-0000-01-00-0": "hailo2",
        "pci-0000-02-00-0": "hailo1",
        "pci-0000-03-00-0": "hailo0",
    }


# --- the next rename needs no release -------------------------------------------------------------


def rename_class(machine: Machine, address: str, class_name: str, name: str) -> None:
    """Show a board once more under the names that a driver of the future may choose."""
    directory, node = machine.entry_directory(address), machine.devnode(address)
    assert directory is not None
    assert node is not None
    future = machine.sys / "class" / class_name
    future.mkdir(exist_ok=True)
    (future / name).symlink_to(os.path.relpath(directory, future))
    os.mknod(machine.dev / name, stat.S_IFCHR | 0o600, node.lstat().st_rdev)


async def test_a_configured_family_finds_the_devices_of_a_driver_nobody_has_seen_yet(
    machine: Machine,
) -> None:
    machine.load("5.3")
    machine.plug(FIRST, pci_id=HAILO_10H)
    machine.plug(SECOND, pci_id=HAILO_10H)
    known = await seen(machine)
    rename_class(machine, FIRST, "hailo2x", "h2x-0")
    rename_class(machine, SECOND, "hailo2x", "h2x-1")
    family = Family(class_name="hailo2x", devnode=r"h2x-[0-9]+", exclusive=False)

    inventory = await seen(machine, families=[family])

    assert list(nodes(inventory)) == list(nodes(known))
    assert list(nodes(inventory).values()) == ["h2x-0", "h2x-1"]
    assert set(health(inventory).values()) == {"Healthy"}
    assert inventory.faults == ()


async def test_a_device_that_two_drivers_show_is_one_device_and_one_fault(
    machine: Machine,
) -> None:
    machine.load("5.3")
    machine.plug(FIRST, pci_id=HAILO_10H)
    rename_class(machine, FIRST, "hailo2x", "h2x-0")
    family = Family(class_name="hailo2x", devnode=r"h2x-[0-9]+", exclusive=False)
    inventory = await seen(machine, families=[*FAMILIES, family])
    assert health(inventory) == {"pci-0000-01-00-0": "Healthy"}
    assert codes(inventory) == [(FaultCode.DUPLICATE, "hailo2x/h2x-0")]


async def test_a_configured_family_takes_what_it_names_of_a_class_of_others() -> None:
    """On the real kernel: class `mem` has null, zero and more, none of them ours."""
    family = Family(class_name="mem", devnode="null", identity=Identity.SYSFS, exclusive=False)
    scanner = Scanner(dev=Path("/dev"), sys=Path("/sys"), families=[family], timeout_seconds=2.0)
    observation = replace(await look(scanner), functions=())
    inventory = decide(Inventory(), observation, POLICY)
    assert nodes(inventory) == {"soc-virtual-mem-null": "null"}
    (device,) = inventory.devices
    assert device.health is Health.HEALTHY
    assert device.devnode is not None
    assert device.devnode.number == DeviceNumber(1, 3)
    assert inventory.faults == ()


# --- what stands in /dev --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("missing", FaultCode.DEVNODE_MISSING),
        ("wrong-number", FaultCode.DEVNODE_NUMBER),
        ("symlink", FaultCode.DEVNODE_LINK),
        ("regular-file", FaultCode.DEVNODE_FOREIGN),
        ("fifo", FaultCode.DEVNODE_FOREIGN),
        ("mode", None),
    ],
)
async def test_only_a_character_device_of_the_right_number_is_offered(
    machine: Machine, how: Breakage, code: FaultCode | None
) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.plug(SECOND)
    sound = await seen(machine)
    machine.break_node(FIRST, how)

    fresh, known = await seen(machine), await seen(machine, sound)

    if code is None:  # how a node may be opened is the container's business
        assert health(fresh) == health(known) == health(sound)
        return
    assert health(fresh) == {"pci-0000-02-00-0": "Healthy"}
    assert codes(fresh) == [(code, "pci-0000-01-00-0")]
    assert health(known) == {"pci-0000-01-00-0": "Unhealthy", "pci-0000-02-00-0": "Healthy"}
    assert [fault.code for fault in known.devices[0].faults] == [code]
    machine.mend(FIRST)
    assert health(await seen(machine, known)) == health(sound)


# --- rubbish --------------------------------------------------------------------------------------

UNREADABLE_MODE = os.geteuid() != 0
RUBBISH: dict[LitterKind, FaultCode] = {
    "fifo": FaultCode.ENTRY_INCOMPLETE,
    "regular-file": FaultCode.ENTRY_INCOMPLETE,
    "symlink-loop": FaultCode.ENTRY_BROKEN,
    "dangling-link": FaultCode.ENTRY_INCOMPLETE,
    "empty-entry": FaultCode.ENTRY_INCOMPLETE,
    "half-built": FaultCode.ENTRY_INCOMPLETE,
    "no-node": FaultCode.DEVNODE_MISSING,
    "forbidden": FaultCode.ENTRY_BROKEN if UNREADABLE_MODE else FaultCode.DEVNODE_MISSING,
    "bad-name": FaultCode.ENTRY_UNEXPECTED,
    "bad-attribute": FaultCode.ENTRY_BROKEN,
    "bogus-address": FaultCode.IDENTITY_UNREADABLE,
    "empty-attribute": FaultCode.IDENTITY_UNREADABLE,
    "huge-attribute": FaultCode.ENTRY_BROKEN,
    "endless-attribute": FaultCode.ENTRY_BROKEN,
    "fifo-attribute": FaultCode.ENTRY_BROKEN,
    "directory-attribute": FaultCode.ENTRY_BROKEN,
    "bad-dev": FaultCode.ENTRY_BROKEN,
}


def two_boards(machine: Machine, generation: str) -> None:
    machine.load(generation)
    pci_id = PCIE[generation][4][0]
    machine.plug(FIRST, pci_id=pci_id)
    machine.plug(SECOND, pci_id=pci_id)


TWO_HEALTHY = {"pci-0000-01-00-0": "Healthy", "pci-0000-02-00-0": "Healthy"}


def test_the_table_names_every_kind_of_rubbish() -> None:
    assert set(RUBBISH) == set(get_args(LitterKind))


@pytest.mark.parametrize("generation", ["4.17", "4.23", "5.3"])
@pytest.mark.parametrize("kind", RUBBISH)
async def test_rubbish_costs_one_named_fault_and_no_device(
    machine: Machine, kind: LitterKind, generation: str
) -> None:
    two_boards(machine, generation)
    path = machine.litter(kind)

    async with loop_stays_awake():
        inventory = await seen(machine)

    assert health(inventory) == TWO_HEALTHY
    (fault,) = inventory.faults
    assert fault.code is RUBBISH[kind]
    name = path.name.encode("utf-8", "backslashreplace").decode()
    named_by_address = {FaultCode.DEVNODE_MISSING}
    if fault.code not in named_by_address:
        assert fault.subject == f"{path.parent.name}/{name}"
    assert fault.subject
    assert fault.message
    assert fault.remedy
    assert all(text.isprintable() for text in (fault.subject, fault.message, fault.remedy))
    fault.message.encode()  # no half of a character reaches a log or a socket
    machine.sweep()
    assert (await seen(machine, inventory)).faults == ()


@pytest.mark.parametrize("kind", RUBBISH)
async def test_rubbish_beside_the_socs_accelerator_is_unexpected_whatever_it_is(
    machine: Machine, kind: LitterKind
) -> None:
    machine.load("integrated-5.3")
    machine.litter(kind)
    inventory = await seen(machine)
    assert list(nodes(inventory).values()) == ["h1x"]
    assert [fault.code for fault in inventory.faults] == [FaultCode.ENTRY_UNEXPECTED]


async def test_all_rubbish_at_once_costs_one_fault_each(machine: Machine) -> None:
    two_boards(machine, "4.23")
    for kind in RUBBISH:
        machine.litter(kind)
    async with loop_stays_awake():
        inventory = await seen(machine)
    assert health(inventory) == TWO_HEALTHY
    assert sorted(fault.code for fault in inventory.faults) == sorted(RUBBISH.values())
    assert len(set(codes(inventory))) == len(RUBBISH)
    assert decide(inventory, await look(scanner_of(machine)), POLICY) == inventory


async def test_an_attribute_of_ten_megabytes_costs_neither_time_nor_memory(
    machine: Machine,
) -> None:
    two_boards(machine, "4.23")
    path = machine.litter("huge-attribute")
    assert (path / "board_location").stat().st_size > 10_000_000
    scanner = scanner_of(machine)
    await look(scanner)
    tracemalloc.start()
    try:
        started_at = time.monotonic()
        await look(scanner)
        took, (_, peak) = time.monotonic() - started_at, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000
    assert took < 1.0


async def test_a_thousand_strange_entries_are_a_bounded_number_of_faults(
    machine: Machine,
) -> None:
    two_boards(machine, "4.23")
    for number in range(1000):
        (machine.sys / "class/hailo_chardev" / f"stranger{number:04}").mkdir()
    inventory = await seen(machine)
    assert health(inventory) == TWO_HEALTHY
    assert len(inventory.faults) == MAX_FAULTS_PER_CLASS + 1
    assert {fault.code for fault in inventory.faults} == {FaultCode.ENTRY_UNEXPECTED}
    rest = next(fault for fault in inventory.faults if fault.subject == "hailo_chardev")
    assert str(1000 - MAX_FAULTS_PER_CLASS) in rest.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vendor", b"0x1e60" + b" " * 10_000_000),
        ("vendor", b"\xff\xfe"),
        ("vendor", None),
        ("device", b"nonsense"),
        ("numa_node", b"\xff"),
        ("numa_node", b"9" * 100),
        ("current_link_speed", b"Unknown\n"),
        ("current_link_width", b"-1\n"),
        ("max_link_speed", None),
    ],
)
async def test_rubbish_in_a_pci_attribute_costs_what_it_tells_and_not_the_device(
    machine: Machine, name: str, content: bytes | None
) -> None:
    two_boards(machine, "4.23")
    machine.set_attribute(FIRST, name, content, of="function")
    inventory = await seen(machine)
    assert health(inventory) == TWO_HEALTHY
    assert inventory.devices[0].topology.numa_node is None
    if "link" in name:
        assert inventory.devices[0].link is None
    if name in {"vendor", "device"}:
        assert inventory.devices[0].model.value == "unknown"
    assert inventory.devices[1].model.value == "hailo-8"
    assert inventory.devices[1].link is not None


@pytest.mark.parametrize("generation", ["4.17", "4.23", "5.3"])
async def test_a_known_device_with_a_broken_address_is_one_unhealthy_device_and_nothing_more(
    machine: Machine, generation: str
) -> None:
    two_boards(machine, generation)
    inventory = await seen(machine)
    address = "device_id" if generation == "5.3" else "board_location"
    machine.set_attribute(FIRST, address, b"\xff\xfe")
    inventory = await seen(machine, inventory)
    assert health(inventory) == {**TWO_HEALTHY, "pci-0000-01-00-0": "Unhealthy"}
    assert [fault.code for fault in inventory.devices[0].faults] == [FaultCode.ENTRY_BROKEN]
    assert inventory.faults == ()
    machine.mend(FIRST)
    assert health(await seen(machine, inventory)) == TWO_HEALTHY


# --- a class directory that cannot be read --------------------------------------------------------


@pytest.mark.parametrize("how", ["file", "loop", "fifo"])
async def test_a_class_that_is_no_directory_costs_its_own_devices_only(
    machine: Machine, how: str
) -> None:
    machine.load("5.3")
    machine.plug(FIRST, pci_id=HAILO_10H)
    path = machine.sys / "class/hailo_chardev"
    if how == "file":
        path.write_bytes(b"")
    elif how == "loop":
        path.symlink_to(path.name)
    else:
        os.mkfifo(path)
    inventory = await seen(machine)
    assert health(inventory) == {"pci-0000-01-00-0": "Healthy"}
    assert codes(inventory) == [(FaultCode.CLASS_UNREADABLE, str(path))]


LOOK_WITHOUT_CAPABILITIES = """
import asyncio, ctypes, json, sys
from pathlib import Path
from hailo_agent.core.device import FAMILIES
from hailo_agent.host.scan import Scanner
VERSION_3, NONE = 0x20080522, (0,) * 6
header, sets = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)(*NONE)
assert ctypes.CDLL(None).capset(header, sets) == 0
root = Path(sys.argv[1])
scanner = Scanner(dev=root / "dev", sys=root / "sys", families=FAMILIES, timeout_seconds=5.0)
seen = asyncio.run(scanner.look(0.0, thorough=True))
print(json.dumps({
    "entries": [s.entry for s in seen.sightings],
    "faults": [[f.code, f.subject, f.message] for f in seen.faults],
}))
"""


def look_without_privilege(machine: Machine) -> dict[str, list[object]]:
    """Look in a process that has given up what makes root read everything."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK_WITHOUT_CAPABILITIES, str(machine.root)],
        check=True,
        capture_output=True,
        timeout=30,
    )
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


def test_an_unreadable_class_directory_costs_its_own_devices_only(machine: Machine) -> None:
    machine.load("4.23")
    machine.load("5.3")
    machine.plug(FIRST)
    machine.plug(SECOND, pci_id=HAILO_10H)
    path = machine.sys / "class/hailo_chardev"
    path.chmod(0)
    try:
        found = look_without_privilege(machine)
    finally:
        path.chmod(0o755)
    assert found["entries"] == ["h1x-0"]
    assert found["faults"] == [
        [FaultCode.CLASS_UNREADABLE, str(path), "cannot be listed: Permission denied"]
    ]


def test_everything_is_found_without_any_privilege(machine: Machine) -> None:
    machine.load("4.23")
    machine.plug(FIRST)
    machine.plug(SECOND)
    assert look_without_privilege(machine) == {"entries": ["hailo0", "hailo1"], "faults": []}


# --- between two reads ----------------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["4.17", "4.23", "5.3"])
async def test_a_device_half_way_in_is_never_offered_before_its_node_is_there(
    machine: Machine, generation: str
) -> None:
    machine.load(generation)
    pci_id = PCIE[generation][4][0]
    machine.plug(FIRST, pci_id=pci_id)
    inventory = await seen(machine)
    stages = []
    for stage in machine.plugging(SECOND, pci_id=pci_id):
        stages.append(stage)
        inventory = await seen(machine, inventory)
        assert health(inventory)["pci-0000-01-00-0"] == "Healthy"
        arrived = health(inventory).get("pci-0000-02-00-0")
        assert arrived == ("Healthy" if stage == "node" else None)
        # The function waits for its device, the entry for its attributes: two faults, as long as
        # the entry does not tell whose it is.
        assert len(inventory.faults) <= 2
    assert stages[-1] == "node"
    assert inventory.faults == ()


@pytest.mark.parametrize("generation", ["4.17", "4.23", "5.3"])
async def test_a_device_half_way_out_is_unhealthy_and_keeps_its_name_to_the_end(
    machine: Machine, generation: str
) -> None:
    two_boards(machine, generation)
    inventory = await seen(machine)
    was_healthy = True
    for stage in machine.pulling(FIRST):
        inventory = await seen(machine, inventory)
        assert list(health(inventory)) == list(TWO_HEALTHY)
        assert health(inventory)["pci-0000-02-00-0"] == "Healthy"
        is_healthy = health(inventory)["pci-0000-01-00-0"] == "Healthy"
        assert was_healthy or not is_healthy  # it does not flicker on its way out
        was_healthy = is_healthy
        assert is_healthy == (stage in {"driver", "power"})
    assert [fault.code for fault in inventory.devices[0].faults] == [FaultCode.VANISHED]
    assert inventory.faults == ()


@needs_root
@pytest.mark.parametrize("attribute", ["board_location", "dev", "accelerator_type"])
async def test_a_device_that_vanishes_between_two_reads_costs_nobody_else(
    machine: Machine, attribute: str
) -> None:
    two_boards(machine, "4.23")
    inventory = await seen(machine)
    scanner = scanner_of(machine, timeout_seconds=10.0)
    with machine.wedge(FIRST, attribute) as wedge:
        looking = asyncio.create_task(look(scanner))
        await asyncio.to_thread(wedge.wait)  # the look stands before this attribute …
        machine.pull(FIRST)  # … and all else of the device goes
    inventory = decide(inventory, await looking, POLICY)
    assert list(health(inventory)) == list(TWO_HEALTHY)
    assert health(inventory) == {**TWO_HEALTHY, "pci-0000-01-00-0": "Unhealthy"}
    assert len(inventory.faults) <= 1
    inventory = decide(inventory, await look(scanner), POLICY)
    assert [fault.code for fault in inventory.devices[0].faults] == [FaultCode.VANISHED]
    assert inventory.faults == ()


@needs_root
async def test_an_entry_that_vanishes_before_it_was_ever_known_is_one_fault_for_a_moment(
    machine: Machine,
) -> None:
    two_boards(machine, "4.23")
    scanner = scanner_of(machine, timeout_seconds=10.0)
    with machine.wedge(FIRST, "board_location") as wedge:
        looking = asyncio.create_task(look(scanner))
        await asyncio.to_thread(wedge.wait)
        machine.pull(FIRST)
    inventory = decide(Inventory(), await looking, POLICY)
    assert "" not in health(inventory)
    assert len(inventory.faults) <= 1
    assert decide(inventory, await look(scanner), POLICY).faults == ()


async def test_whatever_moves_meanwhile_a_look_neither_fails_nor_invents(
    machine: Machine,
) -> None:
    machine.load("4.23")
    machine.load("5.3")
    machine.plug(FIRST)
    inventory = await seen(machine)
    scanner = scanner_of(machine)
    over = threading.Event()
    failures: list[BaseException] = []

    def disturb() -> None:
        try:
            while not over.is_set():
                machine.plug(SECOND)
                machine.plug(THIRD, pci_id=HAILO_10H)
                machine.swap_minors(FIRST, SECOND)
                machine.pull(SECOND)
                machine.reload("5.3")
                machine.pull(THIRD)
        except BaseException as error:  # noqa: BLE001 - told to the test below
            failures.append(error)

    known = {"pci-0000-01-00-0", "pci-0000-02-00-0", "pci-0000-03-00-0"}
    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    looks = 0
    try:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            observation = await look(scanner, thorough=looks % 3 == 0)
            inventory = decide(inventory, observation, POLICY)
            assert set(health(inventory)) <= known
            assert all(fault.subject for fault in inventory.faults)
            looks += 1
    finally:
        over.set()
        disturbing.join()
    assert failures == []
    assert looks > 20
    # The link speeds of a device that was pulled while it was looked at are not remembered.
    machine.plug(SECOND)
    machine.plug(THIRD, pci_id=HAILO_10H)
    settled = decide(Inventory(), await look(scanner, thorough=False), POLICY)
    assert settled == await seen(machine)
    assert set(health(settled)) == known


# --- what hangs -----------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("attribute", ["board_location", "dev", "device/vendor"])
async def test_a_hung_device_costs_itself_one_thread_and_one_delay(
    machine: Machine, attribute: str
) -> None:
    two_boards(machine, "4.23")
    machine.plug(THIRD)
    machine.set_attribute(SECOND, "vendor", b"0x1e60\n", of="function")  # a file of its own
    scanner = scanner_of(machine, timeout_seconds=0.4)
    inventory = decide(Inventory(), await look(scanner), POLICY)
    try:
        wedge = machine.wedge(SECOND, attribute)
        hung = wedge.__enter__()
    except CannotWedge as error:
        pytest.skip(str(error))
    try:
        async with loop_stays_awake():
            for _ in range(2):  # the second look knows what to go around
                started_at = time.monotonic()
                inventory = decide(inventory, await look(scanner), POLICY)
                took = time.monotonic() - started_at
                assert health(inventory)["pci-0000-01-00-0"] == "Healthy"
                assert health(inventory)["pci-0000-03-00-0"] == "Healthy"
        assert took < 0.3
        assert hung.seen == 1
        found = [*inventory.faults, *inventory.devices[1].faults]
        assert FaultCode.UNRESPONSIVE in [fault.code for fault in found]
    finally:
        wedge.__exit__(None, None, None)
    await until_well(scanner, inventory)


@needs_root
async def test_a_device_whose_class_entry_hangs_is_unhealthy_and_named(machine: Machine) -> None:
    two_boards(machine, "5.3")
    scanner = scanner_of(machine, timeout_seconds=0.4)
    inventory = decide(Inventory(), await look(scanner), POLICY)
    with machine.wedge(FIRST):
        inventory = decide(inventory, await look(scanner), POLICY)
        fresh = decide(Inventory(), await look(scanner), POLICY)
    assert health(inventory) == {**TWO_HEALTHY, "pci-0000-01-00-0": "Unhealthy"}
    assert [f.code for f in inventory.devices[0].faults] == [FaultCode.UNRESPONSIVE]
    assert inventory.faults == ()
    assert health(fresh) == {"pci-0000-02-00-0": "Healthy"}
    assert codes(fresh) == [(FaultCode.UNRESPONSIVE, "hailo1x/h1x-0")]
    await until_well(scanner, inventory)


async def until_well(scanner: Scanner, inventory: Inventory) -> None:
    """Look until every device is healthy again: the hung thread is let go first."""
    async with asyncio.timeout(10.0):
        while set(health(inventory).values()) != {"Healthy"} or inventory.faults:
            await asyncio.sleep(0.02)
            inventory = decide(inventory, await look(scanner), POLICY)


@needs_root
async def test_every_device_may_hang_and_a_look_still_comes_back(machine: Machine) -> None:
    two_boards(machine, "4.23")
    scanner = scanner_of(machine, timeout_seconds=0.3)
    inventory = decide(Inventory(), await look(scanner), POLICY)
    with machine.wedge(FIRST), machine.wedge(SECOND):
        started_at = time.monotonic()
        inventory = decide(inventory, await look(scanner), POLICY)
        took = time.monotonic() - started_at
    assert set(health(inventory).values()) == {"Unhealthy"}
    assert took < 3.0
    await until_well(scanner, inventory)


# --- the SoC's address in the simulator is none of ours -------------------------------------------


async def test_an_soc_device_has_no_pci_address(machine: Machine) -> None:
    machine.load("integrated-5.2")
    assert machine.entry(SOC) == "hailo_integrated_nnc"
    (device,) = (await seen(machine)).devices
    assert device.address is None
    assert PciAddress.parse(SOC) is None


async def test_a_sysfs_whose_listing_fails_is_a_fault_and_no_exception(machine: Machine) -> None:
    two_boards(machine, "4.23")
    inventory = await seen(machine)
    devices = machine.sys / "bus/pci/devices"
    devices.rename(machine.sys / "bus/pci/away")
    devices.write_bytes(b"")
    try:
        inventory = await seen(machine, inventory)
    except HostError as error:  # pragma: no cover - said in words if it ever comes
        pytest.fail(str(error))
    assert health(inventory) == TWO_HEALTHY
    assert codes(inventory) == [(FaultCode.CLASS_UNREADABLE, str(devices))]
