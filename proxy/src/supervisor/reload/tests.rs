//! Tests of `supervisor::reload`.

use super::*;

type Table = Reloads<&'static str, u8>;

fn at(milliseconds: u64) -> Time {
    Time::from_nanos(milliseconds * 1_000_000)
}

fn changed(prepared: &'static str) -> Read<&'static str> {
    Read::Changed { prepared, summary: format!("took {prepared}") }
}

/// Asked by client 1 at 0, read, sent as number 1.
fn compiling() -> Table {
    let mut table = Table::default();
    table.ask(Asker::Client(1), at(0));
    assert_eq!(table.poll(Plane::Serving, at(0)), Some(ReloadAction::Read(FileScope::All)));
    table.read(changed("a"), at(1));
    assert_eq!(table.poll(Plane::Serving, at(1)), Some(ReloadAction::Send { id: 1 }));
    assert_eq!(table.prepared(), Some(&"a"));
    assert_eq!(table.poll(Plane::Serving, at(1)), None);
    table
}

fn publishing() -> Table {
    let mut table = compiling();
    table.compiled(1, at(5));
    assert_eq!(table.poll(Plane::Serving, at(5)), Some(ReloadAction::Adopt { id: Some(1), prepared: "a" }));
    assert_eq!(table.poll(Plane::Serving, at(5)), None);
    table
}

#[track_caller]
fn finished(
    action: Option<ReloadAction<&'static str, u8>>,
    outcome: ReloadOutcome,
    says: &str,
) -> Vec<Asker<u8>> {
    let Some(ReloadAction::Finish(finished)) = action else { panic!("{action:?}") };
    assert_eq!(finished.outcome, outcome, "{}", finished.text);
    assert!(finished.text.contains(says), "{}", finished.text);
    finished.askers
}

#[test]
fn what_is_compiled_is_adopted_then_published_then_receipted() {
    let mut table = publishing();
    assert_eq!(table.prepared(), None);
    table.published(1);
    let askers = finished(table.poll(Plane::Serving, at(6)), ReloadOutcome::Applied, "took a");
    assert_eq!(askers, [Asker::Client(1)]);
    assert_eq!((table.poll(Plane::Serving, at(6)), table.next_deadline()), (None, None));
}

#[test]
fn what_reading_refuses_reaches_no_data_plane() {
    let mut table = Table::default();
    table.ask(Asker::Signal, at(0));
    assert_eq!(table.poll(Plane::Serving, at(0)), Some(ReloadAction::Read(FileScope::All)));
    table.read(Read::Ended { outcome: ReloadOutcome::Invalid, text: "line 3".into() }, at(1));
    assert_eq!(
        finished(table.poll(Plane::Serving, at(1)), ReloadOutcome::Invalid, "line 3"),
        [Asker::Signal]
    );
    assert!(table.poll(Plane::Serving, at(1)).is_none());
}

#[test]
fn a_data_plane_that_refuses_dies_or_is_silent_leaves_the_old_one_in_force() {
    let mut table = compiling();
    table.refused(1, "no memory");
    finished(table.poll(Plane::Serving, at(9)), ReloadOutcome::Refused, "no memory");

    let mut table = compiling();
    table.died();
    finished(table.poll(Plane::Changing, at(9)), ReloadOutcome::Died, "died");

    let mut table = compiling();
    let deadline = at(1) + COMPILE_WAIT;
    assert_eq!(table.next_deadline(), Some(deadline));
    assert_eq!(table.poll(Plane::Serving, Time::from_nanos(deadline.as_nanos() - 1)), None);
    assert_eq!(table.poll(Plane::Serving, deadline), Some(ReloadAction::Forget { id: 1 }));
    finished(table.poll(Plane::Serving, deadline), ReloadOutcome::Silent, "10s");
    // Its later answers about it change nothing.
    table.compiled(1, deadline);
    table.published(1);
    table.refused(1, "late");
    assert_eq!(table.poll(Plane::Serving, deadline), None);
}

#[test]
fn what_was_adopted_is_applied_whether_or_not_the_data_plane_confirms_it() {
    let mut table = publishing();
    table.died();
    finished(table.poll(Plane::Changing, at(9)), ReloadOutcome::Applied, "its successor starts with it");

    let mut table = publishing();
    let deadline = at(5) + PUBLISH_WAIT;
    assert_eq!(table.next_deadline(), Some(deadline));
    finished(table.poll(Plane::Serving, deadline), ReloadOutcome::Applied, "not confirmed");
    table.published(1);
    assert_eq!(table.poll(Plane::Serving, deadline), None);

    // Too late to refuse.
    let mut table = publishing();
    table.refused(1, "no");
    assert_eq!(table.poll(Plane::Serving, at(6)), None);
}

#[test]
fn those_that_ask_meanwhile_wait_for_one_more_that_reads_anew() {
    let mut table = compiling();
    table.ask(Asker::Client(2), at(2));
    table.ask(Asker::Signal, at(3));
    table.ask(Asker::Watch, at(3));
    table.ask(Asker::Signal, at(4));
    assert_eq!(table.poll(Plane::Serving, at(4)), None, "one at a time");
    table.compiled(1, at(5));
    assert!(matches!(table.poll(Plane::Serving, at(5)), Some(ReloadAction::Adopt { .. })));
    assert_eq!(table.poll(Plane::Serving, at(5)), None);
    table.published(1);
    assert_eq!(
        finished(table.poll(Plane::Serving, at(6)), ReloadOutcome::Applied, "took a"),
        [Asker::Client(1)]
    );
    assert_eq!(
        table.poll(Plane::Serving, at(6)),
        Some(ReloadAction::Read(FileScope::All)),
        "a signal asks for all files"
    );
    table.read(changed("b"), at(7));
    assert_eq!(table.poll(Plane::Serving, at(7)), Some(ReloadAction::Send { id: 2 }));
    // The first one's answers are not the second's.
    table.compiled(1, at(8));
    assert_eq!(table.poll(Plane::Serving, at(8)), None);
    table.compiled(2, at(8));
    assert_eq!(table.poll(Plane::Serving, at(8)), Some(ReloadAction::Adopt { id: Some(2), prepared: "b" }));
    table.published(2);
    let askers = finished(table.poll(Plane::Serving, at(9)), ReloadOutcome::Applied, "took b");
    assert_eq!(askers, [Asker::Client(2), Asker::Signal, Asker::Watch]);
}

#[test]
fn a_watched_file_alone_reads_what_is_watched() {
    let mut table = Table::default();
    table.ask(Asker::Watch, at(0));
    assert_eq!(table.poll(Plane::Serving, at(0)), Some(ReloadAction::Read(FileScope::Watched)));
}

#[test]
fn without_a_data_plane_it_is_adopted_for_the_next() {
    let mut table = Table::default();
    table.ask(Asker::Client(1), at(0));
    assert_eq!(table.poll(Plane::Absent, at(0)), Some(ReloadAction::Read(FileScope::All)));
    table.read(changed("a"), at(1));
    assert_eq!(table.poll(Plane::Absent, at(1)), Some(ReloadAction::Adopt { id: None, prepared: "a" }));
    finished(table.poll(Plane::Absent, at(1)), ReloadOutcome::Applied, "the next one starts with it");
}

#[test]
fn one_that_starts_is_waited_for_but_not_for_ever() {
    let mut table = Table::default();
    table.ask(Asker::Client(1), at(0));
    assert_eq!(table.poll(Plane::Changing, at(0)), None);
    table.ask(Asker::Client(2), at(9_000));
    assert_eq!(table.next_deadline(), Some(at(0) + READY_WAIT), "who came first does not wait longer");
    let askers = finished(table.poll(Plane::Changing, at(0) + READY_WAIT), ReloadOutcome::NotReady, "15s");
    assert_eq!(askers, [Asker::Client(1), Asker::Client(2)]);
    table.ask(Asker::Client(3), at(20_000));
    assert_eq!(table.poll(Plane::Changing, at(20_000)), None);
    assert_eq!(table.poll(Plane::Serving, at(21_000)), Some(ReloadAction::Read(FileScope::All)));
}

#[test]
fn an_end_refuses_what_waits_and_forgets_what_is_compiled_but_not_what_was_adopted() {
    let mut table = compiling();
    table.ask(Asker::Client(2), at(2));
    assert_eq!(table.poll(Plane::Ending, at(3)), Some(ReloadAction::Forget { id: 1 }));
    assert_eq!(
        finished(table.poll(Plane::Ending, at(3)), ReloadOutcome::Ending, "ending"),
        [Asker::Client(1)]
    );
    assert_eq!(
        finished(table.poll(Plane::Ending, at(3)), ReloadOutcome::Ending, "ending"),
        [Asker::Client(2)]
    );
    assert_eq!(table.poll(Plane::Ending, at(3)), None);

    let mut table = publishing();
    finished(table.poll(Plane::Ending, at(6)), ReloadOutcome::Applied, "not confirmed");
}
