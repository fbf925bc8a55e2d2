"""Where the web room listens, and what is said when it cannot."""

import socket
import tempfile
from pathlib import Path

import pytest

from hailo_agent.errors import EdgeError
from hailo_agent.web.listen import (
    MAX_SOCKET_PATH_BYTES,
    TcpAddress,
    UnixAddress,
    listening,
    parse_listen,
)

ANY_PORT = TcpAddress(host="127.0.0.1", port=0)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":9808", "", 9808),
        ("127.0.0.1:9808", "127.0.0.1", 9808),
        ("0.0.0.0:1", "0.0.0.0", 1),
        ("[::1]:9808", "::1", 9808),
        ("[::]:65535", "::", 65535),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("localhost:9808", "127.0.0.1", 9808),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    assert parse_listen(text) == TcpAddress(host=host, port=port)


@pytest.mark.parametrize("text", [":9808", "127.0.0.1:9808", "[::1]:9808", "unix:/run/a/b.sock"])
def test_an_address_is_spelled_as_it_was_read(text: str) -> None:
    assert str(parse_listen(text)) == text


def test_a_socket_path_is_read() -> None:
    assert parse_listen("unix:/run/x.sock") == UnixAddress(path=Path("/run/x.sock"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no port"),
        ("9808", "no port"),
        ("node.local:9808", "not an IP address"),
        ("::1:9808", "brackets"),
        ("[127.0.0.1]:9808", "brackets"),
        ("[::1:9808", "not an IP address"),
        (":http", "from 1 to 65535"),
        (":65536", "from 1 to 65535"),
        (":-1", "from 1 to 65535"),
        (":", "from 1 to 65535"),
        (":٣", "from 1 to 65535"),
        ("unix:", "whole path"),
        ("unix:run/x.sock", "whole path"),
        ("unix:/run/", "whole path"),
        ("unix:/run/../x", "whole path"),
        ("unix:/run/\0x", "NUL"),
        ("unix:/" + "x" * 107, "choose a shorter one"),
        ("unix:/" + "ü" * 54, "choose a shorter one"),
        ("unix:/" + "d" * 98 + "/x", "choose a shorter one"),
    ],
)
def test_what_is_no_address_is_refused_with_a_remedy(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_listen(text)


@pytest.mark.parametrize("depth", [1, 60])
def test_the_longest_path_that_is_allowed_can_be_bound(depth: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        directory = Path(top, "d" * depth)
        directory.mkdir()
        name = "s" * (MAX_SOCKET_PATH_BYTES - len(f"{directory}/"))
        with listening(parse_listen(f"unix:{directory / name}")) as held:
            assert held.is_published()
        with pytest.raises(ValueError, match="choose a shorter one"):
            parse_listen(f"unix:{directory / name}x")


def test_a_port_in_use_is_told_with_the_setting_to_change() -> None:
    with (
        listening(ANY_PORT) as held,
        pytest.raises(EdgeError, match=r"another process.*web\.listen"),
        listening(held.address),
    ):
        pass


def test_an_address_of_another_machine_is_told() -> None:
    with (
        pytest.raises(EdgeError, match="does not have that address"),
        listening(TcpAddress(host="192.0.2.1", port=0)),
    ):
        pass


def test_all_addresses_means_both_versions_of_ip() -> None:
    with listening(TcpAddress(host="", port=0)) as held:
        assert isinstance(held.address, TcpAddress)
        socket.create_connection(("127.0.0.1", held.address.port)).close()
        if socket.has_dualstack_ipv6():
            assert held.socket.family is socket.AF_INET6


def test_a_socket_left_behind_is_replaced_and_ours_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(UnixAddress(path=path)) as held:
        assert held.is_published()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
        assert [p.name for p in tmp_path.iterdir()] == ["web.sock"]
    assert not path.exists()


def test_a_socket_that_somebody_answers_is_left_to_them(tmp_path: Path) -> None:
    address = UnixAddress(path=tmp_path / "web.sock")
    with listening(address) as first:
        with pytest.raises(EdgeError, match="another process"), listening(address):
            pass
        assert first.is_published()


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    path.write_text("precious")
    with (
        pytest.raises(EdgeError, match="something else than a socket"),
        listening(UnixAddress(path=path)),
    ):
        pass
    assert path.read_text() == "precious"


def test_a_socket_that_took_the_place_of_ours_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with listening(UnixAddress(path=path)) as held:
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
        assert not held.is_published()
    assert path.exists()


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(EdgeError, match=f"directory {tmp_path}/no does not exist"),
        listening(UnixAddress(path=tmp_path / "no" / "web.sock")),
    ):
        pass
