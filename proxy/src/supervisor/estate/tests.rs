//! Tests of `supervisor::estate`.

use super::*;
use crate::config;
use crate::control::batches::{self, Collector};

fn loaded(more: &str) -> Loaded {
    let text = format!(
        "[[listener]]\nname = \"main\"\naddress = [\"127.0.0.1:1\", \"[::1]:1\"]\n[[route]]\n\
         path_prefix = \"/\"\nupstream = \"app\"\n\
         [[upstream]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9000\"]\n[admin]\n\
         address = \"127.0.0.1:2\"\n{more}\n"
    );
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("proxy.toml");
    std::fs::write(&path, text).expect("write");
    let mut loaded =
        config::load(&path).unwrap_or_else(|diagnostics| panic!("{}", diagnostics.render(false)));
    // Ports that the kernel chooses, which a file may not ask for.
    let listener = std::sync::Arc::make_mut(&mut loaded.config.listeners[0]);
    listener.addresses.iter_mut().for_each(|address| address.set_port(0));
    loaded.config.admin.address.iter_mut().for_each(|address| address.set_port(0));
    loaded
}

fn claim(more: &str) -> Result<Estate, EstateError> {
    let run_dir = tempfile::tempdir().expect("directory");
    Estate::claim(loaded(more), &Folder::open(run_dir.path()).expect("ours"))
}

#[test]
fn everything_that_is_announced_can_be_handed_over_and_fits_together() {
    let estate = claim("").expect("claim");
    let (mut start, items) = estate.handoff(7);
    assert_eq!((start.generation, start.addresses.len()), (7, 2));
    assert!(start.addresses.iter().all(|address| address.address.port() != 0));
    let batches = batches::cut(items.into_iter().map(|item| (item, ())).collect());
    start.batches = u32::try_from(batches.len()).expect("few");
    let workers = start.workers.len();
    let mut collector = Collector::new(start).expect("sane");
    for (number, batch) in (0..).zip(batches) {
        let items: Vec<Item> = batch.into_iter().map(|(item, ())| item).collect();
        let fds = items
            .iter()
            .map(|item| estate.descriptor(item).expect("there").try_clone_to_owned().expect("dup"))
            .collect();
        collector.take(number, items, fds).expect("in order");
    }
    let handoff = collector.finish().expect("complete");
    assert!(handoff.admin.is_some());
    assert!(handoff.listeners.len() == workers && handoff.listeners.iter().all(|sockets| sockets.len() == 2));
    CountersMemory::open(handoff.counters, workers).expect("fits");
}

#[test]
fn an_interface_that_is_not_there_stops_the_start_in_every_mode() {
    for mode in ["auto", "driver", "generic"] {
        let error = claim(&format!("[guard]\ninterfaces = [\"nope0\"]\nmode = \"{mode}\"")).expect_err(mode);
        assert!(matches!(&error, EstateError::Interface { name, .. } if name == "nope0"), "{error}");
        assert!(error.to_string().contains("lo"), "it names those that are there: {error}");
    }
}

#[test]
fn driver_mode_on_loopback_is_a_demand_that_cannot_be_met() {
    // Without the rights to load anything it is refused for that reason: refused either way.
    let error =
        claim("[guard]\ninterfaces = [\"lo\"]\nmode = \"driver\"").expect_err("lo has no driver mode");
    assert!(matches!(error, EstateError::Demand(_)), "{error}");
}
