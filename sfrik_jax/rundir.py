"""The run directory: one writer, its configuration, and what is noted of the run."""

import json
import os
import secrets
import socket
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import files, processes, provenance, resuming
from sfrik_jax.errors import CorruptInputError, MismatchError, OutputError, SfrikError
from sfrik_jax.locks import Lock
from sfrik_jax.redaction import redacted

# Seconds in which a network file system shows another host what was written.
SHOWN = 10.0
# Where sessions, data and weights of a run are noted.
ABOUT = "run.json"


class RunDirectory:
    """A run directory held by this job until it is closed.

    Of several processes the first one holds it and writes; to write does nothing in the
    others, which all have to see it.

    Args:
      path: created when missing.
      config: of the run; a directory that holds another one is refused.
      allowed: settings, or sections of them, that may be others than those stored.

    Attributes:
      stored: the configuration that the directory held, or else `config`.

    Raises:
      OutputError: the directory cannot be written, or another run holds it, or not all
        processes see it.
      MismatchError: the stored configuration gives another result than `config`.
    """

    def __init__(
        self, path: Path, config: ConfigDict, allowed: Collection[str] = ()
    ) -> None:
        self.path, self._config = Path(path), config
        self._allowed = allowed
        self.stored = config
        self._lock = None
        if processes.first():
            self._hold()
        if processes.count() > 1:
            self._refuse_unshared()

    def _hold(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(
                self.path / "lock",
                f"--workdir {self.path}",
                "wait for it, or choose another directory",
            )
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"--workdir {self.path}: {error.strerror}") from error
        self._place = self._where()
        try:
            self._agree()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_) -> None:
        if self._lock is not None:
            self._lock.close()
        # Whoever wrote there last was told by the system in words of its own.
        if isinstance(error, Exception) and not isinstance(error, SfrikError):
            self.refuse_removed(error)

    def refuse_removed(self, error: Exception | None = None) -> None:
        """Asked before something is saved, which would make the directory anew.

        Raises:
          OutputError: the directory was deleted or its disk is gone. From `error`.
        """
        if self._lock is None or self._where() == self._place:
            return
        raise OutputError(
            f"--workdir {self.path} was removed while the run wrote there, or its disk "
            "is gone; bring it back and run the same command again to go on"
        ) from error

    def _where(self) -> tuple[int, int] | None:
        """Disk and number of the directory; None where it cannot be seen."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file whole or not at all, without secrets in its texts."""
        if not processes.first():
            return
        text = json.dumps(redacted(value), indent=2)
        write_whole(self.path / name, f"{text}\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the directory; empty when it is not there, or damaged.

        Raises:
          CorruptInputError: it is run.json and damaged, which alone tells what the run
            was started with.
        """
        path, problem = self.path / name, "holds no table"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            problem = str(error)
        if name != ABOUT:
            return {}
        raise CorruptInputError(
            f"{path} is damaged ({problem}); bring it back from a copy, or delete it: "
            "the run goes on without what it noted of its data and sessions"
        )

    def remove(self, name: str) -> None:
        """Removes a file of the directory, if it is there."""
        if processes.first():
            (self.path / name).unlink(missing_ok=True)

    def agree_on_data(self, fingerprint: str) -> None:
        """Compares the training data's fingerprint with the noted one.

        Raises:
          MismatchError: the data set is not the one that the run was started with.
        """
        noted = self.read_json(ABOUT).get("data_fingerprint", fingerprint)
        if noted != fingerprint:
            raise MismatchError(
                f"{self.path} was started with other data (fingerprint {noted[:12]}, "
                f"now {fingerprint[:12]}); restore it, or use another --workdir"
            )

    def agree_on_weights(self, sha256: str) -> None:
        """Compares the hash of the evaluated weights with the noted one.

        Raises:
          MismatchError: the job was started with other weights.
        """
        noted = self.read_json(ABOUT).get("weights", {}).get("sha256", sha256)
        if noted != sha256:
            raise MismatchError(
                f"{self.path} was started with other weights ({noted[:12]}, now "
                f"{sha256[:12]}); name the checkpoint, or give another --name"
            )

    def start(
        self,
        fingerprint: str,
        subset: Mapping[str, Any] | None,
        weights: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        """Stores configuration, session and data: from here on there is work.

        Not before: a start that failed, or found nothing to do, leaves no trace. Each
        setting that has changed is noted in run.json.

        Args:
          subset: name, size and digest of the part that is trained on, if it is one.
          weights: what is evaluated, for a job of evaluation.
          step: the number of steps done.
        """
        if not processes.first():
            return
        about = self.read_json(ABOUT)
        session = {"step": step} | provenance.about_this_process()
        sessions = [*about.get("sessions", []), session]
        about |= {"sessions": sessions, "data_fingerprint": fingerprint}
        if subset is not None:
            about["data_subset"] = dict(subset)
        if weights is not None:
            about["weights"] = dict(weights)
        noted = [self._noted(change, step) for change in self.changes()]
        if noted:
            about["config_changes"] = [*about.get("config_changes", []), *noted]
        # First the note: a kill in between leaves it twice, and no change without it.
        self.write_json(ABOUT, about)
        write_whole(self.path / "config.json", configs.to_json(self._config) + "\n")

    def changes(self) -> list[resuming.Change]:
        """The settings that are others than those stored: key, before, now."""
        return configs.diff(self.stored, self._config)

    def _noted(self, change: resuming.Change, step: int) -> dict[str, Any]:
        key, before, now = change
        when = provenance.now()
        return {"key": key, "old": before, "new": now, "step": step, "when": when}

    def _refuse_unshared(self) -> None:
        """Writes a file in the first process and looks for it in the others."""

        def write() -> str:
            name = f".{secrets.token_hex(8)}.shared"
            write_whole(self.path / name, "")
            return name

        name = processes.from_first(write)
        where = f"process {processes.index()} on {socket.gethostname()}, {self.path}"
        try:
            seen = self._sees(name)
            blind = [text for text in processes.gather("" if seen else where) if text]
        finally:
            if processes.first():
                (self.path / name).unlink(missing_ok=True)
        if blind:
            raise processes.of_all(
                OutputError(
                    f"--workdir {self.path} is not shared: {blind[0]} does not hold "
                    "what process 0 wrote; name a directory that all of them see"
                )
            )

    def _sees(self, name: str) -> bool:
        deadline = time.monotonic() + SHOWN
        while time.monotonic() < deadline:
            # Listing makes a network file system ask its server.
            if self.path.is_dir() and name in os.listdir(self.path):
                return True
            time.sleep(0.2)
        return False

    def _agree(self) -> None:
        path = self.path / "config.json"
        if not path.exists():
            return
        stored = configs.from_json(path.read_text(encoding="utf-8"), where=str(path))
        conflicts = resuming.conflicts(
            configs.diff(stored, self._config), self._allowed
        )
        if conflicts:
            listed = "; ".join(f"{k}: {a!r} -> {b!r}" for k, a, b in conflicts)
            raise MismatchError(
                f"{self.path} was started with another configuration ({listed}); "
                + resuming.remedy(conflicts, self._config.job)
            )
        self.stored = stored


def write_whole(path: Path, text: str) -> None:
    """Replaces a file at once, so that no reader sees half of it."""
    files.write_whole(path, text.encode())
