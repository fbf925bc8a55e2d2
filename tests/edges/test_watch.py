"""`host.watch` on real directories and the real inotify: what rings, what does not, what is missed.

There is nothing in it to wait on but its ringing, so the tests wait for that, with a deadline.
"""

import asyncio
import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hailo_agent.errors import HostError
from hailo_agent.host.watch import Watched, watch

SOON_SECONDS = 5.0
RECHECKED_SECONDS = 8.0
QUIET_SECONDS = 0.3


@dataclass(slots=True)
class Rings:
    """How often each directory rang, and a way to wait for it."""

    counts: dict[str, int] = field(default_factory=dict)
    reports: list[str] = field(default_factory=list)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def ringer(self, name: str) -> Callable[[], None]:
        def ring() -> None:
            self.counts[name] = self.counts.get(name, 0) + 1
            self.moved.set()

        return ring

    def report(self, reason: str) -> None:
        self.reports.append(reason)
        self.moved.set()

    async def until(self, condition: Callable[[], bool], within: float = SOON_SECONDS) -> None:
        async with asyncio.timeout(within):
            while not condition():
                self.moved.clear()
                await self.moved.wait()

    async def ring_of(self, name: str, within: float = SOON_SECONDS) -> None:
        """Wait until it rings once more than it has."""
        before = self.counts.get(name, 0)
        await self.until(lambda: self.counts.get(name, 0) > before, within)


def watched(directory: Path, rings: Rings, stem: str = "hailo") -> Watched:
    return Watched(
        directory=directory,
        matters=lambda name: name.startswith(stem),
        ring=rings.ringer(directory.name),
    )


@asynccontextmanager
async def watching(*directories: Path) -> AsyncIterator[Rings]:
    """Watch until the block is left; begins when the directories are listened to."""
    rings = Rings()
    running = asyncio.create_task(watch([watched(d, rings) for d in directories], rings.report))
    try:
        await rings.until(lambda: bool(rings.reports))
        assert rings.reports == [""]
        yield rings
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    path = tmp_path / "dev"
    path.mkdir()
    return path


async def rung_by(rings: Rings, name: str, change: Callable[[], object]) -> float:
    """Make a change and wait for its ring; returns how long it took."""
    before = rings.counts.get(name, 0)
    started_at = time.monotonic()
    change()
    await rings.until(lambda: rings.counts.get(name, 0) > before)
    return time.monotonic() - started_at


async def test_a_name_that_comes_changes_or_goes_rings(dev: Path) -> None:
    node = dev / "hailo0"
    async with watching(dev) as rings:
        await rung_by(rings, "dev", node.touch)
        await rung_by(rings, "dev", lambda: node.write_bytes(b"x"))
        await rung_by(rings, "dev", lambda: node.rename(dev / "hailo1"))
        await rung_by(rings, "dev", (dev / "hailo1").unlink)


async def test_a_renamed_file_a_symlink_a_socket_and_a_devnode_ring_as_well(dev: Path) -> None:
    (dev.parent / "made-elsewhere").touch()
    async with watching(dev) as rings:
        await rung_by(rings, "dev", lambda: (dev.parent / "made-elsewhere").rename(dev / "hailo2"))
        await rung_by(rings, "dev", lambda: (dev / "hailo3").symlink_to("nowhere"))
        await rung_by(
            rings, "dev", lambda: os.mknod(dev / "hailo4", stat.S_IFCHR | 0o600, os.makedev(0, 0))
        )
        await rung_by(rings, "dev", lambda: os.mkfifo(dev / "hailo5"))


async def test_names_that_do_not_matter_wake_nobody(dev: Path) -> None:
    async with watching(dev) as rings:
        for number in range(50):
            (dev / f"tty{number}").touch()
        with pytest.raises(TimeoutError):
            await rings.ring_of("dev", within=QUIET_SECONDS)


async def test_each_directory_has_a_bell_of_its_own(dev: Path, tmp_path: Path) -> None:
    cdi = tmp_path / "cdi"
    cdi.mkdir()
    async with watching(dev, cdi) as rings:
        await rung_by(rings, "cdi", (cdi / "hailo.ai-npu.json").touch)
        assert rings.counts == {"cdi": 1}
        await rung_by(rings, "dev", (dev / "hailo0").touch)
        assert rings.counts == {"cdi": 1, "dev": 1}


async def test_a_storm_rings_far_less_often_than_it_blows(dev: Path) -> None:
    async with watching(dev) as rings:
        for number in range(500):
            (dev / f"hailo{number}").touch()
            (dev / f"hailo{number}").unlink()
        await rung_by(rings, "dev", (dev / "hailo-last").touch)
        assert rings.counts["dev"] < 100


async def test_an_absent_directory_is_awaited_and_rings_when_it_comes(
    dev: Path, tmp_path: Path
) -> None:
    later = tmp_path / "later"
    async with watching(dev, later) as rings:
        later.mkdir()
        await rings.until(lambda: rings.counts.get("later", 0) > 0, RECHECKED_SECONDS)
        await settle(rings, later)
        assert "dev" not in rings.counts


async def settle(rings: Rings, directory: Path) -> None:
    """Touch names until one rings: it is not told when a new directory begins to be heard."""
    before = rings.counts.get(directory.name, 0)
    async with asyncio.timeout(RECHECKED_SECONDS):
        number = 0
        while rings.counts.get(directory.name, 0) == before:
            (directory / f"hailo-{number}").touch()
            number += 1
            await asyncio.sleep(0.05)


async def test_with_no_directory_at_all_the_first_one_is_awaited(tmp_path: Path) -> None:
    later = tmp_path / "later"
    async with watching(later) as rings:
        later.mkdir()
        await rings.until(lambda: rings.counts.get("later", 0) > 0, RECHECKED_SECONDS)
        await settle(rings, later)


def make(directory: Path) -> None:
    directory.mkdir()


def replace(directory: Path) -> None:
    directory.rename(directory.with_name("old"))
    make(directory)


async def test_a_directory_that_is_replaced_rings_and_is_heard_again(dev: Path) -> None:
    async with watching(dev) as rings:
        await rung_by(rings, "dev", (dev / "hailo0").touch)
        replace(dev)
        await rings.ring_of("dev", within=RECHECKED_SECONDS)
        await settle(rings, dev)


async def test_a_directory_that_is_deleted_and_made_anew_does_not_fall_silent(
    dev: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    async with watching(dev, tmp_path / "other") as rings:
        shutil.rmtree(dev)
        await rings.ring_of("dev", within=RECHECKED_SECONDS)
        make(dev)
        await rings.ring_of("dev", within=RECHECKED_SECONDS)
        await settle(rings, dev)


async def test_a_directory_seen_through_a_symlink_rings(dev: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(dev)
    async with watching(link) as rings:
        await rung_by(rings, "link", (dev / "hailo0").touch)


async def test_a_file_in_the_place_of_a_directory_is_no_reason_to_fail(
    dev: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with watching(dev, tmp_path / "file") as rings:
        await rung_by(rings, "dev", (dev / "hailo0").touch)


async def test_a_name_that_is_no_text_is_a_change_like_any_other_or_an_edge_error(
    dev: Path,
) -> None:
    rings = Rings()
    running = asyncio.create_task(watch([watched(dev, rings)], rings.report))
    running.add_done_callback(lambda _: rings.moved.set())
    await rings.until(lambda: bool(rings.reports))
    os.mknod(os.fsencode(dev) + b"/hailo\xff", stat.S_IFIFO | 0o600)
    try:
        await rings.until(lambda: bool(rings.counts) or running.done())
        if running.done():  # the part is begun anew, and then all is looked at
            failure = running.exception()
            assert isinstance(failure, ExceptionGroup)
            assert failure.subgroup(HostError) is not None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_directory_named_with_dots_rings(dev: Path) -> None:
    async with watching(dev / ".." / "dev") as rings:
        await rung_by(rings, "dev", (dev / "hailo0").touch)


async def test_leaving_is_quick_and_leaves_no_thread_behind(dev: Path) -> None:
    async with watching(dev):
        left_at = time.monotonic()
    assert time.monotonic() - left_at < 1.0


WATCH_IN_POVERTY = """
import asyncio, sys
from pathlib import Path
from hailo_agent.errors import HostError
from hailo_agent.host.watch import Watched, watch
Path("/proc/sys/user/max_inotify_instances").write_text("0")
async def main():
    reports = []
    one = Watched(directory=Path(sys.argv[1]), matters=lambda _: True, ring=lambda: None)
    try:
        async with asyncio.timeout(5):
            await watch([one], reports.append)
    except* HostError as group:
        print(reports, group.exceptions[0])
asyncio.run(main())
"""


def test_no_inotify_instance_left_is_told_as_what_it_is_and_what_to_look_at(dev: Path) -> None:
    """In a user namespace of its own, whose limit can be set without disturbing anybody."""
    if subprocess.run(["unshare", "-U", "-r", "true"], check=False, timeout=10).returncode:
        pytest.skip("user namespaces are not permitted here")
    done = subprocess.run(
        ["unshare", "-U", "-r", sys.executable, "-c", WATCH_IN_POVERTY, str(dev)],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    said = done.stdout.strip()
    assert said.startswith("[] no inotify (Too many open files")
    assert "fs.inotify.max_user_instances" in said
    assert len(said.splitlines()) == 1


async def test_what_watchfiles_raises_does_not_travel_further(dev: Path) -> None:
    """Descriptors run out, as they may: `inotify_init` is refused with EMFILE."""
    async with watching(dev):
        pass  # whatever is to be imported has been imported
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    rings = Rings()
    used = 1 + max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - numbers, not paths
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    try:
        with suppress(OSError):  # EMFILE
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.timeout(5.0):
                await watch([watched(dev, rings)], rings.report)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)
    assert raised.group_contains(HostError, match="no inotify")
    assert "" not in rings.reports
