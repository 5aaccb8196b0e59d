//! Devices whose last certificate ends soon because nobody has renewed it: counted, and told once for each certificate and step.

mod telling;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use access::audit::{Act, Audit};
use access::journal::JournalError;
use access::registry::{Fact, Registry};
use access::renew::{self, Last, TOLD_AT};
use alerts::{Happening, Keeper};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// How often the certificates are looked at.
const EVERY: Duration = Duration::from_secs(3600);
/// If there is more to tell than fits into one look: the trail has a queue.
const AGAIN: Duration = Duration::from_secs(10);
/// What one look tells of at most.
const AT_ONCE: usize = 1000;
/// Lines of one look in the log; the trail has all.
const LINES: usize = 20;

/// How many devices there are whose certificate ends within so many days, as of the last look.
#[derive(Debug, Default)]
pub struct Report {
    counts: [AtomicU64; TOLD_AT.len()],
}

impl Report {
    /// Days, and how many certificates end within them.
    pub fn counts(&self) -> impl Iterator<Item = (u32, u64)> {
        TOLD_AT.into_iter().zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

/// What is looked at, and who is told.
pub(crate) struct Expiring {
    pub(crate) registry: Arc<Registry>,
    pub(crate) tenant: String,
    pub(crate) audit: Arc<Audit>,
    pub(crate) clock: Clock,
    pub(crate) report: Arc<Report>,
    /// Who tells people, and whom: a name in `[alerts.people]`.
    pub(crate) tell: Option<(Arc<Keeper>, String)>,
}

impl Expiring {
    /// Looks once. True: there is more to tell. Reads and writes a file.
    fn look(&self) -> Result<bool, JournalError> {
        let now = (self.clock)();
        let mut told: Vec<(Last, u32)> = Vec::new();
        self.registry.change::<JournalError>(now, |state| {
            for (days, count) in TOLD_AT.into_iter().zip(&self.report.counts) {
                let ending = renew::ending(state, &self.tenant, renew::days(days), now);
                count.store(ending.len() as u64, Ordering::Relaxed);
            }
            told = renew::untold(state, &self.tenant, now);
            told.truncate(AT_ONCE);
            Ok(told.iter().map(|(ending, days)| Fact::Told { serial: ending.serial.clone(), days: *days }).collect())
        })?;
        if let Some((desk, who)) = &self.tell {
            let unrenewed = self.registry.look(|state| renew::unrenewed(state, &self.tenant, now));
            let open = desk.with(|desk| desk.open_of(telling::RULE));
            let changes = telling::changes(&open, &unrenewed, who, now);
            if !changes.is_empty() {
                desk.happen(now, Happening::Noticed { changes });
            }
        }
        for (index, (ending, days)) in told.iter().enumerate() {
            let until = alerts::shown(ending.not_after);
            if index < LINES {
                tracing::warn!(device = %ending.device, %until,
                    "the certificate of this device ends within {days} days and was not renewed");
            }
            let detail = json!({ "serial": ending.serial, "until": until, "within_days": days });
            let act = Act::done("engine", "certificate.expiring", ending.device.as_str()).detail(detail);
            self.audit.note(now, act);
        }
        if told.len() > LINES {
            tracing::warn!("and those of {} others; `weir ca list --expiring 14d` lists them", told.len() - LINES);
        }
        Ok(told.len() == AT_ONCE)
    }
}

/// Looks now and then, until the engine stops.
pub(crate) async fn watch(expiring: Expiring, stop: CancellationToken) {
    let expiring = Arc::new(expiring);
    loop {
        let looking = expiring.clone();
        let looked = tokio::task::spawn_blocking(move || looking.look()).await;
        let pause = match looked {
            Ok(Ok(true)) => AGAIN,
            Ok(Ok(false)) => EVERY,
            failed => {
                tracing::error!(?failed, "whose certificates end soon is not known");
                EVERY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use access::authority::DAY;
    use access::registry::{Certificate, State};
    use device::time::{SECOND, Timestamp};

    use super::*;

    #[test]
    fn each_certificate_is_told_of_once_at_each_step_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(parking_lot::Mutex::new(Timestamp(1_800_000_000 * SECOND)));
        let begin = *now.lock();
        let certificate = Certificate {
            serial: "1".into(),
            subject: "urn:dev:main:a".into(),
            key: "k".into(),
            not_before: begin.plus(-DAY),
            not_after: begin.plus(20 * DAY),
            pending: false,
            replaces: None,
            issuer: None,
        };
        let open = || {
            let (reads, audit) = (now.clone(), Arc::new(Audit::open(dir.path()).unwrap()));
            Expiring {
                registry: Arc::new(Registry::open(dir.path()).unwrap()),
                tenant: "main".into(),
                audit,
                clock: Arc::new(move || *reads.lock()),
                report: Arc::default(),
                tell: None,
            }
        };
        let first = open();
        first.registry.change::<JournalError>(begin, |_| Ok(vec![Fact::Issued(certificate)])).unwrap();
        for (day, facts, counts) in
            [(0, 1, [0, 0]), (7, 2, [1, 0]), (8, 2, [1, 0]), (18, 3, [1, 1]), (19, 3, [1, 1]), (21, 3, [0, 0])]
        {
            *now.lock() = begin.plus(day * DAY);
            for _ in 0..2 {
                let expiring = open();
                assert!(!expiring.look().unwrap());
                assert_eq!(expiring.registry.look(State::facts).0, facts, "day {day}");
                let counted: Vec<u64> = expiring.report.counts().map(|(_, count)| count).collect();
                assert_eq!(counted, counts, "day {day}");
            }
        }
        drop(first);
        let trail = access::audit::journal(dir.path());
        let told = access::journal::Journal::<Act>::read_only(&trail).unwrap().read_on().unwrap();
        let within: Vec<_> = told.iter().map(|line| line.fact.detail["within_days"].as_u64()).collect();
        assert_eq!(within, [Some(14), Some(3)]);
    }
}
