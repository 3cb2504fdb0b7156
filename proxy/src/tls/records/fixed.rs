//! Records under fixed keys, and a client's half that seals anything: for fuzzing, where no handshake is
//! made.

use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};

use super::{Half, Kernel, Records, Sealed};
use crate::time::Time;

/// Keys that follow from how many came before them.
#[derive(Clone, Debug, Default)]
pub(super) struct Schedule {
    received: u8,
    sent: u8,
}

impl Schedule {
    pub(super) fn next_receive(&mut self) -> ConnectionTrafficSecrets {
        self.received = self.received.wrapping_add(1);
        secrets(1, self.received)
    }

    pub(super) fn next_send(&mut self) -> ConnectionTrafficSecrets {
        self.sent = self.sent.wrapping_add(1);
        secrets(2, self.sent)
    }
}

fn secrets(direction: u8, number: u8) -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Aes128Gcm {
        key: AeadKey::from([direction ^ number; 32]),
        iv: Iv::new([number; 12]),
    }
}

fn half(direction: u8, number: u8, is_13: bool) -> Half {
    Half::new(0, secrets(direction, number), is_13, 1 << 20).expect("a cipher that is known")
}

impl Records {
    /// A server's, as after a handshake.
    #[must_use]
    pub fn fixed(is_13: bool) -> Self {
        Self {
            send: half(2, 0, is_13),
            receive: half(1, 0, is_13),
            kernel: Kernel::Fixed(Schedule::default()),
            is_13,
            empty: 0,
            message: Vec::new(),
            burst: 0,
            sent_at: Time::default(),
        }
    }
}

/// The other end of such records.
pub struct Client {
    send: Half,
    receive: Half,
    keys: Schedule,
    is_13: bool,
}

impl Client {
    /// Of these versions.
    #[must_use]
    pub fn new(is_13: bool) -> Self {
        Self { send: half(1, 0, is_13), receive: half(2, 0, is_13), keys: Schedule::default(), is_13 }
    }

    /// A record of this kind; `padding` zeros within, where the version knows them.
    pub fn seal(&mut self, kind: u8, content: &[u8], padding: usize, out: &mut Vec<u8>) {
        if self.is_13 {
            // The kind is the last byte that is not zero: first the content, then its kind, then the padding.
            let inside = [content, &[kind][..], &vec![0; padding]].concat();
            let (&last, inside) = inside.split_last().expect("a kind");
            self.send.seal(last, inside, true, out).expect("sealed");
        } else {
            self.send.seal(kind, content, false, out).expect("sealed");
        }
    }

    /// From now on it seals under the next key.
    pub fn update(&mut self) {
        self.send = Half::new(0, self.keys.next_receive(), self.is_13, 1 << 20).expect("known");
    }

    /// Opens a record of the server: kind and content. After its key update the next key counts.
    ///
    /// # Panics
    /// When it is not a sound record.
    pub fn open(&mut self, record: &[u8]) -> (u8, Vec<u8>) {
        let (kind, bytes, at) =
            self.receive.open(Sealed::Shared(record), self.is_13).expect("a sound record");
        if self.is_13 && kind == super::HANDSHAKE {
            self.receive = Half::new(0, self.keys.next_send(), true, 1 << 20).expect("known");
        }
        (kind, bytes[at].to_vec())
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
