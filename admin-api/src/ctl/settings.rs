//! Which server, and as whom: flags, environment, and what `gatewayctl login` has written.

use std::{
    env, fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

use super::failure::Failure;

const DEFAULT_SERVER: &str = "http://127.0.0.1:9080";

#[derive(Debug, Args)]
pub(super) struct Connection {
    /// The control plane. Default: that of the last login, or `http://127.0.0.1:9080`.
    #[arg(long, global = true, env = "SEIKETSU_ADMIN", value_name = "URL")]
    pub(super) server: Option<Url>,
    /// File with the token. Default: `SEIKETSU_TOKEN`, or that of the last login.
    #[arg(long, global = true, env = "SEIKETSU_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// PEM file of the authorities that the server's certificate may come from, beside those of the system.
    #[arg(long, visible_alias = "ca-file", global = true, env = "SEIKETSU_ADMIN_CA", value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// Send the token without TLS to another machine, where everybody on the way can read it.
    #[arg(long, global = true)]
    pub(super) insecure_plain_http: bool,
}

/// What a client needs to know.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) server: Url,
    pub(super) token: SecretString,
    pub(super) ca: Option<PathBuf>,
    pub(super) insecure_plain_http: bool,
}

/// What `gatewayctl login` writes.
#[derive(Debug, Serialize, Deserialize)]
struct Login {
    server: Url,
    token: String,
}

impl Connection {
    pub(super) fn resolve(self) -> Result<Settings, Failure> {
        let given = self.given_token()?;
        // Not looked at where everything is said.
        let login = match (&self.server, &given) {
            (Some(_), Some(_)) => None,
            _ => read_login()?,
        };
        let (login_server, login_token) = login.map(|login| (login.server, login.token)).unzip();
        let server = match (self.server, &given) {
            (Some(server), _) => server,
            // A token that is named here is for the server that is named here.
            (None, None) => login_server.clone().unwrap_or_else(default_server),
            (None, Some(_)) => default_server(),
        };
        // The token of a login goes to the server of that login only.
        let login_token = login_token.filter(|_| login_server.as_ref() == Some(&server)).map(SecretString::from);
        let token = given.or(login_token).ok_or(Failure::NoToken)?;
        Ok(Settings { server, token, ca: self.ca, insecure_plain_http: self.insecure_plain_http })
    }

    pub(super) fn server(&self) -> Url {
        self.server.clone().unwrap_or_else(default_server)
    }

    /// From the file, or the environment.
    pub(super) fn given_token(&self) -> Result<Option<SecretString>, Failure> {
        if let Some(path) = &self.token_file {
            let text = fs::read_to_string(path).map_err(|source| Failure::Read { path: path.clone(), source })?;
            return Ok(Some(text.trim().to_owned().into()));
        }
        Ok(env::var("SEIKETSU_TOKEN").ok().filter(|token| !token.is_empty()).map(Into::into))
    }
}

fn default_server() -> Url {
    // A constant, and tested.
    Url::parse(DEFAULT_SERVER).unwrap_or_else(|_| unreachable!())
}

fn login_path() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")))?;
    Some(folder.join("seiketsu/gatewayctl.json"))
}

fn read_login() -> Result<Option<Login>, Failure> {
    let Some(path) = login_path() else { return Ok(None) };
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|source| Failure::Settings { path, source }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Failure::Read { path, source }),
    }
}

/// Writes it for this user only; the path is given back.
pub(super) fn write_login(server: &Url, token: &SecretString) -> Result<PathBuf, Failure> {
    let path = login_path().ok_or(Failure::NoHome)?;
    let login = Login { server: server.clone(), token: token.expose_secret().to_owned() };
    let text = serde_json::to_vec_pretty(&login)?;
    let write = |path: &Path| {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let next = path.with_extension("next");
        // One that is left over might be readable by others.
        let _ = fs::remove_file(&next);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
        file.write_all(&text)?;
        fs::rename(&next, path)
    };
    write(&path).map_err(|source| Failure::Write { path: path.clone(), source })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_server_is_an_address() {
        assert_eq!(default_server().port(), Some(9080));
    }
}
