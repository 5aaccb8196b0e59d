//! `weir tokens`

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use access::users::{Held, Wanted};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;

use super::files::{At, time_text};
use super::users::role;
use super::{Exit, Output, print};
use crate::clock;

/// Nanoseconds of a day.
const DAY: i64 = 86_400_000_000_000;

/// Arguments of `weir tokens`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A token is shown once, when it is made: only a hash of it is kept.\nCommands that ask an engine read it from $WEIR_TOKEN or --token-file.\n\nExamples:\n  weir tokens create ada --days 30 --out ada.token\n  weir devices list --token-file ada.token"
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a token of a user.
    Create {
        /// The user.
        user: String,
        /// What it may do at most; absent: what its user may.
        #[arg(long)]
        role: Option<String>,
        /// For how many days it counts.
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=3650))]
        days: u16,
        /// What it is for; shown in lists.
        #[arg(long, default_value = "")]
        name: String,
        /// A new file that only you may read; without it the token is printed.
        #[arg(long)]
        out: Option<PathBuf>,
        #[command(flatten)]
        at: At,
    },
    /// All tokens, without their secrets.
    List {
        #[command(flatten)]
        at: At,
        /// How to print them.
        #[arg(long, value_enum, default_value = "text")]
        format: Output,
    },
    /// Make a token worth nothing; a running engine follows within a second.
    Revoke {
        /// Its id: what stands between the first two `_` after `weir`.
        id: String,
        #[command(flatten)]
        at: At,
    },
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    match &args.command {
        Command::Create { user, role: most, days, name, out, at } => {
            let most = most.as_deref().map(role).transpose()?;
            let now = clock::now();
            let wanted = Wanted {
                user: user.clone(),
                name: name.clone(),
                role: most,
                expires: now.plus(DAY.saturating_mul(i64::from(*days))),
            };
            // Before there is a token: one that cannot be written down is of no use.
            let file = out.as_deref().map(create).transpose()?;
            let made = make(at, wanted, most.map(|role| role.as_str()));
            match (made, file, out) {
                (Ok(text), Some(mut file), Some(path)) => {
                    let written = writeln!(file, "{text}").and_then(|()| file.sync_all());
                    written.map_err(|error| Exit::Failed(format!("{}: {error}", path.display())))?;
                    print(&format!("{} holds a token of {user} for {days} days\n", path.display()))
                }
                (Ok(text), ..) => print(&format!("{text}\n")),
                (Err(exit), _, Some(path)) => {
                    let _ = std::fs::remove_file(path);
                    Err(exit)
                }
                (Err(exit), ..) => Err(exit),
            }
        }
        Command::Revoke { id, at } => {
            let users = at.users()?;
            let user = users.revoke(clock::now(), id).map_err(Exit::failed)?;
            at.note("token.revoke", &user, json!({ "token": id }))?;
            print(&format!("the token {id} of {user} is worth nothing any more\n"))
        }
        Command::List { at, format } => list(at, *format),
    }
}

fn create(path: &Path) -> Result<std::fs::File, Exit> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.map_err(|error| Exit::Failed(format!("{}: {error}; name a file that is not there", path.display())))
}

fn make(at: &At, wanted: Wanted, most: Option<&str>) -> Result<String, Exit> {
    let users = at.users()?;
    let (mut id, mut secret, mut salt) = ([0; 8], [0; 32], [0; 16]);
    let random = SystemRandom::new();
    for bytes in [&mut id[..], &mut secret[..], &mut salt[..]] {
        random.fill(bytes).map_err(|_| Exit::Failed("the system gives no random bytes".to_owned()))?;
    }
    let (user, expires) = (wanted.user.clone(), wanted.expires.0);
    let made = users.create(clock::now(), wanted, (&id, &secret, &salt));
    let (id, text) = made.map_err(Exit::failed)?;
    at.note("token.create", &user, json!({ "token": id, "role": most, "expires": time_text(expires) }))?;
    Ok(text.0)
}

fn list(at: &At, format: Output) -> Result<(), Exit> {
    let users = at.users()?;
    let now = clock::now();
    let all: Vec<(Held, &str)> = users.look(|state| {
        let stands = |held: &Held| match state.principal(&held.token.id, now) {
            Ok(_) => "valid",
            Err(refusal) => refusal.code(),
        };
        state.tokens().map(|held| (held.clone(), stands(held))).collect()
    });
    if format == Output::Json {
        let all = all.iter().map(|(held, stands)| {
            let token = &held.token;
            json!({
                "id": token.id, "user": token.user, "name": token.name, "role": token.role,
                "made": time_text(held.made.0), "expires": time_text(token.expires), "state": stands,
            })
        });
        return print(&format!("{}\n", serde_json::Value::from_iter(all)));
    }
    let line = |(held, stands): &(Held, &str)| {
        let token = &held.token;
        let role = token.role.map_or("-", |role| role.as_str());
        let (id, user, name) = (&token.id, &token.user, &token.name);
        format!("{id:<16} {user:<20} {role:<9} {stands:<14} {:<20} {name}\n", time_text(token.expires))
    };
    let lines: String = all.iter().map(line).collect();
    let head = format!("{:<16} {:<20} {:<9} {:<14} {:<20} name", "token", "user", "at most", "state", "expires");
    print(&format!("{head}\n{lines}"))
}
