//! The DataFusion configuration that checking and running share.
//!
//! A plan that was checked under one configuration and run under another could fail or, worse, differ. What is
//! changed from DataFusion's defaults is what gave wrong results or errors over endless input:
//!
//! * one partition: a shard is the unit of parallel work, and a repartition would mix the order of the log;
//! * no dynamic filters: they carry what one batch taught into the next one;
//! * no rule that makes two aggregates out of one `count(DISTINCT)`, that merges or limits aggregates, or that
//!   answers an aggregate from statistics: the window operator needs the one aggregate of the query as it stands;
//! * no sanity check: it refuses aggregates over unbounded input, which is what the window operator is for;
//! * text stays `Utf8` and times stay in UTC, as files hold them;
//! * where a window is more than its key (`marker`), no rule that moves conditions on it to the rows.

use std::sync::OnceLock;

use datafusion::common::config::ConfigOptions;
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{FunctionRegistry, SessionStateBuilder};
use datafusion::optimizer::Optimizer;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::marker;
use crate::project::Kind;

/// Options that differ from DataFusion's defaults. `ConfigOptions::set`, unlike the struct's fields, also reaches
/// the options that hang on one.
const OPTIONS: [(&str, &str); 9] = [
    ("datafusion.execution.target_partitions", "1"),
    ("datafusion.execution.time_zone", "UTC"),
    // Above 1: a partial aggregate never decides to pass rows through.
    ("datafusion.execution.skip_partial_aggregation_probe_ratio_threshold", "2"),
    ("datafusion.optimizer.enable_dynamic_filter_pushdown", "false"),
    ("datafusion.optimizer.enable_round_robin_repartition", "false"),
    ("datafusion.optimizer.repartition_aggregations", "false"),
    ("datafusion.sql_parser.collect_spans", "true"),
    ("datafusion.sql_parser.map_string_types_to_utf8view", "false"),
    ("datafusion.catalog.information_schema", "false"),
];

const NO_LOGICAL: [&str; 1] = ["single_distinct_aggregation_to_group_by"];

const NO_PHYSICAL: [&str; 6] = [
    "aggregate_statistics",
    "CombinePartialFinalAggregate",
    "LimitAggregation",
    "LimitedDistinctAggregation",
    "SanityCheckPlan",
    "TopKRepartition",
];

/// Rules that move conditions below aggregates, for windows whose key is not their start.
const NO_MOVE: [&str; 3] = ["push_down_filter", "FilterPushdown", "FilterPushdown(Post)"];

/// A session to plan and run pipelines in. Functions are those of DataFusion.
pub fn session() -> SessionContext {
    SessionContext::new_with_state(session_state())
}

/// The state of [`session`]: made once, then copied.
pub fn session_state() -> SessionState {
    static STATE: OnceLock<SessionState> = OnceLock::new();
    STATE.get_or_init(|| build(&[])).clone()
}

/// The state to plan a query with that window in.
pub fn session_state_for(window: Option<Kind>) -> SessionState {
    static STATE: OnceLock<SessionState> = OnceLock::new();
    match window {
        None | Some(Kind::Tumble) => session_state(),
        Some(Kind::Hop { .. } | Kind::Session) => STATE.get_or_init(|| build(&NO_MOVE)).clone(),
    }
}

fn build(without: &[&str]) -> SessionState {
    let mut options = ConfigOptions::new();
    for (key, value) in OPTIONS {
        // Only a DataFusion without this option can refuse; the test below sees that none does.
        let _ = options.set(key, value);
    }
    let mut logical = Optimizer::new().rules;
    logical.retain(|rule| !NO_LOGICAL.contains(&rule.name()) && !without.contains(&rule.name()));
    let mut physical = PhysicalOptimizer::new().rules;
    physical.retain(|rule| !NO_PHYSICAL.contains(&rule.name()) && !without.contains(&rule.name()));
    let mut state = SessionStateBuilder::new()
        .with_config(SessionConfig::from(options))
        .with_default_features()
        .with_optimizer_rules(logical)
        .with_physical_optimizer_rules(physical)
        .build();
    for function in marker::functions() {
        // The registry of a session refuses no function.
        let _ = state.register_udf(function);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_and_rule_still_exists() {
        let state = session_state();
        let entries = state.config_options().entries();
        for (key, value) in OPTIONS {
            let entry = entries.iter().find(|e| e.key == key).unwrap_or_else(|| panic!("{key} is gone"));
            assert_eq!(entry.value.as_deref(), Some(value), "{key}");
        }
        for key in ["join", "topk", "aggregate"] {
            let key = format!("datafusion.optimizer.enable_{key}_dynamic_filter_pushdown");
            let entry = entries.iter().find(|e| e.key == key).unwrap_or_else(|| panic!("{key} is gone"));
            assert_eq!(entry.value.as_deref(), Some("false"), "{key}");
        }
        let known: Vec<_> = Optimizer::new().rules.iter().map(|r| r.name().to_owned()).collect();
        assert!(known.iter().any(|k| k == NO_MOVE[0]), "{known:?}");
        assert!(NO_LOGICAL.iter().all(|r| known.iter().any(|k| k == r)), "{known:?}");
        let known: Vec<_> = PhysicalOptimizer::new().rules.iter().map(|r| r.name().to_owned()).collect();
        assert!(NO_MOVE[1..].iter().all(|r| known.iter().any(|k| k == r)), "{known:?}");
        assert!(NO_PHYSICAL.iter().all(|r| known.iter().any(|k| k == r)), "{known:?}");
        assert!(state.optimizers().iter().all(|r| !NO_LOGICAL.contains(&r.name())));
        assert!(state.physical_optimizers().iter().all(|r| !NO_PHYSICAL.contains(&r.name())));
    }
}
