"""The level-of-detail forest: levels that are only ever appended, in blocks that a frame can skip.

Rows (single Gaussians) and blocks are numbered through the whole forest: those of the first level come first. Inside a
level, rows follow a Hilbert curve and every `BLOCK` of them form a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.lod._finer import lay_over, own_rows
from sr3d.lod.checks import check_gaussians, check_layout, check_links
from sr3d.lod.curve import hilbert_order
from sr3d.lod.level import BLOCK, Level, Split, copy_level, make_level, with_footprints


@runtime_checkable
class Source(Protocol):
    """Where mapped levels come from."""

    def check(self) -> None:
        """Raise `Sr3dError` if a file is not what it was when it was opened."""


@dataclass(kw_only=True, frozen=True, eq=False)
class Forest:
    """Levels of Gaussians, appended one after the other; a frame visits only the blocks that it can see.

    Immutable: `append` and `undo` return forests that share all other levels.

    Attributes:
        levels: Level 0 first; a level comes after those of its parents.
        source: The files that the levels are mapped from, None for a forest in memory.
    """

    levels: tuple[Level, ...]
    source: Source | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Stored Gaussians."""
        return self.starts[-1]

    @property
    def name(self) -> str:
        """What errors call it: its file, where it has one."""
        return "sr3d.lod.Forest" if self.source is None else str(self.source)

    @cached_property
    def magnification(self) -> float:
        """How much finer the finest level is than the first, by the median footprint of the first block of each."""
        natives = [float(level.lod.native[:BLOCK].nanmedian()) for level in self.levels]
        if not all(0 < native < math.inf for native in natives):
            raise Sr3dError(self.name, "lod.native", f"{natives} in the levels' first blocks", "finite footprints > 0")
        return max(natives[0] / min(natives), 1.0)

    @cached_property
    def origins(self) -> list[Float[np.ndarray, 3]]:
        """Origins of the levels, in CPU memory."""
        return [level.origin.cpu().numpy() for level in self.levels]

    @cached_property
    def starts(self) -> list[int]:
        """First row of every level, and behind them the number of rows. [levels + 1]"""
        return _starts([len(level) for level in self.levels])

    @cached_property
    def block_starts(self) -> list[int]:
        """First block of every level, and behind them the number of blocks. [levels + 1]"""
        return _starts([len(level.blocks.reach) for level in self.levels])

    @cached_property
    def finest(self) -> list[Float[Tensor, " b"]]:
        """`Blocks.finest` of every level, later levels taken into account."""
        out = [level.blocks.finest.clone() for level in self.levels]
        for level in self.levels:
            for k, inside, blocks in _by_level(level.split.blocks, self.block_starts):
                out[k][blocks] = level.split.finest[inside]
        return out

    def finer(self, level: int, blocks: Int[Tensor, " v"]) -> Float[Tensor, "v block"]:
        """`Lod.finer` of the rows of some blocks of a level, later levels taken into account.

        Args:
            level: Index into `levels`.
            blocks: Counted from the level's first, ascending. [V]

        Returns:
            Footprints of the children, 0 where there are none and behind the level's last row. [V, BLOCK]

        Raises:
            Sr3dError: A later level densifies rows that do not exist.
        """
        own = self.levels[level]
        if own.parents.device.type != "cpu":
            return self._finer_on_device(level, blocks)
        out = torch.empty(len(blocks), BLOCK)
        own_rows(own.lod.finer.numpy(), blocks.numpy(), BLOCK, out.numpy())
        for later in self.levels[level + 1 :]:
            split = later.split.parents.numpy(), later.split.finer.numpy()
            rows = self.starts[level], self.starts[level + 1]
            if len(split[0]) and not lay_over(*split, *rows, blocks.numpy(), BLOCK, out.numpy()):
                raise Sr3dError(self.name, f"level {later.number}: split parents", "not ascending", "sorted rows")
        return out

    def _finer_on_device(self, level: int, blocks: Int[Tensor, " v"]) -> Float[Tensor, "v block"]:
        """The same in torch: what CUDA runs."""
        own, count = self.levels[level], len(self.levels[level])
        rows = blocks[:, None] * BLOCK + torch.arange(BLOCK, device=blocks.device)
        out = own.lod.finer[rows.clamp(max=count - 1)]
        out[rows >= count] = 0
        first = self.starts[level] + blocks * BLOCK
        last = torch.minimum(first + BLOCK, torch.full_like(first, self.starts[level + 1]))
        for later in self.levels[level + 1 :]:
            split = later.split
            if len(split.parents) == 0:
                continue
            begin = torch.searchsorted(split.parents, first)
            end = torch.searchsorted(split.parents, last)
            sizes = (end - begin).clamp_min(0)
            if (sizes > BLOCK).any():
                raise Sr3dError(self.name, f"level {later.number}: split parents", "not ascending", "sorted rows")
            if not sizes.any():
                continue
            owner = torch.repeat_interleave(torch.arange(len(blocks), device=blocks.device), sizes)
            skip = torch.cumsum(sizes, 0) - sizes
            at = torch.arange(len(owner), device=blocks.device) - skip[owner] + begin[owner]
            within = split.parents[at] - first[owner]
            if ((within < 0) | (within >= BLOCK)).any():
                raise Sr3dError(self.name, f"level {later.number}: split parents", "not ascending", "sorted rows")
            out[owner, within] = split.finer[at]
        return out

    @staticmethod
    def from_gaussians(gaussians: Gaussians, parents: Int[Tensor, " n"] | None = None) -> Forest:
        """Make a forest of Gaussians that carry levels already (from a `.ply`, from `zoom_into`).

        Args:
            gaussians: [N], with `lod`. Means may be float64.
            parents: Index of each one's parent among them, −1 where there is none; None if they are not known.

        Raises:
            Sr3dError: No Gaussians, batch axes, no `lod`, impossible values, levels with gaps, parents that do not
                exist, are not one level up or whose footprints disagree with their children's, or a level that spans
                more than float32 offsets of its footprints can.
        """
        where = "sr3d.lod.Forest.from_gaussians"
        lod = check_gaussians(where, gaussians)
        links = (
            torch.full_like(lod.level, -1, dtype=torch.int64) if parents is None else torch.as_tensor(parents).long()
        )
        check_links(where, links, lod)
        numbers = lod.level.unique().tolist()
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise Sr3dError(where, "lod.level", f"levels {numbers}", "consecutive levels")
        chosen = [(lod.level == number).nonzero()[:, 0] for number in numbers]
        orders = [rows[hilbert_order(gaussians.means[rows])] for rows in chosen]
        place = torch.empty(len(gaussians), dtype=torch.int64)
        place[torch.cat(orders)] = torch.arange(len(gaussians))
        none = Split(
            parents=torch.empty(0, dtype=torch.int64),
            finer=torch.empty(0),
            blocks=torch.empty(0, dtype=torch.int64),
            finest=torch.empty(0),
        )
        levels = []
        for number, rows in zip(numbers, orders):
            linked = torch.where(links[rows] < 0, links[rows], place[links[rows].clamp_min(0)])
            levels.append(make_level(number, gaussians.index(rows), linked, none))
        return Forest(levels=tuple(levels))

    def append(
        self, children: Gaussians, parents: Int[Tensor, " n"], covered: Int[Tensor, " m"] | None = None
    ) -> Forest:
        """Add a level; time and memory follow the new level, not the forest.

        A parent's `finer` is the smallest footprint of its children: where they differ (a depth edge inside the
        parent), it stays until the last of them is there.

        Args:
            children: [N]; `lod.native` is used, the other fields of `lod` follow from the parents. Means may be
                float64, and have to be where float32 is coarser than their footprint. They are stored as float32
                offsets from the middle of the level: what is far apart compared to its footprints goes into appends
                of its own.
            parents: Row of each one's parent, all of one level number; −1 for a new root. [N]
            covered: Rows of the parents' level without children of their own, for which the children of others stand
                (they show the same surface): they fade as if they had children, `finer` being their footprint times
                the median ratio of the children's to their parents'. [M]

        Returns:
            Forest with the level behind all others.

        Raises:
            Sr3dError: No children, batch axes, no `lod`, impossible values, children not finer than their parents
                or too far apart for float32 offsets of their footprints, parents that do not exist, are of different
                levels or have children already, or another SH degree or feature width than the forest's.
        """
        where = "sr3d.lod.Forest.append"
        lod = check_gaussians(where, children)
        if self.levels[0].parents.device.type != "cpu":
            raise Sr3dError(where, "device", self.levels[0].parents.device, "a forest in CPU memory")
        check_layout(where, children, self.levels[0].gaussians)
        self._unchanged()
        parents = torch.as_tensor(parents).to("cpu", torch.int64)
        if parents.shape != lod.native.shape:
            raise Sr3dError(where, "parents", tuple(parents.shape), tuple(lod.native.shape))
        if ((parents < -1) | (parents >= len(self))).any():
            bad = parents[(parents < -1) | (parents >= len(self))][0].item()
            raise Sr3dError(where, "parents", f"dangling link to row {bad}", f"-1 or a row below {len(self)}")
        unique, inverse = torch.unique(parents[parents >= 0], return_inverse=True)
        natives, finer, numbers = self._of_rows(unique)
        if len(set(numbers)) > 1:
            raise Sr3dError(where, "parents", f"of levels {sorted(set(numbers))}", "parents of one level")
        if (finer > 0).any():
            raise Sr3dError(where, "parents", f"row {unique[finer > 0][0].item()} has children", "rows without")
        native = lod.native.float()
        coarser = torch.full_like(native, torch.inf)
        coarser[parents >= 0] = natives[inverse]
        if not (native < coarser).all():
            worst = int((native >= coarser).nonzero()[0, 0])
            found = f"child {worst} of footprint {native[worst]:g}, its parent's is {coarser[worst]:g}"
            raise Sr3dError(where, "lod.native", found, "children finer than their parents")
        made = torch.full((len(unique),), torch.inf).scatter_reduce_(0, inverse, native[parents >= 0], "amin")
        if covered is not None and len(covered):
            unique, made = self._covered(unique, made, natives, numbers, covered)
        number = numbers[0] + 1 if numbers else self.levels[-1].number
        children = with_footprints(children, native, coarser, torch.zeros_like(coarser), number)
        order = hilbert_order(children.means)
        level = make_level(number, children.index(order), parents[order], self._split(unique, made))
        return Forest(levels=(*self.levels, level), source=self.source)

    def undo(self, count: int = 1) -> Forest:
        """The forest without its last `count` levels.

        Raises:
            Sr3dError: There are no more levels than that.
        """
        if not 0 <= count < len(self.levels):
            raise Sr3dError("sr3d.lod.Forest.undo", "count", count, f"0 to {len(self.levels) - 1}: one level must stay")
        return Forest(levels=self.levels[: len(self.levels) - count], source=self.source)

    def gaussians(self, dtype: torch.dtype = torch.float32) -> Gaussians:
        """All levels as one set, in row order, world frame.

        Args:
            dtype: Of the means and everything else but the footprints; float32 loses what a deep level needs.
        """
        self._unchanged()
        parts = []
        for k, level in enumerate(self.levels):
            blocks = torch.arange(len(level.blocks.reach), device=level.parents.device)
            finer = self.finer(k, blocks).flatten()[: len(level)]
            g, lod = level.gaussians, level.lod
            placed = Gaussians(
                means=(g.means.double() + level.origin).to(dtype),
                quats=g.quats.to(dtype),
                scales=g.scales.to(dtype),
                opacities=g.opacities.to(dtype),
                sh=g.sh.to(dtype),
                features=None if g.features is None else g.features.to(dtype),
            )
            parts.append(with_footprints(placed, lod.native, lod.coarser, finer, level.number))
        return Gaussians.cat(parts)

    @property
    def parents(self) -> Int[Tensor, " n"]:
        """Row of every Gaussian's parent, −1 where there is none or it is not known. [N]"""
        return torch.cat([level.parents for level in self.levels])

    def to(self, device: torch.device | str) -> Forest:
        """Copy to a device; what was mapped from a file is read."""
        self._unchanged()
        return Forest(levels=tuple(copy_level(level, device) for level in self.levels))

    def __reduce__(self) -> tuple[Callable[[tuple[Level, ...]], Forest], tuple[tuple[Level, ...]]]:
        """Copies and pickles hold the values themselves: a mapping cannot cross to another process."""
        return _of_levels, (self.levels if self.source is None else self.to("cpu").levels,)

    @staticmethod
    def load(path: str | Path) -> Forest:
        """Open a forest; nothing but its tables is read (see `sr3d.io.read_forest`)."""
        from sr3d.io import read_forest

        return read_forest(path)

    def save(self, path: str | Path) -> Forest:
        """Write a forest (see `sr3d.io.write_forest`).

        Returns:
            The same forest, mapped from the files: what is appended to that one is all that its next `save` writes.
        """
        from sr3d.io import write_forest

        return write_forest(self, path)

    def _unchanged(self) -> None:
        """Raise if a mapped file has changed: what follows would read beyond its end."""
        if self.source is not None:
            self.source.check()

    def _of_rows(self, rows: Int[Tensor, " p"]) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"], list[int]]:
        """Native and finer footprints of ascending rows [P], and the numbers of the levels that hold them."""
        native, finer, numbers = torch.empty(len(rows)), torch.empty(len(rows)), []
        for k, inside, local in _by_level(rows, self.starts):
            numbers.append(self.levels[k].number)
            native[inside] = self.levels[k].lod.native[local]
            blocks, at = torch.unique_consecutive(local // BLOCK, return_inverse=True)
            finer[inside] = self.finer(k, blocks)[at, local % BLOCK]
        return native, finer, numbers

    def _covered(
        self, unique: Tensor, made: Tensor, natives: Tensor, numbers: list[int], covered: Int[Tensor, " m"]
    ) -> tuple[Tensor, Tensor]:
        """Rows that fade from now on, ascending, and the footprints that stand for them."""
        covered = torch.unique(torch.as_tensor(covered).to("cpu", torch.int64))
        found = None
        if not numbers or covered[0] < 0 or covered[-1] >= len(self) or torch.isin(covered, unique).any():
            found = "rows that do not exist or have children in this level, or no parents"
        else:
            native, finer, own = self._of_rows(covered)
            if set(own) != set(numbers) or (finer > 0).any():
                found = f"rows of levels {sorted(set(own))}, of which {int((finer > 0).sum())} have children"
        if found is not None:
            raise Sr3dError("sr3d.lod.Forest.append", "covered", found, "rows of the parents' level without children")
        made = torch.cat([made, native * (made / natives).median()])
        rows, order = torch.cat([unique, covered]).sort()
        return rows, made[order]

    def _split(self, parents: Int[Tensor, " p"], made: Float[Tensor, " p"]) -> Split:
        """The record of densified rows, ascending."""
        blocks, finest = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
        for k, inside, local in _by_level(parents, self.starts):
            touched, at = torch.unique_consecutive(local // BLOCK, return_inverse=True)
            finer = self.finer(k, touched)
            finer[at, local % BLOCK] = made[inside]
            behind = touched[:, None] * BLOCK + torch.arange(BLOCK) >= len(self.levels[k])
            blocks.append(touched + self.block_starts[k])
            finest.append(finer.masked_fill(behind, torch.inf).amin(dim=1))
        return Split(parents=parents, finer=made, blocks=torch.cat(blocks), finest=torch.cat(finest))


def _of_levels(levels: tuple[Level, ...]) -> Forest:
    return Forest(levels=levels)


def _by_level(numbers: Int[Tensor, " m"], starts: Sequence[int]) -> list[tuple[int, slice, Tensor]]:
    """Ascending numbers cut at the levels' starts: level, place in `numbers`, numbers counted from its start."""
    cuts = torch.searchsorted(numbers, torch.tensor(starts, dtype=numbers.dtype, device=numbers.device)).tolist()
    spans = enumerate(pairwise(cuts))
    return [(k, slice(a, b), numbers[a:b] - starts[k]) for k, (a, b) in spans if a < b]


def _starts(sizes: Sequence[int]) -> list[int]:
    out = [0]
    for size in sizes:
        out.append(out[-1] + size)
    return out
