//! The job that checkpoints are taken of: its processes, and what is known of them from one checkpoint to the next.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::checkpoint::arena::Arena;
use crate::checkpoint::collect;
use crate::checkpoint::member::{self, Member};
use crate::checkpoint::part::{self, Part};
use crate::checkpoint::survey::Declared;
use crate::checkpoint::watch::{self, Watch};
use crate::error::{Error, Result};
use crate::family::{Family, Only, Relative};
use crate::image::Parent;
use crate::object::files::external::{self, Key};
use crate::object::files::inet;
use crate::object::files::net::queue;
use crate::object::files::stored::Digests;
use crate::object::spaces::Spaces;
use crate::object::{self, files};
use crate::procfs::{self, Status};
use crate::ranges::RangeSet;
use crate::remote::freeze;
use crate::store::{Chain, Store};
use crate::sys::aide::Aide;
use crate::sys::fd;
use crate::track::Oracle;

/// A job under our eyes: a process and all that descend from it.
///
/// Whatever stops it must be called from one and the same thread: ptrace is per thread.
#[derive(Debug)]
pub struct Job {
    pub(super) family: Family,
    /// It is a part of another.
    pub(super) part: Option<Part>,
    pub(super) pidfd: OwnedFd,
    /// Its living processes as they were last seen, the root first and parents before their children.
    pub(super) members: Vec<Member>,
    /// The eBPF programs that follow it; none where they cannot be loaded, or it was not tried yet.
    pub(super) watch: Option<Watch>,
    pub(super) watch_tried: bool,
    pub(super) spaces: Spaces,
    /// Its open file descriptions.
    pub(super) descriptions: files::kept::Past,
    /// The descriptions that the newest durable checkpoint holds.
    pub(super) published: Digests,
    /// What tells its System V objects from others'.
    pub(super) ipc: object::ipc::Past,
    /// Who outside of the job may be at the other end of its Unix sockets.
    pub(super) external: Vec<Key>,
    /// What is to become of TCP connections with somebody outside, and of the job.
    pub(super) plan: inet::Plan,
    /// The last try to take a checkpoint came to the frozen window.
    pub(super) stood_still: bool,
    /// A process of it was killed when it had been stopped already, in the last try.
    pub(super) lost_in_window: bool,
    /// What becomes of datagrams that it has not read.
    pub(super) datagrams: queue::Policy,
    /// The newest durable checkpoint.
    pub(super) parent: Option<Parent>,
    /// By content space, the pages that have content according to the chain.
    pub(super) content: HashMap<u64, RangeSet>,
    /// The chain was written by somebody else: every page is compared with it.
    pub(super) doubt: bool,
    pub(super) arena: Arena,
    /// A thread for work in the frozen window beside our own, where there is a CPU for it.
    pub(super) aide: Option<Aide>,
    /// By process, what its mappings say of themselves.
    pub(super) declared: HashMap<i32, Declared>,
    /// Checkpoints since what was noted of written pages was compared with the page tables.
    pub(super) unaudited: u32,
    /// Written pages of which nothing had been noted: there should never be any.
    pub(super) missed_notes: u64,
    /// What to say of the next checkpoint.
    pub(super) notes: Vec<String>,
}

impl Job {
    /// Takes a process and its descendants under our eyes. Nothing of them is stopped or changed.
    ///
    /// # Errors
    /// [`Error::NoSuchJob`], [`Error::NotAllowed`].
    pub fn open(pid: i32) -> Result<Self> {
        let not_allowed = |why: &str, todo: &str| Error::NotAllowed { pid, why: why.to_owned(), todo: todo.to_owned() };
        if pid <= 0 {
            return Err(Error::NoSuchJob { pid });
        }
        let status = Status::read(pid, pid).map_err(|_| Error::NoSuchJob { pid })?;
        if status.get("Tgid") != pid.to_string() {
            let todo = format!("give the pid of its process, {}", status.get("Tgid"));
            return Err(not_allowed("it is a thread, not a process", &todo));
        }
        if pid as u32 == std::process::id() {
            return Err(not_allowed("it is cr itself", "give the pid of the job"));
        }
        if pid == 1 {
            return Err(not_allowed("it is init", "give the pid of the job"));
        }
        if status.get("Kthread") == "1" || status.get("VmSize").is_empty() && !status.get("State").starts_with('Z') {
            return Err(not_allowed("it is a kernel thread", "give the pid of the job"));
        }
        if Relative::look(pid).map_err(|_| Error::NoSuchJob { pid })?.zombie {
            return Err(not_allowed("it has ended already (a zombie)", "give the pid of a job that runs"));
        }
        let pidfd = fd::pidfd_open(pid).map_err(|_| Error::NoSuchJob { pid })?;
        let family = Family { root: pid, reaper: None, only: None };
        Ok(Self {
            family,
            part: None,
            pidfd,
            members: vec![Member::open(&Relative { pid, ppid: 0, zombie: false }, false)?],
            watch: None,
            watch_tried: false,
            spaces: Spaces::default(),
            descriptions: files::kept::Past::default(),
            published: Digests::default(),
            ipc: object::ipc::Past::default(),
            external: Vec::new(),
            plan: inet::Plan::default(),
            stood_still: false,
            lost_in_window: false,
            datagrams: queue::Policy::default(),
            parent: None,
            content: HashMap::new(),
            doubt: false,
            notes: Vec::new(),
            arena: Arena::default(),
            aide: None,
            declared: HashMap::new(),
            unaudited: 0,
            missed_notes: 0,
        })
    }

    /// Takes some processes of the job of `root` under our eyes, as a job of which the first of them is the root.
    ///
    /// # Errors
    /// Those of [`Job::open`], and [`Error::NotAllowed`] for a process that is not of the job.
    pub fn open_part(root: i32, only: &Only) -> Result<Self> {
        let whole = Self::open(root)?;
        let relatives = whole.family.members().map_err(|_| Error::NoSuchJob { pid: root })?;
        let pids = part::choose(root, only, &relatives)?;
        let mut job = Self::open(*pids.first().ok_or(Error::NoSuchJob { pid: root })?)?;
        job.family.only = Some(Only { pids, single: only.single });
        job.part = Some(Part::of(root));
        Ok(job)
    }

    /// A job that was just restored from `chain` and is tracked already, each process by its oracle.
    pub(crate) fn restored(
        pid: i32,
        chain: &Chain,
        oracles: HashMap<i32, Option<Oracle>>,
        spaces: Spaces,
    ) -> Result<Self> {
        let mut job = Self::open(pid)?;
        job.spaces = spaces;
        job.doubt = oracles.values().any(Option::is_none);
        let mut oracles = oracles;
        for member in &mut job.members {
            member.oracle = oracles.remove(&member.pid).flatten();
        }
        let relatives = oracles.keys().map(|pid| Relative { pid: *pid, ppid: 0, zombie: false });
        for relative in relatives.collect::<Vec<_>>() {
            let mut member = Member::open(&relative, false)?;
            member.oracle = oracles.remove(&relative.pid).flatten();
            job.members.push(member);
        }
        job.learn(chain);
        Ok(job)
    }

    /// The checkpoint that the next delta builds on.
    pub fn builds_on(&self) -> Option<u64> {
        self.parent.map(|parent| parent.id)
    }

    /// If the next delta would build on `from`: makes it build on `image`, a full image of the same checkpoint, which has pages of these
    /// content spaces alone. Says whether it does now.
    pub fn builds_on_instead(&mut self, from: Parent, image: Parent, spaces: &BTreeSet<u64>) -> bool {
        if self.parent != Some(from) {
            return false;
        }
        self.parent = Some(image);
        // Of what the job did not have any more the chain says nothing now.
        self.content.retain(|space, _| spaces.contains(space));
        true
    }

    /// Says that the calling process is the job's parent and subreaper, and has no children but the job's: orphans among
    /// them are found.
    pub fn adopt_orphans(&mut self) {
        self.family.reaper = Some(std::process::id() as i32);
    }

    /// The pid of the job's root.
    pub fn pid(&self) -> i32 {
        self.family.root
    }

    /// Becomes readable when the job's root has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Ends every process of the job.
    pub fn kill(&mut self) {
        // Twice: what was born meanwhile.
        for _ in 0..2 {
            let Ok(relatives) = self.relatives() else { break };
            let _ = self.refresh(&relatives);
            for member in &self.members {
                let _ = fd::pidfd_send_signal(member.pidfd(), libc::SIGKILL);
            }
        }
    }

    /// The processes of the job as they are now, the root first.
    pub(super) fn relatives(&mut self) -> std::io::Result<Vec<Relative>> {
        self.family.members_among(&mut watch::living(&mut self.watch))
    }

    /// Takes new processes of the job under our eyes, and forgets those that have ended. A process that ends while it is
    /// looked at is left out.
    pub(super) fn refresh(&mut self, relatives: &[Relative]) -> Result<()> {
        let living = |pid: i32| relatives.iter().any(|r| r.pid == pid && !r.zombie);
        freeze::let_go_of_ended();
        // When those ended that came and went is known from the programs that follow the job, if they do.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ended = self.watch.as_mut().map(Watch::ended).unwrap_or_default();
        let seen = relatives.iter().map(|r| (r.pid, now)).chain(ended);
        seen.for_each(|(pid, at)| self.ipc.saw(pid, at.as_secs() as i64));
        // A pid may be that of another process by now.
        let (known, ended): (Vec<Member>, Vec<Member>) =
            std::mem::take(&mut self.members).into_iter().partition(|m| !m.has_ended());
        let mut known: HashMap<i32, Member> = known.into_iter().map(|m| (m.pid, m)).collect();
        let ended: Vec<i32> = ended.iter().map(|m| m.pid).collect();
        for relative in relatives.iter().filter(|r| !r.zombie) {
            let in_job = living(relative.ppid);
            let member = match known.remove(&relative.pid) {
                Some(mut member) => member.relate(relative.ppid, in_job).map(|()| member),
                None => Member::open(relative, in_job),
            };
            match member {
                Ok(member) => self.members.push(member),
                Err(e) if relative.pid == self.pid() => return Err(e),
                Err(_) if !std::fs::exists(procfs::path(relative.pid, "exe")).unwrap_or(true) => {}
                Err(_) if procfs::is_ending(relative.pid) => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(watch) = &mut self.watch {
            known.keys().chain(&ended).for_each(|pid| watch.forget(*pid));
        }
        if self.members.is_empty() {
            return Err(self.gone("a look at its processes"));
        }
        Ok(())
    }

    /// The tables of descriptors of the job.
    pub(super) fn holders(&self) -> Vec<files::Holder<'_>> {
        member::holders(&self.members)
    }

    /// Goes on with a chain that another controller left: the next checkpoint is a delta, found by comparing contents.
    ///
    /// # Errors
    /// When the chain is damaged, or of another job.
    pub fn follow_chain(&mut self, store: &Store) -> Result<()> {
        let chain = Chain::open(store, None)?;
        // A delta on a damaged image could not be restored: that is found out now, not then.
        chain.verify_pages(std::thread::available_parallelism().map_or(1, usize::from))?;
        collect::check_same_job(self.pid(), &chain)?;
        self.learn(&chain);
        self.doubt = true;
        Ok(())
    }

    fn learn(&mut self, chain: &Chain) {
        for space in chain.space_ids() {
            self.spaces.reserve(space);
            let pages = chain.content_pages(space).map(|(first, pages)| first..first + pages).collect();
            self.content.insert(space, pages);
        }
        let objects = object::records::get::<object::ipc::Ipc>(chain.newest(), object::ipc::KIND);
        self.ipc = objects.map(|ipc| object::ipc::Past::of_chain(&ipc)).unwrap_or_default();
        let files = files::stored::read(chain.images()).unwrap_or_default();
        self.external.extend(external::keys(&files));
        // What cannot be told apart is stored again.
        self.published = Digests::of(&files).unwrap_or_default();
        self.parent = Some(chain.newest().as_parent());
    }
}
