"""`hailo-agent support-bundle`: one archive for whoever is to help."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from hailo_agent.cli.holders import say
from hailo_agent.settings import Loaded
from hailo_agent.support import bundle as support

_EX_USAGE = 2
_STANDARD_OUTPUT = Path("-")


def support_bundle(loaded: Loaded, *, output: Path | None, root: Path, kernel_log: Path) -> int:
    """Collect what helps, and write it to one file; `-` is standard output."""
    if output == _STANDARD_OUTPUT and sys.stdout.isatty():
        print(
            "hailo-agent: a terminal cannot show an archive; redirect the output", file=sys.stderr
        )
        return _EX_USAGE
    at = time.time()
    bundle = asyncio.run(
        support.collect(loaded, root=root, kernel_log=kernel_log, environ=os.environ, at=at)
    )
    archive = bundle.archive()
    if output == _STANDARD_OUTPUT:
        sys.stdout.buffer.write(archive)
        return 0
    path = output or Path(_name(loaded.settings.node.name, at))
    support.write(path, archive)
    say(f"{path} has {len(bundle.files)} files, {len(archive)} bytes; no secret that we know of.")
    for name, what, why in bundle.missing:
        say(f"Not in it: {name} ({what}): {why}")
    say("Look it through before you pass it on: pods, namespaces and reasons are named in it.")
    return 0


def _name(node: str, at: float) -> str:
    moment = datetime.fromtimestamp(at, tz=UTC).strftime("%Y%m%dT%H%M%SZ")
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", node or os.uname().nodename).strip("-.") or "node"
    return f"hailo-agent-support-{plain}-{moment}.tar.gz"
