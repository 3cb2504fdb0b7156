//! What an error advises: where a key belongs, what a word of another proxy is called here, and what is
//! expected of a line that is too long to be shown.

use super::errors::{case, check};
use super::*;

#[test]
fn a_key_in_the_wrong_table_is_told_where_it_belongs() {
    for case in [
        case(
            "[[listener]]\nname = \"x\"\naddress = \"[::1]:1\"\n[listener.timeouts]\nbacklog = 7 # <-\n",
            "listener.timeouts.backlog",
            &["`backlog` is a key of `[[listener]]`: write it there, above `[listener.timeouts]`"],
        ),
        case(
            "[[listener]]\nname = \"x\"\naddress = \"[::1]:1\"\nkeep_alive = \"5s\" # <-\n",
            "listener.keep_alive",
            &["`keep_alive` is a key of `[listener.timeouts]`"],
        ),
        case("[workers]\ndrain_timeout = \"5s\" # <-\n", "workers.drain_timeout", &["a key of `[process]`"]),
        case("drain_timeout = \"5s\" # <-\n", "drain_timeout", &["a key of `[process]`"]),
        // A key of several tables: the nearest of its own.
        case("[admin]\nadress = \"[::1]:1\" # <-\n", "admin.adress", &["did you mean `address`?"]),
    ] {
        check(&case);
    }
}

#[test]
fn words_of_other_programs_have_a_name_here() {
    for case in [
        case("[log]\nlevel = \"warning\" # <-\n", "log.level", &["did you mean \"warn\"?"]),
        case("[guard]\nmode = \"native\" # <-\n", "guard.mode", &["did you mean \"driver\"?"]),
        case("[guard]\nmode = \"SKB\" # <-\n", "guard.mode", &["did you mean \"generic\"?"]),
    ] {
        check(&case);
    }
    let text = BASE.replace("[[upstream]]", "[[upstream]]\nbalance = \"least_conn\"");
    let errors = resolve_text(&text).expect_err("unknown").to_string();
    assert!(errors.contains("did you mean \"least-request\"? It is not built yet"), "{errors}");
}

#[test]
fn a_line_too_long_to_show_keeps_what_is_expected() {
    let long = "x".repeat(70_000);
    let text = BASE.replace("upstream = \"app\"", &format!("respond = {{ body = \"{long}\" }}"));
    assert_ne!(text, BASE);
    let rendered = resolve_text(&text).expect_err("too long").render(false).replace("\n  │ ", " ");
    assert!(rendered.contains("has 70000 bytes; expected at most 65536"), "{rendered}");
    assert!(rendered.len() < 1000, "the line itself is not shown");
}

#[test]
fn a_file_that_may_not_be_read_is_not_said_to_be_missing() {
    let text = format!("[guard]\ndeny_file = \"deny.txt\"\n{BASE}");
    let path = Path::new("etc/test.toml");
    let expected = |reason: &str| {
        let unread = [(PathBuf::from("etc/deny.txt"), reason.to_owned())].into();
        let facts = Facts { unread, ..Facts::default() };
        let (_, errors, _) = Parsed::new(path, text.as_bytes()).resolve(&[], &facts);
        errors.iter().next().expect("an error").expected.clone().unwrap_or_default()
    };
    assert_eq!(expected(NO_SUCH_FILE), "a file that exists");
    assert!(expected(PERMISSION_DENIED).contains("may read"));
    assert_eq!(expected("larger than 1MiB"), "a file that can be read");
}

#[test]
fn a_text_alone_is_checked_without_its_files() {
    let path = Path::new("etc/test.toml");
    let secure = "[[listener]]\nname = \"tls\"\naddress = \"[::1]:443\"\nprotocol = \"https\"\n\
        [[listener.certificate]]\nchain = \"none.pem\"\nkey = \"none.key\"\n";
    let named = format!(
        "[guard]\ndeny_file = \"none.txt\"\n{secure}{}",
        BASE.replace("[[upstream]]", "[[upstream]]\ntls = {}")
    );
    let (errors, _) = check_text(path, named.as_bytes());
    assert!(errors.is_empty(), "{errors}");
    let (errors, _) = check_text(path, named.replace("deny_file", "deny_fil").as_bytes());
    assert_eq!(errors.len(), 1, "{errors}");
    assert_eq!(errors.iter().next().expect("one").json()["key"], "guard.deny_fil");
}
