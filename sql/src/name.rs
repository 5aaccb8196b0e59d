//! Names: what one may be, and the nearest one to a slip of the pen.

use datafusion::sql::sqlparser::ast::Ident;

/// As long as in PostgreSQL, and short enough for a folder.
const MAX_LENGTH: usize = 63;

/// Whether `name` is `[a-z_][a-z0-9_]*` of at most 63 characters.
pub(crate) fn is_plain(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    first && name.len() <= MAX_LENGTH && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Why `name` cannot name a stream or a pipeline: message and help.
pub(crate) fn refuse_table(name: &str) -> Option<(String, String)> {
    if let Some(rest) = name.strip_prefix('_') {
        let help = match plain(rest) {
            Some(rest) => format!("names that begin with `_` are Weir's own tables: write `{rest}`"),
            None => "names that begin with `_` are Weir's own tables".to_owned(),
        };
        return Some((format!("`{name}` begins with `_`"), help));
    }
    refuse_column(name)
}

/// Why `name` cannot name a column: message and help.
pub(crate) fn refuse_column(name: &str) -> Option<(String, String)> {
    if is_plain(name) {
        return None;
    }
    if name.len() > MAX_LENGTH {
        return Some((format!("a name of {} characters is too long", name.len()), format!("use up to {MAX_LENGTH}")));
    }
    let rule = "names are lower-case letters, digits and `_`, and do not begin with a digit";
    Some((
        format!("`{name}` cannot be a name"),
        match plain(name) {
            Some(better) => format!("{rule}: write `{better}`"),
            None => rule.to_owned(),
        },
    ))
}

/// A usable name as near to `name` as it gets.
pub(crate) fn plain(name: &str) -> Option<String> {
    let mut better = String::new();
    let mut before_lower = false;
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            if c.is_ascii_uppercase() && before_lower {
                better.push('_');
            }
            before_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
            better.push(c.to_ascii_lowercase());
        } else {
            before_lower = false;
            if !better.is_empty() && !better.ends_with('_') {
                better.push('_');
            }
        }
    }
    let better = better.trim_matches('_').trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
    let better: String = better.chars().take(MAX_LENGTH).collect();
    is_plain(&better).then_some(better)
}

/// The known name that `name` was probably meant to be.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let name = name.to_lowercase();
    // One slip in three letters, two in six: what a reader would also take for a slip.
    let slips = (name.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= slips && *distance < candidate.chars().count())
        .min_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.cmp(b.1)))
        .map(|(_, candidate)| candidate.to_owned())
}

/// `did you mean .. ?`
pub(crate) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(name, known).map(|near| format!("did you mean `{near}`?"))
}

/// An identifier as SQL reads it: lower case unless quoted.
pub(crate) fn normal(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// `` `a`, `b` and `c` ``
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| format!("`{n}`")).collect();
    match names.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "climate_1m", "x9", &"a".repeat(63)] {
            assert_eq!(refuse_table(good), None, "{good}");
        }
        for bad in ["", "_late", "1m", "Climate", "a-b", "é", &"a".repeat(64)] {
            assert!(refuse_table(bad).is_some(), "{bad}");
        }
        assert!(refuse_column("_x").is_none());
        assert_eq!(plain("avgTemp °C").as_deref(), Some("avg_temp_c"));
        assert_eq!(plain("1m").as_deref(), Some("m"));
        assert_eq!(plain("°"), None);
    }

    #[test]
    fn nearest_is_near() {
        let known = ["temperature", "humidity", "status", "ts"];
        assert_eq!(nearest("temprature", known).as_deref(), Some("temperature"));
        assert_eq!(nearest("STATSU", known).as_deref(), Some("status"));
        assert_eq!(nearest("t", known).as_deref(), Some("ts"));
        assert_eq!(nearest("pressure", known), None);
        assert_eq!(list(["a", "b", "c"]), "`a`, `b` and `c`");
    }
}
