"""Supervision: weather is waited out, a bug rises, and everybody can see how a part is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import count, pairwise

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.aio.supervise import (
    Backoff,
    Part,
    Report,
    Roster,
    State,
    Status,
    describe,
    supervise,
)
from hailo_agent.errors import (
    ConfigError,
    EdgeError,
    HostError,
    KubeletUnavailable,
    PluginDirectoryReplaced,
)

pytestmark = pytest.mark.usefixtures("virtual_clock")


class Bug(Exception):
    """What nobody expected."""


def weather(message: str = "no answer", retry_after: float | None = None) -> EdgeError:
    return KubeletUnavailable(message, edge="kubelet", retry_after=retry_after)


class Work:
    """A part's work that fails as told, run by run, and then goes on for ever."""

    def __init__(self, *failures: BaseException | None, seconds: float = 0.0) -> None:
        self.failures = list(failures)
        self.seconds = seconds
        self.started_at: list[float] = []

    async def __call__(self, report: Report) -> None:
        self.started_at.append(asyncio.get_running_loop().time())
        report("")
        await asyncio.sleep(self.seconds)
        if not self.failures:
            await asyncio.get_running_loop().create_future()
        failure = self.failures.pop(0)
        if failure is not None:
            raise failure

    @property
    def pauses(self) -> list[float]:
        """How long the part was left alone between its runs."""
        return [b - a - self.seconds for a, b in pairwise(self.started_at)]


class Diary(Roster):
    """A roster that remembers everything that was posted."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[Status] = []

    def post(self, status: Status) -> None:
        self.posted.append(status)
        super().post(status)


def part(run: Callable[[Report], Awaitable[None]], *, essential: bool = True) -> Part:
    return Part(name="plugin", run=run, essential=essential)


async def supervised(
    work: Work, *, essential: bool = True, seconds: float = 3600.0
) -> tuple[list[Status], BaseException | None]:
    """Supervise for so long; returns everything posted, and what rose."""
    roster = Diary()
    task = asyncio.create_task(supervise(part(work, essential=essential), roster))
    await asyncio.wait([task], timeout=seconds)
    if not task.done():
        task.cancel()
    (raised,) = await asyncio.gather(task, return_exceptions=True)
    return roster.posted, raised


def states(posted: list[Status]) -> list[State]:
    return [status.state for status in posted]


@pytest.fixture
def log() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


# --- what rises, and what is waited out ----------------------------------------------------------


async def test_an_edge_that_fails_is_tried_again_after_a_pause() -> None:
    work = Work(weather(), weather())
    posted, raised = await supervised(work)
    assert isinstance(raised, asyncio.CancelledError)
    assert len(work.started_at) == 3
    assert all(pause > 0 for pause in work.pauses)
    assert [status.restarts for status in posted][-1] == 2


async def test_a_bug_of_an_essential_part_rises_and_is_posted() -> None:
    work = Work(Bug("out of range"))
    posted, raised = await supervised(work)
    assert isinstance(raised, Bug)
    assert len(work.started_at) == 1
    assert (posted[-1].state, posted[-1].reason) == (State.FAILED, "out of range")


async def test_a_bug_of_an_optional_part_is_logged_and_tried_again(
    log: list[structlog.typing.EventDict],
) -> None:
    work = Work(Bug("out of range"))
    posted, _ = await supervised(work, essential=False)
    assert len(work.started_at) == 2
    assert State.FAILED not in states(posted)
    (line,) = log
    assert (line["event"], line["part"], line["log_level"]) == ("part.failed", "plugin", "error")
    assert line["exc_info"]


async def test_weather_is_not_logged_as_a_bug(log: list[structlog.typing.EventDict]) -> None:
    await supervised(Work(weather()), essential=False)
    assert log == []


@pytest.mark.parametrize(
    "failure",
    [
        ExceptionGroup("several", [weather("one"), HostError("two", edge="host")]),
        ExceptionGroup("nested", [ExceptionGroup("deep", [weather("one")]), weather("two")]),
    ],
)
async def test_a_group_of_edges_that_fail_is_weather(failure: ExceptionGroup[Exception]) -> None:
    work = Work(failure)
    posted, _ = await supervised(work)
    assert len(work.started_at) == 2
    assert "one" in [status.reason for status in posted]


@pytest.mark.parametrize(
    "failure",
    [
        ExceptionGroup("mixed", [weather(), Bug("worse")]),
        ExceptionGroup("nested", [weather(), ExceptionGroup("deep", [Bug("worse")])]),
        ExceptionGroup("ended", [weather(), PluginDirectoryReplaced("gone")]),
    ],
)
async def test_a_group_with_a_bug_in_it_is_a_bug(failure: ExceptionGroup[Exception]) -> None:
    posted, raised = await supervised(Work(failure))
    assert raised is failure
    assert posted[-1].state is State.FAILED


@pytest.mark.parametrize("failure", [PluginDirectoryReplaced("gone"), ConfigError("no")])
async def test_what_trying_again_cannot_mend_rises(failure: Exception) -> None:
    _, raised = await supervised(Work(failure))
    assert raised is failure


async def test_a_part_whose_work_is_over_is_stopped_and_not_run_again() -> None:
    work = Work(None)
    posted, raised = await supervised(work)
    assert raised is None
    assert len(work.started_at) == 1
    assert (posted[-1].state, posted[-1].reason) == (State.STOPPED, "")


async def test_a_part_that_is_cancelled_at_work_is_stopped() -> None:
    posted, raised = await supervised(Work(), seconds=5.0)
    assert isinstance(raised, asyncio.CancelledError)
    assert states(posted) == [State.STARTING, State.RUNNING, State.STOPPED]


async def test_a_part_that_is_cancelled_while_backing_off_is_stopped() -> None:
    posted, raised = await supervised(Work(weather(retry_after=100.0)), seconds=5.0)
    assert isinstance(raised, asyncio.CancelledError)
    assert states(posted)[-2:] == [State.BACKING_OFF, State.STOPPED]
    assert posted[-1].reason == ""


# --- what can be seen ----------------------------------------------------------------------------


async def test_a_part_is_starting_running_backing_off_and_running_again() -> None:
    posted, _ = await supervised(Work(weather("no answer")))
    assert states(posted) == [
        State.STARTING,
        State.RUNNING,
        State.BACKING_OFF,
        State.RUNNING,
        State.STOPPED,
    ]
    assert [status.reason for status in posted] == ["", "", "no answer", "", ""]
    assert [status.restarts for status in posted] == [0, 0, 1, 1, 1]


async def test_a_part_says_itself_what_it_waits_for() -> None:
    roster = Roster()

    async def work(report: Report) -> None:
        report("waiting for the kubelet")
        await asyncio.sleep(10.0)
        report("")
        await asyncio.sleep(10.0)

    task = asyncio.create_task(supervise(part(work), roster))
    seen = []
    for _ in range(3):
        await asyncio.sleep(7.0)
        status = roster.find("plugin")
        assert status is not None
        seen.append((status.state, status.reason, roster.is_ready))
    await task
    assert seen == [
        (State.BACKING_OFF, "waiting for the kubelet", False),
        (State.RUNNING, "", True),
        (State.STOPPED, "", False),
    ]


def test_a_roster_is_ready_when_every_essential_part_runs() -> None:
    roster = Roster()
    ready = [roster.is_ready]
    for status in (
        Status(name="b", state=State.RUNNING),
        Status(name="a", state=State.BACKING_OFF, essential=False),
        Status(name="b", state=State.BACKING_OFF),
        Status(name="b", state=State.STARTING),
        Status(name="b", state=State.RUNNING),
        Status(name="c", state=State.FAILED),
    ):
        roster.post(status)
        ready.append(roster.is_ready)
    assert ready == [False, True, True, False, False, True, False]


def test_a_roster_keeps_one_status_of_each_part_in_order() -> None:
    roster = Roster()
    for name, state in (("b", State.STARTING), ("a", State.RUNNING), ("b", State.RUNNING)):
        roster.post(Status(name=name, state=state))
    assert [(s.name, s.state) for s in roster.statuses.value] == [
        ("a", State.RUNNING),
        ("b", State.RUNNING),
    ]
    assert roster.find("a") == Status(name="a", state=State.RUNNING)
    assert roster.find("c") is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Bug("plain"), "plain"),
        (Bug("two\n  lines\tof it "), "two lines of it"),
        (Bug(), "Bug"),
        (Bug(" \n "), "Bug"),
    ],
)
def test_an_error_is_described_in_one_line_that_is_never_empty(error: Bug, words: str) -> None:
    assert describe(error) == words


# --- how long ------------------------------------------------------------------------------------


async def test_an_edge_that_says_when_is_taken_at_its_word() -> None:
    work = Work(weather(retry_after=42.0), weather(retry_after=0.0))
    await supervised(work)
    assert work.pauses == [pytest.approx(42.0), pytest.approx(0.0, abs=0.01)]


async def test_pauses_grow_and_then_stay_below_half_a_minute() -> None:
    work = Work(*[weather() for _ in range(12)])
    await supervised(work)
    assert len(work.pauses) == 12
    for attempt, pause in enumerate(work.pauses):
        ceiling = min(0.2 * 2**attempt, 30.0)
        assert ceiling / 10 <= pause <= ceiling + 0.01


async def test_a_run_that_was_long_well_starts_the_pauses_over() -> None:
    work = Work(*[weather() for _ in range(8)], seconds=61.0)
    await supervised(work)
    assert len(work.pauses) == 8
    assert max(work.pauses) <= 0.21


seconds = st.floats(0.001, 100.0)


@given(st.lists(st.floats(0.0, 59.9), max_size=60), seconds, seconds)
def test_a_backoff_stays_within_its_bounds(
    runs: list[float], first_seconds: float, most_seconds: float
) -> None:
    backoff = Backoff(first_seconds=first_seconds, most_seconds=most_seconds)
    for attempt, ran in enumerate(runs):
        ceiling = min(first_seconds * 2**attempt, most_seconds)
        assert ceiling / 10 * 0.999 <= backoff.next(ran) <= ceiling * 1.001


@given(st.integers(0, 40))
def test_a_backoff_starts_over_when_told_or_after_a_healthy_while(failures: int) -> None:
    told, healthy = Backoff(), Backoff()
    for _ in range(failures):
        told.next()
        healthy.next()
    told.forget()
    assert told.next() <= 0.2
    assert healthy.next(60.0) <= 0.2
    assert max(told.next(), healthy.next()) <= 0.4


def test_a_backoff_survives_a_year_of_failures() -> None:
    backoff = Backoff()
    for _ in range(2_000):
        assert 0 < backoff.next() <= 30.0


def test_two_backoffs_do_not_march_in_step() -> None:
    # Full jitter: parts that fail together do not come back together.
    one, other = Backoff(), Backoff()
    assert [one.next() for _ in range(8)] != [other.next() for _ in range(8)]


async def test_parts_do_not_share_their_troubles() -> None:
    roster = Roster()
    names = count()
    works = [Work(weather()), Work()]
    tasks = [
        asyncio.create_task(supervise(Part(name=f"p{next(names)}", run=work), roster))
        for work in works
    ]
    await asyncio.sleep(100.0)
    assert [(s.name, s.restarts) for s in roster.statuses.value] == [("p0", 1), ("p1", 0)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
