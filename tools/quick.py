"""The tests of what changed, in at most 60 seconds: notebooks and test files of the folders you touched.

    python tools/quick.py [--since REV] [--seconds 60]    # default: uncommitted changes, else the last commit

What does not fit into the time is named at the end; `make test` runs everything.
"""
import argparse
import os
import subprocess
import sys
import time

from shared import ROOT, modules, notebooks


def changed(since):
    "Paths that differ from a revision, with those that git does not know yet."
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.split()
    new = git("ls-files", "--others", "--exclude-standard")
    found = git("diff", "--name-only", since or "HEAD") + new
    return found or git("diff", "--name-only", "HEAD~1")


def affected(paths):
    "(notebooks, test files) that belong to the changed paths."
    homes = {f"hms_hbac/{name.replace('.', '/')}.py": book for name, book in modules().items()}
    books, tests = [], []
    for path in paths:
        book = homes.get(path, ROOT / path)
        if book in notebooks() and book not in books:
            books.append(book)
        part = book.relative_to(ROOT).parts
        folder = part[1].split("_", 1)[-1] if len(part) > 2 else ""
        own = [ROOT / path] if path.startswith("tests/") and "test_" in path else []
        beside = sorted((ROOT / "tests" / folder).glob("test_*.py")) if folder else []
        tests += [t for t in own + beside if t.is_file() and t not in tests]
    return books, tests


def main():
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--since", default="")
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    books, tests = affected(changed(args.since))
    names = [str(b.relative_to(ROOT)) for b in books]
    jobs = [[sys.executable, "tools/test_notebooks.py", *names]] if books else []
    jobs += [[sys.executable, "-m", "pytest", "-q", "-x", str(t.relative_to(ROOT))] for t in tests]
    end, failed, left = time.time() + args.seconds, 0, []
    for job in jobs:
        try:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(job, cwd=ROOT, env=env, timeout=max(1, end - time.time()))
            failed += done.returncode != 0
        except subprocess.TimeoutExpired:
            left.append(" ".join(job[2:] if job[1] == "-m" else job[1:]))
    print(f"{len(jobs) - len(left)} of {len(jobs)} jobs finished, {failed} failed")
    for job in left:
        print(f"not finished in {args.seconds:.0f} s: {job}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
