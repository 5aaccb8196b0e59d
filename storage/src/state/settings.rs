//! How SlateDB is set up: bounded memory, durable at once, old files gone soon.

use std::time::Duration;

use slatedb::config::{
    CompactionWorkerOptions, CompactorOptions, GarbageCollectorDirectoryOptions, GarbageCollectorOptions, Settings,
};

/// Its own defaults keep a gigabyte of unflushed writes, compact four jobs at a time and keep caches of 640 MB;
/// here every shard has a database, and what is read is read once (but for what `indexes` keeps).
pub(super) fn settings() -> Settings {
    Settings {
        // Every write of ours flushes and waits; the timer only has to come by for sizes.
        flush_interval: Some(Duration::from_millis(500)),
        // Finding out that somebody else owns the shard does not hang on this: a fenced write fails by itself.
        manifest_poll_interval: Duration::from_secs(5),
        max_unflushed_bytes: 64 << 20,
        l0_sst_size_bytes: 16 << 20,
        l0_flush_parallelism: 1,
        compactor_options: Some(CompactorOptions {
            max_concurrent_compactions: 1,
            worker: Some(CompactionWorkerOptions {
                max_concurrent_compactions: 1,
                max_subcompactions: 1,
                max_sst_size: 64 << 20,
                max_fetch_tasks: 1,
                bytes_to_fetch: 1 << 20,
                ..CompactionWorkerOptions::default()
            }),
            ..CompactorOptions::default()
        }),
        garbage_collector_options: Some(GarbageCollectorOptions {
            // A checkpoint every few seconds, each a file of its own here: an hour would be gigabytes.
            wal_options: Some(GarbageCollectorDirectoryOptions {
                interval: Some(Duration::from_secs(60)),
                min_age: Duration::from_secs(60),
                dry_run: false,
            }),
            // Fences must never go: a stalled former owner could write into the hole.
            wal_fence_options: None,
            // Local directories have no conditional overwrite. That a stalled process could bring a manifest back
            // is excluded there by the lock of the data directory.
            boundary_files_enabled: false,
            ..GarbageCollectorOptions::default()
        }),
        ..Settings::default()
    }
}
