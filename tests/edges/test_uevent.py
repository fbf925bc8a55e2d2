"""`host.uevent` on the kernel's own netlink socket, and what it takes for a device of ours.

Real uevents are announced through the kernel, which takes root; reading what they say does not.
"""

import asyncio
import ctypes
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.device import FAMILIES
from hailo_agent.errors import HostError
from hailo_agent.host.uevent import concerns, in_initial_user_namespace, listen
from hailo_agent.sim.machine import Machine

CLASS_NAMES = {family.class_name for family in FAMILIES}
SOON_SECONDS = 5.0
QUIET_SECONDS = 0.3
NETLINK_KOBJECT_UEVENT = 15

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may announce uevents")


def uevent(action: str, path: str, **fields: str) -> bytes:
    """Spell a uevent as the kernel does."""
    said = {"ACTION": action, "DEVPATH": path, **fields, "SEQNUM": "4711"}
    parts = [f"{action}@{path}", *(f"{name}={value}" for name, value in said.items())]
    return "\0".join(parts).encode() + b"\0"


@pytest.mark.parametrize("class_name", sorted(CLASS_NAMES))
@pytest.mark.parametrize("action", ["add", "remove", "change"])
def test_a_uevent_of_a_hailo_class_concerns_us(class_name: str, action: str) -> None:
    path = f"/devices/virtual/{class_name}/x0"
    assert concerns(uevent(action, path, SUBSYSTEM=class_name, DEVNAME="x0"), CLASS_NAMES)


@pytest.mark.parametrize("pci_id", ["1E60:2864", "1e60:45c4", "1E60:FFFF"])
def test_a_uevent_of_the_vendors_pci_functions_concerns_us(pci_id: str) -> None:
    message = uevent("bind", "/devices/pci0000:00/0000:01:00.0", SUBSYSTEM="pci", PCI_ID=pci_id)
    assert concerns(message, CLASS_NAMES)


@pytest.mark.parametrize(
    "message",
    [
        uevent("add", "/devices/x", SUBSYSTEM="pci", PCI_ID="8086:1E60"),
        uevent("add", "/devices/x", SUBSYSTEM="pci"),
        uevent("add", "/devices/x", SUBSYSTEM="usb", PCI_ID="1E60:2864"),
        uevent("add", "/devices/x", SUBSYSTEM="hailo_charde"),
        uevent("add", "/devices/x/hailo_chardev", SUBSYSTEM="block"),
        b"",
        b"\0",
        b"SUBSYSTEM=hailo_chardev",
        b"libudev\0\xfe\xed\xca\xfe",
        b"\xff\xfe\0SUBSYSTEM",
    ],
)
def test_everything_else_does_not(message: bytes) -> None:
    assert not concerns(message, CLASS_NAMES)


@given(st.binary(max_size=200))
def test_no_message_is_too_strange_to_be_read(message: bytes) -> None:
    assert concerns(message, CLASS_NAMES) in {True, False}


# --- the socket ------------------------------------------------------------------------------


@dataclass(slots=True)
class Ears:
    """What was rung and reported."""

    rings: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self, reason: str) -> None:
        self.rings.append(reason)
        self.moved.set()

    def report(self, reason: str) -> None:
        self.reports.append(reason)
        self.moved.set()

    async def until_rung(self, times: int, within: float = SOON_SECONDS) -> None:
        async with asyncio.timeout(within):
            while len(self.rings) < times:
                self.moved.clear()
                await self.moved.wait()


@asynccontextmanager
async def listening(class_names: set[str] | None = None) -> AsyncIterator[Ears]:
    ears = Ears()
    task = asyncio.create_task(listen(ears.ring, class_names or CLASS_NAMES, ears.report))
    try:
        said = asyncio.create_task(ears.moved.wait())
        await asyncio.wait({task, said}, timeout=SOON_SECONDS, return_when="FIRST_COMPLETED")
        said.cancel()
        assert ears.reports == [""]
        yield ears
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


CLONE_NEWNET = 0x4000_0000


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    """Hear nobody else, and be heard by nobody: uevents stay within a network namespace.

    Sockets belong to the namespace of the thread that makes them; here all is the main thread's.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        is_alone = libc.unshare(CLONE_NEWNET) == 0  # it takes CAP_SYS_ADMIN
        yield
        assert not is_alone or libc.setns(before, CLONE_NEWNET) == 0
    finally:
        os.close(before)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "machine", uevents=True)
    yield machine
    machine.close()


@needs_root
async def test_a_device_that_comes_and_goes_rings_each_time(machine: Machine) -> None:
    machine.load("4.23")
    async with listening() as ears:
        started_at = time.monotonic()
        machine.plug("0000:01:00.0")
        await ears.until_rung(1)
        assert time.monotonic() - started_at < SOON_SECONDS
        rung = len(ears.rings)
        machine.pull("0000:01:00.0")
        await ears.until_rung(rung + 1)
        assert set(ears.rings) == {"uevent"}


@needs_root
async def test_an_unbound_driver_is_heard_through_the_pci_function(machine: Machine) -> None:
    machine.load("5.3")
    machine.plug("0000:01:00.0", pci_id="1e60:45c4")
    async with listening(class_names={"nothing-of-ours"}) as ears:
        machine.unbind("0000:01:00.0")
        await ears.until_rung(1)


@needs_root
async def test_a_module_of_others_wakes_nobody() -> None:
    from hailo_agent.sim.uevents import Uevents  # noqa: PLC0415 - needs root

    kernel = Uevents()

    def send() -> None:
        for number in range(50):
            kernel.send("add", f"/devices/virtual/net/veth{number}", "net", b"IFINDEX=1\n")

    try:
        async with listening() as ears:
            send()
            with pytest.raises(TimeoutError):
                await ears.until_rung(1, within=QUIET_SECONDS)
    finally:
        kernel.close()


@needs_root
async def test_an_impostor_is_not_heard() -> None:
    """Whoever sends to the group himself comes from a port that is not the kernel's."""
    impostor = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
    with impostor:
        impostor.bind((0, 0))
        message = uevent("add", "/devices/x", SUBSYSTEM="hailo_chardev")
        async with listening() as ears:
            impostor.sendto(message, (0, 1))
            with pytest.raises(TimeoutError):
                await ears.until_rung(1, within=QUIET_SECONDS)


@needs_root
async def test_a_storm_that_overruns_the_buffer_rings_and_is_survived() -> None:
    """What the kernel had to drop may have been about us, so its ENOBUFS rings as well."""
    from hailo_agent.sim.uevents import Uevents  # noqa: PLC0415 - needs root

    kernel = Uevents()
    try:
        async with listening() as ears:
            for number in range(4000):  # none of it ours, and nobody reads meanwhile
                kernel.send("add", f"/devices/virtual/net/veth{number}", "net", b"X=" + b"y" * 900)
            await ears.until_rung(1)
            rung = len(ears.rings)
            kernel.send("add", "/devices/virtual/hailo_chardev/hailo0", "hailo_chardev", b"")
            await ears.until_rung(rung + 1)
    finally:
        kernel.close()


async def test_the_socket_is_given_back_when_nobody_listens_any_more() -> None:
    if not in_initial_user_namespace():
        pytest.skip("this process is in a user namespace, where nothing is heard")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    async with listening():
        pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# --- where nothing can be heard ----------------------------------------------------------------

LISTEN_HERE = """
import asyncio
from hailo_agent.errors import HostError
from hailo_agent.host.uevent import in_initial_user_namespace, listen
reports = []
async def main():
    try:
        async with asyncio.timeout(5):
            await listen(lambda _: None, {"hailo_chardev"}, reports.append)
    except HostError as error:
        print(in_initial_user_namespace(), reports, error)
asyncio.run(main())
"""


def test_in_a_user_namespace_it_says_that_nothing_is_heard_there() -> None:
    if subprocess.run(["unshare", "-U", "-r", "true"], check=False, timeout=10).returncode:
        pytest.skip("user namespaces are not permitted here")
    done = subprocess.run(
        ["unshare", "-U", "-r", sys.executable, "-c", LISTEN_HERE],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.strip() == (
        "False [] uevents do not reach a user namespace (hostUsers: false);"
        " changes are seen by inotify or the resync"
    )


@pytest.mark.parametrize(
    ("text", "initial"),
    [
        ("         0          0 4294967295\n", True),
        ("         0       1000          1\n", False),
        ("         0     100000      65536\n", False),
        ("", False),
    ],
)
def test_the_initial_user_namespace_is_told_by_its_map(
    tmp_path: Path, text: str, *, initial: bool
) -> None:
    (tmp_path / "uid_map").write_text(text)
    assert in_initial_user_namespace(tmp_path / "uid_map") == initial


@needs_root
async def test_no_socket_to_be_had_is_an_edge_error_with_its_reason() -> None:
    """Here for want of descriptors; a seccomp filter that knows no netlink looks the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(HostError, match="no netlink socket for uevents: ") as raised:
            await listen(lambda _: None, CLASS_NAMES, lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in str(raised.value)


def test_the_header_of_netlink_is_none_of_our_business() -> None:
    """The kernel's uevents come without one; a message that has one is no uevent."""
    header = struct.pack("=IHHII", 100, 2, 0, 0, 0)
    assert not concerns(header + uevent("add", "/x", SUBSYSTEM="block"), CLASS_NAMES)
