//! The listeners of one configuration, found by their numbers.

use std::sync::Arc;

use super::identity::{ListenerId, ListenerIds};
use super::model::Listener;

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listeners(Arc<[(ListenerId, Arc<Listener>)]>);

/// A listener without a number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("listener \"{0}\" has no number")]
pub struct Unnumbered(String);

impl Listeners {
    /// These listeners, with the numbers that they get after a configuration with the numbers `before`.
    #[must_use]
    pub fn number(listeners: &[Arc<Listener>], before: &ListenerIds) -> (Self, ListenerIds) {
        let ids = before.follow(listeners.iter().map(|listener| listener.name.as_str()));
        let numbered = listeners.iter().filter_map(|listener| ids.id(&listener.name).zip(Some(listener)));
        (Self::sorted(numbered.map(|(id, listener)| (id, Arc::clone(listener))).collect()), ids)
    }

    /// These listeners by these numbers.
    ///
    /// # Errors
    /// When there is no number for one of them.
    pub fn new(listeners: &[Arc<Listener>], ids: &ListenerIds) -> Result<Self, Unnumbered> {
        let numbered = |listener: &Arc<Listener>| match ids.id(&listener.name) {
            Some(id) => Ok((id, Arc::clone(listener))),
            None => Err(Unnumbered(listener.name.clone())),
        };
        Ok(Self::sorted(listeners.iter().map(numbered).collect::<Result<_, _>>()?))
    }

    fn sorted(mut numbered: Vec<(ListenerId, Arc<Listener>)>) -> Self {
        numbered.sort_by_key(|(id, _)| *id);
        Self(numbered.into())
    }

    /// The listener with this number, if there is one still.
    #[must_use]
    pub fn get(&self, id: ListenerId) -> Option<&Arc<Listener>> {
        let place = self.0.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.0.get(place).map(|(_, listener)| listener)
    }

    /// All of them, the oldest number first.
    pub fn iter(&self) -> impl Iterator<Item = (ListenerId, &Arc<Listener>)> {
        self.0.iter().map(|(id, listener)| (*id, listener))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn named(name: &str) -> Arc<Listener> {
        Arc::new(Listener { name: name.to_owned(), ..testing::listener() })
    }

    #[test]
    fn listeners_are_found_by_number_whatever_their_places() {
        let (web, db) = (named("web"), named("db"));
        let ids = ListenerIds::default().follow(["web", "db"]);
        for order in [[&web, &db], [&db, &web]] {
            let listeners = Listeners::new(&order.map(Arc::clone), &ids).expect("numbered");
            let name = |name| listeners.get(ids.id(name)?).map(|listener| listener.name.as_str());
            assert_eq!((name("web"), name("db")), (Some("web"), Some("db")));
            assert!(listeners.iter().map(|(id, _)| id).is_sorted());
        }
        let later = ids.follow(["db", "new"]);
        let listeners = Listeners::new(&[db, named("new")], &later).expect("numbered");
        assert_eq!(listeners.get(ListenerId::FIRST), None, "it is gone, and nobody has its number");
        assert_eq!(Listeners::new(&[web], &later), Err(Unnumbered("web".to_owned())));
    }
}
