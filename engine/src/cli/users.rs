//! `weir users`

use access::users::Role;
use serde_json::json;

use super::files::{At, time_text};
use super::{Exit, Output, print};
use crate::clock;

/// Arguments of `weir users`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "These commands work on the files of the data directory; a running engine follows within a second.\n\nRoles, each with all that those before it may:\n  viewer    health, metrics, devices, shadows, alerts, pipelines\n  analyst   SQL\n  engineer  repair, backfill, tap\n  operator  shadows, commands, groups, acknowledgements, silences, flush\n  admin     the audit trail\n\nExamples:\n  weir users add ada --role operator\n  weir tokens create ada --out ada.token"
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Add a user.
    Add {
        /// Its name: letters, digits, and . _ -
        name: String,
        /// What it may do: viewer, analyst, engineer, operator or admin.
        #[arg(long, default_value = "viewer")]
        role: String,
        #[command(flatten)]
        at: At,
    },
    /// All users.
    List {
        #[command(flatten)]
        at: At,
        /// How to print them.
        #[arg(long, value_enum, default_value = "text")]
        format: Output,
    },
    /// Give a user another role.
    Role {
        /// Its name.
        name: String,
        /// What it may do from now on.
        role: String,
        #[command(flatten)]
        at: At,
    },
    /// Remove a user with all its tokens.
    Remove {
        /// Its name.
        name: String,
        #[command(flatten)]
        at: At,
    },
}

/// The role of a name.
pub(super) fn role(name: &str) -> Result<Role, Exit> {
    Role::from_name(name).ok_or_else(|| {
        let all = Role::ALL.map(Role::as_str);
        let near = all.iter().min_by_key(|role| strsim::damerau_levenshtein(name, role)).copied().unwrap_or_default();
        Exit::Usage(format!("there is no role {name:?}, did you mean {near}? There are {}", all.join(", ")))
    })
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    match &args.command {
        Command::Add { name, role: wanted, at } => {
            let role = role(wanted)?;
            let users = at.users()?;
            users.add(clock::now(), name, role).map_err(Exit::failed)?;
            at.note("user.add", name, json!({ "role": role.as_str() }))?;
            print(&format!("{name} is {role}; `weir tokens create {name}` makes a token\n"))
        }
        Command::Role { name, role: wanted, at } => {
            let role = role(wanted)?;
            let users = at.users()?;
            users.set_role(clock::now(), name, role).map_err(Exit::failed)?;
            at.note("user.role", name, json!({ "role": role.as_str() }))?;
            print(&format!("{name} is {role}\n"))
        }
        Command::Remove { name, at } => {
            let users = at.users()?;
            users.remove(clock::now(), name).map_err(Exit::failed)?;
            at.note("user.remove", name, serde_json::Value::Null)?;
            print(&format!("{name} is gone, and so are its tokens\n"))
        }
        Command::List { at, format } => {
            let users = at.users()?;
            let all: Vec<(String, Role, String)> = users.look(|state| {
                state.users().map(|(name, role, since)| (name.to_owned(), role, time_text(since.0))).collect()
            });
            match format {
                Output::Json => {
                    let all =
                        all.iter().map(|(name, role, since)| json!({ "name": name, "role": role, "since": since }));
                    print(&format!("{}\n", serde_json::Value::from_iter(all)))
                }
                Output::Text => {
                    let line = |(name, role, since): &(String, Role, String)| format!("{name:<32} {role:<9} {since}\n");
                    print(&format!("{:<32} {:<9} since\n{}", "user", "role", all.iter().map(line).collect::<String>()))
                }
            }
        }
    }
}
