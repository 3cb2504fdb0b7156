//! Problems of a configuration: file, line, column, key, the expected form and the nearest known key, with
//! the source excerpt underlined. All problems of a file are reported at once, in the order of the file.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteSpanContents, SourceCode, SourceSpan,
    SpanContents,
};

/// Problems kept of one configuration; those beyond are counted. Garbage in a large file must not fill memory
/// or a terminal.
pub const DIAGNOSTICS_MAX: usize = 64;

/// Longest part of a line that `render` quotes; a longer line gets no excerpt.
const EXCERPT_LINE_MAX: usize = 400;

/// A file that diagnostics point into.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// As the user named it.
    path: PathBuf,
    /// Its text; bytes that are not UTF-8 are replaced. Empty when the file could not be read.
    text: String,
}

impl Source {
    /// From a file's name and text.
    #[must_use]
    pub fn new(path: &Path, text: String) -> Arc<Self> {
        Arc::new(Self { path: path.to_owned(), text })
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column of a byte offset, both from 1, the column in characters.
    fn position(&self, offset: usize) -> (usize, usize) {
        let offset = self.text.floor_char_boundary(offset);
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.bytes().filter(|byte| *byte == b'\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// Whether a problem stops anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing starts, and a running proxy keeps its configuration.
    Error,
    /// Legal, but probably not meant.
    Warning,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether it stops anything.
    pub severity: Severity,
    /// Where it is.
    pub source: Arc<Source>,
    /// Byte offsets into `source`; `None`: the file as a whole.
    pub span: Option<Range<usize>>,
    /// The dotted key without array positions (`listener.timeouts.send`); empty for syntax errors and whole
    /// files.
    pub key: String,
    /// The mistake, in one sentence without a full stop.
    pub message: String,
    /// The expected form.
    pub expected: Option<String>,
    /// Advice: the nearest known key, or a correction.
    pub help: Option<String>,
    /// Another place in the same file that has a part in it.
    pub related: Option<Related>,
}

/// See `Diagnostic::related`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Related {
    /// Byte offsets.
    pub span: Range<usize>,
    /// The thing at that place, in a few words.
    pub label: String,
}

impl Diagnostic {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// Line, from 1; 1 for the file as a whole.
    #[must_use]
    pub fn line(&self) -> usize {
        self.position().0
    }

    /// Column in characters, from 1.
    #[must_use]
    pub fn column(&self) -> usize {
        self.position().1
    }

    fn position(&self) -> (usize, usize) {
        self.span.as_ref().map_or((1, 1), |span| self.source.position(span.start))
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let (line, column) = self.position();
        serde_json::json!({
            "severity": match self.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            "file": self.path(),
            "line": line,
            "column": column,
            "key": self.key,
            "message": self.message,
            "expected": self.expected,
            "help": self.help,
        })
    }

    /// One sentence: the key, then the message, which may have the key for its subject.
    fn headline(&self) -> String {
        const PREDICATES: [&str; 5] = ["is ", "has ", "must ", "lists ", "cannot "];
        let predicate = PREDICATES.iter().any(|verb| self.message.starts_with(verb));
        match (self.key.as_str(), predicate) {
            ("", _) => self.message.clone(),
            (key, true) => format!("`{key}` {}", self.message),
            (key, false) => format!("`{key}`: {}", self.message),
        }
    }

    /// What `render` writes beside its marks.
    fn fmt_marks(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(expected) = &self.expected {
            write!(formatter, "; expected {expected}")?;
        }
        if let Some(Related { span, label }) = &self.related {
            write!(formatter, "; {label} on line {}", self.source.position(span.start).0)?;
        }
        Ok(())
    }

    /// The place that `render` marks.
    fn underline(&self) -> Option<SourceSpan> {
        self.first_line_of(self.span.as_ref()?)
    }

    /// The part of a span on its first line, at least one character wide where the file has one.
    fn first_line_of(&self, span: &Range<usize>) -> Option<SourceSpan> {
        let text = &self.source.text;
        let start = text.floor_char_boundary(span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |length| start + length);
        if line_end - line_start > EXCERPT_LINE_MAX {
            return None;
        }
        let end = text.floor_char_boundary(span.end).clamp(start, line_end);
        Some((start, end - start).into())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.position();
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(formatter, "{}:{line}:{column}: {severity}: {}", self.path().display(), self.headline())?;
        self.fmt_marks(formatter)?;
        if let Some(help) = &self.help {
            write!(formatter, "; {help}")?;
        }
        Ok(())
    }
}

/// Problems of one configuration, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    entries: Vec<Diagnostic>,
    /// Problems beyond `DIAGNOSTICS_MAX`.
    omitted: usize,
}

impl Diagnostics {
    /// Adds a problem, unless there are too many already.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if self.entries.len() < DIAGNOSTICS_MAX { self.entries.push(diagnostic) } else { self.omitted += 1 }
    }

    /// How many problems, those left out included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() + self.omitted
    }

    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The problems, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.entries.iter()
    }

    /// Several lines for a terminal: message, excerpt with the place underlined, expectation and help.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(120).with_links(false);
        let mut out = String::new();
        for diagnostic in &self.entries {
            if handler.render_report(&mut out, &Report(diagnostic)).is_err() {
                // miette refuses a span outside its source; the plain line says the same.
                let _ = writeln!(out, "{diagnostic}");
            }
        }
        if self.omitted > 0 {
            let _ = writeln!(out, "and {} more", self.omitted);
        }
        out
    }

    /// Sorts by place; problems of the main file come before problems of the files it refers to.
    pub(super) fn sort(&mut self, main: &Path) {
        self.entries.sort_by_key(|entry| {
            (entry.path() != main, entry.path().to_owned(), entry.span.as_ref().map_or(0, |span| span.start))
        });
    }
}

impl fmt::Display for Diagnostics {
    /// One line a problem, `file:line:column: error: …`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.entries.iter().enumerate() {
            if index > 0 {
                formatter.write_char('\n')?;
            }
            diagnostic.fmt(formatter)?;
        }
        if self.omitted > 0 {
            write!(formatter, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// Gives miette a diagnostic without copying its source.
struct Report<'a>(&'a Diagnostic);

impl fmt::Debug for Report<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let diagnostic = self.0;
        if diagnostic.underline().is_some() {
            return formatter.write_str(&diagnostic.headline());
        }
        // Without an excerpt, the headline has its place and what its marks would say.
        let (line, column) = diagnostic.position();
        write!(formatter, "{}:{line}:{column}: {}", diagnostic.path().display(), diagnostic.headline())?;
        diagnostic.fmt_marks(formatter)
    }
}

impl std::error::Error for Report<'_> {}

impl miette::Diagnostic for Report<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.0.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.underline().map(|_| self as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.0.underline()?;
        let label = self.0.expected.as_ref().map(|expected| format!("expected {expected}"));
        let label = label.unwrap_or_else(|| "here".to_owned());
        let other = self.0.related.as_ref();
        let other = other.and_then(|Related { span, label }| {
            Some(LabeledSpan::new_with_span(Some(label.clone()), self.0.first_line_of(span)?))
        });
        Some(Box::new([LabeledSpan::new_primary_with_span(Some(label), span)].into_iter().chain(other)))
    }
}

impl SourceCode for Report<'_> {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, miette::MietteError> {
        let contents = self.0.source.text.read_span(span, lines_before, lines_after)?;
        Ok(Box::new(MietteSpanContents::new_named(
            self.0.path().display().to_string(),
            contents.data(),
            *contents.span(),
            contents.line(),
            contents.column(),
            contents.line_count(),
        )))
    }
}
