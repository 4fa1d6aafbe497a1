"""Every kind of input, and how many of each ``make fuzz`` tries."""

from fuzz import annotations, checkpoints, images, names, settings

CHECKS = {
    "annotations": annotations.check,
    "images": images.check,
    "settings": settings.check,
    "checkpoints": checkpoints.check,
    "names": names.check,
}
NUMBERS = {"annotations": 3000, "images": 2000, "settings": 1000, "checkpoints": 500, "names": 100}
