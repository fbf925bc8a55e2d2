"""A bell that brings one reader to look again.

Wake-ups coalesce: however often and by whomever it is rung, the reader learns once that it must
look, and for which reasons it was rung. The reasons are for the log line only.
"""

from __future__ import annotations

import asyncio


class Doorbell:
    """A bell already ringing stays silent. Rung from the loop's own thread."""

    def __init__(self) -> None:
        """Start silent."""
        self._ringing = asyncio.Event()
        self._reasons: dict[str, None] = {}
        self._rung_at = 0.0
        self.heard_since = 0.0
        """When it was first rung for the reasons last heard, in seconds of the loop's clock."""

    def ring(self, reason: str) -> None:
        """Ask for a look. The set of reasons is small by nature: callers name kinds, not things."""
        if not self._reasons:
            self._rung_at = asyncio.get_running_loop().time()
        self._reasons[reason] = None
        self._ringing.set()

    async def wait(self, timeout_seconds: float | None = None) -> tuple[str, ...]:
        """Wait until rung and hang the bell up again; no reasons when the time passed first."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ringing.wait()
        except TimeoutError:
            return ()
        reasons = tuple(self._reasons)
        self.heard_since = self._rung_at
        self._reasons.clear()
        self._ringing.clear()
        return reasons
