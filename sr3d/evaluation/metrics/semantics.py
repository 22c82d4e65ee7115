"""mIoU and pixel accuracy of drawn semantics (LSM, Table 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.evaluation.metrics.base import Column, Observation, SetMetric


class Semantics(SetMetric):
    """Mean over classes of intersection over union, and share of pixels with the right class.

    Over the pixels of all views together, labelled ones only (0 is ignored), and over the classes that the truth has.
    A pixel where all scores are equal, as where nothing is drawn, belongs to no class and is wrong. Over all pixels,
    and over those that are covered.
    """

    columns = (
        Column(name="miou", title="mIoU", better="higher", digits=4),
        Column(name="accuracy", title="accuracy", better="higher", digits=4),
        Column(name="miou_covered", title="mIoU covered", better="higher", digits=4),
        Column(name="accuracy_covered", title="accuracy covered", better="higher", digits=4),
    )
    needs = ("truth", "labels")

    def state(self, seen: Observation) -> dict[str, Tensor]:
        """Confusion matrices "all" and "covered": true class × drawn class, 0 for none. [L + 1, L + 1]

        Raises:
            Sr3dError: A true class has no score.
        """
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        assert seen.truth is not None and seen.truth.labels is not None and seen.logits is not None
        classes, labels = seen.logits.shape[-1], seen.truth.labels.long()
        if not 0 <= int(labels.min()) <= int(labels.max()) <= classes:
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise Sr3dError(f"case {seen.case}", "labels", found, f"0 to {classes}: {seen.method} has {classes} scores")
        drawn = seen.logits.amax(dim=-1) > seen.logits.amin(dim=-1)
        best = torch.where(drawn, seen.logits.argmax(dim=-1) + 1, 0)
        chosen = {"all": labels, "covered": torch.where(seen.covered, labels, 0)}
        return {
            name: multiclass_confusion_matrix(best, target, classes + 1, ignore_index=0).cpu()
            for name, target in chosen.items()
        }

    def finish(self, states: list[dict[str, Tensor]]) -> dict[str, float]:
        """The four values of all cases; NaN without a labelled pixel."""
        values = []
        for name in ("all", "covered"):
            values += _scores(torch.stack([state[name] for state in states]).sum(dim=0).double())
        return dict(zip((column.name for column in self.columns), values))


def _scores(confusion: Tensor) -> list[float]:
    """mIoU over the classes of the truth, and accuracy."""
    right, true, drawn = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    present = true > 0
    return [(right / (true + drawn - right))[present].mean().item(), (right.sum() / true.sum()).item()]
