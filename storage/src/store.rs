//! Where a data directory's objects are: one place for the stores that DataFusion reads and that we write.
//!
//! SlateDB and our own writes use object_store 0.14, which can fsync files and folders; DataFusion 55 is built on
//! 0.13. Both stand on the same root. Only local directories so far; a bucket would be opened here and nowhere else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::execution::object_store::ObjectStoreUrl;
use thiserror::Error;

/// Why a store could not be opened.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The directory cannot be used.
    #[error("cannot use {path} as store: {reason}; it must be a directory this user can read and write")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// An open store. Clones share the connections.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    writing: Arc<dyn object_store_14::ObjectStore>,
    reading: Arc<dyn object_store::ObjectStore>,
    erasing: Arc<dyn object_store_14::ObjectStore>,
    url: ObjectStoreUrl,
}

impl Store {
    /// Opens a data directory, creating it if it is missing.
    pub fn local(root: &Path) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::Directory { path: root.to_owned(), reason };
        std::fs::create_dir_all(root).map_err(|error| failed(error.to_string()))?;
        Self::existing(root)
    }

    /// Opens a data directory that must exist: for commands that only read.
    pub fn existing(root: &Path) -> Result<Self, StoreError> {
        Self::at(root, true)
    }

    fn at(root: &Path, fsync: bool) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::Directory { path: root.to_owned(), reason };
        let root = root.canonicalize().map_err(|error| failed(error.to_string()))?;
        let writing = object_store_14::local::LocalFileSystem::new_with_prefix(&root)
            .map_err(|error| failed(error.to_string()))?
            .with_fsync(fsync);
        let reading =
            object_store::local::LocalFileSystem::new_with_prefix(&root).map_err(|error| failed(error.to_string()))?;
        let erasing = writing.clone().with_automatic_cleanup(true);
        let url = url_of(&root)?;
        let (writing, reading, erasing) = (Arc::new(writing), Arc::new(reading), Arc::new(erasing));
        Ok(Self { root, writing, reading, erasing, url })
    }

    /// Stores that are open already, for simulation: `writing` for everything that is written, `reading` for
    /// DataFusion. `name` tells them from other stores in messages and sessions.
    pub fn over(
        name: &str,
        writing: Arc<dyn object_store_14::ObjectStore>,
        reading: Arc<dyn object_store::ObjectStore>,
    ) -> Result<Self, StoreError> {
        let root = PathBuf::from(name);
        let url = url_of(&root)?;
        Ok(Self { root, erasing: writing.clone(), writing, reading, url })
    }

    /// A directory that must exist, for files that need not outlive the process: nothing is synced.
    pub fn scratch(root: &Path) -> Result<Self, StoreError> {
        Self::at(root, false)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// For writing: what a call that returned wrote is on the disk, its folders included.
    pub(crate) fn writing(&self) -> Arc<dyn object_store_14::ObjectStore> {
        self.writing.clone()
    }

    /// For deleting: folders that become empty go with their last file. A write under way puts its folder back.
    pub(crate) fn erasing(&self) -> Arc<dyn object_store_14::ObjectStore> {
        self.erasing.clone()
    }

    /// For DataFusion, under [`Store::url`].
    pub(crate) fn reading(&self) -> Arc<dyn object_store::ObjectStore> {
        self.reading.clone()
    }

    /// The name that DataFusion's sessions know this store by.
    pub(crate) fn url(&self) -> &ObjectStoreUrl {
        &self.url
    }
}

/// DataFusion finds stores by scheme and authority; one session may read several data directories.
fn url_of(root: &Path) -> Result<ObjectStoreUrl, StoreError> {
    let name: String = root.as_os_str().as_encoded_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    ObjectStoreUrl::parse(format!("weir://{name}"))
        .map_err(|error| StoreError::Directory { path: root.to_owned(), reason: error.to_string() })
}
