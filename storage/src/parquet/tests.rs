//! Files read back by the plain Parquet reader: same rows, same bytes, the encodings they should have.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, StringArray, TimestampNanosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimestampNanosecondType};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Encoding;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;

use super::*;
use crate::schema::timestamp;

const HOUR: i64 = 3_600_000_000_000;

fn meta() -> FileMeta {
    FileMeta {
        table: "t".to_owned(),
        version: "1.2".to_owned(),
        time_column: "ts".to_owned(),
        file: FileName { shard: ShardId(3), from: Barrier(4), to: Barrier(9) },
    }
}

type Row = (String, i64, i64, i64, Option<f64>);

fn batch(rows: &[Row]) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("ts", timestamp(), false),
        Field::new("epoch", DataType::Int64, false),
        Field::new("seq", DataType::Int64, false),
        Field::new("v", DataType::Float64, true).with_metadata(
            [("unit".to_owned(), "Cel".to_owned()), ("description".to_owned(), "how warm".to_owned())].into(),
        ),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.0))),
        Arc::new(TimestampNanosecondArray::from_iter_values(rows.iter().map(|r| r.1)).with_timezone("UTC")),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.2))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.3))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|r| r.4))),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

fn read(bytes: &Bytes) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema, &batches).unwrap()
}

fn rows(batch: &RecordBatch) -> Vec<Row> {
    let column = |name| batch.column_by_name(name).unwrap();
    (0..batch.num_rows())
        .map(|row| {
            let v = column("v").as_primitive::<Float64Type>();
            (
                column("device").as_string::<i32>().value(row).to_owned(),
                column("ts").as_primitive::<TimestampNanosecondType>().value(row),
                column("epoch").as_primitive::<Int64Type>().value(row),
                column("seq").as_primitive::<Int64Type>().value(row),
                v.is_valid(row).then(|| v.value(row)),
            )
        })
        .collect()
}

fn many(count: usize, devices: usize, full_precision: bool) -> Vec<Row> {
    (0..count)
        .map(|at| {
            let mixed = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            let v = if full_precision { mixed as f64 / 7.0 } else { (mixed % 400) as f64 / 10.0 };
            (format!("device-{:05}", at % devices), at as i64 * 1_000_000, 77, at as i64, Some(v))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn rows_come_back_sorted_and_whole(
        mut input in prop::collection::vec(("[a-c]{0,2}", -5i64..5, 0i64..2, 0i64..4, prop::option::of(-1e9f64..1e9)), 1..60),
        cuts in prop::collection::vec(0usize..60, 0..4),
    ) {
        let whole = encode(&meta(), &[batch(&input)]).unwrap();
        let mut batches = Vec::new();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(input.len())).chain([0, input.len()]).collect();
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            batches.push(batch(&input[pair[0]..pair[1]]));
        }
        prop_assert!(encode(&meta(), &batches).unwrap() == whole, "the borders of batches show in the bytes");
        input.sort_by(|a, b| (&a.0, a.1, a.2, a.3).cmp(&(&b.0, b.1, b.2, b.3)));
        prop_assert_eq!(rows(&read(&whole)), input);
    }

    #[test]
    fn each_row_goes_to_the_partition_of_its_time(times in prop::collection::vec(-9i64..9, 0..50), by_hour: bool) {
        let granularity = if by_hour { Granularity::Hour } else { Granularity::Day };
        let input: Vec<Row> =
            times.iter().enumerate().map(|(at, t)| ("d".to_owned(), t * HOUR * 3 / 2, 0, at as i64, None)).collect();
        let split = split_by_partition(&batch(&input), "ts", granularity).unwrap();
        let mut all: Vec<Row> = Vec::new();
        for (partition, batch) in split {
            for row in rows(&batch) {
                prop_assert_eq!(Partition::of(row.1, granularity), partition);
                all.push(row);
            }
        }
        all.sort_by_key(|row| row.3);
        prop_assert_eq!(all, input);
    }
}

#[test]
fn columns_get_the_encoding_that_suits_them() {
    for (full_precision, expected) in [(false, Encoding::RLE_DICTIONARY), (true, Encoding::BYTE_STREAM_SPLIT)] {
        let bytes = encode(&meta(), &[batch(&many(20_000, 50, full_precision))]).unwrap();
        let file = SerializedFileReader::new(bytes).unwrap();
        let group = file.metadata().row_group(0);
        let encodings = |column: usize| group.column(column).encodings().collect::<Vec<_>>();
        assert!(encodings(0).contains(&Encoding::RLE_DICTIONARY));
        assert!(
            encodings(1).contains(&Encoding::DELTA_BINARY_PACKED) && !encodings(1).contains(&Encoding::RLE_DICTIONARY)
        );
        assert!(encodings(3).contains(&Encoding::DELTA_BINARY_PACKED));
        assert!(encodings(4).contains(&expected), "{:?}", encodings(4));
        assert_eq!(encodings(4).contains(&Encoding::RLE_DICTIONARY), !full_precision);
        assert!(group.column(0).bloom_filter_offset().is_none());
    }
    let bytes = encode(&meta(), &[batch(&many(5_000, 1_500, false))]).unwrap();
    assert!(
        SerializedFileReader::new(bytes).unwrap().metadata().row_group(0).column(0).bloom_filter_offset().is_some()
    );
}

#[test]
fn a_file_says_what_it_is() {
    let bytes = encode(&meta(), &[batch(&many(50_000, 10, false))]).unwrap();
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options).unwrap();
    assert_eq!(reader.schema().field(1).data_type(), &timestamp());
    assert_eq!(reader.schema().field(0).data_type(), &DataType::Utf8);
    let metadata = reader.metadata().file_metadata();
    assert!(metadata.created_by().unwrap().starts_with("weir version"));
    let entries: Vec<(&str, &str)> = metadata
        .key_value_metadata()
        .unwrap()
        .iter()
        .map(|entry| (entry.key.as_str(), entry.value.as_deref().unwrap()))
        .collect();
    for expected in [
        ("weir.table", "t"),
        ("weir.schema_version", "1.2"),
        ("weir.shard", "3"),
        ("weir.barrier_from", "4"),
        ("weir.barrier_to", "9"),
        ("weir.time_column", "ts"),
        ("weir.unit.v", "Cel"),
        ("weir.description.v", "how warm"),
    ] {
        assert!(entries.contains(&expected), "{expected:?} is missing in {entries:?}");
    }
    let pages = reader.metadata().offset_index().unwrap()[0][1].page_locations().len();
    assert!(pages > 1, "no page index to speak of: {pages}");
}

#[tokio::test]
async fn a_cut_stands_on_the_store_and_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::local(dir.path()).unwrap();
    let input: Vec<Row> = (0..5).map(|at| ("d".to_owned(), at * HOUR / 2, 1, at, Some(1.0))).collect();
    let tables = || {
        vec![TableRows {
            table: "t".to_owned(),
            version: "1.0".to_owned(),
            time_column: "ts".to_owned(),
            granularity: Granularity::Hour,
            batches: vec![batch(&input[..2]), batch(&input[2..])],
        }]
    };
    let written = write_cut(&store, ShardId(1), Barrier(0), Barrier(2), tables()).await.unwrap();
    let paths: Vec<&str> = written.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "tables/t/date=1970-01-01/hour=00/0001-000000000000-000000000002.parquet",
            "tables/t/date=1970-01-01/hour=01/0001-000000000000-000000000002.parquet",
            "tables/t/date=1970-01-01/hour=02/0001-000000000000-000000000002.parquet",
        ]
    );
    let content = |at: usize| Bytes::from(std::fs::read(dir.path().join(paths[at])).unwrap());
    assert_eq!(rows(&read(&content(0))), input[..2]);
    let before: Vec<Bytes> = (0..3).map(content).collect();
    assert_eq!(write_cut(&store, ShardId(1), Barrier(0), Barrier(2), tables()).await.unwrap(), written);
    assert_eq!((0..3).map(content).collect::<Vec<_>>(), before);
}

#[test]
fn columns_that_came_later_are_null_before() {
    let with_more = {
        let plain = batch(&many(3, 1, false));
        let mut fields: Vec<Field> = plain.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
        fields.push(Field::new("more", DataType::Int64, true));
        let mut columns = plain.columns().to_vec();
        columns.push(Arc::new(Int64Array::from(vec![1, 2, 3])));
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    };
    let both = read(&encode(&meta(), &[batch(&many(2, 2, false)), with_more]).unwrap());
    assert_eq!(both.num_rows(), 5);
    assert_eq!(both.column_by_name("more").unwrap().null_count(), 2);
}

/// Golden: a file as format 1 has it. `WEIR_GOLDEN=write` writes it if it is not there.
#[test]
fn the_bytes_are_those_of_format_1() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/table_v1.parquet");
    let expected: Vec<Row> = vec![
        ("a".to_owned(), 1_795_428_000_000_000_001, 7, 1, Some(21.5)),
        ("a".to_owned(), 1_795_428_001_000_000_000, 7, 2, None),
        ("b".to_owned(), 1_795_428_000_500_000_000, i64::MAX, 9, Some(-0.0)),
    ];
    let today = encode(&meta(), &[batch(&expected)]).unwrap();
    if std::env::var("WEIR_GOLDEN").is_ok_and(|value| value == "write") && !std::path::Path::new(path).exists() {
        std::fs::write(path, &today).unwrap();
    }
    let stored = Bytes::from(std::fs::read(path).unwrap());
    assert_eq!(rows(&read(&stored)), expected);
    let metadata = |bytes: &Bytes| {
        let reader = SerializedFileReader::new(bytes.clone()).unwrap();
        let pairs = reader.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
        pairs.into_iter().map(|pair| (pair.key, pair.value.unwrap_or_default())).collect::<Vec<_>>()
    };
    let known: Vec<(String, String)> = [
        ("weir.format", "1"),
        ("weir.table", "t"),
        ("weir.schema_version", "1.2"),
        ("weir.shard", "3"),
        ("weir.barrier_from", "4"),
        ("weir.barrier_to", "9"),
        ("weir.writer", "0.1.0"),
        ("weir.time_column", "ts"),
        ("weir.unit.v", "Cel"),
        ("weir.description.v", "how warm"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec();
    assert_eq!(metadata(&stored), known);
    assert_eq!(today, stored, "today's file is another than format 1's: if the Parquet library changed it, keep both");
}
