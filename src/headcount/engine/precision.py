"""Choose the arithmetic of a run: ``runtime.precision=auto`` is bf16 where the hardware multiplies it natively."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from headcount.config import Accelerator, Precision, RuntimeConfig

# Names of ``torch.cpu.get_capabilities``: x86 (AMX, AVX512) and ARM64.
_NATIVE_ON_CPU = ("amx_bf16", "avx512_bf16", "bf16")
_NATIVE_ON_CUDA = (8, 0)


@dataclass(frozen=True)
class ChosenPrecision:
    """The arithmetic of the network, and why it was chosen."""

    precision: Precision
    """Never ``auto``."""
    reason: str


def choose_precision(config: RuntimeConfig, recorded: Precision | None = None) -> ChosenPrecision:
    """The arithmetic that a config names, or the one that suits the hardware if that is ``auto``.

    Args:
        recorded: what a run was trained in that is resumed; ``auto`` keeps it, whatever the hardware. None if there is
            no such run.
    """
    if config.precision is not Precision.auto:
        return ChosenPrecision(config.precision, f"runtime.precision={config.precision.name}")
    native, why = _native_on_cuda(config.devices) if uses_cuda(config) else _native_on_cpu()
    if recorded not in (None, Precision.auto):
        kept = f"that of the run that is resumed; on this hardware, {why}"
        return ChosenPrecision(recorded, f"runtime.precision=auto: {kept}")
    return ChosenPrecision(Precision.bf16 if native else Precision.float32, f"runtime.precision=auto: {why}")


def uses_cuda(config: RuntimeConfig) -> bool:
    """Whether a run with these settings computes on GPUs."""
    automatic = config.accelerator is Accelerator.auto and torch.cuda.device_count() > 0
    return automatic or config.accelerator is Accelerator.cuda


def _native_on_cpu() -> tuple[bool, str]:
    """Whether the processor multiplies bf16 natively, in words too."""
    # Not in the oldest torch that is supported.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    found = [name for name in _NATIVE_ON_CPU if capabilities.get(name)]
    if found:
        return True, f"the processor multiplies bf16 natively ({', '.join(found)})"
    return False, "the processor does not multiply bf16 natively"


def _native_on_cuda(devices: int) -> tuple[bool, str]:
    """Whether each of the first ``devices`` GPUs multiplies bf16 natively, in words too."""
    visible = range(min(devices, torch.cuda.device_count()))
    lowest = min((torch.cuda.get_device_capability(index) for index in visible), default=(0, 0))
    capability = "compute capability " + ".".join(map(str, lowest))
    if lowest >= _NATIVE_ON_CUDA:
        return True, f"the GPU multiplies bf16 natively ({capability})"
    needed = ".".join(map(str, _NATIVE_ON_CUDA))
    return False, f"the GPU does not multiply bf16 natively ({capability}; that takes {needed})"
