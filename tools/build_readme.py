"""Render README.md from nbs/index.ipynb without Quarto. `--check` only compares."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by tools/build_readme.py (make readme); edit the notebook. -->\n\n"


def visible(nb):
    "The notebook without hidden cells, directives and metadata."
    cells = []
    for cell in nb.cells:
        if cell.cell_type == "code":
            if re.search(r"^#\|\s*(hide|default_exp)\b", cell.source, re.M):
                continue
            echo = not re.search(r"^#\|\s*echo:\s*false", cell.source, re.M)
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip() if echo else ""
        cells.append(cell)
    nb.cells = cells
    nb.metadata = nbformat.from_dict({"language_info": {"name": "python"}})
    return nb


def from_root(text):
    "Links of nbs/index.ipynb as seen from the repository's root."
    text = re.sub(r"(\]\(|src=\")((?:experiments/)?[\w-]+\.ipynb)", r"\1nbs/\2", text)
    return re.sub(r"(\]\(|src=\")images/", r"\1nbs/images/", text).replace("](../", "](")


def render(out):
    "Write README.md (and pictures of outputs in README_files/) into `out`."
    nb = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    alts = [m[1] for c in nb.cells if (m := re.search(r"^#\|\s*alt:\s*(.+)$", c.source, re.M))]      # of pictures that cells draw, in order
    nb = visible(nb)
    exporter = MarkdownExporter()
    body, resources = exporter.from_notebook_node(nb, resources={"output_files_dir": "README_files", "unique_key": "index"})
    body = re.sub(r"```python\s*```\n*", "", from_root(body))
    body = re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"
    for alt in alts:
        body = body.replace("![png](", f"![{alt}](", 1)
    (out / "README.md").write_text(NOTE + body, encoding="utf-8")
    for name, data in resources.get("outputs", {}).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)


if __name__ == "__main__":
    if "--check" in sys.argv:
        from check_sync import readme_faults
        faults = readme_faults()
        sys.exit("\n".join(faults))
    render(ROOT)
    print("README.md written")
