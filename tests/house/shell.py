"""What stands in a block of shell commands: each simple command, with what is set for it.

Not a shell: enough of its grammar for what people paste from a page. Blocks are scripts, or
sessions whose commands follow a prompt and whose other lines are output.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

KEYWORDS = {"{", "}", "do", "done", "else", "fi", "then", "!", "exec", "sudo", "time"}
"""What may stand before a command, or alone, and is none that a page has to explain."""

_PROMPT = re.compile(r"^[#$] (?=\S)")
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_FUNCTION = re.compile(r"^\s*\w+\(\)\s*(?=\{)", re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)
    | (?P<comment>(?<!\S)\#[^\n]*)
    | (?P<redirect>\d?(?:&>|>>|>\||>&|<<|<>|>|<)(?:&\d)?)
    | (?P<between>\|\||&&|;;|[;&|()\n])
    | (?P<word>(?:[^\s"'\\;&|()<>]|\\.|'[^']*'|"(?:\\.|[^"\\])*")+)""",
    re.VERBOSE | re.DOTALL,
)


class NotShell(ValueError):
    """Raised for what no shell would read."""


@dataclass(slots=True)
class Command:
    """One simple command."""

    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    """Files that its output goes into."""

    @property
    def program(self) -> str:
        return self.words[0].rpartition("/")[2] if self.words else ""


def script(text: str) -> str:
    """Leave out what is output and, where there is one, the prompt."""
    lines = text.splitlines()
    if not is_session(text):
        return text
    kept: list[str] = []
    rest = iter(lines)
    for line in rest:
        if not _PROMPT.match(line):
            continue
        kept.append(_PROMPT.sub("", line))
        while kept[-1].endswith("\\"):
            kept.append(next(rest))
        if heredoc := _HEREDOC.search(kept[-1]):
            for more in rest:
                kept.append(more)
                if more == heredoc[2]:
                    break
    return "\n".join(kept) + "\n"


def is_session(text: str) -> bool:
    """Tell a session from a script that begins with a comment: a comment runs nothing."""
    first = text.lstrip("\n").partition("\n")[0]
    match = _PROMPT.match(first)
    return bool(match) and (first.startswith("$") or not re.match(r"# [A-Z/]|# \S+\.\w+$", first))


def commands(text: str) -> Iterator[Command]:
    """Take a script apart."""
    yield from _simple(_without_heredocs(text.replace("\\\n", " ")))


def _without_heredocs(text: str) -> str:
    kept = []
    rest = iter(text.splitlines())
    for line in rest:
        kept.append(line)
        if heredoc := _HEREDOC.search(line):
            for more in rest:
                if more.strip() == heredoc[2]:
                    break
    return "\n".join(kept)


def _simple(text: str) -> Iterator[Command]:
    for inner in _SUBSTITUTION.findall(text):
        yield from _simple(inner)
    command, redirect = Command(), False
    for kind, token in _tokens(_FUNCTION.sub("", _SUBSTITUTION.sub("SUBSTITUTED", text))):
        if kind == "between":
            if command.words or command.variables:
                yield command
            command = Command()
        elif redirect:
            command.written.append(unquoted(token))
        elif kind == "word" and not command.words:
            _begin(command, unquoted(token))
        elif kind == "word":
            command.words.append(unquoted(token))
        redirect = kind == "redirect" and "&" not in token[-2:]
    if command.words or command.variables:
        yield command


def _begin(command: Command, word: str) -> None:
    if _ASSIGNMENT.match(word):
        name, _, value = word.partition("=")
        command.variables[name] = value
    elif word not in KEYWORDS and not word.startswith("-"):  # the latter are sudo's own
        command.words.append(word)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotShell(text[at : at + 40])
        assert match.lastgroup is not None
        if match.lastgroup not in {"space", "comment"}:
            yield match.lastgroup, match[0]
        at = match.end()


def unquoted(word: str) -> str:
    """Take the quotes off, as a shell does before it runs the command."""
    return re.sub(
        r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)""",
        lambda match: next(group for group in match.groups() if group is not None),
        word,
        flags=re.DOTALL,
    )
