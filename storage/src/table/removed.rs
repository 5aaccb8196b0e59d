//! Which files of a table are on their way out, and how a listing leaves them out at one moment.
//!
//! Files are deleted one by one, but a reader must see all of a partition or nothing of it. So before the first one is
//! deleted, all of them are named in one small object of the registry, which is replaced in one step. A listing reads
//! it before and after it lists: if nothing was written to it meanwhile, what it names is left out, whether or not
//! it is still there; else it lists again. The object is emptied when the files are gone, but never deleted: its
//! version only grows, so that two equal readings mean that nothing happened between them.
//!
//! Its text is lines: `weir removed 1` (what it is, and its format), `version N`, `ledger N` if rows that retention
//! removed are counted ([`crate::retention`]), and the path of each file.

use std::collections::BTreeSet;

use object_store::ObjectStoreExt as _;
use object_store_14::{ObjectStoreExt as _, PutPayload};

use super::TableError;
use crate::layout::{self, FileName, Partition};
use crate::store::Store;

/// First line of the object.
const HEAD: &str = "weir removed 1";

/// What is on its way out of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// How often this was written.
    pub(crate) version: u64,
    /// The version of the count of removed rows, if there is one.
    pub(crate) ledger: Option<u64>,
    /// The files.
    pub(crate) files: BTreeSet<(Partition, FileName)>,
}

impl Removed {
    fn text(&self, table: &str) -> String {
        let mut text = format!("{HEAD}\nversion {}\n", self.version);
        if let Some(ledger) = self.ledger {
            text.push_str(&format!("ledger {ledger}\n"));
        }
        for (partition, name) in &self.files {
            text.push_str(&layout::table_file(table, *partition, *name));
            text.push('\n');
        }
        text
    }

    fn parse(text: &str, table: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        match lines.next() {
            Some(HEAD) => {}
            Some(head) if head.starts_with("weir removed ") => {
                return Err("it was written by a newer weir: use that one".to_owned());
            }
            _ => return Err(format!("it does not begin with {HEAD:?}")),
        }
        let mut removed = Self::default();
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        for line in lines {
            if let Some(version) = line.strip_prefix("version ") {
                removed.version = number(version)?;
            } else if let Some(ledger) = line.strip_prefix("ledger ") {
                removed.ledger = Some(number(ledger)?);
            } else {
                match layout::parse_table_file(line) {
                    Some((owner, partition, name)) if owner == table => removed.files.insert((partition, name)),
                    _ => return Err(format!("{line:?} is no file of the table")),
                };
            }
        }
        Ok(removed)
    }

    /// What the store says now.
    pub(crate) async fn load(store: &Store, table: &str) -> Result<Self, TableError> {
        let path = layout::removed(table);
        let failed = |reason: String| TableError::File { path: path.clone(), reason };
        let bytes = match store.reading().get(&object_store::path::Path::from(path.as_str())).await {
            Ok(found) => found.bytes().await.map_err(|error| failed(error.to_string()))?,
            Err(object_store::Error::NotFound { .. }) => return Ok(Self::default()),
            Err(error) => return Err(failed(error.to_string())),
        };
        let text = std::str::from_utf8(&bytes).map_err(|error| failed(error.to_string()))?;
        Self::parse(text, table).map_err(failed)
    }

    /// Replaces what the store says, under the next version.
    pub(crate) async fn save(mut self, store: &Store, table: &str) -> Result<Self, TableError> {
        self.version += 1;
        let path = layout::removed(table);
        let payload = PutPayload::from(self.text(table).into_bytes());
        let put = store.writing().put(&object_store_14::path::Path::from(path.as_str()), payload).await;
        put.map_err(|error| TableError::Remove { path, reason: error.to_string() })?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Granularity;
    use device::id::ShardId;
    use device::seq::Barrier;

    #[tokio::test]
    async fn it_reads_back_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::local(dir.path()).unwrap();
        assert_eq!(Removed::load(&store, "t").await.unwrap(), Removed::default());
        let file = FileName { shard: ShardId(1), from: Barrier(3), to: Barrier(9) };
        let files = BTreeSet::from([(Partition::of(0, Granularity::Hour), file)]);
        let saved = Removed { version: 6, ledger: Some(2), files }.save(&store, "t").await.unwrap();
        assert_eq!(saved.version, 7);
        assert_eq!(Removed::load(&store, "t").await.unwrap(), saved);
        let path = dir.path().join(layout::removed("t"));
        // Golden: the text of format 1.
        let text = "weir removed 1\nversion 7\nledger 2\ntables/t/date=1970-01-01/hour=00/0001-000000000003-000000000009.parquet\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        for (text, why) in [
            ("weir removed 2\nversion 1\n", "newer weir"),
            ("version 1\n", "does not begin"),
            ("weir removed 1\nversion x\n", "no number"),
            ("weir removed 1\nversion 1\ntables/u/date=1970-01-01/0000-000000000000-000000000001.parquet\n", "no file"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Removed::load(&store, "t").await.unwrap_err().to_string();
            assert!(error.contains("registry/tables/t") && error.contains(why), "{error}");
        }
    }
}
