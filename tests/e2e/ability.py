"""What becomes of a test from end to end where the machine cannot do what it needs."""

import os
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """Skip the running test and say what is missing.

    In CI (`CI=true`) it fails: there, a test that quietly does not run is worse than none.
    """
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
