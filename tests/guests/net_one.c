/*
 * One socket: of a kind that cannot be restored, where `cr` must say where and what it is; or one that depends on what the machine
 * has, or that holds what it has not read.
 *
 *   net_one DIR NAME
 *
 * DIR/say.where holds where it is, "fd N"; DIR/skipped.NAME exists if the machine does not have the thing; in the end DIR/say.count
 * holds how many datagrams could be read. `net_one - list` prints the names of those that cannot be restored.
 */
#include "net.h"

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/udp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define HERE "10.99.0.1" /* an address of d0, which the test makes */
#define PORT 7777

static int simple(int family, int kind, int protocol) { return socket(family, kind, protocol); }

static int make_mptcp(void) { return simple(AF_INET, SOCK_STREAM, 262); }
static int make_sctp(void) { return simple(AF_INET, SOCK_STREAM, IPPROTO_SCTP); }
static int make_dccp(void) { return simple(AF_INET, 6, 33); }
static int make_vsock(void) { return simple(AF_VSOCK, SOCK_STREAM, 0); }
static int make_xdp(void) { return simple(44, SOCK_RAW, 0); }
static int make_alg(void) { return simple(AF_ALG, SOCK_SEQPACKET, 0); }
static int make_key(void) { return simple(AF_KEY, SOCK_RAW, 2); }
static int make_rds(void) { return simple(AF_RDS, SOCK_SEQPACKET, 0); }
static int make_tipc(void) { return simple(AF_TIPC, SOCK_SEQPACKET, 0); }
static int make_can(void) { return simple(AF_CAN, SOCK_RAW, 1); }
static int make_bluetooth(void) { return simple(AF_BLUETOOTH, SOCK_RAW, 1); }
static int make_netfilter(void) { return simple(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER); }
static int make_audit(void) { return simple(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT); }

static int make_corked(void) {
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    connect_to(fd, at(AF_INET, NULL, PORT));
    MUST(send(fd, "half", 4, MSG_MORE));
    return fd;
}
static int make_tunnel(void) {
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0)), espinudp = 2;
    return setsockopt(fd, IPPROTO_UDP, 100, &espinudp, sizeof espinudp) == 0 ? fd : -1;
}
static int packet_socket(void) {
    struct sockaddr_ll name = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex("lo")};
    int fd = socket(AF_PACKET, SOCK_RAW, 0);
    if (fd >= 0) MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    return fd;
}
static int make_ring(void) {
    struct tpacket_req ring = {.tp_block_size = 4096, .tp_block_nr = 2, .tp_frame_size = 2048, .tp_frame_nr = 4};
    int fd = packet_socket();
    return fd >= 0 && setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring) == 0 ? fd : -1;
}
static int make_fanout(void) {
    int fd = packet_socket(), group = 0;
    return fd >= 0 && setsockopt(fd, SOL_PACKET, PACKET_FANOUT, &group, sizeof group) == 0 ? fd : -1;
}
static int make_ebpf(void) {
    struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = -1}, {.code = BPF_JMP | BPF_EXIT}};
    union bpf_attr load = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2, .insns = (uintptr_t)code, .license = (uintptr_t) "GPL"};
    int program = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load), fd = bound(AF_INET, SOCK_DGRAM, 0, NULL, 0);
    if (program < 0 || setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &program, sizeof program) != 0) return -1;
    close(program);
    return fd;
}
static int chooser(int kind) {
    struct sock_filter code[] = {BPF_STMT(BPF_RET, 0)};
    struct sock_fprog program = {1, code};
    int fd = MUST(socket(AF_INET, kind, 0));
    struct sockaddr_storage name = at(AF_INET, NULL, 0);
    set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
    MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    if (kind == SOCK_STREAM) MUST(listen(fd, 4));
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program) == 0 ? fd : -1;
}
static int make_chooser(void) {
    return chooser(SOCK_DGRAM);
}
static int make_tcp_chooser(void) {
    return chooser(SOCK_STREAM);
}
/* A process outside of the job, an orphan, has it too. */
static int make_shared(void) {
    int fd = bound(AF_INET, SOCK_DGRAM, 0, NULL, 0);
    pid_t guest = getpid(), between = MUST(fork());
    if (between == 0) {
        if (fork() == 0) {
            setsid();
            while (kill(guest, 0) == 0) guest_sleep_ms_eintr(20);
        }
        _exit(0);
    }
    MUST(waitpid(between, NULL, 0));
    return fd;
}
static int make_elsewhere(void) {
    int own = MUST(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    if (unshare(CLONE_NEWNET) != 0) return -1;
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(setns(own, 0));
    close(own);
    return fd;
}
static int netlink_socket(unsigned port) {
    struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_pid = port};
    int fd = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    return fd;
}
static int make_unread(void) {
    struct {
        struct nlmsghdr header;
        struct rtgenmsg body;
    } question = {{sizeof question, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {AF_UNSPEC}};
    int fd = netlink_socket(0);
    MUST(send(fd, &question, sizeof question, 0));
    return fd;
}

/* What can be restored where the machine has what it needs. */
static int make_address(void) { return bound(AF_INET, SOCK_DGRAM, 0, HERE, PORT); }
static int make_device(void) {
    int fd = bound(AF_INET, SOCK_DGRAM, 0, "0.0.0.0", PORT);
    MUST(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "d0", 3));
    return fd;
}
static int make_packet(void) {
    struct sockaddr_ll name = {.sll_family = AF_PACKET, .sll_protocol = htons(0x88b5), .sll_ifindex = (int)if_nametoindex("d0")};
    int fd = MUST(socket(AF_PACKET, SOCK_DGRAM, 0));
    MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    return fd;
}
static int make_port(void) { return netlink_socket(4242); }
static int make_route(void) {
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    connect_to(fd, at(AF_INET, "10.99.0.2", PORT));
    return fd;
}
static int make_queued(void) {
    int fd = bound(AF_INET, SOCK_DGRAM, 0, NULL, PORT);
    for (int i = 0; i < 3; i++) send_to(fd, "datagram", 8, name_of(fd));
    return fd;
}
/* The second has more than the kernel puts into one buffer. */
static int make_large(void) {
    static char bytes[50000];
    int fd = bound(AF_INET, SOCK_DGRAM, 0, NULL, PORT);
    send_to(fd, bytes, 8, name_of(fd));
    send_to(fd, bytes, sizeof bytes, name_of(fd));
    send_to(fd, bytes, 9, name_of(fd));
    return fd;
}
static int make_raw_queued(void) {
    int fd = bound(AF_INET, SOCK_RAW, 253, NULL, 0);
    send_to(fd, "packet", 6, at(AF_INET, NULL, 0));
    return fd;
}

static const struct one {
    const char *name;
    int (*make)(void);
    bool refused;
} all[] = {
    {"mptcp", make_mptcp, true}, {"sctp", make_sctp, true}, {"dccp", make_dccp, true}, {"vsock", make_vsock, true},
    {"xdp", make_xdp, true}, {"alg", make_alg, true}, {"key", make_key, true}, {"rds", make_rds, true}, {"tipc", make_tipc, true},
    {"can", make_can, true}, {"bluetooth", make_bluetooth, true}, {"netfilter", make_netfilter, true}, {"audit", make_audit, true},
    {"corked", make_corked, true}, {"tunnel", make_tunnel, true}, {"ring", make_ring, true}, {"fanout", make_fanout, true},
    {"ebpf", make_ebpf, true}, {"chooser", make_chooser, true}, {"tcp-chooser", make_tcp_chooser, true}, {"shared", make_shared, true}, {"elsewhere", make_elsewhere, true}, {"unread", make_unread, true},
    {"address", make_address, false}, {"device", make_device, false}, {"packet", make_packet, false}, {"port", make_port, false},
    {"route", make_route, false}, {"queued", make_queued, false}, {"large", make_large, false}, {"raw", make_raw_queued, false},
};

int main(int argc, char **argv) {
    if (argc >= 3 && strcmp(argv[2], "list") == 0) {
        for (size_t i = 0; i < ARRAY_LEN(all); i++)
            if (all[i].refused) printf("%s\n", all[i].name);
        return 0;
    }
    guest_start(argc, argv);
    const struct one *one = NULL;
    for (size_t i = 0; argc >= 3 && i < ARRAY_LEN(all); i++)
        if (strcmp(all[i].name, argv[2]) == 0) one = &all[i];
    CHECK(one, "usage: net_one DIR NAME");
    char say[64];
    int fd = one->make();
    if (fd < 0) guest_skip(one->name, "%s", strerror(errno));
    snprintf(say, sizeof say, "fd %d", fd);
    guest_link("say.where", say);
    guest_ready();
    while (!guest_finishing()) {
        guest_step();
        guest_sleep_ms(10);
    }
    if (!one->refused) {
        char byte;
        int count = 0;
        while (recv(fd, &byte, 1, MSG_DONTWAIT) >= 0) count++;
        snprintf(say, sizeof say, "%d", count);
        guest_link("say.count", say);
    }
    guest_ok();
}
