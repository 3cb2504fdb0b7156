//! Tests of `control::messages`.

use super::*;
use crate::listen::{ListenerId, Transport};

#[test]
fn what_is_written_is_read() {
    let start = Start {
        protocol: PROTOCOL,
        generation: 3,
        slot_generation: 1,
        snapshot: 7,
        log_level: "info".into(),
        log_look: LogLook::default(),
        batches: 2,
        descriptors: 251,
        workers: vec![Place { cpu: 2, node: 1, memory_node: Some(1) }],
        control_cpus: vec![0, 1],
        listeners: ListenerIds::default().follow(["web"]),
        addresses: vec![ListenKey {
            listener: ListenerId::FIRST,
            address: "[::]:443".parse().expect("address"),
            transport: Transport::Tcp,
        }],
    };
    let text = serde_json::to_string(&ToDataPlane::Start(Box::new(start.clone()))).expect("json");
    match serde_json::from_str(&text).expect("read") {
        ToDataPlane::Start(read) => assert_eq!(*read, start),
        other => panic!("{other:?}"),
    }
    for message in [
        ToSupervisor::Ready,
        ToSupervisor::Failed { reason: "x".into() },
        ToSupervisor::Status { id: u64::MAX },
        ToSupervisor::Compiled { id: 1 },
        ToSupervisor::NotCompiled { id: 2, reason: "y".into() },
        ToSupervisor::Published { id: 3 },
        ToSupervisor::Released { snapshot: 4 },
    ] {
        let text = serde_json::to_string(&message).expect("json");
        assert_eq!(serde_json::from_str::<ToSupervisor>(&text).expect("read"), message);
    }
}

#[test]
fn the_words_of_the_other_process_are_bounded_and_move_no_cursor() {
    assert_eq!(said("no, since\n\x1b[2J\u{9b}1m\rä"), "no, since\n\\u{1b}[2J\\u{9b}1m\\u{d}ä");
    for text in ["x", "\x00", "ä", "\u{10ffff}"] {
        let long = said(&text.repeat(SAID_BYTES_MAX + 1));
        // JSON writes a backslash as two bytes.
        assert!(long.len() <= 6 * SAID_BYTES_MAX + 3 && long.ends_with('…'), "{long}");
    }
    assert_eq!(said(&"x".repeat(SAID_BYTES_MAX)).len(), SAID_BYTES_MAX);
}

#[test]
fn unknown_messages_and_fields_are_refused() {
    for text in [
        r#""dance""#,
        r#"{"failed":{"reason":"x","more":1}}"#,
        r#"{"status":{}}"#,
        r#"{"status":{"id":-1}}"#,
        "{}",
        "[]",
        "",
    ] {
        assert!(serde_json::from_str::<ToSupervisor>(text).is_err(), "{text}");
    }
}
