//! What stands in `WITH (...)` and `OPTIONS (...)`: names with literal values, read one by one and strictly.
//!
//! A reader takes the options it knows; what is left over is unknown, and [`Options::finish`] says so.

use crate::diagnostic::{Diagnostic, Span, code};
use crate::interval;
use crate::name;
use crate::project::Granularity;

/// A literal value of an option.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    /// `'text'`
    Text(String),
    /// A number as it is written, with its sign.
    Number(String),
    /// `INTERVAL 'text'`, perhaps with a unit after it.
    Interval(String, Option<String>),
    /// A bare word.
    Word(String),
}

/// `name = value`.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) name_span: Span,
    pub(crate) value: Literal,
    pub(crate) span: Span,
}

/// What streams and pipelines say of their tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableOptions {
    pub(crate) lateness_ns: Option<i64>,
    pub(crate) retain_ns: Option<i64>,
    pub(crate) compact_ns: Option<i64>,
    pub(crate) partition: Granularity,
}

/// The options of one statement or column, while they are read.
pub(crate) struct Options<'a> {
    file: &'a str,
    left: Vec<&'a Setting>,
    known: Vec<&'static str>,
    found: Vec<Diagnostic>,
}

impl<'a> Options<'a> {
    /// Complains about names that are given twice.
    pub(crate) fn new(file: &'a str, settings: &'a [Setting]) -> Self {
        let mut options = Self { file, left: Vec::new(), known: Vec::new(), found: Vec::new() };
        for setting in settings {
            if let Some(first) = options.left.iter().find(|s| s.name == setting.name) {
                let at = Some((file.to_owned(), first.name_span.start));
                let message = format!("option `{}` is given twice", setting.name);
                options.found.push(
                    Diagnostic::error(code::BAD_OPTION, file, setting.name_span, message)
                        .help("keep one of them")
                        .note("first given here", at),
                );
            } else {
                options.left.push(setting);
            }
        }
        options
    }

    /// Takes the option of that name.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<&'a Setting> {
        self.known.push(name);
        let at = self.left.iter().position(|s| s.name == name)?;
        Some(self.left.remove(at))
    }

    /// Records a wrong value.
    pub(crate) fn wrong(&mut self, setting: &Setting, message: impl Into<String>, help: impl Into<String>) {
        let diagnostic = Diagnostic::error(code::BAD_OPTION, self.file, setting.span, message);
        self.found.push(diagnostic.help(help));
    }

    /// A text that `read` accepts; otherwise it says what would be right.
    pub(crate) fn text<T>(&mut self, name: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let setting = self.take(name)?;
        let result = match &setting.value {
            Literal::Text(text) => read(text).map_err(|help| (format!("'{text}' is not a {name}"), help)),
            _ => Err((format!("`{name}` is a text"), "write it in single quotes".to_owned())),
        };
        self.keep(setting, result)
    }

    /// A whole number within `range`.
    pub(crate) fn whole(&mut self, name: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let setting = self.take(name)?;
        let value = match &setting.value {
            Literal::Number(number) => number.parse::<i64>().ok().filter(|n| range.contains(n)),
            _ => None,
        };
        let (from, to) = range.into_inner();
        let complaint = || (format!("`{name}` is a whole number from {from} to {to}"), format!("as in {name} = 1"));
        self.keep(setting, value.ok_or_else(complaint))
    }

    /// A length of time, at least `least` nanoseconds.
    pub(crate) fn duration(&mut self, name: &'static str, least: i64) -> Option<i64> {
        let setting = self.take(name)?;
        let result = match &setting.value {
            Literal::Interval(text, unit) => match interval::parse(text, unit.as_deref()) {
                Err(wrong) => Err(wrong.explain(text)),
                Ok(ns) if ns < least => {
                    let least = if least == 0 { "not be negative" } else { "be longer than nothing" };
                    Err((format!("`{name}` must {least}"), "write a positive length".to_owned()))
                }
                Ok(ns) => Ok(ns),
            },
            Literal::Text(text) => Err((format!("`{name}` is a length of time"), format!("write INTERVAL '{text}'"))),
            _ => Err((format!("`{name}` is a length of time"), "write INTERVAL '30 seconds'".to_owned())),
        };
        self.keep(setting, result)
    }

    /// The options that streams and pipelines share: `lateness`, `retain`, `compact`, `partition`.
    pub(crate) fn table(&mut self) -> TableOptions {
        let lateness_ns = self.duration("lateness", 0);
        let retain_ns = self.duration("retain", 1);
        let given = self.left.iter().find(|setting| setting.name == "compact").copied();
        let compact_ns = self.duration("compact", 0);
        if let (Some(setting), Some(compact), Some(retain)) = (given, compact_ns, retain_ns)
            && compact >= retain
        {
            let message = "`compact` is not shorter than `retain`: files would go before they are merged";
            self.wrong(setting, message, "shorten it, or leave it out");
        }
        let partition = self.text("partition", |text| match text {
            "hour" => Ok(Granularity::Hour),
            "day" => Ok(Granularity::Day),
            _ => Err("write 'hour' or 'day'".to_owned()),
        });
        TableOptions { lateness_ns, retain_ns, compact_ns, partition: partition.unwrap_or(Granularity::Hour) }
    }

    fn keep<T>(&mut self, setting: &Setting, result: Result<T, (String, String)>) -> Option<T> {
        result.map_err(|(message, help)| self.wrong(setting, message, help)).ok()
    }

    /// Everything that was wrong, unknown options included.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        for setting in std::mem::take(&mut self.left) {
            let message = format!("there is no option `{}` here", setting.name);
            let help = name::did_you_mean(&setting.name, self.known.iter().copied())
                .unwrap_or_else(|| format!("the options are {}", name::list(self.known.iter().copied())));
            self.found.push(Diagnostic::error(code::UNKNOWN_OPTION, self.file, setting.name_span, message).help(help));
        }
        self.found
    }
}
