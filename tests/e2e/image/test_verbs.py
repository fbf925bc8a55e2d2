"""The verbs, in the image as it is: as nobody, no capability, in a root that is read-only."""

import asyncio
import io
import tarfile

import orjson
import pytest

from hailo_agent import __version__
from tests.e2e.image.container import STRICT, Podman

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

NOWHERE = "--web.listen=", "--subscribers.socket="


async def test_it_tells_its_version(podman: Podman) -> None:
    done = await podman.run("--version")
    assert (done.code, done.out) == (0, f"hailo-agent {__version__}\n")


async def test_it_shows_its_settings(podman: Podman) -> None:
    done = await podman.run("config", "show", "--json", flags=[*STRICT, "--env=NODE_NAME=n1"])
    assert done.code == 0, done
    assert orjson.loads(done.out)


async def test_the_doctor_finds_no_device_and_nothing_wrong(podman: Podman) -> None:
    done = await podman.run("doctor", "--json")
    assert done.code == 0, done
    assert orjson.loads(done.out)


async def test_the_demos_story_comes_true(podman: Podman) -> None:
    done = await podman.run(
        "simulate", "--story", flags=[*STRICT, "--read-only-tmpfs=false", "--tmpfs=/tmp"]
    )
    assert done.code == 0, done
    assert "expectations held" in done.out


async def test_a_spec_is_generated_and_found_good(podman: Podman) -> None:
    flags = [*STRICT, "--tmpfs=/var/run/cdi:mode=1777"]
    done = await podman.run("cdi", "generate", "--output=/var/run/cdi", flags=flags)
    assert done.code == 0, done


async def test_a_bundle_for_support_is_packed(
    podman: Podman, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("bundle")
    where.chmod(0o777)
    done = await podman.run(
        "support-bundle", "--output=/out/bundle.tar.gz", flags=[*STRICT, f"--volume={where}:/out"]
    )
    assert done.code == 0, done
    with tarfile.open(fileobj=io.BytesIO((where / "bundle.tar.gz").read_bytes())) as archive:
        assert len(archive.getnames()) > 5


async def test_nobody_in_there_can_write_where_the_agent_is(podman: Podman) -> None:
    done = await podman.run(
        "-c",
        "import os, sys\nassert os.getuid() == os.getgid() == 65532\n"
        "print(sorted(p for p, _, _ in os.walk('/') if os.access(p, os.W_OK)"
        " and not p.startswith(('/proc', '/dev', '/sys'))))",
        flags=["--cap-drop=all", "--entrypoint=python3"],
    )
    assert (done.code, done.out) == (0, "['/tmp', '/var/tmp']\n"), done


@pytest.mark.parametrize("shell", ["sh", "/bin/sh", "bash", "busybox", "pip", "apt-get", "curl"])
async def test_there_is_no_shell_and_nothing_to_fetch_one_with(podman: Podman, shell: str) -> None:
    done = await podman.run(flags=[*STRICT, f"--entrypoint={shell}"])
    assert done.code == 127, done


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param((), ("--web.listen=127.0.0.1:1234",), id="a port by a flag"),
        pytest.param(("--env=HAILO_AGENT_WEB__LISTEN=:4321",), (), id="a port by a variable"),
        pytest.param((), ("--web.listen=unix:/tmp/web.sock",), id="a socket"),
        pytest.param((), ("--web.listen=",), id="nowhere"),
    ],
)
async def test_its_health_is_asked_where_it_listens(
    podman: Podman, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    async with podman.running(
        *STRICT, *flags, words=("run", "--log.format=json", *words)
    ) as running:
        await running.agent.wait_for("agent.started", within=30)
        async with asyncio.timeout(10):  # it listens a moment later
            while (asked := await running.exec("hailo-agent-healthcheck")).code:
                pass
        assert (asked.code, asked.out) == (0, ""), asked


async def test_an_agent_that_does_not_answer_is_not_healthy(podman: Podman) -> None:
    async with podman.running(*STRICT, words=("run", "--log.format=json")) as running:
        await running.agent.wait_for("agent.started", within=30)
        asked = await running.podman.engine.run(
            "exec",
            "--env=HAILO_AGENT_WEB__LISTEN=127.0.0.1:9",
            running.name,
            "hailo-agent-healthcheck",
        )
        assert asked.code == 1, asked
        assert "127.0.0.1:9: " in asked.out
