"""`host.vitals` on simulated machines: each driver generation, each disorder, and what hangs.

What is expected is written out here, and not taken from the tables of the agent or the simulator.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from hailo_agent.core.device import PciAddress
from hailo_agent.core.health import FaultCode
from hailo_agent.core.vitals import Aer, HostMemory, Link, Vitals, evidence
from hailo_agent.host import vitals as module
from hailo_agent.host.vitals import VitalsReader, host_memory
from hailo_agent.sim.machine import Ailment, CannotWedge, Machine, Wedge, slot_address
from hailo_agent.sim.machine import Link as SimLink

HAILO_8, HAILO_10H = "1e60:2864", "1e60:45c4"
SLOTS = [slot_address(number) for number in range(8)]
FIRST, SECOND, THIRD = SLOTS[:3]
AT = 12.5
SLOW, DISABLED = FaultCode.LINK_DEGRADED, FaultCode.PCI_DISABLED
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="hung attributes need CAP_SYS_ADMIN")

# Generation: the PCI id that it drives, and the name of its PCI driver.
GENERATIONS = {
    "4.17": (HAILO_8, "hailo"),
    "4.20": (HAILO_8, "hailo"),
    "4.22": (HAILO_8, "hailo"),
    "4.23": (HAILO_8, "hailo"),
    "5.0.0": (HAILO_8, "hailo"),
    "5.0.1": (HAILO_10H, "hailo"),
    "5.1": (HAILO_10H, "hailo1x"),
    "5.2": (HAILO_10H, "hailo1x"),
    "5.3": (HAILO_10H, "hailo1x"),
}

WELL = Vitals(
    at=AT,
    config_vendor=0x1E60,
    driver="hailo",
    driver_known=True,
    enabled=True,
    link=Link(speed_gts=8.0, width=4, max_speed_gts=8.0, max_width=4),
    power_state="D3hot",
    power_managed=True,
    aer=Aer(correctable=0, nonfatal=0, fatal=0),
)


@pytest.fixture
def machine() -> Iterator[Machine]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as directory:
        yield Machine(Path(directory) / "machine")


@pytest.fixture
def boards(machine: Machine) -> Machine:
    """A machine with eight boards on driver 4.23."""
    machine.load("4.23")
    for slot in SLOTS:
        machine.plug(slot)
    return machine


def pci(text: str) -> PciAddress:
    address = PciAddress.parse(text)
    assert address is not None
    return address


def reader_of(machine: Machine, timeout_seconds: float = 5.0) -> VitalsReader:
    return VitalsReader(sys=machine.sys, timeout_seconds=timeout_seconds)


async def read(reader: VitalsReader, *slots: str, at: float = AT) -> list[Vitals]:
    addresses = [pci(slot) for slot in slots]
    found = await reader.read(addresses, at)
    assert list(found) == addresses
    return list(found.values())


async def read_one(machine: Machine, slot: str = FIRST) -> Vitals:
    (vitals,) = await read(reader_of(machine), slot)
    return vitals


def codes(now: Vitals, before: Vitals | None = None) -> set[FaultCode]:
    return {fault.code for fault in evidence("device", now, before).faults}


# --- each generation -----------------------------------------------------------------------------


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_a_generation_shows_exactly_these_vitals(machine: Machine, generation: str) -> None:
    pci_id, driver = GENERATIONS[generation]
    machine.load(generation)
    machine.plug(FIRST, pci_id=pci_id)
    machine.plug(
        SECOND,
        pci_id=pci_id,
        link=SimLink(speed="2.5 GT/s PCIe", width=1, max_speed="5.0 GT/s PCIe", max_width=2),
    )
    slow = Link(speed_gts=2.5, width=1, max_speed_gts=5.0, max_width=2)
    assert await read(reader_of(machine), FIRST, SECOND) == [
        replace(WELL, driver=driver),
        replace(WELL, driver=driver, link=slow),
    ]


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_who_holds_a_device_is_told_by_the_power_state(
    machine: Machine, generation: str
) -> None:
    machine.load(generation)
    machine.plug(FIRST, pci_id=GENERATIONS[generation][0])
    assert (await read_one(machine)).is_in_use is False
    with machine.hold(FIRST):
        assert (await read_one(machine)).is_in_use is True
    assert (await read_one(machine)).is_in_use is False


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_without_power_mode_nobody_can_tell_who_holds_a_device(
    machine: Machine, generation: str
) -> None:
    machine.load(generation, no_power_mode=True)
    machine.plug(FIRST, pci_id=GENERATIONS[generation][0])
    found = await read_one(machine)
    assert (found.power_state, found.power_managed, found.is_in_use) == ("D0", False, None)


async def test_two_drivers_side_by_side_each_have_their_own_power_mode(machine: Machine) -> None:
    machine.load("4.23", no_power_mode=True)
    machine.load("5.3")
    machine.plug(FIRST)
    machine.plug(SECOND, pci_id=HAILO_10H)
    one, other = await read(reader_of(machine), FIRST, SECOND)
    assert (one.driver, one.power_managed) == ("hailo", False)
    assert (other.driver, other.power_managed) == ("hailo1x", True)


# --- what befalls a device -----------------------------------------------------------------------

AILING: dict[Ailment, tuple[dict[str, object], set[FaultCode]]] = {
    Ailment.DEAD_LINK: ({"config_vendor": 0xFFFF, "link": None}, {FaultCode.PCI_DEAD}),
    Ailment.SLOW_LINK: (
        {"link": Link(speed_gts=2.5, width=1, max_speed_gts=8.0, max_width=4)},
        {FaultCode.LINK_DEGRADED},
    ),
    Ailment.DISABLED: ({"enabled": False}, {FaultCode.PCI_DISABLED}),
    Ailment.AER_CORRECTABLE: (
        {"aer": Aer(correctable=1, nonfatal=0, fatal=0)},
        {FaultCode.AER_CORRECTABLE},
    ),
    Ailment.AER_NONFATAL: (
        {"aer": Aer(correctable=0, nonfatal=1, fatal=0)},
        {FaultCode.AER_NONFATAL},
    ),
    Ailment.AER_FATAL: ({"aer": Aer(correctable=0, nonfatal=0, fatal=1)}, {FaultCode.AER_FATAL}),
}


@pytest.mark.parametrize("ailment", Ailment)
async def test_what_ails_one_device_shows_in_its_vitals_and_in_no_others(
    boards: Machine, ailment: Ailment
) -> None:
    reader = reader_of(boards)
    before = await read(reader, *SLOTS)
    boards.ail(SECOND, ailment)
    after = await read(reader, *SLOTS)
    changes, faults = AILING.get(ailment, ({}, set()))
    assert after[1] == replace(WELL, **changes)  # type: ignore[arg-type]
    assert codes(after[1], before[1]) == faults
    assert [after[0], *after[2:]] == [before[0], *before[2:]] == [WELL] * 7

    boards.cure(SECOND)
    (cured,) = await read(reader, SECOND)
    assert codes(cured, after[1]) == set()
    # Errors stay counted.
    assert cured == replace(WELL, aer=after[1].aer)


async def test_an_unbound_function_has_no_driver_and_is_rightly_disabled(boards: Machine) -> None:
    boards.unbind(FIRST)
    found = await read_one(boards)
    assert found == replace(WELL, driver=None, enabled=False, power_state="D0", power_managed=None)
    assert codes(found) == {FaultCode.PCI_UNBOUND}
    assert found.is_in_use is None
    boards.bind(FIRST)
    assert await read_one(boards) == WELL


async def test_a_function_that_another_driver_took_names_it(boards: Machine) -> None:
    boards.usurp(FIRST)
    found = await read_one(boards)
    assert (found.driver, found.driver_known, found.power_managed) == ("vfio-pci", True, None)


async def test_of_an_empty_slot_nothing_is_known(boards: Machine) -> None:
    boards.pull(FIRST)
    found = await read_one(boards)
    assert found == Vitals(at=AT)
    assert codes(found) == set()


@pytest.mark.parametrize("count", [0, 7])
async def test_a_replugged_device_has_errors_no_more(boards: Machine, count: int) -> None:
    boards.count_errors(FIRST, "nonfatal", 7)
    before = await read_one(boards)
    assert before.aer == Aer(correctable=0, nonfatal=7, fatal=0)
    boards.pull(FIRST)
    boards.plug(FIRST)
    if count:
        boards.count_errors(FIRST, "nonfatal", count)
    assert codes(await read_one(boards), before) == set()


async def test_whatever_moves_meanwhile_a_reading_neither_fails_nor_invents(
    boards: Machine,
) -> None:
    reader = reader_of(boards)
    over = asyncio.Event()

    async def disturb() -> None:
        while not over.is_set():
            for step in (boards.unbind, boards.bind, boards.pull, boards.plug):
                await asyncio.to_thread(step, SECOND)

    disturbing = asyncio.create_task(disturb())
    try:
        for number in range(100):
            found = await read(reader, *SLOTS, at=float(number))
            steady = [found[0], *found[2:]]
            assert steady == [replace(WELL, at=float(number))] * 7
            assert found[1].config_vendor in {0x1E60, None}
            assert found[1].driver in {"hailo", None}
            assert not found[1].hung
    finally:
        over.set()
        await disturbing


# --- rubbish -------------------------------------------------------------------------------------

ATTRIBUTES = {
    "config": {"config_vendor": None},
    "enable": {"enabled": None},
    "current_link_speed": {"link": None},
    "current_link_width": {"link": None},
    "max_link_speed": {"link": None},
    "max_link_width": {"link": None},
    "power_state": {"power_state": None},
    "aer_dev_correctable": {"aer": Aer(correctable=None, nonfatal=0, fatal=0)},
    "aer_dev_nonfatal": {"aer": Aer(correctable=0, nonfatal=None, fatal=0)},
    "aer_dev_fatal": {"aer": Aer(correctable=0, nonfatal=0, fatal=None)},
}


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def to_another(path: Path) -> None:
    target = path.with_name("real")
    target.write_bytes(b"\x60\x1e")
    path.symlink_to(target)


RUBBISH: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"\xff"),
    "fifo": os.mkfifo,
    "directory": Path.mkdir,
    "loop": to_itself,
    "link": to_another,
    "dangling": lambda path: path.symlink_to("nowhere"),
}
TEXT_RUBBISH: dict[str, bytes] = {
    "binary": b"\xff\xfe\x00\x80",
    "zeros": b"\0" * 64,
    "huge": b"1" * 10_000_000,
    "negative": b"-1\n",
    "many digits": b"9" * 4000,
    "foreign digits": "\N{ARABIC-INDIC DIGIT ONE}\n".encode(),  # int() would take it
    "words": b"TOTAL_ERR_COR\nTOTAL_ERR_NONFATAL x\nTOTAL_ERR_FATAL -3\n",
}


def spoil(machine: Machine, attribute: str, make: Callable[[Path], object]) -> None:
    path = machine.function_directory(SECOND) / attribute
    path.unlink()
    make(path)


@pytest.mark.parametrize("kind", RUBBISH)
@pytest.mark.parametrize("attribute", ATTRIBUTES)
async def test_an_attribute_that_is_none_costs_what_it_tells_and_nothing_else(
    boards: Machine, attribute: str, kind: str
) -> None:
    spoil(boards, attribute, RUBBISH[kind])
    found = await read(reader_of(boards), *SLOTS)
    assert found[1] == replace(WELL, **ATTRIBUTES[attribute])  # type: ignore[arg-type]
    assert [found[0], *found[2:]] == [WELL] * 7
    assert codes(found[1], WELL) == set()


@pytest.mark.parametrize("kind", TEXT_RUBBISH)
@pytest.mark.parametrize("attribute", [name for name in ATTRIBUTES if name != "config"])
async def test_an_attribute_that_is_no_sense_costs_what_it_tells_and_nothing_else(
    boards: Machine, attribute: str, kind: str
) -> None:
    boards.set_attribute(SECOND, attribute, TEXT_RUBBISH[kind], of="function")
    found = await read(reader_of(boards), *SLOTS)
    expected = replace(WELL, **ATTRIBUTES[attribute])  # type: ignore[arg-type]
    assert found[1] == expected
    assert [found[0], *found[2:]] == [WELL] * 7


@pytest.mark.parametrize(
    ("attribute", "content", "field", "value"),
    [
        ("config", b"\x60\x1e" + b"\0" * 10_000_000, "config_vendor", 0x1E60),
        ("config", b"\xff\xff", "config_vendor", 0xFFFF),
        ("enable", b"2\n", "enabled", True),  # it counts
        ("enable", b"1", "enabled", True),
        ("enable", b"0", "enabled", False),
        ("power_state", b"D3cold\n", "power_state", "D3cold"),
        ("power_state", b"unknown\n", "power_state", "unknown"),
        ("power_state", b"D3 hot\n", "power_state", None),
        ("current_link_speed", b"Unknown speed\n", "link", None),
        (
            "aer_dev_fatal",
            b"DLP 18446744073709551615\nTOTAL_ERR_FATAL 18446744073709551615\n",
            "aer",
            Aer(correctable=0, nonfatal=0, fatal=2**64 - 1),
        ),
        (
            "aer_dev_correctable",  # as a kernel that knows of more errors prints it
            b"RxErr 1\nNewErr 2\nTOTAL_ERR_COR 3\n",
            "aer",
            Aer(correctable=3, nonfatal=0, fatal=0),
        ),
        (
            "aer_dev_correctable",  # another file's
            b"TOTAL_ERR_FATAL 3\n",
            "aer",
            Aer(correctable=None, nonfatal=0, fatal=0),
        ),
    ],
)
async def test_an_attribute_is_read_as_the_kernel_means_it(
    boards: Machine, attribute: str, content: bytes, field: str, value: object
) -> None:
    boards.set_attribute(SECOND, attribute, content, of="function")
    assert await read_one(boards, SECOND) == replace(WELL, **{field: value})  # type: ignore[arg-type]


async def test_a_function_without_error_counters_has_none(boards: Machine) -> None:
    for kind in ("correctable", "nonfatal", "fatal"):
        boards.set_attribute(FIRST, f"aer_dev_{kind}", None, of="function")
    assert await read_one(boards) == replace(WELL, aer=None)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo])
async def test_a_binding_that_is_no_link_is_unknown_and_not_absent(
    boards: Machine, make: Callable[[Path], object]
) -> None:
    spoil(boards, "driver", make)
    found = await read_one(boards, SECOND)
    assert found == replace(WELL, driver=None, driver_known=False, power_managed=None)
    assert codes(found, WELL) == set()


async def test_a_driver_with_a_name_that_is_no_text_is_told_in_text(boards: Machine) -> None:
    spoil(boards, "driver", lambda path: path.symlink_to(os.fsdecode(b"../../h\xffailo\n")))
    found = await read_one(boards, SECOND)
    assert found.driver is not None
    assert found.driver.encode()
    assert found.driver.isprintable()
    assert found.power_managed is None


@pytest.mark.parametrize(
    ("content", "managed"),
    [(b"Y\n", False), (b"N\n", True), (b"1\n", False), (b"0\n", True), (b"?", None), (b"", None)],
)
async def test_the_power_mode_is_that_of_the_modules_parameter(
    boards: Machine, content: bytes, *, managed: bool | None
) -> None:
    parameter = boards.sys / "module/hailo_pci/parameters/no_power_mode"
    parameter.unlink()
    parameter.write_bytes(content)
    assert await read_one(boards) == replace(WELL, power_managed=managed)


async def test_a_machine_without_sysfs_shows_nothing(tmp_path: Path) -> None:
    reader = VitalsReader(sys=tmp_path / "nowhere", timeout_seconds=5.0)
    assert await read(reader, FIRST) == [Vitals(at=AT)]


async def test_nothing_asked_is_nothing_told(boards: Machine) -> None:
    assert await read(reader_of(boards)) == []


# --- what hangs ----------------------------------------------------------------------------------


@contextmanager
def hanging(machine: Machine, slot: str, attribute: str = "config") -> Iterator[Wedge]:
    with ExitStack() as stack:
        try:
            wedge = stack.enter_context(machine.wedge(slot, attribute, of="function"))
        except CannotWedge as error:
            pytest.skip(str(error))
        yield wedge


@needs_root
@pytest.mark.parametrize(
    "attribute", ["config", "enable", "current_link_speed", "power_state", "aer_dev_fatal"]
)
async def test_a_hung_device_is_the_only_one_that_hangs(boards: Machine, attribute: str) -> None:
    reader = reader_of(boards, timeout_seconds=0.4)
    with hanging(boards, SECOND, attribute) as wedge:
        for _ in range(3):  # from the second time on it is gone around
            found = await read(reader, *SLOTS)
            assert found[1] == Vitals(at=AT, hung=True)
            assert [found[0], *found[2:]] == [WELL] * 7
            assert codes(found[1], WELL) == {FaultCode.UNRESPONSIVE}
        assert wedge.seen == 1
    await until_well(reader)


@needs_root
async def test_the_others_do_not_wait_for_those_that_hang(boards: Machine) -> None:
    reader = reader_of(boards, timeout_seconds=600.0)
    with ExitStack() as stack:
        wedges = [stack.enter_context(hanging(boards, slot)) for slot in SLOTS[:-1]]
        reading = asyncio.create_task(read(reader, *SLOTS))
        for wedge in wedges:  # each is arrived at while the ones before it still hang
            await asyncio.to_thread(wedge.wait)
        assert not reading.done()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        # Their threads are remembered: the next reading does not send others after them.
        assert await read(reader, *SLOTS) == [*[Vitals(at=AT, hung=True)] * 7, WELL]
        assert {wedge.seen for wedge in wedges} == {1}
    await until_well(reader)


@needs_root
async def test_every_device_may_hang_and_a_reading_still_comes_back(boards: Machine) -> None:
    reader = reader_of(boards, timeout_seconds=0.3)
    with ExitStack() as stack:
        for slot in SLOTS:
            stack.enter_context(hanging(boards, slot))
        for _ in range(2):
            assert await read(reader, *SLOTS) == [Vitals(at=AT, hung=True)] * len(SLOTS)
    await until_well(reader)


@needs_root
async def test_a_device_that_is_only_slow_is_waited_for(boards: Machine) -> None:
    reader = reader_of(boards, timeout_seconds=30.0)
    with hanging(boards, SECOND) as wedge:
        reading = asyncio.create_task(read(reader, *SLOTS))
        await asyncio.to_thread(wedge.wait)
        await asyncio.sleep(0.3)  # longer than the others wait
        assert not reading.done()
    assert await reading == [WELL] * len(SLOTS)


@needs_root
async def test_with_too_many_hung_the_rest_is_left_alone(
    boards: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_HUNG_DEVICES", 3)
    reader = reader_of(boards, timeout_seconds=0.3)
    with ExitStack() as stack:
        wedges = [stack.enter_context(hanging(boards, slot)) for slot in SLOTS]
        for _ in range(2):
            found = await read(reader, *SLOTS)
            assert found[:3] == [Vitals(at=AT, hung=True)] * 3
            assert found[3:] == [Vitals(at=AT)] * 5
        assert [wedge.seen for wedge in wedges] == [1, 1, 1, 0, 0, 0, 0, 0]
    await until_well(reader)


@needs_root
async def test_a_pulled_device_that_hangs_is_gone_around_until_its_thread_is_back(
    boards: Machine,
) -> None:
    reader = reader_of(boards, timeout_seconds=0.3)
    with hanging(boards, SECOND):
        await read(reader, *SLOTS)
        boards.pull(SECOND)
        found = await read(reader, *SLOTS)
        assert found[1].hung
    boards.plug(SECOND)
    await until_well(reader)


async def until_well(reader: VitalsReader) -> None:
    """Read until all is well: the hung threads are let go first."""
    async with asyncio.timeout(20.0):
        while await read(reader, *SLOTS) != [WELL] * len(SLOTS):  # noqa: ASYNC110 - threads
            await asyncio.sleep(0.02)


# --- this machine --------------------------------------------------------------------------------


def test_every_pci_function_of_this_machine_is_read_without_complaint() -> None:
    devices = Path("/sys/bus/pci/devices")
    vendors = {path.name: (path / "vendor").read_text() for path in devices.glob("*")}
    reader = VitalsReader(sys=Path("/sys"), timeout_seconds=30.0)
    found = asyncio.run(read(reader, *vendors))
    for (name, vendor), vitals in zip(vendors.items(), found, strict=True):
        assert vitals.config_vendor in {int(vendor, 16), 0xFFFF}, name
        assert vitals.driver_known
        assert vitals.enabled is not None
        assert codes(vitals, vitals) <= {FaultCode.PCI_DEAD, FaultCode.PCI_UNBOUND, SLOW, DISABLED}


def test_the_memory_of_this_machine_is_read_as_its_kernel_tells_it() -> None:
    text = Path("/proc/meminfo").read_text()
    assert (host_memory(Path("/proc")) is not None) == ("CmaTotal:" in text)


# --- memory --------------------------------------------------------------------------------------

MEMINFO = """\
MemTotal:        8245284 kB
HugePages_Total:       0
CmaTotal:         {total} kB
CmaFree:          {free} kB
DirectMap4k:      110432 kB
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            MEMINFO.format(total=65536, free=512),
            HostMemory(cma_total_bytes=67_108_864, cma_free_bytes=524_288),
        ),
        (MEMINFO.format(total=0, free=0), HostMemory(cma_total_bytes=0, cma_free_bytes=0)),
        (MEMINFO.format(total=-1, free=0), None),
        (MEMINFO.format(total="9" * 40, free=0), None),
        (MEMINFO.replace("CmaFree", "CmaGone").format(total=1, free=0), None),
        ("MemTotal:        8245284 kB\n", None),
        ("", None),
    ],
)
def test_contiguous_memory_is_read_in_bytes(
    tmp_path: Path, text: str, expected: HostMemory | None
) -> None:
    (tmp_path / "meminfo").write_text(text)
    assert host_memory(tmp_path) == expected


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, to_itself, lambda path: None])
def test_memory_that_cannot_be_read_is_unknown(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "meminfo")
    assert host_memory(tmp_path) is None
