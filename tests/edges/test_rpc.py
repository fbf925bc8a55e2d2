"""`rpc` on real unix sockets: a socket that is seen answers, and nobody on the other side can harm.

The service under test is a made-up one, spoken in the kubelet's registration messages.
"""

import asyncio
import gc
import os
import random
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hailo_agent.errors import DeviceUnavailable, EdgeError, UnknownOffer
from hailo_agent.rpc.dial import PeerRefused, dialing, translating
from hailo_agent.rpc.endpoint import Endpoint, identity_of, serving
from hailo_agent.wire import agentapi, deviceplugin

REGISTER = "/v1beta1.Registration/Register"
WATCH = "/hailo.agent.v1.DeviceEvents/Watch"
SOON_SECONDS = 5.0
RANDOM = random.Random(8)

# asyncio drops connections that come in the very turn in which their server closes; whichever test
# runs when they are collected would be blamed for it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path short enough for sockets."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="rpc-", dir=memory) as path:
        yield Path(path)


class Registry(deviceplugin.RegistrationBase):
    """Answers by the resource name it is asked about."""

    async def register(self, message: deviceplugin.RegisterRequest) -> deviceplugin.Empty:
        match message.resource_name:
            case "unknown":
                raise UnknownOffer("there is no device 'x'")
            case "unavailable":
                raise DeviceUnavailable("device x is gone")
            case "bug":
                raise ZeroDivisionError("nobody needs to know this")
            case "hang":
                await asyncio.Event().wait()
        return deviceplugin.Empty()


class Events(agentapi.DeviceEventsBase):
    """Streams one message and then nothing more."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def watch(self, message: agentapi.WatchRequest) -> AsyncIterator[agentapi.WatchResponse]:
        try:
            yield agentapi.WatchResponse()
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def call(path: Path, resource: str = "", timeout_seconds: float = SOON_SECONDS) -> None:
    with translating("kubelet", "calling"):
        async with dialing(path) as channel:
            await deviceplugin.RegistrationStub(channel).register(
                deviceplugin.RegisterRequest(resource_name=resource), timeout=timeout_seconds
            )


def open_sockets() -> int:
    """Count sockets: pytest and its plugins open files whenever they like."""
    gc.collect()  # sockets of earlier tests close when they are collected
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(descriptor.readlink()).startswith("socket:")
    return found


# --- the socket's file --------------------------------------------------------------------------


async def test_the_socket_is_there_for_its_owner_alone_and_goes_with_the_block(
    directory: Path,
) -> None:
    path = directory / "a.sock"
    async with serving(path, [Registry()], edge="kubelet") as endpoint:
        assert stat.S_ISSOCK(mode_of(path))
        assert stat.S_IMODE(mode_of(path)) == 0o600
        assert endpoint.is_published()
        assert names_in(directory) == ["a.sock"]
        await call(path)
    assert names_in(directory) == []


def mode_of(path: Path) -> int:
    return path.lstat().st_mode


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_whoever_sees_the_socket_can_connect(directory: Path) -> None:
    path, over, refused, reached = directory / "a.sock", threading.Event(), [0], [0]

    def knock() -> None:
        while not over.is_set():
            with socket.socket(socket.AF_UNIX) as knocking:
                try:
                    knocking.connect(str(path))
                    reached[0] += 1
                except FileNotFoundError:
                    pass
                except ConnectionRefusedError:
                    refused[0] += 1
            time.sleep(0.0005)  # or nobody else would get into the backlog

    knocker = threading.Thread(target=knock)
    knocker.start()
    try:
        for _ in range(50):
            async with serving(path, [Registry()], edge="kubelet", grace_seconds=0.1):
                await call(path)
    finally:
        over.set()
        knocker.join()
    assert reached[0] > 0
    # On the way out there is a moment between closing and unlinking; on the way in there is none.
    assert refused[0] < reached[0]


async def test_the_socket_of_a_killed_process_is_replaced(directory: Path) -> None:
    path = directory / "a.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with serving(path, [Registry()], edge="kubelet"):
        await call(path)
    assert names_in(directory) == []


@pytest.mark.parametrize("what", ["file", "symlink", "fifo"])
async def test_what_is_no_socket_in_its_place_is_replaced_too(directory: Path, what: str) -> None:
    path, victim = directory / "a.sock", directory / "victim"
    put(victim)
    if what == "file":
        put(path)
    elif what == "symlink":
        os.symlink(victim, path)  # noqa: PTH211 - a path of the loop's thread
    else:
        os.mkfifo(path)
    async with serving(path, [Registry()], edge="kubelet"):
        await call(path)
    assert names_in(directory) == ["victim"]


def put(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("absent", "directory {} does not exist"),
        ("file", "{} is not a directory"),
        ("occupied", "cannot serve at"),
        ("long", "AF_UNIX path too long"),
    ],
)
async def test_a_socket_that_cannot_be_made_says_why_and_leaves_nothing(
    directory: Path, how: str, reason: str
) -> None:
    path = directory / "sub" / "a.sock"
    if how == "file":
        put(path.parent)
    elif how == "occupied":
        make(path / "in-the-way")
    elif how == "long":
        path = directory / ("a" * 100) / "a.sock"
        make(path.parent)
    before = open_sockets()
    with pytest.raises(EdgeError) as raised:
        async with serving(path, [Registry()], edge="kubelet"):
            pytest.fail("it is served where it cannot be")
    assert reason.format(path.parent) in str(raised.value)
    assert raised.value.edge == "kubelet"
    assert open_sockets() == before
    if how == "occupied":
        assert names_in(path.parent) == ["a.sock"]


def make(path: Path) -> None:
    path.mkdir(parents=True)


async def test_a_socket_that_was_removed_or_replaced_is_not_ours_any_more(directory: Path) -> None:
    path = directory / "a.sock"
    async with serving(path, [Registry()], edge="kubelet") as endpoint:
        os.unlink(path)  # noqa: PTH108
        assert not endpoint.is_published()
        put(path)
        assert not endpoint.is_published()
    assert names_in(directory) == ["a.sock"]  # whoever put it there may keep it


async def test_two_may_follow_each_other_at_one_path(directory: Path) -> None:
    path = directory / "a.sock"
    async with serving(path, [Registry()], edge="kubelet") as first:
        async with serving(path, [Registry()], edge="kubelet") as second:
            assert not first.is_published()
            assert second.is_published()
            await call(path)
        assert identity_of(path) is None


def test_a_file_is_known_by_its_inode_and_an_absent_one_by_nothing(directory: Path) -> None:
    put(directory / "a")
    found = (directory / "a").stat()
    assert identity_of(directory / "a") == (found.st_dev, found.st_ino)
    assert identity_of(directory / "b") is None
    assert identity_of(directory / "a" / "b") is None


# --- calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "status", "message"),
    [
        ("unknown", "NOT_FOUND", "calling: there is no device 'x'"),
        ("unavailable", "FAILED_PRECONDITION", "calling: device x is gone"),
        ("bug", "UNKNOWN", "calling: Internal Server Error"),
    ],
)
async def test_a_refusal_reaches_the_caller_with_status_and_words_and_a_bug_without(
    directory: Path, resource: str, status: str, message: str
) -> None:
    path = directory / "a.sock"
    async with serving(path, [Registry()], edge="kubelet"):
        with capture_logs() as lines, pytest.raises(PeerRefused) as raised:
            await call(path, resource)
        assert raised.value.status == status
        assert str(raised.value) == message
        (answered,) = [line for line in lines if line["event"] == "rpc.answered"]
        assert answered["rpc"] == {"method": REGISTER, "status": status}
        assert answered["duration_ms"] >= 0
        await call(path)  # and the next one is answered


async def test_calls_are_counted_while_they_run_and_after(directory: Path) -> None:
    path, events = directory / "a.sock", Events()
    async with serving(path, [Registry(), events], edge="subscribers") as endpoint:
        await call(path)
        assert endpoint.calls.begun[REGISTER] == 1
        assert endpoint.calls.running[REGISTER] == 0
        async with dialing(path) as channel:
            stream = agentapi.DeviceEventsStub(channel).watch(agentapi.WatchRequest())
            await anext(stream)
            assert endpoint.calls.running[WATCH] == 1
        await within(events.ended.wait())
        await until_closed(endpoint)
        assert endpoint.calls.running[WATCH] == 0
        assert endpoint.calls.begun[WATCH] == 1


async def within(awaitable: "asyncio.Future[object] | object", seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        await awaitable  # type: ignore[misc]


async def until_closed(endpoint: Endpoint) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not await endpoint.connections.all_closed(SOON_SECONDS):
            pass  # one more came when all others had gone


async def test_connections_are_counted_and_one_can_wait_for_their_end(directory: Path) -> None:
    path = directory / "a.sock"
    async with serving(path, [Registry()], edge="kubelet") as endpoint:
        assert len(endpoint.connections) == 0
        assert await endpoint.connections.all_closed(0.01)
        async with dialing(path) as one, dialing(path) as two:
            for channel in (one, two):
                await deviceplugin.RegistrationStub(channel).register(
                    deviceplugin.RegisterRequest()
                )
            assert len(endpoint.connections) == 2
            assert not await endpoint.connections.all_closed(0.05)
        await until_closed(endpoint)
        assert len(endpoint.connections) == 0


# --- leaving ------------------------------------------------------------------------------------


async def test_leaving_waits_no_longer_than_the_grace_for_a_peer_that_stays(
    directory: Path,
) -> None:
    path = directory / "a.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        async with serving(path, [Registry()], edge="kubelet", grace_seconds=0.3) as endpoint:
            silent.connect(str(path))
            async with asyncio.timeout(SOON_SECONDS):
                while not len(endpoint.connections):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.005)
            left_at = time.monotonic()
        assert time.monotonic() - left_at < 2.0
        assert silent.recv(1 << 16)[:0] == b""


async def test_leaving_ends_calls_that_run(directory: Path) -> None:
    path, events = directory / "a.sock", Events()
    async with AsyncExitStack() as stack:
        async with serving(path, [Registry(), events], edge="kubelet", grace_seconds=0.3):
            channel = await stack.enter_async_context(dialing(path))
            stream = agentapi.DeviceEventsStub(channel).watch(agentapi.WatchRequest())
            await anext(stream)
            hanging = asyncio.create_task(call(path, "hang"))
            await asyncio.sleep(0)
        with pytest.raises(EdgeError), translating("subscribers", "following"):
            await within(anext(stream))
        with pytest.raises(EdgeError):
            await within(hanging)


async def test_a_hundred_lives_leave_no_descriptor_behind(directory: Path) -> None:
    path = directory / "a.sock"
    async with serving(path, [Registry()], edge="kubelet"):
        await call(path)
    before = open_sockets()
    for _ in range(100):
        async with serving(path, [Registry()], edge="kubelet"):
            await call(path)
    assert open_sockets() <= before + 2


# --- peers of all kinds -------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 4096,
        RANDOM.randbytes(4096),
        PREFACE,
        PREFACE + SETTINGS + RANDOM.randbytes(512),
        PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1",  # a frame of 16 MB that never comes
        PREFACE + SETTINGS + b"\0\0\4\1\4\0\0\0\1\xff\xff\xff\xff",  # headers that are none
    ],
)
async def test_a_peer_that_speaks_nonsense_costs_its_own_connection_only(
    directory: Path, bytes_sent: bytes
) -> None:
    path = directory / "a.sock"
    async with serving(path, [Registry()], edge="kubelet") as endpoint:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(bytes_sent)
        with suppress(ConnectionError):
            await writer.drain()
        await call(path)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        reader.feed_eof()
        await until_closed(endpoint)
        await call(path)


async def test_two_hundred_peers_may_call_at_the_same_moment(directory: Path) -> None:
    """As subscribers do when the agent has been restarted."""
    path = directory / "a.sock"
    async with serving(path, [Registry()], edge="kubelet"):
        outcomes = await asyncio.gather(
            *(call(path, timeout_seconds=20.0) for _ in range(200)), return_exceptions=True
        )
    assert [outcome for outcome in outcomes if outcome is not None] == []


CONNECT_MANY = """
import socket, sys
sockets = []
for _ in range(200):
    one = socket.socket(socket.AF_UNIX)
    one.connect(sys.argv[1])
    sockets.append(one)
print(len(sockets))
"""


async def test_peers_that_come_and_vanish_cost_nothing(directory: Path) -> None:
    path = directory / "a.sock"
    async with serving(path, [Registry()], edge="kubelet") as endpoint:
        await call(path)
        await until_closed(endpoint)
        before = open_sockets()
        for _ in range(3):
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", CONNECT_MANY, str(path)],
                check=True,
                capture_output=True,
                timeout=30,
            )
            assert done.stdout == b"200\n"
            await until_closed(endpoint)
        async with asyncio.timeout(SOON_SECONDS):
            while open_sockets() != before:  # noqa: ASYNC110 - some may not be accepted yet
                await asyncio.sleep(0.02)
        await call(path)


# --- dialling -----------------------------------------------------------------------------------


async def test_no_socket_is_said_so(directory: Path) -> None:
    with pytest.raises(EdgeError, match="calling: the socket does not exist") as raised:
        await call(directory / "absent.sock")
    assert raised.value.edge == "kubelet"


async def test_a_socket_that_nobody_listens_on_is_said_so(directory: Path) -> None:
    path = directory / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        with pytest.raises(EdgeError, match="calling: nobody listens on the socket"):
            await call(path)


async def test_a_path_that_is_no_socket_is_an_edge_error(directory: Path) -> None:
    put(directory / "file")
    with pytest.raises(EdgeError, match="calling: "):
        await call(directory / "file")
    with pytest.raises(EdgeError, match="calling: "):
        await call(directory / "file" / "below")
    with pytest.raises(EdgeError, match="calling: "):
        await call(directory / ("a" * 120))


async def test_an_answer_that_does_not_come_in_time_is_said_so(directory: Path) -> None:
    path = directory / "a.sock"
    async with serving(path, [Registry()], edge="kubelet", grace_seconds=0.1):
        with pytest.raises(EdgeError, match="calling: no answer in time"):
            await call(path, "hang", timeout_seconds=0.1)


async def test_a_peer_that_listens_and_never_answers_is_given_up(directory: Path) -> None:
    path = directory / "mute.sock"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        with pytest.raises(EdgeError, match="calling: no answer in time"):
            await call(path, timeout_seconds=0.2)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64, SETTINGS, RANDOM.randbytes(64)]
)
async def test_a_peer_that_hangs_up_or_answers_nonsense_is_an_edge_error(
    directory: Path, answer: bytes
) -> None:
    path = directory / "odd.sock"

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(hang_up, path)
    try:
        with pytest.raises(EdgeError, match="calling: "):
            await call(path, timeout_seconds=2.0)
    finally:
        server.close()


async def test_a_peer_without_the_service_refuses(directory: Path) -> None:
    path = directory / "a.sock"
    async with serving(path, [Events()], edge="subscribers"):
        with pytest.raises(PeerRefused):
            await call(path)
