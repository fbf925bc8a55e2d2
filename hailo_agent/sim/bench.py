"""`python -m hailo_agent.sim.bench`: how fast, how big and how quiet the agent is.

Run by `make bench`. Prints a table and, as the last line, all of it as JSON. Every figure comes
from the unmodified agent in a process of its own, on simulated nodes of 8, 64 and 1 024 devices.
What the figures mean and what they are worth is written in docs/reference/benchmarks.md.
"""

import argparse
import asyncio
import os
import platform
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hailo_agent import __version__
from hailo_agent.errors import EX_SOFTWARE
from hailo_agent.sim.bench_figures import TITLES, Figure, Key, Measurement, figures, growth
from hailo_agent.sim.bench_stand import MeasurementFailed, Stand
from hailo_agent.sim.bench_text import document, growth_table, stored, table

_EX_MISSED: Final = 1
_MEGABYTE: Final = 1_000_000
_POD_PAUSE_SECONDS: Final = 0.05
_ASKED: Final = 8
_FEW: Final = 64
"""With more chips than these it is not measured what asking costs, in time and in memory."""
_SETTLE_SECONDS: Final = 3.0
_FORGET_LINE: Final = "\r\x1b[K"

_FULL: Final[Mapping[str, Any]] = {
    "devices": [8, 64, 1024],
    "samples": 48,
    "allocations": 200,
    "starts": 6,
    "events": 1000,
    "idle": 20.0,
}
_QUICK: Final[Mapping[str, Any]] = {
    "devices": [8],
    "samples": 8,
    "allocations": 40,
    "starts": 2,
    "events": 100,
    "idle": 5.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How often each thing is measured on a node of one size."""

    devices: int
    starts: int
    changes: int
    allocations: int
    restarts: int
    events: int
    idle_seconds: float
    settle_seconds: float

    @classmethod
    def of(cls, arguments: argparse.Namespace, devices: int) -> "Plan":
        """Plan for one size: the larger the node, the fewer samples."""
        share = 1 if devices <= 8 else 2 if devices <= 64 else 4
        return cls(
            devices=devices,
            starts=max(arguments.starts // min(share, 2), 1),
            changes=max(arguments.samples // share, 2),
            allocations=max(arguments.allocations // share, 2),
            restarts=max(arguments.starts // min(share, 2), 1),
            events=arguments.events,
            idle_seconds=arguments.idle,
            settle_seconds=min(_SETTLE_SECONDS, arguments.idle),
        )

    def series(self, name: str, seconds: Sequence[float], unit: str = "ms") -> Measurement:
        """Take many samples of one thing."""
        scale = 1000.0 if unit == "ms" else 1.0
        samples = tuple(scale * sample for sample in seconds)
        return Measurement(devices=self.devices, name=name, unit=unit, samples=samples)

    def single(self, name: str, value: float, unit: str) -> Measurement:
        """Take the only one there is."""
        return Measurement(
            devices=self.devices, name=name, unit=unit, samples=(value,), is_single=True
        )

    def missing(self, name: str, why: str) -> Measurement:
        """Say why there is none."""
        return Measurement(devices=self.devices, name=name, unit="ms", missing=why)


def _busy_seconds() -> float:
    """Add up what all processors did but wait; of a virtual machine, its host's share as well."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Bystanders:
    """How much CPU everybody else used meanwhile: figures from a busy machine are worse."""

    _began_at: float = field(default_factory=time.monotonic)
    _busy: float = field(default_factory=_busy_seconds)
    _ours: float = field(default_factory=lambda: sum(os.times()[:4]))

    def cores(self) -> float:
        """Tell how many cores others kept busy on average; the ended agents count as ours."""
        others = _busy_seconds() - self._busy - (sum(os.times()[:4]) - self._ours)
        return max(others, 0.0) / max(time.monotonic() - self._began_at, 0.001)


async def measure(plan: Plan) -> AsyncIterator[Measurement]:
    """Measure everything on a node of one size."""
    async with Stand.build(plan.devices, settle_seconds=plan.settle_seconds) as stand:
        starts = await stand.starts(plan.starts)
        yield plan.series("start.register", [start.register for start in starts], "s")
        yield plan.series("start.list", [start.first_list for start in starts], "s")

        async with stand.agent("--host.uevents=false"):
            changes = await stand.changes(plan.changes)
        yield plan.series("change.inotify", (*changes.plugs, *changes.unplugs))
        yield plan.series("plug.inotify", changes.plugs)
        yield plan.series("unplug.inotify", changes.unplugs)

        if stand.no_uevents:
            yield plan.missing("change.uevents", stand.no_uevents)
        else:
            async with stand.agent("--host.inotify=false"):
                changes = await stand.changes(max(plan.changes // 3, 2))
            yield plan.series("change.uevents", (*changes.plugs, *changes.unplugs))

        async with stand.agent() as agent:
            yield plan.single("memory.start", agent.resident_bytes() / _MEGABYTE, "MB")
            idle = await stand.idle(agent, plan.idle_seconds)
            yield plan.single("idle.cpu", 100 * idle.cpu, "%")
            yield plan.single("idle.wakeups", idle.wakeups, "/s")
            yield plan.single("idle.messages", idle.messages, "")
            if stand.no_uevents:
                yield plan.missing("change.both", stand.no_uevents)
            else:
                changes = await stand.changes(max(plan.changes // 2, 2))
                yield plan.series("change.both", (*changes.plugs, *changes.unplugs))
            for name, pause in (("allocate", 0.0), ("allocate.paced", _POD_PAUSE_SECONDS)):
                calls = await stand.allocations(plan.allocations, pause_seconds=pause)
                yield plan.series(name, calls)
            calls = await stand.empty_calls(plan.allocations, pause_seconds=_POD_PAUSE_SECONDS)
            yield plan.series("empty.paced", calls)
            yield plan.series("restart", await stand.restarts(plan.restarts), "s")
            await stand.events(plan.events)
            yield plan.single("memory.events", agent.resident_bytes() / _MEGABYTE, "MB")

        async for measurement in _measure_asking(plan, stand):
            yield measurement


async def _measure_asking(plan: Plan, stand: Stand) -> AsyncIterator[Measurement]:
    """Measure what asking chips costs, and HTTP."""
    if stand.no_chips:
        for name in (
            *("allocate.asking", "allocate.hung"),
            *("memory.all", "memory.asking", "idle.asking"),
        ):
            yield plan.missing(name, stand.no_chips)
        return
    if plan.devices <= _FEW:
        async with stand.agent_with_everything() as agent:
            await stand.read_pages()
            workers = agent.workers_bytes()
            yield plan.single("memory.all", (agent.resident_bytes() + workers) / _MEGABYTE, "MB")
            yield plan.single("memory.asking", workers / _MEGABYTE, "MB")
    if plan.devices <= _ASKED:
        # Without uevents, of which a machine has but one stream: others would show in the small
        # difference of two figures.
        async with stand.agent("--host.uevents=false") as agent:
            silent = await stand.idle(agent, plan.idle_seconds)
        async with stand.asking_agent("--host.uevents=false") as agent:
            asking = await stand.idle(agent, plan.idle_seconds)
            calls = await stand.allocations(plan.allocations, pause_seconds=0.0)
            yield plan.series("allocate.asking", calls)
            async with stand.a_chip_that_hangs():
                calls = await stand.allocations(plan.allocations, pause_seconds=0.0)
                yield plan.series("allocate.hung", calls)
        yield plan.single("idle.asking", max(100 * (asking.cpu - silent.cpu), 0.0), "%")


async def run(arguments: argparse.Namespace, before: Mapping[Key, float]) -> list[Figure]:
    """Measure every size, and print each when it is done."""
    found: list[Figure] = []
    for devices in arguments.devices:
        measured: list[Measurement] = []
        _show_progress(f"{devices} devices ...")
        async for measurement in measure(Plan.of(arguments, devices)):
            measured.append(measurement)
            _show_progress(f"{devices} devices: {TITLES[measurement.name].strip()}: done")
        _show_progress("")
        found += (reduced := list(figures(measured, before)))
        print("\n".join(table(devices, measured, reduced)), flush=True)
    grown = list(growth(found, before))
    for line in growth_table(grown, arguments.devices):
        print(line)
    return found + grown


async def _interruptible(
    arguments: argparse.Namespace, before: Mapping[Key, float]
) -> list[Figure]:
    """Run until done; a signal ends it as Ctrl-C would, and leaves no agent behind."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - this is a coroutine
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(arguments, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it could be run, 1 with `--check` if a target is missed."""
    arguments = _parser().parse_args(argv)
    defaults = _QUICK if arguments.quick else _FULL
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    before: Mapping[Key, float] = {}
    if arguments.against is not None:
        try:
            before = stored(arguments.against.read_bytes())
        except (OSError, ValueError, KeyError) as error:
            print(f"bench: cannot compare with {arguments.against}: {error}", file=sys.stderr)
            return EX_SOFTWARE
    bystanders = Bystanders()
    began_at = time.monotonic()
    try:
        found = asyncio.run(_interruptible(arguments, before))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except (MeasurementFailed, TimeoutError) as error:
        print(f"bench: not measured: {error}", file=sys.stderr)
        return EX_SOFTWARE
    about: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "others_used_cores": round(bystanders.cores(), 2),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began_at),
    }
    missed = [figure for figure in found if figure.is_missed]
    targets = sum(figure.target is not None for figure in found)
    print(
        f"{targets - len(missed)} of {targets} targets met, in {about['seconds']} s, on "
        f"{about['cores']} cores of which others used {about['others_used_cores']:g} meanwhile."
    )
    line = document(found, about)
    if arguments.output is not None:
        arguments.output.write_bytes(line + b"\n")
    print(line.decode(), flush=True)
    return _EX_MISSED if arguments.check and missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hailo_agent.sim.bench",
        description="Measure hailo-agent on simulated nodes: a table, then a line of JSON.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--devices", metavar="N,N", type=_sizes, help="sizes of node (8,64,1024)")
    add("--samples", metavar="N", type=_count, help="changes on the smallest node (48)")
    add("--allocations", metavar="N", type=_count, help="pods, likewise (200)")
    add("--starts", metavar="N", type=_count, help="starts of agent and kubelet (6)")
    add("--events", metavar="N", type=_count, help="changes before memory is measured again (1000)")
    add("--idle", metavar="SECONDS", type=float, help="how long nothing is done (20)")
    add("--quick", action="store_true", help="a minute, 8 devices: does it work at all?")
    add("--check", action="store_true", help="exit with 1 if a target is missed")
    add("--output", metavar="FILE", type=Path, help="store the line of JSON")
    add("--against", metavar="FILE", type=Path, help="compare with a stored line")
    return parser


def _sizes(text: str) -> list[int]:
    return sorted({_count(part) for part in text.split(",")})


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _show_progress(text: str) -> None:
    """Say on a terminal how far it is: some parts take a minute."""
    if sys.stderr.isatty():
        print(f"{_FORGET_LINE}{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
