"""The most memory that a process has held. `ru_maxrss` tells more than that: on Linux it begins with the most
that the process before it held, so the memory of a simulation was charged to the reader that it started."""
import resource
import sys
from pathlib import Path


def peak_mb():
    "The largest resident set of this process in MB (10**6 bytes)."
    status = Path("/proc/self/status")
    if status.is_file():
        told = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(told["VmHWM"].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
