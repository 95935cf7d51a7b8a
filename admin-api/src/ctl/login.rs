//! `gatewayctl login`

use std::io::{self, BufRead, IsTerminal};

use console::Term;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::Output,
    settings::{Connection, Settings, write_login},
};

pub(super) async fn run(connection: &Connection, output: &Output) -> Result<Outcome, Failure> {
    let server = connection.server();
    let token = match connection.given_token()? {
        Some(token) => token,
        None => ask_token(server.as_str())?,
    };
    if token.expose_secret().is_empty() {
        return Err(Failure::NoToken);
    }
    let client = Client::new(Settings {
        server,
        token,
        ca: connection.ca.clone(),
        insecure_plain_http: connection.insecure_plain_http,
    })?;
    // Nothing is kept that does not work.
    client.ask(Ask::get("/status")).await?;
    let Settings { server, token, .. } = client.settings();
    let path = write_login(server, token)?;
    let done = json!({ "server": server, "written": path });
    output.show(&done, |_| format!("logged in to {server}; the token is kept in {}", path.display()))?;
    Ok(Outcome::Done)
}

/// Asked without showing it; from a pipe, the first line.
fn ask_token(server: &str) -> Result<SecretString, Failure> {
    let mut token = String::new();
    if io::stdin().is_terminal() {
        let terminal = Term::stderr();
        terminal.write_str(&format!("Token for {server}: "))?;
        token = terminal.read_secure_line()?;
    } else {
        io::stdin().lock().read_line(&mut token)?;
    }
    Ok(token.trim().to_owned().into())
}
