"""Runs the benchmark jobs end to end, each verified, systems alternating.

    run.py [--jobs J1,J1f,J1m] [--reps 3] [--peers mosquitto,sink] [--out results.json]

    J1       QoS 1, one CBOR record each, 10,000 devices over 50 connections with a window of 100
    J1m      the same through 10,000 connections, one device and one publish under way each
    J1f      the same records in frames of 16 (rows), QoS 0 with cumulative acks;  J1fc: columns
    flood0, flood1   the generator at full speed for --flood-seconds at QoS 0 or 1: peak memory against memory at rest
    burst    half of what a short closed run reached as a steady open load, for --burst-seconds ten times as much on
             top; latency of the steady load before, during and after, memory, and that nothing is lost or doubled
    latency  open load at --rates messages a second, latency from the planned time to the PUBACK

A job ends when its last window stands in Parquet. The result is a table on standard output and JSON in --out; nothing
asserts a time, but a wrong result makes the exit status 1. Peers take the same messages in the same run: `mosquitto`
(if installed) with one counting QoS 1 subscriber, and `sink`, which acknowledges and forgets: the share of the
generator and the sockets.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from sample import Sampler  # noqa: E402
from verify import verify  # noqa: E402
from weir import Engine, binary, duck, free_port, has, rss  # noqa: E402

LOAD = binary("load")
SECOND = 1_000_000_000


def job_arguments(job, o):
    """Arguments of `load publish` for a job."""
    many = min(o.devices, 10_000)
    plain = ["--connections", str(o.connections), "--window", "100"]
    return {
        "J1": plain,
        "J1m": ["--connections", str(many), "--window", "1"],
        "J1f": ["--connections", str(o.connections), "--format", "frame"],
        "J1fc": ["--connections", str(o.connections), "--format", "frame", "--layout", "columns"],
    }[job]


def content(o, rounds):
    """Arguments that say which records; event time ends now."""
    base = time.time_ns() - (rounds + 2) * SECOND
    return ["--devices", str(o.devices), "--rounds", str(rounds), "--base-ns", str(base)]


class Load:
    """A running generator. Its start is when all its connections stand."""

    def __init__(self, port, arguments):
        command = [LOAD, "publish", "--addr", f"127.0.0.1:{port}", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        if line.strip() != "connected":
            raise RuntimeError(f"load did not connect: {line}{self.process.stderr.read()}")
        self.began = time.monotonic()

    def result(self, timeout):
        """Its figures, once it has ended."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise RuntimeError(f"load did not end within {timeout} s: {err}") from None
        if not out.strip():
            raise RuntimeError(f"load failed: {err}")
        return json.loads(out) | {"exit": self.process.returncode}


def engine(o, work, name):
    e = Engine(work / "data", HERE / "pipelines", log=o.logs / f"{name}.log", extra=o.weir_arguments.split())
    e.start()
    return e


def run_weir(job, o, work):
    """One job on Weir: records per second until the last window is visible, CPU, latency, verification."""
    rounds = o.rounds_many if job == "J1m" else o.rounds
    e = engine(o, work, job)
    try:
        rest, _ = rss(e.pid)
        which = content(o, rounds)
        load = Load(e.mqtt_port, which + job_arguments(job, o))
        sampler = Sampler(e.pid)
        sent = load.result(o.timeout)
        published = time.monotonic()
        e.flush(o.timeout)
        ended = time.monotonic()
        cpu = sampler.stop()
        subprocess.run([LOAD, "truth", *which, "--out", str(work / "truth")], check=True)
        checked = verify(e.data, work / "truth")
        checked["exit_after_term"] = e.stop()
    finally:
        if e.alive():
            e.kill()
    unique = o.devices * rounds
    problems = checked["problems"]
    if sent["stalled"] or sent["unexpected"] or sent["refused"]:
        problems.append(f"generator: {sent}")
    if checked["exit_after_term"] != 0:
        problems.append(f"exit status {checked['exit_after_term']} after SIGTERM")
    return {
        "records": unique,
        "rate": unique / (ended - load.began),
        "publish_rate": unique / (published - load.began),
        "flush_s": ended - published,
        "cpu_per_million": cpu["cpu_s"] / unique * 1e6,
        "stages_per_million": {k: round(v / unique * 1e6, 3) for k, v in cpu["stages"].items()},
        "generator_cpu_per_million": sent["cpu_s_per_million"],
        "ack_ms": sent["ack_ms"],
        "rss_rest_mb": rest >> 20,
        "rss_peak_mb": cpu["peak_rss"] >> 20,
        "verify": checked,
        "ok": not problems,
    }


def run_peer(peer, job, o, work):
    """The same messages through a peer that stores nothing."""
    rounds = o.rounds_many if job == "J1m" else o.rounds_peer
    unique = o.devices * rounds
    port = free_port()
    counter = None
    if peer == "sink":
        command = [LOAD, "sink", "--addr", f"127.0.0.1:{port}"]
    else:
        conf = work / "mosquitto.conf"
        conf.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_inflight_messages 0\n"
            "max_queued_messages 0\nset_tcp_nodelay true\nlog_dest none\n"
        )
        command = [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", str(conf)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        if peer != "sink":
            count = ["count", "--addr", f"127.0.0.1:{port}", "--expect", str(1 << 60), "--idle", "3"]
            counter = subprocess.Popen([LOAD, *count], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            counter.stderr.readline()
        load = Load(port, content(o, rounds) + job_arguments(job, o))
        sampler = Sampler(server.pid)
        sent = load.result(o.timeout)
        elapsed = time.monotonic() - load.began
        received = None
        if counter:
            received = json.loads(counter.communicate(timeout=o.timeout)[0])
            elapsed = max(elapsed, received["elapsed_s"])
        cpu = sampler.stop()
    finally:
        for process in (counter, server):
            if process and process.poll() is None:
                process.terminate()
                process.wait(20)
    return {
        "records": unique,
        "rate": unique / elapsed,
        "cpu_per_million": cpu["cpu_s"] / unique * 1e6,
        "generator_cpu_per_million": sent["cpu_s_per_million"],
        "ack_ms": sent["ack_ms"],
        "rss_peak_mb": cpu["peak_rss"] >> 20,
        "delivered": received and received["messages"],
        "sent": sent["sent"],
        "ok": sent["exit"] == 0,
    }


def run_flood(qos, o, work):
    """Full speed for a while: memory stays bounded, and what was sent (QoS 0) or acknowledged is stored once."""
    e = engine(o, work, f"flood{qos}")
    try:
        time.sleep(2)
        rest, _ = rss(e.pid)
        which = content(o, 100_000)
        sampler = Sampler(e.pid)
        load = Load(e.mqtt_port, [*which, "--connections", str(o.connections), "--qos", str(qos), "--window", "1000",
                                  "--seconds", str(o.flood_seconds), "--patience", "120"])  # fmt: skip
        sent = load.result(o.flood_seconds + o.timeout)
        # At QoS 0 the last bytes may still be in sockets when the generator has gone.
        patience = time.monotonic() + o.timeout
        while e.metrics().get("weir_mqtt_connections") and time.monotonic() < patience:
            time.sleep(0.2)
        rows = before = distinct = None
        for _ in range(60):
            e.flush(o.timeout)
            c = duck(e.data, "telemetry")
            if has(c, "telemetry"):
                rows, distinct = c.execute("SELECT count(*), count(DISTINCT (device, seq)) FROM telemetry").fetchone()
            if rows == before or (qos == 1 and rows == sent["unique"]):
                break
            before = rows
        cpu = sampler.stop()
        _, peak = rss(e.pid)
        code = e.stop()
    finally:
        if e.alive():
            e.kill()
    return {
        "records": rows,
        "rate": sent["sent"] / sent["elapsed_s"],
        "cpu_per_million": cpu["cpu_s"] / sent["sent"] * 1e6,
        "generator_cpu_per_million": sent["cpu_s_per_million"],
        "ack_ms": sent["ack_ms"],
        "rss_rest_mb": rest >> 20,
        "rss_peak_mb": peak >> 20,
        "sent_unique": sent["unique"],
        "stored": rows,
        "stored_distinct": distinct,
        "ok": rows == distinct == sent["unique"] and code == 0 and sent["exit"] == 0,
    }


def run_latency(o, work, rate):
    """An open load: latency from the planned time of a message to its PUBACK."""
    e = engine(o, work, f"latency-{rate}")
    try:
        rounds = max(2, round(rate * o.latency_seconds / o.devices))
        load = Load(e.mqtt_port, content(o, rounds) + ["--connections", str(o.connections), "--window", "1000",
                                                       "--rate", str(rate)])  # fmt: skip
        sampler = Sampler(e.pid)
        sent = load.result(o.latency_seconds * 4 + o.timeout)
        cpu = sampler.stop()
        code = e.stop()
    finally:
        if e.alive():
            e.kill()
    return {
        "records": sent["unique"],
        "rate": sent["rate"],
        "wanted_rate": rate,
        "cpu_per_million": cpu["cpu_s"] / sent["sent"] * 1e6,
        "generator_cpu_per_million": sent["cpu_s_per_million"],
        "ack_ms": sent["ack_ms"],
        "rss_peak_mb": cpu["peak_rss"] >> 20,
        "ok": code == 0 and sent["exit"] == 0,
    }


def capacity(o, work):
    """Messages a second that a closed load of a few seconds gets acknowledged."""
    e = engine(o, work, "burst-capacity")
    try:
        load = Load(e.mqtt_port, content(o, 100_000) + ["--connections", str(o.connections), "--seconds", "12"])
        rate = load.result(o.timeout)["rate"]
        e.stop()
    finally:
        if e.alive():
            e.kill()
    shutil.rmtree(work / "data")
    return rate


def seconds(series, of_interest):
    """Median and worst p99 of the seconds in a range, ms."""
    p99 = [series[s]["p99"] for s in of_interest if s < len(series) and series[s]["count"]]
    return {"median": statistics.median(p99), "worst": max(p99)}


def run_burst(o, work):
    """A steady load at half of capacity, and for a while nine times as much again on top of it."""
    top = capacity(o, work)
    rate, before, after = top / 2, 30, 2 * o.burst_seconds
    rounds = round(rate * (before + o.burst_seconds + after) / o.devices)
    e = engine(o, work, "burst")
    try:
        rest, _ = rss(e.pid)
        window = ["--window", "1000"]
        sampler = Sampler(e.pid)
        steady = Load(e.mqtt_port, [*content(o, rounds), "--connections", str(o.connections), *window,
                                    "--rate", str(rate), "--series", "--patience", "240"])  # fmt: skip
        time.sleep(max(0, steady.began + before - time.monotonic()))
        calm_peak = rss(e.pid)[1]
        burst = Load(e.mqtt_port, [*content(o, 100_000), "--connections", "200", *window, "--rate", str(9 * rate),
                                   "--seconds", str(o.burst_seconds), "--device-prefix", "b", "--seed", "2",
                                   "--client-prefix", "burst-", "--patience", "240"])  # fmt: skip
        start = int(burst.began - steady.began)
        extra = burst.result(o.burst_seconds + o.timeout)
        end = int(time.monotonic() - steady.began) + 1
        sent = steady.result(before + o.burst_seconds + after + o.timeout)
        e.flush(o.timeout)
        c = duck(e.data, "telemetry")
        rows, distinct = c.execute("SELECT count(*), count(DISTINCT (device, seq)) FROM telemetry").fetchone()
        cpu = sampler.stop()
        _, peak = rss(e.pid)
        code = e.stop()
    finally:
        if e.alive():
            e.kill()
    series = sent["series"]
    calm = seconds(series, range(5, start))
    limit = 2 * calm["worst"]
    last_bad = max((s for s in range(start, len(series)) if series[s]["p99"] > limit), default=start - 1)
    unique = sent["unique"] + extra["unique"]
    return {
        "records": rows,
        "rate": rate,
        "capacity": top,
        "burst_rate_wanted": 9 * rate,
        "burst_rate_acknowledged": extra["acked"] / extra["elapsed_s"],
        "cpu_per_million": cpu["cpu_s"] / (sent["sent"] + extra["sent"]) * 1e6,
        "generator_cpu_per_million": sent["cpu_s_per_million"],
        "ack_ms": sent["ack_ms"],
        "p99_before": calm,
        "p99_during": seconds(series, range(start, end)),
        "p99_after": seconds(series, range(last_bad + 1, len(series) - 1)),
        "normal_after_s": max(0, last_bad + 1 - end),
        "rss_rest_mb": rest >> 20,
        "rss_before_mb": calm_peak >> 20,
        "rss_peak_mb": peak >> 20,
        "sent_unique": unique,
        "stored": rows,
        "stored_distinct": distinct,
        "series": series,
        "ok": rows == distinct == unique and code == 0 and sent["exit"] == 0 and extra["exit"] == 0,
    }


def plan(o):
    """What to run, in order: repetitions outermost, so that systems alternate."""
    peers = [p for p in o.peers.split(",") if p]
    if "mosquitto" in peers and not (shutil.which("mosquitto") or os.path.exists("/usr/sbin/mosquitto")):
        print("mosquitto is not installed: left out", file=sys.stderr)
        peers.remove("mosquitto")
    for rep in range(o.reps):
        for job in o.jobs.split(","):
            if job.startswith("flood"):
                if rep == 0:
                    yield rep, job, "weir", lambda w, q=int(job[5:]): run_flood(q, o, w)
            elif job == "burst":
                if rep == 0:
                    yield rep, job, "weir", lambda w: run_burst(o, w)
            elif job == "latency":
                for rate in o.rates.split(","):
                    yield rep, f"latency {rate}", "weir", lambda w, r=float(rate): run_latency(o, w, r)
            else:
                yield rep, job, "weir", lambda w, j=job: run_weir(j, o, w)
                for peer in peers:
                    if not job.startswith("J1f"):
                        yield rep, job, peer, lambda w, p=peer, j=job: run_peer(p, j, o, w)


HEADER = (f"{'job':16} {'system':10} {'records/s':>10} {'CPU s/M':>8} {'gen s/M':>8} {'p50 ms':>8} {'p99 ms':>8} "
          f"{'p99.9':>8} {'rest MB':>8} {'peak MB':>8} {'load':>5}  verified")  # fmt: skip


def line(job, system, r, load):
    a = r["ack_ms"]
    note = "" if r["ok"] else "  WRONG: " + "; ".join(r.get("verify", {}).get("problems", [])[:3])
    return (f"{job:16} {system:10} {r['rate']:10.0f} {r['cpu_per_million']:8.3f} {r['generator_cpu_per_million']:8.3f} "
            f"{a['p50']:8.2f} {a['p99']:8.2f} {a['p999']:8.2f} {r.get('rss_rest_mb', 0):8} {r['rss_peak_mb']:8} "
            f"{load:>5}  {'yes' if r['ok'] else 'NO'}{note}")  # fmt: skip


def medians(results):
    """Medians over the repetitions of each (job, system)."""
    groups = {}
    for r in results:
        groups.setdefault((r["job"], r["system"]), []).append(r)
    for (job, system), some in groups.items():
        m = lambda get: statistics.median(get(r) for r in some)  # noqa: E731
        yield job, system, {
            "rate": m(lambda r: r["rate"]),
            "cpu_per_million": m(lambda r: r["cpu_per_million"]),
            "generator_cpu_per_million": m(lambda r: r["generator_cpu_per_million"]),
            "ack_ms": {k: m(lambda r, k=k: r["ack_ms"][k]) for k in ("p50", "p99", "p999")},
            "rss_rest_mb": int(m(lambda r: r.get("rss_rest_mb", 0))),
            "rss_peak_mb": int(m(lambda r: r["rss_peak_mb"])),
            "ok": all(r["ok"] for r in some),
            "stages_per_million": some[-1].get("stages_per_million"),
        }


def machine():
    """Where the figures come from."""
    with open("/proc/cpuinfo") as f:
        cpu = next((x.split(":", 1)[1].strip() for x in f if x.startswith("model name")), platform.processor())
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(), "commit": git.stdout.strip(),
            "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--jobs", default="J1,J1f,J1m")
    p.add_argument("--reps", type=int, default=3)
    p.add_argument("--peers", default="mosquitto,sink")
    p.add_argument("--devices", type=int, default=10_000)
    p.add_argument("--connections", type=int, default=50)
    p.add_argument("--rounds", type=int, default=300, help="records of each device in J1 and J1f")
    p.add_argument("--rounds-many", type=int, default=100, help="records of each device in J1m")
    p.add_argument("--rounds-peer", type=int, default=50, help="records of each device through a peer")
    p.add_argument("--rates", default="30000,100000,200000", help="messages a second for the job latency")
    p.add_argument("--latency-seconds", type=float, default=20)
    p.add_argument("--burst-seconds", type=int, default=60)
    p.add_argument("--flood-seconds", type=float, default=60)
    p.add_argument("--timeout", type=float, default=300, help="seconds after which a step is given up")
    p.add_argument("--work", default=None, help="folder for data directories (on the disk to be measured)")
    p.add_argument("--weir-arguments", default="", help="more arguments for weir run")
    p.add_argument("--out", default=None, help="file for the results as JSON")
    o = p.parse_args()
    base = pathlib.Path(o.work or HERE.parent / "target" / "bench")
    base.mkdir(parents=True, exist_ok=True)
    o.logs = base
    where = machine()
    print(json.dumps(where))
    print(HEADER, flush=True)
    results = []
    for rep, job, system, go in plan(o):
        work = pathlib.Path(tempfile.mkdtemp(dir=base))
        try:
            load = f"{os.getloadavg()[0]:.1f}"
            result = go(work)
            results.append({"job": job, "system": system, "rep": rep, "load_average": float(load)} | result)
            print(line(job, system, result, load), flush=True)
            if job == "burst":
                print("    " + ", ".join(f"{k} {v}" for k, v in result.items() if k not in ("series", "ack_ms")))
        except Exception as e:  # noqa: BLE001: one failed run must not lose the others
            print(f"{job:16} {system:10} FAILED: {e}", flush=True)
            results.append({"job": job, "system": system, "rep": rep, "failed": str(e), "ok": False})
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print("\nmedians")
    print(HEADER)
    for job, system, m in medians([r for r in results if "failed" not in r]):
        print(line(job, system, m, ""))
        if m["stages_per_million"]:
            print("    CPU s/M by thread: " + ", ".join(f"{k} {v}" for k, v in m["stages_per_million"].items()))
    if o.out:
        pathlib.Path(o.out).write_text(json.dumps({"machine": where, "results": results}, indent=1) + "\n")
    sys.exit(0 if all(r["ok"] for r in results) else 1)


if __name__ == "__main__":
    main()
