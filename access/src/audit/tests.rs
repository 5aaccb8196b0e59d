//! What is noted is durable and told; floods become few acts.

use super::collapse::Collapse;
use super::*;

const SECOND: i64 = 1_000_000_000;

fn lines(data: &Path) -> Vec<crate::journal::Line<Act>> {
    Journal::<Act>::read_only(&journal(data)).unwrap().read_on().unwrap()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn an_act_is_durable_when_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    let act =
        Act::done("ada", "shadow.set", "pump-1").role("operator").from("127.0.0.1:9").detail(serde_json::json!([1]));
    wait(audit.noted(Timestamp(5), act.clone())).unwrap();
    assert_eq!(lines(dir.path())[0].fact, act);
    add(dir.path(), Timestamp(6), Act::done("root", "ca.revoke", "pump-1").from(COMMAND_LINE)).unwrap();
    wait(audit.noted(Timestamp(7), Act::done("ada", "flush", ""))).unwrap();
    let actions: Vec<String> = lines(dir.path()).into_iter().map(|line| line.fact.action).collect();
    assert_eq!(actions, ["shadow.set", "ca.revoke", "flush"]);
    let verdict = verify(audit.path()).unwrap();
    assert_eq!((verdict.acts, verdict.first, verdict.last), (3, Some(5), Some(7)));
    assert_eq!(verdict.head, lines(dir.path())[2].hash.to_string());
    assert_eq!(audit.counters(), (2, 0, 0));
}

#[test]
fn what_is_on_its_way_is_written_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    for i in 0..1000 {
        audit.note(Timestamp(1), Act::done("ada", "act", i.to_string()));
    }
    for _ in 0..500 {
        audit.note(Timestamp(1), Act::refused("eve", "http", "/v1/query", "no_token").from("10.0.0.1:77"));
    }
    drop(audit);
    let lines = lines(dir.path());
    let refused: Vec<u64> =
        lines.iter().filter(|line| line.fact.who == "eve").map(|line| super::count(&line.fact)).collect();
    assert_eq!(refused, [1, 499]);
    assert_eq!(lines.len(), 1002);
}

#[test]
fn a_trail_that_was_changed_names_the_line_and_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..3 {
        add(dir.path(), Timestamp(i), Act::done("ada", "act", i.to_string())).unwrap();
    }
    let path = journal(dir.path());
    let text = std::fs::read_to_string(&path).unwrap().replacen("\"subject\":\"1\"", "\"subject\":\"7\"", 1);
    std::fs::write(&path, text).unwrap();
    let error = verify(&path).unwrap_err().to_string();
    assert!(error.contains("audit.journal:2: "), "{error}");
    assert!(Audit::open(dir.path()).is_err());
    assert!(add(dir.path(), Timestamp(9), Act::done("ada", "act", "")).is_err());
}

#[test]
fn who_waits_is_told_that_the_trail_cannot_be_written_and_the_act_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    wait(audit.noted(Timestamp(1), Act::done("ada", "one", ""))).unwrap();
    let path = journal(dir.path());
    let whole = std::fs::read(&path).unwrap();
    // Somebody has cut the file: nothing more is written into it.
    std::fs::write(&path, &whole[..10]).unwrap();
    let error = wait(audit.noted(Timestamp(2), Act::done("ada", "two", ""))).unwrap_err();
    assert!(error.to_string().contains("cannot be written"), "{error}");
    std::fs::write(&path, &whole).unwrap();
    wait(audit.noted(Timestamp(3), Act::done("ada", "three", ""))).unwrap();
    let actions: Vec<String> = lines(dir.path()).into_iter().map(|line| line.fact.action).collect();
    assert_eq!(actions, ["one", "two", "three"]);
}

#[test]
fn a_flood_of_refusals_becomes_one_act_in_ten_seconds() {
    let mut collapse = Collapse::default();
    let act = |who: &str| Act::refused(who, "mqtt.connect", "x", "unknown").from("10.0.0.1:1");
    let mut written = Vec::new();
    for tick in 0..300 {
        let now = Timestamp(tick * SECOND / 10);
        written.extend(collapse.take(now, act("eve")));
        written.extend(collapse.due(now, false));
        assert!(collapse.take(now, Act::done("ada", "flush", "")).is_some(), "what was done always passes");
    }
    written.extend(collapse.due(Timestamp(30 * SECOND), true));
    assert_eq!(written.len(), 4, "{written:?}");
    assert_eq!(written.iter().map(super::count).sum::<u64>(), 300);
    assert!(!collapse.waits());
}

#[test]
fn names_that_are_made_up_do_not_help_a_flood() {
    let mut collapse = Collapse::default();
    let mut written = Vec::new();
    for i in 0..10_000 {
        let act = Act::refused(format!("eve-{i}"), "mqtt.connect", "x", "unknown").from(format!("10.0.0.1:{i}"));
        written.extend(collapse.take(Timestamp(i), act));
    }
    written.extend(collapse.due(Timestamp(11 * SECOND), false));
    assert!(written.len() <= 102, "{}", written.len());
    assert_eq!(written.iter().map(super::count).sum::<u64>(), 10_000);
    // Kinds of which nothing more came are forgotten.
    collapse.due(Timestamp(22 * SECOND), false);
    assert!(!collapse.waits());
    assert!(collapse.take(Timestamp(23 * SECOND), Act::refused("new", "mqtt.connect", "x", "unknown")).is_some());
}

#[test]
fn acts_of_the_last_version_are_read() {
    let text = r#"{"who":"ada","action":"shadow.set","outcome":"ok"}"#;
    let act: Act = serde_json::from_str(text).unwrap();
    assert_eq!(act, Act::done("ada", "shadow.set", ""));
    assert_eq!(serde_json::to_string(&act).unwrap(), text);
}
