"""Takes the pictures of the status page in the documentation: `python -m tests.web.pictures`."""

import asyncio
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.web.browser import browsing
from tests.web.stand import Stand, crowd, served

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PICTURES = {
    "status-page.png": (1280, False),
    "status-page-dark.png": (1280, True),
    "status-page-phone.png": (375, False),
}
COLOURS = 256


async def take(directory: Path) -> None:
    """Write each picture into a directory."""
    stand = Stand(page=True)
    crowd(stand)
    async with served(stand) as address, browsing() as tab:
        for name, (width, dark) in PICTURES.items():
            await tab.open(address, width=width, dark=dark)
            await tab.until_seen("pci-0000-06-00-0")
            await tab.until_seen("live")
            (directory / name).write_bytes(small(await tab.picture()))


def small(png: bytes) -> bytes:
    """Spell a picture with a palette, which takes a third of the bytes."""
    width, height, rows = _pixels(png)
    colours = Counter(row[x : x + 3] for row in rows for x in range(0, 3 * width, 3))
    palette = [colour for colour, _ in colours.most_common(COLOURS)]
    index = {colour: _nearest(colour, palette) for colour in colours}
    lines = b"".join(
        b"\0" + bytes(index[row[x : x + 3]] for x in range(0, 3 * width, 3)) for row in rows
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(name, body)
        for name, body in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", b"".join(palette)),
            (b"IDAT", zlib.compress(lines, 9)),
            (b"IEND", b""),
        )
    )


def _nearest(colour: bytes, palette: list[bytes]) -> int:
    return min(
        range(len(palette)),
        key=lambda i: sum((a - b) ** 2 for a, b in zip(colour, palette[i], strict=True)),
    )


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


def _pixels(png: bytes) -> tuple[int, int, list[bytes]]:
    chunks = list(_chunks(png))
    width, height, depth, kind = struct.unpack_from(">IIBB", dict(chunks)[b"IHDR"])
    assert (depth, kind) == (8, 2), "eight bits of red, green and blue each"
    packed = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    above = bytearray(3 * width)
    rows = []
    for y in range(height):
        start = y * (3 * width + 1)
        row = bytearray(packed[start + 1 : start + 1 + 3 * width])
        _unfilter(packed[start], row, above)
        rows.append(bytes(row))
        above = row
    return width, height, rows


def _unfilter(kind: int, row: bytearray, above: bytearray) -> None:
    for i in range(len(row) if kind else 0):
        left, corner = (row[i - 3], above[i - 3]) if i > 2 else (0, 0)
        guesses = (left, above[i], (left + above[i]) // 2)
        if kind < 4:
            guess = guesses[kind - 1]
        else:
            towards = left + above[i] - corner
            guess = min((left, above[i], corner), key=lambda near: abs(towards - near))
        row[i] = (row[i] + guess) & 0xFF


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    asyncio.run(take(IMAGES))
