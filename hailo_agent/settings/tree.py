"""The settings tree: what can be set, what it is when nobody sets it, and which values are refused.

The sections are the rooms of the house. Built by `load` from what the operator wrote, and directly
by whoever needs a tree in a test or a simulated node: the rules below hold either way. It must not
know where a value comes from, and reads neither the environment nor a file by itself.

A validator raises `Wrong`, which carries the remedy beside the reason: `load` puts the key, the
value and its place in front of them.
"""

import difflib
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hailo_agent.core.chip import Limits
from hailo_agent.core.device import Model
from hailo_agent.core.health import RULES
from hailo_agent.core.offer import endpoint_name
from hailo_agent.web.listen import parse_listen

MODELS: Final = tuple(model.value for model in Model)
"""The models that `resource.names` may speak of."""

KUBELET_PLUGIN_DIR: Final = Path("/var/lib/kubelet/device-plugins")
"""Where the kubelet itself looks for our socket: a constant of its own, whatever its root is."""

SUN_PATH_BYTES: Final = 107
"""The longest path of a unix socket (`sun_path` is 108 bytes with the final NUL)."""

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_PCI_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
_RUNTIME_VERSION = re.compile(r"[a-z0-9][a-z0-9.-]*://[!-~]+")
_FILE_NAME_BYTES = 255
_SUBDOMAIN_LENGTH = 253
_QUALIFIED_LENGTH = 63
_DEVNODE_LENGTH = 200
_TEXT_LENGTH = 253
_DAY: Final = 86_400.0
_WEIGHED: Final = frozenset(code.value for code in RULES)
_LIMITS: Final = Limits()


class Wrong(ValueError):
    """Raised by a validator when a value is refused; completes the sentence "<key> = <value> …"."""

    def __init__(self, what: str, *, remedy: str, key: str = "") -> None:
        """Say what is wrong and what to do; `key` only where the rule spans several settings."""
        super().__init__(what)
        self.remedy = remedy
        self.key = key


# --- What a value must be --------------------------------------------------------------------


def _absolute(path: Path) -> Path:
    if "\0" in str(path):
        raise Wrong("contains a NUL character", remedy="remove it: no path can have one")
    if not path.is_absolute():
        raise Wrong("is not an absolute path", remedy="give the whole path, beginning with '/'")
    return path


def _socket_path(path: Path) -> Path:
    _fits_sun_path(_absolute(path), remedy="choose a shorter path")
    _fits_sun_path(temporary(path), remedy="choose a shorter path")
    return path


def _fits_sun_path(path: Path, *, remedy: str, key: str = "") -> None:
    size = len(os.fsencode(path))
    if size > SUN_PATH_BYTES:
        what = f"needs a unix socket at {path}, which is {size} bytes long, {SUN_PATH_BYTES} fit"
        raise Wrong(what, remedy=remedy, key=key)


def temporary(socket: Path) -> Path:
    """Return a path as long as the one a socket is bound at before it is renamed into place."""
    return socket.with_name(f".{socket.name}.{'0' * 8}")


def _kubelet_root(path: Path) -> Path:
    _fits_sun_path(
        _absolute(path) / "pod-resources" / "kubelet.sock",
        remedy="mount the kubelet's root directory at a shorter path",
    )
    return path


def _empty_is_off(value: object) -> object:
    return None if value == "" else value


def _resource_name(name: str) -> str:
    """Refuse what the kubelet would refuse, by its own rules (IsExtendedResourceName)."""
    prefix, slash, rest = name.partition("/")
    if not slash:
        raise Wrong(
            "has no '/': the kubelet takes such a name for one of its own resources",
            remedy="write <domain>/<name>, for instance hailo.ai/npu",
        )
    if "kubernetes.io/" in name:
        raise Wrong(
            "contains 'kubernetes.io/', which Kubernetes keeps for itself",
            remedy="use a domain of your own, for instance hailo.ai",
        )
    if name.startswith("requests."):
        raise Wrong("begins with 'requests.', which quotas use", remedy="use another domain")
    if len(prefix) > _SUBDOMAIN_LENGTH - len("requests."):
        raise Wrong(
            f"has {len(prefix)} characters before the '/'",
            remedy=f"use at most {_SUBDOMAIN_LENGTH - len('requests.')}",
        )
    if not _SUBDOMAIN.fullmatch(prefix):
        raise Wrong(
            "does not begin with a domain name",
            remedy="before the '/' use lower-case letters, digits, '-' and '.', a letter or digit"
            " at each end and beside every '.'",
        )
    if len(rest) > _QUALIFIED_LENGTH:
        raise Wrong(
            f"has {len(rest)} characters after the '/'", remedy=f"use at most {_QUALIFIED_LENGTH}"
        )
    if not _QUALIFIED.fullmatch(rest):
        raise Wrong(
            "has no proper name after the '/'",
            remedy="after the '/' use letters, digits, '-', '_' and '.', a letter or digit at each"
            " end",
        )
    return name


def _model_or_pci_id(name: str) -> str:
    if name in MODELS or _PCI_ID.fullmatch(name):
        return name
    raise Wrong(
        "is neither a model nor a PCI id",
        remedy=f"use one of {', '.join(MODELS)}, or vendor and device as in 1e60:2864",
    )


def _listen_address(text: str) -> str:
    if text:
        try:
            parse_listen(text)
        except ValueError as error:
            reason, _, remedy = str(error).rpartition("; ")
            raise Wrong(f"cannot be listened at: {reason}", remedy=remedy) from error
    return text


def _weighed_fault(code: str) -> str:
    if code in _WEIGHED:
        return code
    near = difflib.get_close_matches(code, _WEIGHED, n=1)
    raise Wrong(
        "is no fault that can be weighed otherwise",
        remedy=f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(_WEIGHED))}",
    )


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise Wrong(f"has {value} twice", remedy="name each once")
    return values


def _at_least_one(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise Wrong("is empty", remedy="name at least one")
    return values


def _file_name(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name or not name.isprintable():
        raise Wrong(
            "is not the name of a directory in /sys/class",
            remedy="give the name alone, for instance hailo_chardev",
        )
    if len(name.encode()) > _FILE_NAME_BYTES:
        raise Wrong("is longer than any file name", remedy=f"use at most {_FILE_NAME_BYTES} bytes")
    return name


def _pattern(pattern: str) -> str:
    if not pattern:
        raise Wrong("is empty", remedy="give the pattern of names in /dev, for instance vcs[0-9]+")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "possible nested set": it will change its meaning
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        reason = str(error) or type(error).__name__
        raise Wrong(
            f"is not a regular expression ({reason})", remedy="write it as for instance vcs[0-9]+"
        ) from error
    return pattern


def _distinct_families(families: tuple["Family", ...]) -> tuple["Family", ...]:
    _unique(tuple(family.class_name for family in families))
    return families


def _runtime_version(version: str) -> str:
    if version and not _RUNTIME_VERSION.fullmatch(version):
        raise Wrong(
            "is not a container runtime and its version",
            remedy="copy .status.nodeInfo.containerRuntimeVersion of the node, for instance"
            " containerd://1.7.13, or leave it empty",
        )
    return version


def _printable(text: str) -> str:
    if not text.isprintable():
        raise Wrong("contains characters that cannot be printed", remedy="remove them")
    return text


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Directory = Annotated[Path, AfterValidator(_absolute)]
# A hundredth of a second is no useful period but keeps a mistake from becoming a busy loop.
Seconds = Annotated[float, Field(ge=0.01, allow_inf_nan=False)]
Pattern = Annotated[str, Field(min_length=1, max_length=_TEXT_LENGTH), AfterValidator(_printable)]
ResourceName = Annotated[str, AfterValidator(_resource_name)]
FaultName = Annotated[str, AfterValidator(_weighed_fault)]
Celsius = Annotated[float, Field(ge=-40, le=200, allow_inf_nan=False)]
ModelOrPciId = Annotated[str, AfterValidator(_model_or_pci_id)]


# --- The tree --------------------------------------------------------------------------------


class Section(BaseModel):
    """A room's settings."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class Family(Section):
    """One more kernel driver's naming, so that the next rename needs no release."""

    class_name: Annotated[str, AfterValidator(_file_name)] = Field(
        description="the driver's directory in /sys/class"
    )
    devnode: Annotated[str, Field(max_length=_DEVNODE_LENGTH), AfterValidator(_pattern)] = Field(
        description="a regular expression that matches the whole name of its entries in /dev"
    )
    identity: Literal["pci", "sysfs"] = Field(
        default="pci", description="what a device is known by: PCI address or path in sysfs"
    )


class Host(Section):
    """The kernel's side: where devices are looked for, and what makes the agent look."""

    dev: Directory = Field(
        default=Path("/dev"), description="Directory of the devnodes, as this process sees it."
    )
    sys: Directory = Field(default=Path("/sys"), description="sysfs, as this process sees it.")
    proc: Directory = Field(
        default=Path("/proc"), description="procfs, as this process sees it, for meminfo."
    )
    cordon_file: Annotated[Path, AfterValidator(_absolute)] = Field(
        default=Path("/var/lib/hailo-agent/cordons.json"),
        description="What an operator set aside on this node; written by `hailo-agent cordon`.",
    )
    resync_seconds: Annotated[Seconds, Field(le=3600)] = Field(
        default=30.0,
        description="Look at the machine this often even if nothing is heard from the kernel.",
    )
    scan_timeout_seconds: Annotated[Seconds, Field(le=60)] = Field(
        default=2.0,
        description="How long one look may take; a device that hangs longer earns a fault.",
    )
    inotify: bool = Field(
        default=True, description="Watch directories; without it changes wait for the resync."
    )
    uevents: bool = Field(default=True, description="Listen to the kernel's device events.")
    families: Annotated[tuple[Family, ...], AfterValidator(_distinct_families)] = Field(
        default=(),
        description=(
            "Kernel drivers to look for besides those built in, each with class_name (directory"
            " in /sys/class), devnode (regular expression for the whole name in /dev) and identity"
            " (pci or sysfs)."
        ),
    )


class Devices(Section):
    """Which of the devices found are offered."""

    allow: tuple[Pattern, ...] = Field(
        default=(),
        description=(
            "Offer only devices of which the id, the PCI address, the model or the PCI id"
            " (1e60:2864) matches one of these shell patterns; empty means all. A model that only"
            " the firmware tells (hailo-8l, hailo-8r) is hailo-8 here, for it is not asked before."
        ),
    )
    deny: tuple[Pattern, ...] = Field(
        default=(),
        description=(
            "Never offer devices that match one of these; wins over allow. hailo-8l and hailo-8r"
            " take effect once the firmware has been asked."
        ),
    )


class FaultRule(Section):
    """What one kind of fault weighs; what is left out stays as it is by default."""

    severity: Literal["info", "degraded", "unknown", "fatal"] | None = Field(
        default=None, description="what it does to its device"
    )
    strikes: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="how many readings in a row must show it"
    )
    patience_seconds: Annotated[float, Field(ge=0, le=_DAY, allow_inf_nan=False)] | None = Field(
        default=None, description="how long it must have been there before it counts"
    )
    recovery_seconds: Annotated[float, Field(ge=0, le=_DAY, allow_inf_nan=False)] | None = Field(
        default=None, description="how long it must be gone before it is forgotten"
    )


class Health(Section):
    """What is asked of devices, what counts as ill, and when a device is trusted again."""

    recovery_seconds: Annotated[Seconds, Field(le=_DAY)] = Field(
        default=5.0,
        description="How long a device that faulted repeatedly must be well before it is healthy.",
    )
    flap_window_seconds: Annotated[Seconds, Field(le=_DAY)] = Field(
        default=60.0, description="A second fault within this time counts as repeatedly."
    )
    unknown: Literal["offered", "withheld"] = Field(
        default="offered", description="What becomes of a device of which nobody knows how it is."
    )
    faults: Mapping[FaultName, FaultRule] = Field(
        default={},
        description=(
            "Other rules for some faults, by code (link.degraded), each with severity (info,"
            " degraded, unknown or fatal), strikes, patience_seconds or recovery_seconds."
        ),
    )
    vitals_seconds: Annotated[Seconds, Field(le=3600)] = Field(
        default=5.0,
        description="How often the kernel is asked how each PCI function is; opens nothing.",
    )
    queries: Literal["auto", "on", "off"] = Field(
        default="auto",
        description=(
            "Ask driver and firmware: auto where devnodes may be opened, on to be warned where they"
            " may not."
        ),
    )
    query_seconds: Annotated[Seconds, Field(le=_DAY)] = Field(
        default=60.0, description="How often an idle device is asked."
    )
    query_in_use: bool = Field(
        default=False, description="Ask devices that somebody uses as well; it wakes nothing."
    )
    query_timeout_seconds: Annotated[Seconds, Field(ge=1, le=60)] = Field(
        default=5.0,
        description="After this long without an answer, a device that is asked counts as hung.",
    )
    awake_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=0.01,
        description=(
            "The share of time that being asked may keep an idle chip awake; where"
            " health.query_seconds would exceed it, devices are asked less often."
        ),
    )
    slow_seconds: Annotated[Seconds, Field(le=60)] = Field(
        default=0.5, description="An answer that takes longer is slow."
    )
    temperature_high_celsius: Celsius = Field(
        default=_LIMITS.temperature_high_celsius,
        description="A chip this hot is degraded, unless it has a threshold of its own.",
    )
    temperature_critical_celsius: Celsius = Field(
        default=_LIMITS.temperature_critical_celsius,
        description="A chip this hot is unhealthy, unless it has a threshold of its own.",
    )
    notifications: bool = Field(
        default=False,
        description=(
            "Listen to what the firmware says by itself. Keeps the chip awake, and its kernel"
            " module from being unloaded."
        ),
    )
    notification_seconds: Annotated[Seconds, Field(le=_DAY)] = Field(
        default=60.0, description="How long a fault that the firmware told of stays, in silence."
    )
    hailortcli: Annotated[str, Field(max_length=_TEXT_LENGTH), AfterValidator(_printable)] = Field(
        default="hailortcli",
        description=(
            "Name or path of hailortcli, used as a cross-check where it is there and of the kernel"
            " driver's version; empty means off."
        ),
    )


class Runtime(Section):
    """The container runtime's side: how a container gets its device."""

    cdi_dir: Directory = Field(
        default=Path("/var/run/cdi"), description="Directory that the CDI spec is written to."
    )
    cdi_search_dirs: Annotated[tuple[Directory, ...], AfterValidator(_unique)] = Field(
        default=(Path("/etc/cdi"), Path("/var/run/cdi")),
        description="Every directory that container runtimes read specs from: searched for"
        " what an earlier configuration left behind, and for specs of others that define"
        " our devices.",
    )
    links_dir: Directory = Field(
        default=Path("/run/hailo-agent/devices"),
        description="Directory of links named after device ids, which lead to the devnodes;"
        " kept for the delivery devicespec.",
    )
    host_links_dir: Directory = Field(
        default=Path("/run/hailo-agent/devices"),
        description="runtime.links_dir as the container runtime sees it.",
    )
    host_dev: Directory = Field(
        default=Path("/dev"),
        description="host.dev as the container runtime sees it; it goes into the spec.",
    )
    host_sys: Directory = Field(
        default=Path("/sys"),
        description="host.sys as the container runtime sees it; it goes into the spec.",
    )
    delivery: Annotated[
        tuple[Literal["cri", "annotation", "devicespec"], ...],
        AfterValidator(_unique),
        AfterValidator(_at_least_one),
    ] = Field(
        default=("cri", "devicespec"),
        description=(
            "How Allocate names a device: cri (CDI names in the CRI field), annotation (CDI names"
            " in an annotation), devicespec (plain device nodes), or several of them."
        ),
    )
    version: Annotated[str, Field(max_length=_TEXT_LENGTH), AfterValidator(_runtime_version)] = (
        Field(
            default="",
            description=(
                "The node's containerRuntimeVersion, such as containerd://1.7.13, where the"
                " deployer knows it."
            ),
        )
    )


class Kubelet(Section):
    """The kubelet's side."""

    plugin_dir: Directory = Field(
        default=KUBELET_PLUGIN_DIR,
        description="The kubelet's device-plugin directory, as this process sees it.",
    )
    root: Annotated[Path, AfterValidator(_kubelet_root)] = Field(
        default=Path("/var/lib/kubelet"),
        description="The kubelet's root directory; pod-resources/kubelet.sock is in it.",
    )
    pod_resources_seconds: Annotated[Seconds, Field(le=3600)] = Field(
        default=10.0, description="How often the kubelet is asked which pods hold devices."
    )
    tombstone_seconds: Annotated[Seconds, Field(le=365 * _DAY)] = Field(
        default=_DAY,
        description=(
            "How long a device that is gone stays listed as unhealthy where nobody can tell"
            " whether a pod holds it."
        ),
    )
    register_timeout_seconds: Annotated[Seconds, Field(le=300)] = Field(
        default=15.0,
        description="How long a registration may take; the kubelet alone takes up to 10 s.",
    )


class Resource(Section):
    """What pods ask for."""

    name: ResourceName = Field(
        default="hailo.ai/npu", description="The resource under which devices are offered."
    )
    names: Mapping[ModelOrPciId, ResourceName] = Field(
        default={},
        description=(
            "Other resource names for some devices, by model (hailo-8) or PCI id (1e60:45c4);"
            " the PCI id wins."
        ),
    )


class Subscribers(Section):
    """Whoever follows device events on the agent's own socket."""

    socket: Annotated[
        Annotated[Path, AfterValidator(_socket_path)] | None, BeforeValidator(_empty_is_off)
    ] = Field(
        default=Path("/run/hailo-agent/agent.sock"),
        description="Socket of the DeviceEvents service; empty means off.",
    )


class Monitor(Section):
    """What containers let the agent know of how they use their devices."""

    enabled: bool = Field(
        default=False,
        description=(
            "Have libhailort in containers write what it does into a directory of its device, and"
            " read it; needs delivery by CDI."
        ),
    )
    dir: Directory = Field(
        default=Path("/run/hailo-agent/monitor"),
        description="The directory of these directories, as this process sees it.",
    )
    host_dir: Directory = Field(
        default=Path("/run/hailo-agent/monitor"),
        description="monitor.dir as the container runtime sees it; it goes into the spec.",
    )


class Web(Section):
    """Whoever speaks HTTP: Prometheus, probes, people. Nothing can be changed through it."""

    listen: Annotated[str, Field(max_length=_TEXT_LENGTH), AfterValidator(_listen_address)] = Field(
        default=":9808",
        description="host:port, :port for all addresses, or unix:/path; empty means off.",
    )
    page: bool = Field(
        default=False, description="Show devices, health and holders on a page for people at /."
    )


class Node(Section):
    """The Kubernetes node."""

    name: Annotated[str, Field(max_length=_TEXT_LENGTH), AfterValidator(_printable)] = Field(
        default="",
        description="k8s.node.name in every log line; NODE_NAME is used where this is not set.",
    )


class Log(Section):
    """What is logged, and how."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="The least severe event that is logged."
    )
    format: Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)] = Field(
        default="auto", description="json, console, or auto: console on a terminal."
    )


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="HAILO_AGENT_", env_nested_delimiter="__"
    )

    host: Host = Host()
    devices: Devices = Devices()
    health: Health = Health()
    runtime: Runtime = Runtime()
    kubelet: Kubelet = Kubelet()
    resource: Resource = Resource()
    subscribers: Subscribers = Subscribers()
    monitor: Monitor = Monitor()
    web: Web = Web()
    node: Node = Node()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from `load` alone.

        The library's own sources know neither file nor line of a value, pass over unknown
        variables and duplicate keys, and would let the ambient environment into every tree.
        """
        return (init_settings,)

    @model_validator(mode="after")
    def _endpoints_fit_a_socket_address(self) -> Self:
        longest = max([self.resource.name, *self.resource.names.values()], key=len)
        _fits_sun_path(
            temporary(self.kubelet.plugin_dir / endpoint_name(longest)),
            remedy=f"mount the directory at a shorter path, or shorten the resource {longest}",
            key="kubelet.plugin_dir",
        )
        _fits_sun_path(
            KUBELET_PLUGIN_DIR / endpoint_name(longest),  # the kubelet dials it under its own path
            remedy=f"shorten the resource {longest}",
            key="resource.name" if longest == self.resource.name else "resource.names",
        )
        return self
