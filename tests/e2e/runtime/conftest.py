"""What the tests with containers share: the root of a container, and the engine that runs it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.ability import lacking
from tests.e2e.runtime.engine import Engine, NoEngine, build_rootfs, started, try_out


@pytest.fixture(scope="session")
def rootfs() -> Iterator[Path]:
    """Lend the root of a container, once it has been seen that one runs in it."""
    # Not below pytest's own directory: that is root's alone, and not all who run in there are root.
    with tempfile.TemporaryDirectory(prefix="he-rootfs-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        try:
            build_rootfs(directory)
            with started(directory) as engine:
                try_out(engine)
        except NoEngine as error:
            reason = str(error)
        else:
            yield directory
            return
    lacking(reason)


@pytest.fixture
def engine(rootfs: Path) -> Iterator[Engine]:
    """Lend podman, in a namespace with the machine's own `/dev` and `/sys`."""
    with started(rootfs) as engine:
        yield engine
