"""What the doctor concludes from what it saw: one finding per check, with the exact next step.

Pure. The edges gather `facts`, `hailo_agent.doctor` puts them together, and `cli` prints what comes
out of here. One module for each thing that a person would look at.
"""

from __future__ import annotations

from hailo_agent.core.diagnosis.containers import examine as containers
from hailo_agent.core.diagnosis.devices import examine as devices
from hailo_agent.core.diagnosis.driver import examine as driver
from hailo_agent.core.diagnosis.facts import Facts
from hailo_agent.core.diagnosis.finding import Finding, worst_first
from hailo_agent.core.diagnosis.kubelet import examine as kubelet
from hailo_agent.core.diagnosis.surroundings import examine as surroundings

__all__ = ["diagnose"]


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Draw every conclusion: the worst first, and of what is equally bad the cause first.

    Whoever reads this reads its first line, and may not get to the second.
    """
    return worst_first(
        (
            *devices(facts),
            *driver(facts),
            *kubelet(facts),
            *containers(facts),
            *surroundings(facts.host),
        )
    )
