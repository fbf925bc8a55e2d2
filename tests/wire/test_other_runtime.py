"""Google's own protobuf runtime, given the same protos, reads what we write and the reverse.

The golden bytes say that the field numbers are right; this says that the runtime we chose encodes
every kind of field we use as any other language would.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from betterproto2 import Message
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, unknown_fields
from google.protobuf.message import Message as GoogleMessage

from hailo_agent.wire import agentapi
from tests.wire import test_deviceplugin, test_podresources

PROTOS = Path(__file__).parents[2] / "protos"

FAULT = agentapi.Fault(
    code="devnode-missing",
    subject="hailo0",
    message="no devnode — for äges",
    remedy="udevadm trigger",
    since_unix_seconds=1.7e9 + 0.125,
)
DEVICE = agentapi.Device(
    id="pci-0000-01-00-0",
    resource="hailo.ai/npu",
    model="hailo-8",
    family="hailo_chardev",
    index="hailo0",
    path="/dev/hailo0",
    major=235,
    minor=0,
    pci_address="0000:01:00.0",
    pci_id="1e60:2864",
    driver="hailo_pci",
    driver_version="4.23.0",
    numa_node=-1,
    pcie_root="pci0000:00",
    link=agentapi.Link(speed_gts=8.0, width=2, max_speed_gts=8.0, max_width=4),
    health=agentapi.Health.UNHEALTHY,
    faults=[FAULT],
    held=True,
    holders=[agentapi.Holder(namespace="default", pod="camera", container="infer")],
)
READINESS = agentapi.Readiness(
    ready=False, parts=[agentapi.Part(name="watch", state="backing-off", reason="no inotify")]
)
INVENTORY = agentapi.Inventory(
    devices=[DEVICE, agentapi.Device(id="soc-x", numa_node=0, held=False)],
    faults=[FAULT],
    node="edge-1",
    agent_version="0.1.0",
    revision=2**63 + 1,
    readiness=READINESS,
    instance="i",
)

MESSAGES: dict[str, Message] = {
    "WatchRequest": agentapi.WatchRequest(),
    "WatchResponse, inventory": agentapi.WatchResponse(inventory=INVENTORY),
    "WatchResponse, changes": agentapi.WatchResponse(
        changes=agentapi.Changes(
            revision=3,
            changes=[
                agentapi.Change(kind=agentapi.ChangeKind.MOVED, device=DEVICE),
                agentapi.Change(kind=agentapi.ChangeKind.FAULT_FOUND, fault=FAULT),
            ],
        )
    ),
    "GetInventoryResponse": agentapi.GetInventoryResponse(inventory=INVENTORY),
    **{
        f"device plugin: {name}": message for name, (message, _) in test_deviceplugin.GOLDEN.items()
    },
    **{
        f"pod resources: {name}": message for name, (message, _) in test_podresources.GOLDEN.items()
    },
}
PACKAGES = {"agentapi": "hailo.agent.v1", "deviceplugin": "v1beta1", "podresources": "v1"}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pool.DescriptorPool:
    compiled = tmp_path_factory.mktemp("protos") / "all.pb"
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    subprocess.run([*command, f"--descriptor_set_out={compiled}", *sources], check=True)
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file:
        pool.Add(file)
    return pool


@pytest.mark.parametrize("ours", MESSAGES.values(), ids=MESSAGES)
def test_what_one_runtime_writes_the_other_reads(
    ours: Message, pool: descriptor_pool.DescriptorPool
) -> None:
    api = type(ours).__module__.removeprefix("hailo_agent.wire.generated.").partition(".")[0]
    descriptor = pool.FindMessageTypeByName(f"{PACKAGES[api]}.{type(ours).__name__}")
    theirs: GoogleMessage = message_factory.GetMessageClass(descriptor)()

    assert theirs.ParseFromString(bytes(ours)) == len(bytes(ours))
    assert not unknown_fields.UnknownFieldSet(theirs)
    assert type(ours).parse(theirs.SerializeToString()) == ours
    assert len(theirs.SerializeToString(deterministic=True)) == len(bytes(ours))
