//! Tests of `listen::sources`.

use std::sync::atomic::AtomicU32;

use super::*;

const SEEDS: [u64; 2] = [0x5851_f42d_4c95_7f2d, 0x1405_7b7e_f767_814f];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().expect("a network")).collect()
}

fn sources(limit: u32, connections_max: usize) -> Sources {
    Sources::new(limit, connections_max, &[], false, SEEDS)
}

fn counted(sources: &Sources, source: IpAddr) -> Ticket {
    match sources.claim(source) {
        Claim::Counted(ticket) => ticket,
        other => panic!("{source}: {other:?}"),
    }
}

#[test]
fn a_source_has_its_limit_and_gets_back_what_it_releases() {
    let sources = sources(3, 100);
    let one = address("198.51.100.7");
    let tickets = [one, address("::ffff:198.51.100.7"), one].map(|source| counted(&sources, source));
    assert_eq!(sources.claim(one), Claim::AtLimit);
    counted(&sources, address("198.51.100.8"));
    sources.release(tickets[1]);
    counted(&sources, one);
    assert_eq!((sources.claim(one), sources.count(one)), (Claim::AtLimit, 3));
}

#[test]
fn an_ipv6_source_is_its_64() {
    let sources = sources(2, 100);
    counted(&sources, address("2001:db8:7:7::1"));
    counted(&sources, address("2001:db8:7:7:ffff::2"));
    assert_eq!(sources.claim(address("2001:db8:7:7::3")), Claim::AtLimit);
    counted(&sources, address("2001:db8:7:8::1"));
}

#[test]
fn allowed_sources_are_exempt_and_families_do_not_mix() {
    let allow =
        nets(&["10.0.0.0/8", "10.1.0.0/16", "198.51.100.7/32", "2001:db8::/32", "::ffff:192.0.2.0/120"]);
    let exempts = |list: &[IpNet], source: &str| Ranges::new(list).contain(address(source));
    for (source, expected) in [
        ("9.255.255.255", false),
        ("10.0.0.0", true),
        ("10.200.0.1", true),
        ("10.255.255.255", true),
        ("11.0.0.0", false),
        ("198.51.100.7", true),
        ("198.51.100.8", false),
        ("192.0.2.255", true),
        ("192.0.3.0", false),
        ("2001:db8:ffff::1", true),
        ("2001:db9::", false),
    ] {
        assert_eq!(exempts(&allow, source), expected, "{source}");
    }
    assert!(!exempts(&nets(&["::/0"]), "10.0.0.1") && exempts(&nets(&["::/0"]), "2001:db8::1"));
    assert!(!exempts(&nets(&["0.0.0.0/0"]), "::1") && exempts(&nets(&["0.0.0.0/0"]), "10.0.0.1"));
    assert!(!exempts(&[], "10.0.0.1"));
    let sources = Sources::new(1, 100, &allow, false, SEEDS);
    assert_eq!([0; 3].map(|_| sources.claim(address("10.0.0.1"))), [Claim::Exempt; 3]);
}

/// A limit above the range of one entry takes a second entry.
#[test]
fn a_count_goes_on_in_another_entry() {
    let sources = sources(2000, 1);
    assert_eq!(sources.bits, BITS_MIN);
    let one = address("198.51.100.7");
    let tickets: Vec<_> = (0..2000).map(|_| counted(&sources, one)).collect();
    assert_eq!(sources.claim(one), Claim::AtLimit);
    tickets.into_iter().for_each(|ticket| sources.release(ticket));
    assert_eq!(sources.count(one), 0);
    assert!(
        sources
            .buckets
            .iter()
            .flat_map(|bucket| &bucket.0)
            .all(|entry| sources::is_free(entry.load(Ordering::Relaxed), 8))
    );
}

/// Full buckets let a connection pass without counting it, and forget nobody.
#[test]
fn without_room_a_connection_is_not_counted() {
    let sources = sources(1, 1);
    let all = (2 * BUCKET_ENTRIES) << BITS_MIN;
    let mut counted = Vec::new();
    let mut refused = 0;
    for number in 0..u32::try_from(all).expect("few") * 2 {
        let source = IpAddr::from(number.to_be_bytes());
        match sources.claim(source) {
            Claim::Counted(ticket) => counted.push((source, ticket)),
            Claim::NoRoom => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(counted.len() > all * 9 / 10 && refused > 0, "{} of {all}", counted.len());
    assert!(counted.iter().all(|(source, _)| sources.claim(*source) == Claim::AtLimit));
    counted.drain(..).for_each(|(_, ticket)| sources.release(ticket));
    assert_ne!(sources.claim(address("198.51.100.7")), Claim::NoRoom);
}

/// However many threads come and go with one source, never more than the limit are in, and at the end
/// nobody is.
#[test]
fn threads_share_one_exact_count() {
    const LIMIT: u32 = 7;
    let sources = sources(LIMIT, 1000);
    let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
    let one = address("203.0.113.9");
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (sources, inside, most) = (&sources, &inside, &most);
            scope.spawn(move || {
                let mut held = Vec::new();
                for round in 0..20_000u32 {
                    // Others come and go in the same buckets.
                    let other = IpAddr::from([10, thread, (round >> 8) as u8, round as u8]);
                    let Claim::Counted(ticket) = sources.claim(other) else { panic!("room for all") };
                    if let Claim::Counted(ticket) = sources.claim(one) {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        held.push(ticket);
                    }
                    if round % 3 == 0
                        && let Some(ticket) = held.pop()
                    {
                        inside.fetch_sub(1, Ordering::SeqCst);
                        sources.release(ticket);
                    }
                    sources.release(ticket);
                }
                for ticket in held {
                    inside.fetch_sub(1, Ordering::SeqCst);
                    sources.release(ticket);
                }
            });
        }
    });
    assert_eq!(most.into_inner(), LIMIT);
    assert_eq!(sources.count(one), 0);
    assert!(
        (0..LIMIT).all(|_| matches!(sources.claim(one), Claim::Counted(_)))
            && sources.claim(one) == Claim::AtLimit
    );
}
