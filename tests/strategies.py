"""The domain, as hypothesis makes it up: the second-best description of it there is.

A node here has a few boards that stay in their slots. A look finds each of them in some way (`How`)
under an entry that changes from look to look; a history is a row of looks with the kubelet's lists
and our own grants in between. Examples are written with the same words: `found(BOARDS[0])` is a
board in good order, `seen(found(BOARDS[0], How.HUNG), at=3.0)` is a look that meets it hung.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from itertools import permutations, product

from hypothesis import strategies as st

from hailo_agent.core.chip import (
    Architecture,
    BoardType,
    Chip,
    Firmware,
    Properties,
    Temperatures,
    Trouble,
)
from hailo_agent.core.cordon import Cordon, Cordons
from hailo_agent.core.device import (
    FAMILIES,
    HAILO_VENDOR,
    Device,
    DeviceId,
    DeviceNumber,
    Devnode,
    Family,
    Holder,
    Identity,
    Model,
    PciAddress,
    PciId,
    Topology,
    soc_device_id,
)
from hailo_agent.core.health import (
    Evidence,
    Fault,
    FaultCode,
    Health,
    Patience,
    Sensor,
    Standards,
)
from hailo_agent.core.inventory import Inventory, Policy, decide
from hailo_agent.core.observation import (
    Holding,
    Holdings,
    NodeKind,
    Observation,
    PciFunction,
    Readings,
    Sighting,
)
from hailo_agent.core.vitals import Aer, Link, Vitals

RESOURCE = "hailo.ai/npu"
OTHER_RESOURCE = "hailo.ai/hailo-10h"

CLASSIC, CLASSIC_SOC, RENAMED, RENAMED_SOC = FAMILIES


# --- what there is -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One accelerator in its place; without an address, the one on the SoC itself."""

    address: PciAddress | None
    pci_id: PciId | None = None
    topology: Topology = field(default_factory=Topology)
    link: Link | None = None

    @property
    def id(self) -> DeviceId:
        """The id it has under whatever name the kernel gives it."""
        return soc_device_id(SOC_PATH) if self.address is None else self.address.device_id

    @property
    def function(self) -> PciFunction | None:
        """The board as the PCI bus shows it."""
        if self.address is None:
            return None
        return PciFunction(
            address=self.address,
            pci_id=self.pci_id,
            topology=self.topology,
            link=self.link,
            driver="hailo",
            driver_version="4.23.0",
        )


SOC_PATH = "/devices/virtual/hailo_chardev/hailo_integrated_nnc"


def _board(bus: int, device: int, numa_node: int, bridge: str) -> Board:
    address = PciAddress(domain=0, bus=bus, slot=0, function=0)
    root = f"pci0000:{numa_node}0"
    return Board(
        address=address,
        pci_id=PciId(HAILO_VENDOR, device),
        topology=Topology(numa_node=numa_node, bridges=(root, bridge)),
        link=Link(speed_gts=8.0, width=4, max_speed_gts=8.0, max_width=4),
    )


BOARDS = (
    _board(0x01, 0x2864, 0, "0000:00:01.0"),
    _board(0x02, 0x2864, 0, "0000:00:01.0"),
    _board(0x03, 0x45C4, 0, "0000:00:02.0"),
    _board(0x81, 0x43A2, 1, "0000:10:01.0"),
)
SOC = Board(address=None)
PHANTOM = DeviceId("pci-0000-7f-00-0")
"""The id of a board that no look ever finds; only the kubelet remembers it."""

IDS = (*(board.id for board in BOARDS), SOC.id, PHANTOM)


# --- what a look finds ---------------------------------------------------------------------------


class How(Enum):
    """In which way one look finds a board."""

    SOUND = "entry, identity and devnode agree"
    NO_NODE = "the devnode is missing"
    LINK = "a symlink stands where the devnode should"
    NO_DEVICE = "a plain file stands where the devnode should"
    OTHER_NUMBER = "the devnode has another number than the entry says"
    INCOMPLETE = "the entry has no number yet"
    BROKEN = "an attribute of the entry cannot be read"
    HUNG = "nothing of the entry can be read in time"
    NAMELESS = "the entry does not tell whose it is, and all else is well"
    BLIND = "the entry is well, its PCI function cannot be read"
    ORPHAN = "the entry is well, its PCI function is gone from the bus"
    UNSERVED = "a PCI function without an entry"
    ABSENT = "no trace"


UNFIT = tuple(
    how
    for how in How
    if how not in {How.SOUND, How.BLIND, How.ORPHAN, How.NAMELESS, How.UNSERVED, How.ABSENT}
)
"""The ways in which an entry is there, and tells by itself that something is wrong with it."""

TELLING = tuple(how for how in UNFIT if how is not How.HUNG)
"""Those of them in which the entry still tells whose it is."""

GONE = (How.UNSERVED, How.ABSENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One board as one look finds it: how, and under which entry and number."""

    board: Board
    how: How
    family: Family
    index: int
    major: int

    @property
    def entry(self) -> str:
        """The name of the class entry, and of the devnode."""
        if self.family.identity is Identity.SYSFS:
            return self.family.devnode
        return f"h1x-{self.index}" if self.family is RENAMED else f"hailo{self.index}"

    @property
    def number(self) -> DeviceNumber:
        """The number the entry tells, if it tells one."""
        return DeviceNumber(self.major, self.index)

    def function(self) -> PciFunction | None:
        """What the PCI bus shows."""
        return None if self.how in {How.BLIND, How.ORPHAN, How.ABSENT} else self.board.function

    def sighting(self) -> Sighting | None:
        """What the class shows."""
        if self.how in GONE:
            return None
        is_soc = self.board.address is None
        whole = Sighting(
            family=self.family,
            entry=self.entry,
            sysfs_path=SOC_PATH
            if is_soc
            else f"/devices/virtual/{self.family.class_name}/{self.entry}",
            number=self.number,
            node=NodeKind.CHARACTER,
            node_number=self.number,
            address=self.board.address,
            accelerator_type=None if is_soc else "1",
            function=self.function(),
            function_is_gone=self.how is How.ORPHAN,
        )
        if self.how is How.INCOMPLETE:
            return replace(whole, number=None, faults=(self._fault(FaultCode.ENTRY_INCOMPLETE),))
        if self.how is How.BROKEN:
            return replace(whole, faults=(self._fault(FaultCode.ENTRY_BROKEN),))
        if self.how is How.HUNG:
            # Its place in sysfs can be read all the same, and from driver 5.3 on that tells whose
            # it is; before, it may.
            return replace(
                whole,
                number=None,
                address=whole.address if self.family is RENAMED else None,
                accelerator_type=None,
                function=None,
                faults=(self._fault(FaultCode.UNRESPONSIVE),),
            )
        if self.how is How.NAMELESS:
            return replace(whole, address=None, sysfs_path="", function=None)
        return replace(whole, **_NODES.get(self.how, {}))  # type: ignore[arg-type]

    def _fault(self, code: FaultCode) -> Fault:
        return Fault(
            code=code,
            subject=f"{self.family.class_name}/{self.entry}",
            message=self.how.value,
            remedy="",
        )


_NODES: dict[How, dict[str, object]] = {
    How.NO_NODE: {"node": NodeKind.MISSING, "node_number": None},
    How.LINK: {"node": NodeKind.SYMLINK, "node_number": None},
    How.NO_DEVICE: {"node": NodeKind.OTHER, "node_number": None},
    How.OTHER_NUMBER: {"node_number": DeviceNumber(1, 3)},
}


def found(
    board: Board,
    how: How = How.SOUND,
    *,
    index: int | None = None,
    family: Family | None = None,
    major: int = 507,
) -> Found:
    """Find a board, where nothing else is said in good order and under its usual name."""
    usual = CLASSIC_SOC if board.address is None else CLASSIC
    position = (*BOARDS, SOC).index(board) if index is None else index
    return Found(board=board, how=how, family=family or usual, index=position, major=major)


def seen(*finds: Found, at: float = 0.0, holdings: Holdings | None = None) -> Observation:
    """Look once, and find this."""
    sightings = [sighting for sighting in (find.sighting() for find in finds) if sighting]
    functions = {
        function.address: function for function in (find.function() for find in finds) if function
    }
    return Observation(
        at=at,
        sightings=tuple(sightings),
        functions=tuple(functions.values()),
        class_names=tuple(sorted({sighting.family.class_name for sighting in sightings})),
        holdings=holdings,
    )


HOLDER = Holder(namespace="default", pod="detector", container="main")
OTHER_HOLDER = replace(HOLDER, pod="counter")


def listed(*device_ids: DeviceId, at: float, resource: str = RESOURCE) -> Holdings:
    """Hear from the kubelet that these devices, and no others, are held."""
    return Holdings(
        at=at,
        entries=tuple(Holding(resource=resource, device_id=d, holder=HOLDER) for d in device_ids),
    )


# --- what is read of it --------------------------------------------------------------------------


class Pulse(Enum):
    """What the kernel tells of a board's PCI function."""

    WELL = "it answers, and nobody has it open"
    USED = "it answers, and somebody has it open"
    DEAD = "its configuration space reads all ones"
    LOOSE = "no kernel driver is bound"
    RESET = "it is disabled"
    NARROW = "its link runs below what it could"
    NOISY = "it counts errors, more with every second"
    BLIND = "nothing of it can be read"
    STUCK = "reading it hangs"


class Answer(Enum):
    """What kernel driver and firmware answer."""

    WELL = "all is well"
    LESSER = "all is well, and it is an 8L"
    REDUCED = "all is well, and it is an 8R"
    WARM = "the chip is hot"
    HOT = "the chip is too hot"
    SLOW = "all is well, but that took long"
    BARE = "it runs no firmware"
    SILENT = "the firmware says nothing"
    GARBLED = "the firmware talks nonsense"
    STUCK = "the kernel driver does not come back"
    FAILED = "the kernel driver fails"
    LOST = "the kernel driver has lost the chip"
    DENIED = "we may not ask"


def vitals(board: Board, pulse: Pulse = Pulse.WELL, *, at: float) -> Vitals:
    """Read what the kernel tells of a board, at this time."""
    if pulse in {Pulse.BLIND, Pulse.STUCK}:
        return Vitals(at=at, hung=pulse is Pulse.STUCK)
    link = board.link
    if pulse is Pulse.NARROW and link is not None:
        link = replace(link, width=1)
    is_dead, is_loose = pulse is Pulse.DEAD, pulse is Pulse.LOOSE
    return Vitals(
        at=at,
        config_vendor=0xFFFF if is_dead else HAILO_VENDOR,
        driver=None if is_loose else "hailo",
        driver_known=True,
        enabled=pulse is not Pulse.RESET,
        link=None if is_dead else link,
        power_state="D0" if pulse is Pulse.USED else "D3hot",
        power_managed=True,
        aer=Aer(correctable=int(at), nonfatal=int(at), fatal=0) if pulse is Pulse.NOISY else Aer(),
    )


_FIRMWARE = Firmware(
    version="4.23.0", architecture=Architecture.HAILO_8, board_name="Hailo-8", serial="1"
)
_FIRMWARE_OF = {
    Answer.LESSER: replace(_FIRMWARE, architecture=Architecture.HAILO_8L, board_name="Hailo-8L"),
    Answer.REDUCED: replace(_FIRMWARE, product_name="HAILO-8R AI ACCELERATOR M.2"),
}
_CELSIUS_OF = {Answer.WARM: 100.0, Answer.HOT: 115.0}
_TROUBLE_OF = {
    Answer.SILENT: Trouble.TIMED_OUT,
    Answer.GARBLED: Trouble.GARBAGE,
    Answer.STUCK: Trouble.HUNG,
    Answer.FAILED: Trouble.FAILED,
    Answer.LOST: Trouble.LOST,
    Answer.DENIED: Trouble.DENIED,
}


def chip(answer: Answer = Answer.WELL, *, at: float) -> Chip:
    """Ask the driver and the firmware of a Hailo-8, at this time."""
    if answer in _TROUBLE_OF:
        return Chip(at=at, trouble=_TROUBLE_OF[answer])
    properties = Properties(board_type=BoardType.HAILO_8, firmware_loaded=answer is not Answer.BARE)
    if answer is Answer.BARE:
        return Chip(at=at, driver="4.23.0", properties=properties)
    celsius = _CELSIUS_OF.get(answer, 50.0)
    return Chip(
        at=at,
        driver="4.23.0",
        properties=properties,
        firmware=_FIRMWARE_OF.get(answer, _FIRMWARE),
        temperatures=Temperatures(ts0_celsius=celsius, ts1_celsius=celsius - 1.0),
        seconds=2.0 if answer is Answer.SLOW else 0.03,
    )


def heard(*codes: FaultCode, at: float) -> Evidence:
    """Hear this, and nothing else, from the firmware until this time."""
    return Evidence(
        sensor=Sensor.NOTIFICATION,
        at=at,
        faults=tuple(
            Fault(code=code, subject="x", message=code.value, remedy="") for code in codes
        ),
    )


def read(look: Observation, readings: Mapping[DeviceId, Readings]) -> Observation:
    """Look, and have these readings beside."""
    return replace(look, readings=readings)


def set_aside(*device_ids: DeviceId) -> Cordons:
    """Cordon these devices, and no others."""
    return Cordons(
        entries=tuple(
            Cordon(device_id=device_id, reason="it squeaks", since="2026-11-22T18:30:00Z")
            for device_id in sorted(device_ids)
        )
    )


PATIENCE = Patience(recovery_seconds=5.0, flap_window_seconds=60.0)
POLICY = Policy(
    standards=Standards(patience=PATIENCE),
    tombstone_seconds=600.0,
    spec_path="/var/run/cdi/hailo.ai-npu.json",
    resources=frozenset({RESOURCE, OTHER_RESOURCE}),
)


def replay(
    history: Iterable[Observation], policy: Policy = POLICY
) -> Iterator[tuple[Inventory, Observation, Inventory]]:
    """Decide look by look; yields what was held true before, the look, and what is after it."""
    before = Inventory()
    for observation in history:
        after = decide(before, observation, policy)
        yield before, observation, after
        before = after


def after(*history: Observation, policy: Policy = POLICY) -> Inventory:
    """Tell what is held to be true after these looks."""
    return [inventory for _, _, inventory in replay(history, policy)][-1]


def only(inventory: Inventory) -> Device:
    """Take the one device there is."""
    (device,) = inventory.devices
    return device


# --- names and places ----------------------------------------------------------------------------


def addresses() -> st.SearchStrategy[PciAddress]:
    """Any PCI address that a kernel could print; domains beyond 16 bits are those of VMD."""
    return st.builds(
        PciAddress,
        domain=st.sampled_from([0, 1, 0xFFFF, 0x10000, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF),
        bus=st.integers(0, 0xFF),
        slot=st.integers(0, 0x1F),
        function=st.integers(0, 7),
    )


def sysfs_paths() -> st.SearchStrategy[str]:
    """Places below sysfs, of any length, in the characters that drivers use."""
    step = st.text("abcxyz019.:,_-@", min_size=1, max_size=24).filter(
        lambda name: any(c.isalnum() for c in name)
    )
    return st.lists(step, min_size=1, max_size=6).map(lambda s: "/devices/" + "/".join(s))


def device_numbers() -> st.SearchStrategy[DeviceNumber]:
    """Numbers as Linux has them: 12 bits of major, 20 of minor."""
    return st.builds(DeviceNumber, st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))


def links() -> st.SearchStrategy[Link]:
    """PCIe links, trained well or badly."""
    speeds, widths = st.sampled_from([2.5, 5.0, 8.0, 16.0]), st.sampled_from([1, 2, 4])
    return st.builds(Link, speed_gts=speeds, width=widths, max_speed_gts=speeds, max_width=widths)


@st.composite
def machines(draw: st.DrawFn, most: int = 9) -> dict[str, Topology]:
    """Up to so many places as real machines have them: a NUMA node per root, or none known."""
    knows_numa = draw(st.booleans())
    places = {}
    for n in range(draw(st.integers(0, most))):
        root = draw(st.integers(0, 2))
        switches = draw(st.sampled_from([(), ("a",), ("a", "b"), ("a", "c"), ("d",)]))
        places[f"npu-{n}"] = Topology(
            numa_node=root // 2 if knows_numa else None,
            bridges=(f"pci0000:{root}0", *switches),
        )
    return places


# --- what may be decided -------------------------------------------------------------------------

_FAULTS = (
    Fault(code=FaultCode.VANISHED, subject="pci-0000-01-00-0", message="is gone", remedy=""),
    Fault(code=FaultCode.VANISHED, subject="pci-0000-01-00-0", message="is away", remedy="wait"),
    Fault(code=FaultCode.DENIED, subject="pci-0000-01-00-0", message="is denied", remedy=""),
    Fault(code=FaultCode.ENTRY_BROKEN, subject="hailo_chardev/hailo0", message="-", remedy=""),
)
_NODES_OF_OLD = (
    Devnode(name="hailo0", number=DeviceNumber(507, 0), class_name="hailo_chardev"),
    Devnode(name="hailo1", number=DeviceNumber(507, 1), class_name="hailo_chardev"),
    Devnode(name="h1x-0", number=DeviceNumber(4095, 1_048_575), class_name="hailo1x"),
)


def fault_sets() -> st.SearchStrategy[tuple[Fault, ...]]:
    """Faults as an inventory has them: one for each code and subject, in order."""

    def key(fault: Fault) -> tuple[str, str]:
        return fault.code, fault.subject

    return st.lists(st.sampled_from(_FAULTS), max_size=3, unique_by=key).map(
        lambda chosen: tuple(sorted(chosen, key=key))
    )


def devices(device_id: DeviceId) -> st.SearchStrategy[Device]:
    """One device in any state that an inventory might tell of it."""
    ill = Health.UNHEALTHY
    return st.builds(
        lambda node, kind, hands: replace(Device(id=device_id), **{**node, **kind, **hands}),
        st.sampled_from(
            [
                *({"devnode": node} for node in _NODES_OF_OLD),
                *({"devnode": _NODES_OF_OLD[0], "health": ill, "faults": (f,)} for f in _FAULTS),
                {"devnode": _NODES_OF_OLD[1], "health": ill, "faults": (_FAULTS[0], _FAULTS[2])},
                {"devnode": None, "health": ill, "faults": (_FAULTS[0],)},
                {"devnode": None, "health": ill, "faults": (replace(_FAULTS[0], since=9.0),)},
            ]
        ),
        st.sampled_from(
            [
                {"resource": None},
                {"resource": OTHER_RESOURCE},
                {"model": Model.HAILO_8, "pci_id": PciId(HAILO_VENDOR, 0x2864)},
                {"model": Model.HAILO_15L, "pci_id": PciId(HAILO_VENDOR, 0x43A2)},
                {"address": PciAddress(0, 1, 0, 0), "topology": BOARDS[0].topology},
                {"address": PciAddress(0, 1, 0, 0), "topology": Topology(numa_node=0)},
                {"link": BOARDS[0].link, "driver": "hailo", "driver_version": "4.23.0"},
                {"link": BOARDS[0].link, "driver": "hailo", "driver_version": None},
            ]
        ),
        st.sampled_from(
            [
                {"held": None},
                {"held": False},
                {"held": True},
                {"held": True, "holders": (HOLDER,)},
                {"held": True, "holders": (OTHER_HOLDER, HOLDER)},
            ]
        ),
    )


_ANY_DEVICE = {device_id: st.none() | devices(device_id) for device_id in sorted(IDS)}


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    """Any inventory of a few devices, whether or not a history leads to it."""
    drawn = [draw(device) for device in _ANY_DEVICE.values()]
    return Inventory(
        devices=tuple(device for device in drawn if device is not None),
        faults=draw(fault_sets()),
        class_names=draw(st.sampled_from([(), ("hailo1x",), ("hailo1x", "hailo_chardev")])),
    )


# --- what may happen -----------------------------------------------------------------------------

PAUSES = (0.0, 0.01, 0.5, 2.0, 4.99, 5.0, 9.0, 10.0, 11.0, 61.0, 700.0)
"""Between two looks, in seconds: about every limit that patience and forgetting know of."""


def policies() -> st.SearchStrategy[Policy]:
    """What operators may want of devices."""
    patterns = st.sampled_from(
        [(), ("pci-0000-01-*",), ("hailo-10h",), ("1e60:43a2",), ("0000:02*",), ("hailo-8l",)]
    )
    return st.builds(
        Policy,
        standards=st.builds(
            Standards,
            patience=st.builds(
                Patience,
                recovery_seconds=st.sampled_from([0.0, 5.0, 100.0]),
                flap_window_seconds=st.sampled_from([0.1, 60.0]),
            ),
            offers_unknown=st.booleans(),
        ),
        tombstone_seconds=st.sampled_from([0.0, 10.0, 600.0]),
        spec_path=st.just(POLICY.spec_path),
        resources=st.just(POLICY.resources),
        allow=st.sampled_from([(), (), ("pci-*",), ("hailo-*", "soc-*")]),
        deny=patterns,
    )


TURNS = tuple(permutations(range(len(BOARDS))))
"""The ways in which indexes may be dealt out."""

_NAMINGS = st.sampled_from(
    tuple(product([507, 509], [(CLASSIC,), (RENAMED,), (CLASSIC, RENAMED)], TURNS))
)
"""A major, the families of a node (by index), and who has which index."""

_EXTRAS = st.sampled_from(
    (
        *[None] * 6,
        *(found(SOC, how) for how in (How.SOUND, How.SOUND, How.NO_NODE, How.HUNG)),
        *((n, how) for n in range(len(BOARDS)) for how in (How.SOUND, How.BROKEN, How.HUNG)),
    )
)
"""What may be there beyond the boards: one on the SoC, or a second entry of one, as while drivers
are swapped."""


@cache
def _how(ways: Sequence[How]) -> st.SearchStrategy[How]:
    return st.sampled_from([How.SOUND] * 4 + list(ways))


@st.composite
def finds(draw: st.DrawFn, ways: Sequence[How]) -> list[Found]:
    """What one look finds of all boards: each in some way, entries dealt out anew."""
    major, families, turn = draw(_NAMINGS)
    hows = [draw(_how(ways)) for _ in BOARDS]
    result = [
        Found(
            board=board,
            how=how,
            family=families[index % len(families)],
            index=index,
            major=major,
        )
        for board, index, how in zip(BOARDS, turn, hows, strict=True)
    ]
    match draw(_EXTRAS):
        case Found() as soc:
            result.append(soc)
        case (int(n), How() as again):
            other = CLASSIC if result[n].family is RENAMED else RENAMED
            result.append(replace(result[n], family=other, index=len(BOARDS), how=again))
    return result


_HELD = (
    (),
    *((device_id,) for device_id in IDS),
    *((board.id, PHANTOM) for board in BOARDS),
    tuple(board.id for board in BOARDS),
)
_LISTS = st.sampled_from(
    (*[None] * 40, *product(_HELD, (HOLDER, OTHER_HOLDER), (0.01, 0.0, -0.5, -9.0)))
)
_GRANTS = st.sampled_from((*[None] * 12, *(board.id for board in BOARDS)))
_FOREIGN = st.sampled_from(
    (*[()] * 3, (("/etc/cdi/x.json", BOARDS[0].id), ("/etc/cdi/x.json", "all")))
)
_STARTS = st.sampled_from([0.0, 1000.0])
_PAUSES = st.sampled_from(PAUSES)


@st.composite
def histories(
    draw: st.DrawFn, ways: Sequence[How] = tuple(How), most: int = 4
) -> list[Observation]:
    """A row of looks in the order of time, with the kubelet's word and our grants in between."""
    look = finds(ways)
    foreign = draw(_FOREIGN)
    at = draw(_STARTS)
    heard: Holdings | None = None
    granted_at: dict[DeviceId, float] = {}
    history = []
    for _ in range(draw(st.integers(1, most))):
        news = draw(_LISTS)
        if news is not None:
            # A list is lately heard, or even during the look.
            device_ids, holder, age = news
            if heard is None or at + age > heard.at:
                heard = _listed(device_ids, holder, at + age)
        granted = draw(_GRANTS)
        if granted is not None:
            granted_at[granted] = at
        history.append(
            replace(
                seen(*draw(look), at=at, holdings=heard),
                granted_at=tuple(granted_at.items()),
                foreign_names=foreign,
            )
        )
        at += draw(_PAUSES)
    return history


_PULSES = st.sampled_from((*[None] * 4, *[Pulse.WELL] * 4, *Pulse))
_ANSWERS = st.sampled_from((*[None] * 6, *[Answer.WELL] * 4, *Answer))
_HEARD = st.sampled_from(
    (
        *[None] * 9,
        (),
        (FaultCode.NOTIFIED_ECC,),
        (FaultCode.NOTIFIED_DATAFLOW,),
        (FaultCode.NOTIFIED_TEMPERATURE, FaultCode.NOTIFIED_CLOCK),
    )
)
_AGES = st.sampled_from((0.0, 0.0, 0.5, 3.0, 12.0))
"""How much older than the look a reading is; another one may have been newer."""

_CORDONS = st.sampled_from(
    (
        *[None] * 8,
        Cordons(),
        *(set_aside(board.id) for board in BOARDS[:2]),
        replace(set_aside(BOARDS[0].id), is_complete=False),
    )
)


@st.composite
def read_histories(
    draw: st.DrawFn, ways: Sequence[How] = tuple(How), most: int = 4
) -> list[Observation]:
    """A history in which boards are read as well, now and then, and set aside.

    What was read of a board stays until it is read again, as the sensors have it.
    """
    known: dict[DeviceId, Readings] = {}
    cordons = Cordons()
    history = []
    for look in draw(histories(ways, most)):
        for board in BOARDS:
            before = known.get(board.id, Readings())
            pulse, answer, news = draw(_PULSES), draw(_ANSWERS), draw(_HEARD)
            at = look.at - draw(_AGES)
            known[board.id] = Readings(
                vitals=before.vitals if pulse is None else vitals(board, pulse, at=at),
                chip=before.chip if answer is None else chip(answer, at=at),
                others=before.others if news is None else (heard(*news, at=at),),
            )
        cordons = draw(_CORDONS) or cordons
        history.append(replace(look, readings=dict(known), cordons=cordons))
    return history


def _listed(device_ids: Iterable[DeviceId], holder: Holder, at: float) -> Holdings:
    """Hear that one container holds all this; the tenth is offered under a name of its own."""
    return Holdings(
        at=at,
        entries=tuple(
            Holding(
                resource=OTHER_RESOURCE if device_id == BOARDS[2].id else RESOURCE,
                device_id=device_id,
                holder=holder,
            )
            for device_id in device_ids
        ),
    )


@st.composite
def reachable(draw: st.DrawFn) -> Inventory:
    """An inventory that some history leads to."""
    return after(*draw(histories()))
