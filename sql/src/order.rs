//! In which order pipelines are planned: each behind those that it reads.

use std::collections::HashMap;

use datafusion::sql::sqlparser::ast::{Ident, Query, SetExpr, TableFactor};

use crate::diagnostic::{Diagnostic, code};
use crate::source::SourceFile;
use crate::statement::PipelineHead;
use crate::{name, rollup};

/// A pipeline's statement and where it stands.
pub(crate) type Written<'a> = (&'a SourceFile, Ident, Box<PipelineHead>);

/// Sorts pipelines behind those that they read, and else leaves them in their order. Those that read each other in a
/// circle are complained about, and left out.
pub(crate) fn sorted<'a>(pipelines: Vec<Written<'a>>, found: &mut Vec<Diagnostic>) -> Vec<Written<'a>> {
    let sources: Vec<Vec<usize>> = pipelines.iter().map(|(_, _, head)| read_by(&head.query, &pipelines)).collect();
    let mut sorted = Vec::with_capacity(pipelines.len());
    let mut done = vec![false; pipelines.len()];
    loop {
        let before = sorted.len();
        for (at, of) in sources.iter().enumerate() {
            if !done.get(at).copied().unwrap_or(true) && of.iter().all(|of| done.get(*of).copied().unwrap_or(true)) {
                sorted.push(at);
                if let Some(done) = done.get_mut(at) {
                    *done = true;
                }
                // From the beginning: the order of the files decides as far as it can.
                break;
            }
        }
        if sorted.len() == before {
            break;
        }
    }
    for at in (0..pipelines.len()).filter(|at| !done.get(*at).copied().unwrap_or(true)) {
        // Each circle once, from the first of its pipelines.
        let first = |circle: &Vec<usize>| circle.iter().all(|other| *other >= at);
        let Some(circle) = circle(at, &sources).filter(first) else { continue };
        let Some((file, ident, _)) = pipelines.get(at) else { continue };
        let names = circle.iter().filter_map(|at| pipelines.get(*at)).map(|(_, ident, _)| name::normal(ident));
        let way: Vec<String> = names.chain([name::normal(ident)]).collect();
        let message = format!("this pipeline reads its own result: {}", way.join(" reads "));
        found.push(
            Diagnostic::error(code::SOURCES, &file.name, ident.span.into(), message)
                .help("let one of them read the stream instead"),
        );
    }
    let mut all: HashMap<usize, Written<'a>> = pipelines.into_iter().enumerate().collect();
    sorted.into_iter().filter_map(|at| all.remove(&at)).collect()
}

/// The pipelines that a query reads.
fn read_by(query: &Query, pipelines: &[Written<'_>]) -> Vec<usize> {
    let select = match query.body.as_ref() {
        SetExpr::Select(select) => select,
        SetExpr::Query(inner) => return read_by(inner, pipelines),
        _ => return Vec::new(),
    };
    let relations = select
        .from
        .iter()
        .flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)));
    let tables: Vec<String> = relations
        .filter_map(|relation| match relation {
            TableFactor::Table { name, .. } => name.0.last().and_then(|part| part.as_ident()).map(name::normal),
            _ => None,
        })
        .collect();
    let is_read = |(_, ident, head): &Written<'_>| {
        let own = name::normal(ident);
        let rolled = head.options.iter().any(|setting| setting.name == "rollup");
        tables.iter().any(|table| *table == own || (rolled && rollup::is_table_of(table, &own)))
    };
    (0..).zip(pipelines).filter(|(_, pipeline)| is_read(pipeline)).map(|(at, _)| at).collect()
}

/// A way from a pipeline over those it reads back to itself.
fn circle(start: usize, sources: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut ways = vec![vec![start]];
    let mut seen = vec![false; sources.len()];
    while let Some(way) = ways.pop() {
        for next in way.last().and_then(|last| sources.get(*last)).into_iter().flatten() {
            if *next == start {
                return Some(way);
            }
            if let Some(seen) = seen.get_mut(*next).filter(|seen| !**seen) {
                *seen = true;
                ways.push(way.iter().copied().chain([*next]).collect());
            }
        }
    }
    None
}
