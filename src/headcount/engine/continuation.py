"""What may differ between a training run and its continuation, and what follows from it.

The settings and images must be the same; the number of processes and of epochs need not.
"""

import hashlib
from pathlib import Path
from typing import Any

from headcount.config import (
    PLACE,
    ConfigError,
    OptimConfig,
    RuntimeConfig,
    Schedule,
    TrainConfig,
    as_of_one_dataset,
    to_plain,
)
from headcount.data.crowd import CrowdDataset
from headcount.data.loading import step_images
from headcount.data.prepare import image_origin
from headcount.engine.optim import learning_rate_factor
from headcount.errors import HeadcountError
from headcount.runs import CONFIG_FILE, METRICS_FILE, differences, flatten, read_run, recipe

# What may change between a run and its continuation: where things are, not what is learned; and when it ends.
_MAY_CHANGE = (*PLACE, "eval.pictures", "early_stopping", "epochs", "init_from")


def refuse_changed_config(config: TrainConfig, trained: TrainConfig) -> None:
    """Refuse settings that change what is learned.

    Args:
        config: of the continuation.
        trained: of the run so far.

    Raises:
        ConfigError: names each setting with both values.
    """
    before, now = flatten(to_plain(trained)), flatten(to_plain(config))
    differ = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    differ = [k for k in differ if as_of_one_dataset(k) not in _MAY_CHANGE]
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


def processes_note(
    before: RuntimeConfig,
    now: RuntimeConfig,
    *,
    images: int,
    batch_size: int,
    batchnorm: bool,
    within_epoch: bool,
    parts: int = 1,
) -> str:
    """What it means that a run continues on another number of processes; empty if it does not.

    Args:
        images: to train on.
        batch_size: over all processes.
        batchnorm: whether the network has batch normalization.
        within_epoch: whether the checkpoint was saved in the middle of an epoch, with the state of each process.
        parts: number of parts in which each process computes its crops of a step.

    Raises:
        ConfigError: if its steps would have another number of crops, or each process needs its own state.
    """
    if before.processes == now.processes:
        return ""
    if within_epoch:
        raise ConfigError(
            f"resume=true with {now.typed_processes}: the run was stopped within an epoch, and each process continues "
            f"with its own random numbers; resume with {before.typed_processes}"
        )
    crops, crops_now = (step_images(images, batch_size, runtime.processes * parts) for runtime in (before, now))
    if crops != crops_now:
        raise ConfigError(
            f"resume=true with {now.typed_processes}: its steps have {crops} crops, which cannot be shared equally "
            f"({images} training images); resume with {before.typed_processes}"
        )
    note = (
        f"resuming with {now.typed_processes} a run of {before.typed_processes}: each step has the same {crops} crops, "
        "so that results are the same up to rounding"
    )
    if batchnorm and not now.sync_batchnorm:
        shares = crops // before.processes, crops // now.processes
        note += (
            f"; but BatchNorm, which is not synchronized, used {shares[0] // parts} crops at a time and now uses "
            f"{shares[1] // parts}"
        )
    return note


def digest(dataset: CrowdDataset) -> str:
    """A hash that distinguishes one set of annotated images from another, wherever it is stored."""
    lines = sorted(f"{name} {dataset.count(index):g}" for index, name in enumerate(dataset.names))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fingerprint(dataset: CrowdDataset) -> str:
    """A hash of what is learned from: the content of the image files, and the position of every head.

    Wherever the files are stored; images that are not files are identified by their names and sizes.
    """
    lines = [f"{part}/{fingerprint(member)}".encode() for part, member in dataset.members.items()]
    for index, name in enumerate(() if lines else dataset.names):
        size = dataset.sizes[index]
        origin = image_origin(dataset.sources[index], size) if dataset.sources else repr(size).encode()
        heads = f"{dataset.count(index):g} ".encode() + dataset.points(index).numpy().tobytes()
        placed = dataset.mask(index)
        heads += b"" if placed is None else placed.mask.content()
        content = hashlib.sha256(heads + origin).hexdigest()
        lines.append(f"{name} {content}".encode(errors="surrogateescape"))
    return hashlib.sha256(b"\n".join(sorted(lines))).hexdigest()


def refuse_changed_images(now: dict[str, str], before: dict[str, Any], selection_split: str) -> None:
    """Compare digests with those of a checkpoint; early checkpoints do not hold all of them."""
    for key, digest in now.items():
        if before.get(key) not in (None, digest):
            which = f"images of '{selection_split}'" if key == "selection_data" else "training images"
            raise ConfigError(
                f"resume=true with {which} or annotations that differ from those of the run: continue with its own, "
                "or start another run with run_name=NAME"
            )


def refuse_fewer_epochs(before: int, now: int, *, trained: int) -> None:
    """Refuse to continue a run that was planned for more epochs: its schedule would jump, or its end lies behind it.

    Args:
        before, now: epochs of the run, and those to continue it for.
        trained: epochs that are finished.

    Raises:
        ConfigError: if ``now`` is below ``before``.
    """
    if now < before:
        raise ConfigError(
            f"resume=true with epochs={now}: the run was planned for epochs={before} ({trained} are trained), and can "
            f"only be extended; resume with epochs={before} or more, or start another run with run_name=NAME"
        )


def describe_extension(config: OptimConfig, *, before: int, now: int, epoch: float) -> str:
    """What more epochs do to the schedule of a run.

    Args:
        before, now: epochs of the run, and those to continue it for.
        epoch: where it is, in epochs.
    """
    text = f"extending from {before} to {now} epochs: "
    if config.schedule is not Schedule.cosine:
        kind = "restarts of the cosine" if config.schedule is Schedule.cosine_restarts else "constant learning rate"
        kind = "steps at milestones" if config.schedule is Schedule.milestones else kind
        return f"{text}the schedule ({kind}) does not depend on their number and goes on as planned"
    rates = [config.lr * learning_rate_factor(config, epoch, epochs=epochs) for epochs in (before, now)]
    return (
        f"{text}the cosine is stretched and ends at epoch {now}; at epoch {epoch:g} the learning rate becomes "
        f"{rates[1]:.3g} (planned: {rates[0]:.3g}), so that this is not the run that {now} epochs from the start would "
        "have been"
    )


def find_shorter(config: TrainConfig, folder: Path) -> str:
    """Name of a run beside ``folder`` that ``config`` would extend; empty if there is none.

    Args:
        config: of a run that has nothing to resume, perhaps because its number of epochs is part of its name.
        folder: of that run.
    """
    wanted = recipe(config)
    for other in sorted(folder.parents[1].glob(f"*/{folder.name}")):
        if not ((other / CONFIG_FILE).is_file() and (other / METRICS_FILE).is_file()):
            continue
        try:
            found = read_run(other).config
        except HeadcountError:
            continue
        changed = differences(recipe(found), wanted, ignore=("epochs", "early_stopping"))
        if not changed and found.epochs < config.epochs:
            return other.parent.name
    return ""
