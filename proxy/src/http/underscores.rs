//! Field names with `_`, which RFC 9110 §5.1 allows. Applications that get fields as variables (CGI, RFC 3875
//! §4.1.18) see `X_User` and `X-User` as one: a client could speak for a proxy.

use std::cmp::Ordering;
use std::ops::Range;

use super::fields::Fields;
use super::names::{Name, NameSet};

/// `listener.underscores`: what becomes of a request's fields with `_` in their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underscores {
    /// Fields go that an application could take for another field of the request, or for a field that a proxy
    /// sets.
    #[default]
    DropColliding,
    /// All stay.
    Keep,
    /// All go.
    Drop,
}

/// Names with `_`.
const UNDERSCORED: NameSet = NameSet::of(&[Name::Spoof, Name::Underscored]);

/// Whether a name with `_` may be among `names`.
pub(super) const fn may_be_in(names: NameSet) -> bool {
    names.meets(UNDERSCORED)
}

/// Takes away the fields that must not go on. `fields` has the fields that we add ourselves.
#[inline]
pub(super) fn remove(fields: &mut Fields, rule: Underscores) {
    if may_be_in(fields.names()) {
        remove_some(fields, rule);
    }
}

#[cold]
fn remove_some(fields: &mut Fields, rule: Underscores) {
    match rule {
        Underscores::Keep => {}
        Underscores::Drop => fields.retain(|name, _| !UNDERSCORED.contains(name)),
        Underscores::DropColliding => {
            let colliding = Colliding::collect(fields);
            fields.retain(|name, text| match name {
                Name::Spoof => false,
                Name::Underscored => !colliding.contains(text),
                _ => true,
            });
        }
    }
}

/// Whether an application may take the field `name`, which has `_`, for `other`.
pub(super) fn collides(name: &[u8], other: &[u8]) -> bool {
    name.contains(&b'_') && compare(name, other).is_eq()
}

/// Names of which another spelling is there too, sorted: a thousand fields must not cost their square.
struct Colliding {
    lower: Vec<u8>,
    names: Vec<Range<usize>>,
}

impl Colliding {
    fn collect(fields: &Fields) -> Self {
        let (mut lower, mut all) = (Vec::with_capacity(512), Vec::with_capacity(fields.len()));
        for (name, _) in fields.iter() {
            let start = lower.len();
            lower.extend(name.iter().map(u8::to_ascii_lowercase));
            all.push(start..lower.len());
        }
        let name = |range: &Range<usize>| &lower[range.clone()];
        all.sort_unstable_by(|a, b| compare(name(a), name(b)));
        let is_same = |a: &Range<usize>, b: &Range<usize>| compare(name(a), name(b)).is_eq();
        let several = |group: &&[Range<usize>]| group.iter().any(|other| name(other) != name(&group[0]));
        let names = all.chunk_by(is_same).filter(several).map(|group| group[0].clone()).collect();
        Self { lower, names }
    }

    fn contains(&self, name: &[u8]) -> bool {
        self.names.binary_search_by(|range| compare(&self.lower[range.clone()], name)).is_ok()
    }
}

/// Compares without case, with `_` as `-`.
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let spelt = |&byte: &u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    a.iter().map(spelt).cmp(b.iter().map(spelt))
}

#[cfg(test)]
mod tests;
