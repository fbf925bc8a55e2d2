"""Notifications: golden frames of both generations, what they prove, and that none can do harm."""

import struct
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hailo_agent.core.chip import Zone
from hailo_agent.core.control import FrameInvalid
from hailo_agent.core.health import (
    RULES_BY_SENSOR,
    Evidence,
    FaultCode,
    Health,
    History,
    Patience,
    Sensor,
    Standards,
    judge,
)
from hailo_agent.core.ioctls import Ioctls, table
from hailo_agent.core.notifications import (
    ALARM_SECONDS,
    CODE_OF,
    CODES,
    Heard,
    Kind,
    Notification,
    decode,
    evidence,
    remember,
)


def driver(text: str) -> Ioctls:
    found = table(text)
    assert found is not None
    return found


DRIVER_4 = driver("4.23.0")
DRIVER_5 = driver("5.2.0")
FRAME_BYTES = 1508
SILENCE_SECONDS = 300.0
SUBJECT = "pci-0000-01-00-0"


def frame(message: bytes, length: int | None = None) -> bytes:
    """Lay a message out as the driver hands it to its reader."""
    size = len(message) if length is None else length
    return size.to_bytes(8, "little") + message.ljust(1500, b"\0")


def message(event: int, payload: bytes = b"", *, priority: int = 0, sequence: int = 7) -> bytes:
    words = (1, sequence, priority, 3, event, 1, len(payload))
    return b"".join(word.to_bytes(4, "little") for word in words) + payload


GOLDEN = [
    (
        "temperature, red",
        DRIVER_4,
        (
            "01000000 2a000000 01000000 05000000 02000000 04000000 10000000"
            "02000000 00000000 0000f042 0080ef42"
        ),
        Notification(
            kind=Kind.TEMPERATURE,
            critical=True,
            sequence=42,
            zone=Zone.RED,
            detail="sensor 0; 120.0 and 119.8 °C",
        ),
    ),
    (
        "temperature, green again",
        DRIVER_5,
        (
            "01000000 2b000000 00000000 05000000 02000000 04000000 10000000"
            "00000000 01000000 00004842 00004842"
        ),
        Notification(
            kind=Kind.TEMPERATURE,
            critical=False,
            sequence=43,
            zone=Zone.GREEN,
            detail="sensor 1; 50.0 and 50.0 °C",
        ),
    ),
    (
        "dataflow shutdown",
        DRIVER_4,
        "01000000 01000000 01000000 05000000 03000000 02000000 08000000 0000f042 0000f042",
        Notification(
            kind=Kind.DATAFLOW_SHUTDOWN, critical=True, sequence=1, detail="120.0 and 120.0 °C"
        ),
    ),
    (
        "overcurrent, red",
        DRIVER_4,
        "01000000 01000000 01000000 05000000 04000000 04000000 09000000 01000000 00007a45 00",
        Notification(
            kind=Kind.OVERCURRENT,
            critical=True,
            sequence=1,
            zone=Zone.RED,
            detail="the threshold is 4000 mA",
        ),
    ),
    (
        "overcurrent, green again",
        DRIVER_4,
        "01000000 02000000 00000000 05000000 04000000 04000000 09000000 00000000 00007a45 00",
        Notification(
            kind=Kind.OVERCURRENT,
            critical=False,
            sequence=2,
            zone=Zone.GREEN,
            detail="the threshold is 4000 mA",
        ),
    ),
    (
        "overcurrent, the last warning, whatever the zone",
        DRIVER_4,
        "01000000 02000000 00000000 05000000 04000000 04000000 09000000 00000000 00007a45 01",
        Notification(
            kind=Kind.OVERCURRENT,
            critical=False,
            sequence=2,
            zone=Zone.RED,
            detail="the threshold is 4000 mA",
        ),
    ),
    (
        "number 13 of 4.x is an application's business",
        DRIVER_4,
        "01000000 01000000 00000000 05000000 0d000000 01000000 08000000 0100000000000000",
        Notification(kind=Kind.CACHE_OFFSET, critical=False, sequence=1),
    ),
    (
        "number 13 of 5.x is a checksum error",
        DRIVER_5,
        "01000000 01000000 01000000 05000000 0d000000 00000000 00000000",
        Notification(kind=Kind.CRC_ERROR, critical=True, sequence=1),
    ),
    (
        "throttling, with 5.x only",
        DRIVER_5,
        "01000000 01000000 01000000 05000000 0e000000 01000000 02000000 0400",
        Notification(
            kind=Kind.THROTTLING,
            critical=True,
            sequence=1,
            zone=Zone.ORANGE,
            detail="throttling: severe",
        ),
    ),
    (
        "memory errors of the network core",
        DRIVER_4,
        "01000000 09000000 01000000 05000000 06000000 01000000 02000000 0500",
        Notification(kind=Kind.ECC_UNCORRECTABLE, critical=True, sequence=9, detail="clusters 0x5"),
    ),
    (
        "memory errors of the firmware's processor",
        DRIVER_4,
        "01000000 09000000 00000000 05000000 07000000 01000000 04000000 00010000",
        Notification(kind=Kind.CPU_ECC, critical=False, sequence=9, detail="memories 0x100"),
    ),
    (
        "another clock",
        DRIVER_4,
        "01000000 09000000 00000000 05000000 0a000000 02000000 08000000 0084d717 00c2eb0b",
        Notification(
            kind=Kind.CLOCK_CHANGED,
            critical=False,
            sequence=9,
            detail="from 400000000 to 200000000",
        ),
    ),
    (
        "an error at run time, whose fields differ between versions behind the status",
        DRIVER_5,
        (
            "01000000 09000000 01000000 05000000 0c000000 05000000 0d000000"
            "1c000050 01000000 0200 0300 00"
        ),
        Notification(
            kind=Kind.RUN_TIME_ERROR,
            critical=True,
            sequence=9,
            detail="firmware status 0x5000001c",
        ),
    ),
    (
        "an error on receiving",
        DRIVER_4,
        "01000000 09000000 00000000 05000000 00000000 03000000 0c00000002000000 01000000 05000000",
        Notification(
            kind=Kind.RX_ERROR,
            critical=False,
            sequence=9,
            detail="error 0x2 in queue 1, 5 so far",
        ),
    ),
]


@pytest.mark.parametrize(
    ("ioctls", "text", "expected"),
    [row[1:] for row in GOLDEN],
    ids=[row[0] for row in GOLDEN],
)
def test_a_frame_is_understood(ioctls: Ioctls, text: str, expected: Notification) -> None:
    assert decode(frame(bytes.fromhex(text)), ioctls) == expected


def test_every_number_has_its_kind() -> None:
    payload = bytes(20)
    kinds_4 = [decode(frame(message(n, payload)), DRIVER_4).kind for n in range(14)]
    kinds_5 = [decode(frame(message(n, payload)), DRIVER_5).kind for n in range(15)]
    assert kinds_4[:13] == kinds_5[:13]
    assert {*kinds_4, *kinds_5} == set(Kind)
    assert len({*kinds_5}) == 15


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b"", "0 bytes"),
        (frame(message(2))[:-1], "1507 bytes"),
        (frame(message(2), length=0), "only 0 bytes"),
        (frame(message(2), length=27), "only 27 bytes"),
        (frame(message(2), length=1501), "claims 1501 bytes of 1500"),
        (frame(b"", length=2**64 - 1), "claims 18446744073709551615 bytes"),
        (frame(message(2, bytes(16), priority=2)), "priority 2"),
        (frame(message(2, bytes(16)), length=43), "claims 16 bytes of 15"),
        (frame(message(2, bytes(15))), "15 bytes instead of 16"),
        (frame(message(14, bytes(2))), r"notification 14 is none that driver 4\.23\.0 has"),
        (frame(message(2**32 - 1)), "notification 4294967295"),
        (frame(message(2, b"\3" + bytes(15))), "temperature zone 3"),
        (frame(message(4, b"\3" + bytes(8))), "overcurrent zone 3"),
        (frame(struct.pack(">7I", 1, 7, 1, 3, 2, 4, 16) + bytes(16)), "priority 16777216"),
    ],
)
def test_a_damaged_frame_is_refused_with_a_reason(damaged: bytes, why: str) -> None:
    with pytest.raises(FrameInvalid, match=why):
        decode(damaged, DRIVER_4)


def test_a_state_of_throttling_that_nobody_knows_is_refused() -> None:
    with pytest.raises(FrameInvalid, match="throttling state 7"):
        decode(frame(message(14, b"\7\0")), DRIVER_5)


@pytest.mark.parametrize(
    ("state", "zone"), [(0, Zone.GREEN), (1, Zone.ORANGE), (4, Zone.ORANGE), (5, Zone.RED)]
)
def test_throttling_tells_how_bad_it_is(state: int, zone: Zone) -> None:
    assert decode(frame(message(14, bytes([state, 0]))), DRIVER_5).zone is zone


@st.composite
def nearly_frames(draw: st.DrawFn) -> bytes:
    """Frames that get past the first checks, and go wrong, if at all, further in."""
    payload = draw(st.binary(max_size=40))
    words = [
        draw(st.integers(0, 3)),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(0, 2)),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(0, 16) | st.integers(0, 2**32 - 1)),
        draw(st.integers(0, 6)),
        len(payload) + draw(st.integers(-1, 1) if payload else st.just(0)),
    ]
    body = struct.pack("<7I", *words) + payload
    return frame(body, length=draw(st.just(len(body)) | st.integers(0, 2**64 - 1)))


@given(
    nearly_frames()
    | st.binary(min_size=FRAME_BYTES, max_size=FRAME_BYTES)
    | st.binary(max_size=FRAME_BYTES + 9),
    st.sampled_from([driver("4.6.0"), DRIVER_4, driver("5.0.0"), DRIVER_5]),
)
@example(frame(message(2, struct.pack("<IIff", 1, 0, float("nan"), float("inf")))), DRIVER_4)
@example(frame(message(4, struct.pack("<If?", 1, float("-inf"), False))), DRIVER_4)  # noqa: FBT003
def test_no_frame_can_do_harm(damaged: bytes, ioctls: Ioctls) -> None:
    try:
        said = decode(damaged, ioctls)
    except FrameInvalid as refusal:
        assert 0 < len(str(refusal)) < 200  # noqa: PT017 - either outcome is good
        return
    assert said.kind in Kind
    assert len(said.detail) < 200
    assert said.detail.isprintable()
    heard = remember({}, said, 5.0).values()
    shown = evidence(SUBJECT, heard, at=5.0, since=0.0, silence_seconds=SILENCE_SECONDS)
    assert bool(shown.faults) == (said.kind in CODE_OF and said.zone is not Zone.GREEN)


# --- what is proved ------------------------------------------------------------------------------


def said(kind: Kind, zone: Zone | None = None, detail: str = "") -> Notification:
    return Notification(kind=kind, critical=False, sequence=0, zone=zone, detail=detail)


def heard(*notifications: Notification, at: float = 0.0) -> tuple[Heard, ...]:
    known: dict[Kind, Heard] = {}
    for notification in notifications:
        known = dict(remember(known, notification, at))
    return tuple(known.values())


def shown(known: Iterable[Heard], *, at: float, since: float | None = 0.0) -> dict[FaultCode, str]:
    found = evidence(SUBJECT, known, at=at, since=since, silence_seconds=SILENCE_SECONDS)
    return {fault.code: fault.message for fault in found.faults}


ZONES: dict[Kind, tuple[Zone | None, ...]] = {
    Kind.TEMPERATURE: (Zone.ORANGE, Zone.RED),
    Kind.OVERCURRENT: (Zone.RED,),
    Kind.THROTTLING: (Zone.ORANGE, Zone.RED),
}


@pytest.mark.parametrize("kind", sorted(CODE_OF))
def test_every_kind_that_matters_is_a_fault_with_a_remedy(kind: Kind) -> None:
    for zone in ZONES.get(kind, (None,)):
        found = evidence(
            SUBJECT,
            heard(said(kind, zone, "measured")),
            at=1.0,
            since=0.0,
            silence_seconds=SILENCE_SECONDS,
        )
        (fault,) = found.faults
        assert fault.code is CODE_OF[kind]
        assert fault.subject == SUBJECT
        assert fault.message
        assert fault.remedy
        assert fault.evidence == "measured; heard once"


def test_every_code_of_the_sensor_has_its_kind() -> None:
    assert set(CODE_OF.values()) == CODES == set(RULES_BY_SENSOR[Sensor.NOTIFICATION])


@pytest.mark.parametrize("kind", sorted(set(Kind) - set(CODE_OF)))
def test_what_concerns_the_application_alone_is_no_fault(kind: Kind) -> None:
    assert shown(heard(said(kind)), at=0.0) == {}


@pytest.mark.parametrize("kind", sorted(ZONES))
def test_green_clears_an_alarm(kind: Kind) -> None:
    worst = ZONES[kind][-1]
    assert shown(heard(said(kind, worst)), at=1.0).keys() == {CODE_OF[kind]}
    assert shown(heard(said(kind, worst), said(kind, Zone.GREEN)), at=1.0) == {}


def test_green_clears_its_own_alarm_only() -> None:
    known = heard(
        said(Kind.TEMPERATURE, Zone.RED),
        said(Kind.OVERCURRENT, Zone.RED),
        said(Kind.DATAFLOW_SHUTDOWN),
        said(Kind.TEMPERATURE, Zone.GREEN),
    )
    assert shown(known, at=1.0).keys() == {
        FaultCode.NOTIFIED_OVERCURRENT,
        FaultCode.NOTIFIED_DATAFLOW,
    }


def test_silence_clears_what_has_no_all_clear_but_not_an_alarm() -> None:
    known = heard(said(Kind.ECC_UNCORRECTABLE), said(Kind.TEMPERATURE, Zone.RED), at=10.0)
    assert len(shown(known, at=309.9)) == 2
    assert shown(known, at=310.0).keys() == {FaultCode.NOTIFIED_TEMPERATURE}
    assert shown(known, at=10.0 + ALARM_SECONDS) == {}, "an all-clear may have been lost"


def test_while_nobody_listens_nothing_is_proved_and_silence_does_not_count() -> None:
    known = heard(said(Kind.ECC_UNCORRECTABLE), at=10.0)
    deaf = evidence(SUBJECT, known, at=1000.0, since=None, silence_seconds=SILENCE_SECONDS)
    assert deaf == Evidence(sensor=Sensor.NOTIFICATION, at=1000.0, unread=CODES)
    assert shown(known, at=1001.0, since=1000.0).keys() == {FaultCode.NOTIFIED_ECC_FATAL}
    assert shown(known, at=1300.0, since=1000.0) == {}


def test_the_words_stay_while_measurements_and_counts_go_on() -> None:
    first = heard(said(Kind.TEMPERATURE, Zone.ORANGE, "101.0 °C"))
    later = heard(*[said(Kind.TEMPERATURE, Zone.ORANGE, "104.0 °C")] * 3)
    (before,) = evidence(SUBJECT, first, at=1.0, since=0.0, silence_seconds=SILENCE_SECONDS).faults
    (after,) = evidence(SUBJECT, later, at=2.0, since=0.0, silence_seconds=SILENCE_SECONDS).faults
    assert before == after
    assert (before.evidence, after.evidence) == ("101.0 °C; heard once", "104.0 °C; heard 3 times")


def test_orange_and_red_are_told_apart() -> None:
    orange = shown(heard(said(Kind.TEMPERATURE, Zone.ORANGE)), at=0.0)
    assert orange != shown(heard(said(Kind.TEMPERATURE, Zone.RED)), at=0.0)


def test_a_dataflow_shutdown_takes_a_device_away_until_silence_gives_it_back() -> None:
    standards = Standards(patience=Patience(recovery_seconds=0.0, flap_window_seconds=60.0))
    known = heard(said(Kind.DATAFLOW_SHUTDOWN), at=10.0)
    health, history = Health.HEALTHY, History()
    states = []
    for at, since in ((10.0, 0.0), (200.0, 0.0), (500.0, None), (600.0, 590.0), (900.0, 590.0)):
        reading = evidence(SUBJECT, known, at=at, since=since, silence_seconds=SILENCE_SECONDS)
        verdict = judge(
            SUBJECT, [reading], at=at, before=health, history=history, standards=standards
        )
        health, history = verdict.health, verdict.history
        states.append(health)
    assert states == [Health.UNHEALTHY] * 4 + [Health.HEALTHY]
