//! A network of a test's own, in which nobody else's ports, connections and rules are.

use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

use crate::note_skip;

/// A network namespace that this thread lives in, and whatever it starts from then on: processes and threads, `cr` among them.
/// Dropped, it brings the thread back to where it was; the namespace ends with the last process in it.
pub struct Network {
    before: File,
    own: File,
    neighbour: Option<File>,
    /// Namespaces are a matter of one thread.
    _this_thread: PhantomData<*const ()>,
}

impl Network {
    /// A namespace with nothing but a loopback interface; none where that cannot be had, which is said as the reason of a skip.
    pub fn own() -> Option<Self> {
        Self::make(false).inspect_err(|why| note_skip(why)).ok()
    }

    /// The same with a second namespace beside it, as another machine would be: this one has the address 10.77.0.1, that one
    /// 10.77.0.2, and a virtual cable joins them.
    pub fn with_neighbour() -> Option<Self> {
        Self::make(true).inspect_err(|why| note_skip(why)).ok()
    }

    fn make(with_neighbour: bool) -> Result<Self, String> {
        // Whatever fails from here on, dropping this brings the thread back.
        let mut network = Self { before: current()?, own: current()?, neighbour: None, _this_thread: PhantomData };
        if with_neighbour {
            network.neighbour = Some(fresh()?);
        }
        network.own = fresh()?;
        if let Some(neighbour) = &network.neighbour {
            let there = format!("/proc/{}/fd/{}", std::process::id(), neighbour.as_raw_fd());
            ip(&["link", "add", "here", "type", "veth", "peer", "name", "there", "netns", &there])?;
            plug_in("here", "10.77.0.1/24")?;
            network.at_the_neighbour(|| plug_in("there", "10.77.0.2/24"))?;
        }
        Ok(network)
    }

    /// Does something in the neighbour's namespace; processes and threads that are started there stay there.
    pub fn at_the_neighbour<T>(&self, act: impl FnOnce() -> T) -> T {
        enter(self.neighbour.as_ref().expect("a network with a neighbour"));
        let done = act();
        enter(&self.own);
        done
    }

    /// Gives the loopback interface one more address.
    #[track_caller]
    pub fn add_address(&self, address: &str) {
        ip(&["address", "add", address, "dev", "lo"]).expect("one more address");
    }

    /// Takes it away.
    #[track_caller]
    pub fn remove_address(&self, address: &str) {
        ip(&["address", "del", address, "dev", "lo"]).expect("the address is taken away");
    }

    /// The packet filter's rules in this namespace, as nft(8) prints them; none without that program.
    #[track_caller]
    pub fn rules(&self) -> Option<String> {
        let listed = Command::new("nft").args(["list", "ruleset"]).output().ok()?;
        assert!(listed.status.success(), "nft list ruleset: {}", String::from_utf8_lossy(&listed.stderr));
        Some(String::from_utf8_lossy(&listed.stdout).trim().to_owned())
    }

    /// There may be nothing in the packet filter.
    #[track_caller]
    pub fn expect_no_rules(&self) {
        match self.rules() {
            None => note_skip("no nft (nftables) to look for leftover rules with"),
            Some(rules) => assert!(rules.is_empty(), "rules are left in the packet filter:\n{rules}"),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        enter(&self.before);
    }
}

fn current() -> Result<File, String> {
    File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())
}

fn fresh() -> Result<File, String> {
    enter_network_namespace()?;
    current()
}

fn enter(namespace: &File) {
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("change into a network namespace");
}

fn plug_in(name: &str, address: &str) -> Result<(), String> {
    ip(&["address", "add", address, "dev", name])?;
    ip(&["link", "set", name, "up"])
}

/// Puts the calling thread, and whatever it starts, into a new network namespace, whose loopback interface is up. There is no way
/// back: see [`Network`] for one.
///
/// # Errors
/// Why there is none.
pub fn enter_network_namespace() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network namespace: {error}"))?;
    ip(&["link", "set", "lo", "up"])
}

/// Runs `ip(8)`.
///
/// # Errors
/// What it says.
pub fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|error| format!("no ip(8) (iproute2): {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {}", args.join(" "), said.trim())) }
}
