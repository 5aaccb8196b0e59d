//! Keeps tables in order while the engine runs: retention drops partitions that are too old, compaction merges the files of
//! cold ones.
//!
//! [`keep`] looks at each table now and then. What is to be done follows from listings, times and holds by pure
//! functions of `storage`; [`House`] does it, one table after the other. A file that is out of the listings is deleted
//! when nobody in this process can be reading it, and after a grace time for readers of other programs. All that has to
//! survive a crash is on the store: a new process goes on where the old one ended.
//!
//! Deliberately absent: tables of pipelines that the project no longer has (they stay as they are).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use device::id::ShardId;
use device::seq::Barrier;
use device::time::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sql::Project;
use storage::compaction::{self, Covering, MergeError};
use storage::layout::{FileName, Partition};
use storage::retention::{self, Census, Counts, File, Range, Seen};
use storage::schema::{AUDIT, DEAD_LETTERS};
use storage::table::{Moment, TableError, TableStore};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::TablesConfig;
use crate::core::{self, Core, CoreError};
use crate::holds::{Claim, Holds};
use crate::trail::Trail;

/// Files that one look hides, of one table: their names stand in one object, which is read with each listing.
const MOST_HIDDEN: usize = 4096;

/// Merges of one look, over all tables: retention should not wait for hours.
const MOST_MERGES: usize = 32;

/// What a table is to be kept by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// How long rows stay, in nanoseconds; `None`: for ever.
    pub retain_ns: Option<i64>,
    /// How long after its end a partition is cold, in nanoseconds; `None`: files are not merged.
    pub compact_ns: Option<i64>,
    /// Whether the rows that go are counted by device and epoch, for audits.
    pub counted: bool,
}

/// The policy of each table of a project that has one, and of the system tables.
pub fn policies(project: &Project, config: &TablesConfig) -> BTreeMap<String, Policy> {
    let mut all: BTreeMap<String, Policy> = BTreeMap::new();
    for decl in &project.streams {
        let policy = Policy { retain_ns: decl.retain_ns, compact_ns: decl.compact_ns, counted: true };
        all.insert(decl.stream.name.to_string(), policy);
    }
    for plan in &project.pipelines {
        let policy = Policy { retain_ns: plan.retain_ns, compact_ns: plan.compact_ns, counted: false };
        all.insert(plan.name.clone(), policy);
    }
    let ns = |time: &Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    for table in config.retain.keys().chain(config.compact.keys()) {
        let (retain_ns, compact_ns) = (config.retain.get(table).map(ns), config.compact.get(table).map(ns));
        all.insert(table.clone(), Policy { retain_ns, compact_ns, counted: table == DEAD_LETTERS });
    }
    all.retain(|_, policy| policy.retain_ns.is_some() || policy.compact_ns.is_some());
    all
}

/// What was done with one table since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Partitions that retention has dropped.
    pub partitions: u64,
    /// Their files.
    pub files: u64,
    /// Bytes of those files.
    pub bytes: u64,
    /// Files written in place of others.
    pub merges: u64,
    /// Files whose place they took.
    pub merged: u64,
    /// Rows of the files written.
    pub merged_rows: u64,
    /// Files deleted, for whatever reason.
    pub erased: u64,
    /// Files that are out of the listings and not deleted yet.
    pub hidden: u64,
}

/// What was done, for metrics.
#[derive(Debug, Default)]
pub struct Report {
    tables: Mutex<BTreeMap<String, Done>>,
    /// Looks at all tables.
    pub looks: AtomicU64,
    /// Tables that could not be looked after; tried again at the next look.
    pub failures: AtomicU64,
}

impl Report {
    /// By table.
    pub fn tables(&self) -> BTreeMap<String, Done> {
        self.tables.lock().clone()
    }

    fn note(&self, table: &str, change: impl FnOnce(&mut Done)) {
        change(self.tables.lock().entry(table.to_owned()).or_default());
    }
}

/// What the rest of the engine says at one look.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// By table.
    pub policies: BTreeMap<String, Policy>,
    /// The last cut of each shard that is done.
    pub done: BTreeMap<ShardId, Barrier>,
    /// By stream, times whose records are in open windows.
    pub needed: BTreeMap<String, Vec<Range>>,
    /// Files of [`AUDIT`] go by numbers of its own: the last that is in one.
    pub acts: Barrier,
}

impl View {
    fn of(core: &Core, trail: &Trail, config: &TablesConfig) -> Self {
        let mut needed: BTreeMap<String, Vec<Range>> = BTreeMap::new();
        let mut done = BTreeMap::new();
        for (shard, status) in (0..).zip(&core.statuses) {
            done.insert(ShardId(shard), *status.cut.borrow());
            for (table, ranges) in &*status.needed.lock() {
                needed.entry(table.clone()).or_default().extend(ranges);
            }
        }
        Self { policies: policies(&core.project(), config), done, needed, acts: trail.written() }
    }
}

/// Why a table could not be looked after.
#[derive(Debug, thiserror::Error)]
enum HouseError {
    #[error("{0}")]
    Table(#[from] TableError),
    #[error("{0}")]
    Merge(#[from] MergeError),
    #[error("{0}")]
    Thread(#[from] CoreError),
}

/// Looks after tables until the engine stops.
pub async fn keep(
    (core, trail): (Arc<Core>, Arc<Trail>),
    config: TablesConfig,
    report: Arc<Report>,
    clock: Clock,
    stop: CancellationToken,
) {
    let every = config.retention_every;
    let looking = async {
        let mut house = House::new(core.tables.clone(), core.holds.clone(), config.grace, report);
        loop {
            let view = View::of(&core, &trail, &config);
            house.look(&view, clock(), Instant::now()).await;
            tokio::time::sleep(every).await;
        }
    };
    let _ = stop.run_until_cancelled(looking).await;
}

/// A hidden file that waits to be deleted.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    moment: Moment,
    since: Instant,
}

/// Does what is to be done, and remembers what only this process can know: who may still be reading.
pub struct House {
    tables: Arc<TableStore>,
    holds: Arc<Holds>,
    grace: Duration,
    report: Arc<Report>,
    waiting: HashMap<(String, File), Waiting>,
    /// Files that cover others: since when they are known to be there.
    covering: HashMap<(String, File), Moment>,
    /// Files that were written here, and found to hold what they cover.
    confirmed: HashSet<(String, File)>,
    /// Files that could not be written for a reason that stays, each reported once.
    given_up: HashSet<(String, File)>,
    first: bool,
}

impl House {
    /// Remembers nothing yet.
    pub fn new(tables: Arc<TableStore>, holds: Arc<Holds>, grace: Duration, report: Arc<Report>) -> Self {
        let (waiting, covering, confirmed, given_up) = Default::default();
        Self { tables, holds, grace, report, waiting, covering, confirmed, given_up, first: true }
    }

    /// One look at all tables. `now` is what rows are old by; `at` is what the grace time is measured with.
    pub async fn look(&mut self, view: &View, now: Timestamp, at: Instant) {
        let tables = match self.tables.tables().await {
            Ok(tables) => tables,
            Err(error) => return self.failed("the tables", &error.into()),
        };
        let mut merges = MOST_MERGES;
        for table in &tables {
            if let Err(error) = self.table(table, view, (now, at), &mut merges).await {
                self.failed(table, &error);
            }
        }
        self.first = false;
        self.report.looks.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, what: &str, error: &HouseError) {
        self.report.failures.fetch_add(1, Ordering::Relaxed);
        tracing::error!(table = what, %error, "retention and compaction cannot look after it now; they try again");
    }

    async fn table(
        &mut self,
        table: &str,
        view: &View,
        (now, at): (Timestamp, Instant),
        merges: &mut usize,
    ) -> Result<(), HouseError> {
        let acts;
        let view = if table == AUDIT {
            acts = View { done: BTreeMap::from([(ShardId(0), view.acts)]), ..view.clone() };
            &acts
        } else {
            view
        };
        self.sweep(table, at).await?;
        let policy = view.policies.get(table).copied().unwrap_or_default();
        if policy == Policy::default() && !self.first {
            return Ok(());
        }
        let census = self.tables.census(table, None).await?;
        if let Some(retain_ns) = policy.retain_ns {
            self.retain(table, &census, view, retention::horizon(now, census.newest, retain_ns), policy.counted, at)
                .await?;
        }
        self.replace(table, &census, at).await?;
        if let Some(compact_ns) = policy.compact_ns {
            let cold = Cold {
                horizon: retention::horizon(now, census.newest, compact_ns),
                quiet: now.plus(-compact_ns),
                done: &view.done,
            };
            for (partition, shard, _) in cold.groups(&census, |_| false) {
                self.merge(table, (partition, shard), &cold, merges).await?;
            }
        }
        Ok(())
    }

    /// Deletes what has been hidden for long enough.
    async fn sweep(&mut self, table: &str, at: Instant) -> Result<(), HouseError> {
        let hidden = self.tables.hidden(table).await?;
        let mut ripe = Vec::new();
        for file in &hidden {
            let key = (table.to_owned(), *file);
            let moment = || self.tables.moment();
            let waiting = *self.waiting.entry(key).or_insert_with(|| Waiting { moment: moment(), since: at });
            if at.duration_since(waiting.since) >= self.grace && self.tables.unread_since(waiting.moment) {
                ripe.push(*file);
            }
        }
        self.report.note(table, |done| done.hidden = hidden.len() as u64);
        if ripe.is_empty() {
            return Ok(());
        }
        self.tables.erase(table, &ripe).await?;
        for file in &ripe {
            self.waiting.remove(&(table.to_owned(), *file));
        }
        self.report.note(table, |done| {
            done.erased += ripe.len() as u64;
            done.hidden -= ripe.len() as u64;
        });
        Ok(())
    }

    async fn hide(&mut self, table: &str, files: &[File], counts: &Counts, at: Instant) -> Result<(), HouseError> {
        let moment = self.tables.hide(table, files, counts).await?;
        for file in files {
            self.waiting.insert((table.to_owned(), *file), Waiting { moment, since: at });
        }
        self.report.note(table, |done| done.hidden += files.len() as u64);
        Ok(())
    }

    async fn retain(
        &mut self,
        table: &str,
        census: &Census,
        view: &View,
        horizon: Option<i64>,
        counted: bool,
        at: Instant,
    ) -> Result<(), HouseError> {
        let Some(horizon) = horizon else { return Ok(()) };
        let mut held = view.needed.get(table).cloned().unwrap_or_default();
        held.extend(self.holds.ranges(table));
        let seen = census.files.iter().map(|file| (file.partition, file.settled(&view.done)));
        let mut claims: Vec<Claim> = Vec::new();
        let (mut files, mut visible, mut bytes) = (Vec::new(), Vec::new(), 0);
        for partition in retention::expired(seen, horizon, &held) {
            let of: Vec<_> = census.files.iter().filter(|file| file.partition == partition).collect();
            if !files.is_empty() && files.len() + of.len() > MOST_HIDDEN {
                break;
            }
            let Some(claim) = self.holds.claim(table, partition.span()) else { continue };
            claims.push(claim);
            files.extend(of.iter().map(|file| (file.partition, file.name)));
            visible.extend(of.iter().filter(|file| file.visible).map(|file| (file.partition, file.name)));
            bytes += of.iter().map(|file| file.bytes).sum::<u64>();
        }
        if files.is_empty() {
            return Ok(());
        }
        let mut counts = Counts::new();
        for file in visible.iter().filter(|_| counted) {
            match self.tables.count(table, std::slice::from_ref(file)).await {
                Ok(found) => found.into_iter().for_each(|(key, rows)| *counts.entry(key).or_default() += rows),
                // It would go in any case; an audit will call its rows missing, and they are.
                Err(error @ TableError::File { .. }) => {
                    tracing::warn!(table, %error, "a file that is too old cannot be read; it goes");
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.hide(table, &files, &counts, at).await?;
        let (partitions, count) = (claims.len() as u64, files.len() as u64);
        tracing::info!(table, partitions, files = count, bytes, before = %time(horizon), "retention has dropped partitions");
        self.report.note(table, |done| {
            done.partitions += partitions;
            done.files += count;
            done.bytes += bytes;
        });
        Ok(())
    }

    /// Hides what is covered, if the file that covers it holds its rows and everybody may see that file instead.
    async fn replace(&mut self, table: &str, census: &Census, at: Instant) -> Result<(), HouseError> {
        let coverings = compaction::coverings(&census.files);
        let still: HashSet<File> = coverings.iter().map(|covering| (covering.partition, covering.name)).collect();
        self.covering.retain(|(of, file), _| of != table || still.contains(file));
        let there: HashSet<File> = census.files.iter().map(|file| (file.partition, file.name)).collect();
        self.confirmed.retain(|(of, file)| of != table || there.contains(file));
        let (mut claims, mut files) = (Vec::new(), Vec::new());
        for Covering { partition, name, covered, parts } in coverings {
            let key = (table.to_owned(), (partition, name));
            let since = *self.covering.entry(key.clone()).or_insert_with(|| self.tables.moment());
            if files.len() >= MOST_HIDDEN || !self.tables.unread_since(since) {
                continue;
            }
            let Some(claim) = self.holds.claim(table, partition.span()) else { continue };
            claims.push(claim);
            if !self.confirmed.contains(&key) {
                let (tables, of) = (self.tables.clone(), table.to_owned());
                let same = async move || tables.same_rows(&of, partition, name, &parts).await;
                if !core::blocking(same).await?? {
                    continue;
                }
                self.confirmed.insert(key);
            }
            files.extend(covered.into_iter().map(|name| (partition, name)));
        }
        if !files.is_empty() {
            self.hide(table, &files, &Counts::new(), at).await?;
        }
        Ok(())
    }

    /// Merges the files of a shard and partition, until there is nothing to merge or enough is done for one look.
    async fn merge(
        &mut self,
        table: &str,
        (partition, shard): (Partition, ShardId),
        cold: &Cold<'_>,
        merges: &mut usize,
    ) -> Result<(), HouseError> {
        while *merges > 0 {
            let Some(_claim) = self.holds.claim(table, partition.span()) else { return Ok(()) };
            // Looked at once more under the claim: whoever had it before may have replaced files.
            let census = self.tables.census(table, Some(partition)).await?;
            let own = |file: File| self.confirmed.contains(&(table.to_owned(), file));
            let groups = cold.groups(&census, own);
            let Some((.., names)) = groups.into_iter().find(|(_, of, _)| *of == shard) else { return Ok(()) };
            let inputs = self.tables.inputs(table, partition, &names).await?;
            let Some(chosen) = compaction::plan(&inputs) else { return Ok(()) };
            let parts = names.get(chosen).unwrap_or_default().to_vec();
            let target = compaction::cover(&parts).map(|name| (table.to_owned(), (partition, name)));
            if target.as_ref().is_none_or(|target| self.given_up.contains(target)) {
                return Ok(());
            }
            let (tables, of, count) = (self.tables.clone(), table.to_owned(), parts.len() as u64);
            let merged = core::blocking(async move || tables.merge(&of, partition, &parts).await).await?;
            if matches!(merged, Err(MergeError::Differs { .. })) {
                self.given_up.extend(target);
            }
            let merged = merged?;
            *merges -= 1;
            let key = (table.to_owned(), (partition, merged.name));
            self.covering.insert(key.clone(), self.tables.moment());
            self.confirmed.insert(key);
            let (into, rows) = (merged.name, merged.rows);
            tracing::info!(table, %partition, files = count, %into, rows, "compaction has merged files");
            self.report.note(table, |done| {
                done.merges += 1;
                done.merged += count;
                done.merged_rows += rows;
            });
        }
        Ok(())
    }
}

/// What makes a partition cold.
struct Cold<'a> {
    /// It has ended before this time.
    horizon: Option<i64>,
    /// No file of it was written after this: where rows still come, merging would not end.
    quiet: Timestamp,
    /// The last cut of each shard that is done: what a later one writes is not touched.
    done: &'a BTreeMap<ShardId, Barrier>,
}

impl Cold<'_> {
    /// The visible files of each shard and partition that is cold, if there are several. `own` are files that may be new
    /// because they were merged here.
    fn groups(&self, census: &Census, own: impl Fn(File) -> bool) -> Vec<(Partition, ShardId, Vec<FileName>)> {
        let mut groups: BTreeMap<(Partition, ShardId), (Vec<FileName>, bool)> = BTreeMap::new();
        let ended = |file: &&Seen| self.horizon.is_some_and(|horizon| file.partition.span().1 < horizon);
        for file in census.files.iter().filter(ended).filter(|file| file.visible) {
            let group = groups.entry((file.partition, file.name.shard)).or_insert_with(|| (Vec::new(), true));
            group.0.push(file.name);
            let quiet = file.written <= self.quiet || own((file.partition, file.name));
            group.1 &= quiet && file.settled(self.done);
        }
        let ready = groups.into_iter().filter(|(_, (names, all))| *all && names.len() > 1);
        ready.map(|((partition, shard), (names, _))| (partition, shard, names)).collect()
    }
}

/// What a shorter `retain` drops of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Partitions.
    pub partitions: usize,
    /// Files in them.
    pub files: usize,
    /// Bytes of those files.
    pub bytes: u64,
    /// The oldest partition.
    pub first: String,
    /// The newest partition.
    pub last: String,
}

impl std::fmt::Display for Drops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { partitions, files, bytes, first, last } = self;
        let of = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let kib = bytes.div_ceil(1024);
        let until = if partitions > &1 { format!(" to {last}") } else { String::new() };
        write!(f, "{} ({}, {kib} KiB) go at once, {first}{until}", of(*partitions, "partition"), of(*files, "file"))
    }
}

/// What would be dropped of a table if it were to be kept for `retain_ns`, holds aside; `None`: nothing.
pub async fn would_drop(
    tables: &TableStore,
    table: &str,
    retain_ns: i64,
    now: Timestamp,
) -> Result<Option<Drops>, TableError> {
    let census = tables.census(table, None).await?;
    let Some(horizon) = retention::horizon(now, census.newest, retain_ns) else { return Ok(None) };
    let old = retention::expired(census.files.iter().map(|file| (file.partition, true)), horizon, &[]);
    let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(None) };
    let of: Vec<_> = census.files.iter().filter(|file| old.contains(&file.partition)).collect();
    Ok(Some(Drops {
        partitions: old.len(),
        files: of.len(),
        bytes: of.iter().map(|file| file.bytes).sum(),
        first: first.to_string(),
        last: last.to_string(),
    }))
}

/// A time for people, to the second.
fn time(nanos: i64) -> String {
    let seconds = u64::try_from(nanos).unwrap_or(0) / 1_000_000_000;
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests;
