"""Devices that get their certificates themselves: the first one, each next one, the next after one that has expired, and of another root.

    rotation.py [--data DIR] [--kills 12] [--seed 1]

A real engine, and agents (`weir simulate --state`) that enrol and renew while either is killed at any moment. Exit status 0 if
no device is ever locked out, and every record it was told is stored is stored once.
"""

import argparse
import base64
import calendar
import hashlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import paho.mqtt.client as mqtt

import rolling
from certificates import Client, Place, forge, record, run
from provisioning import new_key
from weir import binary, check, free_port


class Engine(Place):
    """The same with a listener for certificates that have expired, and users."""

    def __init__(self, folder):
        super().__init__(folder)
        self.recovery, self.http = free_port(), free_port()

    def start(self):
        command = [binary(), "run", "--data", str(self.data), "--mqtts", f"127.0.0.1:{self.port}", "--mqtts-recovery",
                   f"127.0.0.1:{self.recovery}", "--http", f"127.0.0.1:{self.http}"]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        lines = []
        for line in self.process.stdout:
            lines.append(line.strip())
            if lines[-1] == "ready":
                check(f"mqtts-recovery 127.0.0.1:{self.recovery}" in lines, f"listeners: {lines}")
                return
        raise AssertionError(f"the engine ended with {self.process.wait()}; see {self.log.name}")

    def list(self, *arguments):
        return json.loads(self.weir("ca", "list", *arguments, "--format", "json").stdout)["certificates"]


class Recovering(Client):
    """A client that comes to the other listener."""

    def connect(self):
        main, self.place.port = self.place.port, self.place.recovery
        try:
            return super().connect()
        finally:
            self.place.port = main


def agent(engine, folder, prefix, *more, seconds=2.0, rate=40):
    """The command of one agent, `PREFIX00`."""
    return [binary(), "simulate", "--mqtt", f"127.0.0.1:{engine.port}", "--ca", str(engine.certs / "ca.crt"), "--state",
            str(folder / "agents"), "--prefix", prefix, "--devices", "1", "--rate", str(rate), "--for", f"{seconds}s",
            "--format", "json", "--log", "warn,edge=debug", *map(str, more)]  # fmt: skip


def once(command, what):
    """Runs an agent to its end; all that it has recorded must be acknowledged."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    check(done.returncode == 0, f"{what}: {done.returncode} {done.stdout} {done.stderr[-3000:]}")
    report = json.loads(done.stdout)
    check(report["recorded"] > 0 and report["unacknowledged"] == 0, f"{what}: {report}")
    return report


def consistent(certificates, what):
    """The old one ends a day after the new one was first used, and not before."""
    by_serial = {c["serial"]: c for c in certificates}
    ends = {}
    for c in certificates:
        if c["proven"] and c["replaces"]:
            day = time.strptime(c["proven"], "%Y-%m-%dT%H:%M:%SZ")
            ends.setdefault(c["replaces"], []).append(calendar.timegm(day) + 86400)
    for serial, c in by_serial.items():
        if c["ends"]:
            at = calendar.timegm(time.strptime(c["ends"], "%Y-%m-%dT%H:%M:%SZ"))
            check(serial in ends and abs(at - min(ends[serial])) <= 1, f"{what}: {c} ends, and nothing that was used replaces it")
    usable = [c for c in certificates if c["state"] in ("valid", "replaced_soon")]
    check(usable, f"{what}: nothing works: {certificates}")
    return sum(1 for c in certificates if c["proven"])


def enrol(engine, folder, rng, kills):
    """From the claim to the first row, with a kill at any moment on the way; one certificate each, whatever was killed."""
    claim = ("--claim", engine.certs / "line-1.crt")
    began = time.monotonic()
    report = once(agent(engine, folder, "first-", *claim, seconds=1), "a first certificate")
    took = time.monotonic() - began
    check(report["renewed"] == 1, f"{report}")
    check([c["state"] for c in engine.list("first-00")] == ["valid"], "one certificate, in use")
    killed = 0
    for i in range(kills):
        name = f"killed-{i}-"
        command = agent(engine, folder, name, *claim, seconds=30)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.02, 0.5))
        if rng.random() < 0.25:
            engine.kill()
            engine.start()
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        once(agent(engine, folder, name, *claim, seconds=0.5), f"{name} after a kill")
        listed = engine.list(f"{name}00")
        check(sum(1 for c in listed if c["proven"]) == 1, f"{name}: {listed}")
    claims = json.loads(engine.weir("provision", "list", "--format", "json").stdout)["claims"]
    check(claims[0]["enrolled"] == kills + 1, f"the claim has let in as many as there are: {claims}")
    print(f"  from a claim to acknowledged records in {took:.1f} s; {killed} more killed on the way")


def rotate(engine, folder, rng, kills):
    """Renewals all the time, while agent and engine are killed at random moments."""
    killed = {"agent": 0, "engine": 0, "both": 0}
    process = None
    for _ in range(kills):
        if process is None:
            command = agent(engine, folder, "first-", "--rotate-every", "200ms", seconds=120)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(folder / "agent.log", "ab"))
        time.sleep(rng.uniform(0.1, 1.5))
        what = rng.choice(list(killed))
        killed[what] += 1
        if what != "agent":
            engine.kill()
        if what != "engine":
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = None
        if what != "agent":
            time.sleep(rng.uniform(0, 0.3))
            engine.start()
    if process is not None:
        check(process.poll() is None, f"the agent has ended; see {folder / 'agent.log'}")
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    report = once(agent(engine, folder, "first-", "--rotate-every", "500ms"), "after the kills")
    check(report["renewed"] >= 1, f"it renews no more: {report}")
    used = consistent(engine.list("first-00"), "first-00")
    check(used >= kills / 2, f"only {used} certificates were used")
    files = sorted(path.name for path in (folder / "agents/first-00/identity").iterdir())
    check(set(files) <= {"ca.pem", "current.pem", "new.pem"}, f"what is kept: {files}")
    print(f"  {used} certificates of one device were used while agent and engine were killed: {killed}")


def stored_once(engine):
    """After the engine has stopped: nothing is missing, nothing is double."""
    engine.weir("audit")
    rows = engine.query("SELECT device, count(*) AS n, count(DISTINCT (epoch, seq)) AS d FROM telemetry GROUP BY device")
    check(all(r["n"] == r["d"] for r in rows), f"double: {rows}")
    return sum(r["n"] for r in rows)


def enter(engine, stem, name):
    """Enters a certificate that was not made with `weir ca` into the registry, as if it had been."""
    path = engine.data / "access/registry.journal"

    def text(*more):
        return run("openssl", "x509", "-in", f"{stem}.crt", "-noout", *more).stdout.decode().strip()

    def when(flag):
        return calendar.timegm(time.strptime(text(flag).split("=")[1], "%b %d %H:%M:%S %Y GMT"))

    public = run("openssl", "x509", "-in", f"{stem}.crt", "-pubkey", "-noout").stdout
    der = run("openssl", "pkey", "-pubin", "-outform", "DER", stdin=public).stdout
    last = json.loads(path.read_text().splitlines()[-1])
    fact = {"issued": {
        "serial": text("-serial").split("=")[1].lower().lstrip("0"), "subject": f"urn:dev:main:{name}",
        "key": hashlib.sha256(der).hexdigest(), "not_before": when("-startdate") * 10**9, "not_after": when("-enddate") * 10**9,
    }}  # fmt: skip
    at = time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime())
    body = json.dumps({"n": last["n"] + 1, "at": at, "fact": fact}, separators=(",", ":"))[:-1]
    digest = hashlib.sha256(bytes.fromhex(last["hash"]) + body.encode()).hexdigest()
    with open(path, "a") as f:
        f.write(f'{body},"hash":"{digest}"}}\n')


def aged(engine, folder, name, begun, left):
    """A certificate that began `begun` hours ago and has `left` hours left (less than none: it has expired)."""

    def stamp(hours):
        return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + hours * 3600))

    stem = forge(engine, folder, name, stamp(-begun), stamp(left))
    enter(engine, stem, name)
    return stem


def give(folder, stem, name):
    """Makes a certificate that of an agent."""
    identity = folder / "agents" / name / "identity"
    identity.mkdir(parents=True)
    (identity / "current.pem").write_text(open(f"{stem}.key").read() + open(f"{stem}.crt").read())


def ask(client, name, key, qos=2, named=None, **more):
    """One request for the next certificate, and its answer."""
    number = f"{name}-{time.monotonic_ns()}"
    request = {"request_id": number} | ({"csr": open(f"{key}.csr").read()} if key else {}) | more
    client.wait(client.client.subscribe(f"devices/{named or name}/cert/res", qos=2)[1])
    client.client.publish(f"devices/{named or name}/cert/req", json.dumps(request), qos=qos)
    until = time.monotonic() + 15
    while time.monotonic() < until:
        for message in client.told:
            if message.topic.endswith("cert/res") and json.loads(message.payload).get("request_id") == number:
                return json.loads(message.payload)
        time.sleep(0.01)
    raise AssertionError(f"{name}: no answer; told {client.told}, gone {client.gone.is_set()}")


def foreign_client(engine, folder):
    """Any client renews by the same topics: QoS 1 and 2, MQTT 3.1.1 and 5, PEM and base64; refusals have their reasons."""
    certs = engine.certs
    for version, qos in ((mqtt.MQTTv5, 2), (mqtt.MQTTv311, 1)):
        name = f"hand-{qos}"
        client = Client(engine, certs / name, name, version)
        check(str(client.connect()) == "Success", f"{name}: {client.code}")
        key = new_key(folder, f"{name}-next")
        first = ask(client, name, key, qos)
        der = run("openssl", "req", "-in", f"{key}.csr", "-outform", "DER").stdout
        again = ask(client, name, None, qos, csr=base64.b64encode(der).decode())
        check(first.get("chain") and first["chain"] == again.get("chain"), f"{first} {again}")
        check(first["not_after"] > first["server_time"] > 1.7e18 and "BEGIN CERTIFICATE" in first["bundle"], f"{first}")
        states = [c["state"] for c in engine.list(name)]
        check(states == ["valid", "pending"], f"the old one counts until the new one is used: {states}")
        (folder / f"{name}-next.crt").write_text(first["chain"])
        renewed = Client(engine, key, name, version)
        check(str(renewed.connect()) == "Success", f"{name} with its new certificate: {renewed.code}")
        states = [c["state"] for c in engine.list(name)]
        check(states == ["replaced_soon", "valid"], f"the old one ends when the new one was used: {states}")
        same = ask(renewed, name, key, qos)
        check(same.get("error", {}).get("reason") == "same_key", f"the key it has: {same}")
        renewed.close()
        client.close()
    gateway = Client(engine, certs / "gw", "gw")
    check(str(gateway.connect()) == "Success", f"gw: {gateway.code}")
    answer = ask(gateway, "gw", key, named="meter-1")
    check(answer.get("error", {}).get("reason") == "child", f"a child of a gateway: {answer}")
    for i in range(3):
        check(ask(gateway, "gw", new_key(folder, f"gw-{i}")).get("chain"), f"successor {i}")
    answer = ask(gateway, "gw", new_key(folder, "gw-3"))
    check(answer.get("error", {}).get("reason") == "too_many", f"a fourth: {answer}")
    answer = ask(gateway, "gw", None)
    check(answer.get("error", {}).get("reason") == "bad_request", f"no signing request: {answer}")
    gateway.close()
    print("  any client renews by cert/req and cert/res; same_key, child, too_many, bad_request refused with their reasons")


def recover(engine, folder):
    """Certificates that have expired: renewed at the listener for that, which does nothing else; not if they are revoked."""
    certs = engine.certs
    client = Client(engine, folder / "late.pair", "late-00")
    said = str(client.connect())
    check("Success" not in said and not client.connected.is_set(), f"expired, at the main listener: {said}")
    client.close()
    for what, do in (
        ("publish", lambda c: c.client.publish("devices/late-00/telemetry", record(1), qos=1).mid),
        ("subscribe", lambda c: c.client.subscribe("devices/late-00/#", qos=1)[1]),
    ):
        client = Recovering(engine, folder / "late.pair", "late-00")
        check(str(client.connect()) == "Success", f"expired, where it may renew: {client.code}")
        client.wait(do(client))
        check(client.gone.wait(10), f"{what} at the recovery listener: not sent away")
        reason = getattr(client.end_properties, "ReasonString", "")
        check(reason.startswith("expired_certificate"), f"{what} at the recovery listener: {client.end} {reason}")
        client.close()
    will = Recovering(engine, folder / "late.pair", "late-00", will=("devices/late-00/status", "x", 1, True))
    check(str(will.connect()) == "Not authorized", f"a will at the recovery listener: {will.code}")
    will.close()
    client = Recovering(engine, folder / "late.pair", "late-00")
    check(str(client.connect()) == "Success", f"{client.code}")
    key = new_key(folder, "late-next")
    answer = ask(client, "late-00", key)
    check(answer.get("chain"), f"an expired certificate is not renewed: {answer}")
    client.close()
    (folder / "late-next.crt").write_text(answer["chain"])
    client = Client(engine, key, "late-00")
    check(str(client.connect()) == "Success", f"rescued: {client.code}")
    client.close()
    for what, files, name, expected in (
        ("revoked and expired", folder / "gone.pair", "gone-00", "Not authorized"),
        ("expired long ago", folder / "ancient.pair", "ancient-00", None),
        ("no device", certs / "line-1", "x", "Not authorized"),
    ):
        client = Recovering(engine, files, name)
        said = str(client.connect())
        check("Success" not in said, f"{what}: let in")
        check(expected is None or not client.connected.is_set() or said == expected, f"{what}: {said}")
        client.close()
    out = run("openssl", "s_client", "-connect", f"127.0.0.1:{engine.recovery}", "-CAfile", certs / "ca.crt",
              "-verify_return_error", "-ign_eof", ok=None, stdin=b"")  # fmt: skip
    check(b"certificate required" in out.stderr, f"nobody without a certificate: {out.stderr[-300:]}")
    report = once(agent(engine, folder, "old-", "--recovery", f"127.0.0.1:{engine.recovery}"), "an agent that was away for too long")
    check(report["renewed"] == 1, f"{report}")
    print("  expired: renewed at the recovery listener and nothing else; revoked, ancient, no device: refused; an agent rescued itself")


def due(engine, folder):
    """A certificate that is due: the engine says so, and the agent renews it by itself."""
    client = Client(engine, folder / "due.pair", "due-00")
    check(str(client.connect()) == "Success", f"due-00: {client.code}")
    client.wait(client.client.subscribe("devices/due-00/hello/ack", qos=1)[1])
    client.client.publish("devices/due-00/hello", b"\xa2\x66epochs\x80\x67session\x05", qos=1)
    until = time.monotonic() + 10
    while not client.told and time.monotonic() < until:
        time.sleep(0.01)
    check(client.told and b"\x6bcert_action\x65renew" in client.told[0].payload, f"not told: {client.told}")
    client.close()
    report = once(agent(engine, folder, "due-"), "an agent whose certificate is due")
    check(report["renewed"] == 1, f"{report}")
    check([c["state"] for c in engine.list("due-00")] == ["replaced_soon", "valid"], f"{engine.list('due-00')}")
    print("  due: the engine says so in hello/ack, and the agent renews by itself")


def expiring(engine, folder):
    """Certificates that nobody renews are listed, counted, and told of once."""
    named = [c["name"] for c in engine.list("--expiring", "14d")]
    check("short" in named and "first-00" not in named, f"--expiring 14d: {named}")
    check("short" not in [c["name"] for c in engine.list("--expiring", "3d")], "ten days are not three")
    engine.weir("users", "add", "ada", "--role", "viewer")
    engine.weir("tokens", "create", "ada", "--out", folder / "ada.token")
    time.sleep(1)
    token = (folder / "ada.token").read_text().strip()
    request = urllib.request.Request(f"http://127.0.0.1:{engine.http}/metrics", headers={"Authorization": f"Bearer {token}"})
    until = time.monotonic() + 10
    while True:
        text = urllib.request.urlopen(request, timeout=10).read().decode()
        if 'weir_certificates_expiring{within="14d"} 0' not in text or time.monotonic() > until:
            break
        time.sleep(0.2)
    lines = [line for line in text.splitlines() if line.startswith("weir_certificates_expiring")]
    count = {line.split('"')[1]: int(line.split()[-1]) for line in lines}
    check(count["14d"] >= 1, f"metrics: {lines}")
    print(f"  certificates that end soon: {count}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(dir=arguments.data) as folder:
        folder = pathlib.Path(folder)
        engine = Engine(folder)
        engine.weir("ca", "init")
        engine.weir("ca", "issue", "line-1", "--claim", "--days", "30", "--out", engine.certs)
        engine.weir("provision", "claim", "line-1", "--allow", "first-*", "--allow", "killed-*", "--quota", "100")
        engine.issue("gw", "--gateway", "--child", "meter-1")
        engine.issue("short", "--days", "10")
        engine.issue("hand-1")
        engine.issue("hand-2")
        for name, begun, left in (("late-00", 20, -1), ("gone-00", 20, -1), ("old-00", 20, -1), ("due-00", 20, 1)):
            stem = aged(engine, folder, name, begun, left)
            for extension in ("crt", "key"):
                (folder / f"{name[:-3]}.pair.{extension}").write_text(open(f"{stem}.{extension}").read())
        stem = aged(engine, folder, "ancient-00", 24 * 400, -24 * 100)
        for extension in ("crt", "key"):
            (folder / f"ancient.pair.{extension}").write_text(open(f"{stem}.{extension}").read())
        give(folder, folder / "old.pair", "old-00")
        give(folder, folder / "due.pair", "due-00")
        engine.weir("ca", "revoke", "gone-00", "--reason", "stolen")
        engine.start()
        try:
            foreign_client(engine, folder)
            recover(engine, folder)
            due(engine, folder)
            expiring(engine, folder)
            enrol(engine, folder, rng, max(2, arguments.kills // 3))
            rotate(engine, folder, rng, arguments.kills)
            engine.stop()
            rows = stored_once(engine)
            told = engine.query("SELECT subject FROM _audit WHERE action = 'certificate.expiring'")
            check([r["subject"] for r in told].count("short") == 1, f"told of once, although the engine was started again: {told}")
            acts = engine.query("SELECT outcome, reason, count(*) AS n FROM _audit WHERE action = 'certificate.renew' GROUP BY outcome, reason")
            seen = {(r["outcome"], r["reason"]) for r in acts}
            for reason in ("same_key", "child", "too_many", "bad_request"):
                check(("refused", reason) in seen, f"{reason} is not in the trail: {acts}")
            check(any(outcome == "ok" for outcome, _ in seen), f"renewals are not in the trail: {acts}")
            print(f"  {rows} rows, each stored once")
            (folder / "roll").mkdir()
            engine = Engine(folder / "roll")
            rolling.roll(engine, folder / "roll", agent, ask)
            (folder / "killed").mkdir()
            rolling.killed_switch(Place(folder / "killed"))
        except BaseException:
            print(open(engine.log.name).read()[-3000:], file=sys.stderr)
            raise
        finally:
            if engine.process and engine.process.poll() is None:
                engine.kill()
    print("rotation: passed")


if __name__ == "__main__":
    main()
