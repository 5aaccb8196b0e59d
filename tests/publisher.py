"""Plain MQTT clients (paho) that number their records and remember what was acknowledged.

Two kinds, because clients differ in what they do when the server dies. `fresh` opens a new client after each loss of
connection and publishes what lacks an acknowledgement once more, as a program does that keeps its own list; `auto`
leaves reconnecting and repeating (with DUP) to paho. Event time runs faster than real time, so that windows close
while the test runs, but never into the future.
"""

import json
import random
import threading
import time

import cbor2
import paho.mqtt.client as mqtt
from paho.mqtt.properties import Properties
from paho.mqtt.packettypes import PacketTypes

STATES = ["run", "idle", "fault", "wartet é"]


class Device:
    """One device's numbering and clock."""

    def __init__(self, name, rng, base_ns):
        self.name = name
        self.rng = rng
        self.ts = base_ns + rng.randrange(1_000_000_000)
        self.base = rng.uniform(10, 30)
        self.restart()

    def restart(self):
        """A new numbering, as after a reset of the device."""
        self.epoch = self.rng.randrange(1, 1 << 63)
        self.seq = 0

    def record(self, step_ns):
        """The next record: (epoch, seq, ts, temperature, humidity, status)."""
        self.seq += 1
        self.ts += self.rng.randrange(1, 2 * step_ns)
        # Some disorder in event time: well within slack and lateness.
        ts = self.ts - (self.rng.randrange(1_500_000_000) if self.rng.random() < 0.05 else 0)
        return (self.epoch, self.seq, ts, self.base + self.rng.gauss(0, 2), round(self.rng.uniform(20, 90), 2),
                self.rng.choice(STATES))  # fmt: skip


def payload(records, form):
    """Records as one payload; `form` is json, cbor, or either with `-array`."""
    maps = [{"epoch": e, "seq": s, "ts": ts, "temperature": t, "humidity": h, "status": st}
            for e, s, ts, t, h, st in records]  # fmt: skip
    body = maps if form.endswith("array") else maps[0]
    return cbor2.dumps(body) if form.startswith("cbor") else json.dumps(body, ensure_ascii=False).encode()


class Publisher(threading.Thread):
    """Publishes for a few devices until told to finish, then until all is acknowledged."""

    def __init__(self, number, port, seed, devices=10, kind="fresh", protocol=mqtt.MQTTv311, window=40, rate=600.0,
                 base_ns=0, step_ns=800_000_000, form="json"):  # fmt: skip
        super().__init__(daemon=True, name=f"publisher-{number}")
        self.rng = random.Random(f"{seed}/{number}")
        self.port, self.kind, self.protocol, self.form = port, kind, protocol, form
        self.window, self.rate, self.step_ns = window, rate, step_ns
        self.client_id = f"pub-{number}"
        self.devices = [Device(f"p{number:02}-{i:03}", self.rng, base_ns) for i in range(devices)]
        self.lock = threading.Condition()
        self.all = []  # messages: [device, records, payload, acknowledged]
        self.unacked = {}  # index in `all`, in order
        self.by_mid = {}
        self.early = set()  # acknowledged before publish() told us the id
        self.finishing = threading.Event()
        self.abandon = threading.Event()
        self.refused = []
        self.connections = self.resent = 0
        self.error = None

    # what callers ask

    def records(self):
        """(device, epoch, seq, ts, temperature, humidity, status, acknowledged) of everything published."""
        for device, records, _, acknowledged in self.all:
            for r in records:
                yield (device, *r, acknowledged)

    def finish(self):
        """No new records; the thread ends when all are acknowledged."""
        self.finishing.set()

    # the thread

    def run(self):
        try:
            (self._run_fresh if self.kind == "fresh" else self._run_auto)()
        except Exception as e:  # noqa: BLE001: reported by the test
            self.error = e

    def _client(self):
        c = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=self.client_id, protocol=self.protocol)
        c.max_inflight_messages_set(self.window)
        c.up = threading.Event()
        c.down = threading.Event()
        c.on_publish = self._on_publish
        c.on_connect = self._on_connect
        c.on_disconnect = lambda c, *_: c.down.set()
        return c

    def _on_connect(self, c, _u, _f, code, _p):
        if not code.is_failure:
            self.connections += 1
            c.up.set()

    def _on_publish(self, c, _u, mid, code, _p):
        with self.lock:
            if code.is_failure:
                self.refused.append(str(code))
            index = self.by_mid.pop((id(c), mid), None)
            if index is None:
                self.early.add((id(c), mid))
            else:
                self._acknowledged(index, code)

    def _acknowledged(self, index, code=None):
        if code is None or not code.is_failure:
            self.all[index][3] = True
        self.unacked.pop(index, None)
        self.lock.notify()

    def _send(self, c, index):
        device, _, body, _ = self.all[index]
        properties = None
        if self.protocol == mqtt.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)
            properties.ContentType = "application/cbor" if self.form.startswith("cbor") else "application/json"
        mid = c.publish(f"devices/{device}/telemetry", body, qos=1, properties=properties).mid
        with self.lock:
            if (id(c), mid) in self.early:
                self.early.discard((id(c), mid))
                self._acknowledged(index)
            else:
                self.by_mid[id(c), mid] = index

    def _next(self):
        """The index of a new message, or None if time has caught up with the clock."""
        device = self.rng.choice(self.devices)
        if device.ts + 4 * self.step_ns > time.time_ns():
            return None
        count = self.rng.randrange(1, 5) if self.form.endswith("array") else 1
        records = [device.record(self.step_ns) for _ in range(count)]
        with self.lock:
            self.all.append([device.name, records, payload(records, self.form), False])
            index = len(self.all) - 1
            self.unacked[index] = True
            return index

    def _produce(self, c, until):
        """Publishes new records within window and rate, until `until()`."""
        due = time.monotonic()
        while not until() and not self.finishing.is_set():
            with self.lock:
                if len(self.unacked) >= self.window:
                    self.lock.wait(0.05)
                    continue
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            due = max(due, time.monotonic() - 0.1) + 1.0 / self.rate
            index = self._next()
            if index is None:
                time.sleep(0.05)
            else:
                self._send(c, index)

    def _over(self):
        return self.abandon.is_set() or (self.finishing.is_set() and not self.unacked)

    def _run_fresh(self):
        while not self._over():
            c = self._client()
            try:
                c.connect("127.0.0.1", self.port, keepalive=20)
            except OSError:
                time.sleep(self.rng.uniform(0.02, 0.2))
                continue
            c.loop_start()
            if c.up.wait(5):
                with self.lock:
                    again = list(self.unacked)
                self.resent += len(again)
                for index in again:
                    self._send(c, index)
                self._produce(c, c.down.is_set)
                while not c.down.is_set() and not self._over():
                    c.down.wait(0.05)
            c.disconnect()
            c.loop_stop()
            if self.rng.random() < 0.2:
                self.rng.choice(self.devices).restart()

    def _run_auto(self):
        c = self._client()
        c.reconnect_delay_set(1, 1)
        c.connect_async("127.0.0.1", self.port, keepalive=20)
        c.loop_start()
        self._produce(c, self.abandon.is_set)
        while not self._over():
            time.sleep(0.05)
        c.disconnect()
        c.loop_stop()


def table(publishers):
    """Everything published as an Arrow table, for DuckDB."""
    import pyarrow as pa

    rows = [r for p in publishers for r in p.records()]
    names = ["device", "epoch", "seq", "ts_ns", "temperature", "humidity", "status", "acked"]
    kinds = [pa.string(), pa.int64(), pa.int64(), pa.int64(), pa.float64(), pa.float64(), pa.string(), pa.bool_()]
    columns = list(zip(*rows)) if rows else [[] for _ in names]
    return pa.table({n: pa.array(c, k) for n, c, k in zip(names, columns, kinds)})
