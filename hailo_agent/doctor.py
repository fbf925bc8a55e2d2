"""The doctor's round: ask every edge what it sees, and draw conclusions.

A second composition root beside `agent`: it needs no running agent, changes nothing, opens no
accelerator, and runs as whoever calls it. Whatever does not answer in time costs its own findings
and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from hailo_agent import agent, outfit
from hailo_agent.core import cdi
from hailo_agent.core.device import Device, DeviceId, PciAddress
from hailo_agent.core.diagnosis import diagnose
from hailo_agent.core.diagnosis.facts import (
    AgentFacts,
    Charge,
    CordonFacts,
    Facts,
    HostFacts,
    KubeletFacts,
    Part,
    SpecFacts,
    Word,
)
from hailo_agent.core.diagnosis.finding import Finding
from hailo_agent.core.diagnosis.health import weighed
from hailo_agent.core.grant import Delivery
from hailo_agent.core.health import FaultCode, Health, Severity
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.observation import Observation
from hailo_agent.core.vitals import Vitals
from hailo_agent.errors import EdgeError
from hailo_agent.host.examine import cordons as examine_cordons
from hailo_agent.host.examine import examine as examine_host
from hailo_agent.host.vitals import VitalsReader
from hailo_agent.kubelet import examine as kubelet_edge
from hailo_agent.runtime.examine import examine as examine_runtime
from hailo_agent.runtime.links import DeviceLinks
from hailo_agent.runtime.specs import SpecStore
from hailo_agent.settings import Settings
from hailo_agent.subscribers import client
from hailo_agent.wire import agentapi

_EDGE_SECONDS: Final = 10.0
_NO_ANSWER: Final = f"no answer within {_EDGE_SECONDS:g} s"
_HEALTH: Final = {
    agentapi.Health.HEALTHY: Health.HEALTHY,
    agentapi.Health.DEGRADED: Health.DEGRADED,
    agentapi.Health.UNKNOWN: Health.UNKNOWN,
    agentapi.Health.UNHEALTHY: Health.UNHEALTHY,
}
_NOTHING_TO_SAY: Final = ("starting", "running", "stopped")


async def examine(settings: Settings, *, root: Path, kernel_log: Path) -> tuple[Finding, ...]:
    """Examine this node; `root` is where the host's root directory is mounted."""
    return diagnose(await gather(settings, root=root, kernel_log=kernel_log))


async def gather(settings: Settings, *, root: Path, kernel_log: Path) -> Facts:
    """Gather all that can be seen of this node."""
    observation, inventory, unobserved = await _look(settings)
    told = await _agent(settings.subscribers.socket)
    cordons = await _cordons(settings.host.cordon_file, told)
    vitals, vitals_unseen = await _vitals(settings, inventory)
    inventory = weighed(
        inventory, vitals=vitals, cordons=cordons.cordons, severities=_severities(settings)
    )
    names = outfit.resource_names(settings)
    place = cdi.Place(
        dev=str(settings.runtime.host_dev),
        sys=str(settings.runtime.host_sys),
        links=str(settings.runtime.host_links_dir),
    )
    kubelet = settings.kubelet
    return Facts(
        observation=observation,
        unobserved=unobserved,
        inventory=inventory,
        vitals_unseen=vitals_unseen,
        cordons=cordons,
        expected=_expected(inventory, place),
        host=await _host(settings, observation, root, kernel_log),
        spec=await _spec(settings, cdi.links(inventory, place), root),
        kubelet=await _kubelet(settings, names.all(), root),
        agent=told,
        delivery=frozenset(Delivery(way) for way in settings.runtime.delivery),
        offered=frozenset(names.of(d) for d in inventory.devices if _is_offered(d, told)),
        runtime_version=settings.runtime.version,
        in_kubernetes=kubelet_edge.is_expected(kubelet.plugin_dir, kubelet.root),
    )


async def _look(settings: Settings) -> tuple[Observation | None, Inventory, str]:
    try:
        observation, inventory = await agent.observe_once(settings)
    except EdgeError as error:
        return None, Inventory(), str(error)
    return observation, inventory, ""


async def _cordons(path: Path, told: AgentFacts) -> CordonFacts:
    """Read what is set aside; of a broken file a running agent knows more than we do."""
    with anyio.move_on_after(_EDGE_SECONDS):
        cordons, unseen = await anyio.to_thread.run_sync(
            examine_cordons, path, abandon_on_cancel=True
        )
        if told.version or told.unseen:
            cordons = replace(cordons, is_complete=True)
        return CordonFacts(path=str(path), cordons=cordons, unseen=unseen)
    return CordonFacts(path=str(path), unseen=_NO_ANSWER)


async def _vitals(
    settings: Settings, inventory: Inventory
) -> tuple[Mapping[PciAddress, Vitals], str]:
    addresses = [device.address for device in inventory.devices if device.address is not None]
    timeout = settings.host.scan_timeout_seconds
    reader = VitalsReader(sys=settings.host.sys, timeout_seconds=timeout)
    with anyio.move_on_after(_EDGE_SECONDS):
        return await reader.read(addresses, inventory.at), ""
    return {}, _NO_ANSWER


def _severities(settings: Settings) -> Mapping[FaultCode, Severity]:
    """Tell which faults weigh something else here, as the agent would have it."""
    return {
        FaultCode(code): Severity(rule.severity)
        for code, rule in settings.health.faults.items()
        if rule.severity is not None
    }


def _is_offered(device: Device, told: AgentFacts) -> bool:
    charge = told.charges.get(device.id)
    return device.is_usable and (charge is None or charge.is_offered)


def _expected(inventory: Inventory, place: cdi.Place) -> Mapping[str, tuple[str, ...]]:
    """Say which devnodes our spec should give for each name, were it written now."""
    spec = cdi.render(inventory, place)
    if spec is None:
        return {}
    return {
        device.name: tuple(node.path for node in device.container_edits.device_nodes or ())
        for device in spec.devices
    }


async def _host(
    settings: Settings, observation: Observation | None, root: Path, kernel_log: Path
) -> HostFacts:
    work = partial(
        examine_host,
        observation,
        dev=settings.host.dev,
        sys=settings.host.sys,
        root=root,
        kernel_log=kernel_log,
    )
    with anyio.move_on_after(_EDGE_SECONDS):
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
    return HostFacts(kernel_log_path=str(kernel_log), kernel_log_unseen=_NO_ANSWER)


async def _spec(settings: Settings, targets: Mapping[str, str], root: Path) -> SpecFacts:
    store = SpecStore(directory=settings.runtime.cdi_dir, search=settings.runtime.cdi_search_dirs)
    with anyio.move_on_after(_EDGE_SECONDS):
        links = DeviceLinks(settings.runtime.links_dir)
        return await examine_runtime(store, links, targets, root=root)
    return SpecFacts(path=str(store.path), unseen=_NO_ANSWER)


async def _kubelet(settings: Settings, resources: tuple[str, ...], root: Path) -> KubeletFacts:
    plugin_dir, kubelet_root = settings.kubelet.plugin_dir, settings.kubelet.root
    with anyio.move_on_after(_EDGE_SECONDS):
        return await kubelet_edge.examine(plugin_dir, kubelet_root, resources, root=root)
    return KubeletFacts(plugin_dir=str(plugin_dir), socket_unseen=_NO_ANSWER)


async def _agent(socket: Path | None) -> AgentFacts:
    """Ask a running agent for its last errors."""
    if socket is None:
        return AgentFacts(unseen="subscribers.socket is empty")
    try:
        inventory = await client.get_inventory(socket)
    except EdgeError as error:
        if isinstance(error.__cause__, PermissionError):
            return AgentFacts(socket=str(socket), unseen="Permission denied")
        said = str(error).removeprefix(f"asking the agent at {socket}: ")
        return AgentFacts(socket=str(socket), error=said)
    readiness = inventory.readiness
    return AgentFacts(
        socket=str(socket),
        version=inventory.agent_version or "(unknown)",
        is_ready=readiness is None or readiness.ready,
        parts=tuple(
            Part(name=part.name, state=part.state, reason=part.reason)
            for part in ([] if readiness is None else readiness.parts)
            if part.reason or part.state not in _NOTHING_TO_SAY
        ),
        charges={
            DeviceId(device.id): Charge(
                health=_HEALTH.get(device.health, Health.UNKNOWN),
                is_offered=device.fit,
                words=tuple(map(_word, device.faults)),
            )
            for device in inventory.devices
        },
        words=tuple(map(_word, inventory.faults)),
    )


def _word(fault: agentapi.Fault) -> Word:
    return Word(
        code=fault.code,
        message=fault.message,
        remedy=fault.remedy,
        evidence=fault.evidence,
        severity=fault.severity,
    )
