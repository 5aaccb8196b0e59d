//! What is dropped and when, and that nobody sees half of it.

use arrow::array::{ArrayRef, Float64Array, TimestampNanosecondArray};
use datafusion::execution::context::SessionContext;
use proptest::prelude::*;
use std::collections::HashMap;

use super::*;
use crate::layout::Granularity;
use crate::parquet::{TableRows, write_cut};
use crate::schema::timestamp;
use crate::store::Store;

const HOUR: i64 = 3_600_000_000_000;
/// 2026-11-23T00:00:00Z
const DAY: i64 = 1_795_392_000_000_000_000;
/// 2100-01-01T00:00:00Z
const FAR: i64 = 4_102_444_800_000_000_000;

fn hour(number: i64) -> Partition {
    Partition::of(DAY + number * HOUR, Granularity::Hour)
}

#[test]
fn whole_partitions_that_are_too_old_and_no_others() {
    let all: Vec<(Partition, bool)> = (0..10).map(|number| (hour(number), true)).collect();
    let old = |horizon: i64| expired(all.clone(), horizon, &[]).len();
    assert_eq!([old(DAY), old(DAY + HOUR - 1), old(DAY + HOUR), old(DAY + 3 * HOUR + 5)], [0, 0, 1, 3]);
    // A cut that is not done holds its partition, even where other files of it are settled.
    let mut uneven = all.clone();
    uneven.push((hour(1), false));
    assert_eq!(expired(uneven, DAY + 3 * HOUR, &[]), [hour(0), hour(2)]);
    // So does whoever needs a time in it, to the nanosecond.
    let held = [(DAY + HOUR - 1, DAY + HOUR - 1), (DAY + 3 * HOUR, DAY + 4 * HOUR - 1)];
    assert_eq!(expired(all.clone(), DAY + 5 * HOUR, &held), [hour(1), hour(2), hour(4)]);
    // Days and hours side by side, as after a change of the partitioning.
    let mixed = [(Partition::of(DAY, Granularity::Day), true), (hour(30), true), (hour(5), true)];
    assert_eq!(expired(mixed, DAY + 24 * HOUR, &[]), [mixed[0].0, hour(5)]);
}

#[test]
fn neither_clock_alone_makes_anything_old() {
    let (now, newest, retain) = (Timestamp(DAY + 10 * HOUR), DAY + 9 * HOUR, 2 * HOUR);
    let sound = horizon(now, Some(newest), retain);
    assert_eq!(sound, Some(DAY + 7 * HOUR));
    assert_eq!(horizon(Timestamp(FAR), Some(newest), retain), sound, "the engine's clock says 2100");
    assert_eq!(horizon(now, Some(FAR), retain), Some(DAY + 8 * HOUR), "a row says 2100");
    assert_eq!(horizon(Timestamp(0), Some(newest), retain), Some(-retain), "the engine's clock says 1970");
    assert_eq!(horizon(now, None, retain), None);
    assert_eq!(horizon(Timestamp(i64::MIN), Some(i64::MIN), i64::MAX), Some(i64::MIN));
}

proptest! {
    #[test]
    fn nothing_younger_or_held_goes_and_nothing_else_stays(
        hours in prop::collection::vec((0i64..48, any::<bool>()), 0..40),
        now in 0i64..60, newest in 0i64..60, retain in 0i64..48,
        held in prop::collection::vec((0i64..48 * 60, 0i64..180), 0..4),
    ) {
        let held: Vec<Range> =
            held.iter().map(|(from, len)| (DAY + from * HOUR / 60, DAY + (from + len) * HOUR / 60)).collect();
        let seen: Vec<(Partition, bool)> = hours.iter().map(|(number, settled)| (hour(*number), *settled)).collect();
        let line = horizon(Timestamp(DAY + now * HOUR), Some(DAY + newest * HOUR), retain * HOUR).unwrap();
        let gone: BTreeSet<Partition> = expired(seen.clone(), line, &held).into_iter().collect();
        for (partition, _) in &seen {
            let (first, last) = partition.span();
            let old = last < DAY + now.min(newest) * HOUR - retain * HOUR;
            let settled = seen.iter().all(|(other, settled)| other != partition || *settled);
            let needed = held.iter().any(|(from, to)| *from <= last && *to >= first);
            prop_assert_eq!(gone.contains(partition), old && settled && !needed);
        }
    }
}

/// Rows of two devices, three of `a` and one of `b`, in some hour.
fn rows(number: i64, seq: i64) -> RecordBatch {
    let fields = vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("epoch", DataType::Int64, false),
        Field::new("seq", DataType::Int64, false),
        Field::new("ts", timestamp(), false),
        Field::new("v", DataType::Float64, true),
    ];
    let times = (0..4).map(|at| DAY + number * HOUR + at);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["a", "a", "a", "b"])),
        Arc::new(Int64Array::from(vec![7, 7, 8, 9])),
        Arc::new(Int64Array::from_iter_values(seq..seq + 4)),
        Arc::new(TimestampNanosecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(Float64Array::from(vec![0.5; 4])),
    ];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

async fn cut(store: &Store, shard: u16, from: u64, number: i64) {
    let table = TableRows {
        table: "t".to_owned(),
        version: "1.0".to_owned(),
        time_column: "ts".to_owned(),
        granularity: Granularity::Hour,
        batches: vec![rows(number, number * 100)],
    };
    write_cut(store, ShardId(shard), Barrier(from), Barrier(from + 1), vec![table]).await.unwrap();
}

async fn count(tables: &TableStore) -> usize {
    let session = SessionContext::new();
    tables.register_all(&session, HashMap::new()).await.unwrap();
    session.sql("SELECT seq FROM t").await.unwrap().count().await.unwrap()
}

#[tokio::test]
async fn a_partition_goes_at_once_and_its_files_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::local(dir.path()).unwrap();
    let tables = TableStore::open(store.clone());
    for (number, shard) in [(0, 0), (0, 1), (1, 0), (2, 0)] {
        cut(&store, shard, number as u64, number).await;
    }
    let census = tables.census("t", None).await.unwrap();
    assert_eq!((census.files.len(), census.newest), (4, Some(DAY + 2 * HOUR + 3)), "the newest row, not its hour");
    let done = BTreeMap::from([(ShardId(0), Barrier(9))]);
    assert_eq!(census.files.iter().filter(|file| file.settled(&done)).count(), 3, "nothing is known of shard 1");

    let session = SessionContext::new();
    tables.register_all(&session, HashMap::new()).await.unwrap();
    let before = session.sql("SELECT seq FROM t").await.unwrap();
    let files: Vec<File> =
        census.files.iter().filter(|f| f.partition == hour(0)).map(|f| (f.partition, f.name)).collect();
    let counts = tables.count("t", &files).await.unwrap();
    let expected = [(("a".to_owned(), 7), 4), (("a".to_owned(), 8), 2), (("b".to_owned(), 9), 2)];
    assert_eq!(counts, Counts::from(expected.clone()));
    let moment = tables.hide("t", &files, &counts).await.unwrap();
    assert_eq!(count(&tables).await, 8, "it is out of every listing");
    assert!(!tables.unread_since(moment), "a query that began before may still read it");
    assert_eq!(before.count().await.unwrap(), 16);
    drop(session);
    assert!(tables.unread_since(moment));

    // Half of it is gone when the process dies: the next one sees nothing of the other half.
    tables.store().erasing().delete(&layout::table_file("t", files[0].0, files[0].1).into()).await.unwrap();
    let tables = TableStore::open(store.clone());
    assert_eq!(count(&tables).await, 8);
    assert_eq!(tables.hidden("t").await.unwrap(), files);
    tables.erase("t", &files).await.unwrap();
    assert!(tables.hidden("t").await.unwrap().is_empty());
    let date = dir.path().join("tables/t/date=2026-11-23");
    assert!(date.join("hour=01").is_dir() && !date.join("hour=00").exists(), "its folder has gone with its files");
    assert_eq!(tables.expired("t").await.unwrap(), Counts::from(expected));

    // What comes late for that hour counts again, until the next look.
    cut(&store, 1, 5, 0).await;
    assert_eq!(count(&tables).await, 12);
    let late = tables.census("t", None).await.unwrap().files[0];
    let counts = tables.count("t", &[(late.partition, late.name)]).await.unwrap();
    tables.hide("t", &[(late.partition, late.name)], &counts).await.unwrap();
    assert_eq!(tables.expired("t").await.unwrap().values().sum::<u64>(), 12);
    let kept = std::fs::read_dir(dir.path().join("registry/expired")).unwrap().count();
    assert_eq!(kept, 1, "the older count is deleted");
}

#[tokio::test]
async fn dead_letters_are_counted_by_the_records_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::local(dir.path()).unwrap();
    let schema = crate::schema::dead_letters_schema();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["a", "a", "a"])),
        Arc::new(StringArray::from(vec!["t"; 3])),
        Arc::new(TimestampNanosecondArray::from(vec![DAY; 3]).with_timezone("UTC")),
        Arc::new(StringArray::from(vec!["r"; 3])),
        Arc::new(StringArray::from(vec!["x"; 3])),
        Arc::new(arrow::array::BinaryArray::from_vec(vec![b"p"; 3])),
        Arc::new(Int64Array::from(vec![Some(4), Some(4), None])),
        Arc::new(Int64Array::from(vec![Some(1), Some(9), None])),
        Arc::new(arrow::array::UInt32Array::from(vec![Some(8), Some(1), None])),
    ];
    let table = TableRows {
        table: DEAD_LETTERS.to_owned(),
        version: "1.0".to_owned(),
        time_column: "ts_ingest".to_owned(),
        granularity: Granularity::Day,
        batches: vec![RecordBatch::try_new(schema, columns).unwrap()],
    };
    write_cut(&store, ShardId(0), Barrier(0), Barrier(1), vec![table]).await.unwrap();
    let tables = TableStore::open(store);
    let file = tables.census(DEAD_LETTERS, None).await.unwrap().files[0];
    let counts = tables.count(DEAD_LETTERS, &[(file.partition, file.name)]).await.unwrap();
    assert_eq!(counts, Counts::from([(("a".to_owned(), 4), 9)]));
}

/// Golden: a count as it was first written. `WEIR_GOLDEN=write` writes it if it is not there.
#[test]
fn a_count_of_the_first_version_is_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/expired_v1.arrow");
    let counts = Counts::from([(("a".to_owned(), 7), 40), (("b".to_owned(), i64::MAX), 2)]);
    if std::env::var("WEIR_GOLDEN").is_ok_and(|value| value == "write") && !std::path::Path::new(path).exists() {
        std::fs::write(path, encode(&counts).unwrap()).unwrap();
    }
    let stored = std::fs::read(path).unwrap();
    assert_eq!(decode(stored.into()).unwrap(), counts);
    assert_eq!(decode(encode(&counts).unwrap().into()).unwrap(), counts);
    assert!(decode(b"no count".to_vec().into()).is_err());
}
