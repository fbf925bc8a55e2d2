"""What `docs/reference/doctor.md` says of checks and files is what the code has."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import replace

import pytest

from hailo_agent import __version__
from hailo_agent.cli import doctor as cli
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.host import examine as host_edge
from hailo_agent.runtime import configs
from hailo_agent.sim.generations import HAILO_8
from hailo_agent.sim.pci import Link
from hailo_agent.sim.reports import REPORTS, Scene
from tests.doctor.support import (
    a_kubelet,
    an_agent,
    examine,
    examined_by_nobody,
    scene,
    takes_root,
    write_spec,
)
from tests.house.repository import ROOT

PAGE = (ROOT / "docs" / "reference" / "doctor.md").read_text()
DIAGNOSIS = ROOT / "hailo_agent" / "core" / "diagnosis"
_NAME = r"[a-z]+\.[a-z]+(?:-[a-z]+)*"


def test_every_check_is_documented_and_the_other_way_round() -> None:
    sources = "".join(path.read_text() for path in DIAGNOSIS.glob("*.py"))
    made = set(re.findall(rf'check="({_NAME})"', sources))
    made |= set(re.findall(r'"(system\.[a-z]+)"', sources))
    rows = re.findall(r"^\| (`[^|]+) \|", PAGE, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(rf"`({_NAME})`", row)}
    assert made == documented


def test_every_verdict_and_every_field_is_documented() -> None:
    for verdict in Verdict:
        assert re.search(rf"^\| `{verdict}` \|", PAGE, re.MULTILINE)
    for name in Finding.__dataclass_fields__:
        assert f"`findings[].{name}`" in PAGE


def test_every_file_that_is_looked_at_is_documented() -> None:
    source = (ROOT / "hailo_agent" / "runtime" / "configs.py").read_text()
    assert configs.__doc__
    for path in re.findall(r'"(/(?:etc|run|var)/[a-z0-9./-]+\.(?:toml|json|conf))"', source):
        assert path in PAGE, path


@pytest.mark.parametrize("page", ["read-the-doctor.md", "podman-and-docker.md"])
def test_the_pages_for_operators_lead_there(page: str) -> None:
    assert (ROOT / "docs" / "how-to" / page).exists()


# --- what the how-to quotes ----------------------------------------------------------------------

HOW_TO = (ROOT / "docs" / "how-to" / "read-the-doctor.md").read_text()
FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
_UP = ("kubelet.resource", "agent.running")


def quoted(heading: str) -> str:
    """Take the first block below a heading."""
    section = HOW_TO.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return section.split("```\n")[1]


def as_on_a_node(at: Scene, findings: Sequence[Finding]) -> list[Finding]:
    """Give paths of the scene the names that they have on a node."""
    names = {
        str(at.cdi): "/var/run/cdi",
        str(at.kubelet): "/var/lib/kubelet",
        f"{at.root}/agent.sock": "/run/hailo-agent/agent.sock",
        str(at.kernel_log): "/dev/kmsg",
        f"version {__version__} answers": "version 0.1.0 answers",
    }

    def renamed(text: str) -> str:
        for here, there in names.items():
            text = text.replace(here, there)
        return text

    return [
        replace(
            finding,
            looked_at=renamed(finding.looked_at),
            found=renamed(finding.found),
            why=renamed(finding.why),
            next_step=renamed(finding.next_step),
        )
        for finding in findings
    ]


async def of_a_report(name: str, at: Scene) -> Sequence[Finding]:
    REPORTS[name].build(at)
    await write_spec(at)
    return (await examine(at)).findings


async def all_is_well(at: Scene) -> Sequence[Finding]:
    return await of_a_report("viseron_1490_library_in_the_image_older_than_the_driver", at)


async def the_driver_of_the_other_chip(at: Scene) -> Sequence[Finding]:
    return await of_a_report("hailo_apps_111_driver_5_for_a_hailo_8", at)


async def a_node_behind_which_nothing_runs(at: Scene) -> Sequence[Finding]:
    return await of_a_report("nerves_system_rpi5_39_a_node_without_firmware", at)


async def containers_that_see_too_much(at: Scene) -> Sequence[Finding]:
    at.firmware()
    at.machine.load("4.23")
    at.machine.plug(FIRST, pci_id=HAILO_8)
    at.machine.plug(SECOND, pci_id=HAILO_8, link=Link(width=2))
    at.write("/var/lib/rancher/k3s/agent/etc/containerd/config.toml", "version = 2\n")
    async with a_kubelet(at), an_agent(at), asyncio.timeout(20):
        told = await examine(at)
        while {told.the(check).verdict for check in _UP} != {Verdict.OK}:
            await asyncio.sleep(0.05)
            told = await examine(at)
    return told.findings


async def without_root(at: Scene) -> Sequence[Finding]:
    at.firmware()
    at.machine.load("4.23")
    at.machine.plug(FIRST, pci_id=HAILO_8)
    await write_spec(at)
    (at.root / "links").mkdir()
    (at.root / "links" / "pci-0000-01-00-0").symlink_to("/dev/hailo0")
    at.kernel_log.chmod(0o600)
    (at.kubelet / "device-plugins").mkdir(parents=True)
    at.kubelet.chmod(0o750)
    at.write("/etc/containerd/config.toml", "version = 2")
    (at.host / "etc/containerd/config.toml").chmod(0o600)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(f"{at.root}/agent.sock")
        (at.root / "agent.sock").chmod(0o600)
        findings = await asyncio.to_thread(examined_by_nobody, at)
    # A log is a file here; /dev/kmsg itself says something else.
    was = "not readable: Permission denied"
    return [
        replace(f, found="not readable: Operation not permitted") if f.found == was else f
        for f in findings
    ]


@pytest.mark.parametrize(
    ("heading", "scenario"),
    [
        ("All is well", all_is_well),
        ("The driver of the other chip", the_driver_of_the_other_chip),
        ("A node behind which nothing runs", a_node_behind_which_nothing_runs),
        ("Containers that see too much", containers_that_see_too_much),
        pytest.param("Without root", without_root, marks=takes_root),
    ],
)
async def test_an_output_in_the_how_to_is_what_the_doctor_prints(
    heading: str,
    scenario: Callable[[Scene], Awaitable[Sequence[Finding]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Who else uses this machine's inotify up is not the page's business.
    monkeypatch.setattr(host_edge, "_is_inotify_exhausted", lambda: False)
    with scene() as at:
        findings = as_on_a_node(at, await scenario(at))
    capsys.readouterr()
    cli.show(findings)
    assert capsys.readouterr().out == quoted(heading)
