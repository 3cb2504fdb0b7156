//! Reads a TOML table key by key. A key is known once it was asked for, in any way; `finish` reports the
//! others with the nearest known one. A value that cannot be used is reported and replaced by its default, so
//! that one pass finds every problem. After a report the caller must not use the values that it read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Diagnostic, Diagnostics, Related, Severity, Source};
use super::{hints, units};
pub(super) use not_built::Literal;
use unknown::{Known, Unknown};

mod not_built;
mod unknown;

/// How much of an unknown key is shown.
const KEY_CHARS_MAX: usize = 80;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    /// The value.
    pub(super) value: T,
    /// Byte offsets in the main file; `None`: a default.
    pub(super) span: Option<Range<usize>>,
}

/// The problems that were found while reading one file, beside the file itself.
pub(super) struct Context {
    source: Arc<Source>,
    errors: RefCell<Diagnostics>,
    warnings: RefCell<Diagnostics>,
    /// Of every table that was read, by its dotted path.
    tables: RefCell<BTreeMap<String, Known>>,
    unknown: RefCell<Vec<Unknown>>,
}

impl Context {
    pub(super) fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            errors: RefCell::default(),
            warnings: RefCell::default(),
            tables: RefCell::default(),
            unknown: RefCell::default(),
        }
    }

    /// Errors and warnings.
    pub(super) fn into_diagnostics(self) -> (Diagnostics, Diagnostics) {
        unknown::report(&self);
        (self.errors.into_inner(), self.warnings.into_inner())
    }

    /// Whether nothing that was read may be used.
    pub(super) fn has_errors(&self) -> bool {
        !self.errors.borrow().is_empty() || !self.unknown.borrow().is_empty()
    }

    /// An error in the main file.
    pub(super) fn error(
        &self,
        key: &str,
        span: Option<Range<usize>>,
        message: String,
        expected: Option<String>,
        help: Option<String>,
    ) {
        self.push(Diagnostic {
            severity: Severity::Error,
            source: self.source.clone(),
            span,
            key: key.to_owned(),
            message,
            expected,
            help,
            related: None,
        });
    }

    /// An error that another place in the main file has a part in.
    pub(super) fn clash(
        &self,
        key: &str,
        span: Option<Range<usize>>,
        message: String,
        expected: &str,
        related: Option<Related>,
    ) {
        self.push(Diagnostic {
            severity: Severity::Error,
            source: self.source.clone(),
            span,
            key: key.to_owned(),
            message,
            expected: Some(expected.to_owned()),
            help: None,
            related,
        });
    }

    /// A warning in the main file.
    pub(super) fn warn(&self, key: &str, span: Option<Range<usize>>, message: String) {
        let source = self.source.clone();
        let key = key.to_owned();
        self.push(Diagnostic {
            severity: Severity::Warning,
            source,
            span,
            key,
            message,
            expected: None,
            help: None,
            related: None,
        });
    }

    /// A problem in whichever file.
    pub(super) fn push(&self, diagnostic: Diagnostic) {
        match diagnostic.severity {
            Severity::Error => self.errors.borrow_mut().push(diagnostic),
            Severity::Warning => self.warnings.borrow_mut().push(diagnostic),
        }
    }
}

/// One table of the file, or an absent one, whose keys all have their defaults.
pub(super) struct Table<'a, 'i> {
    context: &'a Context,
    /// Dotted, without array positions; empty for the root.
    path: String,
    /// Its header, or the braces of an inline table.
    span: Option<Range<usize>>,
    entries: Option<&'a DeTable<'i>>,
    known: Vec<&'static str>,
    /// It is one of a list of tables.
    is_item: bool,
}

impl<'a, 'i> Table<'a, 'i> {
    /// The file's outermost table.
    pub(super) fn root(context: &'a Context, entries: &'a DeTable<'i>) -> Self {
        Self {
            context,
            path: String::new(),
            span: None,
            entries: Some(entries),
            known: Vec::new(),
            is_item: false,
        }
    }

    /// Where it begins.
    pub(super) fn span(&self) -> Option<Range<usize>> {
        self.span.clone()
    }

    /// The dotted name of one of its keys.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Reports that a key that must be there is not.
    pub(super) fn missing(&self, key: &str, expected: &str) {
        let message = "is missing".to_owned();
        self.context.error(&self.name(key), self.span(), message, Some(expected.to_owned()), None);
    }

    /// Whether the key is written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(key))
    }

    /// Whether the key is written as a string.
    pub(super) fn is_text(&self, key: &str) -> bool {
        self.peek(key).is_some_and(DeValue::is_str)
    }

    /// Whether the key is written as `[]`.
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        self.peek(key).and_then(DeValue::as_array).is_some_and(|items| items.is_empty())
    }

    fn peek(&self, key: &str) -> Option<&'a DeValue<'i>> {
        self.entries?.get(key).map(Spanned::get_ref)
    }

    /// An error about one of its keys.
    pub(super) fn error(&self, key: &str, span: Option<Range<usize>>, message: String, expected: &str) {
        self.error_with_help(key, span, message, expected, None);
    }

    /// An error about one of its keys, with advice.
    pub(super) fn error_with_help(
        &self,
        key: &str,
        span: Option<Range<usize>>,
        message: String,
        expected: &str,
        help: Option<String>,
    ) {
        self.context.error(&self.name(key), span, message, Some(expected.to_owned()), help);
    }

    /// An error about the table itself.
    pub(super) fn error_of_all(&self, message: String, expected: &str) {
        self.context.error(&self.path, self.span.clone(), message, Some(expected.to_owned()), None);
    }

    /// A warning about a key if it is written.
    pub(super) fn warn_if_written(&self, key: &str, message: &str) {
        let written = self.entries.and_then(|entries| entries.get_key_value(key));
        if let Some((written, _)) = written {
            self.context.warn(&self.name(key), Some(written.span()), message.to_owned());
        }
    }

    /// Where a key's value is, if it is written.
    pub(super) fn value_span(&self, key: &str) -> Option<Range<usize>> {
        self.entries?.get(key).map(Spanned::span)
    }

    /// Whether the table is written and is one.
    pub(super) const fn is_present(&self) -> bool {
        self.entries.is_some()
    }

    /// Makes a key known that is not written.
    pub(super) fn absent<T>(&mut self, key: &'static str) -> Option<T> {
        self.known.push(key);
        None
    }

    /// Every key with its string, or where `or_list` each of its strings, in the order written.
    pub(super) fn pairs(&mut self, or_list: bool) -> Vec<(At<String>, At<String>)> {
        let form = if or_list { "a string or a list of strings" } else { "a string" };
        let mut pairs = Vec::new();
        for (key, value) in self.entries.into_iter().flat_map(|entries| entries.iter()) {
            let name = At { value: key.get_ref().to_string(), span: Some(key.span()) };
            match value.get_ref() {
                DeValue::String(text) => {
                    pairs.push((name, At { value: text.to_string(), span: Some(value.span()) }))
                }
                DeValue::Array(items) if or_list => {
                    let values = items.iter().filter_map(|item| self.string_item(&name.value, item));
                    pairs.extend(values.map(|value| (name.clone(), value)));
                }
                _ => self.wrong_type(&name.value, value, form),
            }
        }
        pairs.sort_by_key(|(_, value)| value.span.as_ref().map(|span| span.start));
        pairs
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.known.push(key);
        self.entries?.get(key)
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let message = format!("is {}", kind(value.get_ref()));
        let help = hints::for_type(value.get_ref(), expected);
        self.context.error(&self.name(key), Some(value.span()), message, Some(expected.to_owned()), help);
    }

    /// A string.
    pub(super) fn string(&mut self, key: &'static str) -> Option<At<String>> {
        self.parsed(key, "a string", |text| Ok(text.to_owned()))
    }

    /// A string that `parse` understands; `form` describes its form.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        form: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let value = self.get(key)?;
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(key, value, form);
            return None;
        };
        match parse(text) {
            Ok(parsed) => Some(At { value: parsed, span: Some(value.span()) }),
            Err(message) => {
                self.error_with_help(key, Some(value.span()), message, form, hints::for_text(text, form));
                None
            }
        }
    }

    /// A duration within bounds.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(At { value, span }) = self.parsed(key, units::DURATION_FORM, units::duration) else {
            return default;
        };
        if bounds.contains(&value) {
            return value;
        }
        let message =
            if value.is_zero() { "must not be zero".to_owned() } else { "is out of bounds".to_owned() };
        let expected =
            format!("{} to {}", units::show_duration(*bounds.start()), units::show_duration(*bounds.end()));
        let nearest = if value < *bounds.start() { bounds.start() } else { bounds.end() };
        let help = format!("the nearest is \"{}\"", units::show_duration(*nearest));
        self.error_with_help(key, span, message, &expected, Some(help));
        default
    }

    /// A size within bounds.
    pub(super) fn size(&mut self, key: &'static str, default: u64, bounds: RangeInclusive<u64>) -> At<u64> {
        let fallback = At { value: default, span: None };
        let Some(size) = self.parsed(key, units::SIZE_FORM, units::size) else { return fallback };
        if bounds.contains(&size.value) {
            return size;
        }
        let expected =
            format!("{} to {}", units::show_size(*bounds.start()), units::show_size(*bounds.end()));
        let nearest = if size.value < *bounds.start() { bounds.start() } else { bounds.end() };
        let help = format!("the nearest is \"{}\"", units::show_size(*nearest));
        self.error_with_help(key, size.span, "is out of bounds".to_owned(), &expected, Some(help));
        fallback
    }

    /// A whole number within bounds.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        default: u64,
        bounds: RangeInclusive<u64>,
    ) -> At<u64> {
        let fallback = At { value: default, span: None };
        let Some(value) = self.get(key) else { return fallback };
        let expected = if *bounds.end() >= i64::MAX as u64 {
            format!("a whole number, {} or more", bounds.start())
        } else {
            format!("a whole number from {} to {}", bounds.start(), bounds.end())
        };
        if !matches!(value.get_ref(), DeValue::Integer(_)) {
            self.wrong_type(key, value, &expected);
            return fallback;
        }
        match whole_number(value.get_ref()).filter(|number| bounds.contains(number)) {
            Some(number) => At { value: number, span: Some(value.span()) },
            None => {
                let message = "is out of bounds".to_owned();
                // A number that does not even fit is negative or huge.
                let is_small =
                    value.get_ref().as_integer().is_some_and(|integer| integer.as_str().starts_with('-'))
                        || whole_number(value.get_ref()).is_some_and(|number| number < *bounds.start());
                let nearest = if is_small { bounds.start() } else { bounds.end() };
                self.error_with_help(
                    key,
                    Some(value.span()),
                    message,
                    &expected,
                    Some(format!("the nearest is {nearest}")),
                );
                fallback
            }
        }
    }

    /// Reports a number that is not a power of two; `show` writes numbers as the key's are written.
    pub(super) fn check_power_of_two(
        &self,
        key: &str,
        At { value, span }: &At<u64>,
        show: impl Fn(u64) -> String,
    ) {
        if !value.is_power_of_two() {
            let above = value.next_power_of_two();
            let expected = format!("a power of two, {} or {}", show(above / 2), show(above));
            self.error(key, span.clone(), format!("{} is not a power of two", show(*value)), &expected);
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.get(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(key, value, "true or false");
            default
        })
    }

    /// One of several words; the first is the default. Words of features that are not built are told apart
    /// from wrong ones.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        built: &[(&'static str, T)],
        not_built: &[&'static str],
    ) -> T {
        let default = built[0].1;
        let words: Vec<&str> = built.iter().map(|(word, _)| *word).collect();
        let form = format!("\"{}\"", words.join("\" or \""));
        let Some(value) = self.get(key) else { return default };
        let DeValue::String(written) = value.get_ref() else {
            self.wrong_type(key, value, &form);
            return default;
        };
        if let Some((_, choice)) = built.iter().find(|(word, _)| word == written) {
            return *choice;
        }
        let shown = units::quote(written);
        if not_built.iter().any(|word| word == written) {
            let message = format!("{shown} is not built yet");
            self.context.error(&self.name(key), Some(value.span()), message, Some(form), None);
            return default;
        }
        let all: Vec<&str> = words.iter().chain(not_built).copied().collect();
        let help = hints::for_word(written, &all).or_else(|| nearest(written, &all)).map(|known| {
            let tail = if not_built.contains(&known) { " It is not built yet" } else { "" };
            format!("did you mean \"{known}\"?{tail}")
        });
        self.context.error(
            &self.name(key),
            Some(value.span()),
            format!("{shown} is unknown"),
            Some(form),
            help,
        );
        default
    }

    /// A list of strings; where `or_one`, a string stands for a list of one.
    pub(super) fn strings(&mut self, key: &'static str, or_one: bool) -> Vec<At<String>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let form = if or_one { "a string or a list of strings" } else { "a list of strings" };
        match value.get_ref() {
            DeValue::String(text) if or_one => vec![At { value: text.to_string(), span: Some(value.span()) }],
            DeValue::Array(items) => items.iter().filter_map(|item| self.string_item(key, item)).collect(),
            _ => {
                self.wrong_type(key, value, form);
                Vec::new()
            }
        }
    }

    fn string_item(&self, key: &str, item: &Spanned<DeValue<'_>>) -> Option<At<String>> {
        let text = item.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, item, "only strings in this list");
        }
        Some(At { value: text?.to_owned(), span: Some(item.span()) })
    }

    /// A list of networks.
    pub(super) fn networks(&mut self, key: &'static str) -> Vec<At<IpNet>> {
        let texts = self.strings(key, false);
        let parse = |At { value, span }: At<String>| match units::network(&value) {
            Ok(value) => Some(At { value, span }),
            Err(message) => {
                self.context.error(
                    &self.name(key),
                    span,
                    message,
                    Some(units::NETWORK_FORM.to_owned()),
                    None,
                );
                None
            }
        };
        texts.into_iter().filter_map(parse).collect()
    }

    /// A list whose items the caller reads itself: strings or tables. `None`: absent or not a list.
    pub(super) fn items(&mut self, key: &'static str, form: &str) -> Option<Vec<Item<'a, 'i>>> {
        let value = self.get(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value, form);
            return None;
        };
        let item = |item: &'a Spanned<DeValue<'i>>| match item.get_ref() {
            DeValue::String(text) => {
                Some(Item::Text(At { value: text.to_string(), span: Some(item.span()) }))
            }
            DeValue::Table(entries) => Some(Item::Table(self.child(key, item.span(), entries))),
            _ => {
                self.wrong_type(key, item, form);
                None
            }
        };
        Some(items.iter().filter_map(item).collect())
    }

    fn child(&self, key: &str, span: Range<usize>, entries: &'a DeTable<'i>) -> Table<'a, 'i> {
        Table {
            context: self.context,
            path: self.name(key),
            span: Some(span),
            entries: Some(entries),
            known: Vec::new(),
            is_item: false,
        }
    }

    /// A table; absent: one without entries.
    pub(super) fn table(&mut self, key: &'static str) -> Table<'a, 'i> {
        let absent = Table {
            context: self.context,
            path: self.name(key),
            span: None,
            entries: None,
            known: Vec::new(),
            is_item: false,
        };
        let Some(value) = self.get(key) else { return absent };
        if let DeValue::Table(entries) = value.get_ref() {
            return self.child(key, value.span(), entries);
        }
        self.wrong_type(key, value, &format!("a table, [{}]", self.name(key)));
        absent
    }

    /// An array of tables.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Table<'a, 'i>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let form = format!("a list of tables, [[{}]]", self.name(key));
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value, &form);
            return Vec::new();
        };
        let table = |item: &'a Spanned<DeValue<'i>>| match item.get_ref() {
            DeValue::Table(entries) => Some(Table { is_item: true, ..self.child(key, item.span(), entries) }),
            _ => {
                self.wrong_type(key, item, &form);
                None
            }
        };
        items.iter().filter_map(table).collect()
    }
}

/// An item of a list of strings and tables.
pub(super) enum Item<'a, 'i> {
    Text(At<String>),
    Table(Table<'a, 'i>),
}

/// The nearest of the known words, if it is near enough to be the intended one.
pub(super) fn nearest<'w>(written: &str, known: &[&'w str]) -> Option<&'w str> {
    // Damerau-Levenshtein needs memory of the product of both lengths; nobody misspells a key into a thousand
    // letters.
    if written.len() > 64 {
        return None;
    }
    let distance =
        |word: &str| strsim::damerau_levenshtein(&written.to_ascii_lowercase(), &word.to_ascii_lowercase());
    let scored = known.iter().map(|word| (distance(word), *word));
    let (distance, word) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= 2.max(word.chars().count() / 3)).then_some(word)
}

fn whole_number(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A TOML type with its article.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
