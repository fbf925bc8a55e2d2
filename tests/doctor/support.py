"""What the doctor's tests share: a scene to examine, and findings to pick from."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from hailo_agent import agent, doctor
from hailo_agent.core.device import ALL
from hailo_agent.core.diagnosis import diagnose
from hailo_agent.core.diagnosis.facts import (
    AgentFacts,
    Facts,
    HostFacts,
    Inotify,
    KubeletFacts,
    Module,
    RuntimeConfig,
    SpecFacts,
)
from hailo_agent.core.diagnosis.finding import Finding, Verdict, worst
from hailo_agent.core.inventory import Inventory, decide
from hailo_agent.core.observation import Observation
from hailo_agent.runtime.specs import SpecStore
from hailo_agent.settings import Settings, load
from hailo_agent.sim.kubelet import Kubelet
from hailo_agent.sim.reports import Scene
from tests.strategies import POLICY, RESOURCE


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that the doctor found, and what to pick from it."""

    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """What all of them amount to."""
        return worst(self.findings)

    @property
    def ills(self) -> list[str]:
        """The checks that are neither well nor unseen, in the order in which they were said."""
        healthy = {Verdict.OK, Verdict.UNSEEN}
        return [finding.check for finding in self.findings if finding.verdict not in healthy]

    def all(self, check: str) -> list[Finding]:
        """Every finding of one check."""
        return [finding for finding in self.findings if finding.check == check]

    def the(self, check: str) -> Finding:
        """Take the one finding of a check."""
        (finding,) = self.all(check)
        return finding


@contextmanager
def scene() -> Iterator[Scene]:
    """Build a host without anything in it, below a path short enough for unix sockets."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dr-", dir=memory, ignore_cleanup_errors=True) as root:
        built = Scene(Path(root))
        built.options["host.cordon-file"] = str(cordon_file(built))
        built.options["web.listen"] = ""  # agents of other tests would be in the way
        with built.closing:
            yield built


def cordon_file(at: Scene) -> Path:
    """Say where the scene's cordons are; not made."""
    return at.root / "cordons.json"


def settings_of(at: Scene) -> Settings:
    """Read the scene's flags as the command line does."""
    flags = [tuple(flag.split("=", 1)) for flag in at.flags]
    return load(flags=[(name, value) for name, value in flags], environ={}, config=None).settings


async def write_spec(at: Scene) -> None:
    """Do what `hailo-agent cdi generate` does."""
    spec, numbers = await agent.look_for_spec(settings_of(at))
    await SpecStore(directory=at.cdi, search=()).replace(spec, numbers)


async def examine(at: Scene) -> Told:
    """Do what `hailo-agent doctor` does."""
    told = await doctor.examine(settings_of(at), root=at.host, kernel_log=at.kernel_log)
    assert_complete(told)
    return Told(told)


@asynccontextmanager
async def a_kubelet(at: Scene) -> AsyncIterator[Kubelet]:
    """Run a kubelet where the scene has it."""
    plugins, pod_resources = at.kubelet / "device-plugins", at.kubelet / "pod-resources"
    async with Kubelet(plugins, pod_resources_dir=pod_resources) as kubelet:
        yield kubelet
        await asyncio.sleep(0.02)  # let it notice who has hung up, before its loop ends


@asynccontextmanager
async def an_agent(at: Scene) -> AsyncIterator[agent.Agent]:
    """Run an agent in this process, with the scene's settings."""
    running = agent.Agent(settings_of(at))
    async with anyio.create_task_group() as group:
        group.start_soon(running.start, group)
        yield running
        await running.stop()
        group.cancel_scope.cancel()


# --- as another user -----------------------------------------------------------------------------

SECONDS: Final = 30
_NOBODY: Final = 65534

# Nobody may be kept from our interpreter, so it looks around once as root, and has all it needs.
_BECOMING: Final = """
import contextlib, ctypes, io, os, sys
from hailo_agent import cli
uid, exhaust, argv = int(sys.argv[1]), sys.argv[2] == "exhaust", sys.argv[3:]
with contextlib.redirect_stdout(io.StringIO()):
    cli._run(argv)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(uid, uid, uid)
while exhaust and ctypes.CDLL(None).inotify_init1(0) >= 0:
    pass
sys.exit(cli._run(argv))
"""

takes_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else takes root")


def command(at: Scene, *more: str) -> list[str]:
    """Spell the command that examines the scene."""
    paths = [f"--root={at.host}", f"--kernel-log={at.kernel_log}"]
    return [sys.executable, "-m", "hailo_agent", "doctor", *at.flags, *paths, *more]


def examined_by(uid: int, at: Scene, *, exhaust: bool = False) -> tuple[Finding, ...]:
    """Examine as another user, who may have used all inotify instances up."""
    at.root.chmod(0o755)
    how = "exhaust" if exhaust else "look"
    done = subprocess.run(
        [sys.executable, "-c", _BECOMING, str(uid), how, *command(at, "--json")[3:]],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.stderr == ""
    document = json.loads(done.stdout)
    findings = (
        Finding(**{**finding, "verdict": Verdict(finding["verdict"])})
        for finding in document["findings"]
    )
    told = tuple(findings)
    assert document["verdict"] == worst(told)
    return told


def examined_by_nobody(at: Scene) -> tuple[Finding, ...]:
    """Examine as an ordinary user."""
    return examined_by(_NOBODY, at)


# --- findings ------------------------------------------------------------------------------------


def assert_complete(findings: Sequence[Finding]) -> None:
    """Whatever is not well has a reason to matter and a next step, and all can be read."""
    for finding in findings:
        assert finding.looked_at, finding
        assert finding.found, finding
        if finding.verdict is not Verdict.OK:
            assert finding.why, finding
            assert finding.next_step, finding
        for text in (finding.looked_at, finding.found, finding.why, finding.next_step):
            assert "None" not in text, finding
            assert text == text.strip(), finding


# --- facts, where no machine is needed -----------------------------------------------------------

SPEC = "/var/run/cdi/hailo.ai-npu.json"
PLUGINS = "/var/lib/kubelet/device-plugins"


def facts_of(*looks: Observation, **changes: object) -> Facts:
    """Make up what a healthy node shows of itself, where these looks found what they did.

    `changes` are fields of Facts; where one is a mapping, it changes the fields of the part.
    """
    inventory = Inventory()
    for look in looks:
        inventory = decide(inventory, look, POLICY)
    nodes = {
        str(device.id): (f"/dev/{device.devnode.name}",)
        for device in inventory.devices
        if device.is_usable and device.devnode is not None
    }
    expected = {**nodes, ALL: tuple(node for each in nodes.values() for node in each)}
    whole = Facts(
        observation=looks[-1] if looks else None,
        inventory=inventory,
        expected=expected if nodes else {},
        host=HostFacts(
            modules=(Module(name="hailo_pci", version="4.23.0"),),
            kernel_release="6.12.0",
            installed=frozenset({"hailo_pci"}),
            firmware={"hailo/hailo8_fw.bin": True},
            kernel_log=(),
            inotify=Inotify(max_instances=8192, is_exhausted=False),
        ),
        spec=SpecFacts(
            path=SPEC,
            search=("/etc/cdi", "/var/run/cdi"),
            directory_exists=True,
            is_writable=True,
            nodes=expected if nodes else None,
            links=frozenset(nodes),
            links_dir="/run/hailo-agent/devices",
            configs=(
                RuntimeConfig(runtime="containerd", path="/etc/containerd/config.toml", cdi=True),
            ),
        ),
        kubelet=KubeletFacts(
            plugin_dir=PLUGINS,
            plugin_dir_exists=True,
            socket_exists=True,
            registered={RESOURCE: bool(nodes)},
            root="/var/lib/kubelet",
        ),
        agent=AgentFacts(socket="/run/hailo-agent/agent.sock", version="0.1.0"),
        offered=frozenset({RESOURCE} if nodes else ()),
    )
    parts = {name: _changed(getattr(whole, name), change) for name, change in changes.items()}
    return replace(whole, **parts)


def _changed(part: object, change: object) -> Any:  # noqa: ANN401 - of whatever field it is
    if isinstance(change, dict) and is_dataclass(part) and not isinstance(part, type):
        return replace(part, **change)
    return change


def told_of(*looks: Observation, **changes: object) -> Told:
    """Diagnose a healthy node in which something is different."""
    findings = diagnose(facts_of(*looks, **changes))
    assert_complete(findings)
    return Told(findings)
