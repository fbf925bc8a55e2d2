"""What `docs/troubleshooting.md` says the doctor says is what it says.

Each symptom that a simulated node can be brought into is staged here, under the heading of its
section, and every finding quoted there must be among those that the doctor prints.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import pytest

from hailo_agent import __version__
from hailo_agent.cli import doctor as cli
from hailo_agent.core.cordon import Cordon, serialise
from hailo_agent.core.device import DeviceId
from hailo_agent.core.diagnosis.finding import Finding
from hailo_agent.host import examine as host_edge
from hailo_agent.sim.generations import HAILO_8
from hailo_agent.sim.kubelet import Kubelet
from hailo_agent.sim.node import RESOURCE
from hailo_agent.sim.reports import REPORTS, Scene
from tests.doctor.support import (
    a_kubelet,
    an_agent,
    cordon_file,
    examine,
    scene,
    write_spec,
)
from tests.house.repository import ROOT
from tests.support.another_plugin import another_plugin

PAGE: Final = (ROOT / "docs" / "troubleshooting.md").read_text()
FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
SOON_SECONDS: Final = 20.0
_VERDICT = re.compile(r"^(?:broken|degraded|unseen|ok)\s+\S", re.MULTILINE)

Staging = Callable[[Scene], Awaitable[Sequence[Finding]]]
STAGED: dict[str, Staging] = {}


def symptom(heading: str) -> Callable[[Staging], Staging]:
    """Put what stages a symptom under the heading of its section."""

    def register(stage: Staging) -> Staging:
        STAGED[heading] = stage
        return stage

    return register


def as_on_a_node(at: Scene, text: str) -> str:
    """Give paths of the scene the names that they have on a node."""
    names = {
        f"{at.root}/links": "/run/hailo-agent/devices",
        f"{at.root}/agent.sock": "/run/hailo-agent/agent.sock",
        f"{at.root}/etc-cdi": "/etc/cdi",
        str(at.cdi): "/var/run/cdi",
        str(at.kubelet): "/var/lib/kubelet",
        str(at.kernel_log): "/dev/kmsg",
        str(cordon_file(at)): "/var/lib/hailo-agent/cordons.json",
        f"for kernel {os.uname().release}": "for kernel 6.12.47",
        f"version {__version__} answers": "version 0.1.0 answers",
    }
    for here, there in names.items():
        text = text.replace(here, there)
    return text


def a_board(at: Scene, address: str = FIRST, generation: str = "4.23") -> None:
    """Plug a Hailo-8 with driver and firmware."""
    at.firmware()
    if not at.machine.loaded:
        at.machine.load(generation)
    at.machine.plug(address, pci_id=HAILO_8)


def containerd(at: Scene, lines: str = "version = 3\n") -> None:
    """Configure the container runtime of a node: containerd 2, unless told otherwise."""
    at.write("/etc/containerd/config.toml", lines)


async def of_a_report(name: str, at: Scene) -> Sequence[Finding]:
    """Stage one of the public reports, its spec written."""
    REPORTS[name].build(at)
    if not at.cdi.exists():
        await write_spec(at)
    return (await examine(at)).findings


async def beside_a_kubelet(at: Scene) -> Sequence[Finding]:
    """Examine while a kubelet runs, and no agent."""
    async with a_kubelet(at):
        return (await examine(at)).findings


def reported(heading: str, name: str) -> None:
    """Stage a symptom by a public report."""

    async def stage(at: Scene) -> Sequence[Finding]:
        return await of_a_report(name, at)

    symptom(heading)(stage)


# --- the resource --------------------------------------------------------------------------------


@symptom("The node shows no hailo.ai/npu")
async def _no_resource(at: Scene) -> Sequence[Finding]:
    a_board(at)
    containerd(at)
    await write_spec(at)
    return await beside_a_kubelet(at)


@symptom("The kubelet's socket is not there")
async def _no_socket(at: Scene) -> Sequence[Finding]:
    a_board(at)
    (at.kubelet / "device-plugins").mkdir(parents=True)
    return (await examine(at)).findings


@symptom("The kubelet keeps its files elsewhere")
async def _elsewhere(at: Scene) -> Sequence[Finding]:
    REPORTS["k0s_7585_the_kubelet_keeps_its_things_elsewhere"].build(at)
    async with Kubelet(at.kubelet / "device-plugins"):
        findings = (await examine(at)).findings
        await asyncio.sleep(0.02)  # let it notice who has hung up, before its loop ends
    return findings


@symptom("Two plugins serve one resource")
async def _usurped(at: Scene) -> Sequence[Finding]:
    a_board(at)
    async with a_kubelet(at) as kubelet, an_agent(at) as agent, asyncio.timeout(SOON_SECONDS):
        agent._holdings.interval_seconds = 0.2
        await kubelet.wait_for(lambda: kubelet.resource(RESOURCE).allocatable == 1)
        async with another_plugin(kubelet):
            async for statuses in agent.roster.statuses.follow():
                if any("another plugin" in status.reason for status in statuses):
                    break
            return (await examine(at)).findings


# --- card, driver, firmware ----------------------------------------------------------------------


@symptom("No Hailo card is found at all")
async def _no_card(at: Scene) -> Sequence[Finding]:
    return (await examine(at)).findings


reported(
    "The card is on the bus and no driver serves it", "nvidia_414_started_before_there_was_a_driver"
)
reported("The driver of the other family is installed", "hailo_apps_111_driver_5_for_a_hailo_8")
reported(
    "The driver of the Hailo-8 is loaded for a Hailo-10H",
    "community_18986_driver_of_the_hailo_8_for_a_hailo_10h",
)
reported("Two families in one machine", "two_families_that_want_one_class")
reported("The firmware file is missing", "a_driver_that_gives_up_without_firmware")
reported("There is a node, and every call fails", "nerves_system_rpi5_39_a_node_without_firmware")
reported(
    "After an upgrade the chip still runs the old firmware",
    "hailo_model_zoo_genai_11_chip_still_runs_the_old_release",
)
reported("No interrupt behind a PCIe switch", "raspberrypi_linux_6206_no_interrupt_behind_a_switch")
reported("max_desc_page_size is too big", "hailo_mini_od_server_1_pages_of_16_kib")
reported("Inference is slower than it should be", "geerlingguy_164_a_link_of_generation_2")


@symptom("The chip does not answer, or fell off the bus")
async def _dead(at: Scene) -> Sequence[Finding]:
    a_board(at)
    at.machine.lose_link(FIRST)
    return (await examine(at)).findings


@symptom("The function was reset by hand")
async def _reset(at: Scene) -> Sequence[Finding]:
    a_board(at, generation="4.20")
    at.would_say(
        f"[    5.100000] hailo {FIRST}: Probing on: 1e60:2864...",
        f"[    5.300000] hailo {FIRST}: Probing: Added board 1e60-2864, /dev/hailo0",
        f"[  905.000000] hailo {FIRST}: Reset preparation for PCI device",
    )
    return (await examine(at)).findings


@symptom("The card belongs to a virtual machine")
async def _passed_through(at: Scene) -> Sequence[Finding]:
    a_board(at)
    at.machine.usurp(FIRST)
    return (await examine(at)).findings


@symptom("The agent does not know this driver")
async def _newer_driver(at: Scene) -> Sequence[Finding]:
    a_board(at)
    at.set_version("hailo_pci", "4.29.0")
    return (await examine(at)).findings


# --- health --------------------------------------------------------------------------------------


@symptom("A device is Unhealthy")
async def _no_node(at: Scene) -> Sequence[Finding]:
    a_board(at)
    at.machine.break_node(FIRST, "missing")
    return (await examine(at)).findings


@symptom("A healthy device is not handed out")
async def _cordoned(at: Scene) -> Sequence[Finding]:
    a_board(at)
    cordon = Cordon(
        device_id=DeviceId("pci-0000-01-00-0"),
        reason="fan is loud, ticket 4711",
        since="2026-11-22T18:30:00Z",
    )
    cordon_file(at).write_bytes(serialise([cordon]))
    await write_spec(at)
    return (await examine(at)).findings


@symptom("A pod holds a device that is gone")
async def _gone(at: Scene) -> Sequence[Finding]:
    a_board(at)
    a_board(at, SECOND)
    containerd(at)
    async with a_kubelet(at) as kubelet, an_agent(at), asyncio.timeout(SOON_SECONDS):
        await kubelet.wait_for(lambda: kubelet.resource(RESOURCE).allocatable == 2)
        held = (await kubelet.admit("default/detector", {RESOURCE: 1})).device_ids
        address = FIRST if "pci-0000-01-00-0" in held[RESOURCE] else SECOND
        at.machine.pull(address)
        await kubelet.wait_for(lambda: kubelet.resource(RESOURCE).allocatable == 1)
        findings = (await examine(at)).findings
    here = address.replace(":", "-").replace(".", "-")
    return [
        replace(finding, looked_at=finding.looked_at.replace(here, "0000-02-00-0"))
        for finding in findings
    ]


# --- containers ----------------------------------------------------------------------------------


@symptom("unresolvable CDI devices")
async def _unresolvable(at: Scene) -> Sequence[Finding]:
    a_board(at)
    containerd(at)
    await write_spec(at)
    a_board(at, SECOND)
    return await beside_a_kubelet(at)


@symptom("Another CDI file defines our devices")
async def _conflict(at: Scene) -> Sequence[Finding]:
    a_board(at)
    await write_spec(at)
    other = json.loads((at.cdi / "hailo.ai-npu.json").read_text())
    del other["containerEdits"]
    other["devices"] = [d for d in other["devices"] if d["name"] != "all"]
    (at.cdi / "hailo.yaml").write_text(json.dumps(other))
    return (await examine(at)).findings


@symptom("The container starts without its device")
async def _cdi_off(at: Scene) -> Sequence[Finding]:
    a_board(at)
    containerd(at, "version = 2\n")
    at.options["runtime.delivery"] = "cri"
    at.options["runtime.version"] = "containerd://1.7.13"
    await write_spec(at)
    return await beside_a_kubelet(at)


@symptom("The container sees boards that it may not open")
async def _no_mask(at: Scene) -> Sequence[Finding]:
    a_board(at)
    containerd(at, "version = 2\n")
    at.options["runtime.version"] = "containerd://1.7.13"
    await write_spec(at)
    return await beside_a_kubelet(at)


reported("/dev/hailo0: no such file or directory", "docker_device_hailo0_is_gone_after_the_rename")
reported(
    "The device goes away after systemctl daemon-reload",
    "nvidia_container_toolkit_48_device_lost_after_daemon_reload",
)


@symptom("Permission denied on the devnode")
async def _mode(at: Scene) -> Sequence[Finding]:
    a_board(at)
    (at.machine.dev / "hailo0").chmod(0o600)
    at.options["runtime.delivery"] = "devicespec"
    return await beside_a_kubelet(at)


@symptom("SELinux or AppArmor denies")
async def _denied(at: Scene) -> Sequence[Finding]:
    a_board(at)
    at.would_say(
        "[  512.000000] audit: type=1400 audit(1764000000.100:501): avc:  denied  { read write }"
        ' for  pid=4711 comm="hailortcli" name="hailo0" dev="devtmpfs"'
        " scontext=system_u:system_r:container_t:s0:c1,c2"
        " tcontext=system_u:object_r:device_t:s0 tclass=chr_file permissive=0"
    )
    return (await examine(at)).findings


# --- what libhailort says ------------------------------------------------------------------------

reported(
    "Status 76, HAILO_INVALID_DRIVER_VERSION",
    "hailo_rpi5_examples_72_library_newer_than_the_driver",
)
reported("Status 73 or 74, the device is in use", "community_18740_two_processes_want_one_chip")


@symptom("Status 85, HAILO_DRIVER_INVALID_RESPONSE")
async def _bad_entry(at: Scene) -> Sequence[Finding]:
    a_board(at)
    at.machine.litter("empty-entry")
    return (await examine(at)).findings


# --- the host ------------------------------------------------------------------------------------

reported("Too many open files", "intel_2075_no_inotify_instance_left")


# --- the tests -----------------------------------------------------------------------------------


def section(heading: str) -> str:
    """Take what stands below a heading of the third level."""
    _, found, rest = PAGE.partition(f"\n### {heading}\n")
    assert found, heading
    return re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0]


def quotes(text: str) -> list[str]:
    """List the doctor's findings that are quoted in a text, each as printed."""
    quoted = []
    for block in re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        starts = [found.start() for found in _VERDICT.finditer(block)]
        assert not starts or starts[0] == 0, block
        ends = [*starts[1:], len(block)]
        quoted += [block[start:end] for start, end in zip(starts, ends, strict=True)]
    return quoted


def printed(findings: Sequence[Finding], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    cli.show(findings)
    return capsys.readouterr().out


def test_every_section_that_quotes_the_doctor_is_staged_and_the_other_way_round() -> None:
    headings = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert [h for h in headings if quotes(section(h))] == [h for h in headings if h in STAGED]
    assert set(STAGED) <= set(headings)


@pytest.mark.parametrize("heading", STAGED)
async def test_a_finding_that_is_quoted_is_what_the_doctor_says(
    heading: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who else uses this machine's inotify up is not the page's business.
    monkeypatch.setattr(host_edge, "_is_inotify_exhausted", lambda: False)
    with scene() as at:
        findings = [
            replace(
                finding,
                looked_at=as_on_a_node(at, finding.looked_at),
                found=as_on_a_node(at, finding.found),
                why=as_on_a_node(at, finding.why),
                next_step=as_on_a_node(at, finding.next_step),
            )
            for finding in await STAGED[heading](at)
        ]
    said = {printed([finding], capsys).partition("\n\n")[0] + "\n" for finding in findings}
    for quote in quotes(section(heading)):
        assert quote in said, "".join(sorted(said))
