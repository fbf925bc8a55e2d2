"""Tests that must not be parted are run by one process, and those that hear each other as well."""

import os

import pytest

pytestmark = pytest.mark.xdist_group("house")


def test_a_group_is_heeded(request: pytest.FixtureRequest) -> None:
    """Where it is not, nothing fails at once: set-up is done several times, and uevents disturb."""
    if "PYTEST_XDIST_WORKER" not in os.environ or request.config.option.loadgroup is False:
        pytest.skip("no group is asked for: one process runs all tests, or any test anywhere")
    assert request.node.nodeid.endswith("@house")
