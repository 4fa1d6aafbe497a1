"""Run train.py or eval.py: every job of the command line is composed and checked before torch is imported."""

import argparse
import gc
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from headcount.cli import hydra_private
from headcount.cli.choices import config_dir
from headcount.cli.compose import compose, to_config
from headcount.cli.cross_validation import expand_folds
from headcount.cli.help import help_page
from headcount.cli.name import run_name
from headcount.cli.overrides import unknown_flag, written_out
from headcount.cli.start import INTERRUPTED, deferred_interrupt
from headcount.cli.status import (
    FAILED,
    REFUSED,
    HeadcountError,
    exit_on_error,
    print_any_name,
    print_error,
)
from headcount.cli.sweep import OBJECTIVE, SweepLog, check_jobs, sweeper
from headcount.commands import program
from headcount.config import ConfigError, TrainConfig, register_schemas
from headcount.wording import one_line

Task = Callable[[Any], dict[str, float] | None]
"""Called with the typed config, ``TrainConfig`` or ``EvalCommandConfig``; may return results for a sweep's table."""

# Flags with which Hydra prints something instead of running a task.
_HYDRA_FLAGS = ("cfg", "hydra_help", "shell_completion", "info")


def run_command(task: Task, config_name: str) -> None:
    """Run ``task`` once for each job that was typed on the command line.

    Args:
        task: what to do with the config of a job.
        config_name: ``train`` or ``eval``, the file in configs/ with the defaults.

    Exits with status 2 on a :class:`HeadcountError`, with its message and no traceback. A job of a sweep that
    fails, however, does not stop the others: it is listed at the end, and the status is that of a failure.
    """
    name = program(f"{config_name}.py")
    print_any_name()
    with exit_on_error(name):
        register_schemas()
        arguments = _read_command_line(config_name)
        if arguments.help:
            print(help_page(config_name))
            return
    log: SweepLog | None = None

    def job(cfg: DictConfig) -> float | None:
        hydra_config = HydraConfig.get()
        # As typed: a reference in a setting has another place here, relative to which it may not exist.
        overrides: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        run = partial(_run, task, cfg, overrides, config_name)
        if log is None:
            with exit_on_error(name, interrupts=False):  # Hydra would add text of its own to an error
                results = run()
        else:
            results = _run_logged(run, log, hydra_config.job.num, name, overrides)
        return results[OBJECTIVE] if results else None

    try:
        with exit_on_error(name, interrupts=False):
            if any(getattr(arguments, flag, None) for flag in _HYDRA_FLAGS):
                compose(arguments.overrides, config_name=config_name)
            else:
                jobs = check_jobs(arguments.overrides, multirun=bool(arguments.multirun), config_name=config_name)
                if arguments.multirun:
                    log = SweepLog.open(jobs, config_name, chosen_later=sweeper(arguments.overrides) is not None)
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(job)()
    except (KeyboardInterrupt, SystemExit) as stop:
        if log is not None:
            log.close()
        status = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else stop.code
        if isinstance(status, int) and status > 128 and not getattr(stop, "is_reported", False):  # by a signal
            hint = "; add resume=true to the same command to resume" if config_name == "train" else ""
            print(f"\n{name}: interrupted{hint}", file=sys.stderr)
        sys.exit(status)
    if log is not None and (status := log.close()):
        sys.exit(status)


@contextmanager
def importing() -> Iterator[None]:
    """Context for the imports of torch and what needs it: without garbage collection, they take a fifth less time.

    What they create stays, so that it is not searched for garbage later either. Ctrl-C waits until they are done.
    """
    if "torch" in sys.modules:  # an earlier job of a sweep, whose garbage must not stay
        yield
        return
    gc.disable()
    try:
        with deferred_interrupt():
            yield
    finally:
        gc.freeze()
        gc.enable()


def _read_command_line(config_name: str) -> argparse.Namespace:
    """Read ``sys.argv``, and rewrite it for Hydra, which reads it again, as does each process that is started.

    Raises:
        ConfigError: if there is an option that does not exist.
    """
    sys.argv = [sys.argv[0], *map(written_out, sys.argv[1:])]
    arguments = hydra_private.command_line()
    late = arguments.unknown
    for option in late:
        if option.startswith("-"):
            raise ConfigError(unknown_flag(sys.argv[sys.argv.index(option) :], ()))
    if late:  # Hydra does not read settings on both sides of a flag
        arguments.overrides += late
        flags = [text for text in sys.argv[1:] if text not in arguments.overrides]
        sys.argv = [sys.argv[0], *arguments.overrides, *flags]
    actions = [flag for flag in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(arguments, flag)]
    if len(actions) > 1:
        raise ConfigError(f"--{' --'.join(actions).replace('_', '-')}: exclude each other; type one of them")
    for flag in ("config_name", "config_path", "experimental_rerun"):
        if getattr(arguments, flag):
            raise ConfigError(f"--{flag.replace('_', '-')}: cannot be used here; type key=value")
    folds = expand_folds(arguments.overrides) if config_name == "train" and actions in ([], ["multirun"]) else None
    if folds is not None:
        flags = [text for text in sys.argv[1:] if text not in arguments.overrides]
        sys.argv = [sys.argv[0], *folds, *flags, *([] if actions else ["--multirun"])]
        arguments.overrides, arguments.multirun = folds, True
    return arguments


def _run(task: Task, cfg: DictConfig, overrides: Sequence[str], config_name: str) -> dict[str, float] | None:
    """Run the task with the typed config of one job."""
    config: Any = to_config(cfg)
    if isinstance(config, TrainConfig) and config.run_name == "auto":
        config.run_name = run_name(overrides, config_name=config_name)
    return task(config)


def _run_logged(
    run: Callable[[], dict[str, float] | None], log: SweepLog, number: int, program: str, overrides: list[str]
) -> dict[str, float] | None:
    """Run a job of a sweep and log its outcome; no error stops the other jobs."""
    results, status, reason = None, 0, ""
    try:
        results = run()
    except HeadcountError as error:
        print_error(program, error)
        status, reason = REFUSED, one_line(error)
    except Exception as error:
        traceback.print_exc()
        status, reason = FAILED, one_line(f"{type(error).__name__}: {error}")
    log.write(number, status=status, results=results, reason=reason, overrides=overrides)
    return results
