"""Draw docs/images/demo.svg: what `make demo` prints of the chapters to be seen first.

    .venv/bin/python -m hack.site.picture

It runs the demo, which takes half a minute, and draws nothing unless every expectation held. The
picture needs no font from elsewhere.
"""

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

PICTURE: Final = Path(__file__).parents[2] / "docs" / "images" / "demo.svg"
CHAPTERS: Final = ("3.", "4.", "5.", "6.", "7.", "9.")
WIDTH: Final = 112
_ELSEWHERE: Final = re.compile(r"\s*@font-face \{\{.*?\}\}|<!-- Generated.*?-->", re.DOTALL)
"""What the template of rich names of other hosts: a font, and its makers."""


def told() -> list[str]:
    """Run the demo, and take what it tells as it goes along: the lines before its last table."""
    command = [str(Path(sys.executable).with_name("hailo-agent")), "simulate", "--story"]
    run = subprocess.run(  # noqa: S603 - our own command
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    story = lines[: next(n for n, line in enumerate(lines) if line.startswith("EXPECTED"))]
    return [*story, lines[-1]]


def chosen(lines: list[str]) -> list[Text]:
    """Keep some chapters and the verdict, in colours."""
    texts: list[Text] = [Text("$ make demo", style="bold"), Text("…", style="dim")]
    is_chosen = False
    for line in lines[:-1]:
        if re.match(r"\d+\. ", line):
            is_chosen = line.startswith(CHAPTERS)
            if is_chosen:
                texts.append(Text(line, style="bold cyan"))
        elif is_chosen and line.strip():
            text = Text(line, no_wrap=True, overflow="ellipsis")
            text.highlight_words(["   ok "], "green")
            text.highlight_regex(r"Unhealthy|refused", "red")
            texts.append(text)
    return [*texts, Text("…", style="dim"), Text(lines[-1], style="bold green")]


def main() -> None:
    """Draw."""
    console = Console(record=True, width=WIDTH, file=StringIO(), highlight=False)
    for text in chosen(told()):
        console.print(text, no_wrap=True, overflow="ellipsis")
    svg = console.export_svg(
        title="hailo-agent on a simulated node",
        theme=SVG_EXPORT_THEME,
        code_format=_ELSEWHERE.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, ", ""),
        unique_id="demo",
    )
    PICTURE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


if __name__ == "__main__":
    main()
