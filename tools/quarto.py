"""Stands for Quarto where it is not installed, so that nbdev_prepare and nbdev_readme end well.

nbdev calls `quarto render .../index.ipynb -o README.md ...` and takes the page from _docs/; it is made by
tools/build_readme.py, the same as `make readme`. Everything else that Quarto can do is not done here.
"""
import sys
from pathlib import Path

import build_readme


def main(words):
    if words[:1] != ["render"] or "README.md" not in words:
        sys.exit("this stand-in for Quarto only renders README.md; the site is built by `make docs`")
    out = Path("_docs")
    out.mkdir(exist_ok=True)
    build_readme.render(out)


if __name__ == "__main__":
    main(sys.argv[1:])
