//! Diagnostics as text, in the manner of rustc, and as JSON.
//!
//! Source lines are shown as they are, except that a control character becomes a visible one (a file must not be
//! able to steer the terminal) and a very long line is cut around the mistake.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::diagnostic::{Diagnostic, Position, Severity};
use crate::source::SourceFile;

/// A source line is cut to about this many characters.
const MAX_WIDTH: usize = 160;

impl Diagnostic {
    /// As text of several lines, without a newline at the end. `source` is the whole file.
    pub fn render(&self, source: &str) -> String {
        let number = self.line.to_string();
        let pad = " ".repeat(number.len());
        let mut out = format!("{}[{}]: {}\n", self.severity.as_str(), self.code, plain(&self.message));
        let _ = writeln!(out, "{pad}--> {}:{}:{}", plain(&self.file), self.line, self.column);
        if let Some(line) = source.lines().nth(self.line.saturating_sub(1)) {
            let (line, caret) = self.excerpt(line);
            let _ = write!(out, "{pad} |\n{number} | {line}\n{pad} | {caret}\n");
        }
        for help in self.help.iter() {
            let _ = writeln!(out, "{pad} = help: {}", indented(help, &pad));
        }
        for note in &self.notes {
            let at = match &note.at {
                Some((file, Position { line, column })) => format!(" ({}:{line}:{column})", plain(file)),
                None => String::new(),
            };
            let _ = writeln!(out, "{pad} = note: {}{at}", indented(&note.message, &pad));
        }
        out.truncate(out.trim_end().len());
        out
    }

    /// The line to show and the line of carets under it.
    fn excerpt(&self, line: &str) -> (String, String) {
        let length = line.chars().count();
        let start = self.column.saturating_sub(1).min(length);
        let end = if self.end.line > self.line { length } else { self.end.column.saturating_sub(1) };
        let end = end.clamp(start, length.max(start)).max(start + 1);
        let from = if length > MAX_WIDTH { start.saturating_sub(MAX_WIDTH / 2) } else { 0 };
        let to = if length > MAX_WIDTH { (from + MAX_WIDTH).min(length) } else { length };
        let (mut text, mut caret) = (String::new(), String::new());
        if from > 0 {
            text.push('…');
            caret.push(' ');
        }
        for (at, c) in line.chars().enumerate().skip(from).take(to - from) {
            let mark = if (start..end).contains(&at) { '^' } else { ' ' };
            let (shown, width) = match c {
                '\t' => ("    ".to_owned(), 4),
                c => (plain(c.encode_utf8(&mut [0; 4])), 1),
            };
            text.push_str(&shown);
            caret.extend(std::iter::repeat_n(mark, width));
        }
        if to < length {
            text.push('…');
        }
        if start >= to {
            caret.push('^');
        }
        (text.trim_end().to_owned(), caret.trim_end().to_owned())
    }

    /// As an object with `code`, `severity`, `message`, `file`, `line`, `column`, `end_line`, `end_column`, `help`
    /// and `notes` (`message`, and `file`, `line`, `column` where they speak of another place).
    pub fn json(&self) -> Value {
        let notes: Vec<Value> = self
            .notes
            .iter()
            .map(|note| match &note.at {
                Some((file, at)) => {
                    json!({"message": note.message, "file": file, "line": at.line, "column": at.column})
                }
                None => json!({"message": note.message}),
            })
            .collect();
        json!({
            "code": self.code, "severity": self.severity.as_str(), "message": self.message, "file": self.file,
            "line": self.line, "column": self.column, "end_line": self.end.line, "end_column": self.end.column,
            "help": self.help, "notes": notes,
        })
    }
}

/// All diagnostics as text, one empty line between them, and a last line that counts them.
pub fn render_all(diagnostics: &[Diagnostic], files: &[SourceFile]) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics {
        let source = files.iter().find(|f| f.name == diagnostic.file).map_or("", |f| f.text.as_str());
        out.push_str(&diagnostic.render(source));
        out.push_str("\n\n");
    }
    let count = |severity| diagnostics.iter().filter(|d| d.severity == severity).count();
    let touched: BTreeSet<&str> = diagnostics.iter().map(|d| d.file.as_str()).collect();
    let mut counts = Vec::new();
    for (severity, name) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
        if count(severity) > 0 {
            counts.push(plural(count(severity), name));
        }
    }
    if counts.is_empty() {
        let _ = writeln!(out, "no errors in {}", plural(files.len(), "file"));
    } else {
        let _ = writeln!(out, "{} in {}", counts.join(" and "), plural(touched.len(), "file"));
    }
    out
}

/// All diagnostics as one object: `errors` and `warnings` (counts), `diagnostics` (see [`Diagnostic::json`]).
pub fn render_json(diagnostics: &[Diagnostic]) -> Value {
    let count = |severity| diagnostics.iter().filter(|d| d.severity == severity).count();
    json!({
        "errors": count(Severity::Error), "warnings": count(Severity::Warning),
        "diagnostics": diagnostics.iter().map(Diagnostic::json).collect::<Vec<_>>(),
    })
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Control characters become visible ones.
fn plain(text: &str) -> String {
    let steers = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if steers(c) && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Further lines of a text stand under its first one.
fn indented(text: &str, pad: &str) -> String {
    plain(text).replace('\n', &format!("\n{pad}         "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::{Span, code};

    fn at(line: usize, column: usize, end: (usize, usize)) -> Diagnostic {
        let span = Span { start: Position { line, column }, end: Position { line: end.0, column: end.1 } };
        Diagnostic::error(code::SYNTAX, "a.sql", span, "wrong")
    }

    fn text(parts: &[&str]) -> String {
        parts.join("\n")
    }

    #[test]
    fn source_line_and_caret() {
        let source = "one\n\ttwo three\nfour";
        assert_eq!(
            at(2, 6, (2, 11))
                .help("do this\nor that")
                .note("see", Some(("b.sql".into(), Position { line: 1, column: 2 })))
                .render(source),
            text(&[
                "error[W0002]: wrong",
                " --> a.sql:2:6",
                "  |",
                "2 |     two three",
                "  |         ^^^^^",
                "  = help: do this",
                "          or that",
                "  = note: see (b.sql:1:2)",
            ])
        );
        // Over several lines: to the end of the first. Behind the end: one caret. No such line: none.
        assert!(at(1, 2, (3, 2)).render(source).ends_with("1 | one\n  |  ^^"));
        assert!(at(3, 5, (3, 5)).render(source).ends_with("3 | four\n  |     ^"));
        assert!(at(9, 1, (9, 2)).render(source).ends_with("--> a.sql:9:1"));
    }

    #[test]
    fn long_lines_are_cut_and_control_characters_are_shown() {
        let source = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let shown = at(1, 501, (1, 502)).render(&source);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[3].chars().count() < 200 && lines[3].contains('X'), "{shown}");
        assert_eq!(lines[3].chars().position(|c| c == 'X'), lines[4].chars().position(|c| c == '^'), "{shown}");
        assert!(at(1, 1, (1, 2)).render("\u{1b}[31mred").contains("\u{fffd}[31mred"));
    }

    #[test]
    fn counts() {
        let files = [SourceFile { name: "a.sql".into(), text: String::new() }];
        assert_eq!(render_all(&[], &files), "no errors in 1 file\n");
        let mut warning = at(1, 1, (1, 1));
        warning.severity = Severity::Warning;
        let all = [at(1, 1, (1, 1)), at(1, 1, (1, 1)), warning];
        assert!(render_all(&all, &files).ends_with("\n\n2 errors and 1 warning in 1 file\n"));
        assert_eq!(render_json(&all)["errors"], 2);
        assert_eq!(render_json(&all)["diagnostics"][0]["line"], 1);
    }
}
