//! `weir pipelines`

use std::path::PathBuf;

use storage::store::Store;
use storage::table::TableStore;

use crate::core::project_file;
use crate::housekeeping::{self, Drops};
use crate::overview::{Alert, Overview, Pipeline, changes};
use crate::project;
use crate::schemas;

use super::remote::{check_url, request};
use super::{Exit, Output, print};

/// Arguments of `weir pipelines`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The pipelines that run, and the alerts.
    #[command(
        after_help = "Examples:\n  weir pipelines list --url http://127.0.0.1:8080\n  weir pipelines list --data weir-data --format json"
    )]
    List(Of),
    /// One pipeline or alert: its query, its windows, the columns of its table.
    #[command(after_help = "Example:\n  weir pipelines show climate_1m --data weir-data")]
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        of: Of,
    },
    /// What taking over the files of a folder would keep, restart and drop. Changes nothing.
    #[command(after_help = "Example:\n  weir pipelines plan pipelines/ --url http://127.0.0.1:8080")]
    Plan {
        /// The folder as it would be saved.
        #[arg(default_value = "pipelines")]
        folder: PathBuf,
        #[command(flatten)]
        of: Of,
    },
    /// The plan of a pipeline, as the query engine has it.
    Explain {
        /// Its name.
        name: String,
        /// The folder of the project.
        #[arg(default_value = "pipelines")]
        folder: PathBuf,
    },
    /// Compute partitions once more from the stream, late records included, and replace their files.
    Repair(super::repair::Repair),
    /// Compute the history that a pipeline has not seen, from the stream's files.
    Backfill(super::repair::Backfill),
    /// Rows of a pipeline or stream as they come, until Ctrl-C.
    Tap(super::tap::Args),
}

/// Whose pipelines.
#[derive(Debug, clap::Args)]
struct Of {
    /// The data directory of an engine, running or not.
    #[arg(long, env = "WEIR_DATA", conflicts_with = "url")]
    data: Option<PathBuf>,
    /// A running engine.
    #[arg(long)]
    url: Option<String>,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

impl Of {
    fn overview(&self) -> Result<Overview, Exit> {
        if let Some(url) = &self.url {
            check_url(url)?;
            let body = request("GET", url, "/v1/pipelines", "application/json", None)?;
            return serde_json::from_slice(&body).map_err(Exit::failed);
        }
        let data = self.data.clone().unwrap_or_else(|| crate::config::StoreConfig::default().data);
        match project::stored(&project_file(&data)).map_err(Exit::failed)? {
            Some(loaded) => {
                let known = schemas::known(&data).map_err(Exit::failed)?;
                Ok(Overview::of(&loaded.project).knowing(known))
            }
            None => Err(Exit::Usage(format!(
                "{} is not a data directory of weir; name one with --data, or a running engine with --url",
                data.display()
            ))),
        }
    }
}

impl Of {
    /// What keeping a table for so long drops at once.
    async fn drops(&self, table: &str, retain_ns: i64) -> Result<Option<Drops>, Exit> {
        if let Some(url) = self.url.clone() {
            let path = format!("/v1/retention/{table}?retain_ns={retain_ns}");
            let asked = tokio::task::spawn_blocking(move || request("GET", &url, &path, "application/json", None));
            let body = asked.await.map_err(Exit::failed)??;
            return serde_json::from_slice(&body).map_err(Exit::failed);
        }
        let data = self.data.clone().unwrap_or_else(|| crate::config::StoreConfig::default().data);
        let tables = TableStore::open(Store::existing(&data).map_err(Exit::failed)?);
        housekeeping::would_drop(&tables, table, retain_ns, crate::clock::now()).await.map_err(Exit::failed)
    }
}

fn json(value: &impl serde::Serialize) -> Result<(), Exit> {
    print(&format!("{}\n", serde_json::to_string(value).map_err(Exit::failed)?))
}

fn found<'a>(overview: &'a Overview, name: &str) -> Result<&'a Pipeline, Exit> {
    overview.pipeline(name).ok_or_else(|| {
        let pipelines = overview.pipelines.iter().map(|pipeline| pipeline.name.as_str());
        let names: Vec<&str> = pipelines.chain(overview.alerts.iter().map(|alert| alert.name.as_str())).collect();
        Exit::Failed(format!("there is no pipeline or alert `{name}`; there are: {}", names.join(", ")))
    })
}

pub(super) async fn main(args: Args) -> Result<(), Exit> {
    match &args.command {
        Command::List(of) => list(&of.overview()?, of.format),
        Command::Show { name, of } => {
            let overview = of.overview()?;
            match overview.alert(name) {
                Some(alert) => show_alert(alert, of.format),
                None => show(found(&overview, name)?, of.format),
            }
        }
        Command::Plan { folder, of } => plan(folder, of).await,
        Command::Explain { name, folder } => explain(name, folder),
        Command::Repair(args) => super::repair::repair(args),
        Command::Backfill(args) => super::repair::backfill(args),
        Command::Tap(args) => super::tap::main(args),
    }
}

fn list(overview: &Overview, format: Output) -> Result<(), Exit> {
    if let Output::Json = format {
        return json(overview);
    }
    let wide = |of: fn(&Pipeline) -> usize, least| overview.pipelines.iter().map(of).max().unwrap_or(0).max(least);
    let (name, source) = (wide(|p| p.name.len(), 4), wide(|p| p.source.len(), 5));
    let mut text = format!("{:<name$}  {:<source$}  {:<30}  lateness\n", "name", "reads", "window");
    for pipeline in &overview.pipelines {
        let window = pipeline.window.as_deref().unwrap_or("none");
        let lateness = pipeline.lateness.as_deref().unwrap_or("-");
        text.push_str(&format!("{:<name$}  {:<source$}  {window:<30}  {lateness}\n", pipeline.name, pipeline.source));
    }
    if !overview.alerts.is_empty() {
        let name = overview.alerts.iter().map(|alert| alert.name.len()).max().unwrap_or(0).max(5);
        text.push_str(&format!("\n{:<name$}  what it looks for\n", "alert"));
        overview.alerts.iter().for_each(|alert| text.push_str(&format!("{:<name$}  {}\n", alert.name, alert.query)));
    }
    print(&text)
}

fn show_alert(alert: &Alert, format: Output) -> Result<(), Exit> {
    if let Output::Json = format {
        return json(alert);
    }
    let Alert { name, version, source, severities, query, escalate, labels, group_by, comment, at } = alert;
    let mut text = format!("{name}  (alert, {at}, version {version})\n{query}\n\nlooks at    {source}\n");
    text.push_str(&format!("severities  {}\n", severities.join(", ")));
    for (what, list) in [("tells", escalate), ("labels", labels), ("together by", group_by)] {
        if !list.is_empty() {
            text.push_str(&format!("{what:<12}{}\n", list.join(", ")));
        }
    }
    if let Some(comment) = comment {
        text.push_str(&format!("comment     {comment}\n"));
    }
    print(&text)
}

fn show(pipeline: &Pipeline, format: Output) -> Result<(), Exit> {
    if let Output::Json = format {
        return json(pipeline);
    }
    let Pipeline { name, version, source, stream_join, joins, window, lateness, partition, columns, at, query, .. } =
        pipeline;
    let mut text = format!("{name}  ({at}, version {version})\n{query}\n\nreads      {source}\n");
    if let Some(joined) = stream_join {
        text.push_str(&format!("joined to  {joined}\n"));
    }
    if !joins.is_empty() {
        text.push_str(&format!("joins      {}\n", joins.join(", ")));
    }
    text.push_str(&format!("window     {}\n", window.as_deref().unwrap_or("none: row by row")));
    if let Some(lateness) = lateness {
        text.push_str(&format!("lateness   {lateness}\n"));
    }
    text.push_str(&format!("partition  {partition}\n"));
    text.push_str(&format!("kept for   {}\n", pipeline.retain_ns.map_or("ever".to_owned(), sql::duration)));
    if let Some(cold) = pipeline.compact_ns {
        text.push_str(&format!("merged     {} after the end of a partition\n", sql::duration(cold)));
    }
    text.push_str("columns\n");
    for column in columns {
        let unit = column.unit.as_ref().map(|unit| format!(" [{unit}]")).unwrap_or_default();
        text.push_str(&format!("  {:<24} {}{unit}\n", column.name, column.kind));
    }
    print(&text)
}

async fn plan(folder: &std::path::Path, of: &Of) -> Result<(), Exit> {
    let loaded = match project::load(Some(folder)) {
        Ok(loaded) => loaded,
        Err(project::ProjectError::Check { rendered, .. }) => {
            print(&rendered)?;
            return Err(Exit::Silent);
        }
        Err(error) => return Err(Exit::Usage(error.to_string())),
    };
    let now = of.overview()?;
    if let Err(refused) = schemas::allowed(&now.schemas, &loaded.project, &loaded.files) {
        print(&refused.to_string())?;
        return Err(Exit::Silent);
    }
    let mut changes = changes(&now, &Overview::of(&loaded.project));
    for change in &mut changes {
        let Some(retain_ns) = change.retain_ns else { continue };
        change.drops = of.drops(&change.name, retain_ns).await?;
        let what = change.drops.as_ref().map_or("nothing is so old yet".to_owned(), ToString::to_string);
        change.text.push_str(&format!(": {what}"));
    }
    if let Output::Json = of.format {
        return json(&changes);
    }
    let lines: Vec<String> = changes.iter().map(|c| format!("{} {}: {}\n", c.kind, c.name, c.text)).collect();
    print(&lines.concat())
}

fn explain(name: &str, folder: &std::path::Path) -> Result<(), Exit> {
    let loaded = project::load(Some(folder)).map_err(Exit::failed)?;
    let overview = Overview::of(&loaded.project);
    let shown = found(&overview, name)?;
    let Some(plan) = loaded.project.pipeline(name) else { return Ok(()) };
    let state = sql::session_state_for(plan.window.as_ref().map(|window| window.kind));
    let indented = |plan| Ok(format!("{}\n", state.optimize(plan).map_err(Exit::failed)?.display_indent()));
    let mut text = indented(&plan.logical)?;
    if let (Some(join), Some(joined)) = (&plan.stream_join, &shown.stream_join) {
        text.push_str(&format!("\nreads {}, joined to {joined}\n", plan.source));
        let pairs = format!("a match of {} and {}", plan.source, join.source);
        for (what, condition) in
            [(&plan.source, &join.first_filter), (&join.source, &join.second_filter), (&pairs, &join.condition)]
        {
            if let Some(condition) = condition {
                text.push_str(&format!("{what}, if it holds:\n{}", indented(condition)?));
            }
        }
    }
    print(&text)
}
