//! `weir ca`

mod roll;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use access::authority::{self, Key, Made, write_file};
use access::registry::{Certificate, Entry, Fact, RegistryError};
use access::renew;
use access::subject::Subject;
use device::id::DeviceId;
use device::time::Timestamp;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;

use super::files::{self, At};
use super::{Exit, Output, print};
use crate::clock;

/// Arguments of `weir ca`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Action,
}

impl At {
    fn folder(&self) -> PathBuf {
        self.data.join("ca")
    }
}

/// Whose certificate is meant, beside the name.
#[derive(Debug, Clone, Copy, clap::Args)]
#[group(multiple = false)]
struct Kind {
    /// The name is that of a user (a person, an application), not of a device.
    #[arg(long)]
    user: bool,
    /// The name is that of a group: who has this certificate may ask for one of a device of it.
    #[arg(long)]
    claim: bool,
}

impl Kind {
    fn subject(self, name: &str) -> Result<Subject, Exit> {
        let plain = || match access::subject::is_name(name) {
            true => Ok(name.to_owned()),
            false => Err(Exit::Usage(format!("{name:?} is no name: use 1 to 64 letters, digits, `.`, `_` or `-`"))),
        };
        Ok(match self {
            Self { user: true, .. } => Subject::User(plain()?),
            Self { claim: true, .. } => Subject::Claim(plain()?),
            _ => Subject::Device(DeviceId::new(name).map_err(|e| Exit::Usage(format!("device {name:?}: {e}")))?),
        })
    }
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make the authority: a root, and an issuing authority that signs all certificates.
    #[command(
        after_help = "The root's key is needed only to make another issuing authority. Keep it elsewhere:\n  mv weir-data/ca/root.key /media/safe/"
    )]
    Init {
        /// The name that stands in every certificate.
        #[arg(long, default_value = "main")]
        tenant: String,
        #[command(flatten)]
        at: At,
    },
    /// Make a certificate: NAME.crt (with the chain), NAME.key and ca.crt (whom to trust), all PEM.
    #[command(
        after_help = "Examples:\n  weir ca issue pump-7 --out certs/\n  weir ca issue gw-1 --gateway --child meter-1 --child meter-2\n  weir ca issue pump-8 --csr pump-8.csr     (the key stays where it was made)\n  weir ca issue line-1 --claim --days 30"
    )]
    Issue {
        /// The device, or with --user or --claim the user or group.
        name: String,
        #[command(flatten)]
        kind: Kind,
        /// The device speaks for others, its children.
        #[arg(long, conflicts_with_all = ["user", "claim"])]
        gateway: bool,
        /// A child of the gateway; repeat for each.
        #[arg(long = "child", value_name = "ID", requires = "gateway")]
        children: Vec<String>,
        /// Days that it is valid: at most 365, for a claim 90.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        days: Option<u32>,
        /// A certificate signing request (PKCS #10, PEM or DER) instead of a new key.
        #[arg(long, value_name = "FILE")]
        csr: Option<PathBuf>,
        /// Folder for the files.
        #[arg(long, default_value = ".", value_name = "DIR")]
        out: PathBuf,
        /// Overwrite a key that is there.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        at: At,
    },
    /// Certificates that were issued, and what became of them.
    #[command(
        after_help = "Examples:\n  weir ca list pump-7\n  weir ca list --expiring 14d     (devices that have not renewed theirs)"
    )]
    List {
        /// Only those of this device, user or group.
        name: Option<String>,
        /// Only the last ones of devices, if they end within this time.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "name")]
        expiring: Option<Duration>,
        #[arg(long, value_enum, default_value = "text")]
        format: Output,
        #[command(flatten)]
        at: At,
    },
    /// Make a certificate, or all of a device, worth nothing, now; a device is also barred.
    #[command(
        after_help = "A running engine cuts the connection within a second. What it has acknowledged stays.\n\nExamples:\n  weir ca revoke pump-7 --reason \"stolen\"\n  weir ca revoke 1f3a9c..."
    )]
    Revoke {
        /// A device, or the number of a certificate; with --user or --claim a user or group.
        what: String,
        #[command(flatten)]
        kind: Kind,
        /// Why, for the record.
        #[arg(long, default_value = "revoked by an operator")]
        reason: String,
        #[command(flatten)]
        at: At,
    },
    /// Let a device that was barred come in again, with a certificate that is not revoked.
    Admit {
        /// The device.
        device: String,
        #[command(flatten)]
        at: At,
    },
    /// Set for whom a gateway speaks: all of these children, and no more.
    Children {
        /// The gateway.
        gateway: String,
        /// Its children; none: it is no gateway any more.
        children: Vec<String>,
        #[command(flatten)]
        at: At,
    },
    /// A new certificate in the place of the last one, which ends a day after the new one was first used; or, with
    /// --issuing, a new issuing authority (needs the root's key).
    Renew {
        /// The device, or with --user or --claim the user or group.
        #[arg(required_unless_present = "issuing", conflicts_with = "issuing")]
        name: Option<String>,
        #[command(flatten)]
        kind: Kind,
        /// Make a new issuing authority.
        #[arg(long)]
        issuing: bool,
        /// Days that it is valid.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        days: Option<u32>,
        /// A certificate signing request instead of a new key.
        #[arg(long, value_name = "FILE")]
        csr: Option<PathBuf>,
        /// Folder for the files.
        #[arg(long, default_value = ".", value_name = "DIR")]
        out: PathBuf,
        /// Overwrite a key that is there.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        at: At,
    },
    /// Put a new root in the place of the old one, step by step, without locking anybody out.
    #[command(
        after_help = "begin: both roots are trusted, the old one signs. switch: the new one signs, devices renew. finish: the old one is gone.\nUp to `switch` it can be called off (`cancel`).\n\nExamples:\n  weir ca roll begin\n  weir ca roll status\n  weir ca roll switch --over 5d\n  weir ca roll finish"
    )]
    Roll {
        #[command(subcommand)]
        step: roll::Step,
    },
    /// Print whom to trust (PEM).
    Export {
        /// The list of revoked certificates instead (RFC 5280).
        #[arg(long, conflicts_with = "issuing")]
        crl: bool,
        /// The certificate of the issuing authority instead.
        #[arg(long)]
        issuing: bool,
        #[command(flatten)]
        at: At,
    },
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    match &args.command {
        Action::Init { tenant, at } => init(at, tenant),
        Action::Issue { name, kind, gateway, children, days, csr, out, force, at } => {
            let subject = kind.subject(name)?;
            let children = children.iter().map(|child| device(child)).collect::<Result<_, Exit>>()?;
            let wish = Wish { subject, days: *days, csr: csr.as_deref(), out, force: *force };
            let gateway = gateway.then(|| Fact::Gateway { device: name.clone(), children });
            issue(at, &wish, gateway, false)
        }
        Action::List { name, expiring, format, at } => list(at, name.as_deref(), *expiring, *format),
        Action::Revoke { what, kind, reason, at } => revoke(at, what, *kind, reason),
        Action::Admit { device: id, at } => admit(at, &device(id)?),
        Action::Children { gateway, children, at } => {
            let device = device(gateway)?;
            let children = children.iter().map(|child| self::device(child)).collect::<Result<_, Exit>>()?;
            let detail = serde_json::json!({ "children": children });
            at.change(|_| Ok(vec![Fact::Gateway { device, children }]))?;
            at.note("certificate.children", gateway, detail)
        }
        Action::Renew { name: None, at, .. } => renew_issuing(at),
        Action::Renew { name: Some(name), kind, days, csr, out, force, at, .. } => {
            let subject = kind.subject(name)?;
            issue(at, &Wish { subject, days: *days, csr: csr.as_deref(), out, force: *force }, None, true)
        }
        Action::Roll { step } => roll::main(step),
        Action::Export { crl, issuing, at } => export(at, *crl, *issuing),
    }
}

fn device(text: &str) -> Result<String, Exit> {
    DeviceId::new(text).map(|id| id.to_string()).map_err(|e| Exit::Usage(format!("device {text:?}: {e}")))
}

fn init(at: &At, tenant: &str) -> Result<(), Exit> {
    authority::init(&at.folder(), tenant, clock::now(), rand::random).map_err(Exit::failed)?;
    let folder = at.folder().display().to_string();
    at.note("authority.init", tenant, serde_json::Value::Null)?;
    print(&format!(
        "made a certificate authority in {folder}\n\
         devices trust {folder}/ca.crt; `weir ca issue ID` makes a certificate for one\n\
         keep {folder}/root.key elsewhere: it is needed only to make another issuing authority\n"
    ))
}

/// What certificate is wanted, and where.
struct Wish<'a> {
    subject: Subject,
    days: Option<u32>,
    csr: Option<&'a Path>,
    out: &'a Path,
    force: bool,
}

fn issue(at: &At, wish: &Wish<'_>, gateway: Option<Fact>, renew: bool) -> Result<(), Exit> {
    let authority = authority::open(&at.folder()).map_err(Exit::failed)?;
    let name = wish.subject.name();
    let file = |extension: &str| wish.out.join(format!("{name}.{extension}"));
    if wish.csr.is_none() && !wish.force && file("key").exists() {
        let key = file("key").display().to_string();
        return Err(Exit::Failed(format!(
            "{key} is there already; choose another --out, or --force to overwrite the key"
        )));
    }
    std::fs::create_dir_all(wish.out).map_err(|e| Exit::Failed(format!("{}: {e}", wish.out.display())))?;
    let request = wish.csr.map(read_request).transpose()?;
    let key = request.as_deref().map_or(Key::New, Key::Request);
    let most = if matches!(wish.subject, Subject::Claim(_)) { authority::MAX_CLAIM_DAYS } else { authority::MAX_DAYS };
    let days = wish.days.unwrap_or(most);
    let now = clock::now();
    let made = authority.issue(&wish.subject, &[], &key, days, (now, rand::random())).map_err(Exit::failed)?;
    let uri = wish.subject.uri(authority.tenant());
    let mut certificate = Certificate::new(&made.leaf, uri.clone());
    at.change(|state| {
        let mut facts = Vec::new();
        let last = state.of(&uri).filter(|entry| entry.revoked.is_none()).last();
        match last {
            Some(last) if renew => certificate.replaces = Some(last.certificate.serial.clone()),
            None if renew => return Err(RegistryError::NoSuch(name.to_owned())),
            _ => {}
        }
        // The old one goes when the new one is known to work, however long that takes.
        facts.push(Fact::Issued(certificate));
        if let Subject::Device(id) = &wish.subject
            && state.barred(id.as_str()).is_some()
        {
            if renew {
                return Err(RegistryError::Refused(format!("{id} is barred; `weir ca admit {id}` lets it in again")));
            }
            facts.push(Fact::Admitted { device: id.to_string() });
        }
        facts.extend(gateway);
        Ok(facts)
    })?;
    let Made { chain, key, leaf } = made;
    let action = if renew { "certificate.renew" } else { "certificate.issue" };
    at.note(action, &uri, serde_json::json!({ "serial": leaf.serial, "until": time_text(leaf.not_after) }))?;
    // The key first: a certificate without it is worth nothing.
    let mut lines = String::new();
    if let Some(key) = key {
        write_file(&file("key"), &key.0, 0o600).map_err(Exit::failed)?;
        lines.push_str(&format!("{}\n", file("key").display()));
    }
    write_file(&file("crt"), &chain, 0o644).map_err(Exit::failed)?;
    let bundle = authority.bundle().map_err(Exit::failed)?;
    write_file(&wish.out.join("ca.crt"), &bundle, 0o644).map_err(Exit::failed)?;
    lines.push_str(&format!("{}\n{}\n", file("crt").display(), wish.out.join("ca.crt").display()));
    lines.push_str(&format!("{}, serial {}, valid until {}\n", wish.subject, leaf.serial, day(leaf.not_after)));
    print(&lines)
}

fn read_request(path: &Path) -> Result<Vec<u8>, Exit> {
    let wrong = |e: &dyn std::fmt::Display| Exit::Failed(format!("{}: {e}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| wrong(&e))?;
    if !bytes.starts_with(b"-----") {
        return Ok(bytes);
    }
    let request = CertificateSigningRequestDer::from_pem_slice(&bytes).map_err(|e| wrong(&e))?;
    Ok(request.to_vec())
}

fn revoke(at: &At, what: &str, kind: Kind, reason: &str) -> Result<(), Exit> {
    let authority = authority::open(&at.folder()).map_err(Exit::failed)?;
    // The number of a certificate is a valid device id as well; whoever it is, the registry knows.
    let uri = kind.subject(what)?.uri(authority.tenant());
    let registry = at.registry()?;
    let now = clock::now();
    let new = registry.change(now, |state| state.revoke(what, &uri, reason)).map_err(Exit::failed)?;
    if !new.is_empty() {
        at.note("certificate.revoke", what, serde_json::json!({ "reason": reason }))?;
    }
    let mut text = String::new();
    for line in &new {
        match &line.fact {
            Fact::Revoked { serial, .. } => text.push_str(&format!("revoked {serial}\n")),
            Fact::Barred { device, .. } => text.push_str(&format!(
                "barred device {device}; `weir ca issue {device}` or `weir ca admit {device}` lets it in again\n"
            )),
            _ => {}
        }
    }
    print(if text.is_empty() { "revoked already\n" } else { &text })
}

fn admit(at: &At, device: &str) -> Result<(), Exit> {
    at.change(|state| match state.barred(device) {
        Some(_) => Ok(vec![Fact::Admitted { device: device.to_owned() }]),
        None => Err(RegistryError::Refused(format!("{device} is not barred"))),
    })?;
    at.note("device.admit", device, serde_json::Value::Null)
}

fn renew_issuing(at: &At) -> Result<(), Exit> {
    let made = authority::renew_issuing(&at.folder(), clock::now(), rand::random).map_err(Exit::failed)?;
    print(&format!(
        "made a new issuing authority, valid until {}; what was issued before stays valid\n",
        day(made.not_after())
    ))
}

fn export(at: &At, crl: bool, issuing: bool) -> Result<(), Exit> {
    let authority = authority::open(&at.folder()).map_err(Exit::failed)?;
    if crl {
        let now = clock::now();
        let list = at.registry()?.look(|state| authority.revocations(state.revoked(now), now)).map_err(Exit::failed)?;
        return print(&list.pem().map_err(Exit::failed)?);
    }
    let text = if issuing { authority.issuing().to_owned() } else { authority.bundle().map_err(Exit::failed)? };
    print(&text)
}

/// What has become of a certificate, in a word.
fn fate(entry: &Entry, standing: Result<(), access::registry::Refusal>, now: Timestamp) -> &'static str {
    match standing {
        Err(refusal) => refusal.code(),
        Ok(()) if now > entry.certificate.not_after => "expired",
        Ok(()) if entry.certificate.pending && entry.proven.is_none() => "pending",
        Ok(()) if entry.ends.is_some() => "replaced_soon",
        Ok(()) => "valid",
    }
}

fn list(at: &At, name: Option<&str>, expiring: Option<Duration>, format: Output) -> Result<(), Exit> {
    let tenant = authority::open(&at.folder()).map_err(Exit::failed)?.tenant().to_owned();
    let now = clock::now();
    let registry = at.registry()?;
    let mut text = String::new();
    let mut items = Vec::new();
    registry.look(|state| {
        let ending = expiring.map(|within| {
            let within = i64::try_from(within.as_nanos()).unwrap_or(i64::MAX);
            renew::ending(state, &tenant, within, now).into_iter().map(|it| it.serial).collect::<HashSet<_>>()
        });
        for entry in state.all() {
            if ending.as_ref().is_some_and(|ending| !ending.contains(&entry.certificate.serial)) {
                continue;
            }
            let Some(subject) = Subject::parse(&entry.certificate.subject, &tenant) else { continue };
            if name.is_some_and(|name| subject.name() != name || subject == Subject::Server) {
                continue;
            }
            let device = matches!(subject, Subject::Device(_)).then(|| subject.name());
            let fate = fate(entry, state.standing(&entry.certificate.serial, device, now), now);
            let Certificate { serial, not_before, not_after, .. } = &entry.certificate;
            match format {
                Output::Text => {
                    text.push_str(&format!("{serial}  {fate:<9}  until {}  {subject}\n", day(*not_after)));
                }
                Output::Json => items.push(serde_json::json!({
                    "serial": serial, "subject": entry.certificate.subject, "name": subject.name(), "state": fate,
                    "issued": time_text(entry.issued), "not_before": time_text(*not_before), "not_after": time_text(*not_after),
                    "revoked": entry.revoked.as_ref().map(|(at, _)| time_text(*at)),
                    "reason": entry.revoked.as_ref().map(|(_, reason)| reason),
                    "proven": entry.proven.map(time_text), "replaces": entry.certificate.replaces, "ends": entry.ends.map(time_text),
                    "children": device.and_then(|device| state.children(device)),
                })),
            }
        }
    });
    match format {
        Output::Text => print(&text),
        Output::Json => print(&format!("{}\n", serde_json::json!({ "certificates": items }))),
    }
}

fn time_text(time: Timestamp) -> String {
    files::time_text(time.0)
}

fn day(time: Timestamp) -> String {
    time_text(time).chars().take(10).collect()
}
