//! Network locks: the other end of a TCP connection sees silence while one is there, and nothing else; none is there longer than it
//! should be, whatever becomes of `cr`. Each test has a network namespace of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use cr::image::JobId;
use cr::netlink::{ACKNOWLEDGE, Messages, Netlink, REQUEST};
use cr::netlock::{self, Flow, Held, Process, Silence};
use cr::object;
use cr::store::Store;
use cr::sys::tcp::unacknowledged;
use cr_tests::{cr, guest, run, wait_until};
use nix::sched::{CloneFlags, unshare};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Longer than some packets of a connection that works take, and their repetitions.
const A_WHILE: Duration = Duration::from_millis(300);

/// Runs `body` in a thread that has a network namespace of its own, and so have the processes that it starts.
fn in_namespace(body: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        bring_loopback_up();
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn bring_loopback_up() {
    /// `linux/rtnetlink.h`, `linux/if.h`.
    const NEW_LINK: u16 = 16;
    const UP: u32 = 1;
    let netlink = Netlink::open(0).expect("a socket for routes");
    let up = Messages::one(NEW_LINK, REQUEST | ACKNOWLEDGE, |out| {
        // `struct ifinfomsg`: family, kind, index (the loopback interface is the first), flags, which of them.
        for word in [0, 1, UP, UP] {
            out.put(&word.to_ne_bytes());
        }
    });
    netlink.send(&up).and_then(|()| netlink.answers(&mut |_| ())).expect("the loopback interface is up");
}

/// A connection; both ends do not wait.
struct Pair {
    job: TcpStream,
    peer: TcpStream,
}

impl Pair {
    fn of(listener: &TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        // Over IPv4 to a listener for both.
        let to = if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) { (V4, address.port()).into() } else { address };
        let peer = TcpStream::connect(to).expect("a connection");
        let job = listener.accept().expect("its other end").0;
        for end in [&peer, &job] {
            end.set_nonblocking(true).unwrap();
            end.set_nodelay(true).unwrap();
        }
        Self { job, peer }
    }

    fn alone(ip: IpAddr) -> Self {
        Self::of(&TcpListener::bind((ip, 0)).expect("a listener"))
    }

    fn flow(&self) -> Flow {
        Flow { local: self.job.local_addr().unwrap(), remote: self.job.peer_addr().unwrap() }
    }

    /// The other end sends to the job and hears nothing at all.
    #[track_caller]
    fn assert_silent(&mut self, sent: &[u8]) {
        let before = unacknowledged(self.peer.as_fd()).unwrap();
        self.peer.write_all(sent).expect("the peer can send");
        sleep(A_WHILE);
        assert_eq!(unacknowledged(self.peer.as_fd()).unwrap(), before + sent.len(), "something was acknowledged");
        assert!(self.peer.take_error().unwrap().is_none());
        assert!(nothing_in(&mut self.peer) && nothing_in(&mut self.job));
    }

    /// Both ends hear each other; `earlier` is what the other end had sent before.
    #[track_caller]
    fn assert_talks(&mut self, earlier: &[u8]) {
        self.peer.write_all(b"peer").expect("the peer can send");
        self.job.write_all(b"job").expect("the job can send");
        assert_eq!(read(&mut self.job, earlier.len() + 4), [earlier, b"peer"].concat());
        assert_eq!(read(&mut self.peer, 3), b"job");
        wait_until("all is acknowledged", || unacknowledged(self.peer.as_fd()) == Ok(0));
    }
}

fn nothing_in(end: &mut TcpStream) -> bool {
    end.read(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
}

#[track_caller]
fn read(end: &mut TcpStream, len: usize) -> Vec<u8> {
    let (mut bytes, start) = (Vec::new(), Instant::now());
    let mut buffer = vec![0; len];
    while bytes.len() < len {
        assert!(start.elapsed() < Duration::from_secs(20), "{} of {len} bytes arrived", bytes.len());
        match end.read(&mut buffer[..len - bytes.len()]) {
            Ok(0) => panic!("the end after {} of {len} bytes", bytes.len()),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(1)),
            Err(e) => panic!("{e} after {} of {len} bytes", bytes.len()),
        }
    }
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// How many locks are held in the namespace.
fn locks() -> usize {
    netlock::held(None).expect("locks are listed").len()
}

#[test]
fn silence_while_it_lives_and_all_arrives_afterwards() {
    for ip in [V4, V6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        in_namespace(move || {
            let listener = TcpListener::bind((ip, 0)).unwrap();
            let (mut silent, mut other) = (Pair::of(&listener), Pair::of(&listener));
            let mut silence = Silence::begin(None, &[silent.flow()]).expect("silence");
            let sent = pattern(50_000);
            silent.assert_silent(&sent[..10]);
            silent.assert_silent(&sent[10..]);
            // Nor does what the job sends get out.
            silent.job.write_all(b"late").expect("the job can send");
            sleep(A_WHILE);
            assert!(nothing_in(&mut silent.peer));
            other.assert_talks(b"");
            let mut new = Pair::of(&listener);
            new.assert_talks(b"");
            silence.end().expect("the silence ends");
            assert_eq!(read(&mut silent.peer, 4), b"late");
            silent.assert_talks(&sent);
            // The same by dropping it.
            drop(Silence::begin(None, &[silent.flow()]).expect("silence"));
            silent.assert_talks(b"");
        });
    }
}

/// What the kernel says to the other end when the job is killed: an end, or a reset where something was not read yet.
#[test]
fn a_dead_job_is_silent() {
    in_namespace(|| {
        for unread in [&b""[..], b"unread"] {
            let pair = Pair::alone(V4);
            let flow = pair.flow();
            let Pair { job, mut peer } = pair;
            peer.write_all(unread).unwrap();
            wait_until("it has arrived", || unacknowledged(peer.as_fd()) == Ok(0));
            let mut silence = Silence::begin(None, &[flow]).unwrap();
            drop(job);
            peer.write_all(b"more").expect("the peer can send");
            sleep(A_WHILE);
            assert!(nothing_in(&mut peer), "{unread:?}");
            silence.end().unwrap();
            // Without silence it would have been heard.
            wait_until("the other end hears of it", || !nothing_in(&mut peer));
        }
    });
}

#[test]
fn an_end_that_comes_meanwhile_is_heard_of_afterwards() {
    in_namespace(|| {
        let mut pair = Pair::alone(V6);
        let mut silence = Silence::begin(None, &[pair.flow()]).unwrap();
        pair.peer.write_all(b"last").unwrap();
        pair.peer.shutdown(Shutdown::Write).unwrap();
        sleep(A_WHILE);
        assert!(nothing_in(&mut pair.job));
        silence.end().unwrap();
        assert_eq!(read(&mut pair.job, 4), b"last");
        wait_until("the end arrives", || pair.job.read(&mut [0]).is_ok_and(|n| n == 0));
        pair.job.write_all(b"answer").unwrap();
        assert_eq!(read(&mut pair.peer, 6), b"answer");
    });
}

#[test]
fn a_thousand_connections() {
    in_namespace(|| {
        let listener = TcpListener::bind((V4, 0)).unwrap();
        let mut pairs: Vec<_> = (0..400).map(|_| Pair::of(&listener)).collect();
        let mut flows: Vec<_> = pairs.iter().take(350).map(Pair::flow).collect();
        // As many again that are not there, of both families.
        let foreign = |ip: IpAddr, n: u16| Flow { local: (ip, 1000 + n).into(), remote: (ip, 2).into() };
        flows.extend((0..400).map(|n| foreign(V4, n)).chain((0..9250).map(|n| foreign(V6, n))));
        let mut times = Vec::new();
        for some in [&flows[..200], &flows[..1000], &flows] {
            let start = Instant::now();
            let mut silence = Silence::prepare(None).unwrap();
            let prepared = start.elapsed();
            let start = Instant::now();
            silence.add(some).unwrap();
            let added = start.elapsed();
            if some.len() == flows.len() {
                for pair in &mut pairs {
                    pair.peer.write_all(b"x").unwrap();
                }
                sleep(A_WHILE);
                let heard: Vec<_> = pairs.iter_mut().map(|pair| !nothing_in(&mut pair.job)).collect();
                assert!(
                    heard[..350].iter().all(|heard| !heard) && heard[350..].iter().all(|heard| *heard),
                    "{heard:?}"
                );
            }
            let start = Instant::now();
            silence.end().unwrap();
            times.push((some.len(), prepared, added, start.elapsed()));
            silence.end().expect("an end twice is one end");
        }
        println!("connections, preparing, adding, ending: {times:?}");
        for pair in &mut pairs[..350] {
            assert_eq!(read(&mut pair.job, 1), b"x");
        }
        assert!(times[0].2 < Duration::from_millis(20), "{times:?}");
    });
}

#[test]
fn ends_of_two_families_are_no_connection() {
    in_namespace(|| {
        let flow = Flow { local: (V4, 1).into(), remote: (V6, 2).into() };
        let error = Silence::begin(None, &[flow]).expect_err("no connection").to_string();
        assert!(error.contains("127.0.0.1:1") && error.contains("[::1]:2"), "{error}");
    });
}

#[test]
fn in_another_namespace() {
    in_namespace(|| {
        let there = File::open("/proc/thread-self/ns/net").unwrap();
        let mut pair = Pair::alone(V4);
        let (flow, pid) = (pair.flow(), std::process::id() as i32);
        let job = TestStore::new();
        let held = job.held(pid);
        let begin = move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut silence = Silence::begin(Some(there.as_fd()), &[flow]).expect("silence elsewhere");
            silence.keep(&held).expect("a held lock elsewhere");
            assert_eq!((netlock::held(Some(there.as_fd())).unwrap().len(), locks()), (1, 0));
            silence.leave();
            (there, held.job)
        };
        let (there, id) = thread::spawn(begin).join().unwrap();
        pair.assert_silent(b"abc");
        let lift = move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            (netlock::lift(None, id).unwrap(), netlock::lift(Some(there.as_fd()), id).unwrap())
        };
        assert_eq!(thread::spawn(lift).join().unwrap(), (0, 1));
        pair.assert_talks(b"abc");
    });
}

/// A store, and where it is.
struct TestStore {
    dir: tempfile::TempDir,
    id: JobId,
}

impl TestStore {
    fn new() -> Self {
        Self::at("store")
    }

    fn at(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let id = Store::create_or_open(&dir.path().join(name), object::KINDS).unwrap().job();
        Self { dir, id }
    }

    fn path(&self) -> PathBuf {
        let inside = fs::read_dir(self.dir.path()).unwrap().next();
        inside.expect("the store").unwrap().path()
    }

    fn held(&self, pid: i32) -> Held {
        Held { store: self.path(), job: self.id, root: Process::of(pid).unwrap() }
    }
}

/// This test program once more, as a `cr` that makes a lock and waits to be told to go on, or to be killed.
struct Other {
    child: Child,
    to: Option<ChildStdin>,
}

const TASK: &str = "CR_TEST_NETLOCK_TASK";

impl Other {
    /// `task`: what is to be done, the connection's ends, the store, the root's pid.
    fn start(task: &str, flow: Flow, store: &Path, root: u32) -> Self {
        let task = format!("{task}\n{}\n{}\n{root}\n{}", flow.local, flow.remote, store.display());
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", "other_program", "--nocapture"]).env(TASK, task);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let told =
            BufReader::new(child.stdout.as_mut().unwrap()).lines().find(|line| line.as_deref().unwrap() == "done");
        assert!(told.is_some(), "the other program failed");
        let to = child.stdin.take();
        Self { child, to }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn finish(mut self) {
        drop(self.to.take());
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn other_program() {
    let Ok(task) = std::env::var(TASK) else { return };
    let [task, local, remote, root, store] = task.splitn(5, '\n').collect::<Vec<_>>()[..] else { panic!("{task}") };
    let flow = Flow { local: local.parse().unwrap(), remote: remote.parse().unwrap() };
    let mut silence = Silence::begin(None, &[flow]).unwrap();
    if task != "begin" {
        let job = Store::open_existing(Path::new(store), object::KINDS).unwrap().job();
        let root = Process::of(root.parse().unwrap()).unwrap();
        silence.keep(&Held { store: store.into(), job, root }).unwrap();
    }
    println!("\ndone");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    if task == "leave" {
        silence.leave();
    }
}

/// Something that lives: a job.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

#[test]
fn silence_ends_with_a_cr_that_is_killed() {
    in_namespace(|| {
        for ip in [V4, V6] {
            let mut pair = Pair::alone(ip);
            let other = Other::start("begin", pair.flow(), Path::new("/"), 1);
            pair.assert_silent(b"abc");
            assert!(netlock::clean_up().is_empty());
            pair.assert_silent(b"def");
            other.kill();
            pair.assert_talks(b"abcdef");
        }
    });
}

/// Killed between the making of a held lock and the killing of the job: the job is cut off until the next `cr` comes, which says so.
#[test]
fn a_lock_of_a_job_that_lives_is_removed_by_the_next_cr() {
    in_namespace(|| {
        let (store, mut pair, job) = (TestStore::new(), Pair::alone(V4), Sleeper::new());
        let other = Other::start("keep", pair.flow(), &store.path(), job.0.id());
        // It may be just about to kill the job.
        assert_eq!((netlock::clean_up(), locks()), (vec![], 1));
        other.kill();
        pair.assert_silent(b"abc");
        let listed = run(cr().args(["list", "--store"]).arg(store.path()));
        let line =
            listed.stderr.lines().find(|line| line.starts_with("cr: removed a network lock")).unwrap_or_default();
        let pid = format!("pid {}, ", job.0.id());
        assert!(
            line.contains(&pid) && line.contains(store.path().to_str().unwrap()) && line.contains("1 connection "),
            "{listed}"
        );
        pair.assert_talks(b"abc");
        assert_eq!((netlock::clean_up(), locks()), (vec![], 0));
        let listed = run(cr().args(["list", "--store"]).arg(store.path()));
        assert!(!listed.stderr.contains("lock"), "{listed}");
    });
}

#[test]
fn a_lock_that_its_maker_gives_up_is_gone() {
    in_namespace(|| {
        let (store, mut pair, job) = (TestStore::new(), Pair::alone(V4), Sleeper::new());
        let other = Other::start("give up", pair.flow(), &store.path(), job.0.id());
        pair.assert_silent(b"abc");
        other.finish();
        assert_eq!(locks(), 0);
        pair.assert_talks(b"abc");
    });
}

#[test]
fn a_held_lock_outlives_its_maker_until_a_restore_lifts_it() {
    in_namespace(|| {
        // A path that takes several pieces, and has what separates words.
        let name = format!("a b\n{}", "long".repeat(60));
        let (store, mut pair, mut job) = (TestStore::at(&name), Pair::alone(V6), Sleeper::new());
        let held = store.held(job.0.id() as i32);
        let other = Other::start("leave", pair.flow(), &store.path(), job.0.id());
        job.end();
        other.finish();
        pair.assert_silent(b"abc");
        assert!(netlock::clean_up().is_empty());
        pair.assert_silent(b"def");
        let found = netlock::held(None).unwrap();
        assert_eq!(found.iter().map(|lock| (&lock.held, lock.flows)).collect::<Vec<_>>(), [(&held, 1)]);
        assert_eq!((netlock::lift(None, JobId([7; 16])).unwrap(), locks()), (0, 1));
        assert_eq!((netlock::lift(None, store.id).unwrap(), locks()), (1, 0));
        pair.assert_talks(b"abcdef");
        assert_eq!(netlock::lift(None, store.id).unwrap(), 0);
    });
}

#[test]
fn a_lock_whose_store_is_gone_is_removed() {
    in_namespace(|| {
        for another in [false, true] {
            let (store, mut pair, mut job) = (TestStore::new(), Pair::alone(V4), Sleeper::new());
            let path = store.path();
            let other = Other::start("leave", pair.flow(), &path, job.0.id());
            job.end();
            other.finish();
            pair.assert_silent(b"abc");
            fs::remove_dir_all(&path).unwrap();
            if another {
                Store::create_or_open(&path, object::KINDS).unwrap();
            }
            // Several at once: one removes it, and one says so.
            let all: Vec<_> = (0..4).map(|_| thread::spawn(netlock::clean_up)).collect();
            let said: Vec<_> = all.into_iter().flat_map(|one| one.join().unwrap()).collect();
            assert!(said.len() == 1 && said[0].contains(path.to_str().unwrap()), "{said:?}");
            pair.assert_talks(b"abc");
        }
    });
}

#[test]
fn stores_have_a_lock_each() {
    in_namespace(|| {
        let stores = [TestStore::new(), TestStore::new()];
        let (mut a, mut b, mut c) = (Pair::alone(V4), Pair::alone(V4), Pair::alone(V6));
        let mut job = Sleeper::new();
        let hold = |pair: &Pair, at: usize| Other::start("leave", pair.flow(), &stores[at].path(), job.0.id()).finish();
        hold(&a, 0);
        hold(&b, 1);
        // A newer one of the first store takes the place of the older.
        hold(&c, 0);
        job.end();
        assert_eq!((netlock::clean_up(), locks()), (vec![], 2));
        a.assert_talks(b"");
        b.assert_silent(b"abc");
        c.assert_silent(b"def");
        assert_eq!((netlock::lift(None, stores[0].id).unwrap(), locks()), (1, 1));
        c.assert_talks(b"def");
        b.assert_silent(b"ghi");
        assert_eq!((netlock::lift(None, stores[1].id).unwrap(), locks()), (1, 0));
        b.assert_talks(b"abcghi");
    });
}

/// The kernel has no nftables, or we may not use it: it is said what is lost, and no command is bothered with it.
#[test]
fn without_nftables_it_is_said_what_is_lost() {
    const INNER: &str = "CR_TEST_NETLOCK_WITHOUT";
    if let Ok(expected) = std::env::var(INNER) {
        let flow = Flow { local: SocketAddr::from((V4, 1)), remote: SocketAddr::from((V4, 2)) };
        for error in [Silence::begin(None, &[flow]).map(drop).unwrap_err(), netlock::probe().unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains(&expected) && error.contains("reset"), "{error}");
        }
        assert_eq!(netlock::clean_up(), Vec::<String>::new());
        return;
    }
    in_namespace(|| {
        netlock::probe().expect("nftables");
        assert_eq!(locks(), 0);
        let program = std::env::current_exe().unwrap();
        let arguments = ["--exact", "without_nftables_it_is_said_what_is_lost", "--nocapture"];
        let mut nobody = Command::new("/proc/self/exe");
        nobody.args(arguments).env(INNER, "CAP_NET_ADMIN").uid(65534).gid(65534);
        let mut lacking = Command::new(guest("no_nftables"));
        lacking.arg(program).args(arguments).env(INNER, "has no nftables");
        for mut command in [nobody, lacking] {
            let finished = run(&mut command);
            assert!(finished.code == Some(0) && finished.stdout.contains("1 passed"), "{finished}");
        }
        let mut command = Command::new(guest("no_nftables"));
        let checked = run(command.arg(cr().get_program()).args(["check", "--json"]));
        let json: serde_json::Value = serde_json::from_str(&checked.stdout).expect("JSON");
        let feature =
            json["features"].as_array().unwrap().iter().find(|f| f["name"] == "nftables").expect("nftables").clone();
        assert!(
            feature["available"] == false && feature["lost_without"].as_str().unwrap().contains("reset"),
            "{feature}"
        );
        assert_eq!(checked.code, Some(0));
    });
}
