//! The promises of the whole, checked when a world has come to rest and its files are cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use actors::message::Ingress;

use super::ledger::Fate;
use super::live::{Ground, Live};
use super::machine::Machine;
use super::project::WINDOWED;
use super::reference::{Reference, Row, Window, rows};
use super::tables::{self, floats, integers, texts};
use super::{alerts, chains};
use crate::note;

/// Compares everything with everything.
pub(super) async fn check(ground: &Ground, live: &Live, mut machines: Vec<&mut Machine>) {
    counters(ground, live);
    for machine in &mut machines {
        ledger(ground, live, machine).await;
    }
    let checked = compare(ground, &mut machines);
    if let Err(error) = checked {
        ground.trace.wrong(error);
    }
    note!(ground.trace, "checked: {} records stored", ground.disks.ledger.lock().stored);
}

/// I5: what was received is stored, duplicate, refused or kept aside.
fn counters(ground: &Ground, live: &Live) {
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let m = &live.metrics;
    let (received, stored, duplicate) = (get(&m.received), get(&m.stored), get(&m.duplicate));
    let (nacked, dead) = (get(&m.nacked), get(&m.dead_lettered));
    if received != stored + duplicate + nacked + dead {
        ground.trace.wrong(format!(
            "I5: {received} received, but {stored} stored, {duplicate} duplicate, {nacked} refused, {dead} kept aside"
        ));
    }
    let used = live.node().admission().used();
    if used > 0 {
        ground.trace.wrong(format!("{used} bytes of credit are out when nothing is in flight"));
    }
}

/// What the engine says of a device's numbers is what the log says.
async fn ledger(ground: &Ground, live: &Live, machine: &mut Machine) {
    let id = machine.id().clone();
    let said = match live.node().ledger(&id).await {
        Ok(said) => said,
        Err(error) => return ground.trace.wrong(format!("no ledger of {id}: {error}")),
    };
    let ledger = ground.disks.ledger.lock();
    let mut known = BTreeSet::new();
    for (epoch, numbers) in ledger.of(&id) {
        known.insert(epoch);
        let Some(said) = said.iter().find(|said| said.epoch.0 == epoch) else {
            ground.trace.wrong(format!("the engine has forgotten epoch {epoch} of {id}"));
            continue;
        };
        let count = |fate| numbers.values().filter(|of| **of == fate).count() as u64;
        let (stored, lost, dead) = (count(Fate::Stored), count(Fate::Lost), count(Fate::Dead));
        if (said.stored, said.lost + said.filtered, said.dead) != (stored, lost, dead) {
            ground.trace.wrong(format!(
                "I3: of {id} {epoch} the engine says {} stored, {} lost, {} dead; it is {stored}, {lost}, {dead}",
                said.stored,
                said.lost + said.filtered,
                said.dead
            ));
        }
    }
    for extra in said.iter().filter(|said| !known.contains(&said.epoch.0)) {
        ground.trace.wrong(format!("the engine has an epoch {} of {id} that no log knows", extra.epoch.0));
    }
}

fn compare(ground: &Ground, machines: &mut [&mut Machine]) -> Result<(), String> {
    let ledger = ground.disks.ledger.lock();
    let reference = Reference::of(&ledger, ground.params.shards, &ground.begun.lock())?;
    alerts::compare(&ground.trace, &ledger, ground.params.shards, &ground.begun.lock())?;
    let found = tables::read(&ground.disks.objects())?;
    for table in ["telemetry", "_losses", "_dead_letters", "_alerts", "_clock"] {
        let none = Vec::new();
        let expected = tables::sorted(reference.tables.get(table).unwrap_or(&none))?;
        let found = tables::sorted(found.get(table).unwrap_or(&none))?;
        if expected != found {
            let only = |a: &[Vec<u8>], b: &[Vec<u8>]| a.iter().filter(|row| b.binary_search(row).is_err()).count();
            ground.trace.wrong(format!(
                "{table} has {} rows, the log {}: {} are missing, {} are too many or doubled",
                found.len(),
                expected.len(),
                only(&expected, &found),
                only(&found, &expected)
            ));
        }
    }
    let empty = Vec::new();
    let telemetry: Vec<Row> = found.get("telemetry").unwrap_or(&empty).iter().flat_map(rows).collect();
    for machine in machines {
        truth(ground, machine, &telemetry);
    }
    if ledger.given_up > 0 {
        ground.trace.wrong(format!("{} numbers are declared lost, and no device lost any", ledger.given_up));
    }
    for (name, expected) in [("hot", &reference.hot), ("extra", &reference.extra)] {
        passed_on(ground, name, expected, found.get(name).unwrap_or(&empty));
    }
    chains::of_pipelines(ground, &reference.windows, found.get("minutes").unwrap_or(&empty));
    let mut late = late(&found);
    chains::of_all_shards(ground, &telemetry, found.get("fleet").unwrap_or(&empty), &mut late);
    windows(ground, &reference, &found, late);
    Ok(())
}

/// What a device recorded is there, once, as it was.
fn truth(ground: &Ground, machine: &mut Machine, telemetry: &[Row]) {
    let id = machine.id().as_str().to_owned();
    let mut times: BTreeMap<i64, Vec<&Row>> = BTreeMap::new();
    for row in telemetry.iter().filter(|row| row.device == id) {
        times.entry(row.n).or_default().push(row);
    }
    let truth = &machine.common().truth;
    for (n, truth) in truth {
        let found = times.remove(n).unwrap_or_default();
        if found.len() > 1 {
            ground.trace.wrong(format!("I2: record {n} of {id} is stored {} times", found.len()));
        }
        match found.first() {
            None if truth.kept => ground.trace.wrong(format!("I1: record {n} of {id} is gone")),
            None => {}
            Some(row) if row.temperature != truth.temperature || row.status != truth.status => {
                ground.trace.wrong(format!("record {n} of {id} was {truth:?} and is {row:?}"));
            }
            Some(_) => {}
        }
    }
    for n in times.keys() {
        ground.trace.wrong(format!("record {n} of {id} was never recorded"));
    }
}

/// A pipeline without windows has the rows that it should.
fn passed_on(ground: &Ground, name: &str, expected: &[(String, i64, i64)], found: &[arrow::array::RecordBatch]) {
    let mut found: Vec<(String, i64, i64)> = found
        .iter()
        .flat_map(|batch| {
            let (devices, times, numbers) = (texts(batch, "device"), integers(batch, "ts"), integers(batch, "n"));
            (0..batch.num_rows())
                .map(|at| {
                    let device = devices[at].clone().unwrap_or_default();
                    (device, times[at].unwrap_or_default(), numbers[at].unwrap_or(-1))
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let mut expected = expected.to_vec();
    found.sort();
    expected.sort();
    if found != expected {
        ground.trace.wrong(format!("{name} has {} rows and should have {}", found.len(), expected.len()));
    }
}

/// What is said to have been late, by pipeline, device and window.
fn late(found: &BTreeMap<String, Vec<arrow::array::RecordBatch>>) -> BTreeMap<(String, String, i64), u64> {
    let mut late: BTreeMap<(String, String, i64), u64> = BTreeMap::new();
    for batch in found.get(storage::schema::LATE).into_iter().flatten() {
        let (pipelines, devices) = (texts(batch, "pipeline"), texts(batch, "device"));
        let (starts, counts) = (integers(batch, "window_start"), integers(batch, "records"));
        for at in 0..batch.num_rows() {
            let key = (
                pipelines[at].clone().unwrap_or_default(),
                devices[at].clone().unwrap_or_default(),
                starts[at].unwrap_or_default(),
            );
            *late.entry(key).or_default() += counts[at].unwrap_or_default() as u64;
        }
    }
    late
}

/// Window results are those of the rows that came in time, and what came late is said to have.
fn windows(
    ground: &Ground,
    reference: &Reference,
    found: &BTreeMap<String, Vec<arrow::array::RecordBatch>>,
    mut late: BTreeMap<(String, String, i64), u64>,
) {
    let mut results: BTreeMap<(String, String, i64), Vec<Outcome>> = BTreeMap::new();
    for name in WINDOWED.map(|w| w.name) {
        for batch in found.get(name).into_iter().flatten() {
            for (device, start, result) in Outcome::read(batch) {
                results.entry((name.to_owned(), device, start)).or_default().push(result);
            }
        }
    }
    for ((name, device, start), window) in &reference.windows {
        let key = ((*name).to_owned(), device.clone(), *start);
        let said = late.remove(&key).unwrap_or_default();
        let found = results.remove(&key).unwrap_or_default();
        let about = format!("window {start} of {device} in {name}");
        if said != window.late {
            ground.trace.wrong(format!("{about}: {said} records are said to be late, {} were", window.late));
        }
        let expected = usize::from(window.closed && !window.rows.is_empty());
        if found.len() != expected {
            ground.trace.wrong(format!("{about} is there {} times, and should be {expected} times", found.len()));
        }
        if let (Some(found), 1) = (found.first(), expected)
            && let Some(wrong) = found.differs(window)
        {
            ground.trace.wrong(format!("{about}: {wrong}"));
        }
    }
    for key in results.keys().chain(late.keys()) {
        ground.trace.wrong(format!("there is a window {key:?} that no row belongs to"));
    }
}

/// A row of a windowed pipeline.
#[derive(Debug)]
struct Outcome {
    count: Option<i64>,
    sum: Option<i64>,
    distinct: Option<i64>,
    average: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    deviation: Option<f64>,
    middle: Option<f64>,
}

impl Outcome {
    fn read(batch: &arrow::array::RecordBatch) -> Vec<(String, i64, Self)> {
        let (devices, starts) = (texts(batch, "device"), integers(batch, "window_start"));
        let (counts, sums, distincts) = (integers(batch, "c"), integers(batch, "s"), integers(batch, "d"));
        let (averages, lows, highs) = (floats(batch, "a"), floats(batch, "low"), floats(batch, "high"));
        let (deviations, middles) = (floats(batch, "deviation"), floats(batch, "middle"));
        (0..batch.num_rows())
            .map(|at| {
                let result = Self {
                    count: counts[at],
                    sum: sums[at],
                    distinct: distincts[at],
                    average: averages[at],
                    low: lows[at],
                    high: highs[at],
                    deviation: deviations[at],
                    middle: middles[at],
                };
                (devices[at].clone().unwrap_or_default(), starts[at].unwrap_or_default(), result)
            })
            .collect()
    }

    /// What is wrong with it, given the rows that it should be made of.
    fn differs(&self, window: &Window) -> Option<String> {
        let rows = &window.rows;
        let statuses: BTreeSet<&str> = rows.iter().map(|row| row.status.as_str()).collect();
        let mut values: Vec<f64> = rows.iter().filter_map(|row| row.temperature).collect();
        values.sort_by(f64::total_cmp);
        let n = values.len() as f64;
        let average = (n > 0.0).then(|| values.iter().sum::<f64>() / n);
        let deviation = average
            .filter(|_| n > 1.0)
            .map(|mean| (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt());
        let near = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * (1.0 + b.abs()),
            (None, None) => true,
            // The deviation of one value is nothing, or zero.
            _ => false,
        };
        let same = self.count == Some(rows.len() as i64)
            && self.sum == Some(rows.iter().map(|row| row.n).sum())
            && self.distinct == Some(statuses.len() as i64)
            && near(self.average, average)
            && near(self.low, values.first().copied())
            && near(self.high, values.last().copied())
            && near(self.deviation, deviation)
            && self.middle_fits(&values);
        (!same).then(|| {
            format!(
                "is {self:?}; from the rows it is count {}, sum {}, distinct {}, average {average:?}, deviation \
                 {deviation:?} of {values:?}",
                rows.len(),
                rows.iter().map(|row| row.n).sum::<i64>(),
                statuses.len()
            )
        })
    }

    /// The estimate of the median lies between values near the middle.
    fn middle_fits(&self, values: &[f64]) -> bool {
        let Some(middle) = self.middle else { return values.is_empty() };
        let (Some(last), true) = (values.len().checked_sub(1), !values.is_empty()) else { return false };
        let half = values.len() / 2;
        let slack = 1 + values.len() / 20;
        let low = values[half.saturating_sub(slack).min(last)];
        let high = values[(half + slack).min(last)];
        (low - 1e-9..=high + 1e-9).contains(&middle)
    }
}
