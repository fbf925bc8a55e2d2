"""What a workload says of itself: real reports are read, whatever else it may write is refused."""

import math
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.device import PciAddress
from hailo_agent.core.usage import (
    FRESH_SECONDS,
    MAX_BYTES,
    MAX_NETWORKS,
    Direction,
    Load,
    NetworkUsage,
    QueueUsage,
    Usage,
    UsageInvalid,
    decode,
    is_fresh,
    known,
    together,
)
from hailo_agent.wire import monitor

ADDRESS = PciAddress(domain=0, bus=1, slot=0, function=0)
names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=40)


def report(**what: object) -> bytes:
    return bytes(monitor.Report(pid="7", **what))  # type: ignore[arg-type]


def of_one(fps: float = 30.0, percent: float = 25.0, name: str = "yolo") -> bytes:
    load = monitor.NetworkLoad(network=name, frames_per_second=fps, utilisation_percent=percent)
    return report(networks=[load])


def queue(**numbers: int) -> bytes:
    stream = monitor.StreamFrames(stream="in", **numbers)  # type: ignore[arg-type]
    return report(frames=[monitor.NetworkFrames(network="yolo", streams=[stream])])


# --- what is read -------------------------------------------------------------------------------


def test_networks_queues_and_devices_are_read_in_base_units() -> None:
    data = report(
        networks=[
            monitor.NetworkLoad(network="b", frames_per_second=12.5, utilisation_percent=50.0),
            monitor.NetworkLoad(network="a", frames_per_second=30.0, utilisation_percent=25.0),
        ],
        frames=[
            monitor.NetworkFrames(
                network="a",
                streams=[
                    monitor.StreamFrames(
                        stream="a/in",
                        direction=monitor.Direction.HOST_TO_DEVICE,
                        capacity=4,
                        pending=3,
                        pending_min=1,
                        pending_max=4,
                        pending_mean=2.5,
                    ),
                    monitor.StreamFrames(
                        stream="a/out",
                        direction=monitor.Direction.DEVICE_TO_HOST,
                        capacity=8,
                        pending=-1,
                        pending_min=-1,
                        pending_max=-1,
                        pending_mean=-1.0,
                    ),
                ],
            )
        ],
        devices=[
            monitor.DeviceLoad(
                device="0000:01:00.0", utilisation_percent=75.0, architecture="HAILO8"
            ),
            monitor.DeviceLoad(device="[integrated]", utilisation_percent=75.0),
        ],
    )
    assert decode(data) == Usage(
        networks=(
            NetworkUsage(
                network="a",
                frames_per_second=30.0,
                utilisation=0.25,
                queues=(
                    QueueUsage(
                        stream="a/in",
                        direction=Direction.INPUT,
                        capacity=4,
                        pending=3,
                        pending_min=1,
                        pending_max=4,
                        pending_mean=2.5,
                    ),
                    QueueUsage(stream="a/out", direction=Direction.OUTPUT, capacity=8),
                ),
            ),
            NetworkUsage(network="b", frames_per_second=12.5, utilisation=0.5),
        ),
        loads=(Load(address=ADDRESS, utilisation=0.75),),
    )


def test_the_numbers_on_the_wire_are_those_of_hailort() -> None:
    """Bytes put together by hand: what compiles from our own proto agrees with itself anyway."""
    double = struct.Struct("<d").pack
    network = b"\x0a\x01n" + b"\x11" + double(30.0) + b"\x19" + double(50.0)
    stream = b"\x0a\x01s\x10\x01\x18\x04\x20\x03\x28\x01\x30" + b"\xff" * 9 + b"\x01"
    stream += b"\x39" + double(2.0)
    frames = b"\x0a\x01n\x12" + bytes([len(stream)]) + stream
    load = b"\x0a\x0c0000:01:00.0\x11" + double(50.0) + b"\x1a\x06HAILO8"
    data = b"\x0a\x0217"
    for tag, part in ((0x12, network), (0x1A, frames), (0x22, load)):
        data += bytes([tag, len(part)]) + part
    queue = QueueUsage(
        stream="s",
        direction=Direction.OUTPUT,
        capacity=4,
        pending=3,
        pending_min=1,
        pending_max=None,
        pending_mean=2.0,
    )
    assert decode(data) == Usage(
        networks=(
            NetworkUsage(network="n", frames_per_second=30.0, utilisation=0.5, queues=(queue,)),
        ),
        loads=(Load(address=ADDRESS, utilisation=0.5),),
    )
    assert bytes(monitor.Report.parse(data)) == data


def test_a_zero_that_the_wire_leaves_out_is_zero_and_not_absent() -> None:
    [network] = decode(of_one(fps=0.0, percent=0.0)).networks
    assert (network.frames_per_second, network.utilisation) == (0.0, 0.0)
    [waiting] = decode(queue(capacity=4)).networks
    assert (waiting.pending(Direction.INPUT), waiting.capacity(Direction.INPUT)) == (0, 4)


def test_a_side_without_a_queue_has_no_depth() -> None:
    [network] = decode(queue(capacity=4, pending=-1)).networks
    assert network.pending(Direction.INPUT) is None
    assert network.capacity(Direction.OUTPUT) is None


def test_the_queues_of_a_side_are_added_up() -> None:
    one = QueueUsage(stream="1", direction=Direction.INPUT, capacity=4, pending=1)
    other = QueueUsage(stream="2", direction=Direction.INPUT, capacity=2, pending=2)
    network = NetworkUsage(network="n", queues=(one, other))
    assert (network.pending(Direction.INPUT), network.capacity(Direction.INPUT)) == (3, 6)


def test_a_network_that_is_told_twice_is_one() -> None:
    two = [
        NetworkUsage(network="n", frames_per_second=10.0, utilisation=0.75),
        NetworkUsage(network="n", frames_per_second=5.0, utilisation=0.75),
        NetworkUsage(network="m"),
    ]
    assert together(two) == (
        NetworkUsage(network="m"),
        NetworkUsage(network="n", frames_per_second=15.0, utilisation=1.0),
    )
    assert known(together(two), {"m"}) == (NetworkUsage(network="m"),)


@given(
    st.lists(
        st.tuples(names, st.floats(0, 1000), st.floats(0, 100)),
        max_size=8,
        unique_by=lambda t: t[0],
    ),
    st.lists(st.integers(0, 7), max_size=6),
)
def test_whatever_the_compiled_messages_write_is_read_back(
    loads: list[tuple[str, float, float]], waiting: list[int]
) -> None:
    data = report(
        networks=[
            monitor.NetworkLoad(network=name, frames_per_second=fps, utilisation_percent=percent)
            for name, fps, percent in loads
        ],
        frames=[
            monitor.NetworkFrames(
                network=name,
                streams=[
                    monitor.StreamFrames(stream=f"{i}", pending=n) for i, n in enumerate(waiting)
                ],
            )
            for name, _, _ in loads
        ],
    )
    assert decode(data).networks == tuple(
        NetworkUsage(
            network=name,
            frames_per_second=fps,
            utilisation=percent / 100,
            queues=tuple(
                QueueUsage(
                    stream=f"{i}",
                    direction=Direction.INPUT,
                    capacity=0,
                    pending=n,
                    pending_min=0,
                    pending_max=0,
                    pending_mean=0.0,
                )
                for i, n in enumerate(waiting)
            ),
        )
        for name, fps, percent in sorted(loads)
    )


# --- what is not believed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [-1.0, -0.5, math.nan, math.inf, -math.inf, sys.float_info.max, 1e7]
)
def test_a_figure_that_cannot_be_is_absent_and_its_neighbours_stay(number: float) -> None:
    [network] = decode(of_one(fps=number)).networks
    assert (network.frames_per_second, network.utilisation) == (None, 0.25)
    [network] = decode(of_one(percent=number)).networks
    assert (network.frames_per_second, network.utilisation) == (30.0, None)


def test_a_share_is_never_more_than_one() -> None:
    assert decode(of_one(percent=104.0)).networks[0].utilisation == 1.0
    assert decode(of_one(percent=111.0)).networks[0].utilisation is None


@pytest.mark.parametrize("number", [-1, -(2**31), 1_000_001, 2**31 - 1])
def test_a_count_that_cannot_be_is_absent(number: int) -> None:
    [network] = decode(queue(pending=number, capacity=3)).networks
    assert (network.queues[0].pending, network.queues[0].capacity) == (None, 3)


@pytest.mark.parametrize(
    "name", ["", "a\nb", "a\x00", "\x1b[31m", "a\u202eb", "a\u2028b", "x" * 129, "\U000e0041"]
)
def test_a_name_that_cannot_be_shown_spoils_the_file(name: str) -> None:
    with pytest.raises(UsageInvalid):
        decode(of_one(name=name))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing yet"),
        pytest.param(b"\x12\x00", id="no pid"),
        pytest.param(b"\x0a\x01", id="text that is missing"),
        pytest.param(b"\x0a\x017\x12\xff\xff\xff\xff\x0f", id="a length beyond the end"),
        pytest.param(b"\x0a\x017\x12\x02\x0a\x05", id="a length beyond its message"),
        pytest.param(b"\x0a\x017\x0a", id="a field without a value"),
        pytest.param(b"\x08\x07", id="a number for the pid"),
        pytest.param(b"\x0b\x0c", id="a group"),
        pytest.param(b"\x0a\x017\x00\x00", id="field zero"),
        pytest.param(b"\x0a\x017\x20" + b"\xff" * 11, id="a number without end"),
        pytest.param(b"\x0a\x017\x12\x04\x0a\x02\xff\xfe", id="a name that is not UTF-8"),
        pytest.param(b"\x0a\x017\x12\x00", id="a network without a name"),
        pytest.param(b"\x0a\x017" + b"\x72\x00" * 5000, id="any number of fields"),
        pytest.param(b"\x0a" + bytes(MAX_BYTES), id="too many bytes"),
        pytest.param(queue(direction=2), id="neither in nor out"),
        pytest.param(b"root:x:0:0:root:/root:/bin/bash\n", id="another file"),
    ],
)
def test_what_is_no_whole_report_is_refused(data: bytes) -> None:
    with pytest.raises(UsageInvalid):
        decode(data)


def test_more_than_any_real_workload_has_is_refused() -> None:
    def many(count: int) -> bytes:
        return report(networks=[monitor.NetworkLoad(network=f"n{i}") for i in range(count)])

    assert len(decode(many(MAX_NETWORKS)).networks) == MAX_NETWORKS
    with pytest.raises(UsageInvalid, match="networks"):
        decode(many(MAX_NETWORKS + 1))
    stream = monitor.StreamFrames(stream="s")
    with pytest.raises(UsageInvalid, match="queues"):
        decode(report(frames=[monitor.NetworkFrames(network="n", streams=[stream] * 129)]))
    with pytest.raises(UsageInvalid, match="devices"):
        decode(report(devices=[monitor.DeviceLoad(device="0000:01:00.0")] * 17))


def test_fields_of_a_later_version_are_passed_over() -> None:
    later = b"\x48\x05" + b"\x51" + struct.pack("<d", 1.0) + b"\x5d\x00\x00\x00\x00" + b"\x62\x01x"
    assert decode(of_one() + later) == decode(of_one())


@given(st.integers(0))
def test_a_report_cut_short_never_says_what_the_whole_one_does_not(cut: int) -> None:
    whole = of_one(name="a") + of_one(name="b")[3:]
    try:
        usage = decode(whole[: cut % len(whole)])
    except UsageInvalid:
        return
    assert set(usage.networks) < set(decode(whole).networks)


@given(st.binary(max_size=200) | st.builds(lambda tail: b"\x0a\x017" + tail, st.binary()))
def test_no_bytes_at_all_do_harm(data: bytes) -> None:
    try:
        usage = decode(data)
    except UsageInvalid:
        return
    assert all(network.network.isprintable() for network in usage.networks)


@given(st.data())
def test_a_report_with_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(of_one() + queue(pending=2)[3:])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        usage = decode(bytes(whole))
    except UsageInvalid:
        return
    for network in usage.networks:
        assert network.utilisation is None or 0 <= network.utilisation <= 1
        assert network.frames_per_second is None or 0 <= network.frames_per_second <= 1e6


# --- age ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "fresh"),
    [(0.0, True), (1.5, True), (FRESH_SECONDS, True), (3.1, False), (-2.0, True), (-60.0, False)],
)
def test_a_file_tells_of_now_for_three_seconds(age: float, fresh: bool) -> None:  # noqa: FBT001
    assert is_fresh(1000.0 - age, 1000.0) is fresh
