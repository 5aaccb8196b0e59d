//! The pipelines of a project, made from it and from the states that were saved.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::{Parts, RunnerError};
use crate::Pipeline;
use crate::output::{self, TableSpec};

/// What a project means to a runner.
pub(super) struct Built {
    pub(super) pipelines: Vec<Pipeline>,
    /// Which of them read a stream, by its name.
    pub(super) by_source: HashMap<String, Vec<usize>>,
    /// How their tables are written.
    pub(super) specs: BTreeMap<String, TableSpec>,
}

/// The pipelines of a project. Those whose meaning is that of a state in `states` go on from it, the others start
/// anew; states that belong to none are left.
pub(super) fn build(
    parts: &Parts,
    project: &sql::Project,
    states: &mut HashMap<String, Bytes>,
) -> Result<Built, RunnerError> {
    let mut pipelines = Vec::new();
    let mut by_source: HashMap<String, Vec<usize>> = HashMap::new();
    for plan in &project.pipelines {
        let failed = |source| RunnerError::Pipeline { name: plan.name.clone(), source };
        let source = parts
            .catalog
            .named(&plan.source)
            .and_then(|index| parts.catalog.stream(index))
            .map(|stream| storage::schema::stream_schema(stream))
            .ok_or_else(|| RunnerError::Rows(format!("pipeline {} reads an unknown stream", plan.name)))?;
        let pipeline = match states.remove(&plan.name) {
            Some(state) if Pipeline::matches(plan, &state).map_err(failed)? => {
                Pipeline::restore(plan, source, &state).map_err(failed)?
            }
            Some(state) => {
                tracing::warn!(shard = %parts.shard, pipeline = plan.name, "its meaning, or the query engine, has \
                    changed: the windows that were open are given up, it begins with those that open now");
                Pipeline::succeed(plan, source, &state).map_err(failed)?
            }
            None => Pipeline::new(plan, source).map_err(failed)?,
        };
        by_source.entry(plan.source.clone()).or_default().push(pipelines.len());
        pipelines.push(pipeline);
    }
    Ok(Built { pipelines, by_source, specs: output::table_specs(project, &parts.catalog) })
}
