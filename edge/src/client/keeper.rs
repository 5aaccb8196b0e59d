//! Keeps the twin durable: one file, replaced as a whole, before anything is said of what it holds.

use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use crate::error::EdgeError;
use crate::twin::Twin;

/// The name of the file in the store's directory.
const FILE: &str = "twin.json";

/// Holds the twin, and its file if there is one.
#[derive(Debug)]
pub(super) struct Keeper {
    file: Option<PathBuf>,
    twin: watch::Sender<Twin>,
}

impl Keeper {
    /// Reads what is there.
    pub(super) async fn open(directory: Option<PathBuf>) -> Result<Self, EdgeError> {
        let Some(directory) = directory else {
            return Ok(Self { file: None, twin: watch::Sender::new(Twin::default()) });
        };
        let file = directory.join(FILE);
        let storage = |source| EdgeError::Storage { doing: "read the shadows", source };
        let path = file.clone();
        let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await.map_err(|_| EdgeError::Stopped)?;
        let twin = match read {
            Ok(bytes) => Twin::decode(&bytes)
                .map_err(|error| storage(io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {error}"))))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Twin::default(),
            Err(error) => return Err(storage(error)),
        };
        Ok(Self { file: Some(file), twin: watch::Sender::new(twin) })
    }

    pub(super) fn watch(&self) -> watch::Receiver<Twin> {
        self.twin.subscribe()
    }

    /// Changes the twin; it counts, and is seen by others, once it is durable.
    pub(super) async fn change<T>(&self, change: impl FnOnce(&mut Twin) -> T) -> Result<T, EdgeError> {
        let before = self.twin.borrow().clone();
        let mut twin = before.clone();
        let result = change(&mut twin);
        if twin == before {
            return Ok(result);
        }
        if let Some(file) = self.file.clone() {
            let bytes = twin.encode();
            let done = tokio::task::spawn_blocking(move || replace(&file, &bytes)).await;
            done.map_err(|_| EdgeError::Stopped)?
                .map_err(|source| EdgeError::Storage { doing: "store the shadows", source })?;
        }
        self.twin.send_replace(twin);
        Ok(result)
    }
}

/// Writes beside the file, syncs, and takes its place.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let fresh = file.with_extension("new");
    let mut out = std::fs::File::create(&fresh)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    std::fs::rename(&fresh, file)?;
    match file.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
