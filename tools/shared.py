"""What the tools have in common: where things lie, and how a notebook is read."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def preloaded():
    """What a process imports whose forks run notebooks and commands: the package, and what it imports late.
    (`explore` is for Jupyter alone.)"""
    late = ("pytest timm.optim timm.utils sklearn.linear_model sklearn.model_selection matplotlib.pyplot "
            "torch.distributed.run joblib tqdm.auto scipy.signal scipy.optimize pyarrow.parquet accelerate "
            "typer.testing nbdev.test IPython.display")
    own = [p.relative_to(ROOT).with_suffix("") for p in sorted((ROOT / "hms_hbac").glob("*/*.py"))
           if p.stem not in ("__init__", "explore")]
    return ["torch", "hms_hbac.cli", *late.split(), *(".".join(p.parts) for p in own)]


def notebooks(root=ROOT):
    "Every notebook below nbs/, in reading order."
    found = (root / "nbs").rglob("*.ipynb")
    return sorted(p for p in found if ".ipynb_checkpoints" not in p.parts and not p.name.startswith("_"))


def cells(path, kind="code"):
    "(number, cell, source) of a notebook's cells of one kind."
    nb = json.loads(path.read_text(encoding="utf-8"))
    return [(i, c, "".join(c["source"])) for i, c in enumerate(nb["cells"]) if c["cell_type"] == kind]


def is_export(source):
    return re.search(r"^#\|\s*exporti?\b", source, re.M) is not None


def module_of(path):
    "The dotted name (without the package) that a notebook exports, or None."
    found = [re.search(r"^#\|\s*default_exp\s+(\S+)", source, re.M) for _, _, source in cells(path)]
    return next((m.group(1) for m in found if m), None)


def modules(root=ROOT):
    "Exported modules in the order of their notebooks: dict of dotted name -> notebook."
    return {name: path for path in notebooks(root) if (name := module_of(path))}


def visible(nb):
    "An nbformat notebook without hidden cells, directives and metadata."
    from nbformat import from_dict
    shown = []
    for cell in nb.cells:
        if cell.cell_type == "code":
            if re.search(r"^#\|\s*(hide|default_exp)\b", cell.source, re.M):
                continue
            echo = not re.search(r"^#\|\s*echo:\s*false", cell.source, re.M)
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip() if echo else ""
        shown.append(cell)
    nb.cells = shown
    nb.metadata = from_dict({"language_info": {"name": "python"}})
    return nb
