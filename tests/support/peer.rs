//! Other projects' servers that the tests run: in the foreground, with their configuration in a folder of
//! their own, killed when the test ends.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{eventually, process};

const LIMIT: Duration = Duration::from_secs(10);

/// A running program.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    folder: tempfile::TempDir,
}

impl Peer {
    /// Starts a program in a new folder that holds these files. Waits until it listens.
    #[must_use]
    pub fn start(program: &str, files: &[(&str, &str)], arguments: &[&str], listens: SocketAddr) -> Self {
        let folder = tempfile::Builder::new().prefix("sluice-test-peer-").tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder.path());
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect(program);
        eventually(LIMIT, program, || TcpStream::connect(listens).ok());
        Self { child, folder }
    }

    /// Starts nginx with this text in its `http` block and these files beside its configuration.
    #[must_use]
    pub fn nginx(http: &str, files: &[(&str, &str)], listens: SocketAddr) -> Self {
        let text = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; \
             uwsgi_temp_path u; scgi_temp_path s;\n{http}\n}}\n"
        );
        let files: Vec<_> = files.iter().copied().chain([("nginx.conf", text.as_str())]).collect();
        Self::start("nginx", &files, &["-p", ".", "-c", "nginx.conf", "-e", "stderr"], listens)
    }

    /// The folder with the program's files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = process::wait(&mut self.child, LIMIT);
    }
}
