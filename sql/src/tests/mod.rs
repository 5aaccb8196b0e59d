//! What `check` says to whole files.

mod alerts;
mod evolution;
mod joins;
mod mistakes;
mod projects;

use crate::{SourceFile, check, render_all};

const TELEMETRY: &str = "
CREATE STREAM telemetry (
  temperature DOUBLE OPTIONS (id = 1, unit = 'Cel'),
  humidity    DOUBLE OPTIONS (id = 2, unit = '%'),
  vibration   DOUBLE OPTIONS (id = 3, unit = 'mm/s', scale = -3),
  status      TEXT   OPTIONS (id = 4)
);";

fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.to_owned(), text: text.to_owned() }
}

/// What is said to `sql` in the file `p.sql`, beside a declaration of `telemetry`.
fn says(sql: &str) -> String {
    let files = [file("p.sql", sql), file("telemetry.sql", TELEMETRY)];
    let found = match check(&files) {
        Ok(project) => project.warnings,
        Err(found) => found,
    };
    render_all(&found, &files)
}
