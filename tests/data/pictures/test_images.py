"""Decoding, resizing, tiling and writing of pictures."""

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vljax.data.pictures import images
from vljax.errors import UserError


def picture(height, width, seed=0):
    """A smooth coloured picture, so that lossy formats keep it nearly as it is."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    channels = [np.sin(4 * x + p) * np.cos(3 * y - p) for p in phases]
    return np.uint8(127.5 + 127 * np.stack(channels, -1))


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 12),
        ("JPEG", {"quality": 98, "subsampling": 0}, 4),
        ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}, 4),
    ],
)
def test_every_format_gives_the_picture_back(format, options, tolerance):
    image = picture(31, 47)
    decoded = images.decode_image(encode(image, format, **options))
    assert decoded.dtype == np.uint8
    assert decoded.shape == image.shape
    assert difference(decoded, image) <= tolerance


def test_grey_one_bit_and_palette():
    grey = picture(20, 30)[..., 0]
    expected = np.repeat(grey[..., None], 3, -1)
    assert difference(images.decode_image(encode(grey)), expected) == 0
    assert difference(images.decode_image(encode(grey, "JPEG", quality=98)), expected) <= 4

    bits = Image.fromarray(grey > 127)
    assert difference(images.decode_image(encode(bits)), np.where(expected > 127, 255, 0)) == 0

    colours = Image.fromarray(picture(20, 30)).quantize(16)
    expected = np.asarray(colours.convert("RGB"))
    assert difference(images.decode_image(encode(colours)), expected) == 0


def over_white(rgb, alpha):
    a = alpha[..., None] / 255
    return rgb * a + 255 * (1 - a)


def test_alpha_is_composited_on_white():
    rgb, alpha = picture(20, 30), picture(20, 30, seed=1)[..., 0]
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        rgba = np.dstack([rgb, alpha])
        decoded = images.decode_image(encode(rgba, format, **options))
        assert np.abs(decoded - over_white(rgb, alpha)).max() <= 1
    grey_alpha = Image.fromarray(np.dstack([rgb[..., 0], alpha]), mode="LA")
    decoded = images.decode_image(encode(grey_alpha))
    expected = over_white(np.repeat(rgb[..., :1], 3, -1), alpha)
    assert np.abs(decoded - expected).max() <= 1


def test_transparent_palette_entry_and_colour_key_become_white():
    palette = Image.new("P", (4, 2), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    decoded = images.decode_image(encode(palette, transparency=1))
    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert decoded[0, 0].tolist() == [255, 0, 0]

    keyed = np.zeros((2, 2, 3), np.uint8)
    keyed[0, 0] = (1, 2, 3)
    decoded = images.decode_image(encode(keyed, transparency=(1, 2, 3)))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [0, 0, 0]

    grey = np.array([[0, 9]], np.uint8)
    decoded = images.decode_image(encode(grey, transparency=9))
    assert decoded[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def png16(values, colour_type):
    """A 16-bit PNG, written by hand: Pillow writes no 16-bit colour."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    decoded = images.decode_image(png16(values, 0))
    assert np.abs(decoded[..., 0] - values / 257).max() <= 0.5
    assert (decoded == decoded[..., :1]).all()

    colour = np.stack([values, values[::-1], values[:, ::-1]], -1)
    decoded = images.decode_image(png16(colour, 2))
    assert np.abs(decoded - colour / 257).max() <= 1


def test_cmyk_jpeg_keeps_its_colours():
    rgb = picture(32, 32)
    cmyk = Image.fromarray(rgb).convert("CMYK")
    assert difference(images.decode_image(encode(cmyk, "JPEG", quality=98)), rgb) <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = picture(16, 24)
    # How a camera held so stores the upright scene: the inverse of what a viewer does.
    inverse = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(inverse[orientation](upright))
    assert difference(images.decode_image(encode(stored, "PNG", exif=exif)), upright) == 0


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(picture(16, 16, seed)) for seed in range(3)]
    for format in ("WEBP", "PNG"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert difference(images.decode_image(data), np.asarray(frames[0])) == 0


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9])
def test_truncated_files_are_refused(format, kept):
    data = encode(picture(200, 200), format)
    with pytest.raises(ValueError, match=r"\w"):
        images.decode_image(data[: int(kept * len(data))])


def test_other_files_are_refused():
    for data in (b"", b"no picture", encode(picture(8, 8), "BMP"), encode(picture(8, 8), "TIFF")):
        with pytest.raises(ValueError, match=r"empty|not a PNG"):
            images.decode_image(data)


@settings(max_examples=60, deadline=None)
@given(
    format=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    damage=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    ),
)
def test_damage_gives_a_picture_or_a_value_error(format, damage):
    data = bytearray(encode(picture(24, 24), format))
    for place, value in damage:
        data[int(place * len(data))] = value
    try:
        decoded = images.decode_image(bytes(data))
    except ValueError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3


def test_png_damage_in_the_pixels_is_noticed():
    data = bytearray(encode(picture(64, 64)))
    data[len(data) // 2] ^= 0x10
    with pytest.raises(ValueError, match=r"\w"):
        images.decode_image(bytes(data))


@pytest.mark.parametrize(("height", "width", "size"), [(97, 130, 16), (200, 111, 20), (9, 13, 24)])
def test_resize_matches_guided_diffusion(height, width, size):
    """Against `center_crop_arr` of openai/guided-diffusion at commit 22e0df8."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * y, 7 * x + 3 * y, x * x + y], -1).astype(np.uint8)
    golden = np.load(Path(__file__).parents[2] / "golden" / "center_crop.npz")
    expected = golden[f"{height}x{width}_{size}"]
    assert difference(images.resize_and_crop(image, size), expected) == 0


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 9), (9, 1), (64, 64), (65, 64), (300, 200), (3, 5000), (5000, 7)]
)
@pytest.mark.parametrize("size", [1, 16, 64])
def test_every_shape_comes_out_square(shape, size):
    result = images.resize_and_crop(picture(*shape), size)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8


def test_resize_is_antialiased_and_centred():
    checks = np.zeros((512, 512, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 255
    assert np.abs(images.resize_and_crop(checks, 60).astype(int) - 127).max() <= 2
    # A wide picture whose middle square alone is white.
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = 255
    assert images.resize_and_crop(wide, 50)[:, 2:-2].min() == 255
    long = np.zeros((10, 1000, 3), np.uint8)
    long[:, 495:505] = 255
    assert images.resize_and_crop(long, 10).min() == 255


def test_transform_flips_half_and_keeps_only_what_is_named():
    image = picture(40, 40)
    transform = images.image_transform(32, flip=True, keep=("label",))
    still = images.resize_and_crop(image, 32)
    flipped = 0
    for seed in range(200):
        example = {"image": image, "label": 3, "mask": image[..., 0], "path": "a"}
        result = transform(example, np.random.default_rng(seed))
        assert set(result) == {"image", "label"}
        mirrored = (result["image"] == still[:, ::-1]).all()
        assert mirrored or (result["image"] == still).all()
        flipped += mirrored
    assert 70 < flipped < 130
    plain = images.image_transform(32)({"image": image}, np.random.default_rng(0))
    assert (plain["image"] == still).all()
    with pytest.raises(UserError, match="size"):
        images.image_transform(0)


def test_grid_places_pictures_in_reading_order():
    tiles = np.stack([np.full((3, 4, 3), 10 * i, np.uint8) for i in range(5)])
    grid = images.image_grid(tiles, columns=3, padding=1)
    assert grid.shape == (2 * 4 + 1, 3 * 5 + 1, 3)
    for i in range(5):
        row, column = divmod(i, 3)
        assert (grid[1 + 4 * row : 4 + 4 * row, 1 + 5 * column : 5 + 5 * column] == 10 * i).all()
    assert (grid[5:8, 11:15] == 255).all()
    assert (grid[0] == 255).all()
    assert images.image_grid(tiles).shape == (2 * 5 + 2, 3 * 6 + 2, 3)
    assert images.image_grid(tiles[:1], padding=0).shape == (3, 4, 3)
    with pytest.raises(ValueError, match="uint8"):
        images.image_grid(tiles / 255.0)


def test_a_sheet_of_a_flat_picture_stays_small():
    """One pixel high, it would be enlarged 224 times: two beside each other to a billion pixels."""
    flat = np.zeros((2, 1, 2000, 3), np.uint8)
    assert images.contact_sheet([("flat", flat)], min_side=224).size <= 3 * 16e6
    square = np.zeros((2, 56, 56, 3), np.uint8)
    assert images.contact_sheet([("", square)], min_side=224).shape == (4 * 60 + 20, 4 * 118, 3)


def test_written_png_reads_back_with_its_text(tmp_path):
    image = picture(20, 30)
    path = tmp_path / "new folder" / "sample.png"
    named = os.fsdecode(b"caf\xe9.png")
    told = {"prompt": "ein Hügel, 丘 🏔", "seed": "7", "image": named, "text": "\ud800"}
    images.write_png(path, image, told)
    with Image.open(path) as written:
        assert written.text == told | {"image": r"caf\xe9.png", "text": r"\ud800"}
        assert (np.asarray(written) == image).all()
    images.write_png(path, image[..., 0])
    assert (images.decode_image(path.read_bytes())[..., 0] == image[..., 0]).all()
    with pytest.raises(ValueError, match="uint8"):
        images.write_png(path, image.astype(np.float32))
    assert [p.name for p in path.parent.iterdir()] == ["sample.png"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "sample.png"
    images.write_png(path, picture(8, 8))
    before = path.read_bytes()

    def fail(self, file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="space"):
        images.write_png(path, picture(8, 8, seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_is_a_file_or_pixels(tmp_path):
    rgb, alpha = picture(20, 30), picture(20, 30, seed=1)[..., 0]
    rgba = np.dstack([rgb, alpha])
    for name, pixels in (("rgb.png", rgb), ("rgba.png", rgba), ("grey.png", alpha)):
        path = tmp_path / name
        path.write_bytes(encode(pixels))
        for read in (images.read_image, images.read_rgba):
            np.testing.assert_array_equal(read(pixels), read(path))
            np.testing.assert_array_equal(read(pixels), read(str(path)))
        np.testing.assert_array_equal(
            images.on_white(images.read_rgba(path)), images.decode_image(path.read_bytes())
        )
    np.testing.assert_array_equal(images.read_rgba(rgba), rgba)
    assert (images.read_rgba(rgb)[..., 3] == 255).all()


def test_transparency_is_read_where_a_file_has_it(tmp_path):
    path = tmp_path / "keyed.png"
    path.write_bytes(encode(np.array([[0, 9]], np.uint8), transparency=9))
    assert images.read_rgba(path)[0, :, 3].tolist() == [255, 0]
    deep = Image.fromarray(np.array([[0, 600]], np.uint16))
    deep.save(path, transparency=600)
    assert images.read_rgba(path)[0, :, 3].tolist() == [255, 0]
    assert images.read_image(path)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 [4, 4, 3]"),
        (np.zeros((4, 4, 2), np.uint8), "uint8 [4, 4, 2]"),
        (np.zeros((2, 4, 4, 3), np.uint8), "uint8 [2, 4, 4, 3]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros(7, np.uint8), "uint8 [7]"),
    ],
)
def test_pixels_that_are_no_picture_are_refused(pixels, told):
    for read in (images.read_image, images.read_rgba):
        with pytest.raises(UserError, match=re.escape(told)):
            read(pixels)


def test_random_squares_lie_within_and_have_the_share_asked_for():
    """Every pixel tells where it was: squares are cut without resizing."""
    rows, columns = np.mgrid[:40, :60]
    image = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)
    rng = np.random.default_rng(0)
    whole = images.random_square(image, 40, 1.0, rng)
    np.testing.assert_array_equal(whole[:, 0, 0], np.arange(40))
    assert len({int(images.random_square(image, 40, 1.0, rng)[0, 0, 1]) for _ in range(30)}) > 5
    sides = []
    for _ in range(50):
        square = images.random_square(image, 30, 0.5625, rng).astype(int)
        assert square.shape == (30, 30, 3)
        sides.append(square[-1, 0, 0] - square[0, 0, 0] + 1)
    assert 29 <= min(sides) < 33
    assert 37 < max(sides) <= 40
