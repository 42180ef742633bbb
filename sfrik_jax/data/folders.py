"""How a folder of pictures is read: its splits, its files, its classes."""

import os
from collections.abc import Iterator
from pathlib import Path

from sfrik_jax.errors import BadPictureError, CorruptInputError, MissingInputError

EXTENSIONS = frozenset(
    (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
)
# The second name of a split is taken when a folder lacks the first.
SPLITS = {
    "train": ("train",),
    "test": ("test", "val", "validation"),
    "val": ("val", "validation", "test"),
    "validation": ("validation", "val", "test"),
}


def folder_split(path: Path, split: str) -> tuple[Path, str]:
    """The folder of a split, and the split's name without its slice."""
    base = split.partition("[")[0]
    if not path.is_dir():
        raise MissingInputError(
            f"there is no folder {str(path)!r}; set data.path to a folder of pictures"
        )
    folders = [path / name for name in SPLITS.get(base, (base,))]
    for folder in folders:
        if folder.is_dir():
            return folder, base
    names = {name for names in SPLITS.values() for name in names}
    if base == "train" and not any((path / name).is_dir() for name in names):
        return path, base
    raise MissingInputError(
        f"{path} has no split {base!r}; put its pictures in {folders[0]}"
    )


def picture_files(root: Path) -> list[str]:
    """Sorted relative paths ("a/b.jpg") of all pictures below `root`."""
    return sorted(_walk(root, "", frozenset()))


def _walk(folder: Path, prefix: str, above: frozenset[str]) -> Iterator[str]:
    # Links to folders are followed; one that leads back to a folder above is not.
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        found = list(os.scandir(folder))
    except OSError as error:
        raise CorruptInputError(
            f"{folder} cannot be read ({error.strerror}); restore or remove it"
        ) from error
    for entry in found:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(
                folder / entry.name, f"{prefix}{entry.name}/", above | {real}
            )
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            yield prefix + entry.name


def file_size(path: str) -> int:
    """Bytes. Errors: BadPictureError, as for a link to nowhere."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> BadPictureError:
    """The error for a file that the system does not give."""
    reason = f"cannot be read ({error.strerror})"
    return BadPictureError(path, reason, "restore or remove it")


def class_names(files: list[str]) -> list[str] | None:
    """The folders that are classes, sorted; None for pictures that lie flat."""
    folders = {file.partition("/")[0] for file in files if "/" in file}
    flat = any("/" not in file for file in files)
    return None if flat or len(folders) < 2 else sorted(folders)
