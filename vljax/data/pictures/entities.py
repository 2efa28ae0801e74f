"""Entities: what a picture can be divided into, class-agnostic, one mask each.

SeMani changes the entity that a word names. Which entities a picture has, things and stuff alike,
is another network's to say (entity segmentation in the paper), so that here they are read: from
COCO's run lengths, from PNG files, or from any function of the picture (`Entities`). On scenes the
oracle is such a function.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from vljax.data.pictures.images import read_image
from vljax.data.pictures.photographs import fitted_mask
from vljax.data.pictures.shape_prompts import decode_mask
from vljax.data.scenes.oracle import connected_components, detect
from vljax.data.source import read_json
from vljax.errors import UserError

Picture = UInt8[np.ndarray, "h w 3"]
Masks = Bool[np.ndarray, "n h w"]
#: What divides a picture into entities; those it is surest of come first.
Entities = Callable[[Picture], Masks]

#: A patch of a PNG file of smaller share of its picture is a speck, no entity.
SPECK = 5e-4


def scene_entities(picture: Picture) -> Masks:
    """The objects of a scene as the oracle finds them, and last the background around them."""
    found = [one.mask for one in detect(picture)]
    around = ~np.any([np.zeros(picture.shape[:2], bool), *found], axis=0)
    return np.stack([*found, around][: len(found) + bool(around.any())])


def read_entities(path: str | os.PathLike[str], size: tuple[int, int], name: str = "") -> Masks:
    """The entities of a picture in a file or folder.

    | given | read as |
    |---|---|
    | a folder | PNG files, each the mask of one entity: white (from the middle on) is inside |
    | a PNG | every connected patch of one colour is an entity, black is none |
    | JSON or a torch file | a list of `{file_name, instances: [{segmentation, score}]}`, of which
      the picture's is taken; or `{instances: […]}`, or `{annotations: […]}`, or a list of these or
      of bare COCO segmentations; by falling score |

    Args:
        path: The file or folder.
        size: The picture's height and width. Masks of other sizes are picked pixel by pixel, and
            must have the picture's proportions; run lengths their picture's size.
        name: The picture's file, for lists of several.

    Raises:
        UserError: it cannot be read, has no entity or nothing of this picture, or other sizes.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".png")
        masks = [read_image(file).mean(-1) >= 127.5 for file in files]
    elif path.suffix.lower() == ".png":
        masks = list(patches(read_image(path)))
    else:
        masks = _instances(path, _content(path), size, name)
    masks = [fitted_mask(mask, size, str(path)) for mask in masks]
    masks = [mask for mask in masks if mask.any()]
    if not masks:
        raise UserError(f"{path} marks no entity of this picture: give another, or a mask")
    return np.stack(masks)


def patches(labels: Picture) -> Masks:
    """The connected patches of one colour other than black, from large to small; no specks."""
    codes = labels.astype(np.int64) @ np.array([1, 256, 65536])
    numbers = connected_components(codes)
    found, counts = np.unique(numbers[codes > 0], return_counts=True)
    kept = [
        n
        for n, c in sorted(zip(found, counts, strict=True), key=lambda one: -one[1])
        if c >= SPECK * codes.size
    ]
    return np.stack([numbers == n for n in kept]) if kept else np.zeros((0, *codes.shape), bool)


def _content(path: Path) -> Any:
    remedy = "give PNG masks, or COCO's run lengths in JSON"
    if path.suffix not in (".pt", ".pth"):
        return read_json(path, remedy)
    try:
        import torch

        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names damage in many ways
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not readable ({reason}): {remedy}") from error


def _instances(path: Path, content: Any, size: tuple[int, int], name: str) -> list[np.ndarray]:
    """The masks that a list of instances tells of the picture."""
    if isinstance(content, list) and content and "instances" in _fields(content[0]):
        stem = Path(name).stem
        own = [one for one in content if Path(str(_fields(one).get("file_name"))).stem == stem]
        if not own:
            raise UserError(f"{path} tells of other pictures, not of {name!r}: give its file")
        content = own[0]
    if "annotations" in _fields(content):
        ids = {
            image.get("id")
            for image in content.get("images", ())
            if Path(str(image.get("file_name"))).stem == Path(name).stem
        }
        content = [one for one in content["annotations"] if one.get("image_id") in ids or not ids]
    listed = _fields(content).get("instances", content)
    if not isinstance(listed, list):
        raise UserError(f"{path} holds no list of instances: give COCO's run lengths")
    rows = [one if "segmentation" in _fields(one) else {"segmentation": one} for one in listed]
    masks = []
    for row in sorted(rows, key=lambda row: -float(row.get("score", 1.0))):
        segmentation = row["segmentation"]
        counts = _fields(segmentation).get("counts")
        if isinstance(counts, bytes):
            segmentation = {**segmentation, "counts": counts.decode("ascii")}
        try:
            masks.append(decode_mask(segmentation, *size))
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: a segmentation cannot be used: {reason}") from error
    return masks


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def from_file(path: str | os.PathLike[str], name: str = "") -> Entities:
    """`read_entities` as a function of the picture alone."""
    return functools.partial(_of_picture, path=path, name=name)


def _of_picture(picture: Picture, path: str | os.PathLike[str], name: str) -> Masks:
    return read_entities(path, (picture.shape[0], picture.shape[1]), name)


# Masks in hand -----------------------------------------------------------------------------------


def grow(mask: Bool[np.ndarray, "h w"], pixels: float) -> Bool[np.ndarray, "h w"]:
    """A mask with all within so many pixels of it; of less than 0, without its rim."""
    if pixels >= 0:
        return mask if not mask.any() else ndimage.distance_transform_edt(~mask) <= pixels
    return mask if mask.all() else ndimage.distance_transform_edt(mask) > -pixels


def feather(mask: Bool[np.ndarray, "h w"], pixels: float) -> Float[np.ndarray, "h w"]:
    """Weights of what is drawn against what was there: 0 outside of a mask, 1 deep inside.

    The seam lies inside, where the weight rises over so many pixels from the rim, so that what is
    outside stays as it is, bit for bit. The picture's own border is no rim.
    """
    if pixels <= 0 or mask.all() or not mask.any():
        return mask.astype(np.float32)
    depth = ndimage.distance_transform_edt(mask)
    return np.clip(depth / (pixels + 1), 0, 1).astype(np.float32)


def paste(
    before: Picture, drawn: Picture, weight: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """What is drawn, laid over a picture by weights; where they are 0 it stays bit for bit."""
    share = weight[..., None]
    mixed = (1 - share) * before + share * drawn
    return np.where(share == 0, before, mixed.round().clip(0, 255).astype(np.uint8))
