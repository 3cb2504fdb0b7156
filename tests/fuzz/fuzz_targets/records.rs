//! The record layer of an established server connection. A client seals, alters or makes up records, cut
//! anywhere. Only data that was sealed as data comes out, in order and unaltered. An error sends one alert,
//! which a client can open, and is the same for every cut.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use proxy::time::Time;
use proxy::tls::records::fixed::Client;
use proxy::tls::records::{HEADER_BYTES, Opened, Records, Sealed, Violation};

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

#[derive(Arbitrary, Debug)]
enum Act<'a> {
    Data(&'a [u8]),
    /// A record of data whose length is around the limit, at most two bytes above it.
    Long(u8),
    Alert([u8; 2]),
    Handshake(&'a [u8]),
    /// A key update that may ask for an answer and may come in two parts. The client may fail to change its
    /// key.
    Update {
        wanted: bool,
        is_cut: bool,
        is_done: bool,
    },
    /// A record of any kind, padded with zeros.
    Record {
        kind: u8,
        content: &'a [u8],
        padding: u8,
    },
    /// A sealed record with a bit changed.
    Altered {
        content: &'a [u8],
        at: u16,
        bit: u8,
    },
    /// A sealed record that is not sent.
    Lost(&'a [u8]),
    Raw(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    is_13: bool,
    seed: u8,
    acts: Vec<Act<'a>>,
}

/// The bytes that the client sends, and the data that it sealed as such.
fn perform(input: &Input<'_>) -> (Vec<u8>, Vec<u8>) {
    let (mut client, mut wire, mut data) = (Client::new(input.is_13), Vec::new(), Vec::new());
    for act in input.acts.iter().take(80) {
        match *act {
            Act::Data(content) => {
                data.extend_from_slice(content);
                client.seal(DATA, content, 0, &mut wire);
            }
            Act::Long(less) => {
                let content = vec![less; (1 << 14) + 2 - usize::from(less % 8)];
                data.extend_from_slice(&content);
                client.seal(DATA, &content, 0, &mut wire);
            }
            Act::Alert(content) => client.seal(ALERT, &content, 0, &mut wire),
            Act::Handshake(content) => client.seal(HANDSHAKE, content, 0, &mut wire),
            Act::Update { wanted, is_cut, is_done } => {
                let message = [24, 0, 0, 1, u8::from(wanted)];
                let (first, second) = message.split_at(if is_cut { 2 } else { 0 });
                if is_cut {
                    client.seal(HANDSHAKE, first, 0, &mut wire);
                }
                client.seal(HANDSHAKE, second, 0, &mut wire);
                if is_done && input.is_13 {
                    client.update();
                }
            }
            Act::Record { kind, content, padding } => {
                // In TLS 1.3 the last byte other than zero is the kind.
                let inside = [content, &[kind]].concat();
                let last = inside.iter().rposition(|&byte| byte != 0 || !input.is_13);
                if let Some(last) = last.filter(|&last| inside[last] == DATA) {
                    data.extend_from_slice(&inside[..last]);
                }
                client.seal(kind, content, usize::from(padding), &mut wire);
            }
            Act::Altered { content, at, bit } => {
                let mut record = Vec::new();
                client.seal(DATA, content, 0, &mut record);
                let at = usize::from(at) % record.len();
                record[at] ^= 1 << (bit % 8);
                wire.append(&mut record);
            }
            Act::Lost(content) => client.seal(DATA, content, 0, &mut Vec::new()),
            Act::Raw(bytes) => wire.extend_from_slice(bytes),
        }
    }
    (wire, data)
}

#[derive(Debug, PartialEq)]
struct Outcome {
    data: Vec<u8>,
    is_ended: bool,
    error: Option<Violation>,
    out: Vec<u8>,
}

/// Reads records as a stream does: each once it is complete, from its own or from shared bytes.
fn receive(input: &Input<'_>, wire: &[u8], ends: &[usize]) -> Outcome {
    let mut records = Records::fixed(input.is_13);
    let mut outcome = Outcome { data: Vec::new(), is_ended: false, error: None, out: Vec::new() };
    let (mut waiting, mut at) = (Vec::new(), 0);
    for &end in ends {
        waiting.extend_from_slice(&wire[at..end]);
        at = end;
        while let Some(&header) = waiting.first_chunk::<HEADER_BYTES>() {
            let opened = match records.length(header, &mut outcome.out) {
                Ok(length) if waiting.len() < length => break,
                Ok(length) => {
                    let record: Vec<u8> = waiting.drain(..length).collect();
                    let is_own = (input.seed as usize + ends.len()).is_multiple_of(2);
                    let record = if is_own { Sealed::Own(record.clone()) } else { Sealed::Shared(&record) };
                    records.open(record, &mut outcome.out)
                }
                Err(error) => Err(error),
            };
            match opened {
                Ok(Opened::Data(bytes, range)) => {
                    assert!(!range.is_empty());
                    outcome.data.extend_from_slice(&bytes[range]);
                }
                Ok(Opened::Nothing) => {}
                Ok(Opened::End) => {
                    outcome.is_ended = true;
                    return outcome;
                }
                Err(error) => {
                    outcome.error = Some(error);
                    return outcome;
                }
            }
        }
    }
    // The connection can still send.
    records.seal(b"still here", Time::from_nanos(1), &mut outcome.out).expect("sealed");
    outcome
}

fuzz_target!(|input: Input<'_>| {
    let (wire, sealed) = perform(&input);
    let whole = receive(&input, &wire, &[wire.len()]);
    fuzz::splits(input.seed, wire.len(), |ends| assert_eq!(receive(&input, &wire, ends), whole));

    assert!(sealed.starts_with(&whole.data), "what was not sealed as data came out");
    let (mut client, mut out, mut alerts, mut last) =
        (Client::new(input.is_13), &whole.out[..], Vec::new(), None);
    while !out.is_empty() {
        let (record, rest) = out.split_at(HEADER_BYTES + usize::from(u16::from_be_bytes([out[3], out[4]])));
        out = rest;
        let (kind, content) = client.open(record);
        match kind {
            ALERT => alerts.push((content[0], content[1])),
            HANDSHAKE => assert_eq!(content, [24, 0, 0, 1, 0]),
            DATA => assert_eq!(content, b"still here"),
            kind => panic!("a record of kind {kind}"),
        }
        last = Some(kind);
    }
    // An alert that refuses a renegotiation does not end the connection.
    alerts.retain(|&(level, description)| (level, description) != (1, 100));
    match whole.error {
        Some(Violation::Ours(description)) => {
            assert_eq!((alerts, last), (vec![(2, description)], Some(ALERT)));
        }
        Some(Violation::Alert(_)) => assert!(alerts.is_empty()),
        Some(Violation::Unsaid) => panic!("that is no handshake's"),
        None => assert!(alerts.is_empty() && (whole.is_ended || last == Some(DATA))),
    }
});
