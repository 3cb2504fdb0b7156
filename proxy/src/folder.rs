//! A folder, held by its descriptor, and the files in it (openat(2)). A path is walked component by
//! component. From the first folder on that another user could change, no symbolic link is followed, because
//! that user could have put it there. A folder in which we keep files of our own must be ours from the root
//! on.
//!
//! Others could change a folder that belongs to neither root nor us nor the owner of `/`, or that its group
//! or everybody may write. In a sticky folder (/tmp) nobody renames an entry of another user, so there the
//! entry's owner decides.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::{Uid, UnlinkatFlags, unlinkat};

/// As many links as the kernel follows (path_resolution(7)).
const DETOURS_MAX: u32 = 40;
/// Of a folder that we make.
const FOLDER_MODE: Mode = Mode::from_bits_truncate(0o755);
/// Of a file of our own.
const FILE_MODE: Mode = Mode::from_bits_truncate(0o600);
/// Only to find what is there: no device notices it, and no FIFO makes us wait.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// Of every file that we open: it is neither somebody's link nor a terminal that becomes ours.
const SAFELY: OFlag = OFlag::O_NOFOLLOW.union(OFlag::O_CLOEXEC).union(OFlag::O_NOCTTY);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another user could change it, or put another one in its place.
    #[error("{0}")]
    Foreign(Doubt),
    /// A link in a folder that another user could change.
    #[error("{} is a symbolic link, which is not followed because {doubt}", path.display())]
    ForeignLink {
        /// The link.
        path: PathBuf,
        /// The reason.
        doubt: Doubt,
    },
    /// A link where the folder itself is wanted.
    #[error("{} is a symbolic link; name the folder itself", .0.display())]
    Link(PathBuf),
    /// Another error.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The action that failed.
        action: &'static str,
        /// Why it failed.
        reason: io::Error,
    },
}

/// Who else could change a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Its owner is neither root nor us.
    Owner {
        /// The folder or link.
        path: PathBuf,
        /// The owner.
        uid: u32,
    },
    /// Its group, or everybody.
    Mode {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner { path, uid } => {
                write!(formatter, "{} belongs to another user (uid {uid})", path.display())
            }
            Self::Mode { path, mode } => {
                let by = if mode & 0o002 != 0 { "every user" } else { "every user of its group" };
                write!(formatter, "{} can be written by {by} (mode {mode:04o})", path.display())
            }
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Folder {
    /// As it was named.
    path: PathBuf,
    fd: Arc<OwnedFd>,
    doubt: Option<Doubt>,
}

impl Folder {
    /// Opens a folder that is ours, and that no other user can change, move or replace.
    ///
    /// # Errors
    /// When it is not there, is a link, or is not ours alone.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        Self::own(path, End::OwnFolder { make: false })
    }

    /// The same; folders that are missing are made.
    ///
    /// # Errors
    /// When it cannot be made, is a link, or is not ours alone.
    pub fn make(path: &Path) -> Result<Self, FolderError> {
        Self::own(path, End::OwnFolder { make: true })
    }

    /// Opens the folder of a file, whoever may change it, and gives the file's name in it. Where the file is
    /// a link that only root or we can have put, both are its target's.
    ///
    /// # Errors
    /// When the folder is not there, or when the way leads over a link that another user could have put.
    pub fn of_file(path: &Path) -> Result<(Self, OsString), FolderError> {
        let mut walk = Walk::to(path)?;
        let name = walk.follow(End::File)?.ok_or_else(|| io_error(path, "open", Errno::EISDIR))?;
        let Level { path, fd, doubt, .. } = walk.here;
        Ok((Self { path, fd: Arc::new(fd), doubt }, name))
    }

    fn own(path: &Path, end: End) -> Result<Self, FolderError> {
        let mut walk = Walk::to(path)?;
        walk.follow(end)?;
        let Level { path: found, fd, mode, doubt } = walk.here;
        if let Some(doubt) = doubt {
            return Err(FolderError::Foreign(doubt));
        }
        // A sticky folder is no place for our files either.
        if mode & 0o022 != 0 {
            return Err(FolderError::Foreign(Doubt::Mode { path: found, mode }));
        }
        Ok(Self { path: path.to_owned(), fd: Arc::new(fd), doubt: None })
    }

    /// As it was named.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another user who could change it.
    #[must_use]
    pub fn doubt(&self) -> Option<&Doubt> {
        self.doubt.as_ref()
    }

    /// Opens a file in it. `name` has no slash.
    ///
    /// # Errors
    /// Of openat(2); ELOOP: it is a link.
    pub fn open_file(&self, name: &OsStr, flags: OFlag, mode: Mode) -> io::Result<File> {
        if Path::new(name).components().ne([Component::Normal(name)]) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no file's name"));
        }
        let follow =
            if self.doubt.is_none() && is_proc(self.fd()) { OFlag::O_NOFOLLOW } else { OFlag::empty() };
        Ok(File::from(openat(self.fd(), name, flags | SAFELY.difference(follow), mode)?))
    }

    /// Whether this is the only name of an open file. Asked by the name: somebody who could change the folder
    /// may have removed a second name right after it was opened.
    ///
    /// # Errors
    /// Of fstat(2).
    pub fn is_only_name(&self, name: &OsStr, file: &File) -> io::Result<bool> {
        let found = file.metadata()?;
        let named = fstatat(self.fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW);
        Ok(named
            .is_ok_and(|named| (named.st_dev, named.st_ino, named.st_nlink) == (found.dev(), found.ino(), 1)))
    }

    /// Opens one of our own files for reading and writing, and makes it where it is missing. Nobody else may
    /// open it.
    ///
    /// # Errors
    /// When it cannot be opened, is another user's, or is known by another name too.
    pub fn own_file(&self, name: &'static str) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NONBLOCK;
        let file = check_own(self.open_file(OsStr::new(name), flags, FILE_MODE)?)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(FILE_MODE.bits()))?;
        Ok(file)
    }

    /// Opens one of our own files for reading; `None`: it is not there.
    ///
    /// # Errors
    /// When it cannot be opened, is another user's, or is known by another name too.
    pub fn find_own_file(&self, name: &'static str) -> io::Result<Option<File>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        match self.open_file(OsStr::new(name), flags, Mode::empty()) {
            Ok(file) => check_own(file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads one of our own files; `None`: it is not there.
    ///
    /// # Errors
    /// When it cannot be read, is not ours alone, or has more than `bytes_max`.
    pub fn read(&self, name: &'static str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.find_own_file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Some(bytes))
    }

    /// Replaces one of our own files as a whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn replace(&self, name: &'static str, bytes: &[u8]) -> io::Result<()> {
        let fresh = OsString::from(format!("{name}.new"));
        // A crash may have left it. Its successor is a new file, never one that was there.
        self.remove(&fresh)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        self.open_file(&fresh, flags, FILE_MODE)?.write_all(bytes)?;
        Ok(renameat(self.fd(), fresh.as_os_str(), self.fd(), name)?)
    }

    /// Removes a file, if it is there. Of a link only the link goes.
    ///
    /// # Errors
    /// When it stays.
    pub fn remove(&self, name: &(impl AsRef<OsStr> + ?Sized)) -> io::Result<()> {
        match unlinkat(self.fd(), name.as_ref(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A file in a folder of ours that is not ours alone was put there while the folder was another user's.
fn check_own(file: File) -> io::Result<File> {
    let found = file.metadata()?;
    let wrong = if !found.is_file() {
        "is no regular file"
    } else if !is_trusted(found.uid()) {
        "belongs to another user"
    } else if found.nlink() != 1 {
        "is a file with another name elsewhere"
    } else {
        return Ok(file);
    };
    Err(io::Error::other(format!("it {wrong}; look where it comes from, then remove it")))
}

/// Whoever owns the root folder could put any folder in its place. Within a user namespace that is another
/// user than root: the kernel shows those outside of it as one.
fn is_trusted(uid: u32) -> bool {
    static ROOTS_OWNER: OnceLock<Option<u32>> = OnceLock::new();
    let roots_owner = || std::fs::metadata("/").ok().map(|root| root.uid());
    uid == 0 || uid == Uid::effective().as_raw() || *ROOTS_OWNER.get_or_init(roots_owner) == Some(uid)
}

fn is_proc(fd: impl AsFd) -> bool {
    fstatfs(fd).is_ok_and(|stat| stat.filesystem_type() == PROC_SUPER_MAGIC)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn io_error(path: &Path, action: &'static str, errno: Errno) -> FolderError {
    FolderError::Io { path: path.to_owned(), action, reason: errno.into() }
}

/// What a path has to lead to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// A folder of our own, not a link to one.
    OwnFolder { make: bool },
    /// A name in a folder.
    File,
}

/// A way through folders.
struct Walk {
    here: Level,
    /// The folders between the root and here.
    above: Vec<Level>,
    /// Names that are still to be walked.
    ahead: VecDeque<OsString>,
    /// Links that were followed and folders that were made.
    detours: u32,
}

/// A folder on the way. Its path has no link in it.
struct Level {
    path: PathBuf,
    fd: OwnedFd,
    mode: u32,
    doubt: Option<Doubt>,
}

impl Level {
    fn new(path: PathBuf, fd: OwnedFd, stat: &FileStat, doubt: Option<Doubt>) -> Self {
        let mode = stat.st_mode & 0o7777;
        let others = || {
            if !is_trusted(stat.st_uid) {
                return Some(Doubt::Owner { path: path.clone(), uid: stat.st_uid });
            }
            let is_sticky = mode & 0o1000 != 0;
            (mode & 0o022 != 0 && !is_sticky).then(|| Doubt::Mode { path: path.clone(), mode })
        };
        let doubt = doubt.or_else(others);
        Self { path, fd, mode, doubt }
    }
}

/// An entry of the folder where we are.
enum Entry {
    Folder(OwnedFd, FileStat),
    Link(OwnedFd, FileStat),
    Other,
    Missing,
}

impl Walk {
    /// Begins at the root.
    fn to(path: &Path) -> Result<Self, FolderError> {
        let failed = |reason| FolderError::Io { path: path.to_owned(), action: "find", reason };
        let whole = std::path::absolute(path).map_err(failed)?;
        let root = PathBuf::from("/");
        let failed = |errno| io_error(Path::new("/"), "open", errno);
        let fd = openat(AT_FDCWD, &root, LOOK | OFlag::O_DIRECTORY, Mode::empty()).map_err(failed)?;
        let stat = fstat(&fd).map_err(failed)?;
        let here = Level::new(root, fd, &stat, None);
        let mut walk = Self { here, above: Vec::new(), ahead: VecDeque::new(), detours: 0 };
        walk.add(&whole);
        Ok(walk)
    }

    /// Goes to the end of the path, and gives the name of the file there, if a file is wanted.
    fn follow(&mut self, end: End) -> Result<Option<OsString>, FolderError> {
        while let Some(name) = self.ahead.pop_front() {
            if name == ".." {
                // The way back is known, so that nobody can have moved us elsewhere.
                self.leave();
                continue;
            }
            let is_last = self.ahead.is_empty();
            let is_file = is_last && end == End::File;
            match self.look(&name)? {
                Entry::Folder(fd, stat) => self.enter(&name, fd, &stat),
                Entry::Link(..) if is_last && matches!(end, End::OwnFolder { .. }) => {
                    return Err(FolderError::Link(self.here.path.join(name)));
                }
                // The links of /proc/self/fd have no path that could be walked.
                Entry::Link(..) if is_file && is_proc(&self.here.fd) => return Ok(Some(name)),
                Entry::Link(link, stat) => self.follow_link(&name, &link, &stat)?,
                Entry::Missing | Entry::Other if is_file => return Ok(Some(name)),
                Entry::Missing if end == (End::OwnFolder { make: true }) => self.make(name)?,
                Entry::Missing => return Err(self.failed(&name, Errno::ENOENT)),
                Entry::Other => return Err(self.failed(&name, Errno::ENOTDIR)),
            }
        }
        Ok(None)
    }

    /// Puts a path before the names that are still to be walked.
    fn add(&mut self, path: &Path) {
        for component in path.components().rev() {
            match component {
                Component::Normal(name) => self.ahead.push_front(name.to_owned()),
                Component::ParentDir => self.ahead.push_front("..".into()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }

    fn look(&self, name: &OsStr) -> Result<Entry, FolderError> {
        let fd = match openat(&self.here.fd, name, LOOK, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(Entry::Missing),
            Err(errno) => return Err(self.failed(name, errno)),
        };
        let stat = fstat(&fd).map_err(|errno| self.failed(name, errno))?;
        Ok(match kind(&stat) {
            SFlag::S_IFDIR => Entry::Folder(fd, stat),
            SFlag::S_IFLNK => Entry::Link(fd, stat),
            _ => Entry::Other,
        })
    }

    fn enter(&mut self, name: &OsStr, fd: OwnedFd, stat: &FileStat) {
        let next = Level::new(self.here.path.join(name), fd, stat, self.here.doubt.clone());
        self.above.push(std::mem::replace(&mut self.here, next));
    }

    /// The root has no folder above it.
    fn leave(&mut self) {
        if let Some(above) = self.above.pop() {
            self.here = above;
        }
    }

    fn follow_link(&mut self, name: &OsStr, link: &OwnedFd, stat: &FileStat) -> Result<(), FolderError> {
        let path = self.here.path.join(name);
        let others =
            || (!is_trusted(stat.st_uid)).then(|| Doubt::Owner { path: path.clone(), uid: stat.st_uid });
        if let Some(doubt) = self.here.doubt.clone().or_else(others) {
            return Err(FolderError::ForeignLink { path, doubt });
        }
        self.detour(name)?;
        let target = PathBuf::from(readlinkat(link, "").map_err(|errno| self.failed(name, errno))?);
        if target.is_absolute() {
            while !self.above.is_empty() {
                self.leave();
            }
        }
        self.add(&target);
        Ok(())
    }

    /// Makes a folder, which is then looked at as if it had been there.
    fn make(&mut self, name: OsString) -> Result<(), FolderError> {
        if let Some(doubt) = self.here.doubt.clone() {
            return Err(FolderError::Foreign(doubt));
        }
        self.detour(&name)?;
        let made = mkdirat(&self.here.fd, name.as_os_str(), FOLDER_MODE).and_then(|()| {
            // The umask may have taken bits away.
            fchmodat(&self.here.fd, name.as_os_str(), FOLDER_MODE, FchmodatFlags::FollowSymlink)
        });
        match made {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(reason) => return Err(io_error(&self.here.path.join(name), "make", reason)),
        }
        self.ahead.push_front(name);
        Ok(())
    }

    fn detour(&mut self, name: &OsStr) -> Result<(), FolderError> {
        self.detours += 1;
        if self.detours > DETOURS_MAX { Err(self.failed(name, Errno::ELOOP)) } else { Ok(()) }
    }

    fn failed(&self, name: &OsStr, errno: Errno) -> FolderError {
        io_error(&self.here.path.join(name), "open", errno)
    }
}

#[cfg(test)]
mod tests;
