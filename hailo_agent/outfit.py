"""What each room is given of the settings: the two or three values that it needs.

`agent` hands them over. Nothing is decided here, and nothing is started.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from hailo_agent import __version__
from hailo_agent.core.cdi import FILE_NAME, Place
from hailo_agent.core.chip import Limits
from hailo_agent.core.device import FAMILIES, Family, Identity
from hailo_agent.core.health import RULES, FaultCode, Patience, Rule, Severity, Standards
from hailo_agent.core.inventory import Policy
from hailo_agent.core.offer import ResourceNames
from hailo_agent.host import notifications
from hailo_agent.host.hailortcli import HailortCli
from hailo_agent.host.notifications import Listeners
from hailo_agent.host.probe import Prober
from hailo_agent.host.scan import Scanner
from hailo_agent.host.senses import Questions, Senses, Target
from hailo_agent.host.vitals import VitalsReader, host_memory
from hailo_agent.settings import FaultRule, Settings
from hailo_agent.subscribers.mapping import About

_WORKER_SECONDS: Final = 20.0
"""No process to ask devices is kept for longer: at the usual period it would idle for a minute."""


def resource_names(settings: Settings) -> ResourceNames:
    """Say which resources are served, and what is offered under which."""
    return ResourceNames(default=settings.resource.name, by_kind=dict(settings.resource.names))


def scanner(settings: Settings) -> Scanner:
    """Say where to look, and for which drivers' devices."""
    host = settings.host
    configured = (
        Family(
            class_name=family.class_name,
            devnode=family.devnode,
            identity=Identity(family.identity),
            exclusive=False,
        )
        for family in host.families
    )
    return Scanner(
        dev=host.dev,
        sys=host.sys,
        families=(*FAMILIES, *configured),
        timeout_seconds=host.scan_timeout_seconds,
    )


def senses(
    settings: Settings, targets: Callable[[], Sequence[Target]], ring: Callable[[str], None]
) -> Senses:
    """Make the sensors that are switched on; none of them is started."""
    health = settings.health
    return Senses(
        targets=targets,
        ring=ring,
        vitals=VitalsReader(
            sys=settings.host.sys, timeout_seconds=settings.host.scan_timeout_seconds
        ),
        vitals_seconds=health.vitals_seconds,
        memory=partial(host_memory, settings.host.proc),
        prober=Prober(deadline_seconds=health.query_timeout_seconds, idle_seconds=_WORKER_SECONDS),
        questions=Questions(
            mode=health.queries,
            seconds=health.query_seconds,
            in_use=health.query_in_use,
            awake_share=health.awake_share,
        ),
        listeners=Listeners(
            targets=lambda: [audible for target in targets() for audible in _audible(target)],
            ring=ring,
            silence_seconds=health.notification_seconds,
        )
        if health.notifications
        else None,
        hailortcli=HailortCli(
            command=health.hailortcli, deadline_seconds=health.query_timeout_seconds
        )
        if health.hailortcli
        else None,
    )


def _audible(target: Target) -> Iterable[notifications.Target]:
    if target.path is not None:
        yield notifications.Target(
            id=target.id,
            path=target.path,
            driver_version=target.driver_version,
            present_since=target.present_since,
        )


def place(settings: Settings) -> Place:
    """Say where the container runtime finds things."""
    return Place(
        dev=str(settings.runtime.host_dev),
        sys=str(settings.runtime.host_sys),
        links=str(settings.runtime.host_links_dir),
        monitor=str(settings.monitor.host_dir) if settings.monitor.enabled else "",
    )


def standards(settings: Settings) -> Standards:
    """Say what evidence is held against: the rules by default, and what was set otherwise."""
    health = settings.health
    changed = {
        code: _changed(RULES[code], rule)
        for code, rule in ((FaultCode(code), rule) for code, rule in health.faults.items())
    }
    return Standards(
        patience=Patience(
            recovery_seconds=health.recovery_seconds,
            flap_window_seconds=health.flap_window_seconds,
        ),
        rules={**RULES, **changed},
        offers_unknown=health.unknown == "offered",
    )


def _changed(rule: Rule, wanted: FaultRule) -> Rule:
    """Lay what was set over a rule; who sets the severity means it for devices in use as well."""
    changes = wanted.model_dump(exclude_none=True)
    if wanted.severity is not None:
        changes |= {"severity": Severity(wanted.severity), "severity_in_use": None}
    return replace(rule, **changes)


def policy(settings: Settings, names: ResourceNames) -> Policy:
    """Say what the operator decides about devices."""
    return Policy(
        standards=standards(settings),
        limits=Limits(
            temperature_high_celsius=settings.health.temperature_high_celsius,
            temperature_critical_celsius=settings.health.temperature_critical_celsius,
            slow_seconds=settings.health.slow_seconds,
        ),
        tombstone_seconds=settings.kubelet.tombstone_seconds,
        spec_path=str(settings.runtime.cdi_dir / FILE_NAME),
        resources=frozenset(names.all()),
        allow=settings.devices.allow,
        deny=settings.devices.deny,
    )


def about(settings: Settings, names: ResourceNames) -> About:
    """Say what subscribers are told of this agent; a new instance each time."""
    return About(
        node=settings.node.name,
        version=__version__,
        instance=secrets.token_hex(8),
        names=names,
        host_dev=str(settings.runtime.host_dev),
        epoch=time.time() - asyncio.get_running_loop().time(),
    )
