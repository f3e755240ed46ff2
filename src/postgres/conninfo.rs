//! What a connection string, the `PG*` variables and libpq's defaults say about the server, put together.
//!
//! Follows libpq (`src/interfaces/libpq/fe-connect.c`): explicit beats environment beats default. What libpq knows and
//! Seawall does not do is refused by name, never passed over, unless it cannot matter here.

use super::conninfo_text::{self, Unreadable};
use crate::error::{Error, Kind};
use crate::secret::{Secret, Source};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The name by which a server's views and `synchronous_standby_names` know us, unless the user says otherwise.
const DEFAULT_APPLICATION_NAME: &str = "seawall";

/// libpq waits as long as the kernel; an archiver that must try the next host does not.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a server's Unix socket is looked for: Debian's place, then PostgreSQL's own.
pub(super) const DEFAULT_SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// How far TLS goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server wants it.
    Allow,
    /// If the server has it: libpq's default.
    Prefer,
    /// Always; the certificate is checked only if a root certificate file is there.
    Require,
    /// Always, with a certificate that a trusted authority signed.
    VerifyCa,
    /// Always, with a certificate that a trusted authority signed for this host name.
    VerifyFull,
}

/// Whether the password exchange is tied to the TLS connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If both sides can.
    Prefer,
    /// Always, or no connection.
    Require,
}

/// Which of several servers will do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetSessionAttrs {
    /// The first that answers.
    Any,
    /// One that accepts writes.
    ReadWrite,
    /// One that does not.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is in recovery.
    Standby,
    /// One that is in recovery, or else any.
    PreferStandby,
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// A host name or address, and the address to use instead of looking it up.
    Tcp { host: String, address: Option<IpAddr> },
    /// The directory of a Unix socket; `None`: the usual ones.
    Unix(Option<PathBuf>),
}

/// One server of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Host {
    pub(super) place: Place,
    pub(super) port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp { host, .. } if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Place::Tcp { host, .. } => write!(f, "{host}:{}", self.port),
            Place::Unix(directory) => {
                let directory = directory.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET_DIRECTORIES[0]));
                write!(f, "{}:{}", directory.display(), self.port)
            }
        }
    }
}

/// Where trusted authorities come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum RootCertificates {
    /// `~/.postgresql/root.crt`, if it is there.
    Default(Option<PathBuf>),
    /// A file that must be there.
    File(PathBuf),
    /// What the operating system trusts.
    System,
}

/// What TLS needs to know.
#[derive(Clone, Debug)]
pub(super) struct TlsOptions {
    pub(super) mode: SslMode,
    pub(super) direct: bool,
    pub(super) roots: RootCertificates,
    /// Certificate and key of the client, and whether they must be there.
    pub(super) client_certificate: Option<(PathBuf, bool)>,
    pub(super) client_key: Option<PathBuf>,
    pub(super) server_name_indication: bool,
    pub(super) min_version: TlsVersion,
    pub(super) max_version: TlsVersion,
}

/// The TLS versions that rustls speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum TlsVersion {
    V12,
    V13,
}

/// How soon a dead TCP connection is noticed. `None`: as the kernel has it.
#[derive(Clone, Debug)]
pub(super) struct KeepAlive {
    pub(super) enabled: bool,
    pub(super) idle: Option<Duration>,
    pub(super) interval: Option<Duration>,
    pub(super) count: Option<u32>,
    pub(super) user_timeout: Option<Duration>,
}

/// How to reach PostgreSQL. `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) dbname: String,
    pub(super) password: Option<Secret>,
    pub(super) passfile: Option<PathBuf>,
    pub(super) tls: TlsOptions,
    pub(super) channel_binding: ChannelBinding,
    pub(super) target_session_attrs: TargetSessionAttrs,
    pub(super) application_name: String,
    pub(super) options: Option<String>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) keep_alive: KeepAlive,
}

/// What becomes of a keyword.
enum Use {
    Taken,
    /// Makes no difference to what Seawall does.
    Without,
    /// Would change what happens, and cannot be had; why.
    Refused(&'static str),
}

/// libpq's keywords and variables (`fe-connect.c`, `PQconninfoOptions`, 13 to 18).
const KEYWORDS: &[(&str, &str, Use)] = &[
    ("application_name", "PGAPPNAME", Use::Taken),
    ("channel_binding", "PGCHANNELBINDING", Use::Taken),
    ("client_encoding", "PGCLIENTENCODING", Use::Without),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Use::Taken),
    ("dbname", "PGDATABASE", Use::Taken),
    ("fallback_application_name", "", Use::Taken),
    ("gssdelegation", "PGGSSDELEGATION", Use::Without),
    ("gssencmode", "PGGSSENCMODE", Use::Taken),
    ("gsslib", "PGGSSLIB", Use::Without),
    ("host", "PGHOST", Use::Taken),
    ("hostaddr", "PGHOSTADDR", Use::Taken),
    ("keepalives", "", Use::Taken),
    ("keepalives_count", "", Use::Taken),
    ("keepalives_idle", "", Use::Taken),
    ("keepalives_interval", "", Use::Taken),
    ("krbsrvname", "PGKRBSRVNAME", Use::Without),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS", Use::Taken),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", Use::Without),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", Use::Refused("protocol 3.0 is spoken with every server")),
    ("options", "PGOPTIONS", Use::Taken),
    ("passfile", "PGPASSFILE", Use::Taken),
    ("password", "PGPASSWORD", Use::Taken),
    ("port", "PGPORT", Use::Taken),
    ("replication", "", Use::Without),
    ("require_auth", "PGREQUIREAUTH", Use::Refused("use channel_binding=require or sslmode=verify-full")),
    ("requirepeer", "PGREQUIREPEER", Use::Refused("the owner of a Unix socket is not checked")),
    ("scram_client_key", "", Use::Refused("give the password")),
    ("scram_server_key", "", Use::Refused("give the password")),
    ("service", "PGSERVICE", Use::Refused("write what the service file says into the connection string")),
    ("servicefile", "PGSERVICEFILE", Use::Without),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Use::Taken),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Use::Taken),
    ("sslcert", "PGSSLCERT", Use::Taken),
    ("sslcertmode", "PGSSLCERTMODE", Use::Refused("a client certificate is sent if there is one and the server asks")),
    ("sslcompression", "PGSSLCOMPRESSION", Use::Without),
    ("sslcrl", "PGSSLCRL", Use::Refused("revocation lists are not read")),
    ("sslcrldir", "PGSSLCRLDIR", Use::Refused("revocation lists are not read")),
    ("sslkey", "PGSSLKEY", Use::Taken),
    ("sslkeylogfile", "", Use::Refused("keys are not logged")),
    ("sslmode", "PGSSLMODE", Use::Taken),
    ("sslnegotiation", "PGSSLNEGOTIATION", Use::Taken),
    ("sslpassword", "", Use::Refused("take the passphrase off the key and let nobody else read the file")),
    ("sslrootcert", "PGSSLROOTCERT", Use::Taken),
    ("sslsni", "PGSSLSNI", Use::Taken),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Use::Taken),
    ("tcp_user_timeout", "", Use::Taken),
    ("user", "PGUSER", Use::Taken),
];

impl ConnInfo {
    /// The servers that are named, as they are shown to people: host or directory, and port.
    pub fn servers(&self) -> Vec<String> {
        self.hosts.iter().map(ToString::to_string).collect()
    }

    /// Reads a connection string, `keyword=value` or `postgresql://`, and takes the rest from `env` (the process's
    /// variables, or a test's) and libpq's defaults. The password file is read later, at each connection.
    ///
    /// # Errors
    /// `Kind::Config`, without repeating what may be a password.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<ConnInfo, Error> {
        let mut given = Given::collect(text, env)?;
        let home = env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from).or_else(home_of_this_user);
        let user = match given.take("user") {
            Some(user) => user,
            None => name_of_this_user().ok_or_else(|| {
                config("the connection string names no user, and the system has no name for this one")
                    .hint("Add user=NAME or set PGUSER.")
            })?,
        };
        if given.take("load_balance_hosts").is_some_and(|value| value != "disable") {
            return Err(config("load_balance_hosts is not supported: hosts are tried in the order given"));
        }
        if given.take("gssencmode").is_some_and(|value| value == "require") {
            return Err(config("gssencmode=require is not supported").hint("Use TLS: sslmode=verify-full."));
        }
        let fallback_name = given.take("fallback_application_name");
        Ok(ConnInfo {
            hosts: hosts(&mut given)?,
            dbname: given.take("dbname").unwrap_or_else(|| user.clone()),
            user,
            password: given.take("password").map(|password| Secret::new("pg", Source::Given(password))),
            passfile: given.take("passfile").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".pgpass"))),
            tls: tls_options(&mut given, home.as_deref())?,
            channel_binding: given.read("channel_binding")?.unwrap_or(ChannelBinding::Prefer),
            target_session_attrs: given.read("target_session_attrs")?.unwrap_or(TargetSessionAttrs::Any),
            application_name: given
                .take("application_name")
                .or(fallback_name)
                .unwrap_or_else(|| DEFAULT_APPLICATION_NAME.to_owned()),
            options: given.take("options"),
            connect_timeout: match given.read::<i32>("connect_timeout")? {
                None => Some(DEFAULT_CONNECT_TIMEOUT),
                Some(seconds) => u64::try_from(seconds).ok().filter(|&seconds| seconds > 0).map(Duration::from_secs),
            },
            keep_alive: keep_alive(&mut given)?,
        })
    }

    /// What a connection string says, as the variables that programs with libpq read: among their arguments, a password would
    /// be seen by everybody. Keywords without a variable, which are about dead connections, are left out.
    ///
    /// # Errors
    /// As [`ConnInfo::parse`].
    pub fn variables(text: &str) -> Result<Vec<(&'static str, String)>, Error> {
        let Given(mut given) = Given::collect(text, &|_| None)?;
        let named = KEYWORDS.iter().filter(|(_, variable, _)| !variable.is_empty());
        Ok(named.filter_map(|(keyword, variable, _)| Some((*variable, given.remove(keyword)?))).collect())
    }

    /// The name that the server knows this connection by.
    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    /// The same with this password, whatever a connection string, a variable or the password file says.
    pub fn with_password(&self, password: Secret) -> ConnInfo {
        ConnInfo { password: Some(password), ..self.clone() }
    }

    /// The same with another database.
    pub fn with_database(&self, name: &str) -> ConnInfo {
        ConnInfo { dbname: name.to_owned(), ..self.clone() }
    }

    /// The same for whatever kind of server it is.
    pub fn with_any_session(&self) -> ConnInfo {
        ConnInfo { target_session_attrs: TargetSessionAttrs::Any, ..self.clone() }
    }

    /// The role.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// True if the user has chosen a value for this setting of the session, with `options=-c name=value`.
    pub fn sets(&self, setting: &str) -> bool {
        self.options.as_deref().is_some_and(|options| options.contains(setting))
    }

    /// How far TLS goes.
    pub fn ssl_mode(&self) -> SslMode {
        self.tls.mode
    }

    /// Each host as [`super::Client::host`] gives it.
    pub fn host_names(&self) -> Vec<String> {
        self.hosts.iter().map(Host::to_string).collect()
    }

    /// The same with those hosts alone that are to be kept, by name; `None` if none is.
    pub fn with_hosts(&self, keep: impl Fn(&str) -> bool) -> Option<ConnInfo> {
        let hosts: Vec<Host> = self.hosts.iter().filter(|host| keep(&host.to_string())).cloned().collect();
        (!hosts.is_empty()).then(|| ConnInfo { hosts, ..self.clone() })
    }

    /// `user@host:port,host:port`, for messages; no secret.
    pub fn describe(&self) -> String {
        let hosts = self.host_names();
        format!("{}@{}", self.user, hosts.join(","))
    }
}

/// The values by keyword, explicit or from the environment.
struct Given(BTreeMap<&'static str, String>);

impl Given {
    fn collect(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Given, Error> {
        let pairs = conninfo_text::split(text).map_err(|Unreadable { problem, hint }| {
            let error = config(format!("the connection string cannot be read: {problem}"));
            match hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        })?;
        let mut given = BTreeMap::new();
        for (name, value) in pairs {
            let Some((keyword, _, usage)) = KEYWORDS.iter().find(|(keyword, ..)| *keyword == name) else {
                return Err(unknown_keyword(&name));
            };
            if let (Use::Refused(instead), false) = (usage, value.is_empty()) {
                let error = config(format!("{keyword} in the connection string is not supported: {instead}"));
                return Err(error);
            }
            given.insert(*keyword, value);
        }
        for (keyword, variable, usage) in KEYWORDS.iter().filter(|(_, variable, _)| !variable.is_empty()) {
            let Some(value) = env(variable).filter(|_| !given.contains_key(keyword)) else {
                continue;
            };
            if let (Use::Refused(instead), false) = (usage, value.is_empty()) {
                return Err(config(format!("the variable {variable} is set and not supported: {instead}")));
            }
            given.insert(*keyword, value);
        }
        Ok(Given(given))
    }

    /// The value, unless it is empty: then libpq takes the default, too.
    fn take(&mut self, keyword: &str) -> Option<String> {
        self.0.remove(keyword).filter(|value| !value.is_empty())
    }

    fn read<T: FromStr>(&mut self, keyword: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.take(keyword) else {
            return Ok(None);
        };
        let bad = |_| config(format!("{value:?} is not a value of {keyword}"));
        value.trim().parse().map(Some).map_err(bad)
    }

    fn seconds(&mut self, keyword: &str) -> Result<Option<Duration>, Error> {
        let seconds = self.read::<u32>(keyword)?.filter(|&seconds| seconds > 0);
        Ok(seconds.map(|seconds| Duration::from_secs(seconds.into())))
    }

    /// libpq's comma-separated lists: no value is no entry.
    fn list(&mut self, keyword: &str) -> Vec<String> {
        let value = self.take(keyword);
        value.map(|value| value.split(',').map(|entry| entry.trim().to_owned()).collect()).unwrap_or_default()
    }
}

fn config(message: impl Into<String>) -> Error {
    Error::new(Kind::Config, message)
}

fn unknown_keyword(name: &str) -> Error {
    let nearest = KEYWORDS.iter().map(|(keyword, ..)| (distance(name, keyword), *keyword)).min();
    match nearest {
        Some((distance, keyword)) if distance <= 3 && distance < keyword.len() / 2 + 1 => {
            config(format!("the connection string has no keyword {name:?}")).hint(format!("Did you mean {keyword:?}?"))
        }
        // Far from every keyword, it may be the rest of a password with a space in it.
        _ => config("the connection string has a keyword that PostgreSQL does not know")
            .hint("Does a value have spaces? Put single quotes around it."),
    }
}

/// How many letters must change to make one word of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.chars().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

fn hosts(given: &mut Given) -> Result<Vec<Host>, Error> {
    let (names, addresses, ports) = (given.list("host"), given.list("hostaddr"), given.list("port"));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        let counts = format!("{} host names and {} host addresses", names.len(), addresses.len());
        return Err(
            config(format!("the connection string has {counts}")).hint("Give as many of the one as of the other.")
        );
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(config(format!("the connection string has {} ports for {count} hosts", ports.len()))
            .hint("Give one port for all hosts, or one for each."));
    }
    let mut hosts = Vec::with_capacity(count);
    for index in 0..count {
        let port = match ports.get(if ports.len() == 1 { 0 } else { index }).filter(|port| !port.is_empty()) {
            Some(port) => port.parse().ok().filter(|&port| port > 0).ok_or_else(|| {
                config(format!("{port:?} is not a port")).hint("A port is a number from 1 to 65535; 5432 is usual.")
            })?,
            None => 5432,
        };
        let name = names.get(index).filter(|name| !name.is_empty()).cloned();
        let address = match addresses.get(index).filter(|address| !address.is_empty()) {
            Some(text) => Some(text.parse().map_err(|_| config(format!("hostaddr {text:?} is not an IP address")))?),
            None => None,
        };
        let place = match (name, address) {
            (Some(name), None) if name.starts_with('/') => Place::Unix(Some(PathBuf::from(name))),
            (Some(name), None) if name.starts_with('@') => {
                return Err(config("abstract Unix sockets are not supported"));
            }
            (Some(host), address) => Place::Tcp { host, address },
            (None, Some(address)) => Place::Tcp { host: address.to_string(), address: Some(address) },
            (None, None) => Place::Unix(None),
        };
        hosts.push(Host { place, port });
    }
    Ok(hosts)
}

fn tls_options(given: &mut Given, home: Option<&Path>) -> Result<TlsOptions, Error> {
    let in_home = |name: &str| home.map(|home| home.join(".postgresql").join(name));
    let roots = match given.take("sslrootcert") {
        Some(system) if system == "system" => RootCertificates::System,
        Some(file) => RootCertificates::File(file.into()),
        None => RootCertificates::Default(in_home("root.crt")),
    };
    let system = roots == RootCertificates::System;
    let mode = given.read("sslmode")?.unwrap_or(if system { SslMode::VerifyFull } else { SslMode::Prefer });
    if system && mode < SslMode::VerifyFull {
        return Err(config("sslrootcert=system needs sslmode=verify-full").hint(
            "The system trusts many authorities: without a look at the host name, any of their customers would do.",
        ));
    }
    let direct = match given.take("sslnegotiation").as_deref() {
        None | Some("postgres") => false,
        Some("direct") => true,
        Some(other) => return Err(config(format!("{other:?} is not a value of sslnegotiation"))),
    };
    if direct && mode < SslMode::Require {
        return Err(config("sslnegotiation=direct needs sslmode=require or more")
            .hint("A connection that begins with TLS cannot fall back to none."));
    }
    let client_certificate = match given.take("sslcert") {
        Some(file) => Some((PathBuf::from(file), true)),
        None => in_home("postgresql.crt").map(|file| (file, false)),
    };
    let options = TlsOptions {
        mode,
        direct,
        roots,
        client_certificate,
        client_key: given.take("sslkey").map(PathBuf::from).or_else(|| in_home("postgresql.key")),
        server_name_indication: given.take("sslsni").is_none_or(|value| value != "0"),
        min_version: given.read("ssl_min_protocol_version")?.unwrap_or(TlsVersion::V12),
        max_version: given.read("ssl_max_protocol_version")?.unwrap_or(TlsVersion::V13),
    };
    match options.min_version <= options.max_version {
        true => Ok(options),
        false => Err(config("ssl_min_protocol_version is above ssl_max_protocol_version")),
    }
}

fn keep_alive(given: &mut Given) -> Result<KeepAlive, Error> {
    let user_timeout = match given.read::<i64>("tcp_user_timeout")? {
        None => Some(Duration::from_secs(60)),
        Some(millis) => u64::try_from(millis).ok().filter(|&millis| millis > 0).map(Duration::from_millis),
    };
    Ok(KeepAlive {
        enabled: given.read::<i32>("keepalives")?.is_none_or(|value| value != 0),
        // The kernel's own two hours are no answer to a vanished server.
        idle: given.seconds("keepalives_idle")?.or(Some(Duration::from_secs(30))),
        interval: given.seconds("keepalives_interval")?.or(Some(Duration::from_secs(10))),
        count: given.read::<u32>("keepalives_count")?.filter(|&count| count > 0).or(Some(3)),
        user_timeout,
    })
}

fn this_user() -> Option<nix::unistd::User> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten()
}

fn name_of_this_user() -> Option<String> {
    this_user().map(|user| user.name)
}

fn home_of_this_user() -> Option<PathBuf> {
    this_user().map(|user| user.dir)
}

impl FromStr for SslMode {
    type Err = ();

    fn from_str(text: &str) -> Result<SslMode, ()> {
        Ok(match text {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => return Err(()),
        })
    }
}

impl FromStr for ChannelBinding {
    type Err = ();

    fn from_str(text: &str) -> Result<ChannelBinding, ()> {
        Ok(match text {
            "disable" => ChannelBinding::Disable,
            "prefer" => ChannelBinding::Prefer,
            "require" => ChannelBinding::Require,
            _ => return Err(()),
        })
    }
}

impl FromStr for TargetSessionAttrs {
    type Err = ();

    fn from_str(text: &str) -> Result<TargetSessionAttrs, ()> {
        Ok(match text {
            "any" => TargetSessionAttrs::Any,
            "read-write" => TargetSessionAttrs::ReadWrite,
            "read-only" => TargetSessionAttrs::ReadOnly,
            "primary" => TargetSessionAttrs::Primary,
            "standby" => TargetSessionAttrs::Standby,
            "prefer-standby" => TargetSessionAttrs::PreferStandby,
            _ => return Err(()),
        })
    }
}

impl FromStr for TlsVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<TlsVersion, ()> {
        Ok(match text {
            // rustls has nothing older than 1.2, which is more than was asked for.
            "TLSv1" | "TLSv1.1" | "TLSv1.2" => TlsVersion::V12,
            "TLSv1.3" => TlsVersion::V13,
            _ => return Err(()),
        })
    }
}

#[cfg(test)]
#[path = "conninfo_tests.rs"]
mod tests;
