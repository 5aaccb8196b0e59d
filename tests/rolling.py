"""One root in the place of another while devices are at work: part of `rotation.py`.

An agent that follows by itself, and a client of another kind that does it by hand; engine and agent are killed on the way.
"""

import json
import signal
import subprocess
import time

from certificates import Client, run
from provisioning import new_key
from weir import check


def status(engine):
    return json.loads(engine.weir("ca", "roll", "status", "--format", "json").stdout)


def until(engine, what, good, seconds=30):
    """Waits for a state of the roll."""
    end = time.monotonic() + seconds
    while not good(seen := status(engine)):
        check(time.monotonic() < end, f"{what}: {seen}")
        time.sleep(0.1)
    return seen


def told(client, what, seconds=15):
    """What the engine says unasked."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for message in list(client.told):
            body = json.loads(message.payload)
            if body.get("cert_action") == what:
                return body
        time.sleep(0.01)
    raise AssertionError(f"not told {what}: {[m.payload for m in client.told]}")


def roots(path):
    return path.read_text().count("BEGIN CERTIFICATE")


def roll(engine, folder, agent, ask):
    """From the first root to the second, with devices that never stop."""
    engine.weir("ca", "init")
    engine.issue("hand")
    engine.issue("left")
    engine.issue("agent-00")
    identity = folder / "agents/agent-00/identity"
    identity.mkdir(parents=True)
    (identity / "current.pem").write_text("".join(open(engine.certs / f"agent-00.{end}").read() for end in ("key", "crt")))
    ca = engine.data / "ca"
    first = (ca / "ca.crt").read_text()
    failed = engine.weir("ca", "roll", "switch", ok=False)
    check(b"weir ca roll begin" in failed.stderr, f"{failed.stderr}")
    engine.start()

    def begin_agent():
        command = agent(engine, folder, "agent-", seconds=300, rate=20)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(folder / "agent.log", "ab"))

    process = begin_agent()
    hand = Client(engine, engine.certs / "hand", "hand")
    check(str(hand.connect()) == "Success", f"hand: {hand.code}")
    hand.wait(hand.client.subscribe("devices/hand/#", qos=1)[1])
    check(status(engine)["stage"] is None, f"{status(engine)}")

    # The agent hears it on the connection that stands, and follows; the other one is told and has to say so.
    engine.weir("ca", "roll", "begin")
    both = (ca / "ca.crt").read_text()
    check(first in both and roots(ca / "ca.crt") == 2, "both are trusted")
    seen = until(engine, "the agent trusts both", lambda s: "agent-00" not in s["missing"])
    check(seen["stage"] == "begun" and seen["devices"] == 3 and seen["missing"] == ["hand", "left"], f"{seen}")
    check((identity / "ca.pem").read_text() == both, "what the agent trusts")
    said = told(hand, "trust")
    check(said["bundle"] == both, f"{said}")
    failed = engine.weir("ca", "roll", "switch", ok=False)
    check(b"1 of 3" in failed.stderr and b"hand, left" in failed.stderr, f"{failed.stderr}")
    wrong = ask(hand, "hand", None, step="trust", bundle_id="0" * 64)
    check(wrong["error"]["reason"] == "other_bundle", f"{wrong}")
    asked = ask(hand, "hand", None, step="trust")
    check((asked["bundle"], asked["bundle_id"]) == (both, said["bundle_id"]), f"{asked}")
    ask(hand, "hand", None, step="trust", bundle_id=said["bundle_id"])
    check(status(engine)["missing"] == ["left"], f"{status(engine)}")
    engine.kill()
    engine.start()
    check(status(engine)["missing"] == ["left"], "what was said is durable")

    # The new root signs, one device has heard nothing of it.
    engine.weir("ca", "roll", "switch", "--over", "0s", "--anyway")
    signs = (ca / "issuing.crt").read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = begin_agent()
    until(engine, "the agent has renewed", lambda s: "device agent-00" not in s["left_behind"])
    check(signs in (identity / "current.pem").read_text(), "its certificate is of the new authority")
    hand = Client(engine, engine.certs / "hand", "hand")
    check(str(hand.connect()) == "Success", f"hand, whose certificate is of the old one: {hand.code}")
    key = new_key(folder, "hand-next")
    hand.wait(hand.client.subscribe("devices/hand/cert/res", qos=1)[1])
    answer = ask(hand, "hand", key)
    check(signs in answer["chain"], f"{answer}")
    (folder / "hand-next.crt").write_text(answer["chain"])
    (folder / "both.crt").write_text(answer["bundle"])
    hand.close()
    hand = Client(engine, key, "hand", authority=folder / "both.crt")
    check(str(hand.connect()) == "Success", f"hand, with its new certificate: {hand.code}")
    hand.close()
    (folder / "first.crt").write_text(first)
    late = Client(engine, engine.certs / "left", "left", authority=folder / "first.crt")
    check(str(late.connect()) == "Success", f"who has heard nothing comes in until the end: {late.code}")
    late.wait(late.client.subscribe("devices/left/cert/res", qos=1)[1])
    late.client.publish("devices/left/hello", b"\xa2\x66epochs\x80\x67session\x05", qos=1)
    check(told(late, "trust")["bundle"] == both, "and is told")
    late.close()
    failed = engine.weir("ca", "roll", "finish", ok=False)
    check(b"1 without a certificate of the new root: device left" in failed.stderr, f"{failed.stderr}")

    # The old one is gone; whoever followed stays.
    engine.weir("ca", "roll", "finish", "--anyway")
    check(roots(ca / "ca.crt") == 1 and first != (ca / "ca.crt").read_text() and not (ca / "old").exists(), "one is trusted")
    until(engine, "the agent trusts the new one alone", lambda s: "agent-00" not in s["missing"])
    check((identity / "ca.pem").read_text() == (ca / "ca.crt").read_text(), "what the agent trusts")
    process.send_signal(signal.SIGKILL)
    process.wait()
    engine.kill()
    engine.start()
    process = begin_agent()
    time.sleep(1)
    for name, files, authority, good in (
        ("hand", key, ca / "ca.crt", True),
        ("left", engine.certs / "left", ca / "ca.crt", False),
        ("hand", key, folder / "first.crt", False),
    ):
        client = Client(engine, files, name, authority=authority)
        code = str(client.connect())
        check((code == "Success") == good, f"{name}, {files}, {authority}: {code}")
        client.close()
    out = run("openssl", "s_client", "-connect", f"127.0.0.1:{engine.port}", "-CAfile", ca / "ca.crt", ok=None, stdin=b"")
    check(b"Verify return code: 0" in out.stdout, f"OpenSSL does not accept the engine: {out.stdout[-500:]}")
    check(status(engine)["stage"] == "finished", f"{status(engine)}")
    process.send_signal(signal.SIGTERM)
    check(process.wait(60) == 0, f"the agent: see {folder / 'agent.log'}")
    check(b"no root is rolled" in engine.weir("ca", "roll", "finish").stdout, "nothing to finish")
    # Another, called off.
    alone = (ca / "ca.crt").read_text()
    engine.weir("ca", "roll", "begin")
    engine.weir("ca", "roll", "cancel")
    check((ca / "ca.crt").read_text() == alone and not (ca / "next").exists(), "called off")
    engine.stop()
    acts = [r["subject"] for r in engine.query("SELECT subject FROM _audit WHERE action = 'authority.roll' ORDER BY ts")]
    check(acts == ["begun", "switched", "finished", "begun", "finished"], f"the trail: {acts}")
    rows = engine.query("SELECT count(*) AS n, count(DISTINCT (epoch, seq)) AS d FROM telemetry WHERE device = 'agent-00'")
    check(rows[0]["n"] == rows[0]["d"] > 0, f"{rows}")
    print(f"  a root was rolled while an agent sent {rows[0]['n']} rows; who had not followed was named and kept until the end")


def killed_switch(engine):
    """A switch that was killed when its files were there and its note was not: `finish` knows of nobody, and must not go on."""
    engine.weir("ca", "init")
    engine.issue("a")
    engine.weir("ca", "roll", "begin")
    journal = engine.data / "access/registry.journal"
    before = journal.read_bytes()
    engine.weir("ca", "roll", "switch", "--anyway")
    journal.write_bytes(before)
    for more in ((), ("--anyway",)):
        failed = engine.weir("ca", "roll", "finish", *more, ok=False)
        check(b"weir ca roll switch" in failed.stderr, f"{failed.stderr}")
    engine.weir("ca", "roll", "switch", "--anyway")
    failed = engine.weir("ca", "roll", "finish", ok=False)
    check(b"1 without a certificate of the new root: device a" in failed.stderr, f"{failed.stderr}")
    print("  a switch that was killed before it was noted is given again before the old root goes")
