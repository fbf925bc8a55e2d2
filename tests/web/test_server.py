"""What the agent shows by HTTP, by real sockets and a real client."""

import asyncio
import gzip
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given, settings
from structlog.testing import capture_logs

from hailo_agent.aio.supervise import State, Status
from hailo_agent.core.change import changes
from hailo_agent.core.inventory import Inventory
from hailo_agent.errors import EdgeError
from hailo_agent.subscribers.mapping import to_changes, to_inventory
from hailo_agent.web import events, probes, server, shared
from hailo_agent.web.answers import spell
from hailo_agent.web.exposition import OPENMETRICS
from hailo_agent.web.server import Site, serve
from hailo_agent.wire import agentapi
from tests.strategies import inventories
from tests.web.stand import (
    ABOUT,
    METRICS,
    METRICS_TYPE,
    SECONDS,
    Stand,
    calling,
    device,
    held,
    until,
)

PATHS = ("/livez", "/readyz", "/metrics", "/status", "/events")


@pytest.fixture
def stand() -> Stand:
    return Stand()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.sock"


@pytest.fixture
def unspaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer as often as asked, for tests that ask often and look at something else."""
    monkeypatch.setattr(shared, "SPACING_SECONDS", 0.0)


async def get(path: Path, target: str, accept: str = "*/*") -> tuple[int, str]:
    headers = {"Accept": accept, "Accept-Encoding": "identity"}
    async with calling(path) as client, client.get(target, headers=headers) as answer:
        return answer.status, await answer.text()


async def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone


# --- every answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [*PATHS, "/", "/nothing"])
async def test_every_answer_is_guarded_and_sets_no_cookie(
    stand: Stand, path: Path, target: str
) -> None:
    stand.page = True
    async with (
        stand.serving(f"unix:{path}"),
        calling(path) as client,
        client.get(target) as answer,
    ):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "Set-Cookie" not in answer.headers
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["Server"] == "hailo-agent"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("target", ["/metrics", "/nothing"])
async def test_nothing_but_reading_is_answered(
    stand: Stand, path: Path, method: str, target: str
) -> None:
    async with (
        stand.serving(f"unix:{path}"),
        calling(path) as client,
        client.request(method, target, data=b"x" * 100) as answer,
    ):
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("target", PATHS)
async def test_head_tells_what_get_would_without_a_body(
    stand: Stand, path: Path, target: str
) -> None:
    async with stand.serving(f"unix:{path}"), calling(path) as client:
        async with client.head(target) as told:
            assert await told.read() == b""
        async with client.get(target) as answer:
            assert (told.status, told.content_type) == (answer.status, answer.content_type)


@pytest.mark.parametrize("target", ["/nothing", "/page/", "/status/", "/../etc/passwd", "//livez"])
async def test_an_unknown_path_is_told_which_there_are(
    stand: Stand, path: Path, target: str
) -> None:
    async with stand.serving(f"unix:{path}"):
        status, text = await get(path, target)
    assert status == 404
    assert text.splitlines()[1:] == sorted(PATHS)


async def test_the_page_is_only_there_if_it_is_wanted(stand: Stand, path: Path) -> None:
    async with stand.serving(f"unix:{path}"):
        assert (await get(path, "/"))[0] == 404
    stand.page = True
    async with stand.serving(f"unix:{path}"):
        status, text = await get(path, "/")
        assert (status, text[:15]) == (200, "<!doctype html>")
        async with (
            calling(path) as client,
            client.get("/", headers={"Accept-Encoding": "gzip"}) as answer,
        ):
            assert gzip.decompress(await answer.read()).decode() == text


async def raw(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(request)
        async with asyncio.timeout(SECONDS):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"GET /" + b"x" * 4096 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 4096 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: x\r\n" * 100 + b"\r\n",
    ],
    ids=["tls", "line", "header", "headers"],
)
async def test_what_is_no_request_is_refused_without_a_line_in_the_log(
    stand: Stand, path: Path, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with stand.serving(f"unix:{path}"):
        with capture_logs() as written:
            answer = await raw(path, request_)
    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert b"nosniff" in answer
    assert b"xxxx" not in answer
    assert not written
    assert not caplog.records


async def test_a_failure_of_ours_is_one_line_until_it_is_over(stand: Stand, path: Path) -> None:
    def fail() -> bytes:
        raise RuntimeError("a secret detail")

    stand.metrics = fail
    async with stand.serving(f"unix:{path}"):
        with capture_logs() as written:
            answers = [await get(path, "/metrics") for _ in range(3)]
            assert (await get(path, "/livez"))[0] == 200
    assert {status for status, _ in answers} == {500}
    assert "secret" not in answers[0][1]
    assert [(line["event"], line["path"]) for line in written] == [("web.failed", "/metrics")]


# --- probes --------------------------------------------------------------------------------------


async def test_alive_is_who_answers_on_every_socket(stand: Stand, path: Path) -> None:
    called = []

    async def check() -> None:
        called.append(1)

    stand.checks.update(one=check, two=check)
    async with stand.serving(f"unix:{path}"):
        assert await get(path, "/livez") == (200, "ok\n")
    assert len(called) == 2


async def test_each_service_that_does_not_answer_is_named(
    stand: Stand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "CHECK_SECONDS", 0.05)

    async def refuse() -> None:
        raise EdgeError("connection\n refused", edge="kubelet")

    async def deaf() -> None:
        while True:  # not even cancelling helps
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if ended.is_set():
                    raise

    async def well() -> None:
        pass

    ended = asyncio.Event()
    stand.checks.update({"plugin hailo.ai/npu": deaf, "subscribers": refuse, "other": well})
    async with stand.serving(f"unix:{path}"):
        before = len(asyncio.all_tasks())
        for _ in range(4):
            status, text = await get(path, "/livez")
            assert status == 503
            assert text.splitlines() == [
                "plugin hailo.ai/npu: no answer within 0.05 s",
                "subscribers: connection refused",
            ]
        assert len(asyncio.all_tasks()) <= before + 2, "what hangs is not called again and again"
        ended.set()
        await until(lambda: len(asyncio.all_tasks()) <= before + 2)
        await get(path, "/livez")


async def test_probes_at_the_same_time_share_one_run(stand: Stand, path: Path) -> None:
    runs = 0
    release = asyncio.Event()

    async def check() -> None:
        nonlocal runs
        runs += 1
        await release.wait()

    stand.checks["one"] = check
    async with stand.serving(f"unix:{path}"):
        asked = [asyncio.create_task(get(path, "/livez")) for _ in range(20)]
        await until(lambda: runs == 1)
        asked.pop().cancel()  # who hangs up does not take the answer from the others
        await asyncio.sleep(0.1)
        release.set()
        assert set(await asyncio.gather(*asked)) == {(200, "ok\n")}
    assert runs == 1


async def test_ready_is_every_part_that_must_run(stand: Stand, path: Path) -> None:
    stand.roster.post(
        Status(name="uevents", state=State.BACKING_OFF, reason="not permitted", essential=False)
    )
    async with stand.serving(f"unix:{path}"):
        status, text = await get(path, "/readyz")
        assert status == 200
        assert text.splitlines() == [
            "ready",
            "reconciler  running",
            "uevents     backing-off not permitted (not essential)",
        ]
        stand.roster.post(
            Status(name="plugin", state=State.BACKING_OFF, reason="no kubelet", restarts=3)
        )
        status, text = await get(path, "/readyz")
        assert status == 503
        assert text.startswith("not ready\nplugin      backing-off no kubelet (restarts: 3)\n")
        status, text = await get(path, "/readyz", accept="application/json")
        assert status == 503
        told = json.loads(text)
        assert told["ready"] is False
        assert told["parts"][0] == {
            "name": "plugin",
            "state": "backing-off",
            "reason": "no kubelet",
            "essential": True,
            "restarts": 3,
        }


async def test_an_agent_without_a_part_is_not_ready(stand: Stand, path: Path) -> None:
    stand.roster.statuses.publish(())
    async with stand.serving(f"unix:{path}"):
        assert await get(path, "/readyz") == (503, "not ready\n")


# --- metrics and status --------------------------------------------------------------------------


async def test_metrics_are_sent_as_made_and_packed_for_who_asks(stand: Stand, path: Path) -> None:
    async with stand.serving(f"unix:{path}"), calling(path) as client:
        plain = {"Accept-Encoding": "identity"}
        async with client.get("/metrics", headers=plain) as answer:
            assert await answer.read() == METRICS
            assert answer.headers["Content-Type"] == METRICS_TYPE
            assert "Content-Encoding" not in answer.headers
        prometheus = {
            **plain,
            "Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
        }
        async with client.get("/metrics", headers=prometheus) as answer:
            assert answer.headers["Content-Type"] == OPENMETRICS
            assert answer.headers["Vary"] == "Accept, Accept-Encoding"
        async with client.get("/metrics", headers={"Accept-Encoding": "br, gzip;q=0.5"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(await answer.read()) == METRICS
        async with client.get("/metrics", headers={"Accept-Encoding": "gzip;q=0"}) as answer:
            assert await answer.read() == METRICS


async def test_scrapes_at_the_same_time_cost_one(stand: Stand, path: Path) -> None:
    made = 0

    def count() -> bytes:
        nonlocal made
        made += 1
        return b"%d\n" % made

    stand.metrics = count
    async with stand.serving(f"unix:{path}"):
        assert await get(path, "/metrics") == (200, "1\n")
        assert await get(path, "/metrics") == (200, "2\n"), "never an old answer"
        await asyncio.gather(*(get(path, "/metrics") for _ in range(30)))
    assert made < 32


async def test_status_is_the_inventory_in_the_words_of_the_api(stand: Stand, path: Path) -> None:
    stand.show(held(device(1)))
    async with stand.serving(f"unix:{path}"):
        status, text = await get(path, "/status")
    told = json.loads(text)
    assert status == 200
    assert told["inventory"] == stand.site.inventory().to_dict()
    assert told["inventory"]["devices"][0]["holders"][0]["pod"] == "detector"
    assert told["versions"] == {"agent": "0.5.0"}
    assert told["path"] == "/dev"


async def test_a_big_inventory_is_spelled_in_pieces_that_leave_the_loop_to_others() -> None:
    stand = Stand()
    stand.show(*(held(device(bus)) for bus in range(1, 65)))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    message = agentapi.WatchResponse(inventory=stand.site.inventory())
    told = await spell(message)
    task.cancel()
    assert told == message.to_dict()
    assert turns >= 64


@given(inventories(), inventories())
@settings(max_examples=20)
def test_pieces_say_what_the_whole_would(before: Inventory, now: Inventory) -> None:
    whole = to_inventory(now, 1, (), ABOUT)
    for message in (
        agentapi.WatchResponse(inventory=whole),
        agentapi.WatchResponse(changes=to_changes(changes(before, now), 2, ABOUT)),
        agentapi.WatchResponse(),
    ):
        assert asyncio.run(spell(message)) == message.to_dict()


# --- events --------------------------------------------------------------------------------------


async def messages(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, str]]:
    fields: dict[str, str] = {}
    async for line in answer.content:
        name, _, value = line.decode().rstrip("\n").partition(":")
        if line != b"\n":
            fields[name] = value.removeprefix(" ")
            continue
        yield fields
        fields = {}


async def test_events_are_the_inventory_then_each_change(stand: Stand, path: Path) -> None:
    stand.show(device(1))
    async with (
        stand.serving(f"unix:{path}"),
        calling(path) as client,
        client.get("/events") as answer,
        asyncio.timeout(SECONDS),
    ):
        assert answer.content_type == "text/event-stream"
        told = messages(answer)
        assert "retry" in await anext(told)
        first = await anext(told)
        assert json.loads(first["data"])["inventory"]["devices"][0]["id"] == "pci-0000-01-00-0"
        assert first["id"] == "1"
        stand.show(device(1), device(2))
        change = await anext(told)
        assert change["id"] == "2"
        [added] = json.loads(change["data"])["changes"]["changes"]
        assert (added["kind"], added["device"]["id"]) == ("KIND_ADDED", "pci-0000-02-00-0")
        stand.inventory.close()  # the agent stops
        assert [message async for message in told] == []


async def test_a_quiet_stream_beats(
    stand: Stand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.02)
    async with (
        stand.serving(f"unix:{path}"),
        calling(path) as client,
        client.get("/events") as answer,
        asyncio.timeout(SECONDS),
    ):
        told = messages(answer)
        await anext(told)
        await anext(told)
        assert await anext(told) == {"": "alive"}
        assert await anext(told) == {"": "alive"}
        stand.show(device(1))
        async for message in told:
            if "data" in message:
                break


async def test_readers_beyond_the_places_are_sent_away_until_one_leaves(
    stand: Stand, path: Path
) -> None:
    async with stand.serving(f"unix:{path}"), calling(path) as client, AsyncExitStack() as stack:
        for _ in range(events.MAX_READERS):
            answer = await stack.enter_async_context(client.get("/events"))
            assert answer.status == 200
        async with client.get("/events") as refused:
            assert refused.status == 503
            assert refused.headers["Retry-After"] == "10"
        await stack.aclose()

        async def is_served() -> bool:
            async with client.get("/events") as answer:
                return answer.status == 200

        await until(is_served)


async def test_a_stream_ends_after_a_while_and_the_reader_comes_again(
    stand: Stand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LIFETIME_SECONDS", 0.05)
    async with (
        stand.serving(f"unix:{path}"),
        calling(path) as client,
        client.get("/events") as answer,
        asyncio.timeout(SECONDS),
    ):
        assert len([message async for message in messages(answer)]) == 2


async def test_a_slow_reader_gets_the_newest_state_and_little_in_between(
    stand: Stand, path: Path
) -> None:
    async with stand.serving(f"unix:{path}"):
        reader, writer = await asyncio.open_unix_connection(str(path), limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: agent\r\n\r\n")
        await reader.readuntil(b"inventory")
        crowd = [device(bus) for bus in range(1, 33)]
        for turn in range(300):
            stand.show(*(replace(d, driver_version=f"4.23.{turn}") for d in crowd))
            await asyncio.sleep(0)
        stand.show(device(99))
        read = b""
        async with asyncio.timeout(SECONDS):
            while b"pci-0000-63-00-0" not in read:
                read += await reader.read(65536)
        writer.close()
    told = read.count(b"data: ")
    assert told < 100, "what came and went while the reader slept was folded"


async def test_a_reader_that_takes_nothing_is_dropped(
    stand: Stand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "STALLED_SECONDS", 0.2)
    async with stand.serving(f"unix:{path}"):
        with socket.socket(socket.AF_UNIX) as stuck:
            stuck.connect(str(path))
            stuck.sendall(b"GET /events HTTP/1.1\r\nHost: agent\r\n\r\n")
            crowd = [device(bus) for bus in range(1, 65)]
            streams = [t for t in asyncio.all_tasks() if "_handle_request" in repr(t.get_coro())]
            turn = 0

            async def is_dropped() -> bool:
                nonlocal turn, streams
                turn += 1
                stand.show(*(replace(d, driver_version=f"4.23.{turn}") for d in crowd))
                streams = [
                    t for t in asyncio.all_tasks() if "_handle_request" in repr(t.get_coro())
                ]
                return turn > 10 and not streams

            await until(is_dropped)


# --- whoever is stuck ----------------------------------------------------------------------------

HALF = b"GET /metrics HTTP/1.1\r\nHost: agent\r\nX-Slow: "
NEVER_READING = b"GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n" * 8


@pytest.mark.usefixtures("unspaced")
@pytest.mark.parametrize("said", [b"", HALF, NEVER_READING], ids=["silent", "half", "unread"])
async def test_two_hundred_stuck_clients_keep_nobody_from_an_answer(
    stand: Stand, path: Path, said: bytes
) -> None:
    stand.metrics = lambda: b"x" * 400_000
    async with stand.serving(f"unix:{path}"):
        before = await open_files()
        with ExitStack() as stack:
            for number in range(200):
                stuck = stack.enter_context(socket.socket(socket.AF_UNIX))
                stuck.setblocking(False)  # noqa: FBT003
                stuck.connect(str(path))
                stuck.send(said) if said else None
                if number % 20 == 0:
                    assert (await get(path, "/livez"))[0] == 200
            for _ in range(20):
                assert (await get(path, "/livez"))[0] == 200

            async def are_refused() -> bool:
                return await open_files() - before - 200 <= server.MAX_CONNECTIONS + 1

            await until(are_refused)
            assert len((await get(path, "/metrics"))[1]) == 400_000


async def until_hung_up_on(path: Path) -> None:
    """Send a request byte by byte, for ever."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    async with asyncio.timeout(SECONDS):
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(HALF[:1])
                await writer.drain()
                await asyncio.sleep(0.02)
    writer.close()


async def test_a_connection_that_asks_nothing_is_hung_up_on(
    stand: Stand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.1)
    async with stand.serving(f"unix:{path}"):
        assert await raw(path, b"") == b""
        assert await raw(path, HALF) == b""
        assert b"405" in await raw(
            path, b"POST / HTTP/1.1\r\nHost: agent\r\nContent-Length: 1000000\r\n\r\nx"
        )
        await until_hung_up_on(path)


async def test_a_client_that_does_not_take_its_answer_is_hung_up_on(
    stand: Stand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SEND_SECONDS", 0.1)
    stand.metrics = lambda: b"x" * 8_000_000
    async with stand.serving(f"unix:{path}"):
        before = await open_files()
        with socket.socket(socket.AF_UNIX) as stuck:
            stuck.connect(str(path))
            stuck.sendall(NEVER_READING)

            async def is_hung_up_on() -> bool:
                return await open_files() == before + 1

            await asyncio.sleep(0.05)
            await until(is_hung_up_on)


async def test_readers_are_not_pushed_out_by_a_crowd(stand: Stand, path: Path) -> None:
    async with (
        stand.serving(f"unix:{path}"),
        calling(path) as client,
        client.get("/events") as answer,
        asyncio.timeout(SECONDS),
    ):
        told = messages(answer)
        await anext(told)
        await anext(told)
        with ExitStack() as stack:
            for _ in range(150):
                stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
                await asyncio.sleep(0)
            assert (await get(path, "/livez"))[0] == 200
            stand.show(device(7))
            assert "pci-0000-07-00-0" in (await anext(told))["data"]


# --- a part's life -------------------------------------------------------------------------------


async def test_it_answers_on_tcp_and_reports_once_it_does(stand: Stand) -> None:
    with capture_logs() as written:
        async with stand.serving("127.0.0.1:0"):
            [line] = [line for line in written if line["event"] == "web.started"]
            async with (
                aiohttp.ClientSession() as client,
                client.get(f"http://{line['address']}/livez") as answer,
            ):
                assert await answer.text() == "ok\n"
    assert stand.reports.value == ("",)


@pytest.mark.parametrize("listen", ["", "no", "unix:/nowhere/web.sock", "unix:/" + "x" * 200])
async def test_an_address_that_cannot_be_used_is_weather(stand: Stand, listen: str) -> None:
    with pytest.raises(EdgeError, match="cannot listen"):
        await serve(listen, stand.site, page=False, report=lambda _: None)
    assert stand.reports.value == ()


async def test_it_stops_at_once_whoever_is_connected(stand: Stand, path: Path) -> None:
    async with stand.serving(f"unix:{path}") as task, calling(path) as client:
        before = await open_files()
        stand.metrics = lambda: b"x" * 8_000_000
        with ExitStack() as stack:
            for said in (b"", HALF, NEVER_READING):
                stuck = stack.enter_context(socket.socket(socket.AF_UNIX))
                stuck.connect(str(path))
                stuck.sendall(said)
            async with client.get("/events"):
                await asyncio.sleep(0.05)
                task.cancel()
                async with asyncio.timeout(5.0):
                    await asyncio.wait({task})
        assert path.name not in os.listdir(path.parent)  # noqa: PTH208 - names alone

        async def is_all_closed() -> bool:
            return await open_files() < before

        await until(is_all_closed)


async def test_a_socket_that_somebody_removes_is_weather(
    stand: Stand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LOOK_SECONDS", 0.02)
    async with stand.serving(f"unix:{path}") as task:
        os.unlink(path)  # noqa: PTH108 - quick
        await asyncio.wait({task}, timeout=SECONDS)
    assert isinstance(task.exception(), EdgeError)
    assert "removed or replaced" in str(task.exception())


def test_a_site_is_plain_callables_and_values() -> None:
    assert all("aiohttp" not in repr(kind) for kind in Site.__annotations__.values())
