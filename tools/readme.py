"""Write README.md from nbs/index.ipynb; with `--check`, only tell whether it is in step (exit status 1 if not).

`nbdev_readme` needs Quarto, which is not everywhere; nbconvert does the same work here.
"""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent


def readme() -> str:
    "The index notebook as Markdown, its links as seen from the top of the repository."
    exporter = MarkdownExporter()
    index = nbformat.read(root/"nbs"/"index.ipynb", 4)
    index.metadata["language_info"] = dict(name="python")
    text, _ = exporter.from_notebook_node(index)
    lines = [line.rstrip() for line in text.strip().splitlines()]
    text = "\n".join(lines).replace("](../", "](")
    return re.sub(r"\]\((images/|\w+\.ipynb)", r"](nbs/\1", text) + "\n"


def main():
    path, text = root/"README.md", readme()
    if "--check" not in sys.argv: return path.write_text(text, encoding="utf-8")
    if path.read_text(encoding="utf-8") == text: return
    sys.exit("README.md is behind nbs/index.ipynb: run `python tools/readme.py`.")


if __name__ == "__main__":
    main()
