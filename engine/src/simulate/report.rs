//! What a fleet did, for people and for programs.

use std::fmt;
use std::time::Duration;

use edge::Latency;
use serde::Serialize;

use super::{Mode, SimulateConfig};

/// What one device did, or several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) recorded: u64,
    pub(super) sent: u64,
    pub(super) messages: u64,
    pub(super) resent: u64,
    pub(super) lost: u64,
    pub(super) unacknowledged: u64,
    pub(super) refused: u64,
    pub(super) bad: u64,
    pub(super) connects: u64,
    pub(super) restarts: u64,
    pub(super) renewed: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.recorded += other.recorded;
        self.sent += other.sent;
        self.messages += other.messages;
        self.resent += other.resent;
        self.lost += other.lost;
        self.unacknowledged += other.unacknowledged;
        self.refused += other.refused;
        self.bad += other.bad;
        self.connects += other.connects;
        self.restarts += other.restarts;
        self.renewed += other.renewed;
    }
}

/// What a fleet did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How many devices.
    pub devices: usize,
    /// Records made.
    pub recorded: u64,
    /// Records sent, repetitions included.
    pub sent: u64,
    /// Frames or plain messages sent, repetitions included.
    pub messages: u64,
    /// Records that the engine acknowledged, so that they are durable there. Always 0 for plain clients with
    /// QoS 0: nobody acknowledges them.
    pub acknowledged: u64,
    /// Records that were not acknowledged when the fleet stopped waiting.
    pub unacknowledged: u64,
    /// Records sent again.
    pub resent: u64,
    /// Records dropped on the device and declared lost.
    pub lost: u64,
    /// Messages that the engine refused.
    pub refused: u64,
    /// Bad payloads sent on purpose: this many refusals are expected, fewer if a connection broke before.
    pub bad_payloads: u64,
    /// Connections made.
    pub connects: u64,
    /// Devices restarted on purpose.
    pub restarts: u64,
    /// Certificates that devices have taken into use.
    pub renewed: u64,
    /// Seconds from the start to the last acknowledgement.
    pub elapsed_s: f64,
    /// Recorded per second.
    pub rate: f64,
    /// Half of all records were acknowledged within this many milliseconds of being recorded.
    pub ack_p50_ms: f64,
    /// 99 of 100 were.
    pub ack_p99_ms: f64,
}

impl Report {
    pub(super) fn new(config: &SimulateConfig, total: &Tally, elapsed: Duration, latency: &Latency) -> Self {
        let acked = !matches!(config.mode, Mode::PlainJson { qos: 0 } | Mode::PlainCbor { qos: 0 });
        let acknowledged = total.recorded.saturating_sub(total.unacknowledged + total.lost);
        let millis = |part| latency.quantile(part).as_secs_f64() * 1e3;
        Self {
            devices: config.devices,
            recorded: total.recorded,
            sent: total.sent,
            messages: total.messages,
            acknowledged: if acked { acknowledged } else { 0 },
            unacknowledged: total.unacknowledged,
            resent: total.resent,
            lost: total.lost,
            refused: total.refused,
            bad_payloads: total.bad,
            connects: total.connects,
            restarts: total.restarts,
            renewed: total.renewed,
            elapsed_s: elapsed.as_secs_f64(),
            rate: total.recorded as f64 / elapsed.as_secs_f64().max(1e-9),
            ack_p50_ms: millis(0.5),
            ack_p99_ms: millis(0.99),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "devices          {:>12}", self.devices)?;
        writeln!(f, "recorded         {:>12}   {:.0} a second over {:.1} s", self.recorded, self.rate, self.elapsed_s)?;
        writeln!(f, "sent             {:>12}   in {} messages", self.sent, self.messages)?;
        writeln!(f, "acknowledged     {:>12}", self.acknowledged)?;
        writeln!(f, "unacknowledged   {:>12}", self.unacknowledged)?;
        writeln!(f, "resent           {:>12}", self.resent)?;
        writeln!(f, "lost             {:>12}", self.lost)?;
        writeln!(f, "refused          {:>12}   of {} bad payloads sent on purpose", self.refused, self.bad_payloads)?;
        writeln!(f, "connections      {:>12}   {} restarts", self.connects, self.restarts)?;
        if self.renewed > 0 {
            writeln!(f, "certificates     {:>12}   taken into use", self.renewed)?;
        }
        write!(f, "ack latency      {:>9.1} ms   p50, {:.1} ms p99", self.ack_p50_ms, self.ack_p99_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_acknowledged_or_lost_is_acknowledged() {
        let config = SimulateConfig::new(([127, 0, 0, 1], 1883).into());
        let total = Tally { recorded: 100, unacknowledged: 3, lost: 2, ..Tally::default() };
        let report = Report::new(&config, &total, Duration::from_secs(10), &Latency::default());
        assert_eq!(report.acknowledged, 95);
        assert_eq!(report.rate, 10.0);
        assert!(report.to_string().contains("acknowledged               95"), "{report}");
        let plain = SimulateConfig { mode: Mode::PlainJson { qos: 0 }, ..config };
        assert_eq!(Report::new(&plain, &total, Duration::from_secs(10), &Latency::default()).acknowledged, 0);
    }
}
