//! Keys of features that are not built. A file may have them all the same where they ask for nothing, or for
//! the default.

use std::ops::Range;
use std::time::Duration;

use toml::de::DeValue;

use super::{Table, whole_number};
use crate::config::units;

/// A value that a key of a feature that is not built may have all the same.
pub(in crate::config) enum Literal {
    Text(&'static str),
    Number(u64),
    Float(f64),
    /// However it is written.
    Duration(Duration),
}

impl Literal {
    fn equals(&self, value: &DeValue<'_>) -> bool {
        match (self, value) {
            (Self::Text(text), DeValue::String(written)) => text == written,
            (Self::Number(number), DeValue::Integer(_)) => whole_number(value) == Some(*number),
            #[expect(clippy::float_cmp, reason = "the same decimal text parses to the same float")]
            (Self::Float(number), DeValue::Float(written)) => {
                written.as_str().parse::<f64>().is_ok_and(|written| written == *number)
            }
            (Self::Duration(duration), DeValue::String(written)) => {
                units::duration(written).as_ref() == Ok(duration)
            }
            _ => false,
        }
    }
}

impl Table<'_, '_> {
    /// A key of a feature that is not built: only `off`, which asks for nothing, may be written.
    pub(in crate::config) fn not_built(&mut self, key: &'static str, off: Option<Literal>) {
        if let Some(span) = self.written_other_than(key, off.as_slice()) {
            self.context.error(
                &self.name(key),
                Some(span),
                "is not built yet".to_owned(),
                None,
                Some("leave it out".to_owned()),
            );
        }
    }

    /// A key of a feature that is not built and whose default is active: the default may be written, with a
    /// warning.
    pub(in crate::config) fn not_built_default(&mut self, key: &'static str, default: Literal) {
        if self.peek(key).is_some_and(|value| default.equals(value)) {
            let span = self.entries.and_then(|entries| entries.get_key_value(key)).map(|(key, _)| key.span());
            self.context.warn(&self.name(key), span, "is not built yet and has no effect".to_owned());
        }
        self.not_built(key, Some(default));
    }

    /// The key's place, unless it is absent or has one of these values.
    fn written_other_than(&mut self, key: &'static str, accepted: &[Literal]) -> Option<Range<usize>> {
        self.known.push(key);
        let (written, value) = self.entries?.get_key_value(key)?;
        let accepted = accepted.iter().any(|accepted| accepted.equals(value.get_ref()));
        (!accepted).then(|| written.span())
    }
}
