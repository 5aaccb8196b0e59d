"""A steady load for a long time: does anything grow that should not?

    soak.py [--minutes 60] [--rate 5000] [--every 30] [--out samples.json]

One engine, `load publish` at an even rate over 10,000 devices. Every --every seconds: resident memory, descriptors, threads,
files of the tables, bytes of log and state. Printed are these, and the ack latency of the same time; then the slope of
each over the time after the first sixth, which is what has to fill up first (windows, caches, cut intervals). At the end nothing may be lost or
doubled, and the counters have to add up: that makes the exit status, figures do not.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "tests"))
from run import Load  # noqa: E402
from weir import Engine, duck, rss  # noqa: E402

COLUMNS = ["minute", "rss_mb", "fds", "threads", "table_files", "log_mb", "state_files", "state_mb", "p50_ms", "p99_ms",
           "max_ms"]  # fmt: skip


def tree(folder):
    """Files and bytes below a folder; what vanishes meanwhile does not count."""
    files = size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.stat(os.path.join(path, name)).st_size
                files += 1
            except FileNotFoundError:
                pass
    return files, size


def look(e):
    """What the engine holds now."""
    data = pathlib.Path(e.data)
    state_files, state = tree(data / "shards")
    return {
        "rss_mb": rss(e.pid)[0] / 2**20,
        "fds": len(os.listdir(f"/proc/{e.pid}/fd")),
        "threads": len(os.listdir(f"/proc/{e.pid}/task")),
        "table_files": tree(data / "tables")[0],
        "log_mb": tree(data / "log")[1] / 2**20,
        "state_files": state_files,
        "state_mb": state / 2**20,
    }


def slope(samples, column):
    """Change per hour: least squares over everything after the first sixth."""
    some = [s for s in samples if s["minute"] >= samples[-1]["minute"] / 6 and column in s]
    x, y = [s["minute"] / 60 for s in some], [s[column] for s in some]
    return statistics.linear_regression(x, y).slope if len(some) > 2 else float("nan")


def show(values):
    print(" ".join(f"{v:>11.1f}" if isinstance(v, float) else f"{v:>11}" for v in values), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=60)
    p.add_argument("--rate", type=float, default=5000)
    p.add_argument("--every", type=float, default=30)
    p.add_argument("--devices", type=int, default=10_000)
    p.add_argument("--out", default=None)
    o = p.parse_args()
    base = HERE.parent / "target" / "bench"
    base.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(dir=base))
    e = Engine(work / "data", HERE / "pipelines", log=base / "soak.log")
    samples = []
    try:
        e.start()
        rounds = int(o.minutes * 60 * o.rate / o.devices) + 1
        # Event time keeps pace with the clock, so that windows open and close all the time.
        interval = str(round(o.devices / o.rate * 1000))
        base_ns = time.time_ns() - 3_000_000 * int(interval)
        plan = ["--devices", str(o.devices), "--rounds", str(rounds), "--base-ns", str(base_ns), "--interval-ms", interval]
        load = Load(e.mqtt_port, [*plan, "--connections", "50", "--window", "1000", "--rate", str(o.rate), "--series",
                                  "--seconds", str(o.minutes * 60)])  # fmt: skip
        # Not until it ends: its figures of every second fill the pipe to it before.
        while load.process.poll() is None and time.monotonic() - load.began < o.minutes * 60:
            time.sleep(o.every)
            samples.append({"minute": round((time.monotonic() - load.began) / 60, 2)} | look(e))
        sent = load.result(300)
        e.flush(300)
        c = duck(e.data, "telemetry")
        rows, distinct = c.execute("SELECT count(*), count(DISTINCT (device, seq)) FROM telemetry").fetchone()
        code = e.stop()
    finally:
        if e.alive():
            e.kill()
    series = sent["series"]
    before = 0
    show(COLUMNS)
    for s in samples:
        until = int(s["minute"] * 60)
        some = [x for x in series[before:until] if x["count"]]
        before = until
        if some:
            s["p50_ms"] = statistics.median(x["p50"] for x in some)
            s["p99_ms"] = statistics.median(x["p99"] for x in some)
            s["max_ms"] = max(x["max"] for x in some)
        show([s.get(c, "") for c in COLUMNS])
    print("slope per hour: " + ", ".join(f"{c} {slope(samples, c):.2f}" for c in COLUMNS[1:]))
    ok = rows == distinct == sent["unique"] and code == 0 and sent["exit"] == 0
    print(f"sent {sent['unique']}, stored {rows}, distinct {distinct}, exit {code}: {'ok' if ok else 'WRONG'}")
    if o.out:
        pathlib.Path(o.out).write_text(json.dumps({"samples": samples, "series": series}) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
