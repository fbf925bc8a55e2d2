"""The verbs: `hailo-agent run | devices | holders | explain | cordon | doctor | …`.

The outermost room. It reads the command line, sets up logging, and turns errors into one line and
an exit code; what a verb does stands in the module of its name.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hailo_agent import __version__
from hailo_agent import log as _log  # noqa: F401 - first, for it keeps rich out of every agent
from hailo_agent.errors import EX_CONFIG, ConfigError, HailoAgentError
from hailo_agent.settings import Loaded, add_flags, flags_from, load, show, show_json

Verb = Callable[[argparse.Namespace, Loaded], int]

if TYPE_CHECKING:
    _Verbs = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no other name

_EX_FAILED = 1
_EX_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and exit with its code."""
    code = _run(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or never opened
            stream.flush()
    # A thread that hangs in a driver would keep the interpreter from ending by itself.
    os._exit(code)


def _run(argv: Sequence[str]) -> int:
    arguments, unknown = parser().parse_known_args(argv)
    try:
        loaded = load(
            flags=flags_from(arguments, unknown),
            environ=os.environ,
            config=getattr(arguments, "config", None),
        )
        verb: Verb = arguments.verb
        return verb(arguments, loaded)
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"hailo-agent: {line}", file=sys.stderr)
        return EX_CONFIG
    except HailoAgentError as error:
        print(f"hailo-agent: {error}", file=sys.stderr)
        return _EX_FAILED
    except BrokenPipeError:
        return _EX_FAILED  # whoever read our output has seen enough
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"hailo-agent: cannot write the output: {error.strerror}", file=sys.stderr)
        return _EX_FAILED
    except KeyboardInterrupt:
        return _EX_INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """Declare every verb and its flags."""
    root = argparse.ArgumentParser(
        prog="hailo-agent",
        description="Tells Kubernetes which Hailo accelerators this node has.",
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=f"hailo-agent {__version__}")
    verbs = root.add_subparsers(required=True, metavar="VERB")

    _verb(verbs, "run", _run_agent, "serve the kubelet until told to stop")

    devices = _verb(verbs, "devices", _devices, "show what was found, where, and how it is")
    devices.add_argument("--json", action="store_true", help="for programs")
    devices.add_argument("--watch", action="store_true", help="go on with each change, as it comes")

    holders = _verb(verbs, "holders", _holders, "show which pod holds which device, and orphans")
    holders.add_argument("--json", action="store_true", help="for programs")

    explain = _verb(
        verbs, "explain", _explain, "say why a pod has a device or none, or how a device is and why"
    )
    explain.add_argument(
        "name",
        metavar="NAME",
        help="POD, NAMESPACE/POD, device id, PCI address, or path of a devnode",
    )
    explain.add_argument("--json", action="store_true", help="for programs")

    cordon = _verb(
        verbs, "cordon", _cordon, "set a device aside: no new pod gets it; alone, list those so set"
    )
    cordon.add_argument("id", nargs="?", metavar="ID", help="device id or PCI address")
    cordon.add_argument("--reason", metavar="TEXT", help="why, for whoever asks: one line")
    cordon.add_argument("--json", action="store_true", help="the list, for programs")
    uncordon = _verb(verbs, "uncordon", _uncordon, "offer a device again that was set aside")
    uncordon.add_argument("id", metavar="ID", help="device id or PCI address")

    cdi = verbs.add_parser("cdi", help="the specification that container runtimes read")
    kinds = cdi.add_subparsers(required=True, metavar="WHAT")
    generate = _verb(kinds, "generate", _cdi_generate, "write the spec of what is here now, once")
    generate.add_argument("--output", type=Path, metavar="DIR", help="instead of runtime.cdi_dir")
    _verb(kinds, "list", _cdi_list, "print the names that podman and docker take")
    _verb(kinds, "watch", _cdi_watch, "keep the spec true as devices come and go, no kubelet")
    _verb(kinds, "show", _cdi_show, "print the spec of what is here now; writes nothing")
    validate = _verb(kinds, "validate", _cdi_validate, "check a file by the rules of CDI readers")
    validate.add_argument("file", type=Path, metavar="FILE")

    doctor = _verb(verbs, "doctor", _doctor, "say why this node does or does not work")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="where the host's / is mounted"
    )
    doctor.add_argument(
        "--kernel-log",
        type=Path,
        default=Path("/dev/kmsg"),
        metavar="FILE",
        help="the kernel's log, or a file with the output of dmesg",
    )

    bundle = _verb(
        verbs, "support-bundle", _support_bundle, "pack what helps others to help, and no secret"
    )
    bundle.add_argument(
        "--output", type=Path, metavar="FILE", help="the archive to write; - is standard output"
    )
    bundle.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="where the host's / is mounted"
    )
    bundle.add_argument(
        "--kernel-log",
        type=Path,
        default=Path("/dev/kmsg"),
        metavar="FILE",
        help="the kernel's log, or a file with the output of dmesg",
    )

    simulate = _verb(verbs, "simulate", _simulate, "run a node in a box, without a chip")
    _add_machine(simulate)

    _declare_uninstall(verbs)

    config = verbs.add_parser("config", help="the settings")
    show = _verb(
        config.add_subparsers(required=True, metavar="WHAT"),
        "show",
        _config_show,
        "print every effective value and where it comes from",
    )
    show.add_argument("--json", action="store_true", help="for programs")
    return root


def _add_machine(simulate: argparse.ArgumentParser) -> None:
    """Declare what `simulate` can do besides a node in a box: a machine alone."""
    what = simulate.add_mutually_exclusive_group()
    what.add_argument("--story", action="store_true", help="tell the demo's story, and end")
    what.add_argument(
        "--machine",
        type=Path,
        metavar="DIR",
        help="lay out the machine alone, as DIR/dev and DIR/sys, and keep it until told to end",
    )
    simulate.add_argument("--devices", type=int, metavar="N", help="of that machine: 2")
    simulate.add_argument(
        "--generation", metavar="NAME", help="of that machine's kernel driver: 4.23"
    )
    simulate.add_argument(
        "--rehearse",
        type=float,
        metavar="SECONDS",
        help="let something happen to that machine every so often",
    )
    simulate.add_argument(
        "command",
        nargs="*",
        metavar="COMMAND",
        help="do this to the machine that is kept in DIR: pull hailo0, for instance, or help",
    )


def _declare_uninstall(verbs: _Verbs) -> None:
    uninstall = _verb(
        verbs, "uninstall", _uninstall, "take from this node all that the agent left there"
    )
    uninstall.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    uninstall.add_argument(
        "--hold", action="store_true", help="stay afterwards until told to stop, for a DaemonSet"
    )
    uninstall.add_argument(
        "--force", action="store_true", help="even if an agent runs or pods hold devices"
    )


def _verb(verbs: _Verbs, name: str, verb: Verb, help_text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=help_text,
        description=f"{help_text[0].upper()}{help_text[1:]}.",
        allow_abbrev=False,
    )
    parser.set_defaults(verb=verb)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML")
    add_flags(parser)
    return parser


# Each verb imports what it needs when it runs: `--version` does not load a gRPC stack, and an
# agent never loads what only a person looks at.


def _run_agent(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.run import run

    return run(arguments, loaded)


def _devices(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.devices import devices

    return devices(loaded.settings, as_json=arguments.json, follow=arguments.watch)


def _holders(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.holders import holders

    return holders(loaded.settings, as_json=arguments.json)


def _explain(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.explain import explained

    return explained(loaded.settings, arguments.name, as_json=arguments.json)


def _cordon(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.cordon import cordon

    return cordon(loaded.settings, arguments.id, reason=arguments.reason, as_json=arguments.json)


def _uncordon(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.cordon import uncordon

    return uncordon(loaded.settings, arguments.id)


def _cdi_generate(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.cdi import generate

    return generate(loaded.settings, arguments.output or loaded.settings.runtime.cdi_dir)


def _cdi_list(_: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.cdi import list_names

    return list_names(loaded.settings)


def _cdi_watch(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.run import watch

    return watch(arguments, loaded)


def _cdi_show(_: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.cdi import show as show_spec

    return show_spec(loaded.settings)


def _cdi_validate(arguments: argparse.Namespace, _: Loaded) -> int:
    from hailo_agent.cli.cdi import validate

    return validate(arguments.file)


def _doctor(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.doctor import doctor

    return doctor(
        loaded.settings,
        root=arguments.root,
        kernel_log=arguments.kernel_log,
        as_json=arguments.json,
    )


def _support_bundle(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.support import support_bundle

    return support_bundle(
        loaded,
        output=arguments.output,
        root=arguments.root,
        kernel_log=arguments.kernel_log,
    )


def _simulate(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.sim.standalone import Order, standalone

    order = Order(
        devices=arguments.devices,
        generation=arguments.generation,
        rehearse_seconds=arguments.rehearse,
    )
    if arguments.machine is not None or arguments.command or order != Order():
        return standalone(arguments.machine, arguments.command, order)

    from hailo_agent.sim.simulate import simulate

    return simulate(loaded.settings, story=arguments.story)


def _uninstall(arguments: argparse.Namespace, loaded: Loaded) -> int:
    from hailo_agent.cli.uninstall import uninstall

    return uninstall(
        loaded.settings, dry_run=arguments.dry_run, hold=arguments.hold, force=arguments.force
    )


def _config_show(arguments: argparse.Namespace, loaded: Loaded) -> int:
    print(show_json(loaded) if arguments.json else show(loaded), end="")
    return 0
