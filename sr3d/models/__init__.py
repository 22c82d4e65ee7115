"""Scaffold, encoder, refinement, decoder and offset head: coarse Gaussians and views to fine Gaussians."""

from sr3d.models.config import SuperResolverConfig
from sr3d.models.inputs import with_lod
from sr3d.models.prediction import Prediction
from sr3d.models.registry import create_model, list_models, model_config
from sr3d.models.resolver import SuperResolver

__all__ = [
    "Prediction",
    "SuperResolver",
    "SuperResolverConfig",
    "create_model",
    "list_models",
    "model_config",
    "with_lod",
]
