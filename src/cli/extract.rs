//! What can be typed behind `seawall extract`.

use super::{IdentityArg, JsonArg, TargetArgs};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `seawall extract`
#[derive(Args, Debug)]
pub struct ExtractArgs {
    /// The database, by the name that it had then; its OID where a base backup knows it by another name
    #[arg(long, value_name = "NAME")]
    pub database: String,
    /// Only this table (or view), as schema.name in the letters of the catalogue; once for each
    #[arg(long = "table", value_name = "TABLE", conflicts_with_all = ["schemas", "query"])]
    pub tables: Vec<String>,
    /// Only this schema; once for each
    #[arg(long = "schema", value_name = "NAME", conflicts_with = "query")]
    pub schemas: Vec<String>,
    /// The rows of this query, as CSV
    #[arg(long, value_name = "SQL")]
    pub query: Option<String>,
    /// To which moment, and from what.
    #[command(flatten)]
    pub target: TargetArgs,
    /// File to write, which must not be there; a directory with / at its end; standard output is -
    #[arg(long, value_name = "FILE", required_unless_present_any = ["into", "estimate"])]
    pub out: Option<PathBuf>,
    /// How it is written [default: by the end of the file's name]
    #[arg(long, value_name = "FORMAT", requires = "out")]
    pub format: Option<ExtractFormat>,
    /// Load it into this database instead: key=value pairs or a URI, as for --pg. Keep passwords out of it, as there
    #[arg(long, value_name = "CONNINFO", requires = "as_schema", conflicts_with_all = ["out", "query"])]
    pub into: Option<String>,
    /// The schema to load it as, which must not be there
    #[arg(long, value_name = "NAME", requires = "into", conflicts_with = "out")]
    pub as_schema: Option<String>,
    /// Where the restored files lie meanwhile [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Restore every database: for one that was created after the base backup
    #[arg(long)]
    pub whole_cluster: bool,
    /// What opens an encrypted repository.
    #[command(flatten)]
    pub identity: IdentityArg,
    /// Say what it takes, and do nothing
    #[arg(long)]
    pub estimate: bool,
    /// How the result is printed.
    #[command(flatten)]
    pub json: JsonArg,
}

/// How what is extracted is written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtractFormat {
    /// pg_dump's custom format, for pg_restore.
    Custom,
    /// SQL, for psql.
    Plain,
    /// pg_dump's directory format, for pg_restore.
    Directory,
    /// A CSV file for each table, with a header.
    Csv,
}

#[cfg(test)]
mod tests {
    use crate::cli::parse;
    use std::ffi::OsString;

    fn is_taken(line: &str) -> bool {
        parse(format!("seawall extract --database a {line}").split(' ').map(OsString::from)).is_ok()
    }

    #[test]
    fn what_is_wanted_and_where_it_goes_are_one_of_each() {
        for line in [
            "--out a.sql",
            "--estimate",
            "--table a.b --table c --out a.zip --to now",
            "--schema a --into dbname=b --as-schema c --to-lsn 0/1F --to-exclusive",
            "--query x --out - --format csv --before-drop a.b --to now",
        ] {
            assert!(is_taken(line), "{line}");
        }
        for line in [
            "",
            "--table a --schema b --out c",
            "--table a --query b --out c",
            "--schema a --into dbname=b",
            "--as-schema c --out a",
            "--into dbname=b --as-schema c --out a",
            "--into dbname=b --as-schema c --query a",
            "--out a --to now --to-end",
            "--estimate --format csv",
        ] {
            assert!(!is_taken(line), "{line}");
        }
    }
}
