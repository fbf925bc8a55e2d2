"""Ask the agent of this container whether it lives, as an orchestrator without probes would.

Where it listens is known by its settings alone: a flag of its command line, a variable or a file.
So its command line is read again, by the agent's own parser. Exit code 0: it answered, or it was
told not to listen, or no `hailo-agent run` is here that could be asked.
"""
# ruff: noqa: INP001, T201 - a script, and what it prints is kept by the engine

import http.client
import os
import socket
import sys
from pathlib import Path

from hailo_agent.cli import parser
from hailo_agent.settings import flags_from, load
from hailo_agent.web.listen import Address, UnixAddress, parse_listen

SECONDS = 5.0


class Connection(http.client.HTTPConnection):
    """A connection to where an agent of this container listens."""

    def __init__(self, address: Address) -> None:
        """Take the address as the settings have it."""
        super().__init__("localhost", timeout=SECONDS)
        self.address = address

    def connect(self) -> None:
        """Connect to the socket, or to the port of this host."""
        if isinstance(self.address, UnixAddress):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(SECONDS)
            self.sock.connect(str(self.address.path))
        else:
            is_all = self.address.host in {"", "0.0.0.0"}  # noqa: S104 - where it may listen
            host = "127.0.0.1" if is_all else self.address.host
            self.sock = socket.create_connection((host, self.address.port), timeout=SECONDS)


def command_lines() -> list[list[str]]:
    """List what follows `hailo-agent run` in the command lines of this container's processes."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
        except OSError:  # it has ended
            continue
        if len(words) > 2 and Path(words[1]).name == "hailo-agent" and words[2] == "run":  # noqa: PLR2004 - interpreter, script, verb
            found.append(words[2:])
    return found


def main() -> int:
    """Ask; 0 if all is well."""
    for words in command_lines():
        arguments, unknown = parser().parse_known_args(words)
        loaded = load(
            flags=flags_from(arguments, unknown), environ=os.environ, config=arguments.config
        )
        listen = loaded.settings.web.listen
        if not listen:
            continue
        connection = Connection(parse_listen(listen))
        try:
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            print(f"{listen}: {error}")
            return 1
        if answer.status != http.HTTPStatus.OK:
            print(f"{listen}: {answer.status} {text}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
