"""Which devices belong together: distance over NUMA nodes and PCIe paths.

Called when the kubelet asks for a preference. The answer is advice, so it always comes, whatever
the question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from hailo_agent.core.device import Topology

NOWHERE = Topology()


def closeness(one: Topology, other: Topology) -> tuple[int, int, int]:
    """Say how close two devices are; bigger is closer."""
    same_numa = one.numa_node is not None and one.numa_node == other.numa_node
    same_root = one.pcie_root is not None and one.pcie_root == other.pcie_root
    shared = 0
    for a, b in zip(one.bridges, other.bridges, strict=False):
        if a != b:
            break
        shared += 1
    return (int(same_numa), int(same_root), shared)


def prefer(
    places: Mapping[str, Topology], available: Sequence[str], must_include: Sequence[str], size: int
) -> tuple[str, ...]:
    """Choose `size` of the available ids that lie together, those that must be included first.

    Alone, the smallest group that fits is taken, so that big groups stay whole for those who need
    them. Equal questions get equal answers; ids that nobody knows count as lying nowhere. Fewer
    than `size` come back only if there are no more.
    """
    chosen = list(dict.fromkeys(must_include))[: max(size, 0)]
    free = sorted(set(available) - set(chosen))
    if not chosen and 0 < size < len(free):
        group = _smallest_fitting(places, free, size)
        if group is not None:
            return tuple(group[:size])
        chosen = [_largest(places, free)[0]]
        free.remove(chosen[0])
    while len(chosen) < size and free:
        nearest = _nearest(places, chosen, free)
        chosen.append(nearest)
        free.remove(nearest)
    return tuple(chosen)


def _nearest(places: Mapping[str, Topology], chosen: Sequence[str], free: Sequence[str]) -> str:
    """Take the id that is closest to all chosen ones together; the first one if several are."""
    mine = [places.get(name, NOWHERE) for name in chosen]

    def total(name: str) -> tuple[int, ...]:
        place = places.get(name, NOWHERE)
        return tuple(map(sum, zip(*(closeness(place, other) for other in mine), strict=True)))

    return max(free, key=total)  # max keeps the first of equals, and `free` is sorted


def _smallest_fitting(
    places: Mapping[str, Topology], free: Sequence[str], size: int
) -> list[str] | None:
    """Find the closest-knit group that holds `size` ids, and of several the smallest."""
    depth = max((len(places.get(name, NOWHERE).bridges) for name in free), default=0)
    for level in range(depth, -1, -1):
        fitting = [group for group in _groups(places, free, level) if len(group) >= size]
        if fitting:
            return min(fitting, key=lambda group: (len(group), group))
    return None


def _largest(places: Mapping[str, Topology], free: Sequence[str]) -> list[str]:
    return max(_groups(places, free, 0), key=len)


def _groups(places: Mapping[str, Topology], free: Iterable[str], level: int) -> Iterable[list[str]]:
    """Group ids by NUMA node and by the first `level` steps of their PCIe path."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name in free:
        place = places.get(name, NOWHERE)
        alone = name if level and not place.bridges else None  # nobody knows what it lies beside
        groups[alone, place.numa_node, place.bridges[:level]].append(name)
    return groups.values()
