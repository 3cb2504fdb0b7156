//! Tests of the list, by the interpreter of `filter`. tests/confinement.rs tries it on the kernel.

use std::collections::BTreeSet;

use super::super::filter::testing::run;
use super::*;

const OWN: u32 = 4711;

fn verdict(call: libc::c_long, arguments: [u64; 6]) -> u32 {
    run(&compile(ARCHITECTURE, &rules(OWN)), ARCHITECTURE, call, arguments)
}

#[test]
fn every_call_has_one_rule_and_the_filter_fits() {
    let mut seen = BTreeSet::new();
    for rule in rules(OWN) {
        assert!(seen.insert(rule.call()), "two rules about call {}", rule.call());
    }
    // BPF_MAXINSNS
    assert!(compile(ARCHITECTURE, &rules(OWN)).len() < 4096);
}

#[test]
fn calls_of_an_attacker_kill() {
    for call in [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_ptrace,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_kill,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_process_vm_readv,
        libc::SYS_open_by_handle_at,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_chroot,
        libc::SYS_seccomp,
        libc::SYS_memfd_secret,
        libc::SYS_pkey_mprotect,
    ] {
        assert_eq!(verdict(call, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS, "call {call}");
    }
    #[cfg(target_arch = "x86_64")]
    for call in [libc::SYS_fork, libc::SYS_vfork] {
        assert_eq!(verdict(call, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS, "call {call}");
    }
}

#[test]
fn arguments_decide_where_a_call_is_needed_and_dangerous() {
    let [allow, kill] = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_KILL_PROCESS];
    let fail = |errno: i32| Verdict::Fail(errno).value();
    let number = |value: i32| u64::from(value as u32);
    let option = |level, option| [3, number(level), number(option), 0, 0, 0];
    let socket = |family, kind, protocol| [number(family), number(kind), number(protocol), 0, 0, 0];
    let stream = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    let thread = 0x003d_0f00;
    for (call, arguments, expected) in [
        (libc::SYS_setsockopt, option(libc::IPPROTO_TCP, libc::TCP_NODELAY), allow),
        (libc::SYS_setsockopt, option(libc::IPPROTO_TCP, libc::TCP_CORK), allow),
        (libc::SYS_setsockopt, option(libc::SOL_SOCKET, libc::SO_LINGER), allow),
        (libc::SYS_setsockopt, option(libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF), kill),
        (libc::SYS_setsockopt, option(libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF), kill),
        (libc::SYS_setsockopt, option(libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF), kill),
        (libc::SYS_setsockopt, option(libc::SOL_SOCKET, libc::SO_MARK), kill),
        (libc::SYS_setsockopt, option(libc::IPPROTO_TCP, libc::TCP_ULP), kill),
        (libc::SYS_setsockopt, option(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT), allow),
        (libc::SYS_setsockopt, option(libc::IPPROTO_IP, libc::IP_TRANSPARENT), kill),
        (libc::SYS_bind, [3, 1 << 40, 16, 0, 0, 0], allow),
        (libc::SYS_bind, [3, 1 << 40, 28, 0, 0, 0], allow),
        (libc::SYS_bind, [3, 1 << 40, 110, 0, 0, 0], kill),
        (libc::SYS_socket, socket(libc::AF_INET, stream, 0), allow),
        (libc::SYS_socket, socket(libc::AF_INET6, stream, 0), allow),
        (libc::SYS_socket, socket(libc::AF_INET, stream, libc::IPPROTO_MPTCP), kill),
        (libc::SYS_socket, socket(libc::AF_INET, libc::SOCK_DGRAM, 0), kill),
        (libc::SYS_socket, socket(libc::AF_INET, libc::SOCK_RAW, 0), kill),
        (libc::SYS_socket, socket(libc::AF_UNIX, stream, 0), kill),
        (libc::SYS_socket, socket(libc::AF_NETLINK, libc::SOCK_RAW, 0), kill),
        (libc::SYS_socket, socket(libc::AF_PACKET, libc::SOCK_RAW, 0), kill),
        (libc::SYS_clone, [thread, 0, 0, 0, 0, 0], allow),
        (libc::SYS_clone, [number(libc::SIGCHLD), 0, 0, 0, 0, 0], kill),
        (libc::SYS_clone, [thread | number(libc::CLONE_NEWUSER), 0, 0, 0, 0, 0], kill),
        (libc::SYS_clone3, [0; 6], fail(libc::ENOSYS)),
        (libc::SYS_prctl, [number(libc::PR_SET_NAME), 0, 0, 0, 0, 0], allow),
        (libc::SYS_prctl, [number(libc::PR_SET_PDEATHSIG), 0, 0, 0, 0, 0], fail(libc::EPERM)),
        (libc::SYS_prctl, [number(libc::PR_SET_DUMPABLE), 1, 0, 0, 0, 0], fail(libc::EPERM)),
        (libc::SYS_tgkill, [u64::from(OWN), 1, 6, 0, 0, 0], allow),
        (libc::SYS_tgkill, [1, 1, 9, 0, 0, 0], kill),
        (libc::SYS_mmap, [0, 4096, number(libc::PROT_READ | libc::PROT_WRITE), 0, 0, 0], allow),
        (libc::SYS_mmap, [0, 4096, number(libc::PROT_READ | libc::PROT_EXEC), 0, 0, 0], kill),
        (libc::SYS_mprotect, [0, 4096, number(libc::PROT_EXEC), 0, 0, 0], kill),
        (libc::SYS_fcntl, [3, number(libc::F_SETOWN), 1, 0, 0, 0], fail(libc::EPERM)),
        (libc::SYS_fcntl, [3, number(libc::F_GETFL), 0, 0, 0, 0], allow),
        (libc::SYS_fcntl, [2, number(libc::F_SETFL), 0, 0, 0, 0], fail(libc::EPERM)),
        (libc::SYS_ioctl, [2, libc::FIONBIO, 0, 0, 0, 0], fail(libc::ENOTTY)),
        (libc::SYS_lseek, [2, 0, 0, 0, 0, 0], fail(libc::ESPIPE)),
        (libc::SYS_io_uring_register, [3, 24 | 1 << 31, 0, 0, 0, 0], kill),
        (libc::SYS_io_uring_register, [3, 24, 0, 0, 0, 0], allow),
        (libc::SYS_io_uring_register, [3, 11, 0, 0, 0, 0], kill),
        (libc::SYS_openat, [0; 6], fail(libc::EACCES)),
        (libc::SYS_prlimit64, [0, 7, 0, 1, 0, 0], allow),
        (libc::SYS_prlimit64, [0, 7, 1 << 32, 0, 0, 0], fail(libc::EPERM)),
        (libc::SYS_prlimit64, [1, 7, 0, 1, 0, 0], fail(libc::EPERM)),
    ] {
        assert_eq!(verdict(call, arguments), expected, "call {call}, {arguments:x?}");
    }
}
