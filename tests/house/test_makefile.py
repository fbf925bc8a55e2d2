"""Every promised target exists, and says precisely what it lacks when it cannot do its work."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hailo_agent
from tests.house.repository import ROOT, make

PROMISED = [
    "actionlint",
    "bench",
    "build",
    "chart-check",
    "chart-package",
    "check-nodes",
    "clean",
    "demo",
    "deploy",
    "deploy-helm",
    "deploy-local",
    "docker-build",
    "docker-build-multiarch",
    "docker-push",
    "docs",
    "docs-serve",
    "e2e-long",
    "help",
    "image-check",
    "licences",
    "licences-check",
    "lint",
    "lock",
    "manifest",
    "manifests",
    "manifests-check",
    "proto",
    "proto-check",
    "pytest",
    "status",
    "test",
    "undeploy",
    "verify",
]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z0-9-]+):(?!=)", MAKEFILE, re.MULTILINE)
PYTHON = Path(sys.executable).resolve()


@pytest.mark.parametrize("target", PROMISED)
def test_a_promised_target_exists_and_is_explained(target: str) -> None:
    assert target in TARGETS
    assert re.search(rf"^  {target} +[A-Z].+", make("help").stdout, re.MULTILINE)


def test_help_is_what_bare_make_gives() -> None:
    assert make().stdout == make("help").stdout


def test_no_target_is_mistaken_for_a_file() -> None:
    assert set(TARGETS) == set(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE))


STANDARD = (
    *("awk", "bash", "cat", "dirname", "env", "find", "grep", "head", "make", "mkdir", "mktemp"),
    *("rm", "sed", "sh", "sleep", "sort", "tail"),
)


class Tools:
    """Commands that do nothing but write down how they were called, in the order of the calls."""

    def __init__(self, folder: Path) -> None:
        """Begin with those that any script needs, and none of those that a test is about."""
        self._bin = folder / "bin"
        self._calls = folder / "calls"
        self._bin.mkdir()
        # What a shell script may expect anywhere, and nothing else that may be installed here.
        for name in STANDARD:
            (self._bin / name).symlink_to(str(shutil.which(name)))

    def add(self, *names: str, script: str = "") -> "Tools":
        """Add commands; a script sees how it is called as "$*", and may answer, read or fail."""
        for name in names:
            path = self._bin / name
            path.unlink(missing_ok=True)  # it may be a link, and what it leads to is the machine's
            with path.open("x") as file:
                file.write(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >>{self._calls}\n')
                file.write(f"{script}\nexit 0\n")
            path.chmod(0o755)
        return self

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the repository that finds these tools, and no others."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env={"PATH": str(self._bin), "HOME": "/nonexistent"} | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run make with these tools."""
        return self.run("make", "--no-print-directory", *arguments)

    @property
    def calls(self) -> list[str]:
        """How they were called, but for the question whether a cluster answers."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [line for line in lines if not line.startswith("kubectl version ")]


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


NOBODY = "echo 'E1122 noise' >&2; echo 'The connection was refused' >&2; exit 1"
SELECTED = (
    "--namespace kube-system --selector"
    " app.kubernetes.io/name=hailo-agent,app.kubernetes.io/component=node-agent"
)
OURS = "daemonset/hailo-device-plugin --namespace kube-system"
IN_CLUSTER = ["deploy", "undeploy", "status", "check-nodes"]


@pytest.mark.parametrize(
    ("target", "variable"),
    [
        ("docker-build", "CONTAINERFILE"),
        ("docker-build-multiarch", "CONTAINERFILE"),
        ("deploy", "MANIFEST"),
        ("manifest", "MANIFEST"),
        ("undeploy", "MANIFEST"),
        ("undeploy", "UNINSTALL"),
    ],
)
def test_what_is_not_shipped_is_named(tools: Tools, target: str, variable: str) -> None:
    tools.add("kubectl", "docker")
    done = tools.make(target, f"{variable}=no/such-file")
    assert done.returncode != 0
    assert f"{target}: no/such-file is not part of this release yet" in done.stderr
    assert tools.calls == []


@pytest.mark.parametrize(
    ("target", "tool"),
    [
        ("docker-build", "docker"),
        ("docker-build-multiarch", "docker"),
        ("docker-push", "docker"),
        ("manifests", "kubectl"),
        ("manifests-check", "kubectl"),
        ("deploy-helm", "helm"),
        *((target, "kubectl") for target in IN_CLUSTER),
    ],
)
def test_a_missing_tool_is_named(tools: Tools, target: str, tool: str) -> None:
    done = tools.make(target, "REGISTRY=registry.example.com")
    assert done.returncode != 0
    assert re.match(rf"{target}: needs {tool}, which is not installed", done.stderr)


@pytest.mark.parametrize("target", IN_CLUSTER)
def test_a_cluster_that_cannot_be_reached_is_told_in_kubectls_own_words(
    tools: Tools, target: str
) -> None:
    done = tools.add("kubectl", script=NOBODY).make(target, "KUBECTL=kubectl --context pi")
    assert done.returncode != 0
    said = f"{target}: 'kubectl --context pi' reaches no cluster:\nThe connection was refused\n"
    assert done.stderr.startswith(said)
    assert tools.calls == ["kubectl --context pi version --request-timeout=10s"]


# Writes down which images are in a manifest that is applied.
READS = """
[[ " $* " == *" --filename - "* ]] &&
    sed -n "s/^ *image:/read image:/p" >>"${0%/bin/*}/calls"
"""
UNINSTALLS = [
    "kubectl apply --filename -",
    *["read image: hailo-agent:" + hailo_agent.__version__] * 2,
    "kubectl rollout status daemonset/hailo-agent-uninstall --namespace kube-system --timeout=300s",
    "kubectl delete --filename manifests/uninstall.yaml",
]


def test_deploy_applies_the_manifest_and_waits(tools: Tools) -> None:
    done = tools.add("kubectl", script=READS).make("deploy")
    assert done.returncode == 0, done.stderr
    assert tools.calls == [
        "kubectl apply --filename -",
        f"read image: hailo-agent:{hailo_agent.__version__}",
        f"kubectl rollout status {OURS} --timeout=5m",
    ]
    assert "names no registry, so each node must have it already" in done.stderr


def test_deploy_puts_the_image_that_is_given(tools: Tools) -> None:
    image = "registry.example.com/team/hailo-agent:1.2@sha256:abc"
    done = tools.add("kubectl", script=READS).make("deploy", f"IMAGE={image}")
    assert f"read image: {image}" in tools.calls
    assert done.stderr == ""


def test_what_is_deployed_and_does_not_run_is_a_failure(tools: Tools) -> None:
    fails = '[[ "$*" != rollout* ]] || exit 1; cat >/dev/null'
    done = tools.add("kubectl", script=fails).make("deploy")
    assert done.returncode != 0
    assert "deploy: applied, but not running on every node. Why: make status" in done.stderr


def test_undeploy_deletes_the_agent_then_cleans_the_nodes_then_itself(tools: Tools) -> None:
    done = tools.add("kubectl", script=READS).make("undeploy")
    assert done.returncode == 0, done.stderr
    asked, *rest = tools.calls
    assert asked.startswith("kubectl get daemonsets --all-namespaces")
    assert rest == [
        "kubectl delete --ignore-not-found --filename manifests/hailo-agent.yaml",
        f"kubectl delete daemonsets,configmaps,serviceaccounts --ignore-not-found {SELECTED}",
        f"kubectl wait pods --for=delete --timeout=60s {SELECTED}",
        *UNINSTALLS,
    ]


def test_undeploy_lets_helm_remove_what_helm_installed(tools: Tools) -> None:
    answers = f"""[[ "$*" != *managed-by=Helm* ]] || echo -n "pi edge two other "
[[ "$*" != "config view "* ]] || echo the cluster of kubectl
{READS}"""
    tools.add("helm", script='cat "$KUBECONFIG" >>"${0%/bin/*}/calls"')
    tools.add("kubectl", script=answers).make("undeploy")
    assert tools.calls[1:6] == [
        "kubectl config view --minify --flatten --raw",
        "helm uninstall pi --namespace edge --wait",
        "the cluster of kubectl",
        "helm uninstall two --namespace other --wait",
        "the cluster of kubectl",
    ]
    assert tools.calls[-len(UNINSTALLS) :] == UNINSTALLS


def test_nodes_that_are_not_clean_are_not_given_up(tools: Tools) -> None:
    fails = '[[ "$*" != rollout* ]] || exit 1; [[ "$*" != apply* ]] || cat >/dev/null'
    done = tools.add("kubectl", script=fails).make("undeploy")
    assert done.returncode != 0
    assert "component=uninstall -c uninstall --prefix" in done.stderr
    assert tools.calls[-1].startswith("kubectl rollout status")  # it stays, and goes on trying


def test_status_shows_daemonset_pods_and_last_words(tools: Tools) -> None:
    done = tools.add("kubectl", script="echo its $2").make("status")
    assert done.stdout == (
        "DaemonSet:\nits daemonset\n\nPods:\nits pods\n\nLast words:\nits --namespace\n"
    )
    assert tools.calls == [
        "kubectl get daemonset hailo-device-plugin --namespace kube-system",
        f"kubectl get pods {SELECTED} --output wide",
        f"kubectl logs {SELECTED} --container hailo-agent --prefix --tail=5",
    ]


def test_status_where_nothing_is_deployed_says_what_to_do(tools: Tools) -> None:
    done = tools.add("kubectl", script='[[ "$*" != get* ]] || exit 1').make("status")
    assert done.returncode != 0
    assert "status: not deployed here: make deploy" in done.stderr


def test_check_nodes_shows_name_and_devices_of_each_node(tools: Tools) -> None:
    tools.add("kubectl").make("check-nodes", "RESOURCE=hailo.ai/hailo-8")
    (asked,) = tools.calls
    assert asked == (
        "kubectl get nodes --output custom-columns=NAME:.metadata.name,"
        r"HAILO:.status.allocatable.hailo\.ai/hailo-8,CAPACITY:.status.capacity.hailo\.ai/hailo-8"
    )


def test_options_of_kubectl_are_passed_on(tools: Tools) -> None:
    tools.add("kubectl").make("check-nodes", "KUBECTL=kubectl --context pi")
    assert tools.calls[-1].startswith("kubectl --context pi get nodes ")


@pytest.mark.parametrize(
    ("variables", "called"),
    [
        ("", "--namespace kube-system"),
        ("NAMESPACE=edge", "--namespace edge"),
        ("VALUES=openshift", "--namespace hailo-agent --values {values}/openshift.yaml"),
        (
            "IMAGE=r.example.com:5000/x:1.2@sha256:abc",
            "--namespace kube-system --set image.repository=r.example.com:5000/x {digest}",
        ),
        (
            "IMAGE=r.example.com:5000/x:1.2",
            "--namespace kube-system --set image.repository=r.example.com:5000/x {tag}",
        ),
    ],
)
def test_deploy_helm_hands_on_what_is_given_and_nothing_else(
    tools: Tools, variables: str, called: str
) -> None:
    done = tools.add("helm").make("deploy-helm", *variables.split())
    assert done.returncode == 0, done.stderr
    (asked,) = tools.calls
    expected = called.format(
        values="manifests/helm/values",
        tag="--set image.tag=1.2",
        digest="--set image.digest=sha256:abc",
    )
    assert asked == f"helm upgrade hailo-agent manifests/helm/hailo-agent --install {expected}"


def test_docker_build_names_the_image_after_the_version(tools: Tools) -> None:
    tools.add("podman").make("docker-build", "DOCKER=podman")
    (asked,) = tools.calls
    assert asked.startswith("podman build --file container/Dockerfile ")
    assert f"--build-arg VERSION={hailo_agent.__version__} " in asked
    assert asked.endswith(f" --tag hailo-agent:{hailo_agent.__version__} .")


@pytest.mark.parametrize(
    ("variables", "called"),
    [
        ([], "--tag {image} --output type=oci,dest=build/hailo-agent.oci.tar ."),
        (["REGISTRY=r.example.com/t"], "--tag r.example.com/t/{image} --push ."),
    ],
)
def test_an_image_for_several_machines_is_a_file_or_pushed(
    tools: Tools, variables: list[str], called: str
) -> None:
    tools.add("docker").make("docker-build-multiarch", *variables)
    asked = tools.calls[-1]
    assert asked.startswith("docker buildx build --platform linux/amd64,linux/arm64 ")
    assert asked.endswith(called.format(image=f"hailo-agent:{hailo_agent.__version__}"))


def test_a_docker_without_buildx_is_told(tools: Tools) -> None:
    done = tools.add("docker", script="exit 1").make("docker-build-multiarch")
    assert "docker-build-multiarch: needs docker buildx, which is not installed" in done.stderr


def test_docker_push_wants_to_know_where_to(tools: Tools) -> None:
    done = tools.add("docker").make("docker-push")
    assert "docker-push: needs REGISTRY: make docker-push REGISTRY=registry" in done.stderr
    assert tools.calls == []


def test_docker_push_pushes_what_is_there(tools: Tools) -> None:
    image = f"hailo-agent:{hailo_agent.__version__}"
    tools.add("docker").make("docker-push", "REGISTRY=r.example.com/t")
    assert tools.calls == [
        f"docker image inspect {image}",
        f"docker tag {image} r.example.com/t/{image}",
        f"docker push r.example.com/t/{image}",
    ]


def test_docker_push_without_an_image_says_how_to_get_one(tools: Tools) -> None:
    done = tools.add("docker", script="exit 1").make("docker-push", "REGISTRY=r.example.com/t")
    assert f"no image hailo-agent:{hailo_agent.__version__} here: make docker-build" in done.stderr


# --- a cluster on this machine -------------------------------------------------------------------

IMAGE = f"hailo-agent:{hailo_agent.__version__}"
NODE_HAS_TWO = """
[[ "$*" != *"get nodes --output jsonpath"* ]] || echo 2
[[ "$*" != *"kustomize "* ]] || echo "  image: hailo-agent:0"
[[ "$*" != *" --filename -" ]] || cat >/dev/null
"""


def test_deploy_local_makes_a_cluster_with_the_image_and_the_demo(tools: Tools) -> None:
    tools.add("kind", "docker").add("kubectl", script=NODE_HAS_TWO)
    done = tools.make("deploy-local")
    assert done.returncode == 0, done.stderr
    calls = [call for call in tools.calls if " get nodes " not in call]
    newest = (ROOT / "hack" / "kind-nodes.txt").read_text().splitlines()[2].split()[1]
    assert calls[0].startswith("docker build ")
    assert calls[1:4] == [
        "kind get clusters",
        f"kind create cluster --name hailo --image {newest} --wait 120s",
        f"kind load docker-image {IMAGE} --name hailo",
    ]
    asked = [call.removeprefix("kubectl --context kind-hailo ") for call in calls[4:]]
    assert sorted(asked) == sorted(
        [
            f"get {OURS.replace('/', ' ')} --ignore-not-found --output name",
            "kubectl kustomize manifests/kustomize/overlays/demo",
            "apply --filename -",
            f"rollout status {OURS} --timeout 120s",
        ]
    )
    assert "ok: each node offers all of its simulated devices" in done.stdout


def test_deploy_local_brings_a_cluster_up_to_date(tools: Tools) -> None:
    there = NODE_HAS_TWO + '[[ "$*" != *"get daemonset"* ]] || echo hailo-agent machine\n'
    tools.add("kind", script="echo hailo").add("kubectl", script=there)
    done = tools.run("hack/kind-cluster", "up", IMAGE="mine:1")
    assert "needs docker, which is not installed" in done.stderr
    done = tools.add("docker").run("hack/kind-cluster", "up", IMAGE="mine:1")
    assert done.returncode == 0, done.stderr
    assert not [call for call in tools.calls if call.startswith(("docker build", "kind create"))]
    assert "kind load docker-image mine:1 --name hailo" in tools.calls
    assert [call for call in tools.calls if " rollout restart " in call]


def test_deploy_local_replaces_no_agent_that_has_real_devices(tools: Tools) -> None:
    there = NODE_HAS_TWO + '[[ "$*" != *"get daemonset"* ]] || echo hailo-agent\n'
    tools.add("kind", script="echo hailo").add("kubectl", script=there).add("docker")
    done = tools.run("hack/kind-cluster", "up", IMAGE="mine:1")
    assert done.returncode != 0
    assert "an agent that is no demo runs in this cluster" in done.stderr
    assert not [call for call in tools.calls if " apply " in call]


def test_a_local_cluster_is_never_another_one(tools: Tools) -> None:
    """Each command but rendering names the context, whatever the current one is."""
    tools.add("kind", "docker", "make", "sleep").add("kubectl", script=NODE_HAS_TWO)
    tools.run("hack/kind-cluster", "up", CLUSTER="mine", PATIENCE="0")
    tools.run("hack/kind-cluster", "check", CLUSTER="mine", PATIENCE="0")
    asked = [call for call in tools.calls if call.startswith("kubectl ")]
    assert len(asked) > 5
    for call in asked:
        assert call.startswith(("kubectl --context kind-mine ", "kubectl kustomize ")), call


# As much of a cluster as the check asks for: how many devices are offered is in a file.
CLUSTER = """
offered=${0%/bin/*}/offered
case "$*" in
    *"jsonpath={range .items"*allocatable*) cat "$offered" ;;
    *"jsonpath={range .items"*capacity*) echo 2 ;;
    *" simulate "*" pull hailo0") echo ${PULLED-1} >"$offered" ;;
    *" simulate "*" plug hailo0") echo 2 >"$offered" ;;
    *" --filename -") cat >"${0%/bin/*}/applied" ;;
    *"{.status.phase}"*) echo ${PHASE-Running} ;;
    *" -- hailo-agent holders"*) echo "hailo0 default/${HOLDER-hailo-agent-probe}" ;;
    *" logs hailo-agent-probe"*) echo devices: hailo0 ;;
esac
"""


@pytest.fixture
def cluster(tools: Tools, tmp_path: Path) -> Tools:
    """Pretend that a cluster is up, with the demo in it."""
    offered = tmp_path / "offered"
    offered.write_text("2\n")
    tools.add("kind", script='[[ "$1 $2" != "get nodes" ]] || echo hailo-control-plane')
    tools.add("make", script=f"echo ${{LEFT_OVER-0}} >{offered}")
    tools.add("docker", script='[[ -z "$LITTER" ]] || echo "$LITTER"')
    return tools.add("sleep").add("kubectl", script=CLUSTER)


def test_the_check_of_a_local_cluster_tries_everything(cluster: Tools, tmp_path: Path) -> None:
    done = cluster.run("hack/kind-cluster", "check", PATIENCE="5")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if " ok: " in line] == [
        "kind-cluster: ok: each node offers all of its simulated devices",
        "kind-cluster: ok: a pod that asks for one device has one (devices: hailo0)",
        "kind-cluster: ok: the agent knows which pod holds it",
        "kind-cluster: ok: a device that is pulled is no longer offered",
        "kind-cluster: ok: a device that is plugged in again is offered",
        "kind-cluster: ok: no node offers a device any more",
        "kind-cluster: ok: nothing is left on the nodes",
    ]
    pod = yaml.safe_load((tmp_path / "applied").read_text())
    (container,) = pod["spec"]["containers"]
    assert container["image"] == IMAGE
    assert container["resources"]["limits"] == {"hailo.ai/npu": 1}
    compile(container["command"][2], "the pod's script", "exec")
    (undeployed,) = (call for call in cluster.calls if call.startswith("make "))
    assert " undeploy KUBECTL=kubectl --context kind-hailo MANIFEST=" in undeployed


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PHASE": "Failed"}, "the pod did not find exactly one device: devices: hailo0"),
        ({"HOLDER": "other"}, "not within 0 s: the agent knows which pod holds it"),
        ({"PULLED": "2"}, "not within 0 s: a device that is pulled is no longer offered"),
        ({"LEFT_OVER": "2"}, "not within 0 s: no node offers a device any more"),
        ({"LITTER": "/run/hailo-agent"}, "left behind on a node: hailo-control-plane: /run/hailo"),
    ],
)
def test_the_check_of_a_local_cluster_can_fail(
    cluster: Tools, variables: dict[str, str], said: str
) -> None:
    done = cluster.run("hack/kind-cluster", "check", PATIENCE="0", **variables)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("known", ["minikube", "k3s"])
def test_other_clusters_than_kinds_will_do(tools: Tools, known: str) -> None:
    tools.add("docker").add("kubectl", "k3s", "minikube", script=NODE_HAS_TWO)
    done = tools.run("hack/kind-cluster", "up", PROVIDER=known)
    assert done.returncode == 0, done.stderr
    loaded = {
        "minikube": f"minikube image load {IMAGE} --profile hailo",
        "k3s": "k3s ctr images import -",
    }
    assert loaded[known] in tools.calls
    ours = {"minikube": "kubectl --context hailo ", "k3s": "k3s kubectl "}
    assert f"{ours[known]}apply --filename -" in tools.calls


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["up"], {}, "needs kind, minikube or k3s, and none of them is installed"),
        (["up"], {"PROVIDER": "kind"}, "needs kubectl, which is not installed"),
        (["up"], {"PROVIDER": "vagrant"}, "known are kind, minikube and k3s"),
        ([], {}, "up, check or down?"),
        (["up", "now"], {}, "up takes no arguments"),
    ],
)
def test_what_a_local_cluster_lacks_is_told(
    tools: Tools, arguments: list[str], variables: dict[str, str], said: str
) -> None:
    done = tools.run("hack/kind-cluster", *arguments, **variables)
    assert done.returncode != 0
    assert said in done.stderr


def test_a_version_of_kubernetes_that_is_not_there_is_told_before_anything_is_done(
    tools: Tools,
) -> None:
    tools.add("kind", "docker", "kubectl")
    done = tools.run("hack/kind-cluster", "up", KUBERNETES="1.2")
    assert done.returncode != 0
    assert "KUBERNETES=1.2 is not in hack/kind-nodes.txt; there are: 1.37 " in done.stderr
    assert tools.calls == []


@pytest.mark.parametrize(
    ("lacking", "said"),
    [("ensurepip", "apt-get install python3-venv"), ("version_info", "Python 3.11 or later")],
)
def test_an_unsuitable_python_is_told_how_to_be_mended(
    tmp_path: Path, lacking: str, said: str
) -> None:
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{lacking}*) exit 1 ;; esac\nexec {PYTHON} "$@"\n')
    python.chmod(0o755)
    result = make("venv", PYTHON=str(python), VENV=str(tmp_path / "venv"))
    assert result.returncode != 0
    assert said in result.stderr
    assert not (tmp_path / "venv").exists()


def test_no_python_at_all_is_told_too(tmp_path: Path) -> None:
    result = make("venv", PYTHON="/no/such/python3", VENV=str(tmp_path / "venv"))
    assert result.returncode != 0
    assert "'/no/such/python3' does not run" in result.stderr


# What each script that only hands on to make is for.
HANDED_ON = {
    "build": "build",
    "unit-test": "pytest",
    "verify-chart": "chart-check",
    "verify-docs": "docs",
    "verify-image": "image-check",
    "verify-licences": "licences-check",
    "verify-lint": "lint",
    "verify-manifests": "manifests-check",
    "verify-proto": "proto-check",
}


@pytest.mark.parametrize(("script", "target"), HANDED_ON.items())
def test_a_script_that_hands_on_to_make_names_a_target(
    tools: Tools, script: str, target: str
) -> None:
    tools.add("make").run(f"hack/{script}", "X=1")
    assert target in TARGETS
    assert tools.calls == [f"make --no-print-directory -C hack/.. {target} X=1"]


def test_scripts_can_be_run_and_say_what_they_are_for() -> None:
    hack = [p for p in (ROOT / "hack").iterdir() if p.is_file() and not p.suffix]
    scripts = [ROOT / ".ci" / "run", *hack]
    assert {*HANDED_ON, "actionlint", "deploy-helm", "kind-cluster"} <= {s.name for s in scripts}
    for script in scripts:
        shebang, comment, *_ = script.read_text().splitlines()
        assert script.stat().st_mode & stat.S_IXUSR, script
        assert shebang.startswith("#!"), script
        assert comment.startswith("# "), script


def test_ci_runs_what_people_run() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
