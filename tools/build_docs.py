"""Build the site: every notebook as a page, an API page per module, and a check of all links.

`make docs` writes it to site/.

    python tools/build_docs.py            lay out build/docs, run mkdocs, check the links of site/
    python tools/build_docs.py --check    only check the links of an existing site/
"""
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import yaml
from latex2mathml.converter import convert
from shared import ROOT, module_of, notebooks, visible

NBS, SOURCE, SITE = ROOT / "nbs", ROOT / "build/docs", ROOT / "site"
REPOSITORY = "https://github.com/hms-hbac/hms_hbac/blob/main"

STYLE = """
.jupyter-wrapper .jp-InputPrompt, .jupyter-wrapper .jp-OutputPrompt { display: none !important }
.md-grid { max-width: 76rem }
"""


def site_links(text, path):
    "Links as the site has them: notebooks become pages, files outside nbs/ are shown by the repository."
    text = re.sub(r"(\]\([\w./-]*)\.ipynb(#[^)]*)?\)", r"\1.html\2)", text)
    up = "../" * len(path.relative_to(NBS).parts)
    return text.replace(f"]({up}", f"]({REPOSITORY}/")


def math(text):
    "Formulas between dollars as MathML, which browsers draw without a script; code is left alone."
    def formula(m):
        try:
            return convert(m[1], display="block" if m[0].startswith("$$") else "inline")
        except Exception:
            return m[0]                                          # no formula: the dollars stay

    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\$\$(.+?)\$\$", formula, parts[i], flags=re.S)
        parts[i] = re.sub(r"(?<![\\$])\$(?!\s)([^$]{1,300}?)(?<!\s)\$(?!\d)", formula, parts[i])
    return "".join(parts)


def title_of(nb):
    "The first heading of a notebook."
    found = [re.search(r"^# (.+)$", c.source, re.M) for c in nb.cells if c.cell_type == "markdown"]
    return next((m.group(1).strip() for m in found if m), "untitled")


def lay_out():
    "Write build/docs: notebooks as a reader sees them, pictures, API pages; the navigation by folder."
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    if (NBS / "images").is_dir():
        shutil.copytree(NBS / "images", SOURCE / "images")
    (SOURCE / "site.css").write_text(STYLE, encoding="utf-8")
    top, folders, api = [], {}, []
    for path in notebooks():
        nb = nbformat.read(path, as_version=4)
        name = path.relative_to(NBS).as_posix()
        module = module_of(path)
        title = title_of(nb)
        nb = visible(nb)
        nb.cells = [c for c in nb.cells if c.cell_type == "markdown" or c.source.strip() or c.get("outputs")]
        for c in nb.cells:
            if c.cell_type == "markdown":
                c.source = math(site_links(c.source, path))
        if module:
            up = "../" * (len(path.relative_to(NBS).parts) - 1)
            link = f"[API of `hms_hbac.{module}`]({up}api/{module}.html)"
            nb.cells.append(nbformat.v4.new_markdown_cell(link))
            page = SOURCE / "api" / f"{module}.md"
            page.parent.mkdir(exist_ok=True)
            about = f"# {module}\n\nExplained and tested in [{title}](../{name}).\n\n::: hms_hbac.{module}\n"
            page.write_text(about, encoding="utf-8")
            api.append({module: f"api/{module}.md"})
        (SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, SOURCE / name)
        if path.parent != NBS:
            folders.setdefault(path.parent.relative_to(NBS).as_posix(), []).append({title: name})
        elif path.stem != "index":
            folders[path.stem] = [{title: name}]
    for folder, pages in sorted(folders.items()):
        top.append(pages[0] if len(pages) == 1 else {re.sub(r"^\d+_", "", folder).capitalize(): pages})
    return [{"Start": "index.ipynb"}, *top, {"API": api}]


def build():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8")) | {"nav": lay_out()}
    config |= {"docs_dir": str(SOURCE), "site_dir": str(SITE)}
    config["plugins"][2]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    made = ROOT / "build/mkdocs.yml"
    made.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    mkdocs = str(Path(sys.executable).parent / "mkdocs")
    subprocess.run([mkdocs, "build", "--strict", "--quiet", "-f", str(made)], check=True, cwd=ROOT / "build",
                   env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    for page in SITE.rglob("*.html"):
        page.write_text(number_headings(page.read_text(encoding="utf-8")), encoding="utf-8")


def number_headings(html):
    "Repeated headings of a page get the anchors _1, _2 that its table of contents links to."
    seen = {}

    def number(m):
        seen[m[2]] = seen.get(m[2], -1) + 1
        return m[1] + m[2] + (f"_{seen[m[2]]}" if seen[m[2]] else "") + m[3]

    return re.sub(r'(<h[1-6] id=")([^"]+)(")', number, html)


class Links(HTMLParser):
    "Addresses and anchors of a page."
    def __init__(self):
        super().__init__()
        self.links, self.anchors = [], set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[a] for a in ("id", "name") if attrs.get(a)}
        self.links += [attrs[a] for a in ("href", "src") if attrs.get(a)]


def broken_links(site=SITE):
    "Links inside the site that lead to no file or to no anchor, as texts."
    pages = {}
    for page in sorted(site.rglob("*.html")):
        pages[page] = Links()
        pages[page].feed(page.read_text(encoding="utf-8"))
    faults = []
    for page, found in pages.items():
        if page.name == "404.html":
            continue                                             # its links start at the host's root
        for link in sorted(set(found.links)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file():
                faults.append(f"{page.relative_to(site)}: {link} leads to no file")
                continue
            known = pages[target].anchors if target in pages else {anchor}
            if anchor and anchor not in known and not anchor.startswith("__"):
                faults.append(f"{page.relative_to(site)}: {link} leads to no anchor")
    return faults


if __name__ == "__main__":
    if "--check" not in sys.argv:
        build()
    faults = broken_links()
    if not SITE.is_dir() or faults:
        sys.exit("\n".join(faults) or "no site/ here; run tools/build_docs.py")
    pages = len(list(SITE.rglob("*.html")))
    print(f"{pages} pages in {SITE.relative_to(ROOT)}/, every link inside it resolves")
