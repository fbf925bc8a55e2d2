"""The kubelet's checkpoint: `kubelet_internal_checkpoint` in the plugin directory.

`sim.devicemanager` writes it after every list and every allocation, and reads it when it starts.
It is what makes an answer to Allocate outlive the kubelet that got it.
"""

import base64
import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hailo_agent.wire import deviceplugin

CHECKPOINT: Final = "kubelet_internal_checkpoint"

GrantKey = tuple[str, str, str]
"""Pod uid, container name, resource name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one container holds of one resource: ids by NUMA node (-1: none), and the answer."""

    by_node: Mapping[int, tuple[str, ...]]
    response: deviceplugin.ContainerAllocateResponse

    @property
    def ids(self) -> set[str]:
        """The ids alone."""
        return {device_id for ids in self.by_node.values() for device_id in ids}


def write(
    directory: Path,
    grants: Mapping[GrantKey, Grant],
    registered: Mapping[str, set[str]],
    *,
    fsync: bool,
) -> None:
    """Write a temporary file beside the checkpoint, fsync, rename (`filestore.go`).

    Whoever watches the directory sees the temporary file come and go.
    """
    data = {
        "PodDeviceEntries": [
            {
                "PodUID": uid,
                "ContainerName": container,
                "ResourceName": resource,
                "DeviceIDs": {str(node): list(ids) for node, ids in grant.by_node.items()},
                "AllocResp": base64.b64encode(bytes(grant.response)).decode(),
            }
            for (uid, container, resource), grant in grants.items()
        ],
        "RegisteredDevices": {resource: sorted(ids) for resource, ids in registered.items()},
    }
    handle, name = tempfile.mkstemp(prefix=".", dir=directory)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"Data": data, "Checksum": _checksum(data)}, file)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        Path(name).replace(directory / CHECKPOINT)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def read(directory: Path) -> tuple[dict[GrantKey, Grant], list[str]]:
    """Read who holds what, and which resources were registered.

    A checkpoint that is absent, or does not add up, is an empty one: the kubelet logs "Continue
    after failing to read checkpoint file" and goes on without.
    """
    try:
        document = json.loads((directory / CHECKPOINT).read_text(encoding="utf-8"))
        data = document["Data"]
        if document["Checksum"] != _checksum(data):
            return {}, []
        grants = {
            (entry["PodUID"], entry["ContainerName"], entry["ResourceName"]): Grant(
                by_node={int(node): tuple(ids) for node, ids in entry["DeviceIDs"].items()},
                response=deviceplugin.ContainerAllocateResponse.parse(
                    base64.b64decode(entry["AllocResp"])
                ),
            )
            for entry in data["PodDeviceEntries"]
        }
        return grants, list(data["RegisteredDevices"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, []


def _checksum(data: object) -> int:
    """Sum the data up; the kubelet hashes a print of its Go structs, which only it could check."""
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())
