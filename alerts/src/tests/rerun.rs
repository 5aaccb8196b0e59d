//! Rules over records of the past.

use std::sync::Arc;

use device::alert::{Backfill, Comparison, Expr, Level, NoData, Row, Rule, Rules, Step};
use device::schema::{Catalog, Field, FieldType, SchemaVersion, Stream, Value};

use super::*;
use crate::compare::{Difference, compare};
use crate::rerun::{Incident, Rerun};

/// Above `high` for 10 s it fires; it tells oncall at once and lead after 60 s.
fn rules(high: f64) -> Rules {
    let field = Field { name: "t".into(), id: 1, kind: FieldType::F64, unit: None, scale: 0, comment: None };
    let version = SchemaVersion { major: 1, minor: 0 };
    let stream = Stream { name: "telemetry".into(), schema_id: None, version, fields: vec![field] };
    let raise = Expr::Compare(Comparison::Greater, Box::new((Expr::Field(0), Expr::Float(high))));
    let level =
        Level { severity: "warning".into(), raise, clear: None, for_ns: 10 * SECOND, subject: Some(Expr::Field(0)) };
    let step = |to: &str, after: i64| Step { to: to.into(), after_ns: after * SECOND, repeat_ns: None, most: 1 };
    let rule = Rule {
        name: "hot".into(),
        version: 1,
        stream: 0,
        levels: vec![level],
        keep_firing_for_ns: 0,
        min_samples: 1,
        max_gap_ns: None,
        no_data_after_ns: None,
        no_data: NoData::Keep,
        backfill: Backfill::Record,
        ladder: vec![step("oncall", 0), step("lead", 60)],
        labels: Vec::new(),
    };
    Rules::new(1, vec![rule], Arc::new(Catalog::new(vec![stream])))
}

/// A value every five seconds.
fn run(rules: &Rules, values: &[f64], end: i64) -> Vec<Incident> {
    let mut rerun = Rerun::new(rules, "pump-7", at(0));
    for (n, value) in values.iter().enumerate() {
        let ts = at(5 * n as i64);
        rerun.row(ts, &Row { stream: 0, ts, flags: 0, values: &[(0, Value::F64(*value))] });
    }
    Incident::all("pump-7", &rerun.end(at(end)), rules)
}

#[test]
fn the_past_is_what_it_would_have_been() {
    let rules = rules(80.0);
    assert_eq!(rules.fields(0).into_iter().collect::<Vec<_>>(), [0]);
    let [one] = run(&rules, &[70.0, 85.0, 86.0, 87.0, 88.0, 60.0, 61.0], 100).try_into().unwrap();
    assert_eq!((one.since, one.until, one.value), (at(5), Some(at(25)), Some(87.0)));
    assert_eq!((one.told.as_slice(), one.severity.as_str()), (["oncall".to_owned()].as_slice(), "warning"));
    let [two] = run(&rules, &[85.0; 5], 500).try_into().unwrap();
    assert_eq!(
        (two.until, two.told),
        (None, vec!["oncall".to_owned(), "lead".to_owned()]),
        "time passes behind the last record"
    );
    assert!(run(&rules, &[85.0, 85.0, 70.0, 85.0, 85.0], 500).is_empty());
}

#[test]
fn what_two_rules_make_otherwise_is_named() {
    let values = [70.0, 85.0, 86.0, 92.0, 93.0, 94.0, 95.0, 60.0, 61.0];
    let (low, high) = (run(&rules(80.0), &values, 100), run(&rules(90.0), &values, 100));
    assert!(compare(&low, &low).is_empty());
    let all = compare(&high, &low);
    let [Difference::Changed { incident, before, what }] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((what.as_slice(), incident.since, before.since), (["since".to_owned()].as_slice(), at(15), at(5)));
    let none = run(&rules(100.0), &values, 100);
    assert!(matches!(compare(&none, &low).as_slice(), [Difference::Removed { .. }]));
    assert!(matches!(compare(&low, &none).as_slice(), [Difference::Added { .. }]));
    let json = serde_json::to_value(compare(&low, &none)).unwrap();
    assert_eq!(json[0]["difference"], "added");
    assert_eq!(json[0]["incident"]["since"], "2025-06-15T15:06:45.000000000Z");
}
