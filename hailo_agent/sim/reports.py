"""What people have reported of Hailo accelerators that would not work, as machines in that state.

The doctor's tests go through them, one test for each; so can anybody who wants to see what the
doctor makes of a report. Each builder puts a machine, and where needed the files of a host and a
kernel log, into the state that the report describes. Like `machine.py` this must not know the
agent.

Kernel log lines given to `quotes` stand in the report itself. Those given to `would_say` do not:
they are put together from the driver's source, with the report's numbers, and are no more than
plausible. Where a report gives no PCI address, it is the Raspberry Pi 5's, 0001:01:00.0.

Not everything shows on the host. What libhailort in an image makes of the driver (76), of the
service (77, 78: DeGirum/hailo_examples#9, #12, community.hailo.ai t/13395) or of another process's
device (74) is said in that image; a chip that gets slower while it works (community.hailo.ai
t/18868, t/19218) looks to the host as ever. For those reports a scenario is here only if something
of them does show.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hailo_agent.sim.generations import HAILO_8, HAILO_10H
from hailo_agent.sim.machine import Machine
from hailo_agent.sim.pci import GEN2, Link

PI_5: Final = "0001:01:00.0"
HAILO_8_FIRMWARE: Final = "/lib/firmware/hailo/hailo8_fw.bin"
_HAILO_10H_FIRMWARE: Final = (
    "customer_certificate.bin",
    "scu_fw.bin",
    "u-boot-spl.bin",
    "u-boot-tfa.itb",
    "fitImage",
    "image-fs",
)


@dataclass(slots=True)
class Scene:
    """A machine, and the host around it: its root directory, and its kernel log."""

    root: Path
    options: dict[str, str] = field(default_factory=dict)
    """Settings that belong to the report, as flags of `hailo-agent doctor`."""
    machine: Machine = field(init=False)
    closing: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        """Build a host in good order: docker, the kernel's usual limits, and no accelerator."""
        self.machine = Machine(self.root / "machine")
        self.closing.callback(self.machine.close)
        self.host.mkdir()
        self.kernel_log.touch()
        docker = {"features": {"cdi": True}, "cdi-spec-dirs": [str(self.cdi)]}
        self.write("/etc/docker/daemon.json", json.dumps(docker))
        self.write("/proc/sys/fs/inotify/max_user_instances", "128\n")

    @property
    def flags(self) -> list[str]:
        """Name the paths of this scene, and its settings, as `hailo-agent` wants to hear them."""
        options = {
            "host.dev": str(self.machine.dev),
            "host.sys": str(self.machine.sys),
            "runtime.cdi-dir": str(self.cdi),
            "runtime.cdi-search-dirs": str(self.cdi),
            "runtime.links-dir": f"{self.root}/links",
            "kubelet.plugin-dir": f"{self.kubelet}/device-plugins",
            "kubelet.root": str(self.kubelet),
            "subscribers.socket": f"{self.root}/agent.sock",
            **self.options,
        }
        return [f"--{name}={value}" for name, value in options.items()]

    @property
    def host(self) -> Path:
        """Where the host's root directory is; `doctor --root`."""
        return self.root / "host"

    @property
    def cdi(self) -> Path:
        """Where specs are; not made."""
        return self.root / "cdi"

    @property
    def kubelet(self) -> Path:
        """Where the kubelet's root directory is; not made, for most reports know no kubelet."""
        return self.root / "kubelet"

    @property
    def kernel_log(self) -> Path:
        """Where the kernel log is; `doctor --kernel-log`."""
        return self.root / "dmesg"

    def write(self, path: str, text: str = "") -> None:
        """Write a file of the host."""
        file = self.host / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def quotes(self, *lines: str) -> None:
        """Put lines into the kernel log that stand in the report."""
        self._log(lines)

    def would_say(self, *lines: str) -> None:
        """Put lines into the kernel log that the driver would write then; no report has them."""
        self._log(lines)

    def firmware(self, generation: str = "8") -> None:
        """Install firmware where the kernel looks for it."""
        if generation == "8":
            self.write(HAILO_8_FIRMWARE)
        else:
            for name in _HAILO_10H_FIRMWARE:
                self.write(f"/lib/firmware/hailo/hailo10h/{name}")

    def library(self, version: str) -> None:
        """Install libhailort on the host, as Raspberry Pi OS does."""
        self.write(f"/usr/lib/libhailort.so.{version}")

    def install_modules(self, *names: str) -> None:
        """Have modprobe know kernel modules for the running kernel."""
        lines = "".join(f"updates/dkms/{name}.ko.xz:\n" for name in names)
        self.write(f"/lib/modules/{os.uname().release}/modules.dep", lines)

    def set_version(self, module: str, version: str) -> None:
        """Let a module be of a release that is between two generations."""
        file = self.machine.sys / "module" / module / "version"
        built = file.with_name(".version")
        built.write_text(f"{version}\n")
        built.rename(file)

    def socket(self, path: str) -> None:
        """Leave a unix socket on the host, with nobody behind it."""
        file = self.host / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(file))

    def port(self, address: str, *, width: int, speed: str = "") -> None:
        """Let the port above a function have so many lanes, and be no faster than this."""
        port = self.machine.function_directory(address).parent
        for name, text in (("max_link_width", str(width)), ("max_link_speed", speed)):
            if text:
                built = port / f".{name}"
                built.write_text(f"{text}\n")
                built.rename(port / name)

    def _log(self, lines: tuple[str, ...]) -> None:
        with self.kernel_log.open("a") as log:
            log.writelines(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One public report."""

    name: str
    where: tuple[str, ...]
    """Who reported it, and who else the same."""
    build: Callable[[Scene], None]


_REPORTS: dict[str, Report] = {}
REPORTS: Final[Mapping[str, Report]] = MappingProxyType(_REPORTS)
"""All of them, by name."""


def _report(*where: str) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    def register(build: Callable[[Scene], None]) -> Callable[[Scene], None]:
        _REPORTS[build.__name__] = Report(name=build.__name__, where=where, build=build)
        return build

    return register


# --- driver, library and firmware of one release -------------------------------------------------


@_report("hailo-ai/hailo-rpi5-examples#72", "community.hailo.ai t/18373")
def hailo_rpi5_examples_72_library_newer_than_the_driver(scene: Scene) -> None:
    """Driver 4.18.0, library 4.19.0: the installer updated one of them."""
    _hailo_8_on_a_pi(scene, "4.17", "4.18.0")
    scene.library("4.19.0")


@_report("hailo-ai/hailo-rpi5-examples#98")
def hailo_rpi5_examples_98_library_older_than_the_driver(scene: Scene) -> None:
    """Driver 4.20.0, library 4.19.0."""
    _hailo_8_on_a_pi(scene, "4.20")
    scene.library("4.19.0")


@_report("roflcoopter/viseron#1144")
def viseron_1144_library_in_the_image_newer_than_the_driver(scene: Scene) -> None:
    """Driver 4.20.0; the image brings 4.22.0, which nothing on the host shows."""
    _hailo_8_on_a_pi(scene, "4.20")


@_report("roflcoopter/viseron#1490")
def viseron_1490_library_in_the_image_older_than_the_driver(scene: Scene) -> None:
    """Driver 4.23.0; the image brings 4.22.0."""
    _hailo_8_on_a_pi(scene, "4.23")


@_report(
    "blakeblackshear/frigate-hass-addons#241",
    "blakeblackshear/frigate#11961",
    "blakeblackshear/frigate#18142",
    "blakeblackshear/frigate PR 17094",
    "blakeblackshear/frigate-hass-integration#881",
    "home-assistant/operating-system#3734",
    "home-assistant/operating-system PR 3922",
)
def frigate_hass_addons_241_add_on_older_than_the_host(scene: Scene) -> None:
    """Driver 4.21.0 on the host; the add-on brings 4.19.0."""
    _hailo_8_on_a_pi(scene, "4.22", "4.21.0")


@_report(
    "blakeblackshear/frigate-hass-addons#215",
    "blakeblackshear/frigate#18281",
    "blakeblackshear/frigate#17805",
    "home-assistant/operating-system#4070",
)
def frigate_17805_a_board_file_that_nobody_needs_is_missing(scene: Scene) -> None:
    """Driver 4.20.1, a patch release; it complains of an optional file, and works."""
    scene.firmware()
    scene.machine.load("4.20")
    scene.set_version("hailo_pci", "4.20.1")
    scene.machine.plug("0000:01:00.0", pci_id=HAILO_8)
    scene.quotes(
        "[    5.085331] hailo_pci: loading out-of-tree module taints kernel.",
        "[    5.104590] hailo: Init module. driver version 4.20.1",
        "[    5.110551] hailo 0000:01:00.0: Probing on: 1e60:2864...",
        "[    5.116177] hailo 0000:01:00.0: Probing: Allocate memory for device extension, 13184",
        "[    5.131524] hailo 0000:01:00.0: enabling device (0000 -> 0002)",
        "[    5.148358] hailo 0000:01:00.0: Probing: Device enabled",
        "[    5.148387] hailo 0000:01:00.0: Probing: Setting max_desc_page_size to 4096,"
        " (page_size=4096)",
        "[    5.148486] hailo 0000:01:00.0: Writing file hailo/hailo8_fw.bin",
        "[    5.201944] hailo 0000:01:00.0: File hailo/hailo8_fw.bin written successfully",
        "[    5.211695] hailo 0000:01:00.0: Writing file hailo/hailo8_board_cfg.bin",
        "[    5.241197] Failed to write file hailo/hailo8_board_cfg.bin",
    )
    scene.would_say(
        "[    5.356042] hailo 0000:01:00.0: NNC Firmware loaded successfully",
        "[    5.372814] hailo 0000:01:00.0: Probing: Added board 1e60-2864, /dev/hailo0",
    )


@_report("hailo-ai/hailo_model_zoo_genai PR 11")
def hailo_model_zoo_genai_11_chip_still_runs_the_old_release(scene: Scene) -> None:
    """Driver 5.3.0 after a live upgrade; the Hailo-10H still runs 5.1.1."""
    scene.firmware("10h")
    scene.machine.load("5.3")
    scene.machine.plug(PI_5, pci_id=HAILO_10H)
    scene.would_say(
        f"[   12.100000] hailo1x {PI_5}: Probing on: 1e60:45c4...",
        f"[   12.200000] hailo1x {PI_5}: SOC Firmware batch was already loaded",
        f"[   12.300000] hailo1x {PI_5}: Mismatch Driver version pcie driver 5:3:0 pci_ep driver"
        " 5:1:1",
        f"[   12.400000] hailo1x {PI_5}: Probing: Added board 1e60-45c4, /dev/h1x-0",
    )


# --- the driver of another chip ------------------------------------------------------------------


@_report("hailo-ai/hailo-apps#111")
def hailo_apps_111_driver_5_for_a_hailo_8(scene: Scene) -> None:
    """Driver 5.2.0 for a Hailo-8L on Proxmox: the probe fails with -22."""
    scene.firmware()
    scene.machine.load("5.2")
    scene.machine.plug("0000:02:00.0", pci_id=HAILO_8)
    scene.quotes(
        "[  172.770563] hailo1x 0000:02:00.0: Probing: mapped bar 0 - 000000008f62341c 16384",
        "[  172.770568] hailo1x 0000:02:00.0: Probing: mapped bar 2 - 000000000e906c9e 4096",
        "[  172.770571] hailo1x 0000:02:00.0: Probing: mapped bar 4 - 00000000e4dec615 16384",
        "[  172.770575] hailo1x 0000:02:00.0: Probing: Failed init pcie resources",
        "[  172.770617] hailo1x 0000:02:00.0: probe with driver hailo1x failed with error -22",
    )


@_report("hailo-ai/hailo-rpi5-examples#192")
def hailo_rpi5_examples_192_driver_5_3_does_not_bind_a_hailo_8(scene: Scene) -> None:
    """Driver 5.3.0 for a Hailo-8 in a PC: it loads, and takes no notice of the card."""
    scene.machine.load("5.3")
    scene.machine.plug("0000:03:00.0", pci_id=HAILO_8)
    scene.quotes(
        "[    0.729420] pci 0000:03:00.0: [1e60:2864] type 00 class 0x0b4000 PCIe Endpoint",
        "[    0.729476] pci 0000:03:00.0: BAR 0 [mem 0x4402b04000-0x4402b07fff 64bit pref]",
        "[    0.729481] pci 0000:03:00.0: BAR 2 [mem 0x4402b08000-0x4402b08fff 64bit pref]",
        "[    0.729485] pci 0000:03:00.0: BAR 4 [mem 0x4402b00000-0x4402b03fff 64bit pref]",
        "[    0.823930] pci 0000:03:00.0: Adding to iommu group 15",
    )
    scene.would_say("[    4.812000] hailo1x: Init module. driver version 5.3.0")


@_report("nerves-project/nerves_system_rpi5#103")
def nerves_system_rpi5_103_driver_4_22_cannot_start_a_hailo_10h(scene: Scene) -> None:
    """Driver 4.22.0 takes a Hailo-10H on, writes all its files, and waits in vain."""
    scene.firmware("10h")
    scene.machine.load("4.22")
    scene.machine.plug(PI_5, pci_id=HAILO_10H, firmware_ok=False)
    scene.would_say(f"[    6.000000] hailo {PI_5}: Probing on: 1e60:45c4...")
    scene.quotes(
        # The report has these without time and address.
        f"[   11.000000] hailo {PI_5}: Timeout waiting for vDMA boot data completion",
        f"[   11.100000] hailo {PI_5}: Failed writing SOC SECOND_STAGE firmware files over vDMA."
        " err -110",
        f"[   11.200000] hailo {PI_5}: Firmware load failed",
    )
    scene.would_say(
        f"[   11.300000] hailo {PI_5}: Failed activating board -110",
        f"[   11.400000] hailo {PI_5}: probe with driver hailo failed with error -110",
    )


@_report("community.hailo.ai t/18986", "community.hailo.ai t/19022", "community.hailo.ai t/18681")
def community_18986_driver_of_the_hailo_8_for_a_hailo_10h(scene: Scene) -> None:
    """Driver 4.23.0 where a Hailo-10H is: the packages of the other family."""
    scene.machine.load("4.23")
    scene.machine.plug(PI_5, pci_id=HAILO_10H)
    scene.would_say("[    4.812000] hailo: Init module. driver version 4.23.0")


@_report("theNetworkChuck/frigate-nvr-guide#3")
def frigate_nvr_guide_3_only_the_other_packages_are_left(scene: Scene) -> None:
    """Plug a Hailo-8 where a distribution offers h10-hailort in place of hailort."""
    scene.install_modules("hailo1x_pci")
    scene.machine.plug(PI_5, pci_id=HAILO_8)


@_report("home-assistant/operating-system PR 4690")
def home_assistant_os_4690_both_families_side_by_side(scene: Scene) -> None:
    """Drivers 4.23.0 and 5.3.0, each with its own chip: this works."""
    scene.firmware()
    scene.firmware("10h")
    scene.machine.load("4.23")
    scene.machine.load("5.3")
    scene.machine.plug("0000:01:00.0", pci_id=HAILO_8)
    scene.machine.plug("0000:02:00.0", pci_id=HAILO_10H)


@_report("hailo-ai: drivers 4.x and 5.1 to 5.2 on one host")
def two_families_that_want_one_class(scene: Scene) -> None:
    """Drivers 4.23.0 and 5.2.0: both make the class hailo_chardev, and the second one fails."""
    scene.firmware()
    scene.firmware("10h")
    scene.machine.load("4.23")
    scene.machine.plug("0000:01:00.0", pci_id=HAILO_8)
    scene.machine.load("5.2")
    scene.machine.plug("0000:02:00.0", pci_id=HAILO_10H)
    scene.quotes("[   20.300000] sysfs: cannot create duplicate filename '/class/hailo_chardev'")
    scene.would_say(
        "[   20.400000] hailo1x 0000:02:00.0: Failed to create class for chrdev",
        "[   20.500000] hailo1x 0000:02:00.0: Failed inserting board -17 to list",
        "[   20.600000] hailo1x 0000:02:00.0: probe with driver hailo1x failed with error -17",
    )


# --- firmware ------------------------------------------------------------------------------------


@_report("nerves-project/nerves_system_rpi5#39")
def nerves_system_rpi5_39_a_node_without_firmware(scene: Scene) -> None:
    """Driver 4.18.0 does not find its firmware, and makes the node all the same."""
    scene.machine.load("4.17")
    scene.set_version("hailo_pci", "4.18.0")
    scene.machine.plug("0000:01:00.0", pci_id=HAILO_8)
    scene.quotes(
        "[    2.256344] hailo: Init module. driver version 4.18.0",
        "[    2.256442] hailo 0000:01:00.0: Probing on: 1e60:2864...",
        "[    2.256496] hailo 0000:01:00.0: Probing: Setting max_desc_page_size to 4096,"
        " (page_size=4096)",
        "[    2.256695] hailo 0000:01:00.0: Firmware file not found"
        " (/lib/firmware/hailo/hailo8_fw.bin), please upload the firmware manually",
        "[    2.268814] hailo 0000:01:00.0: Probing: Added board 1e60-2864, /dev/hailo0",
    )


@_report("home-assistant/operating-system#3663")
def home_assistant_os_3663_an_image_without_firmware(scene: Scene) -> None:
    """Driver 4.17.0 in an image that forgot the firmware."""
    scene.machine.load("4.17")
    scene.machine.plug("0000:04:00.0", pci_id=HAILO_8)
    scene.quotes(
        "[    1.428301] hailo: Init module. driver version 4.17.0",
        "[    1.428437] hailo 0000:04:00.0: Probing on: 1e60:2864...",
        "[    1.428443] hailo 0000:04:00.0: Probing: Allocate memory for device extension, 11600",
        "[    1.428669] hailo 0000:04:00.0: Firmware file not found"
        " (/lib/firmware/hailo/hailo8_fw.bin), please upload the firmware manually ",
        "[    1.440794] hailo 0000:04:00.0: Probing: Added board 1e60-2864, /dev/hailo0",
    )


@_report("drivers since 4.19: no firmware, no node")
def a_driver_that_gives_up_without_firmware(scene: Scene) -> None:
    """Driver 4.23.0 without firmware: the probe fails with -2, and there is no node."""
    scene.write("/lib/firmware/regulatory.db")
    scene.machine.load("4.23")
    scene.machine.plug("0000:01:00.0", pci_id=HAILO_8, firmware_ok=False)
    scene.would_say(
        "[    5.100000] hailo 0000:01:00.0: Probing on: 1e60:2864...",
        "[    5.200000] hailo 0000:01:00.0: Writing file hailo/hailo8_fw.bin",
        "[    5.210000] Failed with error -2 to write file hailo/hailo8_fw.bin",
        "[    5.220000] hailo 0000:01:00.0: Failed writing NNC firmware files. err -2",
        "[    5.230000] hailo 0000:01:00.0: Failed activating board -2",
        "[    5.240000] hailo: probe of 0000:01:00.0 failed with error -2",
    )


# --- PCIe ----------------------------------------------------------------------------------------


@_report("raspberrypi/linux#6206", "raspberrypi/firmware#1895")
def raspberrypi_linux_6206_no_interrupt_behind_a_switch(scene: Scene) -> None:
    """Driver 4.17.0 behind a PCIe switch on a Raspberry Pi 5: no MSI to be had, -28."""
    scene.firmware()
    scene.machine.load("4.17")
    address = "0000:05:00.0"
    _plug_unserved(scene.machine, address)
    scene.quotes(
        "[    3.431097] hailo: Init module. driver version 4.17.0",
        f"[    3.437216] hailo {address}: Probing on: 1e60:2864...",
        f"[    3.437227] hailo {address}: Probing: Allocate memory for device extension, 11600",
        f"[    3.437265] hailo {address}: Probing: Device enabled",
        f"[    3.438853] hailo {address}: Probing: Force setting max_desc_page_size to 4096"
        " (recommended value is 16384)",
        f"[    3.438876] hailo {address}: Disabling ASPM L0s ",
        f"[    3.438882] hailo {address}: Successfully disabled ASPM L0s ",
        f"[    3.446839] hailo {address}: Failed to enable MSI -28",
        f"[    3.446849] hailo {address}: Failed Enabling interrupts -28",
    )
    scene.would_say(
        f"[    3.446912] hailo {address}: Failed activating board -28",
        f"[    3.447000] hailo: probe of {address} failed with error -28",
    )


@_report("serg987/hailo-mini-od-server#1")
def hailo_mini_od_server_1_pages_of_16_kib(scene: Scene) -> None:
    """Build a Raspberry Pi 5 whose kernel has pages of 16 KiB."""
    scene.firmware()
    scene.machine.load("4.20")
    scene.machine.plug(PI_5, pci_id=HAILO_8, link=Link(speed=GEN2, width=1))
    scene.port(PI_5, width=1, speed=GEN2)
    scene.would_say(
        f"[    3.437216] hailo {PI_5}: Probing on: 1e60:2864...",
        f"[    3.438853] hailo {PI_5}: Probing: Setting max_desc_page_size to 16384,"
        " (page_size=16384)",
        f"[    3.634179] hailo {PI_5}: NNC Firmware loaded successfully",
        f"[    3.640000] hailo {PI_5}: Probing: Added board 1e60-2864, /dev/hailo0",
    )


@_report("geerlingguy/raspberry-pi-pcie-devices#164")
def geerlingguy_164_a_link_of_generation_2(scene: Scene) -> None:
    """Build a Raspberry Pi 5 that was not told to try PCIe generation 3."""
    scene.firmware()
    scene.machine.load("4.17")
    scene.machine.plug("0000:05:00.0", pci_id=HAILO_8, link=Link(speed=GEN2, width=1))
    scene.quotes(
        "[    3.423816] hailo: Init module. driver version 4.17.0",
        "[    3.425961] hailo 0000:05:00.0: Probing on: 1e60:2864...",
        "[    3.426053] hailo 0000:05:00.0: Probing: Force setting max_desc_page_size to 4096"
        " (recommended value is 4096)",
        "[    3.634179] hailo 0000:05:00.0: Firmware was loaded successfully",
    )
    scene.would_say(
        "[    3.640000] hailo 0000:05:00.0: Probing: Added board 1e60-2864, /dev/hailo0"
    )


@_report("community.hailo.ai t/19218", "community.hailo.ai t/18868", "community.hailo.ai t/18979")
def community_19218_a_hailo_10h_that_gets_slower(scene: Scene) -> None:
    """Plug a Hailo-10H into a Raspberry Pi 5: link x1 of x4; the cause is in the chip."""
    scene.firmware("10h")
    scene.machine.load("5.3")
    scene.machine.plug(PI_5, pci_id=HAILO_10H, link=Link(width=1))
    scene.port(PI_5, width=1)


# --- containers ----------------------------------------------------------------------------------


@_report("community.hailo.ai t/18740", "community.hailo.ai t/9295", "frigate#19504")
def community_18740_two_processes_want_one_chip(scene: Scene) -> None:
    """One container has the chip; the other one fails with 74."""
    _hailo_8_on_a_pi(scene, "4.23")
    scene.closing.enter_context(scene.machine.hold(PI_5))


@_report("docker --device /dev/hailo0 after driver 5.1 → 5.3")
def docker_device_hailo0_is_gone_after_the_rename(scene: Scene) -> None:
    """Driver 5.3.0: there is no /dev/hailo0 any more, which compose files still name."""
    scene.firmware("10h")
    scene.machine.load("5.3")
    scene.machine.plug(PI_5, pci_id=HAILO_10H)


@_report(
    "NVIDIA/k8s-device-plugin#414",
    "NVIDIA/k8s-device-plugin#170",
    "squat/generic-device-plugin#59",
)
def nvidia_414_started_before_there_was_a_driver(scene: Scene) -> None:
    """Plug a card, its driver neither loaded nor installed."""
    scene.install_modules()
    scene.machine.plug("0000:01:00.0", pci_id=HAILO_8)


@_report("moby/moby#47633")
def moby_47633_a_spec_whose_device_edits_nothing(scene: Scene) -> None:
    """Write a CDI file that looks right; its device has no containerEdits, so readers refuse it."""
    _hailo_8_on_a_pi(scene, "4.23")
    scene.cdi.mkdir()
    (scene.cdi / "hailo.ai-npu.json").write_text(
        "cdiVersion: 0.6.0\nkind: hailo.ai/npu\ncontainerEdits:\n  env:\n  - LD=test\n"
        "devices:\n  - name: demo1\n"
    )


@_report("cncf-tags/container-device-interface#78")
def container_device_interface_78_a_missing_directory_stops_the_search(scene: Scene) -> None:
    """CRI-O 1.24.2 without /etc/cdi: what is in /var/run/cdi is not found."""
    _hailo_8_on_a_pi(scene, "4.23")
    dirs = f'["{scene.root}/etc-cdi", "{scene.cdi}"]'
    scene.write("/etc/crio/crio.conf", f"[crio.runtime]\ncdi_spec_dirs = {dirs}\n")
    (scene.kubelet / "device-plugins").mkdir(parents=True)
    scene.options["runtime.version"] = "cri-o://1.24.2"
    scene.options["runtime.delivery"] = "annotation"
    scene.options["runtime.cdi-search-dirs"] = f"{scene.root}/etc-cdi,{scene.cdi}"


@_report(
    "NVIDIA/nvidia-container-toolkit#48",
    "NVIDIA/nvidia-container-toolkit#1227",
    "NVIDIA/gpu-operator#485",
    "NVIDIA/k8s-device-plugin#426",
)
def nvidia_container_toolkit_48_device_lost_after_daemon_reload(scene: Scene) -> None:
    """Build a host with systemd, and no link below /dev/char that leads to the node."""
    _hailo_8_on_a_pi(scene, "4.23")
    scene.write("/run/systemd/system/.keep")
    (scene.machine.dev / "char").mkdir()


# --- the kubelet, and limits ---------------------------------------------------------------------


@_report(
    "intel/intel-device-plugins-for-kubernetes#2075",
    "intel/intel-device-plugins-for-kubernetes#1915",
    "NVIDIA/gpu-operator#441",
)
def intel_2075_no_inotify_instance_left(scene: Scene) -> None:
    """Build a host with few inotify instances for each user."""
    _hailo_8_on_a_pi(scene, "4.23")
    scene.write("/proc/sys/fs/inotify/max_user_instances", "64\n")


@_report(
    "k0sproject/k0s#7585",
    "kubernetes/kubernetes#120626",
    "kubernetes/kubernetes#68567",
    "intel/intel-device-plugins-for-kubernetes#1826",
)
def k0s_7585_the_kubelet_keeps_its_things_elsewhere(scene: Scene) -> None:
    """k0s: the plugin directory is where it always is, and pod-resources is not."""
    _hailo_8_on_a_pi(scene, "4.23")
    scene.socket("/var/lib/k0s/kubelet/pod-resources/kubelet.sock")
    (scene.kubelet / "device-plugins").mkdir(parents=True)


# --- small things --------------------------------------------------------------------------------


def _hailo_8_on_a_pi(scene: Scene, generation: str, version: str = "") -> None:
    """Build a Raspberry Pi 5 with a Hailo-8 that works."""
    scene.firmware()
    scene.machine.load(generation)
    if version:
        scene.set_version("hailo_pci", version)
    scene.machine.plug(PI_5, pci_id=HAILO_8)


def _plug_unserved(machine: Machine, address: str) -> None:
    """Plug a card that the driver tries, and gives up on.

    The simulated driver of 4.17 does not mind a missing firmware, and knows no other reason.
    """
    machine.plug(address, pci_id=HAILO_8)
    machine.unbind(address)
