//! Skipped tests: each skip gives a reason from one fixed list. As root, a skip is accepted only for a reason
//! that no privilege can remove. Any other skip fails the test, so that a CI machine cannot silently test
//! less.

use std::io::Write;

/// Why a test cannot run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Network namespaces, XDP and another process user need root.
    NotRoot,
    /// The test compares two workers, each on a core of its own.
    OneCpu,
    /// The test must know on which NUMA node a packet arrives.
    ManyNodes,
    /// The hard descriptor limit is too low for so many connections, and only the machine's owner can raise
    /// it.
    DescriptorLimit,
    /// A program that the test drives is not installed.
    ToolMissing,
    /// A program from another registry than Debian's could not be installed.
    PackageMissing,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 6] = [
        Self::NotRoot,
        Self::OneCpu,
        Self::ManyNodes,
        Self::DescriptorLimit,
        Self::ToolMissing,
        Self::PackageMissing,
    ];

    /// The reason as `skip` prints it and as `cargo xtask test` lists it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotRoot => "needs root",
            Self::OneCpu => "needs two CPUs",
            Self::ManyNodes => "needs a machine with one NUMA node",
            Self::DescriptorLimit => "needs a higher hard descriptor limit",
            Self::ToolMissing => "needs a program that is not installed",
            Self::PackageMissing => "needs a package that could not be installed",
        }
    }

    /// Whether a skip for this reason is accepted when root runs the tests.
    #[must_use]
    pub const fn stands_as_root(self) -> bool {
        match self {
            Self::NotRoot | Self::ToolMissing => false,
            Self::OneCpu | Self::ManyNodes | Self::DescriptorLimit | Self::PackageMissing => true,
        }
    }
}

/// Whether the tests run as root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Records a skip on stderr. If `SLUICE_SKIPS` names a file, it also appends `test<TAB>reason<TAB>detail`
/// there.
///
/// Panics if root runs the tests and root must not skip for this reason.
pub fn skip(reason: Reason, detail: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("{test}\t{}\t{detail}", reason.label());
    assert!(
        !is_root() || reason.stands_as_root(),
        "as root this test must run: {test}: {}: {detail}",
        reason.label()
    );
    eprintln!("SKIP {line}");
    if let Some(path) = std::env::var_os("SLUICE_SKIPS") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("SLUICE_SKIPS can be written");
        file.write_all(format!("{line}\n").as_bytes()).expect("the skip is recorded");
    }
}

/// True, and records a skip, if the tests do not run as root.
#[must_use]
pub fn without_root() -> bool {
    if !is_root() {
        skip(Reason::NotRoot, "");
    }
    !is_root()
}

/// True, and records a skip, if a program is not in `PATH`.
#[must_use]
pub fn without_tool(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file());
    if !found {
        skip(Reason::ToolMissing, program);
    }
    !found
}

/// True, and records a skip, if the file of a program's module is not installed.
#[must_use]
pub fn without_file(path: &str) -> bool {
    let missing = !std::path::Path::new(path).is_file();
    if missing {
        skip(Reason::ToolMissing, path);
    }
    missing
}

/// True, and records a skip, if this process may use fewer than two CPUs.
#[must_use]
pub fn without_two_cpus() -> bool {
    let one = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2);
    if one {
        skip(Reason::OneCpu, "");
    }
    one
}

/// True, and records a skip, if the hard descriptor limit is below `needed`.
#[must_use]
pub fn without_descriptors(needed: u64) -> bool {
    let hard = crate::raise_descriptor_limit();
    if hard < needed {
        skip(Reason::DescriptorLimit, &format!("{hard} of {needed}"));
    }
    hard < needed
}
