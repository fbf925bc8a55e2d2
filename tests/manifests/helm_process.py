"""Helm, asked by `helm.py`: a line of JSON for each question, and one for each answer.

A chart is installed into an HTTP server that answers as an API server without any object would:
everything can be made, nothing is there yet. No cluster is ever spoken to.
"""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Final

from helm_sdkpy import (  # type: ignore[import-untyped]
    Configuration,
    Lint,
    Package,
    actions,
)

_SERVED: Final = {
    "v1": [
        ("configmaps", "ConfigMap"),
        ("serviceaccounts", "ServiceAccount"),
        ("services", "Service"),
    ],
    "apps/v1": [("daemonsets", "DaemonSet")],
    "networking.k8s.io/v1": [("networkpolicies", "NetworkPolicy")],
    "rbac.authorization.k8s.io/v1": [
        ("clusterroles", "ClusterRole"),
        ("rolebindings", "RoleBinding"),
    ],
    "monitoring.coreos.com/v1": [
        ("podmonitors", "PodMonitor"),
        ("prometheusrules", "PrometheusRule"),
        ("servicemonitors", "ServiceMonitor"),
    ],
    "security.openshift.io/v1": [("securitycontextconstraints", "SecurityContextConstraints")],
}
_OF_CLUSTER: Final = {"ClusterRole", "SecurityContextConstraints"}


class _EmptyCluster(BaseHTTPRequestHandler):
    """An API server without an object. The first part of a path is the version it says it has."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, or the client's delayed ACK costs 40 ms

    def do_GET(self) -> None:
        _, version, *path = self.path.partition("?")[0].split("/")
        major, minor = version.removeprefix("v").split(".")[:2]
        groups = [name.split("/") for name in _SERVED if "/" in name]
        match path:
            case ["version"]:
                self._say({"major": major, "minor": minor, "gitVersion": version})
            case ["api"]:
                self._say({"kind": "APIVersions", "versions": ["v1"]})
            case ["apis"]:
                offered = [_group(*name) for name in groups]
                self._say({"kind": "APIGroupList", "apiVersion": "v1", "groups": offered})
            case [_, *name] if "/".join(name) in _SERVED:
                self._say(_resources("/".join(name)))
            case _:
                nothing = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
                self._say({**nothing, "reason": "NotFound", "code": 404}, status=404)

    def do_POST(self) -> None:
        made = self.rfile.read(int(self.headers["Content-Length"]))
        self._say(json.loads(made), status=201)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""

    def _say(self, answer: object, *, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def _group(name: str, version: str) -> dict[str, Any]:
    offered = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [offered], "preferredVersion": offered}


def _resources(group_version: str) -> dict[str, Any]:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": [
            {
                "name": name,
                "singularName": "",
                "namespaced": kind not in _OF_CLUSTER,
                "kind": kind,
                "verbs": ["create", "delete", "get", "list", "patch", "update"],
            }
            for name, kind in _SERVED[group_version]
        ],
    }


def _config(server: str) -> str:
    cluster = {"name": "empty", "cluster": {"server": server}}
    context = {"name": "empty", "context": {"cluster": "empty", "user": ""}}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "contexts": [context],
            "current-context": "empty",
        }
    )


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _EmptyCluster)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    verbs: dict[str, Callable[..., object]] = {
        "render": _render,
        "lint": _lint,
        "package": _package,
    }
    for line in questions:
        question = json.loads(line)
        verb = verbs[question.pop("do")]
        version = question.pop("kubernetes", "v1.34.0")
        config = Path.home() / "kubeconfig.yaml"
        config.write_text(_config(f"http://127.0.0.1:{server.server_port}/{version}"))
        try:
            said = {"answer": verb(str(config), **question)}
        except Exception as refusal:  # noqa: BLE001 - whatever it is, the other side is told
            said = {"refused": str(refusal)}
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()


def _render(
    config: str, *, chart: str, values: object, namespace: str, release: str
) -> dict[str, str]:
    configuration = Configuration(namespace=namespace, kubeconfig=config)
    # The call below Install.run, which would need a loop and a thread for each.
    made = actions._run_release_action(
        configuration._lib.helm_sdkpy_install,
        configuration,
        release,
        chart,
        values,
        None,
        {"wait": False, "server_side_apply": "false", "disable_openapi_validation": True},
        actions.InstallError,
        "install",
    )
    return {"manifest": made["manifest"], "notes": made["info"]["notes"]}


def _lint(config: str, *, chart: str) -> object:
    return asyncio.run(Lint(Configuration(kubeconfig=config)).run(chart))


def _package(config: str, *, chart: str, directory: str) -> str:
    return str(asyncio.run(Package(Configuration(kubeconfig=config)).run(chart, directory)))


if __name__ == "__main__":
    # What the library prints must not be taken for an answer.
    answers_only = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(KeyboardInterrupt):
        _serve(sys.stdin.buffer, answers_only)
