"""Scaffold, encoder, refinement, decoder and offset head: coarse Gaussians and views to fine Gaussians."""

from sr3d.models.resolver import SuperResolver, SuperResolverConfig, with_lod

__all__ = ["SuperResolver", "SuperResolverConfig", "with_lod"]
