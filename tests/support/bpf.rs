//! The eBPF programs under test, and BPF_PROG_TEST_RUN through bpf(2): it runs a loaded XDP program over a
//! packet given as bytes (Documentation/bpf/bpf_prog_run). aya 0.14 has no call for it. The file also holds
//! two programs of a few instructions each: one does nothing, the other gives every packet a different
//! source.
#![allow(unsafe_code, reason = "bpf(2) takes pointers to buffers of ours")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use aya::maps::{Array, Map, MapData};
use proxy::kernel::Programs;
use proxy::kernel::guard::{Fragments, Guard, GuardMode, SynCookies};
use proxy_common::sources::{self, Bucket};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_CREATE: libc::c_long = 28;

const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// The guard is loaded with this flag and attach type. A tail call needs both programs to agree on them.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The map half of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for BPF_PROG_LOAD that the tests use.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

const _: () =
    assert!(size_of::<MapCreate>() == 20 && size_of::<MapUpdate>() == 32 && size_of::<ProgLoad>() == 72);

/// `struct { … } test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<TestRun>() == 80);

/// In bytes: an Ethernet header. The kernel refuses to run a shorter packet, even with metadata before it.
pub const PACKET_MIN: usize = 14;

/// The result of a test run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// `XDP_DROP` (1) or `XDP_PASS` (2).
    pub action: u32,
    /// The average duration of one run, in nanoseconds.
    pub nanos: u32,
}

/// `XDP_DROP`: the packet is thrown away.
pub const DROP: u32 = 1;
/// `XDP_TX`: the packet leaves through the interface on which it came.
pub const TX: u32 = 3;
/// `XDP_PASS`: the packet goes on to the kernel.
pub const PASS: u32 = 2;

/// Runs an XDP program `repeat` times over one packet of at least `PACKET_MIN` bytes.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<Ran> {
    let mut run = TestRun {
        prog_fd: u32::try_from(program.as_raw_fd()).expect("a descriptor"),
        data_size_in: u32::try_from(packet.len()).expect("a packet"),
        data_in: packet.as_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    // SAFETY: `run` has the layout and size that are passed, and its only pointer is to `packet`, which the
    // kernel reads before it returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut run, size_of::<TestRun>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Ran { action: run.retval, nanos: run.duration })
}

/// Runs the program once, as `test_run` does. Returns the action and the packet as the program left it.
pub fn test_run_output(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let mut output = vec![0u8; 2048];
    let mut run = TestRun {
        prog_fd: number(&program),
        data_size_in: u32::try_from(packet.len()).expect("a packet"),
        data_in: packet.as_ptr() as u64,
        data_size_out: u32::try_from(output.len()).expect("a short buffer"),
        data_out: output.as_mut_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    // The buffers outlive the call, and their sizes are given.
    bpf(BPF_PROG_TEST_RUN, &mut run)?;
    output.truncate(run.data_size_out as usize);
    Ok((run.retval, output))
}

/// `struct bpf_insn`: operation, destination and source register, offset, immediate.
const fn instruction(operation: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([operation, destination | source << 4, low, high, a, b, c, d])
}

/// Calls bpf(2) with a command that returns a descriptor or 0.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attributes` has the layout of the command's part of `union bpf_attr`, and its size is passed.
    // The buffers that it points to outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(RawFd::try_from(result).expect("a descriptor"))
}

fn owned(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel just opened this descriptor for us, and no other owner knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn number(descriptor: &impl AsRawFd) -> u32 {
    u32::try_from(descriptor.as_raw_fd()).expect("a descriptor")
}

fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut load = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: u32::try_from(instructions.len()).expect("a short program"),
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        prog_flags: BPF_F_XDP_HAS_FRAGS,
        expected_attach_type: BPF_XDP,
        ..ProgLoad::default()
    };
    bpf(BPF_PROG_LOAD, &mut load).map(owned)
}

/// An XDP program that passes every packet. It measures the cost of BPF_PROG_TEST_RUN itself.
pub fn empty_program() -> io::Result<OwnedFd> {
    let r0_is_pass = instruction(0xb7, 0, 0, 0, PASS as i32);
    let exit = instruction(0x95, 0, 0, 0, 0);
    load(&[r0_is_pass, exit])
}

/// The part of `struct { … } link_create` of `union bpf_attr` that the tests use.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to an interface of this thread's network namespace. It stays while the link lives.
pub fn attach_xdp(program: BorrowedFd<'_>, interface: &str) -> io::Result<OwnedFd> {
    let target_ifindex = nix::net::if_::if_nametoindex(interface)?;
    let mut create = LinkCreate { prog_fd: number(&program), target_ifindex, attach_type: BPF_XDP, flags: 0 };
    bpf(BPF_LINK_CREATE, &mut create).map(owned)
}

/// Attaches the empty program in driver mode to an interface of this namespace while the descriptor lives. On
/// a veth pair, frames that XDP sends back at one end vanish unless the other end has a program too.
pub fn attach_empty(interface: &str) -> io::Result<OwnedFd> {
    let program = empty_program()?;
    let index = nix::net::if_::if_nametoindex(interface)?;
    let mut create = LinkCreate {
        prog_fd: number(&program),
        target_ifindex: index,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    bpf(BPF_LINK_CREATE, &mut create).map(owned)
}

/// An XDP program that gives an IPv4 packet without VLAN tags a different source, then calls its target
/// program. A repeated run keeps the change, so each run has a new source. All 2^32 come, in an order that
/// looks random.
#[derive(Debug)]
pub struct Spoofer {
    program: OwnedFd,
    /// The map of tail calls. It holds the target program and keeps it loaded.
    _targets: OwnedFd,
}

impl Spoofer {
    /// Builds a spoofer that runs before `target`.
    pub fn new(target: BorrowedFd<'_>) -> io::Result<Self> {
        let mut create = MapCreate {
            map_type: BPF_MAP_TYPE_PROG_ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            map_flags: 0,
        };
        let targets = bpf(BPF_MAP_CREATE, &mut create).map(owned)?;
        let (key, value) = (0u32, number(&target));
        let mut update = MapUpdate {
            map_fd: number(&targets),
            reserved: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        bpf(BPF_MAP_UPDATE_ELEM, &mut update)?;

        /// Offset in bytes of the IPv4 source address in a frame without VLAN tags.
        const SOURCE: i16 = 14 + 12;
        let program = load(&[
            instruction(0x61, 2, 1, 0, 0),                     // r2 = data
            instruction(0x61, 3, 1, 4, 0),                     // r3 = data_end
            instruction(0xbf, 4, 2, 0, 0),                     // r4 = r2
            instruction(0x07, 4, 0, 0, i32::from(SOURCE) + 4), // r4 += the source's end
            instruction(0x2d, 4, 3, 8, 0),                     // beyond data_end: to the last two
            instruction(0x61, 5, 2, SOURCE, 0),                // r5 = source
            instruction(0x27, 5, 0, 0, 1_664_525), // r5 *= … (Numerical Recipes' full period modulo 2^32)
            instruction(0x07, 5, 0, 0, 1_013_904_223), // r5 += …
            instruction(0x63, 2, 5, SOURCE, 0),    // source = r5
            instruction(0x18, 2, 1, 0, targets.as_raw_fd()), // r2 = the map (BPF_PSEUDO_MAP_FD), two words
            0,
            instruction(0xb7, 3, 0, 0, 0),  // r3 = 0
            instruction(0x85, 0, 0, 0, 12), // bpf_tail_call(r1, r2, r3): does not come back
            instruction(0xb7, 0, 0, 0, 0),  // r0 = XDP_ABORTED
            instruction(0x95, 0, 0, 0, 0),  // exit
        ])?;
        Ok(Self { program, _targets: targets })
    }
}

impl AsFd for Spoofer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// Loads the embedded programs, or the object file that `SLUICE_TEST_EBPF_OBJECT` names. With the variable,
/// CI runs the same tests against a fresh build.
pub fn programs() -> Programs {
    let Some(path) = std::env::var_os("SLUICE_TEST_EBPF_OBJECT") else {
        return Programs::load().expect("the embedded object loads");
    };
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Programs::load_object(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn counts(programs: &Programs) -> Array<MapData, Bucket> {
    let map = programs.counting.counts().try_clone_to_owned().expect("a descriptor");
    Array::try_from(Map::Array(MapData::from_fd(map).expect("the counts"))).expect("an array of buckets")
}

/// Every entry of the bucket holds a count of 1 for a source that does not exist.
const TAKEN: Bucket = [0xdead_beef_dead_0001; 8];

/// Fills the table of connections per source.
pub fn fill_counts(programs: &Programs) {
    let mut counts = counts(programs);
    for bucket in 0..sources::KERNEL_BUCKETS {
        counts.set(bucket, TAKEN, 0).expect("a bucket");
    }
}

/// Whether nothing has changed since `fill_counts`.
#[must_use]
pub fn counts_are_full(programs: &Programs) -> bool {
    counts(programs).iter().all(|bucket| bucket.expect("a bucket") == TAKEN)
}

/// A guard that judges and limits nothing.
pub fn guard() -> Guard {
    Guard {
        interfaces: Vec::new(),
        mode: GuardMode::Auto,
        dry_run: false,
        allow: Vec::new(),
        deny: Vec::new(),
        syn_rate_per_ip: None,
        syn_burst_per_ip: 1,
        ban_for: std::time::Duration::from_secs(60),
        connections_per_ip: None,
        syn_cookies: SynCookies::Off,
        syn_cookies_rate: 100_000,
        fragments: Fragments::Judge,
    }
}

/// The maps that a process holds open: their ids and their names, of which the kernel keeps 15 bytes. Needs
/// root.
#[must_use]
pub fn maps_of(pid: u32) -> Vec<(u32, String)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("its descriptors").flatten();
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let ids = texts.filter_map(|text| {
        let id = text.lines().find_map(|line| line.strip_prefix("map_id:"))?;
        id.trim().parse().ok()
    });
    let named = ids.filter_map(|id| {
        let info = MapData::from_id(id).ok()?.info().ok()?;
        Some((id, info.name_as_str()?.to_owned()))
    });
    named.collect()
}
