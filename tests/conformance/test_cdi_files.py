"""Conformance G, statements 69 to 76: the CDI spec on disk, as runtimes meet it.

The agent is `hailo-agent run` as its own process. Its file is watched with bare inotify, read by a
reader that shares no code with the writer, and tried out by the simulated runtime, whose cache
refreshes, and goes stale, as the real one does. Each docstring restates its statement.
"""

import asyncio
import ctypes
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from grpclib.client import Channel

from hailo_agent.runtime import reader
from hailo_agent.runtime.reader import SpecInvalid
from hailo_agent.sim import inotify
from hailo_agent.sim.inotify import Inotify
from hailo_agent.sim.machine import SOC, slot_address
from hailo_agent.sim.node import RESOURCE, AgentProcess, Node, temporary_root
from hailo_agent.sim.runtime import ContainerView, Runtime
from hailo_agent.wire import agentapi

HAILO_10H: Final = "1e60:45c4"
A, B, C, D = (slot_address(number) for number in range(4))
SPEC: Final = "hailo.ai-npu.json"
UMASK_077: Final = ("sh", "-c", 'umask 077 && exec "$@"', "sh")

# Verdicts follow the evidence at once, for tests that are about something else than patience.
NO_PATIENCE: Final = ("--health.flap-window-seconds=0.01", "--health.recovery-seconds=0.01")


def device_id(address: str) -> str:
    return "pci-" + re.sub(r"[:.]", "-", address)


def name(address: str) -> str:
    return f"{RESOURCE}={device_id(address)}"


@asynccontextmanager
async def a_node(*slots: str, generation: str = "4.23") -> AsyncIterator[Node]:
    """A node with one kernel driver loaded and these slots taken."""
    async with temporary_root() as root, Node.build(root) as node:
        node.machine.load(generation)
        for slot in slots:
            node.machine.plug(slot)
        yield node


@asynccontextmanager
async def an_agent(
    node: Node, *flags: str, prefix: tuple[str, ...] = (), search: tuple[Path, ...] = ()
) -> AsyncIterator[AgentProcess]:
    """An agent that is started by another command, or told of more directories to search."""
    first = [flag for flag in node.flags() if not flag.startswith("--runtime.cdi-search-dirs=")]
    search_flag = f"--runtime.cdi-search-dirs={','.join(map(str, (*search, node.cdi_dir)))}"
    agent = await AgentProcess.start(*first, search_flag, *flags, prefix=prefix)
    try:
        yield agent
    finally:
        await agent.stop()


@asynccontextmanager
async def watching(node: Node) -> AsyncIterator[agentapi.DeviceEventsStub]:
    channel = Channel(path=str(node.agent_socket))
    try:
        yield agentapi.DeviceEventsStub(channel)
    finally:
        channel.close()


async def known(
    node: Node, holds: Callable[[agentapi.Inventory], object], *, within: float = 10.0
) -> agentapi.Inventory:
    """What the agent holds to be true, as soon as it satisfies."""
    async with watching(node) as stub, asyncio.timeout(within):
        async for _ in stub.watch(agentapi.WatchRequest()):
            inventory = (await stub.get_inventory(agentapi.GetInventoryRequest())).inventory
            assert inventory is not None
            if holds(inventory):
                return inventory
    raise AssertionError("the agent ended its stream")


async def eventually(holds: Callable[[], object], *, within: float = 10.0) -> None:
    """Wait for something on disk, which sends no event that is not itself under test."""
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def health(node: Node) -> dict[str, str]:
    return node.kubelet.resource(RESOURCE).health


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def injected(node: Node, *slots: str) -> ContainerView:
    """A container that a runtime makes which has just come up."""
    with Runtime([node.cdi_dir], root=node.machine.root) as fresh:
        return fresh.inject([name(slot) for slot in slots])


def resolves(node: Node, *slots: str) -> bool:
    """Whether a runtime that has just come up would inject these devices, and with true numbers."""
    with Runtime([node.cdi_dir], root=node.machine.root) as fresh:
        return set(fresh.devices) >= {name(slot) for slot in slots} and all(
            made.number == node.machine.number(slot)
            for slot in slots
            for made in fresh.inject([name(slot)]).nodes.values()
        )


# --- 69: how the file is written ---


@dataclass
class Deeds:
    """What others than this test do in a directory."""

    directory: Path
    seen: list[inotify.Event] = field(default_factory=list)
    _inotify: Inotify = field(default_factory=Inotify)

    def __post_init__(self) -> None:
        self._inotify.add(self.directory)

    def collect(self) -> list[inotify.Event]:
        self.seen += self._inotify.read()
        return self.seen

    @contextmanager
    def passing_over(self) -> Iterator[None]:
        """Do something in the directory oneself; the agent takes longer to notice."""
        self.collect()
        yield
        list(self._inotify.read())

    def close(self) -> None:
        self._inotify.close()


async def test_69_the_spec_is_written_beside_its_place_and_renamed_into_it() -> None:
    """Always a temporary file in the same directory, not named .json or .yaml, and a rename.

    Readers refresh on renames and not on creations, and read whatever ends in .json, also half of
    it. The mode is 0644 whatever the umask, for those who look without being root.
    """
    async with a_node(A) as node:
        deeds = Deeds(node.cdi_dir)
        victim = node.root / "victim"
        victim.write_text("keep me")
        try:
            async with an_agent(node, prefix=UMASK_077) as agent:
                writes = 0

                async def written() -> None:
                    nonlocal writes
                    writes += 1
                    await eventually(lambda: _writes(agent) >= writes)
                    assert mode(node.spec_path) == 0o644
                    assert not node.spec_path.is_symlink()

                await written()
                node.machine.plug(B)
                await written()
                node.machine.pull(B)
                await written()
                with deeds.passing_over():
                    node.spec_path.unlink()
                await written()
                with deeds.passing_over():
                    node.spec_path.write_text("{}")
                await written()
                with deeds.passing_over():
                    node.spec_path.unlink()
                    node.spec_path.symlink_to(victim)
                await written()
                assert resolves(node, A)
            assert _writes(agent) == writes
            assert [path.name for path in node.cdi_dir.iterdir()] == [SPEC]
            assert victim.read_text() == "keep me"
            _assert_renamed_into_place(deeds.collect(), writes)
        finally:
            deeds.close()


def _writes(agent: AgentProcess) -> int:
    return len(agent.events("spec.replaced")) + len(agent.events("spec.restored"))


def _assert_renamed_into_place(events: list[inotify.Event], writes: int) -> None:
    made = {event.name for event in events if event.mask & inotify.CREATE}
    assert len(made) == writes
    assert not any(temporary.endswith((".json", ".yaml")) for temporary in made)
    arrivals = [at for at, event in enumerate(events) if event.mask & inotify.MOVED_TO]
    assert [events[at].name for at in arrivals] == [SPEC] * writes
    for at in arrivals:
        assert events[at - 1].mask & inotify.MOVED_FROM
        assert events[at - 1].name in made
    touched = {event.name for event in events if event.mask & (inotify.MODIFY | inotify.ATTRIB)}
    assert touched <= made, "nothing is ever written, or changed, in place"
    assert not any(event.mask & inotify.DELETE for event in events)


@dataclass
class Reader:
    """Somebody who reads the spec all the time, and minds what he reads."""

    path: Path
    reads: int = 0
    texts: set[bytes] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        while not self.stop.is_set():
            try:
                text = self.path.read_bytes()
            except OSError as error:
                self.complaints.append(str(error))
                continue
            self.reads += 1
            if text not in self.texts:
                self.texts.add(text)
                try:
                    reader.read(text, name=self.path.name)
                except SpecInvalid as invalid:
                    self.complaints.append(f"{invalid}: {text!r}")


async def test_69_no_reader_ever_sees_half_a_spec_or_none(
    record_property: Callable[[str, object], None],
) -> None:
    """Ten thousand reads while the spec is rewritten all the time find a whole one each time."""
    async with a_node(A, B, C, D) as node, node.agent(*NO_PATIENCE) as agent:
        await node.listed(4)  # D stays: without any device there is no spec, and rightly so
        readers = [Reader(node.spec_path), Reader(node.spec_path)]
        async with AsyncExitStack() as stack:
            for one in readers:
                thread = asyncio.create_task(asyncio.to_thread(one.read))
                stack.push_async_callback(asyncio.wait, [thread])
                stack.callback(one.stop.set)
            async with asyncio.timeout(20):
                for number in itertools.count():
                    if sum(one.reads for one in readers) >= 10_000 and _writes(agent) >= 25:
                        break
                    if number % 2:
                        node.machine.plug(C)
                    else:
                        node.machine.pull(C)
                    if number % 4 < 2:
                        node.machine.swap_minors(A, B)
                    await asyncio.sleep(0.03)  # time for a look, and for the readers
        record_property("reads", sum(one.reads for one in readers))
        record_property("writes", _writes(agent))
        assert [one.complaints for one in readers] == [[], []]
        assert len(readers[0].texts | readers[1].texts) >= 3


# --- 70, 71, 72 and 76: what is in the file ---


@dataclass(frozen=True)
class Written:
    """A spec as some machine got it."""

    text: bytes
    ids: frozenset[str]
    paths: dict[str, bool]
    """Device paths, and whether there is a device node, not a link, at each."""
    files: tuple[str, ...]

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.text)
        return document


MACHINES: Final = {
    "4.17": (("4.17",), {A: "1e60:2864", B: HAILO_10H, "10000:e1:1f.7": "1e60:2864"}),
    "4.23 and 5.3": (("4.23", "5.3"), {A: "1e60:2864", B: HAILO_10H}),
    "integrated and 5.3": (("integrated-5.2", "5.3"), {A: HAILO_10H}),
}


async def _written(generations: tuple[str, ...], slots: dict[str, str]) -> Written:
    async with temporary_root() as root, Node.build(root) as node:
        for generation in generations:
            node.machine.load(generation)
        for slot, pci_id in slots.items():
            node.machine.plug(slot, pci_id=pci_id)
        everything = frozenset(node.machine.entries)
        async with node.agent():
            await node.listed(len(everything), within=30)
            ids = {slot: device_id(slot) for slot in everything - {SOC}}
            if SOC in everything:
                (ids[SOC],) = health(node).keys() - set(ids.values())
            with Runtime([node.cdi_dir], root=node.machine.root) as runtime:
                assert runtime.errors == {}
                for slot in everything:
                    view = runtime.inject([f"{RESOURCE}={ids[slot]}"])
                    assert [made.number for made in view.nodes.values()] == [
                        node.machine.number(slot)
                    ]
            text = node.spec_path.read_bytes()
        paths = re.findall(rb'"path": ?"([^"]+)"', text)
        return Written(
            text=text,
            ids=frozenset(ids.values()),
            paths={
                path: stat.S_ISCHR((node.machine.root / path.lstrip("/")).lstat().st_mode)
                for path in map(bytes.decode, paths)
            },
            files=tuple(sorted(path.name for path in node.cdi_dir.iterdir())),
        )


@pytest.fixture(scope="module")
def specs() -> dict[str, Written]:
    """The specs of one machine for each way that drivers have named things."""

    async def everywhere() -> list[Written]:
        return await asyncio.gather(*(_written(*machine) for machine in MACHINES.values()))

    return dict(zip(MACHINES, asyncio.run(everywhere()), strict=True))


@pytest.mark.parametrize("machine", MACHINES)
def test_70_the_version_is_the_lowest_that_the_content_needs(
    specs: dict[str, Written], machine: str
) -> None:
    """Readers refuse a version that they do not know: containerd 1.7.0 knows nothing above 0.5.0.

    They also refuse a version below what the content needs, so the lowest is one that cannot be
    lowered.
    """
    spec = specs[machine]
    written = spec.document["cdiVersion"]
    assert written in reader.VERSIONS
    assert reader.read(spec.text, name=SPEC, newest="0.5.0").version == written
    for lower in reader.VERSIONS[: reader.VERSIONS.index(written)]:
        text = json.dumps(spec.document | {"cdiVersion": lower}).encode()
        with pytest.raises(SpecInvalid, match=re.escape(written)):
            reader.read(text, name=SPEC)


@pytest.mark.parametrize("machine", MACHINES)
def test_71_names_are_spelled_by_the_grammar_and_defined_once(
    specs: dict[str, Written], machine: str
) -> None:
    """Vendor, class and device names are what every reader takes, of whatever device.

    A name that two files define is removed by readers from both. The class is kept apart from the
    one that claims will have.
    """
    spec = specs[machine]
    assert spec.files == (SPEC,)
    vendor, _, class_ = spec.document["kind"].partition("/")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", vendor)
    assert len(vendor) <= 253
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?", class_), "no dot before 0.6.0"
    assert len(class_) <= 63
    assert class_ != "claim"
    assert f"{vendor}-{class_}.json" == SPEC
    names = [device["name"] for device in spec.document["devices"]]
    assert len(set(names)) == len(names)
    assert set(names) == {"all", *spec.ids}
    for device in names:
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_.:-]*[A-Za-z0-9])?", device)
        assert reader.split_name(f"{RESOURCE}={device}") == (vendor, class_, device)


KEYS: Final = {
    "document": {"cdiVersion", "kind", "annotations", "devices", "containerEdits"},
    "device": {"name", "annotations", "containerEdits"},
    "edits": {"env", "deviceNodes", "hooks", "mounts"},
    "node": {
        *("path", "hostPath", "type", "major", "minor"),
        *("fileMode", "permissions", "uid", "gid"),
    },
    "mount": {"hostPath", "containerPath", "options", "type"},
}


@pytest.mark.parametrize("machine", MACHINES)
def test_72_the_content_passes_the_checks_of_a_strict_reader(
    specs: dict[str, Written], machine: str
) -> None:
    """Nothing unknown, nothing empty, at least one device, and paths that are device nodes.

    One unknown key has the whole file refused; a path that is a link is no device node for a
    runtime; permissions beyond rwm are invalid and beyond rw are not needed.
    """
    spec = specs[machine]
    reader.read(spec.text, name=SPEC)  # raises, and names everything that is wrong
    document = spec.document
    assert document.keys() <= KEYS["document"]
    assert document["devices"]
    edits = [device["containerEdits"] for device in document["devices"]]
    for device in document["devices"]:
        assert device.keys() <= KEYS["device"]
        assert device["containerEdits"]["deviceNodes"]
    for each in [document["containerEdits"], *edits]:
        assert each
        assert each.keys() <= KEYS["edits"]
        assert all(each.values()), "no list is empty"
        assert "env" not in each
        for node in each.get("deviceNodes", []):
            assert node.keys() <= KEYS["node"]
            assert node["permissions"] == "rw"
        for mount in each.get("mounts", []):
            assert mount.keys() <= KEYS["mount"]
            assert mount["hostPath"]
            assert mount["containerPath"].startswith("/sys/class/")
    assert len(spec.paths) == len(spec.ids)
    assert all(spec.paths.values())


async def test_72_a_devnode_that_is_only_a_link_leaves_the_spec() -> None:
    """A link is lstat()ed by runtimes, and refused: the spec names device nodes alone."""
    async with a_node(A, B) as node, node.agent():
        await node.listed(2)
        entry = node.machine.entry(A)
        node.machine.break_node(A, "symlink")
        await node.listed(1, capacity=2)
        await eventually(lambda: f"/dev/{entry}" not in node.spec_path.read_text())
        assert injected(node, B).nodes.keys() == {f"/dev/{node.machine.entry(B)}"}


async def test_76_the_same_device_twice_is_the_same_as_once() -> None:
    """Some runtimes inject a name that comes twice two times: it must not matter.

    Nodes are replaced by path and mounts by place; hooks would run twice, so there are none.
    """
    async with a_node(A, B) as node, node.agent():
        await node.listed(2)
        both = {"root": node.machine.root, "drops_duplicates": False}
        with Runtime([node.cdi_dir], **both) as runtime:  # type: ignore[arg-type]
            once = runtime.inject([name(A), name(B)])
            twice = runtime.inject(
                [name(A), name(B), name(A), f"{RESOURCE}=all", name(B), name(B)],
                annotations={"cdi.k8s.io/x_y": name(A)},
            )
        assert twice.nodes == once.nodes
        assert set(twice.mounts) == set(once.mounts)
        assert len(twice.mounts) == len(once.mounts)
        assert set(twice.cgroup) == set(once.cgroup)
        assert twice.env == once.env
        assert twice.hooks == once.hooks == ()
        assert twice.class_entries("hailo_chardev") == once.class_entries("hailo_chardev")


# --- 73: device numbers ---


async def test_73_new_numbers_behind_an_equal_text_are_published_by_a_rename() -> None:
    """A reloaded driver has another major; the text may stay as it is, but not the file.

    Runtimes remember the number that they found until the file comes anew: this one would hand out
    a number that is dead, or another driver's.
    """
    blind = ("--host.inotify=false", "--host.uevents=false", "--host.resync-seconds=3600")
    async with a_node(A) as node, node.agent(*blind) as agent:
        if not node.machine.numbered:
            pytest.skip("device nodes can have no numbers here: run as root")
        await node.listed(1)
        await agent.wait_for("plugin.registered")
        before = (node.spec_path.read_bytes(), node.spec_path.lstat().st_ino)
        (old,) = [made.number for made in node.runtime.inject([name(A)]).nodes.values()]
        node.machine.reload("4.23", major=old[0] - 7)
        (stale,) = [made.number for made in node.runtime.inject([name(A)]).nodes.values()]
        assert stale == old != node.machine.number(A), "a runtime that does remember"
        writes = _writes(agent)
        agent.process.send_signal(signal.SIGHUP)
        await agent.wait_for("device.moved")
        assert _writes(agent) == writes + 1
        events = [line.event for line in agent.lines]
        assert events.index("device.moved") > len(events) - 1 - events[::-1].index("spec.replaced")
        after = (node.spec_path.read_bytes(), node.spec_path.lstat().st_ino)
        assert after[0] == before[0]
        assert after[1] != before[1]
        (new,) = [made.number for made in node.runtime.inject([name(A)]).nodes.values()]
        assert new == node.machine.number(A)
        assert health(node) == {device_id(A): "Healthy"}


async def test_73_a_reloaded_device_is_healthy_only_when_its_numbers_are_published() -> None:
    """Whoever hears that a device is Healthy again can start a container with it at once."""
    async with a_node(A, B) as node, node.agent(*NO_PATIENCE):
        if not node.machine.numbered:
            pytest.skip("device nodes can have no numbers here: run as root")
        await node.listed(2)
        node.runtime.inject([name(A), name(B)])  # remembers
        node.machine.unload("4.23")
        await node.listed(0, capacity=2)
        node.machine.load("4.23", major=300, order=(B, A))
        await node.kubelet.wait_for(lambda: "Healthy" in health(node).values(), within=10)
        for slot in (A, B):
            if health(node)[device_id(slot)] == "Healthy":
                (made,) = node.runtime.inject([name(slot)]).nodes.values()
                assert made.number == node.machine.number(slot)
                assert made.major == 300
        await node.listed(2)


async def test_73_new_numbers_that_cannot_be_published_keep_the_device_unhealthy() -> None:
    """While the file cannot be renamed into place, runtimes go on with the old number."""
    async with a_node(A) as node:
        if not node.machine.numbered:
            pytest.skip("device nodes can have no numbers here: run as root")
        with filesystem(node.cdi_dir), Runtime([node.cdi_dir], root=node.machine.root) as runtime:
            async with node.agent(*NO_PATIENCE) as agent:
                await node.listed(1)
                runtime.inject([name(A)])
                old = node.machine.number(A)
                remount(node.cdi_dir, "ro")
                node.machine.unload("4.23")
                await node.listed(0, capacity=1)
                node.machine.load("4.23", major=300)
                said = await known(node, lambda known: known.devices[0].major == 300)
                (made,) = runtime.inject([name(A)]).nodes.values()
                assert made.number == old, "a runtime that does remember"
                assert said.devices[0].health == agentapi.Health.UNHEALTHY
                assert said.devices[0].faults[0].code == "spec.unwritten"
                remount(node.cdi_dir, "rw")
                await agent.wait_for("device.recovered", within=15)
                await node.listed(1)
                (made,) = runtime.inject([name(A)]).nodes.values()
                assert made.number == node.machine.number(A)


# --- 74: a directory that goes ---


async def _comes_back(*flags: str, replaced: bool = True) -> None:
    """Take the directory away in every way; `replaced`: also by one that is empty."""
    async with a_node(A, B) as node:
        shutil.rmtree(node.cdi_dir)
        async with node.agent(*flags) as agent:
            await node.listed(2, within=30)
            assert resolves(node, A, B), "the directory was missing at the start"

            async def back(*slots: str) -> None:
                await eventually(lambda: node.spec_path.exists() and resolves(node, *slots))
                assert mode(node.cdi_dir) == 0o755
                assert mode(node.spec_path) == 0o644

            if replaced:
                node.spec_path.unlink()
                await back(A, B)
                await agent.wait_for("spec.restored")  # and it is said
            shutil.rmtree(node.cdi_dir)
            await back(A, B)
            if replaced:
                node.cdi_dir.rename(node.root / "away")
                node.cdi_dir.mkdir()
                await back(A, B)
                # and the agent knows the directory that is there now
                node.machine.pull(B)
                await eventually(lambda: device_id(B) not in node.spec_path.read_text())
                node.spec_path.unlink()
                await back(A)
        said = {message.health[device_id(A)] for message in node.kubelet.messages}
        assert said == {"Healthy"}, "the kubelet need not know of it"


async def test_74_a_directory_that_is_removed_replaced_or_emptied_is_back_within_10_seconds() -> (
    None
):
    """/var/run/cdi is a tmpfs that cleaners like: directory and spec are made again, which is said.

    Also where inotify is not to be had, and also if the directory was never there.
    """
    async with asyncio.TaskGroup() as group:
        group.create_task(_comes_back())
        group.create_task(_comes_back("--host.inotify=false", replaced=False))


async def test_74_the_directory_has_mode_0755_whatever_the_umask() -> None:
    """Tools that do not run as root must be able to look inside."""
    async with a_node(A) as node:
        node.cdi_dir.rmdir()
        async with an_agent(node, prefix=UMASK_077):
            await node.listed(1)
            assert mode(node.spec_path) == 0o644
            assert mode(node.cdi_dir) == 0o755


# --- 74, the other side: a spec that cannot be written ---


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this test must be able to mount a tmpfs: {done.stderr.strip()}")


@contextmanager
def filesystem(directory: Path, size: str = "1m") -> Iterator[None]:
    """A filesystem of its own for a directory."""
    _mount("-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(directory))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def remount(directory: Path, option: str) -> None:
    _mount("-o", f"remount,{option}", str(directory))


@contextmanager
def read_only(node: Node) -> Iterator[None]:
    """A directory that is mounted read-only for a while."""
    remount(node.cdi_dir, "ro")
    yield
    remount(node.cdi_dir, "rw")


@contextmanager
def full(node: Node) -> Iterator[None]:
    """A disk that is full for a while."""
    filler = node.cdi_dir / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@contextmanager
def file_in_its_place(node: Node) -> Iterator[None]:
    """A file where the directory should be, without a moment in which there is nothing."""
    file = node.root / "file"
    file.touch()
    paths = (-100, os.fsencode(file), -100, os.fsencode(node.cdi_dir))  # AT_FDCWD
    assert ctypes.CDLL(None).renameat2(*paths, 2) == 0  # RENAME_EXCHANGE
    yield
    node.cdi_dir.unlink()


@contextmanager
def directory_in_its_place(node: Node) -> Iterator[None]:
    """A directory where the file should be."""
    node.spec_path.unlink()
    node.spec_path.mkdir()
    yield
    node.spec_path.rmdir()


TROUBLES: Final[tuple[tuple[Callable[[Node], Any], str, bool], ...]] = (
    (read_only, "mounted read-only", True),
    (full, "no space left", True),
    (file_in_its_place, "not a directory", False),
    (directory_in_its_place, "a directory stands in its place", False),
)
"""A trouble, the words for it, and whether what was written before is still there."""


async def _not_offered_until_written(
    trouble: Callable[[Node], Any], words: str, *, keeps: bool
) -> None:
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(a_node(A, B))
        if keeps:
            stack.enter_context(filesystem(node.cdi_dir, "16k"))
        agent = await stack.enter_async_context(node.agent(*NO_PATIENCE))
        await node.listed(2, within=30)
        before = agent.descriptors()
        seen = node.kubelet.message_count
        with trouble(node):
            node.machine.plug(C)
            refused = await agent.wait_for("spec.refused")
            assert refused.fields["log.level"] == "error"
            assert str(node.spec_path) in refused.fields["error"]["message"]
            assert words in refused.fields["error"]["message"]
            await node.listed(2 if keeps else 0, capacity=3)
            said = await known(node, lambda said: len(said.devices) == 3)
            faults = {device.id: device.faults for device in said.devices}
            assert [fault.code for fault in faults[device_id(C)]] == ["spec.unwritten"]
            assert words in faults[device_id(C)][0].message
            assert said.readiness is not None
            assert not said.readiness.ready
            assert any(words in part.reason for part in said.readiness.parts)
            # Let it try a few times more: it says so once, and keeps nothing open.
            await node.kubelet.quiet(1.0)
            assert len(agent.events("spec.refused")) == 1
        await node.listed(3, capacity=3, within=15)
        assert resolves(node, A, B, C)
        said = await known(node, lambda said: said.readiness and said.readiness.ready)
        verdicts = [message.health for message in list(node.kubelet.messages)[seen:]]
        assert next(v[device_id(C)] for v in verdicts if device_id(C) in v) == "Unhealthy"
        if keeps:
            assert {verdict[device_id(A)] for verdict in verdicts} == {"Healthy"}
        assert [path.name for path in node.cdi_dir.iterdir()] == [SPEC]
        await eventually(lambda: agent.descriptors() <= before + 2)  # a call may be under way


async def test_74_what_the_spec_does_not_cover_is_not_offered_until_it_can_be_written() -> None:
    """Read-only, full, or something in the way: no device is Healthy that runtimes cannot resolve.

    Those that the spec on disk covers stay. The log says why, once, readiness does, and it mends
    itself when it can.
    """
    async with asyncio.TaskGroup() as group:
        for trouble, words, keeps in TROUBLES:
            group.create_task(_not_offered_until_written(trouble, words, keeps=keeps))


# --- 75: other files ---


def spec_of(kind: str, *devices: str) -> str:
    edits = {"deviceNodes": [{"path": "/dev/null"}]}
    return json.dumps(
        {
            "cdiVersion": "0.3.0",
            "kind": kind,
            "devices": [{"name": device, "containerEdits": edits} for device in devices],
        }
    )


async def test_75_leftovers_of_ours_go_and_files_of_others_stay_as_they_are() -> None:
    """What an older configuration or a killed write left behind is removed at the start.

    Otherwise it would define our devices a second time, and readers remove those from both files.
    Nothing that somebody else wrote is touched.
    """
    async with a_node(A, B) as node:
        etc, opt = node.root / "etc-cdi", node.root / "opt-cdi"
        for directory in (etc, opt):
            directory.mkdir()
        ours = {
            etc / SPEC: spec_of("hailo.ai/npu", device_id(A), "all"),
            node.cdi_dir / f".{SPEC}.0badcafe.tmp": "{",
        }
        others = {
            opt / SPEC: spec_of("hailo.example/npu", device_id(A)),
            etc / "gpu.json": spec_of("vendor.example/gpu", device_id(A)),
            etc / "hailo.json": spec_of("hailo.ai/npu", "hailo0"),
            etc / "broken.json": '{"kind": "hailo.ai/npu"',
            etc / f".{SPEC}.0badcafe.tmp": "not in the directory that we write to",
            node.cdi_dir / "other.tmp": "{",
            node.cdi_dir / "README": "hailo.ai/npu",
        }
        for path, text in {**ours, **others}.items():
            path.write_text(text)
        (node.cdi_dir / "directory.json").mkdir()
        os.mkfifo(etc / "pipe.json")
        before = {path: path.lstat() for path in others}
        async with an_agent(node, search=(etc, opt)) as agent:
            await node.listed(2)
            await agent.wait_for("plugin.registered")
            removed = {Path(e.fields["spec"]["path"]) for e in agent.events("leftover.removed")}
            assert removed == set(ours)
            assert agent.events("fault.found") == []
        assert not any(path.exists() for path in ours)
        for path, text in others.items():
            assert path.read_text() == text
            now = path.lstat()
            assert (now.st_ino, now.st_mtime_ns) == (
                before[path].st_ino,
                before[path].st_mtime_ns,
            )
        assert (node.cdi_dir / "directory.json").is_dir()
        with Runtime([etc, opt, node.cdi_dir], root=node.machine.root) as runtime:
            assert set(runtime.devices) >= {name(A), name(B)}


async def test_75_a_device_that_another_file_defines_too_is_reported_with_both_paths() -> None:
    """Readers drop a name that is defined twice, or let one file hide the other: it must be known.

    Wherever the other file is, whenever it comes, and until it goes.
    """
    async with a_node(A, B) as node:
        etc = node.root / "etc-cdi"
        etc.mkdir()
        early, late = etc / "static.yaml", node.cdi_dir / "copy.json"
        early.write_text(spec_of("hailo.ai/npu", device_id(A), "mine"))
        async with an_agent(node, "--host.resync-seconds=0.5", search=(etc,)) as agent:
            await node.listed(2)
            late.write_text(spec_of("hailo.ai/npu", device_id(B), "all"))
            for path, device in (
                (early, device_id(A)),
                (late, device_id(B)),
                (late, "all"),
            ):
                found = await agent.wait_for(
                    "fault.found",
                    lambda line, path=path, device=device: (  # type: ignore[misc]
                        str(path) in line["fault"]["subject"]
                        and line["fault"]["message"].startswith(f"CDI device {device} ")
                    ),
                )
                fault = found.fields["fault"]
                assert fault["code"] == "spec.conflict"
                assert str(path) in fault["message"]
                assert str(node.spec_path) in fault["message"]
                assert str(path) in fault["remedy"]
            assert len(agent.events("fault.found")) == 3
            with Runtime([etc, node.cdi_dir], root=node.machine.root) as runtime:
                assert name(B) not in runtime.devices, "so much for what readers do"
            late.unlink()
            early.unlink()
            await known(node, lambda said: not said.faults)
            await agent.wait_for("fault.cleared", lambda _: len(agent.events("fault.cleared")) == 3)
            with Runtime([etc, node.cdi_dir], root=node.machine.root) as runtime:
                assert set(runtime.devices) >= {name(A), name(B)}
