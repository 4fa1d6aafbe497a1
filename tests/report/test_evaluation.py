"""An evaluation on disk: what is asked for is drawn, what is drawn is listed, and nothing old stays."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headcount.data.crowd import CrowdDataset
from headcount.metrics import Reliability
from headcount.report.evaluation import write_evaluation
from headcount.runs import EvaluationFacts
from headcount.types import CountErrors, Evaluation, ImageCount

PICTURES = {"worst.png", "scatter.png", "levels.png", "reliability.png"}
FACTS = EvaluationFacts(
    checkpoint="best_mae.pt",
    dataset="sha",
    split="test",
    trained_on="sha",
    images=3,
    mode="whole image",
    epoch=3,
    selected_on="test",
    scale="small",
    seed=1,
    commit="unknown",
    block_size=8,
    pictures=2,
)


@pytest.fixture
def dataset() -> CrowdDataset:
    """Three images of 16 px with no, one and two heads."""
    return CrowdDataset(
        ["none", "one", "two"],
        lambda index: torch.full((3, 16, 16), 80 * index, dtype=torch.uint8),
        [torch.full((n, 2), 4.0) for n in range(3)],
        source_sizes=[(16, 16)] * 3,
        sizes=[(16, 16)] * 3,
    )


@pytest.fixture
def evaluation(dataset: CrowdDataset) -> Evaluation:
    """Each image is said to show two heads."""
    images = [
        ImageCount(k, name, float(k), 2.0, torch.full((2, 2), 0.5), {"game1": 1.0, "game2": 2.0, "game3": 3.0})
        for k, name in enumerate(dataset.names)
    ]
    return Evaluation(CountErrors.from_counts([2.0] * 3, [0.0, 1.0, 2.0]), images)


@pytest.fixture
def reliability() -> Reliability:
    seen = Reliability(["{0}", "[1, inf)"])
    seen.add(torch.tensor([0.75, 0.25])[:, None, None].expand(2, 1, 4), torch.tensor([[0, 0, 1, 1]]))
    return seen


def test_everything_is_drawn_and_listed(
    tmp_path: Path,
    evaluation: Evaluation,
    dataset: CrowdDataset,
    reliability: Reliability,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_evaluation(evaluation, dataset, tmp_path, facts=FACTS, reliability=reliability)
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"metrics.json", "counts.csv", *PICTURES}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)
    listed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {tmp_path}")]
    assert {Path(line) for line in listed} == {tmp_path / name for name in files}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["mae"] == 1
    assert metrics["calibration_error"] == 0.25
    rows = list(csv.DictReader((tmp_path / "counts.csv").read_text().splitlines()))
    assert [(row["image"], row["true"], float(row["error"])) for row in rows] == [
        ("none", "0", 2),
        ("one", "1", 1),
        ("two", "2", 0),
    ]


def test_names_and_facts_act_on_nothing(
    tmp_path: Path, evaluation: Evaluation, dataset: CrowdDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["=cmd|' /C calc'!A0", "a\x1b[2J\nb", "caf\udce9\u202e"]
    for image, name in zip(evaluation.images, names, strict=True):
        image.name = name
    facts = replace(FACTS, trained_on="mine (/\x1b]0;owned\x07)", selected_on="\x9b2J", pictures=3)
    write_evaluation(evaluation, dataset, tmp_path / "caf\u00e9", facts=facts)
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert r"trained on mine (/\x1b]0;owned\x07), not on sha" in out
    content = (tmp_path / "caf\u00e9" / "counts.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(content.splitlines()))
    assert [row["image"] for row in rows] == ["'=cmd|' /C calc'!A0", r"a\x1b[2J\nb", r"caf\udce9\u202e"]
    assert [float(row["error"]) for row in rows] == [2, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("seen", [None, Reliability(["{0}", "[1, inf)"])], ids=["no bins", "no blocks"])
def test_without_probabilities_there_is_no_reliability(
    seen: Reliability | None, tmp_path: Path, evaluation: Evaluation, dataset: CrowdDataset
) -> None:
    (tmp_path / "reliability.png").write_text("of an earlier evaluation")
    write_evaluation(evaluation, dataset, tmp_path, facts=FACTS, reliability=seen)
    assert {f.name for f in tmp_path.glob("*.png")} == PICTURES - {"reliability.png"}
    assert json.loads((tmp_path / "metrics.json").read_text())["calibration_error"] is None


def test_an_evaluation_of_something_else_is_not_replaced_without_a_word(
    tmp_path: Path, evaluation: Evaluation, dataset: CrowdDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = replace(FACTS, pictures=0)

    def said(facts: EvaluationFacts) -> list[str]:
        write_evaluation(evaluation, dataset, tmp_path, facts=facts)
        return [line.strip() for line in capsys.readouterr().out.splitlines() if "Replaced" in line]

    assert said(plain) == said(plain) == said(replace(plain, checkpoint="./best_mae.pt")) == []
    assert said(replace(plain, epoch=4, mode="windows")) == [
        "Replaced an earlier evaluation in this folder: mode whole image, epoch 3."
    ]
    said(plain)
    assert said(replace(plain, settings={"dataset.min_side": "256"})) == [
        "Replaced an earlier evaluation in this folder: other settings."
    ]
    said(plain)
    (tmp_path / "metrics.json").write_text("[" * 100_000)  # by somebody else
    assert said(plain) == []
    evaluation.images[0].true = 7.0
    assert said(plain) == ["Replaced an earlier evaluation in this folder: other images or annotations."]
    (tmp_path / "metrics.json").write_text("{}")  # of no evaluation, or an early one
    assert said(plain) == []


def test_pictures_of_an_earlier_evaluation_go(
    tmp_path: Path,
    evaluation: Evaluation,
    dataset: CrowdDataset,
    reliability: Reliability,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in PICTURES:
        (tmp_path / name).write_text("of an earlier evaluation")
    (tmp_path / "mine.png").write_text("something else")
    write_evaluation(evaluation, dataset, tmp_path, facts=replace(FACTS, pictures=0), reliability=reliability)
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.json", "counts.csv", "mine.png"}
    assert ".png" not in capsys.readouterr().out
