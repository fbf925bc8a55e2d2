import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TextIO

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from hailo_agent import log

STATIC = {log.SERVICE_NAME: "hailo-agent", log.SERVICE_VERSION: "1.2.3", log.NODE_NAME: "node-7"}

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "log").open("w") as file:
        yield file


@pytest.fixture
def lines(stream: TextIO) -> Lines:
    """Send JSON to a file; returns the lines in it."""
    configured(stream)
    return lambda: [json.loads(line) for line in raw_lines(stream)]


def fail(error: Exception) -> None:
    raise error


def raw_lines(stream: TextIO) -> list[bytes]:
    *found, rest = Path(stream.name).read_bytes().split(b"\n")
    assert rest == b""
    return found


def configured(
    stream: log.Stream | None,
    *,
    level: str = "info",
    format: Literal["json", "console", "auto"] = "auto",  # noqa: A002
) -> None:
    log.configure(level=level, format=format, stream=stream, static=STATIC)


# --- What a line says ------------------------------------------------------------------------


def test_an_event_is_one_line_with_the_names_of_the_schema(lines: Lines) -> None:
    device = {"id": "pci-0000-01-00-0", "path": Path("/dev/hailo0")}
    structlog.get_logger().info("device.added", device=device)
    (line,) = lines()
    assert list(line)[:3] == ["@timestamp", "log.level", "message"]
    assert line.pop("@timestamp")[10:] != ""
    assert line == {
        "log.level": "info",
        "message": "device.added",
        "device": {"id": "pci-0000-01-00-0", "path": "/dev/hailo0"},
        "service.name": "hailo-agent",
        "service.version": "1.2.3",
        "k8s.node.name": "node-7",
    }


def test_the_time_is_utc_to_the_millisecond(lines: Lines) -> None:
    structlog.get_logger().info("device.added")
    stamp = lines()[0]["@timestamp"]
    assert len(stamp) == len("2026-01-02T03:04:05.678Z")
    assert (stamp[10], stamp[19], stamp[-1]) == ("T", ".", "Z")


def test_a_static_field_without_a_value_is_left_out(stream: TextIO) -> None:
    log.configure(level="info", format="json", stream=stream, static={log.NODE_NAME: ""})
    structlog.get_logger().info("device.added")
    assert b"k8s.node.name" not in raw_lines(stream)[0]


def test_a_field_with_a_name_of_the_schema_is_kept_beside_it(lines: Lines) -> None:
    structlog.get_logger().info("allocation.refused", message="no such device")
    assert lines()[0]["message"] == "allocation.refused"
    assert lines()[0]["message_"] == "no such device"


def test_an_exception_is_told_with_its_traceback_and_without_locals(lines: Lines) -> None:
    def read() -> None:
        password = "x" * 7  # noqa: F841
        fail(OSError(5, "Input/output error"))

    try:
        read()
    except OSError:
        structlog.get_logger().exception("part.failed")
    error = lines()[0]["error"]
    assert (error["type"], error["message"]) == ("OSError", "[Errno 5] Input/output error")
    assert error["stack_trace"].startswith("Traceback (most recent call last):\n")
    assert "in read\n" in error["stack_trace"]
    assert "xxxxxxx" not in error["stack_trace"]


@pytest.mark.parametrize(
    ("error", "described"),
    [
        (KeyError("a"), {"type": "KeyError", "message": "'a'"}),
        ({"type": "T", "message": "m"}, {"type": "T", "message": "m"}),
        ("text", {"message": "text"}),
        (
            ExceptionGroup("two", [OSError("x"), ExceptionGroup("one", [ValueError("y")])]),
            {"type": "ExceptionGroup", "message": "two: OSError: x; ValueError: y"},
        ),
    ],
)
def test_an_error_is_an_object_whatever_it_was_given_as(
    error: object, described: object, lines: Lines
) -> None:
    structlog.get_logger().warning("part.restarted", error=error)
    assert lines()[0]["error"] == described


def test_no_exception_is_no_error(lines: Lines) -> None:
    structlog.get_logger().error("part.failed", exc_info=True)
    structlog.get_logger().error("part.failed", exc_info=(None, None, None), error=None)
    assert all("error" not in line for line in lines())


@pytest.mark.parametrize("name", ["grpclib.server", "asyncio"])
def test_what_libraries_log_comes_out_as_the_same_lines(name: str, lines: Lines) -> None:
    try:
        fail(ValueError("bad"))
    except ValueError:
        logging.getLogger(name).exception("Application %s", "error")
    (line,) = lines()
    assert (line["message"], line["log.level"], line["log.logger"]) == (
        "Application error",
        "error",
        name,
    )
    assert line["error"]["type"] == "ValueError"
    assert line["service.name"] == "hailo-agent"


@pytest.mark.parametrize(
    ("number", "name"), [(5, "debug"), (10, "debug"), (25, "info"), (30, "warning"), (50, "error")]
)
def test_a_library_s_level_becomes_one_of_ours(number: int, name: str, lines: Lines) -> None:
    log.set_level("debug")
    logging.root.setLevel(1)
    logging.getLogger("library").log(number, "text")
    assert lines()[0]["log.level"] == name


def test_a_library_that_formats_wrongly_is_still_heard(lines: Lines, stream: TextIO) -> None:
    configured(stream)  # without pytest's own handler, which insists on the right format
    logging.getLogger("library").warning("%d devices", "many")
    assert lines()[0]["message"] == "'%d devices' with ('many',)"


def test_warnings_are_logged(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = lines()
    assert (line["log.level"], line["log.logger"]) == ("warning", "py.warnings")
    assert "DeprecationWarning: old" in line["message"]


# --- Levels ----------------------------------------------------------------------------------


def test_the_level_changes_for_loggers_already_in_use(lines: Lines) -> None:
    bound = structlog.get_logger().bind(part="reconciler")
    bound.debug("look.ended")
    logging.getLogger("library").debug("quiet")
    log.set_level("debug")
    bound.debug("look.ended")
    logging.getLogger("library").debug("loud")
    log.set_level("error")
    bound.warning("part.restarted")
    logging.getLogger("library").warning("quiet")
    assert [line["message"] for line in lines()] == ["look.ended", "loud"]


def test_what_is_critical_is_logged_at_every_level(lines: Lines) -> None:
    log.set_level("error")
    structlog.get_logger().critical("part.failed")
    assert lines()[0]["log.level"] == "critical"


# --- A person reads --------------------------------------------------------------------------


def test_a_terminal_gets_colours_and_readable_tracebacks() -> None:
    reader, terminal = pty.openpty()
    with open(terminal, "w") as stream:  # noqa: PTH123 - a descriptor
        configured(stream)
        try:
            fail(ValueError("bad \x1b[2J"))
        except ValueError:
            structlog.get_logger().error("part.failed", part="tick\x1b[2J", exc_info=True)
        text = os.read(reader, 65536).decode()
    os.close(reader)
    assert "part.failed" in text
    assert "\x1b[" in text
    assert "Traceback (most recent call last):\r\n" in text
    assert "\x1b[2J" not in text
    assert "\\x1b[2J" in text


def test_a_console_that_is_no_terminal_gets_no_colours(stream: TextIO) -> None:
    configured(stream, format="console")
    structlog.get_logger().info("device.added", device={"id": "pci-1"}, name="\udcff")
    (line,) = raw_lines(stream)
    assert b"[info     ] device.added" in line
    assert b"\x1b" not in line


# --- A value may be anything -----------------------------------------------------------------


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: int
    y: object


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Path("/dev/hailo0"), "/dev/hailo0"),
        (Colour.RED, "red"),
        (Point(1, "\udcff"), {"x": 1, "y": "\\udcff"}),
        ({1, 2}, [1, 2]),
        ((1, "a"), [1, "a"]),
        (b"\xffa", "\\xffa"),
        ("\udcff", "\\udcff"),
        ({"\udcff": {1}}, {"\\udcff": [1]}),
        (float("nan"), None),
        (2**64, "18446744073709551616"),
        (2**63 - 1, 2**63 - 1),
        ({1: "a", None: "b"}, {"1": "a", "null": "b"}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (Hostile(), "<Hostile that cannot be written>"),
        (OSError("gone"), {"type": "OSError", "message": "gone"}),
        (
            [OSError("gone"), "\udcff"],
            [{"type": "OSError", "message": "gone"}, "\\udcff"],
        ),
        ([b"a", "\udcff", Colour.RED, Path("/x")], ["a", "\\udcff", "red", "/x"]),
        pytest.param(10**5000, "<int that cannot be written>", id="endless number"),
        ("a\nb\x00", "a\nb\x00"),
    ],
)
def test_every_value_is_written_somehow(value: object, said: object, lines: Lines) -> None:
    structlog.get_logger().info("device.added", value=value)
    assert lines()[0]["value"] == said


def test_an_exception_without_a_text_is_written(lines: Lines) -> None:
    try:
        fail(HostileError())
    except HostileError:
        structlog.get_logger().exception("part.failed")
    assert lines()[0]["error"]["message"] == "<an error without a text>"


def test_a_value_that_contains_itself_is_written(lines: Lines) -> None:
    endless: list[object] = []
    endless.append(endless)
    structlog.get_logger().info("device.added", value=endless)
    assert "… 1 entries" in json.dumps(lines()[0]["value"], ensure_ascii=False)


def test_a_long_text_keeps_both_ends_and_says_what_is_missing(lines: Lines) -> None:
    structlog.get_logger().info("device.added", text="a" * 10_000 + "b" * 10_000)
    text = lines()[0]["text"]
    assert text == "a" * 1365 + "… 17953 characters …" + "b" * 682


def test_a_long_list_says_how_much_is_missing(lines: Lines) -> None:
    structlog.get_logger().info(
        "list.sent", ids=["x" * 40] * 1024, ports={i: i for i in range(1024)}
    )
    assert lines()[0]["ids"][-1] == "… 960 more"
    assert lines()[0]["ports"]["…"] == "960 more"


def test_a_line_with_too_many_fields_names_what_it_leaves_out(lines: Lines, stream: TextIO) -> None:
    fields = {f"field_{i}": {f"{k}": ["\x00" * 200] * 50 for k in range(50)} for i in range(30)}
    structlog.get_logger().info("device.added", **fields)
    assert len(raw_lines(stream)[0]) < log.LINE_BYTES
    assert lines()[0]["message"] == "device.added"
    assert lines()[0]["k8s.node.name"] == "node-7"
    assert lines()[0]["log.omitted"][:2] == ["field_0", "field_1"]


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.characters(categories=["Cs", "Cc"]))
    | st.binary()
    | st.sampled_from([Hostile(), HostileError(), Colour.RED, Path("/x"), "x" * 20_000])
    | st.builds(OSError, st.text()),
    lambda below: (
        st.lists(below)
        | st.dictionaries(st.text() | st.integers() | st.none(), below)
        | st.builds(Point, st.integers(), below)
    ),
    max_leaves=40,
)


@given(st.text(), st.dictionaries(st.text(), ANY), st.sampled_from(["json", "console"]))
def test_any_event_becomes_exactly_one_line_of_at_most_16_kib(
    event: str,
    fields: dict[str, Any],
    format: Literal["json", "console"],  # noqa: A002
) -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream:  # noqa: PTH123 - a descriptor
        configured(stream, format=format)
        structlog.get_logger().bind(**fields).info(event.replace("%", ""))
    with open(reader, "rb") as file:  # noqa: PTH123 - a descriptor
        written = file.read()
    if format == "json":
        assert written.count(b"\n") == 1
        assert len(written) <= log.LINE_BYTES
        assert json.loads(written)["log.level"] == "info"


# --- A reader may be gone, slow or full ------------------------------------------------------


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_without_a_descriptor_lines_are_dropped(stream: log.Stream | None) -> None:
    configured(stream)
    structlog.get_logger().info("device.added")
    logging.getLogger("library").warning("text")


def test_a_full_disk_costs_the_line_only() -> None:
    with open("/dev/full", "w") as stream:  # noqa: PTH123
        configured(stream)
        structlog.get_logger().info("device.added")


def test_a_closed_descriptor_costs_the_line_only(stream: TextIO) -> None:
    configured(stream)
    stream.close()
    structlog.get_logger().info("device.added")


def test_a_reader_that_hung_up_costs_the_line_only() -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream:  # noqa: PTH123 - a descriptor
        configured(stream)
        os.close(reader)
        structlog.get_logger().info("device.added")


def test_a_reader_that_stalls_holds_nobody_up_and_learns_what_it_missed() -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream, open(reader, "rb") as file:  # noqa: PTH123 - descriptors
        configured(stream)
        for number in range(2_000):
            structlog.get_logger().info("device.added", number=number, text="x" * 400)
        os.set_blocking(reader, False)
        before = file.read()
        structlog.get_logger().info("device.removed")
        structlog.get_logger().info("device.removed")
        after = file.read()
    # The line that was cut off ends before the next begins.
    assert after.startswith(b"\n") or before.endswith(b"\n")
    whole = [json.loads(line) for line in before.split(b"\n")[:-1]]
    first, second = [json.loads(line) for line in after.lstrip(b"\n").splitlines()]
    assert [line["number"] for line in whole] == list(range(len(whole)))
    assert first["log.dropped"] == 2_000 - len(whole)
    assert "log.dropped" not in second


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole() -> None:
    reader, writer = os.pipe()
    found: list[bytes] = []
    with open(writer, "w") as stream, open(reader, "rb") as file:  # noqa: PTH123 - descriptors
        thread = threading.Thread(target=lambda: found.append(file.read()))
        thread.start()
        configured(stream)
        for _ in range(20):
            structlog.get_logger().info("device.added", text="x" * 16_000)
        stream.close()
        thread.join()
    assert all(len(json.loads(line)["text"]) == 16_000 for line in found[0].splitlines())


def test_loading_the_log_spares_the_agent_rich_but_leaves_it_to_others() -> None:
    program = (
        "import sys; from hailo_agent import log; print('rich' in sys.modules); "
        "import rich.console; print('rich.console' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]
