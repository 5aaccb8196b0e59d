//! Which fault comes when. Pure: it follows from the seed, and from nothing that happens.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Something done to the engine, the agents, the network or the disk.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fault {
    /// SIGKILL, and a start with other intervals. `flush`: in the middle of a flush. `again`: killed once more, this
    /// long into its recovery.
    KillEngine { flush: bool, again: Option<Duration>, settings: Settings },
    /// SIGSTOP, and SIGCONT later.
    StopEngine(Duration),
    /// SIGKILL to a fleet whose outboxes are on disk, and a start after a while.
    KillAgents { fleet: usize, away: Duration },
    /// SIGSTOP to a fleet, and SIGCONT later.
    StopAgents { fleet: usize, lasts: Duration },
    /// A share of the connections (per mille) is closed on both sides.
    Cut { share: u32 },
    /// A share of the connections is closed on one side only; the other side sees silence for a while. With the
    /// engine's side kept, an agent that comes back is connected twice.
    HalfOpen { share: u32, keeps_engine: bool, lasts: Duration },
    /// Every piece of data is this late, for a while.
    Delay { each: Duration, lasts: Duration },
    /// Connections stand still, for a while.
    Stall { lasts: Duration },
    /// The engine's disk is full, for a while.
    FullDisk { lasts: Duration },
}

/// Intervals of the engine: short ones let a minute hold many checkpoints, cuts and sleeping devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) checkpoint: Duration,
    pub(super) cut: Duration,
    pub(super) passivate: Duration,
}

impl Fault {
    /// What it is called in the verdict.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::KillEngine { .. } => "engine killed",
            Self::StopEngine(_) => "engine stopped",
            Self::KillAgents { .. } => "agents killed",
            Self::StopAgents { .. } => "agents stopped",
            Self::Cut { .. } => "connections cut",
            Self::HalfOpen { .. } => "connections half open",
            Self::Delay { .. } => "network slow",
            Self::Stall { .. } => "network still",
            Self::FullDisk { .. } => "disk full",
        }
    }
}

/// A fault and how long to wait before it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub(super) after: Duration,
    pub(super) fault: Fault,
}

/// The faults of one seed, without end.
#[derive(Debug)]
pub(super) struct Schedule {
    random: SmallRng,
    /// Fleets that may be killed come first.
    killable: usize,
    fleets: usize,
    disk: bool,
}

impl Schedule {
    pub(super) fn new(seed: u64, killable: usize, fleets: usize, disk: bool) -> Self {
        Self { random: SmallRng::seed_from_u64(seed), killable, fleets, disk }
    }

    /// Settings of the next start.
    pub(super) fn settings(&mut self) -> Settings {
        let mut one_of = |millis: [u64; 3]| Duration::from_millis(millis[self.random.random_range(0..3)]);
        Settings {
            checkpoint: one_of([300, 1000, 4000]),
            cut: one_of([1000, 3000, 10_000]),
            passivate: one_of([2000, 20_000, 300_000]),
        }
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let after = self.millis(300..4000);
        let fault = loop {
            // The engine's death is what the most depends on, so it comes most often.
            match self.random.random_range(0..20) {
                0..=4 => {
                    let flush = self.random.random_bool(0.3);
                    let again = self.random.random_bool(0.2).then(|| self.millis(0..800));
                    break Fault::KillEngine { flush, again, settings: self.settings() };
                }
                5 | 6 => break Fault::StopEngine(self.millis(100..6000)),
                7..=9 => {
                    let fleet = self.random.random_range(0..self.killable.max(1));
                    break Fault::KillAgents { fleet, away: self.millis(0..3000) };
                }
                10 => {
                    let fleet = self.random.random_range(0..self.fleets.max(1));
                    break Fault::StopAgents { fleet, lasts: self.millis(100..8000) };
                }
                11..=13 => break Fault::Cut { share: self.random.random_range(100..=1000) },
                14 | 15 => {
                    let (share, keeps_engine) = (self.random.random_range(100..=1000), self.random.random_bool(0.6));
                    break Fault::HalfOpen { share, keeps_engine, lasts: self.millis(1000..15_000) };
                }
                16 => break Fault::Delay { each: self.millis(5..400), lasts: self.millis(500..8000) },
                17 => break Fault::Stall { lasts: self.millis(500..8000) },
                _ if self.disk => break Fault::FullDisk { lasts: self.millis(1000..8000) },
                _ => {}
            }
        };
        Some(Step { after, fault })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_gives_the_same_faults_and_all_kinds_come() {
        let plan = |seed, disk| Schedule::new(seed, 2, 4, disk).take(400).collect::<Vec<_>>();
        assert_eq!(plan(7, true), plan(7, true));
        assert_ne!(plan(7, true), plan(8, true));
        let kinds = |disk| plan(7, disk).iter().map(|step| step.fault.name()).collect::<BTreeSet<_>>();
        assert_eq!(kinds(true).len(), 9);
        assert!(!kinds(false).contains("disk full"));
        let killed: BTreeSet<_> = plan(7, true)
            .iter()
            .filter_map(|step| match step.fault {
                Fault::KillAgents { fleet, .. } => Some(fleet),
                _ => None,
            })
            .collect();
        assert_eq!(killed, BTreeSet::from([0, 1]), "only fleets that can be killed");
    }
}
