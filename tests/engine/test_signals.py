"""Signals that ask to stop: at once outside of the training loop, recorded within it."""

import os
import signal
import sys
import threading

import pytest

from headcount.engine.signals import StopSignals, end_at_interrupt, held_interrupts, raise_at_interrupt, stop_event


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGHUP", 129)])
def test_outside_of_the_loop_a_signal_ends_the_process_politely(name: str, status: int) -> None:
    number = getattr(signal, name)
    closed = []

    def interrupted() -> None:
        with StopSignals():
            try:
                signal.raise_signal(number)
            finally:
                closed.append(True)

    with pytest.raises(SystemExit) as stop:
        interrupted()
    assert stop.value.code == status
    assert closed
    assert signal.getsignal(number) is signal.SIG_DFL


def test_within_the_loop_the_first_signal_is_recorded_and_nothing_ends() -> None:
    with StopSignals() as signals:
        with signals.deferred():
            assert signals.received == 0
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # SLURM sends it to the batch script and to each step
            assert signals.received == signal.SIGUSR1
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)


def test_ctrl_c_stops_after_the_step_and_the_second_time_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals() as signals, signals.deferred():
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert capfd.readouterr().err == "\nstopping after this step; Ctrl-C again stops at once, without saving\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_of_several_processes_one_reports_ctrl_c(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals(is_main=False) as signals, signals.deferred():
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
    assert capfd.readouterr().err == ""


def test_signals_that_somebody_handles_or_ignores_are_left() -> None:
    """A launcher on a cluster has its own handler; nohup lets a process ignore SIGHUP."""
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals, signals.deferred():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == 0
        assert handled == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGHUP, ignored)


def test_in_another_thread_no_signal_is_touched() -> None:
    def enter() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


class _Busy:
    """A stream in the middle of a ``print``."""

    def write(self, text: str) -> None:
        raise RuntimeError("reentrant call inside a stream")

    flush = write


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_event_is_set_once_whatever_is_being_printed(
    number: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with stop_event() as event:
        assert not event.is_set()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", _Busy())
            patch.setattr(sys, "stdout", _Busy())
            signal.raise_signal(number)
        assert event.is_set()
        assert signal.getsignal(number) is before  # the second one interrupts as usual
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == "\nstopping; press Ctrl-C again to give up the video\n"


def test_interrupts_of_a_thread_are_held_back_until_the_end_of_a_block() -> None:
    reached = []

    def interrupted() -> None:
        with held_interrupts():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_interrupts_end_a_process_that_is_not_connected_and_are_exceptions_afterwards() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as it was started
    assert end_at_interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    raise_at_interrupt()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_interrupts_that_are_ignored_stay_ignored() -> None:
    """A shell lets processes in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not end_at_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
