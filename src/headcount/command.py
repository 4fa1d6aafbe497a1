"""What train.py and eval.py share: compose, explain what is wrong, name the run, help.

Hydra's own messages do not list what is allowed, so everything that was typed (each job of a
sweep included) is composed once here, and refused in our words, before torch is loaded.
"""

import difflib
import hashlib
import itertools
import json
import os
import re
import statistics
import sys
import textwrap
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headcount.config import PLACE, SCHEMAS, ConfigError, TrainConfig, check, check_evaluation, register_schemas

# Settings that do not change what is learned, and so are no part of a run's name.
_NOT_IN_NAME = (*PLACE, "seed", "eval", "runtime.devices")
_LONGEST_NAME = 120
# What a choice is called, which belongs to it.
_NAMES = ("dataset.name", "model.name", "loss.name")
# Jobs that differ in these alone repeat one experiment.
_REPEATS = ("seed=", "dataset.fold=")
_EXAMPLES = {
    "train": """
Train a crowd counter by enhanced blockwise classification (arXiv:2403.09281).

  python train.py                                         the quickstart: generated crowds, nothing to download
  python train.py dataset=sha model=mobilenet_v2 data_root=~/data      ShanghaiTech part A
  python train.py dataset=sha model=vgg19 dry_run=true    build everything, say what it costs, stop
  python train.py -m bins=fine,dynamic,coarse seed=1,2    a sweep of six runs
  python train.py resume=true                             go on after an interruption; works for sweeps too
""",
    "eval": """
Evaluate a checkpoint on whole images: MAE, RMSE, NAE, a table and a picture.

  python eval.py ckpt=checkpoints/synthetic/tiny_fine/seed1/best_mae.pt
  python eval.py ckpt=checkpoints/synthetic/tiny_fine/seed1/best_mae.pt split=val
  python eval.py ckpt=checkpoints/synthetic/tiny_fine/seed1/last.pt output_dir=/tmp/last
  python eval.py ckpt=checkpoints/sha/mobilenet_v2_fine/seed1/best_mae.pt data_root=~/data
  python eval.py ckpt=checkpoints/synthetic/tiny_fine/seed1/best_mae.pt eval.pictures=20
""",
}
INTERRUPTED = 130
"""Exit status of a command stopped by Ctrl-C, as shells give it."""
_HYDRA_FLAGS = ("cfg", "hydra_help", "version", "shell_completion", "info")


def command(task: Callable[[Any], dict[str, float] | None], script: str) -> None:
    """Run ``task`` once for each job that was typed on the command line.

    Args:
        task: called with the typed config (``TrainConfig`` or ``EvalCommandConfig``); may return figures, which
            a sweep ends by listing.
        script: path of train.py or eval.py; configs/ lies beside it, with a YAML file of its name.

    Exits with status 2 on a :class:`ConfigError`, with a message and no stack trace. A job of a sweep that
    fails, however, does not stop the others: it is listed at the end, and the status is 1.
    """
    config_name, config_dir = Path(script).stem, Path(script).resolve().parent / "configs"
    register_schemas()
    sys.argv = [sys.argv[0], *map(_with_home, sys.argv[1:])]  # which Hydra reads, in each process that is started
    arguments = get_args_parser().parse_args()
    if arguments.help:
        print(help_page(config_name, config_dir=config_dir))
        return
    log: Path | None = None  # what the jobs of a sweep tell, wherever they run

    def job(cfg: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        told: dict[str, Any] = {}
        try:
            config: Any = OmegaConf.to_object(cfg)
            if isinstance(config, TrainConfig) and config.run_name == "auto":
                config.run_name = run_name(
                    list(hydra_config.overrides.task), config_name=config_name, config_dir=config_dir
                )
            told["figures"] = task(config)
        except ConfigError as error:
            print(f"{config_name}.py: {error}", file=sys.stderr)
            if log is None:
                sys.exit(2)  # Hydra would add its own words to an error
            told["status"] = 2
        except Exception:
            if log is None:
                raise
            told["status"] = 1
            traceback.print_exc()
        if log is not None:
            with log.open("a") as file:
                file.write(json.dumps({"job": hydra_config.job.num, **told}) + "\n")

    try:
        if not any(getattr(arguments, flag, None) for flag in _HYDRA_FLAGS):
            jobs = _refuse_early(arguments.overrides, bool(arguments.multirun), config_name, config_dir)
            if arguments.multirun:
                log = _sweep_log(jobs[0], config_name, config_dir)
        hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(job)()
    except ConfigError as error:
        print(f"{config_name}.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if log is not None:
            _close_sweep(log, jobs)
        go_on = "; the same command with resume=true goes on" if config_name == "train" else ""
        print(f"\n{config_name}.py: interrupted{go_on}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if log is not None and (status := _close_sweep(log, jobs)):
        sys.exit(status)


def _sweep_log(job: Sequence[str], config_name: str, config_dir: Path) -> Path:
    """A new file in the sweep's folder, which all jobs reach."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir), version_base="1.3"):
        folder = Path(hydra.compose(config_name, list(job), return_hydra_config=True).hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve() / f"{uuid.uuid4().hex}.jsonl"


def _close_sweep(log: Path, jobs: Sequence[list[str]]) -> int:
    """Print the figures of a sweep's jobs and list those that failed or never told; the exit status."""
    told = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    told.sort(key=lambda one: one["job"])
    if finished := [(jobs[one["job"]], one["figures"]) for one in told if one.get("figures")]:
        print(sweep_table(finished, common=set.intersection(*map(set, jobs))))
    failed = [" ".join(jobs[one["job"]]) for one in told if one.get("status")]
    unfinished = [" ".join(jobs[k]) for k in sorted({*range(len(jobs))} - {one["job"] for one in told})]
    for title, lines in (("failed", failed), ("not finished", unfinished)):
        if lines:
            print(f"{title}:", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)
    return 1 if unfinished else max(one.get("status", 0) for one in told)


def sweep_table(jobs: Sequence[tuple[list[str], dict[str, float]]], *, common: set[str]) -> str:
    """The figures of a sweep's jobs, and mean and standard deviation of those that differ in seed or fold alone.

    Args:
        jobs: what was typed for each, and its figures; all have the same ones.
        common: what was typed for every job of the sweep, those that failed included; it is not repeated.
    """
    groups: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for typed, figures in jobs:
        differs = [override for override in typed if override not in common]
        repeats = [o for o in differs if o.startswith(_REPEATS)]
        group = " ".join(o for o in differs if o not in repeats)
        groups.setdefault(group, []).append((" ".join(repeats), figures))
    keys = list(jobs[0][1])
    rows = [["", *keys]]
    for group, members in groups.items():
        rows += [[" ".join((group, repeat)).strip(), *(f"{v[k]:.2f}" for k in keys)] for repeat, v in members]
        if len(members) > 1:
            columns = [[figures[key] for _, figures in members] for key in keys]
            spread = [f"{statistics.mean(c):.2f} +- {statistics.stdev(c):.2f}" for c in columns]
            rows.append([f"{group} mean of {len(members)}".strip(), *spread])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


# ------------------------------------------------------------------------------ composing what was typed


def compose(overrides: Sequence[str], *, config_name: str, config_dir: Path) -> DictConfig:
    """The config that Hydra composes of ``overrides``.

    Raises:
        ConfigError: names the key, the value, what is allowed, and the nearest match.
    """
    register_schemas()
    groups = _groups(config_name, config_dir)
    overrides = [_with_home(text) for text in overrides]
    parsed = _parse(overrides)
    for override in parsed:
        key, value = str(override.key_or_group), override.value()
        if key in groups and not isinstance(value, str):  # Hydra would merge a dictionary into the group
            raise ConfigError(_no_choice(key, value, groups[key]))
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir), version_base="1.3"):
        try:
            cfg = hydra.compose(config_name, overrides)
        except (HydraException, OmegaConfBaseException, ValueError, AttributeError, AssertionError) as error:
            raise ConfigError(_explain(overrides, error, config_name, config_dir)) from error
        if any(str(override.key_or_group) in _NAMES for override in parsed):
            chosen = [str(o.input_line) for o in parsed if str(o.key_or_group) in groups]
            _refuse_other_names(cfg, hydra.compose(config_name, chosen))
        return cfg


def _refuse_other_names(cfg: DictConfig, chosen: DictConfig) -> None:
    """A name stands for what was chosen: under another, its runs would pass for those of something else."""
    for key in _NAMES:
        name, fixed = (OmegaConf.select(c, key) for c in (cfg, chosen))
        if fixed is not None and name != fixed:  # a choice without a name (model=timm) takes any
            raise ConfigError(f"{key}={name}: is always {fixed}; choose another with {key.partition('.')[0]}=...")


def to_config(cfg: DictConfig) -> Any:
    """The typed config of a composed one.

    Raises:
        ConfigError: if something is not set.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]} is not set: type {missing[0]}=...")
    return OmegaConf.to_object(cfg)


def _refuse_early(overrides: Sequence[str], multirun: bool, config_name: str, config_dir: Path) -> list[list[str]]:
    """Compose and check every job before the first one starts; the overrides of each."""
    launched = any(o.startswith("hydra/launcher=") for o in overrides)
    jobs = list(_jobs(overrides, multirun, config_name, config_dir))
    for k, job in enumerate(jobs):
        if job in jobs[:k]:
            raise ConfigError(f"{' '.join(job)}: comes twice in this sweep; name each value once")
        cfg = compose(job, config_name=config_name, config_dir=config_dir)
        config = to_config(cfg)
        errors = check(config) if isinstance(config, TrainConfig) else check_evaluation(config)
        if multirun and not launched and config.runtime.devices > 1:
            errors.append(
                f"runtime.devices={config.runtime.devices}: a sweep in one process cannot start several; run the jobs "
                "one by one, or each as a job of its own on a SLURM cluster with hydra/launcher=submitit_slurm "
                "(pip install hydra-submitit-launcher)"
            )
        if errors:
            raise ConfigError("\n  ".join(errors))
    return jobs


def _jobs(overrides: Sequence[str], multirun: bool, config_name: str, config_dir: Path) -> Iterator[list[str]]:
    """The overrides of each job: the product of all comma-separated choices of a multirun."""
    choices: list[list[str]] = []
    for override in _parse(overrides):
        if not override.is_sweep_override():
            choices.append([str(override.input_line)])
        elif multirun:
            key = override.get_key_element()
            try:
                choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            except HydraException as error:  # a glob or an interval, which only other sweepers can enumerate
                raise ConfigError(f"{override.input_line}: name the values, as in {key}=a,b ({error})") from error
        else:
            raise ConfigError(f"{override.input_line}: several values make a sweep; add -m, or quote the value")
    yield from (list(job) for job in itertools.product(*choices))


def quoted(path: Path) -> str:
    """A path as Hydra reads it: in quotes where it holds more than plain characters."""
    if re.fullmatch(r"[A-Za-z0-9._+/~-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _with_home(text: str) -> str:
    """``key=~/folder``, which a shell may leave as it is and Hydra cannot read, with the home folder's path."""
    key, equals, value = text.partition("=")
    return key + equals + re.sub(r"(?<![^,])~(?=[/,]|$)", lambda tilde: os.path.expanduser("~"), value)


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in map(_with_home, overrides):
        try:
            parsed.append(parser.parse_override(text))
            added_or_removed = parsed[-1].is_add() or parsed[-1].is_force_add() or parsed[-1].is_delete()
            if added_or_removed and not str(parsed[-1].key_or_group).startswith("hydra"):
                raise ConfigError(
                    f"{text}: nothing can be added or removed, only set; type key=value without {text[0]!r}"
                )
        except HydraException as error:
            raise ConfigError(
                f"{text}: cannot be read; type key=value, and put quotes around values that hold spaces, "
                f"'=', ',', '~', brackets or letters with accents: {text.partition('=')[0]}=\"'...'\""
            ) from error
    return parsed


# --------------------------------------------------------------------------------------- explaining


def _choices(config_dir: Path) -> dict[str, list[str]]:
    """The groups and what can be chosen in each: the folders and files of ``config_dir``."""
    groups: dict[str, list[str]] = {}
    for file in sorted(config_dir.rglob("*.yaml")):
        group = file.parent.relative_to(config_dir).as_posix()
        if group != ".":
            groups.setdefault(group.split("/")[0], []).append(
                file.relative_to(config_dir / group.split("/")[0]).with_suffix("").as_posix()
            )
    return groups


@cache  # each composition asks
def _groups(config_name: str, config_dir: Path) -> dict[str, list[str]]:
    """The groups that a command chooses from, with what can be chosen: those of its defaults list."""
    defaults = _default_choices(config_name, config_dir)
    return {group: choices for group, choices in _choices(config_dir).items() if group in defaults}


def _nearest(word: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _no_choice(group: str, value: Any, choices: Sequence[str]) -> str:
    return f"{group}={value}: no such choice; allowed are {', '.join(choices)}" + _nearest(str(value), choices)


def _explain(overrides: Sequence[str], error: Exception, config_name: str, config_dir: Path) -> str:
    """Find the override that cannot be, and say what could."""
    groups = _groups(config_name, config_dir)
    parsed = [o for o in _parse(overrides) if not str(o.key_or_group).startswith("hydra")]
    good: list[str] = []
    for override in parsed:
        key, value = str(override.key_or_group), override.value()
        if override.is_sweep_override():
            return f"{override.input_line}: several values; one is needed here"
        if key in groups:
            if value not in groups[key]:
                return _no_choice(key, value, groups[key])
            good.append(str(override.input_line))
    base = hydra.compose(config_name, good)
    for override in parsed:
        key = str(override.key_or_group)
        if key not in groups and (problem := _problem(base, key, override.value(), config_dir)):
            return problem
    return f"{' '.join(overrides)}: {error}"


def _problem(base: DictConfig, key: str, value: Any, config_dir: Path) -> str | None:
    """Why ``key`` cannot be ``value`` in ``base``; None if it can."""
    node: Any = base
    path = ""
    for part in key.split("."):
        if isinstance(node, DictConfig) and node._is_none():
            return f"{key}={value}: no {path} is chosen; add {path}=..., which {part} is a setting of"
        if not isinstance(node, DictConfig) or part not in map(str, node):  # which a value still missing is in
            allowed = sorted(str(k) for k in node) if isinstance(node, DictConfig) else []
            where = f"{path} has no {part}" if path else f"there is no setting {part}"
            hint = _hint(base, path, part, allowed, config_dir)
            return f"{key}={value}: {where}; allowed are {', '.join(allowed) or 'none'}{hint}"
        path = f"{path}.{part}" if path else part
        parent, node = node, node._get_node(part)
    try:
        OmegaConf.update(parent, key.split(".")[-1], value)
    except (OmegaConfBaseException, AttributeError):  # OmegaConf fails in its own way on a null dictionary
        return f"{key}={value}: {path} takes {_type_words(node)}"
    return None


def _hint(base: DictConfig, path: str, part: str, allowed: Sequence[str], config_dir: Path) -> str:
    """Where a key that ``path`` does not have may be instead."""
    owners = [choice for choice, schema in _schemas(path, config_dir).items() if hasattr(schema, part)]
    if owners:
        return f"; {part} is a setting of {path}={', '.join(owners)}"
    if near := _nearest(part, allowed):
        return near
    inner = [
        f"{group}.{k}"
        for group, node in ((str(g), n) for g, n in base.items())
        if isinstance(node, DictConfig)
        for k in map(str, node)
    ]
    same = [key for key in inner if key.split(".")[-1] == part]
    return f"; did you mean {' or '.join(same)}?" if same else ""


def _schemas(group: str, config_dir: Path) -> dict[str, type]:
    """The schema of each choice of ``group``, which its defaults list names."""
    schemas = {}
    for file in sorted((config_dir / group).glob("*.yaml")) if group in SCHEMAS else []:
        if named := re.search(rf"/schema/{group}/(\w+)@", file.read_text()):
            schemas[file.stem] = SCHEMAS[group][named[1]]
    return schemas


def _type_words(node: Any) -> str:
    reference = node._metadata.ref_type
    optional = " or null" if node._metadata.optional else ""
    if isinstance(reference, type) and issubclass(reference, Enum):
        return "one of " + ", ".join(reference.__members__) + optional
    if isinstance(node, DictConfig):
        return "settings of its own: " + ", ".join(f"{node._get_full_key(k)}" for k in map(str, node))
    if isinstance(node, ListConfig):
        return "a list such as [0.5,0.5,0.5]" + optional
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(reference, str(reference)) + optional


# -------------------------------------------------------------------------------------------- naming


def run_name(overrides: Sequence[str], *, config_name: str, config_dir: Path) -> str:
    """A name for a run: model, bins, and every setting that differs from the defaults.

    Without '=' (Hydra could not read a checkpoint's path), ',' or '/'; names over 120 characters
    are cut and end in a hash of the whole.
    """
    groups = _choices(config_dir)
    parsed = _parse(overrides)
    chosen = {str(o.key_or_group): str(o.value()) for o in parsed if str(o.key_or_group) in groups}
    default = _default_choices(config_name, config_dir)
    base = compose([f"{k}={v}" for k, v in chosen.items()], config_name=config_name, config_dir=config_dir)
    full = compose(overrides, config_name=config_name, config_dir=config_dir)
    # An experiment chooses its own model and bins: its name says which.
    named = [] if "experiment" in chosen else ["model", "bins"]
    parts = [chosen.get(group, default[group]) for group in named]
    parts += [chosen["experiment"]] if "experiment" in chosen else []
    for key, value in sorted(chosen.items()):
        if key not in (*named, "experiment", "dataset", "eval", "runtime") and (not named or value != default[key]):
            parts.append(f"{key}-{value}")
    for override in sorted(parsed, key=lambda o: str(o.key_or_group)):
        key = str(override.key_or_group)
        if key in groups or any(key == skip or key.startswith(f"{skip}.") for skip in _NOT_IN_NAME):
            continue
        value = OmegaConf.select(full, key)
        if value != OmegaConf.select(base, key):
            parts.append(f"{key}-{_slug(value.name if isinstance(value, Enum) else str(value))}")
    name = "_".join(parts).replace("/", "-")
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST_NAME - 9]}-{digest}"
    return name


def _slug(value: str) -> str:
    """A value as part of a name; what cannot be written, a path's folders say, is told apart by a hash."""
    plain = value.strip("[]").replace(", ", "-")
    short = re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(plain).stem if "/" in plain else plain)
    return short if short == plain else f"{short}-{hashlib.sha256(value.encode()).hexdigest()[:6]}"


def _default_choices(config_name: str, config_dir: Path) -> dict[str, str]:
    """Group -> choice of the defaults list of ``config_name``."""
    entries: Any = OmegaConf.select(OmegaConf.load(config_dir / f"{config_name}.yaml"), "defaults")
    return {str(k): str(v) for e in entries if isinstance(e, DictConfig) for k, v in e.items() if " " not in str(k)}


# ---------------------------------------------------------------------------------------------- help


def help_page(config_name: str, *, config_dir: Path) -> str:
    """A page for people: what can be chosen, the settings outside the groups, examples."""
    cfg = compose([], config_name=config_name, config_dir=config_dir)
    defaults = _default_choices(config_name, config_dir)
    lines = [_EXAMPLES[config_name].strip(), "", "Choices (the default is marked with *):", ""]
    for group, names in _groups(config_name, config_dir).items():
        marked = [f"{n}*" if n == defaults.get(group) else n for n in names]
        lines.append(textwrap.fill(f"  {group + '=':<12} {'  '.join(marked)}", 100, subsequent_indent=" " * 15))
    lines += ["", "Settings:", ""]
    for key in map(str, cfg):
        if key not in defaults:
            value = "(needed)" if OmegaConf.is_missing(cfg, key) else cfg[key]
            shown = str(value).lower() if isinstance(value, bool) else "null" if value is None else value
            lines.append(f"  {key}={shown}")
    lines += [
        "",
        f"Every setting of every group:  python {config_name}.py --cfg job",
        f"Only one group:                python {config_name}.py --cfg job --package {next(iter(defaults))}",
        "Change any of them:            key=value, such as " + "runtime.workers=2",
        "A sweep:                       -m key=value,value",
    ]
    return "\n".join(lines)
