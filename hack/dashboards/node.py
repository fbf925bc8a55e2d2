"""The board of whoever stands before one node: each of its devices, and the agent on it."""

from __future__ import annotations

from typing import Final

from hack.dashboards.grafana import (
    ANY_IS_POOR,
    BAD,
    CELSIUS,
    GOOD,
    POOR,
    SHARE,
    TAKEN,
    Board,
    Query,
    Row,
    Variable,
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
    ON,
    PART_WORDS,
    POWER_WORDS,
    RANK_COLUMN,
    SEVERITY_COLUMN,
    bandwidth,
    faults,
    health_figure,
    hottest,
    mapped,
    part_figure,
)

_S: Final = 'job=~"$job", instance=~"$instance"'
_D: Final = f'{_S}, device=~"$device"'
_INFO: Final = f"hailo_device_info{{{_D}}}"

_AT_A_GLANCE: Final = Row(
    title="At a glance",
    panels=(
        stat(
            "Agent",
            "Does every essential part of the agent run?",
            f"min(hailo_agent_ready{{{_S}}})",
            steps=((None, BAD), (1, GOOD)),
            mappings=(mapped("ready", GOOD, 1), mapped("not ready", BAD, 0)),
            is_trend=False,
        ),
        stat(
            "Up for",
            "How long has the agent been running without a restart?",
            f"min(time() - process_start_time_seconds{{{_S}}})",
            unit="s",
            steps=((None, POOR), (600, GOOD)),
            decimals=1,
            is_trend=False,
        ),
        stat(
            "Devices",
            "How many accelerators does the node have, usable or not?",
            f"sum(hailo_agent_devices{{{_S}}})",
        ),
        stat(
            "Usable",
            "Which share of them may be handed out?",
            f"avg(hailo_device_usable{{{_D}}})",
            unit="percentunit",
            steps=SHARE,
            decimals=0,
        ),
        stat(
            "Held",
            "How many of them do pods hold?",
            f"sum(hailo_device_held{{{_D}}})",
        ),
        stat(
            "Hottest",
            "How hot is the hottest of them?",
            f"max(hailo_device_temperature_celsius{{{_D}}})",
            unit="celsius",
            steps=CELSIUS,
            decimals=1,
        ),
    ),
)

_DEVICES: Final = Row(
    title="Each device",
    panels=(
        table(
            "What is in this node",
            "What is each device, where is it, and how is it now?",
            Query(expr=f"{_INFO} * {ON} group_left () {health_figure(_D)}", column="Health"),
            Query(expr=f"{_INFO} * {ON} group_left () {hottest(_D)}", column="Temperature"),
            Query(expr=f"{_INFO} * {ON} group_left () {bandwidth(_D)}", column="Link"),
            columns={
                "device": "Device",
                "devnode": "Devnode",
                "model": "Model",
                "product": "Product",
                "serial": "Serial",
                "firmware": "Firmware",
                "driver_version": "Driver",
                "numa_node": "NUMA",
            },
            height=7,
            overrides=(
                column("Health", words=HEALTH_WORDS),
                column("Temperature", unit="celsius", steps=CELSIUS),
                column("Link", unit="percentunit", steps=((None, BAD), (0.5, POOR), (1, GOOD))),
                column("NUMA", width=70),
            ),
            sort_by="Device",
        ),
        states(
            "Health",
            "How has each device been, and since when?",
            Query(expr=health_figure(_D), legend="{{device}}"),
            HEALTH_WORDS,
        ),
        states(
            "Holders",
            "Which pod has had which device, and when?",
            Query(
                expr=f"max by (device, namespace, pod) (hailo_device_allocation{{{_D}}})",
                legend="{{device}} {{namespace}}/{{pod}}",
            ),
            {1: ("held", TAKEN)},
        ),
        table(
            "Faults",
            "What is wrong with which device? docs/reference/health.md says what to do.",
            Query(expr=f"max by (device, code) {faults(_D)}", column="Severity"),
            columns={"code": "Fault", "device": "Device"},
            width=12,
            height=7,
            overrides=(RANK_COLUMN,),
            lead="Severity",
            sort_by="Severity",
            is_descending=True,
        ),
        states(
            "Use",
            "Does anybody have it open, as far as its power state tells?",
            Query(expr=f"max by (device) (hailo_device_in_use{{{_D}}})", legend="{{device}}"),
            IN_USE_WORDS,
            height=7,
        ),
    ),
)

_USE: Final = Row(
    title="What is done with them (needs monitor.enabled)",
    panels=(
        course(
            "Utilisation",
            "Which share of the time is each device busy, as its workload says?",
            Query(
                expr=f"max by (device) (hailo_device_utilisation_ratio{{{_D}}})",
                legend="{{device}}",
            ),
            unit="percentunit",
            height=7,
            most=1,
        ),
        course(
            "Frames",
            "How many frames does each network complete?",
            Query(
                expr=f"sum by (device, pod, network) (hailo_network_frames_per_second{{{_D}}})",
                legend="{{pod}} {{network}} {{device}}",
            ),
            unit="fps",
            height=7,
        ),
    ),
)

_PHYSICS: Final = Row(
    title="Heat and link",
    panels=(
        course(
            "Temperature",
            "How hot is each sensor, and how far from where the firmware slows the device down?",
            Query(
                expr=f"max by (device, sensor) (hailo_device_temperature_celsius{{{_D}}})",
                legend="{{device}} {{sensor}}",
            ),
            Query(
                expr=f'min(hailo_device_temperature_limit_celsius{{{_D}, zone="orange"}})',
                legend="slowed down from here",
            ),
            unit="celsius",
            dashed="^slowed down from here$",
            least=None,
        ),
        course(
            "Throttling",
            "By how many steps has the firmware slowed it down? 0 is full clock.",
            Query(
                expr=f"max by (device) (hailo_device_throttling_level{{{_D}}})", legend="{{device}}"
            ),
            is_stepped=True,
        ),
        course(
            "Link bandwidth",
            "Which share of what card and slot could do does the link have?",
            Query(expr=bandwidth(_D), legend="{{device}}"),
            unit="percentunit",
            is_stepped=True,
            most=1,
        ),
        course(
            "PCIe errors",
            "Which link loses data, and which corrects errors?",
            *(
                Query(
                    expr="60 * sum by (device) (rate(hailo_device_aer_errors_total"
                    f'{{{_D}, severity{matches}"correctable"}}[$__rate_interval]))',
                    legend=f"{{{{device}}}} {kind}",
                )
                for kind, matches in (("lost", "!="), ("corrected", "="))
            ),
            unit="cpm",
        ),
        course(
            "Answers",
            "How long did the slowest answer of each device take when it was asked last?",
            Query(
                expr=f"max by (device) (hailo_device_query_duration_seconds{{{_D}}})",
                legend="{{device}}",
            ),
            unit="s",
            height=7,
        ),
        states(
            "Power",
            "Which devices sleep, and when? One that is open never does.",
            Query(
                expr="max by (device)"
                f' (hailo_device_power_state{{{_D}, state="D0"}})'
                " or max by (device)"
                f' (hailo_device_power_state{{{_D}, state!="D0"}} * 0)',
                legend="{{device}}",
            ),
            POWER_WORDS,
            height=7,
        ),
        course(
            "Overcurrent",
            "Has a device drawn more current than its firmware allows?",
            Query(
                expr=f"max by (device) (hailo_device_overcurrent{{{_D}}})",
                legend="{{device}}",
            ),
            width=8,
            is_stepped=True,
            most=1,
        ),
        course(
            "Notifications",
            "What has the firmware said by itself? Only where the agent listens.",
            Query(
                expr="sum by (device, kind)"
                f" (increase(hailo_device_notifications_total{{{_D}}}[$__rate_interval]))",
                legend="{{device}} {{kind}}",
            ),
            width=8,
            is_counted=True,
        ),
        course(
            "Age of readings",
            "How old is what is known? A busy device is not asked, so its query grows old.",
            Query(
                expr=f"max by (sensor) (time() - hailo_device_reading_timestamp_seconds{{{_D}}})",
                legend="{{sensor}}",
            ),
            unit="s",
            width=8,
        ),
    ),
)

_AGENT: Final = Row(
    title="The agent",
    panels=(
        states(
            "Parts",
            "Which part of the agent has not been running, and when?",
            Query(expr=part_figure(_S), legend="{{part}}"),
            PART_WORDS,
        ),
        course(
            "Passes",
            "Why does the agent look at the machine, and how often?",
            Query(
                expr="60 * sum by (reason)"
                f" (rate(hailo_agent_reconcile_reasons_total{{{_S}}}[$__rate_interval]))",
                legend="{{reason}}",
            ),
            unit="opm",
            is_stacked=True,
        ),
        course(
            "Latency",
            "How long do Allocate, a pass, and news of a plug take? Over half an hour each.",
            Query(
                expr="histogram_quantile(0.99, sum by (le) (rate("
                f"hailo_agent_allocation_duration_seconds_bucket{{{_S}}}[30m])))",
                legend="Allocate, 99 % are below",
            ),
            Query(
                expr=f"sum(rate(hailo_agent_reconcile_duration_seconds_sum{{{_S}}}"
                "[$__rate_interval])) / "
                f"sum(rate(hailo_agent_reconcile_duration_seconds_count{{{_S}}}"
                "[$__rate_interval]))",
                legend="pass, mean",
            ),
            Query(
                expr="histogram_quantile(0.95, sum by (le) (rate("
                f"hailo_agent_hotplug_duration_seconds_bucket{{{_S}}}[30m])))",
                legend="hot-plug, 95 % are below",
            ),
            unit="s",
            width=8,
        ),
        course(
            "Calls",
            "Which gRPC calls fail?",
            Query(
                expr="sum by (status)"
                f" (rate(hailo_agent_rpc_duration_seconds_count{{{_S}}}[$__rate_interval]))",
                legend="{{status}}",
            ),
            unit="reqps",
            width=8,
            colors={"OK": GOOD},
            is_stacked=True,
        ),
        course(
            "Words with the kubelet",
            "Does the kubelet take what we tell it?",
            Query(
                expr="sum by (outcome)"
                f" (increase(hailo_agent_registrations_total{{{_S}}}[$__rate_interval]))",
                legend="registration {{outcome}}",
            ),
            Query(
                expr=f"sum(increase(hailo_agent_device_lists_total{{{_S}}}[$__rate_interval]))",
                legend="device list",
            ),
            Query(
                expr="sum by (reason)"
                f" (increase(hailo_agent_allocation_refusals_total{{{_S}}}[$__rate_interval]))",
                legend="refusal {{reason}}",
            ),
            width=8,
            is_counted=True,
        ),
        course(
            "Processor",
            "How much of a core does the agent use?",
            Query(
                expr="sum by (instance)"
                f" (rate(process_cpu_seconds_total{{{_S}}}[$__rate_interval]))",
                legend="cores",
            ),
            unit="percentunit",
            width=8,
        ),
        course(
            "Memory",
            "How much memory does the agent hold?",
            Query(
                expr=f"sum by (instance) (process_resident_memory_bytes{{{_S}}})", legend="resident"
            ),
            unit="bytes",
            width=8,
        ),
        course(
            "CDI spec",
            "How often was the spec written, and has it been refused?",
            Query(
                expr="sum by (outcome)"
                f" (increase(hailo_agent_spec_writes_total{{{_S}}}[$__rate_interval]))",
                legend="{{outcome}}",
            ),
            width=8,
            is_counted=True,
            colors={"replaced": GOOD, "restored": TAKEN, "removed": POOR, "refused": BAD},
        ),
        table(
            "Faults of the node",
            "What is wrong that belongs to no single device?",
            Query(
                expr=f"sum by (code, severity) (hailo_agent_faults{{{_S}}})",
                column="How many",
            ),
            columns={"severity": "Severity", "code": "Fault"},
            width=8,
            height=6,
            overrides=(SEVERITY_COLUMN, column("How many", width=100)),
        ),
        table(
            "Restarts of parts",
            "Which part has failed, and how often since the agent began?",
            Query(
                expr=f"max by (part) (hailo_agent_part_restarts_total{{{_S}}})",
                column="Restarts",
            ),
            columns={"part": "Part"},
            width=8,
            height=6,
            overrides=(column("Restarts", steps=ANY_IS_POOR, width=100),),
            sort_by="Restarts",
            is_descending=True,
        ),
        course(
            "Changes",
            "What has changed about devices, by the name of its log event?",
            Query(
                expr="sum by (kind)"
                f" (increase(hailo_agent_changes_total{{{_S}}}[$__rate_interval])) > 0",
                legend="{{kind}}",
            ),
            width=8,
            height=6,
            is_counted=True,
        ),
    ),
)

NODE: Final = Board(
    name="node",
    title="Hailo / Node",
    description="One node: each of its accelerators, who holds it, and the agent that tells.",
    variables=(
        JOB,
        Variable(
            name="instance",
            label="Node",
            query='label_values(hailo_agent_build_info{job=~"$job"}, instance)',
            one_only=True,
        ),
        Variable(
            name="device",
            label="Device",
            query='label_values(hailo_device_info{job=~"$job", instance=~"$instance"}, device)',
        ),
    ),
    rows=(_AT_A_GLANCE, _DEVICES, _PHYSICS, _USE, _AGENT),
)
