"""When to save within an epoch: at intervals of time, and when a signal asks the training to stop."""

from dataclasses import dataclass
from time import monotonic

from headcount.engine.runtime import Runtime
from headcount.engine.signals import StopSignals

# Steps between exchanges of the processes, each of which waits for the device; fewer if steps take long.
ASK_EVERY = 10
_SECONDS_BETWEEN = 2.0


@dataclass(frozen=True)
class Decision:
    """What to do after a step; the same on all processes."""

    save: bool
    """Whether the state of the unfinished epoch is to be saved."""
    signal: int
    """Number of the signal that asks to stop after saving; 0 to continue."""


_CONTINUE = Decision(save=False, signal=0)


class Autosave:
    """Decides after which steps the state of an unfinished epoch is saved, and whether training then stops.

    The clock is that of rank 0, and a signal to any process counts for all.
    """

    def __init__(self, runtime: Runtime, signals: StopSignals, *, minutes: float | None) -> None:
        """Start the clock.

        Args:
            minutes: time between saving; None or 0 saves only when a signal asks to stop.
        """
        self._runtime = runtime
        self._signals = signals
        self._seconds = 60 * minutes if minutes else None
        self._saved = self._asked = monotonic()
        self._asked_step = self._next_step = 0

    def start_epoch(self, step: int) -> None:
        """Begin an epoch, of which ``step`` steps are done already."""
        self._asked, self._asked_step, self._next_step = monotonic(), step, step + 1

    def saved(self) -> None:
        """Start the clock again."""
        self._saved = monotonic()

    def decide(self, step: int, *, is_last: bool) -> Decision:
        """What to do after a step.

        Several processes exchange whether to save or stop after the first and the last step of an epoch, and in
        between about every two seconds, or every :data:`ASK_EVERY` steps if that is sooner; other steps do not wait.

        Args:
            step: number of the step in its epoch, from 1.
            is_last: whether it is the last one.
        """
        if step < self._next_step and not is_last:
            return _CONTINUE
        now = monotonic()
        is_due = self._seconds is not None and now - self._saved >= self._seconds
        answers = self._runtime.gather([(is_due, self._signals.received, self._pause(step, now))])
        self._asked, self._asked_step = now, step
        is_due, _, pause = answers[0]
        self._next_step = step + pause
        number = max(received for _, received, _ in answers)
        return Decision(save=is_due or number > 0, signal=number)

    def is_stopping(self) -> bool:
        """Whether a signal asks this process to stop; the others may not know of it."""
        return self._signals.received > 0

    def signal(self) -> int:
        """Number of the signal that asks any of the processes to stop, the same on all; 0 without one."""
        return max(self._runtime.gather([self._signals.received]))

    def _pause(self, step: int, now: float) -> int:
        """Steps until the next exchange."""
        if self._runtime.world == 1:
            return 1
        seconds = (now - self._asked) / max(step - self._asked_step, 1)
        return max(1, min(ASK_EVERY, int(_SECONDS_BETWEEN / max(seconds, 1e-6))))
