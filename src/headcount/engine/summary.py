"""What a run is about to do, in a page: data, bins, network, the cost of one step."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from headcount.bins import CountBins
from headcount.config import BinsConfig, ClipConfig, TrainConfig
from headcount.data.crowd import CrowdDataset
from headcount.losses.build import Loss
from headcount.models.counter import Counter
from headcount.models.prompts import write_prompts
from headcount.types import Batch


def summarize(
    config: TrainConfig,
    train: CrowdDataset,
    select: CrowdDataset,
    selection: str,
    bins: CountBins | None,
    histogram: Mapping[int, int],
    counter: Counter,
    loss_fn: Loss,
) -> str:
    """Text for people. With ``dry_run`` one small step is run to measure its cost."""
    total = sum(p.numel() for p in counter.parameters())
    trainable = sum(p.numel() for p in counter.parameters() if p.requires_grad)
    dataset = config.dataset.name
    lines = [
        f"data: {dataset}, {len(train)} training images; the best checkpoint is selected on {len(select)} "
        f"images of '{selection}'" + (" (the split the field reports: no unseen data remain)" * (selection == "test")),
        *train.describe(),
        *(f"{selection}: {line}" for line in select.describe_left_out()),
        *_blocks_and_bins(config, bins, histogram),
        f"model: {config.model.name}, {total:,} parameters, {trainable:,} trainable",
    ]
    if config.dry_run:
        macs, saved = step_cost(counter, loss_fn, crop=config.augment.crop_size)
        mega = 2**20
        lines.append(
            f"step: {config.batch_size} crops of {config.augment.crop_size} px: "
            f"{macs * config.batch_size / 1e9:.1f} GMACs forward; "
            f"about {saved * config.batch_size / mega:,.0f} MiB of activations kept for backward, "
            f"{4 * 4 * trainable / mega:,.0f} MiB of weights, gradients and Adam's moments"
        )
    return "\n".join(lines)


def _blocks_and_bins(config: TrainConfig, bins: CountBins | None, histogram: Mapping[int, int]) -> list[str]:
    if bins is None:
        return [f"blocks of {config.bins.block_size} px, without bins"]
    kind = "intervals of smoothed counts"
    if isinstance(config.bins, BinsConfig):
        corrected = config.bins.label_correction
        kind = f"m = {config.bins.m}" if corrected else f"no label correction, up to {bins.edges[-1][0]:g}"
    lines = [f"bins: blocks of {bins.block_size} px, {kind}", bins.describe(histogram)]
    if isinstance(config.model, ClipConfig):
        prompts = write_prompts(bins.edges, config.model.prompts)
        shown = prompts if len(prompts) <= 12 else [*prompts[:6], "...", *prompts[-3:]]
        lines.append("prompts: " + " ".join(shown))
    return lines


def step_cost(counter: Counter, loss_fn: Loss, *, crop: int) -> tuple[int, int]:
    """Multiply-accumulates of one crop's forward pass, and bytes kept for its backward pass."""
    counter.train()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in counter.parameters()}
    device = counter.mean.device
    state = {k: v.clone() for k, v in counter.state_dict().items()}  # BatchNorm counts this pass
    with FlopCounterMode(display=False) as flops, saved_tensors_hooks(keep, lambda tensor: tensor):
        # Two images: BatchNorm needs more than one value a channel.
        images = torch.zeros(2, 3, crop, crop, dtype=torch.uint8, device=device)
        prediction = counter(images)
        nobody = torch.zeros_like(prediction.block_counts)
        batch = Batch(images, [torch.zeros(0, 2)] * 2, nobody, ["", ""], smoothed=nobody)
        loss_fn(prediction, batch)
    counter.load_state_dict(state)
    saved = sum(size for pointer, size in kept.items() if pointer not in parameters)
    return flops.get_total_flops() // 2 // 2, saved // 2
