//! Joins of two streams: what is read from them, and where their conditions are placed.

use std::collections::HashSet;

use datafusion::logical_expr::LogicalPlan;

use super::{TELEMETRY, file, says};
use crate::{PipelinePlan, check, render_all};

const SECOND: i64 = 1_000_000_000;

const ALARMS: &str = "CREATE STREAM alarms (code BIGINT) WITH (schema = 7, lateness = INTERVAL '45 seconds');\n";

const NEAR_ALARM: &str = "SELECT a.ts, t.device, a.code, t.vibration, t.ts AS measured
FROM alarms a JOIN telemetry t
  ON a.device = t.device AND t.ts BETWEEN a.ts - INTERVAL '10 seconds' AND a.ts + INTERVAL '5 seconds'
WHERE t.vibration > 3 AND a.code <> 0 AND t.humidity < a.code";

fn near_alarm(query: &str, options: &str) -> PipelinePlan {
    let pipeline = format!("CREATE PIPELINE p {options} AS {query};");
    let files = [file("a.sql", ALARMS), file("t.sql", TELEMETRY), file("p.sql", &pipeline)];
    check(&files).unwrap_or_else(|found| panic!("{}", render_all(&found, &files))).pipelines.remove(0)
}

#[test]
fn a_join_of_two_streams() {
    let plan = near_alarm(NEAR_ALARM, "");
    let join = plan.stream_join.as_ref().unwrap();
    assert_eq!((plan.source.as_str(), join.source.as_str(), join.outer), ("alarms", "telemetry", false));
    assert_eq!((join.lower_ns, join.upper_ns), (-10 * SECOND, 5 * SECOND));
    assert_eq!((join.after_ns(), join.span_ns()), (5 * SECOND, 10 * SECOND));
    assert_eq!(plan.lateness_ns, 45 * SECOND, "the greater of the two streams'");
    let used: Vec<&str> = join.columns.iter().map(|(_, own)| own.as_str()).collect();
    assert_eq!(used, ["humidity", "ts", "vibration"]);
    assert_eq!((plan.time_column.as_str(), plan.device_column.as_deref()), ("ts", Some("device")));
    let units: Vec<_> = plan.output.fields().iter().map(|f| f.metadata().get("unit").map(String::as_str)).collect();
    assert_eq!(units, [None, None, None, Some("mm/s"), None]);
    // What speaks of one stream is looked at before rows are kept.
    let shown = |plan: &Option<LogicalPlan>| plan.as_ref().map(|p| p.display_indent().to_string()).unwrap_or_default();
    assert!(shown(&join.first_filter).contains("a.code != Int64(0) AS holds"), "{}", shown(&join.first_filter));
    assert!(shown(&join.second_filter).contains("vibration > Int64(3) AS holds"), "{}", shown(&join.second_filter));
    assert!(join.condition.is_none());
    let rest = plan.logical.display_indent().to_string();
    assert!(rest.contains("humidity < a.code") && !rest.contains("Int64"), "{rest}");

    // Of LEFT JOIN, what WHERE says of the second stream is not known before there is a match or none.
    let left = near_alarm(
        &NEAR_ALARM.replace(" JOIN", " LEFT JOIN").replace("WHERE", "AND t.humidity > 1 AND a.code > 9 WHERE"),
        "",
    );
    let join = left.stream_join.as_ref().unwrap();
    assert!(join.outer && shown(&join.first_filter).contains("a.code != Int64(0)"));
    assert!(shown(&join.second_filter).contains("humidity > Int64(1) AS holds"), "{}", shown(&join.second_filter));
    assert!(shown(&join.condition).contains("a.code > Int64(9) AS holds"), "{}", shown(&join.condition));
    assert!(left.logical.display_indent().to_string().contains("vibration > Int64(3)"));
    assert!(left.output.field(3).is_nullable() && left.output.field(4).is_nullable());
}

#[test]
fn one_bound_in_many_spellings() {
    for bound in [
        "t.ts >= a.ts - INTERVAL '10 seconds' AND t.ts <= a.ts + INTERVAL '5' SECOND",
        "t.ts - a.ts BETWEEN -INTERVAL '10 seconds' AND INTERVAL '5 seconds'",
        "a.ts - t.ts BETWEEN INTERVAL '-5 seconds' AND INTERVAL '10 seconds'",
        "(a.ts <= (t.ts + INTERVAL '10 s')) AND NOT false AND a.ts + INTERVAL '5 s' >= t.ts AND t.ts <= INTERVAL '1 hour' + a.ts",
        "t.ts > a.ts - INTERVAL '10 seconds' - INTERVAL '1 ns' AND t.ts < a.ts + INTERVAL '5000000001 ns'",
        "a.ts BETWEEN t.ts - INTERVAL '5 seconds' AND t.ts + INTERVAL '10 seconds'",
    ] {
        let start = NEAR_ALARM.split_once("t.ts BETWEEN").unwrap().0;
        let join = near_alarm(&format!("{start}{bound}"), "").stream_join.unwrap();
        assert_eq!((join.lower_ns, join.upper_ns), (-10 * SECOND, 5 * SECOND), "{bound}");
    }
}

#[test]
fn a_join_means_another_with_another_bound_condition_or_lateness() {
    let print = |query: &str, lateness: &str| near_alarm(query, lateness).fingerprint;
    let plain = print(NEAR_ALARM, "");
    assert_eq!(plain, print(&format!("-- a comment\n{NEAR_ALARM}"), "WITH (lateness = INTERVAL '45 seconds')"));
    let changed = [
        (NEAR_ALARM.to_owned(), "WITH (lateness = INTERVAL '1 second')"),
        (NEAR_ALARM.replace("10 seconds", "11 seconds"), ""),
        (NEAR_ALARM.replace("5 seconds", "6 seconds"), ""),
        (NEAR_ALARM.replace("> 3", "> 4"), ""),
        (NEAR_ALARM.replace(" JOIN", " LEFT JOIN"), ""),
        (NEAR_ALARM.replace("WHERE", "AND a.code = t.humidity WHERE"), ""),
        (NEAR_ALARM.replace(" JOIN", " LEFT JOIN").replace("WHERE", "AND a.code = t.humidity WHERE"), ""),
    ];
    let prints: HashSet<u64> = changed.iter().map(|(query, lateness)| print(query, lateness)).chain([plain]).collect();
    assert_eq!(prints.len(), changed.len() + 1);
}

#[test]
fn no_part_of_a_join_ends_the_check() {
    let text = format!("{ALARMS}CREATE PIPELINE p AS {NEAR_ALARM};");
    for (at, _) in text.char_indices().step_by(3) {
        let _ = says(&text[..at]);
    }
    let words: Vec<&str> = text.split(' ').collect();
    for skip in 0..words.len() {
        let kept: Vec<&str> = words.iter().enumerate().filter(|(at, _)| *at != skip).map(|(_, w)| *w).collect();
        let _ = says(&kept.join(" "));
    }
}
