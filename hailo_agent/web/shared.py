"""One answer for all who ask at the same time, so that asking often costs no more than asking."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

SPACING_SECONDS: Final = 0.1
"""However many ask, and however fast: the loop has this long for others between two answers."""


class Shared(Generic[T]):
    """An answer that is made anew for whoever asks, but only once at a time."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        """Take what makes the answer."""
        self._make = make
        self._making: asyncio.Task[T] | None = None
        self._made_at = -SPACING_SECONDS

    async def get(self) -> T:
        """Wait for the answer that is being made, or have one made."""
        if self._making is None:
            self._making = asyncio.create_task(self._make_one())
        return await asyncio.shield(self._making)  # one who hangs up must not spoil it for others

    def cancel(self) -> None:
        """Give up the answer that is being made."""
        if self._making is not None:
            self._making.cancel()

    async def _make_one(self) -> T:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(max(0.0, self._made_at + SPACING_SECONDS - loop.time()))
            return await self._make()
        finally:
            self._made_at = loop.time()
            self._making = None
