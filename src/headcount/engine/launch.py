"""Start the other processes of a run, refuse a launcher that started another number, and end all when one has died."""

import atexit
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from headcount.config import ConfigError, RuntimeConfig
from headcount.engine.signals import end_at_interrupt, held_interrupts, raise_at_interrupt
from headcount.errors import ProcessError
from headcount.wording import one_line

GRACE = 15.0
"""Seconds in which a process ends by itself once another has died; after that it is ended."""
_CONNECT = 60.0
# Seconds until a process that failed knows whether another one failed before, or for the same reason.
_NEWS = 3.0
# Seconds between two looks at the other processes until all are connected.
_LOOK = 0.3
_STATUS = 2
_INTERRUPTED = 130
# Id of the process that started this one.
_STARTED_BY = "HEADCOUNT_STARTED_BY"
# Between a process and its reason, in a message to the others.
_STOPPED = " stopped: "

_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_NODE = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def report_connection_errors() -> Iterator[None]:
    """Report processes that cannot connect in one line, with their address.

    Raises:
        ProcessError: instead of torch's own error.
    """
    try:
        yield
    except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
        address, port = (os.environ.get(name, "unset") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise ProcessError(
            f"MASTER_ADDR={address} MASTER_PORT={port}: the processes of this run cannot connect "
            f"({one_line(str(error))}); check that all of them were started and that every machine can reach this "
            "address, or choose another MASTER_PORT for all of them if another program uses it"
        ) from error


def refuse_other_launch(config: RuntimeConfig) -> None:
    """Refuse a launcher that started other processes: each would believe it is alone, or wait for others.

    Raises:
        ConfigError: names the variable in which the launcher reports the number, and what to type.
    """
    devices, num_nodes, processes, typed = config.devices, config.num_nodes, config.processes, config.typed_processes
    for variable in (*_SIZES, *(["SLURM_NTASKS"] if _in_slurm() else [])):
        text = os.environ.get(variable, "")
        if not text.isdigit():
            continue
        started = int(text)
        # We start the others of one machine ourselves, unless this process was started as one of several.
        if started > processes or (started < processes and is_launched()):
            raise ConfigError(
                f"{typed}: {variable}={text} means that a launcher started {started} processes of this command: type "
                f"{_fitting(started)}, or start {processes} ({_commands(devices, num_nodes)}), or start one without a "
                f"launcher, after `unset {variable}`"
            )
        if variable == "SLURM_NTASKS" and started > 1 and os.environ.get("SLURM_NTASKS_PER_NODE") != str(devices):
            raise ConfigError(
                f"{typed}: {_placed(devices, num_nodes)}; start them with "
                f"srun --nodes={num_nodes} --ntasks-per-node={devices}"
            )
    for variable in ("LOCAL_WORLD_SIZE", "SLURM_NNODES"):
        text, expected = os.environ.get(variable, ""), devices if variable == "LOCAL_WORLD_SIZE" else num_nodes
        used = _in_slurm() if variable == "SLURM_NNODES" else is_launched()
        if used and processes > 1 and text.isdigit() and int(text) != expected:
            raise ConfigError(
                f"{typed}: {_placed(devices, num_nodes)}, but {variable}={text}; start them with "
                f"{_commands(devices, num_nodes)}"
            )
    _refuse_no_node(typed, num_nodes)
    port = os.environ.get("MASTER_PORT", "")
    if processes > 1 and port and not (port.isdigit() and 1 <= int(port) <= 65535):
        raise ConfigError(f"{typed}: MASTER_PORT={port} is no port; choose a number from 1 to 65535")


def _refuse_no_node(typed: str, num_nodes: int) -> None:
    """Refuse several machines if nothing says which one this is, and where the first one is."""
    if num_nodes == 1 or _in_torchrun() or _in_slurm():
        return
    missing = [name for name in _NODE if not os.environ.get(name)]
    rank = os.environ.get("NODE_RANK", "")
    if missing or not rank.isdigit() or int(rank) >= num_nodes:
        wrong = f"{', '.join(missing)} is not set" if missing else f"NODE_RANK={rank} is not from 0 to {num_nodes - 1}"
        raise ConfigError(
            f"{typed}: {wrong}; start every machine with torchrun or srun, or type the same command on each, after "
            f"`export NODE_RANK=N MASTER_ADDR=HOST MASTER_PORT=PORT`: N from 0 to {num_nodes - 1}, HOST the name of "
            "machine 0, PORT a free port there"
        )


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return _in_torchrun() or _in_slurm() or "LOCAL_RANK" in os.environ


def _in_torchrun() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def _in_slurm() -> bool:
    """Whether srun started this process; an interactive shell of SLURM is none of its processes."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def _fitting(started: int) -> str:
    """The settings for that many processes."""
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or ""
    if local.isdigit() and int(local) and started > int(local) and started % int(local) == 0:
        return f"runtime.devices={local} runtime.num_nodes={started // int(local)}"
    return f"runtime.devices={max(started, 1)}"


def _placed(devices: int, num_nodes: int) -> str:
    if num_nodes == 1:
        return f"all {devices} processes must be on one machine"
    return f"{devices} processes must be on each of {num_nodes} machines"


def _commands(devices: int, num_nodes: int) -> str:
    nodes = f"--nnodes={num_nodes} " if num_nodes > 1 else ""
    return f"torchrun {nodes}--nproc-per-node={devices}; srun --nodes={num_nodes} --ntasks-per-node={devices}"


class Children:
    """The processes that this one starts on its machine, by running the same command again.

    One that ends before all are connected ends this process too, which would wait for it.
    """

    def __init__(self, environment: Mapping[str, str], *, devices: int) -> None:
        """Start ``devices`` - 1 processes.

        Args:
            environment: the variables by which the processes find each other.
        """
        os.environ.update(environment, LOCAL_RANK="0")  # this process is launched, too: nobody starts more
        self._connected = threading.Event()
        started_by = {_STARTED_BY: str(os.getpid())}
        with held_interrupts():
            self._processes = [
                subprocess.Popen(_same_command(), env={**os.environ, **started_by, "LOCAL_RANK": str(local)})
                for local in range(1, devices)
            ]
        if self._processes:
            threading.Thread(target=self._watch_start, name="start of processes", daemon=True).start()

    def ended(self, local: int) -> str | None:
        """How the process ``local`` of this machine ended, in words; None if that is not known."""
        if not 1 <= local <= len(self._processes):
            return None
        try:
            return _ending(self._processes[local - 1].wait(timeout=2))
        except subprocess.TimeoutExpired:
            return None

    def connected(self) -> None:
        """From now on, the processes watch each other."""
        self._connected.set()

    def stop(self, error: BaseException) -> None:
        """End the processes, because this one failed before all were connected.

        If it failed because one of them had ended, that is reported instead, and ends this process.
        """
        if isinstance(error, Exception):
            self._connected.wait(_NEWS)
        self._connected.set()
        self._kill()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    def _watch_start(self) -> None:
        while not self._connected.wait(_LOOK):
            ended = next((process.returncode for process in self._processes if process.poll() is not None), None)
            if ended is None:
                continue
            interrupted = ended == -signal.SIGINT
            if interrupted and self._connected.wait(1):  # Ctrl-C in a terminal reaches this process, too
                return
            self._kill()
            if interrupted:
                _exit_with("interrupted", _INTERRUPTED)
            _exit_with(f"one of the processes it started {_ending(ended)}")


class Starter:
    """The process of this package that started this one, as one of :class:`Children`; there may be none.

    If it ends before all are connected, this process ends, too, which would wait for it.
    """

    def __init__(self) -> None:
        """Start to watch it."""
        process = os.environ.pop(_STARTED_BY, "")  # not for processes that this one starts
        self._process = int(process) if process.isdigit() and os.name == "posix" else None
        self._connected = threading.Event()
        self._has_changed_interrupts = False
        if self._process is not None:
            self._has_changed_interrupts = end_at_interrupt()
            threading.Thread(target=self._watch, name="watch of process 0", daemon=True).start()

    def connected(self) -> None:
        """From now on, the processes watch each other, and Ctrl-C is an exception as in every process."""
        self._connected.set()
        if self._has_changed_interrupts:
            raise_at_interrupt()

    def await_end(self) -> None:
        """Give it a second to end, because this process failed: if it does, that was the reason."""
        if self._process is not None:
            self._connected.wait(1)

    def _watch(self) -> None:
        while os.getppid() == self._process:
            if self._connected.wait(_LOOK):
                return
        _exit_with("process 0, which started this one, ended before all processes were connected")


def _same_command() -> list[str]:
    import __main__  # what runs now, not what ran when this file was imported

    spec = getattr(__main__, "__spec__", None)
    script = [os.path.abspath(sys.argv[0])] if spec is None else ["-m", spec.name]
    return [sys.executable, *script, *sys.argv[1:]]


# Of an exception, and of an error message.
_OF_ERRORS = (1, 2)


def _ending(status: int) -> str:
    """How a process ended, and what that usually means."""
    if status >= 0:
        return f"exited with status {status}" + ("; its error is above" if status in _OF_ERRORS else "")
    name = signal.Signals(-status).name
    if name != "SIGKILL":
        return f"was killed by signal {-status} ({name})"
    return (
        f"was killed by signal {-status} ({name}), usually by the system because memory was short: lower batch_size or "
        "runtime.workers"
    )


class Watch:
    """Reports to every process of a run when one of them has died, and why.

    Each process holds a connection to process 0, which the system closes when either ends, in whatever way. A process
    that ends as it should says so first. Unlike a time limit, this never mistakes a slow process for a dead one, and
    it does not depend on the library that exchanges gradients.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        *,
        num_nodes: int,
        exchange: Callable[[list[Any]], list[Any]],
        children: Children | None,
    ) -> None:
        """Connect the processes.

        Args:
            exchange: gathers the items of all processes, in the order of their ranks.
            children: those that this process started.
        """
        self._rank, self._world, self._children = rank, world, children
        self._cause: str | None = None
        self._found, self._lock = threading.Event(), threading.Lock()
        self._reported = False
        host = os.environ["MASTER_ADDR"] if num_nodes > 1 else "127.0.0.1"
        self._links = self._connect(host, exchange, everywhere=num_nodes > 1)
        for link in self._links.values():
            _keep_alive(link)
            if hasattr(os, "register_at_fork"):  # a data-loading worker outlives its process for a while
                os.register_at_fork(after_in_child=link.close)
        atexit.register(self.leave)
        threading.Thread(target=self._run, name="watch of processes", daemon=True).start()

    def _connect(
        self, host: str, exchange: Callable[[list[Any]], list[Any]], *, everywhere: bool
    ) -> dict[int, socket.socket]:
        if self._rank:
            port, token = exchange([None])[0]
            link = socket.create_connection((host, port), timeout=_CONNECT)
            link.sendall(f"{token} {self._rank:8}".encode())
            link.settimeout(None)
            return {0: link}
        token = secrets.token_hex(16)
        with socket.create_server(("" if everywhere else host, 0), backlog=self._world) as server:
            server.settimeout(_CONNECT)
            exchange([(server.getsockname()[1], token)])
            links: dict[int, socket.socket] = {}
            while len(links) < self._world - 1:
                link, _ = server.accept()
                link.settimeout(_CONNECT)
                hello = link.recv(len(token) + 9, getattr(socket, "MSG_WAITALL", 0)).decode(errors="replace").split()
                if len(hello) == 2 and secrets.compare_digest(hello[0], token):
                    link.settimeout(None)
                    links[int(hello[1])] = link
                else:
                    link.close()
        return links

    def _run(self) -> None:
        received = dict.fromkeys(self._links, b"")
        with selectors.DefaultSelector() as selector:
            for rank, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, rank)
            while received:
                for key, _ in selector.select():
                    try:
                        data = self._links[key.data].recv(65536)
                    except OSError:
                        data = b""
                    if data:
                        received[key.data] += data
                        continue
                    selector.unregister(key.fileobj)
                    self._left(key.data, received.pop(key.data))

    def _left(self, rank: int, message: bytes) -> None:
        """Another process ended; ``message`` is what it sent before, in JSON: why, or null after success."""
        if message:
            cause: str | None = json.loads(message)
        else:
            ended = self._children.ended(rank) if self._children is not None else None
            ended = ended or (
                "ended without an error message, as a process does that is killed: by somebody, or by the system "
                "because memory was short (see its log)"
            )
            cause = f"process {rank} of {self._world} {ended}"
        if cause is None or self._found.is_set():
            return
        self._cause = cause
        self._found.set()
        if self._rank == 0:
            # Not to the sender: it waits for what this process stops for.
            self._send(cause, [other for other in self._links if other != rank])
        threading.Thread(target=self._end, name="end of process", daemon=True).start()

    def _end(self) -> None:
        time.sleep(GRACE)
        if self._reported:
            os._exit(_STATUS)
        _exit_with(_advice(str(self._cause)))

    def cause(self) -> str | None:
        """What to do about the death of another process, which may have made this one fail; None if none has died."""
        self._found.wait(_NEWS)
        if not self._found.is_set():
            return None
        self._reported = True
        if self._rank:
            print(file=sys.stderr)  # process 0 may have died in the middle of a line, that of its progress bar
        self._send(self._cause, list(self._links))  # to the one that failed first, which waits for it
        return _advice(str(self._cause))

    def leave(self, reason: str | None = None) -> None:
        """Report that this process ends, and why; None if it did its work. Only the first call counts."""
        self._reported = reason is not None
        text = None if reason is None else f"process {self._rank} of {self._world}{_STOPPED}{one_line(reason)}"
        self._send(text, list(self._links))

    def is_reported(self, reason: str) -> bool:
        """Whether another process stopped for the same reason as this one, which has left, and reports it.

        Process 0 reports its own reasons always. Reasons are the same up to the first semicolon: what to do follows.
        """
        if self._rank == 0:
            return False
        self._found.wait(_NEWS)
        process, _, other = (self._cause or "").partition(_STOPPED)
        is_own = process == f"process {self._rank} of {self._world}"  # returned by process 0
        return not is_own and other.partition(";")[0] == one_line(reason).partition(";")[0]

    def _send(self, text: str | None, ranks: Sequence[int]) -> None:
        with self._lock:
            for rank in ranks:
                with suppress(OSError):  # closed by the other one, or by an earlier call
                    self._links[rank].sendall(json.dumps(text).encode())
                    self._links[rank].shutdown(socket.SHUT_WR)


def _keep_alive(link: socket.socket) -> None:
    """Let the system notice in half a minute that the other machine is unreachable."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):  # Linux
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _advice(cause: str) -> str:
    process, stopped, reason = cause.partition(_STOPPED)
    if stopped:  # the reason says what to do
        return f"{process} stopped, and therefore this process, too: {reason}"
    return f"{cause}; this process cannot continue without it: start the command again (train.py with resume=true)"


def _exit_with(text: str, status: int = _STATUS) -> None:
    """End this process at once: its main thread waits where no exception reaches it."""
    print(f"\n{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)
    os._exit(status)
