"""Schemas that change under a fleet: minor and major versions beside each other, frames that wait for their schema, and
reference tables in an object store.

    evolution.py [--frames 4000] [--changes 9] [--seed N]

Frames come over bare MQTT, in versions that are declared and that are not yet. The engine is killed while it makes rows of
frames that had waited, again and again, and each record must be there exactly once, by the engine's audit and by DuckDB.
The object store is a server of this test that can change what it holds, refuse, and go away.
"""

import argparse
import http.server
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import cbor2

from rawmqtt import Closed, Raw
from weir import Engine, check, duck

CONFIG = """
[durability]
checkpoint_every = "1s"
cut_every = "3s"

[pipelines]
objects_every = "1s"
"""

FIRST = """CREATE STREAM telemetry (
  temperature FLOAT OPTIONS (id = 1, unit = 'Cel', range = '-40..125'),
  state ENUM('on', 'off') OPTIONS (id = 2)
) WITH (version = '1.0');
CREATE PIPELINE warm AS SELECT device, tumble(ts, INTERVAL '1 minute') AS w, count(*) AS n FROM telemetry GROUP BY device, w;
"""
SECOND = (FIRST.replace("FLOAT", "DOUBLE").replace("-40..125", "-60..150").replace("'off')", "'off', 'fault')")
          .replace("\n) WITH (version = '1.0')", ",\n  humidity DOUBLE OPTIONS (id = 3)\n) WITH (version = '1.1')"))  # fmt: skip
THIRD = SECOND.replace("'1.1'", "'1.2'")
MAJOR = "CREATE STREAM telemetry (temperature TEXT OPTIONS (id = 1), volt DOUBLE OPTIONS (id = 9)) WITH (version = '2.0');\n"
PUMPS = "CREATE STREAM pumps (rpm BIGINT OPTIONS (id = 1)) WITH (schema = 7);\n"
FAST = "CREATE PIPELINE fast AS SELECT ts, device, seq, rpm FROM pumps;\n"


def wait(what, condition, seconds=30):
    began = time.monotonic()
    while not condition():
        check(time.monotonic() - began < seconds, f"{what}: not within {seconds} s")
        time.sleep(0.1)


def weir(engine, *arguments, env=None):
    command = [engine.program, *map(str, arguments)]
    r = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})})
    return r.returncode, r.stdout + r.stderr


def rows(engine, sql, offline=False):
    """The result of a query as lists of texts."""
    where = ["--data", engine.data] if offline else ["--url", engine.url]
    code, text = weir(engine, "query", *where, "-f", "csv", sql)
    check(code == 0, f"{sql}: {text}")
    return [line.split(",") for line in text.strip().splitlines()[1:]]


def number(engine, sql, offline=False):
    # A sum over nothing is NULL.
    return int(rows(engine, sql, offline)[0][0].strip('"') or 0)


class Device:
    """Sends frames, each record numbered."""

    def __init__(self, engine, name, rng):
        self.engine, self.name = engine, name
        self.epoch, self.seq = rng.randrange(1, 1 << 62), 1
        self.base = time.time_ns() - 3600 * 10**9

    def frame(self, schema, version, values):
        major, minor = version
        records = [[i * 10**6, value] for i, value in enumerate(values)]
        base = self.base + self.seq * 10**6
        self.seq += len(values)
        return cbor2.dumps({0: 1, 1: self.epoch, 2: self.seq - len(values), 3: schema, 4: major << 16 | minor, 5: base,
                            6: records, 7: time.time_ns()})  # fmt: skip

    def send(self, schema, version, values):
        frame = self.frame(schema, version, values)
        self.again(frame)
        return frame

    def again(self, frame):
        connection = Raw(self.engine.mqtt_port, self.name)
        connection.publish(f"devices/{self.name}/telemetry", frame)
        connection.close()


def audit(engine):
    code, text = weir(engine, "audit", "--url", engine.url)
    check(code == 0, f"audit:\n{text}")
    return text.strip().splitlines()[-1]


def refused(engine, folder, what):
    """Saved as it is, the project is refused by check, plan and run, each with file and line."""
    for name, arguments in (("check", ["check", folder, "--data", engine.data]),
                            ("plan", ["pipelines", "plan", folder, "--data", engine.data]),
                            ("run", engine.command[1:])):  # fmt: skip
        code, text = weir(engine, *arguments)
        check(code in (1, 2) and what in text, f"{name} ended with {code}: {text}")
        check(re.search(r"s\.sql:\d+:\d+", text), f"{name} names no place: {text}")
    code, text = weir(engine, "check", folder)
    check(code == 0, f"without the data directory nothing is wrong: {text}")


def minors(engine, folder, rng):
    """Devices of two minor versions in one table; the newer ones wait until theirs is declared."""
    old, new, plain = (Device(engine, name, rng) for name in ("old", "new", "plain"))
    (folder / "s.sql").write_text(FIRST)
    engine.start()
    old.send(1, (1, 0), [{1: 20.5, 2: "on"}] * 10)
    waiting = new.send(1, (1, 1), [{1: 21.123456789, 2: "fault", 3: 40.0}] * 10)
    new.again(waiting)
    new.send(1, (1, 0), [{1: 22.5}] * 5)
    plain.again(b'{"seq":1,"epoch":5,"temperature":19.5,"humidity":7}')
    engine.flush()
    count = "SELECT count(*) FROM telemetry"
    check(number(engine, count) == 16, "what is declared is stored at once")
    check(number(engine, "SELECT sum(records) FROM _dead_letters WHERE reason = 'unknown_schema'") == 10, "the rest waits")
    audit(engine)

    # While it runs: what is wrong is refused with its place, what is right counts at once.
    (folder / "s.sql").write_text(SECOND.replace("'1.1'", "'1.0'"))
    wait("a changed version is refused", lambda: "humidity` is new, but version 1.0" in engine.log_tail(60))
    check("write WITH (version = '1.1')" in engine.log_tail(60), "it says what to do")
    code, text = weir(engine, "pipelines", "plan", folder, "--url", engine.url)
    check(code == 1 and "`humidity` is new" in text, text)
    engine.kill()
    refused(engine, folder, "`humidity` is new, but version 1.0 of `telemetry` counts already")
    (folder / "s.sql").write_text(SECOND.replace("'Cel'", "'K'"))
    refused(engine, folder, "the unit of `temperature` was 'Cel' and is 'K'")
    (folder / "s.sql").write_text(FIRST)
    engine.start()
    (folder / "s.sql").write_text(SECOND)
    code, text = weir(engine, "pipelines", "plan", folder, "--url", engine.url)
    check(code == 0 and "stream telemetry: changed" in text, text)
    wait("the frame has become rows", lambda: number(engine, count) == 26)
    engine.kill()
    for start in range(3):
        engine.start()
        wait("the frame has become rows", lambda: number(engine, count) == 26)
        if start == 0:
            time.sleep(rng.uniform(0, 2))
        engine.kill()
    engine.start()
    new.again(waiting)
    new.send(1, (1, 1), [{1: 23.5, 3: 41.0}] * 3)
    old.send(1, (1, 0), [{1: 20.5}] * 2)
    (folder / "s.sql").write_text(THIRD)
    engine.flush()
    engine.kill()
    engine.start()
    engine.flush()
    by = "SELECT device, schema_minor, count(*) AS n, count(humidity) AS h, max(temperature) AS t FROM telemetry GROUP BY 1, 2 ORDER BY 1, 2"
    expected = [["new", "0", "5", "0", "22.5"], ["new", "1", "13", "13", "23.5"], ["old", "0", "12", "0", "20.5"],
                ["plain", "0", "1", "0", "19.5"]]  # fmt: skip
    check(rows(engine, by) == expected, f"{rows(engine, by)}")
    check(rows(engine, by, offline=True) == expected, "and offline")
    exact = "SELECT count(*) FROM telemetry WHERE temperature = 21.123456789 AND device = 'new'"
    check(number(engine, exact) == 10, "a widened value is whole")
    windows = "SELECT sum(records) FROM _late"
    late = rows(engine, windows)[0][0].strip('"') or 0
    print(f"  minor versions: {audit(engine)}; {late} records late for a window", flush=True)
    check(engine.stop() == 0, engine.log_tail())
    c = duck(engine.data, "telemetry")
    found = c.execute("SELECT count(*), count(DISTINCT (device, epoch, seq)), count(humidity) FROM telemetry").fetchone()
    check(found == (31, 31, 13), f"DuckDB finds {found}")


def letters(engine, folder, rng, frames):
    """Thousands of frames that wait, and kill -9 while rows are made of them."""
    engine.start()
    devices = [Device(engine, f"pump-{i}", rng) for i in range(20)]
    connections = [Raw(engine.mqtt_port, d.name) for d in devices]
    for frame in range(frames):
        device, connection = devices[frame % 20], connections[frame % 20]
        packet = connection.publish_packet(f"devices/{device.name}/telemetry", device.frame(7, (1, 0), [{1: frame}] * 3), qos=0)
        connection.send(packet)
    for device, connection in zip(devices, connections, strict=True):
        connection.publish(f"devices/{device.name}/telemetry", device.frame(7, (1, 0), [{1: 1}] * 3))
        connection.close()
    expected = 3 * (frames + 20)
    waiting = "SELECT sum(records) FROM _dead_letters WHERE device LIKE 'pump-%'"
    wait("all letters are there", lambda: number(engine, waiting) == expected)
    engine.kill()
    (folder / "pumps.sql").write_text(PUMPS + FAST)
    kills = 0
    while kills < 6:
        engine.start()
        time.sleep(rng.uniform(0, 0.7))
        engine.kill()
        kills += 1
    engine.start()
    wait("all have become rows", lambda: number(engine, "SELECT count(*) FROM pumps") == expected, 120)
    once = "SELECT count(*) FROM (SELECT device, epoch, seq FROM pumps GROUP BY 1, 2, 3)"
    check(number(engine, once) == expected, "each once")
    wait("the pipeline has them all", lambda: number(engine, "SELECT count(*) FROM fast") == expected, 30)
    # No longer declared, and declared again: nothing is made twice.
    engine.flush()
    engine.kill()
    (folder / "pumps.sql").unlink()
    engine.start()
    devices[0].send(7, (1, 0), [{1: 5}])
    engine.flush()
    check(engine.stop() == 0, engine.log_tail())
    (folder / "pumps.sql").write_text(PUMPS + FAST)
    engine.start()
    expected += 1
    wait("the one that came meanwhile", lambda: number(engine, "SELECT count(*) FROM pumps") == expected, 60)
    for _ in range(4):
        engine.flush()
    check(number(engine, "SELECT count(*) FROM pumps") == expected, "and no other")
    print(f"  letters: {frames + 21} frames became {expected} rows through {kills} kills; {audit(engine)}", flush=True)
    check(engine.stop() == 0, engine.log_tail())
    c = duck(engine.data, "pumps", "fast")
    found = c.execute("SELECT count(*), count(DISTINCT (device, epoch, seq)) FROM pumps").fetchone()
    check(found == (expected, expected), f"DuckDB finds {found}")
    found = c.execute("SELECT count(*), count(DISTINCT (device, seq)) FROM fast").fetchone()
    check(found == (expected, expected), f"DuckDB finds {found} in the pipeline")


class Sender(threading.Thread):
    """Sends frames of one schema until told to end; one that was not acknowledged is sent again."""

    def __init__(self, device, schema):
        super().__init__(daemon=True)
        self.device, self.schema, self.sent, self.ending, self.error = device, schema, 0, False, None

    def run(self):
        try:
            while not self.ending:
                frame = self.device.frame(self.schema, (1, 0), [{1: self.sent}] * 3)
                self.deliver(frame)
                self.sent += 3
        except Exception as e:  # noqa: BLE001
            self.error = e

    def deliver(self, frame):
        until = time.monotonic() + 60
        while True:
            try:
                self.device.connection = getattr(self.device, "connection", None) or Raw(self.device.engine.mqtt_port, self.device.name)
                return self.device.connection.publish(f"devices/{self.device.name}/telemetry", frame)
            except (OSError, Closed, AssertionError, TimeoutError):
                self.device.connection = None
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)


def changes(engine, folder, rng, rounds):
    """A stream is declared while its devices send, and the engine is killed around the moment when it counts."""
    engine.start()
    total = 0
    for change in range(rounds):
        schema = 20 + change
        senders = [Sender(Device(engine, f"c{change}-{i}", rng), schema) for i in range(4)]
        for sender in senders:
            sender.start()
        time.sleep(rng.uniform(0.2, 1))
        (folder / f"c{change}.sql").write_text(f"CREATE STREAM c{change} (n BIGINT OPTIONS (id = 1)) WITH (schema = {schema});\n")
        if change % 3:
            time.sleep(rng.uniform(0.8, 2.8))
            engine.kill()
            engine.start()
        else:
            wait("the stream counts", lambda: f"stream c{change}: new" in engine.log_tail(200))  # noqa: B023
        time.sleep(rng.uniform(0.2, 0.8))
        for sender in senders:
            sender.ending = True
        for sender in senders:
            sender.join(70)
            check(not sender.is_alive() and sender.error is None, f"{sender.device.name}: {sender.error!r}")
        sent = sum(sender.sent for sender in senders)
        total += sent
        table = f"SELECT count(*) FROM c{change}"
        wait(f"{sent} rows of change {change}", lambda: number(engine, table) == sent, 120)  # noqa: B023
        engine.flush()
        once = f"SELECT count(*) FROM (SELECT DISTINCT device, epoch, seq FROM c{change})"
        check(number(engine, once) == sent == number(engine, table), f"each once in change {change}")
    print(f"  changes: {total} records of {rounds} streams that were declared under load; {audit(engine)}", flush=True)
    check(engine.stop() == 0, engine.log_tail())


def majors(engine, folder, rng):
    """Two major versions at the same time, each in a table of its own."""
    first, second, plain = (Device(engine, name, rng) for name in ("v1", "v2", "json"))
    engine.start()
    waiting = second.send(1, (2, 0), [{1: "warm", 9: 3.5}] * 4)
    engine.kill()
    (folder / "s.sql").write_text(MAJOR)
    refused(engine, folder, "version 1 of `telemetry` is gone")
    (folder / "s.sql").write_text(THIRD)
    (folder / "s2.sql").write_text(MAJOR)
    engine.start()
    second.again(waiting)
    second.send(1, (2, 0), [{1: "cold"}] * 2)
    first.send(1, (1, 0), [{1: 20.5}] * 7)
    second.send(1, (3, 0), [{1: 5}])
    plain.again(b'{"seq":1,"epoch":6,"schema":"telemetry","temperature":1.5}')
    plain.again(b'{"seq":2,"epoch":6,"temperature":2.5}')
    plain.again(b'{"seq":3,"epoch":6,"schema":"telemetry_v2","temperature":"3"}')
    wait("the frame has become rows", lambda: number(engine, "SELECT count(*) FROM telemetry_v2") == 7)
    engine.flush()
    by = "SELECT schema_major, device, count(*) AS n, max(temperature) AS t, max(volt) AS v FROM telemetry_all WHERE device IN ('v1', 'v2', 'json') GROUP BY 1, 2 ORDER BY 1, 2"
    expected = [["1", "json", "2", "2.5", ""], ["1", "v1", "7", "20.5", ""], ["2", "json", "1", "3", ""], ["2", "v2", "6", "warm", "3.5"]]
    check(rows(engine, by) == expected, f"{rows(engine, by)}")
    print(f"  major versions: {audit(engine)}", flush=True)
    check(engine.stop() == 0, engine.log_tail())
    check(rows(engine, by, offline=True) == expected, "and offline")


class Bucket(http.server.BaseHTTPRequestHandler):
    """As much of S3 as it takes to read one object."""

    body, status = b"", 200

    def do_GET(self):
        found = self.path == "/places/sites.csv"
        body = self.body if found else b"<Error><Code>NoSuchKey</Code></Error>"
        self.send_response(self.status if found else 404)
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("Last-Modified", "Mon, 23 Nov 2026 10:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


TABLE = """CREATE TABLE sites (device TEXT, site TEXT) WITH (location = 's3://places/sites.csv', key = 'device');
CREATE PIPELINE sited AS SELECT t.ts, t.device, t.seq, s.site FROM telemetry t JOIN sites s ON t.device = s.device;
"""


def objects(engine, folder, rng):
    """A reference table in an object store that changes, refuses and goes away."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ.update(AWS_ENDPOINT=f"http://127.0.0.1:{server.server_port}", AWS_ACCESS_KEY_ID="key",
                      AWS_SECRET_ACCESS_KEY="secret", AWS_REGION="eu-1")  # fmt: skip
    Bucket.body = b"device,site\nsited,north\n"
    (folder / "sites.sql").write_text(TABLE)
    device = Device(engine, "sited", rng)
    engine.start()
    site = "SELECT site FROM sited ORDER BY seq DESC LIMIT 1"
    device.send(1, (1, 0), [{1: 1.0}])
    wait("a row with its site", lambda: rows(engine, site) == [["north"]])
    Bucket.body = b"device,site\nsited,south\n"
    wait("the object was read again", lambda: rows(engine, "SELECT site FROM sites") == [["south"]])
    device.send(1, (1, 0), [{1: 1.0}])
    wait("a row with the new site", lambda: rows(engine, site) == [["south"]])
    check(rows(engine, "SELECT site FROM sites", offline=True) == [["south"]], "the table is shown offline")
    Bucket.body = b"device,site\nsited,east\nsited,west\n"
    wait("a key that stands twice is refused", lambda: "have the same key" in engine.log_tail(20))
    check(rows(engine, "SELECT site FROM sites") == [["south"]], "the rows of before count")
    Bucket.status = 403
    code, text = weir(engine, "check", folder)
    check(code == 1 and "refuses access" in text and "sites.sql:1:" in text, text)
    Bucket.status, Bucket.body = 200, b"device,site\nsited,north\n"
    code, text = weir(engine, "check", folder, env={"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "",
                                                    "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"})  # fmt: skip
    check(code == 1 and "no credentials" in text and "AWS_ACCESS_KEY_ID" in text, text)
    (folder / "sites.sql").write_text(TABLE.replace("sites.csv", "gone.csv"))
    code, text = weir(engine, "check", folder)
    check(code == 1 and "s3://places/gone.csv: no such object" in text, text)
    (folder / "sites.sql").write_text(TABLE)
    wait("the good one is taken again", lambda: rows(engine, "SELECT site FROM sites") == [["north"]])
    # Away: devices are served all the same, with the rows of before.
    server.shutdown()
    server.server_close()
    engine.kill()
    engine.start()
    check("rows of before count" in engine.log_tail(20), engine.log_tail(20))
    device.send(1, (1, 0), [{1: 1.0}])
    wait("a row with the site of before", lambda: number(engine, "SELECT count(*) FROM sited WHERE site = 'north'") == 2)
    began = time.monotonic()
    code, text = weir(engine, "check", folder)
    check(code == 1 and "does not answer" in text, text)
    print(f"  objects: a store that is away is given up after {time.monotonic() - began:.1f} s", flush=True)
    check(engine.stop() == 0, engine.log_tail())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--frames", type=int, default=4000)
    p.add_argument("--changes", type=int, default=9)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    o = p.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-evolution-"))
    print(f"seed {o.seed}", flush=True)
    rng = random.Random(o.seed)
    sources = folder / "pipelines"
    sources.mkdir()
    engine = Engine(folder / "data", sources, config=CONFIG)
    try:
        minors(engine, sources, rng)
        letters(engine, sources, rng, o.frames)
        changes(engine, sources, rng, o.changes)
        majors(engine, sources, rng)
        objects(engine, sources, rng)
    except Exception as e:  # noqa: BLE001
        if not isinstance(e, AssertionError):
            traceback.print_exc()
        print(f"evolution: FAILED: {e} (files kept in {folder})")
        return 1
    finally:
        if engine.alive():
            engine.kill()
    shutil.rmtree(folder)
    print("evolution: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
