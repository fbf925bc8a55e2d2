"""The demo for a real cluster: the agent, with just that configuration, on a machine kept alone.

Only the kubelet is simulated here, and who starts the two processes; in a cluster they are two
containers of one pod.
"""

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from hailo_agent.settings import load
from hailo_agent.sim.kubelet import Kubelet
from hailo_agent.sim.node import RESOURCE, AgentProcess, temporary_root
from hailo_agent.sim.standalone import Order, standalone

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes with numbers take root")

MACHINE: Final = "/run/hailo-agent/machine"
DEMO: Final[dict[str, Any]] = {
    "host": {"dev": f"{MACHINE}/dev", "sys": f"{MACHINE}/sys"},
    "runtime": {
        "host_dev": f"{MACHINE}/dev",
        "host_sys": f"{MACHINE}/sys",
        "delivery": ["devicespec"],
    },
    "health": {"queries": "off"},
    "log": {"format": "json"},
}
"""What the ConfigMap of the demo says."""
OVERLAY: Final = Path(__file__).parents[2] / "manifests/kustomize/overlays/demo"
FIRST, SECOND = "pci-0000-01-00-0", "pci-0000-02-00-0"
BOTH: Final = {FIRST: "Healthy", SECOND: "Healthy"}
WITHOUT_FIRST: Final = {FIRST: "Unhealthy", SECOND: "Healthy"}
NONE: Final = {FIRST: "Unhealthy", SECOND: "Unhealthy"}
QUICK: Final = (
    "--health.flap-window-seconds=0.01",
    "--health.recovery-seconds=0.01",
    "--health.vitals-seconds=0.2",
)
"""Nobody waits for trust to come back, where that is not what is looked at."""


@dataclass(slots=True)
class Machine:
    """A process that keeps a machine."""

    root: Path
    process: asyncio.subprocess.Process

    async def do(self, *words: str) -> None:
        """Have a command done, as `kubectl exec` would."""
        assert await asyncio.to_thread(standalone, self.root, words, Order()) == 0

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A directory for both, and what a real node would have."""

    root: Path
    kubelet: Kubelet

    @property
    def machine(self) -> Path:
        return self.root / "machine"

    @property
    def links(self) -> Path:
        return self.root / "devices"

    @asynccontextmanager
    async def simulating(self, *flags: str) -> AsyncIterator[Machine]:
        """Keep a machine for the length of the block."""
        process = await _simulate(self.machine, *flags)
        assert process.stdout is not None
        said = b""
        while b"the machine is" not in said:
            said = await process.stdout.readline()
            assert said
        try:
            yield Machine(self.machine, process)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()

    @asynccontextmanager
    async def serving(self, *flags: str) -> AsyncIterator[AgentProcess]:
        """Run the agent for the length of the block."""
        config = self.root / "config.yaml"
        config.write_text(json.dumps(DEMO).replace(MACHINE, str(self.machine)))
        agent = await AgentProcess.start(
            f"--config={config}",
            f"--runtime.cdi-dir={self.root / 'cdi'}",
            f"--runtime.cdi-search-dirs={self.root / 'cdi'}",
            f"--runtime.links-dir={self.links}",
            f"--runtime.host-links-dir={self.links}",
            f"--kubelet.plugin-dir={self.kubelet.plugin_dir}",
            f"--kubelet.root={self.root / 'kubelet'}",
            f"--subscribers.socket={self.root / 'agent.sock'}",
            f"--web.listen=unix:{self.root / 'web.sock'}",
            f"--host.cordon-file={self.root / 'cordons.json'}",
            *flags,
        )
        try:
            yield agent
        finally:
            code = await agent.stop()
        assert code == 0, agent.garbage
        assert not agent.garbage
        assert not [line for line in agent.lines if line.fields["log.level"] == "error"]

    async def lists(self, expected: dict[str, str]) -> None:
        """Wait until the kubelet has heard just this, by device; less long than a resync takes."""
        await self.kubelet.wait_for(
            lambda: self.kubelet.resource(RESOURCE).health == expected, within=15.0
        )


async def _simulate(root: Path, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hailo_agent", "simulate", f"--machine={root}", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    async with temporary_root() as root:
        manager = Kubelet(
            root / "kubelet" / "device-plugins",
            pod_resources_dir=root / "kubelet" / "pod-resources",
            fsync=False,
        )
        async with manager:
            yield Cluster(root=root, kubelet=manager)


def node(path: str) -> tuple[Path, tuple[int, int]]:
    """Tell which device node a path leads to, and its number."""
    found = Path(path).resolve()
    status = found.stat()
    assert stat.S_ISCHR(status.st_mode)
    return found, (os.major(status.st_rdev), os.minor(status.st_rdev))


async def test_whoever_of_the_two_starts_first_a_pod_gets_its_device() -> None:
    async with cluster() as here, here.serving() as agent:
        await agent.wait_for("agent.started")
        assert not here.machine.exists()
        async with here.simulating():
            await here.lists(BOTH)
            pod = await here.kubelet.admit("ns/pod", {RESOURCE: 1})
            assert not pod.cdi_devices
            [device] = pod.devices
            path, number = node(device.host_path)
            assert path.parent == here.machine / "dev"
            assert number == (1, 3)
            assert not (here.root / "cdi").exists() or not any((here.root / "cdi").iterdir())


async def test_what_is_done_from_outside_reaches_the_kubelet() -> None:
    async with cluster() as here, here.simulating() as machine, here.serving(*QUICK) as agent:
        await here.lists(BOTH)
        await here.kubelet.admit("ns/pod", {RESOURCE: 2})  # held devices stay listed
        # Not by the resync, which would come after 30 s.
        await machine.do("pull", "hailo0")
        await here.lists(WITHOUT_FIRST)
        await machine.do("plug")
        await here.lists(BOTH)
        await machine.do("break", "hailo0", "missing")
        await here.lists(WITHOUT_FIRST)
        await machine.do("mend", "hailo0")
        await here.lists(BOTH)
        # A dead link is seen when vitals are read again.
        await machine.do("ail", "hailo0", "dead-link")
        await here.lists(WITHOUT_FIRST)
        await machine.do("cure", "hailo0")
        await here.lists(BOTH)
        lacking = {line.fields["part"] for line in agent.events("part.limping")}
        assert lacking <= {"uevents"}


async def test_a_machine_that_is_killed_and_kept_anew_is_the_same_to_the_agent() -> None:
    async with cluster() as here, here.serving(*QUICK):
        async with here.simulating() as machine:
            await here.lists(BOTH)
            await here.kubelet.admit("ns/pod", {RESOURCE: 2})
            await machine.do("pull", "hailo0")
            await here.lists(WITHOUT_FIRST)
            await machine.kill()
        async with here.simulating() as machine:
            await here.lists(BOTH)
            await machine.do("pull", "hailo0")  # the new directories are watched as the old ones
            await here.lists(WITHOUT_FIRST)
            await machine.do("plug")
            await here.lists(BOTH)
        await here.lists(NONE)
        assert not here.machine.exists()
        assert not any(here.links.iterdir())


async def test_somebody_who_watches_a_rehearsal_sees_something() -> None:
    rehearsal = ("--rehearse=1", "--devices=1")
    async with cluster() as here, here.serving(*QUICK) as agent, here.simulating(*rehearsal):
        at = (await agent.wait_for("device.added")).at
        for code in ("device.vanished", "pci.dead"):
            ill = await agent.wait_for("device.faulted", since=at)
            assert [fault["code"] for fault in ill.fields["device"]["faults"]] == [code]
            at = (await agent.wait_for("device.recovered", since=ill.at)).at


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_the_overlay_says_just_this(tmp_path: Path) -> None:
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(OVERLAY)], capture_output=True, text=True, check=True
    )
    objects = [each for each in yaml.safe_load_all(rendered.stdout) if each]
    [pod] = [each["spec"]["template"]["spec"] for each in objects if each["kind"] == "DaemonSet"]
    [config] = [each["data"]["config.yaml"] for each in objects if each["kind"] == "ConfigMap"]
    agent, machine = (
        next(each for each in pod["containers"] if each["name"] == name)
        for name in ("hailo-agent", "machine")
    )
    environment = {
        each["name"]: each["value"]
        for each in agent["env"]
        if "value" in each and each["name"] != "HAILO_AGENT_CONFIG"
    }
    said, wanted = tmp_path / "said.yaml", tmp_path / "wanted.yaml"
    said.write_text(config)
    wanted.write_text(json.dumps(DEMO))
    settings = load(flags={}, environ=environment, config=said).settings
    assert settings == load(flags={}, environ={}, config=wanted).settings
    words = " ".join(machine["args"]).replace("=", " ").split()
    assert words[:3] == ["simulate", "--machine", MACHINE]
    assert machine["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["MKNOD"]}
    assert machine["image"] == agent["image"]
    for container in (agent, machine):
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert "/run/hailo-agent" in mounts
