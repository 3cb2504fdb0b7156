//! Which listener is which. People and the configuration know a listener by its name. Sockets, connections
//! and messages know it by a number, which the supervisor gives to each name when it first sees it.
//!
//! The number stays over reloads and data planes for as long as the configuration has the name, wherever in
//! the file, and never means another listener. A listening socket is named by its listener, address and
//! transport.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The number of a listener. See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ListenerId(u32);

impl ListenerId {
    /// The first one that is given.
    pub const FIRST: Self = Self(0);

    /// For the key of a tag.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0 as u64
    }

    /// From the key of a tag.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits as u32)
    }
}

/// How clients reach a listening socket. HTTP/3 will add UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP.
    Tcp,
}

/// Names a listening address: the sockets of all workers on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenKey {
    /// Whose address it is.
    pub listener: ListenerId,
    /// As bound: the port is known.
    pub address: SocketAddr,
    /// The kind of its sockets.
    pub transport: Transport,
}

/// The numbers of a configuration's listeners, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerIds {
    by_name: BTreeMap<String, ListenerId>,
    /// The number that the next new name gets.
    next: u32,
}

impl ListenerIds {
    /// The numbers of a configuration that follows this one: a name that stays keeps its number, a new name
    /// gets a new one.
    #[must_use]
    pub fn follow<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut ids = Self { by_name: BTreeMap::new(), next: self.next };
        for name in names {
            let id = self.by_name.get(name).copied().unwrap_or_else(|| {
                let id = ListenerId(ids.next);
                ids.next = ids.next.wrapping_add(1);
                id
            });
            ids.by_name.insert(name.to_owned(), id);
        }
        ids
    }

    /// The number of the listener with this name.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<ListenerId> {
        self.by_name.get(name).copied()
    }

    /// The name of the listener with this number.
    #[must_use]
    pub fn name(&self, id: ListenerId) -> Option<&str> {
        self.by_name.iter().find(|(_, known)| **known == id).map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_in_any_place_and_a_number_is_never_given_twice() {
        let first = ListenerIds::default().follow(["web", "db"]);
        assert_eq!((first.id("web"), first.id("db")), (Some(ListenerId::FIRST), Some(ListenerId(1))));
        let turned = first.follow(["db", "new", "web"]);
        assert_eq!((turned.id("web"), turned.id("db")), (first.id("web"), first.id("db")));
        assert_eq!((turned.id("new"), turned.name(ListenerId(2))), (Some(ListenerId(2)), Some("new")));
        let fewer = turned.follow(["web"]);
        assert_eq!((fewer.id("db"), fewer.name(ListenerId(1))), (None, None));
        assert_eq!(fewer.follow(["db", "web"]).id("db"), Some(ListenerId(3)), "another listener");
    }

    #[test]
    fn numbers_and_keys_survive_a_message() {
        let ids = ListenerIds::default().follow(["web", "db"]);
        let text = serde_json::to_string(&ids).expect("json");
        assert_eq!(serde_json::from_str::<ListenerIds>(&text).expect("read"), ids);
        let key = ListenKey {
            listener: ListenerId(7),
            address: "[::1]:443".parse().expect("an address"),
            transport: Transport::Tcp,
        };
        let text = serde_json::to_string(&key).expect("json");
        assert_eq!(text, r#"{"listener":7,"address":"[::1]:443","transport":"tcp"}"#);
        assert_eq!(serde_json::from_str::<ListenKey>(&text).expect("read"), key);
        assert_eq!(ListenerId::from_bits(key.listener.to_bits()), key.listener);
    }
}
