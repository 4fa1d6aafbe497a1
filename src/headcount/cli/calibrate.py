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

from headcount import published
from headcount.cli.arguments import read_arguments, refuse_set, script_parser, single_process_errors, to_path
from headcount.cli.compose import compose, refuse, to_config
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import exit_on_error
from headcount.commands import as_typed
from headcount.config import ConfigError, EvalCommandConfig, check_evaluation
from headcount.runs import CALIBRATED
from headcount.wording import many, printable

_SUFFIXES = (".pt", published.WEIGHTS, published.DESCRIPTION)


def main() -> None:
    """Read the command line and calibrate."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="ckpt=, split=, data_root=, dataset=, ..., as for eval.py"
    )
    parser.add_argument("--output", type=to_path, help="the checkpoint to write, .pt or .safetensors; must not exist")
    with exit_on_error(parser.prog, MemoryError):
        arguments = read_arguments(parser, old_flags=("ckpt", "split", "data_root"))
        config = calibration_config(arguments.settings)
        output = arguments.options.output
        calibrate(config, default_output(config.checkpoint) if output is None else output.expanduser())


def calibration_config(overrides: Sequence[str]) -> EvalCommandConfig:
    """The settings of a calibration: an evaluation in one process, of held-out images by default.

    Raises:
        ConfigError: if any is invalid.
    """
    refuse_set(overrides, {"output_dir": "type --output FILE"})
    typed = ["split=holdout", *overrides]
    config: EvalCommandConfig = to_config(compose(typed, config_name="eval"))
    errors = check_evaluation(config) + single_process_errors(config, "a calibration takes")
    refuse(errors, overrides, config)
    return config


def default_output(ckpt: str) -> Path:
    """The calibrated checkpoint beside a file; in the working folder for a name."""
    path = Path(ckpt).expanduser()
    if published.is_on_hub(ckpt) or not path.is_file():
        name = ckpt.removeprefix(published.HUB).partition("@")[0] if published.is_on_hub(ckpt) else ckpt
        return Path(f"{name.rpartition('/')[2]}{CALIBRATED}.pt")
    return path.with_name(f"{path.stem}{CALIBRATED}.pt")


def check_output(output: Path) -> None:
    """Refuse a file that exists, or whose format is not known.

    Raises:
        ConfigError: says which can be named.
    """
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name a file with --output")
    if output.suffix not in _SUFFIXES:
        raise ConfigError(f"{output}: must end in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}")
    for file in published.pair_of(output) if published.is_pair(output) else [output]:
        if file.exists():
            raise ConfigError(f"{file}: exists; remove it, or name another file with --output")


def calibrate(config: EvalCommandConfig, output: Path) -> None:
    """Count the images, write the checkpoint and print what it promises.

    Raises:
        ConfigError, CheckpointError, DataError: if the settings, the checkpoint or the images are unusable.
    """
    check_output(output)

    # Heavy imports after the checks.
    with deferred_interrupt():
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
