"""Write manifests/grafana/*.json anew."""

from hack.dashboards.boards import BOARDS, FOLDER, written


def main() -> None:
    """Write every board."""
    for board in BOARDS:
        (FOLDER / f"{board.name}.json").write_text(written(board))


main()
