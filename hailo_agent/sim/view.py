"""How the demo and the simulated node look: plain lines, a live screen, and tables.

Plain lines are for pipes and logs: one per step, as it happens. The live screen is for a terminal
of 80 by 24 or more; without colours it says the same. Nothing is decided here.
"""

import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hailo_agent.sim.follow import Follower, News
from hailo_agent.sim.kubelet import Kubelet
from hailo_agent.sim.scenario import Result
from hailo_agent.wire import agentapi

_PIPE_WIDTH: Final = 100
_FRAMES_PER_SECOND: Final = 8.0
_MOST_NEWS: Final = 4
_NONE: Final = "-"
_FIGURES: Final = {"TIME": 7, "LIMIT": 6, "OK": 2}

_SAYS: Final = {agentapi.Health.HEALTHY: "Healthy", agentapi.Health.UNHEALTHY: "Unhealthy"}
_STYLES: Final = {"Healthy": "green", "Unhealthy": "red", "away": "dim"}


def new_console() -> Console:
    """Make a console on standard output; what is no terminal has a width of its own."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def can_draw(console: Console) -> bool:
    """Whether a live screen is possible: a terminal, and one that can move its cursor."""
    return console.is_terminal and sys.stdout.isatty() and not console.is_dumb_terminal


# --- tables ---------------------------------------------------------------------------------------


def device_table(follower: Follower, kubelet: Kubelet) -> Table:
    """Show what the agent says of each device beside what the kubelet believes."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("DEVICE", "MODEL", "NODE", "AGENT", "KUBELET"):
        table.add_column(heading, no_wrap=True)
    table.add_column("HELD BY", overflow="fold")
    listed, holders = _listed(kubelet), _holders(kubelet)
    for device_id in sorted({*follower.devices, *listed}):
        device = follower.devices.get(device_id)
        table.add_row(
            device_id,
            device.model if device else _NONE,
            (device.path.rpartition("/")[2] if device else "") or _NONE,
            _styled(_agent_word(follower, device)),
            _styled(listed.get(device_id, _NONE)),
            holders.get(device_id, _NONE),
        )
    return table


def summary(titles: Sequence[str], results: Iterable[Result], width: int) -> Group:
    """Show every expectation under its chapter: what was seen, how long it took, and the limit."""
    parts: list[RenderableType] = [_summary_table(width, headings=True)]
    tables = [_summary_table(width, headings=False) for _ in titles]
    for result in results:
        tables[result.chapter - 1].add_row(
            Text(result.expected),
            Text(result.seen),
            duration(result.seconds),
            duration(result.limit) if result.limit else _NONE,
            _ok(result),
        )
    for number, (title, table) in enumerate(zip(titles, tables, strict=True), 1):
        parts += [Text(f"{number}. {title}", style="bold"), table]
    return Group(*parts)


def _summary_table(width: int, *, headings: bool) -> Table:
    """Make one of several tables that stand below each other as if they were one."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=headings)
    words = width - sum(_FIGURES.values()) - 2 * (len(_FIGURES) + 1)
    expected = words * 11 // 20
    table.add_column("EXPECTED", overflow="fold", width=expected)
    table.add_column("SEEN", overflow="fold", width=words - expected)
    for heading, figures in _FIGURES.items():
        table.add_column(heading, justify="right", no_wrap=True, width=figures)
    return table


def verdict(results: Iterable[Result], seconds: float) -> str:
    """Sum it up in a sentence."""
    every = list(results)
    held = sum(result.ok for result in every)
    missed = len(every) - held
    text = f"{held} of {len(every)} expectations held, in {seconds:.1f} s."
    return f"{text} {missed} did NOT." if missed else text


def duration(seconds: float) -> str:
    """Say a time so that small and large ones can be told apart at a glance."""
    if seconds < 0.00005:
        return "at once"
    if seconds < 0.0095:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:g} s" if seconds == int(seconds) else f"{seconds:.2f} s"


def resource_line(kubelet: Kubelet) -> str:
    """Say in one line what the kubelet counts."""
    if not kubelet.running:
        return "the kubelet is down"
    parts = [
        f"{resource.name}: {resource.allocatable} of {resource.capacity} healthy"
        + ("" if resource.connected else ", nobody serves it")
        for resource in kubelet.resources.values()
    ]
    return "; ".join(parts) or "the kubelet knows no resource"


def health_word(device: agentapi.Device) -> str:
    """Say what the agent lets the kubelet know of its verdict."""
    return _SAYS[agentapi.Health.HEALTHY if device.fit else agentapi.Health.UNHEALTHY]


def _listed(kubelet: Kubelet) -> Mapping[str, str]:
    """Say what the kubelet takes each device for: without its plugin it takes none for healthy."""
    return {
        device.id: device.health if resource.connected else _SAYS[agentapi.Health.UNHEALTHY]
        for resource in kubelet.resources.values()
        for device in resource.devices.values()
    }


def _holders(kubelet: Kubelet) -> Mapping[str, str]:
    return {
        device_id: pod
        for resource in kubelet.resources
        for device_id, pod in kubelet.holders(resource).items()
    }


def _agent_word(follower: Follower, device: agentapi.Device | None) -> str:
    if not follower.answered:
        return "away"
    return _NONE if device is None else health_word(device)


def _styled(word: str) -> Text:
    return Text(word, style=_STYLES.get(word, ""))


def _ok(result: Result) -> Text:
    return Text("ok", style="green") if result.ok else Text("NO", style="bold red")


# --- telling --------------------------------------------------------------------------------------


class Plain:
    """One line per step, written at once."""

    def __init__(self) -> None:
        self._first = True

    def chapter(self, number: int, title: str) -> None:
        """Begin a chapter."""
        print(f"{'' if self._first else chr(10)}{number}. {title}", flush=True)
        self._first = False

    def waiting(self, expected: str) -> None:
        """Say nothing: a line is written when it is known what came of it."""

    def told(self, result: Result) -> None:
        """Write a line."""
        word = "ok" if result.ok else "FAILED"
        limit = "" if result.ok or not result.limit else f" (limit {duration(result.limit)})"
        took = duration(result.seconds)
        print(f"   {word:6} {took:>8}  {result.expected}: {result.seen}{limit}", flush=True)


class Screen(AbstractContextManager["Screen"]):
    """The node as it lives, drawn over and over; leaves the terminal as it was."""

    def __init__(self, console: Console, kubelet: Kubelet, follower: Follower) -> None:
        self._console = console
        self._kubelet = kubelet
        self._follower = follower
        self._title = ""
        self._waiting = ""
        self._results: list[Result] = []
        self._began_at = asyncio.get_running_loop().time()
        self._live = Live(
            console=console,
            screen=True,
            auto_refresh=False,
            get_renderable=self._draw,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    async def run(self) -> None:
        """Draw for ever, so that clocks go on when nothing happens."""
        while True:
            self._live.refresh()
            await asyncio.sleep(1 / _FRAMES_PER_SECOND)

    def chapter(self, number: int, title: str) -> None:
        """Begin a chapter."""
        self._title = f"{number}. {title}"
        self._live.refresh()

    def waiting(self, expected: str) -> None:
        """Show what is waited for."""
        self._waiting = expected
        self._live.refresh()

    def told(self, result: Result) -> None:
        """Show what became of it."""
        self._waiting = ""
        self._results.append(result)
        self._live.refresh()

    def _draw(self) -> RenderableType:
        devices = device_table(self._follower, self._kubelet)
        news = list(self._follower.news)[-_MOST_NEWS:]
        # Everything but the steps: two titles, two headings, three blank lines, the kubelet's line.
        taken = 8 + devices.row_count + _MOST_NEWS
        room = max(1, self._console.height - 1 - taken)
        steps = self._steps(room)
        steps += [Text("")] * (room - len(steps))
        return Group(
            self._heading(),
            Text(self._title, style="bold", no_wrap=True, overflow="ellipsis"),
            Text(""),
            devices,
            Text(self._counts(), style="dim", no_wrap=True, overflow="ellipsis"),
            Text(""),
            *steps,
            Text(""),
            Text("LAST HEARD FROM THE AGENT", style="bold"),
            *(self._news(item) for item in news),
        )

    def _heading(self) -> Text:
        seconds = asyncio.get_running_loop().time() - self._began_at
        text = f"hailo-agent on a simulated node{seconds:9.1f} s"
        return Text(f"{text}    Ctrl-C ends it", style="dim", no_wrap=True, overflow="ellipsis")

    def _counts(self) -> str:
        return f"The kubelet counts {resource_line(self._kubelet)}"

    def _steps(self, room: int) -> list[Text]:
        """Show the newest results, and what is waited for."""
        lines = [self._step(result) for result in self._results]
        if self._waiting:
            lines.append(Text(f"         ...  {self._waiting}", no_wrap=True, overflow="ellipsis"))
        return lines[-room:]

    def _step(self, result: Result) -> Text:
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append_text(_ok(result))
        line.append(f" {duration(result.seconds):>9}", style="bold")
        line.append(f"  {result.expected}: {result.seen}")
        return line

    def _news(self, news: News) -> Text:
        seconds = news.at - self._began_at
        return Text(f"{seconds:7.1f} s  {news.text}", no_wrap=True, overflow="ellipsis")
