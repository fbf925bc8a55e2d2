"""What a page tells people to write into a file is read by whoever reads such a file.

Settings of the agent go through its own loader, Kubernetes objects through its schemas, chart
values through the chart's; TOML, JSON, INI and Python are parsed. What has no schema here stands in
a table, with a reason; a row that no page needs any more fails.
"""

import ast
import configparser
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from hailo_agent.settings import Settings, load
from tests.house.pages import DOCS, Block, blocks
from tests.house.repository import ROOT
from tests.house.test_shell_blocks import KUBERNETES, SHELL_TAGS

SECTIONS: Final = set(Settings.model_fields)
CHART: Final = ROOT / "manifests" / "helm" / "hailo-agent"

PARSED_ONLY: Final = {
    "customization": "a schematic of Talos's Image Factory",
    "machine": "a machine configuration of Talos",
    "podMetricsEndpoints": "a part of a PodMonitor; the operator's schemas are not ours",
    "providers": "Grafana's provisioning",
    "services": "a compose file",
}
"""YAML of which only the syntax is checked: its first key of its own, and whose it is."""

OTHER_KINDS: Final = {"MachineConfig": "OpenShift's; its schemas are not ours"}
"""Kinds of Kubernetes objects of which only the syntax is checked, and whose they are."""

NOT_PARSED: Final = {
    "dockerfile": "an image of the reader's, with a package that only Hailo gives out",
    "logql": "no parser here; tests/house/test_log_pipelines.py knows the fields",
    "markdown": "a template for people",
    "promql": "tests/observability asks it of a real Prometheus",
    "text": "output, or a drawing",
}
"""Tags of blocks that nothing reads here."""

OF_A_CONTAINER: Final = {"resources", "livenessProbe", "env", "securityContext", "volumeMounts"}
A_POD: Final = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
BESIDE_THE_CHECKOUT: Final = "hailo-agent/"


def of(*tags: str) -> list[Block]:
    return [block for block in blocks() if block.tag in tags]


def keys(document: object) -> set[str]:
    return set(document) if isinstance(document, dict) else set()


# --- YAML ----------------------------------------------------------------------------------------


def check_yaml(document: Any, path: Path) -> str:  # noqa: ANN401 - anything YAML can say
    """Have a document read by whoever reads it, and tell who that was."""
    found = keys(document)
    if document.get("kind") == "Kustomization" or found & {"configMapGenerator", "components"}:
        check_kustomization(document)
        return "kustomize"
    if found & set(PARSED_ONLY) or document.get("kind") in OTHER_KINDS:
        return "nobody"
    if {"apiVersion", "kind"} <= found:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return "kubernetes"
    if found <= OF_A_CONTAINER:
        spec = {"containers": [{"name": "x", "image": "x", **document}]}
        return check_yaml({**A_POD, "spec": spec}, path)
    if found <= SECTIONS:
        path.write_text(yaml.safe_dump(document))
        load(flags={}, environ={}, config=path)
        return "settings"
    jsonschema.validate(document, json.loads((CHART / "values.schema.json").read_text()))
    assert found <= keys(yaml.safe_load((CHART / "values.yaml").read_text())), found
    return "chart"


def check_kustomization(document: dict[str, Any]) -> None:
    """Look whether what it refers to is there, as seen from beside a checkout."""
    for place in [*document.get("resources", []), *document.get("components", [])]:
        ours = place.removeprefix(BESIDE_THE_CHECKOUT)
        if ours != place:
            assert (ROOT / ours / "kustomization.yaml").exists() or (ROOT / ours).is_file(), place
    known = {"apiVersion", "kind", "resources", "components", "images", "configMapGenerator"}
    known |= {"namespace", "patches"}
    assert keys(document) <= known
    for image in document.get("images", []):
        assert image["name"] == "hailo-agent"


def documents(block: Block) -> Iterator[Any]:
    for document in yaml.safe_load_all(block.text):
        assert isinstance(document, dict), f"{block}: not a mapping"
        yield document


@pytest.mark.parametrize("block", of("yaml", "yml"), ids=str)
def test_yaml_of_a_page_is_understood_by_its_reader(block: Block, tmp_path: Path) -> None:
    for document in documents(block):
        assert check_yaml(document, tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "health: {unknowable: withheld}",
        "log: {level: loud}",
        "resources: {limit: {hailo.ai/npu: 1}}",
        "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {container: []}}",
        "{apiVersion: apps/v1, kind: Pod, metadata: {name: x}, spec: {containers: []}}",
        "{kind: Kustomization, resources: [hailo-agent/manifests/kustomize/overlays/no]}",
        "{kind: Kustomization, images: [{name: hailo-agnet}]}",
        "imag: {repository: x}",
    ],
)
def test_a_mistake_in_yaml_is_found(text: str, tmp_path: Path) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - each reader has its own
        check_yaml(yaml.safe_load(text), tmp_path / "config.yaml")


# --- the rest ------------------------------------------------------------------------------------


def parse_json(text: str) -> object:
    """Parse one document, or one on each line; … is what was left out."""
    whole = re.sub(r",\s*…\s*}", "}", text)
    try:
        return json.loads(whole)
    except json.JSONDecodeError:
        return [json.loads(line) for line in whole.splitlines()]


def parse_ini(text: str) -> object:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(text)
    assert parser.sections()
    return parser


PARSERS: Final[dict[str, Callable[[str], object]]] = {
    "toml": tomllib.loads,
    "json": parse_json,
    "ini": parse_ini,
    # A piece of a function's body.
    "python": lambda text: ast.parse(
        "async def f():\n" + re.sub("^", "    ", text, flags=re.MULTILINE)
    ),
}


@pytest.mark.parametrize("block", of(*PARSERS), ids=str)
def test_what_has_a_syntax_is_parsed(block: Block) -> None:
    assert PARSERS[block.tag](block.text)


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_toml_switches_cdi_on_in_a_table_that_a_runtime_has(block: Block) -> None:
    (plugin,) = tomllib.loads(block.text)["plugins"].items()
    assert plugin[0] in {"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"}
    assert plugin[1].get("enable_cdi", True) is True
    assert "/var/run/cdi" in plugin[1]["cdi_spec_dirs"]


def test_every_block_has_a_reader_and_no_row_is_stale() -> None:
    tags = {block.tag for block in blocks()}
    assert tags <= {*SHELL_TAGS, "yaml", "yml", *PARSERS, *NOT_PARSED}
    assert set(NOT_PARSED) <= tags
    first = {key for block in of("yaml", "yml") for each in documents(block) for key in each}
    assert set(PARSED_ONLY) <= first
    kinds = {each.get("kind") for block in of("yaml", "yml") for each in documents(block)}
    assert set(OTHER_KINDS) <= kinds


def test_every_switch_of_the_page_is_a_component_and_a_value_of_the_chart() -> None:
    page = (DOCS / "how-to" / "run-on-a-node.md").read_text()
    table = page.partition("| Switch | Kustomize component |")[2].partition("\n\n")[0]
    rows = [row.split(" | ") for row in table.splitlines()[2:]]
    components = {cell.strip("`") for _, cell, _, _ in rows}
    there = (ROOT / "manifests" / "kustomize" / "components").iterdir()
    assert components == {directory.name for directory in there}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for key in re.findall(r"`(\w+)\.enabled`", "".join(row[2] for row in rows)):
        assert values[key]["enabled"] is False


def test_every_distribution_has_a_page_an_overlay_and_values() -> None:
    page = (DOCS / "how-to" / "run-on-a-node.md").read_text()
    named = set(re.findall(r"\| \[.*?\]\(([a-z0-9-]+)\.md\) \| `(\w+)` \|", page))
    assert named >= {(name, name) for name in ("k3s", "rke2", "k0s", "microk8s", "talos")}
    for _, name in named:
        assert (ROOT / "manifests" / "kustomize" / "overlays" / name).is_dir()
        assert (ROOT / "manifests" / "helm" / "values" / f"{name}.yaml").is_file()
