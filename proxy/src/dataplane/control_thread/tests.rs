//! The control loop, with workers and a supervisor that the test plays.

use std::sync::atomic::{AtomicBool, AtomicU64};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;

use super::super::view::Watched;
use super::*;
use crate::config;
use crate::control::commands::{self, CommandReceiver};
use crate::control::messages::{Item, LogLook, PROTOCOL, Place, Start};
use crate::control::slots::SteeringSlots;
use crate::control::status::{DataPlaneStatus, SupervisorStatus};
use crate::counters::Counters;
use crate::counters::Plain;
use crate::listen::{ListenKey, ListenerId, ListenerIds, Transport};

const TEXT: &str = r#"
[[listener]]
name = "main"
address = "127.0.0.1:8080"
[[route]]
path_prefix = "/"
upstream = "app"
[[upstream]]
name = "app"
endpoints = ["127.0.0.1:9000"]
"#;

/// A control loop with two workers and a supervisor, both played by the test.
struct Stage {
    supervisor: AsyncFd<Channel>,
    view: Arc<View>,
    workers: Vec<CommandReceiver>,
    events: Sender<WorkerEvent>,
    control: JoinHandle<Result<(), ControlError>>,
}

fn stage() -> Stage {
    stage_of(
        config::resolve(&[("proxy.toml".into(), TEXT.as_bytes().to_vec().into())]).expect("valid"),
        Arc::new(Keys::new(&[])),
    )
}

fn stage_of(config: config::model::Config, ticket_keys: Arc<Keys>) -> Stage {
    let place = Place { cpu: 3, node: 1, memory_node: Some(1) };
    let start = Start {
        protocol: PROTOCOL,
        generation: 4,
        slot_generation: 1,
        snapshot: 1,
        log_level: "info".into(),
        log_look: LogLook::default(),
        batches: 1,
        descriptors: 4,
        workers: vec![place; 2],
        control_cpus: Vec::new(),
        listeners: config.listener_ids(&ListenerIds::default()),
        addresses: vec![ListenKey {
            listener: ListenerId::FIRST,
            address: "127.0.0.1:8080".parse().expect("address"),
            transport: Transport::Tcp,
        }],
    };
    let slots = SteeringSlots::create().expect("memory");
    let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
    let watched = |index| Watched {
        place,
        counters: Counters::private(),
        slot: slots.slot(1, index).expect("in range"),
        ended: AtomicBool::new(false),
    };
    let view = Arc::new(View {
        start,
        traffic: Arc::new(ArcSwap::from_pointee(config::testing::traffic(&config))),
        config: ArcSwap::from_pointee(config),
        snapshot: AtomicU64::new(1),
        workers: (0..2).map(watched).collect(),
        ready: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        lacks: ArcSwap::default(),
        questions: ask,
    });
    let (senders, workers) = (0..2).map(|_| commands::channel().expect("eventfd")).unzip();
    let (events, receiver) = mpsc::channel(8);
    let (ours, theirs) = Channel::pair().expect("pair");
    let control =
        Control::new(theirs, Arc::clone(&view), senders, questions, None, ticket_keys).expect("reactor");
    let control = tokio::spawn(async move {
        let mut control = control;
        control.run(&mut Crew::played(receiver), None).await
    });
    Stage { supervisor: ours.into_async().expect("reactor"), view, workers, events, control }
}

impl Stage {
    /// The next message; what workers let go of is asked for by one test.
    async fn hear(&self) -> Received<ToSupervisor> {
        loop {
            let heard = self.hear_any().await;
            if !matches!(heard.message, ToSupervisor::Released { .. }) {
                return heard;
            }
        }
    }

    async fn hear_any(&self) -> Received<ToSupervisor> {
        let heard = async {
            loop {
                match self.supervisor.get_ref().receive(1) {
                    Err(ChannelError::WouldBlock) => {}
                    other => return other.expect("a message"),
                }
                self.supervisor.readable().await.expect("reactor").clear_ready();
            }
        };
        tokio::time::timeout(Duration::from_secs(5), heard).await.expect("in time")
    }

    fn say(&self, message: &ToDataPlane) {
        self.supervisor.get_ref().send(message, &[]).expect("room");
    }

    async fn make_ready(&self) {
        for worker in 0..2 {
            self.view.workers[worker].slot.live(1, 1);
            self.events.send(WorkerEvent::Ready(worker)).await.expect("alive");
        }
        assert_eq!(self.hear().await.message, ToSupervisor::Ready);
    }

    async fn status(&self) -> DataPlaneStatus {
        self.say(&ToDataPlane::AskStatus { id: 77 });
        let mut heard = self.hear().await;
        assert_eq!(heard.message, ToSupervisor::Status { id: 77 });
        let bytes = sealed::open(heard.descriptors.pop().expect("a memfd"), 1 << 20).expect("sealed");
        serde_json::from_slice(&bytes).expect("a status")
    }

    /// Until the worker's command queue has one.
    async fn command(&self, worker: usize) -> Command {
        for _ in 0..1_000 {
            if let Some(command) = self.workers[worker].try_next() {
                return command;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("no command came");
    }
}

#[tokio::test]
async fn readiness_comes_with_the_last_worker_and_the_status_follows_the_slots() {
    let stage = stage();
    stage.events.send(WorkerEvent::Ready(0)).await.expect("alive");
    let status = stage.status().await;
    assert!(!status.ready, "one of two");
    assert_eq!((status.generation, status.workers[0].state.as_str()), (4, "starting"));
    stage.events.send(WorkerEvent::Ready(1)).await.expect("alive");
    assert_eq!(stage.hear().await.message, ToSupervisor::Ready);
    let worker = &stage.view.workers[1];
    worker.slot.live(1, 1);
    worker.counters.add(Plain::Accepted, 5);
    let status = stage.status().await;
    assert!(status.ready);
    assert_eq!(
        (status.workers[1].state.as_str(), status.workers[1].accepted, status.workers[1].cpu),
        ("live", 5, Some(3))
    );
    assert_eq!(
        (status.listeners[0].name.as_str(), status.listeners[0].address.as_str()),
        ("main", "127.0.0.1:8080")
    );
    assert_eq!(status.upstreams[0].endpoints[0].address, "127.0.0.1:9000");
    worker.slot.running(crate::time::Time::from_nanos(1));
    assert_eq!(stage.status().await.workers[1].state, "stuck");
}

#[tokio::test]
async fn a_drain_reaches_the_workers_and_is_reported_when_all_have_stopped_accepting() {
    let stage = stage();
    stage.make_ready().await;
    stage.say(&ToDataPlane::Drain { within_ms: 60_000 });
    for worker in 0..2 {
        assert!(matches!(stage.command(worker).await, Command::Drain { deadline } if deadline > now()));
    }
    stage.view.workers[0].slot.draining();
    let status = stage.status().await;
    assert!(status.draining && !status.ready, "{status:?}");
    stage.view.workers[1].slot.draining();
    assert_eq!(stage.hear().await.message, ToSupervisor::Drained);
    for worker in 0..2 {
        stage.events.send(WorkerEvent::Ended(worker, Ok(()))).await.expect("alive");
    }
    stage.control.await.expect("no panic").expect("an orderly end");
}

fn announce(stage: &Stage, id: u64, snapshot: u64, (batches, descriptors): (u32, u32)) {
    let listeners = stage.view.start.listeners.clone();
    stage.say(&ToDataPlane::Reload { id, snapshot, listeners, batches, descriptors });
}

/// Announces a reload and sends this text as its main file.
fn send_configuration(stage: &Stage, id: u64, text: &str) {
    announce(stage, id, 10 + id, (1, 1));
    let fd = sealed::seal("test", text.as_bytes()).expect("memfd");
    let batch = ToDataPlane::Batch { number: 0, items: vec![Item::File { path: "proxy.toml".into() }] };
    stage.supervisor.get_ref().send(&batch, &[fd.as_fd()]).expect("room");
}

#[tokio::test]
async fn a_new_configuration_is_compiled_beside_the_old_one_and_published_when_told() {
    let stage = stage();
    stage.make_ready().await;
    send_configuration(&stage, 1, &TEXT.replace("9000", "9009"));
    assert_eq!(stage.hear().await.message, ToSupervisor::Compiled { id: 1 });
    let status = stage.status().await;
    assert_eq!(
        (status.snapshot, status.upstreams[0].endpoints[0].address.as_str()),
        (1, "127.0.0.1:9000"),
        "not yet"
    );
    // Somebody else's number publishes nothing.
    stage.say(&ToDataPlane::Publish { id: 2 });
    stage.say(&ToDataPlane::Publish { id: 1 });
    assert_eq!(stage.hear().await.message, ToSupervisor::Published { id: 1 });
    let status = stage.status().await;
    assert_eq!((status.snapshot, status.upstreams[0].endpoints[0].address.as_str()), (11, "127.0.0.1:9009"));
    // Once.
    stage.say(&ToDataPlane::Publish { id: 1 });
    assert_eq!(stage.status().await.snapshot, 11);
}

#[tokio::test]
async fn new_keys_of_tickets_are_installed_here_and_in_configurations_to_come() {
    use rustls::server::ProducesTickets as _;

    use crate::tls::testing::Authority;
    use crate::tls::tickets::{TicketKey, Tickets};

    let text = TEXT.replace(
        "address =",
        "protocol = \"https\"\ncertificate = [{ chain = \"a.pem\", key = \"a.key\" }]\naddress =",
    );
    let pair = Authority::new("CA").leaf(&["a.example"]);
    let files = |text: &str| {
        let files = [("proxy.toml", text), ("a.pem", &pair.chain), ("a.key", &pair.key)];
        files.map(|(path, text)| {
            (std::path::PathBuf::from(path), config::Bytes::new(text.as_bytes().to_vec()))
        })
    };
    let resolved =
        |text: &str| config::resolve(&files(text)).map_err(|errors| errors.to_string()).expect("valid");
    let stage = stage_of(resolved(&text), Arc::new(Keys::new(&[])));
    stage.make_ready().await;
    let key = TicketKey::random().expect("randomness");
    let elsewhere = Tickets::new(std::slice::from_ref(&key), None, None);
    let opens = |stage: &Stage| {
        let ticket = elsewhere.encrypt(b"state").expect("a ticket");
        let config = stage.view.config.load();
        config.listeners[0].tls.as_ref().is_some_and(|tls| tls.tickets.decrypt(&ticket).is_some())
    };
    assert!(!opens(&stage));
    let fd = sealed::seal("test", &TicketKey::concat(&[TicketKey::random().expect("randomness"), key]))
        .expect("memfd");
    stage.supervisor.get_ref().send(&ToDataPlane::TicketKeys, &[fd.as_fd()]).expect("room");
    stage.status().await;
    assert!(opens(&stage));
    // Bytes that are no key change nothing.
    let wrong = sealed::seal("test", b"keys").expect("memfd");
    stage.supervisor.get_ref().send(&ToDataPlane::TicketKeys, &[wrong.as_fd()]).expect("room");
    stage.say(&ToDataPlane::TicketKeys);
    stage.status().await;
    assert!(opens(&stage));
    // Another handshake_timeout is another ServerTls.
    let text = text.replace("address =", "tls.handshake_timeout = \"9s\"\naddress =");
    announce(&stage, 1, 9, (1, 3));
    let items = files(&text).map(|(path, _)| Item::File { path });
    let fds = files(&text).map(|(_, bytes)| sealed::seal("test", &bytes).expect("memfd"));
    let batch = ToDataPlane::Batch { number: 0, items: items.to_vec() };
    stage.supervisor.get_ref().send(&batch, &fds.each_ref().map(AsFd::as_fd)).expect("room");
    assert_eq!(stage.hear().await.message, ToSupervisor::Compiled { id: 1 });
    stage.say(&ToDataPlane::Publish { id: 1 });
    assert_eq!(stage.hear().await.message, ToSupervisor::Published { id: 1 });
    assert!(opens(&stage));
}

#[tokio::test]
async fn a_configuration_that_cannot_be_taken_changes_nothing() {
    let stage = stage();
    stage.make_ready().await;
    for (id, text) in [(1, "[process]\nrun_dri = 1\n".to_owned()), (2, "x = 1\n".repeat(9_000))] {
        send_configuration(&stage, id, &text);
        let ToSupervisor::NotCompiled { id: refused, reason } = stage.hear().await.message else {
            panic!("another message")
        };
        assert_eq!(refused, id);
        assert!(!reason.is_empty() && reason.len() <= 4096, "{reason}");
    }
    // Announced without sense, or not as announced.
    announce(&stage, 3, 9, (0, 1));
    assert!(matches!(stage.hear().await.message, ToSupervisor::NotCompiled { id: 3, .. }));
    announce(&stage, 4, 9, (2, 2));
    stage.say(&ToDataPlane::Batch { number: 1, items: Vec::new() });
    assert!(matches!(stage.hear().await.message, ToSupervisor::NotCompiled { id: 4, .. }));
    // Its later batches belong to nothing.
    stage.say(&ToDataPlane::Batch { number: 0, items: Vec::new() });
    stage.say(&ToDataPlane::Publish { id: 4 });
    let status = stage.status().await;
    assert_eq!((status.snapshot, status.upstreams[0].endpoints[0].address.as_str()), (1, "127.0.0.1:9000"));
}

#[tokio::test]
async fn what_is_forgotten_or_overtaken_is_never_published() {
    let stage = stage();
    stage.make_ready().await;
    send_configuration(&stage, 1, &TEXT.replace("9000", "9001"));
    assert_eq!(stage.hear().await.message, ToSupervisor::Compiled { id: 1 });
    stage.say(&ToDataPlane::Forget { id: 1 });
    stage.say(&ToDataPlane::Publish { id: 1 });
    assert_eq!(stage.status().await.snapshot, 1);
    send_configuration(&stage, 2, &TEXT.replace("9000", "9002"));
    send_configuration(&stage, 3, &TEXT.replace("9000", "9003"));
    // The second may have been compiled before the third overtook it.
    let mut heard = stage.hear().await.message;
    if heard == (ToSupervisor::Compiled { id: 2 }) {
        heard = stage.hear().await.message;
    }
    assert_eq!(heard, ToSupervisor::Compiled { id: 3 });
    stage.say(&ToDataPlane::Publish { id: 2 });
    stage.say(&ToDataPlane::Publish { id: 3 });
    assert_eq!(stage.hear().await.message, ToSupervisor::Published { id: 3 });
    assert_eq!(stage.status().await.upstreams[0].endpoints[0].address, "127.0.0.1:9003");
}

#[tokio::test]
async fn the_supervisor_hears_which_configuration_is_the_oldest_that_is_held() {
    let stage = stage();
    stage.make_ready().await;
    // An exchange of the first, and one of the second.
    let mut held = vec![stage.view.traffic.load_full()];
    for id in [1, 2] {
        send_configuration(&stage, id, &TEXT.replace("9000", &format!("900{id}")));
        assert_eq!(stage.hear_any().await.message, ToSupervisor::Compiled { id });
        stage.say(&ToDataPlane::Publish { id });
        assert_eq!(stage.hear_any().await.message, ToSupervisor::Published { id });
        held.push(stage.view.traffic.load_full());
    }
    held.truncate(2);
    drop(held.remove(0));
    assert_eq!(stage.hear_any().await.message, ToSupervisor::Released { snapshot: 11 });
    drop(held);
    assert_eq!(stage.hear_any().await.message, ToSupervisor::Released { snapshot: 12 });
}

#[tokio::test]
async fn a_replaced_configuration_is_freed_here_when_the_workers_let_go() {
    let stage = stage();
    stage.make_ready().await;
    let held = stage.view.config.load_full();
    let watcher = Arc::downgrade(&held);
    send_configuration(&stage, 1, &TEXT.replace("9000", "9001"));
    assert_eq!(stage.hear().await.message, ToSupervisor::Compiled { id: 1 });
    stage.say(&ToDataPlane::Publish { id: 1 });
    assert_eq!(stage.hear().await.message, ToSupervisor::Published { id: 1 });
    assert_eq!(Arc::strong_count(&held), 2, "ours, and one that keeps the workers from freeing it");
    drop(held);
    for _ in 0..500 {
        if watcher.upgrade().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it stays");
}

#[tokio::test]
async fn a_worker_that_ends_unasked_is_reported_and_ends_all() {
    for result in [Ok(()), Err("panic: broken".to_owned())] {
        let stage = stage();
        stage.make_ready().await;
        stage.events.send(WorkerEvent::Ended(1, result)).await.expect("alive");
        let ToSupervisor::Failed { reason } = stage.hear().await.message else { panic!("another message") };
        assert!(reason.starts_with("worker 1: "), "{reason}");
        assert!(matches!(stage.control.await.expect("no panic"), Err(ControlError::Worker(1, _))));
    }
}

#[tokio::test]
async fn the_supervisors_half_is_asked_for_and_handed_to_whoever_asked() {
    let stage = stage();
    let view = Arc::clone(&stage.view);
    let answer = tokio::spawn(async move { view.supervisor().await });
    let ToSupervisor::AskStatus { id } = stage.hear().await.message else { panic!("another message") };
    let status = Box::new(SupervisorStatus { restarts: 9, ..SupervisorStatus::default() });
    // An answer that nobody asked for is nobody's.
    stage.say(&ToDataPlane::SupervisorStatus { id: id + 1, status: Box::default() });
    stage.say(&ToDataPlane::SupervisorStatus { id, status });
    assert_eq!(answer.await.expect("no panic").map(|status| status.restarts), Some(9));
}

#[tokio::test]
async fn questions_are_bounded_and_asked_together() {
    let stage = stage();
    let ask = || {
        let view = Arc::clone(&stage.view);
        tokio::spawn(async move { view.supervisor().await })
    };
    let answer = |id, restarts| {
        let status = Box::new(SupervisorStatus { restarts, ..SupervisorStatus::default() });
        stage.say(&ToDataPlane::SupervisorStatus { id, status });
    };
    let first = ask();
    let ToSupervisor::AskStatus { id } = stage.hear().await.message else { panic!("another message") };
    // The others wait for its answer, and are then asked with one message.
    let others: Vec<_> = (1..QUESTIONS_MAX).map(|_| ask()).collect();
    // Each task has to have asked before the next one that is too many does.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(stage.view.supervisor().await.is_none());
    answer(id, 1);
    assert_eq!(first.await.expect("no panic").map(|status| status.restarts), Some(1));
    let ToSupervisor::AskStatus { id } = stage.hear().await.message else { panic!("another message") };
    answer(id, 2);
    for other in others {
        assert_eq!(other.await.expect("no panic").map(|status| status.restarts), Some(2));
    }
    // Nothing is left over.
    let last = ask();
    let ToSupervisor::AskStatus { id } = stage.hear().await.message else { panic!("another message") };
    answer(id, 3);
    assert_eq!(last.await.expect("no panic").map(|status| status.restarts), Some(3));
}

#[tokio::test]
async fn a_data_plane_without_its_supervisor_ends() {
    let stage = stage();
    stage.make_ready().await;
    drop(stage.supervisor);
    assert!(matches!(stage.control.await.expect("no panic"), Err(ControlError::Abandoned)));
}
