"""Golden frames: what firmware of each generation puts into the kernel driver's mailbox, in hex.

One field a row, held against the vendor's headers; no chip was there to be recorded. Each
generation shows something else: a cool chip, one with nothing in its texts, a throttled one, one
without thresholds, a scorching one, one that draws too much.
"""

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from hailo_agent.core.chip import ChipState, Firmware, Temperatures
from hailo_agent.core.control import ControlRefused, FrameInvalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """The mailbox (MD5, length, message) with the answers of one chip under one driver."""

    driver: str
    identify: bytes
    temperature: bytes
    health: bytes

    @property
    def mailboxes(self) -> tuple[bytes, bytes, bytes]:
        """All three."""
        return self.identify, self.temperature, self.health


def argument(mailbox: bytes) -> bytes:
    """Make of a mailbox what the ioctl leaves in its argument."""
    return mailbox.ljust(1520, b"\0") + struct.pack("<Ii", 1000, 0)


def _mailbox(*rows: str) -> bytes:
    return bytes.fromhex("".join(rows))


_4_17_0: Final = Golden(
    driver="4.17.0",
    identify=_mailbox(
        "f3f8f0be5ef478c6ed1e927b431c4f00be000000"  # MD5, length
        "00000002000000010000000000000000"  # version, acknowledged, sequence, opcode 0
        "000000000000000000000008"  # statuses, number of parameters
        "0000000400000002"  # protocol 2
        "0000000c040000001100000000000000"  # firmware version
        "0000000400000000"  # logger
        "000000204861696c6f2d3800000000000000000000000000000000000000000000000000"  # board name
        "0000000400000001"  # architecture
        "00000010484c4c574d4230323134363030313233"  # serial
        "00000010484d3231384231433246410000000000"  # part number
        "0000002a4841494c4f2d3820414920414343204d2e3220422b4d204b4559204d4f44554c"  # product name
        "45000000000000000000"
    ),
    temperature=_mailbox(
        "f457d42db4d3b5c0d66abad40da16db92a000000"  # MD5, length
        "0000000200000001000000000000002e"  # version, acknowledged, sequence, opcode 46
        "000000000000000000000001"  # statuses, number of parameters
        "0000000a0000fa410000f4410010"  # sensors, samples
    ),
    health=_mailbox(
        "16fb35e7be87ad2da0c046f3679f7e3ba6000000"  # MD5, length
        "0000000200000001000000000000003e"  # version, acknowledged, sequence, opcode 62
        "00000000000000000000000e"  # statuses, number of parameters
        "0000000101"  # overcurrent protection
        "0000000100"  # overcurrent zone
        "00000004003e804e"  # red overcurrent threshold
        "0000000101"  # throttles on overcurrent
        "0000000101"  # throttles when hot
        "0000000100"  # temperature zone
        "00000001ff"  # throttling level
        "000000300000d0420000bc428093dc140000d6420000c24200a3e1110000dc420000c842"  # four levels
        "80b2e60e0000e2420000ce4200c2eb0b"
        "0000000400000068"  # orange from
        "000000040000005e"  # orange until
        "0000000400000078"  # red from
        "000000040000006e"  # red until
        "0000000417d78400"  # overcurrent clock
        "0000000417d78400"  # temperature clock
    ),
)

_4_20_0: Final = Golden(
    driver="4.20.0",
    identify=_mailbox(
        "ac81d83147731338a984610c2170afdebe000000"  # MD5, length
        "00000002000000010000000000000000"  # version, acknowledged, sequence, opcode 0
        "000000000000000000000008"  # statuses, number of parameters
        "0000000400000002"  # protocol 2
        "0000000c040000001400000000000020"  # firmware version
        "0000000400000000"  # logger
        "000000204861696c6f2d3800000000000000000000000000000000000000000000000000"  # board name
        "0000000400000002"  # architecture
        "000000103c4e2f413e0000000000000000000000"  # serial
        "000000103c4e2f413e0000000000000000000000"  # part number
        "0000002a3c4e2f413e000000000000000000000000000000000000000000000000000000"  # product name
        "00000000000000000000"
    ),
    temperature=_mailbox(
        "4705a56edb171e7d2d5b15a58db949942a000000"  # MD5, length
        "0000000200000001000000000000002e"  # version, acknowledged, sequence, opcode 46
        "000000000000000000000001"  # statuses, number of parameters
        "0000000a00408842000086420010"  # sensors, samples
    ),
    health=_mailbox(
        "16fb35e7be87ad2da0c046f3679f7e3ba6000000"  # MD5, length
        "0000000200000001000000000000003e"  # version, acknowledged, sequence, opcode 62
        "00000000000000000000000e"  # statuses, number of parameters
        "0000000101"  # overcurrent protection
        "0000000100"  # overcurrent zone
        "00000004003e804e"  # red overcurrent threshold
        "0000000101"  # throttles on overcurrent
        "0000000101"  # throttles when hot
        "0000000100"  # temperature zone
        "00000001ff"  # throttling level
        "000000300000d0420000bc428093dc140000d6420000c24200a3e1110000dc420000c842"  # four levels
        "80b2e60e0000e2420000ce4200c2eb0b"
        "0000000400000068"  # orange from
        "000000040000005e"  # orange until
        "0000000400000078"  # red from
        "000000040000006e"  # red until
        "0000000417d78400"  # overcurrent clock
        "0000000417d78400"  # temperature clock
    ),
)

_4_23_0: Final = Golden(
    driver="4.23.0",
    identify=_mailbox(
        "b29284b1e3a001308025e20b3ab4957abe000000"  # MD5, length
        "00000002000000010000000000000000"  # version, acknowledged, sequence, opcode 0
        "000000000000000000000008"  # statuses, number of parameters
        "0000000400000002"  # protocol 2
        "0000000c040000001700000000000020"  # firmware version
        "0000000400000000"  # logger
        "000000204861696c6f2d3800000000000000000000000000000000000000000000000000"  # board name
        "0000000400000001"  # architecture
        "00000010484c4c574d4230323134363030313233"  # serial
        "00000010484d3231384231433246410000000000"  # part number
        "0000002a4841494c4f2d3820414920414343204d2e3220422b4d204b4559204d4f44554c"  # product name
        "45000000000000000000"
    ),
    temperature=_mailbox(
        "fcc7d8955ad7588a69a8c4cd999a916e2a000000"  # MD5, length
        "0000000200000001000000000000002e"  # version, acknowledged, sequence, opcode 46
        "000000000000000000000001"  # statuses, number of parameters
        "0000000a0000d5420080d3420010"  # sensors, samples
    ),
    health=_mailbox(
        "fca4d293d80274d36fa91c986ea1c2b6a6000000"  # MD5, length
        "0000000200000001000000000000003e"  # version, acknowledged, sequence, opcode 62
        "00000000000000000000000e"  # statuses, number of parameters
        "0000000101"  # overcurrent protection
        "0000000100"  # overcurrent zone
        "00000004003e804e"  # red overcurrent threshold
        "0000000101"  # throttles on overcurrent
        "0000000101"  # throttles when hot
        "0000000101"  # temperature zone
        "0000000100"  # throttling level
        "000000300000d0420000bc428093dc140000d6420000c24200a3e1110000dc420000c842"  # four levels
        "80b2e60e0000e2420000ce4200c2eb0b"
        "0000000400000068"  # orange from
        "000000040000005e"  # orange until
        "0000000400000078"  # red from
        "000000040000006e"  # red until
        "0000000417d78400"  # overcurrent clock
        "0000000414dc9380"  # temperature clock
    ),
)

_5_0_1: Final = Golden(
    driver="5.0.1",
    identify=_mailbox(
        "1b8c0e517d4421f4260001b5456638f2be000000"  # MD5, length
        "00000002000000010000000000000000"  # version, acknowledged, sequence, opcode 0
        "000000000000000000000008"  # statuses, number of parameters
        "0000000400000002"  # protocol 2
        "0000000c050000000000000001000000"  # firmware version
        "0000000400000000"  # logger
        "000000204861696c6f2d31354c0000000000000000000000000000000000000000000000"  # board name
        "0000000400000004"  # architecture
        "0000001000000000000000000000000000000000"  # serial
        "0000001000000000000000000000000000000000"  # part number
        "0000002a0000000000000000000000000000000000000000000000000000000000000000"  # product name
        "00000000000000000000"
    ),
    temperature=_mailbox(
        "f7f3dffcbf65aa6af033c5f75a2a0c222a000000"  # MD5, length
        "0000000200000001000000000000002e"  # version, acknowledged, sequence, opcode 46
        "000000000000000000000001"  # statuses, number of parameters
        "0000000a0000b0c00000c8c00010"  # sensors, samples
    ),
    health=_mailbox(
        "9c917d4ccf947e850dd8402e91ddb3ffa6000000"  # MD5, length
        "0000000200000001000000000000003e"  # version, acknowledged, sequence, opcode 62
        "00000000000000000000000e"  # statuses, number of parameters
        "0000000101"  # overcurrent protection
        "0000000100"  # overcurrent zone
        "00000004003e804e"  # red overcurrent threshold
        "0000000101"  # throttles on overcurrent
        "0000000101"  # throttles when hot
        "0000000100"  # temperature zone
        "00000001ff"  # throttling level
        "000000300000000000000000000000000000000000000000000000000000000000000000"  # four levels
        "00000000000000000000000000000000"
        "0000000400000000"  # orange from
        "0000000400000000"  # orange until
        "0000000400000000"  # red from
        "0000000400000000"  # red until
        "0000000417d78400"  # overcurrent clock
        "0000000417d78400"  # temperature clock
    ),
)

_5_2_0: Final = Golden(
    driver="5.2.0",
    identify=_mailbox(
        "5a9a48393a1479fdea628753d1d490b2be000000"  # MD5, length
        "00000002000000010000000000000000"  # version, acknowledged, sequence, opcode 0
        "000000000000000000000008"  # statuses, number of parameters
        "0000000400000002"  # protocol 2
        "0000000c050000000200000000000000"  # firmware version
        "0000000400000000"  # logger
        "000000204861696c6f2d3135480000000000000000000000000000000000000000000000"  # board name
        "0000000400000003"  # architecture
        "00000010484c44444c4242323431313030303731"  # serial
        "0000001000000000000000000000000000000000"  # part number
        "0000002a0000000000000000000000000000000000000000000000000000000000000000"  # product name
        "00000000000000000000"
    ),
    temperature=_mailbox(
        "9dcb11fe29c20d4e36d09a81e26fa01d2a000000"  # MD5, length
        "0000000200000001000000000000002e"  # version, acknowledged, sequence, opcode 46
        "000000000000000000000001"  # statuses, number of parameters
        "0000000a0000f5420080f3420010"  # sensors, samples
    ),
    health=_mailbox(
        "c2fa3e216dc7cacdc67aa987f9569da4a6000000"  # MD5, length
        "0000000200000001000000000000003e"  # version, acknowledged, sequence, opcode 62
        "00000000000000000000000e"  # statuses, number of parameters
        "0000000101"  # overcurrent protection
        "0000000100"  # overcurrent zone
        "00000004003e804e"  # red overcurrent threshold
        "0000000101"  # throttles on overcurrent
        "0000000101"  # throttles when hot
        "0000000102"  # temperature zone
        "0000000103"  # throttling level
        "000000300000d0420000bc428093dc140000d6420000c24200a3e1110000dc420000c842"  # four levels
        "80b2e60e0000e2420000ce4200c2eb0b"
        "0000000400000068"  # orange from
        "000000040000005e"  # orange until
        "0000000400000078"  # red from
        "000000040000006e"  # red until
        "0000000417d78400"  # overcurrent clock
        "000000040bebc200"  # temperature clock
    ),
)

_5_3_0: Final = Golden(
    driver="5.3.0",
    identify=_mailbox(
        "1128836b08bdd30d9fe1d25e3bf9b864be000000"  # MD5, length
        "00000002000000010000000000000000"  # version, acknowledged, sequence, opcode 0
        "000000000000000000000008"  # statuses, number of parameters
        "0000000400000002"  # protocol 2
        "0000000c050000000300000000000040"  # firmware version
        "0000000400000000"  # logger
        "000000204861696c6f2d31354c0000000000000000000000000000000000000000000000"  # board name
        "0000000400000004"  # architecture
        "0000001000000000000000000000000000000000"  # serial
        "0000001000000000000000000000000000000000"  # part number
        "0000002a0000000000000000000000000000000000000000000000000000000000000000"  # product name
        "00000000000000000000"
    ),
    temperature=_mailbox(
        "8f932c178c3256ac6adf3a89ebe6508d2a000000"  # MD5, length
        "0000000200000001000000000000002e"  # version, acknowledged, sequence, opcode 46
        "000000000000000000000001"  # statuses, number of parameters
        "0000000a0000504200004e420010"  # sensors, samples
    ),
    health=_mailbox(
        "7fa6c3dc4148a389112c3f6703936fc6a6000000"  # MD5, length
        "0000000200000001000000000000003e"  # version, acknowledged, sequence, opcode 62
        "00000000000000000000000e"  # statuses, number of parameters
        "0000000101"  # overcurrent protection
        "0000000101"  # overcurrent zone
        "00000004003e804e"  # red overcurrent threshold
        "0000000101"  # throttles on overcurrent
        "0000000101"  # throttles when hot
        "0000000100"  # temperature zone
        "00000001ff"  # throttling level
        "000000300000d0420000bc428093dc140000d6420000c24200a3e1110000dc420000c842"  # four levels
        "80b2e60e0000e2420000ce4200c2eb0b"
        "0000000400000068"  # orange from
        "000000040000005e"  # orange until
        "0000000400000078"  # red from
        "000000040000006e"  # red until
        "0000000417d78400"  # overcurrent clock
        "0000000417d78400"  # temperature clock
    ),
)

GOLDEN: Final = (_4_17_0, _4_20_0, _4_23_0, _5_0_1, _5_2_0, _5_3_0)


# --- frames that are wrong -----------------------------------------------------------------------


def sealed(message: bytes) -> bytes:
    """Make of any message a mailbox whose MD5 and length are right."""
    digest = hashlib.md5(message, usedforsecurity=False).digest()
    return digest + struct.pack("<I", len(message)) + message


def mutated(random: Random, mailbox: bytes) -> bytes:
    """Spoil a mailbox in one to three ways, and make an argument of it.

    Most are sealed again, so that what is wrong gets past the MD5.
    """
    message = mailbox[20:]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        message = random.choice(_SPOILERS)(random, message)[:1500]
    spoiled = bytearray(argument(sealed(message)))
    trick = random.randrange(20)
    if trick == 0:  # the MD5 is not that of the message
        spoiled[random.randrange(16)] ^= 1 << random.randrange(8)
    elif trick == 1:  # the length is not that of the message
        spoiled[16:20] = random.choice(_WORDS)
    elif trick == 2:  # not even the ioctl's argument is what it should be
        del spoiled[random.randrange(len(spoiled)) :]
    return bytes(spoiled)


_Spoiler = Callable[[Random, bytes], bytes]

_ORDERS: Final[tuple[Literal["big", "little"], ...]] = ("big", "little")
_NUMBERS: Final = (0, 1, 2, 4, 8, 12, 16, 24, 28, 42, 48, 1500, 1501, 2**31 - 1, 2**31, 2**32 - 1)
_FLOATS: Final = (math.nan, math.inf, -math.inf, 3.4e38, -1e-40, 99.9)
_WORDS: Final = (
    *(number.to_bytes(4, order) for number in _NUMBERS for order in _ORDERS),
    *(struct.pack("<f", number) for number in _FLOATS),
    b"<N/A",
)
"""Numbers on the edge, in either byte order, infinities and what is no number."""


def _flip(random: Random, message: bytes) -> bytes:
    spoiled = bytearray(message)
    for _ in range(random.randint(1, 8)):
        if spoiled:
            spoiled[random.randrange(len(spoiled))] ^= 1 << random.randrange(8)
    return bytes(spoiled)


def _overwrite(random: Random, message: bytes) -> bytes:
    at = random.randrange(len(message) + 1)
    return message[:at] + random.choice(_WORDS) + message[at + 4 :]


def _overwrite_aligned(random: Random, message: bytes) -> bytes:
    at = random.randrange(len(message) // 4 + 1) * 4
    return message[:at] + random.choice(_WORDS) + message[at + 4 :]


def _cut(random: Random, message: bytes) -> bytes:
    return message[: random.randrange(len(message) + 1)]


def _cut_out(random: Random, message: bytes) -> bytes:
    at = random.randrange(len(message) + 1)
    return message[:at] + message[at + random.randint(1, 16) :]


def _append(random: Random, message: bytes) -> bytes:
    return message + random.randbytes(random.randint(1, 64))


def _insert(random: Random, message: bytes) -> bytes:
    at = random.randrange(len(message) + 1)
    return message[:at] + random.choice(_WORDS) + message[at:]


def _splice(random: Random, message: bytes) -> bytes:
    other = random.choice(random.choice(GOLDEN).mailboxes)[20:]
    at = random.randrange(min(len(message), len(other)) + 1)
    return message[:at] + other[at:]


def _rewrite(random: Random, message: bytes) -> bytes:
    """Keep the outer form, and let one parameter hold anything."""
    places = []
    at = 28
    while at + 4 <= len(message):
        (length,) = struct.unpack_from(">I", message, at)
        places.append((at + 4, min(length, len(message) - at - 4)))
        at += 4 + length
    if not places:
        return message
    at, length = random.choice(places)
    data = random.randbytes(length) if random.random() < 0.5 else random.choice(_WORDS)[:length]
    return message[:at] + data + message[at + len(data) :]


def _replace(random: Random, _message: bytes) -> bytes:
    return random.randbytes(random.randrange(1501))


_SPOILERS: Final[tuple[_Spoiler, ...]] = (
    *(_flip, _flip, _overwrite, _overwrite_aligned, _overwrite_aligned),
    *(_cut, _cut_out, _append, _insert, _splice, _replace),
    *(_rewrite, _rewrite, _rewrite, _rewrite, _rewrite, _rewrite),
)


# --- what may come of them -----------------------------------------------------------------------


def is_sane(told: object) -> bool:
    """Whether what came of reading a frame keeps what its type promises."""
    match told:
        case FrameInvalid() | ControlRefused():
            return bool(str(told)) and str(told).isprintable() and len(str(told)) < 100
        case str():
            return all(part.isdigit() for part in told.split("."))
        case Firmware():
            texts = (told.board_name, told.serial, told.part_number, told.product_name)
            return is_sane(told.version) and all(t.isprintable() and len(t) <= 42 for t in texts)
        case Temperatures():
            return -60 <= min(told.ts0_celsius, told.ts1_celsius) <= told.highest_celsius <= 200
        case ChipState():
            thresholds = {told.orange_celsius, told.red_celsius} - {None}
            return (
                told.throttling_level in {None, 0, 1, 2, 3}
                and len(told.throttling_levels) <= 4
                and all(0 < celsius <= 200 for celsius in thresholds if celsius is not None)
            )
    return False
