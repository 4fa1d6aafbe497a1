"""Sweeps: which jobs a command line stands for, checks of all before the first one starts, and their results."""

import hashlib
import importlib.util
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from headcount.cli.compose import checked_config
from headcount.cli.composed import composed
from headcount.cli.overrides import as_typed, parse
from headcount.config import ConfigError, TrainConfig
from headcount.data.locate import check_folders
from headcount.errors import OutputError
from headcount.files import append_bytes, json_line, make_folder, temporary_name, write_csv, write_text

Failure = tuple[list[str], str]
"""The settings of a job without results, and why; empty if unknown."""

OBJECTIVE = "MAE"
"""The result that an optimizer such as Optuna minimizes."""
IMAGES = "images"
"""Result of a fold of a cross-validation: the number of images that it was evaluated on."""

# Jobs that differ only in these repeat one experiment.
_REPEATS = ("seed=", "dataset.fold=", "dataset.cv_fold=")
# A choice of Hydra's that is an own package -> that package, and the extra that installs it.
_PLUGINS = {
    "hydra/sweeper=optuna": ("hydra_plugins.hydra_optuna_sweeper", "optuna"),
    "hydra/launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "hydra/launcher=submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hydra/launcher=submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}
# Launchers whose jobs run on this machine, in processes of their own.
_LOCAL = ("hydra/launcher=joblib",)


def sweeper(overrides: Sequence[str]) -> str | None:
    """The typed sweeper that chooses the values of a sweep while it runs; None for Hydra's own, which tries all."""
    typed = [text for text in overrides if text.startswith("hydra/sweeper=")]
    return typed[-1] if typed and typed[-1] != "hydra/sweeper=basic" else None


def _require_plugins(overrides: Sequence[str]) -> None:
    """Refuse a sweeper or launcher that is not installed.

    Raises:
        ConfigError: names the extra to install.
    """
    for text in overrides:
        module, extra = _PLUGINS.get(text, ("", ""))
        with suppress(ModuleNotFoundError):  # of the package above it
            if not module or importlib.util.find_spec(module) is not None:
                continue
        raise ConfigError(f"{text}: is not installed: pip install 'headcount[{extra}]'")


def _first_job(overrides: Sequence[str]) -> list[str]:
    """A job of a sweep whose values are chosen while it runs: the first value, or the lower limit, of each setting."""
    job = []
    for setting in parse(overrides):
        if setting.is_sweep:
            value = setting.value
            try:
                first = str(next(iter(setting.override.sweep_string_iterator())))
            except HydraException:  # an interval
                first = str(getattr(value, "start", value))
            job.append(f"{setting.override.get_key_element()}={first}")
        else:
            job.append(setting.text)
    return job


def list_jobs(overrides: Sequence[str], *, multirun: bool) -> list[list[str]]:
    """The overrides of each job: the product of all comma-separated values of a multirun.

    Raises:
        ConfigError: if there are several values without a multirun, or values that cannot be listed.
    """
    values: list[list[str]] = []
    for setting in parse(overrides):
        if not setting.is_sweep:
            values.append([setting.text])
        elif multirun:
            key = setting.override.get_key_element()
            try:
                values.append([f"{key}={value}" for value in setting.override.sweep_string_iterator()])
            except HydraException as error:  # a glob or an interval, which only other sweepers can enumerate
                raise ConfigError(f"{setting.text}: name the values, as in {key}=a,b ({error})") from error
        else:
            raise ConfigError(
                f"{as_typed(setting.text)}: several values make a sweep; add -m, or put quotes around the value"
            )
    return [list(job) for job in itertools.product(*values)]


def check_jobs(overrides: Sequence[str], *, multirun: bool, config_name: str) -> list[list[str]]:
    """Compose and check every job before the first one starts.

    Returns:
        The overrides of each job; those of one with the first values if a sweeper chooses them while it runs.

    Raises:
        ConfigError: lists every error of the first job that has any.
        DataError: if the dataset of a training is not where it should be.
    """
    _require_plugins(overrides)
    launched = any(text.startswith("hydra/launcher=") and text not in _LOCAL for text in overrides)
    chooses = sweeper(overrides)
    if chooses and not multirun:
        raise ConfigError(f"{chooses}: chooses the values of a sweep; add -m")
    jobs = [_first_job(overrides)] if chooses else list_jobs(overrides, multirun=multirun)
    for k, job in enumerate(jobs):
        if job in jobs[:k]:
            typed = " ".join(map(as_typed, job))
            raise ConfigError(f"{typed}: occurs twice in this sweep; name each value once")
        config = checked_config(job, config_name=config_name)
        if multirun and not launched and config.runtime.processes > 1:
            raise ConfigError(
                f"{config.runtime.typed_processes}: a sweep in one process cannot start several; run the jobs "
                "one by one, or each as a job of its own on a SLURM cluster with hydra/launcher=submitit_slurm "
                "(pip install hydra-submitit-launcher)"
            )
        if isinstance(config, TrainConfig) and not launched:  # other machines may have other folders
            check_folders(config.dataset, data_root=config.data_root)
    return jobs


@dataclass
class SweepLog:
    """A file in the sweep's folder to which every job appends its outcome, in whichever process it runs.

    It is a temporary file: the next sweep removes it if this one is killed.
    """

    file: Path
    jobs: list[list[str]]
    """The overrides of each job, by its number."""
    chosen_later: bool = False
    """Whether the jobs are known only once they ran; ``jobs`` then holds an example."""

    @classmethod
    def open(cls, jobs: list[list[str]], config_name: str, *, chosen_later: bool = False) -> "SweepLog":
        """A new, empty log for these jobs."""
        folder = Path(composed(config_name, jobs[0], with_hydra=True).hydra.sweep.dir)
        make_folder(folder, "output_dir")
        return cls(temporary_name(folder.resolve() / "sweep"), jobs, chosen_later)

    def write(
        self,
        number: int,
        *,
        status: int,
        results: dict[str, float] | None,
        reason: str = "",
        overrides: Sequence[str] = (),
    ) -> None:
        """Append the outcome of a job, and why it failed; a disk without room for it does not stop the others."""
        outcome = {"job": number, "status": status, "results": results, "reason": reason}
        line = json_line(outcome | ({"overrides": list(overrides)} if self.chosen_later else {}))
        try:
            append_bytes(self.file, line.encode())
        except OutputError as error:
            print(f"the outcome of job {number} is not in the table: {error}", file=sys.stderr)

    def close(self) -> int:
        """Print the results, list the jobs that failed or never reported, and remove the file.

        The table is also written beside Hydra's ``multirun.yaml``, as ``sweep_<hash of the jobs>.csv`` and ``.md``: the
        same sweep replaces its own table, another does not.

        Returns:
            The exit status of the whole sweep.
        """
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        self.file.unlink(missing_ok=True)
        outcomes = sorted(_whole(lines), key=lambda outcome: outcome["job"])
        listed = self.jobs
        if self.chosen_later:
            listed = [outcome["overrides"] for outcome in outcomes]
            outcomes = [outcome | {"job": k} for k, outcome in enumerate(outcomes)]
        typed = [list(map(as_typed, job)) for job in listed]
        common = set.intersection(*map(set, typed)) if typed else set()
        finished = [(typed[outcome["job"]], outcome["results"]) for outcome in outcomes if outcome["results"]]
        reported = {outcome["job"] for outcome in outcomes}
        problems = {
            "failed": [(typed[outcome["job"]], outcome["reason"]) for outcome in outcomes if outcome["status"]],
            "not finished": [(job, "") for k, job in enumerate(typed) if k not in reported],
        }
        table = sweep_rows(finished, common=common) if finished else []
        if table:
            print(plain_table(table))
        if self.chosen_later and finished:
            job, results = min(finished, key=lambda job: job[1][OBJECTIVE])
            settings = " ".join(override for override in job if override not in common)
            print(f"lowest {OBJECTIVE} {results[OBJECTIVE]:.2f}: {settings}")
        for title, jobs in problems.items():
            if jobs:
                lines = [f"  {' '.join(job)}" + (f": {reason}" if reason else "") for job, reason in jobs]
                print(f"{title}:", *lines, sep="\n", file=sys.stderr)
        self._write_table(table, problems, common)
        return 1 if problems["not finished"] else max((outcome["status"] for outcome in outcomes), default=1)

    def _write_table(self, table: list[list[str]], problems: dict[str, list[Failure]], common: set[str]) -> None:
        """Write the results, and the jobs without any, as CSV and Markdown."""
        headings = ["settings", *table[0][1:]] if table else ["settings"]
        rows = [[*row, ""] for row in table[1:]]
        for title, jobs in problems.items():
            for job, reason in jobs:
                name = " ".join(override for override in job if override not in common)
                problem = f"{title}: {reason}" if reason else title
                rows.append([name, *[""] * (len(headings) - 1), problem])
        headings.append("problem")
        digest = hashlib.sha256(json.dumps(self.jobs).encode()).hexdigest()[:8]
        stem = self.file.with_name(f"sweep_{digest}")
        write_csv(stem.with_suffix(".csv"), [headings, *rows])
        write_text(stem.with_suffix(".md"), _page(sorted(common), headings, rows))
        print(f"  {stem}.csv\n  {stem}.md")


def _whole(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The outcomes in the lines of a log, without a line that a kill cut."""
    for line in lines:
        with suppress(ValueError):
            yield json.loads(line)


def _page(common: list[str], headings: list[str], rows: list[list[str]]) -> str:
    """The table as Markdown, with the settings of all jobs above it."""
    from headcount.report.markdown import code, pipe_table

    table = "\n".join(pipe_table([headings, *rows])) + "\n"
    return f"All jobs: {code(' '.join(common))}\n\n{table}" if common else table


def plain_table(table: list[list[str]]) -> str:
    """The rows of :func:`sweep_rows` as text for the terminal."""
    from tabulate import tabulate

    alignment = ("left", *["right"] * (len(table[0]) - 1))
    return tabulate(table[1:], headers=table[0], tablefmt="plain", disable_numparse=True, colalign=alignment)


def sweep_rows(jobs: Sequence[tuple[list[str], dict[str, float]]], *, common: set[str]) -> list[list[str]]:
    """The results of a sweep's jobs, with mean and standard deviation of jobs that differ only in seed or fold.

    Folds of a cross-validation are followed by the errors over the images of all folds.

    Args:
        jobs: the settings and the results of each; all have the same kinds of results.
        common: the settings of every job of the sweep, failed ones included; they are not repeated.

    Returns:
        Rows of cells, the headings first.
    """
    groups: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for typed, results in jobs:
        differing = [override for override in typed if override not in common]
        repeats = [override for override in differing if override.startswith(_REPEATS)]
        group = " ".join(override for override in differing if override not in repeats)
        groups.setdefault(group, []).append((" ".join(repeats), results))
    keys = list(jobs[0][1])
    rows = []
    for group, members in groups.items():
        for repeat, results in members:
            cells = [f"{results[key]:.0f}" if key == IMAGES else _number(results[key]) for key in keys]
            rows.append([f"{group} {repeat}".strip(), *cells])
        if len(members) > 1:
            columns = {key: [results[key] for _, results in members] for key in keys}
            means = ["" if key == IMAGES else _mean(column) for key, column in columns.items()]
            rows.append([f"{group} mean of {len(members)}".strip(), *means])
            if IMAGES in keys:
                images = sum(columns[IMAGES])
                pooled = [_pooled(key, column, columns[IMAGES]) for key, column in columns.items()]
                rows.append([f"{group} all {images:.0f} images".strip(), *pooled])
    return [["", *keys], *rows]


def _pooled(key: str, column: Sequence[float], images: Sequence[float]) -> str:
    """An error over the images of all folds together, from that of each; ``-`` for NAE, which leaves out images."""
    total = sum(images)
    if key == IMAGES:
        return f"{total:.0f}"
    if key == "RMSE":
        return _number(math.sqrt(sum(n * value**2 for n, value in zip(images, column, strict=True)) / total))
    return "-" if key == "NAE" else _number(sum(n * value for n, value in zip(images, column, strict=True)) / total)


def _number(value: float | None) -> str:
    """A result as text; ``-`` where it is undefined, as NAE is without heads."""
    return "-" if value is None else f"{value:.2f}"


def _mean(column: Sequence[float | None]) -> str:
    """Mean and standard deviation as text; ``-`` unless all values are defined."""
    values = [value for value in column if value is not None]
    if len(values) < len(column):
        return "-"
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}"
