"""The newest value of something, and a way to wait for the next.

State conflates: a slow follower skips what it missed and gets the newest truth; nobody is waited
for and nothing queues. There is no subscription, hence nothing to unsubscribe, which matters
because a server-streaming handler may be abandoned in the middle of a `yield`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


def _never() -> bool:
    return False


class Latest(Generic[T]):
    """A value that moves. All methods belong to one event loop."""

    def __init__(self, value: T) -> None:
        """Start with a value; there is always one."""
        self._value = value
        self._version = 0
        self._closed = False
        self._moved = asyncio.Event()

    @property
    def value(self) -> T:
        """The newest value."""
        return self._value

    @property
    def version(self) -> int:
        """How often the value has moved."""
        return self._version

    @property
    def closed(self) -> bool:
        """Whether no value will follow."""
        return self._closed

    def publish(self, value: T) -> bool:
        """Move to a new value and wake all followers; an equal value wakes nobody."""
        moved = value != self._value
        self._value = value
        if moved:
            self._version += 1
            self._wake()
        return moved

    def close(self) -> None:
        """End every `follow` after the newest value has been seen."""
        self._closed = True
        self._wake()

    def nudge(self) -> None:
        """Wake all followers without a new value, so that they ask their `until` again."""
        self._wake()

    async def follow(self, *, until: Callable[[], bool] = _never) -> AsyncIterator[T]:
        """Yield the value now, then the newest one after each move, until closed or told to end."""
        seen = -1
        while not until():
            if seen != self._version:
                seen = self._version
                yield self._value
            elif self._closed:
                return
            else:
                await self._moved.wait()

    async def rest(self, seconds: float, *, until: Callable[[], bool] = _never) -> None:
        """Sleep, however the value moves meanwhile; but not beyond closing or being told to end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self._closed or until()):
                    await self._moved.wait()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
