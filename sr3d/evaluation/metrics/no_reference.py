"""NIQE, MUSIQ and Q-Align by pyiqa (extra `metrics`): quality of a picture by itself."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError

import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.evaluation.metrics.base import Column, MetricUnavailable, Observation, ViewMetric
from sr3d.evaluation.metrics.weights import cached, fetched, optional_package, require_hub, tensors

_WEIGHTS = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
_ONE_ALIGN = "q-future/one-align"
_CODE = "custom_generate/generate.py"  # what transformers would import from a repository that pyiqa tells it to trust


class _NoReference(ViewMetric):
    """A metric of pyiqa, view by view.

    Attributes:
        least: Pixels per side under which a view has no value.
    """

    needs = ()
    least: ClassVar[int]
    model: Any

    @torch.no_grad()
    def _values(self, seen: Observation, **options: Any) -> Float[Tensor, " t"]:
        if min(seen.rgb.shape[1:3]) < self.least:
            return seen.rgb.new_full((len(seen.rgb),), torch.nan)
        return torch.tensor([float(self.model(rgb.movedim(-1, 0)[None], **options)) for rgb in seen.rgb])


class Niqe(_NoReference):
    """NIQE (Mittal et al. 2013): distance of the statistics of a view's 96 × 96 blocks to those of natural pictures.

    Views under 192 pixels a side have no value: their few blocks have no covariance.
    """

    columns = (Column(name="niqe", title="NIQE", better="lower", digits=3),)
    least = 192

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        pyiqa = optional_package("pyiqa")
        file = "niqe_modelparameters.mat"
        path = fetched(_WEIGHTS + file, _folder() / file)
        self.model = _created(pyiqa, "niqe", device, path)

    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """NIQE of every view."""
        return {"niqe": self._values(seen)}


class Musiq(_NoReference):
    """MUSIQ (Ke et al. 2021), trained on KonIQ-10k, 0 to 100."""

    columns = (Column(name="musiq", title="MUSIQ", better="higher", digits=2),)
    least = 32

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        pyiqa = optional_package("pyiqa")
        file = "musiq_koniq_ckpt-e95806b9.pth"
        path = fetched(_WEIGHTS + file, _folder() / file, "e95806b9")
        # Before pyiqa reads it, which would execute what a file asks for.
        tensors(path, _WEIGHTS + file)
        self.model = _created(pyiqa, "musiq", device, path)

    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """MUSIQ of every view."""
        return {"musiq": self._values(seen)}


class QAlign(_NoReference):
    """Q-Align (Wu et al. 2024), quality and aesthetics, 1 to 5: a language model of 7 billion weights, 16 GB."""

    columns = (
        Column(name="q_align", title="Q-Align IQA", better="higher"),
        Column(name="q_align_aesthetic", title="Q-Align IAA", better="higher"),
    )
    least = 1

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        pyiqa = optional_package("pyiqa")
        optional_package("icecream")  # which pyiqa's Q-Align imports, but does not ask for
        require_hub(_ONE_ALIGN, ("model.safetensors.index.json", "pytorch_model.bin.index.json"))
        _refuse_code()
        try:
            self.model = pyiqa.create_metric("qalign", device=device)
        except OSError as error:
            raise MetricUnavailable(f"weights cannot be had: {str(error).splitlines()[0]}") from None

    def measure(self, seen: Observation) -> dict[str, Float[Tensor, " t"]]:
        """Q-Align of every view, asked for quality and for aesthetics."""
        return {
            "q_align": self._values(seen, task_="quality"),
            "q_align_aesthetic": self._values(seen, task_="aesthetic"),
        }


def _folder() -> Path:
    """Where pyiqa keeps its weights."""
    return Path(torch.hub.get_dir()) / "pyiqa"


def _created(pyiqa: Any, name: str, device: str, path: Path) -> Any:
    """A metric of pyiqa whose weights are at `path`."""
    try:
        return pyiqa.create_metric(name, device=device)
    except (RuntimeError, ValueError, KeyError) as error:
        raise Sr3dError(path, "weights", str(error).splitlines()[0], f"those of {name} from {_WEIGHTS}") from None


def _refuse_code() -> None:
    """Raise if the repository holds code that loading it would execute: pyiqa trusts it, we do not."""
    from huggingface_hub import hf_hub_url

    reason = f"{_ONE_ALIGN} holds code ({_CODE}) that loading it would execute"
    if cached(_ONE_ALIGN, (_CODE,)):
        raise MetricUnavailable(reason)
    request = urllib.request.Request(hf_hub_url(_ONE_ALIGN, _CODE), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except HTTPError as error:
        if error.code == 404:
            return
        raise MetricUnavailable(f"{_ONE_ALIGN} cannot be looked into ({error})") from None
    except OSError:
        return  # without a network there is only the cache
    raise MetricUnavailable(reason)
