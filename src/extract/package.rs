//! Where rows and dumps are written: in a directory of its own first, then, complete and on the disk, under the one that was
//! asked for, if that is still free. Whatever fails or is interrupted leaves nothing.

use super::request::Place;
use crate::error::{Error, Kind, Result};
use crate::runtime;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use tokio::sync::mpsc;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The description of what lies beside it.
const MANIFEST: &str = "manifest.json";
/// Pieces on their way to the disk.
const WAITING: usize = 4;
/// What the disk gets at a time.
const BUFFER_BYTES: usize = 1 << 18;

/// A file that was written, or what a ZIP holds under a name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Written {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its contents, in hexadecimal digits.
    pub sha256: String,
    /// Rows in it, the header not counted; of CSV.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
}

/// A place that was free, and the directory beside it where what goes there lies until it is complete. Dropped, that goes.
pub(super) struct Reserved(Option<Temporary>);

impl Reserved {
    /// Looks whether the place is free, and makes the directory.
    ///
    /// # Errors
    /// [`Kind::Refused`] if there is something of that name already; [`Kind::Local`] if nothing can be written there.
    pub(super) fn new(place: &Place) -> Result<Reserved> {
        let path = match place {
            Place::Stdout => return Ok(Reserved(None)),
            Place::File(path) | Place::Directory(path) | Place::Zip(path) => path,
        };
        Temporary::beside(path).map(|temporary| Reserved(Some(temporary)))
    }

    /// Gives what was completed its name.
    ///
    /// # Errors
    /// [`Kind::Refused`] if somebody took the name meanwhile; [`Kind::Local`] if the disk refuses.
    pub(super) fn publish(self) -> Result<()> {
        self.0.map_or(Ok(()), Temporary::publish)
    }
}

/// What is being written.
pub(super) struct Package {
    shape: Shape,
    /// The name of the only file, if there can be no other.
    only: Option<String>,
    names: BTreeSet<String>,
}

enum Shape {
    Stdout,
    File(File),
    Directory(PathBuf),
    Zip(Box<ZipWriter<BufWriter<File>>>),
}

impl Package {
    /// Begins one that will be at `place`.
    ///
    /// # Errors
    /// [`Kind::Local`] if nothing can be written there.
    pub(super) fn begin(place: &Place, reserved: &Reserved) -> Result<Package> {
        let shape = match (place, &reserved.0) {
            (Place::Stdout, _) | (_, None) => Shape::Stdout,
            (Place::File(_), Some(temporary)) => Shape::File(temporary.file()?),
            (Place::Zip(_), Some(temporary)) => {
                let file = BufWriter::with_capacity(BUFFER_BYTES, temporary.file()?);
                Shape::Zip(Box::new(ZipWriter::new(file)))
            }
            (Place::Directory(_), Some(temporary)) => {
                let made = DirBuilder::new().mode(0o700).create(&temporary.path);
                made.map_err(|error| Error::local("create", &temporary.path, error))?;
                Shape::Directory(temporary.path.clone())
            }
        };
        let only = match place {
            Place::Stdout => Some("-".to_owned()),
            Place::File(path) => path.file_name().map(|name| name.to_string_lossy().into_owned()),
            Place::Directory(_) | Place::Zip(_) => None,
        };
        Ok(Package { shape, only, names: BTreeSet::from([MANIFEST.to_owned()]) })
    }

    /// The name that a file in it gets: `wanted`, without what any file system minds, and never twice.
    pub(super) fn name(&mut self, wanted: &str, ending: &str) -> String {
        if let Some(only) = &self.only {
            return only.clone();
        }
        let safe = |letter: char| if letter.is_alphanumeric() || "._-".contains(letter) { letter } else { '_' };
        let stem: String = wanted.chars().map(safe).collect();
        let stem = if stem.starts_with(['.', '-']) { format!("_{stem}") } else { stem };
        let numbered = |number: u32| match number {
            1 => format!("{stem}.{ending}"),
            _ => format!("{stem}-{number}.{ending}"),
        };
        let free = (1..).map(numbered).find(|name| self.names.insert(name.to_lowercase()));
        free.unwrap_or(stem)
    }

    /// The directory that is being filled, if it is one.
    pub(super) fn directory(&self) -> Option<&Path> {
        match &self.shape {
            Shape::Directory(path) => Some(path),
            _ => None,
        }
    }

    /// Writes what comes as `name`. In memory are a few pieces of what comes.
    ///
    /// # Errors
    /// What comes with `source`, or [`Kind::Local`] if it cannot be written.
    pub(super) async fn store(
        self,
        name: &str,
        source: impl Stream<Item = Result<Bytes>>,
    ) -> Result<(Package, Written)> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let owned = name.to_owned();
        let writing = runtime::blocking(move || self.write(owned, receiver));
        let reading = async move {
            let mut source = pin!(source);
            while let Some(piece) = source.try_next().await? {
                if sender.send(piece).await.is_err() {
                    // The writer says why.
                    break;
                }
            }
            Ok(())
        };
        let (read, written) = tokio::join!(reading, writing);
        let written = written??;
        read.map(|()| written)
    }

    fn write(mut self, name: String, mut pieces: mpsc::Receiver<Bytes>) -> Result<(Package, Written)> {
        let failed = |error: std::io::Error| Error::local("write", Path::new(&name), error);
        let mut digest = Sha256::new();
        let mut bytes = 0;
        self.open(&name, &mut |out| {
            while let Some(piece) = pieces.blocking_recv() {
                digest.update(&piece);
                bytes += piece.len() as u64;
                out.write_all(&piece)?;
            }
            out.flush()
        })
        .map_err(failed)?;
        Ok((self, Written { name, bytes, sha256: hex(&digest.finalize()), rows: None }))
    }

    /// Has `fill` write a file of this name.
    fn open(&mut self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> std::io::Result<()>) -> std::io::Result<()> {
        match &mut self.shape {
            Shape::Stdout => fill(&mut BufWriter::with_capacity(BUFFER_BYTES, std::io::stdout().lock())),
            Shape::File(file) => fill(&mut BufWriter::with_capacity(BUFFER_BYTES, file)),
            Shape::Directory(path) => {
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path.join(name))?;
                fill(&mut BufWriter::with_capacity(BUFFER_BYTES, &file))?;
                file.sync_all()
            }
            Shape::Zip(zip) => {
                // Custom dumps are compressed already.
                let method =
                    if name.ends_with(".dump") { CompressionMethod::Stored } else { CompressionMethod::Deflated };
                // How long it will be is not known before: room for 64-bit lengths.
                let options =
                    SimpleFileOptions::default().compression_method(method).large_file(true).unix_permissions(0o600);
                zip.start_file(name, options)?;
                let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, zip);
                fill(&mut buffered)
            }
        }
    }

    /// Completes it: with the manifest where there is room for one, and on the disk. It has no name yet.
    ///
    /// # Errors
    /// [`Kind::Local`] if the disk refuses.
    pub(super) async fn complete(self, manifest: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|error| Error::new(Kind::Internal, "cannot write the manifest").because(error))?;
        let completed = runtime::blocking(move || self.complete_with(&text)).await?;
        completed.map_err(|error| Error::new(Kind::Local, "cannot complete what was written").because(error))
    }

    fn complete_with(mut self, manifest: &[u8]) -> std::io::Result<()> {
        if matches!(self.shape, Shape::Directory(_) | Shape::Zip(_)) {
            self.open(MANIFEST, &mut |out| {
                out.write_all(manifest)?;
                out.write_all(b"\n")?;
                out.flush()
            })?;
        }
        match self.shape {
            Shape::Stdout => Ok(()),
            Shape::File(file) => file.sync_all(),
            Shape::Zip(zip) => zip.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all(),
            Shape::Directory(path) => sync_files(&path),
        }
    }
}

/// What `pg_dump` wrote too.
fn sync_files(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        File::open(entry?.path())?.sync_all()?;
    }
    File::open(directory)?.sync_all()
}

/// A path in a directory that we made beside the one that is meant. Dropped, the directory goes, with whatever is in it.
struct Temporary {
    directory: PathBuf,
    path: PathBuf,
    meant: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Temporary> {
        // A slash at its end would make it a name within.
        let meant: PathBuf = path.components().collect();
        let Some(name) = meant.file_name() else {
            return Err(Error::new(Kind::Usage, format!("{} is no name for something new", path.display())));
        };
        if meant.symlink_metadata().is_ok() {
            return Err(taken(&meant));
        }
        // Nobody else's: `mkdtemp` makes it, under a name that nobody has, or fails.
        let directory = nix::unistd::mkdtemp(&meant.with_file_name(".seawall-extract-XXXXXX"));
        let directory = directory.map_err(|error| match std::io::Error::from(error) {
            error if error.kind() == ErrorKind::NotFound => {
                Error::local("create", &meant, error).hint("Is its directory there?")
            }
            error => Error::local("create", &meant, error),
        })?;
        Ok(Temporary { path: directory.join(name), directory, meant })
    }

    fn file(&self) -> Result<File> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path);
        made.map_err(|error| Error::local("create", &self.path, error))
    }

    fn publish(self) -> Result<()> {
        let (from, to) = (&self.path, &self.meant);
        let named = match from.is_dir() {
            // Takes the place of nothing but an empty directory.
            true => std::fs::rename(from, to),
            // Unlike a rename, a link fails if there is something.
            false => match std::fs::hard_link(from, to) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists && !to.exists() => std::fs::rename(from, to),
                linked => linked,
            },
        };
        named.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => taken(to),
            _ => Error::local("create", to, error),
        })?;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| Error::local("write", parent, error))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn taken(path: &Path) -> Error {
    Error::new(Kind::Refused, format!("{} is there already", path.display()))
        .hint("Nothing is overwritten: remove it, or choose another name.")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn source(pieces: &[&'static str]) -> impl Stream<Item = Result<Bytes>> + use<> {
        stream::iter(pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect::<Vec<_>>())
    }

    fn begin(place: &Place) -> (Reserved, Package) {
        let reserved = Reserved::new(place).unwrap();
        let package = Package::begin(place, &reserved).unwrap();
        (reserved, package)
    }

    #[tokio::test]
    async fn a_file_gets_its_name_when_it_is_whole_and_never_anothers() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("rows.csv");
        let (reserved, package) = begin(&Place::File(path.clone()));
        let (package, written) = package.store("rows.csv", source(&["a,b\n", "1,2\n"])).await.unwrap();
        package.complete(&()).await.unwrap();
        assert!(!path.exists(), "not yet");
        reserved.publish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a,b\n1,2\n");
        assert_eq!((written.bytes, written.sha256), (8, hex(&Sha256::digest("a,b\n1,2\n"))));
        // What is there is never replaced, not even by one that began before
        assert_eq!(Reserved::new(&Place::File(path.clone())).err().unwrap().kind(), Kind::Refused);
        let late = place.path().join("late");
        let (reserved, _package) = begin(&Place::File(late.clone()));
        std::fs::write(&late, "theirs").unwrap();
        assert_eq!(reserved.publish().unwrap_err().kind(), Kind::Refused);
        assert_eq!(std::fs::read_to_string(&late).unwrap(), "theirs");
        // and what fails leaves nothing
        let (reserved, package) = begin(&Place::Zip(place.path().join("a.zip")));
        let broken = stream::iter([Ok(Bytes::from_static(b"a")), Err(Error::new(Kind::Postgres, "gone"))]);
        assert_eq!(package.store("a.csv", broken).await.err().unwrap().kind(), Kind::Postgres);
        drop(reserved);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 2, "rows.csv and late");
    }

    #[tokio::test]
    async fn a_directory_has_its_manifest_and_is_there_at_once_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("rows");
        let (reserved, package) = begin(&Place::Directory(place.path().join("rows/")));
        let (package, _) = package.store("a.csv", source(&["1\n"])).await.unwrap();
        package.complete(&"said").await.unwrap();
        reserved.publish().unwrap();
        assert_eq!(std::fs::read_to_string(path.join("manifest.json")).unwrap(), "\"said\"\n");
        let (reserved, package) = begin(&Place::Directory(place.path().join("late")));
        package.complete(&()).await.unwrap();
        std::fs::create_dir(place.path().join("late")).unwrap();
        std::fs::write(place.path().join("late/theirs"), "").unwrap();
        assert_eq!(reserved.publish().unwrap_err().kind(), Kind::Refused);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn what_another_is_writing_there_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("rows.csv");
        let (first, package) = begin(&Place::File(path.clone()));
        let second = Reserved::new(&Place::File(path.clone())).unwrap();
        drop(second);
        let (package, _) = package.store("rows.csv", source(&["mine"])).await.unwrap();
        package.complete(&()).await.unwrap();
        first.publish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_are_safe_and_never_the_same() {
        let place = tempfile::tempdir().unwrap();
        let (_reserved, mut package) = begin(&Place::Directory(place.path().join("names")));
        let names = ["public.orders", "public.Orders", "a/../b.c", "../x", "manifest", "é.ü"];
        let names = names.map(|name| package.name(name, "csv"));
        assert_eq!(
            names,
            ["public.orders.csv", "public.Orders-2.csv", "a_.._b.c.csv", "_.._x.csv", "manifest.csv", "é.ü.csv"]
        );
        assert_eq!(package.name("manifest", "json"), "manifest-2.json");
    }
}
