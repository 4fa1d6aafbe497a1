"""MkDocs hook: adds README.md, EXPERIMENTS.md and others from outside docs/ as pages, and points links at them.

On GitHub the links of these files are relative to the repository; on the site they are relative to docs/.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "EXPERIMENTS.md": "experiments.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "checkpoints/README.md": "runs.md",
}
# No pages of their own.
PLAIN = ("CITATION.cff",)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrite links between the repository's files to links between pages."""
    for source, page in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}(#[^)]*)?\)", rf"]({page}\1)", markdown)
    for name in PLAIN:
        markdown = markdown.replace(f"[{name}]({name})", f"`{name}`")
    return re.sub(r"\]\(docs/", "](", markdown)
