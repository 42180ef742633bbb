"""Each form of picture decodes to the same bytes for ever, or is told to be bad."""

import hashlib
import io
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfrik_jax.data import decode, sources, views
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.errors import BadPictureError, ConfigError

PICTURES = Path(__file__).parent / "pictures"
# Height, width, and the first half of the SHA-256 of the bytes that come out.
GOLDEN = {
    "1_high_3000_wide.png": (1, 3000, "ea48736a8e33ade1"),
    "3000_high_1_wide.jpg": (3000, 1, "2fce5d3cdfd185be"),
    "cmyk.jpg": (8, 12, "44e0be2392d30e7e"),
    "gif_named.jpg": (8, 12, "35adf4d0d981391b"),
    "grey.jpg": (8, 12, "ae19379b9fa91f0e"),
    "grey.png": (8, 12, "7fc32959f6a09b89"),
    "grey_16_bits.png": (8, 12, "54d840dcf9f8ca32"),
    "grey_alpha.png": (8, 12, "7fc32959f6a09b89"),
    "one_pixel.png": (1, 1, "039058c6f2c0cb49"),
    "palette.png": (8, 12, "074144a47a3d9cbc"),
    "palette_transparent.png": (8, 12, "074144a47a3d9cbc"),
    "png_named.jpg": (8, 12, "35adf4d0d981391b"),
    "rgb.bmp": (8, 12, "35adf4d0d981391b"),
    "rgb.gif": (8, 12, "35adf4d0d981391b"),
    "rgb.jpg": (8, 12, "43698f64c71a889b"),
    "rgb.ppm": (8, 12, "35adf4d0d981391b"),
    "rgb.tif": (8, 12, "35adf4d0d981391b"),
    "rgb.webp": (8, 12, "35adf4d0d981391b"),
    "rgb_16_bits.png": (8, 12, "d1601753c710260f"),
    "rgba.png": (8, 12, "35adf4d0d981391b"),
    "turned_by_exif.jpg": (12, 8, "325c60e8e4830f4d"),
    "turned_by_exif.png": (12, 8, "ec15bc2b4d4f9e8c"),
    "two_frames.gif": (8, 12, "35adf4d0d981391b"),
    "two_frames.webp": (8, 12, "35adf4d0d981391b"),
    "two_levels.png": (8, 12, "cc94491e76ea88e0"),
    "two_pictures.jpg": (8, 12, "7cd15e4bd8a37829"),
    "webp_named.jpg": (8, 12, "35adf4d0d981391b"),
}


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo():
    """A picture of 96 x 128 pixels whose JPEG has a body of some kilobytes."""
    y, x = np.mgrid[:96, :128][..., None]
    noise = np.random.default_rng(0).normal(0, 20, (96, 128, 3))
    waves = 80 * np.sin(x / 5 + [0, 1, 2]) + 60 * np.cos(y / [9, 4, 6])
    return Image.fromarray((127 + waves + noise).clip(0, 255).astype(np.uint8))


def broken(whole: bytes) -> dict[str, bytes]:
    return {
        "zero-byte": b"",
        "garbage": np.random.default_rng(0).bytes(3_000),
        "html": b"<!doctype html><html><body>404 Not Found</body></html>",
        "half": whole[: len(whole) // 2],
        "without the last two bytes": whole[:-2],
    }


@pytest.mark.parametrize("what", broken(b""))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_i1_a_broken_file_is_bad_however_it_is_read(photo, kind, what):
    data = broken(encode(photo, kind))[what]
    for read in (
        lambda: decode.decode_rgb(data, "x"),
        lambda: decode.Picture(data, "x").crops([(0, 0, 96, 128)], [8], ["fast"]),
        lambda: decode.resize_center_crop(data, 16, 16, "bilinear", "x"),
    ):
        with pytest.raises(BadPictureError) as raised:
            read()
        error = raised.value
        assert (error.id, error.code) == ("x", 65)
        assert error.line == f"SFRIK-DATA-BAD id=x reason={error.reason}"
        assert error.reason.startswith("cannot be decoded (")
        assert "0x" not in error.reason  # an address would differ from run to run


def test_i1_a_finding_is_one_line_whatever_the_name_of_the_file():
    error = BadPictureError("a b\nc.jpg", "line\none")
    assert error.line == r'SFRIK-DATA-BAD id="a b\nc.jpg" reason=line one'


@pytest.mark.parametrize("name", GOLDEN)
def test_i2_each_form_of_picture_decodes_as_it_always_did(name):
    pixels = decode.decode_rgb((PICTURES / name).read_bytes(), name)
    height, width, digest = GOLDEN[name]
    assert (pixels.shape, pixels.dtype) == ((height, width, 3), np.uint8)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == digest


def test_i2_no_form_of_picture_is_left_out_of_the_table():
    assert {path.name for path in PICTURES.iterdir()} == {*GOLDEN, "README.md"}


@pytest.mark.parametrize("resample", ["exact", "fast"])
def test_i2_every_form_of_picture_makes_views(tmp_path, resample):
    for path in PICTURES.glob("*.*g"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = sources.FolderSource(tmp_path)
    pair = views.build(16, recipe="vicreg")
    loader = TrainLoader(
        source, pair, batch_size=len(source), seed=0, resample=resample
    )
    (made,) = loader.batch(0)["views"]
    assert made.shape == (len(source), 2, 16, 16, 3)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "JPEG2000"])
def test_i2_other_formats_are_refused_without_being_opened(photo, kind):
    data = encode(photo, kind)
    with pytest.raises(BadPictureError, match="not a picture in BMP, GIF, JPEG, PNG"):
        decode.decode_rgb(data, "x.jpg")


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bombs(photo) -> dict[str, bytes]:
    jpeg = bytearray(encode(photo, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    # An animation's canvas: its size less one, three bytes each, after eight of VP8X.
    webp = bytearray((PICTURES / "two_frames.webp").read_bytes())
    canvas = webp.index(b"VP8X") + 12
    webp[canvas : canvas + 6] = 2 * (16_383).to_bytes(3, "little")
    rows = zlib.compress(bytes(12_000 * 1_501), 9)
    return {
        "tiny.png": png(30_000, 30_000, zlib.compress(b"", 9)),
        "patched.jpg": bytes(jpeg),
        "whole.png": png(12_000, 12_000, rows),
        "canvas.webp": bytes(webp),
    }


MEASURED = """
    import resource, sys
    from sfrik_jax.data import decode
    from sfrik_jax.errors import BadPictureError

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    path, small = sys.argv[1:]
    data = open(path, "rb").read()
    decode.resized_crop(open(small, "rb").read(), (0, 0, 8, 12), 8, "fast")
    before = peak()
    for use in (
        lambda: decode.decode_rgb(data),
        lambda: decode.resized_crop(data, (0, 0, 99, 99), 32, "fast"),
        lambda: decode.resized_crop(data, (0, 0, 99, 99), 32, "bicubic"),
        lambda: decode.resize_center_crop(data, 64, 64, "bilinear"),
    ):
        try:
            use()
        except BadPictureError as error:
            print(error.reason)
    print(peak() - before)
"""


@pytest.mark.parametrize(
    "name", ["tiny.png", "patched.jpg", "whole.png", "canvas.webp"]
)
def test_i3_a_bomb_is_refused_from_its_header(tmp_path, photo, name):
    """By each way of reading, within 50 MB; the pixels would take 144 MB and more."""
    (tmp_path / name).write_bytes(bombs(photo)[name])
    words = [str(tmp_path / name), str(PICTURES / "rgb.jpg")]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURED), *words],
        cwd=PICTURES.parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")
    *reasons, growth = run.stdout.splitlines()
    assert len(reasons) == 4
    assert all("pixels are more than 50 million" in reason for reason in reasons)
    assert float(growth) < 50


def test_i4_a_flipped_bit_in_the_body_of_a_jpeg_decodes_or_is_bad(photo):
    whole = encode(photo, "JPEG", quality=90)
    body = whole.index(b"\xff\xda") + 14
    rng, decoded = np.random.default_rng(0), 0
    for place in rng.integers(body, len(whole) - 2, 200):
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        try:
            assert decode.decode_rgb(bytes(data)).shape == (96, 128, 3)
            decoded += 1
        except BadPictureError:
            pass
    assert decoded > 150


@pytest.mark.parametrize(
    "box", [(0, 0, 97, 4), (0, 0, 4, 129), (-1, 0, 4, 4), (0, 125, 4, 4), (3, 3, 0, 4)]
)
@pytest.mark.parametrize("method", ["bicubic", "fast"])
def test_a_box_outside_the_picture_is_refused(photo, box, method):
    for item in (encode(photo, "JPEG"), np.asarray(photo)):
        with pytest.raises(ConfigError, match="not within picture, 96 high and 128"):
            decode.resized_crop(item, box, 8, method)
