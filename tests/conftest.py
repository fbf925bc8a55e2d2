"""What holds for every test: how hypothesis behaves, and a clock that need not be waited for."""

import asyncio
import os
from collections.abc import Iterator, Mapping

import hypothesis
import looptime
import pytest

from hailo_agent.sim.node import AgentProcess, Process, execute
from tests.nursery import Nursery, can_lend

HEARS_UEVENTS = {"test_bench.py", "test_sensors.py", "test_sim_machine.py", "test_uevent.py"}

SHARED = {
    "house/test_site.py",
    "wire",
    "agent/test_health.py",
    "agent/test_log_schema.py",
    "agent/test_simulate.py",
    "manifests",
    "observability",
}
"""Files and folders whose tests share what takes seconds to set up: each is run by one process."""

# Timing belongs to `make bench`; a shared two-core machine must not fail a property test.
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, print_blob=True, max_examples=40
)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what hears or sends the kernel's events: all of a machine hear each other."""
    for item in items:
        if item.path.name in HEARS_UEVENTS or "e2e" in item.path.parts:
            item.add_marker(pytest.mark.xdist_group("uevents"))
        folder = item.path.parent.name
        for place in SHARED & {folder, f"{folder}/{item.path.name}"}:
            item.add_marker(pytest.mark.xdist_group(place))


@pytest.fixture(scope="session", autouse=True)
def nursery() -> Iterator[None]:
    """Have agents forked instead of executed, but where that would make a difference."""
    asked: Nursery | None = None

    async def launch(
        flags: tuple[str, ...], env: Mapping[str, str], prefix: tuple[str, ...]
    ) -> Process:
        nonlocal asked
        if prefix or not can_lend(env):
            return await execute(flags, env, prefix)
        asked = asked or Nursery()
        return await asked.lend(flags, env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AgentProcess, "launch", staticmethod(launch))
        yield
    if asked is not None:
        asked.close()


@pytest.fixture
async def virtual_clock() -> None:
    """Let the loop's time pass as soon as nothing else is to do: an hour's backoff in no time.

    Only for what waits on nothing but the loop itself; sockets and threads live in real time.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, asyncio.BaseEventLoop)
    looptime.patch_event_loop(loop)
