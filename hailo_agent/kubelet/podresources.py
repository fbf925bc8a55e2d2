"""Who holds what, and what is counted, as the kubelet's pod-resources API tells it.

Asked now and then, never streamed: the API has no watch. The agent works without it, only then it
cannot tell a gone device that a pod still holds from one that nobody misses, and does not notice
another plugin that registers its resource.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio

from hailo_agent.aio.latest import Latest
from hailo_agent.aio.supervise import Backoff
from hailo_agent.core.observation import Holdings
from hailo_agent.core.standing import Counted
from hailo_agent.errors import EdgeError
from hailo_agent.kubelet.mapping import from_allocatable, from_pods
from hailo_agent.rpc.dial import Channel, PeerRefused, translating
from hailo_agent.rpc.endpoint import identity_of
from hailo_agent.wire import podresources

_TIMEOUT_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.02


@dataclass(slots=True, kw_only=True)
class PodResources:
    """A client with one channel, opened anew after each failure."""

    socket: Path
    resources: frozenset[str]
    interval_seconds: float
    """Between two lists. The kubelet answers all callers of a node from one rate limit."""
    ring: Callable[[str], None]
    is_awaited: Callable[[], bool]
    """Whether somebody waits for a young list, even if it says the same as the last one."""
    holdings: Latest[Holdings | None] = field(default_factory=lambda: Latest(None))
    counted: Latest[Counted | None] = field(default_factory=lambda: Latest(None))
    _mute: tuple[int, int] | None = None
    """The socket that does not tell what is counted: a kubelet before 1.23, or told not to."""

    async def run(self, report: Callable[[str], None]) -> None:
        """List for ever; what was known stays known while the kubelet does not answer."""
        backoff = Backoff(first_seconds=self.interval_seconds, most_seconds=60.0)
        while True:
            try:
                await self._listing(report, backoff)
            except EdgeError as error:
                report(f"{error}; until it answers, gone devices stay listed")
                await anyio.sleep(max(self.interval_seconds, backoff.next()))

    async def ask(self, within_seconds: float) -> bool:
        """Ask once, now, if there is anybody to ask; tells whether there was an answer."""
        if not self.socket.exists():
            return False
        channel = Channel(path=str(self.socket))
        try:
            await self._list(channel, within_seconds)
        except EdgeError:
            return False  # `run` will say what is wrong
        finally:
            channel.close()
        return True

    async def ask_patiently(self, within_seconds: float) -> None:
        """Ask, and again while nothing is known yet: the first list to the kubelet needs it.

        A starting kubelet makes its sockets in no particular order.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + within_seconds
        while not await self.ask(max(until - loop.time(), _RETRY_SECONDS)):
            is_told = self.holdings.value is not None
            if is_told or loop.time() >= until or not self.socket.parent.is_dir():
                return
            await anyio.sleep(_RETRY_SECONDS)

    async def _listing(self, report: Callable[[str], None], backoff: Backoff) -> None:
        channel = Channel(path=str(self.socket))
        try:
            while True:
                await self._list(channel, _TIMEOUT_SECONDS)
                backoff.forget()
                report(await self._count(channel))
                await anyio.sleep(self.interval_seconds)
        finally:
            channel.close()

    async def _list(self, channel: Channel, timeout_seconds: float) -> None:
        at = asyncio.get_running_loop().time()
        with translating("kubelet", f"pod-resources at {self.socket}"):
            answer = await podresources.PodResourcesListerStub(channel).list(
                podresources.ListPodResourcesRequest(), timeout=timeout_seconds
            )
        moved = self.holdings.publish(from_pods(answer.pod_resources, self.resources, at))
        if moved or self.is_awaited():
            self.ring("holdings")

    async def _count(self, channel: Channel) -> str:
        """Learn what is counted; returns why that cannot be learnt, where it should be."""
        socket = self._look()
        if socket is None or socket == self._mute:
            return ""  # if it is gone, the next list will say so
        at = asyncio.get_running_loop().time()
        try:
            with translating("kubelet", f"pod-resources at {self.socket}"):
                answer = await podresources.PodResourcesListerStub(
                    channel
                ).get_allocatable_resources(
                    podresources.AllocatableResourcesRequest(), timeout=_TIMEOUT_SECONDS
                )
        except PeerRefused as error:
            if error.status == "UNIMPLEMENTED" or "disabled" in str(error):
                self._mute = socket
                return ""
            return f"{error}; until it tells, another plugin for our resources goes unnoticed"
        except EdgeError as error:
            if self._look() != socket:
                return ""  # a kubelet that restarts: the next list will say so
            return f"{error}; until it tells, another plugin for our resources goes unnoticed"
        self.counted.publish(from_allocatable(answer.devices, self.resources, at))
        return ""

    def _look(self) -> tuple[int, int] | None:
        try:
            return identity_of(self.socket)
        except OSError:
            return None
