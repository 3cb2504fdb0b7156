//! curl that moves bodies, with their checksums taken outside of Sluice.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::pattern::{self, Pattern};
use crate::process;

/// A running curl. It is killed when the test ends.
#[derive(Debug)]
pub struct Curl(Child);

impl Curl {
    fn start(options: &[&str], arguments: &[&str]) -> Self {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--fail", "--max-time", "60"])
            .args(options)
            .args(arguments);
        Self(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("curl"),
        )
    }

    /// Downloads `url` and returns the body's length and checksum.
    #[must_use]
    pub fn download(options: &[&str], url: &str) -> (u64, String) {
        let mut curl = Self::start(options, &[url]);
        drop(curl.0.stdin.take());
        let sum = pattern::digest(curl.0.stdout.take().unwrap()).unwrap();
        curl.finish();
        sum
    }

    /// Sends the pattern of this length and returns the response body.
    pub fn upload(options: &[&str], url: &str, length: u64, chunked: bool) -> String {
        // curl chunks a body that it reads from a pipe, unless the Transfer-Encoding field is removed.
        let coding = if chunked { "Transfer-Encoding: chunked" } else { "Transfer-Encoding:" };
        let sized = if chunked { "X-Sized: no".to_owned() } else { format!("Content-Length: {length}") };
        let mut curl =
            Self::start(options, &["--upload-file", "-", "--header", coding, "--header", &sized, url]);
        let mut stdin = curl.0.stdin.take().unwrap();
        let feed = std::thread::spawn(move || {
            io::copy(&mut io::BufReader::with_capacity(256 << 10, Pattern::new(length)), &mut stdin)
        });
        let mut answer = String::new();
        curl.0.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        let fed = feed.join().unwrap();
        curl.finish();
        assert_eq!(fed.unwrap(), length);
        answer
    }

    fn finish(mut self) {
        let status = process::wait(&mut self.0, Duration::from_secs(10)).expect("curl ends");
        let mut errors = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert!(status.success(), "{status}: {errors}");
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
