//! The architecture as a test: which crate may know which, how long a file may be, what a file must say of itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A file longer than this holds more than one room.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                rust_files(&path, into);
            }
        } else if name.ends_with(".rs") {
            into.push(path);
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let root = root();
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&root).unwrap().to_string_lossy().into_owned(), text)
        })
        .collect()
}

#[test]
fn arrows_point_down_only() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("actors/device", &[] as &[&str]),
        ("access", &["device"]),
        ("alerts", &["device", "storage"]),
        ("edge", &["device"]),
        ("storage", &["device"]),
        ("sql", &["device", "storage"]),
        ("pipelines", &["device", "storage", "sql"]),
        ("actors", &["device", "storage"]),
        ("engine", &["device", "storage", "sql", "pipelines", "actors", "alerts", "access", "edge"]),
    ]);
    let ours: BTreeSet<&str> =
        ["device", "access", "alerts", "edge", "storage", "sql", "pipelines", "actors", "engine"].into();
    for (dir, allowed) in allowed {
        let manifest = std::fs::read_to_string(root().join(dir).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        for line in dependencies.lines() {
            let name = line.split(['=', '.', ' ']).next().unwrap().trim();
            if ours.contains(name) {
                assert!(allowed.contains(&name), "{dir} must not depend on {name}");
            }
        }
    }
}

#[test]
fn versions_stand_in_the_root_manifest_only() {
    let mut manifests = vec![];
    for dir in [
        "access",
        "actors",
        "actors/device",
        "alerts",
        "benches",
        "edge",
        "engine",
        "pipelines",
        "sql",
        "storage",
        "tests",
    ] {
        manifests.push(root().join(dir).join("Cargo.toml"));
    }
    for path in manifests {
        let text = std::fs::read_to_string(&path).unwrap();
        for section in ["[dependencies]", "[dev-dependencies]"] {
            let Some(rest) = text.split(section).nth(1) else { continue };
            for line in rest.split("\n[").next().unwrap().lines().filter(|line| line.contains('=')) {
                assert!(line.contains("workspace = true"), "{}: {line}", path.display());
            }
        }
        assert!(text.contains("[lints]\nworkspace = true"), "{} does not take the lints", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_and_is_one_room() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{path} does not open with //!");
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{path} has {lines} lines, more than {MAX_LINES}");
    }
}

#[test]
fn each_foreign_thing_is_known_in_one_place() {
    let only = [
        ("rumqttd::", "engine/src/bus"),
        ("raft_engine::", "storage/src/log/raft"),
        ("slatedb::", "storage/src/state"),
        ("SystemTime::now", "engine/src/clock.rs"),
    ];
    for (path, text) in sources() {
        if path.starts_with("tests/") || path.starts_with("benches/") {
            continue;
        }
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for (word, place) in only {
            assert!(!code.contains(word) || path.starts_with(place), "{path} uses {word}, which belongs to {place}");
        }
    }
}

#[test]
fn the_device_crate_is_pure() {
    let manifest = std::fs::read_to_string(root().join("actors/device/Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    for banned in ["tokio", "arrow", "ractor", "rand", "datafusion"] {
        assert!(!dependencies.contains(banned), "device must not depend on {banned}");
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let banned =
        ["to".to_owned() + "do!(", "unimpl".to_owned() + "emented!(", "TO".to_owned() + "DO", "FIX".to_owned() + "ME"];
    for (path, text) in sources() {
        for word in &banned {
            assert!(!text.contains(word.as_str()), "{path} holds {word}");
        }
    }
}

/// What `deny.toml` says of TLS, without the tool that reads it.
#[test]
fn there_is_one_tls_and_a_new_one() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let named = |name: &str| {
        let head = format!("name = \"{name}\"\nversion = \"");
        lock.match_indices(&head).map(|(at, _)| lock[at + head.len()..].split('"').next().unwrap()).collect::<Vec<_>>()
    };
    assert!(named("rustls").iter().all(|version| version.starts_with("0.23.")), "{:?}", named("rustls"));
    for banned in ["openssl", "openssl-sys", "native-tls"] {
        assert!(named(banned).is_empty(), "{banned}");
    }
}
