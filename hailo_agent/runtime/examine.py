"""What the doctor wants to know of CDI on this node: the directories, our spec, what others left.

Reads only, and says of what an ordinary user may not see that it was not seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio.to_thread

from hailo_agent.core.diagnosis.facts import SpecFacts
from hailo_agent.errors import SpecStoreError
from hailo_agent.runtime.configs import runtime_configs
from hailo_agent.runtime.links import DeviceLinks
from hailo_agent.runtime.reader import SpecInvalid, load
from hailo_agent.runtime.specs import SpecStore


async def examine(
    store: SpecStore, links: DeviceLinks, targets: Mapping[str, str], *, root: Path
) -> SpecFacts:
    """Gather everything.

    `targets` is where the lasting links should lead; `root` is where the host's root directory is
    mounted.
    """
    foreign: Sequence[tuple[str, str]] = ()
    leftovers: Sequence[Path] = ()
    unseen = ""
    try:
        foreign = await store.foreign_names()
        leftovers = await store.leftovers()
    except SpecStoreError as error:
        unseen = str(error)
    seen = await anyio.to_thread.run_sync(
        partial(_look, store, links, targets, root), abandon_on_cancel=True
    )
    return SpecFacts(
        path=str(store.path),
        search=tuple(map(str, store.search)),
        missing=tuple(str(d) for d in store.search if _exists(d) is False),
        directory_exists=_exists(store.directory),
        is_writable=_is_writable(store.directory),
        is_symlink=store.directory.is_symlink(),
        nodes=seen.nodes,
        problems=seen.problems,
        unseen=seen.unseen or unseen,
        foreign=tuple(foreign),
        leftovers=tuple(map(str, leftovers)),
        links=seen.links,
        links_dir=str(links.directory),
        configs=seen.configs,
    )


def _look(
    store: SpecStore, links: DeviceLinks, targets: Mapping[str, str], root: Path
) -> SpecFacts:
    """Do in a thread what may block."""
    nodes: Mapping[str, tuple[str, ...]] | None = None
    problems: tuple[str, ...] = ()
    unseen = ""
    try:
        document = load(store.path)
        nodes = {
            name: tuple(node.host_path or node.path for node in edits.device_nodes)
            for name, edits in document.devices.items()
        }
    except FileNotFoundError:
        pass
    except OSError as error:
        unseen = os.strerror(error.errno or 0)
    except SpecInvalid as invalid:
        problems = tuple(str(problem) for problem in invalid.problems)
    return SpecFacts(
        path=str(store.path),
        nodes=nodes,
        problems=problems,
        unseen=unseen,
        links=links.covered(targets),
        configs=tuple(runtime_configs(root)),
    )


def _is_writable(directory: Path) -> bool | None:
    """Tell whether the agent could write there; it runs as root, so only root can tell."""
    if os.geteuid() != 0:
        return None
    existing = next((d for d in (directory, *directory.parents) if _exists(d)), None)
    return None if existing is None else os.access(existing, os.W_OK | os.X_OK)


def _exists(path: Path) -> bool | None:
    """Tell whether something is there; None if we may not know."""
    try:
        path.stat()
    except PermissionError:
        return None
    except OSError:
        return False
    return True
