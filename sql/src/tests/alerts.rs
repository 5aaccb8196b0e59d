//! Alerts: what comes out of those that are right, and what is said about those that are not.

use device::alert::{Backfill, Expr, NoData, Scalar};

use super::{TELEMETRY, file, says};
use crate::{AlertPlan, Project, check, render_all};

const SECOND: i64 = 1_000_000_000;

fn project(sql: &str) -> Project {
    let files = [file("p.sql", sql), file("telemetry.sql", TELEMETRY)];
    check(&files).unwrap_or_else(|found| panic!("{}", render_all(&found, &files)))
}

fn one(sql: &str) -> AlertPlan {
    project(&format!("CREATE ALERT a {sql};")).alerts.remove(0)
}

/// Whether a reading of that temperature raises; the other fields are null.
fn raises(expr: &Expr, temperature: f64) -> Option<bool> {
    expr.holds("pump-7", &|field| if field == 0 { Scalar::float(temperature) } else { Scalar::Null })
}

#[test]
fn the_example_of_the_specification() {
    let project = project(
        "CREATE STREAM other (x DOUBLE); CREATE ALERT overheating ON telemetry
           WHEN temperature > 80 FOR INTERVAL '30 seconds'
           CLEAR WHEN temperature < 75
           COMMENT 'too hot'
           WITH (severity = 'critical', keep_firing_for = INTERVAL '1 minute', no_data_after = INTERVAL '10 minutes',
                 escalate = 'oncall@0m, lead@10m, manager@1h');",
    );
    let plan = project.alert("overheating").unwrap();
    let rule = &plan.rule;
    assert_eq!((plan.source.as_str(), rule.stream, plan.comment.as_deref()), ("telemetry", 0, Some("too hot")));
    let [level] = rule.levels.as_slice() else { panic!("{rule:?}") };
    assert_eq!((&*level.severity, level.for_ns), ("critical", 30 * SECOND));
    let clear = level.clear.as_ref().unwrap();
    let zones = [81.0, 80.0, 74.0, f64::NAN].map(|t| (raises(&level.raise, t), raises(clear, t)));
    assert_eq!(zones, [(Some(true), Some(false)), (Some(false), Some(false)), (Some(false), Some(true)), (None, None)]);
    assert_eq!(level.subject, Some(Expr::Field(0)));
    assert_eq!((rule.keep_firing_for_ns, rule.no_data_after_ns), (60 * SECOND, Some(600 * SECOND)));
    assert_eq!((rule.min_samples, rule.max_gap_ns), (1, None));
    assert_eq!((rule.no_data, rule.backfill), (NoData::Keep, Backfill::Record));
    assert_eq!(rule.ladder.iter().map(|s| s.after_ns / SECOND).collect::<Vec<_>>(), [0, 600, 3600]);
    assert_eq!(
        plan.query,
        "ON telemetry WHEN temperature > 80 FOR INTERVAL '30 seconds' CLEAR WHEN temperature < 75 SEVERITY 'critical'"
    );
    assert_eq!(plan.at.1.start.line, 1);
}

#[test]
fn severities_each_with_a_threshold_of_their_own() {
    let rule =
        one("ON telemetry WHEN temperature > 80 FOR INTERVAL '1 minute' CLEAR WHEN temperature < 75 SEVERITY 'warning'
         WHEN temperature >= 95 CLEAR WHEN temperature < 90 SEVERITY 'critical'
         WITH (labels = 'team=plant', backfill = 'notify', no_data = 'raise', no_data_after = INTERVAL '1 h',
               min_samples = 3, max_gap = INTERVAL '30 s')")
        .rule;
    let levels: Vec<_> = rule.levels.iter().map(|l| (&*l.severity, l.for_ns, raises(&l.raise, 95.0))).collect();
    assert_eq!(levels, [("warning", 60 * SECOND, Some(true)), ("critical", 0, Some(true))]);
    assert_eq!((rule.min_samples, rule.max_gap_ns), (3, Some(30 * SECOND)));
    assert_eq!((rule.no_data, rule.backfill), (NoData::Raise, Backfill::Notify));
    assert_eq!(rule.labels, [("team".into(), "plant".into())]);
}

#[test]
fn conditions() {
    let check = |condition: &str, temperature: f64, expected: Option<bool>| {
        let rule = one(&format!("ON telemetry WHEN {condition}")).rule;
        assert_eq!(raises(&rule.levels[0].raise, temperature), expected, "{condition} of {temperature}");
    };
    check("temperature BETWEEN 10 AND 20", 20.0, Some(true));
    check("temperature NOT BETWEEN 10 AND 20", 20.0, Some(false));
    check("temperature IN (1, 2.5)", 2.5, Some(true));
    check("temperature NOT IN (1, 2)", 2.5, Some(true));
    check("telemetry.temperature IS NULL", f64::NAN, Some(true));
    check("temperature IS NOT NULL AND NOT temperature < -5", -4.0, Some(true));
    check("(temperature > 1) IS TRUE", f64::NAN, Some(false));
    check("(temperature > 1) IS NOT TRUE", f64::NAN, Some(true));
    check("(temperature > 1) IS FALSE", 1.0, Some(true));
    check("abs(temperature - 20) / 2 > 4 AND device = 'pump-7'", 11.0, Some(true));
    check("ceil(temperature) = 3 AND floor(temperature) = 2 AND round(temperature) = 2", 2.4, Some(true));
    check("coalesce(humidity, temperature) > 1", 2.0, Some(true));
    check("humidity > 1 OR temperature > 1 OR status = 'x'", 2.0, Some(true));
    check("humidity > 1 AND temperature > 1", 2.0, None);
    check("temperature % 7 = 1 AND 'pump-7' = device AND -temperature <= 1e2", 8.0, Some(true));
}

#[test]
fn a_version_is_what_readings_mean() {
    let version = |sql: &str| one(sql).rule.version;
    let base = "ON telemetry WHEN temperature > 80";
    assert_eq!(version(base), version("on telemetry when TEMPERATURE>80 /* hot */ comment 'x'"));
    assert_eq!(
        version(base),
        version(&format!("{base} WITH (escalate = 'a@1m')")),
        "whom to tell is not what it means"
    );
    let changed = [
        "ON telemetry WHEN temperature > 81",
        "ON telemetry WHEN temperature > 80 FOR INTERVAL '1 s'",
        "ON telemetry WHEN temperature > 80 CLEAR WHEN temperature < 80",
        "ON telemetry WHEN temperature > 80 WITH (keep_firing_for = INTERVAL '1 s')",
        "ON telemetry WHEN temperature > 80 WITH (severity = 'critical')",
        "ON telemetry WHEN temperature > 80 WITH (labels = 'a=b')",
    ];
    assert!(changed.iter().all(|sql| version(sql) != version(base)));
    let whole = |sql: &str| project(sql).fingerprint();
    let pipeline = "CREATE PIPELINE p AS SELECT ts, temperature FROM telemetry;";
    let with = |sql: &str| format!("{pipeline} CREATE ALERT a {sql};");
    assert_ne!(whole(pipeline), whole(&with(base)));
    assert_ne!(whole(&with(base)), whole(&with(changed[0])));
    assert_ne!(whole(&with(base)), whole(&with(&format!("{base} WITH (escalate = 'a@1m')"))));
    let pipelines =
        [pipeline.to_owned(), with(base), with(changed[0])].map(|sql| project(&sql).pipelines[0].fingerprint);
    assert!(pipelines.iter().all(|print| *print == pipelines[0]), "an alert leaves pipelines alone");
}

#[test]
fn mistakes() {
    let mut said = String::new();
    for (name, sql) in [
        ("no_on", "CREATE ALERT hot telemetry WHEN temperature > 80;\nCREATE ALERT;\nCREATE ALERT a ON;"),
        ("no_when", "CREATE ALERT hot ON telemetry;\nCREATE ALERT b ON telemetry WEHN temperature > 80;"),
        (
            "clauses",
            "CREATE ALERT a ON telemetry WHEN temperature > 80 CLAER WHEN temperature < 75;
CREATE ALERT b ON telemetry WHEN temperature > 80 CLEAR temperature < 75;
CREATE ALERT c ON telemetry WHEN FOR INTERVAL '1 minute';
CREATE ALERT d ON telemetry WHEN temperature > 80 CLEAR WHEN temperature < 75 CLEAR WHEN humidity < 5;
CREATE ALERT e ON telemetry WHEN temperature > 80 WITH (severity = 'x') SEVERTY 'high';
CREATE ALERT f ON telemetry WHEN temperature > 80 FOR 30;
CREATE ALERT g ON telemetry WHEN temperature > 80 FOR INTERVAL '30 secnds' FOR INTERVAL '1 minute';",
        ),
        (
            "names",
            "CREATE ALERT hot ON telemtry WHEN temperature > 80;
CREATE ALERT Hot ON telemetry WHEN temprature > 80 AND telemetry.humidty > 5 AND t.status = 'x';
CREATE ALERT _x ON telemetry WHEN temperature > 80;
CREATE PIPELINE p AS SELECT ts FROM hot;
CREATE ALERT b ON p WHEN temperature > 80;
CREATE ALERT c ON hot WHEN temperature > 80;
CREATE ALERT d ON _losses WHEN from_seq > 80;",
        ),
        (
            "types",
            "CREATE ALERT a ON telemetry WHEN temperature;
CREATE ALERT b ON telemetry WHEN temperature + 1;
CREATE ALERT c ON telemetry WHEN temperature > '80';
CREATE ALERT d ON telemetry WHEN status > 80;
CREATE ALERT e ON telemetry WHEN temperature > 80 AND humidity;
CREATE ALERT f ON telemetry WHEN status + 1 > 2 OR NOT temperature;
CREATE ALERT g ON telemetry WHEN temperature = NULL;
CREATE ALERT h ON telemetry WHEN 1 > 2;
CREATE ALERT i ON telemetry WHEN temperature > 80 CLEAR WHEN 'cold';
CREATE ALERT j ON telemetry WHEN temperature BETWEEN 'a' AND 5;
CREATE ALERT k ON telemetry WHEN abs(status) > 1 AND abs(temperature, 2) > 1;",
        ),
        (
            "many_records",
            "CREATE ALERT a ON telemetry WHEN avg(temperature) > 80;
CREATE ALERT b ON telemetry WHEN lag(temperature) > 80 CLEAR WHEN max(temperature) OVER () < 5;
CREATE ALERT c ON telemetry WHEN temperature > (SELECT max(temperature) FROM telemetry);
CREATE ALERT d ON telemetry WHEN tumble(ts, INTERVAL '1 minute') > 5;
CREATE ALERT e ON telemetry WHEN now() > ts;
CREATE ALERT f ON telemetry WHEN random() > 0.5 AND temperature > 5;",
        ),
        (
            "cannot_evaluate",
            "CREATE ALERT a ON telemetry WHEN upper(status) = 'X';
CREATE ALERT b ON telemetry WHEN status LIKE 'err%';
CREATE ALERT c ON telemetry WHEN CASE WHEN temperature > 80 THEN true ELSE false END;
CREATE ALERT d ON telemetry WHEN CAST(status AS DOUBLE) > 80;
CREATE ALERT e ON telemetry WHEN clock_q > 3 OR seq > 5;
CREATE ALERT f ON telemetry WHEN abz(temperature) > 80;
CREATE STREAM s (raw BYTEA, spectrum DOUBLE[]) WITH (schema = 2);
CREATE ALERT g ON s WHEN raw = 'x' OR spectrum = 5;
CREATE ALERT h ON telemetry WHEN status || 'x' = 'yx';",
        ),
        (
            "dead_band",
            "CREATE ALERT a ON telemetry WHEN temperature > 80 CLEAR WHEN temperature > 75;
CREATE ALERT b ON telemetry WHEN temperature > 80 CLEAR WHEN temperature < 85;
CREATE ALERT c ON telemetry WHEN 5 >= temperature CLEAR WHEN temperature >= 5;
CREATE ALERT d ON telemetry WHEN temperature < 5 OR temperature > 80 CLEAR WHEN temperature > 10;
CREATE ALERT e ON telemetry WHEN abs(temperature) > 80 CLEAR WHEN NOT abs(temperature) < 75;
CREATE ALERT f ON telemetry WHEN temperature > 80 AND temperature < 75;
CREATE ALERT g ON telemetry WHEN temperature > 75 OR temperature < 80;
CREATE ALERT h ON telemetry WHEN temperature > 80 CLEAR WHEN temperature < 5 AND temperature > 5;",
        ),
        (
            "severities",
            "CREATE ALERT a ON telemetry WHEN temperature > 80 WHEN temperature > 95 SEVERITY 'critical';
CREATE ALERT b ON telemetry WHEN temperature > 95 SEVERITY 'critical' WHEN temperature > 80 SEVERITY 'warning';
CREATE ALERT c ON telemetry WHEN temperature > 80 SEVERITY 'high' WHEN temperature > 95 SEVERITY 'high';
CREATE ALERT d ON telemetry WHEN temperature > 80 SEVERITY 'high' WITH (severity = 'high');
CREATE ALERT e ON telemetry WHEN temperature > 80 SEVERITY 'Very High';",
        ),
        (
            "options",
            "CREATE ALERT a ON telemetry WHEN temperature > 80 WITH (severty = 'x', colour = 'red', for = INTERVAL '1 s');
CREATE ALERT b ON telemetry WHEN temperature > 80 WITH (no_data = 'ignore', no_data_after = 5, backfill = 'never');
CREATE ALERT c ON telemetry WHEN temperature > 80 WITH (min_samples = 0, max_gap = INTERVAL '0 s', keep_firing_for = '1 minute');
CREATE ALERT d ON telemetry WHEN temperature > 80 WITH (labels = 'team', group_by = 'site', severity = critical);",
        ),
        (
            "ladder",
            "CREATE ALERT a ON telemetry WHEN temperature > 80 WITH (escalate = 'oncall');
CREATE ALERT b ON telemetry WHEN temperature > 80 WITH (escalate = 'oncall@10m, lead@5m');
CREATE ALERT c ON telemetry WHEN temperature > 80 WITH (escalate = 'oncall@1month');
CREATE ALERT d ON telemetry WHEN temperature > 80 WITH (escalate = 'oncall@0m often');
CREATE ALERT e ON telemetry WHEN temperature > 80 WITH (escalate = 5);",
        ),
        ("no_effect", "CREATE ALERT a ON telemetry WHEN temperature > 80 WITH (no_data = 'raise');"),
        (
            "taken",
            "CREATE STREAM hot (x DOUBLE) WITH (schema = 2);
CREATE ALERT hot ON telemetry WHEN temperature > 80;
CREATE ALERT a ON telemetry WHEN temperature > 80;
CREATE PIPELINE a AS SELECT ts FROM telemetry;",
        ),
        ("if_not_exists", "CREATE ALERT IF NOT EXISTS a ON telemetry WHEN temperature > 80;\nCREATE ALRET b ON telemetry;"),
    ] {
        said.push_str(&format!("@@@ {name}\n{}\n", says(sql)));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/alerts.txt");
    if std::env::var_os("WEIR_UPDATE").is_some() {
        std::fs::write(path, &said).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap();
    for (said, expected) in said.split("@@@ ").zip(expected.split("@@@ ")) {
        assert_eq!(said, expected);
    }
    assert_eq!(said.len(), expected.len());
}
