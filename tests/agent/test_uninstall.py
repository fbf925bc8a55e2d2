"""`hailo-agent uninstall` on a node where the real agent ran with everything on, as it is typed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from hailo_agent import __version__
from hailo_agent.settings import load
from hailo_agent.sim.node import AgentProcess, Node, temporary_root
from hailo_agent.support.uninstall import Places
from tests.house.repository import ROOT

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
ONE, TWO = "pci-0000-01-00-0", "pci-0000-02-00-0"
H10 = "hailo.ai/h10"
MANIFEST = ROOT / "manifests" / "uninstall.yaml"
SECONDS = 30
pytestmark = pytest.mark.timeout(90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def removed(self) -> set[str]:
        return {
            line.removeprefix("removed ")
            for line in self.out.splitlines()
            if line.startswith("removed ")
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """A node, and the directories that are the host's in it."""

    node: Node
    host: Path

    def flags(self) -> list[str]:
        """Say where a real agent would leave things, below the node's root."""
        run = self.host / "run" / "hailo-agent"
        return [
            *self.node.flags(),
            f"--subscribers.socket={run}/agent.sock",
            f"--monitor.dir={run}/monitor",
            f"--host.cordon-file={self.host}/var/lib/hailo-agent/cordons.json",
        ]

    def everything(self) -> list[str]:
        """Switch everything on."""
        return [
            *self.flags()[len(self.node.flags()) :],
            "--monitor.enabled=true",
            "--monitor.host-dir=/run/hailo-agent/monitor",
            "--runtime.delivery=cri,annotation,devicespec",
            f"--resource.names=1e60:45c4={H10}",
            "--kubelet.pod-resources-seconds=0.2",
        ]

    def listing(self) -> dict[str, str]:
        """Tell all that is on the node but what the kubelet keeps for itself."""
        found = {}
        for path in sorted(self.node.root.rglob("*")):
            name = str(path.relative_to(self.node.root))
            status = path.lstat()
            what = stat.filemode(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                what += f" {path.readlink()}"
            if name != "kubelet/device-plugins/kubelet_internal_checkpoint":
                found[name] = what
        return found

    async def hailo_agent(self, *arguments: str) -> Done:
        """Type a command on this node."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "hailo_agent", *arguments, *self.flags()],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)


@asynccontextmanager
async def stand() -> AsyncIterator[Stand]:
    async with temporary_root() as root, Node.build(root, fsync=False) as node:
        host = node.machine.root
        for name in ("etc/cdi", "var/lib", "run"):
            (host / name).mkdir(parents=True, exist_ok=True)
        node.machine.load("4.23")
        node.machine.load("5.3")
        node.machine.plug(FIRST)
        node.machine.plug(SECOND, pci_id="1e60:45c4")
        yield Stand(node=node, host=host)


async def had_everything(stand: Stand, agent: AgentProcess) -> None:
    """Let an agent do all it can: two resources, a pod on each, monitors, cordons, links."""
    node = stand.node
    await node.listed(1)
    await node.listed(1, resource=H10)
    for pod, resource in (("default/a", "hailo.ai/npu"), ("default/b", H10)):
        container = await node.kubelet.admit(pod, {resource: 1})
        node.runtime.inject(
            container.cdi_devices, annotations=container.annotations, devices=container.devices
        )
    await agent.wait_for("device.held", lambda f: f["device"]["holders"])
    for directory in (stand.host / "run/hailo-agent/monitor").iterdir():
        (directory / "4711").write_bytes(b"frames")
    assert (await stand.hailo_agent("cordon", FIRST, "--reason=to be removed")).code == 0
    await node.listed(0, capacity=1)
    for pod in ("default/a", "default/b"):
        await node.kubelet.remove(pod)
    # A pod's devices are free from the next admission on, as with a real kubelet.
    await node.kubelet.admit("default/none", {})


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
async def test_after_it_a_node_looks_as_before_the_agent_first_ran(how: str) -> None:
    async with stand() as on:
        before = on.listing()
        async with on.node.agent(*on.everything()) as agent:
            await had_everything(on, agent)
            left = agent.process
            left.send_signal(signal.Signals[how])
            await agent.wait()
        remains = on.listing().keys() - before.keys()
        assert {Path(name).name for name in remains} >= {"hailo.ai-npu.json", "cordons.json", ONE}
        sockets = {"agent.sock", "hailo.ai_npu.sock", "hailo.ai_h10.sock"}
        assert ({Path(name).name for name in remains} >= sockets) == (how == "SIGKILL")

        announced = await on.hailo_agent("uninstall", "--dry-run")
        assert announced.code == 1
        assert on.listing().keys() - before.keys() == remains

        done = await on.hailo_agent("uninstall")
        assert (done.code, done.err) == (0, "")
        assert on.listing() == before
        lines = announced.out.splitlines()
        assert {f"would remove {path}" for path in done.removed} == set(lines[:-1])
        assert lines[-1] == f"{len(done.removed)} things would be removed."
        assert done.out.splitlines()[-1] == "Nothing of hailo-agent is left on this node."

        again = await on.hailo_agent("uninstall")
        assert (again.code, again.out) == (0, "Nothing of hailo-agent is on this node.\n")
        assert (await on.hailo_agent("uninstall", "--dry-run")).code == 0


async def test_while_an_agent_runs_it_refuses_and_removes_nothing() -> None:
    async with stand() as on, on.node.agent(*on.everything()) as agent:
        await on.node.listed(1)
        while not (on.node.root / "run" / "web.sock").exists():  # noqa: ASYNC110 - it sends nothing
            await asyncio.sleep(0.02)
        before = on.listing()
        done = await on.hailo_agent("uninstall")
        assert done.code == 1
        assert on.listing() == before
        assert done.out == ""
        assert f"an agent runs here: it answers at {on.host}/run/hailo-agent/agent.sock" in done.err
        assert "hailo.ai_npu.sock" in done.err  # also without its own socket it is noticed
        assert done.err.splitlines()[-1] == "hailo-agent: nothing was removed"
        assert (await on.hailo_agent("uninstall", "--dry-run")).code == 1
        assert on.listing() == before
        assert agent.process.returncode is None


async def test_forced_past_an_agent_it_leaves_the_sockets_that_answer_and_says_so() -> None:
    async with stand() as on, on.node.agent(*on.everything()) as agent:
        await on.node.listed(1)
        done = await on.hailo_agent("uninstall", "--force")
        assert done.code == 1
        assert str(on.node.spec_path) in done.removed
        assert "agent.sock: somebody answers there; stop who does" in done.err
        await agent.wait_for("spec.restored")
        assert await agent.stop() == 0


async def test_what_pods_would_lose_is_said_by_name_before_anything_is_removed() -> None:
    async with stand() as on:
        async with on.node.agent(*on.everything()) as agent:
            await on.node.listed(1)
            await on.node.kubelet.admit("default/camera", {"hailo.ai/npu": 1}, container="infer")
            await agent.stop()
        before = on.listing()
        done = await on.hailo_agent("uninstall")
        assert (done.code, done.out) == (1, "")
        assert on.listing() == before
        assert done.err.splitlines() == [
            (
                f"hailo-agent: pod default/camera, container infer, holds {ONE}: it keeps it as"
                " long as it runs, but could not start again; delete the pod first, or say --force"
            ),
            "hailo-agent: nothing was removed",
        ]
        forced = await on.hailo_agent("uninstall", "--force")
        assert forced.code == 0
        assert "pod default/camera" in forced.err
        assert "--force" not in forced.err

        # And what was said is true: the runtime cannot make that container again.
        again = await on.node.kubelet.restart_container("default/camera", "infer")
        with pytest.raises(Exception, match=r"failed to apply device|unresolvable"):
            on.node.runtime.inject(again.cdi_devices, devices=again.devices)


async def test_a_kubelet_that_does_not_answer_is_not_taken_for_nobody_holding_anything() -> None:
    async with stand() as on:
        await on.node.kubelet.stop()
        done = await on.hailo_agent("uninstall")
        assert done.code == 1
        assert "whether pods hold devices cannot be told" in done.err
        assert "start the kubelet first, or say --force" in done.err
        shutil.rmtree(on.node.root / "kubelet" / "pod-resources")
        done = await on.hailo_agent("uninstall")  # no kubelet has ever been here
        assert done.code == 0
        assert done.err.startswith("Whether pods hold devices cannot be told: asking the kubelet")


async def test_held_it_stays_until_it_is_told_to_stop_and_then_ends_at_once() -> None:
    async with stand() as on:
        command = [sys.executable, "-m", "hailo_agent", "uninstall", "--hold", *on.flags()]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            assert await process.stdout.readline() == b"Nothing of hailo-agent is on this node.\n"
            assert await process.stdout.readline() == b"Staying until told to stop.\n"
            assert process.returncode is None
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0


async def test_held_it_does_not_stay_where_something_is_left() -> None:
    async with stand() as on:
        in_the_way = on.host / "run" / "hailo-agent"
        in_the_way.symlink_to("elsewhere")
        (on.host / "run" / "elsewhere").mkdir()
        done = await on.hailo_agent("uninstall", "--hold")
        assert done.code == 1
        assert "symlink" in done.err
        assert done.err.splitlines()[-1] == "hailo-agent: 1 thing could not be removed"


async def test_to_hold_and_to_do_nothing_is_misused() -> None:
    async with stand() as on:
        done = await on.hailo_agent("uninstall", "--hold", "--dry-run")
        assert (done.code, done.out) == (2, "")
        assert "--dry-run does nothing; leave one of them out" in done.err


async def test_a_strange_name_cannot_command_the_terminal() -> None:
    async with stand() as on:
        strange = on.host / "run" / "hailo-agent" / "\x1b[2J\nremoved everything"
        strange.parent.mkdir()
        strange.write_text("")
        done = await on.hailo_agent("uninstall")
        assert done.code == 0
        assert "\x1b" not in done.err
        assert "\\x1b[2J\\nremoved everything" in done.err
        assert strange.exists()


async def test_a_simulated_machine_that_was_killed_goes_and_one_that_runs_stays() -> None:
    async with stand() as on:
        before = on.listing()
        machine = on.host / "run" / "hailo-agent" / "machine"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hailo_agent", "simulate", f"--machine={machine}"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(SECONDS):
                while b"the machine is" not in await process.stdout.readline():
                    assert process.returncode is None
            done = await on.hailo_agent("uninstall")
            assert done.code == 1
            assert f"cannot remove {machine}: somebody answers there" in done.err
            assert (machine / "dev" / "hailo0").exists()
        finally:
            process.kill()
            await process.wait()
        (machine / "notes").write_text("mine")
        done = await on.hailo_agent("uninstall")
        assert f"left alone: {machine}: there is notes in it" in done.err
        (machine / "notes").unlink()
        done = await on.hailo_agent("uninstall")
        assert (done.code, done.err) == (0, "")
        assert on.listing() == before


# --- the manifest ---------------------------------------------------------------------------------


def manifest() -> dict[str, Any]:
    (document,) = yaml.safe_load_all(MANIFEST.read_text())
    assert isinstance(document, dict)
    return document


def pod_spec() -> dict[str, Any]:
    spec = manifest()["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def cleaning() -> dict[str, Any]:
    (container,) = pod_spec()["initContainers"]
    assert isinstance(container, dict)
    return container


def staying() -> dict[str, Any]:
    (container,) = pod_spec()["containers"]
    assert isinstance(container, dict)
    return container


def environ_of(container: dict[str, Any]) -> dict[str, str]:
    """Read what is written out; the rest is filled in by the kubelet."""
    return {entry["name"]: entry.get("value", "node-7") for entry in container["env"]}


def on_the_host(path: Path, mounts: Sequence[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Tell which path of the host a path of the container is, and by which mount."""
    fitting = [m for m in mounts if path.is_relative_to(m["mountPath"])]
    mount = max(fitting, key=lambda m: len(m["mountPath"]))
    (volume,) = (v for v in pod_spec()["volumes"] if v["name"] == mount["name"])
    return str(Path(volume["hostPath"]["path"]) / path.relative_to(mount["mountPath"])), mount


VERSIONS = ["1.28", kubernetes_validate.latest_version()]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifest_is_what_kubernetes_takes(version: str) -> None:
    kubernetes_validate.validate(manifest(), version, strict=True)


def test_the_manifest_mounts_what_the_verb_removes_and_nothing_else() -> None:
    """With the agent's own defaults on the host, each of its places is reached, to be written."""
    container = cleaning()
    inside = Places.of(load(flags={}, environ=environ_of(container), config=None).settings)
    host = Places.of(load(flags={}, environ={}, config=None).settings)
    mounts = container["volumeMounts"]
    used = {"pod-resources"}
    pairs = [
        *zip(inside.cdi_dirs, host.cdi_dirs, strict=True),
        (inside.plugin_dir, host.plugin_dir),
        (inside.cordon_file, host.cordon_file),
        *zip(inside.sockets, host.sockets, strict=True),
        *zip(inside.own_dirs, host.own_dirs, strict=True),
    ]
    for there, here in pairs:
        found, mount = on_the_host(there, mounts)
        assert found == str(here)
        assert not mount.get("readOnly")
        used.add(mount["name"])
    # A mount point cannot be removed from within: directories of ours are not mounted themselves.
    assert not {str(path) for path in inside.own_dirs} & {m["mountPath"] for m in mounts}
    assert used == {m["name"] for m in mounts} == {v["name"] for v in pod_spec()["volumes"]}
    settings = load(flags={}, environ=environ_of(container), config=None).settings
    found, mount = on_the_host(settings.kubelet.root / "pod-resources", mounts)
    assert (found, mount["readOnly"]) == ("/var/lib/kubelet/pod-resources", True)


def test_the_manifest_asks_for_no_privilege() -> None:
    spec = pod_spec()
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        assert name not in spec
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["tolerations"] == [{"operator": "Exists"}]
    for container in (cleaning(), staying()):
        context = container["securityContext"]
        assert context["privileged"] is context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["image"] == f"hailo-agent:{__version__}"
        assert container["resources"]["limits"]["memory"]
    # A directory that a container of another user made in its monitor directory asks for it.
    assert cleaning()["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["DAC_OVERRIDE"],
    }
    assert staying()["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_pod_of_the_manifest_is_ready_only_once_its_node_is_clean() -> None:
    assert cleaning()["args"] == ["uninstall"]
    assert "restartPolicy" not in cleaning()  # that would be a sidecar, which nobody waits for
    assert staying()["args"] == ["uninstall", "--hold"]


def test_what_stays_of_the_manifest_sees_nothing_of_the_node() -> None:
    assert "volumeMounts" not in staying()
    assert staying()["securityContext"]["runAsNonRoot"] is True


def test_the_variants_for_distributions_that_its_comments_tell_are_whole_manifests() -> None:
    """Each of them is a line of sed or grep, as it stands in docs/how-to/remove.md."""
    page = (ROOT / "docs" / "how-to" / "remove.md").read_text()
    lines = [line for line in page.splitlines() if "uninstall.yaml | kubectl apply" in line]
    assert len(lines) == 2
    for line in lines:
        command = line.removesuffix(" | kubectl apply -f -")
        done = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
        )
        changed = yaml.safe_load(done.stdout)
        assert changed != manifest()
        for version in VERSIONS:
            kubernetes_validate.validate(changed, version, strict=True)
        spec = changed["spec"]["template"]["spec"]
        names = {volume["name"] for volume in spec["volumes"]}
        (container,) = spec["initContainers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == names


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="dropping takes root and setpriv"
)
async def test_it_needs_no_capability_for_what_an_agent_leaves() -> None:
    async with stand() as on:
        before = on.listing()
        async with on.node.agent(*on.everything()) as agent:
            await had_everything(on, agent)
            await agent.kill()
        written = on.host / "run" / "hailo-agent" / "monitor" / ONE / "of-somebody"
        written.write_bytes(b"frames")
        os.chown(written, 1000, 1000)
        done = await asyncio.to_thread(
            subprocess.run,
            [
                *("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
                *(sys.executable, "-m", "hailo_agent", "uninstall", *on.flags()),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert on.listing() == before
