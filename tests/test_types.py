"""What a counter was trained on, and what lies far outside it."""

import pytest

from headcount.types import SeenImages

SEEN = SeenImages.from_images([(400, 300), (700, 200)], [(448, 448), (1568, 448)], [0, 40])


def test_the_limits_of_training_images() -> None:
    assert (SEEN.shortest_side, SEEN.longest_side, SEEN.most_heads) == (200, 1568, 40)
    assert SeenImages.from_plain(SEEN.to_plain(), crop_size=64) == SEEN
    for damaged in (
        {},
        {"shortest_side": 1, "longest_side": -1, "most_heads": 1},
        SEEN.to_plain() | {"most_heads": "4"},
    ):
        with pytest.raises(ValueError, match="its record of the training images"):
            SeenImages.from_plain(damaged, crop_size=64)


@pytest.mark.parametrize(
    ("stored", "prepared", "heads", "note"),
    [
        ((100, 100), (448, 448), 80, ""),
        ((99, 2000), (448, 3136), 80, "shorter side 99 px, in training at least 200 px"),
        ((100, 2000), (448, 3137), 80, "longer side 3137 px, in training at most 1568 px"),
        ((100, 100), (448, 448), 81, "81 heads, in training at most 40"),
        ((1, 1), (448, 448), 81.4, "shorter side 1 px, in training at least 200 px; 81 heads, in training at most 40"),
    ],
)
def test_a_picture_far_outside_is_noted(
    stored: tuple[int, int], prepared: tuple[int, int], heads: float, note: str
) -> None:
    expected = f"far outside the training images: {note}" if note else ""
    assert SEEN.note(stored=stored, prepared=prepared, heads=heads) == expected


def test_an_early_checkpoint_knows_only_its_crops() -> None:
    seen = SeenImages.from_plain(None, crop_size=224)
    assert seen.note(stored=(28, 4000), prepared=(28, 3584), heads=1e6) == ""
    assert seen.note(stored=(27, 90), prepared=(448, 448), heads=0).endswith("side 27 px, trained on crops of 224 px")
    assert seen.note(stored=(300, 300), prepared=(3585, 9), heads=0).endswith(
        "side 3585 px, trained on crops of 224 px"
    )
