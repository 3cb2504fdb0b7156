//! Debian's nginx as an origin: one unprivileged process in the foreground, which writes only to a folder of
//! its own.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ports::Port;
use crate::{eventually, process, skip};

const NOBODY: u32 = 65534;

/// A running nginx that serves its folder `www` and takes PUT there.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    folder: tempfile::TempDir,
    port: Port,
}

impl Nginx {
    /// Starts nginx and waits until it answers.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("sluice-test-nginx-").tempdir().expect("a folder");
        let port = Port::lease();
        fs::create_dir(folder.path().join("www")).expect("www");
        fs::write(folder.path().join("nginx.conf"), configuration(port.loopback())).expect("nginx.conf");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder.path()).args(["-c", "nginx.conf", "-e", "error.log"]);
        if skip::is_root() {
            for path in [folder.path().to_owned(), folder.path().join("www")] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
            }
            command.uid(NOBODY).gid(NOBODY);
        }
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nginx");
        let nginx = Self { child, folder, port };
        eventually(Duration::from_secs(10), "nginx listens", || TcpStream::connect(nginx.address()).ok());
        nginx
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.port.loopback()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file behind a path.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("www").join(name)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        if process::wait(&mut self.child, Duration::from_secs(3)).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn configuration(listen: SocketAddr) -> String {
    format!(
        "daemon off; master_process off; pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; \
  scgi_temp_path scgi;
  client_max_body_size 0; keepalive_requests 1000000; sendfile on;
  server {{
    listen {listen} backlog=4096;
    root www;
    location / {{ dav_methods PUT; }}
  }}
}}
"
    )
}
