"""The board of whoever runs the cluster: all nodes at once."""

from __future__ import annotations

from typing import Final

from hack.dashboards.grafana import (
    AER_COLORS,
    ANY_IS_POOR,
    BAD,
    CELSIUS,
    GOOD,
    HEALTH_COLORS,
    NONE_IS_BAD,
    POOR,
    SHARE,
    TAKEN,
    Board,
    Query,
    Row,
    Variable,
    bars,
    column,
    course,
    ring,
    stat,
    table,
)
from hack.dashboards.queries import (
    ALERT_COLUMN,
    JOB,
    NODE_COLUMN,
    ON,
    RANK_COLUMN,
    SEVERITY_COLUMN,
    YES_NO,
    bandwidth,
    faults,
    free,
    health_figure,
    hottest,
    ranked,
    with_resource,
)

_S: Final = 'job=~"$job", instance=~"$instance"'

_FIRING: Final = 'alertname=~"Hailo.+", alertstate="firing", job=~"$job"'

_AT_A_GLANCE: Final = Row(
    title="At a glance",
    panels=(
        stat(
            "Nodes",
            "How many nodes have an agent that answers?",
            f"count(hailo_agent_build_info{{{_S}}})",
        ),
        stat(
            "Devices",
            "How many accelerators are there, usable or not?",
            f"sum(hailo_agent_devices{{{_S}}})",
        ),
        stat(
            "Usable",
            "Which share of them may be handed out? The others are gone, unhealthy or set aside.",
            f"avg(hailo_device_usable{{{_S}}})",
            unit="percentunit",
            steps=SHARE,
            decimals=0,
        ),
        stat(
            "Held",
            "Which share of them do pods hold?",
            f"avg(hailo_device_held{{{_S}}})",
            unit="percentunit",
            decimals=0,
        ),
        stat(
            "Free",
            "How many could pods get right now?",
            f"sum({free(_S)})",
            steps=NONE_IS_BAD,
        ),
        stat(
            "Not healthy",
            "How many need somebody? Degraded ones are still handed out, unhealthy ones are not.",
            f'sum(hailo_device_health{{{_S}, health!="Healthy"}})',
            steps=ANY_IS_POOR,
        ),
        course(
            "Health",
            "How many devices have been well, and since when are some not?",
            Query(expr=f"sum by (health) (hailo_device_health{{{_S}}})", legend="{{health}}"),
            colors=HEALTH_COLORS,
            is_stacked=True,
        ),
        course(
            "Capacity",
            "How much of it is taken, how much could be had, and how much is out of service?",
            Query(expr=f"sum(hailo_device_held{{{_S}}})", legend="held"),
            Query(expr=f"sum({free(_S)})", legend="free"),
            Query(
                expr=f"sum((hailo_device_usable{{{_S}}} == bool 0)"
                f" * (hailo_device_held{{{_S}}} == bool 0))",
                legend="out of service",
            ),
            colors={"held": TAKEN, "free": GOOD, "out of service": BAD},
            is_stacked=True,
        ),
    ),
)

_ATTENTION: Final = Row(
    title="What needs somebody",
    panels=(
        table(
            "Faults of devices",
            "Which device has what, and where is it? docs/reference/health.md says what to do.",
            Query(
                expr=f"{faults(_S)} * {ON} group_left (model) hailo_device_info{{{_S}}}",
                column="Severity",
            ),
            columns={
                "code": "Fault",
                "instance": "Node",
                "device": "Device",
                "model": "Model",
            },
            width=14,
            overrides=(NODE_COLUMN, RANK_COLUMN),
            lead="Severity",
            sort_by="Severity",
            is_descending=True,
        ),
        table(
            "Alerts",
            "Which alerts fire? Needs manifests/prometheus/rules.yaml.",
            Query(expr=f"count by (alertname) (ALERTS{{{_FIRING}}})", column="How many"),
            Query(
                expr="max by (alertname)"
                f" ({ranked('ALERTS', _FIRING, ('info', 'warning', 'critical'))})",
                column="Severity",
            ),
            columns={"alertname": "Alert"},
            width=10,
            overrides=(ALERT_COLUMN, column("How many", width=100)),
            lead="Severity",
            sort_by="Severity",
            is_descending=True,
        ),
        bars(
            "Most frequent faults",
            "Is it one board, or the same thing everywhere?",
            Query(
                expr=f"topk(8, count by (code) (hailo_device_fault{{{_S}}}))",
                legend="{{code}}",
            ),
            steps=((None, POOR),),
            height=7,
        ),
        table(
            "Faults of nodes",
            "What is wrong on which node that belongs to no single device?",
            Query(
                expr=f"sum by (instance, code, severity) (hailo_agent_faults{{{_S}}})",
                column="How many",
            ),
            columns={"severity": "Severity", "code": "Fault", "instance": "Node"},
            width=12,
            height=7,
            overrides=(NODE_COLUMN, SEVERITY_COLUMN, column("How many", width=100)),
        ),
    ),
)

_PHYSICS: Final = Row(
    title="Heat and links",
    panels=(
        bars(
            "Hottest devices",
            "Which devices are hottest now?",
            Query(
                expr=f"sort_desc(topk(8, {hottest(_S)}))",
                legend="{{instance}} {{device}}",
            ),
            unit="celsius",
            steps=CELSIUS,
            most=120,
        ),
        course(
            "Temperature",
            "Is it getting warmer, for all or for some?",
            Query(expr=f"max({hottest(_S)})", legend="hottest"),
            Query(expr=f"quantile(0.9, {hottest(_S)})", legend="90 % are below"),
            Query(expr=f"quantile(0.5, {hottest(_S)})", legend="half are below"),
            unit="celsius",
            colors={"hottest": BAD, "90 % are below": POOR, "half are below": GOOD},
            least=None,
        ),
        bars(
            "Slowest links",
            "Which links have less bandwidth than card and slot could?",
            Query(
                expr=f"sort(bottomk(8, {bandwidth(_S)}))",
                legend="{{instance}} {{device}}",
            ),
            unit="percentunit",
            steps=((None, BAD), (0.5, POOR), (1, GOOD)),
            most=1,
        ),
        course(
            "PCIe errors",
            "Do links lose data? A few corrected errors are normal.",
            Query(
                expr="60 * sum by (severity)"
                f" (rate(hailo_device_aer_errors_total{{{_S}}}[$__rate_interval]))",
                legend="{{severity}}",
            ),
            unit="cpm",
            colors=AER_COLORS,
        ),
    ),
)

_USE: Final = Row(
    title="What is done with them (needs monitor.enabled)",
    panels=(
        course(
            "Utilisation",
            "Which share of the time are the devices busy that tell?",
            Query(expr=f"avg(hailo_device_utilisation_ratio{{{_S}}})", legend="mean"),
            Query(expr=f"max(hailo_device_utilisation_ratio{{{_S}}})", legend="busiest"),
            unit="percentunit",
            height=7,
            colors={"mean": TAKEN, "busiest": POOR},
            most=1,
        ),
        course(
            "Frames",
            "How many frames does each namespace get through?",
            Query(
                expr=f"sum by (namespace) (hailo_network_frames_per_second{{{_S}}})",
                legend="{{namespace}}",
            ),
            unit="fps",
            height=7,
            is_stacked=True,
        ),
    ),
)

_STOCK: Final = Row(
    title="What there is",
    panels=(
        table(
            "Resources",
            "By the name that pods ask for: how much is there, and how much is left?",
            Query(
                expr=f"sum by (resource) (hailo_agent_devices{{{_S}}})",
                column="Devices",
            ),
            Query(
                expr=f"sum by (resource) ({with_resource(f'hailo_device_usable{{{_S}}}', _S)})",
                column="Usable",
            ),
            Query(
                expr=f"sum by (resource) ({with_resource(f'hailo_device_held{{{_S}}}', _S)})",
                column="Held",
            ),
            Query(expr=f"sum by (resource) ({with_resource(free(_S), _S)})", column="Free"),
            columns={"resource": "Resource"},
            width=10,
            height=7,
            overrides=(column("Free", steps=NONE_IS_BAD),),
            sort_by="Resource",
        ),
        ring(
            "Models",
            "Which models are these?",
            Query(
                expr=f"count by (model) (hailo_device_info{{{_S}}})",
                legend="{{model}}",
            ),
            width=6,
            height=7,
        ),
        ring(
            "Firmware",
            "Which firmware do they run, on which kernel driver? Both should be of one version.",
            Query(
                expr=f"count by (firmware, driver_version) (hailo_device_info{{{_S}}})",
                legend="{{firmware}} on {{driver_version}}",
            ),
            width=8,
            height=7,
        ),
        table(
            "Each node",
            "How is each node? Click one to see it alone.",
            Query(
                expr=f"sum by (instance) (hailo_agent_devices{{{_S}}})",
                column="Devices",
            ),
            Query(expr=f"sum by (instance) (hailo_device_usable{{{_S}}})", column="Usable"),
            Query(expr=f"sum by (instance) (hailo_device_held{{{_S}}})", column="Held"),
            Query(
                expr=f"count by (instance) ({health_figure(_S)} > 0)",
                column="Not healthy",
            ),
            Query(
                expr=f"max by (instance) (hailo_device_temperature_celsius{{{_S}}})",
                column="Hottest",
            ),
            Query(expr=f"min by (instance) (hailo_agent_ready{{{_S}}})", column="Agent ready"),
            columns={"instance": "Node"},
            width=24,
            height=7,
            overrides=(
                NODE_COLUMN,
                column("Not healthy", steps=ANY_IS_POOR),
                column("Hottest", unit="celsius", steps=CELSIUS),
                column("Agent ready", words={0: ("no", BAD), 1: YES_NO[1]}),
            ),
            sort_by="Node",
        ),
    ),
)

_AGENTS: Final = Row(
    title="The agents",
    panels=(
        course(
            "Refused allocations",
            "Have pods been refused a device, and why? Their status has the reason in words.",
            Query(
                expr="sum by (reason)"
                f" (increase(hailo_agent_allocation_refusals_total{{{_S}}}[$__rate_interval]))",
                legend="{{reason}}",
            ),
            width=8,
            is_counted=True,
            colors={"DeviceUnavailable": POOR, "UnknownOffer": BAD},
        ),
        course(
            "Allocate",
            "How long do pods wait for their device? Over half an hour each, as they are few.",
            Query(
                expr="histogram_quantile(0.5, sum by (le) (rate("
                f"hailo_agent_allocation_duration_seconds_bucket{{{_S}}}[30m])))",
                legend="half are below",
            ),
            Query(
                expr="histogram_quantile(0.99, sum by (le) (rate("
                f"hailo_agent_allocation_duration_seconds_bucket{{{_S}}}[30m])))",
                legend="99 % are below",
            ),
            unit="s",
            width=8,
            colors={"half are below": GOOD, "99 % are below": POOR},
        ),
        course(
            "Versions",
            "Which versions of the agent run? Two of them for long are an update that got stuck.",
            Query(
                expr=f"count by (version) (hailo_agent_build_info{{{_S}}})",
                legend="{{version}}",
            ),
            width=8,
            is_stacked=True,
        ),
    ),
)

FLEET: Final = Board(
    name="fleet",
    title="Hailo / Fleet",
    description="All Hailo accelerators: what there is, how it is, what needs somebody.",
    variables=(
        JOB,
        Variable(
            name="instance",
            label="Node",
            query='label_values(hailo_agent_build_info{job=~"$job"}, instance)',
        ),
    ),
    rows=(_AT_A_GLANCE, _ATTENTION, _PHYSICS, _USE, _STOCK, _AGENTS),
)
