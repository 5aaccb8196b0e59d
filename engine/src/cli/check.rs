//! `weir check`

use std::path::{Path, PathBuf};

use sql::{Diagnostic, Project, Severity};

use crate::config::{AlertsConfig, Config};
use crate::{notify, schemas};

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
    /// The configuration whose [alerts.people] are those that alerts may tell. Without it: a weir.toml in one of the folders,
    /// or beside it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
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
    let config = match args.config.clone().or_else(|| beside(&args.paths)) {
        Some(path) => {
            let config = Config::load(&path).and_then(|config| config.validate().map(|()| config));
            Some((config.map_err(|error| Exit::Usage(error.to_string()))?, path))
        }
        None => None,
    };
    let checked = sql::check(&files).and_then(|mut project| {
        let mut found = sql::evolve(&known, &project);
        found.extend(sql::read_tables(&mut project).err().into_iter().flatten());
        if let Some((config, path)) = &config {
            let unreached = unreached(&project, &config.alerts, path);
            project.warnings.extend(unreached);
        }
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

/// The configuration that stands in one of the folders, or beside it.
fn beside(paths: &[PathBuf]) -> Option<PathBuf> {
    let folders = paths.iter().flat_map(|path| [Some(path.as_path()), path.parent()]).flatten();
    folders.map(|folder| folder.join("weir.toml")).find(|file| file.is_file())
}

/// What alerts tell to names that have no channel.
fn unreached(project: &Project, alerts: &AlertsConfig, config: &Path) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let (settings, config) = (alerts.settings(project), config.display());
    for (to, rules) in notify::unreached(project, &settings) {
        for plan in rules.iter().filter_map(|rule| project.alert(rule)) {
            let near = settings.people.keys().filter(|name| settings.reaches(name));
            let near = near.map(|name| (strsim::damerau_levenshtein(&to, name), name)).min();
            let help = match near.filter(|(slips, _)| *slips <= (to.chars().count() / 3).clamp(1, 3)) {
                Some((_, name)) => format!("did you mean `{name}`?"),
                None if settings.channels.is_empty() => {
                    format!("add [[alerts.channels]], and {to} = [\"name of the channel\"] to [alerts.people]")
                }
                None => format!("add {to} = [\"name of a channel\"] to [alerts.people]"),
            };
            let (file, span) = &plan.at;
            found.push(Diagnostic {
                code: sql::code::NO_EFFECT,
                severity: Severity::Warning,
                message: format!("`escalate` tells `{to}`, and by {config} nobody is reached by that name"),
                file: file.clone(),
                line: span.start.line,
                column: span.start.column,
                end: span.end,
                help: Some(help),
                notes: Vec::new(),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_reach_nobody_are_said_with_the_nearest_that_does() {
        let folder = tempfile::tempdir().unwrap();
        let pipelines = folder.path().join("pipelines");
        std::fs::create_dir(&pipelines).unwrap();
        assert_eq!(beside(std::slice::from_ref(&pipelines)), None);
        let file = folder.path().join("weir.toml");
        let channel = "[[alerts.channels]]\nname = \"ops\"\nkind = \"log\"\n";
        let alert = "CREATE STREAM telemetry (t DOUBLE);
CREATE ALERT hot ON telemetry WHEN t > 80 CLEAR WHEN t < 75 WITH (escalate = 'oncal@0m, lead@10m, boss@1h');";
        let project = sql::check(&[sql::SourceFile { name: "p.sql".to_owned(), text: alert.to_owned() }]).unwrap();
        for (text, expected) in [
            ("", [Some("add [[alerts.channels]]"), Some("add [[alerts.channels]]"), Some("add [[alerts.channels]]")]),
            (channel, [Some("add boss"), Some("add lead"), Some("add oncal ")]),
            (
                &format!("{channel}[alerts.people]\noncall = [\"ops\"]\nlead = [\"ops\"]\n"),
                [Some("add boss"), Some("did you mean `oncall`?"), None],
            ),
        ] {
            std::fs::write(&file, text).unwrap();
            let path = beside(std::slice::from_ref(&pipelines)).unwrap();
            let config = Config::load(&path).unwrap();
            let found = unreached(&project, &config.alerts, &path);
            assert_eq!(found.len(), expected.iter().flatten().count(), "{found:?}");
            for (found, expected) in found.iter().zip(expected.into_iter().flatten()) {
                assert!(found.help.as_ref().unwrap().starts_with(expected), "{found:?}");
                assert_eq!((found.line, found.column, &*found.file), (2, 14, "p.sql"));
            }
        }
    }
}
