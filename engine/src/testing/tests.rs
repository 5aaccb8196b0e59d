//! Scripts that pass, fail and are written anew, each in a folder of its own.

use super::*;

const PROJECT: &str = "
CREATE STREAM telemetry (t DOUBLE OPTIONS (id = 1), s TEXT OPTIONS (id = 2), l BIGINT[] OPTIONS (id = 3))
  WITH (version = '1.0', lateness = INTERVAL '5 seconds');
CREATE STREAM doors (open BOOLEAN OPTIONS (id = 1)) WITH (version = '1.0', schema = 2);
CREATE PIPELINE m AS SELECT device, tumble(ts, INTERVAL '1 minute') AS w, avg(t) AS a, count(*) AS n
FROM telemetry GROUP BY device, w;
";

async fn go(files: &[(&str, &str)], update: bool) -> (Vec<Report>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.sql"), PROJECT).unwrap();
    for (name, text) in files {
        std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let mut reports = Vec::new();
    for (file, folder) in find(&[dir.path().to_owned()]).unwrap() {
        reports.push(run(file, load(&folder).unwrap(), update).await);
    }
    (reports, dir)
}

async fn fails(script: &str) -> String {
    let (reports, _) = go(&[("a.slt", script)], false).await;
    reports[0].failure.clone().unwrap()
}

#[tokio::test]
async fn records_pass_the_whole_engine() {
    let script = "
statement count 4
INSERT INTO telemetry (device, ts, epoch, seq, t) VALUES
  ('a', '2026-01-01T00:00:10Z', 7, 1, 20.0), ('a', '2026-01-01T00:00:20Z', 7, 2, 22.0),
  ('a', '2026-01-01T00:00:20Z', 7, 2, 22.0), ('b', '2026-01-01T00:01:00Z', 7, 1, NULL)

query TIRB
SELECT device, seq, t, assured FROM telemetry ORDER BY device, seq
----
a 1 20.0 true
a 2 22.0 true
b 1 NULL true

query I
SELECT count(*) FROM m
----
0

statement ok
FLUSH

query TTRI
SELECT device, w, a, n FROM m ORDER BY device
----
a 2026-01-01T00:00:00Z 21.0 2
b 2026-01-01T00:01:00Z NULL 1

statement count 2
COPY telemetry FROM 'data/recorded.ndjson'

statement ok
INSERT INTO doors (device, open) SELECT 'gate', NOT false

query TTT
SELECT device, s, l FROM telemetry WHERE s IS NOT NULL
----
c (empty) [1, 2]

query TBT
SELECT device, open, ts_ingest > ts FROM doors
----
gate true false
";
    let recorded = "{\"device\":\"c\",\"ts\":\"2026-02-01T00:00:00Z\",\"s\":\"\",\"l\":[1,2]}\n\n{\"device\":\"c\",\"ts\":1769904001000000000}\n";
    let (reports, _) = go(&[("tests/a.slt", script), ("tests/data/recorded.ndjson", recorded)], false).await;
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].failure, None, "{}", reports[0].failure.as_deref().unwrap_or_default());
    assert_eq!(reports[0].records, 9);
}

#[tokio::test]
async fn a_failure_names_its_place_and_shows_what_differs() {
    let text = fails("query I\nSELECT 1\n----\n2\n").await;
    assert!(text.contains("-   2") && text.contains("+   1") && text.contains("a.slt:1"), "{text}");
    for (script, says) in [
        (
            "statement ok\nINSERT INTO nothing (device) VALUES ('a')\n",
            "there is no stream `nothing`; there are: telemetry, doors",
        ),
        ("statement ok\nINSERT INTO m (device) VALUES ('a')\n", "`m` is a pipeline"),
        ("statement ok\nINSERT INTO telemetry (device, tt) VALUES ('a', 1)\n", "has no field `tt`"),
        (
            "statement ok\nINSERT INTO telemetry (device) VALUES ('a', 1)\n",
            "1 columns are named, and each row has 2 values",
        ),
        ("statement ok\nINSERT INTO telemetry (t) VALUES (1)\n", "`device` is missing"),
        ("statement ok\nINSERT INTO telemetry (device) VALUES ('a b')\n", "device \"a b\""),
        ("statement ok\nINSERT INTO telemetry (device, t) VALUES ('a', 'warm')\n", "column `t`"),
        ("statement ok\nCOPY telemetry FROM 'gone.ndjson'\n", "gone.ndjson: cannot be read"),
        ("statement ok\nDELETE FROM telemetry\n", "DML not supported"),
        ("statement nonsense\nSELECT 1\n", "a.slt:1"),
        ("system ok\ntrue\n", "do not run programs"),
    ] {
        let text = fails(script).await;
        assert!(text.contains(says), "{script}{text}");
    }
}

#[tokio::test]
async fn what_the_engine_refuses_is_the_statements_error() {
    let bad = "{\"device\":\"a\",\"t\":1}\n{\"device\":\"a\",\"t\":\"warm\"}\n";
    let script = "statement error refused: .*bad.ndjson:2: .*`t`\nCOPY telemetry FROM 'bad.ndjson'\n\nquery T\nSELECT reason FROM _dead_letters\n----\nschema_mismatch\n";
    let (reports, _) = go(&[("a.slt", script), ("bad.ndjson", bad)], false).await;
    assert_eq!(reports[0].failure, None, "{}", reports[0].failure.as_deref().unwrap_or_default());
}

#[tokio::test]
async fn update_writes_the_results_in() {
    let script = "# kept\nstatement ok\nINSERT INTO telemetry (device, ts, t) VALUES ('a', '2026-01-01T00:00:10Z', 20.5)\n\nquery TR\nSELECT device, t FROM telemetry\n----\nwrong\n";
    let (reports, dir) = go(&[("a.slt", script), ("empty.slt", "")], true).await;
    assert!(reports.iter().all(|report| report.failure.is_none()), "{reports:?}");
    let text = std::fs::read_to_string(dir.path().join("a.slt")).unwrap();
    assert_eq!(text, script.replace("wrong", "a 20.5"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left behind");
}

#[test]
fn a_test_belongs_to_the_nearest_project() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    std::fs::create_dir_all(at("p/tests/deep")).unwrap();
    for file in ["p/a.sql", "p/tests/deep/x.slt", "p/y.SLT", "p/.hidden.slt"] {
        std::fs::write(at(file), "").unwrap();
    }
    assert_eq!(find(&[at("p/tests/deep/x.slt")]).unwrap(), [(at("p/tests/deep/x.slt"), at("p"))]);
    let all = find(&[at("p")]).unwrap();
    assert_eq!(all, [(at("p/tests/deep/x.slt"), at("p")), (at("p/y.SLT"), at("p"))]);
    assert!(find(&[at("nowhere")]).unwrap_err().to_string().contains("nowhere: cannot be read"));
}

#[tokio::test]
async fn the_sample_project_is_as_its_test_says() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/library/demo"));
    let found = find(std::slice::from_ref(&folder)).unwrap();
    let report = run(found[0].0.clone(), load(&folder).unwrap(), false).await;
    assert_eq!(report.failure, None, "{}", report.failure.as_deref().unwrap_or_default());
}

#[tokio::test]
async fn windows_that_overlap_and_sessions() {
    let pipelines = "
CREATE PIPELINE h AS SELECT device, hop(ts, INTERVAL '1 minute', INTERVAL '2 minutes') AS w, window_end() AS e, sum(t) AS t
FROM telemetry GROUP BY device, w;
CREATE PIPELINE s AS SELECT device, session(ts, INTERVAL '1 minute') AS w, window_end() AS e, count(*) AS n
FROM telemetry GROUP BY device, w HAVING count(*) > 1;
";
    let script = "
statement ok
INSERT INTO telemetry (device, ts, epoch, seq, t) VALUES
  ('a', '2026-01-01T00:00:30Z', 7, 1, 1.0), ('a', '2026-01-01T00:01:10Z', 7, 2, 2.0),
  ('a', '2026-01-01T00:02:09Z', 7, 3, 4.0), ('a', '2026-01-01T00:03:09Z', 7, 4, 8.0)

statement ok
FLUSH

query TTR
SELECT w, e, t FROM h ORDER BY w
----
2025-12-31T23:59:00Z 2026-01-01T00:01:00Z 1.0
2026-01-01T00:00:00Z 2026-01-01T00:02:00Z 3.0
2026-01-01T00:01:00Z 2026-01-01T00:03:00Z 6.0
2026-01-01T00:02:00Z 2026-01-01T00:04:00Z 12.0
2026-01-01T00:03:00Z 2026-01-01T00:05:00Z 8.0

query TTI
SELECT w, e, n FROM s
----
2026-01-01T00:00:30Z 2026-01-01T00:03:09Z 3
";
    let (reports, _) = go(&[("windows.sql", pipelines), ("a.slt", script)], false).await;
    assert_eq!(reports[0].failure, None);
}

#[tokio::test]
async fn a_rollup_gives_what_each_length_alone_would_give() {
    let pipelines = "
CREATE PIPELINE r WITH (rollup = '1 minute, 1 hour, 1 day') AS
SELECT device, tumble(ts, rollup) AS w, avg(t) AS a, stddev(t) AS d, median(t) AS p,
       count(DISTINCT s) AS c, last_value(s ORDER BY ts) AS l
FROM telemetry GROUP BY device, w;
";
    let script = "
statement ok
INSERT INTO telemetry (device, ts, epoch, seq, t, s) VALUES
  ('a', '2026-01-01T00:00:10Z', 7, 1, 1.0, 'x'), ('a', '2026-01-01T00:00:20Z', 7, 2, 2.0, 'y'),
  ('a', '2026-01-01T00:05:00Z', 7, 3, 6.0, 'x'), ('a', '2026-01-01T02:00:00Z', 7, 4, 11.0, 'z')

statement ok
FLUSH

query I
SELECT count(*) FROM r_1m
----
3

query TRRRIT
SELECT w, a, round(d, 3), p, c, l FROM r_1h ORDER BY w
----
2026-01-01T00:00:00Z 3.0 2.646 2.0 2 x
2026-01-01T02:00:00Z 11.0 NULL 11.0 1 z

query TRRRIT
SELECT w, a, round(d, 3), p, c, l FROM r_1d
----
2026-01-01T00:00:00Z 5.0 4.546 4.0 3 z
";
    let (reports, _) = go(&[("rollup.sql", pipelines), ("a.slt", script)], false).await;
    assert_eq!(reports[0].failure, None);
}

#[tokio::test]
async fn records_find_their_rows_in_reference_tables() {
    let pipelines = "
CREATE TABLE sites (device TEXT, site TEXT, model BIGINT) WITH (location = 'data/sites.csv', key = 'device');
CREATE TABLE models (model BIGINT, maker TEXT, limit_t DOUBLE OPTIONS (unit = 'Cel')) WITH (location = 'models.ndjson', key = 'model');
CREATE PIPELINE enriched AS SELECT t.ts, t.device, site, o.maker, o.limit_t - t AS room FROM telemetry t
JOIN sites s ON t.device = s.device LEFT JOIN models o ON s.model = o.model WHERE t > 0;
CREATE PIPELINE by_site AS SELECT device, s.site, tumble(ts, INTERVAL '1 minute') AS w, count(*) AS n, max(maker) AS maker
FROM telemetry LEFT JOIN sites s USING (device) LEFT JOIN models ON models.model = s.model GROUP BY device, site, w;
CREATE PIPELINE everything AS SELECT * FROM telemetry t JOIN sites s ON s.device = t.device;
";
    let sites = "device,site,model\na,north,1\nb,south,2\nd,,\n";
    let models = "{\"model\": 1, \"maker\": \"acme\", \"limit_t\": 50.0}\n";
    let script = "
statement ok
INSERT INTO telemetry (device, ts, epoch, seq, t) VALUES
  ('a', '2026-01-01T00:00:10Z', 7, 1, 20.0), ('b', '2026-01-01T00:00:10Z', 7, 1, 30.0),
  ('c', '2026-01-01T00:00:10Z', 7, 1, 40.0), ('d', '2026-01-01T00:00:10Z', 7, 1, -1.0)

statement ok
FLUSH

query TTTR
SELECT device, site, maker, room FROM enriched ORDER BY device
----
a north acme 30.0
b south NULL NULL

query TTTI
SELECT device, site, maker, n FROM by_site ORDER BY device
----
a north acme 1
b south NULL 1
c NULL NULL 1
d NULL NULL 1

query TRTI
SELECT device, t, site, model FROM everything ORDER BY device
----
a 20.0 north 1
b 30.0 south 2
d -1.0 NULL NULL
";
    let files = [("joins.sql", pipelines), ("data/sites.csv", sites), ("models.ndjson", models), ("a.slt", script)];
    let (reports, _) = go(&files, false).await;
    assert_eq!(reports[0].failure, None);
}

#[tokio::test]
async fn records_of_two_streams_are_joined() {
    let pipelines = "
CREATE STREAM alarms (code BIGINT OPTIONS (id = 1)) WITH (version = '1.0', schema = 7);
CREATE TABLE codes (code BIGINT, word TEXT) WITH (location = 'codes.csv', key = 'code');
CREATE PIPELINE near WITH (lateness = INTERVAL '20 seconds') AS
SELECT a.ts, a.device, a.code, word, x.t, x.ts AS measured
FROM alarms a JOIN telemetry x
  ON a.device = x.device AND x.ts BETWEEN a.ts - INTERVAL '10 seconds' AND a.ts + INTERVAL '5 seconds'
  LEFT JOIN codes c ON a.code = c.code
WHERE x.t > 3;
CREATE PIPELINE quiet AS SELECT a.ts, a.device, a.code FROM alarms a LEFT JOIN telemetry x
  ON a.device = x.device AND a.ts - x.ts BETWEEN INTERVAL '-5 seconds' AND INTERVAL '10 seconds' WHERE x.ts IS NULL;
CREATE PIPELINE by_minute AS SELECT a.device, tumble(a.ts, INTERVAL '1 minute') AS w, count(*) AS n, max(x.t) AS t
FROM alarms a LEFT JOIN telemetry x ON a.device = x.device AND x.ts > a.ts AND x.ts <= a.ts + INTERVAL '5 seconds'
GROUP BY a.device, w;
CREATE PIPELINE by_code AS SELECT a.code, tumble(a.ts, INTERVAL '1 minute') AS w, count(x.t) AS n FROM alarms a
JOIN telemetry x ON a.device = x.device AND x.ts BETWEEN a.ts - INTERVAL '10 seconds' AND a.ts + INTERVAL '5 seconds'
GROUP BY a.code, w;
CREATE PIPELINE worst AS SELECT device, tumble(ts, INTERVAL '1 hour') AS h, max(t) AS t FROM near GROUP BY device, h;
CREATE PIPELINE rise AS SELECT x.ts, x.device, x.t - y.t AS rise FROM telemetry x JOIN telemetry y
  ON x.device = y.device AND y.ts BETWEEN x.ts - INTERVAL '3 seconds' AND x.ts - INTERVAL '1 ns';
";
    let script = "
statement ok
INSERT INTO telemetry (device, ts, epoch, seq, t) VALUES
  ('a', '2026-01-01T00:00:10Z', 7, 1, 2.0), ('a', '2026-01-01T00:00:12Z', 7, 2, 8.0), ('b', '2026-01-01T00:00:12Z', 7, 1, 9.0)

statement ok
INSERT INTO alarms (device, ts, epoch, seq, code) VALUES
  ('a', '2026-01-01T00:00:20Z', 8, 1, 1), ('b', '2026-01-01T00:00:50Z', 8, 1, 1), ('c', '2026-01-01T00:00:50Z', 8, 1, 2)

statement ok
INSERT INTO telemetry (device, ts, epoch, seq, t) VALUES ('a', '2026-01-01T00:00:25Z', 7, 3, 20.0), ('a', '2026-01-01T00:00:26Z', 7, 4, 30.0)

statement ok
FLUSH

query TTITRT
SELECT device, ts, code, word, t, measured FROM near ORDER BY device, measured
----
a 2026-01-01T00:00:20Z 1 door 8.0 2026-01-01T00:00:12Z
a 2026-01-01T00:00:20Z 1 door 20.0 2026-01-01T00:00:25Z

query TTI
SELECT device, ts, code FROM quiet ORDER BY device
----
b 2026-01-01T00:00:50Z 1
c 2026-01-01T00:00:50Z 2

query TTIR
SELECT device, w, n, t FROM by_minute ORDER BY device
----
a 2026-01-01T00:00:00Z 1 20.0
b 2026-01-01T00:00:00Z 1 NULL
c 2026-01-01T00:00:00Z 1 NULL

query ITI
SELECT code, w, n FROM by_code ORDER BY code
----
1 2026-01-01T00:00:00Z 3

query TTR
SELECT device, h, t FROM worst
----
a 2026-01-01T00:00:00Z 20.0

query TTR
SELECT device, ts, rise FROM rise ORDER BY device, ts
----
a 2026-01-01T00:00:12Z 6.0
a 2026-01-01T00:00:26Z 10.0

statement ok
INSERT INTO alarms (device, ts, epoch, seq, code) VALUES ('a', '2026-01-01T00:00:21Z', 8, 2, 1)

statement ok
FLUSH

query TTTI
SELECT pipeline, window_start, reason, records FROM _late WHERE pipeline = 'near'
----
near 2026-01-01T00:00:21Z late: a row of alarms came after the rows of this device that it may be joined to were given up 1
";
    let files = [("joins.sql", pipelines), ("codes.csv", "code,word\n1,door\n"), ("a.slt", script)];
    let (reports, _) = go(&files, false).await;
    assert_eq!(reports[0].failure, None);
}

#[tokio::test]
async fn alerts_are_tested_like_tables() {
    let alerts = "CREATE ALERT hot ON telemetry
  WHEN t > 80 FOR INTERVAL '20 seconds' CLEAR WHEN t < 75 SEVERITY 'warning'
  WHEN t > 95 CLEAR WHEN t < 90 SEVERITY 'critical'
  WITH (keep_firing_for = INTERVAL '10 seconds', max_gap = INTERVAL '1 minute', no_data_after = INTERVAL '10 minutes');
CREATE ALERT open ON doors WHEN open WITH (labels = 'team=gate');
";
    let script = "
statement ok
INSERT INTO telemetry (device, ts, t) VALUES
  ('a', '2026-01-01T00:00:00Z', 81), ('a', '2026-01-01T00:00:10Z', 82), ('a', '2026-01-01T00:00:20Z', 83),
  ('a', '2026-01-01T00:00:30Z', 96), ('a', '2026-01-01T00:00:40Z', 78), ('a', '2026-01-01T00:00:50Z', 74),
  ('a', '2026-01-01T00:01:00Z', 76), ('a', '2026-01-01T00:01:10Z', 73), ('b', '2026-01-01T00:00:20Z', 99)

statement ok
INSERT INTO doors (device, ts, open) VALUES ('b', '2026-01-01T00:01:00Z', TRUE), ('b', '2026-01-01T00:01:10Z', NULL),
  ('b', '2026-01-01T00:01:20Z', FALSE)

query TTTTTT
SELECT device, ts, event, state, severity, since FROM _alerts WHERE rule = 'hot' AND device = 'a' ORDER BY number
----
a 2026-01-01T00:00:00Z pending pending warning 2026-01-01T00:00:00Z
a 2026-01-01T00:00:20Z fired firing warning 2026-01-01T00:00:00Z
a 2026-01-01T00:00:30Z escalated firing critical 2026-01-01T00:00:00Z
a 2026-01-01T00:00:50Z recovering recovering critical 2026-01-01T00:00:00Z
a 2026-01-01T00:01:10Z resolved ok critical 2026-01-01T00:00:00Z

statement ok
FLUSH

query TTT
SELECT device, event, state FROM _alerts WHERE rule = 'hot' AND number > 5 ORDER BY device, number
----
a no_data no_data

query TTTT
SELECT device, event, state, labels FROM _alerts WHERE rule = 'open' ORDER BY number
----
b fired firing team=gate
b resolved ok team=gate
";
    let (reports, _) = go(&[("alerts.sql", alerts), ("a.slt", script)], false).await;
    assert_eq!(reports[0].failure, None);
}
