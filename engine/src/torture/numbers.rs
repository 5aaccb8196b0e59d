//! What the agents have recorded, by what stands in their outboxes after they were killed.
//!
//! The engine's ledger and its tables could forget the same record together; the outboxes are a witness that
//! knows nothing of either. They are opened as the agent itself opens them when it starts again.

use std::collections::BTreeMap;
use std::path::Path;

use edge::outbox::{FileMedia, Fresh, Outbox, OutboxConfig};

use super::TortureError;

/// The highest number that was found, by device and epoch: all from 1 up to it were recorded.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    highest: BTreeMap<(String, u64), u64>,
}

impl Numbers {
    /// Looks into the outboxes of a fleet that does not run.
    pub(super) fn look(&mut self, fleet: &Path) -> Result<(), TortureError> {
        let failed = |e: &dyn std::fmt::Display| TortureError::Failed(format!("{}: {e}", fleet.display()));
        let devices = match std::fs::read_dir(fleet) {
            Ok(devices) => devices,
            // Killed before its first record.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(&e)),
        };
        for device in devices {
            let device = device.map_err(|e| failed(&e))?;
            let name = device.file_name().to_string_lossy().into_owned();
            let media = FileMedia::open(&device.path()).map_err(|e| failed(&e))?;
            let fresh = Fresh { epoch: rand::random(), install: rand::random() };
            let (_, found) = Outbox::open(Box::new(media), OutboxConfig::directory(), fresh).map_err(|e| failed(&e))?;
            for epoch in found.epochs {
                self.saw(&name, epoch.epoch.0, epoch.last);
            }
        }
        Ok(())
    }

    pub(super) fn saw(&mut self, device: &str, epoch: u64, last: u64) {
        let highest = self.highest.entry((device.to_owned(), epoch)).or_default();
        *highest = (*highest).max(last);
    }

    /// Device, epoch and highest number of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.highest.iter().map(|((device, epoch), last)| (device.as_str(), *epoch, *last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::schema::Value;
    use device::time::Timestamp;
    use edge::{Reading, SchemaRef};

    #[test]
    fn what_was_recorded_is_found_also_after_it_was_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let fresh = |epoch| Fresh { epoch, install: [1; 16] };
        let open = |epoch| {
            let media = FileMedia::open(&folder.path().join("a")).unwrap();
            Outbox::open(Box::new(media), OutboxConfig::directory(), fresh(epoch)).unwrap().0
        };
        let reading = Reading::new(Timestamp(1), SchemaRef { id: 1, version: 1 << 16 }, &[(1, Value::F64(1.5))]);
        let mut outbox = open(7);
        for _ in 0..5 {
            outbox.push(&reading).unwrap();
        }
        outbox.commit().unwrap();
        let live = outbox.live();
        outbox.forget(live, 3, &[]).unwrap();
        drop(outbox);
        let mut numbers = Numbers::default();
        numbers.look(folder.path()).unwrap();
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [("a", 7, 5)]);
        // Looking leaves no epoch behind that anybody would wait for.
        numbers.look(folder.path()).unwrap();
        assert_eq!(numbers.iter().count(), 1);
        numbers.look(&folder.path().join("none")).unwrap();
    }
}
