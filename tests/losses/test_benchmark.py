import pytest


@pytest.mark.slow
def test_the_loss_benchmark_runs_and_its_two_sides_agree(run_command):
    done = run_command(
        "scripts/benchmark.py", "loss", "--points", "30", "--seconds", "0.1", "--threads", "1", HEADCOUNT_DATA=""
    )
    assert done.returncode == 0, done.stderr
    header, row, stable = done.stdout.strip().splitlines()
    assert "dense ms" in header
    assert len(row.split()) == 7
    assert float(row.split()[4]) > float(row.split()[5]) > 0  # ours holds less memory
    assert stable.split()[:2] == ["30", "stable"]
    assert len(stable.split()) == 8
    assert float(stable.split()[2]) > float(stable.split()[3]) > 0  # and is faster than logarithms throughout
