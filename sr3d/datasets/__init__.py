"""Training data: the procedural world, shards of clips, and batches of low- and high-resolution views."""

from sr3d.datasets.world import World

__all__ = ["World"]
