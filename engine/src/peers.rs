//! The way from the consumer of one shard to the logs of all: what pipelines with shared groups send each other.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use actors::shard::Shard;
use device::entry::Partial;
use device::id::ShardId;
use pipelines::runner::Peers;

/// The shards of this process, once all are open. Until then nothing can be sent, and whoever has something keeps it.
#[derive(Default)]
pub struct Local {
    shards: OnceLock<Vec<Arc<Shard>>>,
}

impl Local {
    /// From now on these are reached, by number.
    pub fn open(&self, shards: &[Arc<Shard>]) {
        let _ = self.shards.set(shards.to_vec());
    }
}

impl Peers for Local {
    fn send(&self, to: ShardId, partial: Partial) -> Option<Arc<AtomicBool>> {
        let shard = self.shards.get()?.get(usize::from(to.0))?;
        Some(shard.committer.push_partial(partial))
    }
}
