//! A Postgres server of the test's own, on a free port.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::admin::{Process, eventually, free_address};

pub struct Postgres {
    pub url: String,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Postgres {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let user = user();
        if let Some((user, group)) = user {
            // The server refuses to run as root, and the folder is to be its own.
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let data = folder.path().join("data");
        let made = command("initdb", user)
            .args(["--auth", "trust", "--username", "postgres", "--no-sync", "--encoding", "UTF8", "--pgdata"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        let address = free_address();
        let server = command("postgres", user)
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(folder.path())
            .args(["-p", &address.port().to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Process(server);
        let url = format!("postgres://postgres@{address}/postgres");
        let answers = async || {
            let mut asked = Command::new(program("pg_isready"));
            asked.args(["-q", "-h", "127.0.0.1", "-p"]);
            asked.arg(address.port().to_string()).status().unwrap().success()
        };
        assert!(eventually(answers).await, "Postgres does not start");
        Self { url, _process: process, _folder: folder }
    }
}

/// Whom to run it as: nobody else, unless this is root.
fn user() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("a user named postgres");
    let mut ids = line.split(':').skip(2).map(|id| id.parse().unwrap());
    Some((ids.next().unwrap(), ids.next().unwrap()))
}

fn command(name: &str, user: Option<(u32, u32)>) -> Command {
    let Some((user, group)) = user else { return Command::new(program(name)) };
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
    command.arg(program(name)).current_dir("/");
    command
}

/// Debian keeps the server's programs out of the path.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).max();
    found.unwrap_or_else(|| Path::new(name).to_owned())
}
