//! Private keys: `seawall keygen` makes them, commands that read encrypted objects load them. Uses `config` and `codec`.

use super::print;
use crate::cli::KeygenArgs;
use crate::codec::encryption::{generate_identity, protect};
use crate::codec::{Form, Identities};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::restore::PASSPHRASE_VARIABLE;
use crate::runtime::Clock;
use crate::secret::others_may_read;
use age::secrecy::ExposeSecret;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// No identity file is longer than this, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How a file of `age -a` begins.
const ARMOR: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";

/// How new objects are stored, with nothing to open encrypted ones.
pub(super) fn writing_form(settings: &Settings) -> Form {
    let (compression, recipients) = (settings.compression, settings.encryption.recipients.clone());
    Form { compression, recipients, identities: Identities::default() }
}

/// How new objects are stored, and what opens encrypted ones, if it was named.
///
/// # Errors
/// If the identity file cannot be read or opened.
pub(super) fn reading_form(settings: &Settings) -> Result<Form> {
    let identities = match &settings.encryption.identity_file {
        Some(path) => load(path)?,
        None => Identities::default(),
    };
    Ok(Form { identities, ..writing_form(settings) })
}

/// True if the server that is restored will need a passphrase to open what it fetches.
///
/// # Errors
/// If the identity file cannot be read.
pub(super) fn needs_passphrase(path: &Path) -> Result<bool> {
    Ok(Identities::needs_passphrase(&read(path)?.0))
}

fn read(path: &Path) -> Result<(Vec<u8>, Metadata)> {
    let unreadable = |error| Error::local("read", path, error).hint("It is what --identity or identity_file names.");
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok((bytes, metadata))
}

fn load(path: &Path) -> Result<Identities> {
    let (bytes, metadata) = read(path)?;
    if bytes.starts_with(ARMOR) {
        return Err(Error::new(Kind::Config, format!("{} is an armored age file", path.display()))
            .hint("Write it again without `-a`, or open it: `age -d -o FILE`."));
    }
    let is_protected = Identities::needs_passphrase(&bytes);
    if !is_protected && others_may_read(&metadata) {
        return Err(Error::new(Kind::Config, format!("{} holds a private key and others may read it", path.display()))
            .hint(format!("chmod 600 {}", path.display())));
    }
    let parsed = match is_protected {
        true => Identities::parse_protected(&bytes, passphrase(path)?),
        false => Identities::parse(&bytes),
    };
    parsed.map_err(|error| {
        Error::new(Kind::Config, format!("{} is no identity file", path.display()))
            .because(error)
            .hint("`seawall keygen` and `age-keygen` write them.")
    })
}

fn passphrase(path: &Path) -> Result<String> {
    if let Some(passphrase) = given_passphrase()? {
        return Ok(passphrase);
    }
    ask(&format!("Passphrase for {}: ", path.display()))
}

fn given_passphrase() -> Result<Option<String>> {
    let not_text = |_| Error::new(Kind::Config, format!("{PASSPHRASE_VARIABLE} is not UTF-8"));
    std::env::var_os(PASSPHRASE_VARIABLE).map(|given| given.into_string().map_err(not_text)).transpose()
}

fn ask(prompt: &str) -> Result<String> {
    rpassword::prompt_password(prompt)
        .map_err(|error| Error::new(Kind::Config, "cannot ask for a passphrase").because(error))
        .map_err(|error| error.hint(format!("Where there is no terminal, give it in {PASSPHRASE_VARIABLE}.")))
}

/// Makes a private key, and says the public one.
///
/// # Errors
/// If the file is there already or cannot be written, or a passphrase is not given twice.
pub(super) fn keygen(args: &KeygenArgs) -> Result<()> {
    let (secret, public) = generate_identity();
    let now = Clock::system().now();
    let file = format!("# created: {now:.0}\n# public key: {public}\n{}\n", secret.expose_secret());
    let Some(path) = &args.out else {
        return print::stdout(&file);
    };
    // Before anybody is asked for anything.
    if fs::symlink_metadata(path).is_ok() {
        return Err(Error::new(Kind::Refused, format!("{} is there already", path.display()))
            .hint("What it opens cannot be opened without it: nothing was overwritten. Give another name."));
    }
    let bytes = match args.passphrase {
        true => protect(file.as_bytes(), new_passphrase()?)
            .map_err(|error| Error::new(Kind::Internal, "cannot protect the key").because(error))?,
        false => file.into_bytes(),
    };
    write_new(path, &bytes).map_err(|error| Error::local("write", path, error))?;
    print::stdout(&format!("{public}\n"))
}

/// Given twice, or by the variable.
fn new_passphrase() -> Result<String> {
    let given = given_passphrase()?;
    let (passphrase, again) = match &given {
        Some(given) => (given.clone(), given.clone()),
        None => (ask("Passphrase: ")?, ask("Once more: ")?),
    };
    if passphrase.is_empty() || passphrase != again {
        return Err(Error::new(Kind::Usage, "the passphrases differ, or are empty: nothing was written"));
    }
    Ok(passphrase)
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).inspect_err(|_| {
        // Half a key is none, and would be in the way of the next attempt.
        let _ = fs::remove_file(path);
    })?;
    // Its name as well: the public key is told, and used, from now on.
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}
