"""``eval.py``: evaluate a checkpoint."""

from headcount.cli.command import run_command
from headcount.config import EvalCommandConfig


def main() -> None:
    """Evaluate what was typed on the command line."""
    run_command(evaluate_job, "eval")


def evaluate_job(config: EvalCommandConfig) -> None:
    """Evaluate one checkpoint on one split and write the report."""
    from headcount.engine.evaluate import evaluate_checkpoint  # imports torch: only once the settings are valid
    from headcount.report.evaluation import write_evaluation

    if result := evaluate_checkpoint(config):
        write_evaluation(
            result.evaluation, result.dataset, result.folder, facts=result.facts, reliability=result.reliability
        )
