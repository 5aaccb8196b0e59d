"""What no client should send: a clear reason to the sender, the payload kept, and nobody else disturbed.

Used by `clients.py`; `tests(engine)` yields (name, test). Each test uses connections of its own; a bystander publishes
through all of them and must neither lose its connection nor miss an acknowledgement.
"""

import json
import os
import socket
import threading
import time

import cbor2

from rawmqtt import Closed, Raw, packet, text, varint
from weir import check, duck, has

NOW = time.time_ns


def frame(epoch, seq, rows, **more):
    """A frame as a map with integer keys; `more` replaces or adds keys (`k7=...`), None removes one."""
    keys = {0: 1, 1: epoch, 2: seq, 3: 1, 4: 1 << 16, 5: NOW(), 6: rows, 7: NOW()}
    for name, value in more.items():
        keys[int(name[1:])] = value
    return cbor2.dumps({k: v for k, v in keys.items() if v is not None})


ROWS = [[0, {1: 20.5}]]


def refused_payloads():
    """(name, payload, content type, reasons that fit)."""
    good = frame(5, 1, ROWS)
    nested = b"[" * 200 + b"]" * 200
    indefinite = b"\xbf\x00\x01\xff"
    duplicate = b"\xa9" + good[1:] + b"\x07\x01"
    return [
        ("garbage", bytes(range(200, 256)) * 3, None, {"bad_payload", "bad_frame"}),
        ("random bytes", os.urandom(400), None, {"bad_payload", "bad_frame"}),
        ("text", b"hello", None, {"bad_payload"}),
        ("cut JSON", b'{"temperature": 1', None, {"bad_payload"}),
        ("JSON with a tail", b'{"temperature": 1} x', None, {"bad_payload"}),
        ("JSON NaN", b'{"temperature": NaN}', None, {"bad_payload"}),
        ("JSON not UTF-8", b'{"status": "\xff\xfe"}', None, {"bad_payload"}),
        ("JSON of numbers", b"[1, 2]", None, {"bad_payload"}),
        ("empty array", b"[]", None, {"bad_payload"}),
        ("deep nesting", b'{"a":' + nested + b"}", None, {"bad_payload"}),
        ("key twice", b'{"temperature": 1, "temperature": 2}', None, {"bad_payload", "bad_field"}),
        ("wrong type", b'{"temperature": "hot"}', None, {"schema_mismatch"}),
        ("unknown schema", b'{"schema": "nonsense", "temperature": 1}', None, {"unknown_schema"}),
        ("bad ts", b'{"ts": "yesterday", "temperature": 1}', None, {"bad_field"}),
        ("bad seq", b'{"epoch": 1, "seq": -1, "temperature": 1}', None, {"bad_field"}),
        ("bad epoch", b'{"epoch": "x", "seq": 1, "temperature": 1}', None, {"bad_field"}),
        ("huge seq", b'{"epoch": 1, "seq": 9223372036854775808, "temperature": 1}', None, {"bad_field"}),
        ("cut CBOR", cbor2.dumps({"temperature": 1.5})[:-2], None, {"bad_payload"}),
        ("CBOR with a tail", cbor2.dumps({"temperature": 1.5}) + b"\0", None, {"bad_payload"}),
        ("JSON called CBOR", b'{"temperature": 1}', "application/cbor", {"bad_payload"}),
        ("cut frame", good[:-5], None, {"bad_frame"}),
        ("frame with a tail", good + b"\0", None, {"bad_frame"}),
        ("frame without rows", frame(5, 1, []), None, {"bad_frame"}),
        ("frame without seq", frame(5, 1, ROWS, k2=None), None, {"bad_frame"}),
        ("frame of version 9", frame(5, 1, ROWS, k0=9), None, {"bad_frame"}),
        ("frame past the last seq", frame(5, 2**63 - 1, ROWS * 2), None, {"bad_frame"}),
        ("frame with a key twice", duplicate, None, {"bad_frame"}),
        ("frame of indefinite length", indefinite, None, {"bad_frame"}),
        ("frame of too many records", frame(5, 1, ROWS * 1025), None, {"bad_frame", "too_large"}),
        ("frame that is too large", frame(5, 1, [[0, {4: "x" * 70_000}]]), None, {"too_large", "bad_frame"}),
        ("frame with a wrong type", frame(5, 1, [[0, {1: "hot"}]]), None, {"schema_mismatch", "bad_frame"}),
        ("a million records", b"[" + b",".join([b'{"temperature":1}'] * 2000) + b"]", None, {"too_large"}),
    ]


def dead_letters(engine, device):
    """Rows of _dead_letters of one device: (reason, text, payload, topic)."""
    c = duck(engine.data, "_dead_letters")
    if not has(c, "_dead_letters"):
        return []
    return c.execute("SELECT reason, text, payload, topic FROM _dead_letters WHERE device = ?", [device]).fetchall()


def payloads(engine):
    """Each bad payload over MQTT 5 and 3.1.1: reason code and words, `errors` message, dead letter with the bytes."""
    wrong = []
    sent = {}
    for number, (name, body, content_type, reasons) in enumerate(refused_payloads()):
        for version in (5, 4):
            if version == 4 and content_type is not None:
                continue
            # A device each: a kept frame accounts for its numbers, and the same ones again would be a duplicate.
            device = f"bad-{number:02}-{version}"
            sent[device] = name, body, reasons
            raw = Raw(engine.mqtt_port, device, version=version)
            raw.subscribe(f"devices/{device}/errors")
            try:
                if version == 5:
                    code, words = raw.publish(f"devices/{device}/telemetry", body, content_type=content_type)
                    if code < 0x80 or not words:
                        wrong.append(f"{name}: PUBACK has code {code:#x}, reason string {words!r}")
                else:
                    raw.publish(f"devices/{device}/telemetry", body)
                said = json.loads(raw.message(5)[1])
                if said.get("reason") not in reasons or not said.get("text"):
                    wrong.append(f"{name}: errors topic says {said}")
            except (Closed, TimeoutError) as e:
                wrong.append(f"{name} (MQTT {version}): {e!r}")
            finally:
                raw.close()
    engine.flush()
    for device, (name, body, reasons) in sent.items():
        letters = dead_letters(engine, device)
        if not any(r in reasons and t and bytes(b) == body for r, t, b, _ in letters):
            wrong.append(f"{name}: no dead letter, only {[(r, t) for r, t, _, _ in letters]}")
    c = duck(engine.data, "telemetry")
    rows = c.execute("SELECT device, count(*) FROM telemetry WHERE device LIKE 'bad-%' GROUP BY 1").fetchall()
    if rows:
        wrong.append(f"rows were stored of what was refused: {rows}")
    check(not wrong, "\n      ".join(["", *wrong]))


def empty(engine):
    """An empty payload: a reason; there is nothing to keep."""
    raw = Raw(engine.mqtt_port, "empty")
    code, words = raw.publish("devices/empty/telemetry", b"")
    check(code >= 0x80 and words, f"PUBACK has code {code:#x}, reason string {words!r}")
    code, _ = raw.publish("devices/empty/telemetry", b'{"temperature": 1}')
    check(code < 0x80, "the connection does not work after an empty payload")


def unknown_frame_schema(engine):
    """A frame of a schema nobody declared: kept, and its numbers accounted for."""
    raw = Raw(engine.mqtt_port, "unknown-frame")
    raw.subscribe("devices/unknown-frame/ack")
    body = frame(77, 1, ROWS * 3, k3=999)
    raw.publish("devices/unknown-frame/telemetry", body)
    ack = cbor2.loads(raw.message()[1])
    check([e[:2] for e in ack[1]] == [[77, 3]], f"ack is {ack}")
    engine.flush()
    letters = dead_letters(engine, "unknown-frame")
    check([(r, bytes(b)) for r, _, b, _ in letters] == [("unknown_schema", body)], f"dead letters: {letters}")


def strange_times(engine):
    """1970, 2100 and the ends of the range: stored, flagged, the raw time kept, nobody's windows moved."""
    raw = Raw(engine.mqtt_port, "times")
    # DuckDB calls the very last nanosecond "infinity".
    times = {"t1970": 0, "t1970b": 123, "t2100": 4_102_444_800_000_000_007, "tmin": -(2**63), "tmax": 2**63 - 2}
    for device, ts in times.items():
        code, words = raw.publish(
            f"devices/{device}/telemetry", json.dumps({"epoch": 1, "seq": 1, "ts": ts, "temperature": 1}).encode()
        )
        check(code < 0x80, f"{device}: refused with {code:#x} {words}")
    engine.flush()
    c = duck(engine.data, "telemetry")
    for device, ts in times.items():
        rows = c.execute(
            "SELECT epoch_ns(ts), epoch_ns(ts_device), epoch_ns(ts_ingest), clock_q FROM telemetry WHERE device = ?", [device]
        ).fetchall()
        check(len(rows) == 1, f"{device}: {len(rows)} rows")
        corrected, raw_time, ingest, quality = rows[0]
        check(raw_time == ts, f"{device}: ts_device is {raw_time}, sent was {ts}")
        check(corrected == ingest and quality == 4, f"{device}: ts {corrected}, ts_ingest {ingest}, clock_q {quality}")
        check(abs(ingest - NOW()) < 600 * 10**9, f"{device}: ts_ingest {ingest} is not now")


def not_a_number(engine):
    """NaN and infinities are values of a double."""
    raw = Raw(engine.mqtt_port, "nan")
    values = [float("nan"), float("inf"), float("-inf")]
    for seq, value in enumerate(values, 1):
        record = {"epoch": 1, "seq": seq, "ts": NOW(), "temperature": value}
        code, words = raw.publish("devices/nan/telemetry", cbor2.dumps(record))
        check(code < 0x80, f"{value}: refused with {code:#x} {words}")
    engine.flush()
    c = duck(engine.data, "telemetry")
    got = c.execute("SELECT temperature::TEXT FROM telemetry WHERE device = 'nan' ORDER BY seq").fetchall()
    check(got == [("nan",), ("inf",), ("-inf",)], f"stored are {got}")


def far_ahead(engine):
    """A seq far past the window: never a silent loss. Either refused with the reason `window`, or stored with the
    hole declared in _losses."""
    raw = Raw(engine.mqtt_port, "far")
    send = lambda seq: raw.publish("devices/far/telemetry",  # noqa: E731
                                   json.dumps({"epoch": 9, "seq": seq, "ts": NOW(), "temperature": seq}).encode())  # fmt: skip
    check(send(1)[0] < 0x80, "seq 1 was refused")
    code, words = send(1_000_000)
    check(send(2)[0] < 0x80 or code < 0x80, "seq 2 was refused after a seq far ahead that was refused")
    engine.flush()
    c = duck(engine.data, "telemetry", "_losses")
    stored = [r[0] for r in c.execute("SELECT seq FROM telemetry WHERE device = 'far' ORDER BY seq").fetchall()]
    lost = c.execute("SELECT from_seq, to_seq FROM _losses WHERE device = 'far'").fetchall() if has(c, "_losses") else []
    if code >= 0x80:
        check(words, "refused without a reason string")
        check(stored == [1, 2], f"refused, but stored are {stored}")
        letters = dead_letters(engine, "far")
        check([r for r, *_ in letters] in (["window"], []), f"dead letters: {letters}")
    else:
        check(1_000_000 in stored, f"acknowledged, but stored are {stored}")
        holes = 1_000_000 - len(stored)
        check(sum(b - a + 1 for a, b in lost) == holes, f"{holes} seqs are neither stored nor declared lost: {lost}")


def topics(engine):
    """Topics that cannot be: refused with a reason, the payload kept where the topic could be read."""
    wrong = []
    body = b'{"epoch": 1, "seq": 1, "temperature": 1}'
    for name, topic in (("non-ASCII id", "devices/é/telemetry"), ("space in id", "devices/a b/telemetry"),
                        ("id of 200 characters", f"devices/{'x' * 200}/telemetry"), ("no id", "devices//telemetry"),
                        ("control character", "devices/a\x07b/telemetry")):  # fmt: skip
        for version in (5, 4):
            raw = Raw(engine.mqtt_port, f"topic-{version}", version=version)
            try:
                code, words = raw.publish(topic, body)
                if version == 5 and (code < 0x80 or not words):
                    wrong.append(f"{name}: PUBACK has code {code:#x}, reason string {words!r}")
            except Closed as e:
                if version == 5 and "(" not in str(e):
                    wrong.append(f"{name}: closed without a reason")
            raw.close()
    for name, topic in (("wildcard #", "devices/#"), ("wildcard +", "devices/+/telemetry"), ("wildcard in id", "devices/a+/telemetry"),
                        ("not UTF-8", b"devices/\xff\xfe/telemetry"), ("NUL", "devices/a\0b/telemetry"),
                        ("empty", "")):  # fmt: skip
        for version in (5, 4):
            raw = Raw(engine.mqtt_port, f"topic-{version}", version=version)
            raw.send(raw.publish_packet(topic, body))
            code, words = raw.ended()
            if version == 5 and (code is None or code < 0x80):
                wrong.append(f"{name}: the connection ended with code {code} {words!r}")
    engine.flush()
    c = duck(engine.data, "_dead_letters")
    kept = {t[0] for t in c.execute("SELECT topic FROM _dead_letters WHERE payload = ?::BLOB", [body.decode()]).fetchall()}
    for topic in ("devices/é/telemetry", "devices/a b/telemetry"):
        if topic not in kept:
            wrong.append(f"no dead letter for {topic}")
    check(not wrong, "\n      ".join(["", *wrong]))


def oversize(engine):
    """Packets larger than any may be: the connection ends with a reason, before the bytes are taken."""
    for version in (5, 4):
        raw = Raw(engine.mqtt_port, "oversize", version=version)
        raw.send(b"\x32" + varint(200_000_000))
        code, _ = raw.ended()
        check(version == 4 or code == 0x95, f"ended with {code}")
    raw = Raw(engine.mqtt_port, "large")
    try:
        code, words = raw.publish("devices/large/telemetry", b'{"status": "' + b"x" * 900_000 + b'"}', timeout=30)
        check(code < 0x80, f"a payload of 900 kB was refused: {code:#x} {words}")
    except Closed as e:
        check("149" in str(e), f"a payload of 900 kB ended the connection: {e}")


def wrong_packets(engine):
    """Bytes that are no MQTT, or not at this moment: the connection ends, and soon."""
    wrong = []
    first = {
        "garbage": b"\xff" + os.urandom(63),
        "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "TLS hello": bytes.fromhex("16030100c8010000c40303") + os.urandom(64),
        "PUBLISH first": packet(0x30, text("a") + b"x"),
        "protocol name": packet(0x10, text("MQXX") + b"\x04\x02\0\x3c" + text("x")),
        "version 9": packet(0x10, text("MQTT") + b"\x09\x02\0\x3c\0" + text("x")),
        "reserved flag": packet(0x10, text("MQTT") + b"\x04\x03\0\x3c" + text("x")),
        "cut CONNECT": packet(0x10, text("MQTT") + b"\x04"),
        "endless length": b"\x10\xff\xff\xff\xff\xff\x01",
    }
    for name, data in first.items():
        raw = Raw(engine.mqtt_port, connect=False)
        try:
            raw.send(data)
            raw.ended(15)
        except TimeoutError:
            wrong.append(f"{name}: the connection stays open")
        except OSError:
            pass
    later = {
        "QoS 3": b"\x36" + packet(0, text("a") + b"\0\1x")[1:],
        "packet id 0": packet(0x32, text("a") + b"\0\0" + b"\0x"),
        "second CONNECT": packet(0x10, text("MQTT") + b"\x05\x02\0\x3c\0" + text("x")),
        "cut PUBLISH": packet(0x32, b"\0\xffab"),
        "SUBSCRIBE flags": packet(0x80, b"\0\1\0" + text("a") + b"\0"),
        "SUBSCRIBE nothing": packet(0x82, b"\0\1\0"),
        "bad filter": packet(0x82, b"\0\1\0" + text("a/#/b") + b"\0"),
        "CONNACK from a client": packet(0x20, b"\0\0\0"),
        "type 0": packet(0x00, b""),
        # No length ends within four bytes; a random one could be that of a packet whose rest is awaited, and rightly.
        "any type, endless length": os.urandom(1) + b"\xff" * 20,
    }
    for name, data in later.items():
        raw = Raw(engine.mqtt_port, f"wrong-{name}")
        raw.send(data)
        try:
            if name == "bad filter":
                kind, _, body = raw.read(10)
                if not (kind == 9 and body[-1] >= 0x80) and kind != 14:
                    wrong.append(f"{name}: answered with packet {kind} {body!r}")
            else:
                raw.ended(15)
        except TimeoutError:
            wrong.append(f"{name}: the connection stays open")
        except Closed:
            pass
    check(not wrong, "; ".join(wrong))


def silent_and_slow(engine):
    """Clients that connect and say nothing, trickle, or never read: nobody waits for them."""
    idle = [socket.create_connection(("127.0.0.1", engine.mqtt_port)) for _ in range(200)]
    half = Raw(engine.mqtt_port, connect=False)
    half.send(half.connect_packet("half")[:7])
    deaf = Raw(engine.mqtt_port, "deaf")
    deaf.subscribe("devices/deaf-source/#", "flood/#")
    loud = Raw(engine.mqtt_port, "loud")
    for i in range(3000):
        loud.send(loud.publish_packet("flood/x", b"y" * 2000, qos=0))
    began = time.monotonic()
    code, _ = loud.publish("devices/loud/telemetry", b'{"temperature": 1}', timeout=20)
    check(code < 0x80, f"code {code}")
    check(time.monotonic() - began < 15, "a client that does not read held up another")
    for s in idle:
        s.close()
    keep = Raw(engine.mqtt_port, "keepalive", keepalive=1)
    began = time.monotonic()
    keep.ended(10)
    check(1.0 <= time.monotonic() - began < 6, "keep-alive of 1 s was not enforced within 1.5 s")


class Bystander(threading.Thread):
    """Publishes all the time; its connection and its acknowledgements must not suffer."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.acked, self.slowest, self.error = port, 0, 0.0, None
        self.ending = threading.Event()

    def run(self):
        try:
            raw = Raw(self.port, "bystander", version=4)
            while not self.ending.wait(0.01):
                began = time.monotonic()
                record = {"epoch": 3, "seq": self.acked + 1, "ts": NOW(), "temperature": self.acked / 4}
                raw.publish("devices/bystander/telemetry", json.dumps(record).encode(), timeout=20)
                self.acked += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
        except Exception as e:  # noqa: BLE001: reported by the test
            self.error = e

    def verify(self, engine):
        """Its connection held, and its rows are all there, once."""
        self.ending.set()
        self.join(30)
        check(self.error is None, f"the bystander was disturbed: {self.error!r}")
        engine.flush()
        c = duck(engine.data, "telemetry")
        got = c.execute("SELECT count(*), count(DISTINCT seq), max(seq) FROM telemetry WHERE device = 'bystander'").fetchall()
        check(got == [(self.acked,) * 3], f"the bystander has {got}, acknowledged were {self.acked}")
        print(f"  bystander: {self.acked} publishes, slowest acknowledgement {self.slowest * 1000:.0f} ms")


def alive(engine):
    check(engine.alive() and engine.ready(), "the engine is not ready any more")


def tests(engine):
    """(name, test) in order."""
    bystander = Bystander(engine.mqtt_port)
    bystander.start()
    for test in (payloads, empty, unknown_frame_schema, strange_times, not_a_number, far_ahead, topics, oversize,
                 wrong_packets, silent_and_slow, alive):  # fmt: skip
        yield f"bad input: {test.__name__}", lambda test=test: test(engine)
    yield "bad input: bystander", lambda: bystander.verify(engine)
