//! Tests of `folder`. Where another user's folder is needed and we are not root, the group's right to write
//! stands for it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use super::*;

const SOMEBODY: u32 = 12_345;

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A folder of ours.
    fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("made");
        set_mode(&path, 0o755);
        path
    }

    /// Each way in which a folder is another user's.
    fn foreign(&self) -> Vec<PathBuf> {
        let mut all = vec![self.folder("group"), self.folder("everybody")];
        set_mode(&all[0], 0o775);
        set_mode(&all[1], 0o757);
        if Uid::effective().is_root() {
            let owned = self.folder("owned");
            chown(&owned, Some(SOMEBODY), None).expect("chown");
            all.push(owned);
        }
        all
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

#[test]
fn a_folder_that_another_user_could_change_or_replace_is_not_ours() {
    let bench = Bench::new();
    for foreign in bench.foreign() {
        let (inner, fresh) = (foreign.join("inner"), foreign.join("fresh"));
        fs::create_dir(&inner).expect("made");
        set_mode(&inner, 0o755);
        for path in [&foreign, &inner, &inner.join("../inner"), &fresh] {
            let error = Folder::make(path).expect_err("not ours").to_string();
            assert!(error.contains(foreign.to_str().expect("text")), "{error}");
            assert!(error.contains("can be written by every user") || error.contains("uid 12345"), "{error}");
        }
        assert!(!fresh.exists(), "nothing is made in it");
        assert!(Folder::open(&inner).is_err());
    }
    let sticky = bench.folder("sticky");
    set_mode(&sticky, 0o1777);
    assert!(Folder::open(&sticky).is_err(), "no place for our files");
    let ours = sticky.join("a/b");
    Folder::make(&ours).expect("nobody renames what is ours there");
    assert_eq!((mode(&ours), mode(&sticky.join("a"))), (0o755, 0o755));
    assert!(matches!(
        Folder::open(&bench.path("none")),
        Err(FolderError::Io { reason, .. }) if reason.kind() == io::ErrorKind::NotFound
    ));
}

#[test]
fn a_link_is_followed_only_where_nobody_else_can_have_put_it() {
    let bench = Bench::new();
    let target = bench.folder("target/deep");
    let link = bench.path("link");
    symlink("target", &link).expect("link");
    Folder::open(&link.join("deep")).expect("a link of ours");
    assert!(matches!(Folder::open(&link), Err(FolderError::Link(_))), "the folder itself must be named");
    let (folder, name) = Folder::of_file(&link.join("deep/../x")).expect("a file's folder");
    assert_eq!((folder.path().to_owned(), name), (bench.path("target"), "x".into()));
    for foreign in bench.foreign() {
        for to in [target.as_os_str(), "../target/deep".as_ref()] {
            let trap = foreign.join("trap");
            symlink(to, &trap).expect("link");
            for path in [trap.clone(), trap.join("x")] {
                let error = Folder::of_file(&path).expect_err("somebody's link").to_string();
                assert!(error.contains("is a symbolic link"), "{error}");
            }
            fs::remove_file(&trap).expect("removed");
        }
        let (folder, _) = Folder::of_file(&foreign.join("x")).expect("no link");
        assert!(folder.doubt().is_some());
    }
    if Uid::effective().is_root() {
        std::os::unix::fs::lchown(&link, Some(SOMEBODY), None).expect("lchown");
        assert!(matches!(Folder::open(&link.join("deep")), Err(FolderError::ForeignLink { .. })));
    }
    let circle = bench.path("circle");
    symlink("circle", &circle).expect("link");
    let error = Folder::of_file(&circle).expect_err("a circle").to_string();
    assert!(error.contains("symbolic links"), "{error}");
}

#[test]
fn a_link_at_a_files_end_leads_to_its_target() {
    let bench = Bench::new();
    let (target, link) = (bench.path("there"), bench.path("link"));
    symlink("there", &link).expect("link");
    let (folder, name) = Folder::of_file(&link).expect("a link of ours");
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
    folder.open_file(&name, flags, FILE_MODE).expect("made");
    assert!(target.exists() && link.is_symlink());
    let (folder, name) = Folder::of_file(Path::new("/dev/stdout")).expect("magic");
    folder.open_file(&name, OFlag::O_WRONLY, Mode::empty()).map(drop).unwrap_or_else(|error| {
        // A test's output may be a socket, which cannot be opened.
        assert_eq!(error.raw_os_error(), Some(libc::ENXIO), "{error}");
    });
    for name in ["", ".", "..", "a/b", "/"] {
        assert!(folder.open_file(name.as_ref(), flags, FILE_MODE).is_err(), "{name:?}");
    }
}

#[test]
fn our_files_are_replaced_as_a_whole_and_through_no_link() {
    let bench = Bench::new();
    let folder = Folder::make(&bench.path("run")).expect("made");
    let (file, fresh, victim) = (bench.path("run/a"), bench.path("run/a.new"), bench.path("victim"));
    fs::write(&victim, "precious").expect("written");
    assert_eq!(folder.read("a", 10).expect("read"), None);
    for planted in [&fresh, &file] {
        symlink(&victim, planted).expect("link");
        folder.replace("a", b"new").expect("replaced");
        assert_eq!(folder.read("a", 10).expect("read").as_deref(), Some(&b"new"[..]));
        fs::remove_file(&file).expect("removed");
        fs::hard_link(&victim, planted).expect("link");
        folder.replace("a", b"new").expect("replaced");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "precious");
        assert_eq!((mode(&file), fs::metadata(&file).expect("there").nlink()), (0o600, 1));
        fs::remove_file(&file).expect("removed");
    }
    folder.replace("a", b"more").expect("replaced");
    assert!(folder.read("a", 3).is_err(), "too long");
    folder.remove("a").expect("removed");
    folder.remove("a").expect("gone already");
}

#[test]
fn a_file_that_is_not_ours_alone_is_not_used() {
    let bench = Bench::new();
    let folder = Folder::make(&bench.path("run")).expect("made");
    let (file, victim) = (bench.path("run/a"), bench.path("victim"));
    fs::write(&victim, "precious").expect("written");
    let refused = |why: &str| {
        for error in [folder.own_file("a").expect_err(why), folder.read("a", 100).expect_err(why)] {
            assert!(error.to_string().contains(why), "{error}");
        }
        fs::remove_file(&file).expect("removed");
    };
    symlink(&victim, &file).expect("link");
    refused("symbolic links");
    fs::hard_link(&victim, &file).expect("link");
    refused("another name");
    nix::unistd::mkfifo(&file, Mode::S_IRWXU).expect("fifo");
    refused("no regular file");
    if Uid::effective().is_root() {
        fs::write(&file, "").expect("written");
        chown(&file, Some(SOMEBODY), None).expect("chown");
        refused("another user");
    }
    fs::write(&file, "").expect("written");
    set_mode(&file, 0o644);
    folder.own_file("a").expect("ours");
    assert_eq!(mode(&file), 0o600, "an older Sluice let everybody read it, and so lock it");
}

#[test]
fn a_second_name_is_noticed_although_it_is_gone() {
    let bench = Bench::new();
    let path = bench.folder("logs");
    fs::write(path.join("log"), "").expect("written");
    let (folder, name) = Folder::of_file(&path.join("log")).expect("there");
    let open = || folder.open_file(&name, OFlag::O_RDONLY, Mode::empty()).expect("opens");
    assert!(folder.is_only_name(&name, &open()).expect("stat"));
    fs::hard_link(path.join("log"), path.join("victim")).expect("linked");
    let file = open();
    assert!(!folder.is_only_name(&name, &file).expect("stat"), "two names");
    // As somebody would who wants us to write to a file of ours: now it has one name only.
    fs::remove_file(path.join("log")).expect("removed");
    assert_eq!(file.metadata().expect("stat").nlink(), 1);
    assert!(!folder.is_only_name(&name, &file).expect("stat"), "the name is gone");
    fs::write(path.join("log"), "").expect("written");
    assert!(!folder.is_only_name(&name, &file).expect("stat"), "another file has the name");
}
