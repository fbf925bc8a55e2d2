"""What the agent's pods may do, on every distribution and with each switch: no more than needed."""

import re
from pathlib import PurePosixPath
from typing import Any

import pytest

import hailo_agent
from tests.manifests.conftest import RENDERINGS
from tests.manifests.rendered import (
    COMPONENTS,
    MANIFESTS,
    OVERLAYS,
    Document,
    Documents,
    container,
    daemonset,
    difference,
    documents,
    environment,
    files,
    kustomized,
    named,
    of_kind,
    pod,
    settings,
)

PLUGINS = "/var/lib/kubelet/device-plugins"
SPEC = "spec.template.spec"
AGENT = f"{SPEC}.containers.hailo-agent"
PRIVILEGED_BY = {"active-probes", "notifications", "everything"}


def privileged(rendering: str) -> bool:
    """Tell whether a rendering has a switch that needs privilege."""
    return not PRIVILEGED_BY.isdisjoint(rendering.split("+"))


# --- what it may not do --------------------------------------------------------------------------


def test_no_namespace_of_the_host_is_shared(rendered: Documents) -> None:
    spec = pod(rendered)
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"}
    ports = [port for one in spec["containers"] for port in one.get("ports", ())]
    assert not [port for port in ports if "hostPort" in port]


def test_every_right_is_dropped_unless_a_switch_needs_one(
    rendering: str, rendered: Documents
) -> None:
    for one in pod(rendered)["containers"]:
        context = one["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        # The kubelet's directories and sockets are root's.
        assert (context["runAsUser"], context["runAsGroup"]) == (0, 0)
        if one["name"] == "hailo-agent" and privileged(rendering):
            assert context["privileged"] is True
            # The API server refuses one, and the other would only seem to take something away.
            assert not context.keys() & {"allowPrivilegeEscalation", "capabilities"}
        else:
            assert context["privileged"] is False
            assert context["allowPrivilegeEscalation"] is False
            # The demo's machine makes devnodes.
            added = {"add": ["MKNOD"]} if one["name"] == "machine" else {}
            assert context["capabilities"] == {"drop": ["ALL"]} | added


def test_no_security_context_of_the_pod_weakens_that_of_its_containers(rendered: Documents) -> None:
    assert "securityContext" not in pod(rendered)


def test_the_api_server_is_never_spoken_to(rendered: Documents) -> None:
    spec = pod(rendered)
    assert spec["automountServiceAccountToken"] is False
    (account,) = of_kind(rendered, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert not [volume for volume in spec["volumes"] if volume.keys() & {"projected", "secret"}]


def test_no_right_in_the_api_is_granted_but_openshifts_way_of_admitting_pods(
    rendering: str, rendered: Documents
) -> None:
    rules = [rule for role in of_kind(rendered, "ClusterRole") for rule in role["rules"]]
    bound = of_kind(rendered, "RoleBinding")
    assert not of_kind(rendered, "ClusterRoleBinding") + of_kind(rendered, "Role")
    if not rendering.startswith("openshift"):
        assert not rules + bound
        return
    (rule,) = rules
    assert rule["verbs"] == ["use"]
    assert rule["resources"] == ["securitycontextconstraints"]
    (binding,) = bound
    (subject,) = binding["subjects"]
    account = (subject["kind"], subject["namespace"], subject["name"])
    assert account == ("ServiceAccount", "hailo-agent", "hailo-agent")


def test_services_of_the_namespace_put_no_variables_into_the_environment(
    rendered: Documents,
) -> None:
    # HAILO_AGENT_PORT=tcp://… would look like a misspelt setting.
    assert pod(rendered)["enableServiceLinks"] is False


# --- what of the node it sees --------------------------------------------------------------------


def test_only_directories_of_the_node_are_mounted(rendered: Documents) -> None:
    # A bind mount of a socket file stays the old socket when its owner makes a new one.
    for volume in pod(rendered)["volumes"]:
        if "configMap" in volume:
            continue
        assert volume.keys() == {"name", "hostPath"}
        path, kind = volume["hostPath"]["path"], volume["hostPath"]["type"]
        assert kind in {"Directory", "DirectoryOrCreate"}
        assert not PurePosixPath(path).suffix
        # Nothing is made up where the host's own must be there.
        assert (kind == "Directory") == (path in {PLUGINS, "/dev", "/sys"})
    for one in pod(rendered)["containers"]:
        assert not [mount for mount in one["volumeMounts"] if "subPath" in mount]


def mounts(rendered: Documents, name: str = "hailo-agent") -> dict[str, tuple[str, bool]]:
    """Return what of the node a container sees: its path there, by path, and whether to write."""
    sources = {
        volume["name"]: volume["hostPath"]["path"]
        for volume in pod(rendered)["volumes"]
        if "hostPath" in volume
    }
    return {
        mount["mountPath"]: (sources[mount["name"]], not mount.get("readOnly", False))
        for mount in container(rendered, name)["volumeMounts"]
        if mount["name"] in sources
    }


def on_the_host(rendered: Documents, path: str) -> tuple[str, bool]:
    """Tell where a path in the agent's container is on the node, and whether it can be written."""
    seen = mounts(rendered)
    below = [at for at in seen if PurePosixPath(path).is_relative_to(at)]
    assert below, f"{path} is not on the node"
    at = max(below, key=len)
    source, writable = seen[at]
    return str(PurePosixPath(source) / PurePosixPath(path).relative_to(at)), writable


def test_the_directory_of_device_plugins_is_the_same_everywhere(rendered: Documents) -> None:
    # A constant of the kubelet, which does not follow its --root-dir.
    assert settings(rendered)["kubelet.plugin_dir"] == PLUGINS
    assert mounts(rendered)[PLUGINS] == (PLUGINS, True)


def test_pods_and_their_devices_are_asked_for_where_the_kubelet_has_its_root(
    rendering: str, rendered: Documents
) -> None:
    root = settings(rendered)["kubelet.root"]
    assert root == {
        "k0s": "/var/lib/k0s/kubelet",
        "microk8s": "/var/snap/microk8s/common/var/lib/kubelet",
    }.get(rendering.split("+", maxsplit=1)[0], "/var/lib/kubelet")
    directory = f"{root}/pod-resources"
    assert mounts(rendered)[directory] == (directory, False)
    # Only its own: the kubelet's root has every pod's secrets in it.
    seen = {source for source, _ in mounts(rendered).values()}
    assert not seen & {root, "/var/lib/kubelet", "/", "/var", "/var/lib", "/run", "/etc"}


@pytest.mark.parametrize(
    ("key", "host_key"),
    [
        ("host.dev", "runtime.host_dev"),
        ("host.sys", "runtime.host_sys"),
        ("runtime.links_dir", "runtime.host_links_dir"),
        ("monitor.dir", "monitor.host_dir"),
    ],
)
def test_what_goes_into_the_spec_is_where_the_host_has_it(
    rendered: Documents, key: str, host_key: str
) -> None:
    known = settings(rendered)
    path, _ = on_the_host(rendered, known[key])
    assert path == known[host_key]


@pytest.mark.parametrize(
    "key",
    [
        "kubelet.plugin_dir",
        "runtime.cdi_dir",
        "runtime.links_dir",
        "subscribers.socket",
        "monitor.dir",
        "host.cordon_file",
    ],
)
def test_what_the_agent_writes_it_may_write_and_it_stays_on_the_node(
    rendered: Documents, key: str
) -> None:
    path = settings(rendered)[key]
    # At the same path, so that a log line means the same on both sides.
    assert on_the_host(rendered, path) == (path, True)


def test_cordons_outlive_a_reboot_and_a_spec_does_not(rendered: Documents) -> None:
    known = settings(rendered)
    volatile = ("/run/", "/var/run/")
    assert not on_the_host(rendered, known["host.cordon_file"])[0].startswith(volatile)
    assert on_the_host(rendered, known["runtime.cdi_dir"])[0].startswith(volatile)


def test_whatever_is_only_looked_at_cannot_be_written(rendered: Documents) -> None:
    writable = {path for path, (_, write) in mounts(rendered).items() if write}
    assert writable == {PLUGINS, "/var/run/cdi", "/run/hailo-agent", "/var/lib/hailo-agent"}


def test_all_directories_with_specs_are_read_but_where_there_can_be_none(
    rendering: str, rendered: Documents
) -> None:
    talos = rendering.startswith("talos")
    assert ("/etc/cdi" in mounts(rendered)) is not talos
    assert settings(rendered)["runtime.cdi_search_dirs"] == ["/etc/cdi", "/var/run/cdi"]


def test_the_settings_are_mounted_as_a_directory_and_the_variable_names_the_file(
    rendered: Documents,
) -> None:
    # A file mounted by itself (subPath) would not follow its ConfigMap.
    assert set(files(rendered)) == {environment(rendered)["HAILO_AGENT_CONFIG"]}
    config = named(container(rendered)["volumeMounts"])["config"]
    assert config == {"name": "config", "mountPath": "/etc/hailo-agent", "readOnly": True}


# --- where and how it runs -----------------------------------------------------------------------


def test_it_runs_on_every_node_and_is_the_last_to_be_evicted(
    rendering: str, rendered: Documents
) -> None:
    spec = pod(rendered)
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert ("affinity" in spec) is bool({"nfd", "everything"} & set(rendering.split("+")))


def test_nodes_without_a_device_are_left_out_if_somebody_labels_the_others() -> None:
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    affinity = pod(kustomized("base", "nfd"))["affinity"]["nodeAffinity"]
    assert affinity == {
        required: {
            "nodeSelectorTerms": [
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
        }
    }


def test_an_update_goes_through_the_nodes_and_never_runs_two_agents_on_one(
    rendered: Documents,
) -> None:
    strategy = daemonset(rendered)["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}
    assert pod(rendered)["terminationGracePeriodSeconds"] == 10


def test_the_environment_tells_node_and_pod_and_nothing_that_is_not_needed(
    rendered: Documents,
) -> None:
    variables = named(container(rendered)["env"])
    ours = {name for name in variables if not name.startswith("HAILO_AGENT_")}
    assert ours == {"NODE_NAME", "POD_UID"}
    for name, field in (("NODE_NAME", "spec.nodeName"), ("POD_UID", "metadata.uid")):
        assert variables[name] == {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}


def test_probes_wait_longer_than_the_agents_own_deadline(rendered: Documents) -> None:
    one = container(rendered)
    probes = {kind: one[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    for probe in probes.values():
        # /livez gives each of its services 2 s, and then names the culprit.
        assert probe["timeoutSeconds"] == 3
        assert probe["httpGet"]["port"] in named(one["ports"])
    paths = {kind: probe["httpGet"]["path"] for kind, probe in probes.items()}
    assert paths == {"startup": "/livez", "readiness": "/readyz", "liveness": "/livez"}
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] == 60
    assert probes["liveness"]["periodSeconds"] == 20
    assert probes["liveness"]["failureThreshold"] == 3
    assert probes["readiness"]["periodSeconds"] == 10


def test_the_port_is_the_one_that_the_agent_listens_on(rendered: Documents) -> None:
    (port,) = container(rendered)["ports"]
    assert port["name"] == "http"
    assert settings(rendered)["web.listen"] == f":{port['containerPort']}"


def test_every_container_says_what_it_needs_and_where_its_limit_is(rendered: Documents) -> None:
    expected = {
        "hailo-agent": {
            "requests": {"cpu": "20m", "memory": "80Mi"},
            "limits": {"cpu": "500m", "memory": "160Mi"},
        },
        "machine": {
            "requests": {"cpu": "10m", "memory": "48Mi"},
            "limits": {"cpu": "200m", "memory": "128Mi"},
        },
    }
    for one in pod(rendered)["containers"]:
        assert one["resources"] == expected[one["name"]]


def test_images_are_of_this_version_and_of_nobodys_registry(rendered: Documents) -> None:
    for one in pod(rendered)["containers"]:
        assert one["image"] == f"hailo-agent:{hailo_agent.__version__}"
        assert one["imagePullPolicy"] == "IfNotPresent"


def test_nothing_else_than_the_agent_runs_but_in_the_demo(
    rendering: str, rendered: Documents
) -> None:
    names = set(named(pod(rendered)["containers"]))
    demo = rendering.startswith("demo")
    assert names == ({"hailo-agent", "machine"} if demo else {"hailo-agent"})
    assert "initContainers" not in pod(rendered)


# --- what exactly a switch changes ---------------------------------------------------------------

PROBES: dict[str, tuple[Any, Any]] = {
    f"{AGENT}.env.HAILO_AGENT_HEALTH__QUERIES.name": (None, "HAILO_AGENT_HEALTH__QUERIES"),
    f"{AGENT}.env.HAILO_AGENT_HEALTH__QUERIES.value": (None, "on"),
    f"{AGENT}.securityContext.privileged": (False, True),
    f"{AGENT}.securityContext.allowPrivilegeEscalation": (False, None),
    f"{AGENT}.securityContext.capabilities.drop": (["ALL"], None),
}
NOTIFICATIONS = "HAILO_AGENT_HEALTH__NOTIFICATIONS"
MONITOR = "HAILO_AGENT_MONITOR__ENABLED"
AFFINITY = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
NFD = {
    "matchExpressions": [
        {
            "key": "feature.node.kubernetes.io/pci-0b40_1e60.present",
            "operator": "In",
            "values": ["true"],
        }
    ]
}


def moved(root: str) -> dict[str, tuple[Any, Any]]:
    """Return what differs where the kubelet's root is another."""
    ours, theirs = "/var/lib/kubelet/pod-resources", f"{root}/pod-resources"
    return {
        f"{AGENT}.env.HAILO_AGENT_KUBELET__ROOT.name": (None, "HAILO_AGENT_KUBELET__ROOT"),
        f"{AGENT}.env.HAILO_AGENT_KUBELET__ROOT.value": (None, root),
        **{
            f"{AGENT}.volumeMounts.{path}.{key}": (value, None) if path == ours else (None, value)
            for path in (ours, theirs)
            for key, value in (("mountPath", path), ("name", "pod-resources"), ("readOnly", True))
        },
        f"{SPEC}.volumes.pod-resources.hostPath.path": (ours, theirs),
    }


CHANGES: dict[tuple[str, ...], dict[str, tuple[Any, Any]]] = {
    ("base", "active-probes"): PROBES,
    ("base", "notifications"): PROBES
    | {
        f"{AGENT}.env.{NOTIFICATIONS}.name": (None, NOTIFICATIONS),
        f"{AGENT}.env.{NOTIFICATIONS}.value": (None, "true"),
    },
    ("base", "usage-monitor"): {
        f"{AGENT}.env.{MONITOR}.name": (None, MONITOR),
        f"{AGENT}.env.{MONITOR}.value": (None, "true"),
        f"{AGENT}.volumeMounts./run/hailo-agent.mountPropagation": (None, "HostToContainer"),
    },
    ("base", "nfd"): {f"{SPEC}.{AFFINITY}.nodeSelectorTerms": (None, [NFD])},
    ("base", "monitoring"): {},
    ("base", "network-policy"): {},
    ("base", "service-monitor"): {},
    ("overlays/k3s",): {},
    ("overlays/rke2",): {},
    ("overlays/monitoring",): {},
    ("overlays/k0s",): moved("/var/lib/k0s/kubelet"),
    ("overlays/microk8s",): moved("/var/snap/microk8s/common/var/lib/kubelet"),
    ("overlays/talos",): {
        f"{AGENT}.volumeMounts./etc/cdi.mountPath": ("/etc/cdi", None),
        f"{AGENT}.volumeMounts./etc/cdi.name": ("etc-cdi", None),
        f"{AGENT}.volumeMounts./etc/cdi.readOnly": (True, None),
        f"{SPEC}.volumes.etc-cdi.name": ("etc-cdi", None),
        f"{SPEC}.volumes.etc-cdi.hostPath.path": ("/etc/cdi", None),
        f"{SPEC}.volumes.etc-cdi.hostPath.type": ("DirectoryOrCreate", None),
    },
    ("overlays/openshift",): {
        "metadata.namespace": ("kube-system", "hailo-agent"),
        f"{AGENT}.securityContext.seLinuxOptions.type": (None, "container_device_plugin_t"),
    },
}


@pytest.mark.parametrize("arguments", CHANGES, ids="+".join)
def test_a_switch_changes_exactly_what_it_needs(arguments: tuple[str, ...]) -> None:
    before, after = daemonset(kustomized("base")), daemonset(kustomized(*arguments))
    assert difference(before, after) == CHANGES[arguments]


def test_every_switch_and_every_distribution_is_among_them() -> None:
    known = {argument[-1].removeprefix("overlays/") for argument in CHANGES}
    # The demo brings a second container, and has a test of its own.
    assert known == {*COMPONENTS, *OVERLAYS} - {"demo"}


@pytest.mark.parametrize(
    ("arguments", "brought"),
    [
        (("base", "active-probes"), []),
        (("base", "notifications"), []),
        (("base", "usage-monitor"), []),
        (("base", "nfd"), []),
        (("base", "network-policy"), ["NetworkPolicy"]),
        (("base", "service-monitor"), ["Service", "ServiceMonitor"]),
        (("base", "monitoring"), [*["ConfigMap"] * 3, "PodMonitor", "PrometheusRule"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else None,
)
def test_a_switch_brings_exactly_what_it_says(
    arguments: tuple[str, ...], brought: list[str]
) -> None:
    base = {(d["kind"], d["metadata"]["name"]) for d in kustomized("base")}
    after = {(d["kind"], d["metadata"]["name"]) for d in kustomized(*arguments)}
    assert after >= base
    assert sorted(kind for kind, _ in after - base) == brought


def test_openshift_admits_the_agent_and_nothing_stronger() -> None:
    (constraints,) = of_kind(kustomized("overlays/openshift"), "SecurityContextConstraints")
    granted = {key for key, value in constraints.items() if key.startswith("allow") and value}
    assert granted == {"allowHostDirVolumePlugin"}
    assert constraints["volumes"] == ["configMap", "hostPath"]
    assert constraints["runAsUser"] == {"type": "MustRunAs", "uid": 0}
    assert constraints["requiredDropCapabilities"] == ["ALL"]
    assert constraints["readOnlyRootFilesystem"] is True
    # Whoever it is for is said by the RoleBinding.
    assert constraints["users"] == constraints["groups"] == []


def test_openshift_admits_what_a_switch_needs_as_soon_as_it_is_on() -> None:
    def constraints(*components: str) -> Document:
        rendered = kustomized("overlays/openshift", *components)
        (found,) = of_kind(rendered, "SecurityContextConstraints")
        return found

    assert difference(constraints(), constraints(*COMPONENTS)) == {
        "allowPrivilegedContainer": (False, True),
        "allowPrivilegeEscalation": (False, True),
        "requiredDropCapabilities": (["ALL"], None),
    }


# --- the demo ------------------------------------------------------------------------------------


def test_in_the_demo_the_agent_looks_at_the_machine_that_the_other_container_makes() -> None:
    rendered = kustomized("overlays/demo")
    machine = container(rendered, "machine")
    verb, _, directory = " ".join(machine["args"]).partition("=")
    assert verb == "simulate --machine"
    # Both see it at the host's own path, which is what pods are given.
    assert mounts(rendered, "machine") == {"/run/hailo-agent": ("/run/hailo-agent", True)}
    known = settings(rendered)
    for key in ("host.dev", "runtime.host_dev"):
        assert known[key] == f"{directory}/dev"
    for key in ("host.sys", "runtime.host_sys"):
        assert known[key] == f"{directory}/sys"
    assert not machine.keys() & {"env", "ports"}


def test_in_the_demo_the_agent_is_the_same_but_for_where_it_looks_and_how_it_delivers() -> None:
    changed = difference(daemonset(kustomized("base")), daemonset(kustomized("overlays/demo")))
    ours = {path for path in changed if not path.startswith(f"{SPEC}.containers.machine.")}
    variables = {path.partition(".env.")[2].partition(".")[0] for path in ours}
    assert variables == {
        "HAILO_AGENT_HOST__DEV",
        "HAILO_AGENT_HOST__SYS",
        "HAILO_AGENT_RUNTIME__HOST_DEV",
        "HAILO_AGENT_RUNTIME__HOST_SYS",
        "HAILO_AGENT_RUNTIME__DELIVERY",
        "HAILO_AGENT_HEALTH__QUERIES",
    }


# --- statements ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", *OVERLAYS])
def test_78_the_daemonset_asks_for_no_more_than_a_device_plugin_needs(name: str) -> None:
    """Unprivileged unless nodes are opened, uid 0, identical paths, no access to the API."""
    rendered = kustomized(*RENDERINGS[name])
    spec, one = pod(rendered), container(rendered)
    context = one["securityContext"]
    assert context["privileged"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["runAsUser"] == 0
    # Paths that the kubelet or the runtime interprets are the same on both sides.
    for path, (source, _) in mounts(rendered).items():
        assert path in {source, f"/host{source}"}
    assert {"NODE_NAME", "POD_UID"} <= set(named(one["env"]))
    assert spec["priorityClassName"] == "system-node-critical"
    # As long as there is no DRA driver: no verb at all, hence no token of another node either.
    assert spec["automountServiceAccountToken"] is False
    assert not [
        rule
        for role in of_kind(rendered, "ClusterRole")
        for rule in role["rules"]
        if rule["verbs"] != ["use"]
    ]
    assert "maxSurge" not in daemonset(rendered)["spec"]["updateStrategy"]["rollingUpdate"]
    # SELinux' type is a value, which one distribution sets.
    selinux = context.get("seLinuxOptions")
    assert selinux == ({"type": "container_device_plugin_t"} if name == "openshift" else None)


def test_manifests_name_no_registry() -> None:
    # A host name before the first slash of an image, be it in a comment.
    host = re.compile(r"(?:image|newName): *\"?([a-z0-9-]+\.)+[a-z]+(:\d+)?/")
    for path in (MANIFESTS / "kustomize").rglob("*.yaml"):
        for found in host.finditer(path.read_text()):
            assert "registry.example.com" in found[0], path


def test_the_single_file_can_be_applied_in_one_go() -> None:
    # What others refer to comes first; the namespace is there on every cluster.
    kinds = [d["kind"] for d in documents((MANIFESTS / "hailo-agent.yaml").read_text())]
    assert kinds == ["ServiceAccount", "ConfigMap", "DaemonSet"]
