"""What the doctor concludes from what it saw: one finding per check, with the exact next step.

Pure. The edges gather `facts`, `hailo_agent.doctor` puts them together, and `cli` prints what comes
out of here. One module for each thing that a person would look at, in that order.
"""

from __future__ import annotations

from hailo_agent.core.diagnosis import containers, devices, driver, kubelet, surroundings
from hailo_agent.core.diagnosis.facts import Facts
from hailo_agent.core.diagnosis.finding import Finding

__all__ = ["diagnose"]


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Draw every conclusion, in the order in which a person would look."""
    return (
        *devices.examine(facts),
        *driver.examine(facts),
        *containers.examine(facts),
        *kubelet.examine(facts),
        *surroundings.examine(facts.host),
    )
