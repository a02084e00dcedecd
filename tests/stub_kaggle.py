"""A stub of Kaggle's API on 127.0.0.1, and a guard that lets no connection leave the machine.

The real client (2.2.4) reaches it with `KAGGLE_API_ENVIRONMENT=LOCALHOST` and the proxy variables (see
`Stub.environment`). Requests are checked as the server would, and recorded; `stub.script[rpc]` holds answers
to give instead of the usual one: a dict, an HTTP status, or "drop" to cut the connection."""
import base64
import json
import socket
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

GUARD = '''
import os, socket
def _local(f, host_of):
    def call(*args, **kwargs):
        host = host_of(args)
        if host not in (None, "", "127.0.0.1", "::1", "localhost"):
            with open(os.environ["STUB_ATTEMPTS"], "a") as log: log.write(f"{host}\\n")
            raise OSError(f"a connection to {host} was tried")
        return f(*args, **kwargs)
    return call
def _host(a): return a[1][0] if isinstance(a[1], tuple) else None
for _n in ("connect", "connect_ex"): setattr(socket.socket, _n, _local(getattr(socket.socket, _n), _host))
socket.getaddrinfo = _local(socket.getaddrinfo, lambda a: a[0])
'''


class Stub:
    """The server. `known`: slugs of datasets and kernels that exist; `calls`: [(rpc, body)]; `files`.

    Contents behind download addresses."""
    def __init__(self):
        self.calls, self.script = [], defaultdict(list)
        self.files, self.blobs, self.pages = {}, {}, []
        self.datasets, self.kernels = set(), {}
        self.lost, self.problems = set(), []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"stub": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self): return f"http://127.0.0.1:{self.server.server_address[1]}"
    def close(self):
        self.server.shutdown()
        self.server.server_close()
    def bodies(self, rpc): return [b for r, b in self.calls if r == rpc]

    def environment(self, folder):
        "Variables that lead the client here; `folder` is its home."
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": "AnnSmith",
            "KAGGLE_KEY": "fake",
            "KAGGLE_CONFIG_DIR": str(folder),
            "HOME": str(folder),
            "HTTP_PROXY": self.address,
            "http_proxy": self.address,
            "NO_PROXY": "",
            "no_proxy": "",
            "STUB_ATTEMPTS": str(folder/"attempts.txt"),
        }

    # what the server does, by the name of the call
    def SaveKernel(self, b):
        self.want(
            b, slug=str, newTitle=str, text=str, language="python", kernelType="notebook", isPrivate=True
        )
        nb = json.loads(b["text"])
        if not nb["metadata"].get("kernelspec"): return {"error": "No kernel name found in notebook"}
        if any(
            c.get("outputs") or isinstance(c["source"], list) for c in nb["cells"] if c["cell_type"] == "code"
        ):
            self.problems.append("outputs or split sources were sent")
        if b["slug"] != b["slug"].lower(): self.problems.append(f"capitals in {b['slug']}")
        invalid = {
            "invalidDatasetSources": [s for s in b.get("datasetDataSources", []) if s not in self.datasets],
            "invalidKernelSources": [s for s in b.get("kernelDataSources", []) if s not in self.kernels],
            "invalidCompetitionSources": [
                s
                for s in b.get("competitionDataSources", [])
                if s != "hms-harmful-brain-activity-classification"
            ],
        }
        self.kernels[b["slug"]] = self.kernels.get(b["slug"], 0) + 1
        return {
            "ref": f"/code/{b['slug']}",
            "url": f"https://www.kaggle.com/code/{b['slug']}",
            "versionNumber": self.kernels[b["slug"]],
            **{k: v for k, v in invalid.items() if v},
        }

    def GetKernelSessionStatus(self, b):
        return {"status": "COMPLETE"} if f"{b['userName']}/{b['kernelSlug']}" in self.kernels else 404

    def ListKernelSessionOutput(self, b):
        n = int(b.get("pageToken") or 0)
        return {
            "files": [{"fileName": f, "url": f"http://localhost/files/{f}"} for f in self.pages[n]],
            "log": "the log" if n == 0 else "",
            **({"nextPageToken": str(n + 1)} if n + 1 < len(self.pages) else {}),
        }

    def GetDatasetStatus(self, b):
        return {"status": "READY"} if f"{b['ownerSlug']}/{b['datasetSlug']}" in self.datasets else 404

    def StartBlobUpload(self, b):
        self.want(b, name=str, contentLength=int)
        self.blobs[b["name"]] = None
        return {"token": f"token-{b['name']}", "createUrl": f"http://localhost/upload/{b['name']}"}

    def CreateDataset(self, b):
        self.want(b, title=str, slug=str, ownerSlug=str, licenseName="apache-2.0", files=list)
        self.datasets.add(f"{b['ownerSlug']}/{b['slug']}")
        return {
            "ref": f"{b['ownerSlug']}/{b['slug']}",
            "url": f"https://www.kaggle.com/datasets/{b['ownerSlug']}/{b['slug']}",
            "status": "ok",
        }

    def CreateDatasetVersion(self, b):
        self.want(b, ownerSlug=str, datasetSlug=str, body=dict)
        return {"url": f"https://www.kaggle.com/datasets/{b['ownerSlug']}/{b['datasetSlug']}", "status": "ok"}

    def CreateCodeSubmission(self, b):
        self.want(
            b,
            competitionName="hms-harmful-brain-activity-classification",
            kernelOwner=str,
            kernelSlug=str,
            kernelVersion=int,
            fileName="submission.csv",
        )
        ref = f"{b['kernelOwner']}/{b['kernelSlug']}"
        return (
            {"message": "Successfully submitted to HMS", "ref": 1}
            if self.kernels.get(ref, 0) >= b["kernelVersion"]
            else {"message": f"Could not find version {b['kernelVersion']} of {ref}"}
        )

    def IntrospectToken(self, b): return {"active": True, "username": "annsmith"}

    def want(self, sent, /, **fields):
        "Note every field of a request that is missing, of the wrong type, or has a wrong value."
        for k, v in fields.items():
            fine = k in sent and (isinstance(sent[k], v) if isinstance(v, type) else sent[k] == v)
            if not fine: self.problems.append(f"{k}: {sent.get(k)!r}, wanted {v}")


class Handler(BaseHTTPRequestHandler):
    stub, protocol_version = None, "HTTP/1.1"
    def log_message(self, *args): pass

    def answer(self, got):
        if got == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, body = (
            (got, {"code": got, "message": f"the stub says {got}"}) if isinstance(got, int) else (200, got)
        )
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while n := int(self.rfile.readline(), 16):
                data += self.rfile.read(n)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        rpc = urlparse(self.path).path.rsplit("/", 1)[1]
        body = json.loads(self.body() or b"{}")
        self.stub.calls.append((rpc, body))
        if not self.headers.get("Authorization", "").startswith(("Basic", "Bearer")): return self.answer(401)
        if (
            self.headers["Authorization"].startswith("Basic")
            and base64.b64decode(self.headers["Authorization"][6:]).decode() != "AnnSmith:fake"
        ):
            return self.answer(401)
        scripted = self.stub.script[rpc]
        if scripted: return self.answer(scripted.pop(0))
        f = getattr(self.stub, rpc, None)
        self.answer(f(body) if f else 404)

    def do_PUT(self):
        name, data = urlparse(self.path).path.rsplit("/", 1)[1], self.body()
        if name in self.stub.lost: return self.answer(403)
        self.stub.blobs[name] = data
        self.answer({})

    def do_GET(self):
        name = urlparse(self.path).path.removeprefix("/files/")
        self.answer(self.stub.files.get(name, 404))
