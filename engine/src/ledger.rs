//! Counters that add up: what came in is what went somewhere, at every stage between a socket and the tables.
//!
//! | stage | must be |
//! |---|---|
//! | `gateway` | PUBLISH received = for devices + for nobody + live + denied + repeated |
//! | `inbox` | messages handed to devices, and those for nobody = messages looked at |
//! | `devices` | records received = stored + duplicate + nacked + dead-lettered |
//! | `tables` | records stored since the start = rows made of them |
//!
//! Counters are read one after the other while others write them, so two readings are compared: what one side had
//! counted at the first reading, the other side must have counted at the second, in both directions. Equality is asked
//! for where nothing is on its way. A difference counts only when the next comparison finds it again: so neither an
//! actor that is just between two counters nor one that waits for the processor is taken for a fault. A fault
//! that hides behind steady traffic is found at the first pause.
//!
//! [`Ledger`] is pure; [`Books`] reads the counters and keeps the account of what was found. Absent: numbers of single
//! devices; that is what an audit is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actors::message::Ingress;
use parking_lot::Mutex;

use crate::core::Core;
use crate::gateway::GatewayMetrics;

/// Time between two readings: far longer than anybody needs from one counter to the next, short enough that a
/// pause between two bursts is not missed.
pub const EVERY: Duration = Duration::from_secs(1);

/// Messages that may be lost to the counters when a device fails: the one that had its turn.
const TAKEN: u64 = 1;

/// A border between two parts of the engine at which counters have to agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From the packet to where its topic leads.
    Gateway,
    /// From the gateway to the device actors.
    Inbox,
    /// What device actors decide.
    Devices,
    /// From the decision to the row.
    Tables,
}

impl Stage {
    /// All of them, in the order of the way.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Inbox, Self::Devices, Self::Tables];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Inbox => "inbox",
            Self::Devices => "devices",
            Self::Tables => "tables",
        }
    }
}

/// What went in and what came out of a stage, at one reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// In.
    pub into: u64,
    /// Out.
    pub out: u64,
    /// How much less may have come out than went in, for ever.
    pub leak: u64,
}

/// One reading of all counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// By stage, as [`Stage::ALL`].
    pub flows: [Flow; 4],
    /// Nothing is on its way from a socket to the tables: no byte of credit is out.
    pub idle: bool,
}

/// A stage whose counters do not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Which.
    pub stage: Stage,
    /// In.
    pub into: u64,
    /// Out.
    pub out: u64,
}

/// Compares readings.
#[derive(Debug, Default)]
pub struct Ledger {
    before: Option<Reading>,
    suspected: [bool; 4],
}

impl Ledger {
    /// Takes the next reading; returns what is wrong for the second time running.
    pub fn take(&mut self, now: Reading) -> Vec<Mismatch> {
        let Some(before) = self.before.replace(now.clone()) else { return Vec::new() };
        let mut found = Vec::new();
        let flows = before.flows.into_iter().zip(now.flows);
        for ((stage, (then, now_flow)), suspected) in Stage::ALL.into_iter().zip(flows).zip(&mut self.suspected) {
            // What decides at once needs no quiet: a second later it has counted what it had taken.
            let at_once = matches!(stage, Stage::Gateway | Stage::Devices);
            let quiet = before.idle && now.idle && then.into == now_flow.into;
            let too_many = then.out > now_flow.into;
            let too_few = (at_once || quiet) && then.into > now_flow.out.saturating_add(now_flow.leak);
            let wrong = too_many || too_few;
            if wrong && *suspected {
                found.push(Mismatch { stage, into: now_flow.into, out: now_flow.out });
            }
            *suspected = wrong;
        }
        found
    }
}

/// The counters of a running engine, and what was found out about them.
pub struct Books {
    core: Arc<Core>,
    gateway: Arc<GatewayMetrics>,
    ledger: Mutex<Ledger>,
    mismatches: [AtomicU64; 4],
    /// Comparisons made.
    compared: AtomicU64,
}

impl Books {
    /// Books that nothing was entered into yet.
    pub fn new(core: Arc<Core>, gateway: Arc<GatewayMetrics>) -> Self {
        let (mismatches, compared) = (Default::default(), AtomicU64::new(0));
        Self { core, gateway, ledger: Mutex::default(), mismatches, compared }
    }

    /// Reads all counters: each stage's `out` before its `into`, so that what is counted in between is no surplus.
    fn read(&self) -> Reading {
        let get = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let metrics = &self.core.metrics;
        let idle = self.core.node.admission().used() == 0;
        let rows = self.core.statuses.iter().map(|status| status.records()).sum();
        let stored = get(&metrics.stored);
        let decided = stored + get(&metrics.duplicate) + get(&metrics.nacked) + get(&metrics.dead_lettered);
        let received = get(&metrics.received);
        let messages = get(&metrics.messages);
        let handed = get(&metrics.handed) + get(&metrics.strays);
        let leak = get(&metrics.restarted).saturating_mul(TAKEN);
        let (published, routed) = self.gateway.flow();
        let flow = |into, out, leak| Flow { into, out, leak };
        let flows = [
            flow(published, routed, 0),
            flow(handed, messages, leak),
            flow(received, decided, 0),
            flow(stored, rows, 0),
        ];
        Reading { flows, idle }
    }

    /// Reads and compares once. Call it every [`EVERY`].
    pub fn compare(&self) -> Vec<Mismatch> {
        let found = self.ledger.lock().take(self.read());
        for mismatch in &found {
            let at = Stage::ALL.iter().position(|stage| *stage == mismatch.stage);
            if let Some(counter) = at.and_then(|at| self.mismatches.get(at)) {
                // Each second of a difference counts, but one line tells of it.
                if counter.fetch_add(1, Ordering::Relaxed) == 0 {
                    let Mismatch { stage, into, out } = mismatch;
                    tracing::error!(stage = stage.as_str(), into, out, "counters do not add up");
                }
            }
        }
        self.compared.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// How often each stage did not add up.
    pub fn mismatches(&self) -> impl Iterator<Item = (Stage, u64)> + '_ {
        Stage::ALL.into_iter().zip(self.mismatches.iter().map(|counter| counter.load(Ordering::Relaxed)))
    }

    /// Comparisons made since the start.
    pub fn compared(&self) -> u64 {
        self.compared.load(Ordering::Relaxed)
    }

    /// The last word, for tests and for a stop: waits until nothing is on its way, then compares until a difference
    /// would have been found twice. Empty: everything adds up.
    pub async fn close(&self, patience: Duration) -> Vec<Mismatch> {
        let idle = async {
            while self.core.node.admission().used() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(patience, idle).await;
        let mut ledger = Ledger::default();
        let mut found = Vec::new();
        for _ in 0..4 {
            found = ledger.take(self.read());
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(idle: bool, flows: [(u64, u64); 4]) -> Reading {
        Reading { idle, flows: flows.map(|(into, out)| Flow { into, out, leak: 0 }) }
    }

    /// What is found after these readings.
    fn check(readings: &[Reading], expected: &[Stage]) {
        let mut ledger = Ledger::default();
        let mut found = Vec::new();
        for reading in readings {
            found = ledger.take(reading.clone());
        }
        assert_eq!(found.iter().map(|mismatch| mismatch.stage).collect::<Vec<_>>(), expected, "{readings:?}");
    }

    #[test]
    fn what_adds_up_is_no_mismatch() {
        let even = reading(true, [(5, 5); 4]);
        check(&[even.clone(), even.clone(), even.clone()], &[]);
        // In motion: each side runs ahead of the other by what was counted between the two looks.
        let moving: Vec<Reading> = (1..9).map(|n| reading(false, [(n * 10, n * 10 - 3); 4])).collect();
        check(&moving, &[]);
        let ahead: Vec<Reading> = (1..9).map(|n| reading(false, [(n * 10, n * 10 + 3); 4])).collect();
        check(&ahead, &[]);
    }

    #[test]
    fn what_is_on_its_way_is_not_lost() {
        let held = |idle| reading(idle, [(5, 5), (9, 4), (5, 5), (9, 2)]);
        check(&[held(false), held(false), held(false)], &[]);
        // Only a quiet time at both ends of the second says that nothing comes any more.
        check(&[held(false), held(true), held(false), held(true)], &[]);
        check(&[held(true), held(true), held(true)], &[Stage::Inbox, Stage::Tables]);
    }

    #[test]
    fn a_record_too_few_or_too_many_is_found_at_every_stage() {
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            for out in [4, 6] {
                let mut flows = [(5, 5); 4];
                flows[at] = (5, out);
                let wrong = reading(true, flows);
                check(&[wrong.clone(), wrong.clone()], &[]);
                check(&[wrong.clone(), wrong.clone(), wrong], &[stage]);
            }
        }
    }

    #[test]
    fn one_bad_look_is_forgiven() {
        let even = reading(true, [(5, 5); 4]);
        let odd = reading(true, [(5, 6); 4]);
        check(&[even.clone(), odd.clone(), even.clone(), odd, even], &[]);
    }

    #[test]
    fn what_a_failed_actor_had_taken_is_forgiven() {
        let mut wrong = reading(true, [(5, 5), (9, 4), (5, 5), (5, 5)]);
        wrong.flows[1].leak = 5;
        check(&[wrong.clone(), wrong.clone(), wrong.clone()], &[]);
        wrong.flows[1].leak = 4;
        check(&[wrong.clone(), wrong.clone(), wrong], &[Stage::Inbox]);
    }
}
