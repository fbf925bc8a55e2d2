"""What the tests from end to end share: consoles to plug, and a place for figures."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hailo_agent.sim.node import AgentProcess, execute
from tests.e2e import consoles as virtual_terminals
from tests.e2e.ability import lacking
from tests.e2e.consoles import Consoles
from tests.e2e.figures import Figures

_FIGURES = pytest.StashKey[Figures]()


@pytest.fixture(autouse=True)
def executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no short cut to an agent: what is started here is what a node starts."""
    monkeypatch.setattr(AgentProcess, "launch", staticmethod(execute))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    return request.config.stash.setdefault(_FIGURES, Figures())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    lines = config.stash.get(_FIGURES, Figures()).lines
    if lines:
        terminalreporter.section("measured against the real kernel and a real runtime")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture
def consoles() -> Iterator[Consoles]:
    """Lend the virtual terminals, all of them removed."""
    with ExitStack() as stack:
        try:
            borrowed = stack.enter_context(virtual_terminals.borrowed())
        except virtual_terminals.NoConsoles as error:
            reason = str(error)
        else:
            yield borrowed
            return
    lacking(reason)
