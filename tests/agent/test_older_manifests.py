"""Pods as the documentation of older Hailo plugins has them, unchanged, on a node with this agent.

`pods/` holds manifests of our own that are equal to those in substance. What the API server and the
scheduler would do first is done here; from admission on it is the simulated kubelet and runtime.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from hailo_agent.sim.container import ContainerView
from hailo_agent.sim.kubelet import AdmissionFailed, Container
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root

PODS = Path(__file__).with_name("pods")
MANIFESTS = sorted(PODS.glob("*.yaml"))
EIGHTS = {"0000:01:00.0": "pci-0000-01-00-0", "0000:02:00.0": "pci-0000-02-00-0"}
TEN, TEN_ID = "0000:03:00.0", "pci-0000-03-00-0"
H10 = "hailo.ai/h10"
NODE_NAME = "node-7"
NAMES = f"--resource.names=hailo-10h={H10}"
pytestmark = pytest.mark.timeout(90)


def pod(name: str) -> dict[str, Any]:
    document = yaml.safe_load((PODS / name).read_text())
    assert isinstance(document, dict)
    return document


def wanted(container: Mapping[str, Any]) -> dict[str, int]:
    """Default and check as the API server does: extended resources are not overcommitted."""
    resources = container["resources"]
    limits = {name: int(count) for name, count in resources["limits"].items()}
    requests = {name: int(count) for name, count in resources.get("requests", {}).items()}
    assert {**limits, **requests} == limits
    return limits


def environment(manifest: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, str]:
    """Fill in what the kubelet would."""
    fields = {"spec.nodeName": NODE_NAME, "metadata.name": manifest["metadata"]["name"]}
    return {
        entry["name"]: fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container.get("env", ())
    }


@asynccontextmanager
async def running(*flags: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Stand]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        node.machine.load("5.3")
        for address in EIGHTS:
            node.machine.plug(address)
        node.machine.plug(TEN, pci_id="1e60:45c4")
        async with node.agent(*flags, env=env) as agent:
            yield Stand(node, agent)
            assert await agent.stop() == 0
            assert agent.garbage == []


class Stand:
    """A node with two Hailo-8, one Hailo-10H and a running agent."""

    def __init__(self, node: Node, agent: AgentProcess) -> None:
        self.node = node
        self.agent = agent

    async def start(self, manifest: Mapping[str, Any]) -> tuple[Container, ContainerView]:
        """Admit a pod and start its container."""
        (asked,) = manifest["spec"]["containers"]
        name = f"default/{manifest['metadata']['name']}"
        container = await self.node.kubelet.admit(name, wanted(asked), container=asked["name"])
        assert asked.get("securityContext", {}).get("privileged", False) is False
        view = self.node.runtime.inject(
            container.cdi_devices,
            annotations=container.annotations,
            devices=container.devices,
            mounts=container.mounts,
            env={**environment(manifest, asked), **container.envs},
        )
        return container, view


def devnode(node: Node, device_id: str) -> str:
    addresses = {**{v: k for k, v in EIGHTS.items()}, TEN_ID: TEN}
    return node.machine.entries[addresses[device_id]]


@pytest.mark.parametrize("version", ["1.28", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_manifests_are_what_kubernetes_takes(path: Path, version: str) -> None:
    kubernetes_validate.validate(pod(path.name), version, strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
async def test_its_container_starts_with_the_devices_it_asks_for_and_sees_no_other(
    path: Path,
) -> None:
    manifest = pod(path.name)
    (asked,) = manifest["spec"]["containers"]
    async with running(NAMES) as on:
        await on.node.listed(2)
        await on.node.listed(1, resource=H10)
        container, view = await on.start(manifest)
        ((resource, count),) = wanted(asked).items()
        held = container.device_ids[resource]
        assert len(set(held)) == count
        assert set(held) <= ({TEN_ID} if resource == H10 else set(EIGHTS.values()))
        entries = {devnode(on.node, device_id) for device_id in held}
        others = {devnode(on.node, name) for name in {*EIGHTS.values(), TEN_ID} - set(held)}
        assert {name for name in entries | others if view.opens(f"/dev/{name}")} == entries
        shown = (*view.class_entries("hailo_chardev"), *view.class_entries("hailo1x"))
        assert set(shown) == entries
        if "env" in asked:
            assert view.env["NODE_NAME"] == NODE_NAME
            assert view.env["POD_NAME"] == manifest["metadata"]["name"]

        # And again, as the kubelet restarts it: from what it remembers.
        again = await on.node.kubelet.restart_container(container.pod, container.name)
        view = on.node.runtime.inject(again.cdi_devices, devices=again.devices)
        assert all(view.opens(f"/dev/{name}") for name in entries)


async def test_they_run_side_by_side_until_the_devices_are_used_up() -> None:
    async with running(NAMES) as on:
        await on.node.listed(2)
        await on.node.listed(1, resource=H10)
        (one, _), (string, _), (ten, _) = [
            await on.start(pod(name)) for name in ("one-device.yaml", "overrides.yaml", "h10.yaml")
        ]
        held = (*one.device_ids[RESOURCE], *string.device_ids[RESOURCE], *ten.device_ids[H10])
        assert sorted(held) == sorted((*EIGHTS.values(), TEN_ID))
        with pytest.raises(AdmissionFailed, match="requested number of devices unavailable"):
            await on.start(pod("one-shot.yaml"))


async def test_without_the_mapping_the_other_plugins_resource_is_not_there() -> None:
    async with running() as on:
        await on.node.listed(3)
        with pytest.raises(AdmissionFailed, match="cannot allocate unregistered device"):
            await on.start(pod("h10.yaml"))


async def test_variables_of_the_other_plugin_mean_nothing_to_this_agent() -> None:
    env = {
        "HAILO_RESOURCE_NAME": H10,
        "HAILO_ARCHITECTURE": "hailo10h",
        "HAILO_DEVICE_PATTERN": "/dev/h10-*",
        "HAILO_LOG_LEVEL": "nonsense",
    }
    async with running(env=env) as on:
        await on.node.listed(3)
        assert list(on.node.kubelet.resources) == [RESOURCE]
        (started,) = on.agent.events("agent.started")
        assert started.fields["resources"] == [RESOURCE]
        told = " ".join(str(dict(line.fields)) for line in on.agent.lines)
        assert not [name for name in env if name in told]
