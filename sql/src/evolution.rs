//! What a stream's declaration may become: the rules between what a data directory knows and a project.
//!
//! Within a major version a table only gains: fields, symbols of an enum, room in a type or range, each under a higher
//! minor version. So every reader of the table reads every file of it, and devices of several minor versions share it.
//! What would take something away, or make a stored value mean something else, is a new major version with a table of its
//! own. A project knows only its own text; what was declared before is a [`Known`], kept beside the data.

use device::schema::FieldType;
use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnostic, Span, code};
use crate::project::{Project, StreamDecl};

/// What is kept of one major version of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// What devices call it.
    pub stream: String,
    /// Its major version.
    pub major: u16,
    /// The highest minor version there was.
    pub minor: u16,
    /// The number that frames name it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// All fields there ever were.
    pub fields: Vec<KnownField>,
}

/// One field of a [`Known`] stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownField {
    /// Its key in frames.
    pub id: u32,
    /// Its column.
    pub name: String,
    /// Its type, as in SQL.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// In frames `raw` stands for `raw * 10^scale`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub scale: i32,
    /// What an enum may be; empty: any text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symbols: Vec<String>,
    /// Lowest and highest value; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<(f64, f64)>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(scale: &i32) -> bool {
    *scale == 0
}

impl Known {
    fn of(decl: &StreamDecl) -> Self {
        let fields = decl.stream.fields.iter().zip(&decl.facts).map(|(field, facts)| KnownField {
            id: field.id,
            name: field.name.to_string(),
            kind: field.kind.sql_name().to_owned(),
            unit: field.unit.clone(),
            scale: field.scale,
            symbols: facts.symbols.clone(),
            range: facts.range,
        });
        Self {
            stream: decl.base.clone(),
            major: decl.stream.version.major,
            minor: decl.stream.version.minor,
            schema: decl.stream.schema_id,
            fields: fields.collect(),
        }
    }
}

/// What is known once a project counts that [`evolve`] found nothing wrong with. A stream that is no longer declared stays
/// known: its table is still there.
pub fn known_with(before: &[Known], project: &Project) -> Vec<Known> {
    let declared: Vec<Known> = project.streams.iter().filter(|decl| decl.at.is_some()).map(Known::of).collect();
    let replaced = |known: &&Known| declared.iter().all(|new| (&new.stream, new.major) != (&known.stream, known.major));
    let mut all: Vec<Known> = before.iter().filter(replaced).cloned().collect();
    all.extend(declared.iter().cloned());
    all.sort_by(|a, b| (&a.stream, a.major).cmp(&(&b.stream, b.major)));
    all
}

/// The tables of what is known.
pub fn tables_of(known: &[Known]) -> Vec<String> {
    let lowest = |of: &Known| known.iter().all(|other| other.stream != of.stream || other.major >= of.major);
    let table = |of: &Known| match lowest(of) {
        true => of.stream.clone(),
        false => crate::majors::table(&of.stream, of.major),
    };
    known.iter().map(table).collect()
}

/// Everything in a project that may not follow upon what is known.
pub fn evolve(known: &[Known], project: &Project) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for decl in &project.streams {
        let Some((file, span)) = &decl.at else { continue };
        let version = decl.stream.version;
        let of_name = || known.iter().filter(|known| known.stream == decl.base);
        if let Some(before) = of_name().find(|known| known.major == version.major) {
            Step { decl, file, span: *span, before, found: &mut found }.check();
        }
        // The lowest major version has the table of the plain name, for ever.
        let lowest = of_name().map(|known| known.major).min();
        let own =
            project.streams.iter().filter(|other| other.base == decl.base).map(|other| other.stream.version.major);
        let (Some(lowest), Some(own)) = (lowest, own.min()) else { continue };
        if own == lowest || own != version.major {
            continue;
        }
        let name = &decl.base;
        let (message, help) = if own > lowest {
            (
                format!("version {lowest} of `{name}` is gone, and its table is `{name}`"),
                format!(
                    "keep its statement beside this one: both are accepted from devices, and this one has the table \
                     `{name}_v{own}`"
                ),
            )
        } else {
            (
                format!("version {own} of `{name}` comes before version {lowest}, which has the table `{name}`"),
                format!("major versions go up: the next one is '{}.0'", highest(known, name).saturating_add(1)),
            )
        };
        found.push(Diagnostic::error(code::EVOLUTION, file, decl.version_at.unwrap_or(*span), message).help(help));
    }
    found.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    found
}

fn highest(known: &[Known], name: &str) -> u16 {
    known.iter().filter(|known| known.stream == name).map(|known| known.major).max().unwrap_or(1)
}

/// From one declaration of a major version to the next.
struct Step<'a> {
    decl: &'a StreamDecl,
    file: &'a str,
    span: Span,
    before: &'a Known,
    found: &'a mut Vec<Diagnostic>,
}

impl Step<'_> {
    fn check(mut self) {
        let (name, version) = (&self.decl.base, self.decl.stream.version);
        let at = self.decl.version_at.unwrap_or(self.span);
        let Known { major, minor, .. } = *self.before;
        if version.minor < minor {
            let message =
                format!("version {major}.{} of `{name}` goes back: {major}.{minor} counts already", version.minor);
            let help = format!("write version = '{major}.{minor}', with all its fields");
            return self.say(at, message, help);
        }
        if let (Some(before), Some(now)) = (self.before.schema, self.decl.stream.schema_id)
            && before != now
        {
            let message = format!("the schema id of `{name}` was {before} and is {now}");
            self.say(self.span, message, format!("frames name the stream by it: write schema = {before}"));
        }
        // What was added or widened, and where.
        let mut more: Vec<(Span, String)> = Vec::new();
        for before in &self.before.fields {
            self.field(before, &mut more);
        }
        for (field, facts) in self.decl.stream.fields.iter().zip(&self.decl.facts) {
            if self.before.fields.iter().all(|before| before.id != field.id && before.name != *field.name) {
                more.push((facts.at, format!("`{}` is new", field.name)));
            }
        }
        if version.minor == minor {
            for (at, what) in more {
                let message = format!("{what}, but version {major}.{minor} of `{name}` counts already without it");
                let help = match minor.checked_add(1) {
                    Some(next) => format!("write WITH (version = '{major}.{next}')"),
                    None => self.next_major(),
                };
                self.say(at, message, help);
            }
        }
    }

    fn say(&mut self, at: Span, message: String, help: String) {
        self.found.push(Diagnostic::error(code::EVOLUTION, self.file, at, message).help(help));
    }

    fn next_major(&self) -> String {
        let name = &self.decl.base;
        let next = self.before.major.saturating_add(1);
        format!("or add a statement CREATE STREAM {name} (..) WITH (version = '{next}.0') beside this one as it was")
    }

    fn field(&mut self, before: &KnownField, more: &mut Vec<(Span, String)>) {
        let KnownField { id, name, .. } = before;
        let fields = || self.decl.stream.fields.iter().zip(&self.decl.facts);
        let Some((field, facts)) = fields().find(|(field, _)| field.id == *id) else {
            let moved = fields().find(|(field, _)| *field.name == **name);
            let (at, message) = match moved {
                Some((field, facts)) => (facts.at, format!("the id of `{name}` was {id} and is {}", field.id)),
                None => (self.span, format!("`{name}` (id {id}) is gone")),
            };
            let keep = match moved {
                Some(_) => format!("give it id = {id}"),
                None => format!("keep `{name}`, which devices may leave out"),
            };
            let next = self.next_major();
            return self.say(at, message, format!("{keep}, {next}"));
        };
        let at = facts.at;
        let next = self.next_major();
        if *field.name != **name {
            let message = format!("id {id} was `{name}` and is `{}`: an id is never used again", field.name);
            let help = format!("keep `{name}`, and give `{}` an id of its own, {next}", field.name);
            return self.say(at, message, help);
        }
        let was = |what: &str, old: &str, new: &str| format!("the {what} of `{name}` was {old} and is {new}");
        let unit = |unit: &Option<String>| unit.as_ref().map_or("none".to_owned(), |unit| format!("'{unit}'"));
        let kind = field.kind.sql_name();
        let mut wrong = Vec::new();
        if kind != before.kind {
            match widened(&before.kind, field.kind) {
                true => more.push((at, format!("`{name}` is {kind} instead of {}", before.kind))),
                false => wrong.push(was("type", &before.kind, kind)),
            }
        }
        if field.unit != before.unit {
            wrong.push(was("unit", &unit(&before.unit), &unit(&field.unit)));
        }
        if field.scale != before.scale {
            wrong.push(was("scale", &before.scale.to_string(), &field.scale.to_string()));
        }
        // Any text is more than some texts.
        let fewer = match (before.symbols.is_empty(), facts.symbols.is_empty()) {
            (_, true) => None,
            (true, false) => Some("may no longer be any text".to_owned()),
            (false, false) => {
                let gone = before.symbols.iter().find(|symbol| !facts.symbols.contains(symbol));
                gone.map(|symbol| format!("may no longer be '{symbol}'"))
            }
        };
        match fewer {
            Some(fewer) => wrong.push(format!("`{name}` {fewer}")),
            None => {
                let symbol = facts.symbols.iter().find(|symbol| !before.symbols.contains(symbol));
                if let Some(symbol) = symbol {
                    more.push((at, format!("`{name}` may be '{symbol}'")));
                } else if facts.symbols.is_empty() && !before.symbols.is_empty() {
                    more.push((at, format!("`{name}` may be any text")));
                }
            }
        }
        let shown = |range: Option<(f64, f64)>| range.map_or("any".to_owned(), |(from, to)| format!("{from}..{to}"));
        let inside = |inner: Option<(f64, f64)>, outer: Option<(f64, f64)>| match (inner, outer) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(inner), Some(outer)) => outer.0 <= inner.0 && inner.1 <= outer.1,
        };
        if !inside(before.range, facts.range) {
            wrong.push(was("range", &shown(before.range), &shown(facts.range)));
        } else if !inside(facts.range, before.range) {
            more.push((at, was("range", &shown(before.range), &shown(facts.range))));
        }
        for message in wrong {
            self.say(at, message, format!("write it as it was, {next}"));
        }
    }
}

/// Whether every value of the old type is one of the new, and files of both can be read as one column.
fn widened(before: &str, now: FieldType) -> bool {
    before == FieldType::F32.sql_name() && now == FieldType::F64
}
