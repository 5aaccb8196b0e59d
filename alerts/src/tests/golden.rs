//! Promise: what a desk wrote once can be read for ever.
//!
//! `golden/` holds records of version 1 as the first weir with a desk wrote them. A change that cannot read them needs a version of
//! its own, and a reader for both.

use std::sync::Arc;

use bytes::Bytes;
use device::seq::Position;
use storage::log::{MemoryLog, ShardLog};

use super::*;
use crate::inhibit::Inhibit;
use crate::keeper::Keeper;
use crate::matcher::Matcher;
use crate::silence::Silence;

/// Everything that can happen.
fn history() -> Vec<(i64, Happening)> {
    let matchers = |text: &str| vec![Matcher::parse(text).unwrap()];
    let inhibit =
        Inhibit { source: matchers("rule=gateway"), target: matchers("rule!=gateway"), equal: vec!["team".into()] };
    let silence = Silence {
        matchers: matchers("device=~d2|d9"),
        start: at(0),
        end: at(900),
        author: "ann".into(),
        reason: "repair".into(),
    };
    let first = Change { value: Some(81.25), ..change(1, 1, 1, What::Fired) };
    let heard = |shard, position, changes| Happening::Heard { shard, position, changes };
    vec![
        (0, Happening::Settings(Settings { inhibit: vec![inhibit], ..settings() })),
        (0, Happening::Silence(silence.clone())),
        (1, heard(0, 5, vec![first, told(1, 2, 1, "oncall"), change(1, 3, 1, What::Acknowledged)])),
        (2, heard(1, 9, vec![told(2, 2, 2, "lead"), change(3, 1, 2, What::Fired), told(3, 2, 2, "lead")])),
        (3, Happening::Accepted { channel: "a".into(), number: 1 }),
        (4, heard(1, 10, vec![Change { stale: true, ..change(3, 3, 4, What::Changed) }, change(3, 4, 4, What::Over)])),
        (5, Happening::Silence(silence)),
        (6, Happening::Unsilence(crate::SilenceId(2))),
        (7, Happening::Tick),
    ]
}

fn golden(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn read(log: &Arc<MemoryLog>) -> Desk {
    Keeper::open(log.clone()).unwrap().with(Desk::clone)
}

#[test]
fn the_first_version_reads() {
    let mut desk = Desk::default();
    for (seconds, happening) in history() {
        desk.step(at(seconds), &happening);
    }
    let log = Arc::new(MemoryLog::new());
    let keeper = Keeper::open(log.clone()).unwrap();
    for (seconds, happening) in history() {
        keeper.happen(at(seconds), happening);
    }
    keeper.write().unwrap();
    let records = log.read(crate::DESK, Position(1), usize::MAX).unwrap();
    let [(_, happened)] = records.as_slice() else { panic!("one record") };
    let whole = crate::keeper::whole(&desk);
    for (name, written) in [("happened_v1.json", happened), ("desk_v1.json", &whole)] {
        let path = golden(name);
        if !path.exists() && std::env::var("WEIR_GOLDEN").is_ok_and(|wish| wish == "write") {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, written).unwrap();
        }
        let stored = std::fs::read(&path).unwrap();
        let log = Arc::new(MemoryLog::new());
        log.append(crate::DESK, Position(1), &Bytes::from(stored)).unwrap();
        assert_eq!(read(&log), desk, "{name}");
    }
}
