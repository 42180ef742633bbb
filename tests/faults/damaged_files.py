"""What `mutations.py` reads: sound files of each kind, damaged at random."""

import functools
import io
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch_form
from filled import random_variables
from PIL import Image
from stand_ins import tar_bytes
from torch_form import PROTO, STOP

from sfrik_jax import models, weights
from sfrik_jax.data import decode
from sfrik_jax.data.builders import archives
from sfrik_jax.data.tfds_source import TfdsSource
from sfrik_jax.weights.files import IMAGENET

ARCH, WIDTH, STEM = "resnet14", 4, "small"
ABOUT = {"arch": ARCH, "width": WIDTH, "stem": STEM, "preprocessing": IMAGENET}


def damaged(rng: np.random.Generator, content: bytes, *, head: int) -> bytes:
    """A few bytes changed, taken out, put in, or moved; mostly in the first `head`."""
    data = bytearray(content)
    end = head if rng.random() < 0.8 else len(data)
    for _ in range(rng.integers(1, 4)):
        at, other = rng.integers(end, size=2)
        count = int(rng.integers(1, 9))
        match rng.integers(6):
            case 0:
                data[at] ^= 1 << rng.integers(8)
            case 1:
                data[at : at + count] = rng.bytes(count)
            case 2:
                del data[at : at + count]
            case 3:
                data[at:at] = rng.bytes(count)
            case 4:
                data[at : at + count] = data[other : other + count]
            case 5:
                del data[at:]
        end = min(end, len(data))
        if not end:
            break
    return bytes(data)


@functools.cache
def small_variables() -> Any:
    """Variables of a small network, random."""
    model = models.BACKBONES[ARCH](width=WIDTH, stem=STEM)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return random_variables(shapes)


@functools.cache
def small_state() -> dict[str, np.ndarray]:
    """The same by PyTorch's names."""
    return weights.to_torch(small_variables(), ARCH)


class DamagedFile:
    """One kind of file: made damaged, then read by the reader of this project.

    Attributes:
      path: of the file. canary: what code in it would make.
    """

    name = "damaged"

    def __init__(self, folder: Path) -> None:
        self.path, self.canary = folder / self.name, folder / "canary"

    def warm_up(self) -> None:
        """Reads a sound file, so that what is loaded for it counts for no other."""
        self.path.write_bytes(self.sound())
        self.read()

    def make(self, seed: int, number: int) -> None:
        """Writes file `number` of the seed."""
        rng = np.random.default_rng((seed, number))
        self.path.write_bytes(self.damage(rng))

    def sound(self) -> bytes:
        raise NotImplementedError

    def damage(self, rng: np.random.Generator) -> bytes:
        content = self.sound()
        return damaged(rng, content, head=min(len(content), 600))

    def read(self) -> None:
        raise NotImplementedError


class TorchFile(DamagedFile):
    """A zip file of PyTorch; a third of them hold a pickle that would run code."""

    name = "damaged.pth"

    def sound(self) -> bytes:
        return torch_form.saved(small_state())

    def damage(self, rng: np.random.Generator) -> bytes:
        if rng.random() < 0.3:
            return damaged(rng, self.sound(), head=20_000)
        # With sound check sums, so that the pickle itself is read.
        instructions, members = torch_form.described(small_state())
        payload = b""
        if rng.random() < 0.5:
            live = torch_form.live_payloads(self.canary)
            payload = live[sorted(live)[rng.integers(len(live))]] + b"0"
        pickled = PROTO + payload + instructions + STOP
        # A live one is left alone by turns, so that it stays live.
        if not payload or rng.random() < 0.5:
            pickled = damaged(rng, pickled, head=len(pickled))
        return torch_form.file_of(pickled, members)

    def read(self) -> None:
        check_weights(self.path)


class SafetensorsFile(DamagedFile):
    name = "damaged.safetensors"

    def warm_up(self) -> None:
        weights.save(self.path, small_variables(), ABOUT)
        self.sound()
        self.read()

    def sound(self) -> bytes:
        return whole_file(str(self.path))

    def damage(self, rng: np.random.Generator) -> bytes:
        content = self.sound()
        (size,) = np.frombuffer(content[:8], "<u8")
        return damaged(rng, content, head=8 + int(size))

    def read(self) -> None:
        check_weights(self.path)


def check_weights(path: Path) -> None:
    """What is read is a whole network of finite numbers."""
    found = weights.open_file(path)
    for leaf in jax.tree.leaves(found.variables):
        assert leaf.dtype == np.float32 and np.isfinite(leaf).all()
    assert found.backbone == models.BACKBONES[found.arch](
        width=found.width, stem=found.stem
    )


class Picture(DamagedFile):
    """A picture of 40 x 40 pixels, decoded whole, at reduced size and cropped."""

    kind = "JPEG"

    def sound(self) -> bytes:
        return encoded(self.kind)

    def read(self) -> None:
        data = self.path.read_bytes()
        pixels = decode.decode_rgb(data)
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
        picture = decode.Picture(data)
        assert pixels.shape == (picture.height, picture.width, 3)
        whole = (0, 0, picture.height, picture.width)
        (crop,) = picture.crops([whole], [8], ["fast"])
        assert crop.shape == (8, 8, 3)


@functools.cache
def encoded(kind: str) -> bytes:
    y, x = np.mgrid[:40, :40][..., None]
    pixels = 127 + 80 * np.sin(x / 5 + np.array([0, 1, 2])) + 40 * np.cos(y / 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def picture(kind: str) -> type[Picture]:
    return type(kind, (Picture,), {"kind": kind, "name": f"damaged.{kind.lower()}"})


class Records(DamagedFile):
    """A record file of a prepared set; each record that is read is an original one."""

    name = "prepared/tiny/1.0.0/tiny-train.array_record-00000-of-00001"
    count = 8

    def warm_up(self) -> None:
        if not self.path.is_file():
            self._prepare()
        self.read()

    def sound(self) -> bytes:
        return whole_file(str(self.path))

    def damage(self, rng: np.random.Generator) -> bytes:
        content = self.sound()
        # The index is at the end.
        turned = damaged(rng, content[::-1], head=600)[::-1]
        return turned if rng.random() < 0.3 else damaged(rng, content, head=600)

    def read(self) -> None:
        source = TfdsSource("tiny", str(self.path.parents[2]), "train")
        for i in range(len(source)):
            image, label = source.example(i)
            assert label is not None and image == encoded_number(label)

    def _prepare(self) -> None:
        import tensorflow_datasets as tfds

        from sfrik_jax.data.builders import records

        label = tfds.features.ClassLabel(num_classes=self.count)
        features = tfds.features.FeaturesDict(
            {"image": tfds.features.Image(), "label": label}
        )
        folder = self.path.parent
        folder.mkdir(parents=True)
        info: Any = types.SimpleNamespace(name="tiny", features=features)
        examples = ({"image": encoded_number(k), "label": k} for k in range(self.count))
        split = records.write_split(info, folder, "train", examples, size=1)
        tfds.folder_dataset.write_metadata(
            data_dir=str(folder),
            features=features,
            split_infos=[split],
            filename_template=split.filename_template,
            check_data=False,  # which takes TensorFlow
        )


@functools.cache
def whole_file(path: str) -> bytes:
    """The bytes of a file, before it was damaged."""
    return Path(path).read_bytes()


@functools.cache
def encoded_number(number: int) -> bytes:
    """A PNG file of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


class TarFile(DamagedFile):
    """An archive of a data set, plain or compressed; nothing leaves its folder."""

    name = "damaged.tar"
    mode = "w"

    def sound(self) -> bytes:
        files = [("d/a.bin", bytes(range(256)) * 4), ("b.bin", b"x" * 3000)]
        return tar_bytes(files, self.mode)

    def damage(self, rng: np.random.Generator) -> bytes:
        content = self.sound()
        return damaged(rng, content, head=min(len(content), 3000))

    def read(self) -> None:
        with archives.opened(self.path) as tar:
            for _, member in archives.files(tar, self.path, 10_000):
                assert len(archives.read(tar, member, self.path)) == member.size


class GzippedTar(TarFile):
    name = "damaged.tar.gz"
    mode = "w:gz"


KINDS: dict[str, type[DamagedFile]] = {
    "pth": TorchFile,
    "safetensors": SafetensorsFile,
    "jpeg": picture("JPEG"),
    "png": picture("PNG"),
    "webp": picture("WEBP"),
    "gif": picture("GIF"),
    "bmp": picture("BMP"),
    "tiff": picture("TIFF"),
    "ppm": picture("PPM"),
    "records": Records,
    "tar": TarFile,
    "tar.gz": GzippedTar,
}
