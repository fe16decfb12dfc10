"""Write README.md from nbs/index.ipynb; with `--check`, only tell whether it is in step (exit status 1 if not).

`nbdev_readme` needs Quarto, which is not everywhere; nbconvert does the same work here.
"""
import sys
from pathlib import Path

from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent


def readme() -> str:
    "The index notebook as Markdown, its picture links as seen from the top of the repository."
    exporter = MarkdownExporter()
    text, _ = exporter.from_filename(str(root/"nbs"/"index.ipynb"))
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join(lines).replace("](images/", "](nbs/images/") + "\n"


def main():
    path, text = root/"README.md", readme()
    if "--check" not in sys.argv: return path.write_text(text, encoding="utf-8")
    if path.read_text(encoding="utf-8") == text: return
    sys.exit("README.md is behind nbs/index.ipynb: run `python tools/readme.py`.")


if __name__ == "__main__":
    main()
