"""The virtual clock that tests are given."""

import asyncio
import time

import pytest


@pytest.mark.usefixtures("virtual_clock")
async def test_an_hour_on_the_virtual_clock_takes_no_time() -> None:
    before, began = asyncio.get_running_loop().time(), time.monotonic()
    await asyncio.sleep(3600)
    assert asyncio.get_running_loop().time() == pytest.approx(before + 3600)
    assert time.monotonic() - began < 30


async def test_other_tests_live_in_real_time() -> None:
    began = time.monotonic()
    await asyncio.sleep(0.01)
    assert time.monotonic() - began >= 0.01
