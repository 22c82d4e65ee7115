"""Folders of plain images → `Scene` without cameras."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sr3d.errors import Sr3dError
from sr3d.io.frames import choose
from sr3d.io.images import list_images, read_image
from sr3d.scene import Scene


def load_images(folder: str | Path, views: Sequence[int] | None = None) -> Scene | None:
    """Read the PNG and JPEG files of a folder, or of its `images/`, in natural order; EXIF orientation is applied.

    Returns:
        Scene without cameras, or None if there are no images.

    Raises:
        Sr3dError: An image is damaged, sizes differ, or `views` is out of range.
    """
    folder = Path(folder)
    found = list_images(folder)
    if not found and (folder / "images").is_dir():
        found = list_images(folder / "images")
    if not found:
        return None
    paths = [found[i] for i in choose(folder, len(found), views)]
    images = [read_image(path, upright=True) for path in paths]
    first = images[0].shape
    for path, image in zip(paths, images):
        if image.shape != first:
            size, wanted = f"{image.shape[1]}x{image.shape[0]}", f"{first[1]}x{first[0]} as {paths[0].name}"
            raise Sr3dError(folder, f"size of {path.name}", size, f"{wanted}: one size in a scene")
    return Scene(images=torch.from_numpy(np.stack(images)), paths=paths, name=folder.resolve().name)
