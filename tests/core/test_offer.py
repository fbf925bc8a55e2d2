"""Offers: every device is counted under exactly one resource."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.device import HAILO_VENDOR, Device, DeviceId, Model, PciId
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import ResourceNames, endpoint_name, offers
from tests.strategies import (
    BOARDS,
    OTHER_RESOURCE,
    RESOURCE,
    SOC,
    How,
    after,
    found,
    inventories,
    listed,
    only,
    seen,
)

BOARD, NEIGHBOUR, TENTH, FAR = BOARDS


def names() -> st.SearchStrategy[ResourceNames]:
    """Ways of naming resources; that of the tenth is always served, so no phantom is lost."""
    kinds = st.sampled_from(["hailo-8", "hailo-10h", "unknown", "1e60:2864", "1e60:43a2"])
    resources = st.sampled_from([RESOURCE, OTHER_RESOURCE, "hailo.ai/third"])
    return st.builds(
        lambda by_kind: ResourceNames(
            default=RESOURCE, by_kind={**by_kind, "hailo-15h": OTHER_RESOURCE}
        ),
        st.dictionaries(kinds, resources, max_size=3),
    )


@given(inventories(), names())
def test_every_device_is_offered_under_exactly_one_resource(
    inventory: Inventory, given_names: ResourceNames
) -> None:
    offered = [
        offer.device
        for resource in given_names.all()
        for offer in offers(inventory, resource, given_names)
    ]
    assert sorted(device.id for device in offered) == [d.id for d in inventory.devices]


@given(inventories(), names())
def test_offers_are_unique_and_in_order_and_tell_their_device(
    inventory: Inventory, given_names: ResourceNames
) -> None:
    for resource in given_names.all():
        offered = offers(inventory, resource, given_names)
        ids = [offer.id for offer in offered]
        assert ids == sorted(set(ids))
        assert all(str(offer.id) == str(offer.device.id) for offer in offered)


@given(inventories())
def test_one_name_offers_everything_healthy_or_not(inventory: Inventory) -> None:
    plain = tuple(replace(device, resource=None) for device in inventory.devices)
    everything = replace(inventory, devices=plain)
    offered = offers(everything, RESOURCE, ResourceNames(default=RESOURCE))
    assert tuple(offer.device for offer in offered) == everything.devices


@pytest.mark.parametrize(
    ("by_kind", "resource"),
    [
        ({}, "default/npu"),
        ({"hailo-10h": "by/model"}, "by/model"),
        ({"1e60:45c4": "by/id"}, "by/id"),
        ({"hailo-10h": "by/model", "1e60:45c4": "by/id"}, "by/id"),
        ({"hailo-8": "by/model", "1e60:2864": "by/id"}, "default/npu"),
    ],
)
def test_a_resource_is_chosen_by_pci_id_then_by_model(
    by_kind: dict[str, str], resource: str
) -> None:
    device = only(after(seen(found(TENTH))))
    assert ResourceNames(default="default/npu", by_kind=by_kind).of(device) == resource


def test_a_device_without_a_pci_id_is_named_by_its_model() -> None:
    given_names = ResourceNames(default="default/npu", by_kind={"unknown": "by/model"})
    assert given_names.of(only(after(seen(found(SOC))))) == "by/model"


def test_a_phantom_is_offered_where_the_kubelet_remembers_it() -> None:
    given_names = ResourceNames(default=RESOURCE, by_kind={"hailo-10h": OTHER_RESOURCE})
    heard = listed(TENTH.id, at=0.0, resource=OTHER_RESOURCE)
    inventory = after(seen(found(BOARD), holdings=heard))
    assert [o.device.id for o in offers(inventory, OTHER_RESOURCE, given_names)] == [TENTH.id]
    assert [o.device.id for o in offers(inventory, RESOURCE, given_names)] == [BOARD.id]


@pytest.mark.parametrize("how", How)
def test_a_held_device_never_moves_from_one_resource_to_another(how: How) -> None:
    given_names = ResourceNames(default=RESOURCE, by_kind={"hailo-10h": OTHER_RESOURCE})
    heard = listed(TENTH.id, at=0.0, resource=OTHER_RESOURCE)
    looks = [seen(found(TENTH), holdings=heard), seen(found(TENTH, how), holdings=heard)]
    assert [o.device.id for o in offers(after(*looks), OTHER_RESOURCE, given_names)] == [TENTH.id]


def test_every_resource_is_served_also_without_a_device() -> None:
    by_kind = {"hailo-8": "b/b", "hailo-10h": "a/a", "1e60:2864": "b/b"}
    assert ResourceNames(default="d/d", by_kind=by_kind).all() == ("a/a", "b/b", "d/d")
    assert offers(Inventory(), "a/a", ResourceNames(default="d/d", by_kind=by_kind)) == ()


def test_an_unknown_model_of_ours_is_offered_by_default() -> None:
    device = Device(id=DeviceId("pci-x"), model=Model.UNKNOWN, pci_id=PciId(HAILO_VENDOR, 1))
    assert ResourceNames(default="d/d", by_kind={"hailo-8": "a/a"}).of(device) == "d/d"


def test_no_two_resources_share_an_endpoint() -> None:
    assert endpoint_name("hailo.ai/npu") == "hailo.ai_npu.sock"
    resources = ["hailo.ai/npu", "hailo.ai/hailo-8", "hailo/ai_npu", "hailo.ai/npu_2"]
    assert len({endpoint_name(resource) for resource in resources}) == len(resources)
