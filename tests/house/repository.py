"""Where the repository is, and what is in it."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Variables by which one make speaks to the next; a make started by a test is nobody's next.
MAKE_VARIABLES = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKE_TERMERR", "MAKE_TERMOUT"}


def pyproject() -> dict[str, Any]:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def environment(**changes: str) -> dict[str, str]:
    """Tell a child process's environment: ours, without the make that may have started us."""
    return {k: v for k, v in os.environ.items() if k not in MAKE_VARIABLES} | changes


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make in the repository, with variables given as on its command line."""
    assignments = [f"{name}={value}" for name, value in variables.items()]
    return subprocess.run(
        ["make", "--no-print-directory", *arguments, *assignments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def text_files() -> list[Path]:
    """List what is tracked, or would be, and is text; all files where there is no git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not any(map(is_litter, path.parts))]
    return sorted(path for path in set(paths) if path.is_file() and not is_binary(path))


def is_litter(name: str) -> bool:
    """Tell what .gitignore would keep out, and git itself."""
    caches = name.startswith(".") and name.endswith("_cache")
    return caches or name in {"__pycache__", "build", "dist", ".git"} or name.startswith(".venv")


def is_binary(path: Path) -> bool:
    """Tell by the first bytes, as git does."""
    with path.open("rb") as file:
        return b"\0" in file.read(8000)
