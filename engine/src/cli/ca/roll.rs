//! `weir ca roll`

use std::time::Duration;

use access::authority;
use access::registry::Fact;
use access::roll::{self, Roll, Stage};
use device::time::Timestamp;

use super::{day, time_text};
use crate::cli::files::At;
use crate::cli::{Exit, Output, print};
use crate::clock;

/// Names that a text shows; JSON has all.
const SHOWN: usize = 20;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Step {
    /// Make the new root, and have everybody told to trust both.
    Begin {
        #[command(flatten)]
        at: At,
    },
    /// How far it is, and who is missing.
    Status {
        #[arg(long, value_enum, default_value = "text")]
        format: Output,
        #[command(flatten)]
        at: At,
    },
    /// Let the new root sign, when 99 of 100 devices trust it; devices renew their certificates.
    Switch {
        /// Over how long, each device at its own time.
        #[arg(long, default_value = "1d", value_name = "TIME", value_parser = humantime::parse_duration)]
        over: Duration,
        /// Also if fewer devices have said that they trust it.
        #[arg(long)]
        anyway: bool,
        #[command(flatten)]
        at: At,
    },
    /// Trust the new root alone, when everybody has a certificate of it; the old one's files are removed.
    Finish {
        /// Also if that locks somebody out.
        #[arg(long)]
        anyway: bool,
        #[command(flatten)]
        at: At,
    },
    /// Call it off, as long as the old root signs.
    Cancel {
        #[command(flatten)]
        at: At,
    },
}

pub(super) fn main(step: &Step) -> Result<(), Exit> {
    match step {
        Step::Begin { at } => begin(at),
        Step::Status { format, at } => status(at, *format),
        Step::Switch { over, anyway, at } => switch(at, *over, *anyway),
        Step::Finish { anyway, at } => finish(at, *anyway),
        Step::Cancel { at } => cancel(at),
    }
}

/// Who is where: what the decisions are made of.
struct Seen {
    last: Option<(Roll, Timestamp)>,
    stage: Option<Stage>,
    devices: usize,
    missing: Vec<String>,
    left: Vec<String>,
}

fn look(at: &At) -> Result<Seen, Exit> {
    let tenant = authority::open(&at.folder()).map_err(Exit::failed)?.tenant().to_owned();
    let now = clock::now();
    Ok(at.registry()?.look(|state| {
        let (devices, missing) = roll::missing(state, &tenant, now);
        Seen {
            last: state.roll().last().cloned(),
            stage: state.roll().stage(),
            devices,
            missing: missing.iter().map(ToString::to_string).collect(),
            left: roll::left_behind(state, &tenant, now).iter().map(ToString::to_string).collect(),
        }
    }))
}

/// Notes a step that the files have made, unless it is noted already.
fn note(at: &At, stage: Stage, bundle: &str, over: i64) -> Result<(), Exit> {
    let issuer = match stage {
        Stage::Switched => Some(authority::open(&at.folder()).map_err(Exit::failed)?.name().to_owned()),
        Stage::Begun | Stage::Finished => None,
    };
    let next = Roll { stage, bundle: authority::roll::bundle_id(bundle), over, issuer };
    let mut is_new = false;
    at.change(|state| {
        let last = state.roll().last().map(|(roll, _)| (roll.stage, &roll.bundle));
        is_new = last != Some((next.stage, &next.bundle));
        Ok(is_new.then(|| Fact::Roll(next.clone())).into_iter().collect())
    })?;
    match is_new {
        true => at.note("authority.roll", word(stage), serde_json::json!({ "bundle": next.bundle })),
        false => Ok(()),
    }
}

fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Begun => "begun",
        Stage::Switched => "switched",
        Stage::Finished => "finished",
    }
}

fn begin(at: &At) -> Result<(), Exit> {
    let bundle = authority::roll::begin(&at.folder(), clock::now(), rand::random).map_err(Exit::failed)?;
    note(at, Stage::Begun, &bundle, 0)?;
    let folder = at.folder().display().to_string();
    print(&format!(
        "made a new root; {folder}/ca.crt names both, and the old one signs\n\
         devices with our agent are told by a running engine; give the file to all others, and to users\n\
         `weir ca roll status` shows who trusts it; then `weir ca roll switch`\n"
    ))
}

fn names(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn trusting(seen: &Seen) -> String {
    let Seen { devices, missing, .. } = seen;
    let mut text =
        format!("{} of {devices} devices have said that they trust ca.crt as it is", devices - missing.len());
    if !missing.is_empty() {
        text.push_str(&format!("\nmissing: {}", names(missing)));
    }
    text
}

fn locked_out(seen: &Seen) -> String {
    match seen.left.len() {
        0 => "everybody has a certificate of the new root".to_owned(),
        count => format!("{count} without a certificate of the new root: {}", names(&seen.left)),
    }
}

fn status(at: &At, format: Output) -> Result<(), Exit> {
    let seen = look(at)?;
    let since = seen.last.as_ref().map(|(_, at)| *at);
    if let Output::Json = format {
        let stage = seen.last.as_ref().map(|(roll, _)| word(roll.stage));
        return print(&format!(
            "{}\n",
            serde_json::json!({
                "stage": stage, "since": since.map(time_text), "devices": seen.devices, "missing": seen.missing,
                "left_behind": seen.left, "bundle_id": seen.last.as_ref().map(|(roll, _)| &roll.bundle),
            })
        ));
    }
    let since = since.map(day).unwrap_or_default();
    print(&match (seen.stage, &seen.last) {
        (Some(Stage::Begun), _) => {
            format!("begun {since}: the old root signs, both are trusted\n{}\n", trusting(&seen))
        }
        (Some(_), _) => {
            let (trusting, locked_out) = (trusting(&seen), locked_out(&seen));
            format!("switched {since}: the new root signs, both are trusted\n{trusting}\n{locked_out}\n")
        }
        (None, Some(_)) => format!("no root is rolled; the last time was finished {since}\n{}\n", trusting(&seen)),
        (None, None) => "no root is rolled\n".to_owned(),
    })
}

fn switch(at: &At, over: Duration, anyway: bool) -> Result<(), Exit> {
    let seen = look(at)?;
    if seen.stage.is_none() {
        return Err(Exit::Failed("no root is rolled; `weir ca roll begin`".to_owned()));
    }
    if seen.stage == Some(Stage::Begun) && !anyway && !roll::is_enough(seen.missing.len(), seen.devices) {
        return Err(Exit::Failed(format!(
            "{}; 99 of 100 are needed, since the others might not come in again (or --anyway)",
            trusting(&seen)
        )));
    }
    let bundle = authority::roll::switch(&at.folder()).map_err(Exit::failed)?;
    note(at, Stage::Switched, &bundle, i64::try_from(over.as_nanos()).unwrap_or(i64::MAX))?;
    let folder = at.folder().display().to_string();
    print(&format!(
        "the new root signs; devices renew their certificates over {}, both roots are trusted until `weir ca roll finish`\n\
         {folder}/root.key is the new root's: keep it elsewhere\n",
        humantime::format_duration(over)
    ))
}

fn finish(at: &At, anyway: bool) -> Result<(), Exit> {
    let seen = look(at)?;
    match seen.stage {
        Some(Stage::Switched) => {}
        None => return print("no root is rolled\n"),
        // Also if a switch was killed before it was noted: until then nobody knows whose certificate goes.
        Some(_) => return Err(Exit::Failed("the new root is not known to sign yet; `weir ca roll switch`".to_owned())),
    }
    let is_ready = seen.left.is_empty() && seen.missing.is_empty();
    if !is_ready && !anyway {
        return Err(Exit::Failed(format!(
            "{}\n{}\nthe others would be locked out (or --anyway)",
            trusting(&seen),
            locked_out(&seen)
        )));
    }
    let bundle = authority::roll::finish(&at.folder()).map_err(Exit::failed)?;
    note(at, Stage::Finished, &bundle, 0)?;
    print("only the new root is trusted; the old one's keys are removed\n")
}

fn cancel(at: &At) -> Result<(), Exit> {
    let seen = look(at)?;
    let bundle = authority::roll::cancel(&at.folder()).map_err(Exit::failed)?;
    if seen.stage.is_none() {
        return print("no root is rolled\n");
    }
    note(at, Stage::Finished, &bundle, 0)?;
    print("called off: only the old root is trusted; the new one's keys are removed\n")
}
