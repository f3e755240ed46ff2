//! Our own store on the test S3 server. Include `support/s3/mod.rs` as `s3` beside it.
#![allow(dead_code, reason = "each includer uses a part")]

use crate::s3::S3Server;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use seawall::store::{NoObserver, S3Options, Store, StoreOptions, open};
use std::sync::Arc;

/// Where the tests keep their objects: below a prefix, as most people do.
pub fn url() -> String {
    format!("s3://{}/repo", S3Server::BUCKET)
}

pub fn credentials(access_key: &str, secret_key: &str) -> SharedCredentialsProvider {
    SharedCredentialsProvider::new(Credentials::new(access_key, secret_key, None, None, "test"))
}

/// Options that reach `server`, whatever the environment says.
pub fn options(server: &S3Server) -> StoreOptions {
    options_at(server.endpoint())
}

/// As [`options`], for a server in another process.
pub fn options_at(endpoint: String) -> StoreOptions {
    let s3 = S3Options {
        region: Some(S3Server::REGION.into()),
        endpoint: Some(endpoint),
        credentials: Some(credentials(S3Server::ACCESS_KEY, S3Server::SECRET_KEY)),
        ..S3Options::default()
    };
    StoreOptions { s3, ..StoreOptions::default() }
}

/// The store at [`url`] on the server that `options` name.
pub async fn store(options: StoreOptions) -> Arc<dyn Store> {
    open(&url(), &options, Arc::new(NoObserver)).await.expect("options of a test")
}
