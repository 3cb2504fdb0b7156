//! `cargo xtask docs`: renews the documents that are generated. The tests in `tests/documents` know how; they
//! fail when something is stale, and write it anew when they are told to. The picture of the rooms comes from
//! `cargo xtask map`.

use crate::machine::{BUILD, cargo, ensure, step};
use crate::map;

pub(crate) fn docs(check: bool) -> Result<(), String> {
    map::picture(check)?;
    ensure(BUILD)?;
    let mut command = cargo();
    command.args(["test", "--quiet", "--package", "tests", "--test", "documents"]);
    if check {
        return step(&mut command);
    }
    // One test renews a page that another one reads.
    step(command.args(["--", "--test-threads=1", "--nocapture"]).env("SLUICE_RENEW_DOCUMENTS", "1"))
}
