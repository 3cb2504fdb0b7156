//! Tests of `listen::admission`.

use super::*;

const ONE: fn() -> Option<IpAddr> = || Some(IpAddr::from([198, 51, 100, 7]));
const OTHER: fn() -> Option<IpAddr> = || Some(IpAddr::from([198, 51, 100, 8]));

fn limited(open_max: usize, sources: Sources) -> Admission {
    sharing(open_max, &Arc::new(sources))
}

fn sharing(open_max: usize, sources: &Arc<Sources>) -> Admission {
    let mut admission = Admission::new(open_max);
    admission.limit_sources(Arc::clone(sources));
    admission
}

const PLAIN: Admitted = Admitted { ticket: None, note: None };

#[test]
fn sheds_above_its_bound_and_recovers() {
    let mut admission = Admission::new(2);
    let never = || panic!("nobody asks for the source");
    assert_eq!((admission.admit(never), admission.admit(never)), (Ok(PLAIN), Ok(PLAIN)));
    assert_eq!(admission.admit(never), Err(ShedReason::MaxConnections));
    admission.release(None, false);
    assert_eq!(admission.admit(never), Ok(PLAIN));
    admission.drain();
    assert_eq!(admission.admit(never), Err(ShedReason::Draining));
    assert_eq!(admission.open(), 2);
}

#[test]
fn workers_share_the_bound_of_a_source() {
    let sources = Arc::new(Sources::new(2, 10, &[], false, [3, 4]));
    let mut workers = [0; 2].map(|_| sharing(10, &sources));
    let tickets = workers.each_mut().map(|worker| worker.admit(ONE).expect("below the limit").ticket);
    for worker in &mut workers {
        assert_eq!(worker.admit(ONE), Err(ShedReason::ConnectionsPerIp));
        assert_eq!(worker.open(), 1, "what was shed is not held");
        assert!(worker.admit(OTHER).expect("another source").ticket.is_some());
    }
    workers[0].release(tickets[0], false);
    assert!(workers[1].admit(ONE).is_ok());
}

#[test]
fn a_source_that_is_known_later_counts_from_then_on() {
    let sources = Arc::new(Sources::new(1, 10, &[], false, [3, 4]));
    let mut admission = sharing(10, &sources);
    assert_eq!((admission.admit(|| None), admission.admit(|| None)), (Ok(PLAIN), Ok(PLAIN)));
    let source = ONE().expect("an address");
    let claimed = admission.claim(source).expect("below the limit");
    assert_eq!(admission.claim(source), Err(ShedReason::ConnectionsPerIp));
    assert_eq!(admission.admit(ONE), Err(ShedReason::ConnectionsPerIp));
    admission.release(claimed.ticket, false);
    assert!(admission.admit(ONE).is_ok());
}

#[test]
fn a_connection_shed_by_the_bound_of_all_does_not_count_for_its_source() {
    let sources = Arc::new(Sources::new(1, 10, &[], false, [3, 4]));
    let mut full = sharing(0, &sources);
    assert_eq!(full.admit(ONE), Err(ShedReason::MaxConnections));
    assert!(sharing(1, &sources).admit(ONE).is_ok());
}

#[test]
fn a_dry_run_notes_and_admits() {
    let mut admission = limited(10, Sources::new(1, 10, &[], true, [3, 4]));
    let first = admission.admit(ONE).expect("below the limit");
    let second = admission.admit(ONE).expect("a dry run");
    assert_eq!((first.note, second), (None, Admitted { ticket: None, note: Some(Note::AtLimit) }));
    admission.release(second.ticket, false);
    assert_eq!(
        admission.admit(ONE).expect("a dry run").note,
        Some(Note::AtLimit),
        "who was not counted is not given back"
    );
}
