//! Silence on TCP connections while we look away: nftables drops their packets, so that the other end sees a slow network and no
//! reset. It sends again what was lost once the silence has ended.
//!
//! Two kinds of tables, both of the family `inet`:
//!
//! | name | while | ends |
//! |---|---|---|
//! | `cr-frozen-PORT` | the job stands still | with its [`Silence`]; by the kernel when we die, whatever kills us |
//! | `cr-held-STORE` | the job is away: between `--kill` and its restore | [`lift`], or [`clean_up`] by the next `cr` |
//!
//! What a held one belongs to is written into it ([`Held`]) and nowhere else: it lasts as long as the kernel runs, like the table.
//!
//! A packet is dropped where it comes in from the other end, and where it goes out from ours. So also over loopback the other
//! end's own sending goes well.

mod held;
mod nftables;

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::netlink::Netlink;
use nftables::{Batch, Key, OWNED};

pub use held::{Held, Lock, Process, clean_up, held, lift};

/// The result of what is done to locks.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a connection cannot be silenced, or be let speak again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel cannot do it.
    #[error(
        "this kernel has no nftables that ends with its owner (Linux 5.12, CONFIG_NF_TABLES_INET): {0}; without it the other ends of \
         the job's TCP connections hear from the kernel that the job is away, and reset them"
    )]
    Missing(#[source] io::Error),
    /// We may not do it.
    #[error(
        "nftables may not be used: {0}; run cr as root or with CAP_NET_ADMIN in the job's network namespace: without it the other ends \
         of the job's TCP connections hear from the kernel that the job is away, and reset them"
    )]
    NotPermitted(#[source] io::Error),
    /// It went wrong.
    #[error("{what} failed: {source}")]
    Failed {
        /// What was done.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A TCP connection, as the job sees it. An IPv4 address that is written as an IPv6 one is an IPv4 address. The scope of a
/// link-local address is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The job's end.
    pub local: SocketAddr,
    /// The other end, which is to see silence.
    pub remote: SocketAddr,
}

/// Silence on connections while this lives. Dropping it ends it, and so does our death by whatever signal.
///
/// No child of ours may get a copy of it that outlives us: the kernel waits for the last one.
#[derive(Debug)]
#[must_use = "the silence ends when this is dropped"]
pub struct Silence {
    netlink: Netlink,
    table: String,
    keys: Vec<Key>,
    /// The table that would outlive us.
    held: Option<String>,
    ended: bool,
}

impl Silence {
    /// All that can be made before the job stands still, in a network namespace or our own: [`add`](Self::add) is quick then.
    ///
    /// # Errors
    /// When the kernel cannot do it, or we may not.
    pub fn prepare(namespace: Option<BorrowedFd<'_>>) -> Result<Self> {
        let netlink = open(namespace)?;
        let port = netlink.port().map_err(failed("naming a network lock"))?;
        let table = format!("cr-frozen-{port}");
        let mut batch = Batch::new();
        batch.table(&table, OWNED, "a job stands still while cr takes a checkpoint of it");
        batch.commit(&netlink).map_err(failed("making a network lock"))?;
        Ok(Self { netlink, table, keys: Vec::new(), held: None, ended: false })
    }

    /// From now on nothing of these connections goes in or out.
    ///
    /// A packet that another processor has taken in just before may still arrive.
    ///
    /// # Errors
    /// What the kernel says: then they are not silenced.
    pub fn add(&mut self, flows: &[Flow]) -> Result<()> {
        let no_flow = |flow: &Flow| {
            let why = format!("{} and {} cannot be the ends of one connection", flow.local, flow.remote);
            Error::Failed { what: "silencing connections", source: io::Error::new(io::ErrorKind::InvalidInput, why) }
        };
        let keys: Vec<Key> =
            flows.iter().map(|flow| Key::of(flow).ok_or_else(|| no_flow(flow))).collect::<Result<_>>()?;
        if keys.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.flows(&self.table, &keys);
        batch.commit(&self.netlink).map_err(failed("silencing connections"))?;
        self.keys.extend(keys);
        Ok(())
    }

    /// [`prepare`](Self::prepare) and [`add`](Self::add).
    ///
    /// # Errors
    /// As theirs.
    pub fn begin(namespace: Option<BorrowedFd<'_>>, flows: &[Flow]) -> Result<Self> {
        let mut silence = Self::prepare(namespace)?;
        silence.add(flows)?;
        Ok(silence)
    }

    /// From now on the silence outlives our death, not yet the end of this value: see [`leave`](Self::leave). To be called right
    /// before the job is killed. Of a store there is one held lock: an older one goes.
    ///
    /// # Errors
    /// What the kernel says: then nothing is held.
    pub fn keep(&mut self, held: &Held) -> Result<()> {
        let table = held.table();
        let mut batch = Batch::new();
        batch.remove_any(&table);
        batch.table(&table, 0, "a job was killed by cr after a checkpoint: `cr restore` ends this");
        batch.flows(&table, &self.keys);
        batch.note(&table, &held.note(self.keys.len()).map_err(failed("describing a network lock"))?);
        batch.commit(&self.netlink).map_err(failed("holding a network lock"))?;
        self.held = Some(table);
        Ok(())
    }

    /// The job is dead: what [`keep`](Self::keep) has made stays until [`lift`].
    pub fn leave(mut self) {
        self.held = None;
    }

    /// Ends the silence, also what was to be kept of it. This is quick; to drop the value takes the kernel some milliseconds more,
    /// and can wait until the job runs.
    ///
    /// # Errors
    /// What the kernel says: then dropping the value ends it, but for what was to be kept.
    pub fn end(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.remove(&self.table);
        if let Some(held) = &self.held {
            batch.remove_any(held);
        }
        batch.commit(&self.netlink).map_err(failed("ending the silence of connections"))?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // Without a held one the kernel does it all when the socket is closed. With one, a failed step may have left the job alive.
        if self.held.is_some()
            && let Err(error) = self.end()
        {
            log::error!("{error}; the next cr command tries again");
        }
    }
}

/// Whether connections can be silenced here: everything is tried, and nothing made.
///
/// # Errors
/// Why not, and what is lost.
pub fn probe() -> Result<()> {
    let netlink = open(None)?;
    let mut batch = Batch::new();
    batch.table("cr-frozen-probe", OWNED, "");
    batch.try_out(&netlink).map_err(failed("trying a network lock"))
}

/// A way to nftables in a network namespace.
fn open(namespace: Option<BorrowedFd<'_>>) -> Result<Netlink> {
    let here = || Netlink::open(libc::NETLINK_NETFILTER);
    let Some(namespace) = namespace else { return here().map_err(failed("asking for nftables")) };
    // A thread that enters a namespace is in it for good; the socket stays in the one in which it was made.
    let there = || setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| here());
    let made = thread::scope(|scope| scope.spawn(there).join());
    made.expect("system calls do not panic").map_err(failed("asking for nftables in a network namespace"))
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::NotPermitted(source),
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT) => Error::Missing(source),
        _ => Error::Failed { what, source },
    }
}
