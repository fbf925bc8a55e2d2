"""A real Prometheus reads what is told, keeps the holders' names, and forgets what is gone."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from hailo_agent.core.health import Fault, FaultCode, Health
from tests.house.test_metrics_docs import rows
from tests.web.boards import RESOURCE, USAGE, Place, board, holder

_CONFIG = """
global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}
scrape_configs:
  - job_name: hailo-agent
    honor_labels: true
    static_configs:
      - targets: ["127.0.0.1:{port}"]
        # What a ServiceMonitor adds: whose endpoint it is.
        labels: {{namespace: hailo-system, pod: hailo-agent-x, container: agent}}
"""
_DEADLINE_SECONDS = 30.0

Vector = list[dict[str, str]]
Ask = Callable[[str], Vector]


@contextmanager
def scraped(place: Place, directory: Path) -> Iterator[Ask]:
    """Have a Prometheus scrape a place; yields how to query it."""
    with serving(place) as port, scraping(port, directory) as query:
        yield query


@contextmanager
def scraping(port: int, directory: Path) -> Iterator[Ask]:
    """Have a Prometheus scrape whoever answers at a port; yields how to query it."""
    prometheus = shutil.which("prometheus")
    assert prometheus, "install Debian's package prometheus"
    config = directory / "prometheus.yml"
    config.write_text(_CONFIG.format(port=port))
    own_port = free_port()
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                prometheus,
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{own_port}",
                "--query.lookback-delta=60s",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield lambda query: ask(own_port, query)
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(place: Place) -> Iterator[int]:
    """Answer GETs as the agent would; yields the port."""

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, kind = place.exposition.render(self.headers.get("Accept", ""))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def ask(port: int, query: str) -> Vector:
    """Query Prometheus; returns the labels of each result, and its figure as `value`."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urlencode({'query': query})}"
    with urlopen(url, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    assert answer["status"] == "success"
    results = answer["data"]["result"]
    return [{**result["metric"], "value": result["value"][1]} for result in results]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except URLError:
            pass  # still starting
        time.sleep(0.05)
    pytest.fail("nothing of the kind within the deadline")


def scrapes(query: Ask) -> float:
    (up,) = query("count_over_time(up[1h])")
    return float(up["value"])


def test_prometheus_reads_it_all_and_forgets_what_is_gone(tmp_path: Path) -> None:
    fault = Fault(code=FaultCode.PCI_DEAD, subject=board().id, message="-", remedy="")
    ill = replace(board(0), health=Health.UNHEALTHY, fit=False, faults=(fault,))
    place = Place(ill, board(1))
    place.usage = {board(0).id: replace(USAGE, holders=ill.holders)}
    place.inventory.publish(replace(place.inventory.value, faults=(fault,)))
    place.tally.count("notifications", board().id, "throttling")
    place.tally.count("reconcile_reasons", "resync")
    place.tally.time("rpcs", "Allocate", "OK", seconds=0.1)
    with scraped(place, tmp_path) as query:
        until(lambda: bool(query("up == 1")) and scrapes(query) >= 4)
        check_the_examples_of_the_page(query)

        # The holder's names are kept beside the ones of the endpoint.
        held = query("hailo_device_allocation")
        assert sorted(h["pod"] for h in held) == ["detector-0", "detector-1"]
        assert {h["namespace"] for h in held} == {"vision"}
        assert {h["container"] for h in held} == {"inference"}
        (hot,) = query(
            "max by (instance, device) (hailo_device_temperature_celsius)"
            " * on (instance, device) group_left (model, resource) hailo_device_info"
            f' {{device="{board(1).id}"}}'
        )
        assert (hot["model"], hot["resource"], float(hot["value"])) == ("hailo-8", RESOURCE, 109.25)

        (frames,) = query("hailo_network_frames_per_second")
        assert (frames["pod"], frames["network"]) == ("detector-0", "yolov8m")

        # A pod ends, another begins, a device recovers, one is forgotten.
        place.usage = {}
        place.show(replace(board(0), holders=(holder("next"),)))
        until(lambda: [h["pod"] for h in query("hailo_device_allocation")] == ["next"])
        assert query('{__name__=~"hailo_network_.+"}') == []
        assert [d["device"] for d in query("hailo_device_info")] == [board(0).id]
        assert query("hailo_device_fault") == []
        (healthy,) = query("hailo_device_health == 1")
        assert healthy["health"] == "Healthy"

        # From its last scrape to its end, no series of the pod was missed for more than one.
        until(lambda: scrapes(query) >= 8)
        (seen,) = query('count_over_time(hailo_device_allocation{pod="detector-0"}[1h])')
        (new,) = query('count_over_time(hailo_device_allocation{pod="next"}[1h])')
        assert abs(float(seen["value"]) + float(new["value"]) - scrapes(query)) <= 1


def check_the_examples_of_the_page(query: Ask) -> None:
    """Run each query of the page: all are valid, and those that filter nothing return data."""
    for row in rows():
        found = query(row.example)
        filters = re.search(r" (?:==|[<>]|and) ", row.example) or "increase" in row.example
        assert found or filters, row.example
