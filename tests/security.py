"""Users, tokens, rights and the audit trail as they are met from outside: with real processes, under kill -9.

    target/venv/bin/python tests/security.py [--kills N]

At the end every secret that was used is looked for in all that was written or printed: logs at trace level, errors,
metrics, command lines, and every file of the data directory.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.request

from weir import Engine, binary, check, duck, files, free_port

ROLES = ["viewer", "analyst", "engineer", "operator", "admin"]
PRINTED = []


def weir(*args, env=None, ok=True, timeout=120):
    """One `weir` command; what it prints is kept for the search at the end."""
    full = {k: v for k, v in os.environ.items() if k not in ("WEIR_TOKEN", "WEIR_TOKEN_FILE", "WEIR_DATA")}
    full.update({"WEIR_LOG": "trace"}, **(env or {}))
    r = subprocess.run([binary(), *map(str, args)], capture_output=True, text=True, timeout=timeout, env=full)
    if args[:2] != ("tokens", "create"):
        PRINTED.append((f"weir {' '.join(map(str, args))}", r.stdout + r.stderr))
    check(ok is None or (r.returncode == 0) == ok, f"weir {args} ended with {r.returncode}: {r.stdout}{r.stderr[-2000:]}")
    return r


def until(what, patience, text):
    """Waits until `what` holds; gives how long it took."""
    began = time.monotonic()
    while not what():
        check(time.monotonic() - began < patience, text)
        time.sleep(0.02)
    return time.monotonic() - began


class Secrets:
    """The users of a data directory, with a token each in a file of its own."""

    def __init__(self, data, folder):
        self.data, self.folder, self.tokens = data, folder, {}
        for role in ROLES:
            weir("users", "add", f"u-{role}", "--role", role, "--data", data)
            self.make(role, f"u-{role}")

    def make(self, name, user, *more):
        path = self.file(name)
        weir("tokens", "create", user, "--out", path, "--data", self.data, *more)
        check(os.stat(path).st_mode & 0o777 == 0o600, "a token file is for its owner")
        self.tokens[name] = path.read_text().strip()
        check(re.fullmatch("weir_[0-9a-f]{16}_[0-9a-f]{64}", self.tokens[name]), "a token has its form")

    def file(self, name):
        return self.folder / f"{name}.token"

    def id(self, name):
        return self.tokens[name].split("_")[1]


def commands(engine, secrets):
    """The command line finds the token in a file or in the environment, and says what is wrong without one."""
    devices = ["devices", "list", "--url", engine.url]
    r = weir(*devices, ok=False)
    check("weir tokens create" in r.stderr, f"what to do without a token: {r.stderr}")
    weir(*devices, "--token-file", secrets.file("viewer"))
    weir(*devices, env={"WEIR_TOKEN": secrets.tokens["viewer"]})
    r = weir(*devices, "--token-file", secrets.folder / "nothing", ok=False)
    check(r.returncode == 2 and "nothing" in r.stderr, f"a file that is not there: {r.stderr}")
    r = weir("shadow", "set", "pump-1", "limit=7", "--url", engine.url, "--token-file", secrets.file("viewer"), ok=False)
    check("needs engineer" in r.stderr, f"a role that is too small: {r.stderr}")
    weir("shadow", "set", "pump-1", "limit=7", "--url", engine.url, "--token-file", secrets.file("operator"))
    r = weir("query", "--url", engine.url, "SELECT 1", "--token-file", secrets.file("viewer"), ok=False)
    check("needs analyst" in r.stderr, f"SQL is not for viewers: {r.stderr}")
    weir("query", "--url", engine.url, "SELECT 1", "--token-file", secrets.file("analyst"))
    weir("flush", "--url", engine.url, "--token-file", secrets.file("operator"))
    weir("alerts", "list", "--url", engine.url, "--token-file", secrets.file("viewer"))
    r = weir("devices", "list", "--url", "http://192.0.2.1:9", "--token-file", secrets.file("viewer"), ok=False)
    check(r.returncode == 2 and "in the clear" in r.stderr, f"a token stays on this machine: {r.stderr}")
    for args, text in [
        (["users", "add", "u-viewer"], "already"),
        (["users", "add", "x", "--role", "oprator"], "did you mean operator"),
        (["users", "role", "nobody", "admin"], "there are: u-admin"),
        (["tokens", "create", "nobody"], "no user"),
        (["tokens", "create", "u-viewer", "--role", "admin"], "cannot be admin"),
        (["tokens", "create", "u-viewer", "--out", str(secrets.file("viewer"))], "not there"),
        (["tokens", "revoke", "0123"], "weir tokens list"),
    ]:
        r = weir(*args, "--data", secrets.data, ok=False)
        check(text in r.stderr, f"{args}: {r.stderr}")


def revocation(engine, secrets):
    """What is taken away does not work any more within a second; what is given works."""
    secrets.make("short", "u-operator")
    bearer = {"Authorization": f"Bearer {secrets.tokens['short']}"}
    status = lambda path="/v1/groups": engine.http(path, headers=bearer)[0]
    until(lambda: status() == 200, 1.5, "a new token works within a second")
    weir("users", "role", "u-operator", "viewer", "--data", secrets.data)
    patch = lambda: engine.http("/v1/devices/pump-1/shadow", b"{}", headers=bearer, method="PATCH")[0]
    took = until(lambda: patch() == 403, 1.5, "a smaller role counts within a second")
    weir("users", "role", "u-operator", "operator", "--data", secrets.data)
    until(lambda: patch() == 200, 1.5, "a larger role counts within a second")
    weir("tokens", "revoke", secrets.id("short"), "--data", secrets.data)
    took = max(took, until(lambda: status() == 401, 1.5, "a revoked token works for no second longer"))
    listed = json.loads(weir("tokens", "list", "--format", "json", "--data", secrets.data).stdout)
    check({t["id"]: t["state"] for t in listed}[secrets.id("short")] == "revoked_token", f"tokens: {listed}")
    return took


def acts(engine, where="TRUE"):
    """Rows of `_audit` through the engine."""
    sql = f"SELECT n, who, action, subject, outcome, reason, detail, origin FROM _audit WHERE {where} ORDER BY n"
    status, body = engine.http("/v1/query", sql.encode())
    check(status == 200, f"{sql}: {status} {body}")
    return json.loads(body)


def kills(engine, secrets, count):
    """Changes while the engine is killed: each that was confirmed is one act, in one row, whatever was going on."""
    engine.token = secrets.tokens["operator"]
    confirmed, unclear, stop = [], [], threading.Event()

    def change(thread):
        n = 0
        while not stop.is_set():
            n += 1
            name = f"k-{thread}-{n}"
            headers = {"Content-Type": "application/merge-patch+json"}
            body = json.dumps({"n": n}).encode()
            status, _ = engine.http(f"/v1/devices/{name}/shadow", body, headers=headers, method="PATCH", timeout=10)
            (confirmed if status == 200 else unclear).append(name)
            time.sleep(0.01 if status == 200 else 0.1)

    threads = [threading.Thread(target=change, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for i in range(count):
        time.sleep(1.5)
        if i % 2:
            # In the middle of putting acts into files.
            threading.Thread(target=lambda: engine.http("/v1/flush", b"", timeout=5), daemon=True).start()
            time.sleep(0.02 * i)
        engine.kill()
        engine.start()
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    engine.token = secrets.tokens["admin"]
    rows = acts(engine)
    numbers = [row["n"] for row in rows]
    check(numbers == list(range(1, len(rows) + 1)), f"each number once: {len(rows)} rows, {len(set(numbers))} numbers")
    found = [row["subject"].split("/")[1] for row in rows if row["action"] == "shadow.set" and row["outcome"] == "ok"]
    check(len(found) == len(set(found)) or found.count("pump-1") > 1, "no act is there twice")
    lost = set(confirmed) - set(found)
    check(not lost, f"{len(lost)} confirmed changes are not in the trail: {sorted(lost)[:5]}")
    return len(confirmed), len(rows)


def limits(engine, secrets):
    """A flood of wrong tokens is slowed down, and is a few acts."""
    before = len(acts(engine))
    wrong = f"weir_{'1' * 16}_{'2' * 64}"
    statuses = []
    for _ in range(200):
        statuses.append(engine.http("/v1/groups", headers={"Authorization": f"Bearer {wrong}"})[0])
    check(statuses.count(429) > 150 and statuses.count(401) >= 10, f"{statuses}")
    check(engine.http("/v1/groups")[0] == 200, "who is known goes on")
    return len(acts(engine)) - before


def tls(folder):
    """HTTPS with the engine's own certificate; silent clients hold up nobody."""
    data = folder / "tls"
    weir("users", "add", "ada", "--role", "viewer", "--data", data)
    secrets = folder / "ada.token"
    weir("tokens", "create", "ada", "--out", secrets, "--data", data)
    engine = Engine(data, insecure=False, config="[http]\ntls = true\n")
    engine.start()
    try:
        check(any(line.startswith("https ") for line in engine.listeners), f"{engine.listeners}")
        url = engine.url.replace("http://", "https://")
        ca = data / "ca" / "ca.crt"
        silent = [socket.create_connection(("127.0.0.1", engine.http_port)) for _ in range(100)]
        began = time.monotonic()
        weir("devices", "list", "--url", url, "--ca", ca, "--token-file", secrets)
        took = time.monotonic() - began
        check(took < 5, f"silent clients hold up others: {took:.1f} s")
        r = weir("devices", "list", "--url", url, "--token-file", secrets, ok=False)
        check("ertificate" in r.stderr or "UnknownIssuer" in r.stderr, f"an unknown authority: {r.stderr[-300:]}")
        check(engine.http("/healthz")[0] == 0, "no plain HTTP on a port of TLS")
        context = ssl.create_default_context(cafile=str(ca))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            urllib.request.urlopen(f"{url}/healthz", context=context, timeout=10)
            raise AssertionError("TLS 1.2 must not work")
        except OSError:
            pass
        for s in silent:
            s.close()
    finally:
        check(engine.stop() == 0, "it ends")
    return engine, [secrets.read_text().strip(), *keys(data)]


def keys(data):
    """A line from the middle of every private key below a directory."""
    found = []
    for path in pathlib.Path(data).rglob("*.key"):
        lines = path.read_text().splitlines()
        found.append(lines[1])
    return found


def trail(engine, data, secrets):
    """What somebody changes in the trail is found, and where; the engine does not go on with it."""
    journal = pathlib.Path(data) / "access" / "audit.journal"
    r = weir("audit", "--trail", "--data", data)
    head = re.search("head  ([0-9a-f]{64})", r.stdout)
    check(head, r.stdout)
    lines = journal.read_text().splitlines()
    check(f"{len(lines)} acts" in r.stdout and head[1] in lines[-1], r.stdout)
    whole = journal.read_bytes()
    changed = whole.replace(b'"who":"u-operator"', b'"who":"u-operatox"', 1)
    check(changed != whole, "there is something to change")
    journal.write_bytes(changed)
    r = weir("audit", "--trail", "--data", data, ok=False)
    check(r.returncode == 1 and re.search(r"audit\.journal:\d+: ", r.stderr), f"{r.returncode} {r.stderr}")
    r = subprocess.run(engine.command, capture_output=True, text=True, timeout=60)
    check(r.returncode == 1 and "audit.journal:" in r.stderr, f"a start on a broken trail: {r.returncode} {r.stderr}")
    journal.write_bytes(whole)
    weir("audit", "--trail", "--data", data)


def search(secrets, places):
    """No secret stands anywhere that it is not meant to stand."""
    looked = 0
    for name, text in places:
        looked += len(text)
        for secret in secrets:
            part = secret.rsplit("_", 1)[-1].encode()
            check(part not in text, f"a secret stands in {name}")
    return looked


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=4)
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-security-"))
    os.environ["WEIR_LOG"] = "trace"
    data = folder / "data"
    secrets = Secrets(data, folder)
    config = "[durability]\ncut_every = \"2s\"\n[limits]\nfailed_logins = 20\n"
    engine = Engine(data, insecure=False, config=config, http_port=free_port())
    engine.start()
    try:
        scenes(folder, data, engine, secrets, args.kills)
    finally:
        if engine.alive():
            engine.kill()


def scenes(folder, data, engine, secrets, count):
    """One after the other, on one engine."""
    commands(engine, secrets)
    print("commands find their token and say what is wrong")
    took = revocation(engine, secrets)
    print(f"what was taken away did not work any more after {took:.2f} s at most")
    confirmed, rows = kills(engine, secrets, count)
    print(f"{count} kills, {confirmed} confirmed changes, each one of {rows} acts")
    more = limits(engine, secrets)
    print(f"200 wrong tokens became {more} acts")
    check(more <= 6, "a flood is a few acts")

    # A token on its way: not on a command line, not in metrics.
    env = dict(os.environ, WEIR_TOKEN=secrets.tokens["admin"])
    asking = subprocess.Popen([binary(), "query", "--url", engine.url, "SELECT count(*) FROM generate_series(1, 30000000)"],
                              env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    lines = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (asking.pid, engine.pid)]
    out, err = asking.communicate(timeout=120)
    PRINTED.append(("a query", (out + err).decode(errors="replace")))
    metrics = engine.http("/metrics")[1]
    verdict = json.loads(weir("audit", "--trail", "--format", "json", "--url", engine.url,
                              env={"WEIR_TOKEN": secrets.tokens["admin"]}).stdout)  # fmt: skip
    check(len(acts(engine)) >= verdict["acts"] > 0, f"{verdict}")
    check(engine.stop() == 0, "it ends")
    check(files(data, "_audit"), "acts are in files")
    n, distinct, last = duck(data, "_audit").execute('SELECT count(*), count(DISTINCT n), max(n) FROM "_audit"').fetchone()
    written = len((data / "access" / "audit.journal").read_text().splitlines())
    check(n == distinct == last == written, f"files: {n} rows, {distinct} numbers, last {last}; the journal has {written}")
    print(f"{n} acts in files, each once")
    trail(engine, data, secrets)
    print("a changed trail is found, and not gone on with")
    https, others = tls(folder)
    print("HTTPS with the engine's own certificate; 100 silent clients hold up nobody")

    places = [(name, text.encode()) for name, text in PRINTED]
    places += [("a command line", line) for line in lines] + [("metrics", metrics)]
    for log in (engine.log_path, https.log_path):
        places.append((log, pathlib.Path(log).read_bytes()))
    check(any(b"TRACE" in text for _, text in places), "logs are at trace level")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in (".token", ".key"):
            places.append((str(path), path.read_bytes()))
    looked = search([*secrets.tokens.values(), *others, *keys(data)], places)
    print(f"no secret in {looked >> 10} KiB of logs, errors, metrics, command lines and files")
    shutil.rmtree(folder)
    print("ok")


if __name__ == "__main__":
    main()
