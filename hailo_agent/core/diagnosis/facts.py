"""What the doctor goes by: everything that the edges could see of one node, as values.

A fact that could not be gathered is None, or is missing beside a reason; it is never taken for
health, and never for a fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hailo_agent.core.cordon import Cordons
from hailo_agent.core.device import DeviceId, PciAddress
from hailo_agent.core.grant import Delivery
from hailo_agent.core.health import Health
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.observation import Observation

# --- the host ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A loaded kernel module of Hailo's."""

    name: str
    version: str | None
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What the port above a PCI function could do: a link is as good as its worse end."""

    max_speed_gts: float
    max_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inotify:
    """How many watchers a user may have, and whether one more can be had."""

    max_instances: int | None = None
    is_exhausted: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What the host shows."""

    modules: tuple[Module, ...] = ()
    kernel_release: str = ""
    installed: frozenset[str] | None = None
    """Hailo's modules that are installed for the running kernel; None if that cannot be seen."""
    firmware: Mapping[str, bool | None] = field(default_factory=dict)
    """By file below the firmware directory: whether it is there; None if that cannot be seen."""
    firmware_dir: str = "/lib/firmware"
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Versions of libhailort that are installed on the host, by path."""
    kernel_log: tuple[str, ...] | None = None
    kernel_log_path: str = "/dev/kmsg"
    kernel_log_unseen: str = ""
    """Why the kernel log could not be read."""
    page_bytes: int = 4096
    ports: Mapping[PciAddress, Port] = field(default_factory=dict)
    power_states: Mapping[PciAddress, str] = field(default_factory=dict)
    modes: Mapping[str, int] = field(default_factory=dict)
    """Permission bits by name in /dev."""
    char_links: Mapping[str, bool] | None = None
    """By `major:minor`: whether /dev/char leads there. None where systemd is not in charge."""
    inotify: Inotify = field(default_factory=Inotify)
    in_user_namespace: bool = False
    selinux: bool = False
    apparmor: bool = False


# --- containers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """One container runtime's configuration on this node."""

    runtime: str
    path: str
    """The file that was looked at."""
    for_kubelet: bool = True
    """Whether it is a runtime that kubelets use; podman and docker are not."""
    cdi: bool | None = None
    """Whether it resolves CDI names; None if the file leaves it to the runtime's version."""
    depends: str = ""
    """If it does: on which version, in words."""
    spec_dirs: tuple[str, ...] = ()
    """Where it looks for specs; empty if the file does not say, which means the usual two."""
    to_switch_on: str = ""
    """Exactly what to do to have it resolve CDI names."""
    unseen: str = ""
    """Why the file could not be read, or made sense of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecFacts:
    """What the CDI directories show."""

    path: str
    search: tuple[str, ...] = ()
    """Every directory that runtimes read, the later ones overruling the earlier."""
    missing: tuple[str, ...] = ()
    """Which of them do not exist."""
    directory_exists: bool | None = None
    is_writable: bool | None = None
    """None if whoever runs the doctor is not who would write."""
    is_symlink: bool = False
    nodes: Mapping[str, tuple[str, ...]] | None = None
    """Devnodes by device of the spec; None if there is no spec, or none that can be read."""
    problems: tuple[str, ...] = ()
    """What a reader would refuse it for."""
    unseen: str = ""
    """Why it could not be read."""
    foreign: tuple[tuple[str, str], ...] = ()
    """Devices of our kind that files of others define, as (path, device name)."""
    leftovers: tuple[str, ...] = ()
    links: frozenset[str] = frozenset()
    """Devices whose lasting link leads where it should."""
    links_dir: str = ""
    configs: tuple[RuntimeConfig, ...] = ()


# --- the kubelet, and our own agent ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the running agent that does not run."""

    name: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One fault in the running agent's words, which may be of another release than the doctor."""

    code: str
    message: str
    remedy: str
    evidence: str = ""
    severity: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One device as the running agent holds it."""

    health: Health
    is_offered: bool
    """Whether a pod may be given it now, as far as its health goes."""
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """What the agent on this node says of itself."""

    socket: str = ""
    version: str = ""
    """Empty if none answers."""
    error: str = ""
    """Why none answers."""
    unseen: str = ""
    """Why none could be asked."""
    is_ready: bool = True
    parts: tuple[Part, ...] = ()
    charges: Mapping[DeviceId, Charge] = field(default_factory=dict)
    """What it says of each device."""
    words: tuple[Word, ...] = ()
    """What it says of the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CordonFacts:
    """What an operator set aside on this node."""

    path: str = ""
    cordons: Cordons = field(default_factory=Cordons)
    unseen: str = ""
    """Why the file could not be looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletFacts:
    """What the kubelet's directories show, and what it says."""

    plugin_dir: str
    plugin_dir_exists: bool | None = None
    socket_exists: bool | None = None
    socket_error: str = ""
    """Why nobody answers at the kubelet's socket; empty if somebody does."""
    socket_unseen: str = ""
    """Why nobody could be asked."""
    registered: Mapping[str, bool | None] = field(default_factory=dict)
    """By resource: whether the kubelet counts healthy devices of it; None if it cannot be asked."""
    unasked: str = ""
    """Why it could not be asked."""
    root: str = ""
    root_elsewhere: str = ""
    """Another kubelet's root directory that was found instead; empty if ours is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything the doctor could see of one node."""

    observation: Observation | None
    unobserved: str = ""
    """Why the machine could not be looked at."""
    inventory: Inventory = field(default_factory=Inventory)
    """What was found, with what vitals and cordons say of it."""
    vitals_unseen: str = ""
    """Why no vitals could be read."""
    cordons: CordonFacts = field(default_factory=CordonFacts)
    expected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Devnodes by device, as our spec should say now."""
    host: HostFacts = field(default_factory=HostFacts)
    spec: SpecFacts
    kubelet: KubeletFacts
    agent: AgentFacts = field(default_factory=AgentFacts)
    delivery: frozenset[Delivery] = frozenset({Delivery.CRI})
    offered: frozenset[str] = frozenset()
    """Resources under which usable devices are offered."""
    runtime_version: str = ""
    in_kubernetes: bool = True
    """Whether a kubelet is expected here at all."""

    @property
    def needs_spec(self) -> bool:
        """Whether containers get their devices by CDI; without a kubelet there is no other way."""
        return not self.in_kubernetes or any(way.needs_spec for way in self.delivery)

    @property
    def has_fallback(self) -> bool:
        """Whether containers get their devnodes even where CDI is off."""
        return self.in_kubernetes and Delivery.DEVICESPEC in self.delivery
