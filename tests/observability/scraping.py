"""A real Prometheus, what it scrapes, and how to ask it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from aiohttp import web

from hailo_agent.web.exposition import OPENMETRICS
from tests.house.repository import ROOT
from tests.observability.states import Node, Told

RULES: Final = ROOT / "manifests" / "prometheus" / "rules.yaml"
JOB: Final = "hailo-agent-"
"""What a state's job begins with."""

_PREPARED: Final = 9
"""Scrapes; nodes tell of later ones as they come."""

_DEADLINE_SECONDS: Final = 90.0

# What a ServiceMonitor adds to each endpoint: names that the holders' must not be mixed up with.
_ENDPOINT: Final = {"namespace": "hailo-system", "pod": "hailo-agent-x", "container": "agent"}

Sample = tuple[dict[str, str], float]
"""A series' labels, and its figure."""


class NotReady(Exception):
    """Prometheus has not read its data yet."""


class PromqlError(Exception):
    """Prometheus could not run a query; its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prometheus:
    """A running one, by its port."""

    port: int
    at: float | None = None
    """The time that queries ask of; None is now."""

    def get(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 - as JSON has it
        """Ask its API; raises PromqlError with its words."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with urlopen(url, timeout=10) as response:
                return json.load(response)["data"]
        except HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
                raise NotReady from error
            raise PromqlError(json.load(error)["error"]) from error

    def query(self, expr: str) -> list[Sample]:
        """Run a query."""
        time = {} if self.at is None else {"time": str(self.at)}
        results = self.get("query", query=expr, **time)["result"]
        return [(result["metric"], float(result["value"][1])) for result in results]


@dataclass(slots=True)
class Nodes:
    """Serves what nodes tell; each scrape of one is counted."""

    states: Mapping[str, Mapping[str, Told]]
    scrapes: dict[tuple[str, str], int] = field(default_factory=dict)
    _ready: dict[tuple[str, str, int], bytes] = field(default_factory=dict)

    def prepare(self) -> None:
        """Have at hand what the first scrapes are told, so that a busy machine misses none."""
        now = time.time()
        for state, nodes in self.states.items():
            for instance, told in nodes.items():
                for scrapes in range(_PREPARED):
                    told_then = _rendered(told(scrapes), now + scrapes)
                    self._ready[state, instance, scrapes] = told_then

    async def answer(self, request: web.Request) -> web.Response:
        """Tell what the node tells at this scrape."""
        key = state, instance = request.match_info["state"], request.match_info["instance"]
        scrapes = self.scrapes.get(key, 0)
        self.scrapes[key] = scrapes + 1
        body = self._ready.get((state, instance, scrapes))
        if body is None:
            body = _rendered(self.states[state][instance](scrapes), time.time())
        return web.Response(
            body=body, status=200 if body else 500, headers={"Content-Type": OPENMETRICS}
        )

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Serve on a thread of its own; yields the port."""
        ready, done = Event(), Event()
        ports: list[int] = []

        async def serve() -> None:
            app = web.Application()
            app.router.add_get("/{state}/{instance}/metrics", self.answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            ports.append(runner.addresses[0][1])
            ready.set()
            await asyncio.to_thread(done.wait)
            await runner.cleanup()

        thread = Thread(target=lambda: asyncio.run(serve()), name="nodes")
        thread.start()
        try:
            assert ready.wait(timeout=10)
            yield ports[0]
        finally:
            done.set()
            thread.join()


def _rendered(node: Node, unix_time: float) -> bytes:
    if node.is_down:
        return b""
    return node.exposition(unix_time).render(OPENMETRICS)[0]


@contextmanager
def scraping(states: Mapping[str, Mapping[str, Told]], directory: Path) -> Iterator[Prometheus]:
    """Have a Prometheus scrape nodes each second: each state is a job of its own."""
    served = Nodes(states)
    served.prepare()
    with served.serving() as port:
        config = {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "1s",
            },
            "rule_files": [str(RULES)],
            "scrape_configs": [_job(state, nodes, port) for state, nodes in states.items()],
        }
        with running(config, directory) as prometheus:
            yield prometheus


def _job(state: str, nodes: Mapping[str, Told], port: int) -> dict[str, object]:
    return {
        "job_name": f"{JOB}{state}",
        "honor_labels": True,
        "static_configs": [
            {
                "targets": [f"127.0.0.1:{port}"],
                "labels": {
                    "__metrics_path__": f"/{state}/{instance}/metrics",
                    "instance": instance,
                    **_ENDPOINT,
                },
            }
            for instance in nodes
        ],
    }


@contextmanager
def running(config: Mapping[str, object], directory: Path, *arguments: str) -> Iterator[Prometheus]:
    """Run a Prometheus with its data in a directory."""
    program = shutil.which("prometheus")
    assert program, "install Debian's package prometheus"
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                *arguments,
            ],
            stdout=log,
            stderr=log,
        )
    try:
        prometheus = Prometheus(port=port)
        until(lambda: bool(prometheus.get("status/buildinfo")))
        yield prometheus
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (URLError, ConnectionError, NotReady):
            pass  # still starting
        time.sleep(0.1)
    pytest.fail("nothing of the kind within the deadline")
