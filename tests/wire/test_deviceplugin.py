"""The device plugin API, byte by byte.

The bytes are put together by hand from the protobuf encoding: a tag is (field number << 3 | wire
type), where 0 is a varint and 2 is a length followed by that many bytes. They are what kubelets
write and read, whatever our own protos say.
"""

import grpclib.const
import pytest
from betterproto2 import Message

from hailo_agent.wire import deviceplugin as api
from tests.wire.encoding import kinds, raw

GOLDEN: dict[str, tuple[Message, bytes]] = {
    "Empty": (api.Empty(), b""),
    "DevicePluginOptions, nothing asked for": (api.DevicePluginOptions(), b""),
    "DevicePluginOptions, preferred allocation": (
        api.DevicePluginOptions(get_preferred_allocation_available=True),
        b"\x10\x01",
    ),
    "DevicePluginOptions, both": (
        api.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True),
        raw(b"\x08\x01", b"\x10\x01"),
    ),
    "RegisterRequest": (
        api.RegisterRequest(
            version="v1beta1",
            endpoint="hailo.ai_npu.sock",
            resource_name="hailo.ai/npu",
            options=api.DevicePluginOptions(get_preferred_allocation_available=True),
        ),
        raw(
            b"\x0a\x07v1beta1",
            b"\x12\x11hailo.ai_npu.sock",
            b"\x1a\x0chailo.ai/npu",
            b"\x22\x02\x10\x01",
        ),
    ),
    "ListAndWatchResponse, no devices": (api.ListAndWatchResponse(), b""),
    "ListAndWatchResponse, one of each health": (
        api.ListAndWatchResponse(
            devices=[
                api.Device(id="pci-0000-01-00-0", health="Healthy"),
                api.Device(id="pci-0000-02-00-0", health="Unhealthy"),
            ]
        ),
        raw(
            b"\x0a\x1b",
            b"\x0a\x10pci-0000-01-00-0",
            b"\x12\x07Healthy",
            b"\x0a\x1d",
            b"\x0a\x10pci-0000-02-00-0",
            b"\x12\x09Unhealthy",
        ),
    ),
    "Device, NUMA node 0": (
        api.Device(id="a", health="Healthy", topology=api.TopologyInfo(nodes=[api.NumaNode(id=0)])),
        raw(b"\x0a\x01a", b"\x12\x07Healthy", b"\x1a\x02\x0a\x00"),
    ),
    "Device, NUMA node 1": (
        api.Device(id="a", health="Healthy", topology=api.TopologyInfo(nodes=[api.NumaNode(id=1)])),
        raw(b"\x0a\x01a", b"\x12\x07Healthy", b"\x1a\x04\x0a\x02\x08\x01"),
    ),
    "Device, between two NUMA nodes": (
        api.Device(
            id="a",
            health="Healthy",
            topology=api.TopologyInfo(nodes=[api.NumaNode(id=0), api.NumaNode(id=1)]),
        ),
        raw(b"\x0a\x01a", b"\x12\x07Healthy", b"\x1a\x06\x0a\x00\x0a\x02\x08\x01"),
    ),
    "Device, topology not known": (
        api.Device(id="a", health="Healthy", topology=None),
        raw(b"\x0a\x01a", b"\x12\x07Healthy"),
    ),
    "PreferredAllocationRequest": (
        api.PreferredAllocationRequest(
            container_requests=[
                api.ContainerPreferredAllocationRequest(
                    available_device_ids=["a", "b"],
                    must_include_device_ids=["a"],
                    allocation_size=2,
                ),
                api.ContainerPreferredAllocationRequest(),
            ]
        ),
        raw(b"\x0a\x0b", b"\x0a\x01a", b"\x0a\x01b", b"\x12\x01a", b"\x18\x02", b"\x0a\x00"),
    ),
    "PreferredAllocationResponse": (
        api.PreferredAllocationResponse(
            container_responses=[
                api.ContainerPreferredAllocationResponse(device_ids=["b", "a"]),
                api.ContainerPreferredAllocationResponse(),
            ]
        ),
        raw(b"\x0a\x06", b"\x0a\x01b", b"\x0a\x01a", b"\x0a\x00"),
    ),
    "AllocateRequest": (
        api.AllocateRequest(
            container_requests=[
                api.ContainerAllocateRequest(device_ids=["a", "b"]),
                api.ContainerAllocateRequest(device_ids=["c"]),
            ]
        ),
        raw(b"\x0a\x06", b"\x0a\x01a", b"\x0a\x01b", b"\x0a\x03", b"\x0a\x01c"),
    ),
    "AllocateResponse, nothing for one container": (
        api.AllocateResponse(container_responses=[api.ContainerAllocateResponse()]),
        b"\x0a\x00",
    ),
    "AllocateResponse, environment": (
        api.AllocateResponse(
            container_responses=[api.ContainerAllocateResponse(envs={"HAILO": "x"})]
        ),
        raw(b"\x0a\x0c", b"\x0a\x0a", b"\x0a\x05HAILO", b"\x12\x01x"),
    ),
    "AllocateResponse, mounts": (
        api.AllocateResponse(
            container_responses=[
                api.ContainerAllocateResponse(
                    mounts=[api.Mount(container_path="/c", host_path="/h", read_only=True)]
                )
            ]
        ),
        raw(b"\x0a\x0c", b"\x12\x0a", b"\x0a\x02/c", b"\x12\x02/h", b"\x18\x01"),
    ),
    "AllocateResponse, devnodes": (
        api.AllocateResponse(
            container_responses=[
                api.ContainerAllocateResponse(
                    devices=[
                        api.DeviceSpec(
                            container_path="/dev/hailo0", host_path="/dev/hailo1", permissions="rw"
                        )
                    ]
                )
            ]
        ),
        raw(
            b"\x0a\x20", b"\x1a\x1e", b"\x0a\x0b/dev/hailo0", b"\x12\x0b/dev/hailo1", b"\x1a\x02rw"
        ),
    ),
    "AllocateResponse, annotations": (
        api.AllocateResponse(
            container_responses=[api.ContainerAllocateResponse(annotations={"k": "v"})]
        ),
        raw(b"\x0a\x08", b"\x22\x06", b"\x0a\x01k", b"\x12\x01v"),
    ),
    "AllocateResponse, CDI devices": (
        api.AllocateResponse(
            container_responses=[
                api.ContainerAllocateResponse(cdi_devices=[api.CdiDevice(name="hailo.ai/npu=a")])
            ]
        ),
        raw(b"\x0a\x12", b"\x2a\x10", b"\x0a\x0ehailo.ai/npu=a"),
    ),
    "PreStartContainerRequest": (api.PreStartContainerRequest(device_ids=["a"]), b"\x0a\x01a"),
    "PreStartContainerResponse": (api.PreStartContainerResponse(), b""),
}

golden = pytest.mark.parametrize(("message", "encoded"), GOLDEN.values(), ids=GOLDEN)


@golden
def test_a_message_is_written_as_the_kubelet_reads_it(message: Message, encoded: bytes) -> None:
    assert bytes(message) == encoded


@golden
def test_a_message_is_read_as_the_kubelet_writes_it(message: Message, encoded: bytes) -> None:
    assert type(message).parse(encoded) == message


def test_numa_node_0_does_not_vanish_and_is_read_back_as_0() -> None:
    device = api.Device.parse(b"\x0a\x01a\x1a\x02\x0a\x00")
    assert device.topology is not None
    assert [node.id for node in device.topology.nodes] == [0]


def test_an_empty_topology_is_not_the_same_as_none() -> None:
    # It would be written, so whoever doesn't know the topology has to pass None.
    assert bytes(api.Device(id="a", topology=api.TopologyInfo())) == b"\x0a\x01a\x1a\x00"


def test_a_negative_numa_node_takes_ten_bytes_as_in_go() -> None:
    assert bytes(api.NumaNode(id=-1)) == b"\x08" + b"\xff" * 9 + b"\x01"
    assert api.NumaNode.parse(b"\x08" + b"\xff" * 9 + b"\x01").id == -1


def test_map_entries_are_read_with_and_without_default_parts() -> None:
    # Go writes key and value even if empty; other encoders leave out what is empty.
    assert api.ContainerAllocateResponse.parse(b"\x0a\x05\x0a\x01k\x12\x00").envs == {"k": ""}
    assert api.ContainerAllocateResponse.parse(b"\x0a\x03\x0a\x01k").envs == {"k": ""}


def test_fields_in_any_order_and_fields_of_a_newer_kubelet_are_read() -> None:
    newer = raw(b"\x12\x11hailo.ai_npu.sock", b"\x7a\x03new", b"\xf8\x01\x2a", b"\x0a\x07v1beta1")
    request = api.RegisterRequest.parse(newer)
    assert (request.version, request.endpoint) == ("v1beta1", "hailo.ai_npu.sock")


def test_text_that_is_not_utf_8_cannot_be_sent() -> None:
    # Undecodable sysfs bytes arrive as surrogates: they have to be sanitised long before here.
    with pytest.raises(UnicodeEncodeError):
        bytes(api.Device(id="bad\udcff"))


def test_every_message_of_the_api_has_golden_bytes() -> None:
    named = {getattr(api, name) for name in api.__all__}
    messages = {kind for kind in named if issubclass(kind, Message)}
    assert messages == {kind for message, _ in GOLDEN.values() for kind in kinds(message)}


def test_services_and_methods_have_the_names_that_kubelets_call() -> None:
    cardinality = grpclib.const.Cardinality
    plugin = api.DevicePluginBase().__mapping__()
    assert {path: handler.cardinality for path, handler in plugin.items()} == {
        "/v1beta1.DevicePlugin/GetDevicePluginOptions": cardinality.UNARY_UNARY,
        "/v1beta1.DevicePlugin/ListAndWatch": cardinality.UNARY_STREAM,
        "/v1beta1.DevicePlugin/GetPreferredAllocation": cardinality.UNARY_UNARY,
        "/v1beta1.DevicePlugin/Allocate": cardinality.UNARY_UNARY,
        "/v1beta1.DevicePlugin/PreStartContainer": cardinality.UNARY_UNARY,
    }
    assert set(api.RegistrationBase().__mapping__()) == {"/v1beta1.Registration/Register"}
