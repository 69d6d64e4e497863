//! The control socket in the store, the controller's side.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::protocol::{self, Command, Response};
use crate::error::{Error, Result};

/// Name of the socket in a store.
pub const SOCKET: &str = "control.sock";

/// Longest request in bytes.
const LONGEST_REQUEST: u64 = 4096;
/// How long somebody who connects may take to say what he wants, or to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long answers may take at the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// A store's directory, held open so that its socket has a short name: those of sockets end at 107 bytes.
pub(super) struct Place(File);

impl Place {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir).map(Self)
    }

    /// The socket's name, good for as long as this value lives.
    pub(super) fn socket(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{SOCKET}", self.0.as_raw_fd()).into()
    }
}

/// The socket, bound but not yet served. Removed from the store when dropped.
pub(super) struct Socket {
    path: PathBuf,
    listener: StdListener,
}

impl Socket {
    /// Binds the socket of a store whose lock we hold: one that is there already was left by a controller that died.
    pub(super) fn bind(dir: &Path) -> Result<Self> {
        let path = dir.join(SOCKET);
        let failed = |e: io::Error| Error::system(format!("making the control socket {}", path.display()), e);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => (),
        }
        let place = Place::open(dir).map_err(failed)?;
        // The mask is the whole process's, which has one thread yet.
        let old = umask(Mode::from_bits_truncate(0o177));
        let listener = StdListener::bind(place.socket());
        umask(old);
        let listener = listener.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { path, listener })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.path) {
            log::info!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// A request, and where its answer goes.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) command: Command,
    pub(super) reply: oneshot::Sender<Response>,
}

/// The server of a bound socket.
pub(super) struct Server {
    socket: Socket,
    requests: mpsc::Receiver<Asked>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    /// Must be called inside the runtime.
    pub(super) fn start(socket: Socket) -> Result<Self> {
        let listener = socket.listener.try_clone().and_then(UnixListener::from_std);
        let listener = listener.map_err(|e| Error::system("serving the control socket", e))?;
        let (send, requests) = mpsc::channel(16);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, send, stopped));
        Ok(Self { socket, requests, stop, task })
    }

    /// The next request. Nothing is lost when this is dropped before it is ready.
    pub(super) async fn next(&mut self) -> Option<Asked> {
        self.requests.recv().await
    }

    /// Nobody can connect any more; those who have are still answered.
    pub(super) fn close(self) -> Closing {
        drop(self.socket);
        let _ = self.stop.send(());
        Closing { requests: self.requests, task: self.task }
    }
}

/// A server that answers what it was asked, and no more.
pub(super) struct Closing {
    requests: mpsc::Receiver<Asked>,
    task: JoinHandle<()>,
}

impl Closing {
    /// Waits until everybody has got his answer; those who ask now get `last`.
    pub(super) async fn finish(mut self, last: &Response) {
        self.requests.close();
        while let Some(asked) = self.requests.recv().await {
            let _ = asked.reply.send(last.clone());
        }
        // Somebody who has connected and says nothing is not waited for.
        let _ = tokio::time::timeout(FAREWELL, self.task).await;
    }
}

async fn serve(listener: UnixListener, send: mpsc::Sender<Asked>, mut stopped: oneshot::Receiver<()>) {
    let mut talks = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = talks.join_next() => (),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    talks.spawn(talk(stream, send.clone()));
                }
                Err(e) => {
                    log::warn!("the control socket: {e}");
                    // Out of descriptors, most likely: trying again at once would be a busy loop.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
        }
    }
    drop((listener, send));
    while talks.join_next().await.is_some() {}
}

async fn talk(stream: UnixStream, send: mpsc::Sender<Asked>) {
    if let Err(e) = try_talk(stream, send).await {
        log::info!("the control socket: {e}");
    }
}

async fn try_talk(mut stream: UnixStream, send: mpsc::Sender<Asked>) -> io::Result<()> {
    let us = nix::unistd::geteuid().as_raw();
    let peer = stream.peer_cred()?.uid();
    let (read, mut write) = stream.split();
    let response = if peer == us || peer == 0 {
        let mut line = String::new();
        let mut request = BufReader::new(read.take(LONGEST_REQUEST));
        match tokio::time::timeout(PATIENCE, request.read_line(&mut line)).await {
            Ok(read) => read?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if line.is_empty() {
            return Ok(());
        }
        match protocol::parse(&line) {
            Ok(command) => ask(command, &send).await,
            Err(failure) => Response::error(failure.code, failure.message),
        }
    } else {
        Response::error(121, format!("the job is held by user {us}; ask as that user, or as root"))
    };
    let mut bytes = serde_json::to_vec(&response).expect("plain structures");
    bytes.push(b'\n');
    match tokio::time::timeout(PATIENCE, write.write_all(&bytes)).await {
        Ok(written) => written,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn ask(command: Command, send: &mpsc::Sender<Asked>) -> Response {
    let (reply, answer) = oneshot::channel();
    // Either end goes when the controller is about to end.
    if send.send(Asked { command, reply }).await.is_err() {
        return ended();
    }
    answer.await.unwrap_or_else(|_| ended())
}

fn ended() -> Response {
    Response::error(121, "the job has ended; the checkpoints that were taken of it are intact")
}

/// Whether the socket's other end is ours or root's (`SO_PEERCRED`): anybody else could tell us anything.
pub(super) fn is_trusted(stream: &OwnedFd) -> io::Result<bool> {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    let peer = getsockopt(stream, PeerCredentials)?.uid();
    Ok(peer == nix::unistd::geteuid().as_raw() || peer == 0)
}
