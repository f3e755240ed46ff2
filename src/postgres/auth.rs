//! Proving who we are: the exchange between the startup message and the first ReadyForQuery.

use super::connection::Connection;
use super::conninfo::ChannelBinding;
use super::error::PgError;
use super::message::{self, Message};
use super::passfile::Password;
use bytes::Bytes;
use jiff::Timestamp;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;

/// How the connection is protected, as far as authentication cares.
#[derive(Clone, Debug)]
pub(super) enum Security {
    /// TCP or a Unix socket, in the clear.
    Plain,
    /// TLS; the hash of the server's certificate (`tls-server-end-point`), if its signature algorithm has one, and when the
    /// certificate ends.
    Tls { end_point: Option<Vec<u8>>, certificate_end: Option<Timestamp> },
}

impl Security {
    /// When the server's certificate ends; `None` without one.
    pub(super) fn certificate_end(&self) -> Option<Timestamp> {
        match self {
            Security::Plain => None,
            Security::Tls { certificate_end, .. } => *certificate_end,
        }
    }
}

/// What we have to show.
#[derive(Debug)]
pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a Password>,
    /// Why the password file was not used, if it was there.
    pub(super) passfile_problem: Option<&'a str>,
    pub(super) channel_binding: ChannelBinding,
}

/// Answers the server's requests until it lets us in and is ready. `is_in_doubt` is what is thought of the password: true from when the
/// server asks for it until it lets us in, and so afterwards if that was what it refused.
pub(super) async fn authenticate(
    connection: &mut Connection,
    credentials: &Credentials<'_>,
    security: &Security,
    is_in_doubt: &mut bool,
) -> Result<(), PgError> {
    let mut scram: Option<Scram> = None;
    loop {
        let (request, body) = match connection.read_past_notices().await? {
            Message::Authentication(request, body) => (request, body),
            Message::Error(error) => return Err(PgError::Server(Box::new(error))),
            other => return Err(unexpected("the login", &other)),
        };
        // "Authentication" messages of the manual's "Message Formats".
        *is_in_doubt = request != 0;
        match request {
            0 => {
                check_admission(scram.as_ref(), credentials)?;
                break;
            }
            3 => {
                refuse_without_binding(credentials)?;
                if matches!(security, Security::Plain) {
                    return Err(PgError::auth(
                        "the server asks for the password in the clear, and the connection is not encrypted",
                        "Use sslmode=require or more, or SCRAM in pg_hba.conf.",
                    ));
                }
                let password = password(credentials)?.0.as_bytes();
                connection.write(|out| frontend::password_message(password, out))?;
            }
            5 => {
                refuse_without_binding(credentials)?;
                let salt =
                    <[u8; 4]>::try_from(&body[..]).map_err(|_| PgError::protocol("a salt of the wrong length"))?;
                let hash = md5_hash(credentials.user.as_bytes(), password(credentials)?.0.as_bytes(), salt);
                connection.write(|out| frontend::password_message(hash.as_bytes(), out))?;
            }
            10 if scram.is_none() => scram = Some(Scram::begin(connection, credentials, security, body)?),
            11 => {
                let scram = scram.as_mut().ok_or_else(|| PgError::protocol("SCRAM goes on before it began"))?;
                scram.exchange.update(&body).map_err(bad_scram)?;
                connection.write(|out| frontend::sasl_response(scram.exchange.message(), out))?;
            }
            12 => {
                let scram = scram.as_mut().ok_or_else(|| PgError::protocol("SCRAM ends before it began"))?;
                // Without this proof the other side need not know the password at all.
                scram.exchange.finish(&body).map_err(bad_scram)?;
                scram.server_proved = true;
            }
            other => return Err(unsupported(other)),
        }
        connection.flush().await?;
    }
    connection.trust();
    match connection.read_past_notices().await? {
        Message::ReadyForQuery => Ok(()),
        Message::Error(error) => Err(PgError::Server(Box::new(error))),
        other => Err(unexpected("the login", &other)),
    }
}

/// One SCRAM exchange (RFC 5802, 7677).
struct Scram {
    exchange: sasl::ScramSha256,
    bound: bool,
    server_proved: bool,
}

impl Scram {
    fn begin(
        connection: &mut Connection,
        credentials: &Credentials<'_>,
        security: &Security,
        mut offered: Bytes,
    ) -> Result<Scram, PgError> {
        let (mut plain, mut plus, mut names) = (false, false, Vec::new());
        loop {
            let mechanism = message::get_zero_terminated(&mut offered)?;
            match &mechanism[..] {
                b"" => break,
                name if name == sasl::SCRAM_SHA_256.as_bytes() => plain = true,
                name if name == sasl::SCRAM_SHA_256_PLUS.as_bytes() => plus = true,
                name => names.push(String::from_utf8_lossy(name).into_owned()),
            }
        }
        let end_point = match (security, credentials.channel_binding) {
            (Security::Tls { end_point: Some(hash), .. }, ChannelBinding::Prefer | ChannelBinding::Require) => {
                Some(hash)
            }
            _ => None,
        };
        let (mechanism, binding, bound) = match end_point {
            Some(hash) if plus => {
                (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.clone()), true)
            }
            _ if credentials.channel_binding == ChannelBinding::Require => return Err(binding_refusal()),
            _ if !plain => {
                let names = names.join(", ");
                return Err(PgError::auth(
                    format!("the server offers no SCRAM-SHA-256, but {names}"),
                    "Seawall logs in with SCRAM, md5, a password under TLS, or a client certificate.",
                ));
            }
            // We could, and the server did not offer: saying so lets it notice that somebody took its offer away.
            Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested(), false),
            None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported(), false),
        };
        let exchange = sasl::ScramSha256::new(password(credentials)?.0.as_bytes(), binding);
        connection.write(|out| frontend::sasl_initial_response(mechanism, exchange.message(), out))?;
        Ok(Scram { exchange, bound, server_proved: false })
    }
}

/// The server says that we are in: has it kept to what was asked of it?
fn check_admission(scram: Option<&Scram>, credentials: &Credentials<'_>) -> Result<(), PgError> {
    match scram {
        Some(scram) if !scram.server_proved => Err(PgError::auth(
            "the server broke off SCRAM before it proved that it knows the password",
            "Is this really the server? Somebody may be in between.",
        )),
        Some(scram) if scram.bound => Ok(()),
        _ => refuse_without_binding(credentials),
    }
}

fn refuse_without_binding(credentials: &Credentials<'_>) -> Result<(), PgError> {
    match credentials.channel_binding {
        ChannelBinding::Require => Err(binding_refusal()),
        ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
    }
}

fn binding_refusal() -> PgError {
    PgError::auth(
        "channel_binding=require, and the server does not log us in with SCRAM tied to TLS",
        "Is TLS on (sslmode=require or more), and is the method in pg_hba.conf scram-sha-256?",
    )
}

fn password<'a>(credentials: &Credentials<'a>) -> Result<&'a Password, PgError> {
    let hint = "Put it into PGPASSWORD, ~/.pgpass or the connection string.";
    credentials.password.filter(|password| !password.0.is_empty()).ok_or_else(|| match credentials.passfile_problem {
        Some(problem) => PgError::auth(format!("the server asks for a password, there is none, and {problem}"), hint),
        None => PgError::auth("the server asks for a password, and there is none", hint),
    })
}

fn bad_scram(error: std::io::Error) -> PgError {
    PgError::auth(
        format!("SCRAM failed: {error}"),
        "The server could not show that it knows the password: is this really the server?",
    )
}

fn unsupported(request: u32) -> PgError {
    let method = match request {
        2 => "Kerberos".to_owned(),
        7 | 8 => "GSSAPI".to_owned(),
        9 => "SSPI".to_owned(),
        other => format!("method {other}"),
    };
    PgError::auth(
        format!("the server asks for {method}, which is not supported"),
        "Seawall logs in with SCRAM, md5, a password under TLS, or a client certificate: change the line in pg_hba.conf.",
    )
}

/// A message that has no place where it came.
pub(super) fn unexpected(during: &str, message: &Message) -> PgError {
    let name = match message {
        Message::Authentication(..) => "Authentication",
        Message::ParameterStatus(..) => "ParameterStatus",
        Message::Notice(_) => "NoticeResponse",
        Message::Error(_) => "ErrorResponse",
        Message::RowDescription(_) => "RowDescription",
        Message::DataRow(_) => "DataRow",
        Message::CommandComplete(_) => "CommandComplete",
        Message::CopyBoth => "CopyBothResponse",
        Message::CopyIn => "CopyInResponse",
        Message::CopyOut => "CopyOutResponse",
        Message::CopyData(_) => "CopyData",
        Message::CopyDone => "CopyDone",
        Message::ReadyForQuery => "ReadyForQuery",
        Message::BackendKeyData(_) => "BackendKeyData",
        Message::Other => "another message",
    };
    PgError::protocol(format!("{name} during {during}"))
}
