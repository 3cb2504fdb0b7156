//! `sluice reload` and SIGHUP: changes under clients that stay, refusals of a whole configuration, and which
//! configuration a new data plane gets when the old one dies around a reload.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tests::client::Client;
use tests::eventually;
use tests::origin::{Origin, Response};
use tests::ports::Port;
use tests::process::Output;
use tests::sluice::{Setup, Sluice};
use tests::tls::{Authority, Kind, Leaf, https};

const LIMIT: Duration = Duration::from_secs(15);

fn named(name: &'static str) -> Origin {
    Origin::http(move |request| match request.target.strip_prefix("/after/") {
        Some(milliseconds) => Response::ok(name).after(Duration::from_millis(milliseconds.parse().unwrap())),
        None => Response::ok(name),
    })
}

/// Replaces one part of the configuration file.
fn rewrite(sluice: &Sluice, what: &str, by: &str) {
    let text = std::fs::read_to_string(sluice.config_path()).unwrap();
    assert!(text.contains(what), "{what}\n{text}");
    std::fs::write(sluice.config_path(), text.replace(what, by)).unwrap();
}

#[track_caller]
fn reload(sluice: &Sluice) -> String {
    let done = sluice.command("reload");
    assert_eq!(done.code(), 0, "{}", done.all());
    done.text()
}

fn snapshot(sluice: &Sluice) -> (u64, u64) {
    let status = sluice.status();
    let number =
        |value: &serde_json::Value| value.as_u64().unwrap_or_else(|| panic!("no number in {status}"));
    (number(&status["data_plane"]["snapshot"]), number(&status["supervisor"]["reload"]["snapshot"]))
}

fn outcomes(sluice: &Sluice, outcome: &str) -> u64 {
    sluice.metrics().labelled("sluice_reloads_total", "outcome", outcome) as u64
}

#[test]
fn routes_endpoints_and_limits_change_under_load_and_no_request_is_lost() {
    let (old, new) = (named("old"), named("new"));
    let sluice = Setup::to(old.address()).workers(2).start();
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let (from, to) =
        (format!("endpoints = [\"{}\"]", old.address()), format!("endpoints = [\"{}\"]", new.address()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Each client has one connection, from before the first reload until after the last.
                let mut client = sluice.client();
                while !stop.load(Ordering::SeqCst) {
                    let response = client.get("/");
                    assert_eq!(response.status, 200, "{response:?}");
                    assert!(["old", "new"].contains(&response.text().as_str()));
                    served.fetch_add(1, Ordering::SeqCst);
                }
                // This client's worker too uses nothing of the old configuration any more.
                assert_eq!(client.get("/").text(), "new");
                assert_eq!(client.get("/fixed").text(), "made here");
                assert_eq!(client.get(&format!("/{}", "x".repeat(200))).status, 414);
            });
        }
        for round in 0..11 {
            let before = served.load(Ordering::SeqCst);
            eventually(LIMIT, "some are served", || {
                (served.load(Ordering::SeqCst) > before + 50).then_some(())
            });
            let (from, to) = if round % 2 == 0 { (&from, &to) } else { (&to, &from) };
            rewrite(&sluice, from, to);
            let receipt = reload(&sluice);
            assert!(receipt.contains("upstreams changed: \"app\"") && receipt.contains(" ms"), "{receipt}");
        }
        assert_eq!(snapshot(&sluice), (12, 12));
        rewrite(&sluice, "[listener.limits]", "[listener.limits]\nuri_bytes = \"128B\"");
        rewrite(
            &sluice,
            "\n[[route]]",
            "\n[[route]]\npath = \"/fixed\"\nrespond = { body = \"made here\" }\n[[route]]",
        );
        let receipt = reload(&sluice);
        assert!(
            receipt.contains("routes: 1 added (2 now)") && receipt.contains("snapshot 12 -> 13"),
            "{receipt}"
        );
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(outcomes(&sluice, "applied"), 12);
    let metrics = sluice.metrics();
    assert!((metrics.sum("sluice_snapshot") - 13.0).abs() < 0.5);
    assert!(metrics.sum("sluice_requests_refused_total") < 4.5, "the four that were too long");
    // Connections to the removed endpoint are closed, though no request comes any more.
    eventually(LIMIT, "the old endpoint is let go", || (old.open() == 0).then_some(()));
}

#[test]
fn a_response_and_a_tunnel_that_are_under_way_end_as_they_began() {
    let (old, new) = (named("old"), named("new"));
    let echo = Origin::raw(|connection| {
        let (mut socket, mut bytes) = (connection.socket(), [0; 64]);
        loop {
            match socket.read(&mut bytes)? {
                0 => return Ok(()),
                count => socket.write_all(&bytes[..count])?,
            }
        }
    });
    let port = Port::lease();
    let tunnel = port.loopback();
    let tables = format!(
        "\n[[listener]]\nname = \"bytes\"\naddress = \"{tunnel}\"\nprotocol = \"tcp\"\nupstream = \"echo\"\n\
         [[upstream]]\nname = \"echo\"\nendpoints = [\"{}\"]\n",
        echo.address()
    );
    let sluice = Setup::to(old.address()).append(&tables).start();
    let mut through = Client::connect(tunnel);
    through.send("ping");
    let mut busy = sluice.client();
    busy.send("GET /after/700 HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually(LIMIT, "the request is at the origin", || (old.requests() == 1).then_some(()));
    rewrite(&sluice, &old.address().to_string(), &new.address().to_string());
    // This changes the upstreams' positions and the order of the listeners.
    rewrite(
        &sluice,
        "[[upstream]]\nname = \"app\"",
        "[[upstream]]\nname = \"third\"\nendpoints = [\"127.0.0.1:1\"]\n[[upstream]]\nname = \"app\"",
    );
    rewrite(
        &sluice,
        "\n[[listener]]\nname = \"bytes\"",
        "\n[[upstream]]\nname = \"fourth\"\nendpoints = [\"127.0.0.1:1\"]\n[[listener]]\nname = \"bytes\"",
    );
    reload(&sluice);
    assert_eq!(busy.response("GET").text(), "old", "by the configuration that it began with");
    assert_eq!(busy.get("/").text(), "new");
    // Another upstream now has the position of the tunnel's upstream. The old tunnel stays, and a new tunnel
    // reaches the right endpoint.
    through.send("pong");
    through.finish();
    assert_eq!(through.until_closed(), b"pingpong");
    let mut again = Client::connect(tunnel);
    again.send("again");
    again.finish();
    assert_eq!(again.until_closed(), b"again");
}

#[test]
fn listeners_in_another_order_keep_their_sockets() {
    let origin = named("app");
    let port = Port::lease();
    let second = port.loopback();
    let other = format!(
        "\n[[listener]]\nname = \"other\"\naddress = \"{second}\"\n[listener.limits]\nuri_bytes = \"128B\"\n"
    );
    let mut sluice = Setup::to(origin.address()).append(&other).start();
    let long = format!("/{}", "x".repeat(200));
    let check = |sluice: &Sluice| {
        assert_eq!(sluice.get(&long).status, 200);
        assert_eq!(Client::connect(second).get(&long).status, 414);
        let status = sluice.status();
        let listeners = status["data_plane"]["listeners"].as_array().unwrap().clone();
        for listener in listeners {
            let expected = if listener["name"] == "other" { second } else { sluice.address() };
            assert_eq!(listener["address"], expected.to_string());
        }
    };
    check(&sluice);
    let text = std::fs::read_to_string(sluice.config_path()).unwrap().replace(&other, "");
    std::fs::write(
        sluice.config_path(),
        text.replace("\n[[listener]]\nname = \"main\"", &format!("{other}\n[[listener]]\nname = \"main\"")),
    )
    .unwrap();
    // A mere change of order is a change too, so the reload applies it.
    reload(&sluice);
    check(&sluice);
    let dead = sluice.data_plane_pid();
    sluice.kill_data_plane();
    eventually(LIMIT, "a successor", || sluice.data_plane().filter(|pid| *pid != dead));
    sluice.wait_ready();
    check(&sluice);
}

/// Makes a reload that must fail and returns its output. Afterwards the old configuration still serves.
#[track_caller]
fn refused(sluice: &Sluice, text: &str) -> Output {
    let before = std::fs::read_to_string(sluice.config_path()).unwrap();
    std::fs::write(sluice.config_path(), text).unwrap();
    let done = sluice.command("reload");
    assert_eq!(done.code(), 1, "{}", done.all());
    assert_eq!(snapshot(sluice), (1, 1));
    assert_eq!(sluice.get("/").text(), "app");
    std::fs::write(sluice.config_path(), before).unwrap();
    done
}

#[test]
fn a_broken_file_changes_nothing_and_is_told_as_check_tells_it() {
    let origin = named("app");
    let sluice = Setup::to(origin.address()).start();
    let good = sluice.configuration();
    let done = refused(&sluice, &good.replace("[[route]]\npath_prefix", "[[route]]\npath_prefx"));
    let said = done.errors();
    assert!(
        said.contains("path_prefx") && said.contains("did you mean") && said.contains("snapshot 1 stays"),
        "{said}"
    );
    assert!(sluice.log().contains("path_prefx"), "{}", sluice.log());
    refused(&sluice, "[[listener");
    refused(&sluice, "");
    std::fs::rename(sluice.config_path(), sluice.run_dir().join("away")).unwrap();
    let done = sluice.command("reload");
    assert_eq!(done.code(), 1);
    assert!(done.errors().contains("no such file"), "{}", done.errors());
    std::fs::rename(sluice.run_dir().join("away"), sluice.config_path()).unwrap();
    // SIGHUP has no caller to report to, so the log alone shows the error.
    std::fs::write(sluice.config_path(), good.replace("[log]", "[lgo]")).unwrap();
    sluice.signal(Signal::SIGHUP);
    eventually(LIMIT, "the log says why", || sluice.log().contains("lgo").then_some(()));
    eventually(LIMIT, "it is counted", || (outcomes(&sluice, "invalid") == 5).then_some(()));
    assert_eq!(sluice.get("/").text(), "app");
    let status = sluice.command("status");
    assert!(status.text().contains("last reload: not reloaded"), "{}", status.all());
    // The file is repaired.
    std::fs::write(sluice.config_path(), good).unwrap();
    assert!(reload(&sluice).contains("nothing to reload"));
    assert_eq!(snapshot(&sluice), (1, 1));
    assert!(!sluice.command("status").text().contains("last reload:"));
}

#[test]
fn what_takes_a_restart_is_named_and_the_rest_is_not_taken_either() {
    let origin = named("app");
    let sluice = Setup::to(origin.address()).start();
    let text = sluice
        .configuration()
        .replace("count = 1", "count = 2")
        .replace("[guard]", "[guard]\nban_for = \"5s\"");
    let text = text
        .replace("name = \"main\"", "name = \"edge\"")
        .replace(&origin.address().to_string(), "127.0.0.1:1");
    let said = refused(&sluice, &text).errors();
    for key in [
        "workers.count",
        "guard.ban_for",
        "listener \"main\" (removed)",
        "listener \"edge\" (new)",
        "restart",
    ] {
        assert!(said.contains(key), "{key}: {said}");
    }
    assert_eq!(outcomes(&sluice, "needs_restart"), 1);
}

#[test]
fn sighup_reloads_and_the_log_level_is_one_of_what_changes() {
    let (old, new) = (named("old"), named("new"));
    let sluice = Setup::to(old.address()).start();
    assert_eq!(sluice.get("/").text(), "old");
    rewrite(&sluice, &old.address().to_string(), &new.address().to_string());
    rewrite(&sluice, "level = \"info\"", "level = \"debug\"");
    sluice.signal(Signal::SIGHUP);
    eventually(LIMIT, "the new one serves", || (sluice.get("/").text() == "new").then_some(()));
    eventually(LIMIT, "connections that end are logged now", || {
        sluice.log().contains("connection ended").then_some(())
    });
    assert!(sluice.log().contains("snapshot 1 -> 2"), "{}", sluice.log());
}

#[test]
fn a_data_plane_that_is_killed_after_a_reload_has_a_successor_with_the_new_configuration() {
    let (old, new) = (named("old"), named("new"));
    let mut sluice = Setup::to(old.address()).start();
    rewrite(&sluice, &old.address().to_string(), &new.address().to_string());
    reload(&sluice);
    // The successor does not read the file.
    std::fs::write(sluice.config_path(), "half a fi").unwrap();
    let dead = sluice.data_plane_pid();
    sluice.kill_data_plane();
    eventually(LIMIT, "a successor", || sluice.data_plane().filter(|pid| *pid != dead));
    sluice.wait_ready();
    assert_eq!(sluice.get("/").text(), "new");
    assert_eq!(snapshot(&sluice), (2, 2));
}

#[test]
fn a_data_plane_that_dies_over_a_reload_leaves_the_old_one_in_force() {
    let (old, new) = (named("old"), named("new"));
    let mut sluice = Setup::to(old.address()).start();
    rewrite(&sluice, &old.address().to_string(), &new.address().to_string());
    let dead = Pid::from_raw(sluice.data_plane_pid().cast_signed());
    // The data plane is stopped, so it cannot have compiled anything.
    kill(dead, Signal::SIGSTOP).unwrap();
    let done = std::thread::scope(|scope| {
        let asking = scope.spawn(|| sluice.command("reload"));
        eventually(LIMIT, "it is under way", || sluice.log().contains("reloading, as").then_some(()));
        std::thread::sleep(Duration::from_millis(200));
        kill(dead, Signal::SIGKILL).unwrap();
        asking.join().unwrap()
    });
    assert_eq!(done.code(), 1, "{}", done.all());
    assert!(
        done.errors().contains("died") && done.errors().contains("snapshot 1 stays"),
        "{}",
        done.errors()
    );
    sluice.wait_ready();
    assert_eq!(sluice.get("/").text(), "old");
    assert_eq!((outcomes(&sluice, "died"), snapshot(&sluice)), (1, (1, 1)));
    // A second reload applies it.
    reload(&sluice);
    assert_eq!(sluice.get("/").text(), "new");
}

#[test]
fn many_that_ask_at_once_all_get_a_receipt() {
    let (old, new) = (named("old"), named("new"));
    let sluice = Setup::to(old.address()).start();
    rewrite(&sluice, &old.address().to_string(), &new.address().to_string());
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| sluice.command("reload"))).collect();
        for done in asking.into_iter().map(|asking| asking.join().unwrap()) {
            assert_eq!(done.code(), 0, "{}", done.all());
        }
    });
    assert_eq!(snapshot(&sluice), (2, 2));
    assert_eq!(sluice.get("/").text(), "new");
}

#[test]
fn a_drain_takes_no_new_configuration_but_the_drain_timeout_of_the_last_one() {
    let (old, new) = (named("old"), named("new"));
    let mut sluice = Setup::to(old.address()).with("process", "drain_timeout = \"60s\"").start();
    rewrite(&sluice, "drain_timeout = \"60s\"", "drain_timeout = \"1s\"");
    assert!(reload(&sluice).contains("process.drain_timeout"));
    let mut busy = sluice.client();
    busy.send("GET /after/9000 HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually(LIMIT, "the request is at the origin", || (old.requests() == 1).then_some(()));
    sluice.signal(Signal::SIGTERM);
    eventually(LIMIT, "it drains", || sluice.log().contains("draining for at most 1s").then_some(()));
    rewrite(&sluice, &old.address().to_string(), &new.address().to_string());
    let done = sluice.command("reload");
    assert_eq!(done.code(), 1, "{}", done.all());
    assert!(done.errors().contains("ending"), "{}", done.errors());
    sluice.wait_end(LIMIT);
    let done = sluice.command("reload");
    assert!(done.code() == 1 && done.errors().contains("no sluice runs"), "{}", done.all());
}

/// The certificate that Sluice shows to a new client.
fn shown(sluice: &Sluice, config: &Arc<ClientConfig>) -> Vec<u8> {
    // A client that resumes a session is shown no certificate.
    let mut fresh = ClientConfig::clone(config);
    fresh.resumption = rustls::client::Resumption::disabled();
    let mut client = sluice.secured(&Arc::new(fresh), "a.test");
    assert_eq!(client.get("/").text(), "app");
    let certificates = client.stream().conn.peer_certificates().unwrap();
    certificates[0].to_vec()
}

fn der(leaf: &Leaf) -> Vec<u8> {
    CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap().to_vec()
}

/// Replaces a file as most programs do: it writes a new file beside it, then renames that.
fn replace(sluice: &Sluice, name: &str, text: &str) {
    let beside = sluice.run_dir().join("beside");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, sluice.run_dir().join(name)).unwrap();
}

#[test]
fn a_renewed_certificate_is_taken_at_a_reload_and_connections_stay() {
    let (authority, origin) = (Authority::default(), named("app"));
    let (old, new) = (authority.leaf(Kind::P256, &["a.test"]), authority.leaf(Kind::P384, &["a.test"]));
    let sluice = https(Setup::to(origin.address()), &authority, std::slice::from_ref(&old), "").start();
    let config = Arc::new(authority.config(rustls::ALL_VERSIONS));
    let mut stays = sluice.secured(&config, "a.test");
    assert_eq!((stays.get("/").text().as_str(), shown(&sluice, &config)), ("app", der(&old)));
    // Only the first of the two files is there already.
    replace(&sluice, "0.pem", &new.chain);
    let done = sluice.command("reload");
    assert_eq!(done.code(), 1, "{}", done.all());
    assert!(done.errors().contains("does not belong to the certificate"), "{}", done.errors());
    assert!(!done.all().contains("PRIVATE KEY") && !sluice.log().contains("PRIVATE KEY"));
    assert_eq!(shown(&sluice, &config), der(&old));
    replace(&sluice, "0.key", &new.key);
    let receipt = reload(&sluice);
    assert!(receipt.contains("certificates taken: \"a.test\""), "{receipt}");
    assert_eq!(shown(&sluice, &config), der(&new));
    assert_eq!(stays.get("/").text(), "app");
}

#[test]
fn whom_the_system_trusts_from_now_on_is_trusted_by_itself() {
    let (before, after, origin) = (Authority::default(), Authority::default(), named("app"));
    let endpoint =
        https(Setup::to(origin.address()), &after, &[after.leaf(Kind::P256, &["a.test"])], "").start();
    let setup = Setup::to(endpoint.address()).with("upstream", "tls = { server_name = \"a.test\" }");
    let roots = setup.run_dir().join("roots.pem");
    std::fs::write(&roots, &before.pem).unwrap();
    let sluice = setup.environment("SSL_CERT_FILE", &roots).start();
    assert_eq!(sluice.get("/").status, 502);
    // update-ca-certificates replaces the file in the same way.
    replace(&sluice, "roots.pem", &format!("{}{}", before.pem, after.pem));
    eventually(LIMIT, "the endpoint is believed", || (sluice.get("/").status == 200).then_some(()));
    assert_eq!((outcomes(&sluice, "applied"), outcomes(&sluice, "invalid")), (1, 0));
}

#[test]
fn a_renewed_certificate_is_taken_by_itself_once_it_is_whole() {
    let (authority, origin) = (Authority::default(), named("app"));
    let leaves: Vec<Leaf> = (0..3).map(|_| authority.leaf(Kind::P256, &["a.test"])).collect();
    let sluice = https(Setup::to(origin.address()), &authority, &leaves[..1], "").start();
    let config = Arc::new(authority.config(rustls::ALL_VERSIONS));
    let mut stays = sluice.secured(&config, "a.test");
    assert_eq!(stays.get("/").text(), "app");
    // Somebody edits the main file meanwhile. That must not stop the renewal.
    std::fs::write(sluice.config_path(), "half a fi").unwrap();
    replace(&sluice, "0.pem", &leaves[1].chain);
    eventually(LIMIT, "half of it is refused", || (outcomes(&sluice, "invalid") == 1).then_some(()));
    assert_eq!(shown(&sluice, &config), der(&leaves[0]));
    replace(&sluice, "0.key", &leaves[1].key);
    eventually(LIMIT, "the new one is served", || (shown(&sluice, &config) == der(&leaves[1])).then_some(()));
    // A volume of Kubernetes: a link is replaced, and the paths then lead to other files.
    let path = |name: &str| sluice.run_dir().join(name);
    for (folder, leaf) in [("..1", &leaves[1]), ("..2", &leaves[2])] {
        std::fs::create_dir(path(folder)).unwrap();
        std::fs::write(path(folder).join("0.pem"), &leaf.chain).unwrap();
        std::fs::write(path(folder).join("0.key"), &leaf.key).unwrap();
    }
    symlink("..2", path("..data")).unwrap();
    for name in ["0.pem", "0.key"] {
        symlink(Path::new("..data").join(name), path("link")).unwrap();
        std::fs::rename(path("link"), path(name)).unwrap();
    }
    eventually(LIMIT, "the next one is served", || {
        (shown(&sluice, &config) == der(&leaves[2])).then_some(())
    });
    assert_eq!(
        (outcomes(&sluice, "invalid"), outcomes(&sluice, "applied")),
        (1, 2),
        "each state was tried once"
    );
    assert_eq!(stays.get("/").text(), "app");
    let status = sluice.status();
    assert_eq!(status["supervisor"]["reload"]["watched_files"], 2);
    assert!(status["supervisor"]["reload"]["failed"].is_null(), "{status}");
}
