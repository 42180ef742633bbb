"""What the project's own builders share: features, encoding, fetching.

Handed an array, or more than 1 GB, TFDS works with TensorFlow. So pictures are handed
over as encoded bytes, and large sets are written by `records`.
"""

import hashlib
import io
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from sfrik_jax.data.builders import records
from sfrik_jax.data.progress import Progress
from sfrik_jax.errors import CorruptInputError, MissingInputError

Example = tuple[str, dict[str, Any]]
_CHUNK = 1 << 22  # bytes read at a time


class Stream(NamedTuple):
    """A split as it comes: its examples, the count of a whole set, encoded bytes."""

    examples: Iterator[Example]
    count: int
    size: int


class OwnBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """None is registered, so TFDS's own names stay free."""

    VERSION = tfds.core.Version("1.0.0")
    # The folder that `prepare` was given, for sets made from the user's files.
    source_dir: Path | None = None
    progress: Progress

    def origin_bytes(self) -> int:
        """Bytes that preparing takes on the disk, 0 where they hardly count.

        Errors: MissingInputError where files that the user has to bring are not there.
        """
        return 0

    def _feature(self, name: str) -> Any:
        features: Any = self.info.features
        return features[name]

    def _describe(
        self,
        shape: tuple[int | None, int | None, int],
        encoding: str,
        classes: Sequence[str],
        description: str,
        homepage: str,
        **features: Any,
    ) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=shape, encoding_format=encoding)
        label = tfds.features.ClassLabel(names=list(classes))
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(
                {"image": image, "label": label, **features}
            ),
            supervised_keys=("image", "label"),
            homepage=homepage,
        )

    def _generate_examples(self) -> Iterator[Example]:
        raise NotImplementedError  # the splits are generators already


class StreamBuilder(OwnBuilder, skip_registration=True):
    """A set of any size: one shard in memory at a time, no TensorFlow.

    Its `_split_generators` gives a `Stream` for each split, in the order of writing.
    """

    def _download_and_prepare(
        self, dl_manager: Any, download_config: Any = None
    ) -> None:
        streams: dict[str, Stream] = self._split_generators(dl_manager)
        # TFDS calls this in a temporary directory and adds dataset_info.json.
        folder = Path(self.data_dir)
        infos = [
            records.write_split(
                self.info, folder, split, self._counted(split, stream), stream.size
            )
            for split, stream in streams.items()
        ]
        self.info.set_splits(tfds.core.SplitDict(infos))

    def _counted(self, split: str, stream: Stream) -> Iterator[dict[str, Any]]:
        names: set[str] = set()
        for number, (name, example) in enumerate(stream.examples, start=1):
            if name in names:
                raise CorruptInputError(f"{self.name}: {name} is there twice")
            names.add(name)
            self.progress.count(split, number, stream.count)
            yield example


def numbered(pictures: Iterable[tuple[int, bytes]]) -> Iterator[Example]:
    """(label, encoded picture) as TFDS's examples, numbered."""
    for number, (label, data) in enumerate(pictures):
        yield f"{number:05d}", {"image": data, "label": label}


def png(image: np.ndarray) -> bytes:
    """The PNG file of uint8 [H, W] or [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def fetch(dl_manager: Any, url: str, sha256: str, remedy: str) -> Path:
    """The file at `url`, kept in the folder of downloads once it was fetched.

    Raises:
      MissingInputError: not to be had; ends with `remedy`.
      CorruptInputError: it is not the file with that digest.
    """
    try:
        # TFDS itself tries for three minutes before it gives up.
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=10).close()
        path = Path(dl_manager.download(url))
    # A lost connection is an OSError, a refused one TFDS's own error.
    except (OSError, tfds.download.DownloadError) as error:
        raise MissingInputError(
            f"{url} could not be fetched ({type(error).__name__}); {remedy}"
        ) from error
    digest = _digest(path)
    if digest != sha256:
        raise CorruptInputError(
            f"{path} is not the file of {url} (sha256 {digest}); delete it and fetch "
            "it again"
        )
    return path


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
