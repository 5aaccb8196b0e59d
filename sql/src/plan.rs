//! Plans through DataFusion, without a catalog, a runtime or data: the only table is the stream that is read.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DataFusionError, TableReference};
use datafusion::datasource::provider_as_source;
use datafusion::execution::TaskContext;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner};
use datafusion::logical_expr::{AggregateUDF, HigherOrderUDF, LogicalPlan, ScalarUDF, TableSource, WindowUDF};
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{EmptyRecordBatchStream, ExecutionPlan, SendableRecordBatchStream};
use datafusion::sql::planner::SqlToRel;
use datafusion::sql::sqlparser::ast::{Query, Select, SetExpr, Statement};

/// The stand-in behind the scan of a checked plan: unbounded, without rows.
#[derive(Debug)]
struct Nothing(SchemaRef);

impl PartitionStream for Nothing {
    fn schema(&self) -> &SchemaRef {
        &self.0
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        Box::pin(EmptyRecordBatchStream::new(self.0.clone()))
    }
}

/// Plans queries over one stream.
pub(crate) struct Planner<'a> {
    state: &'a SessionState,
    table: &'a str,
    source: Arc<dyn TableSource>,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(state: &'a SessionState, table: &'a str, schema: SchemaRef) -> Result<Self, DataFusionError> {
        let streaming = StreamingTable::try_new(schema.clone(), vec![Arc::new(Nothing(schema))])?;
        let source = provider_as_source(Arc::new(streaming.with_infinite_table(true)));
        Ok(Self { state, table, source })
    }

    /// Plans `select` in the place of the body of `query`.
    pub(crate) fn logical(&self, query: &Query, select: &Select) -> Result<LogicalPlan, DataFusionError> {
        let mut query = query.clone();
        *query.body = SetExpr::Select(Box::new(select.clone()));
        SqlToRel::new(self).sql_statement_to_plan(Statement::Query(Box::new(query)))
    }

    /// Checks the types of a plan and brings it into the form that runs.
    pub(crate) fn optimized(&self, plan: &LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
        self.state.optimize(plan)
    }

    /// Plans an optimized plan to the end: some arguments are looked at only there.
    pub(crate) fn physical(&self, optimized: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        // Planning waits for nothing: there is no catalog to ask and no file to open.
        let mut planning = pin!(self.state.query_planner().create_physical_plan(optimized, self.state));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..10_000 {
            if let Poll::Ready(plan) = planning.as_mut().poll(&mut context) {
                return plan;
            }
        }
        Err(DataFusionError::Plan("planning this query waits for something outside".to_owned()))
    }
}

impl ContextProvider for Planner<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>, DataFusionError> {
        if name.table() == self.table {
            return Ok(self.source.clone());
        }
        Err(DataFusionError::Plan(format!("there is no stream `{name}`")))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        self.state.relation_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        None
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.state.scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}
