"""``eval.py``: evaluate a checkpoint."""

from headcount.cli.choices import default_dataset
from headcount.cli.command import importing, run_command
from headcount.config import DatasetConfig, EvalCommandConfig


def main() -> None:
    """Evaluate what was typed on the command line."""
    run_command(evaluate_job, "eval")


def evaluate_job(config: EvalCommandConfig) -> dict[str, float] | None:
    """Evaluate one checkpoint on one split and write the report.

    Returns:
        The errors; None on every process but the first.
    """
    with importing():  # torch: only once the settings are known to be valid
        from headcount.engine.evaluate import evaluate_checkpoint
        from headcount.report.evaluation import write_evaluation

    typed = config.dataset
    defaults = default_dataset(typed.name) if isinstance(typed, DatasetConfig) else None
    result = evaluate_checkpoint(config, defaults=defaults)
    if result is None:
        return None
    write_evaluation(
        result.evaluation,
        result.dataset,
        result.folder,
        facts=result.facts,
        reliability=result.reliability,
        intervals=result.intervals,
    )
    errors = result.evaluation.errors
    return {"MAE": errors.mae, "RMSE": errors.rmse, "NAE": errors.nae}
