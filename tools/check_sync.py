"""Do notebooks, modules and README say the same? Works on a copy, changes nothing, names each fault and its cure."""
import ast
import difflib
import filecmp
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))


def notebooks():
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def code_cells(nb):
    return [(i, c, "".join(c["source"])) for i, c in enumerate(nb["cells"]) if c["cell_type"] == "code"]


def mixed_imports(source):
    "True where a cell holds top-level imports and something else."
    try:
        body = ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M)).body
    except SyntaxError:
        return False
    imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in body]
    return any(imports) and not all(imports)


def notebook_faults(path):
    nb, name, faults = json.loads(path.read_text(encoding="utf-8")), path.relative_to(ROOT), []
    if not nb.get("metadata", {}).get("kernelspec", {}).get("name"):
        faults.append(f"{name}: no kernelspec (Kaggle refuses such a notebook); run nbdev_clean after a save in Jupyter")
    for i, cell, source in code_cells(nb):
        if mixed_imports(source):
            faults.append(f"{name}, cell {i}: imports and other code in one cell; give the imports a cell of their own")
        if any(o.get("output_type") == "error" for o in cell.get("outputs", [])):
            faults.append(f"{name}, cell {i}: a saved error; run the notebook again")
    return faults


def modules():
    "Exported modules in the order of their notebooks: dict of dotted name (without the package) -> notebook."
    found = {}
    for path in notebooks():
        for _, _, source in code_cells(json.loads(path.read_text(encoding="utf-8"))):
            if m := re.search(r"^#\|\s*default_exp\s+(\S+)", source, re.M):
                found[m.group(1)] = path
    return found


def imported(node, here):
    "Dotted names that an import statement of module `here` may load, as seen from the package's root."
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    base = node.module or ""
    if node.level:
        parents = ["hms_hbac", *here.split(".")][:-node.level]
        base = ".".join([*parents, *([base] if base else [])])
    return [base, *(f"{base}.{a.name}" for a in node.names)]


def module_faults(here, order):
    "Exported code stands on its own feet: no nbdev, no fastcore; an import points to a line above its own."
    path, faults, names = ROOT / "hms_hbac" / (here.replace(".", "/") + ".py"), [], list(order)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        for n in imported(node, here):
            if n.split(".")[0] in ("nbdev", "fastcore"):
                faults.append(f"{path.relative_to(ROOT)}, line {node.lineno}: imports {n}; exported code must run without it")
            n = n.removeprefix("hms_hbac.")
            if n in order and names.index(n) > names.index(here):
                faults.append(f"{path.relative_to(ROOT)}, line {node.lineno}: imports {n}, which stands below it; an import points to a line above")
    return faults


def export_faults():
    "Run clean and export on a copy; any file that changes is a fault."
    faults = []
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / ROOT.name
        copy.mkdir()
        for name in ("nbs", "hms_hbac"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        for name in ("settings.ini", "setup.py"):
            shutil.copy(ROOT / name, copy / name)
        before = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
        for command in (["nbdev_clean"], ["nbdev_export"]):
            exe = Path(sys.executable).parent / command[0]
            subprocess.run([str(exe)], cwd=copy, check=True, stdout=subprocess.DEVNULL)
        after = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
        for name in sorted(set(before) | set(after)):
            if before.get(name) == after.get(name) or name.suffix == ".pyc":
                continue
            cure = "run nbdev_clean" if name.suffix == ".ipynb" else "edit the notebook, then run nbdev_export (or nbdev_update to take the module's side)"
            faults.append(f"{name}: differs from its notebook; {cure}\n" + short_diff(before.get(name, b""), after.get(name, b"")))
    return faults


def short_diff(a, b, lines=12):
    diff = difflib.unified_diff(a.decode(errors="replace").splitlines(), b.decode(errors="replace").splitlines(), "now", "after clean and export", lineterm="", n=0)
    return "\n".join("    " + line[:160] for line in list(diff)[:lines])


def readme_faults():
    from build_readme import render
    with tempfile.TemporaryDirectory() as tmp:
        render(Path(tmp))
        same = all(filecmp.cmp(p, ROOT / p.relative_to(tmp), shallow=False) if (ROOT / p.relative_to(tmp)).exists() else False
                   for p in Path(tmp).rglob("*") if p.is_file())
    return [] if same else ["README.md: differs from nbs/index.ipynb; run `make readme`"]


def main():
    faults = [f for p in notebooks() for f in notebook_faults(p)]
    order = modules()
    faults += [f for here in order for f in module_faults(here, order)]
    faults += export_faults() + readme_faults()
    print("\n".join(faults) if faults else f"check_sync: {len(notebooks())} notebooks, modules and README agree")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
