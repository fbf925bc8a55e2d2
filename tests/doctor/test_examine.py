"""What the edges see of a real directory tree: the host, the CDI directories, the kubelet."""

import asyncio
import lzma
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hailo_agent import __version__, agent, doctor
from hailo_agent.core.device import PciAddress
from hailo_agent.core.diagnosis import diagnose
from hailo_agent.core.diagnosis.facts import Facts
from hailo_agent.core.diagnosis.finding import Verdict
from hailo_agent.core.inventory import Inventory
from hailo_agent.errors import HostError, SubscriberError
from hailo_agent.host import examine as host_edge
from hailo_agent.kubelet import examine as kubelet_edge
from hailo_agent.kubelet.session import KUBELET_SOCKET
from hailo_agent.settings import Settings
from hailo_agent.sim.generations import HAILO_8
from hailo_agent.sim.node import Node, temporary_root
from hailo_agent.sim.pci import Link
from hailo_agent.sim.reports import Scene
from hailo_agent.subscribers import client
from tests.doctor.support import a_kubelet, examine, scene, settings_of, write_spec
from tests.support.inside import agent_inside

ADDRESS = "0000:01:00.0"
AT = PciAddress(0, 1, 0, 0)
ONE = "pci-0000-01-00-0"


@pytest.fixture
def here() -> Iterator[Scene]:
    """One Hailo-8 in good order, its spec not written yet."""
    with scene() as built:
        built.firmware()
        built.machine.load("4.23")
        built.machine.plug(ADDRESS, pci_id=HAILO_8)
        yield built


async def facts_of(at: Scene) -> Facts:
    return await doctor.gather(settings_of(at), root=at.host, kernel_log=at.kernel_log)


# --- the host ------------------------------------------------------------------------------------


async def test_modules_are_seen_with_versions_and_parameters(here: Scene) -> None:
    here.machine.load("5.3")
    modules = (await facts_of(here)).host.modules
    assert [(m.name, m.version) for m in modules] == [
        ("hailo_pci", "4.23.0"),
        ("hailo1x_pci", "5.3.0"),
    ]
    assert modules[0].parameters["no_power_mode"] == "N"


async def test_a_driver_of_the_soc_is_seen(here: Scene) -> None:
    here.machine.load("integrated-4.17")
    names = [module.name for module in (await facts_of(here)).host.modules]
    assert names == ["hailo_pci", "hailo_integrated_nnc"]


@pytest.mark.parametrize(
    "line",
    [
        "updates/dkms/hailo_pci.ko.xz: kernel/x.ko\n",
        "extra/hailo_pci.ko:\n",
        "/lib/modules/x/hailo_pci.ko.zst:\n",
    ],
)
async def test_installed_modules_are_those_that_modprobe_knows(here: Scene, line: str) -> None:
    assert (await facts_of(here)).host.installed is None
    here.write(f"/lib/modules/{os.uname().release}/modules.dep", f"a/nvme.ko:\n{line}")
    assert (await facts_of(here)).host.installed == frozenset({"hailo_pci"})


@pytest.mark.parametrize(
    "file",
    [
        "hailo/hailo8_fw.bin",
        "hailo/hailo8_fw.bin.xz",
        "updates/hailo/hailo8_fw.bin.zst",
        f"{os.uname().release}/hailo/hailo8_fw.bin",
    ],
)
async def test_firmware_is_found_wherever_the_kernel_looks_for_it(file: str) -> None:
    with scene() as built:
        built.write("/lib/firmware/other.bin")
        built.machine.load("4.23")
        built.machine.plug(ADDRESS, pci_id=HAILO_8)
        assert (await facts_of(built)).host.firmware == {"hailo/hailo8_fw.bin": False}
        built.write(f"/lib/firmware/{file}", str(lzma.FORMAT_XZ))
        assert (await facts_of(built)).host.firmware == {"hailo/hailo8_fw.bin": True}


async def test_firmware_in_a_directory_of_the_kernels_command_line_is_found() -> None:
    with scene() as built:
        built.write("/lib/firmware/other.bin")
        built.write("/opt/fw/hailo/hailo8_fw.bin")
        built.machine.load("4.23")
        built.machine.plug(ADDRESS, pci_id=HAILO_8)
        parameter = built.machine.sys / "module/firmware_class/parameters/path"
        parameter.parent.mkdir(parents=True)
        parameter.write_text("/opt/fw\n")
        assert (await facts_of(built)).host.firmware == {"hailo/hailo8_fw.bin": True}


async def test_without_a_firmware_directory_nothing_is_missed() -> None:
    # As in a container that sees the devices, and of the host's files none.
    with scene() as built:
        built.machine.load("4.23")
        built.machine.plug(ADDRESS, pci_id=HAILO_8)
        assert (await facts_of(built)).host.firmware == {"hailo/hailo8_fw.bin": None}
        assert (await examine(built)).the("pci.function").verdict is Verdict.OK


async def test_what_the_port_above_could_do_is_read(here: Scene) -> None:
    here.machine.plug("0000:02:00.0", pci_id=HAILO_8, link=Link(width=1))
    here.port("0000:02:00.0", width=2)
    ports = (await facts_of(here)).host.ports
    assert ports[PciAddress(0, 2, 0, 0)].max_width == 2
    assert ports[AT].max_speed_gts >= 8.0


async def test_a_device_in_use_is_awake_and_one_that_is_not_sleeps(here: Scene) -> None:
    assert (await facts_of(here)).host.power_states[AT] != "D0"
    with here.machine.hold(ADDRESS):
        assert (await facts_of(here)).host.power_states[AT] == "D0"
        assert "a process has it open now" in (await examine(here)).the("pci.function").found


async def test_char_links_matter_under_systemd_alone(here: Scene) -> None:
    assert (await facts_of(here)).host.char_links is None
    here.write("/run/systemd/system/.keep")
    (number, leads), *_ = ((await facts_of(here)).host.char_links or {}).items()
    assert not leads
    link = here.machine.dev / "char" / number
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to("../hailo0")
    assert (await facts_of(here)).host.char_links == {number: True}


async def test_security_modules_are_seen_in_sysfs(here: Scene) -> None:
    host = (await facts_of(here)).host
    assert not host.selinux
    assert not host.apparmor
    for name, text in (("fs/selinux/enforce", "1"), ("module/apparmor/parameters/enabled", "Y\n")):
        file = here.machine.sys / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    host = (await facts_of(here)).host
    assert host.selinux
    assert host.apparmor


# --- the kernel log ------------------------------------------------------------------------------


async def test_of_the_log_only_what_concerns_us_is_kept(here: Scene) -> None:
    here.kernel_log.write_text(
        f"[1.0] usb 1-1: new device\n[2.0] hailo: Init module.\n[3.0] pcieport {ADDRESS}: AER\n"
        "[4.0] pci 0000:09:00.0: [1e60:2864] type 00\n[5.0] h1x: x\n"
    )
    log = (await facts_of(here)).host.kernel_log
    assert log is not None
    assert [line[1:4] for line in log] == ["2.0", "3.0", "4.0", "5.0"]


async def test_of_a_long_log_the_end_counts(here: Scene) -> None:
    failed = f"hailo {ADDRESS}: Failed activating board -110"
    here.kernel_log.write_text("hailo: old news\n" * 1_000_000 + failed + "\n")
    log = (await facts_of(here)).host.kernel_log
    assert log is not None
    assert log[-1] == failed
    assert len(log) <= 2000


async def test_a_log_that_is_not_text_is_read_all_the_same(here: Scene) -> None:
    here.kernel_log.write_bytes(b"\xff\xfe\x00hailo\x1b[2J\n\x80hailo\n")
    told = await examine(here)
    assert told.verdict is Verdict.BROKEN  # for there is no spec yet
    assert len((await facts_of(here)).host.kernel_log or ()) == 2


async def test_a_log_of_the_kernel_itself_is_read_by_records(here: Scene) -> None:
    # /dev/kmsg gives one record to a read, and says EAGAIN when there are no more.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(ours), closing(theirs):
        ours.send(b"6,1,5000000,-;hailo: Init module.\n SUBSYSTEM=pci\n")
        ours.send(b"6,2,5000001,-;usb 1-1: new device\n")
        ours.send(b"6,3,5000002,-;hailo: two\n")
        os.set_blocking(theirs.fileno(), False)
        assert list(host_edge._records(theirs.fileno())) == [
            "hailo: Init module.",
            "usb 1-1: new device",
            "hailo: two",
        ]


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/dev/null"])
async def test_a_log_without_an_end_is_given_up(here: Scene, path: str) -> None:
    begun = time.monotonic()
    log, unseen = host_edge._kernel_log(Path(path), [AT])
    assert log == ()
    assert unseen == ""
    assert time.monotonic() - begun < 5


async def test_a_log_that_is_a_pipe_or_a_directory_is_not_waited_for(here: Scene) -> None:
    here.kernel_log.unlink()
    assert (await facts_of(here)).host.kernel_log_unseen == "No such file or directory"
    os.mkfifo(here.kernel_log)
    assert (await facts_of(here)).host.kernel_log == ()
    here.kernel_log.unlink()
    here.kernel_log.mkdir()
    assert (await facts_of(here)).host.kernel_log_unseen == "Is a directory"
    here.kernel_log.rmdir()
    here.kernel_log.symlink_to(here.kernel_log)
    told = await examine(here)
    assert told.the("kernel.log").found == "not readable: Too many levels of symbolic links"


# --- the CDI directories -------------------------------------------------------------------------


async def test_a_spec_is_read_as_a_runtime_reads_it(here: Scene) -> None:
    assert (await facts_of(here)).spec.nodes is None
    await write_spec(here)
    facts = await facts_of(here)
    assert facts.spec.nodes == facts.expected
    assert set(facts.expected) == {ONE, "all"}
    assert bool(facts.spec.is_writable) is (os.geteuid() == 0)  # only root can tell for root


async def test_a_spec_of_yesterday_is_told_apart_from_the_truth(here: Scene) -> None:
    await write_spec(here)
    here.machine.plug("0000:02:00.0", pci_id=HAILO_8)
    told = await examine(here)
    assert told.the("cdi.spec").found == "lacks pci-0000-02-00-0"
    here.machine.pull("0000:02:00.0")
    here.machine.pull(ADDRESS)
    told = await examine(here)
    assert told.the("cdi.spec").found.startswith(f"still names all, {ONE}")


async def test_somebody_elses_file_with_our_names_is_found(here: Scene) -> None:
    await write_spec(here)
    other = here.cdi / "other.json"
    other.write_text(
        '{"cdiVersion": "0.6.0", "kind": "hailo.ai/npu", "devices": [{"name": "'
        + ONE
        + '", "containerEdits": {"env": ["A=b"]}}]}'
    )
    told = await examine(here)
    assert told.the("cdi.conflict").looked_at == str(other)


@pytest.mark.parametrize("what", ["directory", "fifo", "loop", "nothing legible", "deep", "large"])
async def test_a_spec_that_is_none_hurts_nobody(here: Scene, what: str) -> None:
    here.cdi.mkdir()
    spec = here.cdi / "hailo.ai-npu.json"
    match what:
        case "directory":
            spec.mkdir()
        case "fifo":
            os.mkfifo(spec)
        case "loop":
            spec.symlink_to(spec)
        case "deep":
            spec.write_text("[" * 100_000)
        case "large":
            spec.write_text("#\n" * 5_000_000)
        case _:
            spec.write_bytes(b"\xff\x00")
    begun = time.monotonic()
    told = await examine(here)
    assert told.the("cdi.spec").verdict in {Verdict.BROKEN, Verdict.UNSEEN}
    assert time.monotonic() - begun < 8


@pytest.mark.parametrize("kind", ["file", "loop"])
async def test_a_cdi_directory_that_is_none_hurts_nobody(here: Scene, kind: str) -> None:
    if kind == "file":
        here.cdi.write_text("no directory")
    else:
        here.cdi.symlink_to(here.cdi)
    told = await examine(here)
    assert told.the("cdi.spec").verdict in {Verdict.BROKEN, Verdict.UNSEEN}


# --- the kubelet, and the agent ------------------------------------------------------------------


async def test_where_there_has_never_been_a_kubelet_none_is_expected(here: Scene) -> None:
    assert not (await facts_of(here)).in_kubernetes
    here.kubelet.mkdir()
    assert (await facts_of(here)).in_kubernetes


async def test_a_kubelet_that_answers_is_asked_what_it_counts(here: Scene) -> None:
    await write_spec(here)
    async with a_kubelet(here):
        told = await examine(here)
    assert told.the("kubelet.socket").found == "answers"
    finding = told.the("kubelet.resource")
    assert (finding.looked_at, finding.verdict) == ("hailo.ai/npu", Verdict.BROKEN)
    assert "though there are usable devices" in finding.found


async def test_a_kubelet_that_is_down_leaves_its_socket_behind(here: Scene) -> None:
    async with a_kubelet(here):
        pass
    finding = (await examine(here)).the("kubelet.socket")
    assert finding.verdict is Verdict.BROKEN
    assert finding.found == "nobody listens there: the kubelet does not run"


async def test_a_kubelet_that_hangs_is_not_waited_for(
    here: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubelet_edge, "_SECONDS", 0.2)
    directory = here.kubelet / "pod-resources"
    directory.mkdir(parents=True)
    with closing(socket.socket(socket.AF_UNIX)) as silent:
        silent.bind(str(directory / KUBELET_SOCKET))
        silent.listen()
        begun = time.monotonic()
        facts = await kubelet_edge.examine(
            here.kubelet / "device-plugins", here.kubelet, ["hailo.ai/npu"], root=here.host
        )
    assert facts.registered == {"hailo.ai/npu": None}
    assert facts.unasked
    assert time.monotonic() - begun < 2


async def test_a_kubelet_socket_that_is_a_file_is_no_kubelet(here: Scene) -> None:
    plugins = here.kubelet / "device-plugins"
    plugins.mkdir(parents=True)
    (plugins / KUBELET_SOCKET).write_text("")
    assert (await examine(here)).the("kubelet.socket").verdict is Verdict.BROKEN


async def test_a_node_where_all_runs_is_healthy_and_the_agent_tells_its_version() -> None:
    async with temporary_root() as root, Node.build(root) as node:
        node.machine.load("4.23")
        node.machine.plug(ADDRESS, pci_id=HAILO_8)
        async with agent_inside(node) as running:
            await node.listed(1)
            settings = running.settings
            facts = await doctor.gather(settings, root=root, kernel_log=root / "none")
            findings = {f.check: f for f in diagnose(facts)}
        assert facts.agent.version == __version__
        assert facts.kubelet.registered == {"hailo.ai/npu": True}
        assert findings["agent.running"].found == f"version {__version__} answers"
        assert findings["kubelet.resource"].found == "counted by the kubelet"
        assert findings["cdi.spec"].found == "valid, and true: 1 device"
        healthy = {Verdict.OK, Verdict.UNSEEN}
        assert [f for f in findings.values() if f.verdict not in healthy] == []


async def test_an_agent_without_a_socket_cannot_be_asked(here: Scene) -> None:
    here.options["subscribers.socket"] = ""
    finding = (await examine(here)).the("agent.running")
    assert finding.verdict is Verdict.UNSEEN
    assert finding.found == "it cannot be asked: subscribers.socket is empty"


async def test_an_agent_whose_socket_is_not_ours_to_open_is_not_judged(
    here: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(socket: Path) -> Inventory:
        raise SubscriberError(
            f"{socket} is closed to us", edge="subscribers"
        ) from PermissionError()

    monkeypatch.setattr(client, "get_inventory", refuse)
    assert (await facts_of(here)).agent.unseen == "Permission denied"


async def test_a_machine_that_cannot_be_looked_at_is_said_and_all_else_is_looked_at(
    here: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(settings: Settings) -> None:
        raise HostError("sysfs does not answer", edge=str(settings.host.sys))

    monkeypatch.setattr(agent, "observe_once", fail)
    told = await examine(here)
    assert told.the("pci.function").found == "sysfs does not answer"
    assert told.the("driver.version").verdict is Verdict.OK


# --- what it does not do -------------------------------------------------------------------------


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Note of every file what changes when somebody writes to it."""
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        found[str(path)] = status.st_mode, status.st_mtime_ns, status.st_ino
    return found


async def test_it_changes_nothing(here: Scene) -> None:
    await write_spec(here)
    async with a_kubelet(here):
        before = snapshot(here.root)
        await examine(here)
        assert snapshot(here.root) == before


async def test_it_opens_no_devnode(here: Scene) -> None:
    # To open an accelerator's node wakes the chip, and while it is open others cannot.
    here.machine.plug("0000:02:00.0", pci_id=HAILO_8)
    await write_spec(here)
    program = f"""
import sys
opened = []
sys.addaudithook(lambda event, of: opened.append(str(of[0])) if event == "open" else None)
from hailo_agent.cli import doctor, main
import os
os._exit = lambda code: None
main(["doctor", *{here.flags!r}, "--root={here.host}", "--kernel-log={here.kernel_log}"])
print("opened", *(path for path in opened if path.startswith({str(here.root)!r})), sep="\\n")
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    opened = done.stdout.partition("opened\n")[2].splitlines()
    assert str(here.kernel_log) in opened
    assert [path for path in opened if path.startswith(str(here.machine.dev))] == []
