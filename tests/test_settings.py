import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hailo_agent.core.offer import endpoint_name
from hailo_agent.errors import EX_CONFIG, ConfigError
from hailo_agent.settings import (
    Family,
    Loaded,
    Settings,
    add_flags,
    flags_from,
    leaves,
    load,
    reference_table,
    show,
    show_json,
)
from hailo_agent.settings.tree import MODELS, SUN_PATH_BYTES, temporary

REFERENCE = Path(__file__).parent.parent / "docs" / "reference" / "settings.md"
KEYS = [leaf.key for leaf in leaves()]


def loaded(
    *,
    flags: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> Loaded:
    return load(flags=flags, environ=environ or {}, config=config)


def complaint(
    *,
    flags: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> str:
    with pytest.raises(ConfigError) as refused:
        load(flags=flags, environ=environ or {}, config=config)
    return str(refused.value)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "agent.yaml"


def written(config: Path, text: str) -> Path:
    config.write_text(text, encoding="utf-8")
    return config


# --- Where a value comes from ----------------------------------------------------------------


def test_without_any_source_every_setting_is_at_its_default() -> None:
    it = loaded()
    assert it.settings == Settings()
    assert set(it.origins.values()) == {"default"}
    assert list(it.origins) == KEYS


def test_the_ambient_environment_does_not_reach_a_tree_built_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HAILO_AGENT_LOG__LEVEL", "debug")
    monkeypatch.setenv("HAILO_AGENT_LOG", '{"level": "debug"}')
    assert Settings().log.level == "info"


def test_a_flag_wins_over_the_environment_and_that_over_the_file(config: Path) -> None:
    written(config, "log:\n  level: error\n  format: json\nnode:\n  name: from-file\n")
    it = loaded(
        flags={"--log.level": "debug"},
        environ={"HAILO_AGENT_LOG__LEVEL": "warning", "HAILO_AGENT_LOG__FORMAT": "console"},
        config=config,
    )
    assert (it.settings.log.level, it.settings.log.format) == ("debug", "console")
    assert it.settings.node.name == "from-file"
    assert it.origins["log.level"] == "flag --log.level"
    assert it.origins["log.format"] == "environment HAILO_AGENT_LOG__FORMAT"
    assert it.origins["node.name"] == f"file {config}:5"
    assert it.origins["kubelet.root"] == "default"


def test_a_mapping_is_replaced_as_a_whole_so_that_its_origin_is_one_place(config: Path) -> None:
    written(config, "resource: {names: {hailo-8: a.io/x, hailo-8l: a.io/y}}")
    it = loaded(flags={"resource.names": "hailo-8=b.io/z"}, config=config)
    assert it.settings.resource.names == {"hailo-8": "b.io/z"}


def test_the_environment_names_the_file_unless_a_flag_does(config: Path, tmp_path: Path) -> None:
    written(config, "node: {name: first}")
    other = written(tmp_path / "other.yaml", "node: {name: second}")
    environ = {"HAILO_AGENT_CONFIG": str(config)}
    assert loaded(environ=environ).settings.node.name == "first"
    assert loaded(environ=environ, config=other).settings.node.name == "second"


def test_an_empty_variable_names_no_file() -> None:
    assert loaded(environ={"HAILO_AGENT_CONFIG": ""}).settings == Settings()


def test_the_downward_api_names_the_node_where_nobody_else_does(config: Path) -> None:
    environ = {"NODE_NAME": "node-7"}
    it = loaded(environ=environ)
    assert (it.settings.node.name, it.origins["node.name"]) == ("node-7", "environment NODE_NAME")
    written(config, "node: {name: mine}")
    assert loaded(environ=environ, config=config).settings.node.name == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "HAILO_AGENT_SERVICE_HOST",
        "HAILO_AGENT_SERVICE_PORT",
        "HAILO_AGENT_SERVICE_PORT_METRICS",
        "HAILO_AGENT_PORT",
        "HAILO_AGENT_PORT_9090_TCP",
        "HAILO_AGENT_PORT_9090_TCP_ADDR",
        "HAILO_AGENT_METRICS_SERVICE_HOST",
        "HAILO_AGENT_METRICS_PORT_9090_UDP_PROTO",
    ],
)
def test_what_kubernetes_sets_for_a_service_of_our_name_is_not_a_mistake(name: str) -> None:
    assert loaded(environ={name: "tcp://10.0.0.1:9090"}).settings == Settings()


# --- How a value is written ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("host.dev", "/host/dev/", Path("/host/dev")),
        ("host.resync_seconds", "5", 5.0),
        ("host.resync_seconds", "1e2", 100.0),
        ("host.inotify", "no", False),
        ("host.inotify", "TRUE", True),
        ("host.uevents", "false", False),
        ("devices.allow", "", ()),
        ("devices.allow", "hailo-8, pci-*", ("hailo-8", "pci-*")),
        ("devices.allow", '["hailo-8","pci-*"]', ("hailo-8", "pci-*")),
        ("devices.allow", "[0000:01:00.0]", ("0000:01:00.0",)),
        ("devices.allow", "0000:01:00.0", ("0000:01:00.0",)),
        ("runtime.delivery", "annotation", ("annotation",)),
        ("runtime.version", "containerd://1.7.13", "containerd://1.7.13"),
        ("runtime.version", "", ""),
        ("resource.names", "", {}),
        (
            "resource.names",
            "hailo-8=a.io/b,1e60:45c4=a.io/c",
            {"hailo-8": "a.io/b", "1e60:45c4": "a.io/c"},
        ),
        ("resource.names", '{"1e60:45c4":"a.io/c"}', {"1e60:45c4": "a.io/c"}),
        ("subscribers.socket", "", None),
        ("subscribers.socket", "/run/a.sock", Path("/run/a.sock")),
        ("node.name", "yes", "yes"),
        ("node.name", "0123", "0123"),
        ("log.level", "WARNING", "warning"),
        (
            "host.families",
            '[{"class_name": "vc", "devnode": "vcs[0-9]+", "identity": "sysfs"}]',
            (Family(class_name="vc", devnode="vcs[0-9]+", identity="sysfs"),),
        ),
        (
            "host.families",
            "[{class_name: vc, devnode: vc}]",
            (Family(class_name="vc", devnode="vc"),),
        ),
    ],
)
def test_text_means_the_same_in_a_flag_a_variable_and_the_file(
    key: str, text: str, value: object, config: Path
) -> None:
    section, _, name = key.partition(".")
    leaf = next(leaf for leaf in leaves() if leaf.key == key)
    written(config, yaml.safe_dump({section: {name: text}}))
    for it in (
        loaded(flags={leaf.flag: text}),
        loaded(environ={leaf.env: text}),
        loaded(config=config),
    ):
        assert getattr(getattr(it.settings, section), name) == value


def test_a_file_may_be_written_in_any_style_of_yaml(config: Path) -> None:
    written(
        config,
        "# comment\n"
        "host:\n"
        "  uevents: off\n"
        "  resync_seconds: '10'\n"
        "devices:\n"
        "  deny:\n"
        "  - 0000:01:00.0\n"
        "  - 1e60:2864\n"
        "resource: {names: {hailo-8: hailo.ai/hailo-8}}\n"
        "node: {name: no}\n",
    )
    settings = loaded(config=config).settings
    assert not settings.host.uevents
    assert settings.host.resync_seconds == 10
    assert settings.devices.deny == ("0000:01:00.0", "1e60:2864")
    assert settings.node.name == "no"


@pytest.mark.parametrize(
    "text", ["", "---\n", "# nothing\n", "host:\nlog: ~\n", "host: {dev: }\nlog: {level: null}\n"]
)
def test_what_is_empty_or_null_in_the_file_stays_at_its_default(text: str, config: Path) -> None:
    it = loaded(config=written(config, text))
    assert it.settings == Settings()
    assert set(it.origins.values()) == {"default"}


def test_the_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().log.level = "debug"  # type: ignore[misc]


# --- What is refused, and in which words -----------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("host.dev", "dev", "host.dev = 'dev' (flag --host.dev) is not an absolute path"),
        ("host.dev", "", "is not an absolute path"),
        ("host.dev", "/a\0b", "NUL"),
        ("host.resync_seconds", "", "is not a number; write a number of seconds"),
        ("host.resync_seconds", "soon", "is not a number"),
        ("host.resync_seconds", "nan", "is not a finite number"),
        ("host.resync_seconds", "inf", "is not a finite number"),
        ("host.resync_seconds", "1e999", "is not a finite number"),
        ("host.resync_seconds", "0", "is too small; use 0.01 or more"),
        ("host.resync_seconds", "-3", "is too small"),
        ("host.resync_seconds", "1e9", "is too large; use 3600 or less"),
        ("host.inotify", "maybe", "is neither true nor false"),
        ("host.inotify", "", "is neither true nor false"),
        ("host.families", "vc", "host.families[0] = 'vc' (flag --host.families) is not a mapping"),
        (
            "host.families",
            "[{devnode: a}]",
            "host.families[0][class_name] (flag --host.families) is missing",
        ),
        ("host.families", "[{class_name: a/b, devnode: a}]", "is not the name of a directory"),
        ("host.families", "[{class_name: .., devnode: a}]", "is not the name of a directory"),
        (
            "host.families",
            f"[{{class_name: {'a' * 256}, devnode: a}}]",
            "is longer than any file name",
        ),
        ("host.families", "[{class_name: a, devnode: ''}]", "is empty"),
        ("host.families", "[{class_name: a, devnode: '[0-'}]", "is not a regular expression"),
        ("host.families", "[{class_name: a, devnode: '[[a]'}]", "is not a regular expression"),
        (
            "host.families",
            f"[{{class_name: a, devnode: '{'a' * 201}'}}]",
            "use at most 200 characters",
        ),
        ("host.families", "[{class_name: a, devnode: a, identity: pcie}]", "did you mean pci?"),
        ("host.families", "[{class_name: a, devnode: a, ident: pci}]", "did you mean identity?"),
        (
            "host.families",
            "[{class_name: a, devnode: a}, {class_name: a, devnode: b}]",
            "has a twice",
        ),
        ("devices.allow", "a,,b", "devices.allow[1] = '' (flag --devices.allow) is empty"),
        ("devices.allow", "[a", "is not YAML"),
        (
            "devices.allow",
            "[a, [b]]",
            "devices.allow[1] = ['b'] (flag --devices.allow) is not text",
        ),
        ("devices.allow", "{a: b}", "is not a list; write a list as a,b"),
        ("devices.allow", "[&x a, *x]", "has an alias"),
        ("runtime.delivery", "", "is empty; name at least one"),
        ("runtime.delivery", "cri,cri", "has cri twice"),
        ("runtime.delivery", "cdi", "did you mean cri?"),
        ("runtime.delivery", "xyz", "use one of cri, annotation, devicespec"),
        ("runtime.version", "1.7.13", "for instance containerd://1.7.13"),
        ("resource.name", "npu", "has no '/'"),
        ("resource.name", "a.kubernetes.io/npu", "kubernetes.io/"),
        ("resource.name", "requests.hailo.ai/npu", "begins with 'requests.'"),
        ("resource.name", f"{'a' * 245}/npu", "has 245 characters before the '/'"),
        ("resource.name", "Hailo.ai/npu", "does not begin with a domain name"),
        ("resource.name", "/npu", "does not begin with a domain name"),
        ("resource.name", "hailo..ai/npu", "does not begin with a domain name"),
        ("resource.name", f"hailo.ai/{'n' * 64}", "has 64 characters after the '/'"),
        ("resource.name", "hailo.ai/", "after the '/'"),
        ("resource.name", "hailo.ai/npu-", "after the '/'"),
        ("resource.name", "hailo.ai/n/pu", "after the '/'"),
        ("resource.name", "hailo.ai/npu\n", "after the '/'"),
        ("resource.names", "hailo-9=a.io/b", "is neither a model nor a PCI id"),
        ("resource.names", "1E60:45C4=a.io/b", "is neither a model nor a PCI id"),
        (
            "resource.names",
            "hailo-8=npu",
            "resource.names[hailo-8] = 'npu' (flag --resource.names) has no",
        ),
        ("resource.names", "hailo-8", "without a '='"),
        ("resource.names", "hailo-8=a.io/b,hailo-8=a.io/c", "has 'hailo-8' twice"),
        ("resource.names", "{hailo-8: a.io/b, hailo-8: a.io/c}", "has 'hailo-8' twice"),
        ("resource.names", "[hailo-8]", "is not a mapping"),
        ("node.name", "a\tb", "cannot be printed"),
        ("node.name", "n" * 254, "use at most 253 characters"),
        ("node.name", "\udcff", "is not UTF-8 text"),
        ("log.level", "warn", "did you mean warning?"),
        ("log.format", "xml", "use one of auto, json, console"),
    ],
)
def test_a_refusal_names_the_key_the_value_the_place_and_the_remedy(
    key: str, text: str, words: str
) -> None:
    said = complaint(flags={f"--{key}": text})
    assert words in said
    assert said.startswith(key)
    assert "; " in said
    assert "\n" not in said


def test_an_error_carries_its_parts_and_exit_code() -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(environ={"HAILO_AGENT_LOG__LEVEL": "loud"})
    assert (refused.value.key, refused.value.value) == ("log.level", "'loud'")
    assert refused.value.remedy == "use one of debug, info, warning, error"
    assert EX_CONFIG == 78


def test_all_that_is_wrong_is_said_together(config: Path) -> None:
    written(config, "hots:\n  dev: /dev\nlog:\n  level: loud\n  colour: red\n")
    said = complaint(
        flags=[("--log.colour", "red")],
        environ={"HAILO_AGENT_LOG_FORMAT": "json", "HAILO_AGENT_HOST__RESYNC_SECONDS": "0"},
        config=config,
    )
    everything = "`hailo-agent config show` lists all there are"
    resync = "HAILO_AGENT_HOST__RESYNC_SECONDS"
    levels = ("debug", "info", "warning", "error")
    assert said.splitlines() == [
        f"hots (file {config}:1) is not a section; did you mean host?",
        f"log.colour (file {config}:5) is not a setting; {everything}",
        "HAILO_AGENT_LOG_FORMAT (environment) is not a variable of hailo-agent; did you mean HAILO_AGENT_LOG__FORMAT?",  # noqa: E501
        f"--log.colour (command line) is not a flag; {everything}",
        f"host.resync_seconds = '0' (environment {resync}) is too small; use 0.01 or more",
        f"log.level = 'loud' (file {config}:4) is not known; use one of {', '.join(levels)}",
    ]


@pytest.mark.parametrize(
    ("written_key", "meant"),
    [
        ("kubelet: {plugin_dirs: /x}", "kubelet.plugin_dir"),
        ("kubelet: {plugin-dir: /x}", "kubelet.plugin_dir"),
        ("host: {cdi_dir: /x}", "runtime.cdi_dir"),
        ("plugin_dir: /x", "kubelet.plugin_dir"),
        ("kubelet.plugin_dir: /x", "kubelet.plugin_dir"),
        ("Log: {level: info}", "log"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known(
    written_key: str, meant: str, config: Path
) -> None:
    assert f"did you mean {meant}?" in complaint(config=written(config, written_key))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HAILO_AGENT_KUBELET_PLUGIN_DIR", "HAILO_AGENT_KUBELET__PLUGIN_DIR"),
        ("hailo_agent_log__level", "HAILO_AGENT_LOG__LEVEL"),
        ("HAILO_AGENT_KONFIG", "HAILO_AGENT_CONFIG"),
        ("HAILO_AGENT_KUBELET__SERVICE_HOST", None),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known(
    name: str, meant: str | None
) -> None:
    said = complaint(environ={name: "x"})
    assert said.startswith(f"{name} (environment) is not a variable of hailo-agent; ")
    assert meant is None or f"did you mean {meant}?" in said


def test_a_list_given_by_two_flags_would_lose_one_and_is_refused() -> None:
    flags = [("--devices.allow", "a"), ("--devices.allow", "b")]
    assert "is given a second time" in complaint(flags=flags)
    assert (
        loaded(flags=[("--log.level", "info"), ("--log.level", "debug")]).settings.log.level
        == "debug"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"log: {level: info", ":1 is not YAML: expected ',' or '}'"),
        (b"log:\n  level: info\n level: x\n", ":3 is not YAML"),
        (b"log:\n\tlevel: info\n", ":2 is not YAML: found character '\\t'"),
        (b"a: 1\n---\nb: 2\n", ":2 is not YAML: but found another document"),
        (b"- log\n", ":1 is a list where a mapping is expected"),
        (b"info\n", ":1 is a single value where a mapping is expected"),
        (b"log: {}\nlog: {}\n", ":2 has 'log' twice, first in line 1"),
        (b"log:\n  level: info\n  level: debug\n", ":3) has 'level' twice, first in line 2"),
        (b"resource:\n  names: {hailo-8: a/b, hailo-8: c/d}\n", ":2) has 'hailo-8' twice"),
        (b"? [a]\n: b\n", ":1 has a list or a mapping for a key"),
        (b"log: info\n", ":1) is a single value where a mapping is expected"),
        (b"log: [info]\n", ":1) is a list where a mapping is expected"),
        (b"log: &a {level: info}\nnode: *a\n", ":2 has an alias"),
        (b"log:\n  level: \xff\n", ":2 is not UTF-8 text"),
        (b"log:\n  level: \x01\n", ":2 is not YAML: it has a character that must be escaped"),
        (b"[" * 5000, "is nested too deeply"),
        (b"#" * ((1 << 20) + 1), "is longer than 1048576 bytes"),
        (
            b"log: !!python/object/apply:os.system [x]\n",
            ":1) is a list where a mapping is expected",
        ),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_with_its_line(
    content: bytes, words: str, config: Path
) -> None:
    config.write_bytes(content)
    said = complaint(config=config)
    assert f"{config}{words}" in said or (not words.startswith(":") and words in said)
    assert "\n" not in said


@pytest.mark.parametrize("path", ["/nowhere/agent.yaml", "/", "/dev/null/x", "a\0b"])
def test_a_file_that_cannot_be_read_is_refused(path: str) -> None:
    assert "cannot be read" in complaint(config=Path(path))


def test_a_byte_order_mark_is_no_key(config: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbflog: {level: debug}\n")
    assert loaded(config=config).settings.log.level == "debug"


def test_a_socket_that_no_address_can_hold_is_refused() -> None:
    name = endpoint_name("hailo.ai/npu")
    room = SUN_PATH_BYTES - len(str(temporary(Path("/") / name)))
    fits, too_long = "/" + "d" * (room - 1), "/" + "d" * room
    assert loaded(flags={"kubelet.plugin_dir": fits}).settings.kubelet.plugin_dir == Path(fits)
    assert "which is 108 bytes long, 107 fit" in complaint(flags={"kubelet.plugin_dir": too_long})


def test_a_resource_whose_socket_the_kubelet_could_not_dial_is_refused() -> None:
    flags = {"kubelet.plugin_dir": "/p", "resource.name": f"{'a' * 20}.ai/{'n' * 60}"}
    said = complaint(flags=flags)
    assert said.startswith("resource.name")
    assert "/var/lib/kubelet/device-plugins/aaaa" in said


@pytest.mark.parametrize("key", ["subscribers.socket", "kubelet.root"])
def test_every_socket_path_is_measured_in_bytes(key: str) -> None:
    assert "107 fit" in complaint(flags={key: "/" + "é" * 50})


@given(
    st.sampled_from([*MODELS, "1e60:2864"]),
    st.from_regex(r"[a-z]{1,4}/[a-z]([a-z_.]{0,4}[a-z])?", fullmatch=True),
)
def test_two_resources_never_share_a_socket(model: str, name: str) -> None:
    settings = Settings(resource={"names": {model: name}})
    assert (endpoint_name(name) == endpoint_name(settings.resource.name)) == (
        name == settings.resource.name
    )
    assert endpoint_name(name).replace("_", "/", 1).removesuffix(".sock") == name


# --- Nothing that is written can crash it ----------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["[", "{a", "cri,cri", "1e60:2864", "/x", "0000:01:00.0"])
)
TREES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4),
    max_leaves=12,
)
SECTIONS = sorted({key.partition(".")[0] for key in KEYS})
NAMES = sorted({key.partition(".")[2] for key in KEYS})
NEAR_TREES = st.dictionaries(
    st.sampled_from(SECTIONS) | st.text(),
    st.dictionaries(st.sampled_from(NAMES) | st.text(), TREES, max_size=5) | TREES,
    max_size=5,
)


def outcome(
    *, flags: Mapping[str, str] | Sequence[tuple[str, str]] = (), config: Path | None = None
) -> Loaded | None:
    """Return what is loaded, or nothing if it is refused in lines that can be read."""
    try:
        return loaded(flags=flags, config=config)
    except ConfigError as error:
        lines = str(error).split("\n")
    assert all(line and line.isprintable() for line in lines)
    return None


@given(TREES | NEAR_TREES)
def test_any_tree_in_the_file_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tree: object
) -> None:
    config = tmp_path_factory.getbasetemp() / "any.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    outcome(config=config)


@given(st.binary(max_size=200))
def test_any_bytes_in_the_file_load_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    config = tmp_path_factory.getbasetemp() / "any.yaml"
    config.write_bytes(content)
    outcome(config=config)


@given(
    st.dictionaries(
        st.sampled_from(KEYS) | st.text(), st.text() | TREES.map(json.dumps), max_size=4
    )
)
def test_any_text_in_a_flag_loads_or_is_refused(flags: dict[str, str]) -> None:
    outcome(flags=flags)


@pytest.mark.parametrize("path", ['/a "b" \\c', "/\x01\x85\u2028", "/\udcff", "/é #1", "/a: b"])
def test_a_path_of_any_characters_is_shown_so_that_it_can_be_read_back(
    path: str, config: Path
) -> None:
    it = loaded(flags={"host.dev": path})
    assert loaded(config=written(config, show(it))).settings.host.dev == Path(path)


@given(st.dictionaries(st.sampled_from(KEYS), st.text() | TREES.map(json.dumps), max_size=4))
def test_what_is_shown_is_a_file_that_gives_the_same_settings(
    tmp_path_factory: pytest.TempPathFactory, flags: dict[str, str]
) -> None:
    it = outcome(flags=flags)
    if it is not None:
        config = tmp_path_factory.getbasetemp() / "shown.yaml"
        config.write_text(show(it), encoding="utf-8")
        assert loaded(config=config).settings == it.settings


# --- Flags, printing, reference --------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    declared = argparse.ArgumentParser(prog="hailo-agent", allow_abbrev=False)
    add_flags(declared)
    return declared


def test_every_setting_has_a_flag_with_dashes_or_underscores() -> None:
    for leaf in leaves():
        for flag in (leaf.flag, f"--{leaf.key}"):
            assert flags_from(parser().parse_args([flag, "x"])) == [(leaf.flag, "x")]
            assert flags_from(parser().parse_args([f"{flag}=x"])) == [(leaf.flag, "x")]


def test_flags_that_were_not_given_are_not_there() -> None:
    assert flags_from(parser().parse_args([])) == []


def test_the_help_names_each_flag_once() -> None:
    text = parser().format_help()
    assert all(f"  {leaf.flag} " in text for leaf in leaves())
    assert "plugin_dir" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--log.lev", "debug"],
            "--log.lev (command line) is not a flag; did you mean --log.level?",
        ),
        (["--log.lev=debug"], "--log.lev (command line) is not a flag; did you mean --log.level?"),
        (["stray"], "stray (command line) is not a flag; "),
        (["--log.level", "debug", "stray"], "stray (command line) is not a flag; "),
    ],
)
def test_what_the_parser_made_nothing_of_is_refused(words: list[str], said: str) -> None:
    namespace, rest = parser().parse_known_args(words)
    assert complaint(flags=flags_from(namespace, rest)).startswith(said)


def test_every_value_is_shown_with_its_origin(config: Path) -> None:
    written(config, "\ndevices:\n  allow: [hailo-8, 0000:01:00.0]\n")
    it = loaded(flags={"subscribers.socket": ""}, config=config)
    lines = {line.split(":")[0].strip(): line for line in show(it).splitlines()}
    assert lines["allow"].split("#") == [
        '  allow: [hailo-8, "0000:01:00.0"]                ',
        f" file {config}:3",
    ]
    assert lines["socket"].split() == ["socket:", '""', "#", "flag", "--subscribers.socket"]
    assert lines["level"].split() == ["level:", "info", "#", "default"]
    assert yaml.safe_load(show(it))["devices"]["allow"] == ["hailo-8", "0000:01:00.0"]


def test_the_settings_are_shown_to_programs_too() -> None:
    flags = {"host.families": "[{class_name: vc, devnode: vc}]", "subscribers.socket": ""}
    shown = json.loads(show_json(loaded(flags=flags)))
    assert list(shown) == KEYS
    assert shown["log.level"] == {"value": "info", "origin": "default"}
    assert shown["host.dev"] == {"value": "/dev", "origin": "default"}
    assert shown["host.families"] == {
        "value": [{"class_name": "vc", "devnode": "vc", "identity": "pci"}],
        "origin": "flag --host.families",
    }


def test_every_setting_is_described() -> None:
    assert [leaf.key for leaf in leaves() if not leaf.description.endswith(".")] == []
    assert [
        key for key in KEYS if key.endswith("_seconds") != (dict_of_types()[key] == "seconds")
    ] == []
    assert "number" not in dict_of_types().values()


def dict_of_types() -> dict[str, str]:
    return {leaf.key: leaf.type for leaf in leaves()}


def test_the_reference_page_has_every_setting() -> None:
    assert reference_table() in REFERENCE.read_text(encoding="utf-8"), (
        "docs/reference/settings.md: replace the tables by the output of"
        ' python -c "from hailo_agent.settings import reference_table; print(reference_table())"'
    )
