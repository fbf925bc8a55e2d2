"""A device of the machine that `simulate --machine` keeps, in a container of a real runtime.

As in the demo on a real cluster: `/run` is a tmpfs mounted `nodev`, the machine is kept below
`/run/hailo-agent` by a process that may do nothing but mknod, and the kernel has none of Hailo's
classes.
"""

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from hailo_agent.sim.node import RESOURCE
from tests.e2e.runtime.engine import CDI_DIR, LINKS_DIR, SPEC, Engine
from tests.e2e.runtime.test_plain_devices import plain_flags
from tests.e2e.site import Site, short_root, site, until

MACHINE: Final = "/run/hailo-agent/machine"
NULL: Final = (1, 3)
BY_PATH: Final = "--runtime.delivery=devicespec"
ONLY_MKNOD: Final = ("setpriv", "--inh-caps=-all", "--bounding-set=-all,+mknod")
RUN_WITH_NODES: Final = "--tmpfs=/run:rw,dev"
"""Podman alone mounts a tmpfs onto the `/run` of a container, in which no node could be opened."""
DEVICES: Final = frozenset({"pci-0000-01-00-0", "pci-0000-02-00-0"})


async def simulate(engine: Engine, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *engine.prefix,
        *ONLY_MKNOD,
        *(sys.executable, "-m", "hailo_agent", "simulate", f"--machine={MACHINE}", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def by_hand(engine: Engine, *words: str) -> None:
    process = await simulate(engine, *words)
    out, _ = await process.communicate()
    assert process.returncode == 0, out


@asynccontextmanager
async def kept(engine: Engine) -> AsyncIterator[None]:
    """Have the machine for the length of the block, and see that nothing of it remains."""
    process = await simulate(engine)
    assert process.stdout is not None
    try:
        said = await process.stdout.readline()
        assert b"the machine is" in said, said + await process.stdout.read()
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        out, _ = await process.communicate()
    assert process.returncode == 0, out
    assert not engine.seen(MACHINE).exists()


@asynccontextmanager
async def serving(engine: Engine, *flags: str) -> AsyncIterator[Site]:
    with short_root() as root:
        async with site(
            root,
            f"--host.dev={MACHINE}/dev",
            f"--host.sys={MACHINE}/sys",
            f"--runtime.host-dev={MACHINE}/dev",
            f"--runtime.host-sys={MACHINE}/sys",
            "--health.queries=off",
            *flags,
            prefix=engine.prefix,
            cdi_dirs=("/etc/cdi", CDI_DIR),
            links_dir=LINKS_DIR,
            spec_path=engine.seen(SPEC),
        ) as here:
            await here.is_ready()
            await here.lists(DEVICES)
            yield here


async def test_a_container_gets_the_device_that_it_was_granted(engine: Engine) -> None:
    async with kept(engine), serving(engine, BY_PATH) as here:
        pod = await here.kubelet.admit("ns/pod", {RESOURCE: 1})
        [device] = pod.devices
        node = device.container_path
        view = await engine.look(RUN_WITH_NODES, *plain_flags(pod), inside=f"open {node}")
        assert view.opened == {node}, view.refused
        found = engine.seen(f"{MACHINE}/dev/hailo0").lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == NULL
        assert not engine.seen(SPEC).exists()


async def test_a_device_that_was_pulled_is_nobodys_until_it_is_plugged_in_again(
    engine: Engine,
) -> None:
    async with kept(engine), serving(engine, BY_PATH) as here:
        pod = await here.kubelet.admit("ns/pod", {RESOURCE: 2})
        await by_hand(engine, "pull", "hailo0")
        await here.lists(DEVICES - {"pci-0000-01-00-0"})
        links = engine.seen(LINKS_DIR)
        await until(lambda: {link.name for link in links.iterdir()} == {"pci-0000-02-00-0"})
        restarted = await engine.run(
            *engine.container(RUN_WITH_NODES, *plain_flags(pod), inside="nodes")
        )
        assert restarted.code != 0
        assert "pci-0000-01-00-0" in restarted.err
        await by_hand(engine, "plug")
        await here.lists(DEVICES)
        nodes = {device.container_path for device in pod.devices}
        view = await engine.look(
            RUN_WITH_NODES, *plain_flags(pod), inside=f"open {' '.join(nodes)}"
        )
        assert view.opened == nodes
        assert len(nodes) == 2


async def test_by_cdi_no_container_would_start_where_the_kernel_lacks_the_class(
    engine: Engine,
) -> None:
    """The control, for the demo's `runtime.delivery`: sysfs lets nobody make a mount point."""
    if "hailo_chardev" in os.listdir("/sys/class"):  # noqa: PTH208 - names
        pytest.skip("this kernel has the class")
    async with kept(engine), serving(engine) as here:
        pod = await here.kubelet.admit("ns/pod", {RESOURCE: 1})
        [name] = pod.cdi_devices
        tried = await engine.run(*engine.container(f"--device={name}", inside="nodes"))
        assert tried.code != 0
        assert "/sys/class/hailo_chardev" in tried.err
