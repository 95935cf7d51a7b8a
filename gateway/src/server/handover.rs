//! Replacing the running binary without losing a connection.
//!
//! The new process, started with `--upgrade`, waits on a socket in the state folder. QUIT makes the
//! old one connect there and send its listening sockets. Both then hold the same sockets: connections
//! that wait to be accepted belong to both and are lost by neither. Only when the new process has
//! said that it serves does the old one stop accepting, and drain. If the new one never gets that
//! far, the old one goes on as if nothing had happened.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::listener::{Endpoint, Listener};

/// How long the new process waits for the old one, and the old one for the word that the new one serves.
const PATIENCE: Duration = Duration::from_mins(2);
/// The kernel passes no more than 253 descriptors in one message.
const MOST_SOCKETS: usize = 250;
const SERVING: &[u8; 1] = b"S";

/// Why the sockets did not change hands.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("{path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("no running gateway sent its sockets to {0} in time; send it QUIT")]
    NobodyCame(PathBuf),
    #[error("the running gateway sent something that is not a list of sockets")]
    Malformed,
    #[error("more than {MOST_SOCKETS} listening sockets cannot be handed over at once; use fewer listeners or threads")]
    TooMany,
    #[error("the new process did not begin to serve")]
    NotServing,
    #[error("the sockets cannot be sent: {0}")]
    Failed(String),
}

/// Where the new process waits.
pub(crate) fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("upgrade.sock")
}

/// Sockets that came from the process before. Say [`Inherited::serving`] once they are being served.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) listeners: Vec<Listener>,
    from: UnixStream,
}

impl Inherited {
    /// Tells the old process that it may stop accepting.
    pub(crate) fn serving(mut self) {
        // If the old process is gone, it has stopped accepting too.
        let _ = self.from.write_all(SERVING);
    }
}

/// The new process' side: waits for the old process. Blocks.
pub(crate) fn receive(path: &Path) -> Result<Inherited, HandoverError> {
    let failed = |source| HandoverError::Socket { path: path.to_owned(), source };
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    let from = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return Err(HandoverError::NobodyCame(path.to_owned()));
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
            Err(error) => return Err(failed(error)),
        }
    };
    let _ = std::fs::remove_file(path);
    from.set_nonblocking(false).map_err(failed)?;
    from.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let (endpoints, sockets) = receive_message(&from).map_err(failed)?;
    let endpoints: Vec<Endpoint> = serde_json::from_slice(&endpoints).map_err(|_| HandoverError::Malformed)?;
    if endpoints.len() != sockets.len() {
        return Err(HandoverError::Malformed);
    }
    let listeners = endpoints
        .into_iter()
        .zip(sockets)
        .map(|(endpoint, socket)| Listener { endpoint, socket: TcpListener::from(socket) })
        .collect();
    Ok(Inherited { listeners, from })
}

fn receive_message(from: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; 64 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    text.truncate(received.bytes);
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    Ok((text, sockets))
}

/// The old process' side: sends the sockets and waits until they are served. Blocks.
pub(crate) fn send(path: &Path, listeners: &[Listener]) -> Result<(), HandoverError> {
    if listeners.len() > MOST_SOCKETS {
        return Err(HandoverError::TooMany);
    }
    let failed = |source| HandoverError::Socket { path: path.to_owned(), source };
    let mut to = UnixStream::connect(path).map_err(failed)?;
    let endpoints: Vec<Endpoint> = listeners.iter().map(|listener| listener.endpoint).collect();
    let text = serde_json::to_vec(&endpoints).map_err(|_| HandoverError::Malformed)?;
    let descriptors: Vec<_> = listeners.iter().map(|listener| listener.socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(HandoverError::TooMany);
    }
    sendmsg(&to, &[IoSlice::new(&text)], &mut control, SendFlags::empty()).map_err(|error| failed(error.into()))?;
    to.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut word = [0; 1];
    match to.read_exact(&mut word) {
        Ok(()) if word == *SERVING => Ok(()),
        _ => Err(HandoverError::NotServing),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpStream;

    use super::*;
    use crate::server::listener::bind;

    #[test]
    fn a_connection_that_waits_on_the_old_process_is_accepted_by_the_new() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("upgrade.sock");
        let endpoint = Endpoint { address: "127.0.0.1:0".parse().unwrap(), tls: true };
        let old = bind(endpoint, 1).unwrap();
        let waiting = TcpStream::connect(old[0].endpoint.address).unwrap();
        let new = std::thread::spawn({
            let path = path.clone();
            move || receive(&path).unwrap()
        });
        while !path.exists() {
            std::thread::yield_now();
        }
        let sender = std::thread::spawn({
            let path = path.clone();
            move || send(&path, &old).map(|()| old)
        });
        let inherited = new.join().unwrap();
        assert!(inherited.listeners[0].endpoint.tls);
        let socket = inherited.listeners[0].socket.try_clone().unwrap();
        inherited.serving();
        drop(sender.join().unwrap().unwrap());
        socket.set_nonblocking(false).unwrap();
        let (_, peer) = socket.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
    }

    #[test]
    fn the_old_process_goes_on_when_the_new_one_dies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("upgrade.sock");
        let endpoint = Endpoint { address: "127.0.0.1:0".parse().unwrap(), tls: false };
        let old = bind(endpoint, 2).unwrap();
        let new = std::thread::spawn({
            let path = path.clone();
            move || drop(receive(&path).unwrap())
        });
        while !path.exists() {
            std::thread::yield_now();
        }
        assert!(matches!(send(&path, &old), Err(HandoverError::NotServing)));
        new.join().unwrap();
        assert!(matches!(send(&path, &old), Err(HandoverError::Socket { .. })));
    }
}
