"""``cv=5`` stands for a sweep over the folds of a cross-validation."""

from collections.abc import Sequence

from headcount.config import ConfigError


def expand_folds(overrides: Sequence[str]) -> list[str] | None:
    """The overrides of a sweep over all folds, for ``cv=N`` among those typed.

    Returns:
        None if no cross-validation was typed.

    Raises:
        ConfigError: if the number of folds is invalid, or the jobs are not combinations of values.
    """
    typed = [text for text in overrides if text.partition("=")[0] == "cv"]
    others = [text for text in overrides if text not in typed]
    if not typed or typed == ["cv=null"]:
        return None
    value = typed[-1].partition("=")[2]
    if len(typed) > 1 or not value.isdecimal() or not 2 <= int(value) <= 1000:
        raise ConfigError(
            f"{' '.join(typed)}: must be one number of folds, from 2 to 1000, as in cv=5; "
            "dataset.holdout=0.1 holds out a share of the images once"
        )
    sweeper = next((text for text in others if text.startswith("hydra/sweeper=") and text != "hydra/sweeper=basic"), "")
    if sweeper:
        raise ConfigError(
            f"cv={value}: cannot be combined with {sweeper}, which would choose among the folds; type the values to "
            f"compare, as in -m cv={value} optim.lr=1e-4,1e-3"
        )
    if own := [text for text in others if text.startswith("dataset.cv_")]:
        raise ConfigError(f"{own[0]}: cv={value} sets it; leave one of them out")
    # Each seed of a sweep has folds of its own.
    return [
        *others,
        f"dataset.cv_folds={int(value)}",
        f"dataset.cv_fold=range(1,{int(value) + 1})",
        "dataset.cv_seed=${seed}",
    ]
