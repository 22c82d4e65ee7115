"""Which clip is read when: pure functions of (seed, epoch, rank), so that a run can be resumed anywhere.

The clips of a data set are numbered through its shards. Every epoch is another permutation that stays local: whole
shards in random order, clips mixed within windows of neighbouring shards. Each process takes a stretch of it, so
that it reads (and fetches) few shards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from sr3d.errors import Sr3dError

_WINDOW = 4096  # clips that are mixed with each other, at least


def epoch_order(counts: Sequence[int], seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Clip numbers of one epoch of one data set, shuffled, all of them once.

    Args:
        counts: Clips per shard.
        seed: Of the shuffling.
        epoch: Counts from 0; every one has an order of its own.
    """
    ends = np.cumsum(counts)
    rng = np.random.default_rng([seed, epoch])
    parts: list[Int64[np.ndarray, " m"]] = []
    window: list[Int64[np.ndarray, " m"]] = []
    for shard in rng.permutation(len(counts)):
        window.append(np.arange(ends[shard] - counts[shard], ends[shard], dtype=np.int64))
        if sum(map(len, window)) >= _WINDOW:
            parts.append(rng.permutation(np.concatenate(window)))
            window = []
    if window:
        parts.append(rng.permutation(np.concatenate(window)))
    return np.concatenate(parts)


def shares(sizes: Sequence[int], weights: Sequence[float], world: int, source: str) -> list[int]:
    """How many clips of each data set every process reads per epoch; the same number in every process.

    In all as many clips as there are, split by the weights. Weights equal to the sizes read every clip once, but for
    the at most `world` − 1 clips per data set that do not divide; another epoch leaves out others.

    Args:
        sizes: Clips per data set.
        weights: > 0 each, of any sum.
        world: Number of processes.
        source: Named in errors.

    Raises:
        Sr3dError: A weight is not positive, or there would be no clip of a data set for every process.
    """
    if len(weights) != len(sizes) or not all(0 < w < float("inf") for w in weights):
        raise Sr3dError(source, "weights", list(weights), f"{len(sizes)} finite numbers above 0")
    total, scale = sum(sizes), sum(weights)
    # The small term keeps a share that is a whole number from falling below it by rounding.
    out = [int(total * w / scale / world + 1e-9) for w in weights]
    for share, size in zip(out, sizes):
        if not share:
            found = f"{size} clips of a data set, for {world} processes"
            raise Sr3dError(source, "clips", found, "a clip per process: fewer processes, or a larger weight")
    return out


def rank_order(
    counts: Sequence[Sequence[int]],
    weights: Sequence[float],
    *,
    seed: int,
    epoch: int,
    rank: int,
    world: int,
    source: str,
) -> Int64[np.ndarray, "n 3"]:
    """What one process reads in one epoch: rows of (data set, its own epoch, clip number).

    Args:
        counts: Clips per shard of every data set.
        weights: See `shares`.
        seed: Of all shuffling.
        epoch: Counts from 0.
        rank: Of this process.
        world: Number of processes.
        source: Named in errors.

    Raises:
        Sr3dError: See `shares`.
    """
    sizes = [sum(c) for c in counts]
    parts = []
    for number, (share, size) in enumerate(zip(shares(sizes, weights, world, source), sizes)):
        # A data set read once per epoch starts each epoch anew; one that is drawn more or less often just goes on.
        stride = size if share == size // world else share * world
        first = epoch * stride + rank * share
        positions = np.arange(first, first + share, dtype=np.int64)
        own = positions // size
        clips = np.empty_like(positions)
        for turn in np.unique(own):
            order = epoch_order(counts[number], _mix(seed, number), int(turn))
            clips[own == turn] = order[positions[own == turn] % size]
        parts.append(np.stack([np.full_like(positions, number), own, clips], axis=1))
    if len(parts) == 1:
        return np.concatenate(parts)
    # Which data set comes when is drawn; within each the order stays.
    labels = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    labels = np.random.default_rng([seed, epoch, rank, len(parts)]).permutation(labels)
    out = np.empty((len(labels), 3), np.int64)
    for number, part in enumerate(parts):
        out[labels == number] = part
    return out


def _mix(seed: int, number: int) -> int:
    """A seed of its own for every data set."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
