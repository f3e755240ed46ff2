//! One connection to a throwaway server, for plain SQL. May use `error` and `runtime`.

use crate::error::{Error, Kind, Result};
use crate::runtime;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use std::path::Path;
use std::pin::pin;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// The values of a row, as PostgreSQL writes them.
pub(super) type Row = Vec<Option<String>>;

/// An open connection; closed when dropped.
pub struct Session(Client);

impl Session {
    /// Connects as `user` through the socket in `sockets`.
    pub(super) async fn open(
        sockets: &Path,
        port: u16,
        user: &str,
        database: &str,
    ) -> Result<Session, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(sockets).port(port).user(user).dbname(database).application_name("seawall scratch");
        let (client, connection) = config.connect(NoTls).await?;
        // Ends by itself with the client, and then says good-bye to the server; what breaks it is seen by the client.
        drop(runtime::spawn(connection));
        Ok(Session(client))
    }

    /// Lifts what ends statements or forbids to write: what a database or role sets for itself beats the server's settings. The
    /// `search_path` stays, for a query may count on it.
    ///
    /// # Errors
    /// As [`Session::sql`].
    pub async fn lift_limits(&self) -> Result<()> {
        let lifted = "SET statement_timeout = 0; SET lock_timeout = 0; SET default_transaction_read_only = off; \
             SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings \
             WHERE name IN ('transaction_timeout', 'idle_session_timeout')";
        self.sql(lifted).await.map(|_| ())
    }

    /// Runs one or several statements and gives the rows of all, each value as PostgreSQL writes it. Several statements
    /// are one transaction. If dropped, the statement goes on in the server until the session is dropped too.
    ///
    /// # Errors
    /// [`Kind::Postgres`] with the server's message, or if the connection broke.
    pub async fn sql(&self, statements: &str) -> Result<Vec<Row>> {
        let answers = self.0.simple_query(statements).await.map_err(|error| refused(statements, error))?;
        Ok(answers.iter().filter_map(values).collect())
    }

    /// As [`Session::sql`], with no more than the first rows: where there are more, the statement is cancelled.
    ///
    /// # Errors
    /// As [`Session::sql`].
    pub async fn first_rows(&self, statements: &str, limit: usize) -> Result<Vec<Row>> {
        let answers = self.0.simple_query_raw(statements).await.map_err(|error| refused(statements, error))?;
        let (mut answers, mut rows) = (pin!(answers), Vec::new());
        while let Some(answer) = answers.try_next().await.map_err(|error| refused(statements, error))? {
            rows.extend(values(&answer));
            if rows.len() >= limit {
                // It may have ended meanwhile; what it still sends is passed over.
                let _ = self.0.cancel_token().cancel_query(NoTls).await;
                break;
            }
        }
        Ok(rows)
    }

    /// Runs a `COPY … TO STDOUT` and gives what comes, a row in each piece, the header in one of its own. If the stream is
    /// dropped, the statement goes on in the server until the session is dropped too.
    ///
    /// # Errors
    /// [`Kind::Postgres`] with the server's message, at once or in the stream.
    pub async fn copy_out(&self, copy: &str) -> Result<impl Stream<Item = Result<Bytes>> + Send + use<>> {
        let failed = |error| Error::new(Kind::Postgres, "the scratch server did not hand out the rows").because(error);
        let rows = self.0.copy_out(copy).await.map_err(failed)?;
        // Asked once more behind its end, it takes the server's next message for an error.
        Ok(rows.map_err(failed).fuse())
    }
}

/// The values of a row; `None` for anything else that a server answers.
fn values(answer: &SimpleQueryMessage) -> Option<Row> {
    match answer {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
        _ => None,
    }
}

fn refused(statements: &str, error: tokio_postgres::Error) -> Error {
    let start: String = statements.chars().take(200).collect();
    Error::new(Kind::Postgres, format!("the scratch server did not run `{start}`")).because(error)
}
