"""Do notebooks, modules and README say the same? Works on a copy, names each fault and its cure."""
import ast
import difflib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import build_readme
from shared import ROOT, cells, notebooks


def mixed_imports(source):
    "True where a cell holds top-level imports and something else."
    try:
        body = ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M)).body
    except SyntaxError:
        return False
    body = [n for n in body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in body]
    return any(imports) and not all(imports)


def notebook_faults(path):
    "Faults of the file itself: no kernel named, imports beside other code, saved errors."
    name, faults = path.relative_to(ROOT), []
    meta = json.loads(path.read_text(encoding="utf-8")).get("metadata", {})
    if not meta.get("kernelspec", {}).get("name"):
        faults.append(f"{name}: no kernelspec (Kaggle refuses it); run nbdev_clean after a save in Jupyter")
    for i, cell, source in cells(path):
        if mixed_imports(source):
            faults.append(f"{name}, cell {i}: imports beside other code; give them a cell of their own")
        if any(o.get("output_type") == "error" for o in cell.get("outputs", [])):
            faults.append(f"{name}, cell {i}: a saved error; run the notebook again")
    return faults


def contents(folder):
    "dict of relative path -> bytes of the files in a folder."
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name.suffix != ".pyc"}


def export_faults():
    "Run clean and export on a copy; any file that changes is a fault."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / ROOT.name
        copy.mkdir()
        for name in ("nbs", "hms_hbac"):
            ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        for name in ("settings.ini", "setup.py"):
            shutil.copy(ROOT / name, copy / name)
        before = contents(copy)
        for command in ("nbdev_clean", "nbdev_export"):
            exe = Path(sys.executable).parent / command
            subprocess.run([str(exe)], cwd=copy, check=True, stdout=subprocess.DEVNULL)
        after = contents(copy)
    return [difference(name, before.get(name, b""), after.get(name, b""))
            for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def difference(name, now, made, lines=12):
    "A fault with its cure and the first lines of the difference."
    cure = "edit the notebook, then run nbdev_export (or nbdev_update to take the module's side)"
    if name.suffix == ".ipynb":
        cure = "run nbdev_clean"
    now, made = (b.decode(errors="replace").splitlines() for b in (now, made))
    diff = difflib.unified_diff(now, made, "now", "after clean and export", lineterm="", n=0)
    shown = "\n".join("    " + line[:160] for line in list(diff)[:lines])
    return f"{name}: differs from its notebook; {cure}\n{shown}"


def main():
    faults = [f for p in notebooks() for f in notebook_faults(p)]
    faults += export_faults() + build_readme.faults()
    fine = f"check_sync: {len(notebooks())} notebooks, modules and README agree"
    print("\n".join(faults) if faults else fine)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
