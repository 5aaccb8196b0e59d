//! Faults planted on purpose, to see that the simulation finds them. Exists only with the feature `planted`; each
//! place asks whether it is the one that was selected.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Their names, and what each does wrong.
pub const ALL: [(&str, &str); 20] = [
    ("ack-before-durable", "messages are acknowledged before their record is appended"),
    ("durable-before-append", "a position counts as durable before its record is appended"),
    ("dedup-off-by-one", "the highest number without a hole below it counts as new"),
    ("barrier-position", "a checkpoint is noted one position too far"),
    ("recovery-without-tail", "devices are rebuilt without the last record of the log"),
    ("parked-forgotten", "a device that goes to sleep leaves no state behind"),
    ("restart-without-waiting", "a failed actor starts again while its entries are still being committed"),
    ("credit-early", "credit is given back when an entry is pushed"),
    ("credit-never", "credit of committed messages is not given back"),
    ("resend-dropped", "the agent does not send again what was lost"),
    ("late-dropped", "late rows are not reported"),
    ("watermark-too-high", "a restored watermark stands at the newest row"),
    ("percentile-not-merged", "the state of a percentile is not merged"),
    ("segment-not-restored", "the last piece of a pipeline's state is not restored"),
    ("partial-file", "a file is visible before it is whole"),
    ("cut-before-files", "a cut is recorded before its files are written"),
    ("contribution-twice", "a shard's contribution that comes again is merged again"),
    ("contribution-forgotten", "what a shard has not sent yet is forgotten over a restart"),
    ("version-not-noted", "a checkpoint does not say which version of the project it stands for"),
    ("truncate-at-checkpoint", "the log is truncated at a checkpoint whose rows are in no file"),
];

static SELECTED: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Selects a fault by name, or none; false if there is none of this name.
pub fn select(name: Option<&str>) -> bool {
    let at = name.map_or(Some(usize::MAX), |name| ALL.iter().position(|(of, _)| *of == name));
    SELECTED.store(at.unwrap_or(usize::MAX), Ordering::Relaxed);
    at.is_some()
}

/// Whether this fault was selected.
pub fn is(name: &str) -> bool {
    ALL.get(SELECTED.load(Ordering::Relaxed)).is_some_and(|(selected, _)| *selected == name)
}
