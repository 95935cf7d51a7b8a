//! A Postgres server of the run's own.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::process::{Server, command, free_address};

#[derive(Debug)]
pub struct Postgres {
    pub url: String,
    _server: Server,
    /// Removed after the server has ended.
    _folder: tempfile::TempDir,
}

impl Postgres {
    /// With its usual durability: a change that was answered is on the disk.
    pub fn start(log: &Path) -> anyhow::Result<Self> {
        // Not in the run's folder, which the server's user may not be able to reach.
        let folder = tempfile::tempdir()?;
        let user = user()?;
        if let Some((user, group)) = user {
            chown(folder.path(), Some(user), Some(group))?;
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700))?;
        let data = folder.path().join("data");
        let mut make = as_user("initdb", user);
        make.args(["--auth", "trust", "--username", "postgres", "--encoding", "UTF8", "--pgdata"]).arg(&data);
        let made = make.output().context("cannot run initdb")?;
        if !made.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&made.stderr));
        }
        let address = free_address()?;
        let mut start = as_user("postgres", user);
        start.arg("-D").arg(&data).arg("-k").arg(folder.path());
        start.args(["-p", &address.port().to_string(), "-c", "listen_addresses=127.0.0.1"]);
        let mut server = Server::start("postgres", start, log)?;
        server.wait_until(|| answers(address))?;
        Ok(Self { url: format!("postgres://postgres@{address}/postgres"), _server: server, _folder: folder })
    }
}

fn answers(address: SocketAddr) -> bool {
    let mut ask = Command::new(program("pg_isready"));
    ask.args(["-q", "-h", "127.0.0.1", "-p", &address.port().to_string()]);
    ask.status().is_ok_and(|status| status.success())
}

/// Whom to run it as: nobody else, unless this is root, as whom the server refuses to run.
fn user() -> anyhow::Result<Option<(u32, u32)>> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("postgres:")).context("there is no user named postgres")?;
    let ids: Vec<u32> = line.split(':').skip(2).take(2).map(str::parse).collect::<Result<_, _>>()?;
    match ids.as_slice() {
        [user, group] => Ok(Some((*user, *group))),
        _ => bail!("/etc/passwd says nothing of the user postgres"),
    }
}

fn as_user(name: &str, user: Option<(u32, u32)>) -> Command {
    let Some((user, group)) = user else { return command(program(name), None) };
    let mut command = command("setpriv", None);
    command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
    // A change of the user clears the first one.
    command.args(["--pdeathsig", "KILL"]).arg(program(name)).current_dir("/");
    command
}

/// Debian keeps the server's programs out of the path.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).max();
    found.unwrap_or_else(|| Path::new(name).to_owned())
}
