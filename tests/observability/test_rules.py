"""Every alert speaks of the state it is meant for, and of no other."""

import re
import subprocess
from typing import Any, Final

import pytest
import yaml

from tests.house.repository import ROOT
from tests.observability.scraping import JOB, RULES, Prometheus
from tests.observability.states import ALERTS, STATES

pytestmark = [pytest.mark.xdist_group("observability"), pytest.mark.timeout(150)]

_RULES: Final[list[dict[str, Any]]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
_ALERTS: Final = {rule["alert"]: rule for rule in _RULES if "alert" in rule}
_RECORDED: Final = {rule["record"]: rule for rule in _RULES if "record" in rule}
_TESTS: Final = RULES.with_name("rules_test.yaml")
_RUNBOOK: Final = ROOT / "docs" / "how-to" / "alerts.md"


def promtool(*arguments: str, told: bytes = b"") -> str:
    done = subprocess.run(["promtool", *arguments], input=told, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


# --- what the files say --------------------------------------------------------------------------


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    assert f"{len(_RULES)} rules found" in promtool(
        "check", "rules", "--lint=all", "--lint-fatal", str(RULES)
    )


def test_each_alert_is_tested_to_fire_and_to_be_silent_about_a_healthy_node() -> None:
    healthy, *others = yaml.safe_load(_TESTS.read_text())["tests"]
    silent = {test["alertname"] for test in healthy["alert_rule_test"] if "exp_alerts" not in test}
    fires = {
        test["alertname"]
        for case in others
        for test in case["alert_rule_test"]
        if test.get("exp_alerts")
    }
    waits = {
        test["alertname"]
        for case in others
        for test in case["alert_rule_test"]
        if not test.get("exp_alerts")
    }
    assert silent == fires == waits == set(_ALERTS)


def test_the_states_know_every_alert() -> None:
    assert set(ALERTS) == set(_ALERTS)
    assert {state for states in ALERTS.values() for state in states} <= set(STATES)


@pytest.mark.parametrize("name", _ALERTS)
def test_an_alert_says_how_bad_it_is_what_it_means_and_what_to_do(name: str) -> None:
    rule = _ALERTS[name]
    assert re.fullmatch(r"Hailo[A-Za-z]+", name)
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert all(text.strip() for text in rule["annotations"].values())
    assert "{{ $labels." in rule["annotations"]["summary"] or "{{ $value" in str(rule)
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert ROOT / page == _RUNBOOK
    assert anchor == name.lower()


def test_the_runbook_has_a_chapter_for_each_alert_and_no_other() -> None:
    headings = re.findall(r"^### (Hailo\w+)$", _RUNBOOK.read_text(), re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert set(headings) == set(_ALERTS)
    assert f"rule file: {len(headings)} alerts" in _RUNBOOK.read_text()


def test_a_chapter_of_the_runbook_names_the_severity_of_its_alert() -> None:
    told = dict(re.findall(r"^### (Hailo\w+)\n\n\*(\w+)", _RUNBOOK.read_text(), re.MULTILINE))
    assert told == {name: rule["labels"]["severity"] for name, rule in _ALERTS.items()}


# --- what a real Prometheus makes of them --------------------------------------------------------


def test_no_rule_fails_when_it_is_evaluated(prometheus: Prometheus) -> None:
    failed = {
        rule["name"]: rule["lastError"]
        for group in prometheus.get("rules")["groups"]
        for rule in group["rules"]
        if rule["health"] != "ok"
    }
    assert not failed


@pytest.mark.parametrize("name", _RECORDED)
def test_a_recording_rule_records_something(prometheus: Prometheus, name: str) -> None:
    assert prometheus.query(f'{{__name__="{name}", job="{JOB}mixed"}}')


@pytest.mark.parametrize("name", _ALERTS)
def test_an_alert_finds_its_states_and_no_other(prometheus: Prometheus, name: str) -> None:
    samples = prometheus.query(_ALERTS[name]["expr"])
    assert {labels["job"].removeprefix(JOB) for labels, _ in samples} == ALERTS[name]


def test_what_says_nothing_of_its_sensors_raises_no_alarm(prometheus: Prometheus) -> None:
    quiet = {labels["job"].removeprefix(JOB) for labels, _ in prometheus.query("ALERTS")}
    assert quiet.isdisjoint({"bare", "healthy", "cordoned-lately"})


def test_an_alert_keeps_the_holders_names_apart_from_the_endpoint_s(prometheus: Prometheus) -> None:
    rule = _ALERTS["HailoPodOnUnhealthyDevice"]["expr"]
    (found,) = (labels for labels, _ in prometheus.query(rule) if labels["job"] == f"{JOB}dead")
    assert (found["namespace"], found["pod"]) == ("vision", "detector-0")


@pytest.mark.parametrize("state", ["mixed", "bare", "memory", "not-ready", "updating"])
def test_promtool_finds_nothing_wrong_with_what_is_scraped(state: str) -> None:
    for told in STATES[state].values():
        body, _ = told(3).exposition(1_790_000_000.0).render("")
        assert not promtool("check", "metrics", told=body)


def test_promtool_sees_each_alert_fire_when_it_should_and_not_before(
    rules_under_test: subprocess.Popen[str],
) -> None:
    said, _ = rules_under_test.communicate(timeout=120)
    assert rules_under_test.returncode == 0, said
    assert "SUCCESS" in said
