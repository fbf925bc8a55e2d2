"""Liveness and readiness, for whoever restarts us or waits for us.

Alive means that our own services answer over their sockets, not that a task exists. Ready means
that every essential part does its work. Neither decides anything: the checks and the statuses are
handed in by the composition root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from hailo_agent.aio.supervise import State, Status, describe
from hailo_agent.web.answers import JSON, accepts_json, answer, encode, text
from hailo_agent.web.shared import Shared

CHECK_SECONDS: Final = 2.0
"""How long one of our services may take to answer us."""

Check = Callable[[], Awaitable[None]]
"""Calls one of our services as its client would; raises if that fails."""


class Liveness:
    """Calls all of our services at once, for all who ask at the same time."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        """Take the checks by the names that a failure is told under."""
        self._checks = checks
        self._stuck: dict[str, asyncio.Task[None]] = {}
        self._failures = Shared(self._run)

    async def respond(self, request: web.BaseRequest) -> web.Response:  # noqa: ARG002
        """Answer `ok`, or each service that does not answer."""
        failures = await self._failures.get()
        if not failures:
            return text("ok")
        lines = [f"{name}: {failure}" for name, failure in failures.items()]
        return text("\n".join(lines), status=HTTPStatus.SERVICE_UNAVAILABLE)

    def cancel(self) -> None:
        """Give up what is being checked."""
        self._failures.cancel()

    async def _run(self) -> Mapping[str, str]:
        running = {
            name: self._stuck.get(name) or asyncio.create_task(_call(check))
            for name, check in self._checks.items()
        }
        if not running:
            return {}
        try:
            # Not `timeout`: it would wait for a check that does not heed being cancelled.
            await asyncio.wait(running.values(), timeout=CHECK_SECONDS)
        finally:
            self._stuck = {name: task for name, task in running.items() if not task.done()}
            for task in self._stuck.values():
                task.cancel()
        return {name: why for name, task in running.items() if (why := _failure(task))}


async def _call(check: Check) -> None:
    await check()


def _failure(task: asyncio.Task[None]) -> str:
    if not task.done():
        return f"no answer within {CHECK_SECONDS:g} s"
    if task.cancelled():
        return "the call was cancelled"
    error = task.exception()
    return "" if error is None else describe(error)


class Readiness:
    """Tells each part's state, and whether all that must run do."""

    def __init__(self, statuses: Callable[[], Sequence[Status]]) -> None:
        """Take where the parts post their states."""
        self._statuses = statuses

    async def respond(self, request: web.BaseRequest) -> web.Response:
        """Answer in lines for people, or in JSON for who asks for it."""
        statuses = self._statuses()
        ready = bool(statuses) and all(status.is_ready for status in statuses)
        code = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        if accepts_json(request):
            parts = [_part(status) for status in statuses]
            body = encode({"ready": ready, "parts": parts})
            return answer(body, status=code, headers={hdrs.CONTENT_TYPE: JSON})
        width = max((len(status.name) for status in statuses), default=0)
        lines = ["ready" if ready else "not ready", *(_line(s, width) for s in statuses)]
        return text("\n".join(lines), status=code)


def _part(status: Status) -> Mapping[str, object]:
    return {
        "name": status.name,
        "state": status.state.value,
        "reason": status.reason,
        "essential": status.essential,
        "restarts": status.restarts,
    }


def _line(status: Status, width: int) -> str:
    words = [f"{status.name:{width}}  {status.state.value:11}"]
    if status.reason:
        words.append(status.reason)
    if status.restarts:
        words.append(f"(restarts: {status.restarts})")
    if not status.essential and status.state is not State.RUNNING:
        words.append("(not essential)")
    return " ".join(words).rstrip()
