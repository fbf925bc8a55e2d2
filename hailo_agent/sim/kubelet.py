"""The kubelet as a device plugin meets it: the other side of `device-plugins/kubelet.sock`.

Tests, the demo and the bench start one, register a plugin with it over real unix sockets, let it
admit pods and read what it came to believe. It never heard of the agent: it imports the wire and
nothing else of the house, so that what it says about a plugin does not come from that plugin.

Two kubelets can be had, 1.32 and 1.36. What they do, in which order, with which texts and with
which mistakes, is that of `pkg/kubelet/cm/devicemanager` of these releases; comments name the Go
function behind a behaviour that surprises.

Left out: the Topology Manager (its policy is "none" here), init containers lending devices to the
containers after them, and the pluginwatcher. Pods need no scheduler: they arrive by `admit`.
"""

import asyncio
import json
import re
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from hailo_agent.sim.checkpoint import CHECKPOINT
from hailo_agent.sim.devicemanager import (
    PRE_START_SECONDS,
    REMEMBERED,
    STOP_GRACE_SECONDS,
    DeviceManager,
    KubeletVersion,
    Refused,
)
from hailo_agent.sim.podresources import PodResources
from hailo_agent.sim.records import (
    AdmissionFailed,
    Allocation,
    Container,
    ContainerNotStarted,
    Disconnect,
    KubeletCrashed,
    ListedDevice,
    Message,
    Pod,
    Preference,
    Registration,
    Resource,
)
from hailo_agent.sim.sockets import RPC_FAILURES, MortalServer, PatientChannel, go_text, listening
from hailo_agent.wire import deviceplugin

__all__ = [
    "CHECKPOINT",
    "AdmissionFailed",
    "Allocation",
    "Container",
    "ContainerNotStarted",
    "Disconnect",
    "Faults",
    "Kubelet",
    "KubeletCrashed",
    "KubeletVersion",
    "ListedDevice",
    "Message",
    "Pod",
    "Preference",
    "Registration",
    "Resource",
    "is_extended_resource_name",
]

T = TypeVar("T")

API_VERSION: Final = "v1beta1"
SOCKET: Final = "kubelet.sock"
DIAL_SECONDS: Final = 10.0


@dataclass(slots=True)
class Faults:
    """What this kubelet is to do wrong from now on."""

    refuse_register: str = ""
    """Refuse every Register with this text."""
    register_delay: float = 0.0
    """Think for so many seconds before looking at a Register."""
    hang_dial: bool = False
    """Never get through when dialling back."""
    never_list: bool = False
    """Accept a Register, and then never call ListAndWatch."""


_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME_PART: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")


def is_extended_resource_name(name: str) -> bool:
    """Decide as `IsExtendedResourceName` does, quota prefix and all."""
    if "/" not in name or "kubernetes.io/" in name or name.startswith("requests."):
        return False
    prefix, _, rest = f"requests.{name}".partition("/")
    return (
        len(prefix) <= 253
        and _SUBDOMAIN.fullmatch(prefix) is not None
        and len(rest) <= 63
        and _NAME_PART.fullmatch(rest) is not None
    )


class _Client:
    """The kubelet's client of one registration (`plugin/v1beta1/client.go`)."""

    def __init__(self, resource: str, path: Path) -> None:
        self.resource = resource
        self.path = path
        self._channel = PatientChannel(path)
        self.stub = deviceplugin.DevicePluginStub(self._channel)
        self.streaming = False
        self.closed = False

    async def dial(self, seconds: float, *, hang: bool) -> None:
        """Dial back, blocking, for so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                if hang:
                    await asyncio.Event().wait()
                await self._channel.dial()
        except TimeoutError:
            self.close()
            raise Refused("failed to dial device plugin: context deadline exceeded") from None
        except BaseException:
            self.close()
            raise

    async def options(self) -> deviceplugin.DevicePluginOptions:
        """Ask for the options, which alone count: those in the Register request do not."""
        try:
            return await self.stub.get_device_plugin_options()
        except RPC_FAILURES as error:
            raise Refused(f"failed to get device plugin options: {go_text(error)}") from error

    def close(self) -> None:
        """Hang up."""
        self.closed = True
        self._channel.close()


class Kubelet(DeviceManager):
    """A kubelet on a directory. `async with` it, or `start`, `stop` and `restart` it by hand.

    What it believes is in `resources`, `pods`, `holders` and `status`; what happened to it is in
    `registrations`, `messages`, `allocations`, `preferences`, `disconnects` and `crashes`.
    """

    def __init__(
        self,
        plugin_dir: Path,
        *,
        version: KubeletVersion = "1.36",
        pod_resources_dir: Path | None = None,
        stop_grace_seconds: float = STOP_GRACE_SECONDS,
        dial_seconds: float = DIAL_SECONDS,
        pre_start_seconds: float = PRE_START_SECONDS,
        fsync: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            plugin_dir,
            version=version,
            stop_grace_seconds=stop_grace_seconds,
            pre_start_seconds=pre_start_seconds,
            fsync=fsync,
            seed=seed,
        )
        self.faults = Faults()
        self.registrations: deque[Registration] = deque(maxlen=REMEMBERED)
        self.disconnects: deque[Disconnect] = deque(maxlen=REMEMBERED)
        self.starts = 0
        self.pod_resources = (
            None
            if pod_resources_dir is None
            else PodResources(
                pod_resources_dir,
                get_enabled=version != "1.32",
                holdings=self._holdings,
                allocatable=self._allocatable,
            )
        )
        self._dial_seconds = dial_seconds
        self._server: MortalServer | None = None
        self._clients: dict[str, _Client] = {}
        self._everyone: set[_Client] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- being a process ---

    @property
    def socket(self) -> Path:
        """Where a plugin registers."""
        return self.plugin_dir / SOCKET

    @property
    def running(self) -> bool:
        """Whether this kubelet is up."""
        return self._server is not None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Come up: checkpoint, directory, clean-up, listen - in the order of `server.go Start`."""
        if self._server is not None:
            message = "this kubelet is up already"
            raise RuntimeError(message)
        self._remember()
        self.plugin_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._clean_up()
        (self.plugin_dir / "DEPRECATION").touch()
        registry = _Registry(
            lambda request: self._spawn(self._register(request)), detached=self.version == "1.32"
        )
        server = MortalServer([registry])
        await server.start(sock=listening(self.socket))
        self._server = server
        if self.pod_resources is not None:
            await self.pod_resources.start()
        self.starts += 1
        self._changed()

    async def stop(self) -> None:
        """Go down at once, as a process does: connections end, `kubelet.sock` stays behind."""
        server, self._server = self._server, None
        if server is None:
            return
        if self.pod_resources is not None:
            await self.pod_resources.stop()
        self._cancel_expiries()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._everyone:
            client.close()
        await server.die()
        self._clients, self._everyone = {}, set()
        self._forget()
        self._changed()

    async def restart(self) -> None:
        """Go down and come up again; pods stay, being the API server's business."""
        await self.stop()
        await self.start()

    def _clean_up(self) -> None:
        """Clear the plugin directory (`CleanupPluginDirectory`), the way of this version."""
        for path in self.plugin_dir.iterdir():
            if path.name == CHECKPOINT:
                continue
            if self.version == "1.32":
                if path.is_symlink() or not path.is_dir():
                    path.unlink(missing_ok=True)
            elif path.is_socket():  # through symlinks, as os.Stat does
                path.unlink(missing_ok=True)

    def describe(self) -> str:
        """Say in one line what this kubelet believes, for a failed expectation."""
        return super().describe() if self.running else "the kubelet is down"

    def streams(self, resource: str) -> int:
        """Count the ListAndWatch calls that are open for a resource now."""
        return sum(c.streaming for c in self._everyone if c.resource == resource)

    # --- registration (plugin/v1beta1/server.go, handler.go) ---

    async def _register(self, request: deviceplugin.RegisterRequest) -> str:
        """Answer one Register: with nothing, or with why not."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        refusal = "context canceled"
        try:
            await self._accept(request)
            refusal = ""
        except Refused as error:
            refusal = str(error)
        finally:
            options = request.options
            self.registrations.append(
                Registration(
                    at=at,
                    answered_at=loop.time(),
                    resource=request.resource_name,
                    endpoint=request.endpoint,
                    version=request.version,
                    options=None
                    if options is None
                    else (options.pre_start_required, options.get_preferred_allocation_available),
                    refusal=refusal,
                )
            )
            self._changed()
        return refusal

    async def _accept(self, request: deviceplugin.RegisterRequest) -> None:
        name = request.resource_name
        if self.faults.register_delay:
            await asyncio.sleep(self.faults.register_delay)
        if self.faults.refuse_register:
            raise Refused(self.faults.refuse_register)
        if request.version != API_VERSION:
            raise Refused(
                f"requested API version {json.dumps(request.version)} is not supported by kubelet."
                f' Supported version is ["{API_VERSION}"]'
            )
        if not is_extended_resource_name(name):
            raise Refused(f"the ResourceName {json.dumps(name)} is invalid")
        # filepath.Join: an absolute endpoint does not leave the directory either.
        client = _Client(name, self.plugin_dir / request.endpoint.lstrip("/"))
        self._everyone.add(client)
        # registerClient comes before anything can fail, and there is no "name taken": from here on
        # an older client of this name is forgotten, though its stream goes on feeding the table.
        self._clients[name] = client
        try:
            await client.dial(self._dial_seconds, hang=self.faults.hang_dial)
            options = await client.options()
        except BaseException:
            self._clients.pop(name, None)
            raise
        self._plugin_connected(name, client.path.name, client.stub, options)
        self._spawn(self._run_client(client))

    async def _run_client(self, client: _Client) -> None:
        """Listen to one ListAndWatch until it ends, then disconnect - somebody.

        `runClient` asks for the client by resource name once its own stream has ended. If another
        registration took the name meanwhile, it is that one which is disconnected.
        """
        if self.faults.never_list:
            return
        why = "EOF"
        client.streaming = True
        self._changed()
        try:
            async for response in client.stub.list_and_watch():
                self._received(client.resource, response)
        except RPC_FAILURES as error:
            why = go_text(error)
        finally:
            client.streaming = False
            if client.closed:
                self._everyone.discard(client)
        self.disconnects.append(
            Disconnect(at=asyncio.get_running_loop().time(), resource=client.resource, why=why)
        )
        current = self._clients.get(client.resource)
        if current is not None:
            self._disconnect(current)
        self._changed()

    def _disconnect(self, client: _Client) -> None:
        """Forget a client and close its connection; its devices are unhealthy from here on."""
        self._clients.pop(client.resource, None)
        client.close()
        if not client.streaming:
            self._everyone.discard(client)
        self._plugin_disconnected(client.resource)

    def drop_stream(self, resource: str) -> None:
        """Lose the connection to whoever is registered for a resource, as by a failed read."""
        client = self._clients.get(resource)
        if client is not None:
            client.close()

    def _spawn(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Registry(deviceplugin.RegistrationBase):
    """The Registration service on `kubelet.sock`; a refusal has code UNKNOWN, as Go errors get."""

    def __init__(
        self,
        register: Callable[[deviceplugin.RegisterRequest], asyncio.Task[str]],
        *,
        detached: bool,
    ) -> None:
        self._register = register
        self._detached = detached

    async def register(self, message: deviceplugin.RegisterRequest) -> deviceplugin.Empty:
        work = self._register(message)
        # 1.32 goes on when the caller has given up; 1.36 works under the caller's context.
        refusal = await (asyncio.shield(work) if self._detached else work)
        if refusal:
            raise GRPCError(Status.UNKNOWN, refusal)
        return deviceplugin.Empty()
