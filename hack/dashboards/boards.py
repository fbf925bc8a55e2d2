"""All boards, and the files they are in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from hack.dashboards.fleet import FLEET
from hack.dashboards.grafana import Board, dashboard
from hack.dashboards.node import NODE
from hack.dashboards.tenant import TENANT

FOLDER: Final = Path(__file__).parents[2] / "manifests" / "grafana"
BOARDS: Final = (FLEET, NODE, TENANT)


def written(board: Board) -> str:
    """Write a board as its file has it."""
    return json.dumps(dashboard(board), indent=2, ensure_ascii=False) + "\n"
