//! Reads the rows of reference tables from files and objects. Beside `source`, the only part of this crate that touches
//! the disk.
//!
//! CSV with a header, JSON with one object per line, or Parquet, by the ending of the name. Columns are found by name;
//! those that the declaration does not have are not read. Each row has a key of its own, or the table is refused:
//! a lookup finds one row or none.

use std::collections::HashMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{self, CastOptions};
use arrow::csv;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json;
use arrow::row::{RowConverter, SortField};
use arrow::util::display::array_value_to_string;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use storage::object;

use crate::diagnostic::{Diagnostic, code};
use crate::name;
use crate::project::{Place, Project, TableDecl};

/// A table is held in memory, once in each shard and pipeline that looks rows up in it.
const MAX_BYTES: u64 = 64 << 20;

/// Rows read at a time.
const BATCH: usize = 8192;

/// Reads the rows of all reference tables into the project. All mistakes of all tables in one run.
pub fn read_tables(project: &mut Project) -> Result<(), Vec<Diagnostic>> {
    let mut found = Vec::new();
    let settings = object::environment();
    for decl in project.tables.clone() {
        let (shown, read) = match decl.place() {
            Place::File(path) => (path.display().to_string(), file(&path).map_err(|wrong| (code::REFERENCE, wrong))),
            Place::Object(url) => {
                let read = object::read(&url, &settings, MAX_BYTES).map_err(|error| {
                    let code = if error.may_pass() { code::UNREACHABLE } else { code::REFERENCE };
                    (code, (error.to_string(), error.help()))
                });
                (url, read)
            }
        };
        let rows = read.and_then(|bytes| rows(&decl, bytes).map_err(|wrong| (code::REFERENCE, wrong)));
        match rows {
            Ok(rows) => project.set_rows(&decl.name, &rows),
            Err((code, (message, help))) => {
                let message = format!("{shown}: {message}");
                found.push(Diagnostic::error(code, &decl.at.0, decl.location_at, message).help(help));
            }
        }
    }
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// Message and help.
type Wrong = (String, String);

fn file(path: &Path) -> Result<Bytes, Wrong> {
    let unreadable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => {
            let help = "the path is relative to the folder of this file".to_owned();
            ("no such file".to_owned(), help)
        }
        _ => (format!("cannot be read: {e}"), "see that the file may be read".to_owned()),
    };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_BYTES {
        let help = "keep what pipelines need, and join the rest when you query the tables";
        return Err((format!("{bytes} bytes, and a reference table may have {MAX_BYTES}"), help.to_owned()));
    }
    fs::read(path).map(Bytes::from).map_err(unreadable)
}

fn rows(decl: &TableDecl, bytes: Bytes) -> Result<RecordBatch, Wrong> {
    let ending = Path::new(&decl.location).extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let read = match ending.as_str() {
        "csv" => from_csv(&decl.schema, &bytes)?,
        "json" | "ndjson" | "jsonl" => from_json(&decl.schema, &bytes)?,
        "parquet" => from_parquet(&decl.schema, bytes)?,
        _ => {
            let help = "name it .csv, .ndjson or .parquet".to_owned();
            return Err(("it is not known what the file holds".to_owned(), help));
        }
    };
    unique(decl, &read)?;
    Ok(read)
}

fn wrong(error: ArrowError) -> Wrong {
    let message = error.to_string();
    let plain = message.split_once(": ").map_or(message.as_str(), |(_, rest)| rest);
    (plain.to_owned(), "correct the file, or the types of the declaration".to_owned())
}

fn concat(schema: &SchemaRef, batches: Vec<RecordBatch>) -> Result<RecordBatch, Wrong> {
    let batch = compute::concat_batches(&batches.first().map_or_else(|| schema.clone(), RecordBatch::schema), &batches);
    let batch = batch.map_err(wrong)?;
    // In the order and with the metadata of the declaration.
    let columns = schema.fields().iter().map(|field| column(&batch, field)).collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema.clone(), columns).map_err(wrong)
}

fn column(batch: &RecordBatch, field: &FieldRef) -> Result<ArrayRef, Wrong> {
    let Some(found) = batch.column_by_name(field.name()) else {
        let schema = batch.schema();
        let known = schema.fields().iter().map(|f| f.name().as_str());
        let help =
            name::did_you_mean(field.name(), known.clone()).unwrap_or_else(|| format!("it has {}", name::list(known)));
        return Err((format!("there is no column `{}`", field.name()), help));
    };
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    compute::cast_with_options(found, field.data_type(), &strict).map_err(|error| {
        let (message, help) = wrong(error);
        (format!("column `{}`: {message}", field.name()), help)
    })
}

fn from_csv(schema: &SchemaRef, bytes: &[u8]) -> Result<RecordBatch, Wrong> {
    let header = csv::reader::Format::default().with_header(true).infer_schema(Cursor::new(bytes), Some(0));
    let (header, _) = header.map_err(wrong)?;
    let fields: Vec<FieldRef> = header
        .fields()
        .iter()
        .map(|field| match schema.field_with_name(field.name()) {
            Ok(declared) => Arc::new(declared.clone()),
            Err(_) => Arc::new(Field::new(field.name(), DataType::Utf8, true)),
        })
        .collect();
    let builder = csv::ReaderBuilder::new(Arc::new(Schema::new(fields))).with_header(true).with_batch_size(BATCH);
    let reader = builder.build(Cursor::new(bytes)).map_err(wrong)?;
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    match batches.is_empty() {
        // A header alone: its columns are looked at all the same.
        true => concat(schema, vec![RecordBatch::new_empty(Arc::new(header))]),
        false => concat(schema, batches),
    }
}

fn from_json(schema: &SchemaRef, bytes: &[u8]) -> Result<RecordBatch, Wrong> {
    let builder = json::ReaderBuilder::new(schema.clone()).with_batch_size(BATCH);
    let reader = builder.build(Cursor::new(bytes)).map_err(wrong)?;
    concat(schema, reader.collect::<Result<_, _>>().map_err(wrong)?)
}

fn from_parquet(schema: &SchemaRef, bytes: Bytes) -> Result<RecordBatch, Wrong> {
    let damaged = |e: parquet::errors::ParquetError| (e.to_string(), "write the file anew".to_owned());
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(damaged)?;
    let found = builder.schema().clone();
    let reader = builder.build().map_err(damaged)?;
    let mut batches = reader.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    batches.push(RecordBatch::new_empty(found));
    concat(schema, batches)
}

/// Each row has a key, and no other row has the same.
fn unique(decl: &TableDecl, rows: &RecordBatch) -> Result<(), Wrong> {
    let columns: Vec<ArrayRef> = decl.key.iter().filter_map(|key| rows.column_by_name(key).cloned()).collect();
    for (key, column) in decl.key.iter().zip(&columns) {
        if let Some(row) = (0..column.len()).find(|row| column.is_null(*row)) {
            let help = "give each record its key, or leave it out".to_owned();
            return Err((format!("record {} has no `{key}`", row + 1), help));
        }
    }
    let fields = columns.iter().map(|c| SortField::new(c.data_type().clone())).collect();
    let keys = RowConverter::new(fields).and_then(|converter| converter.convert_columns(&columns)).map_err(wrong)?;
    let mut seen: HashMap<&[u8], usize> = HashMap::with_capacity(rows.num_rows());
    for (row, key) in keys.iter().enumerate() {
        if let Some(first) = seen.insert(key.data(), row) {
            let shown: Vec<String> = columns.iter().filter_map(|c| array_value_to_string(c, row).ok()).collect();
            let message = format!("records {} and {} have the same key: {}", first + 1, row + 1, shown.join(", "));
            return Err((message, "keep one of them: a lookup finds one row".to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceFile;

    const DECLARED: &str = "CREATE TABLE sites (device TEXT, floor BIGINT, share DOUBLE, open BOOLEAN)
WITH (location = '@', key = 'device');";

    fn read(name: &str, bytes: &[u8]) -> Result<RecordBatch, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), bytes).unwrap();
        let file = dir.path().join("p.sql").display().to_string();
        let files = [SourceFile { name: file, text: DECLARED.replace('@', name) }];
        let mut project = crate::check(&files).unwrap();
        match read_tables(&mut project) {
            Ok(()) => Ok(project.tables[0].rows.clone()),
            Err(found) => {
                let found = found.first().unwrap();
                assert_eq!((found.line, found.column), (2, 18), "it points to the location");
                let message = found.message.rsplit_once(&format!("{name}: ")).unwrap().1;
                Err(format!("{message} | {}", found.help.clone().unwrap_or_default()))
            }
        }
    }

    fn shown(rows: &RecordBatch) -> Vec<String> {
        let text = |row| {
            let cells = rows.columns().iter().map(|c| array_value_to_string(c, row).unwrap());
            cells.collect::<Vec<_>>().join("/")
        };
        (0..rows.num_rows()).map(text).collect()
    }

    #[test]
    fn the_same_rows_from_every_format() {
        let csv = "note,open,floor,device,share\nx,true,3,a,0.5\n,,,b,\n\"y,z\",false,-1,\"c d\",2\n";
        let rows = read("s.csv", csv.as_bytes()).unwrap();
        assert_eq!(shown(&rows), ["a/3/0.5/true", "b///", "c d/-1/2.0/false"]);
        let json = "{\"device\":\"a\",\"floor\":3,\"share\":0.5,\"open\":true,\"more\":[1]}\n{\"device\":\"b\"}\n{\"device\":\"c d\",\"floor\":-1,\"share\":2,\"open\":false}\n";
        assert_eq!(read("s.ndjson", json.as_bytes()).unwrap(), rows);
        let mut parquet = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut parquet, rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        assert_eq!(read("s.parquet", &parquet).unwrap(), rows);
        assert_eq!(read("s.csv", b"device,floor,share,open\n").unwrap().num_rows(), 0);
    }

    #[test]
    fn what_cannot_be_a_table_is_refused_with_the_reason() {
        let says = |name: &str, text: &str| read(name, text.as_bytes()).unwrap_err();
        assert!(
            says("s.csv", "device,flor,share,open\na,1,1,true\n").contains("no column `floor` | did you mean `flor`?")
        );
        assert!(says("s.csv", "device,floor,share,open\na,x,1,true\n").contains("'x' as type 'Int64'"));
        assert!(says("s.csv", "device,floor,share,open\na,1,1\n").contains("line"));
        assert!(says("s.csv", "device,floor,share,open\na,1,1,true\n,1,1,true\n").contains("record 2 has no `device`"));
        let twice = says("s.csv", "device,floor,share,open\na,1,1,true\nb,1,1,true\na,2,1,true\n");
        assert!(twice.contains("records 1 and 3 have the same key: a"), "{twice}");
        assert!(
            says("s.ndjson", "{\"device\":\"a\",\"floor\":\"x\"}").contains("x"),
            "{}",
            says("s.ndjson", "{\"device\":\"a\",\"floor\":\"x\"}")
        );
        assert!(says("s.ndjson", "{\"device\":").contains("|"));
        assert!(says("s.parquet", "no").contains("|"));
        assert!(says("s.txt", "a").contains("not known what the file holds | name it"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let files = [SourceFile { name: "f/p.sql".to_owned(), text: DECLARED.replace('@', "gone.csv") }];
        let mut project = crate::check(&files).unwrap();
        let found = read_tables(&mut project).unwrap_err();
        assert_eq!(found[0].message, "f/gone.csv: no such file");
    }
}
