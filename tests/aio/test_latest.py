"""Latest: everybody gets the newest value, and nobody is waited for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.aio.latest import Latest

pytestmark = pytest.mark.usefixtures("virtual_clock")


class Follower:
    """One who follows, and remembers what was yielded."""

    def __init__(self, latest: Latest[int]) -> None:
        self.latest = latest
        self.seen: list[int] = []
        self.is_over = False
        self.asked = 0

    async def run(self) -> None:
        async for value in self.latest.follow(until=self._ask):
            self.seen.append(value)

    def _ask(self) -> bool:
        self.asked += 1
        return self.is_over


@asynccontextmanager
async def following(latest: Latest[int]) -> AsyncIterator[tuple[Follower, asyncio.Task[None]]]:
    follower = Follower(latest)
    task = asyncio.create_task(follower.run())
    await settled()
    try:
        yield follower, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settled() -> None:
    """Let everything happen that can happen without time passing."""
    await asyncio.sleep(0.001)


async def test_a_follower_is_given_the_value_at_once() -> None:
    async with following(Latest(7)) as (follower, _):
        assert follower.seen == [7]


async def test_each_move_that_is_read_in_time_is_seen() -> None:
    latest = Latest(0)
    async with following(latest) as (follower, _):
        for value in (1, 2, 3):
            latest.publish(value)
            await settled()
        assert follower.seen == [0, 1, 2, 3]


async def test_a_slow_follower_skips_to_the_newest_value() -> None:
    latest = Latest(0)
    async with following(latest) as (follower, _):
        for value in (1, 2, 3):
            latest.publish(value)
        await settled()
        assert follower.seen == [0, 3]


async def test_an_equal_value_wakes_nobody() -> None:
    latest = Latest(5)
    async with following(latest) as (follower, _):
        asked = follower.asked
        assert not latest.publish(5)
        await settled()
        assert (follower.seen, follower.asked) == ([5], asked)
        assert latest.version == 0


async def test_a_value_that_went_and_came_back_is_seen_again() -> None:
    # The version moved, and whoever compares by value may skip it himself.
    latest = Latest(5)
    async with following(latest) as (follower, _):
        latest.publish(6)
        latest.publish(5)
        await settled()
        assert follower.seen == [5, 5]


async def test_an_equal_value_is_kept_for_it_may_carry_news_that_do_not_count() -> None:
    latest: Latest[list[float]] = Latest([1.0])
    newer = [1.0]
    assert not latest.publish(newer)
    assert latest.value is newer


async def test_every_follower_is_woken_and_none_by_another() -> None:
    latest = Latest(0)
    async with following(latest) as (one, _), following(latest) as (other, _):
        latest.publish(1)
        await settled()
        assert one.seen == other.seen == [0, 1]


async def test_closing_ends_a_follower_that_has_seen_everything() -> None:
    latest = Latest(0)
    async with following(latest) as (follower, task):
        latest.close()
        await asyncio.wait_for(task, 1.0)
        assert follower.seen == [0]
        assert latest.closed


async def test_closing_lets_the_newest_value_through_first() -> None:
    latest = Latest(0)
    async with following(latest) as (follower, task):
        latest.publish(1)
        latest.publish(2)
        latest.close()
        await asyncio.wait_for(task, 1.0)
        assert follower.seen == [0, 2]


async def test_who_comes_after_the_end_sees_the_last_value_and_no_more() -> None:
    latest = Latest(0)
    latest.publish(4)
    latest.close()
    assert [value async for value in latest.follow()] == [4]


async def test_a_follower_that_is_told_to_end_needs_a_nudge() -> None:
    latest = Latest(0)
    async with following(latest) as (follower, task):
        follower.is_over = True
        await settled()
        assert not task.done()
        latest.nudge()
        await asyncio.wait_for(task, 1.0)
        assert follower.seen == [0]


async def test_a_nudge_shows_nothing_to_those_who_go_on() -> None:
    latest = Latest(0)
    async with following(latest) as (follower, task):
        latest.nudge()
        await settled()
        assert follower.seen == [0]
        assert not task.done()
        assert latest.version == 0


async def test_who_is_told_to_end_before_he_begins_sees_nothing() -> None:
    latest = Latest(0)
    assert [value async for value in latest.follow(until=lambda: True)] == []


async def test_who_is_told_to_end_does_not_see_the_value_that_woke_him() -> None:
    latest = Latest(0)
    async with following(latest) as (follower, task):
        follower.is_over = True
        latest.publish(1)
        await asyncio.wait_for(task, 1.0)
        assert follower.seen == [0]


async def test_an_abandoned_follower_leaves_nothing_behind() -> None:
    latest = Latest(0)
    stream = latest.follow()
    assert await anext(stream) == 0
    del stream  # as a server-streaming handler may be, in the middle of a yield
    latest.publish(1)
    async with following(latest) as (follower, _):
        assert follower.seen == [1]


async def test_the_version_counts_the_moves() -> None:
    latest = Latest(0)
    for value in (1, 1, 2, 2, 3):
        latest.publish(value)
    assert latest.version == 3


# --- resting -------------------------------------------------------------------------------------


async def test_a_rest_lasts_however_often_the_value_moves() -> None:
    loop, latest = asyncio.get_running_loop(), Latest(0)
    began = loop.time()
    task = asyncio.create_task(latest.rest(10.0))
    for value in range(1, 6):
        await asyncio.sleep(1.0)
        latest.publish(value)
        latest.nudge()
    await task
    assert loop.time() - began == pytest.approx(10.0)


async def test_closing_ends_a_rest() -> None:
    loop, latest = asyncio.get_running_loop(), Latest(0)
    began = loop.time()
    loop.call_later(3.0, latest.close)
    await latest.rest(10.0)
    assert loop.time() - began == pytest.approx(3.0)


async def test_after_the_end_there_is_no_rest() -> None:
    loop, latest = asyncio.get_running_loop(), Latest(0)
    latest.close()
    began = loop.time()
    await latest.rest(10.0)
    assert loop.time() - began == pytest.approx(0.0, abs=0.01)


async def test_a_rest_that_is_told_to_end_ends_with_the_next_nudge() -> None:
    loop, latest = asyncio.get_running_loop(), Latest(0)
    began = loop.time()
    loop.call_later(2.0, latest.nudge)
    await latest.rest(10.0, until=lambda: loop.time() - began > 1.0)
    assert loop.time() - began == pytest.approx(2.0)


async def test_a_rest_of_no_time_is_over() -> None:
    loop, latest = asyncio.get_running_loop(), Latest(0)
    began = loop.time()
    await latest.rest(0.0)
    await latest.rest(-1.0)
    assert loop.time() - began == pytest.approx(0.0, abs=0.01)


async def test_a_cancelled_rest_is_cancelled() -> None:
    task = asyncio.create_task(Latest(0).rest(10.0))
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- of every storm ------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=20))
def test_after_any_storm_the_last_value_seen_is_the_newest(
    storm: list[tuple[int, bool]],
) -> None:
    async def live() -> None:
        latest = Latest(0)
        async with following(latest) as (follower, _):
            for value, is_calm in storm:
                latest.publish(value)
                if is_calm:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
            for _ in range(3):
                await asyncio.sleep(0)
            assert follower.seen[-1] == latest.value
            assert len(follower.seen) <= latest.version + 1

    asyncio.run(live())
