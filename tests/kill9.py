"""The crash test: `kill -9` of the real process at random moments under load, then every promise is checked.

    kill9.py [--kills 50] [--seed N] [--data DIR] [--limit 1500]

Paho clients (MQTT 3.1.1 and 5; JSON and CBOR; single records and arrays; own resends and paho's) and the engine's
own edge agents (`weir simulate`) publish without pause, while the engine is killed and started again. At the end
DuckDB reads the Parquet files and checks:

    acknowledged = stored, each (device, epoch, seq) exactly once, every value and nanosecond as it was sent;
    nothing stored that nobody sent; the numbers of each edge agent's epoch without a gap;
    every window over all devices counts all its rows but for those that are said to be late, and ten minutes are the
    sum of their minutes; every window of a device that must be closed is there once, no other is, and each equals what DuckDB computes from the raw
    rows: count, mean, minimum, maximum, stddev, count(DISTINCT), FILTER exactly, the approximate percentile between
    its neighbours; nothing late, nothing dead.

Exit status 0 if all of it holds. The seed is printed; the moments of the kills also depend on the machine.
"""

import argparse
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import paho.mqtt.client as mqtt

from publisher import Publisher, table
from weir import ROOT, Engine, check, duck, has, rss

PIPELINE = "kill9_1m"
TENS = "kill9_10m"
FLEET = "kill9_fleet"
LATENESS_NS = 10_000_000_000
SLACK_NS = 2_000_000_000
MINUTE_NS = 60_000_000_000


def configuration(rng):
    """Intervals that let a few seconds hold many checkpoints and cuts; others each time."""
    return f"""
[node]
passivate_after = "{rng.choice(["2s", "20s"])}"
[durability]
checkpoint_every = "{rng.choice(["200ms", "700ms", "3s"])}"
cut_every = "{rng.choice(["600ms", "2s", "8s"])}"
"""


def start_publishers(o, port):
    """A few clients of each kind, devices apart."""
    kinds = [
        dict(kind="fresh", protocol=mqtt.MQTTv311, form="json"),
        dict(kind="auto", protocol=mqtt.MQTTv5, form="json"),
        dict(kind="fresh", protocol=mqtt.MQTTv5, form="cbor-array"),
        dict(kind="auto", protocol=mqtt.MQTTv311, form="cbor"),
    ]
    base = time.time_ns() - o.hours * 3600 * 1_000_000_000
    publishers = [
        Publisher(i, port, o.seed, devices=o.devices, rate=o.rate, base_ns=base, **kinds[i % len(kinds)])
        for i in range(o.publishers)
    ]
    for p in publishers:
        p.start()
    return publishers


def start_agents(o, engine, folder):
    """Two fleets of edge agents: outboxes in files and MQTT 5, outboxes in memory and 3.1.1 with columns."""
    fleets = []
    for name, more in (("disk", ["--outbox", str(folder / "outbox")]), ("memory", ["--v3", "--columns"])):
        if o.agents:
            report, log = open(folder / f"agents-{name}.json", "wb"), open(folder / f"agents-{name}.log", "wb")
            command = [engine.program, "simulate", "--devices", str(o.agents), "--rate", str(o.agents * 20), "--for",
                       f"{o.limit}s", "--mqtt", f"127.0.0.1:{engine.mqtt_port}", "--prefix", f"edge-{name}-",
                       "--seed", str(o.seed), "--format", "json", *more]  # fmt: skip
            fleets.append((name, subprocess.Popen(command, stdout=report, stderr=log)))
    return fleets


def stop_agents(fleets, folder, patience=90):
    """Asks the fleets to end: each waits for what is unacknowledged and reports. Returns what went wrong."""
    for _, fleet in fleets:
        if fleet.poll() is None:
            fleet.send_signal(signal.SIGINT)
    wrong = []
    for name, fleet in fleets:
        try:
            code = fleet.wait(patience)
        except subprocess.TimeoutExpired:
            fleet.kill()
            code = f"none within {patience} s after SIGINT ({fleet.wait()})"
        if code != 0:
            said = (folder / f"agents-{name}.json").read_text() + (folder / f"agents-{name}.log").read_text()[-2000:]
            wrong.append(f"agents ({name}) ended with {code}: {said}")
    return wrong


def run(o, engine, folder, rng):
    """The kills. Returns publishers and figures."""
    starts = [engine.start()]
    publishers = start_publishers(o, engine.mqtt_port)
    fleets = start_agents(o, engine, folder)
    flushes = 0
    try:
        for kill in range(o.kills):
            time.sleep(rng.uniform(0.1, o.max_up))
            if rng.random() < 0.3:
                # Die in the middle of a flush, too.
                flushes += 1
                threading.Thread(target=engine.http, args=("/v1/flush", b"{}"), daemon=True).start()
                time.sleep(rng.uniform(0.0, 0.15))
            check(engine.alive(), f"the engine ended by itself:\n{engine.log_tail()}")
            engine.kill()
            if rng.random() < 0.2:
                # Die once more while it recovers.
                engine.configure(configuration(rng))
                interrupted = subprocess.Popen(engine.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(rng.uniform(0.0, 0.4))
                interrupted.kill()
                interrupted.wait()
            engine.configure(configuration(rng))
            starts.append(engine.start(timeout=o.ready_within))
            for p in publishers:
                check(p.error is None, f"{p.name} failed: {p.error!r}")
            check(time.monotonic() < o.deadline, f"not done after {o.limit} s, at kill {kill + 1}")
            if kill % 10 == 9:
                print(f"  {kill + 1} kills, ready again after {statistics.median(starts):.2f} s (median)", flush=True)
        time.sleep(1)
        for p in publishers:
            p.finish()
        for p in publishers:
            p.join(max(1, min(120, o.deadline - time.monotonic())))
            check(not p.is_alive(), f"{p.name}: {len(p.unacked)} messages were never acknowledged")
    finally:
        for p in publishers:
            p.finish()
            p.abandon.set()
        wrong = stop_agents(fleets, folder)
    check(not wrong, "; ".join(wrong))
    engine.flush()
    _, peak = rss(engine.pid)
    code = engine.stop()
    check(code == 0, f"exit status {code} after SIGTERM:\n{engine.log_tail()}")
    return publishers, {"ready_median_s": statistics.median(starts), "ready_max_s": max(starts), "flushes": flushes,
                        "peak_rss_mb": peak >> 20}  # fmt: skip


def verify(engine, publishers, o, edited=""):
    """All promises, by a reader that is not ours. Returns figures; raises with all that is wrong. A pipeline that was
    `edited` meanwhile may have given up windows, and reported rows of them as late."""
    c = duck(engine.data, "telemetry", PIPELINE, TENS, FLEET, "_late", "_losses", "_dead_letters")
    check(has(c, "telemetry"), "no file of table telemetry")
    wrong = []

    def none(what, sql):
        """`sql` must find nothing; a few of what it finds are shown."""
        rows = c.execute(sql).fetchall()
        if rows:
            wrong.append(f"{what}: {len(rows)}, such as {rows[:3]}")

    c.register("published_arrow", table(publishers))
    c.execute("CREATE TABLE published AS SELECT * FROM published_arrow")
    c.execute("CREATE TABLE raw AS SELECT *, epoch_ns(ts) AS ns FROM telemetry")
    none("stored twice", "SELECT device, epoch, seq, count(*) FROM raw GROUP BY ALL HAVING count(*) > 1")
    none("acknowledged but not stored",
         "SELECT device, epoch, seq FROM published p WHERE acked AND NOT EXISTS "
         "(FROM raw r WHERE r.device = p.device AND r.epoch = p.epoch AND r.seq = p.seq)")  # fmt: skip
    none("stored but never sent",
         "SELECT device, epoch, seq FROM raw r WHERE device LIKE 'p%-%' AND NOT EXISTS "
         "(FROM published p WHERE r.device = p.device AND r.epoch = p.epoch AND r.seq = p.seq)")  # fmt: skip
    none("other values than sent",
         """SELECT p.*, r.ns, r.temperature, r.humidity, r.status, r.assured FROM raw r
            JOIN published p USING (device, epoch, seq)
            WHERE r.ns <> p.ts_ns OR r.temperature IS DISTINCT FROM p.temperature
               OR r.humidity IS DISTINCT FROM p.humidity OR r.status IS DISTINCT FROM p.status OR NOT r.assured""")  # fmt: skip
    for table_name in ("_late", "_dead_letters"):
        if has(c, table_name):
            # Devices are hours apart here: for windows that they share, most of them are late.
            others = f" WHERE pipeline NOT IN ('{edited}', '{FLEET}')" if table_name == "_late" else ""
            none(f"rows in {table_name}", f'SELECT * FROM "{table_name}"{others}')
    refused = [r for p in publishers for r in p.refused]
    if refused:
        wrong.append(f"refused publishes: {len(refused)}, such as {refused[:3]}")
    lost = "SELECT device, epoch, from_seq, to_seq FROM _losses" if has(c, "_losses") else \
        "SELECT NULL::TEXT, NULL::BIGINT, NULL::BIGINT, NULL::BIGINT WHERE false"  # fmt: skip
    none("declared losses", f"FROM ({lost})")
    none("gaps", "SELECT device, epoch, min(seq), max(seq), count(*) FROM raw GROUP BY ALL "
                 "HAVING min(seq) <> 1 OR max(seq) <> count(*)")  # fmt: skip
    windows(c, none, wrong)
    tens(c, none, wrong)
    fleet(c, none, wrong)
    figures = dict(zip(
        ("rows", "rows_of_agents", "agents", "sent", "acknowledged"),
        c.execute("""SELECT count(*), count(*) FILTER (device NOT LIKE 'p%-%'),
                     count(DISTINCT device) FILTER (device NOT LIKE 'p%-%'), (SELECT count(*) FROM published),
                     (SELECT count(*) FROM published WHERE acked) FROM raw""").fetchone()))  # fmt: skip
    figures["windows"] = c.execute(f"SELECT count(*) FROM {PIPELINE}").fetchone()[0] if has(c, PIPELINE) else 0
    figures["resent"] = sum(p.resent for p in publishers)
    figures["connections"] = sum(p.connections for p in publishers)
    if o.agents and not figures["rows_of_agents"]:
        wrong.append("no row of an edge agent")
    check(not wrong, "\n  ".join(["", *wrong]))
    return figures


def windows(c, none, wrong):
    """The pipeline's table against DuckDB on the raw rows."""
    if not has(c, PIPELINE):
        wrong.append(f"no file of table {PIPELINE}")
        return
    c.execute(f"""
        CREATE TABLE expected AS
        WITH w AS (SELECT *, ns - ns % {MINUTE_NS} AS start, max(ns) OVER (PARTITION BY device) AS last FROM raw),
        g AS (SELECT device, start, count(*) AS n, avg(temperature) AS a, min(temperature) AS lo,
                     max(temperature) AS hi, stddev_samp(temperature) AS sd, count(DISTINCT status) AS states,
                     count(*) FILTER (status = 'fault') AS faults, list(temperature ORDER BY temperature) AS sorted
              FROM w WHERE start + {MINUTE_NS + LATENESS_NS + SLACK_NS} <= last GROUP BY device, start)
        SELECT * EXCLUDE sorted, sorted[greatest(1, ceil(0.93 * n - 1.5))::INT] AS p_low,
               sorted[least(n, ceil(0.97 * n + 1.5))::INT] AS p_high FROM g""")
    c.execute(f"CREATE TABLE stored AS SELECT *, epoch_ns(window_start) AS start FROM {PIPELINE}")
    none("windows stored twice", "SELECT device, window_start FROM stored GROUP BY ALL HAVING count(*) > 1")
    none("windows missing", "SELECT device, make_timestamp_ns(start), n FROM expected ANTI JOIN stored USING (device, start)")
    none("windows that are still open", "SELECT device, window_start, n FROM stored ANTI JOIN expected USING (device, start)")
    close = lambda a, b: f"({a} IS DISTINCT FROM {b} AND (abs({a} - {b}) > 1e-9 * abs({b}) OR ({a} IS NULL) <> ({b} IS NULL)))"  # noqa: E731
    for what, condition in (
        ("count", "s.n <> e.n"),
        ("mean", close("s.temperature_avg", "e.a")),
        ("minimum", "s.temperature_min IS DISTINCT FROM e.lo"),
        ("maximum", "s.temperature_max IS DISTINCT FROM e.hi"),
        ("stddev", close("s.temperature_stddev", "e.sd")),
        ("count(DISTINCT)", "s.states <> e.states"),
        ("FILTER", "s.faults <> e.faults"),
        ("percentile", "s.temperature_p95 IS NULL OR s.temperature_p95 < e.p_low - 1e-9 OR s.temperature_p95 > e.p_high + 1e-9"),
    ):
        none(f"windows with a wrong {what}",
             f"SELECT s.*, e.* FROM stored s JOIN expected e USING (device, start) WHERE {condition}")  # fmt: skip


def tens(c, none, wrong):
    """The pipeline that reads a pipeline: sums of the windows that are there."""
    if not has(c, TENS):
        wrong.append(f"no file of table {TENS}")
        return
    c.execute(f"""
        CREATE TABLE tens_expected AS
        WITH w AS (SELECT *, start - start % {10 * MINUTE_NS} AS ten, max(start) OVER (PARTITION BY device) AS last FROM stored)
        SELECT device, ten, sum(n) AS n, max(temperature_max) AS hi FROM w
        WHERE ten + {10 * MINUTE_NS + SLACK_NS} <= last GROUP BY device, ten""")
    c.execute(f"CREATE TABLE tens AS SELECT *, epoch_ns(start) AS ten FROM {TENS}")
    none("ten minutes stored twice", "SELECT device, ten FROM tens GROUP BY ALL HAVING count(*) > 1")
    none("ten minutes missing", "FROM tens_expected ANTI JOIN tens USING (device, ten)")
    none("ten minutes that are still open", "SELECT device, start, n FROM tens ANTI JOIN tens_expected USING (device, ten)")
    none("ten minutes that are wrong", "SELECT * FROM tens t JOIN tens_expected e USING (device, ten) "
         "WHERE t.n <> e.n OR t.temperature_max IS DISTINCT FROM e.hi")  # fmt: skip


def fleet(c, none, wrong):
    """Groups over all devices: each once, and each row in one of them or said to be late, in windows that are closed."""
    if not has(c, FLEET):
        wrong.append(f"no file of table {FLEET}")
        return
    late = f"SELECT epoch_ns(window_start) AS start, sum(records) AS late FROM _late WHERE pipeline = '{FLEET}' GROUP BY start" \
        if has(c, "_late") else "SELECT NULL::BIGINT AS start, NULL::BIGINT AS late WHERE false"  # fmt: skip
    c.execute(f"CREATE TABLE late AS {late}")
    c.execute(f"CREATE TABLE fleet AS SELECT *, epoch_ns(window_start) AS start FROM {FLEET}")
    c.execute(f"""
        CREATE TABLE groups AS SELECT ns - ns % {MINUTE_NS} AS start, status, count(*) AS n, min(temperature) AS lo
        FROM raw GROUP BY ALL""")
    none("groups stored twice", "SELECT start, status FROM fleet GROUP BY ALL HAVING count(*) > 1")
    none("windows of the fleet with other rows than they should",
         """WITH f AS (SELECT start, sum(n) AS n FROM fleet GROUP BY start), g AS (SELECT start, sum(n) AS n FROM groups GROUP BY start)
            SELECT make_timestamp_ns(start), f.n, late, g.n FROM f FULL JOIN late USING (start) FULL JOIN g USING (start)
            WHERE g.n IS NULL OR coalesce(f.n, 0) + coalesce(late, 0) > g.n
               OR (f.n IS NOT NULL AND f.n + coalesce(late, 0) <> g.n)""")  # fmt: skip
    none("groups that are wrong", """SELECT f.*, g.* FROM groups g JOIN (SELECT DISTINCT start FROM fleet) USING (start)
         LEFT JOIN fleet f ON f.start = g.start AND f.status IS NOT DISTINCT FROM g.status
         WHERE g.start NOT IN (SELECT start FROM late) AND (f.n IS DISTINCT FROM g.n OR f.temperature_min IS DISTINCT FROM g.lo)""")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("--seed", type=int, default=None)
    p.add_argument("--publishers", type=int, default=4)
    p.add_argument("--devices", type=int, default=10, help="devices of each publisher")
    p.add_argument("--rate", type=float, default=500, help="messages a second of each publisher")
    p.add_argument("--agents", type=int, default=15, help="edge agents in each of two fleets; 0: none")
    p.add_argument("--max-up", type=float, default=5.0, help="longest time between ready and kill, seconds")
    p.add_argument("--ready-within", type=float, default=60)
    p.add_argument("--hours", type=int, default=20, help="how long ago event time begins")
    p.add_argument("--limit", type=int, default=1500, help="seconds after which the test fails")
    p.add_argument("--data", default=None, help="folder to use and keep; else a temporary one, kept on failure")
    o = p.parse_args()
    o.seed = o.seed if o.seed is not None else random.SystemRandom().randrange(1 << 32)
    o.deadline = time.monotonic() + o.limit
    rng = random.Random(o.seed)
    folder = pathlib.Path(o.data or tempfile.mkdtemp(prefix="weir-kill9-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"kill9: seed {o.seed}, {o.kills} kills, data in {folder}", flush=True)
    engine = Engine(folder / "data", ROOT / "tests" / "pipelines", config=configuration(rng))
    began = time.monotonic()
    try:
        publishers, figures = run(o, engine, folder, rng)
        figures |= verify(engine, publishers, o)
    except Exception as e:  # noqa: BLE001: any failure is the result of the test
        if not isinstance(e, AssertionError):
            traceback.print_exc()
        print(f"kill9: FAILED (seed {o.seed}, files kept in {folder}): {e}")
        return 1
    finally:
        if engine.alive():
            engine.kill()
    for name, value in figures.items():
        print(f"  {name}: {value:.2f}" if isinstance(value, float) else f"  {name}: {value}")
    print(f"kill9: passed in {time.monotonic() - began:.0f} s: {o.kills} kills, all acknowledged records stored exactly once")
    if not o.data:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
