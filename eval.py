"""Evaluate a checkpoint: ``python eval.py ckpt=.../best_mae.pt``; ``--help`` lists the choices."""

from headcount.command import command
from headcount.config import EvalCommandConfig


def main(config: EvalCommandConfig) -> None:  # noqa: D103
    from headcount.engine.evaluate import evaluate_checkpoint  # loads torch: only once the settings are good
    from headcount.report.evaluation import write_evaluation

    if result := evaluate_checkpoint(config):
        write_evaluation(
            result.evaluation, result.dataset, result.folder, facts=result.facts, reliability=result.reliability
        )


if __name__ == "__main__":
    command(main, __file__)
