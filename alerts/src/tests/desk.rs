//! Who is told, and when.

use super::*;
use crate::change::Fleet;
use crate::inhibit::Inhibit;
use crate::matcher::{Facts, Matcher};
use crate::silence::{MAX_SILENCE, MutedBy, Silence, SilenceError, SilenceId};

fn silence(matcher: &str, start: i64, end: i64) -> Silence {
    let matchers = vec![Matcher::parse(matcher).unwrap()];
    Silence { matchers, start: at(start), end: at(end), author: "ann".into(), reason: "repair".into() }
}

#[test]
fn a_ladder_tells_its_channels_and_the_end_those_who_were_told() {
    let mut script = Script::new();
    assert_eq!(script.hear(1, vec![change(1, 1, 1, What::Fired), told(1, 2, 1, "oncall")]), ["1 page a 1-2"]);
    assert_eq!(script.hear(600, vec![told(1, 3, 600, "lead")]), ["600 page a 1-3", "600 page b 1-3"]);
    let message = script.desk.message("b", 3).unwrap();
    assert_eq!((message.key().as_str(), message.to.as_deref()), ("0000000000000001-3-b", Some("lead")));
    let json: serde_json::Value = serde_json::from_slice(&message.json()).unwrap();
    assert_eq!((&json["key"], &json["labels"]["team"]), (&"0000000000000001-3-b".into(), &"plant".into()));
    assert_eq!(json["since"], "2025-06-15T15:06:40.000000000Z");
    assert_eq!(json["text"], "hot (warning) of d1: firing since 2025-06-15T15:06:40.000000000Z");
    assert_eq!(script.hear(700, vec![change(1, 4, 700, What::Over)]), ["700 resolved a 1-4", "700 resolved b 1-4"]);
    // An incident of which nobody was told ends silently.
    assert!(script.hear(800, vec![change(2, 1, 800, What::Fired)]).is_empty());
    assert!(script.hear(801, vec![change(2, 2, 801, What::Over)]).is_empty());
    assert_eq!(script.hear(900, vec![change(1, 5, 900, What::Fired)]), ["900 again a 1-5", "900 again b 1-5"]);
    assert_eq!(script.hear(950, vec![change(1, 6, 950, What::Over)]), ["950 resolved a 1-6", "950 resolved b 1-6"]);
    assert!(script.effects.is_empty());
}

#[test]
fn what_comes_back_in_the_past_is_told_of_when_it_has_reached_the_present() {
    let mut script = Script::new();
    let past = |number, what| Change { past: true, ..change(1, number, 5, what) };
    assert_eq!(script.hear(1, vec![change(1, 1, 1, What::Fired), told(1, 2, 1, "oncall")]), ["1 page a 1-2"]);
    // Buffered for an hour: it ended, came back and ended again, and came back.
    assert_eq!(script.hear(3600, vec![past(3, What::Over)]), ["3600 resolved a 1-3"]);
    assert!(script.hear(3600, vec![past(4, What::Fired)]).is_empty());
    assert!(script.hear(3601, vec![past(5, What::Over)]).is_empty());
    assert!(script.hear(3602, vec![past(6, What::Fired), past(7, What::Escalated)]).is_empty());
    assert_eq!(script.hear(3603, vec![change(1, 8, 9, What::Changed)]), ["3603 again a 1-8"]);
    assert_eq!(script.hear(3604, vec![change(1, 9, 9, What::Over)]), ["3604 resolved a 1-9"]);
}

#[test]
fn incidents_of_the_past_that_go_on_in_many_devices_are_a_storm() {
    let mut script = Script::new();
    let surfaced = |n: u64| vec![change(n, 1, 60, What::Changed), told(n, 2, 60, "oncall")];
    let said: Vec<String> = (1..=120).flat_map(|n| script.hear(60, surfaced(n))).collect();
    let pages = said.iter().filter(|said| said.contains("page")).count();
    let storms = said.iter().filter(|said| said.contains("storm")).count();
    assert_eq!((pages, storms), (100, 1), "{said:?}");
}

#[test]
fn a_record_that_comes_again_tells_nobody_again() {
    let mut script = Script::new();
    let record = |position| Happening::Heard { shard: 3, position, changes: vec![told(1, 2, 1, "oncall")] };
    assert_eq!(script.happen(1, record(7)).len(), 1);
    assert!(script.happen(2, record(7)).is_empty() && script.happen(2, record(6)).is_empty());
    assert_eq!(script.desk.heard(3), 7);
}

#[test]
fn who_has_no_channel_is_said_to_have_none() {
    let mut script = Script::new();
    assert!(script.hear(1, vec![told(1, 2, 1, "boss")]).is_empty());
    let Some(Effect::Unreached { to, rule, .. }) = script.effects.first() else { panic!("{:?}", script.effects) };
    assert_eq!((to.as_str(), rule.as_str()), ("boss", "hot"));
    assert!(script.hear(2, vec![change(1, 3, 2, What::Over)]).is_empty());
}

#[test]
fn a_silence_stops_the_ladder_and_its_end_goes_on_where_it_stood() {
    let mut script = Script::new();
    script.happen(0, Happening::Silence(silence("device=~d.", 100, 1000)));
    assert_eq!(script.hear(10, vec![told(1, 2, 10, "oncall")]), ["10 page a 1-2"]);
    // 1: the first step before, the second within. 2: all within. 3: over within.
    assert!(
        script
            .hear(300, vec![told(1, 3, 300, "lead"), told(2, 2, 300, "oncall"), told(3, 2, 300, "oncall")])
            .is_empty()
    );
    assert!(script.hear(400, vec![change(3, 3, 400, What::Over), told(2, 3, 400, "lead")]).is_empty());
    let facts = change(2, 1, 1, What::Fired);
    let facts = Facts { rule: "hot", device: &facts.device, severity: "warning", labels: &facts.labels.0 };
    assert_eq!(script.desk.muted(at(999), &facts), Some(MutedBy::Silence(SilenceId(1))));
    assert_eq!(script.desk.muted(at(1000), &facts), None);
    // The ladder of 1 stood still for 900 s, that of 2 from its beginning on.
    assert_eq!(
        script.until(2000),
        ["1000 page a 2-2", "1100 page a 2-3", "1100 page b 2-3", "1200 page a 1-3", "1200 page b 1-3"]
    );
    assert!(matches!(script.effects.as_slice(), [Effect::SilenceEnded(SilenceId(1), _)]));
    // What comes later is as much behind.
    assert!(script.hear(2100, vec![told(1, 4, 2100, "oncall")]).is_empty());
    assert_eq!(script.until(3100), ["3000 page a 1-4"]);
}

#[test]
fn the_end_is_told_during_a_silence_too_and_a_silence_can_end_early() {
    let mut script = Script::new();
    script.hear(1, vec![told(1, 2, 1, "oncall"), told(2, 2, 1, "oncall")]);
    script.happen(10, Happening::Silence(silence("rule=hot", 10, 5000)));
    assert_eq!(script.hear(20, vec![change(1, 3, 20, What::Over)]), ["20 resolved a 1-3"]);
    // It comes back: that is news, but not now.
    assert!(script.hear(30, vec![change(1, 4, 30, What::Fired)]).is_empty());
    assert_eq!(script.happen(100, Happening::Unsilence(SilenceId(1))), ["100 again a 1-4"]);
    assert!(script.desk.silences().is_empty());
}

#[test]
fn whoever_takes_care_is_left_alone_when_the_silence_ends() {
    let mut script = Script::new();
    script.happen(0, Happening::Silence(silence("rule=hot", 0, 100)));
    script.hear(1, vec![told(1, 2, 1, "oncall")]);
    script.hear(2, vec![change(1, 3, 2, What::Acknowledged)]);
    assert!(script.until(1000).is_empty());
    assert_eq!(script.hear(1100, vec![change(1, 4, 1100, What::Unacknowledged)]), ["1100 page a 1-2"]);
}

#[test]
fn a_worse_severity_begins_the_ladder_anew_and_may_be_out_of_the_silence() {
    let mut script = Script::new();
    script.happen(0, Happening::Silence(silence("severity=warning", 0, 1000)));
    script.hear(1, vec![change(1, 1, 1, What::Fired), told(1, 2, 1, "lead")]);
    let worse = |what, number, to: &[&str]| Change {
        severity: "critical".into(),
        to: to.iter().map(|to| (*to).to_owned()).collect(),
        ..change(1, number, 50, what)
    };
    let all = script.hear(50, vec![worse(What::Escalated, 3, &[]), worse(What::Told, 4, &["oncall"])]);
    assert_eq!(all, ["50 page a 1-4"]);
    assert!(script.until(2000).is_empty(), "the old ladder is gone");
}

#[test]
fn what_comes_and_goes_is_told_once_and_then_how_it_has_settled() {
    let mut script = Script::new();
    let turns = |script: &mut Script, from: i64, to: i64| -> Vec<String> {
        let turn = |n: i64| if n % 2 == 1 { What::Fired } else { What::Over };
        (from..=to).flat_map(|n| script.hear(n * 10, vec![change(1, n as u64, n * 10, turn(n))])).collect()
    };
    script.hear(10, vec![change(1, 1, 10, What::Fired)]);
    assert_eq!(script.hear(11, vec![told(1, 100, 11, "oncall")]), ["11 page a 1-100"]);
    let all = turns(&mut script, 2, 20);
    assert_eq!(
        all[..5],
        ["20 resolved a 1-2", "30 again a 1-3", "40 resolved a 1-4", "50 again a 1-5", "60 resolved a 1-6"]
    );
    assert_eq!(all[5..], ["70 flapping a 1-7"]);
    assert!(script.desk.flaps("d1", "hot") && !script.desk.flaps("d2", "hot"));
    assert!(script.desk.message("a", 7).unwrap().key().ends_with("-7f-a"));
    assert_eq!(script.until(900), ["800 resolved a 1-20"]);
    // Once more; whoever is to be told meanwhile hears that it flaps, and it settles firing.
    let all = turns(&mut script, 91, 99);
    assert_eq!(all.last().unwrap(), "970 flapping a 1-97");
    assert_eq!(script.hear(1000, vec![told(1, 101, 1000, "lead")]), ["1000 flapping b 1-101"]);
    assert_eq!(script.until(2000), ["1590 again a 1-99", "1590 again b 1-99"]);
    assert!(!script.desk.flaps("d1", "hot"));
    assert_eq!(
        script.hear(2100, vec![change(1, 110, 2100, What::Over)]),
        ["2100 resolved a 1-110", "2100 resolved b 1-110"]
    );
}

#[test]
fn what_is_not_accepted_in_time_is_given_up_and_so_is_what_is_too_much() {
    let mut script = Script::with(Settings { max_age_ns: 100 * SECOND, max_waiting: 2, ..settings() });
    for incident in 1..=3 {
        script.hear(incident as i64, vec![told(incident, 2, 1, "oncall")]);
    }
    let given_up = |script: &mut Script| -> Vec<String> {
        script
            .effects
            .drain(..)
            .map(|effect| match effect {
                Effect::GaveUp { message, why } => format!("{} {why}", message.incident.trim_start_matches('0')),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(given_up(&mut script), ["1 too many messages wait for this channel"]);
    script.happen(50, Happening::Accepted { channel: "a".into(), number: 2 });
    script.until(200);
    assert_eq!(given_up(&mut script), ["3 it was not accepted in time"]);
    assert_eq!(script.desk.counts()["a"].waiting, 0);
    script.hear(300, vec![told(9, 2, 300, "lead")]);
    let one = Settings { channels: ["a".to_owned()].into(), ..settings() };
    script.happen(301, Happening::Settings(one));
    assert_eq!(given_up(&mut script), ["9 its channel is not configured any more"]);
    assert_eq!(script.hear(302, vec![change(9, 3, 302, What::Over)]).len(), 1, "only those who can be reached");
}

#[test]
fn a_storm_is_told_once_and_once_that_it_is_over() {
    let mut script = Script::new();
    let mut all = Vec::new();
    for n in 1..=150u64 {
        let seconds = 10 + n as i64 / 5;
        all.extend(script.hear(seconds, vec![change(n, 1, seconds, What::Fired), told(n, 2, seconds, "oncall")]));
    }
    assert_eq!(all.len(), 101, "a hundred by themselves, then the storm");
    assert!(all[..100].iter().all(|line| line.contains(" page a ")) && all[100].contains(" storm a "), "{all:?}");
    let storm = script.desk.outbox("a", 100).next().unwrap().clone();
    let facts = storm.storm.clone().unwrap();
    assert_eq!((facts.count, facts.open, facts.devices.len(), storm.since), (101, 101, 10, at(10)));
    assert!(storm.text().starts_with("hot: a storm, 101 incidents since 2025-06-15T15:06:50"), "{}", storm.text());
    // Another channel hears of it when its turn comes; nobody hears that a child of the storm is over.
    assert!(script.hear(60, vec![told(120, 3, 60, "lead")])[0].contains(" storm b "));
    assert!(script.hear(61, vec![change(120, 4, 61, What::Over)]).is_empty());
    assert_eq!(script.hear(62, vec![change(1, 4, 62, What::Over)]), ["62 resolved a 1-4"]);
    // The last that made more than half of a minute's began at 30 s.
    let over = script.until(1000);
    assert_eq!(over.len(), 2, "{over:?}");
    assert!(over.iter().all(|line| line.starts_with("390 storm_over ")), "{over:?}");
    let facts = script.desk.outbox("b", 103).next().unwrap().storm.clone().unwrap();
    assert_eq!((facts.count, facts.open), (150, 148));
    let worse = |what, number| Change {
        severity: "critical".into(),
        to: vec!["oncall".into()],
        ..change(130, number, 1100, what)
    };
    let worse = script.hear(1100, vec![Change { to: vec![], ..worse(What::Escalated, 9) }, worse(What::Told, 10)]);
    assert_eq!(worse.len(), 1, "what gets worse after it is told of");
    assert_eq!(script.hear(1200, vec![change(900, 1, 1200, What::Fired), told(900, 2, 1200, "oncall")]).len(), 1);
}

#[test]
fn a_group_is_told_of_together_at_first_then_at_intervals_and_again_while_it_goes_on() {
    let groups = [("hot".to_owned(), vec!["team".to_owned()])].into();
    let mut script = Script::with(Settings { groups, ..settings() });
    assert!(
        script.hear(1, vec![change(1, 1, 1, What::Fired), told(1, 2, 1, "oncall"), told(2, 1, 1, "oncall")]).is_empty()
    );
    // It comes and goes before anybody hears of it.
    script.hear(5, vec![told(3, 1, 5, "oncall")]);
    script.hear(6, vec![change(3, 2, 6, What::Over)]);
    script.hear(20, vec![told(4, 1, 20, "lead")]);
    assert_eq!(script.until(60).len(), 2);
    let message = |script: &Script, channel: &str| script.desk.outbox(channel, 0).last().unwrap().clone();
    let members = |message: &Message| -> Vec<String> {
        message.members.iter().map(|member| format!("{} {}", member.device, member.state)).collect()
    };
    let (a, b) = (message(&script, "a"), message(&script, "b"));
    assert_eq!(
        (members(&a), members(&b)),
        (vec!["d1 firing".into(), "d2 firing".into(), "d4 firing".into()], vec!["d4 firing".to_owned()])
    );
    assert_eq!((a.at, b.at, a.rule.as_str(), a.device.as_str()), (at(31), at(50), "hot", ""));
    assert!(a.text().starts_with("team=plant: hot (warning) of d1 firing; "), "{}", a.text());
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&a.json()).unwrap()["members"][2]["to"], "lead");
    // News within five minutes of the last wait for their end.
    script.hear(100, vec![change(1, 3, 100, What::Over), told(5, 1, 100, "oncall")]);
    assert_eq!(script.until(1000).len(), 1);
    let third = message(&script, "a");
    assert_eq!((third.at, members(&third)), (at(331), vec!["d5 firing".to_owned(), "d1 ok".to_owned()]));
    assert_ne!((a.key(), third.key()), (third.key(), a.key()));
    // What goes on is said again after four hours, but for what somebody takes care of.
    script.hear(2000, vec![change(2, 9, 2000, What::Acknowledged)]);
    assert_eq!(script.until(331 + 4 * 3600 + 1).len(), 2);
    assert_eq!(members(&message(&script, "a")), ["d4 firing", "d5 firing"]);
    let over = [2, 4, 5].map(|incident| change(incident, 20, 20_000, What::Over));
    assert_eq!(script.hear(20_000, over.to_vec()).len(), 2, "at once, since the last message is long ago");
    let last = message(&script, "a");
    assert_eq!((last.about.as_str(), members(&last).len()), ("resolved", 3));
    assert!(script.until(100_000).is_empty(), "the group is over");
}

#[test]
fn an_incident_makes_others_not_worth_telling_while_it_is_open() {
    let matchers = |text: &str| vec![Matcher::parse(text).unwrap()];
    let inhibit =
        Inhibit { source: matchers("rule=gateway"), target: matchers("rule=~hot|gateway"), equal: vec!["team".into()] };
    let mut script = Script::with(Settings { inhibit: vec![inhibit], ..settings() });
    let gateway = |what, number, seconds, to: &[&str]| Change {
        rule: "gateway".into(),
        to: to.iter().map(|to| (*to).to_owned()).collect(),
        ..change(9, number, seconds, what)
    };
    assert_eq!(script.hear(1, vec![told(1, 1, 1, "oncall")]), ["1 page a 1-1"], "told before");
    // The gateway is told of: nothing is told of because of itself.
    let down = vec![gateway(What::Fired, 1, 10, &[]), gateway(What::Told, 2, 10, &["oncall"])];
    assert_eq!(script.hear(10, down), ["10 page a 9-2"]);
    let elsewhere = Change { labels: crate::Labels::parse("team=sea"), ..told(3, 1, 20, "oncall") };
    assert_eq!(script.hear(20, vec![told(1, 2, 20, "lead"), told(2, 1, 20, "oncall"), elsewhere]), ["20 page a 3-1"]);
    let change2 = change(2, 1, 1, What::Fired);
    let muted =
        script.desk.muted(at(20), &Facts { rule: "hot", device: "d2", severity: "", labels: &change2.labels.0 });
    assert_eq!(muted, Some(MutedBy::Incident("0000000000000009".to_owned())));
    let up = script.hear(100, vec![gateway(What::Over, 3, 100, &[])]);
    assert_eq!(up, ["100 resolved a 9-3", "100 page a 2-1"]);
    assert_eq!(script.until(200), ["110 page a 1-2", "110 page b 1-2"], "behind by as long as it was down");
}

#[test]
fn silences_that_cannot_be_are_refused() {
    let now = at(0);
    let good = silence("rule=hot", 0, 100);
    assert_eq!(good.check(now), Ok(()));
    let check = |silence: Silence| silence.check(now).unwrap_err();
    assert_eq!(check(Silence { matchers: vec![], ..good.clone() }), SilenceError::Matchers);
    for (start, end) in
        [(10, 10), (-100, 0), (0, MAX_SILENCE / SECOND + 1), (MAX_SILENCE / SECOND + 1, MAX_SILENCE / SECOND + 2)]
    {
        assert!(matches!(check(silence("rule=hot", start, end)), SilenceError::Times(_)), "{start} {end}");
    }
    assert_eq!(check(Silence { author: " ".into(), ..good.clone() }), SilenceError::Text("author"));
    assert_eq!(check(Silence { reason: "x".repeat(1001), ..good }), SilenceError::Text("reason"));
}

/// The incident `n` begins in a device of these groups, and somebody is to be told.
fn in_fleets(script: &mut Script, n: u64, seconds: i64, fleets: &[(&str, u32)]) -> Vec<String> {
    let fleets = fleets.iter().map(|(name, devices)| Fleet { name: (*name).to_owned(), devices: *devices }).collect();
    let fired = Change { fleets, ..change(n, 1, seconds, What::Fired) };
    script.hear(seconds, vec![fired, told(n, 2, seconds, "oncall")])
}

#[test]
fn more_than_a_fifth_of_a_group_of_devices_is_a_storm_of_that_group() {
    let mut script = Script::new();
    // Of 30 devices, 6 are told of by themselves.
    let line = [("line-1", 30)];
    let said: Vec<String> = (1..=9).flat_map(|n| in_fleets(&mut script, n, 10 + n as i64, &line)).collect();
    assert_eq!(said.len(), 7, "{said:?}");
    assert!(said[..6].iter().all(|said| said.contains(" page ")) && said[6].starts_with("17 storm a "), "{said:?}");
    let storm = script.desk.outbox("a", 6).next().unwrap().clone();
    let facts = storm.storm.clone().unwrap();
    assert_eq!((facts.count, facts.open, facts.fleet.as_deref()), (7, 7, Some("line-1")));
    assert!(storm.text().starts_with("hot: a storm, 7 incidents in group line-1 since "), "{}", storm.text());
    let json: serde_json::Value = serde_json::from_slice(&storm.json()).unwrap();
    assert_eq!(json["storm"]["group"], "line-1");
    // Others are told of as ever, also those of another group.
    assert_eq!(in_fleets(&mut script, 50, 20, &[]), ["20 page a 32-2"]);
    assert_eq!(in_fleets(&mut script, 51, 20, &[("line-2", 30)]), ["20 page a 33-2"]);
    let over = script.until(1000);
    assert!(over.len() == 1 && over[0].contains(" storm_over a "), "{over:?}");
    let facts = script.desk.outbox("a", 9).next().unwrap().storm.clone().unwrap();
    assert_eq!((facts.count, facts.open), (9, 9), "the two beside are none of it");
}

#[test]
fn few_devices_are_no_storm_and_a_group_that_grows_is_taken_as_it_is() {
    let mut script = Script::new();
    // Four of five, and as slowly as one a minute.
    let said: Vec<String> = (1..=4).flat_map(|n| in_fleets(&mut script, n, 1, &[("cell", 5)])).collect();
    assert!(said.iter().all(|said| said.contains(" page ")), "{said:?}");
    let slow: Vec<String> = (5..=20).flat_map(|n| in_fleets(&mut script, n, 61 * n as i64, &[("cell", 5)])).collect();
    assert!(slow.iter().all(|said| said.contains(" page ")), "{slow:?}");
    let grown: Vec<String> = (30..=40).flat_map(|n| in_fleets(&mut script, n, 2000, &[("cell", 50)])).collect();
    assert_eq!((grown.len(), grown.iter().filter(|said| said.contains(" storm ")).count()), (11, 1), "{grown:?}");
}

#[test]
fn nobody_is_told_of_devices_behind_a_gateway_that_is_away() {
    let mut script = Script::new();
    let behind = |names: &[&str]| Happening::Gateway {
        device: "gw".to_owned(),
        children: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    script.happen(1, behind(&["d1", "d2"]));
    assert!(script.hear(2, vec![change(1, 1, 2, What::Fired), told(1, 2, 2, "oncall")]).is_empty());
    assert_eq!(script.hear(3, vec![change(3, 1, 3, What::Fired), told(3, 2, 3, "oncall")]), ["3 page a 3-2"]);
    let labels = crate::Labels::parse("");
    let facts = Facts { rule: "any", device: "d2", severity: "critical", labels: &labels.0 };
    assert_eq!(script.desk.muted(at(3), &facts), Some(MutedBy::Gateway("gw".to_owned())));
    assert_eq!(script.desk.gateways().into_keys().collect::<Vec<_>>(), ["gw"]);
    // It is back: whoever is well again within a minute is nobody's business.
    assert!(script.hear(10, vec![change(2, 1, 10, What::Fired), told(2, 2, 10, "oncall")]).is_empty());
    assert!(script.happen(20, behind(&[])).is_empty());
    assert!(script.desk.gateways().is_empty());
    assert!(script.hear(50, vec![change(2, 3, 50, What::Over)]).is_empty());
    assert_eq!(script.until(200), ["80 page a 1-2"]);
    // Away again before the minute is over.
    script.happen(300, behind(&["d1"]));
    script.happen(310, behind(&[]));
    script.happen(320, behind(&["d1"]));
    assert!(script.hear(400, vec![told(1, 5, 400, "lead")]).is_empty());
    assert!(script.until(1000).is_empty());
}
