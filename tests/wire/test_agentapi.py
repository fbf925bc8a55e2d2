"""Our own API: what distinguishes "no" from "not known" must survive the wire."""

from betterproto2 import which_one_of

from hailo_agent.wire import agentapi as api
from tests.wire.encoding import raw


def test_not_known_is_not_zero() -> None:
    known = api.Device(id="a", major=0, minor=0, numa_node=0, held=False)
    encoded = raw(b"\x0a\x01a", b"\x38\x00", b"\x40\x00", b"\x68\x00", b"\x90\x01\x00")
    assert bytes(known) == encoded
    assert api.Device.parse(encoded) == known

    unknown = api.Device.parse(b"\x0a\x01a")
    assert (unknown.major, unknown.minor, unknown.numa_node, unknown.held) == (None,) * 4
    assert (unknown.pci_address, unknown.pci_id, unknown.link) == (None,) * 3


def test_a_stream_message_is_either_the_inventory_or_changes() -> None:
    first = api.WatchResponse.parse(b"\x0a\x02\x28\x07")
    assert which_one_of(first, "event") == ("inventory", api.Inventory(revision=7))
    later = api.WatchResponse.parse(b"\x12\x06\x08\x08\x12\x02\x08\x01")
    added = api.Change(kind=api.ChangeKind.ADDED)
    assert which_one_of(later, "event") == ("changes", api.Changes(revision=8, changes=[added]))


def test_an_empty_inventory_is_still_an_inventory() -> None:
    message = api.WatchResponse(inventory=api.Inventory())
    assert bytes(message) == b"\x0a\x00"
    assert api.WatchResponse.parse(b"\x0a\x00").inventory == api.Inventory()


def test_a_kind_of_change_that_is_not_known_yet_is_passed_on_as_a_number() -> None:
    change = api.Change.parse(b"\x08\x63")
    assert int(change.kind) == 99


def test_services_and_methods_have_the_names_that_other_languages_are_told() -> None:
    assert set(api.DeviceEventsBase().__mapping__()) == {
        "/hailo.agent.v1.DeviceEvents/Watch",
        "/hailo.agent.v1.DeviceEvents/GetInventory",
        "/hailo.agent.v1.DeviceEvents/ListRecent",
    }
