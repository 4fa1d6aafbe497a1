"""The paper's tables: their cells, as experiment files, and what the paper prints.

Source: arXiv:2403.09281, version 1; of the tokens: version 2, figure 5; of ZIP: arXiv:2506.19955; without labels: the
poster "Unsupervised Crowd Counting with CLIP" (Technical University of Denmark), after arXiv:2304.04231. The tables of
heads and of backbones are this project's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PaperRow:
    """A row of a table: one experiment per column."""

    label: str
    experiments: tuple[str, ...]
    against: str | None = None
    """Label of the row that this one should improve on."""
    printed: tuple[tuple[float, float | None], ...] = ()
    """Improvement over that row in MAE and RMSE, in percent, as the paper prints it for each column."""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    judged_on: str | None = None
    """Split that judges all checkpoints of a run, and selects none in training; None judges by the one that selects."""


def _row(label: str, folder: str, names: Sequence[str], **rest: Any) -> PaperRow:
    return PaperRow(label, tuple(f"{folder}/{name}" for name in names), **rest)


_DATASETS = ("sha", "shb", "qnrf", "nwpu")
_BACKBONES = ("vgg16", "resnet101", "mobilenet_v2", "densenet201")
_BINS = ("fine", "dynamic", "coarse")
_ZIP_NETWORKS = {
    "MobileNetV4-small 0.5": "mobilenetv4_small_050",
    "MobileNetV4-small": "mobilenetv4_small",
    "MobileNetV4-medium": "mobilenetv4_medium",
    "MobileCLIP-S1": "mobileclip_s1",
    "CLIP ConvNeXt-base": "convnext_base_w_320",
}
_UNSUPERVISED = {
    "baseline": "baseline",
    "ips": "ten crops (IPS)",
    "css": "crowd sizes (CSS)",
    "tl": "top left (TL)",
}
_HEADS = {"EBC": "ebc", "ZIP": "zip", "Blockwise": "blockwise", "DM regression": "dm"}
_TOKENS = (0, 8, 16, 32, 64, 128)

IMAGES = {"sha": (300, 182), "shb": (400, 316), "qnrf": (1201, 334), "nwpu": (3109, 500)}
"""Number of training images and of images that select, by dataset, as published."""

TABLES: dict[str, PaperTable] = {
    "1": PaperTable(
        "Table I: regression, EBC and CLIP-EBC",
        ("SHA", "SHB", "QNRF", "NWPU val"),
        (
            _row("CSRNet", "table1", [f"csrnet_{d}" for d in _DATASETS]),
            _row(
                *("CSRNet-EBC", "table1", [f"csrnet_ebc_{d}" for d in _DATASETS]),
                against="CSRNet",
                printed=((2.7, 8.6), (34.9, 29.3), (33.4, 35.7), (45.5, 76.9)),
            ),
            _row("DMCount", "table1", [f"dmcount_{d}" for d in _DATASETS]),
            _row(
                *("DMCount-EBC", "table1", [f"dmcount_ebc_{d}" for d in _DATASETS]),
                against="DMCount",
                printed=((-4.3, -3.3), (5.4, 7.6), (9.8, 12.0), (43.8, 73.2)),
            ),
            _row("CLIP-EBC (ResNet50)", "table1", [f"clip_rn50_{d}" for d in _DATASETS]),
            _row("CLIP-EBC (ViT-B/16)", "table1", [f"clip_vit_b16_{d}" for d in _DATASETS]),
        ),
    ),
    "2": PaperTable(
        "Table II: block sizes and bins",
        ("fine", "dynamic", "coarse"),
        tuple(_row(f"r = {r}", "table2", [f"{bins}_{r}" for bins in _BINS]) for r in (16, 32)),
    ),
    "3": PaperTable(
        "Table III: components of EBC",
        ("MAE",),
        (
            _row("Blockwise", "table3", ["blockwise"]),
            _row("enhanced bins", "table3", ["enhanced_bins"], against="Blockwise", printed=((37.1, None),)),
            _row("+ label correction", "table3", ["label_correction"], against="enhanced bins"),
            *(
                _row(f"lambda {value}", "table3", [f"lambda_{name}"], against="+ label correction")
                for value, name in (("0.01", "001"), ("0.1", "01"), ("1", "1"), ("2", "2"))
            ),
        ),
    ),
    "4": PaperTable(
        "Table IV: Blockwise and EBC",
        ("VGG16", "ResNet101", "MobileNetV2", "DenseNet201"),
        (
            _row("Blockwise", "table4", [f"blockwise_{b}" for b in _BACKBONES]),
            _row(
                *("EBC", "table4", [f"ebc_{b}" for b in _BACKBONES]),
                against="Blockwise",
                printed=((44.5, None), (37.3, None), (38.7, None), (29.8, None)),
            ),
        ),
    ),
    "tokens": PaperTable(
        "Version 2, figure 5: learned tokens of the frozen ViT",
        tuple(map(str, _TOKENS)),
        (_row("tokens per layer", "tokens", [f"tokens_{n}" for n in _TOKENS]),),
    ),
    "count_loss": PaperTable(
        "Count loss of equation 3",
        ("DM-Count", "absolute", "squared"),
        (_row("CLIP-EBC (ResNet50)", "count_loss", ["dm", "mae", "mse"]),),
    ),
    "zip": PaperTable(
        "Zero-inflated Poisson, the successor of EBC",
        ("SHA", "SHB", "QNRF", "NWPU val"),
        tuple(_row(label, "zip", [f"{name}_{d}" for d in _DATASETS]) for label, name in _ZIP_NETWORKS.items()),
    ),
    "unsupervised": PaperTable(
        "Counting without labels",
        ("ranking loss", "CLIP's loss"),
        tuple(_row(label, "unsupervised", [f"mmr_{v}", f"clip_{v}"]) for v, label in _UNSUPERVISED.items()),
    ),
    "heads": PaperTable(
        "Four heads with one backbone, recipe and budget",
        ("SHA",),
        tuple(_row(label, "heads", [name]) for label, name in _HEADS.items()),
        judged_on="test",
    ),
    "backbones": PaperTable(
        "Two of the paper's networks with and without EBC, one recipe and budget",
        ("SHA",),
        (
            _row("VGG16, Blockwise", "backbones", ["vgg16_blockwise"]),
            _row("VGG16, EBC", "backbones", ["vgg16_ebc"], against="VGG16, Blockwise"),
            _row("CSRNet", "backbones", ["csrnet"]),
            _row("CSRNet-EBC", "backbones", ["csrnet_ebc"], against="CSRNet"),
        ),
    ),
}
"""The tables by the name that ``reproduce_table.py`` takes."""
