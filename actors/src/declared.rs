//! The streams that a shard's devices admit messages for, and their change at one position of the log.
//!
//! A device holds them for reading from the decision about a message until its entries are pushed. The committer puts others
//! in place when it takes what has been pushed and gives the barriers of the change their positions. So all that was decided by
//! the old streams stands before the change, and all that is decided by the new ones behind it.

use std::sync::Arc;

use device::schema::Catalog;
use parking_lot::{RwLock, RwLockWriteGuard};

/// The streams of a shard. Nobody holds them for longer than a decision takes.
pub type Declared = Arc<RwLock<Arc<Catalog>>>;

/// Another version of the pipeline project.
pub(crate) struct Switch {
    /// Its fingerprint.
    pub(crate) project: u64,
    /// Its streams, and where devices look for them.
    pub(crate) declares: Option<(Declared, Arc<Catalog>)>,
}

impl Switch {
    /// Where devices look for streams, if these change.
    pub(crate) fn declared(&self) -> Option<Declared> {
        self.declares.as_ref().map(|(declared, _)| declared.clone())
    }

    /// Puts its streams in place.
    pub(crate) fn declare(&self, declared: Option<&mut RwLockWriteGuard<'_, Arc<Catalog>>>) {
        if let (Some(declared), Some((_, catalog))) = (declared, &self.declares) {
            **declared = catalog.clone();
        }
    }
}
