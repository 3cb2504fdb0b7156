//! The programs under test: the embedded object, or the one that `SLUICE_TEST_EBPF_OBJECT` names.

use proxy::config::model;
use proxy::kernel::Programs;

/// Loads them.
pub(crate) fn programs() -> Programs {
    let Some(path) = std::env::var_os("SLUICE_TEST_EBPF_OBJECT") else {
        return Programs::load().expect("the embedded object loads");
    };
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Programs::load_object(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A guard that judges and limits nothing.
pub(crate) fn guard() -> model::Guard {
    model::Guard {
        interfaces: Vec::new(),
        mode: model::GuardMode::Auto,
        dry_run: false,
        allow: Vec::new(),
        deny: Vec::new(),
        syn_rate_per_ip: None,
        syn_burst_per_ip: 1,
    }
}
