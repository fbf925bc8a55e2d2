"""Whether the kubelet is there and counts our devices, and how our own agent is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hailo_agent.core.diagnosis.facts import AgentFacts, Facts, KubeletFacts, Part
from hailo_agent.core.diagnosis.finding import Finding, Verdict

_TAKEN: Final = (
    "another plugin registered this resource later: remove that one, then restart the agent"
)
"""The kubelet goes by the newest registration, and does not tell the older one."""


def examine(facts: Facts) -> Iterator[Finding]:
    """Look at the kubelet, if there should be one, and at the agent."""
    if not facts.in_kubernetes:
        yield Finding(
            check="kubelet.socket",
            looked_at=facts.kubelet.plugin_dir,
            found="no kubelet on this machine; podman and docker need none",
        )
        yield from _agent(facts)
        return
    socket = _socket(facts.kubelet)
    yield socket
    yield from _root(facts.kubelet)
    yield from _agent(facts)
    yield from _resources(facts, is_down=socket.verdict is Verdict.BROKEN)


def _socket(kubelet: KubeletFacts) -> Finding:
    directory, socket = kubelet.plugin_dir, f"{kubelet.plugin_dir}/kubelet.sock"
    if kubelet.plugin_dir_exists is False:
        return Finding(
            check="kubelet.socket",
            looked_at=directory,
            found="does not exist",
            verdict=Verdict.BROKEN,
            why="the kubelet makes it when it starts, in this very place whatever its root"
            " directory is; without it nobody can register",
            next_step="start the kubelet; in a pod, mount the host's directory at the same path",
        )
    if kubelet.socket_unseen or kubelet.plugin_dir_exists is None:
        return Finding(
            check="kubelet.socket",
            looked_at=socket,
            found=f"cannot be looked at: {kubelet.socket_unseen or 'no reason given'}",
            verdict=Verdict.UNSEEN,
            why="the agent registers there",
            next_step="run the doctor as root",
        )
    if not kubelet.socket_exists or kubelet.socket_error:
        return Finding(
            check="kubelet.socket",
            looked_at=socket,
            found=kubelet.socket_error or "does not exist",
            verdict=Verdict.BROKEN,
            why="the agent cannot register, so no pod can ask for a device",
            next_step="`systemctl status kubelet` (K3s: k3s or k3s-agent; RKE2: rke2-server or"
            " rke2-agent; MicroK8s: snap.microk8s.daemon-kubelite; k0s: k0sworker)",
        )
    return Finding(check="kubelet.socket", looked_at=socket, found="answers")


def _root(kubelet: KubeletFacts) -> Iterator[Finding]:
    if kubelet.root_elsewhere:
        yield Finding(
            check="kubelet.root",
            looked_at=f"{kubelet.root}/pod-resources",
            found=f"no socket; there is one below {kubelet.root_elsewhere}",
            verdict=Verdict.DEGRADED,
            why="the agent asks there who holds a device; without an answer it keeps a gone device"
            " on the list for a day",
            next_step=f"set kubelet.root to {kubelet.root_elsewhere}, and mount that in the agent's"
            " pod at the same path",
        )


def _resources(facts: Facts, *, is_down: bool) -> Iterator[Finding]:
    for resource, is_registered in facts.kubelet.registered.items():
        if is_registered is None and is_down:
            continue  # which is why, and was said
        if is_registered is None:
            yield Finding(
                check="kubelet.resource",
                looked_at=resource,
                found=f"the kubelet could not be asked: {facts.kubelet.unasked or 'no answer'}",
                verdict=Verdict.UNSEEN,
                why="pods that ask for what it does not count stay pending",
                next_step=f"`kubectl get node NODE -o jsonpath='{{.status.allocatable}}'` and look"
                f" for {resource}",
            )
        elif is_registered:
            yield Finding(
                check="kubelet.resource", looked_at=resource, found="counted by the kubelet"
            )
        elif resource not in facts.offered:
            yield Finding(
                check="kubelet.resource",
                looked_at=resource,
                found="not counted by the kubelet, as no usable device goes by this name",
            )
        else:
            yield Finding(
                check="kubelet.resource",
                looked_at=resource,
                found="not counted by the kubelet, though there are usable devices",
                verdict=Verdict.BROKEN,
                why="pods that ask for it stay pending",
                next_step=_how_to_register(facts.agent),
            )


def _how_to_register(agent: AgentFacts) -> str:
    log = "its log says why it could not register (plugin.waiting, plugin.rejected)"
    if agent.version:
        return (
            f"look again in a moment, for an agent runs; if it stays, {log}; if that says nothing,"
            f" {_TAKEN}"
        )
    return f"start the agent; if it runs, {log}" if agent.unseen else "start the agent"


def _agent(facts: Facts) -> Iterator[Finding]:
    agent = facts.agent
    where = agent.socket or "subscribers.socket"
    if agent.unseen:
        yield Finding(
            check="agent.running",
            looked_at=where,
            found=f"it cannot be asked: {agent.unseen}",
            verdict=Verdict.UNSEEN,
            why="it would tell its last error, and how each device answered it",
            next_step="run the doctor as root, with the agent's own configuration",
        )
        return
    if not agent.version:
        yield _not_running(where, facts) if facts.in_kubernetes else _not_needed(where, facts)
        return
    yield Finding(
        check="agent.running",
        looked_at=where,
        found=f"version {agent.version} answers{'' if agent.is_ready else ', and is not ready'}",
        verdict=Verdict.OK if agent.is_ready or agent.parts else Verdict.DEGRADED,
        why="" if agent.is_ready or agent.parts else "it has not begun its work yet",
        next_step="" if agent.is_ready or agent.parts else "run the doctor again in a moment",
    )
    for part in agent.parts:
        yield _part(part)


def _not_needed(where: str, facts: Facts) -> Finding:
    """Say what goes without an agent where there is no kubelet: everything but change."""
    if facts.spec.nodes is not None or facts.spec.problems:
        found = "no agent runs, so the spec is as somebody left it"
    elif facts.expected:
        found = "no agent runs, so nobody keeps a spec"
    else:
        found = "no agent runs, so a device that comes will not be noticed"
    return Finding(
        check="agent.running",
        looked_at=where,
        found=found,
        next_step="`systemctl enable --now hailo-agent-cdi` (manifests/systemd) keeps the spec true"
        " as devices come and go",
    )


def _not_running(where: str, facts: Facts) -> Finding:
    agent, counted = facts.agent, facts.kubelet.registered
    is_missed = any(counted.get(resource) is False for resource in facts.offered)
    return Finding(
        check="agent.running",
        looked_at=where,
        found=f"no agent answers: {agent.error}" if agent.error else "no agent answers",
        # A kubelet that still counts our devices may have an agent with another socket.
        verdict=Verdict.BROKEN if is_missed else Verdict.DEGRADED,
        why="nobody tells the kubelet of devices, so that new pods wait for theirs; containers that"
        " run go on",
        next_step="`pgrep -af hailo-agent`, or `kubectl get pods -A -o wide | grep hailo-agent`,"
        " tells whether one runs here; start it, and read at the end of its log why it stopped",
    )


def _part(part: Part) -> Finding:
    essential = part.name == "reconciler" or part.name.startswith("plugin ")
    return Finding(
        check="agent.part",
        looked_at=f"part {part.name} of the agent",
        found=f"{part.state}: {part.reason}" if part.reason else part.state,
        verdict=Verdict.BROKEN if essential else Verdict.DEGRADED,
        why="the agent is not ready without it" if essential else "the agent goes on without it",
        next_step="mend what the reason names; the agent tries again by itself",
    )
