//! `weir provision token`: a device with a token of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use access::enrol::token_hash;
use access::leaf::hex;
use access::registry::{Expected, Fact};
use device::id::DeviceId;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;

use super::{At, Exit, label, name, print};
use crate::clock;

/// What tokens begin with; a scanner for leaked secrets finds them by it.
const PREFIX: &str = "enrol_";

/// A token counts for so long at most.
const LONGEST: Duration = Duration::from_secs(90 * 86_400);

/// Arguments of `weir provision token`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The token is printed once and works once: the device sends it with its signing request to POST /v1/provision.\nWhat is not given here stays as it was registered.\n\nExample:\n  weir provision token pump-7 --group line-1 --label site=north --for 24h"
)]
pub(super) struct Args {
    /// The device: its serial number, which becomes its id.
    device: String,
    /// Its group.
    #[arg(long)]
    group: Option<String>,
    /// Its hardware.
    #[arg(long)]
    hw: Option<String>,
    /// A label for it.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// For how long the token counts.
    #[arg(long = "for", default_value = "24h", value_parser = humantime::parse_duration)]
    time: Duration,
    #[command(flatten)]
    at: At,
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    let Args { device, group, hw, labels, time, at } = args;
    DeviceId::new(device).map_err(|e| Exit::Usage(format!("device {device:?}: {e}")))?;
    let group = group.as_deref().map(name).transpose()?;
    let labels = labels.iter().map(|text| label(text)).collect::<Result<BTreeMap<_, _>, _>>()?;
    if time.is_zero() || *time > LONGEST {
        return Err(Exit::Usage("--for is longer than nothing and at most 90days".to_owned()));
    }
    let mut secret = [0; 32];
    let random = SystemRandom::new().fill(&mut secret);
    random.map_err(|_| Exit::Failed("the system gives no random bytes".to_owned()))?;
    let token = format!("{PREFIX}{}", hex(&secret));
    let until = clock::now().plus(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
    let mut enrolled = false;
    at.change(|state| {
        enrolled = state.enrolled(device).is_some();
        let known = state.expected(device).cloned();
        let known = known.unwrap_or_else(|| Expected {
            device: device.clone(),
            group: String::new(),
            hw: String::new(),
            labels: BTreeMap::new(),
            key: None,
            token: None,
        });
        Ok(vec![Fact::Expected(Expected {
            group: group.unwrap_or(known.group),
            hw: hw.clone().unwrap_or(known.hw),
            labels: if labels.is_empty() { known.labels } else { labels },
            token: Some((token_hash(&token), until.0)),
            ..known
        })])
    })?;
    at.note("provision.token", device, json!({ "seconds": time.as_secs() }))?;
    if enrolled {
        eprintln!(
            "{device} has a certificate; for another key it needs `weir provision reopen {device}` besides the token"
        );
    }
    print(&format!("{token}\n"))
}
