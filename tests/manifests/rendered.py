"""What manifests render to, and what Kubernetes and the agent make of that.

Rendering asks no cluster. Whatever is rendered once is kept: a document is read by many tests and
changed by none; who wants to spoil one takes `spoiled`.
"""

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import jsonschema  # type: ignore[import-untyped]
import yaml
from kubernetes_validate import utils as schemas  # type: ignore[import-untyped]
from packaging.version import Version
from referencing import Registry, Resource

from tests.e2e.ability import lacking

Document: TypeAlias = dict[str, Any]
Documents: TypeAlias = tuple[Document, ...]

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
KUSTOMIZE = MANIFESTS / "kustomize"
AGENT = Path(sys.executable).with_name("hailo-agent")

OLDEST = Version("1.28")
VERSIONS = sorted({v for v in schemas.all_versions() if Version(v) >= OLDEST}, key=Version)
"""Every minor version of Kubernetes of which the schemas are known here."""

OVERLAYS = sorted(
    path.parent.name for path in (KUSTOMIZE / "overlays").glob("*/kustomization.yaml")
)
COMPONENTS = sorted(
    path.parent.name for path in (KUSTOMIZE / "components").glob("*/kustomization.yaml")
)


# --- rendering -----------------------------------------------------------------------------------


def kubectl() -> str:
    """Tell where kubectl is, without which no kustomization can be rendered."""
    found = shutil.which("kubectl")
    if found is None:
        lacking("needs kubectl, which is not installed")
    return found


def built(directory: Path) -> Documents:
    """Render the kustomization in a directory, which must do so without a warning."""
    result = subprocess.run(
        [kubectl(), "kustomize", str(directory)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return documents(result.stdout)


@functools.cache
def kustomized(base: str, *components: str, image: str | None = None) -> Documents:
    """Render `base` or `overlays/NAME` with components, as somebody's own kustomization does."""
    if not components and image is None:
        return built(KUSTOMIZE / base)
    with tempfile.TemporaryDirectory(prefix="hailo-kustomize-") as name:
        directory = Path(name).resolve()
        # kustomize wants other kustomizations by a relative path.
        tree = Path(os.path.relpath(KUSTOMIZE, directory))
        kustomization: Document = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [str(tree / base)],
            "components": [str(tree / "components" / component) for component in components],
        }
        if image is not None:
            kustomization["images"] = [{"name": "hailo-agent", "newName": image}]
        (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return built(directory)


def documents(text: str) -> Documents:
    """Read every document of a stream of YAML."""
    return tuple(document for document in yaml.load_all(text, yaml.CSafeLoader) if document)


# --- finding one's way in what was rendered ------------------------------------------------------


def of_kind(rendered: Iterable[Document], kind: str) -> list[Document]:
    """Pick the documents of a kind."""
    return [document for document in rendered if document["kind"] == kind]


def daemonset(rendered: Iterable[Document]) -> Document:
    """Pick the agent's DaemonSet."""
    (found,) = of_kind(rendered, "DaemonSet")
    return found


def pod(rendered: Iterable[Document]) -> Document:
    """Pick the spec of the agent's pods."""
    spec: Document = daemonset(rendered)["spec"]["template"]["spec"]
    return spec


def container(rendered: Iterable[Document], name: str = "hailo-agent") -> Document:
    """Pick a container of the agent's pods."""
    return named(pod(rendered)["containers"])[name]


def named(items: Iterable[Document], key: str = "name") -> dict[str, Document]:
    """Turn a list of things with names into a mapping; no name may be there twice."""
    listed = list(items)
    found = {item[key]: item for item in listed}
    assert len(found) == len(listed), [item[key] for item in listed]
    return found


def spoiled(document: Document, spoil: Callable[[Document], None]) -> Document:
    """Return a copy of a document with something done to it."""
    copied = copy.deepcopy(document)
    spoil(copied)
    return copied


LISTS_BY = {"volumeMounts": "mountPath", "env": "name", "volumes": "name", "containers": "name"}


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any YAML
    """Walk through a document: the path of each scalar, with names instead of places in lists."""
    key = LISTS_BY.get(path.rpartition(".")[2])
    if isinstance(node, list) and key is not None and all(isinstance(item, dict) for item in node):
        node = named(node, key)
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from leaves(child, f"{path}.{name}" if path else name)
    else:
        yield path, node


def difference(before: Document, after: Document) -> dict[str, tuple[Any, Any]]:
    """Tell which scalars differ, by path, as (before, after); None where there is none."""
    ours, theirs = dict(leaves(before)), dict(leaves(after))
    paths = sorted(ours.keys() | theirs.keys())
    changed = {path: (ours.get(path), theirs.get(path)) for path in paths}
    return {path: pair for path, pair in changed.items() if pair[0] != pair[1]}


# --- what Kubernetes makes of it -----------------------------------------------------------------

# Kinds of others, for which Kubernetes itself has no schema: written by hand from their
# documentation, no wider than what is used here. They find a misspelt or misplaced key, and are no
# proof that an operator takes the document.
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
}
_SELECTOR = {
    "type": "object",
    "required": ["matchLabels"],
    "additionalProperties": False,
    "properties": {"matchLabels": _TEXTS},
}
_ENDPOINTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["port"],
        "additionalProperties": False,
        "properties": {
            "port": {"type": "string"},
            "path": {"type": "string"},
            "interval": {"type": "string"},
            "scrapeTimeout": {"type": "string"},
            "honorLabels": {"type": "boolean"},
            "relabelings": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["targetLabel"],
                    "additionalProperties": False,
                    "properties": {
                        "sourceLabels": {"type": "array", "items": {"type": "string"}},
                        "targetLabel": {"type": "string"},
                        "replacement": {"type": "string"},
                    },
                },
            },
        },
    },
}
_RULES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["name", "rules"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "interval": {"type": "string"},
            "rules": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["expr"],
                    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
                    "additionalProperties": False,
                    "properties": {
                        "alert": {"type": "string"},
                        "record": {"type": "string"},
                        "expr": {"type": "string"},
                        "for": {"type": "string"},
                        "keep_firing_for": {"type": "string"},
                        "labels": _TEXTS,
                        "annotations": _TEXTS,
                    },
                },
            },
        },
    },
}
_STRATEGY = {
    "type": "object",
    "required": ["type"],
    "additionalProperties": False,
    "properties": {"type": {"enum": ["MustRunAs", "RunAsAny"]}, "uid": {"type": "integer"}},
}
_LIST = {"type": "array", "items": {"type": "string"}}
# What the API requires of SecurityContextConstraints, besides `volumes`.
_CONSTRAINTS = (
    "allowHostDirVolumePlugin",
    "allowHostIPC",
    "allowHostNetwork",
    "allowHostPID",
    "allowHostPorts",
    "allowPrivilegedContainer",
    "readOnlyRootFilesystem",
)


def _shape(required: Iterable[str], **properties: object) -> Document:
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", *required],
        "additionalProperties": False,
        "properties": {"apiVersion": {}, "kind": {}, "metadata": _METADATA, **properties},
    }


def _spec(**properties: object) -> Document:
    return {
        "type": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


SHAPES: dict[tuple[str, str], Document] = {
    ("monitoring.coreos.com/v1", "PodMonitor"): _shape(
        ["spec"], spec=_spec(selector=_SELECTOR, podMetricsEndpoints=_ENDPOINTS)
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _shape(
        ["spec"], spec=_spec(selector=_SELECTOR, endpoints=_ENDPOINTS)
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _shape(["spec"], spec=_spec(groups=_RULES)),
    ("security.openshift.io/v1", "SecurityContextConstraints"): _shape(
        _CONSTRAINTS,
        **{name: {"type": "boolean"} for name in (*_CONSTRAINTS, "allowPrivilegeEscalation")},
        **dict.fromkeys(
            ("runAsUser", "seLinuxContext", "fsGroup", "supplementalGroups"), _STRATEGY
        ),
        **dict.fromkeys(
            ("allowedCapabilities", "defaultAddCapabilities", "requiredDropCapabilities"), _LIST
        ),
        **dict.fromkeys(("volumes", "seccompProfiles", "users", "groups"), _LIST),
        priority={"type": ["integer", "null"]},
    ),
}


@functools.cache
def _definitions(version: str) -> Resource[Any]:
    contents = schemas.schema_contents(f"{_schema_folder(version)}/_definitions.json", version)
    return Resource.from_contents(contents)


@functools.cache
def _validator(api_version: str, kind: str, version: str) -> jsonschema.Draft202012Validator:
    if shape := SHAPES.get((api_version, kind)):
        return jsonschema.Draft202012Validator(shape)
    # apps/v1 is in …-apps-v1.json, networking.k8s.io/v1 in …-networking-v1.json
    group, slash, of_group = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.partition('.')[0]}{'-' if slash else ''}{of_group}.json"
    contents = schemas.schema_contents(f"{_schema_folder(version)}/{name}", version)
    registry: Registry[Any] = Resource.from_contents(contents) @ Registry()
    return jsonschema.Draft202012Validator(contents, registry=_definitions(version) @ registry)


def _schema_folder(version: str) -> str:
    return f"kubernetes-json-schema/v{version}-local-strict"


def wrong(document: Document, version: str) -> list[str]:
    """Tell what is wrong with a document for a version of Kubernetes, unknown keys included."""
    validator = _validator(document["apiVersion"], document["kind"], version)
    name = f"{document['kind']}/{document['metadata']['name']}"
    return [
        f"{name} {error.json_path}: {error.message}" for error in validator.iter_errors(document)
    ]


def fingerprint(document: Document) -> str:
    """Return what is equal for equal documents."""
    return json.dumps(document, sort_keys=True)


# --- what the agent makes of it ------------------------------------------------------------------

DOWNWARD = {"spec.nodeName": "node-1", "metadata.uid": "7b1f5d0e-1c5c-4f0e-9f43-0b4f6c1f0f6d"}
"""What the downward API puts into the variables of the tests' pod."""


def environment(rendered: Documents, name: str = "hailo-agent") -> dict[str, str]:
    """Return the environment of a container of the agent's pods."""
    return {
        variable["name"]: variable["value"]
        if "value" in variable
        else DOWNWARD[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        for variable in container(rendered, name).get("env", ())
    }


def files(rendered: Documents, name: str = "hailo-agent") -> dict[str, str]:
    """Return the files that a container of the agent's pods gets from ConfigMaps, by path."""
    maps = {document["metadata"]["name"]: document for document in of_kind(rendered, "ConfigMap")}
    volumes = named(pod(rendered)["volumes"])
    found: dict[str, str] = {}
    for mount in container(rendered, name)["volumeMounts"]:
        if source := volumes[mount["name"]].get("configMap"):
            for key, text in maps[source["name"]]["data"].items():
                found[str(PurePosixPath(mount["mountPath"]) / key)] = text
    return found


def config_show(rendered: Documents) -> subprocess.CompletedProcess[str]:
    """Run the real `hailo-agent config show` with the container's environment and files."""
    return _config_show(
        tuple(sorted(environment(rendered).items())), tuple(sorted(files(rendered).items()))
    )


@functools.cache
def _config_show(
    variables: tuple[tuple[str, str], ...], mounted: tuple[tuple[str, str], ...]
) -> subprocess.CompletedProcess[str]:
    environ = dict(variables)
    with tempfile.TemporaryDirectory(prefix="hailo-config-") as root:
        for path, text in mounted:
            file = Path(root + path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        # The one variable that names a file of the container; a test has no root of its own.
        if config := environ.get("HAILO_AGENT_CONFIG"):
            environ["HAILO_AGENT_CONFIG"] = root + config
        return subprocess.run(
            [str(AGENT), "config", "show"], env=environ, capture_output=True, text=True, check=False
        )


def settings(rendered: Documents) -> dict[str, Any]:
    """Return every setting in effect in the agent's container, by key: `host.dev`."""
    result = config_show(rendered)
    assert result.returncode == 0, result.stderr
    return dict(_settings(result.stdout))


@functools.cache
def _settings(shown: str) -> Mapping[str, Any]:
    tree: Mapping[str, Mapping[str, Any]] = yaml.load(shown, yaml.CSafeLoader)
    return {f"{section}.{name}": v for section, below in tree.items() for name, v in below.items()}
