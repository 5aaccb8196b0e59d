//! The smallest world that still fails: less of everything, with the same seed, as long as it fails.

use super::params::Params;
use super::{Report, run};

/// Tries smaller worlds, at most `tries` of them; gives the report of the smallest that failed, if the first did.
pub fn shrink(params: &Params, tries: usize) -> Option<Report> {
    let mut best = run(params, false);
    if best.wrong.is_empty() {
        return None;
    }
    let mut left = tries;
    loop {
        let mut progress = false;
        for smaller in candidates(&best.params) {
            if left == 0 {
                return Some(best);
            }
            left -= 1;
            let report = run(&smaller, false);
            if !report.wrong.is_empty() {
                best = report;
                progress = true;
                break;
            }
        }
        if !progress {
            return Some(best);
        }
    }
}

/// Worlds one step smaller, the boldest first.
fn candidates(params: &Params) -> Vec<Params> {
    let mut smaller = Vec::new();
    let mut with = |change: &dyn Fn(&mut Params)| {
        let mut next = params.clone();
        change(&mut next);
        if next != *params {
            smaller.push(next);
        }
    };
    with(&|p| p.devices = (p.devices / 2).max(1));
    with(&|p| p.records /= 2);
    with(&|p| p.seconds = (p.seconds / 2).max(1));
    for fault in &params.faults {
        with(&|p| {
            p.faults.remove(fault);
        });
    }
    with(&|p| p.shards = 1);
    with(&|p| p.devices = (p.devices - 1).max(1));
    with(&|p| p.records = p.records.saturating_sub(1));
    with(&|p| p.seconds = (p.seconds - 1).max(1));
    smaller
}
