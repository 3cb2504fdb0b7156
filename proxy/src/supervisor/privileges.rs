//! The user that the data plane becomes, and the capabilities that the supervisor gives up once its sockets
//! are bound and its programs loaded (capabilities(7)). A capability that is cut from the bounding set is out
//! of reach for every later process too.

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, User};

/// The data plane's user and group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Real, effective and saved.
    pub uid: Uid,
    /// Real, effective and saved; the only group.
    pub gid: Gid,
}

/// `process.user` is of no use.
#[derive(Debug, thiserror::Error)]
#[error("process.user = \"{user}\": {reason}")]
pub struct UserError {
    /// As configured.
    user: String,
    /// The reason.
    reason: String,
}

/// The user of the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It becomes `process.user`.
    Becomes(Identity),
    /// It keeps our user, which is `process.user` already.
    Ours,
    /// It keeps our user, since we are not root: why, for people.
    Keeps(String),
}

impl Fate {
    /// The user and group to become, if any.
    #[must_use]
    pub const fn identity(&self) -> Option<Identity> {
        match self {
            Self::Becomes(identity) => Some(*identity),
            Self::Ours | Self::Keeps(_) => None,
        }
    }
}

/// Looks `process.user` up, a name or a number, and whether the data plane can become it.
///
/// # Errors
/// When there is no such user, or when we are root and the kernel would not let us become it.
pub fn fate(user: &str) -> Result<Fate, UserError> {
    let error = |reason: String| UserError { user: user.into(), reason };
    let wanted = find(user).map_err(error)?;
    let uid = Uid::effective();
    let obstacle = obstacle(wanted);
    match obstacle {
        None if uid.is_root() => Ok(Fate::Becomes(wanted)),
        _ if wanted.uid == uid => Ok(Fate::Ours),
        Some(obstacle) if uid.is_root() => Err(error(format!(
            "the data plane cannot become it: {obstacle}; or set process.user = \"root\", which Sluice is \
             here already"
        ))),
        _ => Ok(Fate::Keeps(format!(
            "not started as root: the data plane stays uid {uid} instead of becoming process.user \"{user}\""
        ))),
    }
}

/// Small containers have no list of users: root is known without, and a number serves for any.
fn find(user: &str) -> Result<Identity, String> {
    let found = User::from_name(user).map_err(|errno| errno.desc().to_owned())?;
    let number = || if user == "root" { Some(0) } else { user.parse().ok() };
    found
        .map(|found| Identity { uid: found.uid, gid: found.gid })
        .or_else(|| number().map(|id| Identity { uid: Uid::from_raw(id), gid: Gid::from_raw(id) }))
        .ok_or_else(|| "no such user; create it or name another".to_owned())
}

/// Why a process with our rights could not become that user, and the remedy.
fn obstacle(wanted: Identity) -> Option<String> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let lacking: Vec<&str> = [(Capability::CAP_SETUID, "CAP_SETUID"), (Capability::CAP_SETGID, "CAP_SETGID")]
        .into_iter()
        .filter(|(capability, _)| !has(*capability))
        .map(|(_, name)| name)
        .collect();
    if !lacking.is_empty() {
        return Some(format!("{} is missing; add it to the container or unit", lacking.join(" and ")));
    }
    // user_namespaces(7)
    let proc = |name| std::fs::read_to_string(format!("/proc/self/{name}")).ok();
    for (map, what, id) in
        [("uid_map", "user", wanted.uid.as_raw()), ("gid_map", "group", wanted.gid.as_raw())]
    {
        if proc(map).is_some_and(|map| !maps(&map, id)) {
            return Some(format!("this user namespace has no {what} {id}; map it (newuidmap, newgidmap)"));
        }
    }
    let denied = proc("setgroups").is_some_and(|word| word.trim() == "deny");
    denied.then(|| "this user namespace forbids setgroups(2); map its groups by newgidmap".to_owned())
}

/// Whether a map of /proc/PID/uid_map has an id; its lines say the first, its place outside, and how many.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        (first..first + count).contains(&u64::from(id))
    })
}

/// The capabilities of a running supervisor.
const KEPT: [Capability; 10] = [
    // Maps are read and written with it while unprivileged BPF is off.
    Capability::CAP_BPF,
    // XDP is detached with it.
    Capability::CAP_NET_ADMIN,
    // A data plane of another user is killed with it.
    Capability::CAP_KILL,
    // A new data plane becomes its user, empties its bounding set and raises its limits with these.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SYS_RESOURCE,
    // It also takes an empty folder as its root.
    Capability::CAP_SYS_CHROOT,
    // The configuration and its keys may belong to another user.
    Capability::CAP_DAC_OVERRIDE,
    // A reload may bring a port below 1024.
    Capability::CAP_NET_BIND_SERVICE,
];

/// Gives up every capability but `KEPT`, for this process and for all that it starts. Without root there is
/// nothing to give up.
///
/// # Errors
/// When the kernel refuses; the supervisor then has more than it needs, which is worth a warning.
pub fn reduce() -> Result<(), caps::errors::CapsError> {
    let kept: CapsHashSet = KEPT.into_iter().collect();
    // First, since it takes CAP_SETPCAP; an unprivileged process has nothing that the bounding set could
    // limit.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::clear(None, CapSet::Inheritable)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        let left: CapsHashSet = caps::read(None, set)?.intersection(&kept).copied().collect();
        caps::set(None, set, &left)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
