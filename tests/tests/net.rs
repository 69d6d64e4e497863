//! Sockets of networks that are no TCP ones: UDP, ping, raw, packet and netlink sockets, and what is refused by name.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use cr_tests::{Job, Pace, chain_and_back, enter_network_namespace, full_and_back, guest_names, ip, note_skip, run};
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};

type Way = fn(&str, &[&str], Pace);

const WAYS: [Way; 2] = [full_and_back, chain_and_back];

/// A network namespace of our own, in which pings are allowed; none where there can be none.
fn own_network() -> bool {
    if let Err(why) = enter_network_namespace() {
        note_skip(&format!("net: {why}"));
        return false;
    }
    if let Err(e) = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647") {
        note_skip(&format!("net: no ping sockets: {e}"));
    }
    true
}

/// The same with a second interface.
fn own_interfaces() -> bool {
    let made = || {
        ip(&["link", "add", "d0", "type", "veth", "peer", "name", "d1"])?;
        ip(&["address", "add", "10.99.0.1/24", "dev", "d0"])?;
        ip(&["link", "set", "d1", "up"])?;
        ip(&["link", "set", "d0", "up"])
    };
    own_network() && made().inspect_err(|why| note_skip(&format!("net: no second interface: {why}"))).is_ok()
}

#[test]
fn udp_full() {
    full_and_back("net_udp", &[], Pace::default());
}

#[test]
fn udp_chain() {
    chain_and_back("net_udp", &[], Pace::default());
}

#[test]
fn raw_and_back() {
    if own_network() {
        for way in WAYS {
            way("net_raw", &[], Pace::default());
        }
    }
}

#[test]
fn groups_and_back() {
    if own_interfaces() {
        for way in WAYS {
            way("net_groups", &[], Pace::default());
        }
    }
}

/// What cannot be restored, and words of its refusal.
const REFUSED: &[(&str, &str)] = &[
    ("mptcp", "MPTCP (Multipath TCP)"),
    ("sctp", "a socket of SCTP"),
    ("dccp", "a socket of DCCP"),
    ("vsock", "AF_VSOCK"),
    ("xdp", "AF_XDP"),
    ("alg", "AF_ALG"),
    ("key", "AF_KEY"),
    ("rds", "AF_RDS"),
    ("tipc", "AF_TIPC"),
    ("can", "AF_CAN"),
    ("bluetooth", "AF_BLUETOOTH"),
    ("netfilter", "a netlink socket of netfilter"),
    ("audit", "a netlink socket of audit"),
    ("corked", "holds back what was written to it (UDP_CORK"),
    ("tunnel", "carries a tunnel (UDP_ENCAP)"),
    ("ring", "a ring of packets in memory shared with the kernel"),
    ("fanout", "shares its packets with others (PACKET_FANOUT)"),
    ("ebpf", "an eBPF program as its filter (SO_ATTACH_BPF)"),
    ("chooser", "chooses among those that share its port"),
    ("tcp-chooser", "chooses among those that share its port"),
    ("shared", "has open too"),
    ("elsewhere", "a socket of another network namespace"),
    ("unread", "holds a message which the job has not read"),
];

#[test]
fn all_others_are_refused_by_name() {
    if !own_network() {
        return;
    }
    let names: Vec<&str> = REFUSED.iter().map(|(name, _)| *name).collect();
    assert_eq!(guest_names("net_one"), names, "the guest's list and the test's");
    let problems: Vec<String> = REFUSED.iter().filter_map(|(name, words)| refusal(name, words).err()).collect();
    assert!(problems.is_empty(), "{} of {}:\n{}", problems.len(), REFUSED.len(), problems.join("\n"));
}

fn refusal(name: &str, words: &str) -> Result<(), String> {
    let mut job = Job::start("net_one", &[name]);
    if let Some(why) = job.read_link(&format!("skipped.{name}")) {
        note_skip(&format!("net: {name}: {why}"));
        return Ok(());
    }
    let place = job.read_link("say.where").unwrap_or_default();
    let checkpoint = run(&mut job.checkpoint_command());
    let said = checkpoint.said();
    let named = checkpoint.code == Some(120) && said.contains(words) && said.contains(&place);
    let image = job.store().join("00000001.cr").exists();
    job.advance(5);
    job.finish();
    if named && !image { Ok(()) } else { Err(format!("{name}: not {words:?} at {place:?}\n{checkpoint}")) }
}

/// A checkpoint of a job with one socket, which is killed; what it needs is taken away and given back.
fn needs(name: &str, why: &[&str], take: impl FnOnce() -> Box<dyn FnOnce()>) {
    let mut job = Job::start("net_one", &[name]);
    job.advance(3);
    job.checkpoint();
    job.kill();
    let give_back = take();
    let failed = job.try_restore(&[]);
    let said = failed.said();
    assert!(failed.code == Some(123) && why.iter().all(|w| said.contains(w)), "{name}: expected {why:?}\n{failed}");
    give_back();
    job.restore();
    job.advance(3);
    job.finish();
}

fn change(take: &'static [&'static [&'static str]], give: &'static [&'static [&'static str]]) -> Box<dyn FnOnce()> {
    let all =
        |commands: &[&[&str]]| commands.iter().for_each(|c| ip(c).unwrap_or_else(|why| panic!("ip {c:?}: {why}")));
    all(take);
    Box::new(move || all(give))
}

#[test]
fn what_is_missing_at_a_restore_is_named() {
    if !own_interfaces() {
        return;
    }
    needs("address", &["10.99.0.1:7777 is in use"], || {
        let other = UdpSocket::bind("10.99.0.1:7777").expect("the address is free");
        Box::new(|| drop(other))
    });
    needs("address", &["this machine has no address 10.99.0.1"], || {
        change(
            &[&["address", "delete", "10.99.0.1/24", "dev", "d0"]],
            &[&["address", "add", "10.99.0.1/24", "dev", "d0"]],
        )
    });
    needs("route", &["no route leads to 10.99.0.2", "UDP socket"], || {
        change(
            &[&["address", "delete", "10.99.0.1/24", "dev", "d0"], &["address", "add", "10.99.0.1/32", "dev", "d0"]],
            &[&["address", "delete", "10.99.0.1/32", "dev", "d0"], &["address", "add", "10.99.0.1/24", "dev", "d0"]],
        )
    });
    needs("port", &["netlink socket of route, port 4242", "has that port"], || {
        let other = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        let other = other.expect("a netlink socket");
        bind(other.as_raw_fd(), &NetlinkAddr::new(4242, 0)).expect("the port is free");
        Box::new(|| drop(other))
    });
    for name in ["device", "packet"] {
        needs(name, &["this machine has no network interface d0"], || {
            change(&[&["link", "set", "d0", "name", "d9"]], &[&["link", "set", "d9", "name", "d0"]])
        });
    }
}

/// What becomes of the queue of a job's one socket: how many datagrams are there in the end, and what the checkpoint says.
fn queue_after(name: &str, args: &[&str]) -> (String, String) {
    let mut job = Job::start("net_one", &[name]);
    job.advance(3);
    let done = run(job.checkpoint_command().args(args));
    assert_eq!(done.code, Some(0), "{done}");
    let said = job.list().pop().map(|c| c.widened.join("\n")).unwrap_or_default();
    job.advance(3);
    job.kill();
    job.restore();
    job.advance(3);
    job.finish();
    (job.read_link("say.count").unwrap_or_default(), said)
}

#[test]
fn what_was_not_read_goes_by_the_policy() {
    if !own_network() {
        return;
    }
    assert_eq!(queue_after("queued", &[]), ("3".to_owned(), String::new()));
    let (count, said) = queue_after("queued", &["--udp", "drop"]);
    assert!(count == "0" && said.contains("what it had not read is not kept"), "{count}: {said}");
    let (count, said) = queue_after("large", &["--udp", "keep"]);
    assert!(count == "2" && said.contains("1 of the datagrams that it had not read are not kept"), "{count}: {said}");
    let (count, said) = queue_after("raw", &[]);
    assert!(count == "0" && said.contains("raw socket") && said.contains("is not kept"), "{count}: {said}");

    let mut job = Job::start("net_one", &["queued"]);
    let refused = run(job.checkpoint_command().args(["--udp", "refuse"]));
    let said = refused.said();
    let place = job.read_link("say.where").unwrap_or_default();
    assert!(
        refused.code == Some(120) && said.contains("has not read (--udp refuse)") && said.contains(&place),
        "{refused}"
    );
    job.finish();
    assert_eq!(
        job.read_link("say.count").unwrap_or_default(),
        "3",
        "the checkpoint that was refused took something out"
    );
}
