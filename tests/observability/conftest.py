"""One Prometheus for all that is asked here."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.observability.scraping import JOB, RULES, Prometheus, scraping, until
from tests.observability.states import STATES

_TARGETS = sum(len(nodes) for state, nodes in STATES.items() if state != "down")
_FLAPPING = f'hailo_device_health{{job="{JOB}flapping", health="Unhealthy"}}'
_MIXED = f'{{job="{JOB}mixed"}}'

_CONDITIONS = (
    # Rates have enough to see, and no scrape is missed that rules are judged by.
    f"count(sum_over_time(up[5m]) >= 6) == {_TARGETS}",
    f"count(min_over_time(up[3s]) == 1) == {_TARGETS}",
    # What flaps has done so, and is well at the moment.
    f"changes({_FLAPPING}[5m]) >= 4",
    f"{_FLAPPING} == 0",
    f"resource:hailo_device_free:sum{_MIXED}",
    f"instance_resource:hailo_agent_allocation_duration_seconds:p99_15m{_MIXED}",
    f'ALERTS{{job="{JOB}mixed", alertstate="firing"}}',
)
"""What is so when the tests may begin to ask."""


@pytest.fixture(scope="session")
def rules_under_test() -> Iterator[subprocess.Popen[str]]:
    """Start promtool on the tests of the rules; it is done when Prometheus has seen enough."""
    tests = str(RULES.with_name("rules_test.yaml"))
    with subprocess.Popen(
        ["promtool", "test", "rules", tests],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process


@pytest.fixture(scope="session")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory, rules_under_test: object
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped every state for a while, and has judged it by the rules.

    All queries ask of one moment, so that it does not matter how long the tests take.
    """
    with scraping(STATES, tmp_path_factory.mktemp("prometheus")) as running:

        def is_time() -> bool:
            nonlocal running
            running = replace(running, at=time.time())
            return all(running.query(condition) for condition in _CONDITIONS)

        until(is_time)
        yield running
