"""What a hand at the machine can do, as it can be typed: plug, pull, break, mend, ail, cure, swap.

`commands` has these among its own, and `standalone` has little else. Nothing is known here of who
looks on: no agent, no kubelet.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Protocol, TypeVar, get_args

from hailo_agent.sim.generations import HAILO_8, HAILO_10H, HAILO_12L, HAILO_15L
from hailo_agent.sim.machine import Ailment, Breakage, Machine, slot_address

BREAKAGES: Final[tuple[Breakage, ...]] = get_args(Breakage)
LINKS: Final = ("slow-link", "dead-link")
SEEN_AT_ONCE: Final = frozenset({"missing", "symlink", "regular-file", "fifo"})
"""Breakages that change a directory; others are seen when the agent looks for another reason."""

MODULES: Final = {"8": HAILO_8, "10h": HAILO_10H, "12l": HAILO_12L, "15l": HAILO_15L}
_ADDRESS: Final = re.compile(r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_MOST_SLOTS: Final = 255

Words = Sequence[str]


class CannotDo(Exception):
    """Raised when a command cannot be done as it was typed; the text says why."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a hand did: to which slots, and what there is to say of it."""

    addresses: tuple[str, ...]
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand:
    """What is typed after the name, what it is good for, and what it does."""

    arguments: str
    purpose: str
    do: Callable[[Machine, Words], Done]
    least: int
    most: int


class Typed(Protocol):
    """What every command says of how it is typed."""

    @property
    def arguments(self) -> str:
        """What is typed after the name, for people to read."""

    @property
    def least(self) -> int:
        """How many words it takes at least."""

    @property
    def most(self) -> int:
        """How many words it takes at most."""


Command = TypeVar("Command", bound=Typed)


def named(commands: Mapping[str, Command], name: str, words: Words) -> Command:
    """Find a command that can be given so many words.

    Raises:
        CannotDo: there is none of that name, or it is typed otherwise; says how.
    """
    command = commands.get(name)
    if command is None:
        close = get_close_matches(name, commands, n=1)
        hint = f"did you mean {close[0]}?" if close else "help names all there are"
        raise CannotDo(f"there is no command {name!r}; {hint}")
    if not command.least <= len(words) <= command.most:
        raise CannotDo(f"usage: {name} {command.arguments}".rstrip())
    return command


def device_id(address: str) -> str:
    """Name the device in a slot as the agent does."""
    return f"pci-{address.replace(':', '-').replace('.', '-')}"


def find(machine: Machine, text: str) -> str:
    """Find the slot that is meant by an address, a device id or the name of a node.

    Raises:
        CannotDo: none is; says which there are.
    """
    full = _full_address(text)
    for address in machine.addresses:
        if address == full or text.lower() == device_id(address):
            return address
        if text.removeprefix("/dev/") == machine.entries.get(address):
            return address
    entries = machine.entries
    there = [f"{address} ({entries.get(address, '-')})" for address in sorted(machine.addresses)]
    raise CannotDo(f"there is no {text}, only {', '.join(there) or 'empty slots'}")


def _full_address(text: str) -> str | None:
    """Complete an address that may lack its domain; None if it is none."""
    lowered = text.lower()
    if not _ADDRESS.fullmatch(lowered):
        return None
    return lowered if lowered.count(":") > 1 else f"0000:{lowered}"


def _plug(machine: Machine, words: Words) -> Done:
    modules = [word.lower() for word in words if word.lower() in MODULES]
    slots = [word for word in words if word.lower() not in MODULES]
    if len(modules) > 1 or len(slots) > 1:
        raise CannotDo(f"one slot and one module at a time: {HANDS['plug'].arguments}")
    if slots:
        address = _full_address(slots[0])
        if address is None:
            known = ", ".join(MODULES)
            raise CannotDo(f"{slots[0]} is neither a slot like 0000:05:00.0 nor one of {known}")
    else:
        every = (slot_address(number) for number in range(_MOST_SLOTS))
        address = next((slot for slot in every if slot not in machine.addresses), None)
        if address is None:
            raise CannotDo("every slot is taken")
    entry = machine.plug(address, pci_id=MODULES[modules[0] if modules else "8"])
    return Done((address,), f"{address}: {entry or 'no kernel driver serves it'}")


def _pull(machine: Machine, words: Words) -> Done:
    address = find(machine, words[0])
    machine.pull(address)
    return Done((address,))


def _break(machine: Machine, words: Words) -> Done:
    address, how = find(machine, words[0]), words[1].lower()
    for breakage in BREAKAGES:
        if how == breakage:
            machine.break_node(address, breakage)
            return Done((address,))
    if how == "slow-link":
        machine.degrade_link(address)
    elif how == "dead-link":
        machine.lose_link(address)
    else:
        raise CannotDo(f"{how!r} is no way to break it, only {', '.join((*BREAKAGES, *LINKS))}")
    return Done((address,))


def _mend(machine: Machine, words: Words) -> Done:
    address = find(machine, words[0])
    machine.mend(address)
    return Done((address,))


def _ail(machine: Machine, words: Words) -> Done:
    address, name = find(machine, words[0]), words[1].lower()
    ailment = next((each for each in Ailment if each == name), None)
    if ailment is None:
        raise CannotDo(f"{name!r} is nothing that ails a device, only {', '.join(Ailment)}")
    machine.ail(address, ailment)
    return Done((address,))


def _cure(machine: Machine, words: Words) -> Done:
    address = find(machine, words[0])
    machine.cure(address)
    return Done((address,))


def _swap(machine: Machine, words: Words) -> Done:
    addresses = tuple(find(machine, word) for word in words)
    if len(set(addresses)) == 1:
        raise CannotDo("it takes two to swap")
    machine.swap_minors(*addresses)
    return Done(addresses)


HANDS: Final[Mapping[str, Hand]] = {
    "plug": Hand(
        arguments="[ADDRESS] [8|10h|12l|15l]",
        purpose="put a module into a slot: a Hailo-8 into the first free one",
        do=_plug,
        least=0,
        most=2,
    ),
    "pull": Hand(arguments="DEVICE", purpose="take it out", do=_pull, least=1, most=1),
    "break": Hand(
        arguments="DEVICE HOW", purpose="spoil its node or link", do=_break, least=2, most=2
    ),
    "mend": Hand(arguments="DEVICE", purpose="undo that", do=_mend, least=1, most=1),
    "ail": Hand(
        arguments="DEVICE AILMENT",
        purpose="let something ail it, or its link",
        do=_ail,
        least=2,
        most=2,
    ),
    "cure": Hand(
        arguments="DEVICE", purpose="let nothing ail it any more", do=_cure, least=1, most=1
    ),
    "swap": Hand(
        arguments="DEVICE DEVICE",
        purpose="let two of one driver change indices",
        do=_swap,
        least=2,
        most=2,
    ),
}
