//! Connection strings as text: `keyword=value` with libpq's quoting and `postgresql://` URIs, both into pairs.
//!
//! Pure. No message repeats what may be a password: a text that cannot be read may have one anywhere.

use percent_encoding::percent_decode_str;

/// Why a connection string cannot be read, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) problem: String,
    pub(super) hint: Option<&'static str>,
}

impl Unreadable {
    fn new(problem: impl Into<String>) -> Unreadable {
        Unreadable { problem: problem.into(), hint: None }
    }

    fn hint(mut self, hint: &'static str) -> Unreadable {
        self.hint = Some(hint);
        self
    }
}

type Pairs = Vec<(String, String)>;

const QUOTING_HINT: &str = "Write keyword=value pairs; put single quotes around a value that is empty or has spaces, and a backslash \
     before a single quote or backslash in it.";
const ENCODING_HINT: &str =
    "In a URI, special characters of user and password are percent-encoded: @ is %40, : is %3A, / is %2F, % is %25.";

/// Splits a connection string of either form; keywords are not judged here.
pub(super) fn split(text: &str) -> Result<Pairs, Unreadable> {
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => split_uri(rest),
        None => split_keywords(text),
    }
}

/// Reads `keyword = value` pairs as libpq does (`fe-connect.c`, `conninfo_parse`).
fn split_keywords(text: &str) -> Result<Pairs, Unreadable> {
    let mut pairs: Pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let name_end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(name_end);
        let Some(value) = behind.trim_start().strip_prefix('=') else {
            let secret_before = pairs.iter().any(|(keyword, _)| keyword.contains("password"));
            let problem = match secret_before {
                true => "something without \"=\" follows the password".to_owned(),
                false => format!("there is no \"=\" after {name:?}"),
            };
            return Err(Unreadable::new(problem).hint(QUOTING_HINT));
        };
        let (value, behind) = take_value(value.trim_start())
            .ok_or_else(|| Unreadable::new(format!("the quoted value of {name:?} does not end")).hint(QUOTING_HINT))?;
        pairs.push((name.to_owned(), value));
        rest = behind.trim_start();
    }
    Ok(pairs)
}

/// One value and what is behind it; `None` if its quotes are not closed.
fn take_value(text: &str) -> Option<(String, &str)> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Some((value, &body[at + 1..])),
            c if !quoted && c.is_ascii_whitespace() => return Some((value, &body[at..])),
            c => value.push(c),
        }
    }
    (!quoted).then_some((value, ""))
}

/// Reads what follows `postgresql://`: `user:password@host:port,host:port/dbname?keyword=value&…`.
fn split_uri(rest: &str) -> Result<Pairs, Unreadable> {
    let mut pairs: Pairs = Vec::new();
    let (location, query) = match rest.split_once('?') {
        Some((location, query)) => (location, Some(query)),
        None => (rest, None),
    };
    let (authority, dbname) = match location.split_once('/') {
        Some((authority, dbname)) => (authority, dbname),
        None => (location, ""),
    };
    let hosts = match authority.split_once('@') {
        Some((user_info, hosts)) => {
            let (user, password) = match user_info.split_once(':') {
                Some((user, password)) => (user, password),
                None => (user_info, ""),
            };
            push_decoded(&mut pairs, "user", user)?;
            push_decoded(&mut pairs, "password", password)?;
            hosts
        }
        None => authority,
    };
    if hosts.contains('@') || dbname.contains('@') {
        return Err(Unreadable::new("there is an \"@\" where no one belongs").hint(ENCODING_HINT));
    }
    split_hosts(hosts, &mut pairs)?;
    push_decoded(&mut pairs, "dbname", dbname)?;
    for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(Unreadable::new("a parameter behind the \"?\" has no \"=\""));
        };
        match (decode(name)?.as_str(), decode(value)?) {
            ("ssl", value) if value == "true" => pairs.push(("sslmode".to_owned(), "require".to_owned())),
            (name, value) => pairs.push((name.to_owned(), value)),
        }
    }
    Ok(pairs)
}

/// Reads `host:port,[v6]:port,…` into the two comma-separated lists that the keywords have.
fn split_hosts(text: &str, pairs: &mut Pairs) -> Result<(), Unreadable> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for entry in text.split(',') {
        let (host, port) = match entry.strip_prefix('[') {
            Some(v6) => {
                let Some((address, behind)) = v6.split_once(']') else {
                    return Err(Unreadable::new("an IPv6 address lacks its closing \"]\""));
                };
                match behind.strip_prefix(':') {
                    Some(port) => (address, port),
                    None if behind.is_empty() => (address, ""),
                    None => return Err(Unreadable::new("something other than a port follows an IPv6 address")),
                }
            }
            None => entry.split_once(':').unwrap_or((entry, "")),
        };
        let port = decode(port)?;
        if !port.is_empty() && port.parse::<u16>().is_err() {
            return Err(Unreadable::new("a port is not a number from 1 to 65535").hint(ENCODING_HINT));
        }
        hosts.push(decode(host)?);
        ports.push(port);
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        pairs.push(("host".to_owned(), hosts.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port".to_owned(), ports.join(",")));
    }
    Ok(())
}

fn push_decoded(pairs: &mut Pairs, name: &str, value: &str) -> Result<(), Unreadable> {
    if !value.is_empty() {
        pairs.push((name.to_owned(), decode(value)?));
    }
    Ok(())
}

fn decode(text: &str) -> Result<String, Unreadable> {
    let bad = || Unreadable::new("a percent-encoded character is malformed").hint(ENCODING_HINT);
    let complete = text.split('%').skip(1).all(|after| {
        let mut digits = after.bytes().take(2);
        digits.len() == 2 && digits.all(|byte| byte.is_ascii_hexdigit())
    });
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| bad())?;
    match complete && !decoded.contains('\0') {
        true => Ok(decoded.into_owned()),
        false => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    fn pairs(expected: &[(&str, &str)]) -> Result<Pairs, Unreadable> {
        Ok(expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    proptest! {
        #[test]
        fn every_quoted_value_survives(values in prop::collection::vec("\\PC*", 1..5)) {
            let text: Vec<String> = values.iter().map(|value| {
                format!("key = '{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
            }).collect();
            let read = split(&text.join(" ")).map(|pairs| pairs.into_iter().map(|(_, value)| value).collect::<Vec<_>>());
            prop_assert_eq!(read, Ok(values));
        }

        #[test]
        fn every_encoded_part_of_a_uri_survives(user in "\\PC+", password in "\\PC+", dbname in "\\PC+", host in "\\PC+") {
            let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let text = format!("postgresql://{}:{}@{}:5433/{}", encoded(&user), encoded(&password), encoded(&host), encoded(&dbname));
            let expected = [("user", &*user), ("password", &password), ("host", &host), ("port", "5433"), ("dbname", &dbname)];
            prop_assert_eq!(split(&text), pairs(&expected));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = split(&text);
            let _ = split(&format!("postgresql://{text}"));
        }
    }

    #[test]
    fn keywords_are_read_as_libpq_reads_them() {
        assert_eq!(
            split("  host=db1,db2 port = 5433 user='it''s' password='a b\\'c\\\\d'  options=-c\\ x=1 "),
            // libpq ends the value at the second quote and takes what follows for the next keyword.
            Err(Unreadable::new("there is no \"=\" after \"'s'\"").hint(QUOTING_HINT))
        );
        assert_eq!(
            split("  host=db1,db2 port = 5433 password='a b\\'c\\\\d'  options=-c\\ x=1 dbname=''"),
            pairs(&[
                ("host", "db1,db2"),
                ("port", "5433"),
                ("password", "a b'c\\d"),
                ("options", "-c x=1"),
                ("dbname", ""),
            ])
        );
        assert_eq!(split(""), Ok(Vec::new()));
    }

    #[test]
    fn uris_are_read_as_libpq_reads_them() {
        let cases: [(&str, &[(&str, &str)]); 7] = [
            ("postgresql://", &[]),
            ("postgres://db", &[("host", "db")]),
            ("postgresql://me@db/app", &[("user", "me"), ("host", "db"), ("dbname", "app")]),
            ("postgresql://a:1,b,[::1]:3/", &[("host", "a,b,::1"), ("port", "1,,3")]),
            ("postgresql://%2Ftmp%2Fpg/x", &[("host", "/tmp/pg"), ("dbname", "x")]),
            ("postgresql:///x?host=/tmp&ssl=true", &[("dbname", "x"), ("host", "/tmp"), ("sslmode", "require")]),
            ("postgresql://u:p%40ss@h?a=b%20c", &[("user", "u"), ("password", "p@ss"), ("host", "h"), ("a", "b c")]),
        ];
        for (text, expected) in cases {
            assert_eq!(split(text), pairs(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_repeating_a_password() {
        let texts = [
            "password=my s3cret",
            "password='s3cret",
            "postgresql://u:p@s3cret@host/db",
            "postgresql://u:s3cret/x@host/db",
            "postgresql://u:s3cret%4",
            "postgresql://u:s3cret%zz@h",
            "postgresql://u:s3cret%00@h",
            "postgresql://u:s3cret@[::1",
            "postgresql://u:s3cret@[::1]x",
            "postgresql://u:s3cret@h?x",
        ];
        for text in texts {
            let refusal = split(text).expect_err(text);
            assert!(!refusal.problem.contains("s3cret"), "{text}: {}", refusal.problem);
        }
    }
}
