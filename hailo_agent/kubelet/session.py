"""One resource's life with the kubelet: a straight line in a loop, not a state machine.

The kubelet's socket exists → ours is served → we call ourselves → we register → until it is lost →
again. Lost is what cannot be seen from inside: our socket's file is gone or replaced, the kubelet's
socket is another one, nobody listens to our list, or the kubelet counts none of it.

Another plugin for our resource is not fought: the newest registration wins, so that two that
answer each other in kind would take turns for ever. We say so and wait until it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from hailo_agent.aio.doorbell import Doorbell
from hailo_agent.aio.latest import Latest
from hailo_agent.aio.supervise import Backoff
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import endpoint_name
from hailo_agent.core.standing import NAMED, Counted, Standing, Told, Verdict, named, weigh
from hailo_agent.errors import (
    EdgeError,
    KubeletUnavailable,
    PluginDirectoryReplaced,
    RegistrationRejected,
)
from hailo_agent.kubelet.deviceplugin import LIST_METHOD, DevicePlugin, Terms
from hailo_agent.rpc.dial import PeerRefused, dialing, translating
from hailo_agent.rpc.endpoint import Endpoint, identity_of, serving
from hailo_agent.wire import deviceplugin

API_VERSION: Final = "v1beta1"
KUBELET_SOCKET: Final = "kubelet.sock"
_CHECK_SECONDS: Final = 0.5
"""Without inotify the kubelet's return is seen this late; a look costs two stats."""
_SELF_DIAL_SECONDS: Final = 5.0
_HANG_UP_SECONDS: Final = 5.0
_FORGOTTEN_SECONDS: Final = 0.5
_LOST_SECONDS: Final = 5.0
"""How long a list may go unheard after it was heard."""
_UNHEARD_SECONDS: Final = 20.0
"""How long a list may go unheard after a Register. The kubelet asks at once, if it asks at all."""
_ANSWERS: Final = 2
"""So many answers in a row that say the same are believed."""
_MOST_ANSWERS: Final = 64
"""So many at most, where registering anew has not helped; ten minutes at the usual pace."""
_YIELD_SECONDS: Final = 2.0
"""Between two looks whether who took our socket's place is still there."""
_TAKEN_SECONDS: Final = 1.0
"""Within which it answers if it is; else the place is ours."""
_HANDOVER_SECONDS: Final = 0.5

_log = structlog.get_logger()

Identity = tuple[int, int]


@dataclass(slots=True, kw_only=True)
class Session:
    """Keeps one resource registered with whatever kubelet there is."""

    directory: Path
    terms: Terms
    inventory: Latest[Inventory]
    register_seconds: float
    """The kubelet calls us back under this deadline before it answers."""
    prepare: Callable[[], Awaitable[None]]
    """Called before each registration, for what must be known by then; takes a moment at most."""
    hints: Doorbell = field(default_factory=Doorbell)
    """Rung when something in the directory changed."""
    counted: Latest[Counted | None] = field(default_factory=lambda: Latest(None))
    """What the kubelet counts, asked now and then; None where it does not tell."""
    _home: Identity | None = None
    _complaint: str = ""
    _is_serving: bool = False
    _odd: str = ""
    """Why the last registration came to nothing, though nothing went wrong with it."""
    _repeats: bool = False
    """Whether it came to nothing for the same reason as the one before."""
    _contest: str = ""
    """What was said last of another plugin."""
    _answers: int = _ANSWERS
    """How many answers it takes to believe that nothing of ours is counted."""

    async def run(self, report: Callable[[str], None]) -> None:
        """Serve and register, again and again.

        Raises:
            PluginDirectoryReplaced: the directory is not the one we began in.
        """
        backoff = Backoff()
        loop = asyncio.get_running_loop()
        while True:
            kubelet = await self._kubelet_present(report)
            if kubelet is None:
                return
            started_at = loop.time()
            try:
                lost = await self._once(kubelet, report)
            except EdgeError as error:
                self._check_home()
                delay = backoff.next(loop.time() - started_at)
                self._complain(error, report)
            else:
                if self.inventory.closed:
                    return
                delay = backoff.next(loop.time() - started_at) if lost.is_odd else 0.0
                report(lost.reason)
                # What goes on and on is said once; the roster has the reason all the while.
                self._repeats = lost.is_odd and lost.reason == self._odd
                write = _log.debug if self._repeats else _log.warning
                write("plugin.lost", resource=self.terms.resource, reason=lost.reason)
                self._odd = lost.reason if lost.is_odd else ""
                if lost.is_displaced:
                    await self._yield(kubelet)
            await self._pause(delay, kubelet)

    async def check(self) -> None:
        """Call ourselves as the kubelet would, if we serve.

        Raises:
            EdgeError: there is no answer.
        """
        if self._is_serving:
            await self._call_self(self.directory / endpoint_name(self.terms.resource))

    async def _once(self, kubelet: Identity, report: Callable[[str], None]) -> _Lost:
        """Be registered once; returns why it is over, when every stream has ended."""
        await self.prepare()
        plugin = DevicePlugin(self.inventory, self.terms)
        path = self.directory / endpoint_name(self.terms.resource)
        is_taken = await self._is_taken(path)
        async with serving(path, [plugin], edge="kubelet", timed=self._timed) as endpoint:
            await self._call_self(path)
            if is_taken:
                # An older one of us yields; the end of its stream would disconnect ours.
                await asyncio.sleep(_HANDOVER_SECONDS)
            self._is_serving = True
            try:
                await self._register(endpoint, kubelet)
                report("")
                self.terms.tally.count("registrations", self.terms.resource, "accepted")
                self._complaint = ""
                write = _log.debug if self._repeats else _log.info
                write(
                    "plugin.registered", resource=self.terms.resource, endpoint={"path": str(path)}
                )
                lost = await self._until_lost(endpoint, kubelet, plugin, report)
                plugin.close()
                # Only when the kubelet has hung up has it done with the old stream. Were we to
                # register before, the end of the old stream would disconnect the new one.
                # It never does so with whom it has forgotten.
                patience = _FORGOTTEN_SECONDS if lost.is_forgotten else _HANG_UP_SECONDS
                await endpoint.connections.all_closed(patience)
            finally:
                self._is_serving = False
        return lost

    def _timed(self, method: str, status: str, seconds: float) -> None:
        self.terms.tally.time("rpcs", method, status, seconds=seconds)

    async def _kubelet_present(self, report: Callable[[str], None]) -> Identity | None:
        """Wait for the kubelet's socket; None if the agent stops before it comes."""
        waiting_for = ""
        while not self.inventory.closed:
            self._check_home()
            kubelet = self._look(KUBELET_SOCKET)
            if kubelet is not None:
                return kubelet
            reason = f"waiting for the kubelet's socket {self.directory / KUBELET_SOCKET}"
            write = _log.info
            if self._home is None:
                reason += "; its directory does not exist: mount it, or set kubelet.plugin_dir"
                write = _log.warning
            if reason != waiting_for:
                waiting_for = reason
                report(reason)
                write("plugin.waiting", resource=self.terms.resource, reason=reason)
            await self.hints.wait(_CHECK_SECONDS)
        return None

    def _complain(self, error: EdgeError, report: Callable[[str], None]) -> None:
        """Say what is wrong, once for as long as it stays the same."""
        report(str(error))
        rejected = isinstance(error, RegistrationRejected)
        outcome = "rejected" if rejected else "failed"
        self.terms.tally.count("registrations", self.terms.resource, outcome)
        if str(error) == self._complaint:
            return
        self._complaint = str(error)
        _log.warning(
            "plugin.rejected" if rejected else "plugin.unregistered",
            resource=self.terms.resource,
            error={"type": type(error).__name__, "message": str(error)},
        )

    async def _call_self(self, path: Path, seconds: float = _SELF_DIAL_SECONDS) -> None:
        """Make sure that the socket answers before anybody is told of it."""
        with translating("kubelet", f"calling ourselves at {path}"):
            async with dialing(path) as channel:
                await deviceplugin.DevicePluginStub(channel).get_device_plugin_options(
                    deviceplugin.Empty(), timeout=seconds
                )

    async def _register(self, endpoint: Endpoint, kubelet: Identity) -> None:
        """Register, and give it up only when it has become pointless.

        A kubelet that clears its directory meanwhile would go on dialling a socket that is gone.
        """
        call = asyncio.create_task(self._call_register(endpoint.path.name))
        try:
            while not (await asyncio.wait([call], timeout=_CHECK_SECONDS))[0]:
                if not endpoint.is_published() or self._look(KUBELET_SOCKET) != kubelet:
                    raise KubeletUnavailable(
                        "the kubelet cleared its directory while we registered", edge="kubelet"
                    )
            await call
        finally:
            call.cancel()

    async def _call_register(self, endpoint: str) -> None:
        path = self.directory / KUBELET_SOCKET
        request = deviceplugin.RegisterRequest(
            version=API_VERSION,
            endpoint=endpoint,
            resource_name=self.terms.resource,
            options=DevicePlugin.options(),
        )
        try:
            with translating("kubelet", f"registering at {path}"):
                async with dialing(path) as channel:
                    # grpclib tells a deadline in whole seconds, rounded down.
                    await deviceplugin.RegistrationStub(channel).register(
                        request, timeout=self.register_seconds + 1.0
                    )
        except PeerRefused as error:
            raise RegistrationRejected(str(error), edge="kubelet") from error
        except EdgeError as error:
            raise KubeletUnavailable(str(error), edge="kubelet") from error

    async def _until_lost(
        self,
        endpoint: Endpoint,
        kubelet: Identity,
        plugin: DevicePlugin,
        report: Callable[[str], None],
    ) -> _Lost:
        loop = asyncio.get_running_loop()
        patience = _UNHEARD_SECONDS
        heard_at = loop.time()
        account = _Account(resource=self.terms.resource, answer=self.counted.value)
        while True:
            lost = self._lost_files(endpoint, kubelet)
            if lost is not None:
                return lost
            if endpoint.calls.running[LIST_METHOD]:
                heard_at, patience = loop.time(), _LOST_SECONDS
            elif endpoint.calls.begun[LIST_METHOD]:
                patience = _LOST_SECONDS
            if loop.time() - heard_at > patience:
                return _Lost("the kubelet does not listen to our list", is_odd=True)
            told = plugin.told if endpoint.calls.running[LIST_METHOD] else None
            if account.enter(self.counted.value, told):
                lost = self._judge(account, report)
                if lost is not None:
                    return lost
            await self.hints.wait(_CHECK_SECONDS)

    def _lost_files(self, endpoint: Endpoint, kubelet: Identity) -> _Lost | None:
        """Say what in the directory shows that the registration is lost, if it does."""
        self._check_home()
        if self.inventory.closed:
            return _Lost("the agent stops")
        if self._look(KUBELET_SOCKET) != kubelet:
            return _Lost("the kubelet's socket is another one or gone")
        if endpoint.is_published():
            return None
        if self._look(endpoint.path.name) is None:
            return _Lost("our socket was removed from the plugin directory")
        return _Lost(
            f"another process put its socket in the place of {endpoint.path}", is_displaced=True
        )

    def _judge(self, account: _Account, report: Callable[[str], None]) -> _Lost | None:
        """Say whether what the kubelet counts shows that the registration is lost."""
        standing, resource = account.standing, self.terms.resource
        if standing.times < _ANSWERS or standing.told is None:
            return None
        if standing.verdict is Verdict.CONTESTED:
            account.was_contested = True
            report(self._contested(standing))
            return None
        self._contest = ""
        if standing.verdict is Verdict.UNCOUNTED:
            reason = (
                f"the kubelet counts no device of {resource}, though our list says"
                f" {len(standing.told.healthy)}: another plugin of that name came and went"
            )
            report(reason)
            if standing.times < self._answers:
                return None
            self._answers = min(2 * self._answers, _MOST_ANSWERS)
            return _Lost(reason, is_odd=True, is_forgotten=True)
        self._answers, self._odd, self._repeats = _ANSWERS, "", False
        if account.was_contested:
            # The table is as our list says, for ours was the last one; Allocate goes elsewhere.
            return _Lost(f"another plugin served {resource} meanwhile", is_forgotten=True)
        report("")
        return None

    def _contested(self, standing: Standing) -> str:
        """Say once that another plugin serves our resource; returns it for the roster."""
        reason = f"the kubelet counts {named(standing.others)}, which our list does not offer"
        reason = f"another plugin serves {self.terms.resource}: {reason}"
        remedy = f"remove the other plugin; each has a socket in {self.directory}"
        if not self._contest:
            _log.warning(
                "plugin.contested",
                resource=self.terms.resource,
                reason=reason,
                devices=list(standing.others[:NAMED]),
                remedy=remedy,
            )
        self._contest = reason
        return f"{reason}; {remedy}"

    async def _yield(self, kubelet: Identity) -> None:
        """Wait while who took our socket's place answers there: it is the newer one."""
        path = self.directory / endpoint_name(self.terms.resource)
        while not self.inventory.closed and self._look(KUBELET_SOCKET) == kubelet:
            if not await self._is_taken(path):
                return
            await self.hints.wait(_YIELD_SECONDS)

    async def _is_taken(self, path: Path) -> bool:
        """Whether somebody answers there; what a killed process left behind refuses at once."""
        if self._look(path.name) is None:
            return False
        try:
            await self._call_self(path, _TAKEN_SECONDS)
        except EdgeError:
            return False
        return True

    async def _pause(self, delay: float, kubelet: Identity) -> None:
        """Wait, but not beyond the appearance of another kubelet: that one deserves a fresh try."""
        loop = asyncio.get_running_loop()
        until = loop.time() + delay
        while (left := until - loop.time()) > 0 and self._look(KUBELET_SOCKET) == kubelet:
            if self.inventory.closed:
                return
            await self.hints.wait(min(left, _CHECK_SECONDS))

    def _look(self, name: str) -> Identity | None:
        try:
            return identity_of(self.directory / name)
        except OSError as error:
            raise KubeletUnavailable(f"{self.directory}: {error}", edge="kubelet") from error

    def _check_home(self) -> None:
        """Make sure that the directory still is the one that the kubelet looks into.

        Raises:
            PluginDirectoryReplaced: it was removed or replaced. A container's mount keeps showing
                the old one, so only a new process, with a new mount, can help.
        """
        try:
            found = self.directory.stat()
        except OSError:
            home = None
        else:
            home = (found.st_dev, found.st_ino) if found.st_nlink else None
        if self._home is not None and home != self._home:
            raise PluginDirectoryReplaced(
                f"{self.directory} was removed or replaced; a new process must mount it anew"
            )
        self._home = home


@dataclass(frozen=True, slots=True)
class _Lost:
    """Why a registration is over; odd if nothing in the directory explains it."""

    reason: str
    is_odd: bool = False
    is_displaced: bool = False
    """Whether another process serves at our path."""
    is_forgotten: bool = False
    """Whether the kubelet has forgotten us for another plugin."""


@dataclass(slots=True, kw_only=True)
class _Account:
    """What the kubelet has counted since one registration."""

    resource: str
    answer: Counted | None
    """The newest answer that has been weighed, or was there before."""
    standing: Standing = field(default_factory=Standing)
    was_contested: bool = False

    def enter(self, answer: Counted | None, told: Told | None) -> bool:
        """Weigh an answer if it is a new one; tells whether it was."""
        if answer is None or answer is self.answer:
            return False
        self.answer = answer
        self.standing = weigh(self.standing, self.resource, told, answer)
        return True
