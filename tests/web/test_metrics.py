"""What is told at /metrics: exact, bounded, and absent where nobody can tell."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from hailo_agent.aio.supervise import State, Status
from hailo_agent.core.chip import Zone
from hailo_agent.core.device import Device, Holder, Topology
from hailo_agent.core.health import Fault, FaultCode, Health, Severity
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames
from hailo_agent.core.vitals import Aer
from hailo_agent.web import exposition
from hailo_agent.web.definitions import DEFINITIONS, Type
from hailo_agent.web.exposition import OPENMETRICS, TEXT, prefers_openmetrics
from tests.strategies import inventories
from tests.web.boards import (
    CHIP,
    FIRMWARE,
    RESOURCE,
    STATE,
    UNIX_OFFSET,
    USAGE,
    VITALS,
    Place,
    board,
    holder,
)

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

Parse = Callable[[str], Iterable[Metric]]
parse_openmetrics: Parse = openmetrics_parser.text_string_to_metric_families

DEVICE = "pci-0000-01-00-0"


def series(text: str) -> Series:
    """Read what Prometheus would: every series once, with its figure."""
    found: Series = {}
    for family in parse_text(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def of(found: Series, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def names(found: Series) -> set[str]:
    return {name for name, _ in found}


def about_device(found: Series, device: str = DEVICE) -> Series:
    return {key: value for key, value in found.items() if ("device", device) in key[1]}


def full() -> Series:
    return series(Place(board()).text())


# --- figures -------------------------------------------------------------------------------------


def test_every_figure_of_a_device_is_what_its_sensors_said() -> None:
    told = {
        (name.removeprefix("hailo_device_"), *sorted(v for k, v in labels if k != "device")): value
        for (name, labels), value in about_device(full()).items()
        if name not in {"hailo_device_info", "hailo_device_allocation"}
    }
    assert told == {
        ("present",): 1.0,
        ("usable",): 1.0,
        ("health", "Healthy"): 1.0,
        ("health", "Degraded"): 0.0,
        ("health", "Unknown"): 0.0,
        ("health", "Unhealthy"): 0.0,
        ("health_changed_timestamp_seconds",): UNIX_OFFSET + 100.0,
        ("held",): 1.0,
        ("in_use",): 1.0,
        ("power_state", "D0"): 1.0,
        ("temperature_celsius", "ts0"): 109.25,
        ("temperature_celsius", "ts1"): 108.5,
        ("temperature_limit_celsius", "orange"): 104.0,
        ("temperature_limit_celsius", "red"): 120.0,
        ("throttling_level",): 2.0,
        ("overcurrent",): 1.0,
        ("link_transfers_per_second",): 5e9,
        ("link_max_transfers_per_second",): 8e9,
        ("link_lanes",): 2.0,
        ("link_max_lanes",): 4.0,
        ("aer_errors_total", "correctable"): 7.0,
        ("aer_errors_total", "nonfatal"): 1.0,
        ("aer_errors_total", "fatal"): 0.0,
        ("query_duration_seconds",): 0.03125,
        ("reading_timestamp_seconds", "vitals"): UNIX_OFFSET + 110.0,
        ("reading_timestamp_seconds", "query"): UNIX_OFFSET + 120.0,
        ("reading_timestamp_seconds", "notification"): UNIX_OFFSET + 105.0,
        ("reading_timestamp_seconds", "hailortcli"): UNIX_OFFSET + 101.5,
    }


def test_a_device_says_what_it_is_and_where() -> None:
    labels = {
        "device": DEVICE,
        "resource": RESOURCE,
        "model": "hailo-8",
        "product": "HAILO-8 AI ACC M.2 M KEY MODULE",
        "part_number": "HM218B1C2FAE",
        "serial": "HLLWM2B233102784",
        "firmware": "4.23.0",
        "driver": "hailo",
        "driver_version": "4.23.0",
        "pci_address": "0000:01:00.0",
        "numa_node": "1",
        "pcie_root": "pci0000:00",
        "devnode": "hailo0",
    }
    assert of(full(), "hailo_device_info", **labels) == 1.0


def test_what_is_not_known_of_a_device_is_an_empty_label() -> None:
    bare = Device(id=board().id, present_since=math.inf)
    (labels,) = (
        dict(labels) for name, labels in series(Place(bare).text()) if name == "hailo_device_info"
    )
    assert {name: value for name, value in labels.items() if value} == {
        "device": DEVICE,
        "resource": RESOURCE,
        "model": "unknown",
    }


def test_every_holder_of_a_device_has_a_series_of_its_own() -> None:
    shared = replace(
        board(), holders=(holder("a"), holder("b"), replace(holder("b"), container=""))
    )
    found = series(Place(shared).text())
    holders = [dict(labels) for name, labels in found if name == "hailo_device_allocation"]
    assert sorted((h["namespace"], h["pod"], h["container"], h["resource"]) for h in holders) == [
        ("vision", "a", "inference", RESOURCE),
        ("vision", "b", "", RESOURCE),
        ("vision", "b", "inference", RESOURCE),
    ]


def test_each_fault_that_stands_is_one_series_whatever_it_is_about() -> None:
    fault = Fault(code=FaultCode.ENTRY_VANISHED, subject="a", message="-", remedy="")
    ill = replace(
        board(),
        health=Health.UNHEALTHY,
        fit=False,
        faults=(
            fault,
            replace(fault, subject="b"),
            replace(fault, code=FaultCode.LINK_DEGRADED, severity=Severity.DEGRADED),
        ),
    )
    found = about_device(series(Place(ill).text()))
    assert {
        tuple(sorted(labels)): value
        for (name, labels), value in found.items()
        if name == "hailo_device_fault"
    } == {
        (("code", "entry.vanished"), ("device", DEVICE), ("severity", "fatal")): 1.0,
        (("code", "link.degraded"), ("device", DEVICE), ("severity", "degraded")): 1.0,
    }
    assert of(found, "hailo_device_health", device=DEVICE, health="Unhealthy") == 1.0
    assert of(found, "hailo_device_health", device=DEVICE, health="Healthy") == 0.0
    assert of(found, "hailo_device_usable", device=DEVICE) == 0.0


def test_at_full_clock_and_normal_current_the_figures_are_zero() -> None:
    calm = replace(STATE, throttling_level=None, overcurrent_zone=Zone.GREEN)
    found = series(Place(replace(board(), chip=replace(CHIP, state=calm))).text())
    assert of(found, "hailo_device_throttling_level", device=DEVICE) == 0.0
    assert of(found, "hailo_device_overcurrent", device=DEVICE) == 0.0


def test_devices_are_counted_by_resource_and_none_is_zero() -> None:
    resources = ResourceNames(
        default=RESOURCE, by_kind={"hailo-8": "hailo.ai/eight", "hailo-10h": "hailo.ai/ten"}
    )
    found = series(Place(board(0), board(1), resources=resources).text())
    assert of(found, "hailo_agent_devices", resource="hailo.ai/eight") == 2.0
    assert of(found, "hailo_agent_devices", resource="hailo.ai/ten") == 0.0
    assert of(found, "hailo_agent_devices", resource=RESOURCE) == 0.0


def test_faults_of_no_device_are_counted_by_code() -> None:
    place = Place()
    unserved = Fault(code=FaultCode.PCI_UNSERVED, subject="0000:05:00.0", message="", remedy="")
    place.inventory.publish(
        Inventory(faults=(unserved, replace(unserved, subject="0000:06:00.0")), at=5.0)
    )
    found = series(place.text())
    assert of(found, "hailo_agent_faults", code="pci.unserved", severity="fatal") == 2.0
    assert of(found, "hailo_agent_look_timestamp_seconds") == UNIX_OFFSET + 5.0


def test_parts_are_in_exactly_one_state_and_readiness_is_their_conjunction() -> None:
    place = Place()
    place.roster.post(Status(name="vitals", state=State.BACKING_OFF, restarts=3))
    found = series(place.text())
    states = {
        state: of(found, "hailo_agent_part_state", part="vitals", state=state.value)
        for state in State
    }
    assert states == {state: float(state is State.BACKING_OFF) for state in State}
    assert of(found, "hailo_agent_part_restarts_total", part="vitals") == 3.0
    assert of(found, "hailo_agent_ready") == 0.0
    place.roster.post(Status(name="vitals", state=State.RUNNING, restarts=3))
    assert of(series(place.text()), "hailo_agent_ready") == 1.0


def test_what_was_counted_and_timed_is_told() -> None:
    place = Place(board())
    place.tally.count("registrations", RESOURCE, "rejected", by=2)
    place.tally.count("lists", RESOURCE)
    place.tally.count("refusals", RESOURCE, "UnknownOffer")
    place.tally.count("reconcile_reasons", "resync", by=5)
    place.tally.count("spec_writes", "replaced")
    place.tally.count("changes", "device.faulted")
    place.tally.count("notifications", DEVICE, "throttling", by=4)
    for seconds in (0.0004, 0.0005, 0.3, 11.0):
        place.tally.time("allocations", RESOURCE, seconds=seconds)
    place.tally.time("reconciles", seconds=0.5)
    place.tally.time("hotplug", seconds=0.25)
    place.tally.time("rpcs", "Allocate", "OK", seconds=0.5)
    place.tally.time("rpcs", "Allocate", "OK", seconds=0.25)
    place.tally.time("rpcs", "Allocate", "NOT_FOUND", seconds=0.125)
    found = series(place.text())

    def told(name: str, **labels: str) -> float:
        return of(found, f"hailo_agent_{name}", **labels)

    assert told("registrations_total", resource=RESOURCE, outcome="rejected") == 2.0
    assert told("device_lists_total", resource=RESOURCE) == 1.0
    assert told("allocation_refusals_total", resource=RESOURCE, reason="UnknownOffer") == 1.0
    assert told("reconcile_reasons_total", reason="resync") == 5.0
    assert told("spec_writes_total", outcome="replaced") == 1.0
    assert told("changes_total", kind="device.faulted") == 1.0
    kind = {"device": DEVICE, "kind": "throttling"}
    assert of(found, "hailo_device_notifications_total", **kind) == 4.0
    allocations = {
        bound: told("allocation_duration_seconds_bucket", resource=RESOURCE, le=bound)
        for bound in ("0.0005", "0.25", "0.5", "10.0", "+Inf")
    }
    assert allocations == {"0.0005": 2.0, "0.25": 2.0, "0.5": 3.0, "10.0": 3.0, "+Inf": 4.0}
    assert told("allocation_duration_seconds_count", resource=RESOURCE) == 4.0
    assert told("allocation_duration_seconds_sum", resource=RESOURCE) == pytest.approx(11.3009)
    assert told("reconcile_duration_seconds_sum") == 0.5
    assert told("hotplug_duration_seconds_bucket", le="0.25") == 1.0
    assert told("rpc_duration_seconds_count", method="Allocate", status="OK") == 2.0
    assert told("rpc_duration_seconds_sum", method="Allocate", status="OK") == 0.75
    assert told("rpc_duration_seconds_count", method="Allocate", status="NOT_FOUND") == 1.0


def test_a_counter_is_there_before_anything_was_counted() -> None:
    found = series(Place().text())
    assert of(found, "hailo_agent_registrations_total", resource=RESOURCE, outcome="failed") == 0.0
    assert of(found, "hailo_agent_changes_total", kind="device.faulted") == 0.0
    assert of(found, "hailo_agent_spec_writes_total", outcome="refused") == 0.0
    assert of(found, "hailo_agent_allocation_duration_seconds_count", resource=RESOURCE) == 0.0
    assert of(found, "hailo_agent_hotplug_duration_seconds_bucket", le="+Inf") == 0.0
    refused = {"resource": RESOURCE, "reason": "DeviceUnavailable"}
    assert of(found, "hailo_agent_allocation_refusals_total", **refused) == 0.0


def test_the_process_tells_its_cost_and_python_says_nothing() -> None:
    found = series(Place().text())
    assert of(found, "process_resident_memory_bytes") > 1_000_000
    assert of(found, "process_cpu_seconds_total") > 0
    assert of(found, "process_open_fds") > 0
    assert not [name for name in names(found) if name.startswith("python_")]
    assert of(found, "hailo_agent_build_info", version="1.2.3", python="3.13.1") == 1.0


# --- absent, not zero ----------------------------------------------------------------------------

_CHIP = {
    "hailo_device_temperature_celsius",
    "hailo_device_temperature_limit_celsius",
    "hailo_device_throttling_level",
    "hailo_device_overcurrent",
    "hailo_device_query_duration_seconds",
}
_VITALS = {
    "hailo_device_in_use",
    "hailo_device_power_state",
    "hailo_device_aer_errors_total",
}
_LINK = {
    "hailo_device_link_transfers_per_second",
    "hailo_device_link_max_transfers_per_second",
    "hailo_device_link_lanes",
    "hailo_device_link_max_lanes",
}
_READINGS = {"hailo_device_reading_timestamp_seconds"}


@pytest.mark.parametrize(
    ("device", "missing"),
    [
        (replace(board(), chip=None), _CHIP),
        (
            replace(board(), chip=replace(CHIP, temperatures=None)),
            {"hailo_device_temperature_celsius"},
        ),
        (
            replace(board(), chip=replace(CHIP, state=None)),
            _CHIP - {"hailo_device_temperature_celsius", "hailo_device_query_duration_seconds"},
        ),
        (
            replace(
                board(),
                chip=replace(CHIP, state=replace(STATE, orange_celsius=None, red_celsius=None)),
            ),
            {"hailo_device_temperature_limit_celsius"},
        ),
        (replace(board(), vitals=None), _VITALS),
        (replace(board(), vitals=None, link=None), _VITALS | _LINK),
        (replace(board(), vitals=replace(VITALS, link=None), link=None), _LINK),
        (replace(board(), vitals=replace(VITALS, aer=None)), {"hailo_device_aer_errors_total"}),
        (replace(board(), vitals=replace(VITALS, aer=Aer())), {"hailo_device_aer_errors_total"}),
        (replace(board(), vitals=replace(VITALS, power_managed=False)), {"hailo_device_in_use"}),
        (
            replace(board(), vitals=replace(VITALS, power_state="unknown")),
            {"hailo_device_in_use", "hailo_device_power_state"},
        ),
        (
            replace(board(), vitals=replace(VITALS, power_state=None)),
            {"hailo_device_in_use", "hailo_device_power_state"},
        ),
        (replace(board(), held=None, holders=()), {"hailo_device_held", "hailo_device_allocation"}),
        (replace(board(), held=False, holders=()), {"hailo_device_allocation"}),
        # A card that has just been put where another one was: what is known was read of that one.
        (replace(board(), present_since=125.0), _CHIP | _VITALS | _READINGS),
        # Gone, but a pod may still hold it.
        (
            replace(board(), devnode=None, present_since=math.inf),
            _CHIP | _VITALS | _LINK | _READINGS,
        ),
        (replace(board(), devnode=None), _CHIP | _VITALS | _LINK | _READINGS),
    ],
)
def test_what_no_sensor_tells_has_no_series(device: Device, missing: set[str]) -> None:
    """Exactly what is missing is absent: all else is told as before."""
    text = Place(device).text()
    assert names(about_device(full())) - names(about_device(series(text))) == missing
    assert not [name for name in missing if f" {name} " in text]


def test_only_the_sensor_that_has_not_read_has_no_time() -> None:
    history = replace(board().history, weighed=())
    found = series(Place(replace(board(), chip=None, history=history)).text())
    sensors = {dict(labels)["sensor"] for name, labels in found if name in _READINGS}
    assert sensors == {"vitals"}


def test_what_has_been_read_and_not_weighed_yet_is_the_newest_reading() -> None:
    found = series(Place(replace(board(), chip=replace(CHIP, at=125.0))).text())
    reading = {"device": DEVICE, "sensor": "query"}
    at = of(found, "hailo_device_reading_timestamp_seconds", **reading)
    assert at == UNIX_OFFSET + 125.0


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_none_is_absent(figure: float) -> None:
    temperatures = replace(CHIP.temperatures, ts0_celsius=figure)  # type: ignore[type-var]
    place = Place(replace(board(), chip=replace(CHIP, temperatures=temperatures)))
    sensors = {
        dict(labels)["sensor"]
        for name, labels in series(place.text())
        if name == "hailo_device_temperature_celsius"
    }
    assert sensors == {"ts1"}


def test_without_devices_nothing_is_told_of_any_and_before_the_first_look_no_time() -> None:
    place = Place()
    place.inventory.publish(Inventory())
    told = names(series(place.text()))
    assert not [name for name in told if name.startswith("hailo_device_")]
    assert "hailo_agent_look_timestamp_seconds" not in told


# --- bounded -------------------------------------------------------------------------------------


def test_no_series_outlives_its_pod() -> None:
    """Five hundred pods come and go on four devices; a scrape knows only those that hold."""
    chance = random.Random(77)
    place = Place(*(board(n) for n in range(4)))
    size = len(series(place.text()))
    alive: dict[int, str] = {n: f"detector-{n}" for n in range(4)}
    for pod in range(500):
        n = chance.randrange(4)
        if chance.random() < 0.2:
            alive.pop(n, None)
        else:
            alive[n] = f"pod-{pod}"
        place.show(
            *(
                replace(
                    board(n),
                    held=n in alive,
                    holders=(holder(alive[n]),) if n in alive else (),
                )
                for n in range(4)
            )
        )
        place.tally.time("allocations", RESOURCE, seconds=0.001)
        place.tally.count("changes", "device.held")
        text = place.text()
        assert sorted(re.findall(r'\bpod="([^"]*)"', text)) == sorted(alive.values())
        assert sum(not line.startswith("#") for line in text.splitlines()) <= size


def test_a_device_that_is_forgotten_leaves_nothing_behind() -> None:
    place = Place(board(0), board(1))
    place.tally.count("notifications", DEVICE, "throttling")
    place.tally.count("notifications", board(1).id, "throttling", by=2)
    place.show(board(1))
    assert DEVICE not in place.text()
    place.show(board(0), board(1))
    kind = {"device": DEVICE, "kind": "throttling"}
    assert of(series(place.text()), "hailo_device_notifications_total", **kind) == 1.0


def test_a_thousand_devices_have_as_many_series_each_as_one_has() -> None:
    few, many = series(Place(board()).text()), series(Place(*map(board, range(1024))).text())
    each, rest = len(about_device(few)), len(few) - len(about_device(few))
    assert len(many) == 1024 * each + rest


def test_whatever_is_counted_there_are_not_more_series_than_places() -> None:
    place = Place()
    for n in range(2000):
        place.tally.time("rpcs", f"/made.up/Method{n}", "UNIMPLEMENTED", seconds=0.001)
        place.tally.count("reconcile_reasons", f"reason {n}")
    found = series(place.text())
    other = {"method": "other", "status": "other"}
    assert of(found, "hailo_agent_rpc_duration_seconds_count", **other) == 2000 - 256
    assert of(found, "hailo_agent_reconcile_reasons_total", reason="other") == 2000 - 256
    assert len(found) < 1000


HOSTILE = (
    '"} 1\nhailo_agent_ready 0\n# EOF\n',
    "\\",
    '\\"',
    "line\r\nfeed\x0b\x0c\x85\u2028\u2029",
    "\x00\x01\x1b[31m\x7f",
    "\ud800 lone",
    "\u202etxt.exe",
    "ÄÖ 芯片 \N{OCTOPUS}",
    "x" * 100_000,
    "{}[]#=,",
    " ",
)


@pytest.mark.parametrize("evil", HOSTILE)
@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_texts_of_others_stay_within_their_label(evil: str, accept: str) -> None:
    device = replace(
        board(),
        resource=evil,
        driver=evil,
        driver_version=evil,
        firmware=replace(FIRMWARE, serial=evil, product_name=evil, part_number=evil, version=evil),
        topology=Topology(bridges=(evil,)),
        holders=(Holder(namespace=evil, pod=evil, container=evil),),
    )
    place = Place(device)
    place.roster.post(Status(name=evil, state=State.RUNNING))
    place.tally.count("reconcile_reasons", evil)
    place.tally.time("rpcs", evil, evil, seconds=1.0)
    place.tally.count("registrations", evil, "accepted")
    body, kind = place.exposition.render(accept)
    parse = parse_openmetrics if kind == OPENMETRICS else parse_text
    found = [sample for family in parse(body.decode()) for sample in family.samples]
    labels = [value for sample in found for value in sample.labels.values()]
    assert all(value.isprintable() for value in labels)
    assert max(map(len, labels)) <= 253
    info = next(sample for sample in found if sample.name == "hailo_device_info")
    assert max(len(text) for name, text in info.labels.items() if name != "resource") <= 128
    assert info.labels["serial"] == "".join(
        letter if letter.isprintable() else "?" for letter in evil[:128]
    )
    ready = [sample.value for sample in found if sample.name == "hailo_agent_ready"]
    assert ready == [1.0]
    assert len(body.splitlines()) == body.count(b"\n")


def test_what_becomes_the_same_when_bounded_is_told_once() -> None:
    place = Place(replace(board(), holders=tuple(holder("p" * 253 + str(n)) for n in range(3))))
    place.tally.count("reconcile_reasons", "a\x00")
    place.tally.count("reconcile_reasons", "a\x01", by=2)
    place.tally.time("rpcs", "m\x00", "OK", seconds=1.0)
    place.tally.time("rpcs", "m\x01", "OK", seconds=2.0)
    found = series(place.text())
    assert of(found, "hailo_agent_reconcile_reasons_total", reason="a?") == 3.0
    assert of(found, "hailo_agent_rpc_duration_seconds_sum", method="m?", status="OK") == 3.0


# --- any state -----------------------------------------------------------------------------------


@given(inventories())
@settings(max_examples=30)
def test_any_inventory_can_be_told_in_both_formats(inventory: Inventory) -> None:
    place = Place()
    place.inventory.publish(inventory)
    found = series(place.text())
    told = [labels for name, labels in found if name == "hailo_device_info"]
    assert len(told) == len(inventory.devices)
    for device in inventory.devices:
        verdicts = {
            health: of(found, "hailo_device_health", device=device.id, health=health.value)
            for health in Health
        }
        assert [health for health, figure in verdicts.items() if figure] == [device.health]
    openmetrics = place.exposition.render("application/openmetrics-text")[0].decode()
    samples = [sample for family in parse_openmetrics(openmetrics) for sample in family.samples]
    assert {sample.name for sample in samples} == names(found)


_NAMES = st.sampled_from(
    [
        ("registrations", RESOURCE, "failed"),
        ("lists", RESOURCE),
        ("refusals", RESOURCE, "UnknownOffer"),
        ("reconcile_reasons", "resync"),
        ("spec_writes", "refused"),
        ("changes", "device.held"),
        ("notifications", DEVICE, "throttling"),
    ]
)
_DURATIONS = st.sampled_from([("allocations", RESOURCE), ("reconciles",), ("rpcs", "M", "OK")])
_EVENTS = st.lists(
    st.tuples(st.just("count"), _NAMES, st.just(1.0))
    | st.tuples(st.just("time"), _DURATIONS, st.floats(0.0, 100.0)),
    max_size=12,
)


@given(st.lists(st.tuples(_EVENTS, st.booleans()), max_size=6))
@settings(max_examples=30)
def test_a_counter_never_goes_down(
    history: list[tuple[list[tuple[str, tuple[str, ...], float]], bool]],
) -> None:
    place = Place(board())
    before: Series = counters(place.text())
    for events, is_there in history:
        for what, (name, *labels), figure in events:
            if what == "count":
                place.tally.count(name, *labels, by=figure)
            else:
                place.tally.time(name, *labels, seconds=figure)
        place.show(*([board()] if is_there else []))
        now = counters(place.text())
        for key, value in now.items():
            assert value >= before.get(key, 0.0)
        assert all(("device", DEVICE) in labels for _, labels in before.keys() - now.keys())
        before |= now


def counters(text: str) -> Series:
    growing = ("_total", "_bucket", "_count", "_sum")
    return {
        key: value
        for key, value in series(text).items()
        if key[0].endswith(growing) and key[0].startswith("hailo_")
    }


# --- formats -------------------------------------------------------------------------------------


class _Given(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _everything() -> _Given:
    place = Place(replace(board(), driver='a "b" \\c'), board(1))
    place.usage = {board().id: USAGE}
    place.tally.count("notifications", DEVICE, "throttling", by=1e21)
    place.tally.time("rpcs", "Allocate", "OK", seconds=1e-9)
    return _Given(place.collector.collect())


@pytest.mark.parametrize(
    ("write", "encode", "parse"),
    [
        (exposition.text, generate_latest, parse_text),
        (exposition.openmetrics, generate_openmetrics, parse_openmetrics),
    ],
)
def test_it_says_what_the_encoders_of_the_library_say(
    write: Callable[[Iterable[Metric]], bytes],
    encode: Callable[[Collector], bytes],
    parse: Parse,
) -> None:
    everything = _everything()
    ours, theirs = write(everything.collect()).decode(), encode(everything).decode()
    assert list(parse(ours)) == list(parse(theirs))
    heads = [line for line in ours.splitlines() if line.startswith("#")]
    assert heads == [line for line in theirs.splitlines() if line.startswith("#")]


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/html,application/xhtml+xml", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0", True),
        ('application/openmetrics-text; version="0.0.1"', True),
        ("application/openmetrics-text; version=2.0.0", False),
        ("application/openmetrics-text; version=1.0.0; q=0", False),
        ("application/openmetrics-text; q=0.2, text/plain; q=0.9", False),
        ("APPLICATION/OPENMETRICS-TEXT;VERSION=1.0.0", True),
        ("application/openmetrics-text;q=nan,text/plain", False),
        (";;=;,,;q==,", False),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
    ],
)
def test_the_format_is_the_one_asked_for(accept: str, *, wanted: bool) -> None:
    assert prefers_openmetrics(accept) is wanted
    body, kind = Place().exposition.render(accept)
    assert kind == (OPENMETRICS if wanted else TEXT)
    assert body.endswith(b"# EOF\n") is wanted


def test_all_that_is_defined_is_told_somewhere() -> None:
    place = Place(replace(board(), faults=(_FAULT,)))
    place.usage = {board().id: USAGE}
    place.inventory.publish(replace(place.inventory.value, faults=(_FAULT,)))
    place.tally.count("reconcile_reasons", "resync")
    place.tally.count("notifications", DEVICE, "throttling")
    place.tally.time("rpcs", "Allocate", "OK", seconds=0.1)
    told = names(series(place.text()))
    suffixes = {Type.HISTOGRAM: "_bucket", Type.SUMMARY: "_count"}
    assert {
        definition.name + suffixes.get(definition.type, "") for definition in DEFINITIONS
    } <= told


_FAULT = Fault(code=FaultCode.LINK_DEGRADED, subject=DEVICE, message="-", remedy="")


def test_promtool_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    assert promtool, "install Debian's package prometheus"
    place = Place(replace(board(), faults=(_FAULT,)), board(1))
    place.usage = {board().id: USAGE}
    place.tally.count("notifications", DEVICE, "throttling")
    place.tally.time("rpcs", "Allocate", "OK", seconds=0.1)
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=place.text(),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
