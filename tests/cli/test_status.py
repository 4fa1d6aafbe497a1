"""How commands end on errors whose messages are written for the user, and on disks."""

import errno

import pytest

from headcount.cli.status import exit_on_error
from headcount.errors import DataError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_another_library_finds_full_or_read_only_is_named(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, exit_on_error("train.py"):
        raise OSError(number, "no room", "runs/a\x1b[2J.pt")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("train.py: a file cannot be written: ")
    assert "runs/a" in message
    assert "free space, or choose another folder" in message
    assert "\x1b" not in message


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ZeroDivisionError("of ours"), KeyError("a")])
def test_any_other_error_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), exit_on_error("train.py"):
        raise error


def test_ctrl_c_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, exit_on_error("headcount export"):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\nheadcount export: interrupted\n"
    with pytest.raises(KeyboardInterrupt), exit_on_error("train.py", interrupts=False):
        raise KeyboardInterrupt


def test_errors_of_more_kinds_may_be_written_for_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (DataError("a.csv is empty"), KeyError("a")):
        with pytest.raises(SystemExit) as stop, exit_on_error("scale.py", KeyError):
            raise error
        assert stop.value.code == 2
    assert capsys.readouterr().err == "scale.py: a.csv is empty\nscale.py: 'a'\n"
