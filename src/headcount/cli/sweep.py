"""Sweeps: which jobs a command line stands for, checks of all before the first one starts, and their results."""

import itertools
import json
import statistics
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException

from headcount.cli.compose import checked_config, initialized
from headcount.cli.overrides import as_typed, parse
from headcount.config import ConfigError

# Jobs that differ only in these repeat one experiment.
_REPEATS = ("seed=", "dataset.fold=")


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
        The overrides of each job.

    Raises:
        ConfigError: lists every error of the first job that has any.
    """
    launched = any(o.startswith("hydra/launcher=") for o in overrides)
    jobs = list_jobs(overrides, multirun=multirun)
    for k, job in enumerate(jobs):
        if job in jobs[:k]:
            typed = " ".join(map(as_typed, job))
            raise ConfigError(f"{typed}: occurs twice in this sweep; name each value once")
        config = checked_config(job, config_name=config_name)
        if multirun and not launched and config.runtime.devices > 1:
            raise ConfigError(
                f"runtime.devices={config.runtime.devices}: a sweep in one process cannot start several; run the jobs "
                "one by one, or each as a job of its own on a SLURM cluster with hydra/launcher=submitit_slurm "
                "(pip install hydra-submitit-launcher)"
            )
    return jobs


@dataclass
class SweepLog:
    """A file in the sweep's folder to which every job appends its outcome, in whichever process it runs."""

    file: Path
    jobs: list[list[str]]
    """The overrides of each job, by its number."""

    @classmethod
    def open(cls, jobs: list[list[str]], config_name: str) -> "SweepLog":
        """A new, empty log for these jobs."""
        with initialized():
            folder = Path(hydra.compose(config_name, jobs[0], return_hydra_config=True).hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder.resolve() / f"{uuid.uuid4().hex}.jsonl", jobs)

    def write(self, number: int, *, status: int, results: dict[str, float] | None) -> None:
        """Append the outcome of a job."""
        with self.file.open("a") as file:
            file.write(json.dumps({"job": number, "status": status, "results": results}) + "\n")

    def close(self) -> int:
        """Print the results, list the jobs that failed or never reported, and remove the file.

        Returns:
            The exit status of the whole sweep.
        """
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.file.unlink(missing_ok=True)
        outcomes: list[dict[str, Any]] = sorted(map(json.loads, lines), key=lambda outcome: outcome["job"])
        typed = [list(map(as_typed, job)) for job in self.jobs]
        finished = [(typed[outcome["job"]], outcome["results"]) for outcome in outcomes if outcome["results"]]
        if finished:
            print(sweep_table(finished, common=set.intersection(*map(set, typed))))
        failed = [typed[outcome["job"]] for outcome in outcomes if outcome["status"]]
        unfinished = [typed[k] for k in sorted({*range(len(typed))} - {outcome["job"] for outcome in outcomes})]
        for title, jobs in (("failed", failed), ("not finished", unfinished)):
            if jobs:
                print(f"{title}:", *(f"  {' '.join(job)}" for job in jobs), sep="\n", file=sys.stderr)
        return 1 if unfinished else max(outcome["status"] for outcome in outcomes)


def sweep_table(jobs: Sequence[tuple[list[str], dict[str, float]]], *, common: set[str]) -> str:
    """The results of a sweep's jobs, with mean and standard deviation of jobs that differ only in seed or fold.

    Args:
        jobs: the settings and the results of each; all have the same kinds of results.
        common: the settings of every job of the sweep, failed ones included; they are not repeated.
    """
    from tabulate import tabulate

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
            rows.append([f"{group} {repeat}".strip(), *(f"{results[key]:.2f}" for key in keys)])
        if len(members) > 1:
            columns = [[results[key] for _, results in members] for key in keys]
            means = [f"{statistics.mean(column):.2f} +- {statistics.stdev(column):.2f}" for column in columns]
            rows.append([f"{group} mean of {len(members)}".strip(), *means])
    alignment = ("left", *["right"] * len(keys))
    return tabulate(rows, headers=["", *keys], tablefmt="plain", disable_numparse=True, colalign=alignment)
