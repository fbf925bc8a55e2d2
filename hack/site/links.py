"""Links that leave docs/, as the documentation site has them.

A hook of mkdocs, named in mkdocs.yml. In the repository such a link works as it stands. On the site
it leads to the repository, if `repo_url` says where that is; else only its path is shown. A link
that leads nowhere fails the build, as links inside docs/ do.
"""

import logging
import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[2]
_LINK: Final = re.compile(r"(?<!!)\[([^\]\[]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")

_log = logging.getLogger("mkdocs.hooks.links")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite what leads out of docs/."""
    del files
    here = PurePosixPath("docs", page.file.src_uri).parent

    def rewritten(link: re.Match[str]) -> str:
        text, target = link[1], normpath(str(here / link[2]))
        if target.startswith("docs/"):
            return link[0]
        if not (ROOT / target).exists():
            _log.warning("'%s' links to '%s', which the repository does not have", page, target)
        if not config.repo_url:
            return text if text.strip("`") == target else f"{text} (`{target}`)"
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/HEAD/{target}{link[3] or ''})"

    return _LINK.sub(rewritten, markdown)
