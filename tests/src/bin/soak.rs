//! `soak`: weeks of a simulated world, and what the engine keeps in memory, log, state and files while they pass.
//!
//! `soak --days 56 --seed 1`. Exit status: 0 all promises held, 1 one was broken, 2 wrong usage.

use std::alloc::System;
use std::io::Write;
use std::process::ExitCode;

use cap::Cap;
use tests::sim::{Fault, Life, Params, Soak, observed};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const USAGE: &str = "usage: soak [--days N] [--seed N] [--devices N] [--records N a day and device] [--no-kills]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match soak(&args) {
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

fn soak(args: &[String]) -> Result<bool, String> {
    let (mut days, mut seed, mut devices, mut records, mut kills) = (56, 1, 5, 300, true);
    let mut args = args.iter();
    while let Some(name) = args.next() {
        let target = match name.as_str() {
            "--no-kills" => {
                kills = false;
                continue;
            }
            "--days" => &mut days,
            "--seed" => &mut seed,
            "--devices" => &mut devices,
            "--records" => &mut records,
            other => return Err(format!("{other} is unknown")),
        };
        let value = args.next().ok_or_else(|| format!("{name} lacks a value"))?;
        *target = value.parse::<u64>().map_err(|_| format!("{value} is no number"))?;
    }
    let mut params = Params::of(seed);
    params.seconds = days.max(1) * 86_400;
    params.devices = devices;
    params.records = records * days.max(1);
    params.faults = Fault::ALL.into_iter().filter(|fault| kills || !fault.ends_the_engine()).collect();
    let soak = Soak::new(|| ALLOCATOR.allocated());
    let report = observed(&params, false, soak.clone());
    print(&soak);
    say(&format!("seed {seed}, {days} days: {} lines, hash {:016x}", report.lines, report.hash));
    for wrong in &report.wrong {
        say(&format!("  {wrong}"));
    }
    Ok(report.wrong.is_empty())
}

/// One line a day, then what lives held.
fn print(soak: &Soak) {
    let (looks, lives) = soak.seen();
    say(" day  life awake  files  log records  state keys  messages  p50 ms  p99 ms  max ms  real s");
    for look in &looks {
        let at = |share: f64| {
            let last = look.waits.len().saturating_sub(1);
            look.waits.get((last as f64 * share) as usize).copied().unwrap_or(0)
        };
        say(&format!(
            "{:4} {:5} {:5} {:6} {:12} {:11} {:9} {:7} {:7} {:7} {:7.2}",
            look.day,
            look.life,
            look.awake,
            look.files,
            look.log_records,
            look.state_keys,
            look.waits.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            look.took.as_secs_f64()
        ));
    }
    say("engine memory at the end of its lives, KiB:");
    let weeks = looks.last().map_or(0, |look| look.day / 7);
    for week in 0..=weeks {
        let of: Vec<&Life> = lives.iter().filter(|life| (life.day / 7.0) as i64 == week).collect();
        let mut sizes: Vec<usize> = of.iter().map(|life| life.bytes >> 10).collect();
        sizes.sort_unstable();
        if let (Some(least), Some(most)) = (sizes.first(), sizes.last()) {
            let middle = sizes.get(sizes.len() / 2).unwrap_or(most);
            say(&format!("  week {:2}: {:4} lives, least {least}, median {middle}, most {most}", week + 1, of.len()));
        }
    }
}
