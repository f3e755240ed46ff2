//! What an extraction is asked for. Pure.

use crate::error::{Error, Kind, Result};
use crate::restore::{FetchCommand, Plan};
use crate::scratch::Programs;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How an extraction is done.
#[derive(Clone, Debug)]
pub struct ExtractOptions {
    /// PostgreSQL of the cluster's version.
    pub programs: Programs,
    /// What the throwaway server runs to fetch WAL.
    pub command: FetchCommand,
    /// The database, by its name at that moment or by OID.
    pub database: String,
    /// What of it.
    pub wanted: Wanted,
    /// Where it goes.
    pub destination: Destination,
    /// The restored files lie in a directory below, which goes at the end.
    pub scratch: PathBuf,
    /// Every database is restored, and not the one alone.
    pub whole_cluster: bool,
}

impl ExtractOptions {
    /// The databases to restore: the one, if the backup lets one be restored alone; all if there is none.
    pub(super) fn databases(&self, plan: &Plan) -> Vec<String> {
        // `restore` refuses single databases then: pages of the others are needed.
        let is_off = plan.document.settings.get("full_page_writes").is_some_and(|value| value == "off");
        match self.whole_cluster || is_off {
            true => Vec::new(),
            false => vec![self.database.clone()],
        }
    }
}

/// What is wanted of a database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// All of it.
    Everything,
    /// Schemas, by name.
    Schemas(Vec<String>),
    /// Tables, as schema.name.
    Tables(Vec<String>),
    /// The rows of a query.
    Query(String),
}

/// Where what is extracted goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// It is written.
    Written {
        /// Where to.
        place: Place,
        /// How.
        format: Format,
    },
    /// It is loaded into another database, as a schema that is not there yet.
    Loaded {
        /// The database, as libpq takes it.
        conninfo: String,
        /// The schema.
        schema: String,
    },
}

/// Where something is written. Nothing is ever overwritten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
    /// A directory.
    Directory(PathBuf),
    /// A ZIP, with a manifest.
    Zip(PathBuf),
}

/// How something is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `pg_dump --format=custom`
    Custom,
    /// `pg_dump --format=plain`
    Plain,
    /// `pg_dump --format=directory`
    Directory,
    /// A CSV file for each table, with a header.
    Csv,
}

impl Destination {
    /// What `--out` and `--format` mean together.
    ///
    /// # Errors
    /// [`Kind::Usage`] if they do not go together, or do not go with what is wanted.
    pub fn written(out: &Path, format: Option<Format>, wanted: &Wanted) -> Result<Destination> {
        let text = out.as_os_str().to_string_lossy();
        let ending = out.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        let place = match () {
            () if text == "-" => Place::Stdout,
            () if text.ends_with('/') || format == Some(Format::Directory) => Place::Directory(out.to_owned()),
            () if ending == "zip" => Place::Zip(out.to_owned()),
            () => Place::File(out.to_owned()),
        };
        let usual = match (&place, ending.as_str()) {
            _ if matches!(wanted, Wanted::Query(_)) => Some(Format::Csv),
            (Place::Zip(_), _) => Some(Format::Csv),
            (Place::Directory(_), _) => Some(Format::Directory),
            (Place::File(_), "dump") => Some(Format::Custom),
            (Place::File(_), "sql") => Some(Format::Plain),
            (Place::File(_), "csv") => Some(Format::Csv),
            _ => None,
        };
        let format = format.or(usual).ok_or_else(|| {
            usage(
                format!("how {text} is to be written does not follow from its name"),
                "Say so with --format, or let it end with .dump, .sql, .csv, .zip or /.",
            )
        })?;
        check(&place, format, wanted)?;
        Ok(Destination::Written { place, format })
    }

    /// True if PostgreSQL's client programs are needed.
    pub(super) fn needs_clients(&self) -> bool {
        !matches!(self, Destination::Written { format: Format::Csv, .. })
    }

    /// A schema of another database.
    ///
    /// # Errors
    /// [`Kind::Usage`] if no schema can have this name, or if what is wanted is not one schema or tables.
    pub fn loaded(conninfo: String, schema: String, wanted: &Wanted) -> Result<Destination> {
        // `NAMEDATALEN`, and `IsReservedName` in `catalog.c`.
        if schema.is_empty() || schema.len() > 63 || schema.starts_with("pg_") || schema.contains('\0') {
            return Err(usage(
                format!("{schema:?} cannot be the name of a schema"),
                "It has 1 to 63 bytes, and does not begin with pg_.",
            ));
        }
        match wanted {
            Wanted::Tables(_) => {}
            Wanted::Schemas(names) if names.len() == 1 => {}
            _ => {
                let what = "one schema takes tables, or one schema";
                return Err(usage(what, "Name them with --table, or it with --schema."));
            }
        }
        Ok(Destination::Loaded { conninfo, schema })
    }
}

fn check(place: &Place, format: Format, wanted: &Wanted) -> Result<()> {
    let is_one = match wanted {
        Wanted::Query(_) => true,
        Wanted::Tables(names) => names.len() == 1,
        Wanted::Everything | Wanted::Schemas(_) => false,
    };
    match (place, format, wanted) {
        (_, Format::Custom | Format::Plain | Format::Directory, Wanted::Query(_)) => {
            Err(usage("the rows of a query are written as CSV", "Leave --format away, or say csv."))
        }
        (Place::File(_) | Place::Stdout, Format::Csv, _) if !is_one => Err(usage(
            "a CSV file holds one table",
            "Name one with --table, or give a directory (NAME/) or a ZIP (NAME.zip).",
        )),
        (Place::Stdout | Place::Zip(_), Format::Directory, _) => {
            Err(usage("a dump in the directory format is a directory", "Give --out NAME/, or another format."))
        }
        (Place::Directory(_), Format::Custom | Format::Plain, _) => {
            Err(usage("this format is one file, and --out names a directory", "Give the name of a file."))
        }
        _ => Ok(()),
    }
}

fn usage(message: impl Into<String>, hint: &str) -> Error {
    Error::new(Kind::Usage, message).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Wanted {
        Wanted::Tables(vec!["public.a".into()])
    }

    #[test]
    fn the_name_says_how_it_is_written() {
        for (out, format, wanted) in [
            ("a.dump", Format::Custom, Wanted::Everything),
            ("a.sql", Format::Plain, Wanted::Everything),
            ("a.csv", Format::Csv, one()),
            ("a.CSV", Format::Csv, one()),
            ("a.zip", Format::Csv, Wanted::Everything),
            ("a/", Format::Directory, Wanted::Everything),
            ("-", Format::Csv, Wanted::Query("SELECT 1".into())),
            ("rows", Format::Csv, Wanted::Query("SELECT 1".into())),
        ] {
            let Destination::Written { format: found, .. } =
                Destination::written(Path::new(out), None, &wanted).unwrap()
            else {
                panic!("{out}")
            };
            assert_eq!(found, format, "{out}");
        }
        let zipped = Destination::written(Path::new("a.zip"), Some(Format::Plain), &one()).unwrap();
        assert_eq!(zipped, Destination::Written { place: Place::Zip("a.zip".into()), format: Format::Plain });
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (out, format, wanted) in [
            ("a", None, Wanted::Everything),
            ("-", None, Wanted::Everything),
            ("a.csv", None, Wanted::Everything),
            ("a.dump", Some(Format::Custom), Wanted::Query("SELECT 1".into())),
            ("-", Some(Format::Csv), Wanted::Schemas(vec!["a".into()])),
            ("a/", Some(Format::Plain), Wanted::Everything),
        ] {
            let error = Destination::written(Path::new(out), format, &wanted).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{out}");
        }
        for (schema, wanted) in
            [("pg_x", one()), ("", one()), ("a", Wanted::Everything), ("a", Wanted::Query("SELECT 1".into()))]
        {
            assert!(Destination::loaded(String::new(), schema.into(), &wanted).is_err(), "{schema} {wanted:?}");
        }
    }
}
