"""The paper's tables from the runs of its experiments, beside the published numbers.

``paper`` holds the published tables, ``cells`` finds the runs of each cell, ``kept`` reads the evaluations of the
checkpoints that a run keeps, on a split that selected none of them in training, ``judged`` compares these, and
``pages`` writes Markdown, LaTeX and a picture.
"""

from headcount.report.tables.cells import (
    ReproducedTable,
    TableCell,
    fill_table,
    image_errors,
    improvement,
    paired_difference,
    verdict,
    why_not_evaluated,
)
from headcount.report.tables.kept import Selection, checkpoint_names, judge_run
from headcount.report.tables.pages import latex, markdown, table_picture
from headcount.report.tables.paper import TABLES, PaperRow, PaperTable

__all__ = [
    "TABLES",
    "PaperRow",
    "PaperTable",
    "ReproducedTable",
    "Selection",
    "TableCell",
    "checkpoint_names",
    "fill_table",
    "image_errors",
    "improvement",
    "judge_run",
    "latex",
    "markdown",
    "paired_difference",
    "table_picture",
    "verdict",
    "why_not_evaluated",
]
