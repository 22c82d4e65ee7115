"""ScanNet++ → clips: DSLR images with COLMAP's cameras, or iPhone video frames with LiDAR depth and ARKit's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sr3d.datasets.assemble import frame_clips
from sr3d.datasets.clip import Clip
from sr3d.datasets.converter import ClipOptions, Drops, Entry, Split
from sr3d.errors import Sr3dError
from sr3d.io.colmap import colmap_frames
from sr3d.io.frames import Frame, rigid_inverse
from sr3d.io.images import list_images
from sr3d.io.transforms import read_json, transforms_frames

from .nerfstudio import count_frames

_LISTS = {
    "train": ("nvs_sem_train.txt",),
    "validation": ("nvs_sem_val.txt",),
    "test": ("nvs_test.txt", "sem_test.txt"),
}
_FISHEYE = ("transforms.json", ("resized_images",))
_PINHOLE = ("transforms_undistorted.json", ("resized_undistorted_images", "undistorted_images"))
_VIDEOS = ("rgb.mkv", "rgb.mp4")
_TOOLBOX = "python -m iphone.prepare_iphone_data iphone/configs/prepare_iphone_data.yml of its toolbox"


@dataclass(kw_only=True, frozen=True)
class ScanNetPP:
    """ScanNet++ (arXiv 2308.11417): rooms, metres.

    Read: `data/` (or the folder itself) with a folder for every scene, in it `dslr/` or `iphone/`; splits from
    `splits/`: nvs_sem_train.txt, nvs_sem_val.txt, and for test nvs_test.txt and sem_test.txt together.

    DSLR: `nerfstudio/transforms_undistorted.json` with `resized_undistorted_images/` (or `undistorted_images/`) where
    both are there, else `nerfstudio/transforms.json` with `resized_images/`, whose fisheye lens is undone here (camera
    axes of both are OpenGL's); without either, the model in `colmap/` with `resized_images/`. Nerfstudio's world is
    COLMAP's turned round: cameras of the two agree within a scene, not with each other.
    iPhone: `rgb/*.jpg` and `depth/*.png` as the toolbox extracts them, K and pose (`aligned_pose`, OpenCV camera to
    world) of every frame from `pose_intrinsic_imu.json`. Anonymisation masks are not read.

    One error for all: no scene, or the lists of a split are missing. A scene is dropped if it has no images or cameras
    of the device (a bare video: the error has the command that extracts it), a JSON file is damaged, or too few frames
    are left. A frame is dropped and counted: "marked bad" (is_bad), "held out for test", "image missing" (also frames
    of the iPhone that were not extracted), "pose missing", "pose not finite", "pose not a rotation", "depth missing",
    "other image size", "damaged" (also K that does not belong to the image).

    Args:
        device: dslr or iphone.
        test_frames: Also take the images that the benchmark holds out for novel views (DSLR).
        depth: Take the LiDAR's depth (iPhone).
        split_files: Folder of nvs_sem_train.txt and the other lists; splits/ of the data set if None.
    """

    device: Literal["dslr", "iphone"] = "dslr"
    test_frames: bool = False
    depth: bool = True
    split_files: Path | None = None

    source: ClassVar[str] = "scannetpp"
    version: ClassVar[int] = 1
    needs_src: ClassVar[bool] = True
    licence: ClassVar[str] = (
        "ScanNet++ Terms of Use, non-commercial research only, no redistribution: "
        "https://kaldir.vc.in.tum.de/scannetpp/static/scannetpp-terms-of-use.pdf"
    )

    def entries(self, src: Path, split: Split) -> list[Entry]:
        """The scenes of a split that are on disk, by name. See `Converter`."""
        folder = src / "data" if (src / "data").is_dir() else src
        places = sorted(folder.iterdir()) if folder.is_dir() else []
        scenes = [place for place in places if any((place / device).is_dir() for device in ("dslr", "iphone"))]
        if not scenes:
            raise Sr3dError(src, "scenes", "none", f"data/<scene>/{self.device}/")
        if split != "all":
            wanted = self._list(src, split)
            scenes = [scene for scene in scenes if scene.name in wanted]
            if not scenes:
                raise Sr3dError(src, f"scenes of {split}", "none on disk", f"some of its {len(wanted)} scenes")
        return [Entry(name=scene.name, path=scene, bytes=self._bytes(scene)) for scene in scenes]

    def clips(self, entry: Entry, options: ClipOptions, drops: Drops) -> Iterator[Clip]:
        """The clips of one scene. See `Converter`."""
        folder, points = entry.path / self.device, None
        if not folder.is_dir():
            raise Sr3dError(entry.path, "device", ", ".join(sorted(os.listdir(entry.path))[:8]), f"{self.device}/")
        if self.device == "dslr":
            frames, points = self._dslr(folder, entry.name, drops)
        else:
            frames = self._iphone(folder, entry.name, drops)
        yield from frame_clips(
            frames, scene=entry.name, source=folder, options=options, drops=drops, metric=True, points=points
        )

    def _list(self, src: Path, split: Split) -> set[str]:
        folder = self.split_files or src / "splits"
        found = [folder / name for name in _LISTS[split] if (folder / name).is_file()]
        if not found:
            expected = f"{' or '.join(_LISTS[split])} of the download there or in split_files; or split all"
            raise Sr3dError(folder, f"list of the split {split}", "none", expected)
        return {name for path in found for name in path.read_text(encoding="utf-8", errors="replace").split()}

    def _bytes(self, scene: Path) -> int:
        """From the size of the first image: iPhone scenes have ten thousand."""
        names = (*_PINHOLE[1], *_FISHEYE[1]) if self.device == "dslr" else ("rgb",)
        folder = next((f for n in names if (f := scene / self.device / n).is_dir()), None)
        files = list_images(folder) if folder else []
        return len(files) * files[0].stat().st_size if files else 0

    def _dslr(self, folder: Path, scene: str, drops: Drops) -> tuple[list[Frame], Float[Tensor, "p 3"] | None]:
        """Frames without those held out for test or marked bad, and COLMAP's sparse points where its model is used."""
        on_error = count_frames(scene, drops)
        lists = folder / "train_test_lists.json"
        held_out = set(_names(lists, read_json(lists).get("test", []))) if lists.is_file() else None
        found = _transforms(folder)
        if found is None:
            images = folder / "resized_images"
            if not (folder / "colmap").is_dir() or not images.is_dir():
                expected = "nerfstudio/transforms.json or colmap/, and resized_images/"
                raise Sr3dError(folder, "cameras and images", ", ".join(sorted(os.listdir(folder))[:8]), expected)
            if held_out is None and not self.test_frames:
                expected = "train_test_lists.json, which says what is held out (or test_frames true)"
                raise Sr3dError(folder, "list of test frames", "none", expected)
            frames, points = colmap_frames(folder / "colmap", on_error, images)
            return self._chosen(frames, held_out or set(), set(), scene, drops), points
        path, image_folder = found
        document = read_json(path)
        train, test = (_objects(path, document, key) for key in ("frames", "test_frames"))
        bad, tests = _files([entry for entry in train + test if entry.get("is_bad")]), _files(test)
        frames, _ = transforms_frames(path, on_error, image_folder)
        if self.test_frames and tests:
            frames += transforms_frames(path, on_error, image_folder, "test_frames")[0]
        elif tests:
            drops.frame("held out for test", scene, len(tests))
        return self._chosen(frames, (held_out or set()) | tests, bad, scene, drops), None

    def _chosen(self, frames: list[Frame], tests: set[str], bad: set[str], scene: str, drops: Drops) -> list[Frame]:
        kept = []
        for frame in frames:
            name = frame.image.name
            if name in bad:
                drops.frame("marked bad", f"{scene}/{name}")
            elif name in tests and not self.test_frames:
                drops.frame("held out for test", f"{scene}/{name}")
            else:
                kept.append(frame)
        return kept

    def _iphone(self, folder: Path, scene: str, drops: Drops) -> list[Frame]:
        video = next((folder / name for name in _VIDEOS if (folder / name).is_file()), None)
        images = list_images(folder / "rgb") if (folder / "rgb").is_dir() else []
        if not images:
            command = f"ffmpeg -i {video} -start_number 0 -q:v 1 {folder / 'rgb' / 'frame_%06d.jpg'}"
            found = f"a video, {video.name}" if video else "no images"
            raise Sr3dError(folder, "rgb", found, f"frames, from: {command}" if video else "rgb/frame_000000.jpg, ...")
        has_depth = self.depth and (folder / "depth").is_dir()
        if self.depth and not has_depth and (folder / "depth.bin").is_file():
            raise Sr3dError(folder, "depth", "depth.bin", f"depth/*.png, from: {_TOOLBOX}; or depth false")
        path = folder / "pose_intrinsic_imu.json"
        document = read_json(path)
        absent = document.keys() - {image.stem for image in images}
        if absent:
            drops.frame("image missing", f"{scene}, frames that were not extracted", len(absent))
        frames = []
        for image in images:
            record = document.get(image.stem)
            if not isinstance(record, dict) or "aligned_pose" not in record:
                drops.frame("pose missing", f"{scene}/{image.name}")
                continue
            depth = folder / "depth" / f"{image.stem}.png"
            if has_depth and not depth.is_file():
                drops.frame("depth missing", f"{scene}/{image.name}")
                continue
            try:
                pose = _matrix(path, record["aligned_pose"], f"aligned_pose of {image.stem}", 4)
                K = _matrix(path, record.get("intrinsic"), f"intrinsic of {image.stem}", 3)
            except Sr3dError as error:
                drops.frame("damaged", f"{scene}/{image.name}: {error}")
                continue
            tracked = np.isfinite(pose).all()
            frame = Frame(
                image=image,
                world_to_cam=rigid_inverse(pose) if tracked else np.full((4, 4), np.nan),
                K=K,
                depth=depth if has_depth else None,
            )
            frames.append(frame)
        return frames


def _transforms(folder: Path) -> tuple[Path, str] | None:
    """The JSON file of the cameras, and the folder of its images as seen from it; undistorted images first."""
    for name, image_folders in (_PINHOLE, _FISHEYE):
        path = folder / "nerfstudio" / name
        images = next((n for n in image_folders if (folder / n).is_dir()), None)
        if path.is_file() and images is not None:
            return path, f"../{images}"
    return None


def _objects(path: Path, document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = document.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Sr3dError(path, key, type(entries).__name__, "a list of objects")
    return entries


def _files(entries: Sequence[dict[str, Any]]) -> set[str]:
    return {Path(str(entry.get("file_path"))).name for entry in entries}


def _names(path: Path, names: object) -> list[str]:
    if not isinstance(names, list):
        raise Sr3dError(path, "test", type(names).__name__, "a list of file names")
    return [str(name) for name in names]


def _matrix(path: Path, value: object, field: str, side: int) -> NDArray[np.float64]:
    """A square matrix, nested or row after row."""
    try:
        matrix = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.size != side * side:
        raise Sr3dError(path, field, f"shape {matrix.shape}", f"{side}x{side} numbers")
    return matrix.reshape(side, side)
