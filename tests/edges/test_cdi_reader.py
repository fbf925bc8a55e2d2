"""The CDI reader takes what runtimes take, and says line by line what they would refuse."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hailo_agent.runtime.reader import (
    MAX_BYTES,
    DeviceNode,
    Document,
    Problem,
    SpecInvalid,
    load,
    read,
    split_name,
)

GOOD = """\
{"cdiVersion": "0.4.0", "kind": "hailo.ai/npu",
 "containerEdits": {"mounts": [
   {"hostPath": "tmpfs", "containerPath": "/sys/class/hailo_chardev", "type": "tmpfs",
    "options": ["rw", "size=1m"]}]},
 "devices": [
   {"name": "pci-0000-01-00-0",
    "containerEdits": {"deviceNodes": [{"path": "/dev/hailo0", "permissions": "rw"}]}}]}
"""


EDITS = "devices[0].containerEdits"


def spec(**changes: object) -> dict[str, Any]:
    """A good spec, with some of its top keys set to something else or, by None, left out."""
    good = {
        "cdiVersion": "0.3.0",
        "kind": "hailo.ai/npu",
        "devices": [{"name": "a", "containerEdits": {"env": ["A=1"]}}],
        **changes,
    }
    return {key: value for key, value in good.items() if value is not None}


def edited(version: str = "0.3.0", **edits: object) -> dict[str, Any]:
    """A spec whose only device makes these edits."""
    return spec(cdiVersion=version, devices=[{"name": "a", "containerEdits": edits}])


def named(name: str, version: str = "0.3.0") -> dict[str, Any]:
    """A spec whose only device has this name."""
    return spec(cdiVersion=version, devices=[{"name": name, "containerEdits": {"env": ["A=1"]}}])


def parse(document: object, newest: str = "1.1.0") -> Document:
    return read(json.dumps(document, indent=1).encode(), name="x.json", newest=newest)


def problems(document: object, newest: str = "1.1.0") -> list[str]:
    text = document if isinstance(document, bytes) else json.dumps(document, indent=1).encode()
    with pytest.raises(SpecInvalid) as caught:
        read(text, name="x.json", newest=newest)
    return [str(problem) for problem in caught.value.problems]


def test_a_good_file_is_read_to_the_last_field() -> None:
    document = read(GOOD.encode(), name="hailo.ai-npu.json")
    assert (document.version, document.kind, document.vendor) == (
        "0.4.0",
        "hailo.ai/npu",
        "hailo.ai",
    )
    assert document.qualified_names == ("hailo.ai/npu=pci-0000-01-00-0",)
    assert document.devices["pci-0000-01-00-0"].device_nodes == (
        DeviceNode(path="/dev/hailo0", permissions="rw"),
    )
    assert document.edits.mounts[0].options == ("rw", "size=1m")


def test_yaml_and_json_say_the_same_in_a_file_of_either_name() -> None:
    text = b"""\
# as nvidia-ctk writes it
cdiVersion: v0.5.0
kind: nvidia.com/gpu
devices:
  - name: "0"
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia0
          fileMode: 0660
          major: 195
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void]
"""
    document = read(text, name="nvidia.json")
    assert document.version == "0.5.0"
    assert document.devices["0"].device_nodes[0].file_mode == 0o660
    assert document.edits.env == ("NVIDIA_VISIBLE_DEVICES=void",)


def test_every_problem_is_reported_with_its_line_in_json() -> None:
    text = b"""\
{"cdiVersion": "0.3.0",
 "kind": "hailo.ai/npu",
 "devices": [
\t{"name": "-a",
\t "containerEdits": {"env": ["=x"],
\t   "deviceNodes": [{"path": "",
\t     "permissions": "rwx"}]}}],
 "extra": 1}
"""
    with pytest.raises(SpecInvalid) as caught:
        read(text, name="x.json")
    assert [(p.line, p.field) for p in caught.value.problems] == [
        (4, "devices[0].name"),
        (5, f"{EDITS}.env[0]"),
        (6, f"{EDITS}.deviceNodes[0].path"),
        (7, f"{EDITS}.deviceNodes[0].permissions"),
        (8, "extra"),
    ]
    assert str(caught.value).startswith("x.json:4: devices[0].name: ")


def test_every_problem_is_reported_with_its_line_in_yaml() -> None:
    text = (
        b"cdiVersion: 0.3.0\nkind: hailo.ai\ndevices:\n- name: a\n  containerEdits:\n    env: 1\n"
    )
    with pytest.raises(SpecInvalid) as caught:
        read(text, name="x.yaml")
    assert [(p.line, p.field) for p in caught.value.problems] == [
        (2, "kind"),
        (6, f"{EDITS}.env"),
    ]


@pytest.mark.parametrize("text", [b"", b"   \n", b"null", b"# nothing\n", b"---\n"])
def test_an_empty_document_is_refused(text: bytes) -> None:
    assert problems(text) == ["an empty document"]


@pytest.mark.parametrize("text", [b"[]", b"3", b'"spec"', b"- a\n"])
def test_a_document_that_is_no_object_is_refused(text: bytes) -> None:
    assert any("must be an object" in problem for problem in problems(text))


def test_a_file_caught_half_written_is_refused() -> None:
    for length in range(1, len(GOOD) - 3):
        with pytest.raises(SpecInvalid):
            read(GOOD[:length].encode(), name="x.json")


def test_an_unknown_key_refuses_the_file_at_every_level_and_a_near_miss_is_named() -> None:
    assert problems(spec(Kind="a/b")) == ["Kind: unknown key, should it be kind?"]
    assert problems(edited(devicenodes=[], env=["A=1"])) == [
        f"{EDITS}.devicenodes: unknown key, should it be deviceNodes?"
    ]
    assert problems(edited(deviceNodes=[{"path": "/dev/x", "mode": 1}])) == [
        f"{EDITS}.deviceNodes[0].mode: unknown key"
    ]
    assert problems(edited("0.7.0", additionalGIDs=[1], env=["A=1"]))[0].startswith(
        f"{EDITS}.additionalGIDs: unknown key, should it be additionalGids?"
    )


def test_a_duplicate_key_is_refused_in_json_and_in_yaml() -> None:
    assert "kind: the key is there already" in problems(b'{"kind": "a/b", "kind": "a/c"}')
    assert "kind: the key is there already" in problems(b"kind: a/b\nkind: a/c\n")


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (spec(cdiVersion=0.5), "cdiVersion"),
        (spec(kind=["a/b"]), "kind"),
        (spec(devices={"name": "a"}), "devices"),
        (spec(devices=["a"]), "devices[0]"),
        (spec(devices=[None]), "devices[0]"),
        (spec(containerEdits=[]), "containerEdits"),
        (named(0), "devices[0].name"),  # type: ignore[arg-type]
        (edited(env="A=1"), f"{EDITS}.env"),
        (edited(env=[1]), f"{EDITS}.env[0]"),
        (edited(deviceNodes=[{"path": "/x", "major": "1"}]), f"{EDITS}.deviceNodes[0].major"),
        (edited(deviceNodes=[{"path": "/x", "uid": -1}]), f"{EDITS}.deviceNodes[0].uid"),
        (edited(deviceNodes=[{"path": "/x", "gid": 2**32}]), f"{EDITS}.deviceNodes[0].gid"),
        (
            edited(deviceNodes=[{"path": "/x", "fileMode": True}]),
            f"{EDITS}.deviceNodes[0].fileMode",
        ),
        (
            edited(hooks=[{"hookName": "prestart", "path": "/x", "timeout": 1.5}]),
            f"{EDITS}.hooks[0].timeout",
        ),
        (edited("0.7.0", additionalGids=["1"]), f"{EDITS}.additionalGids[0]"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_refused(
    document: dict[str, Any], field: str
) -> None:
    assert field in [problem.partition(": ")[0] for problem in problems(document)]


def test_null_counts_as_absent() -> None:
    document = parse(
        {
            "cdiVersion": "0.3.0",
            "kind": "a/b",
            "annotations": None,
            "containerEdits": None,
            "devices": [{"name": "a", "containerEdits": {"env": ["A=1"], "mounts": None}}],
        }
    )
    assert document.devices["a"].env == ("A=1",)


# --- versions ---


@pytest.mark.parametrize("version", ["0.3.0", "v0.3.0", "0.8.0", "1.0.0", "1.1.0"])
def test_a_known_version_is_taken_with_or_without_a_leading_v(version: str) -> None:
    assert parse(spec(cdiVersion=version)).version == version.removeprefix("v")


@pytest.mark.parametrize("version", ["0.3", "0.9.0", "1.2.0", "vv0.3.0", "x", "0.1.0", "0.2.0"])
def test_an_unknown_version_and_one_too_low_are_refused(version: str) -> None:
    assert problems(spec(cdiVersion=version))[0].startswith("cdiVersion: ")


def test_a_version_left_out_or_empty_is_refused() -> None:
    assert problems(spec(cdiVersion=None)) == ["cdiVersion: is missing"]
    assert problems(spec(cdiVersion="")) == ["cdiVersion: must not be empty"]


def test_a_reader_with_an_older_library_refuses_a_newer_version() -> None:
    assert parse(spec(cdiVersion="0.5.0"), newest="0.5.0").version == "0.5.0"
    assert problems(spec(cdiVersion="0.6.0"), newest="0.5.0") == [
        "cdiVersion: 0.6.0 is unknown (up to 0.5.0 is known)"
    ]


@pytest.mark.parametrize(
    ("document", "needed", "below"),
    [
        (
            edited("0.4.0", mounts=[{"hostPath": "tmpfs", "containerPath": "/x", "type": "tmpfs"}]),
            "0.4.0",
            "0.3.0",
        ),
        (edited("0.5.0", deviceNodes=[{"path": "/dev/a", "hostPath": "/dev/b"}]), "0.5.0", "0.4.0"),
        (named("0", "0.5.0"), "0.5.0", "0.4.0"),
        (spec(cdiVersion="0.6.0", annotations={"a": "b"}), "0.6.0", "0.5.0"),
        (spec(cdiVersion="0.6.0", kind="hailo.ai/npu.v2"), "0.6.0", "0.5.0"),
        (edited("0.7.0", additionalGids=[44]), "0.7.0", "0.6.0"),
        (edited("0.7.0", intelRdt={"closID": "x"}), "0.7.0", "0.6.0"),
        (edited("1.1.0", intelRdt={"schemata": ["L3:0=f"]}), "1.1.0", "1.0.0"),
        (edited("1.1.0", intelRdt={"enableMonitoring": True}), "1.1.0", "1.0.0"),
        (
            edited("1.1.0", netDevices=[{"hostInterfaceName": "eth1", "name": "net0"}]),
            "1.1.0",
            "1.0.0",
        ),
        (spec(cdiVersion="1.0.0"), "0.3.0", None),
    ],
)
def test_a_feature_needs_its_version_and_no_later_one(
    document: dict[str, Any], needed: str, below: str | None
) -> None:
    assert parse(document).needed_version == needed
    if below is not None:
        assert f"needs cdiVersion {needed}, and the file says {below}" in " ".join(
            problems({**document, "cdiVersion": below})
        )


def test_what_1_1_dropped_is_refused_by_its_readers_and_taken_by_older_ones() -> None:
    document = edited("0.7.0", intelRdt={"enableCMT": True})
    assert "was dropped in 1.1.0" in problems(document)[0]
    assert parse(document, newest="1.0.0").devices["a"].intel_rdt is not None


def test_the_unreleased_permission_none_is_refused() -> None:
    assert "permissions" in problems(edited(deviceNodes=[{"path": "/x", "permissions": "none"}]))[0]


# --- names ---


@pytest.mark.parametrize("kind", ["a/b", "hailo.ai/npu", "A-b_c.d/x9", "vendor.com/a-b_c"])
def test_a_kind_of_the_grammar_is_taken(kind: str) -> None:
    assert parse(spec(kind=kind)).kind == kind


@pytest.mark.parametrize(
    "kind",
    ["", "npu", "/npu", "hailo.ai/", "1a/b", "a/1b", "a-/b", "a/b-", "a/b/c", "a b/c", "ä/b"],
)
def test_a_kind_outside_the_grammar_is_refused(kind: str) -> None:
    assert problems(spec(kind=kind))[0].startswith("kind: ")


@pytest.mark.parametrize("name", ["a", "pci-0000-01-00-0", "a:b.c_d-e", "all"])
def test_a_device_name_of_the_grammar_is_taken(name: str) -> None:
    assert list(parse(named(name)).devices) == [name]


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a/b", "a=b", ":a", "é", "\U0001f600"])
def test_a_device_name_outside_the_grammar_is_refused(name: str) -> None:
    assert problems(named(name))[0].startswith("devices[0].name: ")


def test_two_devices_of_one_name_are_refused() -> None:
    device = {"name": "a", "containerEdits": {"env": ["A=1"]}}
    assert problems(spec(devices=[device, device])) == [
        "devices[1].name: a second device of the name a"
    ]


def test_no_devices_are_refused() -> None:
    assert problems(spec(devices=[])) == ["devices: at least one device is needed"]
    assert problems(spec(devices=None)) == ["devices: at least one device is needed"]


def test_a_qualified_name_comes_apart_or_is_none() -> None:
    assert split_name("hailo.ai/npu=pci-0000-01-00-0") == ("hailo.ai", "npu", "pci-0000-01-00-0")
    for bad in ("hailo.ai/npu", "npu=a", "/npu=a", "hailo.ai/npu=", "hailo.ai/npu=-", "a/b/c=d"):
        assert split_name(bad) is None


# --- annotations and edits ---


def test_annotation_keys_are_qualified_names_and_values_are_strings() -> None:
    good = {"a": "1", "hailo.ai/Model": "8", "A_b.c-d": ""}
    assert parse(spec(cdiVersion="0.6.0", annotations=good)).annotations == good
    for key in ("", "/a", "a/", "-a", "a b", "a/b/c", "x" * 64, "under_score/a"):
        assert problems(spec(cdiVersion="0.6.0", annotations={key: "1"}))[0].startswith(
            "annotations"
        )
    assert problems(spec(cdiVersion="0.6.0", annotations={"a": 1})) == [
        "annotations.a: must be a string, not a number"
    ]


def test_annotations_of_more_than_256_kib_are_refused() -> None:
    big = {f"k{i}": "x" * 1024 for i in range(256)}
    assert problems(spec(cdiVersion="0.6.0", annotations=big)) == [
        "annotations: longer than 262144 bytes in all"
    ]


@pytest.mark.parametrize("edits", [{}, None, {"env": []}, {"deviceNodes": [], "mounts": None}])
def test_a_device_that_changes_nothing_is_refused(edits: dict[str, Any] | None) -> None:
    document = spec(devices=[{"name": "a", "containerEdits": edits}])
    assert problems(document) == [
        "devices[0].containerEdits: must change something, an empty edit is not allowed in a device"
    ]


def test_spec_level_edits_may_be_empty() -> None:
    assert parse(spec(containerEdits={})).edits.empty


@pytest.mark.parametrize(
    "edits",
    [
        {"env": ["A"]},
        {"env": ["=A"]},
        {"env": [""]},
        {"deviceNodes": [{"path": ""}]},
        {"deviceNodes": [{}]},
        {"deviceNodes": [{"path": "/x", "type": "x"}]},
        {"deviceNodes": [{"path": "/x", "permissions": "rx"}]},
        {"deviceNodes": [{"path": "/x", "major": -1}]},
        {"mounts": [{"hostPath": "", "containerPath": "/x"}]},
        {"mounts": [{"hostPath": "/x"}]},
        {"hooks": [{"hookName": "later", "path": "/x"}]},
        {"hooks": [{"hookName": "prestart"}]},
        {"hooks": [{"hookName": "prestart", "path": "/x", "env": ["A"]}]},
        {"intelRdt": {"closID": ".."}},
        {"intelRdt": {"closID": "a/b"}},
        {"netDevices": [{"hostInterfaceName": "eth0", "name": ""}]},
        {
            "netDevices": [
                {"hostInterfaceName": "a", "name": "x"},
                {"hostInterfaceName": "a", "name": "y"},
            ]
        },
        {
            "netDevices": [
                {"hostInterfaceName": "a", "name": "x"},
                {"hostInterfaceName": "b", "name": "x"},
            ]
        },
    ],
)
def test_an_edit_against_the_rules_is_refused_in_a_device_and_for_the_whole_file(
    edits: dict[str, Any],
) -> None:
    assert len(problems(edited("1.1.0", **edits))) == 1
    assert len(problems(spec(cdiVersion="1.1.0", containerEdits=edits))) == 1


def test_an_edit_within_the_rules_is_taken() -> None:
    document = parse(
        edited(
            "1.1.0",
            env=["A=", "B==c"],
            deviceNodes=[
                {"path": "/dev/a", "type": kind, "permissions": access}
                for kind in ("", "b", "c", "u", "p")
                for access in ("", "r", "rw", "rwm", "mwr")
            ],
            hooks=[
                {"hookName": name, "path": "/x", "args": ["x"], "timeout": 5}
                for name in (
                    "prestart",
                    "createRuntime",
                    "createContainer",
                    "startContainer",
                    "poststart",
                    "poststop",
                )
            ],
            intelRdt={"closID": "/", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=50"},
            additionalGids=[0, 44],
        )
    )
    assert len(document.devices["a"].device_nodes) == 25
    assert document.devices["a"].additional_gids == (0, 44)


# --- hostile files ---


def test_a_file_of_more_than_a_mebibyte_is_refused() -> None:
    assert problems(b" " * (MAX_BYTES + 1)) == [f"longer than {MAX_BYTES} bytes"]


@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b'{"a":' * 100_000, b"- " * 5_000, b'{"x":' + b"[" * 40 + b"]" * 40 + b"}"],
)
def test_deep_nesting_is_refused_and_not_followed(text: bytes) -> None:
    assert len(problems(text)) >= 1


def test_yaml_aliases_are_refused_and_so_cannot_multiply() -> None:
    text = b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    assert problems(text) == ["YAML aliases are not followed"]


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00",
        b'{"kind": "\xff"}',
        b'{"kind": "\\ud83d"}',
        b"\x00\x01",
        b"kind: !!python/object:os.system {}",
        b"kind: !foo bar",
        b"? [a, b]\n: c\n",
        b"{a: 1, *b}",
        b"---\nkind: a/b\n---\nkind: a/c\n",
        b'{"cdiVersion": NaN}',
        b'{"major": ' + b"9" * 5000 + b"}",
    ],
)
def test_rubbish_is_refused_and_never_raises_anything_else(text: bytes) -> None:
    assert problems(text)


def test_a_file_is_read_from_disk_and_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text(GOOD)
    assert load(good).name == str(good)
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(SpecInvalid) as caught:
            load(path)
        assert caught.value.problems == (Problem(line=0, field="", message="not a regular file"),)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.json")


def test_a_thousand_devices_are_read_with_lines_even_when_one_is_wrong() -> None:
    devices = [{"name": f"d{i}", "containerEdits": {"env": ["A=1"]}} for i in range(1024)]
    devices[1000]["containerEdits"] = {}
    assert problems(spec(devices=devices))[0].startswith("devices[1000].containerEdits: ")
