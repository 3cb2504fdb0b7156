//! The configurations that the pages show. A whole configuration must be valid; a part must have only keys
//! and values that exist.

use std::path::PathBuf;

use proxy::config::{self, Diagnostics};

use crate::{page, prose};

/// The blocks of TOML, each with the line on which it begins.
fn blocks(page: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut current: Option<(usize, String)> = None;
    for (index, line) in page.lines().enumerate() {
        match &mut current {
            None if line == "```toml" => current = Some((index + 2, String::new())),
            Some(_) if line == "```" => blocks.extend(current.take()),
            Some((_, text)) => {
                text.push_str(line);
                text.push('\n');
            }
            None => {}
        }
    }
    blocks
}

/// Completes a part of a configuration with the tables that its own tables need.
fn whole(part: &str) -> String {
    let mut text = String::new();
    let first = part.lines().find(|line| line.starts_with('[')).unwrap_or_default();
    let needs = |table: &str| !part.contains(&format!("[[{table}]]"));
    let (listener, upstream) = (
        "[[listener]]\nname = \"https\"\naddress = \"127.0.0.1:8443\"\nprotocol = \"https\"\n\
         certificate = [{ chain = \"own.pem\", key = \"own.pem\" }]\n",
        "[[upstream]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9000\"]\n",
    );
    let is_of = |table: &str| first.starts_with(&format!("[{table}."));
    if is_of("listener") || is_of("upstream") {
        text.push_str(if is_of("listener") { listener } else { upstream });
    }
    text.push_str(part);
    if needs("listener") && !is_of("listener") {
        text.push_str(listener);
        // Parts about routes name listeners of these kinds.
        text.push_str("[[listener]]\nname = \"plain\"\naddress = \"127.0.0.1:8081\"\n");
        text.push_str(
            "[[listener]]\nname = \"passed-through\"\naddress = \"127.0.0.1:8444\"\n\
             protocol = \"tls-passthrough\"\n",
        );
    }
    if needs("route") {
        text.push_str("[[route]]\nupstream = \"app\"\n");
    }
    if needs("upstream") && !is_of("upstream") {
        text.push_str(upstream);
        text.push_str("[[upstream]]\nname = \"secure\"\nendpoints = [\"127.0.0.1:9001\"]\n");
    }
    text
}

fn resolve(text: &str) -> Result<(), Diagnostics> {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    let pem = params.self_signed(&key).unwrap().pem() + &key.serialize_pem();
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(2040, 1, 1),
        crl_number: rcgen::SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&rcgen::Issuer::from_params(&params, &key)).unwrap();
    let file = |name: &str, bytes: &[u8]| (PathBuf::from("etc").join(name), bytes.to_vec().into());
    let mut files = vec![file("shown.toml", text.as_bytes())];
    files.push((PathBuf::from("(the system's roots)"), pem.clone().into_bytes().into()));
    // Every string may name a file. The name decides the file's content.
    for name in text.split('"').skip(1).step_by(2) {
        files.push(match name {
            "new.key" => file(name, &[7; 80]),
            "old.key" => file(name, &[8; 80]),
            _ if name.ends_with(".crl") => file(name, list.der()),
            _ => file(name, pem.as_bytes()),
        });
    }
    config::resolve(&files).map(drop)
}

#[test]
fn configurations_that_are_shown_are_valid() {
    let mut count = 0;
    for name in prose::pages() {
        for (line, part) in blocks(&page::read(&name)) {
            let text = whole(&part);
            count += 1;
            if let Err(errors) = resolve(&text) {
                panic!("{name}:{line}: {}\n{text}", errors.render(false));
            }
        }
    }
    assert!(count > 10, "the blocks are found");
}
