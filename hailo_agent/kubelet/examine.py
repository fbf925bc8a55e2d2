"""What the doctor wants to know of the kubelet: whether it is there, and counts our devices."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import anyio.to_thread

from hailo_agent.core.diagnosis.facts import KubeletFacts
from hailo_agent.errors import EdgeError
from hailo_agent.kubelet.session import KUBELET_SOCKET
from hailo_agent.rpc.dial import dialing, translating
from hailo_agent.wire import podresources

_SECONDS: Final = 3.0
_POD_RESOURCES: Final = f"pod-resources/{KUBELET_SOCKET}"

# The plugin directory is the same for all (kubernetes issue 68567); the root directory is not.
_OTHER_ROOTS: Final = (
    "var/lib/kubelet",
    "var/lib/k0s/kubelet",
    "var/snap/microk8s/common/var/lib/kubelet",
)


async def examine(
    plugin_dir: Path, kubelet_root: Path, resources: Iterable[str], *, root: Path
) -> KubeletFacts:
    """Gather everything that can be asked without registering anything.

    `root` is where the host's root directory is mounted.
    """
    path = plugin_dir / KUBELET_SOCKET
    exists = _exists(path)
    error, unseen = await anyio.to_thread.run_sync(_knock, path) if exists else ("", "")
    pod_resources = kubelet_root / _POD_RESOURCES
    registered, unasked = await _registered(pod_resources, tuple(resources))
    return KubeletFacts(
        plugin_dir=str(plugin_dir),
        plugin_dir_exists=_exists(plugin_dir),
        socket_exists=exists,
        socket_error=error,
        socket_unseen=os.strerror(errno.EACCES) if exists is None else unseen,
        registered=registered,
        unasked=unasked,
        root=str(kubelet_root),
        root_elsewhere=_elsewhere(root) if _exists(pod_resources) is False else "",
    )


def is_expected(plugin_dir: Path, kubelet_root: Path) -> bool:
    """Tell whether there has ever been a kubelet here."""
    return _exists(plugin_dir) is not False or _exists(kubelet_root) is not False


def _knock(path: Path) -> tuple[str, str]:
    """Connect and hang up: whoever refuses that cannot be registered with.

    Returns what is wrong, and why it cannot be told.
    """
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as client:
        client.settimeout(_SECONDS)
        try:
            client.connect(str(path))
        except TimeoutError:
            return f"does not answer within {_SECONDS:g} s", ""
        except PermissionError as error:
            return "", os.strerror(error.errno or 0)
        except ConnectionRefusedError:
            return "nobody listens there: the kubelet does not run", ""
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error), ""
    return "", ""


async def _registered(
    pod_resources: Path, resources: tuple[str, ...]
) -> tuple[Mapping[str, bool | None], str]:
    """Ask which of our resources the kubelet could allocate from, or say why it cannot be asked."""
    try:
        with translating("kubelet", str(pod_resources)):
            async with dialing(pod_resources) as channel:
                answer = await podresources.PodResourcesListerStub(
                    channel
                ).get_allocatable_resources(
                    podresources.AllocatableResourcesRequest(), timeout=_SECONDS
                )
    except EdgeError as error:
        closed = isinstance(error.__cause__, PermissionError)
        return dict.fromkeys(resources), os.strerror(errno.EACCES) if closed else str(error)
    counted = {devices.resource_name for devices in answer.devices if devices.device_ids}
    return {name: name in counted for name in resources}, ""


def _elsewhere(root: Path) -> str:
    """Find the root directory of a kubelet that keeps it in another place, as the host knows it."""
    for name in _OTHER_ROOTS:
        path = root / name / _POD_RESOURCES
        try:
            if stat.S_ISSOCK(path.stat().st_mode):
                return f"/{name}"
        except OSError:
            continue
    return ""


def _exists(path: Path) -> bool | None:
    """Tell whether something is there; None if we may not know."""
    try:
        path.stat()
    except PermissionError:
        return None
    except OSError:
        return False
    return True
