"""The status page, in a real browser that cannot reach the internet."""

from dataclasses import replace

import pytest

from hailo_agent.aio.supervise import State, Status
from tests.web.browser import CHROMIUM, Tab, browsing
from tests.web.stand import NODE, UNSERVED, WARM, Stand, crowd, device, held, served, vanished

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

HOSTILE = "<img src=x onerror=window.hacked=1>"


@pytest.fixture
def stand() -> Stand:
    stand = Stand(page=True)
    stand.show(held(device(1)))
    return stand


async def test_a_plug_and_a_fault_appear_without_a_reload(stand: Stand) -> None:
    async with served(stand) as address, browsing() as tab:
        await tab.open(address)
        await tab.until_seen("pci-0000-01-00-0")
        await tab.until_seen("live")
        assert NODE in await tab.text()
        await tab.eval("window.mark = 1")

        stand.show(held(device(1)), device(2))
        await tab.until_seen("pci-0000-02-00-0 appeared")
        assert await cards(tab) == ["pci-0000-01-00-0", "pci-0000-02-00-0"]

        stand.show(vanished(held(device(1))), device(2), faults=(UNSERVED,))
        await tab.until_seen("the machine does not have this device any more")
        await tab.until_seen("look for PCIe errors in the kernel's log")
        await tab.until_seen("Unhealthy")
        await tab.until_seen("no kernel driver serves this Hailo PCI function")

        stand.show(device(2))
        await tab.until_seen("pci-0000-01-00-0 is forgotten")
        assert await cards(tab) == ["pci-0000-02-00-0"]
        assert await tab.eval("window.mark") == 1
        assert tab.complaints == []


async def test_what_others_wrote_is_shown_and_never_run(stand: Stand) -> None:
    hostile = held(device(1), pod=HOSTILE, container=HOSTILE)
    fault = replace(WARM, subject=HOSTILE, message=HOSTILE, remedy=HOSTILE, evidence=HOSTILE)
    stand.show(replace(hostile, driver=HOSTILE, faults=(fault,)), faults=(fault,))
    stand.roster.post(Status(name=HOSTILE, state=State.FAILED, reason=HOSTILE))
    async with served(stand) as address, browsing() as tab:
        await tab.open(address)
        await tab.until_seen(HOSTILE)
        stand.show()
        await tab.until_seen("No Hailo device is usable")
        assert await tab.eval("document.images.length") == 0
        assert await tab.eval("window.hacked") is None
        assert tab.complaints == []


async def test_it_fits_a_phone_whatever_it_has_to_show(stand: Stand) -> None:
    crowd(stand)
    async with served(stand) as address, browsing() as tab:
        for width in (320, 375):
            await tab.open(address, width=width)
            await tab.until_seen("pci-0000-06-00-0")
            assert await tab.eval("document.documentElement.scrollWidth") <= width
            assert await tab.eval("document.querySelectorAll('.card').length") == 6
        assert tab.complaints == []


async def test_it_finds_an_agent_that_was_restarted(stand: Stand) -> None:
    async with browsing() as tab:
        async with served(stand) as address:
            await tab.open(address)
            await tab.until_seen("pci-0000-01-00-0")
        await tab.until_seen("reconnecting")
        again = Stand(page=True, instance="decade")
        again.show(device(3))
        async with served(again, address.removeprefix("http://").rstrip("/")):
            await tab.until_seen("pci-0000-03-00-0")
            await tab.until_seen("live")
            assert await cards(tab) == ["pci-0000-03-00-0"]


async def cards(tab: Tab) -> object:
    return await tab.eval("[...document.querySelectorAll('.card')].map((card) => card.dataset.id)")
