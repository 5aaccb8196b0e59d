//! `weir shadow`

use serde_json::{Map, Value};

use super::remote::{DEFAULT_URL, check_url, request, segment};
use super::{Exit, Output, print};

/// Arguments of `weir shadow`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// What a device is wanted to be, what it says it is, and what differs.
    #[command(
        after_help = "Examples:\n  weir shadow show pump-7\n  weir shadow show pump-7 --name network --format json\n  weir shadow show pump-7 --at 2026-11-28T12:00:00Z"
    )]
    Show {
        /// The device.
        device: String,
        /// Only what was desired at this version.
        #[arg(long)]
        dv: Option<u64>,
        /// Only what was desired at this time.
        #[arg(long, conflicts_with = "dv")]
        at: Option<String>,
        #[command(flatten)]
        of: Of,
    },
    /// Change what is desired of a device: a JSON merge patch, or values by their paths.
    #[command(
        after_help = "Examples:\n  weir shadow set pump-7 interval=10 heating.limit=21.5\n  weir shadow set pump-7 '{\"heating\": {\"limit\": null}}'\n  weir shadow set pump-7 valve=open --ttl 5m --if-dv 12"
    )]
    Set {
        /// The device.
        device: String,
        /// `path=value` (the value is JSON, or else text; `null` deletes), or one JSON object.
        #[arg(required = true)]
        changes: Vec<String>,
        /// How long the values count: a device that is away for longer never gets them.
        #[arg(long)]
        ttl: Option<String>,
        /// Only if this is the version now.
        #[arg(long)]
        if_dv: Option<u64>,
        /// The id of the request: asked twice, it counts once.
        #[arg(long)]
        request_id: Option<String>,
        /// Who asks.
        #[arg(long, env = "USER", default_value = "operator")]
        by: String,
        #[command(flatten)]
        of: Of,
    },
    /// Empty a shadow; its versions go on.
    Delete {
        /// The device.
        device: String,
        /// Who asks.
        #[arg(long, env = "USER", default_value = "operator")]
        by: String,
        #[command(flatten)]
        of: Of,
    },
    /// The shadows of a device.
    List {
        /// The device.
        device: String,
        #[command(flatten)]
        of: Of,
    },
}

/// Of which engine, which shadow, and how.
#[derive(Debug, clap::Args)]
struct Of {
    /// The name of the shadow.
    #[arg(long, default_value = device::shadow::DEFAULT)]
    name: String,
    /// A running engine.
    #[arg(long, default_value = DEFAULT_URL)]
    url: String,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    match &args.command {
        Command::Show { device, dv, at, of } => {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            if let Some(dv) = dv {
                query.append_pair("dv", &dv.to_string());
            }
            if let Some(at) = at {
                query.append_pair("at", at);
            }
            shown(&ask("GET", device, of, &query.finish(), None)?, of)
        }
        Command::Set { device, changes, ttl, if_dv, request_id, by, of } => {
            let patch = patch(changes)?;
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("by", by);
            let if_dv = if_dv.map(|dv| dv.to_string());
            for (name, value) in [("ttl", ttl), ("if_dv", &if_dv), ("request_id", request_id)] {
                if let Some(value) = value {
                    query.append_pair(name, value);
                }
            }
            shown(&ask("PATCH", device, of, &query.finish(), Some(&Value::Object(patch).to_string()))?, of)
        }
        Command::Delete { device, by, of } => {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("by", by);
            shown(&ask("DELETE", device, of, &query.finish(), None)?, of)
        }
        Command::List { device, of } => {
            check_url(&of.url)?;
            let path = format!("/v1/devices/{}/shadows", segment(device));
            let answer = request("GET", &of.url, &path, "application/json", None)?;
            if let Output::Json = of.format {
                return print(&String::from_utf8_lossy(&answer));
            }
            let answer: Value = serde_json::from_slice(&answer).map_err(Exit::failed)?;
            let names = answer["shadows"].as_array().cloned().unwrap_or_default();
            let names: String = names.iter().filter_map(Value::as_str).map(|name| format!("{name}\n")).collect();
            print(&names)
        }
    }
}

fn ask(method: &str, device: &str, of: &Of, query: &str, body: Option<&str>) -> Result<Vec<u8>, Exit> {
    check_url(&of.url)?;
    let path = format!("/v1/devices/{}/shadow/{}?{query}", segment(device), segment(&of.name));
    request(method, &of.url, &path, "application/json", body)
}

/// The merge patch that the arguments mean.
pub(super) fn patch(changes: &[String]) -> Result<Map<String, Value>, Exit> {
    let mut patch = Map::new();
    for change in changes {
        if change.trim_start().starts_with('{') {
            let object: Map<String, Value> = serde_json::from_str(change)
                .map_err(|error| Exit::Usage(format!("{change:?} is not a JSON object: {error}")))?;
            patch.extend(object);
            continue;
        }
        let Some((path, value)) =
            change.split_once('=').filter(|(path, _)| path.split('.').all(|name| !name.is_empty()))
        else {
            return Err(Exit::Usage(format!("{change:?} is neither path=value nor a JSON object")));
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        let mut at = &mut patch;
        let names: Vec<&str> = path.split('.').collect();
        let Some((last, branches)) = names.split_last() else { continue };
        for name in branches {
            let next = at.entry(*name).or_insert_with(|| Value::Object(Map::new()));
            match next {
                Value::Object(next) => at = next,
                _ => return Err(Exit::Usage(format!("{change:?}: {name} is given a value and has values below it"))),
            }
        }
        at.insert((*last).to_owned(), value);
    }
    Ok(patch)
}

fn shown(answer: &[u8], of: &Of) -> Result<(), Exit> {
    if let Output::Json = of.format {
        return print(&format!("{}\n", String::from_utf8_lossy(answer).trim_end()));
    }
    let answer: Value = serde_json::from_slice(answer).map_err(Exit::failed)?;
    let text = |name: &str| match &answer[name] {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let mut out = format!("{}  {}\n", text("device"), text("name"));
    if answer.get("rv").is_none() {
        out.push_str(&format!("desired (version {})\n{}", text("dv"), values(&answer["desired"], &Value::Null)));
        return print(&out);
    }
    let meta = &answer["metadata"];
    out.push_str(&format!("desired (version {})\n{}", text("dv"), values(&answer["desired"], &meta["desired"])));
    out.push_str(&format!(
        "reported (version {}, has applied {})\n{}",
        text("rv"),
        text("applied_dv"),
        values(&answer["reported"], &meta["reported"])
    ));
    if answer["in_sync"] == Value::Bool(true) {
        out.push_str("in sync\n");
    } else {
        out.push_str(&format!("delta\n{}", values(&answer["delta"], &Value::Null)));
    }
    for path in answer["conflicts"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.push_str(&format!("conflict: {path} (set it to end it)\n"));
    }
    print(&out)
}

/// One line a value.
fn values(object: &Value, meta: &Value) -> String {
    fn walk(at: &str, value: &Value, meta: &Value, out: &mut String) {
        match value {
            Value::Object(object) if !object.is_empty() || at.is_empty() => {
                for (name, value) in object {
                    let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                    walk(&at, value, meta, out);
                }
            }
            value => {
                out.push_str(&format!("  {at} = {value}"));
                let about = &meta[at];
                for (key, what) in [("ts", "  since "), ("by", " by "), ("expires", ", until ")] {
                    if let Some(text) = about[key].as_str() {
                        out.push_str(what);
                        out.push_str(text);
                    }
                }
                out.push('\n');
            }
        }
    }
    let mut out = String::new();
    walk("", object, meta, &mut out);
    if out.is_empty() { "  nothing\n".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_become_one_patch() {
        let of = |changes: &[&str]| patch(&changes.iter().map(ToString::to_string).collect::<Vec<_>>());
        let made = of(&["a.b=1", "a.c=on", "d=null", r#"{"e": {"f": [1]}}"#, "g=\"1\""]).unwrap();
        assert_eq!(Value::Object(made), json!({"a": {"b": 1, "c": "on"}, "d": null, "e": {"f": [1]}, "g": "1"}));
        for (wrong, part) in [("a", "neither"), ("a..b=1", "neither"), ("{a", "not a JSON object")] {
            assert!(matches!(of(&[wrong]), Err(Exit::Usage(text)) if text.contains(part)), "{wrong}");
        }
        assert!(matches!(of(&["a=1", "a.b=2"]), Err(Exit::Usage(_))));
    }

    #[test]
    fn values_stand_one_a_line() {
        let meta = json!({"a.b": {"ts": "2026", "by": "ann", "expires": "2027"}});
        assert_eq!(
            values(&json!({"a": {"b": 1}, "c": {}}), &meta),
            "  a.b = 1  since 2026 by ann, until 2027\n  c = {}\n"
        );
        assert_eq!(values(&json!({}), &meta), "  nothing\n");
    }
}
