"""A grant: each device once, never one that is not fit, and a refusal says which and why."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hailo_agent.core.cdi import Place, qualified, render
from hailo_agent.core.device import Device, DeviceId, PciAddress, soc_device_id
from hailo_agent.core.grant import ANNOTATION_PREFIX, Delivery, Grant, grant
from hailo_agent.core.health import Fault, FaultCode, Health
from hailo_agent.core.inventory import Inventory
from hailo_agent.core.offer import Offer, OfferId, ResourceNames, offers
from hailo_agent.errors import DeviceUnavailable, Refusal, UnknownOffer
from hailo_agent.runtime.reader import split_name
from tests.strategies import (
    BOARDS,
    IDS,
    POLICY,
    RESOURCE,
    How,
    after,
    found,
    listed,
    reachable,
    seen,
)

BOARD, NEIGHBOUR, *_ = BOARDS
NAMES = ResourceNames(default=RESOURCE)
EVERY_WAY = frozenset(Delivery)
PLACE = Place(dev="/dev", links="/run/hailo-agent/devices")


def ask(
    inventory: Inventory, *ids: str, delivery: frozenset[Delivery] = EVERY_WAY, place: Place = PLACE
) -> Grant:
    return grant(
        offers(inventory, RESOURCE, NAMES),
        [OfferId(device_id) for device_id in ids],
        resource=RESOURCE,
        delivery=delivery,
        place=place,
    )


BOTH = after(seen(found(BOARD), found(NEIGHBOUR)))


@given(reachable(), st.lists(st.sampled_from(IDS), max_size=6))
def test_a_grant_is_exactly_what_was_asked_for_or_a_refusal(
    inventory: Inventory, ids: list[DeviceId]
) -> None:
    devices = {offer.device.id: offer.device for offer in offers(inventory, RESOURCE, NAMES)}
    unknown = [device_id for device_id in ids if device_id not in devices]
    unfit = [i for i in ids if i in devices and devices[i].health is not Health.HEALTHY]
    if not unknown and not unfit:
        granted = ask(inventory, *ids)
        assert [device.id for device in granted.devices] == list(dict.fromkeys(ids))
        assert all(device.is_usable for device in granted.devices)
        return
    with pytest.raises(Refusal) as refused:
        ask(inventory, *ids)
    first = next(i for i in ids if i in {*unknown, *unfit})
    assert isinstance(refused.value, UnknownOffer if first in unknown else DeviceUnavailable)
    assert first in str(refused.value)
    assert RESOURCE in str(refused.value)


@given(reachable(), st.lists(st.sampled_from(IDS), max_size=6))
def test_every_name_that_is_granted_is_in_the_spec(
    inventory: Inventory, ids: list[DeviceId]
) -> None:
    # A device that a pod holds under another name of ours stays under that one.
    offered = {offer.device.id for offer in offers(inventory, RESOURCE, NAMES)}
    usable = [i for i in ids if i in offered and inventory.by_id()[i].is_usable]
    spec = render(inventory, PLACE)
    names = {qualified(device.name) for device in spec.devices} if spec else set()
    assert set(ask(inventory, *usable).cdi_devices) <= names


def test_a_device_is_handed_out_in_every_way_that_was_chosen() -> None:
    granted = ask(BOTH, NEIGHBOUR.id, BOARD.id)
    assert granted.cdi_devices == (
        "hailo.ai/npu=pci-0000-02-00-0",
        "hailo.ai/npu=pci-0000-01-00-0",
    )
    assert granted.annotations == (
        (
            "cdi.k8s.io/hailo-agent_pci-0000-01-00-0",
            "hailo.ai/npu=pci-0000-02-00-0,hailo.ai/npu=pci-0000-01-00-0",
        ),
    )
    assert granted.devnodes == (
        ("/run/hailo-agent/devices/pci-0000-02-00-0", "/dev/hailo1"),
        ("/run/hailo-agent/devices/pci-0000-01-00-0", "/dev/hailo0"),
    )


@pytest.mark.parametrize("way", Delivery)
def test_a_device_is_handed_out_in_no_other_way(way: Delivery) -> None:
    granted = ask(BOTH, BOARD.id, delivery=frozenset({way}))
    told = {
        Delivery.CRI: granted.cdi_devices,
        Delivery.ANNOTATION: granted.annotations,
        Delivery.DEVICESPEC: granted.devnodes,
    }
    assert {key for key, value in told.items() if value} == {way}


def test_asking_twice_for_a_device_gives_it_once() -> None:
    granted = ask(BOTH, BOARD.id, BOARD.id)
    assert len(granted.devices) == len(granted.cdi_devices) == len(granted.devnodes) == 1


def test_asking_for_nothing_gives_nothing() -> None:
    assert ask(BOTH) == Grant()


def test_an_unknown_id_is_refused_as_not_found() -> None:
    with pytest.raises(UnknownOffer, match="'/dev/hailo0'") as refused:
        ask(BOTH, BOARD.id, "/dev/hailo0")
    assert refused.value.status == "NOT_FOUND"


def test_a_device_of_another_resource_is_unknown_to_this_one() -> None:
    elsewhere = ResourceNames(default="hailo.ai/other", by_kind={"hailo-8": "hailo.ai/eight"})
    with pytest.raises(UnknownOffer, match=BOARD.id):
        grant(
            offers(BOTH, "hailo.ai/other", elsewhere),
            [OfferId(BOARD.id)],
            resource="hailo.ai/other",
            delivery=EVERY_WAY,
            place=PLACE,
        )


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (How.ABSENT, "the machine does not have it any more"),
        (How.NO_NODE, "/dev/hailo0 does not exist"),
        (How.OTHER_NUMBER, "/dev/hailo0 is 1:3, the kernel says 507:0"),
    ],
)
def test_an_unfit_device_is_refused_with_the_reason(how: How, reason: str) -> None:
    ill = after(seen(found(BOARD), found(NEIGHBOUR)), seen(found(BOARD, how), found(NEIGHBOUR)))
    with pytest.raises(DeviceUnavailable, match=reason) as refused:
        ask(ill, NEIGHBOUR.id, BOARD.id)
    assert refused.value.status == "FAILED_PRECONDITION"
    assert BOARD.id in str(refused.value)


def test_a_denied_device_is_refused_even_to_whom_it_belonged() -> None:
    policy = replace(POLICY, deny=(BOARD.id,))
    denied = after(seen(found(BOARD), holdings=listed(BOARD.id, at=0.0)), policy=policy)
    with pytest.raises(DeviceUnavailable, match="set aside"):
        ask(denied, BOARD.id)


@pytest.mark.parametrize(
    "device",
    [
        Device(id=BOARD.id),  # healthy, and has no devnode
        Device(
            id=BOARD.id,
            health=Health.UNHEALTHY,
            faults=(Fault(code=FaultCode.VANISHED, subject="", message="a reason", remedy=""),),
        ),
    ],
)
def test_a_refusal_always_gives_some_reason(device: Device) -> None:
    with pytest.raises(DeviceUnavailable, match=r"not available: (a reason|it is not usable)$"):
        grant(
            [Offer(id=OfferId(device.id), device=device)],
            [OfferId(device.id)],
            resource=RESOURCE,
            delivery=EVERY_WAY,
            place=PLACE,
        )


@given(st.integers(1, 0xFFFFFFFF), st.text("abc/", min_size=1, max_size=300))
@example(domain=1, path="abc/" * 60)
def test_the_annotation_is_one_that_the_api_server_takes(domain: int, path: str) -> None:
    for device_id in (PciAddress(domain, 1, 2, 3).device_id, soc_device_id(f"/devices/a{path}z")):
        device = replace(BOTH.devices[0], id=device_id)
        ((key, value),) = ask(Inventory(devices=(device,)), device_id).annotations
        prefix, _, name = key.partition("/")
        assert f"{prefix}/" == ANNOTATION_PREFIX
        assert len(name) <= 63
        assert name[0].isalnum()
        assert name[-1].isalnum()
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")
        assert [split_name(v) for v in value.split(",")] == [("hailo.ai", "npu", device_id)]


def test_two_grants_of_one_container_never_meet_under_one_annotation() -> None:
    keys = {ask(BOTH, board.id).annotations[0][0] for board in (BOARD, NEIGHBOUR)}
    assert len(keys) == 2


def test_a_way_needs_our_spec_unless_it_hands_out_plain_nodes() -> None:
    assert {way for way in Delivery if not way.needs_spec} == {Delivery.DEVICESPEC}
