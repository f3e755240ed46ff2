//! What connection strings and variables mean together.

use super::*;

fn no_env(_: &str) -> Option<String> {
    None
}

fn parse(text: &str) -> ConnInfo {
    ConnInfo::parse(text, &no_env).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> Error {
    let error = ConnInfo::parse(text, &no_env).expect_err(text);
    assert_eq!(error.kind(), Kind::Config, "{text}");
    error
}

fn tcp(host: &str, port: u16) -> Host {
    Host { place: Place::Tcp { host: host.to_owned(), address: None }, port }
}

#[test]
fn nothing_given_means_what_libpq_means() {
    let info = parse("");
    assert_eq!(info.hosts, [Host { place: Place::Unix(None), port: 5432 }]);
    assert_eq!(info.user, name_of_this_user().unwrap());
    assert_eq!(info.dbname, info.user);
    assert_eq!(info.application_name(), "seawall");
    assert_eq!(info.ssl_mode(), SslMode::Prefer);
    assert_eq!(info.channel_binding, ChannelBinding::Prefer);
    assert!(info.passfile.is_some_and(|path| path.ends_with(".pgpass")));
}

#[test]
fn the_string_beats_the_variable_and_the_variable_the_default() {
    let env = |name: &str| {
        let value = match name {
            "PGHOST" => "from-env",
            "PGPORT" => "6000",
            "PGUSER" => "env-user",
            "PGPASSWORD" => "env-secret",
            "PGAPPNAME" => "env-app",
            "PGSSLMODE" => "require",
            "PGPASSFILE" => "/etc/pass",
            "HOME" => "/home/somebody",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let info = ConnInfo::parse("host=explicit user=me", &env).unwrap();
    assert_eq!(info.hosts, [tcp("explicit", 6000)]);
    assert_eq!((info.user(), info.application_name()), ("me", "env-app"));
    assert_eq!(info.ssl_mode(), SslMode::Require);
    assert_eq!(info.passfile.as_deref(), Some(Path::new("/etc/pass")));
    assert_eq!(info.tls.roots, RootCertificates::Default(Some("/home/somebody/.postgresql/root.crt".into())));
    let password = info.password.as_ref().map(Secret::source);
    assert!(password == Some(&Source::Given("env-secret".to_owned())));
    assert!(!format!("{info:?}").contains("env-secret"), "Debug shows the password");
    assert_eq!(info.describe(), "me@explicit:6000");
}

#[test]
fn hosts_and_ports_are_counted_as_libpq_counts_them() {
    assert_eq!(parse("host=a,b port=1").hosts, [tcp("a", 1), tcp("b", 1)]);
    assert_eq!(parse("host=a,b,c port=1,,3").hosts, [tcp("a", 1), tcp("b", 5432), tcp("c", 3)]);
    assert_eq!(parse("postgresql://a:1,[::1]:2/x").describe().split('@').nth(1), Some("a:1,[::1]:2"));
    assert_eq!(parse("host=/run/pg port=7").hosts, [Host { place: Place::Unix(Some("/run/pg".into())), port: 7 }]);
    let both = parse("host=name hostaddr=10.0.0.1");
    assert_eq!(both.hosts[0].place, Place::Tcp { host: "name".into(), address: "10.0.0.1".parse().ok() });
    for text in ["host=a,b,c port=1,2", "host=a,b hostaddr=10.0.0.1", "hostaddr=name", "port=0", "port=65536", "port=x"]
    {
        refusal(text);
    }
}

#[test]
fn an_unknown_keyword_is_answered_with_the_nearest() {
    let error = refusal("host=a sslmod=require");
    assert!(error.to_string().contains("sslmod"), "{error}");
    assert_eq!(error.hint_text(), Some("Did you mean \"sslmode\"?"));
    // A password with a space and an equals sign: what follows the space looks like a keyword.
    let error = refusal("password=my s3cretpart=x");
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
}

#[test]
fn what_would_be_passed_over_silently_is_refused() {
    assert!(refusal("service=prod").to_string().contains("service"));
    refusal("host=a require_auth=scram-sha-256");
    refusal("host=a load_balance_hosts=random");
    refusal("gssencmode=require");
    let env = |name: &str| (name == "PGSERVICE").then(|| "prod".to_owned());
    assert!(ConnInfo::parse("", &env).unwrap_err().to_string().contains("PGSERVICE"));
    parse("gssencmode=disable client_encoding=UTF8 require_auth='' replication=true load_balance_hosts=disable");
}

#[test]
fn tls_settings_that_contradict_each_other_are_refused() {
    assert_eq!(parse("sslrootcert=system").ssl_mode(), SslMode::VerifyFull);
    refusal("sslrootcert=system sslmode=require");
    refusal("sslnegotiation=direct");
    refusal("sslnegotiation=directly sslmode=require");
    refusal("ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2");
    refusal("sslmode=always");
    assert!(parse("sslnegotiation=direct sslmode=require").tls.direct);
}

#[test]
fn timeouts_have_libpq_units() {
    assert_eq!(parse("connect_timeout=3").connect_timeout, Some(Duration::from_secs(3)));
    assert_eq!(parse("connect_timeout=0").connect_timeout, None);
    assert_eq!(parse("tcp_user_timeout=1500").keep_alive.user_timeout, Some(Duration::from_millis(1500)));
    assert!(!parse("keepalives=0").keep_alive.enabled);
    refusal("connect_timeout=soon");
}

#[test]
fn programs_with_libpq_get_it_as_variables() {
    let text = "postgresql://joe:se%20cret@db:6000/shop?sslmode=require&keepalives_idle=5";
    let expected = [
        ("PGDATABASE", "shop"),
        ("PGHOST", "db"),
        ("PGPASSWORD", "se cret"),
        ("PGPORT", "6000"),
        ("PGSSLMODE", "require"),
        ("PGUSER", "joe"),
    ];
    let expected = expected.map(|(name, value)| (name, value.to_owned()));
    assert_eq!(ConnInfo::variables(text).unwrap(), expected);
    assert_eq!(ConnInfo::variables("service=x").unwrap_err().kind(), Kind::Config);
}
