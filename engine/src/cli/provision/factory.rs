//! `weir provision factory`: factories whose devices have certificates of their own.

use std::path::PathBuf;

use access::origin::{Factory, IdFrom, MAX_ORIGINS, no_authority};
use access::registry::{Fact, Origin, RegistryError};
use serde_json::json;

use super::{At, Exit, Output, name, print};

/// Arguments of `weir provision factory`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A device with a certificate of a factory connects to mqtts with it, asks on provisioning/NAME/req, and gets a certificate\nof ours. Which certificate it has decides which device it is.\n\nExample:\n  weir provision factory add acme --ca acme-root.pem --group line-1 --id-from serialNumber --allow 'ACME-*'"
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Action,
}

/// Where the serial number stands.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum From {
    /// The common name of the subject.
    Cn,
    /// The attribute serialNumber of the subject (IEEE 802.1AR).
    #[value(name = "serialNumber")]
    SerialNumber,
    /// The URI among the alternative names, as a whole.
    Uri,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Let devices of a factory enrol; replaces what was said before.
    Add {
        /// A name for the factory, which stands in the topic of requests.
        name: String,
        /// Its authority: certificates, PEM.
        #[arg(long, value_name = "FILE")]
        ca: PathBuf,
        /// The group of its devices.
        #[arg(long)]
        group: String,
        /// Where in its certificates the serial number of a device stands.
        #[arg(long, value_enum, default_value = "serialNumber", ignore_case = true)]
        id_from: From,
        /// Serial numbers that may, `*` stands for any characters; repeat for more. Without one, only devices that are
        /// registered in this group.
        #[arg(long, value_name = "PATTERN")]
        allow: Vec<String>,
        /// How many devices at most, over all time.
        #[arg(long)]
        quota: Option<u64>,
        #[command(flatten)]
        at: At,
    },
    /// Every factory, and how many devices of it were let in.
    List {
        #[arg(long, value_enum, default_value = "text")]
        format: Output,
        #[command(flatten)]
        at: At,
    },
    /// Let no more devices of a factory in; those that are enrolled stay.
    Remove {
        /// Its name.
        name: String,
        #[command(flatten)]
        at: At,
    },
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    match &args.command {
        Action::Add { name: called, ca, group, id_from, allow, quota, at } => {
            let pem = std::fs::read_to_string(ca).map_err(|e| Exit::Usage(format!("{}: {e}", ca.display())))?;
            if let Some(wrong) = no_authority(&pem) {
                return Err(Exit::Usage(format!("{}: {wrong}", ca.display())));
            }
            let id_from = match id_from {
                From::Cn => IdFrom::Cn,
                From::SerialNumber => IdFrom::SerialNumber,
                From::Uri => IdFrom::Uri,
            };
            let called = plain(called)?;
            let factory = Factory {
                name: called.clone(),
                ca: pem,
                group: name(group)?,
                id_from,
                allow: allow.clone(),
                quota: *quota,
            };
            let detail = json!({
                "group": factory.group, "id_from": id_from.as_str(), "allow": factory.allow, "quota": factory.quota,
            });
            at.change(|state| match state.factories() {
                all if all.len() >= MAX_ORIGINS && !all.contains_key(&called) => {
                    Err(RegistryError::Refused(format!("there are {MAX_ORIGINS} factories already")))
                }
                _ => Ok(vec![Fact::Factory(factory)]),
            })?;
            at.note("provision.factory.add", &called, detail)
        }
        Action::Remove { name, at } => {
            at.change(|state| match state.factories().get(name) {
                Some(_) => Ok(vec![Fact::FactoryGone { name: name.clone() }]),
                None => {
                    let text = format!("there is no factory {name}; see `weir provision factory list`");
                    Err(RegistryError::Refused(text))
                }
            })?;
            at.note("provision.factory.remove", name, serde_json::Value::Null)
        }
        Action::List { format, at } => list(at, *format),
    }
}

/// A name that can stand in a topic.
pub(super) fn plain(text: &str) -> Result<String, Exit> {
    match access::subject::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(Exit::Usage(format!("{text:?} is no name: use 1 to 64 letters, digits, `.`, `_` or `-`"))),
    }
}

fn list(at: &At, format: Output) -> Result<(), Exit> {
    let registry = at.registry()?;
    let mut text = String::new();
    let mut items = Vec::new();
    registry.look(|state| {
        for factory in state.factories().values() {
            let used = state.vouched(&Origin::Factory(factory.name.clone()));
            let most = factory.quota.map_or_else(|| "any number".to_owned(), |quota| quota.to_string());
            let allow =
                if factory.allow.is_empty() { "registered devices".to_owned() } else { factory.allow.join(" ") };
            let (name, group, id_from) = (&factory.name, &factory.group, factory.id_from.as_str());
            text.push_str(&format!("{name}  group {group}  {used} of {most}  by {id_from}  {allow}\n"));
            items.push(json!({
                "name": name, "group": group, "id_from": id_from, "allow": factory.allow, "quota": factory.quota,
                "enrolled": used, "ca": factory.ca,
            }));
        }
    });
    match format {
        Output::Text => print(&text),
        Output::Json => print(&format!("{}\n", json!({ "factories": items }))),
    }
}
