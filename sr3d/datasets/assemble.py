"""The steps that converters share: scenes into clips, frames into encoded views."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64
from PIL import Image

from sr3d.cameras import Cameras
from sr3d.datasets.clip import (
    AS_STORED,
    MAX_SIDE,
    Clip,
    ImageFormat,
    View,
    depth_samples,
    encode_depth,
    encode_ids,
    encode_image,
)
from sr3d.datasets.converter import ClipOptions, Drops
from sr3d.errors import Sr3dError
from sr3d.io.frames import Frame, decode_frame, decode_maps

T = TypeVar("T")
_FARTHEST = 1e6  # world units; float32 has no pixels beyond
_LONGEST = 1e4  # focal length in image sizes: a field of view of 20 arc seconds


def cut(items: Sequence[Any], options: ClipOptions) -> list[list[Any]]:
    """Every `stride`-th item, in consecutive groups of at most `views`, as equal as possible."""
    kept = list(items[:: options.stride])
    if not options.views or len(kept) <= options.views:
        return [kept]
    return [list(part) for part in np.array_split(np.array(kept, dtype=object), -(-len(kept) // options.views))]


def clip_name(scene: str, number: int, count: int) -> str:
    """Name of one of the clips of a scene: the scene's own if there is only one."""
    return scene if count == 1 else f"{scene}-{number:03d}"


def pose_problem(world_to_cam: Float64[np.ndarray, "4 4"]) -> str | None:
    """What is wrong with a pose: a reason for `Drops.frame`, or None."""
    if not np.isfinite(world_to_cam).all():
        return "pose not finite"
    R = world_to_cam[:3, :3]
    rigid = np.abs(R @ R.T - np.eye(3)).max() <= 1e-3 and np.linalg.det(R) > 0
    if not rigid or np.abs(world_to_cam[3] - [0, 0, 0, 1]).max() > 1e-5:
        return "pose not a rotation"
    return None if np.abs(world_to_cam[:3, 3]).max() < _FARTHEST else "pose too far away"


def check_K(K: Float64[np.ndarray, "3 3"], size: tuple[int, int], source: str | Path, name: str) -> None:
    """Raise for intrinsics that cannot belong to an image of this size.

    Raises:
        Sr3dError: K is not finite, not in pixels, belongs to another resolution (its principal point is far from the
            middle), has fx or fy ≤ 0, skew, or another last row than 0 0 1.
    """
    width, height = size
    if not np.isfinite(K).all() or K[0, 0] < 0.1 * width or K[1, 1] < 0.1 * height:
        eye = torch.eye(4, dtype=torch.float64)[None]
        Cameras(world_to_cam=eye, K=torch.from_numpy(K)[None], width=width, height=height).check(source, [name])
    cx, cy = float(K[0, 2]), float(K[1, 2])
    rest = np.array([K[0, 1] / K[0, 0], K[1, 0] / K[1, 1], K[2, 0], K[2, 1], K[2, 2] - 1])
    if np.abs(rest).max() > 1e-3 or max(K[0, 0], K[1, 1]) > _LONGEST * max(size):
        expected = f"[fx 0 cx; 0 fy cy; 0 0 1], fx and fy below {_LONGEST:g} image sizes"
        raise Sr3dError(source, f"K of {name}", str(K.tolist())[:120], expected)
    if not (0.3 * width < cx < 0.7 * width and 0.3 * height < cy < 0.7 * height):
        expected = f"about the middle of {width}x{height}: is K of another resolution?"
        raise Sr3dError(source, f"principal point of {name}", f"{cx:.1f}, {cy:.1f}", expected)


def make_view(
    image: bytes | npt.NDArray[Any],
    *,
    size: tuple[int, int],
    K: Float64[np.ndarray, "3 3"],
    world_to_cam: Float64[np.ndarray, "4 4"],
    frame: str,
    options: ClipOptions,
    where: str,
    depth: npt.NDArray[np.float32] | None = None,
    depth_unit: float | None = 0.001,
    labels: npt.NDArray[Any] | None = None,
    semantics: npt.NDArray[Any] | None = None,
) -> View:
    """Encode one view, reduced as the options say.

    Args:
        image: [H, W, 3] as uint8 or as float in [0, 1]; or a file that `whole_image` accepts, stored byte for byte
            unless it has to be reduced.
        size: Width and height in pixels, of the image and of all maps.
        K: Pixels of `size`.
        world_to_cam: Rigid, OpenCV axes.
        frame: Name in the data set.
        options: Of the images.
        where: File or scene named in errors.
        depth: z-depth in world units, 0 where unknown. [H, W]
        depth_unit: World units per stored count; None takes what the largest depth needs.
        labels: Ids as the data set numbers them. [H, W]
        semantics: Indices into the clip's classes. [H, W]

    Raises:
        Sr3dError: K does not fit the image, or depth or ids cannot be stored.
    """
    check_K(K, size, where, frame)
    if max(size) > MAX_SIDE:
        raise Sr3dError(where, f"size of {frame}", f"{size[0]}x{size[1]}", f"at most {MAX_SIDE} pixels per side")
    if options.max_side and max(size) > options.max_side:
        image = decode_image(image) if isinstance(image, bytes) else image
        width, height = size
        scale = options.max_side / max(size)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        K = np.diag([size[0] / width, size[1] / height, 1.0]) @ K
        depth, labels, semantics = (None if m is None else _nearest(m, size) for m in (depth, labels, semantics))
    whole = isinstance(image, bytes)
    suffix: ImageFormat = ("png" if image[:4] == b"\x89PNG" else "jpg") if whole else options.suffix
    view = View(
        image=image if isinstance(image, bytes) else encode_image(image, suffix),
        suffix=suffix,
        size=size,
        world_to_cam=world_to_cam,
        K=K,
        frame=frame,
        labels=None if labels is None else encode_ids(labels, where),
        semantics=None if semantics is None else encode_ids(semantics, where),
    )
    if depth is not None:
        view.depth, view.depth_unit = encode_depth(depth, depth_unit, where)
        view.samples = depth_samples(depth)
    return view


def frame_clips(
    frames: Sequence[Frame],
    *,
    scene: str,
    source: Path,
    options: ClipOptions,
    drops: Drops,
    metric: bool,
    points: Float[torch.Tensor, "p 3"] | None = None,
) -> Iterator[Clip]:
    """Clips of frames that lie on disk as images. Unusable frames are counted in `drops`, as is a scene without enough.

    A JPEG or PNG whose pixels need no change is stored byte for byte.
    """
    usable = []
    for frame in frames:
        problem = pose_problem(frame.world_to_cam)
        if problem:
            drops.frame(problem, f"{scene}/{frame.image.name}")
        else:
            usable.append(frame)
    yield from assemble(
        usable,
        lambda frame: _frame_view(frame, scene, source, options, drops),
        scene=scene,
        options=options,
        drops=drops,
        metric=metric,
        points=points,
    )


def assemble(
    items: Sequence[T],
    view_of: Callable[[T], View | None],
    *,
    scene: str,
    options: ClipOptions,
    drops: Drops,
    metric: bool,
    points: Float[torch.Tensor, "p 3"] | None = None,
) -> Iterator[Clip]:
    """Clips of the frames of one scene, however they lie on disk; only those of one clip are encoded at a time.

    Args:
        items: The frames, in the order of the recording.
        view_of: Encodes one; None for a frame that is left out, which it has counted itself.
        scene: Name of the scene and, with a number, of its clips.
        options: How the frames are cut into clips.
        drops: Counts views that are unlike the rest of their clip, and a scene without enough views.
        metric: World units are metres.
        points: Sparse points, world frame. [P, 3]
    """
    parts = cut(items, options)
    made = 0
    for i, part in enumerate(parts):
        views = _uniform([v for v in map(view_of, part) if v], scene, drops)
        if len(views) < options.min_views:
            if len(parts) > 1 and views:
                drops.frame("clip too short", scene, len(views))
            continue
        made += 1
        name = clip_name(scene, i, len(parts))
        cloud = None if points is None else points.numpy()
        yield Clip(name=name, scene=scene, views=views, metric=metric, points=cloud)
    if not made:
        drops.scene(f"fewer than {options.min_views} usable frames", scene)


def whole_image(data: bytes) -> tuple[int, int] | None:
    """Width and height of an 8-bit RGB JPEG or PNG that can be stored as it is; None for any other file.

    A JPEG is not decoded: one that was cut off has not the end of its format. Of a PNG the checksums are compared.
    """
    if not data.endswith((b"\xff\xd9", b"IEND\xaeB`\x82")):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            size, plain = image.size, image.mode == "RGB" and "transparency" not in image.info
            if image.format == "PNG":
                image.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    sixteen_bits = data[:4] == b"\x89PNG" and data[24] == 16
    return size if plain and not sixteen_bits else None


def decode_image(data: bytes) -> npt.NDArray[np.uint8]:
    """RGB of a JPEG or PNG file that `whole_image` accepts. [H, W, 3]

    Raises:
        Sr3dError: It is damaged between its header and its end.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), AS_STORED)
    if image is None:
        raise Sr3dError("image", "content", f"{len(data)} bytes that cannot be decoded", "a whole JPEG or PNG")
    return np.asarray(image, np.uint8)


def _frame_view(frame: Frame, scene: str, source: Path, options: ClipOptions, drops: Drops) -> View | None:
    """One frame, or None and a drop."""
    try:
        image, size, K, depth, labels = _pixels(source, frame)
        return make_view(
            image,
            size=size,
            K=K,
            world_to_cam=frame.world_to_cam,
            frame=frame.image.name,
            options=options,
            where=str(source),
            depth=depth,
            depth_unit=None if frame.depth is None or frame.depth.suffix == ".npy" else frame.depth_unit,
            labels=labels,
        )
    except Sr3dError as error:
        drops.frame("damaged", f"{scene}/{frame.image.name}: {error}")
        return None


def _pixels(
    source: Path, frame: Frame
) -> tuple[
    bytes | npt.NDArray[Any],
    tuple[int, int],
    npt.NDArray[np.float64],
    npt.NDArray[np.float32] | None,
    npt.NDArray[np.int64] | None,
]:
    """Image (the file's bytes where no pixel needs to change), size, K, depth and labels of a frame."""
    try:
        data = frame.image.read_bytes()
        if data.startswith(b"\x89PNG"):
            # Decoders make pixels of a PNG whose checksums are wrong.
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                image.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Sr3dError(frame.image, "image", f"{type(error).__name__}: {error}", "a whole PNG or JPEG") from None
    if not frame.distorted:
        size = whole_image(data)
        if size is not None and frame.size in (None, size):
            return data, size, frame.K, *decode_maps(frame, size)
    decoded = decode_frame(source, frame)
    return decoded.image, decoded.size, decoded.K, decoded.depth, decoded.labels


def _uniform(views: list[View], scene: str, drops: Drops) -> list[View]:
    """The views of the most common size, all with depth and ids if any has them: a clip is of one kind."""
    if not views:
        return views
    size = Counter(v.size for v in views).most_common(1)[0][0]
    wanted = [name for name in ("depth", "labels", "semantics") if any(getattr(v, name) is not None for v in views)]
    kept = []
    for view in views:
        missing = [name for name in wanted if getattr(view, name) is None]
        if view.size != size:
            drops.frame("other image size", f"{scene}/{view.frame}")
        elif missing:
            drops.frame(f"{missing[0]} missing", f"{scene}/{view.frame}")
        else:
            kept.append(view)
    return kept


def _nearest(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """The values at the centres of `size` (width, height) pixels."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(np.int64) for n, m in zip(size[::-1], values.shape))
    return values[rows[:, None], columns]
