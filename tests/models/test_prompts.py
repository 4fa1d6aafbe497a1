"""Sentences of the bins: the released texts to the letter, section III-B for the rest."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from headcount.bins import integer_bins
from headcount.config import ClipResNetConfig, CountStyle, LastPrompt, PromptsConfig, Strategy
from headcount.models.prompts import write_gate_prompts, write_prompts

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "text"
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text())
TEXTS = json.loads((GOLDEN / "texts.json").read_text())
INF = float("inf")


def edges_of(bins: list[list[float | str]]) -> list[tuple[float, float]]:
    return [(float(low), float(high)) for low, high in bins]


def test_every_released_set_of_bins() -> None:
    """Where the released code fails, at bins of several counts, the text its authors meant."""
    rows = PROMPTS["config_prompts"]
    assert len(rows) > 30
    for row in rows:
        style = CountStyle[row["prompt_type"]]
        written = write_prompts(edges_of(row["bins"]), PromptsConfig(style=style))
        assert written == row["intended"]
        assert [t for t, o in zip(written, row["official"], strict=True) if isinstance(o, str)] == [
            o for o in row["official"] if isinstance(o, str)
        ]


@pytest.mark.parametrize("style", list(CountStyle), ids=lambda s: s.name)
def test_every_count(style: CountStyle) -> None:
    golden = PROMPTS["counts_0_1000"][style.name]
    counts = [int(re.findall(r"\d+", text)[0]) for text in PROMPTS["counts_0_1000"]["number"]]
    assert {*range(101), 200, 999, 1000, 1001} <= set(counts)
    edges = [(float(k), float(k)) for k in counts]
    assert write_prompts(edges, PromptsConfig(style=style)) == golden


def test_tokens_are_the_released_ones() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    golden = np.load(GOLDEN / "tokens.npz")
    tokens = golden[golden.files[0]]
    assert len(TEXTS) == len(tokens) > 200
    np.testing.assert_array_equal(SimpleTokenizer()(TEXTS), tokens)


def test_every_strategy_has_a_prompt_for_every_bin() -> None:
    expected = {
        Strategy.fine: "There are more than eight people.",
        Strategy.dynamic: "There are between six and seven people.",
        Strategy.coarse: "There are between one and two people.",
    }
    for strategy, text in expected.items():
        edges = integer_bins(strategy, 8)
        written = write_prompts(edges, PromptsConfig())
        assert len(written) == len(edges) == len(set(written))
        assert text in written


def test_m_or_more() -> None:
    edges = [(0.0, 0.0), (1.0, 1.0), (2.0, INF)]
    last = LastPrompt.m_or_more
    assert write_prompts(edges, PromptsConfig(last=last))[-1] == "There are two or more people."
    assert write_prompts(edges, PromptsConfig(last=last, style=CountStyle.number))[-1] == "There are 2 or more people."


def test_other_nouns_and_phrasings() -> None:
    edges = [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 4.0), (5.0, INF)]
    cars = PromptsConfig(
        singular="car", plural="cars", one="a photo of {count} {noun}", many="a photo of {count} {noun}"
    )
    assert write_prompts(edges, cars) == [
        "a photo of no car",
        "a photo of one car",
        "a photo of two cars",
        "There are between three and four cars.",
        "There are more than five cars.",
    ]


@pytest.mark.parametrize(
    ("key", "phrase"),
    [
        ("many", "People."),
        ("one", "{count} {nuon}"),
        ("between", "{low} {noun}"),
        ("m_or_more", "{"),
        ("one", "{count:zzz} {noun}"),
        ("many", "{count!x}"),
        ("many", "{count!r} {noun}"),
        ("many", "{count} {noun:>9}"),
    ],
)
def test_a_phrase_that_cannot_be_written_is_refused(key: str, phrase: str) -> None:
    from headcount.config.model import errors

    model = ClipResNetConfig(prompts=PromptsConfig(**{key: phrase}))
    (error,) = errors(model)
    assert error.startswith(f"model.prompts.{key}={phrase}: must hold")


@pytest.mark.parametrize("last", list(LastPrompt), ids=lambda last: last.name)
def test_the_two_sentences_of_an_empty_block_and_of_another(last: LastPrompt) -> None:
    config = PromptsConfig(singular="cow", plural="cows", last=last)
    assert write_gate_prompts(config) == ["There is no cow.", "There are one or more cows."]
