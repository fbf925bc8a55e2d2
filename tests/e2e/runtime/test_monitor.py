"""What containers say of their use, in containers that a real runtime makes.

Devices of class `mem` stand in for Hailo's, a line of shell for HailoRT.
"""

import base64
from pathlib import Path

import pytest

from hailo_agent.core.cdi import Place, render
from hailo_agent.core.device import ALL, Device, DeviceId, DeviceNumber, Devnode, Holder
from hailo_agent.core.inventory import Inventory
from hailo_agent.host.monitor import MonitorReader
from hailo_agent.sim.monitor import MonitorWriter
from tests.e2e.runtime.engine import SPEC, Engine, device_flags

MONITOR = "/run/hailo-agent/monitor"
HOLDER = Holder(namespace="default", pod="detector", container="main")


def device(name: str, minor: int) -> Device:
    number = DeviceNumber(1, minor)
    return Device(
        id=DeviceId(f"soc-virtual-mem-{name}"),
        devnode=Devnode(name=name, number=number, class_name="mem"),
        held=True,
        holders=(HOLDER,),
    )


FULL, ZERO = device("full", 7), device("zero", 5)


@pytest.fixture
async def reader(engine: Engine) -> MonitorReader:
    """Keep the directories, and have a spec that names them."""
    reader = MonitorReader(directory=engine.seen(MONITOR), timeout_seconds=30.0)
    await reader.prepare([FULL.id, ZERO.id, ALL])
    inventory = Inventory(devices=(FULL, ZERO), class_names=("mem",))
    spec = render(inventory, Place(monitor=MONITOR))
    assert spec is not None
    path = engine.seen(SPEC)
    path.parent.mkdir()
    path.write_bytes(spec.to_json())
    return reader


async def work(engine: Engine, tmp_path: Path, *flags: str) -> None:
    """Run a container that writes as HailoRT does, if it finds the switch."""
    report = base64.b64encode(MonitorWriter(directory=tmp_path / "elsewhere").report()).decode()
    script = (
        '[ "$HAILO_MONITOR" = 1 ] && cd /tmp/hmon_files && umask 077'
        f" && echo {report} | base64 -d >1abcdef.tmp && mv 1abcdef.tmp 1abcdef"
    )
    *command, _, _ = engine.container(*flags, inside="nodes")
    finished = await engine.run(*command, "-c", script)
    assert finished.code == 0, finished


@pytest.mark.parametrize(
    ("asked", "user"),
    [
        pytest.param([FULL.id], "1000:1001", id="one, for one who is not root"),
        pytest.param([ZERO.id], "0:0", id="the other"),
        pytest.param([ZERO.id, FULL.id], "0:0", id="both"),
        pytest.param([ALL], "1000:1001", id="all"),
    ],
)
async def test_what_a_container_says_is_told_of_the_last_name_it_was_given(
    engine: Engine, reader: MonitorReader, tmp_path: Path, asked: list[str], user: str
) -> None:
    told = asked[-1]
    await work(engine, tmp_path, f"--user={user}", *device_flags(asked))
    [file] = (engine.seen(MONITOR) / told).iterdir()
    status = file.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (int(user.partition(":")[0]), 0o600)
    usage = await reader.read([FULL, ZERO], now=status.st_ctime)
    assert {name: [n.network for n in one.networks] for name, one in usage.items()} == {
        told: ["yolov8m"]
    }
    assert reader.refusals == {}
