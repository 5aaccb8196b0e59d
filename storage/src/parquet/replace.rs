//! Replacing a partition: one file that covers what a shard had written for it, then the covered ones go.
//!
//! The new file is called `<shard>-0-<barrier>`, so by the rule of names (`layout.rs`) everything that the shard's log
//! had produced for the partition up to that barrier is obsolete from the moment it stands, and what comes later is
//! not. A crash before it stands leaves the old rows, one after it the new ones; [`sweep`] takes away what a crash
//! left behind, for readers that know only globs.

use arrow::array::RecordBatch;
use device::id::ShardId;
use device::seq::Barrier;
use futures::TryStreamExt;
use object_store_14::path::Path;
use object_store_14::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::{FileMeta, TableRows, WriteError, elsewhere, encode, split_all};
use crate::columns;
use crate::layout::{self, FileName, Partition};
use crate::store::Store;

/// What a replacement did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// The file that stands now; none if there are no rows.
    pub path: Option<String>,
    /// Files that it replaced.
    pub removed: usize,
}

/// Puts rows in the place of everything that the log of `shard` had produced for a partition up to `upto`.
///
/// `rows` holds at least one batch, which may be empty; all rows lie in the partition. `upto` must be a barrier that no
/// partition of the table was replaced at before, and not the first cut of its shard: a name is given once. `unread` is
/// waited for before the first file is removed: until nobody reads them who may not see the new one.
pub async fn replace(
    store: &Store,
    shard: ShardId,
    upto: Barrier,
    partition: Partition,
    rows: TableRows,
    unread: impl AsyncFnOnce(),
) -> Result<Replaced, WriteError> {
    let TableRows { table, version, time_column, granularity, batches } = rows;
    let file = FileName { shard, from: Barrier(0), to: upto };
    let path = layout::table_file(&table, partition, file);
    let empty = batches.iter().all(|batch| batch.num_rows() == 0);
    let parts = if empty {
        let fitted = batches.iter().map(|batch| columns::fit(batch, &columns::stored_schema(batch.schema_ref())));
        fitted.collect::<Result<Vec<RecordBatch>, _>>().map_err(|error| WriteError::rows(&table, error))?
    } else {
        let mut split = split_all(&table, &time_column, granularity, batches)?;
        let own = split.remove(&partition).unwrap_or_default();
        if let Some(other) = split.keys().next() {
            return Err(WriteError::rows(&table, format!("rows of {other} among those of {partition}")));
        }
        own
    };
    let meta = FileMeta { table: table.clone(), version, time_column, file };
    let bytes = elsewhere(&table, move || encode(&meta, &parts)).await?;
    let failed = |path: &str, error: object_store_14::Error| WriteError::Store {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let target = store.writing();
    target
        .put_opts(&Path::from(path.as_str()), PutPayload::from(bytes), PutMode::Create.into())
        .await
        .map_err(|error| failed(&path, error))?;
    unread().await;
    let mut removed = 0;
    for (of, other) in list(&*target, &table, &layout::partition(&table, partition)).await? {
        if of == partition && file.covers(other) && other != file {
            remove(&*target, &layout::table_file(&table, of, other)).await?;
            removed += 1;
        }
    }
    if empty {
        // With nothing left to cover, it says nothing.
        remove(&*target, &path).await?;
    }
    Ok(Replaced { path: (!empty).then_some(path), removed })
}

/// Removes the files of a table that are covered by others, and says how many those were.
pub async fn sweep(store: &Store, table: &str) -> Result<usize, WriteError> {
    let target = store.writing();
    let all = list(&*target, table, &layout::table(table)).await?;
    let visible: std::collections::HashSet<_> = layout::visible(all.iter().copied()).into_iter().collect();
    let obsolete: Vec<_> = all.into_iter().filter(|file| !visible.contains(file)).collect();
    for (partition, file) in &obsolete {
        remove(&*target, &layout::table_file(table, *partition, *file)).await?;
    }
    Ok(obsolete.len())
}

async fn list(target: &dyn ObjectStore, table: &str, folder: &str) -> Result<Vec<(Partition, FileName)>, WriteError> {
    let failed =
        |error: object_store_14::Error| WriteError::Store { path: folder.to_owned(), reason: error.to_string() };
    let mut found = Vec::new();
    let mut objects = target.list(Some(&Path::from(folder)));
    while let Some(meta) = objects.try_next().await.map_err(failed)? {
        found.extend(
            layout::parse_table_file(meta.location.as_ref())
                .filter(|(owner, ..)| *owner == table)
                .map(|(_, partition, file)| (partition, file)),
        );
    }
    Ok(found)
}

async fn remove(target: &dyn ObjectStore, path: &str) -> Result<(), WriteError> {
    match target.delete(&Path::from(path)).await {
        Ok(()) | Err(object_store_14::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(WriteError::Store { path: path.to_owned(), reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampNanosecondArray};
    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use object_store_14::{
        CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
        PutOptions, PutResult, Result as ObjectResult,
    };

    use super::*;
    use crate::layout::Granularity;
    use crate::parquet::write_cut;

    const HOUR: i64 = 3_600_000_000_000;
    const SHARD: ShardId = ShardId(1);

    /// A store that dies after so many changes, before or after the last of them.
    #[derive(Debug)]
    struct Dying {
        store: Arc<dyn ObjectStore>,
        left: Arc<AtomicI64>,
        after: bool,
    }

    impl std::fmt::Display for Dying {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a store that dies")
        }
    }

    fn dead() -> Error {
        Error::Generic { store: "dying", source: "dead".into() }
    }

    impl Dying {
        /// Whether the change is made, and whether it is known to be.
        fn lives(&self) -> (bool, bool) {
            let left = self.left.fetch_sub(1, Ordering::Relaxed);
            (left > 0 || (left == 0 && self.after), left > 0)
        }
    }

    #[async_trait]
    impl ObjectStore for Dying {
        async fn put_opts(&self, at: &Path, bytes: PutPayload, options: PutOptions) -> ObjectResult<PutResult> {
            let (made, known) = self.lives();
            let done = if made { self.store.put_opts(at, bytes, options).await } else { Err(dead()) };
            if known { done } else { Err(dead()) }
        }

        async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> ObjectResult<Box<dyn MultipartUpload>> {
            Err(dead())
        }

        async fn get_opts(&self, at: &Path, options: GetOptions) -> ObjectResult<GetResult> {
            self.store.get_opts(at, options).await
        }

        fn delete_stream(
            &self,
            paths: BoxStream<'static, ObjectResult<Path>>,
        ) -> BoxStream<'static, ObjectResult<Path>> {
            let (made, known) = self.lives();
            let done = if made { self.store.delete_stream(paths) } else { Box::pin(futures::stream::empty()) };
            if known {
                return done;
            }
            Box::pin(futures::stream::once(async move {
                let _: Vec<_> = done.try_collect().await?;
                Err(dead())
            }))
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, ObjectResult<ObjectMeta>> {
            self.store.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> ObjectResult<ListResult> {
            self.store.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> ObjectResult<()> {
            Err(dead())
        }
    }

    fn rows(hours: &[i64], mark: i64) -> TableRows {
        let device: ArrayRef = Arc::new(StringArray::from(vec!["a"; hours.len()]));
        let times = hours.iter().map(|hour| hour * HOUR + 5);
        let ts: ArrayRef = Arc::new(TimestampNanosecondArray::from_iter_values(times).with_timezone("UTC"));
        let marks: ArrayRef = Arc::new(Int64Array::from(vec![mark; hours.len()]));
        let batch = RecordBatch::try_from_iter([("device", device), ("ts", ts), ("mark", marks)]).unwrap();
        TableRows {
            table: "t".to_owned(),
            version: "1".to_owned(),
            time_column: "ts".to_owned(),
            granularity: Granularity::Hour,
            batches: vec![batch],
        }
    }

    /// The names that count, by hour.
    async fn names(store: &Store) -> BTreeSet<(u8, u64, u64)> {
        let all = list(&*store.writing(), "t", "tables/t").await.unwrap();
        let visible = layout::visible(all.iter().copied());
        visible.into_iter().map(|(p, f)| (p.hour.unwrap(), f.from.0, f.to.0)).collect()
    }

    async fn world(folder: &std::path::Path) -> Store {
        let store = Store::scratch(folder).unwrap();
        for (from, hours) in [(0, [3, 4]), (1, [3, 5]), (2, [3, 4])] {
            write_cut(&store, SHARD, Barrier(from), Barrier(from + 1), vec![rows(&hours, 0)]).await.unwrap();
        }
        // Of a cut behind the replacement, and of another shard.
        write_cut(&store, SHARD, Barrier(5), Barrier(6), vec![rows(&[3], 0)]).await.unwrap();
        write_cut(&store, ShardId(0), Barrier(0), Barrier(2), vec![rows(&[3], 0)]).await.unwrap();
        store
    }

    fn hour(hour: i64) -> Partition {
        Partition::of(hour * HOUR, Granularity::Hour)
    }

    #[tokio::test]
    async fn a_crash_leaves_the_old_rows_or_the_new() {
        let (mut old, mut new) = (0, 0);
        for (at, after) in (0..5).flat_map(|at| [(at, false), (at, true)]) {
            let folder = tempfile::tempdir().unwrap();
            let store = world(folder.path()).await;
            let before = names(&store).await;
            let left = Arc::new(AtomicI64::new(at));
            let dying = Dying { store: store.writing(), left, after };
            let failing = Store::over("dying", Arc::new(dying), store.reading()).unwrap();
            let done = replace(&failing, SHARD, Barrier(4), hour(3), rows(&[3, 3], 1), async || {}).await;
            let stands = names(&store).await;
            let mut expected = before.clone();
            expected.retain(|(hour, _, to)| *hour != 3 || *to > 4);
            expected.insert((3, 0, 4));
            // The other shard's file has the same hour and barriers as one that is replaced.
            expected.insert((3, 0, 2));
            match stands == before {
                true => old += 1,
                false => {
                    new += 1;
                    assert_eq!(stands, expected, "{at} {after}");
                }
            }
            assert_eq!(done.is_ok(), at >= 4, "one file is put, three are removed: {at} {after}");
            // What is left lying about goes, and once more with another barrier is harmless.
            let removed = sweep(&store, "t").await.unwrap();
            assert_eq!(removed == 0, stands == before || done.is_ok() || (at, after) == (3, true), "{at} {after}");
            assert_eq!(names(&store).await, stands);
            let again = replace(&store, SHARD, Barrier(5), hour(3), rows(&[3, 3], 1), async || {}).await.unwrap();
            assert!(again.path.unwrap().ends_with("0001-000000000000-000000000005.parquet"));
            expected.remove(&(3, 0, 4));
            expected.insert((3, 0, 5));
            assert_eq!(names(&store).await, expected);
            assert_eq!(sweep(&store, "t").await.unwrap(), 0);
        }
        assert!(old > 0 && new > 0);
    }

    #[tokio::test]
    async fn nothing_in_the_place_of_something() {
        let folder = tempfile::tempdir().unwrap();
        let store = world(folder.path()).await;
        let none = TableRows { batches: vec![rows(&[], 1).batches.remove(0)], ..rows(&[], 1) };
        let replaced = replace(&store, SHARD, Barrier(4), hour(5), none, async || {}).await.unwrap();
        assert_eq!(replaced, Replaced { path: None, removed: 1 });
        assert!(names(&store).await.iter().all(|(hour, ..)| *hour != 5));
    }

    #[tokio::test]
    async fn a_name_is_given_once_and_rows_lie_in_their_partition() {
        let folder = tempfile::tempdir().unwrap();
        let store = world(folder.path()).await;
        let error = replace(&store, SHARD, Barrier(4), hour(3), rows(&[3, 4], 1), async || {}).await.unwrap_err();
        assert!(error.to_string().contains("rows of date=1970-01-01/hour=04 among those of"), "{error}");
        // The first cut of a shard has the name that a replacement at its barrier would have.
        let error = replace(&store, SHARD, Barrier(1), hour(3), rows(&[3], 1), async || {}).await.unwrap_err();
        assert!(matches!(error, WriteError::Store { .. }), "{error}");
    }
}
