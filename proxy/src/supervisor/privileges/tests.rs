//! Tests of `supervisor::privileges`.

use super::*;

#[test]
fn users_are_found_by_name_or_number_or_refused_by_name() {
    let error = fate("no-such-user-here").expect_err("missing").to_string();
    assert!(error.contains("process.user") && error.contains("no-such-user-here"), "{error}");
    if !Uid::effective().is_root() {
        assert!(matches!(fate("root").expect("exists"), Fate::Keeps(_)));
        return;
    }
    let nobody = fate("nobody").expect("exists").identity().expect("root");
    assert!(!nobody.uid.is_root());
    let number = fate("12345").expect("any number").identity().expect("root");
    assert_eq!((number.uid, number.gid), (Uid::from_raw(12345), Gid::from_raw(12345)));
}

#[test]
fn root_without_the_right_to_change_stays_what_it_is_or_says_what_is_missing() {
    if !Uid::effective().is_root() {
        return;
    }
    let thread = std::thread::spawn(|| {
        caps::drop(None, CapSet::Effective, Capability::CAP_SETGID).expect("dropped");
        assert_eq!(fate("root").expect("exists"), Fate::Ours);
        let error = fate("nobody").expect_err("cannot").to_string();
        assert!(error.contains("CAP_SETGID is missing") && !error.contains("SETUID"), "{error}");
        assert!(error.contains("process.user = \"root\""), "{error}");
    });
    thread.join().expect("no panic");
}

#[test]
fn maps_of_user_namespaces_are_understood() {
    assert!(maps("         0          0 4294967295\n", 65_534));
    let rootless = "         0       1000          1\n         1     100000      65536\n";
    assert!(maps(rootless, 0) && maps(rootless, 65_536) && !maps(rootless, 65_537));
    assert!(!maps("         0       1000          1\n", 65_534));
    assert!(!maps("", 0));
}

#[test]
fn what_is_given_up_is_gone_from_this_thread_and_its_bounding_set() {
    // Capabilities are a thread's own, so the other tests keep theirs.
    let thread = std::thread::spawn(|| {
        reduce().expect("reduce");
        for set in [CapSet::Effective, CapSet::Permitted] {
            assert!(caps::read(None, set).expect("read").iter().all(|capability| KEPT.contains(capability)));
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
