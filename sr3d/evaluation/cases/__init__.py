"""Cases of a protocol, wherever its data lies."""

from __future__ import annotations

from sr3d.errors import Sr3dError
from sr3d.evaluation.cases.base import CaseSet, Sources
from sr3d.evaluation.cases.folder import open_folders
from sr3d.evaluation.cases.generated import open_generated
from sr3d.evaluation.cases.holdout import open_holdouts
from sr3d.evaluation.cases.procedural import open_procedural
from sr3d.evaluation.cases.shards import open_shards
from sr3d.evaluation.data_config import FolderData, GeneratedData, HoldoutData, ProceduralData
from sr3d.evaluation.protocol import Protocol, typed_data

__all__ = ["CaseSet", "Sources", "open_cases"]


def open_cases(protocol: Protocol, sources: Sources) -> CaseSet:
    """What a protocol evaluates.

    Args:
        protocol: With the options of its kind.
        sources: Where its data lies.

    Raises:
        Sr3dError: Data is missing, or is not what the index was made for.
    """
    data, factor = typed_data(protocol, f"protocol {protocol.name}"), protocol.factor
    if isinstance(data, ProceduralData):
        if sources.paths or sources.index is not None:
            raise Sr3dError("sr3d eval", "--scenes, --index", "given", "none: the protocol names its worlds")
        return open_procedural(data, factor)
    if isinstance(data, HoldoutData | GeneratedData) and sources.index is not None:
        raise Sr3dError("sr3d eval", "--index", sources.index, "none: the protocol says which views are tested")
    if isinstance(data, FolderData):
        return open_folders(data, factor, sources)
    if isinstance(data, HoldoutData):
        return open_holdouts(data, factor, sources)
    if isinstance(data, GeneratedData):
        return open_generated(data, factor, sources)
    return open_shards(data, factor, sources)
