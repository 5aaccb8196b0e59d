//! `weir alerts replay`

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use alerts::{Difference, Incident, Rerun, compare, shown};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int64Type, SchemaRef, TimestampNanosecondType, UInt32Type, UInt64Type,
};
use device::alert::{Row, Rules, SLACK};
use device::schema::{StreamIndex, Value};
use device::time::Timestamp;
use serde::Serialize;
use sql::SourceFile;
use storage::schema::SYSTEM_COLUMNS;

use crate::cli::query::{Session, Source};
use crate::cli::{Exit, Output, print};
use crate::project;

/// Devices of one query.
const TOGETHER: usize = 64;

/// Arguments of `weir alerts replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir alerts replay alerts.sql --data weir-data --from 2026-11-20T00:00:00Z --to 2026-11-23T00:00:00Z
  weir alerts replay new.sql --against pipelines/alerts.sql --url http://127.0.0.1:8080 --device pump-7

Records are read from the tables of streams, in the order in which they were received; the rules begin with nothing at
--from. Nobody acknowledges, so ladders climb to their ends. Streams that the files do not declare are taken from the
tables. Nothing is written, and nobody is told.")]
pub(super) struct Args {
    /// The rules: a file with CREATE ALERT, or a folder.
    rules: PathBuf,
    /// Other rules, such as those of now: what RULES would do otherwise is printed, too.
    #[arg(long, value_name = "OTHER")]
    against: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    /// Only this device; may be given several times.
    #[arg(long)]
    device: Vec<String>,
    /// Only records of this time or later, RFC 3339.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only records before this time, RFC 3339.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

/// What rules did.
#[derive(Debug, Serialize)]
struct Outcome {
    devices: usize,
    records: u64,
    rules: Vec<Total>,
    incidents: Vec<Incident>,
    #[serde(skip_serializing_if = "Option::is_none")]
    differences: Option<Vec<Difference>>,
}

/// What one rule did.
#[derive(Debug, Serialize)]
struct Total {
    rule: String,
    incidents: usize,
    devices: usize,
    /// How often somebody would have been told.
    told: usize,
}

pub(super) async fn main(args: &Args) -> Result<(), Exit> {
    let span = Span::of(args)?;
    let session = args.source.open()?;
    let (devices, records, incidents) = run(&session, &args.rules, &span).await?;
    let differences = match &args.against {
        None => None,
        Some(other) => Some(compare(&incidents, &run(&session, other, &span).await?.2)),
    };
    let mut rules: BTreeMap<&str, (usize, BTreeSet<&str>, usize)> = BTreeMap::new();
    for incident in &incidents {
        let total = rules.entry(&incident.rule).or_default();
        total.0 += 1;
        total.1.insert(&incident.device);
        total.2 += incident.told.len();
    }
    let rules = rules.into_iter().map(|(rule, (incidents, devices, told))| Total {
        rule: rule.to_owned(),
        incidents,
        devices: devices.len(),
        told,
    });
    let outcome = Outcome { devices, records, rules: rules.collect(), incidents, differences };
    match args.format {
        Output::Json => print(&format!("{}\n", serde_json::to_string(&outcome).map_err(Exit::failed)?)),
        Output::Text => print(&text(&outcome)),
    }
}

/// Which records.
struct Span {
    devices: Vec<String>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
}

impl Span {
    fn of(args: &Args) -> Result<Self, Exit> {
        let time = |flag: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => device::payload::parse_rfc3339(text)
                .map(Some)
                .map_err(|e| Exit::Usage(format!("{flag} {text}: {e}; write 2026-11-23T10:00:00Z"))),
        };
        let (from, to) = (time("--from", &args.from)?, time("--to", &args.to)?);
        if let (Some(from), Some(to)) = (from, to)
            && to <= from
        {
            return Err(Exit::Usage("--to has to be later than --from".to_owned()));
        }
        Ok(Self { devices: args.device.clone(), from, to })
    }

    /// A condition on rows, of these devices or all.
    fn filter(&self, devices: &[String]) -> String {
        let mut all = Vec::new();
        if !devices.is_empty() {
            let devices: Vec<String> = devices.iter().map(|device| quoted(device, '\'')).collect();
            all.push(format!("device IN ({})", devices.join(", ")));
        }
        all.extend(self.from.map(|from| format!("ts >= to_timestamp_nanos({})", from.0)));
        all.extend(self.to.map(|to| format!("ts < to_timestamp_nanos({})", to.0)));
        if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) }
    }
}

fn quoted(text: &str, quote: char) -> String {
    format!("{quote}{}{quote}", text.replace(quote, &format!("{quote}{quote}")))
}

/// Runs the rules of a file or folder: how many devices and records there were, and what came of them.
async fn run(session: &Session, path: &Path, span: &Span) -> Result<(usize, u64, Vec<Incident>), Exit> {
    let rules = rules(session, path).await?;
    if rules.is_empty() {
        return Err(Exit::Usage(format!("{}: there is no CREATE ALERT in it", path.display())));
    }
    let streams: BTreeSet<StreamIndex> = rules.all().iter().map(|rule| rule.stream).collect();
    let (mut seen, mut records, mut incidents) = (BTreeSet::new(), 0, Vec::new());
    for stream in streams {
        let table = Table::new(session, &rules, stream).await?;
        let name = &table.name;
        let bounds = format!("SELECT max(ts_ingest) AS ts_ingest FROM {name}{}", span.filter(&span.devices));
        let end =
            session.run(&bounds).await?.batches.iter().flat_map(|batch| times(batch, "ts_ingest")).flatten().max();
        // The last records wait for later ones for so long.
        let end = Timestamp(end.unwrap_or(0)).plus(SLACK).max(span.to.unwrap_or_default());
        let list = format!("SELECT DISTINCT device FROM {name}{} ORDER BY device", span.filter(&span.devices));
        let devices = texts(&session.run(&list).await?.batches)?;
        for some in devices.chunks(TOGETHER) {
            let sql = format!(
                "SELECT device, ts, ts_ingest, flags{} FROM {name}{} ORDER BY device, ts_ingest, epoch, seq",
                table.columns.iter().map(|(_, column)| format!(", {}", quoted(column, '"'))).collect::<String>(),
                span.filter(some)
            );
            let rows = session.run(&sql).await?;
            records += rows.batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
            incidents.extend(table.incidents(&rules, &rows.batches, span.from, end)?);
        }
        seen.extend(devices);
    }
    incidents.sort_by(|a, b| (a.since, &a.rule, &a.device).cmp(&(b.since, &b.rule, &b.device)));
    Ok((seen.len(), records, incidents))
}

/// The rules of a file or folder. Streams that it does not declare are those of the tables.
async fn rules(session: &Session, path: &Path) -> Result<Rules, Exit> {
    let mut files = sql::load(&[path.to_owned()]).map_err(|error| Exit::Usage(error.to_string()))?;
    let words = regex::Regex::new(
        r#"(?i)\bcreate\s+(alert\s+"?[\w-]+"?\s+on|stream(?:\s+if\s+not\s+exists)?)\s+("[^"]+"|\w+)"#,
    );
    let words = words.map_err(Exit::failed)?;
    let (mut wanted, mut declared) = (BTreeSet::new(), BTreeSet::new());
    for file in &files {
        for found in words.captures_iter(&file.text) {
            let (Some(what), Some(name)) = (found.get(1), found.get(2)) else { continue };
            let name = match name.as_str().strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
                Some(quoted) => quoted.to_owned(),
                None => name.as_str().to_ascii_lowercase(),
            };
            let is_stream = what.as_str().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("stream"));
            if is_stream {
                declared.insert(name)
            } else {
                wanted.insert(name)
            };
        }
    }
    let mut text = String::new();
    for name in wanted.difference(&declared) {
        if let Ok(table) = session.run(&format!("SELECT * FROM {} LIMIT 0", quoted(name, '"'))).await {
            text.push_str(&declaration(name, &table.schema));
        }
    }
    if !text.is_empty() {
        files.push(SourceFile { name: "(tables)".to_owned(), text });
    }
    let project = project::check(files).map_err(|error| Exit::Failed(error.to_string()))?.project;
    Ok(project.rules())
}

/// A table as the stream that it comes from.
fn declaration(name: &str, schema: &SchemaRef) -> String {
    let system = |name: &str| SYSTEM_COLUMNS.contains(&name) || sql::PARTITION_COLUMNS.contains(&name);
    let columns = schema.fields().iter().filter(|field| !system(field.name())).filter_map(|field| {
        let kind = match field.data_type() {
            DataType::Boolean => "BOOLEAN",
            DataType::Int64 => "BIGINT",
            DataType::UInt64 => "BIGINT UNSIGNED",
            DataType::Float32 => "REAL",
            DataType::Float64 => "DOUBLE",
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "TEXT",
            _ => return None,
        };
        let unit = field.metadata().get("unit");
        let unit = unit.map_or(String::new(), |unit| format!(" OPTIONS (unit = {})", quoted(unit, '\'')));
        Some(format!("{} {kind}{unit}", quoted(field.name(), '"')))
    });
    format!("CREATE STREAM {} ({});\n", quoted(name, '"'), columns.collect::<Vec<_>>().join(", "))
}

/// The table of a stream.
struct Table {
    name: String,
    stream: StreamIndex,
    /// Fields that rules read and that the table has, by index.
    columns: Vec<(u16, String)>,
}

impl Table {
    async fn new(session: &Session, rules: &Rules, stream: StreamIndex) -> Result<Self, Exit> {
        let Some(decl) = rules.catalog().stream(stream) else { return Err(Exit::Failed("no such stream".to_owned())) };
        let name = quoted(&decl.name, '"');
        let schema = session.run(&format!("SELECT * FROM {name} LIMIT 0")).await?.schema;
        if let Some(missing) = SYSTEM_COLUMNS.iter().find(|column| schema.field_with_name(column).is_err()) {
            return Err(Exit::Failed(format!("{name} is no stream: it has no column `{missing}`")));
        }
        let mut columns = Vec::new();
        for field in rules.fields(stream) {
            let Some(of) = decl.fields.get(usize::from(field)) else { continue };
            match schema.field_with_name(&of.name) {
                Ok(_) => columns.push((field, of.name.to_string())),
                Err(_) => eprintln!("warning: the table {name} has no column `{}`: it counts as null", of.name),
            }
        }
        Ok(Self { name, stream, columns })
    }

    /// The incidents of rows that are sorted by device and time of receipt.
    fn incidents(
        &self,
        rules: &Rules,
        batches: &[RecordBatch],
        from: Option<Timestamp>,
        end: Timestamp,
    ) -> Result<Vec<Incident>, Exit> {
        let mut all = Vec::new();
        let names = texts(batches)?;
        let mut names = names.iter().map(String::as_str);
        let mut device_of_run = "";
        let mut rerun: Option<Rerun<'_>> = None;
        for batch in batches {
            let columns = self.columns.iter().map(|(field, name)| Ok((*field, column(batch, name)?)));
            let columns: Vec<(u16, arrow::array::ArrayRef)> = columns.collect::<Result<_, Exit>>()?;
            let (ts, received) = (times(batch, "ts"), times(batch, "ts_ingest"));
            let flags = column(batch, "flags")?;
            let flags = flags.as_primitive_opt::<UInt32Type>();
            for row in 0..batch.num_rows() {
                let (Some(device), Some(Some(ts)), Some(Some(received))) =
                    (names.next(), ts.get(row), received.get(row))
                else {
                    continue;
                };
                if device != device_of_run
                    && let Some(done) = rerun.take()
                {
                    all.extend(Incident::all(device_of_run, &done.end(end), rules));
                }
                device_of_run = device;
                let received = Timestamp(*received);
                let rerun =
                    rerun.get_or_insert_with(|| Rerun::new(rules, device, from.unwrap_or(received).min(received)));
                let values: Vec<(u16, Value<'_>)> =
                    columns.iter().filter_map(|(field, array)| Some((*field, value(array, row)?))).collect();
                let flags = flags.map_or(0, |flags| flags.value(row));
                rerun.row(received, &Row { stream: self.stream, ts: Timestamp(*ts), flags, values: &values });
            }
        }
        if let Some(done) = rerun {
            all.extend(Incident::all(device_of_run, &done.end(end), rules));
        }
        Ok(all)
    }
}

/// A column; texts in one of their representations.
fn column(batch: &RecordBatch, name: &str) -> Result<arrow::array::ArrayRef, Exit> {
    let array = batch.column_by_name(name).ok_or_else(|| Exit::Failed(format!("there is no column `{name}`")))?;
    match array.data_type() {
        DataType::Utf8View | DataType::LargeUtf8 => arrow::compute::cast(array, &DataType::Utf8).map_err(Exit::failed),
        _ => Ok(array.clone()),
    }
}

fn value(array: &dyn Array, row: usize) -> Option<Value<'_>> {
    if array.is_null(row) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Boolean => Value::Bool(array.as_boolean_opt()?.value(row)),
        DataType::Int64 => Value::I64(array.as_primitive_opt::<Int64Type>()?.value(row)),
        DataType::UInt64 => Value::U64(array.as_primitive_opt::<UInt64Type>()?.value(row)),
        DataType::Float32 => Value::F32(array.as_primitive_opt::<Float32Type>()?.value(row)),
        DataType::Float64 => Value::F64(array.as_primitive_opt::<Float64Type>()?.value(row)),
        DataType::Utf8 => Value::Text(array.as_string_opt::<i32>()?.value(row)),
        _ => return None,
    })
}

fn times(batch: &RecordBatch, name: &str) -> Vec<Option<i64>> {
    let array = batch.column_by_name(name).and_then(|array| array.as_primitive_opt::<TimestampNanosecondType>());
    array.map_or_else(Vec::new, |array| array.iter().collect())
}

/// The column `device` of all rows.
fn texts(batches: &[RecordBatch]) -> Result<Vec<String>, Exit> {
    let mut all = Vec::new();
    for batch in batches {
        let array = column(batch, "device")?;
        let Some(array) = array.as_string_opt::<i32>() else {
            return Err(Exit::Failed("`device` is no text".to_owned()));
        };
        all.extend(array.iter().map(|text| text.unwrap_or_default().to_owned()));
    }
    Ok(all)
}

fn text(outcome: &Outcome) -> String {
    let Outcome { devices, records, rules, incidents, differences } = outcome;
    let mut text = format!("{records} records of {devices} devices\n");
    if rules.is_empty() {
        text.push_str("no incidents\n");
    }
    for total in rules {
        let Total { rule, incidents, devices, told } = total;
        text.push_str(&format!(
            "{rule}: {incidents} incidents of {devices} devices, somebody would have been told {told} times\n"
        ));
    }
    match differences {
        None => {
            for incident in incidents {
                text.push_str(&format!("  {}\n", line(incident)));
            }
        }
        Some(differences) => {
            text.push_str(&format!("{} differences\n", differences.len()));
            for difference in differences {
                match difference {
                    Difference::Added { incident } => text.push_str(&format!("+ {}\n", line(incident))),
                    Difference::Removed { incident } => text.push_str(&format!("- {}\n", line(incident))),
                    Difference::Changed { incident, before, what } => {
                        let what = what.join(", ");
                        text.push_str(&format!("~ {} ({what})\n  was {}\n", line(incident), line(before)));
                    }
                }
            }
        }
    }
    text
}

fn line(incident: &Incident) -> String {
    let Incident { rule, device, severity, since, until, value, told, backfilled, .. } = incident;
    let until = until.map_or_else(|| "still".to_owned(), shown);
    let value = value.map_or(String::new(), |value| format!(" value {value}"));
    let told = if told.is_empty() { String::new() } else { format!(" tells {}", told.join(", ")) };
    let old = if *backfilled { " from old samples" } else { "" };
    format!("{} to {until}  {rule} of {device}  {severity}{value}{told}{old}", shown(*since))
}
