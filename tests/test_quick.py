"""`make quick` runs the tests nearest to a change, and ends in time with all that it started."""
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import quick  # noqa: E402  the tools' folder had to be found first


def test_a_change_leads_to_its_notebook_its_users_and_its_folder():
    for path in ("nbs/10_evaluation/15_burden.ipynb", "hms_hbac/evaluation/burden.py"):
        books, tests = quick.affected([path])
        assert [b.name for b in books] == ["15_burden.ipynb"]
        users = [t for t in tests if "evaluation.burden" in quick.imports(t)]
        assert tests[:len(users)] == users and ROOT / "tests/evaluation/test_expected_burden.py" in users
        assert {t.parent.name for t in tests[len(users):]} == {"evaluation"}
    assert quick.affected(["tests/test_house.py"]) == ([], [ROOT / "tests/test_house.py"])
    assert quick.affected(["tools/check_house.py"]) == ([], [ROOT / "tests/test_house.py"])
    assert quick.affected(["README.md"]) == ([], [])


LONG = """
import subprocess, sys, time
if len(sys.argv) > 1: time.sleep(99)
child = subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True)
open(__file__ + ".pid", "w").write(str(child.pid))
child.wait()
"""


def dies(pid):
    "Within ten seconds; nobody may be there to bury it."
    end = time.time() + 10
    while time.time() < end and psutil.pid_exists(pid):
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE: return True
        time.sleep(.05)
    return not psutil.pid_exists(pid)


def test_what_takes_too_long_is_stopped_with_its_children(tmp_path):
    file = tmp_path / "long.py"
    file.write_text(LONG)
    begin = time.time()
    assert quick.run([sys.executable, str(file)], begin + 3) is None
    assert time.time() - begin < 30 and dies(int((tmp_path / "long.py.pid").read_text()))
    assert quick.run([sys.executable, str(file)], time.time() - 1) is None
    assert quick.run([sys.executable, "-c", "print(1); exit(3)"], time.time() + 60) == 3
