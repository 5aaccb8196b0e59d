//! Credits: the only thing that keeps memory bounded.
//!
//! ractor's mailboxes have no bound, so bytes are counted before anything enters one. A [`Credit`] is taken for
//! what is read from a socket and lives until the records in it are durable (or refused). Without credit a
//! connection stops reading, and TCP tells the sender to wait.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit: tokio's semaphore counts in `u32` per call, and a coarser grain is cheaper to count.
const GRAIN: usize = 64;

/// Hands out credit for bytes in flight.
#[derive(Debug, Clone)]
pub struct Admission {
    permits: Arc<Semaphore>,
    total: u32,
}

/// Credit for some bytes. Clones share it; it returns when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Credit {
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Credit {
    /// Credit for nothing: for messages that the engine makes itself.
    pub fn free() -> Self {
        Self { _permit: None }
    }
}

impl Admission {
    /// Credit for `bytes` in all, at least one grain.
    pub fn new(bytes: usize) -> Self {
        let total = bytes.div_ceil(GRAIN).clamp(1, u32::MAX as usize >> 3) as u32;
        Self { permits: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits for credit for `bytes`. A request above the whole is held to the whole, so it cannot wait for ever.
    pub async fn admit(&self, bytes: usize) -> Credit {
        let grains = bytes.div_ceil(GRAIN).clamp(1, self.total as usize) as u32;
        // The semaphore is never closed; should it be, refusing credit for ever would stop every socket.
        let permit = self.permits.clone().acquire_many_owned(grains).await.ok();
        Credit { _permit: permit.map(Arc::new) }
    }

    /// Bytes in flight now.
    pub fn used(&self) -> usize {
        (self.total as usize).saturating_sub(self.permits.available_permits()) * GRAIN
    }

    /// Bytes that may be in flight at most.
    pub fn limit(&self) -> usize {
        self.total as usize * GRAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn credit_is_bounded_and_returns() {
        let admission = Admission::new(1024);
        let first = admission.admit(1000).await;
        assert_eq!(admission.used(), 1024);
        let second = first.clone();
        drop(first);
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), admission.admit(64)).await;
        assert!(waiting.is_err(), "no credit while a clone lives");
        drop(second);
        assert_eq!(admission.used(), 0);
        drop(admission.admit(1 << 30).await);
    }
}
