//! Sockets that cannot be restored, by the names of their families and protocols.

use libc::{SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, SOCK_STREAM};

use super::super::No;

const CLOSE: &str = "have the job close it before the checkpoint";
const TCP: &str = "have the job close it before the checkpoint, or use TCP";
const DEVICE: &str = "have the job let go of the device before the checkpoint";

/// Families, what they are, and what to do: `AF_*` of `linux/socket.h`.
const FAMILIES: &[(i32, &str, &str, &str)] = &[
    (3, "AF_AX25", "amateur radio", CLOSE),
    (4, "AF_IPX", "Novell's IPX", CLOSE),
    (5, "AF_APPLETALK", "AppleTalk", CLOSE),
    (6, "AF_NETROM", "amateur radio", CLOSE),
    (8, "AF_ATMPVC", "ATM", CLOSE),
    (9, "AF_X25", "X.25", CLOSE),
    (11, "AF_ROSE", "amateur radio", CLOSE),
    (15, "AF_KEY", "keys of IPsec, whose kernel state hangs on it", CLOSE),
    (18, "AF_ASH", "Ash", CLOSE),
    (19, "AF_ECONET", "Econet", CLOSE),
    (20, "AF_ATMSVC", "ATM", CLOSE),
    (21, "AF_RDS", "reliable datagrams (RDS), whose connections the kernel keeps to itself", TCP),
    (24, "AF_PPPOX", "a PPP session, which the other end would not take up again", CLOSE),
    (26, "AF_LLC", "logical link control", CLOSE),
    (27, "AF_IB", "InfiniBand addresses", DEVICE),
    (28, "AF_MPLS", "MPLS", CLOSE),
    (29, "AF_CAN", "a CAN bus, whose filters and broadcast jobs the kernel does not show", CLOSE),
    (30, "AF_TIPC", "a cluster by TIPC, whose connections the kernel keeps to itself", TCP),
    (31, "AF_BLUETOOTH", "Bluetooth, whose connections are in the adapter", DEVICE),
    (33, "AF_RXRPC", "calls by RxRPC, whose state the kernel keeps to itself", CLOSE),
    (34, "AF_ISDN", "ISDN", CLOSE),
    (35, "AF_PHONET", "a modem (Phonet)", CLOSE),
    (36, "AF_IEEE802154", "IEEE 802.15.4", CLOSE),
    (37, "AF_CAIF", "a modem (CAIF)", CLOSE),
    (38, "AF_ALG", "the kernel's cryptography, whose keys and running operations it does not show", CLOSE),
    (39, "AF_NFC", "near field communication", DEVICE),
    (
        40,
        "AF_VSOCK",
        "a virtual machine and its host (vsock), whose connections the kernel does not let anybody set up again",
        CLOSE,
    ),
    (41, "AF_KCM", "messages over TCP (KCM), which an eBPF program parts", CLOSE),
    (42, "AF_QIPCRTR", "a modem (QRTR)", CLOSE),
    (43, "AF_SMC", "shared memory over RDMA (SMC), whose buffers the device has", TCP),
    (44, "AF_XDP", "packets of a device in memory shared with the kernel (AF_XDP)", DEVICE),
    (45, "AF_MCTP", "management controllers (MCTP)", CLOSE),
];

/// Protocols over IP, `IPPROTO_*` of `linux/in.h`.
const PROTOCOLS: &[(i32, &str, &str)] = &[
    (33, "DCCP", "whose connections the kernel does not let anybody set up again"),
    (115, "L2TP", "whose tunnel the kernel keeps to itself"),
    (132, "SCTP", "whose associations the kernel does not let anybody set up again"),
    (262, "MPTCP (Multipath TCP)", "whose subflows the kernel does not let anybody set up again"),
    (256, "SMC", "whose buffers an RDMA device has"),
];

/// Why a socket of this family cannot be restored.
pub(super) fn family(family: i32, kind: i32) -> No {
    if let Some((_, name, what, todo)) = FAMILIES.iter().find(|(number, ..)| *number == family) {
        return No::new(format!("is a socket of {name}: {what}"), todo);
    }
    No::new(format!("is a socket of family {family}, which cr does not know (type {})", kind_name(kind)), CLOSE)
}

/// Why a socket of this protocol over IP cannot be restored.
pub(super) fn protocol(protocol: i32, kind: i32) -> No {
    if let Some((_, name, why)) = PROTOCOLS.iter().find(|(number, ..)| *number == protocol) {
        return No::new(format!("is a socket of {name}, {why}"), TCP);
    }
    let kind = kind_name(kind);
    No::new(format!("is a socket of IP protocol {protocol} and type {kind}, which cr does not know"), CLOSE)
}

fn kind_name(kind: i32) -> String {
    match kind {
        SOCK_STREAM => "SOCK_STREAM".to_owned(),
        SOCK_DGRAM => "SOCK_DGRAM".to_owned(),
        SOCK_RAW => "SOCK_RAW".to_owned(),
        SOCK_SEQPACKET => "SOCK_SEQPACKET".to_owned(),
        other => other.to_string(),
    }
}
