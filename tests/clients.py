"""Clients and readers that are not ours: what they publish is one row each, exact to the bit and the nanosecond.

    clients.py [--data DIR]

mosquitto_pub (if installed), paho for MQTT 3.1.1 and 5, and bare sockets publish JSON and CBOR at every QoS, singly
and in arrays, repeated and in disorder; then DuckDB, Polars and pyarrow each read the files and must find the same.
The second half, `bad_input.py`, sends what no client should. Exit status 0 if all holds.
"""

import argparse
import json
import math
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import cbor2
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import bad_input
from rawmqtt import Raw
from weir import ROOT, Engine, check

FIELDS = ("temperature", "humidity", "vibration", "status")


class Book:
    """What must be stored: one entry per (device, epoch, seq)."""

    def __init__(self):
        self.rows = {}

    def record(self, device, epoch, seq, ts, extra=None, **values):
        """Notes a row and returns its record as a plain object with integer time."""
        self.rows[device, epoch, seq] = (ts, *(values.get(f) for f in FIELDS), extra)
        return {"epoch": epoch, "seq": seq, "ts": ts} | values | (extra or {})


def rfc3339(ns):
    """A time with nine digits."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 10**9)) + f".{ns % 10**9:09}Z"


def mosquitto_pub(engine, book, now):
    """Debian's mosquitto_pub: JSON lines, CBOR from a file, MQTT 5 with a content type."""
    program = shutil.which("mosquitto_pub")
    if not program:
        print("  mosquitto_pub is not installed: left out")
        return

    def run(*arguments, stdin=None):
        command = [program, "-h", "127.0.0.1", "-p", str(engine.mqtt_port), "-q", "1", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=60)
        check(done.returncode == 0, f"mosquitto_pub {arguments}: {done.stderr}")

    record = book.record("mosquitto-1", 11, 1, now - 5, temperature=21.25, status="läuft")
    run("-t", "devices/mosquitto-1/telemetry", "-m", json.dumps(record | {"ts": rfc3339(record["ts"])}))
    lines = [book.record("mosquitto-1", 11, s, now - 1000 + s, temperature=s / 7) for s in range(2, 502)]
    lines += lines[100:200]
    run("-t", "devices/mosquitto-1/telemetry", "-l", stdin="\n".join(json.dumps(x) for x in lines).encode())
    with tempfile.NamedTemporaryFile() as f:
        f.write(cbor2.dumps(book.record("mosquitto-2", 12, 1, now - 7, temperature=-1.5, humidity=99.9)))
        f.flush()
        for version in ("311", "5"):
            run("-V", version, "-t", "devices/mosquitto-2/telemetry", "-f", f.name)
        run("-V", "5", "-D", "publish", "content-type", "application/cbor", "-t", "devices/mosquitto-2/telemetry",
            "-f", f.name)  # fmt: skip


def paho(engine, book, now):
    """paho, both versions and all QoS: repeated and out of order; each message acknowledged."""
    for version, protocol in ((4, mqtt.MQTTv311), (5, mqtt.MQTTv5)):
        for qos in (0, 1, 2):
            device = f"paho-{version}-{qos}"
            client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=device, protocol=protocol)
            client.connect("127.0.0.1", engine.mqtt_port)
            client.loop_start()
            order = list(range(1, 301))
            for a in range(0, 290, 7):
                order[a], order[a + 1] = order[a + 1], order[a]
            sent = []
            for seq in order + order[50:90]:
                record = book.record(device, 1 << 62, seq, now - 10**9 + seq, temperature=math.sin(seq), humidity=seq)
                body = json.dumps(record).encode() if seq % 2 else cbor2.dumps(record)
                properties = None
                if version == 5:
                    properties = Properties(PacketTypes.PUBLISH)
                    properties.ContentType = "application/json" if seq % 2 else "application/cbor"
                sent.append(client.publish(f"devices/{device}/telemetry", body, qos=qos, properties=properties))
            for info in sent:
                info.wait_for_publish(30)
                check(info.is_published(), f"{device}: not acknowledged")
            client.disconnect()
            client.loop_stop()


def exact(engine, book, now):
    """Values and times at the edges of their types, through both formats."""
    values = [0.1 + 0.2, -0.0, 5e-324, sys.float_info.max, -sys.float_info.min, 1 / 3, 1e21, 123456789.123456789]
    times = [now, now - 1, 1_600_000_000_000_000_001, 1_577_836_800_000_000_000, now - 86_400 * 10**9 * 400 + 999_999_999]
    for form, dump in (("json", lambda x: json.dumps(x, ensure_ascii=False).encode()), ("cbor", cbor2.dumps)):
        raw = Raw(engine.mqtt_port, f"exact-{form}", version=4)
        seq = 0
        for v in values:
            for ts in times:
                seq += 1
                record = book.record(f"exact-{form}", 2**63 - 1, seq, ts, temperature=v, humidity=-v, vibration=v / 3,
                                     status='"\\ \n é \U0001f321 ')  # fmt: skip
                raw.publish(f"devices/exact-{form}/telemetry", dump(record))
        raw.publish(
            f"devices/exact-{form}/telemetry",
            dump([book.record(f"exact-{form}", 5, s, now - s, temperature=s) for s in (3, 1, 2)]),
        )
        # A second array repeats two records and brings one new.
        raw.publish(
            f"devices/exact-{form}/telemetry",
            dump([book.record(f"exact-{form}", 5, s, now - s, temperature=s) for s in (2, 3, 4)]),
        )
        unknown = {"firmware": "1.2", "gps": {"lat": 1.5, "lon": [1, 2]}, "ok": True}
        record = book.record(f"exact-{form}", 5, 5, now - 5, temperature=1.0)
        book.rows[f"exact-{form}", 5, 5] = (*book.rows[f"exact-{form}", 5, 5][:5], "unknown fields")
        raw.publish(f"devices/exact-{form}/telemetry", dump(record | unknown))
        raw.close()


def visible(engine, now):
    """One record on an idle engine can be queried through it soon, without a flush or more records behind it."""
    raw = Raw(engine.mqtt_port, "lonely")
    raw.publish("devices/lonely/telemetry", json.dumps({"epoch": 1, "seq": 1, "ts": now, "temperature": 1}).encode())
    sql = b"SELECT device FROM telemetry WHERE device = 'lonely'"
    until = time.monotonic() + 10
    while True:
        status, body = engine.http("/v1/query", sql)
        if status == 200 and b"lonely" in body:
            break
        check(time.monotonic() < until, f"an acknowledged row is not visible after 10 s: {status} {body[:200]!r}")
        time.sleep(0.05)
    raw.close()


def audited(engine, now):
    """Audits of a device that publishes meanwhile never call a record missing or double."""
    raw, done, failed = Raw(engine.mqtt_port, "busy"), threading.Event(), []

    def publish():
        seq = 0
        try:
            while not done.is_set():
                seq += 1
                record = {"epoch": 7, "seq": seq, "ts": now + seq, "temperature": seq}
                raw.publish("devices/busy/telemetry", json.dumps(record).encode())
        except Exception as e:  # noqa: BLE001: told below
            failed.append(e)

    thread = threading.Thread(target=publish)
    thread.start()
    rows = 0
    try:
        for _ in range(10):
            status, body = engine.http("/v1/audit/busy")
            # The first audit may come before the first record.
            if status == 404 and rows == 0:
                continue
            check(status == 200, f"audit: {status} {body[:300]!r}")
            answer = json.loads(body)
            check(answer["ok"], f"an audit under load found: {body[:500]!r}")
            rows = sum(epoch["rows"] for epoch in answer["epochs"])
    finally:
        done.set()
        thread.join(timeout=30)
        raw.close()
    check(not failed and rows > 0, f"nothing was audited: {failed}")
    print(f"  10 audits, {rows} rows at the last")


def unnumbered(engine, now):
    """Records that leave out epoch, seq or ts. Returns device -> (rows, assured)."""
    raw = Raw(engine.mqtt_port, "unnumbered")
    send = lambda device, record: raw.publish(f"devices/{device}/telemetry", json.dumps(record).encode())  # noqa: E731
    for _ in range(3):
        # Same seq, same time: a repetition.
        send("no-epoch", {"seq": 1, "ts": now - 100, "temperature": 1})
    send("no-epoch", {"seq": 2, "ts": now - 90, "temperature": 2})
    # Numbering begins again with later times: new readings.
    send("no-epoch", {"seq": 1, "ts": now - 80, "temperature": 3})
    send("no-epoch", {"seq": 2, "ts": now - 70, "temperature": 4})
    for value in (1, 1, 2):
        send("no-seq", {"temperature": value})
    raw.close()
    return {"no-epoch": (4, None), "no-seq": (3, False)}


def bits(value):
    """A value in a form that compares bit for bit."""
    return struct.pack(">d", value) if isinstance(value, float) else value


def stored(path):
    """The rows of table telemetry by (device, epoch, seq), as each reader sees them: name -> rows."""
    import duckdb
    import polars
    import pyarrow.dataset

    columns = ["device", "epoch", "seq", "ts", *FIELDS, "extra"]
    glob = f"{path}/**/*.parquet"
    c = duckdb.connect()
    yield "duckdb", c.execute(
        f"""SELECT device, epoch, seq, epoch_ns(ts), temperature, humidity, vibration, status, extra
            FROM read_parquet('{glob}', hive_partitioning = true, union_by_name = true)"""
    ).fetchall()
    frame = polars.scan_parquet(glob, hive_partitioning=True).select(columns)
    yield "polars", frame.with_columns(polars.col("ts").dt.epoch("ns")).collect().rows()
    table = pyarrow.dataset.dataset(path, partitioning="hive").to_table(columns=columns)
    table = table.set_column(3, "ts", table["ts"].cast("int64"))
    yield "pyarrow", list(zip(*(table[name].to_pylist() for name in columns)))


def compare(engine, book, counts):
    """Every reader finds exactly what the book says."""
    engine.flush()
    for name, rows in stored(f"{engine.data}/tables/telemetry"):
        seen = {}
        for device, epoch, seq, *values in rows:
            key = (device, epoch, seq)
            check(key not in seen, f"{name}: {key} is stored twice")
            seen[key] = values
        for key, wanted in book.rows.items():
            check(key in seen, f"{name}: {key} is not stored")
            got = seen[key]
            extra = got.pop()
            same = [bits(float(w) if isinstance(w, int) and i else w) for i, w in enumerate(wanted[:5])]
            check([bits(v) for v in got] == same, f"{name}: {key} is {got}, sent was {wanted}")
            check((extra is not None) == (wanted[5] is not None), f"{name}: {key} has extra {extra}")
            if wanted[5]:
                more = json.loads(extra)
                check(more.get("firmware") == "1.2" and more.get("ok") is True, f"{name}: {key} lost fields: {extra}")
                check("1.5" in extra and "lat" in extra, f"{name}: {key} lost nested fields: {extra}")
        devices = {d for d, _, _ in book.rows}
        check(sum(k[0] in devices for k in seen) == len(book.rows), f"{name}: more rows than were sent")
        for device, (wanted, _) in counts.items():
            n = sum(k[0] == device for k in seen)
            check(n == wanted, f"{name}: {device} has {n} rows, expected {wanted}")
        print(f"  {name}: {len(seen)} rows, {len(book.rows)} compared bit for bit")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default=None, help="folder to use and keep; else a temporary one, kept on failure")
    o = p.parse_args()
    folder = pathlib.Path(o.data or tempfile.mkdtemp(prefix="weir-clients-"))
    folder.mkdir(parents=True, exist_ok=True)
    engine = Engine(folder / "data", ROOT / "tests" / "pipelines")
    failed = []
    try:
        engine.start()
        book, now, counts = Book(), time.time_ns(), {}
        # First, while nothing else would push its row out.
        step("visible", failed, lambda: visible(engine, now))
        step("audited", failed, lambda: audited(engine, now))
        for part in (mosquitto_pub, paho, exact):
            step(part.__name__, failed, lambda part=part: part(engine, book, now))
        step("unnumbered", failed, lambda: counts.update(unnumbered(engine, now)))
        step("compare", failed, lambda: compare(engine, book, counts))
        for name, test in bad_input.tests(engine):
            step(name, failed, test)
        code = engine.stop()
        step("stop", failed, lambda: check(code == 0, f"exit status {code} after SIGTERM"))
    except Exception:  # noqa: BLE001: any failure is the result of the test
        traceback.print_exc()
        failed.append("engine")
    finally:
        if engine.process and engine.alive():
            engine.kill()
    if failed:
        print(f"clients: FAILED: {', '.join(failed)} (files kept in {folder})")
        return 1
    print("clients: passed")
    if not o.data:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def step(name, failed, test):
    """Runs one part; a failure does not hide those of the others."""
    try:
        test()
        print(f"ok    {name}", flush=True)
    except Exception as e:  # noqa: BLE001
        if not isinstance(e, AssertionError):
            traceback.print_exc()
        print(f"FAIL  {name}: {str(e) or repr(e)}", flush=True)
        failed.append(name)


if __name__ == "__main__":
    sys.exit(main())
