"""Lay out the image's root in a build stage: what the agent runs on, and nothing besides.

    assemble.py DIRECTORY EPOCH VERSION

Three trees come to be below DIRECTORY, a layer each, by how often they change:

- `system`: Debian's interpreter and as much of its library as the agent may use, the shared
  libraries that these and the wheels link to, and what scanners and lawyers look for: which
  packages all this is from, in which version and under which licence;
- `dependencies`: the environment with everything that requirements/run.txt locks;
- `agent`: the agent.

Called by the Dockerfile, as root, in the system that the files are taken from. At last it starts
what it made.
"""
# ruff: noqa: INP001, S603 - a script, and it runs what it names itself

import compileall
import os
import py_compile
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

STDLIB = Path(f"/usr/lib/python{sys.version_info.major}.{sys.version_info.minor}")
INTERPRETER = Path("/usr/bin", STDLIB.name)
ENVIRONMENT = Path("/opt/hailo-agent")
SITE_PACKAGES = ENVIRONMENT / "lib" / STDLIB.name / "site-packages"
DPKG = Path("/var/lib/dpkg")

# Of the library: what serves to develop, to test, to install, to draw or to keep a database. All
# else stays: a module that turns out to be missing costs more than its bytes.
DISPENSABLE = {
    *(
        "__hello__.py",
        "__phello__",
        "__pycache__",
        "EXTERNALLY-MANAGED",
        "_pyrepl",
        "antigravity.py",
    ),
    *("curses", "dbm", "doctest.py", "ensurepip", "idlelib", "lib2to3", "pdb.py", "pydoc.py"),
    *("pydoc_data", "sitecustomize.py", "sqlite3", "test", "this.py", "tkinter", "turtle.py"),
    *("turtledemo", "unittest", "venv", "xmlrpc"),
}
# Its compiled modules of the same kind, by how their names begin, and those that would bring a
# shared library for nothing: line editing, bz2, lzma and libuuid, which nothing here asks for.
DISPENSABLE_COMPILED = (
    *("_bz2", "_ctypes_test", "_curses", "_dbm", "_gdbm", "_lzma", "_sqlite3", "_test", "_tkinter"),
    *("_uuid", "_xx", "readline", "xx"),
)

ACCOUNTS = """\
root:x:0:0:root:/root:/usr/sbin/nologin
hailo-agent:x:65532:65532:hailo-agent:/nonexistent:/usr/sbin/nologin
"""
GROUPS = """\
root:x:0:
hailo-agent:x:65532:
"""


def main(directory: Path, epoch: int, version: str) -> None:
    """Lay out the three trees and try them."""
    system, dependencies, agent = (directory / n for n in ("system", "dependencies", "agent"))
    taken = [*interpreter(), *stdlib()]
    compiled = [path for path in taken if path == INTERPRETER or path.suffix == ".so"]
    taken += shared_libraries(
        [*compiled, *SITE_PACKAGES.rglob("*.so"), *SITE_PACKAGES.rglob("*.so.*")]
    )
    taken += [Path(p).resolve() for p in ("/etc/os-release", "/etc/debian_version")]
    for path in dict.fromkeys(taken):
        copy(path, system)
    furnish(system)
    document(system, packages_of(taken))
    environment(dependencies, agent)
    for tree, inside in ((system, STDLIB), (dependencies, ENVIRONMENT), (agent, ENVIRONMENT)):
        compile_bytecode(tree, inside)
    for tree in (system, dependencies, agent):
        set_times(tree, epoch)
    try_out([system, dependencies, agent], directory / "whole", version)


# --- what is taken from Debian --------------------------------------------------------------------


def interpreter() -> list[Path]:
    """Name the interpreter."""
    return [INTERPRETER]


def stdlib() -> Iterator[Path]:
    """List the files of the library that stay."""
    for path in sorted(STDLIB.rglob("*")):
        parts = path.relative_to(STDLIB).parts
        if path.is_dir() or DISPENSABLE.intersection(parts):
            continue
        if parts[0] == "lib-dynload" and path.name.startswith(DISPENSABLE_COMPILED):
            continue
        yield path


def shared_libraries(users: Iterable[Path]) -> list[Path]:
    """List what these link to, the dynamic loader included, by the names that they link to.

    Raises:
        SystemExit: something links to what is not here.
    """
    found: set[Path] = set()
    for user in users:
        told = subprocess.run(["ldd", user], capture_output=True, text=True, check=True).stdout  # noqa: S607
        if "not found" in told:
            sys.exit(f"assemble: {user} links to what is not installed:\n{told}")
        for line in told.splitlines():
            name, _, rest = line.strip().partition(" => ")
            path = (rest or name).split()[0]
            if path.startswith("/") and not path.startswith(f"{ENVIRONMENT}/"):
                found.add(Path(path))
    return sorted(found)


def copy(path: Path, tree: Path) -> None:
    """Copy a file to the same place in a tree; what a link leads to is copied beside it.

    Links among the directories of its path are followed: /lib is /usr/lib in the image too.
    """
    place = placed(path)
    target = tree / place.relative_to("/")
    if target.is_symlink() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        target.symlink_to(place.readlink())
        copy(place.parent / place.readlink(), tree)
        return
    shutil.copy2(place, target)
    # The library has scripts among its modules, which nobody is to start.
    program = place == INTERPRETER or place.name.startswith("ld-")
    target.chmod(0o755 if program else 0o644)


def placed(path: Path | str) -> Path:
    """Tell where a file is when no link leads to its directory."""
    return Path(os.path.realpath(Path(path).parent), Path(path).name)


def packages_of(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Tell from which Debian packages these files are.

    Raises:
        SystemExit: one is from none.
    """
    owners: dict[str, str] = {}
    for listing in sorted((DPKG / "info").glob("*.list")):
        for line in listing.read_text().splitlines():
            owners[str(placed(line))] = listing.stem
    found: dict[str, list[Path]] = {}
    for file in files:
        real = Path(os.path.realpath(file))
        if str(real) not in owners:
            sys.exit(f"assemble: {file} is from no package")
        found.setdefault(owners[str(real)], []).append(real)
    return found


def document(tree: Path, packages: dict[str, list[Path]]) -> None:
    """Write which packages are in the tree, as scanners read it, and add their licences."""
    status = tree / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    for package, files in sorted(packages.items()):
        name = package.partition(":")[0]
        stanza = subprocess.run(
            ["dpkg-query", "--status", package],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        (status / name).write_text(stanza)
        kept = {str(file).removeprefix("/") for file in files}
        sums = (DPKG / "info" / f"{package}.md5sums").read_text().splitlines(keepends=True)
        (status / f"{name}.md5sums").write_text(
            "".join(line for line in sums if line.split(maxsplit=1)[1].strip() in kept)
        )
        terms = tree / "usr/share/doc" / name / "copyright"
        terms.parent.mkdir(parents=True)
        terms.write_bytes(licence(package))


def licence(package: str) -> bytes:
    """Read the terms of a package; its own, or those of another one from the same source.

    Debian lets a package's documents be a link to another's, and a slim Debian leaves out links.

    Raises:
        SystemExit: there are none.
    """
    told = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${source:Package} ${Package}\n"],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    sources = [line.split() for line in told.splitlines()]
    name = package.partition(":")[0]
    [source] = {source for source, binary in sources if binary == name}
    for candidate in (name, *(binary for other, binary in sources if other == source)):
        terms = Path("/usr/share/doc", candidate, "copyright")
        if terms.is_file():
            return terms.read_bytes()
    sys.exit(f"assemble: the terms of {package} are not here")


def furnish(tree: Path) -> None:
    """Add what every program expects of a root."""
    for name in ("dev", "etc", "proc", "run", "sys", "tmp", "var/lib", "var/tmp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (tree / name).chmod(0o1777)
    (tree / "var/run").symlink_to("../run")
    for name in ("lib", "lib64"):
        if Path("/", name).is_symlink():
            (tree / name).symlink_to(Path("/", name).readlink())
    (tree / "usr/bin/python3").symlink_to(INTERPRETER.name)
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    (tree / "etc/passwd").write_text(ACCOUNTS)
    (tree / "etc/group").write_text(GROUPS)


# --- what pip has installed -----------------------------------------------------------------------


def environment(dependencies: Path, agent: Path) -> None:
    """Part the environment into the agent and everything else."""
    place = ENVIRONMENT.relative_to("/")
    shutil.copytree(ENVIRONMENT, dependencies / place, symlinks=True)
    for name in ("include", "lib64"):
        remove(dependencies / place / name)
    scripts = dependencies / place / "bin"
    for script in scripts.iterdir():
        if not script.name.startswith("python"):
            script.unlink()
    packages = Path("lib", STDLIB.name, "site-packages")
    (agent / place / packages).mkdir(parents=True)
    (agent / place / "bin").mkdir()
    for path in sorted((dependencies / place / packages).glob("hailo_agent*")):
        shutil.move(path, agent / place / packages / path.name)
    shutil.copy(ENVIRONMENT / "bin/hailo-agent", agent / place / "bin/hailo-agent")
    check = agent / place / "bin/hailo-agent-healthcheck"
    source = Path(__file__).with_name("healthcheck.py").read_text()
    check.write_text(f"#!{ENVIRONMENT}/bin/python3\n{source}")
    check.chmod(0o755)


def remove(path: Path) -> None:
    """Remove a link, a file or a directory, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


# --- all of it ------------------------------------------------------------------------------------


def compile_bytecode(tree: Path, inside: Path) -> None:
    """Compile every module, for good: nobody can write in there, so nobody looks at the sources.

    Raises:
        SystemExit: one does not compile.
    """
    for cache in list(tree.rglob("__pycache__")):
        shutil.rmtree(cache)
    compiled = compileall.compile_dir(
        tree / inside.relative_to("/"),
        maxlevels=100,
        quiet=1,
        stripdir=str(tree),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        sys.exit(f"assemble: {tree} does not compile")


def set_times(tree: Path, epoch: int) -> None:
    """Make everything as old, and see that nothing is there to gain rights by."""
    for path in [tree, *tree.rglob("*")]:
        mode = path.lstat().st_mode
        if mode & (stat.S_ISUID | stat.S_ISGID):
            sys.exit(f"assemble: {path} has a mode of {stat.filemode(mode)}")
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def try_out(trees: Iterable[Path], whole: Path, version: str) -> None:
    """Start what was made, import every module of the agent, and compare its version.

    Raises:
        SystemExit: it does not start, or is of another version than its label is to say.
    """
    for tree in trees:
        shutil.copytree(tree, whole, symlinks=True, dirs_exist_ok=True)
    python = str(ENVIRONMENT / "bin/python3")
    everything = (
        "import importlib, pkgutil, hailo_agent\n"
        "for module in pkgutil.walk_packages(hailo_agent.__path__, 'hailo_agent.'):\n"
        "    module.name.endswith('__main__') or importlib.import_module(module.name)\n"
    )
    run = ["/usr/sbin/chroot", "--userspec=65532:65532", str(whole), python]
    subprocess.run([*run, "-c", everything], check=True, env={})
    said = subprocess.run(
        [*run, str(ENVIRONMENT / "bin/hailo-agent"), "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={},
    ).stdout.split()
    if said != ["hailo-agent", version]:
        sys.exit(f"assemble: this is {' '.join(said)}: build with --build-arg VERSION={said[-1]}")
    shutil.rmtree(whole)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
