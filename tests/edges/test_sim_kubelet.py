"""The simulated kubelet does what facts about the real one say, to a plugin of a few lines."""

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from hailo_agent.sim.kubelet import (
    CHECKPOINT,
    AdmissionFailed,
    ContainerNotStarted,
    Kubelet,
    KubeletCrashed,
    KubeletVersion,
    is_extended_resource_name,
)
from hailo_agent.sim.sockets import MortalServer
from hailo_agent.wire import deviceplugin, podresources

NPU = "hailo.ai/npu"
VERSIONS: tuple[KubeletVersion, ...] = ("1.32", "1.36")


def device(name: str, health: str = "Healthy", *numa: int) -> deviceplugin.Device:
    topology = deviceplugin.TopologyInfo(nodes=[deviceplugin.NumaNode(id=node) for node in numa])
    return deviceplugin.Device(id=name, health=health, topology=topology if numa else None)


class Plugin(deviceplugin.DevicePluginBase):
    """A device plugin without a mind: its list, answers and failures are set from outside."""

    def __init__(self, path: Path, *devices: deviceplugin.Device) -> None:
        self.path = path
        self.devices = list(devices)
        self.options = deviceplugin.DevicePluginOptions()
        self.options_error: GRPCError | None = None
        self.options_held: asyncio.Event | None = None
        self.allocated: list[list[str]] = []
        self.allocate_error: Exception | None = None
        self.allocate_held: asyncio.Event | None = None
        self.allocating = asyncio.Event()
        self.answers = [deviceplugin.ContainerAllocateResponse()]
        self.preference: list[str] | None = None
        self.pre_started: list[list[str]] = []
        self.pre_start_held: asyncio.Event | None = None
        self.authorities: list[str] = []
        self.cut_off = asyncio.Event()
        self._end = False
        self._news = asyncio.Event()

    def say(self, *devices: deviceplugin.Device) -> None:
        """Send a new list."""
        self.devices = list(devices)
        self._wake()

    def end_stream(self) -> None:
        """End every ListAndWatch there is and will be."""
        self._end = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def get_device_plugin_options(
        self, message: deviceplugin.Empty
    ) -> deviceplugin.DevicePluginOptions:
        if self.options_held is not None:
            await self.options_held.wait()
        if self.options_error is not None:
            raise self.options_error
        return self.options

    async def list_and_watch(
        self, message: deviceplugin.Empty
    ) -> AsyncIterator[deviceplugin.ListAndWatchResponse]:
        try:
            while not self._end:
                news = self._news
                yield deviceplugin.ListAndWatchResponse(devices=self.devices)
                await news.wait()
        except asyncio.CancelledError:
            self.cut_off.set()
            raise

    async def get_preferred_allocation(
        self, message: deviceplugin.PreferredAllocationRequest
    ) -> deviceplugin.PreferredAllocationResponse:
        if self.preference is None:
            raise GRPCError(Status.INTERNAL, "no idea")
        return deviceplugin.PreferredAllocationResponse(
            container_responses=[
                deviceplugin.ContainerPreferredAllocationResponse(device_ids=self.preference)
            ]
        )

    async def allocate(
        self, message: deviceplugin.AllocateRequest
    ) -> deviceplugin.AllocateResponse:
        self.allocated.append(list(message.container_requests[0].device_ids))
        self.allocating.set()
        if self.allocate_held is not None:
            await self.allocate_held.wait()
        if self.allocate_error is not None:
            raise self.allocate_error
        return deviceplugin.AllocateResponse(container_responses=self.answers)

    async def pre_start_container(
        self, message: deviceplugin.PreStartContainerRequest
    ) -> deviceplugin.PreStartContainerResponse:
        self.pre_started.append(list(message.device_ids))
        if self.pre_start_held is not None:
            await self.pre_start_held.wait()
        return deviceplugin.PreStartContainerResponse()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Plugin"]:
        server = NotingServer([self])
        server.authorities = self.authorities
        await server.start(path=str(self.path))
        try:
            yield self
        finally:
            await server.die()
            self.path.unlink(missing_ok=True)


class NotingServer(MortalServer):
    """A server that notes the `:authority` of every request."""

    authorities: list[str]

    def _protocol_factory(self):  # type: ignore[no-untyped-def]  # noqa: ANN202 - grpclib's own
        protocol = super()._protocol_factory()
        accept = protocol.handler.accept

        def noting(stream, headers, release):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            self.authorities.append(dict(headers)[":authority"])
            accept(stream, headers, release)

        protocol.handler.accept = noting  # type: ignore[method-assign]
        return protocol


async def register(
    kubelet: Kubelet,
    endpoint: str,
    resource: str = NPU,
    *,
    version: str = "v1beta1",
    options: deviceplugin.DevicePluginOptions | None = None,
    within: float = 15.0,
) -> None:
    async with Channel(path=str(kubelet.socket)) as channel:
        await deviceplugin.RegistrationStub(channel).register(
            deviceplugin.RegisterRequest(
                version=version, endpoint=endpoint, resource_name=resource, options=options
            ),
            timeout=within,
        )


async def refusal(kubelet: Kubelet, endpoint: str, resource: str = NPU, **more: str) -> str:
    """Register, be refused, and tell with which text."""
    with pytest.raises(GRPCError) as caught:
        await register(kubelet, endpoint, resource, **more)  # type: ignore[arg-type]
    assert caught.value.status is Status.UNKNOWN
    return str(caught.value.message)


@asynccontextmanager
async def registered(
    kubelet: Kubelet,
    *devices: deviceplugin.Device,
    name: str = "a.sock",
    resource: str = NPU,
    options: deviceplugin.DevicePluginOptions | None = None,
) -> AsyncIterator[Plugin]:
    """A plugin that is registered and whose first list has arrived."""
    async with Plugin(kubelet.plugin_dir / name, *devices).serving() as plugin:
        plugin.options = options or plugin.options
        before = kubelet.message_count
        await register(kubelet, name, resource)
        await kubelet.wait_for(lambda: kubelet.message_count > before)
        yield plugin


def count(kubelet: Kubelet, resource: str = NPU) -> tuple[int, int]:
    """Capacity and allocatable."""
    seen = kubelet.resource(resource)
    return seen.capacity, seen.allocatable


@asynccontextmanager
async def asking(kubelet: Kubelet) -> AsyncIterator[podresources.PodResourcesListerStub]:
    assert kubelet.pod_resources is not None
    async with Channel(path=str(kubelet.pod_resources.socket)) as channel:
        yield podresources.PodResourcesListerStub(channel)


# --- registration ---


async def test_a_registered_plugin_is_dialled_back_asked_and_listened_to(tmp_path: Path) -> None:
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, device("a"), device("b")) as plugin,
    ):
        assert count(kubelet) == (2, 2)
        npu = kubelet.resource(NPU)
        assert (npu.connected, npu.endpoint, npu.health) == (
            True,
            "a.sock",
            {"a": "Healthy", "b": "Healthy"},
        )
        assert kubelet.streams(NPU) == 1
        assert set(plugin.authorities) == {"localhost"}
        [registration] = kubelet.registrations
        assert (registration.resource, registration.accepted) == (NPU, True)


async def test_register_is_answered_only_after_the_options_were_given(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, Plugin(tmp_path / "a.sock").serving() as plugin:
        plugin.options_held = asyncio.Event()
        registering = asyncio.create_task(register(kubelet, "a.sock"))
        done, _ = await asyncio.wait({registering}, timeout=0.1)
        assert not done
        plugin.options_held.set()
        await registering


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_version_is_checked_first_then_the_name_then_the_socket_then_the_options(
    tmp_path: Path, version: KubeletVersion
) -> None:
    async with (
        Kubelet(tmp_path, version=version, dial_seconds=0.1) as kubelet,
        Plugin(tmp_path / "a.sock").serving() as plugin,
    ):
        plugin.options_error = GRPCError(Status.INTERNAL, "not today")
        assert await refusal(kubelet, "no.sock", "npu", version="v1") == (
            'requested API version "v1" is not supported by kubelet. '
            'Supported version is ["v1beta1"]'
        )
        assert await refusal(kubelet, "no.sock", "npu") == 'the ResourceName "npu" is invalid'
        assert await refusal(kubelet, "no.sock") == (
            "failed to dial device plugin: context deadline exceeded"
        )
        assert await refusal(kubelet, "a.sock") == (
            "failed to get device plugin options: rpc error: code = Internal desc = not today"
        )
        assert [r.accepted for r in kubelet.registrations] == [False] * 4
        assert not kubelet.resource(NPU).connected


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("hailo.ai/npu", True),
        ("hailo.ai/Hailo-8_x.y", True),
        ("npu", False),
        ("kubernetes.io/npu", False),
        ("a.kubernetes.io/npu", False),
        ("requests.hailo.ai/npu", False),
        ("Hailo.ai/npu", False),
        ("hailo.ai/-npu", False),
        ("hailo.ai/npu/x", False),
        ("hailo.ai/", False),
        ("/npu", False),
        ("hailo.ai/" + "x" * 63, True),
        ("hailo.ai/" + "x" * 64, False),
        ("x" * 241 + ".io/npu", True),
        ("x" * 242 + ".io/npu", False),
    ],
)
def test_an_extended_resource_name_is_judged_with_its_quota_prefix(
    name: str, *, good: bool
) -> None:
    assert is_extended_resource_name(name) is good


async def test_a_socket_that_is_listened_on_but_not_served_is_not_dialled_successfully(
    tmp_path: Path,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(str(tmp_path / "deaf.sock"))
        deaf.listen()
        async with Kubelet(tmp_path / "dp", dial_seconds=0.1) as kubelet:
            assert "failed to dial" in await refusal(kubelet, "../deaf.sock")


async def test_a_young_kubelet_works_under_the_callers_deadline_and_an_old_one_does_not(
    tmp_path: Path,
) -> None:
    for version in VERSIONS:
        directory = tmp_path / version
        async with (
            Kubelet(directory, version=version) as kubelet,
            Plugin(directory / "a.sock", device("a")).serving() as plugin,
        ):
            plugin.options_held = asyncio.Event()
            with pytest.raises((GRPCError, TimeoutError)):
                await register(kubelet, "a.sock", within=0.1)
            if version == "1.36":
                await kubelet.wait_for(lambda: len(kubelet.registrations) == 1)
                assert kubelet.registrations[0].refusal == "context canceled"
            plugin.options_held.set()
            if version == "1.32":
                await kubelet.wait_for(lambda: count(kubelet) == (1, 1))
                assert kubelet.registrations[0].accepted


async def test_options_in_the_register_request_do_not_count(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, Plugin(tmp_path / "a.sock", device("a")).serving():
        said = deviceplugin.DevicePluginOptions(get_preferred_allocation_available=True)
        await register(kubelet, "a.sock", options=said)
        await kubelet.wait_for(lambda: count(kubelet) == (1, 1))
        await kubelet.admit("default/p", {NPU: 1})
        assert kubelet.registrations[0].options == (False, True)
        assert not kubelet.preferences


async def test_the_newest_registration_of_a_name_wins_and_nobody_is_told_that_it_is_taken(
    tmp_path: Path,
) -> None:
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, device("a")) as old,
        registered(kubelet, device("b"), name="b.sock") as new,
    ):
        assert kubelet.resource(NPU).endpoint == "b.sock"
        assert kubelet.streams(NPU) == 2
        old.say(device("a"), device("c"))
        await kubelet.wait_for(lambda: set(kubelet.resource(NPU).devices) == {"a", "c"})
        await kubelet.admit("default/p", {NPU: 1})
        assert (len(old.allocated), len(new.allocated)) == (0, 1)


async def test_the_end_of_an_old_stream_disconnects_the_new_client_for_good(tmp_path: Path) -> None:
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, device("a")) as old,
        registered(kubelet, device("a"), name="b.sock") as new,
    ):
        old.end_stream()
        await new.cut_off.wait()
        await kubelet.wait_for(lambda: kubelet.streams(NPU) == 0)
        assert count(kubelet) == (1, 0)
        assert not kubelet.resource(NPU).connected
        await register(kubelet, "b.sock")
        await kubelet.wait_for(lambda: count(kubelet) == (1, 1))


async def test_a_register_that_fails_late_makes_the_kubelet_miss_the_end_of_the_old_stream(
    tmp_path: Path,
) -> None:
    async with (
        Kubelet(tmp_path, dial_seconds=0.05) as kubelet,
        registered(kubelet, device("a")) as plugin,
    ):
        await refusal(kubelet, "no.sock")
        plugin.say(device("a"), device("b"))
        await kubelet.wait_for(lambda: count(kubelet) == (2, 2))
        plugin.end_stream()
        await kubelet.wait_for(lambda: kubelet.streams(NPU) == 0)
        assert count(kubelet) == (2, 2)
        assert kubelet.resource(NPU).connected


# --- lists ---


async def test_each_list_replaces_the_table_and_is_remembered(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, registered(kubelet) as plugin:
        assert count(kubelet) == (0, 0)
        plugin.say(device("a"), device("b", "Unhealthy"), device("c", "healthy"), device("d", ""))
        await kubelet.wait_for(lambda: count(kubelet) == (4, 1))
        plugin.say(device("b"))
        await kubelet.wait_for(lambda: count(kubelet) == (1, 1))
        assert [sorted(m.health) for m in kubelet.messages] == [[], ["a", "b", "c", "d"], ["b"]]
        assert [m.at for m in kubelet.messages] == sorted(m.at for m in kubelet.messages)


async def test_an_id_listed_twice_with_two_healths_counts_twice(tmp_path: Path) -> None:
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, device("a"), device("a", "Unhealthy"), device("b"), device("b")),
    ):
        assert count(kubelet) == (3, 2)


async def test_numa_node_zero_arrives_and_no_topology_is_not_an_empty_one(tmp_path: Path) -> None:
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, device("a", "Healthy", 0), device("b", "Healthy", 0, 1), device("c")),
    ):
        seen = kubelet.resource(NPU).devices
        assert [(d.numa, d.topology) for d in seen.values()] == [
            ((0,), True),
            ((0, 1), True),
            ((), False),
        ]


async def test_every_list_costs_a_checkpoint_even_when_nothing_changed(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, registered(kubelet, device("a")) as plugin:
        before = (tmp_path / CHECKPOINT).stat().st_ino
        plugin.say(device("a"))
        await kubelet.wait_for(lambda: kubelet.message_count == 2)
        assert (tmp_path / CHECKPOINT).stat().st_ino != before


async def test_a_checkpoint_that_cannot_be_written_does_not_end_the_stream(tmp_path: Path) -> None:
    directory = tmp_path / "dp"
    async with Kubelet(directory) as kubelet, registered(kubelet, device("a")) as plugin:
        directory.rename(tmp_path / "away")
        plugin.say(device("a"), device("b"))
        await kubelet.wait_for(lambda: count(kubelet) == (2, 2))
        assert kubelet.checkpoint_failures == 1
        with pytest.raises(AdmissionFailed, match="failed to write checkpoint"):
            await kubelet.admit("default/p", {NPU: 1})


async def test_a_list_above_four_mebibytes_ends_the_stream(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, registered(kubelet, device("a")) as plugin:
        plugin.say(*(device(f"{i:032}" + "x" * 1000) for i in range(4400)))
        await kubelet.wait_for(lambda: kubelet.disconnects)
        assert "received message larger than max" in kubelet.disconnects[0].why
        assert count(kubelet) == (1, 0)


# --- the end of a stream ---


async def test_a_stream_that_ends_leaves_capacity_and_takes_allocatable(tmp_path: Path) -> None:
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, device("a"), device("b", "Unhealthy")) as plugin,
    ):
        plugin.end_stream()
        await kubelet.wait_for(lambda: count(kubelet) == (2, 0))
        assert kubelet.disconnects[0].why == "EOF"
        assert kubelet.resource(NPU).stopped_since is not None
        with pytest.raises(AdmissionFailed) as caught:
            await kubelet.admit("default/p", {NPU: 1})
        assert str(caught.value) == (
            "Pod was rejected: Allocate failed due to no healthy devices present; "
            "cannot allocate unhealthy devices hailo.ai/npu, which is unexpected"
        )


async def test_after_the_grace_capacity_is_zero_and_containers_cannot_restart(
    tmp_path: Path,
) -> None:
    async with (
        Kubelet(tmp_path, stop_grace_seconds=0.5) as kubelet,
        registered(kubelet, device("a")) as plugin,
    ):
        await kubelet.admit("default/p", {NPU: 1})
        kubelet.drop_stream(NPU)
        await kubelet.wait_for(lambda: count(kubelet) == (1, 0))
        assert (await kubelet.restart_container("default/p")).device_ids == {NPU: ("a",)}
        await kubelet.wait_for(lambda: count(kubelet) == (0, 0))
        assert NPU in kubelet.resources
        with pytest.raises(ContainerNotStarted) as caught:
            await kubelet.restart_container("default/p")
        assert str(caught.value) == (
            "endpoint not found in cache for a registered resource: hailo.ai/npu"
        )
        await register(kubelet, plugin.path.name)
        await kubelet.wait_for(lambda: count(kubelet) == (1, 1))
        await kubelet.restart_container("default/p")
        assert len(plugin.allocated) == 1


async def test_registering_again_within_the_grace_ends_it(tmp_path: Path) -> None:
    async with (
        Kubelet(tmp_path, stop_grace_seconds=0.5) as kubelet,
        registered(kubelet, device("a")) as plugin,
    ):
        kubelet.drop_stream(NPU)
        await kubelet.wait_for(lambda: count(kubelet) == (1, 0))
        await register(kubelet, plugin.path.name)
        await kubelet.wait_for(lambda: count(kubelet) == (1, 1))
        await kubelet.quiet(0.6)
        assert count(kubelet) == (1, 1)


# --- admission ---


async def test_admission_allocates_once_and_restarts_are_answered_from_the_cache(
    tmp_path: Path,
) -> None:
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, device("a"), device("b"), device("c")) as plugin,
    ):
        plugin.answers[0].envs = {"A": "1"}
        plugin.answers[0].cdi_devices = [
            deviceplugin.CdiDevice(name="x/y=a"),
            deviceplugin.CdiDevice(name="x/y=a"),
        ]
        plugin.answers[0].annotations = {"cdi.k8s.io/a": "x/y=a"}
        plugin.answers[0].devices = [
            deviceplugin.DeviceSpec(container_path="/dev/a", host_path="/dev/a", permissions="rw")
        ]
        container = await kubelet.admit("default/p", {NPU: 2})
        assert (container.envs, container.cdi_devices) == ({"A": "1"}, ("x/y=a",))
        assert container.annotations == {"cdi.k8s.io/a": "x/y=a"}
        assert container.devices[0].host_path == "/dev/a"
        assert await kubelet.restart_container("default/p") == container
        assert [sorted(ids) for ids in plugin.allocated] == [list(container.device_ids[NPU])]
        assert set(kubelet.holders(NPU).values()) == {"default/p"}
        assert kubelet.allocations[0].error == ""


async def test_what_one_pod_holds_no_other_gets_and_what_is_removed_is_free_again(
    tmp_path: Path,
) -> None:
    async with Kubelet(tmp_path) as kubelet, registered(kubelet, device("a"), device("b")):
        one = await kubelet.admit("default/one", {NPU: 1})
        two = await kubelet.admit("default/two", {NPU: 1})
        assert {*one.device_ids[NPU], *two.device_ids[NPU]} == {"a", "b"}
        with pytest.raises(AdmissionFailed) as caught:
            await kubelet.admit("default/three", {NPU: 1})
        assert caught.value.why == (
            "requested number of devices unavailable for hailo.ai/npu. Requested: 1, Available: 0"
        )
        assert kubelet.pods["default/three"].phase == "Failed"
        await kubelet.remove("default/one")
        four = await kubelet.admit("default/four", {NPU: 1})
        assert four.device_ids == one.device_ids


async def test_a_resource_that_nobody_registered_fails_the_pod(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet:
        with pytest.raises(AdmissionFailed, match="cannot allocate unregistered device"):
            await kubelet.admit("default/p", {NPU: 1})


async def test_a_refused_allocation_is_the_pods_status_word_for_word(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, registered(kubelet, device("a")) as plugin:
        plugin.allocate_error = GRPCError(Status.FAILED_PRECONDITION, "a is ill: no link")
        with pytest.raises(AdmissionFailed) as caught:
            await kubelet.admit("default/p", {NPU: 1})
        assert kubelet.pods["default/p"].message == str(caught.value)
        assert str(caught.value) == (
            "Pod was rejected: Allocate failed due to rpc error: code = FailedPrecondition "
            "desc = a is ill: no link, which is unexpected"
        )
        plugin.allocate_error = None
        await kubelet.admit("default/q", {NPU: 1})


async def test_an_answer_without_a_container_fails_the_pod(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, registered(kubelet, device("a")) as plugin:
        plugin.answers = []
        with pytest.raises(AdmissionFailed, match="no containers return in allocation response"):
            await kubelet.admit("default/p", {NPU: 1})


async def test_a_preference_is_followed_as_far_as_it_fits(tmp_path: Path) -> None:
    prefers = deviceplugin.DevicePluginOptions(get_preferred_allocation_available=True)
    devices = [device(name) for name in "abcd"]
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, *devices, options=prefers) as plugin,
    ):
        plugin.preference = ["d", "zz", "b"]
        one = await kubelet.admit("default/one", {NPU: 2})
        assert one.device_ids[NPU] == ("b", "d")
        two = await kubelet.admit("default/two", {NPU: 1})
        assert set(two.device_ids[NPU]) < {"a", "c"}
        assert [(set(p.available), p.size) for p in kubelet.preferences] == [
            ({"a", "b", "c", "d"}, 2),
            ({"a", "c"}, 1),
        ]


async def test_a_preference_that_fails_fails_the_pod(tmp_path: Path) -> None:
    prefers = deviceplugin.DevicePluginOptions(get_preferred_allocation_available=True)
    async with Kubelet(tmp_path) as kubelet, registered(kubelet, device("a"), options=prefers):
        with pytest.raises(AdmissionFailed) as caught:
            await kubelet.admit("default/p", {NPU: 1})
        assert caught.value.why == (
            "device plugin GetPreferredAllocation rpc failed with err: "
            "rpc error: code = Internal desc = no idea"
        )


async def test_admission_is_serial_so_a_slow_plugin_stalls_every_pod(tmp_path: Path) -> None:
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, device("a"), device("b")) as plugin,
    ):
        plugin.allocate_held = asyncio.Event()
        async with asyncio.TaskGroup() as pods:
            pods.create_task(kubelet.admit("default/one", {NPU: 1}))
            pods.create_task(kubelet.admit("default/two", {NPU: 1}))
            await plugin.allocating.wait()
            await kubelet.quiet(0.05)
            assert len(plugin.allocated) == 1
            plugin.allocate_held.set()
        assert len(plugin.allocated) == 2


@pytest.mark.parametrize("version", VERSIONS)
async def test_allocating_an_id_that_a_newer_list_dropped_crashes_the_young_kubelet_only(
    tmp_path: Path, version: KubeletVersion
) -> None:
    async with (
        Kubelet(tmp_path, version=version) as kubelet,
        registered(kubelet, device("a")) as plugin,
    ):
        plugin.allocate_held = asyncio.Event()
        admission = asyncio.create_task(kubelet.admit("default/p", {NPU: 1}))
        await plugin.allocating.wait()
        plugin.say(device("b"))
        await kubelet.wait_for(lambda: "b" in kubelet.resource(NPU).devices)
        plugin.allocate_held.set()
        if version == "1.36":
            with pytest.raises(KubeletCrashed):
                await admission
            assert "nil pointer" in kubelet.crashes[0]
        else:
            assert (await admission).device_ids == {NPU: ("a",)}
            assert kubelet.crashes == []


async def test_an_answer_of_one_resource_gives_way_to_that_of_the_resource_before(
    tmp_path: Path,
) -> None:
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, device("a")) as one,
        registered(kubelet, device("b"), name="b.sock", resource="hailo.ai/other") as two,
    ):
        one.answers[0].envs = {"A": "one"}
        two.answers[0].envs = {"A": "two", "B": "two"}
        container = await kubelet.admit("default/p", {NPU: 1, "hailo.ai/other": 1})
        assert container.envs == {"A": "one", "B": "two"}
        assert container.device_ids == {NPU: ("a",), "hailo.ai/other": ("b",)}


async def test_a_pre_start_call_comes_before_every_start_if_the_options_ask_for_it(
    tmp_path: Path,
) -> None:
    asks = deviceplugin.DevicePluginOptions(pre_start_required=True)
    async with (
        Kubelet(tmp_path, pre_start_seconds=0.1) as kubelet,
        registered(kubelet, device("a"), options=asks) as plugin,
    ):
        await kubelet.admit("default/p", {NPU: 1})
        await kubelet.restart_container("default/p")
        assert plugin.pre_started == [["a"]]
        plugin.pre_start_held = asyncio.Event()
        with pytest.raises(ContainerNotStarted, match="PreStartContainer rpc failed"):
            await kubelet.restart_container("default/p")
        kubelet.drop_stream(NPU)
        await kubelet.wait_for(lambda: not kubelet.resource(NPU).connected)
        with pytest.raises(ContainerNotStarted, match="has been stopped"):
            await kubelet.restart_container("default/p")


# --- health of pods ---


async def test_a_pods_devices_are_reported_ill_only_while_they_are_listed_so(
    tmp_path: Path,
) -> None:
    async with Kubelet(tmp_path) as kubelet, registered(kubelet, device("a")) as plugin:
        await kubelet.admit("default/p", {NPU: 1})
        assert kubelet.status("default/p") == {NPU: {"a": "Healthy"}}
        plugin.say(device("a", "Unhealthy"))
        await kubelet.wait_for(lambda: kubelet.status("default/p") == {NPU: {"a": "Unhealthy"}})
        plugin.say()
        await kubelet.wait_for(lambda: kubelet.status("default/p") == {NPU: {"a": "Healthy"}})
        plugin.end_stream()
        await kubelet.wait_for(lambda: not kubelet.resource(NPU).connected)
        assert kubelet.status("default/p") == {NPU: {"a": "Healthy"}}


async def test_a_pod_is_not_admitted_again_with_devices_that_are_ill_now(tmp_path: Path) -> None:
    async with (
        Kubelet(tmp_path) as kubelet,
        registered(kubelet, device("a"), device("b")) as plugin,
    ):
        [held] = (await kubelet.admit("default/p", {NPU: 1})).device_ids[NPU]
        await kubelet.admit("default/p", {NPU: 1})
        plugin.say(*(device(n, "Unhealthy" if n == held else "Healthy") for n in "ab"))
        await kubelet.wait_for(lambda: count(kubelet) == (2, 1))
        await kubelet.restart_container("default/p")
        with pytest.raises(AdmissionFailed, match="previously allocated devices are no longer"):
            await kubelet.admit("default/p", {NPU: 1})
        assert len(plugin.allocated) == 1


# --- restarts ---


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_restart_cuts_connections_and_keeps_what_the_checkpoint_holds(
    tmp_path: Path, version: KubeletVersion
) -> None:
    async with (
        Kubelet(tmp_path, version=version) as kubelet,
        registered(kubelet, device("a", "Healthy", 0)) as plugin,
    ):
        plugin.answers[0].envs = {"A": "1"}
        container = await kubelet.admit("default/p", {NPU: 1})
        await kubelet.restart()
        await plugin.cut_off.wait()
        assert not plugin.path.exists()
        assert count(kubelet) == (0, 0)
        assert NPU in kubelet.resources
        assert kubelet.holders(NPU) == {"a": "default/p"}
        assert await kubelet.restart_container("default/p") == container
        assert len(plugin.allocated) == 1
        with pytest.raises(AdmissionFailed, match="no healthy devices present"):
            await kubelet.admit("default/q", {NPU: 1})
    assert kubelet.starts == 2


async def test_a_resource_known_from_the_checkpoint_has_its_grace_anew_after_a_restart(
    tmp_path: Path,
) -> None:
    async with (
        Kubelet(tmp_path, stop_grace_seconds=0.5) as kubelet,
        registered(kubelet, device("a")),
    ):
        await kubelet.admit("default/p", {NPU: 1})
        await kubelet.restart()
        await kubelet.restart_container("default/p")
        await kubelet.wait_for(lambda: kubelet.resource(NPU).stopped_since is None)
        with pytest.raises(ContainerNotStarted, match="endpoint not found in cache"):
            await kubelet.restart_container("default/p")


async def test_a_new_kubelet_on_the_directory_knows_the_allocations_of_the_old_one(
    tmp_path: Path,
) -> None:
    async with Kubelet(tmp_path) as old, registered(old, device("a"), device("b")):
        [held] = (await old.admit("default/p", {NPU: 1})).device_ids[NPU]
        uid = old.pods["default/p"].uid
    saved = json.loads((tmp_path / CHECKPOINT).read_text())
    assert saved["Data"]["PodDeviceEntries"][0]["DeviceIDs"] == {"-1": [held]}
    async with Kubelet(tmp_path) as new:
        assert new.holders(NPU) == {held: uid}


@pytest.mark.parametrize("damage", ["{", '{"Data": {}, "Checksum": 1}', "[]", ""])
async def test_a_damaged_checkpoint_is_passed_over_and_allocation_begins_anew(
    tmp_path: Path, damage: str
) -> None:
    async with Kubelet(tmp_path) as kubelet, registered(kubelet, device("a")) as plugin:
        await kubelet.admit("default/p", {NPU: 1})
        await kubelet.stop()
        (tmp_path / CHECKPOINT).write_text(damage)
        await kubelet.start()
        assert kubelet.resources == {}
        async with plugin.serving():
            await register(kubelet, "a.sock")
            plugin._end = False
            await register(kubelet, "a.sock")
            await kubelet.wait_for(lambda: count(kubelet) == (1, 1))
            await kubelet.restart_container("default/p")
            assert len(plugin.allocated) == 2


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_directory_is_cleaned_in_the_way_of_the_version(
    tmp_path: Path, version: KubeletVersion
) -> None:
    for name in ("a.sock", "elsewhere"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
            stale.bind(str(tmp_path / name))
    directory = tmp_path / "dp"
    directory.mkdir()
    (tmp_path / "a.sock").rename(directory / "a.sock")
    (directory / "link.sock").symlink_to(tmp_path / "elsewhere")
    (directory / "state.json").write_text("")
    (directory / "sub").mkdir()
    (directory / CHECKPOINT).write_text("")
    async with Kubelet(directory, version=version):
        left = {path.name for path in directory.iterdir()}
    kept = {"sub", CHECKPOINT, "kubelet.sock", "DEPRECATION"}
    assert left == (kept if version == "1.32" else kept | {"state.json"})
    assert (tmp_path / "elsewhere").exists()


async def test_the_directory_is_made_for_root_alone_and_the_socket_is_new_each_time(
    tmp_path: Path,
) -> None:
    async with Kubelet(tmp_path / "a" / "dp") as kubelet:
        assert stat.S_IMODE(kubelet.plugin_dir.stat().st_mode) == 0o750
        with (kubelet.plugin_dir / "keep.sock").open("w"):
            os.link(kubelet.socket, tmp_path / "old")  # so that the inode is not used again
        await kubelet.stop()
        assert kubelet.socket.exists()
        with pytest.raises(ConnectionRefusedError):
            await register(kubelet, "a.sock")
        await kubelet.start()
        assert kubelet.socket.stat().st_ino != (tmp_path / "old").stat().st_ino


async def test_a_kubelet_that_stops_leaves_no_task_and_no_connection_behind(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with Plugin(tmp_path / "a.sock", device("a")).serving() as plugin:
        for _ in range(5):
            async with Kubelet(tmp_path / "dp") as kubelet:
                (tmp_path / "dp" / "a.sock").symlink_to(plugin.path)
                await register(kubelet, "a.sock")
                await kubelet.wait_for(lambda: count(kubelet) == (1, 1))
    assert asyncio.all_tasks() == before


# --- faults on demand ---


async def test_a_refusal_can_be_ordered_and_lifted(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, Plugin(tmp_path / "a.sock").serving():
        kubelet.faults.refuse_register = "come back later"
        assert await refusal(kubelet, "a.sock") == "come back later"
        kubelet.faults.refuse_register = ""
        await register(kubelet, "a.sock")


async def test_a_kubelet_can_be_told_never_to_call_list_and_watch(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, Plugin(tmp_path / "a.sock", device("a")).serving():
        kubelet.faults.never_list = True
        await register(kubelet, "a.sock")
        await kubelet.quiet(0.05)
        assert (kubelet.streams(NPU), kubelet.message_count) == (0, 0)
        assert kubelet.resource(NPU).connected


async def test_a_kubelet_can_be_told_to_hang_while_dialling_or_to_think_long(
    tmp_path: Path,
) -> None:
    async with (
        Kubelet(tmp_path, dial_seconds=0.05) as kubelet,
        Plugin(tmp_path / "a.sock").serving(),
    ):
        kubelet.faults.hang_dial = True
        assert "context deadline exceeded" in await refusal(kubelet, "a.sock")
        kubelet.faults.hang_dial = False
        kubelet.faults.register_delay = 0.05
        await register(kubelet, "a.sock")
        answered = kubelet.registrations[-1]
        assert answered.answered_at - answered.at >= 0.05


async def test_a_stream_can_be_dropped_and_only_a_new_register_mends_it(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, registered(kubelet, device("a")) as plugin:
        kubelet.drop_stream(NPU)
        await plugin.cut_off.wait()
        await kubelet.wait_for(lambda: count(kubelet) == (1, 0))
        await register(kubelet, "a.sock")
        await kubelet.wait_for(lambda: count(kubelet) == (1, 1))


async def test_an_expectation_that_is_not_met_says_what_was_there_instead(tmp_path: Path) -> None:
    async with Kubelet(tmp_path) as kubelet, registered(kubelet, device("a")):
        with pytest.raises(TimeoutError, match=r"hailo.ai/npu: 1/1 a=Healthy"):
            await kubelet.wait_for(lambda: False, within=0.01)


# --- pod resources ---


@asynccontextmanager
async def with_pods(
    tmp_path: Path, version: KubeletVersion = "1.36"
) -> AsyncIterator[tuple[Kubelet, podresources.PodResourcesListerStub]]:
    """A kubelet with two pods, one of which has finished."""
    devices = (device("a", "Healthy", 0, 1), device("b"))
    async with (
        Kubelet(tmp_path / "dp", version=version, pod_resources_dir=tmp_path / "pr") as kubelet,
        registered(kubelet, *devices) as plugin,
        asking(kubelet) as stub,
    ):
        await kubelet.admit("default/one", {NPU: 2})
        plugin.say(*devices, device("c"), device("d", "Unhealthy"))
        await kubelet.wait_for(lambda: count(kubelet) == (4, 3))
        await kubelet.admit("other/two", {NPU: 1})
        await kubelet.finish("other/two")
        yield kubelet, stub


def entries(of: list[podresources.ContainerDevices]) -> list[tuple[str, list[str], list[int]]]:
    return sorted(
        (e.resource_name, e.device_ids, [n.id for n in e.topology.nodes] if e.topology else [])
        for e in of
    )


async def test_the_list_names_each_device_once_per_numa_node(tmp_path: Path) -> None:
    async with with_pods(tmp_path) as (_, stub):
        [pod] = (await stub.list()).pod_resources
        assert (pod.namespace, pod.name, pod.containers[0].name) == ("default", "one", "main")
        assert entries(pod.containers[0].devices) == [
            (NPU, ["a"], [0]),
            (NPU, ["a"], [1]),
            (NPU, ["b"], []),
        ]


async def test_an_old_kubelet_lists_finished_pods_too_and_cannot_be_asked_for_one(
    tmp_path: Path,
) -> None:
    async with with_pods(tmp_path, "1.32") as (_, stub):
        assert [pod.name for pod in (await stub.list()).pod_resources] == ["one", "two"]
        with pytest.raises(GRPCError, match="PodResources API Get method disabled"):
            await stub.get(
                podresources.GetPodResourcesRequest(pod_name="one", pod_namespace="default")
            )


async def test_one_pod_can_be_asked_for_and_one_that_is_not_there_is_an_error(
    tmp_path: Path,
) -> None:
    async with with_pods(tmp_path) as (_, stub):
        request = podresources.GetPodResourcesRequest(pod_name="one", pod_namespace="default")
        answer = await stub.get(request)
        assert answer.pod_resources is not None
        assert answer.pod_resources.name == "one"
        with pytest.raises(GRPCError, match="pod one in namespace other not found"):
            await stub.get(
                podresources.GetPodResourcesRequest(pod_name="one", pod_namespace="other")
            )


async def test_allocatable_are_the_healthy_devices_held_or_not(tmp_path: Path) -> None:
    async with with_pods(tmp_path) as (_, stub):
        assert entries((await stub.get_allocatable_resources()).devices) == [
            (NPU, ["a"], [0]),
            (NPU, ["a"], [1]),
            (NPU, ["b"], []),
            (NPU, ["c"], []),
        ]


async def test_more_than_ten_queries_at_once_are_rejected(tmp_path: Path) -> None:
    async with with_pods(tmp_path) as (_, stub):
        answers = await asyncio.gather(*(stub.list() for _ in range(40)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, GRPCError)]
        assert 1 <= len(refused) <= 30
        assert {(e.status, e.message) for e in refused} == {
            (Status.RESOURCE_EXHAUSTED, "rejected by rate limit")
        }


async def test_the_socket_can_hang_fail_and_be_absent(tmp_path: Path) -> None:
    async with with_pods(tmp_path) as (kubelet, stub):
        assert kubelet.pod_resources is not None
        kubelet.pod_resources.fault = "error"
        with pytest.raises(GRPCError, match="something went wrong"):
            await stub.list()
        kubelet.pod_resources.fault = "hang"
        with pytest.raises((GRPCError, TimeoutError)):
            await stub.list(timeout=0.05)
        kubelet.pod_resources.fault = ""
        assert (await stub.list()).pod_resources
        await kubelet.pod_resources.vanish()
        assert not kubelet.pod_resources.socket.exists()
        assert not any((tmp_path / "pr").iterdir())


async def test_a_restart_replaces_the_pod_resources_socket_and_keeps_what_it_says(
    tmp_path: Path,
) -> None:
    async with with_pods(tmp_path) as (kubelet, before):
        await kubelet.restart()
        with contextlib.suppress(Exception):
            await before.list()  # the old connection is gone with the old process
        async with asking(kubelet) as stub:
            assert [pod.name for pod in (await stub.list()).pod_resources] == ["one"]
