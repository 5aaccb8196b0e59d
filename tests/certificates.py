"""The device listener and foreign clients: who gets in, what they may do there, and what a revocation cuts.

    certificates.py [--data DIR] [--silent 1000] [--slow 200] [--batch 10000]

OpenSSL, paho and mosquitto_pub try what they may not, each with a certificate that is wrong in one way; then a device
publishes at full rate while it is revoked; then many strangers stand at the door. Exit status 0 if all holds.
"""

import argparse
import http.client
import json
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from weir import binary, check, free_port


def run(*command, ok=True, stdin=None):
    """Runs a program; `ok`: whether it has to succeed, None if that does not matter."""
    done = subprocess.run([str(x) for x in command], capture_output=True, timeout=120, input=stdin)
    check(ok is None or (done.returncode == 0) == ok, f"{command}: {done.returncode} {done.stdout} {done.stderr}")
    return done


class Place:
    """A data directory with its authority, and the engine on it."""

    def __init__(self, folder, config="", env=None):
        self.data = folder / "data"
        self.certs = folder / "certs"
        self.process = None
        self.port, self.http_port = free_port(), free_port()
        self.config, self.env = folder / "weir.toml", env
        self.config.write_text(config)
        self.log = open(folder / "engine.log", "ab")

    def weir(self, *arguments, ok=True):
        return run(binary(), *arguments, "--data", self.data, ok=ok)

    def issue(self, name, *more):
        self.weir("ca", "issue", name, "--out", self.certs, *more)
        return name

    def start(self):
        command = [binary(), "run", "--data", str(self.data), "--mqtts", f"127.0.0.1:{self.port}", "--http",
                   f"127.0.0.1:{self.http_port}", "--config", str(self.config)]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=self.env)
        for line in self.process.stdout:
            if line.strip() == "ready":
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return
        raise AssertionError(f"the engine ended with {self.process.wait()}; see {self.log.name}")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        check(self.process.wait(60) == 0, "the engine did not end well")

    def metrics(self):
        """Values of /metrics, by name with labels; needs the token of an admin."""
        context = ssl.create_default_context(cafile=str(self.data / "ca/ca.crt"))
        connection = http.client.HTTPSConnection("127.0.0.1", self.http_port, context=context, timeout=30)
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {self.admin}"})
        lines = connection.getresponse().read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def query(self, sql):
        return json.loads(self.weir("query", "-f", "json", sql).stdout or b"[]")


class Client:
    """A paho client with a certificate, and what it was told."""

    def __init__(self, place, files, client_id, version=mqtt.MQTTv5, will=None, authority=None):
        self.place, self.told, self.acked = place, [], {}
        self.gone = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=version)
        context = ssl.create_default_context(cafile=str(authority or place.certs / "ca.crt"))
        if files:
            context.load_cert_chain(f"{files}.crt", f"{files}.key")
        self.client.tls_set_context(context)
        if will:
            self.client.will_set(*will)
        self.connected = threading.Event()
        self.code = None
        self.client.on_connect = self._connected
        self.client.on_disconnect = self._disconnected
        self.client.on_publish = lambda c, u, mid, code, p: self.acked.update({mid: (code, p)})
        self.client.on_subscribe = lambda c, u, mid, codes, p: self.acked.update({mid: (codes, p)})
        self.client.on_message = lambda c, u, m: self.told.append(m)

    def _connected(self, client, userdata, flags, code, properties):
        self.code, self.properties = code, properties
        self.connected.set()

    def _disconnected(self, client, userdata, flags, code, properties):
        self.end, self.end_properties = code, properties
        self.gone.set()
        # It would come again by itself.
        client.disconnect()

    def connect(self):
        """Connects; the reason code of the answer, or the error of the handshake."""
        try:
            self.client.connect("127.0.0.1", self.place.port, keepalive=60)
        except (ssl.SSLError, OSError) as error:
            return str(error)
        self.client.loop_start()
        until = time.monotonic() + 15
        while time.monotonic() < until and not self.connected.is_set() and not self.gone.is_set():
            time.sleep(0.005)
        return self.code if self.connected.is_set() else f"closed: {getattr(self, 'end', None)}"

    def wait(self, mid, timeout=15):
        until = time.monotonic() + timeout
        while mid not in self.acked and time.monotonic() < until:
            time.sleep(0.005)
        return self.acked.get(mid)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def record(seq, epoch=1, **more):
    return json.dumps({"epoch": epoch, "seq": seq, "ts": time.time_ns(), "temperature": 20.5} | more)


def forge(place, folder, name, start, end):
    """A certificate that the issuing authority's key has signed, and the registry has never heard of."""
    ca = place.data / "ca"
    conf = folder / "forge.cnf"
    index = folder / "index.txt"
    index.write_text("")
    (folder / "index.txt.attr").write_text("unique_subject = no\n")
    conf.write_text(
        f"[ca]\ndefault_ca=d\n[d]\ndatabase={index}\nnew_certs_dir={folder}\nrand_serial=yes\ndefault_md=sha256\npolicy=p\n"
        f"x509_extensions=x\n[p]\ncommonName=supplied\n[x]\nsubjectAltName=URI:urn:dev:main:{name}\n"
        "extendedKeyUsage=clientAuth\n"
    )
    stem = folder / f"{name}-{start}"
    run("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
        f"{stem}.key", "-out", f"{stem}.csr", "-subj", f"/CN={name}")  # fmt: skip
    run("openssl", "ca", "-batch", "-config", conf, "-in", f"{stem}.csr", "-out", f"{stem}.crt", "-notext", "-cert",
        ca / "issuing.crt", "-keyfile", ca / "issuing.key", "-startdate", start, "-enddate", end)  # fmt: skip
    with open(f"{stem}.crt", "a") as f:
        f.write((ca / "issuing.crt").read_text())
    return stem


def strangers(place, folder):
    """Everybody who must not get in, and why."""
    certs = place.certs
    context = ("s_client", "-connect", f"127.0.0.1:{place.port}", "-CAfile", certs / "ca.crt", "-verify_return_error")
    out = run("openssl", *context, "-ign_eof", ok=None, stdin=b"")
    check(b"certificate required" in out.stderr, f"no certificate: {out.stderr[-300:]}")
    out = run("openssl", *context, "-tls1_2", "-cert", certs / "dev-1.crt", "-key", certs / "dev-1.key", ok=None, stdin=b"")
    check(out.returncode != 0 and b"protocol version" in out.stderr, f"TLS 1.2: {out.stderr[-300:]}")
    foreign = Place(folder / "foreign")
    foreign.weir("ca", "init")
    foreign.issue("dev-1")
    day = time.strftime("%Y%m%d", time.gmtime())
    expired = forge(place, folder, "dev-1", "20240101000000Z", "20250101000000Z")
    early = forge(place, folder, "dev-1", f"{int(day[:4]) + 1}0101000000Z", f"{int(day[:4]) + 2}0101000000Z")
    unknown = forge(place, folder, "dev-1", f"{day}000000Z", f"{int(day[:4]) + 1}0101000000Z")
    place.issue("gone")
    place.weir("ca", "revoke", "gone", "--reason", "stolen")
    time.sleep(1)
    shutil.copy(place.data / "ca/server.crt", folder / "server.crt")
    shutil.copy(place.data / "ca/server.key", folder / "server.key")
    for what, files, client_id, expected in (
        ("foreign authority", foreign.certs / "dev-1", "dev-1", ("unknown ca", "decrypt error")),
        ("expired", expired, "dev-1", ("expired",)),
        ("not yet valid", early, "dev-1", ("expired", "certificate", "bad")),
        ("revoked", certs / "gone", "gone", ("revoked",)),
        ("not in the registry", unknown, "dev-1", ("Not authorized",)),
        ("another's client id", certs / "dev-1", "dev-2", ("Client identifier not valid",)),
        ("the server's own", folder / "server", "dev-1", ("unsupported certificate", "certificate", "unknown")),
    ):
        for version in (mqtt.MQTTv5, mqtt.MQTTv311):
            client = Client(place, files, client_id, version, authority=certs / "ca.crt")
            said = client.connect()
            # Python may only see that the connection is over, when the alert follows its own last flight.
            check("Success" != str(said) and not client.client.is_connected(), f"{what} got in: {said}")
            told = any(text.lower() in str(said).lower() for text in expected)
            if version == mqtt.MQTTv5:
                print(f"  {what}: {said}")
            if client.connected.is_set():
                check(told, f"{what}: {said}")
            client.close()
        out = run("openssl", *context, "-ign_eof", "-cert", f"{files}.crt", "-key", f"{files}.key", ok=None, stdin=b"")
        if b"alert" in out.stderr:
            text = out.stderr.decode(errors="replace")
            check(any(word in text for word in expected), f"{what}: {text[-300:]}")
    will = Client(place, certs / "dev-1", "dev-1", will=("devices/dev-2/telemetry", record(1), 1, False))
    check(str(will.connect()) == "Not authorized", f"a will for another: {will.code}")
    will.close()


def intruders(place):
    """A device that is in, and tries what is not its own: each time it is told why and sent away."""
    tries = [
        ("publish", "devices/dev-2/telemetry", False),
        ("publish", "devices/dev-1/commands", False),
        ("publish", "devices/dev-1/other", False),
        ("publish", "plain", False),
        ("publish", "provisioning/line-1/req", False),
        ("publish", "devices/dev-1/telemetry", True),
        *(("subscribe", f, None) for f in ("devices/dev-2/commands", "#", "+/#", "devices/#", "devices/+/commands",
                                           "devices/dev-1/telemetry", "$share/g/devices/dev-1/commands",
                                           "groups/#", "$SYS/#")),
    ]  # fmt: skip
    for kind, topic, retain in tries:
        client = Client(place, place.certs / "dev-1", "dev-1")
        check(str(client.connect()) == "Success", f"dev-1 is refused: {client.code}")
        if kind == "publish":
            mid = client.client.publish(topic, record(99), qos=1, retain=retain).mid
            code, properties = client.wait(mid) or (None, None)
            check(str(code) == "Not authorized" and properties.ReasonString, f"{topic}: {code} {properties}")
        else:
            mid = client.client.subscribe(topic, qos=1)[1]
            codes, _ = client.wait(mid) or ([None], None)
            check(str(codes[0]) == "Not authorized", f"{topic}: {codes}")
        check(client.gone.wait(10), f"{topic}: not sent away")
        check(str(client.end) == "Not authorized" and client.end_properties.ReasonString, f"{topic}: {client.end}")
        client.close()
    old = Client(place, place.certs / "dev-1", "dev-1", mqtt.MQTTv311)
    check(str(old.connect()) == "Success", f"dev-1 is refused: {old.code}")
    old.client.publish("devices/dev-2/telemetry", record(98), qos=1)
    check(old.gone.wait(10), "a 3.1.1 client that publishes for another is not sent away")
    old.close()
    print(f"  {len(tries) + 1} tries of a device that is in: all refused")


def honest(place):
    """What is allowed works, with both clients, and a gateway speaks for its children."""
    certs = place.certs
    client = Client(place, certs / "dev-1", "dev-1")
    check(str(client.connect()) == "Success", f"dev-1: {client.code}")
    mid = client.client.subscribe("devices/dev-1/#", qos=1)[1]
    check(client.wait(mid), "no SUBACK")
    for seq in range(1, 11):
        mid = client.client.publish("devices/dev-1/telemetry", record(seq), qos=1).mid
        check(str((client.wait(mid) or [None])[0]) == "Success", f"record {seq}: {client.acked.get(mid)}")
    client.close()
    tls = ("--cafile", certs / "ca.crt", "--cert", certs / "dev-2.crt", "--key", certs / "dev-2.key")
    if shutil.which("mosquitto_pub"):
        run("mosquitto_pub", "-h", "localhost", "-p", place.port, *tls, "-i", "dev-2", "-q", "1", "-t",
            "devices/dev-2/telemetry", "-m", record(1))  # fmt: skip
        run("mosquitto_pub", "-h", "localhost", "-p", place.port, *tls, "-i", "dev-1", "-q", "1", "-t",
            "devices/dev-2/telemetry", "-m", record(2), ok=False)  # fmt: skip
        run("mosquitto_pub", "-h", "localhost", "-p", place.port, "--cafile", certs / "ca.crt", "-i", "dev-2", "-q", "1", "-t",
            "devices/dev-2/telemetry", "-m", record(2), ok=False)  # fmt: skip
    gateway = Client(place, certs / "gw", "gw")
    check(str(gateway.connect()) == "Success", f"gw: {gateway.code}")
    for child in ("gw", "meter-1", "meter-2"):
        mid = gateway.client.publish(f"devices/{child}/telemetry", record(1), qos=1).mid
        check(str((gateway.wait(mid) or [None])[0]) == "Success", f"gateway for {child}: {gateway.acked.get(mid)}")
    place.weir("ca", "children", "gw", "meter-1")
    time.sleep(1)
    mid = gateway.client.publish("devices/meter-2/telemetry", record(2), qos=1).mid
    code = gateway.wait(mid)
    check(code and str(code[0]) == "Not authorized", f"a child that was taken away: {code}")
    mid = gateway.client.publish("devices/meter-1/telemetry", record(2), qos=1).mid
    check(str((gateway.wait(mid) or [None])[0]) == "Success", "its other child suffers")
    gateway.close()


def cut(place):
    """A device is revoked while it publishes at full rate; another goes on."""
    certs = place.certs
    clients = {name: Client(place, certs / name, name) for name in ("dev-3", "dev-4")}
    counts = {name: 0 for name in clients}
    stop = threading.Event()

    def publish(name, client):
        seq = 0
        while not stop.is_set() and not client.gone.is_set():
            if len(client.acked) + 200 < seq:
                time.sleep(0.001)
                continue
            seq += 1
            client.client.publish(f"devices/{name}/telemetry", record(seq), qos=1)
            counts[name] = seq

    threads = []
    for name, client in clients.items():
        check(str(client.connect()) == "Success", f"{name}: {client.code}")
        threads.append(threading.Thread(target=publish, args=(name, client)))
        threads[-1].start()
    time.sleep(3)
    before = len(clients["dev-4"].acked)
    place.weir("ca", "revoke", "dev-3", "--reason", "test")
    revoked = time.monotonic()
    check(clients["dev-3"].gone.wait(5), "the revoked device is still connected after 5 s")
    took = time.monotonic() - revoked
    after = len(clients["dev-4"].acked)
    time.sleep(3)
    later = len(clients["dev-4"].acked)
    stop.set()
    [thread.join() for thread in threads]
    check(took < 2, f"cut after {took:.2f} s")
    check(str(clients["dev-3"].end) == "Not authorized", f"told {clients['dev-3'].end}")
    check(not clients["dev-4"].gone.is_set() and later > after, "the other device did not go on")
    again = Client(place, certs / "dev-3", "dev-3")
    check(str(again.connect()) != "Success", "the revoked device came back")
    for client in (*clients.values(), again):
        client.close()
    print(f"  revoked at full rate: cut {took:.2f} s after the command ended, {len(clients['dev-3'].acked)} records acknowledged; "
          f"the other: {before / 3:.0f}/s before, {(later - after) / 3:.0f}/s after")  # fmt: skip
    return len(clients["dev-3"].acked), counts["dev-3"]


def no_ticket(place):
    """A session of before a revocation does not come back: there is nothing to resume."""
    context = ssl.create_default_context(cafile=str(place.certs / "ca.crt"))
    context.load_cert_chain(place.certs / "dev-5.crt", place.certs / "dev-5.key")
    with socket.create_connection(("127.0.0.1", place.port)) as raw, context.wrap_socket(raw, server_hostname="localhost") as s:
        s.sendall(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05dev-5")
        check(s.recv(4) == b"\x20\x02\x00\x00", "dev-5 is refused")
        check(s.session is None or not s.session.has_ticket, "the server gave a ticket")
    out = run("openssl", "s_client", "-connect", f"127.0.0.1:{place.port}", "-CAfile", place.certs / "ca.crt", "-cert",
              place.certs / "dev-5.crt", "-key", place.certs / "dev-5.key", "-reconnect", ok=None, stdin=b"")  # fmt: skip
    check(b"Reused, TLS" not in out.stdout, "a session was resumed")


def crowd(place, silent, slow):
    """Many strangers at the door: how long an honest device takes to get in, before and while they are there."""

    def connect():
        began = time.monotonic()
        client = Client(place, place.certs / "dev-5", "dev-5")
        said = client.connect()
        took = time.monotonic() - began
        client.close()
        check(str(said) == "Success", f"an honest device among strangers: {said}")
        return took

    before = sorted(connect() for _ in range(5))[2]
    # In a process of its own: paho waits with select, which knows no file descriptor above 1023.
    program = f"""
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min({silent + slow + 100}, hard), hard))
sockets = [socket.create_connection(("127.0.0.1", {place.port})) for _ in range({silent + slow})]
[s.sendall(bytes.fromhex("1603010200010001fc0303")) for s in sockets[{silent}:]]
print("there", flush=True)
sys.stdin.read()
"""
    others = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    check(others.stdout.readline() == b"there\n", "the strangers did not come")
    during = sorted(connect() for _ in range(5))[2]
    others.communicate()
    print(f"  an honest device gets in within {before * 1000:.0f} ms, among {silent} silent and {slow} slow ones within "
          f"{during * 1000:.0f} ms")  # fmt: skip
    check(during < before + 5, "strangers keep honest devices out")


def plain_http(place):
    """A token for a first certificate does not go over plain HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", place.http_port, timeout=30)
    connection.request("POST", "/v1/provision", '{"request_id": "1", "serial": "a", "token": "x"}')
    answer = connection.getresponse()
    text = answer.read()
    check(answer.status == 403 and b"TLS" in text, f"a token over plain HTTP: {answer.status} {text}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--silent", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--batch", type=int, default=10000)
    arguments = parser.parse_args()
    import newcomers
    import provisioning

    with tempfile.TemporaryDirectory(dir=arguments.data) as folder:
        folder = pathlib.Path(folder)
        (folder / "foreign").mkdir()
        place = Place(folder)
        place.weir("ca", "init")
        for name in ("dev-1", "dev-2", "dev-3", "dev-4", "dev-5"):
            place.issue(name)
        place.issue("gw", "--gateway", "--child", "meter-1", "--child", "meter-2")
        place.start()
        try:
            strangers(place, folder)
            intruders(place)
            honest(place)
            acknowledged, sent = cut(place)
            no_ticket(place)
            crowd(place, arguments.silent, arguments.slow)
            provisioning.everything(place, folder, arguments.batch)
            plain_http(place)
            place.stop()
            rows = {r["device"]: r["n"] for r in place.query("SELECT device, count(*) AS n FROM telemetry GROUP BY device")}
            stored = rows.pop("dev-3")
            check(acknowledged <= stored <= sent, f"dev-3: {acknowledged} acknowledged, {stored} stored, {sent} sent")
            rows.pop("dev-4")
            enrolled = {name: n for name, n in rows.items() if name.startswith("new-")}
            expected = {"dev-1": 10, "gw": 1, "meter-1": 2, "meter-2": 1} | enrolled
            if shutil.which("mosquitto_pub"):
                expected["dev-2"] = 1
            check(rows == expected and enrolled, f"what is stored: {rows}")
            acts = place.query("SELECT reason, count(*) AS n FROM _audit WHERE outcome = 'refused' GROUP BY reason ORDER BY n DESC")
            check(len(acts) >= 5, f"refusals in the trail: {acts}")
            place.weir("audit", "--trail")
        except BaseException:
            print(open(place.log.name).read()[-3000:], file=sys.stderr)
            raise
        finally:
            if place.process.poll() is None:
                place.kill()
        newcomers.everything(folder)
    print("certificates: passed")


if __name__ == "__main__":
    main()
