"""Clips and batches of shards, read by several processes and workers, resumable at any batch."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sr3d.datasets.batch import Batch, reduced_batch, resize_scene
from sr3d.datasets.curriculum import CurriculumConfig
from sr3d.datasets.degrade import DegradeConfig
from sr3d.datasets.heap import keep_freed_memory
from sr3d.datasets.order import global_order, shares
from sr3d.datasets.sample import StoredClip
from sr3d.datasets.shards import ShardReader, list_shards
from sr3d.datasets.views import ViewConfig, choose_views, view_problem
from sr3d.errors import Sr3dError
from sr3d.io.remote import Counters, RemoteConfig
from sr3d.scene import Scene

# One or several sets of shards that are read as one, or sets with weights.
Source = str | Path | Sequence[str | Path] | Mapping[str, float]
_WORKERS, _MOST_UNFIT = 128, 1000


@dataclass(kw_only=True)
class BatchConfig:
    """What a batch is made of.

    Attributes:
        factor: How many times smaller the inputs are than the stored views.
        batch_size: Clips per batch and process; not shuffled, the last batch may have fewer.
        views: Which views are inputs and which are targets, and how many.
        image_size: Width and height that all views are cropped and resized to; None: as stored, and then all clips of a
            batch must have one size.
        degrade: How inputs are made smaller; None: by area, and `factor` must divide the image size.
        seed: Of the order of the clips, the choice of views and the degradation.
        curriculum: Changes factor and views as the training goes on; None: they stay.
    """

    factor: int | float = 4
    batch_size: int = 1
    views: ViewConfig = field(default_factory=ViewConfig)
    image_size: tuple[int, int] | None = None
    degrade: DegradeConfig | None = None
    seed: int = 0
    curriculum: CurriculumConfig | None = None

    def __post_init__(self) -> None:
        for name, value in (("factor", self.factor), ("batch_size", self.batch_size)):
            if not 1 <= value < float("inf") or (name == "batch_size" and value != int(value)):
                raise Sr3dError("sr3d.datasets.BatchConfig", name, value, "1 or more")
        for stage in self.curriculum.stages if self.curriculum else ():
            self.at(stage.start)

    def at(self, step: int) -> tuple[ViewConfig, Sequence[int | float]]:
        """How views are chosen at an optimiser step, and the factors to draw from."""
        return (self.curriculum or CurriculumConfig()).at(step, self.views, self.factor)


class ShardDataset(IterableDataset[Scene]):
    """All clips of shards as scenes, in stored order; several workers take turns.

    Args:
        source: Folder with an index, a tar file, an address of either, or a list of these.
        remote: How addresses are read.

    Raises:
        Sr3dError: See `list_shards`; while reading, any tar file or member that is broken.
    """

    def __init__(self, source: str | Path | Sequence[str | Path], remote: RemoteConfig | None = None) -> None:
        super().__init__()
        remote = remote or RemoteConfig()
        self.reader = ShardReader(list_shards(source, remote), remote)

    def __len__(self) -> int:
        return sum(self.reader.counts)

    def __iter__(self) -> Iterator[Scene]:
        for clip in self.clips():
            yield clip.scene()

    def clips(self) -> Iterator[StoredClip]:
        """The clips with their pixels still encoded."""
        worker, workers = _worker()
        places = [(shard, clip) for shard, count in enumerate(self.reader.counts) for clip in range(count)]
        for shard, clip in places[worker::workers]:
            yield self.reader.read(shard, clip)


class ClipBatches(IterableDataset[Batch]):
    """Batches of clips, views chosen and reduced.

    What batch number i of an epoch holds is a function of (seed, epoch, rank, i) alone: it does not matter how many
    workers read, or where reading starts. Shuffled, the processes together read global batches, one for each optimiser
    step, of `batch_size` · `world` · `accumulate` clips; what is in them depends on that product, not on its factors.
    All batches of a step have one factor and one number of inputs.

    Every process gets equally many batches. Shuffled and without weights, no clip comes twice in an epoch: the clips
    that do not fill a global batch wait for another one. Not shuffled, every clip is read; where they do not divide
    by the number of processes, as many of the first ones again.

    Args:
        source: Shards; a mapping gives each set a weight, its share of the clips of an epoch. Without weights every
            clip is read once per epoch.
        config: Of the batches.
        shuffle: For training: shuffled, views drawn. If not, the stored order, with views spread evenly.
        name: Of the data set, for `Batch.sources`; by default what the index of each clip's shards says.
        strict: A clip that has no views by the rule is an error. If not, it is replaced by the next one that has some,
            and counted.
        rank: Number of this process.
        world: Number of processes.
        accumulate: Batches per process and optimiser step.
        remote: How addresses are read.
        packed: Leave full-resolution images in 8 bits where they are not resized: `Batch.unpacked`, on the device,
            makes floats of them.
        counters: Takes note of downloads and retries, over all workers.

    Raises:
        Sr3dError: See `list_shards`, `shares`; while reading, a clip that is damaged, or that has not the views or the
            size that is needed.
    """

    def __init__(
        self,
        source: Source,
        config: BatchConfig,
        *,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        remote: RemoteConfig | None = None,
        packed: bool = False,
        counters: Counters | None = None,
        strict: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        remote = remote or RemoteConfig()
        self.config, self.shuffle, self.rank, self.world, self.packed = config, shuffle, rank, world, packed
        self.accumulate, self.name = accumulate, name
        self.counters = counters or Counters(_WORKERS)
        if not isinstance(source, str | Path) and not len(source):
            raise Sr3dError("sr3d.datasets.ClipBatches", "source", "nothing", "at least one folder of shards")
        self.strict = strict
        sets = [[name] for name in source] if isinstance(source, Mapping) else [source]
        self.readers = [ShardReader(list_shards(s, remote, self.counters), remote, self.counters) for s in sets]
        self.sizes = [sum(r.counts) for r in self.readers]
        self.weights = [float(w) for w in source.values()] if isinstance(source, Mapping) else [1.0]
        self._unfit = torch.zeros(_WORKERS + 1, dtype=torch.int64).share_memory_()
        # Shared with the workers: epoch and first batch of the next pass, and optimiser steps before that epoch.
        self._start = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._clips = self._count()  # of this process

    def __len__(self) -> int:
        """Batches per epoch of this process."""
        return -(-self._clips // self.config.batch_size)

    @property
    def global_batch(self) -> int:
        """Clips per optimiser step, of all processes."""
        return self.config.batch_size * self.world * self.accumulate

    @property
    def left_out(self) -> int:
        """Clips that no process reads in an epoch (others in the next one)."""
        return sum(self.sizes) - self.world * self._clips if self.shuffle else 0

    @property
    def unfit(self) -> int:
        """How often a clip was replaced because it has no views by the rule."""
        return int(self._unfit.sum())

    def seek(self, epoch: int, batch: int, steps: int = 0) -> None:
        """Let the next pass be of this epoch, before which there were so many steps, and start at this batch."""
        self._start[0], self._start[1], self._start[2] = epoch, batch, steps

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = _worker()
        for number, read in enumerate(self.calls()):
            if number % workers == worker:
                yield read()

    def calls(self) -> Iterator[Callable[[], Batch]]:
        """One function for each batch of the next pass, in order; any of them can be called at any time."""
        epoch, start, steps = self._start.tolist()
        order, size = self.order(epoch), self.config.batch_size
        for number in range(start, len(self)):
            yield partial(self._batch, epoch, number, steps, order[number * size : (number + 1) * size])

    def order(self, epoch: int) -> Int64[np.ndarray, "n 3"]:
        """What this process reads in an epoch: rows of (set, the set's own epoch, number of the clip in the set)."""
        counts = [r.counts for r in self.readers]
        if self.shuffle:
            rows = global_order(
                counts, self.weights, seed=self.config.seed, epoch=epoch, batch=self.global_batch, source=self._name
            )
            return rows.reshape(-1, self.world, self.global_batch // self.world, 3)[:, self.rank].reshape(-1, 3)
        rows = np.array([(i, 0, clip) for i, size in enumerate(self.sizes) for clip in range(size)], np.int64)
        return rows[np.arange(self.rank, self.world * self._clips, self.world) % len(rows)]

    @property
    def _name(self) -> str:
        return self.readers[0].shards[0].url

    def _count(self) -> int:
        if self.shuffle:
            return sum(shares(self.sizes, self.weights, self.global_batch, self._name)) // self.world
        return -(-sum(self.sizes) // self.world)

    def _batch(self, epoch: int, number: int, steps: int, rows: Int64[np.ndarray, "b 3"]) -> Batch:
        # The same in all batches of an optimiser step.
        step = number // self.accumulate
        draw = np.random.default_rng([self.config.seed, epoch, step]) if self.shuffle else None
        views, factors = self.config.at(steps + step)
        inputs = views.draw_inputs(draw)
        factor = factors[0 if draw is None else int(draw.integers(len(factors)))]
        parts = [self._clip(int(turn), int(group), int(clip), views, inputs, factor) for group, turn, clip in rows]
        sizes = {part.target.images.shape[-3:-1] for part in parts}
        if len(sizes) > 1:
            found = ", ".join(f"{w}x{h}" for h, w in sorted(sizes))
            raise Sr3dError(self._name, "image sizes in one batch", found, "one size: set image_size, or batch_size 1")
        return Batch.stack(parts)

    def _clip(self, turn: int, group: int, number: int, views: ViewConfig, inputs: int, factor: int | float) -> Batch:
        """The views of one clip; of the next one where it has none by the rule."""
        config = self.config
        clip, source = self._fitting(group, number, views, inputs)
        rng = np.random.default_rng([config.seed, turn, group, number]) if self.shuffle else None
        context, target = choose_views(views, clip.cameras, _overlap(clip, views), inputs, rng, clip.name)
        high, other = clip.packed(context), clip.packed(target)
        if config.image_size is not None:
            high, other = (resize_scene(s.unpacked(), config.image_size) for s in (high, other))
        seed = 0 if rng is None else int(rng.integers(2**62))
        batch = reduced_batch(high, other, factor, config.degrade, seed)
        batch = replace(batch, sources=[source], texts=[clip.text() or ""])
        return batch if self.packed else batch.unpacked()

    def _fitting(self, group: int, number: int, views: ViewConfig, inputs: int) -> tuple[StoredClip, str]:
        """The clip, or the next one that has views by the rule, and its data set."""
        problem: Sr3dError | None = None
        # A rule that fits nothing would otherwise read (and fetch) all there is before it says so.
        for step in range(1 if self.strict else min(_MOST_UNFIT, self.sizes[group])):
            clip, source = self._read(group, (number + step) % self.sizes[group])
            problem = view_problem(views, clip.cameras, _overlap(clip, views), inputs, clip.name)
            if problem is None:
                return clip, source
            self._unfit[_slot()] += 1
        assert problem is not None
        raise problem

    def _read(self, group: int, number: int) -> tuple[StoredClip, str]:
        reader = self.readers[group]
        ends = np.cumsum(reader.counts)
        shard = int(np.searchsorted(ends, number, side="right"))
        clip = reader.read(shard, number - int(ends[shard]) + reader.counts[shard])
        return clip, self.name or reader.shards[shard].source


class _Caught(IterableDataset[Batch | Sr3dError]):
    """Batches, and the error that ended them: torch would pass it on from a worker as text of many lines."""

    def __init__(self, batches: ClipBatches) -> None:
        super().__init__()
        self.batches = batches

    def __iter__(self) -> Iterator[Batch | Sr3dError]:
        keep_freed_memory()
        try:
            yield from self.batches
        except Sr3dError as error:
            yield error


class ClipLoader:
    """Loads batches with processes or threads, knows its position, and can start there again.

    Lightning stores the position in its checkpoints (`state_dict`): a resumed run goes on with the next batch.

    Args:
        batches: What to load.
        workers: Processes that read; 0 reads in this one.
        threads: Without workers, threads that read ahead: decoding leaves Python to others, and nothing has to be
            copied from process to process. 0 reads when a batch is asked for.
        epoch: Of the first pass. Shuffled, the next pass goes on with what is left of an epoch, else with the next one.
        limit: Number of batches after which an epoch is over; None: all.
    """

    def __init__(
        self, batches: ClipBatches, workers: int, epoch: int = 0, limit: int | None = None, threads: int = 0
    ) -> None:
        self.batches, self.threads = batches, 0 if workers else threads
        self.limit = len(batches) if limit is None else min(limit, len(batches))
        # With a generator of its own, no pass draws from torch's global one, which resumed runs restore.
        self._loader = DataLoader(
            _Caught(batches),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0 and batches.shuffle,
            generator=torch.Generator(),
        )
        self._position = (epoch, 0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._next() if self.batches.shuffle else (0, 0)
        self._position = (epoch, start)
        self.batches.seek(epoch, start, epoch * -(-self.limit // self.batches.accumulate))
        for batch in self._ahead() if self.threads else self._loader:
            if isinstance(batch, Sr3dError):
                raise batch
            self._position = (epoch, self._position[1] + 1)
            yield batch
            if self._position[1] >= self.limit:
                return

    def _ahead(self) -> Iterator[Batch]:
        """The batches, read by threads, two for each of them in advance."""
        keep_freed_memory()
        calls = self.batches.calls()
        with ThreadPoolExecutor(self.threads) as pool:
            waiting = deque(pool.submit(call) for call in islice(calls, 2 * self.threads))
            try:
                while waiting:
                    batch = waiting.popleft().result()
                    waiting.extend(pool.submit(call) for call in islice(calls, 1))
                    yield batch
            finally:
                pool.shutdown(cancel_futures=True)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, how many of its clips have been delivered to all processes, and what the batches depend on."""
        batches, (epoch, batch) = self.batches, self._position
        of = {"clips": batches.sizes, "weights": batches.weights}
        of |= {"global_batch_size": batches.global_batch, "seed": batches.config.seed}
        of |= {"curriculum": batches.config.curriculum and asdict(batches.config.curriculum)}
        return {"epoch": epoch, "delivered": batch * batches.global_batch // batches.accumulate, "of": of}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch that was delivered; in the next epoch if that was the last one.

        Where the global batches are no longer the same ones (other data, global batch size or seed), that epoch starts
        anew, with a warning. The number of processes may change.

        Raises:
            Sr3dError: It is no such state.
        """
        try:
            epoch, delivered, of = int(state["epoch"]), int(state["delivered"]), dict(state["of"])
        except (KeyError, TypeError, ValueError):
            expected = "epoch, delivered clips and what the batches depend on"
            raise Sr3dError("checkpoint", "position in the data", str(state)[:80], expected) from None
        now = self.state_dict()["of"]
        changed = [f"{k} {of.get(k)}, now {now[k]}" for k in now if of.get(k) != now[k]]
        if changed:
            warnings.warn(f"epoch {epoch} starts anew, its batches are others: {'; '.join(changed)}", stacklevel=2)
            delivered = 0
        self._position = (epoch, delivered * self.batches.accumulate // self.batches.global_batch)

    def _next(self) -> tuple[int, int]:
        """Epoch and batch to read next. An epoch that was left goes on: Lightning leaves one where it resumes."""
        epoch, batch = self._position
        return (epoch, batch) if batch < self.limit else (epoch + 1, 0)


def _overlap(clip: StoredClip, views: ViewConfig) -> np.ndarray | None:
    """What the rule needs of it."""
    return clip.overlap if views.by == "overlap" else None


def _worker() -> tuple[int, int]:
    """Number of this data-loading worker, and how many there are."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _slot() -> int:
    """Row of this worker in shared tables; the first one is the main process."""
    info = get_worker_info()
    return info.id + 1 if info else 0
