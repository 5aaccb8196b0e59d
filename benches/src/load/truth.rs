//! The truth: what must be stored after a run, computed from the workload alone.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};

use serde_json::json;

use super::options::Truth;
use super::workload::device_name;

/// Writes `windows.csv`, `rows.csv` and `totals.json`.
pub(crate) fn write(options: &Truth) -> io::Result<()> {
    fs::create_dir_all(&options.out)?;
    let workload = options.content.workload();
    let width = i64::from(options.window_seconds.max(1)) * 1_000_000_000;
    let mut windows = BufWriter::new(File::create(options.out.join("windows.csv"))?);
    let mut rows = BufWriter::new(File::create(options.out.join("rows.csv"))?);
    writeln!(windows, "device,window_ns,n,min,max,avg,p95_low,p95,p95_high")?;
    writeln!(rows, "device,seq,ts_ns,temperature,humidity,vibration")?;
    let mut sums = [0u64; 3];
    let mut temperatures: Vec<u32> = Vec::new();
    for device in 0..workload.devices {
        let name = device_name("d", device);
        let mut open = None;
        for seq in 1..=workload.rounds {
            let reading = workload.reading(device, seq);
            let start = reading.ts.div_euclid(width) * width;
            if let Some(before) = open.replace(start)
                && before != start
            {
                write_window(&mut windows, &name, before, &mut temperatures)?;
            }
            temperatures.push(reading.temperature);
            for (sum, value) in sums.iter_mut().zip([reading.temperature, reading.humidity, reading.vibration]) {
                *sum += u64::from(value);
            }
            if device < options.sample {
                let [temperature, humidity, vibration] = reading.values();
                writeln!(rows, "{name},{seq},{},{temperature},{humidity},{vibration}", reading.ts)?;
            }
        }
        if let Some(start) = open {
            write_window(&mut windows, &name, start, &mut temperatures)?;
        }
    }
    let totals = json!({
        "devices": workload.devices, "rounds": workload.rounds, "epoch": workload.epoch(),
        "rows": u64::from(workload.devices) * u64::from(workload.rounds),
        "base_ns": workload.base_ns, "end_ns": workload.end_ns(), "window_ns": width,
        "sum_temperature_hundredths": sums[0], "sum_humidity_hundredths": sums[1],
        "sum_vibration_thousandths": sums[2],
    });
    fs::write(options.out.join("totals.json"), format!("{totals}\n"))?;
    windows.flush()?;
    rows.flush()
}

/// One window. The 95th percentile is exact (linear between ranks); `low` and `high` are what an approximate one
/// may be off to: the 92nd and 98th, and at least one rank to either side.
fn write_window(out: &mut impl Write, device: &str, start: i64, values: &mut Vec<u32>) -> io::Result<()> {
    values.sort_unstable();
    let n = values.len();
    let at = |index: usize| f64::from(values.get(index.min(n - 1)).copied().unwrap_or(0)) / 100.0;
    let rank = 0.95 * (n - 1) as f64;
    let below = rank.floor();
    let p95 = at(below as usize) + (at(below as usize + 1) - at(below as usize)) * (rank - below);
    let low = at((below as usize).saturating_sub(1).min((0.92 * (n - 1) as f64) as usize));
    let high = at((below as usize + 2).max((0.98 * (n - 1) as f64).ceil() as usize));
    let average = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64 / 100.0;
    writeln!(out, "{device},{start},{n},{},{},{average},{low},{p95},{high}", at(0), at(n - 1))?;
    values.clear();
    Ok(())
}
