//! Texts for people's tools: pipeline projects, queries over HTTP, certificates.

use std::time::Duration;

use datafusion::prelude::SessionContext;
use engine::{ca, query};
use sql::SourceFile;

/// Longer texts only take longer.
const MOST: usize = 16 * 1024;

/// Any text as a project of one or two files (a form feed parts them), through `weir check`: it is checked, or it
/// has diagnostics that point into it, and they can be shown.
pub fn project(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(&data[..data.len().min(MOST)]) else { return };
    let files: Vec<SourceFile> = text
        .split('\u{c}')
        .take(2)
        .enumerate()
        .map(|(at, text)| SourceFile { name: format!("{at}.sql"), text: text.to_owned() })
        .collect();
    match sql::check(&files) {
        Ok(project) => {
            let _ = sql::render_all(&project.warnings, &files);
            let again = sql::check(&files).expect("the same files are good twice");
            assert_eq!(project.fingerprint(), again.fingerprint());
            assert_eq!(project.catalog().streams(), again.catalog().streams());
        }
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty(), "what is refused is refused for a reason");
            assert!(!sql::render_all(&diagnostics, &files).is_empty());
            let json = sql::render_json(&diagnostics);
            assert_eq!(json["diagnostics"].as_array().map(Vec::len), Some(diagnostics.len()));
        }
    }
}

/// Any text as a query: a result, or an error for people, within its bounds.
pub fn query(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(&data[..data.len().min(MOST)]) {
        query_of_any_length(text);
    }
}

/// As [`query`], without cutting the text.
pub fn query_of_any_length(text: &str) {
    let bounds = query::Bounds { rows: 1000, time: Duration::from_secs(2) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let memory = query::runtime(64 << 20).expect("memory for queries");
    let context = SessionContext::new_with_config_rt(Default::default(), memory);
    let start = std::time::Instant::now();
    let result = runtime.block_on(query::run(&context, text, bounds));
    assert!(start.elapsed() < Duration::from_secs(20), "a query keeps to its time");
    if let Ok(table) = result {
        assert!(table.batches.iter().map(|batch| batch.num_rows()).sum::<usize>() <= bounds.rows);
        for format in [query::Format::Json, query::Format::Csv] {
            let mut out = Vec::new();
            match query::write(&table, format, &mut out) {
                Ok(()) => {}
                Err(query::QueryError::Query(text)) => assert!(text.contains("CSV cannot hold"), "{text}"),
                Err(error) => panic!("a result cannot be written: {error}"),
            }
        }
    }
}

/// Any bytes as a certificate and its key (a form feed parts them).
pub fn pem(data: &[u8]) {
    let (cert, key) = match data.iter().position(|byte| *byte == 0x0c) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, data),
    };
    if let Err(error) = ca::config(cert, key, ca::anybody()) {
        assert!(!error.to_string().is_empty());
    }
    // What a client shows, and what it asks to be signed.
    let _ = access::leaf::Leaf::read(data);
    let _ = access::authority::request_key(data);
}
