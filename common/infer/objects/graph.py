"""Fragments of objects as a graph: where they meet, and which of them are one object."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.infer.objects.merge import merged, numbered

# sums of integers do not depend on their order, so results are equal for any blocks
PARTS = 65535
"""Whole parts of evidence of 1, in which it is summed up."""


class Contacts(NamedTuple):
    """Pairs of fragments that meet, and what is known of each pair."""

    a: np.ndarray
    b: np.ndarray
    """(k,) integers, as `a`. Once combined, a < b, and no pair stands twice."""
    height: np.ndarray
    """(k,) float32 highest pass between the two."""
    evidence: np.ndarray
    """(k,) int64 sum over the faces that the two share, in PARTS."""
    faces: np.ndarray
    """(k,) int64 number of the faces that the two share."""

    @classmethod
    def of_faces(
        cls, a: np.ndarray, b: np.ndarray, *, height: np.ndarray, evidence: np.ndarray
    ) -> Contacts:
        """Return a contact for each face. evidence: (k,) 0 to 1."""
        parts = np.rint(evidence.astype(np.float64) * PARTS).astype(np.int64)
        return cls(a, b, height.astype(np.float32), parts, np.ones(len(a), np.int64))

    def times(self, weight: int) -> Contacts:
        """Return the contacts with each face counted `weight` times."""
        return self._replace(evidence=self.evidence * weight, faces=self.faces * weight)

    @property
    def mean(self) -> np.ndarray:
        """(k,) mean evidence of a face, 0 to 1."""
        return self.evidence / (self.faces * PARTS)


@dataclass(frozen=True)
class Graph:
    """Fragments 0..n-1 and their contacts, combined."""

    n: int
    contacts: Contacts

    def contracted(self, part: np.ndarray) -> Graph:
        """Return the graph of parts. part: (n,) part 0..m-1 of each fragment."""
        n = int(part.max()) + 1 if len(part) else 0
        moved = self.contacts._replace(a=part[self.contacts.a], b=part[self.contacts.b])
        return Graph(n, combined(moved))


def joined(contacts: Sequence[Contacts]) -> Contacts:
    """Return the contacts of several, one after the other."""
    kinds = ("i8", "i8", "f4", "i8", "i8")
    present = [part for part in contacts if len(part.a)]
    if not present:
        return Contacts(*(np.zeros(0, kind) for kind in kinds))
    return Contacts(*(np.concatenate(column) for column in zip(*present, strict=True)))


def combined(contacts: Contacts) -> Contacts:
    """Return each pair once, a < b, without pairs of a fragment with itself."""
    apart = contacts.a != contacts.b
    a, b, height, evidence, faces = (column[apart] for column in contacts)
    ends = np.stack([np.minimum(a, b), np.maximum(a, b)])
    # two places in a list of names are one number, which np.unique sorts far faster than rows
    names, place = np.unique(ends, return_inverse=True)
    low, high = place.reshape(2, -1)
    key, which = np.unique(low * len(names) + high, return_inverse=True)
    highest = np.full(len(key), -np.inf, np.float32)
    np.maximum.at(highest, which, height)
    low, high = np.divmod(key, max(1, len(names)))
    return Contacts(
        names[low],
        names[high],
        highest,
        _summed(evidence, which, len(key)),
        faces=_summed(faces, which, len(key)),
    )


def _summed(values: np.ndarray, group: np.ndarray, n: int) -> np.ndarray:
    """Return (n,) int64 sums of the values of each group.

    They are exact: 2^53 parts are a hundred times the faces of 10^9 voxels.
    """
    return np.bincount(group, values, n).astype(np.int64)


def over_passes(graph: Graph, summits: np.ndarray, neck: float) -> np.ndarray:
    """Return (n,) part 0..m-1 of each basin, where those are joined that no neck divides.

    A neck is a pass that lies below `neck` times the lower of the two summits.

    summits: (n,) float32 height of each basin.
    """
    contacts = graph.contacts
    # stable, so that equal passes are taken in the order of their basins
    order = np.argsort(-contacts.height, kind="stable")
    pairs = np.stack([contacts.a, contacts.b], axis=1)[order]
    return merged(pairs, contacts.height[order], summits, least=neck * summits.astype(np.float64))


class _Contact(NamedTuple):
    """The contact of two fragments."""

    evidence: int
    faces: int

    @property
    def mean(self) -> float:
        return self.evidence / (self.faces * PARTS)


def over_means(
    graph: Graph, limit: float, voxels: np.ndarray | None = None, small: float = np.inf
) -> np.ndarray:
    """Return (n,) part 0..m-1 of each fragment, where those are joined that little speaks against.

    Average linkage (Bailoni et al. 2022): the pair of the least mean evidence is joined first,
    until none is below `limit`; the contacts of joined fragments are added up.

    voxels: (n,) of each fragment; given, pairs of two that have at least `small` are not joined.
    """
    size = np.zeros(graph.n) if voxels is None else voxels.copy()
    around = _neighbours(graph)
    waiting = []
    for a, contacts in enumerate(around):
        for b, contact in contacts.items():
            if a < b and contact.mean < limit:
                waiting.append((contact.mean, a, b))
    heapq.heapify(waiting)
    part = np.arange(graph.n)
    while waiting:
        mean, a, b = heapq.heappop(waiting)
        now = around[a].get(b)
        # else the entry is of before one of the two was joined with another
        if now is None or now.mean != mean or min(size[a], size[b]) >= small:
            continue
        keep, gone = (a, b) if len(around[a]) >= len(around[b]) else (b, a)
        part[gone] = keep
        size[keep] += size[gone]
        for other in _move_contacts(around, gone, keep):
            contact = around[keep][other]
            if contact.mean < limit:
                heapq.heappush(waiting, (contact.mean, min(keep, other), max(keep, other)))
    while (part != part[part]).any():
        part = part[part]
    return numbered(part)


def _neighbours(graph: Graph) -> list[dict[int, _Contact]]:
    """Return for each fragment its contacts by the other fragment."""
    around: list[dict[int, _Contact]] = [{} for _ in range(graph.n)]
    columns = [column.tolist() for column in (graph.contacts.a, graph.contacts.b)]
    sums = [column.tolist() for column in (graph.contacts.evidence, graph.contacts.faces)]
    for a, b, evidence, faces in zip(*columns, *sums, strict=True):
        around[a][b] = around[b][a] = _Contact(evidence, faces)
    return around


def _move_contacts(around: list[dict[int, _Contact]], gone: int, keep: int) -> list[int]:
    """Add the contacts of fragment `gone` to those of `keep`, which it joins.

    Return the other fragments of these contacts.
    """
    moved = around[gone]
    around[gone] = {}
    del around[keep][gone], moved[keep]
    for other, contact in moved.items():
        del around[other][gone]
        own = around[keep].get(other, _Contact(0, 0))
        both = _Contact(own.evidence + contact.evidence, own.faces + contact.faces)
        around[keep][other] = around[other][keep] = both
    return list(moved)
