//! From an alert's statement to its rule.
//!
//! `head` reads the words, `compile` makes trees of the conditions, `zone` sees that what clears lies on the safe side
//! of what raises, `ladder` reads who is told.

mod compile;
mod head;
mod ladder;
mod zone;

use std::sync::Arc;

use datafusion::execution::session_state::SessionState;
use datafusion::sql::sqlparser::ast::Ident;
use device::alert::{Backfill, Expr, Level, NoData, Rule};
use device::schema::Stream;

pub(crate) use head::{AlertHead, read};

use crate::check::{Meaning, Names};
use crate::diagnostic::{Diagnostic, Span, code};
use crate::expression::{self, Clause, Scope};
use crate::fingerprint::Fingerprint;
use crate::option::{Literal, Options};
use crate::project::{AlertPlan, StreamDecl};
use crate::{interval, name};
use head::{Condition, When};

/// More severities than people tell apart.
const MAX_LEVELS: usize = 8;

/// The severity of a rule that names none.
const SEVERITY: &str = "warning";

/// Checks one alert. What is missing was complained about.
pub(crate) fn check(
    state: &SessionState,
    file: &str,
    ident: &Ident,
    head: &AlertHead,
    names: &Names,
    found: &mut Vec<Diagnostic>,
) -> Option<AlertPlan> {
    let before = found.len();
    let (mut rule, group_by) = options(file, head, found);
    rule.name = Arc::from(name::normal(ident));
    let source = name::normal(&head.source);
    let stream = resolve(file, &head.source, &source, names, found);
    let mut zones: Vec<(Level, Option<(Expr, zone::Zone)>)> = Vec::new();
    for (at, when) in head.whens.iter().enumerate() {
        let (for_ns, severity) = times(file, head, at, found);
        let named = zones.iter().any(|(level, _)| Some(&*level.severity) == severity.as_deref());
        if let (true, Some(severity)) = (named, &severity) {
            let span = when.options.iter().find(|o| o.name == "severity").map_or(when.raise.span, |o| o.span);
            let message = format!("severity '{severity}' stands here twice");
            let help = "give each WHEN a severity of its own, the lowest first";
            found.push(Diagnostic::error(code::SEVERITY, file, span, message).help(help));
        }
        let Some(stream) = stream else { continue };
        if let Some(level) = level(state, file, stream, when, found) {
            let (raise, clear, zone) = level;
            let subject = zone.as_ref().map(|(subject, _)| subject.clone());
            let severity = Arc::from(severity.as_deref().unwrap_or(SEVERITY));
            zones.push((Level { severity, raise, clear, for_ns, subject }, zone));
        }
    }
    if let Some(extra) = head.whens.get(MAX_LEVELS) {
        let message = format!("an alert has up to {MAX_LEVELS} severities");
        found.push(Diagnostic::error(code::TOO_LARGE, file, extra.raise.span, message).help("make two alerts of it"));
    }
    if zones.len() == head.whens.len() {
        ascending(file, head, &zones, found);
    }
    let stream = stream?;
    if found.len() > before && found.iter().skip(before).any(|d| d.severity == crate::Severity::Error) {
        return None;
    }
    rule.levels = zones.into_iter().map(|(level, _)| level).collect();
    let query = text(&source, head, &rule);
    rule.version = version(&stream.stream, &query, &rule);
    let at = (file.to_owned(), ident.span.into());
    Some(AlertPlan { rule, source, query, group_by, comment: head.comment.clone(), at })
}

/// Everything in `WITH (..)`, in a rule without conditions.
fn options(file: &str, head: &AlertHead, found: &mut Vec<Diagnostic>) -> (Rule, Vec<String>) {
    let mut options = Options::new(file, &head.options);
    let several = head.whens.len() > 1 || head.whens.iter().any(|w| w.options.iter().any(|o| o.name == "severity"));
    if several && let Some(setting) = options.take("severity") {
        let message = "the severity is given twice: here and behind WHEN";
        options.wrong(setting, message, "leave it out here");
    } else {
        options.text("severity", severity);
    }
    let keep_firing_for_ns = options.duration("keep_firing_for", 0).unwrap_or(0);
    let no_data_after_ns = options.duration("no_data_after", 1);
    let no_data = options.text("no_data", |text| match text {
        "keep" => Ok(NoData::Keep),
        "raise" => Ok(NoData::Raise),
        "resolve" => Ok(NoData::Resolve),
        _ => Err("write 'keep', 'raise' or 'resolve'".to_owned()),
    });
    let min_samples = options.whole("min_samples", 1..=1_000_000).unwrap_or(1) as u32;
    let max_gap_ns = options.duration("max_gap", 1);
    let backfill = options.text("backfill", |text| match text {
        "record" => Ok(Backfill::Record),
        "notify" => Ok(Backfill::Notify),
        _ => Err("write 'record' or 'notify'".to_owned()),
    });
    let mut list = |name: &'static str| {
        let setting = options.take(name)?;
        match &setting.value {
            Literal::Text(text) => Some((setting, text.as_str())),
            _ => {
                options.wrong(setting, format!("`{name}` is a text"), "write it in single quotes");
                None
            }
        }
    };
    let (ladder, labels, groups) = (list("escalate"), list("labels"), list("group_by"));
    let ladder = ladder.map(|(setting, text)| (setting, ladder::read(text)));
    let labels = labels.map(|(setting, text)| (setting, ladder::labels(text)));
    let ladder = ladder.and_then(|(s, r)| r.map_err(|(message, help)| options.wrong(s, message, help)).ok());
    let labels = labels.and_then(|(s, r)| r.map_err(|(message, help)| options.wrong(s, message, help)).ok());
    let groups = groups.map(|(setting, text)| (setting, ladder::groups(text, labels.as_deref())));
    let groups = groups.and_then(|(s, r)| r.map_err(|(message, help)| options.wrong(s, message, help)).ok());
    found.extend(options.finish());
    let given = |name: &str| head.options.iter().find(|o| o.name == name);
    if let (Some(setting), None) = (given("no_data"), given("no_data_after")) {
        let message = "`no_data` has no effect without `no_data_after`";
        let help = "say how long a device may be silent, as in no_data_after = INTERVAL '10 minutes'";
        found.push(Diagnostic::warning(code::NO_EFFECT, file, setting.name_span, message).help(help));
    }
    let rule = Rule {
        name: Arc::from(""),
        version: 0,
        stream: 0,
        levels: Vec::new(),
        keep_firing_for_ns,
        min_samples,
        max_gap_ns,
        no_data_after_ns,
        no_data: no_data.unwrap_or_default(),
        backfill: backfill.unwrap_or_default(),
        ladder: ladder.unwrap_or_default(),
        labels: labels.unwrap_or_default(),
    };
    (rule, groups.unwrap_or_default())
}

fn severity(text: &str) -> Result<String, String> {
    if name::is_plain(text) { Ok(text.to_owned()) } else { Err("write a name such as 'warning'".to_owned()) }
}

/// How long a `WHEN` has to hold, and its severity.
fn times(file: &str, head: &AlertHead, at: usize, found: &mut Vec<Diagnostic>) -> (i64, Option<String>) {
    let Some(when) = head.whens.get(at) else { return (0, None) };
    let mut options = Options::new(file, &when.options);
    let for_ns = options.duration("for", 0).unwrap_or(0);
    let own = options.text("severity", severity);
    found.extend(options.finish());
    let given = when.options.iter().any(|o| o.name == "severity");
    if !given && head.whens.len() > 1 {
        let message = "of several WHEN each has a severity of its own";
        let help = "write SEVERITY 'warning' behind it, the lowest first";
        found.push(Diagnostic::error(code::SEVERITY, file, when.raise.span, message).help(help));
    }
    let whole = head.options.iter().find(|o| o.name == "severity").and_then(|o| match &o.value {
        Literal::Text(text) if !given && head.whens.len() == 1 => Some(text.clone()),
        _ => None,
    });
    (for_ns, own.or(whole))
}

type Compiled = (Expr, Option<Expr>, Option<(Expr, zone::Zone)>);

/// The conditions of one `WHEN`.
fn level(
    state: &SessionState,
    file: &str,
    decl: &StreamDecl,
    when: &When,
    found: &mut Vec<Diagnostic>,
) -> Option<Compiled> {
    let mut tree = |condition: &Condition, clause: Clause| {
        let schema = storage::schema::stream_schema(&decl.stream);
        let columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let table = &*decl.stream.name;
        let scope = Scope {
            file,
            state,
            table,
            pipeline: false,
            time: "ts",
            device: Some("device"),
            alias: table,
            columns: &columns,
            outputs: &[],
            grouped: false,
        };
        let before = found.len();
        expression::check(&scope, clause, &condition.expr, found);
        let complained = found.len() > before;
        let tree = compile::compile(file, &decl.stream, condition, clause.as_str(), found);
        tree.filter(|_| !complained)
    };
    let raise = tree(&when.raise, Clause::When);
    let clear = when.clear.as_ref().map(|clear| tree(clear, Clause::Clear));
    let raise = raise?;
    let zone = zone::of(&raise).map(|(subject, zone)| (subject.clone(), zone));
    let clear = match clear {
        Some(clear) => Some(clear?),
        None => None,
    };
    let mut complain = |code, span: Span, message: String, help: String| {
        found.push(Diagnostic::error(code, file, span, message).help(help));
    };
    if let Some((_, zone)) = &zone {
        if zone.is_empty() {
            let message = "no reading can raise this alert: the condition holds for no number".to_owned();
            complain(code::EMPTY, when.raise.span, message, "correct the condition".to_owned());
        } else if zone.is_all() {
            let message = "every reading raises this alert: the condition holds for all numbers".to_owned();
            complain(code::EMPTY, when.raise.span, message, "correct the condition".to_owned());
        }
    }
    if let (Some((subject, raises)), Some(condition), Some(tree)) = (&zone, &when.clear, &clear)
        && let Some((other, clears)) = zone::of(tree)
        && other == subject
    {
        if let Some(example) = raises.and(&clears).example() {
            let message = format!("CLEAR overlaps WHEN: {example} would both raise and clear");
            let help = "clear on the safe side of what raises, as in WHEN temperature > 80 CLEAR WHEN temperature < 75";
            complain(code::DEAD_BAND, condition.span, message, help.to_owned());
        } else if clears.is_empty() {
            let message = "no reading can clear this alert: the condition holds for no number".to_owned();
            complain(code::EMPTY, condition.span, message, "correct the condition".to_owned());
        }
    }
    Some((raise, clear, zone))
}

/// Each severity has to lie inside the one below it, as far as that can be told.
fn ascending(
    file: &str,
    head: &AlertHead,
    levels: &[(Level, Option<(Expr, zone::Zone)>)],
    found: &mut Vec<Diagnostic>,
) {
    for (pair, when) in levels.windows(2).zip(head.whens.iter().skip(1)) {
        let [(lower, Some((subject, below))), (higher, Some((other, above)))] = pair else { continue };
        if subject == other && !above.within(below) {
            let message = format!(
                "severity '{}' holds for readings that '{}', before it, does not: they stand lowest first",
                higher.severity, lower.severity
            );
            let help = "put the severities in order, each with a stricter condition than the one before";
            let first = head.whens.first().map(|when| (file.to_owned(), when.raise.span.start));
            let diagnostic = Diagnostic::error(code::SEVERITY, file, when.raise.span, message).help(help);
            found.push(diagnostic.note("the lowest stands here", first));
        }
    }
}

/// The stream of that name.
fn resolve<'a>(
    file: &str,
    ident: &Ident,
    source: &str,
    names: &'a Names,
    found: &mut Vec<Diagnostic>,
) -> Option<&'a StreamDecl> {
    let complain = |code, message: String| Diagnostic::error(code, file, ident.span.into(), message);
    let diagnostic = match names.meanings.get(source) {
        Some(Meaning::Stream(index)) => return names.streams.get(*index),
        Some(Meaning::Unreadable) => return None,
        Some(Meaning::Table(_)) => {
            let message = format!("`{source}` is a reference table, in which nothing happens by itself");
            complain(code::SOURCES, message).help("name a stream")
        }
        Some(Meaning::Majors) => {
            let message = format!("`{source}` is a view over several versions of a stream");
            complain(code::SOURCES, message).help("name the table of one of them")
        }
        Some(Meaning::Alert) => complain(code::SOURCES, format!("`{source}` is an alert")).help("name a stream"),
        Some(Meaning::Pipeline(_)) => {
            let message = "this version cannot look at the rows of a pipeline yet".to_owned();
            complain(code::NOT_YET, message).help("name the stream that the pipeline reads")
        }
        None => {
            let mut streams: Vec<&str> = names.streams.iter().map(|s| &*s.stream.name).collect();
            streams.sort_unstable();
            let help = name::did_you_mean(source, streams.iter().copied())
                .unwrap_or_else(|| format!("the streams are {}", name::list(streams)));
            complain(code::UNKNOWN_TABLE, format!("there is no stream `{source}`")).help(help)
        }
    };
    found.push(diagnostic);
    None
}

/// What it says about readings, in one spelling.
fn text(source: &str, head: &AlertHead, rule: &Rule) -> String {
    let mut text = format!("ON {source}");
    for (when, level) in head.whens.iter().zip(&rule.levels) {
        text.push_str(&format!(" WHEN {}", when.raise.expr));
        if level.for_ns > 0 {
            text.push_str(&format!(" FOR INTERVAL '{}'", interval::shown(level.for_ns)));
        }
        if let Some(clear) = &when.clear {
            text.push_str(&format!(" CLEAR WHEN {}", clear.expr));
        }
        text.push_str(&format!(" SEVERITY '{}'", level.severity));
    }
    text
}

/// A number that is another one when readings may mean something else. Whom to tell does not count.
fn version(stream: &Stream, text: &str, rule: &Rule) -> u64 {
    let mut print = Fingerprint::new();
    print.text("alert").text(&rule.name).text(text).number(rule.keep_firing_for_ns);
    print.number(i64::from(rule.min_samples)).optional(rule.max_gap_ns).optional(rule.no_data_after_ns);
    print.text(rule.no_data.as_str()).text(rule.backfill.as_str());
    for (key, value) in &rule.labels {
        print.text(key).text(value);
    }
    let mut read = std::collections::BTreeSet::new();
    for level in &rule.levels {
        level.raise.fields(&mut read);
        level.clear.iter().for_each(|clear| clear.fields(&mut read));
    }
    for field in read.iter().filter_map(|index| stream.fields.get(usize::from(*index))) {
        print.text(&field.name).text(&format!("{:?}", field.kind)).text(field.unit.as_deref().unwrap_or(""));
    }
    print.end()
}
