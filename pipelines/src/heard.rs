//! How far the devices of each stream have come, kept whether a pipeline reads it or not.
//!
//! A pipeline that begins while devices have long been sending must not take rows for windows that lie behind them:
//! history comes from the files of the stream (`repair.rs`), and a window that a later row could open again would be
//! in the table twice. So a new pipeline begins where it would stand had it been there all along ([`Heard::begin`]).
//! It also begins there when it takes the name of one that was dropped: nothing that the other has written, however
//! long ago, is written again.
//!
//! Kept with the states of pipelines, under a name that no pipeline can have ([`key`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, TimestampNanosecondType};
use bytes::Bytes;

use crate::checkpoint::{self, Identity};
use crate::error::PipelineError;
use crate::pipeline::column;
use crate::watermark::{Entry, KEEP, Watermarks};
use crate::window::Windows;

/// The devices of one stream and shard. What [`Entry::frontier`] is to a pipeline is here the newest time at which a
/// device had been silent for `HOLD`: lengths of windows are not known.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    marks: Watermarks,
}

/// The name under which the devices of a stream are kept beside pipelines.
pub(crate) fn key(stream: &str) -> String {
    format!("@{stream}")
}

/// The stream of such a name.
pub(crate) fn stream_of(key: &str) -> Option<&str> {
    key.strip_prefix('@')
}

fn identity() -> Identity {
    Identity { datafusion: String::new(), fingerprint: 0, shape: "devices of a stream".to_owned() }
}

impl Heard {
    /// Takes note of stored rows of the stream.
    pub(crate) fn observe(&mut self, batch: &RecordBatch) -> Result<(), PipelineError> {
        let time = storage::schema::timestamp();
        let device = column(batch, "device", &DataType::Utf8)?.as_string::<i32>();
        let ts = column(batch, "ts", &time)?.as_primitive::<TimestampNanosecondType>().values();
        let ingest = column(batch, "ts_ingest", &time)?.as_primitive::<TimestampNanosecondType>().values();
        for (row, (ts, ingest)) in ts.iter().zip(ingest).enumerate().filter(|(row, _)| device.is_valid(*row)) {
            self.marks.observe(device.value(row), *ts, *ingest);
        }
        Ok(())
    }

    /// A barrier of the log, whose time is `now`.
    pub(crate) fn barrier(&mut self, now: i64) {
        self.marks.note_silence(now);
        if self.marks.crowded(KEEP) {
            self.marks.forget(KEEP, &BTreeSet::new());
        }
    }

    /// Right after [`Heard::barrier`].
    pub(crate) fn checkpoint(&self) -> Result<Bytes, PipelineError> {
        let marks = &self.marks;
        checkpoint::encode(&identity(), (marks.now(), marks.floor()), marks.entries(), Vec::new(), None)
    }

    /// What [`Heard::checkpoint`] gave.
    pub(crate) fn restore(state: &[u8]) -> Result<Self, PipelineError> {
        let state = checkpoint::decode(state, &identity())?;
        Ok(Self { marks: Watermarks::restore(state.devices, state.floor, state.now) })
    }

    /// What the states of pipelines over a stream tell of its devices, for a shard that had not kept it itself.
    pub(crate) fn of_pipelines<'a>(states: impl Iterator<Item = &'a Bytes>) -> Result<Self, PipelineError> {
        let mut devices: BTreeMap<Box<str>, Entry> = BTreeMap::new();
        let (mut floor, mut now) = (i64::MIN, i64::MIN);
        for state in states {
            let state = checkpoint::progress(state)?;
            (floor, now) = (floor.max(state.floor), now.max(state.now));
            for entry in state.devices.into_iter().flatten() {
                let own = devices.entry(entry.name.clone()).or_insert(Entry { frontier: i64::MIN, ..entry.clone() });
                own.newest = own.newest.max(entry.newest);
                own.heard = own.heard.max(entry.heard);
            }
        }
        let mut this = Self { marks: Watermarks::restore(devices.into_values().map(Some).collect(), floor, now) };
        if now > i64::MIN {
            this.barrier(now);
        }
        Ok(this)
    }

    /// What a pipeline with such windows tells of the rows that it gives: for each device, all that begin up to the
    /// last window that is closed are out.
    pub(crate) fn of_results(marks: &Watermarks, windows: Windows) -> Self {
        let before = |frontier: i64| if frontier == i64::MIN { frontier } else { windows.last_closed(frontier) };
        let entries = marks.entries().iter().map(|entry| {
            let entry = entry.clone()?;
            Some(Entry { newest: before(entry.frontier), frontier: i64::MIN, ..entry })
        });
        Self { marks: Watermarks::restore(entries.collect(), before(marks.floor()), marks.now()) }
    }

    /// The watermarks of a pipeline with such windows that had seen all rows of the stream so far.
    pub(crate) fn begin(&self, windows: Windows) -> Watermarks {
        let (marks, now) = (&self.marks, self.marks.now());
        let passed = |silent: i64| if silent == i64::MIN { silent } else { windows.frontier_after(silent).min(now) };
        let floor = passed(marks.floor());
        let entries = marks.entries().iter().map(|entry| {
            let entry = entry.clone()?;
            Some(Entry { frontier: passed(entry.frontier).max(floor), ..entry })
        });
        let mut begun = Watermarks::restore(entries.collect(), floor, now);
        if now > i64::MIN {
            begun.advance(now, windows);
        }
        begun
    }
}

/// The devices of all streams of a shard, by stream.
#[derive(Debug, Default)]
pub(crate) struct AllHeard(BTreeMap<String, Heard>);

impl AllHeard {
    /// From what was `kept` in the state of a shard, by name; of streams for which nothing was kept, from the states
    /// of pipelines, as `of` gives them.
    pub(crate) fn restore<'a>(
        project: &sql::Project,
        kept: HashMap<String, Bytes>,
        of: impl Fn(&str) -> Option<&'a Bytes>,
    ) -> Result<Self, PipelineError> {
        let mut all = BTreeMap::new();
        for (name, state) in kept {
            let stream = stream_of(&name).unwrap_or_default().to_owned();
            all.insert(stream, Heard::restore(&state)?);
        }
        for plan in project.pipelines.iter().filter(|plan| !plan.reads.pipeline) {
            if !all.contains_key(&plan.source) {
                let of_source = project.pipelines.iter().filter(|other| other.source == plan.source);
                let told = Heard::of_pipelines(of_source.filter_map(|other| of(&other.name)))?;
                all.insert(plan.source.clone(), told);
            }
        }
        Ok(Self(all))
    }

    /// The devices of a stream.
    pub(crate) fn of(&self, stream: &str) -> Option<&Heard> {
        self.0.get(stream)
    }

    /// Takes note of stored rows of a stream.
    pub(crate) fn observe(&mut self, stream: &str, batch: &RecordBatch) -> Result<(), PipelineError> {
        match self.0.get_mut(stream) {
            Some(heard) => heard.observe(batch),
            None => self.0.entry(stream.to_owned()).or_default().observe(batch),
        }
    }

    /// At a barrier: what is to be saved, by name.
    pub(crate) fn barrier(&mut self, now: i64) -> Result<Vec<(String, Bytes)>, PipelineError> {
        let mut states = Vec::with_capacity(self.0.len());
        for (stream, heard) in &mut self.0 {
            heard.barrier(now);
            states.push((key(stream), heard.checkpoint()?));
        }
        Ok(states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::time::SECOND;

    use crate::watermark::{HOLD, SLACK};

    const MINUTE: i64 = 60 * SECOND;

    fn windows() -> Windows {
        Windows::tumbling(MINUTE, 30 * SECOND)
    }

    /// A pipeline that begins late stands where one stands that was there from the start.
    #[test]
    fn who_comes_late_stands_where_others_stand() {
        let (mut heard, mut there) = (Heard::default(), Watermarks::default());
        let mut random = crate::tests::harness::Random(7);
        let mut now = 1_000 * MINUTE;
        for step in 0..400 {
            for _ in 0..random.below(6) {
                let (name, behind) = (format!("d{}", random.below(12)), random.below(300) as i64 * SECOND);
                heard.marks.observe(&name, now - behind, now);
                there.observe(&name, now - behind, now);
            }
            now += random.below(90) as i64 * SECOND + if random.below(25) == 0 { HOLD } else { 0 };
            heard.barrier(now);
            there.advance(now, windows());
            if random.below(4) == 0 {
                heard = Heard::restore(&heard.checkpoint().unwrap()).unwrap();
            }
            let begun = heard.begin(windows());
            for (own, late) in there.entries().iter().zip(begun.entries()) {
                let (own, late) = (own.as_ref().unwrap(), late.as_ref().unwrap());
                assert_eq!((&own.name, own.newest), (&late.name, late.newest));
                // Never behind: that could repeat a window. Ahead only where silence closed an older row's window.
                assert!(late.frontier >= own.frontier, "step {step}: {late:?} is behind {own:?}");
                assert!(late.frontier <= own.frontier.max(own.newest + MINUTE + 30 * SECOND), "{late:?} {own:?}");
            }
            assert_eq!(begun.now(), there.now());
        }
    }

    #[test]
    fn nothing_heard_is_nothing_passed() {
        let begun = Heard::default().begin(windows());
        assert_eq!((begun.len(), begun.floor(), begun.highest()), (0, i64::MIN, i64::MIN));
    }

    #[test]
    fn pipelines_tell_what_they_have_seen() {
        let state = |newest: i64, frontier| {
            let entry = Entry { name: "a".into(), newest, heard: newest, frontier };
            let identity = Identity { datafusion: "1".to_owned(), fingerprint: 5, shape: String::new() };
            checkpoint::encode(&identity, (20 * MINUTE, i64::MIN), &[Some(entry)], Vec::new(), None).unwrap()
        };
        let heard = Heard::of_pipelines([state(10 * MINUTE, 9), state(12 * MINUTE, 3)].iter()).unwrap();
        let begun = heard.begin(windows());
        assert_eq!(begun.frontier(0), 12 * MINUTE - SLACK);
    }

    #[test]
    fn a_forgotten_device_is_remembered_as_the_least_of_all() {
        let mut heard = Heard::default();
        heard.marks.observe("a", 100 * SECOND, 100 * SECOND);
        heard.barrier(100 * SECOND + HOLD);
        heard.marks.forget(0, &BTreeSet::new());
        let begun = heard.begin(windows());
        assert_eq!(begun.floor(), 100 * SECOND + MINUTE + 30 * SECOND);
        assert_eq!(begun.len(), 0);
    }
}
