"""Signals that ask to stop: at once outside of the training loop, recorded within it."""

import os
import signal
import threading

import pytest

from headcount.engine.signals import StopSignals


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
