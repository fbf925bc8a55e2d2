"""One Prometheus for all that is asked here."""

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.observability.scraping import RULES, Prometheus, scraping, until
from tests.observability.states import STATES

# The flapping device has come to rest by then, and rates have enough to see.
_SCRAPES = 6
_TARGETS = sum(map(len, STATES.values()))


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
    """A Prometheus that has scraped every state for a while, and has judged it by the rules."""
    with scraping(STATES, tmp_path_factory.mktemp("prometheus")) as running:
        enough = f"count(count_over_time(up[1m]) >= {_SCRAPES})"
        until(lambda: [figure for _, figure in running.query(enough)] == [_TARGETS])
        seen = datetime.now(UTC)
        until(lambda: all(at > seen for at in _judged(running)))
        yield running


def _judged(running: Prometheus) -> Iterator[datetime]:
    for group in running.get("rules")["groups"]:
        # Go writes nanoseconds, of which Python reads six digits.
        yield datetime.fromisoformat(group["lastEvaluation"][:19] + "+00:00")
