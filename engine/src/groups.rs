//! Groups of devices: named, and either a list of devices or a query that says who belongs to them now.
//!
//! `registry/groups.json` holds them, replaced as a whole and durable before a change is answered. Who belongs to a
//! group that is a query is asked whenever it is needed: nothing has to be kept up to date.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use device::id::DeviceId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use storage::layout;
use thiserror::Error;

use crate::project::write_new;

/// Most groups.
const MAX_GROUPS: usize = 10_000;
/// Most devices in a list.
const MAX_LISTED: usize = 1_000_000;
/// Longest name, in bytes.
const MAX_NAME: usize = 128;
/// Longest query, in bytes.
const MAX_SQL: usize = 16 << 10;

const VERSION: u32 = 1;

/// Who belongs to a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Members {
    /// These devices.
    Devices(Vec<String>),
    /// The devices in the column `device` of this query's result.
    Sql(String),
}

/// Why groups cannot be read or changed.
#[derive(Debug, Error)]
pub enum GroupError {
    /// The file.
    #[error("{path}: {message}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Bad(String),
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    version: u32,
    groups: BTreeMap<String, Members>,
}

/// All groups.
#[derive(Debug)]
pub struct Groups {
    path: PathBuf,
    all: Mutex<BTreeMap<String, Members>>,
    revision: AtomicU64,
    /// Held by whoever writes the file; readers do not wait for a disk.
    writing: Mutex<()>,
    /// Devices that come into groups with the next write.
    joining: Mutex<Vec<(String, DeviceId)>>,
}

impl Groups {
    /// The groups of a data directory.
    pub fn open(data: &Path) -> Result<Self, GroupError> {
        let path = data.join(layout::registry("groups", "groups.json"));
        let failed = |message: String| GroupError::File { path: path.clone(), message };
        let all = match std::fs::read(&path) {
            Ok(bytes) => {
                let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
                if stored.version != VERSION {
                    let found = stored.version;
                    let text = format!(
                        "format {found} is not the one that this weir knows, {VERSION}: run the weir that wrote it"
                    );
                    return Err(failed(text));
                }
                stored.groups
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed(error.to_string())),
        };
        let (revision, writing, joining) = (AtomicU64::new(0), Mutex::default(), Mutex::default());
        Ok(Self { path, all: Mutex::new(all), revision, writing, joining })
    }

    /// Every group.
    pub fn all(&self) -> BTreeMap<String, Members> {
        self.all.lock().clone()
    }

    /// The groups that list a device. Who belongs to a query is not among it: the query may ask for this.
    pub fn listing(&self, device: &DeviceId) -> Vec<String> {
        let lists = |members: &Members| match members {
            Members::Devices(devices) => devices.iter().any(|listed| listed == device.as_str()),
            Members::Sql(_) => false,
        };
        self.all.lock().iter().filter(|(_, members)| lists(members)).map(|(name, _)| name.clone()).collect()
    }

    /// The same for all devices that are listed.
    pub fn listings(&self) -> HashMap<String, Vec<String>> {
        let mut of: HashMap<String, Vec<String>> = HashMap::new();
        for (name, members) in &*self.all.lock() {
            let Members::Devices(devices) = members else { continue };
            for device in devices {
                let names = of.entry(device.clone()).or_default();
                if names.last() != Some(name) {
                    names.push(name.clone());
                }
            }
        }
        of
    }

    /// Changes with every change.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// The groups that are lists of no more than so many devices.
    pub fn lists(&self, longest: usize) -> Vec<(String, Vec<String>)> {
        let short = |(name, members): (&String, &Members)| match members {
            Members::Devices(devices) if devices.len() <= longest => Some((name.clone(), devices.clone())),
            _ => None,
        };
        self.all.lock().iter().filter_map(short).collect()
    }

    /// The groups that are queries.
    pub fn queries(&self) -> Vec<(String, String)> {
        let query = |(name, members): (&String, &Members)| match members {
            Members::Sql(sql) => Some((name.clone(), sql.clone())),
            Members::Devices(_) => None,
        };
        self.all.lock().iter().filter_map(query).collect()
    }

    /// One group.
    pub fn get(&self, name: &str) -> Option<Members> {
        self.all.lock().get(name).cloned()
    }

    /// Makes or replaces a group; `None` removes it. Durable when this returns. False: there was none to remove.
    pub fn set(&self, name: &str, members: Option<Members>) -> Result<bool, GroupError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
            let text =
                format!("{name:?} cannot be the name of a group: up to {MAX_NAME} letters, digits, `-`, `_`, `.`");
            return Err(GroupError::Bad(text));
        }
        match &members {
            Some(Members::Devices(devices)) => {
                if devices.len() > MAX_LISTED {
                    return Err(GroupError::Bad(format!("a group lists at most {MAX_LISTED} devices")));
                }
                for device in devices {
                    DeviceId::new(device).map_err(|error| GroupError::Bad(format!("device {device:?}: {error}")))?;
                }
            }
            Some(Members::Sql(sql)) if sql.len() > MAX_SQL => {
                return Err(GroupError::Bad(format!("the query of a group has at most {MAX_SQL} bytes")));
            }
            Some(Members::Sql(_)) | None => {}
        }
        let _turn = self.writing.lock();
        let mut changed = self.all();
        let there = match members {
            Some(members) => {
                changed.insert(name.to_owned(), members);
                true
            }
            None => changed.remove(name).is_some(),
        };
        self.write(changed)?;
        Ok(there)
    }

    /// Adds a device to the list of a group, which is made if it is not there; a group that is a query stays what it is. Durable
    /// when this returns. Many that come at the same time are written at once.
    pub fn join(&self, name: &str, device: &DeviceId) -> Result<(), GroupError> {
        self.joining.lock().push((name.to_owned(), device.clone()));
        let _turn = self.writing.lock();
        let joining = std::mem::take(&mut *self.joining.lock());
        if !joining.is_empty() {
            let mut changed = self.all();
            if add(&mut changed, &joining) {
                self.write(changed)?;
            }
        }
        // Whoever was before this one has written for it; unless that failed, or there was no room.
        match self.all.lock().get(name) {
            Some(Members::Sql(_)) => Ok(()),
            Some(Members::Devices(devices)) if devices.iter().any(|listed| listed == device.as_str()) => Ok(()),
            Some(Members::Devices(devices)) if devices.len() >= MAX_LISTED => {
                Err(GroupError::Bad(format!("group {name} lists {MAX_LISTED} devices already")))
            }
            _ => Err(GroupError::File { path: self.path.clone(), message: "the group was not written".to_owned() }),
        }
    }

    fn write(&self, groups: BTreeMap<String, Members>) -> Result<(), GroupError> {
        if groups.len() > MAX_GROUPS {
            return Err(GroupError::Bad(format!("there are {MAX_GROUPS} groups already")));
        }
        let stored = Stored { version: VERSION, groups };
        let failed = |message: String| GroupError::File { path: self.path.clone(), message };
        let bytes = serde_json::to_vec(&stored).map_err(|error| failed(error.to_string()))?;
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
        }
        write_new(&self.path, &bytes).map_err(|error| failed(error.to_string()))?;
        *self.all.lock() = stored.groups;
        self.revision.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

/// Adds devices to lists; whether that changed anything.
fn add(groups: &mut BTreeMap<String, Members>, joining: &[(String, DeviceId)]) -> bool {
    let mut by_group: BTreeMap<&str, Vec<&DeviceId>> = BTreeMap::new();
    for (name, device) in joining {
        by_group.entry(name).or_default().push(device);
    }
    let mut changed = false;
    for (name, joining) in by_group {
        let members = groups.entry(name.to_owned()).or_insert_with(|| Members::Devices(Vec::new()));
        let Members::Devices(devices) = members else { continue };
        let mut listed: HashSet<String> = devices.iter().cloned().collect();
        for device in joining {
            if devices.len() < MAX_LISTED && listed.insert(device.to_string()) {
                devices.push(device.to_string());
                changed = true;
            }
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_come_at_the_same_time_are_all_in_their_groups() {
        let data = tempfile::tempdir().unwrap();
        let groups = Groups::open(data.path()).unwrap();
        groups.set("query", Some(Members::Sql("SELECT 1".into()))).unwrap();
        groups.set("line-1", Some(Members::Devices(vec!["d-0".into()]))).unwrap();
        let id = |n: usize| DeviceId::new(&format!("d-{n}")).unwrap();
        std::thread::scope(|scope| {
            for n in 0..40 {
                let groups = &groups;
                scope.spawn(move || groups.join(["line-1", "line-2", "query"][n % 3], &id(n)).unwrap());
            }
        });
        groups.join("line-1", &id(3)).unwrap();
        let again = Groups::open(data.path()).unwrap();
        assert_eq!(again.get("query"), Some(Members::Sql("SELECT 1".into())));
        let listed = |name: &str| match again.get(name) {
            Some(Members::Devices(devices)) => devices.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!((listed("line-1"), listed("line-2")), (14, 13));
        // What cannot be written is told to whoever asked for it, and to those who come after.
        std::fs::remove_dir_all(data.path().join("registry")).unwrap();
        std::fs::write(data.path().join("registry"), "").unwrap();
        assert!(matches!(groups.join("line-1", &id(99)), Err(GroupError::File { .. })));
        std::fs::remove_file(data.path().join("registry")).unwrap();
        groups.join("line-1", &id(99)).unwrap();
    }

    #[test]
    fn groups_outlive_the_process_and_bad_ones_are_refused() {
        let data = tempfile::tempdir().unwrap();
        let groups = Groups::open(data.path()).unwrap();
        let list = Members::Devices(vec!["a".into(), "b".into()]);
        assert!(groups.set("line-1", Some(list.clone())).unwrap());
        assert!(groups.set("old", Some(Members::Sql("SELECT device FROM devices".into()))).unwrap());
        assert!(groups.set("old", None).unwrap());
        assert!(!groups.set("old", None).unwrap());
        for (name, members, part) in [
            ("a b", list.clone(), "name of a group"),
            ("a", Members::Devices(vec!["a b".into()]), "device \"a b\""),
            ("a", Members::Sql("x".repeat(MAX_SQL + 1)), "at most"),
        ] {
            let error = groups.set(name, Some(members)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let (a, c) = (DeviceId::new("a").unwrap(), DeviceId::new("c").unwrap());
        assert!(groups.set("line-0", Some(Members::Devices(vec!["b".into(), "b".into()]))).unwrap());
        assert_eq!((groups.listing(&a), groups.listing(&c)), (vec!["line-1".to_owned()], vec![]));
        assert_eq!((&groups.listings()["b"], groups.listings().len()), (&vec!["line-0".into(), "line-1".into()], 2));
        assert!(groups.set("line-0", None).unwrap());
        let again = Groups::open(data.path()).unwrap();
        assert_eq!((again.all().len(), again.get("line-1")), (1, Some(list)));
        std::fs::write(&again.path, br#"{"version": 2, "groups": {}}"#).unwrap();
        assert!(Groups::open(data.path()).unwrap_err().to_string().contains("format 2"));
        let golden = br#"{"version":1,"groups":{"a":{"devices":["x"]},"b":{"sql":"SELECT 1"}}}"#;
        std::fs::write(&again.path, golden).unwrap();
        let read = Groups::open(data.path()).unwrap();
        assert_eq!(serde_json::to_vec(&Stored { version: VERSION, groups: read.all() }).unwrap(), golden);
    }
}
