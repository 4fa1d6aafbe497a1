"""Print what a bug report needs: versions, processor, devices, threads, and which data folders were found.

headcount env
"""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import headcount
from headcount import published
from headcount.cli.arguments import script_parser
from headcount.cli.choices import config_dirs, default_dataset
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import exit_on_error
from headcount.config import FolderDatasetConfig, HeadcountError, register_schemas
from headcount.wording import printable

_PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "pillow", "hydra-core", "omegaconf", "lightning-fabric", "timm"),
    *("open_clip_torch", "safetensors", "tensorboard", "matplotlib", "shapely", "simplejpeg", "huggingface_hub"),
    *("av", "gradio", "onnx", "onnxruntime", "onnxscript"),  # of extras
)


def main() -> None:
    """Print one line per fact."""
    parser = script_parser(__doc__)
    with exit_on_error(parser.prog):
        parser.parse_args()
        register_schemas()
        for name, value in facts():
            print(printable(f"{name:<18} {value}"))


def facts() -> Iterator[tuple[str, str]]:
    """Name and value of each fact."""
    with deferred_interrupt():
        import torch

        from headcount.engine.checkpoint import commit
        from headcount.engine.runtime import cpu_name

    yield "headcount", f"{headcount.__version__}, commit {commit()}"
    yield "installed in", str(Path(headcount.__file__).parent)
    yield "counters", ", ".join(published.names()) or "none"
    yield "configs", ", ".join(map(str, config_dirs()))
    yield "Python", f"{platform.python_version()}, {sys.executable}"
    yield "system", platform.platform()
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    yield "processor", f"{cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    yield "threads", f"{torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')})"
    yield "CUDA", torch.version.cuda or "not built in"
    for k in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(k)
        yield f"GPU {k}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        yield "GPU", "Apple MPS" if torch.backends.mps.is_available() else "none"
    yield from _data_folders()


def _data_folders() -> Iterator[tuple[str, str]]:
    """The folder of each published dataset, or that it was not found."""
    from headcount.data.catalogue import DATASETS
    from headcount.data.locate import DATA_ROOT_VARIABLE, dataset_folder, default_data_root

    yield DATA_ROOT_VARIABLE, default_data_root() or "not set"
    for name, info in DATASETS.items():
        if default_data_root() and info.files is not None and info.files.folders:
            config = default_dataset(name)
            assert isinstance(config, FolderDatasetConfig)
            try:
                folder = str(dataset_folder(config, "train", data_root=None))
            except HeadcountError:
                folder = "not found"
            yield f"dataset={name}", folder
