"""The pages that people read: their fenced blocks, links and anchors."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.house.repository import ROOT

DOCS = ROOT / "docs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    tag: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.strip("\n").partition("\n")[0].strip()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """List what a reader may open: the site's pages, and the files beside them."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks() -> Iterator[Block]:
    for page in pages():
        for token in tokens(page):
            if token.type in {"fence", "code_block"}:
                assert token.map is not None
                tag = token.info.strip().partition(" ")[0]
                yield Block(page=name(page), line=token.map[0] + 1, tag=tag, text=token.content)


def links(page: Path) -> Iterator[str]:
    """List where a page's links and pictures lead."""
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield str(target)


def prose(page: Path) -> str:
    """Give what stands outside of fenced blocks and of code in a line."""
    return "\n".join(
        "".join(
            " " if child.type == "softbreak" else child.content
            for child in token.children or ()
            if child.type in {"text", "softbreak"}
        )
        for token in tokens(page)
        if token.type == "inline"
    )


@cache
def anchors(page: Path) -> set[str]:
    """List the anchors of a page's headings, as GitHub and the site make them."""
    found: Counter[str] = Counter()
    slugs = set()
    for before, token in zip(tokens(page), tokens(page)[1:], strict=False):
        if before.type == "heading_open":
            words = re.sub(r"[^\w\- ]", "", plain(token).lower()).replace(" ", "-")
            slugs.add(f"{words}-{found[words]}" if found[words] else words)
            found[words] += 1
    return slugs


def plain(heading: Token) -> str:
    return "".join(c.content for c in heading.children or () if c.type in {"text", "code_inline"})


def spans(page: Path) -> Iterator[str]:
    """List what is set as code within a line."""
    for token in tokens(page):
        for child in token.children or ():
            if child.type == "code_inline":
                yield child.content
