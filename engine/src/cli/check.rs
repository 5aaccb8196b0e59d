//! `weir check`

use std::path::PathBuf;

use super::{Exit, Output, print};

/// Arguments of `weir check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weir check\n  weir check pipelines/ --format json")]
pub(super) struct Args {
    /// Files and folders; folders are read with everything below them.
    #[arg(default_value = "pipelines")]
    paths: Vec<PathBuf>,
    /// How to print what was found.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    let files = sql::load(&args.paths).map_err(|e| Exit::Usage(e.to_string()))?;
    let checked = sql::check(&files).and_then(|mut project| sql::read_tables(&mut project).map(|()| project));
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
