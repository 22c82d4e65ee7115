"""`sr3d`: the trained network, in one forward pass; a zoom takes one for each level."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from sr3d.datasets.batch import Batch
from sr3d.errors import Sr3dError
from sr3d.evaluation.case import Made, Task
from sr3d.evaluation.methods.base import Method, MethodOptions
from sr3d.evaluation.methods.network import load_network, one_level, zoomed
from sr3d.models.estimate import out_of_memory_explained
from sr3d.scene import Scene
from sr3d.training.clip_model import TextEncoder
from sr3d.training.conditions import Embedder
from sr3d.training.evaluate import embedder_of
from sr3d.training.teachers import LabelTeacher
from sr3d.zoom import Predictor as ZoomPredictor


class Predictor(Method):
    """The network of the command line's checkpoint, or of `sr3d:PATH`."""

    name: ClassVar[str] = "sr3d"

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        self.network, self._weights = load_network(options, self.name)
        if options.text_model is not None:
            if self.network.semantics is None:
                raise Sr3dError("sr3d eval", "--text_model", options.text_model, "none: the network has no semantics")
            given, wanted = TextEncoder(options.text_model).width, self.network.semantics.config.embedding
            if given != wanted:
                found = f"{options.text_model}, embeddings of {given} channels"
                raise Sr3dError("sr3d eval", "--text_model", found, f"{wanted} channels, as the network has learned")
        self._tables: dict[tuple[str, ...], Tensor] = {}

    def identity(self) -> dict[str, Any]:
        """The checkpoint with its SHA-256, and what the network is told."""
        told = {"condition": self.options.condition, "text_model": self.options.text_model}
        return {**super().identity(), **self._weights, **{k: v for k, v in told.items() if v is not None}}

    def make(self, task: Task) -> Made:
        """One level on top of the coarse scene, or all levels of a zoom."""
        embedding = self._embedding(task)
        with out_of_memory_explained("sr3d eval", self.network.config, task.context.images):
            if task.zoom is not None:
                scene = zoomed(task, ZoomPredictor(self.network), embedding)
            else:
                scene = one_level(self.network.refine(task.coarse, task.context, task.factor, embedding)[0])
        knows = self.options.text_model is not None and task.classes
        return Made(gaussians=scene, classify=(lambda f: self._scores(f, task.classes)) if knows else None)

    @cached_property
    def _embedder(self) -> Embedder | None:
        kind = self.options.condition
        return None if kind is None else embedder_of(self.network, kind).to(self.options.device)

    def _embedding(self, task: Task) -> Float[Tensor, " e"] | None:
        """What a network with conditioning is told: its middle input view, or the scene's text where it has one."""
        if self._embedder is None:
            return None
        views = Scene.stack([task.context.to(self.options.device)])
        embedding, known = self._embedder(Batch(context=views, high=views, target=views, texts=[task.text]))
        return embedding[0] if bool(known[0]) else None

    def _scores(self, features: Float[Tensor, "t h w d"], classes: list[str]) -> Float[Tensor, "t h w l"]:
        """Cosines of drawn features, mapped to embeddings, and the classes' names, up to each pixel's own length."""
        assert self.options.text_model is not None and self.network.semantics is not None
        key = tuple(classes)
        if key not in self._tables:
            self._tables[key] = LabelTeacher.from_names(classes, self.options.text_model).table.to(features)
        # (W f) · t = f · (Wᵀ t): the image of embeddings is never built.
        return features @ (self._tables[key] @ self.network.semantics.to_embedding.weight).T
