"""Each value of the chart does what it says and nothing else, and none can be set to nonsense."""

import copy
import importlib.util
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import hailo_agent
from hailo_agent.errors import ConfigError
from hailo_agent.settings import Settings, load
from tests.manifests.helm import CHART, Helm, HelmError, Release, effective, start
from tests.manifests.rendered import (
    ROOT,
    VERSIONS,
    Document,
    Documents,
    container,
    daemonset,
    leaves,
    named,
    pod,
    wrong,
)

DEFAULTS: Final[dict[str, Any]] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: Final[dict[str, Any]] = json.loads((CHART / "values.schema.json").read_text())

SPEC: Final = "DaemonSet spec.template.spec"
AGENT: Final = f"{SPEC}.containers.hailo-agent"
MACHINE: Final = f"{SPEC}.containers.machine"
LABELS: Final = "metadata.labels"


@pytest.fixture(name="helm", scope="session")
def _helm() -> Helm:
    return start()


def nested(path: str, value: object) -> dict[str, Any]:
    """Return {"a": {"b": value}} for `a.b`."""
    tree: Any = value
    for name in reversed(path.split(".")):
        tree = {name: tree}
    result: dict[str, Any] = tree
    return result


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Put trees over one another, as Helm does with values."""

    def over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in above.items():
            both = isinstance(value, Mapping) and isinstance(below.get(name), dict)
            below[name] = over(below[name], value) if both else copy.deepcopy(value)
        return below

    return reduce(over, trees, {})


# --- every value is exercised --------------------------------------------------------------------


class Row(NamedTuple):
    """What becomes of a value that is not its default."""

    value: object
    changes: dict[str, object]
    """By kind of document, and path in it, what is there now; None where nothing is."""
    given: Mapping[str, Any] = {}
    """Values without which this one has nothing to act on."""


def switched_on(changes: dict[str, object]) -> Row:
    """Return the row of a switch that is off by default."""
    return Row(value=True, changes=changes)


def on(*switches: str) -> dict[str, Any]:
    """Return values that switch something on."""
    return {switch: {"enabled": True} for switch in switches}


def amounts(path: str, document: str, *, given: Mapping[str, Any] = {}) -> dict[str, Row]:
    """Return the rows of a container's resources."""
    return {
        f"{path}.{kind}.{what}": Row(more, {f"{document}.resources.{kind}.{what}": more}, given)
        for kind in ("requests", "limits")
        for what, more in (("cpu", "1500m"), ("memory", "1Gi"))
    }


def monitor(value: str, kind: str, *extra: str) -> dict[str, Row]:
    """Return the rows of a PodMonitor or ServiceMonitor."""
    endpoints = "podMetricsEndpoints" if kind == "PodMonitor" else "endpoints"
    relabelings = [
        {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "instance"},
        {"targetLabel": "job", "replacement": "hailo-agent"},
    ]
    plain = {
        "port": "http", "path": "/metrics", "honorLabels": True, "relabelings": relabelings,
    }  # fmt: skip
    return {
        f"{value}.enabled": switched_on({f"+{name}": "hailo-agent" for name in (kind, *extra)}),
        f"{value}.labels": Row(
            {"release": "prometheus"}, {f"{kind} {LABELS}.release": "prometheus"}, on(value)
        ),
        **{
            f"{value}.{name}": Row(
                "5s", {f"{kind} spec.{endpoints}": [{**plain, name: "5s"}]}, on(value)
            )
            for name in ("interval", "scrapeTimeout")
        },
    }


NODE_AFFINITY: Final = {
    "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "edge", "operator": "Exists"}]}]
    }
}
FOUND_BY_NFD: Final = [
    {
        "matchExpressions": [
            {
                "key": "feature.node.kubernetes.io/pci-0b40_1e60.present",
                "operator": "In",
                "values": ["true"],
            }
        ]
    }
]
REQUIRED: Final = (
    f"{SPEC}.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
)
PRIVILEGED: Final[dict[str, object]] = {
    f"{AGENT}.securityContext.privileged": True,
    f"{AGENT}.securityContext.allowPrivilegeEscalation": None,
    f"{AGENT}.securityContext.capabilities.drop": None,
    "settings health.queries": "on",
}
DIGEST: Final = f"sha256:{'5' * 64}"
PEERS: Final = [
    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
]

ROWS: Final[dict[str, Row]] = {
    "image.repository": Row(
        "registry.example.com:5000/edge/hailo-agent",
        {f"{AGENT}.image": f"registry.example.com:5000/edge/hailo-agent:{hailo_agent.__version__}"},
    ),
    "image.tag": Row("nightly", {f"{AGENT}.image": "hailo-agent:nightly"}),
    "image.digest": Row(DIGEST, {f"{AGENT}.image": f"hailo-agent@{DIGEST}"}),
    "image.pullPolicy": Row("Always", {f"{AGENT}.imagePullPolicy": "Always"}),
    "imagePullSecrets": Row([{"name": "pull"}], {f"{SPEC}.imagePullSecrets": [{"name": "pull"}]}),
    "config": Row(
        {"host": {"dev": "/mnt/dev"}, "resource": {"name": "example.com/npu"}},
        {"settings host.dev": "/mnt/dev", "settings resource.name": "example.com/npu"},
    ),
    "daemonSetName": Row("boards", {"DaemonSet metadata.name": "boards"}),
    "nameOverride": Row(
        "boards",
        {
            "ConfigMap metadata.name": "boards",
            "ServiceAccount metadata.name": "boards",
            f"{SPEC}.serviceAccountName": "boards",
            f"{SPEC}.volumes.config.configMap.name": "boards",
        },
    ),
    "kubeletRoot": Row(
        "/srv/kubelet",
        {
            "settings kubelet.root": "/srv/kubelet",
            f"{SPEC}.volumes.pod-resources.hostPath.path": "/srv/kubelet/pod-resources",
            f"{AGENT}.volumeMounts./var/lib/kubelet/pod-resources.name": None,
            f"{AGENT}.volumeMounts./var/lib/kubelet/pod-resources.mountPath": None,
            f"{AGENT}.volumeMounts./var/lib/kubelet/pod-resources.readOnly": None,
            f"{AGENT}.volumeMounts./srv/kubelet/pod-resources.name": "pod-resources",
            f"{AGENT}.volumeMounts./srv/kubelet/pod-resources.mountPath": (
                "/srv/kubelet/pod-resources"
            ),
            f"{AGENT}.volumeMounts./srv/kubelet/pod-resources.readOnly": True,
        },
    ),
    "cdi.dir": Row(
        "/srv/cdi",
        {
            "settings runtime.cdi_dir": "/srv/cdi",
            "settings runtime.cdi_search_dirs": ["/etc/cdi", "/srv/cdi"],
            f"{SPEC}.volumes.cdi.hostPath.path": "/srv/cdi",
            f"{AGENT}.volumeMounts./var/run/cdi.name": None,
            f"{AGENT}.volumeMounts./var/run/cdi.mountPath": None,
            f"{AGENT}.volumeMounts./srv/cdi.name": "cdi",
            f"{AGENT}.volumeMounts./srv/cdi.mountPath": "/srv/cdi",
        },
    ),
    "cdi.mountEtcCdi": Row(
        value=False,
        changes={
            f"{SPEC}.volumes.etc-cdi.name": None,
            f"{SPEC}.volumes.etc-cdi.hostPath.path": None,
            f"{SPEC}.volumes.etc-cdi.hostPath.type": None,
            f"{AGENT}.volumeMounts./etc/cdi.name": None,
            f"{AGENT}.volumeMounts./etc/cdi.mountPath": None,
            f"{AGENT}.volumeMounts./etc/cdi.readOnly": None,
        },
    ),
    "seLinuxType": Row(
        "container_device_plugin_t",
        {f"{AGENT}.securityContext.seLinuxOptions.type": "container_device_plugin_t"},
    ),
    "openshift.enabled": switched_on(
        {
            "+SecurityContextConstraints": "hailo-device-plugin",
            "+ClusterRole": "hailo-agent-scc",
            "+RoleBinding": "hailo-agent-scc",
        },
    ),
    "nodeSelector.kubernetes.io/os": Row("bsd", {f"{SPEC}.nodeSelector.kubernetes.io/os": "bsd"}),
    "affinity": Row(
        {"nodeAffinity": NODE_AFFINITY},
        {REQUIRED: [{"matchExpressions": [{"key": "edge", "operator": "Exists"}]}]},
    ),
    "nodeFeatureDiscovery.enabled": switched_on({REQUIRED: FOUND_BY_NFD}),
    "tolerations": Row(
        [{"key": "edge", "operator": "Exists"}],
        {f"{SPEC}.tolerations": [{"key": "edge", "operator": "Exists"}]},
    ),
    "priorityClassName": Row("boards", {f"{SPEC}.priorityClassName": "boards"}),
    **amounts("resources", AGENT),
    "updateStrategy.type": Row(
        "OnDelete",
        {
            "DaemonSet spec.updateStrategy.type": "OnDelete",
            "DaemonSet spec.updateStrategy.rollingUpdate.maxUnavailable": None,
        },
    ),
    "updateStrategy.rollingUpdate.maxUnavailable": Row(
        1, {"DaemonSet spec.updateStrategy.rollingUpdate.maxUnavailable": 1}
    ),
    "podAnnotations": Row(
        {"example.com/team": "edge"},
        {"DaemonSet spec.template.metadata.annotations.example.com/team": "edge"},
    ),
    "podLabels": Row(
        {"example.com/team": "edge"},
        {"DaemonSet spec.template.metadata.labels.example.com/team": "edge"},
    ),
    "activeProbes.enabled": switched_on(PRIVILEGED),
    "usageMonitor.enabled": switched_on(
        {
            "settings monitor.enabled": True,
            f"{AGENT}.volumeMounts./run/hailo-agent.mountPropagation": "HostToContainer",
        },
    ),
    "notifications.enabled": switched_on({**PRIVILEGED, "settings health.notifications": True}),
    **monitor("podMonitor", "PodMonitor"),
    **monitor("serviceMonitor", "ServiceMonitor", "Service"),
    "prometheusRule.enabled": switched_on({"+PrometheusRule": "hailo-agent"}),
    "prometheusRule.labels": Row(
        {"release": "prometheus"},
        {f"PrometheusRule {LABELS}.release": "prometheus"},
        on("prometheusRule"),
    ),
    "dashboards.enabled": switched_on(
        {f"+ConfigMap {name}": name for name in ("fleet", "node", "tenant")}
    ),
    "dashboards.labels.grafana_dashboard": Row(
        "yes",
        {
            f"ConfigMap {name} {LABELS}.grafana_dashboard": "yes"
            for name in ("fleet", "node", "tenant")
        },
        on("dashboards"),
    ),
    "dashboards.annotations": Row(
        {"grafana_folder": "Hailo"},
        {
            f"ConfigMap {name} metadata.annotations.grafana_folder": "Hailo"
            for name in ("fleet", "node", "tenant")
        },
        on("dashboards"),
    ),
    "dashboards.namespace": Row(
        "grafana",
        {f"ConfigMap {name} metadata.namespace": "grafana" for name in ("fleet", "node", "tenant")},
        on("dashboards"),
    ),
    "networkPolicy.enabled": switched_on({"+NetworkPolicy": "hailo-agent"}),
    "networkPolicy.from": Row(
        PEERS,
        {
            "NetworkPolicy spec.ingress": [
                {"ports": [{"protocol": "TCP", "port": 9808}], "from": PEERS}
            ]
        },
        on("networkPolicy"),
    ),
    "demo.enabled": switched_on(
        {
            "settings host.dev": "/run/hailo-agent/machine/dev",
            "settings host.sys": "/run/hailo-agent/machine/sys",
            "settings runtime.host_dev": "/run/hailo-agent/machine/dev",
            "settings runtime.host_sys": "/run/hailo-agent/machine/sys",
            "settings runtime.delivery": ["devicespec"],
            "settings health.queries": "off",
            f"{MACHINE}.name": "machine",
            f"{MACHINE}.image": f"hailo-agent:{hailo_agent.__version__}",
            f"{MACHINE}.imagePullPolicy": "IfNotPresent",
            f"{MACHINE}.args": ["simulate", "--machine=/run/hailo-agent/machine"],
            f"{MACHINE}.resources.requests.cpu": "10m",
            f"{MACHINE}.resources.requests.memory": "48Mi",
            f"{MACHINE}.resources.limits.cpu": "200m",
            f"{MACHINE}.resources.limits.memory": "128Mi",
            f"{MACHINE}.securityContext.runAsUser": 0,
            f"{MACHINE}.securityContext.runAsGroup": 0,
            f"{MACHINE}.securityContext.privileged": False,
            f"{MACHINE}.securityContext.allowPrivilegeEscalation": False,
            f"{MACHINE}.securityContext.readOnlyRootFilesystem": True,
            f"{MACHINE}.securityContext.capabilities.drop": ["ALL"],
            f"{MACHINE}.securityContext.capabilities.add": ["MKNOD"],
            f"{MACHINE}.securityContext.seccompProfile.type": "RuntimeDefault",
            f"{MACHINE}.volumeMounts./run/hailo-agent.name": "run",
            f"{MACHINE}.volumeMounts./run/hailo-agent.mountPath": "/run/hailo-agent",
        },
    ),
    "demo.devices": Row(
        7,
        {f"{MACHINE}.args": ["simulate", "--machine=/run/hailo-agent/machine", "--devices=7"]},
        on("demo"),
    ),
    **amounts("demo.resources", MACHINE, given=on("demo")),
}


def described(release: Release) -> dict[str, dict[str, Any]]:
    """Return each document's leaves, and the settings in effect instead of the file they are in."""
    found: dict[str, dict[str, Any]] = {}
    for document in copy.deepcopy(release.documents):
        name, kind = document["metadata"]["name"], document["kind"]
        key = f"{kind} {name.rpartition('-')[2]}" if "-dashboard-" in name else kind
        if "config.yaml" in document.get("data", ()):
            del document["data"]
        document["spec"] = document.get("spec", {})
        if kind == "DaemonSet":
            del document["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        assert key not in found
        found[key] = dict(leaves(document))
    found["settings"] = {
        f"{section}.{name}": value
        for section, below in effective(release.documents).model_dump(mode="json").items()
        for name, value in below.items()
    }
    return found


def changes(before: Release, after: Release) -> dict[str, object]:
    """Return what is new and what has changed, as rows say it."""
    ours, theirs = described(before), described(after)
    assert ours.keys() <= theirs.keys(), "a value made something disappear"
    found: dict[str, object] = {}
    for key in theirs.keys() - ours.keys():
        name = theirs[key]["metadata.name"]
        found[f"+{key}"] = name.rpartition("-")[2] if "-dashboard-" in name else name
    for key in ours:
        for path in ours[key].keys() | theirs[key].keys():
            was, now = ours[key].get(path), theirs[key].get(path)
            # A mapping that is empty is a leaf; one with something in it is not.
            if was != now and not (was in (None, {}) and now in (None, {})):
                found[f"{key} {path}"] = now
    return found


@cache
def plain(given: str) -> Release:
    """Return what the chart makes without the value in question."""
    return start().render(json.loads(given), namespace="hailo-agent")


@pytest.mark.parametrize("path", ROWS)
def test_a_value_does_what_it_says_and_nothing_else(helm: Helm, path: str) -> None:
    row = ROWS[path]
    before = plain(json.dumps(row.given))
    # The dots of a label are its own.
    root, dotted, rest = path.partition("nodeSelector.")
    values = {"nodeSelector": {rest: row.value}} if dotted and not root else nested(path, row.value)
    after = helm.render(merged(row.given, values), namespace="hailo-agent")
    assert changes(before, after) == row.changes


def value_paths(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Walk through values: the path of each that is no mapping, or an empty one."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from value_paths(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def test_no_value_is_left_out_of_these_rows() -> None:
    assert ROWS.keys() == dict(value_paths(DEFAULTS)).keys()


def test_no_row_only_says_what_is_the_default_already() -> None:
    defaults = dict(value_paths(DEFAULTS))
    assert [path for path, row in ROWS.items() if row.value == defaults[path]] == []
    assert [path for path, row in ROWS.items() if not row.changes] == []


def test_every_value_says_what_it_is_for() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    silent = [
        line
        for before, line in pairwise(lines)
        if re.match(r"[a-zA-Z]+: ", line) and not before.lstrip().startswith("#")
    ]
    assert silent == ["podLabels: {}"]  # said together with podAnnotations


def test_cdi_specs_are_not_looked_for_twice_where_they_are_written(helm: Helm) -> None:
    documents = helm.render({"cdi": {"dir": "/etc/cdi"}}).documents
    (mount,) = (m for m in container(documents)["volumeMounts"] if m["mountPath"] == "/etc/cdi")
    assert mount == {"name": "cdi", "mountPath": "/etc/cdi"}
    assert "etc-cdi" not in named(pod(documents)["volumes"])
    assert effective(documents).runtime.cdi_search_dirs == (Path("/etc/cdi"),)


@pytest.mark.parametrize(
    "value", ["nodeSelector", "tolerations", "priorityClassName", "resources", "seLinuxType"]
)
def test_an_empty_value_leaves_the_key_out(helm: Helm, value: str) -> None:
    empty: Any = type(DEFAULTS[value])()
    if isinstance(empty, dict):
        # Helm merges mappings; null is how an entry is taken out.
        empty = dict.fromkeys(DEFAULTS[value])
    documents = helm.render({value: empty}).documents
    holders = (pod(documents), container(documents), container(documents)["securityContext"])
    assert not [holder for holder in holders if value in holder or "seLinuxOptions" in holder]


# --- the owner of a release cannot take away what others rely on ---------------------------------


def test_labels_and_annotations_of_ours_cannot_be_overwritten(helm: Helm) -> None:
    name = {"app.kubernetes.io/name": "theirs"}
    values = {
        "podLabels": name,
        "podAnnotations": {"checksum/config": "never"},
        "podMonitor": {"enabled": True, "labels": name},
    }
    release = helm.render(values)
    template = daemonset(release.documents)["spec"]["template"]["metadata"]
    assert template["labels"]["app.kubernetes.io/name"] == "hailo-agent"
    assert template["annotations"]["checksum/config"] != "never"
    (found,) = (d for d in release.documents if d["kind"] == "PodMonitor")
    assert found["metadata"]["labels"]["app.kubernetes.io/name"] == "hailo-agent"


# --- the schema ----------------------------------------------------------------------------------


def schema_of(path: str) -> dict[str, Any]:
    """Return what the schema says of a value."""
    found = SCHEMA
    for name in path.split("."):
        found = found["properties"][name]
    return found


def closed(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk through all mappings that have nothing but named entries."""
    if "properties" in schema:
        yield path, schema
        for name, below in schema["properties"].items():
            yield from closed(below, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from closed(schema["items"], f"{path}.0")


def _chart_schema() -> ModuleType:
    """Return the script that writes the settings into the schema."""
    spec = importlib.util.spec_from_file_location("chart_schema", ROOT / "hack/chart_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_schema_knows_every_setting_of_the_agent() -> None:
    fresh = _chart_schema().with_config(SCHEMA)
    assert fresh == SCHEMA, "run .venv/bin/python hack/chart_schema.py"
    # And not by knowing nothing.
    known = {
        f"{section}.{name}"
        for section, below in SCHEMA["properties"]["config"]["properties"].items()
        for name in below["properties"]
    }
    assert {"host.dev", "health.queries", "kubelet.root", "web.listen"} <= known


def test_schema_and_values_have_the_same_values() -> None:
    described_there = {
        path
        for path, _ in value_paths(DEFAULTS)
        if not path.startswith(("nodeSelector.", "dashboards.labels."))
    }
    for path in described_there:
        assert {"title", "type"} <= schema_of(path).keys() or "enum" in schema_of(path), path
    tops = SCHEMA["properties"].keys() - {"global"}
    assert tops == DEFAULTS.keys()
    for path, schema in closed(SCHEMA):
        if (
            path
            and path.split(".")[0] not in {"affinity", "config", "imagePullSecrets", "tolerations"}
            and not path.startswith("networkPolicy.from")
        ):
            value: Any = DEFAULTS
            for name in path.split("."):
                value = value[name]
            assert schema["properties"].keys() - {"ephemeral-storage"} == value.keys(), path


def test_every_mapping_is_closed() -> None:
    assert [path for path, schema in closed(SCHEMA) if schema.get("additionalProperties")] == []
    assert [path for path, s in closed(SCHEMA) if "additionalProperties" not in s] == []


def test_a_key_that_is_no_value_is_refused_wherever_it_is(helm: Helm) -> None:
    mappings = [path for path, _ in closed(SCHEMA) if not {"0", ""} & set(path.split(".")) and path]
    mappings = [path for path in mappings if not path.startswith("affinity.")]
    assert len(mappings) > 30
    values = reduce(merged, (nested(f"{path}.surprise", 1) for path in mappings), {"surprise": 1})
    with pytest.raises(HelmError) as refusal:
        helm.render(values)
    for path in ["", *(f"/{path.replace('.', '/')}" for path in mappings)]:
        assert f"- at '{path}': additional properties 'surprise' not allowed" in str(refusal.value)


def test_a_value_of_the_wrong_type_is_refused_by_its_name(helm: Helm) -> None:
    free = ("nodeSelector.", "dashboards.labels.")
    values: dict[str, Any] = {}
    expected = {}
    for path, default in value_paths(DEFAULTS):
        if not path.startswith(free):
            mistaken = "text" if isinstance(default, bool | int | dict | list) else ["text"]
            values = merged(values, nested(path, mistaken))
            expected[f"/{path.replace('.', '/')}"] = (
                "string" if isinstance(mistaken, str) else "array"
            )
    del values["updateStrategy"]["rollingUpdate"]  # takes text as well, if it is a percentage
    del expected["/updateStrategy/rollingUpdate/maxUnavailable"]
    with pytest.raises(HelmError, match="don't meet the specifications of the schema") as refusal:
        helm.render(values)
    for path, got in expected.items():
        assert f"- at '{path}': got {got}, want " in str(refusal.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("image.pullPolicy", "Sometimes"),
        ("image.repository", "hailo-agent:1.0"),
        ("image.digest", "sha256:abc"),
        ("kubeletRoot", "var/lib/kubelet"),
        ("kubeletRoot", "/var/lib/kubelet/"),
        ("kubeletRoot", "/" + "k" * 80),
        ("cdi.dir", "/"),
        ("cdi.dir", "/srv/../cdi"),
        ("daemonSetName", "Boards"),
        ("seLinuxType", "spc_t; true"),
        ("resources.limits.memory", "160MB"),
        ("updateStrategy.rollingUpdate.maxUnavailable", 0),
        ("updateStrategy.rollingUpdate.maxUnavailable", "0%"),
        ("updateStrategy.rollingUpdate.maxUnavailable", "101%"),
        ("podLabels", {"team": "edge & cloud"}),
        ("podMonitor.interval", "soon"),
        ("demo.devices", -1),
        ("config.host.resync_seconds", 0),
        ("config.health.queries", False),  # what YAML makes of `off`
        ("config.log.level", "loud"),
        ("config.host.dev", "dev"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(
    helm: Helm, path: str, value: object
) -> None:
    with pytest.raises(HelmError) as refusal:
        helm.render(nested(path, value))
    assert f"- at '/{path.replace('.', '/')}" in str(refusal.value)


# --- whatever is set -----------------------------------------------------------------------------


PRINTABLE: Final = st.characters(exclude_categories=["C"])


def drawn_from(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:  # noqa: C901, PLR0911 - a table
    """Return a strategy for what a schema allows, as far as ours goes; each part is there or not.

    hypothesis-jsonschema 0.23 would do it, but cannot draw a mapping with hypothesis 6.170.
    """
    kinds = schema.get("type", ())
    if isinstance(kinds, list):
        return st.one_of([drawn_from({**schema, "type": kind}) for kind in kinds])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match kinds:
        case "object" if "properties" in schema:
            parts = {name: drawn_from(below) for name, below in schema["properties"].items()}
            # A switch is always on or off: what it switches is what there is to see.
            required = {*schema.get("required", ()), *({"enabled"} & parts.keys())}
            return st.fixed_dictionaries(
                {name: part for name, part in parts.items() if name in required},
                optional={name: part for name, part in parts.items() if name not in required},
            )
        case "object":
            names = drawn_from({"type": "string", **schema.get("propertyNames", {})})
            below = drawn_from(schema["additionalProperties"])
            return st.dictionaries(names, below, max_size=3)
        case "array":
            least = schema.get("minItems", 0)
            return st.lists(drawn_from(schema["items"]), min_size=least, max_size=3)
        case "string":
            least, most = schema.get("minLength", 0), schema.get("maxLength", 60)
            if "pattern" not in schema:
                return st.text(PRINTABLE, min_size=least, max_size=most)
            # A pattern without an end allows anything behind it.
            is_whole = schema["pattern"].endswith("$")
            text = st.from_regex(schema["pattern"], fullmatch=is_whole, alphabet=PRINTABLE)
            return text.filter(lambda drawn: least <= len(drawn) <= most)
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case "number":
            return st.floats(
                schema.get("minimum", schema.get("exclusiveMinimum")),
                schema.get("maximum"),
                exclude_min="exclusiveMinimum" in schema,
                allow_nan=False,
                allow_infinity=False,
            )
        case unknown:
            raise AssertionError(f"the schema has something new: {unknown}")


WITHOUT_GLOBAL: Final = {
    **SCHEMA,
    "properties": {n: below for n, below in SCHEMA["properties"].items() if n != "global"},
}


def settled(values: dict[str, Any]) -> dict[str, Any]:
    """Return values that make sense together, and a config that the agent takes."""
    values = copy.deepcopy(values)

    def enabled(switch: str) -> bool:
        return bool(values.get(switch, {}).get("enabled"))

    def off(switch: str) -> None:
        values[switch]["enabled"] = False

    if values.get("image", {}).get("digest"):
        values["image"].pop("tag", None)
    if enabled("podMonitor") and enabled("serviceMonitor"):
        off("podMonitor")
    if enabled("demo") and enabled("openshift"):
        off("openshift")
    if enabled("demo") and (enabled("activeProbes") or enabled("notifications")):
        off("demo")
    values["config"] = _taken(values.get("config", {}))
    return values


NOT_BY_CONFIG: Final = {
    ("health", "queries"),
    ("health", "notifications"),
    ("kubelet", "root"),
    ("monitor", "enabled"),
    ("runtime", "cdi_dir"),
    ("web", "listen"),
}
"""Settings that another value is for, or which have to fit it: see test_chart.CONTRADICTIONS."""


def _taken(config: dict[str, Any]) -> dict[str, Any]:
    taken: dict[str, Any] = {}
    for section, below in config.items():
        for name, value in below.items():
            more = merged(taken, {section: {name: value}})
            if (section, name) not in NOT_BY_CONFIG and _read(more) is not None:
                taken = more
    return taken


def _read(config: Mapping[str, Any]) -> Settings | None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.dump(config, file, Dumper=yaml.CSafeDumper, allow_unicode=True)
        file.flush()
        try:
            return load(flags={}, environ={}, config=Path(file.name)).settings
        except ConfigError:
            return None


# Not made smaller where they fail: each try is a rendering, and that would take minutes.
@settings(
    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
@given(values=drawn_from(WITHOUT_GLOBAL).map(settled))
def test_whatever_is_set_is_valid_safe_and_understood_by_the_agent(values: dict[str, Any]) -> None:
    documents = start().render(values, namespace="hailo-agent").documents
    for version in (VERSIONS[0], VERSIONS[-1]):
        assert [fault for document in documents for fault in wrong(document, version)] == []
    _is_safe(documents, values)
    _is_understood(documents, values)


@pytest.mark.parametrize("either", [("podMonitor", "openshift"), ("serviceMonitor", "demo")])
def test_everything_together_but_what_needs_privilege_has_none(
    helm: Helm, either: tuple[str, ...]
) -> None:
    switches = {path.removesuffix(".enabled") for path in ROWS if path.endswith(".enabled")}
    exclusive = {"podMonitor", "openshift", "serviceMonitor", "demo"}
    values = on(*(switches - exclusive - {"activeProbes", "notifications"}), *either)
    _is_safe(helm.render(values, namespace="hailo-agent").documents, values)


def _is_safe(documents: Documents, values: Mapping[str, Any]) -> None:
    """Check what the security page promises, whatever the values."""
    switches = [values.get(name, {}).get("enabled") for name in ("activeProbes", "notifications")]
    spec = pod(documents)
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "securityContext"}
    assert spec["automountServiceAccountToken"] is False
    for one in spec["containers"]:
        context: Document = one["securityContext"]
        is_privileged = one["name"] == "hailo-agent" and any(switches)
        assert context["privileged"] is is_privileged
        assert context["readOnlyRootFilesystem"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        if not is_privileged:
            added = {"add": ["MKNOD"]} if one["name"] == "machine" else {}
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"], **added}
        assert not [port for port in one.get("ports", ()) if "hostPort" in port]
        # No directory twice, and none that the values did not ask for.
        mounts = named(one["volumeMounts"], "mountPath")
        assert mounts.get("/host/dev", {"readOnly": True})["readOnly"] is True
    assert {container_["name"] for container_ in spec["containers"]} <= {"hailo-agent", "machine"}
    assert {variable["name"] for variable in container(documents)["env"]} == {
        "NODE_NAME", "POD_UID", "HAILO_AGENT_CONFIG",
    }  # fmt: skip
    root = values.get("kubeletRoot", "/var/lib/kubelet")
    written = values.get("cdi", {}).get("dir", "/var/run/cdi")
    for volume in spec["volumes"]:
        if volume["name"] != "config":
            assert volume["hostPath"]["type"] in {"Directory", "DirectoryOrCreate"}
            assert volume["hostPath"]["path"] in {
                "/dev", "/etc/cdi", "/run/hailo-agent", "/sys", "/var/lib/hailo-agent",
                "/var/lib/kubelet/device-plugins", f"{root}/pod-resources", written,
            }  # fmt: skip
    assert {document["kind"] for document in documents} <= {
        "ConfigMap", "DaemonSet", "NetworkPolicy", "PodMonitor", "PrometheusRule", "Service",
        "ServiceAccount", "ServiceMonitor",
        *(
            ("ClusterRole", "RoleBinding", "SecurityContextConstraints")
            if values.get("openshift", {}).get("enabled")
            else ()
        ),
    }  # fmt: skip


def _is_understood(documents: Documents, values: Mapping[str, Any]) -> None:
    """Check that each setting reaches the agent as it was meant."""
    ours = effective(documents).model_dump()
    theirs = _read(values["config"])
    assert theirs is not None
    meant = theirs.model_dump()
    for section, below in values["config"].items():
        for name in below:
            assert ours[section][name] == meant[section][name]
