"""The names, attributes and bytes of Hailo's own driver, in containers that a real runtime makes.

This kernel has no class `hailo_chardev`, so the containers' `/sys` is the simulated machine's,
bound read-only, and its devnodes lie in the namespace's `/dev`: real nodes with real numbers, which
no kernel driver serves. Opening one therefore ends with ENXIO where the device cgroup lets it pass,
and with EPERM where it does not. What scans in there goes by libhailort's rule, no newline and all.
"""

import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from hailo_agent.sim.generations import HAILO_8, HAILO_10H
from hailo_agent.sim.machine import Machine, slot_address
from tests.e2e.runtime.engine import (
    CDI_DIR,
    LINKS_DIR,
    SPEC,
    Engine,
    Node,
    View,
    device_flags,
    digests_on_host,
    numbers,
    started,
)
from tests.e2e.site import Site, generate_spec, short_root, site, until

ENXIO, EPERM = "No such device or address", "Operation not permitted"
OLD, NEW = "4.23", "5.3"
"""Generations that live side by side: classes `hailo_chardev` and `hailo1x`."""
SCAN = (
    "nodes , entries hailo_chardev hailo1x"
    " , scan bare hailo_chardev board_location accelerator_type , scan bare hailo1x device_id"
)
EIGHTS = (slot_address(0), slot_address(1))
TEN = slot_address(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A machine with two Hailo-8 and a Hailo-10H, and an engine that has it for its own."""

    root: Path
    machine: Machine
    engine: Engine

    def nodes(self, *addresses: str) -> dict[str, tuple[int, int]]:
        """Tell path and number of the devnodes of these functions."""
        told = {}
        for address in addresses:
            number = self.machine.number(address)
            assert number is not None
            told[f"/dev/{self.machine.entry(address)}"] = number
        return told


def name(address: str) -> str:
    return f"pci-{address.replace(':', '-').replace('.', '-')}"


@pytest.fixture
def bench(rootfs: Path) -> Iterator[Bench]:
    with short_root() as root, standing(root, rootfs) as bench:
        yield bench


@contextmanager
def standing(root: Path, rootfs: Path) -> Iterator[Bench]:
    machine = Machine(root / "machine")
    try:
        for generation in (OLD, NEW):
            machine.load(generation)
        for address, pci_id in ((EIGHTS[0], HAILO_8), (EIGHTS[1], HAILO_8), (TEN, HAILO_10H)):
            machine.plug(address, pci_id=pci_id)
        furnish(machine)
        # The namespace has the machine's devnodes as its /dev, openable wherever they lie.
        setup = f"mount --bind {machine.dev} /dev\nmount -o remount,bind,dev,exec /dev"
        with started(rootfs, setup=setup, sys=machine.sys) as engine:
            yield Bench(root=root, machine=machine, engine=engine)
    finally:
        machine.close()


def furnish(machine: Machine) -> None:
    """Add what every program expects of a /dev, and what runc mounts onto in a /sys."""
    for device in ("null", "zero", "full", "random", "urandom", "tty"):
        path, here = machine.dev / device, Path("/dev", device).stat()
        os.mknod(path, stat.S_IFCHR | 0o666, here.st_rdev)
        path.chmod(0o666)
    (machine.dev / "fd").symlink_to("/proc/self/fd")
    (machine.dev / "shm").mkdir()
    (machine.sys / "fs/cgroup").mkdir(parents=True)


@asynccontextmanager
async def serving(bench: Bench, *flags: str) -> AsyncIterator[Site]:
    async with site(
        bench.root / "site",
        *where(bench),
        "--health.flap-window-seconds=0.01",
        "--health.recovery-seconds=0.01",
        *flags,
        prefix=bench.engine.prefix,
        cdi_dirs=("/etc/cdi", CDI_DIR),
        links_dir=LINKS_DIR,
        spec_path=bench.engine.seen(SPEC),
    ) as here:
        await here.is_ready()
        yield here


async def generate(bench: Bench) -> None:
    """Write the spec once: no agent runs, as where there is no Kubernetes."""
    await generate_spec(*where(bench), prefix=bench.engine.prefix)


def where(bench: Bench) -> tuple[str, ...]:
    """Tell the agent, and through it the runtime, where this machine's sysfs is."""
    return f"--host.sys={bench.machine.sys}", f"--runtime.host-sys={bench.machine.sys}"


def assert_scan(bench: Bench, view: View, *addresses: str) -> None:
    """See that libhailort would find these boards and no others, and could open them."""
    machine = bench.machine
    eights = {machine.entry(a) or "": a for a in addresses if a in EIGHTS}
    tens = {machine.entry(a) or "": a for a in addresses if a == TEN}
    assert numbers(view) == bench.nodes(*addresses)
    assert view.scans == {"hailo_chardev": 0, "hailo1x": 0}
    assert view.found.get("hailo_chardev", {}) == {e: (a, "0") for e, a in eights.items()}
    assert view.found.get("hailo1x", {}) == {e: (a,) for e, a in tens.items()}
    assert view.digests == {
        **digests_on_host(machine.sys, "hailo_chardev", sorted(eights)),
        **digests_on_host(machine.sys, "hailo1x", sorted(tens)),
    }


@pytest.mark.parametrize(
    ("asked", "addresses"),
    [
        pytest.param([name(EIGHTS[1])], [EIGHTS[1]], id="one Hailo-8"),
        pytest.param([name(TEN)], [TEN], id="one Hailo-10H"),
        pytest.param([name(a) for a in EIGHTS], EIGHTS, id="two of a kind"),
        pytest.param(["all"], [*EIGHTS, TEN], id="all"),
        pytest.param([name(TEN), name(TEN), "all"], [*EIGHTS, TEN], id="all, and one by name"),
    ],
)
async def test_libhailort_finds_what_was_granted(
    bench: Bench, asked: list[str], addresses: list[str]
) -> None:
    await generate(bench)
    view = await bench.engine.look(*device_flags(asked), inside=SCAN)
    assert_scan(bench, view, *addresses)


async def test_a_pod_with_two_resources_finds_a_board_of_each(bench: Bench) -> None:
    names = '--resource.names={"hailo-8":"hailo.ai/hailo-8","hailo-10h":"hailo.ai/hailo-10h"}'
    async with serving(bench, names) as here:
        for resource, count in (("hailo.ai/hailo-8", 2), ("hailo.ai/hailo-10h", 1)):
            await until(lambda r=resource, n=count: here.kubelet.resource(r).allocatable == n)
        pod = await here.kubelet.admit("ns/pod", {"hailo.ai/hailo-8": 1, "hailo.ai/hailo-10h": 1})
        flags = [f"--device={name}" for name in pod.cdi_devices]
        assert len(flags) == 2
        view = await bench.engine.look(*flags, inside=SCAN)
    [eight] = (a for a in EIGHTS if name(a) in pod.device_ids["hailo.ai/hailo-8"])
    assert_scan(bench, view, eight, TEN)


async def test_the_mask_is_what_makes_libhailort_work(bench: Bench) -> None:
    """The control: unmasked, a scan lists boards that cannot be opened, or fails altogether."""
    engine, machine = bench.engine, bench.machine
    here = f"/dev/{machine.entry(EIGHTS[0])}"
    await generate(bench)
    plain = await engine.look(f"--device={here}", inside=SCAN)
    assert numbers(plain) == bench.nodes(EIGHTS[0])
    assert plain.found["hailo_chardev"].keys() == {machine.entry(a) for a in EIGHTS}

    # One entry is bad, as where one container's mount point shows in another's class.
    machine.litter("empty-entry", OLD)
    assert (await engine.look(f"--device={here}", inside=SCAN)).scans["hailo_chardev"] == 85
    masked = await engine.look(*device_flags([name(EIGHTS[0])]), inside=SCAN)
    assert_scan(bench, masked, EIGHTS[0])


async def test_the_device_cgroup_knows_the_number_and_not_the_name(bench: Bench) -> None:
    (granted, (major, minor)), (_, (_, other)) = bench.nodes(*EIGHTS).items()
    await generate(bench)
    view = await bench.engine.look(
        "--cap-add=mknod",
        *device_flags([name(EIGHTS[0])]),
        inside=f"make /dev/same {major} {minor} , make /dev/other {major} {other}"
        f" , open {granted} /dev/same /dev/other",
    )
    assert view.refused == {granted: ENXIO, "/dev/same": ENXIO, "/dev/other": EPERM}


async def test_a_node_that_is_roots_alone_reaches_a_container_that_is_not_root(
    bench: Bench,
) -> None:
    # Driver 5.3 comes without a udev rule. CDI sets the owner, where a device spec copies the mode.
    node = f"/dev/{bench.machine.entry(TEN)}"
    devnode = bench.machine.devnode(TEN)
    assert devnode is not None
    assert devnode.stat().st_mode & 0o777 == 0o600
    look, user = f"nodes , open {node}", "--user=1000:1001"
    await generate(bench)
    by_name = await bench.engine.look(user, *device_flags([name(TEN)]), inside=look)
    by_path = await bench.engine.look(user, f"--device={node}", inside=look)
    assert by_name.nodes == {node: Node(number=bench.nodes(TEN)[node], owner=(1000, 1001))}
    assert by_name.refused == {node: ENXIO}
    assert by_path.refused == {node: "Permission denied"}


async def test_after_a_driver_reload_the_next_container_gets_the_new_number(bench: Bench) -> None:
    engine, machine = bench.engine, bench.machine
    flags, node = device_flags([name(EIGHTS[0])]), f"/dev/{machine.entry(EIGHTS[0])}"
    look = f"{SCAN} , open {node}"
    async with serving(bench) as here:
        first = await engine.look(*flags, inside=look)
        before, published = machine.number(EIGHTS[0]), here.spec_path.stat().st_ino
        machine.reload(OLD)
        after = machine.number(EIGHTS[0])
        assert before is not None
        assert after is not None
        assert before[0] != after[0]
        # Readers may keep the old number until the file is another one, equal text or not.
        await until(
            lambda: (
                name(EIGHTS[0]) in here.specified() and here.spec_path.stat().st_ino != published
            )
        )
        second = await engine.look(
            "--cap-add=mknod",
            *flags,
            inside=f"{look} , make /dev/before {before[0]} {before[1]} , open /dev/before",
        )
    assert first.nodes[node].number == before
    assert first.refused == {node: ENXIO}
    assert second.nodes[node].number == after
    assert second.scans == {"hailo_chardev": 0, "hailo1x": 0}
    assert second.refused == {node: ENXIO, "/dev/before": EPERM}


async def test_an_index_that_moves_takes_its_container_along(bench: Bench) -> None:
    """`hailo0` and `hailo1` change places: the name of a device still leads to its board."""
    engine, machine = bench.engine, bench.machine
    async with serving(bench) as here:
        before = machine.entry(EIGHTS[0])
        machine.swap_minors(*EIGHTS)
        assert machine.entry(EIGHTS[0]) != before
        spec = here.spec_path
        await until(lambda: f"/dev/{before}" not in device_nodes(spec, name(EIGHTS[0])))
        view = await engine.look(*device_flags([name(EIGHTS[0])]), inside=SCAN)
    assert_scan(bench, view, EIGHTS[0])


def device_nodes(spec: Path, device: str) -> set[str]:
    """Tell which nodes the spec gives to a device."""
    for listed in orjson.loads(spec.read_bytes())["devices"]:
        if listed["name"] == device:
            return {node["path"] for node in listed["containerEdits"]["deviceNodes"]}
    return set()
