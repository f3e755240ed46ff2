//! Framing under every split of the bytes, under dropped reads, and without copies.

use super::*;
use bytes::Bytes;
use futures_util::poll;
use std::pin::pin;
use std::task::Poll;
use tokio::io::DuplexStream;

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

fn connected() -> (DuplexStream, Connection) {
    let (server, client) = tokio::io::duplex(4 << 20);
    let mut connection = Connection::new(Box::new(client));
    connection.trust();
    (server, connection)
}

fn show(message: &Message) -> String {
    format!("{message:?}")
}

#[tokio::test]
async fn messages_survive_every_split_and_a_dropped_read_in_between() {
    let dialogue = [
        frame(b'S', b"in_hot_standby\0on\0"),
        frame(b'W', &[0, 0, 0]),
        frame(b'd', b"payload"),
        frame(b'S', b"in_hot_standby\0off\0"),
        frame(b'd', b""),
        frame(b'C', b"COPY 0\0"),
    ]
    .concat();
    let expected = ["CopyBoth", "CopyData(b\"payload\")", "CopyData(b\"\")", "CommandComplete(\"COPY 0\")"];
    for split in 0..=dialogue.len() {
        let (mut server, mut connection) = connected();
        let (first, second) = dialogue.split_at(split);
        server.write_all(first).await.unwrap();
        let mut got = Vec::new();
        loop {
            // A read that has to wait is dropped here, as a select! would.
            let polled = match poll!(pin!(connection.read())) {
                Poll::Ready(message) => message.unwrap(),
                Poll::Pending => break,
            };
            got.push(show(&polled));
        }
        server.write_all(second).await.unwrap();
        while got.len() < expected.len() {
            got.push(show(&connection.read().await.unwrap()));
        }
        assert_eq!(got, expected, "split at {split}");
        assert_eq!(connection.parameter("in_hot_standby"), Some("off"));
    }
}

#[tokio::test]
async fn payloads_are_slices_of_one_buffer() {
    let (mut server, mut connection) = connected();
    connection.set_streaming(true);
    let wal = frame(b'd', &vec![7; 60 << 10]);
    server.write_all(&wal.repeat(2)).await.unwrap();
    let mut payloads = Vec::<Bytes>::new();
    for _ in 0..2 {
        match connection.read().await.unwrap() {
            Message::CopyData(payload) => payloads.push(payload),
            other => panic!("{other:?}"),
        }
    }
    let distance = payloads[1].as_ptr() as usize - payloads[0].as_ptr() as usize;
    assert_eq!(distance, wal.len(), "a payload was copied");
}

#[tokio::test]
async fn a_dropped_write_is_finished_by_the_next_read() {
    let (mut server, client) = tokio::io::duplex(16);
    let mut connection = Connection::new(Box::new(client));
    connection
        .write(|out| {
            out.extend_from_slice(&[1; 40]);
            Ok(())
        })
        .unwrap();
    assert!(poll!(pin!(connection.flush())).is_pending(), "forty bytes fit into a pipe of sixteen");
    let mut got = vec![0; 40];
    let (read, message) = tokio::join!(
        async {
            server.read_exact(&mut got).await.unwrap();
            server.write_all(&frame(b'Z', b"I")).await.unwrap();
        },
        connection.read()
    );
    let () = read;
    assert!(matches!(message, Ok(Message::ReadyForQuery)));
    assert_eq!(got, [1; 40]);
}

#[tokio::test]
async fn lengths_are_bounded_more_tightly_before_the_login() {
    for (trusted, length, allowed) in [
        (false, STRANGER_MESSAGE_BYTES_MAX, true),
        (false, STRANGER_MESSAGE_BYTES_MAX + 1, false),
        (true, MESSAGE_BYTES_MAX, true),
        (true, MESSAGE_BYTES_MAX + 1, false),
        (true, 3, false),
    ] {
        let (mut server, client) = tokio::io::duplex(64);
        let mut connection = Connection::new(Box::new(client));
        if trusted {
            connection.trust();
        }
        server.write_all(&[b"d", &(length as u32).to_be_bytes()[..]].concat()).await.unwrap();
        drop(server);
        let error = connection.read().await.unwrap_err();
        match allowed {
            true => assert!(matches!(error, PgError::Closed), "{length}: {error}"),
            false => assert!(matches!(error, PgError::Protocol(_)), "{length}: {error}"),
        }
    }
}
