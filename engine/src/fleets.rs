//! Which groups a device belongs to, for storms: looked up for each incident that begins.
//!
//! Only groups are kept in which a share is reached before the number that is a storm anywhere, so this stays small. Lists
//! count within seconds of a change; queries are asked when incidents begin, and again after a while.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alerts::{Fleet, LARGEST_FLEET};
use arrow::array::AsArray;
use arrow::datatypes::DataType;
use datafusion::execution::runtime_env::RuntimeEnv;
use device::id::DeviceId;
use parking_lot::RwLock;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::groups::{Groups, Members};
use crate::query::{self, Bounds, QueryError};

/// How often groups are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// How long the answer of a query counts.
const AGAIN: Duration = Duration::from_secs(300);

/// Why nobody knows who belongs to a group.
#[derive(Debug, Error)]
pub enum MembersError {
    /// Its query.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// What the query answers.
    #[error("{0}")]
    Answer(String),
}

/// The devices in the column `device` of a query's result, each once.
pub async fn named_by(
    core: &Core,
    runtime: Arc<RuntimeEnv>,
    bounds: Bounds,
    sql: &str,
) -> Result<Vec<DeviceId>, MembersError> {
    let context = query::over_engine(core, runtime).await?;
    let table = query::run(&context, sql, bounds).await?;
    let Some((at, _)) = table.schema.column_with_name("device") else {
        let text = "the query of a group has a column `device`: SELECT device FROM devices WHERE ..";
        return Err(MembersError::Answer(text.to_owned()));
    };
    let mut all = BTreeSet::new();
    for batch in &table.batches {
        let names = arrow::compute::cast(batch.column(at), &DataType::Utf8)
            .map_err(|error| MembersError::Answer(format!("the column `device`: {error}")))?;
        for name in names.as_string::<i32>().iter().flatten() {
            let device = DeviceId::new(name);
            all.insert(device.map_err(|error| MembersError::Answer(format!("device {name:?}: {error}")))?);
        }
    }
    Ok(all.into_iter().collect())
}

/// Groups by device.
#[derive(Debug, Default)]
pub struct Fleets {
    of: RwLock<HashMap<String, Vec<Fleet>>>,
    wanted: AtomicBool,
}

impl Fleets {
    /// The groups of a device.
    pub fn of(&self, device: &str) -> Vec<Fleet> {
        self.wanted.store(true, Ordering::Relaxed);
        self.of.read().get(device).cloned().unwrap_or_default()
    }

    /// Takes in the lists among all groups; `asked`: what queries have answered, by group.
    pub fn take(&self, groups: &Groups, asked: &BTreeMap<String, Vec<DeviceId>>) {
        let mut of: HashMap<String, Vec<Fleet>> = HashMap::new();
        for (name, devices) in groups.lists(LARGEST_FLEET) {
            add(&mut of, &name, devices.iter().map(String::as_str));
        }
        for (name, devices) in asked.iter().filter(|(_, devices)| devices.len() <= LARGEST_FLEET) {
            add(&mut of, name, devices.iter().map(DeviceId::as_str));
        }
        *self.of.write() = of;
    }
}

fn add<'a>(of: &mut HashMap<String, Vec<Fleet>>, name: &str, devices: impl Iterator<Item = &'a str>) {
    let devices: BTreeSet<&str> = devices.collect();
    let fleet = Fleet { name: name.to_owned(), devices: u32::try_from(devices.len()).unwrap_or(u32::MAX) };
    for device in devices {
        of.entry(device.to_owned()).or_default().push(fleet.clone());
    }
}

/// Keeps up with groups until the engine stops.
pub async fn follow(core: Arc<Core>, runtime: Arc<RuntimeEnv>, bounds: Bounds, stop: CancellationToken) {
    let following = async {
        let mut seen = None;
        let mut asked: BTreeMap<String, Vec<DeviceId>> = BTreeMap::new();
        let mut last: Option<Instant> = None;
        loop {
            let revision = core.groups.revision();
            let wanted = core.fleets.wanted.load(Ordering::Relaxed);
            let is_old = last.is_none_or(|last| last.elapsed() >= AGAIN);
            if seen != Some(revision) {
                (seen, last) = (Some(revision), None);
                asked.retain(|name, _| matches!(core.groups.get(name), Some(Members::Sql(_))));
                core.fleets.take(&core.groups, &asked);
            } else if wanted && is_old {
                core.fleets.wanted.store(false, Ordering::Relaxed);
                last = Some(Instant::now());
                for (name, sql) in core.groups.queries() {
                    match named_by(&core, runtime.clone(), bounds, &sql).await {
                        Ok(devices) => {
                            asked.insert(name, devices);
                        }
                        Err(error) => {
                            tracing::warn!(group = name, %error, "nobody knows who belongs to this group now")
                        }
                    }
                }
                core.fleets.take(&core.groups, &asked);
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let _ = stop.run_until_cancelled(following).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_groups_are_known_by_device() {
        let data = tempfile::tempdir().unwrap();
        let groups = Groups::open(data.path()).unwrap();
        let list = |names: &[&str]| Members::Devices(names.iter().map(|name| (*name).to_owned()).collect());
        groups.set("line", Some(list(&["a", "b", "b"]))).unwrap();
        let many: Vec<String> = (0..=LARGEST_FLEET).map(|n| format!("d{n}")).collect();
        groups.set("all", Some(Members::Devices([vec!["a".to_owned()], many].concat()))).unwrap();
        groups.set("old", Some(Members::Sql("SELECT device FROM devices".to_owned()))).unwrap();
        let fleets = Fleets::default();
        let asked = [("old".to_owned(), vec![DeviceId::new("b").unwrap()])].into();
        fleets.take(&groups, &asked);
        let of = |device| fleets.of(device).into_iter().map(|of| (of.name, of.devices)).collect::<Vec<_>>();
        assert_eq!(of("a"), [("line".to_owned(), 2)]);
        assert_eq!(of("b"), [("line".to_owned(), 2), ("old".to_owned(), 1)]);
        assert_eq!(of("d1"), []);
    }
}
