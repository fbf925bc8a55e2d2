"""What the simulated kubelet remembers of what happened, and how it words what it believes.

Values only; `sim.kubelet` names those that tests and the demo read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from hailo_agent.sim.container import DeviceSpec, MountSpec

HEALTHY: Final = "Healthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One Register call and how it went; `refusal` is empty when it was accepted."""

    at: float
    answered_at: float
    resource: str
    endpoint: str
    version: str
    options: tuple[bool, bool] | None
    refusal: str

    @property
    def accepted(self) -> bool:
        """Whether the plugin was told that it is registered."""
        return not self.refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect:
    """One ListAndWatch that ended, and why, as the kubelet's log would have it."""

    at: float
    resource: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedDevice:
    """One device as a list named it; `topology` says whether the list said anything about NUMA."""

    id: str
    health: str
    numa: tuple[int, ...] = ()
    topology: bool = False

    @property
    def healthy(self) -> bool:
        """Whether the kubelet takes it for healthy: any other text than this one is unhealthy."""
        return self.health == HEALTHY


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One list that came in: when (on the loop's clock), for what, and all of it."""

    at: float
    resource: str
    devices: tuple[ListedDevice, ...]

    @property
    def health(self) -> dict[str, str]:
        """What the list says of each device."""
        return {device.id: device.health for device in self.devices}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One Allocate call: what was asked for, how long it took, and the error text if it failed."""

    at: float
    seconds: float
    pod: str
    container: str
    resource: str
    device_ids: tuple[str, ...]
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """One GetPreferredAllocation call and its answer."""

    resource: str
    available: tuple[str, ...]
    size: int
    answer: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What node status and the device manager's table say about one resource."""

    name: str
    capacity: int = 0
    allocatable: int = 0
    devices: Mapping[str, ListedDevice] = field(default_factory=dict)
    endpoint: str = ""
    connected: bool = False
    stopped_since: float | None = None

    @property
    def health(self) -> dict[str, str]:
        """What the newest list says of each device."""
        return {device.id: device.health for device in self.devices.values()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What the kubelet would hand to the container runtime for one container."""

    pod: str
    name: str
    device_ids: Mapping[str, tuple[str, ...]]
    envs: Mapping[str, str]
    mounts: tuple[MountSpec, ...]
    devices: tuple[DeviceSpec, ...]
    annotations: Mapping[str, str]
    cdi_devices: tuple[str, ...]


@dataclass(slots=True)
class Pod:
    """One pod that was brought to this node, as `admit` left it."""

    name: str
    uid: str
    phase: Literal["Running", "Failed", "Succeeded"] = "Running"
    message: str = ""
    requests: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        """Whether its devices are still its own."""
        return self.phase == "Running"


class AdmissionFailed(Exception):
    """Raised when a pod is refused; the text is the pod's status message, word for word."""

    reason: Final = "UnexpectedAdmissionError"

    def __init__(self, pod: str, why: str) -> None:
        super().__init__(f"Pod was rejected: Allocate failed due to {why}, which is unexpected")
        self.pod = pod
        self.why = why


class ContainerNotStarted(Exception):
    """Raised when a container of an admitted pod cannot be started again."""


class KubeletCrashed(Exception):
    """Raised where a kubelet of this version would have died of a nil pointer."""
