"""One kubelet and the agent that serves it, at paths of their own but on this machine's kernel.

The kubelet is the simulated one, so that a test may ask it what it believes; the agent is the real
process, and so is everything on its other side.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from hailo_agent.sim.kubelet import Kubelet
from hailo_agent.sim.node import RESOURCE, AgentProcess

FILE_NAME: Final = "hailo.ai-npu.json"
_READY_SECONDS: Final = 30.0
_AGREES_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A kubelet and its agent, both up."""

    name: str
    kubelet: Kubelet
    agent: AgentProcess
    spec_path: Path
    """The agent's spec, as this process sees it."""

    async def is_ready(self) -> None:
        """Wait for the first list."""
        process = self.agent.process
        await until(
            lambda: self.kubelet.message_count or process.returncode is not None,
            within=_READY_SECONDS,
        )
        said = [line.fields.get("error", line.event) for line in self.agent.lines[-4:]]
        assert process.returncode is None, f"{self.name}: {said} {self.agent.garbage}"

    def healthy(self) -> frozenset[str]:
        """Tell which devices the kubelet takes for usable."""
        health = self.kubelet.resource(RESOURCE).health
        return frozenset(device for device, verdict in health.items() if verdict == "Healthy")

    def specified(self) -> frozenset[str]:
        """Tell which devices the spec on disk defines, `all` left out; none if there is no spec."""
        try:
            devices = orjson.loads(self.spec_path.read_bytes())["devices"]
        except FileNotFoundError:
            return frozenset()
        return frozenset(device["name"] for device in devices) - {"all"}

    async def lists(self, device_ids: frozenset[str]) -> None:
        """Wait until these and no others are healthy."""
        await self.kubelet.wait_for(lambda: self.healthy() == device_ids, within=_AGREES_SECONDS)

    def heard_after(self, began: float) -> float:
        """Tell how long after that moment the first list came in."""
        return next(m.at - began for m in self.kubelet.messages if m.at >= began)

    def limps(self) -> dict[str, list[str]]:
        """Tell for each part that the agent said it lacks, why; a reason for each time it said so.

        That there are no pod-resources is this site's own doing.
        """
        said: dict[str, list[str]] = {}
        for line in self.agent.events("part.limping"):
            if line.fields["part"] != "pod-resources":
                said.setdefault(line.fields["part"], []).append(line.fields["reason"])
        return said


@asynccontextmanager
async def site(
    root: Path,
    *flags: str,
    families: Sequence[Mapping[str, str]] = (),
    prefix: tuple[str, ...] = (),
    cdi_dirs: tuple[str, ...] = (),
    links_dir: str = "",
    spec_path: Path | None = None,
    name: str = "agent",
    **options: Any,  # noqa: ANN401 - those of Kubelet
) -> AsyncIterator[Site]:
    """Run a kubelet and its agent below `root`.

    The spec goes to the last of `cdi_dirs`, which are where a runtime looks for specs.
    Without pod-resources nothing tells that a device which is gone is held by nobody: it stays
    listed as unhealthy, and no list comes at a moment of its own choosing.
    """
    root.mkdir(exist_ok=True)  # noqa: ASYNC240 - once, in memory
    cdi_dirs = cdi_dirs or (str(root / "cdi"),)
    links_dir = links_dir or str(root / "links")
    async with Kubelet(root / "dp", fsync=False, **options) as kubelet:
        agent = await AgentProcess.start(
            f"--runtime.cdi-dir={cdi_dirs[-1]}",
            f"--runtime.cdi-search-dirs={','.join(cdi_dirs)}",
            f"--runtime.links-dir={links_dir}",
            f"--runtime.host-links-dir={links_dir}",
            f"--kubelet.plugin-dir={kubelet.plugin_dir}",
            f"--kubelet.root={root / 'kubelet'}",
            "--subscribers.socket=",
            "--web.listen=",
            "--log.format=json",
            f"--host.families={json.dumps(list(families))}",
            *flags,
            prefix=prefix,
        )
        try:
            yield Site(
                name=name,
                kubelet=kubelet,
                agent=agent,
                spec_path=spec_path or root / "cdi" / FILE_NAME,
            )
        finally:
            code = await agent.stop()
    assert code == 0, f"{name} ended with {code}: {agent.garbage}"
    assert not agent.garbage


async def generate_spec(
    *flags: str, families: Sequence[Mapping[str, str]] = (), prefix: tuple[str, ...] = ()
) -> str:
    """Let the agent write its spec once, without a kubelet, as people with podman do."""
    process = await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        *("-m", "hailo_agent", "cdi", "generate"),
        f"--host.families={json.dumps(list(families))}",
        *flags,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out
    return out.decode()


@contextmanager
def short_root() -> Iterator[Path]:
    """Hold a directory outside of /dev, its path short enough for unix sockets below it."""
    with tempfile.TemporaryDirectory(prefix="he-") as root:
        yield Path(root)


async def until(predicate: Any, *, within: float = 10.0) -> None:  # noqa: ANN401 - anything true
    """Wait until something holds that nobody announces."""
    async with asyncio.timeout(within):
        while not predicate():  # noqa: ASYNC110 - files and processes do not tell
            await asyncio.sleep(0.01)
