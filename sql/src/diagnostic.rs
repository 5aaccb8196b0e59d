//! What is wrong with a pipeline file, and where.
//!
//! Codes are stable: people search for them and tools match on them, so a code is never given a second meaning.

use datafusion::sql::sqlparser::tokenizer as sp;

/// A place in a file. Lines and columns count from 1; a column is a character, not a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Character in the line, from 1.
    pub column: usize,
}

/// From `start` to just before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First character.
    pub start: Position,
    /// Just after the last character.
    pub end: Position,
}

impl Span {
    /// Whether `other` lies inside this span.
    pub(crate) fn holds(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl From<sp::Span> for Span {
    fn from(span: sp::Span) -> Self {
        let at = |l: sp::Location| Position { line: (l.line as usize).max(1), column: (l.column as usize).max(1) };
        let (start, end) = (at(span.start), at(span.end));
        Self { start, end: end.max(start) }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The project cannot run.
    Error,
    /// The project can run, but probably does not do what was meant.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A further fact about a diagnostic, perhaps somewhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it says.
    pub message: String,
    /// The file and place it speaks of.
    pub at: Option<(String, Position)>,
}

/// One mistake in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code, one of [`code`].
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong: one sentence, lower case, without a full stop.
    pub message: String,
    /// Name of the file, as in [`crate::SourceFile::name`].
    pub file: String,
    /// Line of the first character, from 1.
    pub line: usize,
    /// First character in its line, from 1.
    pub column: usize,
    /// Just after the last character.
    pub end: Position,
    /// What to do about it.
    pub help: Option<String>,
    /// Further facts.
    pub notes: Vec<Note>,
}

impl Diagnostic {
    pub(crate) fn error(code: &'static str, file: &str, span: Span, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            file: file.to_owned(),
            line: span.start.line,
            column: span.start.column,
            end: span.end,
            help: None,
            notes: Vec::new(),
        }
    }

    pub(crate) fn warning(code: &'static str, file: &str, span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, file, span, message) }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }

    pub(crate) fn note(mut self, message: impl Into<String>, at: Option<(String, Position)>) -> Self {
        self.notes.push(Note { message: message.into(), at });
        self
    }

    /// The characters it speaks of.
    pub fn span(&self) -> Span {
        Span { start: Position { line: self.line, column: self.column }, end: self.end }
    }
}

/// The stable codes.
pub mod code {
    /// The text cannot be cut into words: an open quote, a stray character.
    pub const TOKEN: &str = "W0001";
    /// The words do not form a statement.
    pub const SYNTAX: &str = "W0002";
    /// A statement that pipeline files do not hold.
    pub const STATEMENT: &str = "W0003";
    /// Something planned that this version cannot run yet.
    pub const NOT_YET: &str = "W0004";
    /// Too large or nested too deeply to check.
    pub const TOO_LARGE: &str = "W0005";

    /// A name that cannot be one.
    pub const BAD_NAME: &str = "W0101";
    /// A name given twice.
    pub const NAME_TAKEN: &str = "W0102";
    /// An option that does not exist.
    pub const UNKNOWN_OPTION: &str = "W0103";
    /// An option with a wrong value, or given twice.
    pub const BAD_OPTION: &str = "W0104";
    /// A column type that streams cannot hold.
    pub const BAD_TYPE: &str = "W0105";
    /// A column name that Weir needs itself.
    pub const RESERVED_COLUMN: &str = "W0106";
    /// Field ids that clash or are only partly given.
    pub const FIELD_ID: &str = "W0107";
    /// A schema id used twice.
    pub const SCHEMA_ID: &str = "W0108";
    /// A reference table whose rows cannot be read.
    pub const REFERENCE: &str = "W0110";
    /// A reference table whose rows cannot be read now, because an object store does not answer.
    pub const UNREACHABLE: &str = "W0111";
    /// A stream that may not follow upon what the data directory knows of it.
    pub const EVOLUTION: &str = "W0112";
    /// A column constraint that streams cannot keep.
    pub const CONSTRAINT: &str = "W0109";

    /// A stream that does not exist.
    pub const UNKNOWN_TABLE: &str = "W0201";
    /// A column that does not exist.
    pub const UNKNOWN_COLUMN: &str = "W0202";
    /// A function that does not exist.
    pub const UNKNOWN_FUNCTION: &str = "W0203";

    /// An aggregate over an endless stream without a window.
    pub const NO_WINDOW: &str = "W0301";
    /// A window that cannot be one.
    pub const BAD_WINDOW: &str = "W0302";
    /// A clause that has no meaning over an endless stream.
    pub const UNBOUNDED: &str = "W0303";
    /// A function whose result changes between runs.
    pub const VOLATILE: &str = "W0304";
    /// An aggregate that cannot be kept as a state.
    pub const ORDER_DEPENDENT: &str = "W0305";
    /// More than one source.
    pub const SOURCES: &str = "W0306";
    /// A query inside the query.
    pub const SUBQUERY: &str = "W0307";
    /// Groups without the device.
    /// A form of `GROUP BY` that pipelines do not have.
    pub const GROUPING: &str = "W0309";
    /// A query that can never give a row.
    pub const EMPTY: &str = "W0310";

    /// Values of the wrong type, or a wrong number of them.
    pub const TYPE: &str = "W0401";
    /// A column that is neither grouped nor aggregated.
    pub const NOT_GROUPED: &str = "W0402";
    /// Any other complaint of the planner.
    pub const PLAN: &str = "W0403";

    /// An output column without a usable name.
    pub const OUTPUT_NAME: &str = "W0501";
    /// Two output columns of one name.
    pub const OUTPUT_TWICE: &str = "W0502";
    /// The column that files are partitioned by, or the device, is not in the output.
    pub const OUTPUT_MISSING: &str = "W0503";
    /// An output column of a type that files cannot hold.
    pub const OUTPUT_TYPE: &str = "W0504";

    /// Something in a condition that alerts cannot evaluate.
    pub const CONDITION: &str = "W0601";
    /// What clears an alert also raises it.
    pub const DEAD_BAND: &str = "W0602";
    /// Severities that are missing, given twice or out of order.
    pub const SEVERITY: &str = "W0603";

    /// An option without effect.
    pub const NO_EFFECT: &str = "W0901";
}
