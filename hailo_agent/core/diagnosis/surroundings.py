"""What surrounds the agent, and can get in its way: limits, namespaces, security modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hailo_agent.core.diagnosis.facts import HostFacts
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.core.diagnosis.kernellog import lines_about

_USUAL_INSTANCES: Final = 128
"""The kernel's default. The kubelet and each containerd-shim of the same user share it."""
_MANY_INSTANCES: Final = 8192

_DENIALS: Final = {
    r"avc: +denied": (
        "system.selinux",
        (
            "let the agent's pod run with seLinuxOptions.type container_device_plugin_t, or give"
            " the container that wants the device a label that may open it; `ausearch -m avc -ts"
            " recent` has it all"
        ),
    ),
    r'apparmor="DENIED"': (
        "system.apparmor",
        "give the container a profile that allows it, or set its appArmorProfile to Unconfined",
    ),
}


def examine(host: HostFacts) -> Iterator[Finding]:
    """Look around."""
    yield from _inotify(host)
    if host.in_user_namespace:
        yield Finding(
            check="system.user-namespace",
            looked_at="/proc/self/uid_map",
            found="a user namespace of its own",
            verdict=Verdict.DEGRADED,
            why="the kernel's device events do not arrive in one, so an agent that runs like this"
            " hears of changes by inotify and by the resync only",
            next_step="set hostUsers: true for the agent's pod, or live with it",
        )
    denied = False
    for pattern, (check, step) in _DENIALS.items():
        for line in lines_about(host.kernel_log or (), pattern)[-1:]:
            denied = True
            yield Finding(
                check=check,
                looked_at=host.kernel_log_path,
                found=line,
                verdict=Verdict.DEGRADED,
                why="somebody was kept from what is ours",
                next_step=step,
            )
    if host.selinux and not denied:
        yield Finding(
            check="system.selinux",
            looked_at="/sys/fs/selinux/enforce",
            found="enforcing" + _no_denial(host),
        )
    if host.apparmor and not denied:
        yield Finding(
            check="system.apparmor",
            looked_at="/sys/module/apparmor/parameters/enabled",
            found="enabled" + _no_denial(host),
        )


def _inotify(host: HostFacts) -> Iterator[Finding]:
    limit, is_exhausted = host.inotify.max_instances, host.inotify.is_exhausted
    if limit is None and is_exhausted is None:
        return
    where = "fs.inotify.max_user_instances"
    if is_exhausted or (limit is not None and limit < _USUAL_INSTANCES):
        shown = "limit unknown" if limit is None else str(limit)
        yield Finding(
            check="system.inotify",
            looked_at=where,
            found=f"{shown}, and all are in use" if is_exhausted else f"{shown}, which is little",
            verdict=Verdict.DEGRADED,
            why='once all are in use, programs fail with "too many open files": the agent goes on'
            " without, and hears of changes later; the kubelet and containerd may not start at all",
            next_step=f"`sysctl -w {where}={_MANY_INSTANCES}`, and the same in a file in"
            " /etc/sysctl.d",
        )
        return
    found = "limit unknown" if limit is None else f"{limit} for each user"
    free = "" if is_exhausted is None else ", and not all in use"
    yield Finding(check="system.inotify", looked_at=where, found=found + free)


def _no_denial(host: HostFacts) -> str:
    return "" if host.kernel_log is None else "; no denial of ours in the kernel log"
