//! A project as people and programs see it from outside, and what going from one version to another does.

use arrow::datatypes::Schema;
use serde::{Deserialize, Serialize};
use sql::{AlertPlan, Kind, Known, PipelinePlan, Project, StreamDecl, StreamJoin, duration};

use crate::housekeeping::Drops;

/// A version of a project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// Changes with anything an engine acts on.
    pub version: String,
    /// What devices send.
    pub streams: Vec<Table>,
    /// Reference tables.
    pub tables: Vec<Table>,
    /// Continuous queries.
    pub pipelines: Vec<Pipeline>,
    /// What its data directory knows of streams, declared or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<Known>,
    /// Alerts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alerts: Vec<Alert>,
}

/// An alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Its name.
    pub name: String,
    /// Changes when readings may mean something else.
    pub version: String,
    /// The stream it looks at.
    pub source: String,
    /// Its severities, lowest first.
    pub severities: Vec<String>,
    /// What raises and clears it.
    pub query: String,
    /// Who is told, and when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub escalate: Vec<String>,
    /// What travels with each incident, as `name=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// By which names its incidents are told of together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group_by: Vec<String>,
    /// Text for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// File and line of its statement.
    pub at: String,
}

/// A stream or a reference table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Of a stream, changes with what devices and their rows stand on; of a reference table, with its columns and rows.
    pub version: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Rows, of a reference table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// How long the rows of a stream are kept, in nanoseconds; none: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_ns: Option<i64>,
    /// How long after its end a partition of a stream is cold, so that its files are merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compact_ns: Option<i64>,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its Arrow type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its unit, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// A continuous query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipeline {
    /// Name of the pipeline and of its table.
    pub name: String,
    /// Changes when results may have changed.
    pub version: String,
    /// The stream it reads.
    pub source: String,
    /// The stream that is joined to it, and how far apart in time two rows may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_join: Option<String>,
    /// Reference tables it joins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joins: Vec<String>,
    /// Its windows; none: row by row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// How long after the end of a window rows may come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lateness: Option<String>,
    /// How long a partition is.
    pub partition: String,
    /// How long results are kept, in nanoseconds; none: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_ns: Option<i64>,
    /// How long after its end a partition is cold, so that its files are merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compact_ns: Option<i64>,
    /// Columns of its table.
    pub columns: Vec<Column>,
    /// File and line of its statement.
    pub at: String,
    /// The query.
    pub query: String,
}

fn columns(schema: &Schema) -> Vec<Column> {
    let column = |field: &arrow::datatypes::FieldRef| Column {
        name: field.name().clone(),
        kind: field.data_type().to_string(),
        unit: field.metadata().get("unit").cloned(),
    };
    schema.fields().iter().map(column).collect()
}

impl Overview {
    /// Of a checked project.
    pub fn of(project: &Project) -> Self {
        let hex = |number: u64| format!("{number:016x}");
        Self {
            version: hex(project.fingerprint()),
            streams: project
                .streams
                .iter()
                .map(|decl| {
                    // What devices and gateway stand on; lateness, retention and partition can change meanwhile.
                    let StreamDecl { stream, at, .. } = decl.clone();
                    let plain = Project::empty().streams.into_iter().next();
                    let plain = plain.map(|plain| StreamDecl { stream, at, ..plain });
                    let alone = Project { streams: plain.into_iter().collect(), ..Project::empty() };
                    let schema = storage::schema::stream_schema(&decl.stream);
                    let name = decl.stream.name.to_string();
                    let (retain_ns, compact_ns) = (decl.retain_ns, decl.compact_ns);
                    let (version, columns) = (hex(alone.fingerprint()), columns(&schema));
                    Table { name, version, columns, rows: None, retain_ns, compact_ns }
                })
                .collect(),
            tables: project
                .tables
                .iter()
                .map(|decl| {
                    let alone = Project { tables: vec![decl.clone()], ..Project::empty() };
                    let rows = Some(decl.rows.num_rows());
                    let version = hex(alone.fingerprint());
                    let (name, columns) = (decl.name.clone(), columns(&decl.schema));
                    Table { name, version, columns, rows, retain_ns: None, compact_ns: None }
                })
                .collect(),
            pipelines: project.pipelines.iter().map(Pipeline::of).collect(),
            alerts: project.alerts.iter().map(Alert::of).collect(),
            schemas: Vec::new(),
        }
    }

    /// With what its data directory knows of streams.
    pub fn knowing(self, schemas: Vec<Known>) -> Self {
        Self { schemas, ..self }
    }

    /// The alert of that name.
    pub fn alert(&self, name: &str) -> Option<&Alert> {
        self.alerts.iter().find(|alert| alert.name == name)
    }

    /// The pipeline of that name.
    pub fn pipeline(&self, name: &str) -> Option<&Pipeline> {
        self.pipelines.iter().find(|pipeline| pipeline.name == name)
    }
}

impl Pipeline {
    fn of(plan: &PipelinePlan) -> Self {
        let (file, span) = &plan.at;
        let window = plan.window.as_ref().map(|window| {
            let size = duration(window.size_ns);
            match window.kind {
                Kind::Tumble => format!("tumble {size}"),
                Kind::Hop { slide_ns } => format!("hop {size} every {}", duration(slide_ns)),
                Kind::Session => format!("session with a gap of {size}"),
            }
        });
        Self {
            name: plan.name.clone(),
            version: format!("{:016x}", plan.fingerprint),
            source: plan.source.clone(),
            stream_join: plan.stream_join.as_ref().map(stream_join),
            joins: plan.joins.iter().map(|join| join.table.clone()).collect(),
            lateness: (window.is_some() || plan.stream_join.is_some()).then(|| duration(plan.lateness_ns)),
            window,
            partition: plan.partition.as_str().to_owned(),
            retain_ns: plan.retain_ns,
            compact_ns: plan.compact_ns,
            columns: columns(&plan.output),
            at: format!("{file}:{}", span.start.line),
            query: plan.query.clone(),
        }
    }
}

/// `telemetry, from 10 seconds before to 5 seconds after`
fn stream_join(join: &StreamJoin) -> String {
    let at = |ns: i64| match ns {
        0 => "the same time".to_owned(),
        ..0 => format!("{} before", duration(ns.saturating_neg())),
        1.. => format!("{} after", duration(ns)),
    };
    let StreamJoin { source, lower_ns, upper_ns, .. } = join;
    match lower_ns == upper_ns {
        true => format!("{source}, {}", at(*lower_ns)),
        false => format!("{source}, from {} to {}", at(*lower_ns), at(*upper_ns)),
    }
}

impl Alert {
    fn of(plan: &AlertPlan) -> Self {
        let (file, span) = &plan.at;
        let rule = &plan.rule;
        let escalate = rule.ladder.iter().map(|step| {
            let again = step.repeat_ns.map_or(String::new(), |ns| format!(" every {} max {}", duration(ns), step.most));
            format!("{} after {}{again}", step.to, duration(step.after_ns))
        });
        Self {
            name: rule.name.to_string(),
            version: format!("{:016x}", rule.version),
            source: plan.source.clone(),
            severities: rule.levels.iter().map(|level| level.severity.to_string()).collect(),
            query: plan.query.clone(),
            escalate: escalate.collect(),
            group_by: plan.group_by.clone(),
            labels: rule.labels.iter().map(|(key, value)| format!("{key}={value}")).collect(),
            comment: plan.comment.clone(),
            at: format!("{file}:{}", span.start.line),
        }
    }
}

/// What happens to something when another version is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It goes on as it is.
    Kept,
    /// It was not there before.
    New,
    /// It begins anew.
    Restarted,
    /// It is no more; its table stays.
    Dropped,
    /// It goes on as it is declared now.
    Changed,
}

/// A change of one stream, table or pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `stream`, `table`, `pipeline` or `alert`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What happens to it.
    pub fate: Fate,
    /// The same for people.
    pub text: String,
    /// How long its table is kept from now on, in nanoseconds, if that is shorter than before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_ns: Option<i64>,
    /// What that drops at once, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drops: Option<Drops>,
}

impl Change {
    /// Whether anything is not as it was.
    pub fn is_news(&self) -> bool {
        self.fate != Fate::Kept || self.text.contains(KEPT_FOR)
    }
}

const KEPT_FOR: &str = "rows are kept for";

/// What is said of a table that is kept for another time, and that time if it is shorter.
fn kept_for(before: Option<i64>, after: Option<i64>) -> (Option<String>, Option<i64>) {
    let text = match (before, after) {
        (before, after) if before == after => return (None, None),
        (Some(before), Some(after)) => format!("{KEPT_FOR} {}, not for {}", duration(after), duration(before)),
        (None, Some(after)) => format!("{KEPT_FOR} {}, not for ever", duration(after)),
        (before, None) => {
            format!("{KEPT_FOR} ever{}", before.map_or(String::new(), |ns| format!(", not for {}", duration(ns))))
        }
    };
    (Some(text), after.filter(|after| before.is_none_or(|before| *after < before)))
}

/// What going from one version to another does to each stream, table and pipeline.
pub fn changes(old: &Overview, new: &Overview) -> Vec<Change> {
    let mut all = Vec::new();
    let mut shorter: Vec<(String, Option<i64>)> = Vec::new();
    let mut note = |kind: &str, name: &str, fate, text: String| {
        all.push(Change { kind: kind.to_owned(), name: name.to_owned(), fate, text, retain_ns: None, drops: None });
    };
    for stream in &new.streams {
        let (fate, text) = match old.streams.iter().find(|before| before.name == stream.name) {
            Some(before) if before.version == stream.version => continue,
            Some(_) => (Fate::Changed, "changed: for what comes from now on, in the same table"),
            None => (Fate::New, "new: frames that have waited for it become rows"),
        };
        note("stream", &stream.name, fate, text.to_owned());
    }
    for stream in old.streams.iter().filter(|before| new.streams.iter().all(|s| s.name != before.name)) {
        let text = "no longer declared: what devices send to it goes to `_dead_letters`, its table stays";
        note("stream", &stream.name, Fate::Dropped, text.to_owned());
    }
    for stream in &new.streams {
        let Some(before) = old.streams.iter().find(|before| before.name == stream.name) else { continue };
        let (text, shortened) = kept_for(before.retain_ns, stream.retain_ns);
        if let Some(text) = text.filter(|_| before.version == stream.version) {
            note("stream", &stream.name, Fate::Kept, text);
            shorter.push((stream.name.clone(), shortened));
        }
    }
    for table in &new.tables {
        let rows = table.rows.unwrap_or_default();
        match old.tables.iter().find(|before| before.name == table.name) {
            Some(before) if before.version == table.version => {
                note("table", &table.name, Fate::Kept, "unchanged".to_owned())
            }
            Some(_) => note("table", &table.name, Fate::Restarted, format!("{rows} rows, for what comes from now on")),
            None => note("table", &table.name, Fate::New, format!("new, {rows} rows")),
        }
    }
    for pipeline in &new.pipelines {
        let (fate, text) = match old.pipeline(&pipeline.name) {
            Some(before) if before.version == pipeline.version => (Fate::Kept, "unchanged: goes on with its windows"),
            Some(_) if pipeline.window.is_some() => {
                (Fate::Restarted, "changed: gives up its open windows, and begins with the next one of each device")
            }
            Some(_) => (Fate::Restarted, "changed: for what comes from now on"),
            None if pipeline.window.is_some() => (
                Fate::New,
                "new: begins with the windows that are open now; `weir pipelines backfill` computes those before",
            ),
            None => (Fate::New, "new: for what comes from now on; `weir pipelines backfill` computes what was before"),
        };
        let (kept, shortened) = match old.pipeline(&pipeline.name) {
            Some(before) => kept_for(before.retain_ns, pipeline.retain_ns),
            None => (None, None),
        };
        let text = kept.map_or_else(|| text.to_owned(), |kept| format!("{text}; {kept}"));
        note("pipeline", &pipeline.name, fate, text);
        shorter.push((pipeline.name.clone(), shortened));
    }
    for pipeline in old.pipelines.iter().filter(|before| new.pipeline(&before.name).is_none()) {
        note(
            "pipeline",
            &pipeline.name,
            Fate::Dropped,
            "dropped: its open windows are given up, its table stays".to_owned(),
        );
    }
    for alert in &new.alerts {
        let (fate, text) = match old.alert(&alert.name) {
            Some(before) if before.version != alert.version => {
                (Fate::Restarted, "changed: its incidents end, and it begins anew")
            }
            Some(before) if before.escalate != alert.escalate || before.group_by != alert.group_by => {
                (Fate::Kept, "tells otherwise: goes on with its incidents")
            }
            Some(_) => (Fate::Kept, "unchanged: goes on with its incidents"),
            None => (Fate::New, "new: for what comes from now on"),
        };
        note("alert", &alert.name, fate, text.to_owned());
    }
    for alert in old.alerts.iter().filter(|before| new.alert(&before.name).is_none()) {
        note("alert", &alert.name, Fate::Dropped, "dropped: its incidents end".to_owned());
    }
    for change in &mut all {
        let found = shorter.iter().find(|(name, _)| *name == change.name);
        change.retain_ns = found.and_then(|(_, shortened)| *shortened);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use sql::SourceFile;

    fn overview(text: &str) -> Overview {
        Overview::of(&sql::check(&[SourceFile { name: "p.sql".to_owned(), text: text.to_owned() }]).unwrap())
    }

    #[test]
    fn each_change_is_named() {
        let stream = "CREATE STREAM telemetry (t DOUBLE);\n";
        let a = "CREATE PIPELINE a AS SELECT device, hop(ts, INTERVAL '1 m', INTERVAL '5 m') AS w, max(t) AS t FROM telemetry GROUP BY device, w;\n";
        let b = "CREATE PIPELINE b AS SELECT ts, t FROM telemetry WHERE t > 1;\n";
        let old = overview(&format!("{stream}{a}{b}"));
        assert_eq!(old.pipeline("a").unwrap().window.as_deref(), Some("hop 5 minutes every 1 minute"));
        assert_eq!(
            (old.pipeline("b").unwrap().window.as_deref(), old.pipeline("b").unwrap().at.as_str()),
            (None, "p.sql:3")
        );
        let fates = |new: &str| -> Vec<(String, Fate)> {
            changes(&old, &overview(new)).into_iter().map(|change| (change.name, change.fate)).collect()
        };
        let of = |name: &str, fate| (name.to_owned(), fate);
        assert_eq!(fates(&format!("{stream}{a}{b}-- as it was")), [of("a", Fate::Kept), of("b", Fate::Kept)]);
        assert_eq!(
            fates(&format!("{stream}{}CREATE PIPELINE c AS SELECT ts FROM telemetry;", a.replace("max", "min"))),
            [of("a", Fate::Restarted), of("c", Fate::New), of("b", Fate::Dropped)]
        );
        let alert = "CREATE ALERT h ON telemetry WHEN t > 80;";
        let alerts = |old: &str, new: &str| {
            let [old, new] = [old, new].map(|alert| overview(&format!("{stream}{a}{b}{alert}")));
            changes(&old, &new).into_iter().map(|change| (change.name, change.fate)).skip(2).collect::<Vec<_>>()
        };
        assert_eq!(alerts("", alert), [of("h", Fate::New)]);
        assert_eq!(alerts(alert, &alert.replace("t > 80", "t > 80 WITH (escalate = 'a@1m')")), [of("h", Fate::Kept)]);
        assert_eq!(alerts(alert, &alert.replace("80", "81")), [of("h", Fate::Restarted)]);
        let grouped = overview(&format!("{stream}{}", alert.replace("80", "80 WITH (group_by = 'rule')")));
        assert_eq!(grouped.alert("h").unwrap().group_by, ["rule"]);
        assert_eq!(alerts(alert, ""), [of("h", Fate::Dropped)]);
        let more = stream.replace("t DOUBLE", "t DOUBLE, u DOUBLE");
        assert_eq!(fates(&format!("{more}{a}{b}"))[0], of("telemetry", Fate::Changed));
        // What neither devices nor gateway stand on is taken over.
        let day = stream.replace(");", ") WITH (partition = 'day');");
        assert_eq!(fates(&format!("{day}{a}{b}")), [of("a", Fate::Kept), of("b", Fate::Kept)]);
        // So is how long rows are kept.
        let six = stream.replace(");", ") WITH (retain = INTERVAL '6 days');");
        let kept = changes(&old, &overview(&format!("{six}{a}{b}"))).remove(0);
        assert_eq!((kept.name.as_str(), kept.fate), ("telemetry", Fate::Kept));
        assert_eq!(kept.text, "rows are kept for 6 days, not for ever");
        assert_eq!(kept.retain_ns, Some(6 * 86_400_000_000_000));
        let back = changes(&overview(&format!("{six}{a}{b}")), &old).remove(0);
        assert_eq!((back.text.as_str(), back.retain_ns), ("rows are kept for ever, not for 6 days", None));
        let two = |days| {
            overview(&format!("{stream}{}", a.replace("a AS", &format!("a WITH (retain = INTERVAL '{days} days') AS"))))
        };
        let shorter = changes(&two(9), &two(2)).remove(0);
        assert_eq!(shorter.text, "unchanged: goes on with its windows; rows are kept for 2 days, not for 9 days");
        assert_eq!(shorter.retain_ns, Some(2 * 86_400_000_000_000));
        assert_eq!(changes(&two(2), &two(9)).remove(0).retain_ns, None);
        let near = "CREATE PIPELINE near AS SELECT x.ts FROM telemetry x JOIN telemetry y ON x.device = y.device AND \
                    y.ts > x.ts - INTERVAL '10 seconds' - INTERVAL '1 ns' AND y.ts <= x.ts";
        let near = overview(&format!("{stream}{near};"));
        let near = near.pipeline("near").unwrap();
        let joined = "telemetry, from 10 seconds before to the same time";
        assert_eq!((near.stream_join.as_deref(), near.lateness.as_deref()), (Some(joined), Some("30 seconds")));
        let (x, y) = ("CREATE STREAM x () WITH (schema = 2);", "CREATE STREAM y () WITH (schema = 3);");
        assert!(changes(&overview(&format!("{x}{y}")), &overview(&format!("{y}{x}"))).is_empty());
        let other: Vec<_> = changes(&overview(x), &overview(y)).into_iter().map(|c| (c.name, c.fate)).collect();
        assert_eq!(other, [of("y", Fate::New), of("x", Fate::Dropped)]);
    }
}
