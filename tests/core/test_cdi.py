"""The spec: whatever the inventory holds, every runtime can read what is rendered of it."""

import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.cdi import (
    FILE_NAME,
    KIND,
    Place,
    Spec,
    links,
    numbers,
    qualified,
    render,
)
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.observation import Observation
from hailo_agent.runtime.reader import Document, read, split_name
from tests.strategies import (
    BOARDS,
    CLASSIC,
    GONE,
    POLICY,
    RENAMED,
    SOC,
    How,
    after,
    found,
    histories,
    listed,
    reachable,
    seen,
    set_aside,
)

BOARD, NEIGHBOUR, TENTH, _ = BOARDS
PLACE = Place()


def read_back(spec: Spec, newest: str = "1.1.0") -> Document:
    return read(spec.to_json(), name=FILE_NAME, newest=newest)


def rendered(inventory: Inventory, place: Place = PLACE) -> Document:
    spec = render(inventory, place)
    assert spec is not None
    return read_back(spec)


def there(inventory: Inventory) -> dict[str, str]:
    """Tell the devnode of every device that a runtime could inject."""
    return {
        device.id: device.devnode.name
        for device in inventory.devices
        if device.devnode is not None and device.devnode.is_sound
    }


@given(reachable())
def test_every_spec_is_one_that_runtimes_take(inventory: Inventory) -> None:
    spec = render(inventory, PLACE)
    assert (spec is None) == (not there(inventory))
    if spec is not None:
        document = read_back(spec)
        assert document.kind == KIND
        assert set(document.devices) == {*there(inventory), "all"}


@given(reachable())
def test_a_spec_says_the_lowest_version_that_it_needs(inventory: Inventory) -> None:
    spec = render(inventory, PLACE)
    if spec is not None:
        # containerd 1.7.0 knows 0.5.0 at most, CRI-O 1.24 an even older one.
        document = read_back(spec, newest=spec.cdi_version)
        assert document.version == document.needed_version


@given(reachable())
def test_each_name_stands_for_its_own_node_and_entry(inventory: Inventory) -> None:
    if not there(inventory):
        return
    document = rendered(inventory)
    for device_id, name in there(inventory).items():
        edits = document.devices[device_id]
        assert [node.path for node in edits.device_nodes] == [f"/dev/{name}"]
        assert [mount.host_path.rpartition("/")[2] for mount in edits.mounts] == [name]
        assert [mount.container_path for mount in edits.mounts] == [
            mount.host_path for mount in edits.mounts
        ]


@given(reachable())
def test_every_class_is_masked_before_an_entry_of_it_is_shown(inventory: Inventory) -> None:
    if not there(inventory):
        return
    document = rendered(inventory)
    masks = {mount.container_path for mount in document.edits.mounts}
    assert masks == {f"/sys/class/{name}" for name in inventory.class_names}
    for edits in document.devices.values():
        for mount in edits.mounts:
            assert mount.container_path.rpartition("/")[0] in masks


@given(histories(), st.integers(0, 1 << 16))
def test_the_order_of_sightings_does_not_show_in_the_bytes(
    history: list[Observation], seed: int
) -> None:
    random = Random(seed)
    shuffled = [
        replace(
            look,
            sightings=tuple(random.sample(look.sightings, len(look.sightings))),
            class_names=tuple(random.sample(look.class_names, len(look.class_names))),
        )
        for look in history
    ]
    one, other = (render(after(*looks), PLACE) for looks in (history, shuffled))
    assert (one and one.to_json()) == (other and other.to_json())


@given(reachable())
def test_numbers_and_links_are_told_of_exactly_the_names_of_the_spec(inventory: Inventory) -> None:
    assert set(numbers(inventory)) == set(there(inventory))
    assert links(inventory, PLACE) == {i: f"/dev/{name}" for i, name in there(inventory).items()}


def test_no_device_renders_as_no_spec() -> None:
    assert render(after(seen()), PLACE) is None
    assert render(after(seen(found(BOARD, How.UNSERVED))), PLACE) is None
    assert render(after(seen(found(BOARD)), seen()), PLACE) is None


@pytest.mark.parametrize("how", [How.NO_NODE, How.LINK, How.NO_DEVICE, How.OTHER_NUMBER, *GONE])
def test_a_device_without_its_node_is_in_no_spec(how: How) -> None:
    ill = after(seen(found(BOARD), found(NEIGHBOUR)), seen(found(BOARD, how), found(NEIGHBOUR)))
    assert set(rendered(ill).devices) == {NEIGHBOUR.id, "all"}
    assert set(numbers(ill)) == {NEIGHBOUR.id}


@pytest.mark.parametrize("how", [How.HUNG, How.BROKEN, How.INCOMPLETE])
def test_an_ill_device_whose_node_is_there_stays_in_the_spec(how: How) -> None:
    # The containers that hold it may restart, and its spec must not change for its fault.
    well, ill = after(seen(found(BOARD))), after(seen(found(BOARD)), seen(found(BOARD, how)))
    one, other = render(well, PLACE), render(ill, PLACE)
    assert one is not None
    assert other is not None
    assert one.to_json() == other.to_json()


def test_a_board_of_each_driver_line_is_masked_in_each_class() -> None:
    both = after(seen(found(BOARD), found(TENTH, family=RENAMED)))
    document = rendered(both)
    assert [mount.container_path for mount in document.edits.mounts] == [
        "/sys/class/hailo1x",
        "/sys/class/hailo_chardev",
    ]
    assert document.devices[TENTH.id].device_nodes[0].path == "/dev/h1x-2"


def test_all_stands_for_every_device_but_the_denied_ones() -> None:
    policy = replace(POLICY, deny=(BOARD.id,))
    heard = listed(BOARD.id, at=0.0)
    look = seen(found(BOARD), found(NEIGHBOUR), found(TENTH), holdings=heard)
    document = rendered(after(look, policy=policy))
    assert set(document.devices) == {BOARD.id, NEIGHBOUR.id, TENTH.id, "all"}
    paths = [node.path for node in document.devices["all"].device_nodes]
    assert paths == ["/dev/hailo1", "/dev/hailo2"]


def test_all_leaves_out_what_is_cordoned_though_its_own_name_stays() -> None:
    look = replace(seen(found(BOARD), found(NEIGHBOUR)), cordons=set_aside(BOARD.id))
    document = rendered(after(look))
    assert set(document.devices) == {BOARD.id, NEIGHBOUR.id, "all"}
    assert [node.path for node in document.devices["all"].device_nodes] == ["/dev/hailo1"]


def test_all_is_never_empty_for_readers_refuse_that() -> None:
    policy = replace(POLICY, deny=("*",))
    look = seen(found(BOARD), holdings=listed(BOARD.id, at=0.0))
    document = rendered(after(look, policy=policy))
    assert [node.path for node in document.devices["all"].device_nodes] == ["/dev/hailo0"]


def test_without_a_class_there_is_nothing_to_mask_and_the_oldest_version_will_do() -> None:
    bare = replace(after(seen(found(BOARD))), class_names=())
    document = rendered(bare)
    assert document.edits.empty
    assert document.version == "0.3.0"
    assert rendered(after(seen(found(BOARD)))).version == "0.4.0"


def test_nodes_and_mounts_say_where_the_runtime_finds_them() -> None:
    place = Place(dev="/host/dev", sys="/host/sys", links="/run/links")
    inventory = after(seen(found(BOARD)))
    document = rendered(inventory, place)
    edits = document.devices[BOARD.id]
    assert document.version == "0.5.0"  # the first that knows hostPath
    assert edits.device_nodes[0].path == "/dev/hailo0"
    assert edits.device_nodes[0].host_path == "/host/dev/hailo0"
    assert edits.mounts[0].host_path == "/host/sys/class/hailo_chardev/hailo0"
    assert edits.mounts[0].container_path == "/sys/class/hailo_chardev/hailo0"
    assert links(inventory, place) == {BOARD.id: "/host/dev/hailo0"}


def test_access_is_to_read_and_write_and_no_number_is_fixed() -> None:
    node = rendered(after(seen(found(BOARD)))).devices[BOARD.id].device_nodes[0]
    assert (node.permissions, node.type, node.major, node.minor) == ("rw", "", 0, 0)


def test_what_is_shown_of_sysfs_cannot_be_written() -> None:
    document = rendered(after(seen(found(BOARD))))
    (mask,) = document.edits.mounts
    (entry,) = document.devices[BOARD.id].mounts
    assert (mask.type, mask.host_path) == ("tmpfs", "tmpfs")
    assert {"nosuid", "nodev", "noexec"} <= set(mask.options)
    assert {"ro", "bind", "nosuid", "nodev", "noexec"} <= set(entry.options)


def test_a_name_is_qualified_as_readers_take_it_apart() -> None:
    inventory = after(seen(*(found(board) for board in (*BOARDS, SOC))))
    for device in inventory.devices:
        assert split_name(qualified(device.id)) == ("hailo.ai", "npu", device.id)


def test_what_one_device_says_is_what_the_file_says_of_it() -> None:
    spec = render(after(seen(found(BOARD, family=CLASSIC))), PLACE)
    assert spec is not None
    document = json.loads(spec.to_json())
    assert document["devices"] == [device.to_document() for device in spec.devices]
    assert spec.to_json().endswith(b"}\n")
