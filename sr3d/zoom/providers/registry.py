"""Providers by name; their modules, and the libraries behind them, are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sr3d.errors import Sr3dError
from sr3d.zoom.providers.base import Provider

# Kind → name → module.class below this package. The first of each kind needs no download and is deterministic.
_PROVIDERS: dict[str, dict[str, str]] = {
    "sr": {
        "bicubic": "super_resolution.Bicubic",
        "swin2sr": "super_resolution.Swin2SR",
        "diffusion": "super_resolution.DiffusionUpscaler",
    },
    "editor": {"none": "editing.NoEdit", "paste": "editing.Paste", "diffusion": "editing.DiffusionEditor"},
    "auxiliary": {"inpaint": "auxiliary.Inpaint", "diffusion": "auxiliary.DiffusionInpaint"},
    "depth": {
        "prior": "depth.GroundPrior",
        "depth-anything": "depth.DepthAnything",
        "depth-pro": "depth.DepthPro",
    },
    "segmenter": {
        "regions": "segmentation.Regions",
        "sam2": "segmentation.Sam2",
        "grounded-sam": "segmentation.GroundedSam",
    },
    "vlm": {"none": "language.Silent", "transformers": "language.TransformersVlm"},
}


def provider_names(kind: str) -> list[str]:
    """Names of a kind, the default first."""
    return list(_PROVIDERS[kind])


def load_provider(kind: str, spec: str, device: str = "cpu") -> Any:
    """The provider that `NAME` or `NAME:ARGUMENT` names; the argument is a model of the Hugging Face hub or a folder.

    Args:
        kind: See `Provider.kind`.
        spec: From the command line.
        device: Where networks run.

    Raises:
        Sr3dError: Unknown name, an argument too much, a library of the extra `generative` is missing, or weights that
            cannot be had.
    """
    name, _, argument = spec.partition(":")
    found = _PROVIDERS[kind].get(name)
    if found is None:
        raise Sr3dError("sr3d zoom", kind, repr(name), f"one of {', '.join(_PROVIDERS[kind])}")
    module, _, cls = found.rpartition(".")
    try:
        made: type[Provider] = getattr(import_module(f"sr3d.zoom.providers.{module}"), cls)
        return made(argument, device)
    except ImportError as error:
        raise Sr3dError("sr3d zoom", f"{kind} {name}", error.msg, "pip install 'sr3d[generative]'") from error
