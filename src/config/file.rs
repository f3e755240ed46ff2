//! The configuration file, as far as it says what is set to what: for every cluster, and in `[cluster.NAME]` for one of several.
//! What the values mean is not known here. Uses the keys' definitions.

use super::keys::{Key, Way, Written, as_json, keys};
use crate::error::{Error, Kind, Result};
use crate::secret::{Source, others_may_read};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// No configuration file is longer than this, in bytes: a wrong path to something large is an error, not a wait.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// Under it are the sections of several clusters.
const CLUSTERS: &str = "cluster";

/// In such a section: what of the file's defaults does not hold for this cluster.
const UNSET: &str = "unset";

/// What a file says.
pub(super) struct Document {
    /// What holds for every cluster that says nothing else.
    pub(super) shared: Vec<Entry>,
    /// Clusters that have a section, in the order of the file.
    pub(super) clusters: Vec<Section>,
    metadata: Metadata,
}

/// `[cluster.NAME]`.
pub(super) struct Section {
    pub(super) name: String,
    /// Where it stands, for messages.
    pub(super) place: String,
    /// What it says, or what is wrong with that, which need not matter to others.
    pub(super) says: Result<Said>,
}

/// What a section says.
pub(super) struct Said {
    pub(super) entries: Vec<Entry>,
    /// These are as if the file said nothing of them before the section.
    pub(super) unset: Vec<&'static Key>,
}

/// One setting.
pub(super) struct Entry {
    pub(super) key: &'static Key,
    /// As its key reads it; may hold a secret.
    pub(super) text: String,
    /// Its name with that of its section, and where it stands.
    name: String,
    place: String,
}

impl Entry {
    /// That its value cannot be; `problem` completes "`name` …".
    pub(super) fn refused(&self, problem: &str) -> Error {
        Error::new(Kind::Config, format!("{}: {} {problem}", self.place, self.name))
    }
}

impl Document {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Of kind `Config` for what is not as it must be, `Local` if the file cannot be read.
    pub(super) fn read(path: &Path) -> Result<Document> {
        let (text, metadata) = read(path)?;
        let at = |offset: usize| {
            let line = text.get(..offset).map_or(1, |before| before.matches('\n').count() + 1);
            format!("{}, line {line}", path.display())
        };
        // toml's own message quotes the line, which may hold a password: its text and place are enough.
        let table = DeTable::parse(&text).map_err(|error| {
            let place = error.span().map_or_else(|| path.display().to_string(), |span| at(span.start));
            Error::new(Kind::Config, format!("{place}: {}", error.message()))
        })?;
        let mut document = Document { shared: Vec::new(), clusters: Vec::new(), metadata };
        for (name, value) in in_order(table.get_ref()) {
            match value.get_ref() {
                DeValue::Table(clusters) if name.get_ref() == CLUSTERS && !clusters.is_empty() => {
                    for (name, section) in in_order(clusters) {
                        let place = at(name.span().start);
                        let DeValue::Table(section) = section.get_ref() else {
                            return Err(unknown(&format!("{CLUSTERS}.{}", name.get_ref()), &place).hint(
                                "What is of one cluster stands under [cluster.NAME], with a name of your choice.",
                            ));
                        };
                        let prefix = format!("{CLUSTERS}.{}.", name.get_ref());
                        let says = said(&prefix, section, &at);
                        document.clusters.push(Section { name: name.get_ref().to_string(), place, says });
                    }
                }
                _ => {
                    let mut found = Vec::new();
                    flatten_one("", name, value, &mut found);
                    for (name, offset, value) in found {
                        document.shared.push(entry("", &name, value, at(offset))?);
                        said_once(&document.shared)?;
                    }
                }
            }
        }
        Ok(document)
    }

    /// True if others than the owner may read it.
    pub(super) fn is_open_to_others(&self) -> bool {
        others_may_read(&self.metadata)
    }
}

fn read(path: &Path) -> Result<(String, Metadata)> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(Kind::Config, format!("there is no {}", path.display()))
            .hint("Is the path in --config or SEAWALL_CONFIG right, seen from the working directory?"),
        _ => Error::local("read", path, error),
    };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let unfit = |why: &str| Error::new(Kind::Config, format!("{} {why}", path.display()));
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unfit("is over a mebibyte long: that is no configuration"));
    }
    Ok((String::from_utf8(bytes).map_err(|_| unfit("is not UTF-8"))?, metadata))
}

/// Everything that a cluster's section says. `prefix` stands before names in messages.
fn said(prefix: &str, section: &DeTable<'_>, at: &dyn Fn(usize) -> String) -> Result<Said> {
    let mut found = Vec::new();
    flatten("", section, &mut found);
    let mut said = Said { entries: Vec::new(), unset: Vec::new() };
    for (name, offset, value) in found {
        if name == UNSET {
            said.unset = unset(prefix, value, &at(offset))?;
            continue;
        }
        let entry = entry(prefix, &name, value, at(offset))?;
        if entry.key.is_of_process() {
            return Err(entry
                .refused("is a matter of the whole process, and of no cluster alone")
                .hint(form(entry.key)));
        }
        said.entries.push(entry);
        said_once(&said.entries)?;
    }
    Ok(said)
}

fn unset(prefix: &str, value: &DeValue<'_>, place: &str) -> Result<Vec<&'static Key>> {
    let refused = |problem: &str| {
        Error::new(Kind::Config, format!("{place}: {prefix}{UNSET} {problem}"))
            .hint(format!("It is written {UNSET} = [\"schedule.drill\", \"s3.endpoint\"]."))
    };
    let DeValue::Array(names) = value else { return Err(refused("has the wrong type")) };
    let key = |name: &Spanned<DeValue<'_>>| {
        let name = name.get_ref().as_str().ok_or_else(|| refused("has the wrong type"))?;
        let key = find(name).map(|(key, _)| key).filter(|key| !key.is_of_process());
        key.ok_or_else(|| refused(&format!("has {name:?} in it, which is no setting that a cluster has for itself")))
    };
    names.iter().map(key).collect()
}

/// Refuses the last of `entries`, if an earlier one says the same in another way.
fn said_once(entries: &[Entry]) -> Result<()> {
    let Some((last, before)) = entries.split_last() else { return Ok(()) };
    match before.iter().find(|entry| entry.key.name == last.key.name) {
        Some(other) => Err(last.refused(&format!("and {} say the same: keep one of them", other.name))),
        None => Ok(()),
    }
}

/// The setting of this name, and how it is said.
fn find(name: &str) -> Option<(&'static Key, Way)> {
    let named = |name: &str| keys().find(|key| key.name == name);
    let secret = |way: Way| {
        let key = name.strip_suffix(way.suffix()).and_then(named)?;
        (key.written == Written::Secret).then_some((key, way))
    };
    named(name).map(|key| (key, Way::Here)).or_else(|| [Way::File, Way::Command].into_iter().find_map(secret))
}

fn entry(prefix: &str, name: &str, value: &DeValue<'_>, place: String) -> Result<Entry> {
    let full = format!("{prefix}{name}");
    let Some((key, way)) = find(name) else {
        return Err(match nearest(name) {
            Some(key) => unknown(&full, &place).hint(format!("Is {prefix}{} meant? {}", key.name, form(key))),
            None => unknown(&full, &place).hint("docs/configuration.md lists all of them."),
        });
    };
    let mut entry = Entry { key, text: String::new(), name: full, place };
    let words = |words: &[Spanned<DeValue<'_>>]| {
        words.iter().map(|word| word.get_ref().as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
    };
    let text = match (key.written, value) {
        (Written::Text, DeValue::String(text)) => Some(text.to_string()),
        (Written::Boolean, DeValue::Boolean(value)) => Some(value.to_string()),
        (Written::Words, DeValue::Array(array)) => words(array).map(|words| words.join(" ")),
        (Written::Tables, DeValue::Array(tables)) => tables_as_json(tables),
        (Written::Secret, DeValue::String(text)) => Some(way.source(text).map_err(|problem| entry.refused(&problem))?),
        (Written::Secret, DeValue::Array(array)) if way == Way::Command => match words(array) {
            Some(words) if words.first().is_none_or(String::is_empty) => {
                return Err(entry.refused("is empty: it is a program with its arguments"));
            }
            words => words.and_then(|words| as_json(&Source::Command(words)).ok()),
        },
        _ => None,
    };
    entry.text = text.ok_or_else(|| entry.refused("has the wrong type").hint(form(key)))?;
    Ok(entry)
}

/// Tables of texts, as JSON.
fn tables_as_json(tables: &[Spanned<DeValue<'_>>]) -> Option<String> {
    let table = |table: &Spanned<DeValue<'_>>| {
        let entries = table.get_ref().as_table()?.iter();
        let entry = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            Some((format!("{}", name.get_ref()), value.get_ref().as_str()?.to_owned()))
        };
        entries.map(entry).collect::<Option<BTreeMap<String, String>>>()
    };
    serde_json::to_string(&tables.iter().map(table).collect::<Option<Vec<_>>>()?).ok()
}

type Named<'a> = (&'a Spanned<std::borrow::Cow<'a, str>>, &'a Spanned<DeValue<'a>>);

fn in_order<'a>(table: &'a DeTable<'a>) -> Vec<Named<'a>> {
    let mut entries: Vec<Named<'a>> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

/// Every value with its dotted name and place, in the order of the file.
fn flatten<'a>(prefix: &str, table: &'a DeTable<'a>, into: &mut Vec<(String, usize, &'a DeValue<'a>)>) {
    for (name, value) in in_order(table) {
        flatten_one(prefix, name, value, into);
    }
}

fn flatten_one<'a>(
    prefix: &str,
    name: &'a Spanned<std::borrow::Cow<'a, str>>,
    value: &'a Spanned<DeValue<'a>>,
    into: &mut Vec<(String, usize, &'a DeValue<'a>)>,
) {
    let full = format!("{prefix}{}", name.get_ref());
    match value.get_ref() {
        DeValue::Table(inner) if !inner.is_empty() && find(&full).is_none() => {
            flatten(&format!("{full}."), inner, into);
        }
        DeValue::Table(_) if is_section(&full) => {}
        value => into.push((full, name.span().start, value)),
    }
}

fn is_section(name: &str) -> bool {
    keys().any(|key| key.name.split_once('.').is_some_and(|(section, _)| section == name))
}

fn unknown(name: &str, place: &str) -> Error {
    Error::new(Kind::Config, format!("{place}: there is no setting {name}"))
}

fn nearest(name: &str) -> Option<&'static Key> {
    let name = [Way::File, Way::Command].into_iter().find_map(|way| name.strip_suffix(way.suffix())).unwrap_or(name);
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned).unwrap_or_default();
    let distance = |key: &str| {
        let whole = strsim::damerau_levenshtein(name, key);
        whole.min(strsim::damerau_levenshtein(&last(name), &last(key)))
    };
    keys().min_by_key(|key| distance(key.name)).filter(|key| distance(key.name) <= 3)
}

/// How a key is written, in a sentence.
fn form(key: &Key) -> String {
    match key.name.split_once('.') {
        Some(_) if key.written == Written::Tables => format!("It is written:\n{}", key.example),
        Some((section, name)) => format!("It is written {name} = {} under [{section}].", key.example),
        None => format!("It is written {} = {} before the first section.", key.name, key.example),
    }
}
