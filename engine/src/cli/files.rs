//! What commands have in common that work on the files of a data directory, also beside a running engine.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use access::audit::{self, Act, COMMAND_LINE};
use access::registry::{Fact, Registry, RegistryError, State};
use access::users::Users;
use serde_json::Value;

use super::Exit;
use crate::clock;

/// On which files.
#[derive(Debug, clap::Args)]
pub(super) struct At {
    /// Data directory of the engine. The engine may run; it follows by itself within a second.
    #[arg(long, env = "WEIR_DATA", default_value = "weir-data")]
    pub(super) data: PathBuf,
}

impl At {
    /// What is known of certificates and of those who hold them.
    pub(super) fn registry(&self) -> Result<Registry, Exit> {
        Registry::open(&self.data).map_err(Exit::failed)
    }

    /// Changes it.
    pub(super) fn change(&self, decide: impl FnOnce(&State) -> Result<Vec<Fact>, RegistryError>) -> Result<(), Exit> {
        self.registry()?.change(clock::now(), decide).map(drop).map_err(Exit::failed)
    }

    /// Users and tokens.
    pub(super) fn users(&self) -> Result<Users, Exit> {
        Users::open(&self.data).map_err(Exit::failed)
    }

    /// Puts into the trail what was done, with the name of the system's user. A failure is told, and undoes nothing.
    pub(super) fn note(&self, action: &str, subject: &str, detail: Value) -> Result<(), Exit> {
        let who = std::env::var("USER").unwrap_or_else(|_| COMMAND_LINE.to_owned());
        let act = Act::done(who, action, subject).from(COMMAND_LINE).detail(detail);
        audit::add(&self.data, clock::now(), act)
            .map_err(|error| Exit::Failed(format!("it is done, but does not stand in the audit trail: {error}")))
    }
}

/// RFC 3339, to the second.
pub(super) fn time_text(at: i64) -> String {
    let since = Duration::from_nanos(u64::try_from(at).unwrap_or(0));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}
