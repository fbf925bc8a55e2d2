"""The spec where uses are monitored: one directory for each name, and a container gets one."""

from pathlib import Path

from hypothesis import given

from hailo_agent.core.cdi import FILE_NAME, MONITOR_IN_CONTAINER, Place, render
from hailo_agent.core.inventory import Inventory
from hailo_agent.runtime.reader import Document, read
from hailo_agent.sim.container import Making
from tests.strategies import BOARDS, after, found, reachable, seen

PLACE = Place(monitor="/run/hailo-agent/monitor")
BOARD, NEIGHBOUR, _, _ = BOARDS


def rendered(inventory: Inventory) -> Document | None:
    spec = render(inventory, PLACE)
    if spec is None:
        return None
    return read(spec.to_json(), name=FILE_NAME, newest=spec.cdi_version)


@given(reachable())
def test_each_name_has_the_switch_and_a_directory_of_its_own(inventory: Inventory) -> None:
    document = rendered(inventory)
    if document is None:
        return
    assert document.version == document.needed_version
    for name, edits in document.devices.items():
        assert edits.env == ("HAILO_MONITOR=1",)
        [mount] = [m for m in edits.mounts if m.container_path == MONITOR_IN_CONTAINER]
        assert mount.host_path == f"/run/hailo-agent/monitor/{name}"
        assert "rw" in mount.options
        assert {"nosuid", "nodev", "noexec"} <= set(mount.options)


@given(reachable())
def test_nothing_else_of_the_spec_changes(inventory: Inventory) -> None:
    document, plain = rendered(inventory), render(inventory, Place())
    if document is None:
        assert plain is None
        return
    assert plain is not None
    without = read(plain.to_json(), name=FILE_NAME, newest="1.1.0")
    assert (document.version, document.edits) == (without.version, without.edits)
    for name, edits in without.devices.items():
        assert edits.env == ()
        assert document.devices[name].device_nodes == edits.device_nodes
        assert document.devices[name].mounts[:-1] == edits.mounts


def test_a_container_with_several_names_gets_the_directory_of_the_last() -> None:
    document = rendered(after(seen(found(BOARD), found(NEIGHBOUR))))
    assert document is not None
    for asked in ([BOARD.id, NEIGHBOUR.id], [NEIGHBOUR.id, BOARD.id], [BOARD.id, "all"]):
        making = Making(root=Path("/"), user=(0, 0), env={})
        for name in asked:
            making.add_env(document.devices[name].env)
            for mount in document.devices[name].mounts:
                making.add_mount(
                    mount.host_path, mount.container_path, type_="bind", options=mount.options
                )
        assert making.env == {"HAILO_MONITOR": "1"}
        assert making.mounts[MONITOR_IN_CONTAINER][0].endswith(f"/monitor/{asked[-1]}")
