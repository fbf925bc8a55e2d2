"""Which runtimes are doubted, row by row; an unknown one is given the benefit of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent.core.grant import Delivery
from hailo_agent.core.runtimes import doubt

CRI, ANNOTATION, DEVICESPEC = Delivery.CRI, Delivery.ANNOTATION, Delivery.DEVICESPEC


@pytest.mark.parametrize(
    ("version", "delivery", "words"),
    [
        ("containerd://1.6.33", {CRI}, "before 1.7"),
        ("containerd://1.7.0", {CRI}, "enable_cdi"),
        ("containerd://1.7.27-k3s1", {ANNOTATION}, "enable_cdi"),
        ("containerd://2.0.0-rc.1", {CRI}, ""),
        ("containerd://2.4.1", {CRI, ANNOTATION}, ""),
        ("containerd://v1.7.1", {CRI}, "enable_cdi"),
        ("containerd://10.0.0", {CRI}, ""),
        ("cri-o://1.23.9", {ANNOTATION}, "before 1.24"),
        ("cri-o://1.24.0", {ANNOTATION}, "before 1.26"),
        ("cri-o://1.26.0", {CRI}, "annotations only"),
        ("cri-o://1.27.9", {CRI}, "annotations only"),
        ("cri-o://1.27.9", {ANNOTATION}, ""),
        ("cri-o://1.27.9", {CRI, ANNOTATION}, ""),
        ("cri-o://1.28.0", {CRI}, ""),
        ("cri-o://1.34.2", {CRI}, ""),
        ("docker://24.0.7", {CRI}, "Docker shim"),
        ("something-else://0.1", {CRI}, ""),
    ],
)
def test_a_runtime_is_doubted_for_a_reason(
    version: str, delivery: set[Delivery], words: str
) -> None:
    reason = doubt(version, delivery)
    assert bool(reason) == bool(words)
    assert words in reason


@pytest.mark.parametrize("version", ["containerd://1.7.13", "cri-o://1.20.0", "docker://24.0.7"])
def test_the_reason_says_what_happens_and_what_to_do(version: str) -> None:
    assert "without a device: add devicespec" in doubt(version, {CRI})
    assert "every device of the node" in doubt(version, {CRI, DEVICESPEC})


@pytest.mark.parametrize("version", ["containerd://1.6.0", "cri-o://1.20.0", "docker://1.2.3"])
def test_plain_nodes_work_with_every_runtime(version: str) -> None:
    assert doubt(version, {DEVICESPEC}) == ""


@given(
    st.text(max_size=30)
    | st.sampled_from(["", "containerd", "containerd://", "containerd://x.y", "://1.7"]),
    st.sets(st.sampled_from(Delivery)),
)
def test_what_is_no_version_is_not_doubted(version: str, delivery: set[Delivery]) -> None:
    assert doubt(version, delivery) == ""
