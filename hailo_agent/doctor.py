"""The doctor's round: ask every edge what it sees, and draw conclusions.

A second composition root beside `agent`: it needs no running agent, changes nothing, opens no
accelerator, and runs as whoever calls it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from hailo_agent import agent
from hailo_agent.core.diagnosis import Facts, Finding, KubeletFacts, diagnose
from hailo_agent.core.grant import Delivery
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.observation import Observation
from hailo_agent.errors import EdgeError
from hailo_agent.host.examine import examine as examine_host
from hailo_agent.kubelet.examine import examine as examine_kubelet
from hailo_agent.kubelet.session import KUBELET_SOCKET
from hailo_agent.runtime.examine import examine as examine_runtime
from hailo_agent.runtime.specs import SpecStore
from hailo_agent.settings import Settings
from hailo_agent.subscribers import client


async def examine(settings: Settings, *, root: Path, kernel_log: Path) -> tuple[Finding, ...]:
    """Examine this node; `root` is where the host's root directory is mounted."""
    observation, inventory = await _look(settings)
    host = await asyncio.to_thread(
        examine_host,
        observation,
        dev=settings.host.dev,
        sys=settings.host.sys,
        root=root,
        kernel_log=kernel_log,
    )
    store = SpecStore(directory=settings.runtime.cdi_dir, search=settings.runtime.cdi_search_dirs)
    kubelet = await examine_kubelet(
        settings.kubelet.plugin_dir,
        settings.kubelet.root / "pod-resources" / KUBELET_SOCKET,
        agent.resource_names(settings).all(),
    )
    return diagnose(
        Facts(
            host=host,
            inventory=inventory,
            spec=await examine_runtime(store, root=root),
            kubelet=await _ask_agent(settings, kubelet),
            needs_spec=any(Delivery(way).needs_spec for way in settings.runtime.delivery),
        )
    )


async def _look(settings: Settings) -> tuple[Observation | None, Inventory]:
    try:
        return await agent.observe_once(settings)
    except EdgeError:
        return None, Inventory()


async def _ask_agent(settings: Settings, kubelet: KubeletFacts) -> KubeletFacts:
    """Add what a running agent says of itself."""
    socket = settings.subscribers.socket
    if socket is None:
        return replace(kubelet, agent_error="subscribers.socket is off: it cannot be asked")
    try:
        inventory = await client.get_inventory(socket)
    except EdgeError as error:
        return replace(kubelet, agent_error=str(error))
    parts = [] if inventory.readiness is None else inventory.readiness.parts
    return replace(
        kubelet,
        agent_version=inventory.agent_version,
        parts=tuple((p.name, p.state, p.reason) for p in parts if p.reason),
    )
