"""Every rule by which a CDI library refuses a file, told by `cdi validate` with line and field.

The rules are those of `pkg/cdi` (spec.go, device.go, container-edits.go) and `pkg/parser`, in their
order. Each row is a file that breaks one of them, and no other. The line with the mistake ends in
`#!`, and the same file is tried as JSON.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hailo_agent.cli import cdi

HEAD = "cdiVersion: {version}\nkind: hailo.ai/npu\n"
TAIL = "devices:\n- name: a\n  containerEdits:\n    env: [A=1]\n"
DEVICE = "devices[0].containerEdits"


def top(*lines: str, version: str = "1.1.0") -> str:
    """Write a file with more keys at its top."""
    return HEAD.format(version=version) + "".join(f"{line}\n" for line in lines) + TAIL


def head(version: str = "1.1.0", kind: str = "hailo.ai/npu") -> str:
    """Write a file with another version or kind."""
    return f"cdiVersion: {version}\nkind: {kind}\n{TAIL}"


def device(*lines: str, version: str = "1.1.0") -> str:
    """Write a file whose only device, after its name, has these lines."""
    body = "".join(f"  {line}\n" for line in lines)
    return f"{HEAD.format(version=version)}devices:\n- name: a\n{body}"


def edits(*lines: str, version: str = "1.1.0") -> str:
    """Write a file whose only device makes these edits."""
    return device("containerEdits:", *(f"  {line}" for line in lines), version=version)


def named(*names: str, version: str = "0.3.0") -> str:
    """Write a file with devices of these names."""
    devices = "".join(f"- name: {name}\n  containerEdits: {{env: [A=1]}}\n" for name in names)
    return f"{HEAD.format(version=version)}devices:\n{devices}"


# --- each mistake, its field, and the words that tell it -----------------------------------------

PARSING = {
    "unknown key": (top("extra: 1 #!"), "extra", "unknown key"),
    "unknown key in a device": (
        device("containerEdits: {env: [A=1]}", "extra: 1 #!"),
        "devices[0].extra",
        "unknown key",
    ),
    "unknown key in edits": (
        edits("env: [A=1]", "devicenodes: [] #!"),
        f"{DEVICE}.devicenodes",
        "should it be deviceNodes?",
    ),
    "unknown key in a node": (
        edits("deviceNodes:", "- path: /dev/x", "  mode: 1 #!"),
        f"{DEVICE}.deviceNodes[0].mode",
        "unknown key",
    ),
    "unknown key in a mount": (
        edits("mounts:", "- hostPath: /x", "  containerPath: /x", "  extra: 1 #!"),
        f"{DEVICE}.mounts[0].extra",
        "unknown key",
    ),
    "unknown key in a hook": (
        edits("hooks:", "- hookName: prestart", "  path: /x", "  extra: 1 #!"),
        f"{DEVICE}.hooks[0].extra",
        "unknown key",
    ),
    "unknown key in intelRdt": (
        edits("intelRdt:", "  extra: 1 #!"),
        f"{DEVICE}.intelRdt.extra",
        "unknown key",
    ),
    "unknown key in a network device": (
        edits("netDevices:", "- hostInterfaceName: eth1", "  name: net0", "  extra: 1 #!"),
        f"{DEVICE}.netDevices[0].extra",
        "unknown key",
    ),
    "text where a list is due": (edits("env: A=1 #!"), f"{DEVICE}.env", "must be a list"),
    "number where text is due": (edits("env:", "- 1 #!"), f"{DEVICE}.env[0]", "must be a string"),
    "text where a number is due": (
        edits("deviceNodes:", "- path: /dev/x", '  major: "7" #!'),
        f"{DEVICE}.deviceNodes[0].major",
        "must be an integer",
    ),
    "list where an object is due": (
        top("containerEdits: [] #!"),
        "containerEdits",
        "must be an object",
    ),
}

VERSIONS = {
    "unknown version": (head(version="0.9.0 #!"), "cdiVersion", "0.9.0 is unknown"),
    "version of the future": (head(version="1.2.0 #!"), "cdiVersion", "1.2.0 is unknown"),
    "version too low for any file": (head(version="0.2.0 #!"), "cdiVersion", "at least 0.3.0"),
    "empty version": (head(version='"" #!'), "cdiVersion", "must not be empty"),
    "mount type before 0.4.0": (
        edits(
            "mounts:",
            "- hostPath: tmpfs",
            "  containerPath: /x",
            "  type: tmpfs #!",
            version="0.3.0",
        ),
        f"{DEVICE}.mounts[0].type",
        "needs cdiVersion 0.4.0",
    ),
    "mount type for the whole file before 0.4.0": (
        top(
            "containerEdits:",
            "  mounts:",
            "  - hostPath: tmpfs",
            "    containerPath: /x",
            "    type: tmpfs #!",
            version="0.3.0",
        ),
        "containerEdits.mounts[0].type",
        "needs cdiVersion 0.4.0",
    ),
    "hostPath of a node before 0.5.0": (
        edits("deviceNodes:", "- path: /dev/a", "  hostPath: /dev/b #!", version="0.4.0"),
        f"{DEVICE}.deviceNodes[0].hostPath",
        "needs cdiVersion 0.5.0",
    ),
    "name that begins with a digit before 0.5.0": (
        named('"0a" #!', version="0.4.0"),
        "devices[0].name",
        "needs cdiVersion 0.5.0",
    ),
    "annotation before 0.6.0": (
        top("annotations: {a: b} #!", version="0.5.0"),
        "annotations",
        "needs cdiVersion 0.6.0",
    ),
    "annotation of a device before 0.6.0": (
        device("annotations: {a: b} #!", "containerEdits: {env: [A=1]}", version="0.5.0"),
        "devices[0].annotations",
        "needs cdiVersion 0.6.0",
    ),
    "dot in the class before 0.6.0": (
        head(version="0.5.0", kind="hailo.ai/npu.v2 #!"),
        "kind",
        "needs cdiVersion 0.6.0",
    ),
    "additionalGids before 0.7.0": (
        edits("additionalGids: [44] #!", version="0.6.0"),
        f"{DEVICE}.additionalGids",
        "needs cdiVersion 0.7.0",
    ),
    "intelRdt before 0.7.0": (
        edits("intelRdt: {closID: x} #!", version="0.6.0"),
        f"{DEVICE}.intelRdt",
        "needs cdiVersion 0.7.0",
    ),
    "netDevices before 1.1.0": (
        edits("netDevices: [{hostInterfaceName: eth1, name: net0}] #!", version="1.0.0"),
        f"{DEVICE}.netDevices",
        "needs cdiVersion 1.1.0",
    ),
    "schemata before 1.1.0": (
        edits("intelRdt:", '  schemata: ["L3:0=f"] #!', version="1.0.0"),
        f"{DEVICE}.intelRdt.schemata",
        "needs cdiVersion 1.1.0",
    ),
    "enableMonitoring before 1.1.0": (
        edits("intelRdt:", "  enableMonitoring: true #!", version="1.0.0"),
        f"{DEVICE}.intelRdt.enableMonitoring",
        "needs cdiVersion 1.1.0",
    ),
    "enableCMT, which 1.1.0 dropped": (
        edits("intelRdt:", "  enableCMT: true #!"),
        f"{DEVICE}.intelRdt.enableCMT",
        "was dropped in 1.1.0",
    ),
    "enableMBM, which 1.1.0 dropped": (
        edits("intelRdt:", "  enableMBM: true #!"),
        f"{DEVICE}.intelRdt.enableMBM",
        "was dropped in 1.1.0",
    ),
    "the permission none, which no release has": (
        edits("deviceNodes:", "- path: /dev/x", "  permissions: none #!"),
        f"{DEVICE}.deviceNodes[0].permissions",
        "only r, w and m",
    ),
}

NAMES = {
    "kind without a class": (head(kind="hailo.ai #!"), "kind", "<vendor>/<class>"),
    "kind with two slashes": (head(kind="a/b/c #!"), "kind", "the class"),
    "empty vendor": (head(kind='"/npu" #!'), "kind", "the vendor"),
    "vendor that begins with a digit": (head(kind="1a/b #!"), "kind", "begin with a letter"),
    "vendor that ends with a dash": (head(kind="a-/b #!"), "kind", "end with a letter or digit"),
    "class that begins with a digit": (head(kind="a/1b #!"), "kind", "the class"),
    "class with a blank": (head(kind='"a/b c" #!'), "kind", "hold only"),
    "empty kind": (head(kind='"" #!'), "kind", "must not be empty"),
    "device without a name": (
        "cdiVersion: 0.3.0\nkind: a/b\ndevices:\n- containerEdits: {env: [A=1]} #!\n",
        "devices[0].name",
        "is missing",
    ),
    "empty name": (named('"" #!'), "devices[0].name", "must not be empty"),
    "name that begins with a dash": (named("-a #!"), "devices[0].name", "begin and end with"),
    "name that ends with a dot": (named("a. #!"), "devices[0].name", "begin and end with"),
    "name with a slash": (named("a/b #!"), "devices[0].name", "hold only"),
    "two devices of one name": (named("a", "a #!"), "devices[1].name", "a second device"),
    "no device": (HEAD.format(version="0.3.0") + "devices: [] #!\n", "devices", "at least one"),
}

ANNOTATIONS = {
    "key with two slashes": (
        top("annotations:", "  a/b/c: x #!"),
        "annotations.a/b/c",
        "not a qualified name",
    ),
    "key with an empty prefix": (
        top("annotations:", "  /a: x #!"),
        "annotations./a",
        "not a qualified name",
    ),
    "key that is too long": (
        top("annotations:", f"  {'x' * 64}: y #!"),
        f"annotations.{'x' * 64}",
        "not a qualified name",
    ),
    "value that is no text": (
        top("annotations:", "  a: 1 #!"),
        "annotations.a",
        "must be a string",
    ),
    "key of a device's": (
        device("annotations:", "  -a: x #!", "containerEdits: {env: [A=1]}"),
        "devices[0].annotations.-a",
        "not a qualified name",
    ),
    "more than 256 KiB": (
        top("annotations: #!", *(f"  k{n}: {'x' * 1024}" for n in range(256))),
        "annotations",
        "longer than 262144 bytes",
    ),
    "more than 256 KiB of a device": (
        device(
            "annotations: #!",
            *(f"  k{n}: {'x' * 1024}" for n in range(256)),
            "containerEdits: {env: [A=1]}",
        ),
        "devices[0].annotations",
        "longer than 262144 bytes",
    ),
}

EDITS = {
    "device without edits": (
        "cdiVersion: 0.3.0\nkind: a/b\ndevices:\n- name: a #!\n",
        DEVICE,
        "must change something",
    ),
    "device with empty edits": (device("containerEdits: {} #!"), DEVICE, "must change something"),
    "variable without a value": (edits("env:", "- A #!"), f"{DEVICE}.env[0]", "must be NAME=value"),
    "variable without a name": (edits("env:", "- =A #!"), f"{DEVICE}.env[0]", "must be NAME=value"),
    "node without a path": (
        edits("deviceNodes:", "- permissions: rw #!"),
        f"{DEVICE}.deviceNodes[0].path",
        "is missing",
    ),
    "node with an empty path": (
        edits("deviceNodes:", '- path: "" #!'),
        f"{DEVICE}.deviceNodes[0].path",
        "must not be empty",
    ),
    "node of a type that is none": (
        edits("deviceNodes:", "- path: /x", "  type: x #!"),
        f"{DEVICE}.deviceNodes[0].type",
        "must be b, c, u or p",
    ),
    "permission that is none": (
        edits("deviceNodes:", "- path: /x", "  permissions: rx #!"),
        f"{DEVICE}.deviceNodes[0].permissions",
        "only r, w and m",
    ),
    "hook of a name that is none": (
        edits("hooks:", "- path: /x", "  hookName: later #!"),
        f"{DEVICE}.hooks[0].hookName",
        "is none of",
    ),
    "hook without a name": (
        edits("hooks:", "- path: /x #!"),
        f"{DEVICE}.hooks[0].hookName",
        "is missing",
    ),
    "hook without a path": (
        edits("hooks:", "- hookName: poststop #!"),
        f"{DEVICE}.hooks[0].path",
        "is missing",
    ),
    "hook with a bad variable": (
        edits("hooks:", "- hookName: prestart", "  path: /x", "  env:", "  - A #!"),
        f"{DEVICE}.hooks[0].env[0]",
        "must be NAME=value",
    ),
    "mount without a source": (
        edits("mounts:", "- containerPath: /x #!"),
        f"{DEVICE}.mounts[0].hostPath",
        "is missing",
    ),
    "mount without a destination": (
        edits("mounts:", "- hostPath: /x", '  containerPath: "" #!'),
        f"{DEVICE}.mounts[0].containerPath",
        "must not be empty",
    ),
    "class of service that is no file name": (
        edits("intelRdt:", "  closID: a/b #!"),
        f"{DEVICE}.intelRdt.closID",
        "a plain file name, or /",
    ),
    "class of service that is a directory": (
        edits("intelRdt:", '  closID: ".." #!'),
        f"{DEVICE}.intelRdt.closID",
        "a plain file name, or /",
    ),
    "network device without a name": (
        edits("netDevices:", "- hostInterfaceName: eth1 #!"),
        f"{DEVICE}.netDevices[0].name",
        "is missing",
    ),
    "network device with an empty host name": (
        edits("netDevices:", "- name: net0", '  hostInterfaceName: "" #!'),
        f"{DEVICE}.netDevices[0].hostInterfaceName",
        "must not be empty",
    ),
    "host interface given twice": (
        edits(
            "netDevices:",
            "- {hostInterfaceName: eth1, name: a}",
            "- {hostInterfaceName: eth1, name: b} #!",
        ),
        f"{DEVICE}.netDevices[1].hostInterfaceName",
        "is there already",
    ),
    "name in the container given twice": (
        edits(
            "netDevices:",
            "- {hostInterfaceName: eth1, name: a}",
            "- {hostInterfaceName: eth2, name: a} #!",
        ),
        f"{DEVICE}.netDevices[1].name",
        "is there already",
    ),
    "edit for the whole file": (
        top("containerEdits:", "  env:", "  - A #!"),
        "containerEdits.env[0]",
        "must be NAME=value",
    ),
}

MISTAKES = {**PARSING, **VERSIONS, **NAMES, **ANNOTATIONS, **EDITS}
rows = pytest.mark.parametrize(
    ("text", "field", "words"), list(MISTAKES.values()), ids=list(MISTAKES)
)


def told(file: Path, capsys: pytest.CaptureFixture[str]) -> list[tuple[int, str, str]]:
    """Validate a file that is wrong, and take the line, field and message of each complaint."""
    assert cdi.validate(file) == 1
    found = []
    for complaint in capsys.readouterr().out.splitlines():
        where, line, rest = complaint.split(":", 2)
        assert where == str(file)
        field, _, message = rest.strip().partition(": ")
        found.append((int(line), field, message))
    return found


@rows
def test_a_mistake_is_told_with_its_line_and_its_field(
    text: str, field: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    [marked] = [n for n, line in enumerate(text.splitlines(), 1) if line.endswith("#!")]
    [(line, where, message)] = told(file, capsys)
    assert (line, where) == (marked, field)
    assert words in message


@rows
def test_it_is_told_of_a_file_of_json_as_well(
    text: str, field: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = json.dumps(_plain(yaml.safe_load(text)), indent=1)
    file = tmp_path / "x.json"
    file.write_text(written)
    [(line, where, message)] = told(file, capsys)
    assert where == field
    assert words in message
    # What is not there is told on the line of what it is missing from.
    if "missing" not in message and where != DEVICE:
        key = field.rpartition(".")[2].partition("[")[0]
        lines = written.splitlines()
        assert any(f'"{key}"' in near for near in lines[max(line - 2, 0) : line]), written


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value of YAML
    """Have text where YAML sees something else, such as a version or a date."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["x.yaml", "x.json"])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", " an empty document"),
        ('{"kind": "a/b",\n "kind": "a/b"}', "2: kind: the key is there already"),
        ('{"kind": "a/b",\n "devices": [}', "2: "),
        ("- a\n", "1: must be an object, not a list"),
    ],
    ids=["empty", "key twice", "no syntax", "no object"],
)
def test_a_file_that_does_not_parse_is_told_with_its_line(
    text: str, complaint: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert cdi.validate(file) == 1
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"{file}:{complaint}") for line in said), said


def test_all_that_is_wrong_is_told_at_once_in_the_order_of_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "cdiVersion: 0.3.0\nkind: npu\nextra: 1\ndevices:\n- name: -a\n  containerEdits:\n"
        "    env: [A]\n    deviceNodes:\n    - path: /dev/x\n      hostPath: /dev/y\n"
    )
    assert [(line, field) for line, field, _ in told(file, capsys)] == [
        (2, "kind"),
        (3, "extra"),
        (5, "devices[0].name"),
        (7, f"{DEVICE}.env[0]"),
        (10, f"{DEVICE}.deviceNodes[0].hostPath"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        head(version="v1.1.0"),
        head(version="0.3.0"),
        top("containerEdits: {}", version="0.3.0"),
        named('"0"', version="0.5.0"),
        edits("deviceNodes:", "- path: /dev/not/there"),
        edits("mounts:", "- hostPath: /not/there", "  containerPath: /x"),
        edits("intelRdt: {closID: /}"),
        edits("intelRdt: {}", version="0.7.0"),
    ],
    ids=[
        "a leading v",
        "the lowest version",
        "empty edits for the whole file",
        "a digit since 0.5.0",
        "a node that is not there",
        "a mount of what is not there",
        "the root class of service",
        "intelRdt without a word, which is an edit all the same",
    ],
)
def test_what_no_library_minds_is_not_minded(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert cdi.validate(file) == 0
    assert capsys.readouterr().out.startswith(f"{file}: valid, CDI ")
