"""The simulated runtime finds, refreshes and injects as the CDI library does, traps included."""

import asyncio
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hailo_agent.sim.runtime import (
    CgroupRule,
    ContainerNotCreated,
    ContainerNotRun,
    DeviceSpec,
    MountSpec,
    Runtime,
)

A = "hailo.ai/npu=a"
B = "hailo.ai/npu=b"
CLASS = "/sys/class/hailo_chardev"
MASK = {
    "hostPath": "tmpfs",
    "containerPath": CLASS,
    "type": "tmpfs",
    "options": ["rw", "size=1m"],
}


def spec(*names: str, env: object = "WHICH=1", **top: object) -> str:
    devices = [{"name": name, "containerEdits": {"env": [env]}} for name in names]
    return json.dumps({"cdiVersion": "0.3.0", "kind": "hailo.ai/npu", "devices": devices, **top})


def publish(directory: Path, name: str, text: str) -> None:
    """Write the way a CDI writer must: another name in the same directory, then rename."""
    temporary = directory / f"{name}.tmp"
    temporary.write_text(text)
    temporary.replace(directory / name)


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    path = tmp_path / "etc-cdi"
    path.mkdir()
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run-cdi"
    path.mkdir()
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with a device node and two class entries, as drivers with virtual parents do it."""
    path = tmp_path / "root"
    (path / "dev").mkdir(parents=True)
    node(path, "hailo0", 510, 0)
    for entry in ("hailo0", "hailo1"):
        real = path / "sys/devices/virtual/hailo_chardev" / entry
        real.mkdir(parents=True)
        (real / "board_location").write_text(f"{entry} is here")
        link = path / f"sys/class/hailo_chardev/{entry}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../devices/virtual/hailo_chardev/{entry}")
    return path


def node(root: Path, name: str, major: int, minor: int, mode: int = 0o600) -> None:
    path = root / "dev" / name
    path.unlink(missing_ok=True)
    try:
        os.mknod(path, stat.S_IFCHR | mode, os.makedev(major, minor))
    except PermissionError:
        pytest.skip("device nodes can only be made by root")
    path.chmod(mode)


@pytest.fixture
def runtime(etc: Path, run: Path, root: Path) -> Iterator[Runtime]:
    with Runtime([etc, run], root=root) as runtime:
        yield runtime


# --- finding ---


def test_only_json_and_yaml_files_directly_in_the_directory_are_read(etc: Path, run: Path) -> None:
    (etc / "a.json").write_text(spec("a"))
    (etc / "b.yaml").write_text(spec("b"))
    (etc / "c.json.bak").write_text(spec("c"))
    (etc / "d.yml").write_text(spec("d"))
    (etc / "sub.json").mkdir()
    (etc / "sub.json" / "e.json").write_text(spec("e"))
    with Runtime([etc, run]) as runtime:
        assert list(runtime.devices) == [A, B]


def test_a_dot_file_is_read_like_any_other_half_written_or_not(etc: Path) -> None:
    (etc / ".hidden.json").write_text(spec("a"))
    (etc / ".tmp-1.json").write_text(spec("b")[:40])
    with Runtime([etc]) as runtime:
        assert list(runtime.devices) == [A]
        assert list(runtime.errors) == [etc / ".tmp-1.json"]


def test_a_higher_priority_directory_replaces_a_device_silently(etc: Path, run: Path) -> None:
    (etc / "old.json").write_text(spec("a", env="FROM=etc"))
    (run / "new.json").write_text(spec("a", env="FROM=run"))
    with Runtime([etc, run]) as runtime:
        assert runtime.errors == {}
        assert runtime.inject([A]).env == {"FROM": "run"}


def test_a_device_twice_at_one_priority_is_nobodys_and_the_rest_of_both_files_stays(
    run: Path,
) -> None:
    (run / "one.json").write_text(spec("a", "b"))
    (run / "two.json").write_text(spec("a", "c"))
    with Runtime([run]) as runtime:
        assert list(runtime.devices) == [B, "hailo.ai/npu=c"]
        assert set(runtime.errors) == {run / "one.json", run / "two.json"}
        assert f'conflicting device "{A}"' in runtime.errors[run / "one.json"][0]


def test_a_broken_file_takes_nothing_but_itself_away(run: Path) -> None:
    (run / "bad.json").write_text('{"cdiVersion": "0.3.0"')
    (run / "good.json").write_text(spec("a"))
    with Runtime([run]) as runtime:
        assert runtime.inject([A]).env == {"WHICH": "1"}
        assert list(runtime.errors) == [run / "bad.json"]


def test_a_directory_that_is_a_symlink_is_not_scanned_and_one_that_is_missing_is_no_error(
    etc: Path, tmp_path: Path
) -> None:
    (etc / "a.json").write_text(spec("a"))
    link = tmp_path / "link"
    link.symlink_to(etc)
    with Runtime([tmp_path / "absent", link]) as runtime:
        assert list(runtime.devices) == []
    with Runtime([tmp_path / "absent", etc]) as runtime:
        assert list(runtime.devices) == [A]


def test_a_directory_that_cannot_be_looked_at_ends_the_scan(etc: Path, tmp_path: Path) -> None:
    (etc / "a.json").write_text(spec("a"))
    (tmp_path / "file").write_text("")
    with Runtime([tmp_path / "file" / "cdi", etc]) as runtime:
        assert list(runtime.devices) == []


def test_a_file_for_a_newer_library_is_refused_by_an_older_one(run: Path) -> None:
    (run / "a.json").write_text(spec("a", cdiVersion="0.6.0"))
    with Runtime([run], newest="0.5.0") as runtime:
        assert list(runtime.devices) == []
        assert "0.6.0 is unknown" in runtime.errors[run / "a.json"][0]


# --- refreshing ---


def test_a_rename_within_the_directory_is_noticed(runtime: Runtime, run: Path) -> None:
    publish(run, "a.json", spec("a"))
    assert list(runtime.devices) == [A]
    publish(run, "a.json", spec("b"))
    assert list(runtime.devices) == [B]


def test_a_write_in_place_and_a_removal_are_noticed(runtime: Runtime, run: Path) -> None:
    (run / "a.json").write_text(spec("a"))
    assert list(runtime.devices) == [A]
    (run / "a.json").unlink()
    assert list(runtime.devices) == []


def test_a_rename_from_elsewhere_and_a_link_are_not_noticed_until_something_else_is(
    runtime: Runtime, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(spec("a"))
    (tmp_path / "b.json").write_text(spec("b"))
    (tmp_path / "a.json").rename(run / "a.json")
    (run / "b.json").hardlink_to(tmp_path / "b.json")
    before = runtime.refreshes
    with pytest.raises(ContainerNotCreated, match=f"unresolvable CDI devices {A}, {B}"):
        runtime.inject([A, B])
    assert runtime.refreshes == before
    publish(run, "c.json", spec("c"))
    assert list(runtime.devices) == [A, B, "hailo.ai/npu=c"]


def test_a_write_to_a_temporary_file_and_a_chmod_cause_no_refresh(
    runtime: Runtime, run: Path
) -> None:
    publish(run, "a.json", spec("a"))
    assert list(runtime.devices) == [A]
    before = runtime.refreshes
    (run / "x.tmp").write_text("something")
    (run / "a.json").chmod(0o600)
    assert list(runtime.devices) == [A]
    assert runtime.refreshes == before


def test_a_directory_that_appears_is_found_at_the_next_injection(tmp_path: Path) -> None:
    late = tmp_path / "late"
    with Runtime([late]) as runtime:
        assert list(runtime.devices) == []
        late.mkdir()
        (late / "a.json").write_text(spec("a"))
        assert runtime.inject([A]).env == {"WHICH": "1"}


def test_a_directory_that_is_removed_and_made_again_is_found_again(
    runtime: Runtime, run: Path
) -> None:
    publish(run, "a.json", spec("a"))
    assert list(runtime.devices) == [A]
    (run / "a.json").unlink()
    run.rmdir()
    assert list(runtime.devices) == []
    run.mkdir()
    publish(run, "a.json", spec("b"))
    assert list(runtime.devices) == [B]


def test_without_a_watch_everything_is_read_before_every_use(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(spec("a"))
    with Runtime([run], watches=False) as runtime:
        (tmp_path / "a.json").rename(run / "a.json")
        assert runtime.inject([A]).env == {"WHICH": "1"}


async def test_attached_to_a_loop_events_are_handled_as_they_come(run: Path) -> None:
    with Runtime([run]) as runtime:
        runtime.attach()
        before = runtime.refreshes
        publish(run, "a.json", spec("a"))
        async with asyncio.timeout(5):
            while runtime.refreshes == before:  # noqa: ASYNC110 - no more than the loop's turns
                await asyncio.sleep(0)


# --- names ---


def test_one_unresolvable_name_fails_the_container_with_the_runtimes_text(
    runtime: Runtime, run: Path
) -> None:
    publish(run, "a.json", spec("a"))
    with pytest.raises(ContainerNotCreated) as caught:
        runtime.inject([A, B])
    assert str(caught.value) == f"CDI device injection failed: unresolvable CDI devices {B}"


def test_names_come_from_the_cri_field_and_from_annotations_once(
    runtime: Runtime, run: Path
) -> None:
    publish(run, "a.json", spec("a", "b"))
    annotations = {"cdi.k8s.io/hailo_0": f"{A},{B}", "other.io/x": "not a name"}
    assert runtime.inject([A], annotations=annotations).env == {"WHICH": "1"}
    assert runtime.inject(annotations=annotations).env == {"WHICH": "1"}


@pytest.mark.parametrize("value", ["", f"{A}, {B}", "hailo0"])
def test_an_annotation_with_a_bad_name_fails_the_container(runtime: Runtime, value: str) -> None:
    with pytest.raises(ContainerNotCreated, match="invalid CDI device name"):
        runtime.inject(annotations={"cdi.k8s.io/hailo_0": value})


def test_a_runtime_with_cdi_switched_off_starts_without_the_device_or_says_so(run: Path) -> None:
    publish(run, "a.json", spec("a"))
    with Runtime([run], cdi="ignored") as runtime:
        assert runtime.inject([A]).env == {}
    with Runtime([run], cdi="refused") as runtime:
        with pytest.raises(ContainerNotCreated, match="CDI is disabled"):
            runtime.inject([A])
        assert runtime.inject().env == {}
    with Runtime([run], reads_cri=False) as runtime:
        assert runtime.inject([A]).env == {}


def test_spec_edits_are_applied_once_and_device_edits_in_the_order_asked_for(
    runtime: Runtime, run: Path
) -> None:
    hook = {"hookName": "prestart", "path": "/bin/true"}
    devices = [{"name": n, "containerEdits": {"env": [f"LAST={n}"], "hooks": [hook]}} for n in "ab"]
    publish(
        run,
        "a.json",
        spec(devices=devices, containerEdits={"env": ["LAST=spec"], "hooks": [hook]}),
    )
    container = runtime.inject([B, A], env={"LAST": "image", "PATH": "/bin"})
    assert container.env == {"LAST": "a", "PATH": "/bin"}
    assert len(container.hooks) == 3


def test_a_name_asked_for_twice_repeats_hooks_where_the_runtime_does_not_drop_duplicates(
    run: Path,
) -> None:
    edits = {"hooks": [{"hookName": "prestart", "path": "/bin/true"}]}
    publish(run, "a.json", spec(devices=[{"name": "a", "containerEdits": edits}]))
    with Runtime([run]) as runtime:
        assert len(runtime.inject([A, A]).hooks) == 1
    with Runtime([run], drops_duplicates=False) as runtime:
        assert len(runtime.inject([A, A]).hooks) == 2


# --- device nodes ---


def nodes(*edits: dict[str, Any], version: str = "0.5.0", **top: object) -> str:
    devices = [
        {"name": name, "containerEdits": {"deviceNodes": [edit]}}
        for name, edit in zip("ab", edits, strict=False)
    ]
    return spec(devices=devices, cdiVersion=version, **top)


def test_a_node_gets_the_hosts_number_its_permissions_and_the_users_ownership(
    runtime: Runtime, run: Path
) -> None:
    publish(run, "a.json", nodes({"path": "/dev/hailo0", "permissions": "rw"}))
    container = runtime.inject([A], user=(1000, 1001))
    made = container.nodes["/dev/hailo0"]
    assert (made.type, made.number, made.mode) == ("c", (510, 0), 0o666)
    assert (made.uid, made.gid) == (1000, 1001)
    assert container.cgroup == (CgroupRule(type="c", major=510, minor=0, access="rw"),)
    assert container.opens("/dev/hailo0")
    assert not container.opens("/dev/hailo0", "rwm")
    assert not container.opens("/dev/hailo1")


def test_permissions_left_out_are_all_and_a_host_path_may_differ(
    runtime: Runtime, run: Path
) -> None:
    publish(run, "a.json", nodes({"path": "/dev/npu", "hostPath": "/dev/hailo0"}))
    container = runtime.inject([A])
    assert list(container.nodes) == ["/dev/npu"]
    assert container.opens("/dev/npu", "rwm")


def test_a_number_is_looked_up_once_and_stays_stale_until_the_file_is_read_again(
    runtime: Runtime, run: Path, root: Path
) -> None:
    text = nodes({"path": "/dev/hailo0"})
    publish(run, "a.json", text)
    assert runtime.inject([A]).nodes["/dev/hailo0"].number == (510, 0)
    node(root, "hailo0", 511, 0)
    assert runtime.inject([A]).nodes["/dev/hailo0"].number == (510, 0)
    publish(run, "a.json", text)
    assert runtime.inject([A]).nodes["/dev/hailo0"].number == (511, 0)


def test_a_number_given_in_the_file_is_not_checked_against_the_host(
    runtime: Runtime, run: Path, root: Path
) -> None:
    publish(run, "a.json", nodes({"path": "/dev/hailo0", "type": "c", "major": 9, "minor": 7}))
    (root / "dev/hailo0").unlink()
    assert runtime.inject([A]).nodes["/dev/hailo0"].number == (9, 7)


@pytest.mark.parametrize(
    ("instead", "why"),
    [
        ("nothing", "no such file or directory"),
        ("symlink", "not a device node"),
        ("file", "not a device node"),
    ],
)
def test_a_host_path_that_is_no_device_node_itself_fails_the_container(
    runtime: Runtime, run: Path, root: Path, instead: str, why: str
) -> None:
    publish(run, "a.json", nodes({"path": "/dev/hailo0"}))
    at = root / "dev/hailo0"
    at.rename(root / "dev/real")
    if instead == "symlink":
        at.symlink_to("real")
    elif instead == "file":
        at.write_text("")
    with pytest.raises(ContainerNotCreated) as caught:
        runtime.inject([A])
    assert str(caught.value) == (
        "CDI device injection failed: failed to inject devices: "
        f'failed to stat CDI host device "/dev/hailo0": {why}'
    )


def test_a_type_that_is_not_the_hosts_fails_the_container(runtime: Runtime, run: Path) -> None:
    publish(run, "a.json", nodes({"path": "/dev/hailo0", "type": "b"}))
    with pytest.raises(ContainerNotCreated, match=r"host type mismatch \(b, c\)"):
        runtime.inject([A])


def test_a_plain_device_keeps_the_hosts_owner_follows_symlinks_and_is_replaced_by_cdi(
    runtime: Runtime, run: Path, root: Path
) -> None:
    (root / "dev/alias").symlink_to("hailo0")
    plain = DeviceSpec(container_path="/dev/hailo0", host_path="/dev/alias", permissions="rw")
    container = runtime.inject(devices=[plain], user=(1000, 1000))
    assert container.nodes["/dev/hailo0"].mode == 0o600
    assert not container.opens("/dev/hailo0")
    publish(run, "a.json", nodes({"path": "/dev/hailo0", "permissions": "rw"}))
    container = runtime.inject([A], devices=[plain], user=(1000, 1000))
    assert list(container.nodes) == ["/dev/hailo0"]
    assert container.opens("/dev/hailo0")


def test_a_plain_device_with_empty_permissions_cannot_be_opened(runtime: Runtime) -> None:
    plain = DeviceSpec(container_path="/dev/hailo0", host_path="/dev/hailo0", permissions="")
    assert not runtime.inject(devices=[plain]).opens("/dev/hailo0", "r")


def test_a_plain_device_that_is_gone_fails_the_container(runtime: Runtime) -> None:
    plain = DeviceSpec(container_path="/dev/x", host_path="/dev/hailo9", permissions="rw")
    with pytest.raises(ContainerNotCreated, match="no such file or directory"):
        runtime.inject(devices=[plain])


def test_group_zero_and_repeated_groups_are_dropped(runtime: Runtime, run: Path) -> None:
    devices = [
        {"name": n, "containerEdits": {"additionalGids": gids}}
        for n, gids in (("a", [0, 44]), ("b", [44, 45]))
    ]
    publish(run, "a.json", spec(devices=devices, cdiVersion="0.7.0"))
    assert runtime.inject([A, B]).gids == (44, 45)


# --- mounts ---


def entry(name: str) -> dict[str, Any]:
    path = f"{CLASS}/{name}"
    return {"hostPath": path, "containerPath": path, "options": ["ro", "bind", "nosuid"]}


def masked(*entries: str) -> str:
    devices = [
        {"name": device, "containerEdits": {"mounts": [entry(name)]}}
        for device, name in zip("ab", entries, strict=False)
    ]
    return spec(devices=devices, cdiVersion="0.4.0", containerEdits={"mounts": [MASK]})


def test_an_unmasked_container_sees_every_class_entry_of_the_host(runtime: Runtime) -> None:
    container = runtime.inject()
    assert container.class_entries("hailo_chardev") == ("hailo0", "hailo1")
    assert container.read(f"{CLASS}/hailo1/board_location") == "hailo1 is here"
    assert container.class_entries("hailo1x") == ()


def test_a_mask_with_read_only_binds_shows_exactly_the_containers_own_entries(
    runtime: Runtime, run: Path, root: Path
) -> None:
    publish(run, "a.json", masked("hailo0", "hailo1"))
    one = runtime.inject([B])
    assert one.class_entries("hailo_chardev") == ("hailo1",)
    assert one.read(f"{CLASS}/hailo1/board_location") == "hailo1 is here"
    assert runtime.inject([B, A]).class_entries("hailo_chardev") == ("hailo0", "hailo1")
    assert sorted(p.name for p in (root / "sys/class/hailo_chardev").iterdir()) == [
        "hailo0",
        "hailo1",
    ]


def test_mounts_are_made_by_depth_whatever_their_order_in_the_file(
    runtime: Runtime, run: Path
) -> None:
    edits = {"mounts": [entry("hailo0"), MASK]}
    devices = [{"name": "a", "containerEdits": edits}]
    publish(run, "a.json", spec(devices=devices, cdiVersion="0.4.0"))
    container = runtime.inject([A])
    assert container.mounts[-2:] == ((CLASS, "tmpfs"), (f"{CLASS}/hailo0", "bind"))
    assert container.class_entries("hailo_chardev") == ("hailo0",)


def test_a_mount_whose_source_is_gone_fails_at_start_and_not_at_creation(
    runtime: Runtime, run: Path, root: Path
) -> None:
    publish(run, "a.json", masked("hailo0"))
    (root / "sys/class/hailo_chardev/hailo0").unlink()
    with pytest.raises(ContainerNotRun, match=f"{CLASS}/hailo0: no such file"):
        runtime.inject([A])


def test_a_mask_over_a_class_that_the_host_does_not_have_fails_at_start(
    runtime: Runtime, run: Path
) -> None:
    mask = {**MASK, "containerPath": "/sys/class/hailo1x"}
    publish(run, "a.json", spec("a", cdiVersion="0.4.0", containerEdits={"mounts": [mask]}))
    with pytest.raises(ContainerNotRun, match="mkdir /sys/class/hailo1x: read-only file system"):
        runtime.inject([A])


def test_a_shared_writable_directory_over_the_class_collects_mountpoints_on_the_host(
    runtime: Runtime, root: Path, run: Path
) -> None:
    (root / "empty").mkdir()
    shared = {"hostPath": "/empty", "containerPath": CLASS, "options": ["rw", "bind"]}
    devices = [
        {"name": device, "containerEdits": {"mounts": [shared, entry(name)]}}
        for device, name in (("a", "hailo0"), ("b", "hailo1"))
    ]
    publish(run, "a.json", spec(devices=devices))
    assert runtime.inject([A]).class_entries("hailo_chardev") == ("hailo0",)
    assert runtime.inject([B]).class_entries("hailo_chardev") == ("hailo0", "hailo1")


def test_a_plain_mount_is_bound_and_is_replaced_by_cdi_at_the_same_place(
    runtime: Runtime, root: Path, run: Path
) -> None:
    (root / "srv").mkdir()
    (root / "srv" / "file").write_text("x")
    plain = MountSpec(container_path="/data", host_path="/srv", read_only=True)
    assert runtime.inject(mounts=[plain]).listdir("/data") == ("file",)
    other = {"hostPath": "tmpfs", "containerPath": "/data", "type": "tmpfs"}
    publish(run, "a.json", spec("a", cdiVersion="0.4.0", containerEdits={"mounts": [other]}))
    assert runtime.inject([A], mounts=[plain]).listdir("/data") == ()
