"""What a run of `weir demo --data DIR` left behind, as readers that are not ours see it.

    readers.py DIR [--rows N]

DuckDB, Polars and pyarrow open every table with nothing but a glob and must count the same rows, the same distinct
keys and the same sums; DuckDB then computes the demo's windows from the raw rows and compares. `weir query --data`,
our own reader, has to agree. With --rows the raw table must hold exactly so many. Exit status 0 if all holds.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

import duckdb
import polars
import pyarrow.dataset
import pyarrow.parquet

from weir import binary, check, duck, files

NAME = re.compile(r"^\d{4}-\d{12}-\d{12}\.parquet$")
WINDOW_NS = 10_000_000_000


def readers(path, key, number):
    """Rows, distinct keys and the sum of one number, as (name, (rows, keys, sum)) of each reader."""
    columns = ", ".join(key)
    yield "duckdb", duckdb.connect().execute(
        f"""SELECT count(*), count(DISTINCT ({columns})), sum({number}::DOUBLE)
            FROM read_parquet('{path}/**/*.parquet', hive_partitioning = true, union_by_name = true)"""
    ).fetchone()
    frame = polars.scan_parquet(f"{path}/**/*.parquet", hive_partitioning=True)
    yield "polars", frame.select(
        polars.len(), polars.struct(key).n_unique().alias("keys"), polars.col(number).sum().cast(polars.Float64).alias("sum")
    ).collect().row(0)
    table = pyarrow.dataset.dataset(path, partitioning="hive").to_table(columns=[*key, number])
    keys = table.group_by(key).aggregate([]).num_rows
    yield "pyarrow", (table.num_rows, keys, float(pyarrow.compute.sum(table[number]).as_py() or 0))


def names_and_metadata(data, table):
    """Every file is named as the manifest wants, has nanoseconds in UTC, and says what it is."""
    for file in files(data, table):
        check(NAME.match(pathlib.Path(file).name), f"{file}: not a name of the manifest")
        schema = pyarrow.parquet.read_schema(file)
        for field in schema:
            if pyarrow.types.is_timestamp(field.type):
                check(str(field.type) == "timestamp[ns, tz=UTC]", f"{file}: {field.name} is {field.type}")
        said = " ".join(k.decode() for k in schema.metadata or {})
        check("table" in said and "shard" in said, f"{file}: metadata has only {said}")


def compare(data, table, key, number):
    """All readers, ours included, see the same. Returns the number of rows."""
    names_and_metadata(data, table)
    seen = dict(readers(f"{data}/tables/{table}", key, number))
    sql = f'SELECT count(*) AS n, count(DISTINCT {key[-1]}) AS k, sum({number}) AS s FROM "{table}"'
    command = [binary(), "query", "--data", str(data), "-f", "json", sql]
    ours = subprocess.run(command, capture_output=True, text=True, timeout=120)
    check(ours.returncode == 0, f"weir query: {ours.stderr}")
    text = ours.stdout.strip()
    row = json.loads(text)[0] if text.startswith("[") else json.loads(text.splitlines()[0])
    rows, keys, total = seen["duckdb"]
    check(rows > 0 and rows == keys, f"{table}: {rows} rows, but {keys} keys")
    for name, (n, k, s) in seen.items():
        check((n, k) == (rows, keys), f"{table}: {name} sees {n} rows and {k} keys, duckdb {rows} and {keys}")
        check(abs(s - total) <= 1e-9 * abs(total), f"{table}: {name} sums {number} to {s}, duckdb to {total}")
    check(row["n"] == rows, f"{table}: weir query counts {row['n']}, duckdb {rows}")
    check(abs(row["s"] - total) <= 1e-9 * abs(total), f"{table}: weir query sums to {row['s']}, duckdb to {total}")
    print(f"  {table}: {rows} rows, alike for {', '.join(seen)} and weir query")
    return rows


def windows(data):
    """Each window of climate_10s equals what DuckDB computes from the raw rows."""
    c = duck(data, "telemetry", "climate_10s")
    stored, wrong, missing = c.execute(
        f"""WITH raw AS (SELECT device, epoch_ns(ts) - epoch_ns(ts) % {WINDOW_NS} AS start, temperature AS t FROM telemetry
                         WHERE temperature IS NOT NULL),
                 e AS (SELECT device, start, count(*) AS n, avg(t) AS a, min(t) AS lo, max(t) AS hi FROM raw GROUP BY ALL),
                 s AS (SELECT *, epoch_ns(window_start) AS start FROM climate_10s)
            SELECT count(*), count(*) FILTER (e.n IS DISTINCT FROM s.n OR e.lo IS DISTINCT FROM s.temperature_min
                     OR e.hi IS DISTINCT FROM s.temperature_max OR NOT abs(e.a - s.temperature_avg) <= 1e-9 * abs(e.a)
                     OR NOT s.temperature_p95 BETWEEN s.temperature_min AND s.temperature_max),
                   count(*) FILTER (e.n IS NULL)
            FROM s LEFT JOIN e USING (device, start)"""
    ).fetchone()
    check(missing == 0, f"{missing} windows without a raw row")
    check(wrong == 0, f"{wrong} of {stored} windows differ from the raw rows")
    hot, expected = c.execute(
        f"""SELECT (SELECT count(*) FROM read_parquet('{data}/tables/hot/**/*.parquet')),
                   (SELECT count(*) FROM telemetry WHERE temperature > 30)"""
    ).fetchone() if files(data, "hot") else (0, c.execute("SELECT count(*) FROM telemetry WHERE temperature > 30").fetchone()[0])
    check(hot == expected, f"hot has {hot} rows, the raw rows {expected}")
    print(f"  {stored} windows equal DuckDB's from the raw rows; hot: {hot} rows")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=pathlib.Path)
    p.add_argument("--rows", type=int, default=None, help="rows that the raw table must have")
    o = p.parse_args()
    try:
        rows = compare(o.data, "telemetry", ["device", "epoch", "seq"], "temperature")
        check(o.rows in (None, rows), f"telemetry has {rows} rows, expected {o.rows}")
        compare(o.data, "climate_10s", ["device", "window_start"], "n")
        windows(o.data)
    except AssertionError as e:
        print(f"readers: FAILED: {e}")
        return 1
    print("readers: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
