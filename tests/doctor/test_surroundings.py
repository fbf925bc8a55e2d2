"""What surrounds the agent: limits, namespaces, security modules."""

import pytest

from hailo_agent.core.diagnosis.facts import HostFacts, Inotify
from hailo_agent.core.diagnosis.finding import Finding, Verdict
from hailo_agent.core.diagnosis.surroundings import examine

SELINUX = (
    'audit: type=1400 audit(1): avc:  denied  { open } for  pid=1 comm="python" path="/dev/hailo0"'
)
APPARMOR = 'audit: type=1400 audit(1): apparmor="DENIED" operation="open" name="/dev/hailo0"'


def told(host: HostFacts) -> dict[str, Finding]:
    findings = list(examine(host))
    by_check = {finding.check: finding for finding in findings}
    assert len(by_check) == len(findings)
    return by_check


@pytest.mark.parametrize(
    ("limit", "exhausted", "verdict", "found"),
    [
        (8192, False, Verdict.OK, "8192 for each user, and not all in use"),
        (128, False, Verdict.OK, "128 for each user, and not all in use"),
        (127, False, Verdict.DEGRADED, "127, which is little"),
        (128, True, Verdict.DEGRADED, "128, and all are in use"),
        (None, True, Verdict.DEGRADED, "limit unknown, and all are in use"),
        (None, False, Verdict.OK, "limit unknown, and not all in use"),
        (8192, None, Verdict.OK, "8192 for each user"),
    ],
)
def test_inotify_instances(
    limit: int | None, *, exhausted: bool | None, verdict: Verdict, found: str
) -> None:
    inotify = Inotify(max_instances=limit, is_exhausted=exhausted)
    finding = told(HostFacts(inotify=inotify))["system.inotify"]
    assert (finding.verdict, finding.found) == (verdict, found)


def test_of_what_nobody_knows_nothing_is_said() -> None:
    assert told(HostFacts()) == {}


def test_in_a_user_namespace_events_do_not_arrive() -> None:
    finding = told(HostFacts(in_user_namespace=True))["system.user-namespace"]
    assert finding.verdict is Verdict.DEGRADED
    assert "hostUsers: true" in finding.next_step


@pytest.mark.parametrize(
    ("line", "check"), [(SELINUX, "system.selinux"), (APPARMOR, "system.apparmor")]
)
def test_a_denial_is_quoted_the_latest_of_many(line: str, check: str) -> None:
    log = (f"[ 1.0] {line} early", f"[ 2.0] {line} late")
    finding = told(HostFacts(kernel_log=log, selinux=True))[check]
    assert finding.verdict is Verdict.DEGRADED
    assert finding.found == f"{line} late"


def test_security_modules_that_denied_nothing_are_mentioned_and_no_more() -> None:
    findings = told(HostFacts(kernel_log=(), selinux=True, apparmor=True))
    assert findings["system.selinux"].found == "enforcing; no denial of ours in the kernel log"
    assert findings["system.apparmor"].found == "enabled; no denial of ours in the kernel log"
    blind = told(HostFacts(selinux=True))["system.selinux"]
    assert (blind.verdict, blind.found) == (Verdict.OK, "enforcing")
