//! Finds where a head or trailer section ends and holds its line ends to the letter of RFC 9112 §2.2: CRLF
//! only, no folding.
//!
//! Every byte is looked at once however it arrives, and bounds and errors depend on positions alone, so that
//! any split of the input has the same outcome.

use super::HeadError;
use crate::http::grammar::is_tchar;

/// Bounds of one section.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of the section with the empty line that ends it.
    pub(super) bytes: usize,
    /// Bytes of the first line without its CRLF.
    pub(super) first_line: usize,
    /// Lines without the empty one.
    pub(super) lines: usize,
    /// The error for a first line that is too long.
    pub(super) too_long: HeadError,
    /// Whether one empty line before the first is tolerated.
    pub(super) leading_empty_line: bool,
}

/// A whole section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section {
    /// Where the first line starts: after a tolerated empty line.
    pub(super) start: usize,
    /// Where it ends, without its CRLF.
    pub(super) first_line_end: usize,
    /// After the empty line.
    pub(super) end: usize,
    /// Lines without the empty one.
    pub(super) lines: usize,
}

/// How far a section has been searched.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scanner {
    searched: usize,
    line_start: usize,
    start: usize,
    first_line_end: usize,
    lines: usize,
}

impl Scanner {
    /// Whether nothing has been searched yet.
    pub(super) const fn is_new(&self) -> bool {
        self.searched == 0
    }

    /// Goes on where the last call stopped; `buf` is the same bytes with more at the end. `None`: not whole
    /// yet.
    pub(super) fn scan(&mut self, buf: &[u8], bounds: &Bounds) -> Result<Option<Section>, HeadError> {
        let visible = &buf[..buf.len().min(bounds.bytes)];
        loop {
            self.check_line_start(visible)?;
            let found =
                memchr::memchr2(b'\r', b'\n', &visible[self.searched..]).map(|offset| self.searched + offset);
            let line_end = found.unwrap_or(visible.len());
            if self.lines == 0 && line_end - self.line_start > bounds.first_line {
                return Err(bounds.too_long);
            }
            self.searched = line_end;
            let rest = &visible[line_end..];
            match rest {
                [] | [b'\r'] if visible.len() < bounds.bytes => return Ok(None),
                [] | [b'\r'] => {
                    return Err(if self.lines == 0 { bounds.too_long } else { HeadError::TooLarge });
                }
                [b'\r', b'\n', ..] => {}
                [b'\r', ..] => return Err(HeadError::BareCarriageReturn),
                _ => return Err(HeadError::BareLineFeed),
            }
            let next = line_end + 2;
            if line_end > self.line_start {
                if self.lines == bounds.lines {
                    return Err(HeadError::TooManyFields);
                }
                if self.lines == 0 {
                    self.first_line_end = line_end;
                }
                self.lines += 1;
            } else if self.lines > 0 {
                return Ok(Some(self.section(next)));
            } else if bounds.leading_empty_line && self.start == 0 {
                self.start = next;
            } else {
                return Err(HeadError::EmptyLine);
            }
            self.line_start = next;
            self.searched = next;
        }
    }

    /// A line starts with a token, or is empty. Anything else is refused at its first byte: a TLS hello on a
    /// plain port, and a folded line.
    fn check_line_start(&self, visible: &[u8]) -> Result<(), HeadError> {
        match visible.get(self.line_start) {
            None | Some(b'\r' | b'\n') => Ok(()),
            Some(&byte) if is_tchar(byte) => Ok(()),
            Some(b' ' | b'\t') if self.lines > 0 => Err(HeadError::FoldedLine),
            Some(_) if self.lines > 0 => Err(HeadError::FieldName),
            Some(_) => Err(HeadError::StartLine),
        }
    }

    const fn section(&self, end: usize) -> Section {
        Section { start: self.start, first_line_end: self.first_line_end, end, lines: self.lines }
    }
}
