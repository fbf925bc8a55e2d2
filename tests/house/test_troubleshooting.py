"""What `docs/troubleshooting.md` names exists, what it promises to treat it treats.

Findings of the doctor that it quotes are staged in `tests/doctor/test_symptoms.py`. Here are the
names, the lines of the log and the kubelet's words.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from grpclib.client import Channel
from grpclib.exceptions import GRPCError

from hailo_agent.core.health import FaultCode
from hailo_agent.settings import Settings, load
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root
from hailo_agent.sim.records import AdmissionFailed
from hailo_agent.wire import deviceplugin
from tests.house.repository import ROOT
from tests.support.another_plugin import another_plugin

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
REFERENCE = ROOT / "docs" / "reference"
_NAME = r"[a-z]+(?:-[a-z]+)*\.[a-z]+(?:[-_][a-z]+)*"
FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"

# What people have reported, in public, of these accelerators and of plugins like this one.
SYMPTOMS = {
    "library and driver are of different releases": "Status 76, HAILO_INVALID_DRIVER_VERSION",
    "service and library are of different releases": "Status 77 or 78, the multi-process service",
    "the service cannot be reached": "Status 77 or 78, the multi-process service",
    "driver 5.x where a Hailo-8 is": "The driver of the other family is installed",
    "driver 4.x where a Hailo-10H is": "The driver of the Hailo-8 is loaded for a Hailo-10H",
    "the device is busy, for two processes": "Status 73 or 74, the device is in use",
    "a crashed process still has the device": "Status 73 or 74, the device is in use",
    "the node is not there after an upgrade to 5.3": "/dev/hailo0: no such file or directory",
    "a node, and firmware that was not loaded": "There is a node, and every call fails",
    "no firmware, no node": "The firmware file is missing",
    "no interrupt behind a switch": "No interrupt behind a PCIe switch",
    "pages of 16 KiB": "max_desc_page_size is too big",
    "a link of an older generation": "Inference is slower than it should be",
    "a Hailo-10H that degrades": "A Hailo-10H gets slower, or times out until the next reboot",
    "people make their pods privileged": "The container sees boards that it may not open",
    "a device stays unhealthy until a restart": "A device stays Unhealthy though it is well",
    "the plugin was there before the driver": "The node shows no hailo.ai/npu",
    "hot-plug is not seen": "Changes are noticed late",
    "the pod is not moved when its device leaves": "A pod holds a device that is gone",
    "admission fails after a reboot": "UnexpectedAdmissionError",
    "two slots on one device": "Status 73 or 74, the device is in use",
    "a CDI name cannot be resolved": "unresolvable CDI devices",
    "lost after a daemon-reload": "The device goes away after systemctl daemon-reload",
    "the memory limit is too small": "The agent's pod does not stay up",
    "inotify instances are used up": "Too many open files",
    "the kubelet's directories are elsewhere": "The kubelet keeps its files elsewhere",
    "pods hang when they end": "Pods stay in Terminating",
    "a restart of the plugin breaks work": "The restart of the agent disturbs pods",
    "a card on the bus and no driver": "The card is on the bus and no driver serves it",
    "two families, two drivers": "Two families in one machine",
    "firmware older than the driver": "After an upgrade the chip still runs the old firmware",
    "a container starts without its device": "The container starts without its device",
    "a scan fails because of one entry": "Status 85, HAILO_DRIVER_INVALID_RESPONSE",
    "two plugins on a node": "Two plugins serve one resource",
    "SELinux": "SELinux or AppArmor denies",
    "a node that only root may open": "Permission denied on the devnode",
    "a pod that waits": "A pod stays Pending",
    "a device that is ill": "A device is Unhealthy",
}


def table(page: str, pattern: str) -> set[str]:
    """List the names in the first column of a reference's tables."""
    rows = re.findall(r"^\| (`[^|]+) \|", (REFERENCE / page).read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(pattern, row)}


CHECKS = table("doctor.md", rf"`({_NAME})`")
EVENTS = table("events.md", rf"`({_NAME})`")
FAULTS = {code.value for code in FaultCode}
SETTINGS = {
    f"{section}.{name}"
    for section, field in Settings.model_fields.items()
    for name in getattr(field.annotation, "model_fields", {})
}


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_what_people_report_has_its_section(symptom: str) -> None:
    assert f"\n### {SYMPTOMS[symptom]}\n" in PAGE


def test_every_section_says_what_is_seen_or_what_we_say() -> None:
    sections = re.split(r"^### ", PAGE.partition("\n## By name\n")[0], flags=re.MULTILINE)[1:]
    assert len(sections) > 35
    for section in sections:
        assert re.search(
            r"\*\*(You see|Why|Do)|```text|^(It|The same|Not for)", section, re.MULTILINE
        )


def test_every_name_on_the_page_exists() -> None:
    named = set(re.findall(rf"`({_NAME})`", PAGE)) - {"kubelet.sock"}
    assert len(named) > 80
    assert named - FAULTS - CHECKS - EVENTS - SETTINGS == set()


def test_every_fault_and_every_check_leads_to_a_section() -> None:
    index = PAGE.partition("\n## By name\n")[2]
    names = re.findall(
        rf"`({_NAME})`", "\n".join(re.findall(r"^\| (`[^|]+) \|", index, re.MULTILINE))
    )
    assert len(names) == len(set(names))
    assert set(names) >= FAULTS | CHECKS
    text = (REFERENCE / "events.md").read_text()
    errors = re.findall(rf"^\| `({_NAME})` \| (?:error|critical)", text, re.MULTILINE)
    assert set(errors) - {"spec.refused"} <= set(names)


# --- configurations on the pages -----------------------------------------------------------------


@pytest.mark.parametrize("page", ["several-models", "migrate-from-generic-device-plugin"])
def test_configurations_load_and_name_resources(page: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
    examples = re.findall(r"^```yaml\n(# config\.yaml\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        path = tmp_path / "config.yaml"
        path.write_text(example)
        resource = load(flags=[], environ={}, config=path).settings.resource
        names = {resource.name, *resource.names.values()}
        assert names != {Settings().resource.name}
        pods = set(re.findall(r"^    ([a-z.]+/[a-z0-9-]+): 1$", text, re.MULTILINE))
        assert pods <= {RESOURCE, *re.findall(r"[a-z.]+/[a-z0-9-]+", "".join(examples))}


# --- lines of the log ----------------------------------------------------------------------------


def logged(page: str) -> list[dict[str, Any]]:
    """List the log lines that a page quotes, in part."""
    blocks = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [line for line in map(json.loads, blocks) if "message" in line]


def says(line: object, quoted: object) -> bool:
    """Whether a line has all that is quoted of it."""
    if isinstance(quoted, dict):
        return isinstance(line, Mapping) and all(says(line.get(k), v) for k, v in quoted.items())
    if isinstance(quoted, list):
        return isinstance(line, list) and len(line) == len(quoted) and all(map(says, line, quoted))
    return line == quoted


def on_a_node(node: Node, agent: AgentProcess) -> list[Any]:
    """Give paths of the box the names that they have on a node."""
    text = json.dumps([dict(line.fields) for line in agent.lines])
    for here, there in (
        (str(node.cdi_dir), "/var/run/cdi"),
        (str(node.root / "kubelet"), "/var/lib/kubelet"),
    ):
        text = text.replace(here, there)
    return list(json.loads(text))


async def of_a_node_without_a_kubelet(root: Path) -> list[Any]:
    """Stage what is wrong before anything is handed out."""
    async with Node.build(root, kubelet=False, pod_resources=False) as node:
        node.plugin_dir.mkdir(parents=True)
        node.machine.load("5.2")
        node.machine.plug(FIRST, pci_id="1e60:45c4")
        node.machine.plug(SECOND, pci_id="1e60:2864")
        other = {
            "cdiVersion": "0.5.0",
            "kind": RESOURCE,
            "devices": [
                {
                    "name": "pci-0000-01-00-0",
                    "containerEdits": {"deviceNodes": [{"path": "/dev/hailo0"}]},
                }
            ],
        }
        (node.cdi_dir / "hailo.json").write_text(json.dumps(other))
        async with node.agent("--runtime.version=containerd://1.7.13") as agent:
            await agent.wait_for("plugin.waiting")
            await agent.wait_for("part.limping", lambda line: line["part"] == "pod-resources")
            return on_a_node(node, agent)


async def of_a_device_that_fails(root: Path) -> list[Any]:
    """Stage a refusal: somebody asks for a device that the agent knows to be broken."""
    async with Node.build(root) as node:
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        async with node.agent() as agent:
            await node.listed(1)
            node.machine.break_node(FIRST, "missing")
            await agent.wait_for("device.faulted")
            channel = Channel(path=str(node.plugin_dir / "hailo.ai_npu.sock"))
            asked = deviceplugin.ContainerAllocateRequest(device_ids=["pci-0000-01-00-0"])
            with pytest.raises(GRPCError, match="is not available: /dev/hailo0 does not exist"):
                await deviceplugin.DevicePluginStub(channel).allocate(
                    deviceplugin.AllocateRequest(container_requests=[asked])
                )
            channel.close()
            await agent.wait_for("allocation.refused")
            return on_a_node(node, agent)


async def test_a_line_of_the_log_that_is_quoted_is_what_the_agent_writes() -> None:
    lines: list[Any] = []
    for stage in (of_a_node_without_a_kubelet, of_a_device_that_fails):
        async with temporary_root() as root:
            lines += await stage(root)
    quoted = logged(PAGE)
    assert len(quoted) >= 7
    missing = [quote for quote in quoted if not any(says(line, quote) for line in lines)]
    assert missing == []


# --- the kubelet's words -------------------------------------------------------------------------


async def test_the_reasons_of_a_refused_pod_are_the_kubelets() -> None:
    async with temporary_root() as root, Node.build(root) as node:
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        said = []

        async def refused(pod: str) -> None:
            with pytest.raises(AdmissionFailed) as failure:
                await node.kubelet.admit(pod, {RESOURCE: 1})
            said.append(failure.value.why)
            assert str(failure.value).startswith("Pod was rejected: Allocate failed due to ")

        await refused("default/early")
        async with node.agent() as agent:
            await node.listed(1)
            await node.kubelet.admit("default/first", {RESOURCE: 1})
            await refused("default/second")
            node.machine.break_node(FIRST, "missing")
            await agent.wait_for("device.faulted")
            await node.listed(0)
            await refused("default/third")
    assert len(set(said)) == 3
    for reason in said:
        assert f"| `{reason}` |" in PAGE


# --- a node that another plugin has left ---------------------------------------------------------

MIGRATION = (ROOT / "docs" / "how-to" / "migrate-from-snu-rtos.md").read_text()


def left_behind(names: list[str]) -> str:
    """Make the CDI file that the older plugin writes, in its shape."""
    return json.dumps(
        {
            "cdiVersion": "0.5.0",
            "kind": RESOURCE,
            "containerEdits": {
                "mounts": [
                    {
                        "hostPath": "/var/lib/hailo-cdi/empty-chardev",
                        "containerPath": "/sys/class/hailo_chardev",
                        "options": ["rw", "bind"],
                    }
                ]
            },
            "devices": [
                {
                    "name": name,
                    "containerEdits": {
                        "deviceNodes": [
                            {"path": f"/dev/{name}", "hostPath": f"/dev/{name}", "type": "c"}
                        ]
                    },
                }
                for name in names
            ],
        }
    )


async def test_the_older_plugins_file_is_no_conflict_and_its_pods_are_named() -> None:
    async with temporary_root() as root, Node.build(root) as node:
        etc_cdi = root / "etc-cdi"
        etc_cdi.mkdir()
        (etc_cdi / "hailo.json").write_text(left_behind(["hailo0", "hailo1"]))
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        node.machine.plug(SECOND)
        async with another_plugin(node.kubelet):
            await node.listed(1)
            await node.kubelet.admit("default/old", {RESOURCE: 1})
        flags = [
            f"{flag},{etc_cdi}" if flag.startswith("--runtime.cdi-search-dirs=") else flag
            for flag in node.flags()
        ]
        agent = await AgentProcess.start(*flags)
        try:
            await node.listed(1, capacity=3)
            new = await node.kubelet.admit("default/new", {RESOURCE: 1})
            lines = on_a_node(node, agent)
        finally:
            await agent.stop()
    assert not any(
        line["message"] == "fault.found" and line["fault"]["code"] == "spec.conflict"
        for line in lines
    )
    # The board that the old pod has is kept back.
    assert set(new.device_ids[RESOURCE]) == {"pci-0000-02-00-0"}
    quoted = logged(MIGRATION)
    assert quoted
    assert [quote for quote in quoted if not any(says(line, quote) for line in lines)] == []
