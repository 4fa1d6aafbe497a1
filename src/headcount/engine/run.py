"""The folder of a training run: refuse a used one, resume, save, and record how the run was made.

Only rank 0 writes, and holds the lock of the folder for all. A run folder is never overwritten, and never continued
with other settings or images.
"""

import dataclasses
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from headcount.config import ConfigError, Precision, TrainConfig, from_plain, to_plain
from headcount.engine import checkpoint, training_images
from headcount.engine.continuation import (
    describe_extension,
    digest,
    find_shorter,
    fingerprint,
    processes_note,
    refuse_changed_config,
    refuse_changed_images,
    refuse_fewer_epochs,
)
from headcount.engine.lock import LOCK_FILE, FolderLock
from headcount.engine.optim import follow_schedule, load_optimizer_state, load_schedule_state
from headcount.engine.records import Meter, NoRecords, Records, open_logs
from headcount.engine.runtime import Runtime, has_batch_norm
from headcount.engine.setup import Job, UnfinishedEpoch
from headcount.engine.trackers import RunIdentity, identifiers
from headcount.errors import CheckpointError, HeadcountError
from headcount.files import atomic_write, remove_leftovers, write_json
from headcount.runs import CONFIG_FILE, METRICS_FILE, PROVENANCE_FILE, epoch_file, read_provenance, read_run
from headcount.types import Best
from headcount.wording import first_names


class RunFolder:
    """``<output_dir>/<dataset>/<run name>/seed<seed>``: the same settings always give the same folder."""

    def __init__(self, runtime: Runtime, config: TrainConfig) -> None:
        self.path = run_path(config)
        self.resuming = False
        """Whether training continues from last.pt or mid_epoch.pt."""
        self._runtime = runtime
        self._config = config
        self._commit = checkpoint.commit()
        self._images: dict[str, str] = {}
        self._trained_on: list[str] | None = []
        self._records: Records | NoRecords = NoRecords()
        self._extended: dict[str, int] | None = None
        self._lock = FolderLock(self.path)
        self._record: dict[str, Any] | None = None
        self._saved: dict[str, str] = {}
        self._started = time.perf_counter()
        self._provenance: dict[str, Any] = {}
        self._earlier_seconds = 0.0

    @classmethod
    def open(cls, runtime: Runtime, config: TrainConfig) -> "RunFolder":
        """The folder of a run, before any work is done for it; locked until :meth:`close`, except for a dry run.

        Raises:
            ConfigError: if another process uses it, if it contains a run and ``resume`` is off, or if it contains
                results and nothing to resume.
            OutputError: if nothing can be written there.
        """
        folder = cls(runtime, config)
        if not config.dry_run:
            runtime.on_main(folder._take)
        folder.resuming = config.resume and folder._can_resume()
        if len(set(runtime.gather([folder.resuming]))) > 1:
            raise ConfigError(
                f"output_dir={config.output_dir}: the checkpoints in {folder.path} are not visible to all processes; "
                "choose a folder that all machines share"
            )
        return folder

    def _can_resume(self) -> bool:
        return any((self.path / name).exists() for name in (checkpoint.LAST, checkpoint.MID_EPOCH))

    def _take(self) -> None:
        """Lock the folder, check that nothing in it can be lost, and remove what killed processes left."""
        self._lock.acquire(setting="output_dir", instead="start another run with run_name=NAME")
        try:
            remove_leftovers(self.path, sole_use=True)
            if not self._config.resume:
                _refuse_used(self.path)
            elif not self._can_resume():
                _refuse_results(self.path)
        except HeadcountError:
            self._lock.release()
            raise

    def restore(self, job: Job) -> None:
        """Continue from the newest checkpoint to resume from, if there is one, and open the records.

        Raises:
            ConfigError: if the settings or the training images are not those of the run.
            CheckpointError: if the checkpoint or the records are damaged.
        """
        self._images = {
            "training_images": digest(job.data.train),
            "training_data": fingerprint(job.data.train),
            "selection_data": fingerprint(job.data.selection),
        }
        if self.resuming:
            self._load(job)
        elif self._config.resume and self._runtime.is_main:
            shorter = find_shorter(self._config, self.path)
            hint = f"; to extend the run of fewer epochs, stop and add run_name={shorter}" if shorter else ""
            print(f"nothing to resume in {self.path}: starting at the first epoch{hint}", file=sys.stderr)
        self._runtime.on_main(partial(self._start, job))
        if self._runtime.is_main and job.unfinished is None:  # all processes have read it
            self._remove_mid_epoch()

    def save(self, job: Job, record: dict[str, Any], *, is_best: bool) -> None:
        """Write last.pt, and then what a resumed run can make again from it: best_mae.pt and the records.

        Args:
            record: the numbers of the epoch, for metrics.jsonl and TensorBoard.
            is_best: whether this epoch is the best so far.

        Raises:
            OutputError: if a file cannot be written.
        """
        self._runtime.on_main(partial(self._save, job, record, is_best=is_best))
        self._saved = self._runtime.gather([self._saved])[0]

    def save_mid_epoch(self, job: Job, meter: Meter) -> None:
        """Write mid_epoch.pt: everything that a resumed run needs to continue after the last step.

        Args:
            meter: of the unfinished epoch.

        Raises:
            OutputError: if the file cannot be written.
        """
        mine = {"meter": meter.state_dict(), "random": self._runtime.random_state()}
        processes = self._runtime.gather([mine])
        self._runtime.on_main(partial(self._save_mid_epoch, job, meter, processes))
        self._saved = self._runtime.gather([self._saved])[0]

    def _save(self, job: Job, record: dict[str, Any], *, is_best: bool) -> None:
        self._lock.verify()
        checkpoint.save({**self._training(job), "record": record}, self.path / checkpoint.LAST)
        self._saved[checkpoint.LAST] = f"epoch {job.epoch}"
        self._remove_mid_epoch()
        if is_best and self._keeps_best(job):
            self._save_best(job)
        if _is_evaluated(record):
            self._save_evaluated(job)
        self._records.write(record, shown={"train/peak_memory_mib": self._runtime.peak_memory_mib()})
        self._remove_old(job)
        self._note_early_stop(job)
        self._write_provenance(worked=True)

    def _save_mid_epoch(self, job: Job, meter: Meter, processes: list[dict[str, Any]]) -> None:
        self._lock.verify()
        progress = {"epoch": meter.epoch - 1, "step": meter.steps, "processes": processes}
        checkpoint.save({**self._training(job), **progress}, self.path / checkpoint.MID_EPOCH)
        self._saved[checkpoint.MID_EPOCH] = f"epoch {meter.epoch}, step {meter.steps}"
        self._write_provenance(worked=True)

    def _remove_mid_epoch(self) -> None:
        with suppress(OSError):  # where it is left, it is older than last.pt, and not used
            (self.path / checkpoint.MID_EPOCH).unlink()
        self._saved.pop(checkpoint.MID_EPOCH, None)

    def _training(self, job: Job) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            **self._common(job),
            "model": job.counter.state_dict(),
            "optimizer": job.optimizer.state_dict(),
            "schedule": job.schedule.state_dict(),
            "average": job.average.state_dict(),
            "scaler": self._runtime.scaler_state(),
            **self._images,
        }

    def _keeps_best(self, job: Job) -> bool:
        """Whether best_mae.pt is written; ``keep=last`` updates one of an earlier ``keep``, so that it stays true."""
        return job.config.keep != "last" or (self.path / checkpoint.BEST).exists()

    def _save_best(self, job: Job) -> None:
        best = {**self._common(job), "model": job.average.evaluated(job.counter).state_dict()}
        checkpoint.save(best, self.path / checkpoint.BEST)
        self._saved[checkpoint.BEST] = f"epoch {job.epoch}"

    def _save_evaluated(self, job: Job) -> None:
        """Write the checkpoint of an evaluation, if the settings keep one."""
        if job.config.keep not in ("best", "last"):
            evaluated = {**self._common(job), "model": job.average.evaluated(job.counter).state_dict()}
            checkpoint.save(evaluated, self.path / epoch_file(job.epoch))

    def _remove_old(self, job: Job) -> None:
        """Remove the checkpoints of evaluations that the settings no longer keep; never one of the best epoch."""
        if not job.config.keep.isdigit():
            return
        best_epoch = None if job.best is None or (self.path / checkpoint.BEST).exists() else job.best.epoch
        for file, epoch in checkpoint.epoch_files(self.path)[: -int(job.config.keep)]:
            if epoch != best_epoch:
                with suppress(OSError):  # tried again after the next evaluation
                    file.unlink()

    def _note_early_stop(self, job: Job) -> None:
        if job.stops_early:
            assert job.best is not None
            stop = {"epoch": job.epoch, "best_epoch": job.best.epoch, "early_stopping": job.config.early_stopping}
            self._provenance["stopped_early"] = stop

    def _common(self, job: Job) -> dict[str, Any]:
        """What all checkpoints hold."""
        return {
            "commit": self._commit,
            "config": to_plain(job.config),
            "bins": None if job.bins is None else job.bins.to_dict(),
            "epoch": job.epoch,
            "best": None if job.best is None else dataclasses.asdict(job.best),
            "selection": {"split": job.data.selection_split, "dataset": job.config.dataset.name, "metric": "mae"},
            "seen": job.data.train.seen().to_plain(),
            **({} if self._trained_on is None else {training_images.KEY: self._trained_on}),
        }

    def draw(self, pictures: dict[str, np.ndarray], epoch: int) -> None:
        """Add pictures (3, height, width) in bytes to TensorBoard, by name."""
        self._records.pictures(pictures, epoch)

    def safe(self) -> str:
        """The checkpoints that are complete, for an error message."""
        if not self._saved:
            return f"no checkpoint has been saved in {self.path}"
        # The folder may have been removed, or its disk be gone.
        kept = {name: moment for name, moment in self._saved.items() if (self.path / name).is_file()}
        if not kept:
            return f"{' and '.join(self._saved)} are no longer in {self.path}"
        return f"safe in {self.path}: {' and '.join(f'{name} of {moment}' for name, moment in kept.items())}"

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Finish the records, and release the lock.

        Args:
            error: what ended the run; None if it ended as planned.
        """
        try:
            self._records.close(error)
        finally:
            self._lock.release()

    def _load(self, job: Job) -> None:
        file, content = self._newest()
        try:
            trained = from_plain(content["config"])
        except (HeadcountError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file}: its settings cannot be read: {error!r}") from error
        refuse_fewer_epochs(trained.epochs, job.config.epochs, trained=content["epoch"])
        refuse_changed_config(job.config, trained)
        if job.config.init_from is not None and self._runtime.is_main:
            print("resuming: init_from is not read, the run continues with its own weights", file=sys.stderr)
        job.config = dataclasses.replace(job.config, init_from=trained.init_from)
        self._trained_on = training_images.recorded_digests(content) or []
        refuse_changed_images(self._images, content, job.data.selection_split)
        note = processes_note(
            trained.runtime,
            job.config.runtime,
            images=job.data.train.images_per_epoch,
            batch_size=job.config.batch_size,
            parts=job.config.accumulate,
            batchnorm=has_batch_norm(job.counter),
            within_epoch="step" in content,
        )
        if note and self._runtime.is_main:
            print(note, file=sys.stderr)
        try:
            job.counter.load_state_dict(content["model"])
            load_optimizer_state(job.optimizer, content["optimizer"])
            load_schedule_state(job.schedule, content["schedule"])
            job.average.load_state_dict(content["average"])
            self._runtime.load_scaler_state(content["scaler"])
            job.epoch = content["epoch"]
            if not all(isinstance(value, (int, float)) for value in (content["best"] or {}).values()):
                raise TypeError("'best' holds something else than numbers")
            job.best = None if content["best"] is None else Best(**content["best"])
            self._record = content.get("record")
            if self._record is not None and self._record["epoch"] != job.epoch:
                raise ValueError("'record' is that of another epoch")
            if file.name == checkpoint.MID_EPOCH:
                job.unfinished = self._unfinished(job, content)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{file}: the checkpoint is damaged, or is not one to resume from: {error!r}; "
                f"{checkpoint.repair_hint(file)}"
            ) from error
        if wrong := checkpoint.not_finite(content["model"]):
            raise CheckpointError(
                f"{file}: its weights are not finite ({first_names(wrong)}), so training cannot continue; "
                f"{checkpoint.repair_hint(file)}"
            )
        if trained.epochs < job.config.epochs:
            self._extend(job, trained.epochs)
        moments = {checkpoint.LAST: f"epoch {job.epoch}"} if job.epoch else {}
        moments |= {checkpoint.BEST: f"epoch {job.best.epoch}"} if job.best else {}
        moments |= {checkpoint.MID_EPOCH: f"epoch {job.epoch + 1}, step {content['step']}"} if job.unfinished else {}
        self._saved = moments

    def _extend(self, job: Job, before: int) -> None:
        """Continue with the learning rate of the schedule over more epochs."""
        now = job.config.epochs
        follow_schedule(job.schedule)
        self._extended = {"from": before, "to": now, "after_epoch": job.epoch}
        if self._runtime.is_main:
            epoch = job.schedule.last_epoch / len(job.loader)
            print(describe_extension(job.config.optim, before=before, now=now, epoch=epoch), file=sys.stderr)

    def _newest(self) -> tuple[Path, dict[str, Any]]:
        """The checkpoint to resume from: mid_epoch.pt, unless its epoch was finished and it could not be removed."""
        files = [self.path / name for name in (checkpoint.LAST, checkpoint.MID_EPOCH)]
        contents = [(file, checkpoint.read_training(file)) for file in files if file.exists()]
        return max(reversed(contents), key=lambda found: found[1]["epoch"])

    def _unfinished(self, job: Job, content: dict[str, Any]) -> UnfinishedEpoch:
        """This process's part of the state within an epoch.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, RuntimeError: if it is damaged.
        """
        processes, step = content["processes"], content["step"]
        if len(processes) != self._runtime.world or not 0 < step <= len(job.loader):
            raise ValueError(f"it is step {step} of {len(processes)} processes")
        state = processes[self._runtime.rank]
        meter = Meter(job.epoch + 1)
        meter.load_state_dict(state["meter"], self._runtime.device)
        if meter.steps != step:
            raise ValueError(f"'meter' is that of step {meter.steps}, not {step}")
        self._runtime.load_random_state(state["random"])  # damaged states are found here; restored again when used
        return UnfinishedEpoch(meter, state["random"])

    def _start(self, job: Job) -> None:
        """Write the settings and the provenance, open the records, and complete an epoch whose saving was killed."""
        earlier_images = training_images.recorded_digests(job.start.source.content) if job.start else self._trained_on
        self._trained_on = None
        if len(job.data.train) <= training_images.MAX_RECORDED:
            own = training_images.training_digests(job.data.train)
            self._trained_on = sorted({*own, *(earlier_images or [])})
        earlier = read_run(self.path).commits if self.resuming and (self.path / CONFIG_FILE).is_file() else []
        images = {
            "train": len(job.data.train),
            "selection": len(job.data.selection),
            "digest": f"{self._images['training_images']}-{digest(job.data.selection)}",
        }
        commits = [*(commit for commit in earlier if commit != self._commit), self._commit]
        before = read_provenance(self.path) if self.resuming else {}
        self._earlier_seconds = before.get("seconds", 0.0)
        self._provenance = {
            "commits": commits,
            "images": images,
            **self._runtime.describe(),
            **self._history(job, before),
        }
        self._note_early_stop(job)
        ids = identifiers(before)
        identity = RunIdentity(self.path, job.config, ids)
        self._records = Records(
            self.path, start_epoch=job.epoch, last=self._record, open_logs=partial(open_logs, identity)
        )
        self._provenance |= {"logger": ids} if ids else {}
        with atomic_write(self.path / CONFIG_FILE) as part:
            OmegaConf.save(OmegaConf.create(to_plain(job.config)), part)
        self._write_provenance(worked=False)
        is_best = job.best is not None and job.best.epoch == job.epoch and self._keeps_best(job)
        if is_best and job.unfinished is None and _best_epoch(self.path) != job.epoch:
            self._save_best(job)  # a kill came between the two checkpoints of this epoch
        is_saved = (self.path / epoch_file(job.epoch)).is_file()
        if self._record is not None and _is_evaluated(self._record) and job.unfinished is None and not is_saved:
            self._save_evaluated(job)

    def _history(self, job: Job, before: dict[str, Any]) -> dict[str, Any]:
        """What run.json says of the run's start and extensions; ``before`` is what it said so far."""
        # An extension that was killed before its first epoch may have been taken back.
        earlier = [one for one in before.get("extended", []) if one["to"] <= job.config.epochs]
        extensions = [one for one in earlier if one != self._extended]
        extensions += [] if self._extended is None else [self._extended]
        start = before.get("init_from") if job.start is None else job.start.to_plain()
        history = {"init_from": start, "extended": extensions}
        return {key: value for key, value in history.items() if value}

    def _write_provenance(self, *, worked: bool) -> None:
        """Write run.json; ``seconds`` is the duration until the last save, over all processes that resumed the run.

        Args:
            worked: whether a checkpoint was just saved; if not, the duration is that of the earlier processes.
        """
        new = time.perf_counter() - self._started if worked else 0.0
        seconds = round(self._earlier_seconds + new, 1)
        write_json(self.path / PROVENANCE_FILE, {**self._provenance, "seconds": seconds})


def _is_evaluated(record: dict[str, Any]) -> bool:
    return "eval/mae" in record


def recorded_precision(config: TrainConfig) -> Precision | None:
    """The arithmetic of the run that ``resume`` continues, for ``runtime.precision=auto``; None if there is none.

    Raises:
        CheckpointError: if its settings cannot be read.
    """
    folder = run_path(config)
    automatic = config.runtime.precision is Precision.auto
    if not (automatic and config.resume and (folder / CONFIG_FILE).is_file()):
        return None
    return read_run(folder).config.runtime.precision


def run_path(config: TrainConfig) -> Path:
    """The folder that the settings name."""
    return Path(config.output_dir).expanduser() / config.dataset.name / config.run_name / f"seed{config.seed}"


def _refuse_used(folder: Path) -> None:
    if any(file.name != LOCK_FILE for file in folder.iterdir()):
        raise ConfigError(
            f"{folder} already contains a run; add resume=true to continue it, run_name=NAME to keep both, "
            "or remove the folder"
        )


def _refuse_results(folder: Path) -> None:
    """Refuse to start at the first epoch where that would replace results.

    last.pt is the first result of a run: where it is missing and others are not, it was removed.
    """
    records = folder / METRICS_FILE
    results = sorted(file.name for file in folder.glob("*.pt"))
    if records.exists() and records.stat().st_size:
        results.append(records.name)
    if results:
        raise ConfigError(
            f"resume=true: {folder} has results ({', '.join(results)}) but no {checkpoint.LAST} to continue from; put "
            f"{checkpoint.LAST} back, start another run with run_name=NAME, or move the folder to start again"
        )


def _best_epoch(folder: Path) -> int | None:
    """The epoch of best_mae.pt; None if it is missing or damaged."""
    try:
        epoch: int | None = checkpoint.read(folder / checkpoint.BEST).get("epoch")
    except HeadcountError:
        return None
    return epoch
