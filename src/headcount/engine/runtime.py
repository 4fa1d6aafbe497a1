"""Processes, devices, arithmetic, threads and seeds; no other file deals with them.

A thin layer over Lightning Fabric. The rest of the package sees one process that may be one of
several, and asks this object for sums over all of them.
"""

import math
import os
import platform
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric, is_wrapped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from headcount.commands import command_line
from headcount.config import FP16_ON_CPU, ConfigError, Precision, RuntimeConfig
from headcount.engine.launch import Children, Starter, Watch, refuse_other_launch, report_connection_errors
from headcount.engine.precision import choose_precision, uses_cuda
from headcount.errors import HeadcountError, ProcessError
from headcount.types import Batch
from headcount.wording import one_line

T = TypeVar("T")
Network = TypeVar("Network", bound=nn.Module)

_PRECISION = {Precision.float32: "32-true", Precision.bf16: "bf16-mixed", Precision.fp16: "16-mixed"}


class Runtime:
    """The processes of one run.

    Attributes:
        rank, world: index of this process and number of processes.
        is_main: whether this process writes files and logs.
        device: where this process computes.
        precision: the arithmetic of the network, and why it was chosen.
    """

    def __init__(self, config: RuntimeConfig, *, recorded: Precision | None = None) -> None:
        """Start the processes of this machine (for ``devices`` > 1, by running the same command again).

        Args:
            recorded: see :func:`headcount.engine.precision.choose_precision`.

        Raises:
            ConfigError: if the machine has fewer GPUs or CPU cores than requested, or cannot compute in this precision,
                or a launcher (torchrun, srun, mpirun) started another number of processes.
        """
        starter = Starter()
        refuse_other_launch(config)
        self.deterministic = config.deterministic
        if config.deterministic:  # cuBLAS reads this once, when it is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        gpus = torch.cuda.device_count()
        on_gpu = uses_cuda(config)
        if on_gpu and gpus < config.devices:
            raise ConfigError(
                f"runtime.accelerator={config.accelerator.name} runtime.devices={config.devices}: this machine has "
                f"{gpus} GPUs; request at most that many, or set runtime.accelerator=cpu"
            )
        self.precision = choose_precision(config, recorded)
        if not on_gpu and self.precision.precision is Precision.fp16:
            raise ConfigError(FP16_ON_CPU)
        cores = os.cpu_count() or 1
        if not on_gpu and config.devices > max(2, cores):
            raise ConfigError(
                f"runtime.devices={config.devices}: this machine has {cores} CPU cores; start at most {max(2, cores)} "
                "processes"
            )
        self.fabric = Fabric(
            accelerator="cuda" if on_gpu else "cpu",
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy="ddp" if config.processes > 1 else "auto",
            precision=_PRECISION[self.precision.precision],  # type: ignore[arg-type]
        )
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.compile = config.compile
        self.sync_batchnorm = config.sync_batchnorm
        self._connect(config, starter)

    def _connect(self, config: RuntimeConfig, starter: Starter) -> None:
        """Start the other processes of this machine, and wait until all of the run are connected."""
        children = self._start_others(config.devices)
        self._watch: Watch | None = None
        try:
            with report_connection_errors():
                self.fabric.launch()
            self.rank = self.fabric.global_rank
            self.world = self.fabric.world_size
            self.is_main = self.rank == 0
            self.device = self.fabric.device
            if self.world > 1:
                self._watch = Watch(
                    self.rank, self.world, num_nodes=config.num_nodes, exchange=self.gather, children=children
                )
        except BaseException as error:
            if children is not None:
                children.stop(error)
            starter.await_end()
            raise
        if children is not None:
            children.connected()
        starter.connected()

    def _start_others(self, devices: int) -> Children | None:
        """Start the other processes of this machine; None if there are none, or a launcher starts them.

        Fabric would do so, too, but ends this process by SIGKILL and without a word when another one dies.
        """
        environment: Any = getattr(self.fabric.strategy, "cluster_environment", None)
        if environment is None or environment.creates_processes_externally:
            return None
        variables = {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(environment.node_rank()),
            "WORLD_SIZE": str(devices * self.fabric.strategy.num_nodes),  # type: ignore[attr-defined]
        }
        return Children(variables, devices=devices)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let the processes of a run fail together, and use deterministic operations if the settings say so.

        An error in this process is reported to the others, which would wait for it; where this one fails because
        another has died, the cause is raised instead of the consequence.

        Raises:
            ProcessError: if another process has died; says which one, and how.
            ConfigError: with ``runtime.deterministic``, if an operation has no deterministic form.
        """
        with self._deterministic_operations() if self.deterministic else nullcontext():
            if self._watch is None:
                yield
            else:
                with self._shared_failure(self._watch):
                    yield

    @contextmanager
    def _deterministic_operations(self) -> Iterator[None]:
        cudnn = torch.backends.cudnn
        before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        except RuntimeError as error:
            if "use_deterministic_algorithms" not in str(error):  # torch has no type of its own for this error
                raise
            raise ConfigError(
                f"runtime.deterministic=true: {one_line(error)}; choose settings without this operation, or set "
                "runtime.deterministic=false"
            ) from error
        finally:
            torch.use_deterministic_algorithms(before[0])
            cudnn.deterministic, cudnn.benchmark = before[1:]

    @contextmanager
    def _shared_failure(self, watch: Watch) -> Iterator[None]:
        try:
            yield
        except HeadcountError as error:
            watch.leave(str(error))
            error.is_reported = watch.is_reported(str(error))
            raise
        except Exception as error:
            cause = watch.cause()
            if cause is not None:
                raise ProcessError(cause) from error
            watch.leave(f"{type(error).__name__}: {error}".rstrip(": "))
            raise
        except BaseException as error:
            done = isinstance(error, SystemExit) and error.code in (None, 0)
            watch.leave(None if done else f"interrupted ({type(error).__name__})")
            # Process 0 reports its own interruption, and that of another process.
            error.is_reported = not self.is_main  # type: ignore[attr-defined]
            raise

    def describe(self) -> dict[str, Any]:
        """Versions, hardware and command line, for the run's record."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else cpu_name(),
            "cpu": cpu_name(),
            "cpu_cores": os.cpu_count(),
            "precision": self.precision.precision.name,
            "precision_reason": self.precision.reason,
            "processes": self.world,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "command": command_line(),
        }

    def seed(self, seed: int, epoch: int = 0) -> None:
        """Reseed every global generator from (seed, epoch, rank), so that a resumed run is reproducible."""
        value = int(np.random.SeedSequence((seed, epoch, self.rank)).generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)  # noqa: NPY002  libraries may still draw from the global generator
        torch.manual_seed(value)

    def random_state(self) -> dict[str, Any]:
        """The states of this process's global generators, as plain values and tensors."""
        name, key, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return {
            "python": random.getstate(),
            "numpy": (name, np.asarray(key).tolist(), *rest),
            "torch": torch.get_rng_state(),
            "cuda": cuda,
        }

    def load_random_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`random_state` returned."""
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        for cuda in state["cuda"]:
            torch.cuda.set_rng_state(cuda, self.device)

    def setup(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Move both to the device and wrap them for distributed, mixed-precision training; optionally compile."""
        model = self._lay_out(model)
        if self.world > 1 and self.sync_batchnorm:
            from headcount.engine.batch_norm import synchronize_batch_norm  # timm takes a second to load

            model = synchronize_batch_norm(model, self.device)
        # Fabric removes the compiled wrapper, wraps the network inside, and compiles that: the names of the weights
        # and the result of `unwrap` are those of the plain network, which is the one that is evaluated.
        compiled: Any = torch.compile(model) if self.compile else model
        return self.fabric.setup(compiled, optimizer)

    def move_to_device(self, model: Network) -> Network:
        """Move a model that is only evaluated to the device."""
        return self._lay_out(model.to(self.device))

    def _lay_out(self, model: Network) -> Network:
        """Put the weights into the memory layout, except those of parts that are faster contiguous on a CPU."""
        model = model.to(memory_format=self.memory_format)
        if self.device.type == "cpu" and self.precision.precision is Precision.float32:
            for part in model.modules():
                if getattr(part, "contiguous_on_cpu", False):
                    part.to(memory_format=torch.contiguous_format)
        return model

    def to_device(self, batch: Batch) -> Batch:
        """The batch on this process's device, its images in the network's memory layout."""
        batch = batch.to(self.device)
        batch.images = batch.images.contiguous(memory_format=self.memory_format)
        return batch

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``; averaged over the processes, unless inside :meth:`no_exchange`."""
        self.fabric.backward(loss)

    def no_exchange(self, model: nn.Module, *, enabled: bool = True) -> AbstractContextManager[None]:
        """Add gradients on each process alone: the next backward pass outside averages their sums over the processes.

        Args:
            model: what :meth:`setup` returned; both its forward and its backward pass belong into the context.
            enabled: False exchanges as usual.
        """
        return self.fabric.no_backward_sync(model, enabled=enabled)  # type: ignore[arg-type]

    def clip_gradients(self, model: nn.Module, optimizer: Any, max_norm: float | None) -> Tensor:
        """Scale all gradients down to an L2 norm of ``max_norm``; None leaves them.

        Returns:
            The norm before; no device sync.
        """
        # Not by Fabric, which refuses to unscale the gradients of a fused optimizer; torch's scaler steps it correctly.
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None:  # fp16
            scaler.unscale_(optimizer.optimizer)
        parameters = [p for p in model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if max_norm is not None:
            # A norm that is not finite is no error here: the training loop reports it with the files of the batch.
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def peak_memory_mib(self) -> float:
        """The most memory that this process has used: allocated on the GPU, resident on a CPU; NaN if unknown."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        try:
            import resource  # not on Windows
        except ImportError:
            return math.nan
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in the order of their ranks, on every process."""
        if self.world == 1:
            return list(items)
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, list(items))
        return [item for part in gathered for item in part]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, exact to float64, on the host."""
        return [math.fsum(parts) for parts in zip(*self.gather([list(values)]), strict=True)]

    def on_main(self, work: Callable[[], None]) -> None:
        """Run ``work`` on rank 0; an error there stops every process, none of which then waits for the others.

        Raises:
            HeadcountError: what ``work`` raised, on every process.
        """
        errors: list[HeadcountError] = []
        if self.is_main:
            try:
                work()
            except HeadcountError as error:
                errors.append(error)
        for raised in self.gather(errors):
            raise raised

    def broadcast_buffers(self, model: Network) -> Network:
        """Copy rank 0's buffers to all ranks: each gathers normalization statistics of its own while training."""
        if self.world > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        return model

    @contextmanager
    def single_thread(self) -> Iterator[None]:
        """Limit torch to one CPU thread inside the context; no effect on a GPU.

        For the loss: its operations take microseconds, so several threads gain little. Where other processes,
        such as data-loading workers, use the same cores, the threads wait for each other for milliseconds at
        each of a thousand operations.
        """
        if self.device.type != "cpu":
            yield
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def main_first(self) -> AbstractContextManager[None]:
        """Let rank 0 run a block before the others, for example to fill a cache once."""
        if self.world == 1:
            return nullcontext()
        return self.fabric.rank_zero_first()

    def scaler_state(self) -> dict[str, Any]:
        """State of the gradient scaler, which only fp16 has and Fabric does not save; otherwise empty."""
        return self.fabric.strategy.precision.state_dict()

    def loss_scale(self) -> float:
        """The factor by which fp16 multiplies the loss; 1 for other arithmetic. Device sync."""
        return float(self.scaler_state().get("scale", 1.0))

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`scaler_state` returned."""
        if state:
            self.fabric.strategy.precision.load_state_dict(state)


def cpu_name() -> str:
    """The model of the processor; its architecture if the system does not say."""
    with suppress(OSError):  # Linux; platform.processor() has only the architecture there, or nothing
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            key, _, name = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model") and name.strip():
                return name.strip()
    return platform.processor() or platform.machine()


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a network normalizes by the statistics of a batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def unwrap(model: nn.Module) -> Any:
    """The network inside what :meth:`Runtime.setup` returned.

    Raises:
        TypeError: if the model was not wrapped: training would then update a network that is never saved.
    """
    if not is_wrapped(model):
        raise TypeError(f"expected a model wrapped by Runtime.setup, got {type(model).__name__}")
    return model.module
