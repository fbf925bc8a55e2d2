"""Real Helm, for tests: templates rendered by the engine itself, without a cluster.

The package helm-sdkpy is Helm as a Go library. It can install, but not render: `helm template` is
not among what it exports. So `helm_process` installs for real, into an API server that has no
object yet, and what Helm says it made is what it rendered.

The library lives in a process of its own, one for each process of pytest. That is not only because
Go's runtime brings threads and signal handlers along: it reads its environment as it was when the
process began, and in there is that releases are kept in memory and that no home directory is used.
"""

import atexit
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from hailo_agent.settings import Settings, load
from hailo_agent.settings.leaves import CONFIG_VARIABLE
from tests.e2e.ability import lacking
from tests.manifests.rendered import MANIFESTS, Documents, documents, environment, files

CHART: Final = MANIFESTS / "helm" / "hailo-agent"
VALUES: Final = MANIFESTS / "helm" / "values"

NAMESPACE: Final = "kube-system"
NAME: Final = "hailo-agent"
"""Of the release, where a test does not say otherwise."""
KUBERNETES: Final = "v1.34.0"
"""The version that the API server says it has, where a test does not say otherwise."""

PROCESS: Final = Path(__file__).with_name("helm_process.py")


class HelmError(Exception):
    """Raised when Helm refuses; the text is Helm's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What one set of values makes of the chart."""

    documents: Documents
    notes: str


class Helm:
    """The process in which Helm lives."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="helm-")
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": self._home.name,
            "HELM_DRIVER": "memory",
            # Requests are counted lest an API server be flooded; this one does not mind.
            "HELM_QPS": "100000",
            "HELM_BURST_LIMIT": "100000",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(PROCESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=environment,
        )

    def render(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        namespace: str = NAMESPACE,
        release: str = NAME,
        kubernetes: str = KUBERNETES,
        chart: Path = CHART,
    ) -> Release:
        """Return what these values make of the chart."""
        answer = self._ask(
            do="render",
            chart=str(chart),
            values=values or {},
            namespace=namespace,
            release=release,
            kubernetes=kubernetes,
        )
        return Release(documents=documents(answer["manifest"]), notes=answer["notes"])

    def lint(self, chart: Path = CHART) -> dict[str, Any]:
        """Return what `helm lint` finds."""
        return cast("dict[str, Any]", self._ask(do="lint", chart=str(chart)))

    def package(self, directory: Path, chart: Path = CHART) -> Path:
        """Return the archive that the chart was packed into."""
        return Path(self._ask(do="package", chart=str(chart), directory=str(directory)))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._complaints.close()
        self._home.cleanup()

    def _ask(self, **question: object) -> Any:  # noqa: ANN401 - JSON
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # said below
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._complaints.seek(0)
            raise AssertionError(f"Helm is gone:\n{self._complaints.read().decode()}")
        said = json.loads(answer)
        if "refused" in said:
            raise HelmError(said["refused"])
        return said["answer"]


@cache
def start() -> Helm:
    """Return Helm. Its package has a library for x86_64 alone: elsewhere the test is skipped."""
    if platform.machine() != "x86_64":
        lacking(f"needs Helm, of which requirements/helm.txt has none for {platform.machine()}")
    helm = Helm()
    atexit.register(helm.close)
    return helm


def effective(rendered: Documents) -> Settings:
    """Return the settings of the agent's container, as the agent itself reads them.

    In this process: `rendered.settings` asks the real verb, which takes half a second each time.
    """
    variables, mounted = environment(rendered), files(rendered)
    config = variables.pop(CONFIG_VARIABLE)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(mounted[config])
        file.flush()
        return load(flags={}, environ=variables, config=Path(file.name)).settings
