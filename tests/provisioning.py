"""Devices that come for the first time, with any client: part of `certificates.py`.

From the claim certificate of a group to the first row; lost answers; who is not allowed; many devices from a file.
"""

import base64
import json
import os
import signal
import subprocess
import time

from weir import binary, check


def sign(key, message, folder):
    """A signature with an OpenSSL key."""
    path = folder / "message"
    path.write_bytes(message)
    return subprocess.run(["openssl", "dgst", "-sha256", "-sign", key, path], capture_output=True, check=True).stdout


class Newcomer:
    """A device that has nothing but its serial number, and the claim certificate of its group."""

    def __init__(self, place, folder, serial, group="line-1", client_id=None, files=None):
        import certificates

        self.place, self.folder, self.serial, self.group = place, folder, serial, group
        self.client = certificates.Client(place, files or place.certs / group, client_id or f"{serial}-{os.urandom(3).hex()}")
        self.said = self.client.connect()
        check(str(self.said) == "Success", f"the claim of {group} is refused: {self.said}")
        self.client.wait(self.client.client.subscribe(f"provisioning/{group}/res", qos=1)[1])
        self.number = 0

    def ask(self, **request):
        """One request and its answer."""
        self.number += 1
        request_id = f"{self.serial}-{self.number}"
        body = json.dumps({"request_id": request_id} | request)
        self.client.client.publish(f"provisioning/{self.group}/req", body, qos=1)
        until = time.monotonic() + 15
        while time.monotonic() < until:
            for message in self.client.told:
                answer = json.loads(message.payload)
                if answer["request_id"] == request_id:
                    return answer
            time.sleep(0.01)
        raise AssertionError(f"{self.serial}: no answer to {request_id}; told {self.client.told}")

    def enrol(self, key, proof=None, serial=None, **more):
        """Asks for a certificate for this key (a stem of files)."""
        nonce = base64.b64decode(self.ask(step="nonce")["nonce"])
        request_id = f"{self.serial}-{self.number + 1}"
        proof = proof or sign(f"{key}.key", nonce + request_id.encode(), self.folder)
        request = {"serial": serial or self.serial, "hw": "rev2", "csr": open(f"{key}.csr").read(),
                   "proof": base64.b64encode(proof).decode()}  # fmt: skip
        return self.ask(**(request | more))

    def close(self):
        self.client.close()


def new_key(folder, name):
    stem = folder / name
    subprocess.run(["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                    f"{stem}.key", "-out", f"{stem}.csr", "-subj", "/CN=x"], check=True, capture_output=True)  # fmt: skip
    return stem


def one_device(place, folder):
    """From the claim to the first row; fifty lost answers; the certificate that is given is the one that works."""
    import certificates

    began = time.monotonic()
    key = new_key(folder, "new-1")
    device = Newcomer(place, folder, "new-1")
    answer = device.enrol(key)
    check(answer.get("id") == "new-1" and answer["labels"] == {"site": "north"} and answer["config"] == {"interval": 5},
          f"the answer: {answer}")  # fmt: skip
    again = [device.enrol(key) for _ in range(50)]
    check(all(a.get("chain") == answer["chain"] for a in again), "a repeated request has another certificate")
    device.close()
    (folder / "new-1.crt").write_text(answer["chain"])
    client = certificates.Client(place, key, "new-1")
    check(str(client.connect()) == "Success", f"the new certificate is refused: {client.code}")
    mid = client.client.publish("devices/new-1/telemetry", certificates.record(1), qos=1).mid
    check(str((client.wait(mid) or [None])[0]) == "Success", "the first record is refused")
    client.close()
    issued = json.loads(place.weir("ca", "list", "new-1", "--format", "json").stdout)["certificates"]
    check([c["state"] for c in issued] == ["valid"], f"certificates: {issued}")
    print(f"  from a claim to the first record, with 50 repeats: {time.monotonic() - began:.1f} s, one certificate")


def abuse(place, folder):
    """Whoever is not allowed is refused with a reason."""
    key, other = new_key(folder, "k"), new_key(folder, "other")
    device = Newcomer(place, folder, "new-2")
    for what, answer, reason in (
        ("a serial that no rule allows", device.enrol(key, serial="stranger-1"), "not_allowed"),
        ("a serial that is no name", device.enrol(key, serial="a/b"), "bad_serial"),
        ("another key for a device that is enrolled", device.enrol(other, serial="new-1"), "already_provisioned"),
        ("a proof of another key", device.enrol(key, proof=sign(f"{other}.key", b"x", folder)), "bad_proof"),
        ("no signing request", device.enrol(key, csr="bm8="), "bad_request"),
        ("a device that is barred", device.enrol(key, serial="gone"), "barred"),
        ("nothing", device.ask(), "bad_request"),
    ):
        check(answer.get("error", {}).get("reason") == reason, f"{what}: {answer}")
    # What it signed on another connection is worth nothing here.
    nonce = base64.b64decode(device.ask(step="nonce")["nonce"])
    elsewhere = Newcomer(place, folder, "new-3")
    answer = elsewhere.ask(serial="new-3", csr=open(f"{key}.csr").read(),
                           proof=base64.b64encode(sign(f"{key}.key", nonce + b"new-3-1", folder)).decode())  # fmt: skip
    check(answer.get("error", {}).get("reason") == "bad_proof", f"a foreign nonce: {answer}")
    check(device.enrol(key).get("id") == "new-2", "the third is allowed")
    check(elsewhere.enrol(other).get("error", {}).get("reason") == "quota", "the quota of two is used up")
    place.weir("provision", "reopen", "new-2")
    time.sleep(1)
    check(device.enrol(other).get("id") == "new-2", "an operator let it enrol again")
    place.weir("provision", "close", "line-1")
    time.sleep(1)
    check(device.enrol(other).get("error", {}).get("reason") == "no_claim", "the claim is closed")
    for topic in ("devices/new-2/telemetry", "provisioning/line-2/req"):
        thief = Newcomer(place, folder, "thief")
        thief.client.client.publish(topic, b"{}", qos=1)
        check(thief.client.gone.wait(10), f"a claim may publish on {topic}")
        thief.close()
    device.close()
    elsewhere.close()
    print("  refused with their reasons: not_allowed, bad_serial, already_provisioned, bad_proof, bad_request, barred, quota, no_claim")


def batch(place, folder, rows):
    """Many devices from a file, killed twice on the way, resumed; a repetition changes nothing."""
    path = folder / "fleet.csv"
    with open(path, "w") as f:
        f.write("serial,hw,group,labels\n")
        f.writelines(f"batch-{i},rev{i % 3},line-2,site=s{i % 7};floor={i % 4}\n" for i in range(rows))
        f.write("bad/serial,rev1,line-2,\n")
    command = [binary(), "provision", "batch", str(path), "--data", str(place.data)]
    results = folder / "fleet.csv.results"
    kills = 0
    for part in (0.2, 0.6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            if results.exists() and results.read_bytes().count(b"\n") > rows * part:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    done = subprocess.run(command, capture_output=True, timeout=120)
    check(done.returncode == 1, f"one row is wrong: {done}")
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    check([line["row"] for line in lines] == list(range(1, rows + 2)), "each row has one line, in order")
    bad = [line for line in lines if line["status"] not in ("added", "unchanged")]
    check(len(bad) == 1 and bad[0]["serial"] == "bad/serial", f"{bad[:3]}")
    os.rename(results, folder / "first.results")
    subprocess.run(command, capture_output=True, timeout=120)
    again = [json.loads(line)["status"] for line in results.read_text().splitlines()]
    check(again == ["unchanged"] * rows + ["error"], "a repetition changes something")
    print(f"  {rows} devices registered from a file, killed {kills} times: {done.stdout.decode().strip().split('; results')[0]}")
    place.weir("ca", "issue", "line-2", "--claim", "--days", "30", "--out", place.certs)
    place.weir("provision", "claim", "line-2", "--quota", "100000")
    time.sleep(1)
    device = Newcomer(place, folder, "batch-7", "line-2")
    answer = device.enrol(new_key(folder, "batch-7"))
    check(answer.get("labels") == {"site": "s0", "floor": "3"}, f"a registered device: {answer}")
    device.close()


def everything(place, folder, rows):
    """All of it."""
    config = folder / "first.json"
    config.write_text('{"interval": 5}')
    place.weir("ca", "issue", "line-1", "--claim", "--days", "30", "--out", place.certs)
    place.weir("provision", "claim", "line-1", "--allow", "new-*", "--allow", "gone", "--quota", "2", "--label", "site=north",
               "--config", config)  # fmt: skip
    time.sleep(1)
    one_device(place, folder)
    abuse(place, folder)
    batch(place, folder, rows)
