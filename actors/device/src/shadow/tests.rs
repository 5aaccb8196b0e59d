//! Shadows: versions, requests, bounds, and the table of merges.

use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp(1_795_867_200_000_000_000);

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

fn path(text: &str) -> Path {
    text.split('.').map(Arc::from).collect()
}

/// A device's shadows, and the time.
struct World {
    shadows: Shadows,
    rules: ShadowRules,
    now: Timestamp,
}

impl World {
    fn new(rules: &[(&str, Policy)]) -> Self {
        let rule = |(at, policy): &(&str, Policy)| Rule {
            shadow: None,
            path: at.split('.').map(str::to_owned).collect(),
            policy: *policy,
            deadband: 0.0,
        };
        Self { shadows: Shadows::default(), rules: ShadowRules(rules.iter().map(rule).collect()), now: NOW }
    }

    fn make(&mut self, ruling: Ruling) -> (Answer, Vec<Change>) {
        for change in &ruling.changes {
            self.shadows.apply(change, self.now);
        }
        let mut bytes = Vec::new();
        self.shadows.put(&mut bytes);
        assert_eq!(Shadows::get(&mut Cursor::new(&bytes)).as_ref(), Ok(&self.shadows));
        for change in &ruling.changes {
            let mut bytes = Vec::new();
            change.put(&mut bytes);
            assert_eq!(Change::get(&mut Cursor::new(&bytes)).as_ref(), Ok(change));
        }
        (ruling.answer, ruling.changes)
    }

    fn asked(&mut self, ask: Ask) -> Answer {
        let ruling = self.shadows.ask(ask, self.now);
        self.make(ruling).0
    }

    fn desire(&mut self, patch: Value) -> Answer {
        self.asked(ask(patch))
    }

    fn report(&mut self, report: Report) -> Vec<Change> {
        let ruling = self.shadows.report(report, "pump", None, &self.rules, self.now);
        self.make(ruling).1
    }

    fn view(&self) -> View {
        self.shadows.view(DEFAULT, self.now, &self.rules).unwrap()
    }
}

fn ask(patch: Value) -> Ask {
    let patch = Some(object(patch));
    Ask { shadow: DEFAULT.into(), patch, by: "ann".into(), request: None, if_dv: None, ttl: None }
}

fn full(based_on: u64, document: Value) -> Report {
    Report { based_on: Some(based_on), full: true, patch: object(document), ..Report::default() }
}

fn events(changes: &[Change]) -> Vec<&'static str> {
    changes.iter().map(Change::event).collect()
}

#[test]
fn versions_rise_and_the_delta_is_complete() {
    let mut world = World::new(&[]);
    assert_eq!(world.desire(json!({"a": 1, "b": {"c": true}})), Answer::Changed(1));
    assert_eq!(world.desire(json!({"a": 1})), Answer::Unchanged(1), "nothing has changed");
    assert_eq!(world.desire(json!({"a": 2})), Answer::Changed(2));
    assert_eq!(Value::Object(world.view().delta), json!({"a": 2, "b": {"c": true}}));
    assert_eq!(events(&world.report(full(2, json!({"a": 2, "x": 9})))), ["reported"]);
    let view = world.view();
    assert_eq!((Value::Object(view.delta), view.rv, view.applied_dv), (json!({"b": {"c": true}}), 1, 2));
    assert!(!view.in_sync);
    world.report(Report { based_on: Some(2), patch: object(json!({"b": {"c": true}})), ..Report::default() });
    assert!(world.view().in_sync);
    assert_eq!(world.asked(Ask { if_dv: Some(1), ..ask(json!({"a": 3})) }), Answer::Mismatch(2));
    assert_eq!(world.asked(Ask { patch: None, ..ask(json!({})) }), Answer::Changed(3));
    assert_eq!((world.view().dv, world.view().rv, world.view().reported.len()), (3, 3, 0), "versions never go back");
    assert_eq!(world.shadows.desired_at(DEFAULT, 1).map(Value::Object), Some(json!({"a": 1, "b": {"c": true}})));
    assert_eq!(world.shadows.desired_at(DEFAULT, 2).map(Value::Object), Some(json!({"a": 2, "b": {"c": true}})));
    assert_eq!(world.shadows.desired_at(DEFAULT, 4), None);
}

#[test]
fn a_request_counts_once() {
    let mut world = World::new(&[]);
    let first = Ask { request: Some("r1".into()), ..ask(json!({"a": 1})) };
    assert_eq!(world.asked(first.clone()), Answer::Changed(1));
    world.desire(json!({"a": 2}));
    assert_eq!(world.asked(first.clone()), Answer::Unchanged(1), "the answer of then");
    assert_eq!(world.view().desired["a"], 2);
    world.now = world.now.plus(REMEMBER + 1);
    world.desire(json!({"b": 2}));
    assert_eq!(world.asked(first), Answer::Changed(4), "a day later it is forgotten");
}

#[test]
fn what_is_too_much_is_refused() {
    let mut world = World::new(&[]);
    let deep = (0..8).fold(json!(1), |inner, _| json!({ "a": inner }));
    assert_eq!(world.desire(deep.clone()), Answer::Changed(1));
    for (patch, part) in [(json!({ "a": deep }), "9 objects deep"), (json!({"a": "x".repeat(MAX_SIZE)}), "at most")] {
        let Answer::Refused(text) = world.desire(patch) else { panic!("{part}") };
        assert!(text.contains(part), "{text}");
    }
    let refused = |world: &mut World, ask| matches!(world.asked(ask), Answer::Refused(_));
    assert!(refused(&mut world, Ask { shadow: "a b".into(), ..ask(json!({})) }));
    assert!(refused(&mut world, Ask { by: "".into(), ..ask(json!({"z": 1})) }));
    for number in 1..MAX_NAMED {
        let shadow = format!("s{number}").as_str().into();
        assert_eq!(world.asked(Ask { shadow, ..ask(json!({"a": 1})) }), Answer::Changed(1));
    }
    assert!(refused(&mut world, Ask { shadow: "more".into(), ..ask(json!({"a": 1})) }));
}

#[test]
fn a_value_whose_time_is_over_is_never_applied() {
    let mut world = World::new(&[]);
    world.desire(json!({"mode": "eco"}));
    world.asked(Ask { ttl: Some(60 * SECOND), ..ask(json!({"valve": "open"})) });
    assert_eq!((world.shadows.due(), world.view().delta.len()), (Some(NOW.plus(60 * SECOND)), 2));
    world.now = NOW.plus(60 * SECOND);
    assert_eq!(Value::Object(world.view().delta), json!({"mode": "eco"}), "also before the log says so");
    let changes = world.shadows.expire(world.now);
    assert_eq!(events(&changes), ["desired.expired"]);
    assert_eq!(world.make(Ruling { answer: Answer::Old, changes }).0, Answer::Old);
    assert_eq!((world.view().dv, world.view().desired.len(), world.shadows.due()), (3, 1, None));
    assert_eq!(world.shadows.expire(world.now), []);
    world.asked(Ask { ttl: Some(SECOND), ..ask(json!({"valve": "open"})) });
    assert_eq!(world.desire(json!({"valve": "open"})), Answer::Changed(5), "from now on it lasts");
    assert_eq!(world.shadows.due(), None);
}

/// What a merge after a long time offline comes to, for one value: base 1, then as given.
#[track_caller]
fn merged(policy: Policy, desired: i64, reported: i64, after: i64, value: i64, expected: &[&str]) {
    let mut world = World::new(&[("v", policy)]);
    world.desire(json!({"v": 1}));
    world.report(full(1, json!({"v": 1})));
    world.now = NOW.plus(3600 * SECOND);
    if desired != 1 {
        world.desire(json!({ "v": desired }));
    }
    let times = vec![(path("v"), world.now.plus(after * SECOND))];
    let report = Report { times, ..full(1, json!({ "v": reported })) };
    let changes = world.report(report.clone());
    assert_eq!(events(&changes), expected, "{policy:?}");
    let view = world.view();
    assert_eq!(view.desired["v"], value, "{policy:?}");
    assert_eq!(view.delta.is_empty(), value == reported || !view.open.is_empty(), "{policy:?}");
    let disputed = policy == Policy::Manual && reported != 1 && reported != desired;
    assert_eq!(view.open.is_empty(), !disputed, "{policy:?}");
    // The same once more changes nothing.
    let again = world.report(report);
    assert!(events(&again).iter().all(|event| *event == "reported"), "{policy:?}: {again:?}");
    assert_eq!((world.view().dv, world.view().rv, world.view().open), (view.dv, view.rv, view.open));
}

#[test]
fn three_ways_are_merged_as_the_table_says() {
    for policy in Policy::ALL {
        merged(policy, 1, 1, 0, 1, &["reported"]);
        merged(policy, 2, 2, 0, 2, &["reported"]);
        merged(policy, 2, 1, 0, 2, &["reported"]);
    }
    let (conflict, adopted) = ("shadow.conflict", "desired.adopted");
    // Only the device has changed it.
    merged(Policy::Server, 1, 5, 0, 1, &["reported"]);
    merged(Policy::Manual, 1, 5, 0, 1, &["reported"]);
    merged(Policy::Device, 1, 5, 0, 5, &["reported", adopted]);
    merged(Policy::Later, 1, 5, 1, 5, &["reported", adopted]);
    merged(Policy::Max, 1, 5, 0, 5, &["reported", adopted]);
    merged(Policy::Min, 1, 5, 0, 1, &["reported"]);
    // Both have.
    merged(Policy::Server, 2, 5, 0, 2, &["reported", conflict]);
    merged(Policy::Manual, 2, 5, 0, 2, &["reported", conflict]);
    merged(Policy::Device, 2, 5, 0, 5, &["reported", conflict, adopted]);
    merged(Policy::Later, 2, 5, 1, 5, &["reported", conflict, adopted]);
    merged(Policy::Later, 2, 5, 0, 2, &["reported", conflict]);
    merged(Policy::Later, 2, 5, -1, 2, &["reported", conflict]);
    merged(Policy::Max, 2, 5, 0, 5, &["reported", conflict, adopted]);
    merged(Policy::Min, 2, 5, 0, 2, &["reported", conflict]);
}

#[test]
fn sets_are_united_and_an_open_conflict_ends_when_one_side_gives_way() {
    let mut world = World::new(&[("tags", Policy::Union), ("mode", Policy::Manual)]);
    world.desire(json!({"tags": ["a"], "mode": 1}));
    world.report(full(1, json!({"tags": ["a"], "mode": 1})));
    world.desire(json!({"tags": ["a", "b"], "mode": 2}));
    let changes = world.report(full(1, json!({"tags": ["a", "c"], "mode": 3})));
    assert_eq!(events(&changes), ["reported", "shadow.conflict", "shadow.conflict", "desired.adopted"]);
    let view = world.view();
    assert_eq!((&view.desired["tags"], view.open.clone()), (&json!(["a", "b", "c"]), vec![path("mode")]));
    assert_eq!(Value::Object(view.delta), json!({"tags": ["a", "b", "c"]}), "neither side of a conflict is pushed");
    // Our agent says once that it has changed something itself.
    let later = Report { local: Some(Vec::new()), ..full(3, json!({"tags": ["a", "b", "c"], "mode": 3})) };
    world.report(later);
    assert_eq!((world.view().open, world.view().delta.len()), (vec![path("mode")], 0), "it is still in dispute");
    assert_eq!(world.desire(json!({"mode": 2})), Answer::Changed(4), "said again, it is meant");
    assert_eq!((world.view().open, world.view().delta["mode"].clone()), (vec![], json!(2)));
    world.report(Report { based_on: Some(4), patch: object(json!({"mode": 2})), ..Report::default() });
    assert_eq!(world.view().delta.get("mode"), None);
}

#[test]
fn reports_of_ended_sessions_count_for_nothing() {
    let mut world = World::new(&[]);
    let report = |session, rseq, value: i64| Report {
        session: Some(session),
        rseq: Some(rseq),
        patch: object(json!({ "v": value })),
        ..Report::default()
    };
    let say = |world: &mut World, current, report| {
        let ruling = world.shadows.report(report, "pump", Some(current), &ShadowRules::default(), NOW);
        world.make(ruling).0
    };
    assert_eq!(say(&mut world, 7, report(7, 1, 1)), Answer::Changed(1));
    assert_eq!(say(&mut world, 7, report(7, 2, 2)), Answer::Changed(2));
    assert_eq!(say(&mut world, 7, report(7, 1, 1)), Answer::Old);
    assert_eq!(say(&mut world, 8, report(7, 3, 3)), Answer::Old);
    assert_eq!(say(&mut world, 8, report(8, 1, 4)), Answer::Changed(3));
    assert_eq!(world.view().reported["v"], 4);
}

#[test]
fn a_plain_client_gets_what_differs_and_nothing_is_taken_from_it() {
    let mut world = World::new(&[("*", Policy::Device)]);
    world.desire(json!({"v": 5}));
    let plain = |patch| Report { patch: object(patch), ..Report::default() };
    assert_eq!(events(&world.report(plain(json!({"v": 1, "w": 2})))), ["reported"]);
    assert_eq!((world.view().dv, Value::Object(world.view().delta)), (1, json!({"v": 5})));
    let local = Report { local: Some(vec![path("v")]), ..plain(json!({"v": 6})) };
    assert_eq!(events(&world.report(local)), ["reported", "desired.adopted"], "it says that it was changed there");
}

#[test]
fn old_versions_are_kept_within_bounds() {
    let mut world = World::new(&[]);
    for number in 0..2000 {
        world.now = world.now.plus(86_400 * SECOND);
        world.desire(json!({ "v": number }));
    }
    let kept = world.shadows.named[DEFAULT].past.len();
    assert_eq!(kept, VERSIONS, "more than 90 days, so 256 versions");
    assert_eq!(world.shadows.desired_at(DEFAULT, 2000 - 256).map(Value::Object), Some(json!({"v": 1743})));
    assert_eq!(world.shadows.desired_at(DEFAULT, 2000 - 257), None);
    assert_eq!(world.shadows.version_at(DEFAULT, world.now), Some(2000));
    assert_eq!(world.shadows.version_at(DEFAULT, world.now.plus(-1)), Some(1999));
    assert_eq!(world.shadows.version_at(DEFAULT, NOW), None);
    // A device that has been away for longer than that has no base: what differs is decided by policy.
    let changes = world.report(full(3, json!({"v": 2})));
    assert_eq!(events(&changes), ["reported", "shadow.conflict"]);
    for number in 0..40 {
        world.desire(json!({ "long": format!("{number:20000}") }));
    }
    let bytes: usize = world.shadows.named[DEFAULT].past.iter().map(|past| past.size).sum();
    assert!(bytes <= KEEP_BYTES, "{bytes}");
}
