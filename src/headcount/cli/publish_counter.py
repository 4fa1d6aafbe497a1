"""Store a counter for other people: weights, description and model card, and upload them.

  python scripts/publish_counter.py ckpt=best_mae.pt --output counters/my_counter
  python scripts/publish_counter.py ckpt=best_mae.pt --output counters/my_counter --license "research use only"
      --metrics eval/sha_test/metrics.json --limit "fewer than 20 people: counts too many"
  python scripts/publish_counter.py ckpt=counters/my_counter.safetensors --push owner/my_counter

Writes OUTPUT.safetensors, the weights in 16 bits (--float32 stores all 32); OUTPUT.json, all else that counting needs,
how it was trained, and its errors; and OUTPUT.md, the model card. None of them may exist. ckpt=OUTPUT.safetensors, or
.json, counts with it, from every command. No folder of this machine is in them.

The errors are those of metrics.json, which eval.py writes, of this checkpoint or of others of its recipe. --push
uploads the counter to the Hugging Face Hub as ckpt=hf-hub:owner/my_counter; it needs hf auth login. A repository
that holds a counter is refused without --replace.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headcount.cli.arguments import read_arguments, script_parser, to_path
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import exit_on_error
from headcount.config import ConfigError, checkpoint_error
from headcount.files import make_folder, read_text, write_text
from headcount.published import DESCRIPTION, HUB, UNSELECTED, WEIGHTS, Figure
from headcount.wording import cut, printable


def main() -> None:
    """Read the command line and store the counter."""
    parser = script_parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="ckpt=FILE", help="the checkpoint")
    parser.add_argument("--output", type=to_path, help="where the files are written, without an ending")
    parser.add_argument("--metrics", type=to_path, nargs="+", default=[], help="files metrics.json of eval.py")
    parser.add_argument(
        "--license",
        help="terms of the weights (default: those that the checkpoint states, or those of the "
        "dataset; needed after training on dataset=custom)",
    )
    parser.add_argument("--limit", action="append", default=[], help="what it is bad at; repeat it for more")
    parser.add_argument("--float32", action="store_true", help="store the weights in 32 bits, twice as large")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face Hub")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--replace", action="store_true", help="let --push replace a counter in the repository")
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser, old_flags=("ckpt",))
        ckpt = arguments.values("ckpt").get("ckpt")
        if ckpt is None:
            raise ConfigError("ckpt is not set: type ckpt=best_mae.pt")
        if missing := checkpoint_error(ckpt):
            raise ConfigError(missing)
        options = arguments.options
        if options.output is None and options.push is None:
            raise ConfigError("nothing to do: type --output FILE, --push OWNER/NAME, or both")
        publish(ckpt, options)


def publish(ckpt: str, options: argparse.Namespace) -> None:
    """Store the counter and print what was written.

    Raises:
        ConfigError, CheckpointError: if a file cannot be read or exists, or the hub refuses.
    """
    measured = [read_metrics(file.expanduser()) for file in options.metrics]

    # Heavy imports after the checks.
    with deferred_interrupt():
        from headcount.engine import checkpoint
        from headcount.engine.card import lacks_terms, usual_license
        from headcount.engine.hub import checked_repository

    if options.push is not None:
        checked_repository(options.push, setting="--push")
    content = checkpoint.load(ckpt).content  # also refuses what does not load
    if not options.license and lacks_terms(content):
        raise ConfigError(
            f"ckpt={ckpt}: was trained on dataset=custom, whose terms are not known; state those of the weights, as in "
            "--license MIT"
        )
    content |= {"license": options.license or usual_license(content)}
    content |= {"limits": options.limit} if options.limit else {}
    content |= {"figures": [figure(metrics, content) for metrics in measured]} if measured else {}
    if options.output is not None:
        store(options.output.expanduser(), content, int16=not options.float32)
    if options.push is not None:
        from headcount.engine.hub import push

        stored = {"int16": not options.float32, "replace": options.replace}
        address = push(content, options.push, private=options.private, token=None, setting="--push", **stored)
        print(f"{address}: count with ckpt={HUB}{options.push.removeprefix(HUB)}")


def store(output: Path, content: Mapping[str, Any], *, int16: bool = True) -> None:
    """Write weights, description and model card, and print their names.

    Args:
        output: one of the files, or their common name without an ending.
        content: of the checkpoint, with what the options add.
        int16: whether to store the weights in 16 bits.

    Raises:
        ConfigError: if one of the files exists.
    """
    from headcount.engine.card import model_card
    from headcount.engine.stored import save_counter

    if output.suffix in (WEIGHTS, DESCRIPTION, ".md"):
        output = output.with_suffix("")
    weights, card = output.with_name(f"{output.name}{WEIGHTS}"), output.with_name(f"{output.name}.md")
    if card.exists():
        raise ConfigError(f"{card}: exists; name another file, or remove it")
    make_folder(output.parent, "--output")
    files = save_counter(weights, content, int16=int16)
    write_text(card, model_card(content, output.name))
    for file in (*files, card):
        print(printable(f"{file}: {file.stat().st_size / 1e3:,.0f} kB"))


def read_metrics(file: Path) -> dict[str, Any]:
    """The errors of an evaluation.

    Raises:
        ConfigError: if the file is missing or was not written by eval.py.
    """
    try:
        metrics = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--metrics {file}: cannot be read: {error}") from error
    if not isinstance(metrics, dict) or not {"mae", "rmse", "selected_on", "checkpoint"} <= metrics.keys():
        raise ConfigError(f"--metrics {file}: not a metrics.json of eval.py")
    if metrics.get("settings"):
        raise ConfigError(
            f"--metrics {file}: evaluated with {', '.join(metrics['settings'])}; a counter is published with errors on "
            "all images of a split, counted as in its training"
        )
    return metrics


def figure(metrics: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """What a description stores of an evaluation.

    Raises:
        ConfigError: if the evaluation is damaged, or of another training.
    """
    from headcount.engine.checkpoint import weights_digest

    config = content["config"]
    training = {"commit": content["commit"], "seed": config.get("seed"), "scale": config.get("scale")}
    own = metrics.get("weights") == weights_digest(content["model"])
    if not own and (differ := [key for key, value in training.items() if metrics.get(key) != value]):
        raise ConfigError(
            f"--metrics of {cut(str(metrics['checkpoint']))}: measured with other weights, of another training "
            f"({', '.join(differ)}); evaluate this checkpoint, or another one of its training, with eval.py"
        )
    is_last = Path(str(metrics["checkpoint"])).name == "last.pt"
    plain = {
        **{key: metrics.get(key) for key in ("dataset", "split", "images", "mae", "rmse")},
        "selected_on": UNSELECTED if is_last else metrics["selected_on"],
        "mae_interval": _interval(metrics.get("mae_interval")),
        "rmse_interval": _interval(metrics.get("rmse_interval")),
        "own": own,
    }
    try:
        Figure.from_plain(plain)
    except ValueError as error:
        raise ConfigError(f"--metrics {cut(str(metrics['checkpoint']))}: {error}") from error
    return plain


def _interval(stored: Any) -> Sequence[Any] | None:
    """Low and high end; None for a single image, which has no interval."""
    if not isinstance(stored, Mapping) or stored.get("low") is None:
        return None
    return [stored.get("low"), stored.get("high")]
