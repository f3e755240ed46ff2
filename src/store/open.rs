//! From a URL to a store with everything around it. Uses aws-config for what the environment and `~/.aws` say.

use super::s3::{FromSecrets, Renewing};
use super::{DiskThreads, FileStore, ObservedStore, RetryingStore, S3Options, S3Store, Store, StoreObserver};
use crate::error::{Error, Kind};
use crate::runtime::RetryPolicy;
use crate::secret::{Secret, Source};
use aws_config::meta::region::RegionProviderChain;
use aws_config::{AppName, BehaviorVersion, Region};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::config::{
    Builder, IdentityCache, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// What can be set about a store beside its URL.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// For `s3://`.
    pub s3: S3Options,
    /// How long one operation is tried again.
    pub retry: RetryPolicy,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions { s3: S3Options::default(), retry: RetryPolicy::STORE }
    }
}

/// Time for a connection to an S3 server, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The region of a server that has none: what S3 itself takes an unnamed region for.
const REGION_OF_OTHERS: &str = "us-east-1";

/// Opens one store, as [`Opener::open`] does.
///
/// # Errors
/// As that.
pub async fn open(
    url: &str,
    options: &StoreOptions,
    observer: Arc<dyn StoreObserver>,
) -> Result<Arc<dyn Store>, Error> {
    Opener::default().open(url, options, observer).await
}

/// Opens stores. Those that reach the same servers in the same way share connections and credentials; a request of one never waits
/// for one of another. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub struct Opener {
    clients: Arc<Mutex<HashMap<Way, (aws_sdk_s3::Client, Renewing)>>>,
    threads: Option<DiskThreads>,
}

/// How S3 servers are reached.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Way {
    region: Region,
    endpoint: Option<String>,
    path_style: bool,
    /// As whom, unless the usual chain says it: where the two halves of the key are.
    keys: Option<(Source, Source)>,
}

impl Opener {
    /// For one of several users: shares connections and credentials with this one, and has threads of its own for directories, so that
    /// others do not wait for a file system that hangs.
    #[must_use]
    pub fn for_one_of_several(&self) -> Opener {
        Opener { clients: self.clients.clone(), threads: Some(DiskThreads::default()) }
    }

    /// Opens `s3://bucket/prefix` or `file:///path`: retried, and observed attempt by attempt. Does not ask the store
    /// anything yet, but may ask the machine's metadata service for a region.
    ///
    /// # Errors
    /// Of kind `Config`, if the URL or the options cannot be meant.
    pub async fn open(
        &self,
        url: &str,
        options: &StoreOptions,
        observer: Arc<dyn StoreObserver>,
    ) -> Result<Arc<dyn Store>, Error> {
        let store: Arc<dyn Store> = match Location::parse(url)? {
            Location::File(root) => Arc::new(self.directory(root)),
            Location::S3 { bucket, prefix } => {
                let (client, credentials) = self.client(&options.s3).await?;
                credentials.tell(&observer);
                Arc::new(S3Store::new(client, credentials, bucket, prefix, options.s3.clone()))
            }
        };
        let observed = Arc::new(ObservedStore::new(store, observer.clone()));
        Ok(Arc::new(RetryingStore::new(observed, options.retry).observed_by(observer)))
    }

    /// Has all credentials asked for again, and waits for nobody: somebody may have changed them. Those in use are used until then.
    pub async fn renew(&self) {
        self.clients.lock().await.values().for_each(|(_, credentials)| credentials.renew());
    }

    /// With threads that those share which were opened here, and nothing else: each makes durable what an earlier life left.
    pub(super) fn directory(&self, root: PathBuf) -> FileStore {
        FileStore::new(root).with_threads(self.threads.clone())
    }

    async fn client(&self, options: &S3Options) -> Result<(aws_sdk_s3::Client, Renewing), Error> {
        let way = Way::of(options).await?;
        if options.credentials.is_some() {
            return connect(way, options).await;
        }
        // Making one asks nobody for anything.
        let mut known = self.clients.lock().await;
        if let Some(known) = known.get(&way) {
            return Ok(known.clone());
        }
        let made = connect(way.clone(), options).await?;
        known.insert(way, made.clone());
        Ok(made)
    }
}

/// The one name of what a repository's URL means with these options and variables: two of one place have the same, and what lies within
/// has one that begins with it. Ends in `/`.
///
/// # Errors
/// As [`Opener::open`].
pub fn place_of(url: &str, options: &S3Options, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, Error> {
    Ok(match Location::parse(url)? {
        Location::File(root) => format!("file://{}/", root.display().to_string().trim_end_matches('/')),
        Location::S3 { bucket, prefix } => {
            let server = endpoint_of(options, variable).map(|endpoint| server_of(&endpoint)).unwrap_or_default();
            format!("s3://{server}/{bucket}/{prefix}")
        }
    })
}

/// The server that is to be used instead of Amazon's.
fn endpoint_of(options: &S3Options, variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let named = || ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].iter().filter_map(|name| variable(name));
    options.endpoint.clone().or_else(|| named().find(|value| !value.is_empty()))
}

/// One name for one server, however its address is written. Amazon's are one: a bucket's name is there once, whichever of them is asked.
fn server_of(endpoint: &str) -> String {
    if is_amazon(endpoint) {
        return String::new();
    }
    let endpoint = endpoint.trim_end_matches('/').to_ascii_lowercase();
    match endpoint.split_once("://") {
        Some(("https", server)) => server.trim_end_matches(":443").to_owned(),
        Some(("http", server)) => server.trim_end_matches(":80").to_owned(),
        _ => endpoint,
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Location {
    File(PathBuf),
    S3 {
        bucket: String,
        /// Empty, or ends in `/`.
        prefix: String,
    },
}

impl Location {
    fn parse(url: &str) -> Result<Location, Error> {
        let refuse = |why: &str| {
            Error::new(Kind::Config, format!("cannot use the repository {:?}: {why}", without_user(url)))
                .hint("Is it s3://bucket/prefix or file:///absolute/path?")
        };
        if let Some(path) = url.strip_prefix("file://") {
            let path = percent_encoding::percent_decode_str(path)
                .decode_utf8()
                .map_err(|_| refuse("the path is not UTF-8"))?;
            let path = Path::new(path.as_ref());
            if !path.is_absolute() {
                return Err(refuse("the path does not begin with a slash"));
            }
            if path.components().any(|part| part == std::path::Component::ParentDir) {
                return Err(refuse("the path has a .. in it"));
            }
            // Rebuilt of its components, so that one directory has one name.
            return Ok(Location::File(path.components().collect()));
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(refuse(match url.split_once("://") {
                Some(_) => "there is no store of that kind",
                None => "it is no URL",
            }));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // "Bucket naming rules" in the Amazon S3 user guide; other servers allow capitals and underscores.
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if bucket.is_empty() {
            return Err(refuse("it names no bucket"));
        }
        if bucket.len() > 255 || !bucket.bytes().all(legal) {
            return Err(refuse("that is no bucket's name"));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if prefix.len() > 300 || prefix.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(refuse("that prefix is too long or has control characters"));
        }
        if prefix.contains(['?', '#']) {
            return Err(refuse("options do not go into the URL"));
        }
        if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(refuse("the prefix has an empty part, a . or a .. in it"));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Location::S3 { bucket: bucket.to_string(), prefix })
    }
}

/// A URL for a message: somebody may have put a secret before an `@`.
fn without_user(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => url.to_string(),
    }
}

impl Way {
    async fn of(options: &S3Options) -> Result<Way, Error> {
        let endpoint = endpoint_of(options, &|name| std::env::var(name).ok());
        if let Some(endpoint) = &endpoint
            && !endpoint.starts_with("http://")
            && !endpoint.starts_with("https://")
        {
            return Err(Error::new(Kind::Config, format!("the S3 endpoint {endpoint:?} is no URL"))
                .hint("Is it https://host or http://host:port?"));
        }
        let region = region_of(options, endpoint.is_some()).await.ok_or_else(|| {
            Error::new(Kind::Config, "no AWS region is set")
                .hint("Set AWS_REGION to the region of the bucket, or a region in ~/.aws/config.")
        })?;
        let path_style =
            options.path_style.unwrap_or_else(|| endpoint.as_ref().is_some_and(|endpoint| !is_amazon(endpoint)));
        let source = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.source().clone());
        let keys = source(&options.access_key_id).zip(source(&options.secret_access_key));
        Ok(Way { region, endpoint, path_style, keys })
    }
}

async fn connect(way: Way, options: &S3Options) -> Result<(aws_sdk_s3::Client, Renewing), Error> {
    let Way { region, endpoint, path_style, .. } = way;
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).region(region);
    let mut who = "the AWS chain".to_owned();
    match (&options.credentials, &options.access_key_id, &options.secret_access_key) {
        (Some(credentials), ..) => loader = loader.credentials_provider(credentials.clone()),
        (None, Some(id), Some(key)) => {
            let keys = FromSecrets { id: id.clone(), key: key.clone() };
            who = keys.to_string();
            loader = loader.credentials_provider(SharedCredentialsProvider::new(keys));
        }
        _ => {}
    }
    let shared = loader.load().await;
    let provider = shared.credentials_provider().ok_or_else(|| {
        Error::new(Kind::Config, "nobody can be asked for AWS credentials")
            .hint("Are AWS_ACCESS_KEY_ID or a profile set?")
    })?;
    let credentials = Renewing::new(provider, who);
    let mut builder = Builder::from(&shared)
        .credentials_provider(credentials.clone())
        // `Renewing` remembers them, and forgets the ones that are refused.
        .identity_cache(IdentityCache::no_cache())
        .force_path_style(path_style)
        // `RetryingStore` is the only one that tries again, and each request has a limit of its own by its size.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // `S3Store` sends and verifies its own.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    builder.set_app_name(AppName::new("seawall").ok());
    if let Some(endpoint) = endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    Ok((aws_sdk_s3::Client::from_conf(builder.build()), credentials))
}

/// The region to sign for. Servers other than Amazon's take any, so the machine's metadata service is not asked then:
/// where there is none, that takes seconds.
async fn region_of(options: &S3Options, other_server: bool) -> Option<Region> {
    if let Some(region) = &options.region {
        return Some(Region::new(region.clone()));
    }
    if !other_server {
        return RegionProviderChain::default_provider().region().await;
    }
    RegionProviderChain::first_try(aws_config::environment::region::EnvironmentVariableRegionProvider::new())
        .or_else(aws_config::profile::region::ProfileFileRegionProvider::new())
        .or_else(Region::new(REGION_OF_OTHERS))
        .region()
        .await
}

/// Amazon's own endpoints (a VPC's, FIPS, another partition) find the bucket by the host's name.
fn is_amazon(endpoint: &str) -> bool {
    let host = endpoint.split("://").nth(1).unwrap_or_default();
    let host = host.split(['/', ':']).next().unwrap_or_default().to_ascii_lowercase();
    host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::NoObserver;

    #[test]
    fn a_url_names_a_bucket_and_prefix_or_a_directory() {
        let s3 = |bucket: &str, prefix: &str| Location::S3 { bucket: bucket.into(), prefix: prefix.into() };
        let table = [
            ("s3://bucket", s3("bucket", "")),
            ("s3://bucket/", s3("bucket", "")),
            ("s3://bucket/a/b", s3("bucket", "a/b/")),
            ("s3://bucket/a/b/", s3("bucket", "a/b/")),
            ("file:///srv/backup", Location::File("/srv/backup".into())),
            ("file:///srv//backup/", Location::File("/srv/backup".into())),
            ("file:///srv/with%20space", Location::File("/srv/with space".into())),
        ];
        for (url, location) in table {
            assert_eq!(Location::parse(url).unwrap(), location, "{url}");
        }
    }

    #[test]
    fn a_place_has_one_name_and_what_is_within_begins_with_it() {
        for (url, place) in [
            ("s3://bucket", "s3:///bucket/"),
            ("s3://bucket/a/", "s3:///bucket/a/"),
            ("s3://bucket/a", "s3:///bucket/a/"),
            ("file:///srv//backup", "file:///srv/backup/"),
            ("file:///", "file:///"),
        ] {
            assert_eq!(place_of(url, &S3Options::default(), &|_| None).unwrap(), place, "{url}");
        }
    }

    #[test]
    fn a_server_has_one_name_whoever_names_it_and_however() {
        let place = |endpoint: Option<&str>, variable: Option<&str>| {
            let options = S3Options { endpoint: endpoint.map(str::to_owned), ..S3Options::default() };
            let variable = |name: &str| variable.filter(|_| name == "AWS_ENDPOINT_URL").map(str::to_owned);
            place_of("s3://b", &options, &variable).unwrap()
        };
        let minio = place(Some("https://minio.example:9000"), None);
        assert_eq!(place(Some("https://MinIO.example:9000//"), None), minio);
        assert_eq!(place(None, Some("https://minio.example:9000/")), minio);
        assert_ne!(place(Some("https://minio.example:9001"), None), minio);
        assert_eq!(place(Some("https://other.example"), Some("https://minio.example:9000")), "s3://other.example/b/");
        assert_eq!(place(Some("http://other.example:80"), None), place(Some("https://other.example:443/"), None));
        assert_eq!(place(Some("https://s3.eu-central-1.amazonaws.com"), None), place(None, None));
        // And a directory is where it is
        let options = S3Options { endpoint: Some("https://minio.example".to_owned()), ..S3Options::default() };
        assert_eq!(place_of("file:///srv", &options, &|_| None).unwrap(), "file:///srv/");
    }

    #[tokio::test]
    async fn stores_that_are_reached_in_one_way_share_their_connections() {
        let opener = Opener::default();
        let reached = async |endpoint: &str, region: &str| {
            let (endpoint, region) = (Some(endpoint.to_owned()), Some(region.to_owned()));
            opener.client(&S3Options { endpoint, region, ..S3Options::default() }).await.unwrap();
            opener.clients.lock().await.len()
        };
        assert_eq!(reached("http://127.0.0.1:1", "r").await, 1);
        assert_eq!(reached("http://127.0.0.1:1", "r").await, 1, "the same way");
        assert_eq!(reached("http://127.0.0.1:2", "r").await, 2);
        assert_eq!(reached("http://127.0.0.1:2", "s").await, 3);
    }

    #[tokio::test]
    async fn what_is_no_store_is_refused_with_a_hint() {
        let bad = [
            "",
            "bucket/prefix",
            "/srv/backup",
            "file://srv/backup",
            "file:///srv/../etc",
            "s3://",
            "s3:///prefix",
            "s3://bucket//prefix",
            "s3://bucket/a/../b",
            "s3://bucket/a?region=eu-central-1",
            "s3://bu cket/a",
            "gs://bucket/a",
            "s3://key:secret@bucket/a",
        ];
        for url in bad {
            let error = open(url, &StoreOptions::default(), Arc::new(NoObserver)).await.expect_err(url);
            assert_eq!(error.kind(), Kind::Config, "{url}: {error}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("s3://bucket/prefix")), "{url}: {error:?}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_endpoint_without_a_scheme_is_refused_with_a_hint() {
        let s3 = S3Options { endpoint: Some("minio:9000".into()), ..S3Options::default() };
        let options = StoreOptions { s3, ..StoreOptions::default() };
        let error = open("s3://bucket", &options, Arc::new(NoObserver)).await.expect_err("no scheme");
        assert_eq!(error.kind(), Kind::Config);
        assert_eq!(error.to_string(), r#"the S3 endpoint "minio:9000" is no URL"#);
    }

    #[test]
    fn only_amazons_endpoints_find_the_bucket_by_the_hosts_name() {
        assert!(is_amazon("https://bucket.vpce-1a2b.s3.eu-central-1.vpce.amazonaws.com"));
        assert!(!is_amazon("http://127.0.0.1:9000") && !is_amazon("https://minio.example/amazonaws.com"));
    }
}
