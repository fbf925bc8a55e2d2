"""Takes the pictures of the boards in the documentation: `python -m tests.observability.pictures`.

A made-up fleet lives through six hours. What it would have told at each scrape is put into a
Prometheus, which answers the boards' own queries; the answers are drawn.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import yaml

from hack.dashboards.boards import BOARDS, FOLDER
from hailo_agent.aio.supervise import State
from hailo_agent.core.device import Device, Model
from hailo_agent.core.health import FaultCode, Sensor
from hailo_agent.core.vitals import Aer
from hailo_agent.web.exposition import OPENMETRICS
from tests.observability.drawing import WIDTH, Ask, Series, page
from tests.observability.scraping import RULES, Prometheus, running, until
from tests.observability.states import CLOCK, FULL_LINK, RESOURCE, Node, device, fault, usage
from tests.web.browser import browsing
from tests.web.pictures import IMAGES, small

HOURS: Final = 6
STEP_SECONDS: Final = 120
STEPS: Final = HOURS * 3600 // STEP_SECONDS
CHOSEN: Final = {
    "fleet": {"datasource": "Prometheus"},
    "node": {"datasource": "Prometheus", "instance": "edge-2"},
    "tenant": {"datasource": "Prometheus"},
}

# --- a fleet -------------------------------------------------------------------------------------

_NETWORKS: Final = {
    "vision": ("yolov8m", 58.0),
    "retail": ("resnet50", 240.0),
    "audio": ("asr", 9.0),
}


def _wave(seed: int, minute: float, period: float = 90.0) -> float:
    """Wobble between -1 and 1, differently for each."""
    turn = 2 * math.pi * minute / period
    return (math.sin(turn + seed) + math.sin(2.7 * turn + 1.3 * seed) / 2) / 1.5


def _aged(read: Device, minute: float) -> Device:
    """Have a device read a while ago, and in more or less time."""
    vitals_at, asked_at = (
        CLOCK - 2.5 + 2 * _wave(3, minute, 7),
        CLOCK - 30 + 25 * _wave(4, minute, 9),
    )
    seconds = 0.02 + 0.012 * _wave(int(read.id[9:11], 16), minute, 240)
    weighed = ((Sensor.VITALS, vitals_at), (Sensor.QUERY, asked_at))
    return replace(
        read,
        vitals=read.vitals and replace(read.vitals, at=vitals_at),
        chip=read.chip and replace(read.chip, at=asked_at, seconds=seconds),
        history=replace(read.history, weighed=weighed),
    )


class Story:
    """What happens on four nodes, told minute by minute; counters never fall."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def at(self, minute: int) -> dict[str, Node]:
        """Go on to a minute."""
        told = {
            "edge-1": (self._gates, "1.0.0"),
            "edge-2": (self._halls, "1.0.0"),
            "edge-3": (self._kiosk, "1.0.0"),
            "edge-4": (self._dock, "1.1.0" if minute >= 200 else "1.0.0"),
        }
        for index, (name, (devices, version)) in enumerate(told.items()):
            before = self._nodes.get(name)
            is_new = before is None or before.version != version
            aged = (_aged(each, minute) for each in devices(minute))
            node = Node(devices=tuple(aged), version=version)
            if before is not None and not is_new:
                node.tally = before.tally
            self._nodes[name] = node
            self._tell(node, name, minute, index, is_new=is_new)
        return self._nodes

    def _gates(self, minute: int) -> Iterator[Device]:
        half = replace(FULL_LINK, width=2)
        for n in range(4):
            pod = f"gate-{n}" if n < 3 else ("gate-spare" if 120 <= minute < 250 else "")
            codes = (FaultCode.LINK_DEGRADED,) if n == 2 else ()
            link = half if n == 2 else FULL_LINK
            celsius = 60 + 3 * n + 3 * _wave(n, minute) + (5 if pod else 0)
            yield device(n, *codes, pod=pod, celsius=celsius, link=link)

    def _halls(self, minute: int) -> Iterator[Device]:
        heat = max(0.0, 1 - abs(minute - 215) / 75)
        for n in range(4):
            codes: tuple[FaultCode, ...] = ()
            celsius = 68 + 2 * n + 2.5 * _wave(7 + n, minute)
            level = 0
            if n == 1:
                celsius += 38 * heat
                level = sum(celsius >= limit for limit in (104, 107))
                codes = (FaultCode.TEMPERATURE_HIGH, FaultCode.THROTTLED) if level else ()
            if n == 3 and minute >= 290:
                codes = (FaultCode.CORDONED,)
            pod = f"shelf-{n}" if n < 3 and (n != 2 or minute >= 60) else ""
            idle = n == 2 and minute < 150
            cordoned_since = minute - 290 if codes == (FaultCode.CORDONED,) else 5000
            noise = Aer(correctable=minute // 11 if n == 0 else 0, nonfatal=0, fatal=0)
            yield device(
                n,
                *codes,
                pod=pod,
                namespace="retail",
                aer=noise,
                changed_seconds_ago=60.0 * cordoned_since,
                in_use=False if idle else None,
                celsius=celsius - (14 if idle or not pod else 0),
                level=level,
            )

    def _kiosk(self, minute: int) -> Iterator[Device]:
        is_dead = minute >= 230
        is_known = not 90 <= minute < 118
        for n in range(2):
            codes = (FaultCode.PCI_DEAD,) if is_dead and n == 0 else ()
            codes = codes if is_known else (FaultCode.QUERY_FAILED,)
            pod = ("speech-0" if n == 0 and minute < 236 else "") or (
                "speech-1" if n == 1 and minute >= 238 else ""
            )
            shown = device(
                n,
                *codes,
                pod=pod,
                namespace="audio",
                model=Model.HAILO_8L,
                celsius=54 + 4 * n + 2 * _wave(20 + n, minute),
            )
            yield replace(shown, vitals=None, chip=None) if codes and is_dead else shown

    def _dock(self, minute: int) -> Iterator[Device]:
        burst = max(0, min(minute, 112) - 80)
        for n in range(3):
            codes: tuple[FaultCode, ...] = ()
            aer = Aer(correctable=minute // 9, nonfatal=0, fatal=0)
            if n == 2:
                aer = Aer(correctable=minute // 2 + 9 * burst, nonfatal=burst // 4, fatal=0)
                codes = (FaultCode.AER_NONFATAL,) if 84 <= minute < 118 else ()
            firmware = "4.22.0" if n == 1 else "4.23.0"
            if n == 1:
                codes = (FaultCode.FIRMWARE_MISMATCH,)
            pod = "dock-0" if n == 0 or (n == 1 and 30 <= minute < 300) else ""
            pod = "dock-1" if pod and n == 1 else pod
            yield device(
                n,
                *codes,
                pod=pod,
                celsius=63 + 2 * n + 3 * _wave(30 + n, minute),
                aer=aer,
                firmware=firmware,
            )

    def _tell(self, node: Node, name: str, minute: int, index: int, *, is_new: bool) -> None:
        for n, each in enumerate(node.devices):
            if not each.holders or each.vitals is None or not each.vitals.is_in_use:
                continue
            network, frames = _NETWORKS[each.holders[0].namespace]
            slow = (
                0.0
                if each.chip is None or each.chip.state is None
                else (0.0 if each.chip.state.throttling_level is None else 0.35)
            )
            busy = 0.62 + 0.2 * _wave(5 * index + n, minute, 140) - slow / 2
            waiting = 15 if slow else round(3 + 2 * _wave(n, minute, 30))
            node.usage[each.id] = usage(
                network, frames * (1 - slow) * (0.7 + busy / 2), busy, waiting
            )
        if name == "edge-4":
            node.faults = (fault(FaultCode.PCI_UNSERVED, "0000:09:00.0"),)
        if name == "edge-3" and 90 <= minute < 118:
            node.part("queries", State.BACKING_OFF, 2)
        if name == "edge-3" and minute >= 118:
            node.part("queries", State.RUNNING, 2)
        started = 200 if name == "edge-4" and minute >= 200 else -4000
        node.process = {
            "process_start_time_seconds": lambda at: at - 60 * (minute - started),
            "process_cpu_seconds_total": lambda _: 0.24 * (minute - started),
            "process_resident_memory_bytes": lambda _: (
                (61 + index + 0.4 * _wave(index, minute)) * 2**20
            ),
        }
        self._count(node, name, minute, is_new=is_new)

    def _count(self, node: Node, name: str, minute: int, *, is_new: bool) -> None:
        tally = node.tally
        tally.count("reconcile_reasons", "resync", by=4)
        tally.count("reconcile_reasons", "vitals", by=1 if minute % 10 else 6)
        for n in range(5):
            tally.time("reconciles", seconds=0.0025 + 0.002 * (n % 3))
        if is_new:
            tally.count("registrations", RESOURCE, "accepted")
            tally.count("lists", RESOURCE)
            tally.count("spec_writes", "replaced")
        if minute in {30, 60, 120, 236, 238} or minute % 40 == 0:
            tally.count("reconcile_reasons", "grant")
            for n in range(4):
                tally.time("allocations", RESOURCE, seconds=0.002 + 0.003 * n)
            tally.time("rpcs", "Allocate", "OK", seconds=0.004)
            tally.time("rpcs", "GetPreferredAllocation", "OK", seconds=0.001)
            tally.time("hotplug", seconds=0.03)
            tally.count("changes", "device.held")
            tally.count("lists", RESOURCE)
        if name == "edge-3" and minute in {230, 232, 234}:
            tally.count("refusals", RESOURCE, "DeviceUnavailable", by=2)
            tally.time("rpcs", "Allocate", "FAILED_PRECONDITION", seconds=0.002)
            tally.count("changes", "device.faulted")
        if name == "edge-2" and 180 <= minute < 250:
            kind = (node.devices[1].id, "throttling")
            tally.count("notifications", *kind)
            tally.count("changes", "device.faulted" if minute < 215 else "device.recovered")
        tally.time("rpcs", "Watch", "OK", seconds=1.0)


# --- its history ---------------------------------------------------------------------------------

_LINE: Final = re.compile(r"(?P<name>[a-zA-Z_:]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")


def history(end: int) -> Iterator[str]:
    """Tell each scrape as OpenMetrics, with its time."""
    story = Story()
    kinds: set[str] = set()
    for step in range(STEPS + 1):
        minute = step * STEP_SECONDS // 60
        at = end - (STEPS - step) * STEP_SECONDS
        for instance, node in story.at(minute).items():
            target = f'job="hailo-agent",instance="{instance}"'
            yield f"up{{{target}}} 1 {at}"
            body, _ = node.exposition(float(at)).render(OPENMETRICS)
            for line in body.decode().splitlines():
                if line.startswith("# TYPE") and line not in kinds:
                    kinds.add(line)
                match = _LINE.fullmatch(line)
                if match:
                    labels = f"{target},{match['labels']}" if match["labels"] else target
                    yield f"{match['name']}{{{labels}}} {match['value']} {at}"
    yield "# EOF"


def backfill(directory: Path, end: int) -> None:
    """Put the history into blocks of a Prometheus."""
    told = directory / "history.om"
    with told.open("w") as file:
        file.writelines(f"{line}\n" for line in history(end))
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet"]
    subprocess.run(
        [*command, str(told), str(directory / "data")], check=True, stdout=subprocess.DEVNULL
    )
    told.unlink()


# --- drawn ---------------------------------------------------------------------------------------


def asking(prometheus: Prometheus, end: int, chosen: Mapping[str, str]) -> Ask:
    """Ask a Prometheus for what was chosen."""

    def filled(expr: str) -> str:
        expr = expr.replace("$__rate_interval", f"{4 * STEP_SECONDS}s")
        return re.sub(r"\$(\w+)", lambda match: chosen.get(match[1], ".+"), expr)

    def ask(expr: str, *, is_now: bool) -> Sequence[Series]:
        if is_now:
            # Alerts are judged as time goes on, the rest is history.
            at = time.time() if "ALERTS" in expr else end
            answer = prometheus.get("query", query=filled(expr), time=str(at))
            results = [(r["metric"], [r["value"]]) for r in answer["result"]]
        else:
            start = str(end - HOURS * 3600)
            answer = prometheus.get(
                "query_range", query=filled(expr), start=start, end=str(end), step=str(STEP_SECONDS)
            )
            results = [(r["metric"], r["values"]) for r in answer["result"]]
        return [Series(labels=labels, points=tuple(_points(values))) for labels, values in results]

    return ask


def _points(values: Sequence[Sequence[Any]]) -> Iterator[tuple[float, float]]:
    for at, figure in values:
        if math.isfinite(float(figure)):
            yield float(at), float(figure)


def _impatient(rules: Path) -> str:
    """Have alerts fire at once: of what stands at the end, all has lasted."""
    told = yaml.safe_load(rules.read_text())
    for group in told["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    return yaml.safe_dump(told)


async def take(directory: Path) -> None:
    """Write each picture into a directory."""
    end = int(time.time())
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        await asyncio.to_thread(backfill, place, end)
        (place / "rules.yaml").write_text(_impatient(RULES))
        config = {
            "global": {"evaluation_interval": "1s"},
            "rule_files": [str(place / "rules.yaml")],
        }
        lookback = f"--query.lookback-delta={STEP_SECONDS - 1}s"
        with running(config, place, lookback) as prometheus:
            until(lambda: len(prometheus.query("ALERTS")) > 3)
            await asyncio.sleep(2)
            async with browsing() as tab:
                for board in BOARDS:
                    shape = json.loads((FOLDER / f"{board.name}.json").read_text())
                    chosen = CHOSEN[board.name]
                    ask = asking(prometheus, end, chosen)
                    drawn = place / f"{board.name}.html"
                    drawn.write_text(page(shape, ask, (end - HOURS * 3600.0, float(end)), chosen))
                    await tab.open(drawn.as_uri(), width=WIDTH)
                    picture = directory / f"dashboard-{board.name}.png"
                    picture.write_bytes(small(await tab.picture()))


if __name__ == "__main__":
    assert shutil.which("promtool"), "install Debian's package prometheus"
    asyncio.run(take(IMAGES))
