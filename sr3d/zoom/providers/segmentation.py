"""Parts of an image: regions of one colour without a network, SAM 2, and SAM 2 with Grounding DINO for words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from skimage.segmentation import expand_labels, felzenszwalb
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.zoom.providers.base import Segmenter, eight_bit, network, pretrained, refuse_argument

_LIKENESS, _SMALLEST = 300.0, 1 / 1000  # of `Regions`, see `like_colours`
# Of SAM 2's automatic masks, as published: least predicted IoU, least stability, IoU of boxes that are duplicates.
_IOU, _STABILITY, _DUPLICATE = 0.8, 0.95, 0.7
_POINTS = 16  # point prompts per side of the image
_BATCH = 16  # prompts at a time: three masks of the size of the image for each
_FOUND = 0.35  # least confidence of a box of Grounding DINO, as published


class Regions(Segmenter):
    """Regions of like colour (Felzenszwalb and Huttenlocher 2004), each in one piece; the default, without a network.

    Observation scale 300 (of colours in 0..255), no region below 1/1000 of the image.
    """

    name: ClassVar[str] = "regions"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        refuse_argument(self)

    def segments(self, image: Float[Tensor, "h w 3"]) -> Int[Tensor, "h w"]:
        """Number of each pixel's region, from 0 on without gaps."""
        return like_colours(image, _LIKENESS, _SMALLEST)

    def find(self, image: Float[Tensor, "h w 3"], words: str) -> Bool[Tensor, "h w"]:
        """Raises.

        Raises:
            Sr3dError: Always: words need a network.
        """
        raise _wordless(self, words)


class Sam2(Segmenter):
    """SAM 2 (Ravi et al. 2024), asked at a grid of 16 x 16 points.

    Masks with a predicted IoU above 0.8 and a stability above 0.95 count, without duplicates (IoU of their boxes above
    0.7): the values of the authors' automatic masks.

    Args:
        argument: Model of the Hugging Face hub, or a folder; default "facebook/sam2.1-hiera-small".
        device: Where the network runs.

    Raises:
        Sr3dError: The weights cannot be had.
    """

    name: ClassVar[str] = "sam2"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        from transformers import Sam2Model, Sam2Processor

        model = argument or "facebook/sam2.1-hiera-small"
        self._network: Any = network(self, Sam2Model, model)
        self._processor: Any = pretrained(self, Sam2Processor, model)

    @torch.no_grad()
    def segments(self, image: Float[Tensor, "h w 3"]) -> Int[Tensor, "h w"]:
        """The automatic masks as a partition: see `partition`; a single segment where there are none."""
        height, width = image.shape[:2]
        rows, columns = (((torch.arange(_POINTS) + 0.5) / _POINTS * side).tolist() for side in (height, width))
        grid = [[[x, y]] for y in rows for x in columns]
        tools, whole = self._processor.image_processor, [0, 0, width, height]
        runs, scores, boxes = [], [], []
        for logits, quality in self._ask(image, points=grid):
            kept = tools.filter_masks(logits, quality, (height, width), whole, _IOU, _STABILITY)
            runs += kept[0]
            scores.append(kept[1])
            boxes.append(kept[2])
        masks = tools.post_process_for_mask_generation(runs, torch.cat(scores), torch.cat(boxes), _DUPLICATE)[0]
        return partition(torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool))

    @torch.no_grad()
    def in_boxes(self, image: Float[Tensor, "h w 3"], boxes: Float[Tensor, "n 4"]) -> Bool[Tensor, "h w"]:
        """Pixels of what fills any of the boxes.

        Args:
            image: In [0, 1].
            boxes: Left, top, right, bottom, in pixels; one or more.
        """
        masks = [logits[:, 0] > 0 for logits, _ in self._ask(image, boxes=boxes.tolist())]
        return torch.cat(masks).any(dim=0)

    def find(self, image: Float[Tensor, "h w 3"], words: str) -> Bool[Tensor, "h w"]:
        """Raises.

        Raises:
            Sr3dError: Always: SAM 2 does not read.
        """
        raise _wordless(self, words)

    def _ask(self, image: Float[Tensor, "h w 3"], **prompts: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [n, m, h, w] and predicted IoUs [n, m] of `points` (m = 3 masks each) or `boxes` (m = 1), in turn."""
        pixels = self._processor(images=eight_bit(image), return_tensors="pt")["pixel_values"]
        seen = self._network.get_image_embeddings(pixels.to(self.device))
        size = [list(image.shape[:2])]
        for kind, items in prompts.items():
            for start in range(0, len(items), _BATCH):
                part = {f"input_{kind}": [items[start : start + _BATCH]]}
                if kind == "points":
                    part["input_labels"] = [[[1]] * len(items[start : start + _BATCH])]
                inputs = self._processor(original_sizes=size, return_tensors="pt", **part).to(self.device)
                del inputs["original_sizes"]
                said = self._network(image_embeddings=seen, multimask_output=kind == "points", **inputs)
                logits = self._processor.post_process_masks(said.pred_masks.cpu(), size, binarize=False)[0]
                yield logits, said.iou_scores[0].cpu()


class GroundedSam(Segmenter):
    """Grounding DINO (Liu et al. 2023) finds boxes for words, SAM 2 what fills them.

    Args:
        argument: "DINO_MODEL,SAM_MODEL", each a model of the Hugging Face hub or a folder; default
            "IDEA-Research/grounding-dino-tiny" and that of `Sam2`.
        device: Where the networks run.

    Raises:
        Sr3dError: Not two models, or weights that cannot be had.
    """

    name: ClassVar[str] = "grounded-sam"

    def __init__(self, argument: str = "", device: str = "cpu") -> None:
        super().__init__(argument, device)
        from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

        dino, comma, sam = argument.partition(",")
        if argument and not (dino and comma and sam):
            raise Sr3dError(f"segmenter provider {self.name}", "argument", repr(argument), "DINO_MODEL,SAM_MODEL")
        dino = dino or "IDEA-Research/grounding-dino-tiny"
        self._detector: Any = network(self, GroundingDinoForObjectDetection, dino)
        self._processor: Any = pretrained(self, GroundingDinoProcessor, dino)
        self._sam = Sam2(sam, device)

    def segments(self, image: Float[Tensor, "h w 3"]) -> Int[Tensor, "h w"]:
        """Those of its SAM 2."""
        return self._sam.segments(image)

    @torch.no_grad()
    def find(self, image: Float[Tensor, "h w 3"], words: str) -> Bool[Tensor, "h w"]:
        """Pixels of everything that the words name; none where no box has a confidence above 0.35.

        Args:
            image: In [0, 1].
            words: One thing, or several with full stops between them ("mug. plate").

        Raises:
            Sr3dError: No words.
        """
        text = words.strip().lower().rstrip(". ")
        if not text:
            raise Sr3dError(f"segmenter provider {self.name}", "words", repr(words), "the name of something")
        # The full stop ends a phrase, as the network was trained.
        inputs = self._processor(images=eight_bit(image), text=f"{text}.", return_tensors="pt").to(self.device)
        said = self._detector(**inputs)
        size = tuple(image.shape[:2])
        # Only boxes are wanted: which of the words each is about (`text_threshold`) is not asked.
        boxes = self._processor.post_process_grounded_object_detection(
            said, inputs["input_ids"], threshold=_FOUND, target_sizes=[size]
        )[0]["boxes"]
        if not len(boxes):
            return torch.zeros(size, dtype=torch.bool)
        return self._sam.in_boxes(image, boxes.cpu())


def like_colours(image: Float[Tensor, "h w 3"], likeness: float, smallest: float) -> Int[Tensor, "h w"]:
    """Regions of like colour (Felzenszwalb and Huttenlocher 2004), numbered from 0 on without gaps.

    Args:
        image: In [0, 1].
        likeness: Observation scale, for colours in 0..255: more of it makes larger regions.
        smallest: Share of the image that every region has at least.
    """
    colours = image.detach().cpu().clamp(0, 1).double().numpy()
    pixels = max(1, round(smallest * image.shape[0] * image.shape[1]))
    # Not blurred beforehand: that puts a seam of mixed colours, a region of its own, around every object.
    return _numbered(felzenszwalb(colours, scale=likeness, sigma=0, min_size=pixels))


def partition(masks: Bool[Tensor, "n h w"]) -> Int[Tensor, "h w"]:
    """Overlapping masks as segments: larger ones below, smaller ones on top, what no mask covers joined to the nearest.

    Args:
        masks: Any number of them, also none.

    Returns:
        Number of each pixel's segment, from 0 on without gaps: all 0 where no mask covers anything.
    """
    numbers = np.zeros(masks.shape[1:], np.int64)
    for i in masks.sum(dim=(1, 2)).argsort(descending=True, stable=True).tolist():
        numbers[masks[i].numpy()] = i + 1
    return _numbered(expand_labels(numbers, distance=sum(numbers.shape)))


def _numbered(labels: np.ndarray) -> Int[Tensor, "h w"]:
    """The same parts, numbered from 0 on without gaps."""
    numbers = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    return torch.from_numpy(numbers.astype(np.int64))


def _wordless(segmenter: Segmenter, words: str) -> Sr3dError:
    """Why it cannot find what words name."""
    where = f"segmenter provider {segmenter.name}"
    return Sr3dError(where, "words", repr(words), "a segmenter with a network that reads words: grounded-sam")
