//! Commands: one way, one end, bounded.

use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp(1_795_867_200_000_000_000);

fn order(id: &str) -> Order {
    Order {
        id: id.into(),
        name: "open".into(),
        args: json!({"valve": 3}),
        deadline: NOW.plus(SECOND),
        by: "ann".into(),
    }
}

fn queued(commands: &mut Commands, id: &str) {
    let (answer, step) = commands.queue(order(id), NOW);
    assert_eq!(answer, Answer::Queued);
    commands.apply(&step.unwrap(), NOW);
}

fn said(commands: &mut Commands, text: &str) -> Heard {
    let heard = commands.result(text.as_bytes());
    if let Heard::News(step) = &heard {
        commands.apply(step, NOW);
    }
    heard
}

#[test]
fn a_command_goes_one_way_and_has_one_end() {
    let mut commands = Commands::default();
    queued(&mut commands, "a");
    assert_eq!(commands.queue(order("a"), NOW.plus(5 * SECOND)).0, Answer::Known, "asked twice, it is one");
    let other = Order { args: json!({}), ..order("a") };
    assert_eq!(commands.queue(other, NOW), (Answer::Conflict, None));
    assert!(matches!(said(&mut commands, r#"{"cmd_id": "a", "state": "running", "out": 10}"#), Heard::News(_)));
    assert!(matches!(said(&mut commands, r#"{"cmd_id": "a", "state": "running", "out": 20}"#), Heard::News(_)));
    assert_eq!(said(&mut commands, r#"{"cmd_id": "a", "state": "accepted"}"#), Heard::Old);
    assert_eq!(commands.expire(NOW.plus(2 * SECOND)), [], "the device had it in time");
    assert!(matches!(said(&mut commands, r#"{"cmd_id": "a", "state": "ok", "out": {"took": 3}}"#), Heard::News(_)));
    assert_eq!(said(&mut commands, r#"{"cmd_id": "a", "state": "failed"}"#), Heard::Old);
    let command = commands.find("a").unwrap();
    assert_eq!((command.state, &command.out), (State::Ok, &json!({"took": 3})));
    assert_eq!(commands.waiting(NOW).count(), 0);
}

#[test]
fn what_is_over_is_not_given_to_the_device_any_more() {
    let mut commands = Commands::default();
    queued(&mut commands, "a");
    assert_eq!((commands.due(), commands.waiting(NOW).count()), (Some(NOW.plus(SECOND)), 1));
    let later = NOW.plus(SECOND);
    assert_eq!(commands.waiting(later).count(), 0);
    for step in commands.expire(later) {
        commands.apply(&step, later);
    }
    assert_eq!((commands.find("a").unwrap().state, commands.due()), (State::Expired, None));
    // It had it in time and was cut off before it could say so.
    assert!(matches!(said(&mut commands, r#"{"cmd_id": "a", "state": "ok"}"#), Heard::News(_)));
    assert_eq!(commands.find("a").unwrap().state, State::Ok);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let mut commands = Commands::default();
    let why = |commands: &Commands, order| match commands.queue(order, NOW) {
        (Answer::Refused(text), None) => text,
        other => panic!("{other:?}"),
    };
    assert!(why(&commands, Order { deadline: NOW, ..order("a") }).contains("passed"));
    assert!(why(&commands, Order { deadline: NOW.plus(MAX_AHEAD + 1), ..order("a") }).contains("90 days"));
    assert!(why(&commands, Order { name: "".into(), ..order("a") }).contains("the name"));
    assert!(why(&commands, Order { args: json!("x".repeat(MAX_ARGS)), ..order("a") }).contains("at most"));
    for number in 0..MAX_WAITING {
        queued(&mut commands, &number.to_string());
    }
    assert!(why(&commands, order("a")).contains("wait for this device"));
    for (text, part) in [
        ("[]", "neither"),
        (r#"{"state": "ok"}"#, "`cmd_id`"),
        (r#"{"cmd_id": "1", "state": "queued"}"#, "`state`"),
        (r#"{"cmd_id": "nobody", "state": "ok"}"#, "no command \"nobody\""),
    ] {
        let Heard::Refused(why) = said(&mut commands, text) else { panic!("{text}") };
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn a_bounded_number_of_ends_is_remembered_and_all_comes_back() {
    let mut commands = Commands::default();
    queued(&mut commands, "waits");
    for number in 0..REMEMBERED + 10 {
        queued(&mut commands, &number.to_string());
        said(&mut commands, &format!("{{\"cmd_id\": \"{number}\", \"state\": \"ok\"}}"));
    }
    assert_eq!(commands.all().count(), REMEMBERED + 1);
    assert!(commands.find("waits").is_some() && commands.find("9").is_none() && commands.find("10").is_some());
    let mut bytes = Vec::new();
    commands.put(&mut bytes);
    assert_eq!(Commands::get(&mut Cursor::new(&bytes)), Ok(commands));
}

#[test]
fn ids_are_of_version_7_and_rise_with_time() {
    let id = draw_id(NOW, [u64::MAX, u64::MAX]);
    assert_eq!(&*id, "01a22206-ca00-7fff-bfff-ffffffffffff");
    assert!(draw_id(NOW.plus(1_000_000), [0, 0]) > id);
}
