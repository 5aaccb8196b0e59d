//! The window operator against plain DataFusion over the same rows, in one process and on one core each.
//!
//! `cargo run --release -p benches --bin window_operator -- --rows 10000000 --percentile`
//!
//! Rows are made beforehand: devices report once a second in turn, two of a hundred rows come up to five seconds late.
//! Plain DataFusion sees them as one table in memory and may aggregate them all at once. The operator gets them batch
//! by batch, with a barrier now and then at which it closes windows and, unless told otherwise, takes a checkpoint.
//! Both results are compared group by group. Whether times are good is for the reader to say: nothing is asserted
//! about them.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::compute;
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef};
use clap::Parser;
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use device::time::{SECOND, Timestamp};
use pipelines::Pipeline;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sql::SourceFile;

type Failure = Box<dyn Error>;

/// 2026-01-01
const START: i64 = 1_767_225_600 * SECOND;

#[derive(Parser)]
#[command(about = "Rows per second of the window operator and of plain DataFusion over the same rows")]
struct Args {
    /// Rows in all.
    #[arg(long, default_value_t = 10_000_000)]
    rows: usize,
    /// Devices.
    #[arg(long, default_value_t = 10_000)]
    devices: usize,
    /// Seconds from one row of a device to the next.
    #[arg(long, default_value_t = 1)]
    every: i64,
    /// Seconds that windows stay open behind their end: with 120, three are open at a time.
    #[arg(long, default_value_t = 10)]
    lateness: i64,
    /// Rows per batch, for both.
    #[arg(long, default_value_t = 8192)]
    batch: usize,
    /// Rows between barriers.
    #[arg(long, default_value_t = 1_000_000)]
    barrier: usize,
    /// Adds approx_percentile_cont(v, 0.95).
    #[arg(long)]
    percentile: bool,
    /// Adds count(DISTINCT q).
    #[arg(long)]
    distinct: bool,
    /// Adds stddev(v).
    #[arg(long)]
    stddev: bool,
    /// No checkpoint at barriers.
    #[arg(long)]
    no_checkpoint: bool,
    /// Runs of each; the fastest counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let mut columns = "avg(v) AS v_avg, min(v) AS v_min, max(v) AS v_max, count(*) AS n".to_owned();
    for (wanted, column) in [
        (args.percentile, ", approx_percentile_cont(v, 0.95) AS v_p95"),
        (args.distinct, ", count(DISTINCT q) AS q_distinct"),
        (args.stddev, ", stddev(v) AS v_stddev"),
    ] {
        if wanted {
            columns.push_str(column);
        }
    }
    let batches = generate(&args)?;
    println!("{} rows of {} devices, {columns}", args.rows, args.devices);

    let before = memory();
    let mut plain = Fastest::default();
    let mut operator = Fastest::default();
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    let mut parts = Parts::default();
    // In turn, so that neither has the warmer machine.
    for _ in 0..args.runs.max(1) {
        let started = Instant::now();
        expected = run_plain(&batches, &columns)?;
        plain.add(started.elapsed());
        let started = Instant::now();
        let (rows, own) = run_operator(&args, &batches, &columns)?;
        if operator.add(started.elapsed()) {
            parts = own;
        }
        found = rows;
    }
    let (expected, found) = (sorted(&expected)?, sorted(&found)?);
    let differences = compare(&found, &expected)?;

    let rate = |t: Duration| args.rows as f64 / t.as_secs_f64() / 1e6;
    let (plain, operator) = (plain.time(), operator.time());
    println!("plain batch DataFusion  {:8.2} M rows/s", rate(plain));
    println!(
        "window operator         {:8.2} M rows/s  ratio {:.2}",
        rate(operator),
        plain.as_secs_f64() / operator.as_secs_f64()
    );
    println!(
        "  of {:.3} s: rows {:.3}, barriers {:.3}, checkpoints {:.3} s ({} of them, largest {:.2} MB, state {:.2} MB)",
        operator.as_secs_f64(),
        parts.ingest.as_secs_f64(),
        parts.barriers.as_secs_f64(),
        parts.checkpoints.as_secs_f64(),
        parts.count,
        parts.largest as f64 / 1e6,
        parts.state as f64 / 1e6,
    );
    println!(
        "  open at most {} groups in {} windows, {:.0} bytes each",
        parts.groups,
        parts.windows,
        parts.state as f64 / parts.groups.max(1) as f64
    );
    if let (Some((rows, _)), Some((_, most))) = (before, memory()) {
        println!("  memory of the process: {rows} MB with the rows alone, {most} MB at most");
    }
    println!("groups {} and {}, late {}", found.num_rows(), expected.num_rows(), parts.late);
    for (column, difference) in differences {
        println!("  {column:12} largest relative difference {difference:.1e}");
    }
    Ok(())
}

#[derive(Default)]
struct Fastest(Option<Duration>);

impl Fastest {
    fn add(&mut self, time: Duration) -> bool {
        let better = self.0.is_none_or(|best| time < best);
        if better {
            self.0 = Some(time);
        }
        better
    }

    fn time(&self) -> Duration {
        self.0.unwrap_or_default()
    }
}

/// When row `k` comes, in nanoseconds from the first.
fn time_of(args: &Args, k: usize) -> i64 {
    let each = i128::from(args.every) * i128::from(SECOND);
    (k as i128 * each / args.devices.max(1) as i128) as i64
}

/// Memory of this process in megabytes, where the system tells it: now, and at most.
fn memory() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kb| kb / 1000)
    };
    Some((of("VmRSS:")?, of("VmHWM:")?))
}

fn schema() -> SchemaRef {
    let time = storage::schema::timestamp();
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("ts", time.clone(), false),
        Field::new("ts_ingest", time, false),
        Field::new("v", DataType::Float64, true),
        Field::new("q", DataType::Float64, true),
    ]))
}

fn generate(args: &Args) -> Result<Vec<RecordBatch>, Failure> {
    let mut random = StdRng::seed_from_u64(7);
    let names: Vec<String> = (0..args.devices).map(|i| format!("dev-{i:06}")).collect();
    let mut batches = Vec::with_capacity(args.rows / args.batch + 1);
    let mut at = 0;
    while at < args.rows {
        let count = args.batch.min(args.rows - at);
        let (mut devices, mut ts, mut ingest) = (Vec::new(), Vec::new(), Vec::new());
        let (mut v, mut q) = (Vec::new(), Vec::new());
        for k in at..at + count {
            let device = k % args.devices;
            let now = START + time_of(args, k);
            let behind = if random.random_range(0..100) < 2 { random.random_range(0..5 * SECOND) } else { 0 };
            devices.push(names.get(device).map_or("", String::as_str));
            ts.push(now - behind);
            ingest.push(now);
            v.push(20.0 + device as f64 / 1000.0 + random.random_range(0.0..5.0));
            q.push(f64::from(random.random_range(0..100)));
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(devices)),
            Arc::new(TimestampNanosecondArray::from(ts).with_timezone("UTC")),
            Arc::new(TimestampNanosecondArray::from(ingest).with_timezone("UTC")),
            Arc::new(Float64Array::from(v)),
            Arc::new(Float64Array::from(q)),
        ];
        batches.push(RecordBatch::try_new(schema(), columns)?);
        at += count;
    }
    Ok(batches)
}

fn run_plain(batches: &[RecordBatch], columns: &str) -> Result<Vec<RecordBatch>, Failure> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    context.register_table("t", Arc::new(MemTable::try_new(schema(), vec![batches.to_vec()])?))?;
    let query = format!("SELECT device, date_bin(INTERVAL '1 minute', ts) AS w, {columns} FROM t GROUP BY 1, 2");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async { context.sql(&query).await?.collect().await })?)
}

#[derive(Default)]
struct Parts {
    ingest: Duration,
    barriers: Duration,
    checkpoints: Duration,
    count: usize,
    largest: usize,
    state: usize,
    groups: usize,
    windows: usize,
    late: u64,
}

fn run_operator(args: &Args, batches: &[RecordBatch], columns: &str) -> Result<(Vec<RecordBatch>, Parts), Failure> {
    let text = format!(
        "CREATE STREAM t (v DOUBLE, q DOUBLE);
         CREATE PIPELINE p WITH (lateness = INTERVAL '{} seconds') AS
         SELECT device, tumble(ts, INTERVAL '1 minute') AS w, {columns} FROM t
         GROUP BY device, tumble(ts, INTERVAL '1 minute');",
        args.lateness
    );
    let project = sql::check(&[SourceFile { name: "bench.sql".to_owned(), text }])
        .map_err(|found| found.into_iter().map(|d| d.message).collect::<Vec<_>>().join("; "))?;
    let plan = project.pipeline("p").ok_or("the pipeline is missing")?;
    let stream = project.stream("t").ok_or("the stream is missing")?;
    let mut pipeline = Pipeline::new(plan, storage::schema::stream_schema(&stream.stream))?;

    let mut parts = Parts::default();
    let mut out = Vec::new();
    let mut since = 0;
    let mut rows = 0;
    let mut started = Instant::now();
    for (at, batch) in batches.iter().enumerate() {
        pipeline.ingest(batch)?;
        rows += batch.num_rows();
        since += batch.num_rows();
        let last = at + 1 == batches.len();
        if since < args.barrier && !last {
            continue;
        }
        since = 0;
        parts.ingest += started.elapsed();
        let mut now = START + time_of(args, rows);
        if last {
            // Long after: everything is closed.
            now += 2 * pipelines::HOLD;
        }
        let before = Instant::now();
        let closed = pipeline.barrier(Timestamp(now))?;
        parts.barriers += before.elapsed();
        let stats = pipeline.stats();
        if stats.groups >= parts.groups {
            (parts.state, parts.groups, parts.windows) = (stats.state_bytes, stats.groups, stats.open_panes);
        }
        parts.late += closed.late.iter().map(|l| l.records).sum::<u64>();
        out.extend(closed.rows);
        if !args.no_checkpoint {
            let before = Instant::now();
            parts.largest = parts.largest.max(pipeline.checkpoint()?.len());
            parts.checkpoints += before.elapsed();
            parts.count += 1;
        }
        started = Instant::now();
    }
    Ok((out, parts))
}

fn sorted(batches: &[RecordBatch]) -> Result<RecordBatch, Failure> {
    let first = batches.first().ok_or("no rows")?;
    let all = compute::concat_batches(&first.schema(), batches)?;
    let keys: Vec<_> =
        all.columns().iter().take(2).map(|c| compute::SortColumn { values: Arc::clone(c), options: None }).collect();
    Ok(compute::take_record_batch(&all, &compute::lexsort_to_indices(&keys, None)?)?)
}

/// Largest relative difference of each column; an error if the groups themselves differ.
fn compare(found: &RecordBatch, expected: &RecordBatch) -> Result<Vec<(String, f64)>, Failure> {
    if found.num_rows() != expected.num_rows() {
        return Err(format!("{} groups instead of {}", found.num_rows(), expected.num_rows()).into());
    }
    let mut out = Vec::new();
    for (at, (field, (a, b))) in
        expected.schema().fields().iter().zip(found.columns().iter().zip(expected.columns())).enumerate()
    {
        if at < 2 {
            let text = |c: &ArrayRef| compute::cast(c, &DataType::Utf8);
            if text(a)? != text(b)? {
                return Err(format!("the groups differ in {}", field.name()).into());
            }
            continue;
        }
        let (a, b) = (compute::cast(a, &DataType::Float64)?, compute::cast(b, &DataType::Float64)?);
        let (a, b) = (a.as_primitive::<Float64Type>(), b.as_primitive::<Float64Type>());
        let difference = a.iter().zip(b.iter()).map(|pair| match pair {
            (Some(a), Some(b)) => (a - b).abs() / b.abs().max(1.0),
            (None, None) => 0.0,
            _ => f64::INFINITY,
        });
        let largest = difference.fold(0.0, f64::max);
        let bound = if field.name() == "v_p95" { 0.05 } else { 1e-9 };
        if largest.is_nan() || largest > bound {
            return Err(format!("{} differs by {largest:e}", field.name()).into());
        }
        out.push((field.name().clone(), largest));
    }
    Ok(out)
}
