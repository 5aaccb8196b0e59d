//! `weir sql`

use rustyline::error::ReadlineError;

use crate::query::{self, Format};

use super::Exit;
use super::query::{Source, write_out};

/// Arguments of `weir sql`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
}

const HELP: &str = "statements end with ;   \\d lists tables   \\d NAME lists columns   \\q quits\n";

pub(super) async fn main(args: Args) -> Result<(), Exit> {
    let session = args.source.open()?;
    let mut editor = rustyline::DefaultEditor::new().map_err(Exit::failed)?;
    eprint!("{HELP}");
    let mut statement = String::new();
    loop {
        let prompt = if statement.is_empty() { "weir> " } else { "  ... " };
        let line = match tokio::task::block_in_place(|| editor.readline(prompt)) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                statement.clear();
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(Exit::failed(error)),
        };
        let trimmed = line.trim();
        let sql = if statement.is_empty() && trimmed.starts_with('\\') {
            match trimmed.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["\\q"] => return Ok(()),
                ["\\d"] => "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
                    .to_owned(),
                ["\\d", name] => format!("DESCRIBE \"{}\"", name.trim_matches('"')),
                _ => {
                    eprint!("{HELP}");
                    continue;
                }
            }
        } else {
            if trimmed.is_empty() && statement.is_empty() {
                continue;
            }
            statement.push_str(&line);
            statement.push('\n');
            if !trimmed.ends_with(';') {
                continue;
            }
            std::mem::take(&mut statement)
        };
        let _ = editor.add_history_entry(sql.trim());
        match session.run(sql.trim().trim_end_matches(';')).await {
            Ok(table) => {
                let mut body = Vec::new();
                query::write(&table, Format::Table, &mut body).map_err(Exit::failed)?;
                write_out(&body)?;
            }
            Err(Exit::Failed(message) | Exit::Usage(message)) => eprintln!("error: {message}"),
            Err(Exit::Silent) => {}
        }
    }
}
