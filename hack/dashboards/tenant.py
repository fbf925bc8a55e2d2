"""The board of whoever runs pods: what they have, and whether it is any good."""

from __future__ import annotations

from typing import Final

from hack.dashboards.grafana import (
    ANY_IS_POOR,
    BAD,
    CELSIUS,
    GOOD,
    NONE_IS_BAD,
    POOR,
    Board,
    Query,
    Row,
    Variable,
    bars,
    column,
    course,
    stat,
    states,
    table,
)
from hack.dashboards.queries import (
    HEALTH_WORDS,
    IN_USE_WORDS,
    JOB,
    NODE_COLUMN,
    ON,
    RANK_COLUMN,
    bandwidth,
    faults,
    free,
    health_figure,
    hottest,
    with_resource,
)

_J: Final = 'job=~"$job"'
_MINE: Final = f'hailo_device_allocation{{{_J}, namespace=~"$namespace", pod=~"$pod"}}'
_MY_DEVICES: Final = f"group by (job, instance, device) ({_MINE})"
# Nothing keeps two containers from being told to hold one device; a join needs one of them.
_ONE_EACH: Final = f"topk by (job, instance, device) (1, {_MINE})"
_JOINED: Final = f"{ON} group_left (namespace, pod) {_ONE_EACH}"


def _of_each(expr: str) -> str:
    """Ask for something of a device, with the labels of each container that holds it."""
    return f"{_MINE} * {ON} group_left () {expr}"


_AT_A_GLANCE: Final = Row(
    title="At a glance",
    panels=(
        stat(
            "My devices",
            "How many accelerators do these pods hold?",
            f"count({_MY_DEVICES}) or vector(0)",
        ),
        stat(
            "My pods",
            "How many of these pods hold any?",
            f"count(group by (namespace, pod) ({_MINE})) or vector(0)",
        ),
        stat(
            "My share",
            "Which share of all accelerators do these pods hold?",
            f"(count({_MY_DEVICES}) or vector(0)) / count(hailo_device_info{{{_J}}})",
            unit="percentunit",
            decimals=0,
        ),
        stat(
            "Not healthy",
            "How many of mine are not as they should be?",
            f"sum({_MY_DEVICES} * {ON} ({health_figure(_J)} > bool 0)) or vector(0)",
            steps=ANY_IS_POOR,
        ),
        stat(
            "Idle",
            "How many do I hold without having them open, as far as their power state tells?",
            f"sum({_MY_DEVICES} * {ON} (hailo_device_in_use{{{_J}}} == bool 0)) or vector(0)",
            steps=ANY_IS_POOR,
        ),
        stat(
            "Free",
            "Could another pod get one now?",
            f"sum({free(_J)})",
            steps=NONE_IS_BAD,
        ),
    ),
)

_PODS: Final = Row(
    title="What each pod has",
    panels=(
        table(
            "Devices of pods",
            "What has each pod, and is it any good?",
            Query(expr=_of_each(health_figure(_J)), column="Health"),
            Query(expr=_of_each(hottest(_J)), column="Temperature"),
            Query(expr=_of_each(bandwidth(_J)), column="Link"),
            Query(
                expr=_of_each(
                    f"max by (job, instance, device) (hailo_device_throttling_level{{{_J}}})"
                ),
                column="Slowed down",
            ),
            Query(
                expr=_of_each(f"max by (job, instance, device) (hailo_device_in_use{{{_J}}})"),
                column="Use",
            ),
            columns={
                "namespace": "Namespace",
                "pod": "Pod",
                "container": "Container",
                "instance": "Node",
                "device": "Device",
            },
            overrides=(
                NODE_COLUMN,
                column("Health", words=HEALTH_WORDS),
                column("Temperature", unit="celsius", steps=CELSIUS),
                column("Link", unit="percentunit", steps=((None, BAD), (0.5, POOR), (1, GOOD))),
                column("Slowed down", steps=ANY_IS_POOR),
                column("Use", words=IN_USE_WORDS),
            ),
            height=9,
            sort_by="Pod",
        ),
        course(
            "By namespace",
            "Who has held how many, and when?",
            Query(
                expr=f"sum by (namespace) ({_MINE})",
                legend="{{namespace}}",
            ),
            is_stacked=True,
        ),
        states(
            "Health of what I hold",
            "When was a pod's device not well?",
            Query(
                expr=f"{health_figure(_J)} * {_JOINED}",
                legend="{{pod}} {{device}}",
            ),
            HEALTH_WORDS,
        ),
    ),
)

_QUALITY: Final = Row(
    title="Is it any good",
    panels=(
        table(
            "Faults of what I hold",
            "What is wrong with which pod's device? docs/reference/health.md says what to do.",
            Query(expr=f"{faults(_J)} * {_JOINED}", column="Severity"),
            columns={
                "code": "Fault",
                "namespace": "Namespace",
                "pod": "Pod",
                "instance": "Node",
                "device": "Device",
            },
            width=24,
            height=6,
            overrides=(NODE_COLUMN, RANK_COLUMN),
            lead="Severity",
            sort_by="Severity",
            is_descending=True,
        ),
        course(
            "Temperature",
            "How hot are my pods' devices?",
            Query(expr=f"{hottest(_J)} * {_JOINED}", legend="{{pod}} {{device}}"),
            unit="celsius",
            least=None,
        ),
        course(
            "Throttling",
            "Do my pods get fewer frames because the device is slowed down? 0 is full clock.",
            Query(
                expr=f"hailo_device_throttling_level{{{_J}}} * {_JOINED}",
                legend="{{pod}} {{device}}",
            ),
            is_stepped=True,
        ),
        states(
            "Use",
            "Do my pods use what they hold, as far as its power state tells?",
            Query(
                expr=f"max by (job, instance, device) (hailo_device_in_use{{{_J}}}) * {_JOINED}",
                legend="{{pod}} {{device}}",
            ),
            IN_USE_WORDS,
        ),
        course(
            "Link bandwidth",
            "Is the way to a device narrower than it could be?",
            Query(
                expr=f"{bandwidth(_J)} * {_JOINED}",
                legend="{{pod}} {{device}}",
            ),
            unit="percentunit",
            is_stepped=True,
            most=1,
        ),
    ),
)

_NETWORKS: Final = 'job=~"$job", namespace=~"$namespace", pod=~"$pod"'
_BY_NETWORK: Final = "job, instance, device, namespace, pod, network"


def _of_networks(metric: str, selector: str = _NETWORKS) -> str:
    return f"sum by ({_BY_NETWORK}) ({metric}{{{selector}}})"


_WORK: Final = Row(
    title="What they do (needs monitor.enabled)",
    panels=(
        course(
            "Frames",
            "How many frames does each network of my pods complete?",
            Query(
                expr="sum by (namespace, pod, network)"
                f" (hailo_network_frames_per_second{{{_NETWORKS}}})",
                legend="{{pod}} {{network}}",
            ),
            unit="fps",
            width=8,
        ),
        course(
            "Utilisation",
            "How much of the time of its device does each network take?",
            Query(
                expr="sum by (namespace, pod, network)"
                f" (hailo_network_utilisation_ratio{{{_NETWORKS}}})",
                legend="{{pod}} {{network}}",
            ),
            unit="percentunit",
            width=8,
        ),
        course(
            "Queues",
            "Do frames pile up before the device? A full queue is a device that cannot keep up.",
            Query(
                expr="sum by (namespace, pod, network)"
                f' (hailo_network_queue_frames{{{_NETWORKS}, direction="input"}})'
                " / sum by (namespace, pod, network)"
                f' (hailo_network_queue_capacity_frames{{{_NETWORKS}, direction="input"}})',
                legend="{{pod}} {{network}}",
            ),
            unit="percentunit",
            width=8,
            most=1,
        ),
        table(
            "Networks",
            "Which network runs where, how fast, and does anything wait?",
            Query(expr=_of_networks("hailo_network_frames_per_second"), column="Frames/s"),
            Query(expr=_of_networks("hailo_network_utilisation_ratio"), column="Utilisation"),
            Query(
                expr=_of_networks("hailo_network_queue_frames", f'{_NETWORKS}, direction="input"'),
                column="Waiting before",
            ),
            Query(
                expr=_of_networks("hailo_network_queue_frames", f'{_NETWORKS}, direction="output"'),
                column="Waiting after",
            ),
            columns={
                "namespace": "Namespace",
                "pod": "Pod",
                "network": "Network",
                "instance": "Node",
                "device": "Device",
            },
            height=6,
            overrides=(
                NODE_COLUMN,
                column("Utilisation", unit="percentunit"),
                column("Frames/s", unit="fps"),
            ),
            sort_by="Pod",
        ),
    ),
)

_NEXT: Final = Row(
    title="Could I get one",
    panels=(
        bars(
            "Free now",
            "Of which resource could a pod get how many right now? Whatever the namespace.",
            Query(
                expr=f"sum by (resource) ({with_resource(free(_J), _J)})",
                legend="{{resource}}",
            ),
            steps=NONE_IS_BAD,
            width=8,
        ),
        course(
            "Free over time",
            "When would a pod have found one?",
            Query(
                expr=f"sum by (resource) ({with_resource(free(_J), _J)})",
                legend="{{resource}}",
            ),
            width=8,
            is_stepped=True,
        ),
        course(
            "Refused",
            "Was anybody refused one? The pod's status has the reason in words.",
            Query(
                expr="sum by (resource, reason)"
                f" (increase(hailo_agent_allocation_refusals_total{{{_J}}}[$__rate_interval]))",
                legend="{{resource}} {{reason}}",
            ),
            width=8,
            is_counted=True,
        ),
    ),
)

TENANT: Final = Board(
    name="tenant",
    title="Hailo / Tenant",
    description="Pods, the accelerators they hold, and whether these are any good.",
    variables=(
        JOB,
        Variable(
            name="namespace",
            label="Namespace",
            query='label_values(hailo_device_allocation{job=~"$job"}, namespace)',
        ),
        Variable(
            name="pod",
            label="Pod",
            query="label_values("
            'hailo_device_allocation{job=~"$job", namespace=~"$namespace"}, pod)',
        ),
    ),
    rows=(_AT_A_GLANCE, _PODS, _WORK, _QUALITY, _NEXT),
)
