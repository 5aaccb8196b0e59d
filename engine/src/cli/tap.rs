//! `weir pipelines tap`

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::remote::{DEFAULT_URL, check_url, lines, segment};
use super::{Exit, Output};

/// Arguments of `weir pipelines tap`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir pipelines tap climate_1m
  weir pipelines tap telemetry --limit 100 --format json | jq .temperature

Rows come as the engine makes them visible, of each shard in the order of its log. What comes faster than it is read is
left out, and said so.")]
pub(super) struct Args {
    /// A pipeline, a stream or a system table.
    name: String,
    /// Stop after so many rows.
    #[arg(long)]
    limit: Option<u64>,
    /// The engine.
    #[arg(long, env = "WEIR_URL", default_value = DEFAULT_URL)]
    url: String,
    /// Columns for people, or one JSON object per line.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

/// An object whose keys are in the order in which they were written.
struct Row(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Row;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Row(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    check_url(&args.url)?;
    let limit = args.limit.map(|limit| format!("?limit={limit}")).unwrap_or_default();
    let path = format!("/v1/pipelines/{}/tap{limit}", segment(&args.name));
    let mut columns = Columns::default();
    lines("GET", &args.url, &path, None, |line| match args.format {
        Output::Json => written(&format!("{line}\n")),
        Output::Text => written(&columns.line(serde_json::from_str(line).map_err(Exit::failed)?)),
    })
}

/// Whether there is still somebody who reads.
fn written(text: &str) -> Result<bool, Exit> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Exit::failed(error)),
    }
}

/// Columns that grow as wide as what has come so far.
#[derive(Default)]
struct Columns {
    names: Vec<String>,
    widths: Vec<usize>,
}

impl Columns {
    fn line(&mut self, Row(pairs): Row) -> String {
        if let [(name, Value::Number(count))] = pairs.as_slice()
            && name == "_skipped"
        {
            return format!("... {count} rows skipped: they came faster than they were read\n");
        }
        let (names, values): (Vec<String>, Vec<String>) =
            pairs.into_iter().map(|(name, value)| (name, shown(value))).unzip();
        let mut text = String::new();
        if names != self.names {
            self.widths = names.iter().map(String::len).collect();
            self.widen(&values);
            text.push_str(&self.padded(&names));
            self.names = names;
        }
        self.widen(&values);
        text.push_str(&self.padded(&values));
        text
    }

    fn widen(&mut self, values: &[String]) {
        for (width, value) in self.widths.iter_mut().zip(values) {
            *width = value.chars().count().clamp(*width, MOST_WIDTH.max(*width));
        }
    }

    fn padded(&self, values: &[String]) -> String {
        let cells: Vec<String> =
            values.iter().zip(&self.widths).map(|(value, width)| format!("{value:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    }
}

/// A longer value moves the rest of its line.
const MOST_WIDTH: usize = 40;

fn shown(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_in_the_order_of_the_table() {
        let mut columns = Columns::default();
        let mut line = |text: &str| columns.line(serde_json::from_str(text).unwrap());
        assert_eq!(line(r#"{"z":"pump-7","a":null}"#), "z       a\npump-7  -\n");
        assert_eq!(line(r#"{"z":"p","a":[1,2]}"#), "p       [1,2]\n");
        assert_eq!(line(r#"{"_skipped":12}"#), "... 12 rows skipped: they came faster than they were read\n");
        assert_eq!(line(r#"{"b":1}"#), "b\n1\n");
    }
}
