"""Every kustomization renders to what Kubernetes and the agent take, and to nothing stale."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import hailo_agent
from tests.manifests.conftest import RENDERINGS
from tests.manifests.rendered import (
    COMPONENTS,
    KUSTOMIZE,
    MANIFESTS,
    OVERLAYS,
    ROOT,
    SHAPES,
    VERSIONS,
    Document,
    Documents,
    built,
    config_show,
    container,
    daemonset,
    difference,
    documents,
    fingerprint,
    kubectl,
    kustomized,
    named,
    of_kind,
    pod,
    settings,
    spoiled,
    wrong,
)

CLUSTER_SCOPED = {"Namespace", "ClusterRole", "SecurityContextConstraints"}
LABELS = {
    "app.kubernetes.io/name": "hailo-agent",
    "app.kubernetes.io/component": "node-agent",
    "app.kubernetes.io/part-of": "hailo-agent",
}
SELECTOR = {k: v for k, v in LABELS.items() if not k.endswith("part-of")}
ANNOTATIONS_LIMIT = 256 * 1024


# --- what there is -------------------------------------------------------------------------------


def test_there_is_an_overlay_and_a_component_for_all_that_is_promised() -> None:
    assert set(OVERLAYS) == {
        "demo", "k0s", "k3s", "microk8s", "monitoring", "openshift", "rke2", "talos",
    }  # fmt: skip
    assert set(COMPONENTS) == {
        "active-probes", "monitoring", "network-policy", "nfd", "notifications", "service-monitor",
        "usage-monitor",
    }  # fmt: skip


def test_no_kustomization_is_left_out_of_these_tests() -> None:
    there = {path.parent for path in KUSTOMIZE.rglob("kustomization.yaml")}
    tried = {KUSTOMIZE / argument[0] for argument in RENDERINGS.values()}
    tried |= {KUSTOMIZE / "components" / name for name in COMPONENTS}
    assert there == tried


def test_every_file_is_used_by_a_kustomization() -> None:
    for folder in {path.parent for path in KUSTOMIZE.rglob("kustomization.yaml")}:
        said = (folder / "kustomization.yaml").read_text()
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "kustomization.yaml":
                name = str(path.relative_to(folder))
                assert re.search(rf"(- |path: ){re.escape(name)}$", said, re.MULTILINE), path


@pytest.mark.parametrize("folder", [f"overlays/{name}" for name in OVERLAYS])
def test_an_overlay_says_first_what_differs_and_how_cdi_is_switched_on(folder: str) -> None:
    comment, _, _ = (
        (KUSTOMIZE / folder / "kustomization.yaml").read_text().partition("\napiVersion")
    )
    assert all(line.startswith("#") for line in comment.splitlines())
    assert "CDI" in comment
    # What is to be switched on is what the document about it says.
    document = (ROOT / "docs" / "how-to" / "turn-cdi-on.md").read_text()
    for line in re.findall(r"^#\s+((?:enable_cdi|cdi_spec_dirs) = .*)$", comment, re.MULTILINE):
        assert line in document


# --- what it renders to --------------------------------------------------------------------------


def test_there_is_one_agent_and_nothing_has_a_name_twice(rendered: Documents) -> None:
    assert daemonset(rendered)["metadata"]["name"] == "hailo-device-plugin"
    names = [(d["apiVersion"], d["kind"], d["metadata"]["name"]) for d in rendered]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid_for_each_version_of_kubernetes(version: str) -> None:
    distinct = {
        fingerprint(document): document
        for arguments in RENDERINGS.values()
        for document in kustomized(*arguments)
    }
    # Those of SHAPES are no business of Kubernetes, and the same for every version.
    assert not [fault for document in distinct.values() for fault in wrong(document, version)]


def _misspell_a_probe(document: Document) -> None:
    document["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}


def _quote_a_number(document: Document) -> None:
    document["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "9808"


@pytest.mark.parametrize("spoil", [_misspell_a_probe, _quote_a_number])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_mistake_is_seen_for_each_version(
    version: str, spoil: Callable[[Document], None]
) -> None:
    agent = daemonset(kustomized("base"))
    assert not wrong(agent, version)
    assert wrong(spoiled(agent, spoil), version)


@pytest.mark.parametrize(("api_version", "kind"), SHAPES)
def test_a_mistake_is_seen_in_kinds_of_others_too(api_version: str, kind: str) -> None:
    found = {
        fingerprint(document): document
        for arguments in RENDERINGS.values()
        for document in of_kind(kustomized(*arguments), kind)
        if document["apiVersion"] == api_version
    }
    assert found
    for document in found.values():
        place = document.get("spec", document)
        for key in [key for key in place if key not in {"apiVersion", "kind", "metadata"}]:

            def misspell(spoilt: Document, key: str = key) -> None:
                below = spoilt.get("spec", spoilt)
                below[f"{key}x"] = below.pop(key)

            assert wrong(spoiled(document, misspell), VERSIONS[-1]), key


def test_all_is_in_one_namespace_and_what_is_the_clusters_in_none(
    rendering: str, rendered: Documents
) -> None:
    expected = "hailo-agent" if rendering.startswith("openshift") else "kube-system"
    for document in rendered:
        namespace = None if document["kind"] in CLUSTER_SCOPED else expected
        assert document["metadata"].get("namespace") == namespace, document["kind"]


def test_everything_of_ours_can_be_found_by_its_labels(rendered: Documents) -> None:
    theirs = {"Namespace", "ClusterRole", "RoleBinding", "SecurityContextConstraints"}
    for document in rendered:
        if document["kind"] not in theirs:
            labels = document["metadata"]["labels"]
            assert labels.items() >= LABELS.items(), document["kind"]


def test_what_selects_pods_selects_the_agents(rendered: Documents) -> None:
    agent = daemonset(rendered)["spec"]
    labels = agent["template"]["metadata"]["labels"]
    assert labels == LABELS
    assert agent["selector"] == {"matchLabels": SELECTOR}
    ports = named(container(rendered)["ports"])
    for policy in of_kind(rendered, "NetworkPolicy"):
        assert policy["spec"]["podSelector"] == {"matchLabels": SELECTOR}
        let_in = policy["spec"]["ingress"][0]["ports"]
        assert let_in == [{"protocol": "TCP", "port": ports["http"]["containerPort"]}]
        assert policy["spec"]["egress"] == []
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    for service in of_kind(rendered, "Service"):
        assert service["spec"]["selector"] == SELECTOR
        assert service["spec"]["clusterIP"] == "None"
        assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)


def test_what_is_named_is_there(rendered: Documents) -> None:
    spec = pod(rendered)
    accounts = {document["metadata"]["name"] for document in of_kind(rendered, "ServiceAccount")}
    assert accounts == {spec["serviceAccountName"]}
    maps = {document["metadata"]["name"] for document in of_kind(rendered, "ConfigMap")}
    volumes = named(spec["volumes"])
    asked = {v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v}
    assert asked
    assert asked <= maps
    mounted = {mount["name"] for c in spec["containers"] for mount in c["volumeMounts"]}
    assert mounted == set(volumes)
    for one in spec["containers"]:
        named(one["volumeMounts"], "mountPath")  # none twice
    for role in of_kind(rendered, "ClusterRole"):
        # kustomize has taken such a name for another object's before.
        (constraints,) = of_kind(rendered, "SecurityContextConstraints")
        assert role["rules"][0]["resourceNames"] == [constraints["metadata"]["name"]]


def test_changed_settings_roll_the_daemonset_out(tmp_path: Path) -> None:
    def config_map(rendered: Documents) -> str:
        name: str = named(pod(rendered)["volumes"])["config"]["configMap"]["name"]
        return name

    shutil.copytree(KUSTOMIZE / "base", tmp_path / "base")
    before = config_map(built(tmp_path / "base"))
    assert before == config_map(kustomized("base"))
    with (tmp_path / "base" / "config.yaml").open("a") as file:
        file.write("web:\n  page: true\n")
    assert config_map(built(tmp_path / "base")) != before


@pytest.mark.parametrize("base", ["base", "overlays/demo"])
def test_whoever_deploys_sets_a_registry(base: str) -> None:
    rendered = kustomized(base, image="registry.example.com/edge/hailo-agent")
    for one in pod(rendered)["containers"]:
        version = hailo_agent.__version__
        assert one["image"] == f"registry.example.com/edge/hailo-agent:{version}"


def test_kubectl_can_apply_every_document(rendered: Documents) -> None:
    # `kubectl apply` keeps the whole document in one of its annotations.
    for document in rendered:
        size = len(json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode())
        assert size < 0.9 * ANNOTATIONS_LIMIT, document["metadata"]["name"]


def test_components_go_together_in_any_order() -> None:
    # But for that one which takes out what another one has brought.
    free = [name for name in COMPONENTS if name != "service-monitor"]
    forth = kustomized("base", *free, "service-monitor")
    back = kustomized("base", *reversed(free), "service-monitor")
    by_name = [
        {(d["kind"], d["metadata"]["name"]): d for d in rendered} for rendered in (forth, back)
    ]
    assert by_name[0].keys() == by_name[1].keys()
    for key, document in by_name[0].items():
        assert difference(document, by_name[1][key]) == {}


# --- what the agent makes of it ------------------------------------------------------------------


def test_the_agent_knows_every_setting(rendered: Documents) -> None:
    shown = config_show(rendered)
    assert shown.returncode == 0, shown.stderr
    assert "spec.nodeName" not in shown.stdout
    assert settings(rendered)["node.name"] == "node-1"


SWITCHED = {
    "active-probes": {"health.queries": ("auto", "on")},
    "monitoring": {},
    "network-policy": {},
    "nfd": {},
    "notifications": {"health.notifications": (False, True), "health.queries": ("auto", "on")},
    "service-monitor": {},
    "usage-monitor": {"monitor.enabled": (False, True)},
}
KUBELET = "/var/lib/kubelet"
MACHINE = "/run/hailo-agent/machine"
DIFFERENT = {
    "demo": {
        "host.dev": ("/host/dev", f"{MACHINE}/dev"),
        "host.sys": ("/host/sys", f"{MACHINE}/sys"),
        "runtime.host_dev": ("/dev", f"{MACHINE}/dev"),
        "runtime.host_sys": ("/sys", f"{MACHINE}/sys"),
        # Why is said in the overlay.
        "runtime.delivery": (["cri", "devicespec"], ["devicespec"]),
        "health.queries": ("auto", "off"),
    },
    "k0s": {"kubelet.root": (KUBELET, "/var/lib/k0s/kubelet")},
    "k3s": {},
    "microk8s": {"kubelet.root": (KUBELET, "/var/snap/microk8s/common/var/lib/kubelet")},
    "monitoring": {},
    "openshift": {},
    "rke2": {},
    "talos": {},
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        *((("base", name), expected) for name, expected in SWITCHED.items()),
        *(((f"overlays/{name}",), expected) for name, expected in DIFFERENT.items()),
    ],
    ids=[*SWITCHED, *DIFFERENT],
)
def test_settings_differ_from_the_base_as_said(
    arguments: tuple[str, ...], expected: dict[str, tuple[object, object]]
) -> None:
    assert difference(settings(kustomized("base")), settings(kustomized(*arguments))) == expected


def test_no_switch_is_left_out_of_what_is_said() -> None:
    assert set(SWITCHED) == set(COMPONENTS)
    assert set(DIFFERENT) == set(OVERLAYS)


def _plant(rendered: Documents, plant: Callable[[Documents], None]) -> Documents:
    copied = tuple(spoiled(document, lambda _: None) for document in rendered)
    plant(copied)
    return copied


def _plant_in_file(rendered: Documents) -> None:
    (config,) = (d for d in of_kind(rendered, "ConfigMap") if "config.yaml" in d["data"])
    config["data"]["config.yaml"] += "health:\n  questions: auto\n"


def _plant_in_environment(rendered: Documents) -> None:
    variable = {"name": "HAILO_AGENT_HEALTH__QUESTIONS", "value": "auto"}
    container(rendered)["env"].append(variable)


@pytest.mark.parametrize("plant", [_plant_in_file, _plant_in_environment])
@pytest.mark.parametrize("rendering", ["base+everything"], indirect=True)
def test_a_key_that_the_agent_does_not_know_is_refused(
    rendered: Documents, plant: Callable[[Documents], None]
) -> None:
    shown = config_show(_plant(rendered, plant))
    assert shown.returncode == 78
    assert "questions" in shown.stderr.lower()


def test_what_the_containers_are_told_to_do_is_a_verb_of_the_agent(rendered: Documents) -> None:
    verbs = {tuple(one["args"]) for one in pod(rendered)["containers"]}
    assert verbs <= {("run",), ("simulate", f"--machine={MACHINE}")}
    assert container(rendered)["args"] == ["run"]


# --- monitoring ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("components", "kind", "endpoints"),
    [
        (("monitoring",), "PodMonitor", "podMetricsEndpoints"),
        (("monitoring", "service-monitor"), "ServiceMonitor", "endpoints"),
    ],
)
def test_agents_are_scraped_once_and_as_the_dashboards_want(
    components: tuple[str, ...], kind: str, endpoints: str
) -> None:
    rendered = kustomized("base", *components)
    (monitor,) = [d for d in rendered if d["kind"] in {"PodMonitor", "ServiceMonitor"}]
    assert monitor["kind"] == kind
    assert monitor["spec"]["selector"] == {"matchLabels": SELECTOR}
    (endpoint,) = monitor["spec"][endpoints]
    assert endpoint["honorLabels"] is True
    assert endpoint["path"] == "/metrics"
    assert endpoint["port"] in named(container(rendered)["ports"])
    assert endpoint["relabelings"] == [
        {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "instance"},
        {"targetLabel": "job", "replacement": "hailo-agent"},
    ]


def test_the_alerts_are_those_of_the_plain_rule_file() -> None:
    (rule,) = of_kind(kustomized("overlays/monitoring"), "PrometheusRule")
    (plain,) = documents((MANIFESTS / "prometheus" / "rules.yaml").read_text())
    assert rule["spec"] == plain


def test_every_dashboard_is_there_under_grafanas_label() -> None:
    maps = of_kind(kustomized("overlays/monitoring"), "ConfigMap")
    boards = [d for d in maps if d["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    shipped = {name: text for board in boards for name, text in board["data"].items()}
    assert shipped == {p.name: p.read_text() for p in (MANIFESTS / "grafana").glob("*.json")}


# --- what is generated ---------------------------------------------------------------------------


def update_manifests(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "hack" / "update-manifests"), *arguments],
        env=dict(os.environ) | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_generated_files_are_what_would_be_generated_now(tmp_path: Path) -> None:
    kubectl()
    result = update_manifests(str(tmp_path))
    assert result.returncode == 0, result.stderr
    fresh = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert len(fresh) >= 9
    stale = [str(name) for name, text in fresh.items() if (MANIFESTS / name).read_text() != text]
    assert not stale, "run hack/update-manifests"
    # Nor does a copy stay of what is no more.
    for folder in {name.parent for name in fresh if name.parent.name == "dashboards"}:
        assert {p.name for p in (MANIFESTS / folder).iterdir()} == {
            name.name for name in fresh if name.parent == folder
        }


def test_generating_writes_over_what_is_stale(tmp_path: Path) -> None:
    kubectl()
    dashboards = tmp_path / "kustomize" / "components" / "monitoring" / "dashboards"
    dashboards.mkdir(parents=True)
    (dashboards / "gone.json").write_text("{}")
    (dashboards.parent / "podmonitor.yaml").write_text("not generated\n")
    assert update_manifests(str(tmp_path)).returncode == 0
    assert not (dashboards / "gone.json").exists()
    assert (dashboards.parent / "podmonitor.yaml").read_text() == "not generated\n"


def test_a_missing_kubectl_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    result = update_manifests(str(tmp_path / "manifests"), KUBECTL="no-such-tool")
    assert result.returncode == 1
    assert "needs no-such-tool, which is not installed" in result.stderr
    assert not (tmp_path / "manifests").exists()


def test_the_single_file_is_the_base() -> None:
    text = (MANIFESTS / "hailo-agent.yaml").read_text()
    assert text.startswith("# Generated from manifests/kustomize/base by hack/update-manifests.")
    assert documents(text) == kustomized("base")


def test_the_settings_of_the_base_are_few() -> None:
    (settings_file,) = yaml.safe_load_all((KUSTOMIZE / "base" / "config.yaml").read_text())
    assert settings_file == {
        "host": {"dev": "/host/dev", "sys": "/host/sys"},
        "log": {"format": "json"},
    }
