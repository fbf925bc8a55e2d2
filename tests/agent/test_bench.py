import asyncio
import sys
from pathlib import Path

import orjson
import pytest

from hailo_agent.sim.bench_figures import TARGETS, TITLES, Figure, Measurement, figures, growth
from hailo_agent.sim.bench_text import document, stored, table

SIZES = (8, 1024)


def series(name: str, *samples: float, devices: int = 8) -> Measurement:
    return Measurement(devices=devices, name=name, unit="ms", samples=samples)


async def bench(*flags: str) -> tuple[int, list[str], str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hailo_agent.sim.bench",
        *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode().splitlines(), complaint.decode()


async def test_a_run_prints_a_table_and_ends_with_one_line_of_json(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"

    code, lines, complaint = await bench(
        *("--quick", "--devices=2", "--samples=2", "--allocations=3", "--starts=1"),
        *("--events=4", "--idle=0.5", f"--output={kept}"),
    )

    assert (code, complaint) == (0, "")
    said = orjson.loads(lines[-1])
    assert said == orjson.loads(kept.read_bytes())
    assert {"version", "python", "cores", "others_used_cores", "seconds"} <= said.keys()
    measured = {figure["name"] for figure in said["figures"]}
    not_measured = {name for name in TITLES if any("not measured" in row for row in lines)}
    assert measured | not_measured == set(TITLES)
    for figure in said["figures"]:
        assert figure["devices"] == 2
        assert figure["samples"] >= 1
        assert ("verdict" in figure) == ("target" in figure)
        assert figure["value"] > 0 or figure["name"].startswith("idle.")
    assert sum("≤" in line for line in lines) >= 7


async def test_figures_that_cannot_be_compared_with_are_refused_at_once(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"format": 0}')

    code, lines, complaint = await bench(f"--against={other}")

    assert (code, lines) == (70, [])
    assert f"cannot compare with {other}" in complaint


def test_of_fewer_than_a_hundred_samples_the_p99_is_the_worst() -> None:
    few = series("allocate", *range(99))
    many = series("allocate", *range(1000))

    assert (few.of("p50"), few.of("p99"), few.of("worst")) == (49, 98, 98)
    assert (many.of("p50"), many.of("p99"), many.of("worst")) == (499, 989, 999)
    assert series("allocate", 3, 1, 2).of("p99") == 3


def test_a_figure_beyond_its_target_is_missed_and_one_without_target_is_not_judged() -> None:
    found = figures([series("allocate", 1.4, 6.0), series("plug.inotify", 900)], {})

    verdicts = {(figure.name, figure.statistic): figure.verdict for figure in found}

    assert verdicts["allocate", "p50"] == "ok"
    assert verdicts["allocate", "p99"] == "MISSED"
    assert verdicts["plug.inotify", "p50"] == ""


def test_a_large_node_has_targets_of_its_own() -> None:
    small, large = (
        next(f for f in figures([series("change.inotify", 200, devices=size)], {}))
        for size in SIZES
    )

    assert (small.target, small.verdict) == (30, "MISSED")
    assert (large.target, large.verdict) == (250, "ok")


def test_growth_is_held_against_the_growth_of_the_node() -> None:
    linear = [series("change.inotify", size, devices=size) for size in SIZES]
    worse = [series("change.inotify", size**2, devices=size) for size in SIZES]

    def verdict(measured: list[Measurement]) -> list[str]:
        return [figure.verdict for figure in growth(list(figures(measured, {})), {})]

    assert verdict(linear) == ["ok"]
    assert verdict(worse) == ["MISSED"]
    assert verdict(linear[:1]) == []


def test_what_was_not_measured_is_said_with_its_reason() -> None:
    missing = Measurement(devices=8, name="change.both", unit="ms", missing="needs root")

    assert list(figures([missing], {})) == []
    assert any("not measured: needs root" in row for row in table(8, [missing], []))


def test_a_stored_run_is_compared_with_figure_by_figure() -> None:
    before = list(figures([series("allocate", 2.0)], {}))
    text = b"8 DEVICES\nsome table\n" + document(before, {}) + b"\n"

    figure = next(iter(figures([series("allocate", 1.0)], stored(text))))

    assert figure.before == 2.0
    row = next(
        line for line in table(8, [series("allocate", 1.0)], [figure]) if "back to back" in line
    )
    assert "-50 % against 2" in row


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"format": 99, "figures": []}'])
def test_what_is_no_run_of_this_format_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"format|(?i:input)"):
        stored(text)


def test_every_target_is_that_of_something_measured() -> None:
    assert {target.name for target in TARGETS} <= TITLES.keys()


def test_the_line_of_json_names_what_was_missed() -> None:
    slow = Figure(
        devices=8, name="allocate", statistic="p50", unit="ms", value=2, samples=1, target=1.5
    )

    said = orjson.loads(document([slow], {}))

    assert said["missed"] == ["allocate.p50 at 8"]
    assert said["figures"][0]["verdict"] == "MISSED"
