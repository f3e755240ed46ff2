//! What the server sends, decoded (PostgreSQL manual, "Message Formats").
//!
//! Pure. `postgres-protocol` writes our half; its reader rejects CopyBothResponse and copies, so the server's half is
//! read here. Every length is checked: the peer may be anybody.

use super::error::{PgError, ServerMessage};
use bytes::{Buf, Bytes};

/// One message of the server.
#[derive(Debug)]
pub(super) enum Message {
    /// `R`: the kind of authentication request and what comes with it.
    Authentication(u32, Bytes),
    /// `S`: a parameter's name and value.
    ParameterStatus(String, String),
    /// `N`
    Notice(ServerMessage),
    /// `E`
    Error(ServerMessage),
    /// `T`: the columns' names.
    RowDescription(Vec<String>),
    /// `D`
    DataRow(Vec<Option<Bytes>>),
    /// `C`: the command's name and count.
    CommandComplete(String),
    /// `W`
    CopyBoth,
    /// `G`
    CopyIn,
    /// `H`
    CopyOut,
    /// `d`
    CopyData(Bytes),
    /// `c`
    CopyDone,
    /// `Z`
    ReadyForQuery,
    /// `K`: the number of the server's process.
    BackendKeyData(u32),
    /// `A`, `I`: nothing that concerns us.
    Other,
}

/// Decodes one message: its type byte and what follows the length.
pub(super) fn decode(tag: u8, mut body: Bytes) -> Result<Message, PgError> {
    let message = match tag {
        b'd' => return Ok(Message::CopyData(body)),
        b'R' => Message::Authentication(get_u32(&mut body)?, body),
        b'S' => Message::ParameterStatus(get_text(&mut body)?, get_text(&mut body)?),
        b'N' => Message::Notice(server_message(body)?),
        b'E' => Message::Error(server_message(body)?),
        b'T' => Message::RowDescription(row_description(body)?),
        b'D' => Message::DataRow(data_row(body)?),
        b'C' => Message::CommandComplete(get_text(&mut body)?),
        b'W' => Message::CopyBoth,
        b'H' => Message::CopyOut,
        b'c' => Message::CopyDone,
        b'Z' => Message::ReadyForQuery,
        b'K' => Message::BackendKeyData(get_u32(&mut body)?),
        b'A' | b'I' => Message::Other,
        b'G' => Message::CopyIn,
        b'v' => return Err(PgError::protocol("the server does not speak protocol 3.0")),
        tag => return Err(PgError::protocol(format!("a message of unknown type {:?}", char::from(tag)))),
    };
    Ok(message)
}

fn cut_short() -> PgError {
    PgError::protocol("a message is shorter than it says")
}

fn get_u32(body: &mut Bytes) -> Result<u32, PgError> {
    body.try_get_u32().map_err(|_| cut_short())
}

fn get_u16(body: &mut Bytes) -> Result<u16, PgError> {
    body.try_get_u16().map_err(|_| cut_short())
}

/// Takes the bytes up to a zero byte.
pub(super) fn get_zero_terminated(body: &mut Bytes) -> Result<Bytes, PgError> {
    let end = body.iter().position(|&byte| byte == 0).ok_or_else(cut_short)?;
    let text = body.split_to(end);
    body.advance(1);
    Ok(text)
}

/// Text for people and for comparison; what is not UTF-8 is replaced, control characters (a terminal's orders) are
/// shown.
fn get_text(body: &mut Bytes) -> Result<String, PgError> {
    let bytes = get_zero_terminated(body)?;
    let text = String::from_utf8_lossy(&bytes);
    match text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        true => Ok(text.chars().map(|c| if c.is_control() && c != '\n' { '\u{FFFD}' } else { c }).collect()),
        false => Ok(text.into_owned()),
    }
}

fn server_message(mut body: Bytes) -> Result<ServerMessage, PgError> {
    let mut message = ServerMessage::default();
    loop {
        let field = body.try_get_u8().map_err(|_| cut_short())?;
        if field == 0 {
            return Ok(message);
        }
        let text = get_text(&mut body)?;
        match field {
            b'V' => message.severity = text,
            // Translated; servers before 9.6 and poolers send nothing else.
            b'S' if message.severity.is_empty() => message.severity = text,
            b'C' => message.sqlstate = text,
            b'M' => message.message = text,
            b'D' => message.detail = Some(text),
            b'H' => message.hint = Some(text),
            _ => {}
        }
    }
}

fn row_description(mut body: Bytes) -> Result<Vec<String>, PgError> {
    /// Table, column, type, type size, modifier, format.
    const FIXED_BYTES: usize = 4 + 2 + 4 + 2 + 4 + 2;
    let count = get_u16(&mut body)?;
    let mut columns = Vec::new();
    for _ in 0..count {
        columns.push(get_text(&mut body)?);
        if body.len() < FIXED_BYTES {
            return Err(cut_short());
        }
        body.advance(FIXED_BYTES);
    }
    Ok(columns)
}

fn data_row(mut body: Bytes) -> Result<Vec<Option<Bytes>>, PgError> {
    let count = get_u16(&mut body)?;
    let mut values = Vec::new();
    for _ in 0..count {
        let length = get_u32(&mut body)?;
        values.push(match length {
            u32::MAX => None,
            length if length as usize <= body.len() => Some(body.split_to(length as usize)),
            _ => return Err(cut_short()),
        });
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_panic(tag: u8, body: Vec<u8>) {
            let _ = decode(tag, Bytes::from(body));
        }
    }

    #[test]
    fn an_error_is_read_field_by_field() {
        let body = b"SFEHLER\0VERROR\0C42601\0MSyntax\x1b[2J\0Dwhere\0Htry\0Fscan.l\0\0";
        let Ok(Message::Error(message)) = decode(b'E', Bytes::from_static(body)) else {
            panic!("the error could not be read");
        };
        assert_eq!(message.severity, "ERROR");
        assert_eq!(message.sqlstate, "42601");
        assert_eq!(message.message, "Syntax\u{FFFD}[2J", "a terminal's control character came through");
        assert_eq!((message.detail.as_deref(), message.hint.as_deref()), (Some("where"), Some("try")));
    }

    #[test]
    fn rows_have_values_and_nulls() {
        let mut description = vec![0, 2];
        for name in ["a", "b"] {
            description.extend_from_slice(name.as_bytes());
            description.extend_from_slice(&[0; 19]);
        }
        let cut = description[..description.len() - 1].to_vec();
        assert!(decode(b'T', cut.into()).is_err(), "a description that is cut short was read");
        assert!(matches!(decode(b'T', description.into()), Ok(Message::RowDescription(names)) if names == ["a", "b"]));
        let row = b"\0\x02\0\0\0\x02hi\xFF\xFF\xFF\xFF";
        let Ok(Message::DataRow(values)) = decode(b'D', Bytes::from_static(row)) else {
            panic!("the row could not be read");
        };
        assert_eq!(values, [Some(Bytes::from_static(b"hi")), None]);
        assert!(decode(b'D', Bytes::from_static(b"\0\x01\0\0\0\x09hi")).is_err());
    }
}
