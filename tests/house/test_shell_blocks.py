"""Every command that a page tells people to type is one that there is.

Our own verbs and flags go through our own parser, make's targets are the Makefile's, what kubectl
and helm are given is compared with the manifests and the chart, and every path of the repository
exists. What cannot be checked here stands in one of the tables below, with a reason; a row that no
page needs any more fails.
"""

import json
import re
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from hailo_agent.cli import parser
from hailo_agent.errors import ConfigError
from hailo_agent.settings import flags_from, load
from tests.house.pages import Block, blocks, name, pages, spans
from tests.house.repository import ROOT, text_files
from tests.house.shell import Command, NotShell, commands, script

KUBERNETES: Final = "1.34"
SHELL_TAGS: Final = {"", "sh", "bash", "shell", "console"}

NO_COMMANDS: Final = {
    (
        "CONTRIBUTING.md",
        "kubelet: register again when kubelet.sock is replaced",
    ): "a commit message",
    ("README.md", "WHY LOOK?"): "a drawing",
    ("docs/explanation/architecture.md", "WHY LOOK?"): "a drawing",
    ("docs/explanation/architecture.md", "__main__"): "a drawing",
    ("docs/explanation/health-and-gone-devices.md", "seen again"): "a drawing",
    ("docs/how-to/develop-against-a-real-kernel.md", "kernel -> list"): "output of its test",
    ("docs/how-to/read-the-doctor.md", "ok"): "output; tests/doctor compares it",
    ("docs/how-to/read-the-doctor.md", "broken"): "output; tests/doctor compares it",
    ("docs/how-to/read-the-doctor.md", "degraded"): "output; tests/doctor compares it",
    ("docs/how-to/read-the-doctor.md", "unseen"): "output; tests/doctor compares it",
    ("docs/reference/doctor.md", "hailo-agent doctor [--json]"): "a synopsis",
    ("docs/reference/verbs.md", "hailo-agent VERB"): "a synopsis",
    ("docs/tutorial/five-minutes.md", "4. A module"): "output of the demo, whose times differ",
    ("docs/tutorial/five-minutes.md", "> pod camera"): "output of the playground",
}
"""Blocks without a tag that hold no commands: page, how the block begins, and what it is."""

LOOKED_AT_NO_FURTHER: Final = {
    "every system has it": {
        ":", "cat", "cd", "chcon", "cp", "curl", "dmesg", "exit", "export", "for", "grep",
        "hostname", "install", "jq", "kill", "ln", "ls", "mkdir", "printf", "readlink", "reboot",
        "rm", "sed", "sha256sum", "sleep", "tar", "unset", "wait",
    },
    "the distribution's, not ours": {
        "apt", "apt-get", "busybox", "k0s", "k3s", "microk8s", "rpi-eeprom-update", "snap",
        "talosctl",
    },
    "the container engine's; their options are tried in tests/e2e": {"docker", "podman", "run"},
    "Hailo's": {"hailortcli"},
    "other people's tools": {"alloy", "fluent-bit", "vector", "kind", "minikube", "skopeo"},
    "Python's": {"pip", "pytest", "python", "python3"},
}  # fmt: skip
"""Programs of which only the paths that they are given are checked."""

OTHER_NAMES: Final = {
    "namespaces": {"hailo-agent"},
    "made on the page itself": {"hailo-dashboards"},
}
"""Names of Kubernetes objects that are in pages, but in no manifest of ours."""

KUBECTL_TAKES_A_VALUE: Final = {
    "-c", "--container", "-f", "--filename", "--field-selector", "--for", "--from-file", "--image",
    "-k", "--kustomize", "-l", "--selector", "-n", "--namespace", "-o", "--output", "--overrides",
    "--restart", "--since", "--tail", "--timeout", "-p", "--patch", "--type", "--sort-by",
    "--from-literal", "--grace-period",
}  # fmt: skip
KUBECTL_SWITCHES: Final = {
    "-A", "--all", "--all-namespaces", "-i", "--ignore-not-found", "-it", "--previous", "--raw",
    "--watch", "-w", "--rm", "--server-side", "--follow", "--prefix",
    "--ignore-daemonsets", "--delete-emptydir-data",
}  # fmt: skip
HELM_TAKES_A_VALUE: Final = {
    "-f", "--values", "-n", "--namespace", "--set", "--set-json", "--set-string", "--version",
    "--timeout",
}  # fmt: skip
HELM_SWITCHES: Final = {
    "--install", "--wait", "--create-namespace", "--reuse-values", "--dry-run", "--atomic",
    "--reset-then-reuse-values",
}  # fmt: skip


def begins(block: Block) -> tuple[str, str] | None:
    """Tell the row of NO_COMMANDS that a block is meant by."""
    return next(
        (
            row
            for row in NO_COMMANDS
            if row[0] == block.page and block.first_line.startswith(row[1])
        ),
        None,
    )


def shell_blocks() -> Iterator[Block]:
    for block in blocks():
        if block.tag in SHELL_TAGS and not begins(block):
            yield block


SHELL_BLOCKS: Final = list(shell_blocks())


# --- the repository, the manifests and the chart -------------------------------------------------


@cache
def objects() -> tuple[dict[str, Any], ...]:
    """List every object of the rendered manifests."""
    paths = [ROOT / "manifests" / "hailo-agent.yaml", ROOT / "manifests" / "uninstall.yaml"]
    return tuple(each for path in paths for each in yaml.safe_load_all(path.read_text()) if each)


@cache
def top_of_repository() -> set[str]:
    """List the directories that a path in a page begins with if it is one of the repository."""
    return {path.relative_to(ROOT).parts[0] for path in text_files()} | {".venv"}


@cache
def names_of_objects() -> set[str]:
    others = {name for names in OTHER_NAMES.values() for name in names}
    return {each["metadata"]["name"] for each in objects()} | others


def pods_labels() -> list[dict[str, str]]:
    return [
        each["spec"]["template"]["metadata"]["labels"]
        for each in objects()
        if each["kind"] == "DaemonSet"
    ]


@cache
def containers() -> set[str]:
    demo = ROOT / "manifests" / "kustomize" / "overlays" / "demo"
    named = re.findall(
        r"^ *- name: (machine)$", "".join(p.read_text() for p in demo.glob("*.yaml")), re.MULTILINE
    )
    return {
        container["name"]
        for each in objects()
        if each["kind"] == "DaemonSet"
        for kind in ("containers", "initContainers")
        for container in each["spec"]["template"]["spec"].get(kind, ())
    } | set(named)


@cache
def makefile() -> str:
    return (ROOT / "Makefile").read_text()


@cache
def our_parser() -> ArgumentParser:
    return parser()


# --- what is said of a command -------------------------------------------------------------------


def complaints(command: Command, page: str) -> Iterator[str]:
    """Say what of a command is not so."""
    yield from missing_paths(command.words)
    words = command.words
    if words[:2] in (
        ["k3s", "kubectl"],
        ["k0s", "kubectl"],
        ["microk8s", "kubectl"],
        ["microk8s", "helm3"],
    ):
        words = words[1:]
    match words[0].rpartition("/")[2] if words else "":
        case "hailo-agent":
            yield from of_ours(words[1:], command.variables)
        case "make":
            yield from of_make(words[1:])
        case "kubectl" | "oc":
            yield from of_kubectl(words[1:], page)
        case "helm" | "helm3":
            yield from of_helm(words[1:])
        case "systemctl":
            yield from of_systemctl(words[1:])
        case "python" | "python3" if "-m" in words:
            yield from of_python(words[words.index("-m") + 1])
        case "":
            pass
        case program:
            if program not in {name for names in LOOKED_AT_NO_FURTHER.values() for name in names}:
                yield f"{program} is in no table of {Path(__file__).name}"


def is_there(path: str) -> bool:
    """Whether a path of the repository exists; these tests may run in an environment elsewhere."""
    if path.startswith(".venv/bin/"):
        return Path(sys.executable).with_name(Path(path).name).exists()
    return any(True for _ in ROOT.glob(path))


def missing_paths(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        path = word.rpartition("=")[2]
        parts = Path(path.removeprefix("@")).parts
        is_ours = len(parts) > 1 and parts[0] in top_of_repository() and not path.startswith("/")
        if is_ours and parts[0] not in {"dist", "build"} and not is_there(path):
            yield f"the repository has no {path}"


def of_ours(words: Sequence[str], variables: Mapping[str, str]) -> Iterator[str]:
    try:
        arguments, unknown = our_parser().parse_known_args(list(words))
        ours = {
            k: v
            for k, v in variables.items()
            if k.startswith("HAILO_AGENT_") and k != "HAILO_AGENT_CONFIG"
        }
        load(flags=flags_from(arguments, unknown), environ=ours, config=None)
    except SystemExit as end:
        if end.code:
            yield f"hailo-agent {' '.join(words)} is not understood"
    except ConfigError as error:
        yield str(error)


def of_python(module: str) -> Iterator[str]:
    if module.partition(".")[0] in top_of_repository() and not find_spec(module):
        yield f"there is no module {module}"


def of_make(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \?=" if is_variable else rf"^{name}:(?!=)"
        used = is_variable and f"$({name})" in makefile()
        if (
            not word.startswith("-")
            and not re.search(pattern, makefile(), re.MULTILINE)
            and not used
        ):
            yield f"the Makefile has no {name}"


def options(
    words: Sequence[str], values: set[str], switches: set[str]
) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Part a command line into options, the rest, and what is in no table."""
    given: dict[str, list[str]] = {}
    rest: list[str] = []
    unknown: list[str] = []
    ahead = iter(words)
    for word in ahead:
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            rest.append(word)
        elif name in values:
            given.setdefault(name, []).append(value if equals else next(ahead, ""))
        elif name in switches or name == "--dry-run":
            given.setdefault(name, []).append(value)
        else:
            unknown.append(word)
    return given, rest, unknown


def of_kubectl(words: Sequence[str], page: str) -> Iterator[str]:
    before, inside = split_at(words)
    given, rest, unknown = options(before, KUBECTL_TAKES_A_VALUE, KUBECTL_SWITCHES)
    for word in unknown:
        yield f"kubectl {word} is in no table of {Path(__file__).name}"
    yield from what_kubectl_reads(given, page)
    yield from what_kubectl_names(given, rest)
    if inside and any(word.endswith("/hailo-device-plugin") for word in rest):
        if inside[0] == "hailo-agent":
            yield from of_ours(inside[1:], {})
        else:
            yield f"the image has no {inside[0]}, only hailo-agent"


def split_at(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Part what kubectl is given from what it is to run."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def both(given: Mapping[str, list[str]], short: str, long: str) -> list[str]:
    return [*given.get(short, []), *given.get(long, [])]


def what_kubectl_reads(given: Mapping[str, list[str]], page: str) -> Iterator[str]:
    for file in both(given, "-f", "--filename"):
        if file != "-" and not (ROOT / file).is_file() and not is_written_on(page, file):
            yield f"neither the repository nor the page has {file}"
    for directory in both(given, "-k", "--kustomize"):
        if directory == ".":
            if not is_written_on(page, "kustomization.yaml"):
                yield "the page has no kustomization.yaml"
        elif not (ROOT / directory / "kustomization.yaml").is_file():
            yield f"{directory} is nothing for kustomize"
    for overrides in given.get("--overrides", []):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}} | json.loads(overrides)
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def what_kubectl_names(given: Mapping[str, list[str]], rest: Sequence[str]) -> Iterator[str]:
    for namespace in both(given, "-n", "--namespace"):
        if namespace not in {"kube-system", *OTHER_NAMES["namespaces"]}:
            yield f"nothing of ours is in the namespace {namespace}"
    for selector in both(given, "-l", "--selector"):
        wanted = dict(pair.split("=", 1) for pair in selector.split(",") if "=" in pair)
        if not any(wanted.items() <= labels.items() for labels in pods_labels()):
            yield f"no pod of ours has the labels {selector}"
    for container in both(given, "-c", "--container"):
        if container not in containers():
            yield f"no pod of ours has a container {container}"
    for word in rest:
        name = word.rpartition("/")[2]
        if re.fullmatch(r"hailo[a-z-]*", name) and name not in names_of_objects():
            yield f"no manifest has an object {name}"


def is_written_on(page: str, file: str) -> bool:
    """Tell whether a page has a block for the file, or writes it by a command."""
    on_page = [block for block in blocks() if block.page == page]
    headed = any(re.match(rf"# {re.escape(file)}\b", block.first_line) for block in on_page)
    return headed or any(
        file in command.written
        for block in on_page
        if block in SHELL_BLOCKS
        for command in commands(script(block.text))
    )


def of_helm(words: Sequence[str]) -> Iterator[str]:
    given, rest, unknown = options(words, HELM_TAKES_A_VALUE, HELM_SWITCHES)
    for word in unknown:
        yield f"helm {word} is in no table of {Path(__file__).name}"
    chart = ROOT / "manifests" / "helm" / "hailo-agent"
    values = yaml.safe_load((chart / "values.yaml").read_text())
    for file in [*given.get("-f", []), *given.get("--values", [])]:
        if "/" in file and not (ROOT / file).is_file():
            yield f"the repository has no {file}"
    for one in [
        *given.get("--set", []),
        *given.get("--set-string", []),
        *given.get("--set-json", []),
    ]:
        key = one.partition("=")[0]
        if not has_key(values, key.split(".")):
            yield f"the chart has no value {key}"
    for one in given.get("--set-json", []):
        json.loads(one.partition("=")[2])
    if (
        rest[0] in {"install", "upgrade"}
        and len(rest) > 2
        and "/" in rest[2]
        and not (ROOT / rest[2] / "Chart.yaml").is_file()
    ):
        yield f"{rest[2]} is no chart"


def has_key(values: object, keys: Sequence[str]) -> bool:
    if not keys or values == {}:
        return True
    return isinstance(values, dict) and keys[0] in values and has_key(values[keys[0]], keys[1:])


def of_systemctl(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        unit = ROOT / "manifests" / "systemd" / f"{word.removesuffix('.service')}.service"
        if word.startswith("hailo") and not unit.exists():
            yield f"there is no unit {word}"


# --- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_every_command_of_a_page_is_one_that_there_is(block: Block) -> None:
    try:
        found = list(commands(script(block.text)))
    except NotShell as error:
        pytest.fail(f"neither a shell block nor in NO_COMMANDS; stuck at {error}")
    assert found
    assert [c for command in found for c in complaints(command, block.page)] == []


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_command_within_a_line_is_one_that_there_is(page: Path) -> None:
    typed = [span for span in spans(page) if re.match(r"(make|hailo-agent|kubectl|helm) \w", span)]
    found = [c for span in typed for c in commands(span)]
    assert [said for command in found for said in complaints(command, name(page))] == []


def test_every_block_of_commands_is_read_by_a_shell() -> None:
    # <class> stands for what the reader has there; to a shell it would be two redirections.
    texts = [re.sub(r"<[a-z]+>", "PLACE", script(block.text)) for block in SHELL_BLOCKS]
    together = "\n".join(f"f{n}() {{\n{text}\n}}" for n, text in enumerate(texts))
    result = subprocess.run(
        ["bash", "-n"], input=together, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_no_row_of_a_table_is_stale() -> None:
    assert {begins(block) for block in blocks() if block.tag in SHELL_TAGS} >= set(NO_COMMANDS)
    used = {c.program for block in SHELL_BLOCKS for c in commands(script(block.text))}
    used |= {c.words[1] for b in SHELL_BLOCKS for c in commands(script(b.text)) if len(c.words) > 1}
    listed = [name for names in LOOKED_AT_NO_FURTHER.values() for name in names]
    assert sorted(name for name in listed if name not in used) == []
    assert len(listed) == len(set(listed))
    text = "".join(block.text for block in SHELL_BLOCKS)
    assert [name for names in OTHER_NAMES.values() for name in names if name not in text] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hailo-agent device", "not understood"),
        ("hailo-agent devices --jsn", "--jsn"),
        ("hailo-agent run --log.depth=debug", "log.depth"),
        ("HAILO_AGENT_LOG__LEVEL=loud hailo-agent run", "loud"),
        ("make no-such-target", "the Makefile has no no-such-target"),
        ("make status NAMESPAC=x", "NAMESPAC"),
        ("kubectl apply -f manifests/no.yaml", "manifests/no.yaml"),
        ("kubectl apply -k manifests/kustomize/overlays/no", "overlays/no"),
        ("kubectl logs -n kube-sytem ds/hailo-device-plugin", "kube-sytem"),
        ("kubectl logs -n kube-system ds/hailo-agent-plugin", "hailo-agent-plugin"),
        ("kubectl get pods -l app=hailo-agent", "app=hailo-agent"),
        ("kubectl exec ds/hailo-device-plugin -- sh", "only hailo-agent"),
        ("kubectl exec ds/hailo-device-plugin -- hailo-agent expound x", "not understood"),
        ("kubectl get pods --bogus", "--bogus"),
        ("cat docs/no-such.md", "docs/no-such.md"),
        ("systemctl enable hailo-agent", "no unit"),
        ("frobnicate", "in no table"),
        (".venv/bin/python -m hack.no_such", "no module hack.no_such"),
        ("echo $(hailo-agent no-verb)", "not understood"),
        ("true && hailo-agent no-verb", "not understood"),
        ("# hailo-agent no-verb\noutput", "not understood"),
        ("helm install hailo-agent manifests/helm/hailo-agent --set imag.tag=1", "imag.tag"),
        ("helm install hailo-agent manifests/helm/no", "manifests/helm/no"),
    ],
)
def test_a_mistake_on_a_page_is_found(text: str, said: str) -> None:
    found = [c for command in commands(script(text)) for c in complaints(command, "README.md")]
    assert any(said in complaint for complaint in found), found
