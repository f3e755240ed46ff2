//! A scripted walsender: a TCP server that plays one dialogue, frame by frame, and holds the client to its part.
//!
//! A script is a list of [`Step`]s; a `Walsender` plays one script per connection, in order, and [`Walsender::finish`]
//! fails the test with the first thing that went otherwise. Plain threads and blocking sockets: a test that pauses tokio's
//! clock is not disturbed. The bytes that a server says are built by [`say`].

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use seawall::wal::Lsn;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// No step waits longer: a test that goes wrong ends.
const PATIENCE: Duration = Duration::from_secs(20);

pub enum Step {
    /// The client's startup message has these parameters, among others.
    Startup(Vec<(&'static str, &'static str)>),
    /// The client sends exactly these bytes.
    Expect(Vec<u8>),
    /// The client sends one message, whichever.
    Anything,
    /// The client asks exactly this.
    Query(&'static str),
    /// The client sends a status message with these positions; its time is not looked at.
    Status { written: Lsn, flushed: Lsn, applied: Lsn, reply_requested: bool },
    /// The client sends status messages, the last of which reports this flush position or a later one.
    StatusReaching(Lsn),
    /// The server says this.
    Send(Vec<u8>),
    /// The server says this, so many bytes at a time.
    SendInPieces(Vec<u8>, usize),
    /// The server takes its time.
    Pause(Duration),
    /// TLS begins.
    Tls(Arc<ServerConfig>),
    /// The client logs in with SCRAM-SHA-256; with a certificate hash, with SCRAM-SHA-256-PLUS.
    Scram { password: &'static str, end_point: Option<Vec<u8>>, forged: bool },
    /// The client closes the connection.
    ClientCloses,
}

pub struct Walsender {
    port: u16,
    thread: JoinHandle<Result<(), String>>,
}

impl Walsender {
    /// Plays one script to one connection.
    pub fn script(steps: Vec<Step>) -> Walsender {
        Walsender::scripts(vec![steps])
    }

    /// Plays one script to each connection, one connection after the other.
    pub fn scripts(scripts: Vec<Vec<Step>>) -> Walsender {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // On Linux this bounds accept, too.
        socket2::SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            for (number, steps) in scripts.into_iter().enumerate() {
                let (socket, _) =
                    listener.accept().map_err(|error| format!("connection {number} never came: {error}"))?;
                play(socket, steps).map_err(|problem| format!("connection {number}, {problem}"))?;
            }
            Ok(())
        });
        Walsender { port, thread }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection string for it; the user is `tester`, without TLS.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=tester sslmode=disable passfile=/dev/null", self.port)
    }

    /// Waits for the end of the scripts.
    ///
    /// # Panics
    /// If the client did not keep to its part.
    pub fn finish(self) {
        match self.thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => panic!("the walsender's script was not followed: {problem}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

fn play(socket: TcpStream, steps: Vec<Step>) -> Result<(), String> {
    socket.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    socket.set_write_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut wire: Box<dyn Wire> = Box::new(socket.try_clone().map_err(|error| error.to_string())?);
    for (number, step) in steps.into_iter().enumerate() {
        let at = |problem: String| format!("step {number}: {problem}");
        match step {
            Step::Tls(config) => {
                let session = ServerConnection::new(config).map_err(|error| at(error.to_string()))?;
                let socket = socket.try_clone().map_err(|error| at(error.to_string()))?;
                let mut stream = StreamOwned::new(session, socket);
                while stream.conn.is_handshaking() {
                    stream.conn.complete_io(&mut stream.sock).map_err(|error| at(format!("handshake: {error}")))?;
                }
                wire = Box::new(stream);
            }
            step => play_step(&mut *wire, step).map_err(at)?,
        }
    }
    Ok(())
}

fn play_step(wire: &mut dyn Wire, step: Step) -> Result<(), String> {
    match step {
        Step::Startup(expected) => {
            let length = u32::from_be_bytes(read(wire, 4)?.try_into().unwrap()) as usize;
            let body = read(wire, length - 4)?;
            let text = String::from_utf8_lossy(&body[4..]).into_owned();
            let words: Vec<&str> = text.split('\0').collect();
            for (name, value) in expected {
                if !words.chunks(2).any(|pair| pair == [name, value]) {
                    return Err(format!("the startup message has no {name}={value:?}, but {words:?}"));
                }
            }
            Ok(())
        }
        Step::Expect(expected) => {
            let got = read(wire, expected.len())?;
            same("the client sent", &got, &expected)
        }
        Step::Anything => read_message(wire).map(|_| ()),
        Step::Query(expected) => {
            let (tag, body) = read_message(wire)?;
            same("the client sent", &[&[tag], &body[..]].concat(), &[b"Q", expected.as_bytes(), b"\0"].concat())
        }
        Step::Status { written, flushed, applied, reply_requested } => {
            let status = read_status(wire)?;
            let expected = (written, flushed, applied, reply_requested);
            if status == expected { Ok(()) } else { Err(format!("status {status:?} instead of {expected:?}")) }
        }
        Step::StatusReaching(lsn) => loop {
            if read_status(wire)?.1 >= lsn {
                return Ok(());
            }
        },
        Step::Send(bytes) => wire.write_all(&bytes).and_then(|()| wire.flush()).map_err(|error| error.to_string()),
        Step::SendInPieces(bytes, size) => {
            for piece in bytes.chunks(size) {
                wire.write_all(piece).and_then(|()| wire.flush()).map_err(|error| error.to_string())?;
            }
            Ok(())
        }
        Step::Pause(time) => {
            std::thread::sleep(time);
            Ok(())
        }
        Step::Scram { password, end_point, forged } => scram(wire, password, end_point.as_deref(), forged),
        Step::ClientCloses => {
            let mut rest = Vec::new();
            match wire.read_to_end(&mut rest) {
                Ok(_) if rest.is_empty() || rest == [b'X', 0, 0, 0, 4] => Ok(()),
                Ok(_) => Err(format!("the client sent {rest:?} instead of closing")),
                // A client that closes with bytes unread resets the connection.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
                // TLS: the client did not say that it closes.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
                Err(error) => Err(format!("the client does not close: {error}")),
            }
        }
        Step::Tls(_) => unreachable!("played by the caller"),
    }
}

fn read(wire: &mut dyn Wire, length: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; length];
    wire.read_exact(&mut bytes).map_err(|error| format!("the client sent nothing more: {error}"))?;
    Ok(bytes)
}

fn read_message(wire: &mut dyn Wire) -> Result<(u8, Vec<u8>), String> {
    let header = read(wire, 5)?;
    let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
    Ok((header[0], read(wire, length - 4)?))
}

fn read_status(wire: &mut dyn Wire) -> Result<(Lsn, Lsn, Lsn, bool), String> {
    let (tag, body) = read_message(wire)?;
    if tag != b'd' || body.len() != 34 || body[0] != b'r' {
        return Err(format!("no status message but {:?} {body:?}", char::from(tag)));
    }
    let lsn = |at: usize| Lsn(u64::from_be_bytes(body[at..at + 8].try_into().unwrap()));
    Ok((lsn(1), lsn(9), lsn(17), body[33] != 0))
}

fn same(what: &str, got: &[u8], expected: &[u8]) -> Result<(), String> {
    let show = |bytes: &[u8]| bytes.escape_ascii().to_string();
    if got == expected { Ok(()) } else { Err(format!("{what} {:?} instead of {:?}", show(got), show(expected))) }
}

/// The server's half of SCRAM-SHA-256 (RFC 5802, RFC 7677), for a password that SASLprep leaves alone. With `forged` the
/// server's proof is wrong.
fn scram(wire: &mut dyn Wire, password: &str, end_point: Option<&[u8]>, forged: bool) -> Result<(), String> {
    let mechanisms: &[u8] =
        if end_point.is_some() { b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0" } else { b"SCRAM-SHA-256\0\0" };
    wire.write_all(&say::authentication(10, mechanisms)).map_err(|error| error.to_string())?;
    wire.flush().map_err(|error| error.to_string())?;

    let (_, first) = read_message(wire)?;
    let name_end = first.iter().position(|&byte| byte == 0).ok_or("no mechanism")?;
    let mechanism = String::from_utf8_lossy(&first[..name_end]).into_owned();
    let message = String::from_utf8_lossy(&first[name_end + 5..]).into_owned();
    let (expected_mechanism, gs2) = match end_point {
        Some(_) => ("SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,"),
        None => ("SCRAM-SHA-256", "n,,"),
    };
    if mechanism != expected_mechanism {
        return Err(format!("the client chose {mechanism} instead of {expected_mechanism}"));
    }
    // Over TLS without an offer of PLUS the client says "y": that it could have.
    let gs2 = if end_point.is_none() && message.starts_with("y,,") { "y,," } else { gs2 };
    let client_first = message.strip_prefix(gs2).ok_or_else(|| format!("{message:?} does not begin with {gs2:?}"))?;
    let client_nonce = client_first.strip_prefix("n=,r=").ok_or("no nonce")?;

    let (salt, iterations) = (b"salt of the sea!", 4096u32);
    let server_first = format!("r={client_nonce}server,s={},i={iterations}", BASE64.encode(salt));
    wire.write_all(&say::authentication(11, server_first.as_bytes())).map_err(|error| error.to_string())?;
    wire.flush().map_err(|error| error.to_string())?;

    let (_, last) = read_message(wire)?;
    let client_final = String::from_utf8_lossy(&last).into_owned();
    let (without_proof, proof) = client_final.rsplit_once(",p=").ok_or("no proof")?;
    let binding = [gs2.as_bytes(), end_point.unwrap_or_default()].concat();
    let expected = format!("c={},r={client_nonce}server", BASE64.encode(binding));
    if without_proof != expected {
        return Err(format!("the client sent {without_proof:?} instead of {expected:?}"));
    }
    let auth_message = format!("{client_first},{server_first},{without_proof}");
    let salted = hi(password.as_bytes(), salt, iterations);
    let client_key = hmac(&salted, b"Client Key");
    let signature = hmac(&Sha256::digest(client_key), auth_message.as_bytes());
    let expected_proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
    if BASE64.decode(proof).ok() != Some(expected_proof) {
        let refusal = say::error("FATAL", "28P01", "password authentication failed for user \"tester\"");
        return wire.write_all(&refusal).and_then(|()| wire.flush()).map_err(|error| error.to_string());
    }
    let mut server_signature = hmac(&hmac(&salted, b"Server Key"), auth_message.as_bytes());
    server_signature[0] ^= u8::from(forged);
    let server_final = format!("v={}", BASE64.encode(server_signature));
    let answer = say::authentication(12, server_final.as_bytes());
    wire.write_all(&answer).and_then(|()| wire.flush()).map_err(|error| error.to_string())
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |byte: u8| block.map(|key| key ^ byte);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5C)).chain_update(inner).finalize().into()
}

fn hi(password: &[u8], salt: &[u8], iterations: u32) -> [u8; 32] {
    let mut last = hmac(password, &[salt, &[0, 0, 0, 1]].concat());
    let mut sum = last;
    for _ in 1..iterations {
        last = hmac(password, &last);
        sum.iter_mut().zip(last).for_each(|(sum, byte)| *sum ^= byte);
    }
    sum
}

/// What a server says, as bytes.
pub mod say {
    use seawall::wal::Lsn;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
    }

    pub fn authentication(request: u32, rest: &[u8]) -> Vec<u8> {
        frame(b'R', &[&request.to_be_bytes(), rest].concat())
    }

    pub fn parameter(name: &str, value: &str) -> Vec<u8> {
        frame(b'S', format!("{name}\0{value}\0").as_bytes())
    }

    pub fn ready() -> Vec<u8> {
        frame(b'Z', b"I")
    }

    /// What follows a login: the version, some parameters, the key for cancelling.
    pub fn settle(version: &str) -> Vec<u8> {
        settle_as(version, 0)
    }

    /// The same, by a process with this number.
    fn settle_as(version: &str, process: u32) -> Vec<u8> {
        let standby = parameter("in_hot_standby", "off");
        let read_only = parameter("default_transaction_read_only", "off");
        let states = if version.starts_with("13") { Vec::new() } else { [standby, read_only].concat() };
        [parameter("server_version", version), states, frame(b'K', &(u64::from(process) << 32).to_be_bytes()), ready()]
            .concat()
    }

    /// A login without a question, and what follows it, by a process with this number.
    pub fn welcome_by(version: &str, process: u32) -> Vec<u8> {
        [authentication(0, &[]), settle_as(version, process)].concat()
    }

    /// A login without a question, and what follows it.
    pub fn welcome(version: &str) -> Vec<u8> {
        [authentication(0, &[]), settle(version)].concat()
    }

    fn fields(severity: &str, sqlstate: &str, message: &str) -> Vec<u8> {
        format!("S{severity}\0V{severity}\0C{sqlstate}\0M{message}\0\0").into_bytes()
    }

    pub fn error(severity: &str, sqlstate: &str, message: &str) -> Vec<u8> {
        frame(b'E', &fields(severity, sqlstate, message))
    }

    pub fn notice(severity: &str, sqlstate: &str, message: &str) -> Vec<u8> {
        frame(b'N', &fields(severity, sqlstate, message))
    }

    pub fn row_description(columns: &[&str]) -> Vec<u8> {
        let mut body = (columns.len() as u16).to_be_bytes().to_vec();
        for column in columns {
            body.extend_from_slice(column.as_bytes());
            body.extend_from_slice(&[0; 19]);
        }
        frame(b'T', &body)
    }

    pub fn data_row(values: &[Option<&str>]) -> Vec<u8> {
        let mut body = (values.len() as u16).to_be_bytes().to_vec();
        for value in values {
            match value {
                Some(text) => {
                    body.extend_from_slice(&(text.len() as u32).to_be_bytes());
                    body.extend_from_slice(text.as_bytes());
                }
                None => body.extend_from_slice(&u32::MAX.to_be_bytes()),
            }
        }
        frame(b'D', &body)
    }

    pub fn complete(tag: &str) -> Vec<u8> {
        frame(b'C', format!("{tag}\0").as_bytes())
    }

    /// A result set with one row, without the ReadyForQuery behind it.
    pub fn result(columns: &[&str], values: &[Option<&str>]) -> Vec<u8> {
        [row_description(columns), data_row(values), complete("SELECT")].concat()
    }

    /// The whole answer to `IDENTIFY_SYSTEM`.
    pub fn identity(system_identifier: u64, timeline: u32, flush_lsn: Lsn) -> Vec<u8> {
        let values = [system_identifier.to_string(), timeline.to_string(), flush_lsn.to_string()];
        let values = [Some(&*values[0]), Some(&*values[1]), Some(&*values[2]), None];
        [result(&["systemid", "timeline", "xlogpos", "dbname"], &values), ready()].concat()
    }

    pub fn copy_both() -> Vec<u8> {
        frame(b'W', &[0, 0, 0])
    }

    pub fn copy_in() -> Vec<u8> {
        frame(b'G', &[0, 0, 0])
    }

    pub fn copy_out() -> Vec<u8> {
        frame(b'H', &[0, 0, 0])
    }

    pub fn copy_data(body: &[u8]) -> Vec<u8> {
        frame(b'd', body)
    }

    pub fn copy_done() -> Vec<u8> {
        frame(b'c', &[])
    }

    pub fn wal(start: Lsn, server_end: Lsn, server_time_micros: i64, bytes: &[u8]) -> Vec<u8> {
        let numbers = [start.0.to_be_bytes(), server_end.0.to_be_bytes(), server_time_micros.to_be_bytes()];
        copy_data(&[b"w", numbers.as_flattened(), bytes].concat())
    }

    pub fn keepalive(server_end: Lsn, server_time_micros: i64, reply_requested: bool) -> Vec<u8> {
        let numbers = [server_end.0.to_be_bytes(), server_time_micros.to_be_bytes()];
        copy_data(&[b"k", numbers.as_flattened(), &[reply_requested.into()]].concat())
    }
}
