"""What the tests of manifests have in common: each rendering, by name."""

import pytest

from tests.manifests.rendered import COMPONENTS, OVERLAYS, Documents, kustomized

RENDERINGS: dict[str, tuple[str, ...]] = {
    "base": ("base",),
    **{name: (f"overlays/{name}",) for name in OVERLAYS},
    **{f"base+{component}": ("base", component) for component in COMPONENTS},
    # Together, twice the same by two ways, and on those that differ most from the base.
    "base+everything": ("base", *COMPONENTS),
    "base+notifications+active-probes": ("base", "notifications", "active-probes"),
    "k0s+usage-monitor+nfd": ("overlays/k0s", "usage-monitor", "nfd"),
    "talos+active-probes": ("overlays/talos", "active-probes"),
    "openshift+everything": ("overlays/openshift", *COMPONENTS),
    "demo+monitoring": ("overlays/demo", "monitoring"),
}


@pytest.fixture(params=list(RENDERINGS), scope="session")
def rendering(request: pytest.FixtureRequest) -> str:
    """Go through all renderings by name, for tests that want to know which it is."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def rendered(rendering: str) -> Documents:
    """Go through all renderings."""
    return kustomized(*RENDERINGS[rendering])
