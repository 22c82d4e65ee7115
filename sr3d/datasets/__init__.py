"""Training data: the procedural world, shards of clips, and batches of low- and high-resolution views."""

from sr3d.datasets.batch import Batch, make_batch, reduce_scene
from sr3d.datasets.layout import CLASSES
from sr3d.datasets.procedural import pack_procedural
from sr3d.datasets.reader import ShardDataset
from sr3d.datasets.shards import write_shards
from sr3d.datasets.world import World

__all__ = [
    "CLASSES",
    "Batch",
    "ShardDataset",
    "World",
    "make_batch",
    "pack_procedural",
    "reduce_scene",
    "write_shards",
]
