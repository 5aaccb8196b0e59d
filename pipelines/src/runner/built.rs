//! The pipelines of a project, made from it and from the states that were saved.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use device::entry::Partial;

use super::{Parts, RunnerError, Status};
use crate::heard::{AllHeard, Heard, stream_of};
use crate::merge::Merge;
use crate::operator::joined;
use crate::output::{self, TableSpec};
use crate::shared::owner;
use crate::{Pipeline, PipelineError};

/// What a project means to a runner.
pub(super) struct Built {
    /// Each behind those that it reads.
    pub(super) running: Vec<Running>,
    /// Which of them read a stream, by its name.
    pub(super) by_source: HashMap<String, Vec<usize>>,
    /// How their tables are written.
    pub(super) specs: BTreeMap<String, TableSpec>,
}

/// A pipeline of this shard.
pub(super) struct Running {
    pub(super) pipeline: Pipeline,
    /// Merges the groups of all shards; in the one shard that does.
    pub(super) merge: Option<Merge>,
    /// The pipelines that read its result.
    pub(super) feeds: Vec<usize>,
}

/// What was saved of a pipeline.
#[derive(Debug, Default)]
pub(super) struct Saved {
    /// Its own state.
    pub(super) own: Option<Bytes>,
    /// What it had merged.
    pub(super) merged: Option<Bytes>,
}

impl Built {
    /// Gives a contribution to the pipeline it is for. `false`: there is none of that meaning.
    pub(super) fn take(&mut self, partial: &Partial) -> Result<bool, RunnerError> {
        let merging = self.running.iter_mut().filter(|running| running.pipeline.name() == partial.pipeline);
        let Some(merge) = merging.filter_map(|running| running.merge.as_mut()).next() else { return Ok(false) };
        merge.take(partial).map_err(|source| RunnerError::Pipeline { name: partial.pipeline.clone(), source })
    }

    /// Says which times open windows still need.
    pub(super) fn publish(&self, status: &Status) -> Result<(), RunnerError> {
        let mut needed: BTreeMap<String, Vec<(i64, i64)>> = BTreeMap::new();
        let results = self.running.iter().map(|running| (running.pipeline.name(), &running.feeds));
        let streams = self.by_source.iter().map(|(stream, feeds)| (stream.as_str(), feeds));
        for (source, feeds) in streams.chain(results) {
            for Running { pipeline, merge, .. } in feeds.iter().filter_map(|at| self.running.get(*at)) {
                let failed = |source| RunnerError::Pipeline { name: pipeline.name().to_owned(), source };
                let ranges = needed.entry(source.to_owned()).or_default();
                ranges.extend(pipeline.needed().map_err(failed)?);
                ranges.extend(merge.as_ref().map(Merge::needed).transpose().map_err(failed)?.into_iter().flatten());
            }
        }
        *status.needed.lock() = needed.into_iter().map(|(table, ranges)| (table, joined(ranges))).collect();
        Ok(())
    }
}

/// The pipelines of a project. Those whose meaning is that of a state in `states` go on from it, the others start
/// anew, states that belong to none are left.
pub(super) fn build(
    parts: &Parts,
    project: &sql::Project,
    states: &mut HashMap<String, Saved>,
    heard: &AllHeard,
) -> Result<Built, RunnerError> {
    let mut running: Vec<Running> = Vec::with_capacity(project.pipelines.len());
    let mut by_source: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, plan) in project.pipelines.iter().enumerate() {
        let failed = |source| RunnerError::Pipeline { name: plan.name.clone(), source };
        let saved = states.remove(&plan.name).unwrap_or_default();
        let told = told(project, &running, plan);
        let heard = match &told {
            Told::Of(heard) => Some(heard),
            Told::Stream(name) => heard.of(name),
        };
        let own = one(parts, plan, saved, heard).map_err(failed)?;
        if plan.reads.pipeline {
            let read = running.iter_mut().find(|running| running.pipeline.name() == plan.source);
            let unknown = || RunnerError::Rows(format!("pipeline {} reads an unknown pipeline", plan.name));
            read.ok_or_else(unknown)?.feeds.push(at);
        } else {
            let second = plan.stream_join.iter().map(|join| &join.source).filter(|second| **second != plan.source);
            for stream in [&plan.source].into_iter().chain(second) {
                by_source.entry(stream.clone()).or_default().push(at);
            }
        }
        running.push(own);
    }
    Ok(Built { running, by_source, specs: output::table_specs(project, &parts.catalog) })
}

/// Who knows how far devices are in what a pipeline reads.
enum Told<'a> {
    Stream(&'a str),
    Of(Heard),
}

fn told<'a>(project: &'a sql::Project, running: &[Running], plan: &'a sql::PipelinePlan) -> Told<'a> {
    let mut plan = plan;
    loop {
        let read = running.iter().find(|running| plan.reads.pipeline && running.pipeline.name() == plan.source);
        if let Some(heard) = read.and_then(|running| running.pipeline.told()) {
            return Told::Of(heard);
        }
        match project.pipeline(&plan.source) {
            // Row by row: as far as what that one reads.
            Some(through) if plan.reads.pipeline => plan = through,
            _ => return Told::Stream(&plan.source),
        }
    }
}

/// How far the devices of streams are: as it was kept, or as pipelines over them know it.
pub(super) fn heard(project: &sql::Project, states: &mut HashMap<String, Saved>) -> Result<AllHeard, RunnerError> {
    let kept = states.extract_if(|name, _| stream_of(name).is_some());
    let kept: HashMap<String, Bytes> = kept.filter_map(|(name, saved)| Some((name, saved.own?))).collect();
    let of = |name: &str| states.get(name).and_then(|saved| saved.own.as_ref());
    AllHeard::restore(project, kept, of).map_err(|error| RunnerError::Rows(error.to_string()))
}

fn one(parts: &Parts, plan: &sql::PipelinePlan, saved: Saved, heard: Option<&Heard>) -> Result<Running, PipelineError> {
    let source = || plan.reads.columns.clone();
    let pipeline = match &saved.own {
        Some(state) if Pipeline::matches(plan, state)? => Pipeline::restore(plan, source(), state)?,
        Some(state) => {
            tracing::warn!(shard = %parts.shard, pipeline = plan.name, "its meaning, or the query engine, has \
                changed: the windows that were open are given up, it begins with those that open now");
            Pipeline::succeed(plan, source(), state, heard)?
        }
        None => Pipeline::begin(plan, source(), heard)?,
    };
    let merging = pipeline.is_shared() && owner(&plan.name, parts.shards) == parts.shard;
    let merge = match saved.merged {
        _ if !merging => None,
        None => Some(Merge::new(plan, &source(), parts.shards, i64::MIN)?),
        Some(state) if Pipeline::matches(plan, &state)? => Some(Merge::restore(plan, &source(), parts.shards, &state)?),
        Some(state) => Some(Merge::succeed(plan, &source(), parts.shards, &state)?),
    };
    Ok(Running { pipeline, merge, feeds: Vec::new() })
}
