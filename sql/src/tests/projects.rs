//! Projects that are right: what comes out of them.

use std::collections::HashMap;

use arrow::datatypes::DataType;
use device::schema::{DEFAULT_STREAM, FieldType, SchemaVersion};

use super::{TELEMETRY, file, says};
use crate::{Granularity, Kind, Project, check, render_all};

const SECOND: i64 = 1_000_000_000;

/// The example of the specification.
const STREAM: &str = "-- what devices send
CREATE STREAM telemetry (
  temperature DOUBLE OPTIONS (id = 1, unit = 'Cel') COMMENT 'of the air',
  humidity    DOUBLE OPTIONS (id = 2, unit = '%'),
  vibration   DOUBLE OPTIONS (id = 3, unit = 'mm/s', scale = -3),
  status      TEXT   OPTIONS (id = 4)
) COMMENT 'climate' WITH (version = '1.0', lateness = INTERVAL '30 seconds', retain = INTERVAL '90 days', partition = 'hour');";

const CLIMATE: &str = "/* a continuous query */
CREATE PIPELINE climate_1m
  WITH (lateness = INTERVAL '30 seconds', retain = INTERVAL '400 days', partition = 'hour')
AS
SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start,
       avg(temperature) AS temperature_avg, min(temperature) AS temperature_min, max(temperature) AS temperature_max,
       approx_percentile_cont(temperature, 0.95) AS temperature_p95, count(*) AS n
FROM telemetry
WHERE temperature IS NOT NULL
GROUP BY device, window_start;";

fn project(files: &[(&str, &str)]) -> Project {
    let files: Vec<_> = files.iter().map(|(name, text)| file(name, text)).collect();
    check(&files).unwrap_or_else(|found| panic!("{}", render_all(&found, &files)))
}

fn one(query: &str) -> Project {
    project(&[("t.sql", TELEMETRY), ("p.sql", &format!("CREATE PIPELINE p AS {query};"))])
}

#[test]
fn a_stream() {
    let project = project(&[("a.sql", STREAM)]);
    let [decl] = project.streams.as_slice() else { panic!("{:?}", project.streams) };
    assert_eq!(&*decl.stream.name, "telemetry");
    assert_eq!((decl.stream.schema_id, decl.stream.version), (Some(1), SchemaVersion { major: 1, minor: 0 }));
    assert_eq!((decl.lateness_ns, decl.retain_ns), (30 * SECOND, Some(90 * 86_400 * SECOND)));
    assert_eq!((decl.partition, decl.comment.as_deref()), (Granularity::Hour, Some("climate")));
    let fields: Vec<_> =
        decl.stream.fields.iter().map(|f| (&*f.name, f.id, f.kind, f.unit.as_deref(), f.scale)).collect();
    assert_eq!(
        fields,
        [
            ("temperature", 1, FieldType::F64, Some("Cel"), 0),
            ("humidity", 2, FieldType::F64, Some("%"), 0),
            ("vibration", 3, FieldType::F64, Some("mm/s"), -3),
            ("status", 4, FieldType::Text, None, 0),
        ]
    );
    assert_eq!(decl.stream.fields[0].comment.as_deref(), Some("of the air"));
    assert!(project.warnings.is_empty());
}

#[test]
fn types_and_default_ids() {
    let project = project(&[(
        "a.sql",
        "create stream Machine (a BOOLEAN, b TINYINT, c INT UNSIGNED, d BIGINT UNSIGNED, e REAL, f DOUBLE PRECISION,
           g VARCHAR(10) comment 'x', h BYTEA, i DOUBLE[], j BIGINT[], k ENUM('on', 'off'), l STRING, m FLOAT,)
         with (schema = 9, version = '2.11', partition = 'day');",
    )]);
    // The undeclared default stream comes first, as in the catalog.
    let names: Vec<&str> = project.streams.iter().map(|s| &*s.stream.name).collect();
    assert_eq!(names, [DEFAULT_STREAM, "machine"]);
    let machine = project.stream("machine").unwrap();
    assert_eq!((machine.stream.schema_id, machine.partition), (Some(9), Granularity::Day));
    use FieldType::*;
    let kinds: Vec<_> = machine.stream.fields.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [Bool, I64, U64, U64, F32, F64, Text, Bytes, F64List, I64List, Text, Text, F32]);
    assert_eq!(machine.stream.fields.iter().map(|f| f.id).collect::<Vec<_>>(), (1..=13).collect::<Vec<u32>>());
    let catalog = project.catalog();
    assert_eq!(catalog.streams().iter().map(|s| &*s.name).collect::<Vec<_>>(), names);
    assert_eq!(catalog.numbered(9, 2), Some(1));
}

#[test]
fn the_order_of_streams_is_that_of_the_catalog() {
    let project = project(&[
        ("a.sql", "CREATE STREAM a (x DOUBLE); CREATE STREAM b (x DOUBLE);"),
        ("c.sql", "CREATE STREAM c (x DOUBLE); CREATE STREAM telemetry; CREATE STREAM d;"),
    ]);
    let names: Vec<String> = project.streams.iter().map(|s| s.stream.name.to_string()).collect();
    let catalog: Vec<String> = project.catalog().streams().iter().map(|s| s.name.to_string()).collect();
    assert_eq!(names, catalog);
    assert_eq!(names[0], DEFAULT_STREAM);
    assert_eq!(Project::empty().catalog().numbered(1, 1), Some(0));
}

#[test]
fn a_windowed_pipeline() {
    let project = project(&[("b.sql", STREAM), ("a.sql", CLIMATE)]);
    let plan = project.pipeline("climate_1m").unwrap();
    assert_eq!((plan.source.as_str(), plan.lateness_ns), ("telemetry", 30 * SECOND));
    assert_eq!((plan.retain_ns, plan.partition), (Some(400 * 86_400 * SECOND), Granularity::Hour));
    let window = plan.window.as_ref().unwrap();
    assert_eq!((window.size_ns, window.device.as_deref()), (60 * SECOND, Some("device")));
    assert!(window.group.starts_with("date_bin("), "{}", window.group);
    assert_eq!((plan.time_column.as_str(), plan.device_column.as_deref()), ("window_start", Some("device")));
    let columns: Vec<_> = plan
        .output
        .fields()
        .iter()
        .map(|f| (f.name().as_str(), f.metadata().get("unit").map(String::as_str)))
        .collect();
    assert_eq!(
        columns,
        [
            ("device", None),
            ("window_start", None),
            ("temperature_avg", Some("Cel")),
            ("temperature_min", Some("Cel")),
            ("temperature_max", Some("Cel")),
            ("temperature_p95", Some("Cel")),
            ("n", None),
        ]
    );
    assert_eq!(plan.output.field(1).data_type(), &storage::schema::timestamp());
    assert_eq!(plan.output.field(6).data_type(), &DataType::Int64);
    assert_eq!(
        plan.query,
        "SELECT device, tumble(ts, INTERVAL '1 minute') AS window_start, avg(temperature) AS temperature_avg, \
         min(temperature) AS temperature_min, max(temperature) AS temperature_max, \
         approx_percentile_cont(temperature, 0.95) AS temperature_p95, count(*) AS n FROM telemetry \
         WHERE temperature IS NOT NULL GROUP BY device, window_start"
    );
}

#[test]
fn a_pipeline_reads_another_wherever_it_stands() {
    let text = "CREATE PIPELINE a_hours WITH (lateness = INTERVAL '0 s') AS
        SELECT d, tumble(w, INTERVAL '1 hour') AS h, sum(n) AS n, max(t) AS t FROM b_minutes GROUP BY d, h;
        CREATE PIPELINE b_minutes AS SELECT device AS d, tumble(ts, INTERVAL '1 minute') AS w, count(*) AS n,
        max(temperature) AS t FROM telemetry GROUP BY device, w;
        CREATE PIPELINE fleet AS SELECT tumble(w, INTERVAL '1 day') AS day, sum(n) AS n FROM b_minutes GROUP BY day;
        CREATE PIPELINE weekly AS SELECT tumble(day, INTERVAL '7 days') AS week, sum(n) AS n FROM fleet GROUP BY week;";
    let project = project(&[("s.sql", STREAM), ("p.sql", text)]);
    let names: Vec<&str> = project.pipelines.iter().map(|plan| plan.name.as_str()).collect();
    assert_eq!(names, ["b_minutes", "a_hours", "fleet", "weekly"], "behind what it reads");
    let plan = project.pipeline("a_hours").unwrap();
    assert_eq!((plan.reads.time.as_str(), plan.reads.device.as_deref(), plan.reads.pipeline), ("w", Some("d"), true));
    assert_eq!((plan.time_column.as_str(), plan.device_column.as_deref()), ("h", Some("d")));
    assert_eq!(plan.output.field_with_name("t").unwrap().metadata().get("unit").unwrap(), "Cel");
    assert_eq!(plan.window.as_ref().unwrap().device.as_deref(), Some("d"));
    let fleet = project.pipeline("fleet").unwrap();
    assert!(fleet.is_shared() && !plan.is_shared());
    assert_eq!(fleet.device_column, None);
    assert_eq!(project.pipeline("weekly").unwrap().reads.device, None);
    assert_eq!((project.depth(|plan| plan.is_shared()), project.depth(|_| true)), (2, 3));

    let other = text.replace("max(temperature) AS t", "min(temperature) AS t");
    let other = self::project(&[("s.sql", STREAM), ("p.sql", &other)]);
    let changed = |name: &str| other.pipeline(name).unwrap().fingerprint != project.pipeline(name).unwrap().fingerprint;
    assert!(changed("b_minutes") && changed("a_hours"), "another source is another meaning");
}

#[test]
fn a_pipeline_without_a_window() {
    let project = one(
        "SELECT t.*, temperature * 1.8 + 32 AS fahrenheit, now() AS received FROM telemetry t WHERE temperature > 60",
    );
    let plan = project.pipeline("p").unwrap();
    assert!(plan.window.is_none());
    assert_eq!((plan.time_column.as_str(), plan.device_column.as_deref()), ("ts", Some("device")));
    assert_eq!(plan.output.fields().len(), storage::schema::SYSTEM_COLUMNS.len() + 4 + 2);
    assert_eq!(plan.output.field_with_name("humidity").unwrap().metadata().get("unit").unwrap(), "%");
    assert!(plan.logical.to_string().contains("ts_ingest AS received"), "{}", plan.logical);
    let plan = one("SELECT ts AS at, temperature AS t FROM telemetry").pipelines.remove(0);
    assert_eq!((plan.time_column.as_str(), plan.device_column), ("at", None));
}

#[test]
fn a_pipeline_takes_the_lateness_of_its_stream() {
    let stream = "CREATE STREAM s (x DOUBLE) WITH (lateness = INTERVAL '5' MINUTE);";
    let query = "SELECT device, tumble(ts, INTERVAL '1 hour') AS w, max(x) AS x FROM s GROUP BY device, w;";
    let own = format!("{stream} CREATE PIPELINE p WITH (lateness = INTERVAL '0 s') AS {query}");
    assert_eq!(project(&[("a.sql", &own)]).pipelines[0].lateness_ns, 0);
    let inherited = format!("{stream} CREATE PIPELINE p AS {query}");
    assert_eq!(project(&[("a.sql", &inherited)]).pipelines[0].lateness_ns, 300 * SECOND);
}

#[test]
fn one_window_in_many_spellings() {
    let mut prints = HashMap::new();
    for query in [
        "SELECT device, tumble(ts, INTERVAL '1 minute') AS w, count(*) AS n FROM telemetry GROUP BY device, w",
        "select device, TUMBLE(ts, interval '60 seconds') as W, count(*) as n from telemetry group by 1, 2",
        "SELECT device, tumble(ts, INTERVAL '1' MINUTE) AS w, count(*) AS n FROM telemetry GROUP BY device, (tumble(ts, INTERVAL '60 s'))",
        "SELECT device, date_bin(INTERVAL '1 minute', ts) AS w, count(*) AS n FROM telemetry GROUP BY device, date_bin(INTERVAL '1m', ts)",
        "SELECT device, date_bin(INTERVAL '1 minute', ts) AS w, count(*) AS n -- minutes\nFROM telemetry GROUP BY device, w",
    ] {
        let plan = one(query).pipelines.remove(0);
        assert_eq!(plan.window.as_ref().unwrap().size_ns, 60 * SECOND, "{query}");
        assert_eq!(plan.time_column, "w", "{query}");
        prints.entry(plan.fingerprint).or_insert_with(Vec::new).push(query);
    }
    assert_eq!(prints.len(), 1, "{prints:#?}");
}

#[test]
fn a_rollup_is_a_pipeline_for_each_length() {
    let text = "CREATE PIPELINE climate WITH (rollup = '1 minute, 1 hour, 1 day', retain = INTERVAL '9 days') AS
SELECT device, tumble(ts, rollup) AS w, window_end() AS e, avg(temperature) AS a FROM telemetry GROUP BY device, tumble(ts, rollup);";
    let plans = project(&[("t.sql", TELEMETRY), ("p.sql", text)]).pipelines;
    let found: Vec<_> = plans.iter().map(|p| (p.name.as_str(), p.window.as_ref().unwrap().size_ns / SECOND)).collect();
    assert_eq!(found, [("climate_1m", 60), ("climate_1h", 3600), ("climate_1d", 86_400)]);
    assert!(plans.iter().all(|p| p.retain_ns == Some(9 * 86_400 * SECOND)));
    let alone = "SELECT device, tumble(ts, INTERVAL '1 hour') AS w, window_end() AS e, avg(temperature) AS a FROM telemetry GROUP BY device, w";
    assert_eq!(plans[1].fingerprint, one(alone).pipelines[0].fingerprint, "as if it were written alone");
}

#[test]
fn windows_that_overlap_and_windows_that_end_with_a_gap() {
    let query = |window: &str| {
        format!(
            "SELECT device, {window} AS w, window_end() AS e, avg(temperature) AS a FROM telemetry GROUP BY device, w"
        )
    };
    let of = |window: &str| one(&query(window)).pipelines.remove(0);
    let hop = of("hop(ts, INTERVAL '60 s', INTERVAL '5 minutes')");
    let window = hop.window.as_ref().unwrap();
    assert_eq!((window.kind, window.size_ns), (Kind::Hop { slide_ns: 60 * SECOND }, 300 * SECOND));
    assert_eq!((hop.time_column.as_str(), hop.output.field(2).data_type()), ("w", hop.output.field(1).data_type()));
    assert_eq!(hop.fingerprint, of("HOP(ts, INTERVAL '1 minute', INTERVAL '300' SECOND)").fingerprint);
    assert_ne!(hop.fingerprint, of("hop(ts, INTERVAL '30 s', INTERVAL '5 minutes')").fingerprint);
    let session = of("session(ts, INTERVAL '5 minutes')");
    assert_eq!(session.window.as_ref().map(|w| (w.kind, w.size_ns)), Some((Kind::Session, 300 * SECOND)));
    assert_eq!(session.output.field(2).data_type(), session.output.field(1).data_type());
    assert_ne!(session.fingerprint, of("session(ts, INTERVAL '6 minutes')").fingerprint);
    // Windows that begin where the one before ends do not overlap.
    let plain = of("hop(ts, INTERVAL '1 minute', INTERVAL '1 minute')");
    assert_eq!(plain.fingerprint, of("tumble(ts, INTERVAL '1 minute')").fingerprint);
}

#[test]
fn whatever_datafusion_can_aggregate() {
    for columns in [
        "window_end() AS window_end, avg(temperature) AS a",
        "count(DISTINCT status) AS a, sum(DISTINCT humidity) AS b, approx_distinct(status) AS c",
        "avg(temperature) FILTER (WHERE status = 'ok') AS a, count(*) FILTER (WHERE humidity > 50) AS b",
        "max(temperature) - min(temperature) AS range, round(avg(temperature), 2) AS a",
        "CASE WHEN avg(temperature) > 30 THEN 'hot' ELSE 'cold' END AS a, coalesce(max(humidity), 0) AS b",
        "first_value(status ORDER BY ts) AS a, last_value(status ORDER BY ts) AS b, any_value(status) AS c",
        "stddev(temperature) AS a, var_pop(humidity) AS b, corr(temperature, humidity) AS c, regr_slope(humidity, temperature) AS d",
        "median(temperature) AS a, approx_median(humidity) AS b, percentile_cont(0.5) WITHIN GROUP (ORDER BY humidity) AS c",
        "array_agg(status ORDER BY ts) AS a, string_agg(status, ',' ORDER BY ts) AS b, bool_and(humidity > 3) AS c",
        "max(now() - ts) AS delay, min(extract(epoch FROM ts)) AS b",
        "sum(CASE WHEN status = 'ok' THEN 1 ELSE 0 END) * 100.0 / count(*) AS share",
        "avg(temperature) AS a, tumble(ts, INTERVAL '1 minute') + INTERVAL '30 seconds' AS middle",
        "array_max(array_agg(temperature)) AS a",
    ] {
        let query = format!(
            "SELECT device, tumble(ts, INTERVAL '1 minute') AS w, {columns} FROM telemetry GROUP BY device, w HAVING count(*) > 1"
        );
        assert!(one(&query).pipelines[0].window.is_some(), "{query}");
    }
    // More groups, an output that is used in HAVING, and an alias for the stream.
    let plan = one(
        "SELECT t.status, tumble(t.ts, INTERVAL '1 day') AS day, t.device AS machine, count(*) AS n FROM telemetry AS t
         GROUP BY t.device, t.status, day, date_trunc('hour', ts), length(status) HAVING n > 3 AND max(t.humidity) > 1",
    )
    .pipelines
    .remove(0);
    assert_eq!((plan.time_column.as_str(), plan.device_column.as_deref()), ("day", Some("machine")));
}

#[test]
fn fingerprints() {
    let print = |stream: &str, options: &str, query: &str| {
        let text = format!("CREATE STREAM s {stream}; CREATE PIPELINE p {options} AS {query}");
        let project = project(&[("a.sql", &text)]);
        (project.pipelines[0].fingerprint, project.fingerprint())
    };
    let stream = "(x DOUBLE OPTIONS (unit = 'm'), y TEXT)";
    let query = "SELECT device, tumble(ts, INTERVAL '1 hour') AS w, max(x) AS x FROM s WHERE x > 1 GROUP BY device, w";
    let base = print(stream, "", query);
    assert_eq!(base, print(stream, "", &query.replace(" FROM", "\n  /* c */  FROM").replace("SELECT", "select")));
    // The whole project changes, the pipeline need not restart.
    for (stream, options) in [
        ("(x DOUBLE OPTIONS (unit = 'm'), y TEXT, z DOUBLE)", ""),
        ("(x DOUBLE OPTIONS (unit = 'm'), y BIGINT)", ""),
        (stream, "WITH (retain = INTERVAL '1 day')"),
        (stream, "COMMENT 'x'"),
    ] {
        let (pipeline, whole) = print(stream, options, query);
        assert_eq!(pipeline, base.0, "{stream} {options}");
        assert_ne!(whole, base.1, "{stream} {options}");
    }
    for (stream, options, query) in [
        (stream, "", query.replace("> 1", "> 2")),
        (stream, "", query.replace("hour", "day")),
        (stream, "", query.replace("AS x", "AS max_x")),
        (stream, "WITH (lateness = INTERVAL '1 minute')", query.to_owned()),
        (stream, "WITH (partition = 'day')", query.to_owned()),
        ("(x REAL OPTIONS (unit = 'm'), y TEXT)", "", query.to_owned()),
        ("(x DOUBLE OPTIONS (unit = 'km'), y TEXT)", "", query.to_owned()),
    ] {
        let changed = print(stream, options, &query);
        assert!(changed.0 != base.0 && changed.1 != base.1, "{stream} {options} {query}");
    }
    // Files and their order do not matter.
    let parts = [("1.sql", STREAM), ("2.sql", CLIMATE)];
    assert_eq!(project(&parts).fingerprint(), project(&[("1.sql", CLIMATE), ("2.sql", STREAM)]).fingerprint());
    assert_ne!(project(&parts).fingerprint(), Project::empty().fingerprint());
}

#[test]
fn many_files_are_checked_quickly() {
    let files: Vec<_> = (0..100)
        .map(|n| {
            let text = CLIMATE.replace("climate_1m", &format!("p{n}"));
            if n == 0 { file("a.sql", STREAM) } else { file(&format!("f{n}.sql"), &text) }
        })
        .collect();
    let start = std::time::Instant::now();
    assert_eq!(check(&files).unwrap().pipelines.len(), 99);
    println!("100 files in {:?}", start.elapsed());
}

#[test]
fn anything_may_be_fed() {
    assert_eq!(says(""), "no errors in 2 files\n");
    for text in [
        ";;;",
        "\u{feff}",
        "CREATE",
        "CREATE STREAM",
        "CREATE PIPELINE p",
        "CREATE PIPELINE p AS",
        "(((((",
        ")",
        "'",
        "\"",
        "/*",
        "--",
        "CREATE STREAM s (",
        "CREATE STREAM s ()",
        "CREATE STREAM s (x",
        "CREATE STREAM s WITH (",
        "\0",
        "CREATE PIPELINE p AS SELECT",
        "CREATE PIPELINE p AS SELECT * FROM telemetry",
        "CREATE PIPELINE p AS VALUES (1)",
        "CREATE PIPELINE p AS TABLE telemetry",
        "CREATE PIPELINE p AS SELECT * FROM a.b.c",
        "CREATE PIPELINE p AS (SELECT ts FROM telemetry)",
        "CREATE PIPELINE p AS SELECT $1 AS x, ts FROM telemetry",
        "CREATE PIPELINE p AS SELECT @@v AS x, ts FROM telemetry",
        "CREATE PIPELINE p AS SELECT ts, x.y.z AS q, ts[1] AS r, {} AS s FROM telemetry",
        "CREATE PIPELINE p AS SELECT CAST(ts AS FOO) AS x, ts FROM telemetry GROUP BY ()",
        "CREATE PIPELINE p AS SELECT tumble() AS x, date_bin() AS y, tumble(*) AS z FROM telemetry GROUP BY 1, 2, 3, 99999999999999999999",
        "CREATE PIPELINE p AS SELECT ts, 9223372036854775807 + 1 AS x, 1 / 0 AS y FROM telemetry",
        "CREATE PIPELINE ä AS SELECT ü FROM ö; -- \u{202e}",
    ] {
        let _ = says(text);
        let _ = says(&format!("{text}; {text}"));
    }
    // Every prefix of a good file, and the file with every word left out.
    for (at, _) in CLIMATE.char_indices().step_by(3) {
        let _ = says(&CLIMATE[..at]);
    }
    let words: Vec<&str> = CLIMATE.split(' ').collect();
    for skip in 0..words.len() {
        let kept: Vec<&str> = words.iter().enumerate().filter(|(at, _)| *at != skip).map(|(_, w)| *w).collect();
        let _ = says(&kept.join(" "));
    }
}

#[test]
fn expressions_as_long_as_allowed_are_walked() {
    let sum = vec!["temperature"; 250].join(" + ");
    let all = vec!["status = 'x'"; 120].join(" OR ");
    let plan = one(&format!("SELECT device, ts, {sum} AS x FROM telemetry WHERE {all}")).pipelines.remove(0);
    assert_eq!(plan.output.fields().len(), 3);
    let deep = format!("{}temperature{}", "abs(".repeat(40), ")".repeat(40));
    let _ = says(&format!("CREATE PIPELINE p AS SELECT ts, {deep} AS x FROM telemetry;"));
}
