"""What the doctor's tests share: a scene to examine, and findings to pick from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hailo_agent import agent, doctor
from hailo_agent.core.diagnosis.finding import Finding, Verdict, worst
from hailo_agent.runtime.specs import SpecStore
from hailo_agent.settings import Settings, load
from hailo_agent.sim.reports import Scene


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that the doctor found, and what to pick from it."""

    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """What all of them amount to."""
        return worst(self.findings)

    @property
    def ills(self) -> list[str]:
        """The checks that are neither well nor unseen, in the order in which they were said."""
        healthy = {Verdict.OK, Verdict.UNSEEN}
        return [finding.check for finding in self.findings if finding.verdict not in healthy]

    def all(self, check: str) -> list[Finding]:
        """Every finding of one check."""
        return [finding for finding in self.findings if finding.check == check]

    def the(self, check: str) -> Finding:
        """Take the one finding of a check."""
        (finding,) = self.all(check)
        return finding


@contextmanager
def scene() -> Iterator[Scene]:
    """Build a host without anything in it, below a path short enough for unix sockets."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dr-", dir=memory, ignore_cleanup_errors=True) as root:
        built = Scene(Path(root))
        with built.closing:
            yield built


def settings_of(at: Scene) -> Settings:
    """Read the scene's flags as the command line does."""
    flags = [tuple(flag.split("=", 1)) for flag in at.flags]
    return load(flags=[(name, value) for name, value in flags], environ={}, config=None).settings


async def write_spec(at: Scene) -> None:
    """Do what `hailo-agent cdi generate` does."""
    spec, numbers = await agent.look_for_spec(settings_of(at))
    await SpecStore(directory=at.cdi, search=()).replace(spec, numbers)


async def examine(at: Scene) -> Told:
    """Do what `hailo-agent doctor` does."""
    told = await doctor.examine(settings_of(at), root=at.host, kernel_log=at.kernel_log)
    assert_complete(told)
    return Told(told)


def assert_complete(findings: Sequence[Finding]) -> None:
    """Whatever is not well has a reason to matter and a next step, and all can be read."""
    for finding in findings:
        assert finding.looked_at, finding
        assert finding.found, finding
        if finding.verdict is not Verdict.OK:
            assert finding.why, finding
            assert finding.next_step, finding
        for text in (finding.looked_at, finding.found, finding.why, finding.next_step):
            assert "None" not in text, finding
            assert text == text.strip(), finding
