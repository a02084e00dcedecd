"""A headless Chromium for tests, spoken to through its DevTools port."""
import base64
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest


class Tab:
    "A page in Chromium; gathers console messages, exceptions and requests."
    def __init__(self, address):
        import websocket
        self.address = address
        self.socket, self.number, self.seen = websocket.create_connection(address, timeout=60, suppress_origin=True), 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.number:
            self.seen.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def run(self, script):
        got = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def another(self):
        "A second page of the same browser."
        return Tab(self.address.rsplit("/", 1)[0] + "/" + self("Target.createTarget", url="about:blank")["targetId"])

    def show(self, address, width, height=900, dark=False):
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self("Page.navigate", url=address)
        for _ in range(300):
            if self.run("location.href") == address and self.run("document.readyState") == "complete":
                break
            time.sleep(.1)
        self.run("document.querySelectorAll('details').forEach(d => d.open = true); document.querySelectorAll('img').forEach(i => i.loading = 'eager'); 1")
        self.run("Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => 1)")

    def picture(self, file, whole=False):
        file.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]))

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=13, **({"text": "\r"} if kind == "keyDown" else {}))

    def complaints(self):
        told = [m["params"] for m in self.seen if m.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")]
        return [json.dumps(p)[:300] for p in told]

    def requests(self):
        return {m["params"]["request"]["url"] for m in self.seen if m.get("method") == "Network.requestWillBeSent"}


@contextmanager
def chromium(profile):
    "A tab of a fresh headless Chromium; the browser ends with the block."
    exe = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if exe is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    pytest.importorskip("websocket", reason="the package websocket-client is missing")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--no-first-run", "--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = subprocess.Popen([exe, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ready = profile / "DevToolsActivePort"
        for _ in range(600):
            if ready.is_file() and ready.read_text().strip():
                break
            time.sleep(.1)
        port = ready.read_text().split()[0]
        tabs = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30))
        yield Tab(next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page"))
    finally:
        process.terminate()
        process.wait(30)
