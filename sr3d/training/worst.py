"""The validation clips on which the network does worst."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import lightning
import numpy as np
import wandb
from jaxtyping import UInt8

from sr3d.datasets.batch import Batch
from sr3d.io.atomic import atomic
from sr3d.training.evaluate import Drawn
from sr3d.training.loggers import has_wandb, log_media, log_scalars, log_step, run_folder
from sr3d.training.metrics import psnr
from sr3d.training.panels import Row, clip_tiles, sheet, stacked, write_sheet
from sr3d.training.processes import gather
from sr3d.training.samples import batch_factor, clip_names

_THUMBNAIL = 144


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One clip, seen with one source of coarse depth; scores in dB on covered pixels, mean of its target views.

    Attributes:
        scene: Name of the clip.
        dataset: Where it is from, empty if unknown.
        factor: By how much its inputs were reduced.
        source: Of coarse depth.
        sr3d: Score of the network.
        upsampled: Score of Gaussians from upsampled views; None where they were not drawn.
    """

    scene: str
    dataset: str
    factor: int
    source: str
    sr3d: float
    upsampled: float | None

    @property
    def gain(self) -> float:
        """Score above `upsampled`; where that was not drawn, the score itself."""
        return self.sr3d - (self.upsampled or 0.0)


def scored(drawn: Drawn, source: str) -> list[Scored | None]:
    """Scores of the clips of a batch; None for one without covered pixels."""
    batch = drawn.batch
    truth, covered = batch.target.images, drawn.covered
    shown = {m: drawn.renderings[m].rgb for m in ("sr3d", "upsampled") if m in drawn.renderings}
    means = {m: psnr(rgb, truth, covered).nanmean(dim=-1).tolist() for m, rgb in shown.items()}
    out: list[Scored | None] = []
    for i, name in enumerate(clip_names(batch)):
        ours, base = means["sr3d"][i], means["upsampled"][i] if "upsampled" in means else None
        dataset = batch.sources[i] if batch.sources else ""
        clip = Scored(scene=name, dataset=dataset, factor=batch_factor(batch), source=source, sr3d=ours, upsampled=base)
        out.append(clip if np.isfinite(clip.gain) else None)
    return out


class WorstScenes(lightning.Callback):
    """After every validation, a table of the clips with the lowest gain over `upsampled`, with thumbnails.

    It goes to `worst/` in the run's folder as a picture and as JSON, and to wandb as `val/worst`; the lowest gain is
    logged as `val/worst_gain`. Clips of all processes are compared.

    Args:
        count: Number of clips.
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count
        self._found: list[tuple[Scored, UInt8[np.ndarray, "h w 3"]]] = []

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Start anew."""
        self._found = []

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the clips that are among the worst so far, as thumbnails."""
        if trainer.sanity_checking:
            return
        for source, drawn in (outputs or {}).items():
            for i, clip in enumerate(scored(drawn, source)):
                if clip is None or (len(self._found) >= self.count and clip.gain >= self._found[-1][0].gain):
                    continue
                tiles = [t for t in clip_tiles(drawn, scene=i, features=False) if t.scale is None or t.label == "error"]
                self._found = worst([*self._found, (clip, sheet([Row("", tiles)], _THUMBNAIL))], self.count)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Join the lists of all processes and write the table."""
        if trainer.sanity_checking:
            return
        found = worst([clip for part in gather(self._found) for clip in part], self.count)
        self._found = []
        if not trainer.is_global_zero or not found:
            return
        path = run_folder(trainer) / "worst" / f"step{log_step(trainer):06d}.png"
        write_sheet(path, stacked([(_title(clip), picture) for clip, picture in found]))
        with atomic(path.with_suffix(".json")) as temporary:
            rows = [{**asdict(clip), "gain": clip.gain} for clip, _ in found]
            temporary.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        log_scalars(trainer, {"val/worst_gain": found[0][0].gain})
        if has_wandb(trainer):
            columns = [*rows[0], "pictures"]
            data = [[*row.values(), wandb.Image(picture)] for row, (_, picture) in zip(rows, found)]
            log_media(trainer, {"val/worst": wandb.Table(columns=columns, data=data)})


def worst(found: list[tuple[Scored, Any]], count: int) -> list[tuple[Scored, Any]]:
    """The clips with the lowest gain, lowest first; a clip that several processes saw counts once."""
    unique = {(c.dataset, c.scene, c.factor, c.source): (c, picture) for c, picture in found}
    return sorted(unique.values(), key=lambda pair: pair[0].gain)[:count]


def _title(clip: Scored) -> str:
    base = "" if clip.upsampled is None else f", upsampled {clip.upsampled:.2f} dB, gain {clip.gain:+.2f} dB"
    place = f"{clip.dataset}/{clip.scene}" if clip.dataset else clip.scene
    return f"{place}, x{clip.factor}, {clip.source}: ours {clip.sr3d:.2f} dB{base}"
