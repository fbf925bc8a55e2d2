"""What `docs/reference/health.md` says of each fault is how the agent weighs it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from hailo_agent import outfit
from hailo_agent.core import cordon
from hailo_agent.core.chip import Limits
from hailo_agent.core.health import (
    PRESENCE,
    RULES,
    RULES_BY_SENSOR,
    Fault,
    FaultCode,
    Health,
    Rule,
    Sensor,
    Severity,
)
from hailo_agent.core.notifications import ALARM_SECONDS
from hailo_agent.core.vitals import MIN_CMA_BYTES, HostMemory, memory_fault
from hailo_agent.host import senses
from hailo_agent.settings import Settings, load
from tests.house.repository import ROOT

PAGE = (ROOT / "docs" / "reference" / "health.md").read_text()
RULE_COLUMNS = "Fault | Evidence | Severity | Strikes | Patience | Recovery | Do"
NODE_COLUMNS = "Fault | Evidence | Severity | Do"

OF_THE_NODE = {
    FaultCode.CLASS_UNREADABLE,
    FaultCode.ENTRY_UNEXPECTED,
    FaultCode.DUPLICATE,
    FaultCode.PCI_UNSERVED,
    FaultCode.HOST_CMA,
    FaultCode.SPEC_CONFLICT,
    FaultCode.CORDONS_UNREADABLE,
}
"""What belongs to no device."""

SECTIONS = {
    "Vitals": set(RULES_BY_SENSOR[Sensor.VITALS]),
    "Query": set(RULES_BY_SENSOR[Sensor.QUERY]),
    "Notification": set(RULES_BY_SENSOR[Sensor.NOTIFICATION]),
    "Hailortcli": set(RULES_BY_SENSOR[Sensor.HAILORTCLI]),
    "Presence": set(FaultCode) - set(RULES) - OF_THE_NODE,
    "The node": OF_THE_NODE,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table of faults, by the names of its columns."""

    section: str
    code: FaultCode
    cells: dict[str, str]

    @property
    def rule(self) -> Rule:
        severity, _, in_use = self.cells["Severity"].partition("; in use ")
        return Rule(
            severity=Severity(severity.strip("`")),
            severity_in_use=Severity(in_use.strip("`")) if in_use else None,
            strikes=int(self.cells["Strikes"]),
            patience_seconds=seconds(self.cells["Patience"]),
            recovery_seconds=seconds(self.cells["Recovery"]),
        )


def seconds(text: str) -> float:
    number, unit = text.split(" ")
    assert unit == "s"
    return float(number)


def sections(level: str) -> Iterator[tuple[str, str]]:
    for part in re.split(rf"^{level} ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        yield title, text


def tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    for table in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        head, _, *lines = table.strip().splitlines()
        yield head.strip("| "), [line.strip("| ").split(" | ") for line in lines]


def rows() -> Iterator[Row]:
    for section, text in sections("###"):
        for head, lines in tables(text):
            for cells in lines:
                assert len(cells) == len(head.split(" | ")), cells
                if head in {RULE_COLUMNS, NODE_COLUMNS}:
                    yield Row(
                        section=section,
                        code=FaultCode(cells[0].strip("`")),
                        cells=dict(zip(head.split(" | "), cells, strict=True)),
                    )


ROWS = list(rows())


def test_every_fault_has_one_row_under_whoever_finds_it() -> None:
    assert sorted(row.code for row in ROWS) == sorted(FaultCode)
    by_section = {
        section: {row.code for row in ROWS if row.section == section} for section in SECTIONS
    }
    assert by_section == SECTIONS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
def test_a_row_says_how_its_fault_is_weighed(row: Row) -> None:
    if row.code in OF_THE_NODE:
        assert Severity(row.cells["Severity"].strip("`")) is severity_of_the_node(row.code)
    else:
        assert row.rule == RULES.get(row.code, PRESENCE)


def severity_of_the_node(code: FaultCode) -> Severity:
    """Tell what is said of a fault that no rule weighs."""
    if code is FaultCode.HOST_CMA:
        fault = memory_fault(HostMemory(cma_total_bytes=1 << 26, cma_free_bytes=0))
        assert fault is not None
        return fault.severity
    if code is FaultCode.CORDONS_UNREADABLE:
        return cordon.trouble("/x", cordon.CordonInvalid("it is none", remedy="-")).severity
    return Fault(code=code, subject="-", message="-", remedy="-").severity


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
def test_a_row_says_what_was_found_and_what_to_do(row: Row) -> None:
    for column in ("Evidence", "Do"):
        assert len(row.cells[column]) > 10 or row.cells[column] == "as above"
        assert row.cells[column][0].islower() or row.cells[column][0] == "`"
        assert not row.cells[column].endswith(".")


def test_every_health_has_its_row() -> None:
    ((_, lines), *_) = tables(dict(sections("##"))["Four verdicts"])
    assert [line[0].strip("`") for line in lines] == [health.value for health in Health]


def test_every_sensor_has_its_row() -> None:
    ((_, lines), *_) = tables(dict(sections("##"))["Sensors"].partition("###")[0])
    assert sorted(line[0] for line in lines) == sorted(sensor.value for sensor in Sensor)


def test_the_example_is_a_configuration_and_does_what_is_said_of_it(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert list(yaml.safe_load(example)) == ["health"]
    path = tmp_path / "config.yaml"
    path.write_text(example)
    settings = load(flags={}, environ={}, config=path).settings
    standards = outfit.policy(settings, outfit.resource_names(settings)).standards
    assert not standards.offers_unknown
    changed = {code: rule for code, rule in standards.rules.items() if rule != RULES[code]}
    assert changed == {
        FaultCode.LINK_DEGRADED: replace(RULES[FaultCode.LINK_DEGRADED], severity=Severity.INFO),
        FaultCode.FIRMWARE_MISMATCH: replace(
            RULES[FaultCode.FIRMWARE_MISMATCH], severity=Severity.FATAL
        ),
        FaultCode.QUERY_SLOW: replace(
            RULES[FaultCode.QUERY_SLOW], strikes=10, patience_seconds=600.0
        ),
        FaultCode.AER_NONFATAL: replace(RULES[FaultCode.AER_NONFATAL], recovery_seconds=3600.0),
    }


def test_every_setting_of_health_is_spoken_of() -> None:
    names = type(Settings().health).model_fields
    assert [
        name for name in names if f"health.{name}" not in PAGE and f"  {name}:" not in PAGE
    ] == []


def test_what_is_said_of_a_default_is_the_default() -> None:
    told = re.findall(r"`(health|host)\.([a-z_]+)`\s\(([0-9.]+)( %)?\)", PAGE)
    assert len(told) > 8
    for section, name, figure, percent in told:
        default = getattr(getattr(Settings(), section), name)
        assert default == float(figure) / (100 if percent else 1), name


def test_what_is_said_of_thresholds_is_so() -> None:
    limits = Limits()
    assert f"`health.temperature_high_celsius` ({limits.temperature_high_celsius:g})" in PAGE
    assert (
        f"`health.temperature_critical_celsius` ({limits.temperature_critical_celsius:g})" in PAGE
    )
    for seconds_, what in (
        (senses.ILL_SECONDS, "{} s after trouble"),
        (senses._SOON_SECONDS, "{} s after a reading that shows something else wrong"),
        (outfit._WORKER_SECONDS, "has nothing to do for {} s"),
        (senses._CROSS_CHECK_SECONDS, "every {} s, unless `health.hailortcli` is empty"),
    ):
        assert what.format(f"{seconds_:g}") in " ".join(PAGE.split())
    assert ALARM_SECONDS == 3600.0
    assert "or for an hour" in PAGE
    assert MIN_CMA_BYTES == 1024 * 1024
    assert "less than 1 MiB" in PAGE
