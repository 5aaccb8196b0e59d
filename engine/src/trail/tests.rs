//! Each act is one row, whatever dies between a file and the note of it.

use device::time::Timestamp;

use super::*;
use crate::query::{self, Bounds};

const DAY: i64 = 86_400_000_000_000;

async fn count(trail: &Trail, tables: &TableStore) -> Vec<u64> {
    let context = datafusion::prelude::SessionContext::new();
    if let Some(table) = tables.provider(AUDIT, Some(trail.live().unwrap())).await.unwrap() {
        context.register_table(AUDIT, table).unwrap();
    }
    let bounds = Bounds { rows: 1000, time: Duration::from_secs(60) };
    let table = query::run(&context, "SELECT n FROM _audit ORDER BY n", bounds).await.unwrap();
    let column =
        |batch: &RecordBatch| batch.column(0).as_any().downcast_ref::<UInt64Array>().unwrap().values().to_vec();
    table.batches.iter().flat_map(column).collect()
}

fn add(data: &Path, at: i64) {
    audit::add(data, Timestamp(at), Act::done("ada", "act", at.to_string())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_is_one_row_across_days_starts_and_crashes() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let store = Store::local(data).unwrap();
    let tables = TableStore::open(store.clone());
    let open = async || Trail::open(data, store.clone(), &tables).await.unwrap();
    let trail = open().await;
    assert_eq!(count(&trail, &tables).await, Vec::<u64>::new());
    for at in [5, 6, DAY + 1, 7, DAY + 2, DAY + 3] {
        add(data, at);
    }
    let all: Vec<u64> = (1..=6).collect();
    assert_eq!(count(&trail, &tables).await, all, "live");
    trail.cut().await.unwrap();
    assert_eq!(count(&trail, &tables).await, all, "in files");
    assert_eq!(trail.written(), Barrier(6));
    // A clock that went back makes a run of its own: 1-2, 3, 4, 5-6.
    assert_eq!(tables.files(AUDIT).await.unwrap().len(), 4);
    add(data, DAY + 4);
    assert_eq!(count(&trail, &tables).await, (1..=7).collect::<Vec<_>>());

    // Died between the file and the note of it.
    let note = data.join("registry/audit/written");
    assert_eq!(std::fs::read_to_string(&note).unwrap(), "6\n");
    trail.cut().await.unwrap();
    std::fs::write(&note, "6\n").unwrap();
    let trail = open().await;
    assert_eq!(trail.written(), Barrier(7));
    assert_eq!(count(&trail, &tables).await, (1..=7).collect::<Vec<_>>());

    // Retention has removed all files: nothing of it comes back.
    std::fs::write(&note, "7\n").unwrap();
    std::fs::remove_dir_all(data.join("tables/_audit")).unwrap();
    add(data, DAY + 5);
    let trail = open().await;
    assert_eq!(count(&trail, &tables).await, [8]);
    trail.cut().await.unwrap();
    assert_eq!(count(&open().await, &tables).await, [8]);
}
