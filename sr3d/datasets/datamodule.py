"""Training and validation batches from shards, for Lightning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from sr3d.datasets.batch import Batch
from sr3d.datasets.curriculum import CurriculumConfig
from sr3d.datasets.degrade import DegradeConfig
from sr3d.datasets.reader import BatchConfig, ClipBatches, ClipLoader, Source
from sr3d.datasets.shards import is_tar, read_index
from sr3d.datasets.views import ViewConfig
from sr3d.errors import Sr3dError
from sr3d.io.remote import Counters, RemoteConfig


class ClipDataModule(L.LightningDataModule):
    """Training and validation batches from shards.

    Args:
        train_shards: Shards to train on: a folder with an index, a tar file, an address (http, https, s3, gs) of
            either, a list of these, or a mapping of these to weights (their shares of an epoch).
        val_shards: Shards to validate on: one set, which goes by the names in its indices, or a mapping of names to
            sets. They must not share a scene with training.
        factor: How many times smaller the inputs are than the stored views.
        views: How inputs and targets of training are chosen, and how many there are.
        val_views: The same for validation; as in training if null.
        image_size: Width and height that all views are cropped and resized to; null keeps the stored ones.
        degrade: How training inputs are made smaller; null averages over areas. Validation always does that.
        curriculum: Changes factor, number and distance of the inputs as the training goes on; null: they stay.
        val_factors: Factors of validation, which reads each clip once for each of them; null: that of training.
        global_batch_size: Clips per optimiser step, over all devices and accumulated batches.
        workers: Data-loading processes per device; 0 reads in the training process.
        threads: Without workers, threads that read ahead of the training; 0 reads when a batch is needed.
        remote: Cache and retries for shards at addresses.
        seed: Of the order of the clips, the choice of views and the degradation.
    """

    def __init__(
        self,
        train_shards: str | list[str] | dict[str, float],
        val_shards: str | list[str] | dict[str, str | list[str]],
        factor: int | float = 4,
        views: ViewConfig | None = None,
        val_views: ViewConfig | None = None,
        image_size: tuple[int, int] | None = None,
        degrade: DegradeConfig | None = None,
        curriculum: CurriculumConfig | None = None,
        val_factors: list[int] | None = None,
        global_batch_size: int = 1,
        workers: int = 0,
        threads: int = 0,
        remote: RemoteConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if global_batch_size < 1:
            raise Sr3dError("sr3d.datasets.ClipDataModule", "global_batch_size", global_batch_size, "1 or more")
        self.global_batch_size = global_batch_size
        self.train_shards, self.val_shards, self.workers, self.threads = train_shards, val_shards, workers, threads
        self.remote = remote or RemoteConfig()
        views = views or ViewConfig()
        if val_factors is not None and not val_factors:
            raise Sr3dError("sr3d.datasets.ClipDataModule", "val_factors", val_factors, "one or more factors, or null")
        self.val_factors = [factor] if val_factors is None else val_factors
        whole = DegradeConfig() if float(factor) != int(factor) else None
        self.val_config = BatchConfig(
            factor=factor,
            views=val_views or views,
            image_size=image_size,
            degrade=whole,
            seed=seed,
        )
        self.train_config = replace(self.val_config, views=views, degrade=degrade or whole, curriculum=curriculum)
        self._loader: ClipLoader | None = None
        self._position: dict[str, Any] | None = None
        self.counters = Counters()

    def setup(self, stage: str) -> None:
        """Check that the global batch divides, and that no scene is on both sides.

        Raises:
            Sr3dError: It does not, or a scene is in the training and in the validation shards.
        """
        self._shape()
        if stage == "fit":
            train = list(self.train_shards) if isinstance(self.train_shards, dict) else self.train_shards
            val = self.val_shards.values() if isinstance(self.val_shards, dict) else [self.val_shards]
            paths = [path for part in val for path in ([part] if isinstance(part, str) else part)]
            check_disjoint(train, paths, self.remote, self.counters)

    def train_dataloader(self) -> ClipLoader:
        """Shuffled clips with randomly chosen views; another order in every epoch, equally many batches everywhere."""
        batches = self._batches(self.train_shards, self.train_config, shuffle=True)
        left = f"; {batches.left_out} that do not divide wait for another epoch" if batches.left_out else ""
        steps = len(batches) // batches.accumulate
        rank_zero_info(f"{sum(batches.sizes):,} clips: {steps:,} global batches of {batches.global_batch}{left}")
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        most = limit if isinstance(limit, int) else int(limit * len(batches))
        epoch = self.trainer.current_epoch if self.trainer else 0
        self._loader = ClipLoader(batches, self.workers, epoch, most, self.threads)
        if self._position is not None:
            self._loader.load_state_dict(self._position)
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Position in the training data, for Lightning's checkpoints."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let training go on at a position; Lightning calls this before it asks for the loader."""
        self._position = state_dict or None

    def val_dataloader(self) -> list[ClipLoader]:
        """For each set and factor, all clips in stored order, views spread evenly; the same in every epoch."""
        sets = self.val_shards if isinstance(self.val_shards, dict) else {"": self.val_shards}
        configs = [replace(self.val_config, factor=factor) for factor in self.val_factors]
        parts = [
            self._batches(shards, config, shuffle=False, name=name)
            for name, shards in sets.items()
            for config in configs
        ]
        return [ClipLoader(part, self.workers, threads=self.threads) for part in parts]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Floating-point images, made on the device."""
        return batch.unpacked()

    def counts(self) -> dict[str, int]:
        """What happened while data was read by this process: retries, downloads, bytes; and unfit clips of training."""
        return {**self.counters.total(), "unfit": self._loader.batches.unfit if self._loader else 0}

    def teardown(self, stage: str) -> None:
        """Say what reading had to put up with."""
        counts = {k: v for k, v in self.counts().items() if v}
        if stage == "fit" and counts:
            rank_zero_info("reading, first process: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))

    def _batches(self, source: Source, config: BatchConfig, *, shuffle: bool, name: str = "") -> ClipBatches:
        """The batches of this process."""
        rank = self.trainer.global_rank if self.trainer else 0
        size, world, accumulate = self._shape()
        return ClipBatches(
            source,
            replace(config, batch_size=size),
            shuffle=shuffle,
            rank=rank,
            world=world,
            accumulate=accumulate,
            remote=self.remote,
            packed=True,
            counters=self.counters,
            name=name,
        )

    def _shape(self) -> tuple[int, int, int]:
        """Clips per batch and process, number of processes, and batches per process and optimiser step."""
        trainer = self.trainer
        world, accumulate = (trainer.world_size, trainer.accumulate_grad_batches) if trainer else (1, 1)
        size, rest = divmod(self.global_batch_size, world * accumulate)
        if rest or not size:
            expected = f"a multiple of {world * accumulate} ({world} processes, accumulate_grad_batches {accumulate})"
            raise Sr3dError("sr3d.datasets.ClipDataModule", "global_batch_size", self.global_batch_size, expected)
        return size, world, accumulate


def check_disjoint(
    train: str | list[str], val: str | list[str], remote: RemoteConfig, counters: Counters | None = None
) -> None:
    """Raise if training and validation shards of one source share a scene. Tar files without index are not looked at.

    Raises:
        Sr3dError: They do.
    """
    sides = [_scenes(paths if isinstance(paths, list) else [paths], remote, counters) for paths in (train, val)]
    both = sorted(sides[0] & sides[1])
    if both:
        some = ", ".join(f"{scene} ({source})" for source, scene in both[:5])
        raise Sr3dError(str(val), "scenes", f"{len(both)} that are trained on as well: {some}", "other scenes")


def _scenes(paths: list[str], remote: RemoteConfig, counters: Counters | None) -> set[tuple[str, str]]:
    indexes = [read_index(path, remote, counters) for path in paths if not is_tar(path)]
    return {(index.source, scene) for index in indexes for scene in index.scenes}
