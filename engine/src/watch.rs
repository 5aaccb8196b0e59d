//! Looks at the folder of a running engine's project: what is saved there is deployed.
//!
//! A version is tried once it has stood unchanged from one look to the next, so that half of a save is not deployed.
//! One that does not pass `weir check` is refused with what check says; the one that counts goes on. What was
//! tried is not tried again until something changes, or an object store that did not answer may do so again.
//!
//! Files are looked at with the folder. Objects are asked for their tag and time, at an interval of their own; one that
//! cannot be asked counts as unchanged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sql::{Place, SourceFile};
use storage::object::{self, ObjectError, Stand};
use tokio::time::Instant;
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

/// How objects looked when they were last asked; `None`: there is no such object.
type Objects = BTreeMap<String, Option<Stand>>;

/// What the folder holds: texts of the project, and how what holds the rows of its reference tables looks from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    files: Vec<SourceFile>,
    tables: Vec<(PathBuf, Option<(u64, SystemTime)>)>,
    objects: Objects,
}

fn look(dir: &Path, tables: &[Place], objects: &Objects) -> Result<Look, String> {
    let files = sql::load(&[dir.to_owned()]).map_err(|e| e.to_string())?;
    let stand = |place: &Place| {
        let Place::File(path) = place else { return None };
        let meta = std::fs::metadata(path).ok();
        Some((path.clone(), meta.and_then(|meta| Some((meta.len(), meta.modified().ok()?)))))
    };
    Ok(Look { files, tables: tables.iter().filter_map(stand).collect(), objects: objects.clone() })
}

/// Asks objects how they look now; one that cannot be asked is taken as it was.
fn ask(tables: &[Place], before: &Objects) -> Objects {
    let settings = object::environment();
    let mut seen = Objects::new();
    for place in tables {
        let Place::Object(url) = place else { continue };
        let now = match object::look(url, &settings) {
            Ok(stand) => Some(stand),
            Err(ObjectError::NotFound) => None,
            Err(error) => {
                tracing::warn!("{url}: {error}; asked again later");
                before.get(url).cloned().flatten()
            }
        };
        seen.insert(url.clone(), now);
    }
    seen
}

/// Looks until the engine stops.
///
/// Objects are asked every so often.
pub async fn watch(
    core: Arc<Core>,
    (dir, objects_every): (PathBuf, Duration),
    deployments: Arc<Deployments>,
    stop: CancellationToken,
) {
    let looking = async {
        let mut objects = Objects::new();
        let mut asked: Option<Instant> = None;
        let mut last: Option<Result<Look, String>> = None;
        // What the engine has started with is as good as tried.
        let mut tried: Option<Result<Look, String>> = None;
        // Whether the last try may work with nothing changed.
        let mut again = false;
        loop {
            let tables: Vec<Place> = core.project().tables.iter().map(sql::TableDecl::place).collect();
            let new = |place: &Place| matches!(place, Place::Object(url) if !objects.contains_key(url));
            let due = asked.is_none_or(|asked| asked.elapsed() >= objects_every) || tables.iter().any(new);
            let (folder, before) = (dir.clone(), objects.clone());
            let seen = tokio::task::spawn_blocking(move || {
                let objects = if due { ask(&tables, &before) } else { before };
                (look(&folder, &tables, &objects), objects)
            });
            let Ok((seen, now)) = seen.await else { return };
            objects = now;
            if due {
                asked = Some(Instant::now());
                if again {
                    tried = None;
                }
            }
            let settled = last.as_ref() == Some(&seen);
            last = Some(seen.clone());
            if settled && tried.as_ref() != Some(&seen) {
                tried = Some(seen.clone());
                again = deploy(&core, seen, &deployments).await;
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let _ = stop.run_until_cancelled(looking).await;
}

/// Whether it was refused for a reason that may pass by itself.
async fn deploy(core: &Core, seen: Result<Look, String>, deployments: &Deployments) -> bool {
    let refuse = |what: &str, why: &str| {
        deployments.refused.fetch_add(1, Ordering::Relaxed);
        deployments.stale.store(true, Ordering::Relaxed);
        tracing::error!("{what}; the version before goes on\n{why}");
        false
    };
    let files = match seen {
        Ok(look) => look.files,
        Err(why) => return refuse("the pipeline project cannot be read", &why),
    };
    let checked = tokio::task::spawn_blocking(move || project::check(files)).await;
    let loaded = match checked {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(ProjectError::Check { rendered, may_pass })) => {
            refuse("the pipeline project as it is saved has errors", &rendered);
            return may_pass;
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
    false
}
