"""The builder of the site: links, formulas and anchors. The whole build is `make docs`."""
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
docs = pytest.importorskip("build_docs", reason="the packages of the site (mkdocs, latex2mathml) are missing")


def test_notebook_links_become_pages_and_outside_files_the_repository():
    path = docs.NBS / "00_core.ipynb"
    assert docs.site_links("[a](01_draws.ipynb) [b](01_draws.ipynb#mix)", path) == (
        "[a](01_draws.html) [b](01_draws.html#mix)")
    assert docs.site_links("[t](../tests/test_docs.py)", path) == f"[t]({docs.REPOSITORY}/tests/test_docs.py)"
    below = docs.NBS / "experiments/a.ipynb"
    assert docs.site_links("[u](../01_draws.ipynb)", below) == "[u](../01_draws.html)"


def test_formulas_become_mathml_and_code_stays():
    text = docs.math("Of $x_1$ and\n$$\\frac{a}{b}$$\n`$HOME` costs\n```sh\necho $PATH $HOME\n```\n")
    assert text.count("<math") == 2 and "<mfrac>" in text and 'display="block"' in text
    assert "`$HOME`" in text and "echo $PATH $HOME" in text


def test_repeated_headings_get_their_own_anchors():
    numbered = docs.number_headings('<h1 id="a">A</h1><h2 id="a">A</h2><h2 id="b">')
    assert numbered == '<h1 id="a">A</h1><h2 id="a_1">A</h2><h2 id="b">'


def test_broken_links_are_named(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="api/core.html#hms_hbac.core">x</a> <a href="gone.html">y</a> <img src="none.png"> '
        '<a href="https://example.org/">z</a>')
    (tmp_path / "api/core.html").write_text(
        '<h2 id="hms_hbac.core">core</h2> <a href="../index.html#nowhere">back</a> '
        '<a href="#hms_hbac.core">here</a>')
    assert docs.broken_links(tmp_path) == ["api/core.html: ../index.html#nowhere leads to no anchor",
                                           "index.html: gone.html leads to no file",
                                           "index.html: none.png leads to no file"]


def test_every_room_has_a_title_and_links_to_notebooks_that_exist():
    import re

    import nbformat
    for path in docs.notebooks():
        nb = nbformat.read(path, as_version=4)
        assert docs.title_of(nb) != "untitled", path.name
        for c in nb.cells:
            if c.cell_type == "markdown":
                for target in re.findall(r"\]\(([\w./-]+\.ipynb)", c.source):
                    assert (path.parent / target).is_file(), f"{path.name} links to {target}"
