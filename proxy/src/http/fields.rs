//! A field list as the lines it travels in: received once, changed in place, sent in runs of untouched lines.

use super::names::{Name, NameSet};

/// A field list in the order received. Names keep their spelling and compare without case.
///
/// All bytes live in one buffer; a field is a line of it. Invariants: each entry's line is `name: value
/// CRLF`; names are tokens and values hold no CR, LF, NUL or other control byte but HTAB, with outer
/// whitespace removed; `names` has what `entries` have.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    lines: Vec<u8>,
    entries: Vec<Entry>,
    names: NameSet,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where its line starts.
    start: u32,
    name_end: u32,
    /// After its CRLF.
    end: u32,
    name: Name,
}

impl Entry {
    fn name<'a>(&self, lines: &'a [u8]) -> &'a [u8] {
        &lines[self.start as usize..self.name_end as usize]
    }

    fn value<'a>(&self, lines: &'a [u8]) -> &'a [u8] {
        &lines[self.name_end as usize + 2..self.end as usize - 2]
    }
}

impl Fields {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self { lines: Vec::new(), entries: Vec::new(), names: NameSet::of(&[]) }
    }

    /// An empty list with room for `bytes` of lines and `fields` entries.
    #[must_use]
    pub fn with_capacity(bytes: usize, fields: usize) -> Self {
        let (mut lines, mut entries) = spare::take();
        lines.reserve(bytes);
        entries.reserve(fields);
        Self { lines, entries, names: NameSet::default() }
    }

    /// Appends a field. The caller vouches for the invariants (the parser has checked, or we wrote it).
    ///
    /// Lists are bounded by `limits.header_bytes` long before a range could exceed `u32`.
    #[inline]
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_known(Name::of(name), name, value);
    }

    /// Appends a field whose name is known. The same invariants hold.
    #[inline]
    pub(super) fn push_known(&mut self, known: Name, name: &[u8], value: &[u8]) {
        self.push_with(known, name, |lines| lines.extend_from_slice(value));
    }

    /// Appends a field whose value `write` appends to a buffer. The same invariants hold.
    #[inline]
    pub(super) fn push_with(&mut self, known: Name, name: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.lines.len();
        self.lines.extend_from_slice(name);
        self.lines.extend_from_slice(b": ");
        write(&mut self.lines);
        self.lines.extend_from_slice(b"\r\n");
        self.adopt(known, start, start + name.len(), self.lines.len());
    }

    /// Appends a field of our own. `start` is the line up to its value: `b"Name: "`.
    #[inline]
    pub(super) fn push_own<const N: usize>(&mut self, known: Name, start: &'static [u8; N], value: &[u8]) {
        let at = self.lines.len();
        self.lines.extend_from_slice(start);
        self.lines.extend_from_slice(value);
        self.lines.extend_from_slice(b"\r\n");
        self.adopt(known, at, at + N - 2, self.lines.len());
    }

    /// Copies received lines, for `adopt` to find fields in.
    pub(super) fn copy(&mut self, lines: &[u8]) {
        self.lines.extend_from_slice(lines);
    }

    /// Appends a field whose line was copied. The same invariants hold.
    #[inline]
    pub(super) fn adopt(&mut self, name: Name, start: usize, name_end: usize, end: usize) {
        self.entries.push(Entry { start: start as u32, name_end: name_end as u32, end: end as u32, name });
        self.names = self.names.with(name);
    }

    /// Appends all fields of `other`.
    pub(super) fn append(&mut self, other: &Self) {
        let base = self.lines.len() as u32;
        self.lines.extend_from_slice(&other.lines);
        let moved = |entry: &Entry| Entry {
            start: base + entry.start,
            name_end: base + entry.name_end,
            end: base + entry.end,
            name: entry.name,
        };
        self.entries.extend(other.entries.iter().map(moved));
        self.names = self.names.or(other.names);
    }

    /// Makes room.
    pub(super) fn reserve(&mut self, bytes: usize, fields: usize) {
        self.lines.reserve(bytes);
        self.entries.reserve(fields);
    }

    /// Fields in order, as (name, value).
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|entry| (entry.name(&self.lines), entry.value(&self.lines)))
    }

    /// Values of every field called `name`, in order.
    pub fn all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let known = Name::of(name);
        let entries = if self.names.contains(known) { &self.entries[..] } else { &[] };
        let is_it = move |entry: &&Entry| {
            entry.name == known && (known.is_one() || entry.name(&self.lines).eq_ignore_ascii_case(name))
        };
        entries.iter().filter(is_it).map(|entry| entry.value(&self.lines))
    }

    /// Values of every field that is `name`, in order.
    pub(super) fn all_known(&self, name: Name) -> impl Iterator<Item = &[u8]> {
        let entries = if self.names.contains(name) { &self.entries[..] } else { &[] };
        entries.iter().filter(move |entry| entry.name == name).map(|entry| entry.value(&self.lines))
    }

    /// The first value of `name`.
    #[must_use]
    pub fn first(&self, name: &[u8]) -> Option<&[u8]> {
        let known = Name::of(name);
        if !self.names.contains(known) {
            return None;
        }
        let is_it = |entry: &&Entry| {
            entry.name == known && (known.is_one() || entry.name(&self.lines).eq_ignore_ascii_case(name))
        };
        self.entries.iter().find(is_it).map(|entry| entry.value(&self.lines))
    }

    /// Whether a field called `name` is there.
    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        self.first(name).is_some()
    }

    /// The known names in the list.
    #[must_use]
    pub const fn names(&self) -> NameSet {
        self.names
    }

    /// Keeps the fields for which `keep` is true; it gets the known name and the spelling.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(Name, &[u8]) -> bool) {
        let Self { lines, entries, names } = self;
        *names = NameSet::default();
        entries.retain(|entry| {
            let kept = keep(entry.name, entry.name(lines));
            if kept {
                *names = names.with(entry.name);
            }
            kept
        });
    }

    /// Takes the fields of `names` away.
    pub(super) fn remove(&mut self, names: NameSet) {
        self.entries.retain(|entry| !names.contains(entry.name));
        self.names = self.names.without(names);
    }

    /// Appends all lines to `out`, without the fields of `left_out`.
    pub(super) fn write(&self, left_out: NameSet, out: &mut Vec<u8>) {
        out.reserve(self.lines.len());
        let (mut start, mut end) = (0, 0);
        for entry in &self.entries {
            if left_out.contains(entry.name) {
                continue;
            }
            if entry.start != end {
                out.extend_from_slice(&self.lines[start as usize..end as usize]);
                start = entry.start;
            }
            end = entry.end;
        }
        out.extend_from_slice(&self.lines[start as usize..end as usize]);
    }

    /// How many bytes all lines have at most.
    pub(super) const fn bytes(&self) -> usize {
        self.lines.len()
    }

    /// How many fields.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Drop for Fields {
    #[inline]
    fn drop(&mut self) {
        if self.lines.capacity() != 0 {
            spare::give(std::mem::take(&mut self.lines), std::mem::take(&mut self.entries));
        }
    }
}

/// A list lives as long as its message, and the next one is much like it: each thread keeps the buffers of a
/// few for those to come.
mod spare {
    use std::cell::RefCell;

    use super::Entry;

    type Buffers = (Vec<u8>, Vec<Entry>);

    /// The most lists that are kept. With the bound of their size, a thread's lists together hold no more
    /// than 300 KiB.
    pub(super) const LISTS: usize = 64;
    pub(super) const LINES_BYTES: usize = 4096;
    pub(super) const ENTRIES: usize = 32;

    thread_local! {
        static SPARE: RefCell<Vec<Buffers>> = const { RefCell::new(Vec::new()) };
    }

    /// Empty buffers.
    #[inline]
    pub(super) fn take() -> Buffers {
        SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten().unwrap_or_default()
    }

    /// Keeps the buffers, or frees them.
    #[inline]
    pub(super) fn give(mut lines: Vec<u8>, mut entries: Vec<Entry>) {
        if lines.capacity() > LINES_BYTES || entries.capacity() > ENTRIES {
            return;
        }
        lines.clear();
        entries.clear();
        // Fails when the thread ends.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < LISTS {
                spare.push((lines, entries));
            }
        });
    }

    /// The lists that are kept now: their number, and the capacities of the largest.
    #[cfg(test)]
    pub(super) fn kept() -> (usize, usize, usize) {
        SPARE.with_borrow(|spare| {
            let lines = spare.iter().map(|(lines, _)| lines.capacity()).max().unwrap_or_default();
            let entries = spare.iter().map(|(_, entries)| entries.capacity()).max().unwrap_or_default();
            (spare.len(), lines, entries)
        })
    }
}

#[cfg(test)]
mod tests;
