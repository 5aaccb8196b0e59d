"""Shadows and commands through the real binary, as a plain MQTT client, an HTTP client, the command line and our own
agent see them; with `kill -9` at any moment.

    shadows.py [--seed N] [--kills 4]

A plain client (paho) follows `shadow/delta`, reports on `shadow/reported`, does commands that come on `commands`. Meanwhile
wishes and commands come over HTTP, each with an id and repeated when the answer is lost, and the engine is killed. At the
end every wish that was answered counts exactly once, in order; every command was answered once and done at least
once; `_shadow_history` and `_commands` hold each change once, in files that DuckDB reads. A simulated device with our
agent follows a wish, keeps it through a restart of its own, and does a command.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request

import cbor2
import paho.mqtt.client as mqtt

from weir import Engine, binary, check, duck

CONFIG = """
[node]
shards = 2
[durability]
checkpoint_every = "1s"
cut_every = "2s"
[[shadow.rules]]
path = "knob"
policy = "device"
"""


def call(engine, method, path, body=None, headers=None, timeout=30):
    """Status and answer of a request, as JSON; status 0: no answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(engine.url + path, data=data, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")
    except (OSError, ValueError):
        return 0, None


def insist(engine, method, path, body=None, deadline=60):
    """Asks until there is an answer: what carries an id may be asked again."""
    until = time.monotonic() + deadline
    while time.monotonic() < until:
        status, answer = call(engine, method, path, body)
        if status not in (0, 503):
            return status, answer
        time.sleep(0.1)
    raise AssertionError(f"no answer to {method} {path} within {deadline} s")


def rows_of(engine, sql):
    """Rows of a query through the engine."""
    return call(engine, "POST", "/v1/query", {"sql": sql}, {"content-type": "application/json", "accept": "application/json"})[1]


class Plain:
    """A device without our agent: JSON on the plain topics, one persistent wish to be in sync."""

    def __init__(self, engine, name, obeys=True):
        self.name, self.engine, self.obeys = name, engine, obeys
        self.state, self.deltas, self.done, self.errors, self.configs = {}, [], {}, [], []
        self.lock = threading.Lock()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311)
        self.client.on_connect = self.connected
        self.client.on_message = self.message
        self.client.reconnect_delay_set(0.1, 0.5)
        self.client.connect_async("127.0.0.1", engine.mqtt_port, keepalive=10)
        self.client.loop_start()

    def topic(self, rest):
        return f"devices/{self.name}/{rest}"

    def connected(self, client, *_):
        client.subscribe([(self.topic(rest), 1) for rest in ("shadow/delta", "commands", "errors", "config")])

    def message(self, client, _, message):
        rest = message.topic.split("/", 2)[2]
        with self.lock:
            if rest == "errors":
                self.errors.append(json.loads(message.payload))
            elif rest == "config":
                self.configs.append(cbor2.loads(message.payload))
            elif rest == "shadow/delta":
                wish = json.loads(message.payload)
                self.deltas.append(wish)
                self.state.update(wish["delta"])
                if wish["delta"]:
                    client.publish(self.topic("shadow/reported"), json.dumps(wish["delta"]), qos=1)
            elif self.obeys:
                command = json.loads(message.payload)
                self.done[command["cmd_id"]] = self.done.get(command["cmd_id"], 0) + 1
                answer = {"cmd_id": command["cmd_id"], "state": "ok", "out": {"args": command["args"]}}
                client.publish(self.topic("commands/result"), json.dumps(answer), qos=1)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def eventually(what, ask, deadline=30):
    """Waits until `ask` gives something true, and gives it."""
    until = time.monotonic() + deadline
    while True:
        found = ask()
        if found:
            return found
        check(time.monotonic() < until, f"not within {deadline} s: {what}")
        time.sleep(0.1)


def first_steps(engine):
    """What a newcomer does, and what goes wrong."""
    base = "/v1/devices/pump-1"
    check(call(engine, "GET", f"{base}/shadow")[0] == 404, "a device that nobody knows has no shadow")
    status, shadow = call(engine, "PATCH", f"{base}/shadow", {"interval": 10, "heating": {"limit": 21.5}})
    check(status == 200 and shadow["dv"] == 1 and shadow["delta"] == shadow["desired"], f"{status} {shadow}")
    check(shadow["device"] == "pump-1" and shadow["name"] == "main" and shadow["rv"] == 0, f"{shadow}")
    status, shadow = call(engine, "PATCH", f"{base}/shadow", {"interval": 20}, {"If-Match": "7"})
    check(status == 409 and shadow["dv"] == 1 and shadow["desired"]["interval"] == 10, f"{status} {shadow}")
    status, shadow = call(engine, "PATCH", f"{base}/shadow", {"heating": {"limit": None}}, {"If-Match": '"1"'})
    check(status == 200 and shadow["desired"] == {"interval": 10, "heating": {}}, f"{status} {shadow}")
    for method, path, body, part in [
        ("PATCH", f"{base}/shadow", [1], "JSON object"),
        ("PATCH", f"{base}/shadow/a%20b", {"a": 1}, "name of a shadow"),
        ("PATCH", f"{base}/shadow?ttl=soon", {"a": 1}, "ttl"),
        ("PATCH", f"{base}/shadow", {"a": "x" * 40000}, "at most"),
        ("PATCH", "/v1/devices/a%20b/shadow", {"a": 1}, "a b"),
        ("POST", f"{base}/commands", {"args": 1}, "name"),
        ("POST", f"{base}/commands", {"name": "x", "deadline": "2020-01-01T00:00:00Z"}, "passed"),
        ("POST", f"{base}/commands?timeout=forever", {"name": "x"}, "timeout"),
    ]:
        status, answer = call(engine, method, path, body)
        check(status == 400 and part in answer["detail"], f"{method} {path}: {status} {answer}")
    check(call(engine, "GET", f"{base}/shadow/other")[0] == 404, "there is no such shadow")
    check(call(engine, "GET", f"{base}/shadow?dv=1")[1]["desired"] == {"interval": 10, "heating": {"limit": 21.5}}, "dv 1")

    device = Plain(engine, "pump-1")
    eventually("the device follows", lambda: call(engine, "GET", f"{base}/shadow")[1]["reported"].get("interval") == 10)
    status, shadow = call(engine, "PATCH", f"{base}/shadow", {"valve": "open"}, {})
    eventually("it follows again", lambda: call(engine, "GET", f"{base}/shadow")[1]["delta"] == {})
    check(device.configs and device.configs[-1]["dv"] == 3 and device.configs[-1]["shadow"] == "main", f"{device.configs}")

    status, command = call(engine, "POST", f"{base}/commands?timeout=10s", {"name": "open", "args": {"valve": 3}})
    check(status == 200 and command["state"] == "ok" and command["out"] == {"args": {"valve": 3}}, f"{status} {command}")
    again = {"name": "open", "args": {"valve": 3}, "cmd_id": command["cmd_id"]}
    check(call(engine, "POST", f"{base}/commands?timeout=10s", again)[1]["out"] == command["out"], "asked again, the same answer")
    check(device.done[command["cmd_id"]] == 1, "and done once")
    check(call(engine, "POST", f"{base}/commands", {**again, "args": 5})[0] == 409, "the id is taken")

    for topic, payload in [("shadow/reported", b"{"), ("config/reported", b'{"patch": 5}'), ("commands/result", b'{"cmd_id": "no", "state": "ok"}')]:
        device.client.publish(device.topic(topic), payload, qos=1)
    eventually("it hears what is wrong", lambda: len(device.errors) >= 3)
    check({error["topic"].split("/", 2)[2] for error in device.errors} == {"shadow/reported", "config/reported", "commands/result"}, f"{device.errors}")
    device.close()

    # What is over before the device is there never reaches it.
    call(engine, "PATCH", f"{base}/shadow?ttl=1s", {"valve": "shut"})
    status, late = call(engine, "POST", f"{base}/commands", {"name": "late", "ttl": "1s"})
    check(status == 202 and late["state"] == "queued", f"{status} {late}")
    eventually("the command is over", lambda: call(engine, "GET", f"{base}/commands/{late['cmd_id']}")[1]["state"] == "expired")
    eventually("the wish is over", lambda: "valve" not in call(engine, "GET", f"{base}/shadow")[1]["desired"])
    device = Plain(engine, "pump-1")
    time.sleep(1)
    check(all(wish["delta"].get("valve") != "shut" for wish in device.deltas) and late["cmd_id"] not in device.done, f"{device.deltas} {device.done}")
    device.close()


def under_kills(engine, seed, kills):
    """Wishes and commands for three devices while the engine is killed."""
    rng = random.Random(seed)
    devices = [Plain(engine, f"fan-{at}") for at in range(3)]
    wishes, commands, stop = {device.name: [] for device in devices}, {}, threading.Event()
    trouble = []

    def work(device):
        mine = random.Random(f"{seed} {device.name}")
        for number in range(1, 10_000):
            if stop.is_set():
                return
            try:
                path = f"/v1/devices/{device.name}"
                _, shadow = insist(engine, "PATCH", f"{path}/shadow?request_id={device.name}-{number}", {"n": number, f"k{number % 7}": mine.random()})
                check(shadow["desired"]["n"] == number, f"wish {number} of {device.name}: {shadow}")
                wishes[device.name].append((number, shadow["dv"]))
                command = {"name": "count", "args": number, "cmd_id": f"{device.name}-{number}"}
                status, answer = insist(engine, "POST", f"{path}/commands", command)
                check(status in (200, 202), f"command {number}: {status} {answer}")
                commands[command["cmd_id"]] = device
            except AssertionError as error:
                trouble.append(error)
                return

    workers = [threading.Thread(target=work, args=(device,)) for device in devices]
    for worker in workers:
        worker.start()
    for _ in range(kills):
        time.sleep(rng.uniform(0.5, 2))
        engine.kill()
        engine.start()
    time.sleep(1)
    stop.set()
    for worker in workers:
        worker.join()
    check(not trouble, f"{trouble}")
    for device in devices:
        path = f"/v1/devices/{device.name}"
        eventually(f"{device.name} is in sync", lambda: call(engine, "GET", f"{path}/shadow")[1]["delta"] == {})
        shadow = call(engine, "GET", f"{path}/shadow")[1]
        count = len(wishes[device.name])
        check(shadow["dv"] == count and shadow["desired"]["n"] == count, f"{device.name}: {count} wishes, {shadow}")
        check([dv for _, dv in wishes[device.name]] == list(range(1, count + 1)), "each wish counts once, in order")
        check(shadow["reported"]["n"] == device.state["n"] == count, f"{device.name} has {device.state}")
    for cmd_id, device in commands.items():
        path = f"/v1/devices/{device.name}/commands/{cmd_id}"
        answer = eventually(f"{cmd_id} has an end", lambda: (a := call(engine, "GET", path))[0] == 404 and {"state": "ok", "out": None} or a[1]["state"] == "ok" and a[1])
        check(answer["out"] is None or answer["out"]["args"] == int(cmd_id.rsplit("-", 1)[1]), f"{answer}")
        check(device.done.get(cmd_id, 0) >= 1, f"{cmd_id} was never done")
    for device in devices:
        device.close()
    return wishes, commands


def tables(engine, data, wishes, commands):
    """Each change stands once in the files."""
    engine.flush()
    history = duck(data, "_shadow_history").execute(
        "SELECT device, version, request_id FROM _shadow_history WHERE event = 'desired' AND device LIKE 'fan-%' ORDER BY device, version"
    ).fetchall()
    expected = sorted((device, dv, f"{device}-{number}") for device, all in wishes.items() for number, dv in all)
    check([tuple(row) for row in history] == expected, f"{len(history)} wishes in the table, {len(expected)} answered")
    rows = duck(data, "_commands").execute(
        "SELECT cmd_id, list_sort(list(state)) FROM _commands WHERE device LIKE 'fan-%' GROUP BY cmd_id"
    ).fetchall()
    ends = {cmd_id: list(states) for cmd_id, states in rows}
    check(set(ends) == set(commands), "every command stands in the table")
    check(all(states == ["ok", "queued"] for states in ends.values()), "each was queued once and has one end")
    live = rows_of(engine, "SELECT device, dv, in_sync FROM devices WHERE device LIKE 'fan-%' ORDER BY device")
    check([(row["device"], row["dv"]) for row in live] == [(device, len(all)) for device, all in sorted(wishes.items())], f"{live}")
    live = rows_of(engine, "SELECT reported FROM shadows WHERE device = 'fan-0'")
    check(json.loads(live[0]["reported"])["n"] == len(wishes["fan-0"]), f"{live}")


def groups(engine):
    """A list and a query; what is wanted of all, once for each; how far they are."""
    check(call(engine, "PUT", "/v1/groups/fans", {"devices": ["fan-0", "fan-1", "fan-2"]})[1]["members"] == 3, "a list")
    status, found = call(engine, "PUT", "/v1/groups/all-fans", {"sql": "SELECT device FROM devices WHERE device LIKE 'fan-%'"})
    check(status == 200 and found["devices"] == ["fan-0", "fan-1", "fan-2"], f"{status} {found}")
    for body, part in [({"sql": "SELECT 1"}, "column `device`"), ({"sql": "SELECT nothing FROM devices"}, "nothing"), ({"devices": ["a b"]}, "a b"), ([], "body")]:
        status, answer = call(engine, "PUT", "/v1/groups/bad", body)
        check(status == 400 and part in answer["detail"], f"{status} {answer}")
    check(call(engine, "PATCH", "/v1/groups/nobody/shadow", {"a": 1})[0] == 404, "there is no such group")
    push = "/v1/groups/all-fans/shadow?request_id=all-1"
    status, pushed = call(engine, "PATCH", push, {"speed": 3})
    check(status == 200 and (pushed["members"], pushed["changed"], pushed["failed"]) == (3, 3, 0), f"{pushed}")
    engine.kill()
    engine.start()
    again = call(engine, "PATCH", push, {"speed": 3})[1]
    check((again["changed"], again["unchanged"]) == (0, 3), f"asked again, it counts once: {again}")
    devices = [Plain(engine, f"fan-{at}") for at in range(2)]
    progress = eventually("two follow", lambda: (p := call(engine, "GET", "/v1/groups/fans/shadow")[1])["in_sync"] == 2 and p)
    check([device["device"] for device in progress["behind"]] == ["fan-2"], f"{progress}")
    status, told = call(engine, "POST", "/v1/groups/fans/commands", {"name": "spin", "cmd_id": "spin-1"})
    check(status == 200 and told["changed"] == 3, f"{told}")
    eventually("two have spun", lambda: all(device.done.get("spin-1") for device in devices))
    for device in devices:
        device.close()
    check(call(engine, "DELETE", "/v1/groups/fans")[0] == 0 or call(engine, "GET", "/v1/groups/fans")[0] == 404, "it is gone")


def our_agent(engine, folder):
    """A simulated device with our agent, and the command line."""
    weir = binary()

    def run(*args, expect=0):
        done = subprocess.run([weir, *args, "--url", engine.url], capture_output=True, text=True, timeout=60)
        check(done.returncode == expect, f"weir {' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    fleet = [weir, "simulate", "--devices", "1", "--rate", "5", "--for", "600s", "--mqtt", f"127.0.0.1:{engine.mqtt_port}", "--outbox", str(folder / "fleet"), "--prefix", "sim-"]

    def start():
        return subprocess.Popen(fleet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    process = start()
    try:
        name = eventually("the device is there", lambda: [line.split()[0] for line in run("devices", "list").splitlines() if line.startswith("sim")])[0]
        out = run("shadow", "set", name, "interval=10", "mode=eco", "--by", "ann")
        check("interval = 10" in out and "by ann" in out, out)
        eventually("the agent follows", lambda: "in sync" in run("shadow", "show", name))
        out = run("devices", "command", name, "blink", '{"times": 3}', "--wait", "20s")
        check("ok" in out and '"times":3' in out.replace(" ", ""), out)
        check("failed" in run("devices", "command", name, "fail", "--wait", "20s", expect=1), "a failed command is status 1")
        process.kill()
        process.wait()
        run("shadow", "set", name, "interval=30")
        process = start()
        eventually("it follows after a restart", lambda: "in sync" in run("shadow", "show", name))
        shadow = json.loads(run("shadow", "show", name, "--format", "json"))
        check(shadow["reported"] == {"interval": 30, "mode": "eco"} and shadow["applied_dv"] == 2, f"what it had before is still there: {shadow}")
        check("nowhere" in subprocess.run([weir, "shadow", "show", "nowhere", "--url", engine.url], capture_output=True, text=True).stderr, "it says which device")
    finally:
        process.kill()
        process.wait()


def presence(engine):
    """Who is there, by word and by will; the will of an earlier session counts for nothing."""
    path = "/v1/devices/door-1"

    def come(session):
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"door-1-{session}")
        client.will_set("devices/door-1/status", json.dumps({"online": False, "session": session}), qos=1, retain=True)
        client.connect("127.0.0.1", engine.mqtt_port)
        client.loop_start()
        client.publish("devices/door-1/status", json.dumps({"online": True, "session": session, "fw": "1.2"}), qos=1, retain=True).wait_for_publish(10)
        return client

    def cut(client):
        client.loop_stop()
        client.socket().close()

    def online():
        return (call(engine, "GET", path)[1].get("status") or {}).get("online")

    first = come(1)
    check(online() is True, f"{call(engine, 'GET', path)}")
    second = come(2)
    cut(first)
    time.sleep(1)
    check(online() is True, "the will of the first says nothing about the second")
    retained = []
    looker = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="looker")
    looker.on_message = lambda _c, _u, message: retained.append(json.loads(message.payload))
    looker.connect("127.0.0.1", engine.mqtt_port)
    looker.subscribe("devices/door-1/status", 1)
    looker.loop_start()
    eventually("it is retained", lambda: retained)
    check(retained == [{"online": True, "session": 2, "fw": "1.2"}], f"and does not take its place: {retained}")
    looker.disconnect()
    looker.loop_stop()
    cut(second)
    eventually("it has gone", lambda: online() is False)
    seen = []
    watcher = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="watcher")
    watcher.on_message = lambda _c, _u, message: seen.append((message.retain, json.loads(message.payload)))
    watcher.connect("127.0.0.1", engine.mqtt_port)
    watcher.subscribe("devices/door-1/status", 1)
    watcher.loop_start()
    eventually("it is retained", lambda: seen)
    check(seen[0] == (True, {"online": False, "session": 2}), f"{seen}")
    watcher.disconnect()
    watcher.loop_stop()
    rows = eventually("it is history", lambda: (r := rows_of(engine, "SELECT online, session FROM _connections WHERE device = 'door-1' ORDER BY ts")) and len(r) == 3 and r)
    check([(row["online"], row["session"]) for row in rows] == [(True, 1), (True, 2), (False, 2)], f"{rows}")
    engine.kill()
    engine.start()
    check(online() is False, "it outlives the engine")


def knobs(engine):
    """A value that belongs to the device, and a conflict."""
    name = "thermo-1"
    path = f"/v1/devices/{name}/shadow"
    call(engine, "PATCH", path, {"knob": 1, "fan": 1})
    client = Plain(engine, name)
    eventually("it follows", lambda: call(engine, "GET", path)[1]["delta"] == {})
    client.close()
    call(engine, "PATCH", path, {"fan": 2})
    late = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name + "-later")
    late.connect("127.0.0.1", engine.mqtt_port)
    late.loop_start()
    report = {"based_on_dv": 1, "full": {"knob": 7, "fan": 3}, "local": ["knob", "fan"]}
    late.publish(f"devices/{name}/config/reported", cbor2.dumps(report), qos=1).wait_for_publish(10)
    shadow = eventually("the knob counts", lambda: (s := call(engine, "GET", path)[1])["desired"]["knob"] == 7 and s)
    check(shadow["delta"] == {"fan": 2} and shadow["dv"] == 3, f"{shadow}")
    late.disconnect()
    late.loop_stop()
    sql = f"SELECT detail FROM _shadow_history WHERE device = '{name}' AND event = 'shadow.conflict'"
    conflict = json.loads(eventually("the conflict is a row", lambda: rows_of(engine, sql))[0]["detail"])
    found = [conflict[key] for key in ("path", "base", "desired", "reported", "winner")]
    check(found == ["fan", 1, 2, 3, "server"], f"{conflict}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=4)
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-shadows-"))
    engine = Engine(folder / "data", config=CONFIG)
    try:
        engine.start()
        first_steps(engine)
        print("first steps: passed", flush=True)
        knobs(engine)
        print("merges: passed", flush=True)
        presence(engine)
        print("presence: passed", flush=True)
        wishes, commands = under_kills(engine, args.seed, args.kills)
        tables(engine, folder / "data", wishes, commands)
        print(f"{args.kills} kills: {sum(map(len, wishes.values()))} wishes and {len(commands)} commands, each once", flush=True)
        groups(engine)
        print("groups: passed", flush=True)
        our_agent(engine, folder)
        print("our agent: passed", flush=True)
        check(engine.stop() == 0, "it ends with status 0")
    except BaseException:
        traceback.print_exc()
        if engine.alive():
            engine.kill()
        print(f"failed; seed {args.seed}; everything is left in {folder}")
        return 1
    shutil.rmtree(folder)
    print("passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
