//! A reference table's declaration: which columns its rows have, where they stand, and by what they are looked up.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema};
use datafusion::sql::sqlparser::ast::Ident;
use device::schema::FieldType;

use crate::diagnostic::{Diagnostic, Span, code};
use crate::name;
use crate::option::Options;
use crate::project::TableDecl;
use crate::statement::StreamHead;
use crate::stream::{self, Of};

const EXAMPLE: &str = "as in WITH (location = 'sites.csv', key = 'device')";

/// Checks one declaration. Gives it back even if something is wrong with it, so that queries over it can be checked.
pub(crate) fn check(file: &str, ident: &Ident, head: &StreamHead, found: &mut Vec<Diagnostic>) -> TableDecl {
    let fields = stream::fields(file, &head.columns, Of::Table, found);
    let fields: Vec<_> = fields.into_iter().map(|(field, _)| field).collect();
    for field in &fields {
        let column = head.columns.iter().find(|c| name::normal(&c.name) == *field.name);
        if let (FieldType::F64List | FieldType::I64List | FieldType::Bytes, Some(column)) = (field.kind, column) {
            let message = "a reference table holds numbers, texts and truth values";
            let help = "leave the column out";
            found.push(Diagnostic::error(code::BAD_TYPE, file, column.kind_span, message).help(help));
        }
    }
    let fields: Vec<Field> = fields
        .into_iter()
        .map(|field| {
            let metadata = [("unit", field.unit.clone()), ("description", field.comment.clone())];
            let metadata = metadata.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
            Field::new(&*field.name, storage::schema::data_type(field.kind), true).with_metadata(metadata)
        })
        .collect();
    let schema = Arc::new(Schema::new(fields));

    let span = Span::from(ident.span);
    let mut options = Options::new(file, &head.options);
    let location_at = head.options.iter().find(|o| o.name == "location").map_or(span, |o| o.span);
    let location = options.text("location", |text| match text {
        _ if text.trim().is_empty() => Err(format!("write the path of a file, {EXAMPLE}")),
        _ if storage::object::is_url(text) => match storage::object::check(text) {
            Ok(()) => Ok(text.to_owned()),
            Err(error) => Err(format!("{error}: {}", error.help())),
        },
        _ => Ok(text.to_owned()),
    });
    let named = |column: &str| schema.index_of(column).is_ok();
    let key = options.text("key", |text| {
        let columns: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
        match columns.iter().find(|column| !named(column)) {
            None => Ok(columns),
            Some(wrong) => Err(name::did_you_mean(wrong, schema.fields().iter().map(|f| f.name().as_str()))
                .unwrap_or_else(|| format!("`{wrong}` is none of its columns"))),
        }
    });
    for (option, missing) in [("location", location.is_none()), ("key", key.is_none())] {
        if missing && !head.options.iter().any(|o| o.name == option) {
            let what = if option == "key" { "what its rows are looked up by" } else { "where its rows stand" };
            let message = format!("a reference table says {what}");
            let help = format!("give it the option `{option}`, {EXAMPLE}");
            found.push(Diagnostic::error(code::BAD_OPTION, file, span, message).help(help));
        }
    }
    found.extend(options.finish());
    TableDecl {
        name: name::normal(ident),
        rows: RecordBatch::new_empty(schema.clone()),
        schema,
        key: key.unwrap_or_default(),
        location: location.unwrap_or_default(),
        comment: head.comment.clone(),
        at: (file.to_owned(), span),
        location_at,
    }
}
