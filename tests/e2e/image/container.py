"""Containers of the image, and a pod's container translated for podman.

The kubelet hands a pod to a runtime by the CRI; podman's command line says the same in other words.
Every field is translated or refused: one that nobody here knows must not be lost on the way.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from hailo_agent.sim.node import AgentProcess
from tests.e2e.runtime.engine import Engine, Finished

STRICT: Final = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OF_PODS: Final = {
    *("automountServiceAccountToken", "containers", "enableServiceLinks", "nodeSelector"),
    *("priorityClassName", "serviceAccountName", "terminationGracePeriodSeconds", "tolerations"),
    "volumes",
}
"""What the tests know of a pod's spec. hostNetwork and its kind are not in it."""
_OF_CONTAINERS: Final = {
    *("args", "env", "image", "imagePullPolicy", "livenessProbe", "name", "ports"),
    *("readinessProbe", "resources", "securityContext", "startupProbe", "volumeMounts"),
}
_UNITS: Final = {"Mi": 1 << 20, "Gi": 1 << 30}


class Untranslated(Exception):
    """Raised for what podman cannot be told, or nobody here has thought about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Podman:
    """Podman, and the image in its store."""

    engine: Engine
    image: str

    def command(self, *flags: str, words: Sequence[str] = ()) -> tuple[str, ...]:
        """Spell `podman run` of the image with these flags, and what follows the image."""
        return (
            *("run", "--rm", "--network=none", "--log-driver=none"),
            # As in Engine.container: podman would raise them.
            *("--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"),
            f"--cgroup-parent=/{self.engine.cgroup}",
            *flags,
            self.image,
            *words,
        )

    async def run(self, *words: str, flags: Sequence[str] = STRICT) -> Finished:
        """Run the image to its end."""
        return await self.engine.run(*self.command(*flags, words=words))

    @asynccontextmanager
    async def running(self, *flags: str, words: Sequence[str] = ()) -> AsyncIterator["Running"]:
        """Run the image in the background; it is stopped at the end if it still runs."""
        name = f"agent-{secrets.token_hex(4)}"  # podman forgets one a moment after it has ended
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *self.engine.command(*self.command(f"--name={name}", *flags, words=words)),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        agent = AgentProcess(process=process, started_at=began)
        agent._reader = asyncio.create_task(agent._read())
        running = Running(podman=self, name=name, agent=agent)
        try:
            yield running
        finally:
            if process.returncode is None:
                await self.engine.run("rm", "--force", "--time=0", name)
            await agent.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A container that runs, and its log as it comes."""

    podman: Podman
    name: str
    agent: AgentProcess

    async def exec(self, *words: str) -> Finished:
        """Run a command in it, as `kubectl exec` would."""
        return await self.podman.engine.run("exec", self.name, *words)

    async def get(self, path: str, *, port: int = 9808) -> tuple[int, str]:
        """Ask the agent in there by HTTP, from in there: it has no network but its own."""
        got = await self.exec(
            "python3",
            "-c",
            "import http.client\n"
            f"c = http.client.HTTPConnection('127.0.0.1', {port}, timeout=5)\n"
            f"c.request('GET', {path!r})\n"
            "r = c.getresponse()\n"
            "print(r.status, r.read().decode())\n",
        )
        assert got.code == 0, got
        status, _, text = got.out.partition(" ")
        return int(status), text

    async def stop(self, seconds: int = 10) -> tuple[int, float]:
        """Stop it as the kubelet does; tells its exit code and how long it took."""
        began = time.monotonic()
        stopped, code = await asyncio.gather(
            self.podman.engine.run("stop", f"--time={seconds}", self.name),
            self.agent.wait(within=3 * seconds),
        )
        assert stopped.code == 0, stopped
        return code, time.monotonic() - began

    def peak_bytes(self) -> int | None:
        """Tell the most memory that its cgroup ever used, page cache included; None if unknown."""
        for parent in (_CGROUPS / "memory", _CGROUPS):
            for name in ("memory.max_usage_in_bytes", "memory.peak"):
                for file in (parent / self.podman.engine.cgroup).glob(f"libpod-*/{name}"):
                    if "conmon" not in file.parent.name:
                        return int(file.read_text())
        return None


# --- a pod's container, in podman's words ---------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpec:
    """The agent's pod of a manifest, and the ConfigMaps beside it."""

    spec: Mapping[str, Any]
    config_maps: Mapping[str, Mapping[str, str]]

    @property
    def container(self) -> Mapping[str, Any]:
        """The agent's container."""
        [container] = self.spec["containers"]
        return container  # type: ignore[no-any-return] # YAML is anything


def read(text: str) -> PodSpec:
    """Read a manifest with one DaemonSet."""
    documents = [document for document in yaml.safe_load_all(text) if document]
    [daemon_set] = [d for d in documents if d["kind"] == "DaemonSet"]
    spec = daemon_set["spec"]["template"]["spec"]
    _known(spec, _OF_PODS, "pod")
    for container in spec["containers"]:
        _known(container, _OF_CONTAINERS, "container")
    maps = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    return PodSpec(spec=spec, config_maps=maps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The node's side: where its root is, and what the API server knows of the pod."""

    root: Path
    scratch: Path
    """Where the kubelet lays out what it mounts for ConfigMaps."""
    fields: Mapping[str, str] = field(
        default_factory=lambda: {"spec.nodeName": "node-1", "metadata.uid": "0e55-uid"}
    )


def flags(pod: PodSpec, host: Host) -> list[str]:
    """Translate the agent's container, all but its image and its arguments.

    Directories that the kubelet would make are made.

    Raises:
        Untranslated: something is in there that this does not know.
    """
    container = pod.container
    return [
        *_security(container.get("securityContext", {})),
        *_limits(container.get("resources", {})),
        *(f"--env={name}={value}" for name, value in _environment(container, host).items()),
        *_mounts(pod, host),
    ]


def _security(context: Mapping[str, Any]) -> list[str]:
    told = []
    for name, value in context.items():
        match name, value:
            case "runAsUser", int():
                told.append(f"--user={value}:{context.get('runAsGroup', 0)}")
            case "runAsGroup", int():
                pass
            case "privileged", bool():
                told += ["--privileged"] * value
            case "allowPrivilegeEscalation", bool():
                told += ["--security-opt=no-new-privileges"] * (not value)
            case "readOnlyRootFilesystem", bool():
                # Podman adds writable directories to a root that is read-only; Kubernetes does not.
                told += ["--read-only", "--read-only-tmpfs=false"] * value
            case "capabilities", dict(capabilities):
                _known(capabilities, {"add", "drop"}, "capabilities")
                told += [f"--cap-drop={name}" for name in capabilities.get("drop", ())]
                told += [f"--cap-add={name}" for name in capabilities.get("add", ())]
            case "seccompProfile", {"type": "RuntimeDefault"}:
                pass  # so does podman
            case "seccompProfile", {"type": "Unconfined"}:
                told.append("--security-opt=seccomp=unconfined")
            case _:
                raise Untranslated(f"securityContext.{name}: {value}")
    return told


def _limits(resources: Mapping[str, Any]) -> list[str]:
    limits = resources.get("limits", {})
    _known(limits, {"cpu", "memory"}, "limits")
    told = []
    if cpu := limits.get("cpu"):
        share = float(cpu.removesuffix("m")) / (1000 if str(cpu).endswith("m") else 1)
        told.append(f"--cpus={share}")
    if memory := limits.get("memory"):
        size = int(memory[:-2]) * _UNITS[memory[-2:]]
        # A node of Kubernetes has no swap by default.
        told += [f"--memory={size}", f"--memory-swap={size}"]
    return told


def _environment(container: Mapping[str, Any], host: Host) -> dict[str, str]:
    told = {}
    for variable in container.get("env", ()):
        match variable:
            case {"name": name, "value": str(value)}:
                told[name] = value
            case {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}:
                told[name] = host.fields[path]
            case _:
                raise Untranslated(f"env {variable}")
    return told


def _mounts(pod: PodSpec, host: Host) -> list[str]:
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", ())}
    told = []
    for mount in pod.container.get("volumeMounts", ()):
        _known(mount, {"name", "mountPath", "readOnly", "mountPropagation"}, "volumeMounts")
        match volumes[mount["name"]]:
            case {"hostPath": {"path": str(path), "type": "Directory"}}:
                source = host.root / path.lstrip("/")
                if not source.is_dir():
                    raise Untranslated(f"{source} is not there: the pod would wait for ever")
            case {"hostPath": {"path": str(path), "type": "DirectoryOrCreate"}}:
                source = host.root / path.lstrip("/")
                source.mkdir(mode=0o755, parents=True, exist_ok=True)
            case {"configMap": {"name": name}}:
                source = host.scratch / mount["name"]
                source.mkdir(exist_ok=True)
                for key, text in pod.config_maps[name].items():
                    (source / key).write_text(text)
            case other:
                raise Untranslated(f"volume {other}")
        options = ["ro"] * mount.get("readOnly", False)
        match mount.get("mountPropagation"):
            case None | "None":
                options.append("rprivate")
            case "HostToContainer":
                options.append("rslave")
            case other:
                raise Untranslated(f"mountPropagation {other}")
        told.append(f"--volume={source}:{mount['mountPath']}:{','.join(options)}")
    return told


def _known(found: Mapping[str, Any], known: set[str], what: str) -> None:
    if strange := found.keys() - known:
        raise Untranslated(f"{what}: {', '.join(sorted(strange))}")
