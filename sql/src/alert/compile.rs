//! From a SQL condition to the tree that a device's state machine evaluates.
//!
//! Columns and functions that do not exist are complained about by `expression`; here they are of unknown type, which
//! fits everywhere, so that one mistake is reported once. What is not in the tree is refused with its reason.

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CeilFloorKind, DateTimeField, Expr as Sql, FunctionArg, FunctionArgExpr, FunctionArguments, Ident,
    Spanned, UnaryOperator, Value,
};
use device::alert::{Arithmetic, Comparison, Expr, Function};
use device::schema::{FieldType, Stream};
use storage::schema::SYSTEM_COLUMNS;

use super::head::Condition;
use crate::diagnostic::{Diagnostic, Span, code};
use crate::{function, name};

/// What an expression gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Truth,
    Number,
    Text,
    /// The word NULL, or something that has been complained about.
    Any,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Truth => "true or false",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::Any => "nothing known",
        }
    }

    fn fits(self, other: Self) -> bool {
        self == other || self == Self::Any || other == Self::Any
    }
}

const FUNCTIONS: &str = "conditions know abs, ceil, coalesce, floor, greatest, least, round and sqrt; a field can also be \
                         computed on the device, or looked at in a pipeline";

/// A condition of an alert as a tree; `None` if something is wrong with it, which has been complained about.
pub(super) fn compile(
    file: &str,
    stream: &Stream,
    condition: &Condition,
    clause: &str,
    found: &mut Vec<Diagnostic>,
) -> Option<Expr> {
    let before = found.len();
    let mut compiler = Compiler { file, stream, whole: condition.span, reads: false, found };
    let (expr, kind) = compiler.expr(&condition.expr);
    let reads = compiler.reads;
    let complain = |message: String, help: &str| {
        Diagnostic::error(code::TYPE, file, condition.span, message).help(help.to_owned())
    };
    if !kind.fits(Kind::Truth) {
        let message = format!("{clause} needs a condition that is true or false, but this is {}", kind.name());
        found.push(complain(message, "compare it, as in `temperature > 80`"));
    } else if found.len() == before && !reads {
        let message = format!("{clause} reads no field of `{}`: it never changes", stream.name);
        found.push(complain(message, "compare a field, as in `temperature > 80`"));
    }
    (found.len() == before).then_some(expr)
}

struct Compiler<'a> {
    file: &'a str,
    stream: &'a Stream,
    /// Where the condition stands.
    whole: Span,
    /// Whether a field was read.
    reads: bool,
    found: &'a mut Vec<Diagnostic>,
}

impl Compiler<'_> {
    fn span(&self, expr: &Sql) -> Span {
        let span = Span::from(expr.span());
        if self.whole.holds(span) && span.start < span.end { span } else { self.whole }
    }

    fn complain(&mut self, code: &'static str, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.found.push(Diagnostic::error(code, self.file, span, message).help(help));
    }

    fn refuse(&mut self, expr: &Sql, what: &str) -> (Expr, Kind) {
        let message = format!("an alert looks at each record as it comes, and cannot evaluate {what}");
        let help =
            "compare fields and numbers; AND, OR, NOT, BETWEEN, IN, IS NULL, arithmetic and abs() are there, too";
        let span = self.span(expr);
        self.complain(code::CONDITION, span, message, help);
        (Expr::Null, Kind::Any)
    }

    fn need(&mut self, expr: &Sql, kind: Kind, wanted: Kind, by: &str) {
        if !kind.fits(wanted) {
            let message = format!("{by} takes {}, but this is {}", wanted.name(), kind.name());
            let span = self.span(expr);
            let help = match wanted {
                Kind::Truth => "compare it, as in `temperature > 80`".to_owned(),
                _ => format!("use {}", wanted.name()),
            };
            self.complain(code::TYPE, span, message, help);
        }
    }

    fn truth(&mut self, expr: &Sql, by: &str) -> Expr {
        let (inner, kind) = self.expr(expr);
        self.need(expr, kind, Kind::Truth, by);
        inner
    }

    fn number(&mut self, expr: &Sql, by: &str) -> Expr {
        let (inner, kind) = self.expr(expr);
        self.need(expr, kind, Kind::Number, by);
        inner
    }

    fn expr(&mut self, expr: &Sql) -> (Expr, Kind) {
        match expr {
            Sql::Nested(inner) => self.expr(inner),
            Sql::Identifier(ident) => self.column(ident),
            Sql::CompoundIdentifier(parts) => match parts.as_slice() {
                [_, column] => self.column(column),
                _ => (Expr::Null, Kind::Any),
            },
            Sql::Value(value) => self.value(expr, &value.value),
            Sql::UnaryOp { op, expr: inner } => self.unary(expr, *op, inner),
            Sql::BinaryOp { left, op, right } => self.binary(expr, left, op, right),
            Sql::IsNull(inner) => (Expr::IsNull(Box::new(self.expr(inner).0)), Kind::Truth),
            Sql::IsNotNull(inner) => (not(Expr::IsNull(Box::new(self.expr(inner).0))), Kind::Truth),
            Sql::IsTrue(inner) => (sure(self.truth(inner, "IS TRUE"), true), Kind::Truth),
            Sql::IsNotTrue(inner) => (not(sure(self.truth(inner, "IS NOT TRUE"), true)), Kind::Truth),
            Sql::IsFalse(inner) => (sure(self.truth(inner, "IS FALSE"), false), Kind::Truth),
            Sql::IsNotFalse(inner) => (not(sure(self.truth(inner, "IS NOT FALSE"), false)), Kind::Truth),
            Sql::Between { expr: inner, negated, low, high } => {
                let (value, kind) = self.expr(inner);
                let least = self.side(inner, (&value, kind), low, Comparison::GreaterOrEqual);
                let most = self.side(inner, (&value, kind), high, Comparison::LessOrEqual);
                let all = Expr::All(vec![least, most]);
                (if *negated { not(all) } else { all }, Kind::Truth)
            }
            Sql::InList { expr: inner, list, negated } => {
                let (value, kind) = self.expr(inner);
                let equal = list.iter().map(|item| self.side(inner, (&value, kind), item, Comparison::Equal)).collect();
                let any = Expr::Any(equal);
                (if *negated { not(any) } else { any }, Kind::Truth)
            }
            Sql::Ceil { expr: inner, field } | Sql::Floor { expr: inner, field } => {
                if !matches!(field, CeilFloorKind::DateTimeField(DateTimeField::NoDateTime)) {
                    return self.refuse(expr, "this form of rounding");
                }
                let (name, function) = match expr {
                    Sql::Ceil { .. } => ("ceil()", Function::Ceil),
                    _ => ("floor()", Function::Floor),
                };
                (Expr::Call(function, vec![self.number(inner, name)]), Kind::Number)
            }
            Sql::Function(call) => self.call(call),
            Sql::Subquery(_) | Sql::Exists { .. } | Sql::InSubquery { .. } => (Expr::Null, Kind::Any),
            Sql::Case { .. } => self.refuse(expr, "CASE"),
            Sql::Cast { .. } | Sql::Convert { .. } | Sql::TypedString(_) => self.refuse(expr, "a conversion of types"),
            Sql::Like { .. } | Sql::ILike { .. } | Sql::SimilarTo { .. } | Sql::RLike { .. } => {
                self.refuse(expr, "a pattern")
            }
            Sql::Interval(_) => self.refuse(expr, "a length of time"),
            _ => self.refuse(expr, "this expression"),
        }
    }

    fn column(&mut self, ident: &Ident) -> (Expr, Kind) {
        let name = name::normal(ident);
        if let Some((index, field)) = (0u16..).zip(&self.stream.fields).find(|(_, field)| *field.name == name) {
            self.reads = true;
            let kind = match field.kind {
                FieldType::Bool => Kind::Truth,
                FieldType::I64 | FieldType::U64 | FieldType::F32 | FieldType::F64 => Kind::Number,
                FieldType::Text => Kind::Text,
                FieldType::Bytes | FieldType::F64List | FieldType::I64List => {
                    let message = format!(
                        "an alert compares numbers, texts and truth values; `{name}` is {}",
                        field.kind.sql_name()
                    );
                    self.complain(code::CONDITION, ident.span.into(), message, "compare another field");
                    Kind::Any
                }
            };
            return (Expr::Field(index), kind);
        }
        if name == "device" {
            return (Expr::Device, Kind::Text);
        }
        if SYSTEM_COLUMNS.contains(&name.as_str()) {
            let message = format!("an alert sees the fields of a record and its device; `{name}` is added behind it");
            let help = "compare a field that the device sends";
            self.complain(code::CONDITION, ident.span.into(), message, help);
        }
        (Expr::Null, Kind::Any)
    }

    fn value(&mut self, expr: &Sql, value: &Value) -> (Expr, Kind) {
        match value {
            Value::Number(text, _) => match (text.parse::<i64>(), text.parse::<f64>()) {
                (Ok(whole), _) => (Expr::Int(whole), Kind::Number),
                (_, Ok(number)) if number.is_finite() => (Expr::Float(number), Kind::Number),
                _ => self.refuse(expr, "a number of this size"),
            },
            Value::SingleQuotedString(text) => (Expr::Text(text.as_str().into()), Kind::Text),
            Value::Boolean(value) => (Expr::Bool(*value), Kind::Truth),
            Value::Null => (Expr::Null, Kind::Any),
            _ => self.refuse(expr, "this literal"),
        }
    }

    fn unary(&mut self, expr: &Sql, op: UnaryOperator, inner: &Sql) -> (Expr, Kind) {
        match op {
            UnaryOperator::Plus => (self.number(inner, "`+`"), Kind::Number),
            UnaryOperator::Minus => {
                let inner = match self.number(inner, "`-`") {
                    Expr::Int(value) => value.checked_neg().map_or(Expr::Float(-(value as f64)), Expr::Int),
                    Expr::Float(value) => Expr::Float(-value),
                    inner => Expr::Negative(Box::new(inner)),
                };
                (inner, Kind::Number)
            }
            UnaryOperator::Not => (not(self.truth(inner, "NOT")), Kind::Truth),
            _ => self.refuse(expr, "this operator"),
        }
    }

    fn binary(&mut self, expr: &Sql, left: &Sql, op: &BinaryOperator, right: &Sql) -> (Expr, Kind) {
        use BinaryOperator as Op;
        let comparison = match op {
            Op::And | Op::Or => return (self.junction(left, op, right), Kind::Truth),
            Op::Plus => return self.arithmetic(Arithmetic::Add, left, op, right),
            Op::Minus => return self.arithmetic(Arithmetic::Subtract, left, op, right),
            Op::Multiply => return self.arithmetic(Arithmetic::Multiply, left, op, right),
            Op::Divide => return self.arithmetic(Arithmetic::Divide, left, op, right),
            Op::Modulo => return self.arithmetic(Arithmetic::Remainder, left, op, right),
            Op::Eq => Comparison::Equal,
            Op::NotEq => Comparison::NotEqual,
            Op::Lt => Comparison::Less,
            Op::LtEq => Comparison::LessOrEqual,
            Op::Gt => Comparison::Greater,
            Op::GtEq => Comparison::GreaterOrEqual,
            _ => return self.refuse(expr, &format!("the operator {op}")),
        };
        let (value, kind) = self.expr(left);
        (self.side(left, (&value, kind), right, comparison), Kind::Truth)
    }

    /// AND and OR, flat: a long row of them is no deep tree.
    fn junction(&mut self, left: &Sql, op: &BinaryOperator, right: &Sql) -> Expr {
        let mut rights = vec![right];
        let mut first = left;
        while let Sql::BinaryOp { left, op: inner, right } = first
            && inner == op
        {
            rights.push(right);
            first = left;
        }
        let by = op.to_string();
        let mut parts = vec![self.truth(first, &by)];
        parts.extend(rights.into_iter().rev().map(|part| self.truth(part, &by)));
        if *op == BinaryOperator::And { Expr::All(parts) } else { Expr::Any(parts) }
    }

    fn arithmetic(&mut self, what: Arithmetic, left: &Sql, op: &BinaryOperator, right: &Sql) -> (Expr, Kind) {
        let by = format!("`{op}`");
        let sides = (self.number(left, &by), self.number(right, &by));
        (Expr::Arithmetic(what, Box::new(sides)), Kind::Number)
    }

    /// A comparison with what stands on the right.
    fn side(&mut self, left: &Sql, (value, kind): (&Expr, Kind), right: &Sql, comparison: Comparison) -> Expr {
        let (other, other_kind) = self.expr(right);
        if matches!(value, Expr::Null) && matches!(left, Sql::Value(_))
            || matches!(right, Sql::Value(v) if v.value == Value::Null)
        {
            let span = self.span(right);
            self.complain(code::TYPE, span, "a comparison with NULL is never true", "write IS NULL or IS NOT NULL");
        } else if !kind.fits(other_kind) {
            let message = format!("{} is compared with {}", kind.name(), other_kind.name());
            let span = self.span(right);
            let help = match (kind, other_kind) {
                (Kind::Number, Kind::Text) => "write numbers without quotes",
                (Kind::Text, Kind::Number) => "write texts in single quotes",
                _ => "compare values of one type",
            };
            self.complain(code::TYPE, span, message, help);
        }
        Expr::Compare(comparison, Box::new((value.clone(), other)))
    }

    fn call(&mut self, call: &datafusion::sql::sqlparser::ast::Function) -> (Expr, Kind) {
        let name = function::name_of(call);
        let found = Function::ALL.into_iter().find(|(known, ..)| *known == name);
        let arguments: Vec<&Sql> = match &call.args {
            FunctionArguments::List(list) => list
                .args
                .iter()
                .filter_map(|argument| match argument {
                    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        let values: Vec<(Expr, Kind)> = arguments.iter().map(|argument| self.expr(argument)).collect();
        let span = Span::from(call.name.span());
        let Some((_, function, least, most)) = found else {
            if function::sort(&crate::session_state(), &name) == function::Sort::Scalar {
                let message = format!("an alert looks at each record as it comes, and cannot evaluate {name}()");
                self.complain(code::CONDITION, span, message, FUNCTIONS);
            }
            return (Expr::Null, Kind::Any);
        };
        if values.len() < least || values.len() > most {
            let wants = if most == 1 { "one argument" } else { "one argument or more" };
            let message = format!("{name}() takes {wants} here, not {}", values.len());
            self.complain(code::TYPE, span, message, format!("as in {name}(temperature)"));
            return (Expr::Null, Kind::Any);
        }
        let kind = match function {
            Function::Greatest | Function::Least | Function::Coalesce => {
                values.iter().map(|(_, kind)| *kind).find(|kind| *kind != Kind::Any).unwrap_or(Kind::Any)
            }
            _ => Kind::Number,
        };
        for (argument, (_, own)) in arguments.iter().zip(&values) {
            self.need(argument, *own, kind, &format!("{name}()"));
        }
        (Expr::Call(function, values.into_iter().map(|(value, _)| value).collect()), kind)
    }
}

fn not(expr: Expr) -> Expr {
    Expr::Not(Box::new(expr))
}

/// `IS TRUE`, `IS FALSE`: never null.
fn sure(expr: Expr, wanted: bool) -> Expr {
    let same = Expr::Compare(Comparison::Equal, Box::new((expr, Expr::Bool(wanted))));
    Expr::Call(Function::Coalesce, vec![same, Expr::Bool(false)])
}
