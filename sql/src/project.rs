//! What a checked project consists of. Values only: whoever runs them is elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::logical_expr::LogicalPlan;
use device::alert::{Rule, Rules};
use device::schema::{Catalog, DEFAULT_STREAM, SchemaVersion, Stream};

use crate::diagnostic::{Diagnostic, Span};
use crate::fingerprint::{self, Fingerprint};

/// How long after the end of a window its rows may still come, unless a file says otherwise: 30 seconds.
pub const DEFAULT_LATENESS_NS: i64 = 30_000_000_000;

/// How long a partition of a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// `date=YYYY-MM-DD/hour=HH`
    Hour,
    /// `date=YYYY-MM-DD`
    Day,
}

impl Granularity {
    /// As it is written in `WITH (partition = '..')`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }
}

/// What is declared of a field beyond what devices and tables need.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldFacts {
    /// What an `ENUM` may be; empty: any text. Devices are not held to it.
    pub symbols: Vec<String>,
    /// Lowest and highest value that make sense. Devices are not held to it.
    pub range: Option<(f64, f64)>,
    /// Place of its name.
    pub at: Span,
}

/// A stream: what devices send, and how long it is kept.
#[derive(Debug, Clone)]
pub struct StreamDecl {
    /// Name of its table, fields, ids and version.
    pub stream: Stream,
    /// What it is called in its statement. The table of the lowest major version has this name, that of another one
    /// the version behind it: `telemetry_v2`.
    pub base: String,
    /// More of each of its fields.
    pub facts: Vec<FieldFacts>,
    /// Where its version is written.
    pub version_at: Option<Span>,
    /// What a pipeline over this stream takes as its lateness if it gives none.
    pub lateness_ns: i64,
    /// How long rows are kept; `None`: for ever.
    pub retain_ns: Option<i64>,
    /// How long after its end a partition is cold, so that its files are merged; `None`: they never are.
    pub compact_ns: Option<i64>,
    /// How its table is partitioned.
    pub partition: Granularity,
    /// Text for people.
    pub comment: Option<String>,
    /// File and place of its name; `None` for [`DEFAULT_STREAM`] when no file declares it.
    pub at: Option<(String, Span)>,
}

impl StreamDecl {
    /// The stream that exists even if no file declares it.
    pub(crate) fn undeclared(schema_id: Option<u32>) -> Self {
        Self {
            stream: Stream {
                name: DEFAULT_STREAM.into(),
                schema_id,
                version: SchemaVersion { major: 1, minor: 0 },
                fields: Vec::new(),
            },
            base: DEFAULT_STREAM.to_owned(),
            facts: Vec::new(),
            version_at: None,
            lateness_ns: DEFAULT_LATENESS_NS,
            retain_ns: None,
            compact_ns: None,
            partition: Granularity::Hour,
            comment: None,
            at: None,
        }
    }
}

/// A reference table: rows that pipelines look up by key.
#[derive(Debug, Clone)]
pub struct TableDecl {
    /// Its name.
    pub name: String,
    /// Its columns, all nullable; metadata `unit` and `description` where they are known.
    pub schema: SchemaRef,
    /// The columns that together name one row.
    pub key: Vec<String>,
    /// Where the rows stand: a path, relative to the folder of the file that declares it, or the URL of an object.
    pub location: String,
    /// Text for people.
    pub comment: Option<String>,
    /// File and place of its name.
    pub at: (String, Span),
    /// Where the location is written.
    pub location_at: Span,
    /// Its rows; none until [`Project::set_rows`] has brought them.
    pub rows: RecordBatch,
}

/// What holds the rows of a reference table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A file of this machine.
    File(PathBuf),
    /// An object, by its URL.
    Object(String),
}

impl TableDecl {
    /// What holds its rows.
    pub fn place(&self) -> Place {
        if storage::object::is_url(&self.location) {
            return Place::Object(self.location.clone());
        }
        Place::File(Path::new(&self.at.0).parent().unwrap_or(Path::new("")).join(&self.location))
    }
}

/// A reference table that the rows of a stream are looked up in, before anything else is computed of them.
///
/// The query knows what it found as further columns of its source.
#[derive(Debug, Clone)]
pub struct Join {
    /// Name of the table.
    pub table: String,
    /// The table's key, by which rows are found.
    pub key: Vec<String>,
    /// For each column of the key: the column of the source that is compared with it, and its name.
    pub on: Vec<(String, String)>,
    /// The columns it adds: their names in the source, and in the table. Null where no row was found.
    pub columns: Vec<(String, String)>,
    /// The column it adds that says whether a row was found; the query keeps only those. `None`: `LEFT JOIN`.
    pub matched: Option<String>,
    /// The rows of the table.
    pub rows: RecordBatch,
}

/// What a pipeline reads.
#[derive(Debug, Clone)]
pub struct Reads {
    /// Whether it is the table of a pipeline, rather than a stream.
    pub pipeline: bool,
    /// Its columns, before those that joins add.
    pub columns: SchemaRef,
    /// The column that holds the time of a row: `ts` of a stream, the window start or the like of a pipeline.
    pub time: String,
    /// The column that holds the device. `None`: a pipeline whose rows are of no device.
    pub device: Option<String>,
}

/// A second stream whose rows are joined to those of the first: of one device, and with a `ts` that is no less than
/// `lower_ns` and no more than `upper_ns` after that of the first.
///
/// The query knows both streams' columns, and what they are looked up in, as columns of one source. A joined row has
/// the first one's `device` and `ts`.
#[derive(Debug, Clone)]
pub struct StreamJoin {
    /// Name of the second stream. May be the first one's.
    pub source: String,
    /// Its columns: those of `storage::schema::stream_schema`.
    pub schema: SchemaRef,
    /// The least of its `ts` less the first one's, in nanoseconds.
    pub lower_ns: i64,
    /// The greatest, not below `lower_ns`.
    pub upper_ns: i64,
    /// `LEFT JOIN`: a row of the first that finds none is given with NULL for all columns of the second.
    pub outer: bool,
    /// The columns of the second that the query uses: their names in the source, and in the stream. In the source
    /// they stand behind the columns of the first stream.
    pub columns: Vec<(String, String)>,
    /// Which of [`PipelinePlan::joins`] rows of the second are looked up in, before they are joined; those of the
    /// first in all others. The columns that these add stand behind both streams', in the order of the joins.
    pub lookups: Vec<usize>,
    /// What rows of the first must fulfil to count at all: a plan over the same scan as [`PipelinePlan::logical`],
    /// with one boolean column. The same holds for the next two.
    pub first_filter: Option<LogicalPlan>,
    /// What rows of the second must fulfil.
    pub second_filter: Option<LogicalPlan>,
    /// What two rows must fulfil to match, besides device and time. Only `LEFT JOIN` has it; else it is part of the
    /// query.
    pub condition: Option<LogicalPlan>,
}

/// How windows follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `tumble(ts, size)`: windows of one size, one after the other, aligned to the Unix epoch. The window of `ts`
    /// is `[s, s + size)` with `s` = `ts` rounded down to a multiple of `size` (towards the past also before 1970).
    Tumble,
    /// `hop(ts, slide, size)`: windows `[s, s + size)` for each multiple `s` of `slide_ns`, which is positive and at
    /// most the size. A record belongs to all that hold its `ts`.
    Hop {
        /// From one start to the next, in nanoseconds.
        slide_ns: i64,
    },
    /// `session(ts, gap)`: the records of a group, each less than `gap` after the one before it. The window is
    /// `[first, last + gap)`.
    Session,
}

impl Kind {
    /// Length of the panes that windows of `size_ns` nanoseconds consist of, in nanoseconds.
    pub fn pane_ns(self, size_ns: i64) -> i64 {
        let Self::Hop { slide_ns } = self else { return size_ns.max(1) };
        let (mut a, mut b) = (slide_ns.max(1), size_ns.max(1));
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    }
}

/// The window of a pipeline, and how to find it in the plan.
///
/// In the query `tumble(ts, INTERVAL ..)` has become `date_bin(INTERVAL .., ts)`; `hop(..)` and `session(..)` have
/// become calls of functions of these names, which give the start of the record's pane and `ts` itself.
/// `window_end()` has become the window plus its length, for sessions `max(ts)` plus the gap. A windowed plan has
/// exactly one aggregate. Planned with [`crate::session_state_for`], the output schema of that `AggregateExec` has
/// the group columns first; among them are one named [`Window::group`] and one named [`Window::device`]. The check
/// has seen this to be so. Their positions may differ from those in `GROUP BY`: look them up by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Length in nanoseconds, positive; of sessions, the gap that ends them.
    pub size_ns: i64,
    /// How windows follow each other.
    pub kind: Kind,
    /// Name of the window start among the group columns of the physical aggregate.
    pub group: String,
    /// Name of the device among the group columns of the physical aggregate. `None`: a group has rows of many devices,
    /// and of all shards.
    pub device: Option<String>,
}

/// A continuous query, checked and planned.
#[derive(Debug, Clone)]
pub struct PipelinePlan {
    /// Name of the pipeline and of its table.
    pub name: String,
    /// Name of the stream or pipeline it reads.
    pub source: String,
    /// What that is.
    pub reads: Reads,
    /// How long after the end of a window, or after the rows that they may be joined to, rows may still come. Without
    /// meaning if there is neither a window nor a second stream.
    pub lateness_ns: i64,
    /// How long results are kept; `None`: for ever.
    pub retain_ns: Option<i64>,
    /// How long after its end a partition of results is cold, so that its files are merged; `None`: they never are.
    pub compact_ns: Option<i64>,
    /// How the table of results is partitioned.
    pub partition: Granularity,
    /// Text for people.
    pub comment: Option<String>,
    /// The query without comments and in one spelling of spaces and keywords.
    pub query: String,
    /// Changes when results may have changed: by the query, the types and units of the columns it reads, the
    /// lateness, the partitioning. Stays the same under comments, spaces, retention and columns it does not read.
    pub fingerprint: u64,
    /// Tables that rows are looked up in, in this order.
    pub joins: Vec<Join>,
    /// A second stream whose rows are joined to those of [`PipelinePlan::source`].
    pub stream_join: Option<StreamJoin>,
    /// The query over a scan of [`PipelinePlan::source`], whose columns are [`Reads::columns`],
    /// then those that a second stream and the joins add; planned by DataFusion, neither analyzed nor optimized. The provider behind
    /// the scan is unbounded and has no rows: replace it, or the leaf of the physical plan, to run the query.
    pub logical: LogicalPlan,
    /// `None`: rows are filtered and projected one by one.
    pub window: Option<Window>,
    /// Names and types of the result, as the physical plan gives them. The only metadata are `unit` and
    /// `description` where they are known; batches of the plan do not carry them by themselves.
    pub output: SchemaRef,
    /// The column of `output` that files are partitioned by: the window start, or the event time `ts`.
    pub time_column: String,
    /// The column of `output` that holds the device. Always there if windows are grouped by it.
    pub device_column: Option<String>,
    /// File and place of its name.
    pub at: (String, Span),
}

/// An alert, checked.
#[derive(Debug, Clone)]
pub struct AlertPlan {
    /// What it does with the records of a device.
    pub rule: Rule,
    /// Name of the stream it looks at.
    pub source: String,
    /// What it says about readings, in one spelling.
    pub query: String,
    /// The names by whose values its incidents are told of together; none: each is told of by itself.
    pub group_by: Vec<String>,
    /// Text for people.
    pub comment: Option<String>,
    /// File and place of its name.
    pub at: (String, Span),
}

/// All streams, tables, pipelines and alerts of some files that fit together.
#[derive(Debug, Clone)]
pub struct Project {
    /// All streams in the order of [`Project::catalog`]: [`DEFAULT_STREAM`] is always there and always first.
    pub streams: Vec<StreamDecl>,
    /// All reference tables, by file and line.
    pub tables: Vec<TableDecl>,
    /// All pipelines. One that reads another stands behind it; else by file and line.
    pub pipelines: Vec<PipelinePlan>,
    /// All alerts, by file and line.
    pub alerts: Vec<AlertPlan>,
    /// What can run but is probably not meant.
    pub warnings: Vec<Diagnostic>,
}

impl PipelinePlan {
    /// Whether its groups have rows of many devices, and so of all shards.
    pub fn is_shared(&self) -> bool {
        self.window.as_ref().is_some_and(|window| window.device.is_none())
    }
}

impl Project {
    /// A project without files: the stream `telemetry` without fields.
    pub fn empty() -> Self {
        let streams = vec![StreamDecl::undeclared(Some(1))];
        Self { streams, tables: Vec::new(), pipelines: Vec::new(), alerts: Vec::new(), warnings: Vec::new() }
    }

    /// The streams as devices and tables need them. Indexes are those of [`Project::streams`].
    pub fn catalog(&self) -> Catalog {
        Catalog::new(self.streams.iter().map(|s| s.stream.clone()).collect())
    }

    /// The stream of that name.
    pub fn stream(&self, name: &str) -> Option<&StreamDecl> {
        self.streams.iter().find(|s| &*s.stream.name == name)
    }

    /// The streams that have several major versions: the common name, and the tables from the lowest version on.
    pub fn majors(&self) -> Vec<(&str, Vec<(u16, &str)>)> {
        let mut all: BTreeMap<&str, Vec<(u16, &str)>> = BTreeMap::new();
        for decl in &self.streams {
            all.entry(&decl.base).or_default().push((decl.stream.version.major, &decl.stream.name));
        }
        all.values_mut().for_each(|tables| tables.sort_unstable());
        all.into_iter().filter(|(_, tables)| tables.len() > 1).collect()
    }

    /// Gives a reference table its rows, with the columns of its declaration.
    pub fn set_rows(&mut self, table: &str, rows: &RecordBatch) {
        for decl in self.tables.iter_mut().filter(|decl| decl.name == table) {
            decl.rows = rows.clone();
        }
        let joins = self.pipelines.iter_mut().flat_map(|plan| &mut plan.joins);
        for join in joins.filter(|join| join.table == table) {
            join.rows = rows.clone();
        }
    }

    /// The pipeline of that name.
    pub fn pipeline(&self, name: &str) -> Option<&PipelinePlan> {
        self.pipelines.iter().find(|p| p.name == name)
    }

    /// How many pipelines that `counts` stand in a chain at most, each reading the one before it.
    pub fn depth(&self, counts: impl Fn(&PipelinePlan) -> bool) -> usize {
        let mut depths: HashMap<&str, usize> = HashMap::new();
        for plan in &self.pipelines {
            let below = depths.get(plan.source.as_str()).copied().unwrap_or(0);
            depths.insert(&plan.name, below + usize::from(counts(plan)));
        }
        depths.into_values().max().unwrap_or(0)
    }

    /// The alerts as each device evaluates them.
    pub fn rules(&self) -> Rules {
        if self.alerts.is_empty() {
            return Rules::default();
        }
        let mut print = Fingerprint::new();
        let rules: Vec<Rule> = self.alerts.iter().map(|plan| plan.rule.clone()).collect();
        for rule in &rules {
            print.text(&rule.name).number(rule.version as i64).text(&format!("{:?}", rule.ladder));
            // Where its fields stand: lanes hold no field, but rules do.
            print.text(&format!("{:?}", rule.levels)).number(i64::from(rule.stream));
        }
        Rules::new(print.end(), rules, Arc::new(self.catalog()))
    }

    /// By alert: the names by whose values its incidents are told of together; those that are told of by themselves are
    /// not among them.
    pub fn groups(&self) -> BTreeMap<String, Vec<String>> {
        let grouped = self.alerts.iter().filter(|plan| !plan.group_by.is_empty());
        grouped.map(|plan| (plan.rule.name.to_string(), plan.group_by.clone())).collect()
    }

    /// The alert of that name.
    pub fn alert(&self, name: &str) -> Option<&AlertPlan> {
        self.alerts.iter().find(|plan| &*plan.rule.name == name)
    }

    /// Changes with anything an engine may act on, retention and comments included; not with spaces, SQL comments,
    /// or how statements are spread over files.
    pub fn fingerprint(&self) -> u64 {
        let mut print = Fingerprint::new();
        let mut streams: Vec<&StreamDecl> = self.streams.iter().collect();
        streams.sort_by(|a, b| a.stream.name.cmp(&b.stream.name));
        for decl in streams {
            print.text("stream").text(&decl.stream.name).optional(decl.stream.schema_id.map(i64::from));
            print.number(i64::from(decl.stream.version.major)).number(i64::from(decl.stream.version.minor));
            for field in &decl.stream.fields {
                print.text(&field.name).number(i64::from(field.id)).text(&format!("{:?}", field.kind));
                print.text(field.unit.as_deref().unwrap_or("")).number(i64::from(field.scale));
                print.text(field.comment.as_deref().unwrap_or(""));
            }
            for facts in &decl.facts {
                for symbol in &facts.symbols {
                    print.text("symbol").text(symbol);
                }
                if let Some((from, to)) = facts.range {
                    print.text("range").text(&format!("{from}..{to}"));
                }
            }
            if *decl.base != *decl.stream.name {
                print.text("major").text(&decl.base);
            }
            print.number(decl.lateness_ns).optional(decl.retain_ns).text(decl.partition.as_str());
            print.text(decl.comment.as_deref().unwrap_or(""));
            compacted(&mut print, decl.compact_ns);
        }
        let mut tables: Vec<&TableDecl> = self.tables.iter().collect();
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        for decl in tables {
            print.text("table").text(&decl.name).text(&format!("{:?}", decl.key)).text(&decl.location);
            print.text(&format!("{:?}", decl.schema)).text(decl.comment.as_deref().unwrap_or(""));
            print.number(fingerprint::of_rows(&decl.rows) as i64);
        }
        let mut pipelines: Vec<&PipelinePlan> = self.pipelines.iter().collect();
        pipelines.sort_by(|a, b| a.name.cmp(&b.name));
        for plan in pipelines {
            print.text("pipeline").text(&plan.name).number(plan.fingerprint as i64).optional(plan.retain_ns);
            print.text(plan.comment.as_deref().unwrap_or(""));
            compacted(&mut print, plan.compact_ns);
        }
        let mut alerts: Vec<&AlertPlan> = self.alerts.iter().collect();
        alerts.sort_by(|a, b| a.rule.name.cmp(&b.rule.name));
        for plan in alerts {
            print.text("alert").text(&plan.rule.name).number(plan.rule.version as i64);
            print.text(&format!("{:?}", plan.rule.ladder)).text(plan.comment.as_deref().unwrap_or(""));
            for name in &plan.group_by {
                print.text("group by").text(name);
            }
        }
        print.end()
    }
}

/// Says nothing where there is nothing: projects written before there was the option keep their fingerprint.
fn compacted(print: &mut Fingerprint, compact_ns: Option<i64>) {
    if let Some(ns) = compact_ns {
        print.text("compact").number(ns);
    }
}
