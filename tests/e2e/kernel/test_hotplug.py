"""The agent and this machine's kernel: real devtmpfs, real sysfs, real uevents, no simulation.

The kernel makes and removes consoles (tests/e2e/consoles.py); what a kubelet then believes has to
be what is there. How long it takes is printed at the end of pytest's output.
"""

import asyncio
import random
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hailo_agent.sim.node import temporary_root
from tests.e2e.ability import lacking
from tests.e2e.consoles import FAMILY, NUMBERS, Consoles, device_id
from tests.e2e.figures import Figures
from tests.e2e.site import Site, site, until

FORGIVING = ("--health.flap-window-seconds=0.01", "--health.recovery-seconds=0.01")
"""Coming and going is all that a console does here: nobody is to be punished for it."""
NO_RESYNC = "--host.resync-seconds=3600"
"""What is missed stays missed."""
ONE_BY_ONE = NUMBERS[:10]
REST_SECONDS = 1.0
"""A list is followed by a second without any."""
MANY, MARGIN = 100_000, 50
"""So many uevents overrun any buffer; and with so many dropped, there is no room for another."""
LONG = [pytest.mark.long, pytest.mark.timeout(1200)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ears:
    """By what an agent hears of a change, and what it says that it lacks."""

    flags: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    limps: Mapping[str, str] = field(default_factory=dict)
    """Part and a word of its reason, said once."""


EARS: Mapping[str, Mapping[str, Ears]] = {
    "that hear": {
        "uevents alone": Ears(flags=("--host.inotify=false", NO_RESYNC)),
        "inotify alone": Ears(flags=("--host.uevents=false", NO_RESYNC)),
    },
    "that hear less": {
        # As in a pod: uevents reach every network namespace that the initial user namespace owns.
        "uevents alone, own network namespace": Ears(
            flags=("--host.inotify=false", NO_RESYNC), prefix=("unshare", "--net", "--")
        ),
        # As in a pod with `hostUsers: false`: the kernel does not send its uevents there.
        "own user namespace, so inotify alone": Ears(
            flags=(NO_RESYNC,),
            prefix=("unshare", "--user", "--map-root-user", "--"),
            limps={"uevents": "user namespace"},
        ),
        "neither, a resync each 0.2 s": Ears(
            flags=("--host.inotify=false", "--host.uevents=false", "--host.resync-seconds=0.2")
        ),
    },
}


@asynccontextmanager
async def sites(ears: Mapping[str, Ears]) -> AsyncIterator[dict[str, Site]]:
    """Run an agent for each kind of ears, all of them up and at rest."""
    async with AsyncExitStack() as stack:
        root = await stack.enter_async_context(temporary_root())
        running = {}
        for number, (name, one) in enumerate(ears.items()):
            running[name] = await stack.enter_async_context(
                site(
                    root / str(number),
                    *FORGIVING,
                    *one.flags,
                    families=[FAMILY],
                    prefix=one.prefix,
                    name=name,
                )
            )
        await asyncio.gather(*(one.is_ready() for one in running.values()))
        await rested(running)
        yield running


async def rested(running: Mapping[str, Site]) -> None:
    """Wait until each agent has said nothing for so long that it may speak at once."""
    await asyncio.gather(*(one.kubelet.quiet(REST_SECONDS) for one in running.values()))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("kind", "flips"),
    [
        pytest.param("that hear", 30, id="30 flips"),
        pytest.param("that hear less", 6, id="6 flips, agents that hear less"),
        pytest.param("that hear", 200, id="200 flips", marks=LONG),
        pytest.param("that hear less", 200, id="200 flips, agents that hear less", marks=LONG),
    ],
)
async def test_after_each_pause_every_kubelet_lists_what_the_kernel_has(
    consoles: Consoles, figures: Figures, kind: str, flips: int
) -> None:
    ears = EARS[kind]
    may_have_namespaces(ears)
    choice = random.Random(flips)
    latencies: dict[str, list[float]] = {name: [] for name in ears}
    async with sites(ears) as running:
        done = pauses = 0
        while done < flips:
            burst = min(choice.choice((1, 1, 1, 8)), flips - done)
            began = min(consoles.flip(n) for n in choice.sample(ONE_BY_ONE, k=burst))
            await asyncio.gather(*(one.lists(consoles.device_ids()) for one in running.values()))
            await rested(running)
            for name, one in running.items():
                assert one.healthy() == consoles.device_ids(), name
                assert one.specified() == consoles.device_ids(), name
                if burst == 1:
                    latencies[name].append(one.heard_after(began))
            done += burst
            pauses += 1
        for name, one in running.items():
            reasons = one.limps()
            assert reasons.keys() == ears[name].limps.keys(), name
            for part, word in ears[name].limps.items():
                assert [word in reason for reason in reasons[part]] == [True], name
            assert not one.agent.events("part.recovered"), name
    for name, seconds in latencies.items():
        figures.latency(f"kernel -> list, {name}", seconds)
    figures.note(f"{done} flips, {pauses} pauses, {len(ears)} agents {kind}: 0 mismatches")


async def test_a_device_that_the_kernel_makes_is_listed_and_one_that_it_removes_is_unhealthy(
    consoles: Consoles,
) -> None:
    one, other = device_id(NUMBERS[0]), device_id(NUMBERS[1])
    async with temporary_root() as root, site(root, *FORGIVING, families=[FAMILY]) as here:
        await here.is_ready()
        assert here.kubelet.resource("hailo.ai/npu").capacity == 0
        consoles.add(NUMBERS[0])
        await here.lists(frozenset({one}))
        assert here.specified() == {one}
        consoles.add(NUMBERS[1])
        await here.lists(frozenset({one, other}))
        consoles.remove(NUMBERS[0])
        await here.lists(frozenset({other}))
        await until(lambda: here.specified() == {other})  # bad news does not wait for the disk
        health = here.kubelet.resource("hailo.ai/npu").health
        assert health == {one: "Unhealthy", other: "Healthy"}
        # The class has consoles in use, and each console has two more entries: none is ours.
        assert {m.health.keys() <= {one, other} for m in here.kubelet.messages} == {True}
        assert not here.agent.events("fault.found")


async def test_what_the_kernel_did_while_the_agent_was_away_is_in_its_first_list(
    consoles: Consoles,
) -> None:
    consoles.add(NUMBERS[0])
    consoles.add(NUMBERS[1])
    async with temporary_root() as root:
        async with site(root / "a", families=[FAMILY]) as before:
            await before.lists(frozenset(map(device_id, NUMBERS[:2])))
        consoles.remove(NUMBERS[0])
        consoles.add(NUMBERS[2])
        async with site(root / "a", families=[FAMILY]) as after:
            await after.is_ready()
            first = after.kubelet.messages[0].health
            assert first == {
                device_id(NUMBERS[1]): "Healthy",
                device_id(NUMBERS[2]): "Healthy",
            }


async def test_a_storm_costs_a_list_a_second_and_ends_in_the_truth(
    consoles: Consoles, figures: Figures
) -> None:
    choice = random.Random(3)
    loop = asyncio.get_running_loop()
    async with (
        temporary_root() as root,
        site(root, *FORGIVING, NO_RESYNC, families=[FAMILY]) as here,
    ):
        await here.is_ready()
        before, cpu, flips = here.kubelet.message_count, here.agent.cpu_seconds(), 0
        began = loop.time()
        while loop.time() < began + 2:
            consoles.flip(choice.choice(ONE_BY_ONE))
            flips += 1
            await asyncio.sleep(0)  # let the kubelet read its lists
        ended = loop.time()
        await here.lists(consoles.device_ids())
        settled = loop.time()
        await here.kubelet.quiet(REST_SECONDS)
        assert here.healthy() == consoles.device_ids()
        assert here.specified() == consoles.device_ids()
        lists = here.kubelet.message_count - before
        assert flips > 100
        assert 1 <= lists <= settled - began + 2
        figures.note(
            f"storm: {flips} flips in {ended - began:.1f} s: {lists} lists,"
            f" {here.agent.cpu_seconds() - cpu:.1f} s of processor time,"
            f" the truth {1000 * (settled - ended):.0f} ms after the last"
        )


async def test_uevents_that_the_kernel_had_to_drop_cost_nothing(
    consoles: Consoles, figures: Figures
) -> None:
    flags = ("--host.inotify=false", NO_RESYNC)
    async with temporary_root() as root, site(root, *FORGIVING, *flags, families=[FAMILY]) as here:
        await here.is_ready()
        await here.agent.wait_for("list.sent")
        here.agent.process.send_signal(signal.SIGSTOP)
        try:
            noise = fill_receive_buffer(here.agent.pid)
            full = dropped(here.agent.pid)
            for number in ONE_BY_ONE:
                consoles.add(number)
            lost = dropped(here.agent.pid) - full
        finally:
            here.agent.process.send_signal(signal.SIGCONT)
        # Not one of ours came through: it has to look because something, whatever it was, is lost.
        assert lost == 3 * len(ONE_BY_ONE)
        await here.lists(frozenset(map(device_id, ONE_BY_ONE)))
        figures.note(f"overrun: {lost} uevents dropped by the kernel, after {noise} of no concern")


def fill_receive_buffer(pid: int) -> int:
    """Have the kernel send uevents of no concern until it drops some; tells how many it was."""
    uevent = Path("/sys/class/mem/null/uevent")
    for sent in range(1, MANY + 1):
        uevent.write_text("change")
        if sent % 100 == 0 and dropped(pid) > MARGIN:
            return sent
    raise AssertionError(f"{MANY} uevents, and none was dropped")


def dropped(pid: int) -> int:
    """Tell how many uevents the kernel has dropped for a process (`Drops` of its socket)."""
    rows = [line.split() for line in Path("/proc/net/netlink").read_text().splitlines()[1:]]
    # sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode; uevents are protocol 15
    return sum(int(row[8]) for row in rows if row[1:3] == ["15", str(pid)])


def may_have_namespaces(ears: Mapping[str, Ears]) -> None:
    """See that agents can be put into namespaces of their own."""
    for prefix in (one.prefix for one in ears.values() if one.prefix):
        if shutil.which(prefix[0]) is None:
            lacking(f"needs {prefix[0]} (Debian package util-linux)")
        tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            lacking(f"`{' '.join(prefix)} true` is not permitted: {tried.stderr.strip()}")
