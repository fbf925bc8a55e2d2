"""What a cordon is, how it is written and read, and what evidence it makes."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.cordon import (
    MAX_BYTES,
    MAX_CORDONS,
    MAX_REASON_LENGTH,
    Cordon,
    CordonInvalid,
    Cordons,
    Doubt,
    checked_reason,
    cordoned,
    device_id_of,
    document,
    evidence,
    find,
    mentioned,
    parse,
    replaced,
    serialise,
    stamp,
    trouble,
)
from hailo_agent.core.device import DeviceId, PciAddress
from hailo_agent.core.health import Fault, FaultCode, Sensor

ONE, TWO = DeviceId("pci-0000-01-00-0"), DeviceId("pci-0000-02-00-0")
SOC = DeviceId("soc-platform-h1x")
SINCE = "2026-11-22T18:30:00Z"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

addresses = st.builds(
    PciAddress,
    domain=st.integers(0, 0xFFFFFFFF),
    bus=st.integers(0, 0xFF),
    slot=st.integers(0, 0x1F),
    function=st.integers(0, 7),
)
reasons = st.text(max_size=MAX_REASON_LENGTH).map(str.strip).filter(lambda t: t and t.isprintable())
times = st.datetimes(min_value=datetime(1970, 1, 1)).map(  # noqa: DTZ001 - hypothesis wants it so
    lambda naive: stamp(naive.replace(tzinfo=UTC))
)
cordons = st.builds(
    Cordon, device_id=addresses.map(lambda a: a.device_id), reason=reasons, since=times
)
whole_files = st.lists(cordons, max_size=20, unique_by=lambda c: c.device_id)


def cordon(device_id: DeviceId = ONE, reason: str = "hot", since: str = SINCE) -> Cordon:
    return Cordon(device_id=device_id, reason=reason, since=since)


def entry(**changes: object) -> dict[str, Any]:
    return {"device": ONE, "reason": "hot", "since": SINCE, "by": "cli"} | changes


def text_of(*entries: object, **changes: object) -> bytes:
    return json.dumps({"version": 1, "cordons": list(entries)} | changes).encode()


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "device_id"),
    [
        ("pci-0000-01-00-0", ONE),
        ("0000:01:00.0", ONE),
        ("01:00.0", ONE),
        (" 0000:01:00.0\n", ONE),
        ("PCI-0000-01-00-0", ONE),
        ("0000:AB:1F.7", "pci-0000-ab-1f-7"),
        ("pci-0000-AB-1f-7", "pci-0000-ab-1f-7"),
        ("00000001:01:00.0", "pci-0001-01-00-0"),
        ("pci-00000001-01-00-0", "pci-0001-01-00-0"),
        ("10000:01:00.0", "pci-10000-01-00-0"),
        ("soc-platform-h1x", SOC),
    ],
)
def test_a_device_is_named_by_id_or_address_and_has_one_spelling(text: str, device_id: str) -> None:
    assert device_id_of(text) == device_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hailo0",
        "/dev/hailo0",
        "all",
        "pci-0000-01-20-0",  # there are 32 slots
        "0000:01:20.0",
        "pci-0000-01-00",
        "pci-0000-01-00-0-0",
        "pci-0000-01-00-8",
        "0000:01:00.0 0000:02:00.0",
        "pci-",
        "soc-",
        "soc-" + "x" * 60,
        "pci-0000-01-00-0\0",
        "\ud800",
        "x" * 100_000,
    ],
)
def test_what_is_neither_id_nor_address_is_refused_with_value_and_remedy(text: str) -> None:
    with pytest.raises(CordonInvalid) as refused:
        device_id_of(text)
    message = str(refused.value)
    assert repr(text[:60])[:-1] in message
    assert "pci-0000-01-00-0 or 0000:01:00.0" in message
    assert len(message) < 300
    message.encode()


@given(addresses)
def test_every_address_and_its_id_name_the_same_device(address: PciAddress) -> None:
    assert device_id_of(str(address)) == device_id_of(address.device_id) == address.device_id


@given(st.text())
def test_no_text_does_more_than_name_a_device_or_be_refused(text: str) -> None:
    try:
        device_id = device_id_of(text)
    except CordonInvalid:
        return
    assert device_id_of(device_id) == device_id


# --- reasons ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hot", "hot"),
        ("  hot \n", "hot"),
        ("zu heiß, Lüfter 🌀", "zu heiß, Lüfter 🌀"),
        ("x" * MAX_REASON_LENGTH, "x" * MAX_REASON_LENGTH),
    ],
)
def test_a_reason_is_one_printable_line(text: str, reason: str) -> None:
    assert checked_reason(text) == reason


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("two\nlines", "cannot be printed"),
        ("\x1b[31mred", "cannot be printed"),
        ("\u202edrawkcab", "cannot be printed"),
        ("\udcff", "cannot be printed"),
        ("x" * (MAX_REASON_LENGTH + 1), "201 characters"),
    ],
)
def test_no_other_reason_is_taken(text: str, says: str) -> None:
    with pytest.raises(CordonInvalid, match=says) as refused:
        checked_reason(text)
    str(refused.value).encode()
    assert str(refused.value).isprintable()


# --- changing -----------------------------------------------------------------------------------


def test_a_new_cordon_begins_now_in_utc_to_the_second() -> None:
    now = datetime(2026, 11, 22, 19, 30, 5, 999_999, tzinfo=timezone(timedelta(hours=1)))
    made = cordoned(None, ONE, " hot ", now)
    assert made == Cordon(device_id=ONE, reason="hot", since="2026-11-22T18:30:05Z", by="cli")


def test_a_device_cordoned_again_keeps_its_date_and_takes_the_new_reason() -> None:
    again = cordoned(cordon(reason="hot"), ONE, "to be replaced", NOON)
    assert (again.since, again.reason) == (SINCE, "to be replaced")


def test_a_cordon_takes_the_place_of_the_devices_old_one_and_of_no_other() -> None:
    before = (cordon(TWO), cordon(ONE))
    after = replaced(before, ONE, cordon(ONE, "cold"))
    assert after == (cordon(ONE, "cold"), cordon(TWO))
    assert replaced(after, TWO, None) == (cordon(ONE, "cold"),)
    assert replaced((), ONE, None) == ()
    assert find(after, ONE) == cordon(ONE, "cold")
    assert find(after, SOC) is None


# --- the document -------------------------------------------------------------------------------


@given(whole_files)
def test_what_is_written_is_read_back_sorted_whatever_the_order(before: list[Cordon]) -> None:
    after = parse(serialise(before))
    assert sorted(before, key=lambda c: c.device_id) == list(after)
    assert serialise(reversed(after)) == serialise(before)


def test_the_document_is_for_people_too() -> None:
    text = serialise([cordon(TWO, "zu heiß"), cordon(ONE)])
    assert text.decode().splitlines() == [
        "{",
        ' "version": 1,',
        ' "cordons": [',
        f'  {{"device": "{ONE}", "reason": "hot", "since": "{SINCE}", "by": "cli"}},',
        f'  {{"device": "{TWO}", "reason": "zu heiß", "since": "{SINCE}", "by": "cli"}}',
        " ]",
        "}",
    ]
    assert json.loads(text) == document([cordon(ONE), cordon(TWO, "zu heiß")])
    assert parse(serialise([])) == ()


def test_an_editor_may_leave_a_mark_at_the_start_and_the_way_may_be_left_out() -> None:
    written = entry()
    del written["by"]
    assert parse(b"\xef\xbb\xbf" + text_of(written)) == (cordon(),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", ["line 1", "not JSON"]),
        (b'{"version": 1,\n "cordons": [}', ["line 2", "not JSON"]),
        (b'{"version": 1,\n "x\xff": 1}', ["line 2", "UTF-8"]),
        (b"[" * 100_000, ["not JSON"]),
        (b'{"version": ' + b"1" * 5000 + b"}", ["not JSON"]),
        (b" " * (MAX_BYTES + 1), [str(MAX_BYTES)]),
        (b"[]", ["the document = […]", "not an object"]),
        (b"null", ["the document = null", "not an object"]),
        (b'{"version": 1}', ["cordons", "missing"]),
        (b'{"cordons": []}', ["version", "missing"]),
        (b'{"version": 1, "cordons": [], "cordons": []}', ["'cordons'", "twice"]),
        (text_of(version=2), ["version 2", "not known"]),
        (text_of(version=True), ["version = true", "whole number"]),
        (text_of(version=1.0), ["version = 1.0", "whole number"]),
        (text_of(version="1"), ["version = '1'", "whole number"]),
        (text_of(extra={"deep": [1]}), ["extra = {…}", "not known", "remove it"]),
        (text_of(**{"od\nd": 1}), [r"'od\nd' = 1", "not known"]),
        (text_of(cordons={}), ["cordons = {…}", "not a list"]),
        (text_of(cordons=None), ["cordons = null", "not a list"]),
        (text_of("x"), ["cordons[0] = 'x'", "not an object"]),
        (text_of(entry(), entry(device="hailo0")), ["cordons[1].device", "'hailo0'", "neither"]),
        (text_of(entry(device="0000:01:00.0")), ["cordons[0].device", f"write {ONE}"]),
        (text_of(entry(device=7)), ["cordons[0].device = 7", "not text"]),
        (text_of(entry(reason="")), ["cordons[0].reason", "empty"]),
        (text_of(entry(reason=" hot")), ["cordons[0].reason", "blanks"]),
        (text_of(entry(reason="x" * 201)), ["cordons[0].reason", "201 characters", "200"]),
        (text_of(entry(reason="a\nb")), ["cordons[0].reason", r"'a\nb'", "printed"]),
        (text_of(entry(reason=None)), ["cordons[0].reason = null", "not text"]),
        (text_of(entry(since="yesterday")), ["cordons[0].since", "'yesterday'", "UTC"]),
        (text_of(entry(since="2026-02-30T00:00:00Z")), ["cordons[0].since", "2026-02-30"]),
        (text_of(entry(since="2026-11-22T18:30:00+01:00")), ["cordons[0].since", "UTC"]),
        (text_of(entry(by="")), ["cordons[0].by", "empty"]),
        (text_of(entry(by="x" * 64)), ["cordons[0].by", "too long"]),
        (text_of(entry(by="\ud800")), ["cordons[0].by", "cannot be printed"]),
        (text_of(entry(drain="noon")), ["cordons[0].drain = 'noon'", "not known"]),
        (text_of(entry(), entry(reason="cold")), [ONE, "twice"]),
        (text_of(*[entry()] * (MAX_CORDONS + 1)), ["cordons", "too many", str(MAX_CORDONS)]),
    ],
)
def test_a_document_that_is_none_is_refused_with_place_value_and_remedy(
    text: bytes, says: list[str]
) -> None:
    with pytest.raises(CordonInvalid) as refused:
        parse(text)
    message = str(refused.value)
    for part in says:
        assert part in message
    assert refused.value.remedy
    assert len(message) < 400
    assert message.isprintable()


def test_what_would_not_be_read_back_is_not_written() -> None:
    ids = [DeviceId(f"pci-0000-{n >> 5:02x}-{n & 31:02x}-0") for n in range(MAX_CORDONS + 1)]
    assert len(parse(serialise(cordon(i) for i in ids[:-1]))) == MAX_CORDONS
    for many in (
        [cordon(i) for i in ids],
        [cordon(i, "ü" * MAX_REASON_LENGTH) for i in ids[:-1]],
    ):
        with pytest.raises(CordonInvalid, match="more than the file may have"):
            serialise(many)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_do_more_than_be_read_or_be_refused(text: bytes) -> None:
    try:
        parse(text)
    except CordonInvalid as refused:
        str(refused).encode()


@given(
    st.sampled_from(["device", "reason", "since", "by", "version", "cordons", "more"]), json_values
)
def test_no_value_of_a_key_does_more_either(key: str, value: object) -> None:
    written: dict[str, Any] = {"version": 1, "cordons": [entry()]}
    target = written if key in {"version", "cordons"} else written["cordons"][0]
    target[key] = value
    try:
        found = parse(json.dumps(written).encode())
    except CordonInvalid as refused:
        str(refused).encode()
    else:
        assert parse(serialise(found)) == found


# --- a broken document --------------------------------------------------------------------------


@given(whole_files, st.integers(min_value=0))
def test_a_document_cut_anywhere_still_names_every_device_before_the_cut(
    before: list[Cordon], at: int
) -> None:
    text = serialise(before)
    cut = text[: at % (len(text) + 1)]
    found = {c.device_id for c in mentioned(cut)}
    assert found >= {c.device_id for c in before if f'"{c.device_id}"'.encode() in cut}


def test_what_a_broken_document_names_has_neither_reason_nor_date() -> None:
    text = f'{{"version": 1, "cordons": ["{TWO}, "{SOC}" pci-0000-01-ff-0 xpci-0000-01-00-0\xff'
    found = mentioned(text.encode())
    assert found == (cordon(TWO, "", ""), cordon(SOC, "", ""))


def test_however_much_a_broken_document_names_it_is_bounded() -> None:
    text = " ".join(f"soc-{n}" for n in range(50_000)).encode()
    assert len(mentioned(text)) == MAX_CORDONS
    assert mentioned(b"") == ()


# --- evidence -----------------------------------------------------------------------------------


def test_a_cordoned_device_says_why_since_when_and_how_to_lift_it() -> None:
    (fault,) = evidence(ONE, cordon(), 7.0).faults
    assert fault == Fault(
        code=FaultCode.CORDONED,
        subject=ONE,
        message=f"cordoned since {SINCE}: hot",
        remedy=f"`hailo-agent uncordon {ONE}` when it may be offered again",
    )


def test_the_evidence_is_the_operators_and_says_the_same_at_any_time() -> None:
    early, late = evidence(ONE, cordon(), 7.0), evidence(ONE, cordon(), 8.0)
    assert (early.sensor, early.at, late.at) == (Sensor.OPERATOR, 7.0, 8.0)
    assert early.faults == late.faults


def test_no_cordon_shows_that_the_earlier_one_is_lifted() -> None:
    lifted = evidence(ONE, None, 7.0)
    assert (lifted.faults, lifted.unread) == ((), frozenset())


def test_a_cordon_out_of_a_broken_file_says_that_its_reason_cannot_be_read() -> None:
    (fault,) = evidence(ONE, cordon(reason="", since=""), 7.0).faults
    assert fault.code is FaultCode.CORDONED
    assert fault.message == "cordoned: why cannot be read, for the file is broken"
    assert "repair the file" in fault.remedy  # for a broken file is not changed


def test_where_nobody_can_tell_that_is_said_of_the_device() -> None:
    (fault,) = evidence(ONE, Doubt(remedy="repair it"), 7.0).faults
    assert (fault.code, fault.subject) == (FaultCode.CORDONS_UNREADABLE, ONE)
    assert fault.remedy == "repair it"


def test_a_file_in_trouble_is_named_once_with_what_is_wrong_and_what_to_do() -> None:
    fault = trouble("/c.json", CordonInvalid("line 3 is not JSON", remedy="repair it"))
    assert (fault.code, fault.subject) == (FaultCode.CORDONS_UNREADABLE, "/c.json")
    assert Cordons(trouble=fault).error == (
        "/c.json: line 3 is not JSON: what was cordoned before stays cordoned; repair it"
    )
    assert Cordons().error == ""


def test_devices_are_in_doubt_only_while_the_file_could_never_be_read() -> None:
    fault = trouble("/c.json", CordonInvalid("it is a symlink", remedy="put a file there"))
    known = Cordons(entries=(cordon(ONE),), trouble=fault)
    assert (known.get(ONE), known.get(TWO)) == (cordon(ONE), None)
    unknown = Cordons(entries=(cordon(ONE),), trouble=fault, is_complete=False)
    assert unknown.get(ONE) == cordon(ONE)
    assert unknown.get(TWO) == Doubt(remedy="put a file there")
