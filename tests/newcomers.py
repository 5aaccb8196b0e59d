"""Devices that come with something of their own, and clients without a certificate: part of `certificates.py`.

Tokens and vouchers over HTTPS; certificates of a factory, honest and forged; what a device is wanted to be first, over
kill -9; users with a token at the device listener; a flood from one connection. Any client, OpenSSL for all cryptography;
in the end no secret stands in any log or file.
"""

import base64
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import statistics
import sys
import threading
import time

import paho.mqtt.client as mqtt

import certificates
import provisioning
from weir import check

CONFIG = """
[mqtt]
user_tokens = true
[http]
tls = true
[limits]
failed_logins = 30
enrolments = 300
packets_per_second = 2000
"""


def openssl(*command, stdin=None):
    return certificates.run("openssl", *command, stdin=stdin).stdout


def post(place, body, source="127.0.0.1", content="application/json", path="/v1/provision", method="POST", token=None):
    """Status and answer of a request over HTTPS."""
    context = ssl.create_default_context(cafile=str(place.data / "ca/ca.crt"))
    connection = http.client.HTTPSConnection("127.0.0.1", place.http_port, context=context, timeout=30,
                                             source_address=(source, 0))  # fmt: skip
    headers = {"Content-Type": content} | ({"Authorization": f"Bearer {token}"} if token else {})
    text = body if isinstance(body, (bytes, str)) else json.dumps(body)
    connection.request(method, path, text, headers)
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, json.loads(read) if read else None


def ask(place, key, serial, source="127.0.0.1", **shown):
    """A request for a certificate for this key (a stem of files)."""
    body = {"request_id": "r-1", "serial": serial, "hw": "rev9", "csr": open(f"{key}.csr").read()} | shown
    return post(place, body, source)


def refused(answer):
    """Why, as the answer says; also in the form of every answer of the API."""
    status, body = answer
    error = body.get("error", {})
    check(status >= 400 and body["status"] == status and body["detail"] == error["text"] and body["request_id"] == "r-1",
          f"a refusal: {answer}")  # fmt: skip
    return error["reason"]


def token_of(place, device, *more):
    done = place.weir("provision", "token", device, *more)
    token = done.stdout.decode().strip()
    check(re.fullmatch("enrol_[0-9a-f]{64}", token), f"a token is printed, and nothing else: {done}")
    SECRETS.append(token)
    return token


SECRETS = []


def tokens(place, folder):
    """A token works once, in its time, for its device; what was wrong is not told."""
    token = token_of(place, "tok-1", "--group", "line-t", "--label", "site=east", "--for", "1h")
    key, other = provisioning.new_key(folder, "tok-1"), provisioning.new_key(folder, "tok-other")
    time.sleep(0.5)
    wrong = "enrol_" + "0" * 64
    status, first = ask(place, key, "tok-1", token=token)
    check(status == 200 and first["id"] == "tok-1" and first["group"] == "line-t" and first["labels"] == {"site": "east"}
          and first["config"] == {"interval": 7} and first["bundle"], f"the answer: {status} {first}")  # fmt: skip
    again = ask(place, key, "tok-1", token=token)
    check(again[0] == 200 and again[1]["chain"] == first["chain"], "a repeated request has another certificate")
    check(refused(ask(place, other, "tok-1", token=token)) == "bad_token", "a token works twice")
    short = token_of(place, "tok-2", "--for", "1s")
    time.sleep(1.5)
    answers = [ask(place, other, serial, token=shown)
               for serial, shown in (("tok-2", short), ("tok-2", wrong), ("tok-1", wrong), ("nobody-1", wrong))]  # fmt: skip
    check(all(answer == answers[0] for answer in answers), f"an answer tells what was wrong: {answers}")
    check(refused(answers[0]) == "bad_token" and answers[0][0] == 403, f"{answers[0]}")
    lines = open(f"{key}.csr").read().splitlines()
    body = lines[2]
    forged = "\n".join([*lines[:2], body[:10] + ("A" if body[10] != "A" else "B") + body[11:], *lines[3:]])
    for what, shown, reason in (
        ("a signing request that its key has not signed", {"csr": forged, "token": token}, "bad_request"),
        ("no token", {}, "bad_request"),
        ("both", {"token": token, "voucher": "{}", "voucher_sig": "AA=="}, "bad_request"),
        ("a nonce", {"step": "nonce", "token": token}, "bad_request"),
        ("a serial that is no name", {"serial": "a/b", "token": token}, "bad_serial"),
    ):
        check(refused(ask(place, key, shown.pop("serial", "tok-1"), **shown)) == reason, what)
    status, body = post(place, "{hello")
    check(status == 400 and body["error"]["reason"] == "bad_request", f"no map: {status} {body}")
    # How long a refusal takes: for a device that is expected, and for one that nobody knows.
    times = {"tok-2": [], "nobody-2": []}
    for _ in range(9):
        for serial, took in times.items():
            began = time.monotonic()
            ask(place, other, serial, source="127.0.0.3", token=wrong)
            took.append(time.monotonic() - began)
    known, unknown = (statistics.median(took) * 1000 for took in times.values())
    # Whoever guesses is soon not heard any more; others are.
    statuses = [ask(place, other, "tok-1", source="127.0.0.2", token=f"{wrong[:-2]}{n:02x}")[0] for n in range(40)]
    check(statuses[-1] == 429 and statuses.count(403) <= 35, f"guesses: {statuses}")
    check(ask(place, key, "tok-1", token=token)[0] == 200, "another address is refused for it")
    done = place.weir("provision", "token", "a/b", ok=False)
    check(done.returncode == 2 and b"device" in done.stderr, f"{done}")
    done = place.weir("provision", "token", "a", "--for", "900days", ok=False)
    check(done.returncode == 2 and b"90days" in done.stderr, f"{done}")
    (folder / "tok-1.crt").write_text(first["chain"])
    print(f"  a token works once; refusals of a known and an unknown device after {known:.1f} and {unknown:.1f} ms; "
          f"{statuses.count(403)} guesses heard of 40")  # fmt: skip


def certificate(folder, ca, stem, subject, san=None, serial=None, end="99991231235959Z"):
    """A certificate that another authority (a stem of files) gives: as a factory does, or as one that forges ours."""
    work = folder / f"{stem}.ca"
    work.mkdir()
    (work / "index").write_text("")
    (work / "attr").write_text("unique_subject = no\n")
    (work / "serial").write_text(serial.upper().rjust(len(serial) + len(serial) % 2, "0") if serial else "0A")
    names = f"subjectAltName={san}\n" if san else ""
    (work / "conf").write_text(
        f"[ca]\ndefault_ca=d\n[d]\ndatabase={work}/index\nnew_certs_dir={work}\nserial={work}/serial\ndefault_md=sha256\n"
        "policy=p\nx509_extensions=x\n[p]\ncommonName=optional\norganizationName=optional\nserialNumber=optional\n"
        f"[x]\nbasicConstraints=CA:FALSE\n{names}"
    )
    stem = folder / stem
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{stem}.key", "-out",
            f"{stem}.csr", "-subj", subject)  # fmt: skip
    openssl("ca", "-batch", "-config", work / "conf", "-in", f"{stem}.csr", "-out", f"{stem}.crt", "-notext", "-cert",
            f"{ca}.crt", "-keyfile", f"{ca}.key", "-startdate", "20200101000000Z", "-enddate", end)  # fmt: skip
    return stem


def authority(folder, name):
    stem = folder / name
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{stem}.key", "-out",
            f"{stem}.crt", "-subj", f"/O={name}/CN={name} root", "-days", "3650", "-addext",
            "keyUsage=critical,keyCertSign")  # fmt: skip
    return stem


def made_by(place, folder, serial, files, factory):
    """A device with a certificate of a factory."""
    return provisioning.Newcomer(place, folder, serial, factory, files=files)


def factory(place, folder):
    """A device comes with the certificate that its factory gave it, and leaves with one of ours."""
    acme, other = authority(folder, "acme"), authority(folder, "other")
    done = place.weir("provision", "factory", "add", "acme", "--ca", folder / "tok-1.crt", "--group", "line-z", ok=False)
    check(done.returncode == 2 and b"tok-1.crt" in done.stderr and b"authority" in done.stderr, f"a leaf is no CA: {done}")
    place.weir("provision", "factory", "add", "acme", "--ca", f"{acme}.crt", "--group", "line-z", "--id-from", "serialNumber",
               "--allow", "zt-*", "--quota", "2")  # fmt: skip
    files = {n: certificate(folder, acme, f"f-{n}", f"/O=acme/serialNumber=zt-{n}/CN=any") for n in (1, 2, 3)}
    foreign = certificate(folder, acme, "f-foreign", "/serialNumber=elsewhere-1")
    nameless = certificate(folder, acme, "f-nameless", "/CN=any")
    unknown = certificate(folder, other, "f-unknown", "/serialNumber=zt-9")
    ended = certificate(folder, acme, "f-ended", "/serialNumber=zt-8", end="20240101000000Z")
    place.issue("own-1")
    issued = json.loads(place.weir("ca", "list", "own-1", "--format", "json").stdout)["certificates"][0]
    forged = [certificate(folder, acme, f"f-forged-{n}", f"/serialNumber=zt-1{n}", san=f"URI:{uri}", serial=serial)
              for n, (uri, serial) in enumerate((("urn:dev:main:own-1", None), ("urn:dev:main:own-1", issued["serial"]),
                                                 ("urn:claim:main:line-1", None), ("urn:user:main:ada", None)))]  # fmt: skip
    time.sleep(1.5)
    for what, stem in (("no serial number", nameless), ("another authority", unknown), ("an end in the past", ended),
                       *((f"a forged name {n}", stem) for n, stem in enumerate(forged))):  # fmt: skip
        for client_id in ("own-1", "zt-1"):
            client = certificates.Client(place, stem, client_id)
            said = client.connect()
            check(str(said) != "Success" and not client.client.is_connected(), f"{what} got in: {said}")
            client.close()
    key, second = provisioning.new_key(folder, "zt-1"), provisioning.new_key(folder, "zt-2")
    device = made_by(place, folder, "zt-1", files[1], "acme")
    check(device.enrol(second, serial="zt-2")["error"]["reason"] == "other_serial", "it asks for another")
    check(device.enrol(key, proof=b"x")["error"]["reason"] == "bad_proof", "without the key")
    answer = device.enrol(key)
    check(answer.get("id") == "zt-1" and answer["group"] == "line-z" and answer["config"] == {"mode": "first"}, f"{answer}")
    check(device.enrol(key)["chain"] == answer["chain"], "a repeated request has another certificate")
    check(device.enrol(second)["error"]["reason"] == "already_provisioned", "another key")
    outsider = made_by(place, folder, "elsewhere-1", foreign, "acme")
    check(outsider.enrol(second)["error"]["reason"] == "not_allowed", "no rule lets it in")
    outsider.close()
    two = made_by(place, folder, "zt-2", files[2], "acme")
    check(two.enrol(second).get("id") == "zt-2", "the second")
    two.close()
    three = made_by(place, folder, "zt-3", files[3], "acme")
    check(three.enrol(provisioning.new_key(folder, "zt-3"))["error"]["reason"] == "quota", "the quota is used up")
    for topic in ("devices/zt-1/telemetry", "provisioning/line-z/req", "provisioning/acme/res"):
        thief = made_by(place, folder, "zt-1", files[1], "acme")
        thief.client.client.publish(topic, b"{}", qos=1)
        check(thief.client.gone.wait(10), f"a factory's certificate opens {topic}")
        thief.close()
    listed = json.loads(place.weir("provision", "factory", "list", "--format", "json").stdout)["factories"][0]
    check((listed["enrolled"], listed["quota"], listed["id_from"]) == (2, 2, "serialNumber"), f"{listed}")
    place.weir("provision", "factory", "remove", "acme")
    check(three.client.gone.wait(5), "a connection outlives its factory")
    three.close()
    device.close()
    time.sleep(1)
    late = certificates.Client(place, files[1], "zt-1")
    check(str(late.connect()) != "Success", "the factory is gone")
    late.close()
    (folder / "zt-1.crt").write_text(answer["chain"])
    check(place.weir("provision", "factory", "remove", "acme", ok=False).returncode == 1, "there is none")
    print(f"  a factory's devices: two enrolled, {3 + len(forged)} certificates that open nothing, one rule taken away")


def voucher(place, folder):
    """A statement of somebody who vouches for the device."""
    signer = folder / "voucher"
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{signer}.key")
    openssl("pkey", "-in", f"{signer}.key", "-pubout", "-out", f"{signer}.pem")
    done = place.weir("provision", "voucher-key", "add", "acme", "--key", folder / "acme.crt", "--group", "line-z", ok=False)
    check(done.returncode == 2 and b"acme.crt" in done.stderr, f"a certificate is no key: {done}")
    place.weir("provision", "voucher-key", "add", "acme", "--key", f"{signer}.pem", "--group", "line-z")
    time.sleep(0.5)

    def digest(key):
        public = openssl("pkey", "-in", f"{key}.key", "-pubout", "-outform", "DER")
        return hashlib.sha256(public).hexdigest()

    def shown(statement, by=f"{signer}.key", text=None):
        text = text or json.dumps(statement)
        signature = provisioning.sign(by, text.encode(), folder)
        return {"voucher": text, "voucher_sig": base64.b64encode(signature).decode()}

    key, other = provisioning.new_key(folder, "vou-1"), provisioning.new_key(folder, "vou-other")
    good = {"serial": "vou-1", "key": digest(key), "owner": "main"}
    for what, by, statement, reason in (
        ("another owner", f"{signer}.key", good | {"owner": "elsewhere"}, "other_owner"),
        ("another key", f"{signer}.key", good | {"key": digest(other)}, "other_key"),
        ("another serial", f"{signer}.key", good | {"serial": "vou-2"}, "bad_voucher"),
        ("a condition that nobody knows", f"{signer}.key", good | {"until": 5}, "bad_voucher"),
        ("signed by itself", f"{key}.key", good, "bad_voucher"),
    ):
        check(refused(ask(place, key, "vou-1", **shown(statement, by))) == reason, what)
    status, answer = ask(place, key, "vou-1", **shown(good))
    check(status == 200 and answer["id"] == "vou-1" and answer["group"] == "line-z", f"{status} {answer}")
    again = ask(place, key, "vou-1", **shown(good))
    check(again[1]["chain"] == answer["chain"], "a repeated request has another certificate")
    place.weir("provision", "voucher-key", "remove", "acme")
    time.sleep(0.5)
    check(refused(ask(place, key, "vou-1", **shown(good))) == "bad_voucher", "the key is gone")
    (folder / "vou-1.crt").write_text(answer["chain"])
    print("  a voucher counts for its device, its key and its owner, as long as its signer is known")


def first_configuration(place, folder, admin):
    """What a device is wanted to be first is written when it first comes, over kill -9; later changes stay."""
    def get(path):
        status, body = post(place, None, path=path, method="GET", token=admin)
        check(status == 200, f"{path}: {status} {body}")
        return body

    def come(name):
        client = certificates.Client(place, folder / name, name)
        check(str(client.connect()) == "Success", f"{name}: {client.code}")
        mid = client.client.publish(f"devices/{name}/telemetry", certificates.record(1), qos=1).mid
        check(str((client.wait(mid) or [None])[0]) == "Success", f"{name}: its first record is refused")
        client.close()

    before = get("/v1/groups").get("groups", [])
    check(not any(group["name"] == "line-t" for group in before), "a group of devices that never came")
    place.kill()
    place.start()
    for name in ("tok-1", "zt-1", "vou-1"):
        come(name)
    for name, group, config in (("tok-1", "line-t", {"interval": 7}), ("zt-1", "line-z", {"mode": "first"}),
                                ("vou-1", "line-z", {"mode": "first"})):  # fmt: skip
        document = get(f"/v1/devices/{name}/shadow")
        check((document["desired"], document["dv"]) == (config, 1), f"what is wanted of {name}: {document}")
        by = {meta["by"] for meta in document["metadata"]["desired"].values()}
        check(by == {"provisioning"}, f"by whom: {document}")
        device = get(f"/v1/devices/{name}")
        check(device["groups"] == [group] and device["enrolled"]["group"] == group and device["enrolled"]["hw"],
              f"{device}")  # fmt: skip
    status, _ = post(place, {"interval": 9}, path="/v1/devices/tok-1/shadow", method="PATCH", token=admin,
                     content="application/merge-patch+json")  # fmt: skip
    check(status == 200, "an operator's change")
    place.kill()
    place.start()
    come("tok-1")
    check(get("/v1/devices/tok-1/shadow")["desired"] == {"interval": 9}, "an operator's change was undone")
    status, rows = post(place, {"sql": "SELECT device, groups, labels, hw, enrolled IS NOT NULL AS e FROM devices ORDER BY device"},
                        path="/v1/query", token=admin)  # fmt: skip
    check(status == 200, f"{rows}")
    rows = {row["device"]: row for row in rows}
    check(json.loads(rows["tok-1"]["labels"]) == {"site": "east"} and rows["tok-1"]["hw"] == "rev9"
          and rows["zt-1"]["groups"] == "line-z" and rows["tok-1"]["e"], f"{rows}")  # fmt: skip
    members = get("/v1/groups/line-z")["devices"]
    check(members == ["zt-1", "vou-1"], f"members: {members}")
    print("  first configurations, groups and labels, over kill -9; an operator's change stays")


def users(place, folder, operator):
    """A user at the device listener with name and token, and nobody else."""
    name, token = operator

    def client(user, password, version=mqtt.MQTTv5, client_id="app-1"):
        client = certificates.Client(place, None, client_id, version, authority=place.data / "ca/ca.crt")
        if user is not None:
            client.client.username_pw_set(user, password)
        return client

    wrong = token[:-4] + ("0000" if not token.endswith("0000") else "1111")
    for what, user, password in (("no name", None, None), ("a wrong token", name, wrong), ("another's name", "eve", token),
                                 ("no password", name, None), ("no token", name, "secret"), ("in the wrong place", token, name)):  # fmt: skip
        for version in (mqtt.MQTTv5, mqtt.MQTTv311):
            tried = client(user, password, version)
            said = tried.connect()
            check(str(said) == "Bad user name or password", f"{what}: {said}")
            tried.close()
    good = client(name, token)
    check(str(good.connect()) == "Success", f"a user with a token: {good.code}")
    check(good.wait(good.client.subscribe("devices/+/telemetry", qos=1)[1]), "no SUBACK")
    mid = good.client.publish("plant/note", b"x", qos=1).mid
    check(str((good.wait(mid) or [None])[0]) == "Success", "an operator may publish there")
    device = certificates.Client(place, folder / "tok-1", "tok-1")
    check(str(device.connect()) == "Success", "devices need their certificates as before")
    device.client.publish("devices/tok-1/telemetry", certificates.record(2), qos=1)
    until = time.monotonic() + 10
    while not good.told and time.monotonic() < until:
        time.sleep(0.01)
    check(good.told, "the user hears devices")
    device.close()
    intruder = client(name, token, client_id="tok-1")
    check(str(intruder.connect()) == "Success", "any client identifier: it names no device here")
    intruder.client.publish("devices/tok-1/telemetry", certificates.record(3), qos=1)
    check(intruder.gone.wait(10), "a user speaks for a device")
    intruder.close()
    place.weir("tokens", "revoke", token.split("_")[1])
    began = time.monotonic()
    check(good.gone.wait(5) and str(good.end) == "Not authorized", "a revoked token leaves its connection open")
    took = time.monotonic() - began
    good.close()
    late = client(name, token)
    check(str(late.connect()) == "Bad user name or password", "a revoked token opens")
    late.close()
    # Who guesses is not heard any more.
    said = set()
    for n in range(40):
        guess = client(name, f"{wrong[:-2]}{n:02x}")
        said.add(str(guess.connect()))
        guess.close()
    check("Connection rate exceeded" in said, f"guesses: {said}")
    print(f"  a user with a token hears devices and speaks for none; cut {took:.2f} s after it was revoked")


def flood(place, folder):
    """One connection sends packets as fast as it can; another's messages are all acknowledged meanwhile."""
    place.issue("flood-1")
    place.issue("calm-1")
    time.sleep(1)
    stop, sent, pongs = threading.Event(), [0], [0]
    context = ssl.create_default_context(cafile=str(place.certs / "ca.crt"))
    context.load_cert_chain(place.certs / "flood-1.crt", place.certs / "flood-1.key")
    raw = context.wrap_socket(socket.create_connection(("127.0.0.1", place.port)), server_hostname="localhost")
    raw.sendall(b"\x10\x13\x00\x04MQTT\x04\x02\x00\x3c\x00\x07flood-1")
    check(raw.recv(4) == b"\x20\x02\x00\x00", "flood-1 is refused")
    topic = b"devices/flood-1/commands"
    one = b"\x00\x01" + len(topic).to_bytes(2, "big") + topic + b"\x01"
    parts = (b"\xc0\x00" * 400 + (b"\x82" + bytes([len(one)]) + one) * 50 + b"\x40\x02\x00\x07" * 100)
    raw.settimeout(0.5)

    def write():
        while not stop.is_set():
            try:
                raw.sendall(parts)
                sent[0] += 550
            except (TimeoutError, ssl.SSLWantWriteError):
                # Half of it may be out: what comes now would be no packet.
                return
            except OSError:
                return

    def read():
        while not stop.is_set():
            try:
                pongs[0] += raw.recv(65536).count(b"\xd0\x00")
            except (TimeoutError, ssl.SSLWantReadError):
                continue
            except OSError:
                return

    threads = [threading.Thread(target=target, daemon=True) for target in (read, write)]
    [thread.start() for thread in threads]
    calm = certificates.Client(place, place.certs / "calm-1", "calm-1")
    check(str(calm.connect()) == "Success", f"during a flood: {calm.code}")
    began, seq = time.monotonic(), 0
    while time.monotonic() < began + 4:
        seq += 1
        mid = calm.client.publish("devices/calm-1/telemetry", certificates.record(seq), qos=1).mid
        check(str((calm.wait(mid) or [None])[0]) == "Success", f"record {seq} during a flood")
    took = time.monotonic() - began
    stop.set()
    [thread.join() for thread in threads]
    raw.close()
    calm.close()
    metrics = place.metrics()
    paced = metrics['weir_mqtt_rate_limited_total{limit="packets"}']
    check(paced > 0, f"nobody was held to the rate: {metrics}")
    check(metrics["weir_mqtt_packets_total"] > seq, f"{metrics}")
    # A second's worth at once and what one read has brought, and then the rate.
    check(pongs[0] < 2000 * (took + 1) + 16_000, f"{pongs[0]} packets were answered in {took:.1f} s")
    print(f"  a flood of {sent[0] / took:.0f} packets/s sent, {pongs[0] / took:.0f} pings/s answered; another published {seq} records, all "
          "acknowledged")  # fmt: skip


def subscriptions(place):
    """A session has so many subscriptions, and no more."""
    place.issue("many-1")
    time.sleep(1)
    client = certificates.Client(place, place.certs / "many-1", "many-1")
    check(str(client.connect()) == "Success", f"many-1: {client.code}")
    filters = [(f"devices/many-1/shadow/s{n}/delta", 1) for n in range(1003)]
    codes = []
    for at in range(0, len(filters), 200):
        mid = client.client.subscribe(filters[at : at + 200])[1]
        codes += [str(code) for code in (client.wait(mid) or [[]])[0]]
    check(codes.count("Granted QoS 1") == 1000 and codes[1000:] == ["Quota exceeded"] * 3, f"{codes[995:]}")
    client.close()
    check(place.metrics()["weir_mqtt_subscriptions_refused_total"] == 3, "they are counted")


def secrets(place, folder):
    """No secret stands where it is not meant to."""
    parts = [secret.rsplit("_", 1)[-1].encode() for secret in SECRETS]
    looked = 0
    for path in [place.log.name, *(p for p in place.data.rglob("*") if p.is_file() and p.suffix != ".key")]:
        text = open(path, "rb").read()
        looked += len(text)
        for part in parts:
            check(part not in text, f"a secret stands in {path}")
    check(b"TRACE" in open(place.log.name, "rb").read(), "the log is at trace level")
    print(f"  {len(parts)} secrets in none of {looked >> 10} KiB of logs and files")


def everything(folder):
    """All of it, on an engine of its own."""
    folder = folder / "newcomers"
    folder.mkdir()
    place = certificates.Place(folder, CONFIG, dict(os.environ, WEIR_LOG="trace,h2=info"))
    place.weir("ca", "init")
    for name, text in (("t", '{"interval": 7}'), ("z", '{"mode": "first"}')):
        (folder / f"{name}.json").write_text(text)
        place.weir("provision", "config", f"line-{name}", folder / f"{name}.json")
    (folder / "bad.json").write_text("[1]")
    done = place.weir("provision", "config", "line-t", folder / "bad.json", ok=False)
    check(done.returncode == 2 and b"bad.json" in done.stderr and b"object" in done.stderr, f"{done}")
    made = {}
    for user, role in (("ada", "operator"), ("root", "admin")):
        place.weir("users", "add", user, "--role", role)
        made[user] = place.weir("tokens", "create", user).stdout.decode().strip()
        SECRETS.append(made[user])
    place.admin = made["root"]
    place.start()
    try:
        tokens(place, folder)
        factory(place, folder)
        voucher(place, folder)
        first_configuration(place, folder, made["root"])
        flood(place, folder)
        subscriptions(place)
        users(place, folder, ("ada", made["ada"]))
        place.stop()
        reasons = {row["reason"] for row in place.query("SELECT DISTINCT reason FROM _audit WHERE outcome = 'refused'")}
        expected = {"bad_token", "bad_voucher", "other_owner", "other_key", "other_serial", "not_allowed", "quota",
                    "already_provisioned", "unknown_token", "other_user", "too_many_failures", "no_token"}  # fmt: skip
        check(expected <= reasons, f"refusals that are not in the trail: {expected - reasons}")
        place.weir("audit", "--trail")
        secrets(place, folder)
    except BaseException:
        print(open(place.log.name).read()[-3000:], file=sys.stderr)
        raise
    finally:
        if place.process and place.process.poll() is None:
            place.kill()
