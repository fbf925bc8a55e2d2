"""What can be typed about what ails the devices of a simulated node, and that all is told."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from hailo_agent.sim.commands import COMMANDS, obey
from hailo_agent.sim.machine import Ailment, Machine
from hailo_agent.sim.playground import Playground

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
TUTORIAL = Path(__file__).parents[2] / "docs/tutorial/five-minutes.md"


@dataclass
class Ground:
    """What commands work on, without kubelet and agent."""

    node: SimpleNamespace
    said: list[str] = field(default_factory=list)
    spoilt: set[str] = field(default_factory=set)

    @property
    def terminal(self) -> SimpleNamespace:
        return SimpleNamespace(say=self.said.append, show=self._show)

    def _show(self, shown: object) -> None:
        console = Console(width=200)
        with console.capture() as capture:
            console.print(shown)
        self.said.append(capture.get())

    async def settle(self) -> None:
        """Wait for nobody: there is nobody."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        machine = Machine(Path(directory) / "machine")
        machine.load("4.23")
        machine.plug(FIRST)
        machine.plug(SECOND)
        yield machine


async def typed(machine: Machine, line: str) -> tuple[bool, str]:
    """Obey one line; tells whether it could be done, and what was said."""
    ground = Ground(node=SimpleNamespace(machine=machine))
    could = await obey(cast("Playground", ground), line)
    return could, "\n".join(ground.said)


@pytest.mark.parametrize("ailment", Ailment)
@pytest.mark.parametrize("device", ["hailo1", "02:00.0", "pci-0000-02-00-0"])
async def test_a_device_ails_by_name_until_it_is_cured(
    machine: Machine, device: str, ailment: Ailment
) -> None:
    assert await typed(machine, f"ail {device} {ailment.upper()}") == (True, "")
    assert machine.ailments(SECOND) == {ailment}
    assert machine.ailments(FIRST) == frozenset()
    assert await typed(machine, f"cure {device}") == (True, "")
    assert machine.ailments(SECOND) == frozenset()


@pytest.mark.parametrize("how", ["slow-link", "dead-link"])
async def test_a_link_that_was_broken_is_mended_or_cured(machine: Machine, how: str) -> None:
    for undo in ("mend", "cure"):
        assert await typed(machine, f"break hailo0 {how}") == (True, "")
        assert machine.ailments(FIRST) == {Ailment(how)}
        assert await typed(machine, f"{undo} hailo0") == (True, "")
        assert machine.ailments(FIRST) == frozenset()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ail hailo0", "usage: ail DEVICE AILMENT"),
        ("ail hailo0 hot hot", "usage: ail DEVICE AILMENT"),
        ("ail hailo0 sneezing", "'sneezing' is nothing that ails a device, only dead-link, slow-"),
        ("ail hailo9 hot", "there is no hailo9, only 0000:01:00.0 (hailo0), "),
        ("cure", "usage: cure DEVICE"),
        ("cure 09:00.0", "there is no 09:00.0"),
        ("heal hailo0", "there is no command 'heal'"),
        ("curse hailo0", "did you mean cure?"),
    ],
)
async def test_what_cannot_be_done_is_refused_and_changes_nothing(
    machine: Machine, line: str, reason: str
) -> None:
    could, said = await typed(machine, line)
    assert not could
    assert said.startswith("  cannot: ")
    assert reason in said
    assert [machine.ailments(address) for address in machine.addresses] == [frozenset()] * 2


async def test_the_socs_accelerator_has_no_link_that_could_die(machine: Machine) -> None:
    machine.unload("4.23")
    machine.load("integrated-5.2")
    could, said = await typed(machine, "ail hailo_integrated_nnc dead-link")
    assert (could, said) == (False, "  cannot: what is part of the SoC is not on the PCI bus")


async def test_the_help_names_every_command_and_everything_that_may_ail(machine: Machine) -> None:
    could, said = await typed(machine, "help")
    assert could
    for name, command in COMMANDS.items():
        assert re.search(rf"^ +{name} {re.escape(command.arguments)}", said, re.MULTILINE), name
    ailing = said[said.index("AILMENT is ") :]
    assert set(re.findall(r"[a-z]+(?:-[a-z]+)*", ailing)) - {"is", "or"} == set(Ailment)
    assert max(map(len, ailing.splitlines())) <= 80


def test_the_tutorial_names_every_command_as_it_is_typed() -> None:
    text = TUTORIAL.read_text().replace(r"\|", "|")
    told = {name for row in re.findall(r"^\| (`.*`) \|", text, re.MULTILINE) for name in ticks(row)}
    typed_as = {f"{name} {command.arguments}".strip() for name, command in COMMANDS.items()}
    # How to ask for help and how to leave are told where the prompt is.
    assert told == typed_as - {"help", "quit"}


def ticks(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)
