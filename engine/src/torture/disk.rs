//! A disk of the engine's own that can be filled: a tmpfs, where it may be mounted.
//!
//! Filling the disk that the user's other programs write to would torture them too, so without a mount this fault
//! is left out, and the verdict says so.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The mounted disk. Dropping it unmounts it.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Mounts a tmpfs of so many bytes; the error says why there is none.
    pub(super) fn mount(root: &Path, bytes: u64) -> Result<Self, String> {
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "weir-torture"])
            .arg(root)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("mount cannot be run: {error}"))?;
        if done.status.success() {
            return Ok(Self { root: root.to_owned() });
        }
        let said = String::from_utf8_lossy(&done.stderr);
        Err(format!("a tmpfs cannot be mounted (it takes root): {}", said.lines().next().unwrap_or("no reason given")))
    }

    fn ballast(&self) -> PathBuf {
        self.root.join("ballast")
    }

    /// Writes until not a byte is left; what the engine has freed since the last call too.
    pub(super) fn fill(&self) -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.ballast())?;
        let zeros = vec![0; 1 << 20];
        for size in [1 << 20, 4096, 1] {
            while file.write_all(zeros.get(..size).unwrap_or_default()).is_ok() {}
        }
        Ok(())
    }

    /// Makes room again.
    pub(super) fn free(&self) -> std::io::Result<()> {
        let path = self.ballast();
        match File::open(&path) {
            Ok(_) => std::fs::remove_file(path),
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is just ending may still have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.root).stdin(Stdio::null()).stderr(Stdio::null()).status();
    }
}
