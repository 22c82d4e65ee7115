"""Clips to batches for training: which views are inputs, which are to be predicted."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from sr3d.datasets.batch import Batch, make_batch
from sr3d.datasets.shards import ShardDataset, worker_part
from sr3d.errors import Sr3dError


class ClipBatches(IterableDataset[Batch]):
    """Groups the clips of a `ShardDataset` into batches and chooses their views.

    Args:
        clips: The clips.
        factor: Reduction of the input views.
        context_views: Number of input views, or the lowest and highest number; one number per batch.
        target_views: Views to predict per clip.
        batch_size: Clips per batch; the last batch of a pass may be smaller.
        random_views: Draw the views (half of the time with the ends of the clip as outermost inputs, else with a
            shorter gap); if not, inputs and targets are spread evenly over the clip.
        seed: Of that draw, with the epoch.
    """

    def __init__(
        self,
        clips: ShardDataset,
        *,
        factor: int,
        context_views: int | tuple[int, int],
        target_views: int,
        batch_size: int,
        random_views: bool,
        seed: int,
    ) -> None:
        super().__init__()
        low, high = context_views if isinstance(context_views, tuple | list) else (context_views, context_views)
        if not 1 <= low <= high:
            raise Sr3dError("sr3d.datasets.ClipBatches", "context_views", context_views, "1 or more, lowest first")
        for name, value in (("factor", factor), ("target_views", target_views), ("batch_size", batch_size)):
            if value < 1:
                raise Sr3dError("sr3d.datasets.ClipBatches", name, value, "1 or more")
        self.clips, self.factor, self.context_views = clips, factor, (low, high)
        self.target_views, self.batch_size, self.random_views, self.seed = target_views, batch_size, random_views, seed

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng([self.seed, self.clips.epoch, worker_part()[0]])
        parts: list[Batch] = []
        inputs = 0
        for clip in self.clips:
            if not parts:
                low, high = self.context_views
                inputs = int(rng.integers(low, high + 1)) if self.random_views else low
            need = inputs + self.target_views
            if len(clip) < need:
                expected = f"at least {need}: {inputs} inputs and {self.target_views} to predict"
                raise Sr3dError(clip.name, "views", len(clip), expected)
            choose = _random_views if self.random_views else _spread_views
            context, target = choose(len(clip), inputs, self.target_views, rng)
            parts.append(make_batch(clip, context, target, self.factor))
            if len(parts) == self.batch_size:
                yield Batch.stack(parts)
                parts = []
        if parts:
            yield Batch.stack(parts)


class ClipDataModule(L.LightningDataModule):
    """Training and validation batches from shards.

    Args:
        train_shards: Folder of shards (or a tar file, or a list of these) to train on.
        val_shards: The same for validation.
        factor: How many times smaller the input views are than the stored ones; a whole number.
        context_views: Input views per clip, or [lowest, highest] to draw the number for every training batch
            (validation takes the lowest).
        target_views: Full-resolution views per clip to predict, taken from between the inputs.
        batch_size: Clips per batch and process.
        workers: Data-loading processes per device; 0 reads in the training process.
        seed: Of the order of the clips and the choice of views.
        cache: Keep decoded clips in memory. For small sets: a view of 256² takes 0.5 MB.
    """

    def __init__(
        self,
        train_shards: str | list[str],
        val_shards: str | list[str],
        factor: int = 4,
        context_views: int | tuple[int, int] = 2,
        target_views: int = 2,
        batch_size: int = 1,
        workers: int = 0,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        super().__init__()
        self.train_shards, self.val_shards = train_shards, val_shards
        self.factor, self.context_views, self.target_views = factor, context_views, target_views
        self.batch_size, self.workers, self.seed, self.cache = batch_size, workers, seed, cache

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled clips with randomly chosen views; another order in every epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        clips = ShardDataset(self.train_shards, shuffle=True, seed=self.seed, epoch=epoch, even=True, cache=self.cache)
        return self._loader(clips, random_views=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """All clips in stored order, views spread evenly; the same in every epoch."""
        return self._loader(ShardDataset(self.val_shards, cache=self.cache), random_views=False)

    def _loader(self, clips: ShardDataset, *, random_views: bool) -> DataLoader[Batch]:
        batches = ClipBatches(
            clips,
            factor=self.factor,
            context_views=self.context_views,
            target_views=self.target_views,
            batch_size=self.batch_size,
            random_views=random_views,
            seed=self.seed,
        )
        return DataLoader(batches, batch_size=None, num_workers=self.workers, persistent_workers=self.workers > 0)


def _random_views(count: int, inputs: int, targets: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Inputs and targets of a clip of `count` views, in path order."""
    if inputs == 1:
        order = rng.permutation(count).tolist()
        return order[:1], sorted(order[1 : 1 + targets])
    first, last = 0, count - 1
    if rng.random() < 0.5:
        span = int(rng.integers(inputs + targets - 1, count))
        first = int(rng.integers(0, count - span))
        last = first + span
    between = rng.permutation(np.arange(first + 1, last)).tolist()
    extra = inputs - 2
    return sorted([first, last, *between[:extra]]), sorted(between[extra : extra + targets])


def _spread_views(count: int, inputs: int, targets: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Inputs and targets spread evenly; `rng` is not used."""
    context = [count // 2] if inputs == 1 else np.linspace(0, count - 1, inputs).round().astype(int).tolist()
    rest = [i for i in range(count) if i not in context]
    steps = (np.arange(targets) + 0.5) * len(rest) / targets
    return context, [rest[int(i)] for i in steps]
