"""What the tests of the image share: the image, and podman in a namespace that has it."""

import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.ability import lacking
from tests.e2e.image.build import Image, NoImage, built, snapshot
from tests.e2e.image.container import Podman
from tests.e2e.runtime.engine import NoEngine, started


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """Lend the image, built once."""
    # Podman makes a name of the path, and names may not have all that random ones do.
    directory = Path(tempfile.gettempdir(), f"hi-{secrets.token_hex(4)}")
    try:
        try:
            image = built(snapshot(directory / "source"), directory / "oci")
        except NoImage as error:
            reason = str(error)
        else:
            yield image
            return
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    lacking(reason)


@pytest.fixture(scope="session")
def podman(image: Image) -> Iterator[Podman]:
    """Lend podman, in a namespace of its own where the image is loaded."""
    with tempfile.TemporaryDirectory(prefix="hi-") as name:
        try:
            with started(Path(name)) as engine:
                pull = engine.command("pull", "--quiet", f"oci:{image.directory}:test")
                pulled = subprocess.run(pull, capture_output=True, text=True, check=False)
                assert pulled.returncode == 0, pulled.stderr
                yield Podman(engine=engine, image=pulled.stdout.strip())
        except NoEngine as error:
            reason = str(error)
        else:
            return
    lacking(reason)
