"""What the sensors remember of devices, and that it goes when the devices do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from hailo_agent.core.chip import Chip
from hailo_agent.core.device import DeviceId, PciAddress
from hailo_agent.errors import HostError
from hailo_agent.host import senses
from hailo_agent.host.probe import Prober
from hailo_agent.host.senses import Questions, Senses, Target
from hailo_agent.host.vitals import VitalsReader

FIRST, SECOND = PciAddress(0, 1, 0, 0), PciAddress(0, 2, 0, 0)
SECONDS = 10.0


@dataclass
class Refused:
    """A prober that is let at no device, and waits for leave to say so where it is told to."""

    hung: frozenset[DeviceId] = frozenset()
    asked: list[DeviceId] = field(default_factory=list)
    leave: asyncio.Event = field(default_factory=asyncio.Event)

    async def query(self, device_id: DeviceId, *_: object, **__: object) -> Chip:
        self.asked.append(device_id)
        await self.leave.wait()
        raise HostError("Permission denied", edge="host")

    async def close(self) -> None:
        """Have nothing to close."""


@dataclass
class Scene:
    """Sensors at work on what devices there are, and what the part `queries` said of itself."""

    devices: list[PciAddress]
    prober: Refused
    said: list[str] = field(default_factory=list)

    def targets(self) -> list[Target]:
        return [
            Target(
                id=address.device_id,
                address=address,
                path=f"/dev/{address.device_id}",
                driver_version="4.23.0",
                is_held=False,
                is_ill=False,
                is_wavering=False,
                present_since=0.0,
            )
            for address in self.devices
        ]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not holds():  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.005)


@asynccontextmanager
async def scene(sys: Path, *devices: PciAddress) -> AsyncIterator[Scene]:
    prober = Refused()
    here = Scene(list(devices), prober)
    sensors = Senses(
        targets=here.targets,
        ring=lambda _: None,
        vitals=VitalsReader(sys=sys, timeout_seconds=1.0),
        vitals_seconds=0.02,
        memory=lambda: None,
        prober=cast("Prober", prober),
        questions=Questions(mode="on", seconds=0.02, in_use=True, awake_share=1.0),
        listeners=None,
        hailortcli=None,
    )
    tasks = [
        asyncio.create_task(sensors.watch_vitals(lambda _: None)),
        asyncio.create_task(sensors.ask(here.said.append)),
    ]
    try:
        yield here
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senses, "_TURN_SECONDS", 0.02)


async def test_queries_limp_no_more_when_the_last_device_that_could_not_be_asked_is_gone(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, FIRST, SECOND) as here:
        here.prober.leave.set()
        await here.until(lambda: {FIRST.device_id, SECOND.device_id} <= set(here.prober.asked))
        await here.until(lambda: any(here.said))
        del here.devices[0]
        asked = len(here.prober.asked)
        await here.until(lambda: len(here.prober.asked) > asked + 5)
        limps = list(here.said)
        here.devices.clear()
        await here.until(lambda: here.said[-1] == "")
        here.devices.append(FIRST)  # it is as closed as before, and that is news
        await here.until(lambda: here.said[-1] != "")
    assert [bool(reason) for reason in limps] == [False, True]
    assert "Permission denied" in limps[-1]
    assert [bool(reason) for reason in here.said] == [False, True, False, True]


async def test_a_device_that_goes_while_it_is_asked_in_vain_leaves_nobody_limping(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, FIRST) as here:
        await here.until(lambda: here.prober.asked)
        here.devices.clear()
        await asyncio.sleep(0.1)  # the vitals are read, and it is forgotten
        here.prober.leave.set()
        await here.until(lambda: len(here.said) > 1)
        await here.until(lambda: here.said[-1] == "")
    assert [bool(reason) for reason in here.said] == [False, True, False]
