//! Clients that ask for a name which rustls takes for none (`foo-.test`, `x:443`, `[::1]`). Other servers
//! show them their default certificate, but rustls refuses the whole hello.
//!
//! So rustls is shown a hello in which the name's extension has a type that nobody knows. Nothing else is
//! changed, neither a length. What both sides hash is the client's own hello: the hash functions that rustls
//! is given put it back.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::{SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite};

use super::hello::Hidden;
use super::records::HEADER_BYTES;

/// A hello as the client said it, and as rustls sees it. Both have the same length.
pub(super) struct Mask {
    real: Vec<u8>,
    shown: Vec<u8>,
}

impl Mask {
    /// Hides the name of the hello whose records `input` begins with. `None`: they do not hold it whole.
    pub(super) fn put_on(input: &mut [u8], hidden: Hidden) -> Option<Self> {
        let mut real = Vec::new();
        let mut places = Vec::new();
        let mut at = 0;
        let length = loop {
            if let Some(&[_, a, b, c]) = real.first_chunk::<4>() {
                let length = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
                if real.len() >= length {
                    break length;
                }
            }
            let &[.., high, low] = input.get(at..)?.first_chunk::<HEADER_BYTES>()?;
            let (start, length) = (at + HEADER_BYTES, usize::from(u16::from_be_bytes([high, low])));
            real.extend_from_slice(input.get(start..start + length)?);
            places.extend(start..start + length);
            at = start + length;
        };
        real.truncate(length);
        let mut shown = real.clone();
        for (index, byte) in hidden.kind.to_be_bytes().into_iter().enumerate() {
            *shown.get_mut(hidden.at + index)? = byte;
            *input.get_mut(*places.get(hidden.at + index)?)? = byte;
        }
        Some(Self { real, shown })
    }

    /// The client's own bytes of what rustls hashes.
    fn lift<'a>(&self, data: &'a [u8]) -> Cow<'a, [u8]> {
        if let Some(rest) = data.strip_prefix(&*self.shown) {
            Cow::Owned([&self.real, rest].concat())
        } else if self.shown.starts_with(data) {
            // The hello up to its binders (RFC 8446 §4.2.11.2).
            Cow::Owned(self.real[..data.len()].to_vec())
        } else {
            Cow::Borrowed(data)
        }
    }
}

thread_local! {
    /// The mask of the handshake that takes a step on this thread.
    static WORN: RefCell<Option<Rc<Mask>>> = const { RefCell::new(None) };
}

/// Takes a step of rustls' with a handshake that has this mask.
pub(super) fn wearing<R>(mask: Option<&Rc<Mask>>, step: impl FnOnce() -> R) -> R {
    WORN.set(mask.cloned());
    let result = step();
    WORN.set(None);
    result
}

fn lift(data: &[u8]) -> Cow<'_, [u8]> {
    WORN.with_borrow(|mask| mask.as_ref().map_or(Cow::Borrowed(data), |mask| mask.lift(data)))
}

/// The crypto of servers: as of everybody, with hash functions that know of masks.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static SUITES: LazyLock<Vec<SupportedCipherSuite>> =
        LazyLock::new(|| suites(|hash| Box::leak(Box::new(Lifting(hash)))));
    let cipher_suites = SUITES.clone();
    Arc::new(CryptoProvider { cipher_suites, ..CryptoProvider::clone(&super::provider()) })
}

/// All suites, each with another hash function. They are made once in a process and live as long: rustls asks
/// for that.
fn suites(hash: fn(&'static dyn Hash) -> &'static dyn Hash) -> Vec<SupportedCipherSuite> {
    super::provider().cipher_suites.iter().map(|made| suite(*made, hash)).collect()
}

fn suite(
    suite: SupportedCipherSuite,
    hash: fn(&'static dyn Hash) -> &'static dyn Hash,
) -> SupportedCipherSuite {
    let common = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: hash(common.hash_provider),
        confidentiality_limit: common.confidentiality_limit,
    };
    match suite {
        SupportedCipherSuite::Tls12(suite) => {
            SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
                common: common(&suite.common),
                prf_provider: suite.prf_provider,
                kx: suite.kx,
                sign: suite.sign,
                aead_alg: suite.aead_alg,
            })))
        }
        SupportedCipherSuite::Tls13(suite) => {
            SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
                common: common(&suite.common),
                hkdf_provider: suite.hkdf_provider,
                aead_alg: suite.aead_alg,
                quic: suite.quic,
            })))
        }
    }
}

/// A hash function over hellos without their masks.
struct Lifting(&'static dyn Hash);

impl Hash for Lifting {
    fn start(&self) -> Box<dyn Context> {
        Box::new(Lifted(self.0.start()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        self.0.hash(&lift(data))
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0.algorithm()
    }
}

struct Lifted(Box<dyn Context>);

impl Context for Lifted {
    fn fork_finish(&self) -> Output {
        self.0.fork_finish()
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Self(self.0.fork()))
    }

    fn finish(self: Box<Self>) -> Output {
        self.0.finish()
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(&lift(data));
    }
}

#[cfg(test)]
mod tests;
