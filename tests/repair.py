"""Repair, backfill and tap through the real binary: DuckDB over the stream's files says what the tables must hold.

    repair.py [--seed N] [--kills 3]

Devices publish two hours of the past, then late records for windows that are closed; `weir pipelines repair` brings them
in, while others go on publishing and the engine is killed in the middle. Then pipelines are added to the folder of the running
engine, and `weir pipelines backfill` makes their history appear: also of a device that fell silent before, and that comes
back with old records afterwards. Files are read with a glob, as by a reader that does not know the rule of names.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import paho.mqtt.client as mqtt

from weir import Engine, check, duck, files

CONFIG = """
[node]
shards = 2
[durability]
checkpoint_every = "1s"
cut_every = "2s"
"""

STREAM = """
CREATE STREAM telemetry (n BIGINT OPTIONS (id = 1), temperature DOUBLE OPTIONS (id = 2)) WITH (version = '1.0', partition = 'hour');
"""

MINUTES = """
CREATE PIPELINE minutes WITH (lateness = INTERVAL '10 seconds', partition = 'hour') AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, count(*) AS c, sum(n) AS s, max(temperature) AS hot
FROM telemetry GROUP BY device, window_start;
"""

HISTORY = """
CREATE PIPELINE fives WITH (lateness = INTERVAL '10 seconds', partition = 'day') AS
SELECT device, tumble(ts, INTERVAL '5 minutes') AS window_start, count(*) AS c, sum(n) AS s FROM telemetry GROUP BY device, window_start;

CREATE PIPELINE overlapping WITH (lateness = INTERVAL '10 seconds') AS
SELECT device, hop(ts, INTERVAL '2 minutes', INTERVAL '6 minutes') AS window_start, count(*) AS c, sum(n) AS s
FROM telemetry GROUP BY device, window_start;

CREATE PIPELINE visits WITH (lateness = INTERVAL '10 seconds') AS
SELECT device, session(ts, INTERVAL '2 minutes') AS window_start, window_end() AS window_end, count(*) AS c, sum(n) AS s
FROM telemetry GROUP BY device, window_start;

CREATE PIPELINE fleet WITH (lateness = INTERVAL '10 seconds') AS
SELECT tumble(ts, INTERVAL '1 minute') AS window_start, count(*) AS c, sum(n) AS s FROM telemetry GROUP BY window_start;

CREATE PIPELINE tens WITH (lateness = INTERVAL '10 seconds') AS
SELECT device, tumble(window_start, INTERVAL '10 minutes') AS ten, sum(c) AS c, sum(s) AS s FROM minutes GROUP BY device, ten;

CREATE PIPELINE even AS SELECT ts, device, n FROM telemetry WHERE n % 2 = 0;
"""

SECOND = 10**9
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE


class Fleet:
    """Devices that publish through one client, each message acknowledged before the next."""

    def __init__(self, port):
        self.port = port
        self.n = 0
        self.seqs = {}
        self.client = None

    def connect(self):
        if self.client:
            self.client.loop_stop()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="fleet", protocol=mqtt.MQTTv311)
        self.client.connect("127.0.0.1", self.port)
        self.client.loop_start()

    def publish(self, device, times, temperature=20.0):
        records = []
        for ts in times:
            self.n += 1
            self.seqs[device] = self.seqs.get(device, 0) + 1
            records.append({"epoch": 1, "seq": self.seqs[device], "ts": ts, "n": self.n, "temperature": temperature})
        sent = self.client.publish(f"devices/{device}/telemetry", json.dumps(records), qos=1)
        sent.wait_for_publish(20)
        check(sent.is_published(), f"a message of {device} was not acknowledged")

    def close(self):
        self.client.loop_stop()


def weir(engine, *command, code=0, timeout=60):
    """Runs `weir pipelines ...` against the engine. Returns its standard output and error."""
    command = [engine.program, "pipelines", *command, "--url", engine.url]
    r = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    check(r.returncode == code, f"{command} ended with {r.returncode}: {r.stderr}{r.stdout}")
    return r.stdout, r.stderr


def time_of(ns):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // SECOND))


def none(c, what, sql):
    rows = c.execute(sql).fetchall()
    check(not rows, f"{what}: {len(rows)}, such as {rows[:3]}")


RAW = "SELECT *, epoch_ns(ts) AS ns, max(epoch_ns(ts)) OVER (PARTITION BY device) AS last FROM telemetry"


def expected(table):
    """SQL that gives device, start, c and s of the closed windows of a pipeline, from all rows of the stream."""
    closed = f"HAVING {{}} + {12 * SECOND} <= any_value(last)"
    if table == "visits":
        return f"""WITH gaps AS (SELECT *, ns - lag(ns) OVER (PARTITION BY device ORDER BY ns) >= {2 * MINUTE} AS gap FROM raw),
            parts AS (SELECT *, count(*) FILTER (gap) OVER (PARTITION BY device ORDER BY ns, n) AS part FROM gaps)
            SELECT device, min(ns) AS start, count(*) AS c, sum(n) AS s FROM parts GROUP BY device, part
            {closed.format(f"max(ns) + {2 * MINUTE}")}"""
    slide, size = {"minutes": (MINUTE, MINUTE), "fives": (5 * MINUTE,) * 2, "overlapping": (2 * MINUTE, 6 * MINUTE)}[table]
    return f"""SELECT device, start, count(*) AS c, sum(n) AS s FROM
        (SELECT *, ns - ns % {slide} - {slide} * back AS start FROM raw, range({size // slide}) AS r(back))
        GROUP BY device, start {closed.format(f"start + {size}")}"""


def agrees(engine, table, inside="true"):
    """The table's files hold exactly the closed windows of all rows, each once. `inside`: of which starts."""
    c = duck(engine.data, "telemetry", table)
    c.execute(f"CREATE TABLE raw AS {RAW}")
    if table == "even":
        c.execute("CREATE TABLE want AS SELECT device, ns AS start, 1 AS c, n AS s FROM raw WHERE n % 2 = 0")
        c.execute("CREATE TABLE got AS SELECT device, epoch_ns(ts) AS start, 1 AS c, n AS s FROM even")
    else:
        c.execute(f"CREATE TABLE want AS {expected(table)}")
        c.execute(f"CREATE TABLE got AS SELECT device, epoch_ns(window_start) AS start, c, s FROM {table}")
    none(c, f"windows of {table} stored twice", "SELECT device, start, s FROM got GROUP BY ALL HAVING count(*) > 1")
    if table != "even":
        none(c, f"windows of {table} stored twice", "SELECT device, start FROM got GROUP BY ALL HAVING count(*) > 1")
    none(c, f"{table} lacks", f"(FROM want WHERE {inside}) EXCEPT (FROM got)")
    none(c, f"{table} has too many", f"(FROM got WHERE {inside}) EXCEPT (FROM want)")
    return c.execute("SELECT count(*) FROM got").fetchone()[0]


def agrees_tens(engine):
    """The pipeline that reads `minutes` holds what that one's table makes."""
    c = duck(engine.data, "minutes", "tens")
    c.execute(f"""CREATE TABLE want AS WITH m AS
        (SELECT device, epoch_ns(window_start) AS ns, c, s, max(epoch_ns(window_start)) OVER (PARTITION BY device) AS last FROM minutes)
        SELECT device, ns - ns % {10 * MINUTE} AS start, sum(c) AS c, sum(s) AS s,
        start + {10 * MINUTE + 12 * SECOND} <= any_value(last) AS closed FROM m GROUP BY device, start""")
    c.execute("CREATE TABLE got AS SELECT device, epoch_ns(ten) AS start, c, s FROM tens")
    none(c, "windows of tens stored twice", "SELECT device, start FROM got GROUP BY ALL HAVING count(*) > 1")
    none(c, "tens lacks", "(SELECT * EXCLUDE closed FROM want WHERE closed) EXCEPT (FROM got)")
    # One that begins late knows how far devices are, not when their last window was.
    none(c, "tens has too many", "(FROM got) EXCEPT (SELECT * EXCLUDE closed FROM want)")
    return c.execute("SELECT count(*) FROM got").fetchone()[0]


def agrees_fleet(engine):
    """The pipeline whose groups all devices share: each window is that of all rows, and none is missing but the last ones,
    which may be open still."""
    c = duck(engine.data, "telemetry", "fleet")
    c.execute(f"CREATE TABLE raw AS {RAW}")
    c.execute(f"CREATE TABLE want AS SELECT ns - ns % {MINUTE} AS start, count(*) AS c, sum(n) AS s FROM raw GROUP BY start")
    c.execute("CREATE TABLE got AS SELECT epoch_ns(window_start) AS start, c, s FROM fleet")
    none(c, "windows of fleet stored twice", "SELECT start FROM got GROUP BY ALL HAVING count(*) > 1")
    none(c, "fleet has too many", "(FROM got) EXCEPT (FROM want)")
    old = f"start < (SELECT max(ns) FROM raw) - {4 * MINUTE}"
    none(c, "fleet lacks", f"(FROM want WHERE {old}) EXCEPT (FROM got)")
    return c.execute("SELECT count(*) FROM got").fetchone()[0]


def late(engine, pipeline):
    c = duck(engine.data, "_late")
    return c.execute("SELECT coalesce(sum(records), 0) FROM _late WHERE pipeline = ?", [pipeline]).fetchone()[0]


def mistakes(engine):
    """What is wrong is said so."""
    _, said = weir(engine, "repair", "minuts", "--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T01:00:00Z", code=1)
    check("no pipeline `minuts`" in said and "minutes" in said, said)
    _, said = weir(engine, "repair", "minutes", "--from", "yesterday", "--to", "2026-01-01T01:00:00Z", code=2)
    check("--from yesterday" in said and "write 2026" in said, said)
    _, said = weir(engine, "repair", "minutes", "--from", "2026-01-02T00:00:00Z", "--to", "2026-01-01T00:00:00Z", code=1)
    check("is not after" in said, said)
    _, said = weir(engine, "tap", "nothing", code=1)
    check("no pipeline or stream `nothing`" in said and "telemetry" in said, said)


def repairs(o, engine, fleet, base, rng):
    """Late records, brought in by a repair, through kills."""
    devices = [f"d{i}" for i in range(8)]
    for device in devices:
        for part in range(8):
            start = base + part * 15 * MINUTE
            fleet.publish(device, [start + k * 5 * SECOND + rng.randrange(SECOND) for k in range(180)])
    # Silent from here on.
    fleet.publish("gone", [base + k * 7 * SECOND for k in range(300)])
    engine.flush()
    rows = agrees(engine, "minutes")
    for device in devices[:5]:
        fleet.publish(device, [base + rng.randrange(90 * 60) * SECOND + 7 for _ in range(40)], temperature=99.0)
    engine.flush()
    check(late(engine, "minutes") == 200, f"{late(engine, 'minutes')} late records in _late")
    try:
        agrees(engine, "minutes")
    except AssertionError:
        pass
    else:
        raise AssertionError("late records are in windows already: nothing to repair")
    hour = base - base % HOUR
    out, said = weir(engine, "repair", "minutes", "--from", time_of(base), "--to", time_of(base + 10 * MINUTE))
    check("widened: partitions, each of one hour" in said and "rows in" in out, out + said)
    agrees(engine, "minutes", f"start < {hour + HOUR}")
    span = ["--from", time_of(base), "--to", time_of(base + 4 * HOUR)]
    stop = threading.Event()

    def go_on():
        # Windows close while the repair runs.
        at = base + 2 * HOUR
        while not stop.is_set() and at < base + 150 * MINUTE:
            for device in devices[:4]:
                fleet.publish(device, [at + k * 5 * SECOND for k in range(12)])
            at += MINUTE

    for kill in range(o.kills):
        if kill == 0:
            others = threading.Thread(target=go_on)
            others.start()
        command = [engine.program, "pipelines", "repair", "minutes", *span, "--url", engine.url]
        repair = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if kill == 0:
            said = repair.communicate(timeout=60)[1]
            check(repair.returncode == 0, f"the repair beside others ended with {repair.returncode}: {said}")
            stop.set()
            others.join()
            engine.flush()
            agrees(engine, "minutes")
            continue
        fleet.publish(devices[kill], [base + kill * MINUTE + 11], temperature=99.0)
        time.sleep(rng.uniform(0.05, 0.5))
        engine.kill()
        repair.communicate(timeout=60)
        engine.start()
        fleet.connect()
        c = duck(engine.data, "minutes")
        none(c, "windows stored twice after a kill", "SELECT device, window_start FROM minutes GROUP BY ALL HAVING count(*) > 1")
        check(not list(pathlib.Path(engine.data, "registry", "repairs").glob("*")), "the start tidies up")
    out, _ = weir(engine, "repair", "minutes", *span, "--format", "json")
    done = json.loads(out)["done"]
    check(done["rows"] > 0 and done["unknown"] == 0, out)
    agrees(engine, "minutes")
    weir(engine, "repair", "minutes", *span)
    return rows, agrees(engine, "minutes")


def backfills(engine, fleet, project, base):
    """Pipelines that begin late get their history."""
    taken = engine.metrics()['weir_project_versions_total{result="taken"}']
    (project / "history.sql").write_text(HISTORY)
    until = time.monotonic() + 20
    while engine.metrics()['weir_project_versions_total{result="taken"}'] == taken:
        check(time.monotonic() < until, "the new pipelines are not taken over")
        time.sleep(0.1)
    # One that was there goes on; nothing of the window in which the pipelines began is closed yet.
    for device in ("d0", "d1"):
        fleet.publish(device, [base + 3 * HOUR + k * 5 * SECOND for k in range(100)])
    engine.flush()
    rows = {}
    for table in ("fives", "overlapping", "visits", "even"):
        _, said = weir(engine, "backfill", table, "--from", "2020-01-01T00:00:00Z")
        check("what is still open" in said or table == "even", said)
        rows[table] = agrees(engine, table)
        check(rows[table] > 0, f"no row of {table}")
    weir(engine, "backfill", "fleet", "--from", "2020-01-01T00:00:00Z")
    rows["fleet"] = agrees_fleet(engine)
    weir(engine, "backfill", "tens", "--from", "2020-01-01T00:00:00Z")
    rows["tens"] = agrees_tens(engine)
    # Who comes back with what it recorded before opens no window again.
    fleet.publish("gone", [base + k * 7 * SECOND + 3 for k in range(50)])
    fleet.publish("gone", [base + 2 * HOUR + k * 7 * SECOND for k in range(50)])
    engine.flush()
    for table in ("fives", "overlapping"):
        check(late(engine, table) > 0, f"old records of a device that comes back are late for {table}")
        c = duck(engine.data, table)
        none(c, "windows stored twice", f"SELECT device, window_start FROM {table} GROUP BY ALL HAVING count(*) > 1")
        weir(engine, "backfill", table, "--from", time_of(base))
        agrees(engine, table)
    span = ["--from", time_of(base), "--to", time_of(base + 4 * HOUR)]
    weir(engine, "repair", "fleet", *span)
    agrees_fleet(engine)
    weir(engine, "repair", "minutes", *span)
    weir(engine, "repair", "tens", *span)
    agrees_tens(engine)
    return rows


def taps(engine, fleet, base):
    """Rows come as they become visible; an open tap does not keep the engine from ending."""
    command = [engine.program, "pipelines", "tap", "telemetry", "--limit", "5", "--format", "json", "--url", engine.url]
    tap = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)
    fleet.publish("tapped", [base + k * SECOND for k in range(7)])
    out, said = tap.communicate(timeout=20)
    check(tap.returncode == 0, f"the tap ended with {tap.returncode}: {said}")
    lines = [json.loads(line) for line in out.splitlines()]
    check([line["device"] for line in lines] == ["tapped"] * 5, out)
    open_tap = subprocess.Popen([engine.program, "pipelines", "tap", "minutes", "--url", engine.url], stdout=subprocess.PIPE, text=True)
    time.sleep(0.3)
    fleet.publish("tapped", [base + 2 * HOUR])
    engine.flush()
    line = open_tap.stdout.readline() + open_tap.stdout.readline()
    check("window_start" in line and "tapped" in line, line)
    return open_tap


def gone(engine, base):
    """What the stream has lost is not dropped from the results."""
    before = sorted(files(engine.data, "minutes"))
    hour = time.strftime("date=%Y-%m-%d/hour=%H", time.gmtime(base // SECOND))
    folder = pathlib.Path(engine.data, "tables", "telemetry", hour)
    shutil.move(folder, pathlib.Path(engine.data).parent / "taken-away")
    _, said = weir(engine, "repair", "minutes", "--from", time_of(base), "--to", time_of(base + MINUTE), code=1)
    check(hour in said and "`telemetry` does not hold any more" in said, said)
    check(set(before) <= set(files(engine.data, "minutes")), "files are gone after a repair that was refused")
    shutil.move(pathlib.Path(engine.data).parent / "taken-away", folder)


def run(o, folder, rng):
    project = folder / "pipelines"
    project.mkdir()
    (project / "stream.sql").write_text(STREAM)
    (project / "minutes.sql").write_text(MINUTES)
    engine = Engine(folder / "data", project, config=CONFIG)
    engine.start()
    fleet = Fleet(engine.mqtt_port)
    fleet.connect()
    base = time.time_ns() // HOUR * HOUR - 8 * HOUR + 17 * MINUTE
    try:
        mistakes(engine)
        first, repaired = repairs(o, engine, fleet, base, rng)
        history = backfills(engine, fleet, project, base)
        gone(engine, base)
        tap = taps(engine, fleet, base)
        check(engine.stop() == 0, f"exit status after SIGTERM:\n{engine.log_tail()}")
        tap.wait(20)
    finally:
        if engine.alive():
            engine.kill()
        fleet.close()
    print(f"  {first} windows before, {repaired} after the repairs; history: {history}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    p.add_argument("--kills", type=int, default=3)
    o = p.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-repair-"))
    print(f"seed {o.seed}", flush=True)
    began = time.monotonic()
    try:
        run(o, folder, random.Random(o.seed))
    except Exception as e:  # noqa: BLE001
        if not isinstance(e, AssertionError):
            traceback.print_exc()
        print(f"repair: FAILED: {e} (files kept in {folder})")
        return 1
    shutil.rmtree(folder)
    print(f"repair: passed in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
