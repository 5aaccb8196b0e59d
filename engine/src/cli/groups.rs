//! `weir groups`

use serde_json::Value;

use super::remote::{Of, segment};
use super::shadow::patch;
use super::{Exit, Output, print};

/// Arguments of `weir groups`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Every group.
    List {
        #[command(flatten)]
        of: Of,
    },
    /// Who belongs to a group now.
    Show {
        /// The group.
        group: String,
        #[command(flatten)]
        of: Of,
    },
    /// Make or replace a group: a list of devices, or a query that names them whenever it is asked.
    #[command(
        after_help = "Examples:\n  weir groups set line-1 pump-7 pump-8\n  weir groups set stale --sql \"SELECT device FROM devices WHERE NOT online\""
    )]
    Set {
        /// The group.
        group: String,
        /// Its devices.
        devices: Vec<String>,
        /// A query with a column `device`.
        #[arg(long, conflicts_with = "devices")]
        sql: Option<String>,
        #[command(flatten)]
        of: Of,
    },
    /// Remove a group; its devices stay as they are.
    Remove {
        /// The group.
        group: String,
        #[command(flatten)]
        of: Of,
    },
    /// Change what is desired of every member.
    #[command(after_help = "Example:\n  weir groups push line-1 interval=10 --request-id change-81")]
    Push {
        /// The group.
        group: String,
        /// `path=value`, or one JSON object, as in `weir shadow set`.
        #[arg(required = true)]
        changes: Vec<String>,
        /// The id of the request: repeated, it counts once for each device.
        #[arg(long)]
        request_id: Option<String>,
        /// How long the values count.
        #[arg(long)]
        ttl: Option<String>,
        /// Who asks.
        #[arg(long, env = "USER", default_value = "operator")]
        by: String,
        #[command(flatten)]
        of: Of,
    },
    /// How many members are what is desired of them.
    Progress {
        /// The group.
        group: String,
        #[command(flatten)]
        of: Of,
    },
    /// Tell every member to do something, under one id.
    Command {
        /// The group.
        group: String,
        /// What to do.
        name: String,
        /// With what, in JSON.
        #[arg(default_value = "null")]
        args: String,
        /// Its id: repeated, it counts once for each device.
        #[arg(long)]
        id: Option<String>,
        /// How long from now a device may begin.
        #[arg(long, default_value = "1h")]
        ttl: String,
        #[command(flatten)]
        of: Of,
    },
}

/// Prints `text` of an answer, or the answer; status 1 if something failed in it.
fn tell(of: &Of, answer: &Value, text: impl FnOnce() -> String) -> Result<(), Exit> {
    print(&match of.format {
        Output::Json => format!("{answer}\n"),
        Output::Text => text(),
    })?;
    if answer["failed"].as_u64().unwrap_or(0) > 0 { Err(Exit::Silent) } else { Ok(()) }
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    let path = |group: &str, rest: &str| format!("/v1/groups/{}{rest}", segment(group));
    match &args.command {
        Action::List { of } => {
            let answer = of.ask("GET", "/v1/groups", None)?;
            tell(of, &answer, || {
                let groups = answer["groups"].as_array().cloned().unwrap_or_default();
                let line = |group: &Value| match group["sql"].as_str() {
                    Some(sql) => format!("{}  {sql}\n", word(&group["name"])),
                    None => format!("{}  {} devices\n", word(&group["name"]), group["devices"]),
                };
                if groups.is_empty() { "no groups\n".to_owned() } else { groups.iter().map(line).collect() }
            })
        }
        Action::Show { group, of } => {
            let answer = of.ask("GET", &path(group, ""), None)?;
            tell(of, &answer, || members(&answer))
        }
        Action::Set { group, devices, sql, of } => {
            let body = match sql {
                Some(sql) => serde_json::json!({ "sql": sql }),
                None if devices.is_empty() => {
                    return Err(Exit::Usage("a group needs devices, or --sql with a query that names them".to_owned()));
                }
                None => serde_json::json!({ "devices": devices }),
            };
            let answer = of.ask("PUT", &path(group, ""), Some(&body.to_string()))?;
            tell(of, &answer, || members(&answer))
        }
        Action::Remove { group, of } => of.ask("DELETE", &path(group, ""), None).map(drop),
        Action::Push { group, changes, request_id, ttl, by, of } => {
            let patch = Value::Object(patch(changes)?).to_string();
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("by", by);
            for (name, value) in [("request_id", request_id), ("ttl", ttl)] {
                if let Some(value) = value {
                    query.append_pair(name, value);
                }
            }
            let answer = of.ask("PATCH", &path(group, &format!("/shadow?{}", query.finish())), Some(&patch))?;
            tell(of, &answer, || tally(&answer))
        }
        Action::Progress { group, of } => {
            let answer = of.ask("GET", &path(group, "/shadow"), None)?;
            tell(of, &answer, || {
                let of = |name: &str| answer[name].to_string();
                let mut text = format!(
                    "{} of {} in sync, {} pending ({} never reported)\n",
                    of("in_sync"),
                    of("members"),
                    of("pending"),
                    of("never_reported")
                );
                for device in answer["behind"].as_array().into_iter().flatten() {
                    let (name, applied, dv) = (word(&device["device"]), &device["applied_dv"], &device["dv"]);
                    text.push_str(&format!("  {name}  has applied {applied} of {dv}\n"));
                }
                text
            })
        }
        Action::Command { group, name, args, id, ttl, of } => {
            let args: Value = serde_json::from_str(args)
                .map_err(|error| Exit::Usage(format!("the arguments {args:?} are not JSON: {error}")))?;
            let mut body = serde_json::json!({ "name": name, "args": args, "ttl": ttl });
            if let (Some(id), Some(body)) = (id, body.as_object_mut()) {
                body.insert("cmd_id".to_owned(), id.as_str().into());
            }
            let answer = of.ask("POST", &path(group, "/commands"), Some(&body.to_string()))?;
            tell(of, &answer, || format!("{}  {}", word(&answer["cmd_id"]), tally(&answer)))
        }
    }
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn members(answer: &Value) -> String {
    let mut text = format!("{}  {} members\n", word(&answer["name"]), answer["members"]);
    for device in answer["devices"].as_array().into_iter().flatten() {
        text.push_str(&format!("  {}\n", word(device)));
    }
    text
}

fn tally(answer: &Value) -> String {
    let of = |name: &str| answer[name].to_string();
    let mut text = format!(
        "{} members: {} changed, {} unchanged, {} failed\n",
        of("members"),
        of("changed"),
        of("unchanged"),
        of("failed")
    );
    for failure in answer["failures"].as_array().into_iter().flatten() {
        text.push_str(&format!("  {}: {}\n", word(&failure["device"]), word(&failure["why"])));
    }
    text
}
