"""The released implementation's models, through the importer: predictions, features, gradients, statistics.

Read from HEADCOUNT_GOLDEN; tolerances are those its README states.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import headcount
from headcount.bins import CountBins
from headcount.models.clip_weights import interpolate_positions
from headcount.models.counter import Counter
from headcount.types import BlockGrid
from models.rectifiers import recorded

# Ours for the constructors of the golden files.
MODELS = {"clip_resnet50": "clip_rn50", "clip_resnet101": "clip_rn101", "clip_vit_b_16": "clip_vit_b16"}
MODELS |= {"vgg19_ae": "dmcount", "csrnet": "csrnet"}
CASES = ["clip_resnet50_tiny", "clip_vit_b_16_tiny_deep", "csrnet"]

# The one unit per network (number of the ReLU's call, index) that was active in float32, in the golden run, and is not
# in float64, or the reverse. Its input is about 2e-7, less than float32's rounding error there. These units are the
# golden gradients' own error: without them, float64 differs by 1.1e-4 (vpt_0 of the first) and 7e-4 (biases of the
# second); with them, by less than 1e-5.
GOLDEN_UNITS: dict[str, tuple[int, tuple[int, ...]]] = {
    "clip_vit_b_16_tiny_deep": (0, (1, 100, 23, 0)),
    "csrnet": (11, (1, 341, 1, 12)),
}
each_case = pytest.mark.parametrize("name", CASES)

# Arithmetic and factor of the tolerances. On a GPU cuDNN may choose Winograd's convolution, whose float32 rounds ten
# times as much as the sum that it replaces; float64 shows there that nothing but rounding differs.
ARITHMETIC = {"cpu": [(torch.float32, 1)], "cuda": [(torch.float32, 10), (torch.float64, 1)]}


class Case:
    def __init__(self, golden_dir: Path, name: str) -> None:
        folder = golden_dir / "models" / name
        self.meta = json.loads((folder / "meta.json").read_text())
        self.numbers = np.load(folder / "io.npz")
        with np.load(folder / "state.npz") as arrays:
            self.state = {k: floats(arrays[k]) for k in arrays.files}
        self.built = self.meta["constructor"]

    def bins(self, block_size: int) -> CountBins:
        edges = tuple((float(low), float(high)) for low, high in self.built["bins"])
        return CountBins(BlockGrid(block_size), edges, tuple(self.built["anchor_points"]))

    def options(self) -> dict[str, Any]:
        """The inner sizes, as settings of ours."""
        sizes = self.meta.get("clip_base_config")
        if sizes is None:
            return {}
        layers = sizes["vision_layers"]
        options = {
            "embed_dim": sizes["embed_dim"],
            "width": sizes["vision_width"],
            "layers": layers if isinstance(layers, list) else [layers],
            "text_width": sizes["transformer_width"],
            "text_heads": sizes["transformer_heads"],
            "text_layers": sizes["transformer_layers"],
            "decoder_channels": self.built["decoder_cfg"],
        }
        return options | ({"heads": sizes["vision_heads"]} if self.built["num_vpt"] else {})

    def counter(self, block_size: int, **changes: Any) -> Counter:
        model = MODELS[self.built["backbone"]]
        options = {"bins": self.bins(block_size), "block_size": block_size, **self.options(), **changes}
        return headcount.convert_released(self.state, model, **options)

    def images(self, key: str) -> Tensor:
        return floats(self.numbers[f"image_{key}"])

    def gradients(self, counter: Counter) -> dict[str, Tensor]:
        """Gradients of sum(A * logits) + sum(B * density), by the released names."""
        prediction = counter.predict_normalized(self.images("a").to(next(counter.parameters())))
        by_logits, by_blocks = (floats(self.numbers[f"r8_a_grad_{k}"]).to(prediction.blocks) for k in "AB")
        weighted = (by_logits * prediction.logits).sum() + (by_blocks * prediction.blocks).sum()
        np.testing.assert_allclose(weighted.item(), self.numbers["r8_a_grad_scalar"], rtol=1e-4)
        weighted.backward()
        found = {}
        for name, parameter in counter.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                if name == "backbone.prompts":
                    found |= {f"vpt_{k}": g for k, g in enumerate(parameter.grad)}
                else:
                    found[released(name, "clip" in self.built["backbone"])] = parameter.grad
        return found


def floats(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)


def released(name: str, clip: bool) -> str:
    """The released name of a parameter of ours, written down anew."""
    if clip:
        name = name.replace("backbone.tower", "image_encoder").replace("head.", "")
        return name.replace("decoder", "image_decoder") if name.startswith("decoder") else name
    return f"backbone.{name}" if name.startswith("decoder") else name.replace("head.to_logits", "classifier")


@each_case
@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_predictions(golden_dir: Path, name: str, block_size: int, device: str) -> None:
    case = Case(golden_dir, name)
    counter = case.counter(block_size).to(device)
    keys = [k.removeprefix("image_") for k in case.numbers.files if k.startswith("image_")]
    assert len(keys) >= 3
    for dtype, slack in ARITHMETIC[device]:
        counter.to(dtype)
        for key in keys:
            with torch.no_grad():
                prediction = counter.predict_normalized(case.images(key).to(device, dtype))
            logits, density = (case.numbers[f"r{block_size}_{key}_{part}"] for part in ("logits", "density"))
            np.testing.assert_allclose(prediction.logits.cpu(), logits, rtol=0, atol=slack * 5e-5)
            np.testing.assert_allclose(prediction.blocks.cpu(), density, rtol=0, atol=slack * 2e-5)


@each_case
def test_gradients(golden_dir: Path, name: str, device: str) -> None:
    """In float32, and in float64, with the units of the ReLUs that were active in the golden run."""
    case, (_, slack) = Case(golden_dir, name), ARITHMETIC[device][0]
    with recorded() as single:
        found = case.gradients(case.counter(8).to(device))
    with recorded() as double:
        exact = case.gradients(case.counter(8).double().to(device))
    ours, golden = [x > 0 for x in single], [x > 0 for x in double]
    if name in GOLDEN_UNITS:
        call, unit = GOLDEN_UNITS[name]
        golden[call][unit] ^= True
    for x, *units in zip(double, ours, golden, strict=True):
        for active in units:  # others than in float64 only where the input rounds to zero
            assert float(x[active != (x > 0)].abs().sum()) <= slack * 1e-5 * float(x.abs().max())

    if name in GOLDEN_UNITS:
        with recorded(golden):
            exact = case.gradients(case.counter(8).double().to(device))
    compare_gradients(case, exact)
    if not all(map(torch.equal, ours, golden)):
        with recorded(ours):
            other = case.gradients(case.counter(8).double().to(device))
        found = {parameter: found[parameter].double() + exact[parameter] - other[parameter] for parameter in found}
    compare_gradients(case, found, slack=slack)


def compare_gradients(case: Case, found: dict[str, Tensor], *, slack: float = 1) -> None:
    golden = {k.split("/", 1)[1] for k in case.numbers.files if k.startswith("r8_a_grad_l2/")}
    assert found.keys() == golden
    for parameter, gradient in found.items():
        l2, sum_, index, values = (
            case.numbers[f"r8_a_grad_{part}/{parameter}"] for part in ("l2", "sum", "idx", "val")
        )
        flat = gradient.double().flatten().cpu().numpy()
        assert abs(np.linalg.norm(flat) - l2) <= slack * 1e-4 * l2, parameter
        # A sum of n values whose norm differs by a share differs by that share of the norm times sqrt(n).
        allowed = 1e-4 * l2 * len(flat) ** 0.5 + 1e-5 * abs(sum_)
        assert abs(flat.sum() - sum_) <= slack * allowed, parameter
        assert np.linalg.norm(flat[index] - values) <= slack * 1e-4 * l2, parameter


@pytest.mark.parametrize("name", [c for c in CASES if c.startswith("clip")])
def test_batch_statistics(golden_dir: Path, name: str) -> None:
    """In float32, and in float64, to which normalizing by the statistics of two images does not add rounding."""
    case = Case(golden_dir, name)
    exact, counter = case.counter(8).double().train(), case.counter(8).train()
    with torch.no_grad():
        in_float64 = exact.predict_normalized(case.images("a").double())
        prediction = counter.predict_normalized(case.images("a"))
    golden_logits, golden_density = case.numbers["r8_a_trainbn_logits"], case.numbers["r8_a_trainbn_density"]
    # The golden logits' own float32 error: 5.3e-5 for the ResNet, 1.6e-5 for the ViT.
    np.testing.assert_allclose(in_float64.logits, golden_logits, rtol=0, atol=5.5e-5 if "resnet" in name else 2e-5)
    np.testing.assert_allclose(in_float64.blocks, golden_density, rtol=0, atol=2e-5)
    # Without vector instructions float32 sums in another order than in the golden run: each has an error of its own.
    scalar = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    own = float(np.abs(in_float64.logits.numpy() - golden_logits).max()) if scalar else 0.0
    np.testing.assert_allclose(prediction.logits, golden_logits, rtol=0, atol=5e-5 + own)
    own = float(np.abs(in_float64.blocks.numpy() - golden_density).max()) if scalar else 0.0
    np.testing.assert_allclose(prediction.blocks, golden_density, rtol=0, atol=2e-5 + own)
    after = {released(k, True): v for k, v in counter.state_dict().items()}
    names = [k.split("/", 1)[1] for k in case.numbers.files if k.startswith("r8_a_trainbn_after/")]
    assert len(names) >= 6
    for key in names:
        golden = case.numbers[f"r8_a_trainbn_after/{key}"]
        np.testing.assert_allclose(after[key], golden, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(golden).max())))


@each_case
def test_encoder_features(golden_dir: Path, name: str, device: str) -> None:
    case = Case(golden_dir, name)
    counter = case.counter(8).to(device)
    golden = case.numbers["feat_encoder_a"]
    for dtype, slack in ARITHMETIC[device]:
        with torch.no_grad():
            features = counter.to(dtype).backbone(case.images("a").to(device, dtype))
        np.testing.assert_allclose(features.cpu(), golden, rtol=0, atol=slack * 1e-5 * float(np.abs(golden).max()))


@pytest.mark.parametrize("name", [c for c in CASES if c.startswith("clip")])
def test_text_features(golden_dir: Path, name: str) -> None:
    case = Case(golden_dir, name)
    features = case.counter(8).head.text_features
    np.testing.assert_allclose(features, case.numbers["text_features"], rtol=0, atol=1e-5)


def test_positions(golden_dir: Path) -> None:
    case = Case(golden_dir, "clip_vit_b_16_tiny_deep")
    positions = case.state["image_encoder.positional_embedding"]
    for key in "bc":
        _, _, height, width = case.images(key).shape
        found = interpolate_positions(positions, (14, 14), (height // 16, width // 16))
        np.testing.assert_allclose(found, case.numbers[f"pos_embed_{key}"], rtol=0, atol=1e-5)


def test_trainable_parameters(golden_dir: Path) -> None:
    for name in CASES:
        case = Case(golden_dir, name)
        if "trainable" in case.meta:
            counter = case.counter(8)
            own = {n for n, p in counter.named_parameters() if p.requires_grad}
            prompts = {"backbone.prompts"} & own
            found = {released(n, True) for n in own - prompts}
            found |= {f"vpt_{k}" for k in range(len(counter.backbone.prompts))} if prompts else set()
            assert found == set(case.meta["trainable"])


def test_regression(golden_dir: Path) -> None:
    case = Case(golden_dir, "csrnet")
    with np.load(golden_dir / "models" / "csrnet" / "regressor_head.npz") as head:
        case.state = {k: v for k, v in case.state.items() if not k.startswith("classifier")}
        case.state |= {k: floats(head[k]) for k in head.files}
    counter = case.counter(8, bins=None)
    with torch.no_grad():
        prediction = counter.predict_normalized(case.images("a"))
    assert prediction.probabilities() is None
    golden = case.numbers["regressor_r8_a_density"]
    np.testing.assert_allclose(prediction.blocks, golden, rtol=0, atol=2e-5 * max(1.0, float(golden.max())))
