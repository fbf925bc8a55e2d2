"""`hailo-agent run`: the agent as a process, its log and its exit code."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import structlog

from hailo_agent import __version__, agent, log
from hailo_agent.errors import EX_SOFTWARE, EX_TEMPFAIL, ConfigError, PluginDirectoryReplaced
from hailo_agent.settings import Loaded, Settings, flags_from, load

Life = Callable[[Settings], Awaitable[None]]


def run(arguments: argparse.Namespace, loaded: Loaded) -> int:
    """Run until SIGTERM; 75 if only a new process can go on, 70 for a bug."""
    reload = partial(_reload, arguments)
    return _live(loaded.settings, partial(agent.run, reload=reload))


def watch(arguments: argparse.Namespace, loaded: Loaded) -> int:
    """Keep the spec true until SIGTERM, without a kubelet."""
    reload = partial(_reload, arguments)
    return _live(loaded.settings, partial(agent.run_without_kubelet, reload=reload))


def _live(settings: Settings, life: Life) -> int:
    _configure_log(settings)
    code = 0
    _calm_garbage_collector()
    try:
        anyio.run(life, settings)
    except* PluginDirectoryReplaced as group:
        structlog.get_logger().error("agent.displaced", reason=str(_first(group)))
        code = EX_TEMPFAIL
    except* Exception:  # noqa: BLE001 - the last door: a bug is told once, and the process ends
        structlog.get_logger().critical("agent.crashed", exc_info=True)
        code = EX_SOFTWARE
    return code


def _calm_garbage_collector() -> None:
    """Leave out what lives for ever, and collect the rest seldom.

    Inventories hold no cycles, and a collection in the middle of a look is a tenth of its time.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _reload(arguments: argparse.Namespace) -> None:
    """Read the settings again and take over the log level, which is all that may change live."""
    try:
        settings = load(
            flags=flags_from(arguments), environ=os.environ, config=arguments.config
        ).settings
    except ConfigError as error:
        structlog.get_logger().error("config.refused", error={"message": str(error)})
        return
    log.set_level(settings.log.level)


def _configure_log(settings: Settings) -> None:
    static = {log.SERVICE_NAME: "hailo-agent", log.SERVICE_VERSION: __version__}
    if settings.node.name:
        static[log.NODE_NAME] = settings.node.name
    log.configure(
        level=settings.log.level, format=settings.log.format, stream=sys.stderr, static=static
    )


def _first(group: BaseExceptionGroup[PluginDirectoryReplaced]) -> BaseException:
    """Find the cause in groups of groups."""
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
