//! The system calls of a data plane that serves, and what becomes of the others. Each call here was seen to
//! be made, or is made by a library on a path that is rarely taken.
//!
//! The rings have a list of their own (`io::ring`): sockets are accepted, read, written, connected and closed
//! through them.

use std::io;

use super::filter::{Check, Rule, Verdict, allow, always, compile, has_all, has_no, is, is_null, only};
use super::raw;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the number of this architecture in linux/audit.h, and a look at the list of calls");

/// Whether this kernel has seccomp filters that kill.
pub(super) fn find() -> Result<(), String> {
    raw::seccomp_knows(libc::SECCOMP_RET_KILL_PROCESS).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL) => {
            "this kernel is built without its filters (CONFIG_SECCOMP_FILTER)".to_owned()
        }
        _ => error.to_string(),
    })
}

/// Binds every thread of this process. Takes no_new_privs.
pub(super) fn restrict() -> io::Result<()> {
    raw::seccomp_filter(&mut compile(ARCHITECTURE, &rules(std::process::id())))
}

fn rules(own_process: u32) -> Vec<Rule> {
    let mut rules = Vec::new();
    rules.extend(sockets());
    rules.extend(memory());
    rules.extend(threads(own_process));
    rules.extend(descriptors());
    rules.extend(rings());
    rules.extend(only_by_libraries());
    rules
}

fn any(argument: u8, values: &[i32]) -> Vec<Vec<Check>> {
    values.iter().map(|&value| vec![is(argument, value as u32)]).collect()
}

/// Sockets to endpoints are made here and connected by a ring. They may be bound to an address of
/// `upstream.source`; its port is Landlock's subject, and nothing listens without listen(2). The admin
/// listener and the channel to the supervisor are served without rings.
fn sockets() -> Vec<Rule> {
    let options = [
        (libc::IPPROTO_TCP, libc::TCP_NODELAY),
        (libc::IPPROTO_TCP, libc::TCP_CORK),
        (libc::SOL_SOCKET, libc::SO_LINGER),
        (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    ];
    let options = options.map(|(level, option)| vec![is(1, level as u32), is(2, option as u32)]);
    let stream = libc::SOCK_STREAM as u32;
    let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
    // Protocol 0, since 262 (MPTCP) is beyond the reach of Landlock and of the programs that judge connects.
    // Those see no packet of a UDP or raw socket either, which is no stream.
    let tcp = [libc::AF_INET, libc::AF_INET6]
        .map(|family| vec![is(0, family as u32), has_all(1, stream), has_no(1, !(stream | flags)), is(2, 0)]);
    let mut rules = vec![
        only(libc::SYS_setsockopt, options.into(), Verdict::Kill),
        only(libc::SYS_socket, tcp.into(), Verdict::Kill),
        // The sizes of addresses of both families.
        only(libc::SYS_bind, any(2, &[16, 28]), Verdict::Kill),
    ];
    rules.extend(
        [
            libc::SYS_accept4,
            libc::SYS_getpeername,
            libc::SYS_getsockname,
            libc::SYS_getsockopt,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_shutdown,
        ]
        .map(allow),
    );
    rules
}

/// Memory that is executable is loaded before, and no more is made.
fn memory() -> Vec<Rule> {
    let not_executable = || vec![vec![has_no(2, libc::PROT_EXEC as u32)]];
    let mut rules = vec![
        only(libc::SYS_mmap, not_executable(), Verdict::Kill),
        only(libc::SYS_mprotect, not_executable(), Verdict::Kill),
    ];
    rules.extend([libc::SYS_brk, libc::SYS_madvise, libc::SYS_mremap, libc::SYS_munmap].map(allow));
    rules
}

/// `clone` makes threads as the C library makes them, and no process. clone3 has its flags in memory, which a
/// filter cannot read; the C library then takes clone.
fn threads(own_process: u32) -> Vec<Rule> {
    const THREAD: i32 = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    // musl sets a flag that means nothing any more.
    let thread = any(0, &[THREAD, THREAD | libc::CLONE_DETACHED]);
    // PR_SET_PDEATHSIG and PR_SET_DUMPABLE are not among them: the data plane dies with its supervisor.
    let names = any(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA]);
    let mut rules = vec![
        only(libc::SYS_clone, thread, Verdict::Kill),
        always(libc::SYS_clone3, Verdict::Fail(libc::ENOSYS)),
        only(libc::SYS_prctl, names, Verdict::Fail(libc::EPERM)),
        // abort(3) signals its own thread.
        only(libc::SYS_tgkill, vec![vec![is(0, own_process)]], Verdict::Kill),
    ];
    rules.extend(
        [
            libc::SYS_clock_getres,
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_futex,
            libc::SYS_getpid,
            libc::SYS_getrandom,
            libc::SYS_getrusage,
            libc::SYS_gettid,
            libc::SYS_gettimeofday,
            libc::SYS_nanosleep,
            libc::SYS_restart_syscall,
            libc::SYS_rseq,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sched_getaffinity,
            libc::SYS_sched_yield,
            libc::SYS_set_robust_list,
            libc::SYS_sigaltstack,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_time,
        ]
        .map(allow),
    );
    rules
}

/// Descriptors that are open, memfds, and the reactor of the control thread. F_SETOWN is not among the
/// commands: it would signal other processes of the same user.
///
/// The supervisor shares the open files of logs and sockets. So nothing here changes what all holders see:
/// O_APPEND and O_NONBLOCK (F_SETFL, FIONBIO) or the place of the next byte. Lines that are written stay.
fn descriptors() -> Vec<Rule> {
    let commands = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ];
    // The bytes that a socket has not sent; close-on-exec, as the standard library sets it.
    let requests = [libc::TIOCOUTQ as i32, libc::FIOCLEX as i32];
    // With this flag and an empty path they are about a descriptor.
    let by_descriptor = libc::AT_EMPTY_PATH as u32;
    let mut rules = vec![
        only(libc::SYS_fcntl, any(1, &commands), Verdict::Fail(libc::EPERM)),
        only(libc::SYS_ioctl, any(1, &requests), Verdict::Fail(libc::ENOTTY)),
        only(libc::SYS_statx, vec![vec![has_all(2, by_descriptor)]], Verdict::Fail(libc::EACCES)),
        only(libc::SYS_newfstatat, vec![vec![has_all(3, by_descriptor)]], Verdict::Fail(libc::EACCES)),
        // The standard library asks where a file stands before it reads all of it, and does without.
        always(libc::SYS_lseek, Verdict::Fail(libc::ESPIPE)),
    ];
    rules.extend(
        [
            libc::SYS_close,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_pwait,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_wait,
            libc::SYS_fstat,
            libc::SYS_memfd_create,
            libc::SYS_pread64,
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_writev,
        ]
        .map(allow),
    );
    rules
}

/// The rings are made, restricted and enabled before. Their one registration left is the cancel of everything
/// at the end.
fn rings() -> Vec<Rule> {
    /// linux/io_uring.h
    const REGISTER_SYNC_CANCEL: u32 = 24;
    let cancel = vec![vec![is(1, REGISTER_SYNC_CANCEL)]];
    vec![only(libc::SYS_io_uring_register, cancel, Verdict::Kill), allow(libc::SYS_io_uring_enter)]
}

/// Calls that libraries make by the way and do without: a backtrace looks for debug information, the
/// allocator for the number of CPUs. They get an error, since it would be a pity to die of that.
fn only_by_libraries() -> Vec<Rule> {
    let denied = [
        libc::SYS_openat,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlinkat,
        libc::SYS_getcwd,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_access,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink,
    ];
    let unknown = [libc::SYS_membarrier, libc::SYS_getcpu, libc::SYS_sysinfo, libc::SYS_uname];
    let denied = denied.map(|call| always(call, Verdict::Fail(libc::EACCES)));
    let unknown = unknown.map(|call| always(call, Verdict::Fail(libc::ENOSYS)));
    // Limits can be read, not set.
    let [low, high] = is_null(2);
    let limits = only(libc::SYS_prlimit64, vec![vec![is(0, 0), low, high]], Verdict::Fail(libc::EPERM));
    denied.into_iter().chain(unknown).chain([limits]).collect()
}

#[cfg(test)]
mod tests;
