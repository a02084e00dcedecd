"""Does the house keep its rules? Imports point upwards, names in prose exist, notebooks run what they export,
lines fit into a narrow window, public functions tell what they take and give.

    python tools/check_house.py [imports] [text] [exports] [size] [lines] [choices] [pairs] [signatures]

One fault a line; exit 1 if there is one.
"""
import ast
import builtins
import importlib.util
import re
import sys

from shared import ROOT, cells, is_export, modules, notebooks

MOST_EXPORTS, MOST_LINES, MOST_ENTRIES, MOST_BYTES = 2, 300, 18, 110
MOST_EXPORTED, MOST_CELLS = 25, 60        # lines of an export cell, cells of a notebook
MOST_WEIGHT = 2**20              # bytes of a notebook, its pictures with it
MOST_PAIR = 80                   # columns of an assignment that gives several names their calls
ENDINGS = "py|ipynb|yaml|yml|toml|ini|md|txt|csv|parquet|json|safetensors|html|whl|mat|edf"
FILE = re.compile(rf"^[\w./*<>{{}}-]*\.({ENDINGS})$")
NAME = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")


# imports

def imported(node, here):
    "Dotted names that an import statement of module `here` may load, as seen from the package's root."
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    base = node.module or ""
    if node.level:
        parents = ["hms_hbac", *here.split(".")][:-node.level]
        base = ".".join([*parents, *([base] if base else [])])
    return [base, *(f"{base}.{a.name}" for a in node.names)]


def import_faults(root=ROOT):
    "Exported code needs no nbdev and no fastcore, and imports only modules that stand above its own."
    order = list(modules(root))
    faults = []
    for here in order:
        path = root / "hms_hbac" / (here.replace(".", "/") + ".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            place = f"{path.relative_to(root)}, line {node.lineno}"
            for n in imported(node, here):
                if n.split(".")[0] in ("nbdev", "fastcore"):
                    faults.append(f"{place}: imports {n}; exported code must run without it")
                n = n.removeprefix("hms_hbac.")
                if n in order and order.index(n) > order.index(here):
                    faults.append(f"{place}: {here} imports {n}, which stands below it")
    return faults


# names and links in prose

def words(text):
    return set(re.findall(r"[A-Za-z_]\w*", text))


def code_words(root=ROOT):
    "Every word of the code: modules without docstrings, recipes, tools, tests, bench, kernels, settings."
    found = set(dir(builtins)) | set(sys.stdlib_module_names)
    for folder in ("hms_hbac", "tools", "tests", "bench"):
        for path in (root / folder).rglob("*.py"):
            found |= words(without_docstrings(path.read_text(encoding="utf-8"))) | {path.stem}
    tables = [p for ending in ("*.ini", "*.toml", "requirements*", "Makefile") for p in root.glob(ending)]
    tables += [*(root / "hms_hbac").rglob("*.yaml"), *(root / "kaggle_kernels").rglob("*.json")]
    for path in tables:
        found |= words(path.read_text(encoding="utf-8")) | {path.stem}
    for path in [*notebooks(root), *(root / "kaggle_kernels").rglob("*.ipynb")]:
        found |= {path.stem} | words(path.parent.name)
    return found | {p.name for p in (root / "hms_hbac").iterdir()}


def without_docstrings(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            first.value = ast.Constant(None)
    return ast.unparse(tree)


def quoted(text):
    "Inline code of a markdown text or docstring, without fenced blocks."
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    return re.findall(r"`([^`\n]+)`", text)


def unknown(token, known, root=ROOT):
    "What of a quoted name cannot be found, or None."
    token = token.strip()
    if FILE.match(token):
        if re.search(r"[*<>{}]", token):
            return None
        name = token.split("/")[-1]
        there = (root / token).exists() or any(root.glob(f"*/{name}")) or any(root.glob(f"*/*/{name}"))
        return None if there or words(name.rsplit(".", 1)[0]) <= known else token
    if m := re.match(r"^([A-Za-z_][\w.]*)\(", token):
        token = m.group(1)
    if not NAME.match(token):
        return None
    missing = [part for part in token.split(".") if part not in known]
    if missing and importlib.util.find_spec(token.split(".")[0]) is not None:
        return None
    return token if missing else None


def prose(root=ROOT):
    "(place, text, words that only this place knows) of every markdown cell and docstring."
    for path in notebooks(root):
        own = set()
        for _, _, source in cells(path):
            own |= words(source)
        for i, _, text in cells(path, "markdown"):
            yield f"{path.relative_to(root)}, cell {i}", path, text, own
    for name in modules(root):
        path = root / "hms_hbac" / (name.replace(".", "/") + ".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            told = isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module))
            if told and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(root)}, {getattr(node, 'name', 'module')}", path, text, set()


def anchors(path):
    "The heading anchors of a notebook, as Jupyter makes them."
    heads = [h for _, _, text in cells(path, "markdown") for h in re.findall(r"^#+ (.+)$", text, re.M)]
    return {h.strip().replace(" ", "-").lower() for h in heads}


def link_faults(place, path, text):
    for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        file = (path.parent / target) if target else path
        if not file.exists():
            yield f"{place}: the link {target} leads nowhere"
        elif anchor and file.suffix == ".ipynb" and anchor.lower() not in anchors(file):
            yield f"{place}: {target or path.name} has no heading #{anchor}"


def text_faults(root=ROOT):
    "Names in backticks that nothing has, links that lead nowhere, words that the house does not use."
    known, faults = code_words(root), []
    for place, path, text, own in prose(root):
        faults += [f"{place}: `{t}` is not found" for t in quoted(text) if unknown(t, known | own, root)]
        faults += link_faults(place, path, text)
        if re.search(r"\brooms?\b", re.sub(r"\broom (on|for)\b", "", text), re.I):
            faults.append(f"{place}: says room; the words are module and notebook")
    return faults


# notebooks and sizes

def export_faults(root=ROOT):
    "Notebooks with more exports in a row than a reader can try, or exports longer than a screen."
    faults = []
    for path in notebooks(root):
        row = 0
        for i, _, source in cells(path):
            row = row + 1 if is_export(source) else 0
            place = f"{path.relative_to(root)}, cell {i}"
            lines = len(source.splitlines()) - 1
            if row == MOST_EXPORTS + 1:
                faults.append(f"{place}: {row} exports in a row; run something between")
            if row and lines > MOST_EXPORTED:
                faults.append(f"{place}: an export of {lines} lines, at most {MOST_EXPORTED}; split it")
    return faults


def size_faults(root=ROOT):
    "Modules over 300 lines, a top level with too many entries, notebooks over 60 cells or 1 MiB."
    faults = []
    for path in (root / "hms_hbac").rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES and path.name != "_modidx.py":
            faults.append(f"{path.relative_to(root)}: {lines} lines, at most {MOST_LINES}")
    entries = [p.name for p in (root / "hms_hbac").iterdir() if p.name != "__pycache__"]
    if len(entries) > MOST_ENTRIES:
        faults.append(f"hms_hbac/: {len(entries)} entries at the top, at most {MOST_ENTRIES}")
    for path in [*notebooks(root), *sorted((root / "kaggle_kernels").rglob("*.ipynb"))]:
        number = len(cells(path)) + len(cells(path, "markdown"))
        if number > MOST_CELLS:
            faults.append(f"{path.relative_to(root)}: {number} cells, at most {MOST_CELLS}")
        size = path.stat().st_size
        if size > MOST_WEIGHT:
            cure = "smaller figures, then tools/small_pictures.py"
            faults.append(f"{path.relative_to(root)}: {size:,} bytes, at most {MOST_WEIGHT:,}: {cure}")
    return faults


# lines

def wide_lines(text):
    "(number, bytes) of lines that are too long; the `__all__` that nbdev writes is left out."
    listing = False
    for i, line in enumerate(text.splitlines(), 1):
        listing = listing or line.startswith("__all__ = [")
        size = len(line.encode())
        if size > MOST_BYTES and not listing:
            yield i, size
        listing = listing and not line.endswith("]")


def code_texts(root=ROOT):
    "(path, cell, source) of every file and every cell of code."
    paths = [p for folder in ("hms_hbac", "tests", "tools", "bench") for p in (root / folder).rglob("*.py")]
    texts = [(p, "", p.read_text(encoding="utf-8")) for p in sorted(paths) if p.name != "_modidx.py"]
    for path in [*notebooks(root), *sorted((root / "kaggle_kernels").rglob("*.ipynb"))]:
        texts += [(path, f"cell {i}, ", source) for i, _, source in cells(path)]
    return texts


def line_faults(root=ROOT):
    "Lines of code over 110 bytes (a letter such as µ or – has two or three), in files and in notebooks."
    return [f"{path.relative_to(root)}, {cell}line {i}: {size} bytes, at most {MOST_BYTES}"
            for path, cell, text in code_texts(root) for i, size in wide_lines(text)]


# choices

def nested_choices(source):
    "Lines of conditional expressions that hold another as one of their two answers."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.IfExp) and any(isinstance(n, ast.IfExp) for n in (node.body, node.orelse)):
            yield node.lineno


def choice_faults(root=ROOT):
    "Chains such as `a if x else b if y else c`, in files and in notebooks."
    return [f"{path.relative_to(root)}, {cell}line {i}: a chain of conditional expressions"
            for path, cell, text in code_texts(root) for i in nested_choices(text)]


# pairs

def crowded_pairs(source):
    "Lines of assignments such as `a, b = f(x), g(y)` whose several calls are too long to be read at once."
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        values = node.value if isinstance(node, ast.Assign) else None
        if not isinstance(values, ast.Tuple) or not isinstance(node.targets[0], ast.Tuple):
            continue
        calls = sum(isinstance(n, ast.Call) for n in ast.walk(values))
        wide = len(lines[node.end_lineno - 1].encode()[:node.end_col_offset].decode()) > MOST_PAIR
        if calls > 1 and (wide or node.end_lineno > node.lineno):
            yield node.lineno


def pair_faults(root=ROOT):
    "Several names and several calls in one assignment that is over 80 columns, or over a line."
    told = f"several calls in one assignment over {MOST_PAIR} columns; give each name its line"
    return [f"{path.relative_to(root)}, {cell}line {i}: {told}"
            for path, cell, text in code_texts(root) for i in crowded_pairs(text)]


# signatures

def public_functions(tree):
    "(name, node, class or None) of a module's public functions and of its public classes' public methods."
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, None
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not re.match("_(?!_init__)", method.name):
                    yield f"{node.name}.{method.name}", method, node


def bare_arguments(node, owner):
    "Names of arguments without an annotation; `self` and `cls` need none."
    a = node.args
    named = a.posonlyargs + a.args
    static = any(getattr(d, "id", None) == "staticmethod" for d in node.decorator_list)
    named = named[1:] if owner is not None and not static else named
    extra = [e for e in (a.vararg, a.kwarg) if e]
    return [e.arg for e in named + a.kwonlyargs + extra if e.annotation is None]


def documented(node, owner, classes):
    "Has the function a docstring, its own or that of a base class's method of the same name?"
    if ast.get_docstring(node) or node.name == "__init__":
        return True
    bases = [b.id for b in (owner.bases if owner else []) if isinstance(b, ast.Name)]
    found = [classes[b] for b in bases if b in classes]
    return any(documented(m, c, classes) for c in found for m in inherited(c, node.name, classes))


def inherited(owner, name, classes):
    "The method `name` of a class, or of the nearest of its bases that has it."
    own = [m for m in owner.body if isinstance(m, ast.FunctionDef) and m.name == name]
    bases = [classes[b.id] for b in owner.bases if isinstance(b, ast.Name) and b.id in classes]
    return own or [m for b in bases for m in inherited(b, name, classes)]


def signature_faults(root=ROOT):
    "Public functions and methods without annotations or a docstring."
    paths = {n: root / "hms_hbac" / (n.replace(".", "/") + ".py") for n in modules(root)}
    trees = {n: ast.parse(p.read_text(encoding="utf-8")) for n, p in paths.items()}
    classes = {c.name: c for t in trees.values() for c in t.body if isinstance(c, ast.ClassDef)}
    faults = []
    for module, tree in trees.items():
        for name, node, owner in public_functions(tree):
            place = f"{paths[module].relative_to(root)}, {name}"
            if bare := bare_arguments(node, owner):
                faults.append(f"{place}: no annotation of {', '.join(bare)}")
            if node.returns is None and node.name != "__init__":
                faults.append(f"{place}: no annotation of what it returns")
            if not documented(node, owner, classes):
                faults.append(f"{place}: no docstring")
    return faults


CHECKS = {"imports": import_faults, "text": text_faults, "exports": export_faults, "size": size_faults,
          "lines": line_faults, "choices": choice_faults, "pairs": pair_faults,
          "signatures": signature_faults}


def main(names=()):
    faults = [f for name in names or CHECKS for f in CHECKS[name]()]
    print("\n".join(faults) if faults else f"check_house: {', '.join(names or CHECKS)} hold")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
