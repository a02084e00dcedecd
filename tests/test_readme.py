"""What the README tells a newcomer to type works as it stands."""
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from apart import apart, command

README = Path(__file__).resolve().parent.parent / "README.md"


def section(title):
    text = README.read_text(encoding="utf-8")
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S).group(1)


def test_how_to_add_a_recipe(comp_dir, tmp_path):
    "The section's own file names, files and commands; only the demo's competition is a smaller one."
    text = section("How to add a recipe")
    names = re.findall(r"`(\w+\.(?:py|yaml))`", text)
    kinds = ("python", "yaml", "sh")
    blocks = {kind: re.search(rf"```{kind}\n(.*?)```", text, re.S).group(1) for kind in kinds}
    assert names[:2] == ["slow_view.py", "slow_b0.yaml"]
    (tmp_path / names[0]).write_text(blocks["python"])
    (tmp_path / names[1]).write_text(blocks["yaml"])
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/competition").symlink_to(comp_dir)
    for line in blocks["sh"].strip().splitlines():
        assert line.startswith("hms-hbac ")
        status, said = apart(partial(command, place=tmp_path), *line.split()[1:])
        assert status == 0, line + said
    assert "slow_b0" in said                            # the table of runs
    assert (tmp_path / "demo/runs/slow_b0/fold0/model.safetensors").is_file()


def test_each_promise_names_a_test_that_exists():
    "The lines of `What is promised`, and the functions that hold them."
    lines = re.split(r"^- ", section("What is promised"), flags=re.M)[1:]
    there = "\n".join(p.read_text(encoding="utf-8") for p in (README.parent / "tests").rglob("test_*.py"))
    assert len(lines) >= 10
    for line in lines:
        named = re.findall(r"`(test_\w+)`", line)
        assert named and all(f"def {n}(" in there for n in named), line


def test_links_of_the_readme_exist():
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", README.read_text(encoding="utf-8"))
    missing = [link for link in links if not (README.parent / link).exists()]
    assert links and not missing, missing


def test_the_tables_of_the_readme_are_whole():
    "A | inside a cell would end it: the rest of the row is dropped without a word."
    tables = re.findall(r"(?:^\|.*\n)+", README.read_text(encoding="utf-8"), re.M)
    cells = [[len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()] for table in tables]
    assert tables and all(len(set(row)) == 1 for row in cells), cells


def test_nbdev_readme_renders_the_same_page(tmp_path):
    "The last step of `nbdev_prepare`, with the stand-in for Quarto that `make` puts beside nbdev."
    root = README.parent
    for name in ("nbs", "hms_hbac", "tools"):
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(root / name, tmp_path / name, ignore=ignore)
    shutil.copy(root / "settings.ini", tmp_path)
    quarto = tmp_path / "bin/quarto"
    quarto.parent.mkdir()
    quarto.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/tools/quarto.py" "$@"\n')
    quarto.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": f"{quarto.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", "from nbdev.quarto import nbdev_readme; nbdev_readme()"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "README.md").read_bytes() == README.read_bytes()
