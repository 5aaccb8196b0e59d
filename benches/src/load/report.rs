//! What a run of the generator found out, for people and for machines.

use std::fs;
use std::io::{self, Write};
use std::time::Instant;

use serde_json::json;

use super::histogram::Histogram;

/// The result of one thread, or of all together.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Records sent, repetitions included.
    pub sent: u64,
    /// Records sent, each counted once.
    pub unique: u64,
    /// Records acknowledged; with frames each once, else repetitions included.
    pub acked: u64,
    /// Messages that were sent once more because no acknowledgement came in time.
    pub resent: u64,
    /// Records the server refused.
    pub refused: u64,
    /// Packets that nobody expected.
    pub unexpected: u64,
    /// Bytes written to sockets.
    pub bytes: u64,
    /// The run was given up because nothing was acknowledged any more.
    pub stalled: bool,
    /// Seconds from the first to the last message.
    pub elapsed: f64,
    /// CPU seconds of the generator.
    pub cpu: f64,
    /// Microseconds from (intended) sending to acknowledgement.
    pub latency: Histogram,
    /// The same for each second in which messages were (or should have been) sent, if somebody wants to know.
    pub series: Option<Vec<Histogram>>,
    cpu_before: f64,
}

/// CPU seconds this thread has used, to the nanosecond.
fn thread_cpu() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

impl Outcome {
    /// Nothing yet; CPU time counts from here.
    pub(crate) fn start() -> Self {
        Self { cpu_before: thread_cpu(), ..Self::default() }
    }

    /// The thread has finished what it began at `began`.
    pub(crate) fn finish(&mut self, began: Instant) {
        self.elapsed = began.elapsed().as_secs_f64();
        self.cpu = thread_cpu() - self.cpu_before;
    }

    /// A message of `planned` is acknowledged, both in microseconds since the start.
    pub(crate) fn acknowledged(&mut self, planned: u64, now: u64) {
        let latency = now.saturating_sub(planned);
        self.latency.add(latency);
        if let Some(series) = &mut self.series {
            let second = (planned / 1_000_000) as usize;
            if series.len() <= second {
                series.resize_with(second + 1, Histogram::default);
            }
            if let Some(of) = series.get_mut(second) {
                of.add(latency);
            }
        }
    }

    /// Takes in the result of another thread of the same run.
    pub fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.unique += other.unique;
        self.acked += other.acked;
        self.resent += other.resent;
        self.refused += other.refused;
        self.unexpected += other.unexpected;
        self.bytes += other.bytes;
        self.stalled |= other.stalled;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.cpu += other.cpu;
        self.latency.merge(&other.latency);
        if let Some(theirs) = &other.series {
            let mine = self.series.get_or_insert_default();
            mine.resize_with(mine.len().max(theirs.len()), Histogram::default);
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| mine.merge(theirs));
        }
    }

    /// One line of JSON on standard output, one for people on standard error.
    pub fn print(&self) -> io::Result<()> {
        let l = &self.latency;
        let per_million = self.cpu / (self.sent.max(1) as f64) * 1e6;
        let rate = self.sent as f64 / self.elapsed.max(1e-9);
        let ms = |q: f64| l.quantile(q) as f64 / 1000.0;
        writeln!(
            io::stderr(),
            "sent {} ({} unique), acked {}, resent {}, refused {}, {:.2} s, {rate:.0}/s, generator {per_million:.3} CPU s/M, \
             ack ms p50 {:.2} p90 {:.2} p99 {:.2} p99.9 {:.2} max {:.2}{}",
            self.sent,
            self.unique,
            self.acked,
            self.resent,
            self.refused,
            self.elapsed,
            ms(0.5),
            ms(0.9),
            ms(0.99),
            ms(0.999),
            l.max() as f64 / 1000.0,
            if self.stalled { ", GIVEN UP: no acknowledgement any more" } else { "" },
        )?;
        let second = |of: &Histogram| {
            let ms = |q: f64| of.quantile(q) as f64 / 1000.0;
            json!({ "count": of.count(), "p50": ms(0.5), "p99": ms(0.99), "max": of.max() as f64 / 1000.0 })
        };
        let series = self.series.as_ref().map(|series| series.iter().map(second).collect::<Vec<_>>());
        let value = json!({
            "series": series,
            "sent": self.sent, "unique": self.unique, "acked": self.acked, "resent": self.resent,
            "refused": self.refused, "unexpected": self.unexpected, "bytes": self.bytes, "stalled": self.stalled,
            "elapsed_s": self.elapsed, "rate": rate, "cpu_s": self.cpu, "cpu_s_per_million": per_million,
            "ack_ms": {
                "count": l.count(), "mean": l.mean() / 1000.0, "p50": ms(0.5), "p90": ms(0.9), "p99": ms(0.99),
                "p999": ms(0.999), "max": l.max() as f64 / 1000.0,
            },
        });
        writeln!(io::stdout(), "{value}")
    }
}
