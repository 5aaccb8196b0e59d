//! Brings the statements of all files together.
//!
//! Names resolve across files and in any order, so streams are read first. A stream with a mistake still has
//! columns, and pipelines over it are checked: one run shows every mistake.

use std::collections::HashMap;

use datafusion::sql::sqlparser::ast::Ident;
use device::schema::DEFAULT_STREAM;

use crate::diagnostic::{Diagnostic, Severity, Span, code};
use crate::name;
use crate::pipeline;
use crate::project::{PipelinePlan, Project, StreamDecl, TableDecl};
use crate::session::session_state;
use crate::source::SourceFile;
use crate::statement::{self, Head};
use crate::{alert, majors, order, rollup, stream, table};

/// What a name stands for, for the pipelines that read it.
pub(crate) enum Meaning {
    /// Index in the streams.
    Stream(usize),
    /// Index in the reference tables.
    Table(usize),
    /// Index in the pipelines; `None` if it has no plan, which was complained about, or is a rollup.
    Pipeline(Option<usize>),
    /// The view over all major versions of a stream.
    Majors,
    /// An alert.
    Alert,
    /// A statement that could not be read, or that this version cannot run: complained about already.
    Unreadable,
}

/// All names of a project.
pub(crate) struct Names {
    pub(crate) streams: Vec<StreamDecl>,
    pub(crate) tables: Vec<TableDecl>,
    /// Those that are planned, each behind those that it reads.
    pub(crate) pipelines: Vec<PipelinePlan>,
    pub(crate) meanings: HashMap<String, Meaning>,
}

impl Names {
    /// The tables of a rollup that is planned.
    pub(crate) fn of_rollup(&self, name: &str) -> Option<Vec<&str>> {
        let own = |plan: &&PipelinePlan| rollup::is_table_of(&plan.name, name) && plan.name != name;
        let tables: Vec<&str> = self.pipelines.iter().filter(own).map(|plan| &*plan.name).collect();
        (!tables.is_empty()).then_some(tables)
    }
}

/// Stack for planning: DataFusion walks an expression by recursion, and the longest one that is taken needs more than
/// the two megabytes that threads have by default.
const STACK: usize = 64 << 20;

/// Reads, checks and plans all files as one project. All mistakes of all files in one run, by file and line.
pub fn check(files: &[SourceFile]) -> Result<Project, Vec<Diagnostic>> {
    let done = std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("check".to_owned()).stack_size(STACK);
        builder.spawn_scoped(scope, || check_all(files)).map(|thread| thread.join())
    });
    match done {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        // No thread to be had: the stack at hand is enough for all but the longest expressions.
        Err(_) => check_all(files),
    }
}

fn check_all(files: &[SourceFile]) -> Result<Project, Vec<Diagnostic>> {
    let mut found = Vec::new();
    let mut names = Names { streams: Vec::new(), tables: Vec::new(), pipelines: Vec::new(), meanings: HashMap::new() };
    let mut places: HashMap<String, (&str, Span)> = HashMap::new();
    let (mut pipelines, mut alerts) = (Vec::new(), Vec::new());
    let mut order: Vec<&SourceFile> = files.iter().collect();
    order.sort_by(|a, b| a.name.cmp(&b.name));
    let files: Vec<&str> = order.iter().map(|file| file.name.as_str()).collect();
    for file in order {
        for statement in statement::read(file, &mut found) {
            let Some(ident) = statement.name else { continue };
            let name = name::normal(&ident);
            let span = Span::from(ident.span);
            if let Some((message, help)) = name::refuse_table(&name) {
                found.push(Diagnostic::error(code::BAD_NAME, &file.name, span, message).help(help));
            }
            let first = places.get(&name).copied();
            let stream = match &statement.head {
                Head::Stream(head) => Some(stream::check(&file.name, &ident, head, &mut found)),
                _ => None,
            };
            let major = |decl: &StreamDecl| decl.stream.version.major;
            let other_majors = stream.as_ref().is_some_and(|new| {
                let same: Vec<_> = names.streams.iter().filter(|decl| decl.base == name).collect();
                !same.is_empty() && same.iter().all(|decl| major(decl) != major(new))
            });
            if let (Some((other, at)), false) = (first, other_majors) {
                let message = format!("the name `{name}` is taken");
                found.push(
                    Diagnostic::error(code::NAME_TAKEN, &file.name, span, message)
                        .help("streams, tables, pipelines and alerts share one set of names: each needs a name of its own")
                        .note("first used here", Some((other.to_owned(), at.start))),
                );
            } else if first.is_none() {
                places.insert(name.clone(), (&file.name, span));
            }
            let meaning = match statement.head {
                Head::Stream(_) => {
                    names.streams.extend(stream);
                    Meaning::Stream(names.streams.len() - 1)
                }
                Head::Table(head) => {
                    names.tables.push(table::check(&file.name, &ident, &head, &mut found));
                    Meaning::Table(names.tables.len() - 1)
                }
                Head::Pipeline(head) => {
                    pipelines.push((file, ident, head));
                    Meaning::Pipeline(None)
                }
                Head::Alert(head) => {
                    alerts.push((file, ident, head));
                    Meaning::Alert
                }
                Head::Unreadable => Meaning::Unreadable,
            };
            if first.is_none() {
                names.meanings.insert(name, meaning);
            }
        }
    }
    majors::name_tables(&mut names, &mut places, &files, &mut found);
    for decl in names.streams.iter_mut().filter(|decl| decl.base == DEFAULT_STREAM) {
        decl.stream.schema_id.get_or_insert(1);
    }
    schema_ids(&names.streams, &mut found);
    if !names.meanings.contains_key(DEFAULT_STREAM) {
        let taken = names.streams.iter().any(|s| s.stream.schema_id == Some(1));
        names.meanings.insert(DEFAULT_STREAM.to_owned(), Meaning::Stream(names.streams.len()));
        names.streams.push(StreamDecl::undeclared((!taken).then_some(1)));
    }
    let state = session_state();
    for (file, ident, head) in order::sorted(pipelines, &mut found) {
        let own = pipeline::check(&state, &file.name, &ident, &head, &names, &mut found);
        let name = name::normal(&ident);
        for plan in own {
            if plan.name != name {
                tables_of_rollup(file, &ident, &plan.name, &mut places, &mut found);
            }
            names.meanings.insert(plan.name.clone(), Meaning::Pipeline(Some(names.pipelines.len())));
            names.pipelines.push(plan);
        }
    }

    let mut rules = Vec::new();
    for (file, ident, head) in alerts {
        rules.extend(alert::check(&state, &file.name, &ident, &head, &names, &mut found));
    }

    found.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    found.dedup();
    if found.iter().any(|d| d.severity == Severity::Error) {
        return Err(found);
    }
    let mut streams = names.streams;
    // The order of the catalog: the default stream has changed places with the first one.
    if let Some(at) = streams.iter().position(|s| &*s.stream.name == DEFAULT_STREAM) {
        streams.swap(0, at);
    }
    for plan in &mut rules {
        let at = streams.iter().position(|s| *s.stream.name == *plan.source);
        plan.rule.stream = at.and_then(|at| u16::try_from(at).ok()).unwrap_or_default();
    }
    Ok(Project { streams, tables: names.tables, pipelines: names.pipelines, alerts: rules, warnings: found })
}

/// The tables of a rollup have names that nobody wrote.
fn tables_of_rollup<'a>(
    file: &'a SourceFile,
    ident: &Ident,
    name: &str,
    places: &mut HashMap<String, (&'a str, Span)>,
    found: &mut Vec<Diagnostic>,
) {
    let span = Span::from(ident.span);
    if let Some((message, help)) = name::refuse_table(name) {
        found.push(Diagnostic::error(code::BAD_NAME, &file.name, span, message).help(help));
    }
    match places.get(name) {
        Some((other, at)) => {
            let message = format!("the name `{name}`, a table of this rollup, is taken");
            found.push(
                Diagnostic::error(code::NAME_TAKEN, &file.name, span, message)
                    .help("choose another name for one of them")
                    .note("used here", Some(((*other).to_owned(), at.start))),
            );
        }
        None => {
            places.insert(name.to_owned(), (&file.name, span));
        }
    }
}

fn schema_ids(streams: &[StreamDecl], found: &mut Vec<Diagnostic>) {
    let mut seen: HashMap<u32, &StreamDecl> = HashMap::new();
    for decl in streams {
        let (Some(id), Some((file, span))) = (decl.stream.schema_id, &decl.at) else { continue };
        match seen.get(&id) {
            // Versions of one stream, or two streams of one name, which has been complained about.
            Some(first) if first.base == decl.base => {}
            Some(first) => {
                let message = format!("schema id {id} already belongs to `{}`", first.stream.name);
                let at = first.at.as_ref().map(|(file, span)| (file.clone(), span.start));
                found.push(
                    Diagnostic::error(code::SCHEMA_ID, file, *span, message)
                        .help("frames name their stream by this number: give each stream its own, as in WITH (schema = 2)")
                        .note(format!("`{}` is declared here; `{DEFAULT_STREAM}` has 1 by default", first.stream.name), at),
                );
            }
            None => {
                seen.insert(id, decl);
            }
        }
    }
}
