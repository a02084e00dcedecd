"""Fixtures shared by the integration tests: a small simulated competition and the real files."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# files that take longest, the longest first
LONG = ("test_kaggle_kernels", "test_demo", "test_kaggle_training", "test_processes", "test_jupyterlab",
        "test_overfit", "test_kaggle_members", "test_faults", "test_view_pictures", "test_resume",
        "test_stages", "test_training", "test_predict", "test_reader", "test_views", "test_gpu",
        "test_readme")


def pytest_collection_modifyitems(items):
    "Long files first, so that all workers end together; `--no-loadscope-reorder` keeps this order."
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def comp_dir(tmp_path_factory):
    "A simulated competition folder, made once for all pytest workers; tests read it and never write into it."
    from filelock import FileLock

    from hms_hbac.simulate.competition import simulate
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(base / "comp.lock"):
        if not (base / "comp" / "train.csv").exists():
            simulate(base / "comp", patients=10, test_patients=4, seed=1, workers=1, progress=False)
    return base / "comp"


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


def pytest_terminal_summary(terminalreporter):
    "Say how many browser tests were left out, and what brings them."
    skipped = terminalreporter.stats.get("skipped", [])
    lacking = [r for r in skipped if "no Chromium" in str(r.longrepr)]
    if lacking:
        terminalreporter.write_line(f"{len(lacking)} browser tests were skipped; on Debian or Ubuntu "
                                    "this brings them: apt-get install chromium")
