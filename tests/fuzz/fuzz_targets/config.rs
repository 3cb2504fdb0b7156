//! Configuration: no text makes `resolve` panic, and every error has a diagnostic that can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    match proxy::config::resolve(&[("fuzz.toml".into(), input.to_vec().into())]) {
        Ok(config) => assert!(!config.listeners.is_empty()),
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty());
            assert!(diagnostics.iter().all(|diagnostic| diagnostic.line() >= 1 && diagnostic.column() >= 1));
            // Rendering takes fifty times as long as resolving, so only one input in sixteen is rendered.
            if input.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)) % 16 == 0 {
                assert!(!diagnostics.render(false).is_empty() && !diagnostics.to_string().is_empty());
            }
        }
    }
});
