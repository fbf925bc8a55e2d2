"""The chart renders to what the kustomizations render to, and refuses in words what it will not."""

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import hailo_agent
from tests.manifests.helm import CHART, VALUES, Helm, HelmError, effective, start
from tests.manifests.rendered import (
    MANIFESTS,
    OVERLAYS,
    ROOT,
    VERSIONS,
    Document,
    Documents,
    container,
    daemonset,
    difference,
    kustomized,
    of_kind,
    pod,
    settings,
    spoiled,
    wrong,
)

Values = Mapping[str, Any]


@pytest.fixture(name="helm", scope="session")
def _helm() -> Helm:
    return start()


def values_of(name: str) -> dict[str, Any]:
    """Return the values of a distribution, of which some files have none."""
    text = (VALUES / f"{name}.yaml").read_text()
    values: dict[str, Any] = yaml.safe_load(text)
    return values


def on(*switches: str) -> dict[str, Any]:
    """Return values that switch something on."""
    return {switch: {"enabled": True} for switch in switches}


# --- the chart itself ----------------------------------------------------------------------------


def test_helm_finds_nothing_to_complain_of(helm: Helm) -> None:
    found = helm.lint()
    assert found["TotalChartsLinted"] == 1
    assert found["Errors"] is None
    information = 1  # that there is no icon; 2 is a warning, 3 an error
    assert all(message["Severity"] <= information for message in found["Messages"])


def test_chart_and_image_have_the_version_of_the_agent() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == hailo_agent.__version__


def test_a_cluster_older_than_what_was_validated_is_refused(helm: Helm) -> None:
    oldest = f"v{VERSIONS[0]}"
    assert helm.render(kubernetes=oldest).documents
    with pytest.raises(HelmError, match=r"kubeVersion: >=1\.28\.0-0 .* incompatible .* v1\.27\.9"):
        helm.render(kubernetes="v1.27.9")


def test_a_distribution_s_suffix_does_not_make_a_version_older(helm: Helm) -> None:
    assert helm.render(kubernetes="v1.28.0+k3s1").documents
    assert helm.render(kubernetes="v1.28.0-gke.100").documents


def test_rules_and_dashboards_in_the_chart_are_copies_of_those_that_are_tested() -> None:
    files = CHART / "files"
    assert (files / "rules.yaml").read_text() == (MANIFESTS / "prometheus/rules.yaml").read_text()
    dashboards = {path.name: path.read_text() for path in (MANIFESTS / "grafana").glob("*.json")}
    assert {path.name: path.read_text() for path in (files / "dashboards").iterdir()} == dashboards


def test_a_packed_chart_renders_as_the_directory_does(helm: Helm, tmp_path: Path) -> None:
    archive = helm.package(tmp_path)
    assert archive.name == f"hailo-agent-{hailo_agent.__version__}.tgz"
    with tarfile.open(archive) as packed:
        names = {name.removeprefix("hailo-agent/") for name in packed.getnames()}
    there = {str(path.relative_to(CHART)) for path in CHART.rglob("*") if path.is_file()}
    assert names == there
    everything = on("podMonitor", "prometheusRule", "dashboards", "networkPolicy")
    assert helm.render(everything, chart=archive).documents == helm.render(everything).documents


# --- the same as the kustomizations --------------------------------------------------------------

SAME: Final[dict[str, tuple[Values, tuple[str, ...]]]] = {
    "nothing": ({}, ("base",)),
    **{name: (values_of(name), (f"overlays/{name}",)) for name in OVERLAYS},
    "activeProbes": (on("activeProbes"), ("base", "active-probes")),
    "usageMonitor": (on("usageMonitor"), ("base", "usage-monitor")),
    "notifications": (on("notifications"), ("base", "notifications")),
    "nodeFeatureDiscovery": (on("nodeFeatureDiscovery"), ("base", "nfd")),
    "networkPolicy": (on("networkPolicy"), ("base", "network-policy")),
    "serviceMonitor": (
        on("serviceMonitor", "prometheusRule", "dashboards"),
        ("base", "monitoring", "service-monitor"),
    ),
    "openshift and activeProbes": (
        {**values_of("openshift"), **on("activeProbes")},
        ("overlays/openshift", "active-probes"),
    ),
    "k0s and everything": (
        {
            **values_of("k0s"),
            **values_of("monitoring"),
            **on("notifications", "usageMonitor", "nodeFeatureDiscovery", "networkPolicy"),
        },
        (
            "overlays/k0s",
            *("notifications", "usage-monitor", "nfd", "network-policy", "monitoring"),
        ),
    ),
}

HELM_S_OWN: Final = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
}


def namespace_of(values: Values) -> str:
    """Return where it is installed: OpenShift has no room for it in kube-system."""
    return "hailo-agent" if "openshift" in values else "kube-system"


def comparable(documents: Documents) -> dict[str, Document]:
    """Return documents by kind and name, without what cannot but differ.

    That is: Helm's own labels and the checksum that rolls a change out; the suffix of a generated
    ConfigMap's name, which does the same; whether a setting is in the file or in a variable, as
    effective settings are compared instead; the Namespace, which Helm has to be given; and the
    labels of OpenShift's objects, which have none in the overlay.
    """
    (config,) = (
        volume["configMap"]["name"]
        for volume in pod(documents)["volumes"]
        if volume["name"] == "config"
    )

    def without_what_differs(document: Document) -> None:
        for node in every_mapping(document):
            for label in HELM_S_OWN & node.keys():
                del node[label]
            if "checksum/config" in node.get("annotations", ()):
                del node["annotations"]["checksum/config"]
            if node.get("annotations") == {}:
                del node["annotations"]
            if node.get("name") == config:
                node["name"] = "hailo-agent"
            if "env" in node:
                node["env"] = [
                    variable
                    for variable in node["env"]
                    if not re.match("HAILO_AGENT_[A-Z]+__", variable["name"])
                ]
        if document["kind"] == "ConfigMap" and "config.yaml" in document["data"]:
            document["data"] = effective(documents).model_dump(mode="json")
        if document["kind"] in {"ClusterRole", "RoleBinding", "SecurityContextConstraints"}:
            document["metadata"].pop("labels", None)

    return {
        f"{plain['kind']}/{plain['metadata']['name']}": plain
        for plain in (spoiled(document, without_what_differs) for document in documents)
        if plain["kind"] != "Namespace"
    }


def every_mapping(node: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - any YAML
    """Return all mappings of a document, itself included."""
    match node:
        case dict():
            return [node, *(below for child in node.values() for below in every_mapping(child))]
        case list():
            return [below for child in node for below in every_mapping(child)]
        case _:
            return []


@pytest.mark.parametrize("case", SAME)
def test_the_chart_renders_to_what_the_kustomization_renders_to_and_is_valid(
    helm: Helm, case: str
) -> None:
    values, kustomization = SAME[case]
    documents = helm.render(values, namespace=namespace_of(values)).documents
    for version in (VERSIONS[0], VERSIONS[-1]):
        assert [fault for document in documents for fault in wrong(document, version)] == []
    ours = comparable(documents)
    theirs = comparable(kustomized(*kustomization))
    assert ours.keys() == theirs.keys()
    differences = {name: difference(theirs[name], ours[name]) for name in ours}
    assert {name: found for name, found in differences.items() if found} == {}


def test_there_are_values_for_each_overlay() -> None:
    assert sorted(path.stem for path in VALUES.iterdir()) == OVERLAYS


def test_values_of_a_distribution_and_of_monitoring_go_together(helm: Helm) -> None:
    both = helm.render({**values_of("k0s"), **values_of("monitoring")}).documents
    assert {document["kind"] for document in both} >= {"PodMonitor", "PrometheusRule"}
    assert settings(both)["kubelet.root"] == "/var/lib/k0s/kubelet"


# --- releases ------------------------------------------------------------------------------------


def test_everything_is_in_the_namespace_of_the_release_and_has_its_labels(helm: Helm) -> None:
    everything = on(
        *("openshift", "serviceMonitor", "prometheusRule", "dashboards", "networkPolicy")
    )
    documents = helm.render(everything, namespace="edge", release="boards").documents
    for document in documents:
        of_cluster = document["kind"] in {"ClusterRole", "SecurityContextConstraints"}
        assert document["metadata"].get("namespace") == (None if of_cluster else "edge")
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "boards"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/name"] == "hailo-agent"
    (subject,) = of_kind(documents, "RoleBinding")[0]["subjects"]
    assert (subject["name"], subject["namespace"]) == ("hailo-agent", "edge")


def test_every_selector_finds_the_pods(helm: Helm) -> None:
    documents = helm.render(on("serviceMonitor", "networkPolicy"), release="boards").documents
    labels = daemonset(documents)["spec"]["template"]["metadata"]["labels"]
    (service,), (policy,), (monitor,) = (
        of_kind(documents, kind) for kind in ("Service", "NetworkPolicy", "ServiceMonitor")
    )
    of_pods = [
        daemonset(documents)["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        policy["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in of_pods:
        assert selector["app.kubernetes.io/instance"] == "boards"
        assert selector.items() <= labels.items()
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    # A selector can never change, a version does.
    assert not [name for name in labels if "version" in name or "chart" in name]


def checksum(documents: Documents) -> str:
    """Return what rolls the DaemonSet out when it changes."""
    annotations: dict[str, str] = daemonset(documents)["spec"]["template"]["metadata"][
        "annotations"
    ]
    return annotations["checksum/config"]


def test_changed_settings_roll_the_daemonset_out_and_nothing_else_does(helm: Helm) -> None:
    before = checksum(helm.render().documents)
    assert checksum(helm.render({"config": {"log": {"level": "debug"}}}).documents) != before
    assert checksum(helm.render(on("usageMonitor")).documents) != before
    assert checksum(helm.render(on("podMonitor"), release="boards").documents) == before


def test_braces_of_prometheus_and_grafana_arrive_as_they_are(helm: Helm) -> None:
    documents = helm.render(values_of("monitoring")).documents
    (rule,) = of_kind(documents, "PrometheusRule")
    source = yaml.safe_load((MANIFESTS / "prometheus/rules.yaml").read_text())
    assert "{{" in json.dumps(source)
    assert rule["spec"] == source
    for document in of_kind(documents, "ConfigMap"):
        for name, text in document["data"].items():
            if name.endswith(".json"):
                assert json.loads(text) == json.loads((MANIFESTS / "grafana" / name).read_text())


# --- notes ---------------------------------------------------------------------------------------


def test_the_notes_tell_the_two_checks_that_people_know(helm: Helm) -> None:
    lines = [line.strip() for line in helm.render().notes.splitlines()]
    assert "kubectl get ds -n kube-system hailo-device-plugin" in lines
    assert (
        r"kubectl get nodes -o custom-columns=NAME:.metadata.name,"
        r"HAILO:.status.capacity.hailo\.ai/npu" in lines
    )


def test_the_notes_speak_of_what_was_installed(helm: Helm) -> None:
    notes = helm.render(
        {"daemonSetName": "boards", "config": {"resource": {"name": "edge.example.com/npu"}}},
        namespace="edge",
    ).notes
    assert "kubectl get ds -n edge boards\n" in notes
    assert r".status.capacity.edge\.example\.com/npu" in notes
    assert "limits: {edge.example.com/npu: 1}" in notes
    assert "kubectl exec -n edge ds/boards -c hailo-agent -- hailo-agent doctor" in notes
    assert "kubectl logs -n edge ds/boards -c hailo-agent" in notes
    assert "kube-system" not in notes


def test_the_notes_say_so_where_a_container_is_privileged_or_devices_are_simulated(
    helm: Helm,
) -> None:
    plain = helm.render().notes
    assert "privileged" not in plain
    assert "simulated" not in plain
    assert "privileged, because activeProbes.enabled" in helm.render(on("activeProbes")).notes
    assert "privileged, because notifications.enabled" in helm.render(on("notifications")).notes
    demo = helm.render(on("demo"))
    assert "simulated" in demo.notes
    (command,) = re.findall("kubectl exec .* -c machine .*", demo.notes)
    machine = next(arg for arg in container(demo.documents, "machine")["args"] if "--" in arg)
    assert f" {machine} pull" in command


# --- values that make no sense together ----------------------------------------------------------


CONTRADICTIONS: Final[dict[str, tuple[Values, str]]] = {
    "tag and digest": (
        {"image": {"tag": "1", "digest": f"sha256:{'0' * 64}"}},
        "image.tag and image.digest are both set",
    ),
    "what YAML cannot hold": (
        {"config": {"host": {"dev": "/\x7f"}}},
        "config has a control character",
    ),
    "both monitors": (
        on("podMonitor", "serviceMonitor"),
        "podMonitor.enabled and serviceMonitor.enabled are both on",
    ),
    "two kubelet roots": (
        {"config": {"kubelet": {"root": "/srv/kubelet"}}},
        "config.kubelet.root is /srv/kubelet, but kubeletRoot is /var/lib/kubelet",
    ),
    "two CDI directories": (
        {"config": {"runtime": {"cdi_dir": "/srv/cdi"}}},
        "config.runtime.cdi_dir is /srv/cdi, but cdi.dir is /var/run/cdi",
    ),
    "something else is mounted there": (
        {"cdi": {"dir": "/host/dev"}},
        "cdi.dir is /host/dev, where something else is mounted",
    ),
    "nobody listens": (
        {"config": {"web": {"listen": ""}}},
        'config.web.listen is "", where the kubelet\'s probes find nobody',
    ),
    "listening to oneself": (
        {"config": {"web": {"listen": "127.0.0.1:9808"}}},
        'config.web.listen is "127.0.0.1:9808", where',
    ),
    "any port": ({"config": {"web": {"listen": ":0"}}}, 'config.web.listen is ":0", where'),
    "a socket": (
        {"config": {"web": {"listen": "unix:/run/hailo-agent/web.sock"}}},
        'config.web.listen is "unix:/run/hailo-agent/web.sock", where',
    ),
    "privilege for nothing": (
        {**on("activeProbes"), "config": {"health": {"queries": "off"}}},
        "config.health.queries is off, but activeProbes",
    ),
    "privilege for notifications alone": (
        {**on("notifications"), "config": {"health": {"queries": "off"}}},
        "config.health.queries is off, but activeProbes",
    ),
    "queries without privilege": (
        {"config": {"health": {"queries": "on"}}},
        "config.health.queries is on, but only a privileged container",
    ),
    "notifications without privilege": (
        {"config": {"health": {"notifications": True}}},
        "config.health.notifications is true, but notifications.enabled is false",
    ),
    "notifications on and off": (
        {**on("notifications"), "config": {"health": {"notifications": False}}},
        "config.health.notifications is false, but notifications.enabled is true",
    ),
    "usage without its mount": (
        {"config": {"monitor": {"enabled": True}}},
        "config.monitor.enabled is true, but usageMonitor.enabled is false",
    ),
    "asking simulated chips": (
        on("demo", "activeProbes"),
        "demo.enabled goes with neither activeProbes nor notifications",
    ),
    "making devnodes on OpenShift": (
        on("demo", "openshift"),
        "demo.enabled and openshift.enabled are both on",
    ),
    "constraints where they do not hold": (
        {**on("openshift"), "nameOverride": "in-kube-system"},
        "openshift.enabled in namespace kube-system",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_values_that_make_no_sense_together_are_refused_in_words(helm: Helm, case: str) -> None:
    values, said = CONTRADICTIONS[case]
    namespace = "kube-system" if "nameOverride" in values else "hailo-agent"
    with pytest.raises(HelmError, match=re.escape(f"\n  - {said}")) as refusal:
        helm.render(values, namespace=namespace)
    assert str(refusal.value).count("\n  - ") == 1


def test_everything_that_makes_no_sense_is_said_at_once(helm: Helm) -> None:
    values = {
        **on("podMonitor", "serviceMonitor"),
        "image": {"tag": "1", "digest": f"sha256:{'0' * 64}"},
    }
    with pytest.raises(HelmError, match="make no sense together") as refusal:
        helm.render(values)
    assert str(refusal.value).count("\n  - ") == 2


@pytest.mark.parametrize("listen", [":9900", "0.0.0.0:9900", "[::]:9900"])
def test_another_port_is_followed_by_all_who_come_in(helm: Helm, listen: str) -> None:
    values = {
        **on("serviceMonitor", "networkPolicy"),
        "config": {"web": {"listen": listen}},
    }
    documents = helm.render(values).documents
    assert container(documents)["ports"] == [{"name": "http", "containerPort": 9900}]
    assert of_kind(documents, "Service")[0]["spec"]["ports"][0]["port"] == 9900
    (rule,) = of_kind(documents, "NetworkPolicy")[0]["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 9900}]


def test_what_nfd_found_is_asked_of_each_alternative(helm: Helm) -> None:
    hot = {"key": "rack", "operator": "In", "values": ["hot"]}
    cold = {"key": "rack", "operator": "In", "values": ["cold"]}
    preferred = [{"weight": 1, "preference": {"matchExpressions": [cold]}}]
    required = {
        "nodeSelectorTerms": [
            {"matchExpressions": [hot]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]},
        ]
    }
    values = {
        **on("nodeFeatureDiscovery"),
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": required,
                "preferredDuringSchedulingIgnoredDuringExecution": preferred,
            }
        },
    }
    affinity = pod(helm.render(values).documents)["affinity"]["nodeAffinity"]
    assert affinity["preferredDuringSchedulingIgnoredDuringExecution"] == preferred
    first, second = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (found,) = second["matchExpressions"]
    assert found["key"] == "feature.node.kubernetes.io/pci-0b40_1e60.present"
    assert first["matchExpressions"] == [hot, found]
    assert second["matchFields"] == required["nodeSelectorTerms"][1]["matchFields"]


# --- hack/deploy-helm ----------------------------------------------------------------------------

SCRIPT: Final = ROOT / "hack" / "deploy-helm"


def deploy(
    tmp_path: Path, *arguments: str, helm: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script with a helm that says what it was told."""
    stub = tmp_path / "helm"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HELM": helm or str(stub), **variables}
    return subprocess.run(
        [SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_the_script_installs_or_upgrades_with_the_values_named(tmp_path: Path) -> None:
    said = deploy(tmp_path, "k3s", "monitoring", "--", "--set", "image.tag=1")
    assert said.stdout.split() == [
        *("upgrade", "hailo-agent", "manifests/helm/hailo-agent", "--install"),
        *("--namespace", "kube-system"),
        *("--values", "manifests/helm/values/k3s.yaml"),
        *("--values", "manifests/helm/values/monitoring.yaml"),
        *("--set", "image.tag=1"),
    ]


def test_the_script_needs_no_argument(tmp_path: Path) -> None:
    said = deploy(tmp_path, RELEASE="boards", NAMESPACE="edge")
    assert said.stdout.split() == [
        *("upgrade", "boards", "manifests/helm/hailo-agent", "--install", "--namespace", "edge"),
    ]


def test_the_script_knows_the_namespace_that_openshift_needs(tmp_path: Path) -> None:
    assert "--namespace\nhailo-agent\n" in deploy(tmp_path, "openshift").stdout
    assert "--namespace\nedge\n" in deploy(tmp_path, "openshift", NAMESPACE="edge").stdout


def test_the_script_uninstalls(tmp_path: Path) -> None:
    said = deploy(tmp_path, "--uninstall")
    assert said.stdout.split() == [
        "uninstall",
        "hailo-agent",
        "--namespace",
        "kube-system",
        "--wait",
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["k3z"], "there are no values 'k3z', but: demo k0s k3s"),
        (
            ["--set", "image.tag=1"],
            "there is no option --set; what is meant for helm stands behind --",
        ),
        (["--uninstall", "k3s"], "--uninstall takes no values"),
    ],
)
def test_the_script_refuses_what_it_does_not_understand(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    said = deploy(tmp_path, *arguments)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith(f"deploy-helm: {complaint}")


def test_the_script_says_that_helm_is_missing_and_what_to_do_without(tmp_path: Path) -> None:
    said = deploy(tmp_path, helm="no-such-helm")
    assert (said.returncode, said.stdout) == (1, "")
    assert "needs no-such-helm, which is not installed" in said.stderr
    assert "kubectl apply -f manifests/hailo-agent.yaml" in said.stderr


def test_the_script_tells_how_it_is_used(tmp_path: Path) -> None:
    said = deploy(tmp_path, "--help", helm="no-such-helm")
    assert said.returncode == 0
    assert "hack/deploy-helm [NAME...]" in said.stdout
    assert "set -euo" not in said.stdout
