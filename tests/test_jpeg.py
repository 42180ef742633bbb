"""JPEG files decode to Pillow's bytes, whichever library does it."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from sfrik_jax.data import decode, jpeg
from sfrik_jax.errors import CorruptInputError

SIZES = [(1, 1), (7, 9), (33, 17), (64, 48), (127, 90)]
# What files in the wild differ in.
KINDS = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "progressive": {"progressive": True, "subsampling": "4:2:0"},
    "restarts": {"restart_marker_rows": 1},
    "coarse": {"quality": 3},
    "fine": {"quality": 100, "optimize": True},
    "RGB in an Adobe file": {"keep_rgb": True},
    "metadata": {"icc_profile": bytes(900), "comment": b"a", "dpi": (300, 300)},
}
GREY = ("progressive", "restarts", "coarse", "fine", "metadata")


@pytest.fixture(scope="module")
def texture():
    """Waves and noise, 127 x 90 px: colours that filters of the chroma would show."""
    y, x = np.mgrid[:90, :127][..., None]
    noise = np.random.default_rng(0).normal(0, 20, (90, 127, 3))
    waves = 80 * np.sin(x / 5 + [0, 1, 2]) + 60 * np.cos(y / [9, 4, 6])
    return Image.fromarray((127 + waves + noise).clip(0, 255).astype(np.uint8))


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pillow(data, reduce=1):
    image = Image.open(io.BytesIO(data))
    image.draft(image.mode, (image.width // reduce, image.height // reduce))
    return np.asarray(image)


@pytest.mark.parametrize(
    "mode, kind", [*(("RGB", kind) for kind in KINDS), *(("L", kind) for kind in GREY)]
)
def test_the_bytes_are_pillows(texture, mode, kind):
    for width, height in SIZES:
        picture = texture.crop((0, 0, width, height)).convert(mode)
        data = encode(picture, **KINDS[kind])
        got = jpeg.decode(
            data, height, width, grey=mode == "L", reduce=1, scratch=False
        )
        assert got is not None
        np.testing.assert_array_equal(got.squeeze(), pillow(data).squeeze())
        want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(decode.decode_rgb(data), want)


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_the_bytes_are_pillows_in_rare_subsamplings(texture, subsampling):
    data = simplejpeg.encode_jpeg(np.array(texture), colorsubsampling=subsampling)
    np.testing.assert_array_equal(decode.decode_rgb(data), pillow(data))


@pytest.mark.parametrize("reduce", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_reduced_bytes_are_pillows(texture, kind, reduce):
    data = encode(texture, **KINDS[kind])
    got = jpeg.decode(data, 90, 127, grey=False, reduce=reduce, scratch=False)
    np.testing.assert_array_equal(got, pillow(data, reduce))


def test_a_reduction_leaves_what_is_asked_for():
    assert [jpeg.reduction(room) for room in (1, 2, 3, 4, 7, 8, 100)] == [
        1,
        2,
        2,
        4,
        4,
        8,
        8,
    ]


def test_what_turbojpeg_complains_of_is_left_to_pillow(texture):
    whole = encode(texture)
    for data in (whole[:-2], whole[: len(whole) // 2], whole[:4], b""):
        assert jpeg.decode(data, 90, 127, grey=False, reduce=1, scratch=True) is None
    # A header that was read differently must not pass for the picture.
    assert jpeg.decode(whole, 90, 126, grey=False, reduce=1, scratch=True) is None


@pytest.mark.parametrize("adobe", [True, False])
def test_four_bands_are_left_to_pillow(texture, monkeypatch, adobe):
    monkeypatch.setattr(jpeg, "decode", None)
    data = encode(texture.convert("CMYK"))
    if not adobe:  # without this segment the values are not inverted
        start = data.index(b"\xff\xee")
        data = data[:start] + data[start + 16 :]
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode.decode_rgb(data), want)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_turned_files_are_left_to_pillow(texture, monkeypatch, orientation):
    if orientation != 1:
        monkeypatch.setattr(jpeg, "decode", None)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(texture, exif=exif)
    turns = {1: 0, 3: 2, 6: -1}[orientation]
    want = np.rot90(pillow(data), turns)
    np.testing.assert_array_equal(decode.decode_rgb(data), want)
    box = (3, 5, 40, 60)
    np.testing.assert_array_equal(
        decode.resized_crop(data, box, 32, "bicubic"),
        decode.resized_crop(want, box, 32, "bicubic"),
    )


def test_memory_that_is_used_again_is_not_handed_out(texture):
    data = encode(texture), encode(texture.rotate(180))
    boxes, sizes = [(0, 0, 90, 127), (9, 9, 32, 32)], [32, 32]
    for methods in (["bicubic"] * 2, ["fast"] * 2):
        first = decode.Picture(data[0]).crops(boxes, sizes, methods)
        kept = [crop.copy() for crop in first]
        decode.Picture(data[1]).crops(boxes, sizes, methods)
        np.testing.assert_array_equal(first, kept)
    whole = decode.Picture(data[0]).resize_center_crop(90, 90, "bilinear")
    kept = whole.copy()
    decode.Picture(data[1]).resize_center_crop(90, 90, "bilinear")
    np.testing.assert_array_equal(whole, kept)


def test_random_damage_has_pillows_outcome(texture):
    """Whatever breaks: Pillow's pixels, or an error where Pillow has one."""
    rng = np.random.default_rng(0)
    files = [encode(texture.crop((0, 0, 60, 40)), **KINDS[kind]) for kind in KINDS]
    outcomes = []
    for number in range(900):
        data = bytearray(files[number % len(files)])
        for place in rng.integers(2, len(data), 1 + number % 3):
            data[place] = rng.integers(256)
        data = bytes(data[: len(data) - number % 5 // 4])
        try:
            want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except Exception:
            want = None
        try:
            got = decode.decode_rgb(data)
        except CorruptInputError:
            got = None
        np.testing.assert_array_equal(got, want)
        outcomes.append(got is None)
    assert 100 < sum(outcomes) < 800
