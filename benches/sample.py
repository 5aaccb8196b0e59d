"""CPU seconds and memory of a process from /proc, by thread name, sampled while it runs.

Threads are grouped by name without their number, so that a pool counts as one stage. A thread that ends between two
samples loses at most one interval of its time; the total comes from the process and loses nothing.
"""

import os
import re
import threading

TICKS = os.sysconf("SC_CLK_TCK")


def process_cpu(pid):
    """CPU seconds of a process, its ended threads included."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def thread_cpu(pid):
    """CPU seconds of each living thread, by (thread id, name)."""
    out = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{tid}/comm") as f:
                name = f.read().strip()
            with open(f"/proc/{pid}/task/{tid}/schedstat") as f:
                out[tid, name] = int(f.read().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            continue
    return out


class Sampler:
    """Watches one process from its construction until `stop`."""

    def __init__(self, pid, interval=0.1):
        self.pid = pid
        self.interval = interval
        self.before = thread_cpu(pid)
        self.last = dict(self.before)
        self.total_before = self.total = process_cpu(pid)
        self.peak_rss = 0
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        while not self.ending.wait(self.interval):
            self._look()

    def _look(self):
        try:
            self.last.update(thread_cpu(self.pid))
            self.total = process_cpu(self.pid)
            with open(f"/proc/{self.pid}/statm") as f:
                self.peak_rss = max(self.peak_rss, int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        except (FileNotFoundError, ProcessLookupError):
            self.ending.set()

    def stop(self):
        """CPU seconds in all, the same by stage, and the highest resident size seen."""
        self._look()
        self.ending.set()
        self.thread.join()
        stages = {}
        for (tid, name), cpu in self.last.items():
            stage = re.sub(r"[-_#. ]*\d+$", "", name)
            stages[stage] = stages.get(stage, 0.0) + cpu - self.before.get((tid, name), 0.0)
        stages = {k: round(v, 3) for k, v in sorted(stages.items(), key=lambda kv: -kv[1]) if v >= 0.005}
        return {"cpu_s": round(self.total - self.total_before, 3), "stages": stages, "peak_rss": self.peak_rss}
