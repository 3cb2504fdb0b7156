//! The guard follows its interfaces: made anew, renamed, set down, part of a bridge, and devices without
//! Ethernet.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use proxy::kernel::changes::{Changes, Follower};
use tests::cable::{CLIENTS, Cable, SERVER};
use tests::netns::Netns;
use tests::sluice::{self, Setup, Sluice};
use tests::{eventually, skip};

const LIMIT: Duration = Duration::from_secs(15);
const ONE: IpAddr = CLIENTS[0];
const OTHER: IpAddr = CLIENTS[1];
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// Removes the cable, which takes the addresses with it.
fn unplug(cable: &Cable) {
    cable.server.ip(&["link", "del", "edge"]);
}

/// A new cable with the same names and addresses.
fn plug(cable: &Cable) {
    let [first, others @ ..] = CLIENTS.map(|address| format!("{address}/24"));
    cable.server.join(("edge", &format!("{SERVER}/24")), &cable.clients, ("out", &first));
    for address in others {
        cable.clients.ip(&["address", "add", &address, "dev", "out"]);
    }
}

fn is_attached(sluice: &Sluice) -> bool {
    let metrics = sluice.metrics();
    let attached = metrics.sum("sluice_guard_interface_attached") > 0.5;
    let shown = sluice.status()["supervisor"]["guard"]["interfaces"].get("edge").is_some();
    attached && shown
}

fn degraded(sluice: &Sluice) -> String {
    sluice.status()["supervisor"]["degraded"].to_string()
}

#[test]
fn an_interface_that_is_made_anew_is_guarded_again() {
    if skip::without_root() {
        return;
    }
    for mode in ["driver", "generic"] {
        let cable = Cable::new();
        let sluice = cable.setup_in(mode, "").start();
        let banned = sluice.command_with("ban", &[&ONE.to_string(), "--for", "10m"]);
        assert_eq!(banned.code(), 0, "{}", banned.all());
        assert!(!cable.is_served(ONE, &sluice) && cable.is_served(OTHER, &sluice));
        let before = sluice.verdicts()["banned"];
        assert!(before > 0);

        unplug(&cable);
        eventually(LIMIT, "it says that nothing is attached", || (!is_attached(&sluice)).then_some(()));
        let status = sluice.status();
        let guard = &status["supervisor"]["guard"];
        assert!(
            guard["unguarded"]["edge"].as_str().unwrap().contains("no interface of this name"),
            "{guard}"
        );
        assert_eq!(guard["verdicts"]["banned"], before, "counters go on");
        assert!(degraded(&sluice).contains("guard: packets on edge reach the kernel unjudged"));
        let probe = sluice.admin("/readyz").unwrap();
        assert_eq!(probe.status, 200);
        assert!(probe.text().contains("degraded: guard: packets on edge"), "{}", probe.text());
        let refused = sluice.command_with("ban", &[&OTHER.to_string()]);
        assert_eq!(refused.code(), 1, "{}", refused.all());
        assert!(refused.errors().contains("no XDP program is attached"), "{}", refused.all());

        plug(&cable);
        eventually(LIMIT, "XDP is attached again", || is_attached(&sluice).then_some(()));
        assert!(cable.server.xdp("edge").is_some());
        assert!(!cable.is_served(ONE, &sluice), "{mode}: the ban holds on the new interface");
        assert!(cable.is_served(OTHER, &sluice));
        assert!(sluice.verdicts()["banned"] > before, "the same counters");
        assert!(
            !degraded(&sluice).contains("unjudged")
                && !sluice.admin("/readyz").unwrap().text().contains("unjudged")
        );
        let log = sluice.log();
        assert_eq!(log.matches("reach the kernel unjudged").count(), 1, "one line: {log}");
        assert_eq!(log.matches("XDP attached again").count(), 1, "one line: {log}");
        let lifted = sluice.command_with("unban", &[&ONE.to_string()]);
        assert_eq!(lifted.code(), 0, "{}", lifted.all());
        assert!(cable.is_served(ONE, &sluice));
    }
}

#[test]
fn a_ban_can_be_lifted_while_the_interface_is_gone() {
    if skip::without_root() {
        return;
    }
    let cable = Cable::new();
    let sluice = cable.setup("").start();
    assert_eq!(sluice.command_with("ban", &[&ONE.to_string(), "--for", "10m"]).code(), 0);
    unplug(&cable);
    eventually(LIMIT, "it says that nothing is attached", || (!is_attached(&sluice)).then_some(()));
    let lifted = sluice.command_with("unban", &[&ONE.to_string()]);
    assert_eq!(lifted.code(), 0, "{}", lifted.all());
    plug(&cable);
    eventually(LIMIT, "XDP is attached again", || is_attached(&sluice).then_some(()));
    assert!(cable.is_served(ONE, &sluice));
}

#[test]
fn a_list_that_changed_meanwhile_holds_on_the_new_interface() {
    if skip::without_root() {
        return;
    }
    let cable = Cable::new();
    let setup = cable.setup("");
    let denied = setup.text().replace("[guard]\n", &format!("[guard]\ndeny = [\"{ONE}\"]\n"));
    let sluice = setup.start();
    assert!(cable.is_served(ONE, &sluice));
    unplug(&cable);
    eventually(LIMIT, "it says that nothing is attached", || (!is_attached(&sluice)).then_some(()));
    std::fs::write(sluice.config_path(), denied).unwrap();
    let reloaded = sluice.command("reload");
    assert_eq!(reloaded.code(), 0, "{}", reloaded.all());
    plug(&cable);
    eventually(LIMIT, "XDP is attached again", || is_attached(&sluice).then_some(()));
    assert!(!cable.is_served(ONE, &sluice) && cable.is_served(OTHER, &sluice));
}

#[test]
fn down_up_and_a_bridge_keep_the_guard_and_a_new_name_is_told() {
    if skip::without_root() {
        return;
    }
    let cable = Cable::new();
    let sluice = cable.setup_in("generic", &format!("deny = [\"{ONE}\"]")).start();
    let ip = |arguments: &[&str]| drop(cable.server.ip(arguments));
    ip(&["link", "set", "edge", "down"]);
    ip(&["link", "set", "edge", "up"]);
    eventually(LIMIT, "the link is up", || cable.is_served(OTHER, &sluice).then_some(()));
    assert!(is_attached(&sluice) && !cable.is_served(ONE, &sluice));

    ip(&["link", "set", "edge", "down"]);
    ip(&["link", "set", "edge", "name", "wan"]);
    ip(&["link", "set", "wan", "up"]);
    eventually(LIMIT, "the new name is told", || {
        degraded(&sluice).contains("edge has the name wan").then_some(())
    });
    eventually(LIMIT, "the link is up", || cable.is_served(OTHER, &sluice).then_some(()));
    assert!(!cable.is_served(ONE, &sluice), "the interface is guarded under any name");
    ip(&["link", "set", "wan", "down"]);
    ip(&["link", "set", "wan", "name", "edge"]);
    ip(&["link", "set", "edge", "up"]);
    eventually(LIMIT, "all is as it was", || (!degraded(&sluice).contains("has the name")).then_some(()));

    // The bridge takes the address over.
    ip(&["link", "add", "bridge", "type", "bridge"]);
    ip(&["link", "set", "edge", "master", "bridge"]);
    ip(&["address", "del", &format!("{SERVER}/24"), "dev", "edge"]);
    ip(&["address", "add", &format!("{SERVER}/24"), "dev", "bridge"]);
    ip(&["link", "set", "bridge", "up"]);
    eventually(LIMIT, "the bridge forwards", || cable.is_served(OTHER, &sluice).then_some(()));
    assert!(is_attached(&sluice) && !cable.is_served(ONE, &sluice));
}

#[test]
fn a_device_without_ethernet_is_refused_by_name() {
    if skip::without_root() {
        return;
    }
    let namespace = std::sync::Arc::new(Netns::new());
    namespace.ip(&["tuntap", "add", "dev", "tun7", "mode", "tun"]);
    for mode in ["auto", "generic", "driver"] {
        let guard = format!("interfaces = [\"tun7\"]\nmode = \"{mode}\"");
        let setup = Setup::to(NOWHERE).inside(&namespace, IpAddr::from([127, 0, 0, 1]));
        let setup = setup.with("guard", &guard);
        let path = setup.write();
        for command in ["check", "plan", "run"] {
            let said = namespace.run(|| sluice::command(&[command, "--config", path.to_str().unwrap()]));
            assert!(
                said.all().contains("tun7") && said.all().contains("no Ethernet header (type 65534"),
                "{command}: {}",
                said.all()
            );
            assert_eq!(said.code(), 1, "{command}: {}", said.all());
        }
    }
}

#[test]
fn an_interface_that_comes_back_without_ethernet_is_not_guarded_and_says_so() {
    if skip::without_root() {
        return;
    }
    let cable = Cable::new();
    let sluice = cable.setup("").start();
    unplug(&cable);
    cable.server.ip(&["tuntap", "add", "dev", "edge", "mode", "tun"]);
    eventually(LIMIT, "the reason is told", || {
        degraded(&sluice).contains("no Ethernet header").then_some(())
    });
    assert!(!is_attached(&sluice));
    cable.server.ip(&["link", "del", "edge"]);
    plug(&cable);
    eventually(LIMIT, "XDP is attached again", || is_attached(&sluice).then_some(()));
}

#[test]
fn lost_notices_mean_that_everything_may_have_changed() {
    if skip::without_root() {
        return;
    }
    let namespace = Netns::new();
    let (follower, batch) = (namespace.run(Follower::new).unwrap(), tempfile::NamedTempFile::new().unwrap());
    let line = |n: u32| format!("address add 10.9.{}.{}/32 dev lo\n", n / 250, n % 250 + 1);
    let lines: String = (0..700).map(line).collect();
    std::fs::write(batch.path(), lines).unwrap();
    namespace.ip(&["link", "set", "lo", "mtu", "60000"]);
    assert!(follower.take().links, "a notice of the interface");
    assert_eq!(follower.take(), Changes::default());
    // Two notices for each address, of the address and of its route, and none of an interface.
    namespace.ip(&["-batch", batch.path().to_str().unwrap()]);
    let mut changes = Changes::default();
    loop {
        match follower.take() {
            more if more == Changes::default() => break,
            more => changes = changes.union(more),
        }
    }
    assert_eq!(changes, Changes::ALL, "more notices than the socket holds");
}

/// Another host behind the one that Sluice runs on, which answers on Sluice's port.
struct Behind {
    namespace: Netns,
    listener: TcpListener,
}

impl Behind {
    fn new(namespace: Netns, port: u16) -> Self {
        let listener = namespace.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
        Self { namespace, listener }
    }

    /// Whether a client's connection to it is answered by it.
    fn serves(&self, cable: &Cable, source: IpAddr, address: IpAddr) -> bool {
        let address = SocketAddr::new(address, self.listener.local_addr().unwrap().port());
        std::thread::scope(|scope| {
            let dialing = scope.spawn(|| cable.dial(source, address).is_ok());
            let is_connected = dialing.join().unwrap();
            self.listener.set_nonblocking(true).unwrap();
            let accepted = eventually_some(|| self.listener.accept().ok());
            is_connected && accepted.is_some_and(|(_, peer)| peer.ip() == source)
        })
    }
}

/// A completed handshake is in the queue at once, or never.
fn eventually_some<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..20 {
        if let Some(found) = look() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// A Sluice on the unspecified address, which denies one source and answers all others with cookies.
fn wildcard(cable: &Cable, deny: &str) -> Sluice {
    let guard =
        format!("interfaces = [\"edge\"]\nmode = \"generic\"\nsyn_cookies = \"always\"\ndeny = [{deny}]");
    let any = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
    Setup::to(cable.origin.address()).inside(&cable.server, any).with("guard", &guard).start()
}

#[test]
fn packets_to_other_hosts_are_neither_judged_nor_answered() {
    if skip::without_root() {
        return;
    }
    for is_bridge in [false, true] {
        let cable = Cable::new();
        let sluice = wildcard(&cable, &format!("\"{ONE}\""));
        let (port, behind) = (sluice.address().port(), Netns::new());
        let there = if is_bridge { IpAddr::from([10, 77, 0, 50]) } else { IpAddr::from([10, 78, 0, 2]) };
        cable.server.join(("inner", "10.78.0.1/24"), &behind, ("in", &format!("{there}/24")));
        let ip = |arguments: &[&str]| drop(cable.server.ip(arguments));
        if is_bridge {
            ip(&["link", "add", "bridge", "type", "bridge"]);
            ip(&["link", "set", "edge", "master", "bridge"]);
            ip(&["link", "set", "inner", "master", "bridge"]);
            ip(&["address", "del", &format!("{SERVER}/24"), "dev", "edge"]);
            ip(&["address", "add", &format!("{SERVER}/24"), "dev", "bridge"]);
            ip(&["link", "set", "bridge", "up"]);
        } else {
            cable.server.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
            cable.clients.ip(&["route", "add", "10.78.0.0/24", "via", &SERVER.to_string()]);
            behind.ip(&["route", "add", "default", "via", "10.78.0.1"]);
        }
        let behind = Behind::new(behind, port);
        eventually(LIMIT, "the way is open", || behind.serves(&cable, OTHER, there).then_some(()));
        let cookies = sluice.verdicts()["syn_cookie"];
        for source in [ONE, OTHER] {
            assert!(behind.serves(&cable, source, there), "{source}, bridge: {is_bridge}");
        }
        assert_eq!(sluice.verdicts()["syn_cookie"], cookies, "no SYN to another host is answered");
        // To this host's own address it judges as ever.
        let own = SocketAddr::new(SERVER, port);
        assert!(cable.dial(ONE, own).is_err());
        assert_eq!(cable.dial(OTHER, own).unwrap().get("/").text(), "inside");
        drop(behind.namespace);
    }
}

#[test]
fn addresses_that_come_and_go_are_followed() {
    if skip::without_root() {
        return;
    }
    let cable = Cable::new();
    let sluice = wildcard(&cable, &format!("\"{ONE}\", \"fd77::2\""));
    let port = sluice.address().port();
    let (one_v6, own_v6) = ("fd77::2".parse().unwrap(), "fd77::1".parse().unwrap());
    let is_served =
        |source: IpAddr, address: IpAddr| cable.dial(source, SocketAddr::new(address, port)).is_ok();
    let is_judged = |source: IpAddr, address: IpAddr| {
        let before = sluice.verdicts()["denied"];
        !is_served(source, address) && sluice.verdicts()["denied"] > before
    };
    cable.clients.ip(&["address", "add", "fd77::2/64", "dev", "out", "nodad"]);
    cable.clients.ip(&["address", "add", "fd77::3/64", "dev", "out", "nodad"]);
    cable.clients.ip(&["route", "add", "192.0.2.0/24", "via", &SERVER.to_string()]);
    // The second is a whole prefix (AnyIP), which raises no notice of an address; the third is ready after
    // its duplicate address detection.
    let cases: [(&[&str], &[&str], IpAddr, IpAddr); 3] = [
        (
            &["address", "add", "10.77.0.9/24", "dev", "edge"],
            &["address", "del", "10.77.0.9/24", "dev", "edge"],
            ONE,
            IpAddr::from([10, 77, 0, 9]),
        ),
        (
            &["route", "add", "local", "192.0.2.0/24", "dev", "lo"],
            &["route", "del", "local", "192.0.2.0/24", "dev", "lo"],
            ONE,
            IpAddr::from([192, 0, 2, 7]),
        ),
        (
            &["address", "add", "fd77::1/64", "dev", "edge"],
            &["address", "del", "fd77::1/64", "dev", "edge"],
            one_v6,
            own_v6,
        ),
    ];
    for (add, del, source, address) in cases {
        cable.server.ip(add);
        eventually(LIMIT, "the new address is judged", || is_judged(source, address).then_some(()));
        let other = if source == ONE { OTHER } else { "fd77::3".parse().unwrap() };
        eventually(LIMIT, "and served", || is_served(other, address).then_some(()));
        cable.server.ip(del);
        eventually(LIMIT, "it is judged no longer", || (!is_judged(source, address)).then_some(()));
    }
}
