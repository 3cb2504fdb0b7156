//! Tests of `control::batches`.

use std::os::fd::AsFd;

use super::super::handoff::{Channel, Received};
use super::super::messages::{LogLook, Place, ToDataPlane};
use super::*;
use crate::listen::{ListenerId, ListenerIds, Transport};

fn fd() -> OwnedFd {
    // Any descriptor will do: nothing here looks into it.
    std::fs::File::open("/dev/null").expect("null").into()
}

fn key(address: usize) -> ListenKey {
    let port = u16::try_from(80 + address).expect("few");
    let address = ([127, 0, 0, 1], port).into();
    ListenKey { listener: ListenerId::FIRST, address, transport: Transport::Tcp }
}

fn start(workers: usize, addresses: usize, descriptors: usize, batches: usize) -> Start {
    Start {
        protocol: PROTOCOL,
        generation: 1,
        slot_generation: 1,
        snapshot: 1,
        log_level: "info".into(),
        log_look: LogLook::default(),
        batches: u32::try_from(batches).expect("few"),
        descriptors: u32::try_from(descriptors).expect("few"),
        workers: vec![Place { cpu: 0, node: 0, memory_node: None }; workers],
        control_cpus: Vec::new(),
        listeners: ListenerIds::default().follow(["main"]),
        addresses: (0..addresses).map(key).collect(),
    }
}

fn items(workers: usize, addresses: usize) -> Vec<Item> {
    let mut items = vec![
        Item::File { path: "/etc/sluice.toml".into() },
        Item::Counters,
        Item::Admin,
        Item::Slots,
        Item::TicketKeys,
    ];
    items.extend(
        (0..workers).flat_map(|worker| {
            (0..addresses).map(move |address| Item::Listener { worker, key: key(address) })
        }),
    );
    items
}

#[test]
fn five_hundred_sockets_arrive_each_in_its_place_over_a_real_channel() {
    let (workers, addresses) = (64, 8);
    let sent: Vec<(Item, OwnedFd)> = items(workers, addresses).into_iter().map(|item| (item, fd())).collect();
    let total = sent.len();
    let batches = cut(sent);
    assert!(batches.len() >= 3 && batches.iter().all(|batch| batch.len() <= DESCRIPTORS_MAX));
    let (one, other) = Channel::pair().expect("pair");
    let mut collector = Collector::new(start(workers, addresses, total, batches.len())).expect("sane");
    for (number, batch) in (0..).zip(&batches) {
        let items = batch.iter().map(|(item, _)| item.clone()).collect();
        let fds: Vec<_> = batch.iter().map(|(_, fd)| fd.as_fd()).collect();
        one.send(&ToDataPlane::Batch { number, items }, &fds).expect("send");
        let received: Received<ToDataPlane> = other.receive(DESCRIPTORS_MAX).expect("receive");
        let ToDataPlane::Batch { number, items } = received.message else { panic!("another message") };
        collector.take(number, items, received.descriptors).expect("in order");
    }
    let handoff = collector.finish().expect("complete");
    assert_eq!(handoff.listeners.len(), workers);
    assert!(
        handoff
            .listeners
            .iter()
            .all(|sockets| sockets.iter().map(|(key, _)| *key).eq((0..addresses).map(key)))
    );
    assert!(handoff.admin.is_some());
}

#[test]
fn long_paths_make_more_batches_instead_of_too_long_a_message() {
    let path = |number: usize| PathBuf::from(format!("/{}{number}", "\u{1}".repeat(4_000)));
    let batches = cut((0..30).map(|number| (Item::File { path: path(number) }, ())).collect());
    assert!(batches.len() > 10);
    for batch in batches {
        let items = batch.into_iter().map(|(item, ())| item).collect();
        let text = serde_json::to_vec(&ToDataPlane::Batch { number: 9, items }).expect("json");
        assert!(text.len() <= MESSAGE_BYTES_MAX, "{}", text.len());
    }
}

#[test]
fn a_start_that_makes_no_sense_is_refused() {
    assert!(matches!(
        Collector::new(Start { protocol: 1, ..start(1, 1, 9, 1) }),
        Err(HandoffError::Protocol(1))
    ));
    for bad in [
        start(0, 1, 9, 1),
        start(WORKERS_MAX as usize + 1, 1, 900, 4),
        start(2, 2, 3, 1),
        start(1, 1, HANDOFF_MAX as usize + 1, 1),
        start(1, 1, 9, BATCHES_MAX as usize + 1),
        Start { addresses: vec![key(0); 2], ..start(1, 2, 9, 1) },
    ] {
        assert!(matches!(Collector::new(bad), Err(HandoffError::Start(_))));
    }
}

#[test]
fn sockets_with_the_longest_names_fit_their_messages() {
    let address: std::net::SocketAddrV6 =
        "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().expect("long");
    let address = std::net::SocketAddrV6::new(*address.ip(), address.port(), 0, u32::MAX).into();
    let listener = ListenerId::from_bits(u64::from(u32::MAX));
    let longest = ListenKey { listener, address, transport: Transport::Tcp };
    let worker = WORKERS_MAX as usize - 1;
    let sockets = (0..DESCRIPTORS_MAX).map(|_| (Item::Listener { worker, key: longest }, ()));
    let batches = cut(sockets.collect());
    assert_eq!(batches.len(), 1);
    let items = batches.into_iter().flatten().map(|(item, ())| item).collect();
    let text = serde_json::to_vec(&ToDataPlane::Batch { number: u32::MAX, items }).expect("json");
    assert!(text.len() <= MESSAGE_BYTES_MAX, "{}", text.len());

    // 256 addresses are the most (config/resolve.rs), of as many listeners.
    let names: Vec<String> = (0..256).map(|number| format!("{number:064}")).collect();
    let start = Start {
        workers: vec![Place { cpu: 1023, node: 1023, memory_node: Some(1023) }; WORKERS_MAX as usize],
        listeners: ListenerIds::default().follow(names.iter().map(String::as_str)),
        addresses: vec![longest; names.len()],
        ..start(1, 1, 1, 1)
    };
    let text = serde_json::to_vec(&ToDataPlane::Start(Box::new(start))).expect("json");
    assert!(text.len() <= MESSAGE_BYTES_MAX, "{}", text.len());
}

/// One batch with these items for one worker with one address.
fn collect(items: Vec<Item>) -> Result<Handoff, HandoffError> {
    let mut collector = Collector::new(start(1, 1, items.len(), 1))?;
    let descriptors = items.iter().map(|_| fd()).collect();
    collector.take(0, items, descriptors)?;
    collector.finish()
}

#[test]
fn what_is_doubled_unknown_or_missing_is_refused() {
    assert!(collect(items(1, 1)).is_ok());
    for doubled in items(1, 1) {
        let mut all = items(1, 1);
        all.push(doubled.clone());
        assert_eq!(collect(all).expect_err("doubled"), HandoffError::Unexpected(doubled));
    }
    for stray in [Item::Listener { worker: 1, key: key(0) }, Item::Listener { worker: 0, key: key(1) }] {
        let mut all = items(1, 1);
        all.push(stray.clone());
        assert_eq!(collect(all).expect_err("stray"), HandoffError::Unexpected(stray));
    }
    for missing in [0, 1, 4] {
        let mut all = items(1, 1);
        all.remove(missing);
        assert!(matches!(collect(all).expect_err("missing"), HandoffError::Missing(_)));
    }
}

#[test]
fn batches_out_of_order_or_miscounted_are_refused() {
    let fresh = || Collector::new(start(1, 1, 5, 2)).expect("sane");
    assert_eq!(fresh().take(1, vec![], vec![]), Err(HandoffError::Order { found: 1, expected: 0 }));
    assert_eq!(
        fresh().take(0, vec![Item::Admin], vec![]),
        Err(HandoffError::Count { items: 1, descriptors: 0 })
    );
    let many = vec![Item::Admin; 6];
    assert_eq!(fresh().take(0, many, (0..6).map(|_| fd()).collect()), Err(HandoffError::TooMany));
    let mut collector = fresh();
    collector.take(0, vec![Item::Admin], vec![fd()]).expect("first");
    assert_eq!(collector.take(0, vec![], vec![]), Err(HandoffError::Order { found: 0, expected: 1 }));
    assert!(matches!(collector.finish(), Err(HandoffError::Missing(_))), "a batch is missing");
}

#[test]
fn files_of_a_reload_are_complete_in_order_and_nothing_else() {
    let file = |name: &str| Item::File { path: name.into() };
    let mut collector = FileCollector::new(2, 3).expect("sane");
    assert_eq!(collector.take(0, vec![file("main"), file("a")], vec![fd(), fd()]), Ok(false));
    assert_eq!(collector.take(1, vec![file("b")], vec![fd()]), Ok(true));
    let files = collector.finish().expect("complete");
    assert!(files.iter().map(|(path, _)| path.to_str().expect("text")).eq(["main", "a", "b"]));

    assert!(matches!(FileCollector::new(0, 1), Err(HandoffError::Start(_))));
    assert!(matches!(FileCollector::new(1, 0), Err(HandoffError::Start(_))));
    assert!(matches!(FileCollector::new(1, HANDOFF_MAX + 1), Err(HandoffError::Start(_))));
    assert!(matches!(FileCollector::new(BATCHES_MAX + 1, 1), Err(HandoffError::Start(_))));
    let fresh = || FileCollector::new(1, 2).expect("sane");
    assert_eq!(fresh().take(1, vec![], vec![]), Err(HandoffError::Order { found: 1, expected: 0 }));
    assert_eq!(
        fresh().take(0, vec![file("a")], vec![]),
        Err(HandoffError::Count { items: 1, descriptors: 0 })
    );
    let three = || (["a", "b", "c"].map(file).to_vec(), (0..3).map(|_| fd()).collect());
    assert_eq!(fresh().take(0, three().0, three().1), Err(HandoffError::TooMany));
    assert_eq!(
        fresh().take(0, vec![file("a"); 2], vec![fd(), fd()]),
        Err(HandoffError::Unexpected(file("a")))
    );
    assert_eq!(fresh().take(0, vec![Item::Admin], vec![fd()]), Err(HandoffError::Unexpected(Item::Admin)));
    let mut short = fresh();
    assert_eq!(short.take(0, vec![file("a")], vec![fd()]), Ok(true));
    assert!(matches!(short.finish(), Err(HandoffError::Missing(_))));
}
