//! One connection to a throwaway server, for plain SQL. May use `error` and `runtime`.

use crate::error::{Error, Kind, Result};
use crate::runtime;
use std::path::Path;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

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

    /// Runs one or several statements and gives the rows of all, each value as PostgreSQL writes it. Several statements
    /// are one transaction. If dropped, the statement goes on in the server until the session is dropped too.
    ///
    /// # Errors
    /// [`Kind::Postgres`] with the server's message, or if the connection broke.
    pub async fn sql(&self, statements: &str) -> Result<Vec<Vec<Option<String>>>> {
        let answers = self.0.simple_query(statements).await.map_err(|error| {
            let start: String = statements.chars().take(200).collect();
            Error::new(Kind::Postgres, format!("the scratch server did not run `{start}`")).because(error)
        })?;
        let rows = answers.iter().filter_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }
}
