"""A procedural room, filmed by ScanNet's pair of cameras and written in ScanNet's formats."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from captures import decode, file_of, write
from sens_files import intrinsics, sens_bytes

from sr3d.cameras import Cameras
from sr3d.datasets import World
from sr3d.datasets.layout import CLASSES

SIZE, DEPTH_SIZE = (96, 72), (64, 48)
K = np.array([[84.0, 0, 47.25], [0, 85.5, 37.5], [0, 0, 1]])
DEPTH_K = np.array([[50.0, 0, 32.5], [0, 51.0, 23.25], [0, 0, 1]])  # sees a little more than the colour camera
# Raw label ids of the room's classes, with the NYU40 ids that the table below gives them.
RAW = {"unknown": 0, "wall": 1, "floor": 3, "ceiling": 41, "table": 4, "furniture": 2, "rug": 143, "picture": 28}
RAW |= {"box": 6, "sphere": 11, "cylinder": 1163}
TABLE = """id\traw_category\tcategory\tcount\tnyu40id\teigen13id\tnyuClass\tnyu40class
1\twall\twall\t8277\t1\t12\twall\twall
2\tchair\tchair\t4646\t5\t4\tchair\tchair
3\tfloor\tfloor\t1703\t2\t5\tfloor\tfloor
4\ttable\ttable\t1170\t7\t10\ttable\ttable
6\tcouch\tcouch\t502\t6\t9\tsofa\tsofa
11\tbed\tbed\t370\t4\t1\tbed\tbed
28\tpicture\tpicture\t862\t11\t8\tpicture\tpicture
41\tceiling\tceiling\t340\t22\t3\tceiling\tceiling
143\trug\trug\t172\t20\t5\trug\tfloor mat
1163\t"object\tobject\t29\t40\t7\t\totherprop
"""
# wall, floor, ceiling, chair, table, sofa, bed, other by raw id: LSM's order.
LSM = {0: 0, 1: 1, 3: 2, 41: 3, 2: 4, 4: 5, 6: 6, 11: 7, 28: 8, 143: 8, 1163: 8}


@dataclass
class Room:
    """What is true of the recording."""

    to_world: np.ndarray  # [V, 4, 4] OpenCV camera to world
    images: np.ndarray  # [V, H, W, 3] uint8
    depths: np.ndarray  # [V, H, W] metres, at the colour camera's pixels
    counts: np.ndarray  # [V, h, w] millimetres, at the depth camera's pixels
    labels: np.ndarray  # [V, H, W] raw ids

    def measured(self, view: int) -> np.ndarray:
        """Depth of the pixel of the depth map that every colour pixel's ray passes, pixel by pixel. [H, W] metres"""
        out = np.zeros(SIZE[::-1])
        for v in range(SIZE[1]):
            for u in range(SIZE[0]):
                x, y = (u + 0.5 - K[0, 2]) / K[0, 0], (v + 0.5 - K[1, 2]) / K[1, 1]
                column, row = int(DEPTH_K[0, 0] * x + DEPTH_K[0, 2]), int(DEPTH_K[1, 1] * y + DEPTH_K[1, 2])
                out[v, u] = self.counts[view, row, column] / 1000
        return out


def make_room(views: int = 4) -> Room:
    """Render it; K and the numbers of the poses fit into float32 without loss of more than 1e-7."""
    world = World.generate(5, "room")
    path = world.sample_cameras(views, *SIZE, baseline=0.2)
    poses = path.world_to_cam.double()

    def cameras(intrinsic: np.ndarray, size: tuple[int, int]) -> Cameras:
        matrices = torch.from_numpy(intrinsic).expand(views, 3, 3).clone()
        return Cameras(world_to_cam=poses, K=matrices, width=size[0], height=size[1])

    color = world.render(cameras(K, SIZE), samples=2)
    depth, _ = world.geometry(cameras(DEPTH_K, DEPTH_SIZE))
    raw = np.array([RAW[name] for name in CLASSES])
    return Room(
        to_world=np.linalg.inv(poses.numpy()),
        images=(color.images.numpy() * 255).round().astype(np.uint8),
        depths=color.depths.numpy(),
        counts=(depth.numpy() * 1000).round().astype(np.uint16),
        labels=raw[color.labels.numpy()],
    )


def write_recording(folder: Path, room: Room, **options) -> Path:
    """`<scan>/<scan>.sens`; `options` of `sens_files.header_bytes`."""
    data = sens_bytes(room.to_world, room.images, room.counts, K, DEPTH_K, **options)
    return write(folder / f"{folder.name}.sens", data)


def write_frames(folder: Path, room: Room) -> Path:
    """The folders that ScanNet's SensReader exports, with colour as JPEG."""
    for i, pose in enumerate(room.to_world):
        write(folder / f"color/{i}.jpg", file_of(room.images[i], "JPEG"))
        write(folder / f"depth/{i}.png", room.counts[i])
        write(folder / f"pose/{i}.txt", text(pose))
    write(folder / "intrinsic/intrinsic_color.txt", text(intrinsics(K)))
    write(folder / "intrinsic/intrinsic_depth.txt", text(intrinsics(DEPTH_K)))
    return folder


def write_labels(folder: Path, ids: np.ndarray, kind: str = "label-filt") -> Path:
    """`<scan>_2d-label-filt.zip` with `label-filt/0.png`, ..., and the table of labels beside the scans."""
    write(folder.parent / "scannetv2-labels.combined.tsv", TABLE)
    path = folder / f"{folder.name}_2d-{kind}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, image in enumerate(ids):
            archive.writestr(f"{kind}/{i}.png", png(image))
    return path


def png(ids: np.ndarray) -> bytes:
    """Ids as PNG: 16 bits unless they are uint8."""
    return cv2.imencode(".png", ids if ids.dtype == np.uint8 else ids.astype(np.uint16))[1].tobytes()


def text(matrix: np.ndarray) -> str:
    """A 4x4 matrix as text."""
    return "\n".join(" ".join(f"{value:.9f}" for value in row) for row in matrix) + "\n"


def depth_of(view) -> np.ndarray:
    """Depth of a view in metres."""
    return decode(view.depth) * view.depth_unit
