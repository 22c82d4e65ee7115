"""`sr3d zoom`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sr3d.errors import Sr3dError
from sr3d.options import numbers


def zoom(
    scene: Path,
    *,
    target: str | None = None,
    point: str | None = None,
    box: str | None = None,
    query: str | None = None,
    checkpoint: str | None = None,
    output: Path | None = None,
    views: str | None = None,
    factor: int = 16,
    method: Literal["sr3d", "scaffold", "optimise"] = "sr3d",
    width: int = 160,
    neighbours: int = 4,
    frames: int = 120,
    prompt: str | None = None,
    edit: str | None = None,
    vlm: str = "none",
    sr: str | None = None,
    editor: str = "none",
    auxiliary: str = "inpaint",
    depth: str = "prior",
    segmenter: str = "regions",
    text_model: str | None = None,
    keep_all: bool = False,
    undo: int = 0,
    seed: int = 0,
) -> None:
    """Zoom into photographs, one photograph or Gaussians, level by level: a scene, a video, contact sheets, a page.

    A run that was stopped goes on where it was; another target in the same folder makes a branch.

    Args:
        scene: Folder of posed photographs, one photograph, Gaussians (.ply, .sr3d), or the folder of a zoom.
        target: Pixel of the first view to zoom into, e.g. 120,80.
        point: Or a point of the world, e.g. 0.1,0.2,1.5.
        box: Or a box of the world, lower and upper corner: x0,y0,z0,x1,y1,z1.
        query: Or words; needs --text-model and a network with semantics, or --segmenter grounded-sam.
        checkpoint: Trained network (.ckpt, .safetensors, a folder, a name on the Hugging Face hub).
        output: Folder to write (or -o); that of the zoom if `scene` is one.
        views: Views to use, e.g. 0,4; the first is the one shown; all if left out.
        factor: Final magnification, a power of the network's factor.
        method: What makes the levels: the trained network, what it starts from, or per-scene optimisation.
        width: Largest width of the network's input in pixels.
        neighbours: Most frames that a level is made from.
        frames: Of the video.
        prompt: Words about the target, for a network with conditioning and for providers.
        edit: Words for the editor: what to change in the frame of the last level.
        vlm: Vision-language model that looks at every level: none, transformers:MODEL.
        sr: Enlarges the frames instead of the network: bicubic, swin2sr:MODEL, diffusion:MODEL.
        editor: Follows --edit: none, paste:FILE.png, diffusion:MODEL.
        auxiliary: Fills what one photograph does not show: inpaint, diffusion:MODEL.
        depth: Of one photograph, and of what is inserted: prior, depth-anything:MODEL, depth-pro:MODEL.
        segmenter: Parts of a picture, and what words name: regions, sam2:MODEL, grounded-sam:MODELS.
        text_model: CLIP model that reads a query.
        keep_all: Keep what other views contradict.
        undo: Take back this many levels, and do nothing else.
        seed: Of providers.
    """
    from sr3d.zoom.run import Choices, ZoomRun, run_zoom
    from sr3d.zoom.run import undo as take_back
    from sr3d.zoom.target import parse_target

    folder = output or scene
    if undo:
        print(take_back(folder, undo))
        return
    if checkpoint is None or (output is None and not (scene / "zoom.json").is_file()):
        expected = "--checkpoint, and -o unless the scene is the folder of a zoom"
        raise Sr3dError("sr3d zoom", "--checkpoint, --output", "one is missing", expected)
    run = ZoomRun(
        scene=scene,
        target=parse_target(target, point, box, query),
        checkpoint=checkpoint,
        output=folder,
        factor=factor,
        views=numbers(views, "--views", int),
        method=method,
        width=width,
        neighbours=neighbours,
        frames=frames,
        prompt=prompt,
        edit=edit,
        choices=Choices(
            vlm=vlm,
            sr=sr,
            editor=editor,
            auxiliary=auxiliary,
            depth=depth,
            segmenter=segmenter,
            text_model=text_model,
        ),
        reject=not keep_all,
        seed=seed,
    )
    run_zoom(run)
    print(f"written: {folder}")
