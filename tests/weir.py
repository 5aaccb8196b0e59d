"""The engine as a process, for tests from outside: start, ask, flush, kill, and read its tables with DuckDB.

Nothing here knows more than the documentation says: the command line, HTTP, and the layout of the files. A process
is only ever stopped by its own pid.
"""

import glob
import http.client
import json
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent


def binary(name="weir"):
    """Path of one of our programs: $WEIR_BIN_DIR, then target/release, then target/debug."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    for folder in (os.environ.get("WEIR_BIN_DIR"), target / "release", target / "debug"):
        if folder and (pathlib.Path(folder) / name).exists():
            return str(pathlib.Path(folder) / name)
    sys.exit(f"no {name} found: build it first (cargo build --release) or set WEIR_BIN_DIR")


def free_port():
    """A TCP port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def check(condition, text):
    """Ends the test with `text` unless `condition` holds."""
    if not condition:
        raise AssertionError(text)


class Engine:
    """One `weir run --insecure` on a data directory; may be started again and again."""

    def __init__(self, data, pipelines=None, mqtt_port=None, http_port=None, log=None, extra=(), program=None,
                 config=None, insecure=True):  # fmt: skip
        self.data = str(data)
        self.mqtt_port = mqtt_port or free_port()
        self.http_port = http_port or free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.program = program or binary()
        self.command = [self.program, "run", *(["--insecure"] if insecure else []), "--data", self.data]
        if pipelines:
            self.command += ["--pipelines", str(pipelines)]
        if insecure:
            self.command += ["--mqtt", f"127.0.0.1:{self.mqtt_port}"]
        self.command += ["--http", f"127.0.0.1:{self.http_port}", *extra]
        self.log_path = str(log or pathlib.Path(self.data).with_suffix(".log"))
        self.config_path = pathlib.Path(self.data).with_suffix(".toml")
        if config is not None:
            self.configure(config)
            self.command += ["--config", str(self.config_path)]
        self.process = None
        self.starts = 0
        # Shown with each request of `http`, if the engine wants to know who asks.
        self.token = None

    def configure(self, text):
        """Writes the configuration file; counts from the next start. Needs `config` at construction."""
        self.config_path.write_text(text)

    def start(self, timeout=60):
        """Starts the process and returns after how many seconds it said `ready`."""
        began = time.monotonic()
        self.log = open(self.log_path, "ab")
        self.log.write(f"--- start {self.starts}\n".encode())
        self.log.flush()
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=self.log)
        self.starts += 1
        lines = queue.Queue()
        self.listeners = []

        def pump(stream):
            for line in stream:
                lines.put(line.decode(errors="replace").strip())
            lines.put(None)

        threading.Thread(target=pump, args=(self.process.stdout,), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=max(0.01, began + timeout - time.monotonic()))
            except queue.Empty:
                self.kill()
                raise AssertionError(f"not ready within {timeout} s; see {self.log_path}") from None
            if line is None:
                code = self.process.wait()
                raise AssertionError(f"the engine ended with {code} instead of getting ready:\n{self.log_tail()}")
            if line == "ready":
                return time.monotonic() - began
            self.listeners.append(line)

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """kill -9, and waits until it is gone."""
        if self.alive():
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.log.close()

    def stop(self, timeout=60):
        """SIGTERM; returns the exit status. A process that does not end is killed and reported. Before that an engine
        that serves has to have counters that add up."""
        if self.ready():
            self.adds_up()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the engine did not end within {timeout} s after SIGTERM") from None
        finally:
            self.log.close()

    def log_tail(self, lines=30):
        """The end of its log."""
        with open(self.log_path, errors="replace") as f:
            return "".join(f.readlines()[-lines:])

    def http(self, path, body=None, headers=None, timeout=30, method=None):
        """Status and body of a request; a refused connection has the status 0."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = dict(headers or {})
        if self.token and "Authorization" not in headers:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as e:
            return e.code, e.read()
        except (urllib.error.URLError, OSError, http.client.HTTPException) as e:
            return 0, str(e).encode()

    def ready(self):
        """Whether /readyz says yes."""
        return self.http("/readyz", timeout=5)[0] == 200

    def flush(self, timeout=120):
        """`weir flush`: returns when all files up to now are visible."""
        r = subprocess.run([self.program, "flush", "--url", self.url], capture_output=True, text=True, timeout=timeout)
        check(r.returncode == 0, f"weir flush ended with {r.returncode}: {r.stderr}{r.stdout}")

    def query(self, sql, timeout=60):
        """Rows of `weir query -f json` on the data directory, as dicts."""
        command = [self.program, "query", "--data", self.data, "-f", "json", sql]
        r = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        check(r.returncode == 0, f"weir query ended with {r.returncode}: {r.stderr}")
        text = r.stdout.strip()
        if text.startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines()]

    def metrics(self):
        """Values of /metrics, by name with labels."""
        out = {}
        for line in self.http("/metrics")[1].decode(errors="replace").splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                try:
                    out[name] = float(value)
                except ValueError:
                    pass
        return out


    def adds_up(self, patience=30):
        """Checks that the counters add up: waits until nothing is on its way and the engine has compared them a few
        times since; then none of its comparisons may have failed, and the sums must be equal."""
        until = time.monotonic() + patience
        quiet = None
        while True:
            check(time.monotonic() < until, f"the engine is not quiet after {patience} s: {self.metrics()}")
            now = self.metrics()
            compared = now.get("weir_counter_comparisons_total")
            check(compared is not None, f"no counters from the engine:\n{self.log_tail()}")
            if now["weir_in_flight_bytes"] > 0:
                quiet = None
            elif quiet is None:
                quiet = compared
            elif compared >= quiet + 4:
                break
            time.sleep(0.2)
        wrong = {name: n for name, n in now.items() if name.startswith("weir_counter_mismatch_total") and n > 0}
        check(not wrong, f"counters do not add up: {wrong} {now}")
        parts = ("stored", "duplicate", "nacked", "dead_lettered")
        decided = sum(now[f"weir_records_{part}_total"] for part in parts)
        check(now["weir_records_received_total"] == decided, f"received is not what was decided: {now}")
        return now


def files(data, table):
    """The Parquet files of a table, as any reader with a glob finds them."""
    return sorted(glob.glob(f"{data}/tables/{table}/**/*.parquet", recursive=True))


def duck(data, *tables):
    """A DuckDB connection with a view per table; a table without files gets no view."""
    import duckdb

    c = duckdb.connect()
    c.execute("SET TimeZone = 'UTC'")
    for table in tables:
        if files(data, table):
            c.execute(
                f"""CREATE VIEW "{table}" AS SELECT * FROM read_parquet('{data}/tables/{table}/**/*.parquet',
                    hive_partitioning = true, union_by_name = true)"""
            )
    return c


def has(connection, table):
    """Whether the connection of `duck` has that table."""
    return bool(connection.execute("SELECT 1 FROM duckdb_views() WHERE view_name = ?", [table]).fetchall())


def rss(pid):
    """Resident bytes of a process now and at its peak."""
    now = peak = 0
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("VmRSS"):
                now = int(line.split()[1]) * 1024
            elif line.startswith("VmHWM"):
                peak = int(line.split()[1]) * 1024
    return now, peak
