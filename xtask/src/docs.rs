//! `cargo xtask docs` renews the generated documents. The tests in `tests/documents` generate them. They fail
//! if a document is stale, and rewrite it if they are told to. The picture of the rooms comes from
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
    // One test renews a page that another test reads, so the tests run one after the other.
    step(command.args(["--", "--test-threads=1", "--nocapture"]).env("SLUICE_RENEW_DOCUMENTS", "1"))
}
