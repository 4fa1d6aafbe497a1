"""What `python train.py` imports before its first step: only what that step needs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Heavy libraries of other models, of pictures, and of reports (shapely, which masks need, takes 15 ms).
NOT_NEEDED = (
    "torchvision",
    "timm",
    "open_clip",
    "matplotlib",
    "scipy.spatial",
    "scipy.stats",
    "pandas",
    "wandb",
    "num2words",
)
UNTIL_FIRST_STEP = f"""
import runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook

def stop(*_):
    print([name for name in {NOT_NEEDED} if name in sys.modules])
    sys.exit(0)

register_optimizer_step_post_hook(stop)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_quickstart_imports_nothing_heavy_before_its_first_step(tmp_path: Path) -> None:
    settings = ["dataset.train_images=8", "dataset.val_images=1", "runtime.workers=0", f"output_dir={tmp_path}"]
    ended = subprocess.run(
        [sys.executable, "-c", UNTIL_FIRST_STEP, "train.py", *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
