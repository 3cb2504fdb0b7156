//! Configuration: no text makes `resolve` panic, and what is wrong always has a diagnostic that can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    match proxy::config::resolve(&[("fuzz.toml".into(), input.to_vec())]) {
        Ok(config) => assert!(!config.listeners.is_empty()),
        Err(diagnostics) => assert!(!diagnostics.is_empty() && !diagnostics.render(false).is_empty()),
    }
});
