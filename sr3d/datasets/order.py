"""Which clip is read when: pure functions of (seed, epoch), so that a run can be resumed anywhere, on any devices.

The clips of a data set are numbered through its shards. Every epoch is another permutation that stays local: whole
shards in random order, clips mixed within windows of neighbouring shards. It is cut into stretches that are read side
by side; each process takes its part of every global batch from few of them: it reads (and fetches) few shards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from sr3d.errors import Sr3dError

_WINDOW = 4096  # clips that are mixed with each other, at least
_STRETCHES = 8  # at most; so many machines, or devices of one machine, need no two the same shards


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


def shares(sizes: Sequence[int], weights: Sequence[float], batch: int, source: str) -> list[int]:
    """How many clips of each data set are read per epoch; together a whole number of global batches.

    In all as many clips as there are, but for the at most `batch` − 1 that do not fill a global batch, split by the
    weights. Weights equal to the sizes read every other clip once; another epoch leaves out others.

    Args:
        sizes: Clips per data set.
        weights: > 0 each, of any sum.
        batch: Clips per global batch.
        source: Named in errors.

    Raises:
        Sr3dError: A weight is not positive, there is no clip of a data set, or not one global batch.
    """
    if len(weights) != len(sizes) or not all(0 < w < float("inf") for w in weights):
        raise Sr3dError(source, "weights", list(weights), f"{len(sizes)} finite numbers above 0")
    total = sum(sizes) // batch * batch
    if not total:
        found = f"{sum(sizes)} clips for a global batch of {batch}"
        raise Sr3dError(source, "clips", found, "at least one global batch: a smaller global_batch_size")
    quotas = np.array(weights) / sum(weights) * total
    # The small term keeps a share that is a whole number from falling below it by rounding.
    out = np.floor(quotas + 1e-9).astype(int)
    out[np.argsort(out - quotas, kind="stable")[: total - out.sum()]] += 1
    if not out.all():
        found = f"{list(sizes)}, of which {out.tolist()} in an epoch"
        raise Sr3dError(source, "clips of the data sets", found, "a clip of each: a larger weight")
    return [int(n) for n in out]


def global_order(
    counts: Sequence[Sequence[int]], weights: Sequence[float], *, seed: int, epoch: int, batch: int, source: str
) -> Int64[np.ndarray, "n 3"]:
    """What all processes together read in one epoch: rows of (data set, its own epoch, clip number).

    Rows s · batch to (s + 1) · batch are the global batch of step s.

    Args:
        counts: Clips per shard of every data set.
        weights: See `shares`.
        seed: Of all shuffling.
        epoch: Counts from 0.
        batch: Clips per global batch.
        source: Named in errors.

    Raises:
        Sr3dError: See `shares`.
    """
    sizes = [sum(c) for c in counts]
    parts = []
    for number, (share, size) in enumerate(zip(shares(sizes, weights, batch, source), sizes)):
        # A data set read once per epoch starts each epoch anew; one that is drawn more or less often just goes on.
        first = epoch * (size if size - batch < share <= size else share)
        positions = np.arange(first, first + share, dtype=np.int64)
        own = positions // size
        clips = np.empty_like(positions)
        for turn in np.unique(own):
            order = epoch_order(counts[number], _mix(seed, number), int(turn))
            clips[own == turn] = order[positions[own == turn] % size]
        parts.append(np.stack([np.full_like(positions, number), own, clips], axis=1))
    rows = np.concatenate(parts)
    if len(parts) > 1:
        # Which data set comes when is drawn; within each the order stays.
        labels = np.random.default_rng([seed, epoch, len(parts)]).permutation(rows[:, 0])
        rows = rows[np.argsort(np.argsort(labels, kind="stable"))]
    stretches = math.gcd(batch, _STRETCHES)
    return rows.reshape(stretches, -1, batch // stretches, 3).swapaxes(0, 1).reshape(-1, 3)


def _mix(seed: int, number: int) -> int:
    """A seed of its own for every data set."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
