//! Merging: what is chosen, what comes out, and that no sequence of steps and crashes shows a row twice or not at all.

use std::collections::{BTreeSet, HashMap};

use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, StringArray, TimestampNanosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{Field, Float64Type, Int64Type, Schema, TimestampNanosecondType};
use datafusion::execution::context::SessionContext;
use device::id::ShardId;
use device::seq::Barrier;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;

use super::*;
use crate::layout::Granularity;
use crate::parquet::{TableRows, write_cut};
use crate::schema::timestamp;
use crate::store::Store;

const HOUR: i64 = 3_600_000_000_000;
/// 2026-11-23T00:00:00Z
const DAY: i64 = 1_795_392_000_000_000_000;

fn name(from: u64, to: u64) -> FileName {
    FileName { shard: ShardId(0), from: Barrier(from), to: Barrier(to) }
}

fn input(from: u64, to: u64, fields: &[(&str, DataType)], group_bytes: u64) -> Input {
    let fields: Vec<Field> = fields.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect();
    Input { name: name(from, to), schema: Arc::new(Schema::new(fields)), group_bytes }
}

#[test]
fn neighbours_are_chosen_within_bounds() {
    let (int, float) = (("v", DataType::Int64), ("v", DataType::Float64));
    let of = |sizes: &[u64]| -> Vec<Input> {
        (0..).zip(sizes).map(|(at, bytes)| input(at, at + 1, std::slice::from_ref(&int), *bytes)).collect()
    };
    assert_eq!(plan(&[]), None);
    assert_eq!(plan(&of(&[5])), None);
    assert_eq!(plan(&of(&[5, 5, 5])), Some(0..3));
    assert_eq!(plan(&of(&[1; 200])), Some(0..MAX_FILES));
    assert_eq!(plan(&of(&[MAX_GROUP_BYTES, MAX_GROUP_BYTES, 1])), Some(0..2), "two always");
    assert_eq!(plan(&of(&[MAX_GROUP_BYTES / 2, MAX_GROUP_BYTES / 2, 1])), Some(0..2));
    // A gap is no obstacle: no cut between had rows. An overlap that covers nothing is not touched.
    assert_eq!(plan(&[input(0, 1, &[], 1), input(7, 9, &[], 1)]), Some(0..2));
    assert_eq!(plan(&[input(0, 3, &[], 1), input(2, 4, &[], 1), input(4, 5, &[], 1)]), Some(1..3));
    // A column that has changed its type parts files for ever; one that came later does not.
    let extra = ("w", DataType::Utf8);
    let files = [
        input(0, 1, std::slice::from_ref(&int), 1),
        input(1, 2, std::slice::from_ref(&float), 1),
        input(2, 3, &[float.clone(), extra.clone()], 1),
        input(3, 4, std::slice::from_ref(&extra), 1),
        input(4, 5, std::slice::from_ref(&int), 1),
    ];
    assert_eq!(plan(&files), Some(1..4));
    assert_eq!(plan(&[files[0].clone(), files[1].clone()]), None);
}

/// Rows of a few devices; `v` has few values, `w` all different ones and is there from some time on.
fn rows(start: i64, seqs: Range<i64>, with_more: bool) -> RecordBatch {
    let mut fields = vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("epoch", DataType::Int64, false),
        Field::new("seq", DataType::Int64, false),
        Field::new("ts", timestamp(), false),
        Field::new("v", DataType::Float64, true).with_metadata([("unit".to_owned(), "Cel".to_owned())].into()),
        Field::new("list", DataType::new_list(DataType::Int64, true), true),
    ];
    let lists = arrow::array::ListArray::from_iter_primitive::<Int64Type, _, _>(
        seqs.clone().map(|seq| (seq % 3 > 0).then(|| vec![Some(seq), None])),
    );
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(seqs.clone().map(|seq| format!("d{}", seq % 5)))),
        Arc::new(Int64Array::from_iter_values(seqs.clone().map(|seq| seq % 2))),
        Arc::new(Int64Array::from_iter_values(seqs.clone())),
        Arc::new(
            TimestampNanosecondArray::from_iter_values(seqs.clone().map(|seq| start + seq % 1000 / 3))
                .with_timezone("UTC"),
        ),
        Arc::new(Float64Array::from_iter(seqs.clone().map(|seq| (seq % 7 > 0).then_some((seq % 50) as f64 / 10.0)))),
        Arc::new(lists),
    ];
    if with_more {
        fields.push(Field::new("w", DataType::Float64, true));
        columns.push(Arc::new(Float64Array::from_iter_values(seqs.map(|seq| (seq as f64).sqrt()))));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

struct Fixture {
    dir: tempfile::TempDir,
    tables: TableStore,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Not synced: there are thousands of files here, and no power to fail.
        let tables = TableStore::open(Store::scratch(dir.path()).unwrap());
        Self { dir, tables }
    }

    async fn cut(&self, shard: u16, (from, to): (u64, u64), batches: Vec<RecordBatch>) {
        let table = TableRows {
            table: "t".to_owned(),
            version: "1.3".to_owned(),
            time_column: "ts".to_owned(),
            granularity: Granularity::Hour,
            batches,
        };
        write_cut(self.tables.store(), ShardId(shard), Barrier(from), Barrier(to), vec![table]).await.unwrap();
    }

    /// Numbers that a query finds, sorted.
    async fn seen(&self) -> Vec<i64> {
        let session = SessionContext::new();
        self.tables.register_all(&session, HashMap::new()).await.unwrap();
        let Ok(frame) = session.sql("SELECT seq FROM t ORDER BY seq").await else { return Vec::new() };
        let batches = frame.collect().await.unwrap();
        batches.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
    }

    /// The Parquet files that a glob finds.
    fn glob(&self) -> Vec<std::path::PathBuf> {
        let mut folders = vec![self.dir.path().join("tables")];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false if path.extension().is_some_and(|end| end == "parquet") => found.push(path),
                    false => {}
                }
            }
        }
        found.sort();
        found
    }

    /// Numbers that a reader finds who knows no rule.
    fn plain(&self) -> Vec<i64> {
        let mut all: Vec<i64> = self.glob().iter().flat_map(|path| numbers(&read(path))).collect();
        all.sort_unstable();
        all
    }

    /// The visible files of each shard and partition.
    async fn groups(&self) -> Vec<(Partition, Vec<FileName>)> {
        let mut groups: BTreeMap<(Partition, ShardId), Vec<FileName>> = BTreeMap::new();
        for file in self.tables.census("t", None).await.unwrap().files.iter().filter(|file| file.visible) {
            groups.entry((file.partition, file.name.shard)).or_default().push(file.name);
        }
        groups.into_iter().map(|((partition, _), names)| (partition, names)).collect()
    }

    /// Merges somewhere; false if there is nothing to merge.
    async fn merge_one(&self, which: usize) -> bool {
        let groups = self.groups().await;
        for at in 0..groups.len() {
            let (partition, names) = &groups[(at + which) % groups.len()];
            let inputs = self.tables.inputs("t", *partition, names).await.unwrap();
            if let Some(chosen) = plan(&inputs) {
                self.tables.merge("t", *partition, &names[chosen]).await.unwrap();
                return true;
            }
        }
        false
    }

    /// Hides what is covered.
    async fn hide(&self) {
        for covering in coverings(&self.tables.census("t", None).await.unwrap().files) {
            let Covering { partition, name, covered, parts } = covering;
            assert!(self.tables.same_rows("t", partition, name, &parts).await.unwrap());
            let files: Vec<_> = covered.into_iter().map(|name| (partition, name)).collect();
            self.tables.hide("t", &files, &Default::default()).await.unwrap();
        }
    }

    /// Deletes one file that is hidden, and dies.
    async fn delete_one(&self, which: usize) {
        let hidden = self.tables.hidden("t").await.unwrap();
        if let Some((partition, name)) = hidden.get(which % hidden.len().max(1)) {
            let path = self.dir.path().join(layout::table_file("t", *partition, *name));
            let _ = std::fs::remove_file(path);
        }
    }

    async fn erase(&self) {
        let hidden = self.tables.hidden("t").await.unwrap();
        self.tables.erase("t", &hidden).await.unwrap();
    }
}

fn read(path: &std::path::Path) -> RecordBatch {
    let builder = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap();
    let schema = builder.schema().clone();
    let batches: Vec<RecordBatch> = builder.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema, &batches).unwrap()
}

fn numbers(batch: &RecordBatch) -> Vec<i64> {
    batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>().values().to_vec()
}

#[tokio::test]
async fn the_merged_file_is_one_that_a_cut_could_have_written() {
    let at = Fixture::new();
    // Cuts out of order in time, the last of them with a column more.
    let all = [(0..4000, false), (4000..7000, false), (7000..12_000, true)];
    for (cut, (seqs, more)) in (0..).zip(all.clone()) {
        at.cut(0, (cut, cut + 1), vec![rows(DAY + 5 * HOUR, seqs, more)]).await;
    }
    let before: usize = at.glob().iter().map(|path| std::fs::metadata(path).unwrap().len() as usize).sum();
    assert!(at.merge_one(0).await);
    at.hide().await;
    at.erase().await;
    let files = at.glob();
    assert_eq!(files.len(), 1);
    assert!(files[0].ends_with("date=2026-11-23/hour=05/0000-000000000000-000000000003.parquet"), "{files:?}");

    // The same rows in one cut.
    let whole = Fixture::new();
    let batches = all.into_iter().map(|(seqs, more)| rows(DAY + 5 * HOUR, seqs, more)).collect();
    whole.cut(0, (0, 3), batches).await;
    let [one, other] = [&files[0], &whole.glob()[0]].map(|path| {
        ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap().metadata().clone()
    });
    let entries = |of: &parquet::file::metadata::ParquetMetaData| {
        let all = of.file_metadata().key_value_metadata().unwrap().iter();
        all.filter(|entry| entry.key != "weir.merged").map(|e| (e.key.clone(), e.value.clone())).collect::<Vec<_>>()
    };
    assert_eq!(entries(&one), entries(&other));
    assert_eq!(one.file_metadata().schema(), other.file_metadata().schema());
    for (one, other) in one.row_group(0).columns().iter().zip(other.row_group(0).columns()) {
        let path = one.column_path();
        assert_eq!((one.encodings_mask(), one.compression()), (other.encodings_mask(), other.compression()), "{path}");
        assert_eq!(one.statistics(), other.statistics(), "{path}");
    }
    let columns = |path| read(path).columns().to_vec();
    assert_eq!(columns(&files[0]), columns(&whole.glob()[0]), "the same rows in the same order");
    assert!(std::fs::metadata(&files[0]).unwrap().len() < before as u64);
    let merged = read(&files[0]);
    let devices = merged.column(0).as_string::<i32>();
    let times = merged.column(3).as_primitive::<TimestampNanosecondType>();
    let keys: Vec<_> = (0..merged.num_rows()).map(|row| (devices.value(row), times.value(row))).collect();
    assert!(keys.is_sorted());
    let w = merged.column_by_name("w").unwrap().as_primitive::<Float64Type>();
    assert_eq!(w.null_count(), 7000);
}

#[tokio::test]
async fn a_file_that_does_not_hold_what_it_covers_is_taken_back() {
    let mut at = Fixture::new();
    at.cut(0, (0, 1), vec![rows(DAY, 0..10, false)]).await;
    at.cut(0, (1, 2), vec![rows(DAY, 10..20, false)]).await;
    assert!(at.merge_one(0).await);
    // As from a merge of a program that lost a row.
    at.cut(0, (0, 1), vec![rows(DAY, 0..11, false)]).await;
    let covering = coverings(&at.tables.census("t", None).await.unwrap().files).remove(0);
    assert_eq!(covering.parts, [name(0, 1), name(1, 2)]);
    let error = at.tables.same_rows("t", covering.partition, covering.name, &covering.parts).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("0000-000000000000-000000000002.parquet") && text.contains("20 rows against 21"), "{text}");
    assert_eq!(at.seen().await.len(), 21);
    // A file that replaces others with other rows is left alone, and so are they.
    at.cut(0, (0, 2), vec![rows(DAY, 0..5, false)]).await;
    at.tables = TableStore::open(Store::scratch(at.dir.path()).unwrap());
    let covering = coverings(&at.tables.census("t", None).await.unwrap().files).remove(0);
    assert!(!at.tables.same_rows("t", covering.partition, covering.name, &covering.parts).await.unwrap());
    assert_eq!(at.seen().await, (0..5).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_snapshot_whose_live_rows_are_older_than_the_merge_reads_the_parts() {
    use crate::table::{LiveShard, LiveTable};
    let at = Fixture::new();
    at.cut(0, (0, 3), vec![rows(DAY, 0..10, false)]).await;
    // A query took its live rows here, and now lists.
    let reading = at.tables.reading();
    at.cut(0, (3, 5), vec![rows(DAY, 10..20, false)]).await;
    assert!(at.merge_one(0).await);
    assert!(!at.tables.unread_since(at.tables.moment()), "so nothing may be hidden yet");
    let live = LiveTable {
        schema: None,
        time_column: Some("ts".to_owned()),
        shards: vec![LiveShard { shard: ShardId(0), files_upto: Barrier(3), batches: vec![rows(DAY, 10..20, false)] }],
    };
    let session = SessionContext::new();
    at.tables.register_all(&session, HashMap::from([("t".to_owned(), live)])).await.unwrap();
    drop(reading);
    assert!(!at.tables.unread_since(at.tables.moment()), "the session still reads");
    assert_eq!(session.sql("SELECT seq FROM t").await.unwrap().count().await.unwrap(), 20);
}

#[derive(Debug, Clone)]
enum Step {
    /// Shard, and for some hours how many rows.
    Cut(u16, Vec<(i64, u8)>),
    Merge(usize),
    /// Dies while it writes the merged file.
    TornMerge,
    Hide,
    DeleteOne(usize),
    Erase,
    /// Another process opens the store.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u16..2, prop::collection::vec((0i64..3, 1u8..20), 1..3)).prop_map(|(shard, rows)| Step::Cut(shard, rows)),
        3 => any::<usize>().prop_map(Step::Merge),
        1 => Just(Step::TornMerge),
        2 => Just(Step::Hide),
        2 => any::<usize>().prop_map(Step::DeleteOne),
        1 => Just(Step::Erase),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]
    #[test]
    fn each_row_is_seen_once_whatever_happens_between_the_steps(steps in prop::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut at = Fixture::new();
            let (mut next, mut barriers) = (0, [0_u64; 2]);
            for step in steps {
                match step {
                    Step::Cut(shard, hours) => {
                        let barrier = &mut barriers[usize::from(shard)];
                        let batches = hours.into_iter().map(|(hour, count)| {
                            let seqs = next..next + i64::from(count);
                            next = seqs.end;
                            rows(DAY + hour * HOUR, seqs, next % 2 == 0)
                        });
                        let batches = batches.collect();
                        at.cut(shard, (*barrier, *barrier + 2), batches).await;
                        *barrier += 2;
                    }
                    Step::Merge(which) => drop(at.merge_one(which).await),
                    Step::TornMerge => {
                        if let Some((partition, names)) = at.groups().await.into_iter().find(|g| g.1.len() > 1) {
                            let file = layout::table_file("t", partition, cover(&names).unwrap());
                            std::fs::write(at.dir.path().join(format!("{file}#1")), b"half").unwrap();
                        }
                    }
                    Step::Hide => at.hide().await,
                    Step::DeleteOne(which) => at.delete_one(which).await,
                    Step::Erase => at.erase().await,
                    Step::Restart => at.tables = TableStore::open(Store::scratch(at.dir.path()).unwrap()),
                }
                prop_assert_eq!(at.seen().await, (0..next).collect::<Vec<i64>>());
            }
            while at.merge_one(0).await {}
            at.hide().await;
            at.erase().await;
            prop_assert_eq!(at.seen().await, (0..next).collect::<Vec<i64>>());
            prop_assert_eq!(at.plain(), (0..next).collect::<Vec<i64>>(), "at rest no rule is needed");
            let files: BTreeSet<_> = at.groups().await.into_iter().map(|(partition, names)| (partition, names[0].shard, names.len())).collect();
            prop_assert!(files.iter().all(|(_, _, count)| *count == 1), "{:?}", files);
            Ok(())
        })?;
    }
}
