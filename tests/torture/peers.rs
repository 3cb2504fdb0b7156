//! nginx and haproxy as Debian has them. Each is a reverse proxy with its defaults in front of an origin.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::ports::Port;
use tests::{eventually, process};

/// A running proxy. It is killed on drop.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    port: Port,
    _folder: tempfile::TempDir,
}

impl Peer {
    /// nginx, which asks the origin over HTTP/1.1 and keeps the client's Host.
    pub(crate) fn nginx(origin: SocketAddr) -> Self {
        Self::start("nginx.conf", |port, folder| {
            let text = format!(
                "daemon off; master_process off; pid nginx.pid; error_log error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; \
  scgi_temp_path scgi;
  server {{
    listen {port};
    location / {{ proxy_pass http://{origin}; proxy_http_version 1.1; proxy_set_header Host $http_host; \
    proxy_set_header Connection \"\"; }}
  }}
}}
"
            );
            let mut command = Command::new("nginx");
            command.arg("-p").arg(folder).args(["-c", "nginx.conf", "-e", "error.log"]);
            (text, command)
        })
    }

    /// haproxy in HTTP mode.
    pub(crate) fn haproxy(origin: SocketAddr) -> Self {
        Self::start("haproxy.cfg", |port, folder| {
            let text = format!(
                "defaults
  mode http
  timeout connect 2s
  timeout client 5s
  timeout server 5s
  http-reuse never
listen main
  bind {port}
  server origin {origin}
"
            );
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg"));
            (text, command)
        })
    }

    fn start(file: &str, make: impl FnOnce(SocketAddr, &std::path::Path) -> (String, Command)) -> Self {
        let folder = tempfile::Builder::new().prefix("sluice-test-peer-").tempdir().expect("a folder");
        let port = Port::lease();
        let (text, mut command) = make(port.loopback(), folder.path());
        fs::write(folder.path().join(file), text).expect("a configuration");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let peer = Self { child, port, _folder: folder };
        eventually(Duration::from_secs(10), "it listens", || TcpStream::connect(peer.address()).ok());
        peer
    }

    /// The address on which it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.loopback()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = process::wait(&mut self.child, Duration::from_secs(3));
    }
}

/// The version that a program prints.
pub(crate) fn version(program: &str) -> String {
    let said = process::run(Command::new(program).arg("-v"), Duration::from_secs(5)).all();
    let line = said.lines().next().unwrap_or_default();
    let words = line.split([' ', '/']).find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    words.unwrap_or("?").to_owned()
}
