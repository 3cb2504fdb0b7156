//! Landlock (landlock(7), Documentation/userspace-api/landlock.rst): everything handled is forbidden, apart
//! from one rule. Descriptors that are open, or are handed over later, stay usable.
//!
//! Connections are not handled: their ports are known only at a reload. Ports to listen on are the
//! supervisor's to bind. The rule is for `upstream.source`: sockets may be bound to an address if the kernel
//! chooses the port.

use std::io;
use std::os::fd::AsFd;

use super::raw::{self, Port, Ruleset};

/// Rights to files by the version that brought them: execute, write, read, list, remove and make entries (1),
/// link and rename (2), truncate (3), ioctl of devices (5).
const FILES: [(u32, u64); 4] = [(1, 0x1fff), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15)];
/// Binding a TCP port.
const PORTS: (u32, u64) = (4, 1);
/// The kernel's choice.
const ANY_PORT: u64 = 0;
/// Abstract Unix sockets and signals, to processes outside.
const SCOPES: (u32, u64) = (6, 0b11);

pub(super) fn find() -> Result<(), String> {
    match raw::landlock_abi() {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::ENOSYS) => "this kernel is built without it (CONFIG_SECURITY_LANDLOCK)".to_owned(),
            Some(libc::EOPNOTSUPP) => {
                "switched off at boot; add landlock to the kernel's lsm= parameter".to_owned()
            }
            Some(libc::EPERM) => "forbidden here; a container's seccomp profile must allow it".to_owned(),
            _ => error.to_string(),
        }),
    }
}

/// Binds the calling thread and the threads that it starts. Takes no_new_privs.
pub(super) fn restrict() -> io::Result<()> {
    let (ruleset, bytes) = ruleset(raw::landlock_abi()?);
    let has_ports = ruleset.handled_ports != 0;
    let ruleset = raw::landlock_create(&ruleset, bytes)?;
    if has_ports {
        raw::landlock_allow_port(ruleset.as_fd(), &Port { rights: PORTS.1, port: ANY_PORT })?;
    }
    raw::landlock_restrict(ruleset.as_fd())
}

/// All that a version can forbid, and the size of its structure.
fn ruleset(abi: u32) -> (Ruleset, usize) {
    let from = |(version, bits): (u32, u64)| if abi >= version { bits } else { 0 };
    let ruleset = Ruleset {
        handled_files: FILES.into_iter().map(from).fold(0, |all, bits| all | bits),
        handled_ports: from(PORTS),
        scoped: from(SCOPES),
    };
    let fields = if abi >= SCOPES.0 {
        3
    } else if abi >= PORTS.0 {
        2
    } else {
        1
    };
    (ruleset, fields * size_of::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_for_no_more_than_it_knows() {
        let cases = [
            (1, 0x1fff, 0, 0, 8),
            (3, 0x7fff, 0, 0, 8),
            (4, 0x7fff, 1, 0, 16),
            (5, 0xffff, 1, 0, 16),
            (6, 0xffff, 1, 3, 24),
            (99, 0xffff, 1, 3, 24),
        ];
        for (abi, files, ports, scopes, size) in cases {
            let (ruleset, bytes) = ruleset(abi);
            let found = (ruleset.handled_files, ruleset.handled_ports, ruleset.scoped, bytes);
            assert_eq!(found, (files, ports, scopes, size), "ABI {abi}");
        }
    }

    #[test]
    fn a_confined_thread_opens_nothing_and_keeps_what_is_open() {
        use std::io::Read as _;
        if find().is_err() {
            return;
        }
        let thread = std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().expect("no_new_privs");
            let mut open = std::fs::File::open("/proc/self/stat").expect("open");
            restrict().expect("Landlock");
            let error = std::fs::File::open("/proc/self/stat").expect_err("opened").kind();
            assert_eq!(error, io::ErrorKind::PermissionDenied);
            assert!(open.read(&mut [0; 8]).expect("readable") > 0);
            let error = std::net::TcpListener::bind("127.0.0.1:47110").expect_err("a port was bound").kind();
            assert_eq!(error, io::ErrorKind::PermissionDenied);
            std::net::TcpListener::bind("127.0.0.1:0").expect("an address, its port is the kernel's choice");
        });
        thread.join().expect("no panic");
    }
}
