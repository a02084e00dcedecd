"""Work in processes of their own that cost no start: forked from one that has imported everything before.

Such a process can be stopped by a signal, and can stand on a file system that is full."""
import ctypes
import gc
import importlib
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from shared import preloaded  # noqa: E402  the tools' folder had to be found first

# one server for all tests of a worker: whoever sets another list takes the imports from everybody else
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["apart", "hypothesis", "toy_training", *preloaded()])
PAGE, LARGE, BALLAST = 4096, 1 << 30, "ballast"


def begun(work, *args):
    "(process, pipe) of `work(*args)`, which runs already; the pipe brings (True, its value) or (False, why)."
    here, there = START.Pipe(False)
    process = START.Process(target=_answer, args=(there, work, args))
    process.start()
    there.close()
    return process, here


def _answer(pipe, work, args):
    try: pipe.send((True, work(*args)))
    except SystemExit: raise
    except BaseException: pipe.send((False, traceback.format_exc()))


def apart(work, *args, seconds=240):
    "What `work(*args)` returns, called in a process of its own; its traceback is this one's error."
    process, pipe = begun(work, *args)
    if not pipe.poll(seconds):
        process.kill()
        raise TimeoutError(f"{work.__name__}{args} took more than {seconds} s")
    try: fine, value = pipe.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"{work.__name__}{args} ended with {process.exitcode} and no word") from None
    process.join()
    assert fine, value
    return value


def command(*args, place=None):
    "(exit status, all that was said) of `hms-hbac` in this process; it must not end with a traceback."
    from typer.testing import CliRunner

    from hms_hbac.cli import app
    if place is not None: os.chdir(place)
    got = CliRunner().invoke(app, [str(a) for a in args])
    fault = got.exception if not isinstance(got.exception, SystemExit) else None
    assert fault is None, f"{args}: {fault!r}"
    assert got.exit_code in (0, 1, 2, 3), (args, got.exit_code, got.output)
    assert "Traceback" not in got.output and "unforeseen" not in got.output, (args, got.output)
    if got.exit_code == 1 and "check" not in str(args[:2]):
        assert "error:" in got.output or "cure:" in got.output, (args, got.output)
    return got.exit_code, got.output


# a disk that can be full

LIBC = ctypes.CDLL(None, use_errno=True)
NEWUSER, NEWNS, REC_PRIVATE = 0x10000000, 0x20000, 0x4000 | 0x40000
REMOUNT, READ_ONLY = 32, 1


def own_mounts() -> bool:
    "Let this process (of one thread) mount file systems that no other sees; False where it may not."
    user, group = os.getuid(), os.getgid()
    if LIBC.unshare(NEWUSER | NEWNS): return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError: return False
    return not LIBC.mount(b"none", b"/", None, REC_PRIVATE, None)


class Disk:
    "A folder with `room` for so many bytes: a small file system, else a limit on the size of each file."
    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mounted = own_mounts() and not self._mount(0, LARGE)

    def _mount(self, flags, size):
        return LIBC.mount(b"tmpfs", str(self.folder).encode(), b"tmpfs", flags, f"size={size}".encode())

    def room(self, size):
        "Let there be `size` bytes in all (of each file, where nothing may be mounted)."
        ballast = self.folder / BALLAST
        if self.mounted:
            assert not self._mount(REMOUNT, max(size // PAGE, 1) * PAGE), ctypes.get_errno()
            if size < PAGE: ballast.write_bytes(bytes(PAGE))         # a size of 0 would mean no limit
            else: ballast.unlink(missing_ok=True)
        else:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (size if size < LARGE else hard, hard))

    def used(self):
        if not self.mounted: return max(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        s = os.statvfs(self.folder)
        return (s.f_blocks - s.f_bfree) * s.f_frsize

    def clear(self):
        self.room(LARGE)
        gc.collect()                                           # what maps a file of this disk goes
        for p in self.folder.iterdir(): shutil.rmtree(p) if p.is_dir() and not p.is_symlink() else p.unlink()


def files(folder, but=()):
    "{name: bytes} of all files under a folder, without those called as in `but`."
    found = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name not in (*but, BALLAST))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def once(name):
    "Let the function `module:name` give its first answer again and again; what it was, to be put back."
    module, name = name.split(":")
    place, kept = importlib.import_module(module), []
    inner = getattr(place, name)
    def first(*args, **more):
        if not kept:
            made = inner(*args, **more)
            kept.append(made if isinstance(made, str) else list(made))
        return kept[0]
    setattr(place, name, first)
    return lambda: setattr(place, name, inner)


def full_then_room(folder, spare, args, parts=(.01, .4, .9), but=(), before=None, slow=None):
    """A command on a disk with room for each of `parts` of what it needs, one after the other, and at last
    with room: ([(bytes of room, status, said, files left behind by the fault)], files that are then others).

    `spare`: a folder for temporary files; `args` name the output as {disk}; `before`: called first;
    `slow`: see `once`, while the disk is full."""
    tempfile.tempdir = str(spare)
    if before is not None: before()
    disk = Disk(folder)
    args = [str(a).replace("{disk}", str(disk.folder)) for a in args]
    status, said = command(*args)
    assert status in (0, 3), said
    whole, need, seen = files(disk.folder, but), disk.used(), []
    disk.clear()
    back = once(slow) if slow else None
    for size in sorted({int(need * part) // PAGE * PAGE for part in parts}):
        disk.room(size)
        status, said = command(*args)
        seen.append((size, status, said, sorted(p.name for p in disk.folder.rglob(".*.part"))))
        disk.room(LARGE)
    if back: back()
    again, more = command(*args)
    assert again in (0, 3), more
    now = files(disk.folder, but)
    return seen, sorted(n for n in {*whole, *now} if whole.get(n) != now.get(n))


def on_read_only(folder, spare, args, work):
    """(status, said) of a command whose output lies on a read-only file system, or None where there is none.

    `work`: `module:name` of what it must not begin."""
    tempfile.tempdir = str(spare)
    disk = Disk(folder)
    if not disk.mounted or disk._mount(REMOUNT | READ_ONLY, LARGE): return None
    module, name = work.split(":")
    setattr(importlib.import_module(module), name, _begun)
    return command(*[str(a).replace("{disk}", str(disk.folder)) for a in args])


def _begun(*args, **more): raise AssertionError("the work was begun")
