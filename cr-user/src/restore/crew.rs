//! The processes of the job as those who make the calls for which the kernel notes the caller, and processes that stand in for
//! callers that have ended.

use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Error, Result};
use crate::object::files::unix::Crew;
use crate::procfs;
use crate::remote::Call;
use crate::restore::body::Body;
use crate::sys::{fd, vm};

/// Everybody who can make calls.
pub struct Hands<'a> {
    bodies: &'a mut [Body],
    /// Those who stand in, by the number for which they do.
    extras: Vec<(i32, Body)>,
}

impl<'a> Hands<'a> {
    /// The processes of the job, which must do nothing else yet.
    pub fn new(bodies: &'a mut [Body]) -> Self {
        Self { bodies, extras: Vec::new() }
    }

    /// Ends those who stood in.
    ///
    /// # Errors
    /// When one cannot be ended.
    pub fn dismiss(self) -> Result<()> {
        self.extras.into_iter().try_for_each(|(_, body)| body.vanish(None))
    }

    fn find(&mut self, pid: i32) -> Result<&mut Body> {
        if let Some(at) = self.bodies.iter().position(|b| b.pid() == pid) {
            return Ok(&mut self.bodies[at]);
        }
        if self.extras.iter().all(|(of, _)| *of != pid) {
            self.extras.push((pid, stand_in(pid)?));
        }
        let at = self.extras.iter().position(|(of, _)| *of == pid).expect("it is there now");
        Ok(&mut self.extras[at].1)
    }
}

/// A process with that number, or, where it is taken, another.
fn stand_in(pid: i32) -> Result<Body> {
    /// So many others may take theirs at the same time.
    const TRIES: usize = 20;
    if pid > 0 && !std::fs::exists(format!("/proc/{pid}")).unwrap_or(true) {
        return Body::make(pid, 0, &[]);
    }
    log::warn!(
        "a socket of the job shows that process {pid} made it; that number is another's now, and a new one is shown"
    );
    let mut failed = None;
    for other in procfs::spare_pids(pid).take(TRIES) {
        match Body::make(other, 0, &[]) {
            Ok(body) => return Ok(body),
            Err(e) => failed = Some(e),
        }
    }
    Err(failed.unwrap_or_else(|| Error::system("finding a free pid", nix::errno::Errno::EAGAIN)))
}

impl Crew for Hands<'_> {
    fn run(&mut self, pid: i32, calls: Vec<Call>, bytes: &[u8], what: &str) -> Result<Vec<u64>> {
        let body = self.find(pid)?;
        body.put(bytes)?;
        body.run(0, calls, what)
    }

    fn data(&mut self, pid: i32) -> Result<u64> {
        self.find(pid).map(|body| body.data())
    }

    fn number(&self, pid: i32) -> i32 {
        self.extras.iter().find(|(of, _)| *of == pid).map_or(pid, |(_, body)| body.pid())
    }

    fn read(&mut self, pid: i32, bytes: &mut [u8]) -> Result<()> {
        let body = self.find(pid)?;
        let range = vm::Range { start: body.data(), len: bytes.len() as u64 };
        vm::read(body.pid(), &[range], bytes)
            .map(drop)
            .map_err(|e| Error::system(format!("reading from the new process {}", body.pid()), e))
    }

    fn fetch(&mut self, pid: i32, number: i32) -> Result<OwnedFd> {
        let pid = self.find(pid)?.pid();
        let failed = |e| Error::system(format!("fetching a socket from pid {pid}"), e);
        let pidfd = fd::pidfd_open(pid).map_err(failed)?;
        fd::pidfd_getfd(pidfd.as_fd(), number).map_err(failed)
    }
}
