"""The errors this agent raises on purpose; anything else that rises is a bug.

Every room raises from here and nothing here knows a room: an edge translates its library's
exceptions at its own door, `reconcile` and `agent` decide by these classes alone, and `cli` turns
them into exit codes.

    HailoAgentError
    ├── ConfigError               the operator can fix it         one clear line each, exit 78
    ├── Refusal                   the caller asked for too much   an answer, not a failure
    │   ├── UnknownOffer
    │   └── DeviceUnavailable
    ├── EdgeError                 the other side misbehaved       retried with backoff
    │   ├── HostError
    │   ├── SpecStoreError
    │   ├── KubeletUnavailable
    │   ├── RegistrationRejected
    │   └── SubscriberError
    └── PluginDirectoryReplaced   our mount of it is stale        exit 75, be recreated
"""

from typing import Final

EX_SOFTWARE: Final = 70
"""Exit code for a bug (the name is that of sysexits.h)."""

EX_TEMPFAIL: Final = 75
"""Exit code when a new process would succeed where this one cannot."""

EX_CONFIG: Final = 78
"""Exit code when the configuration cannot be used."""


class HailoAgentError(Exception):
    """Raised only as one of its subclasses: everything that goes wrong on purpose."""


class ConfigError(HailoAgentError):
    """Raised when the configuration cannot be used and trying again would change nothing."""

    def __init__(self, message: str, *, key: str = "", value: str = "", remedy: str = "") -> None:
        """Take the whole message, one line for each thing that is wrong, and its parts."""
        super().__init__(message)
        self.key = key
        self.value = value
        self.remedy = remedy


class Refusal(HailoAgentError):
    """Raised when a request is understood and the answer is no."""

    def __init__(self, status: str, message: str) -> None:
        """Refuse with the gRPC status of that name (`NOT_FOUND`), and a reason for a person."""
        super().__init__(message)
        self.status = status


class UnknownOffer(Refusal):
    """Raised when somebody asks for an offer that the inventory does not have."""

    def __init__(self, message: str) -> None:
        """Refuse as `NOT_FOUND`."""
        super().__init__("NOT_FOUND", message)


class DeviceUnavailable(Refusal):
    """Raised when somebody asks for a device that is known but must not be handed out now."""

    def __init__(self, message: str) -> None:
        """Refuse as `FAILED_PRECONDITION`."""
        super().__init__("FAILED_PRECONDITION", message)


class EdgeError(HailoAgentError):
    """Raised when the other side of an edge misbehaves, so that trying later may succeed."""

    def __init__(self, message: str, *, edge: str, retry_after: float | None = None) -> None:
        """Name the edge (`host`, `kubelet` …) and, where known, after how many seconds to retry."""
        super().__init__(message)
        self.edge = edge
        self.retry_after = retry_after


class HostError(EdgeError):
    """Raised when the machine as a whole cannot be looked at: no sysfs, or no time left."""


class SpecStoreError(EdgeError):
    """Raised when the CDI directory cannot be read or written."""


class KubeletUnavailable(EdgeError):
    """Raised when the kubelet's socket is absent, refuses the connection or stays silent."""


class RegistrationRejected(EdgeError):
    """Raised when the kubelet answers a registration with an error."""


class SubscriberError(EdgeError):
    """Raised when our own socket for subscribers cannot be served, or not be reached."""


class PluginDirectoryReplaced(HailoAgentError):
    """Raised when the device-plugin directory was removed or replaced under us.

    A container's mount goes on showing the old directory, so only a recreated process can meet
    the kubelet again.
    """
