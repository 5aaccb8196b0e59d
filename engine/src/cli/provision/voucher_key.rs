//! `weir provision voucher-key`: who may vouch for devices.

use std::path::PathBuf;

use access::leaf::hex;
use access::origin::{MAX_ORIGINS, VoucherKey, can_sign};
use access::registry::{Fact, Origin, RegistryError};
use serde_json::json;

use super::factory::plain;
use super::{At, Exit, Output, name, print, public_key};

/// Arguments of `weir provision voucher-key`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A voucher is a JSON object {\"serial\": .., \"key\": SHA-256 of the device's public key, \"owner\": our tenant}, signed with this key.\nA device shows it at POST /v1/provision in the place of a token.\n\nExample:\n  openssl ecparam -name prime256v1 -genkey -noout -out voucher.key\n  openssl pkey -in voucher.key -pubout -out voucher.pem\n  weir provision voucher-key add acme --key voucher.pem --group line-1\n  openssl dgst -sha256 -sign voucher.key -out pump-7.sig pump-7.voucher"
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Accept vouchers that are signed with a key; replaces what was said before.
    Add {
        /// A name for it.
        name: String,
        /// The public key (ECDSA P-256 or Ed25519): PEM, or base64 of its DER form.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The group of devices that it vouches for.
        #[arg(long)]
        group: String,
        #[command(flatten)]
        at: At,
    },
    /// Every key, and how many devices were let in by its vouchers.
    List {
        #[arg(long, value_enum, default_value = "text")]
        format: Output,
        #[command(flatten)]
        at: At,
    },
    /// Accept no more vouchers that are signed with a key; devices that are enrolled stay.
    Remove {
        /// Its name.
        name: String,
        #[command(flatten)]
        at: At,
    },
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    match &args.command {
        Action::Add { name: called, key: path, group, at } => {
            let wrong = |what: &str| Exit::Usage(format!("{}: {what}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|e| wrong(&e.to_string()))?;
            let der = public_key(&text).map_err(|e| wrong(&e))?;
            if !can_sign(&der) {
                return Err(wrong("this is no public key for ECDSA P-256 or Ed25519"));
            }
            let called = plain(called)?;
            let key = VoucherKey { name: called.clone(), key: hex(&der), group: name(group)? };
            let detail = json!({ "group": key.group });
            at.change(|state| match state.voucher_keys() {
                all if all.len() >= MAX_ORIGINS && !all.contains_key(&called) => {
                    Err(RegistryError::Refused(format!("there are {MAX_ORIGINS} voucher keys already")))
                }
                _ => Ok(vec![Fact::VoucherKey(key)]),
            })?;
            at.note("provision.voucher_key.add", &called, detail)
        }
        Action::Remove { name, at } => {
            at.change(|state| match state.voucher_keys().get(name) {
                Some(_) => Ok(vec![Fact::VoucherKeyGone { name: name.clone() }]),
                None => {
                    let text = format!("there is no voucher key {name}; see `weir provision voucher-key list`");
                    Err(RegistryError::Refused(text))
                }
            })?;
            at.note("provision.voucher_key.remove", name, serde_json::Value::Null)
        }
        Action::List { format, at } => {
            let registry = at.registry()?;
            let (mut text, mut items) = (String::new(), Vec::new());
            registry.look(|state| {
                for VoucherKey { name, key, group } in state.voucher_keys().values() {
                    let used = state.vouched(&Origin::Voucher(name.clone()));
                    text.push_str(&format!("{name}  group {group}  {used} enrolled\n"));
                    items.push(json!({ "name": name, "group": group, "key": key, "enrolled": used }));
                }
            });
            match format {
                Output::Text => print(&text),
                Output::Json => print(&format!("{}\n", json!({ "voucher_keys": items }))),
            }
        }
    }
}
