//! Tests of `kernel::guard::listeners`.

use proxy_common::guard::PORT_NONE;

use super::*;

fn plan(addresses: &[&str]) -> ListenerPlan {
    let addresses: Vec<SocketAddr> =
        addresses.iter().map(|address| address.parse().expect("an address")).collect();
    ListenerPlan::new(&addresses)
}

/// A port's states for IPv4 and IPv6.
fn states(plan: &ListenerPlan, port: u16) -> (u64, u64) {
    let (word, shift) = port_place(port);
    let bits = plan.words(plan.mains())[word as usize] >> shift;
    (bits & 3, bits >> PORT_FAMILY_BITS & 3)
}

#[test]
fn a_dual_stack_wildcard_takes_both_families_unless_ipv4_has_the_port() {
    assert_eq!(states(&plan(&["[::]:443"]), 443), (PORT_ANY, PORT_ANY));
    assert_eq!(states(&plan(&["[::]:443", "0.0.0.0:443"]), 443), (PORT_ANY, PORT_ANY));
    assert_eq!(states(&plan(&["0.0.0.0:443"]), 443), (PORT_ANY, PORT_NONE));
    let split = plan(&["[::]:443", "192.0.2.1:443", "[::]:80"]);
    assert_eq!(states(&split, 443), (PORT_MAIN, PORT_ANY));
    assert_eq!(states(&split, 80), (PORT_ANY, PORT_ANY));
    assert_eq!(states(&split, 81), (PORT_NONE, PORT_NONE));
    assert_eq!(
        split.exact().collect::<Vec<_>>(),
        [listener_key("192.0.2.1:443".parse().expect("an address"))]
    );
    // Packets that do not show their port: every address where anything listens.
    assert_eq!(states(&split, PORT_HIDDEN), (PORT_ANY, PORT_ANY));
    assert_eq!(states(&plan(&["192.0.2.1:443", "192.0.2.1:80"]), PORT_HIDDEN), (PORT_MAIN, PORT_NONE));
    assert_eq!(states(&plan(&["192.0.2.1:443", "192.0.2.2:80"]), PORT_HIDDEN), (PORT_LOOKUP, PORT_NONE));
    // Before the kernel has chosen a port.
    assert_eq!(states(&plan(&["192.0.2.1:0", "0.0.0.0:80"]), PORT_HIDDEN), (PORT_ANY, PORT_NONE));
}

#[test]
fn main_addresses_are_read_as_they_are_written() {
    assert_eq!(Mains::of(&GuardConfig::default()), Mains::NONE);
    for mains in [Mains::NONE, plan(&["192.0.2.1:80", "[2001:db8::1]:80"]).mains()] {
        let [main_v4, main_v6] = mains.words();
        assert_eq!(Mains::of(&GuardConfig { main_v4, main_v6, ..GuardConfig::default() }), mains);
    }
}

#[test]
fn a_mapped_listener_is_an_ipv4_listener() {
    assert_eq!(plan(&["[::ffff:192.0.2.1]:80"]), plan(&["192.0.2.1:80"]));
}

#[test]
fn neighbouring_ports_share_a_word_and_nothing_else() {
    let plan = plan(&["0.0.0.0:16", "[2001:db8::1]:17", "0.0.0.0:65535"]);
    let words = plan.words(plan.mains());
    assert_eq!(words[0], PORT_ANY | PORT_MAIN << PORT_FAMILY_BITS);
    assert_eq!(words[1], PORT_ANY | PORT_MAIN << (4 + PORT_FAMILY_BITS));
    assert_eq!(words[4095], PORT_ANY << 60);
    assert_eq!(words.iter().filter(|word| **word != 0).count(), 3);
}

#[test]
fn the_address_on_most_ports_needs_no_lookup() {
    let plan = plan(&[
        "192.0.2.1:80",
        "192.0.2.1:81",
        "192.0.2.1:443",
        "192.0.2.2:8080",
        "192.0.2.2:443",
        "[2001:db8::1]:443",
    ]);
    assert_eq!(states(&plan, 80), (PORT_MAIN, PORT_NONE));
    // Here are several addresses, or another one than the main address.
    assert_eq!(states(&plan, 443), (PORT_LOOKUP, PORT_MAIN));
    assert_eq!(states(&plan, 8080), (PORT_LOOKUP, PORT_NONE));
    assert_eq!(plan.mains().v4, Ipv4Addr::new(192, 0, 2, 1));
    // Six with their ports; three for the packets that do not show theirs.
    assert_eq!(plan.exact().count(), 9);
}

#[test]
fn a_program_that_knows_another_main_address_looks_up() {
    let plan = plan(&["192.0.2.1:80", "[2001:db8::1]:80"]);
    let (word, shift) = port_place(80);
    let expected = PORT_LOOKUP | PORT_LOOKUP << PORT_FAMILY_BITS;
    assert_eq!(plan.words(Mains::NONE)[word as usize] >> shift & 15, expected);
}
