"""The doorbell: however often it rings, there is one reason to get up."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.aio.doorbell import Doorbell

pytestmark = pytest.mark.usefixtures("virtual_clock")


async def test_a_ring_is_heard_though_nobody_waited_yet() -> None:
    bell = Doorbell()
    bell.ring("boot")
    assert await bell.wait(0.0) == ("boot",)


async def test_many_rings_are_one_wake_up_with_all_reasons_in_order() -> None:
    bell = Doorbell()
    for reason in ("inotify", "uevent", "inotify", "resync"):
        bell.ring(reason)
    assert await bell.wait() == ("inotify", "uevent", "resync")
    assert await bell.wait(1.0) == ()


async def test_waiting_ends_when_the_bell_rings() -> None:
    loop, bell = asyncio.get_running_loop(), Doorbell()
    began = loop.time()
    loop.call_later(5.0, bell.ring, "late")
    assert await bell.wait(60.0) == ("late",)
    assert loop.time() - began == pytest.approx(5.0)


async def test_waiting_without_a_limit_lasts_until_the_bell_rings() -> None:
    loop, bell = asyncio.get_running_loop(), Doorbell()
    loop.call_later(86_400.0, bell.ring, "tomorrow")
    assert await bell.wait() == ("tomorrow",)


async def test_time_that_passes_first_gives_no_reasons() -> None:
    loop, bell = asyncio.get_running_loop(), Doorbell()
    began = loop.time()
    assert await bell.wait(30.0) == ()
    assert loop.time() - began == pytest.approx(30.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_a_time_that_has_passed_already_gives_no_reasons(seconds: float) -> None:
    assert await Doorbell().wait(seconds) == ()


async def test_a_ring_in_the_moment_the_time_is_up_is_not_lost() -> None:
    bell = Doorbell()
    asyncio.get_running_loop().call_later(1.0, bell.ring, "just")
    heard = [await bell.wait(1.0), await bell.wait(1.0)]
    assert sorted(heard) == [(), ("just",)]


async def test_a_ring_during_the_work_brings_the_reader_back() -> None:
    bell = Doorbell()
    bell.ring("first")
    await bell.wait()
    bell.ring("while working")
    assert await bell.wait(0.0) == ("while working",)


async def test_a_reader_that_is_cancelled_leaves_the_bell_ringing() -> None:
    bell = Doorbell()
    task = asyncio.create_task(bell.wait())
    await asyncio.sleep(0.001)
    bell.ring("unheard")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await bell.wait(0.0) == ("unheard",)


@given(st.lists(st.sampled_from([*"abc", None]), max_size=20))
def test_no_reason_is_lost_and_none_is_told_twice(storm: list[str | None]) -> None:
    """Each letter rings; None is a reader who comes and goes."""

    async def live() -> None:
        bell = Doorbell()
        pending: list[str] = []
        for event in [*storm, None]:
            if event is not None:
                bell.ring(event)
                pending += [] if event in pending else [event]
                continue
            assert await bell.wait(0.0) == tuple(pending)
            pending.clear()

    asyncio.run(live())
