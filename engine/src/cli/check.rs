//! `weir check`

use std::path::PathBuf;

use crate::schemas;

use super::{Exit, Output, print};

/// Arguments of `weir check`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  weir check\n  weir check pipelines/ --format json\n  weir check pipelines/ --data weir-data"
)]
pub(super) struct Args {
    /// Files and folders; folders are read with everything below them.
    #[arg(default_value = "pipelines")]
    paths: Vec<PathBuf>,
    /// Also say what may not follow upon the streams that this data directory knows, as `weir run` would.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How to print what was found.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    let files = sql::load(&args.paths).map_err(|e| Exit::Usage(e.to_string()))?;
    let known = match &args.data {
        Some(data) if !data.is_dir() => {
            return Err(Exit::Usage(format!("--data {}: no such directory", data.display())));
        }
        Some(data) => schemas::known(data).map_err(Exit::failed)?,
        None => Vec::new(),
    };
    let checked = sql::check(&files).and_then(|mut project| {
        let mut found = sql::evolve(&known, &project);
        found.extend(sql::read_tables(&mut project).err().into_iter().flatten());
        if found.is_empty() { Ok(project) } else { Err(found) }
    });
    let (diagnostics, failed, summary) = match checked {
        Ok(project) => {
            let tables = match project.tables.len() {
                0 => String::new(),
                count => format!(" {count} tables,"),
            };
            let alerts = match project.alerts.len() {
                0 => String::new(),
                count => format!(", {count} alerts"),
            };
            let summary = format!(
                "{} files, {} streams,{tables} {} pipelines{alerts}: no errors\n",
                files.len(),
                project.streams.len(),
                project.pipelines.len()
            );
            (project.warnings, false, summary)
        }
        Err(diagnostics) => (diagnostics, true, String::new()),
    };
    match args.format {
        Output::Json => print(&format!("{}\n", sql::render_json(&diagnostics)))?,
        Output::Text => {
            if !diagnostics.is_empty() {
                print(&sql::render_all(&diagnostics, &files))?;
            }
            print(&summary)?;
        }
    }
    if failed { Err(Exit::Silent) } else { Ok(()) }
}
