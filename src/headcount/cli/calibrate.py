"""Calibrate the intervals of a counter: a count of 812 then comes as 812 [730, 905] 90 %.

  python scripts/calibrate.py ckpt=best_mae.pt
  python scripts/calibrate.py ckpt=best_mae.pt split=val --output counter.pt
  python scripts/calibrate.py ckpt=best_mae.pt dataset=custom dataset.root=my_crowd dataset.test_fraction=0.5 split=test

Counts images that the counter was not trained on, and writes a copy of the checkpoint that holds its errors there:
<name>_calibrated.pt beside it, or --output. A new image that is like these has its true count in the 90 % interval with
a probability of 90 %, whatever the counter. Images are the held-out ones of the training (dataset.holdout), or those of
split= and dataset=. At least 9 are needed, 19 for an interval of 95 %, 99 for one of 99 %; the ends are the less
accidental the more there are. Settings are those of eval.py. Exit status: 0, or 2 if nothing could be calibrated.
"""

from collections.abc import Sequence
from pathlib import Path

from headcount.cli.arguments import read_arguments, script_parser, single_process_errors, to_path
from headcount.cli.compose import compose, refuse, to_config
from headcount.cli.status import exit_on_error
from headcount.commands import as_typed
from headcount.config import ConfigError, EvalCommandConfig, check_evaluation
from headcount.files import make_folder
from headcount.wording import many, printable

_ENDING = "_calibrated"


def main() -> None:
    """Read the command line and calibrate."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="ckpt=, split=, data_root=, dataset=, ..., as for eval.py"
    )
    parser.add_argument("--output", type=to_path, help="the checkpoint to write; must not exist")
    with exit_on_error(parser.prog, MemoryError):
        arguments = read_arguments(parser, old_flags=("ckpt", "split", "data_root"))
        config = calibration_config(arguments.settings)
        ckpt, output = Path(config.checkpoint).expanduser(), arguments.options.output
        calibrate(config, default_output(ckpt) if output is None else output.expanduser())


def calibration_config(overrides: Sequence[str]) -> EvalCommandConfig:
    """The settings of a calibration: an evaluation in one process, of held-out images by default.

    Raises:
        ConfigError: if any is invalid.
    """
    for override in overrides:
        if override.startswith("output_dir="):
            raise ConfigError(f"{override}: cannot be set here; type --output FILE")
    typed = ["split=holdout", *overrides]
    config: EvalCommandConfig = to_config(compose(typed, config_name="eval"))
    errors = check_evaluation(config) + single_process_errors(config, "a calibration takes")
    refuse(errors, overrides, config)
    return config


def default_output(ckpt: Path) -> Path:
    """The calibrated checkpoint beside one; that of a calibrated one is itself."""
    return ckpt if ckpt.stem.endswith(_ENDING) else ckpt.with_name(f"{ckpt.stem}{_ENDING}.pt")


def calibrate(config: EvalCommandConfig, output: Path) -> None:
    """Count the images, write the checkpoint and print what it promises.

    Raises:
        ConfigError, CheckpointError, DataError: if the settings, the checkpoint or the images are unusable.
    """
    if output.is_dir() or output.exists():
        kind = "is a folder; name a file" if output.is_dir() else "exists; remove it, or name another file"
        raise ConfigError(f"{output}: {kind} with --output")
    make_folder(output.parent, "--output ")

    # Heavy imports after the checks.
    from headcount.engine.calibrate import calibrate_checkpoint
    from headcount.report.intervals import describe_calibration

    done = calibrate_checkpoint(config, output)
    calibration = done.calibration
    images = many(len(calibration), "image")
    print(
        printable(f"{output}: calibrated on {images} of {calibration.dataset} {calibration.split}, {calibration.mode}")
    )
    print(describe_calibration(calibration, has_variance=done.has_variance))
    print(
        "\n".join(
            f"  {line}" for line in [*done.notes, f"next: {as_typed('python eval.py')} ckpt={printable(str(output))}"]
        )
    )
