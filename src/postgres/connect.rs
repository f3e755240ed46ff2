//! From a connection string to a server that has let us in: hosts, addresses, encryption, login, and whether it is the
//! kind of server that was asked for. What one host says is kept until one will do or all have been asked.

use super::auth::{self, Credentials, Security};
use super::client::{Client, Mode};
use super::connection::{Connection, Duplex};
use super::conninfo::{
    ConnInfo, DEFAULT_SOCKET_DIRECTORIES, Host, KeepAlive, Place, SslMode, TargetSessionAttrs as Attrs,
};
use super::error::{HostFailure, PgError};
use super::passfile::{self, Lookup, Password, Wanted};
use super::tls;
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};

/// How one attempt is encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Encryption {
    None,
    /// If the server says that it has none, in the clear.
    Offered,
    Required,
}

/// One place to connect to.
#[derive(Clone, Debug)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Everything that is the same for all hosts.
struct Attempt<'a> {
    info: &'a ConnInfo,
    mode: Mode,
    settings: &'a [(&'a str, &'a str)],
    tls: Option<Arc<ClientConfig>>,
    /// As it is given, whoever gives it.
    password: Option<Password>,
    /// One of them has asked for a password and refused it: another may be let in.
    is_refused: bool,
}

/// `invalid_password`, and `invalid_authorization_specification`, which is the answer where the password is checked by somebody else
/// (LDAP, PAM, RADIUS; `auth_failed` in PostgreSQL's `auth.c`). The latter is also said where nobody asks for a password, as without
/// a line in `pg_hba.conf`.
const REFUSED: [&str; 2] = ["28P01", "28000"];

/// Finds a server, with a password that is read again if the one that was read before is refused: somebody may have changed it.
pub(super) async fn connect(info: &ConnInfo, mode: Mode, settings: &[(&str, &str)]) -> Result<Client, PgError> {
    let mut attempt = Attempt::new(info, mode, settings).await?;
    let connected = attempt.connect().await;
    if let (Err(_), true, Some(secret), Some(Password(before))) =
        (&connected, attempt.is_refused, &info.password, &attempt.password)
        && let Some(now) = secret.instead_of(before).await
    {
        attempt.password = Some(Password(now));
        return attempt.connect().await;
    }
    connected
}

/// Speaks to a server through what is open already, in the clear, as if it were the first host of `info`.
pub(super) async fn over(socket: Box<dyn Duplex>, info: &ConnInfo, mode: Mode) -> Result<Client, PgError> {
    let mut attempt = Attempt::new(info, mode, &[]).await?;
    let host = info.hosts.first().ok_or_else(|| PgError::protocol("no host"))?;
    attempt.log_in(socket, host, &Security::Plain, Attrs::Any).await
}

/// A refusal that another host of the same cluster would repeat; libpq stops there, too.
fn is_final(error: &PgError) -> bool {
    match error {
        PgError::Auth { .. } => true,
        PgError::Server(_) => !error.is_transient(),
        _ => false,
    }
}

async fn addresses(host: &Host) -> io::Result<Vec<Address>> {
    match &host.place {
        Place::Tcp { address: Some(address), .. } => Ok(vec![Address::Tcp(SocketAddr::new(*address, host.port))]),
        Place::Tcp { host: name, address: None } => {
            Ok(lookup_host((name.as_str(), host.port)).await?.map(Address::Tcp).collect())
        }
        Place::Unix(directory) => {
            let file = format!(".s.PGSQL.{}", host.port);
            let usual = || DEFAULT_SOCKET_DIRECTORIES.iter().map(|directory| PathBuf::from(directory).join(&file));
            let path = match directory {
                Some(directory) => directory.join(&file),
                None => usual().find(|path| path.exists()).unwrap_or_else(|| usual().next().unwrap_or_default()),
            };
            Ok(vec![Address::Unix(path)])
        }
    }
}

impl<'a> Attempt<'a> {
    async fn new(info: &'a ConnInfo, mode: Mode, settings: &'a [(&'a str, &'a str)]) -> Result<Attempt<'a>, PgError> {
        let password = match &info.password {
            Some(secret) => Some(Password(secret.text().await.map_err(PgError::Password)?)),
            None => None,
        };
        Ok(Attempt { info, mode, settings, tls: None, password, is_refused: false })
    }

    /// Tries the hosts in order, each of its addresses, as libpq does (`fe-connect.c`, `PQconnectPoll`).
    async fn connect(&mut self) -> Result<Client, PgError> {
        let info = self.info;
        let passes: &[Attrs] = match info.target_session_attrs {
            Attrs::PreferStandby => &[Attrs::Standby, Attrs::Any],
            ref other => std::slice::from_ref(other),
        };
        let mut failures = Vec::new();
        for &wanted in passes {
            failures.clear();
            for host in &info.hosts {
                let addresses = match addresses(host).await {
                    Ok(addresses) => addresses,
                    Err(error) => {
                        failures.push(HostFailure { host: host.to_string(), error: PgError::Connect(error) });
                        continue;
                    }
                };
                for address in addresses {
                    if let Some(client) = self.try_address(host, &address, wanted, &mut failures).await {
                        return Ok(client);
                    }
                    if failures.last().is_some_and(|failure| is_final(&failure.error)) {
                        return Err(PgError::Hosts(failures));
                    }
                }
            }
        }
        Err(PgError::Hosts(failures))
    }

    /// One address, with and without encryption as `sslmode` has it; what went wrong is appended to `failures`.
    async fn try_address(
        &mut self,
        host: &Host,
        address: &Address,
        wanted: Attrs,
        failures: &mut Vec<HostFailure>,
    ) -> Option<Client> {
        let ways: &[Encryption] = match (address, self.info.tls.mode) {
            // As libpq: sslmode does not concern Unix sockets.
            (Address::Unix(_), _) | (_, SslMode::Disable) => &[Encryption::None],
            (_, SslMode::Allow) => &[Encryption::None, Encryption::Required],
            (_, SslMode::Prefer) => &[Encryption::Offered, Encryption::None],
            _ => &[Encryption::Required],
        };
        for &encryption in ways {
            let limit = self.info.connect_timeout;
            let opening = Box::pin(self.open(host, address, encryption, wanted));
            let opened = match limit {
                Some(limit) => tokio::time::timeout(limit, opening)
                    .await
                    .unwrap_or_else(|_| Err(PgError::Timeout(limit.as_secs()))),
                None => opening.await,
            };
            let error = match opened {
                Ok(client) => return Some(client),
                Err(error) => error,
            };
            // A refused login may be about encryption (pg_hba.conf: hostssl, hostnossl); a wrong password is not, and is
            // not repeated in the clear.
            let other_way_may_help = matches!(&error, PgError::Tls { .. }) || error.sqlstate() == Some("28000");
            let name = match (ways.len(), encryption) {
                (1, _) => host.to_string(),
                (_, Encryption::None) => format!("{host} without TLS"),
                (_, _) => format!("{host} with TLS"),
            };
            failures.push(HostFailure { host: name, error });
            if !other_way_may_help {
                break;
            }
        }
        None
    }

    async fn open(
        &mut self,
        host: &Host,
        address: &Address,
        encryption: Encryption,
        wanted: Attrs,
    ) -> Result<Client, PgError> {
        let (socket, security) = self.open_socket(host, address, encryption).await?;
        self.log_in(socket, host, &security, wanted).await
    }

    async fn log_in(
        &mut self,
        socket: Box<dyn Duplex>,
        host: &Host,
        security: &Security,
        wanted: Attrs,
    ) -> Result<Client, PgError> {
        let mut connection = Connection::new(socket);
        self.send_startup(&mut connection).await?;
        let (password, passfile_problem) = match &self.password {
            Some(password) => (Some(password.clone()), None),
            None => self.password_from_file(host).await,
        };
        let credentials = Credentials {
            user: &self.info.user,
            password: password.as_ref(),
            passfile_problem: passfile_problem.as_deref(),
            channel_binding: self.info.channel_binding,
        };
        let mut is_in_doubt = false;
        let authenticated = auth::authenticate(&mut connection, &credentials, security, &mut is_in_doubt).await;
        let is_refusal = |error: &PgError| error.sqlstate().is_some_and(|state| REFUSED.contains(&state));
        self.is_refused |= is_in_doubt && authenticated.as_ref().is_err_and(is_refusal);
        authenticated?;
        let mut client =
            Client::new(connection, host.to_string(), self.mode).with_certificate_end(security.certificate_end());
        check_session(&mut client, wanted).await?;
        Ok(client)
    }

    async fn open_socket(
        &mut self,
        host: &Host,
        address: &Address,
        encryption: Encryption,
    ) -> Result<(Box<dyn Duplex>, Security), PgError> {
        let address = match address {
            Address::Unix(path) => {
                let socket = UnixStream::connect(path).await.map_err(PgError::Connect)?;
                return Ok((Box::new(socket), Security::Plain));
            }
            Address::Tcp(address) => *address,
        };
        let mut socket = TcpStream::connect(address).await.map_err(PgError::Connect)?;
        set_options(&socket, &self.info.keep_alive).map_err(PgError::Connect)?;
        let encrypted = match encryption {
            Encryption::None => false,
            _ if self.info.tls.direct => true,
            Encryption::Offered => ask_for_tls(&mut socket).await?,
            Encryption::Required => match ask_for_tls(&mut socket).await? {
                true => true,
                false => {
                    return Err(PgError::Tls {
                        message: "the server has none".to_owned(),
                        hint: Some("Set ssl = on in postgresql.conf, or choose a weaker sslmode."),
                    });
                }
            },
        };
        if !encrypted {
            return Ok((Box::new(socket), Security::Plain));
        }
        let config = match &self.tls {
            Some(config) => config.clone(),
            None => self.tls.insert(tls::configure(&self.info.tls).await?).clone(),
        };
        let name = match &host.place {
            Place::Tcp { host, .. } => host.as_str(),
            Place::Unix(_) => "",
        };
        let (stream, security) = tls::handshake(socket, config, name, address.ip(), &self.info.tls).await?;
        Ok((Box::new(stream), security))
    }

    async fn send_startup(&self, connection: &mut Connection) -> Result<(), PgError> {
        let info = self.info;
        let mut parameters = vec![("user", info.user.as_str()), ("application_name", info.application_name.as_str())];
        match self.mode {
            // The server ignores the name here; it is the word that pg_hba.conf uses.
            Mode::Physical => parameters.extend([("database", "replication"), ("replication", "true")]),
            Mode::Database => parameters.extend([("database", info.dbname.as_str()), ("replication", "database")]),
            Mode::Sql => parameters.push(("database", info.dbname.as_str())),
        }
        if self.mode != Mode::Physical {
            parameters.push(("client_encoding", "UTF8"));
        }
        let options = startup_options(info.options.as_deref(), self.settings);
        if !options.is_empty() {
            parameters.push(("options", &options));
        }
        connection.write(|out| frontend::startup_message(parameters, out))?;
        connection.flush().await
    }

    async fn password_from_file(&self, host: &Host) -> (Option<Password>, Option<String>) {
        let Some(path) = &self.info.passfile else {
            return (None, None);
        };
        let databases = match self.mode {
            Mode::Physical => vec!["replication".to_owned(), self.info.dbname.clone()],
            Mode::Database | Mode::Sql => vec![self.info.dbname.clone()],
        };
        let host_name = match &host.place {
            Place::Tcp { host, .. } => host.clone(),
            // As libpq: the default socket goes by localhost.
            Place::Unix(None) => "localhost".to_owned(),
            Place::Unix(Some(path)) if DEFAULT_SOCKET_DIRECTORIES.iter().any(|usual| path.as_os_str() == *usual) => {
                "localhost".to_owned()
            }
            Place::Unix(Some(path)) => path.display().to_string(),
        };
        let wanted = Wanted { host: host_name, port: host.port, databases, user: self.info.user.clone() };
        match passfile::look_up(path, wanted).await {
            Lookup::Found(password) => (Some(password), None),
            Lookup::Nothing => (None, None),
            Lookup::Ignored(why) => (None, Some(why)),
        }
    }
}

/// The user's `options` and then ours, `-c name=value`, with what separates words escaped (`pg_split_opts`).
fn startup_options(given: Option<&str>, settings: &[(&str, &str)]) -> String {
    let mut options = given.unwrap_or_default().to_owned();
    for (name, value) in settings {
        if !options.is_empty() {
            options.push(' ');
        }
        options.push_str("-c ");
        for c in name.chars().chain(['=']).chain(value.chars()) {
            if c.is_ascii_whitespace() || c == '\\' {
                options.push('\\');
            }
            options.push(c);
        }
    }
    options
}

fn set_options(socket: &TcpStream, keep_alive: &KeepAlive) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let options = SockRef::from(socket);
    if keep_alive.enabled {
        let mut probes = TcpKeepalive::new();
        if let Some(idle) = keep_alive.idle {
            probes = probes.with_time(idle);
        }
        if let Some(interval) = keep_alive.interval {
            probes = probes.with_interval(interval);
        }
        if let Some(count) = keep_alive.count {
            probes = probes.with_retries(count);
        }
        options.set_tcp_keepalive(&probes)?;
    }
    options.set_tcp_user_timeout(keep_alive.user_timeout.filter(|timeout| *timeout >= Duration::from_millis(1)))
}

/// Sends an SSLRequest; true if the server goes along.
async fn ask_for_tls(socket: &mut TcpStream) -> Result<bool, PgError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(PgError::Io)?;
    let mut answer = [0; 64];
    let read = socket.read(&mut answer).await.map_err(PgError::Io)?;
    match answer.get(..read).unwrap_or_default() {
        b"S" => Ok(true),
        b"N" => Ok(false),
        b"" => Err(PgError::Closed),
        // Somebody put words into the server's mouth before TLS began (CVE-2021-23222).
        [b'S', ..] => Err(PgError::protocol("bytes in the clear behind the server's yes to TLS")),
        // An error's text at this point is anybody's (CVE-2024-10977): not repeated.
        _ => Err(PgError::protocol("neither yes nor no to TLS")),
    }
}

/// Is this the kind of server that `target_session_attrs` asks for?
async fn check_session(client: &mut Client, wanted: Attrs) -> Result<(), PgError> {
    let (asked, read_only) = match wanted {
        Attrs::Any | Attrs::PreferStandby => return Ok(()),
        Attrs::ReadWrite => ("read-write", false),
        Attrs::ReadOnly => ("read-only", true),
        Attrs::Primary => ("primary", false),
        Attrs::Standby => ("standby", true),
    };
    let about_recovery = matches!(wanted, Attrs::Primary | Attrs::Standby);
    let is_on = |value: Option<&str>| value.map(|value| value == "on");
    let (standby, default_read_only) =
        (is_on(client.parameter("in_hot_standby")), is_on(client.parameter("default_transaction_read_only")));
    let found = match (standby, default_read_only) {
        (Some(standby), Some(read_only)) => standby || (read_only && !about_recovery),
        // Before 14 the server does not say. A physical connection cannot ask pg_is_in_recovery().
        _ if about_recovery && client.mode() != Mode::Physical => {
            let rows = client.simple_query("SELECT pg_catalog.pg_is_in_recovery()").await?;
            rows.get(0, "pg_is_in_recovery") == Some("t")
        }
        _ => client.show("transaction_read_only").await? == "on",
    };
    match (found == read_only, about_recovery) {
        (true, _) => Ok(()),
        (false, true) => Err(PgError::Session { wanted: asked, found: if found { "a standby" } else { "a primary" } }),
        (false, false) => {
            Err(PgError::Session { wanted: asked, found: if found { "read-only" } else { "read-write" } })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_escaped_for_the_server() {
        assert_eq!(startup_options(None, &[]), "");
        assert_eq!(
            startup_options(Some("-c a=b"), &[("wal_sender_timeout", "10s"), ("x.y", "two words\\")]),
            "-c a=b -c wal_sender_timeout=10s -c x.y=two\\ words\\\\"
        );
    }
}
