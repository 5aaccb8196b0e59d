//! Which functions there are, and which of them a continuous query cannot use.

use std::sync::OnceLock;

use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::Volatility;
use datafusion::sql::sqlparser::ast::{Function, ObjectNamePart};

use crate::{marker, name};

/// Our own, on top of DataFusion's.
const OWN: [&str; 5] = ["tumble", "hop", "session", "window_end", "now"];

/// What a function is to a continuous query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    /// Same arguments, same result.
    Scalar,
    /// Over the rows of a window.
    Aggregate,
    /// `tumble`, `hop`, `session`
    Window,
    /// `window_end`
    WindowEnd,
    /// `now`: the time of receipt.
    Now,
    /// Another result each time, or by the wall clock.
    Volatile,
    /// Only with `OVER`.
    Ranking,
    /// Depends on the order of the input beyond its state.
    OrderDependent,
    /// Several rows out of one, or only for grouping sets.
    Unfit,
    /// There is no such function.
    Unknown,
}

/// Lower-case name of the called function, if it is a plain one.
pub(crate) fn name_of(call: &Function) -> String {
    match call.name.0.as_slice() {
        [ObjectNamePart::Identifier(ident)] => name::normal(ident),
        _ => call.name.to_string(),
    }
}

/// What the function `name` is.
pub(crate) fn sort(state: &SessionState, name: &str) -> Sort {
    match name {
        "tumble" | marker::HOP | marker::SESSION => return Sort::Window,
        "window_end" => return Sort::WindowEnd,
        "now" | "current_timestamp" => return Sort::Now,
        "nth_value" => return Sort::OrderDependent,
        "grouping" | "unnest" => return Sort::Unfit,
        _ => {}
    }
    if let Some(function) = state.scalar_functions().get(name) {
        return match function.signature().volatility {
            Volatility::Immutable => Sort::Scalar,
            Volatility::Stable | Volatility::Volatile => Sort::Volatile,
        };
    }
    if state.aggregate_functions().contains_key(name) {
        Sort::Aggregate
    } else if state.higher_order_functions().contains_key(name) {
        Sort::Scalar
    } else if state.window_functions().contains_key(name) {
        Sort::Ranking
    } else {
        Sort::Unknown
    }
}

/// Names that a slip may have meant.
pub(crate) fn nearest(state: &SessionState, wrong: &str) -> Option<String> {
    static KNOWN: OnceLock<Vec<String>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let all = state.scalar_functions().keys().chain(state.aggregate_functions().keys());
        let mut names: Vec<String> = all.chain(state.higher_order_functions().keys()).cloned().collect();
        names.extend(OWN.map(str::to_owned));
        names.retain(|n| {
            matches!(sort(state, n), Sort::Scalar | Sort::Aggregate | Sort::Window | Sort::WindowEnd | Sort::Now)
        });
        names.sort();
        names
    });
    let long = wrong.to_lowercase();
    name::nearest(&long, known.iter().map(String::as_str)).or_else(|| {
        // `percentile` for `approx_percentile_cont`: a part of a name, if it is long enough to mean something.
        let part = |n: &&String| long.len() >= 5 && (n.contains(&long) || long.contains(n.as_str()) && n.len() >= 5);
        known.iter().filter(part).min_by_key(|n| (n.len().abs_diff(long.len()), (*n).clone())).cloned()
    })
}
