//! The machine we run on: where the workspace is, which packages it lacks, and running commands with a useful
//! error.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A Debian package and how to see that it is there.
pub(crate) struct Package {
    name: &'static str,
    probe: &'static [&'static str],
}

impl Package {
    /// A package, and a command that succeeds when it is there.
    pub(crate) const fn new(name: &'static str, probe: &'static [&'static str]) -> Self {
        Self { name, probe }
    }
}

/// What building needs.
pub(crate) const BUILD: &[Package] = &[
    Package::new("pkg-config", &["pkg-config", "--version"]),
    Package::new("libhwloc-dev", &["pkg-config", "--exists", "hwloc"]),
];

/// What the tests put at the other end, and the tools that make namespaces.
pub(crate) const TEST: &[Package] = &[
    Package::new("nginx", &["sh", "-c", "command -v nginx || test -x /usr/sbin/nginx"]),
    Package::new("libnginx-mod-stream", &["test", "-f", "/usr/lib/nginx/modules/ngx_stream_module.so"]),
    Package::new("haproxy", &["sh", "-c", "command -v haproxy || test -x /usr/sbin/haproxy"]),
    Package::new("curl", &["curl", "--version"]),
    Package::new("openssl", &["openssl", "version"]),
    Package::new("gnutls-bin", &["gnutls-cli", "--version"]),
    Package::new("testssl.sh", &["sh", "-c", "command -v testssl || command -v testssl.sh"]),
    Package::new("python3-venv", &["python3", "-c", "import ensurepip, venv"]),
    Package::new("slowhttptest", &["sh", "-c", "command -v slowhttptest"]),
    Package::new("util-linux", &["setpriv", "--version"]),
    Package::new("iproute2", &["sh", "-c", "command -v ip || test -x /sbin/ip"]),
];

/// What rebuilding the eBPF object needs where rustup has no rust-src: Debian's Rust with its sources, and
/// the LLVM that bpf-linker is made with.
pub(crate) const EBPF: &[Package] = &[
    Package::new("rustc-web", &["dpkg", "-s", "rustc-web"]),
    Package::new("cargo-web", &["dpkg", "-s", "cargo-web"]),
    Package::new("rust-web-src", &["dpkg", "-s", "rust-web-src"]),
    Package::new("llvm-22-dev", &["dpkg", "-s", "llvm-22-dev"]),
    Package::new("libpolly-22-dev", &["dpkg", "-s", "libpolly-22-dev"]),
];

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Installs the packages that are missing when root on a Debian-like machine; else says which command does.
pub(crate) fn ensure(packages: &[Package]) -> Result<(), String> {
    let missing: Vec<&str> =
        packages.iter().filter(|package| !succeeds(package.probe)).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// Installs Debian packages by name; without root, an error that holds the command.
pub(crate) fn install(names: &[&str]) -> Result<(), String> {
    let list = names.join(" ");
    if !is_root() || !succeeds(&["apt-get", "--version"]) {
        return Err(format!(
            "this machine lacks {list}; install with: sudo apt-get install --no-install-recommends {list}"
        ));
    }
    eprintln!("installing {list}");
    step(Command::new("apt-get").args(["-qq", "update"]))?;
    step(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            // A package's service must not start by itself beside what we measure and test.
            .env("RUNLEVEL", "1")
            .args(["-qq", "install", "--yes", "--no-install-recommends"])
            .args(names)
            .stdout(Stdio::null()),
    )
}

/// A program of PyPI in a folder of its own beside what cargo builds, installed by name where it is missing.
pub(crate) fn python_program(name: &str, version: &str) -> Result<PathBuf, String> {
    let folder = target_dir().join("python").join(format!("{name}-{version}"));
    let program = folder.join("bin").join(name);
    if succeeds(&[&program.to_string_lossy(), "--help"]) {
        return Ok(program);
    }
    eprintln!("installing {name} {version}");
    step(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let pip = folder.join("bin/pip");
    step(Command::new(pip).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        &format!("{name}=={version}"),
    ]))?;
    Ok(program)
}

/// Whether a command runs and exits with success, quietly.
pub(crate) fn succeeds(words: &[&str]) -> bool {
    Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a command to its end; failing is an error that names it.
pub(crate) fn step(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown}: {status}")),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

/// `cargo`, the one that runs us, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds the released binary and says where it is.
pub(crate) fn build_sluice() -> Result<PathBuf, String> {
    ensure(BUILD)?;
    step(cargo().args(["build", "--release", "--package", "proxy", "--bin", "sluice"]))?;
    Ok(target_dir().join("release/sluice"))
}
