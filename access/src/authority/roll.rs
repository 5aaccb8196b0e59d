//! The files of an authority while one root takes the place of another: `next/` holds the new root and issuing authority until
//! they sign, `old/` the former ones until nobody needs them. When each step may be taken is decided by [`crate::roll`].
//!
//! Every function can be called again after a crash in its middle. A reader beside it sees the authority before or after.

use std::io;
use std::path::{Path, PathBuf};

use device::time::Timestamp;

use super::{Authority, AuthorityError, exists, issuing, new_root, open, open_in, read, write};

const NEXT: &str = "next";
const OLD: &str = "old";
const BUNDLE: &str = "ca.crt";

/// Where the key of the new issuing authority stands while it is put in place.
pub(super) fn next(dir: &Path) -> PathBuf {
    dir.join(NEXT)
}

/// Whether one was begun and is neither finished nor called off.
pub(super) fn is_under_way(dir: &Path) -> bool {
    exists(&next(dir)) || exists(&dir.join(OLD))
}

/// The authority whose certificate the engine shows: while a root is rolled the former one, which everybody trusts.
pub fn serving(dir: &Path) -> Result<Authority, AuthorityError> {
    if exists(&dir.join(OLD)) { open_in(dir, &dir.join(OLD)) } else { open(dir) }
}

pub(super) fn former(dir: &Path) -> Result<Option<String>, AuthorityError> {
    if exists(&dir.join(OLD)) { read(&dir.join(OLD), "issuing.crt").map(Some) } else { Ok(None) }
}

/// SHA-256 of whom to trust (PEM), hexadecimal: what devices name when they say that they do.
pub fn bundle_id(bundle: &str) -> String {
    crate::leaf::hex(ring::digest::digest(&ring::digest::SHA256, bundle.as_bytes()).as_ref())
}

/// Makes a new root and issuing authority, for later, and lets the bundle name both roots. Returned is the bundle.
pub fn begin(dir: &Path, now: Timestamp, draw: impl Fn() -> [u8; 16]) -> Result<String, AuthorityError> {
    let tenant = open(dir)?.tenant;
    if exists(&dir.join(OLD)) {
        return Err(AuthorityError::Roll("the last one is not finished; `weir ca roll finish`"));
    }
    let next = next(dir);
    if !exists(&next) {
        std::fs::create_dir_all(&next).map_err(|source| AuthorityError::Io { path: next.clone(), source })?;
        new_root(&next, &tenant, now, draw())?;
        issuing(&next, &tenant, now, draw())?;
    }
    let (bundle, root) = (read(dir, BUNDLE)?, read(&next, "root.crt")?);
    match bundle.contains(&root) {
        true => Ok(bundle),
        false => put_bundle(dir, format!("{}\n{root}", bundle.trim_end())),
    }
}

/// Lets the new authority sign. Returned is the bundle, which stays.
pub fn switch(dir: &Path) -> Result<String, AuthorityError> {
    let (next, old) = (next(dir), dir.join(OLD));
    if exists(&next) {
        if !exists(&old) {
            keep_old(dir, &old)?;
        }
        // A reader that finds the certificate and not yet its key looks for that where it comes from.
        for (name, mode) in [("issuing.crt", 0o644), ("issuing.key", 0o600), ("root.crt", 0o644)] {
            write(dir, name, &read(&next, name)?, mode)?;
        }
        // The key of the root may have been taken elsewhere; that of the other must not stay in its place.
        match next.join("root.key").exists() {
            true => write(dir, "root.key", &read(&next, "root.key")?, 0o600)?,
            false => remove(&dir.join("root.key"), |path| std::fs::remove_file(path))?,
        }
    } else if !exists(&old) {
        return Err(AuthorityError::Roll("none was begun; `weir ca roll begin`"));
    }
    discard(&next)?;
    read(dir, BUNDLE)
}

/// Lets the bundle name the new root alone, and removes the former authority with its keys. Returned is the bundle.
pub fn finish(dir: &Path) -> Result<String, AuthorityError> {
    if exists(&next(dir)) {
        return Err(AuthorityError::Roll("the old root signs still; `weir ca roll switch`"));
    }
    drop_from_bundle(dir, &dir.join(OLD))
}

/// Lets the bundle name the old root alone, and removes the new one. Returned is the bundle.
pub fn cancel(dir: &Path) -> Result<String, AuthorityError> {
    if exists(&dir.join(OLD)) {
        return Err(AuthorityError::Roll("the new root signs already; `weir ca roll finish`"));
    }
    drop_from_bundle(dir, &next(dir))
}

/// Takes the root of this folder out of the bundle, then the folder away.
fn drop_from_bundle(dir: &Path, gone: &Path) -> Result<String, AuthorityError> {
    let mut bundle = read(dir, BUNDLE)?;
    if exists(gone) {
        let rest = bundle.replace(read(gone, "root.crt")?.trim_end(), "");
        let rest: String =
            rest.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{line}\n")).collect();
        bundle = put_bundle(dir, rest)?;
    }
    discard(gone)?;
    Ok(bundle)
}

/// Takes a folder away: at once for whoever looks for it, so that a half of it is never taken for the whole.
fn discard(folder: &Path) -> Result<(), AuthorityError> {
    let gone = folder.with_extension("gone");
    let failed = |source| AuthorityError::Io { path: folder.to_owned(), source };
    remove(&gone, |path| std::fs::remove_dir_all(path))?;
    remove(folder, |path| std::fs::rename(path, &gone))?;
    let dir = folder.parent().unwrap_or(Path::new("."));
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    remove(&gone, |path| std::fs::remove_dir_all(path))
}

/// Whole or not at all: the folder is there when all of it is.
fn keep_old(dir: &Path, old: &Path) -> Result<(), AuthorityError> {
    let fresh = dir.join("old.new");
    let failed = |source| AuthorityError::Io { path: fresh.clone(), source };
    remove(&fresh, |path| std::fs::remove_dir_all(path))?;
    std::fs::create_dir_all(&fresh).map_err(failed)?;
    for (name, mode) in [("root.crt", 0o644), ("root.key", 0o600), ("issuing.key", 0o600), ("issuing.crt", 0o644)] {
        if name != "root.key" || dir.join(name).exists() {
            write(&fresh, name, &read(dir, name)?, mode)?;
        }
    }
    std::fs::rename(&fresh, old).and_then(|()| std::fs::File::open(dir)?.sync_all()).map_err(failed)
}

fn put_bundle(dir: &Path, text: String) -> Result<String, AuthorityError> {
    write(dir, BUNDLE, &text, 0o644)?;
    Ok(text)
}

fn remove(path: &Path, remove: impl Fn(&Path) -> io::Result<()>) -> Result<(), AuthorityError> {
    match remove(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AuthorityError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use device::time::SECOND;

    use super::*;
    use crate::authority::init;

    const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

    fn draw() -> [u8; 16] {
        let seed = std::collections::hash_map::RandomState::new();
        let random = |what: u8| std::hash::BuildHasher::hash_one(&seed, what).to_le_bytes();
        let mut bytes = [0; 16];
        bytes.iter_mut().zip([random(0), random(1)].concat()).for_each(|(to, from)| *to = from);
        bytes
    }

    fn place() -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), "main", NOW, draw).unwrap();
        let root = read(dir.path(), "root.crt").unwrap();
        (dir, root)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn both_are_trusted_then_the_new_one_signs_then_it_stands_alone() {
        let (dir, old) = place();
        let dir = dir.path();
        let first = open(dir).unwrap();
        let both = begin(dir, NOW, draw).unwrap();
        assert_eq!(begin(dir, NOW, draw).unwrap(), both, "again");
        let new = read(&next(dir), "root.crt").unwrap();
        assert!(both.contains(&old) && both.contains(&new) && old != new);
        assert_eq!(
            (open(dir).unwrap().issuing(), open(dir).unwrap().bundle().unwrap()),
            (first.issuing(), both.clone())
        );
        assert!(finish(dir).is_err());

        assert_eq!(switch(dir).unwrap(), both);
        assert_eq!(switch(dir).unwrap(), both, "again");
        let second = open(dir).unwrap();
        assert_ne!(second.issuing(), first.issuing());
        assert_eq!(serving(dir).unwrap().issuing(), first.issuing(), "who trusts the old one only comes in still");
        assert_eq!(former(dir).unwrap().as_deref(), Some(first.issuing()));
        assert_eq!(read(dir, "root.crt").unwrap(), new);
        assert!(begin(dir, NOW, draw).is_err() && cancel(dir).is_err());

        assert_eq!(finish(dir).unwrap(), new);
        assert_eq!(finish(dir).unwrap(), new, "again");
        assert_eq!((serving(dir).unwrap().issuing(), former(dir).unwrap()), (second.issuing(), None));
        assert_eq!(names(dir), ["ca.crt", "issuing.crt", "issuing.key", "root.crt", "root.key", "tenant"]);
        // And once more, with the new one as the old one.
        assert!(begin(dir, NOW, draw).unwrap().contains(&new));
        assert!(switch(dir).is_ok() && finish(dir).is_ok());
    }

    #[test]
    fn what_was_begun_can_be_called_off() {
        let (dir, old) = place();
        let dir = dir.path();
        assert!(switch(dir).unwrap_err().to_string().contains("weir ca roll begin"));
        begin(dir, NOW, draw).unwrap();
        assert_eq!(cancel(dir).unwrap(), old);
        assert_eq!(names(dir), ["ca.crt", "issuing.crt", "issuing.key", "root.crt", "root.key", "tenant"]);
        assert!(switch(dir).is_err());
    }

    /// Killed after any of the writes of a switch: the authority can be opened, and the switch brought to its end.
    #[test]
    fn a_switch_that_was_cut_off_goes_on() {
        for done in 0..=5 {
            let (dir, _) = place();
            let dir = dir.path();
            let both = begin(dir, NOW, draw).unwrap();
            let signs = read(&next(dir), "issuing.crt").unwrap();
            let from_next = |name: &str| write(dir, name, &read(&next(dir), name).unwrap(), 0o600).unwrap();
            match done {
                0 => std::fs::create_dir(dir.join("old.new")).unwrap(),
                _ => keep_old(dir, &dir.join(OLD)).unwrap(),
            }
            for name in ["issuing.crt", "issuing.key", "root.crt", "root.key"]
                .into_iter()
                .take((done as usize).saturating_sub(1))
            {
                from_next(name);
            }
            assert_eq!(open(dir).unwrap().issuing() == signs, done >= 2, "{done}");
            assert_eq!(switch(dir).unwrap(), both, "{done}");
            assert_eq!(open(dir).unwrap().issuing(), signs, "{done}");
            assert!(!next(dir).exists() && serving(dir).unwrap().issuing() != signs);
            finish(dir).unwrap();
        }
    }

    #[test]
    fn a_folder_that_was_half_removed_stands_in_nobodys_way() {
        let (dir, _) = place();
        let dir = dir.path();
        let half = |name: &str| {
            std::fs::create_dir(dir.join(name)).unwrap();
            write(dir, &format!("{name}/issuing.crt"), "what is left", 0o600).unwrap();
        };
        begin(dir, NOW, draw).unwrap();
        switch(dir).unwrap();
        half("next.gone");
        switch(dir).unwrap();
        finish(dir).unwrap();
        half("old.gone");
        finish(dir).unwrap();
        assert_eq!(names(dir), ["ca.crt", "issuing.crt", "issuing.key", "root.crt", "root.key", "tenant"]);
    }

    #[test]
    fn a_roots_key_that_was_taken_away_is_not_followed_by_the_others() {
        let (dir, _) = place();
        let dir = dir.path();
        begin(dir, NOW, draw).unwrap();
        std::fs::remove_file(next(dir).join("root.key")).unwrap();
        switch(dir).unwrap();
        assert!(!dir.join("root.key").exists() && dir.join("old/root.key").exists());
        let refused = crate::authority::renew_issuing(dir, NOW, draw).unwrap_err();
        assert!(refused.to_string().contains("finish it"), "{refused}");
        finish(dir).unwrap();
        let refused = crate::authority::renew_issuing(dir, NOW, draw).unwrap_err();
        assert!(refused.to_string().contains("root.key"), "{refused}");
    }
}
