//! `sim`: runs simulated worlds. `sim --seeds 0..1000`, `sim --seed 7 --trace`, `sim --seed 7 --shrink`.
//!
//! Exit status: 0 all promises held, 1 one was broken, 2 wrong usage.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use tests::sim::{Params, Report, run, shrink};

const USAGE: &str = "usage:
  sim --seeds FROM..TO [--jobs N]      run these worlds
  sim --seed N [WORLD] [--trace]       run one world, and print what happens
  sim --seed N [WORLD] --shrink        look for the smallest world that still fails
  sim --planted NAME|all --seeds A..B  see how many worlds it takes to find a planted fault (feature `planted`)
WORLD: --shards N --devices N --records N --seconds N --faults a,b,c (or none)";

/// Worlds tried while shrinking.
const TRIES: usize = 400;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match command(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            say(&format!("{error}\n{USAGE}"));
            ExitCode::from(2)
        }
    }
}

fn say(text: &str) {
    // A reader that has gone away is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn command(args: &[String]) -> Result<bool, String> {
    let flag = |name: &str| args.iter().any(|arg| arg == name);
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    if let Some(range) = value("--seeds") {
        let (from, to) = range.split_once("..").ok_or("seeds are given as FROM..TO")?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
        let (from, to) = (number(from)?, number(to)?);
        if let Some(name) = value("--planted") {
            return planted(name, from, to);
        }
        let jobs = value("--jobs").map_or(Ok(1), |text| number(text))?.clamp(1, 64);
        return Ok(seeds(from, to, jobs));
    }
    let world: Vec<&str> =
        args.iter().map(String::as_str).filter(|arg| !["--trace", "--shrink"].contains(arg)).collect();
    let params: Params = world.join(" ").parse()?;
    if flag("--shrink") {
        let Some(report) = shrink(&params, TRIES) else {
            say("this world keeps all promises");
            return Ok(true);
        };
        failed(&report);
        return Ok(false);
    }
    let report = run(&params, flag("--trace"));
    for line in &report.trace {
        say(line);
    }
    say(&format!("seed {}: {} lines, hash {:016x}", params.seed, report.lines, report.hash));
    if report.wrong.is_empty() {
        return Ok(true);
    }
    failed(&report);
    Ok(false)
}

fn failed(report: &Report) {
    say(&format!("FAILED seed {}", report.params.seed));
    for wrong in &report.wrong {
        say(&format!("  {wrong}"));
    }
    say(&format!("  again: cargo sim {}", report.params));
}

/// Runs a range of worlds on `jobs` threads.
fn seeds(from: u64, to: u64, jobs: u64) -> bool {
    let started = Instant::now();
    let next = std::sync::atomic::AtomicU64::new(from);
    let bad = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= to {
                        return;
                    }
                    let report = run(&Params::of(seed), false);
                    if !report.wrong.is_empty() {
                        bad.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        failed(&report);
                    }
                }
            });
        }
    });
    let (bad, count) = (bad.into_inner(), to.saturating_sub(from));
    let took = started.elapsed().as_secs_f64();
    let per_hour = count as f64 * 3600.0 / took.max(0.001) / jobs as f64;
    say(&format!(
        "{count} seeds, {bad} failed, {took:.1} s on {jobs} threads, {per_hour:.0} seeds per thread and hour"
    ));
    bad == 0
}

/// Looks for planted faults: each has to be found within the range.
#[cfg(feature = "planted")]
fn planted(name: &str, from: u64, to: u64) -> Result<bool, String> {
    use device::planted::{ALL, select};
    let mut all = true;
    if name != "all" && !ALL.iter().any(|(of, _)| *of == name) {
        return Err(format!("no fault is called {name}"));
    }
    for (fault, what) in ALL.into_iter().filter(|(fault, _)| name == "all" || *fault == name) {
        select(Some(fault));
        let found = (from..to).map(|seed| run(&Params::of(seed), false)).find(|report| !report.wrong.is_empty());
        select(None);
        match &found {
            Some(report) => {
                let wrong = report.wrong.first().map_or("", String::as_str);
                say(&format!("{fault:24} {:>4} seeds  {what}: {wrong}", report.params.seed - from + 1));
            }
            None => say(&format!("{fault:24}  NOT FOUND {what}")),
        }
        all &= found.is_some();
    }
    Ok(all)
}

#[cfg(not(feature = "planted"))]
fn planted(_: &str, _: u64, _: u64) -> Result<bool, String> {
    Err("this build has no planted faults: build it with `--package tests --features planted`".to_owned())
}
