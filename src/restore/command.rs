//! The `restore_command` that a restored server runs: built, quoted, without secrets. Pure.

use crate::error::{Error, Kind, Result};
use std::path::PathBuf;

/// What says where a store is and whom to ask for credentials: given on to `restore_command`, since the server is
/// started by somebody else, elsewhere.
const PASSED_ON: [&str; 16] = [
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "SEAWALL_S3_ACCESS_KEY_ID_FILE",
    "SEAWALL_S3_SECRET_ACCESS_KEY_FILE",
];

/// Credentials, and what gives them to whoever asks: never written anywhere.
const SECRET: [&str; 11] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    PASSPHRASE_VARIABLE,
    "SEAWALL_S3_ACCESS_KEY_ID",
    "SEAWALL_S3_ACCESS_KEY_ID_COMMAND",
    "SEAWALL_S3_SECRET_ACCESS_KEY",
    "SEAWALL_S3_SECRET_ACCESS_KEY_COMMAND",
];

/// Opens an identity file that is protected by a passphrase, where nobody can be asked.
pub const PASSPHRASE_VARIABLE: &str = "SEAWALL_IDENTITY_PASSPHRASE";

/// What `restore_command` is made of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FetchCommand {
    /// This program.
    pub executable: PathBuf,
    /// Arguments that say which repository and cluster: `--repo`, `--cluster`, `--config`. Never a secret.
    pub arguments: Vec<String>,
    /// Variables that the server will not have. Never a secret: see [`FetchCommand::take_environment`].
    pub environment: Vec<(String, String)>,
    /// Names of variables with credentials that only this process has.
    pub missing_secrets: Vec<String>,
    /// Files and directories that the server's user must be able to read for it.
    pub reads: Vec<PathBuf>,
}

impl FetchCommand {
    /// Sorts this process's variables into those to give on and those that the operator must see to.
    pub fn take_environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in variables {
            if SECRET.contains(&name.as_str()) {
                self.missing_secrets.push(name);
            } else if PASSED_ON.contains(&name.as_str()) && !value.is_empty() {
                // `https://user:password@host` has no place in a file.
                let has_password = name.starts_with("AWS_ENDPOINT_URL") && value.contains('@');
                match has_password {
                    true => self.missing_secrets.push(name),
                    false => self.environment.push((name, value)),
                }
            }
        }
        self.environment.sort();
        self.missing_secrets.sort();
    }

    /// The server will need this variable, whether this process has it or was told at a terminal.
    pub fn need_secret(&mut self, name: &str) {
        if !self.missing_secrets.iter().any(|missing| missing == name) {
            self.missing_secrets.push(name.to_owned());
            self.missing_secrets.sort();
        }
    }

    /// The command line, for `sh`, with PostgreSQL's own `%f` and `%p` in it and every other `%` doubled.
    ///
    /// # Errors
    /// [`Kind::Usage`] if something in it cannot stand in a configuration file.
    pub fn line(&self) -> Result<String> {
        let executable = self.executable.to_str().ok_or_else(|| {
            let path = self.executable.display();
            Error::new(Kind::Usage, format!("the path of this program is not UTF-8: {path}"))
                .hint("PostgreSQL must be able to run it: copy it to another directory.")
        })?;
        let mut words = Vec::new();
        for (name, value) in &self.environment {
            words.push(format!("{name}={}", word(value)?));
        }
        words.push(word(executable)?);
        words.push("wal-fetch".to_owned());
        for argument in &self.arguments {
            words.push(word(argument)?);
        }
        words.push("\"%f\" \"%p\"".to_owned());
        Ok(words.join(" "))
    }

    /// What the operator must see to, in a sentence.
    pub fn warning(&self) -> Option<String> {
        let names = self.missing_secrets.join(", ");
        (!self.missing_secrets.is_empty()).then(|| {
            format!(
                "restore_command will need what only this shell has ({names}), and no secret was written into the data \
                 directory: put them into the environment of the server, or those of AWS into ~/.aws/credentials of its \
                 user, before it starts"
            )
        })
    }
}

/// A word for `sh`, quoted only if it needs it.
fn word(text: &str) -> Result<String> {
    if text.chars().any(char::is_control) {
        return Err(Error::new(Kind::Usage, format!("{text:?} cannot stand in restore_command"))
            .hint("A line break or another control character is in it."));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,+@".contains(c);
    let quoted = match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    };
    Ok(quoted.replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> FetchCommand {
        FetchCommand {
            executable: PathBuf::from("/opt/sea wall/seawall"),
            arguments: ["--repo", "s3://bucket/50%/it's", "--cluster", "main"].map(str::to_owned).to_vec(),
            ..FetchCommand::default()
        }
    }

    #[test]
    fn a_command_survives_the_shell_and_postgresql() {
        let mut command = command();
        let variables =
            [("AWS_REGION", "eu-central-1"), ("HOME", "/root"), ("AWS_ENDPOINT_URL", "http://minio:9000/a b")];
        command.take_environment(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(
            command.line().unwrap(),
            "AWS_ENDPOINT_URL='http://minio:9000/a b' AWS_REGION=eu-central-1 '/opt/sea wall/seawall' wal-fetch --repo \
             's3://bucket/50%%/it'\\''s' --cluster main \"%f\" \"%p\""
        );
        assert_eq!(command.warning(), None);
    }

    #[test]
    fn secrets_are_named_and_never_written() {
        let mut command = command();
        let variables = [
            ("AWS_SECRET_ACCESS_KEY", "hush1"),
            ("AWS_ACCESS_KEY_ID", "hush2"),
            ("AWS_ENDPOINT_URL", "https://me:hush3@host"),
        ];
        command.take_environment(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(!command.line().unwrap().contains("hush"));
        let warning = command.warning().unwrap();
        assert!(warning.contains("AWS_SECRET_ACCESS_KEY") && !warning.contains("hush"), "{warning}");
    }

    #[test]
    fn what_cannot_be_quoted_is_refused() {
        let command = FetchCommand { arguments: vec!["a\nb".to_owned()], ..command() };
        assert_eq!(command.line().unwrap_err().kind(), Kind::Usage);
    }
}
