"""A photograph and the shape in it: read, brought to the size of an edit, and back."""

import os
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from vljax.data.pictures.images import on_white, read_rgba
from vljax.errors import UserError
from vljax.request import Picture

# A picture is at most so many times longer than wide while it is edited.
_MOST_ASPECT = 4


def read_mask(
    picture: Picture, size: tuple[int, int], *, invert: bool = False
) -> Bool[np.ndarray, "h w"]:
    """The shape in a picture: white is inside, and what is transparent is outside.

    A mask of another size than its photograph, but of its proportions, is resized to it by picking
    pixels; greys count as inside from the middle on.

    Args:
        picture: A PNG, JPEG or WebP file, or pixels.
        size: The photograph's height and width.
        invert: Whether black is inside instead; transparent stays outside.

    Raises:
        UserError: it cannot be read, has other proportions, or marks nothing.
    """
    name = os.fspath(picture) if not isinstance(picture, np.ndarray) else "the mask"
    pixels = read_rgba(picture)
    white = on_white(pixels).mean(-1) >= 127.5
    mask = (white != invert) & (pixels[..., 3] >= 128)
    mask = fitted_mask(mask, size, name)
    if not mask.any():
        raise UserError(
            f"{name} marks nothing: paint the object white, or use --invert_mask if it is black"
        )
    return mask


def fitted_mask(
    mask: Bool[np.ndarray, "h w"], size: tuple[int, int], name: str
) -> Bool[np.ndarray, "H W"]:
    """A mask at its picture's size, by picking pixels.

    Args:
        mask: Of the picture's proportions, but for a pixel's rounding.
        size: The picture's height and width, as it is shown.
        name: How errors call the mask.

    Raises:
        UserError: it has other proportions.
    """
    height, width = size
    if abs(mask.shape[0] * width - mask.shape[1] * height) > max(height, width, *mask.shape):
        raise UserError(
            f"{name} is {mask.shape[1]}×{mask.shape[0]} and the photograph, as it is shown, "
            f"{width}×{height}: give a mask of the same proportions"
        )
    return _resize_mask(mask, size)


def working_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """The size at which a photograph is edited: of its proportions, about side × side pixels.

    Args:
        height: The photograph's.
        width: The photograph's.
        side: The side of the squares that the model was trained on.
        multiple: What both sides must divide by.
    """
    scale = side / (height * width) ** 0.5
    most = side * _MOST_ASPECT**0.5
    sides = (min(length * scale, most) for length in (height, width))
    rows, columns = (max(multiple, round(length / multiple) * multiple) for length in sides)
    return rows, columns


def to_working_size(
    photo: UInt8[np.ndarray, "h w 3"], shape: Bool[np.ndarray, "h w"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """A photograph and its shape at another size: filtered (Lanczos), and picked pixels."""
    image = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(image), _resize_mask(shape, size)


def covers_a_latent(
    shape: Bool[np.ndarray, "H W"], shrink: int, *, rule: Literal["corner", "centre"]
) -> bool:
    """Whether any latent lies inside, as a mask that comes to the latents by the same rule has it.

    Args:
        shape: At the size of the edit.
        shrink: Pixels of a latent each way.
        rule: Which pixel of them decides, see `vljax.ops.inside_outside.resize_nearest`.
    """
    first = shrink // 2 if rule == "centre" else 0
    return bool(shape[first::shrink, first::shrink].any())


def to_photo_size(
    edited: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """The edited picture at the photograph's height and width (Lanczos)."""
    image = Image.fromarray(edited).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _resize_mask(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    if mask.shape == size:
        return mask
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, bool)
