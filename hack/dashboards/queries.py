"""PromQL that more than one board asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hack.dashboards.grafana import (
    BAD,
    GOOD,
    POOR,
    QUIET,
    SEVERITY_COLORS,
    TAKEN,
    UNKNOWN,
    Json,
    Variable,
    column,
)

ON: Final = "on (job, instance, device)"
"""What makes a device: its id alone occurs on every node."""

JOB: Final = Variable(name="job", label="Job", query="label_values(hailo_agent_build_info, job)")

HEALTH_WORDS: Final = {
    0: ("Healthy", GOOD),
    1: ("Degraded", POOR),
    2: ("Unknown", UNKNOWN),
    3: ("Unhealthy", BAD),
}
YES_NO: Final = {0: ("no", QUIET), 1: ("yes", GOOD)}
IN_USE_WORDS: Final = {0: ("asleep", QUIET), 1: ("in use", TAKEN)}
POWER_WORDS: Final = {0: ("asleep", QUIET), 1: ("awake", GOOD)}
PART_WORDS: Final = {
    0: ("running", GOOD),
    1: ("starting", TAKEN),
    2: ("stopped", QUIET),
    3: ("backing off", POOR),
    4: ("failed", BAD),
}

NODE_LINK: Final = ("Show this node", "/d/hailo-agent-node?var-instance=${__value.raw}")
NODE_COLUMN: Final = column("Node", link=NODE_LINK)
SEVERITY_COLUMN: Final = column("Severity", texts=SEVERITY_COLORS, width=100)
RANK_COLUMN: Final = column(
    "Severity",
    words={3: ("fatal", BAD), 2: ("unknown", UNKNOWN), 1: ("degraded", POOR), 0: ("info", TAKEN)},
    width=100,
)
ALERT_COLUMN: Final = column(
    "Severity",
    words={2: ("critical", BAD), 1: ("warning", POOR), 0: ("info", TAKEN)},
    width=100,
)


def health_figure(selector: str) -> str:
    """Ask for health as a figure, one for each device: see `HEALTH_WORDS`."""
    return (
        f"max by (job, instance, device) ("
        f'hailo_device_health{{{selector}, health="Degraded"}}'
        f' + ignoring (health) 2 * hailo_device_health{{{selector}, health="Unknown"}}'
        f' + ignoring (health) 3 * hailo_device_health{{{selector}, health="Unhealthy"}})'
    )


def ranked(metric: str, selector: str, severities: Iterable[str]) -> str:
    """Ask for a severity as a figure, by which a table can be ordered; the mildest one is 0."""
    return " or ".join(
        f'{metric}{{{selector}, severity="{severity}"}} * {rank}'
        for rank, severity in enumerate(severities)
    )


def faults(selector: str) -> str:
    """Ask for the faults of devices by how bad they are: see `RANK_COLUMN`."""
    severities = ("info", "degraded", "unknown", "fatal")
    return f"({ranked('hailo_device_fault', selector, severities)})"


def part_figure(selector: str) -> str:
    """Ask for the state of parts as a figure: see `PART_WORDS`."""

    def state(name: str) -> str:
        return f'hailo_agent_part_state{{{selector}, state="{name}"}}'

    return (
        f"max by (instance, part) ({state('starting')}"
        f" + ignoring (state) 2 * {state('stopped')}"
        f" + ignoring (state) 3 * {state('backing-off')}"
        f" + ignoring (state) 4 * {state('failed')})"
    )


def hottest(selector: str) -> str:
    """Ask for each device's temperature: its hotter sensor is the one that counts."""
    return f"max by (job, instance, device) (hailo_device_temperature_celsius{{{selector}}})"


def bandwidth(selector: str) -> str:
    """Ask for how much of a link's bandwidth there is, from 0 to 1."""
    return (
        f"max by (job, instance, device) ("
        f"(hailo_device_link_transfers_per_second{{{selector}}}"
        f" * hailo_device_link_lanes{{{selector}}})"
        f" / (hailo_device_link_max_transfers_per_second{{{selector}}}"
        f" * hailo_device_link_max_lanes{{{selector}}}))"
    )


def free(selector: str) -> str:
    """Ask for each device whether a pod could get it now."""
    usable, held = (f"hailo_device_{word}{{{selector}}}" for word in ("usable", "held"))
    return f"({usable} == bool 1) * ({held} == bool 0)"


def with_resource(expr: str, selector: str) -> str:
    """Join the resource of each device."""
    return f"{expr} * {ON} group_left (resource) hailo_device_info{{{selector}}}"


def mapped(text: str, color: str, figure: int) -> Json:
    """Say one figure in a word."""
    return {"type": "value", "options": {str(figure): {"text": text, "color": color, "index": 0}}}
