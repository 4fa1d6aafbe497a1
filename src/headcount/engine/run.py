"""The folder of a training run: refuse a used one, resume, save, and record how the run was made.

Only rank 0 writes. A run folder is never overwritten, and never continued with other settings or images.
"""

import dataclasses
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from headcount.config import PLACE, ConfigError, TrainConfig, from_plain, to_plain
from headcount.data.crowd import CrowdDataset
from headcount.engine import checkpoint
from headcount.engine.optim import load_schedule_state
from headcount.engine.records import NoRecords, Records
from headcount.engine.runtime import Runtime
from headcount.engine.setup import Job
from headcount.errors import CheckpointError, HeadcountError
from headcount.files import atomic_write, make_folder, write_json
from headcount.runs import CONFIG_FILE, PROVENANCE_FILE, flatten, read_provenance, read_run
from headcount.types import Best

# What may change between a run and its continuation: where things are, not what is learned.
_MAY_CHANGE = (*PLACE, "eval.pictures")


class RunFolder:
    """``<output_dir>/<dataset>/<run name>/seed<seed>``: the same settings always give the same folder."""

    def __init__(self, runtime: Runtime, config: TrainConfig) -> None:
        self.path = run_path(config)
        self.resuming = config.resume and (self.path / checkpoint.LAST).exists()
        """Whether training continues from last.pt."""
        self._runtime = runtime
        self._config = config
        self._commit = checkpoint.commit()
        self._images = ""
        self._records: Records | NoRecords = NoRecords()
        self._started = time.perf_counter()
        self._provenance: dict[str, Any] = {}
        self._earlier_seconds = 0.0

    @classmethod
    def open(cls, runtime: Runtime, config: TrainConfig) -> "RunFolder":
        """The folder of a run, before any work is done for it.

        Raises:
            ConfigError: if it contains a run and ``resume`` is off.
        """
        folder = cls(runtime, config)
        if runtime.is_main and not config.resume and not config.dry_run and _is_used(folder.path):
            raise ConfigError(
                f"{folder.path} already contains a run; add resume=true to continue it, run_name=NAME to keep both, "
                "or remove the folder"
            )
        return folder

    def restore(self, job: Job) -> None:
        """Continue where last.pt stopped, if there is one, and open the records.

        Raises:
            ConfigError: if the settings or the training images are not those of the run.
            CheckpointError: if last.pt or the records are damaged.
        """
        self._images = _digest(job.data.train)
        if self.resuming:
            self._load(job)
        elif self._config.resume and self._runtime.is_main:
            print(f"nothing to resume in {self.path}: starting at the first epoch", file=sys.stderr)
        if self._runtime.is_main:
            self._start(job)
        if self.resuming and job.best and job.best.epoch == job.epoch and not (self.path / checkpoint.BEST).exists():
            self.save(job, is_best=True)  # last.pt has the same weights

    def save(self, job: Job, *, is_best: bool) -> None:
        """Write last.pt, and best_mae.pt if this epoch is the best so far."""
        if not self._runtime.is_main:
            return
        common = {
            "commit": self._commit,
            "config": to_plain(job.config),
            "bins": None if job.bins is None else job.bins.to_dict(),
            "epoch": job.epoch,
            "best": None if job.best is None else dataclasses.asdict(job.best),
            "selection": {"split": job.data.selection_split, "dataset": job.config.dataset.name, "metric": "mae"},
        }
        training = {
            "model": job.counter.state_dict(),
            "optimizer": job.optimizer.state_dict(),
            "schedule": job.schedule.state_dict(),
            "average": job.average.state_dict(),
            "scaler": self._runtime.scaler_state(),
            "training_images": self._images,
        }
        if is_best:
            best = {**common, "model": job.average.evaluated(job.counter).state_dict()}
            checkpoint.save(best, self.path / checkpoint.BEST)
        checkpoint.save({**common, **training}, self.path / checkpoint.LAST)
        self._write_provenance(worked=True)

    def write(self, record: dict[str, Any]) -> None:
        """Append the numbers of one epoch to metrics.jsonl and TensorBoard."""
        self._records.write(record, shown={"train/peak_memory_mib": self._runtime.peak_memory_mib()})

    def draw(self, pictures: dict[str, np.ndarray], epoch: int) -> None:
        """Add pictures (3, height, width) in bytes to TensorBoard, by name."""
        self._records.pictures(pictures, epoch)

    def close(self) -> None:
        """Flush and close the records."""
        self._records.close()

    def _load(self, job: Job) -> None:
        file = self.path / checkpoint.LAST
        content = checkpoint.read(file)
        try:
            trained = from_plain(content["config"])
        except (HeadcountError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file}: its settings cannot be read: {error!r}") from error
        _refuse_changed_config(job.config, trained)
        _refuse_changed_images(self._images, content.get("training_images"))
        try:
            job.counter.load_state_dict(content["model"])
            job.optimizer.load_state_dict(content["optimizer"])
            load_schedule_state(job.schedule, content["schedule"])
            job.average.load_state_dict(content["average"])
            self._runtime.load_scaler_state(content["scaler"])
            job.epoch = content["epoch"]
            job.best = None if content["best"] is None else Best(**content["best"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{file}: the checkpoint is damaged, or is not one to resume from: {error!r}; restore the file, or "
                "start another run with run_name=NAME"
            ) from error

    def _start(self, job: Job) -> None:
        """Write the settings and how the run is made, and open the records."""
        make_folder(self.path, "output_dir")
        earlier = read_run(self.path).commits if self.resuming and (self.path / CONFIG_FILE).is_file() else []
        images = {
            "train": len(job.data.train),
            "selection": len(job.data.selection),
            "digest": f"{self._images}-{_digest(job.data.selection)}",
        }
        commits = [*(commit for commit in earlier if commit != self._commit), self._commit]
        self._earlier_seconds = read_provenance(self.path).get("seconds", 0.0) if self.resuming else 0.0
        self._provenance = {"commits": commits, "images": images, **self._runtime.describe()}
        self._records = Records(self.path, start_epoch=job.epoch)
        with atomic_write(self.path / CONFIG_FILE) as part:
            OmegaConf.save(OmegaConf.create(to_plain(job.config)), part)
        self._write_provenance(worked=False)

    def _write_provenance(self, *, worked: bool) -> None:
        """Write run.json; ``seconds`` is the duration until the last saved epoch, over all processes that resumed it.

        Args:
            worked: whether an epoch was just saved; if not, the duration is that of the earlier processes.
        """
        new = time.perf_counter() - self._started if worked else 0.0
        seconds = round(self._earlier_seconds + new, 1)
        write_json(self.path / PROVENANCE_FILE, {**self._provenance, "seconds": seconds})


def run_path(config: TrainConfig) -> Path:
    """The folder that the settings name."""
    return Path(config.output_dir).expanduser() / config.dataset.name / config.run_name / f"seed{config.seed}"


def _is_used(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _refuse_changed_config(config: TrainConfig, trained: TrainConfig) -> None:
    before, now = flatten(to_plain(trained)), flatten(to_plain(config))
    differ = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k) and k not in _MAY_CHANGE]
    # A group of another kind has other settings: only the outermost such group is named.
    groups = [key.removeprefix("kinds.").replace("/", ".") for key in differ if key.startswith("kinds.")]
    outermost = [group for group in groups if not group.startswith(tuple(f"{other}." for other in groups))]
    changed = []
    for group in outermost:
        key = f"kinds.{group.replace('.', '/')}"
        changed.append(f"{group}={now.get(key)} (was {before.get(key)})")
    for key in differ:
        if not key.startswith(("kinds.", *(f"{group}." for group in outermost))):
            changed.append(f"{key}={now.get(key)} (was {before.get(key)})")
    if changed:
        raise ConfigError(
            f"resume=true with settings that differ from those of the run: {', '.join(changed)}; continue with its own "
            "settings, or start another run with run_name=NAME"
        )


def _digest(dataset: CrowdDataset) -> str:
    """A hash that distinguishes one set of annotated images from another, wherever it is stored."""
    lines = sorted(f"{name} {dataset.count(index):g}" for index, name in enumerate(dataset.names))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _refuse_changed_images(now: str, before: str | None) -> None:
    if before not in (None, now):  # early checkpoints do not record it
        raise ConfigError(
            "resume=true with training images or annotations that differ from those of the run: continue with its own, "
            "or start another run with run_name=NAME"
        )
