//! Every path below a data directory or store, and the rule by which file names are the manifest of a table.
//!
//! Nothing else in the workspace builds or takes apart such a path. Paths of objects are relative to the store and
//! use `/`; paths of the machine's own files (log, lock) are below the data directory. Nothing here reads a disk.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use device::id::ShardId;
use device::seq::Barrier;

/// Nanoseconds of an hour.
const HOUR: i64 = 3_600_000_000_000;
/// Ending of a finished table file; nothing else below a table's folder may end so.
pub const PARQUET: &str = ".parquet";

/// The lock file of a data directory.
pub fn lock_file(data: &Path) -> PathBuf {
    data.join("LOCK")
}

/// The folder of the shard log.
pub fn log_dir(data: &Path) -> PathBuf {
    data.join("log")
}

/// The folder above all tables.
pub fn tables() -> &'static str {
    "tables"
}

/// The folder of one table.
pub fn table(name: &str) -> String {
    format!("tables/{name}")
}

/// The folder of one partition of a table.
pub fn partition(table: &str, partition: Partition) -> String {
    format!("tables/{table}/{partition}")
}

/// The database that holds the state of a shard.
pub fn shard_state(shard: ShardId) -> String {
    format!("shards/{shard}/state")
}

/// An object of the registry: `registry/<kind>/<name>`.
pub fn registry(kind: &str, name: &str) -> String {
    format!("registry/{kind}/{name}")
}

/// The object that names the files of a table that are on their way out.
pub fn removed(table: &str) -> String {
    registry("tables", table)
}

/// The object that counts the rows of a table that retention has removed, as of a version.
pub fn expired(table: &str, version: u64) -> String {
    registry("expired", &format!("{table}-{version}"))
}

/// A finished file of a table.
pub fn table_file(name: &str, partition: Partition, file: FileName) -> String {
    format!("tables/{name}/{partition}/{file}")
}

/// The table of an object path below `tables/`, its partition and its file name; `None` for anything else.
pub fn parse_table_file(path: &str) -> Option<(&str, Partition, FileName)> {
    let rest = path.strip_prefix("tables/")?;
    let (folders, file) = rest.rsplit_once('/')?;
    let (name, partition) = folders.split_once('/')?;
    Some((name, Partition::parse(partition)?, FileName::parse(file)?))
}

/// A calendar day, UTC, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Day(pub i32);

impl Day {
    /// Year, month and day of the proleptic Gregorian calendar.
    pub fn civil(self) -> (i32, u32, u32) {
        // Howard Hinnant's algorithm: eras of 400 years that begin on 1 March.
        let z = i64::from(self.0) + 719_468;
        let era = z.div_euclid(146_097);
        let of_era = z.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        (year as i32, month as u32, day as u32)
    }

    /// The day of a date; `None` if there is no such date.
    pub fn from_civil(year: i32, month: u32, day: u32) -> Option<Self> {
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(0..=9999).contains(&year) {
            return None;
        }
        let shifted_year = i64::from(year) - i64::from(month <= 2);
        let era = shifted_year.div_euclid(400);
        let year_of_era = shifted_year.rem_euclid(400);
        let shifted = (i64::from(month) + 9) % 12;
        let of_year = (153 * shifted + 2) / 5 + i64::from(day) - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let found = Self((era * 146_097 + of_era - 719_468) as i32);
        (found.civil() == (year, month, day)).then_some(found)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// How finely a table is split into partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// `date=.../hour=...`
    Hour,
    /// `date=...`
    Day,
}

/// One folder of a table: all rows whose time lies in one hour, or one day, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// The day.
    pub date: Day,
    /// The hour of the day, in tables split by the hour.
    pub hour: Option<u8>,
}

impl Partition {
    /// The partition that a time (nanoseconds since the Unix epoch) falls into.
    pub fn of(nanos: i64, granularity: Granularity) -> Self {
        let hours = nanos.div_euclid(HOUR);
        // An i64 of nanoseconds spans fewer than 6 million hours.
        let date = Day(hours.div_euclid(24) as i32);
        let hour = match granularity {
            Granularity::Hour => Some(hours.rem_euclid(24) as u8),
            Granularity::Day => None,
        };
        Self { date, hour }
    }

    /// First and last nanosecond that belong here, held at the ends of the range of an i64.
    pub fn span(self) -> (i64, i64) {
        let (first, hours) = match self.hour {
            Some(hour) => (i64::from(self.date.0) * 24 + i64::from(hour), 1),
            None => (i64::from(self.date.0) * 24, 24),
        };
        let start = first.saturating_mul(HOUR);
        (start, start.saturating_add(hours * HOUR - 1))
    }

    /// Reads `date=2026-11-23` or `date=2026-11-23/hour=07`.
    pub fn parse(text: &str) -> Option<Self> {
        let (date, hour) = match text.split_once('/') {
            Some((date, hour)) => (date, Some(hour.strip_prefix("hour=")?)),
            None => (text, None),
        };
        let mut parts = date.strip_prefix("date=")?.split('-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let date = Day::from_civil(digits(year, 4)? as i32, digits(month, 2)? as u32, digits(day, 2)? as u32)?;
        let hour = match hour {
            Some(hour) => Some(u8::try_from(digits(hour, 2)?).ok().filter(|hour| *hour < 24)?),
            None => None,
        };
        Some(Self { date, hour })
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "date={}", self.date)?;
        match self.hour {
            Some(hour) => write!(f, "/hour={hour:02}"),
            None => Ok(()),
        }
    }
}

/// Name of a table file: what the log of `shard` produced for a partition after barrier `from` up to and
/// including barrier `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName {
    /// Whose log.
    pub shard: ShardId,
    /// Exclusive.
    pub from: Barrier,
    /// Inclusive.
    pub to: Barrier,
}

impl FileName {
    /// Reads `0003-000000000017-000000000021.parquet`; `None` for any other shape, or if `from` is not before `to`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_suffix(PARQUET)?.split('-');
        let (shard, from, to) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let name = Self {
            shard: ShardId(u16::try_from(digits(shard, 4)?).ok()?),
            from: Barrier(digits(from, 12)?),
            to: Barrier(digits(to, 12)?),
        };
        (name.from < name.to).then_some(name)
    }

    /// Whether every barrier of `other` is also one of this file.
    pub fn covers(self, other: Self) -> bool {
        self.shard == other.shard && self.from <= other.from && other.to <= self.to
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}{PARQUET}", self.shard, self.from, self.to)
    }
}

/// A number of at least `width` digits, without leading zeros beyond that width: one number has one name.
fn digits(text: &str, width: usize) -> Option<u64> {
    let canonical = text.len() == width || (text.len() > width && !text.starts_with('0'));
    if !canonical || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// The files that count: a file whose range is covered by another of the same shard and partition is obsolete.
///
/// The order of what remains is by partition, shard and range. Equal entries are given once.
pub fn visible(files: impl IntoIterator<Item = (Partition, FileName)>) -> Vec<(Partition, FileName)> {
    let mut groups: BTreeMap<(Partition, ShardId), Vec<FileName>> = BTreeMap::new();
    for (partition, file) in files {
        groups.entry((partition, file.shard)).or_default().push(file);
    }
    let mut kept = Vec::new();
    for ((partition, _), mut files) in groups {
        // By `from`, the widest first: then a file is covered exactly if some file before it reaches as far.
        files.sort_by_key(|file| (file.from, std::cmp::Reverse(file.to)));
        let mut reach = Barrier(0);
        for file in files {
            if file.to > reach {
                reach = file.to;
                kept.push((partition, file));
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(shard: u16, from: u64, to: u64) -> FileName {
        FileName { shard: ShardId(shard), from: Barrier(from), to: Barrier(to) }
    }

    #[test]
    fn paths_read_back() {
        let partition = Partition::of(1_795_471_200_000_000_000, Granularity::Hour);
        let path = table_file("climate_1m", partition, file(3, 17, 21));
        assert_eq!(path, "tables/climate_1m/date=2026-11-23/hour=22/0003-000000000017-000000000021.parquet");
        assert_eq!(parse_table_file(&path), Some(("climate_1m", partition, file(3, 17, 21))));
        let day = table_file("_losses", Partition::of(0, Granularity::Day), file(0, 0, 1));
        assert_eq!(day, "tables/_losses/date=1970-01-01/0000-000000000000-000000000001.parquet");
        assert_eq!(parse_table_file(&day).map(|(name, ..)| name), Some("_losses"));
    }

    #[test]
    fn other_names_are_not_files() {
        for path in [
            "tables/t/date=2026-11-23/0003-000000000017-000000000021.parquet#1",
            "tables/t/date=2026-11-23/0003-17-21.parquet",
            "tables/t/date=2026-11-23/0003-000000000021-000000000021.parquet",
            "tables/t/date=2026-02-30/0003-000000000017-000000000021.parquet",
            "tables/t/date=2026-11-23/hour=24/0003-000000000017-000000000021.parquet",
            "tables/t/date=2026-11-23/hour=7/0003-000000000017-000000000021.parquet",
            "tables/t/0003-000000000017-000000000021.parquet",
            "tables/t/date=2026-11-23/0003-0000000000017-000000000021.parquet",
            "shards/0000/state/manifest/0001.parquet",
        ] {
            assert_eq!(parse_table_file(path), None, "{path}");
        }
    }

    #[test]
    fn days_before_the_epoch_and_after_2100() {
        assert_eq!(Partition::of(-1, Granularity::Hour).to_string(), "date=1969-12-31/hour=23");
        assert_eq!(Partition::of(4_102_444_800_000_000_000, Granularity::Day).to_string(), "date=2100-01-01");
        assert_eq!(Partition::of(i64::MIN, Granularity::Day).to_string(), "date=1677-09-21");
        assert_eq!(Partition::of(i64::MAX, Granularity::Day).to_string(), "date=2262-04-11");
    }

    proptest! {
        #[test]
        fn every_time_lies_in_its_partition(nanos: i64, by_hour: bool) {
            let granularity = if by_hour { Granularity::Hour } else { Granularity::Day };
            let partition = Partition::of(nanos, granularity);
            let (first, last) = partition.span();
            prop_assert!(first <= nanos && nanos <= last);
            prop_assert_eq!(Partition::parse(&partition.to_string()), Some(partition));
        }

        #[test]
        fn the_covering_rule(files in prop::collection::vec((0i32..2, 0u16..2, 0u64..12, 1u64..6), 0..24)) {
            let files: Vec<_> = files
                .into_iter()
                .map(|(day, shard, from, len)| {
                    (Partition { date: Day(day), hour: None }, file(shard, from, from + len))
                })
                .collect();
            let kept = visible(files.iter().copied());
            for (at, one) in kept.iter().enumerate() {
                prop_assert!(files.contains(one));
                for (other_at, other) in kept.iter().enumerate() {
                    prop_assert!(at == other_at || one.0 != other.0 || !other.1.covers(one.1));
                }
            }
            for one in &files {
                prop_assert!(kept.iter().any(|other| other.0 == one.0 && other.1.covers(one.1)));
            }
        }
    }
}
