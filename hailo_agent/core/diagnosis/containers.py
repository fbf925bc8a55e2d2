"""How devices reach containers: the spec, the runtime that reads it, and the nodes themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from hailo_agent.core.device import ALL
from hailo_agent.core.diagnosis.facts import Facts, RuntimeConfig, SpecFacts
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.core.grant import Delivery
from hailo_agent.core.runtimes import doubt

_EVERYBODY_MAY_OPEN: Final = 0o666
_MOST_SHOWN: Final = 3
_USUAL_DIRS: Final = ("/etc/cdi", "/var/run/cdi")
_FIX_SPEC: Final = "start the agent, which keeps it right"
_FIX_SPEC_ALONE: Final = "`hailo-agent cdi generate`; the service hailo-agent-cdi keeps it right"
_FIX_SPEC_RUNNING: Final = (
    "run the doctor again in a moment, for an agent runs and mends it; if it stays, the agent's log"
    " says why (spec.refused), or it was given another configuration than the doctor"
)


def examine(facts: Facts) -> Iterator[Finding]:
    """Look at what is on disk for the runtime, at the runtime, and at the nodes."""
    if facts.needs_spec:
        yield from _directory(facts.spec)
        yield _spec(facts)
        yield from _foreign(facts)
        yield from _runtimes(facts)
    yield from _links(facts)
    yield from _modes(facts)
    yield from _char_links(facts)


# --- the spec ------------------------------------------------------------------------------------


def _directory(spec: SpecFacts) -> Iterator[Finding]:
    directory = str(PurePosixPath(spec.path).parent)
    if spec.is_writable is False:
        yield Finding(
            check="cdi.directory",
            looked_at=directory,
            found="cannot be written",
            verdict=Verdict.BROKEN,
            why="runtimes find there what our device names mean",
            next_step="run the agent as root and mount the directory writable, or set"
            " runtime.cdi_dir to one that is, and that runtimes read",
        )
    if spec.is_symlink:
        yield Finding(
            check="cdi.directory",
            looked_at=directory,
            found="is itself a symlink",
            verdict=Verdict.BROKEN,
            why="the CDI library up to 1.1.0 does not scan such a directory",
            next_step=f"`rm {directory} && mkdir {directory}`, or set runtime.cdi_dir to where it"
            " leads, if runtimes read that",
        )


def _spec(facts: Facts) -> Finding:
    spec, expected = facts.spec, facts.expected
    fix = _how_to_fix(facts)
    if spec.unseen:
        return _about_spec(
            spec,
            f"cannot be read: {spec.unseen}",
            Verdict.UNSEEN,
            "what it says decides what containers get",
            f"run the doctor as root, or `chmod a+r {spec.path}`: there is no secret in it",
        )
    if spec.problems:
        more = len(spec.problems) - _MOST_SHOWN
        return _about_spec(
            spec,
            "; ".join(spec.problems[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else ""),
            Verdict.BROKEN,
            "a runtime refuses the whole file, so that none of its names can be resolved",
            fix,
        )
    if spec.nodes is None:
        if not expected:
            return Finding(
                check="cdi.spec", looked_at=spec.path, found="no spec, as there is no device"
            )
        return _about_spec(
            spec,
            "no spec" if spec.directory_exists is not False else "no spec, nor its directory",
            Verdict.BROKEN,
            "no container can be given a device by name",
            fix,
        )
    return _spec_against_truth(spec, spec.nodes, expected, fix)


def _how_to_fix(facts: Facts) -> str:
    if facts.agent.version:
        return _FIX_SPEC_RUNNING
    return _FIX_SPEC if facts.in_kubernetes else _FIX_SPEC_ALONE


def _spec_against_truth(
    spec: SpecFacts,
    nodes: Mapping[str, tuple[str, ...]],
    expected: Mapping[str, tuple[str, ...]],
    fix: str,
) -> Finding:
    if lacking := sorted(expected.keys() - nodes.keys()):
        return _about_spec(
            spec,
            f"lacks {_list(lacking)}",
            Verdict.BROKEN,
            "a container that is granted such a device is not created: unresolvable CDI device",
            fix,
        )
    wrong = [name for name in expected if set(nodes[name]) != set(expected[name])]
    stale = sorted(nodes.keys() - expected.keys())
    for name in sorted(wrong, key=lambda name: (name == ALL, name)):
        if name == ALL and stale:
            continue  # which is why
        return _about_spec(
            spec,
            f"says that {name} is {_list(nodes[name]) or 'no device node'}, and it is"
            f" {_list(expected[name]) or 'none'}",
            Verdict.BROKEN,
            "a container gets another device than it was granted, or is not created",
            fix,
        )
    if stale:
        return _about_spec(
            spec,
            f"still names {_list(stale)}, which the machine does not have",
            Verdict.DEGRADED,
            "a container that asks for it, or for all, is not created: its devnode is missing",
            fix,
        )
    count = len(expected.keys() - {ALL})
    return Finding(
        check="cdi.spec",
        looked_at=spec.path,
        found=f"valid, and true: {count} device{'' if count == 1 else 's'}",
    )


def _about_spec(spec: SpecFacts, found: str, verdict: Verdict, why: str, step: str) -> Finding:
    return Finding(
        check="cdi.spec",
        looked_at=spec.path,
        found=found,
        verdict=verdict,
        why=why,
        next_step=step,
    )


def _foreign(facts: Facts) -> Iterator[Finding]:
    spec = facts.spec
    ours = {*facts.expected, *(spec.nodes or ())}
    for path in dict.fromkeys(path for path, name in spec.foreign if name in ours):
        names = _list([name for where, name in spec.foreign if where == path and name in ours])
        verdict, why = _what_readers_do(path, spec)
        yield Finding(
            check="cdi.conflict",
            looked_at=path,
            found=f"defines {names}, as {spec.path} does",
            verdict=verdict,
            why=why,
            next_step=f"remove {path}, or the device from it",
        )
    for path in spec.leftovers:
        yield Finding(
            check="cdi.leftover",
            looked_at=path,
            found="left behind by an agent with another configuration, or by one that was killed",
            verdict=Verdict.DEGRADED,
            why="it may hide or contradict the true spec",
            next_step=f"restart the agent, which removes it, or `rm {path}`",
        )


def _what_readers_do(path: str, spec: SpecFacts) -> tuple[Verdict, str]:
    """Say which of two files wins: by the order of their directories, and none within one."""
    theirs, ours = _rank(path, spec), _rank(spec.path, spec)
    if theirs is None or ours is None or theirs == ours:
        return (
            Verdict.BROKEN,
            "of two files of equal rank that define one name, readers drop the name from both",
        )
    if theirs > ours:
        return Verdict.BROKEN, "its directory overrules ours, so that containers get what it says"
    return (
        Verdict.DEGRADED,
        "ours overrules it, but not for readers that look into its directory alone",
    )


def _rank(path: str, spec: SpecFacts) -> int | None:
    directory = _canonical(str(PurePosixPath(path).parent))
    ranks = [i for i, d in enumerate(spec.search) if _canonical(d) == directory]
    return ranks[-1] if ranks else None


# --- the runtime ---------------------------------------------------------------------------------


def _runtimes(facts: Facts) -> Iterator[Finding]:
    configs = [c for c in facts.spec.configs if c.for_kubelet == facts.in_kubernetes]
    if not configs and facts.in_kubernetes:
        yield Finding(
            check="runtime.cdi",
            looked_at="configurations of container runtimes",
            found="none found here",
            verdict=Verdict.UNSEEN,
            why="containerd 1.7 ignores CDI unless told otherwise",
            next_step=f"{_WHERE_IT_SEES}; `crictl info | grep -i cdi` tells as well",
        )
    elif not configs:
        yield Finding(
            check="runtime.cdi",
            looked_at="container runtimes",
            found="neither podman nor docker found here",
            verdict=Verdict.UNSEEN,
            why="somebody has to resolve CDI names: podman does since 4.1, docker since 25",
            next_step=f"install one of them; or {_WHERE_IT_SEES}",
        )
    reason = doubt(facts.runtime_version, facts.delivery) if facts.in_kubernetes else ""
    is_too_old = bool(reason) and not facts.runtime_version.startswith(_HAS_SWITCH)
    findings = [_runtime(config, facts) for config in configs]
    # What is too old has no switch that would help; where there is one, its file has the last word.
    yield from (
        f for f in findings if not (is_too_old and f.check == "runtime.cdi" and f.next_step)
    )
    if is_too_old or (reason and all(f.verdict is Verdict.UNSEEN for f in findings)):
        yield Finding(
            check="runtime.version",
            looked_at=f"runtime.version ({facts.runtime_version})",
            found=reason.partition("; ")[0],  # what follows is of use in a log
            verdict=Verdict.DEGRADED if facts.has_fallback else Verdict.BROKEN,
            why=_WITHOUT_MASK if facts.has_fallback else _DOUBTED,
            next_step=", or ".join(_ways_out(facts)),
        )
    if facts.runtime_version.startswith(_OLD_CRIO) and facts.spec.missing:
        yield Finding(
            check="runtime.cdi-dirs",
            looked_at=_list(facts.spec.missing),
            found="does not exist",
            verdict=Verdict.BROKEN,
            why="CRI-O up to 1.25 stops at the first directory that is missing"
            " (container-device-interface issue 78)",
            next_step=f"`mkdir -p {' '.join(facts.spec.missing)}`",
        )


def _ways_out(facts: Facts) -> Iterator[str]:
    """Say what there is to do about a runtime that is too old for what it is asked."""
    name = facts.runtime_version.partition("://")[0]
    yield "update the runtime"
    if facts.runtime_version.startswith(_HAS_SWITCH):
        yield "switch CDI on in its configuration"
    if name == "cri-o" and Delivery.ANNOTATION not in facts.delivery:
        yield "with CRI-O 1.26 and 1.27, add annotation to runtime.delivery"
    if not facts.has_fallback:
        yield "add devicespec to runtime.delivery"


_WHERE_IT_SEES: Final = "run the doctor on the host, or with `--root DIR` where its / is mounted"
_HAS_SWITCH: Final = "containerd://1.7."
_OLD_CRIO: Final = ("cri-o://1.24.", "cri-o://1.25.")
_WITHOUT_MASK: Final = (
    "CDI names are ignored without a word; containers get their devnodes all the same, but see"
    " every device of the node in sysfs, over which libhailort stumbles"
)
_WITHOUT_ANYTHING: Final = "CDI names are ignored without a word: containers start without a device"
_DOCKER_REFUSES: Final = (
    'without it, docker refuses our names: could not select device driver "cdi"'
)
_DOUBTED: Final = "containers start without their device, or are not created"


def _runtime(config: RuntimeConfig, facts: Facts) -> Finding:
    cdi = config.cdi
    if cdi is None and config.for_kubelet and facts.runtime_version:
        cdi = not doubt(facts.runtime_version, facts.delivery)
    ours = str(PurePosixPath(facts.spec.path).parent)
    dirs = config.spec_dirs or _USUAL_DIRS
    if config.unseen:
        return Finding(
            check="runtime.cdi",
            looked_at=config.path,
            found=f"{config.runtime}: {config.unseen}",
            verdict=Verdict.UNSEEN,
            why="whether CDI is on stands there",
            next_step="run the doctor as root; see also `crictl info | grep -i cdi`",
        )
    if cdi is None:
        return Finding(
            check="runtime.cdi",
            looked_at=config.path,
            found=f"{config.runtime}: it does not say; {config.depends}",
            verdict=Verdict.UNSEEN,
            why="without it, names are ignored without a word"
            if config.for_kubelet
            else _DOCKER_REFUSES,
            next_step=config.to_switch_on,
        )
    if not cdi:
        return Finding(
            check="runtime.cdi",
            looked_at=config.path,
            found=f"{config.runtime}: CDI is off",
            verdict=Verdict.DEGRADED if facts.has_fallback else Verdict.BROKEN,
            why=_without(config, facts),
            next_step=config.to_switch_on,
        )
    if _canonical(ours) not in map(_canonical, dirs):
        return Finding(
            check="runtime.cdi-dirs",
            looked_at=config.path,
            found=f"{config.runtime}: CDI is on, but specs are looked for in {_list(dirs)} only",
            verdict=Verdict.BROKEN,
            why=f"our spec is in {ours}, where it is not found: unresolvable CDI device",
            next_step=f"set runtime.cdi_dir to {dirs[-1]}, or add {ours} to cdi_spec_dirs",
        )
    return Finding(check="runtime.cdi", looked_at=config.path, found=f"{config.runtime}: CDI is on")


def _without(config: RuntimeConfig, facts: Facts) -> str:
    if not config.for_kubelet:
        return _DOCKER_REFUSES
    return _WITHOUT_MASK if facts.has_fallback else _WITHOUT_ANYTHING


# --- nodes and links -----------------------------------------------------------------------------


def _links(facts: Facts) -> Iterator[Finding]:
    """Look for the lasting links that device specs name; a missing one fails the container."""
    if Delivery.DEVICESPEC not in facts.delivery or not facts.in_kubernetes:
        return
    lacking = sorted(facts.expected.keys() - facts.spec.links - {ALL})
    if lacking:
        yield Finding(
            check="runtime.links",
            looked_at=facts.spec.links_dir,
            found=f"no link, or a wrong one, for {_list(lacking)}",
            verdict=Verdict.DEGRADED,
            why="containers of the delivery devicespec name their device by this link; without it"
            " they are not created",
            next_step="start the agent, which makes it; see runtime.links_dir"
            if not facts.agent.version
            else "see in the agent's log why it could not make it (spec.refused)",
        )


def _modes(facts: Facts) -> Iterator[Finding]:
    """Look at who may open the nodes; those of one class and mode are spoken of together."""
    alike: dict[tuple[str, int], list[str]] = {}
    for device in facts.inventory.devices:
        if device.devnode is None:
            continue
        mode = facts.host.modes.get(device.devnode.name)
        if mode is not None and mode & _EVERYBODY_MAY_OPEN != _EVERYBODY_MAY_OPEN:
            key = device.devnode.class_name, mode
            alike.setdefault(key, []).append(f"/dev/{device.devnode.name}")
    for (class_name, mode), nodes in alike.items():
        yield _mode(nodes, class_name, mode, facts)


def _mode(nodes: list[str], class_name: str, mode: int, facts: Facts) -> Finding:
    rule = (
        f'\necho \'SUBSYSTEM=="{class_name}", MODE="0666"\' >> /etc/udev/rules.d/51-hailo.rules\n'
        f"udevadm control --reload && udevadm trigger --subsystem-match={class_name}"
    )
    if facts.needs_spec:
        # A runtime that runs as root makes a node of its own; another one can only lend the host's.
        alone = "; without root, podman can only lend this one" if not facts.in_kubernetes else ""
        return Finding(
            check="devnode.mode",
            looked_at=_list(nodes),
            found=f"mode {mode:04o}; with CDI, a container's own node belongs to its user{alone}",
            next_step=f"if containers are run without root:{rule}" if alone else "",
        )
    return Finding(
        check="devnode.mode",
        looked_at=_list(nodes),
        found=f"mode {mode:04o}",
        verdict=Verdict.DEGRADED,
        why="without CDI the container's node has this mode, too: only root can open it",
        next_step=f"let everybody open it:{rule}",
    )


def _char_links(facts: Facts) -> Iterator[Finding]:
    links = facts.host.char_links or {}
    for device in facts.inventory.devices:
        node = device.devnode
        if node is None or links.get(str(node.number), True):
            continue
        yield Finding(
            check="devnode.char-link",
            looked_at=f"/dev/char/{node.number}",
            found=f"does not lead to /dev/{node.name}",
            verdict=Verdict.DEGRADED,
            why="where systemd manages the cgroups, `systemctl daemon-reload` takes the device"
            " away from running containers (nvidia-container-toolkit issue 48; runc before"
            " 1.1.7)",
            next_step=f"`ln -sf ../{node.name} /dev/char/{node.number}`, until the next boot; with"
            f" udev, `udevadm trigger --action=add --subsystem-match={node.class_name}` does it",
        )


def _canonical(directory: str) -> str:
    """Take /var/run for /run, which it leads to on every distribution with systemd."""
    path = str(PurePosixPath(directory))
    return path.removeprefix("/var") if path.startswith("/var/run/") else path


def _list(names: object) -> str:
    return ", ".join(map(str, names)) if isinstance(names, list | tuple) else str(names)
