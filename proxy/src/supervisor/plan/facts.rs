//! Facts about this host, read and not judged: /proc, /sys, our rights, one small ring that is closed again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use crate::config::model::Config;
use crate::kernel::{destinations, links};
use crate::listen::sockets;
use crate::sandbox::Layer;
use crate::supervisor::privileges::{self, Fate};
use crate::supervisor::{cgroup, leftovers, run_dir};

/// The facts that `judge` needs about the host.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// `uname -r`
    pub(super) kernel: String,
    /// Effective capabilities.
    pub(super) capabilities: BTreeSet<&'static str>,
    /// Of RLIMIT_NOFILE, hard: the supervisor raises the soft one.
    pub(super) descriptors: u64,
    /// Of RLIMIT_MEMLOCK, hard.
    pub(super) locked_bytes: u64,
    /// MemAvailable.
    pub(super) available_bytes: Option<u64>,
    /// Where cgroup v2 is mounted.
    pub(super) cgroup2: Option<PathBuf>,
    /// Where bpffs is mounted.
    pub(super) bpffs: Option<PathBuf>,
    /// Whether a ring as the workers make it can be made.
    pub(super) ring: Result<(), String>,
    /// Whether each layer of the sandbox can be had; else why not.
    pub(super) layers: Vec<(Layer, Result<(), String>)>,
    /// The data plane's user, or why there is none.
    pub(super) fate: Result<Fate, String>,
    /// Addresses that cannot be listened on now, with the reason.
    pub(super) unbound: Vec<(String, String)>,
    /// /sys shows another network namespace than ours.
    pub(super) is_sysfs_foreign: bool,
    /// net.core.somaxconn
    pub(super) somaxconn: Option<u64>,
    /// net.ipv4.ip_unprivileged_port_start
    pub(super) unprivileged_port_start: u16,
    /// Leftovers in bpffs of a run of this instance that was killed.
    pub(super) left: Option<String>,
    /// The guard's interfaces.
    pub(super) interfaces: BTreeMap<String, Interface>,
    /// Interfaces with a device behind them, and the guard's.
    pub(super) cards: BTreeMap<String, Interface>,
}

/// A network interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Interface {
    /// Whether it is there; else the rest is empty.
    pub(super) exists: bool,
    /// Its driver, or "virtual".
    pub(super) driver: String,
    /// Whether its driver takes XDP programs; an error when the kernel cannot say.
    pub(super) driver_mode: Option<Result<bool, String>>,
    /// Whether it is the loopback.
    pub(super) loopback: bool,
    /// Why no guard can read its packets.
    pub(super) foreign: Option<String>,
    /// NUMA node of its slot.
    pub(super) node: Option<usize>,
    /// Receive and transmit queues.
    pub(super) queues: (usize, usize),
    /// Its interrupts.
    pub(super) interrupts: Vec<Interrupt>,
    /// Another holder that has an XDP program on it, and the advice.
    pub(super) holder: Option<String>,
    /// Receive packet steering is on.
    pub(super) rps: bool,
}

/// An interrupt of a network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interrupt {
    /// Its number.
    pub(super) number: u32,
    /// As in /proc/interrupts.
    pub(super) name: String,
    /// The CPUs it arrives at, as a list.
    pub(super) cpus: String,
}

impl Facts {
    /// `root`: where to look for /sys and /proc of the network cards; another one than `/` describes another
    /// machine.
    pub(super) fn read(config: &Config, root: &Path) -> Self {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let shown = Shown::of(root);
        let unlimited = |resource| getrlimit(resource).map_or(u64::MAX, |(_soft, hard)| hard);
        Self {
            kernel: number_or_text("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()),
            capabilities: capabilities(),
            descriptors: unlimited(Resource::RLIMIT_NOFILE),
            locked_bytes: unlimited(Resource::RLIMIT_MEMLOCK),
            available_bytes: available_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
                .into_iter()
                .chain(cgroup::memory_left(Path::new("/")))
                .min(),
            cgroup2: mounted(&mounts, "cgroup2"),
            bpffs: mounted(&mounts, "bpf"),
            ring: crate::io::ring::probe().map(drop).map_err(|error| error.to_string()),
            layers: Layer::ALL.into_iter().map(|layer| (layer, found(layer))).collect(),
            fate: privileges::fate(&config.process.user).map_err(|error| error.to_string()),
            unbound: if root == Path::new("/") { unbound(config) } else { Vec::new() },
            is_sysfs_foreign: matches!(shown, Shown::Foreign),
            somaxconn: number("/proc/sys/net/core/somaxconn"),
            unprivileged_port_start: number("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or(1024),
            left: leftovers::describe(&config.process.run_dir),
            interfaces: config
                .guard
                .interfaces
                .iter()
                .map(|name| (name.clone(), judged(root, name, config, &shown)))
                .collect(),
            cards: match shown {
                Shown::Foreign => BTreeMap::new(),
                Shown::Ours | Shown::Elsewhere => cards(root, &config.guard.interfaces),
            },
        }
    }
}

/// Whether a layer of the sandbox can be had; else why not.
fn found(layer: Layer) -> Result<(), String> {
    layer.find()?;
    if layer == Layer::Destinations { destinations::find() } else { Ok(()) }
}

/// Whose interfaces /sys/class/net shows.
enum Shown {
    /// Those of our network namespace.
    Ours,
    /// Those of the namespace in which /sys was mounted: `nsenter --net` does not mount it anew.
    Foreign,
    /// Another machine's, as `--root` asks.
    Elsewhere,
}

impl Shown {
    fn of(root: &Path) -> Self {
        if root != Path::new("/") {
            return Self::Elsewhere;
        }
        let shown: BTreeSet<(String, u32)> = fs::read_dir("/sys/class/net")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                Some((entry.file_name().into_string().ok()?, number(entry.path().join("ifindex"))?))
            })
            .collect();
        let Ok(list) = nix::net::if_::if_nameindex() else { return Self::Ours };
        let ours = list.iter().map(|one| (one.name().to_string_lossy().into_owned(), one.index())).collect();
        if shown == ours { Self::Ours } else { Self::Foreign }
    }
}

/// A running instance of ours has its addresses itself, and a start comes after its end. Low ports are judged
/// by the right to bind them.
fn unbound(config: &Config) -> Vec<(String, String)> {
    let is_running = run_dir::runs_in(&config.process.run_dir).is_some();
    sockets::probe(&config.listeners, config.admin.address)
        .into_iter()
        .filter(|error| match error.errno {
            Errno::EADDRINUSE => !is_running,
            Errno::EACCES => false,
            _ => true,
        })
        .map(|error| (format!("{} {}", error.what, error.address), error.explain().to_owned()))
        .collect()
}

/// An interface and its holder.
fn judged(root: &Path, name: &str, config: &Config, shown: &Shown) -> Interface {
    let foreign = if root == Path::new("/") { links::without_ethernet(name) } else { None };
    let found = match shown {
        Shown::Ours | Shown::Elsewhere => interface(root, name),
        Shown::Foreign => asked(name),
    };
    Interface { foreign, holder: leftovers::holder_of(name, &config.process.run_dir), ..found }
}

/// What the kernel says itself about an interface of our namespace.
fn asked(name: &str) -> Interface {
    let Ok(index) = nix::net::if_::if_nametoindex(name) else { return Interface::default() };
    Interface {
        exists: true,
        driver: "unknown".to_owned(),
        driver_mode: Some(links::driver_mode(index).map_err(|error| error.to_string())),
        loopback: links::is_loopback(index),
        ..Interface::default()
    }
}

/// Capabilities that anything here needs.
pub(super) const CAPABILITIES: [(Capability, &str); 9] = [
    (Capability::CAP_BPF, "CAP_BPF"),
    (Capability::CAP_NET_ADMIN, "CAP_NET_ADMIN"),
    (Capability::CAP_PERFMON, "CAP_PERFMON"),
    (Capability::CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
    (Capability::CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"),
    (Capability::CAP_SETUID, "CAP_SETUID"),
    (Capability::CAP_SETGID, "CAP_SETGID"),
    (Capability::CAP_IPC_LOCK, "CAP_IPC_LOCK"),
    (Capability::CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE"),
];

fn capabilities() -> BTreeSet<&'static str> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    CAPABILITIES.iter().filter(|(capability, _)| has(*capability)).map(|(_, name)| *name).collect()
}

fn number_or_text(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number<T: std::str::FromStr>(path: impl AsRef<Path>) -> Option<T> {
    number_or_text(path)?.parse().ok()
}

fn mounted(mounts: &str, kind: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_device, point, found) = (fields.next()?, fields.next()?, fields.next()?);
        (found == kind).then(|| PathBuf::from(point))
    })
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Bridges, tunnels and the like have no device, and no interrupts.
fn cards(root: &Path, named: &[String]) -> BTreeMap<String, Interface> {
    let entries = fs::read_dir(root.join("sys/class/net")).into_iter().flatten().flatten();
    let mut names: BTreeSet<String> = entries
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.extend(named.iter().cloned());
    let cards = names.into_iter().map(|name| (interface(root, &name), name));
    cards.filter(|(card, _)| card.exists && !card.loopback).map(|(card, name)| (name, card)).collect()
}

fn interface(root: &Path, name: &str) -> Interface {
    let base = root.join("sys/class/net").join(name);
    // A name with a slash would leave /sys/class/net.
    if name.is_empty() || name.contains('/') || name.starts_with('.') || !base.exists() {
        return Interface::default();
    }
    let driver = fs::read_link(base.join("device/driver"))
        .ok()
        .and_then(|driver| Some(driver.file_name()?.to_string_lossy().into_owned()));
    let count = |prefix: &str| {
        let entries = fs::read_dir(base.join("queues")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count()
    };
    // The kernel can only be asked about its own.
    let index: Option<u32> = number(base.join("ifindex")).filter(|_| root == Path::new("/"));
    Interface {
        exists: true,
        driver: driver.unwrap_or_else(|| "virtual".to_owned()),
        driver_mode: index.map(|index| links::driver_mode(index).map_err(|error| error.to_string())),
        loopback: number_or_text(base.join("flags"))
            .and_then(|flags| u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok())
            .is_some_and(|flags| flags & libc::IFF_LOOPBACK as u32 != 0),
        // -1: no node.
        node: number(base.join("device/numa_node")),
        queues: (count("rx-"), count("tx-")),
        holder: None,
        foreign: None,
        interrupts: interrupts(root, &base),
        rps: has_rps(&base),
    }
}

/// A mask in hexadecimal for each receive queue; all zero: off.
fn has_rps(base: &Path) -> bool {
    let queues = fs::read_dir(base.join("queues")).into_iter().flatten().flatten();
    let masks = queues.filter_map(|queue| number_or_text(queue.path().join("rps_cpus")));
    masks.into_iter().any(|mask| mask.bytes().any(|digit| digit.is_ascii_hexdigit() && digit != b'0'))
}

/// MSI interrupts of the device, or of the bus device below it (virtio), with the CPUs they really arrive at.
fn interrupts(root: &Path, base: &Path) -> Vec<Interrupt> {
    let table = fs::read_to_string(root.join("proc/interrupts")).unwrap_or_default();
    let Ok(device) = fs::canonicalize(base.join("device")) else { return Vec::new() };
    let folder =
        [device.join("msi_irqs"), device.join("../msi_irqs")].into_iter().find(|folder| folder.is_dir());
    let entries = folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let numbers: BTreeSet<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers
        .into_iter()
        .filter_map(|number| {
            let name = interrupt_name(&table, number)?;
            let cpus = ["effective_affinity_list", "smp_affinity_list"]
                .into_iter()
                .find_map(|file| {
                    number_or_text(root.join(format!("proc/irq/{number}/{file}")))
                        .filter(|list| !list.is_empty())
                })
                .unwrap_or_else(|| "?".to_owned());
            Some(Interrupt { number, name, cpus })
        })
        .collect()
}

/// The last column of the interrupt's line; absent when nobody has requested it.
fn interrupt_name(table: &str, number: u32) -> Option<String> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{number}:")))?;
    line.split_ascii_whitespace().last().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
            bpf /sys/fs/bpf bpf rw 0 0\n";
        assert_eq!(mounted(mounts, "cgroup2"), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mounted(mounts, "bpf"), Some(PathBuf::from("/sys/fs/bpf")));
        assert_eq!(mounted("", "bpf"), None);
        assert_eq!(available_bytes("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        let table = "           CPU0       CPU1\n 38:          0       5693 PCI-MSIX-0000:00:03.0   \
            1-edge      virtio2-input.0\n";
        assert_eq!(interrupt_name(table, 38).as_deref(), Some("virtio2-input.0"));
        assert_eq!(interrupt_name(table, 8), None);
    }

    #[test]
    fn loopback_is_known_and_odd_names_are_not() {
        let root = Path::new("/");
        let lo = interface(root, "lo");
        assert!(lo.exists && lo.loopback);
        assert_eq!(lo.driver, "virtual");
        assert_eq!(lo.queues, (1, 1));
        for name in ["", "..", "../../block", "no-such-interface"] {
            assert!(!interface(root, name).exists, "{name}");
        }
    }
}
