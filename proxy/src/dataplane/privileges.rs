//! The rights that the data plane gives up first of all, while it still has one thread. It raises its limits,
//! takes an empty root, becomes `process.user`, loses every capability for good (capabilities(7),
//! no_new_privs) and its access to files (Landlock), and dies with its supervisor (PR_SET_PDEATHSIG). The
//! filter of system calls follows later, when the rings are made.

use std::fs::File;

use caps::CapSet;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Pid, Uid, getgroups, getppid, getresgid, getresuid, setgroups, setresgid, setresuid};

use crate::sandbox::{Layer, LayerError, Layers};

/// How much more of the score than the supervisor's: a fifth of the memory of the machine.
const OOM_SCORE: i32 = 200;

/// Why the data plane does not run: it would have had more rights than it should.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// A system call failed.
    #[error("{0}: {1}")]
    Call(&'static str, Errno),
    /// Capabilities.
    #[error("capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The library of TLS has no random bytes.
    #[error("no random bytes")]
    Random,
    /// A layer of the sandbox.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The supervisor died meanwhile.
    #[error("the supervisor is gone")]
    Orphaned,
    /// Everything was given up, and yet something is left.
    #[error("{0} left after giving all up")]
    Left(&'static str),
}

/// Gives everything up. `identity`: the user to become; `None`: we are not root and keep our user. `layers`:
/// of the sandbox.
///
/// # Errors
/// When the kernel refuses any of it, or when the supervisor `parent` is dead.
pub fn drop_all(identity: Option<(Uid, Gid)>, parent: Pid, layers: Layers) -> Result<(), PrivilegeError> {
    let call = |name| move |errno| PrivilegeError::Call(name, errno);
    // The supervisor decides about our end. Signals that a terminal or systemd sends to the whole group must
    // not.
    let mut ignored = SigSet::empty();
    for signal in
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2]
    {
        ignored.add(signal);
    }
    ignored.thread_block().map_err(call("sigmask"))?;
    raise_limits();
    go_first_without_memory();
    // The library opens /dev/sysgenid at its first random bytes. Later it could not, and would have none.
    aws_lc_rs::rand::fill(&mut [0; 1]).map_err(|_| PrivilegeError::Random)?;
    layers.take(Layer::Root)?;
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)? {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    if let Some((uid, gid)) = identity {
        setgroups(&[]).map_err(call("setgroups"))?;
        setresgid(gid, gid, gid).map_err(call("setresgid"))?;
        setresuid(uid, uid, uid).map_err(call("setresuid"))?;
    }
    // setresuid took them from root; a user that is root itself, or that was given some, loses them here. The
    // ambient set goes with the inheritable one.
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set)?;
    }
    prctl::set_no_new_privs().map_err(call("no_new_privs"))?;
    layers.take(Layer::Files)?;
    // No core dumps with clients' data, and no tracing by other processes of the same user.
    prctl::set_dumpable(false).map_err(call("PR_SET_DUMPABLE"))?;
    // Changing the user clears it, so only now. The check comes after: a supervisor that died before sends no
    // signal any more.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(call("PR_SET_PDEATHSIG"))?;
    if getppid() != parent {
        return Err(PrivilegeError::Orphaned);
    }
    verify(identity, layers)
}

/// Where memory is short, the kernel kills us before our supervisor, which starts another
/// (proc_pid_oom_score_adj(5)). It takes no right to offer oneself.
fn go_first_without_memory() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let ours = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let _ = std::fs::write(FILE, (ours.unwrap_or(0) + OOM_SCORE).min(1000).to_string());
}

/// All descriptors and threads that we may have. Locked memory: rings of a process without CAP_IPC_LOCK count
/// against it.
fn raise_limits() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NPROC) {
        let _ = setrlimit(Resource::RLIMIT_NPROC, hard, hard);
    }
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    // Infinity takes CAP_SYS_RESOURCE; without it, as much as we may have. If that is too little, making the
    // rings says so.
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
    {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

fn verify(identity: Option<(Uid, Gid)>, layers: Layers) -> Result<(), PrivilegeError> {
    let call = |name| move |errno| PrivilegeError::Call(name, errno);
    if (layers.has(Layer::Root) || layers.has(Layer::Files)) && File::open("/proc/self/exe").is_ok() {
        return Err(PrivilegeError::Left("files"));
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient] {
        if !caps::read(None, set)?.is_empty() {
            return Err(PrivilegeError::Left("capabilities"));
        }
    }
    let Some((uid, gid)) = identity else { return Ok(()) };
    let uids = getresuid().map_err(call("getresuid"))?;
    let gids = getresgid().map_err(call("getresgid"))?;
    if [uids.real, uids.effective, uids.saved] != [uid; 3]
        || [gids.real, gids.effective, gids.saved] != [gid; 3]
    {
        return Err(PrivilegeError::Left("another user or group"));
    }
    if getgroups().map_err(call("getgroups"))?.iter().any(|group| *group != gid) {
        return Err(PrivilegeError::Left("supplementary groups"));
    }
    Ok(())
}
