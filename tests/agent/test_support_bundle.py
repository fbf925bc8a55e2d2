"""The support bundle: everything that helps, nothing that is secret, and whole or not at all."""

import asyncio
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hailo_agent import cli
from hailo_agent.core.cordon import Cordon
from hailo_agent.core.cordon import document as document_of
from hailo_agent.core.device import DeviceId
from hailo_agent.errors import EdgeError
from hailo_agent.host import collect as host_collect
from hailo_agent.runtime.collect import cdi_files
from hailo_agent.settings import Loaded, add_flags, flags_from, load
from hailo_agent.sim.generations import HAILO_8
from hailo_agent.sim.node import RESOURCE
from hailo_agent.sim.reports import Scene
from hailo_agent.support import bundle as support
from hailo_agent.support.bundle import FOLDER, MANIFEST, MAX_FILE_BYTES, Bundle, collect
from hailo_agent.support.masking import MASK, masked, masked_document, secrets_of
from tests.doctor.support import a_kubelet, an_agent, scene, write_spec

ADDRESS = "0000:01:00.0"
AT = 1_795_377_000.0
SECONDS = 30
ODD = "kjh34-jkh2-34kjh"  # what a token looks like is anybody's guess
JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl"
LOOKALIKE = "token-refresher"
PLANTED = {
    "containerd password": "registry-pa55word",
    "containerd auth": "ZG9ja2VyOmh1bnRlcjI=",
    "docker auth": "ZG9ja2VyOnNlc2FtZQ==",
    "a variable": ODD,
    "a CDI file of our kind": "env-of-our-kind-9",
    "a CDI file of others": "env-of-others-9",
    "a hook argument": "hook-argument-9",
    "the kernel log": "kernel-log-9-secret",
    "the kernel command line": "kernel-command-line-9",
    "a service account": JWT,
    "a URL": "url-user:url-pass-9",
    "a reason": "reason-of-a-cordon-9",
}


@pytest.fixture
def here() -> Iterator[Scene]:
    with scene() as built:
        built.firmware()
        built.machine.load("4.23")
        built.machine.plug(ADDRESS, pci_id=HAILO_8)
        yield built


def plant(at: Scene) -> dict[str, str]:
    """Put a secret wherever one may stand; returns the environment."""
    at.write(
        "/etc/containerd/config.toml",
        "version = 2\n"
        '[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example".auth]\n'
        f'  username = "robot"\n  password = "{PLANTED["containerd password"]}"\n'
        f'  auth = "{PLANTED["containerd auth"]}"\n',
    )
    auths = {"auths": {"r.example": {"auth": PLANTED["docker auth"]}}}
    at.write("/etc/docker/daemon.json", json.dumps({"features": {"cdi": True}, **auths}))
    at.write("/root/.docker/config.json", json.dumps(auths))
    at.write("/var/run/secrets/kubernetes.io/serviceaccount/token", JWT)
    at.cdi.mkdir(exist_ok=True)
    for kind, secret in (("hailo.ai/npu", "our kind"), ("vendor.com/gpu", "others")):
        hook = {"hookName": "createRuntime", "path": "/bin/true"}
        edits = {
            "env": [f"API={PLANTED[f'a CDI file of {secret}']}"],
            "hooks": [{**hook, "args": [f"--with={PLANTED['a hook argument']}"]}],
        }
        spec = {"cdiVersion": "0.5.0", "kind": kind, "devices": [{"name": "x"}]}
        spec["devices"][0]["containerEdits"] = edits  # type: ignore[index]
        (at.cdi / f"{kind.replace('/', '-')}-x.json").write_text(json.dumps(spec))
    at.would_say(
        f"hailo 0000:01:00.0: api_key={PLANTED['the kernel log']} refused",
        f"Command line: hailo_pci.x=1 {PLANTED['the kernel command line']}",
        f"hailo: fetched https://{PLANTED['a URL']}@example.com/fw with Bearer {JWT}",
        f"hailo: nothing to hide of {LOOKALIKE}",
    )
    cordon = Cordon(
        device_id=DeviceId("pci-0000-01-00-0"),
        reason=f"password: {PLANTED['a reason']}",
        since="2026-11-22T18:30:00Z",
    )
    at.write("/cordons.json", json.dumps(document_of([cordon])))
    at.options["host.cordon-file"] = str(at.host / "cordons.json")
    return {"REGISTRY_TOKEN": ODD, "HAILO_AGENT_LOG__LEVEL": "info", "HOME": "/root"}


def loaded(at: Scene, **environ: str) -> Loaded:
    parser = ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    ours = {k: v for k, v in environ.items() if k.startswith("HAILO_AGENT_")}
    flags = flags_from(*parser.parse_known_args(at.flags))
    return load(flags=flags, environ=ours, config=None)


async def collected(at: Scene, **environ: str) -> Bundle:
    return await collect(
        loaded(at, **environ), root=at.host, kernel_log=at.kernel_log, environ=environ, at=AT
    )


def contents(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        names = tar.getnames()
        assert len(names) == len(set(names))
        return {
            member.name.removeprefix(f"{FOLDER}/"): tar.extractfile(member).read()  # type: ignore[union-attr]
            for member in tar.getmembers()
        }


def document(files: dict[str, bytes], name: str) -> Any:  # noqa: ANN401 - any JSON value
    return json.loads(files[name])


# --- secrets -------------------------------------------------------------------------------------


async def test_no_secret_is_in_it_wherever_one_was_planted(here: Scene) -> None:
    environ = plant(here)
    await write_spec(here)
    async with a_kubelet(here) as kubelet, an_agent(here) as agent:
        await kubelet.wait_for(lambda: kubelet.resource(RESOURCE).capacity == 1)
        async with asyncio.timeout(SECONDS):
            async for inventory in agent.inventory.follow():
                if any(d.faults for d in inventory.devices):
                    break
        files = contents((await collected(here, **environ)).archive())
    everything = b"\n".join(files.values())
    for where, secret in PLANTED.items():
        assert secret.encode() not in everything, where
    # It was not by leaving everything out.
    assert b"cordoned since 2026-11-22T18:30:00Z: password: (masked)" in files["inventory.json"]
    assert LOOKALIKE.encode() in files["kernel.log"]
    assert b"refused" in files["kernel.log"]
    assert b"containerd" in files["doctor.json"]
    specs = document(files, "cdi.json")
    ours = next(spec for spec in specs if spec["path"].endswith("hailo.ai-npu-x.json"))
    assert ours["document"]["devices"][0]["containerEdits"]["env"] == ["API=(left out)"]
    theirs = next(spec for spec in specs if spec["kind"] == "vendor.com/gpu")
    assert theirs["document"] is None
    assert document(files, "environment.json") == {"names": ["HAILO_AGENT_LOG__LEVEL"]}


async def test_a_pod_that_is_called_like_a_token_keeps_its_name(here: Scene) -> None:
    async with a_kubelet(here) as kubelet, an_agent(here) as agent:
        await kubelet.wait_for(lambda: kubelet.resource(RESOURCE).allocatable == 1)
        await kubelet.admit(f"default/{LOOKALIKE}", {RESOURCE: 1})
        files = contents((await collected(here)).archive())
        assert agent.roster.is_ready
    (hold,) = document(files, "holders.json")["holds"]
    assert hold["pod"] == LOOKALIKE


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("password=hunter2", f"password={MASK}"),
        ('"auth": "aGVsbG8="', f'"auth": {MASK}'),
        ("Authorization: Bearer abcdefghijklmnop", f"Authorization: {MASK}"),
        ("https://me:sesame@example.com/x", f"https://{MASK}@example.com/x"),
        (f"it said {JWT}.", f"it said {MASK}."),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", MASK),
        ("default/token-refresher has it", "default/token-refresher has it"),
        ("https://example.com/a@b", "https://example.com/a@b"),
        ("hailo 0000:01:00.0: probe failed with error -2", None),
    ],
)
def test_what_looks_like_a_secret_is_masked_and_nothing_else(text: str, left: str | None) -> None:
    assert masked(text) == (text if left is None else left)


def test_what_is_called_like_a_secret_is_masked_whole_and_what_is_empty_stays() -> None:
    given = {"a.password": ["x", "y"], "token": "", "pod": "token-1", "n": [1, None, True]}
    left = {"a.password": MASK, "token": "", "pod": "token-1", "n": [1, None, True]}
    assert masked_document(given) == left


def test_values_of_variables_are_masked_verbatim_but_no_word_or_path_is() -> None:
    environ = {
        "A_TOKEN": ODD,
        "B_SECRET": "default",
        "SSH_AUTH": "/run/agent.sock",
        "C": "12345678",
    }
    assert secrets_of(environ) == (ODD,)
    assert masked(f"x{ODD}y default", secrets_of(environ)) == f"x{MASK}y default"


# --- what is in it -------------------------------------------------------------------------------


async def test_the_manifest_names_every_file_and_says_what_it_is(here: Scene) -> None:
    async with a_kubelet(here) as kubelet, an_agent(here):
        await kubelet.wait_for(lambda: kubelet.resource(RESOURCE).allocatable == 1)
        files = contents((await collected(here)).archive())
    manifest = document(files, MANIFEST)
    assert [entry["name"] for entry in manifest["files"]] == sorted(set(files) - {MANIFEST})
    assert all(entry["what"] and not entry["cut"] for entry in manifest["files"])
    assert {entry["name"]: entry["bytes"] for entry in manifest["files"]} == {
        name: len(data) for name, data in files.items() if name != MANIFEST
    }
    assert manifest["missing"] == []
    assert document(files, "recent.json")["changes"][0]["kind"] == "KIND_ADDED"
    assert document(files, "parts.json")["ready"] is True
    assert document(files, "inventory.json")["devices"][0]["id"] == "pci-0000-01-00-0"
    assert document(files, "settings.json")["host.dev"]["value"] == str(here.machine.dev)
    assert document(files, "doctor.json")["verdict"] in {"ok", "degraded", "broken"}
    assert document(files, "sysfs.json")[f"bus/pci/devices/{ADDRESS}/vendor"] == "0x1e60"
    assert document(files, "versions.json")["running agent"]


async def test_what_cannot_be_collected_is_named_with_the_reason(here: Scene) -> None:
    here.kernel_log.unlink()
    files = contents((await collected(here)).archive())
    missing = {entry["name"]: entry["why"] for entry in document(files, MANIFEST)["missing"]}
    assert set(missing) == {"kernel.log", "parts.json", "recent.json"}
    assert "No such file" in missing["kernel.log"]
    assert "the socket does not exist" in missing["recent.json"]
    # The machine has been looked at all the same.
    assert document(files, "inventory.json")["devices"]
    assert "kubelet" in document(files, "holders.json")["kubeletError"]


async def test_a_driver_that_hangs_costs_no_more_than_the_rest_of_sysfs(
    here: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def hang(sys: Path, at: str, names: object, found: dict[str, str]) -> None:
        over.wait(SECONDS)

    monkeypatch.setattr(host_collect, "_attributes", hang)
    monkeypatch.setattr(support, "_SECONDS", 0.2)
    files = contents((await collected(here)).archive())
    over.set()
    assert f"bus/pci/devices/{ADDRESS}" in document(files, "sysfs.json")
    missing = {entry["name"] for entry in document(files, MANIFEST)["missing"]}
    assert "sysfs.json" in missing
    assert "cdi.json" in files


async def test_it_is_bounded_and_what_was_cut_is_said_to_be(here: Scene) -> None:
    line = "hailo 0000:01:00.0: " + "x" * 4000
    await asyncio.to_thread(here.kernel_log.write_text, f"{line}\n" * 2000 + "hailo: the end\n")
    bundle = await collected(here)
    bundle.add("huge.json", "for the test", ['"' * MAX_FILE_BYTES])
    files = contents(bundle.archive())
    assert all(len(data) <= MAX_FILE_BYTES for data in files.values())
    assert sum(map(len, files.values())) <= support.MAX_BYTES
    assert files["kernel.log"].endswith(b"hailo: the end\n")  # the end matters most
    assert document(files, "huge.json")["cut"] is True
    cut = {e["name"] for e in document(files, MANIFEST)["files"] if e["cut"]}
    assert cut == {"kernel.log", "huge.json"}


async def test_the_same_content_packs_to_the_same_bytes_in_the_same_order(here: Scene) -> None:
    bundle = await collected(here)
    archive = bundle.archive()
    bundle.files.reverse()
    assert bundle.archive() == archive
    names = list(contents(archive))
    assert names[0] == MANIFEST
    assert names[1:] == sorted(names[1:])


def test_cdi_files_are_not_believed(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text(
        '{"cdiVersion": "0.5.0", "kind": "hailo.ai/npu", "s3cret": 1}'
    )
    (tmp_path / "huge.json").write_bytes(b" " * 300_000)
    (tmp_path / "gone.json").symlink_to("nowhere")
    (tmp_path / "note.txt").write_text("not looked at")
    os.mkfifo(tmp_path / "pipe.yaml")
    found = {Path(file.path).name: file for file in cdi_files([tmp_path, tmp_path])}
    assert set(found) == {"broken.json", "huge.json", "gone.json", "pipe.yaml"}
    assert all(file.document is None and file.trouble for file in found.values())
    assert "No such file" in found["gone.json"].trouble


# --- the file ------------------------------------------------------------------------------------


def test_it_is_for_its_owner_alone_and_replaces_what_stood_there(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    path = tmp_path / "b.tar.gz"
    path.symlink_to(elsewhere)
    before = os.umask(0)
    try:
        support.write(path, b"archive")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"archive"
    assert not path.is_symlink()
    assert elsewhere.read_text() == "mine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.tar.gz", "elsewhere"]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(EdgeError, match="taken: Is a directory"):
        support.write(tmp_path / "taken", b"archive")
    with pytest.raises(EdgeError, match="No such file or directory"):
        support.write(tmp_path / "nowhere" / "b", b"archive")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_a_person_types_it_and_is_told_what_is_not_in_it(
    here: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    path = here.root / "b.tar.gz"
    flags = [*here.flags, f"--root={here.host}", f"--kernel-log={here.kernel_log}"]
    assert cli._run(["support-bundle", f"--output={path}", *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{path} has ")
    assert any(line.startswith("Not in it: recent.json") for line in said)
    assert MANIFEST in contents(path.read_bytes())


def test_it_can_be_written_to_standard_output_where_no_file_may_be_written(here: Scene) -> None:
    flags = [*here.flags, f"--root={here.host}", f"--kernel-log={here.kernel_log}"]
    done = subprocess.run(
        [sys.executable, "-m", "hailo_agent", "support-bundle", "--output=-", *flags],
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "inventory.json" in contents(done.stdout)
