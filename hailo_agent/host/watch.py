"""Directories as doorbells: inotify says that something changed, and somebody looks again.

Watched are `/dev`, the directory of CDI specs and the one around the kubelet's socket.
inotify goes silent when a directory is deleted and made anew, raises when there is none, and is
limited per user. So directories are compared by inode every now and then, and losing all of this
costs seconds, never correctness.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
from watchfiles import Change, awatch
from watchfiles._rust_notify import WatchfilesRustInternalError

from hailo_agent.errors import HostError

STEP_MILLISECONDS: Final = 10
"""watchfiles polls its own buffer this often: latency is one to two steps."""
_DEBOUNCE_MILLISECONDS: Final = 50
_RECHECK_SECONDS: Final = 1.0
_SETTLED_SECONDS: Final = 0.1
"""What has not failed by now is listening: watchfiles does not say when it begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A directory, what in it matters by name, and whom to tell."""

    directory: Path
    matters: Callable[[str], bool]
    ring: Callable[[], None]


async def watch(watched: Sequence[Watched], report: Callable[[str], None]) -> None:
    """Ring for changes in the directories, until cancelled. Absent ones are awaited.

    Raises:
        HostError: inotify is not to be had (inside an exception group).
    """
    identities: dict[Path, tuple[int, int]] | None = None
    while True:
        before, identities = identities, _identities(watched)
        for one in watched:
            if before is not None and identities.get(one.directory) != before.get(one.directory):
                one.ring()  # it came, went or was replaced, with whatever was in it
        present = [one for one in watched if one.directory in identities]
        async with anyio.create_task_group() as group:
            stop = anyio.Event()
            group.start_soon(_until_moved, watched, identities, stop, report)
            if present:
                await _listen(present, stop)
            else:
                await stop.wait()


async def _listen(present: Sequence[Watched], stop: anyio.Event) -> None:
    by_directory = {str(one.directory): one for one in present}

    def matters(_: Change, path: str) -> bool:
        directory, name = os.path.split(path)
        one = by_directory.get(directory)
        return one is not None and one.matters(name)

    changes = awatch(
        *by_directory,
        watch_filter=matters,
        stop_event=stop,
        step=STEP_MILLISECONDS,
        debounce=_DEBOUNCE_MILLISECONDS,
        recursive=False,
        force_polling=False,
    )
    try:
        async for batch in changes:
            for directory in {os.path.split(path)[0] for _, path in batch}:
                by_directory[directory].ring()
    except FileNotFoundError:
        return  # gone since it was looked for: look again
    except (OSError, RuntimeError, WatchfilesRustInternalError, ExceptionGroup) as error:
        raise HostError(
            f"no inotify ({_in_words(error)}): raise fs.inotify.max_user_instances or"
            " fs.inotify.max_user_watches; changes are seen by uevents or the resync",
            edge="host",
        ) from error
    finally:
        stop.set()


def _in_words(error: Exception) -> str:
    """Say what the kernel said; the library wraps it into words and groups of its own."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return str(error).rpartition("watcher: ")[2] or type(error).__name__


async def _until_moved(
    watched: Sequence[Watched],
    identities: dict[Path, tuple[int, int]],
    stop: anyio.Event,
    report: Callable[[str], None],
) -> None:
    """Set `stop` when a directory has come, gone or become another one."""
    try:
        with anyio.move_on_after(_SETTLED_SECONDS):
            await stop.wait()
        if not stop.is_set():
            report("")
        while not stop.is_set() and _identities(watched) == identities:
            with anyio.move_on_after(_RECHECK_SECONDS):
                await stop.wait()
    finally:
        # Also when cancelled: without it the watcher's thread would go on for seconds.
        stop.set()


def _identities(watched: Sequence[Watched]) -> dict[Path, tuple[int, int]]:
    identities = {}
    for one in watched:
        try:
            found = one.directory.stat()
        except OSError:
            continue
        identities[one.directory] = (found.st_dev, found.st_ino)
    return identities
