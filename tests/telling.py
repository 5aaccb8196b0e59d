"""Who is told of alerts, through the real binary: mails and webhooks, storms of a group of devices, gateways that are away.

    telling.py [--data DIR]

A mail server and a receiver of webhooks stand here and count. The mail server refuses at first, and the engine is killed
while mails wait. Then most of a group of devices are in trouble at once. Then a gateway goes away with the device behind
it, and a device that speaks for itself goes, too. Then a certificate ends soon. Exit status 0 if everybody heard what he
had to, once.
"""

import argparse
import email
import email.policy
import http.server
import json
import pathlib
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import paho.mqtt.client as mqtt
import socketserver

from weir import Engine, check, free_port

PROJECT = """CREATE STREAM telemetry (temperature DOUBLE);
CREATE ALERT hot ON telemetry WHEN temperature > 80 CLEAR WHEN temperature < 75
  WITH (severity = 'critical', escalate = 'oncall@0s');
CREATE ALERT silent ON telemetry WHEN temperature > 1000 CLEAR WHEN temperature < 900
  WITH (severity = 'warning', no_data_after = INTERVAL '16 seconds', no_data = 'raise', escalate = 'oncall@0s');
"""

CONFIG = """
[node]
shards = 2
[durability]
checkpoint_every = "1s"
[alerts]
certificates = "oncall"
[[alerts.channels]]
name = "mail"
kind = "email"
url = "smtp://127.0.0.1:{mail}"
user = "weir"
secret = "mail-pass-word"
from = "Weir <weir@plant.example>"
to = ["ann@plant.example", "bob@plant.example"]
timeout = "5s"
[[alerts.channels]]
name = "hook"
kind = "webhook"
url = "http://127.0.0.1:{hook}/"
[alerts.people]
oncall = ["mail", "hook"]
"""


class Post(socketserver.ThreadingTCPServer):
    """An SMTP server that keeps what it takes; `refuses`: it says no to whole mails."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, port):
        self.mails, self.refused, self.refuses = [], 0, True
        super().__init__(("127.0.0.1", port), Letter)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Letter(socketserver.StreamRequestHandler):
    """One conversation."""

    def say(self, text):
        self.wfile.write(f"{text}\r\n".encode())

    def handle(self):
        self.say("220 here")
        to = []
        while line := self.rfile.readline().decode().strip():
            verb = line.split(" ")[0].upper()
            if verb == "EHLO":
                self.say("250-here\r\n250 AUTH PLAIN")
            elif verb == "AUTH":
                self.say("235 welcome")
            elif verb == "RCPT":
                to.append(line)
                self.say("250 ok")
            elif verb == "DATA":
                self.say("354 go on")
                text = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    text += part
                if self.server.refuses:
                    self.server.refused += 1
                    self.say("451 not now")
                else:
                    mail = email.message_from_bytes(text, policy=email.policy.default)
                    check(len(to) == 2, f"two receivers: {to}")
                    self.server.mails.append(mail)
                    self.say("250 taken")
                to = []
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 ok")


class Hook(http.server.BaseHTTPRequestHandler):
    """Takes every message, and keeps it by its key."""

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.messages.setdefault(message["key"], message)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def until(what, holds, seconds=40):
    """Waits until `holds()` is true."""
    deadline = time.monotonic() + seconds
    while not holds():
        check(time.monotonic() < deadline, f"not within {seconds} s: {what}")
        time.sleep(0.1)


def publisher(port, client_id, context=None):
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
    if context:
        client.tls_set_context(context)
    client.connect("127.0.0.1", port)
    client.loop_start()
    return client


class Seq:
    """Numbers of records."""

    def __init__(self):
        self.last = 0

    def __call__(self, client, device, temperature):
        self.last += 1
        body = json.dumps({"epoch": 1, "seq": self.last, "ts": time.time_ns(), "temperature": temperature})
        sent = client.publish(f"devices/{device}/telemetry", body, qos=1)
        sent.wait_for_publish(30)
        check(sent.is_published(), f"{device} {temperature} was not acknowledged")


def alerts(engine):
    return json.loads(engine.http("/v1/alerts?limit=1000")[1])["alerts"]


def main(folder):
    mail_port, hook_port, tls_port = free_port(), free_port(), free_port()
    post = Post(mail_port)
    hook = http.server.ThreadingHTTPServer(("127.0.0.1", hook_port), Hook)
    hook.messages = {}
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    project = folder / "pipelines"
    project.mkdir()
    (project / "p.sql").write_text(PROJECT)
    data = folder / "data"
    engine = Engine(data, project, config=CONFIG.format(mail=mail_port, hook=hook_port),
                    extra=["--mqtts", f"127.0.0.1:{tls_port}"])  # fmt: skip

    def weir(*arguments):
        done = subprocess.run([engine.program, *arguments], capture_output=True, text=True, timeout=60)
        check(done.returncode == 0, f"{arguments}: {done.stderr}{done.stdout}")
        return done.stdout

    certs = folder / "certs"
    weir("ca", "init", "--data", str(data))
    for name, more in (("gw", ("--gateway", "--child", "m1")), ("own", ())):
        weir("ca", "issue", name, *more, "--out", str(certs), "--data", str(data))
    engine.start()
    send = Seq()
    client = publisher(engine.mqtt_port, "bench")

    # A mail that is refused, and a crash while it waits.
    send(client, "pump-1", 95.0)
    until("the mail server is tried", lambda: post.refused >= 1)
    until("the webhook is told", lambda: len(hook.messages) == 1)
    engine.kill()
    client.loop_stop()
    post.refuses = False
    engine.start()
    client = publisher(engine.mqtt_port, "bench")
    until("the mail comes", lambda: len(post.mails) == 1)
    mail = post.mails[0]
    check(mail["subject"] == "[CRITICAL] hot of pump-1", mail["subject"])
    key = next(iter(hook.messages)).removesuffix("-hook")
    check(mail["message-id"] == f"<{key}-mail@plant.example>", f"{mail['message-id']} {key}")
    check("value 95" in mail.get_content() and mail["auto-submitted"] == "auto-generated", mail.as_string())
    send(client, "pump-1", 20.0)
    until("it is over", lambda: len(post.mails) == 2 and post.mails[1]["subject"] == "[over] hot of pump-1")
    check(post.mails[1]["references"] == mail["references"], "both stand together")
    print(f"a mail was refused {post.refused} times, waited through kill -9, and came once", flush=True)

    # Nine of thirty devices of a group at once.
    hook.messages.clear()
    members = [f"d{n}" for n in range(30)]
    weir("groups", "set", "line-1", *members, "--url", engine.url)
    time.sleep(4)
    for device in members[:9]:
        send(client, device, 90.0)
    by_about = lambda: [message["about"] for message in hook.messages.values()]  # noqa: E731
    until("the storm", lambda: "storm" in by_about())
    time.sleep(2)
    check(sorted(by_about()) == ["page"] * 6 + ["storm"], f"six by themselves, then the storm: {by_about()}")
    storm = next(message for message in hook.messages.values() if message["about"] == "storm")
    check(storm["storm"]["group"] == "line-1" and storm["storm"]["count"] >= 7, storm)
    until("mails of it", lambda: len(post.mails) == 9)
    check(any(mail["subject"] == "[STORM] hot" for mail in post.mails), [mail["subject"] for mail in post.mails])
    for device in members[:9]:
        send(client, device, 20.0)
    print(f"nine of thirty devices: {sorted(by_about())}", flush=True)

    # A gateway goes away, and a device that speaks for itself.
    context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
    context.load_cert_chain(certs / "gw.crt", certs / "gw.key")
    gateway = publisher(tls_port, "gw", context)
    send(gateway, "m1", 20.0)
    send(client, "x1", 20.0)
    # Its own connection has ended before the silence is too long; the others go on.
    gateway.disconnect()
    gateway.loop_stop()
    told = lambda device: [  # noqa: E731
        message["about"] for message in hook.messages.values() if message["device"] == device
    ]
    until("somebody is told of the silent device", lambda: told("x1") == ["page"])
    muted = {alert["device"]: alert.get("muted_by") for alert in alerts(engine) if alert["rule"] == "silent"}
    check(muted.get("m1") == "gateway gw is away" and muted.get("x1") is None, muted)
    context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
    context.load_cert_chain(certs / "gw.crt", certs / "gw.key")
    gateway = publisher(tls_port, "gw", context)
    send(gateway, "m1", 21.0)
    send(client, "x1", 21.0)
    until("the end is told", lambda: told("x1") == ["page", "resolved"])
    time.sleep(3)
    check(told("m1") == [], f"of a device behind a gateway that was away nobody is told: {told('m1')}")
    print("a gateway that was away kept the device behind it from being told of; the other was told of", flush=True)
    # A certificate that nobody renews: told of at a start, once, and when another has taken its place.
    hook.messages.clear()
    weir("ca", "issue", "ending", "--days", "10", "--out", str(certs), "--data", str(data))
    for _ in range(2):
        engine.kill()
        client.loop_stop()
        engine.start()
        client = publisher(engine.mqtt_port, "bench")
        until("somebody is told of the certificate", lambda: told("ending") == ["page"])
    page = next(message for message in hook.messages.values() if message["device"] == "ending")
    check((page["rule"], page["severity"]) == ("certificate_expiring", "warning") and page["labels"]["until"], page)
    time.sleep(2)
    check(told("ending") == ["page"], f"once, although the engine was started again: {told('ending')}")
    weir("ca", "issue", "ending", "--out", str(certs), "--force", "--data", str(data))
    engine.kill()
    client.loop_stop()
    engine.start()
    until("it is over", lambda: sorted(told("ending")) == ["page", "resolved"])
    print("a certificate that ends was told of once through two crashes, and its renewal", flush=True)
    check("mail-pass-word" not in open(engine.log_path).read(), "the password is in the log")
    check(engine.stop() == 0, engine.log_tail())
    ids = [mail["message-id"] for mail in post.mails]
    check(len(ids) == len(set(ids)), f"a mail came twice: {ids}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, help="a folder to work in; kept")
    arguments = parser.parse_args()
    folder = arguments.data or pathlib.Path(tempfile.mkdtemp(prefix="weir-telling-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        main(folder)
    except Exception:
        traceback.print_exc()
        sys.exit(f"FAILED; the data is in {folder}")
    if not arguments.data:
        shutil.rmtree(folder)
    print("all held")
