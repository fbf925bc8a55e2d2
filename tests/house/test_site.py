"""The documentation site builds without a warning, needs no other host, and leads nowhere wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import urlsplit

import pytest
import yaml

from tests.house.pages import DOCS, anchors, links, name, pages
from tests.house.repository import ROOT, environment

CONFIGURATION = (ROOT / "mkdocs.yml").read_text()
ELSEWHERE = re.compile(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?(https?:)?//""")


def build(into: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("mkdocs"))
    return subprocess.run(
        [program, "build", "--strict", "--config-file", ROOT / "mkdocs.yml", "--site-dir", into],
        cwd=ROOT,
        # What the theme's makers say of the time to come is no warning of ours.
        env=environment(NO_MKDOCS_2_WARNING="1"),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("site")
    result = build(into)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr, result.stderr
    return into


def test_the_site_builds_and_has_every_page(site: Path) -> None:
    built = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    for page in DOCS.rglob("*.md"):
        address = page.relative_to(DOCS).with_suffix(".html")
        if address.name == "README.html":
            address = address.with_name("index.html")
        assert str(address) in built


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    fetching = {
        page.name: found[0]
        for page in site.rglob("*.html")
        if (found := ELSEWHERE.search(page.read_text()))
    }
    assert not fetching
    assert ELSEWHERE.search('<script src="https://example.com/x.js">')
    pictures = [path.read_text() for path in (DOCS / "images").glob("*.svg")]
    assert pictures
    for picture in pictures:
        assert set(re.findall(r"https?://[^\s\"<]+", picture)) <= {"http://www.w3.org/2000/svg"}


def test_a_link_that_leaves_the_site_shows_the_path_and_is_no_dead_link(site: Path) -> None:
    page = (site / "adr" / "index.html").read_text()
    assert "CONTRIBUTING.md" in page
    assert 'CONTRIBUTING.md"' not in page


@pytest.mark.parametrize(
    "page", ["k0s", "k3s", "kubernetes", "microk8s", "openshift", "rke2", "run-on-a-node", "talos"]
)
def test_a_page_on_deploying_says_at_its_top_what_of_it_was_tried(page: str) -> None:
    top = (DOCS / "how-to" / f"{page}.md").read_text().partition("\n## ")[0]
    assert "ried here: " in top
    assert re.search("not tried", top, re.IGNORECASE)


class _Tolerant(yaml.SafeLoader):
    """Reads mkdocs.yml without the objects that its tags name."""


_Tolerant.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
_Tolerant.add_multi_constructor("!ENV", lambda *_: "")


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(r"\S+\.md\b", yaml.dump(yaml.load(CONFIGURATION, _Tolerant)["nav"]))  # noqa: S506 - a safe loader
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_link_and_anchor_resolves_in_the_repository(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = Path(os.path.normpath(page.parent / parts.path)) if parts.path else page
        assert target.exists(), link
        if parts.fragment and target.suffix == ".md":
            assert parts.fragment in anchors(target), link


@pytest.mark.parametrize("page", pages(), ids=name)
def test_no_page_names_a_host_that_serves_images_or_packages(page: Path) -> None:
    # Put together from pieces, so that this file does not name them either.
    hosts = ["ghcr" + ".io", "gcr" + ".io", "docker" + ".io", "quay" + ".io", "k8s" + ".io/pause"]
    hosts += ["registry.k8s" + ".io", "raw.githubusercontent" + ".com", "factory.talos" + ".dev"]
    assert not [host for host in hosts if host in page.read_text()]


def rewritten(markdown: str, *, repo_url: str) -> str:
    """Have a page of docs/how-to go through the hook, as mkdocs does it."""
    path = ROOT / "hack" / "site" / "links.py"
    hook = ModuleType("links")
    hook.__file__ = str(path)
    exec(path.read_text(), hook.__dict__)  # noqa: S102 - as mkdocs does
    page = SimpleNamespace(file=SimpleNamespace(src_uri="how-to/x.md"))
    config = SimpleNamespace(repo_url=repo_url)
    return str(hook.on_page_markdown(markdown, page=page, config=config, files=[]))


@pytest.mark.parametrize(
    ("link", "elsewhere", "nowhere"),
    [
        (
            "[read](../../CONTRIBUTING.md#rules)",
            "[read](https://git.example.com/it/blob/HEAD/CONTRIBUTING.md#rules)",
            "read (`CONTRIBUTING.md`)",
        ),
        (
            "[`manifests/grafana`](../../manifests/grafana)",
            "[`manifests/grafana`](https://git.example.com/it/tree/HEAD/manifests/grafana)",
            "`manifests/grafana`",
        ),
        ("[b](../adr/README.md)", "[b](../adr/README.md)", "[b](../adr/README.md)"),
        ("![c](../images/demo.svg)", "![c](../images/demo.svg)", "![c](../images/demo.svg)"),
    ],
)
def test_a_link_that_leaves_the_site_leads_to_the_repository_if_it_is_named(
    link: str, elsewhere: str, nowhere: str
) -> None:
    assert rewritten(link, repo_url="https://git.example.com/it/") == elsewhere
    assert rewritten(link, repo_url="") == nowhere


def test_a_link_to_what_the_repository_does_not_have_fails_the_build(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert rewritten("[a](../../no/such)", repo_url="") == "a (`no/such`)"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no/such" in caplog.text
