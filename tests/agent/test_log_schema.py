"""What a log stack may rely on: a whole soak's log, each line of it held against the reference.

The schema is the tables of docs/reference/events.md, so that what is promised is what is checked.
The soak is one busy life of the agent: devices come and go in storms, chips fall ill, the kubelet
restarts, refuses and lies, the disk refuses, texts are hostile, and all of it at level debug.
"""

import asyncio
import json
import os
import re
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from grpclib.exceptions import GRPCError

from hailo_agent.rpc.dial import dialing
from hailo_agent.sim.chips import Chips
from hailo_agent.sim.kubelet import AdmissionFailed
from hailo_agent.sim.litter import LitterKind
from hailo_agent.sim.machine import Ailment
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root
from hailo_agent.wire import deviceplugin, podresources
from tests.house.repository import ROOT
from tests.support.another_plugin import another_plugin

FIRST, SECOND, THIRD = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"
ONE = "pci-0000-01-00-0"
LINE_BYTES: Final = 16 * 1024
RESYNCS: Final = 100
TWICE: Final = 2
"""A condition may be said when it comes, and once more while it settles."""
SECRET = "kubernetes-bootstrap-07401b.f395accd246ae52d"  # noqa: S105 - planted, to be looked for
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "LOKI_PASSWORD": SECRET,
    "KUBECONFIG_TOKEN": f"Bearer {SECRET}",
}
HOSTILE = 'evil"}\n{"message":"agent.crashed"}\x1b[2J\u202e\u2028\x00' + "A" * 3000
LEVELS: Final = frozenset({"debug", "info", "warning", "error", "critical"})
TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
EVENTS_PAGE: Final = ROOT / "docs" / "reference" / "events.md"

FLAGS: Final = (
    "--log.level=debug",
    "--node.name=node-7",
    "--host.resync-seconds=0.02",
    "--health.vitals-seconds=0.05",
    "--health.query-seconds=0.1",
    "--health.query-in-use=true",
    "--health.recovery-seconds=0.3",
    "--health.flap-window-seconds=0.01",
    "--health.awake-share=1",
    "--kubelet.pod-resources-seconds=0.1",
    "--kubelet.tombstone-seconds=1",
    "--runtime.version=containerd://1.6.20",
    "--runtime.delivery=cri",
)
# Whoever may write anywhere is not told that a directory is read-only.
AS_A_POOR_ROOT: Final = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
)
# What it wrote, byte for byte, beside what is read of it.
COPIED: Final = ("bash", "-c", 'log=$1; shift; exec "$@" 2> >(tee -a "$log" >&2)', "bash")

pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True, slots=True)
class Soaked:
    """All that was written, and what of it while many conditions stood and nothing else was."""

    raw: bytes
    started_at: datetime
    ended_at: datetime
    standing: Sequence[Mapping[str, Any]]
    resyncs: int

    @property
    def lines(self) -> list[bytes]:
        return self.raw.splitlines(keepends=True)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


# --- the soak -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def soaked() -> Soaked:
    return asyncio.run(soak())


async def soak() -> Soaked:
    started_at = datetime.now(UTC)
    async with temporary_root() as root, temporary_root() as elsewhere:
        logs = root / "log", elsewhere / "log"
        (standing, resyncs), _ = await asyncio.gather(
            busy_life(root, logs[0]), quiet_life(elsewhere, logs[1])
        )
        raw = b"".join(log.read_bytes() for log in logs)
        return Soaked(raw, started_at, datetime.now(UTC), standing, resyncs)


async def busy_life(root: Path, log: Path) -> tuple[Sequence[Mapping[str, Any]], int]:
    async with Node.build(root, fsync=False, chips=Chips) as node:
        for version in ("4.23", "5.3"):
            node.machine.load(version)
        node.machine.plug(FIRST)
        (node.cdi_dir / ".hailo.ai-npu.json.0123abcd.tmp").write_text("{}")  # of a killed one
        config = root / "config.yaml"
        config.write_text("log: {level: debug}\n")
        flags = (*(f for f in FLAGS if not f.startswith("--log.level")), f"--config={config}")
        agent = await started(node, log, *flags, prefix=(*node.prefix, *AS_A_POOR_ROOT))
        try:
            await node.listed(1)
            await storm(node)
            await pods(node)
            await crowded(node, agent)
            await ills(node)
            await signals(agent, config)
            await kubelets(node, agent)
            stood = await stand(node, agent)
            await recover(node, agent)
        finally:
            await agent.stop()
        return stood


async def quiet_life(root: Path, log: Path) -> None:
    """Let what takes the agent's patience happen on another node meanwhile."""
    async with Node.build(root, fsync=False) as node:
        node.machine.load("4.23")
        node.machine.plug(FIRST)
        agent = await started(node, log, *FLAGS)
        try:
            await emptied(node, agent)
            await node.listed(1)  # a later list of ours would hide the other's
            async with another_plugin(node.kubelet):
                await agent.wait_for("plugin.contested", within=20.0)
        finally:
            await agent.stop()
        await displaced(node, log)


async def started(node: Node, log: Path, *flags: str, prefix: tuple[str, ...] = ()) -> AgentProcess:
    prefix = (*COPIED, str(log), *prefix)
    return await AgentProcess.start(*node.flags(), *flags, env=SECRETS, prefix=prefix)


async def storm(node: Node) -> None:
    for _ in range(12):
        for address in (SECOND, THIRD):
            node.machine.plug(address)
            await asyncio.sleep(0.01)
        for address in (SECOND, THIRD):
            node.machine.pull(address)
    node.machine.plug(SECOND)
    node.machine.plug(THIRD, pci_id="1e60:45c4")
    await node.listed(3)


async def pods(node: Node) -> None:
    await admitted(node, "default/a", 1)
    await admitted(node, f"default/{HOSTILE}", 1)
    node.machine.pull(THIRD)
    async with dialing(node.plugin_dir / "hailo.ai_npu.sock") as channel:
        plugin = deviceplugin.DevicePluginStub(channel)
        for device_ids in ([HOSTILE, ONE], [f"pci-{number}" for number in range(3000)]):
            asked = deviceplugin.ContainerAllocateRequest(device_ids=device_ids)
            with suppress(GRPCError):
                await plugin.allocate(deviceplugin.AllocateRequest(container_requests=[asked]))


async def admitted(node: Node, pod: str, count: int) -> None:
    """Have a pod admitted, however often it takes while the storm calms down."""
    async with asyncio.timeout(10.0):
        while True:
            with suppress(AdmissionFailed):
                await node.kubelet.admit(pod, {RESOURCE: count})
                return
            await asyncio.sleep(0.1)


async def ills(node: Node) -> None:
    for ailment in Ailment:
        if ailment is not Ailment.HUNG_CONTROL:  # it takes a watchdog's seconds
            node.machine.ail(FIRST, ailment)
            await asyncio.sleep(0.15)
            node.machine.cure(FIRST)
    for how in ("missing", "symlink", "regular-file", "fifo", "mode"):
        node.machine.break_node(FIRST, how)
        await asyncio.sleep(0.05)
        node.machine.mend(FIRST)
    hostile = HOSTILE.encode()
    for content in (hostile, b"\xff\xfe\xed\xa0\x80", b"", b"\x00" * 5000):
        for name in ("board_location", "uevent"):
            node.machine.set_attribute(FIRST, name, content)
        await asyncio.sleep(0.05)
        node.machine.mend(FIRST)


async def signals(agent: AgentProcess, config: Path) -> None:
    for text in ("log: {level: nonsense}\n", "log: [\n", "log: {level: debug}\n"):
        await asyncio.to_thread(config.write_text, text)
        agent.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.1)
    await agent.wait_for("config.refused")


async def kubelets(node: Node, agent: AgentProcess) -> None:
    for _ in range(2):
        await node.kubelet.restart()
        await asyncio.sleep(0.3)
    await node.kubelet.stop()  # its socket stays behind
    await agent.wait_for("plugin.unregistered")
    await node.kubelet.start()
    node.kubelet.faults.refuse_register = HOSTILE
    await node.kubelet.restart()


async def stand(node: Node, agent: AgentProcess) -> tuple[Sequence[Mapping[str, Any]], int]:
    """Let much be wrong at once, and go on being so; returns the log of that time."""
    begun, passed = len(agent.lines), passes(agent)
    await agent.wait_for("plugin.rejected")
    node.machine.degrade_link(FIRST)
    node.machine.ail(FIRST, Ailment.HOT)
    for kind in LitterKind.__args__:  # type: ignore[attr-defined]
        node.machine.litter(kind)
    node.machine.plug(THIRD)
    node.machine.ail(THIRD, Ailment.GARBAGE)
    (node.cdi_dir / "vendor.json").write_text(foreign(SECRET))
    (node.cdi_dir / "broken.json").write_text(f'{{"kind": "x/y", "env": "TOKEN={SECRET}"')
    cordons = node.root / "state" / "cordons.json"
    cordons.parent.mkdir(exist_ok=True)
    cordons.write_text('{"cordons": [')
    assert node.kubelet.pod_resources is not None
    node.kubelet.pod_resources.fault = "error"
    node.kubelet.pod_resources.refusal = HOSTILE
    node.cdi_dir.chmod(0o555)
    node.spec_path.chmod(0o444)
    async with asyncio.timeout(40.0):
        while passes(agent) - passed < RESYNCS:
            node.machine.count_errors(FIRST, "correctable")  # now and then, as a bad slot does
            await asyncio.sleep(0.13)
    return [line.fields for line in agent.lines[begun:]], passes(agent) - passed


def passes(agent: AgentProcess) -> int:
    return sum("resync" in line.fields["reasons"] for line in agent.events("machine.reconciled"))


def foreign(secret: str) -> str:
    """Write another vendor's CDI file that names one of our devices, with a secret in it."""
    edits = {"env": [f"REGISTRY_PASSWORD={secret}"]}
    device = {"name": ONE, "containerEdits": edits}
    return json.dumps({"cdiVersion": "0.6.0", "kind": "hailo.ai/npu", "devices": [device]})


async def recover(node: Node, agent: AgentProcess) -> None:
    node.cdi_dir.chmod(0o755)
    for name in ("vendor.json", "broken.json"):
        (node.cdi_dir / name).unlink()
    (node.root / "state" / "cordons.json").write_text('{"cordons": []}')
    node.machine.sweep()
    for address in (FIRST, THIRD):
        node.machine.mend(address)
    node.kubelet.faults.refuse_register = ""
    await agent.wait_for("spec.accepted", within=40.0)
    await agent.wait_for("fault.cleared")
    node.spec_path.unlink()
    await agent.wait_for("spec.restored")
    node.agent_socket.unlink()
    await agent.wait_for("part.recovered", lambda f: f["part"] == "subscribers")


async def emptied(node: Node, agent: AgentProcess) -> None:
    """Let a pod come and go, and then the only device."""
    await node.listed(1)
    await admitted(node, "default/a", 1)
    await agent.wait_for("device.held", lambda f: f["device"]["holders"])
    await node.kubelet.remove("default/a")
    await agent.wait_for("device.freed", within=20.0)
    node.machine.pull(FIRST)
    await agent.wait_for("spec.removed", within=20.0)
    node.machine.plug(FIRST)


async def crowded(node: Node, agent: AgentProcess) -> None:
    """Let the kubelet say for a moment that a thousand pods hold one device."""
    server = node.kubelet.pod_resources
    assert server is not None
    honest, server.pods = server.pods, crowd  # type: ignore[method-assign]
    await agent.wait_for("device.held", lambda f: len(f["device"]["holders"]) > TWICE)
    server.pods = honest  # type: ignore[method-assign]


def crowd() -> list[podresources.PodResources]:
    """Answer as no kubelet would: a thousand pods with the longest names hold one device."""
    return [
        podresources.PodResources(
            name=f"{number}-{'p' * 240}",
            namespace="n" * 63,
            containers=[
                podresources.ContainerResources(
                    name="c" * 63,
                    devices=[
                        podresources.ContainerDevices(resource_name=RESOURCE, device_ids=[ONE])
                    ],
                )
            ],
        )
        for number in range(1000)
    ]


async def displaced(node: Node, log: Path) -> None:
    """Run another agent, under other stars, and take the plugin directory from under it."""
    await node.kubelet.stop()
    node.kubelet.socket.unlink()
    other = node.root / "other"
    (other / node.spec_path.name).mkdir(parents=True)  # which no write can replace
    flags = (
        *(flag for flag in node.flags() if not flag.startswith("--runtime.cdi-")),
        *FLAGS,
        f"--runtime.cdi-dir={other}",
        f"--runtime.cdi-search-dirs={other},{node.cdi_dir}",
    )
    agent = await AgentProcess.start(*flags, env=SECRETS, prefix=(*COPIED, str(log)))
    try:
        await agent.wait_for("plugin.waiting")
        await agent.wait_for("spec.refused")
        await node.kubelet.start()
        await agent.wait_for("plugin.registered")
        await asyncio.to_thread(shutil.rmtree, node.plugin_dir)
        assert await agent.wait(within=20.0) == 75
    finally:
        await agent.kill()


# --- what the reference promises ----------------------------------------------------------------

_KINDS: Final[Mapping[type, str]] = {str: "text", int: "integer", float: "number", bool: "boolean"}
UNSEEN: Final = frozenset(
    {
        "agent.crashed",  # these take a bug …
        "part.failed",
        "preference.failed",
        "web.failed",
        "device.moved",  # … these take luck, or a machine unlike this one
        "driver.unknown",
        "leftover.kept",
        "machine.unreadable",
        "monitor.unbounded",
        "sensor.absent",
    }
)


def documented_keys() -> dict[str, str]:
    """Read the tables of keys: by path, the kind of value."""
    rows = re.findall(
        r"^\| (text|texts|integer|number|boolean) \| (`[^|]+) \|",
        EVENTS_PAGE.read_text(),
        re.MULTILINE,
    )
    return {key: kind for kind, keys in rows for key in re.findall(r"`([^`]+)`", keys)}


def documented_levels() -> dict[str, str]:
    """Read the tables of events: by name, what is said of its level."""
    return dict(
        re.findall(r"^\| `([a-z.-]+)` \| ([^|]+) \|", EVENTS_PAGE.read_text(), re.MULTILINE)
    )


def flattened(value: object, path: str = "", kinds: str = "") -> Iterator[tuple[str, str, object]]:
    """Name every leaf, as a log stack does: through lists, and with a dot for each step."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flattened(item, f"{path}.{key}" if path else key, kinds)
    elif isinstance(value, list):
        for item in value:
            yield from flattened(item, path, "s")
    elif value is not None:
        yield path, _KINDS[type(value)] + kinds, value


# --- what holds for every line ------------------------------------------------------------------


def test_the_soak_was_one(soaked: Soaked) -> None:
    written = {event["message"] for event in soaked.events}
    assert set(documented_levels()) - written - UNSEEN == set()
    assert len(soaked.lines) > 500


def test_each_line_is_exactly_one_json_object_in_utf_8(soaked: Soaked) -> None:
    assert soaked.raw.endswith(b"\n")
    for line in soaked.lines:
        text = line.decode("utf-8", "strict")
        assert text.endswith("}\n"), text
        assert isinstance(json.loads(text, object_pairs_hook=without_twins), dict)
        assert not any(ord(character) < 0x20 for character in text[:-1])


def without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = Counter(name for name, _ in pairs)
    assert set(names.values()) <= {1}, f"a key twice: {names.most_common(1)}"
    return dict(pairs)


def test_no_line_is_longer_than_a_container_runtime_takes(soaked: Soaked) -> None:
    longest = max(soaked.lines, key=len)
    assert len(longest) <= LINE_BYTES, longest[:200]


def test_no_key_has_two_types_in_all_lines(soaked: Soaked) -> None:
    kinds: dict[str, set[str]] = defaultdict(set)
    examples: dict[tuple[str, str], str] = {}
    for event in soaked.events:
        for path, kind, value in flattened(event):
            kinds[path].add(kind)
            examples[path, kind] = f"{event['message']}: {value!r:.80}"
            for step in range(1, path.count(".") + 1):
                kinds[".".join(path.split(".")[:step])].add("object")
    doubtful = {
        path: [examples.get((path, kind), kind) for kind in found]
        for path, found in kinds.items()
        if len(found) > 1
    }
    assert doubtful == {}


def test_every_key_is_in_the_reference_and_has_the_type_it_says(soaked: Soaked) -> None:
    promised = documented_keys()
    assert len(promised) > 40
    for event in soaked.events:
        for path, kind, value in flattened(event):
            assert promised.get(path) == kind, (event["message"], path, kind, value)


def test_every_event_is_in_the_reference_with_its_level(soaked: Soaked) -> None:
    levels = documented_levels()
    for event in soaked.events:
        assert event["log.level"] in LEVELS
        if "log.logger" not in event:
            assert event["log.level"] in levels[event["message"]], event


def test_every_line_says_who_and_when(soaked: Soaked) -> None:
    before = soaked.started_at - timedelta(seconds=1)
    for event in soaked.events:
        assert event["service.name"] == "hailo-agent"
        assert event["service.version"]
        assert TIMESTAMP.fullmatch(event["@timestamp"])
        at = datetime.fromisoformat(event["@timestamp"])
        assert before <= at <= soaked.ended_at
    assert {event.get("k8s.node.name") for event in soaked.events} == {"node-7"}


def test_no_secret_of_the_environment_or_of_anybodys_files_is_in_the_log(soaked: Soaked) -> None:
    assert SECRET.encode() not in soaked.raw
    assert SECRET[-16:].encode() not in soaked.raw


def test_what_goes_on_being_wrong_is_said_once(soaked: Soaked) -> None:
    assert soaked.resyncs >= RESYNCS
    said = Counter(
        f"{event['message']} {condition(event)}"
        for event in soaked.standing
        if event["log.level"] != "debug"
    )
    assert {what: times for what, times in said.items() if times > TWICE} == {}
    assert sum(said.values()) > 10


def condition(event: Mapping[str, Any]) -> str:
    """Say what a line is about, whatever numbers are in it."""
    device, fault = event.get("device", {}), event.get("fault", {})
    about = [
        str(event.get("part", "")),
        str(event.get("resource", "")),
        str(device.get("id", "")),
        str(device.get("health", "")),
        *sorted(f["code"] for f in device.get("faults", ())),
        str(fault.get("code", "")),
        str(fault.get("subject", "")),
    ]
    return " ".join(filter(None, about))
