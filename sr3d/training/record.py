"""What a training step leaves behind for logs and callbacks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from sr3d.coarse import DepthSource
from sr3d.datasets.batch import Batch
from sr3d.models.prediction import Prediction


@dataclass(kw_only=True)
class StepRecord:
    """The last batch that this process trained on.

    Attributes:
        batch: After augmentation.
        sources: Source of coarse depth of every clip.
        prediction: Without gradients.
        losses: Parts of the loss and "loss", of this batch alone, without gradients.
        seconds: Time by part: "data", "coarse", "network", "render", "loss", "backward", "optimiser". Complete when
            callbacks hear of the end of the batch; on a GPU only meaningful if the module's `timing` is on.
        samples: Clips in the batch.
    """

    batch: Batch
    sources: list[DepthSource]
    prediction: Prediction
    losses: dict[str, Tensor]
    seconds: dict[str, float]
    samples: int


@dataclass
class PendingStep:
    """What the batches of one optimiser step have left so far, in this process.

    Attributes:
        clips: How many there were.
        losses: Of every batch that had some: parts, "loss", and the squared error of the target views as "psnr".
        names: Clips of these batches.
        problems: Why the step has to be left out.
    """

    clips: int = 0
    losses: list[dict[str, Tensor]] = field(default_factory=list)
    names: list[list[str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def detached(prediction: Prediction) -> Prediction:
    """The same values outside the autograd graph."""
    return replace(
        prediction,
        gaussians=prediction.gaussians.detach(),
        scaffold=prediction.scaffold.detach(),
        images=prediction.images.detach(),
        depths=None if prediction.depths is None else prediction.depths.detach(),
        residuals={k: v.detach() for k, v in prediction.residuals.items()},
    )
