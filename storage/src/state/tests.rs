//! What is durable together, across reopening and fencing: on a real directory and in memory.

use super::*;

/// Where the state of one shard stands in a test.
enum Disk {
    Directory(tempfile::TempDir),
    Memory(MemoryDisk),
}

impl Disk {
    /// One of each kind.
    fn all() -> [Disk; 2] {
        [Disk::Directory(tempfile::tempdir().unwrap()), Disk::Memory(MemoryDisk::default())]
    }

    async fn try_open(&self, shard: ShardId) -> Result<StateStore, StateError> {
        match self {
            Disk::Directory(dir) => StateStore::open(&Store::local(dir.path()).unwrap(), shard).await,
            Disk::Memory(disk) => StateStore::over(Box::new(disk.open()), shard).await,
        }
    }

    async fn open(&self, shard: ShardId) -> StateStore {
        self.try_open(shard).await.unwrap()
    }
}

fn bytes(len: usize, seed: u8) -> Bytes {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect::<Vec<_>>().into()
}

fn part(pipeline: &str, part: i64, state: Option<Bytes>) -> PipelinePart {
    PipelinePart { pipeline: pipeline.to_owned(), part, state }
}

fn device(id: &str) -> DeviceId {
    DeviceId::new(id).unwrap()
}

fn rows(barrier: u64, table: &str, ipc: Bytes) -> Outbox {
    Outbox { barrier: Barrier(barrier), table: table.to_owned(), ipc }
}

fn checkpoint(barrier: u64) -> Checkpoint {
    Checkpoint {
        position: Position(barrier * 100),
        barrier: Barrier(barrier),
        time: Timestamp(-5),
        ..Checkpoint::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_there_after_reopening() {
    for disk in Disk::all() {
        check_a_checkpoint_is_there_after_reopening(&disk).await;
    }
}

async fn check_a_checkpoint_is_there_after_reopening(disk: &Disk) {
    let state = disk.open(ShardId(1)).await;
    assert_eq!(state.load().await.unwrap(), Recovered::default());
    assert_eq!(state.device(&device("a")).await.unwrap(), None);

    let large = bytes(3 * keys::CHUNK + 17, 1);
    let first = Checkpoint {
        devices: vec![(device("b"), bytes(10, 2)), (device("a"), bytes(20, 3)), (device("c"), Bytes::new())],
        pipelines: vec![
            part("climate", 7, Some(large.clone())),
            part("climate", -7, Some(bytes(5, 4))),
            part("climate_1h", 0, Some(Bytes::new())),
        ],
        outbox: vec![rows(1, "climate", bytes(9, 5)), rows(1, "other", large.clone()), rows(1, "climate", bytes(8, 6))],
        counters: vec![("stored".to_owned(), 12)],
        ..checkpoint(1)
    };
    state.checkpoint(first).await.unwrap();
    // As a kill would leave it: no close.
    drop(state);

    let state = disk.open(ShardId(1)).await;
    let expected = Recovered {
        checkpoint: Some((Position(100), Barrier(1), Timestamp(-5))),
        cut: None,
        pipelines: vec![
            part("climate", -7, Some(bytes(5, 4))),
            part("climate", 7, Some(large.clone())),
            part("climate_1h", 0, Some(Bytes::new())),
        ],
        counters: vec![("stored".to_owned(), 12)],
    };
    assert_eq!(state.load().await.unwrap(), expected);
    assert_eq!(state.device(&device("a")).await.unwrap(), Some(bytes(20, 3)));
    let all = state.devices(None, 10).await.unwrap();
    assert_eq!(all.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    let some = state.devices(Some("a"), 1).await.unwrap();
    assert_eq!(some, [(device("b"), bytes(10, 2))]);
    let stored = state.outbox(Barrier(1)).await.unwrap();
    assert_eq!(stored, [rows(1, "climate", bytes(9, 5)), rows(1, "other", large), rows(1, "climate", bytes(8, 6))]);
    state.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_and_dropped_state_leaves_nothing_behind() {
    for disk in Disk::all() {
        check_replaced_and_dropped_state_leaves_nothing_behind(&disk).await;
    }
}

async fn check_replaced_and_dropped_state_leaves_nothing_behind(disk: &Disk) {
    let state = disk.open(ShardId(0)).await;
    let large = |seed| Some(bytes(4 * keys::CHUNK, seed));
    let pipelines =
        vec![part("a", 0, large(1)), part("a", 1, large(2)), part("ab", 0, large(3)), part("b", 0, large(4))];
    state.checkpoint(Checkpoint { pipelines, ..checkpoint(1) }).await.unwrap();
    // A new process knows the chunks of the old one.
    drop(state);
    let state = disk.open(ShardId(0)).await;
    let second = Checkpoint {
        dropped_pipelines: vec!["a".to_owned(), "never".to_owned()],
        pipelines: vec![part("b", 0, Some(bytes(3, 5))), part("ab", 0, None), part("ab", 9, Some(bytes(1, 1)))],
        ..checkpoint(2)
    };
    state.checkpoint(second).await.unwrap();
    let left = state.load().await.unwrap().pipelines;
    assert_eq!(left, [part("ab", 9, Some(bytes(1, 1))), part("b", 0, Some(bytes(3, 5)))]);
    let (from, to) = keys::kind(b'x');
    assert_eq!(state.db.scan(from, to, 1).await.unwrap(), [], "chunks are left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_empties_the_outbox_up_to_its_barrier() {
    for disk in Disk::all() {
        check_a_cut_empties_the_outbox_up_to_its_barrier(&disk).await;
    }
}

async fn check_a_cut_empties_the_outbox_up_to_its_barrier(disk: &Disk) {
    let state = disk.open(ShardId(0)).await;
    for barrier in 1..=3 {
        let outbox = vec![rows(barrier, "t", bytes(2 * keys::CHUNK, barrier as u8))];
        state.checkpoint(Checkpoint { outbox, ..checkpoint(barrier) }).await.unwrap();
    }
    assert_eq!(state.outbox(Barrier(2)).await.unwrap().len(), 2);
    let cut = CutDone { barrier: Barrier(2), position: Position(200) };
    state.cut_done(cut).await.unwrap();
    drop(state);
    let state = disk.open(ShardId(0)).await;
    assert_eq!(state.load().await.unwrap().cut, Some(cut));
    let left = state.outbox(Barrier(u64::MAX)).await.unwrap();
    assert_eq!(left, [rows(3, "t", bytes(2 * keys::CHUNK, 3))]);
    // A checkpoint that is repeated replaces itself.
    let outbox = vec![rows(3, "t", bytes(5, 8)), rows(3, "t", bytes(5, 9))];
    state.checkpoint(Checkpoint { outbox, ..checkpoint(3) }).await.unwrap();
    let outbox = vec![rows(3, "t", bytes(5, 9))];
    state.checkpoint(Checkpoint { outbox, ..checkpoint(3) }).await.unwrap();
    assert_eq!(state.outbox(Barrier(3)).await.unwrap(), [rows(3, "t", bytes(5, 9))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_owner_is_fenced() {
    for disk in Disk::all() {
        check_a_former_owner_is_fenced(&disk).await;
    }
}

async fn check_a_former_owner_is_fenced(disk: &Disk) {
    let old = disk.open(ShardId(0)).await;
    old.checkpoint(checkpoint(1)).await.unwrap();
    let new = disk.open(ShardId(0)).await;
    let refused = old.checkpoint(checkpoint(2)).await.unwrap_err();
    assert!(matches!(refused, StateError::Fenced), "{refused:?}");
    new.checkpoint(checkpoint(3)).await.unwrap();
    assert_eq!(new.load().await.unwrap().checkpoint.unwrap().1, Barrier(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_of_a_newer_engine_is_refused() {
    for disk in Disk::all() {
        check_state_of_a_newer_engine_is_refused(&disk).await;
    }
}

async fn check_state_of_a_newer_engine_is_refused(disk: &Disk) {
    let state = disk.open(ShardId(4)).await;
    let mut batch = Batch::new();
    batch.put(keys::FORMAT, 99u32.to_le_bytes().to_vec());
    state.db.write(batch).await.unwrap();
    state.close().await.unwrap();
    let refused = disk.try_open(ShardId(4)).await.err().unwrap();
    assert!(matches!(refused, StateError::Newer { found: 99, .. }), "{refused:?}");
}

/// State larger than everything SlateDB may hold in memory goes through all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_larger_than_the_write_buffer() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::local(dir.path()).unwrap();
    let state = StateStore::open(&store, ShardId(0)).await.unwrap();
    for barrier in 1..=3 {
        let pipelines = vec![part("large", 0, Some(bytes(100 << 20, barrier as u8)))];
        state.checkpoint(Checkpoint { pipelines, ..checkpoint(barrier) }).await.unwrap();
    }
    let found = state.load().await.unwrap().pipelines;
    assert!(found == [part("large", 0, Some(bytes(100 << 20, 3)))]);
}

/// Golden: keys and values as format 1 has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_are_those_of_format_1() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::local(dir.path()).unwrap();
    let state = StateStore::open(&store, ShardId(0)).await.unwrap();
    let stored = Checkpoint {
        devices: vec![(device("pump-7"), Bytes::from_static(b"snapshot"))],
        pipelines: vec![part("climate", -1, Some(Bytes::from_static(b"state")))],
        outbox: vec![rows(3, "climate", Bytes::from_static(b"ipc"))],
        counters: vec![("stored".to_owned(), 258)],
        ..checkpoint(3)
    };
    state.checkpoint(stored).await.unwrap();
    state.cut_done(CutDone { barrier: Barrier(2), position: Position(200) }).await.unwrap();
    let all = state.db.scan(Bound::Included(Bytes::new()), Bound::Unbounded, 100).await.unwrap();
    let text = |(key, value): &(Bytes, Bytes)| format!("{} = {}", key.escape_ascii(), value.escape_ascii());
    let found: Vec<String> = all.iter().map(text).collect();
    let number = |first: &str| format!("{first}{}", r"\x00".repeat(6));
    assert_eq!(
        found,
        [
            format!(r"cstored = {}", number(r"\x02\x01")),
            "dpump-7 = snapshot".to_owned(),
            format!(r"mcheckpoint = {}{}\xfb{}", number(r",\x01"), number(r"\x03\x00"), r"\xff".repeat(7)),
            format!(r"mcut = {}{}", number(r"\x02\x00"), number(r"\xc8\x00")),
            r"mformat = \x01\x00\x00\x00".to_owned(),
            format!(r"o{}\x03{} = {}climate\x00ipc", r"\x00".repeat(7), r"\x00".repeat(4), r"\x00".repeat(4)),
            format!(r"pclimate\x00\x7f{} = {}state", r"\xff".repeat(7), r"\x00".repeat(4)),
        ]
    );
}
