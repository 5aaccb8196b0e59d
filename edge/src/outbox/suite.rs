//! One suite for both media, and what a crash may leave behind: a store cut off or damaged at any byte.

use std::io;
use std::sync::{Arc, Mutex};

use device::entry::LossReason;
use device::seq::Epoch;
use device::time::Timestamp;

use super::*;
use crate::reading::SchemaRef;

fn fresh(n: u64) -> Fresh {
    Fresh { epoch: n, install: [n as u8; 16] }
}

fn reading(n: u64) -> Reading {
    let values = [(1, device::schema::Value::U64(n)), (2, device::schema::Value::Text("some text to fill the place"))];
    Reading::new(Timestamp(n as i64), SchemaRef::new(1, 1, 0), &values)
}

fn small(when_full: WhenFull) -> OutboxConfig {
    OutboxConfig { max_bytes: MIN_BYTES, when_full, segment_bytes: 4 << 10, recycle_bytes: 1 << 10 }
}

/// A medium that survives its outbox, can be looked into, and can fail.
#[derive(Clone, Default)]
struct Disk {
    ram: Arc<Mutex<RamMedia>>,
    fail_sync: Arc<Mutex<u32>>,
}

impl Media for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.ram.lock().unwrap().list()
    }
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.ram.lock().unwrap().create(name, bytes)
    }
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.ram.lock().unwrap().write(name, offset, bytes)
    }
    fn sync(&mut self, _name: &str) -> io::Result<()> {
        let mut fail = self.fail_sync.lock().unwrap();
        if *fail > 0 {
            *fail -= 1;
            return Err(io::Error::other("no space"));
        }
        Ok(())
    }
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.ram.lock().unwrap().replace(name, bytes)
    }
    fn read(&mut self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.ram.lock().unwrap().read(name, offset, len)
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.ram.lock().unwrap().remove(name)
    }
    fn blocks(&self) -> bool {
        false
    }
}

impl Disk {
    fn bytes(&self, name: &str) -> Vec<u8> {
        self.ram.lock().unwrap().read(name, 0, usize::MAX).unwrap()
    }

    /// A copy of the disk, as a crash would leave it.
    fn image(&self) -> Self {
        let ram = self.ram.lock().unwrap().clone();
        Self { ram: Arc::new(Mutex::new(ram)), fail_sync: Arc::default() }
    }

    fn segments(&self) -> Vec<String> {
        let mut names: Vec<String> = self.list().unwrap().into_iter().filter(|name| name.ends_with(".seg")).collect();
        names.sort();
        names
    }
}

fn open(media: &Disk, config: OutboxConfig, n: u64) -> (Outbox, Recovery) {
    Outbox::open(Box::new(media.clone()), config, fresh(n)).unwrap()
}

fn fill(outbox: &mut Outbox, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        assert_eq!(outbox.push(&reading(n)).unwrap(), Pushed::Numbered(n));
    }
    outbox.commit().unwrap();
}

fn held(outbox: &mut Outbox, epoch: u64) -> Vec<u64> {
    let stored = outbox.read(Epoch(epoch), 0, u64::MAX, usize::MAX).unwrap();
    for stored in &stored {
        assert_eq!(stored.reading, reading(stored.seq), "a record came back changed");
    }
    stored.into_iter().map(|stored| stored.seq).collect()
}

/// What every medium must do. `open` gives the same store again after its outbox was dropped.
fn suite(mut reopen: impl FnMut(u64) -> (Outbox, Recovery)) {
    let (mut outbox, recovery) = reopen(1);
    assert!(recovery.new_install && recovery.epochs.is_empty());
    assert_eq!(outbox.commit().unwrap(), 0);
    fill(&mut outbox, 1..=200);
    assert_eq!(held(&mut outbox, 1), (1..=200).collect::<Vec<_>>());
    assert_eq!(outbox.read(Epoch(1), 50, 60, 3).unwrap().len(), 3);
    outbox.forget(Epoch(1), 150, &[(160, 170)]).unwrap();
    let views = outbox.epochs();
    assert_eq!((views[0].first, views[0].last, views[0].live), (151, 200, true));
    let install = outbox.install();
    drop(outbox);

    let (mut outbox, recovery) = reopen(2);
    assert!(!recovery.new_install);
    assert_eq!((outbox.install(), outbox.boots()), (install, 2));
    assert_eq!(outbox.live(), Epoch(2));
    assert_eq!(recovery.damaged, Vec::new());
    assert!(held(&mut outbox, 1).ends_with(&(151..=200).collect::<Vec<_>>()), "old numbers stay");
    fill(&mut outbox, 1..=10);
    outbox.forget(Epoch(1), 200, &[]).unwrap();
    assert_eq!(outbox.epochs().len(), 1, "a drained epoch is forgotten");
    drop(outbox);

    let (mut outbox, recovery) = reopen(3);
    assert_eq!(recovery.epochs.len(), 1);
    assert_eq!(held(&mut outbox, 2), (1..=10).collect::<Vec<_>>());
    fill(&mut outbox, 1..=3);
    outbox.fork(Epoch(3), Epoch(4)).unwrap();
    assert_eq!(outbox.live(), Epoch(4));
    assert_eq!(outbox.epochs().iter().map(|view| view.epoch).collect::<Vec<_>>(), vec![Epoch(2), Epoch(4)]);
    assert_eq!(held(&mut outbox, 4), vec![1, 2, 3]);
}

#[test]
fn memory_passes_the_suite() {
    let disk = Disk::default();
    suite(|n| open(&disk, small(WhenFull::DropOldest), n));
}

#[test]
fn files_pass_the_suite() {
    let directory = tempfile::tempdir().unwrap();
    suite(|n| {
        let media = FileMedia::open(directory.path()).unwrap();
        Outbox::open(Box::new(media), small(WhenFull::DropOldest), fresh(n)).unwrap()
    });
}

#[test]
fn a_directory_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let first = FileMedia::open(directory.path()).unwrap();
    assert!(matches!(FileMedia::open(directory.path()), Err(EdgeError::Locked { .. })));
    drop(first);
    FileMedia::open(directory.path()).unwrap();
}

#[test]
fn a_crash_at_any_byte_keeps_what_was_durable() {
    let disk = Disk::default();
    let (mut outbox, _) = open(&disk, small(WhenFull::DropOldest), 1);
    fill(&mut outbox, 1..=5);
    let name = disk.segments()[0].clone();
    let durable = disk.bytes(&name).len();
    fill(&mut outbox, 6..=9);
    let whole = disk.bytes(&name);
    for cut in durable..=whole.len() {
        let image = disk.image();
        image.ram.lock().unwrap().replace(&name, &whole[..cut]).unwrap();
        let (mut outbox, recovery) = open(&image, small(WhenFull::DropOldest), 2);
        let found = held(&mut outbox, 1);
        assert!(found.len() >= 5 && found == (1..=found.len() as u64).collect::<Vec<_>>(), "cut at {cut}: {found:?}");
        assert_eq!(recovery.damaged, Vec::new(), "a torn end is no damage");
        assert_eq!(recovery.epochs[0].last, found.len() as u64);
    }
}

#[test]
fn a_store_of_a_newer_client_is_left_as_it_is() {
    let disk = Disk::default();
    let (mut outbox, _) = open(&disk, small(WhenFull::DropOldest), 1);
    fill(&mut outbox, 1..=5);
    let segment = disk.segments()[0].clone();
    let sealed = |mut bytes: Vec<u8>, end: usize| {
        let crc = crc32fast::hash(&bytes[..end - 4]);
        bytes[end - 4..end].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let mut bytes = disk.bytes(&segment);
    bytes[7] = b'2';
    let newer_segment = sealed(bytes, segment::HEADER);
    let mut bytes = disk.bytes(meta::NAME);
    bytes[1] = 2;
    let len = bytes.len();
    let newer_meta = sealed(bytes, len);
    for (name, bytes) in [(segment.as_str(), newer_segment), (meta::NAME, newer_meta)] {
        let image = disk.image();
        image.ram.lock().unwrap().replace(name, &bytes).unwrap();
        let error = Outbox::open(Box::new(image.clone()), small(WhenFull::DropOldest), fresh(2)).unwrap_err();
        assert!(matches!(&error, EdgeError::Newer { what, found: 2, known: 1 } if what == name), "{error}");
        assert!(error.to_string().contains("run the client that wrote it"), "{error}");
        assert_eq!(image.bytes(name), bytes, "nothing was changed");
    }
}

#[test]
fn damage_is_declared_lost_and_nothing_else() {
    let disk = Disk::default();
    let (mut outbox, _) = open(&disk, small(WhenFull::DropOldest), 1);
    fill(&mut outbox, 1..=5);
    let name = disk.segments()[0].clone();
    let whole = disk.bytes(&name);
    let each = (whole.len() - segment::HEADER) / 5;
    for at in segment::HEADER..whole.len() - each {
        let image = disk.image();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        image.ram.lock().unwrap().replace(&name, &bytes).unwrap();
        let (mut outbox, recovery) = open(&image, small(WhenFull::DropOldest), 2);
        let hit = ((at - segment::HEADER) / each + 1) as u64;
        assert_eq!(held(&mut outbox, 1), (1..=5).filter(|n| *n != hit).collect::<Vec<_>>(), "byte {at}");
        let first_is_gone = hit == 1;
        let lost = Lost { epoch: Epoch(1), from: hit, to: hit, reason: LossReason::StorageCorrupt };
        // Before the first record that is there, nobody knows what was acknowledged; the engine asks if it misses it.
        assert_eq!(recovery.damaged, if first_is_gone { vec![] } else { vec![lost] }, "byte {at}");
        drop(outbox);
        let (outbox, _) = open(&image, small(WhenFull::DropOldest), 3);
        assert_eq!(outbox.lost(), recovery.damaged, "a loss is remembered until it is acknowledged");
    }
}

#[test]
fn a_damaged_header_does_not_lose_the_records() {
    let disk = Disk::default();
    let (mut outbox, _) = open(&disk, small(WhenFull::DropOldest), 1);
    fill(&mut outbox, 1..=100);
    fill(&mut outbox, 101..=200);
    let name = disk.segments()[1].clone();
    let mut bytes = disk.bytes(&name);
    bytes[3] ^= 1;
    let image = disk.image();
    image.ram.lock().unwrap().replace(&name, &bytes).unwrap();
    let (mut outbox, recovery) = open(&image, small(WhenFull::DropOldest), 2);
    assert_eq!(held(&mut outbox, 1), (1..=200).collect::<Vec<_>>());
    assert!(recovery.damaged.is_empty() && recovery.unreadable.is_empty());
}

#[test]
fn rot_under_a_running_outbox_is_found_when_read() {
    let disk = Disk::default();
    let (mut outbox, _) = open(&disk, small(WhenFull::DropOldest), 1);
    fill(&mut outbox, 1..=3);
    let name = disk.segments()[0].clone();
    let mut bytes = disk.bytes(&name);
    let each = (bytes.len() - segment::HEADER) / 3;
    bytes[segment::HEADER + each + 20] ^= 1;
    disk.ram.lock().unwrap().replace(&name, &bytes).unwrap();
    assert_eq!(held(&mut outbox, 1), vec![1, 3]);
    assert_eq!(outbox.take_news(), vec![Lost { epoch: Epoch(1), from: 2, to: 2, reason: LossReason::StorageCorrupt }]);
}

#[test]
fn a_failed_sync_loses_and_doubles_nothing() {
    let disk = Disk::default();
    let (mut outbox, _) = open(&disk, small(WhenFull::DropOldest), 1);
    fill(&mut outbox, 1..=3);
    *disk.fail_sync.lock().unwrap() = 2;
    outbox.push(&reading(4)).unwrap();
    outbox.push(&reading(5)).unwrap();
    assert!(outbox.commit().is_err());
    assert_eq!(outbox.epochs()[0].last, 3, "not durable");
    assert!(outbox.commit().is_err());
    assert_eq!(outbox.commit().unwrap(), 5);
    assert_eq!(held(&mut outbox, 1), vec![1, 2, 3, 4, 5]);
    // The copies that the failed attempts may have left are recognised.
    let (mut outbox, recovery) = open(&disk.image(), small(WhenFull::DropOldest), 2);
    assert_eq!(held(&mut outbox, 1), vec![1, 2, 3, 4, 5]);
    assert!(recovery.damaged.is_empty());
}

#[test]
fn a_full_store_drops_the_oldest_and_says_so() {
    let disk = Disk::default();
    let (mut outbox, _) = open(&disk, small(WhenFull::DropOldest), 1);
    let count = 3 * MIN_BYTES / segment::size(&reading(1)) as u64;
    for n in 1..=count {
        assert_eq!(outbox.push(&reading(n)).unwrap(), Pushed::Numbered(n));
        if n % 64 == 0 {
            outbox.commit().unwrap();
            assert!(outbox.bytes() <= MIN_BYTES);
        }
    }
    outbox.commit().unwrap();
    let check = |outbox: &mut Outbox| {
        let found = held(outbox, 1);
        let lost = outbox.lost().to_vec();
        assert_eq!(lost.len(), 1, "one range: {lost:?}");
        assert_eq!((lost[0].from, lost[0].reason), (1, LossReason::RingFull));
        assert_eq!(found, (lost[0].to + 1..=count).collect::<Vec<_>>(), "each number is held or lost");
    };
    check(&mut outbox);
    assert_eq!(outbox.dropped(), outbox.lost()[0].to);
    let (mut again, recovery) = open(&disk.image(), small(WhenFull::DropOldest), 2);
    assert!(recovery.damaged.is_empty());
    check(&mut again);
    // Losses are forgotten when an ack covers them, and with the last of it the epoch.
    again.forget(Epoch(1), count, &[]).unwrap();
    assert!(again.lost().is_empty() && again.epochs().len() == 1);
}

#[test]
fn a_full_store_blocks_or_drops_the_new_one() {
    let (mut outbox, _) = open(&Disk::default(), small(WhenFull::Block), 1);
    let mut n = 0;
    while outbox.push(&reading(n + 1)).is_ok() {
        n += 1;
        outbox.commit().unwrap();
    }
    assert!(matches!(outbox.push(&reading(n + 1)), Err(EdgeError::Full)));
    outbox.forget(Epoch(1), n, &[]).unwrap();
    assert_eq!(outbox.push(&reading(n + 1)).unwrap(), Pushed::Numbered(n + 1));

    let disk = Disk::default();
    let (mut outbox, _) = open(&disk, small(WhenFull::DropNew), 1);
    let mut n = 0;
    while let Pushed::Numbered(seq) = outbox.push(&reading(n + 1)).unwrap() {
        n = seq;
        outbox.commit().unwrap();
    }
    assert_eq!(outbox.push(&reading(0)).unwrap(), Pushed::Dropped(n + 2));
    outbox.commit().unwrap();
    let lost = Lost { epoch: Epoch(1), from: n + 1, to: n + 2, reason: LossReason::RingFull };
    assert_eq!(outbox.lost(), [lost]);
    outbox.forget(Epoch(1), n / 2, &[]).unwrap();
    assert_eq!(outbox.push(&reading(n + 3)).unwrap(), Pushed::Numbered(n + 3));
    outbox.commit().unwrap();
    let (_, recovery) = open(&disk.image(), small(WhenFull::DropNew), 2);
    assert!(recovery.damaged.is_empty(), "numbers that were dropped are no damage: {:?}", recovery.damaged);
    assert_eq!(recovery.epochs[0].last, n + 3);
}

#[test]
fn memory_is_given_back_as_acks_come() {
    let config = OutboxConfig::memory();
    let (mut outbox, _) = open(&Disk::default(), config, 1);
    for round in 0..100 {
        fill(&mut outbox, round * 64 + 1..=round * 64 + 64);
        outbox.forget(Epoch(1), round * 64 + 64, &[]).unwrap();
        assert!(outbox.bytes() < 16 << 10, "{} bytes", outbox.bytes());
    }
}

#[test]
fn what_cannot_work_is_refused() {
    let config = OutboxConfig { max_bytes: 100, ..OutboxConfig::memory() };
    assert!(matches!(Outbox::open(Box::new(RamMedia::new()), config, fresh(1)), Err(EdgeError::Config(_))));
    let (mut outbox, _) = open(&Disk::default(), OutboxConfig::memory(), 1);
    let text = "x".repeat(MAX_FIELDS);
    let large = Reading::new(Timestamp(1), SchemaRef::new(1, 1, 0), &[(1, device::schema::Value::Text(&text))]);
    assert!(matches!(outbox.push(&large), Err(EdgeError::TooLarge { .. })));
}
