//! What the table of a pipeline will hold: names, types, units, and which columns place its rows.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::logical_expr::{Aggregate, Expr as Logical, LogicalPlan};
use datafusion::sql::sqlparser::ast::{Expr, Select, SelectItem, SelectItemQualifiedWildcardKind, Spanned};

use crate::diagnostic::{Diagnostic, Span, code};
use crate::expression::Scope;
use crate::stream::PARTITION_COLUMNS;
use crate::window::{self, Groups, item_expr};
use crate::{function, name};

/// Aggregates and functions whose result has the unit of their first argument.
const KEEP_UNIT: [&str; 27] = [
    "avg",
    "mean",
    "min",
    "max",
    "sum",
    "median",
    "approx_median",
    "approx_percentile_cont",
    "percentile_cont",
    "approx_percentile_cont_with_weight",
    "quantile_cont",
    "first_value",
    "last_value",
    "any_value",
    "stddev",
    "stddev_pop",
    "stddev_samp",
    "round",
    "trunc",
    "abs",
    "ceil",
    "floor",
    "coalesce",
    "nullif",
    "greatest",
    "least",
    "nvl",
];

/// The name an output column has by itself.
fn own_name(item: &SelectItem) -> Option<(String, Span)> {
    match item {
        SelectItem::ExprWithAlias { alias, .. } => Some((name::normal(alias), alias.span.into())),
        SelectItem::UnnamedExpr(expr) => {
            let ident = match expr {
                Expr::Identifier(ident) => ident,
                Expr::CompoundIdentifier(parts) => parts.last()?,
                _ => return None,
            };
            Some((name::normal(ident), expr.span().into()))
        }
        _ => None,
    }
}

/// Names of the output that the query itself gives.
pub(crate) fn aliases(select: &Select) -> Vec<String> {
    select
        .projection
        .iter()
        .filter(|i| matches!(i, SelectItem::ExprWithAlias { .. }))
        .filter_map(|i| own_name(i).map(|(name, _)| name))
        .collect()
}

/// Complains about output columns as they are written: names, and for windows what must be there.
pub(crate) fn check_items(scope: &Scope<'_>, select: &Select, groups: &Groups, found: &mut Vec<Diagnostic>) {
    let window = groups.window.as_ref();
    let by_device = scope.device.filter(|_| groups.by_device);
    let file = scope.file;
    let mut names: HashMap<String, Span> = HashMap::new();
    for item in &select.projection {
        let span = Span::from(item.span());
        match item {
            SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => wildcard(scope, item, found),
            SelectItem::ExprWithAliases { .. } => {
                let message = "one expression is one output column";
                found.push(Diagnostic::error(code::OUTPUT_NAME, file, span, message).help("write AS and one name"));
            }
            _ => match own_name(item) {
                None => {
                    let suggested = item_expr(item).and_then(suggestion).unwrap_or_else(|| "value".to_owned());
                    let message = "this output column has no name";
                    let help = format!("add AS {suggested}");
                    found.push(Diagnostic::error(code::OUTPUT_NAME, file, span, message).help(help));
                }
                Some((name, span)) => {
                    if let Some((message, help)) = unusable(&name) {
                        found.push(Diagnostic::error(code::OUTPUT_NAME, file, span, message).help(help));
                    } else if let Some(first) = names.get(&name) {
                        let message = format!("two output columns are called `{name}`");
                        let at = Some((file.to_owned(), first.start));
                        found.push(
                            Diagnostic::error(code::OUTPUT_TWICE, file, span, message)
                                .help("give one of them another name with AS")
                                .note("the first is here", at),
                        );
                    }
                    names.entry(name).or_insert(span);
                }
            },
        }
    }
    let Some(window) = window else { return };
    let at = Span::from(select.select_token.0.span);
    let has = |test: &dyn Fn(&Expr) -> bool| select.projection.iter().filter_map(item_expr).any(test);
    if !has(&|e| window::is_window(scope, e, window)) {
        let message = "the start of the window is not in the output";
        let (name, ts) = (window.name(), scope.written(scope.time));
        let help = format!("add {name}({ts}, ..) AS window_start to SELECT: files are partitioned by it");
        found.push(Diagnostic::error(code::OUTPUT_MISSING, file, at, message).help(help));
    }
    let Some(device) = by_device else { return };
    if !has(&|e| window::column(scope, e).is_some_and(|c| c == device)) {
        let message = format!("`{device}` is not in the output");
        let help = format!("add {} to SELECT: rows are sorted by it", scope.written(device));
        found.push(Diagnostic::error(code::OUTPUT_MISSING, file, at, message).help(help));
    }
}

fn wildcard(scope: &Scope<'_>, item: &SelectItem, found: &mut Vec<Diagnostic>) {
    let span = Span::from(item.span());
    if scope.grouped {
        let message = "`*` has no meaning beside GROUP BY";
        let help = "name the groups and the aggregates";
        found.push(Diagnostic::error(code::NOT_GROUPED, scope.file, span, message).help(help));
    } else if let SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(of), _) = item
        && of.to_string().to_lowercase() != scope.alias
    {
        let message = format!("`{of}` is not what this query reads");
        let help = format!("write `{}.*`", scope.alias);
        found.push(Diagnostic::error(code::UNKNOWN_COLUMN, scope.file, span, message).help(help));
    }
}

fn unusable(name: &str) -> Option<(String, String)> {
    if PARTITION_COLUMNS.contains(&name) {
        let message = format!("`{name}` is the name of a partition folder");
        return Some((message, "choose another name with AS".to_owned()));
    }
    name::refuse_column(name)
}

/// A name for an expression: `avg(temperature)` suggests `avg_temperature`.
fn suggestion(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Function(call) => match function::name_of(call).as_str() {
            "tumble" | "hop" | "session" => Some("window_start".to_owned()),
            "window_end" => Some("window_end".to_owned()),
            "count" => Some("n".to_owned()),
            name => {
                let args = call.args.to_string();
                let column = args.trim_matches(['(', ')']).split([',', ' ', '(']).next().unwrap_or_default();
                name::plain(&format!("{column} {name}"))
            }
        },
        Expr::Cast { expr, .. } | Expr::Nested(expr) | Expr::UnaryOp { expr, .. } => match expr.as_ref() {
            Expr::Identifier(ident) => name::plain(&ident.value),
            other => suggestion(other),
        },
        _ => None,
    }
}

/// The output of a planned query.
pub(crate) struct Output {
    pub(crate) schema: SchemaRef,
    pub(crate) time_column: String,
    pub(crate) device_column: Option<String>,
}

/// Brings together the names of the logical plan, the types of the physical one, and the units of the stream.
/// `group`: the name of the window among the groups, if there is one.
pub(crate) fn read(
    scope: &Scope<'_>,
    select: &Select,
    logical: &LogicalPlan,
    physical: &Schema,
    source: &Schema,
    group: Option<&str>,
    found: &mut Vec<Diagnostic>,
) -> Option<Output> {
    let before = found.len();
    let whole = Span::from(select.select_token.0.span);
    let exprs: &[Logical] = match logical {
        LogicalPlan::Projection(projection) => &projection.expr,
        _ => &[],
    };
    // Items and columns correspond one to one unless there is a wildcard.
    let span_of = |index: usize| match select.projection.get(index) {
        Some(item) if select.projection.len() == physical.fields().len() => item.span().into(),
        _ => whole,
    };
    let units = Units::new(logical, source);
    let (mut fields, mut time, mut device) = (Vec::new(), None, None);
    for (index, field) in physical.fields().iter().enumerate() {
        let name = field.name();
        if let Some(reason) = unstorable(field.data_type()) {
            let message = format!("files cannot hold {reason} (column `{name}`)");
            let help = match field.data_type() {
                DataType::Null => "give it a type, as in CAST(NULL AS DOUBLE)",
                DataType::Interval(_) => "turn it into a number, as in extract(epoch FROM ..)",
                _ => "cast it to another type",
            };
            found.push(Diagnostic::error(code::OUTPUT_TYPE, scope.file, span_of(index), message).help(help));
        }
        let expr = exprs.get(index);
        let column = expr.and_then(column_of);
        if time.is_none() && column.is_some_and(|c| c == group.unwrap_or(scope.time)) {
            time = Some(name.clone());
        }
        if device.is_none() && column.is_some() && column == scope.device {
            device = Some(name.clone());
        }
        let metadata = expr.map(|e| units.metadata(e)).unwrap_or_default();
        fields.push(Field::new(name, field.data_type().clone(), field.is_nullable()).with_metadata(metadata));
    }
    if time.is_none() && group.is_none() {
        let message = format!("`{}` is not in the output", scope.time);
        let help = format!("add {} to SELECT: files are partitioned by it", scope.written(scope.time));
        found.push(Diagnostic::error(code::OUTPUT_MISSING, scope.file, whole, message).help(help));
    }
    let time_column = time?;
    (found.len() == before).then(|| Output {
        schema: Arc::new(Schema::new(fields)),
        time_column,
        device_column: device,
    })
}

/// The column that an output column passes on.
fn column_of(expr: &Logical) -> Option<&str> {
    match expr {
        Logical::Alias(alias) => column_of(&alias.expr),
        Logical::Column(column) => Some(&column.name),
        _ => None,
    }
}

/// What Parquet files cannot hold, or readers cannot read.
fn unstorable(kind: &DataType) -> Option<String> {
    match kind {
        DataType::Null => Some("a column of nothing but NULL".to_owned()),
        DataType::Interval(_) => Some("an interval".to_owned()),
        DataType::Union(..) | DataType::RunEndEncoded(..) | DataType::Dictionary(..) => {
            Some(format!("the type {kind}"))
        }
        DataType::List(of) | DataType::LargeList(of) | DataType::FixedSizeList(of, _) => unstorable(of.data_type()),
        DataType::ListView(_) | DataType::LargeListView(_) => Some(format!("the type {kind}")),
        DataType::Map(of, _) => unstorable(of.data_type()),
        DataType::Struct(fields) if fields.is_empty() => Some("a struct without fields".to_owned()),
        DataType::Struct(fields) => fields.iter().find_map(|f| unstorable(f.data_type())),
        _ => None,
    }
}

/// Which unit an expression has.
struct Units<'a> {
    aggregate: Option<&'a Aggregate>,
    source: &'a Schema,
}

impl<'a> Units<'a> {
    fn new(logical: &'a LogicalPlan, source: &'a Schema) -> Self {
        let mut plan = logical;
        loop {
            if let LogicalPlan::Aggregate(aggregate) = plan {
                return Self { aggregate: Some(aggregate), source };
            }
            let inputs = plan.inputs();
            match inputs.as_slice() {
                [only] => plan = only,
                _ => return Self { aggregate: None, source },
            }
        }
    }

    fn metadata(&self, expr: &Logical) -> HashMap<String, String> {
        let mut metadata = HashMap::new();
        if let Some(unit) = self.unit(expr) {
            metadata.insert("unit".to_owned(), unit);
        }
        let plain = column_of(expr).filter(|c| self.aggregated(c).is_none());
        if let Some(text) = plain.and_then(|c| self.of_column(c, "description")) {
            metadata.insert("description".to_owned(), text);
        }
        metadata
    }

    /// The aggregate or group that an output column of the aggregate stands for.
    fn aggregated(&self, column: &str) -> Option<&'a Logical> {
        let aggregate = self.aggregate?;
        let all = aggregate.aggr_expr.iter().chain(&aggregate.group_expr);
        all.filter(|e| !matches!(e, Logical::Column(_))).find(|e| e.schema_name().to_string() == column)
    }

    fn of_column(&self, column: &str, key: &str) -> Option<String> {
        self.source.field_with_name(column).ok()?.metadata().get(key).cloned()
    }

    fn unit(&self, expr: &Logical) -> Option<String> {
        match expr {
            Logical::Alias(alias) => self.unit(&alias.expr),
            Logical::Cast(cast) => self.unit(&cast.expr),
            Logical::Negative(inner) => self.unit(inner),
            Logical::Column(column) => match self.aggregated(&column.name) {
                Some(expr) => self.unit(expr),
                None => self.of_column(&column.name, "unit"),
            },
            Logical::AggregateFunction(call) if KEEP_UNIT.contains(&call.func.name()) => {
                self.unit(call.params.args.first()?)
            }
            Logical::ScalarFunction(call) if KEEP_UNIT.contains(&call.func.name()) => self.unit(call.args.first()?),
            _ => None,
        }
    }
}
