//! Promise: no query ends the process. Planners walk expressions by recursion; what would end the stack is refused, and
//! what is taken is planned on a stack that is large enough.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

/// Most time for one query: more is a hang.
const HANG: Duration = Duration::from_secs(20);

/// Texts within the size that HTTP takes, each of which ends the stack of a process that walks it unprepared: a mutation
/// does not get that far.
#[test]
fn no_query_ends_the_process() {
    for count in [240, 50_000] {
        for text in [
            format!("SELECT 1{}", " + 1".repeat(count)),
            format!("SELECT 1 WHERE true{}", " OR true".repeat(count)),
            format!("SELECT 'a'{}", " || 'a'".repeat(count)),
            format!("SELECT {}1{}", "(".repeat(count), ")".repeat(count)),
            format!("SELECT {}true", "NOT ".repeat(count)),
            format!("SELECT {}1", "- ".repeat(count)),
            format!("SELECT {}1{}", "abs(".repeat(count), ")".repeat(count)),
            format!("SELECT {}1{}", "CASE WHEN true THEN ".repeat(count), " END".repeat(count)),
            format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(count)),
            format!("SELECT * FROM {}(SELECT 1){}", "(SELECT * FROM ".repeat(count), ")".repeat(count)),
            format!("SELECT {}1{}", "(1 + ".repeat(count), ")".repeat(count)),
            format!("SELECT {}1{}", "[".repeat(count), "]".repeat(count)),
            format!("SELECT CAST(NULL AS {}BIGINT{})", "ARRAY<".repeat(count), ">".repeat(count)),
        ] {
            let start = Instant::now();
            tests::fuzz::query_of_any_length(&text);
            assert!(start.elapsed() < HANG, "{}... took {:?}", &text[..60], start.elapsed());
        }
    }
}
