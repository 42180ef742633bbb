"""Small archives with the layout of the published ones."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n01484850", "n13133613")
PER_CLASS = 20
VALIDATION = 12


def encoded(seed: int, *, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """A file of 32 x 32 pixels."""
    bands = len(mode)
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, bands), np.uint8)
    pixels = small.repeat(8, 0).repeat(8, 1)
    buffer = io.BytesIO()
    Image.frombytes(mode, (32, 32), pixels.tobytes()).save(buffer, kind)
    return buffer.getvalue()


def tar_bytes(files: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # pyright: ignore
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def imagenet_pictures() -> dict[str, dict[str, bytes]]:
    """Split → file name → bytes; one train file is CMYK and one is a PNG."""
    train = {
        # Numbers that are not padded: as strings, _10 comes before _9.
        f"{wnid}_{number + 2}.JPEG": encoded(1000 * label + number)
        for label, wnid in enumerate(WNIDS)
        for number in range(PER_CLASS)
    }
    train[f"{WNIDS[0]}_2.JPEG"] = encoded(1, mode="CMYK")
    train[f"{WNIDS[1]}_2.JPEG"] = encoded(2, kind="PNG")
    validation = {
        f"ILSVRC2012_val_{number + 1:08d}.JPEG": encoded(9000 + number)
        for number in range(VALIDATION)
    }
    return {"train": train, "validation": validation}


def write_imagenet(folder: Path, train: dict[str, bytes] | None = None) -> None:
    """The two tar files, of `imagenet_pictures` or of other train pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = imagenet_pictures()
    classes: dict[str, list[tuple[str, bytes]]] = {}
    for name, data in (train or pictures["train"]).items():
        classes.setdefault(name[:9], []).append((name, data))
    (folder / "ILSVRC2012_img_train.tar").write_bytes(
        tar_bytes((f"{wnid}.tar", tar_bytes(files)) for wnid, files in classes.items())
    )
    (folder / "ILSVRC2012_img_val.tar").write_bytes(
        tar_bytes(pictures["validation"].items())
    )


Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


def write_binary(folder: Path, name: str) -> Arrays:
    """The archive of cifar10, cifar100 or stl10: split → images and labels.

    Images are uint8 [N, H, W, 3]; labels start at 0, and are -1 where there is none.
    """
    files, made = _stl10() if name == "stl10" else _cifar(name)
    inside, archive = {
        "stl10": ("stl10_binary", "stl10_binary.tar.gz"),
        "cifar10": ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        "cifar100": ("cifar-100-binary", "cifar-100-binary.tar.gz"),
    }[name]
    members = ((f"{inside}/{file}", data) for file, data in files.items())
    (folder / archive).write_bytes(tar_bytes(members, "w:gz"))
    return made


def _names(count: int) -> bytes:
    return ("\n".join(f"class {k}" for k in range(count)) + "\n\n").encode()


def _cifar(name: str) -> tuple[dict[str, bytes], Arrays]:
    rng = np.random.default_rng(0)
    if name == "cifar10":
        classes: tuple[int, ...] = (10,)
        parts = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)]}
        parts["test"] = ["test_batch.bin"]
        files = {"batches.meta.txt": _names(10)}
    else:
        classes = (20, 100)
        parts = {"train": ["train.bin"], "test": ["test.bin"]}
        files = {
            "coarse_label_names.txt": _names(20),
            "fine_label_names.txt": _names(100),
        }
    made = {}
    for split, names in parts.items():
        images = rng.integers(0, 256, (3 * len(names), 32, 32, 3), np.uint8)
        labels = rng.integers(0, classes, (len(images), len(classes)), np.uint8)
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        rows = np.concatenate([labels, planes], axis=1)
        for part, file in enumerate(names):
            files[file] = rows[3 * part : 3 * part + 3].tobytes()
        made[split] = images, labels[:, -1]
    return files, made


def _stl10() -> tuple[dict[str, bytes], Arrays]:
    rng = np.random.default_rng(0)
    files = {"class_names.txt": _names(10)}
    made = {}
    stems = {"train": "train", "test": "test", "unlabelled": "unlabeled"}
    for split, stem in stems.items():
        images = rng.integers(0, 256, (4, 96, 96, 3), np.uint8)
        labels = np.full(4, -1)
        # Planes of columns.
        files[f"{stem}_X.bin"] = images.transpose(0, 3, 2, 1).tobytes()
        if split != "unlabelled":
            labels = rng.integers(0, 10, 4)
            files[f"{stem}_y.bin"] = (labels + 1).astype(np.uint8).tobytes()
        made[split] = images, labels
    return files, made
