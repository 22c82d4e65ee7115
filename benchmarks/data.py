"""Reading and packing against a bare loop that decodes the same JPEG files; memory over ten thousand samples.

    python benchmarks/data.py

Everything is made here: clips of 640x480 JPEG files, as RealEstate10K chunks, as a capture with a
transforms.json, and as shards. Ratios are images per second over those of one bare loop in this process, the two in
turn; what has two threads or processes says so. The loader's number includes choosing views, reducing the inputs and
making the batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
from common import Report
from matplotlib import pyplot as plt
from skimage import data as photographs
from sr3d_data.nerfstudio import Nerfstudio
from sr3d_data.re10k import RealEstate10K

from sr3d.datasets.converter import ClipOptions
from sr3d.datasets.pack import PackConfig, pack
from sr3d.datasets.reader import BatchConfig, ClipBatches, ClipLoader
from sr3d.datasets.views import ViewConfig

WIDTH, HEIGHT = 640, 480
VIEWS = 32


def jpegs(count: int, rng: np.random.Generator) -> list[bytes]:
    """Windows of photographs at the quality and colour resolution of video frames (90, 4:2:0)."""
    whole = [cv2.resize(image, (1600, 1600)) for image in (photographs.astronaut(), photographs.rocket())]
    out = []
    for i in range(count):
        x, y = int(rng.integers(0, 1600 - WIDTH)), int(rng.integers(0, 1600 - HEIGHT))
        window = whole[i % 2][y : y + HEIGHT, x : x + WIDTH, ::-1]
        out.append(cv2.imencode(".jpg", window, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return out


def write_chunks(folder: Path, clips: int, images: Sequence[bytes]) -> None:
    """RealEstate10K chunks of ten scenes each."""
    (folder / "train").mkdir(parents=True)
    index = {}
    for first in range(0, clips, 10):
        scenes = []
        for number in range(first, min(clips, first + 10)):
            cameras = torch.zeros(VIEWS, 18)
            cameras[:, :4] = torch.tensor([0.8, 0.8 * WIDTH / HEIGHT, 0.5, 0.5])
            cameras[:, 6:] = torch.eye(4)[:3].flatten()
            cameras[:, 9] = torch.arange(VIEWS) * 0.02
            part = [images[(number * VIEWS + i) % len(images)] for i in range(VIEWS)]
            files = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in part]
            key = f"{number:016x}"
            scenes.append(
                {"url": "", "timestamps": torch.arange(VIEWS), "cameras": cameras, "images": files, "key": key}
            )
            index[key] = f"{first // 10:06d}.torch"
        torch.save(scenes, folder / "train" / f"{first // 10:06d}.torch")
    (folder / "train" / "index.json").write_text(json.dumps(index))


def write_captures(folder: Path, clips: int, images: Sequence[bytes]) -> None:
    """Folders with transforms.json."""
    for number in range(clips):
        scene = folder / f"scene{number:03d}"
        (scene / "images").mkdir(parents=True)
        frames = []
        for i in range(VIEWS):
            (scene / f"images/{i:03d}.jpg").write_bytes(images[(number * VIEWS + i) % len(images)])
            pose = np.eye(4)
            pose[0, 3] = 0.02 * i
            frames.append({"file_path": f"images/{i:03d}.jpg", "transform_matrix": pose.tolist()})
        content = {"fl_x": 500, "fl_y": 500, "cx": 320, "cy": 240, "w": WIDTH, "h": HEIGHT, "frames": frames}
        (scene / "transforms.json").write_text(json.dumps(content))


def decode(images: Sequence[bytes]) -> int:
    """The bare loop."""
    for image in images:
        cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    return len(images)


def load(loader: ClipLoader) -> int:
    """One epoch; number of images."""
    return sum(b.high.images.shape[0] * (b.high.images.shape[1] + b.target.images.shape[1]) for b in loader)


def compare(call: Callable[[], int], bare: Callable[[], int], repeats: int) -> tuple[float, float, float]:
    """Images per second of a call, of the bare loop, and the median of their ratio pair by pair."""
    call(), bare()
    pairs = []
    for _ in range(repeats):
        start = time.perf_counter()
        count = call()
        middle = time.perf_counter()
        base = bare()
        pairs.append((count / (middle - start), base / (time.perf_counter() - middle)))
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def throughput(report: Report, clips: int, repeats: int) -> None:
    """Table of loading and packing."""
    images = jpegs(600, np.random.default_rng(0))
    rows: list[dict[str, object]] = []

    def add(name: str, call: Callable[[], int]) -> None:
        found, bare, ratio = compare(call, lambda: decode(images), repeats)
        rows.append({"what": name, "images/s": found, "bare loop": bare, "ratio": ratio})

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_chunks(folder / "chunks", clips, images)
        write_captures(folder / "captures", clips // 4, images)
        numbers = iter(range(1_000_000))

        def pack_once(source: Path, converter: RealEstate10K | Nerfstudio, workers: int, options: ClipOptions) -> int:
            out = folder / f"packed{next(numbers)}"
            config = PackConfig(shard_mb=40, workers=workers)
            result = pack(converter, source, out, split="train", options=options, config=config, progress=False)
            return 0 if result.index is None else result.index.views

        plain, small = ClipOptions(), ClipOptions(max_side=320)
        for name, source, converter, options in (
            ("pack RealEstate10K chunks, JPEG as they are", folder / "chunks", RealEstate10K(), plain),
            ("pack transforms.json, JPEG as they are", folder / "captures", Nerfstudio(), plain),
            ("pack transforms.json, reduced to 320 and encoded again", folder / "captures", Nerfstudio(), small),
        ):
            add(name, partial(pack_once, source, converter, 1, options))
        shards = folder / "packed0"
        for name, size, packed, workers in (
            ("load 2 inputs + 4 targets as stored", None, True, (0, 0)),
            ("the same, 2 threads, against one loop", None, True, (0, 2)),
            ("the same, 2 worker processes, against one loop", None, True, (2, 0)),
            ("load 2 + 4 as floats", None, False, (0, 0)),
            ("load 2 + 4, resized to 256x256", (256, 256), True, (0, 0)),
            ("the same, 2 threads, against one loop", (256, 256), True, (0, 2)),
        ):
            config = BatchConfig(factor=4, views=ViewConfig(context=2, target=4), image_size=size)
            batches = ClipBatches(shards, config, shuffle=True, packed=packed)
            loader = ClipLoader(batches, workers[0], threads=workers[1])
            add(name, partial(load, loader))
    report.table("Throughput against a bare loop that decodes the same JPEG files", rows)


def memory(report: Report, output: Path, samples: int) -> None:
    """Resident memory of the reading process over many samples."""
    images = jpegs(200, np.random.default_rng(1))
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_chunks(folder / "chunks", 60, images)
        pack(RealEstate10K(), folder / "chunks", folder / "s", split="train", config=PackConfig(shard_mb=20, workers=1),
             progress=False)  # fmt: skip
        config = BatchConfig(factor=4, views=ViewConfig(context=2, target=1))
        loader = ClipLoader(ClipBatches(folder / "s", config, shuffle=True, packed=True), 0)
        counts, sizes = [0], [process.memory_info().rss / 2**20]
        while counts[-1] < samples:
            for batch in loader:
                counts.append(counts[-1] + len(batch.high.images))
                sizes.append(process.memory_info().rss / 2**20)
    warm = len(sizes) // 10
    slope = float(np.polyfit(counts[warm:], sizes[warm:], 1)[0]) * 1000
    row = {"samples": counts[-1], "MiB after a tenth": sizes[warm], "MiB at the end": sizes[-1],
           "largest": max(sizes[warm:]), "MiB per 1,000 samples": slope}  # fmt: skip
    report.table("Memory of the reading process", [row])
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(counts, sizes)
    axes.set(xlabel="samples read", ylabel="resident memory, MiB", ylim=(0, 1.15 * max(sizes)))
    figure.savefig(output / "data_memory.png", dpi=120)


def main() -> None:
    """Run all studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    report = Report(arguments.output, "data")
    throughput(report, clips=40, repeats=3 if arguments.quick else 7)
    memory(report, arguments.output, samples=2_000 if arguments.quick else 10_000)


if __name__ == "__main__":
    main()
