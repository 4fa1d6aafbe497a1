"""What a run is about to do, on one page: data, bins, network, cost of one step."""

import torch
from tabulate import tabulate
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from headcount.bins import describe_choice
from headcount.config import (
    AutoBinsConfig,
    BinsConfig,
    ClipConfig,
    ClipRankingConfig,
    Freeze,
    GivenBinsConfig,
    RankingConfig,
    RankingHeadConfig,
    ZipHeadConfig,
    scaled_numbers,
)
from headcount.engine.runtime import has_batch_norm
from headcount.engine.setup import Job, TrainingData
from headcount.models.prompts import write_gate_prompts, write_prompts
from headcount.types import Sample
from headcount.wording import many


def summarize(job: Job) -> str:
    """Describe a job for the terminal. With ``dry_run``, one small step is run to measure its cost."""
    config, data = job.config, job.data
    total = sum(p.numel() for p in job.counter.parameters())
    trainable = sum(p.numel() for p in job.counter.parameters() if p.requires_grad)
    reported = " (the split that is also reported: no unseen data remains)" if data.selection_split == "test" else ""
    fixed = "" if config.model.freeze is Freeze.none else f" (model.freeze={config.model.freeze.name})"
    lines = [
        f"data: {config.dataset.name}, {len(data.train)} training images; the best checkpoint is selected on "
        f"{len(data.selection)} images of '{data.selection_split}'{reported}",
        *_describe_parts(data),
        *data.train.describe(),
        *(f"{data.selection_split}: {line}" for line in data.selection.describe_left_out()),
        *data.missing,
        *_describe_batches(job),
        *_describe_processes(job),
        *_describe_bins(job),
        f"model: {config.model.name}, {total:,} parameters, {trainable:,} trainable{fixed}",
        *([] if job.start is None else job.start.describe()),
    ]
    if config.dry_run:
        macs, saved = step_cost(job, crop=config.augment.crop_size)
        mega = 2**20
        images = job.loader.step_images
        at_once = images // config.accumulate
        crops = f"{images} crops of {config.augment.crop_size} px"
        if isinstance(config.method, RankingConfig) and isinstance(config.model, ClipRankingConfig):
            crops = f"{images * config.method.crops} crops of {config.model.input_size} px, of {many(images, 'image')}"
        lines.append(
            f"step: {crops}: {macs * images / 1e9:.1f} GMACs forward; "
            f"about {saved * at_once / mega:,.0f} MiB of activations kept for backward, "
            f"{4 * 4 * trainable / mega:,.0f} MiB of weights, gradients and Adam's moments"
        )
    return "\n".join(lines)


def _describe_parts(data: TrainingData) -> list[str]:
    """The images of each part of a mixed dataset; nothing for a single dataset."""
    train, selection = data.train.parts(), data.selection.parts()
    drawn = data.train.drawn(0)
    number = len(data.train)
    rows = []
    for part, images in train.items():
        per_epoch = sum(index % number in images for index in drawn)
        rows.append([part, str(len(images)), str(per_epoch), str(len(selection[part]))])
    if not rows:
        return []
    headers = ["part", "training images", "drawn per epoch", f"{data.selection_split} images"]
    table = tabulate(rows, headers, tablefmt="plain", disable_numparse=True, colalign=("left", *["right"] * 3))
    return [*table.splitlines(), "the errors over the images of all parts together select the checkpoint"]


def _describe_batches(job: Job) -> list[str]:
    """Notes if the training images do not fill a batch, and if it is computed in parts."""
    images, batch_size, parts = job.loader.step_images, job.config.batch_size, job.config.accumulate
    lines = []
    if images != batch_size:
        lines.append(f"batches hold {images} images, not batch_size={batch_size}: there are no more")
    if parts > 1:
        lines.append(f"each process computes its crops of a step in {parts} equal parts (accumulate)")
    return lines


def _describe_processes(job: Job) -> list[str]:
    """The number of processes, and over which crops they normalize; nothing for one process."""
    runtime = job.config.runtime
    if runtime.processes == 1:
        return []
    crops = job.loader.step_images
    share = crops // runtime.processes
    machines = f" on {runtime.num_nodes} machines" if runtime.num_nodes > 1 else ""
    lines = [f"processes: {runtime.processes}{machines}; crops of each per step: {share}"]
    if has_batch_norm(job.counter) and runtime.sync_batchnorm:
        lines.append(f"BatchNorm: synchronized, over all {crops} crops of a step")
    elif has_batch_norm(job.counter):
        lines.append(
            f"BatchNorm: not synchronized, over the crops of each process ({share}): a step differs from that of one "
            "process; runtime.sync_batchnorm=true"
        )
    return lines


def _describe_bins(job: Job) -> list[str]:
    config, bins = job.config, job.bins
    if isinstance(config.model.head, RankingHeadConfig):
        numbers = "; ".join(", ".join(map(str, of_size)) for of_size in scaled_numbers(config.model.head))
        asked = f"prompts: {config.model.head.prompt!r} with {numbers}"
        filters = {"scenes": config.model.head.scenes, "parts": config.model.head.parts}
        return [asked, *(f"filter by {name}: {', '.join(words)}" for name, words in filters.items() if words)]
    if bins is None:
        return [f"blocks of {config.bins.block_size} px, without bins"]
    kind = "with given edges" if isinstance(config.bins, GivenBinsConfig) else "intervals of smoothed counts"
    if isinstance(config.bins, AutoBinsConfig):
        kind = f"m = {bins.edges[-1][0]:g}, chosen for the least quantization error"
    if isinstance(config.bins, BinsConfig):
        corrected = config.bins.label_correction
        kind = f"m = {config.bins.m}" if corrected else f"no label correction, up to {bins.edges[-1][0]:g}"
    lines = [f"bins: blocks of {bins.grid.block_size} px, {kind}", bins.describe(job.data.histogram)]
    if isinstance(config.bins, AutoBinsConfig):
        lines.append(describe_choice(bins, job.data.histogram))
    if isinstance(config.model, ClipConfig):
        prompts = write_prompts(bins.edges, config.model.prompts)
        if isinstance(config.model.head, ZipHeadConfig):
            prompts = [*write_gate_prompts(config.model.prompts), *prompts[1:]]
        shown = prompts if len(prompts) <= 12 else [*prompts[:6], "...", *prompts[-3:]]
        lines.append("prompts: " + " ".join(shown))
    return lines


def step_cost(job: Job, *, crop: int) -> tuple[int, int]:
    """Multiply-accumulates of the forward pass of one image's crops, and bytes kept for their backward pass."""
    counter = job.counter
    counter.train()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # Two images, because BatchNorm needs more than one value per channel; a method may make several of each.
    blank = Sample(torch.zeros(3, crop, crop, dtype=torch.uint8), torch.zeros(0, 2), "blank")
    batch = job.make_batch([blank, blank]).to(counter.mean.device)
    parameters = {p.untyped_storage().data_ptr() for p in counter.parameters()}
    state = {k: v.clone() for k, v in counter.state_dict().items()}  # this pass changes BatchNorm's statistics
    # The counter does not know the fused attention of a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        counter(batch.images)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        job.loss(counter(batch.images), batch)
    counter.load_state_dict(state)
    saved = sum(size for pointer, size in kept.items() if pointer not in parameters)
    return flops.get_total_flops() // 2 // 2, saved // 2
