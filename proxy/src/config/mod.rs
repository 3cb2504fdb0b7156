//! Configuration: TOML schema, its resolution into a model, and diagnostics with place and advice.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zeroize::Zeroizing;

use diagnostics::Source;
pub use diagnostics::{Diagnostic, Diagnostics, Severity};
use resolve::{Facts, Parsed, SYSTEM_ROOTS};

pub mod changes;
pub mod diagnostics;
mod hints;
pub mod model;
mod read;
mod resolve;
mod schema;
pub mod units;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// Why a file cannot be read.
const NO_SUCH_FILE: &str = "no such file";
const PERMISSION_DENIED: &str = "permission denied";

/// The largest main file.
const MAIN_BYTES_MAX: u64 = 4 << 20;

/// The largest bundle of roots; distributions' bundles have some hundred KiB.
const ROOTS_BYTES_MAX: u64 = 8 << 20;

/// Files by path, the main one first: exactly the bytes that were read, so that supervisor and data plane
/// resolve the same.
pub type Files = [(PathBuf, Bytes)];

/// A file's bytes. Some files are private keys: no copy of them may stay in freed memory.
pub type Bytes = Zeroizing<Vec<u8>>;

/// A configuration and all the bytes it was made of.
#[derive(Clone)]
pub struct Loaded {
    /// The model, for all other code.
    pub config: model::Config,
    /// For `resolve` in another process; the main file is first.
    pub files: Vec<(PathBuf, Bytes)>,
    /// Legal settings that were probably not meant. May be empty.
    pub warnings: Diagnostics,
    /// Files whose changes take effect by themselves.
    pub watched: Vec<PathBuf>,
}

impl fmt::Debug for Loaded {
    /// Some of the files are private keys.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.files.iter().map(|(path, bytes)| (path, bytes.len())).collect();
        let mut shown = formatter.debug_struct("Loaded");
        shown.field("config", &self.config).field("files", &names).field("warnings", &self.warnings).finish()
    }
}

/// Reads the file and all files that it refers to, each once, and resolves it.
///
/// # Errors
/// All of its errors, missing files included.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    load_at(path, unix_now())
}

/// Seconds since 1970: the unit of certificates' ends.
#[must_use]
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// As at `now`, seconds since 1970: it decides which certificates are warned of.
fn load_at(path: &Path, now: i64) -> Result<Loaded, Diagnostics> {
    let (main, _) = read_file(path, MAIN_BYTES_MAX).map_err(|reason| unreadable(path, &reason))?;
    load_main((path.to_owned(), main), now, read_file)
}

/// Reads the watched files anew; all others, the main file above all, stay as they are in `files`.
///
/// # Errors
/// All of its errors, missing files included.
pub fn load_watched(files: &Files) -> Result<Loaded, Diagnostics> {
    let Some((path, main)) = files.first() else {
        return Err(unreadable(Path::new("(none)"), "no file was passed on"));
    };
    let watched = Parsed::new(path, main).watched();
    let kept =
        |path: &Path| files.iter().skip(1).find(|(known, _)| known == path && !watched.contains(known));
    load_main((path.clone(), main.clone()), unix_now(), |path, bytes_max| match kept(path) {
        Some((_, bytes)) => Ok((bytes.clone(), 0)),
        None => read_file(path, bytes_max),
    })
}

/// The problems of a text alone, errors and warnings: no file that it names is looked for, so that a machine
/// without keys can check it.
#[must_use]
pub fn check_text(path: &Path, text: &[u8]) -> (Diagnostics, Diagnostics) {
    let facts = Facts { without_files: true, ..Facts::default() };
    let (_, errors, warnings) = Parsed::new(path, text).resolve(&[], &facts);
    (errors, warnings)
}

/// As `load`, of a text that came from elsewhere than `path`, which names it in messages.
///
/// # Errors
/// All of its errors, missing files included.
pub fn load_text(path: &Path, text: Bytes) -> Result<Loaded, Diagnostics> {
    load_main((path.to_owned(), text), unix_now(), read_file)
}

/// Reads a main file's text, or standard input where the path is `-`.
///
/// # Errors
/// When it cannot be read, or is too long.
pub fn read_text(path: &Path) -> Result<(PathBuf, Bytes), Diagnostics> {
    if path != Path::new("-") {
        return match read_file(path, MAIN_BYTES_MAX) {
            Ok((bytes, _)) => Ok((path.to_owned(), bytes)),
            Err(reason) => Err(unreadable(path, &reason)),
        };
    }
    let name = PathBuf::from("(standard input)");
    let mut bytes = Bytes::new(Vec::new());
    match std::io::stdin().take(MAIN_BYTES_MAX + 1).read_to_end(&mut bytes) {
        Ok(read) if read as u64 > MAIN_BYTES_MAX => {
            let reason = format!("larger than {}", units::show_size(MAIN_BYTES_MAX));
            Err(unreadable(&name, &reason))
        }
        Ok(_) => Ok((name, bytes)),
        Err(error) => Err(unreadable(&name, &error.to_string())),
    }
}

/// The result of `read_file`: bytes and mode.
type ReadFile = Result<(Bytes, u32), String>;

fn load_main(
    main: (PathBuf, Bytes),
    now: i64,
    read: impl Fn(&Path, u64) -> ReadFile,
) -> Result<Loaded, Diagnostics> {
    let parsed = Parsed::new(&main.0, &main.1);
    let (references, mut watched) = (parsed.references(), parsed.watched());
    let mut files = vec![main];
    let mut facts = Facts { now: Some(now), ..Facts::default() };
    for (reference, bytes_max) in references {
        match read(&reference, bytes_max) {
            Ok((bytes, mode)) => {
                if mode & 0o004 != 0 {
                    facts.open_to_all.insert(reference.clone());
                }
                files.push((reference, bytes));
            }
            Err(reason) => drop(facts.unread.insert(reference, reason)),
        }
    }
    if parsed.needs_system_roots() {
        match system_roots() {
            Ok((place, bytes)) => {
                files.push((SYSTEM_ROOTS.into(), bytes));
                watched.push(place);
            }
            Err(reason) => drop(facts.unread.insert(SYSTEM_ROOTS.into(), reason)),
        }
    }
    match parsed.resolve(&files, &facts) {
        (Some(config), _, warnings) => Ok(Loaded { config, files, warnings, watched }),
        (None, errors, _) => Err(errors),
    }
}

/// The roots that this system trusts, and their place: `SSL_CERT_FILE` as OpenSSL knows it, else the first of
/// the usual places that exists.
fn system_roots() -> Result<(PathBuf, Bytes), String> {
    const PLACES: [&str; 6] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/pki/tls/cacert.pem",
        "/etc/ssl/cert.pem",
    ];
    let told = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let places = told.map_or_else(|| PLACES.map(PathBuf::from).to_vec(), |path| vec![path]);
    let mut reasons = Vec::new();
    for place in places {
        match read_file(&place, ROOTS_BYTES_MAX) {
            Ok((bytes, _)) => return Ok((place, bytes)),
            Err(reason) => reasons.push(format!("{}: {reason}", place.display())),
        }
    }
    Err(reasons.join(", "))
}

/// Resolves bytes that were read before. Pure: opens nothing.
///
/// # Errors
/// Everything that is wrong with it; a file it refers to and that is not in `files` too.
pub fn resolve(files: &Files) -> Result<model::Config, Diagnostics> {
    let Some((path, main)) = files.first() else {
        return Err(unreadable(Path::new("(none)"), "no file was passed on"));
    };
    let (config, errors, _) = Parsed::new(path, main).resolve(files, &Facts::default());
    config.ok_or(errors)
}

/// Reads a regular file of bounded size, and its mode: a path may name a FIFO or a device, which would never
/// end.
fn read_file(path: &Path, bytes_max: u64) -> ReadFile {
    let say = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => NO_SUCH_FILE.to_owned(),
        ErrorKind::PermissionDenied => PERMISSION_DENIED.to_owned(),
        _ => error.to_string(),
    };
    // Looked at before it is opened, since a device may notice that; and again, since another file may have
    // its name by then. Opening a FIFO would wait for a writer.
    let no_file = || "not a regular file".to_owned();
    if !std::fs::metadata(path).map_err(say)?.is_file() {
        return Err(no_file());
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(say)?;
    let metadata = file.metadata().map_err(say)?;
    if !metadata.is_file() {
        return Err(no_file());
    }
    // Room for all of it: growing would leave copies behind.
    let room = usize::try_from(metadata.len().min(bytes_max) + 1).unwrap_or_default();
    let mut bytes = Bytes::new(Vec::with_capacity(room));
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(say)?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("larger than {}", units::show_size(bytes_max)));
    }
    Ok((bytes, metadata.permissions().mode()))
}

fn unreadable(path: &Path, reason: &str) -> Diagnostics {
    let mut diagnostics = Diagnostics::default();
    diagnostics.push(Diagnostic {
        severity: Severity::Error,
        source: Source::new(path, String::new()),
        span: None,
        key: String::new(),
        message: format!("the configuration cannot be read: {reason}"),
        expected: None,
        help: None,
        related: None,
    });
    diagnostics
}
