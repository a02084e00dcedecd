"""JupyterLab opens every notebook, and runs every numbered one from a clean kernel without error; all in a real server and a real browser."""
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest
from browser import chromium

ROOT = Path(__file__).resolve().parent.parent
NUMBERED = sorted(p.name for p in (ROOT / "nbs").glob("[0-9][0-9]*_*.ipynb"))
EXPERIMENTS = sorted(f"experiments/{p.name}" for p in (ROOT / "nbs/experiments").glob("*.ipynb"))
SIDE_BY_SIDE = 2                                                 # tabs, each with one notebook and its kernel
ANSWERED = {"Select Kernel", "Restart Kernel?"}                  # the dialogs that are accepted; any other is a failure
LOOK = """(() => {
  const panel = window.jupyterapp?.shell.currentWidget, dialog = document.querySelector('.jp-Dialog');
  const ready = panel?.context?.isReady && panel.sessionContext?.isReady;
  return {app: !!window.jupyterapp, path: ready && panel.context.path, kernel: ready && panel.sessionContext.session?.kernel?.status, ended: window.ended ?? false,
          dialog: dialog?.querySelector('.jp-Dialog-header')?.textContent, says: dialog?.innerText};
})()"""
CELLS = """[...window.jupyterapp.shell.currentWidget.content.model.cells].map((cell, i) => ({number: i, code: cell.type == 'code',
  source: cell.sharedModel.getSource(), count: cell.executionCount, outputs: cell.type == 'code' ? cell.outputs.toJSON() : []}))"""
OPEN = "window.jupyterapp.commands.execute('docmanager:open', {{path: '{}'}}).then(() => 1)"     # what a double click in the list of files does
RUN = """window.ended = false;
window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs').then(() => window.jupyterapp.commands.execute('runmenu:restart-and-run-all'))
  .then(() => window.ended = 'yes', fault => window.ended = String(fault)); 1"""
CLOSE = "(async () => { const panel = window.jupyterapp.shell.currentWidget; await panel.sessionContext.shutdown(); panel.dispose(); })()"


class Server:
    "JupyterLab on a copy of the notebooks; settings, history and saves stay in the folder `base`."
    def __init__(self, base):
        for name in ("nbs", "kaggle_kernels"):
            shutil.copytree(ROOT / name, base / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        places = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"]
        env = {**os.environ, **{p: str(base / p) for p in places}, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        flags = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={base / 'nbs'}",
                 "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly"]
        with (base / "log").open("w") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *flags], env=env, stdout=log, stderr=log)
        for _ in range(600):                                     # written once it listens, after the .json with its address and token
            found = list((base / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.html"))
            if found or self.process.poll() is not None:
                break
            time.sleep(.1)
        if not found:
            self.process.kill()
            pytest.fail("JupyterLab did not start: " + (base / "log").read_text())
        self.base, info = base, json.loads(found[0].with_name(found[0].name.replace("-open.html", ".json")).read_text())
        self.url, self.token = info["url"], info["token"]


def wait(tab, until, seconds):
    "Until the tab looks so; expected dialogs are accepted."
    end = time.time() + seconds
    while not until(look := tab.run(LOOK)):
        assert time.time() < end, f"not there after {seconds} s: {look}"
        if look.get("dialog"):                                   # its title is there a moment after its text
            assert look["dialog"] in ANSWERED, look["says"]
            tab.run("document.querySelector('.jp-Dialog button.jp-mod-accept')?.click()")
        time.sleep(.3)
    return look


def visit(tabs, server, path, run):
    "Open a notebook in a free tab and, if asked, restart its kernel and run all cells: the cells."
    tab = tabs.get()
    try:
        if not tab.run("!!window.jupyterapp"):
            tab("Page.navigate", url=f"{server.url}lab/workspaces/{time.time_ns()}?token={server.token}")
            wait(tab, lambda look: look["app"], 60)
            tab.run("window.jupyterapp.restored.then(() => 1)")
        tab.run(OPEN.format(path))
        wait(tab, lambda look: look.get("path") == path and look.get("kernel") == "idle", 60)
        cells, saved = tab.run(CELLS), json.loads((server.base / "nbs" / path).read_text(encoding="utf-8"))["cells"]
        assert [c["source"] for c in cells] == ["".join(c["source"]) for c in saved], f"{path}: JupyterLab shows other cells than the file holds"
        if run:
            tab.run(RUN)
            look = wait(tab, lambda look: look["ended"] and look.get("kernel") == "idle", 220)
            assert look["ended"] == "yes", look
            cells = tab.run(CELLS)
        tab.run(CLOSE)
        return cells
    except BaseException:
        tab("Page.navigate", url="about:blank")                  # the next notebook gets a fresh page
        raise
    finally:
        tabs.put(tab)


@pytest.fixture(scope="module")
def visits(request, tmp_path_factory):
    "The visits of all notebooks whose tests were selected, some side by side, the others waiting."
    base, tabs = tmp_path_factory.mktemp("lab"), SimpleQueue()
    asked = [item.callspec.params["path"] for item in request.session.items if item.path == request.path]
    with chromium(base / "chromium") as first:
        for tab in [first] + [first.another() for _ in range(SIDE_BY_SIDE - 1)]:
            tab("Network.disable")
            tab("Emulation.setFocusEmulationEnabled", enabled=True)
            tabs.put(tab)
        server, pool = Server(base), ThreadPoolExecutor(SIDE_BY_SIDE)
        try:
            yield {path: pool.submit(visit, tabs, server, path, run=path in NUMBERED) for path in asked if path in NUMBERED + EXPERIMENTS}
        finally:
            pool.shutdown(cancel_futures=True)
            server.process.terminate()                           # ends its kernels, too
            server.process.wait(60)


@pytest.mark.parametrize("path", NUMBERED)
def test_runs_from_a_clean_kernel(visits, path):
    cells = [c for c in visits[path].result() if c["code"] and c["source"].strip()]
    for c in cells:
        errors = [f"{o['ename']}: {o['evalue']}" for o in c["outputs"] if o["output_type"] == "error"]
        assert not errors, f"{path}, cell {c['number']}: {errors[0]}\n{c['source']}"
    assert [c["count"] for c in cells] == [*range(1, len(cells) + 1)], f"{path}: not every cell ran, or not in this order"


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_opens(visits, path):
    assert visits[path].result()
