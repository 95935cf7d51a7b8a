//! The processes that a run starts, watches and ends; what the kernel says about them (`proc(5)`).

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A server process that ends with the value, or with the whole program, whichever comes first.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
}

/// Which core a process may run on; `None` leaves it to the kernel.
pub type Core = Option<usize>;

/// A command that runs pinned to a core and is killed when the thread that started it ends.
pub fn command(program: impl AsRef<OsStr>, core: Core) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(core) = core {
        command.args(["taskset", "--cpu-list", &core.to_string()]);
    }
    command.arg(program);
    command
}

impl Server {
    /// Starts it with its output going to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let log_file = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so; an error when the process ends before, or after 30 seconds.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended before it was ready: {status}", self.name);
            }
            if Instant::now() > deadline {
                bail!("{} was not ready after 30 s", self.name);
            }
            pause(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    /// TERM, and KILL when it is still there after five seconds.
    fn drop(&mut self) {
        let Ok(raw) = i32::try_from(self.child.id()) else { return };
        if let Some(pid) = Pid::from_raw(raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            pause(Duration::from_millis(10));
        }
    }
}

/// Between two looks at a process or a port, neither of which tells when it changes.
#[expect(clippy::disallowed_methods, reason = "the drivers wait on a thread of their own, outside any runtime")]
fn pause(time: Duration) {
    thread::sleep(time);
}

pub fn accepts_connections(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

/// The status that a plain GET of this path gets; `None` while nothing answers.
pub fn http_status(address: SocketAddr, path: &str) -> Option<u16> {
    http_status_with(address, path, &["Host: localhost"])
}

/// The same with these header lines.
pub fn http_status_with(address: SocketAddr, path: &str, headers: &[&str]) -> Option<u16> {
    let patience = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    let headers = headers.join("\r\n");
    write!(stream, "GET {path} HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n").ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    std::str::from_utf8(&head).ok()?.strip_prefix("HTTP/1.1 ")?.parse().ok()
}

/// A free port of the loopback address. Another process could take it before it is used; a run that
/// meets this fails to start and says so.
pub fn free_address() -> io::Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// What a process and its children have used so far, and hold now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Resident memory, pages shared by several processes split among them (PSS).
    pub resident_bytes: u64,
}

/// Of the process and all its descendants.
pub fn usage(pid: u32) -> io::Result<Usage> {
    let mut sum = Usage { cpu: cpu_time(pid)?, resident_bytes: resident_bytes(pid)? };
    for child in children(pid) {
        if let Ok(of_child) = usage(child) {
            sum.cpu += of_child.cpu;
            sum.resident_bytes += of_child.resident_bytes;
        }
    }
    Ok(sum)
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = cpu_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Duration::from_micros(ticks * 1_000_000 / rustix::param::clock_ticks_per_second()))
}

/// Fields 14 and 15, utime and stime. The name in field 2 may hold spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn resident_bytes(pid: u32) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kib_field(&rollup, "Pss:").map(|kib| kib * 1024).ok_or(io::ErrorKind::InvalidData.into())
}

/// The most resident memory that a process has had, pages shared with others counted whole.
pub fn most_resident_bytes(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    kib_field(&status, "VmHWM:").map(|kib| kib * 1024).ok_or(io::ErrorKind::InvalidData.into())
}

fn kib_field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Established connections to a local port, over IPv4 and IPv6.
pub fn connections_to(port: u16) -> usize {
    const ESTABLISHED: &str = "01";
    let suffix = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .map(|table| {
            table
                .lines()
                .filter(|line| {
                    let mut fields = line.split_whitespace().skip(1);
                    fields.next().is_some_and(|local| local.ends_with(&suffix)) && fields.nth(1) == Some(ESTABLISHED)
                })
                .count()
        })
        .sum()
}

/// The process that listens on this local port, found by its socket; `None` if it is not ours to see.
pub fn listener_of(port: u16) -> Option<u32> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().find_map(|table| {
        fs::read_to_string(table).ok()?.lines().find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&suffix) && fields.get(3)? == &LISTEN;
            if listens { fields.get(9).map(|inode| format!("socket:[{inode}]")) } else { None }
        })
    })?;
    let holds = |pid: &u32| {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == inode.as_str()))
    };
    let mut pids: Vec<u32> =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The lowest is the parent, whose children are counted with it.
    pids.sort_unstable();
    pids.into_iter().find(holds)
}

/// The soft limit of open files, after raising it as far as it goes.
pub fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let in_force = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    in_force.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_with_spaces_and_parentheses() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 100 1000 10 18446744073709551615";
        assert_eq!(cpu_ticks(stat), Some(12));
    }

    #[test]
    fn the_usage_of_this_process_is_seen() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.resident_bytes > 100_000, "{usage:?}");
    }

    #[test]
    fn connections_to_a_port_and_its_listener_are_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(connections_to(address.port()), 0);
        let _client = TcpStream::connect(address).unwrap();
        let _accepted = listener.accept().unwrap();
        assert_eq!(connections_to(address.port()), 1);
        assert_eq!(listener_of(address.port()), Some(std::process::id()));
    }
}
