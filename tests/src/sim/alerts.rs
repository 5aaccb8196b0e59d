//! Alerts once more: what the logs hold of transitions is what a device makes of the logs that never failed, never slept
//! and never saw a snapshot.

use std::collections::BTreeMap;

use device::alert::Transition;
use device::entry::{Body, LogBody};
use device::id::{DeviceId, ShardId};
use device::machine::{Device, Watch};
use device::seq::Position;

use super::ledger::Ledger;
use super::live::Begun;
use super::project;
use super::trace::Trace;

/// A device that has everything of the log and writes nothing into it.
struct Undisturbed {
    device: Device,
    /// What the log holds of its transitions.
    logged: Vec<Transition>,
}

/// Compares the transitions in the logs with what they should be.
pub(super) fn compare(trace: &Trace, ledger: &Ledger, shards: u16, begun: &[Begun]) -> Result<(), String> {
    let rules: Vec<_> = (0..project::VERSIONS).map(|version| project::project(version).rules()).collect();
    for shard in (0..shards).map(ShardId) {
        let mut devices: BTreeMap<DeviceId, Undisturbed> = BTreeMap::new();
        let mut begun = begun.iter().filter(|(id, ..)| *id == shard).peekable();
        let mut counts = 0;
        for (position, record) in (1..).zip(ledger.log(shard)) {
            while let Some((_, _, version)) = begun.next_if(|(_, end, _)| end.0 < position) {
                counts = *version;
            }
            let entries = match &record.body {
                LogBody::Batch(entries) => entries,
                LogBody::Barrier { catalog, .. } => {
                    counts = project::version(*catalog).unwrap_or(counts);
                    continue;
                }
                LogBody::Partial(_) => continue,
            };
            let Some(rules) = rules.get(counts as usize) else { return Err("a version without rules".to_owned()) };
            for entry in entries.iter().filter(|entry| entry.device != DeviceId::nobody()) {
                let of = devices
                    .entry(entry.device.clone())
                    .or_insert_with(|| Undisturbed { device: Device::new(entry.device.clone()), logged: Vec::new() });
                match &entry.body {
                    Body::Transitions(transitions) => of.logged.extend(transitions.iter().cloned()),
                    _ => {
                        let watch = Watch { rules, streams: u64::MAX };
                        of.device.apply_under(Position(position), entry, Some(watch));
                    }
                }
            }
        }
        for (id, Undisturbed { device, logged }) in devices {
            let mut made = Vec::new();
            while let Some((entry, _)) = device.unlogged(Default::default(), made.len() as u64) {
                let Body::Transitions(transitions) = entry.body else { break };
                made.extend(transitions);
            }
            if made != logged {
                let at = made.iter().zip(&logged).take_while(|(made, logged)| made == logged).count();
                trace.wrong(format!(
                    "of {id} the log holds {} transitions of alerts, it should be {}; the first that differ: {:?}, not {:?}",
                    logged.len(),
                    made.len(),
                    logged.get(at),
                    made.get(at)
                ));
            }
        }
    }
    Ok(())
}
