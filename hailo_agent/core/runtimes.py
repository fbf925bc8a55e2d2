"""What is known of container runtimes: which of them make something of a CDI name.

The kubelet does not tell its runtime's settings; `node.status.nodeInfo.containerRuntimeVersion` is
all there is, and only if the deployer hands it over.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from hailo_agent.core.grant import Delivery

_VERSION = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.-]*)://v?(?P<major>[0-9]{1,4})\.(?P<minor>[0-9]{1,4})"
)

_CONTAINERD_KNOWS_CDI = (1, 7)
_CONTAINERD_SWITCHES_CDI_ON = (2, 0)
_CRIO_KNOWS_ANNOTATIONS = (1, 24)
_CRIO_READS_MOUNT_TYPES = (1, 26)  # CDI 0.4.0; our masks need it
_CRIO_READS_CRI_FIELD = (1, 28)


def doubt(runtime_version: str, delivery: Collection[Delivery]) -> str:
    """Say why a runtime might not deliver devices the way they are handed out; empty if it should.

    `runtime_version` is spelled as the node's status has it: `containerd://1.7.13`.
    """
    match = _VERSION.match(runtime_version)
    if match is None or not any(way.needs_spec for way in delivery):
        return ""
    version = int(match["major"]), int(match["minor"])
    missing = _missing(match["name"], version, delivery)
    if not missing:
        return ""
    if Delivery.DEVICESPEC in delivery:
        return (
            f"{missing}; containers get their devnodes, but see every device of the node in sysfs"
        )
    return f"{missing}; containers would start without a device: add devicespec to runtime.delivery"


def _missing(name: str, version: tuple[int, int], delivery: Collection[Delivery]) -> str:
    if name == "containerd":
        return _missing_in_containerd(version)
    if name == "cri-o":
        return _missing_in_crio(version, delivery)
    return "the Docker shim ignores CDI" if name == "docker" else ""


def _missing_in_containerd(version: tuple[int, int]) -> str:
    if version < _CONTAINERD_KNOWS_CDI:
        return "containerd before 1.7 ignores CDI"
    if version < _CONTAINERD_SWITCHES_CDI_ON:
        return "containerd 1.7 ignores CDI unless enable_cdi is set in its configuration"
    return ""


def _missing_in_crio(version: tuple[int, int], delivery: Collection[Delivery]) -> str:
    if version < _CRIO_KNOWS_ANNOTATIONS:
        return "CRI-O before 1.24 ignores CDI"
    if version < _CRIO_READS_MOUNT_TYPES:
        return "CRI-O before 1.26 refuses specs of CDI 0.4.0"
    if version < _CRIO_READS_CRI_FIELD and Delivery.ANNOTATION not in delivery:
        return "CRI-O before 1.28 reads CDI names from annotations only"
    return ""
