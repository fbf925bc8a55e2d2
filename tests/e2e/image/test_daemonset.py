"""The pod of manifests/hailo-agent.yaml, on a simulated node: its own rights, mounts and limits.

The node's root is a directory: what the manifest mounts from the host is mounted from below it. The
kubelet and the machine are simulated; the kernel's side of the container is real.
"""

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from hailo_agent.sim.generations import HAILO_8
from hailo_agent.sim.kubelet import Kubelet
from hailo_agent.sim.machine import Machine, slot_address
from hailo_agent.sim.node import RESOURCE
from tests.e2e.figures import Figures
from tests.e2e.image.container import Host, Podman, PodSpec, Running, Untranslated, flags, read
from tests.e2e.site import short_root

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

MANIFEST: Final = Path(__file__).parents[3] / "manifests/hailo-agent.yaml"
SPEC: Final = "var/run/cdi/hailo.ai-npu.json"
FIRST, SECOND, THIRD = (slot_address(n) for n in range(3))
EPERM: Final = "Operation not permitted"
NO_DRIVER: Final = "No such device or address"


def device_id(address: str) -> str:
    return f"pci-{address.replace(':', '-').replace('.', '-')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node below a directory, its kubelet up, two Hailo-8 in it."""

    root: Path
    host: Host
    machine: Machine
    kubelet: Kubelet
    podman: Podman

    def healthy(self) -> set[str]:
        resource = self.kubelet.resource(RESOURCE)
        if not resource.connected:  # what it has is from an agent that is no more
            return set()
        return {device for device, verdict in resource.health.items() if verdict == "Healthy"}

    async def lists(self, *addresses: str, within: float = 15.0) -> None:
        wanted = {device_id(address) for address in addresses}
        await self.kubelet.wait_for(lambda: self.healthy() == wanted, within=within)

    def sockets(self) -> set[str]:
        """Name every socket below the root but the kubelet's."""
        return {
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if not path.is_symlink() and path.is_socket() and path.name != "kubelet.sock"
        }

    @asynccontextmanager
    async def agent(self, pod: PodSpec) -> AsyncIterator[Running]:
        words = pod.container["args"]
        async with self.podman.running(*flags(pod, self.host), words=words) as running:
            yield running


@pytest.fixture(scope="module")
def pod() -> PodSpec:
    return read(MANIFEST.read_text())


@asynccontextmanager
async def standing(podman: Podman) -> AsyncIterator[Node]:
    with short_root() as directory:
        root, scratch = directory / "n", directory / "s"
        root.mkdir()
        scratch.mkdir()
        machine = Machine(root)
        try:
            machine.load("4.23")
            for address in (FIRST, SECOND):
                machine.plug(address, pci_id=HAILO_8)
            kubelet_root = root / "var/lib/kubelet"
            async with Kubelet(
                kubelet_root / "device-plugins",
                pod_resources_dir=kubelet_root / "pod-resources",
                fsync=False,
            ) as kubelet:
                yield Node(
                    root=root,
                    host=Host(root=root, scratch=scratch),
                    machine=machine,
                    kubelet=kubelet,
                    podman=podman,
                )
        finally:
            machine.close()


@asynccontextmanager
async def serving(podman: Podman, pod: PodSpec) -> AsyncIterator[tuple[Node, Running]]:
    async with standing(podman) as node, node.agent(pod) as running:
        await node.lists(FIRST, SECOND, within=30)
        yield node, running
        assert not running.agent.garbage


async def test_it_serves_a_kubelet_from_its_start_to_its_end(
    podman: Podman, pod: PodSpec, figures: Figures
) -> None:
    async with standing(podman) as node:
        began = asyncio.get_running_loop().time()
        async with node.agent(pod) as running:
            await node.lists(FIRST, SECOND, within=30)
            [registration] = node.kubelet.registrations
            assert registration.accepted
            figures.note(f"image: podman run to Register {registration.at - began:.2f} s")

            # A device comes, and goes.
            node.machine.plug(THIRD, pci_id=HAILO_8)
            await node.lists(FIRST, SECOND, THIRD)
            node.machine.pull(THIRD)
            await node.lists(FIRST, SECOND)

            # A pod gets one, by a name that the spec on the host defines, with the host's paths.
            container = await node.kubelet.admit("ns/pod", {RESOURCE: 1})
            [name] = container.cdi_devices
            written = orjson.loads((node.root / SPEC).read_bytes())
            [device] = [d for d in written["devices"] if name == f"hailo.ai/npu={d['name']}"]
            [devnode] = device["containerEdits"]["deviceNodes"]
            assert devnode.get("hostPath", devnode["path"]) in {"/dev/hailo0", "/dev/hailo1"}
            assert b"/host/" not in (node.root / SPEC).read_bytes()

            # Probes and Prometheus get their answers.
            assert (await running.get("/readyz"))[0] == 200
            assert (await running.get("/livez"))[0] == 200
            status, metrics = await running.get("/metrics")
            assert status == 200
            assert "hailo_" in metrics
            assert (await running.exec("hailo-agent-healthcheck")).code == 0

            peak = running.peak_bytes()
            figures.note(
                f"image: peak memory of the container's cgroup {peak / 2**20:.0f} MiB,"
                " the health check and page cache included"
                if peak
                else "image: no peak of the container's memory is told here"
            )
            code, seconds = await running.stop()
            assert code == 0
            assert seconds < 5
            assert not node.sockets()
            # What outlives it is meant to: the spec serves containers of pods that run.
            assert (node.root / SPEC).exists()
            assert not running.agent.garbage


async def test_its_limits_are_the_kernels(podman: Podman, pod: PodSpec) -> None:
    async with serving(podman, pod) as (_, running):
        told = await running.exec(
            "python3",
            "-c",
            "import json\n"
            "s = dict(l.split(':\\t', 1) for l in open('/proc/1/status').read().splitlines())\n"
            "print(json.dumps({k: s[k].split()[0] for k in"
            " ('Uid', 'CapEff', 'CapBnd', 'CapPrm', 'NoNewPrivs', 'Seccomp')}))\n",
        )
        assert told.code == 0, told
        none = "0" * 16
        assert orjson.loads(told.out) == {
            "Uid": "0",
            "CapEff": none,
            "CapBnd": none,
            "CapPrm": none,
            "NoNewPrivs": "1",
            "Seccomp": "2",  # a filter
        }
        inspected = await podman.engine.run("inspect", running.name)
        [seen] = orjson.loads(inspected.out)
        assert seen["HostConfig"]["Memory"] == 160 * 2**20
        assert seen["HostConfig"]["ReadonlyRootfs"] is True


async def test_it_writes_where_the_manifest_lets_it_and_nowhere_else(
    podman: Podman, pod: PodSpec
) -> None:
    async with serving(podman, pod) as (_, running):
        told = await running.exec(
            "python3",
            "-c",
            "import os, json\n"
            "def writable(path):\n"
            "    try:\n"
            "        os.mkdir(path + '/.tried'); os.rmdir(path + '/.tried'); return True\n"
            "    except OSError: return False\n"
            "mounts = [l.split()[4] for l in open('/proc/self/mountinfo')]\n"
            "skip = ('/proc', '/dev', '/sys')\n"
            "print(json.dumps(sorted({m for m in [*mounts, '/tmp', '/opt', '/etc', '/var/lib']"
            " if not m.startswith(skip) and os.path.isdir(m) and writable(m)})))\n",
        )
        assert told.code == 0, told
        assert orjson.loads(told.out) == [
            "/run/cdi",
            "/run/hailo-agent",
            "/var/lib/hailo-agent",
            "/var/lib/kubelet/device-plugins",
        ]


OPEN: Final = (
    "import os, sys\n"
    "try: os.open(sys.argv[1], os.O_RDWR)\n"
    "except OSError as error: print(error.strerror)\n"
    "else: print('opened')\n"
)


async def test_the_device_cgroup_keeps_it_from_opening_devices_and_it_says_so_at_most_once(
    podman: Podman, pod: PodSpec
) -> None:
    async with serving(podman, pod) as (node, running):
        tried = await running.exec("python3", "-c", OPEN, "/host/dev/hailo0")
        assert tried.out == f"{EPERM}\n", tried
        # Some readings later, the devices are as healthy as they were, and the log as quiet.
        node.machine.plug(THIRD, pci_id=HAILO_8)
        await node.lists(FIRST, SECOND, THIRD)
        status, metrics = await running.get("/metrics")
        assert status == 200
        assert metrics
        about = [line for line in running.agent.lines if EPERM in str(line.fields)]
        assert len(about) <= 1, about
        levels = {line.fields["log.level"] for line in running.agent.lines}
        assert levels <= {"info", "warning"}, levels


async def test_with_privilege_the_same_device_would_be_reached(
    podman: Podman, pod: PodSpec
) -> None:
    # The control: what refuses above is the cgroup of a pod without privilege, and nothing else.
    context = {"privileged": True, "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": True}
    spec: dict[str, Any] = {
        **pod.spec,
        "containers": [{**pod.container, "securityContext": context}],
    }
    privileged = PodSpec(spec=spec, config_maps=pod.config_maps)
    async with serving(podman, privileged) as (_, running):
        tried = await running.exec("python3", "-c", OPEN, "/host/dev/hailo0")
        assert tried.out == f"{NO_DRIVER}\n", tried


async def test_the_verbs_of_an_operator_work_in_it(podman: Podman, pod: PodSpec) -> None:
    async with serving(podman, pod) as (node, running):
        await node.kubelet.admit("ns/pod", {RESOURCE: 1})
        first = device_id(FIRST)

        async def said(*words: str, code: int = 0) -> str:
            done = await running.exec("hailo-agent", *words)
            assert done.code == code, done
            return done.out

        assert {d["id"] for d in orjson.loads(await said("devices", "--json"))["devices"]} == {
            first,
            device_id(SECOND),
        }
        assert "ns/pod" in await said("holders")
        assert first in await said("explain", first)
        assert "pod" in await said("explain", "ns/pod")
        assert await said("cdi", "list")
        await said("cordon", first, "--reason", "looked at")
        await node.lists(SECOND)
        assert "looked at" in await said("cordon")
        assert (node.root / "var/lib/hailo-agent/cordons.json").exists()
        await said("uncordon", first)
        await node.lists(FIRST, SECOND)
        diagnosed = await running.exec("hailo-agent", "doctor", "--json")
        assert diagnosed.code == 0, diagnosed
        await said("support-bundle", "--output=/run/hailo-agent/bundle.tar.gz")
        bundle = (node.root / "run/hailo-agent/bundle.tar.gz").read_bytes()
        with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
            assert len(archive.getnames()) > 5


async def test_a_cordon_outlives_the_pod(podman: Podman, pod: PodSpec) -> None:
    async with standing(podman) as node:
        async with node.agent(pod) as running:
            await node.lists(FIRST, SECOND, within=30)
            cordoned = await running.exec(
                "hailo-agent", "cordon", device_id(FIRST), "--reason", "hot"
            )
            assert cordoned.code == 0, cordoned
            await node.lists(SECOND)
            await running.stop()
        async with node.agent(pod):
            await node.lists(SECOND, within=30)


async def test_a_pod_that_was_killed_is_followed_by_one_that_serves(
    podman: Podman, pod: PodSpec
) -> None:
    async with standing(podman) as node:
        async with node.agent(pod) as running:
            await node.lists(FIRST, SECOND, within=30)
            killed = await podman.engine.run("kill", "--signal=KILL", running.name)
            assert killed.code == 0, killed
            assert await running.agent.wait() == 137
        assert node.sockets()  # nobody was there to remove them
        await node.lists()
        async with node.agent(pod) as running:
            await node.lists(FIRST, SECOND, within=30)
            code, _ = await running.stop()
            assert code == 0
        assert not node.sockets()


def _changed(pod: PodSpec, **container: Any) -> PodSpec:  # noqa: ANN401 - YAML is anything
    spec = {**pod.spec, "containers": [{**pod.container, **container}]}
    return PodSpec(spec=spec, config_maps=pod.config_maps)


@pytest.mark.parametrize(
    "container",
    [
        {"securityContext": {"runAsNonRoot": True}},
        {"securityContext": {"seccompProfile": {"type": "Localhost"}}},
        {"securityContext": {"capabilities": {"sub": []}}},
        {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]},
        {"volumeMounts": [{"name": "dev", "mountPath": "/x", "subPath": "y"}]},
        {"resources": {"limits": {"nvidia.com/gpu": 1}}},
    ],
    ids=str,
)
def test_a_field_that_podman_is_not_told_of_is_refused(
    pod: PodSpec, tmp_path: Path, container: dict[str, Any]
) -> None:
    with pytest.raises(Untranslated):
        flags(_changed(pod, **container), Host(root=Path("/"), scratch=tmp_path))
