//! `weir audit`

use std::path::PathBuf;
use std::sync::Arc;

use device::id::DeviceId;

use crate::audit::{self, DeviceAudit};
use crate::config::Config;
use crate::core::{Core, Silent};
use crate::{clock, project, query};

use access::audit::Verdict;

use super::remote::{check_url, request};
use super::{Exit, Output, print};

/// Devices asked for at a time.
const PAGE: usize = 500;

/// Arguments of `weir audit`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without DEVICE all devices are audited. With --data the engine must not be running: what its log\nstill holds is written to the tables first."
)]
pub(super) struct Args {
    /// Which device.
    device: Option<String>,
    /// The data directory.
    #[arg(long, env = "WEIR_DATA", conflicts_with = "url")]
    data: Option<PathBuf>,
    /// A running engine.
    #[arg(long)]
    url: Option<String>,
    /// Instead of the ledger: whether the audit trail is what was written, act for act.
    #[arg(long, conflicts_with = "device")]
    trail: bool,
    /// How to print the ledger.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

pub(super) async fn main(args: Args) -> Result<(), Exit> {
    if args.trail {
        return tokio::task::spawn_blocking(move || trail(&args)).await.map_err(Exit::failed)?;
    }
    let device = match &args.device {
        Some(text) => Some(DeviceId::new(text).map_err(|e| Exit::Usage(format!("device {text:?}: {e}")))?),
        None => None,
    };
    let audits = match &args.url {
        Some(url) => {
            check_url(url)?;
            let url = url.clone();
            tokio::task::spawn_blocking(move || remote(&url, device.as_ref())).await.map_err(Exit::failed)??
        }
        None => local(args.data.unwrap_or_else(|| crate::config::StoreConfig::default().data), device).await?,
    };
    match args.format {
        Output::Json => print(&format!("{}\n", serde_json::to_string(&audits).map_err(Exit::failed)?))?,
        Output::Text => print(&audit::render(&audits))?,
    }
    if audits.iter().all(|audit| audit.ok) { Ok(()) } else { Err(Exit::Silent) }
}

/// Verifies the trail.
fn trail(args: &Args) -> Result<(), Exit> {
    let verdict: Verdict = match &args.url {
        Some(url) => {
            check_url(url)?;
            let body = request("GET", url, "/v1/trail", "application/json", None)?;
            serde_json::from_slice(&body).map_err(Exit::failed)?
        }
        None => {
            let data = args.data.clone().unwrap_or_else(|| crate::config::StoreConfig::default().data);
            let path = access::audit::journal(&data);
            if !path.is_file() {
                let text =
                    format!("there is no audit trail at {}; name the data directory with --data", path.display());
                return Err(Exit::Usage(text));
            }
            access::audit::verify(&path).map_err(Exit::failed)?
        }
    };
    if args.format == Output::Json {
        return print(&format!("{}\n", serde_json::to_string(&verdict).map_err(Exit::failed)?));
    }
    let time = |at: Option<i64>| {
        let since = |at: i64| std::time::Duration::from_nanos(u64::try_from(at).unwrap_or(0));
        at.map_or_else(
            || "-".to_owned(),
            |at| humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + since(at)).to_string(),
        )
    };
    print(&format!(
        "{} acts, all as they were written\nfirst {}\nlast  {}\nhead  {}\n",
        verdict.acts,
        time(verdict.first),
        time(verdict.last),
        verdict.head
    ))
}

fn remote(url: &str, device: Option<&DeviceId>) -> Result<Vec<DeviceAudit>, Exit> {
    if let Some(device) = device {
        let body = request("GET", url, &format!("/v1/audit/{device}"), "application/json", None)?;
        return Ok(vec![serde_json::from_slice(&body).map_err(Exit::failed)?]);
    }
    #[derive(serde::Deserialize)]
    struct Page {
        audits: Vec<DeviceAudit>,
        next: Option<String>,
    }
    let mut audits = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/audit?limit={PAGE}{after}");
        let body = request("GET", url, &path, "application/json", None)?;
        let page: Page = serde_json::from_slice(&body).map_err(Exit::failed)?;
        audits.extend(page.audits);
        match page.next {
            Some(next) => {
                let next: String = url::form_urlencoded::byte_serialize(next.as_bytes()).collect();
                after = format!("&after={next}");
            }
            None => return Ok(audits),
        }
    }
}

/// Opens the data directory as the engine would, without listeners, and audits it.
async fn local(data: PathBuf, device: Option<DeviceId>) -> Result<Vec<DeviceAudit>, Exit> {
    if !data.is_dir() {
        let text = format!("{} is no directory; name one with --data, or a running engine with --url", data.display());
        return Err(Exit::Usage(text));
    }
    let mut config = Config::default();
    config.store.data = data.clone();
    let stored = project::stored(&crate::core::project_file(&data)).map_err(Exit::failed)?;
    let Some(loaded) = stored else {
        return Err(Exit::Usage(format!("{} is not a data directory of weir", data.display())));
    };
    let core = Core::open(&config, loaded, clock::wall(), Arc::new(Silent)).await.map_err(Exit::failed)?;
    let audits = audit_core(&core, device).await;
    core.shutdown(true).await.map_err(Exit::failed)?;
    audits
}

/// Audits one device or all of them.
pub(super) async fn audit_core(core: &Core, device: Option<DeviceId>) -> Result<Vec<DeviceAudit>, Exit> {
    let runtime = query::runtime(crate::limits::QUERY_MEMORY).map_err(Exit::failed)?;
    if let Some(device) = device {
        return audit::audit(core, runtime, &[device]).await.map_err(Exit::failed);
    }
    let mut audits: Vec<DeviceAudit> = Vec::new();
    loop {
        let after = audits.last().map(|audit| audit.device.clone());
        let ids = audit::known_devices(core, after.as_deref(), PAGE).await.map_err(Exit::failed)?;
        if ids.is_empty() {
            return Ok(audits);
        }
        audits.extend(audit::audit(core, runtime.clone(), &ids).await.map_err(Exit::failed)?);
    }
}
