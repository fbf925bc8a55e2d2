"""The composition root: who lives, in which order they start, and what they hand to each other.

The only room that knows all edges. It passes plain callables and values between them, so that no
edge ever imports another.
"""

from __future__ import annotations

import asyncio
import importlib
import platform
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from hailo_agent import __version__, outfit
from hailo_agent.aio.doorbell import Doorbell
from hailo_agent.aio.latest import Latest
from hailo_agent.aio.supervise import Part, Report, Roster, State, Status, supervise
from hailo_agent.aio.tally import Tally
from hailo_agent.core.cdi import Spec, numbers, render
from hailo_agent.core.cordon import Cordons
from hailo_agent.core.device import DeviceId, DeviceNumber
from hailo_agent.core.grant import Delivery
from hailo_agent.core.inventory import FORGET_GRACE_SECONDS, Inventory, decide
from hailo_agent.core.observation import Observation
from hailo_agent.core.offer import endpoint_name
from hailo_agent.core.runtimes import doubt
from hailo_agent.core.usage import DeviceUsage
from hailo_agent.errors import EdgeError, SpecStoreError
from hailo_agent.host import uevent
from hailo_agent.host.cordons import CordonFile
from hailo_agent.host.monitor import MonitorReader, has_own_filesystem
from hailo_agent.host.senses import Target
from hailo_agent.host.watch import Watched, watch
from hailo_agent.kubelet.deviceplugin import Terms
from hailo_agent.kubelet.podresources import PodResources
from hailo_agent.kubelet.session import KUBELET_SOCKET, Session
from hailo_agent.reconcile import Reconciler
from hailo_agent.rpc.endpoint import serving
from hailo_agent.runtime.links import DeviceLinks
from hailo_agent.runtime.specs import SpecStore
from hailo_agent.settings import Settings
from hailo_agent.subscribers import client
from hailo_agent.subscribers.mapping import to_inventory
from hailo_agent.subscribers.service import DeviceEvents
from hailo_agent.wire import agentapi

_FIRST_HOLDINGS_SECONDS: Final = 0.5
_SPEC_CHECK_SECONDS: Final = 2.0
"""Without inotify, a spec that somebody deletes is missed this late."""
_STREAMS_END_SECONDS: Final = 2.0
_CORDONS_SECONDS: Final = 2.0
_MONITOR_DEADLINE_SECONDS: Final = 2.0
_USAGE_SECONDS: Final = 1.0
_RENEWAL_SECONDS: Final = 0.1
_OWN_FILESYSTEM: Final = "mount a tmpfs with a size there: containers may fill it"
_ANSWERED_SECONDS: Final = 0.05
"""By then the kubelet has its answer; what follows from a grant must not compete with that."""
_NEEDS_NO_LOOK: Final = frozenset(
    {"granted", "holdings", "vitals", "query", "cordon", "notification", "hailortcli"}
)
_THOROUGH: Final = frozenset({"start", "resync", "hangup"})

_log = structlog.get_logger()


async def run(settings: Settings, *, reload: Callable[[], None]) -> None:
    """Run the agent until SIGTERM or SIGINT. SIGHUP looks again, and calls `reload`.

    Raises:
        PluginDirectoryReplaced: a new process is needed (inside an exception group).
    """
    await _run(Agent(settings), reload)


async def run_without_kubelet(settings: Settings, *, reload: Callable[[], None]) -> None:
    """Keep the spec true, for podman and docker; nobody is told of devices but subscribers.

    No pod can hold a device here, so what is gone is forgotten at once.
    """
    kubelet = settings.kubelet.model_copy(update={"tombstone_seconds": 0.0})
    runtime = settings.runtime.model_copy(update={"delivery": (Delivery.CRI.value,)})
    update = {"kubelet": kubelet, "runtime": runtime}
    await _run(Agent(settings.model_copy(update=update), with_kubelet=False), reload)


async def _run(agent: Agent, reload: Callable[[], None]) -> None:
    async with anyio.create_task_group() as group:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            # In a task: a look that hangs must not keep us from hearing that we should stop.
            group.start_soon(agent.start, group)
            async for number in signals:
                if number is signal.SIGHUP:
                    reload()
                    agent.bell.ring("hangup")
                    continue
                _log.info("agent.stopping", signal=signal.Signals(number).name)
                await agent.stop()
                group.cancel_scope.cancel()
                break
    _log.info("agent.stopped")


async def look(settings: Settings) -> agentapi.Inventory:
    """Look at the machine once, without an agent, a kubelet or a trace."""
    _, inventory = await observe_once(settings)
    return to_inventory(inventory, 0, (), outfit.about(settings, outfit.resource_names(settings)))


async def look_for_spec(settings: Settings) -> tuple[Spec | None, Mapping[str, DeviceNumber]]:
    """Render the spec of what is here now, and the device numbers behind its names."""
    _, inventory = await observe_once(settings)
    return render(inventory, outfit.place(settings)), numbers(inventory)


async def observe_once(settings: Settings) -> tuple[Observation, Inventory]:
    """Look at the machine once, and weigh what was seen.

    Raises:
        HostError: sysfs does not answer.
    """
    seen = await outfit.scanner(settings).look(asyncio.get_running_loop().time(), thorough=True)
    cordons = await anyio.to_thread.run_sync(CordonFile(settings.host.cordon_file).read)
    seen = replace(seen, cordons=Cordons(entries=cordons.entries, trouble=cordons.trouble))
    return seen, decide(Inventory(), seen, outfit.policy(settings, outfit.resource_names(settings)))


class Agent:
    """Everything that lives while the agent runs. Started once, in a task group of the caller's."""

    def __init__(self, settings: Settings, *, with_kubelet: bool = True) -> None:
        self.settings = settings
        self._with_kubelet = with_kubelet
        self.bell = Doorbell()
        self.roster = Roster()
        self.tally = Tally()
        self.inventory: Latest[Inventory] = Latest(Inventory())
        self._delivery = frozenset(Delivery(way) for way in settings.runtime.delivery)
        self._names = outfit.resource_names(settings)
        self._specs = SpecStore(
            directory=settings.runtime.cdi_dir, search=settings.runtime.cdi_search_dirs
        )
        self._holdings = PodResources(
            socket=settings.kubelet.root / "pod-resources" / KUBELET_SOCKET,
            resources=frozenset(self._names.all()),
            interval_seconds=settings.kubelet.pod_resources_seconds,
            ring=self.bell.ring,
            is_awaited=self._awaits_holdings,
        )
        self._scanner = outfit.scanner(settings)
        monitor = settings.monitor
        self._monitor = (
            MonitorReader(directory=monitor.dir, timeout_seconds=_MONITOR_DEADLINE_SECONDS)
            if monitor.enabled and self._needs_spec
            else None
        )
        self._monitor_trouble = ""
        self.usage: Mapping[DeviceId, DeviceUsage] = {}
        """What each device's holder says that it does with it."""
        self._reconciler = Reconciler(
            bell=self.bell,
            observe=self._observe,
            policy=outfit.policy(settings, self._names),
            specs=self._specs if self._needs_spec else None,
            links=DeviceLinks(settings.runtime.links_dir)
            if Delivery.DEVICESPEC in self._delivery
            else None,
            place=outfit.place(settings),
            inventory=self.inventory,
            prepared=None if self._monitor is None else self._make_directories,
            resync_seconds=settings.host.resync_seconds,
            tally=self.tally,
        )
        resources = self._names.all() if with_kubelet else ()
        self._sessions = tuple(self._session(resource) for resource in resources)
        self._cordons = CordonFile(settings.host.cordon_file)
        self._cordoned = Cordons(is_complete=False)
        self._senses = outfit.senses(settings, self._targets, self.bell.ring)
        self._granted_at: dict[DeviceId, float] = {}
        self._seen: Observation | None = None

    @property
    def _needs_spec(self) -> bool:
        return any(way.needs_spec for way in self._delivery)

    async def start(self, group: TaskGroup) -> None:
        """Start everything, each part when those it relies on are up; returns when all have begun.

        The order is that of the data: what is true is known before anybody is told.
        """
        self._introduce()
        for name in ("reconciler", *(f"plugin {s.terms.resource}" for s in self._sessions)):
            self.roster.post(Status(name=name))  # so that nobody is told of readiness before
        group.start_soon(self._narrate)
        if self.settings.subscribers.socket is not None:
            self._begin(group, Part(name="subscribers", run=self._serve_events, essential=False))
        if self._needs_spec:
            await self._remove_leftovers()
        started_at = asyncio.get_running_loop().time()
        if self._with_kubelet:
            await self._holdings.ask(_FIRST_HOLDINGS_SECONDS)
        self._begin(group, Part(name="reconciler", run=self._reconciler.run))
        for part in self._sensors():
            self._begin(group, part)
        await self._weighed(started_at)
        for session in self._sessions:
            self._begin(group, Part(name=f"plugin {session.terms.resource}", run=session.run))
        if self._with_kubelet:
            self._begin(group, Part(name="pod-resources", run=self._holdings.run, essential=False))
        if self.settings.web.listen:
            self._begin(group, Part(name="web", run=self._serve_web, essential=False))

    async def stop(self) -> None:
        """End every stream, and give those who listen a moment to hang up by themselves."""
        self.inventory.close()
        self._hint_sessions()
        plugins = {f"plugin {session.terms.resource}" for session in self._sessions}
        with anyio.move_on_after(_STREAMS_END_SECONDS):
            async for statuses in self.roster.statuses.follow():
                if all(s.state is State.STOPPED for s in statuses if s.name in plugins):
                    return

    async def _weighed(self, at: float) -> None:
        """Wait until what was known at this time is in the inventory."""
        async for weighed_at in self._reconciler.weighed_at.follow():
            if weighed_at >= at:
                return

    async def _learn_holders(self) -> None:
        """Learn what a kubelet remembers, before it is told of devices."""
        fetched_at = asyncio.get_running_loop().time()
        await self._holdings.ask_patiently(_FIRST_HOLDINGS_SECONDS)
        self.bell.ring("holdings")
        with anyio.move_on_after(_FIRST_HOLDINGS_SECONDS):
            await self._weighed(fetched_at)

    def _begin(self, group: TaskGroup, part: Part) -> None:
        group.start_soon(partial(supervise, part, self.roster), name=part.name)

    def _introduce(self) -> None:
        _log.info(
            "agent.started",
            resources=[session.terms.resource for session in self._sessions],
            delivery=sorted(self._delivery),
            spec={"path": str(self._specs.path)} if self._needs_spec else None,
            plugin_dir=str(self.settings.kubelet.plugin_dir) if self._with_kubelet else None,
            sensors=[part.name for part in self._sensors()],
        )
        reason = doubt(self.settings.runtime.version, self._delivery)
        if reason:
            _log.warning("runtime.doubted", runtime=self.settings.runtime.version, reason=reason)

    # --- looking ---

    async def _observe(self, reasons: Sequence[str]) -> Observation:
        """Gather one observation; the machine itself is only looked at if that may be why."""
        at = asyncio.get_running_loop().time()
        seen = self._seen
        holdings = self._holdings.holdings.value
        self._granted_at = {
            device_id: granted_at
            for device_id, granted_at in self._granted_at.items()
            if holdings is None or holdings.at < granted_at + FORGET_GRACE_SECONDS
        }
        if seen is None or not _NEEDS_NO_LOOK.issuperset(reasons):
            seen = await self._scanner.look(at, thorough=not _THOROUGH.isdisjoint(reasons))
            self._seen = seen
        cordons = await self._read_cordons()
        trouble = () if cordons.trouble is None else (cordons.trouble,)
        return replace(
            seen,
            at=at,
            holdings=holdings,
            granted_at=tuple(self._granted_at.items()),
            foreign_names=await self._foreign_names(),
            readings=self._senses.readings(at),
            cordons=cordons,
            faults=(*seen.faults, *trouble, *self._senses.faults),
        )

    async def _read_cordons(self) -> Cordons:
        """Read what is cordoned; what was known holds while the disk does not answer."""
        with anyio.move_on_after(_CORDONS_SECONDS):
            self._cordoned = await anyio.to_thread.run_sync(
                self._cordons.read, abandon_on_cancel=True
            )
        return self._cordoned

    def _targets(self) -> Sequence[Target]:
        dev = str(self.settings.host.dev)
        return [Target.of(d, dev) for d in self.inventory.value.devices if d.devnode is not None]

    async def _foreign_names(self) -> tuple[tuple[str, str], ...]:
        if not self._needs_spec:
            return ()
        try:
            return await self._specs.foreign_names()
        except SpecStoreError:
            return ()  # writing will meet the same trouble, and say so

    async def _remove_leftovers(self) -> None:
        try:
            for path in await self._specs.remove_leftovers():
                _log.info("leftover.removed", spec={"path": str(path)})
        except SpecStoreError as error:
            _log.warning("leftover.kept", error={"type": "SpecStoreError", "message": str(error)})

    # --- sensors: each may be missing, and is missed once in the log ---

    def _sensors(self) -> Iterable[Part]:
        if self.settings.host.inotify:
            yield Part(name="inotify", run=partial(watch, self._watched()), essential=False)
        if self.settings.host.uevents:
            yield Part(name="uevents", run=self._listen_to_uevents, essential=False)
        if self._needs_spec:
            yield Part(name="spec-guard", run=self._guard_spec, essential=False)
        yield Part(name="vitals", run=self._senses.watch_vitals, essential=False)
        if self.settings.health.queries != "off":
            yield Part(name="queries", run=self._senses.ask, essential=False)
        if self._monitor is not None:
            yield Part(name="monitor", run=self._read_usage, essential=False)
        if self._senses.listeners is not None:
            listen = self._senses.listeners.listen
            yield Part(name="notifications", run=listen, essential=False)
        if self._senses.hailortcli is not None:
            yield Part(name="hailortcli", run=self._senses.cross_check, essential=False)

    def _watched(self) -> Sequence[Watched]:
        patterns = [re.compile(family.devnode) for family in self._scanner.families]
        sockets = {KUBELET_SOCKET, *(endpoint_name(r) for r in self._names.all())}
        watched = [
            Watched(
                directory=self.settings.host.dev,
                matters=lambda name: any(pattern.fullmatch(name) for pattern in patterns),
                ring=partial(self.bell.ring, "inotify"),
            ),
        ]
        cordons = self.settings.host.cordon_file
        watched.append(
            Watched(
                directory=cordons.parent,
                matters=cordons.name.__eq__,
                ring=partial(self.bell.ring, "cordon"),
            )
        )
        if self._with_kubelet:
            watched.append(
                Watched(
                    directory=self.settings.kubelet.plugin_dir,
                    matters=sockets.__contains__,
                    ring=self._hint_sessions,
                )
            )
        if self._needs_spec:
            watched.append(
                Watched(
                    directory=self.settings.runtime.cdi_dir,
                    matters=lambda name: name.endswith((".json", ".yaml")),
                    ring=partial(self.bell.ring, "spec"),
                )
            )
        return watched

    async def _listen_to_uevents(self, report: Report) -> None:
        class_names = {family.class_name for family in self._scanner.families}
        await uevent.listen(self.bell.ring, class_names, report)

    async def _guard_spec(self, report: Report) -> None:
        report("")
        while True:
            await anyio.sleep(_SPEC_CHECK_SECONDS)
            if not self._specs.is_intact():
                self.bell.ring("spec")

    def _hint_sessions(self) -> None:
        for session in self._sessions:
            session.hints.ring("directory")

    # --- telling ---

    def _session(self, resource: str) -> Session:
        return Session(
            directory=self.settings.kubelet.plugin_dir,
            terms=Terms(
                resource=resource,
                names=self._names,
                delivery=self._delivery,
                place=outfit.place(self.settings),
                granted=self._remember_grant,
                tally=self.tally,
            ),
            inventory=self.inventory,
            register_seconds=self.settings.kubelet.register_timeout_seconds,
            prepare=self._learn_holders,
            counted=self._holdings.counted,
        )

    async def _remember_grant(self, devices: Sequence[DeviceId]) -> None:
        loop = asyncio.get_running_loop()
        if self._monitor is not None:
            await self._renew(self._monitor, devices)
        self._granted_at.update(dict.fromkeys(devices, loop.time()))
        loop.call_later(_ANSWERED_SECONDS, self.bell.ring, "granted")

    # --- what containers say ---

    async def _make_directories(self, names: Sequence[str]) -> bool:
        """Make the directories that containers write into; a device can do without."""
        if self._monitor is None:
            return False
        try:
            await self._monitor.prepare(names)
        except EdgeError as error:
            self._monitor_trouble = f"{error}; containers get no HAILO_MONITOR until it works"
            return False
        self._monitor_trouble = ""
        return True

    async def _renew(self, monitor: MonitorReader, devices: Sequence[DeviceId]) -> None:
        """Let a new holder begin with an empty directory; the kubelet does not wait for it long."""
        try:
            with anyio.move_on_after(_RENEWAL_SECONDS):
                await monitor.renew(devices)
        except EdgeError as error:
            self._monitor_trouble = str(error)

    async def _read_usage(self, report: Report) -> None:
        """Read once a second what containers say, for ever."""
        if self._monitor is None:
            return
        if not has_own_filesystem(self.settings.monitor.dir):
            path = str(self.settings.monitor.dir)
            _log.warning("monitor.unbounded", monitor={"path": path}, remedy=_OWN_FILESYSTEM)
        try:
            while True:
                devices = self.inventory.value.devices
                self.usage = await self._monitor.read(devices, now=time.time()) if devices else {}
                report(self._monitor_trouble)
                await anyio.sleep(_USAGE_SECONDS)
        finally:
            self.usage = {}  # old news is no news

    def _awaits_holdings(self) -> bool:
        """Whether a young list of holders would tell something, though it is like the last one."""
        devices = self.inventory.value.devices
        return bool(self._granted_at) or any(d.devnode is None or d.denied for d in devices)

    async def _serve_events(self, report: Report) -> None:
        socket = self.settings.subscribers.socket
        if socket is None:
            return
        try:
            socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot make {socket.parent}: {error.strerror}"
            raise EdgeError(message, edge="subscribers") from error
        async with serving(socket, [self._events()], edge="subscribers") as endpoint:
            report("")
            while endpoint.is_published():  # noqa: ASYNC110 - a file that goes sends no event
                await anyio.sleep(_SPEC_CHECK_SECONDS)
        raise EdgeError(f"the socket {socket} was removed", edge="subscribers")

    def _events(self) -> DeviceEvents:
        about = outfit.about(self.settings, self._names)
        return DeviceEvents(self.inventory, self.roster, about, self._reconciler.chronicle)

    async def _serve_web(self, report: Report) -> None:
        # Here, because an agent without it shall not hold an HTTP server in memory; and in a
        # thread, because the kubelet is not to wait for that.
        for name in ("server", "metrics"):
            await anyio.to_thread.run_sync(importlib.import_module, f"hailo_agent.web.{name}")
        from hailo_agent.web import metrics, server  # noqa: PLC0415

        events = self._events()
        loop = asyncio.get_running_loop()
        collector = metrics.DeviceCollector(
            inventory=self.inventory,
            roster=self.roster,
            tally=self.tally,
            resources=self._names,
            about=metrics.About(version=__version__, python=platform.python_version()),
            unix_offset=lambda: time.time() - loop.time(),
            usage=lambda: self.usage,
        )
        site = server.Site(
            inventory=events.whole,
            watch=lambda: events.watch(agentapi.WatchRequest()),
            statuses=lambda: self.roster.statuses.value,
            checks=self._checks(),
            metrics=metrics.exposition(collector).render,
            extra=self._extra,
        )
        web = self.settings.web
        await server.serve(web.listen, site, page=web.page, report=report)

    def _checks(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Name what a liveness probe calls: our own services, over their sockets."""
        checks = {f"plugin {s.terms.resource}": s.check for s in self._sessions}
        return {**checks, "subscribers": self._check_events}

    async def _check_events(self) -> None:
        socket, status = self.settings.subscribers.socket, self.roster.find("subscribers")
        if socket is not None and status is not None and status.state is State.RUNNING:
            await client.get_inventory(socket)

    def _extra(self) -> Mapping[str, object]:
        """Say of the agent what its inventory does not."""
        devices = self.inventory.value.devices
        return {
            "resources": list(self._names.all()),
            "delivery": sorted(self._delivery),
            "sensors": [part.name for part in self._sensors()],
            "versions": {
                "agent": __version__,
                "python": platform.python_version(),
                "drivers": sorted({d.driver_version for d in devices if d.driver_version}),
                "firmware": sorted({d.firmware.version for d in devices if d.firmware}),
            },
        }

    async def _narrate(self) -> None:
        """Say once when an optional part limps, and when it walks again."""
        told: dict[str, Status] = {}
        async for statuses in self.roster.statuses.follow():
            for status in statuses:
                before = told.get(status.name)
                limped = before is not None and before.reason != ""
                if not status.essential and status.reason and status != before:
                    if before is None or before.reason != status.reason:
                        _log.warning("part.limping", part=status.name, reason=status.reason)
                elif not status.essential and limped and status.state is State.RUNNING:
                    _log.info("part.recovered", part=status.name)
                    self.bell.ring("sensor")
                told[status.name] = status
