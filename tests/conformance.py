"""Conformance: the gateway against the normative statements of MQTT 3.1.1 and MQTT 5.0, over bare sockets.

    conformance.py [--only TEXT] [--url ... none: it starts its own engine]
    conformance.py --write-docs     writes the table of docs/mqtt.md; without it a table that is not up to date fails

Every case names the statements that it tests, by the numbers of the standards: 4.7.2-1 stands for [MQTT-4.7.2-1].
Every statement is tested by a case, or binds clients only, or is about something that is not served here: a
statement that is none of that fails the run.
"""

import argparse
import concurrent.futures
import pathlib
import shutil
import sys
import tempfile
import time
import traceback

import statements
from statements import ABSENT, CLIENTS, V3, V5
from weir import ROOT, Engine

import conformance_connect  # noqa: F401: its cases
import conformance_publish  # noqa: F401
import conformance_subscribe  # noqa: F401

DOC = ROOT / "docs" / "mqtt.md"
MARK = "<!-- written by tests/conformance.py --write-docs -->"

CONFIG = """
[mqtt]
max_keep_alive = "600s"
no_subscribe = ["closed/#"]
"""


def uncovered():
    """Statements that nobody looks after, and those looked after that do not exist."""
    wrong = []
    for name, all_of, version in (("3.1.1", V3, 4), ("5.0", V5, 5)):
        tested = {s for c in statements.CASES for s in c.statements.get(version, ())}
        other = set(CLIENTS[version]) | set(ABSENT[version])
        for s in all_of:
            if s not in tested and s not in other:
                wrong.append(f"MQTT {name} [MQTT-{s}] is neither tested nor set aside")
        for s in tested | other:
            if s not in all_of:
                wrong.append(f"MQTT {name} has no [MQTT-{s}]")
        for s in tested & other:
            wrong.append(f"MQTT {name} [MQTT-{s}] is tested and set aside")
    return wrong


def table():
    """The part of docs/mqtt.md that is written from the cases."""
    out = [MARK, ""]
    for name, all_of, version in (("5.0", V5, 5), ("3.1.1", V3, 4)):
        tested = [s for s in all_of if any(s in c.statements.get(version, ()) for c in statements.CASES)]
        out += [f"### MQTT {name}: {len(all_of)} statements, {len(tested)} tested", ""]
        out += ["| tested by | statements |", "|---|---|"]
        for c in statements.CASES:
            if c.statements.get(version):
                out.append(f"| {c.words} | {', '.join(c.statements[version])} |")
        out += ["", "| not tested here | why |", "|---|---|"]
        reasons = {}
        for s in all_of:
            why = CLIENTS[version].get(s) or ABSENT[version].get(s)
            if why:
                reasons.setdefault(why, []).append(s)
        out += [f"| {', '.join(ids)} | {why} |" for why, ids in reasons.items()]
        out.append("")
    return "\n".join(out).rstrip() + "\n"


def run_case(case, version, port):
    began = time.monotonic()
    try:
        case.function(statements.Bench(port, version, case.name))
        return None, time.monotonic() - began
    except Exception as e:  # noqa: BLE001: any failure is the result of the case
        where = traceback.extract_tb(e.__traceback__)
        line = next((f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in where if "conformance_" in f.filename), "")
        return f"{line} {type(e).__name__}: {e}", time.monotonic() - began


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default="", help="run only cases whose name or statements hold this")
    p.add_argument("--write-docs", action="store_true")
    p.add_argument("--threads", type=int, default=24)
    o = p.parse_args()
    wrong = uncovered()
    text = DOC.read_text() if DOC.exists() else ""
    head = text.split(MARK)[0]
    if o.write_docs:
        DOC.write_text(head + table())
    elif text != head + table():
        wrong.append("docs/mqtt.md is not up to date: run conformance.py --write-docs")
    for w in wrong:
        print(f"conformance: {w}")

    folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-conformance-"))
    engine = Engine(folder / "data", config=CONFIG)
    engine.start()
    began = time.monotonic()
    failed = []
    try:
        jobs = [(c, v) for c in statements.CASES for v in c.statements if o.only in f"{c.name} {c.statements[v]}"]
        # The slow ones first.
        jobs.sort(key=lambda job: -job[0].seconds)
        with concurrent.futures.ThreadPoolExecutor(o.threads) as pool:
            results = [(c, v, pool.submit(run_case, c, v, engine.mqtt_port)) for c, v in jobs]
            for c, v, result in results:
                error, seconds = result.result()
                if error:
                    failed.append(c.name)
                    ids = " ".join(f"[MQTT-{s}]" for s in c.statements[v])
                    print(f"FAILED {c.name} ({'5.0' if v == 5 else '3.1.1'}, {seconds:.1f} s): {error}\n    {ids}")
        if not engine.alive():
            failed.append("the engine ended")
        elif engine.stop() != 0:
            failed.append("the engine's exit status")
    finally:
        if engine.alive():
            engine.kill()
    n = {v: len({s for c in statements.CASES for s in c.statements.get(v, ())}) for v in (4, 5)}
    print(f"conformance: {len(jobs) - len(failed)} of {len(jobs)} cases in {time.monotonic() - began:.0f} s; "
          f"statements tested: {n[4]} of {len(V3)} (3.1.1), {n[5]} of {len(V5)} (5.0)")  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
