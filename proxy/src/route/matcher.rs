//! Finds a request's route: host, then the longest path prefix that ends at a segment boundary.

use std::sync::Arc;

use super::table::{PathTable, PrefixGroup, RouteTable};
use crate::config::model;

impl RouteTable {
    /// The route for a request; `path` as it is forwarded, without the query. `None`: 404.
    #[must_use]
    pub fn find(&self, _authority: &str, path: &str) -> Option<&Arc<model::Route>> {
        self.any_host.find(path)
    }
}

impl PathTable {
    fn find(&self, path: &str) -> Option<&Arc<model::Route>> {
        self.groups.iter().find_map(|group| group.find(path.as_bytes()))
    }
}

impl PrefixGroup {
    /// The route whose prefix begins `path` and ends at a segment boundary. `/` begins every path, the `*` of OPTIONS too.
    fn find(&self, path: &[u8]) -> Option<&Arc<model::Route>> {
        if let [root] = self.routes.as_slice()
            && root.path_prefix == "/"
        {
            return Some(root);
        }
        let (start, rest) = path.split_at_checked(self.length)?;
        if !(rest.is_empty() || rest[0] == b'/' || start.last() == Some(&b'/')) {
            return None;
        }
        let found = self.routes.binary_search_by(|route| route.path_prefix.as_bytes().cmp(start)).ok()?;
        self.routes.get(found)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn table(prefixes: &[impl AsRef<str>]) -> RouteTable {
        let route = |(upstream, prefix): (usize, &dyn AsRef<str>)| {
            Arc::new(model::Route {
                path_prefix: prefix.as_ref().to_owned(),
                upstream,
                timeout: Duration::from_secs(1),
                body_timeout: Duration::from_secs(1),
                buffer_response: 4096,
            })
        };
        let routes: Vec<_> = prefixes.iter().map(|prefix| prefix as &dyn AsRef<str>).enumerate().map(route).collect();
        RouteTable::new(&routes)
    }

    fn found<'t>(table: &'t RouteTable, path: &str) -> Option<&'t str> {
        table.find("example.com", path).map(|route| route.path_prefix.as_str())
    }

    #[test]
    fn the_longest_prefix_at_a_segment_boundary_wins() {
        let table = table(&["/", "/api", "/api/v1", "/files/"]);
        for (path, prefix) in [
            ("/", "/"),
            ("*", "/"),
            ("/ap", "/"),
            ("/api", "/api"),
            ("/api/", "/api"),
            ("/api/x", "/api"),
            ("/apis", "/"),
            ("/api//v1", "/api"),
            ("/api/v1", "/api/v1"),
            ("/api/v1/x", "/api/v1"),
            ("/api/v10", "/api"),
            ("/files", "/"),
            ("/files/", "/files/"),
            ("/files/x", "/files/"),
            ("/API", "/"),
        ] {
            assert_eq!(found(&table, path), Some(prefix), "{path}");
        }
    }

    #[test]
    fn without_a_match_there_is_no_route() {
        assert_eq!(found(&table(&[] as &[&str]), "/"), None);
        let table = table(&["/a"]);
        for path in ["/", "/b", "/ab", "*", ""] {
            assert_eq!(found(&table, path), None, "{path}");
        }
    }

    #[test]
    fn of_equal_prefixes_the_first_counts() {
        let table = table(&["/a", "/b", "/a"]);
        assert_eq!(table.find("", "/a").map(|route| route.upstream), Some(0));
    }

    /// Tries every cut of the path at a segment boundary, longest first, against the prefixes as a set.
    fn naive<'p>(prefixes: &'p [String], path: &str) -> Option<&'p str> {
        let cut_at = |end: &usize| {
            let cut = &path[..*end];
            let boundary = *end == path.len() || path[*end..].starts_with('/') || cut.ends_with('/');
            if boundary { prefixes.iter().find(|prefix| *prefix == cut) } else { None }
        };
        (1..=path.len()).rev().find_map(|end| cut_at(&end)).map(String::as_str)
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_matcher(
            prefixes in prop::collection::hash_set("(/[ab]{0,2}){1,3}", 0..12),
            paths in prop::collection::vec("(/[ab]{0,2}){1,5}", 1..20),
        ) {
            let prefixes: Vec<String> = prefixes.into_iter().collect();
            let table = table(&prefixes);
            for path in &paths {
                prop_assert_eq!(found(&table, path), naive(&prefixes, path), "{}", path);
            }
        }
    }
}
