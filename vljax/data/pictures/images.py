"""Pictures in and out: decode, resize, crop, flip, tile and write.

Everything here speaks uint8 RGB arrays of shape [height, width, 3].

What decoding does, by kind of file:

- PNG, JPEG and WebP are read, whatever the file is called; of an animation, the first frame.
- EXIF orientation is applied, so that a picture stands as its photographer saw it.
- Transparency (alpha channel or a transparent palette entry) is composited on white. Dropping
  the alpha channel instead would show whatever colour happens to lie under it.
- 16-bit grey is scaled by 255/65535 and rounded; 16-bit colour keeps its high byte.
- CMYK is converted without a colour profile; embedded profiles and gamma are ignored, as in the
  pipelines of the papers reproduced here.

JPEG's reduced-size decoding is not used: it would make the result depend on how a picture was
compressed, and the published statistics were computed without it.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from vljax import files
from vljax.data.source import Transform
from vljax.errors import UserError
from vljax.request import Picture

FORMATS = ("PNG", "JPEG", "WEBP")
#: Of a sheet whose pictures are enlarged.
MOST_SHEET_PIXELS = 16 * 10**6


def decode_image(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a PNG, JPEG or WebP file held in memory.

    Args:
        data: The file's bytes.

    Returns:
        The picture as uint8 RGB, oriented by its EXIF tag and composited on white.

    Raises:
        ValueError: The bytes are no such file, or are truncated or corrupt. PNG carries
            checksums, so any damage shows; damage inside a JPEG's or WebP's compressed data can
            decode to wrong pixels without any sign.
    """
    return on_white(_decode(data))


def _decode(data: bytes) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a file: RGB, or RGBA where it has transparency."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            return np.array(_coloured(ImageOps.exif_transpose(image)))
    except Exception as error:  # Pillow raises nearly every built-in exception on damaged files.
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not a PNG, JPEG or WebP image" if data else "the file is empty"
        raise ValueError(reason) from error


def _coloured(image: Image.Image) -> Image.Image:
    """Converts any Pillow mode to RGB, or to RGBA where something may be transparent."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        colours = Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
        if "transparency" in image.info:
            opaque = grey != image.info["transparency"]
            colours.putalpha(Image.fromarray(np.uint8(255) * opaque))
        return colours
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # A transparent entry of a grey or colour picture becomes alpha only through RGBA.
        return image if image.mode == "RGBA" else image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_image(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a picture that a person gives, on white where it is transparent.

    Args:
        picture: A PNG, JPEG or WebP file, or pixels: uint8 [h w], [h w 3] or [h w 4] (RGBA).

    Raises:
        UserError: There is no such file, it is no readable picture, or the array is none.
    """
    return on_white(_read(picture))


def read_rgba(picture: Picture) -> UInt8[np.ndarray, "h w 4"]:
    """As `read_image`, with the transparency: 255 where it is opaque, as all of a JPEG.

    Of both, `on_white(read_rgba(picture))` is `read_image(picture)`, decoded once.
    """
    pixels = _read(picture)
    if pixels.shape[2] == 4:
        return pixels
    return np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=-1)


def on_white(pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Lays RGBA on white; RGB stays as it is."""
    if pixels.shape[2] == 3:
        return pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    white = Image.new("RGBA", picture.size, "white")
    return np.array(Image.alpha_composite(white, picture).convert("RGB"))


def _read(picture: Picture) -> UInt8[np.ndarray, "h w c"]:
    if isinstance(picture, np.ndarray):
        pixels = picture[..., None].repeat(3, -1) if picture.ndim == 2 else picture
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
            raise UserError(
                f"a picture of {picture.dtype} {list(picture.shape)}: give uint8 [h, w], [h, w, 3] "
                "or [h, w, 4], or a file"
            )
        if not pixels.size:
            raise UserError(f"a picture of {list(picture.shape)} has no pixels: give another")
        return pixels
    path = Path(picture)
    try:
        return _decode(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a PNG, JPEG or WebP file"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; give a PNG, JPEG or WebP file") from error


def resize_and_crop(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Brings the shorter side to `size` with antialiasing and crops the centre square.

    The same pixels as OpenAI guided-diffusion's training data, so that metrics agree with the
    published ones: halve with a 2×2 box while the shorter side is at least `2 * size`, then
    one antialiased bicubic resize (its kernel widens with the reduction), then crop, rounding
    the crop's origin down. Smaller pictures are enlarged by the same bicubic filter.

    A picture longer than four times its width (or the reverse) first loses its ends, which the
    crop would discard anyway; this bounds memory for pathological shapes.

    Args:
        image: Any height and width from one pixel up.
        size: Side of the result in pixels.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    longest = 4 * min(height, width)
    if max(height, width) > longest:
        top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
        image = image[top : top + longest, left : left + longest]
    picture = Image.fromarray(np.ascontiguousarray(image))
    while min(picture.size) >= 2 * size:
        picture = picture.resize(
            (picture.width // 2, picture.height // 2), resample=Image.Resampling.BOX
        )
    scale = size / min(picture.size)
    if scale != 1:
        new_size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(new_size, resample=Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture)[top : top + size, left : left + size]


def random_square(
    image: UInt8[np.ndarray, "h w 3"], size: int, least: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """A square by chance, brought to `size` as `resize_and_crop` does.

    Args:
        image: Any height and width from one pixel up.
        size: Side of the result in pixels.
        least: Least share of the area of the largest square in it, 0 to 1.
        rng: Chooses the share, evenly from `least` on, and the place.
    """
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * rng.uniform(least, 1) ** 0.5))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    return resize_and_crop(image[top : top + side, left : left + side], size)


def stretched(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """A picture as a square, whatever its proportions, so that all of it is seen (as PJ-X)."""
    if image.shape[:2] == (size, size):
        return image
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def flip_horizontal(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """Mirrors a picture left to right."""
    return image[:, ::-1]


def image_transform(size: int, *, flip: bool = False, keep: Sequence[str] = ()) -> Transform:
    """The transform of plain image training: resize, crop and perhaps flip.

    Args:
        size: Side of the square picture in pixels.
        flip: Whether to mirror each picture with probability 1/2.
        keep: Names of further fields to pass through unchanged, for instance a class label.
            All others are dropped: a box or a mask would be wrong after the crop.

    Returns:
        `transform(example, rng) -> {"image": uint8 [size, size, 3], **kept}`, as
        `vljax.data.pipeline.batches` takes it.
    """
    if size < 1:
        raise UserError(f"image size is {size}; give at least 1 pixel")
    fields = tuple(keep)

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = resize_and_crop(example["image"], size)
        if flip and rng.random() < 0.5:
            image = flip_horizontal(image)
        return {"image": image, **{name: example[name] for name in fields}}

    return transform


def image_grid(
    images: UInt8[np.ndarray, "n h w 3"], columns: int | None = None, padding: int = 2
) -> UInt8[np.ndarray, "H W 3"]:
    """Tiles pictures row by row on a white sheet.

    Args:
        images: Pictures of one size.
        columns: Pictures in a row; by default the smallest number that makes the grid at least
            as wide as high.
        padding: White pixels around and between the pictures.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(
            f"image_grid takes uint8 [n, h, w, 3], got {images.dtype} {list(images.shape)}"
        )
    number, height, width, _ = images.shape
    columns = min(number, columns or math.ceil(math.sqrt(number)))
    rows = math.ceil(number / columns)
    row_step, column_step = height + padding, width + padding
    grid = np.full((rows * row_step + padding, columns * column_step + padding, 3), 255, np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top, left = padding + row * row_step, padding + column * column_step
        grid[top : top + height, left : left + width] = image
    return grid


def contact_sheet(
    rows: Sequence[tuple[str, UInt8[np.ndarray, "n h w 3"]]], min_side: int = 64
) -> UInt8[np.ndarray, "H W 3"]:
    """Rows of pictures, each under its label, on a white sheet.

    Args:
        rows: Labels and pictures; all pictures of one size.
        min_side: Smaller pictures are enlarged by a whole factor until they are at least so high,
            as far as the sheet stays below `MOST_SHEET_PIXELS`.
    """
    height = rows[0][1].shape[1]
    grids = [image_grid(images, columns=len(images)) for _, images in rows]
    # Of a picture that is far wider than high, what makes it high would make it huge.
    line, high = 20, sum(grid.shape[0] for grid in grids)
    wide = max(grid.shape[1] for grid in grids)
    factor = max(1, -(-min_side // height))
    while factor > 1 and (line * len(rows) + factor * high) * factor * wide > MOST_SHEET_PIXELS:
        factor -= 1
    grids = [grid.repeat(factor, axis=0).repeat(factor, axis=1) for grid in grids]
    font = ImageFont.load_default(size=14)
    widths = [math.ceil(font.getlength(label)) + 8 for label, _ in rows]
    width = max(*widths, *(grid.shape[1] for grid in grids))
    sheet = Image.new("RGB", (width, sum(line + grid.shape[0] for grid in grids)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for (label, _), grid in zip(rows, grids, strict=True):
        pen.text((4, top + 1), label, fill="black", font=font)
        sheet.paste(Image.fromarray(grid), (0, top + line))
        top += line + grid.shape[0]
    return np.asarray(sheet)


def encode_png(
    image: UInt8[np.ndarray, "h w 3"], metadata: Mapping[str, str] | None = None
) -> bytes:
    """A PNG file in memory.

    Args:
        image: uint8 RGB [h, w, 3], or grey [h, w].
        metadata: Text fields (prompt, seed, …) that image viewers show and that
            `PIL.Image.open(path).text` reads back; any text, see `vljax.files.printable`.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or not (
        image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    ):
        raise ValueError(
            f"encode_png takes uint8 [h, w, 3] or [h, w], got {image.dtype} {list(image.shape)}"
        )
    text = PngImagePlugin.PngInfo()
    for name, value in (metadata or {}).items():
        text.add_itxt(name, files.printable(value))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG", pnginfo=text)
    return file.getvalue()


def write_png(
    path: str | os.PathLike[str],
    image: UInt8[np.ndarray, "h w 3"],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a PNG whole or not at all, making its folder when missing; see `encode_png`.

    Args:
        path: Where to write; an existing file is replaced only once the new one is complete.
        image: uint8 RGB [h, w, 3], or grey [h, w].
        metadata: Text fields.
    """
    files.write(path, encode_png(image, metadata))
