"""Who holds what, since when, and which holds are orphaned.

Pure. The kubelet's word counts, for it is who gives; the agent's is older by some seconds, and is
taken where the kubelet cannot be asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from hailo_agent import __version__
from hailo_agent.core.health import FaultCode
from hailo_agent.support.sight import Sight
from hailo_agent.wire import agentapi

_GONE: Final = frozenset({FaultCode.VANISHED.value, FaultCode.UNKNOWN_TO_MACHINE.value})


class Orphan(StrEnum):
    """Why a hold leads nowhere."""

    GONE = "device-gone"
    """The machine does not have the device any more."""
    UNKNOWN = "device-unknown"
    """The agent has never heard of the device, or the machine shows none of that id."""
    UNSERVED = "resource-not-served"
    """It is held as a resource that is not served here any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """One device in the hands of one container."""

    device_id: str
    resource: str
    namespace: str = ""
    """Empty, like pod and container, as long as the kubelet does not name who was given it."""
    pod: str = ""
    container: str = ""
    since_unix_seconds: float | None = None
    """Since when, as far as the agent remembers."""
    since_is_exact: bool = False
    """Whether that is when it was first seen to be held; else it was held before that, too."""
    device: agentapi.Device | None = None
    orphan: Orphan | None = None

    @property
    def holder(self) -> str:
        """Say who it is, in words."""
        if not self.pod:
            return "a pod that the kubelet does not name yet"
        return f"{self.namespace}/{self.pod}"

    @property
    def next_step(self) -> str:
        """Say what to do about an orphan; empty if it is none."""
        match self.orphan:
            case None:
                return ""
            case Orphan.UNSERVED:
                return (
                    f"delete the pod {self.holder}, or serve {self.resource} again (resource.name,"
                    " resource.names); until then the device is offered to nobody"
                )
            case _:
                return f"put {self.device_id} back, or delete the pod {self.holder}"


def holds(sight: Sight) -> tuple[Hold, ...]:
    """List every hold, by pod, container and device; what nobody is named for comes last."""
    found = [*_named(sight), *_unnamed(sight)]
    return tuple(
        sorted(found, key=lambda h: (not h.pod, h.namespace, h.pod, h.container, h.device_id))
    )


def document(sight: Sight) -> dict[str, Any]:
    """Say it to a program."""
    return {
        "version": __version__,
        "agentError": sight.silence,
        "kubeletError": sight.unasked,
        "holds": [of_hold(hold) for hold in holds(sight)],
    }


def of_hold(hold: Hold) -> dict[str, Any]:
    """Say one hold to a program."""
    device = hold.device
    return {
        "device": hold.device_id,
        "resource": hold.resource,
        "namespace": hold.namespace,
        "pod": hold.pod,
        "container": hold.container,
        "sinceUnixSeconds": hold.since_unix_seconds,
        "sinceIsExact": hold.since_is_exact,
        "health": None if device is None else device.to_dict().get("health"),
        "orphan": None if hold.orphan is None else hold.orphan.value,
        "nextStep": hold.next_step,
    }


def can_tell(sight: Sight) -> bool:
    """Whether anybody could say who holds what."""
    return sight.pods is not None or not sight.silence


def _named(sight: Sight) -> Iterator[Hold]:
    if sight.pods is not None:
        for pod in sight.pods:
            for held in pod.held:
                holder = agentapi.Holder(
                    namespace=pod.namespace, pod=pod.name, container=held.container
                )
                yield _hold(sight, held.device_id, held.resource, holder)
        return
    for device in sight.inventory.devices:
        for holder in device.holders:
            yield _hold(sight, device.id, device.resource, holder)


def _unnamed(sight: Sight) -> Iterator[Hold]:
    """List what is given away already, though the kubelet does not say yet to whom."""
    pods = sight.pods or ()
    named = {held.device_id for pod in pods for held in pod.held}
    for device in sight.inventory.devices:
        if device.held and not device.holders and device.id not in named:
            yield _hold(sight, device.id, device.resource, agentapi.Holder())


def _hold(sight: Sight, device_id: str, resource: str, holder: agentapi.Holder) -> Hold:
    device = sight.device(device_id)
    since, is_exact = _since(sight, device_id, holder)
    return Hold(
        device_id=device_id,
        resource=resource,
        namespace=holder.namespace,
        pod=holder.pod,
        container=holder.container,
        since_unix_seconds=since,
        since_is_exact=is_exact,
        device=device,
        orphan=_orphan(sight, device, resource),
    )


def _orphan(sight: Sight, device: agentapi.Device | None, resource: str) -> Orphan | None:
    if resource not in sight.resources:
        return Orphan.UNSERVED
    if device is None:
        return Orphan.UNKNOWN
    return Orphan.GONE if is_gone(device) else None


def is_gone(device: agentapi.Device) -> bool:
    """Whether the machine does not have the device."""
    return any(fault.code in _GONE for fault in device.faults)


def _since(sight: Sight, device_id: str, holder: agentapi.Holder) -> tuple[float | None, bool]:
    """Go back in the record as long as it is held by the same, or by somebody not yet named."""
    oldest: agentapi.RecentChange | None = None
    is_whole = sight.forgotten == 0
    for change in reversed(sight.recent):
        if change.subject != device_id:
            continue
        is_theirs = holder in change.holders if change.holders else bool(change.held)
        if not is_theirs:
            is_whole = True  # what was before is known, and was another's
            break
        oldest = change
    if oldest is None:
        return None, False
    return oldest.at_unix_seconds, is_whole and oldest.kind is agentapi.ChangeKind.HELD
