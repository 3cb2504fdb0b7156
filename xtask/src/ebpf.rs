//! `cargo xtask ebpf` rebuilds the committed eBPF object, or says whether it is older than its sources.
//!
//! Building needs a rustc with the standard library's sources, and a bpf-linker made with that rustc's LLVM
//! or a newer one. The check needs neither. The programs build for the target bpfel-unknown-none, which has
//! no prebuilt core.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

const TARGET: &str = "bpfel-unknown-none";
const BINARY: &str = "sluice-bpf";
const OBJECT: &str = "proxy-ebpf/prebuilt/sluice.bpf.o";
const HASHES: &str = "proxy-ebpf/prebuilt/sluice.bpf.sha256";
/// The sources of the object. A folder stands for all files in it.
const SOURCES: [&str; 5] = [
    "proxy-common/Cargo.toml",
    "proxy-common/src",
    "proxy-ebpf/Cargo.lock",
    "proxy-ebpf/Cargo.toml",
    "proxy-ebpf/src",
];
/// The bpf-linker version that is installed if there is none.
const LINKER_VERSION: &str = "^0.13";

/// Builds the object and puts it, with the hash of its sources, into the place from which the proxy embeds
/// it.
pub(crate) fn build() -> Result<(), String> {
    build_fresh(&root().join(OBJECT))?;
    let hashes = hashes()?;
    write(&root().join(HASHES), hashes.as_bytes())?;
    println!("{OBJECT} and {HASHES} are new: commit both");
    Ok(())
}

/// Builds the object into `out` and leaves the committed one alone. CI also runs the kernel tests against
/// this object, whose path they take from `SLUICE_TEST_EBPF_OBJECT`.
pub(crate) fn build_fresh(out: &Path) -> Result<(), String> {
    let toolchain = Toolchain::find()?;
    let linker = toolchain.linker()?;
    let folder = root().join("proxy-ebpf");
    let target = folder.join("target");

    let mut path = OsString::from(linker.parent().unwrap_or(Path::new("/")));
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(&folder)
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target)
        // build-std and one intrinsic are unstable. This variable makes a stable toolchain accept them.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", toolchain.flags().join("\x1f"))
        .env("PATH", path);
    run(cargo, "building the eBPF programs")?;

    let built = target.join(TARGET).join("release").join(BINARY);
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    }
    fs::copy(&built, out).map_err(|error| format!("{} to {}: {error}", built.display(), out.display()))?;
    toolchain.strip(out)
}

/// Checks that the committed object was built from the present sources.
pub(crate) fn check_hash() -> Result<(), String> {
    let committed = fs::read_to_string(root().join(HASHES)).map_err(|error| format!("{HASHES}: {error}"))?;
    if committed == hashes()? {
        return Ok(());
    }
    Err(format!(
        "{OBJECT} is not what its sources make: run `cargo xtask ebpf` and commit proxy-ebpf/prebuilt"
    ))
}

/// The hash of the sources and the hash of the object, as the hash file holds them.
fn hashes() -> Result<String, String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(Path::new(source), &mut files)?;
    }
    files.sort();
    let mut hasher = Sha256::new();
    for file in &files {
        let content = read(file)?;
        // Each part's length goes first, so that no two sets of files hash alike.
        for part in [file.to_string_lossy().as_bytes(), &content] {
            hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part);
        }
    }
    let object = Sha256::digest(read(Path::new(OBJECT))?);
    Ok(format!("{}  sources\n{}  sluice.bpf.o\n", hex(&hasher.finalize()), hex(&object)))
}

/// The files at or below `path`, relative to the workspace's root.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let full = root().join(path);
    if !full.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries = fs::read_dir(&full).map_err(|error| format!("{}: {error}", path.display()))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("{}: {error}", path.display()))?;
        collect(&path.join(entry.file_name()), files)?;
    }
    Ok(())
}

/// A Rust toolchain that can build for the target.
#[derive(Debug)]
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// The major version of rustc's LLVM. bpf-linker must have been made with this version or a newer one.
    llvm: u32,
    /// The folder of the standard library's sources: as rustc names it, and with links resolved.
    library: [PathBuf; 2],
}

impl Toolchain {
    /// Finds rustup's toolchain if it has rust-src, else Debian's rustc-web.
    fn find() -> Result<Self, String> {
        let rustup = home_bin("rustc").filter(|rustc| rustc.exists());
        let candidates = [rustup, Some(PathBuf::from("rustc")), Some(PathBuf::from("/usr/bin/rustc"))];
        for rustc in candidates.into_iter().flatten() {
            let Some(sysroot) = output(&rustc, &["--print", "sysroot"]) else { continue };
            let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
            if !library.join("library/core/Cargo.toml").exists() {
                continue;
            }
            let version = output(&rustc, &["-vV"]).unwrap_or_default();
            let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
            let Some(llvm) = llvm.and_then(|llvm| llvm.split('.').next()?.parse().ok()) else { continue };
            let resolved = library.canonicalize().unwrap_or_else(|_| library.clone());
            return Ok(Self {
                cargo: rustc.with_file_name("cargo"),
                rustc,
                llvm,
                library: [library, resolved],
            });
        }
        Err("building the eBPF programs needs a rustc with the standard library's sources. Either of these \
            gives one:\n  \
             rustup component add rust-src\n  \
             apt-get install rustc-web cargo-web rust-web-src\n\
             (The committed object needs neither: this is only for changing proxy-ebpf or proxy-common.)"
            .to_owned())
    }

    /// The toolchain's cargo, without the variables that the cargo running xtask has set.
    fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let kept = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR"];
            let inherited = text.starts_with("CARGO") && !kept.iter().any(|kept| text.starts_with(kept));
            if inherited
                || text.starts_with("RUSTC")
                || text.starts_with("RUSTFLAGS")
                || text == "RUSTUP_TOOLCHAIN"
            {
                command.env_remove(&name);
            }
        }
        command.env("RUSTC", &self.rustc);
        command
    }

    /// Flags for rustc. BTF needs debug information, and its paths must not name folders of this machine.
    fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> =
            ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3", "--cfg=bpf_target_arch=\"x86_64\""]
                .map(str::to_owned)
                .into();
        let mut remap =
            |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        remap(&root(), "/sluice");
        for library in &self.library {
            remap(library, "/rust");
        }
        let registries = fs::read_dir(cargo_home().join("registry/src")).into_iter().flatten().flatten();
        for registry in registries {
            remap(&registry.path(), "/cargo");
        }
        flags
    }

    /// The path of bpf-linker. If it is missing, root installs it.
    fn linker(&self) -> Result<PathBuf, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path)
            .map(|folder| folder.join("bpf-linker"))
            .chain(home_bin("bpf-linker"));
        for place in places {
            if place.exists() {
                return Ok(place);
            }
        }
        let llvm = self.llvm;
        let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
        let install = format!(
            "LLVM_PREFIX={} cargo install bpf-linker --version {LINKER_VERSION} --no-default-features \
             --features llvm-{llvm}",
            prefix.display()
        );
        if !is_root() {
            return Err(format!("bpf-linker is missing:\n  apt-get install llvm-{llvm}-dev\n  {install}"));
        }
        if !prefix.join("bin/llvm-config").exists() {
            let mut apt = Command::new("apt-get");
            apt.args(["install", "-y", "--no-install-recommends"]).arg(format!("llvm-{llvm}-dev"));
            run(
                apt,
                &format!(
                    "installing llvm-{llvm}-dev (bpf-linker needs the LLVM of {} or a newer one)",
                    self.rustc.display()
                ),
            )?;
        }
        let mut cargo = self.cargo();
        cargo
            .args([
                "install",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--no-default-features",
                "--features",
            ])
            .arg(format!("llvm-{llvm}"))
            .env("LLVM_PREFIX", &prefix);
        run(cargo, "installing bpf-linker")?;
        home_bin("bpf-linker")
            .filter(|place| place.exists())
            .ok_or_else(|| format!("bpf-linker is still missing after:\n  {install}"))
    }

    /// Strips the debug information but keeps BTF. It is four fifths of the object, and nothing depends on
    /// it.
    fn strip(&self, object: &Path) -> Result<(), String> {
        let strip = PathBuf::from(format!("/usr/lib/llvm-{}/bin/llvm-strip", self.llvm));
        if !strip.exists() {
            println!(
                "{} is not there (package llvm-{}): the object keeps its debug information",
                strip.display(),
                self.llvm
            );
            return Ok(());
        }
        let mut command = Command::new(&strip);
        command.arg("--strip-debug").arg(object);
        run(command, "stripping the object")?;
        anonymize(&strip, object)
    }
}

/// Removes the crates' disambiguators from the names of symbols. cargo derives them from the sources' folder,
/// and the same sources must make the same object in every folder.
fn anonymize(strip: &Path, object: &Path) -> Result<(), String> {
    let path = object.to_string_lossy();
    let nm = strip.with_file_name("llvm-nm");
    let symbols = output(&nm, &["--format=just-symbols", &path])
        .ok_or_else(|| format!("{} does not list {path}", nm.display()))?;
    let mut objcopy = Command::new(strip.with_file_name("llvm-objcopy"));
    for symbol in symbols.lines().filter(|symbol| symbol.starts_with("_R")) {
        objcopy.arg(format!("--redefine-sym={symbol}={}", without_disambiguators(symbol)));
    }
    objcopy.arg(object);
    run(objcopy, "naming its symbols")
}

/// A symbol of Rust's v0 mangling in which each crate root is `C` and a name. The original has `Cs`, a number
/// in base 62, `_` and a name.
fn without_disambiguators(symbol: &str) -> String {
    let mut result = String::new();
    let mut rest = symbol;
    while let Some(at) = rest.find("Cs") {
        let (before, root) = rest.split_at(at);
        result.push_str(before);
        let number = root[2..].find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(root.len() - 2);
        let is_root = root[2 + number..]
            .strip_prefix('_')
            .is_some_and(|name| name.starts_with(|first: char| first.is_ascii_digit()));
        rest = if is_root { &root[2 + number + 1..] } else { &root[2..] };
        result.push_str(if is_root { "C" } else { "Cs" });
    }
    result + rest
}

fn run(mut command: Command, what: &str) -> Result<(), String> {
    println!("{what}");
    let status =
        command.status().map_err(|error| format!("{what}: {}: {error}", command.get_program().display()))?;
    if status.success() { Ok(()) } else { Err(format!("{what}: {status}")) }
}

fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).current_dir(root()).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The workspace's root.
fn root() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    folder.parent().unwrap_or(folder).to_owned()
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

fn home_bin(name: &str) -> Option<PathBuf> {
    Some(cargo_home().join("bin").join(name))
}

fn is_root() -> bool {
    output(Path::new("id"), &["-u"]).is_some_and(|id| id.trim() == "0")
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(root().join(path)).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_do_not_tell_the_folder() {
        let symbol = |crate_root: &str| {
            format!("_RINvNvNt{crate_root}10sluice_bpf4maps6repeat4callNtNtB6_5steer6SearchEB6_")
        };
        assert_eq!(without_disambiguators(&symbol("CsaZ13HCd3WlU_")), symbol("C"));
        assert_eq!(without_disambiguators("sluice_guard_Cs"), "sluice_guard_Cs");
        assert_eq!(without_disambiguators("_RNvCs_3abc3Cs_"), "_RNvC3abc3Cs_");
    }
}
