//! Clients whose early data is refused: whatever its size, its records and its way here, the handshake goes
//! on.

use std::io::Write as _;
use std::sync::Arc;

use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::kx_group::{SECP384R1, X25519};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::server::ServerSessionMemoryCache;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, Connection, Error, ServerConfig};

use crate::tls::alert::{self, Alert};
use crate::tls::handshake::{Established, Failure, Handshake};
use crate::tls::server::EARLY_BYTES_MAX;
use crate::tls::tests::{NAME, establish, open, pattern, seal};
use crate::tls::{client, provider, testing};

/// A server that speaks with this group alone, and promises to take so much.
fn server(group: &'static dyn SupportedKxGroup, promise: u32) -> Arc<ServerConfig> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![group];
    let pair = testing::Authority::new("CA").leaf(&[NAME]);
    let chain = crate::tls::pem::certificates(crate::tls::Part::Chain, pair.chain.as_bytes()).expect("PEM");
    let key = rcgen::KeyPair::from_pem(&pair.key).expect("a key").serialize_der();
    let builder = ServerConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&TLS13]);
    let mut config = builder
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(key).into())
        .expect("a pair");
    config.max_early_data_size = promise;
    config.session_storage = ServerSessionMemoryCache::new(8);
    config.enable_secret_extraction = true;
    config.send_half_rtt_data = true;
    config.key_log = Arc::new(crate::tls::key_log::Secrets);
    Arc::new(config)
}

/// A client that was promised to be heard early, with so much.
fn promised(promise: u32) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
    let config = config.expect("versions").dangerous();
    let config = config.with_custom_certificate_verifier(Arc::new(client::Credulous(provider())));
    let mut config = config.with_no_client_auth();
    config.enable_early_data = true;
    let config = Arc::new(config);
    let _ = testing::handshake(Arc::clone(&config), &server(SECP384R1, promise), NAME).expect("a session");
    config
}

/// The outcome for a client that says so much early, one length a record.
fn refused(promise: u32, lengths: &[usize], server: &Arc<ServerConfig>, piece: usize) -> Result<(), Failure> {
    let name = ServerName::try_from(NAME).expect("a name");
    let mut theirs = ClientConnection::new(promised(promise), name).expect("a client");
    theirs.set_buffer_limit(None);
    for &length in lengths {
        theirs.early_data().expect("a session").write_all(&pattern(length)).expect("within the promise");
    }
    let mut theirs = Connection::from(theirs);
    let (Established { mut records, rest, early, .. }, _) =
        establish(Handshake::server(server).expect("a server"), &mut theirs, piece)?;
    assert!(rest.is_empty() && early.is_empty());
    theirs.writer().write_all(b"again").expect("memory");
    let said = crate::tls::tests::drain(&mut theirs);
    assert_eq!(open(&mut records, &said, false, &mut Vec::new()), Ok((b"again".to_vec(), false)));
    let heard = crate::tls::tests::feed(&mut theirs, &seal(&mut records, b"answer"));
    assert_eq!(heard.expect("sound"), b"answer");
    Ok(())
}

#[test]
fn all_that_was_promised_is_skipped_however_it_comes() {
    let all = EARLY_BYTES_MAX as usize;
    let kinds: [&[usize]; 8] =
        [&[1], &[8200], &[1000; 5], &[100; 20], &[16_384; 3], &[1; 3000], &[all - 1, 1], &[1, all - 1]];
    // Another server does not know the session. With the same group it answers at once, with the other group
    // it asks for another hello first.
    for group in [SECP384R1, X25519] {
        // Also where early data was turned off.
        for promise in [EARLY_BYTES_MAX, 0] {
            for lengths in kinds {
                for piece in [1, 1000, 1 << 15] {
                    if piece == 1 && lengths.iter().sum::<usize>() > 10_000 {
                        continue;
                    }
                    let server = server(group, promise);
                    let outcome = refused(EARLY_BYTES_MAX, lengths, &server, piece);
                    let (count, first) = (lengths.len(), lengths[0]);
                    assert_eq!(outcome, Ok(()), "{count} of {first}, {group:?}, {promise}, by {piece}");
                }
            }
        }
    }
}

#[test]
fn nobody_is_heard_for_longer_than_was_promised() {
    for group in [SECP384R1, X25519] {
        for piece in [1000, 1 << 15] {
            let failure = refused(4 * EARLY_BYTES_MAX, &[16_000; 12], &server(group, 0), piece);
            let Err(Failure::Refused(error, Some(told))) = failure else { panic!("{failure:?}") };
            let expected = match error {
                Error::DecryptError => alert::BAD_RECORD_MAC,
                _ => alert::UNEXPECTED_MESSAGE,
            };
            assert_eq!(told, Alert::of(expected), "{error:?}");
        }
    }
}
