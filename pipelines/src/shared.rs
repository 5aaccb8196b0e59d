//! Windows whose groups have rows of many devices, and so of many shards. Pure; times are nanoseconds since the Unix
//! epoch.
//!
//! Each shard aggregates its own rows, and at each barrier gives what came since the last one as a *contribution*: the
//! states of its groups, and how far its devices are ([`Local`]). One shard, which follows from the pipeline's name
//! ([`owner`]), merges the contributions of all (`merge.rs`). They travel as records of that shard's log, under numbers
//! by which a repeat is recognised, as a device's are. So what is merged follows from logs alone.
//!
//! Such a window closes when the slowest shard has passed its end plus the lateness ([`Frontiers`]). A shard is as far
//! as the slowest of its devices that count. A device counts if it was heard of within [`IDLE`], and if it is not
//! more than that behind the device that is furthest: what is silent, or far behind, holds up nobody, and what it brings
//! later is late. A shard none of whose devices counts says so, and is not waited for.

use std::collections::BTreeMap;

use device::id::ShardId;
use device::time::SECOND;
use serde::{Deserialize, Serialize};

/// A device silent for so long, or so far behind the others, holds up no window that it shares with them.
pub const IDLE: i64 = 60 * SECOND;

/// The shard that merges a pipeline's groups. By name alone, so that it stays when the project changes.
pub fn owner(pipeline: &str, shards: u16) -> ShardId {
    // FNV-1a, 32 bits: http://www.isthe.com/chongo/tech/comp/fnv/
    let hash = pipeline.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ShardId((hash % u32::from(shards.max(1))) as u16)
}

/// What a state says of shared groups; it is part of the state's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Shared {
    /// The state of a shard's own part.
    Local(Local),
    /// A contribution.
    Contribution(Report),
    /// The state of the part that merges.
    Merged(Frontiers),
}

/// How far a shard is, and what it has not given away yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Local {
    /// What was said last; `None`: nothing yet.
    said: Option<Progress>,
    /// Windows that close at or before this are incomplete here.
    since: i64,
    /// Rows by the start of their pane, since the last barrier; those of sessions are counted in their states.
    #[serde(skip)]
    rows: BTreeMap<i64, u64>,
}

/// How far the devices of a shard are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// The slowest device that counts; `None`: there is none.
    frontier: Option<i64>,
    /// The shard's own time.
    now: i64,
}

/// What a contribution says besides the states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// How far the shard is.
    pub(crate) progress: Progress,
    /// Windows that close at or before this are incomplete there.
    pub(crate) since: i64,
    /// Rows by the start of their pane.
    pub(crate) rows: Vec<(i64, u64)>,
}

impl Local {
    /// Of a pipeline that begins; windows that close at or before `since` would be incomplete.
    pub(crate) fn new(since: i64) -> Self {
        Self { said: None, since, rows: BTreeMap::new() }
    }

    /// Where windows begin to be complete.
    pub(crate) fn since(&self) -> i64 {
        self.since
    }

    /// Takes note of rows.
    pub(crate) fn count(&mut self, panes: &[i64]) {
        let mut runs = panes.chunk_by(|a, b| a == b);
        while let Some([pane, rest @ ..]) = runs.next() {
            *self.rows.entry(*pane).or_default() += 1 + rest.len() as u64;
        }
    }

    /// At a barrier: what to say, if there is anything new. `slowest`: see [`Progress`]; `states`: whether there are any.
    pub(crate) fn report(&mut self, slowest: Option<i64>, now: i64, states: bool) -> Option<Report> {
        // What was said stays true: a device that comes back with old rows does not open what may be closed.
        let said = self.said.and_then(|said| said.frontier);
        let progress = Progress { frontier: slowest.map(|own| said.map_or(own, |said| said.max(own))), now };
        // While nobody is there, time itself closes windows.
        let passed = |said: Progress| said.frontier.is_none() && now.saturating_sub(said.now) >= IDLE;
        let news = self.said.is_none_or(|said| said.frontier != progress.frontier || passed(said));
        if !news && !states {
            return None;
        }
        self.said = Some(progress);
        let rows = std::mem::take(&mut self.rows).into_iter().collect();
        Some(Report { progress, since: self.since, rows })
    }
}

/// How far all shards are, and up to where windows are closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Frontiers {
    shards: u16,
    /// Windows that close at or before this are closed.
    frontier: i64,
    sources: BTreeMap<u16, Source>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    /// Number of its last contribution.
    last: u64,
    progress: Progress,
}

impl Frontiers {
    /// Of a pipeline that begins, over so many shards. Windows that close at or before `frontier` are closed.
    pub(crate) fn new(shards: u16, frontier: i64) -> Self {
        Self { shards, frontier, sources: BTreeMap::new() }
    }

    /// Windows that close at or before this are closed.
    pub(crate) fn frontier(&self) -> i64 {
        self.frontier
    }

    /// Takes a contribution; `false`: it was here before.
    pub(crate) fn take(&mut self, shard: ShardId, number: u64, report: &Report) -> bool {
        let source = self.sources.entry(shard.0).or_insert(Source { last: 0, progress: report.progress });
        #[cfg(feature = "planted")]
        let number = if device::planted::is("contribution-twice") { number.max(source.last + 1) } else { number };
        if number <= source.last {
            return false;
        }
        *source = Source { last: number, progress: report.progress };
        self.frontier = self.frontier.max(report.since);
        true
    }

    /// At a barrier at `now`: closes what every shard has passed.
    pub(crate) fn advance(&mut self, now: i64) {
        // A shard that was not heard of yet may have rows of any time.
        if self.sources.len() < usize::from(self.shards) {
            return;
        }
        let behind = |p: &Progress| Some((p.now.saturating_sub(p.frontier?), p.frontier?));
        let live: Vec<(i64, i64)> = self.sources.values().filter_map(|s| behind(&s.progress)).collect();
        // By how far each is behind its own time: so a shard that is slow to say how far it is, is waited for.
        let least = live.iter().map(|(behind, _)| *behind).min().unwrap_or(0);
        let counting = live.iter().filter(|(behind, _)| *behind <= least.saturating_add(IDLE));
        let reached = match counting.map(|(_, frontier)| *frontier).min() {
            Some(slowest) => slowest,
            // Nobody is there who could bring anything in time.
            None => self.sources.values().map(|s| s.progress.now).max().unwrap_or(i64::MIN),
        };
        self.frontier = self.frontier.max(reached.min(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(frontier: Option<i64>, now: i64) -> Report {
        Report { progress: Progress { frontier, now }, since: i64::MIN, rows: Vec::new() }
    }

    #[test]
    fn the_slowest_shard_decides_and_the_silent_one_does_not() {
        let mut all = Frontiers::new(2, i64::MIN);
        assert!(all.take(ShardId(0), 1, &report(Some(100 * SECOND), 102 * SECOND)));
        all.advance(200 * SECOND);
        assert_eq!(all.frontier(), i64::MIN, "the other shard has said nothing yet");
        assert!(all.take(ShardId(1), 5, &report(Some(70 * SECOND), 72 * SECOND)));
        all.advance(200 * SECOND);
        assert_eq!(all.frontier(), 70 * SECOND, "slow to report, but not behind its own time");
        assert!(!all.take(ShardId(1), 5, &report(Some(90 * SECOND), 90 * SECOND)), "a repeat");
        assert!(all.take(ShardId(1), 6, &report(None, 150 * SECOND)));
        all.advance(200 * SECOND);
        assert_eq!(all.frontier(), 100 * SECOND);
        assert!(all.take(ShardId(0), 2, &report(None, 180 * SECOND)));
        all.advance(170 * SECOND);
        assert_eq!(all.frontier(), 170 * SECOND, "nobody is left, but never beyond the log's time");
    }

    #[test]
    fn a_shard_whose_clocks_are_behind_holds_up_nobody() {
        let mut all = Frontiers::new(2, i64::MIN);
        all.take(ShardId(0), 1, &report(Some(1000 * SECOND), 1002 * SECOND));
        all.take(ShardId(1), 1, &report(Some(900 * SECOND), 1002 * SECOND));
        all.advance(1002 * SECOND);
        assert_eq!(all.frontier(), 1000 * SECOND);
    }

    #[test]
    fn windows_before_a_change_stay_closed() {
        let mut all = Frontiers::new(2, 50);
        all.take(ShardId(0), 1, &Report { since: 80, ..report(Some(60), 62) });
        assert_eq!(all.frontier(), 80);
        all.take(ShardId(1), 1, &Report { since: 70, ..report(Some(60), 62) });
        all.advance(100);
        assert_eq!(all.frontier(), 80, "it never goes back");
    }

    #[test]
    fn a_shard_speaks_when_there_is_news_and_never_takes_back() {
        let mut local = Local::new(i64::MIN);
        local.count(&[60, 60, 120, 60]);
        let first = local.report(Some(100), 102, true).unwrap();
        assert_eq!(first.rows, [(60, 3), (120, 1)]);
        assert_eq!(local.report(Some(100), 150, false), None);
        assert_eq!(local.report(Some(40), 160, true).unwrap().progress.frontier, Some(100));
        assert_eq!(local.report(None, 170, false).unwrap().progress.frontier, None);
        assert_eq!(local.report(None, 180, false), None);
        assert_eq!(local.report(None, 170 + IDLE, false).unwrap().progress.now, 170 + IDLE);
    }

    #[test]
    fn an_owner_is_one_of_the_shards() {
        let names = ["climate", "fleet_1m", "sites", "x"];
        assert!(names.iter().all(|name| owner(name, 3).0 < 3 && owner(name, 1) == ShardId(0)));
        assert_eq!(owner("fleet_1m", 2), owner("fleet_1m", 2));
    }
}
