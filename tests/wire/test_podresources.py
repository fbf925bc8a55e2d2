"""The pod-resources API, byte by byte. How the bytes came about: see test_deviceplugin.py."""

import pytest
from betterproto2 import Message

from hailo_agent.wire import podresources as api
from tests.wire.encoding import kinds, raw

GOLDEN: dict[str, tuple[Message, bytes]] = {
    "ListPodResourcesRequest": (api.ListPodResourcesRequest(), b""),
    "AllocatableResourcesRequest": (api.AllocatableResourcesRequest(), b""),
    "GetPodResourcesRequest": (
        api.GetPodResourcesRequest(pod_name="p", pod_namespace="n"),
        raw(b"\x0a\x01p", b"\x12\x01n"),
    ),
    "ListPodResourcesResponse, no pods": (api.ListPodResourcesResponse(), b""),
    "ListPodResourcesResponse, a pod that holds a device": (
        api.ListPodResourcesResponse(
            pod_resources=[
                api.PodResources(
                    name="p",
                    namespace="n",
                    containers=[
                        api.ContainerResources(
                            name="c",
                            devices=[
                                api.ContainerDevices(
                                    resource_name="hailo.ai/npu",
                                    device_ids=["a"],
                                    topology=api.TopologyInfo(nodes=[api.NumaNode(id=0)]),
                                )
                            ],
                        )
                    ],
                )
            ]
        ),
        raw(
            b"\x0a\x22",
            b"\x0a\x01p",
            b"\x12\x01n",
            b"\x1a\x1a",
            b"\x0a\x01c",
            b"\x12\x15",
            b"\x0a\x0chailo.ai/npu",
            b"\x12\x01a",
            b"\x1a\x02\x0a\x00",
        ),
    ),
    "GetPodResourcesResponse": (
        api.GetPodResourcesResponse(pod_resources=api.PodResources(name="p", namespace="n")),
        raw(b"\x0a\x06", b"\x0a\x01p", b"\x12\x01n"),
    ),
    "ContainerResources, processors and memory": (
        api.ContainerResources(
            name="c",
            cpu_ids=[0, 1, 300],
            memory=[
                api.ContainerMemory(
                    memory_type="memory",
                    size=4096,
                    topology=api.TopologyInfo(nodes=[api.NumaNode(id=1)]),
                )
            ],
        ),
        raw(
            b"\x0a\x01c",
            b"\x1a\x04\x00\x01\xac\x02",
            b"\x22\x11",
            b"\x0a\x06memory",
            b"\x10\x80\x20",
            b"\x1a\x04\x0a\x02\x08\x01",
        ),
    ),
    "ContainerResources, a claim": (
        api.ContainerResources(
            name="c",
            dynamic_resources=[
                api.DynamicResource(
                    claim_name="cl",
                    claim_namespace="n",
                    claim_resources=[
                        api.ClaimResource(
                            cdi_devices=[api.CdiDevice(name="v/c=a")],
                            driver_name="d",
                            pool_name="p",
                            device_name="a",
                            share_id="s",
                        )
                    ],
                )
            ],
        ),
        raw(
            b"\x0a\x01c",
            b"\x2a\x1e",
            b"\x12\x02cl",
            b"\x1a\x01n",
            b"\x22\x15",
            b"\x0a\x07\x0a\x05v/c=a",
            b"\x12\x01d",
            b"\x1a\x01p",
            b"\x22\x01a",
            b"\x2a\x01s",
        ),
    ),
    "ClaimResource, not shared": (
        api.ClaimResource(driver_name="d", share_id=None),
        b"\x12\x01d",
    ),
    "ClaimResource, shared under an empty name": (
        api.ClaimResource(driver_name="d", share_id=""),
        raw(b"\x12\x01d", b"\x2a\x00"),
    ),
    "AllocatableResourcesResponse": (
        api.AllocatableResourcesResponse(
            devices=[api.ContainerDevices(resource_name="hailo.ai/npu", device_ids=["a", "b"])],
            cpu_ids=[1],
            memory=[api.ContainerMemory(memory_type="m", size=1)],
        ),
        raw(
            b"\x0a\x14",
            b"\x0a\x0chailo.ai/npu",
            b"\x12\x01a",
            b"\x12\x01b",
            b"\x12\x01\x01",
            b"\x1a\x05\x0a\x01m\x10\x01",
        ),
    ),
}

golden = pytest.mark.parametrize(("message", "encoded"), GOLDEN.values(), ids=GOLDEN)


@golden
def test_a_message_is_written_as_the_kubelet_writes_it(message: Message, encoded: bytes) -> None:
    assert bytes(message) == encoded


@golden
def test_a_message_is_read_as_the_kubelet_writes_it(message: Message, encoded: bytes) -> None:
    assert type(message).parse(encoded) == message


def test_processor_ids_that_are_not_packed_are_read_too() -> None:
    assert api.ContainerResources.parse(b"\x18\x00\x18\x01\x18\xac\x02").cpu_ids == [0, 1, 300]


def test_the_retired_field_of_older_kubelets_is_passed_over() -> None:
    # DynamicResource once began with the class name.
    resource = api.DynamicResource.parse(raw(b"\x0a\x05class", b"\x12\x02cl"))
    assert resource.claim_name == "cl"


def test_every_message_of_the_api_has_golden_bytes() -> None:
    named = {getattr(api, name) for name in api.__all__}
    messages = {kind for kind in named if issubclass(kind, Message)}
    assert messages == {kind for message, _ in GOLDEN.values() for kind in kinds(message)}


def test_services_and_methods_have_the_names_that_kubelets_serve() -> None:
    assert set(api.PodResourcesListerBase().__mapping__()) == {
        "/v1.PodResourcesLister/List",
        "/v1.PodResourcesLister/GetAllocatableResources",
        "/v1.PodResourcesLister/Get",
    }
