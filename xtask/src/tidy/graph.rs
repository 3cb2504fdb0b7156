//! The rooms (top-level modules of proxy/src) and their imports from each other, from the code without its
//! tests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::source::{Source, Tree};
use super::words::Kind;

/// The package whose top-level modules are the rooms.
const HOUSE: &str = "proxy";

/// An import: the importing room, then the imported room.
pub(crate) type Edge = (String, String);

/// The rooms and their imports.
#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) rooms: BTreeSet<String>,
    /// The places of each import, `path:line`.
    pub(crate) edges: BTreeMap<Edge, Vec<String>>,
    /// Places that import the crate's root as a whole, so that the rooms they use are unknown.
    pub(super) blurred: Vec<String>,
}

/// The room of a file that runs in production.
fn room(source: &Source) -> Option<&str> {
    let is_inside = source.package == HOUSE && source.path.contains("/src/") && !source.is_test;
    source.module.first().map(String::as_str).filter(|_| is_inside)
}

impl Graph {
    pub(super) fn of(tree: &Tree) -> Self {
        let rooms: BTreeSet<String> = tree.sources.iter().filter_map(room).map(str::to_owned).collect();
        let mut edges: BTreeMap<Edge, Vec<String>> = BTreeMap::new();
        let mut blurred = Vec::new();
        for source in &tree.sources {
            let Some(room) = room(source) else { continue };
            for word in source.live_words(Kind::Path) {
                if !matches!(word.path[0].as_str(), "crate" | "super" | "self") {
                    // The path leads to another crate, or begins with a name whose `use` item was counted.
                    continue;
                }
                let path = source.resolve(word);
                let place = format!("{}:{}", source.path, word.line);
                if path == ["crate", "*"] {
                    blurred.push(place);
                    continue;
                }
                let Some(other) = path.get(1).filter(|other| *other != room && rooms.contains(*other)) else {
                    continue;
                };
                edges.entry((room.to_owned(), other.clone())).or_default().push(place);
            }
        }
        Self { rooms, edges, blurred }
    }

    #[cfg(test)]
    pub(crate) fn from(edges: &[(&str, &str)]) -> Self {
        let mut graph = Self::default();
        for (from, to) in edges {
            graph.rooms.extend([(*from).to_owned(), (*to).to_owned()]);
            graph.edges.entry(((*from).to_owned(), (*to).to_owned())).or_default().push(String::new());
        }
        graph
    }

    /// The rooms that a room imports, each with the number of imported names.
    fn imports<'a>(&'a self, room: &'a str) -> impl Iterator<Item = (&'a str, usize)> {
        let own = self.edges.iter().filter(move |((from, _), _)| from == room);
        own.map(|((_, to), places)| (to.as_str(), places.len()))
    }

    /// How many names `from` imports from `to`; `None` if none.
    pub(crate) fn count(&self, from: &str, to: &str) -> Option<usize> {
        self.imports(from).find(|(room, _)| *room == to).map(|(_, count)| count)
    }

    /// The shortest way from a room back to itself.
    fn circle_at(&self, start: &str) -> Option<Vec<String>> {
        let mut before: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(room) = queue.pop_front() {
            for (next, _) in self.imports(room) {
                if next == start {
                    let mut circle = vec![start.to_owned(), room.to_owned()];
                    while circle.last().is_some_and(|last| last != start) {
                        circle.push(before[circle[circle.len() - 1].as_str()].to_owned());
                    }
                    circle.reverse();
                    return Some(circle);
                }
                if !before.contains_key(next) {
                    before.insert(next, room);
                    queue.push_back(next);
                }
            }
        }
        None
    }

    /// A shortest circle, as `["a", "b", "a"]`.
    pub(crate) fn circle(&self) -> Option<Vec<String>> {
        self.rooms.iter().filter_map(|room| self.circle_at(room)).min_by_key(Vec::len)
    }
}
