"""A full disk: no false acknowledgement, /readyz says no, and all goes on by itself when there is room again.

    full_disk.py [--size 96] [--rounds 3]

The data directory is a tmpfs of --size MB, which a file of ballast fills while clients publish. Mounting needs root:
without it the test is skipped. At the end every acknowledged record must be stored exactly once (DuckDB).
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

import paho.mqtt.client as mqtt

from publisher import Publisher, table
from weir import ROOT, Engine, check, duck, rss

CONFIG = """
[durability]
checkpoint_every = "1s"
cut_every = "5s"
"""


def fill(path):
    """Writes until there is no byte left."""
    with open(path, "ab", buffering=0) as f:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    f.write(b"\0" * size)
            except OSError:
                continue


def acknowledged(publishers):
    return sum(len(m[1]) for p in publishers for m in p.all if m[3])


def wait(what, seconds, condition):
    """Waits until `condition()`; returns after how many seconds it held."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if condition():
            return time.monotonic() - began
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds} s")


def outage(engine, publishers, ballast):
    """One time without room. Returns after how many seconds the engine said no, and yes again."""
    fill(ballast)

    def refilled_and_unready():
        # The engine may free some of its own files; take that room, too.
        fill(ballast)
        return not engine.ready()

    no = wait("/readyz says no on a full disk", 60, refilled_and_unready)
    check(engine.alive(), f"the engine ended on a full disk:\n{engine.log_tail()}")
    time.sleep(2)
    before = acknowledged(publishers)
    time.sleep(3)
    check(acknowledged(publishers) == before, "records were acknowledged on a full disk")
    status, body = engine.http("/readyz")
    check(status == 503, f"/readyz says {status} {body!r}")
    check(engine.http("/healthz")[0] == 200, "/healthz must say that the process lives")
    ballast.unlink()
    yes = wait("ready again after there is room", 60, engine.ready)
    wait("acknowledgements go on", 60, lambda: acknowledged(publishers) > before + 100)
    return no, yes


def run(o, engine, ballast):
    engine.start()
    base = time.time_ns() - 6 * 3600 * 10**9
    publishers = [
        Publisher(i, engine.mqtt_port, 1, kind="auto", protocol=p, form=form, rate=400, base_ns=base, step_ns=400_000_000)
        for i, (p, form) in enumerate([(mqtt.MQTTv311, "json"), (mqtt.MQTTv5, "cbor-array")])
    ]
    for p in publishers:
        p.start()
    wait("acknowledgements", 30, lambda: acknowledged(publishers) > 500)
    for round_ in range(o.rounds):
        no, yes = outage(engine, publishers, ballast)
        print(f"  outage {round_ + 1}: not ready after {no:.1f} s, ready again {yes:.1f} s after there was room", flush=True)
        time.sleep(2)
    for p in publishers:
        p.finish()
    for p in publishers:
        p.join(60)
        check(not p.is_alive(), f"{p.name}: {len(p.unacked)} messages were never acknowledged")
        check(p.error is None, f"{p.name}: {p.error!r}")
    engine.flush()
    print(f"  peak RSS {rss(engine.pid)[1] >> 20} MB")
    c = duck(engine.data, "telemetry")
    c.register("published_arrow", table(publishers))
    missing, double, sent = c.execute(
        """SELECT (SELECT count(*) FROM published_arrow p WHERE acked AND NOT EXISTS (FROM telemetry r
                   WHERE r.device = p.device AND r.epoch = p.epoch AND r.seq = p.seq
                     AND epoch_ns(r.ts) = p.ts_ns AND r.temperature = p.temperature)),
                  (SELECT count(*) - count(DISTINCT (device, epoch, seq)) FROM telemetry),
                  (SELECT count(*) FROM published_arrow)"""
    ).fetchall()[0]
    check(missing == 0, f"{missing} acknowledged records are not stored")
    check(double == 0, f"{double} records are stored twice")
    check(engine.stop() == 0, "the exit status after SIGTERM is not 0")
    print(f"  {sent} records, all acknowledged, each stored once")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", type=int, default=96, help="MB of the disk")
    p.add_argument("--rounds", type=int, default=3)
    o = p.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-disk-"))
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={o.size}m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        print("full_disk: skipped: mounting a tmpfs needs root")
        shutil.rmtree(folder)
        return 0
    engine = Engine(disk / "data", ROOT / "tests" / "pipelines", log=folder / "engine.log", config=CONFIG)
    try:
        run(o, engine, disk / "ballast")
        print("full_disk: passed")
        return 0
    except Exception as e:  # noqa: BLE001: any failure is the result of the test
        if not isinstance(e, AssertionError):
            traceback.print_exc()
        print(f"full_disk: FAILED (log in {folder}): {e}")
        return 1
    finally:
        if engine.process and engine.alive():
            engine.kill()
        subprocess.run(["umount", "-l", str(disk)], check=False)


if __name__ == "__main__":
    sys.exit(main())
