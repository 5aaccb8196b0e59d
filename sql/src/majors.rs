//! Several major versions of one stream, in statements of one name beside each other: which table each has.
//!
//! The lowest one has the table of the plain name, since it was there first; the others have theirs behind it. A view
//! over all of them can be queried, so its name is taken, too.

use std::collections::{BTreeMap, HashMap};

use crate::check::{Meaning, Names};
use crate::diagnostic::{Diagnostic, Span, code};
use crate::name;
use crate::project::StreamDecl;

/// The view over all major versions of a stream.
pub(crate) fn view(base: &str) -> String {
    format!("{base}_all")
}

/// The table of a major version that is not the lowest.
pub(crate) fn table(base: &str, major: u16) -> String {
    format!("{base}_v{major}")
}

/// Gives each major version beyond the lowest its table, and brings their schema ids together.
pub(crate) fn name_tables<'a>(
    names: &mut Names,
    places: &mut HashMap<String, (&'a str, Span)>,
    files: &[&'a str],
    found: &mut Vec<Diagnostic>,
) {
    let mut groups: BTreeMap<String, Vec<(u16, usize)>> = BTreeMap::new();
    for (index, decl) in names.streams.iter().enumerate() {
        groups.entry(decl.base.clone()).or_default().push((decl.stream.version.major, index));
    }
    for (base, mut group) in groups {
        group.sort_unstable();
        group.dedup_by_key(|(major, _)| *major);
        let [(_, lowest), rest @ ..] = group.as_slice() else { continue };
        if rest.is_empty() {
            continue;
        }
        names.meanings.insert(base.clone(), Meaning::Stream(*lowest));
        let ids: Vec<u32> = group.iter().filter_map(|(_, index)| names.streams.get(*index)?.stream.schema_id).collect();
        for (major, index) in &group {
            let Some(decl) = names.streams.get_mut(*index) else { continue };
            match (decl.stream.schema_id, ids.first()) {
                (Some(own), Some(first)) if own != *first => {
                    let message = format!("`{base}` has schema id {first} in another version, and {own} here");
                    let help = "versions of one stream have one schema id: frames tell them apart by key 4";
                    found.push(complaint(decl, code::SCHEMA_ID, message).help(help));
                }
                _ => decl.stream.schema_id = ids.first().copied(),
            }
            if index != lowest {
                decl.stream.name = table(&base, *major).into();
            }
        }
        let mut taken = |name: String, what: &str, decl: &StreamDecl| {
            if let Some((message, help)) = name::refuse_table(&name) {
                found.push(complaint(decl, code::BAD_NAME, message).help(help));
            }
            if let Some((other, at)) = places.get(&name) {
                let message = format!("the name `{name}`, {what}, is taken");
                let complaint = complaint(decl, code::NAME_TAKEN, message).help("choose another name for the other");
                found.push(complaint.note("used here", Some(((*other).to_owned(), at.start))));
            } else if let Some((file, span)) = &decl.at
                && let Some(file) = files.iter().find(|name| **name == *file)
            {
                places.insert(name, (file, *span));
            }
        };
        for (_, index) in rest {
            let Some(decl) = names.streams.get(*index) else { continue };
            taken(decl.stream.name.to_string(), "the table of this version", decl);
            names.meanings.insert(decl.stream.name.to_string(), Meaning::Stream(*index));
        }
        if let Some(decl) = rest.last().and_then(|(_, index)| names.streams.get(*index)) {
            taken(view(&base), "the view over all versions", decl);
        }
        names.meanings.insert(view(&base), Meaning::Majors);
    }
}

fn complaint(decl: &StreamDecl, code: &'static str, message: String) -> Diagnostic {
    let (file, span) = match &decl.at {
        Some((file, span)) => (file.as_str(), *span),
        None => ("", Span { start: START, end: START }),
    };
    Diagnostic::error(code, file, span, message)
}

const START: crate::diagnostic::Position = crate::diagnostic::Position { line: 1, column: 1 };
