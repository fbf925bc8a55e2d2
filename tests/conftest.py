"""What holds for every test: how hypothesis behaves, and a clock that need not be waited for."""

import asyncio
import os

import hypothesis
import looptime
import pytest

HEARS_UEVENTS = {"test_bench.py", "test_sensors.py", "test_sim_machine.py", "test_uevent.py"}

SHARES_A_NODE = {"agent/test_health.py", "agent/test_log_schema.py", "agent/test_simulate.py"}
"""Files whose tests share what takes seconds to set up: each is run by one process."""

# Timing belongs to `make bench`; a shared two-core machine must not fail a property test.
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, print_blob=True, max_examples=50
)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what hears or sends the kernel's events: all of a machine hear each other."""
    for item in items:
        if item.path.name in HEARS_UEVENTS:
            item.add_marker(pytest.mark.xdist_group("uevents"))
        name = f"{item.path.parent.name}/{item.path.name}"
        if name in SHARES_A_NODE:
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture
async def virtual_clock() -> None:
    """Let the loop's time pass as soon as nothing else is to do: an hour's backoff in no time.

    Only for what waits on nothing but the loop itself; sockets and threads live in real time.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, asyncio.BaseEventLoop)
    looptime.patch_event_loop(loop)
