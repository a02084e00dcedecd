"""The house keeps its rules, and each check finds a planted fault."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import check_house  # noqa: E402  the tools' folder had to be found first
import shared  # noqa: E402  likewise


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house") / "repo"
    # this file quotes the faults
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "test_house.py")
    for name in ("nbs", "hms_hbac", "tools", "tests", "bench", "kaggle_kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    return folder


def plant(path, fault):
    "Add cells (kind, source) to a notebook, or text to a file; returns what puts it back."
    before = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        nb = json.loads(before)
        for kind, source in fault:
            new = {"cell_type": kind, "id": "planted", "metadata": {}, "source": [source]}
            nb["cells"].append(new | ({"outputs": [], "execution_count": None} if kind == "code" else {}))
        path.write_text(json.dumps(nb), encoding="utf-8")
    else:
        path.write_text(before + fault, encoding="utf-8")
    return lambda: path.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("check", sorted(check_house.CHECKS))
def test_the_house_keeps_its_rules(check):
    assert check_house.CHECKS[check](ROOT) == []


BOOK, CORE_BOOK = "nbs/01_draws.ipynb", "nbs/00_core.ipynb"
CORE, FILTERS = "hms_hbac/core.py", "hms_hbac/signal/filters.py"
PLANTED = {      # check -> file -> (what is planted, what is said)
    "imports": {CORE: ("\nfrom .cli import app\nimport fastcore\n", ["core imports cli", "imports fastcore"]),
                FILTERS: ("\nfrom ..views import algebra\n", ["signal.filters imports views.algebra"])},
    "text": {BOOK: ([("markdown", "The `shuffle_gently` of the next room."),
                     ("markdown", "[There](02_signal/99_gone.ipynb), [here](00_core.ipynb#No-such).")],
                    ["`shuffle_gently` is not found", "says room", "leads nowhere", "has no heading"]),
             CORE: ('\ndef f():\n    "Like `on_kangaroo`."\n', ["core.py, f: `on_kangaroo` is not found"])},
    "exports": {BOOK: ([("code", f"#| export\nx{i} = {i}") for i in range(3)], ["3 exports in a row"]),
                CORE_BOOK: ([("code", "#| export\n" + "x = 0\n" * n) for n in (25, 26)],
                            ["00_core.ipynb, cell", "an export of 26 lines, at most 25"])},
    "size": {CORE: ("\n" * 300, ["core.py", "at most 300"]),
             BOOK: ([("markdown", "x" * 2**20)], ["01_draws.ipynb: 1,", "bytes, at most 1,048,576"]),
             CORE_BOOK: ([("markdown", "more")] * 60, ["00_core.ipynb: 1", "cells, at most 60"])},
    "lines": {CORE: (f"\n# {'µ' * 54}\n# {'µ' * 55}\n", ["core.py, line", "112 bytes, at most 110"]),
              BOOK: ([("code", f"x = '{'–' * 36}'")], ["01_draws.ipynb, cell", "line 1: 114 bytes"])},
    "choices": {CORE: ("\nx = 1 if 2 else 3 if 4 else 5\n", ["core.py, line", "a chain of conditional"]),
                BOOK: ([("code", "x = (1 if 2 else 3) if 4 else 5")], ["cell", "line 1: a chain"])},
    "pairs": {CORE: (f"\na, b = dict(), dict()\na, b = dict(x='{'x' * 30}'), dict(y='{'y' * 30}')\n",
                     ["core.py, line", "several calls in one assignment over 80 columns"]),
              FILTERS: ("\na, b = (min([1]),\n        max([1]))\n", ["filters.py, line"]),
              BOOK: ([("code", f"a, b = str('{'µ' * n}'), str(2)") for n in (58, 59)],
                     ["cell", "line 1: several"])},
    "signatures": {CORE: ("\ndef planted(a, *, b: int = 1): pass\n"
                          "class Planted(HmsError):\n    def f(self) -> int: return 1\n",
                          ["planted: no annotation of a\n", "planted: no annotation of what it returns",
                           "planted: no docstring", "Planted.f: no docstring"])},
}


@pytest.mark.parametrize("check", sorted(PLANTED))
def test_planted_faults_are_found(copy, check):
    back = [plant(copy / file, fault) for file, (fault, _) in PLANTED[check].items()]
    try:
        found = [f"{fault}\n" for fault in check_house.CHECKS[check](copy)]
    finally:
        for put in back:
            put()
    planted = [message for _, messages in PLANTED[check].values() for message in messages]
    for message in planted:
        assert any(message in fault for fault in found), message
    assert [fault for fault in found if not any(message in fault for message in planted)] == []


def test_an_import_is_told_with_its_line(copy):
    back = plant(copy / CORE, "\nfrom .cli import app\n")
    line = len((copy / CORE).read_text(encoding="utf-8").splitlines())
    found = check_house.import_faults(copy)
    back()
    assert f"{CORE}, line {line}: core imports cli, which stands below it" in found


def ruff(folder):
    command = [str(Path(sys.executable).parent / "ruff"), "check", "--no-cache", "--output-format", "concise"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_lint_is_clean_and_sees_a_wide_line(copy):
    clean = ruff(ROOT)
    assert clean.returncode == 0, clean.stdout[-3000:]
    back = plant(copy / BOOK, [("code", "x = " + "1 + " * 40 + "1")])
    found = ruff(copy)
    back()
    assert found.returncode == 1 and "E501" in found.stdout


def test_tools_do_not_import_in_a_circle():
    names = {p.stem for p in (ROOT / "tools").glob("*.py")}
    uses = {n: check_names(ROOT / f"tools/{n}.py") & names for n in names}
    for a in names:
        assert not any(a in uses[b] for b in uses[a]), f"{a} and {uses[a]} import each other"


def check_names(path):
    import ast
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {n.module for n in nodes if isinstance(n, ast.ImportFrom)} | {
        a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}


def test_every_module_has_its_notebook_in_a_folder_of_the_same_name():
    for name, book in shared.modules().items():
        folder = book.relative_to(ROOT / "nbs").parts[:-1]
        assert [f.split("_", 1)[1] for f in folder] == name.split(".")[:-1], book
    for folder in {b.parent for b in shared.notebooks() if b.parent.name[:2].isdigit()}:
        numbers = [p.stem.split("_")[0] for p in sorted(folder.glob("*.ipynb"))]
        assert numbers == [f"{i:02}" for i in range(1, len(numbers) + 1)], f"{folder.name}: {numbers}"


def test_every_notebook_leads_to_the_next():
    books = [b for b in shared.notebooks() if b.relative_to(ROOT / "nbs").parts[0][:2].isdigit()]
    lost = []
    for here, there in zip(books, books[1:], strict=False):
        told = shared.cells(here, "markdown")[-1][2].split("###")[0]
        links = {(here.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", told)}
        if "Next:" not in told or there.resolve() not in links:
            lost.append(f"{here.relative_to(ROOT)} does not lead to {there.name}")
    assert lost == []
