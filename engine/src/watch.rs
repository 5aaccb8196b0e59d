//! Looks at the folder of a running engine's project: what is saved there is deployed.
//!
//! A version is tried once it has stood unchanged from one look to the next, so that half of a save is not deployed.
//! One that does not pass `weir check` is refused with what check says; the one that counts goes on. What was
//! tried is not tried again until something changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sql::SourceFile;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::overview::{Overview, changes};
use crate::project::{self, ProjectError};

/// How often the folder is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// What became of versions that were saved.
#[derive(Debug, Default)]
pub struct Deployments {
    /// Versions that were taken over.
    pub taken: AtomicU64,
    /// Versions that were refused.
    pub refused: AtomicU64,
    /// What stands in the folder now was refused, or cannot be read.
    pub stale: AtomicBool,
}

/// What the folder holds: texts of the project, and how the files of its reference tables look from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    files: Vec<SourceFile>,
    tables: Vec<(PathBuf, Option<(u64, SystemTime)>)>,
}

fn look(dir: &Path, tables: &[PathBuf]) -> Result<Look, String> {
    let files = sql::load(&[dir.to_owned()]).map_err(|e| e.to_string())?;
    let stand = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.len(), meta.modified().ok()?))
    };
    Ok(Look { files, tables: tables.iter().map(|path| (path.clone(), stand(path))).collect() })
}

/// Looks until the engine stops.
pub async fn watch(core: Arc<Core>, dir: PathBuf, deployments: Arc<Deployments>, stop: CancellationToken) {
    let looking = async {
        let mut last: Option<Result<Look, String>> = None;
        // What the engine has started with is as good as tried.
        let mut tried: Option<Result<Look, String>> = None;
        loop {
            let tables: Vec<PathBuf> = core.project().tables.iter().map(sql::TableDecl::path).collect();
            let folder = dir.clone();
            let seen = tokio::task::spawn_blocking(move || look(&folder, &tables)).await;
            let Ok(seen) = seen else { return };
            let settled = last.as_ref() == Some(&seen);
            last = Some(seen.clone());
            if settled && tried.as_ref() != Some(&seen) {
                tried = Some(seen.clone());
                deploy(&core, seen, &deployments).await;
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let _ = stop.run_until_cancelled(looking).await;
}

async fn deploy(core: &Core, seen: Result<Look, String>, deployments: &Deployments) {
    let refuse = |what: &str, why: &str| {
        deployments.refused.fetch_add(1, Ordering::Relaxed);
        deployments.stale.store(true, Ordering::Relaxed);
        tracing::error!("{what}; the version before goes on\n{why}");
    };
    let files = match seen {
        Ok(look) => look.files,
        Err(why) => return refuse("the pipeline project cannot be read", &why),
    };
    let checked = tokio::task::spawn_blocking(move || project::check(files)).await;
    let loaded = match checked {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(ProjectError::Check { rendered })) => {
            return refuse("the pipeline project as it is saved has errors", &rendered);
        }
        Ok(Err(error)) => return refuse("the pipeline project as it is saved cannot be used", &error.to_string()),
        Err(error) => return refuse("the pipeline project as it is saved ended its check", &error.to_string()),
    };
    let old = core.project();
    match core.go_over(&loaded).await {
        Ok(true) => {
            deployments.taken.fetch_add(1, Ordering::Relaxed);
            loaded.warn();
            let changes = changes(&Overview::of(&old), &Overview::of(&loaded.project));
            for change in changes.iter().filter(|change| change.is_news()) {
                tracing::info!("{} {}: {}", change.kind, change.name, change.text);
            }
        }
        Ok(false) => {}
        Err(error) => return refuse("the pipeline project as it is saved cannot be taken over", &error.to_string()),
    }
    deployments.stale.store(false, Ordering::Relaxed);
}
