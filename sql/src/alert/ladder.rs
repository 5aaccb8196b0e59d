//! The texts of `escalate` and `labels`.

use std::sync::Arc;

use device::alert::Step;

use crate::{interval, name};

/// More than anybody climbs.
const MAX_STEPS: usize = 16;

/// How often a step repeats if nobody says: as long as a person would bear it.
const REPEATS: u32 = 3;

const EXAMPLE: &str = "write who and when, as in 'oncall@0m, lead@10m every 15m max 3, manager@1h'";

/// Steps of a ladder: `oncall@0m, lead@10m every 15m max 3, manager@1h`. The error is message and help.
pub(super) fn read(text: &str) -> Result<Vec<Step>, (String, String)> {
    let mut steps: Vec<Step> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let step = step(part)?;
        if let Some(before) = steps.last().filter(|before| before.after_ns > step.after_ns) {
            let message = format!("`{}` would be told before `{}`, which stands ahead of it", step.to, before.to);
            return Err((message, "write the steps in the order of time".to_owned()));
        }
        steps.push(step);
    }
    if steps.len() > MAX_STEPS {
        return Err((format!("a ladder has up to {MAX_STEPS} steps"), "leave out some".to_owned()));
    }
    Ok(steps)
}

fn step(part: &str) -> Result<Step, (String, String)> {
    let form = || (format!("'{part}' is not a step of a ladder"), EXAMPLE.to_owned());
    let mut words = part.split_whitespace();
    let (to, after) = words.next().and_then(|word| word.split_once('@')).ok_or_else(form)?;
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if to.is_empty() || to.len() > 63 || !to.chars().all(plain) {
        return Err((format!("'{to}' is not a name for somebody to tell"), EXAMPLE.to_owned()));
    }
    let mut step = Step { to: Arc::from(to), after_ns: length(after)?, repeat_ns: None, most: 1 };
    loop {
        match (words.next(), words.next()) {
            (None, _) => return Ok(step),
            (Some("every"), Some(every)) if step.repeat_ns.is_none() => {
                let ns = length(every)?;
                if ns < 1_000_000_000 {
                    return Err((format!("'{every}' is too short to repeat after"), "write 1s or more".to_owned()));
                }
                (step.repeat_ns, step.most) = (Some(ns), REPEATS);
            }
            (Some("max"), Some(most)) if step.repeat_ns.is_some() => {
                let most = most.parse().ok().filter(|most| (1..=1000).contains(most));
                step.most =
                    most.ok_or_else(|| (format!("'{part}': max is a number from 1 to 1000"), EXAMPLE.into()))?;
            }
            _ => return Err(form()),
        }
    }
}

fn length(text: &str) -> Result<i64, (String, String)> {
    match interval::parse(text, None) {
        Ok(ns) if ns >= 0 => Ok(ns),
        Ok(_) => Err((format!("'{text}' is negative"), EXAMPLE.to_owned())),
        Err(wrong) => Err(wrong.explain(text)),
    }
}

/// Names and values.
type Labels = Vec<(Arc<str>, Arc<str>)>;

/// `team=plant, site=north`, in the order of the names.
pub(super) fn labels(text: &str) -> Result<Labels, (String, String)> {
    const EXAMPLE: &str = "write 'team=plant, site=north'";
    let mut labels = Vec::new();
    for part in text.split(',').map(str::trim) {
        let pair = part.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        let Some((key, value)) = pair.filter(|(key, value)| name::is_plain(key) && !value.is_empty()) else {
            return Err((format!("'{part}' is not a label"), EXAMPLE.to_owned()));
        };
        if labels.iter().any(|(other, _): &(Arc<str>, Arc<str>)| &**other == key) {
            return Err((format!("the label `{key}` is given twice"), EXAMPLE.to_owned()));
        }
        labels.push((Arc::from(key), Arc::from(value)));
    }
    labels.sort();
    Ok(labels)
}

/// What every incident has besides the labels of its rule.
const ALWAYS: [&str; 3] = ["device", "rule", "severity"];

/// Names of `group_by`. `labels`: those of the rule, if they could be read.
pub(super) fn groups(text: &str, labels: Option<&[(Arc<str>, Arc<str>)]>) -> Result<Vec<String>, (String, String)> {
    let known: Vec<&str> = labels.unwrap_or_default().iter().map(|(name, _)| &**name).chain(ALWAYS).collect();
    let mut names: Vec<String> = Vec::new();
    for part in text.split(',').map(str::trim) {
        if !known.contains(&part) {
            let message = format!("'{part}' is no label of this alert");
            let help = name::did_you_mean(part, known.iter().copied())
                .unwrap_or_else(|| format!("group by {}", name::list(known.iter().copied())));
            return Err((message, help));
        }
        if names.iter().any(|name| name == part) {
            return Err((format!("`{part}` is given twice"), "write each name once".to_owned()));
        }
        names.push(part.to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ladders() {
        let steps = read("oncall@0m, lead@10m every 15m max 2,manager@1h").unwrap();
        let min = 60_000_000_000;
        let shown: Vec<_> = steps.iter().map(|s| (&*s.to, s.after_ns / min, s.repeat_ns, s.most)).collect();
        assert_eq!(shown, [("oncall", 0, None, 1), ("lead", 10, Some(15 * min), 2), ("manager", 60, None, 1)]);
        assert_eq!(read("a@1m every 1h").unwrap()[0].most, REPEATS);
        for bad in
            ["", "oncall", "a@", "@1m", "a@1x", "a@1m max 3", "a@1m every", "a@1m every 1ms", "a@2m, b@1m", "a b@1m"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
        let sorted = labels("team = plant,site=north").unwrap();
        assert_eq!(sorted.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["site=north", "team=plant"]);
        let shown = |text: &str| groups(text, Some(&sorted)).map_err(|(message, help)| format!("{message}; {help}"));
        assert_eq!(shown("team, device").unwrap(), ["team", "device"]);
        assert_eq!(shown("taem").unwrap_err(), "'taem' is no label of this alert; did you mean `team`?");
        assert!(shown("").is_err() && shown("team,team").is_err() && groups("team", None).is_err());
        assert!(labels("a").is_err() && labels("a=").is_err() && labels("a=1,a=2").is_err() && labels("A=1").is_err());
    }
}
