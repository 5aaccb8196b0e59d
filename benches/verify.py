"""Compares what stands in Parquet with the truth of the generator, through DuckDB.

    verify.py DATA TRUTH [--lateness 40] [--slack 2]

DATA is the engine's data directory, TRUTH the folder that `load truth` wrote. Checked are: every record exactly once
per (device, epoch, seq); the sums of all columns; every row of the sampled devices bit for bit; every window that
must be closed and no other, with count, minimum, maximum and mean, and the approximate percentile between its
neighbours. Exit status 1 if anything differs. A fast wrong answer counts as zero.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from weir import duck, files, has  # noqa: E402


def verify(data, truth, pipeline="j1_1m", lateness=40.0, slack=2.0):
    """A dict of figures; `ok` says whether all is as it must be, `problems` what is not."""
    truth = pathlib.Path(truth)
    totals = json.loads((truth / "totals.json").read_text())
    c = duck(data, "telemetry", pipeline, "_late", "_losses", "_dead_letters")
    c.execute("SET threads = 2")
    problems = []
    out = {"problems": problems, "rows_expected": totals["rows"]}

    def expect(what, got, wanted):
        if got != wanted:
            problems.append(f"{what}: {got}, expected {wanted}")

    if not has(c, "telemetry"):
        problems.append("no file of table telemetry")
        return out | {"ok": False, "rows": 0}
    rows, distinct, t, h, v, epochs, epoch = c.execute(
        """SELECT count(*), count(DISTINCT (device, epoch, seq)), sum(round(temperature * 100)::HUGEINT),
                  sum(round(humidity * 100)::HUGEINT), sum(round(vibration * 1000)::HUGEINT),
                  count(DISTINCT epoch), max(epoch) FROM telemetry"""
    ).fetchone()
    out |= {"rows": rows, "distinct": distinct}
    expect("rows", rows, totals["rows"])
    expect("distinct (device, epoch, seq)", distinct, totals["rows"])
    expect("epochs", (epochs, epoch), (1, totals["epoch"]))
    expect("sum of temperature, hundredths", int(t), totals["sum_temperature_hundredths"])
    expect("sum of humidity, hundredths", int(h), totals["sum_humidity_hundredths"])
    expect("sum of vibration, thousandths", int(v), totals["sum_vibration_thousandths"])
    c.execute(f"CREATE TABLE sample AS SELECT * FROM read_csv('{truth}/rows.csv')")
    wrong = c.execute(
        """SELECT count(*), count(*) FILTER (r.device IS NULL OR epoch_ns(r.ts) IS DISTINCT FROM s.ts_ns
             OR r.temperature IS DISTINCT FROM s.temperature OR r.humidity IS DISTINCT FROM s.humidity
             OR r.vibration IS DISTINCT FROM s.vibration)
           FROM sample s LEFT JOIN telemetry r ON r.device = s.device AND r.seq = s.seq"""
    ).fetchone()
    out["sampled_rows"] = wrong[0]
    expect("sampled rows that differ", wrong[1], 0)
    for table in ("_late", "_losses", "_dead_letters"):
        n = c.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0] if has(c, table) else 0
        out[table] = n
        expect(f"rows in {table}", n, 0)
    windows(c, truth, totals, pipeline, lateness, slack, out, expect)
    size = lambda table: sum(pathlib.Path(f).stat().st_size for f in files(data, table))  # noqa: E731
    out["bytes_per_row"] = round(size("telemetry") / max(1, rows), 2)
    out["files"] = len(files(data, "telemetry")) + len(files(data, pipeline))
    return out | {"ok": not problems}


def windows(c, truth, totals, pipeline, lateness, slack, out, expect):
    """The pipeline's table against the truth, for all windows that must be closed."""
    if not has(c, pipeline):
        expect(f"table {pipeline}", "absent", "present")
        return
    margin = totals["window_ns"] + round((lateness + slack) * 1e9)
    c.execute(
        f"""CREATE TABLE expected AS SELECT w.* FROM read_csv('{truth}/windows.csv') w
            JOIN (SELECT device, max(epoch_ns(ts)) AS last FROM telemetry GROUP BY device) d USING (device)
            WHERE w.window_ns + {margin} <= d.last"""
    )
    c.execute(
        f"""CREATE TABLE stored AS SELECT device, epoch_ns(window_start) AS window_ns, n, temperature_avg AS a,
            temperature_min AS lo, temperature_max AS hi, temperature_p95 AS p95 FROM {pipeline}"""
    )
    expected, missing, count, low, high, mean, p95, p95_error = c.execute(
        """SELECT count(*), count(*) FILTER (s.device IS NULL), count(*) FILTER (s.n <> e.n),
                  count(*) FILTER (s.lo <> e.min), count(*) FILTER (s.hi <> e.max),
                  count(*) FILTER (abs(s.a - e.avg) > 1e-9 * abs(e.avg)),
                  count(*) FILTER (s.p95 NOT BETWEEN e.p95_low - 1e-9 AND e.p95_high + 1e-9 OR s.p95 IS NULL),
                  avg(abs(s.p95 - e.p95))
           FROM expected e LEFT JOIN stored s USING (device, window_ns)"""
    ).fetchone()
    stored = c.execute("SELECT count(*) FROM stored").fetchone()[0]
    out |= {"windows": stored, "windows_expected": expected, "p95_mean_error": p95_error}
    expect("windows stored", stored, expected)
    expect("windows missing", missing, 0)
    expect("windows with a wrong count", count, 0)
    expect("windows with a wrong minimum", low, 0)
    expect("windows with a wrong maximum", high, 0)
    expect("windows with a wrong mean", mean, 0)
    expect("windows whose percentile is off", p95, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("truth")
    parser.add_argument("--lateness", type=float, default=40.0)
    parser.add_argument("--slack", type=float, default=2.0)
    o = parser.parse_args()
    result = verify(o.data, o.truth, lateness=o.lateness, slack=o.slack)
    print(json.dumps(result, indent=1))
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
