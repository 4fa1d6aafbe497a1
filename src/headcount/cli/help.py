"""The help page of train.py and eval.py: what can be chosen, the settings outside the groups, examples."""

import textwrap

from omegaconf import OmegaConf

from headcount.cli.choices import command_choices, default_choices, dotted, owners
from headcount.cli.compose import chosen, compose
from headcount.cli.meanings import meanings, typed_value
from headcount.commands import as_typed

_EXAMPLES = {
    "train": """
Train a crowd counter by enhanced blockwise classification (arXiv:2403.09281).

  python train.py                                         the quickstart: generated crowds, nothing to download
  python train.py dataset=sha model=mobilenet_v2 data_root=~/data      ShanghaiTech part A
  python train.py dataset=sha model=vgg19 dry_run=true    build everything, print its cost, and stop
  python train.py -m bins=fine,dynamic,coarse seed=1,2    a sweep of six runs
  python train.py resume=true                             resume after an interruption; works for sweeps too
""",
    "eval": """
Evaluate a checkpoint on whole images: MAE, RMSE, NAE, a table and a picture.

  python eval.py ckpt=checkpoints/synthetic/tiny_fine/seed1/best_mae.pt
  python eval.py ckpt=checkpoints/synthetic/tiny_fine/seed1/best_mae.pt split=val
  python eval.py ckpt=checkpoints/synthetic/tiny_fine/seed1/last.pt output_dir=/tmp/last
  python eval.py ckpt=checkpoints/sha/mobilenet_v2_fine/seed1/best_mae.pt data_root=~/data    the images moved
  python eval.py ckpt=checkpoints/synthetic/tiny_fine/seed1/best_mae.pt eval.pictures=20
""",
}
_INDENT = " " * 19


def help_page(config_name: str) -> str:
    """The help page of a command, ``train`` or ``eval``, as the user typed it."""
    return as_typed(_page(config_name))


def _page(config_name: str) -> str:
    cfg = compose([], config_name=config_name)
    defaults = default_choices(config_name)
    lines = [_EXAMPLES[config_name].strip(), "", "Choices (the default is marked with *):", ""]
    by_default = chosen([], config_name=config_name)
    groups = command_choices(config_name)
    for group, choices in groups.items():
        parent, _, setting = group.rpartition("/")
        having = owners(parent, setting)
        default = by_default.get(group)
        if default is None and having:  # the default choice of the outer group has no such group
            default = default_choices(f"{parent}/{having[0]}").get(setting)
        marked = [f"{choice}*" if choice == default else choice for choice in choices]
        line = f"  {dotted(group) + '=':<16} {'  '.join(marked)}"
        if parent and having != groups[parent]:
            line += f"   with {parent}={', '.join(having)}"
        lines.append(textwrap.fill(line, 100, subsequent_indent=_INDENT))
    lines += ["", "Settings:", ""]
    for key in map(str, cfg):
        if key not in defaults:
            shown = "(required)" if OmegaConf.is_missing(cfg, key) else typed_value(cfg[key])
            (meaning,) = meanings("", key, config_name)
            lines.append(textwrap.fill(f"  {f'{key}={shown}':<24} {meaning.text}", 100, subsequent_indent=" " * 27))
    lines += [
        "",
        f"Every setting of every group:  python {config_name}.py --cfg job",
        f"Only one group:                python {config_name}.py --cfg job --package {next(iter(defaults))}",
        "Change any of them:            key=value, such as runtime.workers=2",
        "A sweep:                       -m key=value,value",
        "The meaning of a setting:      headcount explain runtime.workers",
    ]
    return "\n".join(lines)
