"""Names of files, end to end: what acts on a terminal, a spreadsheet or a browser is escaped wherever it is written."""

import csv
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from markdown import markdown
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.test_checkpoint import write_checkpoint
from fuzz.mutate import pick
from fuzz.settings import _run
from fuzz.verdict import shown
from headcount.cli import check_dataset, evaluate, predict, train

PIECES = (
    *("\x1b[31m", "\x1b]0;t\x07", "\n", "\r", "\t", "\x7f", "\x9b2J", "\u202e", "\u200b", "\u2028", "\udce9", "\udc9b"),
    *("=1+1", "+2", "-3", "@x", "＝1", "'=1", "<b>", "<script>x<", "<img src=x onerror=y>", "&lt;", "&", "-->", "<!--"),
    *("|", "\\|", "`", "``", "*a*", "_b_", "[x](javascript:y)", "![z](w)", "#", "- ", "1. ", "~~", "$x^2$", "$", "\\"),
    *(
        "{0}",
        "%s",
        "%d",
        "${x}",
        "é",
        "e\u0301",
        "日本",
        "👩\u200d👧",
        "a" * 120,
        " ",
        "'",
        '"',
        ";",
        ",",
        "~",
        "..",
        "*?",
    ),
    *("[1]", "x", "IMG_1", "0", "1e5", "nan", "None", "train", ":", "=", "(", "^"),
)
# What our own tables and texts become; a name must not become an element.
_ELEMENTS = {"p", "table", "thead", "tbody", "tr", "th", "td", "h1", "h2", "h3", "h4", "code", "pre", "ul", "ol", "li"}
_ELEMENTS |= {"em", "strong", "img", "a", "br", "hr", "blockquote"}
_FORMULAS = tuple("=+-@＝＋－＠\t\r")


def check(rng: np.random.Generator, folder: Path) -> str:
    """Count, audit and, now and then, train on and evaluate images with strange names."""
    os.chdir(folder)
    names = _names(rng)
    mine = folder / "mine"
    mine.mkdir()
    for k, name in enumerate(names):
        pixels = np.random.default_rng(k).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(mine / f"{name}.png", "PNG")
        (mine / f"{name}.csv").write_text("1,2\n3,4\n")
    if rng.random() < 0.3:
        (mine / f"{names[0]}.png").write_bytes(b"damaged")
    outcomes = [_predict(folder, names), _audit(rng, folder)]
    if rng.random() < 0.2:
        outcomes.append(_train(rng, folder))
    _check_files(folder, own={mine / f"{name}.csv" for name in names})
    return " ".join(outcomes)


def _names(rng: np.random.Generator) -> list[str]:
    found: dict[str, str] = {}
    while len(found) < 4:
        name = "".join(pick(rng, PIECES) for _ in range(int(rng.choice([1, 1, 2, 3])))).replace("/", "")
        if name and len(os.fsencode(f"{name}.csv")) < 200 and not name.startswith("."):
            found[name] = name
    return list(found)


def _command(main: object, program: str, *words: str) -> int:
    status, out, err = _run(main, program, list(words))  # type: ignore[arg-type]
    assert "Traceback" not in err, err
    assert status in (0, 1, 2), err
    shown(out)
    shown(re.sub(r"\r", "", err))  # of progress bars
    return status


def _predict(folder: Path, names: list[str]) -> str:
    write_checkpoint(folder, "model.width=8")
    status = _command(predict.main, "predict.py", "mine", "ckpt=best_mae.pt", "--output", "out")
    assert status in (0, 1)
    counted = json.loads((folder / "out" / "counts.json").read_text())["pictures"]
    assert len(counted) == len(names)
    return f"predict {status}"


def _audit(rng: np.random.Generator, folder: Path) -> str:
    words = [*_dataset(rng), "--output", "audit"]
    return f"audit {_command(check_dataset.main, 'check_dataset.py', *words)}"


def _train(rng: np.random.Generator, folder: Path) -> str:
    small = [
        "model=tiny",
        "model.width=8",
        "epochs=1",
        "optim.warmup_epochs=0",
        "batch_size=2",
        "augment.crop_size=32",
        "runtime=cpu",
    ]
    words = [*_dataset(rng), *small, "runtime.workers=0", "output_dir=runs", "run_name=r", "dataset.cache_dir=cache"]
    status = _command(train.main, "train.py", *words)
    if status == 0:
        (best,) = folder.glob("runs/**/best_mae.pt")
        words = [f"ckpt={best.relative_to(folder)}", "split=val", "runtime=cpu", *_dataset(rng)]
        status = _command(evaluate.main, "eval.py", *words, "dataset.cache_dir=cache")
        assert status == 0
    return f"train {status}"


def _dataset(rng: np.random.Generator) -> list[str]:
    return [
        *("dataset=custom", "dataset.root=mine", "dataset.min_side=32", "dataset.side_multiple=32"),
        *("dataset.val_fraction=0.5", "dataset.test_fraction=0", "dataset.skip_bad=true"),
    ]


# --------------------------------------------------------------------------------------- what was written


def _check_files(folder: Path, *, own: set[Path]) -> None:
    """Check every file that was written."""
    for path in sorted(folder.rglob("*")):
        if path in own or not path.is_file() or "mine" in path.parts:
            continue
        try:
            if path.suffix == ".csv":
                _check_csv(path)
            elif path.suffix == ".md":
                _check_markdown(path.read_text(encoding="utf-8"))
            elif path.suffix in (".json", ".jsonl"):
                shown(path.read_text(encoding="utf-8"))
                [json.loads(line) for line in ([path.read_text()] if path.suffix == ".json" else path.open())]
            elif path.suffix in (".png", ".jpg") and "cache" not in path.parts:
                with Image.open(path) as image:
                    image.load()
            elif path.name.startswith("events.out"):
                _check_events(path)
        except AssertionError as error:
            raise AssertionError(f"{str(path)!a}: {error}") from error


def _check_csv(path: Path) -> None:
    """No cell acts on a terminal or is computed by a spreadsheet."""
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    assert {len(row) for row in rows} == {len(rows[0])}
    for cell in (cell for row in rows for cell in row):
        shown(cell.replace("\n", "\0"))
        is_number = re.fullmatch(r"[+-]?(\d+\.?\d*(e[+-]?\d+)?|nan|inf)|-", cell)
        assert is_number or not cell.startswith(_FORMULAS), f"a spreadsheet would compute {cell!r}"


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.columns: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _ELEMENTS, f"an element {tag}"
        for name, value in attrs:
            assert name in ("src", "alt", "href", "title", "style", "align", "start"), f"an attribute {name} of {tag}"
            assert not re.match(r"\s*(javascript|data):", value or "", re.IGNORECASE), value
            assert tag != "img" or name != "src" or (value or "").endswith((".png", ".jpg")), f"an image {value}"

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment {data}")


def _check_markdown(text: str) -> None:
    """A name becomes neither an element nor a comment, and no cell of a table is split."""
    shown(text)
    _Elements().feed(markdown(text, extensions=["tables"]))
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, f"rows of {sorted(widths)} columns: {block[:500]}"


def _check_events(path: Path) -> None:
    """Tags are shown as text and are paths in TensorBoard's addresses."""
    events = EventAccumulator(str(path))
    events.Reload()
    tags = [tag for found in events.Tags().values() if isinstance(found, list) for tag in found]
    assert tags
    for tag in tags:
        shown(tag.replace("\n", "\0"))
