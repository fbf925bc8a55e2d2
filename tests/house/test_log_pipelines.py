"""The pipelines in manifests/logging name what the log really has, and read its timestamps.

None of the three programs runs here. What can be checked without them is checked: the form of each
file, every field it names, its timestamp format, and which lines get an event for a label.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import pytest
import yaml

from tests.house.repository import ROOT

FOLDER: Final = ROOT / "manifests" / "logging"
EVENTS_PAGE: Final = ROOT / "docs" / "reference" / "events.md"
STAMP: Final = "2026-01-31T23:59:58.007Z"
AT: Final = datetime(2026, 1, 31, 23, 59, 58, 7000, tzinfo=UTC)
LABELS: Final = {"service_name", "node", "level", "event"}
SENTENCE: Final = "Request was cancelled: Stream reset by remote party, error_code: 0"

FLUENT_BIT: Final = (FOLDER / "fluent-bit.yaml").read_text()
VECTOR: Final = (FOLDER / "vector.yaml").read_text()
ALLOY: Final = (FOLDER / "alloy.alloy").read_text()


def documented_keys() -> set[str]:
    rows = re.findall(r"^\| [a-z]+ \| (`[^|]+) \|", EVENTS_PAGE.read_text(), re.MULTILINE)
    return {key for keys in rows for key in re.findall(r"`([^`]+)`", keys)}


def documented_events() -> set[str]:
    return set(re.findall(r"^\| `([a-z.-]+)` \|", EVENTS_PAGE.read_text(), re.MULTILINE))


def fluent_bit() -> Mapping[str, Any]:
    return dict(yaml.safe_load(FLUENT_BIT))


def remap() -> str:
    return str(yaml.safe_load(VECTOR)["transforms"]["hailo_agent_fields"]["source"])


def fluent_bit_parser(name: str) -> Mapping[str, Any]:
    return next(p for p in fluent_bit()["parsers"] if p["name"] == name)


def fields_of_fluent_bit() -> set[str]:
    filters = fluent_bit()["pipeline"]["filters"]
    copied = {rule.split()[0] for f in filters for rule in f.get("copy", ())}
    keys = {f["key_name"] for f in filters if "key_name" in f} - {"log"}  # the tail input's
    return copied | keys | {fluent_bit_parser("hailo_agent")["time_key"]}


def fields_of_vector() -> set[str]:
    return set(re.findall(r'\bfields\."([^"]+)"', remap()))


def fields_of_alloy() -> set[str]:
    """Undo the quoting of Alloy's strings, then that of JMESPath's identifiers."""
    block = ALLOY[ALLOY.index("expressions = {") :].partition("}")[0]
    texts = re.findall(r'= "((?:[^"\\]|\\.)*)"', block)
    return {text.replace('\\"', '"').strip('"') for text in texts}


@pytest.mark.parametrize("fields", [fields_of_fluent_bit, fields_of_vector, fields_of_alloy])
def test_every_field_that_a_pipeline_reads_is_in_the_log(fields: Callable[[], set[str]]) -> None:
    assert {"@timestamp", "log.level", "k8s.node.name", "message"} <= fields() <= documented_keys()


def test_fluent_bit_reads_our_timestamps() -> None:
    written = fluent_bit_parser("hailo_agent")["time_format"]
    assert written.endswith("%S.%LZ")  # %L are the fractions, Z is no zone but a letter
    parsed = datetime.strptime(STAMP, written.replace("%L", "%f")).replace(tzinfo=UTC)
    assert parsed == AT


def test_vector_reads_our_timestamps() -> None:
    """Its `%+` is RFC 3339; a format without a zone would be read in the zone of the node."""
    assert 'parse_timestamp(fields."@timestamp", format: "%+")' in remap()
    assert datetime.fromisoformat(STAMP) == AT


def test_alloy_reads_our_timestamps() -> None:
    assert re.search(r'stage\.timestamp \{\s+source = "timestamp"\s+format = "RFC3339Nano"', ALLOY)
    layout = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", STAMP)
    assert layout is not None


def patterns() -> dict[str, str]:
    """What each takes for the name of an event, as Python spells it."""
    vector = re.search(r"match\(name, r'([^']+)'\)", remap())
    alloy = re.search(r'expression = "((?:[^"\\]|\\.)*)"', ALLOY)
    assert vector
    assert alloy
    return {
        "fluent-bit": fluent_bit_parser("hailo_agent_event")["regex"].replace("(?<", "(?P<"),
        "vector": vector[1],
        "alloy": alloy[1].replace("\\\\", "\\"),
    }


@pytest.mark.parametrize("program", ["fluent-bit", "vector", "alloy"])
def test_only_names_of_events_become_a_label(program: str) -> None:
    """The message of a library's line is a sentence, and each another one."""
    pattern = re.compile(patterns()[program])
    assert len(documented_events()) > 20
    assert [name for name in documented_events() if not pattern.search(name)] == []
    assert not pattern.search(SENTENCE)
    assert not pattern.search("agent.started now")


def labels_of_alloy() -> set[str]:
    block = re.search(r"stage\.labels \{\s+values = \{([^}]+)\}", ALLOY)
    assert block
    target = re.search(r"path_targets = \[\{([^}]+)\}", ALLOY)
    assert target
    names = re.findall(r"(\w+)\s*=", block[1] + target[1])
    return set(names) - {"__path__"}


def labels_of_vector() -> set[str]:
    return set(yaml.safe_load(VECTOR)["sinks"]["hailo_agent_loki"]["labels"])


def labels_of_fluent_bit() -> set[str]:
    (loki,) = fluent_bit()["pipeline"]["outputs"]
    fixed = {pair.partition("=")[0] for pair in loki["labels"].split(",")}
    return fixed | {key.lstrip("$") for key in loki["label_keys"].split(",")}


@pytest.mark.parametrize("labels", [labels_of_fluent_bit, labels_of_vector, labels_of_alloy])
def test_labels_are_few_and_never_an_id(labels: Callable[[], set[str]]) -> None:
    assert labels() == LABELS


def test_every_part_of_the_yaml_pipelines_is_fed_by_one_that_exists() -> None:
    vector = yaml.safe_load(VECTOR)
    fed = [*vector["transforms"].values(), *vector["sinks"].values()]
    assert {name for part in fed for name in part["inputs"]} <= {
        *vector["sources"],
        *vector["transforms"],
    }
    pipeline = fluent_bit()["pipeline"]
    (tail,) = pipeline["inputs"]
    matches = {part["match"] for part in (*pipeline["filters"], *pipeline["outputs"])}
    assert matches == {tail["tag"]}
    named = {f["parser"] for f in pipeline["filters"] if f["name"] == "parser"}
    assert named == {parser["name"] for parser in fluent_bit()["parsers"]}


def test_the_alloy_pipeline_is_whole() -> None:
    """Blocks and texts are closed, and every component that is referred to is there."""
    code = re.sub(r"//[^\n]*", "", re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', ALLOY))
    assert '"' not in code.replace('""', "")
    open_: list[str] = []
    for character in code:
        if character in "{[(":
            open_.append({"{": "}", "[": "]", "(": ")"}[character])
        elif character in "}])":
            assert open_.pop() == character
    assert open_ == []
    blocks = re.findall(r'^([a-z_.]+) "(\w+)" \{', ALLOY, re.MULTILINE)
    made = {f"{kind}.{name}" for kind, name in blocks}
    used = set(
        re.findall(r"\b((?:loki|local)\.[a-z_.]+\.hailo_agent)\.(?:receiver|targets)", ALLOY)
    )
    assert used == made - {"loki.source.file.hailo_agent"}


@pytest.mark.parametrize("text", [FLUENT_BIT, VECTOR, ALLOY])
def test_each_pipeline_says_where_it_belongs_and_has_no_secret(text: str) -> None:
    assert re.search(r"^(#|//) Where: ", text, re.MULTILINE)
    assert re.search(r"LOKI_(HOST|URL)", text)
    assert not re.search(r"(?i)password|token|bearer", text)
