"""The notebooks and tests of what changed, two at a time, for at most 60 seconds.

    python tools/quick.py [--since REV] [--seconds 60]    # default: uncommitted changes, else the last commit

First the changed notebooks and tests, then the tests that import what changed (those that import least else
come first), then the others of the same folder. What does not fit into the time is stopped and named at the
end; `make test` runs everything.
"""
import argparse
import ast
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from shared import ROOT, modules, notebooks

PACKAGE = "hms_hbac."


def changed(since):
    "Paths that differ from a revision, with those that git does not know yet."
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.split()
    new = git("ls-files", "--others", "--exclude-standard")
    found = git("diff", "--name-only", since or "HEAD") + new
    return found or git("diff", "--name-only", "HEAD~1")


def imports(path):
    "Names of the modules that a test file imports, without the package's."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return {name.removeprefix(PACKAGE) for name in found}


def affected(paths):
    "(notebooks, test files) that belong to the changed paths, the nearest tests first."
    names = {book: name for name, book in modules().items()}
    homes = {f"hms_hbac/{name.replace('.', '/')}.py": book for book, name in names.items()}
    uses = {path: imports(path) for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    everything = notebooks()
    books, own, users, beside = [], [], [], []
    for name in paths:
        path = ROOT / name
        book = homes.get(name, path)
        if book in everything: books.append(book)
        if path in uses: own.append(path)
        what = names.get(book, path.stem if path.suffix == ".py" else None)
        users += [test for test in uses if what in uses[test]]
        folder = book.parent.name.split("_", 1)[-1] if book in names else None
        beside += [test for test in uses if test.parent.name == folder]
    users.sort(key=lambda test: len(uses[test]))
    return list(dict.fromkeys(books)), list(dict.fromkeys(own + users + beside))


def run(job, end):
    "0 where a command passed, another number where it failed, None where the time was over before its end."
    import psutil
    if time.time() > end: return None
    log = subprocess.Popen(job, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try: text, _ = log.communicate(timeout=max(.1, end - time.time()))
    except subprocess.TimeoutExpired:
        for process in [*psutil.Process(log.pid).children(recursive=True), log]:
            with suppress(psutil.NoSuchProcess): process.kill()
        log.communicate()
        return None
    print(text[-5000:] if log.returncode else text.strip().splitlines()[-1], flush=True)
    return log.returncode


def main():
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--since", default="")
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    books, tests = affected(changed(args.since))
    jobs = {str(b.relative_to(ROOT)): ["tools/test_notebooks.py", "--jobs", "1"] for b in books}
    jobs |= {str(t.relative_to(ROOT)): ["-m", "pytest", "-q", "-x", "-n", "0"] for t in tests}
    end = time.time() + args.seconds
    with ThreadPoolExecutor(2) as pool:
        ended = pool.map(lambda name: run([sys.executable, *jobs[name], name], end), jobs)
        ended = dict(zip(jobs, ended, strict=True))
    failed = [name for name in jobs if ended[name]]
    left = [name for name in jobs if ended[name] is None]
    print(f"{len(jobs) - len(left)} of {len(jobs)} finished, {len(failed)} failed {' '.join(failed)}")
    if left: print(f"no time in {args.seconds:.0f} s for: {' '.join(left)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
