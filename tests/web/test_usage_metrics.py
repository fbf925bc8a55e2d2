"""What workloads say is told exactly, under the right pod, bounded, and only while it holds."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from hailo_agent.core.device import Device, Holder
from hailo_agent.core.usage import MAX_NETWORKS, DeviceUsage, Direction, NetworkUsage, QueueUsage
from hailo_agent.web.usage_metrics import MAX_NETWORKS_IN_ALL
from tests.web.boards import UNIX_OFFSET, USAGE, Place, board, holder
from tests.web.test_metrics import HOSTILE

DEVICE = board().id
NAMES = {
    "hailo_device_utilisation_ratio",
    "hailo_device_usage_timestamp_seconds",
    "hailo_network_frames_per_second",
    "hailo_network_utilisation_ratio",
    "hailo_network_queue_frames",
    "hailo_network_queue_capacity_frames",
}
EACH = 6
"""Series of one network."""

Told = dict[tuple[str, ...], float]


def told(place: Place) -> Told:
    """Scrape; returns the series of use by name and labels, in order, each there once."""
    found: Told = {}
    for family in parse_text(place.text()):
        for sample in family.samples:
            if sample.name in NAMES:
                key = (sample.name.removeprefix("hailo_"), *sample.labels.values())
                assert key not in found
                found[key] = sample.value
    return found


def used(*devices: Device, usage: DeviceUsage = USAGE) -> Place:
    """Have the workload of each device say the same, to whoever holds it."""
    place = Place(*devices)
    place.usage = {device.id: replace(usage, holders=device.holders) for device in devices}
    return place


def network(name: str) -> NetworkUsage:
    return replace(USAGE.networks[0], network=name)


def networks(*names: str) -> DeviceUsage:
    return replace(USAGE, networks=tuple(map(network, names)))


# --- figures -------------------------------------------------------------------------------------


def test_every_figure_is_what_the_workload_said_under_the_pod_that_holds_the_device() -> None:
    whose = (DEVICE, "vision", "detector-0", "inference", "yolov8m")
    assert told(used(board())) == {
        ("device_utilisation_ratio", DEVICE): 0.75,
        ("device_usage_timestamp_seconds", DEVICE): round(UNIX_OFFSET + 128.25, 1),
        ("network_frames_per_second", *whose): 29.5,
        ("network_utilisation_ratio", *whose): 0.5,
        ("network_queue_frames", *whose, "input"): 5.0,
        ("network_queue_frames", *whose, "output"): 0.0,
        ("network_queue_capacity_frames", *whose, "input"): 8.0,
        ("network_queue_capacity_frames", *whose, "output"): 8.0,
    }


def test_where_nobody_listens_to_workloads_nothing_is_told_of_use() -> None:
    assert told(Place(board(), board(1))) == {}
    assert not [name for name in NAMES if name in Place(board()).text()]


@pytest.mark.parametrize(
    ("usage", "missing"),
    [
        (replace(USAGE, utilisation=None), {("device_utilisation_ratio", "")}),
        (
            replace(USAGE, networks=(replace(network("yolov8m"), frames_per_second=None),)),
            {("network_frames_per_second", "")},
        ),
        (
            replace(USAGE, networks=(replace(network("yolov8m"), utilisation=None),)),
            {("network_utilisation_ratio", "")},
        ),
        (
            replace(USAGE, networks=(replace(network("yolov8m"), frames_per_second=math.nan),)),
            {("network_frames_per_second", "")},
        ),
        (
            replace(
                USAGE,
                networks=(
                    replace(
                        network("yolov8m"),
                        queues=(QueueUsage(stream="in", direction=Direction.INPUT, pending=1),),
                    ),
                ),
            ),
            {
                ("network_queue_frames", "output"),
                ("network_queue_capacity_frames", "input"),
                ("network_queue_capacity_frames", "output"),
            },
        ),
    ],
)
def test_what_hailort_does_not_know_has_no_series(
    usage: DeviceUsage, missing: set[tuple[str, str]]
) -> None:
    gone = told(used(board())).keys() - told(used(board(), usage=usage)).keys()
    assert {(key[0], key[-1] if key[-1] in [*Direction] else "") for key in gone} == missing


def test_nought_is_told_as_nought() -> None:
    idle = replace(network("idle"), frames_per_second=0.0, utilisation=0.0, queues=())
    found = told(used(board(), usage=replace(USAGE, utilisation=0.0, networks=(idle,))))
    assert found.pop(("device_usage_timestamp_seconds", DEVICE))
    assert len(found) == 3
    assert set(found.values()) == {0.0}


# --- whose it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("holders", [(), (holder("a"), holder("b"))])
def test_without_exactly_one_holder_nobody_can_tell_whose_it_is(
    holders: tuple[Holder, ...],
) -> None:
    found = told(used(replace(board(), holders=holders)))
    assert found["network_frames_per_second", DEVICE, "", "", "", "yolov8m"] == 29.5
    assert {key[2:5] for key in found if key[0].startswith("network_")} == {("", "", "")}


def test_what_was_read_under_one_holder_is_not_told_under_the_next() -> None:
    place = used(replace(board(), holders=(holder("first"),)))
    place.show(replace(board(), holders=(holder("second"),)))
    found = told(place)
    assert found["network_frames_per_second", DEVICE, "", "", "", "yolov8m"] == 29.5
    assert {key[2:5] for key in found if key[0].startswith("network_")} == {("", "", "")}


def test_names_of_kubernetes_stay_whole_and_join_with_the_allocation() -> None:
    name = "p" * 253
    place = used(replace(board(), holders=(holder(name),)))
    assert ("network_frames_per_second", DEVICE, "vision", name, "inference", "yolov8m") in told(
        place
    )
    joined = f'device="{DEVICE}",namespace="vision",pod="{name}",container="inference"'
    assert f"hailo_network_frames_per_second{{{joined}," in place.text()


# --- only while it holds -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device",
    [
        replace(board(), devnode=None),
        replace(board(), devnode=None, present_since=math.inf),
        replace(board(), present_since=129.0),
    ],
)
def test_what_was_said_of_a_card_that_is_gone_is_not_told_of_the_slot(device: Device) -> None:
    assert told(used(device)) == {}


def test_a_device_that_the_inventory_has_forgotten_has_no_use() -> None:
    place = used(board(), board(1))
    place.show(board(1))
    assert {key[1] for key in told(place)} == {board(1).id}


def test_pods_and_networks_come_and_go_and_leave_nothing_behind() -> None:
    """Pods with a network each, on four devices; a scrape knows only those of now."""
    chance = random.Random(5)
    place = Place(*map(board, range(4)))
    for pod in range(150):
        alive = [n for n in range(4) if chance.random() < 0.6]
        named = {n: f"pod-{pod}-{n}" for n in alive}
        place.show(
            *(
                replace(
                    board(n), held=n in named, holders=(holder(named[n]),) if n in named else ()
                )
                for n in range(4)
            )
        )
        place.usage = {
            board(n).id: replace(networks(f"net-{pod}-{n}"), holders=(holder(named[n]),))
            for n in alive
        }
        found = told(place)
        assert len(found) == len(alive) * (2 + EACH)
        assert {key[1:6] for key in found if key[0] == "network_frames_per_second"} == {
            (board(n).id, "vision", named[n], "inference", f"net-{pod}-{n}") for n in alive
        }
    place.show(*map(board, range(4)))
    place.usage = {}
    assert told(place) == {}
    assert "net-" not in place.text()


# --- bounded -------------------------------------------------------------------------------------


def test_a_device_has_at_most_so_many_networks_whatever_it_is_said_to_have() -> None:
    many = networks(*(f"n{n:05}" for n in range(10_000)))
    found = told(used(board(), usage=many))
    assert len(found) == 2 + EACH * MAX_NETWORKS
    assert {key[5] for key in found if len(key) > 2} == {f"n{n:05}" for n in range(MAX_NETWORKS)}


def test_a_node_has_at_most_so_many_and_who_has_few_does_not_lose_them() -> None:
    devices = [board(n) for n in range(200)]
    place = Place(*devices)
    greedy = networks(*(f"n{n:02}" for n in range(MAX_NETWORKS)))
    place.usage = {device.id: greedy for device in devices}
    place.usage = {**place.usage, devices[-1].id: networks("only")}
    found = told(place)
    assert sum(key[0].startswith("network_") for key in found) == EACH * MAX_NETWORKS_IN_ALL
    shown = [key[1] for key in found if key[0] == "network_frames_per_second"]
    counts = [shown.count(device.id) for device in devices]
    assert counts[-1] == 1
    assert max(counts[:-1]) - min(counts[:-1]) <= 1
    assert sum(key[0] == "device_utilisation_ratio" for key in found) == 200
    assert found == told(place)  # the same ones the next time


@pytest.mark.parametrize("evil", HOSTILE)
@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_names_of_others_stay_within_their_label(evil: str, accept: str) -> None:
    """The reader refuses most of these; here nothing is left to that."""
    place = used(replace(board(), holders=(holder(evil),)), usage=networks(evil, "honest"))
    body = place.exposition.render(accept)[0]
    assert len(body.splitlines()) == body.count(b"\n")
    parse = openmetrics_parser.text_string_to_metric_families if accept else parse_text
    samples = [sample for family in parse(body.decode()) for sample in family.samples]
    assert [s.value for s in samples if s.name == "hailo_agent_ready"] == [1.0]
    frames = [s.labels for s in samples if s.name == "hailo_network_frames_per_second"]
    cleaned = ["".join(c if c.isprintable() else "?" for c in evil[:most]) for most in (128, 253)]
    assert [labels["network"] for labels in frames] == [cleaned[0], "honest"]
    assert {labels["pod"] for labels in frames} == {cleaned[1]}


def test_names_that_become_the_same_are_told_once() -> None:
    same = networks("net\x00", "net\x01")
    found = told(used(board(), usage=same))
    assert len(found) == 2 + EACH
