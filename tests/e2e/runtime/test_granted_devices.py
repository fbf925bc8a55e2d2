"""What a container gets that was granted real devices of this kernel, by names of the agent's spec.

Classes `vc` and `mem` stand in for Hailo's: a mount onto a class directory needs one that this
kernel has. Podman and runc do what containerd and runc do for a pod: they read the same spec with
the same library and make the same cgroup.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from hailo_agent.sim.node import RESOURCE
from tests.e2e.consoles import FAMILY, Consoles, device_id, entry
from tests.e2e.figures import Figures
from tests.e2e.runtime.engine import (
    CDI_DIR,
    LINKS_DIR,
    SPEC,
    Engine,
    Node,
    View,
    device_flags,
    digests_on_host,
    views,
)
from tests.e2e.site import Site, generate_spec, short_root, site, until

# kmsg is the one of its class that no container has anyway.
MEM = {"class_name": "mem", "devnode": "full|kmsg|zero", "identity": "sysfs"}
KMSG, FULL = "soc-virtual-mem-kmsg", "soc-virtual-mem-full"
EPERM = "Operation not permitted"
OVERFLOW = 65534
"""How an owner looks from a user namespace that does not have it."""
LOOK = "nodes , entries vc mem , scan line vc dev , scan line mem dev"


@asynccontextmanager
async def serving(engine: Engine, *flags: str) -> AsyncIterator[Site]:
    """Run an agent that keeps its spec where this podman looks for it."""
    with short_root() as root:
        async with site(
            root,
            "--health.flap-window-seconds=0.01",
            "--health.recovery-seconds=0.01",
            *flags,
            families=[FAMILY, MEM],
            prefix=engine.prefix,
            cdi_dirs=("/etc/cdi", CDI_DIR),
            links_dir=LINKS_DIR,
            spec_path=engine.seen(SPEC),
        ) as here:
            await here.is_ready()
            yield here


async def generate(engine: Engine) -> None:
    """Write the spec once: no agent runs, as where there is no Kubernetes."""
    await generate_spec(families=[FAMILY, MEM], prefix=engine.prefix)


def names(numbers: Sequence[int]) -> list[str]:
    return [device_id(number) for number in numbers]


@pytest.mark.parametrize(
    ("asked", "granted_vc", "granted_mem"),
    [
        pytest.param([device_id(20)], {20}, set(), id="one"),
        pytest.param([device_id(20), device_id(22)], {20, 22}, set(), id="two"),
        pytest.param([device_id(21), KMSG], {21}, {"kmsg"}, id="two of different classes"),
        pytest.param([FULL], set(), {"full"}, id="one that every container has"),
        pytest.param(["all"], {20, 21, 22}, {"kmsg", "full", "zero"}, id="all"),
        pytest.param([device_id(20), device_id(20)], {20}, set(), id="one, named twice"),
        pytest.param(["all", device_id(20)], {20, 21, 22}, {"kmsg", "full", "zero"}, id="both"),
    ],
)
async def test_a_container_has_what_it_was_granted_and_nothing_else(
    engine: Engine,
    consoles: Consoles,
    asked: list[str],
    granted_vc: set[int],
    granted_mem: set[str],
) -> None:
    for number in (20, 21, 22):
        consoles.add(number)
    await generate(engine)
    view = await engine.look(*device_flags(asked), inside=LOOK)
    vc = {entry(number): (7, number) for number in granted_vc}
    mem = {name: {"kmsg": (1, 11), "full": (1, 7), "zero": (1, 5)}[name] for name in granted_mem}
    # The nodes: these, with the numbers of the host.
    assert {path: node.number for path, node in view.nodes.items()} == {
        f"/dev/{name}": number
        for name, number in {**vc, **mem}.items()
        if name not in {"full", "zero"}  # standard nodes
    }
    # The class directories: these entries, whichever else the host has.
    assert view.classes == {"vc": set(vc), "mem": set(mem)}
    # What is in them: the bytes of the host.
    assert view.digests == {
        **digests_on_host(Path("/sys"), "vc", sorted(vc)),
        **digests_on_host(Path("/sys"), "mem", sorted(mem)),
    }
    assert {f"vc/{name}/dev" for name in vc} <= view.digests.keys()
    # A library that scans the class finds them all, and stumbles over none.
    assert view.scans == {"vc": 0, "mem": 0}
    assert view.found.get("vc", {}) == {name: (f"7:{n}",) for name, (_, n) in vc.items()}
    assert view.found.get("mem", {}) == {name: (f"1:{n}",) for name, (_, n) in mem.items()}


async def test_a_container_without_a_grant_sees_every_entry_and_may_open_none(
    engine: Engine, consoles: Consoles
) -> None:
    # The control: without it, the tests above would pass where there is nothing to see.
    consoles.add(20)
    view = await engine.look(
        "--cap-add=mknod", inside="nodes , entries vc mem , make /dev/vcs20 7 20 , open /dev/vcs20"
    )
    assert view.nodes == {}
    assert view.classes["vc"] > {"vcs20"}
    assert view.classes["mem"] >= {"kmsg", "full", "zero", "null"}
    assert view.refused == {"/dev/vcs20": EPERM}


async def test_a_node_made_by_hand_is_refused_by_the_device_cgroup(
    engine: Engine, consoles: Consoles
) -> None:
    consoles.add(20)
    consoles.add(21)
    await generate(engine)
    view = await engine.look(
        "--cap-add=mknod",
        *device_flags(names([20])),
        inside="make /dev/granted 7 20 , make /dev/other 7 21 , make /dev/console1 4 1"
        " , open /dev/vcs20 /dev/granted /dev/other /dev/console1 , nodes",
    )
    # All three were made; it is the number that opens or does not, never the name.
    assert {"/dev/granted", "/dev/other", "/dev/console1"} <= view.nodes.keys()
    assert view.opened == {"/dev/vcs20", "/dev/granted"}
    assert view.refused == {"/dev/other": EPERM, "/dev/console1": EPERM}


async def test_a_container_that_is_not_root_opens_its_node(
    engine: Engine, consoles: Consoles
) -> None:
    consoles.add(20)
    assert consoles.mode(20) == 0o600  # root's alone, on the host
    await generate(engine)
    view = await engine.look(
        "--user=1000:1001", *device_flags(names([20])), inside="nodes , open /dev/vcs20"
    )
    assert view.nodes == {"/dev/vcs20": Node(number=(7, 20), owner=(1000, 1001))}
    assert view.opened == {"/dev/vcs20"}


async def test_in_a_user_namespace_the_mask_holds_but_the_node_keeps_the_hosts_owner(
    engine: Engine, consoles: Consoles
) -> None:
    # There runc may not make nodes: it binds the host's, so that CDI's owner comes to nothing.
    consoles.add(20)
    consoles.add(21)
    await generate(engine)
    view = await engine.look(
        "--uidmap=0:100000:65536",
        "--gidmap=0:100000:65536",
        *device_flags(names([20])),
        inside="nodes , entries vc mem , scan line vc dev , open /dev/vcs20",
    )
    assert view.classes == {"vc": {"vcs20"}, "mem": set()}
    assert view.digests == digests_on_host(Path("/sys"), "vc", ["vcs20"])
    assert view.scans == {"vc": 0}
    assert view.nodes == {"/dev/vcs20": Node(number=(7, 20), owner=(OVERFLOW, OVERFLOW))}
    assert view.refused == {"/dev/vcs20": "Permission denied"}


async def test_two_pods_get_what_the_kubelet_gave_each(engine: Engine, consoles: Consoles) -> None:
    for number in (20, 21, 22):
        consoles.add(number)
    async with serving(engine, "--devices.deny=soc-virtual-mem-*") as here:
        await here.lists(consoles.device_ids())
        pods = [await here.kubelet.admit(f"ns/pod-{n}", {RESOURCE: n}) for n in (1, 2)]
        found = []
        for pod in pods:
            flags = [f"--device={name}" for name in pod.cdi_devices]
            view = await engine.look(*flags, inside="nodes , entries vc")
            granted = {
                device.removeprefix("soc-virtual-vc-") for device in pod.device_ids[RESOURCE]
            }
            assert view.classes["vc"] == granted
            assert view.nodes.keys() == {f"/dev/{name}" for name in granted}
            found.append(granted)
        assert [len(granted) for granted in found] == [1, 2]
        assert not found[0] & found[1]


async def test_a_removed_device_cannot_be_asked_for_any_more(
    engine: Engine, consoles: Consoles
) -> None:
    consoles.add(20)
    consoles.add(21)
    async with serving(engine) as here:
        await engine.look(*device_flags(names([20])), inside="nodes")
        assert device_id(20) in here.specified()
        consoles.remove(20)
        await until(lambda: device_id(20) not in here.specified())
        finished = await engine.run(*engine.container(*device_flags(names([20])), inside="nodes"))
        assert finished.code != 0
        assert f"unresolvable CDI devices hailo.ai/npu={device_id(20)}" in finished.err
        view = await engine.look(*device_flags(["all"]), inside="entries vc")
        assert view.classes["vc"] == {"vcs21"}


async def test_the_spec_serves_containers_when_the_agent_is_gone(
    engine: Engine, consoles: Consoles
) -> None:
    consoles.add(20)
    async with serving(engine):
        pass
    view = await engine.look(*device_flags(names([20])), inside=LOOK)
    assert view.classes == {"vc": {"vcs20"}, "mem": set()}
    assert view.nodes.keys() == {"/dev/vcs20"}


async def test_a_container_leaves_nothing_behind_on_the_host(
    engine: Engine, consoles: Consoles
) -> None:
    consoles.add(20)
    consoles.add(21)
    await generate(engine)
    await engine.look(inside="nodes")  # podman makes itself at home, once
    before = engine.traces()
    await engine.look(*device_flags(["all"]), inside=LOOK)
    await engine.look(*device_flags(names([21])), "--user=1000", inside=LOOK)
    failed = await engine.run(
        *engine.container(*device_flags(names([20])), "--workdir=/none", inside="nodes")
    )
    assert failed.code != 0
    assert not engine.changed_since(before)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "containers", [30, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]
)
async def test_containers_that_come_and_go_do_not_touch_each_other(
    engine: Engine, consoles: Consoles, figures: Figures, containers: int
) -> None:
    """Four at a time hold random devices, while others are plugged and the spec is rewritten."""
    steady, restless = range(20, 26), range(26, 30)
    for number in steady:
        consoles.add(number)
    choice = random.Random(containers)
    plans = [
        (choice.sample(steady, k=choice.randint(1, 3)), choice.random() < 0.3, choice.random())
        for _ in range(containers)
    ]
    four = asyncio.Semaphore(4)
    counted = {"views": 0, "killed": 0, "flips": 0}

    async def hold(number: int, grant: list[int], linger: float, *, die: bool) -> None:
        wanted = View(
            nodes={f"/dev/{entry(n)}": Node(number=(7, n), owner=(0, 0)) for n in grant},
            classes={"vc": {entry(n) for n in grant}, "mem": set()},
            digests=digests_on_host(Path("/sys"), "vc", [entry(n) for n in grant]),
        )
        look = "nodes , entries vc mem"
        seconds = 60.0 if die else 0.3 * linger
        arguments = engine.container(
            f"--name=random-{number}",
            *device_flags(names(grant)),
            inside=f"{look} , mark first , wait {1e6 * seconds:.0f} , {look}",
        )
        async with four, engine.running(*arguments) as process:
            assert process.stdout is not None
            out = ""
            while die and not out.endswith("mark first\n"):
                line = await process.stdout.readline()
                assert line, await process.stderr.read() if process.stderr else ""
                out += line.decode()
            if die:
                killed = await engine.run("kill", "--signal=KILL", f"random-{number}")
                assert killed.code == 0, killed
            rest, err = await process.communicate()
            assert process.returncode == (137 if die else 0), err
        seen = views(out + rest.decode())
        assert seen == [wanted] * (1 if die else 2), number
        counted["views"] += len(seen)
        counted["killed"] += die

    async def disturb() -> None:
        while True:
            consoles.flip(choice.choice(restless))
            counted["flips"] += 1
            await asyncio.sleep(0.05)

    async with serving(engine) as here:
        await engine.look(inside="nodes")
        before = engine.traces()
        disturber = asyncio.create_task(disturb())
        try:
            async with asyncio.TaskGroup() as group:
                for number, (grant, die, linger) in enumerate(plans):
                    group.create_task(hold(number, grant, linger, die=die))
        finally:
            disturber.cancel()
            await asyncio.gather(disturber, return_exceptions=True)
        published = len(here.agent.events("spec.replaced"))
        for number in restless:
            consoles.remove(number)
        # Conmon tidies up after what was killed, a moment later.
        with suppress(TimeoutError):
            await until(lambda: not engine.changed_since(before))
        assert not engine.changed_since(before)
    figures.note(
        f"{containers} containers, {counted['killed']} of them killed, {counted['views']} looks,"
        f" {counted['flips']} flips and {published} specs meanwhile: 0 mismatches"
    )
