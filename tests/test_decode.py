"""Decoding, cropping and resizing against Pillow's and torchvision's results."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sfrik_jax.data import decode, photos
from sfrik_jax.data.views import build, crop_boxes
from sfrik_jax.errors import ConfigError, CorruptInputError


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.fixture
def photo():
    """A smooth colour picture with some texture, [120, 160, 3]."""
    y, x = np.mgrid[:120, :160]
    waves = [np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 11), np.cos(x * y / 900)]
    return (127 + 50 * np.stack(waves, axis=-1)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 64])
def test_resized_crop_is_the_original_implementations(reference, method, size):
    arrays = reference("augment")
    for k, box in enumerate(arrays["boxes"]):
        want = arrays[f"resized_crop.{method}.{size}.box{k}"]
        got = decode.resized_crop(arrays["image"], box, size, method)
        np.testing.assert_array_equal(got, want)
        png = encode(Image.fromarray(arrays["image"]))
        np.testing.assert_array_equal(decode.resized_crop(png, box, size, method), want)


def test_resize_and_centre_crop_is_the_original_implementations(reference):
    arrays = reference("augment")
    got = decode.resize_center_crop(arrays["image"], 256, 224, "bilinear")
    np.testing.assert_array_equal(got, arrays["resize256_center224"])


def test_an_image_of_the_right_size_is_left_alone(photo):
    square = photo[:96, :96]
    got = decode.resize_center_crop(square, 96, 96, "bilinear")
    np.testing.assert_array_equal(got, square)


def test_a_centre_crop_larger_than_the_image_is_refused(photo):
    with pytest.raises(ConfigError, match=r"eval.image_size=64 .* eval.resize=32"):
        decode.resize_center_crop(photo, 32, 64, "bilinear")


def test_an_unknown_method_is_refused(photo):
    with pytest.raises(ConfigError, match="choose one of"):
        decode.resized_crop(photo, (0, 0, 9, 9), 8, "lanczos")


def test_jpeg_decodes_as_pillow_does(photo):
    data = encode(Image.fromarray(photo), "JPEG")
    want = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode.decode_rgb(data), want)


def test_grey_pictures_have_three_equal_channels(photo):
    grey = photo[..., 0]
    want = np.repeat(grey[..., None], 3, axis=2)
    for item in (grey, grey[..., None], encode(Image.fromarray(grey))):
        np.testing.assert_array_equal(decode.decode_rgb(item), want)
    box = (3, 5, 70, 90)
    np.testing.assert_array_equal(
        decode.resized_crop(grey[..., None], box, 32, "bicubic"),
        decode.resized_crop(want, box, 32, "bicubic"),
    )


def test_sixteen_bits_keep_their_high_byte(photo):
    deep = photo[..., 0].astype(np.uint16) * 256 + 77
    for kind in ("PNG", "TIFF"):
        got = decode.decode_rgb(encode(Image.fromarray(deep), kind))
        np.testing.assert_array_equal(got[..., 1], photo[..., 0])


def test_transparency_is_dropped(photo):
    alpha = np.full((*photo.shape[:2], 1), 7, np.uint8)
    data = encode(Image.fromarray(np.concatenate([photo, alpha], axis=2)))
    np.testing.assert_array_equal(decode.decode_rgb(data), photo)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "CMYK"])
def test_other_modes_become_rgb(photo, mode):
    image = Image.fromarray(photo).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    got = decode.decode_rgb(encode(image, kind))
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


def test_a_palette_with_transparency_decodes_without_a_warning(photo):
    image = Image.fromarray(photo).convert("P")
    got = decode.decode_rgb(encode(image, transparency=bytes(range(256))))
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "TIFF", "PPM", "PNG"])
def test_every_format_gives_height_width_rgb(photo, kind):
    got = decode.decode_rgb(encode(Image.fromarray(photo), kind))
    assert got.shape == photo.shape
    assert got.dtype == np.uint8
    assert abs(got.astype(int) - photo).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(photo), "PNG", exif=exif)
    turned = decode.Picture(data)
    image = decode.decode_rgb(data)
    assert image.shape == (turned.height, turned.width, 3)
    upright = {
        1: photo,
        2: photo[:, ::-1],
        3: photo[::-1, ::-1],
        4: photo[::-1],
        5: photo.transpose(1, 0, 2),
        6: np.rot90(photo, -1),
        7: np.rot90(photo, 2).transpose(1, 0, 2),
        8: np.rot90(photo),
    }
    np.testing.assert_array_equal(image, upright[orientation])


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_extreme_shapes_resize(size):
    data = encode(Image.new("RGB", size, (9, 8, 7)))
    assert decode.decode_rgb(data).shape == (size[1], size[0], 3)
    crop = decode.resized_crop(data, (0, 0, size[1], size[0]), 8, "bicubic")
    assert (crop == (9, 8, 7)).all()


def damaged(photo):
    jpeg, png = (encode(Image.fromarray(photo), kind) for kind in ("JPEG", "PNG"))
    return {
        "empty": b"",
        "garbage": bytes(range(256)),
        "page": b"<!doctype html><html></html>",
        "half a jpeg": jpeg[: len(jpeg) // 2],
        "jpeg without its last two bytes": jpeg[:-2],
        "half a png": png[: len(png) // 2],
        "png with a bad checksum": png[:60] + bytes([png[60] ^ 255]) + png[61:],
    }


@pytest.mark.parametrize("what", damaged(np.zeros((64, 64, 3), np.uint8)))
def test_i1_damage_is_told_with_the_name_of_the_picture(photo, what):
    data = damaged(photo)[what]
    with pytest.raises(
        CorruptInputError, match=r"id=cats/7\.jpg reason=cannot be decoded"
    ):
        decode.decode_rgb(data, "cats/7.jpg")


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(8)


@pytest.mark.parametrize("side", [7_072, 12_000, 30_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_i3_a_picture_of_too_many_pixels_is_refused_from_its_header(side):
    with pytest.raises(CorruptInputError, match=r"cannot be decoded \(.*pixels"):
        decode.Picture(png_header(side, side))


# Pillow warns of odd tags in TIFF files before it gives up.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_i1_random_damage_raises_nothing_else(photo):
    rng = np.random.default_rng(0)
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
    files = [encode(Image.fromarray(photo[:40, :40]), kind) for kind in kinds]
    refused = 0
    for _ in range(60):
        for file in files:
            data = bytearray(file[: rng.integers(4, len(file) + 1)])
            for place in rng.integers(0, len(data), 6):
                data[place] = rng.integers(256)
            try:
                assert decode.decode_rgb(bytes(data)).shape[2] == 3
            except CorruptInputError:
                refused += 1
    assert refused > 100


def test_fast_is_bicubic_at_reduced_size(photo):
    big = Image.fromarray(photo).resize((1280, 960), Image.Resampling.BICUBIC)
    data = encode(big, "JPEG", quality=95)
    for box in [(0, 0, 960, 1280), (100, 200, 600, 500), (700, 900, 260, 380)]:
        exact = decode.resized_crop(data, box, 64, "bicubic").astype(int)
        fast = decode.resized_crop(data, box, 64, "fast").astype(int)
        assert abs(exact - fast).mean() < 1.5
    exact = decode.resize_center_crop(data, 72, 64, "bicubic").astype(int)
    fast = decode.resize_center_crop(data, 72, 64, "fast").astype(int)
    assert abs(exact - fast).mean() < 1.5


@pytest.mark.parametrize(
    "width, size, mean, percentile",
    [(500, 224, 0.7, 5), (500, 96, 1.2, 14), (1000, 224, 0.5, 6)],
)
def test_fast_is_near_bicubic_on_photographs(width, size, mean, percentile):
    # Measured: 0.55 and 4, 0.97 and 12, 0.31 and 4 grey levels.
    views, index = build(size, recipe="vicreg"), np.arange(8)
    gaps = []
    for name in ("astronaut", "cat", "coffee", "motorcycle"):
        photo = photos.photograph(name)
        height = width * photo.height // photo.width
        data = encode(photo.resize((width, height)), "JPEG", quality=90)
        shape = np.full(8, height), np.full(8, width)
        boxes = [
            crop_boxes(*shape, view, seed=0, epoch=0, index=index, view_id=k)
            for k, view in enumerate(views)
        ]
        for pair in zip(*boxes, strict=True):
            fast, exact = (
                np.array(decode.Picture(data).crops(pair, [size] * 2, [method] * 2))
                for method in ("fast", "bicubic")
            )
            gaps.append(abs(fast.astype(np.int16) - exact).ravel())
    gaps = np.concatenate(gaps)
    assert gaps.mean() < mean
    assert np.percentile(gaps, 99) <= percentile


def test_fast_is_bicubic_on_arrays_too(photo):
    """Shrunk to less than half, enlarged, grey, and in a layout of its own."""
    for item in (photo, photo[..., 0], np.asfortranarray(photo)):
        for size in (30, 64, 200):
            exact, fast = (
                decode.resized_crop(item, (7, 9, 100, 140), size, method).astype(int)
                for method in ("bicubic", "fast")
            )
            assert fast.shape == (size, size, 3)
            assert abs(exact - fast).mean() < 1


@pytest.mark.parametrize("box, shape", [((40, 40), (120, 160)), ((70, 64), (60, 80))])
def test_fast_never_enlarges_what_it_reduced(photo, box, shape):
    # A box of 40 px asks for 32: there is no room for a reduction by two.
    picture = decode.Picture(encode(Image.fromarray(photo), "JPEG", quality=95))
    room = decode._room([(0, 0, 120, 160), (5, 5, *box)], [32, 32])
    assert picture._pixels(room).shape == (*shape, 3)
