"""Why a pod has its device or none, and why a device is as it is: one answer, and one next step.

Pure. Nothing is known of what a pod asked for, because nobody asks the API server: where that would
decide, it is said what this node has to offer, and where the rest of the answer stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hailo_agent.core.device import PciAddress, is_device_id
from hailo_agent.core.health import FaultCode
from hailo_agent.errors import HailoAgentError
from hailo_agent.kubelet.pods import Pod
from hailo_agent.support.holds import Hold, Orphan, holds, is_gone
from hailo_agent.support.sight import PLUGIN, Sight
from hailo_agent.wire import agentapi

_MOST_RECENT: Final = 12
_LIVE_STATE: Final = "running"


class NotOnThisNode(HailoAgentError):
    """Raised when a name means nothing here, or more than one thing."""


class Cause(StrEnum):
    """The answer, for programs."""

    # Of a pod.
    HAS_DEVICE = "has-device"
    HAS_ILL_DEVICE = "has-ill-device"
    HAS_LOST_DEVICE = "has-lost-device"
    HAS_UNSERVED_DEVICE = "has-unserved-device"
    HOLDS_NONE = "holds-none"
    NO_AGENT = "no-agent"
    NOT_REGISTERED = "not-registered"
    NO_DEVICE = "no-device"
    SPEC_UNWRITTEN = "spec-unwritten"
    NONE_HEALTHY = "none-healthy"
    ALL_HELD = "all-held"
    DEVICE_FREE = "device-free"
    DEPENDS = "depends-on-resource"
    # Of a device.
    FREE = "free"
    HELD = "held"
    DEGRADED = "degraded"
    WITHHELD = "withheld"
    GONE = "gone"
    UNUSABLE = "unusable"
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is so, and why."""

    subject: str
    """A device id, a pod as `namespace/name`, or a name as it was asked for."""
    cause: Cause
    answer: str
    """One sentence, or two."""
    facts: tuple[str, ...] = ()
    """What the answer rests on."""
    next_step: str = ""
    """What to do; empty if there is nothing to do."""
    devices: tuple[agentapi.Device, ...] = ()
    holds: tuple[Hold, ...] = ()
    recent: tuple[agentapi.RecentChange, ...] = ()
    """What happened lately to it, the oldest first."""


def explain(sight: Sight, name: str) -> Explanation:
    """Explain a device (by id, PCI address, index or path) or a pod (`name`, `namespace/name`).

    Raises:
        NotOnThisNode: it is a device that nobody knows here, or several pods have the name.
    """
    if not name.isprintable() or not name.strip():
        raise NotOnThisNode(f"{name!r} is the name of nothing")
    device = next((d for d in sight.inventory.devices if name in _names(d)), None)
    address = PciAddress.parse(name)
    device_id = name if address is None else address.device_id
    if device is None:
        device = sight.device(device_id)
    if device is not None:
        return _of_device(sight, device)
    if address is not None or is_device_id(name) or name.startswith("/"):
        return _of_stranger(sight, name, device_id)
    return _of_pod(sight, name)


def _names(device: agentapi.Device) -> set[str]:
    names = {device.id, device.index, device.path, device.pci_address}
    return {name for name in names if name}


# --- devices -------------------------------------------------------------------------------------


def _of_device(sight: Sight, device: agentapi.Device) -> Explanation:
    held = tuple(hold for hold in holds(sight) if hold.device_id == device.id)
    worst = device.faults[0] if device.faults else None
    cause, answer = _state(sight, device, held, worst)
    orphans = (hold.next_step for hold in held if hold.orphan)
    step = next(orphans, "") or ("" if worst is None else worst.remedy)
    return Explanation(
        subject=device.id,
        cause=cause,
        answer=answer,
        facts=(_what(device), *_untold(sight, device, held)),
        next_step=step,
        devices=(device,),
        holds=held,
        recent=_lately(sight, (device.id,)),
    )


def _state(
    sight: Sight,
    device: agentapi.Device,
    held: tuple[Hold, ...],
    worst: agentapi.Fault | None,
) -> tuple[Cause, str]:
    reason = "it is not fit" if worst is None else worst.message
    if any(hold.orphan is Orphan.UNSERVED for hold in held):
        return Cause.ORPHANED, f"{device.id} is held as a resource that is not served here."
    if is_gone(device):
        return Cause.GONE, f"{device.id} is gone: the machine does not have it."
    if not device.fit or not device.path:
        return Cause.WITHHELD, f"{device.id} is given to no pod: {reason}."
    if device.health is agentapi.Health.DEGRADED:
        return Cause.DEGRADED, f"{device.id} works, but not as it should: {reason}."
    ill = "" if device.health is agentapi.Health.HEALTHY else f" ({reason})"
    return _state_of_usable(sight, f"{device.id} is {_word(device)}{ill}", held)


def _state_of_usable(sight: Sight, well: str, held: tuple[Hold, ...]) -> tuple[Cause, str]:
    if held:
        return Cause.HELD, f"{well}, and {held[0].holder} has it."
    if sight.silence:
        return Cause.NO_AGENT, f"{well}, but no agent answers, so it is offered to nobody."
    return Cause.FREE, f"{well}, and no pod has it."


def _what(device: agentapi.Device) -> str:
    where = [device.pci_address, device.path]
    driver = " ".join(filter(None, (device.driver, device.driver_version)))
    what = [f"It is a {device.model}", *filter(None, where), f"driver {driver}" if driver else ""]
    return f"{', '.join(filter(None, what))}; offered as {device.resource}."


def _untold(sight: Sight, device: agentapi.Device, held: tuple[Hold, ...]) -> Iterator[str]:
    if not held and device.held is None and sight.pods is None:
        yield f"Whether a pod holds it, nobody can tell: {sight.unasked}."


def _of_stranger(sight: Sight, name: str, device_id: str) -> Explanation:
    """Explain what is no device of the inventory: seen but not usable, or held by hearsay."""
    faults = [f for f in sight.inventory.faults if _is_about(f, name, device_id)]
    held = tuple(hold for hold in holds(sight) if hold.device_id == device_id)
    if faults:
        fault = faults[0]
        return Explanation(
            subject=device_id,
            cause=Cause.UNUSABLE,
            answer=f"{name} was seen, but cannot be used: {fault.message}.",
            facts=tuple(f"{f.code}: {f.message}" for f in faults),
            next_step=fault.remedy,
            holds=held,
            recent=_lately(sight, (device_id, fault.subject)),
        )
    if held:
        return Explanation(
            subject=device_id,
            cause=Cause.ORPHANED,
            answer=f"The kubelet says that {held[0].holder} holds {device_id} as"
            f" {held[0].resource}, but nobody else knows such a device here.",
            next_step=held[0].next_step,
            holds=held,
            recent=_lately(sight, (device_id,)),
        )
    gone = _lately(sight, (device_id,))
    if gone:
        return Explanation(
            subject=device_id,
            cause=Cause.GONE,
            answer=f"{device_id} was here, and is forgotten: the machine does not have it, and no"
            " pod holds it.",
            next_step="put it back, if it should be here",
            recent=gone,
        )
    raise NotOnThisNode(f"there is no {name} on this node; `hailo-agent devices` lists what is")


def _is_about(fault: agentapi.Fault, name: str, device_id: str) -> bool:
    address = PciAddress.parse(fault.subject)
    entry = name.rpartition("/")[2]
    return (
        fault.subject in {name, device_id}
        or (address is not None and address.device_id == device_id)
        or (name.startswith("/") and fault.subject.rpartition("/")[2] == entry)
    )


# --- pods ----------------------------------------------------------------------------------------


def _of_pod(sight: Sight, name: str) -> Explanation:
    held = tuple(hold for hold in holds(sight) if _is_named(name, hold.namespace, hold.pod))
    pods = tuple(pod for pod in sight.pods or () if _is_named(name, pod.namespace, pod.name))
    subjects = sorted({*(h.holder for h in held), *(f"{p.namespace}/{p.name}" for p in pods)})
    if len(subjects) > 1:
        raise NotOnThisNode(
            f"several pods have the name {name}: {', '.join(subjects)}; name one of them"
        )
    if held:
        return _with_devices(sight, subjects[0], held)
    return _without_device(sight, subjects[0] if subjects else name, pods)


def _is_named(name: str, namespace: str, pod: str) -> bool:
    return pod != "" and name in {pod, f"{namespace}/{pod}"}


def _with_devices(sight: Sight, pod: str, held: tuple[Hold, ...]) -> Explanation:
    devices = tuple({h.device_id: h.device for h in held if h.device is not None}.values())
    orphan = next((hold for hold in held if hold.orphan), None)
    ill = next((d for d in devices if d.health is not agentapi.Health.HEALTHY), None)
    has = f"{pod} has {_counted(len(held), 'device')}"
    if orphan is not None and orphan.orphan is Orphan.UNSERVED:
        cause, step = Cause.HAS_UNSERVED_DEVICE, orphan.next_step
        answer = f"{has}, but {orphan.device_id} as {orphan.resource}, which is not served here."
    elif orphan is not None:
        cause, step = Cause.HAS_LOST_DEVICE, orphan.next_step
        answer = f"{has}, but {orphan.device_id} is gone: the machine does not have it."
    elif ill is not None and ill.faults:
        cause, step = Cause.HAS_ILL_DEVICE, ill.faults[0].remedy
        answer = f"{has}, but {ill.id} is {_word(ill)}: {ill.faults[0].message}."
    else:
        cause, step = Cause.HAS_DEVICE, ""
        answer = f"{has}, and nothing is wrong with {'it' if len(held) == 1 else 'them'}."
    return Explanation(
        subject=pod,
        cause=cause,
        answer=answer,
        facts=tuple(_held_line(hold) for hold in held),
        next_step=step,
        devices=devices,
        holds=held,
        recent=_lately(sight, tuple(hold.device_id for hold in held)),
    )


def _held_line(hold: Hold) -> str:
    container = f"Container {hold.container} has {hold.device_id} as {hold.resource}"
    if hold.device is None:
        return f"{container}; nobody but the kubelet knows it."
    what = ", ".join(filter(None, (hold.device.model, hold.device.path, _word(hold.device))))
    return f"{container}: {what}."


def _without_device(sight: Sight, pod: str, known: tuple[Pod, ...]) -> Explanation:
    states = tuple(_state_of(sight, resource) for resource in sight.resources)
    facts = [*_presence(sight, pod, known), *_past(sight, pod)]
    if known:
        cause, step = Cause.HOLDS_NONE, _limits_step(sight, pod)
        answer = (
            f"{pod} is on this node and holds no device: none of its containers was given one,"
            " which is so if none asks, or if the pod was refused or has ended."
        )
    else:
        cause, why, step = _weighed(states, pod)
        answer = f"{pod} has no device of this node: {why}"
    if known or len(states) > 1:
        facts += [state.fact for state in states]
    return Explanation(
        subject=pod,
        cause=cause,
        answer=answer,
        facts=tuple(facts),
        next_step=step,
        devices=tuple(d for d in sight.inventory.devices if d.resource in sight.resources),
        holds=holds(sight),
        recent=_lately(sight, tuple(device.id for device in sight.inventory.devices)),
    )


def _presence(sight: Sight, pod: str, known: tuple[Pod, ...]) -> Iterator[str]:
    if sight.pods is None:
        yield f"Whether the pod is on this node cannot be told: {sight.unasked}."
    elif not known:
        yield (
            f"The kubelet of this node does not name {pod} among its"
            f" {_counted(len(sight.pods), 'pod')}: it is not here, waits to be scheduled, was"
            " refused, or has ended."
        )


def _past(sight: Sight, pod: str) -> Iterator[str]:
    """Say which devices it had, as far as anybody remembers."""
    had = {
        change.subject: None
        for change in sight.recent
        for holder in change.holders
        if _is_named(pod, holder.namespace, holder.pod)
    }
    if had:
        yield f"It had {', '.join(had)} before."


def _limits_step(sight: Sight, pod: str) -> str:
    namespace, _, name = pod.rpartition("/")
    where = f" -n {namespace}" if namespace else ""
    return (
        f"see whether a container of it has {' or '.join(sight.resources)} in its"
        f" resources.limits; if one has, `kubectl describe pod {name}{where}` says what became of"
        " it"
    )


# --- what a resource has to offer ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """Why the next pod that asks for a resource gets a device, or gets none."""

    resource: str
    cause: Cause
    why: str
    step: str

    @property
    def fact(self) -> str:
        return f"{self.resource}: {self.why}"


def _weighed(states: tuple[_State, ...], pod: str) -> tuple[Cause, str, str]:
    """Find the one answer: of the only resource, or the one that is true of all."""
    causes = {state.cause for state in states}
    if len(states) == 1 or causes in ({Cause.NO_AGENT}, {Cause.NOT_REGISTERED}):
        first = states[0]
        step = first.step
        if first.cause is Cause.DEVICE_FREE:
            _, _, name = pod.rpartition("/")
            step = f"`kubectl describe pod {name}` says what it asks for and what it waits for"
        return first.cause, first.why, step
    return (
        Cause.DEPENDS,
        "it depends on which resource it asks for.",
        "see which resource is in its containers' resources.limits, and read the line of that one",
    )


def _state_of(sight: Sight, resource: str) -> _State:
    def state(cause: Cause, why: str, step: str) -> _State:
        return _State(resource=resource, cause=cause, why=why, step=step)

    if sight.silence:
        return state(
            Cause.NO_AGENT,
            f"no agent answers on this node, so nothing is offered ({sight.silence}).",
            "start the agent; if it does not stay up, its log says why",
        )
    trouble = _unregistered(sight, resource)
    if trouble:
        return state(
            Cause.NOT_REGISTERED,
            f"the kubelet is not told of {resource}: {trouble}.",
            "run `hailo-agent doctor`: it tells what keeps the agent and the kubelet apart",
        )
    devices = [device for device in sight.inventory.devices if device.resource == resource]
    usable = [device for device in devices if device.fit and device.path]
    if not devices:
        return state(Cause.NO_DEVICE, _nothing(sight, resource), _nothing_step(sight))
    if not usable:
        return _all_unfit(resource, devices)
    free = [device for device in usable if not _is_held(sight, device)]
    if not free:
        holders = {hold.holder: None for hold in holds(sight) if _is_one_of(hold, usable)}
        return state(
            Cause.ALL_HELD,
            f"{_all_of(len(usable))} held, by {', '.join(holders) or 'pods unknown'}"
            f"{_left_over(devices, usable)}.",
            "wait until one of those pods ends, or delete it; or ask for a device of another node",
        )
    return state(
        Cause.DEVICE_FREE,
        f"{_counted(len(free), 'device')} of {len(devices)} could be given to it now"
        f" ({', '.join(device.id for device in free)}); nothing on this node is in its way.",
        "none",
    )


def _unregistered(sight: Sight, resource: str) -> str:
    part = sight.part(f"{PLUGIN}{resource}")
    if part is None:
        return "no part of the agent serves it; the agent is starting, or runs without a kubelet"
    if part.reason or part.state != _LIVE_STATE:
        return part.reason or f"that part of the agent is {part.state}"
    return ""


def _nothing(sight: Sight, resource: str) -> str:
    others = sorted({device.resource for device in sight.inventory.devices} - {resource})
    if others:
        return f"no device here is offered as {resource}; those here are {', '.join(others)}."
    seen = sight.inventory.faults
    if seen:
        return f"there is no usable device; of {seen[0].subject}: {seen[0].message}."
    return "there is no device on this node."


def _nothing_step(sight: Sight) -> str:
    if sight.inventory.devices:
        return "ask for a resource that this node has, or see resource.names in the settings"
    seen = sight.inventory.faults
    if seen and seen[0].remedy:
        return seen[0].remedy
    return "run `hailo-agent doctor`: it tells what is missing between the board and its devnode"


def _all_unfit(resource: str, devices: list[agentapi.Device]) -> _State:
    first = devices[0]
    reasons = "; ".join(f"{d.id}: {_why(d)}" for d in devices)
    unwritten = all(
        any(fault.code == FaultCode.SPEC_UNWRITTEN.value for fault in device.faults)
        for device in devices
    )
    if unwritten:
        return _State(
            resource=resource,
            cause=Cause.SPEC_UNWRITTEN,
            why=f"the CDI spec does not cover its devices: {_why(first)}.",
            step="make the spec writable; the agent retries by itself, `hailo-agent doctor` tells"
            " what is in its way",
        )
    return _State(
        resource=resource,
        cause=Cause.NONE_HEALTHY,
        why=f"none of its {_counted(len(devices), 'device')} may be given away: {reasons}.",
        step=first.faults[0].remedy if first.faults else "run `hailo-agent doctor`",
    )


def _left_over(devices: list[agentapi.Device], usable: list[agentapi.Device]) -> str:
    out = [device for device in devices if device not in usable]
    return "".join(f"; {device.id} may not be given away: {_why(device)}" for device in out)


def _is_held(sight: Sight, device: agentapi.Device) -> bool:
    return any(_is_one_of(hold, (device,)) for hold in holds(sight))


def _is_one_of(hold: Hold, devices: Iterable[agentapi.Device]) -> bool:
    return any(hold.device_id == device.id for device in devices)


# --- words ---------------------------------------------------------------------------------------


def _lately(sight: Sight, subjects: tuple[str, ...]) -> tuple[agentapi.RecentChange, ...]:
    return tuple(c for c in sight.recent if c.subject in subjects)[-_MOST_RECENT:]


def _why(device: agentapi.Device) -> str:
    return device.faults[0].message if device.faults else _word(device)


def _word(device: agentapi.Device) -> str:
    return str(device.health.name or "unknown").lower()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _all_of(number: int) -> str:
    return "its only usable device is" if number == 1 else f"all {number} usable devices are"
