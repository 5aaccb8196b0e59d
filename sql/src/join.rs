//! Joins of a stream with reference tables, and with a second stream, before anything else looks at the query.
//!
//! A row of the stream finds at most one row of a table, because it is looked up by the table's whole key. So what a
//! query uses of a table is a further column of the stream, `alias.column`, and the join is gone from the query: what
//! follows sees one stream. An inner join leaves a condition behind, that there was a row.
//!
//! A second stream (`stream_join.rs`) is treated alike: its columns are further ones of the first, whose rows then
//! are the joined rows.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Ident, Join as Written, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, Select,
    SelectItem, SelectItemQualifiedWildcardKind, Spanned, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::tokenizer as sp;
use std::sync::Arc;

use crate::check::{Meaning, Names};
use crate::diagnostic::{Diagnostic, Span, code};
use crate::name;
use crate::project::{Join, TableDecl};
use crate::shape::Source;
use crate::stream_join::{self, Second};

/// A query whose joins are columns.
pub(crate) struct Joined {
    pub(crate) select: Select,
    /// In the order in which they are looked up.
    pub(crate) joins: Vec<Join>,
    /// The columns of the stream, then those of a second one and of tables that the query uses.
    pub(crate) schema: SchemaRef,
    /// Names that the query may use.
    pub(crate) columns: Vec<String>,
    /// That each inner join with a table found a row.
    pub(crate) found_rows: Option<Expr>,
    /// The second stream.
    pub(crate) second: Option<Second>,
}

/// A table or a second stream while its join is read.
pub(crate) struct Table<'a> {
    pub(crate) alias: String,
    pub(crate) name: &'a str,
    pub(crate) schema: SchemaRef,
    /// `None`: the second stream.
    decl: Option<&'a TableDecl>,
    /// Whether its columns are of the rows of the second stream, before they are joined.
    of_second: bool,
    pub(crate) on: Vec<(String, String)>,
    pub(crate) outer: bool,
    pub(crate) used: BTreeSet<String>,
}

pub(crate) struct Reader<'a, 'b> {
    file: &'a str,
    pub(crate) source: &'a Source,
    stream: &'a Schema,
    pub(crate) tables: Vec<Table<'a>>,
    pub(crate) second: Option<Second>,
    pub(crate) found: &'b mut Vec<Diagnostic>,
}

/// Resolves the joins of `select`. `None`: one of them was complained about.
pub(crate) fn resolve(
    file: &str,
    (source, joins): (&Source, &[(Source, &Written)]),
    select: &Select,
    stream: &SchemaRef,
    names: &Names,
    found: &mut Vec<Diagnostic>,
) -> Option<Joined> {
    let before = found.len();
    let mut reader = Reader { file, source, stream, tables: Vec::new(), second: None, found };
    for (table, join) in joins {
        reader.join(table, join, names);
    }
    // Without one of its sources there is no telling what the rest means.
    if reader.tables.len() < joins.len() {
        return None;
    }
    let mut select = select.clone();
    if !joins.is_empty() {
        for from in &mut select.from {
            from.joins.clear();
        }
        reader.items(&mut select);
        let _ = VisitMut::visit(&mut select, &mut reader);
        if reader.found.len() > before {
            return None;
        }
    }
    let Reader { tables, mut second, .. } = reader;
    let mut columns: Vec<String> = stream.fields().iter().map(|f| f.name().clone()).collect();
    let mut fields: Vec<FieldRef> = stream.fields().to_vec();
    let mut resolved = Vec::new();
    let mut found_rows: Option<Expr> = None;
    // The second stream first: what is looked up comes behind the columns that it is looked up by.
    let (streams, tables): (Vec<Table<'_>>, Vec<Table<'_>>) = tables.into_iter().partition(|t| t.decl.is_none());
    for table in streams.iter().chain(&tables) {
        columns.extend(table.schema.fields().iter().map(|f| virtual_name(&table.alias, f.name())));
        let mut own = Vec::new();
        let nullable = table.of_second && second.as_ref().is_some_and(|second| second.outer);
        for column in &table.used {
            let Ok(field) = table.schema.field_with_name(column) else { continue };
            let name = virtual_name(&table.alias, column);
            let nullable = nullable || field.is_nullable();
            fields.push(Arc::new(field.clone().with_name(&name).with_nullable(nullable)));
            own.push((name, column.clone()));
        }
        if let Some(second) = second.as_mut().filter(|_| table.of_second) {
            second.names.extend(table.schema.fields().iter().map(|f| virtual_name(&table.alias, f.name())));
            second.names.insert(virtual_name(&table.alias, FOUND));
        }
        let Some(decl) = table.decl else {
            if let Some(second) = &mut second {
                second.columns = own;
            }
            continue;
        };
        let matched = (!table.outer).then(|| virtual_name(&table.alias, FOUND));
        if let Some(name) = &matched {
            fields.push(Arc::new(Field::new(name, DataType::Boolean, nullable)));
            let one = Expr::Identifier(Ident::with_quote('"', name));
            found_rows = Some(match found_rows {
                None => one,
                Some(others) => and(others, one),
            });
        }
        if let Some(second) = second.as_mut().filter(|_| table.of_second) {
            second.lookups.push(resolved.len());
        }
        resolved.push(Join {
            table: decl.name.clone(),
            key: decl.key.clone(),
            on: table.on.clone(),
            columns: own,
            matched,
            rows: RecordBatch::new_empty(decl.schema.clone()),
        });
    }
    Some(Joined { select, joins: resolved, schema: Arc::new(Schema::new(fields)), columns, found_rows, second })
}

/// The column that says whether a row was found in a table.
const FOUND: &str = "(found)";

/// Both conditions.
pub(crate) fn and(left: Expr, right: Expr) -> Expr {
    let left = Box::new(Expr::Nested(Box::new(left)));
    Expr::BinaryOp { left, op: BinaryOperator::And, right: Box::new(right) }
}

pub(crate) fn virtual_name(alias: &str, column: &str) -> String {
    format!("{alias}.{column}")
}

impl Reader<'_, '_> {
    pub(crate) fn complain(
        &mut self,
        code: &'static str,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.found.push(Diagnostic::error(code, self.file, span, message).help(help));
    }
}

impl<'a> Reader<'a, '_> {
    fn join(&mut self, table: &Source, join: &Written, names: &'a Names) {
        if table.alias == self.source.alias || self.tables.iter().any(|t| t.alias == table.alias) {
            let message = format!("two sources are called `{}`", table.alias);
            let help = format!("give one of them another name, as in JOIN {} x ON ..", table.table);
            return self.complain(code::NAME_TAKEN, table.span, message, help);
        }
        if let Some(Meaning::Stream(index)) = names.meanings.get(&table.table) {
            let Some(decl) = names.streams.get(*index) else { return };
            return stream_join::read(self, table, join, decl);
        }
        let Some(decl) = self.table(table, names) else { return };
        let (outer, constraint) = match &join.join_operator {
            JoinOperator::Join(on) | JoinOperator::Inner(on) => (false, on),
            JoinOperator::Left(on) | JoinOperator::LeftOuter(on) => (true, on),
            _ => {
                let message = "a stream is joined with a table by JOIN or LEFT JOIN";
                let help = "other joins would have to know the last row of the stream";
                return self.complain(code::SOURCES, table.span, message, help);
            }
        };
        let mut pairs: Vec<(String, String, Span)> = Vec::new();
        let before = self.found.len();
        match constraint {
            JoinConstraint::On(expr) => self.conditions(expr, &table.alias, decl, &mut pairs),
            JoinConstraint::Using(columns) => {
                for column in columns {
                    let span = Span::from(column.span());
                    match column.0.as_slice() {
                        [ObjectNamePart::Identifier(ident)] if self.stream.index_of(&name::normal(ident)).is_ok() => {
                            pairs.push((name::normal(ident), name::normal(ident), span));
                        }
                        _ => self.complain(
                            code::UNKNOWN_COLUMN,
                            span,
                            format!("there is no column `{column}` in `{}`", self.source.table),
                            "USING names columns that both have; else write ON",
                        ),
                    }
                }
            }
            JoinConstraint::Natural | JoinConstraint::None => {
                let help = self.on_example(&table.alias, decl);
                return self.complain(code::SOURCES, table.span, "a join says by what it looks up", help);
            }
        }
        if self.found.len() > before {
            return;
        }
        let mut on = Vec::new();
        for key in &decl.key {
            let Some((stream, _, span)) = pairs.iter().find(|(_, column, _)| column == key) else {
                let message = format!("`{}` is looked up by its whole key, and `{key}` is not given", table.table);
                let help = self.on_example(&table.alias, decl);
                return self.complain(code::SOURCES, table.span, message, help);
            };
            if !self.fits(stream, decl, key) {
                let message = format!("`{stream}` and `{}.{key}` have different types", table.alias);
                return self.complain(code::TYPE, *span, message, "declare the column of the table with the same type");
            }
            on.push((stream.clone(), key.clone()));
        }
        let of_second = |(column, _): &(String, String)| self.of_second(column);
        let of_second = match (on.iter().any(of_second), on.iter().all(of_second)) {
            (true, false) => {
                let message = format!("`{}` is looked up by columns of both streams", table.table);
                let help = "look it up by columns of one of them: rows are looked up before they are joined";
                return self.complain(code::SOURCES, table.span, message, help);
            }
            (_, all) => all,
        };
        if let Some((_, column, span)) = pairs.iter().find(|(_, column, _)| !decl.key.contains(column)) {
            let message = format!("`{column}` is not part of the key of `{}`", table.table);
            let help = format!("compare it in WHERE; the key is {}", name::list(decl.key.iter().map(String::as_str)));
            return self.complain(code::SOURCES, *span, message, help);
        }
        self.tables.push(Table {
            alias: table.alias.clone(),
            name: &decl.name,
            schema: decl.schema.clone(),
            decl: Some(decl),
            of_second,
            on,
            outer,
            used: BTreeSet::new(),
        });
    }

    /// Takes the second stream up, so that its columns can be named.
    pub(crate) fn add_stream(&mut self, alias: &str, name: &'a str, schema: SchemaRef, outer: bool) {
        let on = vec![("device".to_owned(), "device".to_owned())];
        let (alias, used) = (alias.to_owned(), BTreeSet::new());
        self.tables.push(Table { alias, name, schema, decl: None, of_second: true, on, outer, used });
    }

    /// Whether a column that is none of the first stream's belongs to rows of the second.
    fn of_second(&self, column: &str) -> bool {
        let own = |t: &Table<'_>| column.strip_prefix(&*t.alias).is_some_and(|rest| rest.starts_with('.'));
        self.stream.index_of(column).is_err() && self.tables.iter().any(|t| t.of_second && own(t))
    }

    fn table(&mut self, table: &Source, names: &'a Names) -> Option<&'a TableDecl> {
        match names.meanings.get(&table.table) {
            Some(Meaning::Table(index)) => return names.tables.get(*index),
            Some(Meaning::Unreadable) => {}
            // Streams are joined elsewhere.
            Some(Meaning::Stream(_) | Meaning::Pipeline(_) | Meaning::Majors | Meaning::Alert) => {
                let message = format!(
                    "this version cannot join with `{}`, which is neither a stream nor a reference table",
                    table.table
                );
                let help = "join streams and reference tables; join the results when you query the Parquet tables";
                self.complain(code::NOT_YET, table.span, message, help);
            }
            None => {
                let tables: Vec<&str> = names.tables.iter().map(|t| t.name.as_str()).collect();
                let near = name::did_you_mean(&table.table, tables);
                let help = near.unwrap_or_else(|| {
                    format!("declare it: CREATE TABLE {} (..) WITH (location = '..', key = '..')", table.table)
                });
                let message = format!("there is no reference table `{}`", table.table);
                self.complain(code::UNKNOWN_TABLE, table.span, message, help);
            }
        }
        None
    }

    fn on_example(&self, alias: &str, decl: &TableDecl) -> String {
        let of = |key: &String| format!("{}.{key} = {alias}.{key}", self.source.alias);
        format!("write ON {}", decl.key.iter().map(of).collect::<Vec<_>>().join(" AND "))
    }

    /// `a = b AND c = d`: column of the stream (or of a table before this one), column of the table.
    fn conditions(&mut self, expr: &Expr, alias: &str, decl: &'a TableDecl, pairs: &mut Vec<(String, String, Span)>) {
        let before = self.found.len();
        match expr {
            Expr::Nested(inner) => return self.conditions(inner, alias, decl, pairs),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                self.conditions(left, alias, decl, pairs);
                return self.conditions(right, alias, decl, pairs);
            }
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                for (a, b) in [(left, right), (right, left)] {
                    if let (Some(stream), Some(column)) = (self.before(a), own(b, alias, decl)) {
                        return pairs.push((stream, column, expr.span().into()));
                    }
                }
            }
            _ => {}
        }
        if self.found.len() > before {
            return;
        }
        let help = self.on_example(alias, decl);
        let message = "a join compares columns of the stream with the key of the table";
        self.complain(code::SOURCES, expr.span().into(), message, help);
    }

    /// The column that `expr` is, of what stands before the join.
    fn before(&mut self, expr: &Expr) -> Option<String> {
        match expr {
            Expr::Nested(inner) => self.before(inner),
            Expr::Identifier(ident) => {
                let column = name::normal(ident);
                if self.second.is_some() && self.unqualified(ident).is_some() {
                    return None;
                }
                Some(column).filter(|c| self.stream.index_of(c).is_ok())
            }
            Expr::CompoundIdentifier(parts) => {
                let [of, column] = parts.as_slice() else { return None };
                let (of, column) = (name::normal(of), name::normal(column));
                if of == self.source.alias {
                    return Some(column).filter(|c| self.stream.index_of(c).is_ok());
                }
                let table = self.tables.iter_mut().find(|t| t.alias == of)?;
                table.schema.index_of(&column).ok()?;
                Some(table.named(column))
            }
            _ => None,
        }
    }

    /// Whether the values of a column can equal those of a key.
    fn fits(&self, stream: &str, decl: &TableDecl, key: &str) -> bool {
        let of_table = |name: &str| {
            let (alias, column) = name.split_once('.')?;
            let table = self.tables.iter().find(|t| t.alias == alias)?;
            Some(table.schema.field_with_name(column).ok()?.data_type())
        };
        let left = self.stream.field_with_name(stream).map(Field::data_type).ok().or_else(|| of_table(stream));
        let right = decl.schema.field_with_name(key).map(Field::data_type).ok();
        left.zip(right).is_some_and(|(a, b)| (a == b && !a.is_floating()) || (a.is_integer() && b.is_integer()))
    }

    /// Wildcards become columns, and columns of tables keep their names in the output.
    fn items(&mut self, select: &mut Select) {
        let stream_columns: Vec<String> = self.stream.fields().iter().map(|f| f.name().clone()).collect();
        let tables: Vec<(String, Vec<String>)> = self
            .tables
            .iter()
            .map(|t| (t.alias.clone(), t.schema.fields().iter().map(|f| f.name().clone()).collect()))
            .collect();
        let qualified = |alias: &str, column: &str, span: sp::Span| {
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(vec![
                Ident::with_quote_and_span('"', span, alias),
                Ident::with_quote_and_span('"', span, column),
            ]))
        };
        let mut items = Vec::new();
        for item in std::mem::take(&mut select.projection) {
            let span = item.span();
            match &item {
                SelectItem::Wildcard(_) if self.second.is_some() => {
                    let message = "`*` of two streams would have two columns of each name that both have, such as `ts`";
                    let help = format!("write `{}.*` and name what you need of the other", self.source.alias);
                    self.complain(code::OUTPUT_TWICE, span.into(), message, help);
                }
                SelectItem::Wildcard(_) => {
                    items.extend(stream_columns.iter().map(|c| qualified(&self.source.alias, c, span)));
                    for (alias, columns) in &tables {
                        let others = columns.iter().filter(|c| !stream_columns.contains(c));
                        items.extend(others.map(|c| qualified(alias, c, span)));
                    }
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(of), _) => {
                    let of = plain_name(of);
                    let own = tables.iter().find(|(alias, _)| *alias == of);
                    match own {
                        Some((alias, columns)) => items.extend(columns.iter().map(|c| qualified(alias, c, span))),
                        None if of == self.source.alias => {
                            items.extend(stream_columns.iter().map(|c| qualified(&of, c, span)));
                        }
                        None => items.push(item),
                    }
                }
                _ => items.push(item),
            }
        }
        for item in &mut items {
            let named = match item {
                SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts.last().cloned(),
                SelectItem::UnnamedExpr(Expr::Identifier(ident)) => Some(ident.clone()),
                _ => None,
            };
            if let (Some(alias), SelectItem::UnnamedExpr(expr)) = (named, &item) {
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
            }
        }
        select.projection = items;
    }

    /// What an unqualified name means, if it is that of a table's column.
    fn unqualified(&mut self, ident: &Ident) -> Option<String> {
        let column = name::normal(ident);
        let having: Vec<usize> =
            (0..).zip(&self.tables).filter(|(_, t)| t.schema.index_of(&column).is_ok()).map(|(at, _)| at).collect();
        if self.stream.index_of(&column).is_ok() {
            // The key is equal on both sides; any other column of that name could be meant.
            let other = having.iter().filter_map(|at| self.tables.get(*at)).find(|t| {
                let joined = t.on.iter().any(|(stream, key)| *stream == column && *key == column);
                !joined
            });
            if let Some(alias) = other.map(|t| t.alias.clone()) {
                self.ambiguous(ident, &[self.source.alias.clone(), alias]);
            }
            return None;
        }
        match having.as_slice() {
            [] => None,
            [at] => {
                let table = self.tables.get_mut(*at)?;
                Some(table.named(column))
            }
            several => {
                let aliases: Vec<String> =
                    several.iter().filter_map(|at| self.tables.get(*at)).map(|t| t.alias.clone()).collect();
                self.ambiguous(ident, &aliases);
                None
            }
        }
    }

    fn ambiguous(&mut self, ident: &Ident, aliases: &[String]) {
        let column = &ident.value;
        let message = format!("`{column}` is in {}", name::list(aliases.iter().map(String::as_str)));
        let help = format!("write `{}.{column}`", aliases.first().map_or("", String::as_str));
        self.complain(code::UNKNOWN_COLUMN, ident.span.into(), message, help);
    }
}

impl Table<'_> {
    /// What a column of it is called among those of the stream; takes note that it is used.
    fn named(&mut self, column: String) -> String {
        // An inner join of two streams has one device. After LEFT JOIN it may be NULL, which is worth asking for.
        if self.decl.is_none() && !self.outer && column == "device" {
            return column;
        }
        let name = virtual_name(&self.alias, &column);
        self.used.insert(column);
        name
    }
}

impl VisitorMut for Reader<'_, '_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let (name, span) = match &*expr {
            Expr::Identifier(ident) => (self.unqualified(ident), ident.span),
            Expr::CompoundIdentifier(parts) => {
                let [of, ident] = parts.as_slice() else { return ControlFlow::Continue(()) };
                let (of, column) = (name::normal(of), name::normal(ident));
                let Some(table) = self.tables.iter_mut().find(|t| t.alias == of) else {
                    return ControlFlow::Continue(());
                };
                if table.schema.index_of(&column).is_err() {
                    let all = table.schema.fields().iter().map(|f| f.name().as_str());
                    let columns: Vec<&str> = match table.decl {
                        Some(_) => all.collect(),
                        None => all.skip(storage::schema::SYSTEM_COLUMNS.len()).collect(),
                    };
                    let near = name::did_you_mean(&column, table.schema.fields().iter().map(|f| f.name().as_str()));
                    let what = if table.decl.is_some() { "columns" } else { "fields" };
                    let help = near.unwrap_or_else(|| format!("its {what} are {}", name::list(columns)));
                    let message = format!("there is no column `{column}` in `{}`", table.name);
                    self.complain(code::UNKNOWN_COLUMN, ident.span.into(), message, help);
                    return ControlFlow::Continue(());
                }
                (Some(table.named(column)), ident.span)
            }
            _ => return ControlFlow::Continue(()),
        };
        if let Some(name) = name {
            *expr = Expr::Identifier(Ident::with_quote_and_span('"', span, name));
        }
        ControlFlow::Continue(())
    }
}

/// The column of the joined table that `expr` is.
fn own(expr: &Expr, alias: &str, decl: &TableDecl) -> Option<String> {
    match expr {
        Expr::Nested(inner) => own(inner, alias, decl),
        Expr::Identifier(ident) => Some(name::normal(ident)).filter(|c| decl.schema.index_of(c).is_ok()),
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [of, column] if name::normal(of) == alias => {
                Some(name::normal(column)).filter(|c| decl.schema.index_of(c).is_ok())
            }
            _ => None,
        },
        _ => None,
    }
}

fn plain_name(name: &ObjectName) -> String {
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(ident)] => name::normal(ident),
        _ => name.to_string(),
    }
}
