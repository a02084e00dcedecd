"""JupyterLab opens every notebook and runs some from a clean kernel, in a real server and a real browser.

That every notebook runs from a clean kernel is tested by tools/test_notebooks.py; here one of each kind is
run again the way a reader does it, by Restart and Run All.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import chromium, find_chromium

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted(p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb")
               if ".ipynb_checkpoints" not in p.parts)
RUN = ["index.ipynb", "00_core.ipynb", "03_data/01_files.ipynb"]         # one in a folder
ANSWERED = {"Select Kernel", "Restart Kernel?"}              # dialogs that are accepted; any other fails
LOOK = """(() => {
  const panel = window.jupyterapp?.shell.currentWidget, dialog = document.querySelector('.jp-Dialog');
  const ready = panel?.context?.isReady && panel.sessionContext?.isReady;
  return {app: !!window.jupyterapp, ended: window.ended ?? false, path: ready && panel.context.path,
          open: panel?.context?.isReady && panel.context.path,
          kernel: ready && panel.sessionContext.session?.kernel?.status,
          dialog: dialog?.querySelector('.jp-Dialog-header')?.textContent, says: dialog?.innerText};
})()"""
CELLS = """[...window.jupyterapp.shell.currentWidget.content.model.cells].map((cell, i) => (
  {number: i, code: cell.type == 'code', source: cell.sharedModel.getSource(), count: cell.executionCount,
   outputs: cell.type == 'code' ? cell.outputs.toJSON() : []}))"""
SOURCES = """[...window.jupyterapp.shell.currentWidget.content.model.cells].map(
  cell => cell.sharedModel.getSource())"""
SETTINGS = "JUPYTERLAB_SETTINGS_DIR/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
ROOT_FLAG = "--ServerApp.root_dir=."      # of `make lab`: the notebooks link to recipes and CONTRIBUTING.md
OPEN = """window.jupyterapp.commands.execute('docmanager:open',
  {{path: '{}', kernelPreference: {{shouldStart: {}}}}}).then(() => 1)"""
RUN_ALL = """(() => {
const commands = window.jupyterapp.commands;
window.ended = false;
commands.execute('notebook:clear-all-cell-outputs')
  .then(() => commands.execute('runmenu:restart-and-run-all'))
  .then(() => window.ended = 'yes', fault => window.ended = String(fault)); return 1 })()"""
CLOSE = """(async () => { const panel = window.jupyterapp.shell.currentWidget;
await panel.sessionContext.shutdown(); panel.dispose(); })()"""


class Server:
    "JupyterLab on a copy of the notebooks; settings, history and saves stay in the folder `base`."
    def __init__(self, base):
        for name in ("nbs", "kaggle_kernels", "hms_hbac", "bench"):
            ignore = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
            shutil.copytree(ROOT / name, base / name, ignore=ignore)
        for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
            shutil.copy(ROOT / name, base / name)
        places = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
                  "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"]
        settings = base / SETTINGS
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"windowingMode": "full"}))      # only cells in sight are drawn
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        env = {**os.environ, **{p: str(base / p) for p in places}, **quiet}
        flags = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1",
                 "--ServerApp.port=0", ROOT_FLAG, "--LabApp.news_url=None",
                 "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                 "--LabApp.extension_manager=readonly"]
        with (base / "log").open("w") as log:
            command = [sys.executable, "-m", "jupyterlab", *flags]
            self.process = subprocess.Popen(command, cwd=base, env=env, stdout=log, stderr=log)
        self.base, self.url, self.token = base, *self.listening(base)

    def listening(self, base):
        "Address and token, from the file that the server writes once it listens."
        for _ in range(600):
            found = list((base / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.html"))
            if found:
                name = found[0].name.replace("-open.html", ".json")
                info = json.loads(found[0].with_name(name).read_text())
                return info["url"], info["token"]
            if self.process.poll() is not None:
                break
            time.sleep(.1)
        self.process.kill()
        pytest.fail("JupyterLab did not start: " + (base / "log").read_text())


def wait(tab, until, seconds):
    "Until the tab looks so; expected dialogs are accepted."
    end = time.time() + seconds
    while not until(look := tab.run(LOOK)):
        assert time.time() < end, f"not there after {seconds} s: {look}"
        if look.get("dialog"):                               # its title is there a moment after its text
            assert look["dialog"] in ANSWERED, look["says"]
            tab.run("document.querySelector('.jp-Dialog button.jp-mod-accept')?.click()")
        time.sleep(.1)
    return look


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A tab with JupyterLab in it, and its server."
    find_chromium()
    server = Server(tmp_path_factory.mktemp("lab"))
    try:
        with chromium() as tab:
            tab.page.goto(f"{server.url}lab?token={server.token}")
            wait(tab, lambda look: look["app"], 60)
            tab.run("window.jupyterapp.restored.then(() => 1)")
            yield tab, server
    finally:
        server.process.terminate()                           # ends its kernels, too
        server.process.wait(60)


def saved(server, path):
    nb = json.loads((server.base / "nbs" / path).read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in nb["cells"]]


@pytest.mark.parametrize("path", PATHS)
def test_opens_and_runs(lab, path):
    "JupyterLab shows the cells of the file; those of RUN run from a clean kernel, each once and in order."
    tab, server = lab
    tab.run(OPEN.format(f"nbs/{path}", "true" if path in RUN else "false"))
    wait(tab, lambda look: look.get("open") == f"nbs/{path}", 60)
    assert tab.run(SOURCES) == saved(server, path)
    if path in RUN:
        wait(tab, lambda look: look.get("path") == f"nbs/{path}" and look.get("kernel") == "idle", 60)
        tab.run(RUN_ALL)
        look = wait(tab, lambda look: look["ended"] and look.get("kernel") == "idle", 220)
        assert look["ended"] == "yes", look
        ran = [c for c in tab.run(CELLS) if c["code"] and c["source"].strip()]
        for c in ran:
            errors = [f"{o['ename']}: {o['evalue']}" for o in c["outputs"] if o["output_type"] == "error"]
            assert not errors, f"{path}, cell {c['number']}: {errors[0]}\n{c['source']}"
        counts = [c["count"] for c in ran]
        assert counts == [*range(1, len(ran) + 1)], f"{path}: not every cell ran, or not in this order"
    tab.run(CLOSE)


def test_links_of_the_index_lead_somewhere(lab):
    "Recipes, notebooks and files beside `nbs` are there for the server that `make lab` starts."
    _, server = lab
    assert ROOT_FLAG in (ROOT / "Makefile").read_text(encoding="utf-8")
    cells = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    outputs = [o.get("data", {}) for c in cells for o in c.get("outputs", [])]
    texts += ["".join(data.get("text/markdown", [])) for data in outputs]
    links = {m for text in texts for m in re.findall(r"\]\(([^):#]+)[)#]", text)}
    assert {"../CONTRIBUTING.md", "00_core.ipynb", "../hms_hbac/recipes/panels_b0.yaml"} <= links
    for link in links:
        address = f"{server.url}files/{os.path.normpath(f'nbs/{link}')}?token={server.token}"
        assert urllib.request.urlopen(address).status == 200, link
