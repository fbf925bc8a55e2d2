"""What `docs/reference/doctor.md` says of checks and files is what the code has."""

import re

import pytest

from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.runtime import configs
from hailo_agent.sim.reports import REPORTS
from tests.doctor.support import examine, scene, write_spec
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

QUOTED = (
    "viseron_1490_library_in_the_image_older_than_the_driver",
    "hailo_apps_111_driver_5_for_a_hailo_8",
    "nerves_system_rpi5_39_a_node_without_firmware",
)


def flat(text: str) -> str:
    """Undo the wrapping."""
    return " ".join(text.split())


@pytest.mark.parametrize("report", QUOTED)
async def test_the_outputs_in_the_how_to_are_what_the_doctor_says(report: str) -> None:
    page = flat((ROOT / "docs" / "how-to" / "read-the-doctor.md").read_text())
    with scene() as at:
        REPORTS[report].build(at)
        await write_spec(at)
        for finding in (await examine(at)).findings:
            where = finding.looked_at.replace(str(at.cdi), "/var/run/cdi")
            where = where.replace(str(at.kubelet), "/var/lib/kubelet")
            where = where.replace(f"{at.root}/agent.sock", "/run/hailo-agent/agent.sock")
            if finding.check in {"system.inotify", "runtime.cdi", "runtime.cdi-dirs"}:
                continue  # this machine's limit, and where podman really looks
            assert flat(f"{finding.verdict} {where}: {finding.found}") in page
            assert flat(finding.why) in page
            assert flat(finding.next_step) in page
