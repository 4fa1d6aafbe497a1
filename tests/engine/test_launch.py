"""A process learns that another one has died, and how; it then ends, whatever its main thread waits for."""

import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from headcount.cli.status import exit_on_error
from headcount.config import Accelerator, ConfigError, RuntimeConfig
from headcount.engine import launch
from headcount.engine.launch import Children, Starter, Watch
from headcount.engine.runtime import Runtime
from headcount.errors import DataError, ProcessError


class Ended(Children):
    """Children that ended with a status."""

    def __init__(self, status: int | None) -> None:
        self.status = status

    def ended(self, local: int) -> str | None:
        return None if self.status is None else launch._ending(self.status)


def wait_for(exits: list[int]) -> None:
    deadline = time.monotonic() + 60
    while not exits and time.monotonic() < deadline:
        time.sleep(0.02)


class Group:
    """Three processes, as threads of this one."""

    def __init__(self, *, children: Children | None = None) -> None:
        address: queue.Queue[Any] = queue.Queue()

        def main(items: list[Any]) -> list[Any]:
            address.put(items)
            address.put(items)
            return items

        watches: dict[int, Watch] = {}

        def connect(rank: int, exchange: Callable[[list[Any]], list[Any]]) -> None:
            watches[rank] = Watch(rank, 3, num_nodes=1, exchange=exchange, children=None if rank else children)

        threads = [threading.Thread(target=connect, args=(0, main))]
        threads += [threading.Thread(target=connect, args=(rank, lambda _: address.get())) for rank in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.watches = watches
        assert sorted(watches) == [0, 1, 2]

    def kill(self, rank: int) -> None:
        """Close its connections, as the system does for a killed process."""
        self.watches[rank]._found.set()  # a killed process notices nothing
        for link in self.watches[rank]._links.values():
            with suppress(OSError):  # closed by the other side
                link.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The statuses with which processes would have been ended."""
    statuses: list[int] = []
    monkeypatch.setattr(launch.os, "_exit", statuses.append)
    monkeypatch.setattr(launch, "GRACE", 0.2)
    monkeypatch.setattr(launch, "_NEWS", 2.0)
    yield statuses
    deadline = time.monotonic() + 5
    while any(t.name == "end of process" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("children", "words"),
    [
        (None, "process 2 of 3 ended without an error message, as a process does that is killed"),
        (Ended(None), "process 2 of 3 ended without an error message"),
        (Ended(-9), "process 2 of 3 was killed by signal 9 (SIGKILL), usually by the system because memory was short"),
        (Ended(-15), "process 2 of 3 was killed by signal 15 (SIGTERM)"),
        (Ended(1), "process 2 of 3 exited with status 1; its error is above; this process"),
        (Ended(3), "process 2 of 3 exited with status 3; this process"),  # by os._exit, without a word
    ],
)
def test_the_others_learn_how_a_process_died(children: Children | None, words: str) -> None:
    group = Group(children=children)
    group.kill(2)
    for rank in (0, 1):  # process 1 has no connection to process 2
        cause = group.watches[rank].cause()
        assert cause is not None
        assert cause.startswith(words)
        assert "start the command again (train.py with resume=true)" in cause


def test_the_others_learn_that_process_0_died() -> None:
    group = Group()
    group.kill(0)
    for rank in (1, 2):
        assert str(group.watches[rank].cause()).startswith("process 0 of 3 ended without an error message")


def test_an_error_is_reported_to_the_others_in_its_own_words() -> None:
    group = Group()
    group.watches[1].leave("a.jpg: damaged; remove it")
    for rank in (0, 2):
        cause = group.watches[rank].cause()
        assert cause == "process 1 of 3 stopped, and therefore this process, too: a.jpg: damaged; remove it"


@pytest.mark.parametrize("first", [0, 1, 2])
def test_an_error_of_all_processes_is_reported_by_process_0_only(first: int) -> None:
    group = Group()
    order = [first, *(rank for rank in (0, 1, 2) if rank != first)]
    for rank in order:  # what follows the semicolon may differ
        group.watches[rank].leave(f"dataset.path=x: missing; process {rank} advises")
        time.sleep(0.1)
    found = [group.watches[rank].is_reported(f"dataset.path=x: missing; process {rank}") for rank in (0, 1, 2)]
    assert found == [False, True, True]


def test_an_error_of_one_process_is_reported_by_it_and_ends_the_others() -> None:
    group = Group()
    group.watches[1].leave("a.jpg: damaged; remove it")
    group.watches[0].cause()  # process 0 fails because of it, and sends it back
    assert not group.watches[1].is_reported("a.jpg: damaged; remove it")
    assert not group.watches[2].is_reported("b.jpg: damaged; remove it")


def test_commands_do_not_print_what_another_process_reports(capsys: pytest.CaptureFixture[str]) -> None:
    group = Group()
    group.watches[0].leave("a.jpg: damaged")
    runtime = guarded(group.watches[1])
    for reason, printed in (("a.jpg: damaged", ""), ("b.jpg: damaged", "train.py: b.jpg: damaged\n")):
        with pytest.raises(SystemExit) as end, exit_on_error("train.py"), runtime.guard():
            raise DataError(reason)
        assert end.value.code == 2
        assert capsys.readouterr().err == printed


def test_a_process_that_is_done_stops_no_other(exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_NEWS", 0.5)
    group = Group()
    for watch in group.watches.values():
        watch.leave()
    group.kill(1)
    assert [group.watches[rank].cause() for rank in (0, 2)] == [None, None]
    assert exits == []


def test_a_process_that_hangs_is_ended_with_the_cause(exits: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    group = Group()
    group.kill(2)
    deadline = time.monotonic() + 10
    while len(exits) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert exits == [2, 2]  # of processes 0 and 1; nobody asked for the cause
    assert capfd.readouterr().err.count("process 2 of 3 ended without an error message") == 2


def guarded(watch: Watch) -> Runtime:
    runtime = Runtime(RuntimeConfig(accelerator=Accelerator.cpu))
    runtime._watch = watch
    return runtime


def test_the_cause_is_raised_instead_of_its_consequence() -> None:
    group = Group(children=Ended(-9))

    def work() -> None:
        with guarded(group.watches[0]).guard():
            group.kill(1)
            raise RuntimeError("gloo: Connection closed by peer")

    with pytest.raises(ProcessError, match=r"^process 1 of 3 was killed by signal 9"):
        work()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError("a.jpg: damaged"), "a.jpg: damaged"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (MemoryError(), "MemoryError"),
        (KeyboardInterrupt(), "interrupted (KeyboardInterrupt)"),
        (SystemExit(143), "interrupted (SystemExit)"),
    ],
)
def test_an_error_of_this_process_stays_itself_and_is_reported(
    error: BaseException, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_NEWS", 0.3)
    group = Group()
    monkeypatch.setattr(group.watches[1], "cause", lambda: None)  # it would wait for news
    with pytest.raises(type(error)) as caught, guarded(group.watches[1]).guard():
        raise error
    assert caught.value is error
    assert group.watches[0].cause() == f"process 1 of 3 stopped, and therefore this process, too: {told}"


def test_a_process_that_exits_with_success_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_NEWS", 0.5)
    group = Group()
    with pytest.raises(SystemExit), guarded(group.watches[1]).guard():
        raise SystemExit(0)
    assert group.watches[0].cause() is None


def test_a_stranger_who_connects_first_is_no_process_of_the_run() -> None:
    address: queue.Queue[Any] = queue.Queue()
    found: list[Watch] = []
    main = threading.Thread(
        target=lambda: found.append(
            Watch(0, 2, num_nodes=1, exchange=lambda items: address.put(items) or items, children=None)
        )
    )
    main.start()
    items = address.get()
    with socket.create_connection(("127.0.0.1", items[0][0])) as stranger:
        stranger.sendall(b"x" * 41)
    other = Watch(1, 2, num_nodes=1, exchange=lambda _: items, children=None)
    main.join(30)
    assert list(found[0]._links) == [1]
    other.leave()
    found[0].leave()


def test_every_signal_has_a_name() -> None:
    for one in (signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM):
        assert launch._ending(-one) == f"was killed by signal {one.value} ({one.name})"


def test_a_process_that_dies_before_all_are_connected_ends_the_one_that_started_it(
    exits: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_same_command", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.setenv("LOCAL_RANK", "0")  # restored afterwards
    children = Children({}, devices=2)
    wait_for(exits)
    children.connected()
    assert exits[0] == 2
    assert "one of the processes it started exited with status 3\n" in capfd.readouterr().err


# Interrupts itself in the middle of its imports, then lives on as Runtime does.
INTERRUPTED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
"""


def test_ctrl_c_before_all_are_connected_is_one_line(
    exits: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_same_command", lambda: [sys.executable, "-c", INTERRUPTED])
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("LOCAL_RANK", "0")  # restored afterwards
    children = Children({}, devices=2)
    wait_for(exits)
    children.connected()
    assert exits[0] == 130
    assert capfd.readouterr().err.splitlines()[:2] == ["", "train.py: interrupted"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the address is in use")])
def test_processes_that_are_not_connected_are_ended_with_the_one_that_started_them(
    error: BaseException, exits: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_NEWS", 0.1)
    monkeypatch.setattr(launch, "_same_command", lambda: [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setenv("LOCAL_RANK", "0")  # restored afterwards
    children = Children({}, devices=3)
    children.stop(error)
    assert [process.wait(10) for process in children._processes] == [-signal.SIGKILL] * 2
    assert exits == []
    assert capfd.readouterr().err == ""


def start_by(process: int, monkeypatch: pytest.MonkeyPatch) -> Starter:
    monkeypatch.setenv(launch._STARTED_BY, str(process))
    monkeypatch.setattr(launch, "_LOOK", 0.02)
    return Starter()


def test_a_process_that_is_not_connected_ends_with_the_one_that_started_it(
    exits: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    parents = iter([7, 7, 7])
    monkeypatch.setattr(launch.os, "getppid", lambda: next(parents, 1))
    starter = start_by(7, monkeypatch)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    wait_for(exits)
    starter.connected()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert exits == [2]
    assert "process 0, which started this one, ended before all processes were connected" in capfd.readouterr().err
    assert launch._STARTED_BY not in os.environ


def test_a_process_that_is_connected_or_was_not_started_by_us_does_not_watch_its_parent(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.os, "getppid", lambda: 7)
    start_by(7, monkeypatch).connected()
    monkeypatch.setattr(launch.os, "getppid", lambda: 1)
    Starter()  # its variable is gone
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    time.sleep(0.2)
    assert exits == []


def test_children_of_another_machine_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # restored afterwards
    children = Children({}, devices=1)
    assert children.ended(1) is None
    assert children.ended(7) is None


def test_errors_of_a_launch_are_errors_of_settings() -> None:
    with pytest.raises(ConfigError, match=r"NODE_RANK"):
        launch._refuse_no_node("runtime.devices=1 runtime.num_nodes=2", 2)
