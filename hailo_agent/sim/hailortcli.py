"""A `hailortcli` to be run: a shell script that prints what the vendor's command would print.

For tests and simulated nodes. The script is written anew for every change, so a running one keeps
what it was started with. It knows `--version`, `scan` and `fw-control identify`, in the words of
4.x or 5.x, and can be told to misbehave in each of them.
"""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from hailo_agent.core.drivers import Version

_EMPTY_LEFT_OUT: Final = Version(5, 0, 0)
"""Since then a text that the board does not have is no line; before, it is `<N/A>`."""


class Verb(StrEnum):
    """What the command can be asked."""

    VERSION = "--version"
    SCAN = "scan"
    IDENTIFY = "fw-control identify"


class Manner(StrEnum):
    """How it answers."""

    SOUND = "sound"
    NOISY = "noisy"
    """Coloured warnings before, between and after, as a library prints them that is told to."""
    SILENT = "silent"
    GARBAGE = "garbage"
    ENDLESS = "endless"
    """It prints until it is released."""
    HANGING = "hanging"
    """It answers once it is released."""
    FAILING = "failing"
    """It ends as with another kernel driver's version."""
    CRASHING = "crashing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What one device tells of itself."""

    address: str
    firmware: str = "4.23.0"
    build: str = "release,app,extended context switch buffer"
    architecture: str = "HAILO8"
    name: str = "Hailo-8"
    serial: str = "HLLWM2B231400123"
    part_number: str = "HM218B1C2FA"
    product_name: str = "HAILO-8 AI ACCELERATOR M.2 M KEY MODULE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One time that it was started."""

    arguments: str
    directory: str
    environment: Mapping[str, str]
    pid: int


@dataclass(slots=True)
class HailortCli:
    """The command in a directory, and what became of it there."""

    directory: Path
    """Of its own; it takes notes in it."""
    version: str = "4.23.0"
    boards: Sequence[Board] = ()
    manners: Mapping[Verb, Manner] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the command is, if it is installed."""
        return self.directory / "hailortcli"

    def install(self) -> None:
        """Put it in place, or the one there is into another state."""
        new = self.directory / ".hailortcli.new"
        new.write_text("\n".join(self._script()) + "\n")
        new.chmod(0o755)
        new.rename(self.path)

    def release(self) -> None:
        """Let go all that hang, now and in future."""
        (self.directory / "released").touch()

    @property
    def calls(self) -> tuple[Call, ...]:
        """Tell when and how it was started."""
        return tuple(self._calls())

    @property
    def ended(self) -> int:
        """Count how often it has come to its own end."""
        notes = self.directory / "ended"
        return len(notes.read_text().splitlines()) if notes.exists() else 0

    @property
    def overlapped(self) -> bool:
        """Whether two were ever running at once."""
        return (self.directory / "overlapped").exists()

    def _calls(self) -> Iterator[Call]:
        for notes in sorted(self.directory.glob("call-*"), key=os.path.getmtime):
            arguments, directory, *environment = notes.read_text().splitlines()
            yield Call(
                arguments=arguments,
                directory=directory,
                environment=dict(line.partition("=")[::2] for line in environment),
                pid=int(notes.name.partition("-")[2]),
            )

    def _script(self) -> Iterator[str]:
        notes = shlex.quote(str(self.directory))
        yield "#!/bin/sh"
        yield f"here={notes}"
        yield '{ echo "$*"; pwd; env; } > "$here/call-$$"'
        yield 'mkdir "$here/running" 2>/dev/null || touch "$here/overlapped"'
        yield 'trap \'rmdir "$here/running" 2>/dev/null; echo $$ >> "$here/ended"\' EXIT'
        yield 'case "$*" in'
        yield from self._case(
            "--version | -v", Verb.VERSION, [f"HailoRT-CLI version {self.version}"]
        )
        yield from self._case("scan", Verb.SCAN, self._scan())
        for board in self.boards:
            yield from self._case(
                f"'fw-control identify --bdf {board.address}'"
                f" | 'fw-control identify -s {board.address}'",
                Verb.IDENTIFY,
                self._identify(board),
            )
        every = [line for board in self.boards for line in self._identify(board)]
        yield from self._case("'fw-control identify'", Verb.IDENTIFY, every)
        yield "*)"
        yield "  echo '[HailoRT CLI] [error] Invalid argument' >&2; exit 2;;"
        yield "esac"

    def _case(self, pattern: str, verb: Verb, lines: Sequence[str]) -> Iterator[str]:
        yield f"{pattern})"
        yield from _behave(self.manners.get(verb, Manner.SOUND), lines)
        yield "  ;;"

    def _scan(self) -> list[str]:
        if not self.boards:
            return ["Hailo devices not found"]
        return ["Hailo Devices:", *(f"[-] Device: {board.address}" for board in self.boards)]

    def _identify(self, board: Board) -> list[str]:
        version = Version.parse(self.version)
        leaves_out = version is not None and version >= _EMPTY_LEFT_OUT
        texts = {
            "Serial Number": board.serial,
            "Part Number": board.part_number,
            "Product Name": board.product_name,
        }
        return [
            f"Executing on device: {board.address}",
            "Identifying board",
            "Control Protocol Version: 2",
            f"Firmware Version: {board.firmware} ({board.build})",
            "Logger Version: 0",
            *([f"Board Name: {board.name}"] if board.name or not leaves_out else []),
            f"Device Architecture: {board.architecture}",
            *(
                f"{name}: {text or '<N/A>'}"
                for name, text in texts.items()
                if text or not leaves_out
            ),
            "",
        ]


_WARNING: Final = r"\033[33m[HailoRT] [warning]\033[m Unsupported something: ignored"
_UNTIL_RELEASED: Final = 'while [ ! -e "$here/released" ]; do'


def _behave(manner: Manner, lines: Sequence[str]) -> Iterator[str]:
    answer = [f"  printf '%s\\n' {shlex.quote(line)}" for line in lines]
    warning = f"  printf '{_WARNING}\\n'"
    match manner:
        case Manner.SOUND:
            yield from answer
        case Manner.NOISY:
            yield warning
            for line in answer:
                yield from (line, warning)
        case Manner.SILENT:
            yield "  :"
        case Manner.GARBAGE:
            yield "  head -c 3000 /dev/urandom"
        case Manner.ENDLESS:
            yield f"  {_UNTIL_RELEASED} printf '%1000s\\n' .; done"
        case Manner.HANGING:
            yield f"  {_UNTIL_RELEASED} sleep 0.02; done"
            yield from answer
        case Manner.FAILING:
            yield (
                "  echo '[HailoRT] [error] CHECK failed - Driver version (4.20.0) is different"
                " from library version (4.23.0)' >&2; exit 76"
            )
        case Manner.CRASHING:
            yield '  rmdir "$here/running"; kill -SEGV $$'
