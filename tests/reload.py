"""Edits of the pipeline project of a running engine: each counts from one position of the log on, and nobody notices.

    reload.py [--edits 12] [--seed N]

Clients publish all the time. A pipeline that is never edited must give exactly its windows, each once, through all
edits and through kill -9 in the middle of some; connections must not be lost by an edit. Pipelines that come, change
and go, and a reference table whose rows change, are looked at after each edit. DuckDB reads the files at the end.
"""

import argparse
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

import paho.mqtt.client as mqtt

import kill9
from publisher import Publisher
from weir import ROOT, Engine, check, duck

CONFIG = """
[durability]
checkpoint_every = "1s"
cut_every = "4s"
"""

PLACED = """
CREATE TABLE places (device TEXT, place TEXT) WITH (location = 'places.csv', key = 'device');
CREATE PIPELINE placed AS SELECT t.ts, t.device, t.epoch, t.seq, place FROM telemetry t JOIN places p ON t.device = p.device;
"""

CHANGING = """
CREATE PIPELINE changing AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, {} AS value, {} AS version FROM telemetry GROUP BY device, window_start;
"""

BROKEN = "CREATE PIPELINE changing AS SELECT device, tumbl(ts, INTERVAL '1 minute') AS w FROM telemetry GROUP BY device, w;\n"


def metric(engine, name):
    """The value of a metric."""
    return engine.metrics()[name]


def count(engine, table, condition):
    """Rows of a table, with those that are in no file yet."""
    sql = f"SELECT count(*) AS n FROM {table} WHERE {condition}"
    command = [engine.program, "query", "--url", engine.url, "-f", "json", sql]
    r = subprocess.run(command, capture_output=True, text=True, timeout=60)
    check(r.returncode == 0, f"weir query ended with {r.returncode}: {r.stderr}")
    return int(re.search(r'"n": ?(\d+)', r.stdout)[1])


def wait(what, condition, seconds=20):
    began = time.monotonic()
    while not condition():
        check(time.monotonic() - began < seconds, f"{what}: not within {seconds} s")
        time.sleep(0.1)
    return time.monotonic() - began


class Project:
    """The folder, and what the engine says of it."""

    def __init__(self, folder, engine):
        self.folder, self.engine = folder, engine
        self.version = 0

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def taken(self):
        return metric(self.engine, 'weir_project_versions_total{result="taken"}')

    def deploy(self, name, text):
        """Saves, and waits until it counts. Returns how long that took."""
        before = self.taken()
        self.write(name, text)
        return wait(f"{name} is taken over", lambda: self.taken() > before)

    def places(self, place):
        lines = "".join(f"p{n:02}-{i:03},{place}\n" for n in range(4) for i in range(10) if (n + i) % 2)
        return "device,place\n" + lines

    def change(self):
        self.version += 1
        return CHANGING.format(f"max(temperature) + {self.version}", self.version)


def edits(o, engine, project, publishers, rng):
    """The edits, some of them cut short by a kill. Returns how long those that were not took."""
    took, kills = [], 0
    for edit in range(o.edits):
        time.sleep(rng.uniform(0.3, 2))
        connections = sum(p.connections for p in publishers)
        kind = edit % 4
        if kind == 0:
            took.append(project.deploy("changing.sql", project.change()))
            wait("windows of the new version", lambda: count(engine, "changing", f"version = {project.version}") > 0)
        elif kind == 1:
            place = f"place {edit}"
            took.append(project.deploy("places.csv", project.places(place)))
            wait("rows with the new place", lambda: count(engine, "placed", f"place = '{place}'") > 0)
        elif kind == 2:
            refused = metric(engine, 'weir_project_versions_total{result="refused"}')
            good = (project.folder / "changing.sql").read_text()
            project.write("changing.sql", BROKEN)
            wait("the broken version is refused", lambda: metric(engine, "weir_project_stale") == 1)
            check(metric(engine, 'weir_project_versions_total{result="refused"}') == refused + 1, "it is refused once")
            check("did you mean `tumble`?" in engine.log_tail(40), f"the log says why:\n{engine.log_tail(40)}")
            project.write("changing.sql", good)
            wait("the good version is there again", lambda: metric(engine, "weir_project_stale") == 0)
        else:
            name = f"extra_{edit}"
            text = f"CREATE PIPELINE {name} AS SELECT ts, device, status FROM telemetry WHERE status = 'fault';"
            took.append(project.deploy("extra.sql", text))
            wait("rows of the new pipeline", lambda: count(engine, name, "true") > 0)
        check(sum(p.connections for p in publishers) == connections, "an edit must not end a connection")
        if kind in (0, 3) and rng.random() < 0.7:
            # Another edit, and death while it is looked at, taken over, or just done.
            project.write("changing.sql", project.change())
            time.sleep(rng.uniform(0.8, 3.2))
            engine.kill()
            kills += 1
            engine.start()
            back = connections + len(publishers)
            wait("the clients are back", lambda: sum(p.connections for p in publishers) >= back)  # noqa: B023
        for p in publishers:
            check(p.error is None, f"{p.name} failed: {p.error!r}")
    return took, kills


def run(o, folder, rng):
    sources = folder / "pipelines"
    shutil.copytree(ROOT / "tests" / "pipelines", sources)
    engine = Engine(folder / "data", sources, config=CONFIG)
    project = Project(sources, engine)
    project.write("placed.sql", PLACED)
    project.write("places.csv", project.places("first"))
    project.write("changing.sql", project.change())
    engine.start()
    try:
        publishers = [
            Publisher(i, engine.mqtt_port, o.seed, kind="auto", protocol=protocol, form=form, rate=300,
                      base_ns=time.time_ns() - 8 * 3600 * 10**9)
            for i, (protocol, form) in enumerate([(mqtt.MQTTv311, "json"), (mqtt.MQTTv5, "cbor-array")])
        ]  # fmt: skip
        for p in publishers:
            p.start()
        took, kills = edits(o, engine, project, publishers, rng)
        for p in publishers:
            p.finish()
        for p in publishers:
            p.join(60)
            check(not p.is_alive(), f"{p.name}: {len(p.unacked)} messages were never acknowledged")
        engine.flush()
        check(engine.stop() == 0, f"exit status after SIGTERM:\n{engine.log_tail()}")
    finally:
        if engine.alive():
            engine.kill()
    o.agents = False
    figures = kill9.verify(engine, publishers, o, edited="changing")
    c = duck(engine.data, "telemetry", "placed", "changing")
    twice = "SELECT device, epoch, seq FROM placed GROUP BY ALL HAVING count(*) > 1"
    check(not c.execute(twice).fetchall(), "rows of `placed` are stored twice")
    lacks = c.execute("""SELECT count(*) FROM telemetry t WHERE (substr(device, 3, 1)::INT + right(device, 1)::INT) % 2 = 1
                         AND NOT EXISTS (FROM placed p WHERE p.device = t.device AND p.epoch = t.epoch AND p.seq = t.seq)""")  # fmt: skip
    missing = lacks.fetchone()[0]
    check(missing == 0, f"{missing} rows with a place are not in `placed`")
    twice = "SELECT device, window_start FROM changing GROUP BY ALL HAVING count(*) > 1"
    check(not c.execute(twice).fetchall(), "windows of `changing` are stored twice")
    print(f"  {figures['rows']} rows, {figures['windows']} windows of the pipeline that was not edited; {kills} kills")
    print(f"  an edit counts after {min(took):.1f} to {max(took):.1f} s, two looks at the folder a second apart among them")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--edits", type=int, default=12)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    o = p.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-reload-"))
    print(f"seed {o.seed}", flush=True)
    try:
        run(o, folder, random.Random(o.seed))
    except Exception as e:  # noqa: BLE001
        if not isinstance(e, AssertionError):
            traceback.print_exc()
        print(f"reload: FAILED: {e} (files kept in {folder})")
        return 1
    shutil.rmtree(folder)
    print(f"reload: passed: {o.edits} edits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
