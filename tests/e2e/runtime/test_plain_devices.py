"""Delivery by device spec: what a container gets where the runtime knows nothing of CDI.

The kubelet then hands over paths, and podman takes them as `--device HOST:CONTAINER:ACCESS`, in the
way of every runtime. The device cgroup is as tight as with CDI; the class directory is not masked,
and the node keeps the mode it has on the host.
"""

from collections.abc import Sequence
from pathlib import Path

from hailo_agent.sim.kubelet import Container
from hailo_agent.sim.node import RESOURCE
from tests.e2e.consoles import Consoles, device_id, entry
from tests.e2e.runtime.engine import SPEC, Engine, Node, numbers
from tests.e2e.runtime.test_granted_devices import EPERM, serving
from tests.e2e.site import until

DEVICE_SPEC = "--runtime.delivery=devicespec"
NO_MEM = "--devices.deny=soc-virtual-mem-*"


def plain_flags(container: Container) -> list[str]:
    return [
        f"--device={device.host_path}:{device.container_path}:{device.permissions}"
        for device in container.devices
    ]


def granted(container: Container) -> dict[str, tuple[int, int]]:
    """Tell the nodes that this grant is about, and their numbers."""
    entries = [d.removeprefix("soc-virtual-vc-") for d in container.device_ids[RESOURCE]]
    return {f"/dev/{name}": (7, int(name.removeprefix("vcs"))) for name in entries}


def entries_on_host(class_name: str) -> set[str]:
    return {path.name for path in Path("/sys/class", class_name).iterdir()}


def plug(consoles: Consoles, wanted: Sequence[int]) -> None:
    for number in wanted:
        consoles.add(number)


async def test_a_container_has_the_nodes_it_was_granted_and_no_others(
    engine: Engine, consoles: Consoles
) -> None:
    plug(consoles, (20, 21, 22))
    async with serving(engine, DEVICE_SPEC, NO_MEM) as here:
        await here.lists(consoles.device_ids())
        for pod, count in (("ns/one", 1), ("ns/two", 2)):
            container = await here.kubelet.admit(pod, {RESOURCE: count})
            assert len(granted(container)) == count
            assert not container.cdi_devices
            nodes = " ".join(granted(container))
            view = await engine.look(*plain_flags(container), inside=f"nodes , open {nodes}")
            assert numbers(view) == granted(container)
            assert view.opened == granted(container).keys()
        assert not engine.seen(SPEC).exists()


async def test_another_number_is_refused_by_the_device_cgroup_as_well(
    engine: Engine, consoles: Consoles
) -> None:
    plug(consoles, (20,))
    async with serving(engine, DEVICE_SPEC, NO_MEM) as here:
        await here.lists(consoles.device_ids())
        container = await here.kubelet.admit("ns/pod", {RESOURCE: 1})
        consoles.add(21)
        view = await engine.look(
            "--cap-add=mknod",
            *plain_flags(container),
            inside="make /dev/other 7 21 , open /dev/vcs20 /dev/other",
        )
    assert view.opened == {"/dev/vcs20"}
    assert view.refused == {"/dev/other": EPERM}


async def test_the_class_directory_shows_every_device_of_the_host(
    engine: Engine, consoles: Consoles
) -> None:
    # This is why CDI is the better way: a library that opens whatever it lists fails here.
    plug(consoles, (20, 21))
    async with serving(engine, DEVICE_SPEC, NO_MEM) as here:
        await here.lists(consoles.device_ids())
        container = await here.kubelet.admit("ns/pod", {RESOURCE: 1})
        view = await engine.look(
            *plain_flags(container), inside="entries vc mem , open /dev/vcs20 /dev/vcs21"
        )
    assert view.classes == {"vc": entries_on_host("vc"), "mem": entries_on_host("mem")}
    assert view.classes["vc"] >= {"vcs20", "vcs21"}
    assert len(view.opened) == len(view.refused) == 1


async def test_the_node_keeps_the_hosts_owner_so_that_only_root_opens_it(
    engine: Engine, consoles: Consoles
) -> None:
    plug(consoles, (20,))
    async with serving(engine, DEVICE_SPEC, NO_MEM) as here:
        await here.lists(consoles.device_ids())
        container = await here.kubelet.admit("ns/pod", {RESOURCE: 1})
        view = await engine.look(
            "--user=1000:1001", *plain_flags(container), inside="nodes , open /dev/vcs20"
        )
    assert view.nodes == {"/dev/vcs20": Node(number=(7, 20), owner=(0, 0))}
    assert view.refused == {"/dev/vcs20": "Permission denied"}


async def test_by_default_both_ways_together_give_the_device_once(
    engine: Engine, consoles: Consoles
) -> None:
    plug(consoles, (20, 21))
    async with serving(engine, NO_MEM) as here:
        await here.lists(consoles.device_ids())
        container = await here.kubelet.admit("ns/pod", {RESOURCE: 1})
        both = [*plain_flags(container), *(f"--device={name}" for name in container.cdi_devices)]
        assert len(both) == 2
        [node] = granted(container)
        for flags in (both, both[::-1]):
            view = await engine.look(*flags, inside=f"nodes , entries vc , open {node}")
            assert numbers(view) == granted(container)
            assert view.classes["vc"] == {node.removeprefix("/dev/")}
            assert view.opened == {node}


async def test_a_cached_answer_never_leads_to_another_device(
    engine: Engine, consoles: Consoles
) -> None:
    """The kubelet keeps the answer for a pod's life: it may be used after the device has gone."""
    plug(consoles, (20,))
    async with serving(engine, DEVICE_SPEC, NO_MEM) as here:
        await here.lists(consoles.device_ids())
        container = await here.kubelet.admit("ns/pod", {RESOURCE: 1})
        [lasting] = container.devices
        assert lasting.host_path.endswith(device_id(20))
        assert lasting.container_path == f"/dev/{entry(20)}"
        consoles.remove(20)
        await until(lambda: not engine.seen(lasting.host_path).is_symlink())
        finished = await engine.run(*engine.container(*plain_flags(container), inside="nodes"))
        assert finished.code != 0
        assert "no such file or directory" in finished.err
        consoles.add(20)
        await here.lists(consoles.device_ids())
        view = await engine.look(*plain_flags(container), inside="nodes")
        assert numbers(view) == {"/dev/vcs20": (7, 20)}
