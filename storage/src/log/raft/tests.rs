//! The log on real files: kills, torn tails, full disks, failing fsyncs.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::*;
use crate::log::suite::{self, expect, fill, record};

const SMALL: RaftLogOptions = RaftLogOptions { file_bytes: 256 << 10, keep_bytes: 1 << 20 };

fn open(directory: &Path) -> RaftLog {
    RaftLog::open(directory, SMALL).unwrap()
}

fn disk_bytes(directory: &Path) -> u64 {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

impl RaftLog {
    fn faults<T>(&self, act: impl FnOnce(&files::faults::Faults) -> T) -> T {
        act(self.instance.read().as_ref().unwrap().files.faults())
    }
}

/// What a kill leaves: the files as they are now, without anything a destructor would do.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

fn newest(directory: &Path) -> PathBuf {
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|end| end == "raftlog")).max().unwrap()
}

#[test]
fn passes_the_suite() {
    let dirs = std::cell::RefCell::new(Vec::new());
    suite::run(|| {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir.path().join("log"));
        dirs.borrow_mut().push(dir);
        log
    });
}

#[test]
fn everything_acknowledged_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for position in 1..=60 {
        fill(&log, ShardId(0), position..=position);
        fill(&log, ShardId(1), position..=position);
        if position % 10 == 0 {
            log.truncate(ShardId(0), Position(position - 5)).unwrap();
        }
        if position % 15 == 0 {
            let left = copy(dir.path());
            let again = open(left.path());
            expect(&again, ShardId(0), (position / 10 * 10 - 4)..=position);
            expect(&again, ShardId(1), 1..=position);
            fill(&again, ShardId(1), position..=position + 3);
            expect(&again, ShardId(1), 1..=position + 3);
        }
    }
}

#[test]
fn positions_survive_a_restart_of_an_empty_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, ShardId(0), 1..=9);
    log.truncate(ShardId(0), Position(9)).unwrap();
    drop(log);
    for _ in 0..3 {
        let log = open(dir.path());
        assert_eq!(log.bounds(ShardId(0)).unwrap(), Bounds { first: Position(10), last: Position(9) });
    }
    let log = open(dir.path());
    fill(&log, ShardId(0), 10..=11);
    drop(log);
    expect(&open(dir.path()), ShardId(0), 10..=11);
}

#[test]
fn a_torn_tail_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, ShardId(0), 1..=5);
    let before = {
        let left = copy(dir.path());
        drop(open(left.path()));
        std::fs::metadata(newest(left.path())).unwrap().len()
    };
    fill(&log, ShardId(0), 6..=6);
    for torn in [1, 9, 40] {
        let left = copy(dir.path());
        let file = std::fs::OpenOptions::new().write(true).open(newest(left.path())).unwrap();
        file.set_len(before + torn).unwrap();
        let again = open(left.path());
        expect(&again, ShardId(0), 1..=5);
        fill(&again, ShardId(0), 6..=8);
        drop(again);
        expect(&open(left.path()), ShardId(0), 1..=8);
    }
}

#[test]
fn a_last_record_without_its_bytes_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    // Record 3 is large: its middle can be damaged without touching the index behind it. Another shard's record
    // follows, so that it is not the last one of the file.
    fill(&log, ShardId(0), 1..=2);
    let at = {
        let left = copy(dir.path());
        drop(open(left.path()));
        std::fs::metadata(newest(left.path())).unwrap().len()
    };
    fill(&log, ShardId(0), 3..=3);
    fill(&log, ShardId(1), 1..=1);
    let left = copy(dir.path());
    let mut bytes = std::fs::read(newest(left.path())).unwrap();
    bytes[at as usize + 30_000..][..4096].fill(0xee);
    std::fs::write(newest(left.path()), bytes).unwrap();
    let again = open(left.path());
    expect(&again, ShardId(0), 1..=2);
    expect(&again, ShardId(1), 1..=1);
    fill(&again, ShardId(0), 3..=4);
    drop(again);
    expect(&open(left.path()), ShardId(0), 1..=4);
}

#[test]
fn truncation_gives_files_back_also_under_an_idle_shard() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, ShardId(1), 1..=3);
    for round in 0..40u64 {
        fill(&log, ShardId(0), round * 30 + 1..=round * 30 + 30);
        log.truncate(ShardId(0), Position(round * 30 + 25)).unwrap();
    }
    // Some 16 MB went through.
    assert!(disk_bytes(dir.path()) < 4 << 20, "{} bytes are left", disk_bytes(dir.path()));
    expect(&log, ShardId(1), 1..=3);
    expect(&log, ShardId(0), 1196..=1200);
    drop(log);
    let log = open(dir.path());
    expect(&log, ShardId(1), 1..=3);
    expect(&log, ShardId(0), 1196..=1200);
}

#[test]
fn a_full_disk_is_an_error_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, ShardId(0), 1..=5);
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    log.faults(|faults| faults.writes_left.store(0, Ordering::SeqCst));
    for _ in 0..50 {
        let error = log.append(ShardId(0), Position(6), &record(6)).unwrap_err();
        assert!(error.is_retriable(), "{error}");
        assert!(!log.healthy());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), files, "failing appends leave files behind");
    expect(&copy_open(dir.path()), ShardId(0), 1..=5);
    log.faults(|faults| faults.writes_left.store(i64::MAX, Ordering::SeqCst));
    fill(&log, ShardId(0), 6..=9);
    assert!(log.healthy());
    expect(&log, ShardId(0), 1..=9);
    expect(&copy_open(dir.path()), ShardId(0), 1..=9);
}

fn copy_open(from: &Path) -> RaftLog {
    let left = copy(from);
    let log = open(left.path());
    // The folder may go: everything is open, and nothing is written any more.
    log
}

#[test]
fn a_failed_fsync_loses_nothing_acknowledged_and_keeps_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, ShardId(0), 1..=5);
    fill(&log, ShardId(1), 1..=2);
    for round in 0..4 {
        log.faults(|faults| faults.syncs_left.store(0, Ordering::SeqCst));
        let next = Position(6 + round);
        assert!(log.append(ShardId(0), next, &record(next.0)).unwrap_err().is_retriable());
        assert!(!log.healthy());
        // The instance is replaced; the record in doubt is gone, another one may take its place.
        assert_eq!(log.bounds(ShardId(0)).unwrap().last, Position(5 + round));
        fill(&log, ShardId(0), next.0..=next.0);
        assert!(log.healthy());
    }
    expect(&log, ShardId(0), 1..=9);
    expect(&log, ShardId(1), 1..=2);
    drop(log);
    expect(&open(dir.path()), ShardId(0), 1..=9);
}

#[test]
fn a_failed_fsync_fails_every_writer_of_the_group() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for round in 0..10 {
        log.faults(|faults| faults.syncs_left.store(20, Ordering::SeqCst));
        std::thread::scope(|scope| {
            for shard in 0..4 {
                let log = &log;
                scope.spawn(move || {
                    for position in round * 20 + 1..=round * 20 + 20 {
                        let mut tries = 0;
                        while let Err(error) = log.append(ShardId(shard), Position(position), &record(position)) {
                            assert!(error.is_retriable(), "{error}");
                            tries += 1;
                            assert!(tries < 100);
                        }
                    }
                });
            }
        });
        for shard in 0..4 {
            expect(&log, ShardId(shard), 1..=round * 20 + 20);
        }
    }
    drop(log);
    let log = open(dir.path());
    for shard in 0..4 {
        expect(&log, ShardId(shard), 1..=200);
    }
}

/// A real file system that is really full. Needs to be root to mount one; elsewhere the injected faults above stand
/// for it.
#[test]
fn a_full_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let mount =
        |args: &[&str]| std::process::Command::new("mount").args(args).output().is_ok_and(|out| out.status.success());
    let path = dir.path().to_str().unwrap();
    if !mount(&["-t", "tmpfs", "-o", "size=3m", "tmpfs", path]) {
        eprintln!("skipped: cannot mount a file system here");
        return;
    }
    struct Unmount<'a>(&'a str);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").args(["-l", self.0]).output();
        }
    }
    let _unmount = Unmount(path);

    let log = open(&dir.path().join("log"));
    let ballast = dir.path().join("ballast");
    let mut next = 1;
    for _ in 0..3 {
        // Fill what is left, then write until the log finds no room.
        std::fs::write(&ballast, vec![0; 512 << 10]).unwrap();
        let mut refused = 0;
        while refused < 200 {
            match log.append(ShardId(0), Position(next), &record(next)) {
                Ok(()) => next += 1,
                Err(error) => {
                    assert!(error.is_retriable(), "{error}");
                    refused += 1;
                }
            }
        }
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(fds < 200, "{fds} open files");
        std::fs::remove_file(&ballast).unwrap();
        fill(&log, ShardId(0), next..=next);
        next += 1;
        expect(&log, ShardId(0), log.bounds(ShardId(0)).unwrap().first.0..=next - 1);
        log.truncate(ShardId(0), Position(next - 4)).unwrap();
    }
    drop(log);
    let log = open(&dir.path().join("log"));
    expect(&log, ShardId(0), next - 3..=next - 1);
}
