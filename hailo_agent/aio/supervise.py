"""Parts, and the policy by which they are restarted.

A part is a coroutine function that runs until it fails. What fails with an `EdgeError` is weather
and is started again after a backoff; anything else is a bug and rises, unless the part is optional.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

import structlog

from hailo_agent.aio.latest import Latest
from hailo_agent.errors import EdgeError

_log = structlog.get_logger()


class State(StrEnum):
    """Where a part is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing-off"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One part's state, and why in words when it is not running."""

    name: str
    state: State = State.STARTING
    reason: str = ""
    essential: bool = True
    restarts: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether this part keeps the agent from being ready."""
        return self.state is State.RUNNING or not self.essential


class Roster:
    """Where every part posts its state; readiness is the conjunction."""

    def __init__(self) -> None:
        """Start with no part."""
        self.statuses: Latest[tuple[Status, ...]] = Latest(())

    def post(self, status: Status) -> None:
        """Post a part's new state in the place of its old one."""
        others = [s for s in self.statuses.value if s.name != status.name]
        self.statuses.publish(tuple(sorted([*others, status], key=lambda s: s.name)))

    def find(self, name: str) -> Status | None:
        """Look a part up."""
        return next((s for s in self.statuses.value if s.name == name), None)

    @property
    def is_ready(self) -> bool:
        """Whether every essential part runs."""
        return bool(self.statuses.value) and all(s.is_ready for s in self.statuses.value)


@dataclass(slots=True)
class Backoff:
    """Delays that double, with full jitter, and start over after a healthy while."""

    first_seconds: float = 0.2
    most_seconds: float = 30.0
    healthy_seconds: float = 60.0
    _attempt: int = field(default=0, init=False)

    def next(self, ran_seconds: float = 0.0) -> float:
        """Say how long to wait after a run of `ran_seconds` that failed."""
        if ran_seconds >= self.healthy_seconds:
            self._attempt = 0
        ceiling = min(self.first_seconds * 2**self._attempt, self.most_seconds)
        self._attempt = min(self._attempt + 1, 32)
        # Never quite zero, so that a part that fails at once cannot spin.
        return random.uniform(ceiling / 10, ceiling)  # noqa: S311 - jitter, not a secret

    def forget(self) -> None:
        """Start over after a success."""
        self._attempt = 0


Report = Callable[[str], None]
"""A part's own word on itself: empty once it does its work, else what it waits for."""

Run = Callable[[Report], Awaitable[None]]
"""What a part does, until it fails or its work is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A supervised task: its name, its work, and what its failure means."""

    name: str
    run: Run
    essential: bool = True
    """Whether the agent is not ready, and does not survive a bug of it, without this part."""


async def supervise(part: Part, roster: Roster) -> None:
    """Run a part for ever; returns when its work returns.

    Raises whatever bug an essential part raises; of an optional part everything is weather.
    """
    backoff = Backoff()
    loop = asyncio.get_running_loop()
    status = Status(name=part.name, essential=part.essential)
    roster.post(status)

    def report(reason: str) -> None:
        nonlocal status
        state = State.BACKING_OFF if reason else State.RUNNING
        status = replace(status, state=state, reason=reason)
        roster.post(status)

    try:
        while True:
            started_at = loop.time()
            try:
                await part.run(report)
            except Exception as raised:
                error = _weather(raised)
                if error is None and part.essential:
                    roster.post(replace(status, state=State.FAILED, reason=describe(raised)))
                    raise
                if error is None:
                    _log.exception("part.failed", part=part.name)
                delay = backoff.next(loop.time() - started_at)
                if error is not None and error.retry_after is not None:
                    delay = error.retry_after
                status = replace(
                    status,
                    state=State.BACKING_OFF,
                    reason=describe(error or raised),
                    restarts=status.restarts + 1,
                )
                roster.post(status)
                await asyncio.sleep(delay)
            else:
                roster.post(replace(status, state=State.STOPPED, reason=""))
                return
    except asyncio.CancelledError:
        roster.post(replace(status, state=State.STOPPED, reason=""))
        raise


def _weather(error: Exception) -> EdgeError | None:
    """Tell an edge's failure, also from within a task group's; None if there is a bug in it."""
    if isinstance(error, ExceptionGroup):
        causes = [_weather(cause) for cause in error.exceptions if isinstance(cause, Exception)]
        return None if None in causes else causes[0]
    return error if isinstance(error, EdgeError) else None


def describe(error: BaseException) -> str:
    """Say what an error is in one line, never empty."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
