//! Keys that are not known where they are written. Their advice is found when every table was read: such a
//! key may be a key of another table. A TOML file goes on with the last table that it named, so that a key
//! below `[listener.tls]` is not one of `[[listener]]` any more.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Context, KEY_CHARS_MAX, Table, nearest};

/// A table's known keys, and whether it is written as `[[…]]`.
#[derive(Debug, Default)]
pub(super) struct Known {
    keys: Vec<&'static str>,
    is_list: bool,
}

/// A key that its table does not know.
#[derive(Debug)]
pub(super) struct Unknown {
    /// Its table, dotted.
    table: String,
    key: String,
    span: Range<usize>,
    known: Vec<&'static str>,
}

impl Table<'_, '_> {
    /// Reports every key that was not asked for.
    pub(in crate::config) fn finish(self) {
        for (key, _) in self.entries.into_iter().flat_map(|entries| entries.iter()) {
            let written: &str = key.get_ref();
            if !self.known.contains(&written) {
                self.context.unknown.borrow_mut().push(Unknown {
                    table: self.path.clone(),
                    key: written.to_owned(),
                    span: key.span(),
                    known: self.known.clone(),
                });
            }
        }
        let mut tables = self.context.tables.borrow_mut();
        let known = tables.entry(self.path).or_default();
        known.is_list |= self.is_item;
        known.keys.extend(self.known);
    }
}

/// Reports them, each with its advice.
pub(super) fn report(context: &Context) {
    let tables = context.tables.take();
    for Unknown { table, key, span, known } in context.unknown.take() {
        let place = if table.is_empty() { "at the top level".to_owned() } else { format!("in `{table}`") };
        let help = elsewhere(&tables, &table, &key)
            .or_else(|| nearest(&key, &known).map(|known| format!("did you mean `{known}`?")));
        let expected = format!("one of {}", known.join(", "));
        let shown: String = key.escape_debug().take(KEY_CHARS_MAX).collect();
        let name = if table.is_empty() { shown } else { format!("{table}.{shown}") };
        context.error(&name, Some(span), format!("there is no such key {place}"), Some(expected), help);
    }
}

/// The table that the key belongs to: one around its own, else one within it, else the only one of the file.
fn elsewhere(tables: &BTreeMap<String, Known>, table: &str, key: &str) -> Option<String> {
    let has = |path: &str| tables.get(path).is_some_and(|known| known.keys.contains(&key));
    let header = |path: &str| {
        let is_list = tables.get(path).is_some_and(|known| known.is_list);
        if is_list { format!("[[{path}]]") } else { format!("[{path}]") }
    };
    let around = std::iter::successors(table.rsplit_once('.'), |(above, _)| above.rsplit_once('.'));
    if let Some((above, _)) = around.into_iter().find(|(above, _)| has(above)) {
        let (above, here) = (header(above), header(table));
        return Some(format!("`{key}` is a key of `{above}`: write it there, above `{here}`"));
    }
    let is_within = |path: &&String| path.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'));
    let mut others = tables.keys().filter(|path| *path != table && has(path)).peekable();
    let within = tables.keys().filter(is_within).find(|path| has(path));
    let only = others.next().filter(|_| others.peek().is_none());
    within.or(only).map(|path| format!("`{key}` is a key of `{}`", header(path)))
}
