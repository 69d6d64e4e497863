/*
 * Ping, raw, packet and netlink sockets, in a network namespace of the test's with a loopback interface that is up. What they hear
 * is read in each step, so that nothing waits.
 */
#include "net.h"

#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/icmp.h>
#include <netinet/icmp6.h>
#include <sys/stat.h>

#define PROTOCOL 253 /* for experiments */
#define PORT 5555

static const unsigned char link_address[6] = {0x33, 0x33, 0, 0, 0x42, 0x17};

static void drain(int fd) {
    char bytes[2048];
    while (recv(fd, bytes, sizeof bytes, MSG_DONTWAIT) >= 0) {}
}

/* -- ping and raw ICMP -- */

static uint16_t checksum(const void *bytes, size_t length) {
    const uint16_t *words = bytes;
    uint32_t sum = 0;
    for (size_t i = 0; i < length / 2; i++) sum += words[i];
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void ping(int fd, int raw, uint16_t n) {
    struct icmphdr echo = {.type = ICMP_ECHO, .un.echo.sequence = htons(n)}, answer;
    unsigned char packet[64];
    if (fd >= 0) {
        send_to(fd, &echo, sizeof echo, at(AF_INET, NULL, 0));
        CHECK(becomes_readable(fd), "ping %u: no answer", n);
        CHECK(recv(fd, &answer, sizeof answer, 0) == sizeof answer && answer.type == ICMP_ECHOREPLY, "ping %u: another answer", n);
        CHECK(ntohs(answer.un.echo.sequence) == n && answer.un.echo.id == htons((uint16_t)port_of(name_of(fd))), "ping %u: the answer to another", n);
    }
    if (fd >= 0) drain(raw);
    echo.un.echo.id = htons(7);
    echo.checksum = checksum(&echo, sizeof echo);
    send_to(raw, &echo, sizeof echo, at(AF_INET, NULL, 0));
    CHECK(becomes_readable(raw), "raw ping %u: no answer", n);
    CHECK(recv(raw, packet, sizeof packet, 0) == 28 && packet[20] == ICMP_ECHOREPLY, "raw ping %u: the filter lets type %d in", n, packet[20]);
    CHECK(!is_readable(raw), "raw ping %u: the question is let in", n);
}

/* -- raw sockets of a protocol of their own, connected to a port that is 0 -- */

struct pair {
    int one, other;
};

static struct pair make_pair(void) {
    struct pair pair = {bound(AF_INET, SOCK_RAW, PROTOCOL, "127.0.0.1", 0), bound(AF_INET, SOCK_RAW, PROTOCOL, "127.0.0.2", 0)};
    connect_to(pair.one, at(AF_INET, "127.0.0.2", 0));
    connect_to(pair.other, at(AF_INET, "127.0.0.1", 0));
    return pair;
}

static void talk(const struct pair *pair, uint64_t n) {
    unsigned char packet[64];
    CHECK(send(pair->one, &n, sizeof n, 0) == sizeof n, "raw: %s", strerror(errno));
    CHECK(becomes_readable(pair->other), "raw: nothing arrives");
    CHECK(recv(pair->other, packet, sizeof packet, 0) == 28 && memcmp(packet + 20, &n, sizeof n) == 0, "raw: another arrives");
    CHECK(!is_readable(pair->one), "raw: the sender hears itself");
}

/* -- packets -- */

/* Lets UDP to PORT in. */
static int make_packet(void) {
    struct sock_filter code[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ETH_HLEN + 9), BPF_JUMP(BPF_JMP | BPF_JEQ, IPPROTO_UDP, 0, 3),
                                 BPF_STMT(BPF_LD | BPF_H | BPF_ABS, ETH_HLEN + 22), BPF_JUMP(BPF_JMP | BPF_JEQ, PORT, 0, 1),
                                 BPF_STMT(BPF_RET, 0xffff), BPF_STMT(BPF_RET, 0)};
    struct sock_fprog program = {ARRAY_LEN(code), code};
    struct sockaddr_ll name = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP), .sll_ifindex = (int)if_nametoindex("lo")};
    struct packet_mreq request = {name.sll_ifindex, PACKET_MR_MULTICAST, 6, {0}};
    int fd = MUST(socket(AF_PACKET, SOCK_RAW, 0));
    memcpy(request.mr_address, link_address, 6);
    MUST(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
    MUST(setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request, sizeof request));
    set(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
    set(fd, SOL_PACKET, PACKET_AUXDATA, 1);
    MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    return fd;
}

static void sniff(int packet, int sender, uint64_t n) {
    unsigned char bytes[128];
    send_to(sender, &n, sizeof n, at(AF_INET, NULL, PORT + 1));
    CHECK(!is_readable(packet), "packets: the filter lets in what went to another port");
    send_to(sender, &n, sizeof n, at(AF_INET, NULL, PORT));
    CHECK(becomes_readable(packet), "packets: the filter does not let it in");
    ssize_t length = recv(packet, bytes, sizeof bytes, 0);
    CHECK(length == ETH_HLEN + 28 + 8 && memcmp(bytes + ETH_HLEN + 28, &n, sizeof n) == 0, "packets: %zd other bytes", length);
    CHECK(!is_readable(packet), "packets: outgoing ones are let in");
}

static bool has_link_address(void) {
    static char text[16384];
    guest_read_file("/proc/self/net/dev_mcast", text, sizeof text);
    return strstr(text, "333300004217");
}

/* -- netlink -- */

static struct sockaddr_nl port(int fd) {
    struct sockaddr_nl name = {0};
    socklen_t length = sizeof name;
    MUST(getsockname(fd, (struct sockaddr *)&name, &length));
    return name;
}

static int make_netlink(int protocol, unsigned groups) {
    struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_groups = groups};
    int fd = MUST(socket(AF_NETLINK, SOCK_RAW, protocol));
    MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    return fd;
}

/* Asks for all links, and reads the answer to its end. */
static void dump(int fd, unsigned n) {
    struct {
        struct nlmsghdr header;
        struct rtgenmsg body;
    } question = {{sizeof question, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, n, 0}, {AF_UNSPEC}};
    static char bytes[65536];
    CHECK(send(fd, &question, sizeof question, 0) == sizeof question, "netlink: %s", strerror(errno));
    for (;;) {
        CHECK(becomes_readable(fd), "netlink: no answer");
        ssize_t length = recv(fd, bytes, sizeof bytes, 0);
        struct nlmsghdr *header = (struct nlmsghdr *)bytes;
        CHECK(length > 0 && header->nlmsg_seq == n && header->nlmsg_pid == port(fd).nl_pid, "netlink: the answer to another");
        CHECK(header->nlmsg_type == RTM_NEWLINK || header->nlmsg_type == NLMSG_DONE, "netlink: type %d", header->nlmsg_type);
        if (header->nlmsg_type == NLMSG_DONE) return;
    }
}

static uint32_t groups_of(int fd) {
    uint32_t groups[4] = {0};
    socklen_t length = sizeof groups;
    MUST(getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &length));
    return groups[0];
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    int pings = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
    if (pings < 0) {
        guest_skip("ping", "%s", strerror(errno));
    } else {
        struct sockaddr_storage ident = at(AF_INET, "0.0.0.0", 4711);
        MUST(bind(pings, (struct sockaddr *)&ident, sizeof ident));
    }
    int icmp = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    struct icmp_filter filter = {~(1U << ICMP_ECHOREPLY)};
    MUST(setsockopt(icmp, SOL_RAW, ICMP_FILTER, &filter, sizeof filter));
    struct pair pair = make_pair();
    int header = MUST(socket(AF_INET, SOCK_RAW, PROTOCOL + 1)), icmp6 = MUST(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
    set(header, IPPROTO_IP, IP_HDRINCL, 1);
    int sums = MUST(socket(AF_INET6, SOCK_RAW, PROTOCOL + 1));
    set(sums, IPPROTO_IPV6, IPV6_CHECKSUM, 4);
    struct icmp6_filter filter6;
    ICMP6_FILTER_SETBLOCKALL(&filter6);
    ICMP6_FILTER_SETPASS(77, &filter6);
    MUST(setsockopt(icmp6, IPPROTO_ICMPV6, ICMP6_FILTER, &filter6, sizeof filter6));
    int packet = make_packet(), silent = MUST(socket(AF_PACKET, SOCK_DGRAM, 0)), sender = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    int route = make_netlink(NETLINK_ROUTE, RTMGRP_IPV4_IFADDR), uevent = make_netlink(NETLINK_KOBJECT_UEVENT, 2);
    int generic = make_netlink(NETLINK_GENERIC, 0), control = 16 /* nlctrl's */, bare = MUST(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_SOCK_DIAG));
    set(route, SOL_NETLINK, NETLINK_EXT_ACK, 1);
    MUST(setsockopt(generic, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &control, sizeof control));
    struct sockaddr_nl ports[3] = {port(route), port(uevent), port(generic)};
    CHECK(has_link_address(), "no membership to begin with");
    guest_ready();
    for (unsigned n = 1; !guest_finishing(); n++) {
        ping(pings, icmp, (uint16_t)n);
        talk(&pair, n);
        sniff(packet, sender, n);
        dump(route, n);
        guest_step();
        guest_sleep_ms(2);
    }
    CHECK(pings < 0 || port_of(name_of(pings)) == 4711, "ping: identifier %d", port_of(name_of(pings)));
    struct icmp6_filter now6;
    socklen_t length = sizeof now6;
    MUST(getsockopt(icmp6, IPPROTO_ICMPV6, ICMP6_FILTER, &now6, &length));
    CHECK(memcmp(&now6, &filter6, sizeof now6) == 0, "ICMP6_FILTER");
    CHECK(get(header, IPPROTO_IP, IP_HDRINCL) == 1, "IP_HDRINCL");
    CHECK(get(sums, IPPROTO_IPV6, IPV6_CHECKSUM) == 4, "IPV6_CHECKSUM");
    struct sockaddr_ll name = {0};
    length = sizeof name;
    MUST(getsockname(packet, (struct sockaddr *)&name, &length));
    CHECK(name.sll_protocol == htons(ETH_P_IP) && name.sll_ifindex == (int)if_nametoindex("lo"), "packets: bound to %d", name.sll_ifindex);
    CHECK(get(packet, SOL_PACKET, PACKET_IGNORE_OUTGOING) == 1 && get(packet, SOL_PACKET, PACKET_AUXDATA) == 1, "options of packets");
    CHECK(has_link_address(), "packets: the membership is gone");
    CHECK(!is_readable(silent), "packets: the silent one hears something");
    const int fds[3] = {route, uevent, generic};
    for (int i = 0; i < 3; i++) CHECK(port(fds[i]).nl_pid == ports[i].nl_pid && ports[i].nl_pid, "netlink: socket %d has another port", i);
    CHECK(port(bare).nl_pid == 0, "netlink: the one without a port has one");
    CHECK(groups_of(route) == RTMGRP_IPV4_IFADDR && groups_of(uevent) == 2 && groups_of(generic) == 1 << 15, "netlink: other groups");
    CHECK(get(route, SOL_NETLINK, NETLINK_EXT_ACK) == 1, "NETLINK_EXT_ACK");
    CHECK(!is_readable(route), "netlink: something came before");
    CHECK(system("ip address add 127.9.9.9/32 dev lo") == 0, "no address can be added");
    CHECK(becomes_readable(route), "netlink: the group says nothing");
    CHECK(system("ip address delete 127.9.9.9/32 dev lo") == 0, "the address cannot be taken away");
    guest_ok();
}
