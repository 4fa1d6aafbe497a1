"""The quickstart: train and evaluate a counter on generated crowds, and compare it with two simpler ones.

Running it again resumes; a finished run is only evaluated again.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.cli.arguments import read_arguments, script_parser
from headcount.cli.compose import config_dir
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import exit_on_error
from headcount.config import SyntheticConfig

if TYPE_CHECKING:
    from headcount.types import CountErrors


def main() -> None:
    """Run the two commands, then print three errors and where everything is."""
    parser = script_parser(__doc__)
    with exit_on_error(parser.prog):
        read_arguments(parser)
    started = time.perf_counter()
    root = config_dir().parent
    run = root / "checkpoints" / "synthetic" / "tiny_fine" / "seed1"
    for command in (["train.py", "resume=true"], ["eval.py", f"ckpt={run / 'best_mae.pt'}"]):
        print("$ python", *command, flush=True)
        status = subprocess.run([sys.executable, *command], cwd=root).returncode
        if status:
            sys.exit(status)
    report = run / "eval" / "synthetic_test"
    mae = json.loads((report / "metrics.json").read_text(encoding="utf-8"))["mae"]
    mean, blobs = reference_errors(SyntheticConfig())
    print(
        f"\nMean absolute error on {mean.images} images used neither for training nor for selection:\n"
        f"  {mean.mae:6.2f}  always predicting the training mean\n"
        f"  {blobs.mae:6.2f}  threshold and count blobs, tuned on the training images\n"
        f"  {mae:6.2f}  this counter ({mae / mean.mae:.2f} of the first, {mae / blobs.mae:.2f} of the second)\n\n"
        f"{'run':>12}: {run}\n{'checkpoint':>12}: {run / 'best_mae.pt'}\n{'curves':>12}: {run / 'curves.png'}\n"
        f"{'picture':>12}: {report / 'worst.png'}\n{'counts':>12}: {report / 'counts.csv'}\n"
        f"{'TensorBoard':>12}: {Path(sys.executable).parent / 'tensorboard'} --logdir {root / 'checkpoints'}\n"
        f"{'time':>12}: {time.perf_counter() - started:.0f} s"
    )


def reference_errors(config: SyntheticConfig) -> "tuple[CountErrors, CountErrors]":
    """Errors on the test split of always predicting the training mean, and of counting blobs."""
    with deferred_interrupt():
        from headcount.data.open import open_split
        from headcount.data.references import BlobCounter
        from headcount.types import CountErrors

    train = open_split(config, "train", data_root=None)
    test = open_split(config, "test", data_root=None)
    true = [float(test.count(i)) for i in range(len(test))]
    mean = sum(train.count(i) for i in range(len(train))) / len(train)
    blobs = BlobCounter.fit([train[i] for i in range(len(train))])
    counted = [blobs.count(test[i].image) for i in range(len(test))]
    return CountErrors.from_counts([mean] * len(true), true), CountErrors.from_counts(counted, true)
