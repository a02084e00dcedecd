"""Fixtures shared by the integration tests: a small simulated competition and the real files."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Each notebook is a unit of work, and so is each file of other tests, whose fixtures are made once.
ALONE = "test_every_notebook"
# units that take longest, the longest first
LONG = ("test_kaggle_kernels", "test_demo", "test_kaggle_training", "test_processes", "test_jupyterlab",
        "test_overfit", "test_kaggle_members", "test_faults", "test_view_pictures", "test_resume",
        "test_stages", "test_training", "test_predict", "test_reader", "test_views", "test_gpu",
        "test_readme", *(f"experiments/{name}.ipynb" for name in
                         "winners cranjis richard david public filters votes_labels real_eeg".split()),
        "04_simulate/04_competition.ipynb", "12_demo.ipynb", "13_cli.ipynb", "08_training/13_run.ipynb",
        "10_evaluation/10_report.ipynb", "04_simulate/05_realism.ipynb")


def pytest_collection_modifyitems(items):
    """Long units first, then files, then notebooks, so that all workers end together;
    `--no-loadscope-reorder` keeps this order."""
    def place(item):
        book = item.path.stem == ALONE
        name = item.callspec.params["name"] if book else item.path.stem
        return LONG.index(name) if name in LONG else len(LONG) + book
    items.sort(key=place)


def unit(nodeid):
    "What a test is worked off with: a notebook by itself, the tests of a file together."
    file = nodeid.partition("::")[0]
    return nodeid if Path(file).stem == ALONE else file


def pytest_xdist_make_scheduler(config, log):
    "As with `--dist loadfile`, but units."
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid): return unit(nodeid)
    return Units(config, log)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    "A folder for all pytest workers; whoever makes something there holds a lock (`once`)."
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(folder, name, make):
    "The folder `name`, made by `make(path)` for whoever comes first; the others wait for it."
    from filelock import FileLock
    with FileLock(folder / f"{name}.lock"):
        if not (folder / f"{name}.made").exists():
            make(folder / name)
            (folder / f"{name}.made").touch()
    return folder / name


@pytest.fixture(scope="session")
def comp_dir(shared_folder):
    "A simulated competition folder, made once for all pytest workers; tests read it and never write into it."
    from hms_hbac.simulate.competition import simulate
    sizes = dict(patients=10, test_patients=4, seed=1, workers=1, progress=False)
    return once(shared_folder, "comp", lambda path: simulate(path, **sizes))


@pytest.fixture(scope="session")
def few_dir(shared_folder):
    "As `comp_dir`, with eleven events and three test rows."
    from hms_hbac.simulate.competition import simulate
    sizes = dict(patients=7, test_patients=2, seed=19, workers=1, progress=False, recordings_per_patient=1.)
    return once(shared_folder, "few", lambda path: simulate(path, **sizes))


@pytest.fixture(scope="session")
def real():
    "The folder of real files that HMS_REAL names; the test is skipped, saying so, where there is none."
    folder = os.environ.get("HMS_REAL")
    if not folder or not Path(folder).is_dir():
        pytest.skip("HMS_REAL names no folder with real files")
    return Path(folder)


@pytest.fixture
def cluster():
    "A scheduler and two worker processes on loopback: (address, the workers' processes)."
    pytest.importorskip("distributed")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__DASHBOARD__LINK": ""}
    code = (
        "import sys; from distributed.cli import dask_{0} as m; sys.argv = ['dask'] + sys.argv[1:]; m.main()"
    )

    def start(what, *args):
        return subprocess.Popen(
            [sys.executable, "-c", code.format(what), *args],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    processes = [
        start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-jupyter")
    ]
    processes += [
        start("worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--death-timeout", "60")
        for _ in range(2)
    ]
    yield address, processes[1:]
    for p in processes:
        p.kill()
    for p in processes:
        p.wait()


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Name the longest units (see `LONG`); at last say how many browser tests were left out, and what brings
    them."""
    yield
    took = {}
    for report in sum(terminalreporter.stats.values(), []):
        if hasattr(report, "when"):
            took[unit(report.nodeid)] = took.get(unit(report.nodeid), 0) + report.duration
    if len(took) > 9:
        terminalreporter.section("longest units")
        for name, seconds in sorted(took.items(), key=lambda u: -u[1])[:40]:
            terminalreporter.write_line(f"{seconds:7.1f} s  {name}")
    skipped = terminalreporter.stats.get("skipped", [])
    lacking = [r for r in skipped if "no Chromium" in str(r.longrepr)]
    if lacking:
        terminalreporter.write_line(f"{len(lacking)} browser tests were skipped; on Debian or Ubuntu "
                                    "this brings them: apt-get install chromium")
