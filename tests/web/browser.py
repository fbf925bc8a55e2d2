"""A real browser without a window, driven by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import aiohttp

from tests.web.stand import SECONDS, until

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")

_FLAGS: Final = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *(
        "--disable-component-update",
        "--hide-scrollbars",
        "--disable-lcd-text",
        "--remote-debugging-port=0",
    ),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # there is no internet
)


class Tab:
    """One page in the browser."""

    def __init__(self, line: aiohttp.ClientWebSocketResponse) -> None:
        self._line = line
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []
        """What the page's console and the page's policy had to say."""

    async def listen(self) -> None:
        """Take in what the browser says, for as long as it lives."""
        async for message in self._line:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif told["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["params"]["exceptionDetails"]))
            elif told["method"] == "Log.entryAdded":
                self.complaints.append(told["params"]["entry"]["text"])

    async def ask(self, method: str, **params: object) -> dict[str, Any]:
        """Have the browser do something."""
        number = len(self._answers) + 1
        while number in self._answers:
            number += 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._line.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(SECONDS):
            told = await answer
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    async def open(self, address: str, *, width: int = 1280, dark: bool = False) -> None:
        """Go to an address, on a screen that is so wide."""
        for domain in ("Page", "Runtime", "Log"):
            await self.ask(f"{domain}.enable")
        await self.look(width=width, dark=dark)
        self._loaded.clear()
        await self.ask("Page.navigate", url=address)
        async with asyncio.timeout(SECONDS):
            await self._loaded.wait()

    async def look(self, *, width: int, dark: bool = False, height: int = 800) -> None:
        """Change the screen."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme, motion])

    async def eval(self, expression: str) -> Any:  # noqa: ANN401 - whatever the page says
        """Ask the page."""
        told = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def text(self) -> str:
        """Read what a person sees."""
        return str(await self.eval("document.body.innerText"))

    async def until_seen(self, words: str) -> None:
        """Wait until a person sees these words."""

        async def is_seen() -> bool:
            return words in await self.text()

        try:
            await until(is_seen)
        except TimeoutError:
            raise AssertionError(f"{words!r} is not in {await self.text()!r}") from None

    async def picture(self) -> bytes:
        """Take a picture of the whole page, as PNG."""
        height = await self.eval("document.documentElement.scrollHeight")
        width = await self.eval("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        told = await self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(told["data"])


@asynccontextmanager
async def browsing() -> AsyncIterator[Tab]:
    """Hold a browser with one empty page."""
    assert CHROMIUM is not None
    with TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *_FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            port = await _debugging_port(Path(profile))
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                async with session.get("/json/list") as answer:
                    pages = [p for p in await answer.json(content_type=None) if p["type"] == "page"]
                async with session.ws_connect(
                    pages[0]["webSocketDebuggerUrl"], max_msg_size=0
                ) as line:
                    tab = Tab(line)
                    listening = asyncio.create_task(tab.listen())
                    yield tab
                    with suppress(TimeoutError):
                        await tab.ask("Browser.close")
                    await listening
        finally:
            if process.returncode is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 5.0)
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()


async def _debugging_port(profile: Path) -> int:
    told = profile / "DevToolsActivePort"

    def is_told() -> bool:
        return told.exists() and re.match(r"\d+\n", told.read_text()) is not None

    await until(is_told)
    return int(told.read_text().splitlines()[0])
