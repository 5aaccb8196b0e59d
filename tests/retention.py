"""Retention and compaction from outside: what is too old goes as whole partitions, files come down to one, and no reader notices.

    retention.py [--kills 3] [--seed N]

Records of several hours are written in many small files; then the project of the running engine is given a short
`retain` and a `compact`. Meanwhile `weir query` reads all the time, through the engine and straight from the files, and
must see each partition whole or not at all; and the engine is killed (-9) in the middle, again and again. At rest
DuckDB and pyarrow, which know nothing of the rule of names, count each row once.
"""

import argparse
import datetime
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

import duckdb
import paho.mqtt.client as mqtt
import pyarrow.dataset

from weir import Engine, check, files

HOUR = 3600 * 10**9
HOURS = 6
DEVICES = ["d0", "d1", "d2"]
ROWS = 20

CONFIG = """
[durability]
checkpoint_every = "1s"
cut_every = "5s"

[tables]
retention_every = "300ms"
grace = "1s"
"""

PROJECT = """
CREATE STREAM telemetry (value DOUBLE){stream};
CREATE PIPELINE per_minute {pipeline} AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, sum(value) AS total, count(*) AS n
FROM telemetry GROUP BY device, window_start;
"""
FOR_EVER = PROJECT.format(stream="", pipeline="")
SHORT = PROJECT.format(
    stream=" WITH (retain = INTERVAL '2 hours', compact = INTERVAL '1 second')",
    pipeline="WITH (retain = INTERVAL '3 hours', compact = INTERVAL '1 second')",
)
BY_PARTITION = "SELECT CAST(date AS TEXT) AS d, hour AS h, count(*) AS n FROM {} GROUP BY date, hour"


def publish(engine, records):
    """Publishes records, and returns when all are acknowledged. `records`: device, seq, ts, value."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="feeder")
    client.max_inflight_messages_set(1000)
    client.connect("127.0.0.1", engine.mqtt_port)
    client.loop_start()
    sent = [
        client.publish(f"devices/{device}/telemetry", json.dumps({"epoch": 7, "seq": seq, "ts": ts, "value": value}), qos=1)
        for device, seq, ts, value in records
    ]
    for message in sent:
        message.wait_for_publish(20)
        check(message.is_published(), "a record was not acknowledged")
    client.disconnect()
    client.loop_stop()


def feed(engine, now):
    """Hour by hour, with a cut after every few records. One device is away after the first hour."""
    seqs = dict.fromkeys([*DEVICES, "away"], 0)
    for hour in range(HOURS - 1, -1, -1):
        start = (now // HOUR - hour) * HOUR
        end = min(start + HOUR, now)
        for part in range(3):
            records = []
            for row in range(ROWS):
                ts = start + (end - start) * (part * ROWS + row) // (3 * ROWS)
                for device in DEVICES + (["away"] if hour == HOURS - 1 else []):
                    seqs[device] += 1
                    records.append((device, seqs[device], ts, seqs[device] % 100))
            publish(engine, records)
            engine.flush()
    return sum(seqs.values())


def hour_of(ns):
    """Name of the partition of a time."""
    at = datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC)
    return f"{at:%Y-%m-%d}", at.hour


def duck(data, table):
    """Rows by partition, as DuckDB reads the files."""
    rows = duckdb.execute(
        f"""SELECT CAST(date AS TEXT), CAST(hour AS INT), * EXCLUDE (date, hour)
            FROM read_parquet('{data}/tables/{table}/**/*.parquet', hive_partitioning = true, union_by_name = true)"""
    ).fetchall()
    found = {}
    for date, hour, *row in rows:
        found.setdefault((date, hour), []).append(row)
    return {key: sorted(map(repr, rows)) for key, rows in found.items()}


def recent(data, table, column, hours, before):
    """Partitions that reach into the last hours before the newest row."""
    newest = duckdb.execute(
        f"SELECT epoch_ns(max({column})) FROM read_parquet('{data}/tables/{table}/**/*.parquet', union_by_name = true)"
    ).fetchone()[0]
    return {key for key in before[table] if key >= hour_of(newest - hours * HOUR)}


class Reader(threading.Thread):
    """Queries all the time, and looks whether each partition is whole or not there."""

    def __init__(self, engine, through_engine, whole):
        super().__init__(daemon=True)
        self.engine, self.through_engine, self.whole = engine, through_engine, whole
        self.stopping, self.wrong, self.asked = False, None, 0

    def ask(self, table):
        where = ["--url", self.engine.url] if self.through_engine else ["--data", self.engine.data]
        command = [self.engine.program, "query", *where, "-f", "json", BY_PARTITION.format(table)]
        r = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if r.returncode != 0:
            # A killed engine does not answer; the files always do.
            return None if self.through_engine and "is an engine running there" in r.stderr else r.stderr
        found = {(row["d"], row["h"]): row["n"] for row in json.loads(r.stdout)}
        self.asked += 1
        half = {key: n for key, n in found.items() if n != self.whole[table].get(key)}
        return f"{table}: {half} of {self.whole[table]}" if half else None

    def run(self):
        while not self.stopping and self.wrong is None:
            for table in self.whole:
                try:
                    self.wrong = self.wrong or self.ask(table)
                except Exception as e:  # noqa: BLE001
                    self.wrong = repr(e)


def wait(what, condition, seconds=20):
    began = time.monotonic()
    while not condition():
        check(time.monotonic() - began < seconds, f"{what}: not within {seconds} s")
        time.sleep(0.1)


def at_rest(engine):
    """One file for each shard and partition that has ended, and nothing waits to be deleted."""
    for table in ("telemetry", "per_minute"):
        names = [pathlib.Path(file) for file in files(engine.data, table)]
        newest = max(name.parent for name in names)
        names = [name for name in names if name.parent != newest]
        if len({(name.parent, name.name[:4]) for name in names}) != len(names):
            return False
    metrics = engine.metrics()
    return metrics.get('weir_files_to_delete{table="telemetry"}') == 0 == metrics['weir_files_to_delete{table="per_minute"}']


def run(o, folder, engine, rng):
    sources = folder / "pipelines"
    engine.start()
    now = time.time_ns()
    total = feed(engine, now)
    before = {table: duck(engine.data, table) for table in ("telemetry", "per_minute")}
    check(sum(map(len, before["telemetry"].values())) == total, "every record is a row before")
    many = len(files(engine.data, "telemetry"))

    hours = [hour_of(now - n * HOUR) for n in range(HOURS)]
    check(set(before["telemetry"]) == set(hours), f"{set(before['telemetry'])} against {hours}")
    # What stays: partitions that reach into the last 2 hours (3 for the pipeline) before the newest row, and of the
    # stream the hour that the open window of `away` needs.
    stay = {
        "telemetry": recent(engine.data, "telemetry", "ts", 2, before) | {hours[-1]},
        "per_minute": recent(engine.data, "per_minute", "window_start", 3, before),
    }
    old = {table: len(set(before[table]) - stay[table]) for table in stay}

    planned = folder / "planned"
    planned.mkdir()
    (planned / "p.sql").write_text(SHORT)
    for where in (["--url", engine.url], ["--data", engine.data]):
        r = subprocess.run([engine.program, "pipelines", "plan", str(planned), *where], capture_output=True, text=True)
        check(r.returncode == 0, f"weir pipelines plan: {r.stderr}{r.stdout}")
        lines = dict(line.split(": ", 1) for line in r.stdout.splitlines())
        # The plan does not look at windows: the hour that `away` needs is old, too.
        drops = f"kept for 2 hours, not for ever: {old['telemetry'] + 1} partitions ("
        check(drops in lines["stream telemetry"], r.stdout)
        check(f"kept for 3 hours, not for ever: {old['per_minute']} partition" in lines["pipeline per_minute"], r.stdout)

    whole = {table: {key: len(rows) for key, rows in found.items()} for table, found in before.items()}
    readers = [Reader(engine, through, whole) for through in (True, False)]
    for reader in readers:
        reader.start()
    began = time.monotonic()
    (sources / "p.sql").write_text(SHORT)
    for kill in range(o.kills):
        if kill == 0:
            wait("retention begins", lambda: "retention has dropped" in engine.log_tail(60))
        time.sleep(rng.uniform(0.05, 1.5))
        engine.kill()
        engine.start()
    wait("rest", lambda: at_rest(engine))
    took = time.monotonic() - began
    for reader in readers:
        reader.stopping = True
    for reader in readers:
        reader.join(60)
        check(reader.wrong is None, f"a reader saw something wrong: {reader.wrong}")
        check(reader.asked > 3, f"a reader asked only {reader.asked} times")

    for table, found in before.items():
        after = duck(engine.data, table)
        check(set(after) == stay[table], f"{table} has {sorted(after)}, not {sorted(stay[table])}")
        check(all(after[key] == found[key] for key in after), f"the rows of {table} that stay are as they were")
        counted = pyarrow.dataset.dataset(f"{engine.data}/tables/{table}", partitioning="hive").count_rows()
        check(counted == sum(map(len, after.values())), f"pyarrow counts {counted} rows of {table}")
        folders = {path.parent for path in pathlib.Path(engine.data, "tables", table).rglob("*")}
        empty = [f for f in pathlib.Path(engine.data, "tables", table).rglob("*") if f.is_dir() and f not in folders]
        check(not empty, f"empty folders stay: {empty}")
    few = len(files(engine.data, "telemetry"))
    check(few < many / 2, f"{few} files of {many}")
    check(engine.metrics()["weir_housekeeping_failures_total"] == 0, f"failures:\n{engine.log_tail()}")
    r = subprocess.run([engine.program, "audit", "--url", engine.url], capture_output=True, text=True)
    check(r.returncode == 0 and " 0 missing, 0 double" in r.stdout, f"audit: {r.stdout}{r.stderr}")
    gone = total - sum(len(before["telemetry"][key]) for key in stay["telemetry"])
    check(f" {gone} expired" in r.stdout, f"audit, {gone} rows have gone: {r.stdout}")
    check(engine.stop() == 0, f"exit status after SIGTERM:\n{engine.log_tail()}")
    left = engine.query("SELECT count(*) AS n FROM telemetry")[0]["n"]
    check(left == total - gone, f"{left} rows at the end")
    print(f"  {total} rows, {gone} of them dropped; {many} files came down to {few} in {took:.1f} s with {o.kills} kills")
    print(f"  readers asked {[reader.asked for reader in readers]} times")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=3)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    o = p.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-retention-"))
    print(f"seed {o.seed}", flush=True)
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / "p.sql").write_text(FOR_EVER)
    engine = Engine(folder / "data", folder / "pipelines", config=CONFIG)
    try:
        run(o, folder, engine, random.Random(o.seed))
    except Exception as e:  # noqa: BLE001
        if not isinstance(e, AssertionError):
            traceback.print_exc()
        print(f"retention: FAILED: {e} (files kept in {folder})")
        return 1
    finally:
        if engine.alive():
            engine.kill()
    shutil.rmtree(folder)
    print("retention: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
