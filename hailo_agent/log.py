"""How events become lines: JSON for a cluster, colours for a person.

Called by `cli` alone, once; every other room says `structlog.get_logger()` and names its events
`<noun>.<past participle>`. Most of this module is about what must never happen: a value that
cannot be written, a line without end, or a reader that hangs up, stalls or fills its disk must not
cost more than the line.
"""

import dataclasses
import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from enum import Enum
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, Protocol

import orjson

# structlog.dev imports rich wherever it is installed, for tracebacks that nobody asked for: 5 MB
# and 80 ms of every agent. Hidden while structlog is loaded, it stays importable for the others.
_HIDES_RICH: Final = "rich" not in sys.modules
if _HIDES_RICH:
    sys.modules["rich"] = None  # type: ignore[assignment]  # how a module is declared absent
import structlog  # noqa: E402
import structlog.dev  # noqa: E402

if _HIDES_RICH:
    del sys.modules["rich"]

TIMESTAMP: Final = "@timestamp"
LEVEL: Final = "log.level"
LOGGER: Final = "log.logger"
DROPPED: Final = "log.dropped"
OMITTED: Final = "log.omitted"
MESSAGE: Final = "message"
ERROR: Final = "error"
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
NODE_NAME: Final = "k8s.node.name"

LINE_BYTES: Final = 16 * 1024
"""No line is longer: the kubelet's log format cuts there, and leaves two halves of JSON."""

LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_CHATTY: Final = ("watchfiles", "asyncio", "grpclib", "hpack")
"""Libraries that tell at info or debug what we tell ourselves, or what nobody asked for."""

_STALL_MILLISECONDS: Final = 100
_BEYOND_JSON: Final = 1 << 63

Event = MutableMapping[str, Any]
Render = Callable[[object, str, Event], bytes]


class Stream(Protocol):
    """What lines are written to: `sys.stderr`, `sys.stdout` or a file."""

    def fileno(self) -> int:
        """Return the descriptor."""


def configure(
    *,
    level: str,
    format: Literal["json", "console", "auto"],  # noqa: A002 - the setting's name
    stream: Stream | None,
    static: Mapping[str, str],
) -> None:
    """Send every event, and every record of the standard library's logging, to a stream.

    `static` goes into every line. `stream` is nothing where the process was started without one,
    as `sys.stderr` is then.
    """
    descriptor = None if stream is None else _descriptor(stream)
    sink = _Sink(descriptor)
    on_terminal = descriptor is not None and os.isatty(descriptor)
    is_console = format == "console" or (format == "auto" and on_terminal)
    render: Render = _Console(colors=on_terminal) if is_console else _Json(static, sink)
    structlog.configure(
        processors=[_Threshold(LEVELS[level]), render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge(render, sink)], level=LEVELS[level], force=True)
    logging.captureWarnings(capture=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def set_level(name: str) -> None:
    """Log from this level on, in every logger there is, from the next event."""
    threshold = structlog.get_config()["processors"][0]
    threshold.level = LEVELS[name]
    logging.root.setLevel(LEVELS[name])


def _descriptor(stream: Stream) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # closed already, or a buffer in a test
        return None


# --- From event to line ----------------------------------------------------------------------


class _Threshold:
    """Drops events below a level, which may change while loggers that pass here are in use."""

    def __init__(self, level: int) -> None:
        self.level = level

    def __call__(self, _logger: object, method: str, event: Event) -> Event:
        if LEVELS.get(method, logging.CRITICAL) < self.level:
            raise structlog.DropEvent
        return event


class _Json:
    """One line of JSON for each event, with the names of the Elastic Common Schema."""

    def __init__(self, static: Mapping[str, str], sink: "_Sink") -> None:
        self._static = {name: value for name, value in static.items() if value}
        self._sink = sink

    def __call__(self, _logger: object, method: str, event: Event) -> bytes:
        line = self._line(method, event)
        try:
            encoded = _encoded(line)
        except TypeError:  # a surrogate, a number beyond 64 bits, an object without a text
            encoded = b""
        if 0 < len(encoded) <= LINE_BYTES:
            return encoded
        for cut in _CUTS:
            encoded = _encoded(cut(line))
            if len(encoded) <= LINE_BYTES:
                return encoded
        kept = {TIMESTAMP, LEVEL, MESSAGE, *self._static}
        left = {name: value for name, value in line.items() if name in kept}
        return _encoded(_CUTS[-1]({**left, OMITTED: [name for name in line if name not in kept]}))

    def _line(self, method: str, event: Event) -> dict[str, Any]:
        line: dict[str, Any] = {
            TIMESTAMP: datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            LEVEL: method,
            MESSAGE: event.pop("event", ""),
        }
        failure = _exception(event.pop("exc_info", None))
        error = _described(event.pop(ERROR, failure))
        if failure:
            error["stack_trace"] = _stack_trace(failure)
        if error:
            line[ERROR] = error
        if self._sink.dropped:
            line[DROPPED] = self._sink.dropped
        for name, value in event.items():
            line[f"{name}_" if name in line else name] = value
        return line | self._static


class _Console:
    """A coloured line for each event, and tracebacks as Python prints them."""

    def __init__(self, *, colors: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False)

    def __call__(self, logger: object, method: str, event: Event) -> bytes:
        failure = _exception(event.pop("exc_info", None))
        shown: Event = {
            name: _printable(value) if isinstance(value, str) else value
            for name, value in _CUTS[0](event).items()
        }
        shown["timestamp"] = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
        shown["level"] = method
        if failure:
            shown["exception"] = _printable(_stack_trace(failure))
        return f"{self._render(logger, method, shown)}\n".encode("utf-8", "backslashreplace")


class _Bridge(logging.Handler):
    """Brings what libraries say through `logging`, and warnings, to the same lines."""

    def __init__(self, render: Render, sink: "_Sink") -> None:
        super().__init__()
        self._render = render
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, whose text is the message: libraries do not name events."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit are the library's bug
            message = f"{record.msg!r} with {record.args!r}"
        event: Event = {"event": message.rstrip(), LOGGER: record.name}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        reached = [name for name, number in LEVELS.items() if number <= record.levelno]
        level = reached[-1] if reached else "debug"
        self._sink.write(self._render(None, level, event))


class _Sink:
    """Writes whole lines, waits for no reader for long, and counts what it had to drop.

    A line goes out in pieces that a pipe takes without blocking once it is writable (pipe(7),
    PIPE_BUF): a log reader that hangs would otherwise hang the loop that answers the kubelet.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self._descriptor = descriptor
        self._poll = select.poll()
        if descriptor is not None:
            self._poll.register(descriptor, select.POLLOUT)
        self._patience_milliseconds = _STALL_MILLISECONDS
        self._torn = False

    def write(self, line: bytes) -> None:
        """Write one line, or drop it."""
        if self._descriptor is None:
            return
        with self._lock:
            whole = b"\n" + line if self._torn else line
            rest = whole
            try:
                while rest and self._poll.poll(self._patience_milliseconds):
                    rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
            except OSError:  # hung up, full, closed
                pass
            if len(rest) < len(whole):
                self._torn = bool(rest)
            self.dropped = self.dropped + 1 if rest else 0
            self._patience_milliseconds = 0 if rest else _STALL_MILLISECONDS

    msg = debug = info = warning = error = critical = write


# --- Values that may be anything -------------------------------------------------------------


def _encoded(line: Mapping[str, Any]) -> bytes:
    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(line, default=_as_json, option=options)


def _as_json(value: object) -> object:
    """Return what orjson does not know as something that it does."""
    match value:
        case Mapping():
            return dict(value)
        case AbstractSet():
            return list(value)
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case BaseException():
            return _described(value)
        case _:
            return str(value)


class _Cut(NamedTuple):
    """How much of a value is kept: characters, entries of a collection, levels of nesting."""

    length: int
    entries: int
    depth: int

    def __call__(self, value: object) -> Any:  # noqa: ANN401 - whatever JSON knows
        """Return a value as JSON knows it, with what is long cut short and saying so."""
        try:
            return self._cut(value)
        except Exception:  # noqa: BLE001 - its own methods may raise anything
            return f"<{type(value).__name__} that cannot be written>"

    def _cut(self, value: object) -> object:
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        match value:
            case None | bool() | float():
                return value
            case int() if abs(value) < _BEYOND_JSON:
                return int(value)
            case Mapping():
                return self._mapping(value)
            case list() | tuple() | AbstractSet():
                return self._list(value)
            case BaseException():
                return self._mapping(_described(value))
            case _:
                return self._text(str(value))

    def _mapping(self, value: Mapping[Any, Any]) -> object:
        if not self.depth:
            return f"… {len(value)} entries"
        below = self._replace(depth=self.depth - 1)
        kept = {
            self._text(str(key)): below(item) for key, item in islice(value.items(), self.entries)
        }
        return kept | (
            {"…": f"{len(value) - self.entries} more"} if len(value) > self.entries else {}
        )

    def _list(self, value: Collection[object]) -> object:
        if not self.depth:
            return f"… {len(value)} entries"
        below = self._replace(depth=self.depth - 1)
        kept = [below(item) for item in islice(value, self.entries)]
        if len(value) <= self.entries:
            return kept
        more = f"… {len(value) - self.entries} more"
        # A list of objects stays one: a log stack has one type for each key.
        return [*kept, {"…": more} if kept and isinstance(kept[0], dict) else more]

    def _text(self, text: str) -> str:
        """Return valid UTF-8, without the middle of what is long: its ends tell most."""
        if len(text) > self.length:
            head, tail = self.length * 2 // 3, self.length // 3
            text = f"{text[:head]}… {len(text) - head - tail} characters …{text[-tail:]}"
        return text.encode("utf-8", "backslashreplace").decode()


# Tried one after the other, until a line is short enough.
_CUTS: Final = (
    _Cut(2048, 64, 8),
    _Cut(512, 32, 4),
    _Cut(128, 16, 4),
    _Cut(64, 8, 4),
    _Cut(64, 8, 3),
)


# --- Exceptions ------------------------------------------------------------------------------


def _exception(exc_info: object) -> BaseException | None:
    """Return the exception that `exc_info` stands for, in any of its spellings."""
    match exc_info:
        case BaseException():
            return exc_info
        case (_, BaseException() as exception, _):
            return exception
        case None | False | (None, None, None):
            return None
        case _:
            return sys.exc_info()[1]


def _described(error: object) -> dict[str, object]:
    match error:
        case None:
            return {}
        case BaseExceptionGroup():  # its own text only counts them
            inside = "; ".join(f"{type(e).__name__}: {_message(e)}" for e in _leaves(error))
            return {"type": type(error).__name__, "message": f"{error.message}: {inside}"}
        case BaseException():
            return {"type": type(error).__name__, "message": _message(error)}
        case dict():
            return {**error}
        case _:
            return {"message": error}


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an error whose text is a bug is still to be told
        return "<an error without a text>"


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _stack_trace(error: BaseException) -> str:
    """Return the traceback as text, without anybody's local variables."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - as _message
        return "<a traceback that cannot be written>"


def _printable(text: str) -> str:
    """Return text that gives no orders to a terminal, whoever wrote it."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
