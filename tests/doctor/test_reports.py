"""What the doctor says to people who have reported that their Hailo accelerator would not work.

One test for each report of `hailo_agent.sim.reports`, named after it: what it all amounts to, the
cause, and the next step. Where a report is of something that no host shows, the test says so.
"""

from __future__ import annotations

import asyncio
import inspect
import sys

from hailo_agent.core.diagnosis.finding import Verdict
from hailo_agent.sim.kubelet import Kubelet
from hailo_agent.sim.reports import REPORTS
from tests.doctor.support import Told, examine, scene, write_spec

INSTALL_4 = "install a kernel driver 4.x (hailort-drivers, branch hailo8;"
INSTALL_5 = "install a kernel driver 5.x (hailort-drivers, branch master;"


async def told_of(report: str) -> Told:
    """Examine a machine in the state of a report, its spec written as `cdi generate` does."""
    with scene() as built:
        REPORTS[report].build(built)
        if not built.cdi.exists():
            await write_spec(built)
        return await examine(built)


async def told_here() -> Told:
    """Examine the machine of the report that the calling test is named after."""
    caller = sys._getframe(1).f_code.co_name
    return await told_of(caller.removeprefix("test_"))


def test_every_report_has_its_test() -> None:
    tests = {
        name.removeprefix("test_")
        for name, _ in inspect.getmembers(sys.modules[__name__], inspect.iscoroutinefunction)
        if name.startswith("test_")
    }
    assert tests == set(REPORTS)


def test_every_report_says_whose_it_is_and_what_was_the_matter() -> None:
    for report in REPORTS.values():
        assert all(report.where), report
        assert report.build.__doc__, report


# --- driver, library and firmware of one release -------------------------------------------------


async def test_hailo_rpi5_examples_72_library_newer_than_the_driver() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.DEGRADED, ["driver.library"])
    finding = told.the("driver.library")
    assert finding.looked_at == "/usr/lib/libhailort.so.4.19.0"
    assert finding.found == "libhailort 4.19.0, but the loaded driver is 4.18.0"
    assert "HAILO_INVALID_DRIVER_VERSION (76)" in finding.why
    assert finding.next_step.startswith("`modinfo -F version hailo_pci`: if it says 4.19.0,")
    assert "install driver and firmware 4.19.0, or library 4.18.0" in finding.next_step


async def test_hailo_rpi5_examples_98_library_older_than_the_driver() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.DEGRADED, ["driver.library"])
    assert told.the("driver.library").found == (
        "libhailort 4.19.0, but the loaded driver is 4.20.0"
    )


async def test_viseron_1144_library_in_the_image_newer_than_the_driver() -> None:
    # An image's library does not show on the host: the doctor names the version that it must be.
    told = await told_here()
    assert told.verdict is Verdict.OK
    assert told.the("driver.version").found == "4.20.0; containers need libhailort 4.20.0 exactly"


async def test_viseron_1490_library_in_the_image_older_than_the_driver() -> None:
    told = await told_here()
    assert told.verdict is Verdict.OK
    assert told.the("driver.version").found == "4.23.0; containers need libhailort 4.23.0 exactly"


async def test_frigate_hass_addons_241_add_on_older_than_the_host() -> None:
    told = await told_here()
    assert told.verdict is Verdict.OK
    assert told.the("driver.version").found == "4.21.0; containers need libhailort 4.21.0 exactly"


async def test_frigate_17805_a_board_file_that_nobody_needs_is_missing() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.OK, [])
    assert "ready as pci-0000-01-00-0" in told.the("pci.function").found
    # A patch release counts: the library must equal the driver in all three parts.
    assert "containers need libhailort 4.20.1 exactly" in told.the("driver.version").found


async def test_hailo_model_zoo_genai_11_chip_still_runs_the_old_release() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["driver.endpoint"])
    finding = told.the("driver.endpoint")
    assert "the chip still runs the firmware of another release" in finding.found
    assert "pcie driver 5:3:0 pci_ep driver 5:1:1" in finding.found
    assert "it refuses every call" in finding.why
    assert finding.next_step.startswith("switch the machine off and on again")
    assert "`echo 1 > /sys/bus/pci/devices/0001:01:00.0/reset`" in finding.next_step


# --- the driver of another chip ------------------------------------------------------------------


async def test_hailo_apps_111_driver_5_for_a_hailo_8() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["pci.function"])
    finding = told.the("pci.function")
    assert finding.looked_at == "PCI 0000:02:00.0 (1e60:2864, hailo-8)"
    assert finding.found.startswith(
        "wrong driver branch: hailo1x_pci 5.2.0 does not serve hailo-8 (1e60:2864)"
    )
    assert "probe with driver hailo1x failed with error -22" in finding.found
    assert finding.next_step.startswith(INSTALL_4)
    assert "remove hailo1x_pci 5.2.0 unless another card needs it" in finding.next_step
    assert "`modprobe hailo_pci`" in finding.next_step


async def test_hailo_rpi5_examples_192_driver_5_3_does_not_bind_a_hailo_8() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["pci.function"])
    finding = told.the("pci.function")
    assert finding.found == (
        "wrong driver branch: hailo1x_pci 5.3.0 does not serve hailo-8 (1e60:2864)"
    )
    assert "not even by new_id" in finding.why
    assert finding.next_step.startswith(INSTALL_4)


async def test_nerves_system_rpi5_103_driver_4_22_cannot_start_a_hailo_10h() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["pci.function"])
    finding = told.the("pci.function")
    assert finding.found.startswith(
        "wrong driver branch: hailo_pci 4.22.0 takes hailo-10h (1e60:45c4) on, but cannot start it"
    )
    assert "Timeout waiting for vDMA boot data completion" in finding.found
    assert finding.next_step.startswith(INSTALL_5)
    assert "hailo-h10-all" in finding.next_step
    assert "`modprobe hailo1x_pci`" in finding.next_step


async def test_community_18986_driver_of_the_hailo_8_for_a_hailo_10h() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["pci.function"])
    finding = told.the("pci.function")
    assert finding.found == (
        "wrong driver branch: hailo_pci 4.23.0 does not serve hailo-10h (1e60:45c4)"
    )
    assert finding.next_step.startswith(INSTALL_5)


async def test_frigate_nvr_guide_3_only_the_other_packages_are_left() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["pci.function"])
    finding = told.the("pci.function")
    assert finding.found == ("no driver: hailo1x_pci is installed, which is not for this chip")
    assert finding.next_step.startswith(INSTALL_4)
    assert "package hailo-all" in finding.next_step


async def test_home_assistant_os_4690_both_families_side_by_side() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.OK, [])
    assert [finding.found for finding in told.all("pci.function")] == [
        "ready as pci-0000-01-00-0, /dev/hailo0",
        "ready as pci-0000-02-00-0, /dev/h1x-0",
    ]
    assert [finding.found for finding in told.all("driver.version")] == [
        "4.23.0; containers need libhailort 4.23.0 exactly",
        "5.3.0; containers need libhailort 5.3.0 exactly; nodes are /dev/h1x-N, not /dev/hailoN",
    ]


async def test_two_families_that_want_one_class() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["pci.function"])
    second, first = told.all("pci.function")
    assert first.found == "ready as pci-0000-01-00-0, /dev/hailo0"
    assert second.found == (
        "two drivers want to make one class: hailo_pci 4.23.0 and hailo1x_pci 5.2.0 (sysfs: cannot"
        " create duplicate filename '/class/hailo_chardev')"
    )
    assert second.next_step.startswith("use 4.23 together with 5.3 or later")
    assert "reboot" in second.next_step


# --- firmware ------------------------------------------------------------------------------------


async def test_nerves_system_rpi5_39_a_node_without_firmware() -> None:
    # The node looks well, in sysfs and in /dev; only the kernel log tells that nothing runs there.
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["driver.firmware"])
    assert told.all("pci.function") == []  # it is not called ready as well
    finding = told.the("driver.firmware")
    assert finding.looked_at == "PCI 0000:01:00.0 (1e60:2864, hailo-8)"
    assert finding.found == (
        "there is a node, /dev/hailo0, but no firmware: the driver did not find"
        " /lib/firmware/hailo/hailo8_fw.bin when it looked"
    )
    assert "driver 4.18.0 makes a node even if it finds no firmware" in finding.why
    assert finding.next_step == (
        "install the firmware of release 4.18.0 there, then `cd /sys/bus/pci/drivers/hailo && echo"
        " 0000:01:00.0 > unbind && echo 0000:01:00.0 > bind`"
    )


async def test_home_assistant_os_3663_an_image_without_firmware() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["driver.firmware"])
    finding = told.the("driver.firmware")
    assert finding.looked_at == "PCI 0000:04:00.0 (1e60:2864, hailo-8)"
    assert "no firmware: the driver did not find /lib/firmware/hailo/hailo8" in finding.found
    assert "install the firmware of release 4.17.0 there" in finding.next_step


async def test_a_driver_that_gives_up_without_firmware() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["pci.function"])
    finding = told.the("pci.function")
    assert finding.found == "firmware missing: /lib/firmware/hailo/hailo8_fw.bin"
    assert finding.next_step == (
        "install the firmware of release 4.23.0 there, then"
        " `echo 0000:01:00.0 > /sys/bus/pci/drivers/hailo/bind`"
    )


# --- PCIe ----------------------------------------------------------------------------------------


async def test_raspberrypi_linux_6206_no_interrupt_behind_a_switch() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["pci.function"])
    finding = told.the("pci.function")
    assert finding.found == (
        "no interrupt (MSI) to be had (-28): hailo 0000:05:00.0: Failed to enable MSI -28"
    )
    assert "the interrupt vectors of the PCIe host are used up" in finding.why
    assert "update kernel and firmware (on a Raspberry Pi, `rpi-update`)" in finding.next_step


async def test_hailo_mini_od_server_1_pages_of_16_kib() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.DEGRADED, ["kernel.page-size"])
    assert told.the("device.link").found == "5 GT/s x1, which is all that its slot does"
    finding = told.the("kernel.page-size")
    assert "descriptors have pages of 16384 bytes" in finding.found
    assert "libhailort may refuse to configure a network" in finding.why
    assert "`echo options hailo_pci force_desc_page_size=4096 >" in finding.next_step
    assert "`kernel=kernel8.img` in /boot/firmware/config.txt" in finding.next_step


async def test_geerlingguy_164_a_link_of_generation_2() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.DEGRADED, ["device.link"])
    finding = told.the("device.link")
    assert finding.found == "5 GT/s x1, card and slot could do 8 GT/s x4"
    assert "`dtparam=pciex1_gen=3` into /boot/firmware/config.txt" in finding.next_step


async def test_community_19218_a_hailo_10h_that_gets_slower() -> None:
    # Why it gets slower is in the chip. That the slot gives it one lane of four is no fault.
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.OK, [])
    assert told.all("device.link") == []


# --- containers ----------------------------------------------------------------------------------


async def test_community_18740_two_processes_want_one_chip() -> None:
    # It is no fault that somebody has it; but it is why somebody else cannot.
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.OK, [])
    finding = told.the("pci.function")
    assert finding.found.endswith("a process has it open now")
    assert "HAILO_OUT_OF_PHYSICAL_DEVICES (74)" in finding.why
    assert finding.next_step == "`fuser -v /dev/hailo0`, as root, tells whose it is"


async def test_docker_device_hailo0_is_gone_after_the_rename() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.OK, [])
    assert told.the("pci.function").found == "ready as pci-0001-01-00-0, /dev/h1x-0"
    assert told.the("driver.version").found.endswith("nodes are /dev/h1x-N, not /dev/hailoN")


async def test_nvidia_414_started_before_there_was_a_driver() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["pci.function"])
    finding = told.the("pci.function")
    assert finding.found.startswith(
        "no driver: no Hailo kernel module is loaded, nor installed for kernel "
    )
    assert "DKMS has to build it anew" in finding.why
    assert finding.next_step.startswith(INSTALL_4)
    assert "remove " not in finding.next_step
    assert "`dkms autoinstall`" in finding.next_step


async def test_moby_47633_a_spec_whose_device_edits_nothing() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.BROKEN, ["cdi.spec"])
    finding = told.the("cdi.spec")
    assert finding.found.startswith("devices[0].containerEdits:")
    assert "a runtime refuses the whole file" in finding.why
    assert "`hailo-agent cdi generate`" in finding.next_step


async def test_container_device_interface_78_a_missing_directory_stops_the_search() -> None:
    told = await told_here()
    assert told.verdict is Verdict.BROKEN
    finding = told.the("runtime.cdi-dirs")
    assert finding.verdict is Verdict.BROKEN
    assert finding.looked_at.endswith("/etc-cdi")
    assert "CRI-O up to 1.25 stops at the first directory that is missing" in finding.why
    assert finding.next_step == f"`mkdir -p {finding.looked_at}`"


async def test_nvidia_container_toolkit_48_device_lost_after_daemon_reload() -> None:
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.DEGRADED, ["devnode.char-link"])
    finding = told.the("devnode.char-link")
    assert finding.looked_at.startswith("/dev/char/")
    assert "`systemctl daemon-reload` takes the device away from running" in finding.why
    assert finding.found == "does not lead to /dev/hailo0"
    assert "`udevadm trigger --action=add --subsystem-match=hailo_chardev`" in finding.next_step


# --- the kubelet, and limits ---------------------------------------------------------------------


async def test_intel_2075_no_inotify_instance_left() -> None:
    # That all are in use is tested where a process may use them up, in test_unprivileged.py.
    told = await told_here()
    assert (told.verdict, told.ills) == (Verdict.DEGRADED, ["system.inotify"])
    finding = told.the("system.inotify")
    assert finding.found == "64, which is little"
    assert '"too many open files"' in finding.why
    assert "`sysctl -w fs.inotify.max_user_instances=8192`" in finding.next_step


async def test_k0s_7585_the_kubelet_keeps_its_things_elsewhere() -> None:
    with scene() as built:
        REPORTS["k0s_7585_the_kubelet_keeps_its_things_elsewhere"].build(built)
        await write_spec(built)
        async with Kubelet(built.kubelet / "device-plugins"):
            told = await examine(built)
            await asyncio.sleep(0.02)  # let it notice who has hung up, before its loop ends
    assert told.the("kubelet.socket").found == "answers"
    finding = told.the("kubelet.root")
    assert finding.verdict is Verdict.DEGRADED
    assert finding.next_step.startswith("set kubelet.root to /var/lib/k0s/kubelet, and mount")
    assert "keeps a gone device on the list" in finding.why
