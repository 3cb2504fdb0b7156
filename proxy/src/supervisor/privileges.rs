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

/// Looks `process.user` up. `None`: we are not root and cannot become anybody else.
///
/// # Errors
/// When we are root and there is no such user.
pub fn identity(user: &str) -> Result<Option<Identity>, UserError> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    match User::from_name(user) {
        Ok(Some(found)) => Ok(Some(Identity { uid: found.uid, gid: found.gid })),
        Ok(None) => {
            Err(UserError { user: user.into(), reason: "no such user; create it or name another".into() })
        }
        Err(errno) => Err(UserError { user: user.into(), reason: errno.desc().into() }),
    }
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
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_or_refused_by_name() {
        if !Uid::effective().is_root() {
            assert_eq!(identity("no-such-user-here").expect("not asked"), None);
            return;
        }
        let nobody = identity("nobody").expect("exists").expect("root");
        assert!(!nobody.uid.is_root());
        let error = identity("no-such-user-here").expect_err("missing").to_string();
        assert!(error.contains("process.user") && error.contains("no-such-user-here"), "{error}");
    }

    #[test]
    fn what_is_given_up_is_gone_from_this_thread_and_its_bounding_set() {
        // Capabilities are a thread's own, so the other tests keep theirs.
        let thread = std::thread::spawn(|| {
            reduce().expect("reduce");
            for set in [CapSet::Effective, CapSet::Permitted] {
                assert!(
                    caps::read(None, set).expect("read").iter().all(|capability| KEPT.contains(capability))
                );
            }
            if Uid::effective().is_root() {
                assert!(
                    caps::read(None, CapSet::Bounding)
                        .expect("read")
                        .iter()
                        .all(|capability| KEPT.contains(capability))
                );
                assert!(caps::has_cap(None, CapSet::Effective, Capability::CAP_SETUID).expect("read"));
            }
        });
        thread.join().expect("no panic");
    }
}
