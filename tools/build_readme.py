"""Render README.md from nbs/index.ipynb without Quarto. `--check` only compares."""
import filecmp
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from shared import ROOT, visible

NOTE = "<!-- Made from nbs/index.ipynb by tools/build_readme.py (make readme); edit the notebook. -->\n\n"


def from_root(text):
    "Links of nbs/index.ipynb as seen from the repository's root."
    text = re.sub(r"(\]\(|src=\")((?:[\w-]+/)?[\w-]+\.ipynb)", r"\1nbs/\2", text)
    return re.sub(r"(\]\(|src=\")images/", r"\1nbs/images/", text).replace("](../", "](")


def render(out):
    "Write README.md (and pictures of outputs in README_files/) into `out`."
    nb = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    found = [re.search(r"^#\|\s*alt:\s*(.+)$", c.source, re.M) for c in nb.cells]
    alts = [m[1] for m in found if m]                            # of the pictures that cells draw, in order
    nb = visible(nb)
    exporter = MarkdownExporter()
    resources = {"output_files_dir": "README_files", "unique_key": "index"}
    body, resources = exporter.from_notebook_node(nb, resources=resources)
    body = re.sub(r"```python\s*```\n*", "", from_root(body))
    body = re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"
    for alt in alts:
        body = body.replace("![png](", f"![{alt}](", 1)
    (out / "README.md").write_text(NOTE + body, encoding="utf-8")
    for name, data in resources.get("outputs", {}).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)


def same(made, here):
    return here.exists() and filecmp.cmp(made, here, shallow=False)


def faults():
    "A line where README.md or a picture of it differs from the notebook."
    with tempfile.TemporaryDirectory() as tmp:
        render(Path(tmp))
        made = [p.relative_to(tmp) for p in Path(tmp).rglob("*") if p.is_file()]
        stale = [p for p in made if not same(Path(tmp) / p, ROOT / p)]
    return [f"{p}: differs from nbs/index.ipynb; run `make readme`" for p in stale]


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit("\n".join(faults()))
    render(ROOT)
    print("README.md written")
