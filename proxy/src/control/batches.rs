//! Descriptors in numbered batches: the supervisor cuts a handoff into them, and the data plane puts it
//! together again. A batch or descriptor that is missing, doubled, out of order or out of range is refused.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use proxy_common::steer::WORKERS_MAX;

use super::handoff::{DESCRIPTORS_MAX, MESSAGE_BYTES_MAX};
use super::messages::{Item, PROTOCOL, Start};
use crate::listen::ListenKey;

/// Descriptors of one handoff; the descriptor limit ends most machines before.
pub const HANDOFF_MAX: u32 = 1 << 16;
/// Batches of one handoff.
pub const BATCHES_MAX: u32 = 1 << 12;

/// Cuts items into batches that each fit one message.
#[must_use]
pub fn cut<T>(items: Vec<(Item, T)>) -> Vec<Vec<(Item, T)>> {
    let mut batches: Vec<Vec<(Item, T)>> = Vec::new();
    let mut bytes = 0;
    for (item, value) in items {
        let length = match &item {
            // JSON writes a control character as six bytes; nothing grows more.
            Item::File { path } => 64 + path.as_os_str().len() * 6,
            Item::Listener { .. } => 176,
            _ => 80,
        };
        match batches.last_mut() {
            Some(batch) if batch.len() < DESCRIPTORS_MAX && bytes + length < MESSAGE_BYTES_MAX - 1024 => {
                bytes += length;
                batch.push((item, value));
            }
            _ => {
                bytes = length;
                batches.push(vec![(item, value)]);
            }
        }
    }
    batches
}

/// Why a handoff was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandoffError {
    /// `Start` makes no sense.
    #[error("start message: {0}")]
    Start(&'static str),
    /// Another version of the protocol.
    #[error("protocol {0}, this data plane speaks {PROTOCOL}")]
    Protocol(u32),
    /// A batch is out of order.
    #[error("batch {found}, expected {expected}")]
    Order {
        /// Came.
        found: u32,
        /// Was due.
        expected: u32,
    },
    /// A batch names more or fewer items than it carries descriptors.
    #[error("a batch of {items} items with {descriptors} descriptors")]
    Count {
        /// Named.
        items: usize,
        /// Carried.
        descriptors: usize,
    },
    /// More descriptors than announced.
    #[error("more descriptors than announced")]
    TooMany,
    /// A worker or an address that does not exist, or something that came before.
    #[error("unexpected descriptor: {0:?}")]
    Unexpected(Item),
    /// Everything came, and this was not in it.
    #[error("{0} missing")]
    Missing(&'static str),
}

/// Files of a reload, put together.
#[derive(Debug)]
pub struct FileCollector {
    batches: u32,
    descriptors: u32,
    next_batch: u32,
    files: Vec<(PathBuf, OwnedFd)>,
}

impl FileCollector {
    /// For so many batches with so many descriptors in all.
    pub fn new(batches: u32, descriptors: u32) -> Result<Self, HandoffError> {
        if batches == 0 || batches > BATCHES_MAX || descriptors == 0 || descriptors > HANDOFF_MAX {
            return Err(HandoffError::Start("no batch or descriptor, or too many"));
        }
        Ok(Self { batches, descriptors, next_batch: 0, files: Vec::new() })
    }

    /// Takes a batch; whether it was the last.
    pub fn take(
        &mut self,
        number: u32,
        items: Vec<Item>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<bool, HandoffError> {
        if number != self.next_batch || self.next_batch == self.batches {
            return Err(HandoffError::Order { found: number, expected: self.next_batch });
        }
        if items.len() != descriptors.len() {
            return Err(HandoffError::Count { items: items.len(), descriptors: descriptors.len() });
        }
        if self.files.len() + items.len() > self.descriptors as usize {
            return Err(HandoffError::TooMany);
        }
        for (item, descriptor) in items.into_iter().zip(descriptors) {
            match item {
                Item::File { path } if !self.files.iter().any(|(known, _)| *known == path) => {
                    self.files.push((path, descriptor))
                }
                other => return Err(HandoffError::Unexpected(other)),
            }
        }
        self.next_batch += 1;
        Ok(self.next_batch == self.batches)
    }

    /// After the last batch: the files, the main one first.
    pub fn finish(self) -> Result<Vec<(PathBuf, OwnedFd)>, HandoffError> {
        if self.next_batch != self.batches || self.files.len() != self.descriptors as usize {
            return Err(HandoffError::Missing("a descriptor"));
        }
        Ok(self.files)
    }
}

/// Everything that was handed over.
#[derive(Debug)]
pub struct Handoff {
    /// The start message.
    pub start: Start,
    /// Sealed memfds by path; the main configuration first.
    pub files: Vec<(PathBuf, OwnedFd)>,
    /// Index = worker; a socket for each of `Start::addresses`, in that order.
    pub listeners: Vec<Vec<(ListenKey, OwnedFd)>>,
    /// The admin listener.
    pub admin: Option<OwnedFd>,
    /// The counters' memfd.
    pub counters: OwnedFd,
    /// The steering array, or memory of its shape.
    pub slots: OwnedFd,
    /// The access log's file; absent while it is off.
    pub access_log: Option<OwnedFd>,
    /// The keys of session tickets.
    pub ticket_keys: OwnedFd,
    /// Where secrets of handshakes go; absent: nowhere.
    pub key_log: Option<OwnedFd>,
}

/// Puts a handoff together.
#[derive(Debug)]
pub struct Collector {
    start: Start,
    next_batch: u32,
    received: u32,
    files: Vec<(PathBuf, OwnedFd)>,
    /// The places of `start.addresses`.
    places: BTreeMap<ListenKey, usize>,
    /// By worker, then by place.
    listeners: Vec<Vec<Option<OwnedFd>>>,
    admin: Option<OwnedFd>,
    counters: Option<OwnedFd>,
    slots: Option<OwnedFd>,
    access_log: Option<OwnedFd>,
    ticket_keys: Option<OwnedFd>,
    key_log: Option<OwnedFd>,
}

impl Collector {
    /// After the start message.
    pub fn new(start: Start) -> Result<Self, HandoffError> {
        if start.protocol != PROTOCOL {
            return Err(HandoffError::Protocol(start.protocol));
        }
        if start.workers.is_empty() || start.workers.len() > WORKERS_MAX as usize {
            return Err(HandoffError::Start("no worker, or too many"));
        }
        if start.descriptors > HANDOFF_MAX || start.batches > BATCHES_MAX {
            return Err(HandoffError::Start("too many descriptors or batches"));
        }
        let sockets = start.workers.len().checked_mul(start.addresses.len());
        if sockets.is_none_or(|sockets| sockets > start.descriptors as usize) {
            return Err(HandoffError::Start("fewer descriptors than sockets"));
        }
        let places: BTreeMap<_, _> =
            start.addresses.iter().enumerate().map(|(place, key)| (*key, place)).collect();
        if places.len() != start.addresses.len() {
            return Err(HandoffError::Start("an address twice"));
        }
        let listeners =
            start.workers.iter().map(|_| start.addresses.iter().map(|_| None).collect()).collect();
        Ok(Self {
            start,
            next_batch: 0,
            received: 0,
            files: Vec::new(),
            places,
            listeners,
            admin: None,
            counters: None,
            slots: None,
            access_log: None,
            ticket_keys: None,
            key_log: None,
        })
    }

    /// Whether all batches came.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.next_batch == self.start.batches
    }

    /// Takes a batch.
    pub fn take(
        &mut self,
        number: u32,
        items: Vec<Item>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), HandoffError> {
        if number != self.next_batch || self.is_complete() {
            return Err(HandoffError::Order { found: number, expected: self.next_batch });
        }
        if items.len() != descriptors.len() {
            return Err(HandoffError::Count { items: items.len(), descriptors: descriptors.len() });
        }
        let count = u32::try_from(items.len()).map_err(|_| HandoffError::TooMany)?;
        self.received = self.received.checked_add(count).ok_or(HandoffError::TooMany)?;
        if self.received > self.start.descriptors {
            return Err(HandoffError::TooMany);
        }
        for (item, descriptor) in items.into_iter().zip(descriptors) {
            self.place(item, descriptor)?;
        }
        self.next_batch += 1;
        Ok(())
    }

    fn place(&mut self, item: Item, descriptor: OwnedFd) -> Result<(), HandoffError> {
        let slot = match &item {
            Item::File { path } => {
                if self.files.iter().any(|(known, _)| known == path) {
                    return Err(HandoffError::Unexpected(item));
                }
                self.files.push((path.clone(), descriptor));
                return Ok(());
            }
            Item::Listener { worker, key } => {
                let place = self.places.get(key).copied();
                self.listeners.get_mut(*worker).zip(place).and_then(|(sockets, place)| sockets.get_mut(place))
            }
            Item::Admin => Some(&mut self.admin),
            Item::Counters => Some(&mut self.counters),
            Item::Slots => Some(&mut self.slots),
            Item::AccessLog => Some(&mut self.access_log),
            Item::TicketKeys => Some(&mut self.ticket_keys),
            Item::KeyLog => Some(&mut self.key_log),
        };
        match slot {
            Some(slot @ None) => {
                *slot = Some(descriptor);
                Ok(())
            }
            _ => Err(HandoffError::Unexpected(item)),
        }
    }

    /// After the last batch.
    pub fn finish(self) -> Result<Handoff, HandoffError> {
        if !self.is_complete() || self.received != self.start.descriptors {
            return Err(HandoffError::Missing("a descriptor"));
        }
        if self.files.is_empty() {
            return Err(HandoffError::Missing("the configuration"));
        }
        let mut listeners = Vec::with_capacity(self.listeners.len());
        for sockets in self.listeners {
            let sockets: Option<Vec<OwnedFd>> = sockets.into_iter().collect();
            let sockets = sockets.ok_or(HandoffError::Missing("a listening socket"))?;
            listeners.push(self.start.addresses.iter().copied().zip(sockets).collect());
        }
        Ok(Handoff {
            start: self.start,
            files: self.files,
            listeners,
            admin: self.admin,
            counters: self.counters.ok_or(HandoffError::Missing("the counters"))?,
            slots: self.slots.ok_or(HandoffError::Missing("the steering slots"))?,
            access_log: self.access_log,
            ticket_keys: self.ticket_keys.ok_or(HandoffError::Missing("the keys of session tickets"))?,
            key_log: self.key_log,
        })
    }
}

#[cfg(test)]
mod tests;
