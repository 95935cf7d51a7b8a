//! Secrets by reference: `${file:…}` and `${env:…}`. The value is read when it is used, kept in a
//! [`SecretString`] and never written back: a [`SecretRef`] prints and serialises as its reference.

use std::{fmt, io, path::PathBuf, str::FromStr};

use secrecy::SecretString;

use crate::{
    regular,
    values::{InvalidValue, text_value},
};

/// Where a secret is to be had.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretRef {
    /// The content of a file, without a trailing line break.
    File(PathBuf),
    /// The value of an environment variable.
    Env(String),
}

/// Why a secret could not be read. The secret itself is never part of the message.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read the secret file {path}: {source}; create it, readable by the gateway's user only")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "the environment variable {name} that holds a secret is not set; set it or refer to a file with ${{file:…}}"
    )]
    Env { name: String },
}

impl SecretRef {
    /// Reads the secret. Blocks on the file system: call it off the request path.
    pub fn read(&self) -> Result<SecretString, SecretError> {
        match self {
            Self::File(path) => regular::open(path)
                .and_then(io::read_to_string)
                .map(|text| text.trim_end_matches(['\r', '\n']).to_owned().into())
                .map_err(|source| SecretError::File { path: path.clone(), source }),
            Self::Env(name) => std::env::var(name).map(Into::into).map_err(|_| SecretError::Env { name: name.clone() }),
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "${{file:{}}}", path.display()),
            Self::Env(name) => write!(f, "${{env:{name}}}"),
        }
    }
}

impl FromStr for SecretRef {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = text.strip_prefix("${").and_then(|t| t.strip_suffix('}'));
        match inner.and_then(|inner| inner.split_once(':')) {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            // The text may be the secret itself, so it is not repeated.
            _ => {
                Err(InvalidValue::new("a secret is written by reference only: ${file:/path/to/secret} or ${env:NAME}"))
            }
        }
    }
}

text_value!(
    SecretRef,
    "SecretRef",
    "A secret by reference: ${file:/path} or ${env:NAME}",
    Some(r"^\$\{(file|env):.+\}$")
);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_secret_is_written_by_reference_only() {
        for text in ["${file:/run/secrets/key}", "${file:../key}", "${env:KEY}"] {
            assert_eq!(text.parse::<SecretRef>().unwrap().to_string(), text);
        }
        for bad in
            ["hunter2", "${hunter2}", "${file:}", "${env:}", "${vault:hunter2}", "file:hunter2", "${file:hunter2", ""]
        {
            let error = bad.parse::<SecretRef>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_file_is_read_without_its_last_line_break() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "sk_a_b \r\n").unwrap();
        assert_eq!(SecretRef::File(path).read().unwrap().expose_secret(), "sk_a_b ");
        let error = SecretRef::File(folder.path().join("none")).read().unwrap_err();
        assert!(error.to_string().contains("none"));
    }
}
