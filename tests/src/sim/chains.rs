//! What pipelines give that read other pipelines, or whose groups have rows of all shards.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use device::time::SECOND;
use pipelines::SLACK;

use super::live::Ground;
use super::project::{FLEET, MINUTES};
use super::reference::{Key, Row, Window};
use super::tables::{integers, texts};

/// Sums of the windows of `short`: those that must be there are there, once, and sum up what `short` gave.
pub(super) fn of_pipelines(ground: &Ground, windows: &BTreeMap<Key, Window>, found: &[RecordBatch]) {
    let mut sums: BTreeMap<(String, i64), i64> = BTreeMap::new();
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    for ((name, device, start), window) in windows {
        if *name == "short" && window.closed && !window.rows.is_empty() {
            let of = start - start.rem_euclid(MINUTES);
            *sums.entry((device.clone(), of)).or_default() += window.rows.len() as i64;
            let newest = newest.entry(device.clone()).or_insert(i64::MIN);
            *newest = (*newest).max(*start);
        }
    }
    let mut expected: Vec<(String, i64, i64)> = sums
        .into_iter()
        .filter(|((device, start), _)| newest[device] - SLACK >= start + MINUTES)
        .map(|((device, start), sum)| (device, start, sum))
        .collect();
    let mut rows: Vec<(String, i64, i64)> = Vec::new();
    for batch in found {
        let (devices, starts, sums) = (texts(batch, "device"), integers(batch, "w"), integers(batch, "c"));
        rows.extend((0..batch.num_rows()).map(|at| {
            (devices[at].clone().unwrap_or_default(), starts[at].unwrap_or_default(), sums[at].unwrap_or_default())
        }));
    }
    expected.sort();
    rows.sort();
    if rows != expected {
        ground.trace.wrong(format!("minutes has {rows:?}, and from the windows of `short` it is {expected:?}"));
    }
}

/// Windows over all devices: each group once, and every row either in it or said to be late. Everybody has been silent
/// for long, so all of them are closed. `late`: what is said of each window, which is taken out.
pub(super) fn of_all_shards(
    ground: &Ground,
    telemetry: &[Row],
    found: &[RecordBatch],
    late: &mut BTreeMap<(String, String, i64), u64>,
) {
    let start = |row: &Row| row.ts - row.ts.rem_euclid(FLEET);
    let mut expected: BTreeMap<i64, BTreeMap<String, (i64, i64)>> = BTreeMap::new();
    for row in telemetry {
        let group = expected.entry(start(row)).or_default().entry(row.status.clone()).or_default();
        *group = (group.0 + 1, group.1 + row.n);
    }
    let mut seen: BTreeSet<(i64, String)> = BTreeSet::new();
    let mut counted: BTreeMap<i64, BTreeMap<String, (i64, i64)>> = BTreeMap::new();
    for batch in found {
        let (starts, statuses) = (integers(batch, "window_start"), texts(batch, "status"));
        let (counts, sums) = (integers(batch, "c"), integers(batch, "s"));
        for at in 0..batch.num_rows() {
            let (start, status) = (starts[at].unwrap_or_default(), statuses[at].clone().unwrap_or_default());
            if !seen.insert((start, status.clone())) {
                ground.trace.wrong(format!("window {start} of {status:?} in fleet is there twice"));
            }
            let group = (counts[at].unwrap_or_default(), sums[at].unwrap_or_default());
            counted.entry(start).or_default().insert(status, group);
        }
    }
    for (start, groups) in &expected {
        let late = late.remove(&("fleet".to_owned(), String::new(), *start)).unwrap_or_default() as i64;
        let of = |groups: &BTreeMap<String, (i64, i64)>| groups.values().map(|(count, _)| *count).sum::<i64>();
        let own = counted.remove(start).unwrap_or_default();
        if of(&own) + late != of(groups) {
            ground.trace.wrong(format!(
                "window {start} of fleet counts {} rows, {late} are said to be late, and there are {}",
                of(&own),
                of(groups)
            ));
        }
        if late == 0 && own != *groups {
            ground.trace.wrong(format!("window {start} of fleet is {own:?}, and from the rows it is {groups:?}"));
        }
    }
    for start in counted.keys() {
        ground.trace.wrong(format!("there is a window {start} of fleet that no row belongs to"));
    }
}

/// Windows are short against the silence that closes all of them.
const _: () = assert!(FLEET + SLACK < pipelines::IDLE && MINUTES < 60 * SECOND);
